//! What memory says of a key: one probe under a shared lock.

use std::sync::Arc;

use super::sources::{note_held, note_memory_alone, note_source};
use crate::cache::Inner;
use crate::clock::Millis;
use crate::entry::{Held, Lived};
use crate::fence::Standing;
use crate::fill::Origin;
use crate::key::{AsKey, CacheKey};
use crate::options::{Early, Isolation, Read, Tiers};
use crate::outcome::{Reason, State};
use crate::policy::{self, Decision};
use crate::scope;
use crate::sliding;
use crate::stats::Count;

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
    /// `None` without an entry.
    pub entry: Option<Lived>,
}

impl<V> Reply<V> {
    /// The answer of a read that found nothing.
    #[inline]
    pub(super) fn nothing(reason: Reason) -> Self {
        let (value, story) = (None, Story::missing(reason));
        Self { value, story }
    }
}

impl Story {
    /// The story of a read that found nothing.
    pub(super) fn missing(reason: Reason) -> Self {
        Self {
            origin: Origin::Nobody,
            state: State::Missing,
            reason,
            shared: false,
            entry: None,
        }
    }

    #[inline]
    pub(super) fn of<V>(held: &Held<V>, origin: Origin, state: State, reason: Reason) -> Self {
        let entry = Some(held.lived());
        Self {
            origin,
            state,
            reason,
            shared: false,
            entry,
        }
    }
}

/// What the probe of memory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    Serve,
    /// Serve it, and refresh it in the background.
    Refresh,
    /// Look further.
    Fetch(Reason),
}

/// Looks in memory. One probe under a shared lock; nothing is allocated.
///
/// What is to be served is in `reply`, written in place: an answer that is passed back is moved at every
/// step, and a move of what was just written in smaller pieces waits for all of them.
#[inline]
pub(super) fn probe<K, V, Q>(
    cache: &Inner<K, V>,
    read: &Read,
    hash: u64,
    key: &Q,
    reply: &mut Reply<V>,
) -> Probe
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let now = cache.clock().recent();
    if let Some(frequency) = &cache.frequency {
        frequency.note(hash, now);
    }
    if read.tiers == Tiers::Shared {
        return Probe::Fetch(Reason::SkippedMemory);
    }
    let mut probed = Probe::Fetch(Reason::NotInMemory);
    let (mut sources, mut prolongs) = (None, false);
    cache.memory.get(hash, key, now, |held| {
        let standing = cache.fence.standing(held, now);
        probed = verdict(held, standing, now, read, cache.rules.early, reply);
        if cache.rules.sliding.is_some() && !matches!(probed, Probe::Fetch(_)) {
            prolongs = sliding::is_due(held, now);
        }
        if !matches!(probed, Probe::Fetch(_)) && scope::is_open() {
            sources = Some((held.tags().to_vec(), held.times.remaining(now)));
        }
    });
    if prolongs {
        sliding::prolong(cache, hash, key, now);
    }
    if let Some((tags, fresh_for)) = sources {
        note_source(cache, key, tags, fresh_for);
        note_memory_alone(cache);
    }
    probed
}

/// What a read makes of the entry that memory holds.
#[inline]
fn verdict<V>(
    held: &Held<V>,
    standing: Standing,
    now: Millis,
    read: &Read,
    early: Early,
    reply: &mut Reply<V>,
) -> Probe {
    let (probed, state, reason) = match policy::decide(&held.times, standing, now, read.max_stale) {
        Decision::Serve if !early.is_off() && is_due(held, early, now) => {
            (Probe::Refresh, State::Fresh, Reason::Refreshing)
        }
        Decision::Serve => (Probe::Serve, State::Fresh, Reason::InMemory),
        Decision::ServeStale => (Probe::Serve, State::Stale, Reason::Throttled),
        Decision::ServeAndRefresh => (Probe::Refresh, State::Stale, Reason::Refreshing),
        Decision::Fetch | Decision::Forget => {
            return Probe::Fetch(match standing {
                Standing::Current => Reason::TooOld,
                Standing::Suspect => Reason::Suspect,
                Standing::Gone => Reason::Invalidated,
            });
        }
    };
    reply.value.clone_from(&held.value);
    reply.story = Story::of(held, Origin::Memory, state, reason);
    probed
}

fn is_due<V>(held: &Held<V>, early: Early, now: Millis) -> bool {
    held.value.is_some()
        && policy::is_due(early, &held.times_of_all(), held.load_ms, now, policy::draw)
}

/// What memory holds now, fresh or stale, and what it is worth. Whoever uses it in the name of a
/// flight asks after boarding: what an invalidation removed before that must not come back with the
/// flight.
pub(super) fn in_memory<K, V, Q>(
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

/// What memory holds now and this caller would take in the place of what it asked for, if it can be
/// believed.
pub(super) fn possible_stand_in<K, V, Q>(
    cache: &Inner<K, V>,
    read: &Read,
    hash: u64,
    key: &Q,
    now: Millis,
) -> Option<(Held<V>, Standing)>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    in_memory(cache, read.tiers, hash, key)
        .filter(|(held, _)| policy::may_stand_in(&held.times, now, read.max_stale))
}

/// What an entry is to whoever is served with it.
pub(super) fn state_of<V>(held: &Held<V>, now: Millis) -> State {
    if held.times.is_fresh(now) {
        State::Fresh
    } else {
        State::Stale
    }
}

/// What memory holds and nobody can be asked about, where that is wanted.
pub(super) fn unverified_in_memory<K, V, Q>(cache: &Inner<K, V>, key: &Q) -> Reply<V>
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
        None => Reply::nothing(Reason::Suspect),
    }
}
