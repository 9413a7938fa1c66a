//! The right to fill one key, and the duty to say how it ended.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::answer::{Load, Stale};
use crate::cache::Inner;
use crate::clock::Millis;
use crate::entry::{FillId, Held};
use crate::epoch::Moment;
use crate::error::Error;
use crate::fence::Mark;
use crate::flight::Seat;
use crate::outcome::State;
use crate::policy;
use crate::store::{LeaseToken, Position};
use crate::tasks::TaskKind;
use crate::tier::Budget;

/// What a flight ends with.
pub(crate) type Landing<V> = Result<Landed<V>, Error>;

/// What a flight brought.
#[derive(Debug)]
pub(crate) struct Landed<V> {
    /// The entry; `None` if there was nothing to find.
    pub held: Option<Held<V>>,
    pub origin: Origin,
    pub state: State,
    /// When the load began, if what it brought was refused everywhere: something that it depends on
    /// was invalidated since.
    pub refused: Option<Moment>,
    /// Whether it was refused by any tier, memory among them: it is for those who wait, and for
    /// nothing that is made from it.
    pub is_fenced: bool,
}

impl<V> Clone for Landed<V> {
    fn clone(&self) -> Self {
        Self {
            held: self.held.clone(),
            ..*self
        }
    }
}

impl<V> Landed<V> {
    /// There was nothing to find.
    pub(crate) fn nothing() -> Self {
        Self {
            held: None,
            origin: Origin::Nobody,
            state: State::Missing,
            refused: None,
            is_fenced: false,
        }
    }

    pub(crate) fn fresh(held: Held<V>, origin: Origin) -> Self {
        Self {
            held: Some(held),
            origin,
            state: State::Fresh,
            refused: None,
            is_fenced: false,
        }
    }

    pub(crate) fn stale(held: Held<V>, origin: Origin) -> Self {
        Self {
            held: Some(held),
            origin,
            state: State::Stale,
            refused: None,
            is_fenced: false,
        }
    }

    /// A value for those who wait, which is kept nowhere.
    pub(crate) fn not_stored(held: Held<V>) -> Self {
        Self {
            held: Some(held),
            origin: Origin::Loader,
            state: State::NotStored,
            refused: None,
            is_fenced: false,
        }
    }

    /// The same for what was refused. Whoever came after the load began, and after anything that
    /// may have been the reason, is not to have it.
    pub(crate) fn refused(held: Held<V>, began: Moment) -> Self {
        Self {
            refused: Some(began),
            ..Self::fenced(held)
        }
    }

    /// A value for those who wait, which memory refused.
    pub(crate) fn fenced(held: Held<V>) -> Self {
        Self {
            is_fenced: true,
            ..Self::not_stored(held)
        }
    }

    /// What stands in where a load failed and there is nothing stale.
    pub(crate) fn default_of(held: Held<V>) -> Self {
        Self {
            origin: Origin::StandIn,
            ..Self::fenced(held)
        }
    }

    /// Whether a caller that accepts so much staleness may be served with it.
    pub(crate) fn is_usable(&self, now: Millis, max_stale: Option<Duration>) -> bool {
        let stale = self.held.as_ref().filter(|_| self.state == State::Stale);
        stale.is_none_or(|held| policy::may_stand_in(&held.times, now, max_stale))
    }
}

/// Who gave an entry, in a word that is cheap to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Memory,
    /// Memory, and the lowest tier says that it still stands.
    Confirmed,
    /// The tier at this depth below memory.
    Tier(u32),
    Loader,
    /// A stale entry, because the load failed.
    StandIn,
    Nobody,
}

/// An entry that a loader was shown, and how it lies in a tier where that is known.
pub(crate) struct Shown<'a, V> {
    pub held: &'a Held<V>,
    pub envelope: Option<&'a Bytes>,
}

