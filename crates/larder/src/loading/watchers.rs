//! Who watches the reads of a cache: nobody, unless it is refreshed or prefetched ahead of need.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::popular::Popular;
use crate::fill::Origin;

/// What is told of every read of one cache.
pub(crate) struct Watchers<K> {
    /// Who is told now, as bits. Zero for most caches, whose hits pay one load and one branch.
    on: AtomicU8,
    popular: OnceLock<Popular<K>>,
}

/// Somebody who is told of reads.
#[derive(Clone, Copy)]
pub(super) enum Watcher {
    Popular = 1,
}

impl<K> Default for Watchers<K> {
    fn default() -> Self {
        Self {
            on: AtomicU8::new(0),
            popular: OnceLock::new(),
        }
    }
}

impl<K> Watchers<K> {
    /// Tells of a read that is over.
    #[inline]
    pub(crate) fn tell(&self, hash: u64, origin: Origin, key: impl FnOnce() -> K) {
        let on = self.on.load(Relaxed);
        if on != 0 {
            self.tell_each(on, hash, origin, key);
        }
    }

    #[inline(never)]
    fn tell_each(&self, on: u8, hash: u64, origin: Origin, key: impl FnOnce() -> K) {
        let is_hit = matches!(origin, Origin::Memory | Origin::Confirmed);
        if let Some(popular) = self
            .popular
            .get()
            .filter(|_| on & Watcher::Popular as u8 != 0)
        {
            popular.note(hash, is_hit, key);
        }
    }

    pub(super) fn popular(&self) -> &Popular<K> {
        self.popular.get_or_init(Popular::new)
    }

    /// Begins to tell `watcher`; `false` if it is told already.
    pub(super) fn begin(&self, watcher: Watcher) -> bool {
        self.on.fetch_or(watcher as u8, Relaxed) & watcher as u8 == 0
    }

    pub(super) fn end(&self, watcher: Watcher) {
        self.on.fetch_and(!(watcher as u8), Relaxed);
    }
}
