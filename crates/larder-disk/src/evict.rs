//! Making room: the hand that evicts, and the sweep that removes what expired.
//!
//! Eviction is SIEVE (Zhang et al., NSDI 2024): a hand moves from the oldest entry to the newest
//! and around, evicts what was not read since it came by last, and leaves the rest where it is.
//! Entries stand in the order of their writing, which the tree keeps in records of their own, so
//! the hand reads keys and sizes only, and the order survives a restart; which entries were read
//! does not.

use std::collections::VecDeque;

use larder::clock::Millis;

use crate::index::{Judgement, Slot};
use crate::record::{self, Order, Sequence};
use crate::tree::Tree;
use crate::writer::{Failure, Writer, count};

/// How many order records are read at a time.
const AHEAD: usize = 256;

/// How many entries are evicted in one batch.
const VICTIMS: usize = 64;

/// How many entries the hand may spare for one that is stored; then it evicts regardless.
const MAX_SPARED: usize = 4_096;

/// By how much the first order record moves on before that is written down.
const FIRST_STEP: Sequence = 10_000;

/// How many order records one look at expired entries covers.
const SWEEP: usize = 512;

/// The hand of eviction.
#[derive(Debug, Default)]
pub(crate) struct Hand {
    /// No order record comes before this one.
    first: Sequence,
    /// The order record it looks at next, if `ahead` is empty.
    at: Sequence,
    /// Records read already.
    ahead: VecDeque<Order>,
}

/// The search for expired entries: passes over all order records, in small steps.
#[derive(Debug)]
pub(crate) struct Sweep {
    at: Sequence,
    /// No entry that the last full pass saw, and none written since, expires before this.
    earliest: Millis,
    /// The same for the pass under way.
    seen: Millis,
}

impl Default for Sweep {
    fn default() -> Self {
        Self {
            at: 0,
            earliest: Millis::MAX,
            seen: Millis::MAX,
        }
    }
}

impl Sweep {
    /// Takes note of the deadline of an entry.
    pub(crate) fn expect(&mut self, deadline: Millis) {
        self.earliest = self.earliest.min(deadline);
        self.seen = self.seen.min(deadline);
    }

    /// Whether something may have expired.
    pub(crate) fn due(&self, wall: Millis) -> bool {
        wall >= self.earliest
    }

    fn pass_ended(&mut self) {
        self.at = 0;
        self.earliest = self.seen;
        self.seen = Millis::MAX;
    }
}

impl Writer {
    /// Evicts until an entry of `charge` bytes under `key` fits.
    pub(crate) fn make_room(
        &mut self,
        tree: &Tree,
        key: &[u8],
        charge: u64,
    ) -> Result<(), Failure> {
        let mut fruitless = 0;
        loop {
            let replaced = self.shared.index.lock(key).slot();
            let freed = replaced.map_or(0, |slot| u64::from(slot.charge()));
            let surplus = self.surplus(charge.saturating_sub(freed), replaced.is_none());
            if surplus == Surplus::NONE {
                return Ok(());
            }
            if self.evict_some(tree, surplus)? == 0 {
                fruitless += 1;
            }
            // The records do not account for what the index holds: begin with what they say.
            if fruitless > 2 {
                self.index_all(tree)?;
                fruitless = 0;
            }
        }
    }

    fn surplus(&self, extra_bytes: u64, extra_entry: bool) -> Surplus {
        let (index, options) = (&self.shared.index, &self.shared.options);
        Surplus {
            bytes: (index.bytes() + extra_bytes).saturating_sub(options.max_bytes),
            entries: (index.entries() + u64::from(extra_entry)).saturating_sub(options.max_entries),
        }
    }

    /// Evicts a batch towards `surplus`; returns how many records it removed or passed.
    fn evict_some(&mut self, tree: &Tree, mut surplus: Surplus) -> Result<usize, Failure> {
        let wall = self.shared.wall();
        let mut changes = tree.changes();
        let mut gone = Vec::new();
        let mut spared = 0;
        while surplus != Surplus::NONE && gone.len() < VICTIMS {
            let Some(order) = self.next_in_order(tree)? else {
                break;
            };
            let mut locked = self.shared.index.lock(&order.key);
            let judgement = locked.judge(order.sequence, wall);
            if judgement == Judgement::Spare && spared < MAX_SPARED {
                spared += 1;
                continue;
            }
            if judgement != Judgement::Outdated {
                changes.remove(&record::entry_key(&order.key));
            }
            if matches!(
                judgement,
                Judgement::Evict | Judgement::Spare | Judgement::Expired
            ) {
                surplus.shrink(order.charge);
            }
            drop(locked);
            changes.remove(&record::order_key(order.sequence));
            gone.push((order, judgement));
        }
        if !gone.is_empty() {
            tree.commit(changes)?;
        }
        self.settle(&gone);
        Ok(gone.len() + spared)
    }

