//! The directory of a store: what it may hold, and that one process owns it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::{DiskError, DiskErrorKind};

const LOCK: &str = "lock";
const MARKER: &str = "larder-disk";
const MARKER_TEXT: &str = "larder-disk format 1\n";
const TREE: &str = "tree";
const PROBE: &str = "probe";

/// How much must fit on the device before a store that ran out of space is opened again.
const PROBE_BYTES: usize = 1 << 20;

/// A directory that this process owns until the value is dropped.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Locked. The operating system unlocks it when the process ends, however it ends.
    _lock: File,
}

impl Directory {
    /// Creates the directory where needed, checks what it holds, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, DiskError> {
        create(path)?;
        check(path)?;
        let lock = lock(path)?;
        mark(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the tree lives.
    pub(crate) fn tree(&self) -> PathBuf {
        self.path.join(TREE)
    }

    /// Whether the directory is still the one that was locked, and not removed since.
    pub(crate) fn stands(&self) -> bool {
        self.path.join(LOCK).exists()
    }

    /// Writes and removes a file, to find out whether the device has space again.
    pub(crate) fn probe(&self) -> io::Result<()> {
        let path = self.path.join(PROBE);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&vec![0; PROBE_BYTES])?;
            file.sync_all()
        });
        let removed = fs::remove_file(&path);
        written.and(removed)
    }

    /// Removes everything that is stored.
    pub(crate) fn wipe(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.tree()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn create(path: &Path) -> Result<(), DiskError> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => return Err(in_the_way(path)),
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Err(in_the_way(path)),
        Err(_) => {}
    }
    fs::create_dir_all(path).map_err(|error| match error.kind() {
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => in_the_way(path),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => full(path, error),
        _ => DiskError::new(
            DiskErrorKind::NotWritable,
            format!("cannot create the cache directory {shown}: {error}"),
        )
        .with_source(error),
    })
}

/// Refuses a directory with anything in it that a store did not write.
fn check(path: &Path) -> Result<(), DiskError> {
    let marker = match fs::read(path.join(MARKER)) {
        Ok(marker) => Some(marker),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(not_writable(path, error)),
    };
    if marker.as_deref() == Some(MARKER_TEXT.as_bytes()) {
        return Ok(());
    }
    // A process killed while it created the store leaves an unfinished marker and no tree.
    let unfinished = marker.is_none_or(|text| MARKER_TEXT.as_bytes().starts_with(&text));
    let ours = |name: &std::ffi::OsStr| name == LOCK || name == MARKER;
    let strange = fs::read_dir(path)
        .map_err(|error| not_writable(path, error))?
        .filter_map(Result::ok)
        .find(|found| !ours(&found.file_name()));
    match strange {
        None if unfinished => Ok(()),
        None => Err(foreign(path, MARKER)),
        Some(found) => Err(foreign(path, &found.file_name().to_string_lossy())),
    }
}

fn lock(path: &Path) -> Result<File, DiskError> {
    let shown = path.display();
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(LOCK))
        .map_err(|error| not_writable(path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DiskError::new(
            DiskErrorKind::InUse,
            format!(
                "the cache directory {shown} is in use by another process or another Disk of \
                 this one; close that one, or choose another directory"
            ),
        )),
        Err(TryLockError::Error(error)) => Err(DiskError::new(
            DiskErrorKind::NotWritable,
            format!(
                "cannot lock the cache directory {shown}: {error}; choose a directory on a file \
                 system that supports locks"
            ),
        )
        .with_source(error)),
    }
}

fn mark(path: &Path) -> Result<(), DiskError> {
    let marker = path.join(MARKER);
    if fs::read(&marker).is_ok_and(|text| text == MARKER_TEXT.as_bytes()) {
        return Ok(());
    }
    File::create(&marker)
        .and_then(|mut file| {
            file.write_all(MARKER_TEXT.as_bytes())?;
            file.sync_all()
        })
        .map_err(|error| not_writable(path, error))
}

fn in_the_way(path: &Path) -> DiskError {
    DiskError::new(
        DiskErrorKind::NotADirectory,
        format!(
            "the cache directory {} cannot be used, because a file stands in its way; choose \
             another directory or remove the file",
            path.display()
        ),
    )
}

fn foreign(path: &Path, found: &str) -> DiskError {
    DiskError::new(
        DiskErrorKind::Foreign,
        format!(
            "the directory {} holds something else than a larder disk cache of this format \
             ({found}); choose an empty directory",
            path.display()
        ),
    )
}

fn full(path: &Path, error: io::Error) -> DiskError {
    DiskError::new(
        DiskErrorKind::Full,
        format!(
            "the device under the cache directory {} is full; free some space on it",
            path.display()
        ),
    )
    .with_source(error)
}

fn not_writable(path: &Path, error: io::Error) -> DiskError {
    if is_full(&error) {
        return full(path, error);
    }
    DiskError::new(
        DiskErrorKind::NotWritable,
        format!(
            "cannot write to the cache directory {}: {error}; choose a directory that this \
             process may write to",
            path.display()
        ),
    )
    .with_source(error)
}

/// Whether an error says that there is no space, rather than that something is broken.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}
