//! How long a value is served, and what happens when its time is over.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::{another_process, failed, found, ms, never, secs, unasked, with_tier};
use larder::{Answered, Cache, ErrorKind, Larder, Loaded, Read, Reason, Source, State};
use larder_testkit::{Gate, LoadCounter, larder, settle};

type Numbers = Cache<u64, u64>;

/// Fresh for a minute, served for another hour while it is refreshed.
fn with_grace(larder: &Larder) -> Numbers {
    larder.cache("c").ttl("1m").grace("1h").build().unwrap()
}

async fn set(cache: &Numbers, key: u64, value: impl Into<Loaded<u64>>) {
    let _ = cache.set(key, value).await.unwrap();
}

#[tokio::test]
async fn a_fresh_value_is_served_without_a_load_until_its_ttl_ends() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").ttl("1m").build().unwrap();
    assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    clock.advance(ms(59_999));
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&7));
    clock.advance(ms(1));
    assert_eq!(cache.get_in_memory(&1), None);
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
}

#[tokio::test]
async fn a_value_without_ttl_never_expires() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").no_ttl().jitter(1.0).build().unwrap();
    set(&cache, 1, 7).await;
    clock.advance(secs(10 * 365 * 24 * 3600));
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
}

#[tokio::test]
async fn within_grace_the_stale_value_is_served_at_once_and_one_load_refreshes_it() {
    let (larder, clock) = larder("t");
    let cache = with_grace(&larder);
    let (gate, loads) = (Gate::new(), LoadCounter::new());
    set(&cache, 1, 7).await;
    clock.advance(secs(60));
    for _ in 0..100 {
        let (gate, loads) = (gate.clone(), loads.clone());
        let read = cache.with(Read::new());
        let load = |_| async move {
            let _load = loads.begin();
            gate.wait().await;
            Ok::<_, std::io::Error>(8)
        };
        let answered = read.get_or_load_explained(&1, load).await.unwrap();
        let Answered { value, outcome } = answered;
        assert_eq!((*value, outcome.state), (7, State::Stale));
        assert_eq!(
            (outcome.source, outcome.reason),
            (Source::Memory, Reason::Refreshing)
        );
        tokio::task::yield_now().await;
    }
    gate.arrived(1).await;
    gate.open();
    settle(&larder).await;
    assert_eq!(loads.starts(), 1);
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
    let stats = cache.stats();
    assert_eq!((stats.refreshes, stats.stale, stats.loads), (1, 100, 1));
}

#[tokio::test]
async fn behind_grace_a_reader_waits_for_the_load() {
    let (larder, clock) = larder("t");
    let cache = with_grace(&larder);
    set(&cache, 1, 7).await;
    clock.advance(secs(60 + 3600));
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
}

#[tokio::test]
async fn a_stale_value_stands_in_for_a_failed_load_and_the_source_is_left_alone_for_a_while() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("1h")
        .error_throttle("5s")
        .build()
        .unwrap();
    set(&cache, 1, 7).await;
    clock.advance(secs(120));
    let read = cache.with(Read::new());
    let first = read
        .get_or_load_explained(&1, |_| failed::<u64>())
        .await
        .unwrap();
    assert_eq!((*first.value, first.outcome.state), (7, State::Stale));
    assert_eq!(first.outcome.reason, Reason::LoadFailed);
    clock.advance(ms(4_999));
    let throttled = read.get_or_load_explained(&1, |_| never()).await.unwrap();
    assert_eq!(
        (*throttled.value, throttled.outcome.reason),
        (7, Reason::Throttled)
    );
    clock.advance(ms(1));
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
    assert_eq!(cache.stats().stood_in, 1);
}

