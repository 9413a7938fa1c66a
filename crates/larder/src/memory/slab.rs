//! Where the entries of one shard lie: a dense array in chunks.

use std::ops::{Index, IndexMut};

use super::sync::{AtomicU16, Ordering};
use crate::clock::Millis;

/// The index that stands for "no slot".
pub(super) const NIL: u32 = u32::MAX;

/// Slots in one chunk: enough that the list of chunks of a large table stays in the processor's
/// caches, and so few that none takes long to move as it grows.
const CHUNK: usize = 1024;

/// A chunk grows and shrinks by this many slots, or by a quarter of it.
const STEP: usize = 128;

/// One entry: what the caller gave, and 24 bytes of what the cache needs to know about it.
#[derive(Debug)]
pub(super) struct Slot<K, T> {
    pub(super) key: K,
    pub(super) value: T,
    /// The lower half of the key's hash. Kept so that no lookup by position, and no growth of the
    /// index, has to call the hasher of a user's type.
    pub(super) hash: u32,
    /// The neighbour in the queue that entered after this one.
    pub(super) newer: u32,
    /// The neighbour in the queue that entered before this one.
    pub(super) older: u32,
    /// What this entry takes of the bound.
    pub(super) charge: u32,
    dies_at: Deadline,
    life: Life,
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
    /// An entry that stands nowhere yet and was never read.
    pub(super) fn new(key: K, value: T, hash: u32, charge: u32, dies_at: Millis) -> Self {
        Self {
            key,
            value,
            hash,
            newer: NIL,
            older: NIL,
            charge,
            dies_at: Deadline::new(dies_at),
            life: Life::default(),
        }
    }

    #[inline]
    pub(super) fn dies_at(&self) -> Millis {
        self.dies_at.get()
    }

    pub(super) fn set_dies_at(&mut self, dies_at: Millis) {
        self.dies_at = Deadline::new(dies_at);
    }

    #[inline]
    pub(super) fn is_dead(&self, now: Millis) -> bool {
        self.dies_at() <= now
    }

    /// Notes a read at `tick`. Two at once may count as one, which is near enough for a mark that
    /// saturates and spares the read an atomic addition; what would not change is not written.
    #[inline]
    pub(super) fn touch(&self, tick: u8) {
        let life = self.life.get();
        let mark = (life & Life::MARK) + u16::from(life & Life::MARK < Life::MARK);
        let touched = life & Life::MAIN | mark | Life::number(tick);
        if touched != life {
            self.life.0.store(touched, Ordering::Relaxed);
        }
    }

    /// The highest mark.
    pub(super) const MARK_MAX: u8 = Life::MARK as u8;

    /// How often it was read of late.
    pub(super) fn mark(&self) -> u8 {
        (self.life.get() & Life::MARK) as u8
    }

    pub(super) fn set_mark(&mut self, mark: u8) {
        let life = self.life.get();
        self.life.set(life & !Life::MARK | u16::from(mark));
    }

    pub(super) fn stand(&self) -> Stand {
        match self.life.get() & Life::MAIN {
            0 => Stand::Small,
            _ => Stand::Main,
        }
    }

    pub(super) fn set_stand(&mut self, stand: Stand) {
        let life = self.life.get() & !Life::MAIN;
        self.life.set(life | Life::standing(stand));
    }

    /// Notes where and when it comes in.
    pub(super) fn enter(&mut self, stand: Stand, tick: u8) {
        self.life.set(Life::standing(stand) | Life::number(tick));
    }

    /// The tick of the last read, or of the entrance.
    pub(super) fn touched_at(&self) -> u8 {
        (self.life.get() >> 8) as u8
    }

    /// How often it was read, where that is counted instead of ticks; 255 is that or more.
    pub(super) fn reads(&self) -> u8 {
        self.touched_at()
    }

    pub(super) fn count_read(&mut self) {
        self.life.set(Life::number(self.reads().saturating_add(1)));
    }

    /// Takes over what is known of the reads of an older entry of this key.
    pub(super) fn succeed(&mut self, older: &Self) {
        self.life.set(older.life.get());
    }
}

/// What a policy knows of an entry: two bits of marks, one for where it stands, and a byte for the
/// time of its last read or for how many there were.
#[derive(Debug, Default)]
struct Life(AtomicU16);

impl Life {
    /// How often a read can raise a mark; Yang et al. use two bits as well.
    const MARK: u16 = 3;
    const MAIN: u16 = 4;

    fn get(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&mut self, life: u16) {
        self.0.store(life, Ordering::Relaxed);
    }

    fn number(number: u8) -> u16 {
        u16::from(number) << 8
    }

    fn standing(stand: Stand) -> u16 {
        match stand {
            Stand::Small => 0,
            Stand::Main => Self::MAIN,
        }
    }
}

/// A time in milliseconds in 48 bits.
///
/// They reach 8,900 years from whatever the caller counts from, so there is no wrap and no rule
/// for one. The largest stands for "never", and so does every time beyond it.
#[derive(Clone, Copy, Debug)]
struct Deadline([u16; 3]);

impl Deadline {
    const NEVER: Millis = (1 << 48) - 1;

    fn new(at: Millis) -> Self {
        let at = at.min(Self::NEVER);
        Self([at as u16, (at >> 16) as u16, (at >> 32) as u16])
    }

    #[inline]
    fn get(self) -> Millis {
        let [low, middle, high] = self.0.map(u64::from);
        match low | middle << 16 | high << 32 {
            Self::NEVER => Millis::MAX,
            at => at,
        }
    }
}

