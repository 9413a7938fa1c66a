//! What will probably be asked for next is loaded before it is, and it is measured whether that pays.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::io;
use std::sync::{Arc, Mutex};

use common::{secs, soon, until};
use larder::{
    BatchLoader, Cache, ErrorKind, Larder, Load, Loader, LoadingCache, Prefetch, Prefetching,
};
use larder_testkit::{Gate, larder, seeds, settle};

/// A source that notes what it is asked for, names a related key for round ones, stops at a gate,
/// and fails for negative keys.
#[derive(Clone)]
struct Source {
    asked: Arc<Mutex<Vec<i64>>>,
    gate: Gate,
}

impl Source {
    fn new() -> Self {
        let gate = Gate::new();
        gate.open();
        Self {
            asked: Arc::default(),
            gate,
        }
    }

    fn asked(&self) -> Vec<i64> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Loader<i64, i64> for Source {
    type Answer = i64;
    type Error = io::Error;

    async fn load(&self, load: Load<i64, i64>) -> io::Result<i64> {
        self.asked.lock().unwrap().push(*load.key());
        self.gate.wait().await;
        match *load.key() {
            key if key < 0 => Err(io::Error::other("no route")),
            key => Ok(key),
        }
    }

    fn related(&self, key: &i64, value: &i64) -> Vec<i64> {
        assert_eq!(key, value);
        match key % 10 {
            0 => (key + 1..key + 4).collect(),
            1 => vec![key + 1_000],
            5 => vec![-key],
            _ => Vec::new(),
        }
    }
}

type Numbers = LoadingCache<i64, i64>;

fn bound(larder: &Larder) -> (Numbers, Source) {
    let cache: Cache<i64, i64> = larder.cache("c").ttl("100s").build().unwrap();
    let source = Source::new();
    (cache.loading(source.clone()), source)
}

async fn read(loading: &Numbers, keys: &[i64]) {
    for key in keys {
        assert_eq!(loading.get(key).await.unwrap().as_deref(), Some(key));
    }
}

/// Waits until so many were prefetched, in whatever way it ended.
async fn prefetched(prefetching: &Prefetching, count: u64) {
    until("they are prefetched", || {
        let stats = prefetching.stats();
        stats.prefetched + stats.failed + stats.dropped >= count
    })
    .await;
}

/// Lets what is wished for be seen to.
async fn quiet(larder: &Larder) {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    settle(larder).await;
}

#[tokio::test]
async fn who_drops_it_may_begin_anew_at_once() {
    let (larder, _clock) = larder("t");
    let (loading, _) = bound(&larder);
    drop(loading.prefetch(Prefetch::default()).unwrap());
    let again = loading.prefetch(Prefetch::default()).unwrap();
    tokio::task::yield_now().await;
    let twice = loading.prefetch(Prefetch::default()).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Config);
    drop(again);
}

#[tokio::test]
async fn keys_that_the_loader_names_are_loaded_and_no_further_ones() {
    let (larder, _clock) = larder("t");
    let (loading, source) = bound(&larder);
    let prefetching = loading.prefetch(Prefetch::default()).unwrap();
    read(&loading, &[10]).await;
    prefetched(&prefetching, 3).await;
    quiet(&larder).await;
    let mut asked = source.asked();
    asked.sort_unstable();
    assert_eq!(asked, [10, 11, 12, 13], "what is related to 11 is not");
    let misses = loading.cache().stats().misses;
    read(&loading, &[11, 12, 11]).await;
    assert!(source.asked().is_empty());
    assert_eq!(loading.cache().stats().misses, misses);
    let stats = prefetching.stats();
    assert_eq!((stats.prefetched, stats.useful, stats.wasted), (3, 2, 0));
    assert_eq!(stats.precision(), Some(1.0));

    let answers = loading.get_many(&[20]).await;
    assert!(answers[0].is_ok());
    prefetched(&prefetching, 6).await;
    assert_eq!(loading.cache().get_in_memory(&23).as_deref(), Some(&23));
}

#[tokio::test]
async fn what_follows_again_and_again_is_loaded_ahead() {
    let (larder, _clock) = larder("t");
    let (loading, source) = bound(&larder);
    let prefetching = loading.prefetch(Prefetch::default()).unwrap();
    for _ in 0..2 {
        read(&loading, &[2, 3, 4]).await;
        loading.cache().clear().await.unwrap().is_acked();
    }
    quiet(&larder).await;
    assert_eq!(source.asked(), [2, 3, 4, 2, 3, 4]);
    assert_eq!(prefetching.stats().prefetched, 0, "once is chance");
    read(&loading, &[2]).await;
    prefetched(&prefetching, 1).await;
    assert_eq!(source.asked(), [2, 3]);
    read(&loading, &[3]).await;
    prefetched(&prefetching, 2).await;
    read(&loading, &[4]).await;
    assert_eq!(source.asked(), [4]);
    assert_eq!(prefetching.stats().useful, 2);
}

