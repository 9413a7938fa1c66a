//! What the handle, the readers and the writer have in common.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use larder::clock::Millis;
use larder::store::{Position, StoreError, StoreResult, Tagged};
use tokio::sync::oneshot;

use crate::index::Index;
use crate::options::DiskOptions;
use crate::positions::Positions;
use crate::queue::{Queue, Refusal};
use crate::reader::Read;
use crate::record;
use crate::tags::{self, POSITION_BYTES};
use crate::tree::{Tree, TreeError};
use crate::writer::Job;

/// Where the answer to an operation goes. Nobody may be waiting for it any more.
pub(crate) type Reply<T> = oneshot::Sender<StoreResult<T>>;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) path: PathBuf,
    pub(crate) options: DiskOptions,
    pub(crate) index: Index,
    pub(crate) positions: Positions,
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
    /// Entries held, and small records beside them; those that expired and were not removed yet
    /// among them.
    pub entries: u64,
    /// Bytes of all these, as [`entry_bytes`](crate::entry_bytes) counts.
    pub bytes: u64,
    /// Leases held, those that ended and were not replaced yet among them.
    pub leases: u64,
    /// Leases dropped because [`DiskOptions::max_leases`] was reached.
    pub leases_dropped: u64,
    /// Entries evicted because [`DiskOptions::max_bytes`] or
    /// [`DiskOptions::max_entries`] was reached.
    pub evicted: u64,
    /// Entries removed after their time to live.
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
            positions: Positions::default(),
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

    /// Where a counter stands, if that is known in memory.
    pub(crate) fn position(&self, counter: &[u8]) -> Option<Position> {
        self.positions.find(&self.index, counter, self.wall())
    }

    /// Reads the record of an entry. A damaged one is a miss, counted, and is not looked at again.
    pub(crate) fn find(&self, tree: &Tree, key: &[u8]) -> Result<Option<fjall::Slice>, TreeError> {
        match tree.get(key) {
            Err(error) if error.io().is_none() => {
                self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "a record of the disk cache is damaged; it counts as a miss");
                self.index.lock(key).hide();
                Ok(None)
            }
            found => found,
        }
    }

    /// Refuses what would not fit, before anything is written.
    pub(crate) fn check_value(
        &self,
        key: &Bytes,
        value: &[u8],
        tags: Option<&Tagged>,
    ) -> StoreResult<()> {
        self.check_size(key, value.len())?;
        match tags {
            None => Ok(()),
            Some(tags) => self.check_tags(key, value, tags),
        }
    }

    fn check_tags(&self, key: &Bytes, value: &[u8], tags: &Tagged) -> StoreResult<()> {
        self.check_size(&tags.counter, POSITION_BYTES)?;
        for record in &tags.records {
            self.check_size(record, larder::store::TagRecord::LEN)?;
        }
        if tags::split_versions(value, tags.records.len()).is_none() || !tags::distinct(key, tags) {
            return Err(StoreError::refused(
                "a value is refused whose tags do not match the versions in it, or are not distinct",
            ));
        }
        let need = tags::need(key, value.len(), tags);
        if need.bytes > self.options.max_bytes || need.entries > self.options.max_entries {
            return Err(StoreError::refused(format!(
                "a value with {} tags is refused: it takes {} entries of {} bytes with its \
                 records, more than the disk cache may hold",
                tags.records.len(),
                need.entries,
                need.bytes
            )));
        }
        Ok(())
    }

    pub(crate) fn check_size(&self, key: &[u8], value_len: usize) -> StoreResult<()> {
        if key.is_empty() || key.len() > record::MAX_KEY_BYTES {
            return Err(StoreError::refused(format!(
                "a key of {} bytes is refused: the disk cache takes 1 to {} bytes",
                key.len(),
                record::MAX_KEY_BYTES
            )));
        }
        if value_len > self.max_value_bytes() {
            return Err(StoreError::refused(format!(
                "a value of {value_len} bytes is refused: the disk cache takes up to {}",
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
