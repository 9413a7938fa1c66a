//! The way of a write: what a load found, what a caller sets, what is invalidated.
//!
//! Two rules hold everywhere in this module. Tiers are written from the bottom up and memory
//! last, because what is above is what is asked first. What depends on a key goes after that: what
//! is made anew from then on is made from the new value. And memory takes an entry only under a
//! mark of the fence that still holds.
//!
//! ```text
//! set:         bump → write each tier, lowest first → memory, if nobody came between → tell others
//! invalidate:  bump, drop from memory → courier: each tier, others → bump, drop again
//! ```
//!
//! Each tier has a budget of its own here: one that hangs must not keep the others from hearing of
//! the write.
//!
//! The second bump fences off the reads that began between the first and the last deletion and
//! may have read what was about to go.

use std::collections::HashSet;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::answer::{Content, Keep, Loaded};
use crate::cache::Inner;
use crate::clock::Millis;
use crate::courier::{Errand, Receipt};
use crate::entry::{Details, FillId, Held, Slide, Times};
use crate::envelope::{self, Expect, Header, Label, Packed};
use crate::epoch::Moment;
use crate::error::{Error, ErrorKind, Result};
use crate::fence::{Mark, Standing};
use crate::fill::{FillGuard, Landed, Origin, Shown};
use crate::glob::Glob;
use crate::invalidation::Why;
use crate::key::{self, AsKey, CacheKey};
use crate::memory::{Inserted, Placement, Walk};
use crate::options::NO_TTL_ON_SERVER;
use crate::policy::{self, Decision, Lifetimes, Wishes};
use crate::progress::Watcher;
use crate::scope::Inherited;
use crate::stats::Count;
use crate::store::{Fill, Filled, Position, Swept, Tagged, Write};
use crate::tags::{MAX_TAGS, Tag};
use crate::tasks::TaskKind;
use crate::tier::{Budget, Delivery};

/// What a load or a caller gave, on its way into the tiers.
struct Entry<V> {
    held: Held<V>,
    /// Whether it is kept, or only given to those who wait.
    keep: Keep,
    /// The envelope and how long a store keeps it; `None` if there are no tiers, if the codec
    /// could not encode the value, or if it is not to be kept.
    sealed: Option<(Bytes, Duration)>,
    /// Whether something else came first: an invalidation of a tag, or what a tier says.
    refused: bool,
}

