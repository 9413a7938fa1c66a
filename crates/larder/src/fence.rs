//! The memory fence: what makes an invalidation win over a fill that began before it, and over an
//! entry that is there.
//!
//! ```text
//! fill:        mark() ... load ... lock shard { mark still holds? insert }
//! invalidate:            bump(), lock shard { remove }
//! ```
//!
//! Either the fill locks the shard second, and sees the bump; or it locks first, and what it
//! inserted is removed. Generations are kept per stripe of the key's hash, so two keys can share
//! one: the price is a fill that is refused without need, never one that is let through.
//!
//! What happens to many entries at once, a clear or an invalidation by tag, removes none of them.
//! It has a number, and entries whose stamp is lower are not served: see [`crate::epoch`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::clock::Millis;
use crate::entry::Held;
use crate::epoch::{Epochs, Moment};
use crate::tags::Tag;

/// Stripes of generations: 8 KiB per cache.
const STRIPES: usize = 1024;

/// The fence of one cache.
#[derive(Debug)]
pub(crate) struct Fence {
    stripes: Box<[AtomicU64]>,
    epochs: Arc<Epochs>,
    /// The tag that all entries of the cache have. Clearing invalidates it.
    own: Arc<Tag>,
}

/// The state of the fence at one moment, for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    stripe: usize,
    generation: u64,
    cleared: u64,
    /// Twice the last event since which nothing that was looked up before it is to be believed; one
    /// more while the bus is not trusted, which may be before such an event.
    doubted: u64,
    began: Moment,
}

impl Mark {
    /// Whether a load that began under this mark began no earlier than one under `other`, a mark
    /// of the same key, as far as the key, its cache and doubts go. Tags are known only when it
    /// lands.
    pub(crate) fn is_as_new_as(&self, other: &Mark) -> bool {
        self.generation >= other.generation
            && self.cleared >= other.cleared
            && self.doubted >= other.doubted
    }

    /// What an entry filled under this mark is stamped with.
    pub(crate) fn stamp(&self) -> u64 {
        self.began.stamp
    }

    /// When a fill under this mark began.
    pub(crate) fn began(&self) -> Moment {
        self.began
    }

    /// The mark of a caller who does not believe memory, for whatever reason: no flight will do that
    /// began before there was one.
    pub(crate) fn in_doubt(self) -> Self {
        Self {
            doubted: self.doubted | 1,
            ..self
        }
    }

    /// The mark of a fill that is taken over by a caller who came at `other`, which is as new as far
    /// as the key and its cache go.
    pub(crate) fn taken_over_at(self, other: Mark) -> Self {
        Self {
            began: self.began.max(other.began),
            ..self
        }
    }
}

/// What an entry in memory is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing happened to it.
    Current,
    /// It may have been invalidated elsewhere: the tiers have to be asked.
    Suspect,
    /// It was invalidated, by tag or by a clear.
    Gone,
}

