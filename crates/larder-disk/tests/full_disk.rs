//! The disk runs full: nothing acknowledged is lost, nothing deleted comes back, and the store goes
//! on by itself once there is room. On a real, small file system, which takes root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
#![cfg(target_os = "linux")]

mod support;

use std::path::Path;
use std::time::Duration;

use larder::store::{Filled, LeaseToken, Store, StoreErrorKind};
use larder_disk::{Disk, DiskErrorKind, DiskOptions};
use larder_testkit::SmallDisk;
use support::*;

/// Three times the longest wait between two attempts, and time to open on a busy machine.
const HEALED_WITHIN: Duration = Duration::from_secs(10);

fn small_disk() -> SmallDisk {
    SmallDisk::mount(16 << 20).expect("tests of a full disk need a small one")
}

/// Asks until it is well again, as the engine does.
async fn healed(disk: &Disk) {
    let healing = async {
        while disk.ping().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(HEALED_WITHIN, healing)
        .await
        .expect("healed by itself");
}

/// Writes until the disk is full; returns the first error.
async fn write_until_full(disk: &Disk) -> larder::store::StoreError {
    for n in 0..100_000 {
        let name = key(format!("filler{n}"));
        if let Err(error) = set(disk, &name, fresh(vec![1; 4_000])).await
            && error.kind() == StoreErrorKind::Refused
        {
            return error;
        }
    }
    panic!("the disk never filled up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_reads_on_and_heals_when_there_is_room() {
    let small = small_disk();
    let disk = open(&small.path());
    for n in 0..100 {
        let name = key(format!("before{n}"));
        set(&disk, &name, fresh(format!("value {n}")))
            .await
            .unwrap();
    }
    small.fill_up().unwrap();
    let error = write_until_full(&disk).await;
    assert!(error.to_string().contains("is full"), "{error}");
    assert!(disk.ping().await.is_err());
    let kept = get(&disk, &key("before0")).await;
    assert_eq!(kept, Some(fresh("value 0")), "reads go on");

    small.free().unwrap();
    healed(&disk).await;
    assert!(disk.stats().reopened >= 1);
    for n in 0..100 {
        let found = get(&disk, &key(format!("before{n}"))).await;
        assert_eq!(found, Some(fresh(format!("value {n}"))));
    }
    set(&disk, &key("after"), fresh("v")).await.unwrap();
    assert_eq!(get(&disk, &key("after")).await, Some(fresh("v")));
    disk.close().await.unwrap();
    let disk = open(&small.path());
    assert_eq!(get(&disk, &key("after")).await, Some(fresh("v")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_on_a_full_disk_is_an_error_and_takes_effect_all_the_same() {
    let small = small_disk();
    let disk = open(&small.path());
    let names: Vec<_> = (0..200).map(|n| key(format!("k{n}"))).collect();
    for name in &names {
        set(&disk, name, fresh("old")).await.unwrap();
    }
    small.fill_up().unwrap();
    write_until_full(&disk).await;
    for name in &names[..50] {
        assert!(
            delete(&disk, name).await.is_err(),
            "never Ok when not on disk"
        );
        assert_eq!(get(&disk, name).await, None, "hidden at once");
    }
    assert!(disk.expire(&names[50..51], 1).await.is_err());
    assert!(set(&disk, &names[51], fresh("new")).await.is_err());
    assert!(clear(&disk, b"k1").await.is_err());

    small.free().unwrap();
    healed(&disk).await;
    for name in &names[..52] {
        assert_eq!(get(&disk, name).await, None, "{name:?} did not come back");
    }
    assert_eq!(get(&disk, &names[60]).await, Some(fresh("old")));
    disk.close().await.unwrap();
    let disk = open(&small.path());
    for name in &names[..52] {
        assert_eq!(get(&disk, name).await, None, "{name:?} is gone for good");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_invalidated_on_a_full_disk_is_never_valid_again() {
    let small = small_disk();
    let disk = open(&small.path());
    let (name, tags, other) = (key("k"), [tag("t")], [tag("other")]);
    set_tagged(&disk, &name, &tags, "old").await;
    set_tagged(&disk, &key("kept"), &other, "kept").await;
    let (loading, token) = (key("loading"), LeaseToken::random());
    let since = lease_since(&disk, &loading, token).await;
    small.fill_up().unwrap();
    write_until_full(&disk).await;
    let told = disk.delete(&tags, Some(&COUNTER)).await;
    assert!(told.is_err(), "never Ok when not on disk");
    assert_eq!(valid(&disk, &name, &tags).await, None, "at once");

    small.free().unwrap();
    healed(&disk).await;
    let late = tagged_fill(&loading, token, &tags, since);
    assert_eq!(disk.fill(&[late]).await.unwrap(), [Filled::Refused]);
    assert_ne!(position(&disk).await.incarnation, since.incarnation);
    assert_eq!(valid(&disk, &name, &tags).await, None);
    set_tagged(&disk, &key("new"), &tags, "new").await;
    assert_eq!(valid(&disk, &name, &tags).await, None);
    disk.close().await.unwrap();
    let disk = open(&small.path());
    assert_eq!(valid(&disk, &name, &tags).await, None, "gone for good");
    assert_eq!(valid(&disk, &key("kept"), &other).await.unwrap(), "kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_heals_again_and_again() {
    let small = small_disk();
    let disk = open(&small.path());
    for round in 0..5 {
        small.fill_up().unwrap();
        write_until_full(&disk).await;
        small.free().unwrap();
        healed(&disk).await;
        clear(&disk, b"filler").await.unwrap();
        let name = key(format!("round{round}"));
        set(&disk, &name, fresh("v")).await.unwrap();
    }
    for round in 0..5 {
        assert!(get(&disk, &key(format!("round{round}"))).await.is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_at_opening_is_named() {
    let small = small_disk();
    small.fill_up().unwrap();
    let error = Disk::open(small.path(), DiskOptions::default()).unwrap_err();
    assert_eq!(error.kind(), DiskErrorKind::Full, "{error}");
    assert_names(&error.to_string(), &small.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_was_removed_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache");
    let disk = open(&path);
    set(&disk, &key("k"), fresh("v")).await.unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    let noticed = async {
        while disk.stats().reopened == 0 {
            let _ = disk.ping().await;
        }
    };
    tokio::time::timeout(HEALED_WITHIN, noticed).await.unwrap();
    healed(&disk).await;
    assert_eq!(get(&disk, &key("k")).await, None);
    set(&disk, &key("k"), fresh("w")).await.unwrap();
    disk.close().await.unwrap();
    assert_eq!(get(&open(&path), &key("k")).await, Some(fresh("w")));
}

fn assert_names(message: &str, path: &Path) {
    let shown = path.display().to_string();
    assert!(message.contains(&shown), "{message:?} names {shown}");
}
