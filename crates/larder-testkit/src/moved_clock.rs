//! A clock of another process that a test moves while that process runs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Error, spawner};

/// What is loaded in front of the C library.
const SOURCE: &str = include_str!("clock_shim.c");
/// The variable that tells it where the offset stands.
const VARIABLE: &str = "LARDER_TESTKIT_CLOCK";

/// A library that moves the time of day of the programs it is loaded into, and the file through
/// which it is told how far.
#[derive(Debug)]
pub(crate) struct MovedClock {
    library: PathBuf,
    path: PathBuf,
    offset: File,
}

impl MovedClock {
    /// Builds the library in `dir` with the C compiler of this machine. The clock is not moved yet.
    pub(crate) fn build(dir: &Path) -> Result<Self, Error> {
        let (source, library) = (dir.join("clock_shim.c"), dir.join("clock_shim.so"));
        let path = dir.join("clock");
        let in_dir = |e| Error::io("cannot write what moves the clock", e);
        std::fs::write(&source, SOURCE).map_err(in_dir)?;
        std::fs::write(&path, [0; 8]).map_err(in_dir)?;
        let offset = OpenOptions::new().write(true).open(&path).map_err(in_dir)?;
        let compiler = spawner::find("cc").ok_or_else(|| {
            Error::new("no C compiler `cc` on PATH, which moving the clock of a server needs")
        })?;
        let output = Command::new(compiler)
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(&source)
            .arg("-ldl")
            .output()
            .map_err(|e| Error::io("cannot start the C compiler", e))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::new(format!("cc: {}", said.trim_end())));
        }
        Ok(Self {
            library,
            path,
            offset,
        })
    }

    /// Has a program run by this clock.
    pub(crate) fn govern(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library);
        command.env(VARIABLE, &self.path);
    }

    /// From now on it is this much later there, or earlier.
    pub(crate) fn set(&self, offset: Offset) -> Result<(), Error> {
        let millis = offset.millis();
        // One write of eight aligned bytes: who reads meanwhile sees the old number or the new one.
        self.offset
            .write_all_at(&millis.to_ne_bytes(), 0)
            .map_err(|e| Error::io("cannot move the clock", e))
    }
}

/// How a clock differs from the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// It is this much later there.
    Ahead(Duration),
    /// It is this much earlier there.
    Behind(Duration),
}

impl Offset {
    pub(crate) fn millis(self) -> i64 {
        let whole = |by: Duration| i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        match self {
            Self::Ahead(by) => whole(by),
            Self::Behind(by) => -whole(by),
        }
    }
}
