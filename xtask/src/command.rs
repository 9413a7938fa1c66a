//! What the arguments ask for.

use std::path::PathBuf;

/// What `--help` prints.
pub(crate) const HELP: &str = "\
cargo xtask <command>

  provision             install what the tests need (Debian and Ubuntu packages, as root or by
                        sudo; cargo-deny from crates.io into target/tools)
  test [NAME]...        provision, then format, lints, documentation, dependencies, layers,
                        budgets, unit and integration tests, doc tests, schedules, memory under
                        valgrind, the benchmarks' own lints and tests, and each micro-benchmark
                        once. With NAME: only tests
                        whose names contain it
  bench                 all of the following
  bench memory          the memory tier beside its rivals: times, bytes for each entry, pauses, and
                        large tables beside small ones. Takes some minutes and some 5 GiB
  bench read-path       larder beside hand-written moka + redis-rs and beside other caches of several
                        tiers, and beside a bare GET
  bench coherence       invalidations, tags, the bus and round trips on a real server; and larder
                        beside amalgam-cache. Takes some minutes
  bench stampede        many callers of one key at once, XFetch, refresh-ahead
  bench hitratio DIR    larder's policies beside their rivals on the traces in DIR (NAME.txt.zst, a
                        key on each line); only where it is asked for
        --write         of these: also write the figures to their sections of docs/benchmarks.md
  bench budgets         crates in larder's tree and its cold check
        --demo          also the cold release build of the demo up to its first figures
  help                  this text
";

const COMMANDS: [&str; 4] = ["provision", "test", "bench", "help"];
const BENCHES: [&str; 6] = [
    "memory",
    "read-path",
    "coherence",
    "stampede",
    "hitratio",
    "budgets",
];

/// A command line, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Print [`HELP`].
    Help,
    /// Install what the tests need.
    Provision,
    /// Run every check, or only the tests that match.
    Test {
        /// Passed through to the test programs; empty for everything.
        filter: Vec<String>,
    },
    /// Measure.
    Bench(Bench),
}

/// Which measurements to take.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bench {
    /// The memory tier beside its rivals.
    pub(crate) memory: Option<Report>,
    /// The read path beside its rivals.
    pub(crate) read_path: Option<Report>,
    /// Coherence, alone and beside a rival.
    pub(crate) coherence: Option<Report>,
    /// Many callers of one key.
    pub(crate) stampede: Option<Report>,
    /// Hit ratios on the traces in a folder.
    pub(crate) hitratio: Option<(Report, PathBuf)>,
    /// The build budgets.
    pub(crate) budgets: Option<Depth>,
}

/// Where the figures of a benchmark go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// To the terminal.
    Print,
    /// To the terminal and to the benchmark's sections of docs/benchmarks.md.
    Write,
}

/// How many of the build budgets are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Those of the `larder` crate.
    Library,
    /// Those, and the cold build of the demo, which takes minutes.
    Demo,
}

impl Command {
    /// Reads the arguments behind `cargo xtask`; the error is what to tell the user.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let arguments: Vec<String> = arguments.collect();
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match words.as_slice() {
            [] => Err(format!("which command?\n\n{HELP}")),
            // Help is answered wherever it stands, so that `test --help` tests nothing.
            words if words.iter().any(|word| matches!(*word, "--help" | "-h")) => Ok(Self::Help),
            ["help"] => Ok(Self::Help),
            ["provision"] => Ok(Self::Provision),
            ["test", filter @ ..] => Self::test(filter),
            ["bench", rest @ ..] => Bench::parse(rest).map(Self::Bench),
            ["help" | "provision", extra, ..] => Err(unexpected(extra)),
            [unknown, ..] => Err(did_you_mean("command", unknown, &COMMANDS)),
        }
    }

    fn test(filter: &[&str]) -> Result<Self, String> {
        if let Some(option) = filter.iter().find(|word| word.starts_with('-')) {
            return Err(unexpected(option));
        }
        Ok(Self::Test {
            filter: filter.iter().map(ToString::to_string).collect(),
        })
    }
}

impl Bench {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let (which, options) = match words {
            ["hitratio", folder, options @ ..] if !folder.starts_with('-') => {
                return Self::of_traces(folder, options);
            }
            ["hitratio", ..] => {
                return Err("which traces? `cargo xtask bench hitratio DIR`".into());
            }
            [which, options @ ..] if !which.starts_with('-') => (Some(*which), options),
            options => (None, options),
        };
        if let Some(unknown) = which.filter(|which| !BENCHES.contains(which)) {
            return Err(did_you_mean("benchmark", unknown, &BENCHES));
        }
        let wanted = |name| which.is_none_or(|which| which == name);
        let mut bench = Self {
            memory: wanted("memory").then_some(Report::Print),
            read_path: wanted("read-path").then_some(Report::Print),
            coherence: wanted("coherence").then_some(Report::Print),
            stampede: wanted("stampede").then_some(Report::Print),
            hitratio: None,
            budgets: wanted("budgets").then_some(Depth::Library),
        };
        for option in options {
            bench.accept(option)?;
        }
        Ok(bench)
    }

    fn of_traces(folder: &str, options: &[&str]) -> Result<Self, String> {
        let report = match options {
            [] => Report::Print,
            ["--write"] => Report::Write,
            [extra, ..] => return Err(unexpected(extra)),
        };
        Ok(Self {
            memory: None,
            read_path: None,
            coherence: None,
            stampede: None,
            hitratio: Some((report, folder.into())),
            budgets: None,
        })
    }

    fn accept(&mut self, option: &str) -> Result<(), String> {
        let reports = [
            &mut self.memory,
            &mut self.read_path,
            &mut self.coherence,
            &mut self.stampede,
        ];
        let reports = reports.into_iter().flatten();
        let accepted = match (option, &mut self.budgets) {
            ("--write", _) => reports.map(|report| *report = Report::Write).count() > 0,
            ("--demo", Some(depth)) => {
                *depth = Depth::Demo;
                true
            }
            _ => false,
        };
        accepted.then_some(()).ok_or_else(|| unexpected(option))
    }
}

