//! What the scenarios do with a store, in words.

#![allow(dead_code, reason = "every scenario uses a part of it")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::Millis;
use larder::envelope::Header;
use larder::store::{LeaseRequest, LeaseToken, Leased, Store, StoreResult, Write};
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
        lease: None,
        lease_until: 0,
        fresh_until,
        stale_until: u64::MAX,
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
    };
    disk.set(&[write]).await
}

/// Sets although the disk may be behind, which a test that writes a lot must expect.
pub(crate) async fn set_patiently(disk: &Disk, key: &Bytes, value: Bytes) {
    for _ in 0..100 {
        let before = disk.stats().overloaded;
        match set(disk, key, value.clone()).await {
            Ok(()) => return,
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
    disk.delete(std::slice::from_ref(key)).await
}

pub(crate) async fn lease(disk: &Disk, key: &Bytes, token: LeaseToken) -> Leased {
    let request = LeaseRequest {
        token,
        stale_at: 1,
        lease_for: HOUR,
        limit: LIMIT,
    };
    let leased = disk.lease(std::slice::from_ref(key), &request).await;
    leased.unwrap().remove(0)
}