#[tokio::test]
async fn a_failed_refresh_leaves_the_stale_value_and_waits_before_the_next_try() {
    let (larder, clock) = larder("t");
    let cache = with_grace(&larder);
    set(&cache, 1, 7).await;
    clock.advance(secs(60));
    assert_eq!(
        *cache.get_or_load(&1, |_| failed::<u64>()).await.unwrap(),
        7
    );
    settle(&larder).await;
    clock.advance(ms(4_999));
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
    settle(&larder).await;
    assert_eq!(cache.stats().refreshes, 1);
    clock.advance(ms(1));
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 7);
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
}

#[tokio::test]
async fn what_is_older_than_stale_on_error_does_not_stand_in() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("1h")
        .build()
        .unwrap();
    set(&cache, 1, 7).await;
    clock.advance(secs(60 + 3600));
    let error = cache
        .get_or_load(&1, |_| failed::<u64>())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
    assert_eq!(
        *cache.get_or_load(&1, |_| found(8)).await.unwrap(),
        8,
        "no error is cached"
    );
}

#[tokio::test]
async fn absence_is_not_remembered_unless_the_cache_says_so() {
    let (larder, clock) = larder("t");
    let forgetful: Numbers = larder.cache("forgetful").build().unwrap();
    assert_eq!(
        forgetful.get_or_load(&1, |_| found(None)).await.unwrap(),
        None
    );
    assert_eq!(
        forgetful
            .get_or_load(&1, |_| found(Some(7)))
            .await
            .unwrap()
            .as_deref(),
        Some(&7)
    );

    let mindful: Numbers = larder
        .cache("mindful")
        .negative_ttl("30s")
        .grace("1h")
        .build()
        .unwrap();
    assert_eq!(
        mindful.get_or_load(&1, |_| found(None)).await.unwrap(),
        None
    );
    clock.advance(ms(29_999));
    assert_eq!(
        mindful
            .get_or_load(&1, |_| unasked::<Option<u64>>())
            .await
            .unwrap(),
        None
    );
    assert_eq!(mindful.get(&1).await.unwrap(), None);
    clock.advance(ms(1));
    let loaded = mindful
        .get_or_load(&1, |_| found(Loaded::value(7)))
        .await
        .unwrap();
    assert_eq!(loaded.as_deref(), Some(&7), "absence has no grace");
}

#[tokio::test]
async fn a_loader_may_give_absence_a_ttl_of_its_own() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let absent = Loaded::<u64>::absent().ttl("10s");
    assert_eq!(
        cache.get_or_load(&1, |_| found(absent)).await.unwrap(),
        None
    );
    clock.advance(ms(9_999));
    assert_eq!(
        cache
            .get_or_load(&1, |_| unasked::<Option<u64>>())
            .await
            .unwrap(),
        None
    );
    clock.advance(ms(1));
    assert_eq!(
        cache
            .get_or_load(&1, |_| found(Some(7)))
            .await
            .unwrap()
            .as_deref(),
        Some(&7)
    );
}

#[tokio::test]
async fn a_loader_that_always_has_a_value_is_asked_in_spite_of_a_cached_absence() {
    let (larder, _clock, _tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").negative_ttl("30s").build().unwrap();
    assert_eq!(cache.get_or_load(&1, |_| found(None)).await.unwrap(), None);
    assert_eq!(
        *cache.get_or_load(&1, |_| found(7)).await.unwrap(),
        7,
        "past memory"
    );
    assert_eq!(cache.get_or_load(&2, |_| found(None)).await.unwrap(), None);
    cache.invalidate_in_memory(&2);
    assert_eq!(
        *cache.get_or_load(&2, |_| found(8)).await.unwrap(),
        8,
        "and past the tier"
    );
    cache.invalidate_in_memory(&2);
    assert_eq!(
        *cache.get_or_load(&2, |_| never()).await.unwrap(),
        8,
        "which has it now"
    );
}

#[tokio::test]
async fn a_loader_may_choose_ttl_and_grace() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").ttl("1h").build().unwrap();
    let loaded = Loaded::value(7_u64).ttl("10s").grace("20s");
    cache.get_or_load(&1, |_| found(loaded)).await.unwrap();
    clock.advance(ms(9_999));
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
    clock.advance(ms(1));
    assert_eq!(
        cache.get(&1).await.unwrap().as_deref(),
        Some(&7),
        "stale, and within grace"
    );
    clock.advance(secs(20));
    assert_eq!(cache.get(&1).await.unwrap(), None);
}

