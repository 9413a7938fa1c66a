//! One load for any number of callers, and nobody stranded: promise 3 within a process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails where it stands"
)]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::mpsc;

use common::{found, lease_on, ms, never, polled, secs, soon, turn_until};
use common::{with_tier, with_two_tiers};
use larder::{Cache, ErrorKind, Loaded, Read};
use larder_testkit::{Gate, LoadCounter, Operation, larder, settle};
use tokio::task::JoinHandle;

type Numbers = Cache<u64, u64>;
type Outcome = larder::Result<Arc<u64>>;

/// A load that counts itself, waits at the gate, and then finds `value`.
async fn gated(loads: LoadCounter, gate: Gate, value: u64) -> io::Result<u64> {
    let _load = loads.begin();
    gate.wait().await;
    Ok(value)
}

/// A load that panics once the gate is open.
async fn broken(gate: Gate) -> io::Result<u64> {
    gate.wait().await;
    panic!("the loader broke")
}

/// A caller in a task of its own, whose load waits at the gate.
fn caller(cache: &Numbers, loads: &LoadCounter, gate: &Gate) -> JoinHandle<Outcome> {
    let (cache, loads, gate) = (cache.clone(), loads.clone(), gate.clone());
    tokio::spawn(async move { cache.get_or_load(&1, |_| gated(loads, gate, 7)).await })
}

/// Lets every task go as far as it can. Enough for the chains of wakes in these tests.
async fn turns() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

async fn all(callers: Vec<JoinHandle<Outcome>>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for caller in callers {
        outcomes.push(soon(caller).await.unwrap());
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_callers_of_one_key_load_it_once() {
    let (with_tier, _clock, _tier) = with_tier("t");
    for larder in [larder("t").0, with_tier] {
        let cache: Numbers = larder.cache("c").build().unwrap();
        let (loads, gate) = (LoadCounter::new(), Gate::new());
        let callers: Vec<_> = (0..1000).map(|_| caller(&cache, &loads, &gate)).collect();
        gate.arrived(1).await;
        gate.open();
        for outcome in all(callers).await {
            assert_eq!(*outcome.unwrap(), 7);
        }
        assert_eq!(loads.starts(), 1);
        let stats = cache.stats();
        assert_eq!((stats.reads(), stats.loads), (1000, 1));
    }
}

#[tokio::test]
async fn callers_that_wait_on_a_landed_flight_share_its_value() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let callers: Vec<_> = (0..10).map(|_| caller(&cache, &loads, &gate)).collect();
    gate.arrived(1).await;
    gate.open();
    let outcomes: Vec<_> = all(callers).await.into_iter().map(Result::unwrap).collect();
    assert!(
        outcomes
            .iter()
            .all(|value| Arc::ptr_eq(value, &outcomes[0]))
    );
    assert_eq!(cache.stats().shared_loads, 9);
}

#[tokio::test]
async fn a_leader_aborted_in_front_of_the_tier_hands_over_to_a_waiter() {
    for after in [false, true] {
        let (larder, _clock, tier) = with_tier("t");
        let cache: Numbers = larder.cache("c").build().unwrap();
        let (loads, open) = (LoadCounter::new(), Gate::new());
        open.open();
        let gate = if after {
            tier.pause_after(Operation::Lease)
        } else {
            tier.pause_before(Operation::Lease)
        };
        let leader = caller(&cache, &loads, &open);
        gate.arrived(1).await;
        let waiters: Vec<_> = (0..100).map(|_| caller(&cache, &loads, &open)).collect();
        turns().await;
        leader.abort();
        turns().await;
        gate.open();
        for outcome in all(waiters).await {
            assert_eq!(*outcome.unwrap(), 7);
        }
        assert_eq!(loads.starts(), 1, "after: {after}");
        assert_eq!(
            tier.begun(Operation::Lease),
            2,
            "the first waiter looks again"
        );
        settle(&larder).await;
        assert_eq!(lease_on(tier.store(), "t:c@1:1").await, None);
    }
}

#[tokio::test]
async fn a_leader_aborted_during_the_load_leaves_the_load_to_the_waiters() {
    let (larder, _clock, _tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let leader = caller(&cache, &loads, &gate);
    gate.arrived(1).await;
    let waiters: Vec<_> = (0..100).map(|_| caller(&cache, &loads, &gate)).collect();
    turns().await;
    leader.abort();
    turns().await;
    gate.open();
    for outcome in all(waiters).await {
        assert_eq!(*outcome.unwrap(), 7);
    }
    assert_eq!(loads.starts(), 1);
}

#[tokio::test]
async fn a_load_that_everybody_left_is_stored_for_the_next_caller() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let callers: Vec<_> = (0..10).map(|_| caller(&cache, &loads, &gate)).collect();
    gate.arrived(1).await;
    callers.iter().for_each(JoinHandle::abort);
    turns().await;
    gate.open();
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
    assert_eq!(loads.starts(), 1);
}

#[tokio::test]
async fn a_panic_in_the_loader_reaches_every_waiter_as_an_error() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let gate = Gate::new();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let (cache, gate) = (cache.clone(), gate.clone());
            tokio::spawn(async move { cache.get_or_load(&1, |_| broken(gate)).await })
        })
        .collect();
    gate.arrived(1).await;
    gate.open();
    for outcome in all(callers).await {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoadPanicked);
        assert!(error.to_string().contains("the loader broke"), "{error}");
    }
    assert_eq!(gate.arrivals(), 1);
    settle(&larder).await;
    assert_eq!(lease_on(tier.store(), "t:c@1:1").await, None);
    assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.load_errors, stats.failed), (2, 1, 100));
}

