//! What the readers of a cache tell of its keys: which are popular, and whether what was refreshed
//! ahead of need is read.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use tokio::sync::Notify;

use super::awaited::Awaited;
use super::sketch::Sketch;

/// What readers leave behind. A read pays for one look at [`Awaited`] and a draw of its thread;
/// one of several pays for the sketch, unless another thread is at it.
pub(super) struct Popular<K> {
    pub(super) awaited: Awaited,
    /// Refreshed entries that were read before they expired.
    pub(super) useful: AtomicU64,
    /// One read of so many is noted.
    sample: AtomicU32,
    noted: AtomicU64,
    sketch: Mutex<Sketch<K>>,
    is_idle: AtomicBool,
    woken: Notify,
}

impl<K> Popular<K> {
    pub(super) fn new() -> Self {
        Self {
            awaited: Awaited::new(),
            useful: AtomicU64::new(0),
            sample: AtomicU32::new(1),
            noted: AtomicU64::new(0),
            sketch: Mutex::new(Sketch::new(0, Rng::new())),
            is_idle: AtomicBool::new(false),
            woken: Notify::new(),
        }
    }

    /// Begins anew with another size.
    pub(super) fn restart(&self, keys: usize, sample: u32) {
        self.sample.store(sample.max(1), Relaxed);
        *self.sketch() = Sketch::new(keys, Rng::new());
    }

    /// A read is over.
    pub(super) fn note(&self, hash: u64, is_hit: bool, key: impl FnOnce() -> K) {
        if is_hit && self.awaited.take(hash) {
            self.useful.fetch_add(1, Relaxed);
        }
        // Drawn, because reads may come in a rhythm.
        if fastrand::u32(..self.sample.load(Relaxed)) == 0 {
            self.sample(hash, key);
        }
    }

    #[cold]
    fn sample(&self, hash: u64, key: impl FnOnce() -> K) {
        self.noted.fetch_add(1, SeqCst);
        if let Ok(mut sketch) = self.sketch.try_lock() {
            sketch.note(hash, key);
        }
        // Either this sees that somebody is idle, or that one sees what was noted.
        if self.is_idle.load(SeqCst) && self.is_idle.swap(false, SeqCst) {
            self.woken.notify_one();
        }
    }

    pub(super) fn sketch(&self) -> MutexGuard<'_, Sketch<K>> {
        self.sketch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many reads were noted so far.
    pub(super) fn noted(&self) -> u64 {
        self.noted.load(SeqCst)
    }

    /// Waits until more than `noted` reads were noted.
    pub(super) async fn read_again(&self, noted: u64) {
        loop {
            self.is_idle.store(true, SeqCst);
            if self.noted() > noted {
                self.is_idle.store(false, SeqCst);
                return;
            }
            self.woken.notified().await;
        }
    }
}
