//! Keys that are asked for often live longer.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{found, secs};
use larder::{Cache, CacheOptions, ErrorKind, Loaded, Read, Result};
use larder_testkit::{ManualClock, larder};

type Numbers = Cache<u64, u64>;

/// What is left of the entry of `key` that was just filled, in seconds, and the entry is gone.
async fn filled_for(cache: &Numbers, key: u64, loaded: Loaded<u64>) -> u64 {
    let reader = cache.with(Read::new());
    let told = reader.get_or_load_explained(&key, |_| found(loaded)).await;
    cache.invalidate_in_memory(&key);
    told.unwrap().outcome.remaining.unwrap().as_secs()
}

async fn read(clock: &ManualClock, cache: &Numbers, key: u64, times: usize, pause: u64) {
    for _ in 0..times {
        cache.get(&key).await.unwrap();
        clock.advance(secs(pause));
    }
}

#[tokio::test]
async fn what_was_asked_for_once_lives_shortest_and_what_is_popular_longest() {
    let (larder, clock) = larder("t");
    let cache = larder.cache("c").ttl_by_frequency("100s", "800s");
    let cache: Numbers = cache.build().unwrap();
    assert_eq!(filled_for(&cache, 1, Loaded::value(7)).await, 100);
    // The second time it was asked for, by the load itself.
    assert_eq!(filled_for(&cache, 1, Loaded::value(7)).await, 200);
    read(&clock, &cache, 1, 2, 0).await;
    assert_eq!(filled_for(&cache, 1, Loaded::value(7)).await, 500);
    read(&clock, &cache, 1, 20, 0).await;
    assert_eq!(filled_for(&cache, 1, Loaded::value(7)).await, 800);
    assert_eq!(
        filled_for(&cache, 2, Loaded::value(7)).await,
        100,
        "another key"
    );
    // Hits count like misses, and so do those of whoever asks for many at once.
    cache.get_or_load(&3, |_| found(7_u64)).await.unwrap();
    let nobody = |_: Vec<u64>| async { unreachable!() as Result<Vec<(u64, u64)>> };
    for _ in 0..2 {
        let _ = cache.get_in_memory(&3);
        cache.get_or_load_many(&[3], nobody).await.unwrap();
    }
    cache.invalidate_in_memory(&3);
    assert_eq!(filled_for(&cache, 3, Loaded::value(7)).await, 600);
}

#[tokio::test]
async fn popularity_passes() {
    let (larder, clock) = larder("t");
    let cache = larder.cache("c").ttl_by_frequency("100s", "800s");
    let cache: Numbers = cache.build().unwrap();
    read(&clock, &cache, 1, 6, 0).await;
    clock.advance(secs(800));
    // Half of six, and this time.
    assert_eq!(filled_for(&cache, 1, Loaded::value(7)).await, 400);
    clock.advance(secs(4 * 800));
    assert_eq!(filled_for(&cache, 1, Loaded::value(7)).await, 100);
    // Eight times within the longest TTL, again and again, and often enough to be counted no further.
    for (key, pause) in [(2, 100), (3, 1)] {
        read(&clock, &cache, key, 5 * 800 / pause, pause as u64).await;
        assert!(
            filled_for(&cache, key, Loaded::value(7)).await >= 700,
            "{key}"
        );
    }
}

#[tokio::test]
async fn what_a_load_says_comes_first_and_absent_entries_go_by_their_own_ttl() {
    let (larder, clock) = larder("t");
    let cache = larder.cache("c").ttl_by_frequency("100s", "800s");
    let cache = cache.negative_ttl("5s").jitter_up_to("10s");
    let cache: Numbers = cache.build().unwrap();
    read(&clock, &cache, 1, 20, 0).await;
    assert!((20..=30).contains(&filled_for(&cache, 1, Loaded::value(7).ttl("30s")).await));
    assert!((50..=60).contains(&filled_for(&cache, 1, Loaded::value(7).class("search")).await));
    assert!(filled_for(&cache, 1, Loaded::absent()).await <= 5);
    assert!((790..=800).contains(&filled_for(&cache, 1, Loaded::value(7)).await));
}

#[tokio::test]
async fn options_that_make_no_sense_are_refused_with_the_mend() {
    let (larder, _clock) = larder("t");
    let refusal = |built: Result<Numbers>| {
        let error = built.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.to_string()
    };
    let cache = || larder.cache::<u64, u64>("c");
    let mut both = CacheOptions::default();
    both.ttl = None;
    both.ttl_by_frequency = Some(secs(1)..=secs(2));
    for (built, mend) in [
        (
            cache().ttl_by_frequency("0s", "1h"),
            "give the TTL of a key that was asked for once",
        ),
        (
            cache().ttl_by_frequency("2h", "1h"),
            "give the shorter one first",
        ),
        (cache().ttl_by_frequency("soon", "1h"), "is not a duration"),
        (
            cache().ttl_by_frequency("1m", "1h").ttl("1h"),
            "leave one of them out",
        ),
        (
            cache().ttl_by_frequency("1m", "1h").class("search"),
            "leave one of them out",
        ),
        (
            cache().ttl_by_frequency("1m", "1h").sliding("2h"),
            "leave one of them out",
        ),
        (cache().options(both), "leave one of them out"),
    ] {
        let problem = refusal(built.build());
        assert!(problem.contains(mend), "{problem}");
    }
    let same = cache().ttl_by_frequency("1m", "1m").build();
    assert_eq!(filled_for(&same.unwrap(), 1, Loaded::value(7)).await, 60);
}
