//! Many keys in one call: one load for what is nowhere, and each key loaded by one caller.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::{Answered, failed, found, ms, polled, secs, soon, unasked};
use common::{another_process, with_tier, with_two_tiers};
use larder::{Cache, ErrorKind, Larder, Loaded, Read, Store};
use larder_testkit::{Gate, LoadCounter, Operation, larder, settle};

type Numbers = Cache<u64, u64>;

/// A loader that notes what it is asked for, and finds ten times each key.
#[derive(Clone, Default)]
struct Source {
    asked: Arc<Mutex<Vec<Vec<u64>>>>,
}

impl Source {
    fn tenfold(&self) -> impl Fn(Vec<u64>) -> Answered<Vec<(u64, u64)>> + use<> {
        let asked = self.asked.clone();
        move |keys| {
            asked.lock().unwrap().push(keys.clone());
            found(keys.into_iter().rev().map(|key| (key, key * 10)).collect())
        }
    }

    fn asked(&self) -> Vec<Vec<u64>> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn plain(values: &[Option<Arc<u64>>]) -> Vec<Option<u64>> {
    values
        .iter()
        .map(|value| value.as_deref().copied())
        .collect()
}

#[tokio::test]
async fn values_come_in_the_order_of_the_keys_with_one_load_for_what_is_missing() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let source = Source::default();
    let _ = cache.set(2, 2).await.unwrap();
    let _ = cache.set(4, 4).await.unwrap();
    cache.invalidate_in_memory(&4);
    let values = cache
        .get_or_load_many(&[5, 4, 3, 2, 1], source.tenfold())
        .await
        .unwrap();
    assert_eq!(
        plain(&values),
        [Some(50), Some(4), Some(30), Some(2), Some(10)]
    );
    assert_eq!(source.asked(), [[5, 3, 1]]);
    assert_eq!(tier.begun(Operation::Lease), 1, "one look for all");
    assert_eq!(tier.begun(Operation::Fill), 1, "and one fill");
    let again = cache
        .get_or_load_many(&[1, 2, 3, 4, 5], source.tenfold())
        .await
        .unwrap();
    assert_eq!(
        plain(&again),
        [Some(10), Some(2), Some(30), Some(4), Some(50)]
    );
    assert!(source.asked().is_empty());
    let stats = cache.stats();
    assert_eq!((stats.reads(), stats.loads, stats.misses), (10, 3, 3));
}

#[tokio::test]
async fn a_key_that_is_given_twice_is_loaded_once() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let source = Source::default();
    let values = soon(cache.get_or_load_many(&[1, 2, 1, 1], source.tenfold()))
        .await
        .unwrap();
    assert_eq!(plain(&values), [Some(10), Some(20), Some(10), Some(10)]);
    assert_eq!(source.asked(), [[1, 2]]);
    assert!(
        cache
            .get_or_load_many(&[], source.tenfold())
            .await
            .unwrap()
            .is_empty()
    );
    assert!(source.asked().is_empty(), "nothing asked, nothing loaded");
}

#[tokio::test]
async fn keys_that_the_loader_does_not_mention_are_absent() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").negative_ttl("10s").build().unwrap();
    let some = |_| {
        found(vec![
            (2_u64, Loaded::value(20_u64)),
            (3, Loaded::absent()),
            (9, Loaded::value(90)),
        ])
    };
    let values = cache.get_or_load_many(&[1, 2, 3], some).await.unwrap();
    assert_eq!(plain(&values), [None, Some(20), None]);
    assert_eq!(
        cache.get_in_memory(&9),
        None,
        "what nobody asked for is not stored"
    );
    let none = |_| unasked::<Vec<(u64, u64)>>();
    let values = cache.get_or_load_many(&[1, 2, 3], none).await.unwrap();
    assert_eq!(
        plain(&values),
        [None, Some(20), None],
        "absence is remembered"
    );
    clock.advance(secs(10));
    let source = Source::default();
    cache
        .get_or_load_many(&[1, 2, 3], source.tenfold())
        .await
        .unwrap();
    assert_eq!(source.asked(), [[1, 3]]);
}

