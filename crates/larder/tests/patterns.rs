//! Invalidating whatever matches a glob, in memory and in tiers.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{
    Faulty, another_process, bytes_of, faulty, found, put, soon, with_tier, with_two_tiers,
};
use larder::clock::{BoxFuture, Millis};
use larder::store::{
    Capabilities, Fill, Filled, LeaseRequest, LeaseToken, Leased, StoreError, StoreErrorKind,
    StoreResult, Swept, Write,
};
use larder::{Cache, ErrorKind, Invalidation, Larder, Loaded, Progress, Store};
use larder_testkit::{Gate, ManualClock, Operation, StoreFault, settle};

type Pages = Cache<(String, u64), u64>;

fn larders() -> Vec<(&'static str, Larder, Arc<ManualClock>, Vec<Faulty>)> {
    let (alone, alone_clock) = larder_testkit::larder("t");
    let (one, one_clock, tier) = with_tier("t");
    let (two, two_clock, upper, lower) = with_two_tiers("t");
    vec![
        ("memory alone", alone, alone_clock, vec![]),
        ("one tier", one, one_clock, vec![tier]),
        ("two tiers", two, two_clock, vec![upper, lower]),
    ]
}

#[tokio::test]
async fn a_glob_takes_what_it_matches_and_nothing_else() {
    let all = ["user", "users", "us:er", "us*er", "naïve"];
    let cases: [(&str, &[&str]); 8] = [
        ("user:*", &["user"]),
        ("user*", &["user", "users"]),
        ("us?er:1", &["us:er", "us*er"]),
        (r"us\*er:1", &["us*er"]),
        ("us[:x]er:*", &["us:er"]),
        ("us[!:]er:1", &["us*er"]),
        ("naïve:?", &["naïve"]),
        ("*:2", &[]),
    ];
    for (glob, gone) in cases {
        for (here, larder, clock, stores) in larders() {
            let pages: Pages = larder.cache("page").build().unwrap();
            let others: Pages = larder.cache("pages").build().unwrap();
            for name in all {
                let _ = pages.set((name.to_owned(), 1), 1).await.unwrap();
                let _ = others.set((name.to_owned(), 1), 1).await.unwrap();
            }
            let receipt = pages.invalidate_matching(glob).await.unwrap();
            assert!(receipt.is_acked());
            settle(&larder).await;
            let mut larders = vec![larder];
            larders.extend(
                stores
                    .last()
                    .map(|store| another_process("t", &clock, store)),
            );
            for larder in &larders {
                let pages: Pages = larder.cache("page").build().unwrap();
                let others: Pages = larder.cache("pages").build().unwrap();
                for name in all {
                    let key = (name.to_owned(), 1);
                    let left = pages.get(&key).await.unwrap().is_some();
                    assert_eq!(left, !gone.contains(&name), "{glob} on {name}, {here}");
                    assert!(others.get(&key).await.unwrap().is_some(), "{glob}, {here}");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_stands_in_the_tier_alone_goes_too_and_foreign_keys_stay() {
    let (larder, clock, tier) = with_tier("t");
    let other: Pages = another_process("t", &clock, &tier)
        .cache("page")
        .build()
        .unwrap();
    let _ = other.set(("user".to_owned(), 1), 1).await.unwrap();
    put(tier.store(), "t:page@1:user:1:more", "not ours").await;
    put(tier.store(), "u:page@1:user:1", "not ours").await;
    let pages: Pages = larder.cache("page").build().unwrap();
    let _ = pages.invalidate_matching("user:?").await.unwrap();
    other.invalidate_in_memory(&("user".to_owned(), 1));
    assert_eq!(other.get(&("user".to_owned(), 1)).await.unwrap(), None);
    for foreign in ["t:page@1:user:1:more", "u:page@1:user:1"] {
        assert!(bytes_of(tier.store(), foreign).await.is_some(), "{foreign}");
    }
}

#[tokio::test]
async fn a_load_that_began_before_is_stored_nowhere() {
    for (here, larder, clock, stores) in larders() {
        let pages: Pages = larder.cache("page").build().unwrap();
        let key = || ("user".to_owned(), 1);
        let gate = Gate::new();
        let load = tokio::spawn({
            let (pages, gate) = (pages.clone(), gate.clone());
            let load = |_| async move {
                gate.wait().await;
                Ok::<_, std::io::Error>(7)
            };
            async move { pages.get_or_load(&key(), load).await }
        });
        gate.arrived(1).await;
        let _ = pages.invalidate_matching("user:*").await.unwrap();
        let after = pages.get_or_load(&key(), |_| found(8)).await.unwrap();
        assert_eq!(*after, 8, "{here}");
        let _ = pages.invalidate_matching("user:*").await.unwrap();
        gate.open();
        assert_eq!(*soon(load).await.unwrap().unwrap(), 7);
        settle(&larder).await;
        assert_eq!(pages.get(&key()).await.unwrap(), None, "{here}");
        if let Some(store) = stores.last() {
            let other: Pages = another_process("t", &clock, store)
                .cache("page")
                .build()
                .unwrap();
            assert_eq!(other.get(&key()).await.unwrap(), None, "{here}");
        }
    }
}

#[tokio::test]
async fn what_depends_on_a_key_that_matches_goes_even_if_the_key_is_long_gone() {
    for (here, larder, clock, stores) in larders() {
        let product: Cache<String, u64> = larder.cache("product").build().unwrap();
        let page: Cache<u64, u64> = larder.cache("page").build().unwrap();
        for (n, name) in ["a:b", "c"].into_iter().enumerate() {
            let made = Loaded::value(1).depends_on(&product, name);
            let _ = page.set(n as u64, made).await.unwrap();
        }
        let _ = product.invalidate_matching("a*").await.unwrap();
        assert_eq!(page.get(&0).await.unwrap(), None, "{here}");
        assert!(page.get(&1).await.unwrap().is_some(), "{here}");
        if let Some(store) = stores.last() {
            let other = another_process("t", &clock, store);
            let there: Cache<u64, u64> = other.cache("page").build().unwrap();
            assert_eq!(there.get(&0).await.unwrap(), None, "{here}");
            assert!(there.get(&1).await.unwrap().is_some(), "{here}");
        }
    }
}

#[tokio::test]
async fn a_glob_as_data_does_the_same_for_a_cache_that_is_not_here() {
    let (larder, clock, tier) = with_tier("t");
    let other: Pages = another_process("t", &clock, &tier)
        .cache("page")
        .build()
        .unwrap();
    let _ = other.set(("user".to_owned(), 1), 1).await.unwrap();
    let what = [Invalidation::pattern("page", "user:*")];
    assert!(larder.invalidate_each(what).await.unwrap().is_acked());
    other.invalidate_in_memory(&("user".to_owned(), 1));
    assert_eq!(other.get(&("user".to_owned(), 1)).await.unwrap(), None);
}

#[tokio::test]
async fn what_cannot_be_read_as_a_glob_is_an_error_and_takes_nothing() {
    let (larder, _clock, _tier) = with_tier("t");
    let pages: Pages = larder.cache("page").build().unwrap();
    let key = ("user".to_owned(), 1);
    let _ = pages.set(key.clone(), 1).await.unwrap();
    let long = "*a".repeat(600);
    for glob in ["", "[a", "[]", "a\\", &long] {
        let error = pages.invalidate_matching(glob).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{glob}");
        let what = [
            Invalidation::pattern("page", glob),
            Invalidation::cache("page"),
        ];
        let error = larder.invalidate_each(what).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{glob}");
    }
    assert!(pages.get(&key).await.unwrap().is_some());
}

/// What a watcher was told.
type Told = Arc<std::sync::Mutex<Vec<Progress>>>;

async fn many_users(pages: &Pages, users: u64) {
    for at in 0..users {
        let _ = pages.set(("user".to_owned(), at), at).await.unwrap();
    }
    let _ = pages.set(("other".to_owned(), 1), 1).await.unwrap();
}

#[tokio::test]
async fn a_watcher_is_told_how_far_it_gets_and_the_receipt_what_it_came_to() {
    const USERS: u64 = 2_500;
    for (here, larder, _, stores) in larders() {
        let pages: Pages = larder.cache("page").capacity(10_000).build().unwrap();
        many_users(&pages, USERS).await;
        let told = Told::default();
        let watch = {
            let told = Arc::clone(&told);
            move |progress| told.lock().unwrap().push(progress)
        };
        let matching = pages.invalidate_matching("user:*").watched(watch);
        let receipt = matching.await.unwrap();
        let all = Swept {
            seen: USERS,
            removed: USERS,
        };
        let told = told.lock().unwrap().clone();
        assert_eq!((&*told[0].tier, told[0].swept), ("memory", all), "{here}");
        // The tiers here have the same name, and are walked through one after the other.
        let steps: Vec<u64> = told[1..].iter().map(|step| step.swept.removed).collect();
        let of_one = [1_000, 2_000, USERS, USERS];
        assert_eq!(steps, of_one.repeat(stores.len()), "{here}");
        assert_eq!(receipt.swept().removed, USERS * stores.len() as u64);
        assert_eq!(receipt.swept().seen, USERS * stores.len() as u64);
        let tag = larder.invalidate_tag("a").await.unwrap();
        assert_eq!(tag.swept(), Swept::default());
    }
}

#[tokio::test]
async fn a_pattern_that_matches_everything_walks_through_nothing() {
    for (here, larder, _, stores) in larders() {
        let pages: Pages = larder.cache("page").build().unwrap();
        for glob in ["*", "**"] {
            many_users(&pages, 10).await;
            assert!(pages.invalidate_matching(glob).await.unwrap().is_acked());
            let left = pages.get(&("user".to_owned(), 1)).await.unwrap();
            assert_eq!(left, None, "{glob}, {here}");
        }
        assert!(stores.iter().all(|tier| tier.begun(Operation::Sweep) == 0));
    }
}

#[tokio::test]
async fn what_is_watched_goes_on_without_its_caller_and_whatever_the_watcher_does() {
    let (larder, clock, tier) = with_tier("t");
    let pages: Pages = larder.cache("page").build().unwrap();
    many_users(&pages, 10).await;
    let told = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let watch = {
        let told = Arc::clone(&told);
        move |_| {
            told.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            std::panic::panic_any("what a watcher should not do");
        }
    };
    let gate = tier.pause_before(Operation::Sweep);
    let matching = pages.invalidate_matching("user:*").watched(watch);
    let dropped = common::polled(5, matching.into_future()).await;
    assert!(dropped.is_none());
    soon(gate.arrived(1)).await;
    gate.open();
    settle(&larder).await;
    assert_eq!(told.load(std::sync::atomic::Ordering::SeqCst), 3);
    let other = another_process("t", &clock, &tier);
    let pages: Pages = other.cache("page").build().unwrap();
    assert_eq!(pages.get(&("user".to_owned(), 1)).await.unwrap(), None);
    let kept = pages.get(&("other".to_owned(), 1)).await.unwrap();
    assert_eq!(kept.as_deref(), Some(&1));
}

#[tokio::test]
async fn a_tier_that_fails_owes_the_pattern_and_makes_up_for_it() {
    let (larder, clock, tier) = with_tier("t");
    let pages: Pages = larder.cache("page").build().unwrap();
    let key = ("user".to_owned(), 1);
    let _ = pages.set(key.clone(), 1).await.unwrap();
    let down = StoreFault::Fail(StoreErrorKind::Unavailable);
    tier.inject(Operation::ALL, down);
    assert!(
        pages
            .invalidate_matching("user:*")
            .await
            .unwrap()
            .is_queued()
    );
    assert_eq!(pages.get(&key).await.unwrap(), None);
    tier.heal();
    common::until("the tier is in use again", || {
        clock.advance(common::ms(20));
        larder.tiers()[0].health == larder::TierHealth::Closed
    })
    .await;
    assert_eq!(pages.get(&key).await.unwrap(), None);
    let other: Pages = another_process("t", &clock, &tier)
        .cache("page")
        .build()
        .unwrap();
    assert_eq!(other.get(&key).await.unwrap(), None);
}

/// A store that cannot enumerate its keys.
#[derive(Debug)]
struct Sealed(Faulty);

impl Store for Sealed {
    fn name(&self) -> &str {
        "sealed"
    }
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.0.capabilities();
        capabilities.sweep = false;
        capabilities
    }
    fn get<'a>(
        &'a self,
        keys: &'a [Bytes],
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>> {
        self.0.get(keys, limit)
    }
    fn lease<'a>(
        &'a self,
        keys: &'a [Bytes],
        request: &'a LeaseRequest,
    ) -> BoxFuture<'a, StoreResult<Vec<Leased>>> {
        self.0.lease(keys, request)
    }
    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        self.0.fill(fills)
    }
    fn release<'a>(
        &'a self,
        keys: &'a [Bytes],
        token: LeaseToken,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.0.release(keys, token)
    }
    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        self.0.set(writes)
    }
    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>> {
        self.0.expire(keys, wall)
    }
    fn delete<'a>(
        &'a self,
        keys: &'a [Bytes],
        counter: Option<&'a Bytes>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.0.delete(keys, counter)
    }
    fn sweep<'a>(
        &'a self,
        _: &'a [u8],
        _: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
        _: &'a (dyn Fn(Swept) + Send + Sync),
    ) -> BoxFuture<'a, StoreResult<Swept>> {
        Box::pin(async { Err(StoreError::unsupported("enumerating keys")) })
    }
    fn enlist<'a>(
        &'a self,
        record: &'a Bytes,
        member: u32,
        keep: Duration,
    ) -> BoxFuture<'a, StoreResult<Vec<u32>>> {
        self.0.enlist(record, member, keep)
    }
    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        self.0.ping()
    }
}

