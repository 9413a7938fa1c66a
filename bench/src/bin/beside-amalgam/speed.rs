//! Hits and inserts.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use larder::{Cache, Larder, Loaded, Read, Tiers};
use larder_bench::Result;
use larder_bench::amalgam_node::{AmalgamNode, Pages, Profile, Setup};
use larder_bench::hand_written::HandWritten;
use larder_bench::node::{LarderNode, Node, Place};
use larder_bench::report::Row;
use larder_bench::rounds::{Contender, Measuring, Times, interleave, median_in_task};
use larder_bench::workload::Page;
use larder_testkit::RedisServer;

/// Reads of memory per round, and how many are timed together.
const MEMORY_READS: (usize, u32) = (200_000, 1_000);
/// The same of Redis.
const REDIS_READS: (usize, u32) = (1_000, 1);
/// The same of inserts into a full cache.
const INSERTS: (usize, u32) = (30, 1);
/// How many entries fill it.
const CAPACITY: u64 = 100_000;

const KEY: &str = "page:1";
const TAGGED: &str = "page:2";
const TAGS: [&str; 2] = ["one", "two"];

/// The median time of an operation: so many of them, so many timed together. A macro, because what
/// is timed must not pay for a closure that returns a boxed future.
macro_rules! median_of {
    ($count:expr, $operation:expr) => {
        median_in_task(async move {
            let (operations, together) = $count;
            let mut took = Vec::new();
            for _ in 0..operations / together as usize {
                let began = Instant::now();
                for _ in 0..together {
                    std::hint::black_box($operation);
                }
                took.push(began.elapsed() / together);
            }
            Ok(took)
        })
    };
}

/// What a loader gives. All keys are resident; a machine that stalls past the budget of a read sends
/// it to the loader all the same.
fn loaded() -> Result<Page> {
    Ok(Page::of(1))
}

/// What is compared, with store and bus attached, the pages resident in all of it.
struct Subjects {
    by_hand: HandWritten,
    redis: redis::aio::MultiplexedConnection,
    larder: LarderNode,
    default: AmalgamNode,
    strict: AmalgamNode,
    _server: RedisServer,
}

impl Subjects {
    async fn new(below_memory: bool) -> Result<Self> {
        let server = RedisServer::start()?;
        let place = Place::at(server.url());
        let client = redis::Client::open(server.url())?;
        let amalgam = |profile| {
            let setup = Setup {
                below_memory,
                ..Setup::of(profile)
            };
            AmalgamNode::new(&place, setup)
        };
        let subjects = Self {
            by_hand: HandWritten::new(client.get_connection_manager().await?),
            redis: client.get_multiplexed_async_connection().await?,
            larder: LarderNode::new(&place)?,
            default: amalgam(Profile::Default).await?,
            strict: amalgam(Profile::Strict).await?,
            _server: server,
        };
        subjects.fill().await?;
        Ok(subjects)
    }

    async fn fill(&self) -> Result<()> {
        self.larder.until_ready().await?;
        let by_hand = async || Ok(Page::of(1));
        self.by_hand.get_or_load("by hand", by_hand).await?;
        let plain = |_| async { Result::Ok(Page::of(1)) };
        self.larder.pages.get_or_load(KEY, plain).await?;
        let tagged = |_| async { Result::Ok(Loaded::value(Page::of(1)).tags(TAGS)) };
        self.larder.pages.get_or_load(TAGGED, tagged).await?;
        self.larder.larder.settle().await;
        let load = |_| async { Ok::<_, Infallible>(Arc::new(Page::of(1))) };
        let pages = &self.default.pages;
        pages.get_or_set(KEY, load).await?;
        pages.get_or_set(TAGGED, load).tags(TAGS).await?;
        // It finds in Redis what the other one has filled.
        self.strict.pages.get_or_set(KEY, load).await?;
        Ok(())
    }
}

