//! Hits, inserts with eviction, and both, in one thread and in several.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use larder_bench::Result;
use larder_bench::report::Row;
use larder_bench::rounds::{Times, interleaved};
use larder_bench::tables::{self, FLOOR_SHARDS, Floor, Table};
use larder_bench::workload::{Draws, SKEW, VALUE_BYTES};
use larder_bench_engine::Engine;

use crate::Effort;

/// How many entries are resident, and how many a table takes that is to evict: what the processor's
/// caches can hold of one table, and what they cannot.
const ENTRIES: [usize; 2] = [10_000, 100_000];
/// So many times as many keys as entries there are where reads and inserts mix.
const MIXED_KEYS: usize = 2;
/// One operation of so many is an insert there.
const ONE_INSERT_IN: usize = 10;
/// Operations per round and thread.
const READS: usize = 1_000_000;
const INSERTS: usize = 200_000;
const MIXED: usize = 500_000;
/// Numbers of threads that reads are measured with, if there are as many processors.
const THREADS: [usize; 5] = [1, 2, 4, 8, 16];

type Key = String;
type Value = Arc<[u8; VALUE_BYTES]>;

/// What larder's table is held to, in times of moka. A public call has targets of its own, with
/// everything that it does: see the benchmark `read-path`.
const HIT: f64 = 0.20;
const INSERT: f64 = 0.12;
const BOTH: f64 = 0.12;

/// A table under measurement.
trait Driven: Send + Sync {
    fn fill(&self, keys: &[Key]);
    /// Reads every drawn key; how many are there.
    fn read(&self, keys: &[Key], draws: &[u32]) -> usize;
    fn insert_all(&self, keys: Vec<Key>);
    fn mix(&self, keys: &[Key], draws: &[u32]);
}

impl<T: Table<Key, Value>> Driven for T {
    fn fill(&self, keys: &[Key]) {
        for key in keys {
            self.insert(key.clone(), Arc::new([7; VALUE_BYTES]));
        }
    }

    fn read(&self, keys: &[Key], draws: &[u32]) -> usize {
        let found = |&&number: &&u32| black_box(self.get(&keys[number as usize])).is_some();
        draws.iter().filter(found).count()
    }

    fn insert_all(&self, keys: Vec<Key>) {
        let value = Arc::new([7; VALUE_BYTES]);
        for key in keys {
            self.insert(key, Arc::clone(&value));
        }
    }

    fn mix(&self, keys: &[Key], draws: &[u32]) {
        let value = Arc::new([7; VALUE_BYTES]);
        for (turn, &number) in draws.iter().enumerate() {
            let key = &keys[number as usize];
            if turn % ONE_INSERT_IN == 0 {
                self.insert(key.clone(), Arc::clone(&value));
            } else {
                black_box(self.get(key));
            }
        }
    }
}

struct Subject {
    name: &'static str,
    table: Box<dyn Driven>,
    /// What is held to a limit.
    held: bool,
    /// Its operations that evict are a thousand times as slow, and so many times fewer.
    slow: bool,
}

/// Tables of so many entries, moka first. Those that are a floor take any number.
fn subjects(entries: usize) -> Result<Vec<Subject>> {
    let subject = |name, table: Box<dyn Driven>| Subject {
        name,
        table,
        held: name == "larder's engine alone",
        slow: name == "amalgam-cache",
    };
    let count = entries as u64;
    Ok(vec![
        subject("moka", Box::new(moka::sync::Cache::new(count))),
        subject("larder", Box::new(tables::larder(count)?)),
        subject("larder's engine alone", Box::new(Engine::new(count))),
        subject(
            "quick_cache",
            Box::new(quick_cache::sync::Cache::new(entries)),
        ),
        subject("foyer S3-FIFO", Box::new(tables::foyer(entries))),
        subject("cached", Box::new(tables::cached_lru(entries))),
        subject("amalgam-cache", Box::new(tables::amalgam(count)?)),
        subject("floor", Box::<Floor<_, _>>::default()),
        subject("dashmap", Box::new(dashmap::DashMap::new())),
        subject("papaya", Box::new(papaya::HashMap::new())),
    ])
}

pub(crate) fn rows(effort: Effort) -> Result<Vec<Row>> {
    let (mut rows, mut names) = (Vec::new(), Names(0));
    for entries in ENTRIES {
        rows.extend(hits(effort, entries)?);
        let subjects = subjects(entries)?;
        for subject in &subjects {
            let times = if subject.slow { 1 } else { 2 };
            subject.table.fill(&names.next(times * entries));
        }
        rows.extend(inserts(effort, entries, &subjects, &mut names)?);
        rows.extend(mixed(effort, entries, &subjects)?);
    }
    Ok(rows)
}

/// Keys that nobody had before.
struct Names(u64);

impl Names {
    fn next(&mut self, count: usize) -> Vec<Key> {
        let first = self.0;
        self.0 += count as u64;
        (first..self.0)
            .map(|number| format!("new:{number:012}"))
            .collect()
    }
}

fn keys(count: usize) -> Vec<Key> {
    (0..count)
        .map(|number| format!("page:{number:08}"))
        .collect()
}

