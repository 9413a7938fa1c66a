//! The tags that entries in memory carry, and what is known of their versions in the tiers.
//!
//! A tag is one object however many entries carry it: an invalidation writes one number into it,
//! whatever the number of entries. The object lives as long as an entry carries it, so that the
//! table is as bounded as memory is. Of tags that no entry carries, the last event is remembered
//! for loads under way that may come to carry them, until a sweep forgets it; a tag that is new to the
//! table begins with the newest forgotten event, so that loads from before are not stored under it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use foldhash::quality::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

use crate::epoch::{Epochs, Moment};
use crate::key::KeySink;
use crate::store::TagRecord;

/// The most tags that one entry may carry.
pub(crate) const MAX_TAGS: usize = 1_000;
/// The longest tag, in bytes.
pub(crate) const MAX_TAG_BYTES: usize = 1_024;

const SHARDS: usize = 64;
/// A shard with fewer tags is not swept.
const SWEEP_FROM: usize = 256;

/// One tag.
#[derive(Debug)]
pub(crate) struct Tag {
    name: Box<str>,
    hash: u64,
    /// The number of the event that invalidated it last.
    changed: AtomicU64,
    /// For the tag of a key: how many keys had been invalidated unnoted when this tag came into the
    /// table. This key may be one of them.
    unnoted: u64,
    known: Mutex<Option<Known>>,
}

/// The version that stands in the tiers.
#[derive(Clone, Copy, Debug)]
struct Known {
    version: u64,
    /// The stamp of the moment when it was asked for.
    learned: u64,
}

impl Tag {
    /// What the tag is called in envelopes and records.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The number of the event that invalidated it last; zero if none did.
    pub(crate) fn changed(&self) -> u64 {
        self.changed.load(SeqCst)
    }

    /// The tag as a loader gave it; `None` for tags that larder gives by itself.
    pub(crate) fn given_name(&self) -> Option<&str> {
        self.name.strip_prefix("t:")
    }

