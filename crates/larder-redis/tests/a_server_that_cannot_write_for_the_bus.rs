//! Out of memory, read-only, without its replicas: an invalidation must get through.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bus;

use bus::*;
use larder::backplane::{Backplane, Replay};
use larder_testkit::{RedisServer, Reply};

fn fill(server: &RedisServer) {
    command(server, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    command(server, &["CONFIG", "SET", "maxmemory", "1"]);
    let refused = server.command(&["SET", "other", "value"]).unwrap();
    assert!(
        matches!(&refused, Reply::Error(error) if error.starts_with("OOM")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn out_of_memory_messages_are_numbered_and_told_and_no_longer_kept() {
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    let mut listening = ear(&bus).await;
    let start = publish(&bus, "kept").await;
    assert_eq!(listening.message().await.0, Some(start));
    publish(&bus, "kept").await;
    listening.message().await;
    fill(&server);
    for count in 3..40 {
        let position = publish(&bus, "told").await;
        assert_eq!(position.incarnation, start.incarnation);
        assert_eq!(position.count, count, "a gap would still be seen");
        assert_eq!(listening.message().await, (Some(position), "told".into()));
        assert_eq!(beat(&bus).await, position);
        assert_eq!(listening.beat().await.0, position);
        let journal = ["EXISTS", "shop:~journal"];
        assert_eq!(command(&server, &journal), Reply::Integer(0));
    }
    let end = beat(&bus).await;
    assert_eq!(replay(&bus, start).await, Replay::Lost { position: end });
    assert_eq!(replayed(&bus, end).await, [""; 0]);

    command(&server, &["CONFIG", "SET", "maxmemory", "0"]);
    publish(&bus, "kept again").await;
    assert_eq!(replayed(&bus, end).await, ["kept again"]);
    let lost = replay(&bus, start).await;
    assert!(matches!(lost, Replay::Lost { .. }), "{lost:?}");
}

#[tokio::test]
async fn out_of_memory_a_channel_can_begin_and_be_listened_to() {
    let server = RedisServer::start().unwrap();
    fill(&server);
    let bus = bus_at(&server);
    let mut first = ear(&bus).await;
    let mut second = ear(&bus).await;
    let position = publish(&bus, "m").await;
    assert_eq!(position.count, 1);
    for ear in [&mut first, &mut second] {
        assert_eq!(ear.message().await, (Some(position), "m".into()));
    }
    assert_eq!(publish(&bus, "m").await.count, 2);
    let other = bus.beat("other", "".into()).await.unwrap();
    assert_eq!(bus.beat("other", "".into()).await.unwrap(), other);
}

#[tokio::test]
async fn a_server_that_became_a_replica_tells_its_listeners_and_says_that_it_cannot_write() {
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    let mut listening = ear(&bus).await;
    command(&server, &["REPLICAOF", "127.0.0.1", "1"]);
    let error = refused(bus.publish(CHANNEL, "told".into()).await);
    says(&error, &["READONLY", "primary"]);
    assert_eq!(listening.message().await, (None, "told".into()));
    // What was published elsewhere may not have come here: no beat may say that all is well.
    let error = refused(bus.beat(CHANNEL, "not told".into()).await);
    says(&error, &["READONLY"]);
    command(&server, &["REPLICAOF", "NO", "ONE"]);
    let position = beat(&bus).await;
    assert_eq!(listening.beat().await, (position, "".into()));
}

#[tokio::test]
async fn a_server_without_its_replicas_tells_its_listeners_and_says_that_it_cannot_write() {
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    let mut listening = ear(&bus).await;
    let before = beat(&bus).await;
    listening.beat().await;
    command(&server, &["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let error = refused(bus.publish(CHANNEL, "told".into()).await);
    says(&error, &["NOREPLICAS"]);
    refused(bus.beat(CHANNEL, "not told".into()).await);
    assert_eq!(listening.message().await, (None, "told".into()));
    command(&server, &["CONFIG", "SET", "min-replicas-to-write", "0"]);
    let position = publish(&bus, "m").await;
    assert_eq!(position.count, before.count + 1, "as if it had not been");
}

#[tokio::test]
async fn what_is_evicted_is_lost_and_said_to_be() {
    for evicted in ["shop:~bus", "shop:~journal"] {
        let server = RedisServer::start().unwrap();
        let bus = bus_at(&server);
        let start = publish(&bus, "m").await;
        publish(&bus, "m").await;
        command(&server, &["DEL", evicted]);
        let lost = replay(&bus, start).await;
        let position = beat(&bus).await;
        assert_eq!(lost, Replay::Lost { position }, "{evicted}");
        publish(&bus, "m").await;
        assert_eq!(replayed(&bus, position).await, ["m"], "{evicted}");
        let lost = replay(&bus, start).await;
        assert!(matches!(lost, Replay::Lost { .. }), "{evicted}: {lost:?}");
    }
}