impl Fence {
    pub(crate) fn new(epochs: Arc<Epochs>, own: Arc<Tag>) -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(),
            epochs,
            own,
        }
    }

    /// The fence of a cache that nobody shares.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        let epochs = Arc::new(Epochs::alone());
        let tags = crate::tags::Tags::new(Arc::clone(&epochs));
        Self::new(epochs, tags.tag("c:alone"))
    }

    /// Captures the fence. Taken before the load begins.
    pub(crate) fn mark(&self, hash: u64) -> Mark {
        // The table picks shards and buckets by other bits; any will do here.
        let stripe = (hash >> 20) as usize % STRIPES;
        Mark {
            stripe,
            generation: self.stripes[stripe].load(SeqCst),
            cleared: self.own.changed(),
            doubted: 2 * self.epochs.doubted() + u64::from(!self.epochs.is_trusted()),
            began: self.epochs.moment(),
        }
    }

    /// Whether nothing was invalidated or written under this key since `mark`, and the cache was
    /// not cleared.
    pub(crate) fn holds(&self, mark: Mark) -> bool {
        self.stripes[mark.stripe].load(SeqCst) == mark.generation && !self.was_cleared_since(mark)
    }

    fn was_cleared_since(&self, mark: Mark) -> bool {
        self.own.changed() > mark.stamp()
    }

    /// Fences off every fill of this key that is under way, and returns the mark from now on.
    pub(crate) fn bump(&self, hash: u64) -> Mark {
        let mark = self.mark(hash);
        let generation = self.stripes[mark.stripe].fetch_add(1, SeqCst) + 1;
        Mark { generation, ..mark }
    }

    /// Like [`Fence::bump`], if nobody else came between: `None` if somebody did.
    pub(crate) fn bump_from(&self, mark: Mark) -> Option<Mark> {
        let generation = mark.generation + 1;
        self.stripes[mark.stripe]
            .compare_exchange(mark.generation, generation, SeqCst, SeqCst)
            .ok()
            .filter(|_| !self.was_cleared_since(mark))?;
        Some(Mark { generation, ..mark })
    }

    /// Fences off every fill of every key that is under way, and leaves the entries.
    pub(crate) fn bump_all(&self) {
        for stripe in &self.stripes {
            stripe.fetch_add(1, SeqCst);
        }
    }

    /// Fences off every fill of the cache that is under way, and makes its entries unreadable.
    pub(crate) fn clear(&self) {
        self.epochs.advance(|event| self.own.change(event));
    }

    /// The tag that all entries of the cache have.
    pub(crate) fn own(&self) -> &Arc<Tag> {
        &self.own
    }

    /// The stamp of a fill that begins now.
    pub(crate) fn stamp(&self) -> u64 {
        self.epochs.stamp()
    }

    /// What has happened so far, for a fill that begins now.
    pub(crate) fn moment(&self) -> Moment {
        self.epochs.moment()
    }

    /// What an entry is worth. One comparison if nothing happened to any entry since it was last
    /// asked for.
    #[inline]
    pub(crate) fn standing<V>(&self, held: &Held<V>, now: Millis) -> Standing {
        let (epoch, stamp) = (self.epochs.now(), held.stamp());
        if stamp == epoch && self.epochs.lasts_at(now) {
            return Standing::Current;
        }
        self.look_closely(held, stamp, epoch, now)
    }

    #[cold]
    fn look_closely<V>(&self, held: &Held<V>, stamp: u64, epoch: u64, now: Millis) -> Standing {
        if self.own.changed() > stamp || held.tags().iter().any(|tag| tag.changed() > stamp) {
            return Standing::Gone;
        }
        if !self.epochs.vouches_for(stamp) || !self.epochs.lasts_at(now) {
            return Standing::Suspect;
        }
        held.stamp_anew(epoch);
        Standing::Current
    }

    /// Whether a reader that came at `mark` may be given an entry that somebody else's flight
    /// brought: not if a tag of it was invalidated before the reader came, and after the flight
    /// began. A tag knows of its last event alone, so one behind the reader may hide one before.
    pub(crate) fn serves<V>(&self, held: &Held<V>, mark: Mark) -> bool {
        let stamp = held.stamp();
        mark.stamp() <= stamp || !held.tags().iter().any(|tag| tag.changed() > stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tags::Tags;

    fn fence() -> (Fence, Tags) {
        let epochs = Arc::new(Epochs::alone());
        let tags = Tags::new(Arc::clone(&epochs));
        (Fence::new(epochs, tags.tag("c:c")), tags)
    }

    #[test]
    fn a_mark_holds_until_its_key_is_bumped_or_the_cache_cleared() {
        let (fence, _) = fence();
        let (key, other) = (1 << 20, 2 << 20);
        let mark = fence.mark(key);
        fence.bump(other);
        assert!(fence.holds(mark));
        let mark = fence.bump(key);
        assert!(fence.holds(mark));
        fence.clear();
        assert!(!fence.holds(mark));
        let mark = fence.mark(key);
        fence.bump_all();
        assert!(!fence.holds(mark));
    }

    #[test]
    fn a_load_from_before_a_doubt_is_not_as_new_as_one_behind_it() {
        let (fence, tags) = fence();
        let before = fence.mark(0);
        assert!(before.is_as_new_as(&fence.mark(0)));
        tags.epochs.doubt();
        let behind = fence.mark(0);
        assert!(!before.is_as_new_as(&behind) && behind.is_as_new_as(&before));
        assert!(fence.holds(before), "what it found is stored, and suspect");
    }

    #[test]
    fn the_second_of_two_overlapping_writes_knows_of_the_first() {
        let (fence, _) = fence();
        let first = fence.bump(0);
        let second = fence.bump(0);
        assert_eq!(fence.bump_from(first), None);
        assert!(fence.bump_from(second).is_some());
        assert_eq!(fence.bump_from(second), None);
    }

    #[test]
    fn entries_stand_until_a_tag_of_theirs_their_cache_or_the_bus_goes() {
        let (fence, tags) = fence();
        let fill = |names: &[&str]| {
            let began = fence.moment();
            let tags = tags.admit(names.iter().copied(), began).unwrap();
            Held::tagged((), began.stamp, tags)
        };
        let (plain, tagged) = (fill(&[]), fill(&["t:a", "t:b"]));
        tags.invalidate("t:other");
        assert_eq!(fence.standing(&tagged, 0), Standing::Current);
        assert_eq!(tagged.stamp(), fence.stamp(), "it is looked at once");
        tags.invalidate("t:b");
        assert_eq!(fence.standing(&tagged, 0), Standing::Gone);
        assert_eq!(fence.standing(&plain, 0), Standing::Current);
        tags.epochs.distrust();
        assert_eq!(fence.standing(&plain, 0), Standing::Suspect);
        assert_eq!(fence.standing(&fill(&[]), 0), Standing::Suspect);
        tags.epochs.trust();
        assert_eq!(fence.standing(&plain, 0), Standing::Current);
        tags.epochs.doubt();
        assert_eq!(fence.standing(&plain, 0), Standing::Suspect);
        assert_eq!(fence.standing(&fill(&[]), 0), Standing::Current);
        fence.clear();
        assert_eq!(fence.standing(&plain, 0), Standing::Gone);
    }

    #[test]
    fn a_reader_is_not_served_what_was_invalidated_before_it_came() {
        let (fence, tags) = fence();
        let flight = fence.mark(0);
        let held = Held::tagged(
            (),
            flight.stamp(),
            tags.admit(["t:a"], flight.began()).unwrap(),
        );
        let during = fence.mark(0);
        tags.invalidate("t:a");
        let after = fence.mark(0);
        assert!(fence.serves(&held, during));
        assert!(!fence.serves(&held, after));
        // Invalidated once more, behind the reader: what came before it counts all the same.
        tags.invalidate("t:a");
        assert!(fence.serves(&held, during));
        assert!(!fence.serves(&held, after));
    }
}
