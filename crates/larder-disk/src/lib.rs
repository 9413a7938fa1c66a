//! A tier on disk for [larder](https://docs.rs/larder): it survives restarts, is bounded in bytes,
//! and needs no server.
//!
//! ```
//! use std::time::Duration;
//!
//! use bytes::Bytes;
//! use larder::store::{Store, Write};
//! use larder_disk::{Disk, DiskOptions};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = directory.path().join("cache");
//! let disk = Disk::open(&path, DiskOptions::default())?;
//! let key = Bytes::from_static(b"shop:product:1");
//! let write = Write {
//!     key: key.clone(),
//!     value: Bytes::from_static(b"an envelope"),
//!     ttl: Duration::from_secs(60),
//!     tags: None,
//! };
//! disk.set(&[write]).await?;
//! disk.close().await?;
//!
//! let disk = Disk::open(&path, DiskOptions::default())?;
//! let found = disk.get(&[key], 1024).await?;
//! assert_eq!(found[0].as_deref(), Some(b"an envelope".as_slice()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # What survives what
//!
//! An operation that returned `Ok` has reached the operating system: it survives the process
//! being killed. What survives power loss is said by [`Durability`]. Half-written data is never
//! returned: the journal and every block of the tree carry checksums. Leases are kept in memory,
//! because one process owns the store; a restart ends them.
//!
//! Counters, tag records, sets of members and minimum versions are entries of a few bytes in the
//! same files, and survive like values. An invalidation by tag writes twice: the counter moves, and
//! then the records go. Killed in between, the process has told nobody that it happened, and the
//! loads that the counter would have turned away died with it. A value and the records that it was
//! stored with are written together or not at all. Where the end of the journal is missing after a
//! power loss, it is missing from some moment on: what is found is a state that was.
//!
//! They are also evicted like entries. A counter or a record that is gone, for this or any reason,
//! makes misses of what depends on it. Whatever uses one keeps it from being evicted as a read
//! keeps a value, so those of the tags in use stay. A minimum version that is gone lets older values
//! in; it is spared like a value that was read, which in the seconds that it is there for is enough
//! unless the whole store is written over.
//!
//! # When the disk is full
//!
//! A write that fails returns the error, also a delete: the invalidation has then not happened on
//! disk, and the caller has to repeat it. The entry is hidden from every reader of this process
//! at once all the same, and so are the tag records and the counter that it was to move: every load
//! from before is turned away. No lease that comes with the position of a counter can be taken
//! while that counter cannot be begun. The store stays readable, tries again at least every half
//! second, and goes on without a restart once there is space.
//!
//! # How much disk it takes
#![doc = include_str!("../docs/size.md")]
//!
//! # Modules, in reading order
//!
//! `store` (the handle) hands reads to `reader` and changes to `writer`, both through `queue`.
//! What they share is `shared`: the `index` of what is stored, with the `leases`, and the `tree`
//! on disk, whose records `record` lays out. The writer does in `tagging` what `tags` and `versions`
//! decide; `positions` remembers where counters stand. `sweep` goes through all keys under a
//! prefix. `evict` makes room, `reclaim` keeps the files in proportion, `trouble` gets over a
//! failing disk, `directory` owns the path.

#![forbid(unsafe_code)]

mod directory;
mod error;
mod evict;
mod index;
mod leases;
mod options;
mod positions;
mod queue;
mod reader;
mod reclaim;
mod record;
mod shared;
mod store;
mod sweep;
mod tagging;
mod tags;
mod tree;
mod trouble;
mod versions;
mod writer;

pub use error::{DiskError, DiskErrorKind};
pub use options::{DiskOptions, Durability};
pub use record::entry_bytes;
pub use shared::DiskStats;
pub use store::Disk;
