//! What coherence costs, on a real server: invalidations, tags, the bus, round trips.
//!
//! `coherence [--write FILE]` prints a table; with `--write` it also writes its section of FILE.

mod bus;
mod tags;
mod trips;

use larder_bench::Result;
use larder_bench::freshness::{self, REMOVALS};
use larder_bench::report::{Found, Row, destination, load, locked, machine, table, write};
use larder_testkit::RedisServer;

/// Within what a process reads fresh after an invalidation in another one, in nanoseconds.
const FRESH_WITHIN: f64 = 50e6;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    if larder_bench::other::serve().await? {
        return Ok(());
    }
    let report = destination(std::env::args().skip(1))?;
    let load = load();
    let mut rows = removals().await?;
    rows.extend(trips::of_reads().await?);
    rows.extend(tokio::spawn(tags::in_memory()).await??);
    rows.extend(tokio::spawn(tags::in_redis()).await??);
    rows.extend(tags::passing_through().await?);
    rows.extend(bus::one_hot_key().await?);
    rows.extend(bus::replay().await?);
    let table = table(&rows);
    print!("{table}");
    println!("load of the machine before the run: {load}");
    report.map_or(Ok(()), |path| {
        write(&path, "Coherence", &section(&load, &table))
    })
}

async fn removals() -> Result<Vec<Row>> {
    let server = RedisServer::start()?;
    let names = &["bare", "larder", "bare"];
    let [bare, larder, again] = &freshness::measure(server.url(), names).await?[..] else {
        return Err("there are three contenders".into());
    };
    let p99 = Found::Nanoseconds(larder.p99()?, Some(FRESH_WITHIN));
    Ok(vec![
        Row::times("DEL + PUBLISH → GET in another process", &bare.fresh)?,
        Row::times("invalidate → fresh in another process", &larder.fresh)?,
        Row::new("the same, p99", p99),
        Row::ratio(
            "invalidate → fresh, to DEL + PUBLISH → GET",
            &larder.fresh,
            &bare.fresh,
            Some(1.5),
        )?,
        Row::ratio(
            "DEL + PUBLISH → GET, to itself (noise)",
            &again.fresh,
            &bare.fresh,
            None,
        )?,
        Row::times("the call DEL + PUBLISH", &bare.call)?,
        Row::times("the call `invalidate`", &larder.call)?,
        Row::ratio(
            "the call `invalidate`, to DEL + PUBLISH",
            &larder.call,
            &bare.call,
            None,
        )?,
    ])
}

fn section(load: &str, table: &str) -> String {
    format!(
        "`cargo xtask bench coherence --write`\n\n\
         {table}\n\
         Fresh: from the call in one process to the end of the first read in another that finds\n\
         nothing. The other process holds the key in its memory, and reads it over and over; by hand\n\
         it is told of the key by a subscriber, and asks with GET. A round is the median of\n\
         {REMOVALS} keys.\n\n\
         {}\n\
         {}\n\
         {}\n\n\
         {}",
        trips::NOTE,
        tags::NOTE,
        bus::NOTE,
        machine(load, &[&locked("redis")]),
    )
}
