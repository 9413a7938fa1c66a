//! The table under every schedule that shuttle thinks of: run with `RUSTFLAGS="--cfg shuttle"`.
//!
//! The tables are tiny, and batches are of one entry each, so that a lock is let go of as often as
//! can be. shuttle orders every atomic as if it were sequentially consistent: what relaxed marks
//! may do beyond that is not looked at here, and nothing but the choice of victims depends on it.

use std::sync::{Arc, Mutex, PoisonError};

use shuttle::sync::atomic::{AtomicU64, Ordering::SeqCst};
use shuttle::thread;

use super::*;

const SCHEDULES: usize = 1_000;

fn under_many_schedules(run: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(run, SCHEDULES);
    shuttle::check_pct(run, SCHEDULES, 3);
}

/// A table that notes what was stored in it and what its listener was told of. Every value is stored
/// once.
struct Watched {
    table: Memory<u64, u64>,
    stored: Mutex<Vec<u64>>,
    told: Arc<Mutex<Vec<u64>>>,
    /// No bound was ever larger.
    most: u64,
}

fn note(list: &Mutex<Vec<u64>>, value: u64) {
    list.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(value);
}

/// Even keys fall to one shard and odd ones to the other; and keys that differ in the next bits, to
/// other parts of it.
fn hash(key: u64) -> u64 {
    key << 32 | key >> 1
}

impl Watched {
    fn new(most: u64, policy: Policy, shards: usize) -> Arc<Self> {
        let told = Arc::<Mutex<Vec<u64>>>::default();
        let listening = Arc::clone(&told);
        let listener: Listener<u64, u64> = Box::new(move |_, value, _| note(&listening, *value));
        let table = Memory::with_shards(Bound::Entries(most), policy, shards);
        Arc::new(Self {
            table: table.with_listener(Some(listener)),
            stored: Mutex::default(),
            told,
            most,
        })
    }

    fn insert(&self, key: u64, value: u64, dies_at: Millis, now: Millis) {
        let place = Placement { weight: 0, dies_at };
        let inserted = self
            .table
            .insert(hash(key), key, value, place, now, |_| true);
        if inserted == Inserted::Stored {
            note(&self.stored, value);
        }
        self.check();
    }

    /// Removes a key whose value, if it was not evicted, is this one.
    fn remove(&self, key: u64, value: u64) {
        let removed = self.table.remove(hash(key), &key);
        assert!(removed.is_none_or(|removed| removed == value), "its own");
        self.check();
    }

    fn get(&self, key: u64) -> Option<u64> {
        self.table.get(hash(key), &key, 0, |value| *value)
    }

    fn check(&self) {
        for Locked(shard) in &self.table.shards {
            sync::read(shard).check();
        }
        assert!(self.table.weight() <= self.most, "the bound is kept");
    }

    fn held(&self) -> Vec<(u64, u64)> {
        let mut held = Vec::new();
        self.table.for_each(|&key, &value| held.push((key, value)));
        held
    }

