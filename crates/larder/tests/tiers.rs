//! The tiers below memory: what they add to reads, and how little they can take away. Promise 4
//! within a process, and the part of promise 5 that is kept by it.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Faulty, Wobbly, another_process, bytes_of, found, lease_on, ms, never, put, secs};
use common::{soon, turn_until, with_tier, with_two_tiers};
use larder::clock::Clock;
use larder::store::{Store, StoreErrorKind};
use larder::{Cache, Delivery, Larder, Loaded, Read, Source, State, TierHealth, TierStats};
use larder_testkit::{Gate, LoadCounter, ManualClock, Operation, StoreFault, larder_with, settle};
use serde::{Deserialize, Serialize, Serializer};
use tokio::task::JoinHandle;

type Numbers = Cache<u64, u64>;

const DOWN: StoreFault = StoreFault::Fail(StoreErrorKind::Unavailable);
const REFUSING: StoreFault = StoreFault::Fail(StoreErrorKind::Refused);
const BUDGET: Duration = ms(100);

fn numbers(larder: &Larder) -> Numbers {
    larder.cache("c").ttl("1m").build().unwrap()
}

/// The cache of another process on the same store.
fn others(clock: &Arc<ManualClock>, store: &Faulty) -> Numbers {
    numbers(&another_process("t", clock, store))
}

/// Another process over the same two tiers.
fn over_both(clock: &Arc<ManualClock>, upper: &Faulty, lower: &Faulty) -> Larder {
    let builder = Larder::builder("t")
        .clock(clock.clone())
        .without_backplane();
    let builder = builder.tier(upper.clone()).shared(lower.clone());
    builder.build().unwrap()
}

/// A load that never ends while the gate is closed.
fn gated_read(
    cache: &Numbers,
    loads: &LoadCounter,
    gate: &Gate,
    value: u64,
) -> JoinHandle<larder::Result<Arc<u64>>> {
    let (cache, loads, gate) = (cache.clone(), loads.clone(), gate.clone());
    tokio::spawn(async move {
        let load = |_| async move {
            let _load = loads.begin();
            gate.wait().await;
            Ok::<_, io::Error>(value)
        };
        cache.get_or_load(&1, load).await
    })
}

