//! Which entry goes: S3-FIFO.
//!
//! Yang, Zhang, Qiu, Yue and Vigfusson, "FIFO queues are all you need for cache eviction",
//! SOSP 2023. New entries enter a small queue. One that leaves it unread is evicted and its
//! fingerprint remembered; one that was read moves to the main queue, and so does a key that
//! comes back while it is remembered. The main queue gives an entry that was read another round.
//! A hit changes a mark and no order, which is why hits need no exclusive lock.
//!
//! Three things differ from the paper. An entry past its deadline is a victim whatever its marks.
//! One read in the small queue is enough to be moved ([`PROMOTE_MARK`]), where the paper's listing
//! asks for two. And the number of entries that one search spares is bounded ([`SPARED_MAX`]), so
//! that a cache in which everything was read cannot make one insert walk all of it.

use super::ghost::Ghost;
use super::slab::{NIL, Slab};
use crate::clock::Millis;

/// One part in this many of the bound is the small queue's.
const SMALL_SHARE: u64 = 10;

/// An entry read this often while in the small queue moves to the main one.
const PROMOTE_MARK: u8 = 1;

/// After sparing this many entries a search takes the next one it meets.
const SPARED_MAX: u32 = 128;

/// The queue that an entry stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// For entries that have yet to show that they are read.
    Small,
    /// For entries that were.
    Main,
}

/// Why an entry was chosen to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Its deadline has passed.
    Dead,
    /// Room was needed.
    Room,
}

/// The order of the entries of one shard. The links lie in the slots, the ends here.
#[derive(Debug)]
pub(super) struct S3Fifo {
    small: Fifo,
    main: Fifo,
    ghost: Ghost,
    /// From this weight on, victims are looked for in the small queue.
    small_share: u64,
}

impl S3Fifo {
    /// An empty order for a shard that may hold `quota`.
    pub(super) fn new(quota: u64) -> Self {
        Self {
            small: Fifo::EMPTY,
            main: Fifo::EMPTY,
            ghost: Ghost::default(),
            small_share: (quota / SMALL_SHARE).max(1),
        }
    }

    /// Where a key that is not in the shard enters. A remembered key is forgotten by being asked
    /// for, because it is about to be in the shard.
    pub(super) fn entrance(&mut self, hash: u32) -> Queue {
        if self.ghost.take(hash) {
            Queue::Main
        } else {
            Queue::Small
        }
    }

    /// Puts the slot at `at` in as the newest of the queue that it names.
    pub(super) fn link<K, T>(&mut self, slots: &mut Slab<K, T>, at: u32) {
        self.fifo(slots[at].queue).push(slots, at);
    }

    /// Takes the slot at `at` out of its queue.
    pub(super) fn unlink<K, T>(&mut self, slots: &mut Slab<K, T>, at: u32) {
        self.fifo(slots[at].queue).unlink(slots, at);
    }

    /// Notes that a slot, still linked, was moved to `at`.
    pub(super) fn moved<K, T>(&mut self, slots: &mut Slab<K, T>, at: u32) {
        self.fifo(slots[at].queue).moved(slots, at);
    }

    /// Notes that the charge of a linked entry of `queue` changes.
    pub(super) fn reweigh(&mut self, queue: Queue, old_charge: u32, new_charge: u32) {
        let weight = &mut self.fifo(queue).weight;
        *weight = *weight - u64::from(old_charge) + u64::from(new_charge);
    }

    /// The entry that goes next, still linked; `None` if there is no entry. The caller evicts it:
    /// where room is the reason and the entry was never read, it is remembered already.
    pub(super) fn victim<K, T>(
        &mut self,
        slots: &mut Slab<K, T>,
        now: Millis,
    ) -> Option<(u32, Reason)> {
        for spared in 0.. {
            let queue = self.crowded();
            let at = self.fifo(queue).oldest;
            if at == NIL {
                return None;
            }
            let slot = &slots[at];
            if slot.is_dead(now) {
                return Some((at, Reason::Dead));
            }
            let earned = match queue {
                Queue::Small => slot.mark() >= PROMOTE_MARK,
                Queue::Main => slot.mark() > 0,
            };
            if !earned || spared == SPARED_MAX {
                if queue == Queue::Small {
                    self.ghost.remember(slot.hash, slots.len());
                }
                return Some((at, Reason::Room));
            }
            self.spare(slots, at);
        }
        None
    }

    /// The queue to take from: the small one while it has its share, or when it is the only one.
    fn crowded(&self) -> Queue {
        if self.small.weight >= self.small_share || self.main.oldest == NIL {
            Queue::Small
        } else {
            Queue::Main
        }
    }

