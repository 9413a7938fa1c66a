//! How often a sampler finds that the cache is wrong, and for how long.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use common::{ms, secs, soon};
use larder::{Cache, ErrorKind, Larder, Loaded, Sampler, SamplerBuilder, SamplerStats};
use larder_testkit::{Gate, LoadCounter, ManualClock, larder};

type Numbers = Cache<u64, u64>;

/// A database with one column, which counts how often it is asked and can be held up.
#[derive(Clone)]
struct Database {
    rows: Arc<Mutex<HashMap<u64, u64>>>,
    asked: LoadCounter,
    gate: Gate,
}

impl Database {
    fn new() -> Self {
        let gate = Gate::new();
        gate.open();
        Self {
            rows: Arc::default(),
            asked: LoadCounter::new(),
            gate,
        }
    }

    fn put(&self, key: u64, value: u64) {
        self.rows.lock().unwrap().insert(key, value);
    }

    async fn row(self, key: u64) -> io::Result<Option<u64>> {
        let _asked = self.asked.begin();
        let row = self.rows.lock().unwrap().get(&key).copied();
        self.gate.wait().await;
        match row {
            Some(666) => Err(io::Error::other("no route")),
            Some(667) => panic!("a source that panics"),
            row => Ok(row),
        }
    }

    fn sampled(&self, cache: &Numbers) -> SamplerBuilder<u64, u64> {
        let database = self.clone();
        cache.sampler(move |key| database.clone().row(key))
    }
}

/// A larder, its clock, a cache that holds 1 under the key 1, and a database that agrees.
fn agreeing() -> (Larder, Arc<ManualClock>, Numbers, Database) {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1h")
        .negative_ttl("1h")
        .build()
        .unwrap();
    let database = Database::new();
    cache.set_in_memory(1, 1).unwrap();
    database.put(1, 1);
    (larder, clock, cache, database)
}

/// Waits until the sampler sleeps again. Nothing else sleeps on the clock of these tests.
async fn rest(clock: &ManualClock) {
    soon(clock.sleeping(1)).await;
}

/// Turns the clock, after a read of the cache, and waits until the sampler has done its work.
async fn turn(clock: &ManualClock, cache: &Numbers, by: std::time::Duration) {
    rest(clock).await;
    let _read = cache.get_in_memory(&1);
    clock.advance(by);
    rest(clock).await;
}

fn after(stats: SamplerStats) -> [u64; 4] {
    let SamplerStats {
        inconsistent,
        after_1s,
        after_5s,
        after_60s,
        ..
    } = stats;
    [inconsistent, after_1s, after_5s, after_60s]
}

#[tokio::test]
async fn entries_that_agree_with_their_source_are_consistent() {
    let (_larder, clock, cache, database) = agreeing();
    let sampler = database.sampled(&cache).start().unwrap();
    for _ in 0..5 {
        turn(&clock, &cache, secs(1)).await;
    }
    let stats = sampler.stats();
    assert_eq!((stats.sampled, stats.followed), (5, 0));
    assert_eq!((stats.rate(), stats.lasting_rate()), (Some(0.0), Some(0.0)));
    assert_eq!(sampler.cache(), "c");
}

#[tokio::test]
async fn an_entry_that_stays_wrong_is_counted_at_once_and_after_1_5_and_60_seconds() {
    let (_larder, clock, cache, database) = agreeing();
    database.put(1, 2); // and nobody invalidates
    let sampler = database.sampled(&cache).every("2m").start().unwrap();
    turn(&clock, &cache, secs(120)).await;
    assert_eq!(after(sampler.stats()), [1, 0, 0, 0]);
    turn(&clock, &cache, ms(999)).await;
    assert_eq!(after(sampler.stats()), [1, 0, 0, 0]);
    turn(&clock, &cache, ms(1)).await;
    assert_eq!(after(sampler.stats()), [1, 1, 0, 0]);
    turn(&clock, &cache, secs(4)).await;
    assert_eq!(after(sampler.stats()), [1, 1, 1, 0]);
    turn(&clock, &cache, secs(54)).await;
    assert_eq!(sampler.stats().followed, 1);
    turn(&clock, &cache, secs(1)).await;
    let stats = sampler.stats();
    assert_eq!(after(stats), [1, 1, 1, 1]);
    assert_eq!(stats.followed, 0);
    assert_eq!((stats.rate(), stats.lasting_rate()), (Some(1.0), Some(1.0)));
}

