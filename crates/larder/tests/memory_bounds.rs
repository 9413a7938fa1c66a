//! What the memory of a cache does at its bound: policies, what listeners are told, a bound that
//! changes, and users' code that misbehaves.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use common::{found, ms};
use larder::{Cache, CacheBuilder, ErrorKind, Larder, Policy, RemovalCause};
use larder_testkit::ManualClock;

fn local() -> (Arc<ManualClock>, Larder) {
    let clock = ManualClock::new();
    let larder = Larder::builder("t").clock(clock.clone()).build().unwrap();
    (clock, larder)
}

/// What a listener was told.
type Told = Arc<Mutex<Vec<(u64, u64, RemovalCause)>>>;

fn listening(builder: CacheBuilder<u64, u64>) -> (CacheBuilder<u64, u64>, Told) {
    let told = Told::default();
    let note = Arc::clone(&told);
    let builder = builder.on_removal(move |key, value, cause| {
        note.lock().unwrap().push((*key, **value, cause));
    });
    (builder, told)
}

fn taken(told: &Told) -> Vec<(u64, u64, RemovalCause)> {
    std::mem::take(&mut *told.lock().unwrap())
}

#[tokio::test]
async fn a_listener_is_told_of_every_value_that_leaves_and_why() {
    let (clock, larder) = local();
    let builder = larder
        .cache("c")
        .capacity(2)
        .policy(Policy::Fifo)
        .ttl("10s");
    let (builder, told) = listening(builder);
    let cache = builder.in_memory().unwrap();
    for key in 1..=3 {
        cache.set_in_memory(key, key * 10).unwrap();
    }
    assert_eq!(taken(&told), [(1, 10, RemovalCause::Evicted)]);
    cache.set_in_memory(3, 31).unwrap();
    assert_eq!(taken(&told), [(3, 30, RemovalCause::Replaced)]);
    let _ = cache.invalidate(&2).await.unwrap();
    assert_eq!(taken(&told), [(2, 20, RemovalCause::Removed)]);
    clock.advance(ms(10_000));
    assert_eq!(cache.sweep(10), 1);
    assert_eq!(taken(&told), [(3, 31, RemovalCause::Expired)]);
    cache.set_in_memory(4, 40).unwrap();
    let _ = cache.clear().await.unwrap();
    assert_eq!(taken(&told), [(4, 40, RemovalCause::Removed)]);
}

#[tokio::test]
async fn a_listener_is_told_nothing_of_what_was_never_there_or_has_no_value() {
    let (_clock, larder) = local();
    let builder = larder.cache("c").capacity(0).negative_ttl("1m");
    let (builder, told) = listening(builder);
    let cache = builder.in_memory().unwrap();
    cache.set_in_memory(1, 1).unwrap();
    assert_eq!(cache.get_in_memory(&1), None);
    let (builder, absences) = listening(larder.cache("d").capacity(1).negative_ttl("1m"));
    let cache = builder.in_memory().unwrap();
    for key in 0..3 {
        let absent = cache.get_or_load(&key, |_| async { Ok::<_, std::io::Error>(None) });
        assert_eq!(absent.await.unwrap(), None);
    }
    assert_eq!(cache.stats().evictions, 2);
    assert_eq!((taken(&told), taken(&absences)), (vec![], vec![]));
}

#[test]
fn a_listener_that_panics_or_uses_the_cache_harms_nobody() {
    let larder = Larder::local();
    let cache = Arc::<OnceLock<Cache<u64, u64>>>::default();
    let gone = Arc::<AtomicU64>::default();
    let (inside, count) = (Arc::clone(&cache), Arc::clone(&gone));
    let built = larder
        .cache("c")
        .capacity(1)
        .on_removal(move |key: &u64, _value, _cause| {
            let cache = inside.get().unwrap();
            // Neither waits for a lock that is held.
            if cache.get_in_memory(key).is_none() && cache.stats().entries == 1 {
                count.fetch_add(1, SeqCst);
            }
            panic!("as listeners do");
        })
        .in_memory()
        .unwrap();
    cache.set(built.clone()).unwrap();
    for key in 0..10 {
        built.set_in_memory(key, key).unwrap();
    }
    assert_eq!(gone.load(SeqCst), 9);
    assert_eq!(built.get_in_memory(&9).as_deref(), Some(&9));
}