fn unexpected(word: &str) -> String {
    format!("unexpected argument `{word}`; `cargo xtask --help` lists what there is")
}

fn did_you_mean(what: &str, unknown: &str, known: &[&str]) -> String {
    let known_ones = known.join(", ");
    let nearest = known.iter().min_by_key(|name| distance(unknown, name));
    match nearest {
        Some(name) if distance(unknown, name) <= name.len() / 2 => {
            format!("unknown {what} `{unknown}`; did you mean `{name}`? There is {known_ones}")
        }
        _ => format!("unknown {what} `{unknown}`; there is {known_ones}"),
    }
}

/// How many characters must be inserted, removed or replaced to make `a` into `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        Command::parse(line.split_whitespace().map(str::to_string))
    }

    #[test]
    fn an_unknown_command_is_answered_with_the_nearest_one_and_all_there_are() {
        let commands = "provision, test, bench, help";
        let benches = "memory, read-path, coherence, stampede, hitratio, budgets";
        assert_eq!(
            parse("tset"),
            Err(format!(
                "unknown command `tset`; did you mean `test`? There is {commands}"
            ))
        );
        assert_eq!(
            parse("bench read-pth"),
            Err(format!(
                "unknown benchmark `read-pth`; did you mean `read-path`? There is {benches}"
            ))
        );
        assert_eq!(
            parse("xyzzy"),
            Err(format!("unknown command `xyzzy`; there is {commands}"))
        );
        assert_eq!(
            parse("bench xyzzy"),
            Err(format!("unknown benchmark `xyzzy`; there is {benches}"))
        );
    }

    #[test]
    fn help_wins_over_everything_else() {
        assert_eq!(parse("test --help"), Ok(Command::Help));
        assert_eq!(parse("-h"), Ok(Command::Help));
    }

    #[test]
    fn a_filter_passes_through_and_an_option_does_not() {
        let filter = vec!["fence".into(), "lease".into()];
        assert_eq!(parse("test fence lease"), Ok(Command::Test { filter }));
        assert!(parse("test --quick").unwrap_err().contains("`--quick`"));
    }

    #[test]
    fn an_option_is_refused_where_it_would_do_nothing() {
        let bench = |[memory, read_path, coherence, stampede]: [_; 4], budgets| {
            Ok(Command::Bench(Bench {
                memory,
                read_path,
                coherence,
                stampede,
                hitratio: None,
                budgets,
            }))
        };
        let (print, write) = (Some(Report::Print), Some(Report::Write));
        let library = Some(Depth::Library);
        assert_eq!(parse("bench"), bench([print; 4], library));
        assert_eq!(parse("bench --write"), bench([write; 4], library));
        let only = |which: usize, report| {
            let mut reports = [None; 4];
            reports[which] = report;
            bench(reports, None)
        };
        assert_eq!(parse("bench memory --write"), only(0, write));
        assert_eq!(parse("bench read-path --write"), only(1, write));
        assert_eq!(parse("bench coherence"), only(2, print));
        assert_eq!(parse("bench stampede"), only(3, print));
        assert_eq!(
            parse("bench budgets --demo"),
            bench([None; 4], Some(Depth::Demo))
        );
        assert!(parse("bench budgets --write").is_err());
        assert!(
            parse("bench hitratio")
                .unwrap_err()
                .contains("which traces?")
        );
        assert!(parse("bench hitratio traces --demo").is_err());
        let Ok(Command::Bench(traces)) = parse("bench hitratio traces --write") else {
            panic!("it is understood");
        };
        assert_eq!(traces.hitratio, Some((Report::Write, "traces".into())));
        assert_eq!((traces.memory, traces.read_path), (None, None));
        assert_eq!((traces.coherence, traces.budgets), (None, None));
        assert!(parse("bench memory --demo").is_err());
        assert!(parse("bench coherence --demo").is_err());
        assert!(parse("bench read-path --demo").is_err());
    }

    #[test]
    fn distance_counts_single_character_edits() {
        assert_eq!(distance("test", "test"), 0);
        assert_eq!(distance("tst", "test"), 1);
        assert_eq!(distance("", "help"), 4);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
