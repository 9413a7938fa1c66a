//! Two schema versions of one cache side by side: what either invalidates, the other does not
//! serve.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{Fleet, another_process, found, healthy, ms, soon, with_tier};
use larder::store::StoreErrorKind;
use larder::{Cache, Invalidation, Larder, Loaded, Read, Receipt};
use larder_testkit::{BusFault, BusOperation, Operation, StoreFault, settle};

type Old = Cache<u64, u64>;
type New = Cache<u64, String>;

fn old(larder: &Larder) -> Old {
    larder.cache("c").version(1).grace("1h").build().unwrap()
}

fn new(larder: &Larder) -> New {
    larder.cache("c").version(2).grace("1h").build().unwrap()
}

const WAYS: [&str; 5] = ["invalidate", "set", "expire", "clear", "pattern"];

/// What a change leaves behind for readers without a loader: an expired entry is served within its
/// grace.
fn is_left(how: &str) -> bool {
    how == "expire"
}

async fn change(cache: &Old, how: &str) -> Receipt {
    match how {
        "invalidate" => cache.invalidate(&1).await,
        "set" => cache.set(1, 10).await,
        "expire" => cache.expire(&1).await,
        "clear" => cache.clear().await,
        _ => cache.invalidate_matching("1").await,
    }
    .unwrap()
}

async fn change_new(cache: &New, how: &str) -> Receipt {
    match how {
        "invalidate" => cache.invalidate(&1).await,
        "set" => cache.set(1, "ten".to_owned()).await,
        "expire" => cache.expire(&1).await,
        "clear" => cache.clear().await,
        _ => cache.invalidate_matching("1").await,
    }
    .unwrap()
}

#[tokio::test]
async fn what_either_version_changes_reaches_the_other_in_memory_and_in_the_tier() {
    for how in WAYS {
        let fleet = Fleet::new();
        let [(a, _), (b, _)] = [fleet.process(), fleet.process()];
        let (at_a, at_b) = (old(&a), new(&b));
        for from_old in [true, false] {
            let here = format!("{how}, from the old one: {from_old}");
            let _ = at_a.set(1, 1).await.unwrap();
            let token = at_b
                .set(1, "one".to_owned())
                .await
                .unwrap()
                .token()
                .unwrap();
            at_a.with(Read::new().after(token)).get(&1).await.unwrap();
            let _ = at_a.get_or_load(&1, |_| found(1)).await.unwrap();
            healthy(&a).await;
            healthy(&b).await;
            let receipt = if from_old {
                change(&at_a, how).await
            } else {
                change_new(&at_b, how).await
            };
            let token = receipt.token().unwrap();
            fleet.clock.advance(ms(1));
            let after = Read::new().after(token);
            if from_old {
                let left = soon(at_b.with(after).get(&1)).await.unwrap();
                assert_eq!(left.is_some(), is_left(how), "{here}");
                let fresh = at_b.with(after.max_stale(std::time::Duration::ZERO));
                let loaded = fresh.get_or_load(&1, |_| found("new".to_owned())).await;
                assert_eq!(*loaded.unwrap(), "new", "{here}");
            } else {
                let left = soon(at_a.with(after).get(&1)).await.unwrap();
                assert_eq!(left.is_some(), is_left(how), "{here}");
                let fresh = at_a.with(after.max_stale(std::time::Duration::ZERO));
                let loaded = fresh.get_or_load(&1, |_| found(9)).await;
                assert_eq!(*loaded.unwrap(), 9, "{here}");
            }
        }
        settle(&a).await;
        settle(&b).await;
    }
}

#[tokio::test]
async fn what_is_changed_reaches_entries_of_a_version_that_does_not_run_any_more() {
    for how in WAYS {
        for on_a_bus in [true, false] {
            let here = format!("{how}, on a bus: {on_a_bus}");
            let fleet = Fleet::new();
            let process = || {
                if on_a_bus {
                    fleet.process().0
                } else {
                    another_process("t", &fleet.clock, &fleet.store)
                }
            };
            let gone = process();
            let _ = new(&gone).set(1, "one".to_owned()).await.unwrap();
            settle(&gone).await;
            drop(gone);
            let a = process();
            assert!(change(&old(&a), how).await.is_acked(), "{here}");
            let b = process();
            let at_b = new(&b);
            assert_eq!(
                at_b.get(&1).await.unwrap().is_some(),
                is_left(how),
                "{here}"
            );
            if is_left(how) {
                fleet.clock.advance(ms(1));
                let fresh = at_b.with(Read::new().max_stale(std::time::Duration::ZERO));
                let loaded = fresh.get_or_load(&1, |_| found("new".to_owned())).await;
                assert_eq!(*loaded.unwrap(), "new", "{here}");
            }
        }
    }
}

