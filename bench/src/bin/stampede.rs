//! Many callers of one key at once, and what XFetch does with an entry that many read.
//!
//! `stampede [--write FILE]` prints a table; with `--write` it also writes its section of FILE.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use larder::{Cache, Larder};
use larder_bench::Result;
use larder_bench::report::{Found, Row, destination, load, machine, table, write};
use larder_bench::rounds::{ROUNDS, Spread};
use tokio::sync::{Barrier, OnceCell, watch};

/// How many callers want the key at once.
const CALLERS: [usize; 2] = [200, 10_000];
/// How long its load takes.
const LOAD: Duration = Duration::from_millis(100);
/// How much later than the end of the load the ninety-ninth of a hundred callers may have it.
const LATE: Duration = Duration::from_millis(5);

/// The entry that XFetch renews, its load, and how long it is read.
const TTL: Duration = Duration::from_millis(400);
const RENEWAL: Duration = Duration::from_millis(40);
const READERS: usize = 8;
const WATCHED: Duration = Duration::from_secs(8);

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let report = destination(std::env::args().skip(1))?;
    let load = load();
    let mut rows = Vec::new();
    for callers in CALLERS {
        rows.extend(crowd(callers).await?);
    }
    rows.extend(renewed().await?);
    let table = table(&rows);
    print!("{table}");
    println!("load of the machine before the run: {load}");
    report.map_or(Ok(()), |path| {
        write(&path, "Stampedes", &section(&load, &table))
    })
}

/// All ask at the same moment for what is nowhere: larder, and a cell of tokio's that is filled once.
async fn crowd(callers: usize) -> Result<Vec<Row>> {
    let cache: Cache<usize, usize> = Larder::local().cache("crowd").in_memory()?;
    let loads = Arc::new(AtomicUsize::new(0));
    let (mut by_larder, mut by_cell) = (Behind::default(), Behind::default());
    for round in 0..ROUNDS {
        let ask = move |cache: Cache<usize, usize>, load: Load| async move {
            let load = |_| async move {
                load.run().await;
                Result::Ok(round)
            };
            cache.get_or_load(&round, load).await.map(drop)
        };
        let took = one_crowd(callers, &loads, || cache.clone(), ask).await?;
        by_larder.note(took);
        let (cell, others) = (Arc::new(OnceCell::new()), Arc::default());
        let ask = |cell: Arc<OnceCell<()>>, load: Load| async move {
            cell.get_or_init(|| load.run()).await;
            Ok(())
        };
        let took = one_crowd(callers, &others, || Arc::clone(&cell), ask).await?;
        by_cell.note(took);
    }
    let loads = loads.load(Ordering::Relaxed);
    let limit = LATE.as_secs_f64() * 1e9;
    let p99 =
        |who: &str| format!("{callers} callers{who}: answered behind the end of the load, p99");
    let last = |who: &str| format!("{callers} callers{who}: the last of them");
    let cell = " of a `tokio::sync::OnceCell`";
    Ok(vec![
        Row::count(
            format!("{callers} callers of one missing key, {ROUNDS} times: loads"),
            loads,
            Some(ROUNDS),
        ),
        Row::new(
            p99(""),
            Found::Nanoseconds(Spread::of(by_larder.p99)?, Some(limit)),
        ),
        Row::new(
            last(""),
            Found::Nanoseconds(Spread::of(by_larder.last)?, None),
        ),
        Row::new(
            p99(cell),
            Found::Nanoseconds(Spread::of(by_cell.p99)?, None),
        ),
        Row::new(
            last(cell),
            Found::Nanoseconds(Spread::of(by_cell.last)?, None),
        ),
    ])
}

/// How long behind the end of the load callers had the value, in nanoseconds, one of each a round.
#[derive(Default)]
struct Behind {
    p99: Vec<f64>,
    last: Vec<f64>,
}

