//! The permissions that the documentation names are enough, and each of them is needed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::*;
use larder::backplane::Replay;
use larder::store::{LeaseToken, Leased, Position, Store, StoreErrorKind, StoreResult};
use larder_redis::{BusKind, Redis, RedisOptions};
use larder_testkit::{Ear, RedisServer, Reply, Subject, store_suite};

/// The lines of the documentation, in words: for the tier, for its bus, and for the other bus.
fn lines() -> [Vec<&'static str>; 3] {
    let text = include_str!("../docs/acl.md");
    let lines = text.lines().filter(|line| line.starts_with("ACL SETUSER"));
    let lines: Vec<_> = lines.map(|line| line.split(' ').collect()).collect();
    lines.try_into().unwrap()
}

fn documented() -> Vec<&'static str> {
    let [tier, ..] = lines();
    tier
}

fn permissions() -> Vec<&'static str> {
    let words = documented().into_iter();
    words.filter_map(|word| word.strip_prefix('+')).collect()
}

/// The user of the documentation, but for one permission.
fn user_without(server: &RedisServer, missing: Option<&str>) -> Redis {
    let missing = missing.map(|name| format!("+{name}"));
    let line: Vec<&str> = documented()
        .into_iter()
        .filter(|word| Some(*word) != missing.as_deref())
        .collect();
    server.command(&["ACL", "DELUSER", "shop"]).unwrap();
    assert_eq!(server.command(&line).unwrap(), Reply::Status("OK".into()));
    Redis::new(&format!("redis://shop:PASSWORD@{}", server.address())).unwrap()
}

mod is_enough_for_the_suite {
    use super::*;

    async fn open() -> Subject {
        let server = RedisServer::start().unwrap();
        let store = user_without(&server, None);
        let subject = Subject::new(Arc::new(store)).with_prefix(*b"shop:");
        subject.keep(server)
    }

    store_suite!(open);
}

/// Does everything that a store does, and returns what failed.
async fn everything(store: &Redis, server: &RedisServer) -> Vec<(StoreErrorKind, String)> {
    let mut failed = Vec::new();
    let mut note = |result: StoreResult<()>| {
        if let Err(error) = result {
            failed.push((error.kind(), error.to_string()));
        }
    };
    let [name, stale_name, low, counter, record, members] =
        ["k", "stale", "minimum", "counter", "record", "members"]
            .map(|name| key(format!("shop:{name}")));
    let tags = |since| tag(&counter, &record, since);
    let token = LeaseToken::random();
    note(store.ping().await);
    note(get(store, &name).await.map(drop));
    let since = lease_at(store, &name, token, &counter).await;
    note(since.clone().map(drop));
    note(
        fill_tagged(store, &name, token, tags(since.ok()), 7)
            .await
            .map(drop),
    );
    // Its record does not live as long as the next value, and has another version.
    server
        .command(&[b"PEXPIRE".as_slice(), &record, b"100000"])
        .unwrap();
    note(
        set_tagged(store, &name, HOUR, tags(None), 8)
            .await
            .map(drop),
    );
    note(set(store, &stale_name, &stale("v")).await);
    for _ in 0..2 {
        note(lease(store, &stale_name, token).await.map(drop));
        note(release(store, &stale_name, token).await);
    }
    let minimum = larder::envelope::Header::minimum(7).to_bytes();
    note(set(store, &low, &bytes::Bytes::copy_from_slice(&minimum)).await);
    server
        .command(&[b"PEXPIRE".as_slice(), &low, b"100000"])
        .unwrap();
    note(lease(store, &low, token).await.map(drop));
    note(expire(store, &name).await);
    note(store.enlist(&members, 7, HOUR).await.map(drop));
    note(invalidate(store, &record, &counter).await);
    note(delete(store, &name).await);
    server
        .command(&[b"SET".as_slice(), &counter, b"foreign"])
        .unwrap();
    note(position(store, &counter).await.map(drop));
    note(clear(store, b"shop:").await.map(drop));
    failed
}

#[tokio::test]
async fn with_all_of_them_nothing_fails() {
    let server = RedisServer::start().unwrap();
    let store = user_without(&server, None);
    assert_eq!(everything(&store, &server).await, []);
}

