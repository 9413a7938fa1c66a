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

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use crate::answer::{Answer, Load, Loaded};
use crate::cache::Inner;
use crate::entry::{Held, Times};
use crate::error::{BoxError, Error, Result};
use crate::fill::{FillGuard, Landed, Landing, Origin};
use crate::flight::{Arrival, Seat};
use crate::key::{self, AsKey, CacheKey};
use crate::loader;
use crate::look::{Seeking, look};
use crate::options::{Read, Tiers};
use crate::outcome::{Reason, State};
use crate::policy::{self, Decision};
use crate::stats::Count;
use crate::store::LeaseToken;
use crate::tasks::TaskKind;
use crate::tier::{Budget, within};
use crate::write;

/// The answer to a read, with what is needed to tell its story.
pub(crate) struct Reply<V> {
    pub value: Option<Arc<V>>,
    pub story: Story,
}

/// What a read can say of itself, cheap enough to keep on every hit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Story {
    pub origin: Origin,
    pub state: State,
    pub reason: Reason,
    /// Whether somebody else's flight brought it.
    pub shared: bool,
    /// When the value was filled and until when it is fresh; `None` without an entry.
    pub times: Option<Times>,
    pub load_ms: u64,
}

impl Story {
    /// The story of a read that found nothing.
    fn missing(reason: Reason) -> Self {
        let (origin, state) = (Origin::Nobody, State::Missing);
        Self {
            origin,
            state,
            reason,
            shared: false,
            times: None,
            load_ms: 0,
        }
    }

    fn of<V>(held: &Held<V>, origin: Origin, state: State, reason: Reason) -> Self {
        let times = Some(held.times);
        Self {
            origin,
            state,
            reason,
            shared: false,
            times,
            load_ms: held.load_ms,
        }
    }
}

/// What the probe of memory says.
enum Probe<V> {
    Serve(Reply<V>),
    /// Serve it, and refresh it in the background.
    Refresh(Reply<V>),
    /// Look further.
    Fetch(Reason),
}

/// Looks in memory. One probe under a shared lock; nothing is allocated.
fn probe<K, V, Q>(cache: &Inner<K, V>, read: Read, hash: u64, key: &Q) -> Probe<V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    if read.tiers == Tiers::Shared {
        return Probe::Fetch(Reason::SkippedMemory);
    }
    let (now, epoch) = (cache.clock().monotonic(), cache.fence.epoch());
    let probed = cache.memory.get(hash, key, now, |held| {
        let reply = |state, reason| Reply {
            value: held.value.clone(),
            story: Story::of(held, Origin::Memory, state, reason),
        };
        match policy::decide(&held.times, held.epoch == epoch, now, read.max_stale) {
            Decision::Serve => Probe::Serve(reply(State::Fresh, Reason::InMemory)),
            Decision::ServeStale => Probe::Serve(reply(State::Stale, Reason::Throttled)),
            Decision::ServeAndRefresh => Probe::Refresh(reply(State::Stale, Reason::Refreshing)),
            Decision::Fetch | Decision::Forget => Probe::Fetch(Reason::TooOld),
        }
    });
    probed.unwrap_or(Probe::Fetch(Reason::NotInMemory))
}

/// What memory holds now, fresh or stale. Whoever uses it in the name of a flight asks after
/// boarding: what an invalidation removed before that must not come back with the flight.
fn in_memory<K, V, Q>(cache: &Inner<K, V>, tiers: Tiers, hash: u64, key: &Q) -> Option<Held<V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    if tiers == Tiers::Shared {
        return None;
    }
    let (now, epoch) = (cache.clock().monotonic(), cache.fence.epoch());
    let current = |held: &Held<V>| (held.epoch == epoch).then(|| held.clone());
    cache.memory.get(hash, key, now, current).flatten()
}

/// `Cache::get_in_memory`: memory alone, no runtime needed.
pub(crate) fn get_in_memory<K, V, Q>(cache: &Inner<K, V>, key: &Q) -> Option<Arc<V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let reply = match probe(cache, Read::new(), cache.memory.hash(key), key) {
        Probe::Serve(reply) | Probe::Refresh(reply) => reply,
        Probe::Fetch(reason) => Reply {
            value: None,
            story: Story::missing(reason),
        },
    };
    cache.exit(&reply.story);
    reply.value
}

