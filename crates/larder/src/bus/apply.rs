//! What an invalidation does to this process: its memory, and the tiers that it alone writes to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;

use super::message::Item;
use crate::clock::Millis;
use crate::courier::Errand;
use crate::glob::Glob;
use crate::invalidation::Why;
use crate::key;
use crate::larder::Shared;
use crate::minimum::Minimum;
use crate::registry::{AnyCache, Heard, Home};
use crate::tags::name;
use crate::tasks::TaskKind;
use crate::tier::{Budget, Sharing, Tier, Unserved};

/// How long the tiers remember that a schema version is in use: longer than any entry without a TTL
/// lives there.
const ENLISTED_FOR: Duration = Duration::from_secs(31 * 24 * 3600);
/// How often that is renewed, in milliseconds.
const ENLIST_EVERY: Millis = 24 * 3600 * 1000;
/// How soon the others are told once more if the bus did not take it, in milliseconds.
const TELL_AGAIN: Millis = 1_000;
/// The most caches whose schema versions are kept in mind, and the most versions of one.
const MOST_CACHES: usize = 10_000;
const MOST_VERSIONS: usize = 64;

/// The schema versions of one cache that are in use somewhere.
#[derive(Debug, Default)]
pub(crate) struct Census {
    versions: BTreeSet<u32>,
    /// The stamp of the moment when a tier was asked for them.
    asked: Option<u64>,
    /// Whether the others have still to be told of the version of this process.
    untold: bool,
}

/// Copies that are being dropped from a tier.
struct Forgetting(Arc<AtomicUsize>);

impl Drop for Forgetting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Shared {
    /// Does to memory once more what an errand has done before the tiers took it: a reader in
    /// between may have brought back what was about to go.
    pub(crate) fn apply_once_more(&self, errand: &Errand) {
        match errand {
            Errand::Forget {
                cache,
                key,
                why: Why::Written,
                ..
            } => self.forget_dependents(cache, key),
            Errand::Forget {
                cache, key, why, ..
            } => {
                let decoded = self
                    .find(cache)
                    .is_some_and(|cache| cache.hear(key, Heard(*why)));
                if !decoded && *why != Why::Expired {
                    self.forget_dependents(cache, key);
                }
            }
            Errand::Tag(tag) => self.tags.invalidate(tag),
            Errand::Clear(cache) => match self.find(cache) {
                Some(cache) => cache.forget_all(),
                None => self.tags.invalidate(&name::of_cache(cache)),
            },
            Errand::Pattern { cache, glob } => self.forget_matching(cache, glob),
            Errand::Everything => self.forget_everything(),
        }
    }

    /// Does what another process says.
    pub(crate) fn apply(self: &Arc<Self>, item: &Item) {
        match item {
            Item::Forget {
                cache,
                key,
                versions,
                why,
            } => {
                self.note_minimum(cache, key, *why);
                match self.find(cache) {
                    Some(cache) => self.forget_heard(&cache, key, versions, *why),
                    // What is made from an entry may be here without the cache of that entry.
                    None if *why != Why::Expired => self.forget_dependents(cache, key),
                    None => {}
                }
            }
            Item::Tag { tag } => self.tags.invalidate(tag),
            Item::Clear { cache } => match self.find(cache) {
                Some(cache) => {
                    cache.count_heard();
                    cache.forget_all();
                }
                None => self.tags.invalidate(&name::of_cache(cache)),
            },
            Item::Pattern {
                cache,
                glob,
                versions,
            } => {
                self.forget_matching(cache, glob);
                if let Some(heard) = self.find(cache) {
                    heard.count_heard();
                    self.sweep_copies(&heard, glob, versions);
                }
            }
            Item::Everything => {
                self.forget_everything();
                self.empty_private_tiers();
            }
            Item::Version { cache, version } => {
                self.note_version(cache, *version);
            }
        }
    }

