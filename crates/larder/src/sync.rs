//! The locks that shuttle can schedule: the standard ones, unless a test build says `shuttle`.
//!
//! A poisoned lock is entered all the same: every critical section of this crate leaves its data
//! whole before it calls anything that could panic.

#[cfg(not(shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};

#[cfg(not(shuttle))]
pub(crate) use std::sync::OnceLock;

#[cfg(shuttle)]
pub(crate) use scheduled::OnceLock;

#[cfg(shuttle)]
mod scheduled {
    use shuttle::sync::atomic::{AtomicBool, Ordering::SeqCst};

    /// The standard one. Shuttle has none of its own, and would never interleave what stands between it
    /// and the next lock; so another thread may come before each look and each value.
    pub(crate) struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        turn: AtomicBool,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self {
                value: std::sync::OnceLock::new(),
                turn: AtomicBool::new(false),
            }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            self.turn.load(SeqCst);
            self.value.get()
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            self.turn.load(SeqCst);
            self.value.set(value)
        }
    }
}

/// Locks, whether or not an earlier holder panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
