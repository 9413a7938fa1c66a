//! Popular keys are loaded anew before they expire; nothing else is.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{another_process, ms, secs, soon, until, with_tier};
use larder::{Cache, ErrorKind, Larder, Load, LoadingCache, RefreshAhead};
use larder_testkit::{Gate, LoadCounter, ManualClock, larder, seeds, settle};

/// A source that notes what it is asked for, in order, and may be told to fail.
#[derive(Clone, Default)]
struct Source {
    asked: Arc<Mutex<Vec<u64>>>,
    broken: Arc<Mutex<bool>>,
}

impl Source {
    fn bound_to(&self, cache: &Cache<u64, u64>) -> LoadingCache<u64, u64> {
        let source = self.clone();
        cache.loading_with(move |load: Load<u64, u64>| {
            source.asked.lock().unwrap().push(*load.key());
            let broken = *source.broken.lock().unwrap();
            async move {
                match broken {
                    true => Err(io::Error::other("no route")),
                    false => Ok(*load.key()),
                }
            }
        })
    }

    fn asked(&self) -> Vec<u64> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn sorted(&self) -> Vec<u64> {
        let mut asked = self.asked();
        asked.sort_unstable();
        asked
    }
}

/// Notes every read, and loads one key at a time.
fn plain() -> RefreshAhead {
    RefreshAhead {
        concurrency: 1,
        sample: 1,
        ..RefreshAhead::default()
    }
}

fn hundred_seconds(larder: &Larder) -> Cache<u64, u64> {
    larder
        .cache("c")
        .ttl("100s")
        .memory_ttl("100s")
        .build()
        .unwrap()
}

/// Turns the clock once the task sleeps, and waits until it sleeps again.
async fn tick(clock: &ManualClock, by: Duration) {
    soon(clock.sleeping(1)).await;
    clock.advance(by);
    soon(clock.sleeping(1)).await;
}

async fn read(loading: &LoadingCache<u64, u64>, key: u64, times: usize) {
    for _ in 0..times {
        assert_eq!(loading.get(&key).await.unwrap().as_deref(), Some(&key));
    }
}

#[tokio::test]
async fn popular_keys_are_refreshed_in_time_highest_first_and_the_others_die() {
    let (larder, clock) = larder("t");
    let cache = hundred_seconds(&larder);
    let source = Source::default();
    let loading = source.bound_to(&cache);
    let options = RefreshAhead { keys: 3, ..plain() };
    let refreshing = loading.refresh_ahead(options).unwrap();
    for (key, times) in [(1, 4), (2, 20), (3, 9), (4, 1), (5, 1)] {
        read(&loading, key, times).await;
    }
    source.asked();
    tick(&clock, secs(79)).await;
    assert!(source.asked().is_empty(), "nothing is due");
    read(&loading, 1, 1).await;
    tick(&clock, secs(1)).await;
    until("they are refreshed", || refreshing.stats().refreshes == 3).await;
    read(&loading, 1, 1).await;
    tick(&clock, secs(1)).await;
    assert_eq!(source.asked(), [2, 3, 1]);
    tick(&clock, secs(20)).await;
    for key in 1..=3 {
        read(&loading, key, 1).await;
    }
    assert!(source.asked().is_empty(), "nobody has to wait");
    assert_eq!(cache.get_in_memory(&4), None);
    let stats = refreshing.stats();
    assert_eq!((stats.refreshes, stats.failed, stats.useful), (3, 0, 3));
}

#[tokio::test]
async fn no_more_begin_in_a_second_than_may() {
    let (larder, clock) = larder("t");
    let source = Source::default();
    let loading = source.bound_to(&hundred_seconds(&larder));
    let options = RefreshAhead {
        per_second: 2,
        ..plain()
    };
    let _refreshing = loading.refresh_ahead(options).unwrap();
    for key in 1..=10 {
        read(&loading, key, 20 - key as usize).await;
    }
    source.asked();
    tick(&clock, secs(85)).await;
    for first in [1, 3, 5, 7] {
        until("two more", || source.asked.lock().unwrap().len() >= 2).await;
        assert_eq!(source.asked(), [first, first + 1]);
        read(&loading, 1, 1).await;
        tick(&clock, secs(1)).await;
    }
}

