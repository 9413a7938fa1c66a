//! Faults 38 and 39: a hot key ends in eight processes at once, and Redis is flushed under load. What
//! reaches the database is one load for each lease, and never more at once than the caches allow.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use larder::clock::{Clock, SystemClock};
use larder::{Cache, CacheBuilder, Larder, Read, Tiers};
use larder_redis::Redis;
use larder_testkit::{Gate, LoadCounter, ManualClock, RedisServer};

type Rows = Cache<u64, u64>;

const PROCESSES: usize = 8;
const READERS: usize = 50;

/// As many larders with connections of their own as there are to be processes.
fn open(
    server: &RedisServer,
    clock: Arc<dyn Clock>,
    build: impl Fn(CacheBuilder<u64, u64>) -> CacheBuilder<u64, u64>,
) -> Vec<(Larder, Rows)> {
    let open = |_| {
        let builder = Larder::builder("t").clock(Arc::clone(&clock));
        let builder = builder.tier_budget(Duration::from_secs(20));
        let builder = builder.shared(Redis::new(&server.url()).unwrap());
        let larder = builder.build().unwrap();
        let rows = build(larder.cache("rows")).build().unwrap();
        (larder, rows)
    };
    (0..PROCESSES).map(open).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_key_that_ends_in_eight_processes_is_loaded_once_for_each_end() {
    let server = RedisServer::start().unwrap();
    let clock = ManualClock::new();
    let processes = open(&server, clock.clone(), |rows| {
        rows.ttl("1m").lease_wait("30s")
    });
    let loads = LoadCounter::new();
    for end in 1..=3 {
        let gate = Gate::new();
        let mut readers = Vec::new();
        for (_, rows) in &processes {
            for _ in 0..READERS {
                let (rows, loads, gate) = (rows.clone(), loads.clone(), gate.clone());
                readers.push(tokio::spawn(async move {
                    let load = |_| async move {
                        let _load = loads.begin();
                        gate.wait().await;
                        Ok::<_, std::io::Error>(end)
                    };
                    *rows.get_or_load(&1, load).await.unwrap()
                }));
            }
        }
        // Whoever leads holds the lease of all others until it is let go.
        gate.arrived(1).await;
        gate.open();
        for reader in readers {
            assert_eq!(reader.await.unwrap(), end);
        }
        assert_eq!(loads.starts() as u64, end, "one load for each end");
        // It ends for all of them at once. Redis has it still, and everybody can see that it is old.
        clock.advance(Duration::from_secs(61));
    }
}

/// How many keys there are, and how many loads each process may run at once.
const KEYS: u64 = 300;
const AT_ONCE: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_under_load_redis_lets_no_more_through_than_the_caches_allow() {
    let server = Arc::new(RedisServer::start().unwrap());
    let clock = Arc::new(SystemClock::new());
    let processes = open(&server, clock, |rows| {
        rows.load_concurrency(AT_ONCE).lease_wait("30s")
    });
    let loads: Vec<LoadCounter> = processes.iter().map(|_| LoadCounter::new()).collect();
    for round in 0..2 {
        let mut readers = Vec::new();
        for (process, ((_, rows), loads)) in processes.iter().zip(&loads).enumerate() {
            for key in 0..KEYS {
                // Each begins elsewhere, so that all of them load.
                let key = (key + process as u64 * KEYS / PROCESSES as u64) % KEYS;
                let (rows, loads) = (rows.clone(), loads.clone());
                readers.push(tokio::spawn(async move {
                    let load = |_| async move {
                        let _load = loads.begin();
                        for _ in 0..20 {
                            tokio::task::yield_now().await;
                        }
                        Ok::<_, std::io::Error>(key)
                    };
                    let below = rows.with(Read::new().tiers(Tiers::Shared));
                    *below.get_or_load(&key, load).await.unwrap()
                }));
            }
        }
        for (number, reader) in readers.into_iter().enumerate() {
            if round == 1 && number == 100 {
                let server = Arc::clone(&server);
                let flushed = move || server.command(&["FLUSHALL"]).unwrap();
                tokio::task::spawn_blocking(flushed).await.unwrap();
            }
            reader.await.unwrap();
        }
    }
    let started: usize = loads.iter().map(LoadCounter::starts).sum();
    assert!(started >= KEYS as usize, "{started} loads");
    for loads in &loads {
        assert!(loads.max_concurrency() <= AT_ONCE);
    }
}
