//! What the handle, the readers and the writer have in common.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use larder::clock::Millis;
use larder::store::{StoreError, StoreResult};
use tokio::sync::oneshot;

use crate::index::Index;
use crate::options::DiskOptions;
use crate::queue::{Queue, Refusal};
use crate::reader::Read;
use crate::record;
use crate::tree::{Tree, TreeError};
use crate::writer::Job;

/// Where the answer to an operation goes. Nobody may be waiting for it any more.
pub(crate) type Reply<T> = oneshot::Sender<StoreResult<T>>;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) path: PathBuf,
    pub(crate) options: DiskOptions,
    pub(crate) index: Index,
    pub(crate) reads: Queue<Read>,
    pub(crate) writes: Queue<Job>,
    pub(crate) counters: Counters,
    /// Readers hold it shared while they read; the writer takes it alone to close the tree.
    tree: RwLock<Option<Tree>>,
    health: RwLock<Health>,
}

/// What can be done at present.
#[derive(Clone, Debug)]
pub(crate) enum Health {
    Open,
    /// A write failed. What is readable can be read until the tree is opened again.
    ReadOnly(StoreError),
    /// There is no tree at present.
    Down(StoreError),
    Closed,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) evicted: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) overloaded: AtomicU64,
    pub(crate) reopened: AtomicU64,
}

/// Figures of a [`Disk`](crate::Disk) at one moment. Counters start at zero when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskStats {
    /// Entries held, those that expired and were not swept yet among them.
    pub entries: u64,
    /// Bytes of these entries, as [`entry_bytes`](crate::entry_bytes) counts.
    pub bytes: u64,
    /// Leases held, those that ended and were not replaced yet among them.
    pub leases: u64,
    /// Leases dropped because [`DiskOptions::max_leases`] was reached.
    pub leases_dropped: u64,
    /// Entries evicted because [`DiskOptions::max_bytes`] or
    /// [`DiskOptions::max_entries`] was reached.
    pub evicted: u64,
    /// Entries swept after their time to live.
    pub expired: u64,
    /// Reads that met a damaged record and were answered as a miss.
    pub damaged: u64,
    /// Operations refused because [`DiskOptions::queue`] was full or the disk too far behind.
    pub overloaded: u64,
    /// How often the files were opened again after a failure.
    pub reopened: u64,
}

impl Shared {
    pub(crate) fn new(path: PathBuf, options: DiskOptions, index: Index) -> Self {
        // The largest value must fit even if it is larger than the limit.
        const QUEUED_BYTES: usize = 64 << 20;
        Self {
            path,
            index,
            reads: Queue::new(options.queue, usize::MAX),
            writes: Queue::new(options.queue, QUEUED_BYTES),
            counters: Counters::default(),
            tree: RwLock::new(None),
            health: RwLock::new(Health::Closed),
            options,
        }
    }

    pub(crate) fn wall(&self) -> Millis {
        self.options.clock.wall()
    }

    pub(crate) fn monotonic(&self) -> Millis {
        self.options.clock.monotonic()
    }

    pub(crate) fn tree(&self) -> RwLockReadGuard<'_, Option<Tree>> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the reads under way.
    pub(crate) fn tree_alone(&self) -> RwLockWriteGuard<'_, Option<Tree>> {
        self.tree.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn health(&self) -> Health {
        self.health
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_health(&self, health: Health) {
        *self.health.write().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// Whether reads can be answered.
    pub(crate) fn readable(&self) -> StoreResult<()> {
        match self.health() {
            Health::Open | Health::ReadOnly(_) => Ok(()),
            Health::Down(error) => Err(error),
            Health::Closed => Err(self.closed()),
        }
    }

    /// Whether writes can be answered.
    pub(crate) fn writable(&self) -> StoreResult<()> {
        match self.health() {
            Health::Open => Ok(()),
            Health::ReadOnly(error) | Health::Down(error) => Err(error),
            Health::Closed => Err(self.closed()),
        }
    }

    pub(crate) fn closed(&self) -> StoreError {
        StoreError::unavailable(format!(
            "the disk cache in {} is closed",
            self.path.display()
        ))
    }

    pub(crate) fn refusal(&self, refusal: Refusal) -> StoreError {
        match refusal {
            Refusal::Closed => self.closed(),
            Refusal::Full => self.behind(),
        }
    }

    /// The disk does not keep up.
    pub(crate) fn behind(&self) -> StoreError {
        self.counters.overloaded.fetch_add(1, Ordering::Relaxed);
        StoreError::unavailable(format!(
            "the disk cache in {} does not keep up with what it is asked",
            self.path.display()
        ))
    }

    /// How a failure of the tree is told to callers.
    pub(crate) fn failure(&self, error: TreeError) -> StoreError {
        let path = self.path.display();
        if error.is_full() {
            return StoreError::refused(format!(
                "the device under the disk cache {path} is full; nothing is stored until there \
                 is space on it"
            ))
            .with_source(error);
        }
        StoreError::unavailable(format!(
            "the disk cache in {path} is not usable: {error}; it is tried again"
        ))
        .with_source(error)
    }

    /// The longest value that is stored: never more than the whole cache.
    pub(crate) fn max_value_bytes(&self) -> usize {
        let room = usize::try_from(self.options.max_bytes / 2).unwrap_or(usize::MAX);
        self.options.max_value_bytes.min(room)
    }

    /// Refuses what would not fit, before anything is written.
    pub(crate) fn check_size(&self, key: &[u8], value: &[u8]) -> StoreResult<()> {
        if key.is_empty() || key.len() > record::MAX_KEY_BYTES {
            return Err(StoreError::refused(format!(
                "a key of {} bytes is refused: the disk cache takes 1 to {} bytes",
                key.len(),
                record::MAX_KEY_BYTES
            )));
        }
        if value.len() > self.max_value_bytes() {
            return Err(StoreError::refused(format!(
                "a value of {} bytes is refused: the disk cache takes up to {}",
                value.len(),
                self.max_value_bytes()
            )));
        }
        Ok(())
    }

    pub(crate) fn stats(&self) -> DiskStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let leases = self.index.leases();
        DiskStats {
            entries: self.index.entries(),
            bytes: self.index.bytes(),
            leases: leases.len() as u64,
            leases_dropped: leases.dropped(),
            evicted: count(&self.counters.evicted),
            expired: count(&self.counters.expired),
            damaged: count(&self.counters.damaged),
            overloaded: count(&self.counters.overloaded),
            reopened: count(&self.counters.reopened),
        }
    }
}

/// The first `limit + 1` bytes, so that the caller can tell whether there were more.
pub(crate) fn cut(value: &[u8], limit: usize) -> Bytes {
    let len = value.len().min(limit.saturating_add(1));
    Bytes::copy_from_slice(&value[..len])
}