#[tokio::test]
async fn a_version_that_comes_later_is_known_to_those_who_have_asked_before() {
    for failing in [None, Some(true), Some(false)] {
        let fleet = Fleet::new();
        let (a, _) = fleet.process();
        let at_a = old(&a);
        let _ = at_a.set(1, 1).await.unwrap();
        let _ = at_a.invalidate(&1).await.unwrap();
        healthy(&a).await;
        let (gone, line) = fleet.process();
        let at_b = new(&gone);
        let unavailable = StoreErrorKind::Unavailable;
        // The first try may fail, in the tier or on the bus.
        match failing {
            Some(true) => fleet
                .store
                .inject([Operation::Enlist], StoreFault::Fail(unavailable)),
            Some(false) => line.inject([BusOperation::Publish], BusFault::Fail(unavailable)),
            None => {}
        }
        let _ = at_b.get(&7).await.unwrap();
        fleet.store.heal();
        line.heal();
        fleet.clock.advance(ms(1_500));
        let _ = at_b.get(&8).await.unwrap();
        at_b.get_or_load(&1, |_| found("one".to_owned()))
            .await
            .unwrap();
        settle(&gone).await;
        drop((gone, at_b));
        healthy(&a).await;
        assert!(at_a.invalidate(&1).await.unwrap().is_acked());
        let (b, _) = fleet.process();
        let left = new(&b).get(&1).await.unwrap();
        assert_eq!(left, None, "{failing:?}");
    }
}

#[tokio::test]
async fn whoever_is_of_a_version_that_the_sender_does_not_know_sees_to_its_own() {
    for how in ["invalidate", "set", "pattern", "before"] {
        let fleet = Fleet::new();
        let (a, _) = fleet.process();
        let at_a = old(&a);
        let _ = at_a.set(1, 1).await.unwrap();
        let _ = at_a.invalidate(&1).await.unwrap();
        healthy(&a).await;
        // Nobody ever learns of the new version.
        let unavailable = StoreErrorKind::Unavailable;
        let (b, line) = fleet.process();
        fleet
            .store
            .inject([Operation::Enlist], StoreFault::Fail(unavailable));
        line.inject([BusOperation::Publish], BusFault::Fail(unavailable));
        let at_b = new(&b);
        for key in [1, 2] {
            let value = Loaded::value(key.to_string()).version(4);
            at_b.get_or_load(&key, |_| found(value)).await.unwrap();
        }
        healthy(&b).await;
        let receipt = match how {
            "before" => at_a.invalidate_before(&1, 5).await.unwrap(),
            _ => change(&at_a, how).await,
        };
        let heard = Read::new().after(receipt.token().unwrap());
        soon(at_b.with(heard).get(&2)).await.unwrap();
        settle(&b).await;
        let (c, _) = fleet.process();
        let at_c = new(&c);
        assert_eq!(at_c.get(&1).await.unwrap(), None, "{how}");
        assert!(at_c.get(&2).await.unwrap().is_some(), "{how}");
    }
}

#[tokio::test]
async fn a_process_without_the_cache_reaches_all_of_its_versions() {
    let (larder, clock, tier) = with_tier("t");
    let other = another_process("t", &clock, &tier);
    let (at_a, at_b) = (old(&larder), new(&other));
    let _ = at_a.set(1, 1).await.unwrap();
    let _ = at_b.set(1, "one".to_owned()).await.unwrap();
    let feed = another_process("t", &clock, &tier);
    let _ = at_a.set(1, 1).await.unwrap();
    let key = Invalidation::key("c", ["1"]);
    assert!(feed.invalidate_each([key]).await.unwrap().is_acked());
    at_a.invalidate_in_memory(&1);
    at_b.invalidate_in_memory(&1);
    assert_eq!(at_a.get(&1).await.unwrap(), None);
    assert_eq!(at_b.get(&1).await.unwrap(), None);
}

#[tokio::test]
async fn keys_of_another_type_under_the_same_name_make_all_of_memory_go() {
    let fleet = Fleet::new();
    let [(a, _), (b, _)] = [fleet.process(), fleet.process()];
    let at_a: Cache<String, u64> = a.cache("c").version(1).build().unwrap();
    let at_b: Cache<u64, u64> = b.cache("c").version(2).build().unwrap();
    let _ = at_b.set(1, 1).await.unwrap();
    healthy(&b).await;
    let receipt = at_a.invalidate("no number").await.unwrap();
    let heard = at_b.with(Read::new().after(receipt.token().unwrap()));
    soon(heard.get(&2)).await.unwrap();
    assert_eq!(at_b.get_in_memory(&1), None);
}
