//! Reads of one kind and nothing else, for callgrind to count.
//!
//! ```text
//! valgrind --tool=callgrind target/release/instructions redis 1000   # and once more with 11000
//! ```
//!
//! The difference of two runs, by the difference of their reads, is what one read costs.

use larder::{Cache, Larder, Loaded, Read, Tiers};
use larder_bench::Result;
use larder_bench::workload::Page;
use larder_redis::Redis;
use larder_testkit::RedisServer;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, reads] = arguments.as_slice() else {
        return Err("usage: instructions memory|sliding|frequency|redis|tagged|bare READS".into());
    };
    let reads: usize = reads.parse()?;
    let server = RedisServer::start()?;
    if what == "bare" {
        return bare(&server, reads).await;
    }
    let larder = Larder::builder("bench")
        .shared(Redis::new(&server.url())?)
        .tier_budget(std::time::Duration::from_secs(10)) // valgrind is slow
        .build()?;
    let cache = larder.cache("page");
    let cache: Cache<String, Page> = match what.as_str() {
        "sliding" => cache.ttl("1h").sliding("12h"),
        "frequency" => cache.ttl_by_frequency("1m", "1h"),
        _ => cache,
    }
    .build()?;
    let key = "page:00000000".to_owned();
    let tags: &[&str] = if what == "tagged" {
        &["one", "two"]
    } else {
        &[]
    };
    let load = |_| async move { Result::Ok(Loaded::value(Page::of(0)).tags(tags.iter().copied())) };
    cache.get_or_load(&key, load).await?;
    let tiers = match what.as_str() {
        "memory" | "sliding" | "frequency" => Tiers::All,
        _ => Tiers::Shared,
    };
    let reader = cache.with(Read::new().tiers(tiers));
    for _ in 0..reads {
        let held = reader
            .get_or_load(&key, |_| async { Result::<Page>::Err("it is held".into()) })
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