#[tokio::test]
async fn a_panic_before_the_loader_has_a_future_is_an_error_too() {
    let (larder, clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").ttl("1m").grace("1h").build().unwrap();
    let error = cache.get_or_load(&1, |_| never()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoadPanicked);
    let many = cache.get_or_load_many(&[1, 2], |_| common::unasked::<Vec<(u64, u64)>>());
    assert_eq!(many.await.unwrap_err().kind(), ErrorKind::LoadPanicked);
    settle(&larder).await;
    assert_eq!(lease_on(tier.store(), "t:c@1:1").await, None);
    assert_eq!(
        cache.stats().load_errors,
        3,
        "it counts like any other failure"
    );
    assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    clock.advance(secs(60));
    assert_eq!(
        *cache.get_or_load(&1, |_| never()).await.unwrap(),
        7,
        "in a refresh as well"
    );
    settle(&larder).await;
    clock.advance(secs(5));
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 7);
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
}

#[derive(Debug, PartialEq)]
struct NoRoute(u32);

impl std::fmt::Display for NoRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no route {}", self.0)
    }
}

impl std::error::Error for NoRoute {}

#[tokio::test]
async fn every_waiter_gets_the_loaders_own_error_and_it_is_not_cached() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let gate = Gate::new();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let (cache, gate) = (cache.clone(), gate.clone());
            tokio::spawn(async move {
                let load = |_| async move {
                    gate.wait().await;
                    Err::<u64, _>(NoRoute(17))
                };
                cache.get_or_load(&1, load).await
            })
        })
        .collect();
    gate.arrived(1).await;
    gate.open();
    for outcome in all(callers).await {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Load);
        assert_eq!(error.loader::<NoRoute>(), Some(&NoRoute(17)));
        assert!(error.loader::<io::Error>().is_none());
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.to_string(), "no route 17");
    }
    assert_eq!(gate.arrivals(), 1);
    settle(&larder).await;
    assert!(tier.store().is_empty());
    assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
}

#[tokio::test]
async fn a_load_past_its_deadline_no_longer_counts() {
    let (larder, clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").load_deadline("10s").build().unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let callers: Vec<_> = (0..100).map(|_| caller(&cache, &loads, &gate)).collect();
    gate.arrived(1).await;
    clock.advance(ms(9_999));
    turns().await;
    assert!(callers.iter().all(|caller| !caller.is_finished()));
    clock.advance(ms(1));
    for outcome in all(callers).await {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::LoadTimeout);
    }
    loads.finished(1).await;
    settle(&larder).await;
    assert_eq!(lease_on(tier.store(), "t:c@1:1").await, None);
    gate.open();
    turns().await;
    assert_eq!(
        cache.get(&1).await.unwrap(),
        None,
        "the late result is stored nowhere"
    );
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loader_that_blocks_its_thread_cannot_keep_its_deadline_from_passing() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").load_deadline("10s").build().unwrap();
    let (blocked, wait_until_blocked) = mpsc::channel::<()>();
    let (release, released) = mpsc::channel::<()>();
    let read = tokio::spawn({
        let cache = cache.clone();
        async move {
            let load = |_| async move {
                blocked.send(()).unwrap();
                let _ = released.recv();
                Ok::<u64, io::Error>(7)
            };
            cache.get_or_load(&1, load).await
        }
    });
    let began = tokio::task::spawn_blocking(move || wait_until_blocked.recv().unwrap());
    soon(began).await.unwrap();
    clock.sleeping(1).await;
    clock.advance(secs(10));
    assert!(soon(read).await.unwrap().unwrap_err().is_timeout());
    let again = cache.get_or_load(&1, |_| found(8));
    assert_eq!(
        *soon(again).await.unwrap(),
        8,
        "the next load has a thread of its own"
    );
    release.send(()).unwrap();
    settle(&larder).await;
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&8));
}

