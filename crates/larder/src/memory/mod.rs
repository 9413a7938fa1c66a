//! The memory tier: a bounded table that many threads read at once.
//!
//! ```text
//! Memory      picks a shard by the upper half of the hash, locks it, drops what leaves it
//!  └ Shard    find, insert, remove, evict, sweep                              shard.rs
//!     ├ Table    the entries by their hashes, in parts that grow one by one   table.rs
//!     │  ├ Slot     of an entry, what reads need: key, value, deadline, marks  slot.rs
//!     │  └ Meta     what only changes need: hash, charge, links
//!     └ Order    which entry goes                                             order/
//! ```
//!
//! Whoever wants to see all of it takes a walk (walk.rs).
//!
//! A read takes the shared lock of one shard, and what it writes is a mark of two bits. An insert
//! takes the exclusive lock of one shard and does a bounded amount of work under it beyond
//! evicting what its own weight displaces: it looks at a few slots for expired entries, and no part
//! of a table that it may have to grow is large, unless a shard has hundreds of thousands of entries.
//! No operation holds two locks.

#[cfg(all(test, not(shuttle)))]
mod hostile_tests;
mod order;
#[cfg(all(test, shuttle))]
mod schedules;
mod shard;
mod slot;
mod sync;
mod table;
#[cfg(all(test, not(shuttle)))]
mod tests;
mod tidy;
mod walk;

use std::fmt;
use std::hash::{BuildHasher, Hash};

use equivalent::Equivalent;
use foldhash::quality::RandomState;

use self::shard::{Leavings, Shard};
use self::slot::Entry;
use self::sync::{AtomicU64, AtomicUsize, Ordering, RwLock};
use self::table::Table;
use crate::clock::Millis;
use crate::options::{Policy, RemovalCause};

pub(crate) use self::shard::{Counters, Inserted};
pub(crate) use self::walk::Walk;

/// A bound below this many entries per shard is kept in fewer shards.
const SHARD_ENTRIES: u64 = 1024;

/// A bound below this many bytes per shard is kept in fewer shards. It is also the weight that
/// every table takes in one entry, if its bound is not smaller.
const SHARD_BYTES: u64 = 4 << 20;

/// Shards for each core, so that two threads seldom want the same one.
const SHARDS_PER_CORE: usize = 32;

/// However many cores there are, no more shards than this.
const SHARDS_MAX: usize = 256;

/// What remembering evicted keys takes for one entry: three bytes each, for a quarter more keys
/// than there are entries, in a set that may be twice as large as it should be.
const GHOST_BYTES: usize = 8;

/// Slots that one [`Memory::sweep`] looks at before it lets go of a shard's lock.
const SWEEP_BATCH: u32 = sync::batch(256) as u32;

/// Entries that [`Memory::resize`] evicts before it lets go of a shard's lock.
const RESIZE_BATCH: u32 = sync::batch(64) as u32;

/// How much a table may hold. Zero holds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// So many entries, whatever they weigh.
    Entries(u64),
    /// So many bytes: the callers' weights, and for each entry what the table itself needs.
    Bytes(u64),
}

impl Bound {
    /// The number alone, in the unit of the bound.
    pub(crate) fn limit(self) -> u64 {
        match self {
            Bound::Entries(limit) | Bound::Bytes(limit) => limit,
        }
    }
}

/// Is told of everything that left the table, where no lock is held.
pub(crate) type Listener<K, T> = Box<dyn Fn(&K, &T, RemovalCause) + Send + Sync>;

/// What was in a table that was cleared.
#[derive(Debug)]
pub(crate) struct Cleared<K, T>(Vec<Table<K, T>>);

impl<K, T> Cleared<K, T> {
    /// How many entries there were.
    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|table| u64::from(table.len())).sum()
    }
}

