//! The table against a model, its bounds, its panics and its threads.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use proptest::prelude::*;

use super::*;

impl<K: Hash + Eq, T: Clone> Memory<K, T> {
    /// Checks every shard from within.
    pub(super) fn check(&self) {
        for Locked(shard) in &self.shards {
            sync::read(shard).check();
        }
        assert!(self.weight() <= self.limit(), "the bound is never exceeded");
    }

    pub(super) fn put(&self, key: K, value: T, place: Placement, now: Millis) -> Inserted {
        self.insert(self.hash(&key), key, value, place, now, |_| true)
    }

    pub(super) fn look(&self, key: &K, now: Millis) -> Option<T> {
        self.get(self.hash(key), key, now, Clone::clone)
    }
}

/// The bytes that an entry of this table takes beside its weight.
fn overhead<K: Hash + Eq, T: Clone>() -> u64 {
    u64::from(Memory::<K, T>::charge(Bound::Bytes(0), 0))
}

/// A table of the default policy.
fn made<K: Hash + Eq, T>(bound: Bound) -> Memory<K, T> {
    Memory::new(bound, Policy::Adaptive)
}

pub(super) const FOREVER: Placement = weighing(0);

const fn weighing(weight: u32) -> Placement {
    Placement {
        weight,
        dies_at: Millis::MAX,
    }
}

fn policy() -> impl Strategy<Value = Policy> {
    prop::sample::select(vec![
        Policy::Adaptive,
        Policy::Lru,
        Policy::Lfu,
        Policy::Fifo,
        Policy::Random,
        Policy::NoEviction,
    ])
}

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    Get(u64),
    Insert {
        key: u64,
        weight: u32,
        ttl: Millis,
        admit: bool,
    },
    Update {
        key: u64,
        ttl: Millis,
    },
    Remove(u64),
    Clear,
    Sweep(usize),
    /// So many parts in ten of the first bound.
    Resize(u64),
    Pass(Millis),
}

fn step(keys: u64) -> impl Strategy<Value = Step> {
    let ttl = || prop_oneof![3 => 0..300u64, 1 => Just(Millis::MAX)];
    let weight = prop_oneof![8 => 0..300u32, 1 => 0..6000u32, 1 => Just(u32::MAX)];
    prop_oneof![
        30 => (0..keys).prop_map(Step::Get),
        40 => (0..keys, weight, ttl(), prop::bool::weighted(0.9)).prop_map(
            |(key, weight, ttl, admit)| Step::Insert { key, weight, ttl, admit }
        ),
        8 => (0..keys, ttl()).prop_map(|(key, ttl)| Step::Update { key, ttl }),
        8 => (0..keys).prop_map(Step::Remove),
        1 => Just(Step::Clear),
        5 => prop_oneof![3 => 0..40usize, 1 => Just(usize::MAX)].prop_map(Step::Sweep),
        1 => (0..=10u64).prop_map(Step::Resize),
        10 => (0..60u64).prop_map(Step::Pass),
    ]
}

/// What the model knows of a key: the value last stored and when it dies.
type Known = HashMap<u64, (u64, Millis)>;

/// The table and a map that never evicts, side by side.
///
/// The table may hold less than the map, never anything else. A key once found missing leaves the
/// map, so that it cannot come back unnoticed.
struct Pair {
    table: Memory<u64, u64>,
    /// What its listener was told of, by cause.
    told: Arc<Mutex<HashMap<RemovalCause, u64>>>,
    model: Known,
    /// Whether the bound is so wide that the table must hold all the map holds.
    roomy: bool,
    now: Millis,
    stored: u64,
}

impl Pair {
    fn new(bound: Bound, policy: Policy, shards: usize, roomy: bool) -> Self {
        let told = Arc::new(Mutex::new(HashMap::new()));
        let tell = Arc::clone(&told);
        let listener: Listener<u64, u64> = Box::new(move |_, _, cause| {
            let mut told = tell.lock().unwrap_or_else(PoisonError::into_inner);
            *told.entry(cause).or_default() += 1;
        });
        Self {
            table: Memory::with_shards(bound, policy, shards).with_listener(Some(listener)),
            told,
            model: HashMap::new(),
            roomy,
            now: 0,
            stored: 0,
        }
    }

    fn take(&mut self, step: Step) {
        let before = self.table.counters();
        match step {
            Step::Get(key) => _ = self.get(key),
            Step::Insert {
                key,
                weight,
                ttl,
                admit,
            } => self.insert(key, weight, ttl, admit),
            Step::Update { key, ttl } => self.update(key, ttl),
            Step::Remove(key) => self.remove(key),
            Step::Clear => {
                assert_eq!(self.table.len(), self.table.clear().len());
                assert_eq!((self.table.len(), self.table.weight()), (0, 0));
                self.model.clear();
            }
            Step::Sweep(at_most) => {
                let dropped = self.table.sweep(self.now, at_most);
                assert!(dropped <= at_most);
                let expired = self.table.counters().expired - before.expired;
                assert_eq!(dropped as u64, expired);
                if at_most == usize::MAX {
                    self.check_that_none_is_dead();
                }
            }
            Step::Resize(tenths) if !self.roomy => {
                let limit = self.table.made_for.limit() * tenths / 10;
                self.table.resize(limit, self.now);
                assert_eq!(self.table.limit(), limit);
            }
            Step::Resize(_) => {}
            Step::Pass(millis) => self.now += millis,
        }
        if self.roomy {
            assert_eq!(self.table.counters().evicted, 0);
        }
        self.check_what_was_told();
        self.table.check();
    }