#[tokio::test]
async fn above_a_store_that_cannot_enumerate_its_keys_a_pattern_is_an_error() {
    let clock = ManualClock::new();
    let larder = Larder::builder("t")
        .clock(clock.clone())
        .without_backplane()
        .shared(Sealed(faulty(&clock).0))
        .build()
        .unwrap();
    let pages: Pages = larder.cache("page").build().unwrap();
    let key = ("user".to_owned(), 1);
    let _ = pages.set(key.clone(), 1).await.unwrap();
    let error = pages.invalidate_matching("user:*").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let what = [Invalidation::pattern("page", "user:*")];
    let error = larder.invalidate_each(what).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(pages.get(&key).await.unwrap().as_deref(), Some(&1));
    // A cache that does not live there has no need of it, and what is made from it goes all the same.
    let alone: Pages = larder.cache("alone").in_memory().unwrap();
    let _ = alone.set(key.clone(), 1).await.unwrap();
    let made = Loaded::value(2).depends_on(&alone, &key);
    let _ = pages.set(key.clone(), made).await.unwrap();
    let receipt = alone.invalidate_matching("user:*").await.unwrap();
    assert!(receipt.is_acked());
    assert_eq!(alone.get(&key).await.unwrap(), None);
    assert_eq!(pages.get(&key).await.unwrap(), None);
}
