//! When the disk fails, most often because it is full, and how the store gets over it.
//!
//! A failed write poisons the tree underneath: it can still be read. The store stays readable,
//! answers writes with the error, and tries to write a small file in growing intervals. Once that
//! works it opens the tree again, deletes what the failed writes may have left, and goes on.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::{Clock, Millis};
use larder::store::StoreError;

use crate::directory::Directory;
use crate::error::{DiskError, DiskErrorKind};
use crate::evict::Need;
use crate::shared::Health;
use crate::tree::{Tree, TreeError, TreeOptions};
use crate::writer::{Failure, Presence, Writer};

/// The first and the longest wait between two attempts, in milliseconds.
const FIRST_WAIT: Millis = 20;
const LONGEST_WAIT: Millis = 500;

/// How many keys may be in doubt, and their bytes. Beyond either everything is.
const MAX_DOUBTFUL_KEYS: usize = 16_384;
const MAX_DOUBTFUL_BYTES: usize = 4 << 20;

/// A failure that has not been got over.
#[derive(Debug)]
pub(crate) struct Trouble {
    wait: Millis,
    /// In milliseconds of the pace clock.
    retry_at: Millis,
}

impl Trouble {
    fn new(now: Millis) -> Self {
        Self {
            wait: FIRST_WAIT,
            retry_at: now + FIRST_WAIT,
        }
    }

    /// Until the next attempt.
    pub(crate) fn wait(&self, now: Millis) -> Duration {
        Duration::from_millis(self.retry_at.saturating_sub(now))
    }

    fn again(&mut self, now: Millis) {
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        self.retry_at = now + self.wait;
    }
}

/// Keys whose last change failed, so that the disk may hold the old value, the new one or none.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    keys: Vec<Bytes>,
    bytes: usize,
    everything: bool,
}

impl Doubt {
    pub(crate) fn add(&mut self, keys: &[Bytes]) {
        if self.everything {
            return;
        }
        self.bytes += keys.iter().map(Bytes::len).sum::<usize>();
        self.keys
            .extend(keys.iter().map(|key| Bytes::copy_from_slice(key)));
        if self.keys.len() > MAX_DOUBTFUL_KEYS || self.bytes > MAX_DOUBTFUL_BYTES {
            self.everything();
        }
    }

    /// Nothing that is stored can be trusted.
    pub(crate) fn everything(&mut self) {
        *self = Self {
            everything: true,
            ..Self::default()
        };
    }
}

impl Writer {
    /// Takes note that the tree failed; returns what to tell the caller.
    pub(crate) fn stumble(&mut self, error: TreeError) -> StoreError {
        let error = self.shared.failure(error);
        if self.trouble.is_none() {
            tracing::warn!(%error, "the disk cache takes no writes for now");
            self.trouble = Some(Trouble::new(self.pace.monotonic()));
        }
        if self.doubt.everything {
            self.shared.index.forget_all();
        }
        self.shared.set_health(Health::ReadOnly(error.clone()));
        error
    }

    /// Tries to get over a failure, if it is time to.
    pub(crate) fn heal_if_due(&mut self) {
        let now = self.pace.monotonic();
        if self
            .trouble
            .as_ref()
            .is_none_or(|trouble| now < trouble.retry_at)
        {
            return;
        }
        match self.heal() {
            Ok(()) => {
                self.trouble = None;
                self.shared
                    .counters
                    .reopened
                    .fetch_add(1, Ordering::Relaxed);
                self.shared.set_health(Health::Open);
                tracing::info!("the disk cache takes writes again");
            }
            Err(error) => {
                tracing::debug!(%error, "the disk cache still takes no writes");
                self.stays(&error);
                let now = self.pace.monotonic();
                if let Some(trouble) = &mut self.trouble {
                    trouble.again(now);
                }
            }
        }
    }

