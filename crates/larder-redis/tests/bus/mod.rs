//! What the scenarios of the bus share.

#![allow(dead_code, reason = "every scenario uses some of it")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::backplane::{Backplane, Replay};
use larder::store::{Position, StoreError, StoreErrorKind, StoreResult};
use larder_redis::{RedisBus, RedisOptions};
use larder_testkit::{Ear, RedisServer, Reply};

pub(crate) const CHANNEL: &str = "shop";
/// More than any test publishes.
pub(crate) const ALL: usize = 1 << 20;

pub(crate) fn bus_at(server: &RedisServer) -> Arc<RedisBus> {
    Arc::new(RedisBus::new(&server.url()).unwrap())
}

/// Timeouts short enough to see them pass.
pub(crate) fn hasty(url: &str) -> Arc<RedisBus> {
    let options = RedisOptions {
        connect_timeout: Duration::from_millis(200),
        response_timeout: Duration::from_millis(200),
        reconnect_max_delay: Duration::from_millis(50),
        ..RedisOptions::default()
    };
    Arc::new(RedisBus::with_options(url, options).unwrap())
}

pub(crate) async fn ear(bus: &Arc<RedisBus>) -> Ear {
    Ear::open(bus.clone(), CHANNEL).await
}

pub(crate) async fn publish(bus: &RedisBus, message: impl Into<Bytes>) -> Position {
    bus.publish(CHANNEL, message.into()).await.unwrap()
}

pub(crate) async fn beat(bus: &RedisBus) -> Position {
    bus.beat(CHANNEL, Bytes::new()).await.unwrap()
}

pub(crate) async fn replay(bus: &RedisBus, after: Position) -> Replay {
    bus.replay(CHANNEL, after, ALL).await.unwrap()
}

pub(crate) async fn replayed(bus: &RedisBus, after: Position) -> Vec<Bytes> {
    match replay(bus, after).await {
        Replay::Complete(messages) => messages.into_iter().map(|(_, message)| message).collect(),
        lost => panic!("{after:?} is {lost:?}"),
    }
}

/// Asks again until the bus answers; every call is dropped after a while, as under the engine.
pub(crate) async fn healed(bus: &RedisBus) -> Position {
    let healed = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let beat = bus.beat(CHANNEL, Bytes::new());
            let asked = tokio::time::timeout(Duration::from_millis(100), beat);
            if let Ok(Ok(position)) = asked.await {
                return position;
            }
            tokio::task::yield_now().await;
        }
    });
    healed.await.unwrap()
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: StoreResult<T>) -> StoreError {
    is_a(StoreErrorKind::Refused, result.unwrap_err())
}

#[track_caller]
pub(crate) fn is_a(kind: StoreErrorKind, error: StoreError) -> StoreError {
    assert_eq!(error.kind(), kind, "{error:?}");
    error
}

#[track_caller]
pub(crate) fn says(error: &StoreError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[track_caller]
pub(crate) fn command<A: AsRef<[u8]>>(server: &RedisServer, args: &[A]) -> Reply {
    match server.command(args).unwrap() {
        Reply::Error(error) => panic!("{error}"),
        reply => reply,
    }
}

/// The connections that listen, one line each.
pub(crate) fn subscribers(server: &RedisServer) -> usize {
    match command(server, &["CLIENT", "LIST", "TYPE", "pubsub"]) {
        Reply::Bytes(text) => String::from_utf8(text).unwrap().lines().count(),
        other => panic!("{other:?} is no list of clients"),
    }
}
