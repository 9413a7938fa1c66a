//! What is wrong is said at once, by the call that is wrong, and nothing is stored.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{found, secs, soon, unasked, with_tier};
use larder::{Cache, CacheOptions, ErrorKind, Larder, Loaded};
use larder_testkit::{larder, settle};

type Texts = Cache<String, u64>;

#[tokio::test]
async fn empty_and_oversized_keys_are_errors_of_every_call_and_store_nothing() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Texts = larder.cache("c").build().unwrap();
    for key in [String::new(), "x".repeat(40_000)] {
        let load = |_| found(7_u64);
        let many =
            |keys: Vec<String>| found(keys.into_iter().map(|key| (key, 7_u64)).collect::<Vec<_>>());
        let keys = ["fine".to_owned(), key.clone()];
        let errors = [
            cache.get(&key).await.map(drop),
            cache.get(key.as_str()).await.map(drop),
            cache.get_or_load(&key, load).await.map(drop),
            cache.get_or_load_many(&keys, many).await.map(drop),
            cache.set(key.clone(), 7).await.map(drop),
            cache.set_in_memory(key.clone(), 7),
            cache.invalidate(&key).await.map(drop),
            cache.expire(&key).await.map(drop),
        ];
        for (call, error) in errors.into_iter().enumerate() {
            let error = error.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Key, "call {call}");
        }
        assert_eq!(cache.get_in_memory(&key), None);
        cache.invalidate_in_memory(&key);
    }
    settle(&larder).await;
    assert_eq!((cache.stats().entries, tier.store().len()), (0, 0));
    let fine = soon(cache.get_or_load("fine", |_| found(7))).await;
    assert_eq!(*fine.unwrap(), 7, "the good key of a bad batch is free");
}

#[tokio::test]
async fn keys_of_any_bytes_are_kept_apart() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Cache<(String, String), u64> = larder.cache("c").build().unwrap();
    let odd = [
        "a:b", "a", "b:c", "c", "", "{x}", "*", "é", "\r\n", "\0", "%41", "A", " ",
    ];
    let mut number = 0;
    for left in odd {
        for right in odd {
            let _ = cache
                .set((left.to_owned(), right.to_owned()), number)
                .await
                .unwrap();
            number += 1;
        }
    }
    assert_eq!(tier.store().len(), odd.len() * odd.len());
    larder.caches()[0].forget_all();
    let mut number = 0;
    for left in odd {
        for right in odd {
            let found = cache
                .get(&(left.to_owned(), right.to_owned()))
                .await
                .unwrap();
            assert_eq!(found.as_deref(), Some(&number), "{left:?}, {right:?}");
            number += 1;
        }
    }
}

fn problem(built: larder::Result<Texts>) -> String {
    let error = built.unwrap_err();
    assert!(error.is_config(), "{error:?}");
    error.to_string()
}