#[tokio::test]
async fn a_span_that_is_none_is_an_error_and_nothing_is_stored() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let soon = cache.get_or_load(&1, |_| found(Loaded::value(7_u64).ttl("soon")));
    let error = soon.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error.to_string().contains("ttl: `soon` is not a duration"),
        "{error}"
    );
    assert!(cache.set(1, Loaded::value(7).grace("soon")).await.is_err());
    assert_eq!(cache.get(&1).await.unwrap(), None);
}

#[tokio::test]
async fn a_value_that_is_not_to_be_stored_reaches_its_callers_alone() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    for loaded in [
        Loaded::no_store(7_u64),
        Loaded::value(7).ttl("0s"),
        Loaded::value(7).ttl(ms(0)),
    ] {
        let read = cache.with(Read::new());
        let read = read.get_or_load_explained(&1, |_| found(loaded)).await;
        let Answered { value, outcome } = read.unwrap();
        assert_eq!(
            (value.as_deref(), outcome.state),
            (Some(&7), State::NotStored)
        );
        settle(&larder).await;
        assert_eq!(cache.get(&1).await.unwrap(), None);
        assert!(tier.store().is_empty(), "not even a lease is left");
    }
    let zero: Numbers = larder.cache("zero").ttl("0s").build().unwrap();
    assert_eq!(*zero.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    assert_eq!(*zero.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
}

#[tokio::test]
async fn setting_what_is_not_to_be_stored_removes_what_was_there() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    set(&cache, 1, 7).await;
    set(&cache, 1, Loaded::no_store(8)).await;
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert!(tier.store().is_empty());
    cache.set_in_memory(1, 7).unwrap();
    cache.set_in_memory(1, Loaded::value(8).ttl(ms(0))).unwrap();
    assert_eq!(cache.get_in_memory(&1), None);
}

#[tokio::test]
async fn a_load_that_ends_without_a_value_to_keep_takes_the_stale_one_away() {
    for memory_only in [true, false] {
        let (larder, clock, _tier) = with_tier("t");
        let builder = larder.cache("c").ttl("1m").grace("1h").capacity(100);
        let cache: Numbers = if memory_only {
            builder.in_memory()
        } else {
            builder.build()
        }
        .unwrap();
        for nothing in [
            Loaded::absent,
            || Loaded::no_store(9),
            || Loaded::value(9).ttl("0s"),
        ] {
            set(&cache, 1, 7).await;
            clock.advance(secs(61));
            let served = cache.get_or_load(&1, |_| found(nothing())).await.unwrap();
            assert_eq!(served.as_deref(), Some(&7), "stale, while the refresh runs");
            settle(&larder).await;
            assert_eq!(
                cache.get(&1).await.unwrap(),
                None,
                "gone at the source, gone here"
            );
            assert!(cache.get_or_load(&1, |_| failed::<u64>()).await.is_err());
        }
    }
}

