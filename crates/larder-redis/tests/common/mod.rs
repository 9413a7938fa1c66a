//! What the scenarios share: a store on a server, its operations on one key, and what the server
//! says happened.

#![allow(dead_code, reason = "every scenario uses some of it")]

use std::time::Duration;

use bytes::Bytes;
use larder::clock::{Clock, Millis, SystemClock};
use larder::envelope::Header;
use larder::store::{
    Fill, Filled, LeaseRequest, LeaseToken, Leased, Store, StoreError, StoreErrorKind, StoreResult,
    Write,
};
use larder_redis::{Redis, RedisOptions};
use larder_testkit::{RedisServer, Reply};

/// A limit above every value that is read with it.
pub(crate) const LIMIT: usize = 1 << 20;
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
/// The time that the engine gives a read.
pub(crate) const BUDGET: Duration = Duration::from_millis(100);

pub(crate) fn store_at(server: &RedisServer) -> Redis {
    Redis::new(&server.url()).unwrap()
}

/// Timeouts short enough to see them pass.
pub(crate) fn hasty() -> RedisOptions {
    RedisOptions {
        connect_timeout: Duration::from_millis(200),
        response_timeout: Duration::from_millis(200),
        reconnect_max_delay: Duration::from_millis(50),
        ..RedisOptions::default()
    }
}

pub(crate) fn key(name: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(name.as_ref())
}

pub(crate) fn now() -> Millis {
    SystemClock::new().wall()
}

/// An envelope as far as stores can see: a header and some bytes.
pub(crate) fn envelope(fresh_until: Millis, payload: impl AsRef<[u8]>) -> Bytes {
    let header = Header {
        fill_id: [7; 16],
        lease: None,
        lease_until: 0,
        fresh_until,
        stale_until: fresh_until + 3_600_000,
    };
    [&header.to_bytes(), payload.as_ref()].concat().into()
}

pub(crate) fn fresh(payload: impl AsRef<[u8]>) -> Bytes {
    envelope(now() + 3_600_000, payload)
}

pub(crate) fn stale(payload: impl AsRef<[u8]>) -> Bytes {
    envelope(now() - 1_000, payload)
}

pub(crate) async fn get(store: &Redis, name: &Bytes) -> StoreResult<Option<Bytes>> {
    let found = store.get(std::slice::from_ref(name), LIMIT).await;
    found.map(|mut values| values.pop().unwrap())
}

pub(crate) async fn set(store: &Redis, name: &Bytes, value: &Bytes) -> StoreResult<()> {
    let write = Write {
        key: name.clone(),
        value: value.clone(),
        ttl: HOUR,
    };
    store.set(&[write]).await
}

pub(crate) async fn lease(store: &Redis, name: &Bytes, token: LeaseToken) -> StoreResult<Leased> {
    let request = LeaseRequest {
        token,
        stale_at: now(),
        lease_for: HOUR,
        limit: LIMIT,
    };
    let leased = store.lease(std::slice::from_ref(name), &request).await;
    leased.map(|mut all| all.pop().unwrap())
}

pub(crate) async fn fill(
    store: &Redis,
    name: &Bytes,
    token: LeaseToken,
    value: &Bytes,
) -> StoreResult<Filled> {
    let fill = Fill {
        key: name.clone(),
        token,
        value: value.clone(),
        ttl: HOUR,
    };
    store.fill(&[fill]).await.map(|all| all[0])
}

pub(crate) async fn delete(store: &Redis, name: &Bytes) -> StoreResult<()> {
    store.delete(std::slice::from_ref(name)).await
}

pub(crate) async fn expire(store: &Redis, name: &Bytes) -> StoreResult<()> {
    store.expire(std::slice::from_ref(name), now() - 1).await
}

pub(crate) async fn release(store: &Redis, name: &Bytes, token: LeaseToken) -> StoreResult<()> {
    store.release(std::slice::from_ref(name), token).await
}

/// Asks again until the store answers, and fails if it takes longer than `patience`.
pub(crate) async fn heals_within(store: &Redis, patience: Duration) {
    let healed = tokio::time::timeout(patience, async {
        let name = key("is it back");
        // A call may hang until it is dropped, as under the engine.
        while !matches!(
            tokio::time::timeout(BUDGET, get(store, &name)).await,
            Ok(Ok(_))
        ) {
            tokio::task::yield_now().await;
        }
    });
    assert!(
        healed.await.is_ok(),
        "not healed within {patience:?}: {store:?}"
    );
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: StoreResult<T>) -> StoreError {
    failed(result, StoreErrorKind::Refused)
}

#[track_caller]
pub(crate) fn unavailable<T: std::fmt::Debug>(result: StoreResult<T>) -> StoreError {
    failed(result, StoreErrorKind::Unavailable)
}

#[track_caller]
fn failed<T: std::fmt::Debug>(result: StoreResult<T>, kind: StoreErrorKind) -> StoreError {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error:?}");
    error
}

/// A figure of the server's INFO; 0 if it is not there.
pub(crate) fn info(server: &RedisServer, section: &str, field: &str) -> u64 {
    let Reply::Bytes(text) = server.command(&["INFO", section]).unwrap() else {
        panic!("INFO answers with text");
    };
    let text = String::from_utf8(text).unwrap();
    let field = format!("{field}:");
    let line = text.lines().find_map(|line| line.strip_prefix(&field));
    line.map_or(0, |value| value.parse().unwrap())
}

/// How often a command ran on the server.
pub(crate) fn calls(server: &RedisServer, command: &str) -> u64 {
    let Reply::Bytes(text) = server.command(&["INFO", "commandstats"]).unwrap() else {
        panic!("INFO answers with text");
    };
    let text = String::from_utf8(text).unwrap();
    let field = format!("cmdstat_{command}:calls=");
    let line = text.lines().find_map(|line| line.strip_prefix(&field));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}
