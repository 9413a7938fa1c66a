//! A read that memory did not answer: it boards the flight of its key and waits for what lands.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::lead::{batch, lead, lead_apart, look_above, serve_unverified, single};
use super::probe::{Reply, Story, possible_stand_in, state_of};
use super::sources::{note_absence, note_held, note_memory_alone};
use crate::answer::{Answer, Load};
use crate::cache::Inner;
use crate::clock::Millis;
use crate::entry::Held;
use crate::error::{BoxError, Error, Result};
use crate::fence::{Mark, Standing};
use crate::fill::{FillGuard, Landed, Landing, Origin};
use crate::flight::{Arrival, Flights, Seat, Wait};
use crate::key::{self, AsKey, CacheKey};
use crate::look::{Seeking, look};
use crate::options::{Isolation, Read, Tiers};
use crate::outcome::Reason;
use crate::scope::{self, Surroundings};
use crate::store::LeaseToken;
use crate::tier::{Budget, within};
use crate::write;

/// A read that memory did not answer.
pub(super) struct Call<'a, K: Send + Sync + 'static, V: Send + Sync + 'static, Q: ?Sized> {
    cache: &'a Arc<Inner<K, V>>,
    read: Read,
    pub(super) hash: u64,
    pub(super) key: &'a Q,
    reason: Reason,
    /// Whether what nobody can be asked about is no answer: it may be older than what a token stands
    /// for, even if everything up to the token was heard, as something before it may have been missed.
    is_strict: bool,
}

/// How often one call boards a flight before it gives up. More than one round is needed only
/// while callers with and without a word for "absent" share a key.
const ROUNDS: usize = 8;

