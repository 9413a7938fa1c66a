//! One entry, with all that the table needs to know about it.

use std::num::NonZeroU32;

use super::sync::{AtomicU64, Ordering};
use crate::clock::Millis;

/// The position that stands for "no slot".
pub(super) const NIL: u32 = u32::MAX;

/// One entry: what the caller gave, and 24 bytes of what the cache needs to know about it.
#[derive(Debug)]
pub(super) struct Slot<K, T> {
    pub(super) key: K,
    pub(super) value: T,
    /// Changed under the exclusive lock, but for what a read leaves.
    life: AtomicU64,
    /// The lower half of the key's hash. Kept so that no growth of the table has to call the hasher
    /// of a user's type, and few lookups its comparison.
    pub(super) hash: u32,
    /// The neighbour in the queue that entered after this one.
    pub(super) newer: u32,
    /// The neighbour in the queue that entered before this one.
    pub(super) older: u32,
    /// Never zero, which tells an empty place of the table from a full one.
    charge: NonZeroU32,
}

/// Where an entry stands under the default policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// Among those that have yet to show that they are read.
    Small,
    /// Among those that did.
    Main,
}

impl<K, T> Slot<K, T> {
    /// An entry that stands nowhere yet and was never read, and takes at least one of the bound.
    #[inline]
    pub(super) fn new(key: K, value: T, hash: u32, charge: u32, dies_at: Millis) -> Self {
        Self {
            key,
            value,
            life: AtomicU64::new(Life::until(dies_at).0),
            hash,
            newer: NIL,
            older: NIL,
            charge: at_least_one(charge),
        }
    }

    /// What this entry takes of the bound.
    #[inline]
    pub(super) fn charge(&self) -> u32 {
        self.charge.get()
    }

    pub(super) fn set_charge(&mut self, charge: u32) {
        self.charge = at_least_one(charge);
    }

    #[inline]
    pub(super) fn dies_at(&self) -> Millis {
        self.life().dies_at()
    }

    pub(super) fn set_dies_at(&mut self, dies_at: Millis) {
        self.set_life(Life::until(dies_at).with(self.life().history()));
    }

    #[inline]
    pub(super) fn is_dead(&self, now: Millis) -> bool {
        self.life().is_dead(now)
    }

    /// The value, unless it is dead at `now`, and notes that it was read.
    ///
    /// Two reads at once may count as one, which is near enough for a mark that saturates and spares
    /// the read an atomic addition; what would not change is not written.
    #[inline]
    pub(super) fn read(&self, now: Millis, read: Read) -> Option<&T> {
        let life = self.life();
        if life.is_dead(now) {
            return None;
        }
        if (life.history() ^ read.fresh) & read.looked_at != 0 {
            let mark = life.mark() + u8::from(life.mark() < Life::MARK as u8);
            let main = life.history() & Life::MAIN;
            let history = read.fresh & !Life::MARK | u16::from(mark) | main;
            self.life.store(life.with(history).0, Ordering::Relaxed);
        }
        Some(&self.value)
    }

    /// The highest mark.
    pub(super) const MARK_MAX: u8 = Life::MARK as u8;

    /// How often it was read of late.
    #[inline]
    pub(super) fn mark(&self) -> u8 {
        self.life().mark()
    }

    #[inline]
    pub(super) fn stand(&self) -> Stand {
        match self.life().history() & Life::MAIN {
            0 => Stand::Small,
            _ => Stand::Main,
        }
    }

    /// Notes that it is in the main queue now, with so many marks left.
    #[inline]
    pub(super) fn spare(&mut self, mark: u8) {
        let life = self.life();
        let touched = life.history() & !(Life::MARK | Life::MAIN);
        self.set_life(life.with(touched | Life::MAIN | u16::from(mark)));
    }

    /// Notes where and when it comes in.
    #[inline]
    pub(super) fn enter(&mut self, stand: Stand, tick: u8) {
        let main = match stand {
            Stand::Small => 0,
            Stand::Main => Life::MAIN,
        };
        self.set_life(self.life().with(main | Life::number(tick)));
    }

    /// The tick of the last read, or of the entrance.
    #[inline]
    pub(super) fn touched_at(&self) -> u8 {
        (self.life().history() >> 8) as u8
    }

    /// How often it was read, where that is counted instead of ticks; 255 is that or more.
    #[inline]
    pub(super) fn reads(&self) -> u8 {
        self.touched_at()
    }

    pub(super) fn count_read(&mut self) {
        let reads = self.reads().saturating_add(1);
        self.set_life(self.life().with(Life::number(reads)));
    }

    /// Takes over what is known of the reads of an older entry of this key.
    pub(super) fn succeed(&mut self, older: &Self) {
        self.set_life(self.life().with(older.life().history()));
    }

    #[inline]
    fn life(&self) -> Life {
        Life(self.life.load(Ordering::Relaxed))
    }

