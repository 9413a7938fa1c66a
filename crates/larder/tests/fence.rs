//! Whatever changes a key wins over every load that is under way: promise 1 within a process.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use common::{
    Faulty, Turns, Wobbly, another_process, found, lease_on, ms, never, polled, secs, soon,
    turn_until,
};
use common::{faulty, with_tier, with_two_tiers};
use fastrand::Rng;
use larder::store::StoreErrorKind;
use larder::{Cache, Larder, Read, Tiers};
use larder_testkit::{Gate, LoadCounter, ManualClock, Operation, StoreFault, seeds, settle};
use tokio::task::JoinHandle;

type Numbers = Cache<u64, u64>;

/// The ways to change a key, by name.
const CHANGES: [&str; 6] = [
    "invalidate",
    "set",
    "clear",
    "expire",
    "memory alone",
    "forget",
];

async fn change(larder: &Larder, cache: &Numbers, how: &str) {
    let receipt = match how {
        "invalidate" => cache.invalidate(&1).await,
        "set" => cache.set(1, 8).await,
        "clear" => cache.clear().await,
        "expire" => cache.expire(&1).await,
        "memory alone" => {
            cache.invalidate_in_memory(&1);
            return;
        }
        _ => {
            assert!(larder.caches()[0].forget(b"1"));
            return;
        }
    };
    assert_eq!(receipt.unwrap().delivery(), larder::Delivery::Acked);
}

async fn gated(loads: LoadCounter, gate: Gate, value: u64) -> io::Result<u64> {
    let _load = loads.begin();
    gate.wait().await;
    Ok(value)
}

fn reader(
    cache: &Numbers,
    loads: &LoadCounter,
    gate: &Gate,
    value: u64,
) -> JoinHandle<larder::Result<Arc<u64>>> {
    let (cache, loads, gate) = (cache.clone(), loads.clone(), gate.clone());
    tokio::spawn(async move { cache.get_or_load(&1, |_| gated(loads, gate, value)).await })
}

#[tokio::test]
async fn a_load_that_began_before_a_change_is_stored_nowhere() {
    for tiers in 0..=2 {
        for how in CHANGES {
            let (larder, clock, upper, lower) = with_two_tiers("t");
            let one_tier = with_tier("t");
            let (larder, clock, stores) = match tiers {
                0 => (larder_testkit::larder("t").0, clock, vec![]),
                1 => (one_tier.0, one_tier.1, vec![one_tier.2]),
                _ => (larder, clock, vec![upper, lower]),
            };
            let cache: Numbers = larder.cache("c").ttl("1m").build().unwrap();
            let (loads, gate) = (LoadCounter::new(), Gate::new());
            let before = reader(&cache, &loads, &gate, 7);
            gate.arrived(1).await;
            change(&larder, &cache, how).await;
            gate.open();
            let here = format!("{how} over {tiers} tiers");
            assert_eq!(
                *soon(before).await.unwrap().unwrap(),
                7,
                "{here}: it may have the old one"
            );
            settle(&larder).await;
            let kept = (how == "set").then_some(8);
            assert_eq!(cache.get_in_memory(&1).as_deref().copied(), kept, "{here}");
            if ["memory alone", "forget"].contains(&how) {
                continue; // They leave the tiers to others.
            }
            // The lowest tier is what other processes share; the versions of tags stand there.
            if let Some(store) = stores.last() {
                let other: Numbers = another_process("t", &clock, store)
                    .cache("c")
                    .build()
                    .unwrap();
                assert_eq!(
                    other.get(&1).await.unwrap().as_deref().copied(),
                    kept,
                    "{here}"
                );
                assert_eq!(lease_on(store.store(), "t:c@1:1").await, None, "{here}");
            }
        }
    }
}

