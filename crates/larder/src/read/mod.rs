//! The way of a read, from the call to the answer. Nothing below this module calls back into it.
//!
//! ```text
//! get_or_load ── probe memory ──► serve, and refresh behind the caller's back if within grace
//!     │ miss
//!     ▼
//! board the flight of the key ── somebody leads ──► wait for what they land
//!     │ leader
//!     ▼
//! lead: memory once more → pending writes → each tier, with its lease
//!     │ nowhere
//!     ▼
//! conduct (its own task): run the loader ──► write::commit, or write::fail
//! ```

pub(crate) mod ahead;
mod alone;
mod call;
mod lead;
mod probe;
mod sources;

use std::future::Future;
use std::sync::Arc;

use self::call::{Call, Missed, fetch_many};
use self::lead::{batch, board_refresh, lead_behind, refresh};
use self::probe::{Probe, probe, unverified_in_memory};
use self::sources::{makes_for_others, note_absence};
use crate::answer::{Answer, Load};
use crate::cache::Inner;
use crate::error::{BoxError, Error, Result};
use crate::key::{AsKey, CacheKey};
use crate::loader;
use crate::look::Seeking;
use crate::options::{Read, Tiers};
use crate::outcome::Reason;
use crate::scope::Surroundings;
use crate::store::LeaseToken;
use crate::tier::{Budget, within};
use crate::write;

pub(crate) use self::alone::load_in_memory;
pub(crate) use self::call::Unfit;
pub(crate) use self::probe::{Reply, Story};

/// Whether what this process has heard may not be enough for a read.
fn must_catch_up<K, V>(cache: &Inner<K, V>, read: &Read) -> bool
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    read.after.is_some() || makes_for_others(cache)
}

/// `Cache::get_in_memory`: memory alone, no runtime needed.
pub(crate) fn get_in_memory<K, V, Q>(cache: &Inner<K, V>, key: &Q) -> Option<Arc<V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let hash = cache.memory.hash(key);
    let mut reply = Reply::nothing(Reason::NotInMemory);
    match probe(cache, &Read::PLAIN, hash, key, &mut reply) {
        Probe::Serve | Probe::Refresh => {}
        Probe::Fetch(Reason::Suspect) => reply = unverified_in_memory(cache, key),
        Probe::Fetch(_) => {}
    }
    if reply.story.entry.is_none() {
        note_absence(cache, key);
    }
    cache.exit(hash, key, &reply.story);
    reply.value
}

/// `Cache::get`: memory, then the tiers. Never loads.
pub(crate) async fn get<K, V, Q>(cache: &Arc<Inner<K, V>>, read: &Read, key: &Q) -> Result<Reply<V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let caught_up;
    let read = if must_catch_up(cache, read) {
        caught_up = Box::pin(catch_up(cache, *read)).await;
        &caught_up
    } else {
        read
    };
    let hash = cache.memory.hash(key);
    let reason = {
        let mut reply = Reply::nothing(Reason::NotInMemory);
        match probe(cache, read, hash, key, &mut reply) {
            Probe::Serve | Probe::Refresh => {
                cache.exit(hash, key, &reply.story);
                return Ok(reply);
            }
            Probe::Fetch(reason) => reason,
        }
    };
    let call = Call::new(cache, read, hash, key, reason);
    let reply = call.patiently(Seeking::Peek, Box::pin(call.peek())).await;
    cache.exit_with(hash, key, &reply);
    reply
}

/// `Cache::get_or_load`: memory, then the tiers, then the loader.
pub(crate) async fn get_or_load<K, V, Q, F, Fut, A, E>(
    cache: &Arc<Inner<K, V>>,
    read: &Read,
    key: &Q,
    load: F,
) -> Result<(A::Out, Story)>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
    F: FnOnce(Load<K, V>) -> Fut,
    Fut: Future<Output = Result<A, E>> + Send + 'static,
    A: Answer<V>,
    E: Into<BoxError> + Send + 'static,
{
    let caught_up;
    let read = if must_catch_up(cache, read) {
        caught_up = Box::pin(catch_up(cache, *read)).await;
        &caught_up
    } else {
        read
    };
    let hash = cache.memory.hash(key);
    let reason = {
        let mut reply = Reply::nothing(Reason::NotInMemory);
        match probe(cache, read, hash, key, &mut reply) {
            // A cached "absent" is no answer for a loader that always has a value.
            Probe::Serve | Probe::Refresh
                if reply.value.is_none() && Seeking::of::<V, A>() == Seeking::Value =>
            {
                Reason::TooOld
            }
            Probe::Serve => {
                cache.exit(hash, key, &reply.story);
                return answer::<V, A>(reply);
            }
            Probe::Refresh => {
                refresh(cache, read.tiers, hash, key, reply.story.entry, load);
                cache.exit(hash, key, &reply.story);
                return answer::<V, A>(reply);
            }
            Probe::Fetch(reason) => reason,
        }
    };
    let call = Call::new(cache, read, hash, key, reason);
    let slow = Box::pin(call.fetch(load));
    let reply = call.patiently(Seeking::of::<V, A>(), slow).await;
    cache.exit_with(hash, key, &reply);
    answer::<V, A>(reply?)
}

