//! Too much at once fails fast, and callers that leave leave nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use larder::store::{Fill, Filled, LeaseRequest, LeaseToken, Leased, Store, StoreErrorKind};
use larder_disk::{Disk, DiskOptions};
use support::*;

const ACQUIRED: Leased = Leased::Acquired {
    stale: None,
    since: None,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_what_was_accepted_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        queue: 2,
        ..DiskOptions::default()
    };
    let disk = Arc::new(Disk::open(directory.path(), options).unwrap());
    let tasks: Vec<_> = (0..500)
        .map(|n| {
            let disk = disk.clone();
            tokio::spawn(async move { set(&disk, &key(format!("k{n}")), fresh("v")).await })
        })
        .collect();
    let mut refused = 0;
    for (n, task) in tasks.into_iter().enumerate() {
        let stored = get(&disk, &key(format!("k{n}"))).await;
        match task.await.unwrap() {
            Ok(()) => assert!(get(&disk, &key(format!("k{n}"))).await.is_some()),
            Err(error) => {
                assert_eq!(error.kind(), StoreErrorKind::Unavailable);
                assert_eq!(stored, None);
                refused += 1;
            }
        }
    }
    assert_eq!(disk.stats().overloaded, refused);
    assert_eq!(disk.stats().entries, 500 - refused);
}

#[tokio::test]
async fn an_operation_dropped_after_its_first_poll_is_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(directory.path());
    for n in 0..200 {
        let name = key(format!("k{n}"));
        let value = fresh(vec![n as u8; 2_000]);
        let mut operation = Box::pin(set(&disk, &name, value.clone()));
        let polled = std::future::poll_fn(|context| {
            std::task::Poll::Ready(operation.as_mut().poll(context).is_ready())
        });
        polled.await;
        drop(operation);
        disk.ping().await.unwrap();
        assert_eq!(get(&disk, &name).await, Some(value));
    }
}

#[tokio::test]
async fn a_lease_that_nobody_received_is_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        readers: 1,
        ..DiskOptions::default()
    };
    let disk = Disk::open(directory.path(), options).unwrap();
    let name = key("k");
    set(&disk, &name, envelope(0, "stale")).await.unwrap();
    for n in 0..200 {
        let request = LeaseRequest {
            token: LeaseToken::random(),
            stale_at: 1,
            lease_for: HOUR,
            limit: LIMIT,
            counter: None,
        };
        let keys = [name.clone()];
        let mut operation = disk.lease(&keys, &request);
        let received = std::future::poll_fn(|context| {
            std::task::Poll::Ready(operation.as_mut().poll(context).is_ready())
        })
        .await;
        // The only reader has answered the one operation before it answers the other. So half of
        // the leases are dropped on their way, and half when they have arrived.
        if n % 2 == 0 {
            drop(operation);
            assert!(get(&disk, &name).await.is_some());
        } else {
            assert!(get(&disk, &name).await.is_some());
            drop(operation);
        }
        if received {
            disk.release(&keys, request.token).await.unwrap();
        }
    }
    assert_eq!(disk.stats().leases, 0);
}

