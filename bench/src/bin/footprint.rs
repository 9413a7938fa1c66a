//! What a table takes for each entry besides key and value: the bytes that it has asked for and not
//! given back.
//!
//! `footprint [--write FILE]` prints a table; with `--write` it also writes its section of FILE. A
//! program of its own, because counting slows whatever allocates.

use std::alloc::System;

use cap::Cap;
use larder_bench::Result;
use larder_bench::report::{Found, Row, destination, load, locked, machine, table, write};
use larder_bench::tables::{self, Floor, Table};
use larder_bench_engine::Engine;

#[global_allocator]
static ALLOCATED: Cap<System> = Cap::new(System, usize::MAX);

/// How many entries a table takes.
const ENTRIES: u64 = 1_000_000;
/// How many keys have passed through when a table remembers as many evicted ones as it ever will.
const PASSED: u64 = 4 * ENTRIES;
/// What larder's engine may take, in bytes.
const LIMIT: f64 = 56.0;

fn main() -> Result<()> {
    let report = destination(std::env::args().skip(1))?;
    let load = load();
    let table = table(&rows()?);
    print!("{table}");
    report.map_or(Ok(()), |path| {
        write(&path, "Memory per entry", &section(&load, &table))
    })
}

fn rows() -> Result<Vec<Row>> {
    let entries = ENTRIES as usize;
    let mut rows = Vec::new();
    rows.extend(subject("larder's engine alone", Some(LIMIT), || {
        Ok(Engine::new(ENTRIES))
    })?);
    rows.extend(subject("larder", None, || {
        tables::larder::<u64, u64>(ENTRIES)
    })?);
    rows.extend(subject("moka", None, || {
        Ok(moka::sync::Cache::new(ENTRIES))
    })?);
    rows.extend(subject("quick_cache", None, || {
        Ok(quick_cache::sync::Cache::new(entries))
    })?);
    rows.extend(subject("foyer S3-FIFO", None, || {
        Ok(tables::foyer(entries))
    })?);
    rows.extend(subject("cached", None, || Ok(tables::cached_lru(entries)))?);
    let floor = || Ok(Floor::default());
    rows.extend([filled("floor", None, floor, ENTRIES)?]);
    let dashmap = || Ok(dashmap::DashMap::new());
    rows.extend([filled("dashmap", None, dashmap, ENTRIES)?]);
    let papaya = || Ok(papaya::HashMap::new());
    rows.extend([filled("papaya", None, papaya, ENTRIES)?]);
    Ok(rows)
}

/// A table that evicts: when it is full, and when as many keys have passed through as it remembers.
fn subject<T: Table<u64, u64>>(
    name: &str,
    limit: Option<f64>,
    make: impl Fn() -> Result<T>,
) -> Result<Vec<Row>> {
    Ok(vec![
        filled(name, limit, &make, ENTRIES)?,
        filled(name, limit, &make, PASSED)?,
    ])
}

/// What each entry takes after so many `keys`.
fn filled<T: Table<u64, u64>>(
    name: &str,
    limit: Option<f64>,
    make: impl FnOnce() -> Result<T>,
    keys: u64,
) -> Result<Row> {
    let each = tables::bytes_each(|| ALLOCATED.allocated(), make, keys)?;
    let work = format!("{keys} keys inserted, {name}");
    Ok(Row::new(work, Found::Each(each, limit)))
}

fn section(load: &str, table: &str) -> String {
    let rivals = [
        "moka",
        "quick_cache",
        "foyer-memory",
        "cached",
        "hashbrown",
        "dashmap",
        "papaya",
    ]
    .map(locked);
    let machine = machine(load, &rivals.each_ref().map(String::as_str));
    format!(
        "`cargo xtask bench memory --write`\n\n\
         {table}\n\
         Bytes for each entry besides its `u64` key and `u64` value: what the table has asked\n\
         its allocator for, by the number of entries that it has then. Tables take {ENTRIES} entries; those that\n\
         evict are measured again when they have seen {PASSED} keys and remember as many evicted ones as they\n\
         will. The engine alone is larder's table, with expiry, marks and queues; in larder itself an entry also has\n\
         its value in an `Arc`, as reads give it away, and the times and the stamp that freshness, grace and\n\
         invalidation are decided by.\n\n\
         {machine}"
    )
}