impl<V> Entry<V> {
    /// Takes over the versions that the lowest tier holds for the tags of the entry.
    fn learn<K>(&mut self, cache: &Inner<K, V>, versions: &[u64], asked: u64)
    where
        K: CacheKey,
        V: Send + Sync + 'static,
    {
        let tags = std::iter::once(cache.fence.own()).chain(self.held.tags());
        for (tag, version) in tags.zip(versions) {
            tag.learn(*version, asked);
        }
        if let Some((envelope, _)) = &mut self.sealed {
            *envelope = envelope::with_versions(envelope, versions);
        }
    }
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
    let (mut entries, mut failed) = (Vec::with_capacity(loads.len()), Vec::new());
    for (fill, mut loaded) in loads {
        if let Some(failure) = loaded.failure.take() {
            failed.push((fill, failure));
            continue;
        }
        let Some(key) = fill.key() else { continue };
        let began = fill.mark().began();
        let made = make(
            cache,
            key,
            fill.store_key(),
            loaded,
            fill.shown(),
            began,
            load_ms,
        );
        match made {
            Ok(entry) => {
                cache.count(Count::Load, 1);
                entries.push((fill, entry));
            }
            // What cannot be an entry is as good as no answer.
            Err(error) => failed.push((fill, error)),
        }
    }
    fill_tiers(cache, &mut entries, budget).await;
    let stored = entries.iter_mut().map(|(fill, _)| fill);
    let fills = stored.chain(failed.iter_mut().map(|(fill, _)| fill));
    give_back(cache, fills.collect(), budget).await;
    for (fill, error) in failed {
        fail(vec![fill], &error);
    }
    for (fill, entry) in entries {
        if entry.refused {
            cache.count(Count::Fenced, 1);
            let began = fill.mark().began();
            fill.land(Ok(Landed::refused(entry.held, began)));
            continue;
        }
        let landed = match entry.keep {
            Keep::Store => match keep(cache, &fill, entry.held.clone()) {
                Inserted::NotAdmitted => Landed::fenced(entry.held),
                _ => Landed::fresh(entry.held, Origin::Loader),
            },
            Keep::NoStore => {
                forget(cache, &fill);
                Landed::not_stored(entry.held)
            }
        };
        fill.land(Ok(landed));
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
    let lowest = cache.tiers.len().saturating_sub(1);
    for (depth, tier) in cache.tiers.iter().enumerate().rev() {
        let asked = cache.fence.stamp();
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
            let tags = (depth == lowest).then(|| tagged(cache, &entry.held, fill.since()));
            fills.push(Fill {
                key: fill.store_key().clone(),
                token: fill.token(),
                tags: tags.filter(|_| carries_versions(&value)),
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
            match filled {
                Filled::Stored { versions } => {
                    fill.unleased(depth);
                    entry.learn(cache, &versions, asked);
                }
                // The lease may still be there: versions or tags can be the reason.
                Filled::Refused => entry.refused = true,
            }
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
        if error.kind() == ErrorKind::Overloaded {
            cache.count(Count::LoadRefused, 1);
        } else {
            cache.count(Count::Load, 1);
            cache.count(Count::LoadFailed, 1);
        }
        let now = cache.clock().monotonic();
        let stand_in = fill
            .stale()
            .filter(|held| held.value.is_some() && policy::may_stand_in(&held.times, now, None))
            // The mark of a fill knows nothing of tags.
            .filter(|held| cache.fence.standing(held, now) != Standing::Gone)
            .filter(|_| cache.fence.holds(fill.mark()))
            .cloned();
        let Some(mut held) = stand_in else {
            let default = fill.key().and_then(|key| default(&cache, key));
            let landing = default.ok_or_else(|| error.clone());
            fill.land(landing);
            continue;
        };
        if fill.is_early() && held.times.is_fresh(now) {
            tracing::debug!(cache = &*cache.name, error = ?error, "an early refresh failed");
            rest(&cache, &fill, cache.rules.error_throttle);
            fill.land(Ok(Landed::fresh(held, Origin::Memory)));
            continue;
        }
        held.times.retry_at = now.saturating_add(cache.rules.error_throttle);
        keep(&cache, &fill, held.clone());
        tracing::debug!(cache = &*cache.name, error = ?error, "load failed; a stale entry stands in");
        cache.count(Count::StoodIn, 1);
        fill.land(Ok(Landed::stale(held, Origin::StandIn)));
    }
}

/// What the cache has for callers whose load failed; a function that panics has nothing.
pub(crate) fn default<K, V>(cache: &Inner<K, V>, key: &K) -> Option<Landed<V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let fallback = cache.fallback.as_ref()?;
    let value = catch_unwind(AssertUnwindSafe(|| fallback(key))).ok()?;
    cache.count(Count::StoodIn, 1);
    Some(Landed::default_of(Held::of_nothing(value)))
}

/// Leaves the source of a stale entry in memory alone for a while, because a load in memory failed.
pub(crate) fn throttle_in_memory<K, V, Q>(cache: &Inner<K, V>, mark: Mark, hash: u64, key: &Q)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let now = cache.clock().monotonic();
    cache.memory.update(hash, key, now, |held, _| {
        if cache.fence.holds(mark) && !held.times.is_fresh(now) {
            held.times.retry_at = now.saturating_add(cache.rules.error_throttle);
        }
    });
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

/// What the lowest tier has to know of the tags of an entry.
fn tagged<K, V>(cache: &Inner<K, V>, held: &Held<V>, since: Option<Position>) -> Tagged
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let records = &cache.shared.records;
    let tags = std::iter::once(cache.fence.own()).chain(held.tags());
    Tagged {
        counter: records.counter.clone(),
        records: tags.map(|tag| records.of(tag.name())).collect(),
        since,
    }
}

/// Tombstones carry none.
fn carries_versions(envelope: &[u8]) -> bool {
    Header::parse(envelope).is_some_and(|header| header.tag_count > 0)
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
    let (times, version) = (held.times, held.version());
    let now = cache.clock().monotonic();
    let is_stale = !times.is_fresh(now);
    store(cache, fill.hash(), key, held, weight, |there| {
        let outdated = there.is_some_and(|there| {
            // A read of the tiers, or a refresh that failed, may be slower than one that succeeded.
            let fresher = is_stale && there.times.fresh_until > times.fresh_until;
            let stands = || cache.fence.standing(there, now) == Standing::Current;
            !there.gives_way_to(version) || (fresher && stands())
        });
        !outdated && cache.fence.holds(fill.mark())
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
    let (now, version) = (cache.clock().monotonic(), held.version());
    store(cache, fill.hash(), key, held, weight, |resident| {
        let newer = |there: &Held<V>| {
            let standing = cache.fence.standing(there, now);
            !there.gives_way_to(version)
                || policy::decide(&there.times, standing, now, None) == Decision::Serve
        };
        cache.fence.holds(fill.mark()) && !resident.is_some_and(newer)
    });
}

/// Leaves the fresh entry that a fill was to renew alone for a while, if memory still has it.
pub(crate) fn rest<K, V>(cache: &Inner<K, V>, fill: &FillGuard<K, V>, pause: Millis)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Some(key) = fill.key() else { return };
    let now = cache.clock().monotonic();
    cache.memory.update(fill.hash(), key, now, |there, _| {
        if fill.is_to_renew(there) {
            there.times.retry_at = now.saturating_add(pause);
        }
    });
}

/// Drops from memory an entry that it could not vouch for, and that the lowest tier does not have.
pub(crate) fn forget_denied<K, V>(cache: &Inner<K, V>, fill: &FillGuard<K, V>, denied: &Held<V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Some(key) = fill.key() else { return };
    let now = cache.clock().monotonic();
    cache
        .memory
        .update(fill.hash(), key, now, |there, dies_at| {
            if !there.is_newer_than(denied) {
                *dies_at = 0;
            }
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

/// Stores an entry in memory if `admit` says so under the lock of its shard, and its version is not
/// below the minimum of its key.
fn store<K, V>(
    cache: &Inner<K, V>,
    hash: u64,
    key: &K,
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
    let (now, version) = (cache.clock().monotonic(), held.version());
    let logical = || key::encode(b"", key).unwrap_or_default();
    let minimums = &cache.shared.minimums;
    let admit = |there: Option<&Held<V>>| {
        // Whoever names a minimum notes it before they drop what is there.
        minimums.let_in(&cache.name, logical, version, now) && admit(there)
    };
    let inserted = cache
        .memory
        .insert(hash, key.clone(), held, place, now, admit);
    match inserted {
        Inserted::Stored => {}
        Inserted::NotAdmitted => cache.count(Count::Fenced, 1),
        Inserted::TooHeavy => cache.count(Count::TooLarge, 1),
        // The table counts these itself.
        Inserted::Full => {}
    }
    inserted
}

/// Makes the entry of what a loader or a caller gave.
fn make<K, V>(
    cache: &Inner<K, V>,
    key: &K,
    store_key: &Bytes,
    loaded: Loaded<V>,
    shown: Option<Shown<'_, V>>,
    began: Moment,
    load_ms: u64,
) -> Result<Entry<V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    if let Some(problem) = loaded.problem {
        return Err(Error::config(problem));
    }
    let not_modified = matches!(loaded.content, Content::NotModified);
    let shown = shown.filter(|_| not_modified);
    let known = shown
        .as_ref()
        .and_then(|shown| shown.held.details.as_deref());
    let names = tag_names(cache, key, loaded.tags, known, &loaded.inherited)?;
    let value = match loaded.content {
        Content::Value(value) => Some(value),
        Content::Absent => None,
        Content::NotModified => {
            let shown = shown.as_ref().ok_or_else(Error::nothing_to_renew)?;
            shown.held.value.clone()
        }
    };
    let rules = &cache.rules;
    let wishes = by_class(cache, loaded.wishes, loaded.class.as_deref())?;
    let wishes = match value {
        Some(_) => by_frequency(cache, key, wishes),
        None => wishes,
    };
    let lives = policy::lifetimes(rules, value.is_none(), wishes, fastrand::f64());
    let inherits_too_much = loaded.inherited.too_many || names.len() > MAX_TAGS;
    let lives = lives
        .filter(|_| loaded.keep == Keep::Store && !inherits_too_much)
        .map(|lives| lives.no_longer_than(loaded.inherited.fresh_for))
        .filter(|lives| lives.fresh > 0);
    let (keep, kept) = match lives {
        Some(lives) => (Keep::Store, lives),
        None => (Keep::NoStore, Lifetimes::NONE),
    };
    let tags = cache
        .shared
        .tags
        .admit(names.iter().map(|name| &**name), began);
    let now = cache.clock().recent();
    let slide = Slide::from_now(now, kept.idle, kept.fresh, cache.memory_ttl);
    let label = Label {
        fill_id: fastrand::u128(..).to_be_bytes(),
        created: cache.clock().wall(),
        load_ms,
        fresh_for: kept.fresh,
        grace_for: kept.grace,
        stale_for: kept.stale,
        idle_for: slide.map(|slide| slide.idle),
        version: loaded.version.or_else(|| known?.version),
        etag: loaded.etag.or_else(|| known?.etag.clone()),
        last_modified: loaded.last_modified.or_else(|| known?.last_modified),
        tags: names,
    };
    // What is invalidated already is given to those who wait and to no store. A value that is
    // renewed is as old as its tags, whatever they are to be from now on.
    let gone = |known: &Details| known.tags.iter().any(|tag| tag.changed() > began.stamp);
    let refused = tags.is_none() || known.is_some_and(gone) || loaded.inherited.refused;
    let tags = tags.unwrap_or_default();
    // What may be made from something that is gone is for this process alone, which will hear of it.
    let (sealed, encoded_len) = match keep {
        Keep::Store if !refused && !loaded.inherited.unverified => {
            seal(cache, store_key, &label, &tags, value.as_deref(), shown)
        }
        _ => (None, 0),
    };
    let held = Held {
        value,
        times: Times::from_now(now, kept, cache.memory_ttl),
        stamp: AtomicU64::new(began.stamp),
        load_ms: u32::try_from(load_ms).unwrap_or(u32::MAX),
        encoded_len: u32::try_from(encoded_len).unwrap_or(u32::MAX),
        fill_id: sealed.is_some().then(|| FillId::of(&label.fill_id)),
        details: Details::of(label, tags, slide),
    };
    Ok(Entry {
        held,
        keep,
        sealed,
        refused,
    })
}

/// What the loader wants of lifetimes, with the TTL of the class that it names.
fn by_class<K, V>(cache: &Inner<K, V>, wishes: Wishes, class: Option<&str>) -> Result<Wishes>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Some(class) = class else {
        return Ok(wishes);
    };
    if wishes.ttl.is_some() {
        return Err(Error::config(format!(
            "an entry of cache `{}` has a ttl and the TTL class `{class}`; leave one of them out",
            cache.name
        )));
    }
    let ttl = cache.shared.classes.ttl(class).map_err(Error::config)?;
    Ok(Wishes {
        ttl: Some(ttl),
        ..wishes
    })
}

/// The same with the TTL that a key deserves, where TTLs go by that and the loader gave none.
fn by_frequency<K, V>(cache: &Inner<K, V>, key: &K, wishes: Wishes) -> Wishes
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let frequency = cache.frequency.as_ref().filter(|_| wishes.ttl.is_none());
    let Some(frequency) = frequency else {
        return wishes;
    };
    let ttl = frequency.ttl(cache.memory.hash(key), cache.clock().monotonic());
    Wishes {
        ttl: Some(Duration::from_millis(ttl)),
        ..wishes
    }
}

/// The inner names of the tags of an entry, each once: those that the cache derives from the key,
/// those that the loader gave, and those of what it read.
fn tag_names<K, V>(
    cache: &Inner<K, V>,
    key: &K,
    given: Vec<Box<str>>,
    known: Option<&Details>,
    inherited: &Inherited,
) -> Result<Vec<Box<str>>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let mut names = cache.groups_of(key)?;
    // A value that was not modified keeps its tags, unless the loader says what they are now.
    let kept = known.filter(|_| given.is_empty()).map(|known| &known.tags);
    let kept = kept.into_iter().flatten().map(|tag| tag.name().into());
    let inherited = inherited.tags.iter().map(|tag| tag.name().into());
    let explicit = names.len() + given.len();
    if explicit > MAX_TAGS {
        return Err(Error::config(format!(
            "an entry of cache `{}` has more than {MAX_TAGS} tags",
            cache.name
        )));
    }
    names.extend(given.into_iter().chain(kept).chain(inherited));
    if names.is_empty() {
        return Ok(names);
    }
    let mut seen = HashSet::with_capacity(names.len());
    // The tag of its own cache every entry has without a word.
    seen.insert(cache.fence.own().name().into());
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}

/// The envelope of an entry and its lifetime in the tiers, where there are any that can have it; and
/// the length of the encoded value.
fn seal<K, V>(
    cache: &Inner<K, V>,
    store_key: &Bytes,
    label: &Label,
    tags: &[Arc<Tag>],
    value: Option<&V>,
    shown: Option<Shown<'_, V>>,
) -> (Option<(Bytes, Duration)>, usize)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Some((packed, encoded_len)) = pack(cache, value, shown) else {
        return (None, 0);
    };
    if cache.tiers.is_empty() {
        return (None, encoded_len);
    }
    let expect = Expect {
        key: store_key,
        schema: cache.version,
    };
    // Always new ones: the store makes records of them where there are none, and a version that was
    // in use before would bring back what was invalidated with it.
    let versions: Vec<u64> = (0..=tags.len()).map(|_| fastrand::u64(..)).collect();
    let envelope = envelope::seal(expect, label, &versions, packed);
    let (fresh, stale) = (label.fresh_for, label.stale_for);
    let lives = Duration::from_millis(match label.idle_for {
        Some(idle) => policy::time_in_tiers(idle, fresh, stale),
        None => fresh.saturating_add(stale),
    });
    let ttl = if cache.rules.no_ttl {
        lives.min(NO_TTL_ON_SERVER)
    } else {
        lives
    };
    (Some((Bytes::from(envelope), ttl)), encoded_len)
}

