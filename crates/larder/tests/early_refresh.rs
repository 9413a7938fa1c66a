//! Entries that are refreshed before their time ends, so that nobody waits for a load then.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::sync::Arc;

use common::{another_process, failed, found, lease_on, ms, never, secs, soon, with_tier};
use larder::{Cache, ErrorKind, Larder, Loaded, Read, Reason, Source, State};
use larder_testkit::{Gate, LoadCounter, ManualClock, Operation, larder, settle};

type Numbers = Cache<u64, u64>;

/// Fresh for 100 s, and refreshed from the eightieth on.
fn eager(larder: &Larder) -> Numbers {
    let cache = larder.cache("c").ttl("100s").eager_refresh(0.8);
    cache.memory_ttl("100s").build().unwrap()
}

/// A load that takes `millis` by the manual clock.
async fn slow_load(cache: &Numbers, clock: &Arc<ManualClock>, millis: u64) {
    let clock = Arc::clone(clock);
    let load = |_| async move {
        clock.advance(ms(millis));
        Ok::<_, std::io::Error>(7)
    };
    cache.get_or_load(&1, load).await.unwrap();
}

#[tokio::test]
async fn behind_its_share_of_the_ttl_a_fresh_value_is_served_and_refreshed_once() {
    let (larder, clock) = larder("t");
    let cache = eager(&larder);
    assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    clock.advance(ms(79_999));
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
    clock.advance(ms(1));
    let (gate, loads) = (Gate::new(), LoadCounter::new());
    for _ in 0..50 {
        let (gate, loads) = (gate.clone(), loads.clone());
        let load = |_| async move {
            let _load = loads.begin();
            gate.wait().await;
            Ok::<_, std::io::Error>(8)
        };
        let read = cache.with(Read::new());
        let answered = read.get_or_load_explained(&1, load).await.unwrap();
        let outcome = answered.outcome;
        assert_eq!((*answered.value, outcome.state), (7, State::Fresh));
        assert_eq!(
            (outcome.source, outcome.reason),
            (Source::Memory, Reason::Refreshing)
        );
        tokio::task::yield_now().await;
    }
    gate.open();
    settle(&larder).await;
    assert_eq!(loads.starts(), 1);
    clock.advance(ms(79_999));
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
    let stats = cache.stats();
    assert_eq!(
        (stats.refreshes, stats.stale, stats.hits_memory),
        (1, 0, 52)
    );
}

#[tokio::test]
async fn a_refresh_that_outlasts_the_ttl_is_joined_and_its_old_value_is_not_served() {
    let (larder, clock) = larder("t");
    let cache = eager(&larder);
    assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    clock.advance(secs(90));
    let gate = Gate::new();
    let held = gate.clone();
    let load = |_| async move {
        held.wait().await;
        Ok::<_, std::io::Error>(8)
    };
    assert_eq!(*cache.get_or_load(&1, load).await.unwrap(), 7);
    gate.arrived(1).await;
    clock.advance(secs(10));
    let late = tokio::spawn({
        let cache = cache.clone();
        async move { *cache.get_or_load(&1, |_| never()).await.unwrap() }
    });
    tokio::task::yield_now().await;
    gate.open();
    assert_eq!(late.await.unwrap(), 8);
}

#[tokio::test]
async fn an_early_refresh_that_fails_leaves_the_value_and_waits_before_the_next_try() {
    let (larder, clock) = larder("t");
    let cache = eager(&larder);
    assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    clock.advance(secs(80));
    assert_eq!(
        *cache.get_or_load(&1, |_| failed::<u64>()).await.unwrap(),
        7
    );
    settle(&larder).await;
    clock.advance(ms(4_999));
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
    clock.advance(ms(1));
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 7);
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
    let stats = cache.stats();
    assert_eq!(
        (stats.refreshes, stats.stood_in, stats.load_errors),
        (2, 0, 1)
    );
}

