//! Which entry goes when room is needed.
//!
//! ```text
//! Order       the policy of one shard
//!  ├ Adaptive    the default: two queues, steered by what was evicted too early   adaptive.rs
//!  │  └ Ghost       what went lately, and when                                    ghost.rs
//!  └ Classic     LRU, LFU, FIFO, Random, NoEviction                               classic.rs
//!     └ Queue    entries in the order in which they came                          queue.rs
//! ```

mod adaptive;
mod classic;
mod ghost;
mod queue;

use self::adaptive::Adaptive;
use self::classic::Classic;
use super::slot::{Entry, Meta, Read, Slot, Stand, Standing};
use super::table::{Moves, Table};
use crate::clock::Millis;
use crate::options::Policy;

/// Why an entry was chosen to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Its deadline has passed.
    Dead,
    /// Room was needed.
    Room,
}

/// Whether a shard has room for a newcomer without anybody going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    Full,
}

/// The order of the entries of one shard. Links and marks lie with the entries.
#[derive(Debug)]
pub(super) enum Order {
    Adaptive(Adaptive),
    Classic(Classic),
}

impl Order {
    /// An empty order for a shard that may hold `quota`.
    pub(super) fn new(policy: Policy, quota: u64) -> Self {
        match policy {
            Policy::Adaptive => Self::Adaptive(Adaptive::new(quota)),
            other => Self::Classic(Classic::new(other)),
        }
    }

    /// Follows a new quota of the shard.
    pub(super) fn resize(&mut self, quota: u64) {
        if let Self::Adaptive(order) = self {
            order.resize(quota);
        }
    }

    /// What a read leaves in its slot from now on.
    #[inline]
    pub(super) fn read(&self) -> Read {
        match self {
            Self::Adaptive(order) => Read::at(order.tick()),
            Self::Classic(_) => Read::UNMARKED,
        }
    }

    /// Notes a read that changes the order, where [`Policy::reorders_on_read`].
    pub(super) fn reorder<K, T>(&mut self, slots: &mut Table<K, T>, at: u32) {
        if let Self::Classic(order) = self {
            order.reorder(slots, at);
        }
    }

    /// Decides where a newcomer stands, whose key is not in the shard.
    pub(super) fn enter<K, T>(
        &mut self,
        slots: &mut Table<K, T>,
        entry: &Entry<K, T>,
        room: Room,
    ) -> Standing {
        match self {
            Self::Adaptive(order) => order.enter(slots, entry, room),
            Self::Classic(_) => Standing::NEW,
        }
    }

    /// Puts `entry` in the table, which has room for it, and in here as the newest of its kind. Its
    /// position.
    #[inline]
    pub(super) fn insert<K, T>(
        &mut self,
        slots: &mut Table<K, T>,
        entry: Entry<K, T>,
        standing: Standing,
    ) -> u32 {
        match self {
            Self::Adaptive(order) => order.insert(slots, entry, standing),
            Self::Classic(order) => order.insert(slots, entry, standing),
        }
    }

    /// Takes the entry at `at` out of here, and out of the table to where it is wanted.
    #[inline]
    pub(super) fn remove<K, T>(
        &mut self,
        slots: &mut Table<K, T>,
        at: u32,
        to: &mut Option<Slot<K, T>>,
    ) -> Meta {
        let was = slots[at].standing();
        let gone = slots.remove(at, to);
        match self {
            Self::Adaptive(order) => order.remove(slots, &gone, was),
            Self::Classic(order) => order.remove(slots, &gone, was),
        }
        gone
    }

    /// Follows entries to where they moved.
    pub(super) fn follow<K, T>(&mut self, slots: &mut Table<K, T>, moves: &Moves) {
        queue::relink(slots, moves);
        match self {
            Self::Adaptive(order) => order.follow(moves),
            Self::Classic(order) => order.follow(moves),
        }
    }

    /// Notes that the charge of a linked entry, which stands like this, changes.
    pub(super) fn reweigh(&mut self, standing: Standing, old_charge: u32, new_charge: u32) {
        match self {
            Self::Adaptive(order) => order.reweigh(standing, old_charge, new_charge),
            Self::Classic(order) => order.reweigh(standing, old_charge, new_charge),
        }
    }

    /// How much the policy thinks of an entry: more is more. Zero where it does not look at reads,
    /// and where it keeps them in order and in nothing that an entry knows.
    pub(super) fn heat<K, T>(&self, slot: &Slot<K, T>) -> u8 {
        match self {
            Self::Adaptive(_) => match slot.stand() {
                Stand::Small => slot.mark(),
                Stand::Main => slot.mark() + Slot::<K, T>::MARK_MAX + 1,
            },
            Self::Classic(_) => slot.reads(),
        }
    }

    /// The entry that goes next, still there; `None` if there is none. The caller evicts it.
    pub(super) fn victim<K, T>(
        &mut self,
        slots: &mut Table<K, T>,
        now: Millis,
    ) -> Option<(u32, Reason)> {
        match self {
            Self::Adaptive(order) => order.victim(slots, now),
            Self::Classic(order) => order.victim(slots, now),
        }
    }
}

#[cfg(test)]
impl Order {
    /// Bytes that it has from the allocator.
    pub(super) fn heap(&self) -> usize {
        match self {
            Self::Adaptive(order) => order.heap(),
            Self::Classic(order) => order.heap(),
        }
    }

    /// Compares queues and slots, and returns how many entries are linked.
    pub(super) fn check<K, T>(&self, slots: &Table<K, T>) -> u32 {
        match self {
            Self::Adaptive(order) => order.check(slots),
            Self::Classic(order) => order.check(slots),
        }
    }
}