impl Behind {
    fn note(&mut self, mut took: Vec<Duration>) {
        took.sort();
        let nanoseconds = |at: usize| took[at - 1].as_secs_f64() * 1e9;
        self.p99.push(nanoseconds((took.len() * 99).div_ceil(100)));
        self.last.push(nanoseconds(took.len()));
    }
}

/// What a caller would do to have the value.
struct Load {
    count: Arc<AtomicUsize>,
    ended: Arc<watch::Sender<Option<Instant>>>,
}

impl Load {
    async fn run(self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(LOAD).await;
        self.ended.send_replace(Some(Instant::now()));
    }
}

/// How long behind the end of the load each caller had the value.
async fn one_crowd<C, Fut>(
    callers: usize,
    loads: &Arc<AtomicUsize>,
    cache: impl Fn() -> C,
    ask: impl Fn(C, Load) -> Fut + Copy + Send + 'static,
) -> Result<Vec<Duration>>
where
    C: Send + 'static,
    Fut: Future<Output = larder::Result<()>> + Send,
{
    let together = Arc::new(Barrier::new(callers));
    let (ended, mut end) = watch::channel(None);
    let ended = Arc::new(ended);
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (cache, together) = (cache(), Arc::clone(&together));
            let load = Load {
                count: Arc::clone(loads),
                ended: Arc::clone(&ended),
            };
            tokio::spawn(async move {
                together.wait().await;
                let answer = ask(cache, load).await;
                (Instant::now(), answer)
            })
        })
        .collect();
    let mut answered = Vec::with_capacity(callers);
    for task in tasks {
        let (at, answer) = task.await?;
        answer?;
        answered.push(at);
    }
    let end = end
        .wait_for(Option::is_some)
        .await?
        .ok_or("it was loaded")?;
    let behind = answered
        .into_iter()
        .map(|at| at.saturating_duration_since(end));
    Ok(behind.collect())
}

/// One entry that is read all the time: how often it is loaded per life, and how many readers wait.
async fn renewed() -> Result<Vec<Row>> {
    let larder = Larder::local();
    let mut rows = Vec::new();
    for (name, beta) in [("no XFetch", None), ("XFetch, β 1", Some(1.0))] {
        let mut builder = larder.cache(name.replace([' ', ',', 'β'], "")).ttl(TTL);
        if let Some(beta) = beta {
            builder = builder.xfetch(beta);
        }
        let cache: Cache<u32, u32> = builder.in_memory()?;
        let waited = read_for(&cache, WATCHED).await?;
        let stats = cache.stats();
        let first = 1;
        rows.push(Row::count(
            format!(
                "{name}: loads in {} s of reads, TTL 0.4 s",
                WATCHED.as_secs()
            ),
            usize::try_from(stats.loads)?,
            None,
        ));
        rows.push(Row::count(
            format!("{name}: readers that waited for a load, but for the first"),
            waited.saturating_sub(first * READERS),
            None,
        ));
    }
    Ok(rows)
}

async fn read_for(cache: &Cache<u32, u32>, watched: Duration) -> Result<usize> {
    let started = Instant::now();
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move {
                let mut waited = 0;
                while started.elapsed() < watched {
                    let asked = Instant::now();
                    let load = |_| async {
                        tokio::time::sleep(RENEWAL).await;
                        Result::Ok(1)
                    };
                    cache.get_or_load(&1, load).await?;
                    waited += usize::from(asked.elapsed() > RENEWAL / 4);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok::<_, larder::Error>(waited)
            })
        })
        .collect();
    let mut waited = 0;
    for reader in readers {
        waited += reader.await??;
    }
    Ok(waited)
}

fn section(load: &str, table: &str) -> String {
    format!(
        "Written by `cargo xtask bench stampede --write`.\n\n\
         Callers are tasks on two threads that a barrier lets go at once; the load takes 100 ms. The \
         entry of the last rows lives 0.4 s, takes 40 ms to load, and is read by eight tasks all the \
         time. What XFetch decides by itself, without flights, is a test: `cargo test -p larder \
         xfetch_recomputes`.\n\n{}\n{table}",
        machine(load, &[])
    )
}