    fn check_what_was_told(&self) {
        let (told, counted) = (
            self.told.lock().unwrap_or_else(PoisonError::into_inner),
            self.table.counters(),
        );
        let of = |cause| told.get(&cause).copied().unwrap_or(0);
        assert_eq!(of(RemovalCause::Expired), counted.expired);
        assert_eq!(of(RemovalCause::Evicted), counted.evicted);
        assert_eq!(of(RemovalCause::Replaced), counted.replaced);
        assert_eq!(of(RemovalCause::Removed), counted.removed);
    }

    fn check_that_none_is_dead(&self) {
        let mut walk = Walk::default();
        while (self.table).walk(&mut walk, |seen| assert!(seen.dies_at > self.now)) {}
    }

    fn live(&self, key: u64) -> Option<u64> {
        let &(value, dies_at) = self.model.get(&key)?;
        (dies_at > self.now).then_some(value)
    }

    fn get(&mut self, key: u64) -> Option<u64> {
        let got = self.table.look(&key, self.now);
        match got {
            Some(_) => assert_eq!(got, self.live(key), "what is found was the last stored"),
            None => {
                assert!(!self.roomy || self.live(key).is_none(), "lost {key}");
                self.model.remove(&key);
            }
        }
        got
    }

    fn insert(&mut self, key: u64, weight: u32, ttl: Millis, admit: bool) {
        let held = self.get(key);
        let (contents, counters) = (self.contents(), self.table.counters());
        self.stored += 1;
        let (value, dies_at) = (self.stored, self.now.saturating_add(ttl));
        let place = Placement { weight, dies_at };
        let hash = self.table.hash(&key);
        let inserted = self.table.insert(hash, key, value, place, self.now, |old| {
            assert_eq!(old.copied(), held, "admission sees what a reader sees");
            admit
        });
        if !admit {
            assert_eq!(inserted, Inserted::NotAdmitted);
            assert_eq!(self.contents(), contents);
            assert_eq!(self.table.counters(), counters);
            return;
        }
        self.model.remove(&key);
        match inserted {
            Inserted::Stored => {
                self.model.insert(key, (value, dies_at));
                assert_eq!(self.table.look(&key, self.now), self.live(key));
            }
            _ => {
                assert_eq!(self.table.look(&key, self.now), None);
                assert_eq!(self.table.counters().evicted, counters.evicted);
            }
        }
        let charge = u64::from(Memory::<u64, u64>::charge(self.table.made_for, weight));
        let fits = charge <= self.quota(hash) && charge < u64::from(u32::MAX);
        assert_eq!(inserted == Inserted::TooHeavy, !fits);
        if inserted == Inserted::Full {
            assert_eq!(self.table.policy, Policy::NoEviction);
            assert_eq!(self.table.counters().refused, counters.refused + 1);
            assert!(!self.roomy);
        }
    }

    fn quota(&self, hash: u64) -> u64 {
        let at = (hash >> 32) as usize & (self.table.shards.len() - 1);
        part_of(self.table.limit(), at, self.table.shards.len())
    }

    fn update(&mut self, key: u64, ttl: Millis) {
        let held = self.get(key);
        self.stored += 1;
        let (value, dies_at) = (self.stored, self.now.saturating_add(ttl));
        let hash = self.table.hash(&key);
        let old = self.table.update(hash, &key, self.now, |held, dies| {
            *dies = dies_at;
            std::mem::replace(held, value)
        });
        assert_eq!(old, held);
        if old.is_some() {
            self.model.insert(key, (value, dies_at));
        }
    }

    fn remove(&mut self, key: u64) {
        let held = self.get(key);
        let hash = self.table.hash(&key);
        let removed = self.table.remove(hash, &key);
        if held.is_some() {
            assert_eq!(removed, held);
        }
        assert_eq!(self.table.look(&key, self.now), None);
        self.model.remove(&key);
    }

    fn contents(&self) -> Vec<(u64, u64)> {
        let mut contents = Vec::new();
        self.table
            .for_each(|&key, &value| contents.push((key, value)));
        contents.sort_unstable();
        contents
    }
}

#[test]
fn every_entry_is_drawn_by_as_many_numbers_as_any_other() {
    let table = Memory::<u64, ()>::with_shards(Bound::Entries(8_000), Policy::Adaptive, 8);
    assert_eq!(table.draw(7, |_| ()), None);
    for key in 0..20 {
        table.put(key, (), FOREVER, 0);
    }
    for round in [0, 20, u64::MAX / 20 * 20 - 20] {
        let mut drawn: Vec<_> = (round..round + 20)
            .filter_map(|number| table.draw(number, |key| *key))
            .collect();
        drawn.sort_unstable();
        assert_eq!(drawn, (0..20).collect::<Vec<_>>());
    }
}