#[test]
fn options_that_make_no_sense_are_errors_of_the_build_that_name_them() {
    let larder = Larder::local();
    let cache = || larder.cache("c");
    for (problem, words) in [
        (
            problem(cache().jitter(2.0).build()),
            ["jitter", "from 0 to 1"],
        ),
        (
            problem(cache().jitter(-0.1).build()),
            ["jitter", "from 0 to 1"],
        ),
        (
            problem(cache().jitter(f64::NAN).build()),
            ["jitter", "from 0 to 1"],
        ),
        (
            problem(cache().capacity(1).capacity_bytes(1).build()),
            ["capacity", "capacity_bytes"],
        ),
        (
            problem(cache().load_concurrency(0).build()),
            ["load_concurrency", "at least one"],
        ),
        (
            problem(cache().load_concurrency(usize::MAX).build()),
            ["load_concurrency", "range"],
        ),
        (
            problem(cache().load_deadline("0s").build()),
            ["load_deadline", "zero"],
        ),
        (
            problem(cache().ttl("1 fortnight").build()),
            ["ttl: `1 fortnight`", "not a duration"],
        ),
        (problem(cache().ttl("").build()), ["ttl", "not a duration"]),
        (
            problem(cache().grace("-1s").build()),
            ["grace", "not a duration"],
        ),
        (
            problem(cache().stale_on_error("x").build()),
            ["stale_on_error", "\"1h 30m\""],
        ),
        (
            problem(cache().error_throttle("x").build()),
            ["error_throttle", "cache `c`"],
        ),
        (
            problem(cache().negative_ttl("x").build()),
            ["negative_ttl", "cache `c`"],
        ),
        (
            problem(cache().memory_ttl("x").build()),
            ["memory_ttl", "cache `c`"],
        ),
        (
            problem(cache().load_deadline("x").build()),
            ["load_deadline", "cache `c`"],
        ),
        (problem(cache().lease("x").build()), ["lease", "cache `c`"]),
        (
            problem(cache().lease_wait("x").build()),
            ["lease_wait", "cache `c`"],
        ),
        (
            problem(cache().ttl("x").grace("y").build()),
            ["ttl: `x`", "not a duration"],
        ),
    ] {
        for word in words {
            assert!(problem.contains(word), "{problem:?} says {word:?}");
        }
    }
    assert!(
        larder.caches().is_empty(),
        "nothing was registered, and the name is free"
    );
    let _: Texts = larder.cache("c").build().unwrap();
}

#[test]
fn names_that_cannot_stand_in_a_key_are_errors() {
    for name in ["", "a:b", "a b", "é", "a/b", "{a}", &"x".repeat(65)] {
        let error = Larder::builder(name).build().unwrap_err();
        assert!(
            error.is_config() && error.to_string().contains("namespace"),
            "{error}"
        );
        let error = problem(Larder::local().cache(name).build());
        assert!(error.contains("cache name"), "{error}");
    }
    for name in ["a", "product-2.old_one", &"x".repeat(64)] {
        let larder = Larder::builder(name).build().unwrap();
        let _: Texts = larder.cache(name).build().unwrap();
    }
    let error = Larder::builder("t")
        .tier_budget(secs(0))
        .build()
        .unwrap_err();
    assert!(error.is_config(), "{error}");
}

#[tokio::test]
async fn one_name_is_one_cache() {
    let (larder, _clock, _tier) = with_tier("t");
    let first: Texts = larder.cache("c").ttl("1m").capacity(100).build().unwrap();
    let again: Texts = larder.cache("c").ttl("60s").capacity(100).build().unwrap();
    first.set_in_memory("k".to_owned(), 7).unwrap();
    assert_eq!(
        again.get_in_memory("k").as_deref(),
        Some(&7),
        "the same cache"
    );
    assert_eq!(larder.caches().len(), 1);

    let other_value: larder::Result<Cache<String, String>> = larder.cache("c").build();
    let error = other_value.unwrap_err().to_string();
    assert!(error.contains("`c`") && error.contains("u64"), "{error}");
    let other_key: larder::Result<Cache<u64, u64>> = larder.cache("c").build();
    assert!(other_key.unwrap_err().is_config());
    let same = || larder.cache::<String, u64>("c").ttl("1m").capacity(100);
    assert!(problem(same().version(2).build()).contains("version"));
    assert!(problem(same().ttl("2m").build()).contains("options"));
    assert!(
        problem(same().in_memory()).contains("memory"),
        "one is above tiers and one is not"
    );
}

