//! The default policy: two queues, and three kinds of feedback.
//!
//! The queues are those of S3-FIFO (Yang, Zhang, Qiu, Yue and Vigfusson, "FIFO queues are all you
//! need for cache eviction", SOSP 2023). New entries enter a small queue. One that leaves it unread
//! is evicted and remembered as a ghost; one that was read moves to the main queue, which gives an
//! entry that was read another round. A hit changes a mark and no order, which is why hits need no
//! exclusive lock. An entry past its deadline is a victim whatever its marks.
//!
//! S3-FIFO alone scores nothing on loops larger than the cache, and its small queue is a tenth of
//! the cache whether that suits the traffic or not. So
//!
//! - **a key that comes back earns a place in the main queue by how soon it does.** It took so long
//!   between its two requests; if even the oldest entry of the main queue was read less long ago,
//!   evicting that for it gains nothing. This is the comparison of LIRS (Jiang and Zhang,
//!   SIGMETRICS 2002): reuse distance against recency. In a loop every entry is as good as any
//!   other, and those that are there stay.
//! - **the share of the small queue is steered by what either queue evicted too early**, as ARC does
//!   (Megiddo and Modha, FAST 2003): a key that comes back soon after the small queue let it go
//!   would have been a hit in a larger one, and the same is true for the main queue. Only keys that
//!   come back within some hundredths of the cache count, for they tell what the next slot is worth
//!   and not what all of them are. Without any such word the share drifts down slowly: entries that
//!   nobody comes back for need no long trial.
//! - **a cache that is not full needs no trial**: beyond the small queue's share, entries enter the
//!   main one until the first eviction.
//!
//! Time is counted in *ticks*: 64 of them pass while as much weight enters as the shard may hold.
//! A tick fits a byte; what is older than four fillings of the cache looks younger than it is, and
//! at worst one entry is judged by a wrong age.

use super::ghost::Ghost;
use super::queue::Queue;
use super::{Reason, Room};
use crate::clock::Millis;
use crate::memory::slot::{Entry, Meta, Stand, Standing};
use crate::memory::table::{Moves, Table};

/// The small queue begins with one part in so many of the bound, and keeps within these shares.
const SHARE: (u64, u64, u64) = (10, 100, 3);

/// Ticks that pass while the whole quota is filled once.
const TICKS: u64 = 64;

/// A key that comes back within so many ticks after the small queue evicted it would have been a hit
/// in a slightly larger one.
const SOON: u8 = 6;

/// Keys evicted from the small queue are remembered for so many residents in every four.
const SMALL_GHOSTS: usize = 5;

/// Keys evicted from the main queue: one for so many residents.
const MAIN_GHOSTS: usize = 16;

/// The share drifts down by one part in so many of the weight that enters.
const DRIFT: u64 = 200;

/// How many of the oldest entries of the main queue a key that comes back is compared with.
const COMPARED: usize = 2;

/// After sparing this many entries a search takes the next one it meets.
const SPARED_MAX: u32 = 128;

/// The order of the entries of one shard.
#[derive(Debug)]
pub(in crate::memory) struct Adaptive {
    small: Queue,
    main: Queue,
    small_ghosts: Ghost,
    main_ghosts: Ghost,
    quota: u64,
    /// From this weight on, victims are looked for in the small queue.
    share: u64,
    /// Weight that entered and has not made the share drift yet.
    undrifted: u64,
    tick: u8,
    /// Weight that entered since the last tick.
    unticked: u64,
}

impl Adaptive {
    /// An empty order for a shard that may hold `quota`.
    pub(super) fn new(quota: u64) -> Self {
        Self {
            small: Queue::EMPTY,
            main: Queue::EMPTY,
            small_ghosts: Ghost::default(),
            main_ghosts: Ghost::default(),
            quota,
            share: (quota / SHARE.0).max(1),
            undrifted: 0,
            tick: 0,
            unticked: 0,
        }
    }

    pub(super) fn resize(&mut self, quota: u64) {
        let share = u128::from(self.share) * u128::from(quota) / u128::from(self.quota.max(1));
        self.quota = quota;
        self.set_share(u64::try_from(share).unwrap_or(quota));
    }