/// `Cache::get`: memory, then the tiers. Never loads.
pub(crate) async fn get<K, V, Q>(cache: &Arc<Inner<K, V>>, read: Read, key: &Q) -> Result<Reply<V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let hash = cache.memory.hash(key);
    let reason = match probe(cache, read, hash, key) {
        Probe::Serve(reply) | Probe::Refresh(reply) => {
            cache.exit(&reply.story);
            return Ok(reply);
        }
        Probe::Fetch(reason) => reason,
    };
    let call = Call {
        cache,
        read,
        hash,
        key,
        reason,
    };
    let reply = Box::pin(call.patiently(call.peek())).await;
    cache.exit_with(&reply);
    reply
}

/// `Cache::get_or_load`: memory, then the tiers, then the loader.
pub(crate) async fn get_or_load<K, V, Q, F, Fut, A, E>(
    cache: &Arc<Inner<K, V>>,
    read: Read,
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
    let hash = cache.memory.hash(key);
    let reason = match probe(cache, read, hash, key) {
        // A cached "absent" is no answer for a loader that always has a value.
        Probe::Serve(reply) | Probe::Refresh(reply)
            if reply.value.is_none() && Seeking::of::<V, A>() == Seeking::Value =>
        {
            Reason::TooOld
        }
        Probe::Serve(reply) => {
            cache.exit(&reply.story);
            return answer::<V, A>(reply);
        }
        Probe::Refresh(reply) => {
            refresh(cache, read, hash, key, load);
            cache.exit(&reply.story);
            return answer::<V, A>(reply);
        }
        Probe::Fetch(reason) => reason,
    };
    let call = Call {
        cache,
        read,
        hash,
        key,
        reason,
    };
    let reply = Box::pin(call.patiently(call.fetch(load))).await;
    cache.exit_with(&reply);
    answer::<V, A>(reply?)
}

/// The reply in the shape that this kind of loader promises.
fn answer<V, A: Answer<V>>(reply: Reply<V>) -> Result<(A::Out, Story)> {
    let story = reply.story;
    A::out(reply.value)
        .map(|out| (out, story))
        .ok_or_else(Error::no_value)
}

/// A read that memory did not answer.
struct Call<'a, K: Send + Sync + 'static, V: Send + Sync + 'static, Q: ?Sized> {
    cache: &'a Arc<Inner<K, V>>,
    read: Read,
    hash: u64,
    key: &'a Q,
    reason: Reason,
}

/// How often one call boards a flight before it gives up. More than one round is needed only
/// while callers with and without a word for "absent" share a key.
const ROUNDS: usize = 8;