    /// Gives the entry at `at` a round in the main queue: its first with no marks, a further one
    /// for one of its marks.
    fn spare<K, T>(&mut self, slots: &mut Slab<K, T>, at: u32) {
        self.unlink(slots, at);
        let slot = &mut slots[at];
        let mark = match slot.queue {
            Queue::Small => 0,
            Queue::Main => slot.mark() - 1,
        };
        slot.set_mark(mark);
        slot.queue = Queue::Main;
        self.link(slots, at);
    }

    fn fifo(&mut self, queue: Queue) -> &mut Fifo {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }
}

/// The ends of a doubly linked queue. Links rather than a ring, because entries also leave from
/// the middle (removed, expired), and a ring would keep their places until they reach its end.
#[derive(Debug)]
struct Fifo {
    newest: u32,
    oldest: u32,
    /// The charges of its entries together.
    weight: u64,
}

impl Fifo {
    const EMPTY: Self = Self {
        newest: NIL,
        oldest: NIL,
        weight: 0,
    };

    fn push<K, T>(&mut self, slots: &mut Slab<K, T>, at: u32) {
        let second = std::mem::replace(&mut self.newest, at);
        let slot = &mut slots[at];
        slot.newer = NIL;
        slot.older = second;
        self.weight += u64::from(slot.charge);
        match second {
            NIL => self.oldest = at,
            second => slots[second].newer = at,
        }
    }

    fn unlink<K, T>(&mut self, slots: &mut Slab<K, T>, at: u32) {
        let slot = &slots[at];
        let (newer, older) = (slot.newer, slot.older);
        self.weight -= u64::from(slot.charge);
        match newer {
            NIL => self.newest = older,
            newer => slots[newer].older = older,
        }
        match older {
            NIL => self.oldest = newer,
            older => slots[older].newer = newer,
        }
    }

    fn moved<K, T>(&mut self, slots: &mut Slab<K, T>, at: u32) {
        let (newer, older) = (slots[at].newer, slots[at].older);
        match newer {
            NIL => self.newest = at,
            newer => slots[newer].older = at,
        }
        match older {
            NIL => self.oldest = at,
            older => slots[older].newer = at,
        }
    }
}

#[cfg(test)]
impl S3Fifo {
    /// Walks both queues and compares what they say with the slots; returns the entries seen.
    pub(super) fn check<K, T>(&self, slots: &Slab<K, T>) -> u32 {
        self.small.check(slots, Queue::Small) + self.main.check(slots, Queue::Main)
    }
}

