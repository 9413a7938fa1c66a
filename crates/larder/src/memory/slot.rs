//! One entry, with all that the table needs to know about it: what reads need in one place, and what
//! only changes need in another, so that more of the first fits the processor's caches.

use std::num::NonZeroU32;

use super::sync::{AtomicU16, Ordering};
use crate::clock::Millis;

/// The position that stands for "no slot".
pub(super) const NIL: u32 = u32::MAX;

/// What a read needs of an entry: what the caller gave, and 8 bytes more. What it looks at first lies
/// together; the value may be large.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Slot<K, T> {
    pub(super) key: K,
    life: Life,
    pub(super) value: T,
}

/// What only changes need of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meta {
    /// The lower half of the key's hash. Kept so that no growth of the table has to call the hasher
    /// of a user's type.
    pub(super) hash: u32,
    /// What it takes of the bound, which is at least one.
    charge: u32,
    /// The neighbour in the queue that entered after this one.
    pub(super) newer: u32,
    /// The neighbour in the queue that entered before this one.
    pub(super) older: u32,
}

/// An entry on its way into the table.
#[derive(Debug)]
pub(super) struct Entry<K, T> {
    pub(super) key: K,
    pub(super) value: T,
    pub(super) dies_at: Millis,
    /// The lower half of the key's hash.
    pub(super) hash: u32,
    charge: u32,
}

/// Where an entry stands under the default policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// Among those that have yet to show that they are read.
    Small,
    /// Among those that did.
    Main,
}

/// What the policy of an entry knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    stand: Stand,
    history: u16,
}

impl Standing {
    /// That of an entry of which nothing is known.
    pub(super) const NEW: Self = Self {
        stand: Stand::Small,
        history: 0,
    };

    /// That of one that comes in at `tick`.
    #[inline]
    pub(super) fn entered(stand: Stand, tick: u8) -> Self {
        let history = Life::number(tick);
        Self { stand, history }
    }

    #[inline]
    pub(super) fn stand(self) -> Stand {
        self.stand
    }

    /// How often it was read, where that is counted instead of ticks; 255 is that or more.
    #[inline]
    pub(super) fn reads(self) -> u8 {
        (self.history >> 8) as u8
    }
}

impl<K, T> Entry<K, T> {
    /// One that takes at least one of the bound.
    #[inline]
    pub(super) fn new(key: K, value: T, hash: u32, charge: u32, dies_at: Millis) -> Self {
        Self {
            key,
            value,
            dies_at,
            hash,
            charge: charge.max(1),
        }
    }

    /// What it takes of the bound.
    #[inline]
    pub(super) fn charge(&self) -> u32 {
        self.charge
    }

    /// What only changes need of it, next to `older` in its queue.
    #[inline]
    pub(super) fn meta(&self, older: u32) -> Meta {
        Meta {
            hash: self.hash,
            charge: self.charge,
            newer: NIL,
            older,
        }
    }

    /// What a read needs of it.
    #[inline]
    pub(super) fn slot(self, standing: Standing) -> Slot<K, T> {
        Slot {
            key: self.key,
            life: Life::new(self.dies_at, standing),
            value: self.value,
        }
    }
}

impl Meta {
    /// That of a place that never had an entry.
    pub(super) const VACANT: Self = Self {
        hash: 0,
        charge: 0,
        newer: NIL,
        older: NIL,
    };

    #[inline]
    pub(super) fn charge(&self) -> u32 {
        self.charge
    }

    pub(super) fn set_charge(&mut self, charge: u32) {
        self.charge = charge;
    }
}

impl<K, T> Slot<K, T> {
    #[inline]
    pub(super) fn dies_at(&self) -> Millis {
        self.life.dies_at()
    }

    #[inline]
    pub(super) fn set_dies_at(&mut self, dies_at: Millis) {
        self.life = Life::new(dies_at, self.standing());
    }

    #[inline]
    pub(super) fn is_dead(&self, now: Millis) -> bool {
        self.life.is_dead(now)
    }

    /// The value, unless it is dead at `now`, and notes that it was read.
    ///
    /// Two reads at once may count as one, which is near enough for a mark that saturates and spares
    /// the read an atomic addition; what would not change is not written.
    #[inline]
    pub(super) fn read(&self, now: Millis, read: Read) -> Option<&T> {
        if self.life.is_dead(now) {
            return None;
        }
        let history = self.life.history();
        if history != read.0 {
            self.life.note(history, read);
        }
        Some(&self.value)
    }

