//! Round trips of reads, counted by the server.

use larder::{Larder, Loaded, Read, Tiers};
use larder_bench::Result;
use larder_bench::report::Row;
use larder_bench::server::trips;
use larder_bench::workload::Page;
use larder_redis::Redis;
use larder_testkit::RedisServer;

pub(crate) const NOTE: &str = "\
Round trips are the server's `total_reads_processed`, the median of several reads: beats of the bus\n\
come between.";

/// Reads of each kind.
const READS: usize = 31;

/// Hits, tagged hits, and misses with their fills.
pub(crate) async fn of_reads() -> Result<Vec<Row>> {
    let server = RedisServer::start()?;
    let larder = Larder::builder("bench")
        .shared(Redis::new(&server.url())?)
        .build()?;
    let pages = larder.cache::<String, Page>("page").build()?;
    let below_memory = pages.with(Read::new().tiers(Tiers::Shared));
    let load = |tags: &'static [&'static str]| {
        move |_| async move { Result::Ok(Loaded::value(Page::of(0)).tags(tags.iter().copied())) }
    };
    let (no_tags, two_tags): (&[&str], &[&str]) = (&[], &["one", "two"]);
    for (key, tags) in [("plain", no_tags), ("tagged", two_tags)] {
        pages.get_or_load(key, load(tags)).await?;
        larder.settle().await;
    }
    let nowhere = |_| async { Result::<Page>::Err("it is in Redis".into()) };
    let (mut plain, mut tagged, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..READS {
        let before = trips(&server)?;
        below_memory.get_or_load("plain", nowhere).await?;
        plain.push(trips(&server)? - before);
        let before = trips(&server)?;
        below_memory.get_or_load("tagged", nowhere).await?;
        tagged.push(trips(&server)? - before);
        let key = format!("missing {number}");
        let before = trips(&server)?;
        pages.get_or_load(&key, load(two_tags)).await?;
        larder.settle().await;
        missing.push(trips(&server)? - before);
    }
    let mut nothing = Vec::new();
    for _ in 0..READS {
        let before = trips(&server)?;
        nothing.push(trips(&server)? - before);
    }
    let question = usual(nothing);
    let row = |work: &str, trips: Vec<u64>, limit| {
        let trips = usual(trips).saturating_sub(question);
        Row::count(
            work,
            usize::try_from(trips).unwrap_or(usize::MAX),
            Some(limit),
        )
    };
    Ok(vec![
        row("round trips of a Redis hit", plain, 1),
        row("round trips of a Redis hit with two tags", tagged, 1),
        row(
            "round trips of a miss among hits, with its fill and two tags",
            missing,
            3,
        ),
        row(
            "round trips of a miss among misses, with its fill",
            among_misses(&server).await?,
            2,
        ),
    ])
}

/// Of a process that meets nothing but misses.
async fn among_misses(server: &RedisServer) -> Result<Vec<u64>> {
    let larder = Larder::builder("misses")
        .shared(Redis::new(&server.url())?)
        .build()?;
    let pages = larder.cache::<String, Page>("page").build()?;
    let mut counted = Vec::new();
    for number in 0..READS {
        let before = trips(server)?;
        let load = |_| async { Result::Ok(Page::of(0)) };
        pages.get_or_load(&number.to_string(), load).await?;
        larder.settle().await;
        counted.push(trips(server)? - before);
    }
    Ok(counted)
}

/// The median.
fn usual(mut trips: Vec<u64>) -> u64 {
    trips.sort_unstable();
    trips.get(trips.len() / 2).copied().unwrap_or_default()
}
