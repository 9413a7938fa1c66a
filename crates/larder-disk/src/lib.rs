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
//! # When the disk is full
//!
//! A write that fails returns the error, also a delete: the invalidation has then not happened on
//! disk, and the caller has to repeat it. The entry is hidden from every reader of this process
//! at once all the same. The store stays readable, tries again at least every half second, and
//! goes on without a restart once there is space.
//!
//! # How much disk it takes
#![doc = include_str!("../docs/size.md")]
//!
//! # Modules, in reading order
//!
//! `store` (the handle) hands reads to `reader` and changes to `writer`, both through `queue`.
//! What they share is `shared`: the `index` of what is stored, with the `leases`, and the `tree`
//! on disk, whose records `record` lays out. `evict` makes room, `reclaim` keeps
//! the files in proportion, `trouble` gets over a failing
//! disk, `directory` owns the path.

#![forbid(unsafe_code)]

mod directory;
mod error;
mod evict;
mod index;
mod leases;
mod options;
mod queue;
mod reader;
mod reclaim;
mod record;
mod shared;
mod store;
mod tree;
mod trouble;
mod writer;

pub use error::{DiskError, DiskErrorKind};
pub use options::{DiskOptions, Durability};
pub use record::entry_bytes;
pub use shared::DiskStats;
pub use store::Disk;