    /// What the tag takes in memory, its place in the entry that carries it included.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>() + self.name.len() + 3 * size_of::<usize>()
    }

    /// Whether this process never invalidated the tag, nor heard that others did.
    pub(crate) fn is_untouched(&self) -> bool {
        self.changed() == 0 && self.unnoted == 0
    }

    /// The version that was last seen in the tiers, and whether it can be believed.
    pub(crate) fn version(&self, epochs: &Epochs) -> Option<(u64, bool)> {
        let known = *self.known();
        known.map(|known| (known.version, epochs.believes(known.learned)))
    }

    /// Notes the version that a tier gave to a question asked at `asked`.
    pub(crate) fn learn(&self, version: u64, asked: u64) {
        let mut known = self.known();
        // Checked under the lock: whoever invalidates takes it after the event is noted.
        if self.changed() <= asked && known.is_none_or(|known| known.learned <= asked) {
            *known = Some(Known {
                version,
                learned: asked,
            });
        }
    }

    /// Writes down that an event invalidated the tag.
    pub(crate) fn change(&self, event: u64) {
        self.changed.store(event, SeqCst);
        *self.known() = None;
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tags of one larder.
#[derive(Debug)]
pub(crate) struct Tags {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// How many of them are tags of keys; counted before one comes in, and after it has gone.
    of_keys: AtomicUsize,
    /// The newest event of a tag that was swept.
    forgotten: AtomicU64,
    pub(crate) epochs: Arc<Epochs>,
}

#[derive(Debug, Default)]
struct Shard {
    table: HashTable<Arc<Tag>>,
    sweep_at: usize,
}

impl Tags {
    pub(crate) fn new(epochs: Arc<Epochs>) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
            of_keys: AtomicUsize::new(0),
            forgotten: AtomicU64::new(0),
            epochs,
        }
    }

    /// The tags of an entry whose fill began at that moment; `None` if one of them was invalidated
    /// since, or may have been.
    pub(crate) fn admit<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
        began: Moment,
    ) -> Option<Box<[Arc<Tag>]>> {
        let tag = |name: &str| {
            let tag = self.tag(name);
            let stands = tag.changed() <= began.stamp && tag.unnoted <= began.unnoted;
            stands.then_some(tag)
        };
        names.into_iter().map(tag).collect()
    }

    /// Makes every entry that carries the tag invalid, and every fill under way that will.
    pub(crate) fn invalidate(&self, name: &str) {
        let tag = self.tag(name);
        self.epochs.advance(|event| tag.change(event));
    }

    /// The same for the tag of a key, which is often invalidated and seldom carried: if nobody has
    /// heard of it, no epoch begins, and loads under way are not stored should they turn out to
    /// carry it.
    pub(crate) fn invalidate_if_carried(&self, name: &str) {
        let hash = self.hasher.hash_one(name);
        let shard = self.shard(hash);
        let known = shard.table.find(hash, |tag| *tag.name == *name).cloned();
        match known {
            Some(tag) => {
                drop(shard);
                self.epochs.advance(|event| tag.change(event));
            }
            // Under the lock: whoever comes to carry the tag finds this.
            None => self.epochs.pass_unnoted(),
        }
    }

    /// The same for the tag of this key, without a look for it where no key has a tag at all.
    pub(crate) fn invalidate_dependents(&self, cache: &str, key: &[u8]) {
        if self.of_keys.load(SeqCst) == 0 {
            self.epochs.pass_unnoted();
            // Whoever brings in the first one counts it and then looks what has passed: they see
            // this, or it is seen here.
            if self.of_keys.load(SeqCst) == 0 {
                return;
            }
        }
        self.invalidate_if_carried(&name::of_key(cache, key));
    }

    /// The same for the tags of all keys of a cache that `condemned` picks, in their encoded form.
    pub(crate) fn invalidate_keys(&self, cache: &str, condemned: &dyn Fn(&[u8]) -> bool) {
        let front = name::of_key(cache, b"");
        // Those that nobody has heard of are fenced off first, so that none slips in between.
        self.epochs.pass_unnoted();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let of_key = |tag: &&Arc<Tag>| {
                let key = tag.name.strip_prefix(&*front);
                key.is_some_and(|key| condemned(key.as_bytes()))
            };
            let tags: Vec<_> = shard.table.iter().filter(of_key).cloned().collect();
            drop(shard);
            for tag in tags {
                self.epochs.advance(|event| tag.change(event));
            }
        }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[(hash >> 48) as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tag of this name.
    pub(crate) fn tag(&self, name: &str) -> Arc<Tag> {
        let hash = self.hasher.hash_one(name);
        let mut shard = self.shard(hash);
        if let Some(tag) = shard.table.find(hash, |tag| *tag.name == *name) {
            return Arc::clone(tag);
        }
        if shard.table.len() >= shard.sweep_at.max(SWEEP_FROM) {
            self.sweep(&mut shard);
        }
        let of_key = name::is_of_key(name);
        if of_key {
            self.of_keys.fetch_add(1, SeqCst);
        }
        let tag = Arc::new(Tag {
            name: name.into(),
            hash,
            changed: AtomicU64::new(self.forgotten.load(SeqCst)),
            unnoted: if of_key { self.epochs.unnoted() } else { 0 },
            known: Mutex::default(),
        });
        shard
            .table
            .insert_unique(hash, Arc::clone(&tag), |tag| tag.hash);
        tag
    }

    /// Forgets the tags that nobody carries.
    fn sweep(&self, shard: &mut Shard) {
        let mut swept_of_keys = 0;
        shard.table.retain(|tag| {
            // Nobody can come to carry it meanwhile: that takes the lock of the shard.
            let carried = Arc::strong_count(tag) > 1;
            if !carried {
                self.forgotten.fetch_max(tag.changed(), SeqCst);
                swept_of_keys += usize::from(name::is_of_key(&tag.name));
            }
            carried
        });
        self.of_keys.fetch_sub(swept_of_keys, SeqCst);
        shard.sweep_at = shard.table.len() * 2;
        shard.table.shrink_to(shard.sweep_at, |tag| tag.hash);
    }

    /// How many tags are in the table.
    #[cfg(test)]
    fn len(&self) -> usize {
        let len = |shard: &Mutex<Shard>| shard.lock().unwrap().table.len();
        self.shards.iter().map(len).sum()
    }
}

/// What the lowest tier says of the tags that it was asked about.
#[derive(Debug)]
pub(crate) struct Today(HashMap<Box<str>, Option<u64>>);

impl Today {
    /// Reads the records of `tags` that a tier gave to a question asked at `asked`, and keeps their
    /// versions in mind.
    pub(crate) fn learned(
        tags: Vec<Arc<Tag>>,
        records: impl IntoIterator<Item = Option<Bytes>>,
        asked: u64,
    ) -> Self {
        let says = |(tag, record): (Arc<Tag>, Option<Bytes>)| {
            let record = record.as_deref().and_then(TagRecord::parse);
            if let Some(record) = record {
                tag.learn(record.version, asked);
            }
            (tag.name.clone(), record.map(|record| record.version))
        };
        Self(tags.into_iter().zip(records).map(says).collect())
    }

    /// The version that a tag has, which is none if its record is missing; the outer `None` for a
    /// tag that was not asked about.
    pub(crate) fn says(&self, tag: &Tag) -> Option<Option<u64>> {
        self.0.get(tag.name()).copied()
    }
}

/// What tags are called inside: each kind has a prefix of its own, so that no tag of a user is
/// taken for a cache or a key.
pub(crate) mod name {
    /// Whether a tag is that of a key.
    pub(crate) fn is_of_key(name: &str) -> bool {
        name.starts_with("k:")
    }

