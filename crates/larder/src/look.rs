//! Looking for entries in the tiers, one tier after the other, for any number of keys at once.
//!
//! A look that may lead to a load takes the lease of every tier it passes, because what is found
//! below, or loaded, is filled into all of them under that lease: an invalidation that comes
//! between voids it, and the fill is refused.
//!
//! What is found counts only if the versions of its tags are those of today. They are known here
//! while the bus tells of every change; otherwise the lowest tier, which keeps them, is asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::answer::Answer;
use crate::cache::{Inner, Opened};
use crate::confirm::confirm;
use crate::entry::Held;
use crate::envelope::{Header, Rejected};
use crate::fence::Standing;
use crate::fill::{FillGuard, Landed, Origin};
use crate::key::CacheKey;
use crate::options::Isolation;
use crate::policy::{self, Decision};
use crate::sliding;
use crate::stats::Count;
use crate::store::{Fill, LeaseRequest, Leased, TagRecord};
use crate::tags::{Tag, Today};
use crate::tier::{Budget, Tier, Unserved, within};
use crate::write;

/// How often a lease that another process holds is asked after where the store cannot tell of its
/// end, in milliseconds: the bounds of a random wait.
const POLL_MILLIS: (u64, u64) = (10, 40);
/// The same where the store tells: what it missed all the same is found out by asking.
const SLOW_POLL_MILLIS: (u64, u64) = (250, 500);
/// How often one wait follows the word of the store at once. After that there is a pause before each
/// look, so that a store that talks too much costs no more than one that is silent.
const QUICK_LOOKS: usize = 8;

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
///
/// What memory holds and cannot vouch for is confirmed first, where that is possible.
///
/// While the bus is silent, a private tier above a shared one may hold what others have
/// invalidated. It is asked only for what the lowest tier did not answer, and not at all for a
/// caller who wants to see what this process has not heard of.
pub(crate) async fn look<K, V>(
    mut fills: Vec<FillGuard<K, V>>,
    seeking: Seeking,
    budget: &mut Budget,
) -> Vec<FillGuard<K, V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let (Some(first), tiers) = (
        fills.first(),
        fills.first().map_or(0, |f| f.cache().tiers.len()),
    ) else {
        return fills;
    };
    let cache = Arc::clone(first.cache());
    let Some(lowest) = tiers.checked_sub(1) else {
        return fills;
    };
    cache.shared.join(budget).await;
    cache.enlist(budget).await;
    fills = confirm(&cache, fills, seeking, budget).await;
    if fills.is_empty() {
        return fills;
    }
    let mut elsewhere = Vec::new();
    let unheard = fills.iter().any(FillGuard::is_unheard);
    if cache.shared.epochs().is_trusted() && !unheard {
        for depth in 0..=lowest {
            // Only the last tier is shared by all; a lease above it is not worth a wait.
            fills.append(&mut elsewhere);
            let seen = look_at(&cache, depth, fills, seeking, budget).await;
            (fills, elsewhere) = (seen.missed, seen.elsewhere);
        }
    } else {
        let seen = look_at(&cache, lowest, fills, seeking, budget).await;
        (fills, elsewhere) = (seen.missed, seen.elsewhere);
        let (answered, mut rest): (Vec<_>, _) =
            fills.into_iter().partition(FillGuard::was_answered);
        fills = answered;
        let strict = rest.iter().any(FillGuard::is_strict);
        let believing = cache.rules.isolation == Isolation::Serve && !strict;
        for depth in (0..lowest).filter(|_| believing) {
            let seen = look_at(&cache, depth, rest, seeking, budget).await;
            rest = seen.missed;
            rest.extend(seen.elsewhere);
        }
        fills.extend(rest);
    }
    if seeking != Seeking::Peek && !elsewhere.is_empty() {
        fills.extend(wait_for_others(&cache, elsewhere, seeking).await);
    } else {
        fills.append(&mut elsewhere);
    }
    for fill in fills.iter_mut().filter(|fill| fill.was_answered()) {
        if let Some(denied) = fill.take_suspect() {
            write::forget_denied(&cache, fill, &denied);
        }
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
struct Hit<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    fill: FillGuard<K, V>,
    bytes: Bytes,
    held: Held<V>,
    decision: Decision,
}

