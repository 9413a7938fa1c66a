//! A read of memory alone that loads in its caller's thread.

use std::sync::Arc;

use super::probe::{Probe, Reply, Story, possible_stand_in, probe, state_of};
use super::sources::{note_held, note_memory_alone};
use crate::answer::Loaded;
use crate::cache::Inner;
use crate::entry::Held;
use crate::error::Result;
use crate::fence::Standing;
use crate::fill::{Landed, Origin};
use crate::key::{AsKey, CacheKey};
use crate::options::Read;
use crate::outcome::{Reason, State};
use crate::scope::{self, Inherited};
use crate::stats::Count;
use crate::write;

/// Looks in memory, and loads with neither a runtime nor a flight: callers that come at once may
/// each load. `answer` says what the caller gets for an entry, and `None` for one that is no answer
/// here; `load` gives what to keep, and what this caller gets.
///
/// What is invalidated while it is loaded is given to the caller and not kept.
pub(crate) fn load_in_memory<K, V, Q, T, E>(
    cache: &Inner<K, V>,
    key: &Q,
    answer: impl Fn(Option<Arc<V>>) -> Option<T>,
    load: impl FnOnce() -> Result<(Loaded<V>, T), E>,
) -> Result<T, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let hash = cache.memory.hash(key);
    let mark = cache.fence.mark(hash);
    let mut reply = Reply::nothing(Reason::NotInMemory);
    let (probed, noted) = probe_aside(cache, hash, key, &mut reply);
    let reason = match probed {
        Probe::Refresh if reply.story.state == State::Stale => {
            // Nobody is served with it, so that it may go while the load runs.
            reply.value = None;
            Reason::Refreshing
        }
        // Nothing refreshes it in the background, and it is not yet time to wait for a load.
        Probe::Serve | Probe::Refresh => {
            if let Some(value) = answer(reply.value) {
                scope::extend(noted);
                cache.exit(hash, key, &reply.story);
                return Ok(value);
            }
            Reason::InMemory
        }
        Probe::Fetch(reason) => reason,
    };
    let clock = cache.clock();
    let began = clock.monotonic();
    let (loaded, inherited) = scope::inherit_now(load);
    let load_ms = clock.monotonic().saturating_sub(began);
    cache.count(Count::Load, 1);
    cache.count(Count::LoadMillis, load_ms);
    match loaded {
        Ok((mut loaded, value)) => {
            cache.exit(hash, key, &Story::missing(reason));
            loaded.inherited.extend(inherited);
            let sources = scope::is_open().then(|| loaded.inherited.clone());
            match write::keep_in_memory(cache, mark, key, loaded, load_ms) {
                Some(landed) => note_made(cache, key, &landed),
                // Whoever makes something of what cannot be kept makes it of its sources.
                None => sources.into_iter().for_each(scope::extend),
            }
            Ok(value)
        }
        Err(error) => {
            cache.count(Count::LoadFailed, 1);
            if let Some((value, held)) = stand_in(cache, hash, key, &answer) {
                write::throttle_in_memory(cache, mark, hash, key);
                note_held(cache, key, &held);
                note_memory_alone(cache);
                cache.count(Count::StoodIn, 1);
                let state = state_of(&held, clock.monotonic());
                let story = Story::of(&held, Origin::StandIn, state, Reason::LoadFailed);
                cache.exit(hash, key, &story);
                return Ok(value);
            }
            let Some(value) = default(cache, key).and_then(&answer) else {
                cache.count(Count::ReadFailed, 1);
                return Err(error);
            };
            let story = Story {
                origin: Origin::StandIn,
                state: State::NotStored,
                ..Story::missing(reason)
            };
            cache.exit(hash, key, &story);
            Ok(value)
        }
    }
}

/// Looks in memory. What there is to note waits for whoever serves it: what a load renews is not made
/// of what it renewed.
fn probe_aside<K, V, Q>(
    cache: &Inner<K, V>,
    hash: u64,
    key: &Q,
    reply: &mut Reply<V>,
) -> (Probe, Inherited)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let mut probe = || probe(cache, &Read::PLAIN, hash, key, reply);
    if scope::is_open() {
        scope::inherit_now(probe)
    } else {
        (probe(), Inherited::default())
    }
}

/// What memory holds by now for a caller whose load failed: what was invalidated meanwhile is gone.
fn stand_in<K, V, Q, T>(
    cache: &Inner<K, V>,
    hash: u64,
    key: &Q,
    answer: impl Fn(Option<Arc<V>>) -> Option<T>,
) -> Option<(T, Held<V>)>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let now = cache.clock().monotonic();
    let held = possible_stand_in(cache, &Read::PLAIN, hash, key, now);
    let (held, _) = held.filter(|(_, standing)| *standing == Standing::Current)?;
    Some((answer(held.value.clone())?, held))
}

/// What the cache has for a caller whose load failed. Nothing made from it is kept.
fn default<K, V, Q>(cache: &Inner<K, V>, key: &Q) -> Option<Option<Arc<V>>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    cache.fallback.as_ref()?;
    let landed = write::default(cache, &key.to_owned())?;
    scope::note_refused();
    landed.held.map(|held| held.value)
}

/// Leaves a note of what was just loaded.
fn note_made<K, V, Q>(cache: &Inner<K, V>, key: &Q, landed: &Landed<V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    if let Some(held) = &landed.held {
        note_held(cache, key, held);
    }
    if landed.is_fenced {
        scope::note_refused();
    }
    note_memory_alone(cache);
}