#[tokio::test]
async fn the_oldest_lease_goes_when_there_are_too_many() {
    let directory = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        max_leases: 10,
        ..DiskOptions::default()
    };
    let disk = Disk::open(directory.path(), options).unwrap();
    let tokens: Vec<_> = (0..11).map(|_| LeaseToken::random()).collect();
    for (n, &token) in tokens.iter().enumerate() {
        let leased = lease(&disk, &key(format!("k{n}")), token).await;
        assert_eq!(leased, ACQUIRED);
    }
    assert_eq!((disk.stats().leases, disk.stats().leases_dropped), (10, 1));
    let fill = |n: usize| Fill {
        key: key(format!("k{n}")),
        token: tokens[n],
        value: fresh("v"),
        ttl: Duration::from_secs(60),
        tags: None,
    };
    let filled = disk.fill(&[fill(0), fill(1), fill(10)]).await.unwrap();
    assert_eq!(filled, [Filled::Refused, stored(), stored()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_clear_lets_others_through_and_takes_its_prefix_only() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(open(directory.path()));
    for n in 0..5_000 {
        set(&disk, &key(format!("a:{n}")), fresh("v"))
            .await
            .unwrap();
    }
    for n in 0..100 {
        set(&disk, &key(format!("b:{n}")), fresh("v"))
            .await
            .unwrap();
    }
    let clearing = tokio::spawn({
        let disk = disk.clone();
        async move { clear(&disk, b"a:").await }
    });
    for n in 0..100 {
        set(&disk, &key(format!("c:{n}")), fresh("w"))
            .await
            .unwrap();
    }
    assert_eq!(clearing.await.unwrap().unwrap(), 5_000);
    assert_eq!(disk.stats().entries, 200);
    assert_eq!(clear(&disk, b"").await.unwrap(), 200);
    assert_eq!((disk.stats().entries, disk.stats().bytes), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_lease_is_given_for_one_stale_value() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(open(directory.path()));
    for round in 0..300 {
        let name = key(format!("k{}", round % 3));
        set(&disk, &name, envelope(0, "stale")).await.unwrap();
        let loaders: Vec<_> = (0..6)
            .map(|_| tokio::spawn(load_until_fresh(disk.clone(), name.clone())))
            .collect();
        let mut loads = 0;
        for loader in loaders {
            loads += loader.await.unwrap();
        }
        assert_eq!(loads, 1, "in round {round}");
    }
}

/// Reads with a lease until the value is fresh, filling it if the lease is acquired; returns how
/// often it was.
async fn load_until_fresh(disk: Arc<Disk>, name: Bytes) -> usize {
    let mut loads = 0;
    loop {
        let token = LeaseToken::random();
        match lease(&disk, &name, token).await {
            Leased::Value(_) => return loads,
            Leased::Held { .. } => tokio::task::yield_now().await,
            Leased::Acquired { .. } => {
                let fill = Fill {
                    key: name.clone(),
                    token,
                    value: fresh("loaded"),
                    ttl: HOUR,
                    tags: None,
                };
                assert_eq!(disk.fill(&[fill]).await.unwrap(), [stored()]);
                loads += 1;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_load_from_before_an_invalidation_of_its_tag_is_ever_valid() {
    let directory = tempfile::tempdir().unwrap();
    let race = Arc::new(Race {
        disk: open(directory.path()),
        raised: AtomicU64::new(0),
        stored: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    assert_eq!(position(&race.disk).await.count, 0);
    let loaders: Vec<_> = (0..4)
        .map(|n| tokio::spawn(race.clone().load(key(format!("k{n}")))))
        .collect();
    let mut version = 0;
    // A race that nobody lost, or everybody, would prove nothing.
    while version < 200 || !race.has_seen_both() {
        version += 1;
        assert!(version < 100_000, "{race:?}");
        race.raised.store(version, Ordering::SeqCst);
        race.disk.delete(&[tag("t")], Some(&COUNTER)).await.unwrap();
        for n in 0..8 {
            let name = key(format!("k{}", n % 4));
            if let Some(found) = valid(&race.disk, &name, &[tag("t")]).await {
                let found = u64::from_be_bytes(*found.first_chunk().unwrap());
                assert!(found >= version, "{found} is valid after {version}");
            }
        }
    }
    race.over.store(true, Ordering::SeqCst);
    for loader in loaders {
        loader.await.unwrap();
    }
    assert_eq!(position(&race.disk).await.count, version);
}

/// Tasks that load what a source says, under a tag that another one invalidates.
#[derive(Debug)]
struct Race {
    disk: Disk,
    /// What a load reads.
    raised: AtomicU64,
    stored: AtomicU64,
    refused: AtomicU64,
    over: AtomicBool,
}

impl Race {
    fn has_seen_both(&self) -> bool {
        self.stored.load(Ordering::SeqCst) > 0 && self.refused.load(Ordering::SeqCst) > 0
    }

    async fn load(self: Arc<Self>, name: Bytes) {
        while !self.over.load(Ordering::SeqCst) {
            let request = LeaseRequest {
                token: LeaseToken::random(),
                // Values are loaded again however fresh they are.
                stale_at: u64::MAX,
                lease_for: HOUR,
                limit: LIMIT,
                counter: Some(COUNTER),
            };
            let keys = [name.clone()];
            let leased = self.disk.lease(&keys, &request).await.unwrap();
            let Leased::Acquired { since, .. } = leased[0] else {
                panic!("nobody else loads {name:?}");
            };
            let loaded = self.raised.load(Ordering::SeqCst);
            tokio::task::yield_now().await;
            let fill = Fill {
                value: tagged_envelope(1, loaded.to_be_bytes()),
                ..tagged_fill(&name, request.token, &[tag("t")], since.unwrap())
            };
            let filled = self.disk.fill(&[fill]).await.unwrap();
            let outcome = match filled[0] {
                Filled::Stored { .. } => &self.stored,
                Filled::Refused => {
                    self.disk.release(&keys, request.token).await.unwrap();
                    &self.refused
                }
            };
            outcome.fetch_add(1, Ordering::SeqCst);
        }
    }
}
