//! Fault 2, and more of fault 1, on a real server: a reader or a background refresh pauses between
//! the database and the fill, while the row is updated and invalidated by tag, group, pattern, clear
//! or key through another process. Nothing old is served or stored afterwards.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use fastrand::Rng;
use larder::{Cache, Larder, Loaded, Read, Receipt, Tiers};
use larder_redis::Redis;
use larder_testkit::{RedisServer, seeds, settle};

/// Interleavings, each with a row of its own.
const CASES: usize = 5_000;
/// How many run at the same time.
const AT_ONCE: usize = 50;
/// The ways to invalidate; those at the same time do so in the same way.
const WAYS: [&str; 5] = ["key", "tag", "group", "clear", "pattern"];

type Rows = Cache<u64, u64>;
type Process = (Larder, Rows);

fn open(server: &RedisServer) -> Process {
    let builder = Larder::builder("t").tier_budget(Duration::from_secs(10));
    let builder = builder.shared(Redis::new(&server.url()).unwrap());
    let larder = builder.build().unwrap();
    let rows = larder
        .cache("rows")
        .ttl("1h")
        .grace("1h")
        .lease_wait("200ms");
    let rows = rows.groups(|key| vec![format!("g{key}")]);
    let rows = rows.build().unwrap();
    (larder, rows)
}

async fn pause(rng: &mut Rng) {
    for _ in 0..rng.usize(0..16) {
        tokio::task::yield_now().await;
    }
}

/// Reads through the cache. The load pauses between the database and its return.
async fn read(rows: &Rows, key: u64, version: &Arc<AtomicU64>, how: Read, rng: &mut Rng) -> u64 {
    let (version, mut rng) = (Arc::clone(version), rng.fork());
    let load = |_| async move {
        pause(&mut rng).await;
        let found = version.load(SeqCst);
        pause(&mut rng).await;
        Ok::<_, io::Error>(Loaded::value(found).tags([format!("t{key}")]))
    };
    let found = rows.with(how).get_or_load(&key, load).await.unwrap();
    *found.unwrap()
}

async fn invalidate((larder, rows): &Process, key: u64, way: &str) -> Receipt {
    let receipt = match way {
        "key" => rows.invalidate(&key).await,
        "tag" => larder.invalidate_tag(&format!("t{key}")).await,
        "group" => rows.invalidate_group(&format!("g{key}")).await,
        "clear" => rows.clear().await,
        _ => rows.invalidate_matching(&key.to_string()).await,
    };
    receipt.unwrap()
}

async fn interleave(pair: Arc<[Process; 2]>, key: u64, way: &'static str, mut rng: Rng) {
    let version = Arc::new(AtomicU64::new(1));
    let (writer, reader) = (rng.usize(0..2), rng.usize(0..2));
    if rng.bool() {
        // Its readers are served what is stale, and refresh it in the background.
        read(&pair[reader].1, key, &version, Read::new(), &mut rng).await;
        let _ = pair[reader].1.expire(&key).await.unwrap();
    }
    let readers: Vec<_> = (0..rng.usize(1..4))
        .map(|_| {
            let (pair, version, mut rng) = (Arc::clone(&pair), Arc::clone(&version), rng.fork());
            tokio::spawn(async move {
                for _ in 0..rng.usize(1..4) {
                    pause(&mut rng).await;
                    read(&pair[reader].1, key, &version, Read::new(), &mut rng).await;
                }
            })
        })
        .collect();
    pause(&mut rng).await;
    let newest = version.fetch_add(1, SeqCst) + 1;
    let receipt = invalidate(&pair[writer], key, way).await;
    let heard = Read::new().after(receipt.token().unwrap());
    for (at, how) in [(writer, Read::new()), (1 - writer, heard), (reader, heard)] {
        let seen = read(&pair[at].1, key, &version, how, &mut rng).await;
        assert_eq!(seen, newest, "by {way}, at {at}");
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_old_is_served_or_stored_in_five_thousand_interleavings() {
    let server = RedisServer::start().unwrap();
    let pair = Arc::new([open(&server), open(&server)]);
    let seeds: Vec<_> = seeds(CASES).collect();
    for (batch, seeds) in seeds.chunks(AT_ONCE).enumerate() {
        let way = WAYS[batch % WAYS.len()];
        let keys = (batch * AT_ONCE) as u64..;
        let tasks: Vec<_> = keys
            .zip(seeds)
            .map(|(key, seed)| {
                let case = interleave(Arc::clone(&pair), key, way, seed.rng());
                (key, seed.number(), tokio::spawn(case))
            })
            .collect();
        let mut keys = Vec::new();
        for (key, seed, task) in tasks {
            assert!(task.await.is_ok(), "by {way}, seed {seed}");
            keys.push((key, seed));
        }
        // Refreshes in the background have ended, too: all that is left is new.
        for (larder, _) in &*pair {
            settle(larder).await;
        }
        for (key, seed) in keys {
            for (_, rows) in &*pair {
                for tiers in [Tiers::All, Tiers::Shared] {
                    let left = rows.with(Read::new().tiers(tiers)).get(&key).await.unwrap();
                    let old = left.filter(|version| **version != 2);
                    assert_eq!(old, None, "by {way}, left in {tiers:?}, seed {seed}");
                }
            }
        }
    }
}
