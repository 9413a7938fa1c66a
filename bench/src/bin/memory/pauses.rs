//! The longest that one operation takes in a large table while entries expire.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use larder::clock::{BoxFuture, Clock, Millis};
use larder::{Cache, Larder};
use larder_bench::Result;
use larder_bench::report::{Found, Row};
use larder_bench::rounds::Spread;
use larder_bench::tables::{Floor, Table};
use rustix::time::{ClockId, clock_gettime};

use crate::Effort;

/// How many entries there are.
const ENTRIES: usize = 10_000_000;
/// Operations per round: by turns an insert of a new key, and a read.
const OPERATIONS: usize = 500_000;
/// Entries live as long as it takes to insert [`ENTRIES`] at so many in a millisecond.
const INSERTS_PER_MILLI: u64 = 1_000;
/// No operation may take longer, in nanoseconds.
const LONGEST: f64 = 1e6;
/// One operation in a million takes longer than the quantile that is reported.
const ONE_IN: usize = 1_000_000;

/// A clock that moves with the work, so that entries expire at the same pace on every machine.
#[derive(Debug, Default)]
struct WorkClock(AtomicU64);

impl Clock for WorkClock {
    fn monotonic(&self) -> Millis {
        self.0.load(Ordering::Relaxed)
    }

    fn wall(&self) -> Millis {
        self.monotonic()
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// Who does the operations.
trait Paced {
    fn insert(&self, key: u64);
    fn get(&self, key: u64);
    /// What it takes to have as many entries as before `key` was inserted; not timed.
    fn settle(&self, key: u64);
    /// Lets everything expire.
    fn expire_all(&self) {}
}

struct Ours {
    cache: Cache<u64, u64>,
    clock: Arc<WorkClock>,
    lifetime: Millis,
}

impl Ours {
    fn new(entries: usize) -> Result<Self> {
        let clock = Arc::new(WorkClock::default());
        let larder = Larder::builder("bench").clock(clock.clone()).build()?;
        let lifetime = entries as u64 / INSERTS_PER_MILLI;
        let cache = larder
            .cache("table")
            .capacity(entries as u64)
            .ttl(Duration::from_millis(lifetime))
            .in_memory()?;
        Ok(Self {
            cache,
            clock,
            lifetime,
        })
    }
}

impl Paced for Ours {
    fn insert(&self, key: u64) {
        Table::insert(&self.cache, key, key);
    }

    fn get(&self, key: u64) {
        black_box(self.cache.get_in_memory(&key));
    }

    fn settle(&self, key: u64) {
        if key.is_multiple_of(INSERTS_PER_MILLI) {
            self.clock.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn expire_all(&self) {
        self.clock.0.fetch_add(self.lifetime, Ordering::Relaxed);
    }
}

struct Unbounded {
    floor: Floor<u64, Arc<u64>>,
    entries: u64,
}

impl Paced for Unbounded {
    fn insert(&self, key: u64) {
        self.floor.insert(key, Arc::new(key));
    }

    fn get(&self, key: u64) {
        black_box(self.floor.get(&key));
    }

    fn settle(&self, key: u64) {
        if let Some(oldest) = key.checked_sub(self.entries) {
            self.floor.remove(&oldest);
        }
    }
}

/// Nobody: what is found is the machine's own.
struct Nothing;

impl Paced for Nothing {
    fn insert(&self, key: u64) {
        black_box(key);
    }

    fn get(&self, key: u64) {
        black_box(key);
    }

    fn settle(&self, _: u64) {}
}

/// What the operations of one contender took in one phase.
#[derive(Default)]
struct Took {
    /// Nanoseconds of each by the clock on the wall.
    wall: Vec<u32>,
    /// The longest of each round, in nanoseconds on the wall and of its own.
    longest: Vec<(f64, f64)>,
}

impl Took {
    fn round(
        &mut self,
        operations: usize,
        mut operation: impl FnMut(usize) -> (Duration, Duration),
    ) {
        let (mut wall, mut own) = (Duration::ZERO, Duration::ZERO);
        for turn in 0..operations {
            let took = operation(turn);
            wall = wall.max(took.0);
            // Each of the clocks counts something that is not the operation's: what others made it
            // wait, and what the other clock takes.
            own = own.max(took.0.min(took.1));
            let nanoseconds = u32::try_from(took.0.as_nanos()).unwrap_or(u32::MAX);
            self.wall.push(nanoseconds);
        }
        let nanoseconds = |time: Duration| time.as_secs_f64() * 1e9;
        self.longest.push((nanoseconds(wall), nanoseconds(own)));
    }

    fn rows(mut self, phase: &str, name: &str, limit: Option<f64>) -> Result<Vec<Row>> {
        self.wall.sort_unstable();
        let rank = self.wall.len() - 1 - self.wall.len() / ONE_IN;
        let quantile = f64::from(self.wall[rank]);
        let row = |what: &str, found| Row::new(format!("{phase}, {what}, {name}"), found);
        let wall = Spread::of(self.longest.iter().map(|longest| longest.0))?;
        let own = Spread::of(self.longest.iter().map(|longest| longest.1))?;
        Ok(vec![
            row(
                "99.9999 %",
                Found::Nanoseconds(Spread::of([quantile])?, None),
            ),
            row("longest", Found::Longest(wall, limit)),
            row("longest in its own time", Found::Longest(own, limit)),
        ])
    }
}

/// What `work` takes on the wall, and of the processor's time in this thread alone.
fn timed(work: impl FnOnce()) -> (Duration, Duration) {
    let processor = processor_time();
    let began = Instant::now();
    work();
    let wall = began.elapsed();
    (wall, processor_time().saturating_sub(processor))
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

/// A contender and how far it has come.
struct Contender {
    name: &'static str,
    paced: Box<dyn Paced>,
    next: u64,
    limit: Option<f64>,
}

impl Contender {
    fn insert(&mut self) -> (Duration, Duration) {
        let key = self.next;
        let took = timed(|| self.paced.insert(key));
        self.paced.settle(key);
        self.next += 1;
        took
    }

    fn get(&self, random: &mut fastrand::Rng, entries: usize) -> (Duration, Duration) {
        let key = self.next - 1 - random.u64(..entries as u64);
        timed(|| self.paced.get(key))
    }
}

pub(crate) fn rows(effort: Effort) -> Result<Vec<Row>> {
    let entries = effort.of(ENTRIES);
    let ours = Ours::new(entries)?;
    let cache = ours.cache.clone();
    let floor = Unbounded {
        floor: Floor::default(),
        entries: entries as u64,
    };
    let contender = |name, paced: Box<dyn Paced>, limit| Contender {
        name,
        paced,
        next: 0,
        limit,
    };
    let mut contenders = [
        contender("larder", Box::new(ours), Some(LONGEST)),
        contender("floor", Box::new(floor), None),
        contender("nothing", Box::new(Nothing), None),
    ];
    let mut rows = Vec::new();
    for contender in &mut contenders {
        let mut took = Took::default();
        took.round(entries, |_| contender.insert());
        rows.extend(took.rows("filling", contender.name, contender.limit)?);
    }
    let expired = || cache.stats().expirations;
    let phase = |name: &str, contenders: &mut [Contender; 3]| -> Result<Vec<Row>> {
        let before = expired();
        let mut rows = phase(name, contenders, effort, entries)?;
        let count = usize::try_from(expired() - before)?;
        rows.push(Row::count(
            format!("{name}, entries that expired"),
            count,
            None,
        ));
        Ok(rows)
    };
    rows.extend(phase("entries expire in turn", &mut contenders)?);
    contenders[0].paced.expire_all();
    rows.extend(phase("all have expired", &mut contenders)?);
    Ok(rows)
}

/// Rounds of inserts and reads by turns.
fn phase(
    name: &str,
    contenders: &mut [Contender; 3],
    effort: Effort,
    entries: usize,
) -> Result<Vec<Row>> {
    let mut random = fastrand::Rng::with_seed(0x9a05_e501);
    let mut took: [Took; 3] = Default::default();
    for _ in 0..effort.rounds {
        for (contender, took) in contenders.iter_mut().zip(&mut took) {
            took.round(effort.of(OPERATIONS), |turn| match turn % 2 {
                0 => contender.insert(),
                _ => contender.get(&mut random, entries),
            });
        }
    }
    let mut rows = Vec::new();
    for (contender, took) in contenders.iter().zip(took) {
        rows.extend(took.rows(name, contender.name, contender.limit)?);
    }
    Ok(rows)
}

pub(crate) fn method() -> String {
    format!(
        "`Cache<u64, u64>` of {ENTRIES} entries: filled from empty; then half the operations insert new\n\
         keys and half read, while the entries end in the order in which they were filled; then the same\n\
         after the time of all that are left has ended at once. Its clock moves with the inserts. The floor\n\
         removes its oldest key after each insert, untimed; `nothing` only looks at the clocks, so what it\n\
         finds is the machine's. A round is the longest of {OPERATIONS} operations, and what counts is the\n\
         longest of all rounds; its own time is the shorter one of that on the wall and that of the\n\
         thread's processor, without what others made it wait."
    )
}