#[tokio::test]
async fn single_and_batch_loads_of_one_key_are_one() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let (gate, loads) = (Gate::new(), LoadCounter::new());
    let single = tokio::spawn({
        let (cache, gate, loads) = (cache.clone(), gate.clone(), loads.clone());
        async move {
            let load = |_| async move {
                let _load = loads.begin();
                gate.wait().await;
                Ok::<_, io::Error>(7)
            };
            cache.get_or_load(&1, load).await
        }
    });
    gate.arrived(1).await;
    let source = Source::default();
    let mut batch = Box::pin(cache.get_or_load_many(&[1, 2], source.tenfold()));
    assert!(
        polled(20, &mut batch).await.is_none(),
        "it waits for the load that runs"
    );
    assert_eq!(source.asked(), [[2]]);
    assert_eq!(
        cache.get_in_memory(&2).as_deref(),
        Some(&20),
        "and has loaded the rest"
    );
    gate.open();
    assert_eq!(plain(&soon(batch).await.unwrap()), [Some(7), Some(20)]);
    assert_eq!(*single.await.unwrap().unwrap(), 7);
    assert_eq!(loads.starts(), 1);

    gate.close();
    let batch = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move {
            let load = |keys: Vec<u64>| {
                let gate = gate.clone();
                async move {
                    gate.wait().await;
                    Ok::<_, io::Error>(keys.into_iter().map(|key| (key, 30)).collect::<Vec<_>>())
                }
            };
            cache.get_or_load_many(&[3, 4], load).await
        }
    });
    gate.arrived(2).await;
    let mut single = Box::pin(cache.get_or_load(&3, |_| unasked::<u64>()));
    assert!(polled(20, &mut single).await.is_none());
    gate.open();
    assert_eq!(*soon(single).await.unwrap(), 30);
    batch.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_single_caller_takes_over_from_a_batch_that_was_cancelled() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let gate = tier.pause_before(Operation::Lease);
    let source = Source::default();
    let mut batch = Box::pin(cache.get_or_load_many(&[1, 2], source.tenfold()));
    assert!(polled(1, &mut batch).await.is_none());
    let mut single = Box::pin(cache.get_or_load(&1, |_| found(7)));
    assert!(polled(1, &mut single).await.is_none());
    drop(batch);
    gate.open();
    assert_eq!(*soon(single).await.unwrap(), 7);
    assert!(source.asked().is_empty());
    let values = soon(cache.get_or_load_many(&[1, 2], source.tenfold()))
        .await
        .unwrap();
    assert_eq!(plain(&values), [Some(7), Some(20)]);
}

#[tokio::test]
async fn a_batch_takes_over_from_a_single_caller_that_was_cancelled() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let gate = tier.pause_before(Operation::Lease);
    let source = Source::default();
    let mut single = Box::pin(cache.get_or_load(&1, |_| unasked::<u64>()));
    assert!(polled(1, &mut single).await.is_none());
    let mut batch = Box::pin(cache.get_or_load_many(&[1, 2], source.tenfold()));
    assert!(polled(1, &mut batch).await.is_none());
    drop(single);
    gate.open();
    assert_eq!(plain(&soon(batch).await.unwrap()), [Some(10), Some(20)]);
}

#[tokio::test]
async fn stale_values_are_served_and_refreshed_by_one_batch() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder.cache("c").ttl("1m").grace("1h").build().unwrap();
    for key in 1..=3 {
        let _ = cache.set(key, key).await.unwrap();
    }
    clock.advance(secs(61));
    let _ = cache.set(3, 33).await.unwrap();
    let source = Source::default();
    let values = cache
        .get_or_load_many(&[1, 2, 3, 4, 1], source.tenfold())
        .await
        .unwrap();
    assert_eq!(
        plain(&values),
        [Some(1), Some(2), Some(33), Some(40), Some(1)]
    );
    settle(&larder).await;
    assert_eq!(source.asked(), [vec![1, 2], vec![4]]);
    let none = |_| unasked::<Vec<(u64, u64)>>();
    let values = cache.get_or_load_many(&[1, 2], none).await.unwrap();
    assert_eq!(plain(&values), [Some(10), Some(20)]);
    assert_eq!(cache.stats().refreshes, 2);
}

/// What another process has renewed needs no load, and those that are left get what is their own.
#[tokio::test]
async fn a_batch_that_refreshes_gives_no_key_the_value_of_another() {
    let (here, clock, store) = with_tier("t");
    let there = another_process("t", &clock, &store);
    let of = |larder: &Larder| -> Numbers {
        let cache = larder.cache("c").ttl("1m").grace("1h");
        cache.build().unwrap()
    };
    let (mine, yours) = (of(&here), of(&there));
    let source = Source::default();
    let keys = [1, 2, 3];
    let _ = mine.get_or_load_many(&keys, source.tenfold()).await;
    clock.advance(secs(61));
    let _ = yours.set(2, 22).await.unwrap();
    let stale = mine.get_or_load_many(&keys, source.tenfold()).await;
    assert_eq!(plain(&stale.unwrap()), [Some(10), Some(20), Some(30)]);
    settle(&here).await;
    let none = |_| unasked::<Vec<(u64, u64)>>();
    let fresh = mine.get_or_load_many(&keys, none).await.unwrap();
    assert_eq!(plain(&fresh), [Some(10), Some(22), Some(30)]);
    assert_eq!(mine.stats().refreshes, 3);
}

