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
use std::time::Duration;

use bytes::Bytes;

use crate::answer::{Answer, Load, Loaded};
use crate::cache::Inner;
use crate::entry::{Held, Times};
use crate::error::{BoxError, Error, Result};
use crate::fence::{Mark, Standing};
use crate::fill::{FillGuard, Landed, Landing, Origin};
use crate::flight::{Arrival, Flights, Seat};
use crate::key::{self, AsKey, CacheKey};
use crate::loader;
use crate::look::{Seeking, look};
use crate::options::{Isolation, Read, Tiers};
use crate::outcome::{Reason, State};
use crate::policy::{self, Decision};
use crate::scope;
use crate::stats::Count;
use crate::store::LeaseToken;
use crate::tags::{Tag, name};
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
    let now = cache.clock().recent();
    let (collecting, mut sources) = (scope::is_open(), None);
    let probed = cache.memory.get(hash, key, now, |held| {
        let reply = |state, reason| Reply {
            value: held.value.clone(),
            story: Story::of(held, Origin::Memory, state, reason),
        };
        let standing = cache.fence.standing(held, now);
        let probe = match policy::decide(&held.times, standing, now, read.max_stale) {
            Decision::Serve => Probe::Serve(reply(State::Fresh, Reason::InMemory)),
            Decision::ServeStale => Probe::Serve(reply(State::Stale, Reason::Throttled)),
            Decision::ServeAndRefresh => Probe::Refresh(reply(State::Stale, Reason::Refreshing)),
            Decision::Fetch | Decision::Forget => Probe::Fetch(match standing {
                Standing::Current => Reason::TooOld,
                Standing::Suspect => Reason::Suspect,
                Standing::Gone => Reason::Invalidated,
            }),
        };
        if collecting && !matches!(probe, Probe::Fetch(_)) {
            sources = Some((held.tags().to_vec(), held.times.remaining(now)));
        }
        probe
    });
    if let Some((tags, fresh_for)) = sources {
        note_source(cache, key, tags, fresh_for);
        note_memory_alone(cache);
    }
    probed.unwrap_or(Probe::Fetch(Reason::NotInMemory))
}

/// How long what was made from a stale entry is fresh: somebody refreshes it just now.
const STALE_SOURCE: Duration = Duration::from_secs(1);

/// Whether what is made from this read goes into a tier that others read, as its own entries do.
fn makes_for_others<K, V>(cache: &Inner<K, V>) -> bool
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.is_shared() && scope::is_for_others()
}

/// Whether what this process has heard may not be enough for a read.
fn must_catch_up<K, V>(cache: &Inner<K, V>, read: Read) -> bool
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    read.after.is_some() || makes_for_others(cache)
}

/// Leaves a note of a read for those who make something from it.
fn note_source<K, V, Q>(cache: &Inner<K, V>, key: &Q, tags: Vec<Arc<Tag>>, fresh_for: Duration)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let Ok(logical) = key::encode(b"", key) else {
        return;
    };
    let itself = cache.shared.tags.tag(&name::of_key(&cache.name, &logical));
    let fresh_for = if fresh_for.is_zero() {
        STALE_SOURCE
    } else {
        fresh_for
    };
    // Whoever clears the cache invalidates each of its entries.
    let own = Arc::clone(cache.fence.own());
    scope::note(tags.into_iter().chain([itself, own]), fresh_for);
}

/// The same for an entry at hand.
fn note_held<K, V, Q>(cache: &Inner<K, V>, key: &Q, held: &Held<V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    if scope::is_open() {
        let fresh_for = held.times.remaining(cache.clock().monotonic());
        note_source(cache, key, held.tags().to_vec(), fresh_for);
    }
}

/// Leaves a note of a read that memory alone was asked for.
fn note_memory_alone<K, V>(cache: &Inner<K, V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    if makes_for_others(cache) {
        scope::note_unverified();
    }
}

/// The same for a read that found nothing: what is made from that goes when there is something.
fn note_absence<K, V, Q>(cache: &Inner<K, V>, key: &Q)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    if scope::is_open() {
        note_source(cache, key, Vec::new(), Duration::MAX);
    }
}

/// The same for what was just loaded in memory alone.
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