    #[inline]
    fn set_life(&mut self, life: Life) {
        self.life.store(life.0, Ordering::Relaxed);
    }
}

#[inline]
fn at_least_one(charge: u32) -> NonZeroU32 {
    NonZeroU32::new(charge).unwrap_or(NonZeroU32::MIN)
}

/// What a read leaves in a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    /// The history of an entry of the small queue that was read often and just now.
    fresh: u16,
    /// The bits of it that count.
    looked_at: u16,
}

impl Read {
    /// Nothing: the policy does not look at marks.
    pub(super) const UNMARKED: Self = Self {
        fresh: 0,
        looked_at: 0,
    };

    /// A higher mark, and the time.
    #[inline]
    pub(super) fn at(tick: u8) -> Self {
        Self {
            fresh: Life::number(tick) | Life::MARK,
            looked_at: !Life::MAIN,
        }
    }
}

/// How long an entry lives, in 48 bits, and what its policy knows of it, in 16.
///
/// The time is in milliseconds; they reach 8,900 years from whatever the caller counts from, so there is
/// no wrap and no rule for one. The largest stands for "never", and so does every time beyond it.
///
/// The history is two bits of marks, one for where the entry stands, and a byte for the time of its last
/// read or for how many there were.
#[derive(Clone, Copy, Debug)]
struct Life(u64);

impl Life {
    const NEVER: Millis = (1 << 48) - 1;

    /// How often a read can raise a mark; Yang et al. use two bits as well.
    const MARK: u16 = 3;
    const MAIN: u16 = 4;

    /// A life without a history.
    #[inline]
    fn until(dies_at: Millis) -> Self {
        Self(dies_at.min(Self::NEVER) << 16)
    }

    #[inline]
    fn with(self, history: u16) -> Self {
        Self(self.0 & !u64::from(u16::MAX) | u64::from(history))
    }

    #[inline]
    fn history(self) -> u16 {
        self.0 as u16
    }

    #[inline]
    fn mark(self) -> u8 {
        (self.history() & Self::MARK) as u8
    }

    #[inline]
    fn number(number: u8) -> u16 {
        u16::from(number) << 8
    }

    #[inline]
    fn is_dead(self, now: Millis) -> bool {
        // Mostly the first comparison is all.
        self.0 >> 16 <= now && self.dies_at() <= now
    }

    #[inline]
    fn dies_at(self) -> Millis {
        match self.0 >> 16 {
            Self::NEVER => Millis::MAX,
            at => at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slot(key: u32) -> Slot<u32, ()> {
        Slot::new(key, (), 0, 1, Millis::MAX)
    }

    #[test]
    fn a_slot_adds_24_bytes_to_key_and_value() {
        assert_eq!(size_of::<Slot<u64, u64>>(), 16 + 24);
        assert_eq!(size_of::<Option<Slot<u64, u64>>>(), 16 + 24);
    }

    #[test]
    fn a_slot_is_dead_at_its_deadline_and_not_before() {
        let slot: Slot<u32, ()> = Slot::new(0, (), 0, 1, 1000);
        assert!(!slot.is_dead(999));
        assert!(slot.is_dead(1000));
    }

    #[test]
    fn a_deadline_out_of_range_is_never_and_not_an_early_one() {
        for at in [(1 << 48) - 1, 1 << 48, Millis::MAX - 1, Millis::MAX] {
            let life = Life::until(at);
            assert_eq!(life.dies_at(), Millis::MAX);
            assert!(!life.is_dead(1 << 48));
        }
        assert_eq!(Life::until((1 << 48) - 2).dies_at(), (1 << 48) - 2);
    }

    #[test]
    fn marks_saturate_and_the_rest_of_a_life_stays() {
        let mut slot = slot(0);
        slot.set_dies_at(9_000);
        slot.enter(Stand::Main, 200);
        assert_eq!((slot.mark(), slot.touched_at()), (0, 200));
        for tick in 0..=255 {
            assert!(slot.read(8_999, Read::at(tick)).is_some());
            assert_eq!(slot.touched_at(), tick);
        }
        assert_eq!((slot.mark(), slot.stand()), (3, Stand::Main));
        slot.enter(Stand::Small, 7);
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
        let mut slot = slot(0);
        slot.set_dies_at(10);
        assert!(slot.read(10, Read::at(4)).is_none());
        assert!(slot.read(9, Read::UNMARKED).is_some());
        assert_eq!((slot.mark(), slot.touched_at()), (0, 0));
    }

    #[test]
    fn reads_are_counted_up_to_255() {
        let mut slot = slot(0);
        for _ in 0..300 {
            slot.count_read();
        }
        assert_eq!(slot.reads(), 255);
    }

    proptest! {
        #[test]
        fn deadlines_come_back_as_they_were(at in 0..Life::NEVER, history: u16) {
            prop_assert_eq!(Life::until(at).with(history).dies_at(), at);
        }
    }
}