    /// Takes what was removed from the tree out of the index.
    fn settle(&self, gone: &[(Order, Judgement)]) {
        let counters = &self.shared.counters;
        for (order, judgement) in gone {
            self.shared.index.lock(&order.key).remove_if(order.sequence);
            match judgement {
                Judgement::Evict | Judgement::Spare => count(&counters.evicted, 1),
                Judgement::Expired => count(&counters.expired, 1),
                Judgement::Outdated | Judgement::Unknown => {}
            }
        }
    }

    /// The order record under the hand, which moves on; `None` once at the end of a round.
    fn next_in_order(&mut self, tree: &Tree) -> Result<Option<Order>, Failure> {
        if self.hand.ahead.is_empty() {
            self.hand.ahead = self.orders(tree, self.hand.at, AHEAD)?.into();
        }
        let next = self.hand.ahead.pop_front();
        self.hand.at = next.as_ref().map_or(0, |order| order.sequence + 1);
        Ok(next)
    }

    /// Up to `max` order records from `from` on.
    fn orders(&mut self, tree: &Tree, from: Sequence, max: usize) -> Result<Vec<Order>, Failure> {
        let first = self.hand.first;
        let found = orders(tree, from.max(first), max)?;
        if from <= first {
            let now_first = found.first().map_or(self.next, |order| order.sequence);
            if now_first - first > FIRST_STEP {
                let mut hint = tree.changes();
                hint.put(record::FIRST, now_first.to_be_bytes());
                tree.commit(hint)?;
            }
            self.hand.first = now_first;
        }
        Ok(found)
    }

    /// Looks at some order records and removes the entries among them that expired.
    pub(crate) fn sweep_chunk(&mut self, tree: &Tree) -> Result<(), Failure> {
        let wall = self.shared.wall();
        let found = self.orders(tree, self.sweep.at, SWEEP)?;
        let passed = found.len();
        let mut changes = tree.changes();
        let mut gone = Vec::new();
        for order in found {
            self.sweep.at = order.sequence + 1;
            match self
                .shared
                .index
                .lock(&order.key)
                .glance(order.sequence, wall)
            {
                Judgement::Spare | Judgement::Evict => {
                    self.sweep.seen = self.sweep.seen.min(order.deadline);
                    continue;
                }
                Judgement::Outdated => {}
                Judgement::Unknown | Judgement::Expired => {
                    changes.remove(&record::entry_key(&order.key));
                }
            }
            changes.remove(&record::order_key(order.sequence));
            gone.push((order, Judgement::Expired));
        }
        if !changes.is_empty() {
            tree.commit(changes)?;
        }
        self.settle(&gone);
        if passed < SWEEP {
            self.sweep.pass_ended();
        }
        Ok(())
    }

    /// Builds the index from the order records.
    pub(crate) fn index_all(&mut self, tree: &Tree) -> Result<(), Failure> {
        const STEP: usize = 4_096;
        self.shared.index.forget_all();
        self.sweep = Sweep::default();
        let first = tree.find(record::FIRST)?;
        let first = first.and_then(|hint| hint.as_ref().try_into().ok());
        let mut from = first.map_or(0, Sequence::from_be_bytes);
        self.hand = Hand {
            first: from,
            ..Hand::default()
        };
        loop {
            let found = orders(tree, from, STEP)?;
            for order in &found {
                self.sweep.expect(order.deadline);
                let slot = Slot::new(order);
                self.shared.index.lock(&order.key).put(slot);
                from = order.sequence + 1;
            }
            if found.len() < STEP {
                break;
            }
        }
        self.next = self.next.max(from).max(1);
        Ok(())
    }
}

/// Up to `max` order records from `from` on. Damaged ones are skipped.
fn orders(tree: &Tree, from: Sequence, max: usize) -> Result<Vec<Order>, Failure> {
    let end = record::end_of_prefix(&record::order_key(0)[..1]);
    let found = tree.scan(&record::order_key(from), &end, max)?;
    Ok(found
        .iter()
        .filter_map(|(key, value)| Order::parse(key, value))
        .collect())
}

/// By how much the limits would be exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Surplus {
    bytes: u64,
    entries: u64,
}

impl Surplus {
    const NONE: Self = Self {
        bytes: 0,
        entries: 0,
    };

    fn shrink(&mut self, charge: u32) {
        self.bytes = self.bytes.saturating_sub(u64::from(charge));
        self.entries = self.entries.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_due_only_when_something_may_have_expired() {
        let mut sweep = Sweep::default();
        assert!(!sweep.due(Millis::MAX - 1));
        sweep.expect(500);
        assert!(!sweep.due(499));
        assert!(sweep.due(500));
        sweep.seen = 900;
        sweep.pass_ended();
        assert!(!sweep.due(899));
        assert!(sweep.due(900));
    }
}