#[tokio::test]
async fn a_loader_sees_the_stale_value_with_its_validators_and_may_renew_it() {
    let (larder, clock, _tier) = with_tier("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("1h")
        .build()
        .unwrap();
    let loaded = Loaded::value(7_u64)
        .etag("\"a\"")
        .last_modified(1_700_000_000)
        .version(3);
    cache.get_or_load(&1, |_| found(loaded)).await.unwrap();
    for round in 0..3 {
        clock.advance(secs(60));
        if round == 2 {
            cache.invalidate_in_memory(&1);
        }
        let renewed = cache.get_or_load(&1, |load| {
            let stale = load.stale().expect("there is a stale value");
            assert_eq!(stale.value().map(|value| **value), Some(7));
            assert_eq!(stale.etag(), Some("\"a\""));
            assert_eq!(stale.last_modified(), Some(1_700_000_000));
            found(Loaded::not_modified())
        });
        assert_eq!(renewed.await.unwrap().as_deref(), Some(&7));
        assert_eq!(
            *cache.get_or_load(&1, |_| never()).await.unwrap(),
            7,
            "fresh again"
        );
    }
}

/// A value that counts how often one of its kind is encoded.
struct Counted(u64);

static ENCODED: AtomicUsize = AtomicUsize::new(0);

impl serde::Serialize for Counted {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ENCODED.fetch_add(1, Ordering::Relaxed);
        self.0.serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Counted {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self)
    }
}

#[tokio::test]
async fn who_accepts_nothing_stale_is_not_given_what_ends_in_this_very_millisecond() {
    let (larder, clock) = larder("t");
    let cache = with_grace(&larder);
    let strict = cache.with(Read::new().max_stale(ms(0)));
    set(&cache, 1, 7).await;
    clock.advance(secs(60));
    assert_eq!(*strict.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
    let _ = cache.expire(&1).await.unwrap();
    assert_eq!(*strict.get_or_load(&1, |_| found(9)).await.unwrap(), 9);
    assert!(strict.get_or_load(&1, |_| never()).await.is_ok(), "fresh");
}

#[tokio::test]
async fn what_was_not_modified_is_not_encoded_again() {
    let (in_memory, its_clock) = larder("t");
    let (above_a_tier, clock, _tier) = with_tier("t");
    for (larder, clock, has_tier) in [(in_memory, its_clock, false), (above_a_tier, clock, true)] {
        for options in ["stale_on_error", "grace"] {
            let cache = larder.cache(options).ttl("1m");
            let cache: Cache<u64, Counted> = match options {
                "grace" => cache.grace("1h").build().unwrap(),
                _ => cache.stale_on_error("1h").build().unwrap(),
            };
            let loaded = Loaded::value(Counted(7)).etag("a");
            cache.get_or_load(&1, |_| found(loaded)).await.unwrap();
            let before = ENCODED.load(Ordering::Relaxed);
            for round in 0..3 {
                clock.advance(secs(60));
                if has_tier && round == 2 {
                    // What the tier alone has is renewed as well.
                    cache.invalidate_in_memory(&1);
                }
                let renewed = cache.get_or_load(&1, |_| found(Loaded::not_modified()));
                assert_eq!(renewed.await.unwrap().map(|value| value.0), Some(7));
                settle(&larder).await;
                assert!(cache.get_in_memory(&1).is_some(), "fresh again");
            }
            let encoded = ENCODED.load(Ordering::Relaxed) - before;
            assert_eq!(encoded, 0, "{options}, over a tier: {has_tier}");
        }
    }
}

#[tokio::test]
async fn not_modified_without_a_stale_value_is_an_error() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let read = cache.get_or_load(&1, |load| {
        assert!(load.stale().is_none());
        found(Loaded::<u64>::not_modified())
    });
    let error = read.await.unwrap_err();
    assert!(
        error.is_load() && error.to_string().contains("not_modified"),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_that_cannot_be_an_entry_is_a_load_that_failed() {
    let (larder, clock, tier) = with_tier("t");
    let builder = larder.cache("c").ttl("1m").stale_on_error("1h");
    let cache: Numbers = builder.build().unwrap();
    set(&cache, 1, 7).await;
    clock.advance(secs(61));
    let unknown = || found(Loaded::value(8).class("serach"));
    let read = cache.get_or_load(&1, |_| unknown()).await;
    assert_eq!(
        read.unwrap().as_deref(),
        Some(&7),
        "the stale one stands in"
    );
    let error = cache.get_or_load(&2, |_| unknown()).await.unwrap_err();
    assert!(error.to_string().contains("serach"), "{error}");
    let free = common::lease_on(tier.store(), "t:c@1:2").await;
    assert_eq!(free, None, "nobody who asks at once waits for a lease");
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.load_errors, stats.stood_in), (2, 2, 1));
}

