//! Making room: the hand that evicts, and the reaper that removes what expired.
//!
//! Eviction is SIEVE (Zhang et al., NSDI 2024): a hand moves from the oldest entry to the newest
//! and around, evicts what was not read since it came by last, and leaves the rest where it is.
//! Entries stand in the order of their writing, which the tree keeps in records of their own, so
//! the hand reads keys and sizes only, and the order survives a restart; which entries were read
//! does not.
//!
//! Counters and tag records stand in the same order. Whatever uses one marks it as read, so the hand
//! spares them as long as values under them come and go.

use std::collections::VecDeque;
use std::ops::Add;

use larder::clock::Millis;

use crate::index::{Judgement, Slot};
use crate::record::{self, Order, Sequence};
use crate::tree::Tree;
use crate::writer::{Failure, Writer, count};

/// How many order records are read at a time.
const AHEAD: usize = 256;

/// How many entries are evicted in one batch.
const VICTIMS: usize = 64;

/// How many entries the hand may spare for one that is stored; then it evicts regardless. Small
/// records, on which many entries depend, go regardless only after twice as many.
const MAX_SPARED: usize = 4_096;

/// By how much the first order record moves on before that is written down.
const FIRST_STEP: Sequence = 10_000;

/// How many order records one look at expired entries covers.
const REAP: usize = 512;

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
pub(crate) struct Reaper {
    at: Sequence,
    /// No entry that the last full pass saw, and none written since, expires before this.
    earliest: Millis,
    /// The same for the pass under way.
    seen: Millis,
}

impl Default for Reaper {
    fn default() -> Self {
        Self {
            at: 0,
            earliest: Millis::MAX,
            seen: Millis::MAX,
        }
    }
}

impl Reaper {
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

/// Room for entries, in the units of both limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

impl Need {
    pub(crate) const NONE: Self = Self {
        bytes: 0,
        entries: 0,
    };

    /// What one entry takes.
    pub(crate) fn entry(key_len: usize, value_len: usize) -> Self {
        Self {
            bytes: record::entry_bytes(key_len, value_len),
            entries: 1,
        }
    }

    fn less(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            entries: self.entries.saturating_sub(other.entries),
        }
    }
}

impl Add for Need {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            entries: self.entries.saturating_add(other.entries),
        }
    }
}

impl Writer {
    /// Evicts until there is room for `need`, what `key` takes now included.
    pub(crate) fn make_room(&mut self, tree: &Tree, key: &[u8], need: Need) -> Result<(), Failure> {
        let mut fruitless = 0;
        loop {
            let surplus = self.surplus(need.less(self.taken_by(key)));
            if surplus == Need::NONE {
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

    fn taken_by(&self, key: &[u8]) -> Need {
        let slot = self.shared.index.lock(key).slot();
        slot.map_or(Need::NONE, |slot| Need {
            bytes: u64::from(slot.charge()),
            entries: 1,
        })
    }

    /// By how much the limits would be exceeded.
    fn surplus(&self, extra: Need) -> Need {
        let (index, options) = (&self.shared.index, &self.shared.options);
        let held = Need {
            bytes: index.bytes(),
            entries: index.entries(),
        };
        (held + extra).less(Need {
            bytes: options.max_bytes,
            entries: options.max_entries,
        })
    }

    /// Evicts a batch towards `surplus`; returns how many records it removed or passed.
    fn evict_some(&mut self, tree: &Tree, mut surplus: Need) -> Result<usize, Failure> {
        let wall = self.shared.wall();
        let mut changes = tree.changes();
        let mut gone = Vec::new();
        let mut spared = 0;
        while surplus != Need::NONE && gone.len() < VICTIMS {
            let Some(order) = self.next_in_order(tree)? else {
                break;
            };
            let mut locked = self.shared.index.lock(&order.key);
            let judgement = locked.judge(order.sequence, wall);
            let patience = MAX_SPARED * (1 + usize::from(order.is_small()));
            if judgement == Judgement::Spare && spared < patience {
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
                surplus = surplus.less(Need {
                    bytes: u64::from(order.charge),
                    entries: 1,
                });
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
    pub(crate) fn reap_chunk(&mut self, tree: &Tree) -> Result<(), Failure> {
        let wall = self.shared.wall();
        let found = self.orders(tree, self.reaper.at, REAP)?;
        let passed = found.len();
        let mut changes = tree.changes();
        let mut gone = Vec::new();
        for order in found {
            self.reaper.at = order.sequence + 1;
            match self
                .shared
                .index
                .lock(&order.key)
                .glance(order.sequence, wall)
            {
                Judgement::Spare | Judgement::Evict => {
                    self.reaper.seen = self.reaper.seen.min(order.deadline);
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
        if passed < REAP {
            self.reaper.pass_ended();
        }
        Ok(())
    }

    /// Builds the index from the order records.
    pub(crate) fn index_all(&mut self, tree: &Tree) -> Result<(), Failure> {
        const STEP: usize = 4_096;
        self.shared.index.forget_all();
        self.reaper = Reaper::default();
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
                self.reaper.expect(order.deadline);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reaper_is_due_only_when_something_may_have_expired() {
        let mut reaper = Reaper::default();
        assert!(!reaper.due(Millis::MAX - 1));
        reaper.expect(500);
        assert!(!reaper.due(499));
        assert!(reaper.due(500));
        reaper.seen = 900;
        reaper.pass_ended();
        assert!(!reaper.due(899));
        assert!(reaper.due(900));
    }
}