    /// The highest mark.
    pub(super) const MARK_MAX: u8 = Life::MARK as u8;

    /// How often it was read of late.
    #[inline]
    pub(super) fn mark(&self) -> u8 {
        (self.life.history() & Life::MARK) as u8
    }

    #[inline]
    pub(super) fn stand(&self) -> Stand {
        match self.life.rest & Life::MAIN {
            0 => Stand::Small,
            _ => Stand::Main,
        }
    }

    /// Notes that it is in the main queue now, with so many marks left.
    #[inline]
    pub(super) fn spare(&mut self, mark: u8) {
        let touched = self.life.history() & !Life::MARK;
        self.life.set_history(touched | u16::from(mark));
        self.life.rest |= Life::MAIN;
    }

    /// What its policy knows of it.
    #[inline]
    pub(super) fn standing(&self) -> Standing {
        Standing {
            stand: self.stand(),
            history: self.life.history(),
        }
    }

    /// The tick of the last read, or of the entrance.
    #[inline]
    pub(super) fn touched_at(&self) -> u8 {
        (self.life.history() >> 8) as u8
    }

    /// See [`Standing::reads`].
    #[inline]
    pub(super) fn reads(&self) -> u8 {
        self.standing().reads()
    }

    pub(super) fn count_read(&mut self) {
        let reads = self.reads().saturating_add(1);
        self.life.set_history(Life::number(reads));
    }
}

/// What a read leaves in a slot: the history of one that was read often, and just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Read(u16);

impl Read {
    /// Nothing: the policy does not look at marks.
    pub(super) const UNMARKED: Self = Self(0);

    /// A higher mark, and the time.
    #[inline]
    pub(super) fn at(tick: u8) -> Self {
        Self(Life::number(tick) | Life::MARK)
    }
}

/// How long an entry lives, in 47 bits, and what its policy knows of it.
///
/// The time is in milliseconds; they reach 4,400 years from whatever the caller counts from, so there is
/// no wrap and no rule for one. The largest stands for "never", and so does every time beyond it.
#[derive(Debug)]
struct Life {
    /// The time above its lower 15 bits, and one more: never zero, which tells an empty place of the
    /// table from a full one.
    era: NonZeroU32,
    /// The lower 15 bits of the time, above one for where the entry stands.
    rest: u16,
    /// Two bits of marks, zeros, and as the upper byte the time of the last read or how many there
    /// were. Changed under the exclusive lock, but for what a read leaves.
    history: AtomicU16,
}

impl Life {
    /// The largest whose era fits.
    const NEVER: Millis = ((u32::MAX as Millis) << Self::REST_BITS) - 1;
    const REST_BITS: u32 = 15;

    /// Of the rest.
    const MAIN: u16 = 1;

    /// Of the history: how often a read can raise a mark; Yang et al. use two bits as well.
    const MARK: u16 = 3;

    #[inline]
    fn new(dies_at: Millis, standing: Standing) -> Self {
        let dies_at = dies_at.min(Self::NEVER);
        let era = (dies_at >> Self::REST_BITS) as u32;
        Self {
            era: NonZeroU32::MIN.saturating_add(era),
            rest: (dies_at as u16) << 1 | Self::stand(standing.stand),
            history: AtomicU16::new(standing.history),
        }
    }

    #[inline]
    fn history(&self) -> u16 {
        self.history.load(Ordering::Relaxed)
    }

    #[inline]
    fn set_history(&self, history: u16) {
        self.history.store(history, Ordering::Relaxed);
    }

    /// Notes a read of an entry with this history. Few reads find that there is anything to note.
    #[inline(never)]
    fn note(&self, history: u16, read: Read) {
        if read == Read::UNMARKED {
            return;
        }
        let mark = history & Self::MARK;
        let mark = mark + u16::from(mark < Self::MARK);
        self.set_history(read.0 & !Self::MARK | mark);
    }

    #[inline]
    fn stand(stand: Stand) -> u16 {
        match stand {
            Stand::Small => 0,
            Stand::Main => Self::MAIN,
        }
    }

    #[inline]
    fn number(number: u8) -> u16 {
        u16::from(number) << 8
    }

