//! Removing a prefix from a database that is full of other people's keys.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::sync::Mutex;

use bytes::Bytes;
use common::*;
use larder::store::{Store, Swept, Write};
use larder_testkit::{RedisServer, Reply};

#[tokio::test]
async fn foreign_and_non_utf8_keys_stay() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let foreign: Vec<Bytes> = (0..20_000)
        .map(|n| key(format!("other:{n}")))
        .chain([
            key("shop"),
            key("shop;"),
            key("shopx:1"),
            key("Shop:1"),
            key(" shop:1"),
            key(b"\xff\xfeshop:1"),
            key(b"shop\xff:1"),
            key(b"\x80\x81\x82"),
        ])
        .collect();
    let ours: Vec<Bytes> = (0..5_000)
        .map(|n| key(format!("shop:{n}")))
        .chain([
            key("shop:"),
            key(b"shop:\xff\xfe\x00"),
            key("shop:a\r\nb"),
            key("shop:*?[]\\"),
        ])
        .collect();
    fill_in(&store, &foreign).await;
    fill_in(&store, &ours).await;
    server.command(&["RPUSH", "shop:a list", "x"]).unwrap();

    let removed = clear(&store, b"shop:").await.unwrap();
    assert_eq!(removed, ours.len() as u64 + 1);
    assert_eq!(all_keys(&server), foreign.into_iter().collect());
    assert_eq!(clear(&store, b"shop:").await.unwrap(), 0);
}

#[tokio::test]
async fn a_prefix_of_glob_characters_and_any_bytes_is_literal() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    for prefix in [
        b"*:".as_slice(),
        b"?:",
        b"[a]:",
        b"\\:",
        b"\xff*:",
        b"a]-^:",
        b"\0:",
    ] {
        let (ours, foreign) = ([prefix, b"1"].concat(), [b"a".as_slice(), prefix].concat());
        fill_in(&store, &[key(&ours), key(&foreign), key("a:1"), key("b:1")]).await;
        assert_eq!(clear(&store, prefix).await.unwrap(), 1, "{prefix:?}");
        assert_eq!(get(&store, &key(&ours)).await.unwrap(), None);
        assert!(get(&store, &key(&foreign)).await.unwrap().is_some());
        assert_eq!(clear(&store, b"").await.unwrap(), 3);
    }
}

#[tokio::test]
async fn the_server_is_never_asked_for_all_keys_at_once() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let names: Vec<_> = (0..5_000).map(|n| key(format!("shop:{n}"))).collect();
    fill_in(&store, &names).await;
    assert_eq!(clear(&store, b"shop:").await.unwrap(), 5_000);
    assert_eq!(calls(&server, "keys"), 0);
    assert!(
        calls(&server, "scan") >= 5,
        "{} steps",
        calls(&server, "scan")
    );
    assert!(
        calls(&server, "unlink") >= 5,
        "{} removals",
        calls(&server, "unlink")
    );
}

#[tokio::test]
async fn a_million_foreign_keys_stay_and_are_never_shown() {
    const FOREIGN: u64 = 1_000_000;
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    // Every third one is no text, and all of them look like ours from some byte on.
    let script = "for i = 1, 50000 do \
        local n = ARGV[1] * 50000 + i \
        local front = n % 3 == 0 and string.char(255, 254, 128) or 'other:' \
        redis.call('SET', front .. 'shop:' .. n, '') end";
    for round in 0..FOREIGN / 50_000 {
        let round = round.to_string();
        said(
            &server,
            &[b"EVAL", script.as_bytes(), b"0", round.as_bytes()],
        );
    }
    let ours: Vec<_> = (0..5_000).map(|n| key(format!("shop:{n}"))).collect();
    fill_in(&store, &ours).await;
    let steps = Mutex::new(Vec::new());
    let even = |name: &[u8]| {
        assert!(name.starts_with(b"shop:"), "{name:?} was shown");
        name.last().is_some_and(|digit| digit % 2 == 0)
    };
    let progress = |told: Swept| steps.lock().unwrap().push(told);
    let before = info(&server, "stats", "total_net_output_bytes");
    let swept = store.sweep(b"shop:", &even, &progress).await.unwrap();
    let sent = info(&server, "stats", "total_net_output_bytes") - before;
    assert!(
        sent < 1 << 20,
        "{sent} bytes for 5,000 names: the others stay at the server"
    );
    assert_eq!(swept.removed, 2_500);
    assert!(swept.seen >= 5_000, "{swept:?}");
    assert_eq!(calls(&server, "keys"), 0);
    let steps = steps.into_inner().unwrap();
    assert!(steps.len() > 500, "{} steps", steps.len());
    assert_eq!(steps.last(), Some(&swept));
    let Reply::Integer(left) = said(&server, &[b"DBSIZE"]) else {
        panic!("DBSIZE answers with a number");
    };
    assert_eq!(left as u64, FOREIGN + 2_500);
}

#[tokio::test]
async fn keys_of_every_type_are_removed() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    store.delete(&[], Some(&key("shop:counter"))).await.unwrap();
    store.enlist(&key("shop:set"), 7, HOUR).await.unwrap();
    server.command(&["RPUSH", "shop:list", "x"]).unwrap();
    server
        .command(&["XADD", "shop:stream", "*", "f", "x"])
        .unwrap();
    assert_eq!(clear(&store, b"shop:").await.unwrap(), 4);
    assert!(all_keys(&server).is_empty());
}

async fn fill_in(store: &larder_redis::Redis, names: &[Bytes]) {
    let writes: Vec<_> = names
        .iter()
        .map(|name| Write {
            key: name.clone(),
            value: fresh("v"),
            ttl: HOUR,
            tags: None,
        })
        .collect();
    store.set(&writes).await.unwrap();
}

fn all_keys(server: &RedisServer) -> BTreeSet<Bytes> {
    let Reply::List(keys) = server.command(&["KEYS", "*"]).unwrap() else {
        panic!("KEYS answers with a list");
    };
    let bytes = |reply| match reply {
        Reply::Bytes(bytes) => bytes.into(),
        other => panic!("a key is bytes, not {other:?}"),
    };
    keys.into_iter().map(bytes).collect()
}