/// What memory holds now, fresh or stale, and what it is worth. Whoever uses it in the name of a
/// flight asks after boarding: what an invalidation removed before that must not come back with the
/// flight.
fn in_memory<K, V, Q>(
    cache: &Inner<K, V>,
    tiers: Tiers,
    hash: u64,
    key: &Q,
) -> Option<(Held<V>, Standing)>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    if tiers == Tiers::Shared {
        return None;
    }
    let now = cache.clock().monotonic();
    let usable = |held: &Held<V>| {
        let standing = cache.fence.standing(held, now);
        (standing != Standing::Gone).then(|| (held.clone(), standing))
    };
    cache.memory.get(hash, key, now, usable).flatten()
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
        Probe::Fetch(Reason::Suspect) => unverified_in_memory(cache, key),
        Probe::Fetch(reason) => Reply {
            value: None,
            story: Story::missing(reason),
        },
    };
    if reply.story.times.is_none() {
        note_absence(cache, key);
    }
    cache.exit(&reply.story);
    reply.value
}

/// What memory holds and nobody can be asked about, where that is wanted.
fn unverified_in_memory<K, V, Q>(cache: &Inner<K, V>, key: &Q) -> Reply<V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let (hash, now) = (cache.memory.hash(key), cache.clock().monotonic());
    let held = in_memory(cache, Tiers::Memory, hash, key)
        .map(|(held, _)| held)
        .filter(|held| now < held.times.serve_until)
        .filter(|_| cache.rules.isolation == Isolation::Serve);
    match held {
        Some(held) => {
            cache.count(Count::Unverified, 1);
            note_held(cache, key, &held);
            note_memory_alone(cache);
            let value = held.value.clone();
            let story = Story::of(&held, Origin::Memory, State::Fresh, Reason::Suspect);
            Reply { value, story }
        }
        None => Reply {
            value: None,
            story: Story::missing(Reason::Suspect),
        },
    }
}

/// A read of memory alone that loads in the caller's own thread, with neither a runtime nor a
/// flight: callers that come at once may each load. `answer` says what the caller gets for an entry,
/// and `None` for one that is no answer here; `load` gives what to keep, and what this caller gets.
///
/// What the fence let through before an invalidation is given to the caller and not kept.
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
    let (held, reason) = match probe(cache, Read::new(), hash, key) {
        Probe::Serve(reply) => (Some(reply), Reason::InMemory),
        // Nothing refreshes it in the background: it is there in case the load fails.
        Probe::Refresh(reply) => (Some(reply), Reason::Refreshing),
        Probe::Fetch(reason) => (None, reason),
    };
    let mut answer = held.and_then(|reply| Some((answer(reply.value)?, reply.story)));
    if let Some((value, story)) = answer.take_if(|_| reason == Reason::InMemory) {
        cache.exit(&story);
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
            cache.exit(&Story::missing(reason));
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
            cache.exit(&story);
            Ok(value)
        }
    }
}

/// `Cache::get`: memory, then the tiers. Never loads.
pub(crate) async fn get<K, V, Q>(cache: &Arc<Inner<K, V>>, read: Read, key: &Q) -> Result<Reply<V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let read = if must_catch_up(cache, read) {
        caught_up(cache, read).await
    } else {
        read
    };
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
    let read = if must_catch_up(cache, read) {
        caught_up(cache, read).await
    } else {
        read
    };
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