    /// The time that a read is marked with.
    #[inline]
    pub(super) fn tick(&self) -> u8 {
        self.tick
    }

    /// Decides where a newcomer stands.
    #[inline]
    pub(super) fn enter<K, T>(
        &mut self,
        slots: &mut Table<K, T>,
        entry: &Entry<K, T>,
        room: Room,
    ) -> Standing {
        let (hash, charge) = (entry.hash, u64::from(entry.charge()));
        self.pass(charge);
        let stand = match self.small_ghosts.take(hash) {
            Some(went) => {
                let away = self.tick.wrapping_sub(went);
                if away < SOON {
                    self.set_share(self.share.saturating_add(charge));
                }
                self.earned(slots, away)
            }
            None => {
                if self.main_ghosts.take(hash).is_some() {
                    self.set_share(self.share.saturating_sub(charge));
                }
                match room {
                    Room::Free if self.small.weight() >= self.share => Stand::Main,
                    _ => Stand::Small,
                }
            }
        };
        if room == Room::Full {
            self.drift(charge);
        }
        Standing::entered(stand, self.tick)
    }

    /// Where a key stands that comes back `away` ticks after the small queue let it go, having been
    /// there for about as long as the queue is.
    fn earned<K, T>(&mut self, slots: &mut Table<K, T>, away: u8) -> Stand {
        let stay = self.share / (self.quota / TICKS).max(1);
        let distance = away.saturating_add(u8::try_from(stay).unwrap_or(u8::MAX));
        for _ in 0..COMPARED {
            let Some(at) = self.main.oldest() else {
                return Stand::Main;
            };
            if self.tick.wrapping_sub(slots[at].touched_at()) >= distance {
                return Stand::Main;
            }
            // Younger than it stands. The next comparison is with another one.
            self.main.renew(slots, at);
        }
        Stand::Small
    }

    #[inline]
    fn pass(&mut self, charge: u64) {
        let each = (self.quota / TICKS).max(1);
        self.unticked += charge;
        // Few that enter end a tick, and a division is slow.
        if self.unticked >= each {
            self.tick = self.tick.wrapping_add((self.unticked / each) as u8);
            self.unticked %= each;
        }
    }

    #[inline]
    fn drift(&mut self, charge: u64) {
        self.undrifted += charge;
        if self.undrifted >= DRIFT {
            self.set_share(self.share.saturating_sub(self.undrifted / DRIFT));
            self.undrifted %= DRIFT;
        }
    }

    /// Makes the share this, within its bounds.
    fn set_share(&mut self, share: u64) {
        let (_, least, most) = SHARE;
        let least = (self.quota / least).max(1);
        self.share = share.clamp(least, (self.quota / most).max(least));
    }

    #[inline]
    pub(super) fn insert<K, T>(
        &mut self,
        slots: &mut Table<K, T>,
        entry: Entry<K, T>,
        standing: Standing,
    ) -> u32 {
        let queue = self.queue(standing.stand());
        queue.insert(slots, entry, standing)
    }

    /// Takes the entry that these are of out of here, which is no longer in the table.
    #[inline]
    pub(super) fn remove<K, T>(&mut self, slots: &mut Table<K, T>, gone: &Meta, was: Standing) {
        self.queue(was.stand()).remove(slots, gone);
    }

    pub(super) fn follow(&mut self, moves: &Moves) {
        self.small.follow(moves);
        self.main.follow(moves);
    }

    pub(super) fn reweigh(&mut self, standing: Standing, old_charge: u32, new_charge: u32) {
        let queue = self.queue(standing.stand());
        queue.reweigh(old_charge, new_charge);
    }

    /// The entry that goes next, still linked; `None` if there is no entry. Where room is the
    /// reason, it is remembered already.
    pub(super) fn victim<K, T>(
        &mut self,
        slots: &mut Table<K, T>,
        now: Millis,
    ) -> Option<(u32, Reason)> {
        for spared in 0.. {
            let (from, at) = self.next()?;
            let slot = &slots[at];
            if slot.is_dead(now) {
                return Some((at, Reason::Dead));
            }
            let goes = match from {
                Stand::Small => slot.mark() == 0 && !self.main_takes(slots.meta(at).charge()),
                Stand::Main => slot.mark() == 0,
            };
            if goes || spared == SPARED_MAX {
                self.remember(from, slots.meta(at).hash, slots.len() as usize);
                return Some((at, Reason::Room));
            }
            self.spare(slots, at);
        }
        None
    }