/// What the table is told about an entry besides its key and value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    /// Bytes that key and value own outside themselves; the table adds their own size and its
    /// overhead. Counted only under [`Bound::Bytes`].
    pub(crate) weight: u32,
    /// The time from which on the entry is no longer there. [`Millis::MAX`] is never.
    pub(crate) dies_at: Millis,
}

/// A sharded table with a bound, eviction and deadlines.
///
/// Times come from the caller and count from
/// wherever the caller likes, as long as they are all from one clock that does not go back.
///
/// Each shard keeps its own part of the bound, so the whole is exact at any moment, and a shard
/// may evict while others have room: a table is only sure to keep everything while no shard is
/// full. A small bound makes a single shard. See [`Inserted::TooHeavy`] for what the parts mean
/// to heavy values: one that takes up to 4 MiB, or up to the bound if that is less, always fits.
pub(crate) struct Memory<K, T> {
    /// A power of two of them.
    shards: Box<[Locked<K, T>]>,
    /// One less than that. Every read asks for this and the next one.
    mask: usize,
    reorders_on_read: bool,
    hasher: RandomState,
    policy: Policy,
    /// In the unit of `made_for`.
    limit: AtomicU64,
    /// The bound that the table was made with.
    made_for: Bound,
    listener: Option<Listener<K, T>>,
    /// The shard that the next batch of [`Memory::sweep`] looks at.
    sweep_at: AtomicUsize,
}

