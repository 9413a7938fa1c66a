//! The terminal: plain lines, with a little colour where somebody is looking.

use std::fmt::Display;
use std::io::{BufRead, IsTerminal, Write};

/// Writes lines to standard output.
///
/// A reader that has gone away, as with `| head`, is not an error: the lines are dropped.
pub(crate) struct Term {
    tty: bool,
    colour: bool,
}

impl Term {
    /// Standard output; colour only on a terminal, and never where `NO_COLOR` is set.
    pub(crate) fn stdout() -> Self {
        let tty = std::io::stdout().is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            tty,
            colour: tty && !refused,
        }
    }

    /// Whether somebody is looking, so that a progress bar makes sense.
    pub(crate) fn is_tty(&self) -> bool {
        self.tty
    }

    /// One line, or several.
    pub(crate) fn line(&self, text: impl Display) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// Asks somebody at the keyboard; `None` if nobody is there. Only a plain yes is one.
    pub(crate) fn ask(&self, question: impl Display) -> Option<bool> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let mut out = std::io::stdout().lock();
        let _ = write!(out, "{question} [y/N] ").and_then(|()| out.flush());
        let mut answer = String::new();
        let read = stdin.lock().read_line(&mut answer).is_ok();
        Some(read && matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    /// A heading with an empty line above it.
    pub(crate) fn title(&self, text: impl Display) {
        self.line(format_args!("\n{}", self.paint("1", text)));
    }

    /// A line of running figures, set back from the story.
    pub(crate) fn figures(&self, text: impl Display) {
        self.line(format_args!("  {}", self.paint("2", text)));
    }

    /// What an act found out: `holds` or `DOES NOT HOLD`, and the evidence.
    pub(crate) fn verdict(&self, holds: bool, text: impl Display) {
        let word = if holds {
            self.paint("32", "holds")
        } else {
            self.paint("31", "DOES NOT HOLD")
        };
        self.line(format_args!("  {word}: {text}"));
    }

    /// Something that did not go as asked and does not stop the story.
    pub(crate) fn warning(&self, text: impl Display) {
        self.line(format_args!("{}: {text}", self.paint("33", "warning")));
    }

    fn paint(&self, code: &str, text: impl Display) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }
}

/// Says on standard error why the program ends.
pub(crate) fn complain(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr().lock(), "larder: {error:#}");
}
