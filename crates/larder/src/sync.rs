//! The locks that shuttle can schedule: the standard ones, unless a test build says `shuttle`.
//!
//! A poisoned lock is entered all the same: every critical section of this crate leaves its data
//! whole before it calls anything that could panic.

#[cfg(not(shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};

/// Locks, whether or not an earlier holder panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
