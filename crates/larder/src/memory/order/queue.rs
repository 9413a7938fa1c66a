//! Entries in the order in which they came: a doubly linked list whose links lie with the entries.

use crate::memory::slot::{Entry, Meta, NIL, Standing};
use crate::memory::table::{Moves, Table};

/// The ends of a queue. Links rather than a ring, because entries also leave from the middle
/// (removed, expired), and a ring would keep their places until they reach its end.
#[derive(Debug)]
pub(super) struct Queue {
    newest: u32,
    oldest: u32,
    /// The charges of its entries together.
    weight: u64,
}

impl Queue {
    pub(super) const EMPTY: Self = Self {
        newest: NIL,
        oldest: NIL,
        weight: 0,
    };

    /// The slot of the oldest entry.
    #[inline]
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NIL).then_some(self.oldest)
    }

    #[inline]
    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    /// Puts `entry` in the table, which has room for it, and in here as the newest. Its position.
    #[inline]
    pub(super) fn insert<K, T>(
        &mut self,
        slots: &mut Table<K, T>,
        entry: Entry<K, T>,
        standing: Standing,
    ) -> u32 {
        let meta = entry.meta(self.newest);
        let at = slots.insert(entry.slot(standing), meta);
        self.lead(slots, at, meta.charge());
        at
    }

    /// Takes the entry that `gone` is of out of here. It was in this queue, and is no longer in the table.
    #[inline]
    pub(super) fn remove<K, T>(&mut self, slots: &mut Table<K, T>, gone: &Meta) {
        self.weight -= u64::from(gone.charge());
        match gone.newer {
            NIL => self.newest = gone.older,
            newer => slots.meta_mut(newer).older = gone.older,
        }
        match gone.older {
            NIL => self.oldest = gone.newer,
            older => slots.meta_mut(older).newer = gone.newer,
        }
    }

    /// Puts the entry at `at`, which is in no queue, in as the newest.
    pub(super) fn link<K, T>(&mut self, slots: &mut Table<K, T>, at: u32) {
        let meta = slots.meta_mut(at);
        (meta.newer, meta.older) = (NIL, self.newest);
        let charge = meta.charge();
        self.lead(slots, at, charge);
    }

    /// Takes the entry at `at`, which is in this queue, out of it.
    pub(super) fn unlink<K, T>(&mut self, slots: &mut Table<K, T>, at: u32) {
        let meta = *slots.meta(at);
        self.remove(slots, &meta);
    }

    /// Makes an entry that knows its neighbours the newest for them as well.
    #[inline]
    fn lead<K, T>(&mut self, slots: &mut Table<K, T>, at: u32, charge: u32) {
        self.weight += u64::from(charge);
        match std::mem::replace(&mut self.newest, at) {
            NIL => self.oldest = at,
            second => slots.meta_mut(second).newer = at,
        }
    }

    /// Makes the entry at `at`, which is in this queue, its newest.
    pub(super) fn renew<K, T>(&mut self, slots: &mut Table<K, T>, at: u32) {
        if self.newest != at {
            self.unlink(slots, at);
            self.link(slots, at);
        }
    }

    /// Follows its ends to where they moved.
    pub(super) fn follow(&mut self, moves: &Moves) {
        self.newest = moves.to(self.newest);
        self.oldest = moves.to(self.oldest);
    }

    /// Notes that the charge of an entry of this queue changes.
    pub(super) fn reweigh(&mut self, old_charge: u32, new_charge: u32) {
        self.weight = self.weight - u64::from(old_charge) + u64::from(new_charge);
    }
}

/// Mends the links of all that moved, in whatever queue they are, and of their neighbours.
pub(super) fn relink<K, T>(slots: &mut Table<K, T>, moves: &Moves) {
    for at in moves.taken() {
        let meta = slots.meta_mut(at);
        let (newer, older) = (meta.newer, meta.older);
        (meta.newer, meta.older) = (moves.to(newer), moves.to(older));
        // A neighbour that moved as well sees to its own links.
        if newer != NIL && moves.moved(newer).is_none() {
            slots.meta_mut(newer).older = at;
        }
        if older != NIL && moves.moved(older).is_none() {
            slots.meta_mut(older).newer = at;
        }
    }
}

#[cfg(test)]
impl Queue {
    /// Walks the queue, oldest last, and panics where links and weight disagree.
    pub(super) fn check<K, T>(&self, slots: &Table<K, T>) -> Vec<u32> {
        let (mut at, mut newer, mut weight, mut seen) = (self.newest, NIL, 0, Vec::new());
        while at != NIL {
            let meta = slots.meta(at);
            assert_eq!(meta.newer, newer, "links agree in both directions");
            weight += u64::from(meta.charge());
            seen.push(at);
            newer = at;
            at = meta.older;
        }
        assert_eq!(self.oldest, newer, "the oldest entry ends the queue");
        assert_eq!(self.weight, weight, "a queue weighs what its entries weigh");
        seen
    }
}