#[tokio::test]
async fn not_modified_renews_the_value_that_the_loader_was_shown() {
    let (larder, clock, tier) = with_tier("t");
    let cache = with_grace(&larder);
    set(&cache, 1, Loaded::value(7).etag("a")).await;
    clock.advance(secs(30));
    // Another process stores a newer value, which goes stale as well.
    let other = with_grace(&another_process("t", &clock, &tier));
    set(&other, 1, Loaded::value(8).etag("b")).await;
    clock.advance(secs(90));
    let read = cache.get_or_load(&1, |load| {
        let shown = load
            .stale()
            .and_then(|stale| stale.value().map(|value| **value));
        assert_eq!(shown, Some(7));
        found(Loaded::not_modified())
    });
    assert_eq!(read.await.unwrap().as_deref(), Some(&7));
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
}

#[tokio::test]
async fn jitter_shortens_each_fill_by_its_own_share() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").ttl("1s").jitter(0.5).build().unwrap();
    for key in 0..200 {
        set(&cache, key, key).await;
    }
    let fresh = || {
        (0..200)
            .filter(|key| cache.get_in_memory(key).is_some())
            .count()
    };
    clock.advance(ms(499));
    assert_eq!(fresh(), 200);
    clock.advance(ms(251));
    let halfway = fresh();
    assert!(
        (50..150).contains(&halfway),
        "{halfway} of 200 live three quarters of the TTL"
    );
    clock.advance(ms(250));
    assert_eq!(fresh(), 0);
}

#[tokio::test]
async fn jitter_is_drawn_once_and_all_tiers_share_it() {
    let (larder, clock, _tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").ttl("10s").jitter(1.0).build().unwrap();
    for key in 0..50 {
        let first = cache
            .with(Read::new())
            .get_or_load_explained(&key, |_| found(7))
            .await
            .unwrap();
        cache.invalidate_in_memory(&key);
        let again = cache.with(Read::new()).get_explained(&key).await.unwrap();
        assert_eq!(again.outcome.source, Source::Tier("memory-store".into()));
        assert_eq!(again.outcome.remaining, first.outcome.remaining);
    }
    drop(clock);
}

#[tokio::test]
async fn behind_its_memory_ttl_an_entry_is_looked_up_in_the_tier_again() {
    let (larder, clock, tier) = with_tier("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1h")
        .memory_ttl("10s")
        .build()
        .unwrap();
    let default: Numbers = larder.cache("default").ttl("1h").build().unwrap();
    let other_larder = another_process("t", &clock, &tier);
    let other: Numbers = other_larder.cache("c").ttl("1h").build().unwrap();
    let other_default: Numbers = other_larder.cache("default").ttl("1h").build().unwrap();
    for (cache, other, memory_ttl) in [(&cache, &other, 10), (&default, &other_default, 60)] {
        set(cache, 1, 7).await;
        set(other, 1, 8).await;
        clock.advance(secs(memory_ttl) - ms(1));
        assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
        clock.advance(ms(1));
        assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
        clock.advance(secs(memory_ttl) - ms(1));
        assert_eq!(
            cache.get_in_memory(&1).as_deref(),
            Some(&8),
            "for another memory TTL"
        );
    }
}

#[tokio::test]
async fn above_a_private_tier_memory_keeps_an_entry_for_its_whole_ttl() {
    let (larder, clock) =
        larder_testkit::larder_with("t", |builder, clock| builder.tier(common::faulty(clock).0));
    let cache: Numbers = larder.cache("c").ttl("1h").build().unwrap();
    set(&cache, 1, 7).await;
    clock.advance(secs(3599));
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&7));
}

