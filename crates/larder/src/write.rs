//! The way of a write: what a load found, what a caller sets, what is invalidated.
//!
//! Two rules hold everywhere in this module. Tiers are written from the bottom up and memory
//! last, because what is above is what is asked first. And memory takes an entry only under a
//! mark of the fence that still holds.
//!
//! ```text
//! invalidate:  bump, drop from memory → delete in each tier, lowest first → bump, drop again
//! ```
//!
//! Each tier has a budget of its own here: one that hangs must not keep the others from hearing of
//! the write.
//!
//! The second bump fences off the reads that began between the first and the last deletion and
//! may have read what was about to go.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::answer::{Content, Keep, Loaded};
use crate::cache::Inner;
use crate::entry::{Details, Held, Times};
use crate::envelope::{self, Expect, Label, Payload};
use crate::error::{Error, Result};
use crate::fill::{FillGuard, Landed, Origin};
use crate::key::{self, AsKey, CacheKey};
use crate::memory::{Inserted, Placement};
use crate::options::NO_TTL_ON_SERVER;
use crate::policy::{self, Decision, Lifetimes};
use crate::stats::Count;
use crate::store::{Fill, Filled, Write};
use crate::tasks::TaskKind;
use crate::tier::{Budget, Delivery};

/// How far an invalidation or a write has got when its call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a queued invalidation has not reached every tier yet"]
pub enum Receipt {
    /// Every tier took it.
    Acked,
    /// A tier could not be reached. It is out of use for this larder until it has been made up
    /// for, so this larder, while it lives, does not read the old value. Processes that still reach
    /// the tier may, and so may a successor of this one if it crashes before.
    Queued,
}

impl Receipt {
    fn and(self, delivery: Delivery) -> Self {
        match delivery {
            Delivery::Done => self,
            Delivery::Queued => Receipt::Queued,
        }
    }
}

/// What a load or a caller gave, on its way into the tiers.
struct Entry<V> {
    held: Held<V>,
    /// Whether it is kept, or only given to those who wait.
    keep: Keep,
    /// The envelope and how long a store keeps it; `None` if there are no tiers, if the codec
    /// could not encode the value, or if it is not to be kept.
    sealed: Option<(Bytes, Duration)>,
    /// Whether a tier refused the fill because something else came first.
    refused: bool,
}

/// Ends fills with what their load found: tiers, memory, and then everybody who waits.
pub(crate) async fn commit<K, V>(
    cache: &Arc<Inner<K, V>>,
    loads: Vec<(FillGuard<K, V>, Loaded<V>)>,
    load_ms: u64,
    budget: &mut Budget,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.count(Count::Load, loads.len() as u64);
    let mut entries = Vec::with_capacity(loads.len());
    for (fill, loaded) in loads {
        let epoch = fill.mark().epoch();
        match make(
            cache,
            fill.store_key(),
            loaded,
            fill.shown(),
            epoch,
            load_ms,
        ) {
            Ok(entry) => entries.push((fill, entry)),
            Err(error) => fill.land(Err(error)),
        }
    }
    fill_tiers(cache, &mut entries, budget).await;
    let fills = entries.iter_mut().map(|(fill, _)| fill).collect();
    give_back(cache, fills, budget).await;
    for (fill, entry) in entries {
        let kept = match entry.keep {
            _ if entry.refused => {
                cache.count(Count::Fenced, 1);
                Inserted::NotAdmitted
            }
            Keep::Store => keep(cache, &fill, entry.held.clone()),
            Keep::NoStore => {
                forget(cache, &fill);
                Inserted::NotAdmitted
            }
        };
        fill.land(Ok(match kept {
            Inserted::NotAdmitted => Landed::not_stored(entry.held),
            _ => Landed::fresh(entry.held, Origin::Loader),
        }));
    }
}