impl<K, V, Q> Call<'_, K, V, Q>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    /// Waits as long as the caller wants to, then serves what memory holds, if that may be.
    async fn patiently(&self, slow: impl Future<Output = Result<Reply<V>>>) -> Result<Reply<V>> {
        let Some(deadline) = self.read.deadline else {
            return slow.await;
        };
        let clock = self.cache.clock();
        if let Some(reply) = within(&**clock, deadline, slow).await {
            return reply;
        }
        self.stand_in()
            .ok_or_else(|| Error::out_of_patience(deadline))
    }

    /// What memory holds, for a caller that can wait no longer.
    fn stand_in(&self) -> Option<Reply<V>> {
        let held = in_memory(self.cache, self.read.tiers, self.hash, self.key)?;
        let now = self.cache.clock().monotonic();
        policy::may_stand_in(&held.times, now, self.read.max_stale)
            .then(|| self.reply(&held, Origin::Memory, State::Stale))
    }

    /// Looks in the tiers for a caller without a loader, together with all others without one.
    async fn peek(&self) -> Result<Reply<V>> {
        let cache = self.cache;
        let store_key = key::encode(&cache.prefix, self.key)?;
        cache.shared.check_ready()?;
        if self.read.tiers == Tiers::Memory || cache.tiers.is_empty() {
            return Ok(self.missing());
        }
        let mark = cache.fence.mark(self.hash);
        let (mut seat, mut wait) = cache.peeks.board(self.hash, self.key, mark);
        let mut shared = seat.is_none();
        loop {
            if let Some(seat) = seat.take() {
                cache.shared.check_open()?;
                let token = LeaseToken::random();
                let fill = self.fill(seat, store_key.clone(), token);
                let mut budget = Budget::new(cache.shared.tier_budget);
                for mut fill in look(vec![fill], Seeking::Peek, &mut budget).await {
                    write::give_back(cache, vec![&mut fill], &mut budget).await;
                    fill.land(Ok(Landed::nothing()));
                }
            }
            match (&mut wait).await {
                Arrival::Landed(landing) => {
                    let landed = landing?;
                    return Ok(if self.accepts(&landed) {
                        self.arrived(&landed, shared)
                    } else {
                        self.missing()
                    });
                }
                Arrival::Lead(vacant) => (seat, shared) = (Some(vacant), false),
            }
        }
    }

    /// Boards the flight of the key, leads it if that falls to this caller, and waits for what
    /// it brings.
    async fn fetch<F, Fut, A, E>(&self, load: F) -> Result<Reply<V>>
    where
        F: FnOnce(Load<K, V>) -> Fut,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Answer<V>,
        E: Into<BoxError> + Send + 'static,
    {
        let cache = self.cache;
        let store_key = key::encode(&cache.prefix, self.key)?;
        cache.shared.check_ready()?;
        let mut load = Some(load);
        for _ in 0..ROUNDS {
            let mark = cache.fence.mark(self.hash);
            let (mut seat, mut wait) = cache
                .loads(self.read.tiers)
                .board(self.hash, self.key, mark);
            let mut shared = seat.is_none();
            if self.read.max_stale.is_some() {
                wait.insist();
            }
            let landed = loop {
                if let Some(seat) = seat.take() {
                    cache.shared.check_open()?;
                    // Whoever has loaded once and is asked to lead again saw its task end.
                    let load = load.take().ok_or_else(Error::load_lost)?;
                    let token = LeaseToken::random();
                    let fill = self.fill(seat, store_key.clone(), token);
                    let key = self.key.to_owned();
                    let seeking = Seeking::of::<V, A>();
                    let load = |fills: &mut [FillGuard<K, V>]| single(load, fills[0].load(key));
                    lead(vec![fill], self.read.tiers, seeking, load).await;
                }
                match (&mut wait).await {
                    Arrival::Landed(landing) => break landing?,
                    Arrival::Lead(vacant) => (seat, shared) = (Some(vacant), false),
                }
            };
            if !self.accepts(&landed) {
                if load.is_none() {
                    return Err(Error::too_stale());
                }
                continue;
            }
            let reply = self.arrived(&landed, shared);
            if A::out(reply.value.clone()).is_some() {
                return Ok(reply);
            }
        }
        Err(Error::no_value())
    }

    fn fill(
        &self,
        seat: Seat<K, Landing<V>>,
        store_key: Bytes,
        token: LeaseToken,
    ) -> FillGuard<K, V> {
        FillGuard::begin(Arc::clone(self.cache), seat, self.hash, store_key, token)
            .not_staler_than(self.read.max_stale)
    }

    /// Whether this caller may be served with what a flight brought.
    fn accepts(&self, landed: &Landed<V>) -> bool {
        landed.is_usable(self.cache.clock().monotonic(), self.read.max_stale)
    }

    fn missing(&self) -> Reply<V> {
        Reply {
            value: None,
            story: Story::missing(self.reason),
        }
    }

    fn reply(&self, held: &Held<V>, origin: Origin, state: State) -> Reply<V> {
        let reason = if origin == Origin::StandIn {
            Reason::LoadFailed
        } else {
            self.reason
        };
        Reply {
            value: held.value.clone(),
            story: Story::of(held, origin, state, reason),
        }
    }

    fn arrived(&self, landed: &Landed<V>, shared: bool) -> Reply<V> {
        let Some(held) = &landed.held else {
            return self.missing();
        };
        let mut reply = self.reply(held, landed.origin, landed.state);
        reply.story.shared = shared;
        reply
    }
}

/// Boards the refresh of a stale entry; `None` if somebody leads one already, or if the entry is
/// gone or fresh by now.
fn board_refresh<K, V, Q>(
    cache: &Arc<Inner<K, V>>,
    tiers: Tiers,
    hash: u64,
    key: &Q,
    token: LeaseToken,
) -> Option<FillGuard<K, V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let store_key = key::encode(&cache.prefix, key).ok()?;
    let (seat, _wait) = cache.loads(tiers).board(hash, key, cache.fence.mark(hash));
    let mut fill = FillGuard::begin(Arc::clone(cache), seat?, hash, store_key, token);
    let now = cache.clock().monotonic();
    let stale =
        in_memory(cache, Tiers::Memory, hash, key).filter(|held| now >= held.times.serve_until)?;
    fill.publish(Landed::stale(stale.clone(), Origin::Memory));
    fill.saw_stale(stale);
    cache.count(Count::Refresh, 1);
    Some(fill)
}

