//! How many tests ran, as the test programs themselves said it.

use std::io::{BufRead, BufReader, Read, Write};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use crate::workspace::cannot_start;

/// Tests executed, summed over the `test result:` lines of all test programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: usize,
    /// Tests that failed, and test programs that ended without a result.
    pub(crate) failed: usize,
    /// Tests that were not run because they are marked so.
    pub(crate) ignored: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
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
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        if let Some(result) = parse(String::from_utf8_lossy(&line).trim_end()) {
            tally += result;
        }
        line.clear();
    }
    Ok(tally)
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
                ignored: 1
            }
        );
        assert_eq!(shown, output);
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
                ignored: 0
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