#[tokio::test]
async fn no_more_run_at_once_than_may() {
    let (larder, clock) = larder("t");
    let cache = hundred_seconds(&larder);
    let (gate, loads) = (Gate::new(), LoadCounter::new());
    gate.open();
    let loading = cache.loading_with({
        let (gate, loads) = (gate.clone(), loads.clone());
        move |load: Load<u64, u64>| {
            let (gate, loads) = (gate.clone(), loads.clone());
            async move {
                let _load = loads.begin();
                gate.wait().await;
                Ok::<_, io::Error>(*load.key())
            }
        }
    });
    let options = RefreshAhead {
        concurrency: 3,
        ..plain()
    };
    let refreshing = loading.refresh_ahead(options).unwrap();
    for key in 1..=10 {
        read(&loading, key, 2).await;
    }
    gate.close();
    soon(clock.sleeping(1)).await;
    clock.advance(secs(85));
    soon(gate.arrived(13)).await;
    assert_eq!(loads.running(), 3);
    gate.open();
    soon(loads.finished(20)).await;
    tick(&clock, secs(1)).await;
    assert_eq!(loads.max_concurrency(), 3);
    assert_eq!(refreshing.stats().refreshes, 10);
}

#[tokio::test]
async fn what_nobody_reads_any_more_costs_one_refresh_which_is_counted_as_wasted() {
    let (larder, clock) = larder("t");
    let source = Source::default();
    let loading = source.bound_to(&hundred_seconds(&larder));
    let refreshing = loading.refresh_ahead(plain()).unwrap();
    read(&loading, 1, 50).await;
    read(&loading, 2, 50).await;
    source.asked();
    for _ in 0..60 {
        // Somebody reads, but not the second key.
        read(&loading, 1, 1).await;
        tick(&clock, secs(10)).await;
    }
    let asked = source.asked();
    let of = |key| asked.iter().filter(|asked| **asked == key).count();
    assert_eq!((of(1), of(2)), (7, 1));
    let stats = refreshing.stats();
    assert_eq!((stats.refreshes, stats.wasted, stats.useful), (8, 1, 7));
    assert_eq!(stats.wasted_share(), Some(0.125));
}

#[tokio::test]
async fn while_nobody_reads_nothing_is_refreshed_and_nothing_runs() {
    let (larder, clock) = larder("t");
    let source = Source::default();
    let loading = source.bound_to(&hundred_seconds(&larder));
    let refreshing = loading.refresh_ahead(plain()).unwrap();
    read(&loading, 1, 5).await;
    source.asked();
    tick(&clock, secs(1)).await;
    soon(clock.sleeping(1)).await;
    clock.advance(secs(1));
    until("it rests", || clock.sleepers() == 0).await;
    for _ in 0..10 {
        clock.advance(secs(9));
        tokio::task::yield_now().await;
    }
    assert_eq!((source.asked(), refreshing.stats().refreshes), (vec![], 0));
    read(&loading, 1, 1).await;
    tick(&clock, secs(1)).await;
    until("it is awake again", || {
        refreshing.stats().refreshes == 1 || {
            clock.advance(ms(100));
            false
        }
    })
    .await;
}

#[tokio::test]
async fn of_two_processes_on_one_tier_one_loads() {
    let (first, clock, tier) = with_tier("t");
    let second = another_process("t", &clock, &tier);
    let source = Source::default();
    let loadings = [&first, &second].map(|larder| source.bound_to(&hundred_seconds(larder)));
    let running: Vec<_> = loadings
        .iter()
        .map(|loading| loading.refresh_ahead(plain()).unwrap())
        .collect();
    for loading in &loadings {
        read(loading, 1, 10).await;
    }
    assert_eq!(source.asked(), [1]);
    for _ in 0..19 {
        for loading in &loadings {
            read(loading, 1, 1).await;
        }
        soon(clock.sleeping(2)).await;
        clock.advance(secs(10));
        soon(clock.sleeping(2)).await;
    }
    assert_eq!(source.asked(), [1, 1]);
    drop(running);
}

#[tokio::test]
async fn dropping_it_ends_it_and_there_is_one_at_a_time() {
    let (larder, clock) = larder("t");
    let source = Source::default();
    let loading = source.bound_to(&hundred_seconds(&larder));
    let refreshing = loading.refresh_ahead(plain()).unwrap();
    let twice = loading.refresh_ahead(plain()).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Config);
    read(&loading, 1, 5).await;
    soon(clock.sleeping(1)).await;
    drop(refreshing);
    until("it is over", || clock.sleepers() == 0).await;
    source.asked();
    clock.advance(secs(90));
    read(&loading, 1, 1).await;
    assert!(source.asked().is_empty());
    let again = loading.refresh_ahead(plain()).unwrap();
    read(&loading, 1, 1).await;
    soon(clock.sleeping(1)).await;
    clock.advance(secs(1));
    until("it is refreshed", || {
        again.stats().refreshes == 1 || {
            clock.advance(ms(100));
            false
        }
    })
    .await;
    let _ = larder.shutdown(secs(1)).await;
    assert_eq!(
        loading.refresh_ahead(plain()).unwrap_err().kind(),
        ErrorKind::Closed
    );
}

