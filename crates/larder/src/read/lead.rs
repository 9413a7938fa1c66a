//! What a leader does: it looks once more, in memory and in the tiers, and loads what is nowhere.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use super::probe::in_memory;
use crate::answer::{Answer, Load, Loaded};
use crate::cache::Inner;
use crate::entry::{Held, Lived};
use crate::error::BoxError;
use crate::fence::Standing;
use crate::fill::{FillGuard, Landed, Origin};
use crate::key::{self, AsKey, CacheKey};
use crate::loader;
use crate::look::{Seeking, look};
use crate::options::{Isolation, Tiers};
use crate::policy::{self, Decision};
use crate::scope::{self, Loading, Surroundings};
use crate::stats::Count;
use crate::store::LeaseToken;
use crate::tasks::TaskKind;
use crate::tier::Budget;
use crate::write;

/// Boards the refresh of an entry that was `seen`, stale or fresh; `None` if somebody leads one
/// already, or if another entry is there by now.
pub(super) fn board_refresh<K, V, Q>(
    cache: &Arc<Inner<K, V>>,
    tiers: Tiers,
    hash: u64,
    key: &Q,
    seen: Option<Lived>,
    token: LeaseToken,
) -> Option<FillGuard<K, V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let store_key = key::encode(&cache.prefix, key).ok()?;
    let mark = cache.fence.mark(hash);
    let (seat, _wait) = cache.loads(tiers).board(hash, key, mark);
    let mut fill =
        FillGuard::begin(Arc::clone(cache), seat?, hash, store_key, token).taken_over_at(mark);
    let now = cache.clock().monotonic();
    let (held, _) = in_memory(cache, Tiers::Memory, hash, key).filter(|(held, standing)| {
        *standing == Standing::Current && seen.is_some_and(|seen| seen.is_of(held))
    })?;
    if now < held.times.serve_until {
        // Whoever comes while it is fresh finds it in memory, and afterwards it is too old.
        fill.renews(held);
    } else {
        fill.publish(Landed::stale(held.clone(), Origin::Memory));
        fill.saw_stale(held);
    }
    cache.count(Count::Refresh, 1);
    Some(fill)
}

