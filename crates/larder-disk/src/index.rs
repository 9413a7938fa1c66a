//! What is stored, how much of it, and who may fill what: the part of the store that is in memory.
//!
//! The index is authoritative: an entry that it does not hold does not exist, whatever the disk
//! says. So a miss costs no disk access, and an entry whose removal failed on a full disk is gone
//! for every reader at once.
//!
//! Entries are held by a 64-bit hash of their key, keyed at random in each process. Two keys with
//! one hash share a slot; that upsets the accounting by one entry until the next opening, never
//! what is read, because the tree holds whole keys.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use larder::clock::Millis;

use crate::leases::Leases;
use crate::record::{self, Order, Sequence};

const SHARDS: usize = 64;

/// The hash under which a key is indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KeyHash(u64);

/// What the index knows of an entry, in 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The sequence in the upper 63 bits; in the lowest, whether it was read since the hand of
    /// eviction came by.
    sequence_and_mark: u64,
    charge: u32,
    /// In wall seconds, rounded up, so that an entry is never taken for expired too early.
    deadline: u32,
}

impl Slot {
    /// A minimum version counts as read from the first: while it stands, nothing else turns older
    /// loads away.
    pub(crate) fn new(order: &Order) -> Self {
        Self {
            sequence_and_mark: order.sequence << 1 | u64::from(order.is_minimum()),
            charge: order.charge,
            deadline: u32::try_from(order.deadline.div_ceil(1_000)).unwrap_or(u32::MAX),
        }
    }

    pub(crate) fn sequence(self) -> Sequence {
        self.sequence_and_mark >> 1
    }

    pub(crate) fn charge(self) -> u32 {
        self.charge
    }

    /// How long the value is under a key of `key_len` bytes.
    pub(crate) fn value_len(self, key_len: usize) -> u64 {
        record::value_len(self.charge, key_len)
    }

    /// Whether only the records on disk tell if it has expired at `wall`.
    pub(crate) fn about_to_expire(self, wall: Millis) -> bool {
        self.deadline != u32::MAX && wall.saturating_add(1_000) > u64::from(self.deadline) * 1_000
    }

    fn marked(self) -> bool {
        self.sequence_and_mark & 1 == 1
    }

    fn expired(self, wall: Millis) -> bool {
        self.deadline != u32::MAX && wall >= u64::from(self.deadline) * 1_000
    }
}

/// What the hand of eviction does with the entry under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// The record stands for nothing: the entry was written again since.
    Outdated,
    /// The record stands for nothing, nor does the index know its key.
    Unknown,
    /// It was read since the hand came by last: it stays, unmarked.
    Spare,
    Evict,
    Expired,
}

fn judge(slot: Option<Slot>, sequence: Sequence, wall: Millis) -> Judgement {
    match slot {
        None => Judgement::Unknown,
        Some(slot) if slot.sequence() != sequence => Judgement::Outdated,
        Some(slot) if slot.expired(wall) => Judgement::Expired,
        Some(slot) if slot.marked() => Judgement::Spare,
        Some(_) => Judgement::Evict,
    }
}

#[derive(Debug)]
pub(crate) struct Index {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    bytes: AtomicU64,
    entries: AtomicU64,
    /// Locked after a shard, never before one.
    leases: Mutex<Leases>,
}

type Slots = HashMap<KeyHash, Slot, BuildHasherDefault<AsIs>>;

#[derive(Debug, Default)]
struct Shard {
    slots: Slots,
    /// Whether the tree may hold entries of this shard that the index does not.
    hides: bool,
}

/// One shard, locked: what is done through it is atomic for every key in it.
pub(crate) struct Locked<'a> {
    index: &'a Index,
    shard: MutexGuard<'a, Shard>,
    hash: KeyHash,
}

impl Index {
    pub(crate) fn new(leases: Leases) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            leases: Mutex::new(leases),
        }
    }

    /// Bytes of all entries, by their charge.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    pub(crate) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the shard that `key` belongs to.
    pub(crate) fn lock(&self, key: &[u8]) -> Locked<'_> {
        self.lock_hash(KeyHash(self.hasher.hash_one(key)))
    }

    fn lock_hash(&self, hash: KeyHash) -> Locked<'_> {
        // The lowest bits and the highest seven choose the place inside the shard's table.
        let shard = &self.shards[(hash.0 >> 32) as usize % SHARDS];
        Locked {
            index: self,
            shard: shard.lock().unwrap_or_else(PoisonError::into_inner),
            hash,
        }
    }

    /// Forgets every entry. Leases stay.
    pub(crate) fn forget_all(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let gone = std::mem::take(&mut *shard);
            let bytes: u64 = gone.slots.values().map(|slot| u64::from(slot.charge)).sum();
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.entries
                .fetch_sub(gone.slots.len() as u64, Ordering::Relaxed);
        }
    }
}