#[cfg(test)]
impl Fifo {
    fn check<K, T>(&self, slots: &Slab<K, T>, queue: Queue) -> u32 {
        let (mut at, mut newer, mut weight, mut seen) = (self.newest, NIL, 0, 0);
        while at != NIL {
            let slot = &slots[at];
            assert_eq!(slot.newer, newer, "links agree in both directions");
            assert_eq!(slot.queue, queue, "an entry stands in the queue it names");
            weight += u64::from(slot.charge);
            seen += 1;
            newer = at;
            at = slot.older;
        }
        assert_eq!(self.oldest, newer, "the oldest entry ends the queue");
        assert_eq!(self.weight, weight, "a queue weighs what its entries weigh");
        seen
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use proptest::prelude::*;

    use super::*;
    use crate::memory::shard::{Inserted, Leavings, Shard};
    use crate::memory::slab::Slot;

    /// A shard bounded in entries, as the policy sees it: keys without values or deadlines.
    struct Cache(Shard<u64, ()>);

    impl Cache {
        fn new(quota: u64) -> Self {
            Self(Shard::new(quota, 1))
        }

        fn get(&self, key: u64) -> bool {
            self.0.get(hash(key), &key, 0).is_some()
        }

        fn insert(&mut self, key: u64) {
            let slot = Slot::new(key, (), hash(key), 1, Millis::MAX);
            let inserted = self.0.insert(slot, 0, |_| true, &mut Leavings::new());
            assert_eq!(inserted, Inserted::Stored);
        }

        fn remove(&mut self, key: u64) {
            self.0.remove(hash(key), &key);
        }

        fn slot(&self, key: u64) -> Option<&Slot<u64, ()>> {
            self.0.iter().find(|slot| slot.key == key)
        }

        fn queue(&self, key: u64) -> Option<Queue> {
            self.slot(key).map(|slot| slot.queue)
        }

        fn keys(&self) -> Vec<u64> {
            let mut keys: Vec<_> = self.0.iter().map(|slot| slot.key).collect();
            keys.sort_unstable();
            keys
        }
    }

    fn hash(key: u64) -> u32 {
        ((key + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 29) as u32
    }

    /// The paper's algorithm with queues that one can read, and the same memory of ghosts.
    struct Reference {
        quota: usize,
        small: VecDeque<u64>,
        main: VecDeque<u64>,
        marks: HashMap<u64, u8>,
        ghost: Ghost,
    }

    impl Reference {
        fn new(quota: u64) -> Self {
            Self {
                quota: quota as usize,
                small: VecDeque::new(),
                main: VecDeque::new(),
                marks: HashMap::new(),
                ghost: Ghost::default(),
            }
        }

        fn get(&mut self, key: u64) -> bool {
            let mark = self.marks.get_mut(&key);
            mark.map(|mark| *mark = (*mark + 1).min(3)).is_some()
        }

        fn insert(&mut self, key: u64) {
            if self.marks.contains_key(&key) {
                return;
            }
            let remembered = self.ghost.take(hash(key));
            if self.marks.len() == self.quota {
                self.evict();
            }
            self.marks.insert(key, 0);
            match remembered {
                true => self.main.push_front(key),
                false => self.small.push_front(key),
            }
        }

        fn evict(&mut self) {
            let share = (self.quota / 10).max(1);
            loop {
                if self.small.len() >= share || self.main.is_empty() {
                    let key = self.small.pop_back().unwrap();
                    if self.marks[&key] < PROMOTE_MARK {
                        self.ghost.remember(hash(key), self.marks.len() as u32);
                        self.marks.remove(&key);
                        return;
                    }
                    self.marks.insert(key, 0);
                    self.main.push_front(key);
                } else {
                    let key = self.main.pop_back().unwrap();
                    let Some(mark) = self.marks[&key].checked_sub(1) else {
                        self.marks.remove(&key);
                        return;
                    };
                    self.marks.insert(key, mark);
                    self.main.push_front(key);
                }
            }
        }

        fn remove(&mut self, key: u64) {
            self.small.retain(|&held| held != key);
            self.main.retain(|&held| held != key);
            self.marks.remove(&key);
        }

        fn keys(&self) -> Vec<u64> {
            let mut keys: Vec<_> = self.marks.keys().copied().collect();
            keys.sort_unstable();
            keys
        }
    }

    proptest! {
        /// Quotas are small enough that no search reaches the limit on sparing.
        #[test]
        fn it_holds_what_the_reference_holds(
            quota in 1u64..40,
            steps in prop::collection::vec((0u64..60, 0u8..12), 1..600),
        ) {
            let mut cache = Cache::new(quota);
            let mut reference = Reference::new(quota);
            for (key, step) in steps {
                match step {
                    0 => {
                        cache.remove(key);
                        reference.remove(key);
                    }
                    1..6 => {
                        cache.insert(key);
                        reference.insert(key);
                    }
                    _ => prop_assert_eq!(cache.get(key), reference.get(key)),
                }
                prop_assert_eq!(cache.keys(), reference.keys());
                cache.0.check();
            }
        }

        /// As many keys as one search spares at most; beyond them, one in so many may go.
        #[test]
        fn keys_seen_once_do_not_flush_keys_that_are_read(
            quota in 20..=u64::from(SPARED_MAX) * 2,
            scanned in 1u64..5000,
        ) {
            let mut cache = Cache::new(quota);
            let hot = 0..quota / 2;
            for key in hot.clone() {
                cache.insert(key);
                cache.get(key);
            }
            for key in 0..scanned {
                cache.insert(1_000_000 + key);
            }
            for key in hot {
                prop_assert!(cache.get(key), "{} was flushed", key);
            }
        }
    }

    #[test]
    fn a_key_that_comes_back_soon_enters_the_main_queue() {
        let mut cache = Cache::new(100);
        for key in 0..=100 {
            cache.insert(key);
        }
        assert!(!cache.get(0));
        cache.insert(0);
        assert_eq!(cache.queue(0), Some(Queue::Main));
        assert_eq!(cache.queue(100), Some(Queue::Small));
    }

    #[test]
    fn a_removed_key_is_not_remembered() {
        let mut cache = Cache::new(100);
        cache.insert(7);
        cache.remove(7);
        cache.insert(7);
        assert_eq!(cache.queue(7), Some(Queue::Small));
    }

    #[test]
    fn a_dead_entry_goes_whatever_its_marks_and_is_not_remembered() {
        let (mut slots, mut order) = (Slab::new(), S3Fifo::new(10));
        for key in 0..2 {
            let at = slots.push(Slot::new(key, (), hash(key), 1, 50));
            slots[at].touch();
            order.link(&mut slots, at);
        }
        assert_eq!(order.victim(&mut slots, 50), Some((0, Reason::Dead)));
        assert_eq!(order.entrance(hash(0)), Queue::Small);
    }

    #[test]
    fn a_search_spares_a_bounded_number() {
        let quota = 10_000;
        let mut cache = Cache::new(quota);
        for key in 0..quota {
            cache.insert(key);
            cache.get(key);
        }
        cache.insert(quota);
        assert_eq!(cache.0.len(), quota);
        let spared = cache.0.iter().filter(|slot| slot.queue == Queue::Main);
        assert_eq!(spared.count(), SPARED_MAX as usize);
    }
}
