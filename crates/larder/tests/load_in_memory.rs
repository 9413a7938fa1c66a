//! Loads in memory alone: no runtime, no flight, and the fence all the same.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use larder::{Cache, Larder};

fn squares() -> Cache<u64, u64> {
    Larder::local().cache("squares").in_memory().unwrap()
}

fn found(value: u64) -> impl FnOnce() -> io::Result<u64> {
    move || Ok(value)
}

fn never() -> io::Result<u64> {
    panic!("there was something in memory")
}

fn failed() -> io::Result<u64> {
    Err(io::Error::other("no route"))
}

#[test]
fn a_value_is_loaded_once_and_counted_as_a_miss_and_a_hit() {
    let cache = squares();
    assert_eq!(*cache.get_or_load_in_memory(&7, found(49)).unwrap(), 49);
    assert_eq!(*cache.get_or_load_in_memory(&7, never).unwrap(), 49);
    let stats = cache.stats();
    assert_eq!((stats.misses, stats.hits_memory, stats.loads), (1, 1, 1));
}

#[test]
fn an_error_is_the_callers_and_is_not_kept() {
    let cache = squares();
    let error = cache.get_or_load_in_memory(&7, failed).unwrap_err();
    assert_eq!(error.to_string(), "no route");
    assert_eq!(*cache.get_or_load_in_memory(&7, found(49)).unwrap(), 49);
    let stats = cache.stats();
    assert_eq!((stats.failed, stats.load_errors), (1, 1));
}

#[test]
fn what_is_invalidated_written_or_cleared_during_a_load_is_given_and_not_kept() {
    let during: [fn(&Cache<u64, u64>); 3] = [
        |cache| cache.invalidate_in_memory(&7),
        |cache| cache.set_in_memory(7, 50).unwrap(),
        Cache::clear_in_memory,
    ];
    for (happens, after) in during.into_iter().zip([None, Some(50), None]) {
        let cache = squares();
        let old = cache.get_or_load_in_memory(&7, || {
            happens(&cache);
            found(49)()
        });
        assert_eq!(*old.unwrap(), 49);
        assert_eq!(cache.get_in_memory(&7).as_deref().copied(), after);
        assert_eq!(cache.stats().fenced, 1);
    }
}

#[test]
fn a_stale_value_is_loaded_anew_and_stands_in_for_a_while_for_a_load_that_fails() {
    let (larder, clock) = larder_testkit::larder("t");
    let cache: Cache<u64, u64> = larder
        .cache("c")
        .ttl("10s")
        .grace("1h")
        .in_memory()
        .unwrap();
    cache.set_in_memory(7, 1).unwrap();
    clock.advance(Duration::from_secs(11));
    assert_eq!(*cache.get_or_load_in_memory(&7, failed).unwrap(), 1);
    assert_eq!(cache.stats().stood_in, 1);
    assert_eq!(*cache.get_or_load_in_memory(&7, never).unwrap(), 1);
    clock.advance(Duration::from_secs(5));
    assert_eq!(*cache.get_or_load_in_memory(&7, found(2)).unwrap(), 2);
    assert_eq!(*cache.get_or_load_in_memory(&7, never).unwrap(), 2);
    clock.advance(Duration::from_secs(2 * 3600));
    assert!(cache.get_or_load_in_memory(&7, failed).is_err());
}

/// Nobody is served with it, so a load may take its time.
#[test]
fn a_stale_value_that_is_loaded_anew_is_not_held_by_its_reader() {
    let (larder, clock) = larder_testkit::larder("test");
    let cache = larder.cache("squares").ttl("10s").grace("1h");
    let cache: Cache<u64, u64> = cache.in_memory().unwrap();
    cache.set_in_memory(7, 1).unwrap();
    let held = Arc::downgrade(&cache.get_in_memory(&7).unwrap());
    clock.advance(Duration::from_secs(11));
    let load = || {
        cache.invalidate_in_memory(&7);
        assert_eq!(held.strong_count(), 0);
        io::Result::Ok(2)
    };
    assert_eq!(*cache.get_or_load_in_memory(&7, load).unwrap(), 2);
}