    /// The entry to look at: of the small queue while that has its share, or is the only one.
    #[inline]
    fn next(&self) -> Option<(Stand, u32)> {
        let small = || Some((Stand::Small, self.small.oldest()?));
        let main = || Some((Stand::Main, self.main.oldest()?));
        if self.small.weight() >= self.share {
            small().or_else(main)
        } else {
            main().or_else(small)
        }
    }

    /// Whether the main queue may grow by an entry that did not earn it: the share has shrunk, and
    /// what the small queue no longer has is there.
    #[inline]
    fn main_takes(&self, charge: u32) -> bool {
        let left = self.quota.saturating_sub(self.share);
        self.small.weight() > self.share && self.main.weight() + u64::from(charge) < left
    }

    #[inline]
    fn remember(&mut self, from: Stand, hash: u32, residents: usize) {
        match from {
            Stand::Small => {
                let room_for = residents.div_ceil(4) * SMALL_GHOSTS;
                self.small_ghosts.remember(hash, self.tick, room_for);
            }
            Stand::Main => {
                let room_for = residents.div_ceil(MAIN_GHOSTS);
                self.main_ghosts.remember(hash, self.tick, room_for);
            }
        }
    }

    /// Gives the entry at `at` a round in the main queue: its first with no marks, a further one
    /// for one of its marks.
    fn spare<K, T>(&mut self, slots: &mut Table<K, T>, at: u32) {
        let stand = slots[at].stand();
        self.queue(stand).unlink(slots, at);
        let slot = &mut slots[at];
        slot.spare(match stand {
            Stand::Small => 0,
            Stand::Main => slot.mark() - 1,
        });
        self.main.link(slots, at);
    }

    #[inline]
    fn queue(&mut self, stand: Stand) -> &mut Queue {
        match stand {
            Stand::Small => &mut self.small,
            Stand::Main => &mut self.main,
        }
    }
}

#[cfg(test)]
impl Adaptive {
    /// Bytes that it has from the allocator.
    pub(super) fn heap(&self) -> usize {
        self.small_ghosts.heap() + self.main_ghosts.heap()
    }

