//! Passwords, permissions, memory and roles: the server answers, and says no.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use larder::store::{LeaseToken, Leased, Store};
use larder_redis::Redis;
use larder_testkit::{RedisServer, Reply};

#[tokio::test]
async fn a_wrong_password_is_a_clear_error_that_never_shows_it() {
    let server = RedisServer::start_with(&["--requirepass", "right"]).unwrap();
    let url = format!("redis://:wrong-hunter2@{}", server.address());
    let store = Redis::new(&url).unwrap();
    for shown in [
        refused(get(&store, &key("k")).await).to_string(),
        format!("{:?}", refused(store.ping().await)),
        format!("{store:?}"),
    ] {
        assert!(shown.contains(&server.address().to_string()), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let error = refused(get(&store, &key("k")).await).to_string();
    assert!(error.contains("user name or password"), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_not_tried_by_every_call() {
    let server = RedisServer::start_with(&["--requirepass", "right"]).unwrap();
    let store = Redis::new(&format!("redis://:wrong@{}", server.address())).unwrap();
    let before = info(&server, "stats", "total_connections_received");
    for _ in 0..5_000 {
        refused(get(&store, &key("k")).await);
    }
    let tried = info(&server, "stats", "total_connections_received") - before;
    assert!(tried < 100, "{tried} connections for 5,000 calls");
    let set_password = ["CONFIG", "SET", "requirepass", "wrong"];
    assert_eq!(
        server.command(&set_password).unwrap(),
        Reply::Status("OK".into())
    );
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_missing_password_says_where_it_goes() {
    let server = RedisServer::start_with(&["--requirepass", "right"]).unwrap();
    let store = Redis::new(&format!("redis://{}", server.address())).unwrap();
    let error = refused(get(&store, &key("k")).await).to_string();
    assert!(
        error.contains("NOAUTH") && error.contains("redis://:PASSWORD@HOST"),
        "{error}"
    );
    refused(store.ping().await);
}

#[tokio::test]
async fn the_right_password_and_database_are_used() {
    let server = RedisServer::start_with(&["--requirepass", "p@ss:/w"]).unwrap();
    let url = format!("redis://:p%40ss%3A%2Fw@{}/3", server.address());
    let store = Redis::new(&url).unwrap();
    set(&store, &key("k"), &fresh("v")).await.unwrap();
    let Reply::Bytes(keyspace) = server.command(&["INFO", "keyspace"]).unwrap() else {
        panic!("INFO answers with text");
    };
    let keyspace = String::from_utf8(keyspace).unwrap();
    assert!(keyspace.contains("db3:keys=1"), "{keyspace}");

    let url = format!("redis://:p%40ss%3A%2Fw@{}/99", server.address());
    let error = refused(Redis::new(&url).unwrap().ping().await).to_string();
    assert!(error.contains("DB index is out of range"), "{error}");
}

#[tokio::test]
async fn out_of_memory_reads_serve_and_invalidations_get_through() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let names = ["fresh", "expired", "deleted"].map(key);
    for name in &names {
        set(&store, name, &fresh("v")).await.unwrap();
    }
    let full = ["CONFIG", "SET", "maxmemory", "1"];
    assert_eq!(server.command(&full).unwrap(), Reply::Status("OK".into()));

    let error = refused(set(&store, &key("more"), &fresh("v")).await).to_string();
    assert!(
        error.contains("OOM") && error.contains("maxmemory-policy"),
        "{error}"
    );
    refused(lease(&store, &key("more"), LeaseToken::random()).await);
    assert!(get(&store, &names[0]).await.unwrap().is_some());
    let leased = lease(&store, &names[0], LeaseToken::random())
        .await
        .unwrap();
    assert!(matches!(leased, Leased::Value(_)), "{leased:?}");
    expire(&store, &names[1]).await.unwrap();
    assert_eq!(
        get(&store, &names[1]).await.unwrap(),
        None,
        "no way to keep it as stale"
    );
    delete(&store, &names[2]).await.unwrap();
    assert_eq!(get(&store, &names[2]).await.unwrap(), None);
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_replica_serves_reads_and_refuses_writes() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let name = key("k");
    set(&store, &name, &fresh("v")).await.unwrap();
    server.command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    assert!(get(&store, &name).await.unwrap().is_some());
    let error = refused(set(&store, &name, &fresh("w")).await).to_string();
    assert!(
        error.contains("READONLY") && error.contains("primary"),
        "{error}"
    );
    refused(delete(&store, &name).await);
    refused(expire(&store, &name).await);
}

#[tokio::test]
async fn a_user_without_unlink_deletes_with_del() {
    let server = RedisServer::start().unwrap();
    let user = [
        "ACL", "SETUSER", "shop", "on", ">pw", "~*", "+@all", "-unlink",
    ];
    assert_eq!(server.command(&user).unwrap(), Reply::Status("OK".into()));
    let store = Redis::new(&format!("redis://shop:pw@{}", server.address())).unwrap();
    let name = key("k");
    set(&store, &name, &fresh("v")).await.unwrap();
    delete(&store, &name).await.unwrap();
    assert_eq!(get(&store, &name).await.unwrap(), None);
    set(&store, &name, &fresh("v")).await.unwrap();
    assert_eq!(store.clear(b"k").await.unwrap(), 1);
}

#[tokio::test]
async fn a_server_that_does_not_know_a_command_repeats_no_value_of_ours() {
    let server = RedisServer::start_with(&["--rename-command", "SET", "OTHER"]).unwrap();
    let store = store_at(&server);
    let error = refused(set(&store, &key("k"), &fresh("hunter2")).await);
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("unknown command"), "{shown}");
    assert!(
        !shown.contains("hunter2") && !shown.contains("LRDR"),
        "{shown}"
    );
}

#[tokio::test]
async fn a_value_over_the_limit_is_refused_before_it_is_sent() {
    let server = RedisServer::start().unwrap();
    let options = larder_redis::RedisOptions {
        max_value_bytes: 1_000,
        ..Default::default()
    };
    let store = Redis::with_options(&server.url(), options).unwrap();
    let (name, token) = (key("k"), LeaseToken::random());
    lease(&store, &name, token).await.unwrap();
    let long = fresh(vec![1; 1_000]);
    let error = refused(set(&store, &name, &long).await).to_string();
    assert!(
        error.contains("1056") && error.contains("max_value_bytes"),
        "{error}"
    );
    refused(fill(&store, &name, token, &long).await);
    assert_eq!(
        calls(&server, "set"),
        1,
        "the placeholder alone was written"
    );
}
