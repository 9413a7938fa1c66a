//! What calls of a cached function do to one another, and what becomes of them when something fails.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::collections::HashSet;
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use larder::{Cache, CallKey, ErrorKind, Larder, cached};
use larder_testkit::{Gate, seeded, settle};

/// Counts how often it is asked, for clones as well.
#[derive(Clone, Default)]
struct Source(Arc<AtomicU64>);

impl Source {
    fn ask(&self) -> u64 {
        self.0.fetch_add(1, SeqCst) + 1
    }

    fn asked(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

fn cache_of(larder: &Larder) -> Cache<CallKey, u64> {
    larder.cache("calls").in_memory().unwrap()
}

mod one_load {
    use super::*;

    #[cached(ignore = [source, gate])]
    async fn slow(source: &Source, gate: &Gate, id: u64) -> u64 {
        gate.wait().await;
        source.ask();
        id
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_hundred_callers_cause_one() {
        let (source, gate) = (Source::default(), Gate::new());
        let call = || {
            let (source, gate) = (source.clone(), gate.clone());
            tokio::spawn(async move { slow(&source, &gate, 7).await })
        };
        let calls: Vec<_> = (0..200).map(|_| call()).collect();
        gate.arrived(1).await;
        gate.open();
        for call in calls {
            assert_eq!(call.await.unwrap(), 7);
        }
        assert_eq!(source.asked(), 1);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_takes_no_load_with_it() {
        let (source, gate) = (Source::default(), Gate::new());
        let first = {
            let (source, gate) = (source.clone(), gate.clone());
            tokio::spawn(async move { slow(&source, &gate, 8).await })
        };
        gate.arrived(1).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        gate.open();
        assert_eq!(slow(&source, &gate, 8).await, 8);
        assert_eq!(source.asked(), 1);
    }
}

mod failures {
    use super::*;

    /// Neither `Clone` nor an error of this crate's making.
    #[derive(Debug)]
    struct Unique(Option<larder::Error>, &'static str);

    impl fmt::Display for Unique {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.1)
        }
    }

    impl std::error::Error for Unique {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.0.as_ref().map(|error| error as _)
        }
    }

    impl From<larder::Error> for Unique {
        fn from(error: larder::Error) -> Self {
            Self(Some(error), "of the cache")
        }
    }

    #[cached(ignore = [source, gate])]
    async fn converted(source: &Source, gate: &Gate) -> Result<u64, Unique> {
        gate.wait().await;
        source.ask();
        Err(Unique(None, "no route"))
    }

    #[cached(ignore = [source, gate])]
    async fn cloned(source: &Source, gate: &Gate) -> Result<u64, String> {
        gate.wait().await;
        Err(format!("no route {}", source.ask()))
    }

    #[tokio::test]
    async fn everybody_who_waited_gets_the_error_of_the_one_load() {
        let (source, gate) = (Source::default(), Gate::new());
        let (first, second) = (cloned(&source, &gate), cloned(&source, &gate));
        let (third, fourth) = (converted(&source, &gate), converted(&source, &gate));
        let open = async {
            gate.arrived(2).await;
            gate.open();
        };
        let (first, second, third, fourth, ()) = tokio::join!(first, second, third, fourth, open);
        assert_eq!(first, second);
        assert!(first.unwrap_err().starts_with("no route"));
        for error in [third.unwrap_err(), fourth.unwrap_err()] {
            let shared = error.0.unwrap();
            assert_eq!(shared.loader::<Unique>().unwrap().to_string(), "no route");
        }
        assert_eq!(source.asked(), 2, "one load of each function");
    }

    #[cached(ignore = [source])]
    async fn panics(source: &Source) -> larder::Result<u64> {
        assert!(source.ask() > 1, "the first time");
        Ok(7)
    }

    #[cached(ignore = [source])]
    async fn panics_plainly(source: &Source) -> u64 {
        assert!(source.ask() > 1, "the first time");
        7
    }

    #[cached(ignore = [source])]
    async fn panics_with_errors_of_its_own(source: &Source) -> Result<u64, String> {
        assert!(source.ask() > 1, "the first time");
        Ok(7)
    }

    #[tokio::test]
    async fn a_panic_is_an_error_where_one_can_be_returned_and_runs_the_function_anew_elsewhere() {
        let source = Source::default();
        let error = panics(&source).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoadPanicked);
        assert!(error.source().is_none());
        assert_eq!(panics(&source).await.unwrap(), 7);
        assert_eq!(panics_plainly(&Source::default()).await, 7);
        let own = panics_with_errors_of_its_own(&Source::default()).await;
        assert_eq!(own, Ok(7));
    }

    #[cached(cache = cache, ignore = [source])]
    async fn plain(cache: &Cache<CallKey, u64>, source: &Source) -> u64 {
        source.ask()
    }

    #[cached(cache = cache, ignore = [source])]
    async fn fallible(cache: &Cache<CallKey, u64>, source: &Source) -> larder::Result<u64> {
        Ok(source.ask())
    }

    #[tokio::test]
    async fn a_larder_that_was_shut_down_fails_no_function() {
        let (larder, source) = (Larder::local(), Source::default());
        let cache = cache_of(&larder);
        let _ = larder.shutdown(Duration::from_secs(1)).await;
        assert_eq!(plain(&cache, &source).await, 1);
        assert_eq!(fallible(&cache, &source).await.unwrap(), 2);
        assert!(fallible_invalidate(&cache).await.is_err());
    }

    #[test]
    fn without_a_runtime_the_function_runs_without_the_cache() {
        let (cache, source) = (cache_of(&Larder::local()), Source::default());
        let ready = |call: &mut dyn FnMut(&mut Context<'_>) -> Poll<u64>| {
            let Poll::Ready(value) = call(&mut Context::from_waker(Waker::noop())) else {
                panic!("there is nothing to wait for")
            };
            value
        };
        for expected in [1, 2] {
            let mut call = pin!(plain(&cache, &source));
            assert_eq!(ready(&mut |context| call.as_mut().poll(context)), expected);
        }
    }

    #[cached(key = "{name}", cache = cache)]
    async fn named(cache: &Cache<CallKey, u64>, name: &str) -> u64 {
        name.len() as u64
    }

    #[tokio::test]
    async fn a_key_that_cannot_be_stored_fails_no_function() {
        let cache = cache_of(&Larder::local());
        for name in [String::new(), "x".repeat(40_000)] {
            assert_eq!(named(&cache, &name).await, name.len() as u64);
        }
        assert_eq!(cache.stats().entries, 0);
    }
}

mod freshness {
    use super::*;