/// What a tier gave for one key.
struct Finding<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    fill: FillGuard<K, V>,
    entry: Option<(Bytes, Opened<V>)>,
    otherwise: Otherwise,
}

/// What a finding is worth.
enum Verdict<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    Hit(Hit<K, V>),
    GoesOn(FillGuard<K, V>, Otherwise),
}

/// What becomes of a fill whose key has no entry that answers the read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Otherwise {
    /// It goes on, with the lease of the tier if it wanted one.
    Missed,
    /// Somebody else is loading.
    Elsewhere,
    /// There are bytes in its way that hold no lease yet.
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
    let found = fills.into_iter().zip(found);
    let mut findings: Vec<_> = found
        .map(|(fill, leased)| find(cache, depth, fill, leased, seeking))
        .collect();
    verify(cache, depth, &mut findings, budget).await;
    let tier = &cache.tiers[depth];
    let (mut hits, mut unusable) = (Vec::new(), Vec::new());
    for finding in findings {
        match judge(cache, depth, finding, seeking) {
            Verdict::Hit(hit) => {
                tier.count_hit();
                hits.push(hit);
            }
            // Somebody else renews what is fresh here: nobody waits for it.
            Verdict::GoesOn(fill, Otherwise::Elsewhere) if fill.is_early() => {
                write::rest(cache, &fill, ASK_AGAIN_MILLIS);
            }
            Verdict::GoesOn(fill, Otherwise::Elsewhere) => seen.elsewhere.push(fill),
            Verdict::GoesOn(fill, otherwise) => {
                tier.count_miss();
                match otherwise {
                    Otherwise::Unusable => unusable.push(fill),
                    _ => seen.missed.push(fill),
                }
            }
        }
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
    let is_lowest = depth + 1 == cache.tiers.len();
    if seeking == Seeking::Peek && is_lowest {
        let found = tier.get(budget, &keys, tier.limit()).await.ok()?;
        fills.iter_mut().for_each(FillGuard::answers);
        let leased =
            |found: Option<Bytes>| found.map_or(Leased::Held { stale: None }, Leased::Value);
        return Some(found.into_iter().map(leased).collect());
    }
    let request = LeaseRequest {
        token: fills.first()?.token(),
        stale_at,
        lease_for: cache.rules.lease,
        limit: tier.limit(),
        counter: is_lowest.then(|| cache.shared.records.counter.clone()),
    };
    fills.iter_mut().for_each(|fill| fill.asks(depth));
    let leased = tier.lease(budget, &keys, &request).await;
    if !matches!(leased, Err(Unserved::Unknown)) {
        fills.iter_mut().for_each(|fill| fill.answered(depth));
    }
    if is_lowest && leased.is_ok() {
        fills.iter_mut().for_each(FillGuard::answers);
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
            if let Leased::Acquired { since, .. } = lease {
                fill.leased(depth, since);
            }
        }
        // Where somebody else has the lease, they renew what is fresh here.
        fills.retain(|fill| {
            let goes_on = !fill.is_early() || fill.holds_lease(depth);
            if !goes_on {
                write::rest(cache, fill, ASK_AGAIN_MILLIS);
            }
            goes_on
        });
    }
    fills
}

/// Reads what a tier gave for one key.
fn find<K, V>(
    cache: &Inner<K, V>,
    depth: usize,
    mut fill: FillGuard<K, V>,
    leased: Leased,
    seeking: Seeking,
) -> Finding<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let peeks = seeking == Seeking::Peek;
    let (bytes, otherwise) = match leased {
        Leased::Value(bytes) if peeks => (Some(bytes), Otherwise::Missed),
        Leased::Value(bytes) => (Some(bytes), Otherwise::Unusable),
        Leased::Acquired { stale, since } => {
            fill.leased(depth, since);
            (stale, Otherwise::Missed)
        }
        Leased::Held { stale } if peeks => (stale, Otherwise::Missed),
        Leased::Held { stale } => (stale, Otherwise::Elsewhere),
    };
    let entry = bytes.and_then(|bytes| match open(cache, depth, &fill, &bytes) {
        Ok(opened) => Some((bytes, opened)),
        Err(Rejected::Placeholder | Rejected::Tags) => None,
        Err(_) => {
            cache.count(Count::Rejected, 1);
            None
        }
    });
    Finding {
        fill,
        entry,
        otherwise,
    }
}

