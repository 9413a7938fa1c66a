//! Who watches the reads of a cache: nobody, unless it is refreshed or prefetched ahead of need.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::popular::Popular;
use super::predictor::Predictor;
use crate::fill::Origin;

/// What is told of every read of one cache.
pub(crate) struct Watchers<K> {
    /// Who is told now, as bits. Zero for most caches, whose hits pay one load and one branch.
    on: AtomicU8,
    popular: OnceLock<Popular<K>>,
    predictor: OnceLock<Predictor<K>>,
}

/// Somebody who is told of reads.
#[derive(Clone, Copy)]
pub(super) enum Watcher {
    Popular = 1,
    Predictor = 2,
}

impl<K> Default for Watchers<K> {
    fn default() -> Self {
        Self {
            on: AtomicU8::new(0),
            popular: OnceLock::new(),
            predictor: OnceLock::new(),
        }
    }
}

impl<K> Watchers<K> {
    pub(super) fn popular(&self) -> &Popular<K> {
        self.popular.get_or_init(Popular::new)
    }

    pub(super) fn predictor(&self) -> &Predictor<K> {
        self.predictor.get_or_init(Predictor::new)
    }

    /// Wishes for keys that are related to one that was loaded.
    pub(super) fn wish(&self, keys: Vec<K>) {
        if self.is_on(Watcher::Predictor) {
            keys.into_iter().for_each(|key| self.predictor().wish(key));
        }
    }

    pub(super) fn is_on(&self, watcher: Watcher) -> bool {
        self.on.load(Relaxed) & watcher as u8 != 0
    }

    /// Begins to tell `watcher`; `false` if it is told already.
    pub(super) fn begin(&self, watcher: Watcher) -> bool {
        self.on.fetch_or(watcher as u8, Relaxed) & watcher as u8 == 0
    }

    pub(super) fn end(&self, watcher: Watcher) {
        self.on.fetch_and(!(watcher as u8), Relaxed);
    }
}

impl<K: Clone> Watchers<K> {
    /// The keys that are read most, where somebody keeps account of it.
    pub(super) fn top(&self) -> Vec<K> {
        if self.is_on(Watcher::Popular) {
            self.popular().sketch().top()
        } else {
            Vec::new()
        }
    }

    /// Tells of a read that is over. `is_there` says whether memory has another key.
    #[inline]
    pub(crate) fn tell(
        &self,
        hash: u64,
        origin: Origin,
        key: impl Fn() -> K,
        is_there: impl Fn(u64, &K) -> bool,
    ) {
        let on = self.on.load(Relaxed);
        if on != 0 {
            self.tell_each(on, hash, origin, key, is_there);
        }
    }

    #[inline(never)]
    fn tell_each(
        &self,
        on: u8,
        hash: u64,
        origin: Origin,
        key: impl Fn() -> K,
        is_there: impl Fn(u64, &K) -> bool,
    ) {
        let is_hit = matches!(origin, Origin::Memory | Origin::Confirmed);
        if on & Watcher::Popular as u8 != 0 {
            self.popular().note(hash, is_hit, &key);
        }
        if on & Watcher::Predictor as u8 != 0 {
            self.predictor().note(hash, is_hit, &key, is_there);
        }
    }
}