#[tokio::test]
async fn what_is_in_memory_is_not_prefetched() {
    let (larder, _clock) = larder("t");
    let (loading, source) = bound(&larder);
    let prefetching = loading.prefetch(Prefetch::default()).unwrap();
    for _ in 0..100 {
        read(&loading, &[2, 3, 4]).await;
    }
    quiet(&larder).await;
    assert_eq!(source.asked(), [2, 3, 4]);
    let stats = prefetching.stats();
    assert_eq!((stats.prefetched, stats.dropped), (0, 0));
}

#[tokio::test]
async fn a_prefetch_is_wasted_that_expires_or_is_gone_when_it_is_asked_for() {
    let (larder, clock) = larder("t");
    let (loading, source) = bound(&larder);
    let prefetching = loading.prefetch(Prefetch::default()).unwrap();
    read(&loading, &[10]).await;
    prefetched(&prefetching, 3).await;
    read(&loading, &[11]).await;
    loading.cache().invalidate_in_memory(&12);
    read(&loading, &[12]).await;
    let stats = prefetching.stats();
    assert_eq!((stats.useful, stats.wasted), (1, 1));
    clock.advance(secs(101));
    source.asked();
    read(&loading, &[20]).await;
    prefetched(&prefetching, 6).await;
    let stats = prefetching.stats();
    assert_eq!((stats.useful, stats.wasted), (1, 2));
    assert_eq!(stats.precision(), Some(1.0 / 3.0));
}

#[tokio::test]
async fn no_more_run_at_once_and_begin_in_a_second_than_may() {
    let (larder, clock) = larder("t");
    let (loading, source) = bound(&larder);
    let options = Prefetch {
        concurrency: 2,
        per_second: 5,
        ..Prefetch::default()
    };
    let prefetching = loading.prefetch(options).unwrap();
    read(&loading, &[10]).await;
    prefetched(&prefetching, 3).await;
    let stats = prefetching.stats();
    assert_eq!((stats.prefetched, stats.dropped), (2, 1), "two at once");
    for key in [20, 30] {
        read(&loading, &[key]).await;
        quiet(&larder).await;
    }
    let stats = prefetching.stats();
    assert_eq!(
        (stats.prefetched, stats.dropped),
        (5, 4),
        "five in a second"
    );
    clock.advance(secs(1));
    read(&loading, &[40]).await;
    quiet(&larder).await;
    assert_eq!(prefetching.stats().prefetched, 7);
    source.asked();
}

#[tokio::test]
async fn a_reader_joins_the_prefetch_that_is_under_way() {
    let (larder, _clock) = larder("t");
    let (loading, source) = bound(&larder);
    let prefetching = loading.prefetch(Prefetch::default()).unwrap();
    read(&loading, &[10]).await;
    prefetched(&prefetching, 3).await;
    loading.cache().invalidate_in_memory(&11);
    loading.cache().invalidate_in_memory(&10);
    source.asked();
    source.gate.close();
    let arrivals = source.gate.arrivals();
    let first = tokio::spawn({
        let loading = loading.clone();
        async move { loading.get(&10).await.unwrap() }
    });
    source.gate.arrived(arrivals + 1).await;
    source.gate.open();
    assert_eq!(soon(first).await.unwrap().as_deref(), Some(&10));
    source.gate.close();
    let reader = tokio::spawn({
        let loading = loading.clone();
        async move { loading.get(&11).await.unwrap() }
    });
    until("it is loaded", || {
        source.asked.lock().unwrap().contains(&11)
    })
    .await;
    source.gate.open();
    assert_eq!(soon(reader).await.unwrap().as_deref(), Some(&11));
    quiet(&larder).await;
    assert_eq!(source.asked(), [10, 11]);
}

#[tokio::test]
async fn a_prefetch_that_fails_is_counted_and_harms_nobody() {
    let (larder, _clock) = larder("t");
    let (loading, _source) = bound(&larder);
    let prefetching = loading.prefetch(Prefetch::default()).unwrap();
    read(&loading, &[5]).await;
    prefetched(&prefetching, 1).await;
    let stats = prefetching.stats();
    assert_eq!((stats.prefetched, stats.failed), (0, 1));
    assert_eq!(loading.cache().stats().failed, 0);
}

/// Loads what it is asked for, and slips when asked what is related.
struct Slip;

impl Loader<i64, i64> for Slip {
    type Answer = i64;
    type Error = io::Error;

    async fn load(&self, load: Load<i64, i64>) -> io::Result<i64> {
        Ok(*load.key())
    }

    fn related(&self, key: &i64, _: &i64) -> Vec<i64> {
        panic!("nothing is related to {key}")
    }
}

impl BatchLoader<i64, i64> for Slip {
    type Answer = i64;
    type Error = io::Error;

    async fn load_many(&self, keys: Vec<i64>) -> io::Result<Vec<(i64, io::Result<i64>)>> {
        Ok(keys.into_iter().map(|key| (key, Ok(key))).collect())
    }