    /// Whether it is the name of a tag that was given, of a cache, or of a group.
    pub(crate) fn is_of_many(name: &str) -> bool {
        ["t:", "c:", "g:"].iter().any(|kind| name.starts_with(kind))
    }

    /// An error, as a sentence, for what cannot be a tag.
    pub(crate) fn check(tag: &str) -> Result<(), String> {
        match tag.len() {
            1..=super::MAX_TAG_BYTES => Ok(()),
            0 => Err("a tag is empty".to_owned()),
            length => Err(format!(
                "a tag has {length} bytes; at most {} are allowed",
                super::MAX_TAG_BYTES
            )),
        }
    }

    /// A tag that a loader gave.
    pub(crate) fn of_tag(tag: &str) -> Box<str> {
        format!("t:{tag}").into()
    }

    /// The tag that all entries of a cache have.
    pub(crate) fn of_cache(cache: &str) -> Box<str> {
        format!("c:{cache}").into()
    }

    /// The tag of a group that a cache derives from its keys.
    pub(crate) fn of_group(cache: &str, group: &str) -> Box<str> {
        format!("g:{cache}:{group}").into()
    }

    /// The tag that all entries have which depend on this one. Encoded keys are ASCII.
    pub(crate) fn of_key(cache: &str, key: &[u8]) -> Box<str> {
        let key = String::from_utf8_lossy(key);
        let mut name = String::with_capacity("k::".len() + cache.len() + key.len());
        for part in ["k:", cache, ":", &key] {
            name.push_str(part);
        }
        name.into()
    }
}

/// The names of what a namespace keeps in its tiers beside entries. No cache can be called `~`.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    namespace: Bytes,
    /// The counter of the invalidations of the namespace.
    pub(crate) counter: Bytes,
}

impl Records {
    pub(crate) fn new(namespace: &str) -> Self {
        Self {
            namespace: Bytes::from(format!("{namespace}:")),
            counter: Bytes::from(format!("{namespace}:~counter")),
        }
    }

    /// The front of every key of the namespace.
    pub(crate) fn namespace(&self) -> &Bytes {
        &self.namespace
    }

    /// The record of a tag, by its inner name.
    pub(crate) fn of(&self, name: &str) -> Bytes {
        let mut sink = KeySink::behind(&self.namespace);
        sink.raw(b"~");
        sink.part(name.as_bytes());
        sink.into_bytes()
    }

    /// The record of the schema versions of a cache.
    pub(crate) fn versions(&self, cache: &str) -> Bytes {
        self.of(&format!("v:{cache}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags() -> Tags {
        Tags::new(Arc::new(Epochs::alone()))
    }

    #[test]
    fn an_invalidation_wins_over_fills_from_before_and_not_over_later_ones() {
        let tags = tags();
        let before = tags.epochs.moment();
        let held = tags.admit(["a", "b"], before).unwrap();
        tags.invalidate("a");
        assert!(held[0].changed() > before.stamp && held[1].changed() == 0);
        assert!(tags.admit(["a"], before).is_none());
        assert!(tags.admit(["b"], before).is_some());
        assert!(tags.admit(["a"], tags.epochs.moment()).is_some());
    }

    #[test]
    fn a_version_learned_before_an_invalidation_is_not_known_after_it() {
        let tags = tags();
        let (tag, asked) = (tags.tag("a"), tags.epochs.stamp());
        tags.invalidate("a");
        tag.learn(7, asked);
        assert!(tag.version(&tags.epochs).is_none());
        tag.learn(8, tags.epochs.stamp());
        assert_eq!(tag.version(&tags.epochs), Some((8, true)));
        tags.epochs.distrust();
        assert_eq!(tag.version(&tags.epochs), Some((8, false)));
    }

    #[test]
    fn tags_that_nobody_carries_are_forgotten_and_what_is_forgotten_is_never_admitted() {
        let tags = tags();
        let carried = tags.tag("carried");
        let before = tags.epochs.moment();
        tags.invalidate("gone");
        for n in 0..200_000 {
            tags.tag(&format!("passing {n}"));
        }
        assert!(tags.len() <= SHARDS * SWEEP_FROM, "{}", tags.len());
        assert!(Arc::ptr_eq(&carried, &tags.tag("carried")));
        assert!(tags.admit(["gone"], before).is_none(), "forgotten or not");
        assert!(tags.admit(["never seen"], before).is_none());
        assert!(
            tags.admit(["never seen either"], tags.epochs.moment())
                .is_some()
        );
    }

    #[test]
    fn names_of_different_kinds_never_meet() {
        let records = Records::new("shop");
        let tag = records.of(&name::of_tag("product:7"));
        assert_eq!(&tag[..], b"shop:~t%3Aproduct%3A7");
        let all = [
            tag,
            records.of(&name::of_cache("product:7")),
            records.of(&name::of_key("product", b"7")),
            records.counter.clone(),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|other| other != one));
        }
    }
}