/// Between any two batches of a walk others store, remove, replace and expire; what the walk shows is
/// compared with what was there all the time.
#[test]
fn a_walk_sees_once_what_stays_and_nothing_twice() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let table = Memory::<u64, u64>::with_shards(Bound::Bytes(64 << 20), Policy::Adaptive, 2);
    const STAYING: u64 = 40_000;
    // Those that go lie before the others, which are moved to their places.
    for key in STAYING..2 * STAYING {
        table.put(key, 0, FOREVER, 0);
    }
    for key in 0..STAYING {
        table.put(key, 0, FOREVER, 0);
    }
    let (mut walk, mut seen, mut batches) = (Walk::default(), HashMap::new(), 0);
    let mut goes_on = true;
    while goes_on {
        let before = seen.len();
        goes_on = table.walk(&mut walk, |entry| {
            assert!(seen.insert(*entry.key, *entry.value).is_none(), "{seed}");
        });
        batches += 1;
        assert!(
            seen.len() - before <= 512,
            "{} at once",
            seen.len() - before
        );
        for round in 0..800 {
            let going = STAYING + random.u64(0..STAYING);
            table.remove(table.hash(&going), &going);
            table.put(random.u64(0..STAYING), 1, weighing(random.u32(0..300)), 0);
            if round % 8 == 0 {
                table.put(2 * STAYING + random.u64(0..STAYING), 2, FOREVER, 0);
            }
        }
    }
    assert!((0..STAYING).all(|key| seen.contains_key(&key)), "{seed}");
    assert!(batches > 40 && seen.values().any(|value| *value == 2));
    assert!(!table.walk(&mut walk, |_| unreachable!("it is over")));
    assert_eq!(table.counters().evicted, 0);
    table.check();
}

#[test]
fn a_walk_over_little_takes_a_lock_for_each_shard() {
    let table = Memory::<u64, u64>::with_shards(Bound::Entries(1 << 24), Policy::Adaptive, 4);
    for key in 0..100 {
        table.put(key, key, FOREVER, 0);
    }
    let (mut walk, mut seen, mut batches) = (Walk::default(), 0, 1);
    while table.walk(&mut walk, |_| seen += 1) {
        batches += 1;
    }
    assert_eq!((seen, batches), (100, 4));
}

#[test]
fn a_walk_tells_how_much_is_read() {
    let heats = |policy| {
        let table = Memory::<u64, u64>::with_shards(Bound::Entries(100), policy, 1);
        for key in 0..3 {
            table.put(key, key, FOREVER, 0);
            (0..key * 2).for_each(|_| _ = table.look(&key, 0));
        }
        let mut heats = [0; 3];
        let mut walk = Walk::default();
        while table.walk(&mut walk, |seen| heats[*seen.key as usize] = seen.heat) {}
        heats
    };
    assert_eq!(heats(Policy::Adaptive), [0, 2, 3]);
    assert_eq!(heats(Policy::Lfu), [0, 2, 4]);
    assert_eq!(heats(Policy::Lru), [0, 0, 0]);
}

proptest! {
    #[test]
    fn it_follows_the_model_in_entries(
        most in 0u64..40,
        policy in policy(),
        steps in prop::collection::vec(step(60), 1..300),
    ) {
        let mut pair = Pair::new(Bound::Entries(most), policy, 1, false);
        steps.into_iter().for_each(|step| pair.take(step));
    }

    #[test]
    fn it_follows_the_model_in_bytes(
        most in 0u64..8000,
        policy in policy(),
        steps in prop::collection::vec(step(60), 1..300),
    ) {
        let mut pair = Pair::new(Bound::Bytes(most), policy, 1, false);
        steps.into_iter().for_each(|step| pair.take(step));
    }

    #[test]
    fn it_follows_the_model_in_several_shards(
        quota in 0u64..20,
        policy in policy(),
        steps in prop::collection::vec(step(150), 1..300),
    ) {
        let mut pair = Pair::new(Bound::Entries(quota * 4), policy, 4, false);
        steps.into_iter().for_each(|step| pair.take(step));
    }

    #[test]
    fn it_loses_nothing_while_there_is_room(
        policy in policy(),
        steps in prop::collection::vec(step(60), 1..300),
    ) {
        let mut pair = Pair::new(Bound::Entries(60 * 4), policy, 4, true);
        steps.into_iter().for_each(|step| pair.take(step));
    }

    /// The parts of the bound add up, and every table takes the weight that is promised.
    #[test]
    fn shards_share_the_bound(most in any::<u64>(), cores in 1usize..1000) {
        for bound in [Bound::Entries(most), Bound::Bytes(most)] {
            let shards = shards_for(bound, cores);
            prop_assert!(shards.is_power_of_two() && shards <= SHARDS_MAX);
            let least = match bound {
                Bound::Entries(_) => SHARD_ENTRIES,
                Bound::Bytes(_) => SHARD_BYTES,
            };
            prop_assert!(most / shards as u64 >= least.min(most));
        }
    }
}

