//! The log-structured tree on disk, as this crate uses fjall.
//!
//! Two traits of fjall 3.1 shape this module and its callers. A write that fails poisons the
//! database: it answers reads but takes no writes until it is opened again. And a write waits,
//! without end, while flushes or compactions are far behind, which is for ever once a background
//! thread has died; so no write is begun while they are ([`Tree::behind`]).

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use fjall::compaction::Leveled;
use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};
use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, LsmError, OwnedWriteBatch,
    PersistMode,
};
use larder::clock::Clock;

use crate::directory;
use crate::record;

const KEYSPACE: &str = "entries";

/// Values from this many bytes on lie in files of their own, which compaction does not rewrite.
const SEPARATE_FROM: u32 = 1_024;

/// The smallest that fjall takes. It holds sealed journals below this before it forces flushes.
const MAX_JOURNAL_BYTES: u64 = 64 << 20;

/// One of them only flushes. With two, that one would spin while the other compacts.
const BACKGROUND_THREADS: usize = 3;

/// fjall writers block at 4 sealed memtables; up to two more may be sealed by one write.
const MAX_SEALED: usize = 1;

/// fjall writers spin from 20 runs in the first level on, and block at 30.
const MAX_FIRST_LEVEL: usize = 18;

pub(crate) struct Tree {
    database: Database,
    entries: Keyspace,
}

/// Why the tree could not do it.
#[derive(Debug)]
pub(crate) enum TreeError {
    Storage(fjall::Error),
    Panicked,
    /// Somebody removed the directory.
    Gone,
}

impl From<io::Error> for TreeError {
    fn from(error: io::Error) -> Self {
        Self::Storage(fjall::Error::Io(error))
    }
}

/// What shapes a tree. Sizes are in bytes.
#[derive(Clone, Debug)]
pub(crate) struct TreeOptions {
    pub(crate) max_bytes: u64,
    pub(crate) block_cache_bytes: u64,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Tree {
    /// Opens the tree in `path`, or creates it.
    pub(crate) fn open(path: &Path, options: &TreeOptions) -> Result<Self, TreeError> {
        guarded(|| {
            let expiry = Arc::new(ExpiryFactory(AssertUnwindSafe(options.clock.clone())));
            let database = Database::builder(path)
                .max_journaling_size(MAX_JOURNAL_BYTES)
                .worker_threads(BACKGROUND_THREADS)
                .cache_size(options.block_cache_bytes)
                .with_compaction_filter_factories(Arc::new(move |_| Some(expiry.clone())))
                .open()?;
            let entries = database.keyspace(KEYSPACE, || shape(options.max_bytes))?;
            Ok(Self { database, entries })
        })
    }

    /// The record of the entry under `key`.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<fjall::Slice>, TreeError> {
        self.find(&record::entry_key(key))
    }

    pub(crate) fn find(&self, tree_key: &[u8]) -> Result<Option<fjall::Slice>, TreeError> {
        guarded(|| self.entries.get(tree_key))
    }

    /// Up to `max` records from `from` on and before `to`: tree keys and values.
    pub(crate) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        max: usize,
    ) -> Result<Vec<(fjall::Slice, fjall::Slice)>, TreeError> {
        if from >= to {
            return Ok(Vec::new());
        }
        guarded(|| {
            self.entries
                .range(from..to)
                .take(max)
                .map(fjall::Guard::into_inner)
                .collect()
        })
    }

    /// As [`Tree::scan`], without the values, which may lie elsewhere.
    pub(crate) fn keys(
        &self,
        from: &[u8],
        to: &[u8],
        max: usize,
    ) -> Result<Vec<fjall::Slice>, TreeError> {
        if from >= to {
            return Ok(Vec::new());
        }
        guarded(|| {
            self.entries
                .range(from..to)
                .take(max)
                .map(fjall::Guard::key)
                .collect()
        })
    }

    pub(crate) fn changes(&self) -> Changes<'_> {
        Changes {
            entries: &self.entries,
            batch: self.database.batch(),
        }
    }

    /// Writes the changes, all or none. They have reached the operating system on return.
    pub(crate) fn commit(&self, changes: Changes<'_>) -> Result<(), TreeError> {
        guarded(|| changes.batch.commit())
    }

    /// Syncs what was committed to the device.
    pub(crate) fn sync(&self, mode: PersistMode) -> Result<(), TreeError> {
        guarded(|| self.database.persist(mode))
    }

    /// Whether flushes or compactions are so far behind that a write might block.
    pub(crate) fn behind(&self) -> bool {
        self.entries.sealed_memtable_count() > MAX_SEALED
            || self.entries.l0_table_count() > MAX_FIRST_LEVEL
    }

    /// Bytes of the tree's tables, without its journal.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.entries.disk_space()
    }

    /// What rewrites all tables and drops what was removed or overwritten. It outlives the tree.
    pub(crate) fn rewriter(&self) -> impl FnOnce() -> Result<(), TreeError> + Send + 'static {
        let entries = self.entries.clone();
        move || guarded(|| entries.major_compact())
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").finish_non_exhaustive()
    }
}

