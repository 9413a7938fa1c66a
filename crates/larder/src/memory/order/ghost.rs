//! The memory of keys that were evicted: fingerprints and times, no keys.

/// Fingerprints in one bucket.
const WAYS: usize = 16;

/// A bounded, approximate first-in first-out set of hashes, each with the tick at which it came.
///
/// A hash belongs to one bucket, and each bucket forgets its own oldest fingerprint. Hashes spread
/// evenly, so that the buckets together forget in the order of one long queue, about; what it
/// saves is the queue. A fingerprint of 16 bits is mistaken for another about once in
/// `65,536 / WAYS` questions, and a mistake only treats one newcomer as one that comes back.
#[derive(Debug, Default)]
pub(super) struct Ghost {
    /// By bucket, the newest first; zero is an empty place.
    prints: Box<[[u16; WAYS]]>,
    /// When each of them came. Apart from them, because the system has arrays of plain zeros ready:
    /// those of a large cache are half a megabyte, and no single insert has to write that.
    ticks: Box<[[u8; WAYS]]>,
}

impl Ghost {
    /// Remembers that `hash` went at `tick`, in a set meant for so many hashes.
    #[inline]
    pub(super) fn remember(&mut self, hash: u32, tick: u8, room_for: usize) {
        self.fit(room_for);
        let at = self.bucket(hash);
        let (prints, ticks) = (&mut self.prints[at], &mut self.ticks[at]);
        prints.copy_within(..WAYS - 1, 1);
        ticks.copy_within(..WAYS - 1, 1);
        (prints[0], ticks[0]) = (fingerprint(hash), tick);
    }

    /// When `hash` went, if it is remembered. It no longer is afterwards.
    #[inline]
    pub(super) fn take(&mut self, hash: u32) -> Option<u8> {
        let at = self.bucket(hash);
        let print = fingerprint(hash);
        let prints = self.prints.get(at)?;
        // All of them at once, without an end in between, is a few vector instructions; and most
        // that are asked for are not there.
        let is_there = (prints.iter()).fold(false, |there, &held| there | (held == print));
        if !is_there {
            return None;
        }
        self.take_from(at, print)
    }

    fn take_from(&mut self, at: usize, print: u16) -> Option<u8> {
        let (prints, ticks) = (&mut self.prints[at], &mut self.ticks[at]);
        let found = prints.iter().position(|&held| held == print)?;
        let tick = ticks[found];
        prints.copy_within(found + 1.., found);
        ticks.copy_within(found + 1.., found);
        prints[WAYS - 1] = 0;
        Some(tick)
    }

    /// Follows the number of hashes that it is meant for, which a bound in bytes lets drift.
    ///
    /// A cache that evicts is full, so the number is steady and this seldom happens; what was
    /// remembered is then forgotten, which costs hits for a while and nothing else.
    #[inline]
    fn fit(&mut self, room_for: usize) {
        let wanted = room_for.div_ceil(WAYS).max(1);
        let held = self.prints.len();
        if wanted > held * 2 || wanted * 2 < held {
            self.begin(wanted);
        }
    }

    #[cold]
    fn begin(&mut self, buckets: usize) {
        self.prints = vec![[0; WAYS]; buckets].into_boxed_slice();
        self.ticks = vec![[0; WAYS]; buckets].into_boxed_slice();
    }

    /// Bytes that it has from the allocator.
    #[cfg(test)]
    pub(super) fn heap(&self) -> usize {
        size_of_val(&*self.prints) + size_of_val(&*self.ticks)
    }

    /// The bucket is chosen by the high bits of the hash and the fingerprint by its low ones.
    #[inline]
    fn bucket(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.prints.len() as u64) >> 32) as usize
    }
}

#[inline]
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
        assert_eq!(Ghost::default().take(7), None);
    }

    #[test]
    fn what_is_taken_is_forgotten() {
        let mut ghost = Ghost::default();
        ghost.remember(7, 3, 100);
        assert_eq!(ghost.take(7), Some(3));
        assert_eq!(ghost.take(7), None);
    }

    #[test]
    fn buckets_do_not_push_each_other_out() {
        let mut ghost = Ghost::default();
        ghost.remember(hash(0, 4, 9), 1, 64);
        for print in 1..=WAYS as u16 * 3 {
            ghost.remember(hash(2, 4, print), 2, 64);
        }
        assert_eq!(ghost.take(hash(0, 4, 9)), Some(1));
    }

    #[test]
    fn it_starts_afresh_when_the_cache_has_another_size() {
        let mut ghost = Ghost::default();
        ghost.remember(7, 0, 16);
        ghost.remember(9, 0, 16 * 3);
        assert_eq!(ghost.prints.len(), 3);
        assert_eq!(ghost.take(7), None);
        ghost.remember(7, 0, 16);
        assert_eq!(ghost.prints.len(), 1);
    }

    #[test]
    fn a_ghost_takes_three_bytes_for_each_hash() {
        let mut ghost = Ghost::default();
        ghost.remember(7, 0, 100 * WAYS);
        assert_eq!(ghost.heap(), 3 * 100 * WAYS);
    }

    proptest! {
        /// One bucket is a queue: it remembers exactly the last WAYS prints not taken since.
        #[test]
        fn a_bucket_is_a_queue(steps in prop::collection::vec((1u16..40, any::<bool>()), 1..200)) {
            let mut ghost = Ghost::default();
            let mut model: Vec<(u16, u8)> = Vec::new();
            for (at, (print, remember)) in steps.into_iter().enumerate() {
                let known = model.iter().position(|&(held, _)| held == print);
                if remember && known.is_none() {
                    ghost.remember(u32::from(print), at as u8, 1);
                    model.insert(0, (print, at as u8));
                    model.truncate(WAYS);
                } else {
                    let tick = known.map(|known| model.remove(known).1);
                    prop_assert_eq!(ghost.take(u32::from(print)), tick);
                }
            }
        }
    }
}
