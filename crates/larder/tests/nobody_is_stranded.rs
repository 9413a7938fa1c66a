//! Promise 3 by exhaustion: whatever a caller does, wherever it goes away, and however its load
//! ends, whoever waits with it is answered, and no flight, lease, permit or timer stays behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails where it stands"
)]

mod common;

use std::future::pending;
use std::io;

use common::{Turns, Wobbly, faulty, lease_on, ms, polled, secs, soon};
use larder::clock::BoxFuture;
use larder::{BatchLoader, Cache, Feed, Larder, LoadingCache};
use larder_testkit::{ManualClock, settle};
use tokio::task::yield_now;

type Numbers = Cache<u64, u64>;

/// How a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Value,
    Error,
    /// Before there is a future.
    PanicAtOnce,
    Panic,
    /// At its deadline, or once nobody wants it.
    Never,
}

const ENDINGS: [Ending; 5] = [
    Ending::Value,
    Ending::Error,
    Ending::PanicAtOnce,
    Ending::Panic,
    Ending::Never,
];

impl Ending {
    /// A load that gives way once.
    fn load(self) -> BoxFuture<'static, io::Result<u64>> {
        assert_ne!(self, Ending::PanicAtOnce, "it was told to");
        Box::pin(async move {
            yield_now().await;
            match self {
                Ending::Value => Ok(7),
                Ending::Error => Err(io::Error::other("no route")),
                Ending::Never => pending().await,
                Ending::PanicAtOnce | Ending::Panic => panic!("it was told to"),
            }
        })
    }

    fn load_all(self, keys: Vec<u64>) -> BoxFuture<'static, io::Result<Vec<(u64, u64)>>> {
        let load = self.load();
        Box::pin(async move {
            let value = load.await?;
            Ok(keys.into_iter().map(|key| (key, value)).collect())
        })
    }
}

impl BatchLoader<u64, u64> for Ending {
    type Answer = u64;
    type Error = io::Error;

    /// An error is that of the first key alone.
    fn load_many(
        &self,
        keys: Vec<u64>,
    ) -> impl Future<Output = io::Result<Vec<(u64, io::Result<u64>)>>> + Send {
        let load = self.load();
        async move {
            let first = load.await;
            let others = keys
                .iter()
                .skip(1)
                .map(|&key| (key, Ok(8)))
                .collect::<Vec<_>>();
            Ok(std::iter::once((keys[0], first)).chain(others).collect())
        }
    }
}

/// What a caller does with keys 1 and 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Get,
    GetOrLoad,
    GetOrLoadMany,
    /// Something stale is in memory, and served while the load goes on.
    StaleGetOrLoad,
    /// Something too old to be served at once may stand in for a load that is slow.
    SoftGetOrLoad,
    /// Something fresh is in memory, and old enough to be loaded anew.
    EarlyGetOrLoad,
    BoundGet,
    BoundGetMany,
    InBatchesGet,
    InBatchesGetMany,
    Refresh,
    RefreshOfHeld,
    Warm,
    WarmInBatches,
    Set,
    Invalidate,
}

const CALLS: [Call; 16] = [
    Call::Get,
    Call::GetOrLoad,
    Call::GetOrLoadMany,
    Call::StaleGetOrLoad,
    Call::SoftGetOrLoad,
    Call::EarlyGetOrLoad,
    Call::BoundGet,
    Call::BoundGetMany,
    Call::InBatchesGet,
    Call::InBatchesGetMany,
    Call::Refresh,
    Call::RefreshOfHeld,
    Call::Warm,
    Call::WarmInBatches,
    Call::Set,
    Call::Invalidate,
];

impl Call {
    /// How old what is in memory is when the call comes, if anything is.
    fn age_of_held(self) -> Option<u64> {
        match self {
            Call::RefreshOfHeld => Some(1),
            Call::EarlyGetOrLoad => Some(50),
            Call::StaleGetOrLoad => Some(61),
            Call::SoftGetOrLoad => Some(61 + 600),
            _ => None,
        }
    }

    fn begin(self, cache: &Numbers, ending: Ending) -> BoxFuture<'static, ()> {
        let cache = cache.clone();
        let bound = move |cache: &Numbers| cache.loading_with(move |_| ending.load());
        let in_batches = move |cache: &Numbers| cache.loading_in_batches(ending);
        Box::pin(async move {
            match self {
                Call::Get => drop(cache.get(&1).await),
                Call::GetOrLoad
                | Call::StaleGetOrLoad
                | Call::SoftGetOrLoad
                | Call::EarlyGetOrLoad => {
                    drop(cache.get_or_load(&1, |_| ending.load()).await);
                }
                Call::GetOrLoadMany => {
                    let load = |keys| ending.load_all(keys);
                    drop(cache.get_or_load_many(&[1, 2], load).await);
                }
                Call::BoundGet => drop(bound(&cache).get(&1).await),
                Call::BoundGetMany => drop(bound(&cache).get_many(&[1, 2]).await),
                Call::InBatchesGet => drop(in_batches(&cache).get(&1).await),
                Call::InBatchesGetMany => drop(in_batches(&cache).get_many(&[1, 2]).await),
                Call::Refresh | Call::RefreshOfHeld => drop(bound(&cache).refresh(&1).await),
                Call::Warm => warm(bound(&cache)).await,
                Call::WarmInBatches => warm(in_batches(&cache)).await,
                Call::Set => drop(cache.set(1, 7).await),
                Call::Invalidate => drop(cache.invalidate(&1).await),
            }
        })
    }
}

