//! Making the store needs no server; calls find it when it comes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::*;
use larder::store::Store;
use larder_testkit::RedisServer;

#[tokio::test]
async fn the_store_waits_for_its_server_without_an_error_of_its_own() {
    let server = RedisServer::start().unwrap();
    server.kill9();
    let store = store_at(&server);
    let error = unavailable(get(&store, &key("k")).await);
    assert!(
        std::error::Error::source(&error).is_some(),
        "{error:?} names its cause"
    );
    unavailable(store.ping().await);
    server.restart().unwrap();
    store.ping().await.unwrap();
    set(&store, &key("k"), &fresh("v")).await.unwrap();
}

#[test]
fn neither_runtime_nor_server_is_needed_to_make_one() {
    let store = larder_redis::Redis::new("redis://:secret@192.0.2.1:1/3").unwrap();
    let shown = format!("{store:?}");
    assert!(
        shown.contains("192.0.2.1:1") && shown.contains("not connected yet"),
        "{shown}"
    );
    assert!(!shown.contains("secret"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_first_callers_share_one_connection() {
    let server = RedisServer::start().unwrap();
    let store = Arc::new(store_at(&server));
    let before = info(&server, "stats", "total_connections_received");
    let callers: Vec<_> = (0..200)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { get(&store, &key("k")).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), None);
    }
    // The question itself came on a connection too.
    let after = info(&server, "stats", "total_connections_received");
    assert_eq!(after - before, 2);
}

#[tokio::test]
async fn a_closed_store_stays_closed() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    store.ping().await.unwrap();
    store.close().await.unwrap();
    unavailable(store.ping().await);
    unavailable(get(&store, &key("k")).await);
}
