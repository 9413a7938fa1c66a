//! Prints how large the directory grows under churn, and how long operations take.
//!
//! `cargo run --release -p larder-disk --example churn -- [max MiB] [value bytes] [times over] [ascending]`

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use larder::envelope::Header;
use larder::store::{Store, Write};
use larder_disk::{Disk, DiskOptions};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    tokio::spawn(churn())
        .await?
        .map_err(|error| error.to_string())?;
    Ok(())
}

async fn churn() -> Result<(), Box<dyn Error + Send + Sync>> {
    let number = |at, default: u64| {
        std::env::args()
            .nth(at)
            .map_or(Ok(default), |arg| arg.parse())
    };
    let max_bytes = number(1, 64)? << 20;
    let value_bytes = number(2, 4096)? as usize;
    let times = number(3, 4)?;
    let ascending = std::env::args()
        .nth(4)
        .is_some_and(|arg| arg == "ascending");
    let directory = tempfile::tempdir()?;
    let options = DiskOptions {
        max_bytes,
        ..DiskOptions::default()
    };
    let disk = Disk::open(directory.path(), options.clone())?;
    let mut rng = fastrand::Rng::with_seed(7);
    let writes = max_bytes * times / value_bytes as u64;
    let keys = 2 * max_bytes / value_bytes as u64;
    let (mut largest, mut refused) = (0, 0);
    let mut set = Times::default();
    for n in 0..writes {
        let write = Write {
            key: key(if ascending { n } else { rng.u64(..keys) }),
            value: value(&mut rng, value_bytes),
            ttl: Duration::from_secs(3600),
            tags: None,
        };
        let writes = [write];
        let outcome = set.take(disk.set(&writes)).await;
        if outcome.is_err() {
            refused += 1;
        }
        if n % (writes_between_looks(value_bytes)) == 0 {
            largest = largest.max(size(directory.path()));
        }
    }
    largest = largest.max(size(directory.path()));
    println!("set      {set}, {refused} of {writes} refused");
    report(&disk, "at its largest", largest, max_bytes);
    let (mut hit, mut miss) = (Times::default(), Times::default());
    for _ in 0..50_000 {
        let keys = [key(rng.u64(..keys))];
        let (nanos, found) = timed(disk.get(&keys, 1 << 20)).await;
        if found?[0].is_some() {
            &mut hit
        } else {
            &mut miss
        }
        .push(nanos);
    }
    println!("hit      {hit}");
    println!("miss     {miss}");
    disk.close().await?;
    report(&disk, "closed", size(directory.path()), max_bytes);
    drop(disk);
    let (nanos, disk) = timed(async { Disk::open(directory.path(), options) }).await;
    let disk = disk?;
    println!("open     {} ms", nanos / 1_000_000);
    report(&disk, "reopened", size(directory.path()), max_bytes);
    Ok(())
}

fn writes_between_looks(value_bytes: usize) -> u64 {
    ((2 << 20) / value_bytes as u64).max(1)
}

fn key(n: u64) -> Bytes {
    format!("shop:product:{n:016x}").into()
}

fn value(rng: &mut fastrand::Rng, len: usize) -> Bytes {
    let mut value = vec![0; len.max(Header::LEN)];
    rng.fill(&mut value);
    let header = Header {
        fill_id: [1; 16],
        fresh_until: u64::MAX,
        stale_until: u64::MAX,
        ..Header::minimum(0)
    };
    value[..Header::LEN].copy_from_slice(&header.to_bytes());
    value.into()
}

fn report(disk: &Disk, when: &str, bytes: u64, max_bytes: u64) {
    let stats = disk.stats();
    println!(
        "{when:15} {:5} MiB on disk = {:.2} x max_bytes; {} entries of {} MiB, {} evicted, {} overloaded, {} reopened",
        bytes >> 20,
        bytes as f64 / max_bytes as f64,
        stats.entries,
        stats.bytes >> 20,
        stats.evicted,
        stats.overloaded,
        stats.reopened,
    );
}

/// Bytes that the directory occupies on the device, holes not counted.
fn size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(files) = std::fs::read_dir(path) else {
        return 0;
    };
    files
        .filter_map(Result::ok)
        .filter_map(|file| Some((file.path(), file.metadata().ok()?)))
        .map(|(path, found)| {
            if found.is_dir() {
                size(&path)
            } else {
                found.blocks() * 512
            }
        })
        .sum()
}

async fn timed<T>(work: impl Future<Output = T>) -> (u64, T) {
    #[expect(clippy::disallowed_methods, reason = "this program measures real time")]
    let started = std::time::Instant::now();
    let done = work.await;
    (started.elapsed().as_nanos() as u64, done)
}

#[derive(Default)]
struct Times(Vec<u64>);

impl Times {
    async fn take<T>(&mut self, work: impl Future<Output = T>) -> T {
        let (nanos, done) = timed(work).await;
        self.push(nanos);
        done
    }

    fn push(&mut self, nanos: u64) {
        self.0.push(nanos);
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |share: f64| {
            let n = (sorted.len() as f64 * share) as usize;
            sorted
                .get(n.min(sorted.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0) as f64
                / 1e3
        };
        write!(
            f,
            "n={:7} p50 {:8.1} us  p99 {:8.1} us  max {:8.1} us",
            sorted.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        )
    }
}
