//! The table, and the machine it was measured on.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rounds::{ROUNDS, Spread, Times};

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
    /// Times of one operation in nanoseconds, and the most that the median may be.
    Nanoseconds(Spread, Option<f64>),
    /// Ratios of two times, and the most that the median may be.
    Ratio(Spread, Option<f64>),
    /// How many of something there were, and how many there may be.
    Count(usize, Option<usize>),
    /// Hundredths, and how many there may be.
    Percent(f64, Option<f64>),
    /// Bytes of memory.
    Bytes(f64),
    /// Bytes for each of many, and how many there may be.
    Each(f64, Option<f64>),
    /// The longest times of rounds in nanoseconds, and how long the longest of all may be.
    Longest(Spread, Option<f64>),
}

impl Row {
    /// What `work` came to.
    pub fn new(work: impl Into<String>, found: Found) -> Self {
        let work = work.into();
        Self { work, found }
    }

    /// The times of one contender.
    ///
    /// # Errors
    ///
    /// When there was no round.
    pub fn times(work: impl Into<String>, times: &Times) -> crate::Result<Self> {
        let found = Found::Nanoseconds(times.nanoseconds()?, None);
        Ok(Self::new(work, found))
    }

    /// The times of one contender, and the most nanoseconds that they may be.
    ///
    /// # Errors
    ///
    /// When there was no round.
    pub fn times_within(work: impl Into<String>, times: &Times, limit: f64) -> crate::Result<Self> {
        let found = Found::Nanoseconds(times.nanoseconds()?, Some(limit));
        Ok(Self::new(work, found))
    }

    /// The times of one contender over those of another, and the most that it may be.
    ///
    /// # Errors
    ///
    /// When there was no round.
    pub fn ratio(
        work: impl Into<String>,
        times: &Times,
        rival: &Times,
        limit: Option<f64>,
    ) -> crate::Result<Self> {
        let found = Found::Ratio(times.ratio_to(rival)?, limit);
        Ok(Self::new(work, found))
    }

    /// How many there were, and how many there may be.
    pub fn count(work: impl Into<String>, count: usize, limit: Option<usize>) -> Self {
        Self::new(work, Found::Count(count, limit))
    }
}

impl Found {
    fn columns(self) -> [String; 3] {
        let three = |spread: Spread, show: fn(f64) -> String| {
            [spread.median, spread.min, spread.max].map(show)
        };
        match self {
            Self::Nanoseconds(spread, _) | Self::Longest(spread, _) => three(spread, time),
            Self::Ratio(spread, _) => three(spread, |ratio| format!("{ratio:.2}")),
            Self::Count(count, _) => [count.to_string(), String::new(), String::new()],
            Self::Percent(share, _) => [format!("{share:.1} %"), String::new(), String::new()],
            Self::Each(bytes, _) => [format!("{bytes:.1} B"), String::new(), String::new()],
            Self::Bytes(bytes) => [
                format!("{:.1} MiB", bytes / f64::from(1 << 20)),
                String::new(),
                String::new(),
            ],
        }
    }

    fn target(self) -> String {
        match self {
            Self::Nanoseconds(_, Some(limit)) => format!("≤ {}", time(limit)),
            Self::Longest(_, Some(limit)) => format!("max ≤ {}", time(limit)),
            Self::Each(_, Some(limit)) => format!("≤ {limit:.0} B"),
            Self::Ratio(_, Some(limit)) => format!("≤ {limit:.2}"),
            Self::Percent(_, Some(limit)) => format!("≤ {limit:.0} %"),
            Self::Count(_, Some(limit)) => format!("≤ {limit}"),
            _ => String::new(),
        }
    }

    /// Whether the target is met, of several rounds by the median, unless it is about the longest;
    /// `None` where there is none.
    fn met(self) -> Option<bool> {
        match self {
            Self::Bytes(_) => None,
            Self::Nanoseconds(spread, limit) | Self::Ratio(spread, limit) => {
                limit.map(|limit| spread.median <= limit)
            }
            Self::Longest(spread, limit) => limit.map(|limit| spread.max <= limit),
            Self::Percent(found, limit) | Self::Each(found, limit) => {
                limit.map(|limit| found <= limit)
            }
            Self::Count(count, limit) => limit.map(|limit| count <= limit),
        }
    }
}

fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ..1e3 => format!("{nanoseconds:.0} ns"),
        ..1e6 => format!("{:.1} µs", nanoseconds / 1e3),
        ..1e9 => format!("{:.1} ms", nanoseconds / 1e6),
        _ => format!("{:.1} s", nanoseconds / 1e9),
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

/// Where the report goes, by the arguments of a benchmark: nowhere, or `--write FILE`.
///
/// # Errors
///
/// When they are something else.
pub fn destination(mut arguments: impl Iterator<Item = String>) -> crate::Result<Option<PathBuf>> {
    match (
        arguments.next().as_deref(),
        arguments.next(),
        arguments.next(),
    ) {
        (None, _, _) => Ok(None),
        (Some("--write"), Some(path), None) => Ok(Some(path.into())),
        _ => Err("the only arguments are: --write FILE".into()),
    }
}

/// What stands above all sections.
const PREAMBLE: &str = "\
# Benchmarks

Each section is written by the command that stands in it, and the others stay as they are. Times
belong to the machine; what larder is held to are the ratios: its time over the rival's in the same
round, the median of rounds.
";

/// Writes the section `heading` of the report at `path`, in the place of the one that was there.
///
/// # Errors
///
/// When the file cannot be read or written.
pub fn write(path: &Path, heading: &str, text: &str) -> crate::Result<()> {
    let before = match std::fs::read_to_string(path) {
        Ok(before) => before,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, with_section(&before, heading, text))?;
    Ok(())
}

/// The document with one section replaced, or added at its end.
fn with_section(document: &str, heading: &str, text: &str) -> String {
    let mut sections: Vec<(&str, &str)> = document
        .split("\n## ")
        .skip(1)
        .map(|section| section.split_once('\n').unwrap_or((section, "")))
        .map(|(heading, text)| (heading, text.trim()))
        .collect();
    match sections.iter_mut().find(|(known, _)| *known == heading) {
        Some((_, known)) => *known = text.trim(),
        None => sections.push((heading, text.trim())),
    }
    let sections = sections.iter();
    let sections = sections.map(|(heading, text)| format!("\n## {heading}\n\n{text}\n"));
    std::iter::once(PREAMBLE.to_owned())
        .chain(sections)
        .collect()
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
        let rows = [
            Row::new("hit", Found::Ratio(spread(0.5), Some(0.5))),
            Row::new("late", Found::Ratio(spread(0.51), Some(0.5))),
            Row::new("time", Found::Nanoseconds(spread(99.6), Some(5e7))),
            Row::new("cost", Found::Percent(5.04, Some(5.0))),
            Row::new("size", Found::Bytes(1572864.0)),
            Row::new("each", Found::Each(56.04, Some(56.0))),
            Row::new("longest", Found::Longest(spread(0.5), Some(1000.0))),
            Row::count("loads", 2, Some(1)),
        ];
        let expected = "\
| work    | median  | min  | max     | target       | met |
|---------|---------|------|---------|--------------|-----|
| hit     | 0.50    | 0.25 | 1234.00 | ≤ 0.50       | yes |
| late    | 0.51    | 0.25 | 1234.00 | ≤ 0.50       | no  |
| time    | 100 ns  | 0 ns | 1.2 µs  | ≤ 50.0 ms    | yes |
| cost    | 5.0 %   |      |         | ≤ 5 %        | no  |
| size    | 1.5 MiB |      |         |              |     |
| each    | 56.0 B  |      |         | ≤ 56 B       | no  |
| longest | 0 ns    | 0 ns | 1.2 µs  | max ≤ 1.0 µs | no  |
| loads   | 2       |      |         | ≤ 1          | no  |
";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn a_section_is_replaced_in_its_place_and_the_others_stay() {
        let one = with_section("", "One", "text\n\n### Part\n");
        assert_eq!(one, format!("{PREAMBLE}\n## One\n\ntext\n\n### Part\n"));
        let two = with_section(&one, "Two", "more");
        assert_eq!(two, format!("{one}\n## Two\n\nmore\n"));
        let again = with_section(&two, "One", "new");
        assert_eq!(
            again,
            format!("{PREAMBLE}\n## One\n\nnew\n\n## Two\n\nmore\n")
        );
        assert_eq!(with_section(&again, "One", "new"), again);
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        assert_eq!(locked("moka"), "moka 0.12.16");
        assert_eq!(locked("no-such-package"), "no-such-package ?");
    }
}
