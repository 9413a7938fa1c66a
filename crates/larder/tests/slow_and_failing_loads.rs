//! Loads that are slow, fail or ask for themselves, and what their callers get.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use common::{Answered, failed, found, ms, never, secs, soon, until, with_tier};
use larder::{Cache, Error, ErrorKind, Larder, Load, Loaded, Read, Reason, Source, State};
use larder_testkit::{Gate, ManualClock, larder, settle};
use tokio::task::JoinHandle;

type Numbers = Cache<u64, u64>;

/// Usable for an hour behind its minute, and not waited for longer than 100 ms.
fn soft(larder: &Larder) -> Numbers {
    let cache = larder.cache("c").ttl("1m").stale_on_error("1h");
    cache.soft_deadline("100ms").build().unwrap()
}

/// A caller whose load ends when the gate opens.
fn caller(cache: &Numbers, gate: &Gate) -> JoinHandle<larder::Answered<Arc<u64>>> {
    let (cache, gate) = (cache.clone(), gate.clone());
    tokio::spawn(async move {
        let load = |_| async move {
            gate.wait().await;
            Ok::<_, std::io::Error>(8)
        };
        let read = cache.with(Read::new());
        read.get_or_load_explained(&1, load).await.unwrap()
    })
}

async fn after<T>(clock: &ManualClock, wait: std::time::Duration, task: JoinHandle<T>) -> T {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!task.is_finished());
    clock.advance(wait);
    soon(task).await.unwrap()
}

#[tokio::test]
async fn past_the_soft_deadline_a_stale_value_is_served_and_the_load_goes_on() {
    let (larder, clock) = larder("t");
    let cache = soft(&larder);
    let _ = cache.set(1, 7).await.unwrap();
    clock.advance(secs(60));
    let gate = Gate::new();
    let answered = after(&clock, ms(100), caller(&cache, &gate)).await;
    assert_eq!((*answered.value, answered.outcome.state), (7, State::Stale));
    assert_eq!(
        (answered.outcome.source, answered.outcome.reason),
        (Source::Memory, Reason::LoadSlow)
    );
    gate.open();
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
    assert_eq!(cache.stats().loads, 1);
}

#[tokio::test]
async fn a_load_within_the_soft_deadline_is_waited_for() {
    let (larder, clock) = larder("t");
    let cache = soft(&larder);
    let _ = cache.set(1, 7).await.unwrap();
    clock.advance(secs(60));
    let gate = Gate::new();
    let caller = caller(&cache, &gate);
    gate.arrived(1).await;
    clock.advance(ms(99));
    gate.open();
    assert_eq!(*soon(caller).await.unwrap().value, 8);
}

#[tokio::test]
async fn without_anything_stale_the_soft_deadline_does_not_count() {
    let (larder, clock) = larder("t");
    let cache = soft(&larder);
    let gate = Gate::new();
    let caller = caller(&cache, &gate);
    gate.arrived(1).await;
    clock.advance(secs(20));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!caller.is_finished());
    gate.open();
    assert_eq!(*soon(caller).await.unwrap().value, 8);
}

/// The lead is not lost with the caller that leaves: the tier answers late, and then it is loaded.
#[tokio::test]
async fn a_caller_that_leaves_while_a_tier_hangs_leaves_the_load_to_a_task() {
    let (larder, clock, store) = with_tier("t");
    let cache = larder.cache("c").ttl("1m").stale_on_error("1h");
    let cache: Numbers = cache.soft_deadline("10ms").build().unwrap();
    let _ = cache.set(1, 7).await.unwrap();
    clock.advance(secs(60));
    let hung = store.pause_before(larder_testkit::Operation::Lease);
    let loaded = Gate::new();
    loaded.open();
    let answered = after(&clock, ms(10), caller(&cache, &loaded)).await;
    assert_eq!(*answered.value, 7);
    assert_eq!(cache.stats().loads, 0);
    hung.open();
    until("the load ends", || cache.stats().loads == 1).await;
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
}

