//! Faults of a bus, switched while it runs.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may panic as the tests do"
)]

use std::sync::Arc;

use bytes::Bytes;
use larder::backplane::{Backplane, LocalBus, Notice};
use larder::store::{Position, StoreErrorKind};
use larder_testkit::{BusFault, BusOperation, Ear, FaultyBus, seeds};

type Faulty = FaultyBus<LocalBus>;

const CHANNEL: &str = "shop";

async fn with_ear() -> (Faulty, Ear) {
    let bus = FaultyBus::new(LocalBus::new());
    let ear = Ear::open(Arc::new(bus.clone()), CHANNEL).await;
    (bus, ear)
}

async fn publish(bus: &impl Backplane, text: impl Into<String>) -> Position {
    bus.publish(CHANNEL, text.into().into()).await.unwrap()
}

/// Publishes 1, 2, 3 and so on.
async fn publish_all(bus: &Faulty, messages: u64) {
    for number in 1..=messages {
        publish(bus, number.to_string()).await;
    }
}

async fn text(ear: &mut Ear) -> Bytes {
    ear.message().await.1
}

#[tokio::test]
async fn without_faults_everything_arrives_in_order() {
    let (bus, mut ear) = with_ear().await;
    let position = publish(&bus, "1").await;
    assert_eq!(ear.message().await, (Some(position), "1".into()));
    let position = bus.beat(CHANNEL, "alive".into()).await.unwrap();
    assert_eq!(ear.beat().await, (position, "alive".into()));
    assert_eq!((bus.told(), bus.lost()), (3, 0));
}

#[tokio::test]
async fn the_next_messages_are_dropped_and_beats_are_not() {
    let (bus, mut ear) = with_ear().await;
    bus.drop_next(2);
    publish_all(&bus, 1).await;
    bus.beat(CHANNEL, Bytes::new()).await.unwrap();
    assert_eq!(ear.beat().await.0.count, 1);
    publish_all(&bus, 2).await;
    assert_eq!(text(&mut ear).await, "2");
    assert_eq!(bus.lost(), 2);
}

#[tokio::test]
async fn each_bus_has_its_own_faults() {
    let shared = LocalBus::new();
    let [lossy, whole] = [(); 2].map(|()| FaultyBus::new(shared.clone()));
    let mut deaf = Ear::open(Arc::new(lossy.clone()), CHANNEL).await;
    let mut hearing = Ear::open(Arc::new(whole), CHANNEL).await;
    lossy.drop_next(1);
    publish(&shared, "1").await;
    publish(&shared, "2").await;
    assert_eq!(text(&mut deaf).await, "2");
    assert_eq!(text(&mut hearing).await, "1");
}

#[tokio::test]
async fn a_share_is_dropped_as_its_seed_says() {
    for seed in seeds(3) {
        let mut heard = Vec::new();
        for _ in 0..2 {
            let (bus, mut ear) = with_ear().await;
            bus.drop_share(0.3, seed.number());
            publish_all(&bus, 1_000).await;
            bus.has_told(1 + 1_000 - 450).await;
            bus.heal();
            publish(&bus, "last").await;
            let mut texts = Vec::new();
            while texts.last().is_none_or(|text| text != "last") {
                texts.push(text(&mut ear).await);
            }
            assert_eq!(texts.len() as u64 - 1 + bus.lost(), 1_000);
            assert!((150..450).contains(&bus.lost()), "{} lost", bus.lost());
            heard.push(texts);
        }
        assert_eq!(heard[0], heard[1]);
    }
}

#[tokio::test]
async fn the_next_messages_are_told_twice() {
    let (bus, mut ear) = with_ear().await;
    bus.duplicate_next(1);
    publish_all(&bus, 2).await;
    for expected in ["1", "1", "2"] {
        assert_eq!(text(&mut ear).await, expected);
    }
}