#[tokio::test]
async fn each_missing_permission_is_a_clear_error() {
    let server = RedisServer::start().unwrap();
    // Larder does without them.
    let spared = [
        "unlink",
        "client|info",
        "client|kill",
        "client|tracking",
        "client|caching",
    ];
    for missing in permissions() {
        server.command(&["FLUSHALL"]).unwrap();
        server.command(&["SCRIPT", "FLUSH"]).unwrap();
        let store = user_without(&server, Some(missing));
        let failed = everything(&store, &server).await;
        if spared.contains(&missing) {
            assert_eq!(failed, [], "without {missing}");
            continue;
        }
        assert!(!failed.is_empty(), "nobody misses {missing}");
        for (kind, error) in failed {
            let expected = match missing {
                "scan" => StoreErrorKind::Unsupported,
                _ => StoreErrorKind::Refused,
            };
            assert_eq!(kind, expected, "without {missing}: {error}");
            // Of what a script may not run, the server does not say the name.
            let is_named = [&format!("'{missing}'"), "user executing the script"]
                .iter()
                .any(|words| error.contains(*words));
            assert!(
                is_named && error.contains("grant the user of the URL larder's commands"),
                "without {missing}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn the_second_line_is_enough_for_the_bus() {
    let server = RedisServer::start().unwrap();
    let store = user_without(&server, None);
    let [_, line, _] = lines();
    assert_eq!(server.command(&line).unwrap(), Reply::Status("OK".into()));
    the_bus_works(&store).await;
    assert_eq!(everything(&store, &server).await, []);
}

#[tokio::test]
async fn the_third_line_is_enough_for_the_bus_that_watches() {
    let server = RedisServer::start().unwrap();
    drop(user_without(&server, None));
    let [.., line] = lines();
    assert_eq!(server.command(&line).unwrap(), Reply::Status("OK".into()));
    let url = format!("redis://shop:PASSWORD@{}", server.address());
    let options = RedisOptions {
        bus: BusKind::Tracking,
        ..RedisOptions::default()
    };
    let store = Redis::with_options(&url, options).unwrap();
    the_bus_works(&store).await;
    assert_eq!(everything(&store, &server).await, []);
}

async fn the_bus_works(store: &Redis) {
    let bus = store.backplane().unwrap();
    let mut listening = Ear::open(bus.clone(), "shop").await;
    assert_ne!(listening.server(), 0);
    let position = bus.publish("shop", "m".into()).await.unwrap();
    assert_eq!(listening.message().await, (Some(position), "m".into()));
    let before = Position {
        count: 0,
        ..position
    };
    let replay = bus.replay("shop", before, 10).await;
    assert_eq!(
        replay.unwrap(),
        Replay::Complete(vec![(position, "m".into())])
    );
    assert_eq!(bus.beat("shop", "b".into()).await.unwrap(), position);
}

#[tokio::test]
async fn keys_of_others_are_out_of_reach() {
    let server = RedisServer::start().unwrap();
    let store = user_without(&server, None);
    let theirs = key("other:k");
    for error in [
        refused(set(&store, &theirs, &fresh("v")).await),
        refused(lease(&store, &theirs, LeaseToken::random()).await),
        refused(delete(&store, &theirs).await),
        refused(invalidate(&store, &key("shop:k"), &theirs).await),
    ] {
        let error = error.to_string();
        assert!(
            error.contains("NOPERM") && error.contains("larder's commands, keys"),
            "{error}"
        );
    }
    // Names may be seen, and nothing else.
    assert_eq!(clear(&store, b"shop:").await.unwrap(), 0);
}

#[tokio::test]
async fn without_lua_plain_reads_writes_and_deletes_work() {
    let without_lua = [
        "--rename-command",
        "EVAL",
        "",
        "--rename-command",
        "EVALSHA",
        "",
    ];
    let server = RedisServer::start_with(&without_lua).unwrap();
    let store = store_at(&server);
    let (name, value) = (key("k"), fresh("v"));
    set(&store, &name, &value).await.unwrap();
    assert_eq!(get(&store, &name).await.unwrap(), Some(value));
    for error in [
        refused(lease(&store, &key("absent"), LeaseToken::random()).await),
        refused(fill(&store, &name, LeaseToken::random(), &fresh("w")).await),
        refused(expire(&store, &name).await),
        refused(release(&store, &name, LeaseToken::random()).await),
        refused(set_tagged(&store, &name, HOUR, tag(&key("c"), &key("r"), None), 7).await),
        refused(store.enlist(&key("members"), 7, HOUR).await),
    ] {
        let error = error.to_string();
        assert!(
            error.contains("unknown command") && error.contains("Lua"),
            "{error}"
        );
    }
    invalidate(&store, &name, &key("counter")).await.unwrap();
    assert_eq!(get(&store, &name).await.unwrap(), None);
    assert_eq!(clear(&store, b"counter").await.unwrap(), 1);
}

#[tokio::test]
async fn without_scan_a_sweep_is_unsupported_and_the_rest_works() {
    let server = RedisServer::start_with(&["--rename-command", "SCAN", ""]).unwrap();
    let store = store_at(&server);
    let (name, token) = (key("k"), LeaseToken::random());
    assert_eq!(lease(&store, &name, token).await.unwrap(), acquired());
    assert_eq!(
        fill(&store, &name, token, &fresh("v")).await.unwrap(),
        stored()
    );
    let error = clear(&store, b"k").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("SCAN"), "{error}");
    let leased = lease(&store, &name, token).await.unwrap();
    assert!(matches!(leased, Leased::Value(_)), "{leased:?}");
}
