//! What the scenarios do with a store, in words.

#![allow(dead_code, reason = "every scenario uses a part of it")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::Millis;
use larder::envelope::Header;
use larder::store::{
    Fill, Filled, LeaseRequest, LeaseToken, Leased, Position, Store, StoreResult, TagRecord,
    Tagged, Write,
};
use larder_disk::{Disk, DiskOptions};
use larder_testkit::ManualClock;

pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const LIMIT: usize = 64 << 20;

pub(crate) fn open(path: &Path) -> Disk {
    Disk::open(path, DiskOptions::default()).unwrap()
}

/// A store whose time stands still, with room for `max_bytes`.
pub(crate) fn open_small(path: &Path, max_bytes: u64, clock: &Arc<ManualClock>) -> Disk {
    let options = DiskOptions {
        max_bytes,
        clock: clock.clone(),
        ..DiskOptions::default()
    };
    Disk::open(path, options).unwrap()
}

pub(crate) fn key(name: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(name.as_ref())
}

/// An envelope as far as stores care, fresh until `fresh_until`.
pub(crate) fn envelope(fresh_until: Millis, payload: impl AsRef<[u8]>) -> Bytes {
    let header = Header {
        fill_id: [7; 16],
        fresh_until,
        stale_until: u64::MAX,
        ..Header::minimum(0)
    };
    [header.to_bytes().as_slice(), payload.as_ref()]
        .concat()
        .into()
}

pub(crate) fn fresh(payload: impl AsRef<[u8]>) -> Bytes {
    envelope(u64::MAX, payload)
}

pub(crate) fn payload(value: &[u8]) -> &[u8] {
    &value[Header::LEN..]
}

pub(crate) async fn set(disk: &Disk, key: &Bytes, value: Bytes) -> StoreResult<()> {
    set_for(disk, key, value, HOUR).await
}

pub(crate) async fn set_for(
    disk: &Disk,
    key: &Bytes,
    value: Bytes,
    ttl: Duration,
) -> StoreResult<()> {
    let write = Write {
        key: key.clone(),
        value,
        ttl,
        tags: None,
    };
    disk.set(&[write]).await.map(drop)
}

/// Sets although the disk may be behind, which a test that writes a lot must expect.
pub(crate) async fn set_patiently(disk: &Disk, key: &Bytes, value: Bytes) {
    let write = Write {
        key: key.clone(),
        value,
        ttl: HOUR,
        tags: None,
    };
    set_write_patiently(disk, write).await;
}

pub(crate) async fn set_write_patiently(disk: &Disk, write: Write) {
    let writes = [write];
    for _ in 0..100 {
        let before = disk.stats().overloaded;
        match disk.set(&writes).await {
            Ok(_) => return,
            Err(error) if disk.stats().overloaded == before => panic!("{error}"),
            Err(_) => {}
        }
    }
    panic!("the disk never caught up");
}

pub(crate) async fn get(disk: &Disk, key: &Bytes) -> Option<Bytes> {
    try_get(disk, key).await.unwrap()
}

pub(crate) async fn try_get(disk: &Disk, key: &Bytes) -> StoreResult<Option<Bytes>> {
    let found = disk.get(std::slice::from_ref(key), LIMIT).await?;
    Ok(found.into_iter().next().flatten())
}

pub(crate) async fn delete(disk: &Disk, key: &Bytes) -> StoreResult<()> {
    disk.delete(std::slice::from_ref(key), None).await
}

/// Removes everything under `prefix`; returns how many keys that were.
pub(crate) async fn clear(disk: &Disk, prefix: &[u8]) -> StoreResult<u64> {
    let swept = disk.sweep(prefix, &|_| true, &|_| ()).await?;
    Ok(swept.removed)
}

pub(crate) fn stored() -> Filled {
    Filled::Stored {
        versions: Vec::new(),
    }
}

pub(crate) async fn lease(disk: &Disk, key: &Bytes, token: LeaseToken) -> Leased {
    let request = LeaseRequest {
        token,
        stale_at: 1,
        lease_for: HOUR,
        limit: LIMIT,
        counter: None,
    };
    let leased = disk.lease(std::slice::from_ref(key), &request).await;
    leased.unwrap().remove(0)
}