    /// Walks both queues and compares what they say with the slots; returns the entries seen.
    pub(super) fn check<K, T>(&self, slots: &Table<K, T>) -> u32 {
        let seen =
            [(&self.small, Stand::Small), (&self.main, Stand::Main)].map(|(queue, stand)| {
                let held = queue.check(slots);
                let stands = |at: &u32| slots[*at].stand() == stand;
                assert!(held.iter().all(stands), "an entry stands where it says");
                held.len() as u32
            });
        seen.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use proptest::prelude::*;

    use super::*;
    use crate::memory::shard::{Inserted, Leavings, Shard};
    use crate::memory::slot::{Read, Slot};
    use crate::options::Policy;

    /// A shard bounded in entries, as the policy sees it: keys without values or deadlines.
    struct Cache(Shard<u64, ()>);

    impl Cache {
        fn new(quota: u64) -> Self {
            Self(Shard::new(Policy::Adaptive, quota, 1))
        }

        fn get(&self, key: u64) -> bool {
            self.0.get(hash(key), &key, 0).is_some()
        }

        fn insert(&mut self, key: u64) {
            let entry = Entry::new(key, (), hash(key), 1, Millis::MAX);
            let inserted = self.0.insert(entry, 0, |_| true, &mut Leavings::new());
            assert_eq!(inserted, Inserted::Stored);
        }

        /// A read, and an insert where it is a miss; how many of `keys` were hits.
        fn ask(&mut self, keys: impl IntoIterator<Item = u64>) -> u64 {
            let mut hits = 0;
            for key in keys {
                match self.get(key) {
                    true => hits += 1,
                    false => self.insert(key),
                }
            }
            hits
        }

        fn slot(&self, key: u64) -> Option<&Slot<u64, ()>> {
            self.0.iter().find(|slot| slot.key == key)
        }

        fn stand(&self, key: u64) -> Option<Stand> {
            self.slot(key).map(Slot::stand)
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

    /// The same rules over queues that one can read, entries of weight one, and the same ghosts.
    struct Reference {
        quota: usize,
        share: usize,
        entered: usize,
        ticks: u8,
        since_tick: usize,
        small: VecDeque<u64>,
        main: VecDeque<u64>,
        /// Marks, and the tick of the last read.
        known: HashMap<u64, (u8, u8)>,
        small_ghosts: Ghost,
        main_ghosts: Ghost,
    }

    impl Reference {
        fn new(quota: u64) -> Self {
            Self {
                quota: quota as usize,
                share: (quota as usize / 10).max(1),
                entered: 0,
                ticks: 0,
                since_tick: 0,
                small: VecDeque::new(),
                main: VecDeque::new(),
                known: HashMap::new(),
                small_ghosts: Ghost::default(),
                main_ghosts: Ghost::default(),
            }
        }

        fn set_share(&mut self, share: usize) {
            let least = (self.quota / 100).max(1);
            self.share = share.clamp(least, (self.quota / 3).max(least));
        }

        fn get(&mut self, key: u64) -> bool {
            let ticks = self.ticks;
            let known = self.known.get_mut(&key);
            known
                .map(|known| *known = ((known.0 + 1).min(3), ticks))
                .is_some()
        }

        fn insert(&mut self, key: u64) {
            if self.known.contains_key(&key) {
                return;
            }
            let tick_length = (self.quota / 64).max(1);
            self.since_tick += 1;
            if self.since_tick == tick_length {
                (self.since_tick, self.ticks) = (0, self.ticks.wrapping_add(1));
            }
            let is_full = self.known.len() == self.quota;
            let to_main;
            if let Some(went) = self.small_ghosts.take(hash(key)) {
                let away = self.ticks.wrapping_sub(went);
                if away < 6 {
                    self.set_share(self.share + 1);
                }
                to_main = self.earns(away as usize + self.share / tick_length);
            } else {
                if self.main_ghosts.take(hash(key)).is_some() {
                    self.set_share(self.share.saturating_sub(1));
                }
                to_main = !is_full && self.small.len() >= self.share;
            }
            if is_full {
                self.entered += 1;
                if self.entered == 200 {
                    self.entered = 0;
                    self.set_share(self.share.saturating_sub(1));
                }
            }
            if is_full {
                self.evict();
            }
            self.known.insert(key, (0, self.ticks));
            match to_main {
                true => self.main.push_front(key),
                false => self.small.push_front(key),
            }
        }

        fn earns(&mut self, distance: usize) -> bool {
            for _ in 0..2 {
                let Some(&oldest) = self.main.back() else {
                    return true;
                };
                let age = self.ticks.wrapping_sub(self.known[&oldest].1);
                if age as usize >= distance.min(255) {
                    return true;
                }
                self.main.rotate_right(1);
            }
            false
        }

        fn evict(&mut self) {
            loop {
                let from_small = match self.small.len() >= self.share {
                    true => !self.small.is_empty(),
                    false => self.main.is_empty(),
                };
                let queue = match from_small {
                    true => &mut self.small,
                    false => &mut self.main,
                };
                let key = queue.pop_back().unwrap();
                let (mark, tick) = self.known[&key];
                let main_takes = from_small
                    && self.small.len() + 1 > self.share
                    && self.main.len() + 1 < self.quota - self.share;
                if mark > 0 || main_takes {
                    let mark = if from_small { 0 } else { mark - 1 };
                    self.known.insert(key, (mark, tick));
                    self.main.push_front(key);
                    continue;
                }
                let residents = self.known.len();
                match from_small {
                    true => {
                        let room_for = residents.div_ceil(4) * 5;
                        self.small_ghosts.remember(hash(key), self.ticks, room_for);
                    }
                    false => {
                        let room_for = residents.div_ceil(16);
                        self.main_ghosts.remember(hash(key), self.ticks, room_for);
                    }
                }
                self.known.remove(&key);
                return;
            }
        }

        fn remove(&mut self, key: u64) {
            self.small.retain(|&held| held != key);
            self.main.retain(|&held| held != key);
            self.known.remove(&key);
        }

        fn keys(&self) -> Vec<u64> {
            let mut keys: Vec<_> = self.known.keys().copied().collect();
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
                        cache.0.remove(hash(key), &key);
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
    fn a_key_that_comes_back_before_anything_in_main_was_read_enters_it() {
        let mut cache = Cache::new(100);
        cache.ask(0..120);
        // In the small queue stood the first ten and the last ones.
        assert!(!cache.get(0));
        cache.insert(0);
        assert_eq!(cache.stand(0), Some(Stand::Main));
        assert_eq!(cache.stand(119), Some(Stand::Small));
    }

    #[test]
    fn a_key_that_comes_back_later_than_anything_in_main_was_read_does_not() {
        let mut cache = Cache::new(100);
        cache.ask(0..120);
        let main: Vec<_> = cache
            .keys()
            .into_iter()
            .filter(|key| cache.stand(*key) == Some(Stand::Main))
            .collect();
        assert_eq!(cache.ask(main.iter().copied()), main.len() as u64);
        cache.insert(0);
        assert_eq!(cache.stand(0), Some(Stand::Small));
    }

    #[test]
    fn a_removed_key_is_not_remembered() {
        let mut cache = Cache::new(100);
        cache.ask(0..100);
        cache.0.remove(hash(99), &99);
        cache.insert(7_000);
        cache.insert(99);
        assert_eq!(cache.stand(99), Some(Stand::Small));
    }

    #[test]
    fn a_loop_larger_than_the_cache_keeps_most_of_what_it_could() {
        let (quota, length, rounds) = (400, 1_000, 60);
        let mut cache = Cache::new(quota);
        cache.ask((0..length).cycle().take(length as usize * rounds));
        let hits = cache.ask(0..length);
        // All that fits but the small queue at its least, with a little slack.
        assert!(hits > quota * 95 / 100, "{hits} hits in a round");
    }

    #[test]
    fn keys_that_come_back_soon_widen_the_small_queue() {
        let quota = 1_000;
        let mut cache = Cache::new(quota);
        cache.ask(0..quota);
        // Each key is asked for twice, so far apart that a tenth of the cache does not bridge it.
        let apart = 140;
        let twice = |from: u64| {
            (from..from + 20_000).flat_map(move |key| [10_000 + key + apart, 10_000 + key])
        };
        let hits = cache.ask(twice(0));
        assert!(hits > 15_000, "{hits} of 20,000 second requests");
    }

    #[test]
    fn a_dead_entry_goes_whatever_its_marks_and_is_not_remembered() {
        let (mut slots, mut order) = (Table::new(10), Adaptive::new(10));
        let entries = [0, 1].map(|key| {
            let entry = Entry::new(key, (), hash(key), 1, 50);
            let at = order.insert(&mut slots, entry, Standing::NEW);
            slots[at].read(0, Read::at(0));
            at
        });
        assert_eq!(
            order.victim(&mut slots, 50),
            Some((entries[0], Reason::Dead))
        );
        assert_eq!(order.small_ghosts.take(hash(0)), None);
    }

    #[test]
    fn a_search_spares_a_bounded_number() {
        let quota = 10_000;
        let mut cache = Cache::new(quota);
        cache.ask(0..quota);
        assert_eq!(cache.ask(0..quota), quota);
        let newest = |cache: &Cache| cache.0.iter().filter(|slot| slot.mark() == 0).count();
        let before = newest(&cache);
        cache.insert(quota);
        assert_eq!(cache.0.len(), quota);
        assert!(newest(&cache) <= before + SPARED_MAX as usize + 1);
    }

    #[test]
    fn the_share_follows_a_new_quota() {
        let mut order = Adaptive::new(1_000);
        order.resize(10);
        assert_eq!(order.share, 1);
        order.resize(u64::MAX);
        assert!(order.share <= u64::MAX / 3);
        order.resize(0);
        assert_eq!(order.share, 1);
    }
}
