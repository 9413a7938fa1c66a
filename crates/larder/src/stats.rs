//! Counters of one cache, striped over threads so that counting a hit costs no shared cache line.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::stripes::{STRIPES, Stripe};

/// What is counted. Each read ends as exactly one of the kinds that [`CacheStats`] calls reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    HitMemory,
    HitTier,
    StaleServed,
    Miss,
    ReadFailed,
    Load,
    LoadFailed,
    LoadMillis,
    LoadRefused,
    Shared,
    Refresh,
    StoodIn,
    Fenced,
    Rejected,
    TooLarge,
    EncodeFailed,
    Write,
    Invalidation,
    Heard,
    Unverified,
    Confirmed,
    NotProlonged,
}

const KINDS: usize = Count::NotProlonged as usize + 1;

/// Those of one stripe, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Striped([AtomicU64; KINDS]);

/// The counters of one cache.
#[derive(Debug)]
pub(crate) struct Counters {
    stripes: Box<[Striped]>,
}

impl Counters {
    pub(crate) fn new() -> Self {
        let stripe = || Striped([const { AtomicU64::new(0) }; KINDS]);
        Self {
            stripes: (0..STRIPES).map(|_| stripe()).collect(),
        }
    }

    #[inline]
    pub(crate) fn one(&self, kind: Count) {
        self.add(kind, 1);
    }

    #[inline]
    pub(crate) fn add(&self, kind: Count, amount: u64) {
        let stripe = Stripe::of_thread();
        stripe.add(&self.stripes[stripe.number()].0[kind as usize], amount);
    }

    fn sum(&self, kind: Count) -> u64 {
        self.stripes
            .iter()
            .map(|stripe| stripe.0[kind as usize].load(Relaxed))
            .sum()
    }

    pub(crate) fn snapshot(&self) -> CacheStats {
        CacheStats {
            hits_memory: self.sum(Count::HitMemory),
            hits_tiers: self.sum(Count::HitTier),
            stale: self.sum(Count::StaleServed),
            misses: self.sum(Count::Miss),
            failed: self.sum(Count::ReadFailed),
            loads: self.sum(Count::Load),
            load_errors: self.sum(Count::LoadFailed),
            load_millis: self.sum(Count::LoadMillis),
            shared_loads: self.sum(Count::Shared),
            refreshes: self.sum(Count::Refresh),
            loads_refused: self.sum(Count::LoadRefused),
            stood_in: self.sum(Count::StoodIn),
            fenced: self.sum(Count::Fenced),
            rejected: self.sum(Count::Rejected),
            too_large: self.sum(Count::TooLarge),
            encode_errors: self.sum(Count::EncodeFailed),
            writes: self.sum(Count::Write),
            invalidations: self.sum(Count::Invalidation),
            heard: self.sum(Count::Heard),
            unverified: self.sum(Count::Unverified),
            confirmed: self.sum(Count::Confirmed),
            not_prolonged: self.sum(Count::NotProlonged),
            ..CacheStats::default()
        }
    }
}

/// What one cache did since it was built. All counts are totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Reads answered fresh from memory.
    pub hits_memory: u64,
    /// Reads answered fresh from a tier below memory. [`crate::TierStats`] has them per tier.
    pub hits_tiers: u64,
    /// Reads answered with a stale value.
    pub stale: u64,
    /// Reads that needed the loader, or that found nothing.
    pub misses: u64,
    /// Reads that ended in an error.
    pub failed: u64,
    /// Loads that ended, well or not. A batch load counts each of its keys.
    pub loads: u64,
    /// Loads that ended in an error, a panic or past their deadline.
    pub load_errors: u64,
    /// The time spent in loads, in milliseconds, without the waits for their turns.
    pub load_millis: u64,
    /// Loads that did not begin, because as many as may were waiting for their turn.
    pub loads_refused: u64,
    /// Reads that waited for a load or a tier read that another caller had begun.
    pub shared_loads: u64,
    /// Refreshes that began in the background, while what was there was served. Where another process
    /// turned out to load the key already, there was no load here.
    pub refreshes: u64,
    /// Loads that failed and that a stale value stood in for.
    pub stood_in: u64,
    /// Fills and writes that were not stored because an invalidation or another write came first.
    pub fenced: u64,
    /// Values from a tier that were not readable: corrupt, foreign, of another version or key.
    pub rejected: u64,
    /// Values over the limit of a tier or heavier than the memory bound. Stored where they fit.
    pub too_large: u64,
    /// Values that their codec could not encode. Stored in memory alone.
    pub encode_errors: u64,
    /// Calls of `set`.
    pub writes: u64,
    /// Calls of `invalidate`, `expire` and `clear`.
    pub invalidations: u64,
    /// Invalidations and writes of other processes that named this cache or a key of it.
    pub heard: u64,
    /// Reads served from memory that another process may have invalidated: neither the bus nor the
    /// shared tier could be asked. See [`Isolation`](crate::Isolation).
    pub unverified: u64,
    /// Lookups of suspect entries in memory that the lowest tier confirmed, without sending the value.
    pub confirmed: u64,
    /// Reads that should have prolonged an entry in the tiers and did not, because thousands of others
    /// were waiting for that. See [`CacheBuilder::sliding`](crate::CacheBuilder::sliding).
    pub not_prolonged: u64,
    /// Entries in memory now, dead ones that were not swept yet included.
    pub entries: u64,
    /// The weight of the entries in memory now: bytes, or entries where those are the bound.
    pub weight: u64,
    /// The bound on `weight`.
    pub bound: u64,
    /// Entries that memory dropped to stay within its bound.
    pub evictions: u64,
    /// Entries that memory dropped because their time was over.
    pub expirations: u64,
    /// Values that memory had no room for, under [`Policy::NoEviction`](crate::Policy::NoEviction).
    pub refused: u64,
}

impl CacheStats {
    /// How many reads there were.
    pub fn reads(&self) -> u64 {
        self.hits_memory + self.hits_tiers + self.stale + self.misses + self.failed
    }

    /// The share of reads that no loader had to answer, from 0 to 1; `None` without reads.
    pub fn hit_rate(&self) -> Option<f64> {
        let hits = self.hits_memory + self.hits_tiers + self.stale;
        (self.reads() > 0).then(|| hits as f64 / self.reads() as f64)
    }

    /// The mean time of a load in milliseconds; `None` without loads.
    pub fn mean_load_millis(&self) -> Option<f64> {
        (self.loads > 0).then(|| self.load_millis as f64 / self.loads as f64)
    }
}
