//! A bus that watches keys: whoever changes the tier, by whatever program, memory follows.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "it says how long things took")]

mod common;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use common::{CLOCK, calls, info, median, since};
use larder::clock::Clock;
use larder::{Cache, Larder, Loaded};
use larder_redis::{BusKind, Redis, RedisOptions};
use larder_testkit::{ChaosProxy, Direction, LinkFault, RedisServer, seeds};

/// Three times what is promised, as elsewhere.
const FRESH_WITHIN: Duration = Duration::from_millis(150);
const EMPTY_WITHIN: Duration = Duration::from_millis(300);
const SUSPECT_WITHIN: Duration = Duration::from_secs(9);
const PATIENCE: Duration = Duration::from_secs(20);

type Rows = Cache<u64, u64>;

/// A process that watches, and the database that it loads from.
struct Process {
    larder: Larder,
    rows: Rows,
    /// The version of every row.
    database: Arc<AtomicU64>,
}

fn process(address: SocketAddr, database: &Arc<AtomicU64>) -> Process {
    let options = RedisOptions {
        bus: BusKind::Tracking,
        ..RedisOptions::default()
    };
    let redis = Redis::with_options(&format!("redis://{address}"), options).unwrap();
    let larder = Larder::builder("t").shared(redis).build().unwrap();
    Process {
        rows: larder.cache("rows").ttl("1h").build().unwrap(),
        larder,
        database: Arc::clone(database),
    }
}

impl Process {
    async fn load(&self, row: u64) -> u64 {
        let database = Arc::clone(&self.database);
        let load = self.rows.get_or_load(&row, move |_| async move {
            let version = database.load(SeqCst);
            // Whoever changes the row now must win over this load.
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(Loaded::value(version).tags(["all"]))
        });
        load.await.unwrap().map_or(0, |version| *version)
    }

    fn is_healthy(&self) -> bool {
        self.larder.bus().is_some_and(|bus| bus.healthy)
    }

    /// Loads until the row is in memory and memory is believed.
    async fn holds(&self, row: u64) -> u64 {
        until("the row is in memory", PATIENCE, async || {
            self.load(row).await;
            self.is_healthy() && self.rows.get_in_memory(&row).is_some()
        })
        .await;
        *self.rows.get_in_memory(&row).unwrap()
    }

    /// How long it takes until memory does not hold the old version any more.
    async fn forgets(&self, row: u64, old: u64) -> Duration {
        let began = CLOCK.monotonic();
        until("the old version is gone", PATIENCE, async || {
            self.rows
                .get_in_memory(&row)
                .is_none_or(|found| *found != old)
        })
        .await;
        since(began)
    }
}

async fn until(what: &str, patience: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(patience, async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_ok(), "{what}: not within {patience:?}");
}

fn database() -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_delete_or_write_is_followed() {
    let server = RedisServer::start().unwrap();
    let database = database();
    let process = process(server.address(), &database);
    let foreign: [&[&str]; 6] = [
        &["DEL", "t:rows@1:7"],
        &["SET", "t:rows@1:7", "what somebody else writes"],
        &["PEXPIRE", "t:rows@1:7", "1"],
        &["RENAME", "t:rows@1:7", "elsewhere"],
        &["DEL", "t:~t%3Aall"],
        &["DEL", "t:~c%3Arows"],
    ];
    let mut took = Vec::new();
    for command in foreign.iter().cycle().take(30) {
        let old = process.holds(7).await;
        database.fetch_add(1, SeqCst);
        server.command(command).unwrap();
        took.push(process.forgets(7, old).await);
        // A key may expire a moment after it was told of.
        until("the row is fresh", PATIENCE, async || {
            process.load(7).await == old + 1
        })
        .await;
    }
    println!("forgotten after {took:?}");
    assert!(median(took) < FRESH_WITHIN);
}

/// From Redis 7.2 on a server watches what a script reads, and not all that it is given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_is_looked_at_so_that_it_is_watched() {
    let server = RedisServer::start().unwrap();
    let process = process(server.address(), &database());
    let _ = process.rows.set(1, 1).await.unwrap();
    let read = calls(&server, "getrange");
    let _ = process.rows.set(7, 1).await.unwrap();
    let record_and_entry = 2;
    assert_eq!(calls(&server, "getrange") - read, record_and_entry);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_empties_memory() {
    let server = RedisServer::start().unwrap();
    let process = process(server.address(), &database());
    let mut took = Vec::new();
    for flush in ["FLUSHALL", "FLUSHDB"].iter().cycle().take(10) {
        for row in 0..100 {
            process.holds(row).await;
        }
        server.command(&[flush]).unwrap();
        let began = CLOCK.monotonic();
        until("memory is empty", PATIENCE, async || {
            (0..100).all(|row| process.rows.get_in_memory(&row).is_none())
        })
        .await;
        took.push(since(began));
    }
    println!("empty after {took:?}");
    assert!(median(took) < EMPTY_WITHIN);
}

/// The answer to a read and the news that it is outdated, in one segment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_and_its_invalidation_may_arrive_together() {
    let server = RedisServer::start().unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    let database = database();
    let [watching, filling] =
        [proxy.address(), server.address()].map(|address| Arc::new(process(address, &database)));
    for row in 0..50 {
        // Joined, with nothing of this row in memory.
        watching.holds(1_000).await;
        let old = filling.holds(row).await;
        let received = || proxy.received(Direction::ToClient);
        let reads = calls(&server, "getrange") + calls(&server, "evalsha");
        proxy.inject([Direction::ToClient], LinkFault::Hold);
        let reader = {
            let watching = Arc::clone(&watching);
            tokio::spawn(async move { watching.load(row).await })
        };
        until("the read is answered", PATIENCE, async || {
            calls(&server, "getrange") + calls(&server, "evalsha") > reads
        })
        .await;
        let answered = received();
        database.fetch_add(1, SeqCst);
        server
            .command(&["DEL", &format!("t:rows@1:{row}")])
            .unwrap();
        until("the push is on its way", PATIENCE, async || {
            received() > answered
        })
        .await;
        proxy.heal();
        let read = reader.await.unwrap();
        assert!(read == old || read == old + 1, "row {row}: {read}");
        until("the next read is fresh", FRESH_WITHIN * 10, async || {
            watching.load(row).await == old + 1
        })
        .await;
    }
}