#[tokio::test]
async fn a_reader_after_a_change_does_not_join_a_load_from_before() {
    for how in CHANGES {
        let (larder, _clock) = larder_testkit::larder("t");
        let cache: Numbers = larder.cache("c").build().unwrap();
        let (loads, gate) = (LoadCounter::new(), Gate::new());
        let before = reader(&cache, &loads, &gate, 7);
        gate.arrived(1).await;
        change(&larder, &cache, how).await;
        let expected = if how == "set" { 8 } else { 9 };
        let after = soon(cache.get_or_load(&1, |_| found(expected)))
            .await
            .unwrap();
        assert_eq!(*after, expected, "{how}");
        gate.open();
        assert_eq!(*before.await.unwrap().unwrap(), 7, "{how}");
        settle(&larder).await;
        assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&expected), "{how}");
    }
}

#[tokio::test]
async fn a_value_read_from_a_tier_before_an_invalidation_is_not_kept_after_it() {
    for (operation, loads) in [(Operation::Get, false), (Operation::Lease, true)] {
        let (larder, clock, tier) = with_tier("t");
        let cache: Numbers = larder.cache("c").build().unwrap();
        let other: Numbers = another_process("t", &clock, &tier)
            .cache("c")
            .build()
            .unwrap();
        let _ = other.set(1, 7).await.unwrap();
        let gate = tier.pause_after(operation);
        let read = tokio::spawn({
            let cache = cache.clone();
            async move {
                if loads {
                    cache.get_or_load(&1, |_| never()).await.map(|value| *value)
                } else {
                    cache.get(&1).await.map(|value| *value.unwrap())
                }
            }
        });
        gate.arrived(1).await;
        let _ = cache.invalidate(&1).await.unwrap();
        gate.open();
        assert_eq!(soon(read).await.unwrap().unwrap(), 7);
        assert_eq!(cache.get_in_memory(&1), None);
        assert_eq!(cache.get(&1).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_promotion_under_way_does_not_bring_an_invalidated_value_back() {
    for before in [true, false] {
        let (larder, clock, upper, lower) = with_two_tiers("t");
        let cache: Numbers = larder.cache("c").build().unwrap();
        let other: Numbers = another_process("t", &clock, &lower)
            .cache("c")
            .build()
            .unwrap();
        let _ = other.set(1, 7).await.unwrap();
        let gate = if before {
            upper.pause_before(Operation::Fill)
        } else {
            upper.pause_after(Operation::Fill)
        };
        let read = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get(&1).await }
        });
        gate.arrived(1).await;
        let _ = cache.invalidate(&1).await.unwrap();
        gate.open();
        assert_eq!(soon(read).await.unwrap().unwrap().as_deref(), Some(&7));
        settle(&larder).await;
        assert_eq!(
            cache.get(&1).await.unwrap(),
            None,
            "paused before the fill: {before}"
        );
        assert!(upper.store().is_empty() && lower.store().is_empty());
    }
}