/// Fills the tiers, lowest first. A fill that one tier refuses goes no further up.
///
/// A tier that does not get the value loses the stale one: what the source has replaced must not
/// be served until the end of its grace.
async fn fill_tiers<K, V>(
    cache: &Inner<K, V>,
    entries: &mut [(FillGuard<K, V>, Entry<V>)],
    budget: &mut Budget,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    for (depth, tier) in cache.tiers.iter().enumerate().rev() {
        let (mut fills, mut whose) = (Vec::new(), Vec::new());
        for (at, (fill, entry)) in entries.iter_mut().enumerate() {
            if entry.refused || !fill.holds_lease(depth) {
                continue;
            }
            let too_large = |(value, _): &(Bytes, _)| value.len() > tier.limit();
            if entry.sealed.as_ref().is_some_and(too_large) {
                tier.count_too_large();
                cache.count(Count::TooLarge, 1);
            }
            let fits = entry.sealed.clone().filter(|sealed| !too_large(sealed));
            let instead = || fill.stale().map(|_| tombstone(cache, fill.store_key()));
            let Some((value, ttl)) = fits.or_else(instead) else {
                continue;
            };
            let (value, ttl) = cache.copy_for(depth, value, ttl);
            fills.push(Fill {
                key: fill.store_key().clone(),
                token: fill.token(),
                value,
                ttl,
            });
            whose.push(at);
        }
        if fills.is_empty() {
            continue;
        }
        let filled = tier.fill(budget, &fills).await.unwrap_or_default();
        for (at, filled) in whose.into_iter().zip(filled) {
            let (fill, entry) = &mut entries[at];
            fill.unleased(depth);
            entry.refused = filled == Filled::Refused;
        }
    }
}

/// Gives back the leases that were not used. Callers are told afterwards how it ended: whoever
/// asks again at once must not meet the lease of the try before.
pub(crate) async fn give_back<K, V>(
    cache: &Inner<K, V>,
    mut fills: Vec<&mut FillGuard<K, V>>,
    budget: &mut Budget,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Some(token) = fills.first().map(|fill| fill.token()) else {
        return;
    };
    for (depth, tier) in cache.tiers.iter().enumerate() {
        let leased = fills.iter().filter(|fill| fill.holds_lease(depth));
        let keys: Vec<_> = leased.map(|fill| fill.store_key().clone()).collect();
        if !keys.is_empty() && tier.release(budget, &keys, token).await.is_ok() {
            fills.iter_mut().for_each(|fill| fill.unleased(depth));
        }
    }
}

/// Ends fills whose load failed. A stale entry stands in where one may, and is left alone for a
/// while; an invalidation since the load began forbids it.
pub(crate) fn fail<K, V>(fills: Vec<FillGuard<K, V>>, error: &Error)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    for fill in fills {
        let cache = Arc::clone(fill.cache());
        cache.count(Count::Load, 1);
        cache.count(Count::LoadFailed, 1);
        let now = cache.clock().monotonic();
        let stand_in = fill
            .stale()
            .filter(|held| held.value.is_some() && policy::may_stand_in(&held.times, now, None))
            .filter(|_| cache.fence.holds(fill.mark()))
            .cloned();
        let Some(mut held) = stand_in else {
            fill.land(Err(error.clone()));
            continue;
        };
        tracing::debug!(cache = &*cache.name, error = ?error, "load failed; a stale entry stands in");
        cache.count(Count::StoodIn, 1);
        held.times.retry_at = now.saturating_add(cache.rules.error_throttle);
        keep(&cache, &fill, held.clone());
        fill.land(Ok(Landed::stale(held, Origin::StandIn)));
    }
}

/// Shows a stale entry to everybody who waits, while the fill goes on to refresh it.
pub(crate) fn show_stale<K, V>(
    cache: &Inner<K, V>,
    fill: &mut FillGuard<K, V>,
    held: Held<V>,
    origin: Origin,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    keep(cache, fill, held.clone());
    fill.publish(Landed::stale(held.clone(), origin));
    fill.saw_stale(held);
}

/// Stores an entry in memory under the mark of its fill. A stale one never replaces a fresher one.
pub(crate) fn keep<K, V>(cache: &Inner<K, V>, fill: &FillGuard<K, V>, held: Held<V>) -> Inserted
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Some(key) = fill.key() else {
        return Inserted::NotAdmitted;
    };
    let weight = cache.weigh(key, fill.store_key().len(), &held);
    let (times, epoch) = (held.times, held.epoch);
    let is_stale = !times.is_fresh(cache.clock().monotonic());
    store(cache, fill.hash(), key.clone(), held, weight, |there| {
        // A read of the tiers, or a refresh that failed, may be slower than one that succeeded.
        let there = there.filter(|there| is_stale && there.epoch == epoch);
        let fresher = there.is_some_and(|there| there.times.fresh_until > times.fresh_until);
        !fresher && cache.fence.holds(fill.mark())
    })
}

/// Stores in memory what a reader without a loader found, under the mark of its fill, unless a
/// load has brought something fresh meanwhile: that is newer.
pub(crate) fn keep_peeked<K, V>(cache: &Inner<K, V>, fill: &FillGuard<K, V>, held: Held<V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Some(key) = fill.key() else { return };
    let weight = cache.weigh(key, fill.store_key().len(), &held);
    let now = cache.clock().monotonic();
    store(cache, fill.hash(), key.clone(), held, weight, |resident| {
        let fresh =
            |held: &Held<V>| policy::decide(&held.times, true, now, None) == Decision::Serve;
        cache.fence.holds(fill.mark()) && !resident.is_some_and(fresh)
    });
}