    /// Does what a changed key of the shared tier asks for. Keys that this process never reads say
    /// nothing; what it cannot tell apart is not among those it reads.
    pub(crate) fn apply_change(self: &Arc<Self>, key: &Bytes) {
        let Some(name) = key.strip_prefix(&self.records.namespace()[..]) else {
            return;
        };
        if let Some(record) = name.strip_prefix(b"~") {
            return self.apply_changed_record(record);
        }
        let Some((cache, version, key_at)) = key::taken_apart(name) else {
            return;
        };
        let Some(cache) = self.find(cache).filter(|cache| cache.version() == version) else {
            return;
        };
        if cache.lives().0 == Home::AboveTiers {
            let key = key.slice(key.len() - name.len() + key_at..);
            self.forget_heard(&cache, &key, &[version], Why::Invalidated);
        }
    }

    /// A record that changed has another version, or none: entries that carry the old one go. It may
    /// have been prolonged only; they are found again below.
    fn apply_changed_record(&self, record: &[u8]) {
        let name = key::unescape(record).and_then(|name| String::from_utf8(name).ok());
        match name.as_deref() {
            Some(tag) if name::is_of_key(tag) => self.tags.invalidate_if_carried(tag),
            Some(tag) if name::is_of_many(tag) => self.tags.invalidate(tag),
            // The counter, schema versions, the bus itself.
            _ => {}
        }
    }

    fn forget_heard(
        self: &Arc<Self>,
        cache: &Arc<dyn AnyCache>,
        key: &Bytes,
        versions: &[u32],
        why: Why,
    ) {
        cache.count_heard();
        if !cache.hear(key, Heard(why)) && why != Why::Expired {
            self.forget_dependents(cache.name(), key);
        }
        if cache.lives().0 == Home::MemoryAlone {
            return;
        }
        let entry = self.entry_key(cache.name(), cache.version(), key);
        let stale = self.tiers_left_to_us(cache.version(), versions);
        if stale.is_empty() {
            return;
        }
        let (shared, cache, key) = (Arc::clone(self), Arc::clone(cache), key.clone());
        let forgetting = self.begin_forgetting();
        self.tasks.spawn(TaskKind::Work, async move {
            let _until_done = forgetting;
            for tier in stale.iter().rev() {
                // What does not get through is owed by the tier.
                shared.forget_in(tier, &cache, &key, &entry, why).await;
            }
            cache.hear(&key, Heard(why));
        });
    }

    /// Does to one entry in one tier what happened to it.
    async fn forget_in(
        &self,
        tier: &Arc<Tier>,
        cache: &Arc<dyn AnyCache>,
        key: &Bytes,
        entry: &Bytes,
        why: Why,
    ) {
        let mut budget = Budget::new(self.tier_budget);
        let keys = std::slice::from_ref(entry);
        let now = self.clock.monotonic();
        let minimum = match why {
            Why::Expired => {
                tier.expire(&mut budget, keys, self.clock.wall()).await;
                return;
            }
            Why::Before(version) => Some(Minimum::new(version)),
            Why::Invalidated | Why::Written => {
                tier.delete(&mut budget, keys).await;
                self.minimums.of(cache.name(), key, now)
            }
        };
        if let Some(minimum) = minimum {
            tier.set(&mut budget, &[minimum.write(entry.clone())]).await;
        }
    }

    /// Keeps the version in mind that an invalidation named, before anything is dropped.
    pub(crate) fn note_minimum(&self, cache: &str, key: &[u8], why: Why) {
        if let Why::Before(version) = why {
            let now = self.clock.monotonic();
            self.minimums.note(cache, key, version, now);
        }
    }

    /// What depends on a key goes, whether its cache is known here or not.
    fn forget_dependents(&self, cache: &str, key: &[u8]) {
        self.tags.invalidate_dependents(cache, key);
    }

    /// Whether copies that others told of are still being dropped from a tier.
    pub(crate) fn is_forgetting(&self) -> bool {
        self.forgetting.load(SeqCst) > 0
    }