/// A long history over a table of many parts; the checks from within are costly and
/// come at intervals.
#[test]
fn it_follows_the_model_for_long() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let table = Memory::<u64, u64>::with_shards(Bound::Entries(8_000), Policy::Adaptive, 2);
    let (mut model, mut now): (Known, _) = (HashMap::new(), 0);
    for round in 0..300_000u64 {
        now += random.u64(0..2);
        let key = random.u64(0..30_000);
        if random.u8(..) < 8 {
            table.remove(table.hash(&key), &key);
            model.remove(&key);
        } else if random.bool() {
            let dies_at = now + random.u64(1..60_000);
            table.put(key, round, Placement { weight: 0, dies_at }, now);
            model.insert(key, (round, dies_at));
        }
        let live = model.get(&key).filter(|&&(_, dies_at)| dies_at > now);
        match table.look(&key, now) {
            None => _ = model.remove(&key),
            found => assert_eq!(found, live.map(|&(value, _)| value), "seed {seed}"),
        }
        if round % 50_000 == 0 {
            table.check();
        }
    }
    table.check();
    let counted = table.counters();
    assert!(counted.evicted > 0 && counted.expired > 0 && counted.replaced > 0);
}

#[test]
fn a_bound_of_zero_stores_nothing() {
    for bound in [Bound::Entries(0), Bound::Bytes(0)] {
        let table = made(bound);
        assert_eq!(table.limit(), 0);
        assert_eq!(table.put(1, 1, FOREVER, 0), Inserted::TooHeavy);
        assert_eq!(table.look(&1, 0), None);
        assert_eq!(table.len(), 0);
    }
}

#[test]
fn a_value_as_heavy_as_the_bound_is_stored_and_a_heavier_one_is_not() {
    let bound = 1000 + overhead::<u64, u64>();
    let table = made::<u64, u64>(Bound::Bytes(bound));
    assert_eq!(table.put(1, 1, weighing(10), 0), Inserted::Stored);
    assert_eq!(table.put(2, 2, weighing(1000), 0), Inserted::Stored);
    assert_eq!(table.weight(), bound);
    assert_eq!(table.look(&1, 0), None);
    assert_eq!(table.put(3, 3, weighing(1001), 0), Inserted::TooHeavy);
    assert_eq!(table.look(&2, 0), Some(2), "nothing else goes for it");
    assert_eq!(table.put(2, 4, weighing(1001), 0), Inserted::TooHeavy);
    assert_eq!(table.look(&2, 0), None, "an old value does not outlive it");
    assert_eq!(table.counters().too_heavy, 2);
}

#[test]
fn a_weight_that_does_not_fit_is_too_heavy_for_any_bound() {
    let table = Memory::<u64, u64>::with_shards(Bound::Bytes(1 << 40), Policy::Adaptive, 1);
    assert_eq!(table.put(1, 1, weighing(u32::MAX), 0), Inserted::TooHeavy);
    assert_eq!(
        table.put(1, 1, weighing(u32::MAX - 100), 0),
        Inserted::Stored
    );
}

#[test]
fn every_table_takes_four_mebibytes_in_one_entry() {
    let table = made(Bound::Bytes(1 << 30));
    let weight = (SHARD_BYTES - overhead::<u64, u64>()) as u32;
    for key in 0..300 {
        assert_eq!(table.put(key, 0u64, weighing(weight), 0), Inserted::Stored);
    }
    table.check();
}

#[test]
fn a_value_that_grows_makes_room_among_the_others_and_keeps_its_standing() {
    let each = overhead::<u64, u64>() + 100;
    let table = made(Bound::Bytes(4 * each));
    for key in 0..4u64 {
        table.put(key, key, weighing(100), 0);
    }
    table.look(&0, 0);
    let heat = || {
        let (mut walk, mut heat) = (Walk::default(), None);
        let mut note = |seen: walk::Seen<'_, u64, u64>| {
            if *seen.key == 0 {
                heat = Some(seen.heat);
            }
        };
        while table.walk(&mut walk, &mut note) {}
        heat
    };
    let before = heat();
    table.put(0, 10, weighing(150), 0);
    assert_eq!(heat(), before);
    assert_eq!(table.look(&0, 0), Some(10));
    assert_eq!(table.counters().evicted, 1);
    table.check();
}

#[test]
fn an_expired_entry_is_not_seen_again_by_any_operation() {
    let table = made(Bound::Entries(10));
    let place = Placement {
        weight: 0,
        dies_at: 100,
    };
    table.put(1, 1, place, 0);
    assert_eq!(table.look(&1, 99), Some(1));
    assert_eq!(table.look(&1, 100), None);
    let hash = table.hash(&1);
    assert_eq!(
        table.update(hash, &1, 100, |_, dies_at| *dies_at = 200),
        None
    );
    table.insert(hash, 1, 2, FOREVER, 100, |old| {
        assert_eq!(old, None);
        true
    });
    assert_eq!(table.look(&1, 100), Some(2));
    assert_eq!(table.counters().expired, 1);
    assert_eq!(table.counters().replaced, 0);
}

#[test]
fn a_sweep_finds_every_expired_entry_and_no_other() {
    let table = Memory::with_shards(Bound::Entries(40_000), Policy::Adaptive, 8);
    for key in 0..10_000u64 {
        let dies_at = if key % 3 == 0 { 100 } else { 200 };
        table.put(key, key, Placement { weight: 0, dies_at }, 0);
    }
    assert_eq!(table.sweep(99, usize::MAX), 0);
    let in_parts: usize = (0..200).map(|_| table.sweep(100, 100)).sum();
    assert_eq!(in_parts, 3334);
    table.check();
    assert_eq!(table.sweep(200, usize::MAX), 6666);
    assert_eq!(table.len(), 0);
    table.check();
}