impl<K: Hash + Eq, T> Memory<K, T> {
    /// An empty table. It allocates as it fills.
    pub(crate) fn new(bound: Bound, policy: Policy) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with_shards(bound, policy, shards_for(bound, cores))
    }

    /// A table of `shards` shards, a power of two.
    fn with_shards(bound: Bound, policy: Policy, shards: usize) -> Self {
        let least_charge = Self::charge(bound, 0);
        let shard = |at| Shard::new(policy, part_of(bound.limit(), at, shards), least_charge);
        Self {
            shards: (0..shards)
                .map(|at| Locked(RwLock::new(shard(at))))
                .collect(),
            mask: shards - 1,
            reorders_on_read: policy.reorders_on_read(),
            hasher: RandomState::default(),
            policy,
            limit: AtomicU64::new(bound.limit()),
            made_for: bound,
            listener: None,
            sweep_at: AtomicUsize::new(0),
        }
    }

    /// The same with somebody who is told of what leaves the table.
    pub(crate) fn with_listener(self, listener: Option<Listener<K, T>>) -> Self {
        Self { listener, ..self }
    }

    /// The hash of `key`, by a function of this table alone. Every operation is given it, so that
    /// a caller with tables of its own beside this one hashes once.
    pub(crate) fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        self.hasher.hash_one(key)
    }

    /// What `read` makes of the value of `key`; `None` if it is not there or its deadline is at
    /// or before `now`.
    ///
    /// Takes a shared lock, under which `read` runs: it must be quick, and not use this table. LRU
    /// and LFU take the exclusive lock before that. Allocates nothing.
    #[inline]
    pub(crate) fn get<Q, R>(
        &self,
        hash: u64,
        key: &Q,
        now: Millis,
        read: impl FnOnce(&T) -> R,
    ) -> Option<R>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let shard = self.shard(hash);
        if self.reorders_on_read {
            sync::write(shard).reorder(hash as u32, key, now);
        }
        sync::read(shard).get(hash as u32, key, now).map(read)
    }

    /// The same for whoever does not read it: it leaves no mark.
    pub(crate) fn glance<Q, R>(
        &self,
        hash: u64,
        key: &Q,
        now: Millis,
        look: impl FnOnce(&T) -> R,
    ) -> Option<R>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let shard = sync::read(self.shard(hash));
        shard.glance(hash as u32, key, now).map(look)
    }

    /// Stores `value` under `key` if `admit` agrees, and evicts what has to go for it.
    ///
    /// `admit` runs under the lock of the key's shard, before anything changes; it is given the
    /// live value about to be replaced, and must not use this table.
    pub(crate) fn insert(
        &self,
        hash: u64,
        key: K,
        value: T,
        place: Placement,
        now: Millis,
        admit: impl FnOnce(Option<&T>) -> bool,
    ) -> Inserted {
        let charge = Self::charge(self.made_for, place.weight);
        let entry = Entry::new(key, value, hash as u32, charge, place.dies_at);
        let mut leavings = Leavings::new();
        let inserted = sync::write(self.shard(hash)).insert(entry, now, admit, &mut leavings);
        // The lock is free again: what left is dropped by code of its own types.
        self.dismiss(leavings);
        inserted
    }

    /// Lets `change` alter the live value of `key` and its deadline, and returns its result;
    /// `None` if there is no such value.
    ///
    /// `change` runs under the lock of the key's shard, and so does the dropping of what it
    /// replaces; neither may use this table. The weight stays what it was.
    pub(crate) fn update<Q, R>(
        &self,
        hash: u64,
        key: &Q,
        now: Millis,
        change: impl FnOnce(&mut T, &mut Millis) -> R,
    ) -> Option<R>
    where
        Q: Equivalent<K> + ?Sized,
    {
        sync::write(self.shard(hash)).update(hash as u32, key, now, change)
    }

    /// Removes `key` and returns what was stored under it, even if that had expired.
    pub(crate) fn remove<Q>(&self, hash: u64, key: &Q) -> Option<T>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let gone = sync::write(self.shard(hash)).remove(hash as u32, key)?;
        tidy::after(1);
        if let Some(listener) = &self.listener {
            listener(&gone.key, &gone.value, RemovalCause::Removed);
        }
        Some(gone.value)
    }

    /// Takes out everything that is there when its shard's turn comes, at a cost that does not depend
    /// on how much that is, unless a listener is told of it. Dropping it does.
    pub(crate) fn clear(&self) -> Cleared<K, T> {
        let shards = self.shards.iter();
        let cleared = Cleared(
            shards
                .map(|Locked(shard)| sync::write(shard).clear())
                .collect(),
        );
        if let Some(listener) = &self.listener {
            for slot in cleared.0.iter().flat_map(Table::iter) {
                listener(&slot.key, &slot.value, RemovalCause::Removed);
            }
        }
        cleared
    }

    /// Makes the bound `limit`, in the unit that it has, and evicts what no longer fits.
    ///
    /// No lock is held for long: a shard that has to shrink keeps to what it weighs until its turn
    /// is over. How many shards there are stays as it was.
    pub(crate) fn resize(&self, limit: u64, now: Millis) {
        self.limit.store(limit, Ordering::Relaxed);
        for (at, Locked(shard)) in self.shards.iter().enumerate() {
            let quota = part_of(limit, at, self.shards.len());
            loop {
                let mut leavings = Leavings::new();
                let goes_on = sync::write(shard).resize(quota, now, RESIZE_BATCH, &mut leavings);
                let idle = leavings.len() == 0;
                self.dismiss(leavings);
                if !goes_on || idle {
                    break;
                }
            }
        }
    }

    /// How many entries there are, expired ones that nobody has met since included.
    pub(crate) fn len(&self) -> u64 {
        self.sum(Shard::len)
    }

    /// How much of the bound is taken, in the unit of the bound.
    pub(crate) fn weight(&self) -> u64 {
        self.sum(Shard::weight)
    }

    /// The bound, in the unit that it has.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// What came and went so far.
    pub(crate) fn counters(&self) -> Counters {
        self.shards
            .iter()
            .map(|Locked(shard)| sync::read(shard).counters())
            .fold(Counters::default(), |all, one| all + one)
    }

    /// What `read` makes of the key of one entry, which `random` picks, each as likely as any
    /// other, expired ones that nobody has met since included. `None` if the table is empty, or
    /// shrinks meanwhile. Leaves no mark.
    ///
    /// `read` runs under the shared lock of the shard, and must not use this table.
    pub(crate) fn draw<R>(&self, random: u64, read: impl FnOnce(&K) -> R) -> Option<R> {
        let mut at = random.checked_rem(self.len())?;
        for Locked(shard) in &self.shards {
            let shard = sync::read(shard);
            match shard.nth(at) {
                Some(slot) => return Some(read(&slot.key)),
                None => at -= shard.len(),
            }
        }
        None
    }

    /// Looks at no more than `at_most` entries, going on where it last stopped, drops those whose
    /// deadline is at or before `now`, and returns how many it dropped.
    ///
    /// Shards in which nothing can have expired cost one lock. No lock is held for long.
    pub(crate) fn sweep(&self, now: Millis, at_most: usize) -> usize {
        let (mut left, mut dropped, mut idle) = (at_most, 0, 0);
        while left > 0 && idle < self.shards.len() {
            let at = self.sweep_at.fetch_add(1, Ordering::Relaxed) & self.mask;
            let batch = left.min(SWEEP_BATCH as usize) as u32;
            let mut leavings = Leavings::new();
            let looked = sync::write(&self.shards[at].0).sweep(now, batch, &mut leavings);
            dropped += leavings.len();
            self.dismiss(leavings);
            left -= looked as usize;
            idle = if looked == 0 { idle + 1 } else { 0 };
        }
        dropped
    }

    /// Lets go of what left, and tells who wants to know.
    fn dismiss(&self, leavings: Leavings<K, T>) {
        if let Some(listener) = &self.listener {
            for (key, value, cause) in leavings.iter() {
                listener(key, value, cause);
            }
        }
        let many = leavings.len();
        drop(leavings);
        tidy::after(many);
    }

    /// What an entry of so much weight takes of the bound; too much for 32 bits is the largest
    /// number, which no shard takes.
    fn charge(bound: Bound, weight: u32) -> u32 {
        match bound {
            Bound::Entries(_) => 1,
            Bound::Bytes(_) => {
                let overhead = Table::<K, T>::BYTES_EACH + GHOST_BYTES;
                u32::try_from(overhead).map_or(u32::MAX, |overhead| weight.saturating_add(overhead))
            }
        }
    }

    /// Shards are chosen by the upper half of the hash; the lower half is the shard's own.
    #[inline]
    fn shard(&self, hash: u64) -> &RwLock<Shard<K, T>> {
        &self.shards[(hash >> 32) as usize & self.mask].0
    }

    fn sum(&self, of: impl Fn(&Shard<K, T>) -> u64) -> u64 {
        self.shards
            .iter()
            .map(|Locked(shard)| of(&sync::read(shard)))
            .sum()
    }
}

/// What the shard at `at` has of a bound that is divided among `shards`.
fn part_of(limit: u64, at: usize, shards: usize) -> u64 {
    let (at, shards) = (at as u64, shards as u64);
    limit / shards + u64::from(at < limit % shards)
}

/// How many shards a table of this bound is divided into: as many as the cores can use, but none
/// so small that its part of the bound is too coarse to evict well or to take a heavy value.
fn shards_for(bound: Bound, cores: usize) -> usize {
    let useful = cores.saturating_mul(SHARDS_PER_CORE).min(SHARDS_MAX);
    let possible = match bound {
        Bound::Entries(entries) => entries / SHARD_ENTRIES,
        Bound::Bytes(bytes) => bytes / SHARD_BYTES,
    };
    let shards = usize::try_from(possible).map_or(useful, |possible| possible.min(useful));
    1 << shards.max(1).ilog2()
}

impl<K, T> fmt::Debug for Memory<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("policy", &self.policy)
            .field("made_for", &self.made_for)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// A shard behind its lock, on cache lines of its own; processors fetch two at once.
#[derive(Debug)]
#[repr(align(128))]
struct Locked<K, T>(RwLock<Shard<K, T>>);
