//! Promise 1 on a real server: after an invalidation returned, nothing from before it is served
//! or stored, in memory or in Redis, however loads, writes and invalidations interleave.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use fastrand::Rng;
use larder::{Cache, Larder};
use larder_redis::Redis;
use larder_testkit::{RedisServer, seeds};

/// Interleavings, each with a key of its own.
const CASES: usize = 10_000;
/// How many run at the same time.
const AT_ONCE: usize = 50;

type Rows = Cache<u64, u64>;

/// A table of one row, whose value is its version.
#[derive(Clone, Default)]
struct Database(Arc<AtomicU64>);

impl Database {
    fn read(&self) -> u64 {
        self.0.load(SeqCst)
    }

    fn write(&self) -> u64 {
        self.0.fetch_add(1, SeqCst) + 1
    }
}

fn open(server: &RedisServer) -> (Larder, Rows) {
    let redis = Redis::new(&server.url()).unwrap();
    let budget = Duration::from_secs(10);
    let larder = Larder::builder("t")
        .shared(redis)
        .tier_budget(budget)
        .build()
        .unwrap();
    let rows = larder.cache("rows").ttl("1h").grace("1h").build().unwrap();
    (larder, rows)
}

async fn pause(rng: &mut Rng) {
    for _ in 0..rng.usize(0..16) {
        tokio::task::yield_now().await;
    }
}

/// Reads through the cache. The load pauses between the database and its return.
async fn read(rows: &Rows, key: u64, database: &Database, seed: u64) -> u64 {
    let database = database.clone();
    let load = |_| async move {
        let mut rng = Rng::with_seed(seed);
        pause(&mut rng).await;
        let version = database.read();
        pause(&mut rng).await;
        Ok::<_, io::Error>(version)
    };
    *rows.get_or_load(&key, load).await.unwrap()
}

/// Changes the row and then says so, in one of the ways there are. Only a writer that is alone may
/// set its value: of two, the one that sets last need not be the one that wrote last.
async fn write(rows: &Rows, key: u64, database: &Database, rng: &mut Rng, writers: usize) {
    let version = database.write();
    pause(rng).await;
    match rng.u8(0..4) {
        0 if writers == 1 => _ = rows.set(key, version).await.unwrap(),
        1 => {
            let _ = rows.expire(&key).await.unwrap();
            pause(rng).await;
            let _ = rows.invalidate(&key).await.unwrap();
        }
        _ => _ = rows.invalidate(&key).await.unwrap(),
    }
    let seen = read(rows, key, database, rng.u64(..)).await;
    assert!(
        seen >= version,
        "{seen} was served after {version} was invalidated"
    );
}

async fn interleave(rows: Rows, others: Rows, key: u64, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let database = Database::default();
    if rng.bool() {
        read(&rows, key, &database, rng.u64(..)).await;
    }
    let mut tasks = Vec::new();
    for _ in 0..rng.usize(1..4) {
        let (rows, database, mut rng) = (rows.clone(), database.clone(), rng.fork());
        tasks.push(tokio::spawn(async move {
            // Several reads, so that some fall between an invalidation's begin and its end.
            for _ in 0..rng.usize(1..6) {
                pause(&mut rng).await;
                read(&rows, key, &database, rng.u64(..)).await;
            }
        }));
    }
    let writers = rng.usize(1..3);
    for _ in 0..writers {
        let (rows, database, mut rng) = (rows.clone(), database.clone(), rng.fork());
        tasks.push(tokio::spawn(async move {
            pause(&mut rng).await;
            write(&rows, key, &database, &mut rng, writers).await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let newest = database.read();
    assert_eq!(read(&rows, key, &database, seed).await, newest, "served");
    if let Some(stored) = others.get(&key).await.unwrap() {
        assert_eq!(*stored, newest, "stored in Redis");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_old_is_served_or_stored_in_ten_thousand_interleavings() {
    let server = RedisServer::start().unwrap();
    let (_larder, rows) = open(&server);
    // A larder whose memory is empty sees what Redis holds.
    let (_other, others) = open(&server);
    let seeds: Vec<_> = seeds(CASES).collect();
    for (batch, seeds) in seeds.chunks(AT_ONCE).enumerate() {
        let tasks: Vec<_> = seeds
            .iter()
            .enumerate()
            .map(|(at, seed)| {
                let key = (batch * AT_ONCE + at) as u64;
                let case = interleave(rows.clone(), others.clone(), key, seed.number());
                (seed.number(), tokio::spawn(case))
            })
            .collect();
        for (seed, task) in tasks {
            assert!(task.await.is_ok(), "seed {seed}");
        }
    }
}