    /// When nobody is at work any more: whatever was stored is there or was told of, once.
    fn check_at_rest(&self) {
        self.check();
        let mut gone = self.told.lock().unwrap().clone();
        gone.extend(self.held().iter().map(|(_, value)| value));
        gone.sort_unstable();
        let mut stored = self.stored.lock().unwrap().clone();
        stored.sort_unstable();
        assert_eq!(gone, stored, "told of once, and of nothing else");
    }
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Everything at once on four places in two shards.
fn all_at_once(policy: Policy) {
    let watched = Watched::new(4, policy, 2);
    let work: [fn(&Watched); 3] = [
        |watched| {
            for key in 0..5 {
                watched.insert(key, 100 + key, 10 * key, 0);
                watched.get(key);
            }
        },
        |watched| {
            watched.insert(1, 201, Millis::MAX, 0);
            watched.table.sweep(20, 3);
            watched.table.remove(hash(2), &2);
            watched.insert(2, 202, 5, 20);
            watched.insert(6, 206, Millis::MAX, 20);
            watched.check();
        },
        |watched| {
            watched.table.resize(2, 0);
            watched.check();
            assert!(watched.table.weight() <= 2, "the new bound is kept");
            drop(watched.table.clear());
            watched.table.resize(4, 0);
            watched.check();
            watched.held();
        },
    ];
    join(work.map(|work| {
        let watched = Arc::clone(&watched);
        thread::spawn(move || work(&watched))
    }));
    watched.check_at_rest();
}

#[test]
fn nothing_is_lost_or_told_twice_under_any_schedule() {
    under_many_schedules(|| all_at_once(Policy::Adaptive));
}

#[test]
fn nothing_is_lost_or_told_twice_where_reads_reorder_under_any_schedule() {
    under_many_schedules(|| all_at_once(Policy::Lru));
    under_many_schedules(|| all_at_once(Policy::Lfu));
}

#[test]
fn nothing_is_lost_or_told_twice_without_eviction_under_any_schedule() {
    under_many_schedules(|| all_at_once(Policy::NoEviction));
}

/// What one thread removed, no other is given once it knows; while neighbours come and go, and take
/// over its slot.
fn removed() {
    let watched = Watched::new(2, Policy::Adaptive, 1);
    let gone = Arc::new(AtomicU64::new(0));
    let writer = {
        let (watched, gone) = (Arc::clone(&watched), Arc::clone(&gone));
        thread::spawn(move || {
            for value in 1..=3 {
                watched.insert(7, value, Millis::MAX, 0);
                watched.remove(7, value);
                gone.store(value, SeqCst);
            }
        })
    };
    let neighbour = {
        let watched = Arc::clone(&watched);
        thread::spawn(move || {
            for key in 0..3 {
                watched.insert(key, 100 + key, Millis::MAX, 0);
                assert!(watched.get(key).is_none_or(|value| value == 100 + key));
                watched.remove(key, 100 + key);
            }
        })
    };
    let reader = {
        let watched = Arc::clone(&watched);
        thread::spawn(move || {
            for _ in 0..4 {
                let gone = gone.load(SeqCst);
                let value = watched.get(7);
                assert!(value.is_none_or(|value| value > gone), "it was removed");
            }
        })
    };
    join([writer, neighbour, reader]);
    watched.check_at_rest();
}

#[test]
fn a_removed_value_is_not_found_again_under_any_schedule() {
    under_many_schedules(removed);
}

/// A value that is admitted only as long as nothing happened to its key is never there afterwards.
fn fenced() {
    let watched = Watched::new(2, Policy::Adaptive, 1);
    let generation = Arc::new(AtomicU64::new(0));
    let fill = {
        let (watched, generation) = (Arc::clone(&watched), Arc::clone(&generation));
        thread::spawn(move || {
            let place = Placement {
                weight: 0,
                dies_at: Millis::MAX,
            };
            let admit = |_: Option<&u64>| generation.load(SeqCst) == 0;
            watched.table.insert(hash(7), 7, 1, place, 0, admit);
        })
    };
    generation.store(1, SeqCst);
    watched.table.remove(hash(7), &7);
    assert_eq!(watched.get(7), None, "what came before was removed");
    join([fill]);
    assert_eq!(watched.get(7), None, "what came later was not admitted");
}

#[test]
fn a_fence_holds_under_any_schedule() {
    under_many_schedules(fenced);
}

/// A walk beside those who remove, store and replace.
fn walked() {
    // Room for all, and four parts in each index.
    let watched = Watched::new(8_000, Policy::Adaptive, 2);
    for key in 0..6 {
        watched.insert(key, key, Millis::MAX, 0);
    }
    let churn = {
        let watched = Arc::clone(&watched);
        thread::spawn(move || {
            watched.table.remove(hash(0), &0);
            watched.insert(2, 202, Millis::MAX, 0);
            watched.table.remove(hash(1), &1);
            watched.insert(9, 209, Millis::MAX, 0);
            watched.insert(0, 200, Millis::MAX, 0);
        })
    };
    let mut keys: Vec<u64> = watched.held().into_iter().map(|(key, _)| key).collect();
    join([churn]);
    keys.sort_unstable();
    let seen = keys.clone();
    keys.dedup();
    assert_eq!(keys, seen, "nothing is seen twice");
    assert!((2..6).all(|key| keys.contains(&key)), "{keys:?}");
    watched.check_at_rest();
}

#[test]
fn a_walk_sees_once_what_stays_under_any_schedule() {
    under_many_schedules(walked);
}