/// Also if parts grow and shrink again before they have got through them, wherever entries lie.
#[test]
fn inserts_drop_what_expired_from_parts_that_never_rest() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..60 {
        let few = round < 30;
        let (staying, coming) = match few {
            true => (1_000, 400),
            false => (random.u64(5..3_000), random.u64(1..3_000)),
        };
        let bound = Bound::Entries((staying + coming) * 4 / 3);
        let table = Memory::with_shards(bound, Policy::Adaptive, 1);
        for key in 0..staying {
            let dies_at = if key % 10 == 0 { 100 } else { Millis::MAX };
            table.put(key, key, Placement { weight: 0, dies_at }, 0);
        }
        // Each insert looks at four entries. Some are looked at more than once, and some move from before
        // the walk to behind it, now and then for several of its rounds.
        let dead = staying.div_ceil(10);
        let turns = 10 * (staying / coming + 4);
        for _ in (0..turns).take_while(|_| table.counters().expired < dead) {
            let others = staying..staying + coming;
            others
                .clone()
                .for_each(|key| _ = table.put(key, 0, FOREVER, 200));
            others.for_each(|key| _ = table.remove(table.hash(&key), &key));
        }
        let counted = table.counters();
        assert_eq!(
            (counted.expired, counted.evicted),
            (dead, 0),
            "{staying} {coming}"
        );
        table.check();
    }
}

/// Those that are left, though some were to die by now and were given longer, do not keep it going.
#[test]
fn a_sweep_without_end_ends_when_it_knows_that_nothing_is_dead() {
    let table = Memory::with_shards(Bound::Entries(20_000), Policy::Adaptive, 1);
    for key in 0..10_000u64 {
        let dies_at = if key % 3 == 0 { 100 } else { 200 };
        table.put(key, key, Placement { weight: 0, dies_at }, 0);
    }
    // In the middle of its way.
    assert!(table.sweep(100, 5_000) > 0);
    for key in (1..10_000).step_by(3) {
        let prolong = |_: &mut u64, dies_at: &mut Millis| *dies_at = 300;
        table.update(table.hash(&key), &key, 100, prolong);
    }
    let mut shard = sync::write(&table.shards[0].0);
    for (now, left) in [(150, 6_666), (200, 3_333), (300, 0)] {
        let mut leavings = Leavings::new();
        let looked = shard.sweep(now, 50_000, &mut leavings);
        assert!(looked < 25_000, "{looked}");
        assert_eq!(shard.len(), left);
        assert_eq!(shard.sweep(now, 50_000, &mut leavings), 0);
    }
}

/// The sweep that makes room takes the dead entry of the very key that comes.
#[test]
fn without_eviction_a_heavier_value_takes_the_place_of_a_dead_one() {
    let each = overhead::<u64, u64>();
    let bound = Bound::Bytes(4 * each + 100);
    let table = Memory::<u64, u64>::with_shards(bound, Policy::NoEviction, 1);
    let dying = Placement {
        weight: 0,
        dies_at: 10,
    };
    table.put(0, 0, dying, 0);
    for key in 1..4 {
        table.put(key, key, FOREVER, 0);
    }
    assert_eq!(table.put(0, 7, weighing(101), 10), Inserted::Full);
    assert_eq!(table.put(0, 7, weighing(100), 10), Inserted::Stored);
    assert_eq!((table.look(&0, 10), table.len()), (Some(7), 4));
    table.check();
}

#[test]
fn a_lighter_value_makes_the_table_lighter() {
    let table = made::<u64, u64>(Bound::Bytes(1 << 20));
    table.put(0, 0, weighing(1_000), 0);
    let before = table.weight();
    table.put(0, 1, weighing(10), 0);
    assert_eq!(before - table.weight(), 990);
    table.check();
}

#[test]
fn a_read_keeps_an_entry_where_the_least_recently_used_goes() {
    for policy in [Policy::Lru, Policy::Lfu] {
        let table = Memory::with_shards(Bound::Entries(2), policy, 1);
        for key in [0, 1] {
            table.put(key, key, FOREVER, 0);
        }
        assert_eq!(table.look(&0, 0), Some(0));
        table.put(2, 2, FOREVER, 0);
        let left = [0, 1, 2].map(|key| table.look(&key, 0).is_some());
        assert_eq!(left, [true, false, true], "{policy:?}");
    }
}

/// Bytes of slots that the shards of a table have.
fn slot_bytes(table: &Memory<u64, u64>) -> usize {
    let shards = table.shards.iter();
    shards
        .map(|Locked(shard)| sync::read(shard).heap()[0])
        .sum()
}

#[test]
fn what_held_entries_is_given_back_however_they_went() {
    type Way = fn(&Memory<u64, u64>);
    let ways: [(&str, Way); 5] = [
        ("swept", |table| _ = table.sweep(100, usize::MAX)),
        ("removed", |table| {
            (0..20_000).for_each(|key| _ = table.remove(table.hash(&key), &key));
        }),
        ("a smaller bound", |table| table.resize(0, 0)),
        ("cleared", |table| drop(table.clear())),
        ("swept by inserts", |table| {
            for _ in 0..10_000 {
                table.put(0, 0, FOREVER, 100);
                table.remove(table.hash(&0), &0);
            }
        }),
    ];
    // With one part, and with several.
    for entries in [1_000, 20_000] {
        for (name, way) in ways {
            let table = Memory::with_shards(Bound::Entries(entries), Policy::Adaptive, 1);
            for key in 0..entries {
                let dies_at = 100;
                table.put(key, key, Placement { weight: 0, dies_at }, 0);
            }
            let full = slot_bytes(&table);
            way(&table);
            assert_eq!(table.len(), 0, "{name}");
            assert!(slot_bytes(&table) * 50 < full, "{name} of {entries}");
            table.check();
        }
    }
}