/// Refreshes an entry behind the caller's back, unless somebody does so already.
fn refresh<K, V, Q, F, Fut, A, E>(cache: &Arc<Inner<K, V>>, read: Read, hash: u64, key: &Q, load: F)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
    F: FnOnce(Load<K, V>) -> Fut,
    Fut: Future<Output = Result<A, E>> + Send + 'static,
    A: Answer<V>,
    E: Into<BoxError> + Send + 'static,
{
    let token = LeaseToken::random();
    let Some(mut fill) = board_refresh(cache, read.tiers, hash, key, token) else {
        return;
    };
    // The closure may borrow from the caller, so it is called here; its future runs in the task.
    match loader::make(|| single(load, fill.load(key.to_owned()))) {
        Ok(future) => lead_behind(vec![fill], read.tiers, Seeking::of::<V, A>(), future),
        Err(error) => write::fail(vec![fill], &error),
    }
}

/// Leads fills in a task of their own.
fn lead_behind<K, V, Fut>(fills: Vec<FillGuard<K, V>>, tiers: Tiers, seeking: Seeking, future: Fut)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<Loaded<V>>, BoxError>> + Send + 'static,
{
    let Some(first) = fills.first() else { return };
    let tasks = Arc::clone(&first.cache().shared.tasks);
    tasks.spawn(TaskKind::Work, lead(fills, tiers, seeking, |_| future));
}

/// Leads fills: memory once more, then pending writes, then the tiers. What is in none of them
/// is loaded in a task of its own, so that no caller's cancellation can stop a load that others
/// wait for.
async fn lead<K, V, Fut>(
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
    let mut budget = Budget::new(cache.shared.tier_budget);
    let mut fills = look_above(&cache, fills, tiers, seeking);
    if tiers != Tiers::Memory {
        fills = look(fills, seeking, &mut budget).await;
    }
    if fills.is_empty() {
        return;
    }
    match loader::make(|| load(&mut fills)) {
        Ok(future) => {
            let tasks = Arc::clone(&cache.shared.tasks);
            tasks.spawn(TaskKind::Work, conduct(cache, fills, future, budget));
        }
        Err(error) => {
            write::give_back(&cache, fills.iter_mut().collect(), &mut budget).await;
            write::fail(fills, &error);
        }
    }
}

/// Looks where an answer may have come up since the caller's probe: in memory, where another
/// flight may have just landed, and among the writes that have not reached the tiers yet.
fn look_above<K, V>(
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
        if let Some(stale) = held.take_if(|held| now >= held.times.serve_until) {
            fill.saw_stale(stale);
        }
        let pending = || cache.overlay.get(fill.store_key());
        match held.or_else(pending).filter(|held| seeking.accepts(held)) {
            Some(held) => fill.land(Ok(Landed::fresh(held, Origin::Memory))),
            None => rest.push(fill),
        }
    }
    rest
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
    let began = clock.monotonic();
    let loaded = loader::run(&**clock, &cache.turns, cache.rules.load_deadline, load).await;
    let load_ms = clock.monotonic().saturating_sub(began);
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
fn single<K, V, F, Fut, A, E>(
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
    let answer = load(given);
    async move {
        answer
            .await
            .map(|answer| vec![answer.into_loaded()])
            .map_err(Into::into)
    }
}

/// The load of many keys. Keys that the loader does not mention are absent.
fn batch<K, V, F, Fut, I, A, E>(
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
    let answers = load(keys.clone());
    async move {
        let answers = answers.await.map_err(Into::into)?;
        let answers = answers
            .into_iter()
            .map(|(key, answer)| (key, answer.into_loaded()));
        let mut found: HashMap<K, Loaded<V>> = answers.collect();
        Ok(keys
            .iter()
            .map(|key| found.remove(key).unwrap_or_else(Loaded::absent))
            .collect())
    }
}

