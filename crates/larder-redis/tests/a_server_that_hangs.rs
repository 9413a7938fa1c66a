//! SIGSTOP: connections stay open, new ones are accepted, and nothing answers. SIGCONT: all of
//! what was sent is answered, to callers who are long gone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use larder::store::{Store, StoreErrorKind};
use larder_redis::{Redis, RedisOptions};
use larder_testkit::RedisServer;

#[tokio::test]
async fn calls_hang_until_they_are_dropped_and_work_again_afterwards() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    store.ping().await.unwrap();
    server.stop_signal().unwrap();
    for _ in 0..3 {
        let hangs = tokio::time::timeout(BUDGET, get(&store, &key("k"))).await;
        assert!(hangs.is_err(), "{hangs:?}");
    }
    server.cont_signal().unwrap();
    heals_within(&store, Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_hang_that_outlasts_the_connection_is_healed_as_well() {
    let server = RedisServer::start().unwrap();
    let store = Redis::with_options(&server.url(), hasty()).unwrap();
    store.ping().await.unwrap();
    server.stop_signal().unwrap();
    // The first call loses the connection, the second cannot make another.
    unavailable(get(&store, &key("k")).await);
    unavailable(store.ping().await);
    server.cont_signal().unwrap();
    store.ping().await.unwrap();
    heals_within(&store, Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_server_that_hangs_from_the_start_is_used_once_it_goes_on() {
    let server = RedisServer::start().unwrap();
    server.stop_signal().unwrap();
    let store = Redis::with_options(&server.url(), hasty()).unwrap();
    unavailable(store.ping().await);
    server.cont_signal().unwrap();
    store.ping().await.unwrap();
}

#[tokio::test]
async fn what_waits_for_a_hung_server_is_bounded() {
    let server = RedisServer::start().unwrap();
    let options = RedisOptions {
        max_in_flight: 64,
        response_timeout: Duration::from_secs(60),
        ..RedisOptions::default()
    };
    let store = Redis::with_options(&server.url(), options).unwrap();
    store.ping().await.unwrap();
    let before = calls(&server, "getrange");
    server.stop_signal().unwrap();
    let mut refused = 0;
    for n in 0..10_000 {
        match poll_once(get(&store, &key(format!("{n}")))).await {
            Some(Err(error)) => {
                assert_eq!(error.kind(), StoreErrorKind::Unavailable);
                assert!(error.to_string().contains("does not answer"), "{error}");
                refused += 1;
            }
            Some(Ok(found)) => panic!("a stopped server answered {found:?}"),
            None => {}
        }
    }
    assert!(
        refused >= 10_000 - 64,
        "{refused} of 10,000 were turned away"
    );
    server.cont_signal().unwrap();
    heals_within(&store, Duration::from_secs(3)).await;
    let sent = calls(&server, "getrange") - before;
    assert!(
        sent <= 64 + 100,
        "{sent} of 10,000 reads reached the server"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_beyond_the_bound_waits_for_a_server_that_answers() {
    let server = RedisServer::start().unwrap();
    let options = RedisOptions {
        max_in_flight: 8,
        ..RedisOptions::default()
    };
    let store = std::sync::Arc::new(Redis::with_options(&server.url(), options).unwrap());
    let callers: Vec<_> = (0..1_000)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { get(&store, &key(format!("{n}"))).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), None);
    }
    // A batch and a value that are larger than the bound pass as well.
    let many: Vec<_> = (0..100).map(|n| key(format!("{n}"))).collect();
    assert_eq!(store.get(&many, LIMIT).await.unwrap(), vec![None; 100]);
    set(&store, &many[0], &fresh(vec![7; 1 << 19]))
        .await
        .unwrap();
}

/// Polls a call once and drops it, as a caller does whose budget is spent.
async fn poll_once<F: Future>(call: F) -> Option<F::Output> {
    let mut call = std::pin::pin!(call);
    let polled = std::future::poll_fn(|context| {
        std::task::Poll::Ready(match call.as_mut().poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await;
    tokio::task::yield_now().await;
    polled
}
