//! kill -9, and what callers see before and after the server is back.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::*;
use larder::store::{Store, StoreErrorKind};
use larder_testkit::RedisServer;

#[tokio::test]
async fn the_first_ping_after_the_return_succeeds() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    store.ping().await.unwrap();
    server.kill9();
    // Far into the pauses, which double up to 250 ms.
    for _ in 0..10 {
        unavailable(store.ping().await);
    }
    server.restart().unwrap();
    store.ping().await.unwrap();
    assert_eq!(get(&store, &key("k")).await.unwrap(), None);
}

#[tokio::test]
async fn calls_alone_heal_it_too() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    assert_eq!(get(&store, &key("k")).await.unwrap(), None);
    server.kill9();
    unavailable(get(&store, &key("k")).await);
    server.restart().unwrap();
    heals_within(&store, Duration::from_millis(750)).await;
}

#[tokio::test]
async fn a_restart_between_two_calls_costs_no_read_and_no_invalidation() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let name = key("k");
    set(&store, &name, &fresh("v")).await.unwrap();
    server.restart().unwrap();
    assert_eq!(get(&store, &name).await.unwrap(), None);
    server.restart().unwrap();
    delete(&store, &name).await.unwrap();
    server.restart().unwrap();
    expire(&store, &name).await.unwrap();
    server.restart().unwrap();
    assert!(lease(&store, &name, token()).await.is_ok());
}

#[tokio::test]
async fn while_it_is_away_calls_fail_at_once_and_say_where() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    store.ping().await.unwrap();
    server.kill9();
    let calls = tokio::time::timeout(BUDGET * 3, async {
        for _ in 0..1_000 {
            let error = unavailable(get(&store, &key("k")).await);
            assert!(
                error.to_string().contains(&server.address().to_string()),
                "{error}"
            );
        }
    });
    assert!(calls.await.is_ok(), "1,000 calls took longer than 300 ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_end_in_an_answer_or_an_error() {
    let server = RedisServer::start().unwrap();
    let store = Arc::new(store_at(&server));
    let done = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..32)
        .map(|n| {
            let (store, done) = (store.clone(), done.clone());
            tokio::spawn(async move {
                let (name, value) = (key(format!("k{n}")), fresh(format!("v{n}")));
                // On a busy machine a caller may meet nothing but restarts; the last one is over.
                let mut answers = 0;
                while !done.load(Relaxed) || answers == 0 {
                    let _ = set(&store, &name, &value).await;
                    match get(&store, &name).await {
                        Ok(found) => {
                            assert!(found.is_none_or(|found| found == value));
                            answers += 1;
                        }
                        Err(error) => assert_eq!(error.kind(), StoreErrorKind::Unavailable),
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for _ in 0..3 {
        heals_within(&store, Duration::from_secs(3)).await;
        tokio::task::block_in_place(|| {
            server.kill9();
            server.restart().unwrap();
        });
    }
    heals_within(&store, Duration::from_secs(3)).await;
    done.store(true, Relaxed);
    for caller in callers {
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, caller)
            .await
            .unwrap()
            .unwrap();
    }
}

#[tokio::test]
async fn a_connection_outlives_the_runtime_that_made_it() {
    let server = RedisServer::start().unwrap();
    let store = Arc::new(store_at(&server));
    let theirs = store.clone();
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { theirs.ping().await.unwrap() });
    });
    other.join().unwrap();
    assert_eq!(get(&store, &key("k")).await.unwrap(), None);
}

fn token() -> larder::store::LeaseToken {
    larder::store::LeaseToken::random()
}
