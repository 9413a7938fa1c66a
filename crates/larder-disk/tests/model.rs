//! Random operations, restarts among them, agree with maps in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use larder::clock::{Clock, Millis};
use larder::envelope::Header;
use larder::store::{Filled, Position, Store, TagRecord};
use larder_disk::Disk;
use larder_testkit::{ManualClock, seeds};
use support::*;

const TAGS: [&str; 3] = ["x", "y", "z"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_and_restarts_agree_with_a_map() {
    for seed in seeds(6) {
        let mut rng = seed.rng();
        let directory = tempfile::tempdir().unwrap();
        let clock = ManualClock::new();
        let mut disk = open_small(directory.path(), 64 << 20, &clock);
        let mut model = Model {
            position: position(&disk).await,
            ..Model::default()
        };
        for step in 0..600 {
            let name = a_key(&mut rng);
            match rng.u8(..24) {
                0..9 => model.set(&disk, &clock, name, &mut rng).await,
                9..13 => {
                    delete(&disk, &name).await.unwrap();
                    model.entries.remove(&name);
                }
                13..15 => model.expire(&disk, name, clock.wall()).await,
                15 => model.clear(&disk, &name[..rng.usize(1..=2)], &clock).await,
                16..19 => clock.advance(Duration::from_millis(rng.u64(..3_000))),
                19..22 => model.set_tagged(&disk, &clock, name, &mut rng).await,
                22 => model.invalidate(&disk, &mut rng).await,
                _ => {
                    if rng.bool() {
                        disk.close().await.unwrap();
                    }
                    drop(disk);
                    disk = open_small(directory.path(), 64 << 20, &clock);
                }
            }
            model.compare(&disk, &clock, &a_key(&mut rng), step).await;
        }
    }
}

/// What stands under each key, and until when.
#[derive(Default)]
struct Model {
    entries: HashMap<Bytes, (Bytes, Millis)>,
    records: HashMap<Bytes, (TagRecord, Millis)>,
    position: Position,
}

impl Model {
    async fn set(&mut self, disk: &Disk, clock: &ManualClock, name: Bytes, rng: &mut Rng) {
        let value = fresh(vec![rng.u8(..); rng.usize(..3_000)]);
        let ttl = Duration::from_millis(rng.u64(1..20_000));
        set_for(disk, &name, value.clone(), ttl).await.unwrap();
        self.entries.insert(name, (value, after(clock, ttl)));
    }

    async fn expire(&mut self, disk: &Disk, name: Bytes, wall: Millis) {
        disk.expire(std::slice::from_ref(&name), wall)
            .await
            .unwrap();
        if let Some((value, _)) = self.entries.get_mut(&name) {
            let header = Header::parse(value).unwrap().expired_at(wall);
            *value = [&header.to_bytes()[..], payload(value)].concat().into();
        }
    }

    async fn clear(&mut self, disk: &Disk, prefix: &[u8], clock: &ManualClock) {
        let doomed = |key: &Bytes, end: u64| key.starts_with(prefix) && clock.wall() < end;
        let entries = self.entries.iter();
        let expected = entries.filter(|(key, (_, end))| doomed(key, *end)).count();
        assert_eq!(clear(disk, prefix).await.unwrap(), expected as u64);
        self.entries.retain(|key, _| !key.starts_with(prefix));
    }

    async fn set_tagged(&mut self, disk: &Disk, clock: &ManualClock, name: Bytes, rng: &mut Rng) {
        let mut records = TAGS.map(tag).to_vec();
        rng.shuffle(&mut records);
        records.truncate(rng.usize(..=3));
        let mut write = tagged_write(&name, &records, vec![rng.u8(..); rng.usize(..3_000)]);
        write.ttl = Duration::from_millis(rng.u64(1..20_000));
        let written = disk.set(std::slice::from_ref(&write)).await.unwrap();
        let end = after(clock, write.ttl);
        let mut value = write.value.to_vec();
        let mut versions = Vec::new();
        for (at, key) in records.into_iter().enumerate() {
            let raw = &mut value[Header::LEN + 8 * at..][..8];
            let proposed = TagRecord {
                version: u64::from_be_bytes(*raw.first_chunk().unwrap()),
                made_at: self.position,
            };
            let held = self.records.get(&key).copied();
            let (record, until) = held
                .filter(|(_, until)| clock.wall() < *until)
                .unwrap_or((proposed, 0));
            raw.copy_from_slice(&record.version.to_be_bytes());
            versions.push(record.version);
            self.records.insert(key, (record, until.max(end)));
        }
        assert_eq!(written, [Filled::Stored { versions }]);
        self.entries.insert(name, (value.into(), end));
    }

    async fn invalidate(&mut self, disk: &Disk, rng: &mut Rng) {
        let doomed = [tag(TAGS[rng.usize(..TAGS.len())])];
        disk.delete(&doomed, Some(&COUNTER)).await.unwrap();
        self.records.remove(&doomed[0]);
        self.position.count += 1;
    }

    async fn compare(&mut self, disk: &Disk, clock: &ManualClock, name: &Bytes, step: usize) {
        let wall = clock.wall();
        let held = self.entries.get(name).filter(|(_, end)| wall < *end);
        let expected = held.map(|(value, _)| value.clone());
        assert_eq!(get(disk, name).await, expected, "{name:?} at step {step}");
        assert_eq!(position(disk).await, self.position, "at step {step}");
        for key in TAGS.map(tag) {
            let found = record(disk, &key).await;
            match self.records.get(&key).copied() {
                Some((expected, end)) if wall < end => assert_eq!(found, Some(expected)),
                // A record may outlive its values; then it is still the one that it was.
                Some((expected, _)) if found.is_some() => {
                    assert_eq!(found, Some(expected));
                    self.records.insert(key, (expected, wall + 1));
                }
                _ => assert_eq!(found, None, "{key:?} at step {step}"),
            }
        }
    }
}

fn after(clock: &ManualClock, ttl: Duration) -> Millis {
    clock.wall() + ttl.as_millis() as u64
}

fn a_key(rng: &mut Rng) -> Bytes {
    let (a, b, n) = (rng.u8(b'a'..b'd'), rng.u8(b'a'..b'c'), rng.u8(..6));
    key([a, b, n, 0xff])
}