/// Turns the clock until the tiers are in use again, and says how long that took.
async fn healed(larder: &Larder, clock: &ManualClock) -> Duration {
    let began = clock.monotonic();
    let open = |tier: &TierStats| tier.health == TierHealth::Open;
    soon(async {
        while larder.tiers().iter().any(open) {
            clock.advance(ms(10));
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    ms(clock.monotonic() - began)
}

#[tokio::test]
async fn a_hit_below_is_promoted_with_what_is_left_of_its_ttl() {
    for reads in ["get", "get_or_load"] {
        let (larder, clock, upper, lower) = with_two_tiers("t");
        let cache = numbers(&larder);
        let _ = others(&clock, &lower).set(1, 7).await.unwrap();
        clock.advance(secs(20));
        let read = cache.with(Read::new());
        let outcome = match reads {
            "get" => read.get_explained(&1).await.unwrap().outcome,
            _ => {
                read.get_or_load_explained(&1, |_| never())
                    .await
                    .unwrap()
                    .outcome
            }
        };
        assert_eq!(outcome.source, Source::Tier("memory-store".into()));
        assert_eq!(outcome.state, State::Fresh);
        assert_eq!(outcome.remaining, Some(secs(40)));
        let entry = Bytes::from("t:c@1:1");
        lower.store().delete(&[entry], None).await.unwrap();
        let above = numbers(&over_both(&clock, &upper, &lower));
        let promoted = above.with(Read::new()).get_explained(&1).await.unwrap();
        assert_eq!(promoted.value.as_deref(), Some(&7));
        assert_eq!(promoted.outcome.remaining, Some(secs(40)));
        assert_eq!(promoted.outcome.age, Some(secs(20)));
        clock.advance(secs(40));
        assert!(upper.store().is_empty(), "gone when its time is over");
        assert_eq!(cache.get(&1).await.unwrap(), None);
    }
}

#[tokio::test]
async fn all_waiters_share_one_look_in_each_tier() {
    let (larder, clock, upper, lower) = with_two_tiers("t");
    let cache = numbers(&larder);
    let _ = others(&clock, &lower).set(1, 7).await.unwrap();
    // Without a bus, what is found has its version compared with that of the cache: one more get.
    for (operation, looks) in [(Operation::Get, 2), (Operation::Lease, 1)] {
        cache.invalidate_in_memory(&1);
        let entry = Bytes::from("t:c@1:1");
        upper.store().delete(&[entry], None).await.unwrap();
        let (above, below) = (upper.begun(Operation::Lease), lower.begun(operation));
        let gate = lower.pause_before(operation);
        let readers: Vec<_> = (0..100)
            .map(|_| {
                let cache = cache.clone();
                tokio::spawn(async move {
                    if operation == Operation::Get {
                        cache.get(&1).await.map(Option::unwrap)
                    } else {
                        cache.get_or_load(&1, |_| never()).await
                    }
                })
            })
            .collect();
        gate.arrived(1).await;
        gate.open();
        for reader in readers {
            assert_eq!(*soon(reader).await.unwrap().unwrap(), 7);
        }
        assert_eq!(upper.begun(Operation::Lease) - above, 1);
        assert_eq!(lower.begun(operation) - below, looks);
    }
}

#[tokio::test]
async fn what_is_loaded_fills_every_tier_and_leaves_no_lease() {
    let (larder, clock, upper, lower) = with_two_tiers("t");
    let cache = numbers(&larder);
    assert_eq!(*cache.get_or_load(&1, |_| found(7)).await.unwrap(), 7);
    for store in [&upper, &lower] {
        assert!(bytes_of(store.store(), "t:c@1:1").await.is_some());
        assert_eq!(lease_on(store.store(), "t:c@1:1").await, None);
    }
    let read = cache.with(Read::new().tiers(larder::Tiers::Memory));
    assert_eq!(*read.get_or_load(&2, |_| found(8)).await.unwrap(), 8);
    assert_eq!(
        bytes_of(lower.store(), "t:c@1:2").await,
        None,
        "memory alone was asked for"
    );
    let below = cache.with(Read::new().tiers(larder::Tiers::Shared));
    let _ = others(&clock, &lower).set(1, 9).await.unwrap();
    let _ = others(&clock, &upper).invalidate(&1).await.unwrap();
    assert_eq!(
        *below.get_or_load(&1, |_| never()).await.unwrap(),
        9,
        "past memory"
    );
}

#[tokio::test]
async fn reads_that_find_nothing_are_misses_of_the_tier() {
    let (larder, _clock, _tier) = with_tier("t");
    let cache = numbers(&larder);
    assert_eq!(cache.get(&1).await.unwrap(), None);
    cache.get_or_load(&1, |_| found(7)).await.unwrap();
    cache.invalidate_in_memory(&1);
    assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&7));
    let tier = &larder.tiers()[0];
    assert_eq!((tier.hits, tier.misses), (1, 2));
    let stats = cache.stats();
    assert_eq!((stats.hits_tiers, stats.misses, stats.reads()), (1, 2, 3));
}

/// A larder whose upper tier takes `limit` bytes, over one that takes more.
fn with_small_tier(limit: usize) -> (Larder, Arc<ManualClock>, Faulty, Faulty) {
    let mut stores = None;
    let (larder, clock) = larder_with("t", |builder, clock| {
        let (small, large) = (common::faulty(clock).0, common::faulty(clock).0);
        stores = Some((small.clone(), large.clone()));
        builder.tier(Wobbly::small(small, limit)).shared(large)
    });
    let (small, large) = stores.unwrap();
    (larder, clock, small, large)
}

#[tokio::test]
async fn a_value_over_a_tiers_limit_is_stored_where_it_fits_and_counted() {
    let (larder, _clock, small, large) = with_small_tier(1000);
    let cache: Cache<u64, String> = larder.cache("c").compress_over(1 << 20).build().unwrap();
    let long = "x".repeat(2000);
    for sets in [false, true] {
        let _ = cache.set(1, "short".to_owned()).await.unwrap();
        assert!(bytes_of(small.store(), "t:c@1:1").await.is_some());
        if sets {
            assert_eq!(
                cache.set(1, long.clone()).await.unwrap().delivery(),
                Delivery::Acked
            );
        } else {
            let _ = cache.invalidate(&1).await.unwrap();
            cache
                .get_or_load(&1, |_| found(long.clone()))
                .await
                .unwrap();
        }
        settle(&larder).await;
        assert_eq!(
            bytes_of(small.store(), "t:c@1:1").await,
            None,
            "by set: {sets}"
        );
        assert!(bytes_of(large.store(), "t:c@1:1").await.unwrap().len() > 2000);
        assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&long));
        cache.invalidate_in_memory(&1);
        assert_eq!(
            cache.get(&1).await.unwrap().as_deref(),
            Some(&long),
            "from below"
        );
        settle(&larder).await;
        assert_eq!(
            bytes_of(small.store(), "t:c@1:1").await,
            None,
            "and not promoted"
        );
    }
    assert_eq!(larder.tiers()[1].too_large, 0);
    assert_eq!(
        larder.tiers()[0].too_large,
        4,
        "a load, a set, and two promotions"
    );
    assert_eq!(cache.stats().too_large, 2, "a load and a set");
}