/// Decodes the bytes of a tier.
fn open<K, V>(
    cache: &Inner<K, V>,
    depth: usize,
    fill: &FillGuard<K, V>,
    bytes: &Bytes,
) -> Result<Opened<V>, Rejected>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let tier = &cache.tiers[depth];
    if bytes.len() > tier.limit() {
        tier.count_too_large();
        return Err(Rejected::Length);
    }
    cache.open(fill.store_key(), bytes, fill.mark().began())
}

/// Drops the entries that carry versions of tags other than those of today.
async fn verify<K, V>(
    cache: &Inner<K, V>,
    depth: usize,
    findings: &mut [Finding<K, V>],
    budget: &mut Budget,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let epochs = cache.shared.epochs();
    let asked = epochs.stamp();
    let versions = findings.iter().flat_map(|finding| {
        let opened = finding
            .entry
            .iter()
            .flat_map(|(_, opened)| &opened.versions);
        opened.map(|known| (known, finding.fill.is_unheard()))
    });
    let doubtful = versions
        .filter(|((tag, version), unheard)| {
            *unheard || tag.version(epochs) != Some((*version, true))
        })
        .map(|(known, _)| known);
    let doubtful: HashMap<&str, &Arc<Tag>> = doubtful.map(|(tag, _)| (tag.name(), tag)).collect();
    if doubtful.is_empty() {
        return;
    }
    let tags: Vec<Arc<Tag>> = doubtful.into_values().cloned().collect();
    let records = &cache.shared.records;
    let records: Vec<Bytes> = tags.iter().map(|tag| records.of(tag.name())).collect();
    let lowest = &cache.tiers[cache.tiers.len() - 1];
    let answer = lowest.get(budget, &records, TagRecord::LEN).await;
    let Ok(answer) = answer else {
        // With nobody to ask, a tier above is believed as memory is, unless we know better.
        let believed = |entry: &(Bytes, Opened<V>)| {
            depth + 1 < cache.tiers.len()
                && cache.rules.isolation == Isolation::Serve
                && entry.1.versions.iter().all(|(tag, version)| {
                    let known = tag.version(epochs).map(|(known, _)| known == *version);
                    known.unwrap_or_else(|| tag.is_untouched())
                })
        };
        for finding in findings {
            finding.entry.take_if(|entry| !believed(entry));
        }
        return;
    };
    let today = Today::learned(tags, answer, asked);
    let holds = |(tag, version): &(Arc<Tag>, u64)| {
        let said = today.says(tag);
        said.is_none_or(|today| today == Some(*version))
    };
    for finding in findings {
        finding
            .entry
            .take_if(|(_, opened)| !opened.versions.iter().all(holds));
    }
}