#[tokio::test]
async fn what_is_stale_in_a_tier_alone_stands_in_too() {
    let (larder, clock, _store) = with_tier("t");
    let cache = soft(&larder);
    let _ = cache.set(1, 7).await.unwrap();
    cache.invalidate_in_memory(&1);
    clock.advance(secs(60));
    let gate = Gate::new();
    let caller = caller(&cache, &gate);
    gate.arrived(1).await;
    clock.advance(ms(100));
    assert_eq!(*soon(caller).await.unwrap().value, 7);
    gate.open();
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
}

#[tokio::test]
async fn a_default_stands_in_for_the_first_load_and_is_not_kept() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .default_on_error(|key| key * 100)
        .build()
        .unwrap();
    let read = cache.with(Read::new());
    let first = read
        .get_or_load_explained(&3, |_| failed::<u64>())
        .await
        .unwrap();
    assert_eq!((*first.value, first.outcome.state), (300, State::NotStored));
    assert_eq!(first.outcome.reason, Reason::LoadFailed);
    assert_eq!(cache.get(&3).await.unwrap(), None);
    assert_eq!(*cache.get_or_load(&3, |_| found(7)).await.unwrap(), 7);
    assert_eq!(cache.stats().stood_in, 1);
}

#[tokio::test]
async fn a_stale_value_comes_before_the_default_and_a_default_that_panics_is_none() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("1h")
        .default_on_error(|_| panic!("no default"))
        .build()
        .unwrap();
    let _ = cache.set(1, 7).await.unwrap();
    clock.advance(secs(120));
    assert_eq!(
        *cache.get_or_load(&1, |_| failed::<u64>()).await.unwrap(),
        7
    );
    let error = cache
        .get_or_load(&2, |_| failed::<u64>())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
}

#[tokio::test]
async fn what_is_made_from_a_default_is_not_kept_either() {
    let (larder, _clock) = larder("t");
    let parts: Numbers = larder
        .cache("part")
        .default_on_error(|_| 0)
        .build()
        .unwrap();
    let sums: Numbers = larder.cache("sum").build().unwrap();
    let load = |_| {
        let parts = parts.clone();
        async move {
            parts
                .get_or_load(&1, |_| failed::<u64>())
                .await
                .map(|part| *part + 1)
        }
    };
    assert_eq!(*sums.get_or_load(&1, load).await.unwrap(), 1);
    assert_eq!(sums.get(&1).await.unwrap(), None);
}

/// Loads key 1 of `cache` by asking for it.
async fn asks_for_itself(cache: &Numbers) -> Result<Arc<u64>, Error> {
    let inner = cache.clone();
    let load = |_| async move {
        inner
            .get_or_load(&1, |_| found(7))
            .await
            .map(|value| *value)
    };
    cache.get_or_load(&1, load).await
}

#[tokio::test]
async fn a_loader_that_asks_for_its_own_key_gets_an_error_and_no_deadlock() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let error = soon(asks_for_itself(&cache)).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    let source = source.downcast_ref::<Error>().unwrap();
    assert_eq!(source.kind(), ErrorKind::Reentered);
    assert!(source.to_string().contains("cache `c`"), "{source}");
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
}

#[tokio::test]
async fn a_circle_of_loaders_gets_an_error_and_no_deadlock() {
    let (larder, _clock) = larder("t");
    let (here, there): (Numbers, Numbers) = (
        larder.cache("here").build().unwrap(),
        larder.cache("there").build().unwrap(),
    );
    let asked = Arc::new(AtomicU64::new(0));
    let outer = {
        let (here, there, asked) = (here.clone(), there.clone(), Arc::clone(&asked));
        move |_: Load<u64, u64>| async move {
            let inner = |_| async move {
                asked.fetch_add(1, SeqCst);
                here.get_or_load(&1, |_| never()).await.map(|value| *value)
            };
            there.get_or_load(&1, inner).await.map(|value| *value)
        }
    };
    let error = soon(here.get_or_load(&1, outer)).await.unwrap_err();
    assert!(format!("{error:?}").contains("Reentered"), "{error:?}");
    assert_eq!(asked.load(SeqCst), 1);
}