/// Readers and a writer who knows nothing of larder, in every order that chance brings.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_stale_stays_whoever_writes() {
    const ROUNDS: u64 = 3_000;
    let server = RedisServer::start().unwrap();
    let database = database();
    let process = Arc::new(process(server.address(), &database));
    process.holds(0).await;
    let client = redis::Client::open(server.url()).unwrap();
    let mut foreign = client.get_multiplexed_async_connection().await.unwrap();
    for seed in seeds(1) {
        let mut rng = seed.rng();
        let mut longest = Duration::ZERO;
        for round in 0..ROUNDS {
            let row = rng.u64(..20);
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    let (process, pause) = (Arc::clone(&process), rng.u64(..12));
                    tokio::spawn(async move {
                        for _ in 0..pause {
                            tokio::task::yield_now().await;
                        }
                        process.load(row).await;
                    })
                })
                .collect();
            for _ in 0..rng.u64(..12) {
                tokio::task::yield_now().await;
            }
            let version = database.fetch_add(1, SeqCst) + 1;
            let key = format!("t:rows@1:{row}");
            let command = match rng.u8(..3) {
                0 => redis::cmd("SET").arg(key).arg("foreign").to_owned(),
                1 => redis::cmd("UNLINK").arg(key).to_owned(),
                _ => redis::cmd("DEL").arg(key).to_owned(),
            };
            let _: redis::Value = command.query_async(&mut foreign).await.unwrap();
            let began = CLOCK.monotonic();
            for reader in readers {
                reader.await.unwrap();
            }
            until(
                &format!("round {round} of {seed:?} is fresh"),
                PATIENCE,
                async || process.load(row).await >= version,
            )
            .await;
            longest = longest.max(since(began));
        }
        println!("{ROUNDS} rounds, the last fresh after {longest:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_while_the_connection_is_down_is_noticed() {
    let server = RedisServer::start().unwrap();
    let database = database();
    let process = process(server.address(), &database);
    for kill in [
        &["CLIENT", "KILL", "TYPE", "normal"][..],
        &["CLIENT", "KILL", "TYPE", "normal"],
    ] {
        let old = process.holds(7).await;
        server.command(kill).unwrap();
        database.fetch_add(1, SeqCst);
        server.command(&["DEL", "t:rows@1:7"]).unwrap();
        until("the row is fresh", PATIENCE, async || {
            process.holds(7).await == old + 1
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_makes_memory_suspect() {
    let server = RedisServer::start().unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    let database = database();
    let process = process(proxy.address(), &database);
    let old = process.holds(7).await;
    proxy.inject(Direction::BOTH, LinkFault::Blackhole);
    database.fetch_add(1, SeqCst);
    server.command(&["DEL", "t:rows@1:7"]).unwrap();
    let began = CLOCK.monotonic();
    until("memory is suspect", SUSPECT_WITHIN, async || {
        !process.is_healthy()
    })
    .await;
    println!("suspect after {:?}", since(began));
    proxy.heal();
    proxy.reset_connections();
    // The tier may be out of use for some time yet: until then nobody can be asked.
    until("the row is fresh", PATIENCE, async || {
        process.holds(7).await == old + 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgets_what_it_watches_costs_hits_and_nothing_else() {
    let server = RedisServer::start_with(&["--tracking-table-max-keys", "5"]).unwrap();
    let database = database();
    let process = process(server.address(), &database);
    process.load(0).await;
    for version in 2..20 {
        for row in 0..50 {
            process.load(row).await;
        }
        database.store(version, SeqCst);
        for row in 0..50 {
            server
                .command(&["DEL", &format!("t:rows@1:{row}")])
                .unwrap();
        }
        for row in 0..50 {
            until("the row is fresh", PATIENCE, async || {
                process.load(row).await == version
            })
            .await;
        }
    }
    assert!(info(&server, "stats", "tracking_total_keys") <= 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_tell_each_other_as_on_any_bus() {
    let server = RedisServer::start().unwrap();
    let database = database();
    let all = [(); 3].map(|()| process(server.address(), &database));
    let mut took = Vec::new();
    for round in 0..30 {
        let teller = &all[round % 3];
        for process in &all {
            let version = database.load(SeqCst);
            until("all hold the version", PATIENCE, async || {
                process.holds(7).await == version
            })
            .await;
        }
        let old = database.fetch_add(1, SeqCst);
        let receipt = match round % 4 {
            0 => teller.rows.invalidate(&7).await,
            1 => teller.larder.invalidate_tag("all").await,
            2 => teller.rows.clear().await,
            _ => teller.rows.invalidate_matching("*").await,
        };
        assert!(receipt.unwrap().is_acked());
        for process in &all {
            took.push(process.forgets(7, old).await);
        }
    }
    println!("forgotten after at most {:?}", took.iter().max());
    assert!(median(took) < FRESH_WITHIN);
    for process in &all {
        let bus = process.larder.bus().unwrap();
        assert!(
            bus.heard > 0 && bus.missing == 0 && bus.unreadable == 0,
            "{bus:?}"
        );
    }
}