/// Drops from memory what a load found to be gone, under the mark of its fill.
fn forget<K, V>(cache: &Inner<K, V>, fill: &FillGuard<K, V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Some(key) = fill.key() else { return };
    let now = cache.clock().monotonic();
    cache.memory.update(fill.hash(), key, now, |_, dies_at| {
        if cache.fence.holds(fill.mark()) {
            *dies_at = 0;
        }
    });
}

/// Stores an entry in memory if `admit` says so under the lock of its shard.
fn store<K, V>(
    cache: &Inner<K, V>,
    hash: u64,
    key: K,
    held: Held<V>,
    weight: u32,
    admit: impl FnOnce(Option<&Held<V>>) -> bool,
) -> Inserted
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let place = Placement {
        weight,
        dies_at: held.times.dies_at(),
    };
    let now = cache.clock().monotonic();
    let inserted = cache.memory.insert(hash, key, held, place, now, admit);
    match inserted {
        Inserted::Stored => {}
        Inserted::NotAdmitted => cache.count(Count::Fenced, 1),
        Inserted::TooHeavy => cache.count(Count::TooLarge, 1),
    }
    inserted
}

/// Makes the entry of what a loader or a caller gave.
fn make<K, V>(
    cache: &Inner<K, V>,
    store_key: &Bytes,
    loaded: Loaded<V>,
    shown: Option<&Held<V>>,
    epoch: u64,
    load_ms: u64,
) -> Result<Entry<V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    if let Some(problem) = loaded.problem {
        return Err(Error::config(problem));
    }
    let known = shown.and_then(|held| held.details.as_deref());
    let not_modified = matches!(loaded.content, Content::NotModified);
    let value = match loaded.content {
        Content::Value(value) => Some(value),
        Content::Absent => None,
        Content::NotModified => shown.ok_or_else(Error::nothing_to_renew)?.value.clone(),
    };
    let known = known.filter(|_| not_modified);
    let label = Label {
        fill_id: fastrand::u128(..).to_be_bytes(),
        created: cache.clock().wall(),
        load_ms,
        version: loaded.version.or_else(|| known?.version),
        etag: loaded.etag.or_else(|| known?.etag.clone()),
        last_modified: loaded.last_modified.or_else(|| known?.last_modified),
        ..Label::default()
    };
    let rules = &cache.rules;
    let lives = policy::lifetimes(rules, value.is_none(), loaded.wishes, fastrand::f64());
    let lives = lives.filter(|_| loaded.keep == Keep::Store);
    let Some(lives) = lives else {
        return Ok(Entry {
            held: held(cache, value, Lifetimes::NONE, label, epoch, 0),
            keep: Keep::NoStore,
            sealed: None,
            refused: false,
        });
    };
    let label = Label {
        fresh_for: lives.fresh,
        grace_for: lives.grace,
        stale_for: lives.stale,
        ..label
    };
    let (sealed, encoded_len) = seal(cache, store_key, &label, value.as_deref());
    let held = held(cache, value, lives, label, epoch, encoded_len);
    Ok(Entry {
        held,
        keep: Keep::Store,
        sealed,
        refused: false,
    })
}

fn held<K, V>(
    cache: &Inner<K, V>,
    value: Option<Arc<V>>,
    lives: Lifetimes,
    label: Label,
    epoch: u64,
    encoded_len: usize,
) -> Held<V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    Held {
        value,
        times: Times::from_now(cache.clock().monotonic(), lives, cache.memory_ttl),
        epoch,
        load_ms: label.load_ms,
        encoded_len: u32::try_from(encoded_len).unwrap_or(u32::MAX),
        details: Details::of(label, cache.tiers.is_empty()),
    }
}

/// Encodes a value as often as anybody needs it: never, for its length, or as an envelope.
fn seal<K, V>(
    cache: &Inner<K, V>,
    store_key: &Bytes,
    label: &Label,
    value: Option<&V>,
) -> (Option<(Bytes, Duration)>, usize)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Some(codec) = &cache.codec else {
        return (None, 0);
    };
    let payload = match value.map(|value| codec.encode(value)).transpose() {
        Ok(bytes) => bytes.map(|bytes| Payload {
            codec: codec.id(),
            bytes,
        }),
        Err(error) => {
            tracing::warn!(cache = &*cache.name, %error, "a value cannot be encoded; memory alone keeps it");
            cache.count(Count::EncodeFailed, 1);
            return (None, 0);
        }
    };
    let encoded_len = payload.as_ref().map_or(0, |payload| payload.bytes.len());
    if cache.tiers.is_empty() {
        return (None, encoded_len);
    }
    let expect = Expect {
        key: store_key,
        schema: cache.version,
    };
    let envelope = envelope::seal(expect, label, payload, cache.rules.compress_over);
    let lives = Duration::from_millis(label.fresh_for.saturating_add(label.stale_for));
    let ttl = if cache.rules.no_ttl {
        lives.min(NO_TTL_ON_SERVER)
    } else {
        lives
    };
    (Some((Bytes::from(envelope), ttl)), encoded_len)
}