/// Encodes a value as often as anybody needs it: never, for its length, or for the tiers. One that was
/// `shown` to its loader and still stands is not encoded again where it is at hand as it was.
fn pack<K, V>(
    cache: &Inner<K, V>,
    value: Option<&V>,
    shown: Option<Shown<'_, V>>,
) -> Option<(Option<Packed>, usize)>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let codec = cache.codec.as_ref()?;
    let Some(value) = value else {
        return Some((None, 0));
    };
    if let Some(Shown { held, envelope }) = shown {
        let packed = envelope.and_then(Packed::of);
        if packed.is_some() || cache.tiers.is_empty() {
            return Some((packed, held.encoded_len as usize));
        }
    }
    match codec.encode(value) {
        Ok(encoded) => {
            let encoded_len = encoded.len();
            let is_wanted = !cache.tiers.is_empty();
            let packed =
                is_wanted.then(|| Packed::new(codec.id(), encoded, cache.rules.compress_over));
            Some((packed, encoded_len))
        }
        Err(error) => {
            tracing::warn!(cache = &*cache.name, %error, "a value cannot be encoded; memory alone keeps it");
            cache.count(Count::EncodeFailed, 1);
            None
        }
    }
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
    let envelope = envelope::seal(expect, &label, &[], None);
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
    let logical = key::encode(b"", &key)?;
    let store_key = key::encode(&cache.prefix, &key)?;
    let hash = cache.memory.hash(&key);
    let began = cache.fence.moment();
    let entry = make(cache, &key, &store_key, loaded, None, began, 0)?;
    if entry.keep == Keep::NoStore {
        // What must not be stored must not leave the old value in place either.
        return invalidate(cache, &key, Why::Invalidated).await;
    }
    cache.count(Count::Write, 1);
    if cache.is_alone() {
        let set = set_now(cache, hash, &key, store_key.len(), entry.held);
        // What was there before is gone, whether the new value found room or not.
        cache
            .shared
            .tags
            .invalidate_dependents(&cache.name, &logical);
        return set.map(|()| Receipt::ACKED);
    }
    let owned = Arc::clone(cache);
    detached(cache, async move {
        let cache = &*owned;
        let mark = cache.fence.bump(hash);
        let (written, mut entry) = write_tiers(cache, &store_key, entry).await;
        let weight = cache.weigh(&key, store_key.len(), &entry.held);
        let version = entry.held.version();
        *entry.held.stamp.get_mut() = mark.stamp();
        let admit = |there: Option<&Held<V>>| {
            let gives_way = there.is_none_or(|there| there.gives_way_to(version));
            !entry.refused && gives_way && cache.fence.bump_from(mark).is_some()
        };
        let mut dropped = Delivery::Acked;
        if store(cache, hash, &key, entry.held, weight, admit) == Inserted::NotAdmitted {
            // Which of the writes each tier keeps is not known here. The lowest tier decides, and
            // the next read finds out. The bump makes whoever comes later do the same.
            cache.fence.bump(hash);
            for tier in cache.tiers.iter().rev().skip(1) {
                let mut budget = Budget::new(cache.shared.tier_budget);
                let keys = std::slice::from_ref(&store_key);
                dropped = dropped.and(tier.delete(&mut budget, keys).await);
            }
            drop_from_memory(cache, hash, &key);
        }
        // Everybody else drops the key, other schema versions of it go, and what depends on it.
        let told = Errand::forget(&cache.name, logical, Why::Written, cache.home());
        let receipt = cache.shared.deliver(told.clone()).await;
        let by_tiers = written.and(dropped);
        if by_tiers == Delivery::Queued {
            cache.shared.tell_once_more(vec![told]);
        }
        receipt.and(by_tiers)
    })
    .await
}