/// What memory has and does not serve is neither given nor counted as a hit.
#[test]
fn a_look_at_memory_counts_as_what_it_gave() {
    let (larder, clock) = larder_testkit::larder("test");
    let cache = larder
        .cache("squares")
        .ttl("10s")
        .grace("1m")
        .stale_on_error("1h");
    let cache: Cache<u64, u64> = cache.in_memory().unwrap();
    let looked = |seconds| {
        clock.advance(Duration::from_secs(seconds));
        let before = cache.stats();
        let value = cache.get_in_memory(&7).map(|value| *value);
        let after = cache.stats();
        let counted = [
            after.hits_memory - before.hits_memory,
            after.stale - before.stale,
            after.misses - before.misses,
        ];
        (value, counted)
    };
    assert_eq!(looked(0), (None, [0, 0, 1]), "nothing is there");
    cache.set_in_memory(7, 49).unwrap();
    assert_eq!(looked(9), (Some(49), [1, 0, 0]), "fresh");
    assert_eq!(looked(2), (Some(49), [0, 1, 0]), "within grace");
    assert_eq!(looked(70), (None, [0, 0, 1]), "behind it");
    cache.set_in_memory(7, 49).unwrap();
    cache.clear_in_memory();
    assert_eq!(looked(0), (None, [0, 0, 1]), "cleared");
}

#[test]
fn what_is_invalidated_or_written_during_a_load_that_fails_is_seen_by_its_caller() {
    let during: [fn(&Cache<u64, u64>); 3] = [
        |cache| cache.invalidate_in_memory(&7),
        |cache| cache.set_in_memory(7, 50).unwrap(),
        Cache::clear_in_memory,
    ];
    for (happens, given) in during.into_iter().zip([None, Some(50), None]) {
        let (larder, clock) = larder_testkit::larder("t");
        let cache = larder.cache("c").ttl("10s").grace("1h");
        let cache: Cache<u64, u64> = cache.in_memory().unwrap();
        cache.set_in_memory(7, 1).unwrap();
        clock.advance(Duration::from_secs(11));
        let read = cache.get_or_load_in_memory(&7, || {
            happens(&cache);
            failed()
        });
        assert_eq!(read.ok().as_deref().copied(), given);
    }
}

#[test]
fn behind_its_grace_a_value_stands_in_for_a_load_that_fails_as_long_as_it_may() {
    let (larder, clock) = larder_testkit::larder("t");
    let cache = larder.cache("c").ttl("10s").stale_on_error("1h");
    let cache: Cache<u64, u64> = cache.in_memory().unwrap();
    cache.set_in_memory(7, 1).unwrap();
    clock.advance(Duration::from_secs(11));
    assert_eq!(*cache.get_or_load_in_memory(&7, failed).unwrap(), 1);
    clock.advance(Duration::from_secs(3600));
    assert!(cache.get_or_load_in_memory(&7, failed).is_err());
}

#[test]
fn a_fresh_value_is_served_to_its_end_though_others_refresh_it_early() {
    let (larder, clock) = larder_testkit::larder("t");
    let cache = larder.cache("c").ttl("100s").eager_refresh(0.8);
    let cache: Cache<u64, u64> = cache.in_memory().unwrap();
    cache.set_in_memory(7, 1).unwrap();
    clock.advance(Duration::from_secs(90));
    assert_eq!(*cache.get_or_load_in_memory(&7, never).unwrap(), 1);
    clock.advance(Duration::from_secs(10));
    assert_eq!(*cache.get_or_load_in_memory(&7, found(2)).unwrap(), 2);
}