impl Locked<'_> {
    /// The slot of the key, if it holds an entry that is not surely expired.
    pub(crate) fn live(&self, wall: Millis) -> Option<Slot> {
        self.slot().filter(|slot| !slot.expired(wall))
    }

    pub(crate) fn slot(&self) -> Option<Slot> {
        self.shard.slots.get(&self.hash).copied()
    }

    /// As [`Locked::live`], and counts as a use of the entry.
    pub(crate) fn touch(&mut self, wall: Millis) -> Option<Slot> {
        let slot = self.shard.slots.get_mut(&self.hash)?;
        if slot.expired(wall) {
            return None;
        }
        slot.sequence_and_mark |= 1;
        Some(*slot)
    }

    /// Enters what was written to the tree, in place of what the key had.
    pub(crate) fn put(&mut self, slot: Slot) {
        self.index
            .bytes
            .fetch_add(u64::from(slot.charge), Ordering::Relaxed);
        self.index.entries.fetch_add(1, Ordering::Relaxed);
        if let Some(old) = self.shard.slots.insert(self.hash, slot) {
            self.forget(old);
        }
    }

    /// Forgets the entry because the tree no longer has it.
    pub(crate) fn remove(&mut self) {
        if let Some(old) = self.shard.slots.remove(&self.hash) {
            self.forget(old);
        }
    }

    /// As [`Locked::remove`], unless the key was written again since `sequence`.
    pub(crate) fn remove_if(&mut self, sequence: Sequence) {
        if self.slot().is_some_and(|slot| slot.sequence() == sequence) {
            self.remove();
        }
    }

    /// Forgets the entry although the tree may still have it.
    pub(crate) fn hide(&mut self) {
        self.remove();
        self.shard.hides = true;
    }

    /// Whether the tree may hold something under the key.
    pub(crate) fn may_exist(&self) -> bool {
        self.shard.hides || self.slot().is_some()
    }

    /// What the hand of eviction does about an order record of this key.
    pub(crate) fn judge(&mut self, sequence: Sequence, wall: Millis) -> Judgement {
        let slot = self.shard.slots.get_mut(&self.hash);
        let judgement = judge(slot.as_deref().copied(), sequence, wall);
        if let (Judgement::Spare, Some(slot)) = (judgement, slot) {
            slot.sequence_and_mark &= !1;
        }
        judgement
    }

    /// As [`Locked::judge`], but leaves no trace.
    pub(crate) fn glance(&self, sequence: Sequence, wall: Millis) -> Judgement {
        judge(self.slot(), sequence, wall)
    }

    pub(crate) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.index.leases()
    }

    fn forget(&self, old: Slot) {
        self.index
            .bytes
            .fetch_sub(u64::from(old.charge), Ordering::Relaxed);
        self.index.entries.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Passes the one `u64` it is given through: it is a hash already.
#[derive(Clone, Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn order(sequence: Sequence, deadline: Millis, charge: u32) -> Order {
        Order {
            sequence,
            deadline,
            charge,
            key: Bytes::new(),
        }
    }

    fn index() -> Index {
        Index::new(Leases::new(1, 1))
    }

    #[test]
    fn a_slot_is_as_small_as_the_documentation_says() {
        assert_eq!(size_of::<Slot>(), 16);
        assert_eq!(size_of::<(KeyHash, Slot)>() + 1, 25);
    }

    #[test]
    fn bytes_and_entries_follow_every_change() {
        let index = index();
        index.lock(b"a").put(Slot::new(&order(1, u64::MAX, 100)));
        index.lock(b"b").put(Slot::new(&order(2, u64::MAX, 50)));
        assert_eq!((index.bytes(), index.entries()), (150, 2));
        index.lock(b"a").put(Slot::new(&order(3, u64::MAX, 10)));
        assert_eq!((index.bytes(), index.entries()), (60, 2));
        index.lock(b"a").remove_if(1);
        assert_eq!(index.entries(), 2);
        index.lock(b"a").remove_if(3);
        index.lock(b"a").remove();
        assert_eq!((index.bytes(), index.entries()), (50, 1));
        index.forget_all();
        assert_eq!((index.bytes(), index.entries()), (0, 0));
    }

    #[test]
    fn an_entry_is_never_taken_for_expired_before_its_deadline() {
        let index = index();
        index.lock(b"a").put(Slot::new(&order(1, 1_001, 1)));
        assert!(index.lock(b"a").live(1_999).is_some());
        assert!(index.lock(b"a").live(2_000).is_none());
        index.lock(b"a").put(Slot::new(&order(2, u64::MAX, 1)));
        assert!(index.lock(b"a").live(u64::MAX).is_some());
    }

    #[test]
    fn the_hand_spares_an_entry_once_for_its_use() {
        let index = index();
        index.lock(b"a").put(Slot::new(&order(4, 5_000, 1)));
        assert_eq!(index.lock(b"a").judge(3, 0), Judgement::Outdated);
        assert_eq!(index.lock(b"b").judge(4, 0), Judgement::Unknown);
        assert!(index.lock(b"a").touch(0).is_some());
        assert_eq!(index.lock(b"a").judge(4, 0), Judgement::Spare);
        assert_eq!(index.lock(b"a").judge(4, 0), Judgement::Evict);
        assert_eq!(index.lock(b"a").judge(4, 5_000), Judgement::Expired);
    }

    #[test]
    fn what_was_hidden_may_still_exist() {
        let index = index();
        assert!(!index.lock(b"a").may_exist());
        index.lock(b"a").put(Slot::new(&order(1, u64::MAX, 1)));
        index.lock(b"a").hide();
        assert!(index.lock(b"a").slot().is_none());
        assert!(index.lock(b"a").may_exist());
    }
}
