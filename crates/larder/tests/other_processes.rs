//! What holds between larders that share a store and have no bus, and what a tier that was away
//! owes them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{another_process, ms, secs, soon, with_tier, with_two_tiers};
use larder::store::StoreErrorKind;
use larder::{Cache, Delivery, TierHealth};
use larder_testkit::{Operation, StoreFault};

#[tokio::test]
async fn a_private_tier_above_a_shared_one_keeps_its_copy_no_longer_than_memory() {
    let (larder, clock, private, shared) = with_two_tiers("t");
    let other = another_process("t", &clock, &shared);
    let ours: Cache<u64, u64> = larder.cache("c").ttl("1h").grace("1h").build().unwrap();
    let theirs: Cache<u64, u64> = other.cache("c").ttl("1h").grace("1h").build().unwrap();
    let _ = ours.set(1, 1).await.unwrap();
    let _ = theirs.set(1, 2).await.unwrap();
    assert_eq!(
        ours.get(&1).await.unwrap().as_deref(),
        Some(&1),
        "within the memory TTL"
    );
    clock.advance(secs(60));
    assert_eq!(ours.get(&1).await.unwrap().as_deref(), Some(&2));
    // The same for a copy that was promoted, and asked for by a caller with a loader.
    let _ = theirs.set(1, 3).await.unwrap();
    clock.advance(secs(60));
    let load = |_| async { Err::<u64, _>(std::io::Error::other("not asked")) };
    assert_eq!(*ours.get_or_load(&1, load).await.unwrap(), 3);
    assert!(private.finished(Operation::Fill) > 0, "it was promoted");
}

#[tokio::test]
async fn an_invalidation_that_comes_during_the_repair_of_an_earlier_one_is_repaired_too() {
    let (larder, clock, tier) = with_tier("t");
    let other = another_process("t", &clock, &tier);
    let ours: Cache<u64, u64> = larder.cache("c").memory_ttl("0s").build().unwrap();
    let theirs: Cache<u64, u64> = other.cache("c").build().unwrap();
    tier.inject(
        [Operation::Delete],
        StoreFault::Fail(StoreErrorKind::Unavailable),
    );
    assert_eq!(
        ours.invalidate(&1).await.unwrap().delivery(),
        Delivery::Queued
    );
    tier.heal();
    let deleted = tier.pause_after(Operation::Delete);
    clock.sleeping(1).await;
    clock.advance(ms(50));
    soon(deleted.arrived(1)).await;
    // The repair has deleted the key and does not know it yet. Another process stores what it
    // read before the change, and the change is invalidated here.
    let set = tokio::spawn(async move { theirs.set(1, 1).await });
    soon(async {
        while tier.finished(Operation::Set) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(
        ours.invalidate(&1).await.unwrap().delivery(),
        Delivery::Queued
    );
    deleted.open();
    assert!(soon(set).await.unwrap().unwrap().is_acked());
    soon(async {
        while larder.tiers()[0].health == TierHealth::Open {
            clock.advance(ms(50));
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(ours.get(&1).await.unwrap(), None);
    assert_eq!(larder.tiers()[0].owed, 0);
}
