//! `test`: everything that a change must pass, in order, each step timed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::tally::{Tally, count};
use crate::workspace::{Workspace, run as run_command};
use crate::{budgets, layers, provision};

/// A step's remark for the summary, or what went wrong.
type Outcome = Result<String, String>;

/// One step; the counts of tests it ran go into the tally.
struct Step {
    name: &'static str,
    run: fn(&Workspace, &[String], &mut Tally) -> Outcome,
}

/// What needs no test to be run. Left out when only some tests are asked for.
const CHECKS: [Step; 9] = [
    Step {
        name: "format",
        run: |workspace, _, _| format(workspace),
    },
    Step {
        name: "lints",
        run: |workspace, _, _| lints(workspace, ""),
    },
    Step {
        name: "lints, all features",
        run: |workspace, _, _| lints(workspace, "--all-features"),
    },
    Step {
        name: "documentation",
        run: |workspace, _, _| documentation(workspace),
    },
    Step {
        name: "dependencies",
        run: |workspace, _, _| dependencies(workspace),
    },
    Step {
        name: "layers",
        run: |workspace, _, _| layers::check(workspace),
    },
    Step {
        name: "budgets",
        run: |workspace, _, _| budgets::tree(workspace),
    },
    Step {
        name: "lints of the benchmarks",
        run: |workspace, _, _| benchmarks(workspace),
    },
    Step {
        name: "micro-benchmarks, once each",
        run: |workspace, _, _| micro_benchmarks(workspace),
    },
];

/// The tests themselves. The examples in the documentation are tests of their own kind.
const TESTS: [Step; 5] = [
    Step {
        name: "unit and integration tests",
        run: |workspace, filter, tally| {
            tests(
                workspace,
                "--workspace --all-features --lib --bins --tests",
                filter,
                tally,
            )
        },
    },
    Step {
        name: "doc tests",
        run: |workspace, filter, tally| {
            tests(workspace, "--workspace --all-features --doc", filter, tally)
        },
    },
    Step {
        name: "schedules",
        run: |workspace, filter, tally| schedules(workspace, filter, tally),
    },
    Step {
        name: "memory under memcheck",
        run: |workspace, filter, tally| memcheck(workspace, filter, tally),
    },
    Step {
        name: "tests of the benchmarks",
        run: |workspace, filter, tally| {
            tests(
                workspace,
                "--manifest-path bench/Cargo.toml --lib --test footprint",
                filter,
                tally,
            )
        },
    },
];