/// Decides what a finding is worth; a fill that goes on comes back.
fn judge<K, V>(
    cache: &Inner<K, V>,
    depth: usize,
    finding: Finding<K, V>,
    seeking: Seeking,
) -> Verdict<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Finding {
        mut fill,
        entry,
        otherwise,
    } = finding;
    let Some((bytes, Opened { held, .. })) = entry else {
        return Verdict::GoesOn(fill, otherwise);
    };
    if depth + 1 == cache.tiers.len() {
        // Whatever memory holds, here is what stands.
        fill.take_suspect();
    }
    let now = cache.clock().monotonic();
    let times = held.times.without_memory_ttl();
    let decision = policy::decide(&times, Standing::Current, now, None);
    match decision {
        Decision::Serve if fill.is_to_renew(&held) => {
            fill.saw_envelope(&held, bytes);
            fill.saw_stale(held);
            return Verdict::GoesOn(fill, otherwise);
        }
        Decision::Serve if seeking.accepts(&held) => {}
        Decision::ServeAndRefresh if otherwise != Otherwise::Unusable => {
            let goes_on = fill.holds_lease(depth) || !fill.is_content_with(&held, now);
            if seeking != Seeking::Peek && goes_on {
                // Everybody is served; this fill goes on and refreshes behind their backs.
                fill.saw_envelope(&held, bytes);
                write::show_stale(cache, &mut fill, held, Origin::Tier(depth as u32));
                return Verdict::GoesOn(fill, otherwise);
            }
        }
        Decision::Forget => return Verdict::GoesOn(fill, otherwise),
        _ => {
            if cache.rules.soft_deadline.is_some() && seeking.accepts(&held) {
                // Callers that wait no longer are served from memory.
                write::keep(cache, &fill, held.clone());
            }
            fill.saw_envelope(&held, bytes);
            fill.saw_stale(held);
            return Verdict::GoesOn(fill, otherwise);
        }
    }
    Verdict::Hit(Hit {
        fill,
        bytes,
        held,
        decision,
    })
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
    for hit in hits
        .iter_mut()
        .filter(|hit| hit.decision == Decision::Serve)
    {
        sliding::arrived(cache, &hit.fill, &mut hit.held);
    }
    for above in (0..depth).rev() {
        let tier = &cache.tiers[above];
        let mut fills = Vec::new();
        for Hit {
            fill, bytes, held, ..
        } in hits.iter().filter(|hit| hit.fill.holds_lease(above))
        {
            if bytes.len() > tier.limit() {
                tier.count_too_large();
                continue;
            }
            let left = Duration::from_millis(held.left_in_tiers(now));
            let (value, ttl) = cache.copy_for(above, without_lease(bytes), left);
            fills.push(Fill {
                key: fill.store_key().clone(),
                token: fill.token(),
                value,
                ttl,
                tags: None,
            });
        }
        // Refused or down: the entry is served all the same, and is not above.
        if !fills.is_empty() && tier.fill(budget, &fills).await.is_ok() {
            let filled = |hit: &&mut Hit<K, V>| hit.bytes.len() <= tier.limit();
            hits.iter_mut()
                .filter(filled)
                .for_each(|hit| hit.fill.unleased(above));
        }
    }
    for Hit {
        fill,
        mut held,
        decision,
        ..
    } in hits
    {
        let origin = Origin::Tier(depth as u32);
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
    let mut quick_looks = QUICK_LOOKS;
    while !elsewhere.is_empty() && cache.clock().monotonic() < end {
        rest(
            cache,
            &cache.tiers[lowest],
            &elsewhere,
            end,
            &mut quick_looks,
        )
        .await;
        let mut budget = Budget::new(cache.shared.tier_budget);
        let seen = look_at(cache, lowest, elsewhere, seeking, &mut budget).await;
        missed.extend(seen.missed);
        elsewhere = seen.elsewhere;
    }
    missed.extend(elsewhere);
    missed
}

/// Lets some time pass before the next look, no longer than to the end: until the store says that a
/// lease changed, or what is random between two bounds.
async fn rest<K, V>(
    cache: &Inner<K, V>,
    tier: &Tier,
    elsewhere: &[FillGuard<K, V>],
    end: u64,
    quick_looks: &mut usize,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let random = |(shortest, longest)| {
        let left = end.saturating_sub(cache.clock().monotonic());
        Duration::from_millis(fastrand::u64(shortest..=longest).min(left))
    };
    let keys: Vec<Bytes> = elsewhere
        .iter()
        .map(|fill| fill.store_key().clone())
        .collect();
    let told = within(
        &**cache.clock(),
        random(SLOW_POLL_MILLIS),
        tier.changed(&keys),
    )
    .await;
    match told {
        None => {}
        Some(true) if *quick_looks > 0 => *quick_looks -= 1,
        Some(_) => cache.clock().sleep(random(POLL_MILLIS)).await,
    }
}