impl<'a, K, V, Q> Call<'a, K, V, Q>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    pub(super) fn new(
        cache: &'a Arc<Inner<K, V>>,
        read: &Read,
        hash: u64,
        key: &'a Q,
        reason: Reason,
    ) -> Self {
        Self {
            cache,
            read: *read,
            hash,
            key,
            reason,
            is_strict: reason == Reason::Suspect && read.after.is_some(),
        }
    }

    /// Waits as long as the caller wants to, then serves what memory holds, if that may be.
    pub(super) async fn patiently(
        &self,
        seeking: Seeking,
        mut slow: Pin<Box<impl Future<Output = Result<Reply<V>>>>>,
    ) -> Result<Reply<V>> {
        let clock = &**self.cache.clock();
        let mut waited = Duration::ZERO;
        if let Some(soft) = self.soft_deadline() {
            if let Some(reply) = within(clock, soft, slow.as_mut()).await {
                return reply;
            }
            if let Some(reply) = self.stand_in(seeking) {
                return Ok(reply);
            }
            waited = soft;
        }
        let Some(deadline) = self.read.deadline else {
            return slow.await;
        };
        if let Some(reply) = within(clock, deadline.saturating_sub(waited), slow).await {
            return reply;
        }
        self.stand_in(seeking)
            .ok_or_else(|| Error::out_of_patience(deadline))
    }

    /// How long this caller waits if something may stand in.
    fn soft_deadline(&self) -> Option<Duration> {
        let soft = self.cache.rules.soft_deadline?;
        let sooner = self.read.deadline.is_none_or(|deadline| soft < deadline);
        sooner.then_some(soft)
    }

    /// What memory holds, for a caller that can wait no longer.
    pub(super) fn stand_in(&self, seeking: Seeking) -> Option<Reply<V>> {
        let now = self.cache.clock().monotonic();
        let (held, standing) = self.possible_stand_in(seeking, now)?;
        let believing = self.cache.rules.isolation == Isolation::Serve && !self.is_strict;
        if standing != Standing::Current && !believing {
            return None;
        }
        self.note(Some(&held));
        let value = held.value.clone();
        let story = Story::of(
            &held,
            Origin::Memory,
            state_of(&held, now),
            Reason::LoadSlow,
        );
        Some(Reply { value, story })
    }

    /// Looks in the tiers for a caller without a loader, together with all others without one.
    pub(super) async fn peek(&self) -> Result<Reply<V>> {
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
        let peeks = if self.is_apart() {
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
                    // In a box, as everything that leaders alone do: thousands may wait.
                    Box::pin(look(fills, Seeking::Peek, &mut budget)).await
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
                        self.arrived(landed, shared)
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
    pub(super) async fn fetch<F, Fut, A, E>(&self, load: F) -> Result<Reply<V>>
    where
        F: FnOnce(Load<K, V>) -> Fut,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Answer<V>,
        E: Into<BoxError> + Send + 'static,
    {
        let cache = self.cache;
        cache.shared.check_ready()?;
        refuse_circle(cache, self.key)?;
        cache
            .shared
            .join(&mut Budget::new(cache.shared.tier_budget))
            .await;
        let mut load = Some(load);
        for round in 0..ROUNDS {
            let mark = self.mark_of(round);
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
                    let store_key = key::encode(&cache.prefix, self.key)?;
                    let mut fill = self.fill(seat, store_key, LeaseToken::random(), mark);
                    let key = self.key.to_owned();
                    let seeking = Seeking::of::<V, A>();
                    if let Some(held) = self.may_leave_with(seeking) {
                        fill.saw_stale(held);
                        let waits = Surroundings::here();
                        lead_apart(fill, self.read.tiers, seeking, load, key, waits);
                    } else {
                        let load = |fills: &mut [FillGuard<K, V>]| single(load, fills[0].load(key));
                        // In a box, as everything that leaders alone do: thousands may wait.
                        Box::pin(lead(vec![fill], self.read.tiers, seeking, load)).await;
                    }
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
            let reply = self.arrived(landed, shared);
            if A::out(reply.value.clone()).is_some() {
                return Ok(reply);
            }
        }
        Err(Error::no_value())
    }

    /// What memory holds for a caller that may be served with it before the load has begun: then
    /// somebody else has to lead it.
    fn may_leave_with(&self, seeking: Seeking) -> Option<Held<V>> {
        self.soft_deadline()?;
        let now = self.cache.clock().monotonic();
        let (held, standing) = self.possible_stand_in(seeking, now)?;
        (standing == Standing::Current).then_some(held)
    }

    /// What memory holds and may stand in for what this caller seeks, if it can be believed.
    fn possible_stand_in(&self, seeking: Seeking, now: Millis) -> Option<(Held<V>, Standing)> {
        possible_stand_in(self.cache, &self.read, self.hash, self.key, now)
            .filter(|(held, _)| seeking.accepts(held))
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
            .strict(self.is_strict)
    }

    /// The state of the fence as this caller boards. One who wants to see what was not heard of
    /// here joins nobody who came before.
    fn mark(&self) -> Mark {
        if self.read.unheard {
            self.cache.fence.bump(self.hash)
        } else if self.reason == Reason::Suspect {
            self.cache.fence.mark(self.hash).in_doubt()
        } else {
            self.cache.fence.mark(self.hash)
        }
    }

    /// The same for one that was not content with what so many flights brought. Where invalidations
    /// come faster than loads end, it could join flights that are too old for it again and again.
    fn mark_of(&self, round: usize) -> Mark {
        match round {
            0 | 1 => self.mark(),
            _ => self.cache.fence.bump(self.hash),
        }
    }

    /// Whether this caller takes no part in flights of those who are content with less.
    fn is_apart(&self) -> bool {
        self.read.unheard || self.is_strict
    }

    /// The flights of callers that read as this one does.
    fn loads(&self) -> &Arc<Flights<K, Landing<V>>> {
        if self.is_apart() {
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

    fn arrived(&self, landed: Landed<V>, shared: bool) -> Reply<V> {
        self.note(landed.held.as_ref());
        if landed.is_fenced {
            scope::note_refused();
        }
        let Some(held) = landed.held else {
            return self.missing();
        };
        let reason = match landed.origin {
            Origin::StandIn => Reason::LoadFailed,
            Origin::Confirmed => Reason::Confirmed,
            Origin::Memory | Origin::Tier(_) | Origin::Loader | Origin::Nobody => self.reason,
        };
        let mut story = Story::of(&held, landed.origin, landed.state, reason);
        story.shared = shared;
        let value = held.value;
        Reply { value, story }
    }
}

/// An error inside a load of the key, which would wait for itself.
pub(super) fn refuse_circle<K, V, Q>(cache: &Inner<K, V>, key: &Q) -> Result<()>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    if scope::is_in_load() && scope::is_loading(&cache.name, &key::encode(&cache.prefix, key)?) {
        return Err(Error::reentered(&cache.name));
    }
    Ok(())
}

/// A key of a batch that memory did not answer: its place and its call.
pub(super) type Missed<'a, K, V> = (usize, Call<'a, K, V, K>);

/// What becomes of a batch one of whose keys cannot be asked for at all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// The key fails alone.
    FailsAlone,
    /// Nothing is asked for.
    FailsAll,
}