/// `Cache::get_or_load_many`: one probe per key, one look in each tier for all that memory does
/// not have, one load for all that is nowhere.
pub(crate) async fn get_or_load_many<K, V, F, Fut, I, A, E>(
    cache: &Arc<Inner<K, V>>,
    read: Read,
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
    let token = LeaseToken::random();
    let mut values = Vec::with_capacity(keys.len());
    let (mut missed, mut refreshing) = (Vec::new(), Vec::new());
    for (at, key) in keys.iter().enumerate() {
        let hash = cache.memory.hash(key);
        let reply = match probe(cache, read, hash, key) {
            Probe::Serve(reply) => reply,
            Probe::Refresh(reply) => {
                refreshing.extend(board_refresh(cache, read.tiers, hash, key, token));
                reply
            }
            Probe::Fetch(reason) => {
                let call = Call {
                    cache,
                    read,
                    hash,
                    key,
                    reason,
                };
                missed.push((at, call));
                values.push(None);
                continue;
            }
        };
        cache.exit(&reply.story);
        values.push(reply.value);
    }
    if !refreshing.is_empty() {
        match loader::make(|| batch(&load, &refreshing)) {
            Ok(future) => lead_behind(refreshing, read.tiers, Seeking::Entry, future),
            Err(error) => write::fail(refreshing, &error),
        }
    }
    if !missed.is_empty() {
        let fetched = Box::pin(fetch_many(cache, read, &missed, token, load));
        let fetched = match read.deadline {
            None => fetched.await,
            Some(deadline) => match within(&**cache.clock(), deadline, fetched).await {
                Some(fetched) => fetched,
                None => {
                    let stand_ins: Option<_> =
                        missed.iter().map(|(_, call)| call.stand_in()).collect();
                    stand_ins.ok_or_else(|| Error::out_of_patience(deadline))
                }
            },
        };
        match fetched {
            Ok(replies) => {
                for ((at, ..), reply) in missed.iter().zip(replies) {
                    cache.exit(&reply.story);
                    values[*at] = reply.value;
                }
            }
            Err(error) => {
                cache.count(Count::ReadFailed, missed.len() as u64);
                return Err(error);
            }
        }
    }
    Ok(values)
}

/// A key of a batch that memory did not answer: its place and its call.
type Missed<'a, K, V> = (usize, Call<'a, K, V, K>);

/// Boards the flights of many keys, leads those that fall to this caller as one, and waits for
/// all of them.
async fn fetch_many<K, V, F, Fut, I, A, E>(
    cache: &Arc<Inner<K, V>>,
    read: Read,
    missed: &[Missed<'_, K, V>],
    token: LeaseToken,
    load: F,
) -> Result<Vec<Reply<V>>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    F: Fn(Vec<K>) -> Fut,
    Fut: Future<Output = Result<I, E>> + Send + 'static,
    I: IntoIterator<Item = (K, A)>,
    A: Answer<V>,
    E: Into<BoxError> + Send + 'static,
{
    cache.shared.check_ready()?;
    let (mut fills, mut waits) = (Vec::new(), Vec::new());
    for (_, call) in missed {
        let store_key = key::encode(&cache.prefix, call.key)?;
        let mark = cache.fence.mark(call.hash);
        let (seat, mut wait) = cache.loads(read.tiers).board(call.hash, call.key, mark);
        if read.max_stale.is_some() {
            wait.insist();
        }
        waits.push((wait, seat.is_none(), store_key.clone()));
        fills.extend(seat.map(|seat| call.fill(seat, store_key, token)));
    }
    lead(fills, read.tiers, Seeking::Entry, |fills| {
        batch(&load, fills)
    })
    .await;
    let mut replies = Vec::with_capacity(missed.len());
    for ((_, call), (mut wait, shared, store_key)) in missed.iter().zip(waits) {
        let landed = loop {
            match (&mut wait).await {
                Arrival::Landed(landing) => break landing?,
                Arrival::Lead(seat) => {
                    cache.shared.check_open()?;
                    let fill = call.fill(seat, store_key.clone(), token);
                    lead(vec![fill], read.tiers, Seeking::Entry, |fills| {
                        batch(&load, fills)
                    })
                    .await;
                }
            }
        };
        if !call.accepts(&landed) {
            return Err(Error::too_stale());
        }
        replies.push(call.arrived(&landed, shared));
    }
    Ok(replies)
}