#[tokio::test]
async fn a_refresh_that_began_before_an_invalidation_is_not_stored() {
    let (larder, clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").ttl("1m").grace("1h").build().unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let _ = cache.set(1, 6).await.unwrap();
    clock.advance(secs(61));
    assert_eq!(*reader(&cache, &loads, &gate, 7).await.unwrap().unwrap(), 6);
    gate.arrived(1).await;
    let _ = cache.invalidate(&1).await.unwrap();
    gate.open();
    settle(&larder).await;
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert!(tier.store().is_empty());
    assert!(cache.stats().fenced > 0, "and that is counted");
}

#[tokio::test]
async fn an_invalidation_goes_on_when_its_caller_is_gone() {
    let (larder, clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let _ = cache.set(1, 7).await.unwrap();
    let gate = tier.pause_before(Operation::Delete);
    let caller = tokio::spawn({
        let cache = cache.clone();
        async move { cache.invalidate(&1).await }
    });
    gate.arrived(1).await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    gate.open();
    settle(&larder).await;
    let other: Numbers = another_process("t", &clock, &tier)
        .cache("c")
        .build()
        .unwrap();
    assert_eq!(other.get(&1).await.unwrap(), None);
}

/// How the tiers of a world are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weather {
    /// They answer.
    Fair,
    /// They fail, hang and come back.
    Foul,
}

/// One random world: a database with a version, a cache of it, and tasks that read and change.
struct World {
    larder: Larder,
    cache: Numbers,
    clock: Arc<ManualClock>,
    stores: Vec<Faulty>,
    /// The version that the database holds.
    version: Arc<AtomicU64>,
    /// The version that no read may fall behind any more.
    floor: Arc<AtomicU64>,
    calm: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    weather: Weather,
    here: String,
}

impl World {
    fn new(tiers: usize, grace: bool, weather: Weather, rng: &mut Rng, here: String) -> Self {
        let clock = ManualClock::new();
        let stores: Vec<_> = (0..tiers).map(|_| faulty(&clock).0).collect();
        let mut builder = Larder::builder("t")
            .clock(clock.clone())
            .without_backplane();
        if weather == Weather::Fair {
            // Time flies in these worlds; here no tier is late.
            builder = builder.tier_budget(secs(60));
        }
        for store in &stores {
            builder = builder.shared(Wobbly::new(store.clone(), Turns::up_to(3, rng)));
        }
        let larder = builder.build().unwrap();
        let cache = larder.cache("c").capacity(100);
        let cache = if grace {
            cache.ttl("20ms").grace("1h").error_throttle("5ms")
        } else {
            cache.ttl("1h")
        };
        Self {
            cache: cache.build().unwrap(),
            larder,
            clock,
            stores,
            version: Arc::new(AtomicU64::new(1)),
            floor: Arc::new(AtomicU64::new(1)),
            calm: Arc::new(AtomicBool::new(weather == Weather::Fair)),
            over: Arc::new(AtomicBool::new(false)),
            weather,
            here,
        }
    }

    /// Reads a few times, in one way and another; no read may fall behind the floor at its begin.
    fn reader(&self, rng: &mut Rng) -> JoinHandle<()> {
        let (cache, version, floor) =
            (self.cache.clone(), self.version.clone(), self.floor.clone());
        let (mut rng, here) = (rng.fork(), self.here.clone());
        tokio::spawn(async move {
            for _ in 0..rng.usize(1..4) {
                Turns::up_to(6, &mut rng).give_way().await;
                let least = floor.load(SeqCst);
                let how = rng.u8(0..8);
                let value = read(&cache, &version, &mut rng, how).await;
                if let Some(value) = value {
                    assert!(
                        value >= least,
                        "{here}: way {how} read {value}, but {least} is known"
                    );
                }
            }
        })
    }

    /// Changes the database and then the cache a few times.
    fn writer(&self, rng: &mut Rng, sets: bool) -> JoinHandle<()> {
        let (cache, version, floor) =
            (self.cache.clone(), self.version.clone(), self.floor.clone());
        let mut rng = rng.fork();
        tokio::spawn(async move {
            for _ in 0..rng.usize(1..4) {
                Turns::up_to(8, &mut rng).give_way().await;
                let new = version.fetch_add(1, SeqCst) + 1;
                let _ = match rng.u8(0..if sets { 6 } else { 4 }) {
                    0 => cache.clear().await,
                    1..4 => cache.invalidate(&1).await,
                    _ => cache.set(1, new).await,
                }
                .unwrap();
                floor.fetch_max(new, SeqCst);
            }
        })
    }

    /// Turns the clock, and the weather, until it is over.
    fn time(&self, rng: &mut Rng) -> JoinHandle<()> {
        let (clock, over, stores) = (self.clock.clone(), self.over.clone(), self.stores.clone());
        let (mut rng, calm) = (rng.fork(), self.calm.clone());
        tokio::spawn(async move {
            while !over.load(SeqCst) {
                clock.advance(ms(rng.u64(0..4)));
                if !calm.load(SeqCst) && rng.u8(0..20) == 0 {
                    turn_weather(&stores, &mut rng);
                }
                tokio::task::yield_now().await;
            }
        })
    }

    /// Ends it well, and looks at what is left from here and from another process.
    async fn end(self, time: JoinHandle<()>) {
        self.calm.store(true, SeqCst);
        self.stores.iter().for_each(Faulty::heal);
        // Long enough for every budget, throttle and repair.
        for _ in 0..200 {
            self.clock.advance(ms(20));
            tokio::task::yield_now().await;
        }
        soon(self.larder.settle()).await;
        let (here, version, weather) = (&self.here, &self.version, self.weather);
        let least = self.floor.load(SeqCst);
        let owed: u64 = self.larder.tiers().iter().map(|tier| tier.owed).sum();
        assert_eq!(owed, 0, "{here}: everything owed is made up for");
        for store in &self.stores {
            let other = another_process("t", &self.clock, store);
            let other: Numbers = other.cache("c").ttl("20ms").grace("1h").build().unwrap();
            if let Some(value) = other.get(&1).await.unwrap() {
                assert!(
                    *value >= least,
                    "{here}: a tier kept {value}, but {least} is known"
                );
            }
            let lease = lease_on(store.store(), "t:c@1:1").await;
            // One that could not be given back while a tier failed ends by itself.
            assert!(
                weather == Weather::Foul || lease.is_none(),
                "{here}: a lease is left"
            );
        }
        let value = read(&self.cache, version, &mut Rng::with_seed(0), 0).await;
        assert!(
            value.is_some_and(|value| value >= least),
            "{here}: at the end"
        );
        self.over.store(true, SeqCst);
        time.await.unwrap();
    }
}

/// One read, in one of several ways; `None` if it gave no value.
async fn read(cache: &Numbers, version: &Arc<AtomicU64>, rng: &mut Rng, how: u8) -> Option<u64> {
    let (turns, fails) = (Turns::up_to(4, rng), how == 7);
    let source = version.clone();
    let from_source = async move {
        turns.give_way().await;
        let found = source.load(SeqCst);
        turns.give_way().await;
        if fails {
            Err(io::Error::other("no route"))
        } else {
            Ok(found)
        }
    };
    let value = match how {
        0 | 7 => cache.get_or_load(&1, |_| from_source).await.ok(),
        1 => cache.get(&1).await.unwrap(),
        2 => {
            let load = |_| {
                let (turns, source) = (Turns::up_to(4, &mut Rng::with_seed(1)), version.clone());
                async move {
                    turns.give_way().await;
                    let found = source.load(SeqCst);
                    turns.give_way().await;
                    Ok::<_, io::Error>([(1, found), (2, found)])
                }
            };
            cache.get_or_load_many(&[1, 2], load).await.ok()?.remove(0)
        }
        3 => cache.get_in_memory(&1),
        4 => {
            let below = cache.with(Read::new().tiers(Tiers::Shared));
            below.get_or_load(&1, |_| from_source).await.ok()
        }
        5 => {
            let strict = cache.with(Read::new().max_stale(ms(10)));
            strict.get_or_load(&1, |_| from_source).await.ok()
        }
        _ => {
            let polls = rng.usize(0..12);
            polled(polls, cache.get_or_load(&1, |_| from_source))
                .await?
                .ok()
        }
    };
    value.map(|value| *value)
}

fn turn_weather(stores: &[Faulty], rng: &mut Rng) {
    for store in stores {
        match rng.u8(0..5) {
            0 => store.inject(Operation::ALL, StoreFault::Hang),
            1 => {
                let kind = StoreErrorKind::Unavailable;
                store.inject(Operation::ALL, StoreFault::Fail(kind));
            }
            2 => {
                let some = Operation::ALL.into_iter().filter(|_| rng.bool());
                store.inject(
                    some.collect::<Vec<_>>(),
                    StoreFault::Fail(StoreErrorKind::Refused),
                );
            }
            _ => store.heal(),
        }
    }
}

/// Runs `cases` random worlds.
fn worlds(cases: usize, tiers: usize, grace: bool, weather: Weather) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for seed in seeds(cases) {
        let mut rng = seed.rng();
        // The engine draws its waits and tokens from the generator of the thread.
        fastrand::seed(seed.number());
        let here = format!(
            "{tiers} tiers, grace {grace}, {weather:?}, seed {}",
            seed.number()
        );
        runtime.block_on(async {
            let world = World::new(tiers, grace, weather, &mut rng, here);
            // One writer may set; of two, neither knows which value is the newer one.
            let sets = rng.bool();
            let writers = if sets { 1 } else { rng.usize(1..3) };
            let mut tasks: Vec<_> = (0..3).map(|_| world.reader(&mut rng)).collect();
            tasks.extend((0..writers).map(|_| world.writer(&mut rng, sets)));
            let time = world.time(&mut rng);
            for task in tasks {
                soon(task).await.unwrap();
            }
            world.end(time).await;
        });
    }
}

