//! The locks and atomics of the memory tier, in one place so that a model checker can stand in.

pub(super) use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
pub(super) use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use std::sync::PoisonError;

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