/// Refreshes an entry that was `seen` behind the caller's back, unless somebody does so already.
pub(super) fn refresh<K, V, Q, F, Fut, A, E>(
    cache: &Arc<Inner<K, V>>,
    tiers: Tiers,
    hash: u64,
    key: &Q,
    seen: Option<Lived>,
    load: F,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
    F: FnOnce(Load<K, V>) -> Fut,
    Fut: Future<Output = Result<A, E>> + Send + 'static,
    A: Answer<V>,
    E: Into<BoxError> + Send + 'static,
{
    let token = LeaseToken::random();
    if let Some(fill) = board_refresh(cache, tiers, hash, key, seen, token) {
        lead_apart(
            fill,
            tiers,
            Seeking::of::<V, A>(),
            load,
            key.to_owned(),
            Surroundings::none(),
        );
    }
}

/// Leads a fill in a task of its own: behind everybody's back, or, within the surroundings of a
/// caller, for one that waits and may leave at any time.
pub(super) fn lead_apart<K, V, F, Fut, A, E>(
    mut fill: FillGuard<K, V>,
    tiers: Tiers,
    seeking: Seeking,
    load: F,
    key: K,
    waits: Surroundings,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
    F: FnOnce(Load<K, V>) -> Fut,
    Fut: Future<Output = Result<A, E>> + Send + 'static,
    A: Answer<V>,
    E: Into<BoxError> + Send + 'static,
{
    // The closure may borrow from the caller, so it is called here; its future runs in the task.
    match loader::make(|| single(load, fill.load(key))) {
        Ok(future) => lead_behind(vec![fill], tiers, seeking, future, waits),
        Err(error) => write::fail(vec![fill], &error),
    }
}

/// Leads fills in a task of their own, within the surroundings of whoever waits for them. `future`
/// loads for all of them, because it is made before anybody looks whether others have loaded some.
pub(super) fn lead_behind<K, V, Fut>(
    fills: Vec<FillGuard<K, V>>,
    tiers: Tiers,
    seeking: Seeking,
    future: Fut,
    waits: Surroundings,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<Loaded<V>>, BoxError>> + Send + 'static,
{
    let Some(first) = fills.first() else { return };
    let tasks = Arc::clone(&first.cache().shared.tasks);
    let all = store_keys(&fills);
    let lead = lead(fills, tiers, seeking, |left| {
        let left = store_keys(left);
        async move {
            let loaded = all.into_iter().zip(future.await?);
            let mut loaded: HashMap<Bytes, Loaded<V>> = loaded.collect();
            Ok(left.iter().filter_map(|key| loaded.remove(key)).collect())
        }
    });
    tasks.spawn(TaskKind::Work, waits.run(lead));
}

fn store_keys<K, V>(fills: &[FillGuard<K, V>]) -> Vec<Bytes>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let keys = fills.iter().map(|fill| fill.store_key().clone());
    keys.collect()
}

/// Leads fills: memory once more, then pending writes, then the tiers. What is in none of them
/// is loaded in a task of its own, so that no caller's cancellation can stop a load that others
/// wait for.
pub(super) async fn lead<K, V, Fut>(
    fills: Vec<FillGuard<K, V>>,
    tiers: Tiers,
    seeking: Seeking,
    load: impl FnOnce(&mut [FillGuard<K, V>]) -> Fut,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<Loaded<V>>, BoxError>> + Send + 'static,
{
    let Some(first) = fills.first() else { return };
    let cache = Arc::clone(first.cache());
    let loading = Loading::here(&cache.name, store_keys(&fills));
    let mut budget = Budget::new(cache.shared.tier_budget);
    let mut fills = look_above(&cache, fills, tiers, seeking);
    if tiers != Tiers::Memory {
        fills = look(fills, seeking, &mut budget).await;
    }
    let mut fills = serve_unverified(&cache, fills, seeking);
    if fills.is_empty() {
        return;
    }
    match loader::make(|| load(&mut fills)) {
        Ok(future) => {
            let tasks = Arc::clone(&cache.shared.tasks);
            tasks.spawn(
                TaskKind::Work,
                conduct(cache, fills, loading.run(future), budget),
            );
        }
        Err(error) => {
            write::give_back(&cache, fills.iter_mut().collect(), &mut budget).await;
            write::fail(fills, &error);
        }
    }
}

/// Serves the entries in memory that nobody could be asked about, where that is wanted, as if they
/// were not suspect; the fills that go on come back.
pub(super) fn serve_unverified<K, V>(
    cache: &Arc<Inner<K, V>>,
    fills: Vec<FillGuard<K, V>>,
    seeking: Seeking,
) -> Vec<FillGuard<K, V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    if cache.rules.isolation == Isolation::Load {
        return fills;
    }
    let now = cache.clock().monotonic();
    let mut rest = Vec::with_capacity(fills.len());
    for mut fill in fills {
        let Some(held) = fill.unverified() else {
            rest.push(fill);
            continue;
        };
        let usable = seeking.accepts(&held) && fill.is_content_with(&held, now);
        let decision = policy::decide(&held.times, Standing::Current, now, None);
        match decision {
            Decision::Forget => {}
            // It may still stand in for a load that fails.
            Decision::Fetch => fill.saw_stale(held),
            _ if !usable => fill.saw_stale(held),
            Decision::ServeAndRefresh if seeking != Seeking::Peek => {
                // Everybody is served; this fill goes on and refreshes behind their backs.
                cache.count(Count::Unverified, 1);
                write::show_stale(cache, &mut fill, held, Origin::Memory);
            }
            Decision::Serve | Decision::ServeStale | Decision::ServeAndRefresh => {
                cache.count(Count::Unverified, 1);
                let landed = if decision == Decision::Serve {
                    Landed::fresh(held, Origin::Memory)
                } else {
                    Landed::stale(held, Origin::Memory)
                };
                fill.land(Ok(landed));
                continue;
            }
        }
        rest.push(fill);
    }
    rest
}

/// Looks where an answer may have come up since the caller's probe: in memory, where another
/// flight may have just landed, and among the writes that have not reached the tiers yet.
pub(super) fn look_above<K, V>(
    cache: &Arc<Inner<K, V>>,
    fills: Vec<FillGuard<K, V>>,
    tiers: Tiers,
    seeking: Seeking,
) -> Vec<FillGuard<K, V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let now = cache.clock().monotonic();
    let mut rest = Vec::with_capacity(fills.len());
    for mut fill in fills {
        let mut held = fill
            .key()
            .and_then(|key| in_memory(cache, tiers, fill.hash(), key));
        if let Some((suspect, _)) = held.take_if(|(_, standing)| *standing == Standing::Suspect) {
            fill.suspects(suspect);
        }
        let is_old = |held: &Held<V>| now >= held.times.serve_until || fill.is_to_renew(held);
        if let Some((old, _)) = held.take_if(|(held, _)| is_old(held)) {
            fill.saw_stale(old);
        }
        let pending = || cache.overlay.get(fill.store_key());
        match held
            .map(|(held, _)| held)
            .or_else(pending)
            .filter(|held| seeking.accepts(held))
        {
            Some(held) => fill.land(Ok(Landed::fresh(held, Origin::Memory))),
            None => rest.push(fill),
        }
    }
    rest
}

/// Whether what is loaded goes to those who must not get what was not heard of here: other processes,
/// by way of the lowest tier, and a caller who says so.
fn is_for_others<K, V>(fill: &FillGuard<K, V>) -> bool
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let lowest = fill.cache().tiers.len().saturating_sub(1);
    fill.is_strict() || (fill.cache().is_shared() && fill.holds_lease(lowest))
}