/// Boards the flights of many keys, leads those that fall to this caller as one, and waits for
/// all of them. The error of one key is no other's.
pub(super) async fn fetch_many<K, V, F, Fut, I, A, E>(
    cache: &Arc<Inner<K, V>>,
    read: Read,
    missed: &[Missed<'_, K, V>],
    token: LeaseToken,
    unfit: Unfit,
    load: F,
) -> Result<Vec<Result<Reply<V>>>>
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
    let (mut fills, mut boarded) = (Vec::new(), Vec::with_capacity(missed.len()));
    for (_, call) in missed {
        let place = call.board(token, &mut fills);
        boarded.push(match (place, unfit) {
            (Err(error), Unfit::FailsAll) => return Err(error),
            (place, _) => place,
        });
    }
    lead(fills, read.tiers, Seeking::Entry, |fills| {
        batch(&load, fills)
    })
    .await;
    let mut replies = Vec::with_capacity(missed.len());
    for ((_, call), boarded) in missed.iter().zip(boarded) {
        replies.push(match boarded {
            Ok(boarded) => call.arrive(boarded, token, &load).await,
            Err(error) => Err(error),
        });
    }
    Ok(replies)
}

/// A place of a batch on the flight of one of its keys.
struct Boarded<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    wait: Wait<K, Landing<V>>,
    /// Whether somebody else leads.
    shared: bool,
    store_key: Bytes,
    mark: Mark,
}

impl<K, V> Call<'_, K, V, K>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    /// Boards the flight of one key of a batch; if this caller leads it, the fill is among `fills`.
    fn board(&self, token: LeaseToken, fills: &mut Vec<FillGuard<K, V>>) -> Result<Boarded<K, V>> {
        let store_key = key::encode(&self.cache.prefix, self.key)?;
        refuse_circle(self.cache, self.key)?;
        let mark = self.mark();
        let (seat, mut wait) = self.loads().board(self.hash, self.key, mark);
        if self.read.max_stale.is_some() {
            wait.insist();
        }
        let shared = seat.is_none();
        fills.extend(seat.map(|seat| self.fill(seat, store_key.clone(), token, mark)));
        Ok(Boarded {
            wait,
            shared,
            store_key,
            mark,
        })
    }

    /// Waits for what the flight of one key of a batch brings, and takes over the lead where it
    /// falls to this caller.
    async fn arrive<F, Fut, I, A, E>(
        &self,
        boarded: Boarded<K, V>,
        token: LeaseToken,
        load: &F,
    ) -> Result<Reply<V>>
    where
        F: Fn(Vec<K>) -> Fut,
        Fut: Future<Output = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = (K, A)>,
        A: Answer<V>,
        E: Into<BoxError> + Send + 'static,
    {
        let Boarded {
            mut wait,
            mut shared,
            store_key,
            mut mark,
        } = boarded;
        let mut rounds = 0;
        loop {
            let seat = match (&mut wait).await {
                Arrival::Landed(landing) => {
                    let landed = landing?;
                    if self.accepts(&landed, mark) {
                        return Ok(self.arrived(landed, shared));
                    }
                    // Whoever has led has seen its load fail, and would only see that again.
                    if !shared {
                        return Err(Error::too_stale());
                    }
                    rounds += 1;
                    if rounds == ROUNDS {
                        return Err(Error::too_stale());
                    }
                    // Somebody else's flight, too old for this caller: the next one is newer.
                    let seat;
                    mark = self.mark_of(rounds);
                    (seat, wait) = self.loads().board(self.hash, self.key, mark);
                    wait.insist();
                    shared &= seat.is_none();
                    seat
                }
                Arrival::Lead(seat) => {
                    self.cache.shared.check_open()?;
                    shared = false;
                    Some(seat)
                }
            };
            if let Some(seat) = seat {
                let fill = self.fill(seat, store_key.clone(), token, mark);
                lead(vec![fill], self.read.tiers, Seeking::Entry, |fills| {
                    batch(load, fills)
                })
                .await;
            }
        }
    }
}
