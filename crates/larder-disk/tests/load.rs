//! Too much at once fails fast, and callers that leave leave nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::store::{Fill, Filled, LeaseRequest, LeaseToken, Leased, Store, StoreErrorKind};
use larder_disk::{Disk, DiskOptions};
use support::*;

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
        assert_eq!(leased, Leased::Acquired { stale: None });
    }
    assert_eq!((disk.stats().leases, disk.stats().leases_dropped), (10, 1));
    let fill = |n: usize| Fill {
        key: key(format!("k{n}")),
        token: tokens[n],
        value: fresh("v"),
        ttl: Duration::from_secs(60),
    };
    let filled = disk.fill(&[fill(0), fill(1), fill(10)]).await.unwrap();
    assert_eq!(filled, [Filled::Refused, Filled::Stored, Filled::Stored]);
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
        async move { disk.clear(b"a:").await }
    });
    for n in 0..100 {
        set(&disk, &key(format!("c:{n}")), fresh("w"))
            .await
            .unwrap();
    }
    assert_eq!(clearing.await.unwrap().unwrap(), 5_000);
    assert_eq!(disk.stats().entries, 200);
    assert_eq!(disk.clear(b"").await.unwrap(), 200);
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
                };
                assert_eq!(disk.fill(&[fill]).await.unwrap(), [Filled::Stored]);
                loads += 1;
            }
        }
    }
}