    #[cached(cache = cache, ttl = "10s", grace = "1h", negative = "2s", ignore = [source])]
    async fn waits(cache: &Cache<CallKey, u64>, source: &Source) -> Option<u64> {
        Some(source.ask()).filter(|answer| answer % 2 == 0)
    }

    #[tokio::test]
    async fn times_of_the_function_come_before_those_of_the_cache() {
        let (larder, clock) = larder_testkit::larder("t");
        let (cache, source) = (cache_of(&larder), Source::default());
        assert_eq!(waits(&cache, &source).await, None);
        clock.advance(Duration::from_millis(1_900));
        assert_eq!(waits(&cache, &source).await, None);
        assert_eq!(source.asked(), 1);
        clock.advance(Duration::from_millis(200));
        assert_eq!(waits(&cache, &source).await, Some(2));
        clock.advance(Duration::from_secs(9));
        assert_eq!(waits(&cache, &source).await, Some(2));
        assert_eq!(source.asked(), 2);
        source.ask();
        clock.advance(Duration::from_secs(2));
        assert_eq!(waits(&cache, &source).await, Some(2), "stale, within grace");
        settle(&larder).await;
        assert_eq!(waits(&cache, &source).await, Some(4), "refreshed");
    }

    #[cached(cache = cache, ttl = "10s", grace = "1h", ignore = [source])]
    fn now(cache: &Cache<CallKey, u64>, source: &Source) -> Result<u64, String> {
        match source.ask() {
            2 => Err("no route".to_owned()),
            answer => Ok(answer),
        }
    }

    #[test]
    fn a_stale_value_stands_in_for_an_error_within_grace() {
        let (larder, clock) = larder_testkit::larder("t");
        let (cache, source) = (cache_of(&larder), Source::default());
        assert_eq!(now(&cache, &source), Ok(1));
        clock.advance(Duration::from_secs(11));
        assert_eq!(now(&cache, &source), Ok(1), "the load failed");
        assert_eq!(now(&cache, &source), Ok(1), "the source is left alone");
        clock.advance(Duration::from_secs(5));
        assert_eq!(now(&cache, &source), Ok(3));
    }

    #[cached(ttl = "none", max_entries = 10)]
    fn bounded(n: u64) -> u64 {
        n
    }

    #[test]
    fn a_cache_of_its_own_is_bounded() {
        for n in 0..1_000 {
            assert_eq!(bounded(n), n);
        }
        let info = bounded_info();
        assert_eq!((info.bound, info.misses), (10, 1_000));
        assert!(info.entries <= 10, "{info:?}");
    }
}

mod invalidation {
    use super::*;

    #[cached(cache = cache, tags = ["all", "org:{org}"], ignore = [source])]
    async fn tagged(cache: &Cache<CallKey, u64>, source: &Source, org: &str) -> u64 {
        assert!(!org.is_empty());
        source.ask()
    }

    #[tokio::test]
    async fn tags_are_templates() {
        let (larder, source) = (Larder::local(), Source::default());
        let cache = cache_of(&larder);
        assert_eq!(tagged(&cache, &source, "acme").await, 1);
        assert_eq!(tagged(&cache, &source, "a:b").await, 2);
        let _ = larder.invalidate_tag("org:acme").await.unwrap();
        assert_eq!(tagged(&cache, &source, "acme").await, 3);
        assert_eq!(tagged(&cache, &source, "a:b").await, 2);
        let _ = tagged_invalidate_tag(&cache, "org:a:b").await.unwrap();
        assert_eq!(tagged(&cache, &source, "acme").await, 3);
        assert_eq!(tagged(&cache, &source, "a:b").await, 4);
        let _ = tagged_invalidate_tag(&cache, "all").await.unwrap();
        assert_eq!(tagged(&cache, &source, "acme").await, 5);
        assert!(tagged_invalidate_tag(&cache, "").await.is_err());
    }

