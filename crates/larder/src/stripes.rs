//! Which stripe of a set of counters a thread adds to: one of its own, as long as there are any.
//!
//! Where several threads add to a number, each addition is a locked instruction. A hit in memory has
//! four of them for its lock and its `Arc`, which are most of what it takes; a fifth for counting it
//! would be an eighth of all.

use std::cell::Cell;
use std::sync::atomic::{
    AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

/// So many threads at a time have a stripe of their own.
const OWNED: usize = u32::BITS as usize;

/// The others share these.
const SHARED: usize = 8;

/// How many stripes there are.
pub(crate) const STRIPES: usize = OWNED + SHARED;

/// The stripe of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stripe(usize);

impl Stripe {
    /// That of this thread.
    #[inline]
    pub(crate) fn of_thread() -> Self {
        match MINE.get() {
            0 => take(),
            mine => Self(mine - 1),
        }
    }

    /// Its number, below [`STRIPES`].
    #[inline]
    pub(crate) fn number(self) -> usize {
        self.0
    }

    /// Adds to a counter of this stripe, for the thread whose stripe it is.
    #[inline]
    pub(crate) fn add(self, counter: &AtomicU64, amount: u64) {
        if self.is_owned() {
            // Nobody else writes it.
            counter.store(counter.load(Relaxed).wrapping_add(amount), Relaxed);
        } else {
            counter.fetch_add(amount, Relaxed);
        }
    }

    #[inline]
    fn is_owned(self) -> bool {
        self.0 < OWNED
    }

    /// One of those that are shared, in turn.
    fn shared() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self(OWNED + NEXT.fetch_add(1, Relaxed) % SHARED)
    }
}

thread_local! {
    /// The stripe of this thread, counted from one; zero until it has one.
    static MINE: Cell<usize> = const { Cell::new(0) };
    /// Gives it back when the thread ends, if it is its own.
    static LEASE: Cell<Option<Lease>> = const { Cell::new(None) };
}

/// The stripes that threads have to themselves.
static PLACES: Places = Places(AtomicU32::new(0));

#[cold]
fn take() -> Stripe {
    let lease = |lease: &Cell<Option<Lease>>| {
        let at = PLACES.take()?;
        lease.set(Some(Lease(at)));
        Some(Stripe(at))
    };
    // A thread that counts when it has all but ended could not give a stripe back.
    let owned = LEASE.try_with(lease).ok().flatten();
    let stripe = owned.unwrap_or_else(Stripe::shared);
    MINE.set(stripe.0 + 1);
    stripe
}

/// A stripe that is given back.
#[derive(Debug)]
struct Lease(usize);

impl Drop for Lease {
    fn drop(&mut self) {
        // What its thread counts from now on.
        MINE.set(Stripe::shared().0 + 1);
        PLACES.give_back(self.0);
    }
}

/// A bit for each that is taken.
#[derive(Debug)]
struct Places(AtomicU32);

impl Places {
    /// Takes one, and sees all that whoever had it before has counted in it.
    fn take(&self) -> Option<usize> {
        let lowest_free = |taken: u32| (taken < u32::MAX).then(|| taken | (taken + 1));
        let taken = self.0.fetch_update(Acquire, Relaxed, lowest_free).ok()?;
        Some(taken.trailing_ones() as usize)
    }

    fn give_back(&self, at: usize) {
        self.0.fetch_and(!(1 << at), Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{RwLock, mpsc};
    use std::time::Duration;

    use super::*;

    #[test]
    fn places_are_taken_once_and_again_when_they_are_given_back() {
        let places = Places(AtomicU32::new(0));
        assert!((0..OWNED).all(|at| places.take() == Some(at)));
        assert_eq!(places.take(), None);
        places.give_back(7);
        places.give_back(31);
        assert_eq!([(); 3].map(|()| places.take()), [Some(7), Some(31), None]);
    }

    #[test]
    fn nothing_is_lost_when_there_are_more_threads_than_stripes() {
        let counters: Vec<_> = (0..STRIPES).map(|_| AtomicU64::new(0)).collect();
        let (threads, each) = (3 * STRIPES, 50_000);
        let gate = RwLock::new(());
        std::thread::scope(|scope| {
            let (has_one, all_have_one) = mpsc::channel();
            let closed = gate.write().expect("nobody panics");
            for _ in 0..threads {
                let (has_one, gate, counters) = (has_one.clone(), &gate, &counters);
                scope.spawn(move || {
                    let stripe = Stripe::of_thread();
                    has_one.send(()).expect("the test waits");
                    drop(gate.read().expect("nobody panics"));
                    for _ in 0..each {
                        assert_eq!(Stripe::of_thread(), stripe);
                        stripe.add(&counters[stripe.number()], 1);
                    }
                });
            }
            for _ in 0..threads {
                let one = all_have_one.recv_timeout(Duration::from_secs(20));
                one.expect("each thread gets a stripe");
            }
            drop(closed);
        });
        let sum: u64 = counters.iter().map(|counter| counter.load(Relaxed)).sum();
        assert_eq!(sum, threads as u64 * each);
    }

    #[test]
    fn a_thread_that_ends_gives_its_stripe_back() {
        let has_its_own = || Stripe::of_thread().is_owned();
        let ask = |_| std::thread::spawn(has_its_own).join().expect("it ends");
        // Other tests may have all of them for a while.
        let owners = (0..5_000).map(ask).filter(|owned| *owned);
        assert_eq!(owners.take(2 * OWNED).count(), 2 * OWNED);
    }
}