/// Writes an entry to every tier, lowest first. Where it does not fit, the old one goes.
async fn write_tiers<K, V>(
    cache: &Inner<K, V>,
    store_key: &Bytes,
    mut entry: Entry<V>,
) -> (Delivery, Entry<V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let mut budget = Budget::new(cache.shared.tier_budget);
    cache.shared.join(&mut budget).await;
    cache.enlist(&mut budget).await;
    let lowest = cache.tiers.len().saturating_sub(1);
    let mut delivery = Delivery::Acked;
    for (depth, tier) in cache.tiers.iter().enumerate().rev() {
        let asked = cache.fence.stamp();
        let mut budget = Budget::new(cache.shared.tier_budget);
        let fits = |(value, _): &(Bytes, Duration)| value.len() <= tier.limit();
        let Some((value, ttl)) = entry.sealed.clone().filter(fits) else {
            if entry.sealed.is_some() {
                tier.count_too_large();
                cache.count(Count::TooLarge, 1);
            }
            let keys = std::slice::from_ref(store_key);
            delivery = delivery.and(tier.delete(&mut budget, keys).await);
            continue;
        };
        let (value, ttl) = cache.copy_for(depth, value, ttl);
        let write = Write {
            key: store_key.clone(),
            value,
            ttl,
            tags: (depth == lowest).then(|| tagged(cache, &entry.held, None)),
        };
        let (delivered, filled) = tier.set(&mut budget, &[write]).await;
        delivery = delivery.and(delivered);
        match filled.into_iter().flatten().next() {
            Some(Filled::Stored { versions }) => entry.learn(cache, &versions, asked),
            // A higher version is there: this one goes nowhere.
            Some(Filled::Refused) => {
                entry.refused = true;
                entry.sealed = None;
            }
            None => {}
        }
    }
    (delivery, entry)
}