    #[cached(cache = cache, tags = ["{tag}"], ignore = [source])]
    async fn labelled(cache: &Cache<CallKey, u64>, source: &Source, tag: &str) -> u64 {
        assert!(tag.len() < 10_000);
        source.ask()
    }

    #[tokio::test]
    async fn what_cannot_be_labelled_is_returned_and_not_kept() {
        let (cache, source) = (cache_of(&Larder::local()), Source::default());
        for (tag, asked) in [("", 1), ("", 2), (&"x".repeat(2_000), 3), ("x", 4)] {
            assert_eq!(labelled(&cache, &source, tag).await, asked);
        }
        assert_eq!(cache.stats().entries, 1);
    }

    #[cached(cache = cache, ignore = [happens])]
    fn meanwhile(cache: &Cache<CallKey, u64>, happens: fn(&Cache<CallKey, u64>), n: u64) -> u64 {
        happens(cache);
        n
    }

    #[test]
    fn what_was_invalidated_during_a_call_is_returned_and_not_kept() {
        let cache = cache_of(&Larder::local());
        let during: [fn(&Cache<CallKey, u64>); 2] = [
            |cache| meanwhile_invalidate(cache, 7),
            |cache| meanwhile_clear(cache),
        ];
        for happens in during {
            assert_eq!(meanwhile(&cache, happens, 7), 7);
            assert_eq!(cache.stats().entries, 0);
        }
        meanwhile(&cache, |_| {}, 7);
        assert_eq!(cache.stats().entries, 1);
    }

    #[derive(Clone)]
    struct Shop {
        prices: Cache<CallKey, u64>,
        totals: Cache<CallKey, u64>,
        source: Source,
    }

    impl Shop {
        #[cached(cache = self.prices)]
        async fn price(&self, id: u64) -> u64 {
            assert_eq!(id, 7);
            self.source.ask()
        }

        #[cached(cache = self.totals)]
        async fn total(&self, id: u64) -> u64 {
            self.price(id).await * 10
        }

        #[cached(cache = self.prices)]
        fn price_now(&self, id: u64) -> u64 {
            assert_eq!(id, 7);
            self.source.ask()
        }

        #[cached(cache = self.totals)]
        fn total_now(&self, id: u64) -> u64 {
            self.price_now(id) * 10
        }
    }

    #[tokio::test]
    async fn a_function_depends_on_those_of_its_larder_that_it_calls() {
        let (larder, source) = (Larder::local(), Source::default());
        let shop = Shop {
            prices: larder.cache("price").in_memory().unwrap(),
            totals: larder.cache("total").in_memory().unwrap(),
            source,
        };
        assert_eq!(shop.total(7).await, 10);
        let _ = shop.price_invalidate(7).await.unwrap();
        assert_eq!(shop.total(7).await, 20);
        assert_eq!(shop.total_now(7), 30);
        shop.price_now_invalidate(7);
        assert_eq!(shop.total_now(7), 40);
    }
}

mod keys {
    use super::*;

    #[cached(key = "{a}:x-{b}:{c}")]
    fn by_template(a: &str, b: &str, c: (String, i8)) -> String {
        format!("{a:?} {b:?} {c:?}")
    }

    #[cached]
    fn by_arguments(a: &str, b: &[u8], c: (String, i8), d: bool) -> String {
        format!("{a:?} {b:?} {c:?} {d}")
    }

    /// Short texts of few letters, among them all that mean something in a key.
    fn text(rng: &mut fastrand::Rng) -> String {
        let letters = [":", "%", "{", "}", "a", "3A", "x-", "", " ", "é", "\0"];
        (0..rng.usize(0..4))
            .map(|_| letters[rng.usize(..letters.len())])
            .collect()
    }

    #[test]
    fn calls_that_differ_never_share_a_result() {
        let mut seen = HashSet::new();
        seeded(20, |rng, _| {
            for _ in 0..500 {
                let (a, b) = (text(rng), text(rng));
                let c = (text(rng), rng.i8(-2..2));
                assert_eq!(
                    by_template(&a, &b, c.clone()),
                    by_template_uncached(&a, &b, c.clone())
                );
                let (bytes, d) = (b.as_bytes(), rng.bool());
                let expected = by_arguments_uncached(&a, bytes, c.clone(), d);
                assert_eq!(by_arguments(&a, bytes, c.clone(), d), expected);
                seen.insert(expected);
            }
        });
        assert!(seen.len() > 1_000, "{} different calls", seen.len());
        assert!(by_arguments_info().misses >= seen.len() as u64);
    }
}