/// An envelope that is over at once: it takes the place of one that a fill found stale, under the
/// same lease as a value would.
fn tombstone<K, V>(cache: &Inner<K, V>, store_key: &Bytes) -> (Bytes, Duration)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let expect = Expect {
        key: store_key,
        schema: cache.version,
    };
    let label = Label {
        created: cache.clock().wall(),
        ..Label::default()
    };
    let envelope = envelope::seal(expect, &label, None, usize::MAX);
    (Bytes::from(envelope), Duration::from_millis(1))
}

/// `Cache::set`: the tiers, lowest first, and then memory, unless another write or an
/// invalidation of the key came between.
pub(crate) async fn set<K, V>(
    cache: &Arc<Inner<K, V>>,
    key: K,
    loaded: Loaded<V>,
) -> Result<Receipt>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.shared.check_open()?;
    let store_key = key::encode(&cache.prefix, &key)?;
    let hash = cache.memory.hash(&key);
    let entry = make(cache, &store_key, loaded, None, cache.fence.epoch(), 0)?;
    if entry.keep == Keep::NoStore {
        // What must not be stored must not leave the old value in place either.
        return invalidate(cache, hash, key, store_key).await;
    }
    cache.count(Count::Write, 1);
    if cache.tiers.is_empty() {
        set_now(cache, hash, key, store_key.len(), entry.held);
        return Ok(Receipt::Acked);
    }
    let owned = Arc::clone(cache);
    detached(cache, async move {
        let cache = &*owned;
        let mark = cache.fence.bump(hash);
        let mut receipt = Receipt::Acked;
        for (depth, tier) in cache.tiers.iter().enumerate().rev() {
            let mut budget = Budget::new(cache.shared.tier_budget);
            let fits = entry
                .sealed
                .clone()
                .filter(|(value, _)| value.len() <= tier.limit());
            receipt = receipt.and(match fits {
                Some((value, ttl)) => {
                    let (value, ttl) = cache.copy_for(depth, value, ttl);
                    let write = Write {
                        key: store_key.clone(),
                        value,
                        ttl,
                    };
                    tier.set(&mut budget, &[write]).await
                }
                None => {
                    if entry.sealed.is_some() {
                        tier.count_too_large();
                        cache.count(Count::TooLarge, 1);
                    }
                    tier.delete(&mut budget, std::slice::from_ref(&store_key))
                        .await
                }
            });
        }
        let weight = cache.weigh(&key, store_key.len(), &entry.held);
        let admit = |_: Option<&Held<V>>| cache.fence.bump_from(mark).is_some();
        if store(cache, hash, key.clone(), entry.held, weight, admit) == Inserted::NotAdmitted {
            // Which of the writes each tier keeps is not known here. The lowest tier decides, and
            // the next read finds out. The bump makes whoever comes later do the same.
            cache.fence.bump(hash);
            for tier in cache.tiers.iter().rev().skip(1) {
                let mut budget = Budget::new(cache.shared.tier_budget);
                let keys = std::slice::from_ref(&store_key);
                receipt = receipt.and(tier.delete(&mut budget, keys).await);
            }
            drop_from_memory(cache, hash, &key);
        }
        receipt
    })
    .await
}

/// Stores an entry in memory at once, for caches without tiers and for callers without a runtime.
fn set_now<K, V>(cache: &Inner<K, V>, hash: u64, key: K, key_len: usize, held: Held<V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let weight = cache.weigh(&key, key_len, &held);
    let held = Held {
        epoch: cache.fence.epoch(),
        ..held
    };
    store(cache, hash, key, held, weight, |_| {
        // Under the lock: whoever boards a flight from now on finds the new value first.
        cache.fence.bump(hash);
        true
    });
}