#[tokio::test]
async fn so_many_loads_run_so_many_wait_and_more_are_refused() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .load_concurrency(2)
        .load_queue(3)
        .load_deadline("10s")
        .build()
        .unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let read = |key: u64| {
        let (cache, loads, gate) = (cache.clone(), loads.clone(), gate.clone());
        tokio::spawn(async move { cache.get_or_load(&key, |_| gated(loads, gate, key)).await })
    };
    let admitted: Vec<_> = (0..5).map(read).collect();
    gate.arrived(2).await;
    turns().await;
    let refused = soon(read(5)).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(refused.to_string().contains("load_queue"), "{refused}");
    let stats = cache.stats();
    assert_eq!((stats.loads_refused, stats.failed), (1, 1));
    assert_eq!((stats.loads, stats.load_errors), (0, 0), "it did not begin");
    gate.open();
    for (key, outcome) in all(admitted).await.into_iter().enumerate() {
        assert_eq!(*outcome.unwrap(), key as u64);
    }
    assert_eq!((loads.max_concurrency(), loads.starts()), (2, 5));
    assert_eq!(
        *soon(read(6)).await.unwrap().unwrap(),
        6,
        "every place is free again"
    );

    gate.close();
    let stuck: Vec<_> = (10..15).map(read).collect();
    gate.arrived(8).await;
    turns().await;
    clock.advance(secs(10));
    for outcome in all(stuck).await {
        assert!(
            outcome.unwrap_err().is_timeout(),
            "waiting for a turn counts towards the deadline"
        );
    }
    gate.open();
    for outcome in all((20..25).map(read).collect()).await {
        assert!(outcome.is_ok(), "and all turns and places came back");
    }
}

/// XFetch goes by how long the load of an entry takes, and would refresh the more the longer the queue.
#[tokio::test]
async fn the_wait_for_a_turn_is_no_part_of_a_load() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").load_concurrency(1).build().unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let running = caller(&cache, &loads, &gate);
    gate.arrived(1).await;
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load(&2, |_| found(8)).await }
    });
    turns().await;
    clock.advance(secs(10));
    gate.open();
    assert_eq!(*soon(running).await.unwrap().unwrap(), 7);
    assert_eq!(*soon(waiting).await.unwrap().unwrap(), 8);
    assert_eq!(cache.stats().load_millis, 10_000);
}