#[tokio::test]
async fn every_draw_is_a_sample_of_its_own_so_that_one_wrong_entry_of_two_is_half_of_them() {
    let (_larder, clock, cache, database) = agreeing();
    cache.set_in_memory(2, 2).unwrap();
    database.put(2, 3);
    let sampler = database.sampled(&cache).start().unwrap();
    for _ in 0..1_000 {
        turn(&clock, &cache, secs(1)).await;
    }
    let stats = sampler.stats();
    assert_eq!((stats.sampled, stats.lost), (1_000, 0));
    // Eight standard deviations to either side.
    assert!((0.37..0.63).contains(&stats.rate().unwrap()), "{stats:?}");
    assert!(stats.lasting_rate().unwrap() > 0.3, "{stats:?}");
    assert_eq!(stats.after_60s + stats.followed, stats.inconsistent);
}

#[tokio::test]
async fn an_entry_that_is_mended_before_the_next_look_lasts_no_longer() {
    for mend in [
        |cache: &Numbers, _: &Database| cache.invalidate_in_memory(&1),
        |cache: &Numbers, _: &Database| cache.set_in_memory(1, 2).unwrap(),
        // Another value that is wrong too is another mistake, and one to be drawn anew.
        |cache: &Numbers, _: &Database| cache.set_in_memory(1, 3).unwrap(),
        |_: &Numbers, database: &Database| database.put(1, 1),
    ] {
        let (_larder, clock, cache, database) = agreeing();
        database.put(1, 2);
        let sampler = database.sampled(&cache).every("10s").start().unwrap();
        turn(&clock, &cache, secs(10)).await;
        turn(&clock, &cache, secs(1)).await;
        assert_eq!(after(sampler.stats()), [1, 1, 0, 0]);
        mend(&cache, &database);
        turn(&clock, &cache, secs(4)).await;
        assert_eq!(after(sampler.stats()), [1, 1, 0, 0]);
        assert_eq!(sampler.stats().followed, 0);
    }
}

#[tokio::test]
async fn an_entry_that_is_filled_again_with_the_same_wrong_value_stays_wrong() {
    let (_larder, clock, cache, database) = agreeing();
    database.put(1, 2);
    let sampler = database.sampled(&cache).every("10s").start().unwrap();
    turn(&clock, &cache, secs(10)).await;
    cache.invalidate_in_memory(&1);
    cache.set_in_memory(1, 1).unwrap();
    turn(&clock, &cache, secs(1)).await;
    assert_eq!(after(sampler.stats()), [1, 1, 0, 0]);
}