/// Changes to be written together.
pub(crate) struct Changes<'a> {
    entries: &'a Keyspace,
    batch: OwnedWriteBatch,
}

impl Changes<'_> {
    /// Writes one record. A record must not occur twice in the same changes.
    pub(crate) fn put(&mut self, tree_key: &[u8], value: impl Into<fjall::Slice>) {
        self.batch.insert(self.entries, tree_key, value);
    }

    pub(crate) fn remove(&mut self, tree_key: &[u8]) {
        self.batch.remove(self.entries, tree_key);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }
}

/// Sizes that keep what is not reclaimed small beside `max_bytes`: two levels hold it all, the
/// upper one an eighth.
fn shape(max_bytes: u64) -> KeyspaceCreateOptions {
    const L0_TABLES: u8 = 4;
    let table = (max_bytes / 8 / u64::from(L0_TABLES)).clamp(1 << 20, 64 << 20);
    let memtable = (max_bytes / 16).clamp(4 << 20, 16 << 20);
    KeyspaceCreateOptions::default()
        .max_memtable_size(memtable)
        .with_kv_separation(Some(
            KvSeparationOptions::default()
                .separation_threshold(SEPARATE_FROM)
                .file_target_size(table.min(16 << 20))
                .staleness_threshold(0.15)
                .age_cutoff(1.0),
        ))
        .compaction_strategy(Arc::new(
            Leveled::default()
                .with_l0_threshold(L0_TABLES)
                .with_table_target_size(table),
        ))
}

/// Drops expired entries while their tables are compacted, if their values lie in the tables: it
/// would read the others to no purpose, because the reaper finds them all by their order records
/// and settles the accounts.
struct ExpiryFactory(AssertUnwindSafe<Arc<dyn Clock>>);

impl Factory for ExpiryFactory {
    fn name(&self) -> &str {
        "larder-expiry"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Expiry {
            wall: self.0.wall(),
        })
    }
}

struct Expiry {
    wall: u64,
}

impl CompactionFilter for Expiry {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        if item.is_indirection() || record::key_of_entry(item.key()).is_none() {
            return Ok(Verdict::Keep);
        }
        let expired =
            record::split_entry(&item.value()?).is_some_and(|(deadline, _)| deadline <= self.wall);
        Ok(if expired {
            Verdict::Remove
        } else {
            Verdict::Keep
        })
    }
}

/// Runs what may panic: fjall asserts what it reads from its files.
fn guarded<T>(run: impl FnOnce() -> fjall::Result<T>) -> Result<T, TreeError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(TreeError::Storage),
        Err(_) => Err(TreeError::Panicked),
    }
}

impl TreeError {
    /// Whether the device ran out of space.
    pub(crate) fn is_full(&self) -> bool {
        self.io().is_some_and(directory::is_full)
    }

    /// The operating system's error underneath, if there is one.
    pub(crate) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Storage(fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error))) => {
                Some(error)
            }
            _ => None,
        }
    }

    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, Self::Storage(fjall::Error::Locked))
    }
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage(fjall::Error::Poisoned) => {
                f.write_str("an earlier write failed in the background")
            }
            Self::Storage(error) => match self.io() {
                Some(error) => write!(f, "{error}"),
                None => write!(f, "{error}"),
            },
            Self::Panicked => f.write_str("the files on disk broke an assumption of the storage"),
            Self::Gone => f.write_str("its directory was removed"),
        }
    }
}

impl std::error::Error for TreeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Storage(error) => Some(error),
            Self::Panicked | Self::Gone => None,
        }
    }
}