/// A bound that was made far larger than the table was made for.
#[test]
fn a_part_that_can_take_no_more_evicts_or_refuses() {
    // Of 4,096 groups of seven, 13 in 16: see `table.rs`.
    const MOST: u64 = 23_296;
    for policy in [Policy::Adaptive, Policy::Random, Policy::NoEviction] {
        let table = Memory::with_shards(Bound::Entries(10), policy, 1);
        table.resize(40_000, 0);
        for key in 0..25_000u64 {
            let inserted = table.put(key, key, FOREVER, 0);
            let is_refused = policy == Policy::NoEviction && key >= MOST;
            assert_eq!(inserted == Inserted::Full, is_refused, "{policy:?}: {key}");
            assert_eq!(table.look(&key, 0).is_none(), is_refused);
        }
        assert_eq!(table.len(), MOST);
        // A value in the place of an older one needs none of its own.
        let held = (0..25_000).find(|key| table.look(key, 0).is_some());
        assert!(held.is_some_and(|key| table.put(key, 0, FOREVER, 0) == Inserted::Stored));
        table.check();
    }
}

/// However much has expired or has to go, no lock is held for more than a batch of it: whenever a
/// listener is told of an entry, no more are gone that it was not told of yet.
#[test]
fn what_goes_together_is_a_bounded_number() {
    const ENTRIES: u64 = 20_000;
    let shared = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let table = Arc::<Memory<u64, u64>>::new_cyclic(|table: &Weak<Memory<u64, u64>>| {
        let (table, told) = (Weak::clone(table), Arc::clone(&shared));
        let listener: Listener<u64, u64> = Box::new(move |_, _, _| {
            if let Some(table) = table.upgrade() {
                let counted = table.counters();
                let gone = counted.expired + counted.evicted + counted.removed;
                let told_before = told.0.fetch_add(1, Ordering::Relaxed);
                told.1
                    .fetch_max(gone as usize - told_before, Ordering::Relaxed);
            }
        });
        Memory::with_shards(Bound::Entries(ENTRIES), Policy::Adaptive, 1)
            .with_listener(Some(listener))
    });
    let most = || shared.1.swap(0, Ordering::Relaxed);
    for key in 0..ENTRIES {
        let dies_at = if key < ENTRIES / 2 { 100 } else { Millis::MAX };
        table.put(key, key, Placement { weight: 0, dies_at }, 0);
    }
    assert_eq!(most(), 0);
    for key in ENTRIES..ENTRIES + 100 {
        table.put(key, key, FOREVER, 100);
    }
    // Those that an insert looks at, and the one whose place it takes.
    assert!((2..=5).contains(&most()), "an insert");
    assert!(table.sweep(100, usize::MAX) > 5_000);
    assert!((2..=SWEEP_BATCH as usize).contains(&most()), "a sweep");
    table.resize(100, 100);
    assert_eq!(most(), RESIZE_BATCH as usize, "a smaller bound");
    assert_eq!(table.len(), 100);
}

/// What an insert evicts beyond that, its own weight displaces.
#[test]
fn a_heavy_value_displaces_what_it_weighs_and_no_more() {
    let each = overhead::<u64, u64>() + 50;
    let table = Memory::<u64, u64>::with_shards(Bound::Bytes(1_000 * each), Policy::Adaptive, 1);
    for key in 0..1_000 {
        table.put(key, key, weighing(50), 0);
    }
    let weight = 300 * each - overhead::<u64, u64>();
    assert_eq!(
        table.put(7_777, 0, weighing(weight as u32), 0),
        Inserted::Stored
    );
    assert_eq!((table.len(), table.counters().evicted), (701, 300));
    let full = slot_bytes(&table);
    let weight = 1_000 * each - overhead::<u64, u64>();
    table.put(8_888, 0, weighing(weight as u32), 0);
    assert_eq!(table.len(), 1);
    assert!(
        slot_bytes(&table) * 50 < full,
        "what it displaced is given back"
    );
    table.check();
}

#[test]
fn inserts_alone_drop_what_expired() {
    let table = made(Bound::Entries(1000));
    for key in 0..500u64 {
        let place = Placement {
            weight: 0,
            dies_at: 100,
        };
        table.put(key, key, place, 0);
    }
    for key in 500..700 {
        table.put(key, key, FOREVER, 100);
    }
    assert_eq!(table.counters().expired, 500);
    assert_eq!(table.len(), 200);
}

#[test]
fn a_deadline_that_an_update_brings_forward_is_found_by_the_sweep() {
    let table = made(Bound::Entries(100));
    for key in 0..50u64 {
        table.put(key, key, FOREVER, 0);
    }
    table.update(table.hash(&7), &7, 0, |_, dies_at| *dies_at = 10);
    assert_eq!(table.sweep(9, 1000), 0);
    assert_eq!(table.sweep(10, 1000), 1);
    assert_eq!(table.len(), 49);
}