/// Stores an entry in memory at once, for caches of this process alone and for callers without a
/// runtime.
fn set_now<K, V>(
    cache: &Inner<K, V>,
    hash: u64,
    key: &K,
    key_len: usize,
    mut held: Held<V>,
) -> Result<()>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let weight = cache.weigh(key, key_len, &held);
    let version = held.version();
    *held.stamp.get_mut() = cache.fence.stamp();
    let inserted = store(cache, hash, key, held, weight, |there| {
        let gives_way = there.is_none_or(|there| there.gives_way_to(version));
        if gives_way {
            // Under the lock: whoever boards a flight from now on finds the new value first.
            cache.fence.bump(hash);
        }
        gives_way
    });
    match inserted {
        Inserted::Full => Err(Error::full(&cache.name)),
        _ => Ok(()),
    }
}

/// `Cache::set_in_memory`.
pub(crate) fn set_in_memory<K, V>(cache: &Inner<K, V>, key: K, loaded: Loaded<V>) -> Result<()>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let store_key = key::encode(&cache.prefix, &key)?;
    let logical = &store_key[cache.prefix.len()..];
    let hash = cache.memory.hash(&key);
    let began = cache.fence.moment();
    let entry = make(cache, &key, &store_key, loaded, None, began, 0)?;
    let stored = match entry.keep {
        Keep::Store => {
            cache.count(Count::Write, 1);
            set_now(cache, hash, &key, store_key.len(), entry.held)
        }
        Keep::NoStore => {
            drop_from_memory(cache, hash, &key);
            Ok(())
        }
    };
    cache
        .shared
        .tags
        .invalidate_dependents(&cache.name, logical);
    stored
}