#[tokio::test]
async fn what_is_held_comes_when_it_is_released() {
    let (bus, mut ear) = with_ear().await;
    bus.hold();
    publish_all(&bus, 3).await;
    bus.has_held(3).await;
    assert_eq!(ear.pending(), []);
    bus.release();
    for expected in ["1", "2", "3"] {
        assert_eq!(text(&mut ear).await, expected);
    }
    publish(&bus, "4").await;
    assert_eq!(text(&mut ear).await, "4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_never_comes_behind_what_follows() {
    for _ in 0..200 {
        let (bus, mut ear) = with_ear().await;
        bus.hold();
        publish_all(&bus, 3).await;
        bus.release();
        publish(&bus, "4").await;
        for expected in ["1", "2", "3", "4"] {
            assert_eq!(text(&mut ear).await, expected);
        }
    }
}

#[tokio::test]
async fn what_is_held_can_be_shuffled() {
    for seed in seeds(5) {
        let mut orders = Vec::new();
        for _ in 0..2 {
            let (bus, mut ear) = with_ear().await;
            bus.hold();
            publish_all(&bus, 50).await;
            bus.has_held(50).await;
            bus.release_shuffled(seed.number());
            let mut order = Vec::new();
            for _ in 0..50 {
                order.push(text(&mut ear).await);
            }
            orders.push(order);
        }
        assert_eq!(orders[0], orders[1]);
        assert!(!orders[0].is_sorted(), "{:?}", orders[0]);
        orders[0].sort();
        orders[0].dedup();
        assert_eq!(orders[0].len(), 50);
    }
}

#[tokio::test]
async fn silence_loses_everything_and_ends_nothing() {
    let (bus, mut ear) = with_ear().await;
    bus.silence();
    publish_all(&bus, 2).await;
    bus.beat(CHANNEL, Bytes::new()).await.unwrap();
    bus.has_lost(3).await;
    bus.heal();
    publish(&bus, "again").await;
    assert_eq!(text(&mut ear).await, "again");
}

#[tokio::test]
async fn a_cut_ends_the_listening_and_the_next_one_works() {
    let (bus, mut ear) = with_ear().await;
    bus.cut();
    assert_eq!(ear.end().await.kind(), StoreErrorKind::Unavailable);
    let mut ear = Ear::open(Arc::new(bus.clone()), CHANNEL).await;
    publish(&bus, "1").await;
    assert_eq!(text(&mut ear).await, "1");
    assert_eq!(bus.begun(BusOperation::Listen), 2);
    assert_eq!(bus.finished(BusOperation::Listen), 1);
}

#[tokio::test]
async fn operations_fail_with_and_without_being_done() {
    let (bus, mut ear) = with_ear().await;
    let refused = StoreErrorKind::Refused;
    bus.inject([BusOperation::Publish], BusFault::Fail(refused));
    let error = bus.publish(CHANNEL, "1".into()).await.unwrap_err();
    assert_eq!(error.kind(), refused);
    bus.inject([BusOperation::Publish], BusFault::FailAfter(refused));
    let error = bus.publish(CHANNEL, "2".into()).await.unwrap_err();
    assert_eq!(error.kind(), refused);
    assert_eq!(text(&mut ear).await, "2");
    let counts = [
        bus.begun(BusOperation::Publish),
        bus.finished(BusOperation::Publish),
    ];
    assert_eq!(counts, [2, 1]);

    bus.inject(BusOperation::ALL, BusFault::Fail(refused));
    assert!(bus.beat(CHANNEL, Bytes::new()).await.is_err());
    assert!(
        bus.replay(CHANNEL, Position::default(), 1).await.is_err() && bus.close().await.is_err()
    );
    let mut refused = Ear::begin(Arc::new(bus.clone()), CHANNEL);
    assert_eq!(refused.end().await.kind(), StoreErrorKind::Refused);
    bus.heal();
    publish(&bus, "3").await;
    assert_eq!(text(&mut ear).await, "3");
}

#[tokio::test]
async fn what_hangs_goes_on_when_the_fault_is_changed() {
    let (bus, _ear) = with_ear().await;
    bus.inject([BusOperation::Publish], BusFault::Hang);
    let mut publishing = Box::pin(publish(&bus, "1"));
    tokio::select! {
        biased;
        _ = &mut publishing => panic!("did not hang"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(bus.finished(BusOperation::Publish), 0);
    bus.heal();
    assert_eq!(publishing.await.count, 1);
}

#[tokio::test]
async fn listening_itself_can_be_held() {
    let bus = FaultyBus::new(LocalBus::new());
    bus.hold();
    let mut ear = Ear::begin(Arc::new(bus.clone()), CHANNEL);
    bus.has_held(1).await;
    assert_eq!(ear.pending(), []);
    bus.release();
    assert!(matches!(ear.next().await, Notice::Listening { .. }));
}