    #[inline]
    fn is_dead(&self, now: Millis) -> bool {
        // Mostly the first comparison is all.
        u64::from(self.era.get()) <= (now >> Self::REST_BITS) + 1 && self.dies_at() <= now
    }

    #[inline]
    fn dies_at(&self) -> Millis {
        let era = u64::from(self.era.get() - 1);
        match era << Self::REST_BITS | u64::from(self.rest >> 1) {
            Self::NEVER => Millis::MAX,
            at => at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slot(key: u32, dies_at: Millis) -> Slot<u32, ()> {
        Entry::new(key, (), 0, 1, dies_at).slot(Standing::NEW)
    }

    #[test]
    fn an_entry_adds_24_bytes_to_key_and_value() {
        assert_eq!(size_of::<Slot<u64, u64>>(), 16 + 8);
        assert_eq!(size_of::<Option<Slot<u64, u64>>>(), 16 + 8);
        assert_eq!(size_of::<Meta>(), 16);
    }

    #[test]
    fn a_slot_is_dead_at_its_deadline_and_not_before() {
        let slot = slot(0, 1000);
        assert!(!slot.is_dead(999));
        assert!(slot.is_dead(1000));
    }

    #[test]
    fn a_deadline_out_of_range_is_never_and_not_an_early_one() {
        for at in [Life::NEVER, 1 << 48, Millis::MAX - 1, Millis::MAX] {
            let life = Life::new(at, Standing::NEW);
            assert_eq!(life.dies_at(), Millis::MAX);
            assert!(!life.is_dead(1 << 48));
            assert!(!life.is_dead(Millis::MAX - 1));
        }
        let last = Life::NEVER - 1;
        assert_eq!(Life::new(last, Standing::NEW).dies_at(), last);
        assert!(Life::new(last, Standing::NEW).is_dead(Millis::MAX));
    }

    #[test]
    fn marks_saturate_and_the_rest_of_a_life_stays() {
        let mut slot = slot(0, Millis::MAX);
        slot.set_dies_at(9_000);
        slot.life = Life::new(9_000, Standing::entered(Stand::Main, 200));
        assert_eq!((slot.mark(), slot.touched_at()), (0, 200));
        for tick in 0..=255 {
            assert!(slot.read(8_999, Read::at(tick)).is_some());
            assert_eq!(slot.touched_at(), tick);
        }
        assert_eq!((slot.mark(), slot.stand()), (3, Stand::Main));
        slot.life = Life::new(9_000, Standing::entered(Stand::Small, 7));
        slot.read(0, Read::at(9));
        let life = (slot.mark(), slot.stand(), slot.touched_at());
        assert_eq!(life, (1, Stand::Small, 9));
        slot.spare(2);
        let life = (slot.mark(), slot.stand(), slot.touched_at());
        assert_eq!(life, (2, Stand::Main, 9));
        assert_eq!(slot.dies_at(), 9_000);
    }

    #[test]
    fn a_read_of_a_dead_entry_leaves_nothing_and_neither_does_one_without_marks() {
        let mut slot = slot(0, Millis::MAX);
        slot.set_dies_at(10);
        assert!(slot.read(10, Read::at(4)).is_none());
        assert!(slot.read(9, Read::UNMARKED).is_some());
        assert_eq!((slot.mark(), slot.touched_at()), (0, 0));
    }

    #[test]
    fn reads_are_counted_up_to_255() {
        let mut slot = slot(0, Millis::MAX);
        for _ in 0..300 {
            slot.count_read();
        }
        assert_eq!(slot.reads(), 255);
    }

    proptest! {
        #[test]
        fn deadlines_come_back_as_they_were(at in 0..Life::NEVER, history: u16) {
            for stand in [Stand::Main, Stand::Small] {
                let standing = Standing { stand, history };
                let mut slot = slot(0, Millis::MAX);
                slot.life = Life::new(at, standing);
                prop_assert_eq!((slot.dies_at(), slot.standing()), (at, standing));
            }
        }

        #[test]
        fn a_life_ends_at_its_deadline(at in 0..Life::NEVER, by in -70_000_i64..70_000) {
            let now = at.saturating_add_signed(by);
            prop_assert_eq!(Life::new(at, Standing::NEW).is_dead(now), at <= now);
        }
    }
}