/// A dense array of slots that grows and shrinks by chunks.
///
/// Dense means that removing a slot moves the last one into its place, so a shard that holds less
/// than it once did gives the memory back, and a walk over it meets entries only.
#[derive(Debug)]
pub(super) struct Slab<K, T> {
    /// All but the last two are full; the last may be an empty spare of some slots, so that a shard at
    /// a chunk's edge does not allocate and free in turn.
    chunks: Vec<Vec<Slot<K, T>>>,
    len: u32,
}

impl<K, T> Slab<K, T> {
    pub(super) fn new() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Whether every index is taken.
    pub(super) fn is_full(&self) -> bool {
        self.len == NIL
    }

    /// Appends a slot and returns its index. The caller guarantees that the slab is not full.
    pub(super) fn push(&mut self, slot: Slot<K, T>) -> u32 {
        let at = self.len;
        let chunk = at as usize / CHUNK;
        if chunk == self.chunks.len() {
            self.chunks.push(Vec::new());
        }
        let slots = &mut self.chunks[chunk];
        // The first slots of the first chunk are let grow as they like, because many caches are small.
        if slots.len() == slots.capacity() && (chunk > 0 || slots.len() >= STEP) {
            let step = STEP.max(slots.len() / 4);
            slots.reserve_exact(step.min(CHUNK - slots.len()));
        }
        slots.push(slot);
        self.len += 1;
        at
    }

    /// Removes the slot at `at` and moves the last slot there, unless it was the last itself.
    /// The caller tells those who know the moved slot by its index.
    pub(super) fn swap_remove(&mut self, at: u32) -> Slot<K, T> {
        let last = self.pop();
        if at == self.len {
            last
        } else {
            self.replace(at, last)
        }
    }

    /// Puts `slot` at `at` and returns what was there.
    pub(super) fn replace(&mut self, at: u32, slot: Slot<K, T>) -> Slot<K, T> {
        std::mem::replace(&mut self[at], slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot<K, T>> {
        self.chunks.iter().flatten()
    }

    /// Bytes that it has from the allocator.
    #[cfg(test)]
    pub(super) fn heap(&self) -> usize {
        let slots: usize = self.chunks.iter().map(Vec::capacity).sum();
        slots * size_of::<Slot<K, T>>() + self.chunks.capacity() * size_of::<Vec<Slot<K, T>>>()
    }

    #[expect(
        clippy::expect_used,
        reason = "callers hold the index of a slot, so there is a last one, and it lies in the \
                  chunk that the length points at"
    )]
    fn pop(&mut self) -> Slot<K, T> {
        self.len -= 1;
        let chunk = self.len as usize / CHUNK;
        let slots = &mut self.chunks[chunk];
        let slot = slots.pop().expect("the last slot exists");
        // What is far too large is cut to what it would have grown to.
        let room = slots.len() + STEP.max(slots.len() / 4);
        if slots.capacity() > room + STEP {
            slots.shrink_to(room);
        }
        // One spare chunk beyond the one just popped from may stay.
        self.chunks.truncate(chunk + 2);
        slot
    }
}

impl<K, T> Index<u32> for Slab<K, T> {
    type Output = Slot<K, T>;

    #[inline]
    fn index(&self, at: u32) -> &Slot<K, T> {
        &self.chunks[at as usize / CHUNK][at as usize % CHUNK]
    }
}

impl<K, T> IndexMut<u32> for Slab<K, T> {
    fn index_mut(&mut self, at: u32) -> &mut Slot<K, T> {
        &mut self.chunks[at as usize / CHUNK][at as usize % CHUNK]
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
            assert_eq!(Deadline::new(at).get(), Millis::MAX);
        }
        assert_eq!(Deadline::new((1 << 48) - 2).get(), (1 << 48) - 2);
    }

    #[test]
    fn marks_saturate_and_the_rest_of_a_life_stays() {
        let mut slot = slot(0);
        slot.enter(Stand::Main, 200);
        assert_eq!((slot.mark(), slot.touched_at()), (0, 200));
        for tick in 0..=255 {
            slot.touch(tick);
            assert_eq!(slot.touched_at(), tick);
        }
        assert_eq!((slot.mark(), slot.stand()), (3, Stand::Main));
        slot.set_mark(2);
        slot.set_stand(Stand::Small);
        slot.touch(255);
        let life = (slot.mark(), slot.stand(), slot.touched_at());
        assert_eq!(life, (3, Stand::Small, 255));
    }

    #[test]
    fn reads_are_counted_up_to_255() {
        let mut slot = slot(0);
        for _ in 0..300 {
            slot.count_read();
        }
        assert_eq!(slot.reads(), 255);
    }

    #[test]
    fn memory_is_given_back() {
        let mut slab = Slab::new();
        for key in 0..10 * CHUNK as u32 {
            slab.push(slot(key));
        }
        while slab.len() > 1 {
            slab.swap_remove(0);
        }
        assert!(slab.chunks.len() <= 2);
    }

    proptest! {
        #[test]
        fn deadlines_come_back_as_they_were(at in 0..Deadline::NEVER) {
            prop_assert_eq!(Deadline::new(at).get(), at);
        }

        /// `Vec::swap_remove` is the model.
        #[test]
        fn it_behaves_as_a_vec(steps in prop::collection::vec((any::<u32>(), 0u8..5), 0..3000)) {
            let mut slab = Slab::new();
            let mut model = Vec::new();
            for (number, step) in steps {
                if step > 1 || model.is_empty() {
                    prop_assert_eq!(slab.push(slot(number)) as usize, model.len());
                    model.push(number);
                } else {
                    let at = number as usize % model.len();
                    prop_assert_eq!(slab.swap_remove(at as u32).key, model.swap_remove(at));
                }
                prop_assert_eq!(slab.len() as usize, model.len());
            }
            prop_assert!(slab.iter().map(|slot| slot.key).eq(model));
        }
    }
}