/// Runs all steps, or only the tests that match `filter`, and ends with a summary.
///
/// A failed step does not keep the later ones from running: one run shows everything that is
/// wrong. Only what cannot be provisioned ends it at once, since tests would fail for that alone.
pub(crate) fn run(workspace: &Workspace, filter: &[String]) -> ExitCode {
    if !filter.is_empty() {
        println!("only tests whose names contain {}", filter.join(" or "));
    }
    let mut summary = Summary::default();
    summary.step("provision", |_| provision::for_tests(workspace));
    if !summary.failed() {
        let checks = if filter.is_empty() { &CHECKS[..] } else { &[] };
        for step in checks.iter().chain(&TESTS) {
            summary.step(step.name, |tally| (step.run)(workspace, filter, tally));
        }
    }
    println!("\n== summary\n{}", summary.text());
    if summary.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn format(workspace: &Workspace) -> Outcome {
    run_command(&mut workspace.cargo("fmt --all --check"))?;
    run_command(&mut workspace.cargo("fmt --manifest-path bench/Cargo.toml --check"))?;
    Ok(String::new())
}

fn lints(workspace: &Workspace, features: &str) -> Outcome {
    let mut clippy = workspace.cargo("clippy --workspace --all-targets");
    clippy
        .args(features.split_whitespace())
        .args(["--", "--deny", "warnings"]);
    run_command(&mut clippy).map(|()| String::new())
}

/// Libraries alone: the binary has the name of the library `larder`, and both would be written
/// to one place.
fn documentation(workspace: &Workspace) -> Outcome {
    let mut doc = workspace.cargo("doc --workspace --lib --no-deps --all-features");
    run_command(doc.env("RUSTDOCFLAGS", "--deny warnings")).map(|()| String::new())
}

/// Licences, banned crates and sources, in the workspace and among the benchmarks' rivals.
/// Not advisories: their database is on a network that a build may lack.
fn dependencies(workspace: &Workspace) -> Outcome {
    for manifest in ["Cargo.toml", "bench/Cargo.toml"] {
        let mut deny = workspace.program(provision::cargo_deny_path(workspace));
        deny.args([
            "--all-features",
            "--manifest-path",
            manifest,
            "--config",
            "deny.toml",
        ]);
        run_command(deny.args(["check", "bans", "licenses", "sources"]))?;
    }
    Ok(String::new())
}

fn benchmarks(workspace: &Workspace) -> Outcome {
    let mut clippy = workspace.cargo("clippy --manifest-path bench/Cargo.toml --all-targets");
    run_command(clippy.args(["--", "--deny", "warnings"])).map(|()| String::new())
}

/// They are no tests and count as none; but what nobody runs for long does not run any more.
fn micro_benchmarks(workspace: &Workspace) -> Outcome {
    let mut once = workspace.cargo("test --manifest-path bench/Cargo.toml --bench cache");
    run_command(&mut once).map(|()| String::new())
}

fn tests(workspace: &Workspace, which: &str, filter: &[String], tally: &mut Tally) -> Outcome {
    let mut test = workspace.cargo("test --no-fail-fast");
    test.args(which.split_whitespace()).arg("--").args(filter);
    run_tests(&mut test, tally)
}

/// The tests that shuttle schedules. They need a build of their own, in which the locks that they
/// are about are shuttle's.
fn schedules(workspace: &Workspace, filter: &[String], tally: &mut Tally) -> Outcome {
    if !filter.is_empty() && !filter.iter().any(|name| name.contains("schedules")) {
        return Ok("not asked for".into());
    }
    let mut test = workspace.cargo("test --package larder --lib --target-dir target/shuttle --");
    test.env("RUSTFLAGS", "--cfg shuttle");
    test.arg("schedules::");
    run_tests(&mut test, tally)
}

/// What runs a test program so that reads of what is not there, and blocks that nobody frees, are
/// errors.
const MEMCHECK: &str = "target.'cfg(all())'.runner = ['valgrind', '--quiet', \
    '--error-exitcode=99', '--leak-check=full', '--show-leak-kinds=definite', \
    '--errors-for-leak-kinds=definite']";

/// Tests that take long for their numbers alone: others do the same to less.
const TOO_LONG_FOR_MEMCHECK: [&str; 3] = [
    "an_entry_takes_no_more_than",
    "a_walk_sees_once",
    "it_follows_the_model_for_long",
];

/// The tests of the memory tier once more, under valgrind. The engine itself forbids unsafe code, so
/// this is about what it stands on. Programs of the same build are run, most of them without a test
/// of that name.
fn memcheck(workspace: &Workspace, filter: &[String], tally: &mut Tally) -> Outcome {
    if !cfg!(target_os = "linux") {
        return Ok("only on Linux".into());
    }
    if !filter.is_empty() && !filter.iter().any(|name| name.contains("memory")) {
        return Ok("not asked for".into());
    }
    let mut test = workspace.cargo("test --workspace --all-features --lib --no-fail-fast");
    test.args(["--config", MEMCHECK, "--", "memory::"]);
    for name in TOO_LONG_FOR_MEMCHECK {
        test.args(["--skip", name]);
    }
    run_tests(test.env("PROPTEST_CASES", "4"), tally)
}

fn run_tests(test: &mut std::process::Command, tally: &mut Tally) -> Outcome {
    // Many tests mean to panic: traces of those would bury what the failed ones say.
    let counted = count(test.env("RUST_BACKTRACE", "0"), std::io::stdout())?;
    let ran = format!("{} passed, {} failed", counted.passed, counted.failed);
    let outcome = match counted {
        Tally { failed: 1.., .. } => Err(ran),
        // An ignored test looks like a passed one to whoever reads only the last line.
        Tally {
            ignored: ignored @ 1..,
            ..
        } => Err(format!("{ran}, {ignored} ignored")),
        _ => Ok(ran),
    };
    *tally += counted;
    outcome
}

/// What happened so far.
#[derive(Default)]
struct Summary {
    rows: Vec<Row>,
    tally: Tally,
}

struct Row {
    name: &'static str,
    took: Duration,
    outcome: Outcome,
}

impl Summary {
    fn step(&mut self, name: &'static str, run: impl FnOnce(&mut Tally) -> Outcome) {
        println!("\n== {name}");
        let started = Instant::now();
        let outcome = run(&mut self.tally);
        if let Err(why) = &outcome {
            eprintln!("{why}");
        }
        self.rows.push(Row {
            name,
            took: started.elapsed(),
            outcome,
        });
    }

    fn failed(&self) -> bool {
        self.rows.iter().any(|row| row.outcome.is_err())
    }

    /// Whether everything that was to run did run and passed.
    fn passed(&self) -> bool {
        !self.failed() && self.tally.passed > 0 && self.tally.failed == 0
    }

    /// One line per step, what failed and what it said, and last the number of tests that passed and failed.
    fn text(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            text += &row.text();
        }
        let failed: Vec<_> = self
            .rows
            .iter()
            .filter(|row| row.outcome.is_err())
            .map(|row| row.name)
            .collect();
        if !failed.is_empty() {
            text += &format!("failed: {}\n", failed.join(", "));
        }
        for words in &self.tally.last_words {
            text += words;
            text += "\n";
        }
        if self.tally.passed + self.tally.failed == 0 {
            text += "no test was run\n";
        }
        text += &format!("{} passed, {} failed", self.tally.passed, self.tally.failed);
        text
    }
}

