//! The whole read path beside what engineers write by hand, beside other caches of several tiers,
//! and beside a bare GET.
//!
//! `read-path [--write FILE]` prints a table; with `--write` it also writes FILE.

mod memory;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use larder::{Cache, Larder, Read, Tiers};
use larder_bench::Result;
use larder_bench::hand_written::HandWritten;
use larder_bench::report::{Row, destination, load, locked, machine, table, write};
use larder_bench::rounds::{Measuring, interleave, median_in_task};
use larder_bench::workload::{self, Page};
use larder_redis::Redis;
use larder_testkit::RedisServer;
use redis::aio::MultiplexedConnection;

use self::memory::TOGETHER;

/// Reads per round that Redis answers.
const REDIS_READS: usize = 5_000;
/// Callers of one missing key.
const CALLERS: usize = 200;
/// How long the load of the missing key takes: all callers are there before it ends.
const LOAD: Duration = Duration::from_millis(100);

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let report = destination(std::env::args().skip(1))?;
    let load = load();
    let server = RedisServer::start()?;
    let subjects = Subjects::new(&server).await?;
    let mut rows = memory::rows(&subjects).await?;
    rows.extend(subjects.redis_hits().await?);
    rows.extend(subjects.missing_key().await?);
    let table = table(&rows);
    print!("{table}");
    println!("load of the machine before the run: {load}");
    report.map_or(Ok(()), |path| {
        write(&path, "Read path", &section(&load, &table))
    })
}

/// What is compared, every key resident in all of it.
struct Subjects {
    keys: Arc<[String]>,
    larder: Cache<String, Page>,
    hand_written: HandWritten,
    redis: MultiplexedConnection,
}

impl Subjects {
    async fn new(server: &RedisServer) -> Result<Self> {
        let client = redis::Client::open(server.url())?;
        let larder = Larder::builder("bench")
            .shared(Redis::new(&server.url())?)
            .build()?;
        let subjects = Self {
            keys: workload::keys().into(),
            // Longer than the benchmark, which is about what memory holds.
            larder: larder.cache("page").memory_ttl("1h").build()?,
            hand_written: HandWritten::new(client.get_connection_manager().await?),
            redis: client.get_multiplexed_async_connection().await?,
        };
        for (number, key) in subjects.keys.iter().enumerate() {
            let _ = subjects.larder.set(key.clone(), Page::of(number)).await?;
            subjects
                .hand_written
                .get_or_load(key, async || Ok(Page::of(number)))
                .await?;
        }
        Ok(subjects)
    }

    async fn redis_hits(&self) -> Result<Vec<Row>> {
        let draws: Arc<[usize]> = workload::zipf(REDIS_READS).into();
        let bare_get = || -> Measuring {
            let (keys, draws, mut redis) = (self.keys.clone(), draws.clone(), self.redis.clone());
            Box::pin(median_in_task(async move {
                let mut took = Vec::with_capacity(draws.len());
                for &number in draws.iter() {
                    let started = Instant::now();
                    let held: Option<Vec<u8>> = redis::cmd("GET")
                        .arg(&keys[number])
                        .query_async(&mut redis)
                        .await?;
                    took.push(started.elapsed());
                    held.ok_or("it is in Redis")?;
                }
                Ok(took)
            }))
        };
        let loads = Arc::new(AtomicUsize::new(0));
        let larder = || -> Measuring {
            let (keys, draws) = (self.keys.clone(), draws.clone());
            let (cache, loads) = (self.larder.clone(), loads.clone());
            Box::pin(median_in_task(async move {
                let below_memory = cache.with(Read::new().tiers(Tiers::Shared));
                let mut took = Vec::with_capacity(draws.len());
                for &number in draws.iter() {
                    let started = Instant::now();
                    // A machine that stalls past the budget of a read sends it to the loader.
                    let load = |_| {
                        loads.fetch_add(1, Ordering::Relaxed);
                        async move { Result::Ok(Page::of(number)) }
                    };
                    below_memory.get_or_load(&keys[number], load).await?;
                    took.push(started.elapsed());
                }
                Ok(took)
            }))
        };
        let [bare_get, larder, again] = interleave([&bare_get, &larder, &bare_get]).await?;
        Ok(vec![
            Row::times("Redis hit, bare GET", &bare_get)?,
            Row::times("Redis hit, larder", &larder)?,
            Row::ratio(
                "Redis hit, larder to a bare GET",
                &larder,
                &bare_get,
                Some(1.2),
            )?,
            Row::count(
                "Redis hits that became loads, larder",
                loads.load(Ordering::Relaxed),
                Some(0),
            ),
            Row::ratio(
                "Redis hit, bare GET to itself (noise)",
                &again,
                &bare_get,
                None,
            )?,
        ])
    }

    async fn missing_key(&self) -> Result<Vec<Row>> {
        let loads_by_hand = Arc::new(AtomicUsize::new(0));
        at_once(|| {
            let (cache, loads) = (self.hand_written.clone(), loads_by_hand.clone());
            async move {
                let load = async || Ok(slow_load(&loads).await);
                cache.get_or_load("page:missing", load).await.map(drop)
            }
        })
        .await?;
        let loads = Arc::new(AtomicUsize::new(0));
        at_once(|| {
            let (cache, loads) = (self.larder.clone(), loads.clone());
            async move {
                let load = |_| async move { Result::Ok(slow_load(&loads).await) };
                cache.get_or_load("page:missing", load).await?;
                Ok(())
            }
        })
        .await?;
        Ok(vec![
            Row::count(
                "loads for 200 callers of one missing key, by hand",
                loads_by_hand.load(Ordering::Relaxed),
                None,
            ),
            Row::count(
                "loads for 200 callers of one missing key, larder",
                loads.load(Ordering::Relaxed),
                Some(1),
            ),
        ])
    }
}

/// Runs [`CALLERS`] of `call` at once, each in a task of its own, and waits for all.
async fn at_once<F>(call: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let callers: Vec<_> = (0..CALLERS).map(|_| tokio::spawn(call())).collect();
    for caller in callers {
        caller.await??;
    }
    Ok(())
}

async fn slow_load(loads: &AtomicUsize) -> Page {
    loads.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(LOAD).await;
    Page::of(0)
}

fn section(load: &str, table: &str) -> String {
    let rivals = [
        "moka",
        "redis",
        "rmp-serde",
        "hitbox",
        "hitbox-moka",
        "multi-tier-cache",
        "cachet",
    ]
    .map(locked);
    let machine = machine(load, &rivals.each_ref().map(String::as_str));
    format!(
        "`cargo xtask bench read-path --write`\n\n\
         {table}\n\
         {} String keys resident, values of {} bytes, keys drawn by Zipf {}. A round is\n\
         the median of {REDIS_READS} reads from Redis, or of reads from memory timed {TOGETHER} together, inside\n\
         one task of a runtime with two workers.\n\n\
         {}\n\n\
         {machine}",
        workload::KEYS,
        workload::VALUE_BYTES,
        workload::SKEW,
        memory::METHOD,
    )
}