/// Stores in memory what a load without a flight found, if nothing happened to its key since `mark`,
/// and says what became of it. `None` for what cannot be an entry: a key that is empty or too long,
/// tags that are none.
pub(crate) fn keep_in_memory<K, V, Q>(
    cache: &Inner<K, V>,
    mark: Mark,
    key: &Q,
    loaded: Loaded<V>,
    load_ms: u64,
) -> Option<Landed<V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let store_key = key::encode(&cache.prefix, key).ok()?;
    let (key, hash, began) = (key.to_owned(), cache.memory.hash(key), mark.began());
    let entry = make(cache, &key, &store_key, loaded, None, began, load_ms).ok()?;
    let held = entry.held;
    if entry.refused {
        cache.count(Count::Fenced, 1);
        return Some(Landed::refused(held, began));
    }
    if entry.keep == Keep::NoStore {
        return Some(Landed::not_stored(held));
    }
    let (weight, version) = (cache.weigh(&key, store_key.len(), &held), held.version());
    let inserted = store(cache, hash, &key, held.clone(), weight, |there| {
        cache.fence.holds(mark) && there.is_none_or(|there| there.gives_way_to(version))
    });
    Some(match inserted {
        Inserted::NotAdmitted => Landed::fenced(held),
        _ => Landed::fresh(held, Origin::Loader),
    })
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