#[tokio::test]
async fn an_expired_entry_is_stale_and_the_next_load_refreshes_it() {
    let (larder, _clock, _tier) = with_tier("t");
    let cache = with_grace(&larder);
    for through_tier in [false, true] {
        set(&cache, 1, 7).await;
        let _ = cache.expire(&1).await.unwrap();
        if through_tier {
            cache.invalidate_in_memory(&1);
        }
        let stale = cache
            .with(Read::new())
            .get_or_load_explained(&1, |_| found(8))
            .await
            .unwrap();
        assert_eq!(
            (*stale.value, stale.outcome.state),
            (7, State::Stale),
            "{}",
            stale.outcome
        );
        settle(&larder).await;
        assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
    }
}

#[tokio::test]
async fn an_expired_entry_without_grace_is_gone() {
    let (larder, _clock, _tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").ttl("1m").build().unwrap();
    set(&cache, 1, 7).await;
    let _ = cache.expire(&1).await.unwrap();
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
}

#[tokio::test]
async fn grace_counts_from_the_moment_an_entry_was_expired() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").ttl("1h").grace("10s").build().unwrap();
    set(&cache, 1, 7).await;
    let _ = cache.expire(&1).await.unwrap();
    clock.advance(ms(9_999));
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&7));
    clock.advance(ms(1));
    assert_eq!(cache.get_in_memory(&1), None);
}

#[tokio::test]
async fn expiring_an_entry_ends_its_pause_after_a_failed_load() {
    let (larder, clock) = larder("t");
    let cache = with_grace(&larder);
    set(&cache, 1, 7).await;
    clock.advance(secs(60));
    cache.get_or_load(&1, |_| failed::<u64>()).await.unwrap();
    settle(&larder).await;
    let _ = cache.expire(&1).await.unwrap();
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 7);
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
}

#[tokio::test]
async fn a_purged_value_never_comes_back_even_when_the_load_fails() {
    let (larder, clock, _tier) = with_tier("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .grace("1h")
        .stale_on_error("24h")
        .build()
        .unwrap();
    for age in [0, 61, 2 * 3600] {
        set(&cache, 1, 7).await;
        clock.advance(secs(age));
        let _ = cache.invalidate(&1).await.unwrap();
        assert!(cache.get_or_load(&1, |_| failed::<u64>()).await.is_err());
        assert_eq!(cache.get(&1).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_value_purged_while_its_load_fails_does_not_stand_in() {
    let (larder, clock, _tier) = with_tier("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("24h")
        .build()
        .unwrap();
    let gate = Gate::new();
    set(&cache, 1, 7).await;
    clock.advance(secs(61));
    let read = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move {
            let load = |_| async move {
                gate.wait().await;
                Err::<u64, _>(std::io::Error::other("no route"))
            };
            cache.get_or_load(&1, load).await
        }
    });
    gate.arrived(1).await;
    let _ = cache.invalidate(&1).await.unwrap();
    gate.open();
    assert!(read.await.unwrap().is_err());
    assert_eq!(cache.get(&1).await.unwrap(), None);
}

#[tokio::test]
async fn a_value_purged_while_a_caller_waits_does_not_stand_in_at_its_deadline() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("24h")
        .build()
        .unwrap();
    let gate = Gate::new();
    set(&cache, 1, 7).await;
    clock.advance(secs(61));
    let read = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move {
            let load = |_| async move {
                gate.wait().await;
                Ok::<u64, std::io::Error>(8)
            };
            cache
                .with(Read::new().deadline(ms(50)))
                .get_or_load(&1, load)
                .await
        }
    });
    gate.arrived(1).await;
    let _ = cache.invalidate(&1).await.unwrap();
    clock.advance(ms(50));
    assert!(read.await.unwrap().unwrap_err().is_timeout());
    gate.open();
    settle(&larder).await;
}

