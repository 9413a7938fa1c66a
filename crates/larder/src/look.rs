//! Looking for entries in the tiers, one tier after the other, for any number of keys at once.
//!
//! A look that may lead to a load takes the lease of every tier it passes, because what is found
//! below, or loaded, is filled into all of them under that lease: an invalidation that comes
//! between voids it, and the fill is refused.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::answer::Answer;
use crate::cache::Inner;
use crate::entry::Held;
use crate::envelope::{Header, Rejected};
use crate::fill::{FillGuard, Landed, Origin};
use crate::key::CacheKey;
use crate::policy::{self, Decision};
use crate::stats::Count;
use crate::store::{Fill, LeaseRequest, Leased};
use crate::tier::{Budget, Tier, Unserved};
use crate::write;

/// How often a lease that another process holds is asked after, in milliseconds: the bounds of a
/// random wait.
const POLL_MILLIS: (u64, u64) = (10, 40);

/// How long a stale entry that another process refreshes is served before the next look.
const ASK_AGAIN_MILLIS: u64 = 500;

/// What a look is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seeking {
    /// Whatever is there. Nothing will be loaded.
    Peek,
    /// An entry, "there is no such value" included.
    Entry,
    /// A value: an entry that says "absent" is as good as none.
    Value,
}

impl Seeking {
    /// What a caller seeks whose loader answers with `A`.
    pub(crate) fn of<V, A: Answer<V>>() -> Self {
        if A::out(None).is_some() {
            Seeking::Entry
        } else {
            Seeking::Value
        }
    }

    pub(crate) fn accepts<V>(self, held: &Held<V>) -> bool {
        self != Seeking::Value || held.value.is_some()
    }
}

/// Looks in every tier, top to bottom. Fills whose entry is found are landed, and the entry is
/// promoted into the tiers above; the others come back.
pub(crate) async fn look<K, V>(
    mut fills: Vec<FillGuard<K, V>>,
    seeking: Seeking,
    budget: &mut Budget,
) -> Vec<FillGuard<K, V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Some(first) = fills.first() else {
        return fills;
    };
    let cache = Arc::clone(first.cache());
    let mut elsewhere = Vec::new();
    for depth in 0..cache.tiers.len() {
        let seen = look_at(&cache, depth, fills, seeking, budget).await;
        (fills, elsewhere) = (seen.missed, seen.elsewhere);
        if depth + 1 < cache.tiers.len() {
            // Only the last tier is shared by all; a lease above it is not worth a wait.
            fills.append(&mut elsewhere);
        }
    }
    if seeking != Seeking::Peek && !elsewhere.is_empty() {
        fills.extend(wait_for_others(&cache, elsewhere, seeking).await);
    } else {
        fills.append(&mut elsewhere);
    }
    fills
}

/// The fills that a tier had no answer for.
struct Seen<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    missed: Vec<FillGuard<K, V>>,
    /// Those whose load somebody else is doing.
    elsewhere: Vec<FillGuard<K, V>>,
}

/// A fill whose entry was found, its envelope, and whether it may be served as it is.
type Hit<K, V> = (FillGuard<K, V>, Bytes, Held<V>, Decision);

/// What one tier says of one key.
enum Verdict<V> {
    /// An entry that answers the read.
    Hit(Bytes, Held<V>, Decision),
    Miss,
    /// Somebody else is loading.
    Elsewhere,
    /// Bytes that are no answer, and that hold no lease yet.
    Unusable,
}

async fn look_at<K, V>(
    cache: &Arc<Inner<K, V>>,
    depth: usize,
    mut fills: Vec<FillGuard<K, V>>,
    seeking: Seeking,
    budget: &mut Budget,
) -> Seen<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let mut seen = Seen {
        missed: Vec::new(),
        elsewhere: Vec::new(),
    };
    if fills.is_empty() {
        return seen;
    }
    let now = cache.clock().wall();
    let Some(found) = ask(cache, depth, &mut fills, seeking, now, budget).await else {
        seen.missed = fills;
        return seen;
    };
    let tier = &cache.tiers[depth];
    let (mut hits, mut unusable) = (Vec::new(), Vec::new());
    for (mut fill, leased) in fills.into_iter().zip(found) {
        match judge(cache, depth, &mut fill, leased, seeking) {
            Verdict::Hit(bytes, held, decision) => {
                tier.count_hit();
                hits.push((fill, bytes, held, decision));
                continue;
            }
            Verdict::Miss => seen.missed.push(fill),
            Verdict::Elsewhere => {
                seen.elsewhere.push(fill);
                continue;
            }
            Verdict::Unusable => unusable.push(fill),
        }
        tier.count_miss();
    }
    promote(cache, depth, hits, seeking, budget).await;
    seen.missed
        .extend(lease_over(cache, depth, unusable, budget).await);
    seen
}