#[tokio::test]
async fn a_value_that_outgrew_a_tier_leaves_no_stale_one_behind() {
    let (larder, clock, small, _large) = with_small_tier(1000);
    let cache: Cache<u64, String> = larder
        .cache("c")
        .ttl("1m")
        .grace("1h")
        .compress_over(1 << 20)
        .build()
        .unwrap();
    cache
        .get_or_load(&1, |_| found("short".to_owned()))
        .await
        .unwrap();
    clock.advance(secs(61));
    let long = "x".repeat(2000);
    cache
        .get_or_load(&1, |_| found(long.clone()))
        .await
        .unwrap();
    settle(&larder).await;
    clock.advance(ms(1));
    assert_eq!(bytes_of(small.store(), "t:c@1:1").await, None);
    cache.invalidate_in_memory(&1);
    assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&long));
}

#[tokio::test]
async fn bytes_over_the_limit_are_not_read_and_are_replaced() {
    let (larder, clock, store, _large) = with_small_tier(1000);
    let cache: Cache<u64, String> = larder.cache("c").compress_over(1 << 20).build().unwrap();
    let other_larder = another_process("t", &clock, &store);
    let other: Cache<u64, String> = other_larder
        .cache("c")
        .compress_over(1 << 20)
        .build()
        .unwrap();
    let _ = other.set(1, "x".repeat(2000)).await.unwrap();
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert_eq!(
        *cache
            .get_or_load(&1, |_| found("ok".to_owned()))
            .await
            .unwrap(),
        "ok"
    );
    cache.invalidate_in_memory(&1);
    assert_eq!(
        cache.get(&1).await.unwrap().as_deref().map(String::as_str),
        Some("ok")
    );
    assert!(larder.tiers()[0].too_large >= 2);
    assert_eq!(other.get(&2).await.unwrap(), None);
}

/// Every way to spoil the bytes under a key, by name.
async fn spoiled(clock: &Arc<ManualClock>, store: &Faulty) -> Vec<(&'static str, Bytes)> {
    let other_larder = another_process("t", clock, store);
    let (key, other_key) = ("t:c@1:1", "t:c@1:2");
    let good: Numbers = numbers(&other_larder);
    let _ = good.set(1, 7).await.unwrap();
    let _ = good.set(2, 8).await.unwrap();
    let bytes = bytes_of(store.store(), key).await.unwrap();
    let neighbour = bytes_of(store.store(), other_key).await.unwrap();
    let texts: Cache<u64, Vec<String>> = another_process("t", clock, store)
        .cache("c")
        .build()
        .unwrap();
    let _ = texts.set(1, vec!["seven".to_owned()]).await.unwrap();
    let of_other_type = bytes_of(store.store(), key).await.unwrap();
    let flipped = |at: usize| {
        let mut copy = bytes.to_vec();
        copy[at] ^= 1;
        Bytes::from(copy)
    };
    let mut future = bytes.to_vec();
    future[4] = 99;
    vec![
        ("flipped in the body", flipped(bytes.len() - 1)),
        ("flipped in the checksum", flipped(72)),
        ("cut in the body", bytes.slice(..bytes.len() - 1)),
        ("cut behind the header", bytes.slice(..60)),
        ("cut in the header", bytes.slice(..20)),
        ("empty", Bytes::new()),
        (
            "plain text of somebody else",
            Bytes::from_static(b"{\"price\": 7}"),
        ),
        ("of a future format", Bytes::from(future)),
        ("another key's entry", neighbour),
        ("an entry of another type", of_other_type),
        ("with a tail", [&bytes[..], b"x"].concat().into()),
    ]
}

#[tokio::test]
async fn bytes_that_are_no_entry_are_a_counted_miss_and_the_next_fill_replaces_them() {
    let (_, clock, store) = with_tier("t");
    for (what, bytes) in spoiled(&clock, &store).await {
        let larder = another_process("t", &clock, &store);
        let cache = numbers(&larder);
        put(store.store(), "t:c@1:1", bytes).await;
        assert_eq!(cache.get(&1).await.unwrap(), None, "{what}");
        assert_eq!(cache.stats().rejected, 1, "{what}");
        let loaded = soon(cache.get_or_load(&1, |_| found(9))).await;
        assert_eq!(*loaded.unwrap(), 9, "{what}");
        assert_eq!(larder.tiers()[0].misses, 2, "{what}");
        assert_eq!(larder.tiers()[0].health, TierHealth::Closed, "{what}");
        assert_eq!(
            others(&clock, &store).get(&1).await.unwrap().as_deref(),
            Some(&9),
            "{what}"
        );
    }
}