/// One key that everybody holds in memory.
pub(crate) async fn memory_hits() -> Result<Vec<Row>> {
    let subjects = Subjects::new(false).await?;
    let by_hand = || -> Measuring {
        let cache = subjects.by_hand.clone();
        let load = async || loaded();
        Box::pin(median_of!(
            MEMORY_READS,
            cache.get_or_load("by hand", load).await?
        ))
    };
    let larder = || -> Measuring {
        let cache = subjects.larder.pages.clone();
        Box::pin(median_of!(
            MEMORY_READS,
            cache.get_or_load(KEY, |_| async { loaded() }).await?
        ))
    };
    let amalgam = |pages: &Pages| -> Measuring {
        let pages = pages.clone();
        let load = |_| async { Ok::<_, Infallible>(Arc::new(Page::of(1))) };
        Box::pin(median_of!(MEMORY_READS, pages.get_or_set(KEY, load).await?))
    };
    let [default, strict] = [&subjects.default.pages, &subjects.strict.pages];
    let contenders: [&Contender<'_>; 4] =
        [&by_hand, &larder, &|| amalgam(default), &|| amalgam(strict)];
    let [by_hand, larder, default, strict] = interleave(contenders).await?;
    let ratio = |who: &str, times, limit| {
        Row::ratio(
            format!("memory hit, to by hand, {who}"),
            times,
            &by_hand,
            limit,
        )
    };
    Ok(vec![
        Row::times("memory hit, moka + redis-rs by hand", &by_hand)?,
        ratio("larder", &larder, Some(0.5))?,
        ratio("amalgam", &default, None)?,
        ratio("amalgam-strict", &strict, None)?,
    ])
}

/// One key that nobody reads from memory, without and with two tags.
pub(crate) async fn redis_hits() -> Result<Vec<Row>> {
    let subjects = Subjects::new(true).await?;
    let bare = || -> Measuring {
        let mut redis = subjects.redis.clone();
        Box::pin(median_of!(REDIS_READS, {
            let get = redis::cmd("GET").arg("by hand").to_owned();
            let found: Option<Vec<u8>> = get.query_async(&mut redis).await?;
            found.ok_or("it is in Redis")?
        }))
    };
    let larder = |key: &'static str| -> Measuring {
        let cache = subjects.larder.pages.clone();
        Box::pin(median_of!(REDIS_READS, {
            let reader = cache.with(Read::new().tiers(Tiers::Shared));
            reader.get_or_load(key, |_| async { loaded() }).await?
        }))
    };
    let amalgam = |pages: &Pages, key: &'static str| -> Measuring {
        let pages = pages.clone();
        let load = |_| async { Ok::<_, Infallible>(Arc::new(Page::of(1))) };
        Box::pin(median_of!(REDIS_READS, pages.get_or_set(key, load).await?))
    };
    let [default, strict] = [&subjects.default.pages, &subjects.strict.pages];
    let contenders: [&Contender<'_>; 7] = [
        &bare,
        &|| larder(KEY),
        &|| larder(TAGGED),
        &|| amalgam(default, KEY),
        &|| amalgam(default, TAGGED),
        &|| amalgam(strict, KEY),
        &|| amalgam(strict, TAGGED),
    ];
    let [bare, contenders @ ..]: [Times; 7] = interleave(contenders).await?;
    let mut rows = vec![Row::times("Redis hit, bare GET", &bare)?];
    let names = ["larder", "amalgam", "amalgam-strict"];
    for (name, pair) in names.into_iter().zip(contenders.chunks(2)) {
        for (times, tags) in pair.iter().zip(["no tags", "two tags"]) {
            let limit = (name == "larder").then_some(1.2);
            let work = format!("Redis hit, to a bare GET, {tags}, {name}");
            rows.push(Row::ratio(work, times, &bare, limit)?);
        }
    }
    Ok(rows)
}

/// Inserts into caches that are memory alone and full.
pub(crate) async fn inserts() -> Result<Vec<Row>> {
    let larder: Cache<String, u64> = Larder::local()
        .cache("full")
        .capacity(CAPACITY)
        .in_memory()?;
    let amalgam: amalgam::Cache<u64> = amalgam::Cache::builder()
        .max_capacity(CAPACITY)
        .try_build()?;
    for number in 0..CAPACITY {
        larder.set_in_memory(number.to_string(), number)?;
        amalgam.set(number.to_string(), number).await?;
    }
    let into_larder = || -> Measuring {
        let larder = larder.clone();
        Box::pin(median_of!(
            INSERTS,
            larder.set_in_memory(fastrand::u64(..).to_string(), 0)?
        ))
    };
    let into_amalgam = || -> Measuring {
        let amalgam = amalgam.clone();
        Box::pin(median_of!(
            INSERTS,
            amalgam.set(fastrand::u64(..).to_string(), 0).await?
        ))
    };
    let [into_larder, into_amalgam] = interleave([&into_larder, &into_amalgam]).await?;
    Ok(vec![
        Row::times("insert into 100,000 entries, full, larder", &into_larder)?,
        Row::times("insert into 100,000 entries, full, amalgam", &into_amalgam)?,
    ])
}
