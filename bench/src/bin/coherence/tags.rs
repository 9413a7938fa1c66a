//! Tags: what it costs to invalidate one, whatever has it, and what they leave behind.

use std::time::{Duration, Instant};

use larder::{Cache, Larder, Loaded};
use larder_bench::Result;
use larder_bench::other::{Other, PASSED_THROUGH};
use larder_bench::report::{Found, Row};
use larder_bench::rounds::{ROUNDS, Spread, Times};
use larder_redis::Redis;
use larder_testkit::RedisServer;

pub(crate) const NOTE: &str = "\
A round of a tag is one invalidation of one of several tags that all entries have; in memory, the\n\
median of five. Entries that pass through have a tag each, and\n\
one that all have; the process that they pass through does nothing else. Tags that no entry carries\n\
are swept, so they take at most what the cache's entries need for theirs, twice over, and a bounded\n\
rest (`tags.rs`).";

/// How many entries are under a tag.
const ENTRIES: [usize; 3] = [1, 1_000, 1_000_000];
/// The tags of entries in memory. The caches of the processor are full of entries after a fill, so
/// that the first invalidation pays for more than itself.
const TAGS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// How many keys are set together.
const TOGETHER: usize = 1_000;
/// What a cost that does not depend on the number of entries may look like on a busy machine.
const CONSTANT: Option<f64> = Some(1.5);

type Numbers = Cache<u64, u64>;

/// A tag, a cache and a pattern of a cache that is memory alone.
pub(crate) async fn in_memory() -> Result<Vec<Row>> {
    let (mut tags, mut clears) = (rounds_of_each(), rounds_of_each());
    for round in 0..=ROUNDS {
        for turn in 0..ENTRIES.len() {
            let size = (round + turn) % ENTRIES.len();
            let larder = Larder::builder("bench").build()?;
            let cache: Numbers = larder.cache("number").capacity(2_000_000).in_memory()?;
            fill_memory(&cache, ENTRIES[size])?;
            let mut took = Vec::new();
            for tag in TAGS {
                took.push(timed(async { larder.invalidate_tag(tag).await.map(drop) }).await?);
            }
            took.sort();
            let tag = took[TAGS.len() / 2];
            fill_memory(&cache, ENTRIES[size])?;
            let clear = timed(async { cache.clear().await.map(drop) }).await?;
            if round > 0 {
                tags[size].push(tag);
                clears[size].push(clear);
            }
        }
    }
    let mut rows = rows_of("tag in memory", &tags)?;
    rows.extend(rows_of("clear in memory", &clears)?);
    Ok(rows)
}

fn fill_memory(cache: &Numbers, entries: usize) -> Result<()> {
    for number in 0..entries as u64 {
        cache.set_in_memory(number, Loaded::value(number).tags(TAGS))?;
    }
    Ok(())
}

/// The same of a cache with Redis below it, and patterns.
pub(crate) async fn in_redis() -> Result<Vec<Row>> {
    let (mut tags, mut clears) = (rounds_of_each(), rounds_of_each());
    let mut servers = Vec::new();
    for entries in ENTRIES {
        servers.push(filled(entries).await?);
    }
    for round in 0..=ROUNDS {
        for turn in 0..ENTRIES.len() {
            let size = (round + turn) % ENTRIES.len();
            let (_, larder, cache) = &servers[size];
            let tag = round.to_string();
            let took = timed(async { larder.invalidate_tag(&tag).await.map(drop) }).await?;
            let clear = timed(async { cache.clear().await.map(drop) }).await?;
            if round > 0 {
                tags[size].push(took);
                clears[size].push(clear);
            }
        }
    }
    let mut rows = rows_of("tag with Redis", &tags)?;
    rows.extend(rows_of("clear with Redis", &clears)?);
    rows.extend(patterns(&servers).await?);
    Ok(rows)
}

type Filled = (RedisServer, Larder, Numbers);

/// A server with so many entries, each with as many tags as there are rounds.
async fn filled(entries: usize) -> Result<Filled> {
    let server = RedisServer::start()?;
    let larder = Larder::builder("bench")
        .shared(Redis::new(&server.url())?)
        .tier_budget(Duration::from_secs(10)) // a thousand keys at once take their time
        .build()?;
    let cache: Numbers = larder.cache("number").capacity(2_000_000).build()?;
    let keys: Vec<u64> = (0..entries as u64).collect();
    for keys in keys.chunks(TOGETHER) {
        cache.get_or_load_many(keys, tagged).await?;
    }
    larder.settle().await;
    Ok((server, larder, cache))
}