/// `Cache::invalidate` and `Cache::expire`: memory at once, then the tiers and other processes, and
/// memory once more.
pub(crate) async fn invalidate<K, V, Q>(cache: &Inner<K, V>, key: &Q, why: Why) -> Result<Receipt>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    cache.shared.check_open()?;
    let logical = key::encode(b"", key)?;
    cache.count(Count::Invalidation, 1);
    cache.shared.note_minimum(&cache.name, &logical, why);
    cache.forget_key(&key.to_owned(), &logical, why);
    if cache.is_alone() {
        return Ok(Receipt::ACKED);
    }
    let errand = Errand::forget(&cache.name, logical, why, cache.home());
    cache.shared.send(errand).await
}

/// What an invalidation of a key does to memory.
impl<K: CacheKey, V: Send + Sync + 'static> Inner<K, V> {
    /// Drops a key, or makes it stale, with whatever depends on it.
    pub(crate) fn forget_key(&self, key: &K, logical: &[u8], why: Why) {
        let hash = self.memory.hash(key);
        match why {
            Why::Expired => expire_in_memory(self, hash, key),
            Why::Invalidated | Why::Written => drop_from_memory(self, hash, key),
            Why::Before(version) => drop_below(self, hash, key, version),
        }
        if why != Why::Expired {
            self.shared.tags.invalidate_dependents(&self.name, logical);
        }
    }

    /// Drops every entry whose encoded key `condemned` picks, and fences off all fills under way.
    ///
    /// An entry that is there now is met by the walk; what is stored meanwhile is newer than this.
    pub(crate) fn forget_matching(&self, condemned: &dyn Fn(&[u8]) -> bool) -> u64 {
        self.fence.bump_all();
        let (mut gone, mut walk, mut batch) = (0, Walk::default(), Vec::new());
        let mut goes_on = true;
        while goes_on {
            goes_on = self.memory.walk(&mut walk, |seen| {
                let logical = key::encode(b"", seen.key);
                let condemned = logical.ok().filter(|logical| condemned(logical));
                batch.extend(condemned.map(|logical| (seen.key.clone(), logical)));
            });
            gone += batch.len() as u64;
            for (key, logical) in batch.drain(..) {
                self.forget_key(&key, &logical, Why::Invalidated);
            }
        }
        self.shared.tags.invalidate_keys(&self.name, condemned);
        self.fence.bump_all();
        gone
    }
}

