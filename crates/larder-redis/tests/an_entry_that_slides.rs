//! Entries that reads prolong, on a server that keeps the time itself.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use larder::clock::{Clock, SystemClock};
use larder::store::Store;
use larder::{Cache, Larder, Loaded, Read, Source, Tiers};
use larder_redis::{BusKind, Redis, RedisOptions};
use larder_testkit::{FaultyStore, ManualClock, Operation, RedisServer, Reply, settle};

const IDLE: Duration = Duration::from_secs(100);
const ENTRY: &[u8] = b"t:c@1:1";

/// A larder over the server on a clock of its own, which says how old entries are; how long they have
/// to live on the server, the server says.
fn over(server: &RedisServer, clock: &Arc<ManualClock>) -> (Larder, Cache<u64, u64>) {
    let larder = Larder::builder("t").clock(clock.clone());
    let larder = larder.shared(store_at(server)).without_backplane();
    let larder = larder.build().unwrap();
    let cache = larder.cache("c").ttl(IDLE).sliding("1h");
    let cache = cache.stale_on_error("1h").memory_ttl("1h");
    (larder.clone(), cache.build().unwrap())
}

/// What is left to a key, in milliseconds.
fn left(server: &RedisServer, key: &[u8]) -> i64 {
    match said(server, &[b"PTTL", key]) {
        Reply::Integer(left) => left,
        other => panic!("{other:?}"),
    }
}

fn keys_like(server: &RedisServer, pattern: &[u8]) -> Vec<Vec<u8>> {
    let Reply::List(keys) = said(server, &[b"KEYS", pattern]) else {
        panic!("KEYS answers with a list");
    };
    let name = |reply| match reply {
        Reply::Bytes(name) => name,
        other => panic!("{other:?}"),
    };
    keys.into_iter().map(name).collect()
}

/// The records of the entry's tags: that of its cache, and its own.
fn records(server: &RedisServer) -> Vec<Vec<u8>> {
    let mut records = keys_like(server, b"t:~*");
    records.retain(|key| said(server, &[b"TYPE", key]) == Reply::Status("string".into()));
    assert_eq!(records.len(), 2, "{records:?}");
    records
}

#[tokio::test]
async fn reads_in_memory_and_on_the_server_prolong_the_entry_and_the_records_of_its_tags() {
    let server = RedisServer::start().unwrap();
    let clock = ManualClock::new();
    let (larder, cache) = over(&server, &clock);
    let load = |_| async { Ok::<_, std::io::Error>(Loaded::value(7).tags(["a"])) };
    cache.get_or_load(&1, load).await.unwrap();
    let most = 100_000;
    let whole = most - 20_000..=most;
    assert!(
        whole.contains(&left(&server, ENTRY)),
        "its idle time, no more"
    );
    let before = said(&server, &[b"GET", ENTRY]);
    for tiers in [Tiers::All, Tiers::Shared] {
        // As if so much time had passed on the server.
        let mut keys = records(&server);
        keys.push(ENTRY.to_vec());
        for key in &keys {
            said(&server, &[b"PEXPIRE", key, b"50000"]);
        }
        clock.advance(IDLE / 2);
        server.command(&["CONFIG", "RESETSTAT"]).unwrap();
        let read = cache.with(Read::new().tiers(tiers)).get_explained(&1).await;
        assert_eq!(read.unwrap().value.as_deref(), Some(&7));
        settle(&larder).await;
        for key in &keys {
            let left = left(&server, key);
            let is_record = *key != ENTRY;
            let kept = whole.contains(&left) || is_record && left > most;
            assert!(kept, "{key:?} has {left} ms after {tiers:?}");
        }
        // The scripts do not read, and nobody writes.
        assert_eq!(calls(&server, "set") + calls(&server, "setrange"), 0);
        let asked = calls(&server, "getrange");
        assert_eq!(asked, if tiers == Tiers::All { 0 } else { 3 }, "{tiers:?}");
    }
    assert_eq!(said(&server, &[b"GET", ENTRY]), before);
    // A second read at once tells the server nothing.
    said(&server, &[b"PEXPIRE", ENTRY, b"50000"]);
    assert!(cache.get(&1).await.unwrap().is_some());
    settle(&larder).await;
    assert!(left(&server, ENTRY) <= 50_000);
}

/// Where the server watches keys, one that was prolonged has changed: every process drops it from
/// memory, looks it up once more, and must not tell the server of that.
#[tokio::test]
async fn a_server_that_watches_is_told_once_in_a_tenth_of_the_idle_time() {
    let server = RedisServer::start().unwrap();
    let options = RedisOptions {
        bus: BusKind::Tracking,
        ..RedisOptions::default()
    };
    let store = Redis::with_options(&server.url(), options).unwrap();
    let counting = FaultyStore::new(store, SystemClock::shared());
    let larder = Larder::builder("t").shared(counting.clone());
    let larder = larder.build().unwrap();
    let cache = larder.cache("c").ttl("3s").sliding("1h");
    let cache: Cache<u64, u64> = cache.memory_ttl("1h").build().unwrap();
    let load = || async { Ok::<_, std::io::Error>(7) };
    cache.get_or_load(&1, |_| load()).await.unwrap();
    let began = CLOCK.monotonic();
    let mut prolonged = 0;
    while prolonged < 5 {
        assert!(since(began) < Duration::from_secs(60));
        for _ in 0..50 {
            assert_eq!(*cache.get_or_load(&1, |_| load()).await.unwrap(), 7);
            tokio::task::yield_now().await;
        }
        // One call for the entry, and one for the record of its cache.
        prolonged = counting.begun(Operation::Touch) / 2;
    }
    let tenths = since(began).as_millis() as u64 / 300;
    let stats = cache.stats();
    println!("{prolonged} times in {tenths} tenths, {stats:?}");
    assert!(
        prolonged <= tenths + 2,
        "{prolonged} times in {tenths} tenths"
    );
    assert_eq!(stats.loads, 1);
    assert!(stats.hits_tiers < 10 * (prolonged + 2), "{stats:?}");
}

#[tokio::test]
async fn unread_it_is_gone_from_the_server_and_a_reader_loads_it_anew() {
    let server = RedisServer::start().unwrap();
    let clock = ManualClock::new();
    let (_larder, cache) = over(&server, &clock);
    let brief = |value| async move {
        let loaded = Loaded::value(value).ttl("300ms");
        Ok::<_, std::io::Error>(loaded)
    };
    cache.get_or_load(&1, |_| brief(7)).await.unwrap();
    let gone = tokio::time::timeout(Duration::from_secs(20), async {
        while said(&server, &[b"EXISTS", ENTRY]) == Reply::Integer(1) {
            tokio::task::yield_now().await;
        }
    });
    gone.await.unwrap();
    clock.advance(Duration::from_millis(300));
    let reader = cache.with(Read::new());
    let told = reader
        .get_or_load_explained(&1, |_| brief(8))
        .await
        .unwrap();
    assert_eq!(
        (told.value.as_deref(), told.outcome.source),
        (Some(&8), Source::Loader)
    );
}

#[tokio::test]
async fn what_stays_for_ever_and_what_is_no_string_is_left_alone() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (ever, list) = (key("ever"), key("list"));
    said(&server, &[b"SET", &ever, &fresh("v")]);
    said(&server, &[b"RPUSH", &list, b"one"]);
    said(&server, &[b"PEXPIRE", &list, b"50000"]);
    store
        .touch(&[ever.clone(), list.clone()], HOUR)
        .await
        .unwrap();
    assert_eq!(left(&server, &ever), -1);
    assert!((1..=50_000).contains(&left(&server, &list)));
}
