//! Expired entries are never returned, and what they took is given back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use larder::clock::Clock;
use larder::store::Store;
use larder_testkit::ManualClock;
use support::*;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_expired_entries_took_is_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let disk = open_small(directory.path(), 8 << 20, &clock);
    for n in 0..2_000 {
        let ttl = if n % 2 == 0 { MINUTE } else { 2 * MINUTE };
        let name = key(format!("k{n}"));
        set_for(&disk, &name, fresh(vec![0; 100]), ttl)
            .await
            .unwrap();
    }
    let all = disk.stats().bytes;
    clock.advance(MINUTE);
    assert_eq!(get(&disk, &key("k0")).await, None);
    // A busy writer looks between its jobs: enough jobs are a full pass.
    for _ in 0..2_000 {
        disk.ping().await.unwrap();
    }
    let stats = disk.stats();
    assert_eq!((stats.expired, stats.entries), (1_000, 1_000));
    assert!(stats.bytes < all * 6 / 10);
    assert_eq!(stats.evicted, 0);
    assert!(get(&disk, &key("k1")).await.is_some());

    disk.close().await.unwrap();
    let disk = open_small(directory.path(), 8 << 20, &clock);
    assert_eq!(disk.stats().entries, 1_000);
}

#[tokio::test]
async fn an_entry_lives_to_its_last_millisecond() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let disk = open_small(directory.path(), 1 << 20, &clock);
    let name = key("k");
    set_for(&disk, &name, fresh("v"), Duration::from_millis(1_500))
        .await
        .unwrap();
    clock.advance(Duration::from_millis(1_499));
    assert!(get(&disk, &name).await.is_some());
    clock.advance(Duration::from_millis(1));
    assert_eq!(get(&disk, &name).await, None);
    assert!(clock.monotonic() > 0);
}

#[tokio::test]
async fn making_room_takes_expired_entries_without_counting_them_as_evicted() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let disk = open_small(directory.path(), 1 << 20, &clock);
    for n in 0..100 {
        let name = key(format!("old{n}"));
        set_for(&disk, &name, fresh(vec![0; 9_000]), MINUTE)
            .await
            .unwrap();
    }
    clock.advance(MINUTE);
    for n in 0..100 {
        let name = key(format!("new{n}"));
        set(&disk, &name, fresh(vec![0; 9_000])).await.unwrap();
    }
    for n in 0..100 {
        assert!(get(&disk, &key(format!("new{n}"))).await.is_some());
    }
    assert_eq!(disk.stats().evicted, 0);
}
