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
async fn out_of_memory_an_invalidation_by_tag_gets_through() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (counter, record) = (key("counter"), key("record"));
    let [old, loading, beside] = ["old", "loading", "beside"].map(key);
    let tags = |since| tag(&counter, &record, since);
    set_tagged(&store, &old, HOUR, tags(None), 7).await.unwrap();
    let token = LeaseToken::random();
    let since = lease_at(&store, &loading, token, &counter).await.unwrap();
    lease_at(&store, &beside, token, &counter).await.unwrap();
    limit_memory(&server, "1");

    invalidate(&store, &record, &counter).await.unwrap();
    assert_eq!(get(&store, &record).await.unwrap(), None);
    refused(fill_tagged(&store, &loading, token, tags(Some(since)), 8).await);
    // Twice is as good: neither counter nor record is there any more.
    invalidate(&store, &record, &counter).await.unwrap();
    limit_memory(&server, "0");

    for (name, proposed) in [(&loading, 8), (&beside, 9)] {
        let filled = fill_tagged(&store, name, token, tags(Some(since)), proposed).await;
        assert_eq!(filled.unwrap(), None, "it was loaded before");
    }
    let now = position(&store, &counter).await.unwrap();
    assert_ne!(now.incarnation, since.incarnation);
    let made = get(&store, &record).await.unwrap().unwrap();
    assert_ne!(made[..8], 7_u64.to_be_bytes(), "the old entry is not valid");
}

#[tokio::test]
async fn out_of_memory_a_counter_that_never_was_is_no_error() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    set(&store, &key("k"), &fresh("v")).await.unwrap();
    limit_memory(&server, "1");
    invalidate(&store, &key("k"), &key("counter"))
        .await
        .unwrap();
    assert_eq!(get(&store, &key("k")).await.unwrap(), None);
    store.delete(&[], Some(&key("counter"))).await.unwrap();
    let names: Vec<_> = (0..2_500).map(|n| key(format!("{n}"))).collect();
    store.delete(&names, Some(&key("counter"))).await.unwrap();
    refused(store.enlist(&key("set"), 7, HOUR).await);
}

#[tokio::test]
async fn out_of_memory_a_minimum_version_cannot_be_left_and_expire_removes_one() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (kept, other) = (key("kept"), key("other"));
    let minimum = larder::envelope::Header::minimum(7).to_bytes();
    let minimum = bytes::Bytes::copy_from_slice(&minimum);
    set(&store, &kept, &minimum).await.unwrap();
    limit_memory(&server, "1");
    refused(set(&store, &other, &minimum).await);
    expire(&store, &kept).await.unwrap();
    assert_eq!(get(&store, &kept).await.unwrap(), None);
}

fn limit_memory(server: &RedisServer, bytes: &str) {
    let limit = ["CONFIG", "SET", "maxmemory", bytes];
    assert_eq!(server.command(&limit).unwrap(), Reply::Status("OK".into()));
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
    let error = refused(invalidate(&store, &name, &key("counter")).await).to_string();
    assert!(error.contains("READONLY"), "{error}");
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
    assert_eq!(clear(&store, b"k").await.unwrap(), 1);
    set(&store, &name, &fresh("v")).await.unwrap();
    let before = position(&store, &key("counter")).await.unwrap();
    invalidate(&store, &name, &key("counter")).await.unwrap();
    assert_eq!(get(&store, &name).await.unwrap(), None);
    let now = position(&store, &key("counter")).await.unwrap();
    assert_eq!(now.count, before.count + 1);
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
        error.contains("1064") && error.contains("max_value_bytes"),
        "{error}"
    );
    refused(fill(&store, &name, token, &long).await);
    assert_eq!(
        calls(&server, "set"),
        1,
        "the placeholder alone was written"
    );
}
