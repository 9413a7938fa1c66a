//! The policies that everybody knows, exactly as everybody knows them.
//!
//! LRU and LFU change their order with every read, and so pay the exclusive lock of a shard for it.
//! What is exact is a shard: a large table has several, and each evicts its own least recently or
//! least frequently used entry.

use super::Reason;
use super::queue::Queue;
use crate::clock::Millis;
use crate::memory::slot::{Entry, Meta, Standing};
use crate::memory::table::{Moves, Table};
use crate::options::Policy;

/// The order of the entries of one shard.
#[derive(Debug)]
pub(in crate::memory) struct Classic {
    policy: Policy,
    /// By the number of reads under LFU; a single one otherwise.
    queues: Vec<Queue>,
    /// No queue before this one has entries.
    lowest: usize,
}

impl Classic {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            policy,
            queues: vec![Queue::EMPTY],
            lowest: 0,
        }
    }

    /// Notes a read of the entry at `at`. Under LFU reads are counted up to 255.
    pub(super) fn reorder<K, T>(&mut self, slots: &mut Table<K, T>, at: u32) {
        if self.policy == Policy::Lfu {
            self.queue(slots[at].reads()).unlink(slots, at);
            slots[at].count_read();
            self.queue(slots[at].reads()).link(slots, at);
        } else {
            self.queues[0].renew(slots, at);
        }
    }

    pub(super) fn insert<K, T>(
        &mut self,
        slots: &mut Table<K, T>,
        entry: Entry<K, T>,
        standing: Standing,
    ) -> u32 {
        let queue = self.queue(standing.reads());
        queue.insert(slots, entry, standing)
    }

    /// Takes the entry that these are of out of here, which is no longer in the table.
    pub(super) fn remove<K, T>(&mut self, slots: &mut Table<K, T>, gone: &Meta, was: Standing) {
        self.queue(was.reads()).remove(slots, gone);
    }

    pub(super) fn follow(&mut self, moves: &Moves) {
        self.queues.iter_mut().for_each(|queue| queue.follow(moves));
    }

    pub(super) fn reweigh(&mut self, standing: Standing, old_charge: u32, new_charge: u32) {
        let queue = self.queue(standing.reads());
        queue.reweigh(old_charge, new_charge);
    }

    /// The entry that goes next, still linked. Without eviction none goes for a newcomer, and the
    /// oldest where the shard is made smaller.
    pub(super) fn victim<K, T>(
        &mut self,
        slots: &mut Table<K, T>,
        now: Millis,
    ) -> Option<(u32, Reason)> {
        let at = match self.policy {
            Policy::Random => slots.pick(|bound| fastrand::u32(..bound))?,
            _ => self.oldest()?,
        };
        let reason = if slots[at].is_dead(now) {
            Reason::Dead
        } else {
            Reason::Room
        };
        Some((at, reason))
    }

    /// The oldest entry of the lowest queue that has any: at most 256 are looked at.
    fn oldest(&mut self) -> Option<u32> {
        let lowest = (self.lowest..self.queues.len())
            .find(|reads| self.queues[*reads].oldest().is_some())?;
        self.lowest = lowest;
        self.queues[lowest].oldest()
    }

    /// The queue of what was read so often, about to change.
    fn queue(&mut self, reads: u8) -> &mut Queue {
        let reads = usize::from(reads);
        if self.queues.len() <= reads {
            self.queues.resize_with(reads + 1, || Queue::EMPTY);
        }
        self.lowest = self.lowest.min(reads);
        &mut self.queues[reads]
    }
}

#[cfg(test)]
impl Classic {
    /// Bytes that it has from the allocator.
    pub(super) fn heap(&self) -> usize {
        self.queues.capacity() * size_of::<Queue>()
    }