#[tokio::test]
async fn a_value_purged_between_two_tries_of_one_call_does_not_stand_in() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("24h")
        .build()
        .unwrap();
    let gate = Gate::new();
    set(&cache, 1, 7).await;
    clock.advance(secs(61));
    let absent = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move {
            let load = |_| async move {
                gate.wait().await;
                Ok::<Option<u64>, std::io::Error>(None)
            };
            cache.get_or_load(&1, load).await
        }
    });
    gate.arrived(1).await;
    // Joins the load above, cannot use its answer, and boards again; the value is purged by then.
    let mut second = Box::pin(cache.get_or_load(&1, |load| {
        assert!(load.stale().is_none(), "what is purged is not shown");
        failed::<u64>()
    }));
    assert!(common::polled(1, &mut second).await.is_none());
    let _ = cache.invalidate(&1).await.unwrap();
    gate.open();
    assert!(second.await.is_err());
    assert_eq!(absent.await.unwrap().unwrap(), None);
    assert_eq!(cache.get(&1).await.unwrap(), None);
}

#[tokio::test]
async fn a_caller_may_refuse_what_is_too_stale() {
    let (larder, clock) = larder("t");
    let cache = with_grace(&larder);
    set(&cache, 1, 7).await;
    clock.advance(secs(60 + 10));
    let strict = cache.with(Read::new().max_stale(secs(9)));
    assert_eq!(strict.get(&1).await.unwrap(), None);
    assert_eq!(
        cache
            .with(Read::new().max_stale(secs(10)))
            .get(&1)
            .await
            .unwrap()
            .as_deref(),
        Some(&7)
    );
    assert!(strict.get_or_load(&1, |_| failed::<u64>()).await.is_err());
    assert_eq!(
        *cache.get_or_load(&1, |_| never()).await.unwrap(),
        7,
        "others are served"
    );
    assert_eq!(*strict.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
}

#[tokio::test]
async fn what_a_tier_holds_is_as_stale_as_it_is_in_memory() {
    let (larder, clock, tier) = with_tier("t");
    let cache = with_grace(&larder);
    let other = with_grace(&another_process("t", &clock, &tier));
    set(&other, 1, 7).await;
    clock.advance(secs(60 + 10));
    let stale = |most| cache.with(Read::new().max_stale(secs(most)));
    assert_eq!(stale(9).get(&1).await.unwrap(), None);
    assert_eq!(stale(10).get(&1).await.unwrap().as_deref(), Some(&7));
    cache.invalidate_in_memory(&1);
    assert!(stale(9).get_or_load(&1, |_| failed::<u64>()).await.is_err());
    assert_eq!(
        *stale(10)
            .get_or_load(&1, |_| failed::<u64>())
            .await
            .unwrap(),
        7
    );
    settle(&larder).await;
}

#[tokio::test]
async fn a_strict_caller_waits_for_the_refresh_that_others_are_served_ahead_of() {
    let (larder, clock) = larder("t");
    let cache = with_grace(&larder);
    let gate = Gate::new();
    set(&cache, 1, 7).await;
    clock.advance(secs(70));
    let refresh = {
        let gate = gate.clone();
        cache.get_or_load(&1, |_| async move {
            gate.wait().await;
            Ok::<_, std::io::Error>(8)
        })
    };
    assert_eq!(*refresh.await.unwrap(), 7);
    gate.arrived(1).await;
    let strict = cache.with(Read::new().max_stale(secs(0)));
    let mut one = Box::pin(strict.get_or_load(&1, |_| never()));
    let mut many = Box::pin(strict.get_or_load_many(&[1], |_| unasked::<Vec<(u64, u64)>>()));
    assert!(common::polled(1, &mut one).await.is_none());
    assert!(
        common::polled(1, &mut many).await.is_none(),
        "a batch is as strict"
    );
    gate.open();
    assert_eq!(*one.await.unwrap(), 8);
    assert_eq!(many.await.unwrap()[0].as_deref(), Some(&8));
}

#[tokio::test]
async fn a_strict_caller_loads_when_another_process_refreshes_too_slowly() {
    let (larder, clock, tier) = with_tier("t");
    let cache = with_grace(&larder);
    let other_larder = another_process("t", &clock, &tier);
    let other = with_grace(&other_larder);
    let gate = Gate::new();
    set(&other, 1, 7).await;
    clock.advance(secs(70));
    let refresh = {
        let gate = gate.clone();
        other.get_or_load(&1, |_| async move {
            gate.wait().await;
            Ok::<_, std::io::Error>(9)
        })
    };
    assert_eq!(*refresh.await.unwrap(), 7);
    gate.arrived(1).await;
    let read = tokio::spawn({
        let cache = cache.clone();
        async move {
            let strict = cache.with(Read::new().max_stale(secs(1)));
            strict.get_or_load(&1, |_| found(8)).await
        }
    });
    while !read.is_finished() {
        clock.advance(ms(100));
        tokio::task::yield_now().await;
    }
    assert_eq!(*read.await.unwrap().unwrap(), 8);
    gate.open();
    settle(&other_larder).await;
}

#[tokio::test]
async fn a_caller_whose_deadline_passes_is_served_what_is_stale_or_gets_an_error() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("1h")
        .build()
        .unwrap();
    let gate = Gate::new();
    set(&cache, 1, 7).await;
    clock.advance(secs(120));
    for (key, expected) in [(1, Some(7)), (2, None)] {
        let read = tokio::spawn({
            let (cache, gate) = (cache.clone(), gate.clone());
            async move {
                let load = |_| async move {
                    gate.wait().await;
                    Ok::<_, std::io::Error>(8)
                };
                cache
                    .with(Read::new().deadline(ms(50)))
                    .get_or_load(&key, load)
                    .await
            }
        });
        gate.arrived(key as usize).await;
        clock.advance(ms(49));
        tokio::task::yield_now().await;
        assert!(!read.is_finished());
        clock.advance(ms(1));
        match (read.await.unwrap(), expected) {
            (Ok(value), Some(expected)) => assert_eq!(*value, expected),
            (Err(error), None) => assert_eq!(error.kind(), ErrorKind::LoadTimeout),
            (other, _) => panic!("key {key}: {other:?}"),
        }
    }
    gate.open();
    settle(&larder).await;
    assert_eq!(
        *cache.get_or_load(&2, |_| never()).await.unwrap(),
        8,
        "the load went on"
    );
}

