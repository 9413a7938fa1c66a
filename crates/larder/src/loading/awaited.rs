//! Which entries were loaded ahead of need and have not been read yet.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets; a power of two.
const BUCKETS: usize = 4_096;
/// Places in each.
const WAYS: usize = 4;

/// A set of hashes of keys in constant memory (128 KiB), which a reader asks at the cost of one
/// cache line. Where a bucket is full, the newest hash takes the place of another.
pub(super) struct Awaited {
    buckets: Box<[Bucket]>,
}

/// Zero is a free place.
#[derive(Default)]
#[repr(align(32))]
struct Bucket([AtomicU64; WAYS]);

impl Awaited {
    pub(super) fn new() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
        }
    }

    /// Notes that an entry waits for its first reader. Returns the hash whose place it took.
    pub(super) fn mark(&self, hash: u64) -> Option<u64> {
        let (places, name) = self.places(hash);
        if places.iter().any(|place| place.load(Relaxed) == name) {
            return None;
        }
        let free = |place: &&AtomicU64| place.compare_exchange(0, name, Relaxed, Relaxed).is_ok();
        if places.iter().any(|place| free(&place)) {
            return None;
        }
        let displaced = places[(hash % WAYS as u64) as usize].swap(name, Relaxed);
        (displaced != 0).then_some(displaced)
    }

    /// Whether it waits for its first reader.
    pub(super) fn has(&self, hash: u64) -> bool {
        let (places, name) = self.places(hash);
        places.iter().any(|place| place.load(Relaxed) == name)
    }

    /// Whether it waited until now: it no longer does.
    #[inline]
    pub(super) fn take(&self, hash: u64) -> bool {
        let (places, name) = self.places(hash);
        places.iter().any(|place| {
            // Most readers find nothing here, and nothing is written for them.
            place.load(Relaxed) == name && place.compare_exchange(name, 0, Relaxed, Relaxed).is_ok()
        })
    }

    #[inline]
    fn places(&self, hash: u64) -> (&[AtomicU64; WAYS], u64) {
        let Bucket(places) = &self.buckets[(hash >> 17) as usize % BUCKETS];
        (places, name(hash))
    }
}

/// What stands for a hash here: never zero.
pub(super) fn name(hash: u64) -> u64 {
    hash | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_taken_once_and_a_full_bucket_gives_up_one() {
        let awaited = Awaited::new();
        let one_bucket = |n: u64| (n << 1) | 1;
        for n in 1..=4 {
            assert_eq!(awaited.mark(one_bucket(n)), None);
            assert_eq!(awaited.mark(one_bucket(n)), None, "twice is once");
        }
        assert!(awaited.has(one_bucket(2)) && awaited.take(one_bucket(2)));
        assert!(!awaited.has(one_bucket(2)) && !awaited.take(one_bucket(2)));
        assert_eq!(awaited.mark(one_bucket(5)), None, "there is room again");
        let displaced = awaited.mark(one_bucket(6)).unwrap();
        assert!(!awaited.has(displaced));
        let there = (1..=6).filter(|n| awaited.has(one_bucket(*n))).count();
        assert_eq!(there, 4);
    }
}
