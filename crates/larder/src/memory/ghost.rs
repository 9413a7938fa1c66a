//! The memory of keys that were evicted without having been read: fingerprints, no keys.

/// Fingerprints in one bucket. Sixteen of two bytes are half a cache line.
const WAYS: usize = 16;

/// A bounded, approximate first-in first-out set of hashes.
///
/// A hash belongs to one bucket, and each bucket forgets its own oldest fingerprint. Hashes spread
/// evenly, so that the buckets together forget in the order of one long queue, about; what it
/// saves is the queue. A fingerprint of 16 bits is mistaken for another about once in
/// `65,536 / WAYS` questions, and a mistake only lets an entry into the main queue early.
#[derive(Debug, Default)]
pub(super) struct Ghost {
    /// Newest fingerprint first; zero is an empty place.
    buckets: Box<[[u16; WAYS]]>,
}

impl Ghost {
    /// Remembers `hash` in a set meant for as many hashes as there are `residents` in the cache.
    pub(super) fn remember(&mut self, hash: u32, residents: u32) {
        self.fit(residents);
        let print = fingerprint(hash);
        if let Some(bucket) = self.bucket(hash) {
            bucket.copy_within(..WAYS - 1, 1);
            bucket[0] = print;
        }
    }

    /// Whether `hash` is remembered. It no longer is afterwards.
    pub(super) fn take(&mut self, hash: u32) -> bool {
        let print = fingerprint(hash);
        let Some(bucket) = self.bucket(hash) else {
            return false;
        };
        let Some(found) = bucket.iter().position(|&held| held == print) else {
            return false;
        };
        bucket.copy_within(found + 1.., found);
        bucket[WAYS - 1] = 0;
        true
    }

    /// Follows the number of residents, which a bound in bytes lets drift.
    ///
    /// A cache that evicts is full, so the number is steady and this seldom happens; what was
    /// remembered is then forgotten, which costs hits for a while and nothing else.
    fn fit(&mut self, residents: u32) {
        let wanted = (residents as usize).div_ceil(WAYS).max(1);
        let held = self.buckets.len();
        if wanted > held * 2 || wanted * 2 < held {
            self.buckets = vec![[0; WAYS]; wanted].into_boxed_slice();
        }
    }

    /// The bucket is chosen by the high bits of the hash and the fingerprint by its low ones.
    fn bucket(&mut self, hash: u32) -> Option<&mut [u16; WAYS]> {
        let at = (u64::from(hash) * self.buckets.len() as u64) >> 32;
        self.buckets.get_mut(at as usize)
    }
}

fn fingerprint(hash: u32) -> u16 {
    (hash as u16).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A hash that lands in bucket `bucket` of `buckets` with fingerprint `print`.
    fn hash(bucket: u32, buckets: u32, print: u16) -> u32 {
        let high = ((u64::from(bucket) << 32).div_ceil(u64::from(buckets)) >> 16) as u32 + 1;
        (high << 16) | u32::from(print)
    }

    #[test]
    fn an_empty_ghost_remembers_nothing() {
        assert!(!Ghost::default().take(7));
    }

    #[test]
    fn what_is_taken_is_forgotten() {
        let mut ghost = Ghost::default();
        ghost.remember(7, 100);
        assert!(ghost.take(7));
        assert!(!ghost.take(7));
    }

    #[test]
    fn buckets_do_not_push_each_other_out() {
        let mut ghost = Ghost::default();
        ghost.remember(hash(0, 4, 9), 64);
        for print in 1..=WAYS as u16 * 3 {
            ghost.remember(hash(2, 4, print), 64);
        }
        assert!(ghost.take(hash(0, 4, 9)));
    }

    #[test]
    fn it_starts_afresh_when_the_cache_has_another_size() {
        let mut ghost = Ghost::default();
        ghost.remember(7, 16);
        ghost.remember(9, 16 * 3);
        assert_eq!(ghost.buckets.len(), 3);
        assert!(!ghost.take(7));
        ghost.remember(7, 16);
        assert_eq!(ghost.buckets.len(), 1);
    }

    proptest! {
        /// One bucket is a queue: it remembers exactly the last WAYS prints not taken since.
        #[test]
        fn a_bucket_is_a_queue(steps in prop::collection::vec((1u16..40, any::<bool>()), 1..200)) {
            let mut ghost = Ghost::default();
            let mut model: Vec<u16> = Vec::new();
            for (print, remember) in steps {
                let known = model.iter().position(|&held| held == print);
                if remember && known.is_none() {
                    ghost.remember(u32::from(print), 1);
                    model.insert(0, print);
                    model.truncate(WAYS);
                } else {
                    prop_assert_eq!(ghost.take(u32::from(print)), known.is_some());
                    model.retain(|&held| held != print);
                }
            }
        }
    }
}