async fn warm(loading: LoadingCache<u64, u64>) {
    loading.warm(Feed::list(vec![1, 2])).start().done().await;
}

#[tokio::test]
async fn whatever_is_cancelled_wherever_and_however_its_load_ends() {
    for tiers in 0..=2 {
        for call in CALLS {
            for ending in ENDINGS {
                for company in [Company::Nobody, Company::Fellow] {
                    let case = Case {
                        tiers,
                        call,
                        ending,
                        company,
                    };
                    let mut polls = 0;
                    while !case.cancelled_after(polls).await {
                        polls += 1;
                        assert!(polls < 200, "{case:?} ends");
                    }
                    assert!(polls > 0, "{case:?}: at least the first poll is cancelled");
                }
            }
        }
    }
}

/// Who wants key 1 while it is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Company {
    Nobody,
    Fellow,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    tiers: usize,
    call: Call,
    ending: Ending,
    company: Company,
}

impl Case {
    /// Cancels the call after so many polls; whether it had ended by then.
    async fn cancelled_after(self, polls: usize) -> bool {
        let Self {
            tiers,
            call,
            ending,
            company,
        } = self;
        let here = format!("{self:?} after {polls} polls");
        let clock = ManualClock::new();
        let stores: Vec<_> = (0..tiers).map(|_| faulty(&clock).0).collect();
        let mut builder = Larder::builder("t")
            .clock(clock.clone())
            .without_backplane();
        for store in &stores {
            builder = builder.shared(Wobbly::new(store.clone(), Turns::exactly(1)));
        }
        let larder = builder.build().unwrap();
        let mut cache = larder
            .cache("c")
            .ttl("1m")
            .grace("10m")
            .stale_on_error("1h")
            .eager_refresh(0.8)
            .load_deadline("10s")
            .load_concurrency(1)
            .load_queue(0);
        if call == Call::SoftGetOrLoad {
            cache = cache.soft_deadline("1s");
        }
        let cache: Numbers = cache.build().unwrap();
        if let Some(age) = call.age_of_held() {
            let _ = cache.set(1, 6).await.unwrap();
            clock.advance(secs(age));
        }

        let called = tokio::spawn(polled(polls, call.begin(&cache, ending)));
        yield_now().await;
        let fellow = tokio::spawn({
            let cache = cache.clone();
            async move {
                match company {
                    Company::Nobody => None,
                    Company::Fellow => Some(cache.get_or_load(&1, |_| Ending::Value.load()).await),
                }
            }
        });
        let (called, fellow) = soon(async {
            while !(called.is_finished() && fellow.is_finished()) {
                for _ in 0..20 {
                    yield_now().await;
                }
                // Whoever looks for a lease by the clock, or loads for ever, waits for that alone.
                if clock.sleepers() > 0 {
                    clock.advance(if ending == Ending::Never {
                        secs(11)
                    } else {
                        ms(100)
                    });
                }
            }
            (called.await.unwrap(), fellow.await.unwrap())
        })
        .await;
        if ending == Ending::Value {
            assert!(!matches!(fellow, Some(Err(_))), "{here}: {fellow:?}");
        }
        while ending == Ending::Never && clock.sleepers() > 0 {
            clock.advance(secs(11));
            yield_now().await;
        }
        settle(&larder).await;

        for store in &stores {
            for key in ["t:c@1:1", "t:c@1:2"] {
                let lease = lease_on(store.store(), key).await;
                assert_eq!(lease, None, "{here}: a lease is left on {key}");
            }
        }
        // No flight: a read waits for nobody. No permit: the one that there is can be had.
        let _ = soon(cache.invalidate(&1)).await.expect(&here);
        let _ = soon(cache.invalidate(&2)).await.expect(&here);
        let again = cache.get_or_load_many(&[1, 2], |keys| Ending::Value.load_all(keys));
        let again = soon(again).await.expect(&here);
        assert!(again.iter().all(Option::is_some), "{here}");
        settle(&larder).await;
        assert_eq!(clock.sleepers(), 0, "{here}");
        called.is_some()
    }
}
