//! What was stored is there after a restart, and what was not is not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use larder::clock::Clock;
use larder::store::{Fill, Filled, LeaseToken, Store};
use larder_testkit::ManualClock;
use support::*;

#[tokio::test]
async fn entries_and_their_accounts_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(directory.path());
    for n in 0..1_000 {
        let value = fresh(vec![b'x'; n]);
        set(&disk, &key(format!("k{n}")), value).await.unwrap();
    }
    set(&disk, &key("k7"), fresh("again")).await.unwrap();
    delete(&disk, &key("k8")).await.unwrap();
    let before = disk.stats();
    disk.close().await.unwrap();

    let disk = open(directory.path());
    let after = disk.stats();
    assert_eq!(
        (after.entries, after.bytes),
        (before.entries, before.bytes),
        "the accounts are those of before"
    );
    assert_eq!(after.entries, 999);
    assert_eq!(get(&disk, &key("k7")).await, Some(fresh("again")));
    assert_eq!(get(&disk, &key("k8")).await, None);
    assert_eq!(get(&disk, &key("k999")).await, Some(fresh(vec![b'x'; 999])));
}

#[tokio::test]
async fn a_store_that_was_dropped_can_be_opened_at_once() {
    let directory = tempfile::tempdir().unwrap();
    for n in 0..20_u8 {
        let disk = open(directory.path());
        assert_eq!(disk.stats().entries, u64::from(n));
        set(&disk, &key([n]), fresh([n])).await.unwrap();
        drop(disk);
    }
}

#[tokio::test]
async fn time_to_live_goes_on_while_the_store_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let disk = open_small(directory.path(), 1 << 20, &clock);
    let (short, long) = (key("short"), key("long"));
    let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3_600));
    set_for(&disk, &short, fresh("s"), minute).await.unwrap();
    set_for(&disk, &long, fresh("l"), hour).await.unwrap();
    disk.close().await.unwrap();

    clock.advance(minute);
    let disk = open_small(directory.path(), 1 << 20, &clock);
    assert_eq!(get(&disk, &short).await, None);
    assert_eq!(get(&disk, &long).await, Some(fresh("l")));
    clock.advance(hour - minute - Duration::from_millis(1));
    assert_eq!(get(&disk, &long).await, Some(fresh("l")));
    clock.advance(Duration::from_millis(1));
    assert_eq!(get(&disk, &long).await, None);
    assert!(clock.wall() > 0);
}

#[tokio::test]
async fn a_lease_ends_with_the_process_and_its_fill_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(directory.path());
    let (name, token) = (key("k"), LeaseToken::random());
    lease(&disk, &name, token).await;
    disk.close().await.unwrap();

    let disk = open(directory.path());
    let fill = Fill {
        key: name.clone(),
        token,
        value: fresh("late"),
        ttl: HOUR,
        tags: None,
    };
    assert_eq!(disk.fill(&[fill]).await.unwrap(), [Filled::Refused]);
    assert_eq!(get(&disk, &name).await, None);
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(directory.path());
    set(&disk, &key("k"), fresh("v")).await.unwrap();
    disk.close().await.unwrap();
    disk.close().await.unwrap();
    for error in [
        try_get(&disk, &key("k")).await.unwrap_err(),
        try_get(&disk, &key("absent")).await.unwrap_err(),
        set(&disk, &key("k"), fresh("w")).await.unwrap_err(),
        delete(&disk, &key("k")).await.unwrap_err(),
        disk.ping().await.unwrap_err(),
    ] {
        assert!(error.to_string().ends_with("is closed"), "{error}");
    }
}
