//! Faults of a store, switched while it runs.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may panic as the tests do"
)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::Clock;
use larder::store::{Store, StoreErrorKind, Write};
use larder_testkit::{
    FaultyStore, ManualClock, MemoryStore, Operation, StoreFault, Subject, store_suite,
};

type Faulty = FaultyStore<MemoryStore>;

fn store() -> (Faulty, Arc<ManualClock>) {
    let clock = ManualClock::new();
    (
        FaultyStore::new(MemoryStore::new(clock.clone()), clock.clone()),
        clock,
    )
}

fn write(value: &'static str) -> [Write; 1] {
    [Write {
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(value.as_bytes()),
        ttl: Duration::from_secs(60),
        tags: None,
    }]
}

async fn read(store: &impl Store) -> Option<Bytes> {
    store.get(&["k".into()], 100).await.unwrap().remove(0)
}

mod without_faults_it_passes_the_suite {
    use super::*;

    async fn open() -> Subject {
        let (store, clock) = store();
        Subject::new(Arc::new(store)).with_clock(clock)
    }

    store_suite!(open);
}

#[tokio::test]
async fn a_failing_operation_does_not_reach_the_store() {
    let (store, _) = store();
    store.set(&write("old")).await.unwrap();
    store.inject([Operation::Set], StoreFault::Fail(StoreErrorKind::Refused));
    let error = store.set(&write("new")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused);
    assert_eq!(
        read(&store).await,
        Some("old".into()),
        "other operations work"
    );
    assert_eq!(
        (store.begun(Operation::Set), store.finished(Operation::Set)),
        (2, 1)
    );
    store.heal();
    store.set(&write("new")).await.unwrap();
    assert_eq!(read(&store).await, Some("new".into()));
}

#[tokio::test]
async fn a_hanging_operation_goes_on_when_it_is_healed_or_fails_when_told() {
    let (store, _) = store();
    for fault in [
        StoreFault::None,
        StoreFault::Fail(StoreErrorKind::Unavailable),
    ] {
        store.inject(Operation::ALL, StoreFault::Hang);
        let begun = store.begun(Operation::Ping);
        let hanging = tokio::spawn({
            let store = store.clone();
            async move { store.ping().await }
        });
        while store.begun(Operation::Ping) == begun {
            tokio::task::yield_now().await;
        }
        assert!(!hanging.is_finished());
        store.inject(Operation::ALL, fault);
        assert_eq!(hanging.await.unwrap().is_ok(), fault == StoreFault::None);
    }
}

#[tokio::test]
async fn a_delayed_operation_waits_on_the_clock() {
    let (store, clock) = store();
    store.inject([Operation::Get], StoreFault::Delay(Duration::from_secs(5)));
    let slow = tokio::spawn({
        let store = store.clone();
        async move { read(&store).await }
    });
    clock.sleeping(1).await;
    store.set(&write("meanwhile")).await.unwrap();
    clock.advance(Duration::from_secs(5));
    assert_eq!(
        slow.await.unwrap(),
        Some("meanwhile".into()),
        "the wait is before the read"
    );
    assert_eq!(clock.monotonic(), 5_000);
}

#[tokio::test]
async fn a_pause_stops_an_operation_on_either_side_of_its_work() {
    let (store, _) = store();
    for done in [None, Some(Bytes::from("v"))] {
        let gate = match done {
            None => store.pause_before(Operation::Set),
            Some(_) => store.pause_after(Operation::Set),
        };
        store.store().delete(&["k".into()], None).await.unwrap();
        let paused = tokio::spawn({
            let store = store.clone();
            async move { store.set(&write("v")).await }
        });
        gate.arrived(1).await;
        assert_eq!(read(store.store()).await, done);
        assert!(!paused.is_finished());
        gate.open();
        paused.await.unwrap().unwrap();
        assert_eq!(read(&store).await, Some("v".into()));
    }
}