/// Runs the loader and brings what it says to everybody who waits.
async fn conduct<K, V, Fut>(
    cache: Arc<Inner<K, V>>,
    mut fills: Vec<FillGuard<K, V>>,
    load: Fut,
    mut budget: Budget,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<Loaded<V>>, BoxError>> + Send + 'static,
{
    let clock = cache.clock();
    let for_others = fills.iter().any(is_for_others);
    let load = async move {
        if for_others {
            scope::for_others(load).await
        } else {
            load.await
        }
    };
    let deadline = cache.rules.load_deadline;
    let (loaded, load_ms) = loader::run(&**clock, &cache.turns, deadline, load).await;
    cache.count(Count::LoadMillis, load_ms);
    match loaded {
        Ok(loaded) => {
            let loads = fills.into_iter().zip(loaded).collect();
            write::commit(&cache, loads, load_ms, &mut budget).await;
        }
        Err(error) => {
            write::give_back(&cache, fills.iter_mut().collect(), &mut budget).await;
            write::fail(fills, &error);
        }
    }
}

/// The load of one key, in the shape of a batch.
pub(super) fn single<K, V, F, Fut, A, E>(
    load: F,
    given: Load<K, V>,
) -> impl Future<Output = Result<Vec<Loaded<V>>, BoxError>> + Send + 'static + use<K, V, F, Fut, A, E>
where
    K: 'static,
    V: Send + Sync + 'static,
    F: FnOnce(Load<K, V>) -> Fut,
    Fut: Future<Output = Result<A, E>> + Send + 'static,
    A: Answer<V>,
    E: Into<BoxError> + Send + 'static,
{
    // In a box: a loader that asks caches is part of a future that is a loader itself, and each layer
    // between them would move all that is inside.
    let answer = Box::pin(load(given));
    async move {
        let (answer, inherited) = scope::inherit(answer).await;
        let mut loaded = answer.map_err(Into::into)?.into_loaded();
        loaded.inherited.extend(inherited);
        Ok(vec![loaded])
    }
}

/// The load of many keys. Keys that the loader does not mention are absent.
pub(super) fn batch<K, V, F, Fut, I, A, E>(
    load: &F,
    fills: &[FillGuard<K, V>],
) -> impl Future<Output = Result<Vec<Loaded<V>>, BoxError>> + Send + 'static + use<K, V, F, Fut, I, A, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    F: Fn(Vec<K>) -> Fut,
    Fut: Future<Output = Result<I, E>> + Send + 'static,
    I: IntoIterator<Item = (K, A)>,
    A: Answer<V>,
    E: Into<BoxError> + Send + 'static,
{
    let keys: Vec<K> = fills
        .iter()
        .filter_map(|fill| fill.key().cloned())
        .collect();
    let answers = Box::pin(load(keys.clone()));
    async move {
        let (answers, inherited) = scope::inherit(answers).await;
        let answers = answers.map_err(Into::into)?.into_iter();
        let mut found: HashMap<K, Loaded<V>> = answers
            .map(|(key, answer)| (key, answer.into_loaded()))
            .collect();
        let loaded = keys.iter().map(|key| {
            let mut loaded = found.remove(key).unwrap_or_else(Loaded::absent);
            // Which of the reads went into which value is not known.
            loaded.inherited.extend(inherited.clone());
            loaded
        });
        Ok(loaded.collect())
    }
}
