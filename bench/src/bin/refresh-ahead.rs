//! What refreshing popular keys ahead of need spares their readers, and what it loads for nobody.
//!
//! `refresh-ahead [--write FILE]` prints a table; with `--write` it also writes its section of FILE.
//! The clock is turned by hand: all of it is counted, and nothing is timed.

use std::sync::Arc;
use std::time::Duration;

use larder::{Cache, Larder, RefreshAhead};
use larder_bench::Result;
use larder_bench::report::{Found, Row, destination, table, write};
use larder_bench::workload::{Draws, KEYS, SKEW};
use larder_testkit::ManualClock;

/// How long entries live.
const TTL: Duration = Duration::from_secs(60);
/// Between two reads.
const PAUSE: Duration = Duration::from_millis(1);
/// Reads before the counting begins, and those that count.
const BEFORE: usize = 180_000;
const COUNTED: usize = 1_200_000;
/// The keys whose readers are to find what they ask for.
const TOP: u32 = 100;
/// Refreshes that nobody needed, in hundredths of all of which it is known.
const WASTED: f64 = 10.0;
/// Turns of the runtime between two reads: more than what is due at once takes.
const TURNS: usize = 4;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let report = destination(std::env::args().skip(1))?;
    let mut rows = Vec::new();
    let without = play(None).await?;
    rows.extend(without.rows("no refresh-ahead", None));
    for keys in [100, RefreshAhead::default().keys] {
        let options = RefreshAhead {
            keys,
            ..RefreshAhead::default()
        };
        let with = play(Some(options)).await?;
        let limit = (keys > TOP as usize).then_some(0);
        rows.extend(with.rows(&format!("the first {keys} keys"), limit));
    }
    let table = table(&rows);
    print!("{table}");
    report.map_or(Ok(()), |path| {
        write(&path, "Refresh-ahead", &section(&table))
    })
}

/// What became of the reads that count.
struct Played {
    top_misses: u64,
    misses: u64,
    loads: u64,
    /// The share of the refreshes; `None` where there were none.
    wasted: Option<f64>,
}

impl Played {
    fn rows(&self, who: &str, top_misses: Option<usize>) -> Vec<Row> {
        let count = |what: &str, count: u64, limit| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            Row::count(format!("{who}: {what}"), count, limit)
        };
        let mut rows = vec![
            count(
                &format!("misses of the top {TOP} keys"),
                self.top_misses,
                top_misses,
            ),
            count("misses of all keys", self.misses, None),
            count("loads", self.loads, None),
        ];
        rows.extend(self.wasted.map(|share| {
            let found = Found::Percent(share * 100.0, Some(WASTED));
            Row::new(format!("{who}: refreshes that nobody needed"), found)
        }));
        rows
    }
}

async fn play(options: Option<RefreshAhead>) -> Result<Played> {
    let clock = ManualClock::new();
    let larder = Larder::builder("bench")
        .clock(Arc::clone(&clock) as _)
        .build()?;
    let cache: Cache<u32, u32> = larder
        .cache("played")
        .capacity(2 * KEYS as u64)
        .ttl(TTL)
        .in_memory()?;
    let loading = cache.loading_with(|_| std::future::ready(std::io::Result::Ok(1)));
    let refreshing = options
        .map(|options| loading.refresh_ahead(options))
        .transpose()?;
    let (mut top_misses, mut before) = (0, None);
    let draws = Draws::new(KEYS).take(0, BEFORE + COUNTED);
    for (turn, key) in draws.into_iter().enumerate() {
        if turn == BEFORE {
            before = Some(cache.stats());
            top_misses = 0;
        }
        if key < TOP {
            let misses = cache.stats().misses;
            loading.get(&key).await?;
            top_misses += cache.stats().misses - misses;
        } else {
            loading.get(&key).await?;
        }
        clock.advance(PAUSE);
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
    }
    let (before, after) = (before.ok_or("there were reads before")?, cache.stats());
    Ok(Played {
        top_misses,
        misses: after.misses - before.misses,
        loads: after.loads - before.loads,
        wasted: refreshing.and_then(|refreshing| refreshing.stats().wasted_share()),
    })
}

fn section(table: &str) -> String {
    format!(
        "Written by `cargo xtask bench stampede --write`.\n\n\
         {KEYS} keys drawn by Zipf {SKEW}, a read each millisecond by a clock that is turned by hand, \
         entries that live a minute, all of which fit. Three minutes pass before {COUNTED} reads are \
         counted. Refreshes are those of `RefreshAhead::default()`, for so many keys.\n\n{table}"
    )
}