impl Row {
    fn text(&self) -> String {
        let (word, remark) = match &self.outcome {
            Ok(remark) => ("ok", remark.as_str()),
            Err(why) => ("FAILED", why.lines().next().unwrap_or_default()),
        };
        let line = format!(
            "{:<28} {word:<7} {:>6.1} s  {remark}",
            self.name,
            self.took.as_secs_f64()
        );
        format!("{}\n", line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(steps: Vec<(&'static str, Outcome)>, passed: usize, failed: usize) -> Summary {
        let took = Duration::from_millis(1500);
        Summary {
            rows: steps
                .into_iter()
                .map(|(name, outcome)| Row {
                    name,
                    took,
                    outcome,
                })
                .collect(),
            tally: Tally {
                passed,
                failed,
                ignored: 0,
                last_words: Vec::new(),
            },
        }
    }

    #[test]
    fn the_last_line_counts_tests_and_a_failed_step_is_named_above_it() {
        let steps = vec![
            ("format", Err("`cargo fmt`: exit status: 1\nmore".into())),
            ("doc tests", Ok("12 passed, 0 failed".into())),
        ];
        let mut summary = summary(steps, 12, 0);
        summary.tally.last_words.push("some::test\n    why".into());
        let expected = "\
format                       FAILED     1.5 s  `cargo fmt`: exit status: 1
doc tests                    ok         1.5 s  12 passed, 0 failed
failed: format
some::test
    why
12 passed, 0 failed";
        assert_eq!(summary.text(), expected);
        assert!(!summary.passed());
    }

    #[test]
    fn a_run_without_tests_is_no_success() {
        let empty = summary(vec![("doc tests", Ok(String::new()))], 0, 0);
        assert!(
            empty
                .text()
                .ends_with("no test was run\n0 passed, 0 failed")
        );
        assert!(!empty.passed());
        assert!(summary(vec![("doc tests", Ok(String::new()))], 1, 0).passed());
        assert!(!summary(vec![("doc tests", Ok(String::new()))], 1, 1).passed());
    }
}
