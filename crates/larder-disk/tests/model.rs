//! Random operations, restarts among them, agree with a map in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use larder::clock::{Clock, Millis};
use larder::envelope::Header;
use larder::store::Store;
use larder_testkit::{ManualClock, seeds};
use support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_and_restarts_agree_with_a_map() {
    for seed in seeds(6) {
        let mut rng = seed.rng();
        let directory = tempfile::tempdir().unwrap();
        let clock = ManualClock::new();
        let mut disk = open_small(directory.path(), 64 << 20, &clock);
        let mut model = HashMap::<Bytes, (Bytes, u64)>::new();
        for step in 0..600 {
            let name = a_key(&mut rng);
            match rng.u8(..20) {
                0..9 => {
                    let value = fresh(vec![rng.u8(..); rng.usize(..3_000)]);
                    let ttl = Duration::from_millis(rng.u64(1..20_000));
                    set_for(&disk, &name, value.clone(), ttl).await.unwrap();
                    model.insert(name, (value, clock.wall() + ttl.as_millis() as u64));
                }
                9..13 => {
                    delete(&disk, &name).await.unwrap();
                    model.remove(&name);
                }
                13..15 => {
                    let wall = clock.wall();
                    disk.expire(std::slice::from_ref(&name), wall)
                        .await
                        .unwrap();
                    if let Some((value, _)) = model.get_mut(&name) {
                        *value = envelope(wall.min(fresh_until(value)), payload(value));
                    }
                }
                15 => {
                    let prefix = &name[..rng.usize(1..=2)];
                    let wall = clock.wall();
                    let doomed = |key: &Bytes, end: u64| key.starts_with(prefix) && wall < end;
                    let expected = model.iter().filter(|(k, (_, end))| doomed(k, *end)).count();
                    assert_eq!(disk.clear(prefix).await.unwrap(), expected as u64);
                    model.retain(|key, _| !key.starts_with(prefix));
                }
                16..19 => clock.advance(Duration::from_millis(rng.u64(..3_000))),
                _ => {
                    if rng.bool() {
                        disk.close().await.unwrap();
                    }
                    drop(disk);
                    disk = open_small(directory.path(), 64 << 20, &clock);
                }
            }
            let name = a_key(&mut rng);
            let expected = model
                .get(&name)
                .filter(|(_, end)| clock.wall() < *end)
                .map(|(value, _)| value.clone());
            assert_eq!(get(&disk, &name).await, expected, "{name:?} at step {step}");
        }
    }
}

fn fresh_until(value: &[u8]) -> Millis {
    Header::parse(value).unwrap().fresh_until
}

fn a_key(rng: &mut Rng) -> Bytes {
    let (a, b, n) = (rng.u8(b'a'..b'd'), rng.u8(b'a'..b'c'), rng.u8(..6));
    key([a, b, n, 0xff])
}
