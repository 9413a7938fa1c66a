//! How many tests ran and what the failed ones said, read from the output of the test programs.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use crate::workspace::cannot_start;

/// Tests executed, summed over the `test result:` lines of all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: usize,
    /// Tests that failed, and test programs that ended without a result.
    pub(crate) failed: usize,
    /// Tests that were not run because they are marked so.
    pub(crate) ignored: usize,
    /// The end of what each failed test said, its name first.
    pub(crate) last_words: Vec<String>,
}

/// How many lines of what a failed test said are told again at the end. A log may be cut short in its
/// middle, and so lose the place where the test stood.
const LAST_LINES: usize = 12;

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.last_words.extend(other.last_words);
    }
}

/// Runs `cargo test` as given, shows its output as it comes, and counts.
pub(crate) fn count(command: &mut Command, shown: impl Write) -> Result<Tally, String> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| cannot_start(command, &error))?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        tally = relay(output, shown).map_err(|error| error.to_string())?;
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test program was killed before its result line.
        tally.failed = 1;
    }
    Ok(tally)
}

fn relay(from: impl Read, mut to: impl Write) -> std::io::Result<Tally> {
    let mut from = BufReader::new(from);
    let mut tally = Tally::default();
    let mut section = Section::default();
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if section.takes(text) {
            tally.last_words.extend(section.end());
            section = Section::begin(text);
        } else {
            section.push(text);
        }
        if let Some(result) = parse(text) {
            tally += result;
        }
        line.clear();
    }
    Ok(tally)
}

/// What one failed test said: test programs tell it between `---- name stdout ----` and the next such
/// line, or the list of those that failed.
#[derive(Default)]
struct Section {
    name: Option<String>,
    lines: VecDeque<String>,
}

impl Section {
    /// Whether a line ends what went before it.
    fn takes(&self, line: &str) -> bool {
        named(line).is_some() || (self.name.is_some() && line == "failures:")
    }

    fn begin(line: &str) -> Self {
        Self {
            name: named(line).map(str::to_owned),
            lines: VecDeque::new(),
        }
    }

    fn push(&mut self, line: &str) {
        if self.name.is_none() || line.is_empty() {
            return;
        }
        if self.lines.len() == LAST_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line.to_owned());
    }

    fn end(self) -> Option<String> {
        let mut text = self.name?;
        for line in self.lines {
            text += "\n    ";
            text += &line;
        }
        Some(text)
    }
}

fn named(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn parse(line: &str) -> Option<Tally> {
    let (_verdict, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        counts
            .split("; ")
            .find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
    };
    Some(Tally {
        passed: number("passed")?,
        failed: number("failed")?,
        ignored: number("ignored")?,
        last_words: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Workspace;

    fn sh(script: &str) -> Tally {
        // Not shown: whoever counts this very test's output would count these lines too.
        count(
            Workspace::here().program("sh").args(["-c", script]),
            std::io::sink(),
        )
        .unwrap()
    }

    #[test]
    fn result_lines_are_summed_and_everything_is_shown() {
        let output: &[u8] = b"running 4 tests\n\xff not text\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 40 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s\n\
            test result: FAILED. 0 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s";
        let mut shown = Vec::new();
        let tally = relay(output, &mut shown).unwrap();
        assert_eq!(
            tally,
            Tally {
                passed: 45,
                failed: 5,
                ignored: 1,
                last_words: Vec::new(),
            }
        );
        assert_eq!(shown, output);
    }

    #[test]
    fn the_last_lines_of_each_failed_test_are_kept() {
        let lines: String = (0..20).map(|line| format!("line {line}\n")).collect();
        let output = format!(
            "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\n{lines}\n---- b::c stdout ----\n\
             not so\n\n\nfailures:\n    a\n    b::c\n\n"
        );
        let tally = relay(output.as_bytes(), std::io::sink()).unwrap();
        let [first, second] = &tally.last_words[..] else {
            panic!("{:?}", tally.last_words)
        };
        assert!(first.starts_with("a\n    line 8\n"), "{first}");
        assert!(first.ends_with("\n    line 19"), "{first}");
        assert_eq!(second, "b::c\n    not so");
    }

    #[test]
    fn a_test_program_that_ends_without_a_result_counts_as_one_failure() {
        assert_eq!(sh("exit 101").failed, 1);
        let killed = "echo 'test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured'; exit 101";
        assert_eq!(
            sh(killed),
            Tally {
                passed: 5,
                failed: 1,
                ignored: 0,
                last_words: Vec::new(),
            }
        );
        let counted = "echo 'test result: FAILED. 5 passed; 2 failed; 0 ignored'; exit 101";
        assert_eq!(sh(counted).failed, 2);
    }

    #[test]
    fn text_about_results_is_not_a_result() {
        assert_eq!(
            parse("the test result: ok. 3 passed; 0 failed; 1 ignored"),
            None
        );
        assert_eq!(parse("test result: unknown"), None);
    }
}
