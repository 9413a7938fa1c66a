//! The locks and atomics of the memory tier, in one place so that a model checker can stand in: the
//! standard ones, unless a test build says `shuttle`.

#[cfg(not(shuttle))]
pub(super) use std::sync::{
    RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering},
};

#[cfg(shuttle)]
pub(super) use shuttle::sync::{
    RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering},
};

use std::sync::PoisonError;

/// So many, or one where a model checker looks at tiny tables.
pub(super) const fn batch(size: usize) -> usize {
    if cfg!(shuttle) { 1 } else { size }
}

/// Takes the shared lock.
///
/// A poisoned lock is taken as it is: the shard runs code of its users (comparison, admission,
/// change) only where its own structure is whole, so a panic there leaves nothing half done.
pub(super) fn read<S>(lock: &RwLock<S>) -> RwLockReadGuard<'_, S> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the exclusive lock; of poison the same is true as for [`read`].
pub(super) fn write<S>(lock: &RwLock<S>) -> RwLockWriteGuard<'_, S> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
