use std::fmt;
use std::sync::Arc;

use larder::clock::{Clock, SystemClock};

use crate::error::{DiskError, DiskErrorKind};
use crate::record;

/// How a [`Disk`](crate::Disk) is set up. Every limit has a default; none is "unlimited".
///
/// ```
/// use larder_disk::{DiskOptions, Durability};
///
/// let options = DiskOptions {
///     max_bytes: 256 << 20,
///     durability: Durability::SyncInvalidations,
///     ..DiskOptions::default()
/// };
/// assert_eq!(options.max_value_bytes, 16 << 20);
/// ```
#[derive(Clone)]
pub struct DiskOptions {
    /// Bytes that entries may occupy: key, value and the fixed overhead of [`entry_bytes`].
    /// Counters, tag records and members count as entries do. At least 1 MiB; 1 GiB by default.
    ///
    /// The directory is larger than that by what the tree below has not reclaimed yet and by its
    /// journal; [the crate's documentation](crate#how-much-disk-it-takes) says by how much.
    ///
    /// [`entry_bytes`]: crate::entry_bytes
    pub max_bytes: u64,
    /// How many entries there may be, counters, tag records and sets of members included. It bounds the memory of the index, which takes 25 bytes a
    /// slot and keeps between 8/7 and 16/7 slots an entry: 29 to 58 bytes. 900,000 by default.
    pub max_entries: u64,
    /// The longest value in bytes, envelope included; a longer one is refused before anything is
    /// written. 16 MiB by default, 1 GiB at most.
    pub max_value_bytes: usize,
    /// How many leases are kept, in memory. Beyond it the oldest is dropped, and its fill is
    /// refused. Their keys take at most 16 MiB together. 65,536 by default.
    pub max_leases: usize,
    /// Threads that read. Writes have one thread of their own. 4 by default.
    pub readers: usize,
    /// How many operations may wait for a thread, for reads and for writes each. Beyond it an
    /// operation fails at once. Values waiting to be written take at most 64 MiB, or one value.
    /// 1,024 by default.
    pub queue: usize,
    /// Memory for blocks of the tree that were read, in bytes. 32 MiB by default.
    pub block_cache_bytes: u64,
    /// What is on the disk when an operation has returned `Ok`.
    pub durability: Durability,
    /// Where time comes from: time to live by [`Clock::wall`], leases by [`Clock::monotonic`].
    pub clock: Arc<dyn Clock>,
}

/// What survives which failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Every operation that returned `Ok` has reached the operating system, so it survives the
    /// process being killed. At power loss the last moments may be missing, invalidations among
    /// them: entries deleted just before may be back until their time to live ends, and a tag
    /// invalidated just before may be valid again.
    #[default]
    Process,
    /// As [`Durability::Process`], and `delete`, `expire`, `sweep`, `set` and `enlist` are
    /// synced to the device (`fdatasync`) before they return. No invalidation is undone by power
    /// loss. Costs one sync per call.
    SyncInvalidations,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            max_entries: 900_000,
            max_value_bytes: 16 << 20,
            max_leases: 65_536,
            readers: 4,
            queue: 1_024,
            block_cache_bytes: 32 << 20,
            durability: Durability::default(),
            clock: SystemClock::shared(),
        }
    }
}

impl fmt::Debug for DiskOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskOptions")
            .field("max_bytes", &self.max_bytes)
            .field("max_entries", &self.max_entries)
            .field("max_value_bytes", &self.max_value_bytes)
            .field("max_leases", &self.max_leases)
            .field("readers", &self.readers)
            .field("queue", &self.queue)
            .field("block_cache_bytes", &self.block_cache_bytes)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

impl DiskOptions {
    /// Refuses what cannot work, naming the option.
    pub(crate) fn check(&self) -> Result<(), DiskError> {
        let wrong = |what: String| Err(DiskError::new(DiskErrorKind::Options, what));
        if self.max_bytes < 1 << 20 {
            return wrong(format!(
                "max_bytes is {}, but must be at least 1 MiB (1048576)",
                self.max_bytes
            ));
        }
        if self.max_value_bytes == 0 || self.max_value_bytes > record::MAX_VALUE_BYTES {
            return wrong(format!(
                "max_value_bytes is {}, but must be between 1 and 1 GiB (1073741824)",
                self.max_value_bytes
            ));
        }
        for (name, value) in [
            ("max_entries", self.max_entries),
            ("max_leases", self.max_leases as u64),
            ("readers", self.readers as u64),
            ("queue", self.queue as u64),
        ] {
            if value == 0 {
                return wrong(format!("{name} is 0, but must be at least 1"));
            }
        }
        if self.readers > 256 {
            return wrong(format!(
                "readers is {}, but must be at most 256",
                self.readers
            ));
        }
        Ok(())
    }
}