    fn related(&self, key: &i64, _: &i64) -> Vec<i64> {
        panic!("nothing is related to {key}")
    }
}

#[tokio::test]
async fn a_loader_that_panics_when_asked_what_is_related_has_loaded_all_the_same() {
    let (larder, _clock) = larder("t");
    let cache: Cache<i64, i64> = larder.cache("c").build().unwrap();
    let _prefetching = cache.loading(Slip).prefetch(Prefetch::default()).unwrap();
    read(&cache.loading(Slip), &[1]).await;
    let answers = cache.loading_in_batches(Slip).get_many(&[2, 3]).await;
    for (answer, key) in answers.into_iter().zip([2, 3]) {
        assert_eq!(answer.unwrap().as_deref(), Some(&key));
    }
}

#[tokio::test]
async fn what_one_task_asks_for_says_nothing_of_another() {
    let (larder, _clock) = larder("t");
    let (loading, _source) = bound(&larder);
    let prefetching = loading.prefetch(Prefetch::default()).unwrap();
    // The tasks take turns: 2 and 102, 3 and 103, and so on.
    for _ in 0..5 {
        let turns = Arc::new(tokio::sync::Barrier::new(2));
        let tasks = [2, 102].map(|first| {
            let (loading, turns) = (loading.clone(), Arc::clone(&turns));
            tokio::spawn(async move {
                for key in first..first + 3 {
                    turns.wait().await;
                    read(&loading, &[key]).await;
                }
            })
        });
        for task in tasks {
            soon(task).await.unwrap();
        }
    }
    quiet(&larder).await;
    let _ = loading.cache().clear().await.unwrap();
    let before = prefetching.stats().prefetched;
    let alone = loading.clone();
    soon(tokio::spawn(async move { read(&alone, &[2]).await }))
        .await
        .unwrap();
    quiet(&larder).await;
    assert_eq!(prefetching.stats().prefetched, before + 1);
    assert_eq!(loading.cache().get_in_memory(&3).as_deref(), Some(&3));
}

#[tokio::test]
async fn it_is_off_by_default_and_ends_with_its_handle() {
    let (larder, _clock) = larder("t");
    let (loading, source) = bound(&larder);
    read(&loading, &[10]).await;
    quiet(&larder).await;
    assert_eq!(source.asked(), [10]);
    let prefetching = loading.prefetch(Prefetch::default()).unwrap();
    let twice = loading.prefetch(Prefetch::default()).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Config);
    drop(prefetching);
    let again = || loading.prefetch(Prefetch::default());
    let mut renewed = None;
    until("the first one is over", || {
        renewed = again().ok();
        renewed.is_some()
    })
    .await;
    read(&loading, &[20]).await;
    prefetched(renewed.as_ref().unwrap(), 3).await;
    drop(renewed);
    quiet(&larder).await;
    source.asked();
    read(&loading, &[30]).await;
    quiet(&larder).await;
    assert_eq!(source.asked(), [30]);
    for wrong in [
        Prefetch {
            confidence: 1.5,
            ..Prefetch::default()
        },
        Prefetch {
            concurrency: 0,
            ..Prefetch::default()
        },
        Prefetch {
            per_second: 0,
            ..Prefetch::default()
        },
        Prefetch {
            model: 1_000_001,
            ..Prefetch::default()
        },
    ] {
        assert_eq!(
            loading.prefetch(wrong).unwrap_err().kind(),
            ErrorKind::Config
        );
    }
}

/// Walks over 2,000 keys, of which each has a favourite successor, in a cache of 100.
async fn walk(rng: &mut fastrand::Rng, ahead: bool) -> (f64, Option<f64>) {
    const KEYS: i64 = 2_000;
    let (larder, _clock) = larder("t");
    let cache: Cache<i64, i64> = larder.cache("c").capacity(100).in_memory().unwrap();
    let loading = cache.loading_with(|load| std::future::ready(Ok::<_, io::Error>(*load.key())));
    let options = Prefetch {
        model: 4_000,
        per_second: 1_000_000,
        ..Prefetch::default()
    };
    let prefetching = ahead.then(|| loading.prefetch(options).unwrap());
    let mut key = 0;
    for _ in 0..12_000 {
        read(&loading, &[key]).await;
        for _ in 0..6 {
            tokio::task::yield_now().await; // the time to think
        }
        key = match rng.u8(..10) {
            0 | 1 => rng.i64(0..KEYS),
            _ => (key * 7 + 3) % KEYS,
        };
    }
    let precision = prefetching.and_then(|prefetching| prefetching.stats().precision());
    (cache.stats().hit_rate().unwrap(), precision)
}

#[tokio::test]
async fn where_keys_have_habits_it_answers_what_no_policy_could_keep() {
    for seed in seeds(1) {
        let mut rng = seed.rng();
        let (without, _) = walk(&mut rng.fork(), false).await;
        let (with, precision) = walk(&mut rng, true).await;
        assert!(with > without + 0.3, "{with} with, {without} without");
        assert!(precision > Some(0.6), "{precision:?}");
    }
}