/// The same key of another cache, and another key of the same one, are other loads.
#[tokio::test]
async fn a_loader_may_ask_for_anything_else() {
    let (larder, _clock) = larder("t");
    let (here, there): (Numbers, Numbers) = (
        larder.cache("here").build().unwrap(),
        larder.cache("there").build().unwrap(),
    );
    let (again, other) = (here.clone(), there.clone());
    let load = |_| async move {
        let same_key = other.get_or_load(&1, |_| found(1)).await?;
        let other_key = again.get_or_load(&2, |_| found(2)).await?;
        Ok::<_, Error>(*same_key + *other_key)
    };
    assert_eq!(*here.get_or_load(&1, load).await.unwrap(), 3);
}

/// Stale hits inside a load wait for nobody.
#[tokio::test]
async fn a_refresh_may_read_the_stale_value_of_its_own_key() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").ttl("1m").grace("1h").build().unwrap();
    let _ = cache.set(1, 7).await.unwrap();
    clock.advance(secs(60));
    let inner = cache.clone();
    let load = |_| async move {
        let old = inner.get_or_load(&1, |_| found(0)).await?;
        Ok::<_, Error>(Loaded::value(*old + 1))
    };
    let served: Answered<u64> = found(*cache.get_or_load(&1, load).await.unwrap().unwrap());
    assert_eq!(served.await.unwrap(), 7);
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
}

#[tokio::test]
async fn a_batch_that_asks_for_one_of_its_keys_gets_an_error() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let inner = cache.clone();
    let load = |keys: Vec<u64>| {
        let inner = inner.clone();
        async move {
            let value = inner.get_or_load(&keys[1], |_| found(7)).await?;
            Ok::<_, Error>(
                keys.into_iter()
                    .map(|key| (key, *value))
                    .collect::<Vec<_>>(),
            )
        }
    };
    let error = soon(cache.get_or_load_many(&[1, 2, 3], load))
        .await
        .unwrap_err();
    assert!(format!("{error:?}").contains("Reentered"), "{error:?}");
}

#[tokio::test]
async fn a_loader_that_asks_for_its_own_key_among_others_gets_an_error() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let inner = cache.clone();
    let load = |_| async move {
        let pairs =
            |keys: Vec<u64>| found(keys.into_iter().map(|key| (key, key)).collect::<Vec<_>>());
        let values = inner.get_or_load_many(&[2, 1], pairs).await?;
        Ok::<_, Error>(values.len() as u64)
    };
    let error = soon(cache.get_or_load(&1, load)).await.unwrap_err();
    assert!(format!("{error:?}").contains("Reentered"), "{error:?}");
}

/// Each level is a future that holds the next one: the whole must not grow with every layer of the
/// engine that it passes, or it does not fit a thread's stack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::large_futures, reason = "that is what is tried")]
async fn loaders_within_loaders_fit_the_stack() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let [one, two, three, four] = std::array::from_fn(|_| cache.clone());
    let heavy = [7_u64; 2_000];
    let load = move |_| async move {
        let load = move |_| async move {
            let load = move |_| async move {
                let load = move |_| async move {
                    four.get_or_load(&5, move |_| found(heavy[3]))
                        .await
                        .map(|v| *v)
                };
                three.get_or_load(&4, load).await.map(|value| *value)
            };
            two.get_or_load(&3, load).await.map(|value| *value)
        };
        one.get_or_load(&2, load).await.map(|value| *value)
    };
    let task = tokio::spawn(async move { cache.get_or_load(&1, load).await.map(|value| *value) });
    assert_eq!(soon(task).await.unwrap().unwrap(), 7);
}
