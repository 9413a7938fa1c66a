//! Records of tags and counters that vanish: entries become misses, and none comes back to life.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use larder::envelope::Header;
use larder::store::{LeaseToken, TagRecord};
use larder_redis::Redis;
use larder_testkit::{RedisServer, Reply};

/// The version of its tag that an entry carries.
async fn carried(store: &Redis, name: &Bytes) -> Option<u64> {
    let value = get(store, name).await.unwrap()?;
    let word = value.get(Header::LEN..)?.first_chunk()?;
    Some(u64::from_be_bytes(*word))
}

async fn record(store: &Redis, name: &Bytes) -> Option<TagRecord> {
    TagRecord::parse(&get(store, name).await.unwrap()?)
}

fn pttl(server: &RedisServer, name: &Bytes) -> Duration {
    match said(server, &[b"PTTL", name]) {
        Reply::Integer(left) => Duration::from_millis(left.try_into().unwrap()),
        other => panic!("PTTL answers with a number, not {other:?}"),
    }
}

#[tokio::test]
async fn a_record_that_somebody_deleted_makes_its_entries_misses() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (old, new, counter, name) = (key("old"), key("new"), key("counter"), key("record"));
    let tags = tag(&counter, &name, None);
    set_tagged(&store, &old, HOUR, tags.clone(), 7)
        .await
        .unwrap();
    said(&server, &[b"DEL", &name]);
    assert_eq!(record(&store, &name).await, None, "which makes it a miss");

    // The next fill makes another record, and the old entry does not match that either.
    let token = LeaseToken::random();
    let since = lease_at(&store, &new, token, &counter).await.unwrap();
    let tags = tag(&counter, &name, Some(since));
    let filled = fill_tagged(&store, &new, token, tags, 8).await.unwrap();
    assert_eq!(
        filled,
        Some(8),
        "nothing was invalidated, so it is not late"
    );
    assert_eq!(carried(&store, &old).await, Some(7));
    assert_eq!(record(&store, &name).await.unwrap().version, 8);
}

#[tokio::test]
async fn eviction_revives_nothing() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let counter = key("counter");
    let names: Vec<[Bytes; 2]> = (0..400)
        .map(|n| [key(format!("entry:{n}")), key(format!("tag:{n}"))])
        .collect();
    for (n, [entry, name]) in names.iter().enumerate() {
        let tags = tag(&counter, name, None);
        set_tagged(&store, entry, HOUR, tags, n as u64)
            .await
            .unwrap();
    }
    let before: HashMap<_, _> = invalid_and_valid(&store, &names).await;
    assert!(before.values().all(|valid| *valid));
    said(
        &server,
        &[b"CONFIG", b"SET", b"maxmemory-policy", b"allkeys-random"],
    );
    // Room for less than there is: about half of everything has to go.
    let over = said(&server, &[b"EVAL", b"return redis.call('DBSIZE')", b"0"]);
    assert!(matches!(over, Reply::Integer(801)), "{over:?}");
    evict_half(&server, &store).await;
    said(&server, &[b"CONFIG", b"SET", b"maxmemory", b"0"]);

    let after = invalid_and_valid(&store, &names).await;
    let lost = after.values().filter(|valid| !**valid).count();
    assert!(lost > 0, "some entries outlived their records");
    // Each tag is used again; no entry from before matches unless its record was there all along.
    for (n, [entry, name]) in names.iter().enumerate() {
        let tags = tag(&counter, name, None);
        let other = key(format!("other:{n}"));
        let proposed = 1_000_000 + n as u64;
        set_tagged(&store, &other, HOUR, tags, proposed)
            .await
            .unwrap();
        let in_force = record(&store, name).await.unwrap().version;
        let is_valid = carried(&store, entry).await == Some(in_force);
        assert_eq!(is_valid, after.get(entry) == Some(&true), "{entry:?}");
    }
}

/// Which entries are there, and whether each is valid.
async fn invalid_and_valid(store: &Redis, names: &[[Bytes; 2]]) -> HashMap<Bytes, bool> {
    let mut found = HashMap::new();
    for [entry, name] in names {
        if let Some(carried) = carried(store, entry).await {
            let record = record(store, name).await;
            let valid = record.is_some_and(|record| record.version == carried);
            found.insert(entry.clone(), valid);
        }
    }
    found
}

/// Lowers the memory limit step by step until enough was evicted.
async fn evict_half(server: &RedisServer, store: &Redis) {
    let mut limit = info(server, "memory", "used_memory");
    for _ in 0..1_000 {
        if info(server, "stats", "evicted_keys") > 300 {
            return;
        }
        limit -= 1_000;
        let limit = limit.to_string();
        said(server, &[b"CONFIG", b"SET", b"maxmemory", limit.as_bytes()]);
        // Eviction happens before a command; whether this one is refused does not matter.
        let _ = get(store, &key("anything")).await;
    }
    panic!("nothing was evicted");
}

#[tokio::test]
async fn a_lost_counter_refuses_what_was_being_loaded() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (entry, counter, name) = (key("entry"), key("counter"), key("record"));
    for lost in [[b"DEL".as_slice(), b"counter"].as_slice(), &[b"FLUSHALL"]] {
        let token = LeaseToken::random();
        let tags = tag(&counter, &name, None);
        set_tagged(&store, &key("other"), HOUR, tags, 7)
            .await
            .unwrap();
        let since = lease_at(&store, &entry, token, &counter).await.unwrap();
        said(&server, lost);
        let tags = tag(&counter, &name, Some(since));
        let filled = fill_tagged(&store, &entry, token, tags, 8).await.unwrap();
        assert_eq!(filled, None);
        assert_ne!(
            position(&store, &counter).await.unwrap().incarnation,
            since.incarnation
        );
        delete(&store, &entry).await.unwrap();
    }
}

#[tokio::test]
async fn a_restarted_server_begins_another_incarnation() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (entry, counter) = (key("entry"), key("counter"));
    invalidate(&store, &entry, &counter).await.unwrap();
    let before = position(&store, &counter).await.unwrap();
    server.restart().unwrap();
    heals_within(&store, Duration::from_secs(10)).await;
    let after = position(&store, &counter).await.unwrap();
    assert_ne!(after.incarnation, before.incarnation);
}

#[tokio::test]
async fn records_are_kept_twice_as_long_as_their_values_and_an_hour_at_least() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (entry, counter, name) = (key("entry"), key("counter"), key("record"));
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let used = async |ttl: Duration| {
        let tags = tag(&counter, &name, None);
        set_tagged(&store, &entry, ttl, tags, 7).await.unwrap();
        pttl(&server, &name)
    };
    let within = |found: Duration, least: Duration, most: Duration| {
        assert!(found > least && found <= most, "{found:?}");
    };
    within(used(minutes(1)).await, minutes(59), minutes(60));
    within(used(minutes(50)).await, minutes(59), minutes(60));
    within(used(minutes(90)).await, minutes(179), minutes(180));
    within(used(minutes(100)).await, minutes(179), minutes(180));
    // A hundred years are the longest that Redis is asked for.
    let years = minutes(60 * 24 * 365 * 100);
    within(used(Duration::MAX).await, years - minutes(1), years);
    said(&server, &[b"PERSIST", &name]);
    let tags = tag(&counter, &name, None);
    set_tagged(&store, &entry, HOUR, tags, 7).await.unwrap();
    assert_eq!(said(&server, &[b"PTTL", &name]), Reply::Integer(-1));
    assert_eq!(said(&server, &[b"PTTL", &counter]), Reply::Integer(-1));
}