#[tokio::test]
async fn versions_of_a_value_type_do_not_meet_in_a_tier() {
    let (larder, clock, tier) = with_tier("t");
    let old: Texts = larder.cache("c").build().unwrap();
    let _ = old.set("k".to_owned(), 7).await.unwrap();
    let other = common::another_process("t", &clock, &tier);
    let new: Cache<String, String> = other.cache("c").version(2).build().unwrap();
    assert_eq!(new.get("k").await.unwrap(), None);
    old.invalidate_in_memory("k");
    assert_eq!(old.get("k").await.unwrap().as_deref(), Some(&7));
    // What is invalidated is the key, whatever its values look like here or there.
    let _ = new.invalidate("k").await.unwrap();
    old.invalidate_in_memory("k");
    assert_eq!(old.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn a_capacity_of_zero_stores_nothing_and_loads_all_the_same() {
    let (larder, _clock) = larder("t");
    for (name, bytes) in [("entries", false), ("bytes", true)] {
        let cache = larder.cache(name);
        let cache = if bytes {
            cache.capacity_bytes(0)
        } else {
            cache.capacity(0)
        };
        let cache: Cache<u64, u64> = cache.build().unwrap();
        for value in 0..3 {
            assert_eq!(
                *cache.get_or_load(&1, |_| found(value)).await.unwrap(),
                value
            );
        }
        let _ = cache.set(1, 7).await.unwrap();
        assert_eq!(cache.get_in_memory(&1), None);
        let stats = cache.stats();
        assert_eq!(
            (stats.entries, stats.weight, stats.bound, stats.too_large),
            (0, 0, 0, 4)
        );
    }
}

#[tokio::test]
async fn without_memory_the_tier_answers() {
    let (larder, _clock, _tier) = with_tier("t");
    let cache: Cache<u64, u64> = larder.cache("c").capacity(0).build().unwrap();
    assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    assert_eq!(
        *cache.get_or_load(&1, |_| unasked::<u64>()).await.unwrap(),
        7
    );
    assert_eq!(cache.stats().hits_tiers, 1);
}

#[tokio::test]
async fn ttls_below_a_millisecond_and_beyond_all_bounds_are_rounded() {
    let (larder, clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").jitter(1.0).grace("1h").build().unwrap();
    let tiny = Loaded::value(7)
        .ttl(std::time::Duration::from_nanos(1))
        .grace("0s");
    let _ = cache.set(1, tiny).await.unwrap();
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&7));
    clock.advance(common::ms(1));
    assert_eq!(cache.get_in_memory(&1), None);
    let huge = Loaded::value(8)
        .ttl(std::time::Duration::MAX)
        .grace(std::time::Duration::MAX);
    let _ = cache.set(2, huge).await.unwrap();
    clock.advance(secs(50 * 365 * 24 * 3600));
    assert_eq!(cache.get_in_memory(&2).as_deref(), Some(&8));
    let options = CacheOptions::default();
    let _: Cache<u64, u64> = larder.cache("default").options(options).build().unwrap();
}

#[tokio::test]
async fn a_weigher_that_panics_is_as_good_as_none() {
    let (larder, _clock, tier) = with_tier("t");
    let builder = larder.cache::<u64, u64>("c").capacity_bytes(1 << 20);
    let cache = builder
        .weigher(|_, _| panic!("too heavy to tell"))
        .build()
        .unwrap();
    assert_eq!(*soon(cache.get_or_load(&1, |_| found(7))).await.unwrap(), 7);
    settle(&larder).await;
    assert_eq!(common::lease_on(tier.store(), "t:c@1:1").await, None);
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&7));
    assert!(cache.stats().weight > 0);
}

#[test]
fn outside_a_runtime_memory_works_and_the_rest_says_so() {
    let larder = Larder::local();
    let cache: Cache<u64, u64> = larder.cache("c").in_memory().unwrap();
    cache.set_in_memory(1, 7).unwrap();
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&7));
    let hit = poll_once(cache.get_or_load(&1, |_| unasked::<u64>()));
    assert_eq!(*hit.unwrap(), 7);
    let error = poll_once(cache.get_or_load(&2, |_| found(7))).unwrap_err();
    assert!(
        error.is_config() && error.to_string().contains("runtime"),
        "{error}"
    );
}

fn poll_once<F: Future>(future: F) -> F::Output {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("this needs no waiting"),
    }
}