/// `Cache::set_in_memory`.
pub(crate) fn set_in_memory<K, V>(cache: &Inner<K, V>, key: K, loaded: Loaded<V>) -> Result<()>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let store_key = key::encode(&cache.prefix, &key)?;
    let hash = cache.memory.hash(&key);
    let entry = make(cache, &store_key, loaded, None, cache.fence.epoch(), 0)?;
    match entry.keep {
        Keep::Store => {
            cache.count(Count::Write, 1);
            set_now(cache, hash, key, store_key.len(), entry.held);
        }
        Keep::NoStore => drop_from_memory(cache, hash, &key),
    }
    Ok(())
}

/// Fences the key off and drops it from memory.
///
/// The second bump fences off flights that boarded before the entry went and may have seen it.
pub(crate) fn drop_from_memory<K, V, Q>(cache: &Inner<K, V>, hash: u64, key: &Q)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    cache.fence.bump(hash);
    cache.memory.remove(hash, key);
    cache.fence.bump(hash);
}

/// `Cache::invalidate`.
pub(crate) async fn invalidate<K, V>(
    cache: &Arc<Inner<K, V>>,
    hash: u64,
    key: K,
    store_key: Bytes,
) -> Result<Receipt>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.shared.check_open()?;
    cache.count(Count::Invalidation, 1);
    drop_from_memory(cache, hash, &key);
    if cache.tiers.is_empty() {
        return Ok(Receipt::Acked);
    }
    let owned = Arc::clone(cache);
    detached(cache, async move {
        let mut receipt = Receipt::Acked;
        for tier in owned.tiers.iter().rev() {
            let mut budget = Budget::new(owned.shared.tier_budget);
            let keys = std::slice::from_ref(&store_key);
            receipt = receipt.and(tier.delete(&mut budget, keys).await);
        }
        drop_from_memory(&owned, hash, &key);
        receipt
    })
    .await
}

/// `Cache::expire`: the value stays readable as a stale one, within its grace.
pub(crate) async fn expire<K, V>(
    cache: &Arc<Inner<K, V>>,
    hash: u64,
    key: K,
    store_key: Bytes,
) -> Result<Receipt>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.shared.check_open()?;
    cache.count(Count::Invalidation, 1);
    expire_in_memory(cache, hash, &key);
    if cache.tiers.is_empty() {
        return Ok(Receipt::Acked);
    }
    let owned = Arc::clone(cache);
    detached(cache, async move {
        let mut receipt = Receipt::Acked;
        let wall = owned.clock().wall();
        for tier in owned.tiers.iter().rev() {
            let mut budget = Budget::new(owned.shared.tier_budget);
            let keys = std::slice::from_ref(&store_key);
            receipt = receipt.and(tier.expire(&mut budget, keys, wall).await);
        }
        expire_in_memory(&owned, hash, &key);
        receipt
    })
    .await
}

fn expire_in_memory<K, V>(cache: &Inner<K, V>, hash: u64, key: &K)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.fence.bump(hash);
    let now = cache.clock().monotonic();
    cache.memory.update(hash, key, now, |held, dies_at| {
        held.times = held.times.expired(now);
        *dies_at = held.times.dies_at();
    });
    // As when a key is dropped: flights that boarded before may have seen it fresh.
    cache.fence.bump(hash);
}

/// `Cache::clear`.
pub(crate) async fn clear<K, V>(cache: &Arc<Inner<K, V>>) -> Result<Receipt>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.shared.check_open()?;
    cache.count(Count::Invalidation, 1);
    clear_memory(cache);
    if cache.tiers.is_empty() {
        return Ok(Receipt::Acked);
    }
    let owned = Arc::clone(cache);
    let cleared = detached(cache, async move {
        let (mut receipt, mut unsupported) = (Receipt::Acked, None);
        for tier in owned.tiers.iter().rev() {
            match tier.clear(&owned.prefix).await {
                Ok(delivery) => receipt = receipt.and(delivery),
                Err(error) => unsupported = Some(Error::unsupported(tier.name(), &error)),
            }
        }
        clear_memory(&owned);
        unsupported.map_or(Ok(receipt), Err)
    });
    cleared.await?
}

/// Makes every entry unreadable at once, and then gives its memory back.
pub(crate) fn clear_memory<K, V>(cache: &Inner<K, V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.fence.clear();
    cache.memory.clear();
}

/// Runs a write in a task of its own: a caller that goes away in the middle, as web handlers do,
/// leaves no tier half told.
async fn detached<K, V, T>(
    cache: &Inner<K, V>,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    T: Send + 'static,
{
    cache.shared.check_ready()?;
    let (done, outcome) = oneshot::channel();
    cache.shared.tasks.spawn(TaskKind::Work, async move {
        // The caller may be gone; the work is done all the same.
        let _ = done.send(work.await);
    });
    outcome.await.map_err(|_aborted| Error::closed())
}