/// Drops a value below `version`, or of none. One of that version or a higher one stays.
fn drop_below<K, V>(cache: &Inner<K, V>, hash: u64, key: &K, version: u64)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.fence.bump(hash);
    let now = cache.clock().monotonic();
    cache.memory.update(hash, key, now, |held, dies_at| {
        if held.version() < version.max(1) {
            *dies_at = 0;
        }
    });
    // As when a key is dropped: flights that boarded before may have seen it.
    cache.fence.bump(hash);
}

fn expire_in_memory<K, V>(cache: &Inner<K, V>, hash: u64, key: &K)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.fence.bump(hash);
    // By the clock that hits ask: one that is behind must not see the entry fresh once more.
    let now = cache.clock().recent();
    cache.memory.update(hash, key, now, |held, dies_at| {
        held.times = held.times.expired(now);
        *dies_at = held.times.dies_at();
    });
    // As when a key is dropped: flights that boarded before may have seen it fresh.
    cache.fence.bump(hash);
}

/// `Cache::invalidate_matching`.
pub(crate) async fn invalidate_matching<K, V>(
    cache: &Inner<K, V>,
    glob: &str,
    watcher: Watcher,
) -> Result<Receipt>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.shared.check_open()?;
    let parsed = Glob::parse(glob).map_err(Error::config)?;
    if parsed.matches_everything() {
        return clear(cache).await;
    }
    if !cache.tiers.is_empty() {
        cache.shared.check_sweepable()?;
    }
    cache.count(Count::Invalidation, 1);
    let gone = cache.forget_matching(&|key| parsed.matches_encoded(key));
    let (seen, removed) = (gone, gone);
    watcher.tell(&Arc::from("memory"), Swept { seen, removed });
    if cache.is_alone() {
        return Ok(Receipt::ACKED);
    }
    let errand = Errand::Pattern {
        cache: Arc::clone(&cache.name),
        glob: glob.into(),
    };
    cache.shared.send_apart(errand, watcher).await
}

/// `Cache::clear`.
pub(crate) async fn clear<K, V>(cache: &Inner<K, V>) -> Result<Receipt>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.shared.check_open()?;
    cache.count(Count::Invalidation, 1);
    clear_memory(cache);
    if cache.is_alone() {
        return Ok(Receipt::ACKED);
    }
    cache
        .shared
        .send(Errand::Clear(Arc::clone(&cache.name)))
        .await
}

/// So many entries are dropped by whoever clears. A million take as long as a million allocations
/// are freed, and the thread has others to serve.
const DROPPED_IN_PLACE: u64 = 1_000;

/// Makes every entry unreadable at once, and then gives its memory back.
pub(crate) fn clear_memory<K, V>(cache: &Inner<K, V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.fence.clear();
    let gone = cache.memory.clear();
    if gone.len() > DROPPED_IN_PLACE
        && let Ok(runtime) = Handle::try_current()
    {
        runtime.spawn_blocking(move || drop(gone));
    }
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