    /// Tells callers why the store is not over its trouble.
    fn stays(&self, error: &DiskError) {
        let told = match error.kind() {
            DiskErrorKind::Full => StoreError::refused(error.to_string()),
            _ => StoreError::unavailable(error.to_string()),
        };
        let readable = self.shared.tree().is_some();
        self.shared.set_health(if readable {
            Health::ReadOnly(told)
        } else {
            Health::Down(told)
        });
    }

    fn heal(&mut self) -> Result<(), DiskError> {
        let directory = self.stand()?;
        let healed = self.heal_in(&directory);
        self.directory = Some(directory);
        healed
    }

    /// The directory, locked; made anew if somebody removed it.
    fn stand(&mut self) -> Result<Directory, DiskError> {
        match self.directory.take() {
            Some(directory) if directory.stands() => Ok(directory),
            removed => {
                drop(removed);
                self.take_down();
                Directory::open(&self.shared.path)
            }
        }
    }

    fn heal_in(&mut self, directory: &Directory) -> Result<(), DiskError> {
        directory
            .probe()
            .map_err(|error| opening(directory, TreeError::from(error)))?;
        self.take_down();
        // fjall's own threads may still let go of the old journal, and flush it when they do.
        std::thread::park_timeout(Duration::from_millis(FIRST_WAIT));
        if self.doubt.everything {
            directory
                .wipe()
                .map_err(|error| opening(directory, TreeError::from(error)))?;
            self.doubt = Doubt::default();
        }
        self.open_tree(directory)
    }

    /// Closes the tree; nothing can be read until it is opened again.
    fn take_down(&mut self) {
        if let Health::ReadOnly(error) = self.shared.health() {
            self.shared.set_health(Health::Down(error));
        }
        let tree = self.shared.tree_alone().take();
        drop(tree);
    }

    /// Opens the tree and what it holds, and deletes what is in doubt.
    pub(crate) fn open_tree(&mut self, directory: &Directory) -> Result<(), DiskError> {
        let options = TreeOptions {
            max_bytes: self.shared.options.max_bytes,
            block_cache_bytes: self.shared.options.block_cache_bytes,
            clock: self.shared.options.clock.clone(),
        };
        let tree =
            Tree::open(&directory.tree(), &options).map_err(|error| opening(directory, error))?;
        let loaded = self.load(&tree);
        if loaded.is_ok() {
            *self.shared.tree_alone() = Some(tree);
            self.shared.set_health(Health::Open);
        }
        loaded.map_err(|failure| match failure {
            Failure::Tree(error) => opening(directory, error),
            Failure::Behind => opening(directory, TreeError::Panicked),
        })
    }

    fn load(&mut self, tree: &Tree) -> Result<(), Failure> {
        self.index_all(tree)?;
        let doubtful = std::mem::take(&mut self.doubt);
        let settled = self
            .remove(tree, &doubtful.keys, Presence::OnDisk)
            .and_then(|()| self.make_room(tree, b"", Need::NONE));
        if settled.is_err() {
            self.doubt = doubtful;
        }
        settled
    }
}

/// What to tell somebody whose directory cannot be opened.
fn opening(directory: &Directory, error: TreeError) -> DiskError {
    let path = directory.path().display();
    let (kind, message) = if error.is_full() {
        (
            DiskErrorKind::Full,
            format!("the device under the cache directory {path} is full; free some space on it"),
        )
    } else if error.is_locked() {
        (
            DiskErrorKind::InUse,
            format!("the cache directory {path} is in use by another process"),
        )
    } else if error.io().is_some_and(|error| {
        matches!(
            error.kind(),
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
        )
    }) {
        (
            DiskErrorKind::NotWritable,
            format!("cannot write to the cache directory {path}: {error}"),
        )
    } else {
        (
            DiskErrorKind::Corrupt,
            format!(
                "the files in the cache directory {path} are damaged ({error}); remove the \
                 directory to start with an empty cache"
            ),
        )
    };
    DiskError::new(kind, message).with_source(error)
}