#[tokio::test]
async fn an_entry_that_changes_while_the_source_is_asked_is_no_mistake() {
    for change in [
        |cache: &Numbers| cache.invalidate_in_memory(&1),
        |cache: &Numbers| cache.set_in_memory(1, 2).unwrap(),
    ] {
        let (_larder, clock, cache, database) = agreeing();
        let sampler = database.sampled(&cache).start().unwrap();
        database.put(1, 2);
        database.gate.close();
        rest(&clock).await;
        let _read = cache.get_in_memory(&1);
        let arrivals = database.gate.arrivals();
        clock.advance(secs(1));
        soon(database.gate.arrived(arrivals + 1)).await;
        change(&cache);
        database.gate.open();
        soon(async {
            while sampler.stats() == SamplerStats::default() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let stats = sampler.stats();
        assert_eq!((stats.sampled, stats.inconsistent), (0, 0));
        assert_eq!((stats.undecided, stats.followed), (1, 0));
    }
}

#[tokio::test]
async fn there_being_no_such_value_is_a_value_to_compare() {
    let (_larder, clock, cache, database) = agreeing();
    cache.set_in_memory(1, Loaded::absent()).unwrap();
    let sampler = database.sampled(&cache).start().unwrap();
    turn(&clock, &cache, secs(1)).await;
    assert_eq!(after(sampler.stats()), [1, 0, 0, 0]);
    database.rows.lock().unwrap().clear();
    turn(&clock, &cache, secs(1)).await;
    let stats = sampler.stats();
    assert_eq!((stats.sampled, stats.inconsistent), (2, 1));
    assert_eq!((stats.after_1s, stats.followed), (0, 0));
}

#[tokio::test]
async fn versions_are_compared_where_both_have_one() {
    let (_larder, clock, cache, _) = agreeing();
    cache.set_in_memory(1, Loaded::value(1).version(5)).unwrap();
    let version = Arc::new(Mutex::new(5));
    let now = Arc::clone(&version);
    let source = move |_| {
        let version = *now.lock().unwrap();
        async move { Ok::<_, io::Error>(Loaded::value(7).version(version)) }
    };
    let sampler = cache
        .sampler_by(|_, _| true, source)
        .every("1s")
        .start()
        .unwrap();
    turn(&clock, &cache, secs(1)).await;
    assert_eq!(
        (sampler.stats().sampled, sampler.stats().inconsistent),
        (1, 0)
    );
    *version.lock().unwrap() = 4; // a replica that lags behind what the cache has seen
    turn(&clock, &cache, secs(1)).await;
    assert_eq!((sampler.stats().sampled, sampler.stats().undecided), (1, 1));
    *version.lock().unwrap() = 6;
    turn(&clock, &cache, secs(1)).await;
    assert_eq!(
        (sampler.stats().sampled, sampler.stats().inconsistent),
        (2, 1)
    );
}

#[tokio::test]
async fn a_source_that_fails_panics_or_hangs_decides_nothing_and_ends_nothing() {
    let (_larder, clock, cache, database) = agreeing();
    let sampler = database.sampled(&cache).deadline("3s").start().unwrap();
    for (failed, value) in [(1, 666), (2, 667)] {
        database.put(1, value);
        turn(&clock, &cache, secs(1)).await;
        assert_eq!(sampler.stats().failed, failed);
    }
    database.gate.close();
    let arrivals = database.gate.arrivals();
    turn(&clock, &cache, secs(1)).await; // what sleeps now is the deadline
    soon(database.gate.arrived(arrivals + 1)).await;
    clock.advance(secs(3));
    soon(async {
        while sampler.stats().failed < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    database.gate.open();
    database.put(1, 1);
    turn(&clock, &cache, secs(1)).await;
    assert_eq!((sampler.stats().sampled, sampler.stats().failed), (1, 3));
}

#[tokio::test]
async fn an_entry_whose_source_fails_later_is_lost_and_not_called_mended() {
    let (_larder, clock, cache, database) = agreeing();
    database.put(1, 2);
    let sampler = database.sampled(&cache).every("10s").start().unwrap();
    turn(&clock, &cache, secs(10)).await;
    database.put(1, 666);
    turn(&clock, &cache, secs(1)).await;
    let stats = sampler.stats();
    assert_eq!(after(stats), [1, 0, 0, 0]);
    assert_eq!((stats.failed, stats.lost, stats.followed), (1, 1, 0));
}

#[tokio::test]
async fn a_comparison_that_panics_counts_as_no_answer() {
    let (_larder, clock, cache, _) = agreeing();
    let same = |_: &u64, _: &u64| panic!("a comparison that panics");
    let source = |_| async { Ok::<_, io::Error>(2) };
    let sampler = cache.sampler_by(same, source).start().unwrap();
    for failed in 1..3 {
        turn(&clock, &cache, secs(1)).await;
        assert_eq!(sampler.stats().failed, failed);
    }
}

#[tokio::test]
async fn every_entry_is_drawn_sooner_or_later_and_one_is_asked_for_at_a_time() {
    let (_larder, clock, cache, database) = agreeing();
    for key in 1..=20 {
        cache.set_in_memory(key, key).unwrap();
        database.put(key, key);
    }
    let seen = Arc::<Mutex<HashMap<u64, u32>>>::default();
    let (log, asked) = (Arc::clone(&seen), database.clone());
    let source = move |key| {
        *log.lock().unwrap().entry(key).or_default() += 1;
        asked.clone().row(key)
    };
    let sampler = cache.sampler(source).every("1s").start().unwrap();
    // The chance that one of 20 is missing after 1,000 draws is below one in 10^20.
    for _ in 0..1_000 {
        turn(&clock, &cache, secs(1)).await;
    }
    assert_eq!(seen.lock().unwrap().len(), 20);
    assert_eq!(database.asked.max_concurrency(), 1);
    assert_eq!(sampler.stats().sampled, 1_000);
}

#[tokio::test]
async fn no_more_than_64_entries_are_followed() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").ttl("1h").build().unwrap();
    for key in 0..1_000 {
        cache.set_in_memory(key, 1).unwrap();
    }
    let source = |_| async { Ok::<_, io::Error>(2) };
    let sampler = cache.sampler(source).every("1ms").start().unwrap();
    for _ in 0..200 {
        turn(&clock, &cache, ms(1)).await;
    }
    let stats = sampler.stats();
    assert_eq!(stats.followed, 64);
    assert_eq!(stats.lost, stats.inconsistent - 64);
    assert!(stats.lost > 0);
}

#[tokio::test]
async fn a_cache_that_nobody_reads_leaves_its_source_alone() {
    let (_larder, clock, cache, database) = agreeing();
    let sampler = database.sampled(&cache).start().unwrap();
    for _ in 0..5 {
        rest(&clock).await;
        clock.advance(secs(1));
        rest(&clock).await;
    }
    assert_eq!(database.asked.starts(), 0);
    turn(&clock, &cache, secs(1)).await;
    assert_eq!(sampler.stats().sampled, 1);
}

#[tokio::test]
async fn sampling_counts_as_no_read_and_asks_for_nothing_that_is_not_fresh() {
    let (_larder, clock, cache, database) = agreeing();
    let sampler = database.sampled(&cache).start().unwrap();
    turn(&clock, &cache, secs(1)).await;
    assert_eq!((sampler.stats().sampled, cache.stats().reads()), (1, 1));
    cache
        .set_in_memory(1, Loaded::value(1).ttl("1s").grace("1h"))
        .unwrap();
    turn(&clock, &cache, secs(1)).await;
    assert_eq!(sampler.stats().sampled, 1, "it is stale");
}

#[tokio::test]
async fn a_sampler_ends_when_it_is_dropped_and_so_does_what_it_has_asked() {
    let (_larder, clock, cache, database) = agreeing();
    let sampler = database.sampled(&cache).start().unwrap();
    rest(&clock).await;
    drop(sampler);
    soon(async {
        while clock.sleepers() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    database.gate.close();
    let sampler = database.sampled(&cache).start().unwrap();
    let arrivals = database.gate.arrivals();
    turn(&clock, &cache, secs(1)).await;
    soon(database.gate.arrived(arrivals + 1)).await;
    drop(sampler);
    soon(database.asked.finished(1)).await;
}

#[tokio::test]
async fn a_sampler_keeps_neither_cache_nor_larder_and_ends_with_them() {
    let (larder, clock, cache, database) = agreeing();
    let held = Arc::new(());
    let (kept, asked) = (Arc::clone(&held), database.clone());
    let source = move |key| {
        let _kept = &kept;
        asked.clone().row(key)
    };
    let sampler: Sampler = cache.sampler(source).start().unwrap();
    rest(&clock).await;
    drop((larder, cache));
    soon(async {
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(sampler.stats(), SamplerStats::default());
}

#[tokio::test]
async fn a_sampler_ends_at_shutdown_does_not_hold_it_up_and_cannot_begin_after_it() {
    let (larder, clock, cache, database) = agreeing();
    let sampler = database.sampled(&cache).start().unwrap();
    rest(&clock).await;
    soon(larder.settle()).await;
    let report = soon(larder.shutdown(secs(1))).await;
    assert_eq!(report.abandoned, 0);
    soon(async {
        while clock.sleepers() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let closed = database.sampled(&cache).start().unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::Closed);
    assert_eq!(sampler.stats().sampled, 0);
}

#[test]
fn times_that_make_no_sense_are_refused_and_so_is_a_start_without_a_runtime() {
    let (_larder, _clock, cache, database) = agreeing();
    for (builder, reason) in [
        (
            database.sampled(&cache).every("0s"),
            "every: it has to be 1 ms",
        ),
        (
            database.sampled(&cache).deadline("soon"),
            "deadline: `soon`",
        ),
        (database.sampled(&cache), "no tokio runtime"),
    ] {
        let error = builder.start().unwrap_err();
        assert!(error.is_config(), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}
