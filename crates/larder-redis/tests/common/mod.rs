//! What the scenarios share: a store on a server, its operations on one key, and what the server
//! says happened.

#![allow(dead_code, reason = "every scenario uses some of it")]

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::{Clock, Millis, SystemClock};
use larder::envelope::Header;
use larder::store::{
    Fill, Filled, LeaseRequest, LeaseToken, Leased, Position, Store, StoreError, StoreErrorKind,
    StoreResult, Tagged, Write,
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
        fresh_until,
        stale_until: fresh_until + 3_600_000,
        ..Header::minimum(0)
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
        tags: None,
    };
    store.set(&[write]).await.map(drop)
}

pub(crate) async fn lease(store: &Redis, name: &Bytes, token: LeaseToken) -> StoreResult<Leased> {
    let request = LeaseRequest {
        token,
        stale_at: now(),
        lease_for: HOUR,
        limit: LIMIT,
        counter: None,
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
        tags: None,
    };
    store.fill(&[fill]).await.map(|mut all| all.remove(0))
}

pub(crate) async fn delete(store: &Redis, name: &Bytes) -> StoreResult<()> {
    store.delete(std::slice::from_ref(name), None).await
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

/// The answer where no value is and no counter was named.
pub(crate) fn acquired() -> Leased {
    Leased::Acquired {
        stale: None,
        since: None,
    }
}

/// The answer to a value without tags that was stored.
pub(crate) fn stored() -> Filled {
    Filled::Stored {
        versions: Vec::new(),
    }
}

/// A fresh value with these versions of tags.
pub(crate) fn tagged(payload: impl AsRef<[u8]>, versions: &[u64]) -> Bytes {
    let plain = fresh(payload);
    let header = Header {
        tag_count: versions.len().try_into().unwrap(),
        ..Header::parse(&plain).unwrap()
    };
    let words: Vec<u8> = versions.iter().flat_map(|v| v.to_be_bytes()).collect();
    [&header.to_bytes()[..], &words, &plain[Header::LEN..]]
        .concat()
        .into()
}

/// Takes the lease, and says where `counter` stood.
pub(crate) async fn lease_at(
    store: &Redis,
    name: &Bytes,
    token: LeaseToken,
    counter: &Bytes,
) -> StoreResult<Position> {
    let request = LeaseRequest {
        token,
        stale_at: Millis::MAX,
        lease_for: HOUR,
        limit: LIMIT,
        counter: Some(counter.clone()),
    };
    let leased = store.lease(std::slice::from_ref(name), &request).await?;
    match &leased[..] {
        [
            Leased::Acquired {
                since: Some(since), ..
            },
        ] => Ok(*since),
        other => panic!("expected the lease with a position, got {other:?}"),
    }
}

/// Where `counter` stands.
pub(crate) async fn position(store: &Redis, counter: &Bytes) -> StoreResult<Position> {
    let probe = key([&counter[..], b":probe"].concat());
    let token = LeaseToken::random();
    let here = lease_at(store, &probe, token, counter).await;
    release(store, &probe, token).await?;
    here
}

/// Fills with one tag, whose version is proposed; the version stored, or `None` if refused.
pub(crate) async fn fill_tagged(
    store: &Redis,
    name: &Bytes,
    token: LeaseToken,
    tags: Tagged,
    proposed: u64,
) -> StoreResult<Option<u64>> {
    let fill = Fill {
        key: name.clone(),
        token,
        value: tagged("v", &[proposed]),
        ttl: HOUR,
        tags: Some(tags),
    };
    store.fill(&[fill]).await.map(only_version)
}

/// Writes with one tag, as for [`fill_tagged`].
pub(crate) async fn set_tagged(
    store: &Redis,
    name: &Bytes,
    ttl: Duration,
    tags: Tagged,
    proposed: u64,
) -> StoreResult<Option<u64>> {
    let write = Write {
        key: name.clone(),
        value: tagged("v", &[proposed]),
        ttl,
        tags: Some(tags),
    };
    store.set(&[write]).await.map(only_version)
}

fn only_version(filled: Vec<Filled>) -> Option<u64> {
    match &filled[..] {
        [Filled::Stored { versions }] => Some(versions[0]),
        _ => None,
    }
}

/// One tag of a namespace.
pub(crate) fn tag(counter: &Bytes, record: &Bytes, since: Option<Position>) -> Tagged {
    Tagged {
        counter: counter.clone(),
        records: vec![record.clone()],
        since,
    }
}

pub(crate) async fn invalidate(store: &Redis, name: &Bytes, counter: &Bytes) -> StoreResult<()> {
    store
        .delete(std::slice::from_ref(name), Some(counter))
        .await
}

/// What the server says to a command that it must take.
pub(crate) fn said(server: &RedisServer, command: &[&[u8]]) -> Reply {
    match server.command(command).unwrap() {
        Reply::Error(error) => panic!("{command:?}: {error}"),
        reply => reply,
    }
}

/// Removes every key under `prefix` and says how many there were.
pub(crate) async fn clear(store: &Redis, prefix: &[u8]) -> StoreResult<u64> {
    let swept = store.sweep(prefix, &|_| true, &|_| ()).await;
    swept.map(|swept| swept.removed)
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

/// For tests that say how long something took.
pub(crate) static CLOCK: LazyLock<SystemClock> = LazyLock::new(SystemClock::new);

pub(crate) fn since(then: Millis) -> Duration {
    Duration::from_millis(CLOCK.monotonic() - then)
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
