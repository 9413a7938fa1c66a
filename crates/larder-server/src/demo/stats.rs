//! The figures of `GET /stats`, summed over the processes that serve the shop.

use std::collections::BTreeMap;

use larder::{CacheStats, TierHealth, TierStats};
use serde::{Deserialize, Serialize};

/// What the shop did since it was opened. All counts are totals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// Database queries, with the cache and past it.
    pub(crate) queries: u64,
    /// Calls of the third party.
    pub(crate) vendor_calls: u64,
    /// By the name of the cache.
    pub(crate) caches: BTreeMap<String, CacheFigures>,
    /// By the name of the tier.
    pub(crate) tiers: BTreeMap<String, TierFigures>,
}

/// What one cache did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CacheFigures {
    /// Reads of any outcome.
    pub(crate) reads: u64,
    /// Answered fresh from memory.
    pub(crate) hits_memory: u64,
    /// Answered fresh from a tier below.
    pub(crate) hits_tiers: u64,
    /// Answered stale.
    pub(crate) stale: u64,
    /// Loads that ended, well or not.
    pub(crate) loads: u64,
    /// Loads that failed.
    pub(crate) load_errors: u64,
    /// Reads that waited for the load of another.
    pub(crate) shared_loads: u64,
    /// Fills refused because an invalidation came first.
    pub(crate) fenced: u64,
    /// Entries in memory now.
    pub(crate) entries: u64,
    /// Bytes in memory now.
    pub(crate) bytes: u64,
}

/// What one tier did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TierFigures {
    /// Processes that have it in use.
    pub(crate) closed: u64,
    /// Processes that have taken it out of use, or are trying it again.
    pub(crate) open: u64,
    /// Keys it answered.
    pub(crate) hits: u64,
    /// Keys it could not answer.
    pub(crate) misses: u64,
    /// Operations that failed or took too long.
    pub(crate) failures: u64,
    /// Operations not tried, because it was out of use.
    pub(crate) skipped: u64,
    /// Invalidations it has yet to make up for.
    pub(crate) owed: u64,
}

impl Stats {
    /// The figures of this process.
    pub(crate) fn gather(
        queries: u64,
        vendor_calls: u64,
        caches: &[(&str, CacheStats)],
        tiers: &[TierStats],
    ) -> Self {
        let caches = caches
            .iter()
            .map(|(name, stats)| ((*name).to_owned(), CacheFigures::of(stats)));
        let tiers = tiers
            .iter()
            .map(|stats| (stats.name.to_string(), TierFigures::of(stats)));
        Self {
            queries,
            vendor_calls,
            caches: caches.collect(),
            tiers: tiers.collect(),
        }
    }

    /// The sum of two processes.
    pub(crate) fn plus(self, other: &Self) -> Self {
        self.combine(other, |a, b| a.saturating_add(b))
    }

    /// What happened since `before`. What is a state rather than a count is not meaningful.
    pub(crate) fn since(self, before: &Self) -> Self {
        self.combine(before, |a, b| a.saturating_sub(b))
    }

    /// Reads of every cache.
    pub(crate) fn reads(&self) -> u64 {
        self.caches.values().map(|cache| cache.reads).sum()
    }

    /// Reads answered from memory, fresh or stale.
    pub(crate) fn memory_hits(&self) -> u64 {
        let caches = self.caches.values();
        caches.map(|cache| cache.hits_memory + cache.stale).sum()
    }

    /// Reads answered fresh from a tier below memory.
    pub(crate) fn tier_hits(&self) -> u64 {
        self.caches.values().map(|cache| cache.hits_tiers).sum()
    }

    fn combine(mut self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        self.queries = op(self.queries, other.queries);
        self.vendor_calls = op(self.vendor_calls, other.vendor_calls);
        for (name, theirs) in &other.caches {
            let ours = self.caches.entry(name.clone()).or_default();
            ours.reads = op(ours.reads, theirs.reads);
            ours.hits_memory = op(ours.hits_memory, theirs.hits_memory);
            ours.hits_tiers = op(ours.hits_tiers, theirs.hits_tiers);
            ours.stale = op(ours.stale, theirs.stale);
            ours.loads = op(ours.loads, theirs.loads);
            ours.load_errors = op(ours.load_errors, theirs.load_errors);
            ours.shared_loads = op(ours.shared_loads, theirs.shared_loads);
            ours.fenced = op(ours.fenced, theirs.fenced);
            ours.entries = op(ours.entries, theirs.entries);
            ours.bytes = op(ours.bytes, theirs.bytes);
        }
        for (name, theirs) in &other.tiers {
            let ours = self.tiers.entry(name.clone()).or_default();
            ours.closed = op(ours.closed, theirs.closed);
            ours.open = op(ours.open, theirs.open);
            ours.hits = op(ours.hits, theirs.hits);
            ours.misses = op(ours.misses, theirs.misses);
            ours.failures = op(ours.failures, theirs.failures);
            ours.skipped = op(ours.skipped, theirs.skipped);
            ours.owed = op(ours.owed, theirs.owed);
        }
        self
    }
}

impl CacheFigures {
    fn of(stats: &CacheStats) -> Self {
        Self {
            reads: stats.reads(),
            hits_memory: stats.hits_memory,
            hits_tiers: stats.hits_tiers,
            stale: stats.stale,
            loads: stats.loads,
            load_errors: stats.load_errors,
            shared_loads: stats.shared_loads,
            fenced: stats.fenced,
            entries: stats.entries,
            bytes: stats.weight,
        }
    }
}

impl TierFigures {
    fn of(stats: &TierStats) -> Self {
        let closed = matches!(stats.health, TierHealth::Closed);
        Self {
            closed: u64::from(closed),
            open: u64::from(!closed),
            hits: stats.hits,
            misses: stats.misses,
            failures: stats.failures + stats.timeouts,
            skipped: stats.skipped,
            owed: stats.owed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_add_up_and_stretches_subtract() {
        let mut one = Stats {
            queries: 3,
            ..Stats::default()
        };
        let figures = CacheFigures {
            reads: 10,
            hits_memory: 6,
            stale: 1,
            hits_tiers: 2,
            ..CacheFigures::default()
        };
        one.caches.insert("product".to_owned(), figures);
        let both = one.clone().plus(&one);
        assert_eq!((both.queries, both.reads()), (6, 20));
        assert_eq!((both.memory_hits(), both.tier_hits()), (14, 4));
        assert_eq!(both.since(&one), one);
    }
}