/// The values of all keys, each with as many tags as there are rounds.
async fn tagged(keys: Vec<u64>) -> Result<Vec<(u64, Loaded<u64>)>> {
    let tags = || (0..=ROUNDS).map(|round| round.to_string());
    let keys = keys.into_iter();
    let pairs = keys.map(|number| (number, Loaded::value(number).tags(tags())));
    Ok(pairs.collect())
}

/// A pattern that a tenth of the keys match, beside a bare SCAN of all keys.
async fn patterns(servers: &[Filled]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut shares = Vec::new();
    for ((server, _, cache), entries) in servers.iter().zip(ENTRIES).skip(1) {
        let (mut scans, mut patterns) = (Times::default(), Times::default());
        for round in 1..=PATTERN_ROUNDS {
            let began = Instant::now();
            let keys = scan(server).await?;
            scans.push(began.elapsed() / keys);
            let glob = format!("*{round}");
            let took = timed(async { cache.invalidate_matching(&glob).await.map(drop) }).await?;
            patterns.push(took / keys);
        }
        let work = format!("bare SCAN of {entries} entries in Redis, per key");
        rows.push(Row::times(work, &scans)?);
        let work = format!("pattern over {entries} entries in Redis, per key");
        rows.push(Row::times(work, &patterns)?);
        shares.push(patterns.ratio_to(&scans)?);
    }
    let [few, many] = shares[..] else {
        return Err("there are two servers with entries".into());
    };
    let growth = Spread {
        median: many.median / few.median,
        min: many.min / few.max,
        max: many.max / few.min,
    };
    let work = "pattern to a bare SCAN, 1,000,000 entries to 1,000";
    rows.push(Row::new(work, Found::Ratio(growth, CONSTANT)));
    Ok(rows)
}

/// Walks over all keys, as a pattern does, and counts them.
async fn scan(server: &RedisServer) -> Result<u32> {
    let client = redis::Client::open(server.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let (mut cursor, mut keys) = (0_u64, 0);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("COUNT").arg(500);
        let found: Vec<Vec<u8>>;
        (cursor, found) = scan.query_async(&mut redis).await?;
        keys += u32::try_from(found.len())?;
        if cursor == 0 {
            return Ok(keys.max(1));
        }
    }
}

/// Patterns that are measured: each takes another tenth of the keys away.
const PATTERN_ROUNDS: usize = 5;

/// What passes through a bounded cache leaves nothing behind.
pub(crate) async fn passing_through() -> Result<Vec<Row>> {
    let mut other = Other::start().await?;
    let resident = other.numbers(&format!("pass {MILLIONS}")).await?;
    let [before, after @ ..] = &resident[..] else {
        return Err("nothing passed".into());
    };
    let grown = |bytes: &f64| Found::Bytes(bytes - before);
    let mut rows: Vec<Row> = (1..)
        .zip(after)
        .map(|(million, bytes)| {
            let work = format!("memory after {million},000,000 tagged entries passed");
            Row::new(work, grown(bytes))
        })
        .collect();
    let (Some(second), Some(last)) = (after.get(1), after.last()) else {
        return Err("too few passed".into());
    };
    let ratio = (last - before) / (second - before);
    let spread = Spread {
        median: ratio,
        min: ratio,
        max: ratio,
    };
    let work = format!("memory after {MILLIONS} million, to that after 2 ({PASSED_THROUGH} held)");
    rows.push(Row::new(work, Found::Ratio(spread, FLAT)));
    Ok(rows)
}

const MILLIONS: usize = 10;
/// How much more memory may be taken at the end than after the cache has been full for long.
const FLAT: Option<f64> = Some(1.1);

fn rounds_of_each() -> [Times; 3] {
    std::array::from_fn(|_| Times::default())
}

/// The times, and the ratios to that of a single entry.
fn rows_of(work: &str, times: &[Times; 3]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (times, entries) in times.iter().zip(ENTRIES) {
        rows.push(Row::times(format!("{work}, {entries} entries"), times)?);
    }
    for (many, entries) in times.iter().zip(ENTRIES).skip(1) {
        let work = format!("{work}, {entries} entries to 1");
        rows.push(Row::ratio(work, many, &times[0], CONSTANT)?);
    }
    Ok(rows)
}

async fn timed(work: impl Future<Output = larder::Result<()>>) -> Result<Duration> {
    let began = Instant::now();
    work.await?;
    Ok(began.elapsed())
}