    fn begin_forgetting(&self) -> Forgetting {
        self.forgetting.fetch_add(1, SeqCst);
        Forgetting(Arc::clone(&self.forgetting))
    }

    fn forget_matching(&self, cache: &str, glob: &str) {
        let parsed = Glob::parse(glob).ok();
        // Another release may know more globs. Everything is matched by that.
        let condemned = |key: &[u8]| parsed.as_ref().is_none_or(|glob| glob.matches_encoded(key));
        match self.find(cache) {
            Some(cache) if parsed.is_none() => cache.forget_all(),
            Some(cache) => drop(cache.forget_matching(&condemned)),
            None => self.tags.invalidate_keys(cache, &condemned),
        }
    }

    fn forget_everything(&self) {
        for cache in self.caches() {
            cache.forget_all();
        }
    }

    /// The tiers that hold copies of what other processes may change.
    fn private_tiers_above_shared(&self) -> Vec<Arc<Tier>> {
        let lowest = self
            .tiers
            .iter()
            .rposition(|tier| tier.sharing() == Sharing::Shared);
        let above = self.tiers.iter().take(lowest.unwrap_or(0));
        above
            .filter(|tier| tier.sharing() == Sharing::Private)
            .cloned()
            .collect()
    }

    /// The tiers in which this process sees to what another one, which knew of `versions` of the
    /// cache, has changed: those that are its own, and the shared one if `own` was not known.
    fn tiers_left_to_us(&self, own: u32, versions: &[u32]) -> Vec<Arc<Tier>> {
        let unknown = !versions.is_empty() && !versions.contains(&own);
        let mut tiers = self.private_tiers_above_shared();
        tiers.extend(self.tiers.last().filter(|_| unknown).cloned());
        tiers
    }

    /// Takes the private tiers above a shared one out of use until they are empty.
    pub(crate) fn empty_private_tiers(&self) {
        for tier in self.private_tiers_above_shared() {
            tier.empty();
        }
    }

    fn sweep_copies(self: &Arc<Self>, cache: &Arc<dyn AnyCache>, glob: &str, versions: &[u32]) {
        let tiers = self.tiers_left_to_us(cache.version(), versions);
        if tiers.is_empty() || cache.lives().0 == Home::MemoryAlone {
            return;
        }
        let version = cache.version();
        let prefix = self.entry_key(cache.name(), version, b"");
        let (shared, name, glob) = (Arc::clone(self), cache.name().to_owned(), glob.to_owned());
        let forgetting = self.begin_forgetting();
        self.tasks.spawn(TaskKind::Work, async move {
            let _until_done = forgetting;
            let parsed = Glob::parse(&glob).ok();
            let condemned = |key: &[u8]| {
                let logical = key.get(prefix.len()..).unwrap_or_default();
                parsed
                    .as_ref()
                    .is_none_or(|glob| glob.matches_encoded(logical))
            };
            for tier in tiers.iter().rev() {
                if tier.sweep(&prefix, &condemned, &|_| ()).await.is_err() {
                    shared.clear_in(tier, &name).await;
                }
                let minimums = shared.minimums_matching(&name, version, parsed.as_ref());
                if !minimums.is_empty() {
                    let mut budget = Budget::new(shared.tier_budget);
                    tier.set(&mut budget, &minimums).await;
                }
            }
            shared.forget_matching(&name, &glob);
        });
    }

    /// Takes more than was asked for from a tier that cannot walk through its keys.
    async fn clear_in(&self, tier: &Arc<Tier>, cache: &str) {
        match tier.sharing() {
            Sharing::Private => tier.empty(),
            Sharing::Shared => {
                let record = self.records.of(&name::of_cache(cache));
                tier.delete(&mut Budget::new(self.tier_budget), &[record])
                    .await;
            }
        }
    }

    /// Invalidates a tag by its inner name, here and everywhere.
    pub(crate) async fn invalidate_tag(
        self: &Arc<Self>,
        tag: Box<str>,
    ) -> crate::error::Result<crate::courier::Receipt> {
        self.check_open()?;
        self.tags.invalidate(&tag);
        if self.tiers.is_empty() && self.bus.is_none() {
            return Ok(crate::courier::Receipt::ACKED);
        }
        self.send(Errand::Tag(tag)).await
    }