/// Asks the tier for the bytes of each fill; `None` if it does not answer.
async fn ask<K, V>(
    cache: &Inner<K, V>,
    depth: usize,
    fills: &mut [FillGuard<K, V>],
    seeking: Seeking,
    stale_at: u64,
    budget: &mut Budget,
) -> Option<Vec<Leased>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let tier = &cache.tiers[depth];
    let keys: Vec<Bytes> = fills.iter().map(|fill| fill.store_key().clone()).collect();
    let lowest = depth + 1 == cache.tiers.len();
    if seeking == Seeking::Peek && lowest {
        let found = tier.get(budget, &keys).await.ok()?;
        let leased =
            |found: Option<Bytes>| found.map_or(Leased::Held { stale: None }, Leased::Value);
        return Some(found.into_iter().map(leased).collect());
    }
    let request = LeaseRequest {
        token: fills.first()?.token(),
        stale_at,
        lease_for: cache.rules.lease,
        limit: tier.limit(),
    };
    fills.iter_mut().for_each(|fill| fill.asks(depth));
    let leased = tier.lease(budget, &keys, &request).await;
    if !matches!(leased, Err(Unserved::Unknown)) {
        fills.iter_mut().for_each(|fill| fill.answered(depth));
    }
    leased.ok()
}

/// Takes the lease over bytes that are no answer, so that the fill may replace them.
async fn lease_over<K, V>(
    cache: &Inner<K, V>,
    depth: usize,
    mut fills: Vec<FillGuard<K, V>>,
    budget: &mut Budget,
) -> Vec<FillGuard<K, V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    if fills.is_empty() {
        return fills;
    }
    let leases = ask(cache, depth, &mut fills, Seeking::Entry, u64::MAX, budget).await;
    if let Some(leases) = leases {
        for (fill, lease) in fills.iter_mut().zip(leases) {
            if matches!(lease, Leased::Acquired { .. }) {
                fill.leased(depth);
            }
        }
    }
    fills
}

/// Reads what a tier holds for one key, and decides what it is worth.
fn judge<K, V>(
    cache: &Inner<K, V>,
    depth: usize,
    fill: &mut FillGuard<K, V>,
    leased: Leased,
    seeking: Seeking,
) -> Verdict<V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let (bytes, without) = match leased {
        Leased::Value(bytes) if seeking == Seeking::Peek => (Some(bytes), Verdict::Miss),
        Leased::Value(bytes) => (Some(bytes), Verdict::Unusable),
        Leased::Acquired { stale } => {
            fill.leased(depth);
            (stale, Verdict::Miss)
        }
        Leased::Held { stale } if seeking == Seeking::Peek => (stale, Verdict::Miss),
        Leased::Held { stale } => (stale, Verdict::Elsewhere),
    };
    let Some(bytes) = bytes else { return without };
    let held = match open(cache, &cache.tiers[depth], fill, &bytes) {
        Ok(held) => held,
        Err(Rejected::Placeholder) => return without,
        Err(_) => {
            cache.count(Count::Rejected, 1);
            return without;
        }
    };
    let now = cache.clock().monotonic();
    let decision = policy::decide(&held.times.without_memory_ttl(), true, now, None);
    match decision {
        Decision::Serve if seeking.accepts(&held) => Verdict::Hit(bytes, held, decision),
        Decision::ServeAndRefresh if !matches!(without, Verdict::Unusable) => {
            let goes_on = fill.holds_lease(depth) || !fill.is_content_with(&held, now);
            if seeking != Seeking::Peek && goes_on {
                // Everybody is served; this fill goes on and refreshes behind their backs.
                write::show_stale(cache, fill, held, Origin::Tier(depth));
                return without;
            }
            Verdict::Hit(bytes, held, decision)
        }
        Decision::Forget => without,
        _ => {
            fill.saw_stale(held);
            without
        }
    }
}