#[tokio::test]
async fn what_reads_prolong_is_refreshed_before_its_greatest_age() {
    let (larder, clock) = larder("t");
    let builder = larder.cache("c").ttl("100s").sliding("1000s");
    let source = Source::default();
    let loading = source.bound_to(&builder.memory_ttl("1000s").build().unwrap());
    let _refreshing = loading.refresh_ahead(plain()).unwrap();
    for _ in 0..79 {
        read(&loading, 1, 1).await;
        tick(&clock, secs(10)).await;
    }
    settle(&larder).await;
    assert_eq!(source.asked(), [1]);
    read(&loading, 1, 1).await;
    tick(&clock, secs(10)).await;
    until("it is refreshed", || source.asked() == [1]).await;
}

#[tokio::test]
async fn who_drops_it_may_begin_anew_at_once() {
    let (larder, _clock) = larder("t");
    let loading = Source::default().bound_to(&hundred_seconds(&larder));
    drop(loading.refresh_ahead(plain()).unwrap());
    let again = loading.refresh_ahead(plain()).unwrap();
    tokio::task::yield_now().await;
    let twice = loading.refresh_ahead(plain()).unwrap_err();
    assert_eq!(
        twice.kind(),
        ErrorKind::Config,
        "the first one took nothing along"
    );
    drop(again);
}

#[tokio::test]
async fn who_reads_right_behind_a_refresh_has_used_it() {
    let (larder, clock) = larder("t");
    let source = Source::default();
    let loading = source.bound_to(&hundred_seconds(&larder));
    let refreshing = loading.refresh_ahead(plain()).unwrap();
    read(&loading, 1, 5).await;
    tick(&clock, secs(80)).await;
    until("it is loaded", || source.asked.lock().unwrap().len() == 2).await;
    settle(&larder).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    // Before the next tick, and then no more.
    read(&loading, 1, 1).await;
    soon(clock.sleeping(1)).await;
    clock.advance(secs(120));
    until("it rests", || clock.sleepers() == 0).await;
    let stats = refreshing.stats();
    assert_eq!((stats.useful, stats.wasted), (1, 0));
}

#[tokio::test]
async fn a_source_of_popular_keys_may_be_supplied() {
    let (larder, clock) = larder("t");
    let source = Source::default();
    let loading = source.bound_to(&hundred_seconds(&larder));
    let options = RefreshAhead { keys: 3, ..plain() };
    let supply = || async { vec![9, 8, 7, 6] };
    let _refreshing = loading.refresh_ahead_of(options, supply).unwrap();
    read(&loading, 8, 1).await;
    source.asked();
    tick(&clock, secs(1)).await;
    read(&loading, 8, 1).await;
    tick(&clock, secs(1)).await;
    assert_eq!(source.asked(), [9, 7], "what is not there is loaded");
    read(&loading, 9, 1).await;
    tick(&clock, secs(80)).await;
    read(&loading, 7, 1).await;
    tick(&clock, secs(1)).await;
    until("all are", || source.asked.lock().unwrap().len() == 3).await;
    assert_eq!(source.sorted(), [7, 8, 9]);
}

#[tokio::test]
async fn a_supply_that_panics_or_hangs_is_asked_again() {
    let (larder, clock) = larder("t");
    let source = Source::default();
    let cache: Cache<u64, u64> = larder
        .cache("c")
        .ttl("100s")
        .load_deadline("5s")
        .build()
        .unwrap();
    let loading = source.bound_to(&cache);
    let asked = Arc::new(Mutex::new(0));
    let supply = {
        let asked = Arc::clone(&asked);
        move || {
            let mut asked = asked.lock().unwrap();
            *asked += 1;
            let now = *asked;
            drop(asked);
            assert!(now != 1, "a slip before the first await");
            async move {
                match now {
                    2 => panic!("a slip behind it"),
                    3 => std::future::pending().await,
                    _ => vec![9],
                }
            }
        }
    };
    let refreshing = loading.refresh_ahead_of(plain(), supply).unwrap();
    for time in 1..=3 {
        read(&loading, 8, 1).await;
        tick(&clock, secs(1)).await;
        until("it is asked", || *asked.lock().unwrap() == time).await;
        assert_eq!(refreshing.stats().failed, time.min(2));
    }
    tick(&clock, secs(5)).await;
    assert_eq!(refreshing.stats().failed, 3, "it took too long");
    read(&loading, 8, 1).await;
    tick(&clock, secs(1)).await;
    until("a key is loaded", || {
        source.asked.lock().unwrap().contains(&9)
    })
    .await;
}