#[tokio::test]
async fn the_refresh_shows_the_loader_what_it_renews() {
    let (larder, clock) = larder("t");
    let cache = eager(&larder);
    let first = |_| found(Loaded::value(7).etag("v7"));
    assert_eq!(
        cache.get_or_load(&1, first).await.unwrap().as_deref(),
        Some(&7)
    );
    clock.advance(secs(80));
    let renew = |load: larder::Load<u64, u64>| {
        assert_eq!(load.stale().unwrap().etag(), Some("v7"));
        found(Loaded::<u64>::not_modified())
    };
    cache.get_or_load(&1, renew).await.unwrap();
    settle(&larder).await;
    clock.advance(secs(79));
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
}

#[tokio::test]
async fn one_of_many_processes_refreshes_and_the_tier_serves_the_value_meanwhile() {
    let (here, clock, store) = with_tier("t");
    let there = another_process("t", &clock, &store);
    let (mine, yours) = (eager(&here), eager(&there));
    assert_eq!(*mine.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    assert_eq!(*yours.get_or_load(&1, |_| never()).await.unwrap(), 7);
    clock.advance(secs(85));
    let gate = Gate::new();
    let held = gate.clone();
    let load = |_| async move {
        held.wait().await;
        Ok::<_, std::io::Error>(8)
    };
    assert_eq!(*mine.get_or_load(&1, load).await.unwrap(), 7);
    gate.arrived(1).await;
    assert!(lease_on(&store, "t:c@1:1").await.is_some());
    // The other process leaves it to the one that has the lease, and does not wait for it.
    let loads = LoadCounter::new();
    let counted = |value| {
        let loads = loads.clone();
        async move {
            let _load = loads.begin();
            Ok::<_, std::io::Error>(value)
        }
    };
    assert_eq!(*yours.get_or_load(&1, |_| counted(6)).await.unwrap(), 7);
    settle(&there).await;
    // A third one reads the value from the tier.
    let third = eager(&another_process("t", &clock, &store));
    assert_eq!(*third.get_or_load(&1, |_| never()).await.unwrap(), 7);
    gate.open();
    settle(&here).await;
    assert_eq!(lease_on(&store, "t:c@1:1").await, None);
    // The next early refresh there, a moment later, finds what was refreshed, and loads nothing.
    clock.advance(ms(500));
    assert_eq!(*yours.get_or_load(&1, |_| counted(6)).await.unwrap(), 7);
    settle(&there).await;
    assert_eq!(*yours.get_or_load(&1, |_| never()).await.unwrap(), 8);
    assert_eq!(loads.starts(), 0);
}

/// FusionCache #651: the refresh must not bring back what a write of another process replaced.
#[tokio::test]
async fn an_early_refresh_does_not_overwrite_what_was_written_meanwhile() {
    let (here, clock, store) = with_tier("t");
    let there = another_process("t", &clock, &store);
    let (mine, yours) = (eager(&here), eager(&there));
    assert_eq!(*mine.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    clock.advance(secs(85));
    let gate = Gate::new();
    let held = gate.clone();
    let load = |_| async move {
        held.wait().await;
        Ok::<_, std::io::Error>(8)
    };
    assert_eq!(*mine.get_or_load(&1, load).await.unwrap(), 7);
    gate.arrived(1).await;
    let _ = yours.set(1, 9).await.unwrap();
    gate.open();
    settle(&here).await;
    let third = eager(&another_process("t", &clock, &store));
    assert_eq!(*third.get_or_load(&1, |_| never()).await.unwrap(), 9);
    assert_eq!(mine.stats().fenced, 1);
}

/// XFetch draws at random: with a load of 10 s, β = 1 and 1 s left, a read decides for a refresh in
/// nine cases of ten; with 99 s left, in one of twenty thousand.
#[tokio::test]
async fn the_longer_the_load_and_the_nearer_the_end_the_likelier_is_a_refresh() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("100s")
        .xfetch(1.0)
        .in_memory()
        .unwrap();
    slow_load(&cache, &clock, 10_000).await;
    clock.advance(secs(1));
    for _ in 0..20 {
        assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    }
    settle(&larder).await;
    let early = cache.stats().refreshes;
    assert!(early <= 1, "{early} refreshes at the beginning");
    clock.advance(secs(98));
    for _ in 0..200 {
        assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    }
    settle(&larder).await;
    assert!(cache.stats().refreshes > early);
}

#[tokio::test]
async fn what_loads_at_once_is_never_refreshed_early_by_xfetch() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("100s")
        .xfetch(1.0)
        .in_memory()
        .unwrap();
    assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    clock.advance(ms(99_999));
    for _ in 0..100 {
        assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
    }
}