/// Decodes the bytes of a tier.
fn open<K, V>(
    cache: &Inner<K, V>,
    tier: &Tier,
    fill: &FillGuard<K, V>,
    bytes: &Bytes,
) -> Result<Held<V>, Rejected>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    if bytes.len() > tier.limit() {
        tier.count_too_large();
        return Err(Rejected::Length);
    }
    cache.open(fill.store_key(), bytes, fill.mark().epoch())
}

/// Brings entries found at `depth` into the tiers above and into memory, and lands their fills.
async fn promote<K, V>(
    cache: &Arc<Inner<K, V>>,
    depth: usize,
    mut hits: Vec<Hit<K, V>>,
    seeking: Seeking,
    budget: &mut Budget,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let now = cache.clock().monotonic();
    for above in (0..depth).rev() {
        let tier = &cache.tiers[above];
        let mut fills = Vec::new();
        for (fill, bytes, held, _) in hits.iter_mut().filter(|(fill, ..)| fill.holds_lease(above)) {
            if bytes.len() > tier.limit() {
                tier.count_too_large();
                continue;
            }
            let left = Duration::from_millis(held.times.dies_at().saturating_sub(now));
            let (value, ttl) = cache.copy_for(above, without_lease(bytes), left);
            fills.push(Fill {
                key: fill.store_key().clone(),
                token: fill.token(),
                value,
                ttl,
            });
        }
        // Refused or down: the entry is served all the same, and is not above.
        if !fills.is_empty() && tier.fill(budget, &fills).await.is_ok() {
            let filled = |hit: &&mut Hit<K, V>| hit.1.len() <= tier.limit();
            hits.iter_mut()
                .filter(filled)
                .for_each(|(fill, ..)| fill.unleased(above));
        }
    }
    for (fill, _, mut held, decision) in hits {
        let origin = Origin::Tier(depth);
        let landed = if decision == Decision::Serve {
            Landed::fresh(held.clone(), origin)
        } else {
            if seeking != Seeking::Peek {
                // Somebody else refreshes it: no use in asking again at once.
                held.times.retry_at = now.saturating_add(ASK_AGAIN_MILLIS);
            }
            Landed::stale(held.clone(), origin)
        };
        if seeking == Seeking::Peek {
            write::keep_peeked(cache, &fill, held);
        } else {
            write::keep(cache, &fill, held);
        }
        fill.land(Ok(landed));
    }
}

/// The envelope with the lease of another tier taken out of its header.
fn without_lease(bytes: &Bytes) -> Bytes {
    match Header::parse(bytes) {
        Some(header) if header.lease.is_some() => Header {
            lease: None,
            lease_until: 0,
            ..header
        }
        .replaced_in(bytes),
        _ => bytes.clone(),
    }
}

/// Waits until those who hold the leases have filled, given up or taken too long.
async fn wait_for_others<K, V>(
    cache: &Arc<Inner<K, V>>,
    mut elsewhere: Vec<FillGuard<K, V>>,
    seeking: Seeking,
) -> Vec<FillGuard<K, V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let mut missed = Vec::new();
    let Some(lowest) = cache.tiers.len().checked_sub(1) else {
        return elsewhere;
    };
    let end = cache
        .clock()
        .monotonic()
        .saturating_add(cache.rules.lease_wait);
    while !elsewhere.is_empty() && cache.clock().monotonic() < end {
        let pause = fastrand::u64(POLL_MILLIS.0..=POLL_MILLIS.1);
        cache.clock().sleep(Duration::from_millis(pause)).await;
        let mut budget = Budget::new(cache.shared.tier_budget);
        let seen = look_at(cache, lowest, elsewhere, seeking, &mut budget).await;
        missed.extend(seen.missed);
        elsewhere = seen.elsewhere;
    }
    missed.extend(elsewhere);
    missed
}
