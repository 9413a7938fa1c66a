//! Operations of one kind and nothing else, for callgrind to count.
//!
//! ```text
//! valgrind --tool=callgrind target/release/instructions redis 1000   # and once more with 11000
//! ```
//!
//! The difference of two runs, by the difference of their numbers, is what one operation costs.
//!
//! - `hit` and `insert`, of `larder`, its `engine`, `moka`, `quick_cache` and the `floor`, as in
//!   `hit-moka`: tables as the benchmark `memory` has them; inserts are of new keys into a full one. A
//!   third argument is how many entries a table takes, if not 10,000
//! - `memory`, `memory-tagged`: `get_or_load` of a cache above Redis that memory answers
//! - `memory-popular`, `memory-predicted`: the same while popular keys are refreshed ahead, and while
//!   two keys that take turns are learned for prefetching
//! - `sliding`, `frequency`: the same of a cache whose entries slide, or whose TTLs go by use
//! - `redis`, `tagged`: the same past memory, and `bare` a GET alone

use std::hint::black_box;
use std::sync::Arc;

use larder::{Cache, Larder, Loaded, Prefetch, Read, RefreshAhead, Tiers};
use larder_bench::Result;
use larder_bench::tables::{self, Floor, Table};
use larder_bench::workload::Page;
use larder_bench_engine::Engine;
use larder_redis::Redis;
use larder_testkit::RedisServer;

/// How many entries a table takes, if it is not said.
const ENTRIES: u64 = 10_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (what, count, entries) = match arguments.as_slice() {
        [what, count] => (what, count, ENTRIES),
        [what, count, entries] => (what, count, entries.parse()?),
        _ => return Err("usage: instructions WHAT COUNT [ENTRIES]".into()),
    };
    let count: usize = count.parse()?;
    match what.split_once('-') {
        Some(("hit", name)) => in_table(name, entries, |table| hits(table, count, entries)),
        Some(("insert", name)) => in_table(name, entries, |table| inserts(table, count, entries)),
        _ => in_cache(what, count).await,
    }
}

type Pages = dyn Table<String, Arc<u64>>;

fn in_table(name: &str, entries: u64, work: impl FnOnce(&Pages)) -> Result<()> {
    match name {
        "larder" => work(&tables::larder::<String, u64>(entries)?),
        "engine" => work(&Engine::new(entries)),
        "moka" => work(&moka::sync::Cache::new(entries)),
        "quick_cache" => work(&quick_cache::sync::Cache::new(entries as usize)),
        "floor" => work(&Floor::default()),
        _ => return Err(format!("there is no table `{name}`").into()),
    }
    Ok(())
}

fn key(number: u64) -> String {
    format!("page:{number:08}")
}

fn hits(table: &Pages, count: usize, entries: u64) {
    let keys: Vec<_> = (0..entries / 2).map(key).collect();
    for key in &keys {
        table.insert(key.clone(), Arc::new(0));
    }
    for key in keys.iter().cycle().take(count) {
        black_box(table.get(key));
    }
}

fn inserts(table: &Pages, count: usize, entries: u64) {
    let value = Arc::new(0);
    for number in 0..2 * entries {
        table.insert(key(number), Arc::clone(&value));
    }
    for number in 0..count as u64 {
        table.insert(key(2 * entries + number), Arc::clone(&value));
    }
}

async fn in_cache(what: &str, reads: usize) -> Result<()> {
    let server = RedisServer::start()?;
    if what == "bare" {
        return bare(&server, reads).await;
    }
    let larder = Larder::builder("bench")
        .shared(Redis::new(&server.url())?)
        .tier_budget(std::time::Duration::from_secs(10)) // valgrind is slow
        .build()?;
    let cache = larder.cache("page");
    let cache: Cache<String, Page> = match what {
        "sliding" => cache.ttl("1h").sliding("12h"),
        "frequency" => cache.ttl_by_frequency("1m", "1h"),
        _ => cache,
    }
    .build()?;
    let key = "page:00000000".to_owned();
    let (tiers, tags): (_, &[&str]) = match what {
        "memory" | "sliding" | "frequency" => (Tiers::All, &[]),
        "memory-popular" | "memory-predicted" => (Tiers::All, &[]),
        "memory-tagged" => (Tiers::All, &["one", "two"]),
        "redis" => (Tiers::Shared, &[]),
        "tagged" => (Tiers::Shared, &["one", "two"]),
        _ => return Err(format!("`{what}` cannot be counted").into()),
    };
    let load =
        move |_| async move { Result::Ok(Loaded::value(Page::of(0)).tags(tags.iter().copied())) };
    cache.get_or_load(&key, load).await?;
    let loading = cache.loading_with(load);
    let _ahead = (what == "memory-popular")
        .then(|| loading.refresh_ahead(RefreshAhead::default()))
        .transpose()?;
    let _next = (what == "memory-predicted")
        .then(|| loading.prefetch(Prefetch::default()))
        .transpose()?;
    let mut keys = vec![key];
    if what == "memory-predicted" {
        keys.push("page:00000001".to_owned());
        loading.get(&keys[1]).await?;
    }
    let reader = cache.with(Read::new().tiers(tiers));
    for key in keys.iter().cycle().take(reads) {
        let held = reader
            .get_or_load(key, |_| async { Result::<Page>::Err("it is held".into()) })
            .await?;
        drop(held);
    }
    Ok(())
}

async fn bare(server: &RedisServer, reads: usize) -> Result<()> {
    let client = redis::Client::open(server.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let () = redis::cmd("SET")
        .arg("page:00000000")
        .arg(vec![b'x'; 400])
        .query_async(&mut redis)
        .await?;
    for _ in 0..reads {
        let held: Option<Vec<u8>> = redis::cmd("GET")
            .arg("page:00000000")
            .query_async(&mut redis)
            .await?;
        held.ok_or("it is in Redis")?;
    }
    Ok(())
}
