//! A proxy between the store and its server delays, swallows, cuts and resets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use larder::store::Store;
use larder_redis::Redis;
use larder_testkit::{ChaosProxy, Direction, LinkFault, RedisServer};

async fn behind_a_proxy() -> (RedisServer, ChaosProxy, Redis) {
    let server = RedisServer::start().unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    let store = Redis::with_options(&format!("redis://{}", proxy.address()), hasty()).unwrap();
    store.ping().await.unwrap();
    (server, proxy, store)
}

#[tokio::test]
async fn a_half_open_connection_is_given_up_and_made_anew() {
    let (_server, proxy, store) = behind_a_proxy().await;
    proxy.inject(Direction::BOTH, LinkFault::Blackhole);
    unavailable(get(&store, &key("k")).await);
    proxy.heal();
    store.ping().await.unwrap();
    assert_eq!(get(&store, &key("k")).await.unwrap(), None);
}

#[tokio::test]
async fn a_reset_connection_costs_no_read() {
    let (_server, proxy, store) = behind_a_proxy().await;
    for _ in 0..5 {
        proxy.reset_connections();
        assert_eq!(get(&store, &key("k")).await.unwrap(), None);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_taken_for_a_value() {
    let (_server, proxy, store) = behind_a_proxy().await;
    let (name, value) = (key("k"), fresh(vec![b'v'; 5_000]));
    set(&store, &name, &value).await.unwrap();
    for bytes in [0, 1, 6, 7, 100, 5_000] {
        proxy.inject([Direction::ToClient], LinkFault::Truncate(bytes));
        let cut = tokio::time::timeout(BUDGET, get(&store, &name)).await;
        assert!(!matches!(cut, Ok(Ok(_))), "{bytes}: {cut:?}");
        proxy.heal();
        store.ping().await.unwrap();
        assert_eq!(get(&store, &name).await.unwrap(), Some(value.clone()));
    }
}

#[tokio::test]
async fn connections_that_are_dropped_at_once_are_not_made_by_every_call() {
    let (_server, proxy, store) = behind_a_proxy().await;
    let name = key("k");
    set(&store, &name, &fresh(vec![b'v'; 5_000])).await.unwrap();
    // Cut before the first byte, and cut in the first answer behind the greeting.
    for bytes in [0, 3_000] {
        proxy.inject([Direction::ToClient], LinkFault::Truncate(bytes));
        let before = proxy.connections();
        for _ in 0..500 {
            unavailable(get(&store, &name).await);
        }
        let made = proxy.connections() - before;
        assert!(made < 100, "{made} connections for 500 calls");
        proxy.heal();
        store.ping().await.unwrap();
    }
}

#[tokio::test]
async fn a_ping_does_not_wait_for_the_end_of_a_pause() {
    let (_server, proxy, store) = behind_a_proxy().await;
    proxy.refuse().await;
    proxy.reset_connections();
    // Failures in a row, up to the longest pause.
    for _ in 0..20 {
        unavailable(store.ping().await);
    }
    let refused_at_once = unavailable(get(&store, &key("k")).await);
    proxy.accept().await;
    store.ping().await.unwrap();
    assert_eq!(
        get(&store, &key("k")).await.unwrap(),
        None,
        "{refused_at_once}"
    );
}
