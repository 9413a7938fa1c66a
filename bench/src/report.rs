//! The table, and the machine it was measured on.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use crate::rounds::{ROUNDS, Spread};

/// What was measured, beside what it should be.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was done.
    pub work: String,
    /// What was found.
    pub found: Found,
}

/// A figure of the table.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// Times of one operation in nanoseconds.
    Nanoseconds(Spread),
    /// Ratios of two times, and the most that the median may be.
    Ratio(Spread, Option<f64>),
    /// How many of something there were, and how many there may be.
    Count(usize, Option<usize>),
}

impl Found {
    fn columns(self) -> [String; 3] {
        let three = |spread: Spread, show: fn(f64) -> String| {
            [spread.median, spread.min, spread.max].map(show)
        };
        match self {
            Self::Nanoseconds(spread) => three(spread, time),
            Self::Ratio(spread, _) => three(spread, |ratio| format!("{ratio:.2}")),
            Self::Count(count, _) => [count.to_string(), String::new(), String::new()],
        }
    }

    fn target(self) -> String {
        match self {
            Self::Ratio(_, Some(limit)) => format!("≤ {limit:.2}"),
            Self::Count(_, Some(limit)) => format!("≤ {limit}"),
            _ => String::new(),
        }
    }

    /// Whether the median meets the target; `None` where there is none.
    fn met(self) -> Option<bool> {
        match self {
            Self::Nanoseconds(_) => None,
            Self::Ratio(spread, limit) => limit.map(|limit| spread.median <= limit),
            Self::Count(count, limit) => limit.map(|limit| count <= limit),
        }
    }
}

fn time(nanoseconds: f64) -> String {
    if nanoseconds < 1_000.0 {
        format!("{nanoseconds:.0} ns")
    } else {
        format!("{:.1} µs", nanoseconds / 1_000.0)
    }
}

/// The rows as a Markdown table, aligned so that a terminal shows it as well.
pub fn table(rows: &[Row]) -> String {
    let head = ["work", "median", "min", "max", "target", "met"].map(String::from);
    let mut lines = vec![head];
    lines.extend(rows.iter().map(|row| {
        let [median, min, max] = row.found.columns();
        let met = row
            .found
            .met()
            .map_or("", |met| if met { "yes" } else { "no" });
        [
            row.work.clone(),
            median,
            min,
            max,
            row.found.target(),
            met.into(),
        ]
    }));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: [usize; 6] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(widths) {
            let padding = width - cell.chars().count();
            text += &format!("| {cell}{} ", " ".repeat(padding));
        }
        text += "|\n";
        if number == 0 {
            text += &widths
                .map(|width| format!("|{}", "-".repeat(width + 2)))
                .concat();
            text += "|\n";
        }
    }
    text
}

/// How many tasks wanted a processor in the last minute; the benchmark should be the only one.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").into()
}

/// Where and with what the figures were measured, as a Markdown list. `load` is that of the
/// machine before the benchmark began.
pub fn machine(load: &str, rivals: &[&str]) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut text = String::new();
    let mut line = |what: &str, is: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "- {what}: {is}");
    };
    line("processor", &format!("{}, {cores} cores", processor()));
    line("load before the run", load);
    line("kernel", &first_line("uname", &["-sr"]));
    line("compiler", &first_line("rustc", &["--version"]));
    line("server", &first_line("redis-server", &["--version"]));
    line("rivals", &rivals.join(", "));
    line(
        "rounds",
        &format!("{ROUNDS}, interleaved; ratios are taken within a round"),
    );
    text
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(
        || std::env::consts::ARCH.into(),
        |(_, name)| name.trim().into(),
    )
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok()
        .and_then(|text| Some(text.lines().next()?.to_string()))
        .unwrap_or("unknown".into())
}

/// The version of `package` in this workspace's lock file.
pub fn locked(package: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let after = lock.split_once(&format!("name = \"{package}\"\nversion = \""));
    let version = after
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or("?", |(v, _)| v);
    format!("{package} {version}")
}

/// Writes the report to `path`, folders included.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write(path: &Path, text: &str) -> crate::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_whether_each_target_was_met() {
        let spread = |median| Spread {
            median,
            min: 0.25,
            max: 1234.0,
        };
        let row = |work: &str, found| Row {
            work: work.into(),
            found,
        };
        let rows = [
            row("hit", Found::Ratio(spread(0.5), Some(0.5))),
            row("late", Found::Ratio(spread(0.51), Some(0.5))),
            row("time", Found::Nanoseconds(spread(99.6))),
            row("loads", Found::Count(2, Some(1))),
        ];
        let expected = "\
| work  | median | min  | max     | target | met |
|-------|--------|------|---------|--------|-----|
| hit   | 0.50   | 0.25 | 1234.00 | ≤ 0.50 | yes |
| late  | 0.51   | 0.25 | 1234.00 | ≤ 0.50 | no  |
| time  | 100 ns | 0 ns | 1.2 µs  |        |     |
| loads | 2      |      |         | ≤ 1    | no  |
";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        assert_eq!(locked("moka"), "moka 0.12.16");
        assert_eq!(locked("no-such-package"), "no-such-package ?");
    }
}