/// A read that is to see what a token stands for: once everything up to it was heard, memory may
/// answer; if that takes longer than the tiers may take, memory is passed over, and so is whatever
/// else depends on having heard. So it is for a read inside a load whose result goes to others: they
/// would read there what was made from something that they know to be gone.
async fn catch_up<K, V>(cache: &Inner<K, V>, read: Read) -> Read
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    if !makes_for_others(cache) {
        let Some(token) = read.after else { return read };
        let mut budget = Budget::new(cache.shared.tier_budget);
        let heard = cache.shared.hears(token, &mut budget).await;
        if heard && !cache.shared.is_forgetting() {
            return read;
        }
    }
    match read.tiers {
        Tiers::Memory => read,
        Tiers::All | Tiers::Shared => Read {
            tiers: Tiers::Shared,
            unheard: true,
            ..read
        },
    }
}

/// The reply in the shape that this kind of loader promises.
fn answer<V, A: Answer<V>>(reply: Reply<V>) -> Result<(A::Out, Story)> {
    let story = reply.story;
    A::out(reply.value)
        .map(|out| (out, story))
        .ok_or_else(Error::no_value)
}

/// `Cache::get_or_load_many`: one probe per key, one look in each tier for all that memory does
/// not have, one load for all that is nowhere.
pub(crate) async fn get_or_load_many<K, V, F, Fut, I, A, E>(
    cache: &Arc<Inner<K, V>>,
    read: &Read,
    keys: &[K],
    load: F,
) -> Result<Vec<Option<Arc<V>>>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    F: Fn(Vec<K>) -> Fut,
    Fut: Future<Output = Result<I, E>> + Send + 'static,
    I: IntoIterator<Item = (K, A)>,
    A: Answer<V>,
    E: Into<BoxError> + Send + 'static,
{
    let values = get_each(cache, read, keys, Unfit::FailsAll, load).await;
    values.into_iter().collect()
}

/// The same with an answer for each key, so that the error of one is no other's.
pub(crate) async fn get_each<K, V, F, Fut, I, A, E>(
    cache: &Arc<Inner<K, V>>,
    read: &Read,
    keys: &[K],
    unfit: Unfit,
    load: F,
) -> Vec<Result<Option<Arc<V>>>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    F: Fn(Vec<K>) -> Fut,
    Fut: Future<Output = Result<I, E>> + Send + 'static,
    I: IntoIterator<Item = (K, A)>,
    A: Answer<V>,
    E: Into<BoxError> + Send + 'static,
{
    let caught_up;
    let read = if must_catch_up(cache, read) {
        caught_up = Box::pin(catch_up(cache, *read)).await;
        &caught_up
    } else {
        read
    };
    let token = LeaseToken::random();
    let mut values = Vec::with_capacity(keys.len());
    let (mut missed, mut refreshing) = (Vec::new(), Vec::new());
    for (at, key) in keys.iter().enumerate() {
        let hash = cache.memory.hash(key);
        let mut reply = Reply::nothing(Reason::NotInMemory);
        match probe(cache, read, hash, key, &mut reply) {
            Probe::Serve => {}
            Probe::Refresh => {
                refreshing.extend(board_refresh(
                    cache,
                    read.tiers,
                    hash,
                    key,
                    reply.story.entry,
                    token,
                ));
            }
            Probe::Fetch(reason) => {
                missed.push((at, Call::new(cache, read, hash, key, reason)));
                values.push(Ok(None));
                continue;
            }
        }
        cache.exit(hash, key, &reply.story);
        values.push(Ok(reply.value));
    }
    if !refreshing.is_empty() {
        match loader::make(|| batch(&load, &refreshing)) {
            Ok(future) => {
                let (tiers, nobody) = (read.tiers, Surroundings::none());
                lead_behind(refreshing, tiers, Seeking::Entry, future, nobody);
            }
            Err(error) => write::fail(refreshing, &error),
        }
    }
    if !missed.is_empty() {
        let replies = fetch_patiently(cache, read, &missed, token, unfit, load).await;
        for ((at, call), reply) in missed.iter().zip(replies) {
            cache.exit_with(call.hash, call.key, &reply);
            values[*at] = reply.map(|reply| reply.value);
        }
    }
    values
}

/// Fetches what memory did not answer, and waits as long as the caller wants to. Then it serves
/// what memory holds, where that may be.
async fn fetch_patiently<K, V, F, Fut, I, A, E>(
    cache: &Arc<Inner<K, V>>,
    read: &Read,
    missed: &[Missed<'_, K, V>],
    token: LeaseToken,
    unfit: Unfit,
    load: F,
) -> Vec<Result<Reply<V>>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    F: Fn(Vec<K>) -> Fut,
    Fut: Future<Output = Result<I, E>> + Send + 'static,
    I: IntoIterator<Item = (K, A)>,
    A: Answer<V>,
    E: Into<BoxError> + Send + 'static,
{
    let fetched = Box::pin(fetch_many(cache, *read, missed, token, unfit, load));
    let fetched = match read.deadline {
        None => fetched.await,
        Some(deadline) => match within(&**cache.clock(), deadline, fetched).await {
            Some(fetched) => fetched,
            None => {
                let late = || Error::out_of_patience(deadline);
                let stand_in =
                    |(_, call): &Missed<'_, K, V>| call.stand_in(Seeking::Entry).ok_or_else(late);
                Ok(missed.iter().map(stand_in).collect())
            }
        },
    };
    // What stops all of them, as the end of the larder does, is the error of each.
    fetched.unwrap_or_else(|error| missed.iter().map(|_| Err(error.clone())).collect())
}
