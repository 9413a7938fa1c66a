//! A walk over all entries that holds no lock for long.
//!
//! It goes by the parts of the shards' tables and not by places, because entries change their places
//! as parts grow, and the part that a key belongs to never changes. A part is shown under one lock.
//! So **a key that is there from the beginning of the walk to its end is shown exactly once**, also
//! if its value is replaced meanwhile, and any other at most once.

use std::hash::Hash;

use super::shard::Shard;
use super::slot::Slot;
use super::{Locked, Memory, sync};
use crate::clock::Millis;

/// Parts are shown together under one lock until there are so many entries. A part alone may have
/// more: about 1,400, if its shard has no more than 720,000.
const BATCH: usize = sync::batch(512);

/// How far a walk has got.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    shard: usize,
    part: usize,
}

/// An entry as a walk shows it.
#[derive(Debug)]
pub(crate) struct Seen<'a, K, T> {
    pub(crate) key: &'a K,
    pub(crate) value: &'a T,
    /// The time from which on it is no longer there. It may be over.
    pub(crate) dies_at: Millis,
    /// How much its policy thinks of it: more is more, and only within one table.
    pub(crate) heat: u8,
}

impl<K: Hash + Eq, T> Memory<K, T> {
    /// Shows `visit` the next batch of entries, expired ones that nobody has met since included.
    /// Whether there is more.
    ///
    /// Takes the shared lock of one shard, under which `visit` runs: it must be quick, and not use
    /// this table. Leaves no mark.
    pub(crate) fn walk(&self, walk: &mut Walk, visit: impl FnMut(Seen<'_, K, T>)) -> bool {
        let Some(Locked(shard)) = self.shards.get(walk.shard) else {
            return false;
        };
        match sync::read(shard).walk(walk.part, visit) {
            Some(part) => walk.part = part,
            None => (walk.shard, walk.part) = (walk.shard + 1, 0),
        }
        walk.shard < self.shards.len()
    }

    /// Shows `visit` every entry, as [`walk`](Self::walk) does.
    #[cfg(test)]
    pub(super) fn for_each(&self, mut visit: impl FnMut(&K, &T)) {
        let mut walk = Walk::default();
        while self.walk(&mut walk, |seen| visit(seen.key, seen.value)) {}
    }
}

impl<K, T> Shard<K, T> {
    /// Shows `visit` the entries of part `from` of the table, and of as many parts after it as fill
    /// a batch. The part to go on with, if there is one.
    fn walk(&self, from: usize, mut visit: impl FnMut(Seen<'_, K, T>)) -> Option<usize> {
        let mut room = BATCH;
        for (at, (len, part)) in self.parts().enumerate().skip(from) {
            if len > room && room < BATCH {
                return Some(at);
            }
            room = room.saturating_sub(len);
            for slot in part {
                visit(self.seen(slot));
            }
        }
        None
    }

    fn seen<'a>(&self, slot: &'a Slot<K, T>) -> Seen<'a, K, T> {
        Seen {
            key: &slot.key,
            value: &slot.value,
            dies_at: slot.dies_at(),
            heat: self.heat(slot),
        }
    }
}