#[test]
fn borrowed_keys_find_owned_ones() {
    let table: Memory<String, u8> = made(Bound::Entries(4));
    table.put("a".to_owned(), 1, FOREVER, 0);
    assert_eq!(table.get(table.hash("a"), "a", 0, Clone::clone), Some(1));
    assert_eq!(
        table.update(table.hash("a"), "a", 0, |value, _| *value),
        Some(1)
    );
    assert_eq!(table.remove(table.hash("a"), "a"), Some(1));
    assert_eq!(table.get(table.hash("a"), "a", 0, Clone::clone), None);
}

#[test]
fn keys_of_one_hash_are_kept_apart() {
    let table = made(Bound::Entries(100));
    for key in 0..50u64 {
        table.insert(9, key, key, FOREVER, 0, |_| true);
    }
    for key in (0..50).step_by(2) {
        assert_eq!(table.remove(9, &key), Some(key));
    }
    for key in 0..50 {
        let left = (key % 2 == 1).then_some(key);
        assert_eq!(table.get(9, &key, 0, Clone::clone), left);
    }
    table.check();
}

/// The lock, the way to the entries, and what a read leaves in them.
#[test]
fn a_read_finds_all_of_a_shard_on_one_cache_line() {
    assert!(size_of::<RwLock<Shard<String, [u64; 9]>>>() <= 64);
    assert_eq!(align_of::<Locked<u8, u8>>() % 64, 0);
}

/// What a table takes for each entry beyond key and value: in its shards themselves, and from the
/// allocator for slots, for what leads to them, and for ghosts.
fn taken_per_entry(table: &Memory<u64, u64>) -> [f64; 4] {
    let mut taken = [size_of_val(&*table.shards), 0, 0, 0];
    for Locked(shard) in &table.shards {
        let heap = sync::read(shard).heap();
        (0..3).for_each(|part| taken[part + 1] += heap[part]);
    }
    let entries = table.len();
    taken[1] -= entries as usize * size_of::<(u64, u64)>();
    taken.map(|bytes| bytes as f64 / entries as f64)
}

/// What an entry is charged with beyond its key, its value and its weight.
const CHARGED: f64 = (Table::<u64, u64>::BYTES_EACH + GHOST_BYTES - 16) as f64;

/// Whatever the size, full or not, and when everything was replaced many times, with all the ghosts
/// that there can be.
#[test]
fn an_entry_takes_no_more_than_it_is_charged_with() {
    for bound in [10_000, 33_000, 68_000, 100_000, 230_000] {
        let table = Memory::with_shards(Bound::Entries(bound), Policy::Adaptive, 4);
        let mut range = (f64::MAX, 0.0_f64);
        for key in 0..bound * 5 {
            table.put(key, key, FOREVER, 0);
            if table.len() > 4_000 && key % (bound / 10) == 0 {
                let taken = taken_per_entry(&table);
                let all = taken.iter().sum();
                assert!(all <= CHARGED, "{all:.1} of {taken:.1?} at {}", table.len());
                range = (range.0.min(all), range.1.max(all));
            }
        }
        let taken = taken_per_entry(&table);
        let (least, most) = range;
        println!("{bound}: {least:.1} to {most:.1} bytes; at last {taken:.1?}");
    }
}

/// The number of entries drifts with what they weigh, and the ghosts follow it late.
#[test]
fn an_entry_of_any_weight_takes_no_more_than_it_is_charged_with() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let table = Memory::with_shards(Bound::Bytes(4 << 20), Policy::Adaptive, 2);
    for key in 0..400_000 {
        let most = [1, 40, 300, 90][key as usize / 100_000];
        table.put(key, key, weighing(random.u32(0..most)), 0);
        if key % 10_000 == 9_999 {
            let taken = taken_per_entry(&table);
            let all: f64 = taken.iter().sum();
            assert!(all <= CHARGED, "{all:.1} of {taken:.1?} at {}", table.len());
        }
    }
}

/// A key whose comparison panics on demand.
#[derive(Debug)]
struct Moody(u64, Arc<AtomicBool>);

impl PartialEq for Moody {
    fn eq(&self, other: &Self) -> bool {
        assert!(!self.1.load(Ordering::Relaxed), "moody");
        self.0 == other.0
    }
}

impl Eq for Moody {}