#[test]
fn no_read_falls_behind_an_invalidation_in_memory_alone() {
    worlds(2_000, 0, false, Weather::Fair);
}

#[test]
fn no_read_falls_behind_an_invalidation_within_grace() {
    worlds(2_000, 0, true, Weather::Fair);
}

#[test]
fn no_read_falls_behind_an_invalidation_above_a_tier() {
    worlds(1_500, 1, false, Weather::Fair);
    worlds(1_500, 1, true, Weather::Fair);
}

#[test]
fn no_read_falls_behind_an_invalidation_above_two_tiers() {
    worlds(1_500, 2, false, Weather::Fair);
    worlds(1_500, 2, true, Weather::Fair);
}

#[test]
fn no_read_falls_behind_an_invalidation_while_tiers_fail() {
    worlds(1_500, 1, false, Weather::Foul);
    worlds(1_500, 2, true, Weather::Foul);
}

#[test]
fn of_two_overlapping_writes_memory_and_every_tier_keep_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for seed in seeds(2_000) {
        let mut rng = seed.rng();
        runtime.block_on(async {
            let tiers = rng.usize(1..3);
            let here = format!("{tiers} tiers, seed {}", seed.number());
            let world = World::new(tiers, false, Weather::Fair, &mut rng, here);
            let mut tasks = vec![world.reader(&mut rng)];
            for value in 10..12 {
                let (cache, turns) = (world.cache.clone(), Turns::up_to(4, &mut rng));
                tasks.push(tokio::spawn(async move {
                    turns.give_way().await;
                    let _ = cache.set(1, value).await.unwrap();
                }));
            }
            for task in tasks {
                // A reader may wait for the lease of one that went away.
                turn_until(&world.clock, ms(1), task).await;
            }
            settle(&world.larder).await;
            let mut kept = vec![world.cache.get_in_memory(&1).as_deref().copied()];
            for store in &world.stores {
                let other = another_process("t", &world.clock, store);
                let other: Numbers = other.cache("c").build().unwrap();
                kept.push(other.get(&1).await.unwrap().as_deref().copied());
            }
            let lowest = kept.last().copied().flatten();
            assert!(
                lowest.is_some(),
                "{}: the lowest tier keeps a value",
                world.here
            );
            kept.retain(|kept| kept.is_some() && *kept != lowest);
            assert!(kept.is_empty(), "{}: {kept:?} above {lowest:?}", world.here);
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_many_threads_no_read_falls_behind_an_invalidation() {
    let (larder, _clock) = larder_testkit::larder("t");
    let cache: Numbers = larder.cache("c").capacity(100).in_memory().unwrap();
    let (version, floor) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(1)));
    let over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (cache, version, floor) = (cache.clone(), version.clone(), floor.clone());
            let over = over.clone();
            tokio::spawn(async move {
                while !over.load(SeqCst) {
                    let least = floor.load(SeqCst);
                    let source = version.clone();
                    let load = |_| async move { Ok::<_, io::Error>(source.load(SeqCst)) };
                    let value = cache.get_or_load(&1, load).await.unwrap();
                    assert!(*value >= least, "read {value}, but {least} is known");
                }
            })
        })
        .collect();
    for round in 0..50_000 {
        let new = version.fetch_add(1, SeqCst) + 1;
        cache.invalidate_in_memory(&1);
        floor.store(new, SeqCst);
        if round % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
    over.store(true, SeqCst);
    for reader in readers {
        soon(reader).await.unwrap();
    }
}
