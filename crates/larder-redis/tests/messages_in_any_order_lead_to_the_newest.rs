//! Fault 7: the messages of the bus come twice and in any order. Two processes, and the tier below
//! them, end at the highest version all the same.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use fastrand::Rng;
use larder::clock::{Clock, SystemClock};
use larder::{Cache, Larder, Loaded};
use larder_redis::{Redis, RedisBus};
use larder_testkit::{FaultyBus, RedisServer, seeds, settle};

const ROUNDS: usize = 60;
const KEYS: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(30);

type Rows = Cache<u64, u64>;
type Line = FaultyBus<RedisBus>;

fn open(server: &RedisServer) -> (Larder, Line, Rows) {
    let line = FaultyBus::new(RedisBus::new(&server.url()).unwrap());
    let builder = Larder::builder("t").tier_budget(Duration::from_secs(5));
    let builder = builder.shared(Redis::new(&server.url()).unwrap());
    let larder = builder.backplane(line.clone()).build().unwrap();
    let rows = larder.cache("rows").ttl("1h").memory_ttl("1h");
    let rows = rows.build().unwrap();
    (larder, line, rows)
}

async fn until_healthy(larder: &Larder) {
    let clock = SystemClock::new();
    while !larder.bus().is_some_and(|bus| bus.healthy) {
        assert!(
            clock.monotonic() < PATIENCE.as_millis() as u64,
            "{larder:?}"
        );
        clock.sleep(Duration::from_millis(2)).await;
    }
}

async fn load(rows: &Rows, key: u64, version: &AtomicU64) -> u64 {
    let found = version.load(SeqCst);
    let load = |_| async move { Ok::<_, io::Error>(Loaded::value(found).version(found)) };
    rows.get_or_load(&key, load)
        .await
        .unwrap()
        .map_or(0, |found| *found)
}

/// The kinds of a change: without a version, and with one.
const ANY: Range<u8> = 0..4;
const VERSIONED: Range<u8> = 1..4;

/// One change by one of the two, with a version or without a value.
async fn change(rows: &Rows, key: u64, version: &AtomicU64, kinds: Range<u8>, rng: &mut Rng) {
    let new = version.fetch_add(1, SeqCst) + 1;
    let receipt = match rng.u8(kinds) {
        0 => rows.invalidate(&key).await,
        1 => rows.invalidate_before(&key, new).await,
        _ => rows.set(key, Loaded::value(new).version(new)).await,
    };
    assert!(receipt.unwrap().is_acked());
    if rng.bool() {
        load(rows, key, version).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_end_at_the_highest_version_however_messages_come() {
    let server = RedisServer::start().unwrap();
    let (one, one_line, rows_one) = open(&server);
    let (two, two_line, rows_two) = open(&server);
    let all = [(&one, &one_line, &rows_one), (&two, &two_line, &rows_two)];
    let versions: Vec<_> = (0..KEYS).map(|_| AtomicU64::new(1)).collect();
    for (larder, _, rows) in all {
        for key in 0..KEYS {
            load(rows, key, &versions[key as usize]).await;
        }
        until_healthy(larder).await;
    }
    for seed in seeds(ROUNDS) {
        let mut rng = seed.rng();
        for (_, line, _) in all {
            line.duplicate_next(rng.u64(0..20));
            line.hold();
        }
        for _ in 0..rng.usize(2..12) {
            let (_, _, rows) = all[rng.usize(0..2)];
            let key = rng.u64(0..KEYS);
            change(rows, key, &versions[key as usize], ANY, &mut rng).await;
        }
        // Both write the highest versions of one key at the same time. Without a version an invalidation
        // could come first, and what the other writes would stand.
        let key = rng.u64(0..KEYS);
        let mut forks = [rng.fork(), rng.fork()];
        let [first, second] = &mut forks;
        tokio::join!(
            change(&rows_one, key, &versions[key as usize], VERSIONED, first),
            change(&rows_two, key, &versions[key as usize], VERSIONED, second)
        );
        for (_, line, _) in all {
            line.release_shuffled(rng.u64(..));
        }
        converge(&all, &versions, seed.number()).await;
    }
    let duplicates: u64 = all
        .iter()
        .map(|(larder, ..)| larder.bus().unwrap().duplicates)
        .sum();
    let heard: u64 = all
        .iter()
        .map(|(larder, ..)| larder.bus().unwrap().heard)
        .sum();
    assert!(duplicates > 0 && heard > 0, "{duplicates} {heard}");
}

/// Everything was told: one more message of the other is its last, and whoever has heard that has heard
/// all.
async fn converge(all: &[(&Larder, &Line, &Rows); 2], versions: &[AtomicU64], seed: u64) {
    for (larder, ..) in all {
        until_healthy(larder).await;
    }
    for (at, (larder, _, rows)) in all.iter().enumerate() {
        let (other, ..) = all[1 - at];
        let receipt = other.invalidate_tag("nobody has it").await.unwrap();
        let heard = larder::Read::new().after(receipt.token().unwrap());
        for key in 0..KEYS {
            let newest = versions[key as usize].load(SeqCst);
            let load = |_| async move { Ok::<_, io::Error>(Loaded::value(newest).version(newest)) };
            let read = rows.with(heard);
            let seen = read.get_or_load(&key, load).await.unwrap();
            assert_eq!(seen.as_deref(), Some(&newest), "{key} at {at}, seed {seed}");
            let kept = rows.get(&key).await.unwrap();
            assert_eq!(kept.as_deref(), Some(&newest), "{key} at {at}, seed {seed}");
        }
        settle(larder).await;
    }
}
