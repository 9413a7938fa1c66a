//! The epoch of a larder: one number that says whether anything happened to many entries at once.
//!
//! Entries are stamped with the epoch of their fill. While stamp and epoch are equal, nothing was
//! invalidated by tag, no cache was cleared, and no doubt came up since: a hit needs this one
//! comparison. Otherwise the entry is looked at more closely, once, and stamped anew.
//!
//! Every event has an odd number, and the epoch behind it is the even one that follows. Fills that
//! begin while the bus is not trusted are stamped with the odd number: no event of theirs is missed,
//! and no epoch ever equals it, so that every hit on them is looked at.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use crate::clock::Millis;

/// The epoch, and what became of the trust in memory.
#[derive(Debug)]
pub(crate) struct Epochs {
    now: AtomicU64,
    /// The event since which entries have to be looked up again before they are served.
    doubted: AtomicU64,
    /// Whether every invalidation of other processes is heard of at present.
    trusted: AtomicBool,
    /// Until when memory may be served if nothing more is heard, by the monotonic clock.
    trusted_until: AtomicU64,
    /// Whether other processes can change what stands in the tiers without this one hearing of it
    /// at all. Memory is then bounded by its TTL alone.
    deaf: bool,
    /// How many keys were invalidated whose tags nobody had heard of.
    unnoted: AtomicU64,
    writer: Mutex<()>,
}

/// What had happened when a fill began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// What the entry is stamped with.
    pub(crate) stamp: u64,
    /// How many keys had been invalidated whose tags nobody had heard of.
    pub(crate) unnoted: u64,
}

impl Moment {
    /// Whether everything that had happened at `other` had happened here.
    pub(crate) fn is_as_late_as(self, other: Self) -> bool {
        self.stamp >= other.stamp && self.unnoted >= other.unnoted
    }

    /// The later of both.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            stamp: self.stamp.max(other.stamp),
            unnoted: self.unnoted.max(other.unnoted),
        }
    }
}

impl Epochs {
    fn starting(trusted: bool, deaf: bool) -> Self {
        Self {
            now: AtomicU64::new(2),
            doubted: AtomicU64::new(0),
            trusted: AtomicBool::new(trusted),
            trusted_until: AtomicU64::new(if trusted { Millis::MAX } else { 0 }),
            deaf,
            unnoted: AtomicU64::new(0),
            writer: Mutex::new(()),
        }
    }

    /// Of a larder whose tiers nobody else writes to.
    pub(crate) fn alone() -> Self {
        Self::starting(true, false)
    }

    /// Of a larder that hears of other processes through a bus, once it has joined it.
    pub(crate) fn on_a_bus() -> Self {
        Self::starting(false, false)
    }

    /// Of a larder that shares a tier and hears of nobody.
    pub(crate) fn deaf() -> Self {
        Self::starting(true, true)
    }

    /// The epoch that a current entry carries.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.now.load(SeqCst)
    }

    /// The stamp of a fill that begins now.
    pub(crate) fn stamp(&self) -> u64 {
        let now = self.now();
        if self.is_trusted() { now } else { now - 1 }
    }

    /// What has happened so far, for a fill that begins now.
    pub(crate) fn moment(&self) -> Moment {
        Moment {
            stamp: self.stamp(),
            unnoted: self.unnoted(),
        }
    }

    /// How many keys were invalidated whose tags nobody had heard of.
    pub(crate) fn unnoted(&self) -> u64 {
        self.unnoted.load(SeqCst)
    }

    /// A key was invalidated whose tag nobody has heard of.
    pub(crate) fn pass_unnoted(&self) {
        self.unnoted.fetch_add(1, SeqCst);
    }

    /// Begins a new epoch. `note` writes the number of the event wherever it matters; nobody sees
    /// the epoch before that is done.
    pub(crate) fn advance(&self, note: impl FnOnce(u64)) {
        let _one_at_a_time = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let event = self.now() + 1;
        note(event);
        self.now.store(event + 1, SeqCst);
    }

    pub(crate) fn is_trusted(&self) -> bool {
        self.trusted.load(SeqCst)
    }

    /// From now on every hit is looked up again before it is served.
    pub(crate) fn distrust(&self) {
        self.advance(|_| self.trusted.store(false, SeqCst));
    }

    /// Nothing was missed: entries are as good as before.
    pub(crate) fn trust(&self) {
        self.advance(|_| self.trusted.store(true, SeqCst));
    }

    /// Something may have been missed: entries from before have to be looked up again, those from
    /// now on have not, once there is trust.
    pub(crate) fn doubt(&self) {
        self.advance(|event| self.doubted.store(event, SeqCst));
    }

    /// The event of the last doubt; zero if there was none.
    pub(crate) fn doubted(&self) -> u64 {
        self.doubted.load(SeqCst)
    }

    /// Says until when trust lasts without a word. A process that was stopped finds that it is over
    /// before anybody could tell it.
    pub(crate) fn trust_until(&self, until: Millis) {
        self.trusted_until.store(until, SeqCst);
    }

    /// Whether there is trust at `now`, unless it was lost since the last word.
    #[inline]
    pub(crate) fn lasts_at(&self, now: Millis) -> bool {
        now < self.trusted_until.load(Relaxed)
    }

    /// Whether an entry of that stamp may be served without a question to the tiers.
    pub(crate) fn vouches_for(&self, stamp: u64) -> bool {
        self.is_trusted() && stamp >= self.doubted()
    }

    /// Whether what a tier said at that stamp is still what it would say.
    pub(crate) fn believes(&self, stamp: u64) -> bool {
        !self.deaf && self.vouches_for(stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_is_vouched_for_until_trust_is_lost_and_again_if_nothing_was_missed() {
        let epochs = Epochs::alone();
        let stamp = epochs.stamp();
        assert_eq!(stamp, epochs.now());
        epochs.distrust();
        assert!(!epochs.vouches_for(stamp));
        let unheard = epochs.stamp();
        assert_ne!(unheard, epochs.now());
        epochs.trust();
        assert!(epochs.vouches_for(stamp) && epochs.vouches_for(unheard));
        epochs.distrust();
        epochs.doubt();
        let behind = epochs.stamp();
        epochs.trust();
        assert!(!epochs.vouches_for(stamp) && !epochs.vouches_for(unheard));
        assert!(epochs.vouches_for(behind) && epochs.vouches_for(epochs.stamp()));
    }

    #[test]
    fn trust_ends_at_its_time_and_not_before_without_anybody_saying_so() {
        let on_a_bus = Epochs::on_a_bus();
        assert!(!on_a_bus.lasts_at(0), "it has heard nothing yet");
        on_a_bus.trust();
        on_a_bus.trust_until(3_000);
        assert!(on_a_bus.lasts_at(2_999) && !on_a_bus.lasts_at(3_000));
        assert!(on_a_bus.is_trusted(), "no task has run since");
        on_a_bus.trust_until(4_000);
        assert!(on_a_bus.lasts_at(3_000));
        for trusted in [Epochs::alone(), Epochs::deaf()] {
            assert!(trusted.lasts_at(Millis::MAX - 1));
        }
    }

    #[test]
    fn a_fill_behind_an_event_is_stamped_no_lower_than_the_event() {
        for trusted in [true, false] {
            let epochs = Epochs::starting(trusted, false);
            let before = epochs.stamp();
            let mut event = 0;
            epochs.advance(|number| event = number);
            assert!(before < event && event <= epochs.stamp());
        }
    }
}
