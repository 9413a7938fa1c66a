//! The memory fence: what makes an invalidation win over a fill that began before it.
//!
//! ```text
//! fill:        mark() ... load ... lock shard { mark still holds? insert }
//! invalidate:            bump(), lock shard { remove }
//! ```
//!
//! Either the fill locks the shard second, and sees the bump; or it locks first, and what it
//! inserted is removed. Generations are kept per stripe of the key's hash, so two keys can share
//! one: the price is a fill that is refused without need, never one that is let through.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Stripes of generations: 8 KiB per cache.
const STRIPES: usize = 1024;

/// The generations of one cache.
#[derive(Debug)]
pub(crate) struct Fence {
    stripes: Box<[AtomicU64]>,
    /// Counts the clears of the whole cache. Entries carry it, so that one comparison on a hit
    /// tells whether they are from before a clear.
    epoch: AtomicU64,
}

/// The state of the fence at one moment, for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    stripe: usize,
    generation: u64,
    epoch: u64,
}

impl Mark {
    /// Whether a load that began under this mark began no earlier than one under `other`, a mark
    /// of the same key.
    pub(crate) fn is_as_new_as(&self, other: &Mark) -> bool {
        self.generation >= other.generation && self.epoch >= other.epoch
    }

    /// The epoch that an entry filled under this mark belongs to.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl Fence {
    pub(crate) fn new() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(),
            epoch: AtomicU64::new(0),
        }
    }

    /// Captures the fence. Taken before the load begins.
    pub(crate) fn mark(&self, hash: u64) -> Mark {
        // The table picks shards and buckets by other bits; any will do here.
        let stripe = (hash >> 20) as usize % STRIPES;
        Mark {
            stripe,
            generation: self.stripes[stripe].load(SeqCst),
            epoch: self.epoch.load(SeqCst),
        }
    }

    /// Whether nothing was invalidated or written under this key since `mark`.
    pub(crate) fn holds(&self, mark: Mark) -> bool {
        self.stripes[mark.stripe].load(SeqCst) == mark.generation
            && self.epoch.load(SeqCst) == mark.epoch
    }

    /// Fences off every fill of this key that is under way, and returns the mark from now on.
    pub(crate) fn bump(&self, hash: u64) -> Mark {
        let mark = self.mark(hash);
        let generation = self.stripes[mark.stripe].fetch_add(1, SeqCst) + 1;
        Mark { generation, ..mark }
    }

    /// Like [`Fence::bump`], if nobody else came between: `None` if somebody did.
    pub(crate) fn bump_from(&self, mark: Mark) -> Option<Mark> {
        let generation = mark.generation + 1;
        self.stripes[mark.stripe]
            .compare_exchange(mark.generation, generation, SeqCst, SeqCst)
            .ok()
            .filter(|_| self.epoch.load(SeqCst) == mark.epoch)?;
        Some(Mark { generation, ..mark })
    }

    /// Fences off every fill of the cache that is under way, and makes its entries unreadable.
    pub(crate) fn clear(&self) {
        self.epoch.fetch_add(1, SeqCst);
    }

    /// The epoch that readable entries carry.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_holds_until_its_key_is_bumped_or_the_cache_cleared() {
        let fence = Fence::new();
        let (key, other) = (1 << 20, 2 << 20);
        let mark = fence.mark(key);
        fence.bump(other);
        assert!(fence.holds(mark));
        let mark = fence.bump(key);
        assert!(fence.holds(mark));
        fence.clear();
        assert!(!fence.holds(mark));
    }

    #[test]
    fn the_second_of_two_overlapping_writes_knows_of_the_first() {
        let fence = Fence::new();
        let first = fence.bump(0);
        let second = fence.bump(0);
        assert_eq!(fence.bump_from(first), None);
        assert!(fence.bump_from(second).is_some());
        assert_eq!(fence.bump_from(second), None);
    }
}