/// The key of the counter of the namespace that the scenarios live in.
pub(crate) const COUNTER: Bytes = Bytes::from_static(b"ns:counter");

pub(crate) fn tag(name: impl AsRef<[u8]>) -> Bytes {
    [b"ns:tag:", name.as_ref()].concat().into()
}

/// An envelope that proposes a random version for each of so many tags.
pub(crate) fn tagged_envelope(tags: usize, payload: impl AsRef<[u8]>) -> Bytes {
    let header = Header {
        tag_count: u16::try_from(tags).unwrap(),
        fill_id: [7; 16],
        fresh_until: u64::MAX,
        stale_until: u64::MAX,
        ..Header::minimum(0)
    };
    let mut bytes = header.to_bytes().to_vec();
    for _ in 0..tags {
        bytes.extend_from_slice(&fastrand::u64(..).to_be_bytes());
    }
    bytes.extend_from_slice(payload.as_ref());
    bytes.into()
}

pub(crate) fn tagged(records: &[Bytes], since: Option<Position>) -> Tagged {
    Tagged {
        counter: COUNTER,
        records: records.to_vec(),
        since,
    }
}

pub(crate) fn tagged_write(key: &Bytes, records: &[Bytes], payload: impl AsRef<[u8]>) -> Write {
    Write {
        key: key.clone(),
        value: tagged_envelope(records.len(), payload),
        ttl: HOUR,
        tags: Some(tagged(records, None)),
    }
}

/// Stores a value with tags; returns the versions that these have.
pub(crate) async fn set_tagged(
    disk: &Disk,
    key: &Bytes,
    records: &[Bytes],
    payload: impl AsRef<[u8]>,
) -> Vec<u64> {
    let written = disk.set(&[tagged_write(key, records, payload)]).await;
    match written.unwrap().remove(0) {
        Filled::Stored { versions } => versions,
        Filled::Refused => panic!("a write without a version is not refused"),
    }
}

pub(crate) async fn record(disk: &Disk, key: &Bytes) -> Option<TagRecord> {
    TagRecord::parse(&get(disk, key).await?)
}

/// The payload under `key`, if the versions in it are those of the records: what an engine serves.
pub(crate) async fn valid(disk: &Disk, key: &Bytes, records: &[Bytes]) -> Option<Bytes> {
    let value = get(disk, key).await?;
    let body = value.slice(Header::LEN + 8 * records.len()..);
    for (at, key) in records.iter().enumerate() {
        let version = value[Header::LEN + 8 * at..].first_chunk().unwrap();
        if record(disk, key).await?.version != u64::from_be_bytes(*version) {
            return None;
        }
    }
    Some(body)
}

/// Takes a lease together with the position of the counter.
pub(crate) async fn lease_since(disk: &Disk, key: &Bytes, token: LeaseToken) -> Position {
    let request = LeaseRequest {
        token,
        stale_at: 1,
        lease_for: HOUR,
        limit: LIMIT,
        counter: Some(COUNTER),
    };
    let leased = disk.lease(std::slice::from_ref(key), &request).await;
    match leased.unwrap().remove(0) {
        Leased::Acquired {
            since: Some(since), ..
        } => since,
        other => panic!("not acquired with a position: {other:?}"),
    }
}

/// Where the counter stands.
pub(crate) async fn position(disk: &Disk) -> Position {
    let (probe, token) = (key("a probe of the counter"), LeaseToken::random());
    let position = lease_since(disk, &probe, token).await;
    disk.release(&[probe], token).await.unwrap();
    position
}

/// A fill of a value with tags that was loaded since then.
pub(crate) fn tagged_fill(
    key: &Bytes,
    token: LeaseToken,
    records: &[Bytes],
    since: Position,
) -> Fill {
    Fill {
        key: key.clone(),
        token,
        value: tagged_envelope(records.len(), "loaded"),
        ttl: HOUR,
        tags: Some(tagged(records, Some(since))),
    }
}