#[tokio::test]
async fn a_placeholder_is_no_value() {
    let (larder, clock, store) = with_tier("t");
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let theirs = gated_read(&others(&clock, &store), &loads, &gate, 7);
    gate.arrived(1).await;
    let cache = numbers(&larder);
    assert_eq!(soon(cache.get(&1)).await.unwrap(), None);
    assert_eq!(cache.stats().rejected, 0, "and not a broken one either");
    gate.open();
    theirs.await.unwrap().unwrap();
}

/// A value that is sometimes not to be had in bytes.
#[derive(Debug, Deserialize, PartialEq)]
enum Awkward {
    Fine(u64),
    Fails,
    Panics,
}

impl Serialize for Awkward {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Awkward::Fine(number) => {
                serializer.serialize_newtype_variant("Awkward", 0, "Fine", number)
            }
            Awkward::Fails => Err(serde::ser::Error::custom("no")),
            Awkward::Panics => panic!("never"),
        }
    }
}

#[tokio::test]
async fn a_value_that_cannot_be_encoded_stays_in_memory() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Cache<u64, Awkward> = larder.cache("c").build().unwrap();
    for (key, awkward) in
        [(1, || Awkward::Fails), (2, || Awkward::Panics)] as [(u64, fn() -> Awkward); 2]
    {
        let loaded = soon(cache.get_or_load(&key, |_| found(awkward()))).await;
        assert_eq!(*loaded.unwrap(), awkward());
        settle(&larder).await;
        assert_eq!(cache.get_in_memory(&key).as_deref(), Some(&awkward()));
        assert!(tier.store().is_empty(), "no lease is left");
        assert_eq!(cache.stats().encode_errors, 2 * key - 1);

        let _ = cache.set(key, Awkward::Fine(7)).await.unwrap();
        assert_eq!(
            soon(cache.set(key, awkward())).await.unwrap().delivery(),
            Delivery::Acked
        );
        assert!(tier.store().is_empty(), "the older value is gone");
        assert_eq!(cache.get(&key).await.unwrap().as_deref(), Some(&awkward()));
        assert_eq!(cache.stats().encode_errors, 2 * key);
        let _ = cache.invalidate(&key).await.unwrap();
    }
    assert_eq!(larder.tiers()[0].too_large, 0, "which is another matter");
}

