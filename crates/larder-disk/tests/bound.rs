//! The store never holds more than it may, and keeps what is read.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use bytes::Bytes;
use larder::store::{Store, StoreErrorKind, Write};
use larder_disk::{Disk, DiskOptions, entry_bytes};
use larder_testkit::{ManualClock, seeded};
use support::*;

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn bytes_never_exceed_the_bound() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open_small(directory.path(), MIB, &ManualClock::new());
    let mut rng = fastrand::Rng::with_seed(1);
    for n in 0..3_000 {
        let value = fresh(vec![n as u8; rng.usize(..8_000)]);
        set_patiently(&disk, &key(format!("k{}", rng.u32(..2_000))), value).await;
        let bytes = disk.stats().bytes;
        assert!(bytes <= MIB, "{bytes} bytes after {n} writes");
    }
    assert!(disk.stats().bytes > MIB * 9 / 10, "and the room is used");
    assert!(disk.stats().evicted > 0);
}

#[tokio::test]
async fn what_is_counted_is_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(directory.path());
    let value = fresh("payload");
    set(&disk, &key("a-key"), value.clone()).await.unwrap();
    assert_eq!(disk.stats().bytes, entry_bytes(5, value.len()));
    set(&disk, &key("a-key"), fresh("")).await.unwrap();
    assert_eq!(disk.stats().bytes, entry_bytes(5, fresh("").len()));
    delete(&disk, &key("a-key")).await.unwrap();
    assert_eq!((disk.stats().bytes, disk.stats().entries), (0, 0));
}

#[tokio::test]
async fn an_entry_that_is_read_outlives_those_that_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open_small(directory.path(), MIB, &ManualClock::new());
    let hot: Vec<Bytes> = (0..20).map(|n| key(format!("hot{n}"))).collect();
    for name in &hot {
        set(&disk, name, fresh(vec![0; 1_000])).await.unwrap();
    }
    // Four times what fits, while the hot ones are read now and then.
    for n in 0..4_000 {
        let name = key(format!("cold{n}"));
        set_patiently(&disk, &name, fresh(vec![0; 1_000])).await;
        if n % 200 == 0 {
            for name in &hot {
                get(&disk, name).await;
            }
        }
    }
    let kept = disk.get(&hot, LIMIT).await.unwrap();
    assert!(kept.iter().all(Option::is_some), "{kept:?}");
    assert!(disk.stats().evicted >= 3_000);
}

#[tokio::test]
async fn entries_never_exceed_their_bound() {
    let directory = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        max_entries: 100,
        ..DiskOptions::default()
    };
    let disk = Disk::open(directory.path(), options).unwrap();
    for n in 0..500 {
        set(&disk, &key(format!("k{n}")), fresh("v")).await.unwrap();
        assert!(disk.stats().entries <= 100);
    }
    assert_eq!(disk.stats().entries, 100);
}

#[tokio::test]
async fn a_smaller_bound_is_kept_from_opening_on() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let disk = open_small(directory.path(), 4 * MIB, &clock);
    for n in 0..3_000 {
        let name = key(format!("k{n}"));
        set_patiently(&disk, &name, fresh(vec![0; 1_000])).await;
    }
    assert!(disk.stats().bytes > 3 * MIB);
    disk.close().await.unwrap();
    let disk = open_small(directory.path(), MIB, &clock);
    assert!(disk.stats().bytes <= MIB);
    assert_eq!(get(&disk, &key("k0")).await, None, "the oldest went first");
    assert!(get(&disk, &key("k2999")).await.is_some());
}

#[tokio::test]
async fn what_is_too_long_is_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        max_value_bytes: 1_000,
        ..DiskOptions::default()
    };
    let disk = Disk::open(directory.path(), options).unwrap();
    assert_eq!(disk.capabilities().max_value_bytes, 1_000);
    set(&disk, &key("k"), fresh("old")).await.unwrap();
    let too_long = |name: Bytes, len: usize| Write {
        key: name,
        value: Bytes::from(vec![0; len]),
        ttl: HOUR,
        tags: None,
    };
    for wrong in [
        too_long(key("k"), 1_001),
        too_long(key(vec![b'k'; 40_000]), 1),
        too_long(key(""), 1),
    ] {
        let other = too_long(key("other"), 10);
        let error = disk.set(&[other, wrong]).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    }
    assert_eq!(get(&disk, &key("k")).await, Some(fresh("old")));
    assert_eq!(get(&disk, &key("other")).await, None);
    delete(&disk, &key(vec![b'k'; 40_000])).await.unwrap();
    assert_eq!(get(&disk, &key(vec![b'k'; 70_000])).await, None);
}

/// Values on both sides of the size from which they lie in files of their own.
#[test]
fn random_churn_keeps_the_accounts_true_over_restarts() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    seeded(3, |rng, _| {
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let clock = ManualClock::new();
            for _ in 0..3 {
                let disk = open_small(directory.path(), MIB, &clock);
                for _ in 0..800 {
                    let name = key(format!("k{}", rng.u32(..300)));
                    let len = [10, 900, 1_100, 60_000][rng.usize(..4)];
                    match rng.u8(..10) {
                        0 => delete(&disk, &name).await.unwrap(),
                        1..4 => drop(get(&disk, &name).await),
                        _ => set_patiently(&disk, &name, fresh(vec![1; len])).await,
                    }
                    assert!(disk.stats().bytes <= MIB);
                }
                let mut bytes = 0;
                let mut entries = 0;
                for n in 0..300 {
                    let name = key(format!("k{n}"));
                    if let Some(value) = get(&disk, &name).await {
                        bytes += entry_bytes(name.len(), value.len());
                        entries += 1;
                    }
                }
                assert_eq!((disk.stats().bytes, disk.stats().entries), (bytes, entries));
                disk.close().await.unwrap();
            }
        });
    });
}
