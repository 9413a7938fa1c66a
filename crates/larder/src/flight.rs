//! One load for any number of callers.
//!
//! A *flight* is one attempt to fetch one key at one state of the fence. Whoever boards first
//! leads it and holds its [`Seat`]; everybody, the leader included, holds a [`Wait`]. What the leader lands, everybody gets. A seat
//! that is dropped without landing (its caller was cancelled, its task died) makes the lead
//! vacant, and the first waiter that wakes takes it: nobody is stranded.
//!
//! ```text
//! A: board → Seat, Wait ────────── dropped
//! B:    board → Wait ────────────── woken → Seat ── land(value)
//! C:       board → Wait ─────────── woken, waits on ─────── value
//! ```
//!
//! A caller never waits for a flight older than the last invalidation of its key, or than the last
//! doubt of whether all of them were heard of: with a later mark it boards a new flight, and the old
//! one goes on for those it already carries.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use equivalent::Equivalent;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::fence::Mark;
use crate::sync::{Mutex, OnceLock, lock};

const SHARDS: usize = 16;

/// The flights of one cache that are under way.
pub(crate) struct Flights<K, T> {
    shards: Box<[Shard<K, T>]>,
}

type Shard<K, T> = Mutex<HashTable<Arc<Flight<K, T>>>>;

struct Flight<K, T> {
    /// Where it stands. They hold each other until it is over, and no longer.
    flights: Arc<Flights<K, T>>,
    key: K,
    hash: u64,
    mark: Mark,
    /// What the leader landed. Outside the lock, for which all who wait would queue at once.
    landed: OnceLock<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// Whether somebody leads, or did until it landed.
    is_led: bool,
    /// What the leader showed ahead of landing.
    shown: Option<T>,
    /// One place per wait that was ever polled; empty once woken or dropped.
    waiting: Vec<Option<Waker>>,
    /// The places in `waiting` whose waits are gone.
    free: Vec<usize>,
    /// How many [`Wait`]s exist, woken or not.
    waits: usize,
}

/// What a wait ends with.
pub(crate) enum Arrival<K, T: Clone> {
    /// What the leader landed or showed.
    Landed(T),
    /// The leader is gone: this caller leads now.
    Lead(Seat<K, T>),
}

impl<K, T: Clone> Flights<K, T> {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(HashTable::new())).collect(),
        }
    }

    /// Boards the flight of `key` at `mark` or later, or begins it. Whoever gets the seat leads.
    pub(crate) fn board<Q>(
        self: &Arc<Self>,
        hash: u64,
        key: &Q,
        mark: Mark,
    ) -> (Option<Seat<K, T>>, Wait<K, T>)
    where
        Q: Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        let mut shard = lock(self.shard(hash));
        let same = |flight: &Arc<Flight<K, T>>| flight.hash == hash && key.equivalent(&flight.key);
        let flight = match shard.entry(hash, same, |flight| flight.hash) {
            Entry::Occupied(there) if there.get().mark.is_as_new_as(&mark) => {
                Arc::clone(there.get())
            }
            Entry::Occupied(mut outdated) => {
                let flight = Arc::new(Flight::new(self, key.to_owned(), hash, mark));
                *outdated.get_mut() = Arc::clone(&flight);
                flight
            }
            Entry::Vacant(place) => {
                let flight = Arc::new(Flight::new(self, key.to_owned(), hash, mark));
                place.insert(Arc::clone(&flight));
                flight
            }
        };
        let mut state = lock(&flight.state);
        state.waits += 1;
        let seat = state.take_lead().then(|| Seat::of(&flight));
        drop(state);
        let wait = Wait {
            flight,
            place: None,
            until: Until::Shown,
        };
        (seat, wait)
    }

    fn shard(&self, hash: u64) -> &Shard<K, T> {
        &self.shards[(hash >> 40) as usize % SHARDS]
    }

    /// Takes the flight out of the table, unless a newer one has taken its place.
    fn remove(shard: &mut HashTable<Arc<Flight<K, T>>>, flight: &Arc<Flight<K, T>>) {
        if let Ok(entry) = shard.find_entry(flight.hash, |other| Arc::ptr_eq(other, flight)) {
            entry.remove();
        }
    }
}

impl<K, T> Flight<K, T> {
    fn new(flights: &Arc<Flights<K, T>>, key: K, hash: u64, mark: Mark) -> Self {
        let state = State {
            is_led: false,
            shown: None,
            waiting: Vec::new(),
            free: Vec::new(),
            waits: 0,
        };
        Self {
            flights: Arc::clone(flights),
            key,
            hash,
            mark,
            landed: OnceLock::new(),
            state: Mutex::new(state),
        }
    }
}

