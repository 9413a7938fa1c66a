//! How long an entry is fresh: by the kind of data, and spread so that not all end at once.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{found, ms, never, secs};
use larder::{Cache, CacheOptions, ErrorKind, Larder, Loaded, Result};
use larder_testkit::{ManualClock, larder, larder_with};

type Numbers = Cache<u64, u64>;

/// How many of the first hundred keys memory has, all filled at once.
async fn left_of_a_hundred(cache: &Numbers, clock: &ManualClock, after: u64) -> usize {
    let _ = cache.clear().await.unwrap();
    for key in 0..100 {
        cache.set_in_memory(key, 7).unwrap();
    }
    clock.advance(ms(after));
    (0..100)
        .filter(|key| cache.get_in_memory(key).is_some())
        .count()
}

#[tokio::test]
async fn a_fixed_spread_ends_what_was_filled_together_over_that_length() {
    let (larder, clock) = larder("t");
    let spread = larder.cache("c").ttl("10m").jitter_up_to("30s");
    let cache: Numbers = spread.build().unwrap();
    assert_eq!(left_of_a_hundred(&cache, &clock, 569_999).await, 100);
    let half = left_of_a_hundred(&cache, &clock, 585_000).await;
    assert!((20..=80).contains(&half), "{half} of 100 after half of it");
    assert_eq!(left_of_a_hundred(&cache, &clock, 600_000).await, 0);
}

#[tokio::test]
async fn a_spread_longer_than_the_ttl_leaves_a_millisecond_and_never_touches_what_has_no_ttl() {
    let (larder, clock) = larder("t");
    let short = larder.cache("short").ttl("1s").jitter(1.0);
    let cache: Numbers = short.jitter_up_to("1h").build().unwrap();
    for _ in 0..20 {
        assert_eq!(left_of_a_hundred(&cache, &clock, 0).await, 100);
    }
    let endless = larder.cache("endless").no_ttl();
    let cache: Numbers = endless.jitter_up_to("1h").build().unwrap();
    assert_eq!(left_of_a_hundred(&cache, &clock, 1_000_000_000).await, 100);
}

/// How long, in seconds, what `cache` keeps of `entry` is fresh.
async fn lasts(clock: &ManualClock, cache: &Numbers, entry: Loaded<u64>) -> u64 {
    cache.set_in_memory(1, entry).unwrap();
    let mut seconds = 0;
    while cache.get_in_memory(&1).is_some() {
        assert!(seconds < 100_000, "it never ends");
        clock.advance(secs(1));
        seconds += 1;
    }
    seconds
}

#[tokio::test]
async fn a_class_names_the_ttl_of_a_cache_and_of_one_entry() {
    let (larder, clock) = larder_with("t", |builder, _| {
        builder
            .ttl_class("search", "2m")
            .ttl_class("offer", secs(30))
    });
    let results: Numbers = larder.cache("c").class("search").build().unwrap();
    assert_eq!(lasts(&clock, &results, Loaded::value(7)).await, 120);
    let offer = || Loaded::value(7).class("offer");
    assert_eq!(lasts(&clock, &results, offer()).await, 30);
    let plain: Numbers = larder.cache("plain").build().unwrap();
    assert_eq!(lasts(&clock, &plain, offer()).await, 30);
    let live: Numbers = larder.cache("live").class("realtime").build().unwrap();
    assert_eq!(lasts(&clock, &live, Loaded::value(7)).await, 10);
}

fn refusal(built: Result<Numbers>) -> String {
    let error = built.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    error.to_string()
}

#[tokio::test]
async fn a_class_that_is_unknown_or_stands_beside_a_ttl_is_refused_with_the_mend() {
    let (larder, _clock) = larder("t");
    let unknown = refusal(larder.cache("c").class("serach").build());
    let known = "catalogue, profile, realtime, search, session";
    assert!(
        unknown.contains("`serach`") && unknown.contains(known),
        "{unknown}"
    );
    for both in [
        larder.cache("c").class("search").ttl("1h"),
        larder.cache("c").no_ttl().class("search"),
        larder.cache("c").options({
            let mut options = CacheOptions::default();
            options.class = Some("search".to_owned());
            options.ttl = Some(secs(5));
            options
        }),
    ] {
        let both = refusal(both.build());
        assert!(both.contains("leave one of them out"), "{both}");
    }
    let no_span = Larder::builder("t").ttl_class("search", "soon").build();
    assert!(
        no_span
            .unwrap_err()
            .to_string()
            .contains("TTL class `search`")
    );

    let cache: Numbers = larder.cache("c").build().unwrap();
    let loaded = cache.get_or_load(&1, |_| found(Loaded::value(7).class("offer")));
    let error = loaded.await.unwrap_err();
    assert!(error.to_string().contains(known), "{error}");
    let twice = cache.set_in_memory(1, Loaded::value(7).class("search").ttl("1s"));
    assert!(
        twice
            .unwrap_err()
            .to_string()
            .contains("leave one of them out")
    );
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
}