/// The right to fill one key. Whoever holds it either ends the flight or drops the guard: then
/// leases are given back and the lead passes to a caller that waits.
pub(crate) struct FillGuard<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    cache: Arc<Inner<K, V>>,
    seat: Option<Seat<K, Landing<V>>>,
    hash: u64,
    store_key: Bytes,
    mark: Mark,
    token: LeaseToken,
    /// The depths of the tiers whose lease this fill holds.
    leased: Vec<usize>,
    /// The depths of the tiers whose lease this fill asked for without an answer: it may hold it.
    unanswered: Vec<usize>,
    /// Where the invalidations of the namespace stood when the lowest tier gave its lease.
    since: Option<Position>,
    /// Whether the lowest tier, which knows what is valid, said anything of the key.
    lowest_answered: bool,
    /// What memory holds and cannot vouch for.
    suspect: Option<Held<V>>,
    /// The newest stale entry seen on the way: the stand-in if the load fails.
    stale: Option<Held<V>>,
    /// The last stale entry seen in a tier, as it lies there, by the id of its fill.
    envelope: Option<(FillId, Bytes)>,
    /// Whether this fill renews an entry that is fresh yet: the one that `stale` is then.
    renews: bool,
    /// The stale entry that the loader was shown, which is the one that it may renew.
    shown: Option<Held<V>>,
    /// How stale an entry may be to content whoever leads this fill.
    max_stale: Option<Duration>,
    /// Whether what this process has heard is not enough: the lowest tier has to be asked.
    unheard: bool,
    /// Whether what nobody can be asked about will not do.
    is_strict: bool,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> FillGuard<K, V> {
    /// Begins the fill of a flight that this caller leads.
    pub(crate) fn begin(
        cache: Arc<Inner<K, V>>,
        seat: Seat<K, Landing<V>>,
        hash: u64,
        store_key: Bytes,
        token: LeaseToken,
    ) -> Self {
        let mark = seat.mark();
        let seat = Some(seat);
        Self {
            cache,
            seat,
            hash,
            store_key,
            mark,
            token,
            leased: Vec::new(),
            unanswered: Vec::new(),
            since: None,
            lowest_answered: false,
            suspect: None,
            stale: None,
            envelope: None,
            renews: false,
            shown: None,
            max_stale: None,
            unheard: false,
            is_strict: false,
        }
    }

    pub(crate) fn cache(&self) -> &Arc<Inner<K, V>> {
        &self.cache
    }

    /// The key; `None` once landed.
    pub(crate) fn key(&self) -> Option<&K> {
        self.seat.as_ref().and_then(Seat::key)
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn store_key(&self) -> &Bytes {
        &self.store_key
    }

    pub(crate) fn mark(&self) -> Mark {
        self.mark
    }

    pub(crate) fn token(&self) -> LeaseToken {
        self.token
    }

    pub(crate) fn stale(&self) -> Option<&Held<V>> {
        self.stale.as_ref()
    }

    /// What the loader is given.
    pub(crate) fn load(&mut self, key: K) -> Load<K, V> {
        self.shown.clone_from(&self.stale);
        Load {
            key,
            stale: self.shown.as_ref().map(Stale::new),
        }
    }

    /// What the loader was shown, for one that says that it still stands.
    pub(crate) fn shown(&self) -> Option<Shown<'_, V>> {
        let held = self.shown.as_ref()?;
        let is_it = |(id, _): &&(FillId, Bytes)| held.fill_id == Some(*id);
        let envelope = self.envelope.as_ref().filter(is_it);
        Some(Shown {
            held,
            envelope: envelope.map(|(_, bytes)| bytes),
        })
    }

    /// Goes on past entries that are staler than that, whoever else may be served with them.
    pub(crate) fn not_staler_than(mut self, max_stale: Option<Duration>) -> Self {
        self.max_stale = max_stale;
        self
    }

    /// Begins no earlier than a caller who came at `mark` and leads it: whoever takes over a lead
    /// has seen nothing that was read before.
    pub(crate) fn taken_over_at(mut self, mark: Mark) -> Self {
        self.mark = self.mark.taken_over_at(mark);
        self
    }

    /// Goes by what the lowest tier says alone, if this process has not heard enough.
    pub(crate) fn unheard(mut self, unheard: bool) -> Self {
        self.unheard = unheard;
        self
    }

    /// Takes nothing for an answer that nobody could be asked about, if that will not do.
    pub(crate) fn strict(mut self, is_strict: bool) -> Self {
        self.is_strict = is_strict;
        self
    }

    /// Whether what nobody can be asked about will not do.
    pub(crate) fn is_strict(&self) -> bool {
        self.is_strict || self.unheard
    }

    /// Whether what this process has heard is not enough.
    pub(crate) fn is_unheard(&self) -> bool {
        self.unheard
    }

    /// Whether this stale entry would content whoever leads this fill.
    pub(crate) fn is_content_with(&self, held: &Held<V>, now: Millis) -> bool {
        policy::may_stand_in(&held.times, now, self.max_stale)
    }

    /// Notes that the lease of the tier at `depth` is being asked for.
    pub(crate) fn asks(&mut self, depth: usize) {
        self.unanswered.push(depth);
    }

    /// Notes that the tier at `depth` said who has the lease, or cannot have given it.
    pub(crate) fn answered(&mut self, depth: usize) {
        self.unanswered.retain(|asked| *asked != depth);
    }

    /// Notes that the lease of the tier at `depth` is held, and where the invalidations stood.
    pub(crate) fn leased(&mut self, depth: usize, since: Option<Position>) {
        self.leased.push(depth);
        self.since = since.or(self.since);
    }

    pub(crate) fn since(&self) -> Option<Position> {
        self.since
    }

    /// Notes that the lowest tier said what it knows.
    pub(crate) fn answers(&mut self) {
        self.lowest_answered = true;
    }

    /// Whether the lowest tier said what it knows.
    pub(crate) fn was_answered(&self) -> bool {
        self.lowest_answered
    }

    /// Notes an entry in memory that may have been invalidated elsewhere.
    pub(crate) fn suspects(&mut self, held: Held<V>) {
        self.suspect = Some(held);
    }

    /// The entry in memory that may have been invalidated elsewhere.
    pub(crate) fn suspect(&self) -> Option<&Held<V>> {
        self.suspect.as_ref()
    }

    /// The same, for whoever settles whether it was.
    pub(crate) fn take_suspect(&mut self) -> Option<Held<V>> {
        self.suspect.take()
    }

    /// The entry in memory that stands in for tiers which cannot be asked, where that will do.
    pub(crate) fn unverified(&mut self) -> Option<Held<V>> {
        let will_do = !self.lowest_answered && !self.is_strict();
        self.suspect.take_if(|_| will_do)
    }

    pub(crate) fn holds_lease(&self, depth: usize) -> bool {
        self.leased.contains(&depth)
    }

    /// Notes that the lease of the tier at `depth` is gone: used up, or lost.
    pub(crate) fn unleased(&mut self, depth: usize) {
        self.leased.retain(|held| *held != depth);
    }

    /// Notes a stale entry, if it is newer than the one known.
    pub(crate) fn saw_stale(&mut self, held: Held<V>) {
        let known = self.stale.as_ref().map(|known| known.times.fresh_until);
        if known.is_none_or(|known| known < held.times.fresh_until) {
            self.stale = Some(held);
        }
    }

    /// Notes how an entry lies in a tier that may be renewed.
    pub(crate) fn saw_envelope(&mut self, held: &Held<V>, bytes: Bytes) {
        self.envelope = held.fill_id.map(|id| (id, bytes));
    }

    /// Notes a fresh entry that this fill is to renew.
    pub(crate) fn renews(&mut self, held: Held<V>) {
        self.renews = true;
        self.stale = Some(held);
    }

    /// Whether this fill renews an entry that is fresh yet, so that nobody waits for it.
    pub(crate) fn is_early(&self) -> bool {
        self.renews
    }

    /// Whether this is the fresh entry that is to be renewed, or one that is no newer.
    pub(crate) fn is_to_renew(&self, held: &Held<V>) -> bool {
        let renewed = self.stale.as_ref().filter(|_| self.renews);
        renewed.is_some_and(|renewed| !held.is_newer_than(renewed))
    }

    /// Gives the stale entry to everybody who waits or comes, while the fill goes on.
    pub(crate) fn publish(&self, landed: Landed<V>) {
        if let Some(seat) = &self.seat {
            seat.show(Ok(landed));
        }
    }

    /// Ends the flight. Leases that are still held are given back.
    pub(crate) fn land(mut self, landing: Landing<V>) {
        if let Some(seat) = self.seat.take() {
            seat.land(landing);
        }
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Drop for FillGuard<K, V> {
    fn drop(&mut self) {
        if self.leased.is_empty() && self.unanswered.is_empty() {
            return;
        }
        let (shared, tiers) = (&self.cache.shared, &self.cache.tiers);
        let tiers: Vec<_> = self
            .leased
            .iter()
            .chain(&self.unanswered)
            .map(|depth| Arc::clone(&tiers[*depth]))
            .collect();
        let (key, token) = (self.store_key.clone(), self.token);
        let tier_budget = shared.tier_budget;
        shared.tasks.spawn(TaskKind::Work, async move {
            for tier in tiers {
                let mut budget = Budget::new(tier_budget);
                tier.abandon(&mut budget, &key, token).await;
            }
        });
    }
}