impl<T> State<T> {
    /// Takes the lead if nobody has it.
    fn take_lead(&mut self) -> bool {
        !std::mem::replace(&mut self.is_led, true)
    }

    fn take_wakers(&mut self) -> Vec<Waker> {
        self.waiting.iter_mut().filter_map(Option::take).collect()
    }
}

fn wake_all(waiting: Vec<Waker>) {
    waiting.into_iter().for_each(Waker::wake);
}

/// The lead of a flight. Dropped without [`Seat::land`], it passes the lead on.
pub(crate) struct Seat<K, T: Clone> {
    mark: Mark,
    /// `None` once landed.
    flight: Option<Arc<Flight<K, T>>>,
}

impl<K, T: Clone> Seat<K, T> {
    /// The lead of `flight`, which nobody has.
    fn of(flight: &Arc<Flight<K, T>>) -> Self {
        Self {
            mark: flight.mark,
            flight: Some(Arc::clone(flight)),
        }
    }

    /// The state of the fence that the flight belongs to.
    pub(crate) fn mark(&self) -> Mark {
        self.mark
    }

    /// The key of the flight; `None` once landed.
    pub(crate) fn key(&self) -> Option<&K> {
        self.flight.as_ref().map(|flight| &flight.key)
    }

    /// Gives `value` to everybody who waits or joins, while the flight goes on.
    pub(crate) fn show(&self, value: T) {
        let Some(flight) = &self.flight else { return };
        let waiting = {
            let mut state = lock(&flight.state);
            state.shown = Some(value);
            state.take_wakers()
        };
        wake_all(waiting);
    }

    /// Ends the flight: everybody who waits gets `value`.
    pub(crate) fn land(mut self, value: T) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        let waiting = {
            let mut state = lock(&flight.state);
            // Under the lock, so that nobody who found nothing there waits for it afterwards.
            let _: Result<(), T> = flight.landed.set(value);
            state.take_wakers()
        };
        let mut shard = lock(flight.flights.shard(flight.hash));
        Flights::remove(&mut shard, &flight);
        drop(shard);
        wake_all(waiting);
    }
}

impl<K, T: Clone> Drop for Seat<K, T> {
    fn drop(&mut self) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        let mut shard = lock(flight.flights.shard(flight.hash));
        let mut state = lock(&flight.state);
        state.is_led = false;
        if state.waits == 0 {
            Flights::remove(&mut shard, &flight);
        }
        let waiting = state.take_wakers();
        drop(state);
        drop(shard);
        wake_all(waiting);
    }
}

/// A place on somebody else's flight.
pub(crate) struct Wait<K, T: Clone> {
    flight: Arc<Flight<K, T>>,
    /// Where the waker stands, once polled.
    place: Option<usize>,
    until: Until,
}

/// What a wait is content with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Shown,
    Landed,
}

impl<K, T: Clone> Wait<K, T> {
    /// Waits for the end of the flight, whatever the leader shows before.
    pub(crate) fn insist(&mut self) {
        self.until = Until::Landed;
    }
}

impl<K, T: Clone> Future for Wait<K, T> {
    type Output = Arrival<K, T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let landed = |flight: &Flight<K, T>| flight.landed.get().cloned().map(Arrival::Landed);
        if let Some(arrival) = landed(&this.flight) {
            return Poll::Ready(arrival);
        }
        let mut state = lock(&this.flight.state);
        if let Some(arrival) = landed(&this.flight) {
            return Poll::Ready(arrival);
        }
        if let (Some(value), Until::Shown) = (&state.shown, this.until) {
            return Poll::Ready(Arrival::Landed(value.clone()));
        }
        if state.take_lead() {
            return Poll::Ready(Arrival::Lead(Seat::of(&this.flight)));
        }
        let waker = Some(context.waker().clone());
        match this.place {
            Some(place) => state.waiting[place] = waker,
            None => match state.free.pop() {
                Some(place) => {
                    state.waiting[place] = waker;
                    this.place = Some(place);
                }
                None => {
                    this.place = Some(state.waiting.len());
                    state.waiting.push(waker);
                }
            },
        }
        Poll::Pending
    }
}

impl<K, T: Clone> Drop for Wait<K, T> {
    fn drop(&mut self) {
        if self.flight.landed.get().is_some() {
            return; // Nobody asks any more who waits, nor who leads.
        }
        let mut shard = lock(self.flight.flights.shard(self.flight.hash));
        let mut state = lock(&self.flight.state);
        state.waits -= 1;
        if let Some(place) = self.place {
            state.waiting[place] = None;
            state.free.push(place);
        }
        if state.waits == 0 && !state.is_led {
            Flights::remove(&mut shard, &self.flight);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
#[path = "flight_tests.rs"]
mod tests;

#[cfg(all(test, shuttle))]
#[path = "flight_shuttle.rs"]
mod schedules;
