//! What a cache shows of what it holds in memory.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use common::ms;
use larder::{Cache, Entry, Larder, Loaded};
use larder_testkit::ManualClock;

fn local() -> (Arc<ManualClock>, Larder) {
    let clock = ManualClock::new();
    let larder = Larder::builder("t").clock(clock.clone()).build().unwrap();
    (clock, larder)
}

fn keys(cache: &Cache<u64, u64>) -> Vec<u64> {
    let mut keys: Vec<_> = cache.entries().map(|entry| entry.key).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn only_what_a_read_of_memory_would_give_is_shown() {
    let (clock, larder) = local();
    let cache = larder.cache("c").ttl("10s").negative_ttl("1m");
    let cache: Cache<u64, u64> = cache.build().unwrap();
    for key in 0..6 {
        let tagged = Loaded::value(key).tags([format!("tag:{key}")]);
        let _ = cache.set(key, tagged).await.unwrap();
    }
    let _ = cache.set(6, Loaded::absent()).await.unwrap();
    assert_eq!(keys(&cache), [0, 1, 2, 3, 4, 5]);
    let _ = cache.invalidate(&1).await.unwrap();
    let _ = larder.invalidate_tag("tag:2").await.unwrap();
    let _ = cache.expire(&3).await.unwrap();
    assert_eq!(keys(&cache), [0, 4, 5]);
    clock.advance(ms(10_000));
    assert!(keys(&cache).is_empty());
    let _ = cache.set(7, 7).await.unwrap();
    let _ = cache.clear().await.unwrap();
    assert!(keys(&cache).is_empty());
}

#[tokio::test]
async fn an_entry_tells_its_times_and_a_stale_one_has_none_left() {
    let (clock, larder) = local();
    let cache = larder.cache("c").ttl("10s").grace("1m");
    let cache: Cache<u64, String> = cache.in_memory().unwrap();
    cache.set_in_memory(1, "one".to_owned()).unwrap();
    clock.advance(ms(4_000));
    let shown = |age, remaining| {
        let Entry {
            key,
            value,
            age: old,
            remaining: left,
            ..
        } = cache.entries().next().unwrap();
        assert_eq!((key, &**value), (1, "one"));
        let seconds = Duration::from_secs;
        assert_eq!((old, left), (seconds(age), seconds(remaining)));
    };
    shown(4, 6);
    clock.advance(ms(7_000));
    shown(11, 0);
    assert!(Arc::ptr_eq(
        &cache.entries().next().unwrap().value,
        &cache.get_in_memory(&1).unwrap()
    ));
}

#[test]
fn seeing_an_entry_is_no_read_of_it() {
    let (_clock, larder) = local();
    let cache: Cache<u64, u64> = larder.cache("c").in_memory().unwrap();
    cache.set_in_memory(1, 1).unwrap();
    let reads = cache.stats().hits_memory;
    for _ in 0..3 {
        assert_eq!(cache.entries().next().unwrap().heat, 0);
    }
    assert_eq!(cache.stats().hits_memory, reads);
    cache.get_in_memory(&1);
    assert_eq!(cache.entries().next().unwrap().heat, 1);
}

/// Nothing is locked between two entries: their user may do with the cache what it likes.
#[test]
fn whoever_walks_may_use_the_cache() {
    let (_clock, larder) = local();
    // What moves gathers in what is still to be walked through.
    let cache = larder.cache("c").capacity(1_000_000);
    let cache: Cache<u64, u64> = cache.in_memory().unwrap();
    for key in 0..20_000 {
        cache.set_in_memory(key, key).unwrap();
    }
    let mut seen = 0;
    for entry in cache.entries() {
        cache.invalidate_in_memory(&entry.key);
        cache.set_in_memory(entry.key + 100_000, 0).unwrap();
        seen += u64::from(entry.key < 20_000);
    }
    assert_eq!(seen, 20_000);
    assert_eq!(cache.get_in_memory(&7), None);
    assert_eq!(cache.stats().entries, 20_000);
}

/// Writers and readers go on while others walk, and what none of them touches is seen exactly once.
#[test]
fn a_walk_beside_writers_sees_once_what_stays() {
    const STAYING: u64 = 20_000;
    let cache: Cache<u64, u64> = Larder::local()
        .cache("c")
        .capacity(200_000)
        .in_memory()
        .unwrap();
    for key in 0..STAYING {
        cache.set_in_memory(key, key).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                let key = STAYING + round % STAYING;
                cache.set_in_memory(key, round).unwrap();
                cache.invalidate_in_memory(&(STAYING + (round * 7) % STAYING));
                cache
                    .set_in_memory(round % STAYING, round % STAYING)
                    .unwrap();
                if done.load(SeqCst) {
                    break;
                }
            }
        });
        for _ in 0..5 {
            let mut seen = HashMap::new();
            for entry in cache.entries() {
                assert!(seen.insert(entry.key, *entry.value).is_none());
            }
            let stays = |key: u64| seen.get(&key) == Some(&key);
            let lost = (0..STAYING).filter(|key| !stays(*key)).count();
            assert_eq!(lost, 0);
        }
        done.store(true, SeqCst);
    });
}