#[tokio::test]
async fn a_stale_value_stands_in_for_a_load_that_is_refused() {
    let (larder, clock) = larder("t");
    let builder = larder.cache("c").ttl("1m").stale_on_error("1h");
    let cache: Numbers = builder.load_concurrency(1).load_queue(0).build().unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let _ = cache.set(2, 8).await.unwrap();
    clock.advance(secs(61));
    let running = caller(&cache, &loads, &gate);
    gate.arrived(1).await;
    assert_eq!(*soon(cache.get_or_load(&2, |_| never())).await.unwrap(), 8);
    gate.open();
    assert_eq!(*running.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn a_read_without_a_loader_does_not_wait_for_a_load() {
    let (above_tiers, clock, ..) = with_two_tiers("t");
    for (larder, clock) in [larder("t"), (above_tiers, clock)] {
        let cache: Numbers = larder.cache("c").ttl("1m").grace("1h").build().unwrap();
        let (loads, gate) = (LoadCounter::new(), Gate::new());
        let load = caller(&cache, &loads, &gate);
        gate.arrived(1).await;
        assert_eq!(soon(cache.get(&1)).await.unwrap(), None);
        gate.open();
        assert_eq!(*load.await.unwrap().unwrap(), 7);
        clock.advance(secs(61));
        gate.close();
        assert_eq!(*caller(&cache, &loads, &gate).await.unwrap().unwrap(), 7);
        gate.arrived(2).await;
        assert_eq!(soon(cache.get(&1)).await.unwrap().as_deref(), Some(&7));
        gate.open();
        settle(&larder).await;
    }
}

#[tokio::test]
async fn a_loader_may_load_another_key_of_its_cache() {
    let (larder, _clock, _tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let inner = cache.clone();
    let read = cache.get_or_load(&1, |_| async move {
        let part = inner.get_or_load(&2, |_| found(20)).await?;
        Ok::<_, larder::Error>(*part + 1)
    });
    assert_eq!(*soon(read).await.unwrap(), 21);
    assert_eq!(cache.get_in_memory(&2).as_deref(), Some(&20));
}

#[tokio::test]
async fn a_loader_may_invalidate_its_own_key() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let inner = cache.clone();
    let read = cache.get_or_load(&1, |_| async move {
        let _ = inner.invalidate(&1).await?;
        Ok::<_, larder::Error>(7)
    });
    assert_eq!(*soon(read).await.unwrap(), 7);
    settle(&larder).await;
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert!(tier.store().is_empty());
}

#[tokio::test]
async fn shutting_down_waits_for_loads_and_then_ends_them() {
    for patient in [true, false] {
        let (larder, clock, _tier) = with_tier("t");
        let cache: Numbers = larder.cache("c").build().unwrap();
        let (loads, gate) = (LoadCounter::new(), Gate::new());
        cache.set_in_memory(2, 8).unwrap();
        let waiters: Vec<_> = (0..10).map(|_| caller(&cache, &loads, &gate)).collect();
        gate.arrived(1).await;
        let down = tokio::spawn({
            let larder = larder.clone();
            async move { larder.shutdown(secs(5)).await }
        });
        turns().await;
        assert!(!down.is_finished());
        assert_eq!(
            soon(cache.get(&3)).await.unwrap_err().kind(),
            ErrorKind::Closed
        );
        if patient {
            gate.open();
        } else {
            clock.advance(secs(5));
        }
        let report = soon(down).await.unwrap();
        assert_eq!(report.abandoned, if patient { 0 } else { 1 });
        for outcome in all(waiters).await {
            match outcome {
                Ok(value) => assert!(patient && *value == 7),
                Err(error) => assert!(!patient && error.kind() == ErrorKind::Closed, "{error:?}"),
            }
        }
        loads.finished(1).await;
        assert_eq!(
            cache.get_in_memory(&2).as_deref(),
            Some(&8),
            "memory can still be read"
        );
        for closed in [
            cache.get_or_load(&9, |_| found(7)).await.map(drop),
            cache
                .get_or_load_many(&[9], |_| found(vec![(9, 7_u64)]))
                .await
                .map(drop),
            cache.set(9, 7).await.map(drop),
            cache.invalidate(&9).await.map(drop),
            cache.expire(&9).await.map(drop),
            cache.clear().await.map(drop),
        ] {
            assert_eq!(closed.unwrap_err().kind(), ErrorKind::Closed);
        }
        assert_eq!(
            soon(larder.shutdown(secs(5))).await.abandoned,
            0,
            "once more does no harm"
        );
    }
}

#[tokio::test]
async fn callers_with_a_deadline_of_their_own_leave_the_load_to_the_others() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let hasty = tokio::spawn({
        let (cache, loads, gate) = (cache.clone(), loads.clone(), gate.clone());
        async move {
            let hasty = cache.with(Read::new().deadline(ms(10)));
            hasty.get_or_load(&1, |_| gated(loads, gate, 7)).await
        }
    });
    gate.arrived(1).await;
    let patient = caller(&cache, &loads, &gate);
    turns().await;
    clock.advance(ms(10));
    assert!(hasty.await.unwrap().unwrap_err().is_timeout());
    gate.open();
    assert_eq!(*patient.await.unwrap().unwrap(), 7);
    assert_eq!(loads.starts(), 1);
}

#[tokio::test]
async fn loaders_with_and_without_a_word_for_absent_share_a_key() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let gate = Gate::new();
    let maybe = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move {
            let load = |_| async move {
                gate.wait().await;
                Ok::<_, io::Error>(Loaded::<u64>::absent())
            };
            cache.get_or_load(&1, load).await
        }
    });
    gate.arrived(1).await;
    let mut surely = Box::pin(cache.get_or_load(&1, |_| found(7)));
    assert!(
        polled(1, &mut surely).await.is_none(),
        "it joins the load that runs"
    );
    gate.open();
    assert_eq!(
        *soon(surely).await.unwrap(),
        7,
        "and loads itself when that has no value for it"
    );
    assert_eq!(maybe.await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn dropping_every_handle_during_a_load_is_no_end() {
    let (larder, _clock, _tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let waiter = caller(&cache, &loads, &gate);
    gate.arrived(1).await;
    drop((cache, larder));
    gate.open();
    assert_eq!(*soon(waiter).await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn a_caller_waits_for_a_lease_of_another_flight_no_longer_than_told() {
    let (larder, clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").lease_wait("1s").build().unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let other = common::another_process("t", &clock, &tier);
    let other: Numbers = other.cache("c").build().unwrap();
    let theirs = caller(&other, &loads, &gate);
    gate.arrived(1).await;
    let ours = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load(&1, |_| found(8)).await }
    });
    assert_eq!(*turn_until(&clock, ms(10), ours).await.unwrap(), 8);
    gate.open();
    assert_eq!(*theirs.await.unwrap().unwrap(), 7);
}
