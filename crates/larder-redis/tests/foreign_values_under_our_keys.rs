//! Another program wrote there: too long, another type, or bytes that are no envelope.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use larder::store::{Filled, LeaseToken, Leased, Store};
use larder_testkit::{RedisServer, Reply};

#[tokio::test]
async fn fifty_megabytes_are_cut_at_the_server() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, huge) = (key("huge"), vec![b'x'; 50 << 20]);
    server.command(&[b"SET", &*name, &huge]).unwrap();
    drop(huge);
    let before = info(&server, "stats", "total_net_output_bytes");
    let found = get(&store, &name).await.unwrap().unwrap();
    assert_eq!(found.len(), LIMIT + 1);
    let leased = lease(&store, &name, LeaseToken::random()).await.unwrap();
    assert_eq!(leased, Leased::Acquired { stale: None });
    let sent = info(&server, "stats", "total_net_output_bytes") - before;
    assert!(sent < 3 * LIMIT as u64, "{sent} bytes were sent");
    assert_eq!(
        server.command(&[b"STRLEN", &*name]).unwrap(),
        Reply::Integer(56)
    );
}

#[tokio::test]
async fn a_cut_envelope_shows_that_it_was_cut() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let name = key("long");
    for (value, is_fresh) in [
        (fresh(vec![1; LIMIT]), true),
        (stale(vec![1; LIMIT]), false),
    ] {
        set(&store, &name, &value).await.unwrap();
        let found = match lease(&store, &name, LeaseToken::random()).await.unwrap() {
            Leased::Value(value) if is_fresh => value,
            Leased::Acquired { stale } if !is_fresh => stale.unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(found.len(), LIMIT + 1);
    }
}

#[tokio::test]
async fn another_type_reads_as_nothing_and_spoils_no_batch() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (good, value) = (key("good"), fresh("v"));
    set(&store, &good, &value).await.unwrap();
    let wrong: Vec<_> = [
        ["RPUSH", "a list", "x"].as_slice(),
        &["SADD", "a set", "x"],
        &["HSET", "a hash", "f", "x"],
        &["ZADD", "a sorted set", "1", "x"],
        &["XADD", "a stream", "*", "f", "x"],
    ]
    .into_iter()
    .map(|command| {
        server.command(command).unwrap();
        key(command[1])
    })
    .collect();
    let mut batch = wrong.clone();
    batch.insert(2, good.clone());
    let mut expected = vec![None; wrong.len()];
    expected.insert(2, Some(value.clone()));
    assert_eq!(store.get(&batch, LIMIT).await.unwrap(), expected);

    for name in &wrong {
        let token = LeaseToken::random();
        assert_eq!(
            fill(&store, name, token, &value).await.unwrap(),
            Filled::Refused
        );
        release(&store, name, token).await.unwrap();
        expire(&store, name).await.unwrap();
        assert!(matches!(server.command(&[b"TYPE", &**name]).unwrap(),
            Reply::Status(kind) if kind != "string"));
        let leased = lease(&store, name, token).await.unwrap();
        assert_eq!(leased, Leased::Acquired { stale: None });
        assert_eq!(
            fill(&store, name, token, &value).await.unwrap(),
            Filled::Stored
        );
        assert_eq!(get(&store, name).await.unwrap(), Some(value.clone()));
    }
}

#[tokio::test]
async fn set_and_delete_do_not_care_what_was_there() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, value) = (key("a list"), fresh("v"));
    server.command(&["RPUSH", "a list", "x"]).unwrap();
    set(&store, &name, &value).await.unwrap();
    assert_eq!(get(&store, &name).await.unwrap(), Some(value));
    delete(&store, &name).await.unwrap();
    server.command(&["RPUSH", "a list", "x"]).unwrap();
    delete(&store, &name).await.unwrap();
    assert_eq!(
        server.command(&["EXISTS", "a list"]).unwrap(),
        Reply::Integer(0)
    );
}

#[tokio::test]
async fn an_empty_string_is_no_value() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    server.command(&["SET", "empty", ""]).unwrap();
    assert_eq!(get(&store, &key("empty")).await.unwrap(), None);
}