#[tokio::test]
async fn a_tier_that_fails_fails_no_read_and_is_taken_out_of_use() {
    let (larder, clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    tier.inject(Operation::ALL, DOWN);
    for key in 0..10 {
        assert_eq!(cache.get(&key).await.unwrap(), None);
        assert_eq!(*cache.get_or_load(&key, |_| found(key)).await.unwrap(), key);
        settle(&larder).await;
    }
    let stats = &larder.tiers()[0];
    assert_eq!((stats.health, stats.opened), (TierHealth::Open, 1));
    assert_eq!(stats.failures, 3, "three in a row were enough");
    let asked = |operation| tier.begun(operation);
    let before = Operation::ALL.map(asked);
    for key in 10..100 {
        cache.get_or_load(&key, |_| found(key)).await.unwrap();
    }
    settle(&larder).await;
    assert_eq!(
        Operation::ALL.map(asked),
        before,
        "out of use, it is not asked"
    );
    assert!(larder.tiers()[0].skipped >= 90);

    tier.heal();
    let took = healed(&larder, &clock).await;
    assert!(took <= secs(2), "{took:?}");
    cache.get_or_load(&100, |_| found(7)).await.unwrap();
    assert_eq!(
        others(&clock, &tier).get(&100).await.unwrap().as_deref(),
        Some(&7)
    );
}

#[tokio::test]
async fn a_tier_that_is_down_is_probed_by_one_at_a_time_and_less_and_less_often() {
    let (larder, clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    tier.inject(Operation::ALL, DOWN);
    for key in 0..20 {
        cache.get_or_load(&key, |_| found(key)).await.unwrap();
    }
    let mut probes = Vec::new();
    for _ in 0..400 {
        clock.advance(ms(10));
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        probes.push(tier.begun(Operation::Ping));
    }
    let in_first_second = probes[99];
    let in_last_second = probes[399] - probes[299];
    assert!((3..=5).contains(&in_first_second), "{in_first_second}");
    assert!((1..=2).contains(&in_last_second), "{in_last_second}");
    tier.inject([Operation::Ping], StoreFault::Hang);
    for _ in 0..1000 {
        clock.advance(ms(10));
        tokio::task::yield_now().await;
    }
    assert!(
        tier.begun(Operation::Ping) - probes[399] <= 10,
        "a probe that hangs is given up"
    );
    tier.heal();
    assert!(healed(&larder, &clock).await <= secs(2));
}

#[tokio::test]
async fn a_tier_that_is_down_at_the_start_is_no_error_and_heals() {
    let (larder, clock, tier) = with_tier("t");
    tier.inject(Operation::ALL, DOWN);
    let cache = numbers(&larder);
    for key in 0..5 {
        assert_eq!(*cache.get_or_load(&key, |_| found(7)).await.unwrap(), 7);
    }
    tier.heal();
    assert!(healed(&larder, &clock).await <= secs(2));
    let _ = cache.set(1, 8).await.unwrap();
    assert_eq!(
        others(&clock, &tier).get(&1).await.unwrap().as_deref(),
        Some(&8)
    );
}

/// How long one read takes by the clock.
async fn timed<T: Send + 'static>(
    clock: &ManualClock,
    read: impl Future<Output = T> + Send + 'static,
) -> (T, Duration) {
    let began = clock.monotonic();
    let task = tokio::spawn(read);
    for _ in 0..50 {
        tokio::task::yield_now().await; // What needs no time is over before any passes.
    }
    let value = turn_until(clock, ms(1), task).await;
    (value, ms(clock.monotonic() - began))
}

#[tokio::test]
async fn whatever_hangs_a_read_is_delayed_by_one_budget() {
    use Operation::{Fill, Get, Lease, Release};
    for hanging in [
        vec![Lease],
        vec![Fill],
        vec![Release],
        vec![Get],
        Operation::ALL.to_vec(),
    ] {
        for tiers in [1, 2] {
            for call in ["get_or_load", "get", "many", "failing", "not stored"] {
                let (larder, clock, upper, lower) = with_two_tiers("t");
                let (larder, clock, stores) = if tiers == 2 {
                    (larder, clock, vec![upper, lower])
                } else {
                    let (larder, clock, tier) = with_tier("t");
                    (larder, clock, vec![tier])
                };
                let cache = numbers(&larder);
                stores
                    .iter()
                    .for_each(|s| s.inject(hanging.clone(), StoreFault::Hang));
                let reader = cache.clone();
                let read = async move {
                    match call {
                        "get" => reader.get(&1).await.is_ok(),
                        "many" => {
                            let load = |keys: Vec<u64>| {
                                found(keys.into_iter().map(|key| (key, key)).collect::<Vec<_>>())
                            };
                            let keys: Vec<_> = (0..100).collect();
                            reader.get_or_load_many(&keys, load).await.is_ok()
                        }
                        "failing" => reader
                            .get_or_load(&1, |_| common::failed::<u64>())
                            .await
                            .is_err(),
                        "not stored" => reader
                            .get_or_load(&1, |_| found(Loaded::no_store(7)))
                            .await
                            .is_ok(),
                        _ => reader.get_or_load(&1, |_| found(7)).await.is_ok(),
                    }
                };
                let (ok, took) = timed(&clock, read).await;
                let here = format!("{call} over {tiers} tiers, {hanging:?} hang");
                assert!(ok, "{here}");
                assert!(took <= BUDGET, "{here}: {took:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_slow_tier_uses_up_one_budget_over_all_its_operations() {
    let (larder, clock, upper, lower) = with_two_tiers("t");
    let cache = numbers(&larder);
    for store in [&upper, &lower] {
        store.inject(
            [Operation::Lease, Operation::Fill],
            StoreFault::Delay(ms(40)),
        );
    }
    let reader = cache.clone();
    let (value, took) = timed(&clock, async move {
        reader.get_or_load(&1, |_| found(7)).await.unwrap()
    })
    .await;
    assert_eq!(*value, 7);
    assert!(ms(80) <= took && took <= BUDGET, "{took:?}");
}

#[tokio::test]
async fn reads_cost_no_time_once_a_tier_that_hangs_is_out_of_use() {
    let (larder, clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    tier.inject(Operation::ALL, StoreFault::Hang);
    let mut total = Duration::ZERO;
    for key in 0..20 {
        let reader = cache.clone();
        let read = async move { reader.get_or_load(&key, |_| found(key)).await.unwrap() };
        let (_, took) = timed(&clock, read).await;
        total += took;
    }
    assert!(total <= 3 * BUDGET, "{total:?}");
    assert_eq!(larder.tiers()[0].health, TierHealth::Open);
}

#[tokio::test]
async fn callers_that_come_while_a_tier_hangs_wait_together() {
    let (larder, clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    tier.inject(Operation::ALL, StoreFault::Hang);
    let readers: Vec<_> = (0..100)
        .map(|key| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get_or_load(&key, |_| found(key)).await.unwrap() })
        })
        .collect();
    clock.sleeping(100).await;
    clock.advance(BUDGET);
    for reader in readers {
        soon(reader).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_tier_missed_is_made_up_for_before_it_is_read_again() {
    for how in ["invalidate", "set", "expire", "clear"] {
        for fault in [DOWN, StoreFault::Hang] {
            let here = format!("{how} while {fault:?}");
            let (larder, clock, tier) = with_tier("t");
            let cache = numbers(&larder);
            let _ = others(&clock, &tier).set(1, 7).await.unwrap();
            assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
            tier.inject(Operation::ALL, fault);
            let writer = cache.clone();
            let change = tokio::spawn(async move {
                match how {
                    "invalidate" => writer.invalidate(&1).await,
                    "set" => writer.set(1, 8).await,
                    "expire" => writer.expire(&1).await,
                    _ => writer.clear().await,
                }
            });
            let receipt = turn_until(&clock, ms(50), change).await.unwrap();
            assert_eq!(receipt.delivery(), Delivery::Queued, "{here}");
            assert!(larder.tiers()[0].owed > 0, "{here}");
            assert_eq!(
                larder.tiers()[0].health,
                TierHealth::Open,
                "{here}: at once"
            );
            let kept = (how == "set").then_some(8);
            assert_eq!(
                cache.get(&1).await.unwrap().as_deref().copied(),
                kept,
                "{here}"
            );

            // The tier is back, and has the old value still; the repair is not through yet.
            let gates = [Operation::Delete, Operation::Sweep].map(|o| tier.pause_before(o));
            tier.heal();
            for _ in 0..50 {
                clock.advance(ms(50));
                tokio::task::yield_now().await;
                assert_eq!(
                    cache.get(&1).await.unwrap().as_deref().copied(),
                    kept,
                    "{here}"
                );
            }
            assert!(gates[0].arrivals() + gates[1].arrivals() > 0, "{here}");
            gates.iter().for_each(Gate::open);
            healed(&larder, &clock).await;
            assert_eq!(others(&clock, &tier).get(&1).await.unwrap(), None, "{here}");
            assert_eq!(larder.tiers()[0].owed, 0, "{here}");
            assert!(larder.tiers()[0].repaired > 0, "{here}");
            assert_eq!(
                cache.get(&1).await.unwrap().as_deref().copied(),
                kept,
                "{here}"
            );
        }
    }
}

#[tokio::test]
async fn an_invalidation_during_the_repair_of_the_same_key_is_made_up_for_as_well() {
    let (larder, clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    tier.inject(Operation::ALL, DOWN);
    assert_eq!(
        cache.invalidate(&1).await.unwrap().delivery(),
        Delivery::Queued
    );
    let gate = tier.pause_after(Operation::Delete);
    tier.heal();
    while gate.arrivals() == 0 {
        clock.advance(ms(10));
        tokio::task::yield_now().await;
    }
    // The store has deleted the key. Another process fills in what is old a moment later.
    let other = others(&clock, &tier);
    let set = tokio::spawn({
        let other = other.clone();
        async move { other.set(1, 7).await }
    });
    while tier.finished(Operation::Set) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        cache.invalidate(&1).await.unwrap().delivery(),
        Delivery::Queued
    );
    gate.open();
    assert!(soon(set).await.unwrap().unwrap().is_acked());
    healed(&larder, &clock).await;
    assert_eq!(cache.get(&1).await.unwrap(), None);
    other.invalidate_in_memory(&1);
    assert_eq!(other.get(&1).await.unwrap(), None);
}

#[tokio::test]
async fn a_tier_that_owes_too_many_keys_is_cleared_of_the_namespace() {
    let (larder, clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    let elsewhere = another_process("elsewhere", &clock, &tier);
    let elsewhere = numbers(&elsewhere);
    let _ = elsewhere.set(1, 7).await.unwrap();
    for key in [5, 20_000] {
        let _ = others(&clock, &tier).set(key, 7).await.unwrap();
    }
    tier.inject(Operation::ALL, DOWN);
    for key in 0..10_500 {
        let _ = cache.invalidate(&key).await.unwrap();
        assert!(larder.tiers()[0].owed <= 10_001, "it is bounded");
    }
    tier.heal();
    healed(&larder, &clock).await;
    for key in [5, 20_000] {
        assert_eq!(others(&clock, &tier).get(&key).await.unwrap(), None);
    }
    elsewhere.invalidate_in_memory(&1);
    assert_eq!(
        elsewhere.get(&1).await.unwrap().as_deref(),
        Some(&7),
        "other namespaces stay"
    );
}

#[tokio::test]
async fn what_is_owed_at_the_end_is_reported_and_stores_are_closed_once() {
    let (larder, _clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    tier.inject(Operation::ALL, DOWN);
    let _ = cache.invalidate(&1).await.unwrap();
    tier.heal();
    let report = soon(larder.shutdown(secs(5))).await;
    let owed = 2; // The entry, and the record of what depends on it.
    assert_eq!((report.owed, report.abandoned), (owed, 0));
    assert_eq!(tier.begun(Operation::Close), 1);
}

#[tokio::test]
async fn a_tier_that_refuses_writes_still_answers_reads() {
    use Operation::{Fill, Lease, Set};
    let (larder, clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    let other = others(&clock, &tier);
    for key in 0..10 {
        let _ = other.set(key, 7).await.unwrap();
    }
    tier.inject([Fill, Set], REFUSING);
    for key in 0..5 {
        assert_eq!(
            cache.set(key, 8).await.unwrap().delivery(),
            Delivery::Acked,
            "deleted instead"
        );
        assert_eq!(bytes_of(tier.store(), &format!("t:c@1:{key}")).await, None);
        assert_eq!(cache.get(&key).await.unwrap().as_deref(), Some(&8));
    }
    for key in 5..10 {
        assert_eq!(
            *cache.get_or_load(&key, |_| never()).await.unwrap(),
            7,
            "from the tier"
        );
    }
    tier.inject([Lease], REFUSING);
    for key in 20..30 {
        assert_eq!(*cache.get_or_load(&key, |_| found(9)).await.unwrap(), 9);
    }
    assert_eq!(larder.tiers()[0].health, TierHealth::Closed, "it is there");
    tier.inject([Operation::Delete], REFUSING);
    assert_eq!(
        cache.invalidate(&5).await.unwrap().delivery(),
        Delivery::Queued,
        "but nothing gets lost"
    );
    tier.heal();
    healed(&larder, &clock).await;
    assert_eq!(cache.get(&5).await.unwrap(), None);
}

#[tokio::test]
async fn a_load_of_another_process_is_waited_for() {
    let (larder, clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let theirs = gated_read(&others(&clock, &tier), &loads, &gate, 7);
    gate.arrived(1).await;
    let readers: Vec<_> = (0..10)
        .map(|_| gated_read(&cache, &loads, &gate, 8))
        .collect();
    clock.sleeping(2).await; // Their deadline, and our wait.
    gate.open();
    assert_eq!(*theirs.await.unwrap().unwrap(), 7);
    for reader in readers {
        assert_eq!(*turn_until(&clock, ms(10), reader).await.unwrap(), 7);
    }
    assert_eq!(loads.starts(), 1);
}

#[tokio::test]
async fn when_another_process_gives_up_its_lease_somebody_who_waits_loads() {
    let (larder, clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    let other_larder = another_process("t", &clock, &tier);
    let other = numbers(&other_larder);
    let gate = Gate::new();
    let theirs = tokio::spawn({
        let gate = gate.clone();
        async move {
            let load = |_| async move {
                gate.wait().await;
                Err::<u64, _>(io::Error::other("no route"))
            };
            other.get_or_load(&1, load).await
        }
    });
    gate.arrived(1).await;
    let ours = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load(&1, |_| found(8)).await }
    });
    clock.sleeping(2).await;
    gate.open();
    assert!(theirs.await.unwrap().is_err());
    let began = clock.monotonic();
    assert_eq!(*turn_until(&clock, ms(1), ours).await.unwrap(), 8);
    assert!(clock.monotonic() - began <= 50, "at the next look");
}

#[tokio::test]
async fn a_stale_value_that_another_process_refreshes_is_served_at_once() {
    let (larder, clock, tier) = with_tier("t");
    let graceful =
        |larder: &Larder| -> Numbers { larder.cache("c").ttl("1m").grace("1h").build().unwrap() };
    let cache = graceful(&larder);
    let other = graceful(&another_process("t", &clock, &tier));
    let _ = other.set(1, 6).await.unwrap();
    clock.advance(secs(61));
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    assert_eq!(
        *gated_read(&other, &loads, &gate, 7).await.unwrap().unwrap(),
        6
    );
    gate.arrived(1).await;
    let read = cache.with(Read::new());
    let stale = soon(read.get_or_load_explained(&1, |_| never()))
        .await
        .unwrap();
    assert_eq!((*stale.value, stale.outcome.state), (6, State::Stale));
    settle(&larder).await;
    assert_eq!(
        *soon(cache.get_or_load(&1, |_| never())).await.unwrap(),
        6,
        "for a while"
    );
    gate.open();
    clock.advance(secs(1));
    let again = gated_read(&cache, &loads, &gate, 8);
    assert_eq!(*again.await.unwrap().unwrap(), 6, "and then looks again");
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
    assert_eq!(loads.starts(), 1, "one refresh for both processes");
}

#[tokio::test]
async fn a_fill_under_a_lease_that_another_process_voided_is_refused() {
    let (larder, clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    let other = others(&clock, &tier);
    for how in ["invalidate", "set", "expire", "clear"] {
        let (loads, gate) = (LoadCounter::new(), Gate::new());
        let ours = gated_read(&cache, &loads, &gate, 7);
        gate.arrived(1).await;
        let receipt = match how {
            "invalidate" => other.invalidate(&1).await,
            "set" => other.set(1, 8).await,
            "expire" => other.expire(&1).await,
            _ => other.clear().await,
        };
        assert_eq!(receipt.unwrap().delivery(), Delivery::Acked);
        gate.open();
        assert_eq!(*ours.await.unwrap().unwrap(), 7);
        settle(&larder).await;
        let kept = (how == "set").then_some(8);
        assert_eq!(cache.get_in_memory(&1), None, "{how}: not even in memory");
        assert_eq!(
            cache.get(&1).await.unwrap().as_deref().copied(),
            kept,
            "{how}"
        );
        let _ = cache.invalidate(&1).await.unwrap();
    }
    assert_eq!(larder.tiers()[0].refused_fills, 4);
}

#[tokio::test]
async fn a_lease_whose_answer_was_late_stops_nobody_once_the_tier_is_back() {
    let (larder, clock, tier) = with_tier("t");
    let cache = numbers(&larder);
    // The store takes leases, and everything hangs before it can say so.
    let gate = tier.pause_after(Operation::Lease);
    tier.inject([Operation::Release, Operation::Ping], StoreFault::Hang);
    let keys = 1..=5;
    for key in keys.clone() {
        let reader = cache.clone();
        let read = async move { reader.get_or_load(&key, |_| found(key)).await.unwrap() };
        turn_until(&clock, ms(10), tokio::spawn(read)).await;
    }
    assert_eq!(larder.tiers()[0].health, TierHealth::Open);
    assert!(lease_on(tier.store(), "t:c@1:1").await.is_some());
    gate.open();
    tier.heal();
    healed(&larder, &clock).await;
    for key in keys {
        cache.invalidate_in_memory(&key);
        let read = soon(cache.get_or_load(&key, |_| found(10 + key))).await;
        assert_eq!(*read.unwrap(), 10 + key, "at once");
    }
}

#[tokio::test]
async fn a_slow_refresh_that_fails_does_not_replace_a_newer_value() {
    let (larder, clock, tier) = with_tier("t");
    let graceful =
        |larder: &Larder| -> Numbers { larder.cache("c").ttl("1m").grace("1h").build().unwrap() };
    let cache = graceful(&larder);
    let other = graceful(&another_process("t", &clock, &tier));
    let gate = Gate::new();
    let _ = cache.set(1, 6).await.unwrap();
    clock.advance(secs(61));
    let refresh = {
        let gate = gate.clone();
        cache.get_or_load(&1, |_| async move {
            gate.wait().await;
            Err::<u64, _>(io::Error::other("no route"))
        })
    };
    assert_eq!(*refresh.await.unwrap(), 6);
    gate.arrived(1).await;
    // Meanwhile another process stores a new value, and a read here brings it into memory.
    let _ = other.set(1, 7).await.unwrap();
    let below = cache.with(Read::new().tiers(larder::Tiers::Shared));
    assert_eq!(below.get(&1).await.unwrap().as_deref(), Some(&7));
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&7));
    gate.open();
    settle(&larder).await;
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&7));
}

#[tokio::test]
async fn a_cleared_cache_is_empty_in_every_tier_and_others_are_not() {
    let (larder, clock, upper, lower) = with_two_tiers("t");
    let cache = numbers(&larder);
    let neighbour: Numbers = larder.cache("c2").build().unwrap();
    for key in 0..100 {
        let _ = cache.set(key, key).await.unwrap();
    }
    let _ = neighbour.set(1, 7).await.unwrap();
    assert_eq!(cache.clear().await.unwrap().delivery(), Delivery::Acked);
    for key in 0..100 {
        assert_eq!(cache.get(&key).await.unwrap(), None);
    }
    assert_eq!(others(&clock, &lower).get(&1).await.unwrap(), None);
    assert_eq!(neighbour.get(&1).await.unwrap().as_deref(), Some(&7));
    // The space is given back as the times of the entries end.
    clock.advance(secs(61));
    assert_eq!((upper.store().len(), lower.store().len()), (0, 1));
}

#[tokio::test]
async fn a_tier_that_hangs_does_not_keep_the_others_from_hearing_of_an_invalidation() {
    let (larder, clock, upper, lower) = with_two_tiers("t");
    let cache = numbers(&larder);
    let _ = cache.set(1, 7).await.unwrap();
    lower.inject(Operation::ALL, StoreFault::Hang);
    let writer = cache.clone();
    let (receipt, took) = timed(&clock, async move { writer.invalidate(&1).await }).await;
    assert_eq!(receipt.unwrap().delivery(), Delivery::Queued);
    assert!(took <= 2 * BUDGET);
    assert!(upper.store().is_empty());
    let health: Vec<_> = larder.tiers().iter().map(|tier| tier.health).collect();
    assert_eq!(health, [TierHealth::Closed, TierHealth::Open]);
}