impl Hash for Moody {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

#[test]
fn a_panic_in_comparison_admission_or_change_leaves_the_table_whole() {
    let mood = Arc::new(AtomicBool::new(false));
    let key = |number| Moody(number, Arc::clone(&mood));
    let table = made(Bound::Entries(10));
    for number in 0..20 {
        table.put(key(number), number, FOREVER, 0);
    }
    let hash = table.hash(&key(19));
    let panics = |attempt: &dyn Fn()| {
        assert!(catch_unwind(AssertUnwindSafe(attempt)).is_err());
        mood.store(false, Ordering::Relaxed);
        table.check();
        assert_eq!(table.len(), 10);
        assert_eq!(table.look(&key(19), 0), Some(19));
    };
    let angry = || mood.store(true, Ordering::Relaxed);
    panics(&|| {
        angry();
        table.look(&key(19), 0);
    });
    panics(&|| {
        angry();
        table.put(key(19), 1, FOREVER, 0);
    });
    panics(&|| {
        angry();
        table.remove(hash, &key(19));
    });
    panics(&|| _ = table.insert(hash, key(19), 1, FOREVER, 0, |_| panic!("no")));
    panics(&|| {
        table
            .update(hash, &key(19), 0, |_, _| panic!("no"))
            .unwrap()
    });
}

/// A value that, when dropped, asserts that its table's locks are free, and may panic.
struct Leaver {
    table: Weak<Memory<u64, Arc<Leaver>>>,
    panics: bool,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Leaver {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if let Some(table) = self.table.upgrade() {
            let free = |shard: &Locked<_, _>| shard.0.try_write().is_ok();
            assert!(table.shards.iter().all(free), "dropped under a lock");
        }
        assert!(!self.panics, "a value that will not go quietly");
    }
}

#[test]
fn values_are_dropped_outside_the_locks() {
    let each = overhead::<u64, Arc<u8>>() + 10;
    let table = Arc::new(made(Bound::Bytes(10 * each)));
    let dropped = Arc::new(AtomicUsize::new(0));
    let leaver = || {
        Arc::new(Leaver {
            table: Arc::downgrade(&table),
            panics: false,
            dropped: Arc::clone(&dropped),
        })
    };
    let place = |dies_at| Placement {
        weight: 10,
        dies_at,
    };
    let left = || dropped.swap(0, Ordering::Relaxed);
    for key in 0..20 {
        table.put(key, leaver(), place(100), 0);
    }
    assert_eq!(left(), 10, "evicted");
    table.put(19, leaver(), place(100), 0);
    assert_eq!(left(), 1, "replaced");
    table.put(19, leaver(), weighing(5 * each as u32 + 10), 0);
    assert_eq!(left(), 6, "the older value, and five others for room");
    table.insert(table.hash(&19), 19, leaver(), FOREVER, 0, |_| false);
    assert_eq!(left(), 1, "not admitted");
    table.put(19, leaver(), weighing(u32::MAX), 0);
    assert_eq!(left(), 2, "too heavy, and the older value");
    table.sweep(100, 3);
    assert_eq!(left(), 3, "swept");
    table.put(0, leaver(), FOREVER, 100);
    assert_eq!(left(), 1, "swept by an insert");
    table.clear();
    assert_eq!(left(), 1, "cleared");
    table.put(0, leaver(), FOREVER, 100);
    table.remove(table.hash(&0), &0);
    assert_eq!(left(), 1, "removed");
}

#[test]
fn a_panic_while_a_value_is_dropped_leaves_the_table_whole() {
    let table = Arc::new(made(Bound::Entries(10)));
    let dropped = Arc::new(AtomicUsize::new(0));
    let leaver = |panics| {
        Arc::new(Leaver {
            table: Weak::new(),
            panics,
            dropped: Arc::clone(&dropped),
        })
    };
    table.put(0, leaver(true), FOREVER, 0);
    for key in 1..10 {
        table.put(key, leaver(false), FOREVER, 0);
    }
    let put = || table.put(10, leaver(false), FOREVER, 0);
    assert!(catch_unwind(AssertUnwindSafe(put)).is_err());
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
    assert!(table.look(&10, 0).is_some(), "the insert had been done");
    assert!(table.look(&0, 0).is_none());
    table.check();
}

/// Each key is written by one thread and read by all. Its writer knows what it may find there:
/// the value last written or nothing, and once nothing, nothing until it writes again.
#[test]
fn many_threads_find_only_what_was_stored_last() {
    const THREADS: u64 = 4;
    const KEYS: u64 = 600;
    const ROUNDS: u64 = 20_000;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let bound = 100 * (overhead::<u64, u64>() + 50);
    let table = Memory::<u64, u64>::with_shards(Bound::Bytes(bound), Policy::Adaptive, 4);
    let work = |thread: u64| {
        let mut random = fastrand::Rng::with_seed(seed ^ thread);
        let mut last = HashMap::new();
        for round in 0..ROUNDS {
            let key = random.u64(0..KEYS / THREADS) * THREADS + thread;
            match random.u8(0..20) {
                0 => {
                    table.remove(table.hash(&key), &key);
                    last.remove(&key);
                }
                1..8 => {
                    let place = Placement {
                        weight: random.u32(0..100),
                        dies_at: round + random.u64(1..200),
                    };
                    let value = key << 32 | round;
                    assert_eq!(table.put(key, value, place, round), Inserted::Stored);
                    last.insert(key, value);
                }
                8 => _ = table.sweep(round.saturating_sub(100), 50),
                _ => match table.look(&key, round) {
                    None => _ = last.remove(&key),
                    found => assert_eq!(found.as_ref(), last.get(&key), "seed {seed}"),
                },
            }
            let other = random.u64(0..KEYS);
            if let Some(value) = table.look(&other, 0) {
                assert_eq!(value >> 32, other, "seed {seed}");
            }
            assert!(table.weight() <= bound, "seed {seed}");
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let work = &work;
            scope.spawn(move || work(thread));
        }
    });
    table.check();
    let counted = table.counters();
    assert!(counted.evicted > 0 && counted.expired > 0 && counted.removed > 0);
}