#[tokio::test]
async fn a_batch_whose_deadline_passes_is_served_what_is_stale() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("1h")
        .build()
        .unwrap();
    let gate = Gate::new();
    set(&cache, 1, 7).await;
    set(&cache, 2, 8).await;
    clock.advance(secs(120));
    for (keys, expected) in [(vec![1, 2], Some(vec![7, 8])), (vec![1, 3], None)] {
        let read = tokio::spawn({
            let (cache, gate) = (cache.clone(), gate.clone());
            async move {
                let load = |keys: Vec<u64>| {
                    let gate = gate.clone();
                    async move {
                        gate.wait().await;
                        Ok::<_, std::io::Error>(
                            keys.into_iter().map(|key| (key, 9)).collect::<Vec<_>>(),
                        )
                    }
                };
                let hasty = cache.with(Read::new().deadline(ms(50)));
                hasty.get_or_load_many(&keys, load).await
            }
        });
        gate.arrived(1).await;
        tokio::task::yield_now().await;
        clock.advance(ms(50));
        match (read.await.unwrap(), expected) {
            (Ok(values), Some(expected)) => {
                let values: Vec<_> = values
                    .iter()
                    .map(|value| **value.as_ref().unwrap())
                    .collect();
                assert_eq!(values, expected);
            }
            (Err(error), None) => assert!(error.is_timeout()),
            (other, _) => panic!("{other:?}"),
        }
    }
    gate.open();
    settle(&larder).await;
}
