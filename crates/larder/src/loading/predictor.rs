//! What the readers of a cache tell of what comes next.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::FixedState;
use tokio::sync::mpsc;

use super::awaited::Awaited;
use super::prefetcher::Prefetch;
use super::successors::Successors;

/// Parts of the model, each behind a lock of its own.
const PARTS: usize = 16;
/// Tasks whose last read is remembered.
const TRAILS: usize = 1_024;

/// What readers leave behind, and what they set off. Unlike the sketch of popular keys it sees every
/// read, because what comes next is nothing that a sample shows.
pub(super) struct Predictor<K> {
    pub(super) awaited: Awaited,
    /// Prefetched entries that were read from memory.
    pub(super) useful: AtomicU64,
    /// Prefetched entries that were gone when they were asked for.
    pub(super) missed: AtomicU64,
    /// Wishes that found no room in the queue.
    pub(super) dropped: AtomicU64,
    /// The last key of each task, as far as they do not get in each other's way.
    trails: Box<[AtomicU64]>,
    parts: Box<[Mutex<Successors<K>>]>,
    /// The bits of the share of cases in which a key has to follow.
    confidence: AtomicU64,
    support: AtomicU16,
    /// Where wishes go.
    queue: Mutex<Option<mpsc::Sender<K>>>,
}

impl<K> Predictor<K> {
    pub(super) fn new() -> Self {
        Self {
            awaited: Awaited::new(),
            useful: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            trails: (0..TRAILS).map(|_| AtomicU64::new(0)).collect(),
            parts: (0..PARTS).map(|_| Mutex::new(Successors::new(0))).collect(),
            confidence: AtomicU64::new(0),
            support: AtomicU16::new(0),
            queue: Mutex::new(None),
        }
    }

    /// Begins anew.
    pub(super) fn restart(&self, queue: mpsc::Sender<K>, options: &Prefetch) {
        for part in &self.parts {
            *lock(part) = Successors::new(options.model.div_ceil(PARTS));
        }
        self.confidence.store(options.confidence.to_bits(), Relaxed);
        self.support.store(options.support, Relaxed);
        *lock(&self.queue) = Some(queue);
    }

    /// Wishes for a key, unless too many wait already.
    pub(super) fn wish(&self, key: K) {
        let queue = lock(&self.queue);
        if let Some(queue) = &*queue
            && queue.try_send(key).is_err()
        {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

impl<K: Clone> Predictor<K> {
    /// A read is over. `is_there` says whether memory has a key.
    pub(super) fn note(
        &self,
        hash: u64,
        is_hit: bool,
        key: impl FnOnce() -> K,
        is_there: impl Fn(u64, &K) -> bool,
    ) {
        if self.awaited.take(hash) {
            let outcome = if is_hit { &self.useful } else { &self.missed };
            outcome.fetch_add(1, Relaxed);
        }
        let before = self.trail().swap(hash, Relaxed);
        if before == hash {
            return;
        }
        if before != 0
            && let Ok(mut part) = self.part(before).try_lock()
        {
            part.learn(before, hash, key);
        }
        let likely = self.likely(hash, is_there);
        likely.into_iter().for_each(|key| self.wish(key));
    }

    /// What comes next with some confidence, and is not in memory.
    fn likely(&self, hash: u64, is_there: impl Fn(u64, &K) -> bool) -> Vec<K> {
        let Ok(mut part) = self.part(hash).try_lock() else {
            return Vec::new();
        };
        let confidence = f64::from_bits(self.confidence.load(Relaxed));
        let support = self.support.load(Relaxed);
        let likely = part.predict(hash, confidence, support);
        let absent = likely.filter(|(hash, key)| !is_there(*hash, key));
        absent.map(|(_, key)| key.clone()).collect()
    }

    /// Where the last key of this task stands. Requests of different users interleave, and what
    /// follows in one task is the business of one of them.
    fn trail(&self) -> &AtomicU64 {
        let task = tokio::task::try_id();
        let hash = task.map_or(0, |id| FixedState::default().hash_one(id));
        &self.trails[hash as usize % TRAILS]
    }

    fn part(&self, hash: u64) -> &Mutex<Successors<K>> {
        &self.parts[(hash >> 55) as usize % PARTS]
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