/// A read that is to see what a token stands for: once everything up to it was heard, memory may
/// answer; if that takes longer than the tiers may take, memory is passed over, and so is whatever
/// else depends on having heard. So it is for a read inside a load whose result goes to others: they
/// would read there what was made from something that they know to be gone.
async fn caught_up<K, V>(cache: &Inner<K, V>, read: Read) -> Read
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
        let (held, standing) = in_memory(self.cache, self.read.tiers, self.hash, self.key)?;
        let now = self.cache.clock().monotonic();
        let believed =
            standing == Standing::Current || self.cache.rules.isolation == Isolation::Serve;
        if !believed || !policy::may_stand_in(&held.times, now, self.read.max_stale) {
            return None;
        }
        self.note(Some(&held));
        Some(self.reply(&held, Origin::Memory, State::Stale))
    }

    /// Looks in the tiers for a caller without a loader, together with all others without one.
    async fn peek(&self) -> Result<Reply<V>> {
        let cache = self.cache;
        let store_key = key::encode(&cache.prefix, self.key)?;
        cache.shared.check_ready()?;
        let suspect = self.reason == Reason::Suspect;
        if (self.read.tiers == Tiers::Memory || cache.tiers.is_empty()) && !suspect {
            note_absence(cache, self.key);
            return Ok(self.missing());
        }
        let mut budget = Budget::new(cache.shared.tier_budget);
        cache.shared.join(&mut budget).await;
        let mark = self.mark();
        let peeks = if self.read.unheard {
            &cache.unheard[1]
        } else {
            &cache.peeks
        };
        let (mut seat, mut wait) = peeks.board(self.hash, self.key, mark);
        let mut shared = seat.is_none();
        loop {
            if let Some(seat) = seat.take() {
                cache.shared.check_open()?;
                let token = LeaseToken::random();
                let fill = self.fill(seat, store_key.clone(), token, mark);
                let fills = look_above(cache, vec![fill], self.read.tiers, Seeking::Peek);
                let fills = if self.read.tiers == Tiers::Memory {
                    fills
                } else {
                    look(fills, Seeking::Peek, &mut budget).await
                };
                for mut fill in serve_unverified(cache, fills, Seeking::Peek) {
                    write::give_back(cache, vec![&mut fill], &mut budget).await;
                    fill.land(Ok(Landed::nothing()));
                }
            }
            match (&mut wait).await {
                Arrival::Landed(landing) => {
                    let landed = landing?;
                    return Ok(if self.accepts(&landed, mark) {
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
        cache
            .shared
            .join(&mut Budget::new(cache.shared.tier_budget))
            .await;
        let mut load = Some(load);
        for round in 0..ROUNDS {
            let mark = self.mark();
            let (mut seat, mut wait) = self.loads().board(self.hash, self.key, mark);
            let mut shared = seat.is_none();
            // What a flight shows ahead of its end would be the same in every round.
            if self.read.max_stale.is_some() || round > 0 {
                wait.insist();
            }
            let landed = loop {
                if let Some(seat) = seat.take() {
                    cache.shared.check_open()?;
                    // Whoever has loaded once and is asked to lead again saw its task end.
                    let load = load.take().ok_or_else(Error::load_lost)?;
                    let token = LeaseToken::random();
                    let fill = self.fill(seat, store_key.clone(), token, mark);
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
            if !self.accepts(&landed, mark) {
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
        mark: Mark,
    ) -> FillGuard<K, V> {
        FillGuard::begin(Arc::clone(self.cache), seat, self.hash, store_key, token)
            .taken_over_at(mark)
            .not_staler_than(self.read.max_stale)
            .unheard(self.read.unheard)
    }

    /// The state of the fence as this caller boards. One who wants to see what was not heard of
    /// here joins nobody who came before.
    fn mark(&self) -> Mark {
        if self.read.unheard {
            self.cache.fence.bump(self.hash)
        } else {
            self.cache.fence.mark(self.hash)
        }
    }

    /// The flights of callers that read as this one does.
    fn loads(&self) -> &Arc<Flights<K, Landing<V>>> {
        if self.read.unheard {
            &self.cache.unheard[0]
        } else {
            self.cache.loads(self.read.tiers)
        }
    }

    /// Whether this caller, who came at `mark`, may be served with what a flight brought.
    fn accepts(&self, landed: &Landed<V>, mark: Mark) -> bool {
        let in_time = |held| self.cache.fence.serves(held, mark);
        landed.is_usable(self.cache.clock().monotonic(), self.read.max_stale)
            && landed.held.as_ref().is_none_or(in_time)
            && landed
                .refused
                .is_none_or(|began| began.is_as_late_as(mark.began()))
    }

    fn missing(&self) -> Reply<V> {
        Reply {
            value: None,
            story: Story::missing(self.reason),
        }
    }

    fn reply(&self, held: &Held<V>, origin: Origin, state: State) -> Reply<V> {
        let reason = match origin {
            Origin::StandIn => Reason::LoadFailed,
            Origin::Confirmed => Reason::Confirmed,
            Origin::Memory | Origin::Tier(_) | Origin::Loader | Origin::Nobody => self.reason,
        };
        Reply {
            value: held.value.clone(),
            story: Story::of(held, origin, state, reason),
        }
    }

    /// Leaves a note of what answers this read, if anything does.
    fn note(&self, held: Option<&Held<V>>) {
        match held {
            Some(held) => note_held(self.cache, self.key, held),
            None => note_absence(self.cache, self.key),
        }
        if self.read.tiers == Tiers::Memory {
            note_memory_alone(self.cache);
        }
    }

    fn arrived(&self, landed: &Landed<V>, shared: bool) -> Reply<V> {
        self.note(landed.held.as_ref());
        if landed.is_fenced {
            scope::note_refused();
        }
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
    let mark = cache.fence.mark(hash);
    let (seat, _wait) = cache.loads(tiers).board(hash, key, mark);
    let mut fill =
        FillGuard::begin(Arc::clone(cache), seat?, hash, store_key, token).taken_over_at(mark);
    let now = cache.clock().monotonic();
    let (stale, _) = in_memory(cache, Tiers::Memory, hash, key).filter(|(held, standing)| {
        *standing == Standing::Current && now >= held.times.serve_until
    })?;
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
    let mut fills = serve_unverified(&cache, fills, seeking);
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

/// Serves the entries in memory that nobody could be asked about, where that is wanted, as if they
/// were not suspect; the fills that go on come back.
fn serve_unverified<K, V>(
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
        if let Some((suspect, _)) = held.take_if(|(_, standing)| *standing == Standing::Suspect) {
            fill.suspects(suspect);
        }
        if let Some((stale, _)) = held.take_if(|(held, _)| now >= held.times.serve_until) {
            fill.saw_stale(stale);
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
    fill.is_unheard() || (fill.cache().is_shared() && fill.holds_lease(lowest))
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
    let for_others = fills.iter().any(is_for_others);
    let load = async move {
        if for_others {
            scope::for_others(load).await
        } else {
            load.await
        }
    };
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
        let (answer, inherited) = scope::inherit(answer).await;
        let mut loaded = answer.map_err(Into::into)?.into_loaded();
        loaded.inherited.extend(inherited);
        Ok(vec![loaded])
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
    let read = if must_catch_up(cache, read) {
        caught_up(cache, read).await
    } else {
        read
    };
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
    cache
        .shared
        .join(&mut Budget::new(cache.shared.tier_budget))
        .await;
    let (mut fills, mut waits) = (Vec::new(), Vec::new());
    for (_, call) in missed {
        let store_key = key::encode(&cache.prefix, call.key)?;
        let mark = call.mark();
        let (seat, mut wait) = call.loads().board(call.hash, call.key, mark);
        if read.max_stale.is_some() {
            wait.insist();
        }
        waits.push((wait, seat.is_none(), store_key.clone(), mark));
        fills.extend(seat.map(|seat| call.fill(seat, store_key, token, mark)));
    }
    lead(fills, read.tiers, Seeking::Entry, |fills| {
        batch(&load, fills)
    })
    .await;
    let mut replies = Vec::with_capacity(missed.len());
    for ((_, call), (mut wait, mut shared, store_key, mut mark)) in missed.iter().zip(waits) {
        let mut rounds = 0;
        let landed = loop {
            match (&mut wait).await {
                Arrival::Landed(landing) => {
                    let landed = landing?;
                    if call.accepts(&landed, mark) {
                        break landed;
                    }
                    rounds += 1;
                    if rounds == ROUNDS {
                        return Err(Error::too_stale());
                    }
                    // Somebody else's flight, too old for this caller: the next one is newer.
                    let seat;
                    mark = call.mark();
                    (seat, wait) = call.loads().board(call.hash, call.key, mark);
                    wait.insist();
                    if let Some(seat) = seat {
                        shared = false;
                        let fill = call.fill(seat, store_key.clone(), token, mark);
                        lead(vec![fill], read.tiers, Seeking::Entry, |fills| {
                            batch(&load, fills)
                        })
                        .await;
                    }
                }
                Arrival::Lead(seat) => {
                    cache.shared.check_open()?;
                    let fill = call.fill(seat, store_key.clone(), token, mark);
                    lead(vec![fill], read.tiers, Seeking::Entry, |fills| {
                        batch(&load, fills)
                    })
                    .await;
                }
            }
        };
        replies.push(call.arrived(&landed, shared));
    }
    Ok(replies)
}
