//! Entries in the order in which they came: a doubly linked list whose links lie in the slots.

use crate::memory::slot::{NIL, Slot};
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

    /// Puts `slot` in the table, which has room for it, and in here as the newest. Its position.
    #[inline]
    pub(super) fn insert<K, T>(&mut self, slots: &mut Table<K, T>, mut slot: Slot<K, T>) -> u32 {
        (slot.newer, slot.older) = (NIL, self.newest);
        let charge = slot.charge();
        let at = slots.insert(slot);
        self.lead(slots, at, charge);
        at
    }

    /// Takes `slot`, which was in this queue and is no longer in the table, out of here.
    #[inline]
    pub(super) fn remove<K, T>(&mut self, slots: &mut Table<K, T>, slot: &Slot<K, T>) {
        self.close(slots, (slot.newer, slot.older), slot.charge());
    }

    /// Puts the entry at `at`, which is in no queue, in as the newest.
    pub(super) fn link<K, T>(&mut self, slots: &mut Table<K, T>, at: u32) {
        let slot = &mut slots[at];
        (slot.newer, slot.older) = (NIL, self.newest);
        let charge = slot.charge();
        self.lead(slots, at, charge);
    }

    /// Takes the entry at `at`, which is in this queue, out of it.
    pub(super) fn unlink<K, T>(&mut self, slots: &mut Table<K, T>, at: u32) {
        let slot = &slots[at];
        let (neighbours, charge) = ((slot.newer, slot.older), slot.charge());
        self.close(slots, neighbours, charge);
    }

    /// Makes an entry that knows its neighbours the newest for them as well.
    #[inline]
    fn lead<K, T>(&mut self, slots: &mut Table<K, T>, at: u32, charge: u32) {
        self.weight += u64::from(charge);
        match std::mem::replace(&mut self.newest, at) {
            NIL => self.oldest = at,
            second => slots[second].newer = at,
        }
    }

    /// Makes the neighbours of one that goes those of each other.
    #[inline]
    fn close<K, T>(&mut self, slots: &mut Table<K, T>, (newer, older): (u32, u32), charge: u32) {
        self.weight -= u64::from(charge);
        match newer {
            NIL => self.newest = older,
            newer => slots[newer].older = older,
        }
        match older {
            NIL => self.oldest = newer,
            older => slots[older].newer = newer,
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
        let slot = &mut slots[at];
        let (newer, older) = (slot.newer, slot.older);
        slot.newer = moves.to(newer);
        slot.older = moves.to(older);
        // A neighbour that moved as well sees to its own links.
        if newer != NIL && moves.moved(newer).is_none() {
            slots[newer].older = at;
        }
        if older != NIL && moves.moved(older).is_none() {
            slots[older].newer = at;
        }
    }
}

#[cfg(test)]
impl Queue {
    /// Walks the queue, oldest last, and panics where links and weight disagree.
    pub(super) fn check<K, T>(&self, slots: &Table<K, T>) -> Vec<u32> {
        let (mut at, mut newer, mut weight, mut seen) = (self.newest, NIL, 0, Vec::new());
        while at != NIL {
            let slot = &slots[at];
            assert_eq!(slot.newer, newer, "links agree in both directions");
            weight += u64::from(slot.charge());
            seen.push(at);
            newer = at;
            at = slot.older;
        }
        assert_eq!(self.oldest, newer, "the oldest entry ends the queue");
        assert_eq!(self.weight, weight, "a queue weighs what its entries weigh");
        seen
    }
}
