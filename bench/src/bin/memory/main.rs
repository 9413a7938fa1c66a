//! The memory tier beside its rivals, and beside the least that a table does.
//!
//! `memory [--write FILE]` prints tables; with `--write` it also writes its section of FILE.
//! `memory [--short] [PART]` prints what is asked for; `--short` does a tenth of the work in two
//! rounds, to see that it runs. The parts are
//!
//! - [`speed`]: hits, inserts with eviction, and both, in one thread and in several
//! - [`scale`]: what a hit costs in small tables and in large ones
//! - [`pauses`]: the longest that one operation takes in a large table while entries expire

mod pauses;
mod scale;
mod speed;

use std::path::Path;

use larder_bench::Result;
use larder_bench::report::{Row, load, locked, machine, table, write};
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

/// Measures one part.
type Part = fn(Effort) -> Result<Vec<Row>>;

/// What is measured, by name.
const PARTS: [(&str, Part); 3] = [
    ("speed", speed::rows),
    ("scale", scale::rows),
    ("pauses", pauses::rows),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments.as_slice() {
        ["--short"] => measure(Effort::SHORT, None).map(drop),
        ["--short", part] => measure(Effort::SHORT, Some(part)).map(drop),
        [] => measure(Effort::FULL, None).map(drop),
        [part] => measure(Effort::FULL, Some(part)).map(drop),
        ["--write", path] => {
            let load = load();
            let tables = measure(Effort::FULL, None)?;
            write(Path::new(path), "Memory", &section(&load, &tables))
        }
        _ => Err("usage: memory [--write FILE], or memory [--short] [PART]".into()),
    }
}

/// Prints the tables of all parts or of one, and returns them.
fn measure(effort: Effort, part: Option<&str>) -> Result<Vec<String>> {
    let mut tables = Vec::new();
    for (name, rows) in PARTS {
        if part.is_none_or(|part| part == name) {
            let table = table(&rows(effort)?);
            println!("{table}");
            tables.push(table);
        }
    }
    if tables.is_empty() {
        return Err("the parts are speed, scale and pauses".into());
    }
    Ok(tables)
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