#[test]
fn shares_and_betas_that_make_no_sense_are_errors_that_say_so() {
    for share in [0.0, 1.0, -0.5, f64::NAN, f64::INFINITY] {
        let cache = Larder::local().cache::<u64, u64>("c").eager_refresh(share);
        let error = cache.in_memory().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("eager_refresh"), "{error}");
    }
    for beta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let cache = Larder::local().cache::<u64, u64>("c").xfetch(beta);
        let error = cache.in_memory().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("xfetch"), "{error}");
    }
}

#[tokio::test]
async fn a_refresh_that_another_process_does_is_asked_after_now_and_then() {
    let (larder, clock, store) = with_tier("t");
    let other = another_process("t", &clock, &store);
    let build = |larder: &Larder| -> Numbers {
        let cache = larder.cache("c").ttl("100s").eager_refresh(0.8);
        cache.memory_ttl("100s").build().unwrap()
    };
    let (here, there) = (build(&larder), build(&other));
    here.get_or_load(&1, |_| found(7)).await.unwrap();
    there.get_or_load(&1, |_| found(9)).await.unwrap();
    clock.advance(secs(80));
    let gate = Gate::new();
    let held = gate.clone();
    let load = |_| async move {
        held.wait().await;
        Ok::<_, std::io::Error>(8)
    };
    assert_eq!(*there.get_or_load(&1, load).await.unwrap(), 7);
    gate.arrived(1).await;
    let before = store.begun(Operation::Lease);
    for _ in 0..100 {
        here.get_or_load(&1, |_| found(9)).await.unwrap();
        settle(&larder).await;
    }
    let asked = store.begun(Operation::Lease) - before;
    gate.open();
    assert!(
        asked < 10,
        "{asked} questions for 100 hits within one millisecond"
    );
}

#[tokio::test]
async fn an_older_fill_in_the_tier_is_no_answer_to_an_early_refresh() {
    let (larder, clock, store) = with_tier("t");
    let other = another_process("t", &clock, &store);
    let build = |larder: &Larder| -> Numbers {
        let cache = larder
            .cache("c")
            .ttl("100s")
            .eager_refresh(0.5)
            .lease_wait("2s");
        cache.memory_ttl("100s").build().unwrap()
    };
    let (here, there) = (build(&larder), build(&other));
    let gate = Gate::new();
    let slow = tokio::spawn({
        let (there, gate) = (there.clone(), gate.clone());
        async move {
            let load = |_| async move {
                gate.wait().await;
                Ok::<_, std::io::Error>(1) // what stood in the source when it began
            };
            *there.get_or_load(&1, load).await.unwrap()
        }
    });
    gate.arrived(1).await;
    let mine = tokio::spawn({
        let here = here.clone();
        async move { *here.get_or_load(&1, |_| found(2)).await.unwrap() }
    });
    assert_eq!(common::turn_until(&clock, ms(50), mine).await, 2);
    gate.open();
    assert_eq!(soon(slow).await.unwrap(), 1);
    clock.advance(secs(60));
    assert_eq!(*here.get_or_load(&1, |_| found(3)).await.unwrap(), 2);
    settle(&larder).await;
    assert_ne!(
        here.get_in_memory(&1).as_deref(),
        Some(&1),
        "older than what was there"
    );
}