    pub(super) fn check<K, T>(&self, slots: &Table<K, T>) -> u32 {
        let mut seen = 0;
        for (reads, queue) in self.queues.iter().enumerate() {
            let held = queue.check(slots);
            assert!(held.is_empty() || reads >= self.lowest);
            let counted = |at: &u32| usize::from(slots[*at].reads()) == reads;
            assert!(
                held.iter().all(counted),
                "a queue has what was read so often"
            );
            seen += held.len() as u32;
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::Order;
    use super::*;
    use crate::memory::shard::{Inserted, Leavings, Shard};

    /// What is known of each key: how often it was read, when last, and when it came.
    type Known = HashMap<u64, (u8, usize, usize)>;

    /// The key that a policy would let go, found by looking at all of them.
    fn victim(policy: Policy, known: &Known) -> u64 {
        let order = |(_, (reads, used, came)): &(&u64, &(u8, usize, usize))| match policy {
            Policy::Lru => (0, *used),
            Policy::Lfu => (*reads, *used),
            _ => (0, *came),
        };
        *known.iter().min_by_key(order).unwrap().0
    }

    fn hash(key: u64) -> u32 {
        ((key + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 29) as u32
    }

    fn insert(shard: &mut Shard<u64, ()>, key: u64) -> Inserted {
        let entry = Entry::new(key, (), hash(key), 1, Millis::MAX);
        shard.insert(entry, 0, |_| true, &mut Leavings::new())
    }

    fn keys(shard: &Shard<u64, ()>) -> Vec<u64> {
        let mut keys: Vec<_> = shard.iter().map(|slot| slot.key).collect();
        keys.sort_unstable();
        keys
    }

    proptest! {
        #[test]
        fn each_holds_what_its_reference_holds(
            policy in prop::sample::select(vec![Policy::Lru, Policy::Lfu, Policy::Fifo]),
            quota in 1u64..40,
            steps in prop::collection::vec((0u64..60, 0u8..12), 1..600),
        ) {
            let mut shard = Shard::new(policy, quota, 1);
            let mut known = Known::new();
            for (at, (key, step)) in steps.into_iter().enumerate() {
                match step {
                    0 => {
                        shard.remove(hash(key), &key);
                        known.remove(&key);
                    }
                    1..6 if !known.contains_key(&key) => {
                        if known.len() as u64 == quota {
                            known.remove(&victim(policy, &known));
                        }
                        known.insert(key, (0, at, at));
                        prop_assert_eq!(insert(&mut shard, key), Inserted::Stored);
                    }
                    _ => {
                        if policy.reorders_on_read() {
                            shard.reorder(hash(key), &key, 0);
                        }
                        let found = shard.get(hash(key), &key, 0).is_some();
                        let read = known.get_mut(&key);
                        prop_assert_eq!(found, read.is_some());
                        if let Some((reads, used, _)) = read {
                            (*reads, *used) = (reads.saturating_add(1), at);
                        }
                    }
                }
                let mut expected: Vec<_> = known.keys().copied().collect();
                expected.sort_unstable();
                prop_assert_eq!(keys(&shard), expected);
                shard.check();
            }
        }
    }

    #[test]
    fn without_eviction_what_does_not_fit_is_refused_until_something_goes() {
        let mut shard = Shard::new(Policy::NoEviction, 3, 1);
        for key in 0..3 {
            assert_eq!(insert(&mut shard, key), Inserted::Stored);
        }
        assert_eq!(insert(&mut shard, 3), Inserted::Full);
        assert_eq!(keys(&shard), [0, 1, 2]);
        assert_eq!(
            insert(&mut shard, 2),
            Inserted::Stored,
            "it takes its own place"
        );
        shard.remove(hash(1), &1);
        assert_eq!(insert(&mut shard, 3), Inserted::Stored);
        assert_eq!(shard.counters().refused, 1);
        assert_eq!(shard.counters().evicted, 0);
        shard.check();
    }

    #[test]
    fn without_eviction_what_has_expired_makes_room() {
        let mut shard = Shard::new(Policy::NoEviction, 2, 1);
        for key in 0..2 {
            let slot = Entry::new(key, (), hash(key), 1, 10);
            shard.insert(slot, 0, |_| true, &mut Leavings::new());
        }
        let slot = Entry::new(7, (), hash(7), 1, Millis::MAX);
        let inserted = shard.insert(slot, 10, |_| true, &mut Leavings::new());
        assert_eq!(inserted, Inserted::Stored);
        assert_eq!(keys(&shard), [7]);
        assert_eq!(shard.counters().expired, 2);
    }

    /// Each of a hundred residents goes about as often as any other: the most and the least frequent
    /// of 20,000 victims are within five standard deviations of the mean.
    #[test]
    fn at_random_every_entry_goes_as_often_as_any_other() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        fastrand::seed(seed);
        let (residents, rounds) = (100, 20_000);
        // Enough parts that they differ in size.
        let mut slots = Table::new(4 * 1408);
        let mut order = Order::new(Policy::Random, residents);
        for key in 0..residents {
            let entry = Entry::new(key, (), hash(key), 1, Millis::MAX);
            let at = order.insert(&mut slots, entry, Standing::NEW);
            if let Some(moves) = slots.grow(at) {
                order.follow(&mut slots, &moves);
            }
        }
        let mut gone = vec![0_i64; residents as usize];
        for _ in 0..rounds {
            let (at, reason) = order.victim(&mut slots, 0).unwrap();
            assert_eq!(reason, Reason::Room);
            gone[slots[at].key as usize] += 1;
        }
        let mean = rounds / residents as i64;
        let bound = 5 * (mean as f64).sqrt() as i64;
        assert!(
            gone.iter().all(|count| (count - mean).abs() <= bound),
            "{gone:?}"
        );
    }
}
