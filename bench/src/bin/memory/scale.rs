//! What a hit costs in small tables and in large ones.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_bench::Result;
use larder_bench::report::{Found, Row};
use larder_bench::rounds::{Spread, Times, interleaved};
use larder_bench::tables::{self, Floor, Table};
use larder_bench_engine::Engine;

use crate::Effort;

/// Sizes of the tables in entries; the last one needs some 5 GiB.
const SIZES: [usize; 4] = [10_000, 100_000, 1_000_000, 10_000_000];
/// Reads per round.
const READS: usize = 300_000;
/// What a hit of the largest table may cost more than one of the smallest, counted in hits of the
/// floor at the same size.
const FLAT: f64 = 1.3;

/// All of one size: the floor, and what is compared with it.
const NAMES: [&str; 3] = ["floor", "larder", "larder's engine alone"];

trait Driven {
    fn fill(&self, count: usize);
    fn read(&self, keys: &[u64]) -> Result<Duration>;
}

impl<T: Table<u64, Arc<u64>>> Driven for T {
    fn fill(&self, count: usize) {
        for key in 0..count as u64 {
            self.insert(key, Arc::new(key));
        }
    }

    fn read(&self, keys: &[u64]) -> Result<Duration> {
        let began = Instant::now();
        let found = keys.iter().filter(|key| black_box(self.get(key)).is_some());
        let found = found.count();
        let took = began.elapsed();
        if found < keys.len() {
            return Err("a resident key was lost".into());
        }
        Ok(took / keys.len() as u32)
    }
}

/// The tables of one size in the order of [`NAMES`], and the keys that are read.
struct Size {
    entries: usize,
    tables: [Box<dyn Driven>; NAMES.len()],
    reads: Vec<u64>,
}

impl Size {
    fn new(entries: usize, reads: usize) -> Result<Self> {
        let room = 2 * entries as u64;
        let tables: [Box<dyn Driven>; NAMES.len()] = [
            Box::new(Floor::default()),
            Box::new(tables::larder(room)?),
            Box::new(Engine::new(room)),
        ];
        for table in &tables {
            table.fill(entries);
        }
        let mut random = fastrand::Rng::with_seed(entries as u64);
        let reads = (0..reads).map(|_| random.u64(..entries as u64)).collect();
        Ok(Self {
            entries,
            tables,
            reads,
        })
    }
}

pub(crate) fn rows(effort: Effort) -> Result<Vec<Row>> {
    let sizes = SIZES.map(|entries| Size::new(effort.of(entries), effort.of(READS)));
    let sizes = sizes.into_iter().collect::<Result<Vec<_>>>()?;
    // All sizes take their turns in the same rounds, so that they can be compared with each other.
    let times = interleaved(sizes.len() * NAMES.len(), effort.rounds, |who| {
        let size = &sizes[who / NAMES.len()];
        size.tables[who % NAMES.len()].read(&size.reads)
    })?;
    let times: Vec<&[Times]> = times.chunks(NAMES.len()).collect();
    let mut rows = Vec::new();
    for (size, times) in sizes.iter().zip(&times) {
        let work = format!("hit among {} entries", size.entries);
        rows.push(Row::times(format!("{work}, floor"), &times[0])?);
        for (name, times_of) in NAMES.iter().zip(*times).skip(1) {
            let work = format!("{work}, to the floor, {name}");
            rows.push(Row::ratio(work, times_of, &times[0], None)?);
        }
    }
    let (smallest, largest) = (times[0], times[times.len() - 1]);
    for (who, name) in NAMES.iter().enumerate().skip(1) {
        let grown = largest[who]
            .ratios_to(&largest[0])
            .zip(smallest[who].ratios_to(&smallest[0]))
            .map(|(large, small)| large / small);
        let work = format!("the same ratio, largest to smallest, {name}");
        rows.push(Row::new(work, Found::Ratio(Spread::of(grown)?, Some(FLAT))));
    }
    Ok(rows)
}

pub(crate) fn method() -> String {
    "Keys are `u64` and values `Arc<u64>` in all of them; keys are read at random, each as often as any\n\
     other, so that a large table is read from memory rather than from the processor's caches, the\n\
     floor's as well as larder's. The last rows are what that leaves."
        .into()
}