    /// Tells the lowest tier and the other processes that a schema version is in use; when that has
    /// to be said again, or `None` if the tier could not be told.
    pub(crate) async fn enlist(
        self: &Arc<Self>,
        cache: &Arc<str>,
        version: u32,
        budget: &mut Budget,
    ) -> Option<Millis> {
        let again = self.clock.monotonic().saturating_add(ENLIST_EVERY);
        let Some(lowest) = self.shared_lowest() else {
            return Some(again);
        };
        if !self.note_version(cache, version)
            && let Some(census) = self.census().get_mut(&**cache)
        {
            census.untold = true;
        }
        self.ask_census(lowest, cache, version, ENLISTED_FOR, budget)
            .await?;
        let untold = self.census().get(&**cache).is_some_and(|all| all.untold);
        if !untold {
            return Some(again);
        }
        let item = Item::Version {
            cache: cache.as_ref().into(),
            version,
        };
        // Whoever has asked the tier already would not hear of it otherwise.
        if self.publish(vec![item]).await.is_err() {
            return Some(self.clock.monotonic().saturating_add(TELL_AGAIN));
        }
        if let Some(census) = self.census().get_mut(&**cache) {
            census.untold = false;
        }
        Some(again)
    }

    /// The schema versions of a cache that are in use anywhere.
    pub(crate) async fn versions_of(
        self: &Arc<Self>,
        cache: &str,
        budget: &mut Budget,
    ) -> Vec<u32> {
        let asked = self.census().get(cache).and_then(|census| census.asked);
        let believed = asked.is_some_and(|asked| self.epochs().believes(asked));
        if let Some(lowest) = self.shared_lowest().filter(|_| !believed) {
            let _unknown = self
                .ask_census(lowest, cache, 0, Duration::ZERO, budget)
                .await;
        }
        let mut versions: BTreeSet<u32> = self
            .census()
            .get(cache)
            .map(|census| census.versions.clone())
            .unwrap_or_default();
        versions.extend(self.registered_version(cache));
        versions.into_iter().collect()
    }

    async fn ask_census(
        &self,
        lowest: &Arc<Tier>,
        cache: &str,
        version: u32,
        keep: Duration,
        budget: &mut Budget,
    ) -> Option<()> {
        let asked = self.epochs().stamp();
        let record = self.records.versions(cache);
        let versions = match lowest.enlist(budget, &record, version, keep).await {
            Ok(versions) => versions,
            // A store without lists: what is heard on the bus has to do.
            Err(Unserved::Unsupported(_)) => Vec::new(),
            Err(_) => return None,
        };
        let mut all = self.census();
        if all.len() < MOST_CACHES || all.contains_key(cache) {
            let census = all.entry(cache.into()).or_default();
            let room = MOST_VERSIONS.saturating_sub(census.versions.len());
            census.versions.extend(versions.into_iter().take(room));
            census.asked = Some(asked);
        }
        Some(())
    }

    /// Keeps a schema version in mind; whether it was known.
    fn note_version(&self, cache: &str, version: u32) -> bool {
        let mut all = self.census();
        if all.len() >= MOST_CACHES && !all.contains_key(cache) {
            return true;
        }
        let versions = &mut all.entry(cache.into()).or_default().versions;
        versions.len() >= MOST_VERSIONS || !versions.insert(version)
    }

    /// The version of a cache of this process that lives in the tiers.
    pub(crate) fn registered_version(&self, cache: &str) -> Option<u32> {
        let cache = self.find(cache)?;
        (cache.lives().0 == Home::AboveTiers).then(|| cache.version())
    }

    fn shared_lowest(&self) -> Option<&Arc<Tier>> {
        self.tiers
            .last()
            .filter(|tier| tier.sharing() == Sharing::Shared)
    }
}
