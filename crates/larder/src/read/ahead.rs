//! Fetching and renewing ahead of need: no caller waits for a value here, and nothing is counted as a
//! read.

use std::future::Future;
use std::sync::Arc;

use super::call::{Call, Unfit, fetch_many, refuse_circle};
use super::lead::{board_refresh, lead, single};
use super::probe::in_memory;
use crate::answer::{Load, Loaded};
use crate::cache::Inner;
use crate::clock::Millis;
use crate::entry::{Held, Times};
use crate::error::{BoxError, Result};
use crate::fence::Standing;
use crate::fill::{Landed, Origin};
use crate::flight::Arrival;
use crate::key::CacheKey;
use crate::look::Seeking;
use crate::options::{Read, Tiers};
use crate::outcome::Reason;
use crate::store::LeaseToken;

/// What became of an attempt to renew an entry.
pub(crate) enum Renewal<V> {
    /// It was loaded.
    Renewed(Landed<V>),
    /// The load failed, and the entry stands as it was.
    Failed,
    /// Somebody else does so at this moment.
    Elsewhere,
    /// Memory has no such entry.
    NotThere,
}

/// What `look` makes of the entry that memory has and may serve somehow. No read of it.
fn glance<K, V, T>(
    cache: &Inner<K, V>,
    hash: u64,
    key: &K,
    look: impl FnOnce(&Held<V>, Millis) -> T,
) -> Option<T>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let now = cache.clock().recent();
    let seen = |held: &Held<V>| {
        let is_current = cache.fence.standing(held, now) == Standing::Current;
        is_current.then(|| look(held, now))
    };
    cache.memory.glance(hash, key, now, seen).flatten()
}

/// Whether memory has this key fresh.
pub(crate) fn is_fresh<K, V>(cache: &Inner<K, V>, hash: u64, key: &K) -> bool
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let fresh = |held: &Held<V>, now| now < held.times.serve_until;
    glance(cache, hash, key, fresh).unwrap_or(false)
}

/// The times of the entry that memory has, fresh or not.
pub(crate) fn times<K, V>(cache: &Inner<K, V>, key: &K) -> Option<Times>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let hash = cache.memory.hash(key);
    glance(cache, hash, key, |held, _| held.times)
}

/// The same as it is for an entry that nobody needs to prolong: see [`Held::times_of_all`].
pub(crate) fn times_of_all<K, V>(cache: &Inner<K, V>, key: &K) -> Option<Times>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let hash = cache.memory.hash(key);
    glance(cache, hash, key, |held, _| held.times_of_all())
}

/// The value, or the absence, that memory has and may serve somehow.
pub(crate) fn what_stands<K, V>(cache: &Inner<K, V>, key: &K) -> Option<Option<Arc<V>>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let hash = cache.memory.hash(key);
    glance(cache, hash, key, |held, _| held.value.clone())
}

/// Fetches keys from the tiers or by `load`. What memory has fresh lands at once.
pub(crate) async fn fetch_each<K, V, F, Fut, I>(
    cache: &Arc<Inner<K, V>>,
    keys: &[K],
    load: F,
) -> Vec<Result<()>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    F: Fn(Vec<K>) -> Fut,
    Fut: Future<Output = Result<I, BoxError>> + Send + 'static,
    I: IntoIterator<Item = (K, Loaded<V>)>,
{
    let calls: Vec<_> = keys
        .iter()
        .map(|key| call(cache, key))
        .enumerate()
        .collect();
    let token = LeaseToken::random();
    let fetched = fetch_many(cache, Read::PLAIN, &calls, token, Unfit::FailsAlone, load);
    match Box::pin(fetched).await {
        Ok(replies) => replies.into_iter().map(|reply| reply.map(drop)).collect(),
        Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
    }
}

/// Fetches what the tiers have of a key, or loads it.
pub(crate) async fn fetch<K, V, F, Fut>(
    cache: &Arc<Inner<K, V>>,
    key: &K,
    load: F,
) -> Result<Option<Arc<V>>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    F: FnOnce(Load<K, V>) -> Fut,
    Fut: Future<Output = Result<Loaded<V>, BoxError>> + Send + 'static,
{
    let reply = Box::pin(call(cache, key).fetch(load)).await?;
    Ok(reply.value)
}

/// Fetches what the tiers have of a key.
pub(crate) async fn peek<K, V>(cache: &Arc<Inner<K, V>>, key: &K) -> Result<()>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    Box::pin(call(cache, key).peek()).await.map(drop)
}

fn call<'a, K, V>(cache: &'a Arc<Inner<K, V>>, key: &'a K) -> Call<'a, K, V, K>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let hash = cache.memory.hash(key);
    Call::new(cache, &Read::PLAIN, hash, key, Reason::NotInMemory)
}

/// Loads a key whose entry is in memory, fresh or not, under the lease of the tiers; everybody is
/// served with the old one meanwhile.
pub(crate) async fn renew<K, V, F, Fut>(
    cache: &Arc<Inner<K, V>>,
    key: &K,
    load: F,
) -> Result<Renewal<V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    F: FnOnce(Load<K, V>) -> Fut,
    Fut: Future<Output = Result<Loaded<V>, BoxError>> + Send + 'static,
{
    cache.shared.check_ready()?;
    refuse_circle(cache, key)?;
    let hash = cache.memory.hash(key);
    let held = in_memory(cache, Tiers::Memory, hash, key);
    let Some((held, Standing::Current)) = held else {
        return Ok(Renewal::NotThere);
    };
    let (seen, token) = (Some(held.lived()), LeaseToken::random());
    let Some(fill) = board_refresh(cache, Tiers::All, hash, key, seen, token) else {
        return Ok(Renewal::Elsewhere);
    };
    let (seat, mut wait) = cache.loads(Tiers::All).board(hash, key, fill.mark());
    // The flight is led by the fill; a seat here would be that of another one.
    drop(seat);
    wait.insist();
    lead(vec![fill], Tiers::All, Seeking::Entry, |fills| {
        let given = fills[0].load(key.clone());
        single(load, given)
    })
    .await;
    Ok(match wait.await {
        Arrival::Landed(landing) => {
            let landed = landing?;
            match landed.origin {
                Origin::Loader | Origin::Tier(_) => Renewal::Renewed(landed),
                _ => Renewal::Failed,
            }
        }
        // The fill was given up: another process does so.
        Arrival::Lead(_seat) => Renewal::Elsewhere,
    })
}

/// Waits for whoever loads this key at this moment.
pub(crate) async fn join<K, V>(cache: &Arc<Inner<K, V>>, key: &K) -> Result<()>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    refuse_circle(cache, key)?;
    let hash = cache.memory.hash(key);
    let mark = cache.fence.mark(hash);
    let (seat, mut wait) = cache.loads(Tiers::All).board(hash, key, mark);
    if seat.is_some() {
        return Ok(());
    }
    wait.insist();
    match wait.await {
        Arrival::Landed(landing) => landing.map(drop),
        Arrival::Lead(_seat) => Ok(()),
    }
}
