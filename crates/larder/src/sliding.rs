//! What reads do to entries that slide: memory prolongs them at once, the tiers a moment later and
//! behind the reader's back.
//!
//! ```text
//! hit in memory ──► policy::renewed? ──► memory, under the lock of the shard ──┐
//! answer of a tier ──► filled, or read here, a moment ago? ── no ──────────────┤
//!                                                                              ▼
//!                     one task per cache: Store::touch, tier after tier ◄── Touches
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::cache::Inner;
use crate::clock::Millis;
use crate::entry::{Held, Slide};
use crate::fill::FillGuard;
use crate::key::{self, AsKey, CacheKey};
use crate::policy;
use crate::stats::Count;
use crate::tasks::{TaskKind, Tasks};
use crate::tier::{Budget, Tier};

/// So many keys, and records of tags beside them, wait for their turn; of what comes then the time in
/// the tiers is not prolonged.
const MAX_WAITING: usize = 10_000;
/// Of so many keys it is remembered when the tiers were told last, in 16 bytes each.
const REMEMBERED: usize = 4_096;
/// So many keys are prolonged in one call of a store.
const BATCH: usize = 1_000;

/// Whether a read that memory answers prolongs the entry.
#[inline]
pub(crate) fn is_due<V>(held: &Held<V>, now: Millis) -> bool {
    let renewed = |slide| policy::renewed(&held.times, slide, now).is_some();
    held.slide().is_some_and(renewed)
}

/// Prolongs an entry in memory, if that is due, and has the tiers do the same. Whether it did.
#[cold]
pub(crate) fn prolong<K, V, Q>(cache: &Inner<K, V>, hash: u64, key: &Q, now: Millis) -> bool
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    // Decided once more: under a shared lock many come to the same conclusion, and one is enough.
    let prolonged = cache.memory.update(hash, key, now, |held, dies_at| {
        held.times = policy::renewed(&held.times, held.slide()?, now)?;
        *dies_at = held.times.dies_at();
        Some(held.clone())
    });
    let Some(held) = prolonged.flatten() else {
        return false;
    };
    if let Ok(store_key) = key::encode(&cache.prefix, key)
        && !cache.tiers.is_empty()
    {
        touch(cache, hash, store_key, &held, now);
    }
    true
}

/// Takes notice of a fresh entry that a tier gave for a fill: that was a read of it, which the tiers
/// need not hear of if it was filled, or read in this process, a moment ago.
pub(crate) fn arrived<K, V>(cache: &Inner<K, V>, fill: &FillGuard<K, V>, held: &mut Held<V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let (Some(slide), Some(key)) = (held.slide(), fill.key()) else {
        return;
    };
    let now = cache.clock().recent();
    let there = cache.memory.get(fill.hash(), key, now, |there| {
        there.is_same_fill(held).then_some(there.times.fresh_until)
    });
    let filled = held.times.created.saturating_add_unsigned(slide.idle);
    let known = filled.max(there.flatten().unwrap_or(0));
    let known = known.max(cache.touches.last_told(fill.hash()));
    // What was prolonged to the end of all needs no more of it.
    if slide.was_just_read(known, now) || known >= slide.ends_at {
        held.times = held.times.ending_at(known.min(slide.ends_at));
    } else if !prolong(cache, fill.hash(), key, now) {
        touch(cache, fill.hash(), fill.store_key().clone(), held, now);
    }
}

/// Has the tiers keep an entry, and the lowest one the records of its tags, for as long as one that
/// is read now.
fn touch<K, V>(cache: &Inner<K, V>, hash: u64, store_key: Bytes, held: &Held<V>, now: Millis)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let Some(slide) = held.slide() else { return };
    let tags = std::iter::once(cache.fence.own()).chain(held.tags());
    let records = tags.map(|tag| cache.shared.records.of(tag.name()));
    let ttl = time_of_touch(slide, held.times.stale_for(), now);
    let told = (hash, slide.fresh_until(now));
    match cache.touches.add(told, store_key, records, ttl) {
        Added::ToOthers => {}
        Added::First(turn) => {
            let tiers = cache.tiers.clone();
            let budget = cache.shared.tier_budget;
            spawn(&cache.shared.tasks, turn, tiers, budget);
        }
        Added::Not => cache.count(Count::NotProlonged, 1),
    }
}

/// How long a tier keeps what is read now. It may be longer than the entry can be used, by no more
/// than its idle time: so entries of one cache have few different times, and go in few calls.
fn time_of_touch(slide: Slide, stale_for: Millis, now: Millis) -> Duration {
    let idle = slide.idle;
    Duration::from_millis(if slide.fresh_until(now) < slide.ends_at {
        idle
    } else {
        idle.saturating_add(stale_for)
    })
}

/// What is to be prolonged in the tiers of one cache.
#[derive(Debug, Default)]
pub(crate) struct Touches(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    entries: HashMap<Bytes, Duration>,
    /// Of the tags of these entries. An entry without the record of one of its tags is none.
    records: HashMap<Bytes, Duration>,
    /// What the tiers were told of last: the hashes of keys, each in a place of its own, and until when
    /// their entries are fresh. Memory cannot know: it may be too small, and where the server watches
    /// keys (`BusKind::Tracking`), one that was prolonged has changed and is dropped.
    told: Vec<(u64, i64)>,
    /// Whether a task is at work.
    taken: bool,
}

/// What became of a key that is to be prolonged.
enum Added {
    /// Somebody has to begin the work.
    First(Turn),
    /// It is done by whoever is at work.
    ToOthers,
    /// Too many wait.
    Not,
}

/// The right and the duty to do what waits. Dropped halfway, it passes to whoever adds the next.
struct Turn(Option<Arc<Touches>>);

