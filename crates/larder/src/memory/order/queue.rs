//! Entries in the order in which they came: a doubly linked list whose links lie in the slots.

use super::super::slab::{NIL, Slab};

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
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NIL).then_some(self.oldest)
    }

    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    /// Puts the slot at `at`, which is in no queue, in as the newest.
    pub(super) fn push<K, T>(&mut self, slots: &mut Slab<K, T>, at: u32) {
        let second = std::mem::replace(&mut self.newest, at);
        let slot = &mut slots[at];
        slot.newer = NIL;
        slot.older = second;
        self.weight += u64::from(slot.charge);
        match second {
            NIL => self.oldest = at,
            second => slots[second].newer = at,
        }
    }

    /// Takes the slot at `at`, which is in this queue, out of it.
    pub(super) fn unlink<K, T>(&mut self, slots: &mut Slab<K, T>, at: u32) {
        let slot = &slots[at];
        let (newer, older) = (slot.newer, slot.older);
        self.weight -= u64::from(slot.charge);
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
    pub(super) fn renew<K, T>(&mut self, slots: &mut Slab<K, T>, at: u32) {
        if self.newest != at {
            self.unlink(slots, at);
            self.push(slots, at);
        }
    }

    /// Notes that a slot of this queue was moved to `at`, links and all.
    pub(super) fn moved<K, T>(&mut self, slots: &mut Slab<K, T>, at: u32) {
        let (newer, older) = (slots[at].newer, slots[at].older);
        match newer {
            NIL => self.newest = at,
            newer => slots[newer].older = at,
        }
        match older {
            NIL => self.oldest = at,
            older => slots[older].newer = at,
        }
    }

    /// Notes that the charge of an entry of this queue changes.
    pub(super) fn reweigh(&mut self, old_charge: u32, new_charge: u32) {
        self.weight = self.weight - u64::from(old_charge) + u64::from(new_charge);
    }
}

#[cfg(test)]
impl Queue {
    /// Walks the queue, oldest last, and panics where links and weight disagree.
    pub(super) fn check<K, T>(&self, slots: &Slab<K, T>) -> Vec<u32> {
        let (mut at, mut newer, mut weight, mut seen) = (self.newest, NIL, 0, Vec::new());
        while at != NIL {
            let slot = &slots[at];
            assert_eq!(slot.newer, newer, "links agree in both directions");
            weight += u64::from(slot.charge);
            seen.push(at);
            newer = at;
            at = slot.older;
        }
        assert_eq!(self.oldest, newer, "the oldest entry ends the queue");
        assert_eq!(self.weight, weight, "a queue weighs what its entries weigh");
        seen
    }
}