#[tokio::test]
async fn one_keys_error_is_the_error_of_the_call_and_nothing_is_cached() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let _ = cache.set(1, 1).await.unwrap();
    let load = |_| failed::<Vec<(u64, u64)>>();
    let error = cache.get_or_load_many(&[1, 2, 3], load).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
    assert_eq!(error.loader::<io::Error>().unwrap().to_string(), "no route");
    settle(&larder).await;
    assert_eq!(tier.store().len(), 1, "no lease is left");
    let source = Source::default();
    let values = soon(cache.get_or_load_many(&[1, 2, 3], source.tenfold()))
        .await
        .unwrap();
    assert_eq!(plain(&values), [Some(1), Some(20), Some(30)]);
    let stats = cache.stats();
    assert_eq!((stats.load_errors, stats.failed), (2, 2));
}

#[tokio::test]
async fn stale_values_stand_in_when_a_batch_fails() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("1h")
        .build()
        .unwrap();
    let _ = cache.set(1, 1).await.unwrap();
    let _ = cache.set(2, 2).await.unwrap();
    clock.advance(secs(61));
    let values = cache
        .get_or_load_many(&[1, 2], |_| failed::<Vec<(u64, u64)>>())
        .await
        .unwrap();
    assert_eq!(plain(&values), [Some(1), Some(2)]);
}

#[tokio::test]
async fn a_caller_who_accepts_nothing_stale_sees_a_batch_fail_once() {
    let (larder, clock) = larder("t");
    let cache: Numbers = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("1h")
        .build()
        .unwrap();
    let _ = cache.set(1, 1).await.unwrap();
    clock.advance(secs(61));
    let loads = LoadCounter::new();
    let load = |_| {
        drop(loads.begin());
        failed::<Vec<(u64, u64)>>()
    };
    let reader = cache.with(Read::new().max_stale(ms(0)));
    let error = soon(reader.get_or_load_many(&[1], load)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
    assert_eq!(loads.starts(), 1);
}

#[tokio::test]
async fn a_panic_in_the_answers_of_a_batch_is_an_error() {
    let (larder, _clock) = larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let broken = |keys: Vec<u64>| {
        found(
            keys.into_iter()
                .map(|key| -> (u64, u64) { panic!("no {key}") }),
        )
    };
    let error = soon(cache.get_or_load_many(&[1], broken))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoadPanicked);
    let source = Source::default();
    assert!(
        soon(cache.get_or_load_many(&[1], source.tenfold()))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_batch_is_read_from_every_tier_and_promoted() {
    let (larder, clock, upper, lower) = with_two_tiers("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let other: Numbers = another_process("t", &clock, &lower)
        .cache("c")
        .build()
        .unwrap();
    let both = Larder::builder("t")
        .clock(clock.clone())
        .without_backplane();
    let both = both
        .tier(upper.clone())
        .shared(lower.clone())
        .build()
        .unwrap();
    let above: Numbers = both.cache("c").build().unwrap();
    for key in 0..100 {
        match key % 4 {
            0 => drop(other.set(key, 1).await.unwrap()),
            1 => {
                let _ = above.set(key, 2).await.unwrap();
                let entry = Bytes::from(format!("t:c@1:{key}"));
                lower.store().delete(&[entry], None).await.unwrap();
            }
            2 => cache.set_in_memory(key, 3).unwrap(),
            _ => {}
        }
    }
    let keys: Vec<_> = (0..100).collect();
    let load = |keys: Vec<u64>| found(keys.into_iter().map(|key| (key, 4_u64)).collect::<Vec<_>>());
    let values = cache.get_or_load_many(&keys, load).await.unwrap();
    for (key, value) in values.iter().enumerate() {
        let expected = key as u64 % 4 + 1;
        assert_eq!(value.as_deref(), Some(&expected), "key {key}");
    }
    settle(&larder).await;
    let promoted = upper.store().get(&[Bytes::from("t:c@1:0")], 1000).await;
    assert!(promoted.unwrap()[0].is_some(), "promoted");
    assert_eq!(lower.begun(Operation::Lease), 1);
    clock.advance(ms(1));
}
