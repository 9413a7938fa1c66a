//! Caches without their types: what tools and messages use.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{failed, found, ms, secs, with_tier};
use larder::{AnyCache, Cache, Larder, Loaded};
use larder_testkit::larder;
use std::sync::Arc;

fn handle(larder: &Larder, name: &str) -> Arc<dyn AnyCache> {
    let mut caches = larder.caches();
    caches.retain(|cache| cache.name() == name);
    caches.pop().unwrap()
}

#[test]
fn the_caches_of_a_larder_are_listed_by_name() {
    let larder = Larder::builder("t").build().unwrap();
    let _: Cache<u64, u64> = larder.cache("b").version(3).build().unwrap();
    let _: Cache<String, u64> = larder.cache("a").build().unwrap();
    let listed: Vec<_> = larder
        .caches()
        .iter()
        .map(|cache| (cache.name().to_owned(), cache.version()))
        .collect();
    assert_eq!(listed, [("a".to_owned(), 1), ("b".to_owned(), 3)]);
}

#[tokio::test]
async fn a_key_is_forgotten_by_its_encoded_form() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Cache<(String, u64), u64> = larder.cache("c").build().unwrap();
    let key = ("a:b".to_owned(), 7);
    let _ = cache.set(key.clone(), 1).await.unwrap();
    let _ = cache.set(("other".to_owned(), 7), 2).await.unwrap();
    let any = handle(&larder, "c");
    assert!(any.forget(b"a%3Ab:7"));
    assert_eq!(cache.get_in_memory(&key), None);
    assert_eq!(
        cache.get_in_memory(&("other".to_owned(), 7)).as_deref(),
        Some(&2)
    );
    assert_eq!(tier.store().len(), 2, "the tiers are not touched");
}

#[tokio::test]
async fn a_key_that_does_not_decode_may_stand_for_any() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    for key in 0..10 {
        let _ = cache.set(key, key).await.unwrap();
    }
    assert!(!handle(&larder, "c").forget(b"007"));
    assert_eq!(cache.stats().entries, 0);
    assert_eq!(cache.get_in_memory(&1), None);
}

#[tokio::test]
async fn everything_can_be_forgotten_and_filled_again() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let _ = cache.set(1, 7).await.unwrap();
    handle(&larder, "c").forget_all();
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&8));
}

#[tokio::test]
async fn an_entry_can_be_inspected_without_counting_as_a_read() {
    let (larder, clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").negative_ttl("10s").build().unwrap();
    let slow = clock.clone();
    let load = |_| async move {
        slow.advance(ms(30));
        Ok::<_, std::io::Error>(Loaded::value(7_u64).ttl("1m").version(3))
    };
    cache.get_or_load(&1, load).await.unwrap();
    cache.get_or_load(&2, |_| found(None)).await.unwrap();
    clock.advance(secs(5));
    let any = handle(&larder, "c");
    let reads = any.stats().reads();
    let value = any.inspect(b"1").unwrap();
    assert_eq!((value.absent, value.version), (false, Some(3)));
    assert_eq!(
        (value.age, value.remaining, value.load_time),
        (secs(5), secs(55), ms(30))
    );
    let absent = any.inspect(b"2").unwrap();
    assert_eq!((absent.absent, absent.remaining), (true, secs(5)));
    assert_eq!(any.inspect(b"3"), None);
    assert_eq!(any.inspect(b"no number"), None);
    assert_eq!(any.stats().reads(), reads);
    let _ = cache.clear().await.unwrap();
    assert_eq!(any.inspect(b"1"), None);
}

#[tokio::test]
async fn keys_are_listed_in_their_encoded_form_up_to_a_number() {
    let (larder, _clock) = larder("t");
    let cache: Cache<String, u64> = larder.cache("c").build().unwrap();
    for key in ["a:b", "c", "d"] {
        let _ = cache.set(key.to_owned(), 1).await.unwrap();
    }
    let any = handle(&larder, "c");
    let mut keys = any.keys(10);
    keys.sort();
    assert_eq!(keys, ["a%3Ab", "c", "d"]);
    assert_eq!(any.keys(2).len(), 2);
    assert!(any.keys(0).is_empty());
}

#[tokio::test]
async fn every_read_is_counted_as_one_thing() {
    let (larder, clock, _tier) = with_tier("t");
    let builder = larder.cache("c").ttl("1m").grace("1m").stale_on_error("1h");
    let cache: Cache<u64, u64> = builder.capacity(100).build().unwrap();
    assert_eq!(cache.stats().hit_rate(), None, "no reads, no rate");
    cache.get_or_load(&1, |_| found(7)).await.unwrap(); // a miss
    cache.get_or_load(&1, |_| found(7)).await.unwrap(); // a hit in memory
    cache.invalidate_in_memory(&1);
    cache.get(&1).await.unwrap(); // a hit in the tier
    assert!(cache.get_in_memory(&2).is_none()); // a miss
    assert!(cache.get_or_load(&3, |_| failed::<u64>()).await.is_err()); // a failure
    clock.advance(secs(61));
    cache.get(&1).await.unwrap(); // stale
    clock.advance(secs(60));
    cache.get_or_load(&1, |_| failed::<u64>()).await.unwrap(); // stale, standing in
    let stats = handle(&larder, "c").stats();
    assert_eq!((stats.hits_memory, stats.hits_tiers), (1, 1));
    assert_eq!((stats.misses, stats.failed, stats.stale), (2, 1, 2));
    assert_eq!((stats.reads(), stats.stood_in), (7, 1));
    assert_eq!((stats.loads, stats.load_errors), (3, 2));
    assert_eq!(stats.hit_rate(), Some(4.0 / 7.0));
    assert_eq!((stats.entries, stats.bound), (1, 100));
}

#[tokio::test]
async fn sweeping_drops_what_is_over() {
    let (larder, clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").ttl("1m").build().unwrap();
    for key in 0..100 {
        let _ = cache.set(key, key).await.unwrap();
    }
    assert_eq!(cache.sweep(1000), 0);
    clock.advance(secs(60));
    assert_eq!(cache.stats().entries, 100);
    assert_eq!(cache.sweep(1000), 100);
    let stats = cache.stats();
    assert_eq!(
        (stats.entries, stats.weight, stats.expirations),
        (0, 0, 100)
    );
}
