//! A read of memory alone that loads in its caller's thread.

use std::sync::Arc;

use super::probe::{Probe, Story, probe};
use super::sources::{note_held, note_memory_alone};
use crate::answer::Loaded;
use crate::cache::Inner;
use crate::error::Result;
use crate::fill::Landed;
use crate::key::{AsKey, CacheKey};
use crate::options::Read;
use crate::outcome::Reason;
use crate::scope;
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
    answer: impl FnOnce(Option<Arc<V>>) -> Option<T>,
    load: impl FnOnce() -> Result<(Loaded<V>, T), E>,
) -> Result<T, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let hash = cache.memory.hash(key);
    let mark = cache.fence.mark(hash);
    let (held, reason) = match probe(cache, &Read::PLAIN, hash, key) {
        Probe::Serve(reply) => (Some(reply), Reason::InMemory),
        // Nothing refreshes it in the background: it is there in case the load fails.
        Probe::Refresh(reply) => (Some(reply), Reason::Refreshing),
        Probe::Fetch(reason) => (None, reason),
    };
    let mut answer = held.and_then(|reply| Some((answer(reply.value)?, reply.story)));
    if let Some((value, story)) = answer.take_if(|_| reason == Reason::InMemory) {
        cache.exit(hash, key, &story);
        return Ok(value);
    }
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
            if let Some(landed) = write::keep_in_memory(cache, mark, key, loaded, load_ms) {
                note_made(cache, key, &landed);
            }
            Ok(value)
        }
        Err(error) => {
            cache.count(Count::LoadFailed, 1);
            let Some((value, story)) = answer else {
                cache.count(Count::ReadFailed, 1);
                return Err(error);
            };
            cache.count(Count::StoodIn, 1);
            cache.exit(hash, key, &story);
            Ok(value)
        }
    }
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