#[test]
fn every_policy_keeps_the_bound_and_serves_what_it_holds() {
    for policy in [
        Policy::Adaptive,
        Policy::Lru,
        Policy::Lfu,
        Policy::Fifo,
        Policy::Random,
    ] {
        let cache: Cache<u64, u64> = Larder::local()
            .cache("c")
            .capacity(5_000)
            .policy(policy)
            .in_memory()
            .unwrap();
        for key in 0..20_000 {
            cache.set_in_memory(key, key).unwrap();
            assert_eq!(
                cache.get_in_memory(&key).as_deref(),
                Some(&key),
                "{policy:?}"
            );
        }
        let stats = cache.stats();
        assert_eq!((stats.bound, stats.refused), (5_000, 0), "{policy:?}");
        assert!(
            (4_000..=5_000).contains(&stats.entries),
            "{policy:?}: {stats:?}"
        );
    }
}

#[test]
fn the_least_recently_used_goes_first_where_that_is_asked_for() {
    let cache: Cache<u64, u64> = Larder::local()
        .cache("c")
        .capacity(3)
        .policy(Policy::Lru)
        .in_memory()
        .unwrap();
    for key in 0..3 {
        cache.set_in_memory(key, key).unwrap();
    }
    cache.get_in_memory(&0);
    cache.set_in_memory(3, 3).unwrap();
    let held: Vec<_> = (0..4)
        .filter(|key| cache.get_in_memory(key).is_some())
        .collect();
    assert_eq!(held, [0, 2, 3]);
}

#[tokio::test]
async fn without_eviction_a_write_over_the_bound_is_an_error_and_a_load_is_served() {
    let (_clock, larder) = local();
    let cache: Cache<u64, u64> = larder
        .cache("c")
        .capacity(2)
        .policy(Policy::NoEviction)
        .build()
        .unwrap();
    cache.set_in_memory(1, 1).unwrap();
    let _ = cache.set(2, 2).await.unwrap();
    let refused = cache.set_in_memory(3, 3).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(
        refused.to_string().contains("cache `c` is full"),
        "{refused}"
    );
    assert_eq!(
        cache.set(3, 3).await.unwrap_err().kind(),
        ErrorKind::Overloaded
    );
    let loaded = cache.get_or_load(&3, |_| found(3)).await.unwrap();
    assert_eq!(*loaded, 3);
    assert_eq!(cache.get_in_memory(&3), None);
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&1));
    assert_eq!((cache.stats().refused, cache.stats().evictions), (3, 0));
    let _ = cache.invalidate(&1).await.unwrap();
    let _ = cache.set(3, 3).await.unwrap();
    assert_eq!(cache.get_in_memory(&3).as_deref(), Some(&3));
}

#[test]
fn a_bound_that_changes_holds_at_once() {
    for policy in [Policy::Adaptive, Policy::Lfu, Policy::NoEviction] {
        let cache: Cache<u64, u64> = Larder::local()
            .cache("c")
            .capacity(10_000)
            .policy(policy)
            .in_memory()
            .unwrap();
        for key in 0..9_000 {
            // A part of the bound may be full before the whole is.
            let _ = cache.set_in_memory(key, key);
        }
        for bound in [3_000, 100, 0] {
            cache.resize(bound);
            let stats = cache.stats();
            assert_eq!(stats.bound, bound, "{policy:?}");
            assert!(
                stats.entries <= bound,
                "{policy:?}: {} of {bound}",
                stats.entries
            );
        }
        cache.resize(20_000);
        for key in 0..15_000 {
            let _ = cache.set_in_memory(key, key);
        }
        assert!(cache.stats().entries > 14_000, "{policy:?}");
    }
}

#[test]
fn a_weigher_that_lies_or_panics_breaks_no_bound() {
    let cache: Cache<u64, u64> = Larder::local()
        .cache("c")
        .capacity_bytes(1 << 20)
        .weigher(|key: &u64, _value| match key % 4 {
            0 => 0,
            1 => u32::MAX,
            2 => 700_000,
            _ => panic!("as weighers do"),
        })
        .in_memory()
        .unwrap();
    for key in 0..40_000 {
        cache.set_in_memory(key, key).unwrap();
        assert!(cache.stats().weight <= 1 << 20);
    }
    let stats = cache.stats();
    assert_eq!(
        stats.too_large, 10_000,
        "one in four is heavier than everything"
    );
    assert!(stats.entries > 0);
}