#[test]
fn a_default_stands_in_where_there_is_nothing_stale_and_nothing_made_from_it_is_kept() {
    let larder = Larder::local();
    let cache = larder.cache("c").default_on_error(|key| key + 1);
    let cache: Cache<u64, u64> = cache.in_memory().unwrap();
    let outer = squares();
    let made = outer.get_or_load_in_memory(&1, || cache.get_or_load_in_memory(&7, failed));
    assert_eq!(*made.unwrap(), 8);
    assert_eq!(outer.get_in_memory(&1), None);
    assert_eq!(cache.get_in_memory(&7), None);
    let stats = cache.stats();
    assert_eq!((stats.stood_in, stats.failed, stats.load_errors), (1, 0, 1));
}

#[test]
fn what_is_made_of_a_key_that_cannot_be_stored_depends_on_what_that_was_made_of() {
    let larder = Larder::local();
    let sources: Cache<u64, u64> = larder.cache("source").in_memory().unwrap();
    let inner: Cache<String, u64> = larder.cache("inner").in_memory().unwrap();
    let outer: Cache<u64, u64> = larder.cache("outer").in_memory().unwrap();
    sources.set_in_memory(1, 7).unwrap();
    let read = || found(*sources.get_in_memory(&1).unwrap())();
    let made = outer.get_or_load_in_memory(&1, || inner.get_or_load_in_memory("", read));
    assert_eq!(*made.unwrap(), 7);
    assert!(outer.get_in_memory(&1).is_some());
    sources.set_in_memory(1, 8).unwrap();
    assert_eq!(outer.get_in_memory(&1), None);
}

#[test]
fn what_is_made_of_a_renewed_value_lives_as_long_as_that() {
    let (larder, clock) = larder_testkit::larder("t");
    let inner = larder.cache("inner").ttl("100s").grace("1h");
    let inner: Cache<u64, u64> = inner.in_memory().unwrap();
    let outer: Cache<u64, u64> = larder.cache("outer").ttl("100s").in_memory().unwrap();
    inner.set_in_memory(1, 7).unwrap();
    clock.advance(Duration::from_secs(101));
    let made = outer.get_or_load_in_memory(&1, || inner.get_or_load_in_memory(&1, found(8)));
    assert_eq!(*made.unwrap(), 8);
    clock.advance(Duration::from_secs(50));
    assert!(outer.get_in_memory(&1).is_some());
    clock.advance(Duration::from_secs(50));
    assert_eq!(outer.get_in_memory(&1), None);
}

#[test]
fn a_load_depends_on_what_it_reads() {
    let larder = Larder::local();
    let prices: Cache<u64, u64> = larder.cache("price").in_memory().unwrap();
    let totals: Cache<u64, u64> = larder.cache("total").in_memory().unwrap();
    let grand: Cache<u64, u64> = larder.cache("grand").in_memory().unwrap();
    let price = Cell::new(3);
    let total = || {
        totals.get_or_load_in_memory(&1, || {
            let price = prices.get_or_load_in_memory(&7, found(price.get()))?;
            Ok::<_, io::Error>(*price * 2)
        })
    };
    let all = || grand.get_or_load_in_memory(&1, || Ok::<_, io::Error>(*total()? + 1));
    assert_eq!(*all().unwrap(), 7);
    price.set(5);
    prices.set_in_memory(7, 5).unwrap();
    assert_eq!(*all().unwrap(), 11, "the price was written");
    prices.clear_in_memory();
    price.set(6);
    assert_eq!(*all().unwrap(), 13, "the prices were cleared");
}

#[test]
fn a_key_that_cannot_be_stored_is_loaded_each_time() {
    let cache: Cache<String, u64> = Larder::local().cache("c").in_memory().unwrap();
    for value in [1, 2] {
        let loaded = cache.get_or_load_in_memory("", found(value)).unwrap();
        assert_eq!(*loaded, value);
    }
}

#[test]
fn a_panic_passes_through_and_leaves_nothing() {
    let cache = squares();
    let load = std::panic::AssertUnwindSafe(|| cache.get_or_load_in_memory(&7, never));
    assert!(std::panic::catch_unwind(load).is_err());
    assert_eq!(*cache.get_or_load_in_memory(&7, found(49)).unwrap(), 49);
}
