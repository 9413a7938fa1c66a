//! What a hit, a miss and an invalidation cost on the server.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::*;
use larder::store::{LeaseToken, Leased, Store, StoreErrorKind};
use larder_redis::Redis;
use larder_testkit::{Ear, RedisServer, Reply};

#[tokio::test]
async fn a_hit_costs_one_plain_command() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, value) = (key("k"), fresh("v"));
    set(&store, &name, &value).await.unwrap();
    read_fresh(&store, &name, &value).await;
    reset(&server);
    let leased = lease(&store, &name, LeaseToken::random()).await.unwrap();
    assert_eq!(leased, Leased::Value(value));
    assert_eq!(calls(&server, "getrange"), 1);
    assert_eq!(scripts(&server), 0);
}

#[tokio::test]
async fn a_miss_among_misses_costs_two_scripts() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    store.ping().await.unwrap();
    // A store that was just opened knows nothing, and expects to miss.
    for n in 0..100 {
        let (name, token) = (key(format!("{n}")), LeaseToken::random());
        reset(&server);
        assert_eq!(lease(&store, &name, token).await.unwrap(), acquired());
        let filled = fill(&store, &name, token, &fresh("v")).await.unwrap();
        assert_eq!(filled, stored());
        let loaded = if n == 0 { 2 } else { 0 };
        assert_eq!(scripts(&server), 2 + loaded, "lease and fill");
        // Both look at the header; nobody else asks.
        assert_eq!(calls(&server, "getrange"), 2);
    }
}

#[tokio::test]
async fn a_miss_among_hits_is_looked_at_twice_and_then_the_way_changes() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, value) = (key("k"), fresh("v"));
    set(&store, &name, &value).await.unwrap();
    read_fresh(&store, &name, &value).await;
    reset(&server);
    let token = LeaseToken::random();
    assert_eq!(
        lease(&store, &key("absent"), token).await.unwrap(),
        acquired()
    );
    assert_eq!(
        calls(&server, "getrange"),
        2,
        "by itself, and in the script"
    );
    assert_eq!(scripts(&server), 1);
    let absent: Vec<Bytes> = (0..100).map(|n| key(format!("absent:{n}"))).collect();
    for name in &absent {
        lease(&store, name, LeaseToken::random()).await.unwrap();
    }
    reset(&server);
    let token = LeaseToken::random();
    assert_eq!(
        lease(&store, &key("last"), token).await.unwrap(),
        acquired()
    );
    assert_eq!(calls(&server, "getrange"), 1, "in the script alone");
    // And a fresh value is served on this way as well.
    let leased = lease(&store, &name, token).await.unwrap();
    assert_eq!(leased, Leased::Value(value));
}

#[tokio::test]
async fn an_invalidation_is_one_pipeline_of_plain_commands() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (names, counter) = (["one", "two"].map(key), key("counter"));
    store.delete(&names, Some(&counter)).await.unwrap();
    reset(&server);
    // Whoever goes away before the first answer has sent everything by then.
    server.stop_signal().unwrap();
    let removal = store.delete(&names, Some(&counter));
    assert!(tokio::time::timeout(BUDGET, removal).await.is_err());
    server.cont_signal().unwrap();
    store.ping().await.unwrap();
    for command in ["hsetnx", "hincrby", "unlink"] {
        assert_eq!(calls(&server, command), 1, "{command}");
    }
    assert_eq!(scripts(&server), 0);
}

#[tokio::test]
async fn an_invalidation_and_its_message_are_one_pipeline_with_the_message_last() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (names, counter) = (["one", "two"].map(key), key("counter"));
    let bus = store.backplane().unwrap();
    let mut ear = Ear::open(Arc::clone(&bus), "c").await;
    bus.publish("c", "teaches the script".into()).await.unwrap();
    ear.message().await;
    log_all_commands(&server);
    // Whoever goes away before the first answer has sent everything by then.
    server.stop_signal().unwrap();
    let removal = store.delete_and_publish(&names, &counter, "c", "gone".into());
    assert!(tokio::time::timeout(BUDGET, removal).await.is_err());
    server.cont_signal().unwrap();
    assert_eq!(&ear.message().await.1[..], b"gone");
    assert_eq!(
        logged(&server),
        ["HSETNX", "HINCRBY", "UNLINK", "PUBLISH"],
        "whoever hears of it must find it done"
    );
}

#[tokio::test]
async fn what_does_not_go_by_itself_is_left_to_be_done_step_by_step() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (names, counter) = (["one"].map(key), key("counter"));
    let at_once = || store.delete_and_publish(&names, &counter, "c", "gone".into());
    let unknown_script = at_once().await.unwrap_err();
    assert_eq!(unknown_script.kind(), StoreErrorKind::Unsupported);
    let bus = store.backplane().unwrap();
    let first = bus.publish("c", "teaches the script".into()).await.unwrap();
    let second = at_once().await.unwrap();
    assert_eq!(second.count, first.count + 1);
    server.command(&["SET", "counter", "a string"]).unwrap();
    let no_counter = at_once().await.unwrap_err();
    assert_eq!(no_counter.kind(), StoreErrorKind::Unsupported);
}

fn log_all_commands(server: &RedisServer) {
    let log_all = ["CONFIG", "SET", "slowlog-log-slower-than", "0"];
    server.command(&log_all).unwrap();
    server.command(&["SLOWLOG", "RESET"]).unwrap();
}

/// The commands of an invalidation that the server logged, scripts' own included, the earliest first.
fn logged(server: &RedisServer) -> Vec<String> {
    let Reply::List(entries) = server.command(&["SLOWLOG", "GET", "100"]).unwrap() else {
        panic!("the log is a list");
    };
    let name = |entry: &Reply| {
        let Reply::List(fields) = entry else {
            return None;
        };
        let Reply::List(command) = &fields[3] else {
            return None;
        };
        let Reply::Bytes(name) = &command[0] else {
            return None;
        };
        Some(String::from_utf8_lossy(name).into_owned())
    };
    let names = entries.iter().rev().filter_map(name);
    let of_interest = ["HSETNX", "HINCRBY", "UNLINK", "PUBLISH"];
    names
        .filter(|name| of_interest.contains(&name.as_str()))
        .collect()
}

async fn read_fresh(store: &Redis, name: &Bytes, value: &Bytes) {
    for _ in 0..100 {
        let leased = lease(store, name, LeaseToken::random()).await.unwrap();
        assert_eq!(leased, Leased::Value(value.clone()));
    }
}

fn reset(server: &RedisServer) {
    server.command(&["CONFIG", "RESETSTAT"]).unwrap();
}

/// Runs by code and by hash; one that the server did not know counts twice.
fn scripts(server: &RedisServer) -> u64 {
    calls(server, "eval") + calls(server, "evalsha")
}