impl Turn {
    /// What waits: entries, and records. `None` ends the turn.
    fn next(&mut self) -> Option<[HashMap<Bytes, Duration>; 2]> {
        let mut waiting = self.0.as_ref()?.lock();
        let all = [
            std::mem::take(&mut waiting.entries),
            std::mem::take(&mut waiting.records),
        ];
        if all[0].is_empty() {
            // Under the lock: what is added from now on finds nobody at work.
            waiting.taken = false;
            drop(waiting);
            self.0 = None;
            return None;
        }
        Some(all)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(touches) = &self.0 {
            touches.lock().taken = false;
        }
    }
}

impl Touches {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when the entry of a key is fresh of which the tiers were told, if that is remembered.
    fn last_told(&self, hash: u64) -> i64 {
        let waiting = self.lock();
        let told = waiting.told.get(hash as usize % REMEMBERED);
        told.filter(|(key, _)| *key == hash)
            .map_or(0, |(_, fresh_until)| *fresh_until)
    }

    fn add(
        self: &Arc<Self>,
        told: (u64, i64),
        key: Bytes,
        records: impl Iterator<Item = Bytes>,
        ttl: Duration,
    ) -> Added {
        let mut waiting = self.lock();
        if waiting.entries.len() >= MAX_WAITING || waiting.records.len() >= MAX_WAITING {
            return Added::Not;
        }
        waiting.told.resize(REMEMBERED, (0, 0));
        waiting.told[told.0 as usize % REMEMBERED] = told;
        waiting.entries.insert(key, ttl);
        for record in records {
            let known = waiting.records.entry(record).or_default();
            *known = ttl.max(*known);
        }
        if std::mem::replace(&mut waiting.taken, true) {
            return Added::ToOthers;
        }
        Added::First(Turn(Some(Arc::clone(self))))
    }
}

/// Does what waits in a task of its own. Without a runtime it waits for the next read with one.
fn spawn(tasks: &Arc<Tasks>, mut turn: Turn, tiers: Box<[Arc<Tier>]>, budget: Duration) {
    tasks.spawn(TaskKind::Work, async move {
        while let Some([entries, records]) = turn.next() {
            for (depth, tier) in tiers.iter().enumerate().rev() {
                let mut budget = Budget::new(budget);
                // Records first: an entry must not outlive them.
                let records = (depth + 1 == tiers.len()).then(|| by_time(&records));
                let batches = records.into_iter().flatten().chain(by_time(&entries));
                for (ttl, keys) in batches {
                    // A tier that fails forgets the entry sooner, and that is all.
                    if tier.touch(&mut budget, &keys, ttl).await.is_err() {
                        break;
                    }
                }
            }
        }
    });
}

/// The keys in batches that have one time each.
fn by_time(keys: &HashMap<Bytes, Duration>) -> Vec<(Duration, Vec<Bytes>)> {
    let mut times: HashMap<Duration, Vec<Bytes>> = HashMap::new();
    for (key, ttl) in keys {
        times.entry(*ttl).or_default().push(key.clone());
    }
    let batches = |(ttl, keys): (Duration, Vec<Bytes>)| {
        let batches: Vec<_> = keys
            .chunks(BATCH)
            .map(|keys| (ttl, keys.to_vec()))
            .collect();
        batches
    };
    times.into_iter().flat_map(batches).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(100);

    fn key(number: usize) -> Bytes {
        Bytes::from(number.to_string())
    }

    fn add(touches: &Arc<Touches>, number: usize, ttl: Duration) -> Added {
        let told = (number as u64, 7);
        touches.add(told, key(number), std::iter::once(key(0)), ttl)
    }

    #[test]
    fn one_does_what_all_want_and_whoever_drops_it_leaves_it_to_the_next() {
        let touches = Arc::new(Touches::default());
        let Added::First(turn) = add(&touches, 1, IDLE) else {
            panic!("nobody is at work");
        };
        assert!(matches!(add(&touches, 2, 2 * IDLE), Added::ToOthers));
        drop(turn);
        let Added::First(mut turn) = add(&touches, 3, IDLE) else {
            panic!("nobody is at work any more");
        };
        let [entries, records] = turn.next().unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(records, HashMap::from([(key(0), 2 * IDLE)]));
        assert!(matches!(add(&touches, 4, IDLE), Added::ToOthers));
        assert!(turn.next().is_some() && turn.next().is_none());
        let next = add(&touches, 5, IDLE);
        drop(turn);
        assert!(matches!(add(&touches, 6, IDLE), Added::ToOthers));
        drop(next);
        let mut batches = by_time(&entries);
        batches.sort();
        let lengths = batches.iter().map(|(ttl, keys)| (*ttl, keys.len()));
        assert_eq!(lengths.collect::<Vec<_>>(), [(IDLE, 2), (2 * IDLE, 1)]);
        assert_eq!([1, 2, 9].map(|hash| touches.last_told(hash)), [7, 7, 0]);
    }

    #[test]
    fn what_waits_is_bounded() {
        let touches = Arc::new(Touches::default());
        let Added::First(mut turn) = add(&touches, 1, IDLE) else {
            panic!("nobody is at work");
        };
        let added =
            (2..=MAX_WAITING).filter(|n| matches!(add(&touches, *n, IDLE), Added::ToOthers));
        assert_eq!(added.count(), MAX_WAITING - 1);
        assert!(matches!(add(&touches, MAX_WAITING + 1, IDLE), Added::Not));
        assert!(turn.next().is_some());
        assert!(matches!(
            add(&touches, MAX_WAITING + 1, IDLE),
            Added::ToOthers
        ));
    }
}
