//! The memory tier beside its rivals, and beside the least that a table does.
//!
//! `memory [--write FILE]` prints tables; with `--write` it also writes its section of FILE.
//! `memory --short` does a tenth of the work in two rounds, to see that it runs.
//!
//! - [`speed`]: hits, inserts with eviction, and both, in one thread and in several
//! - [`scale`]: what a hit costs in small tables and in large ones
//! - [`pauses`]: the longest that one operation takes in a large table while entries expire

mod pauses;
mod scale;
mod speed;

use std::path::PathBuf;

use larder_bench::Result;
use larder_bench::report::{destination, load, locked, machine, table, write};
use larder_bench::rounds::ROUNDS;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: usize,
    /// The sizes of the full benchmark are divided by this.
    part: usize,
}

impl Effort {
    const FULL: Self = Self {
        rounds: ROUNDS,
        part: 1,
    };
    const SHORT: Self = Self {
        rounds: 2,
        part: 10,
    };

    fn of(self, size: usize) -> usize {
        size / self.part
    }
}

fn main() -> Result<()> {
    let (effort, report) = arguments()?;
    let load = load();
    let mut tables = Vec::new();
    for rows in [speed::rows, scale::rows, pauses::rows] {
        let table = table(&rows(effort)?);
        println!("{table}");
        tables.push(table);
    }
    println!("load of the machine before the run: {load}");
    report.map_or(Ok(()), |path| {
        write(&path, "Memory", &section(&load, &tables))
    })
}

fn arguments() -> Result<(Effort, Option<PathBuf>)> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [only] if only == "--short" => Ok((Effort::SHORT, None)),
        _ => Ok((Effort::FULL, destination(arguments.into_iter())?)),
    }
}

fn section(load: &str, tables: &[String]) -> String {
    let rivals = [
        "moka",
        "quick_cache",
        "foyer-memory",
        "cached",
        "amalgam-cache",
        "hashbrown",
        "dashmap",
        "papaya",
    ]
    .map(locked);
    let machine = machine(load, &rivals.each_ref().map(String::as_str));
    let methods = [speed::method(), scale::method(), pauses::method()];
    let parts = tables.iter().zip(methods);
    let parts: Vec<_> = parts
        .map(|(table, method)| format!("{table}\n{method}"))
        .collect();
    format!(
        "`cargo xtask bench memory --write`\n\n{}\n\n{machine}",
        parts.join("\n\n")
    )
}