#[tokio::test]
async fn a_cache_that_notes_few_reads_takes_none_from_another() {
    let (larder, clock) = larder("t");
    let build = |name: &str| -> Cache<u64, u64> {
        larder
            .cache(name)
            .ttl("100s")
            .memory_ttl("100s")
            .build()
            .unwrap()
    };
    let (seldom, often) = (build("seldom"), build("often"));
    let source = Source::default();
    let (seldom, often) = (Source::default().bound_to(&seldom), source.bound_to(&often));
    let few = RefreshAhead {
        sample: 1 << 20,
        ..plain()
    };
    let _seldom = seldom.refresh_ahead(few).unwrap();
    let _often = often.refresh_ahead(plain()).unwrap();
    read(&seldom, 1, 1_000).await;
    read(&often, 2, 1).await;
    soon(clock.sleeping(2)).await;
    clock.advance(secs(81));
    soon(clock.sleeping(1)).await;
    until("it is refreshed", || {
        *source.asked.lock().unwrap() == [2, 2]
    })
    .await;
}

#[tokio::test]
async fn a_refresh_that_fails_leaves_the_entry_and_is_tried_again_after_a_pause() {
    let (larder, clock) = larder("t");
    let cache: Cache<u64, u64> = larder
        .cache("c")
        .ttl("100s")
        .error_throttle("5s")
        .build()
        .unwrap();
    let source = Source::default();
    let loading = source.bound_to(&cache);
    let refreshing = loading.refresh_ahead(plain()).unwrap();
    read(&loading, 1, 5).await;
    *source.broken.lock().unwrap() = true;
    tick(&clock, secs(85)).await;
    for _ in 0..9 {
        read(&loading, 1, 1).await;
        tick(&clock, secs(1)).await;
    }
    let stats = refreshing.stats();
    assert_eq!((stats.refreshes, stats.failed), (0, 2), "at 85 and 90 s");
    assert_eq!(cache.stats().failed, 0);
}

#[tokio::test]
async fn entries_may_be_refreshed_at_a_fixed_age() {
    let (larder, clock) = larder("t");
    let source = Source::default();
    let cache: Cache<u64, u64> = larder.cache("c").no_ttl().build().unwrap();
    let loading = source.bound_to(&cache);
    let options = RefreshAhead {
        every: Some(secs(30)),
        ..plain()
    };
    let _refreshing = loading.refresh_ahead(options).unwrap();
    read(&loading, 1, 1).await;
    source.asked();
    for _ in 0..12 {
        tick(&clock, secs(10)).await;
        read(&loading, 1, 1).await;
    }
    assert_eq!(source.asked(), [1, 1, 1, 1]);
}

#[tokio::test]
async fn options_that_make_no_sense_are_refused() {
    let (larder, _clock) = larder("t");
    let loading = Source::default().bound_to(&hundred_seconds(&larder));
    let wrong: [fn(&mut RefreshAhead); 9] = [
        |o| o.keys = 0,
        |o| o.keys = 10_001,
        |o| o.after = 1.1,
        |o| o.after = f64::NAN,
        |o| o.concurrency = 0,
        |o| o.per_second = 0,
        |o| o.tick = Duration::ZERO,
        |o| o.half_life = Duration::ZERO,
        |o| o.sample = 0,
    ];
    for (at, wrong) in wrong.iter().enumerate() {
        let mut options = plain();
        wrong(&mut options);
        let error = loading.refresh_ahead(options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{at}");
    }
    let _right = loading.refresh_ahead(plain()).unwrap();
}

/// Reads 10,000 keys by a steep law, second after second.
#[tokio::test]
async fn the_head_of_ten_thousand_keys_is_never_loaded_by_a_reader_again() {
    const KEYS: usize = 10_000;
    for seed in seeds(1) {
        let mut rng = seed.rng();
        let (larder, clock) = larder("t");
        let cache: Cache<u64, u64> = larder.cache("c").ttl("20s").jitter(0.2).build().unwrap();
        let source = Source::default();
        let loading = source.bound_to(&cache);
        let options = RefreshAhead {
            keys: 200,
            sample: 4,
            ..RefreshAhead::default()
        };
        let refreshing = loading.refresh_ahead(options).unwrap();
        let mut late_misses = HashMap::new();
        for second in 0..120 {
            for _ in 0..500 {
                // The square of a uniform draw would be too even; the sixth power is steep.
                let key = (rng.f64().powi(6) * KEYS as f64) as u64;
                let misses = cache.stats().misses;
                read(&loading, key, 1).await;
                if second > 30 && cache.stats().misses > misses {
                    *late_misses.entry(key).or_insert(0) += 1;
                }
            }
            tick(&clock, secs(1)).await;
        }
        let head: u32 = late_misses
            .iter()
            .filter(|(key, _)| **key < 20)
            .map(|(_, n)| n)
            .sum();
        let tail: u32 = late_misses.values().sum();
        assert!(head <= 2 && tail > 500, "{head} in the head, {tail} in all");
        let stats = refreshing.stats();
        assert!(stats.useful + stats.wasted <= stats.refreshes);
        assert!(stats.refreshes <= 120 * 100);
        assert!(stats.wasted_share() < Some(0.5), "{stats:?}");
    }
}