fn hits(effort: Effort, entries: usize) -> Result<Vec<Row>> {
    let keys = keys(entries);
    // Twice the room, so that no part of a divided table has to evict.
    let subjects = subjects(2 * entries)?;
    for subject in &subjects {
        subject.table.fill(&keys);
    }
    let processors = std::thread::available_parallelism()?.get();
    let draws = Draws::new(entries);
    let mut rows = Vec::new();
    for threads in THREADS.into_iter().filter(|&threads| threads <= processors) {
        let draws: Vec<_> = (0..threads)
            .map(|thread| draws.take(thread as u64, effort.of(READS)))
            .collect();
        let times = interleaved(subjects.len(), effort.rounds, |who| {
            in_threads(&draws, |draws| {
                let found = subjects[who].table.read(&keys, draws);
                let all = found == draws.len();
                all.then_some(())
                    .ok_or("a resident key was not found".into())
            })
        })?;
        let work = match threads {
            1 => format!("hit, {entries} entries, 1 thread"),
            _ => format!("hit, {entries} entries, {threads} threads"),
        };
        let limit = (threads <= 2).then_some(HIT);
        rows.extend(compared(
            &work,
            &subjects.iter().collect::<Vec<_>>(),
            &times,
            limit,
        )?);
    }
    Ok(rows)
}

/// The time of one operation while a thread for each of `shares` does its own.
fn in_threads(shares: &[Vec<u32>], work: impl Fn(&[u32]) -> Result<()> + Sync) -> Result<Duration> {
    let ready = Barrier::new(shares.len() + 1);
    let (ready, work) = (&ready, &work);
    let took = std::thread::scope(|scope| {
        let workers: Vec<_> = shares
            .iter()
            .map(|share| {
                scope.spawn(move || {
                    ready.wait();
                    work(share)
                })
            })
            .collect();
        ready.wait();
        let began = Instant::now();
        for worker in workers {
            worker.join().map_err(|_| "a thread panicked")??;
        }
        Result::Ok(began.elapsed())
    })?;
    Ok(took / shares[0].len() as u32)
}

fn inserts(
    effort: Effort,
    entries: usize,
    subjects: &[Subject],
    names: &mut Names,
) -> Result<Vec<Row>> {
    let times = interleaved(subjects.len(), effort.rounds, |who| {
        let subject = &subjects[who];
        let count = if subject.slow { 10 } else { effort.of(INSERTS) };
        let keys = names.next(count);
        let began = Instant::now();
        subject.table.insert_all(keys);
        Ok(began.elapsed() / count as u32)
    })?;
    compared(
        &format!("insert of a new key, full with {entries}"),
        &subjects.iter().collect::<Vec<_>>(),
        &times,
        Some(INSERT),
    )
}

fn mixed(effort: Effort, entries: usize, subjects: &[Subject]) -> Result<Vec<Row>> {
    let keys = keys(MIXED_KEYS * entries);
    let draws = Draws::new(keys.len()).take(0, effort.of(MIXED));
    let subjects: Vec<_> = subjects.iter().filter(|subject| !subject.slow).collect();
    let times = interleaved(subjects.len(), effort.rounds, |who| {
        let began = Instant::now();
        subjects[who].table.mix(&keys, &draws);
        Ok(began.elapsed() / draws.len() as u32)
    })?;
    let work = format!("90 reads and 10 inserts, {entries} entries");
    compared(&work, &subjects, &times, Some(BOTH))
}

/// The first one's times, and those of the others in times of it.
fn compared(
    work: &str,
    subjects: &[&Subject],
    times: &[Times],
    limit: Option<f64>,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (subject, times_of) in subjects.iter().zip(times) {
        let name = subject.name;
        rows.push(if rows.is_empty() {
            Row::times(format!("{work}, {name}"), times_of)?
        } else {
            let limit = limit.filter(|_| subject.held);
            Row::ratio(
                format!("{work}, to moka, {name}"),
                times_of,
                &times[0],
                limit,
            )?
        });
    }
    Ok(rows)
}

pub(crate) fn method() -> String {
    format!(
        "String keys, values `Arc<[u8; {VALUE_BYTES}]>`, keys drawn by Zipf {SKEW}. Hits: so many keys are\n\
         resident in tables with room for twice as many, and with several threads the time is that of one\n\
         operation of one thread. Inserts: the tables are full, and every key is new. Mixed: one operation in\n\
         {ONE_INSERT_IN} stores the key that was drawn, from {MIXED_KEYS} times as many keys as there is room for, in the\n\
         same tables. `larder` is `Cache` by `get_in_memory` and `set_in_memory`, with everything that it does\n\
         for its users; the engine alone is its table, with expiry but without freshness, fence, tags and\n\
         statistics: the targets are its own, as those of a public call are in the section on the read path.\n\
         `floor` is `hashbrown` behind {FLOOR_SHARDS} locks; it and dashmap and papaya keep everything.\n\
         amalgam-cache inserts 10 keys a round, since each insert takes so long, and is left out of the mix."
    )
}
