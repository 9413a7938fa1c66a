//! How often keys were asked for of late, in 64 KiB however many there are.
//!
//! A count-min sketch (Cormode and Muthukrishnan, "An Improved Data Stream Summary: The Count-Min
//! Sketch and its Applications", 2005) of counters of four bits that are halved now and then, as TinyLFU
//! has it (Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", 2017).
//! Only the least of a key's counters are raised (conservative update; Estan and Varghese, "New
//! Directions in Traffic Measurement and Accounting", 2002). The four counters of a key lie in one word,
//! so that a read of a popular key takes one look at it, and any other one write.
//!
//! Words are read and written without a lock. What is lost by that is a count now and then.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::Millis;

/// Words of sixteen counters.
const WORDS: usize = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 13;
/// The most that a counter says.
const MOST: u64 = 15;
/// What a key has to have been counted for the longest TTL: half of the most, so that popular keys do
/// not lose it whenever counters are halved.
const POPULAR: u64 = 8;
/// Of so many keys that were new to the sketch its counters are about half full: time to halve them.
const CROWDED: u64 = 2 * WORDS as u64;

/// The place of the four counters of a key, one in each quarter of a word, by the last byte of its hash.
static MASKS: [u64; 256] = masks();

const fn masks() -> [u64; 256] {
    let mut masks = [0; 256];
    let mut byte = 0;
    while byte < masks.len() {
        let mut row = 0;
        while row < 4 {
            let counter = (byte >> (2 * row)) & 3;
            masks[byte] |= MOST << (16 * row + 4 * counter);
            row += 1;
        }
        byte += 1;
    }
    masks
}

/// The sketch of one cache, and the TTLs that go with it.
#[derive(Debug)]
pub(crate) struct Frequency {
    words: Box<[AtomicU64]>,
    /// In milliseconds, from the least popular key to the most popular.
    ttls: RangeInclusive<Millis>,
    /// Keys that were new since the counters were halved.
    new_keys: AtomicU64,
    /// When the counters are to be halved for the time that passed.
    halve_at: AtomicU64,
}

impl Frequency {
    pub(crate) fn new(ttls: RangeInclusive<Millis>, now: Millis) -> Self {
        let longest = *ttls.end();
        Self {
            words: (0..WORDS).map(|_| AtomicU64::new(0)).collect(),
            ttls,
            new_keys: AtomicU64::new(0),
            halve_at: AtomicU64::new(now.saturating_add(longest)),
        }
    }

    /// Notes that the key of this hash was asked for.
    #[inline]
    pub(crate) fn note(&self, hash: u64, now: Millis) {
        if now >= self.halve_at.load(Relaxed) {
            self.age(now);
        }
        let (word, mask) = self.place(hash);
        let held = word.load(Relaxed);
        if held & mask != mask {
            self.raise(word, held, mask);
        }
    }

    fn raise(&self, word: &AtomicU64, held: u64, mask: u64) {
        let least = least(held, mask);
        let mut raised = held;
        for shift in shifts(mask) {
            if held >> shift & MOST == least {
                raised += 1 << shift;
            }
        }
        word.store(raised, Relaxed);
        if least == 0 && self.new_keys.fetch_add(1, Relaxed) + 1 >= CROWDED {
            self.halve(1);
        }
    }

    /// The TTL that an entry deserves which is filled now, in milliseconds.
    pub(crate) fn ttl(&self, hash: u64, now: Millis) -> Millis {
        if now >= self.halve_at.load(Relaxed) {
            self.age(now);
        }
        let (word, mask) = self.place(hash);
        ttl_for(&self.ttls, least(word.load(Relaxed), mask))
    }

    #[inline]
    fn place(&self, hash: u64) -> (&AtomicU64, u64) {
        let word = (hash >> (u64::BITS - INDEX_BITS)) as usize;
        (&self.words[word], MASKS[usize::from(hash as u8)])
    }

    /// Halves all counters, once for each of the longest TTLs that passed.
    #[cold]
    fn age(&self, now: Millis) {
        let due = self.halve_at.load(Relaxed);
        let longest = (*self.ttls.end()).max(1);
        let next = now.saturating_add(longest);
        let mine = self.halve_at.compare_exchange(due, next, Relaxed, Relaxed);
        // If somebody else was faster, they do it.
        if mine.is_ok() && now >= due {
            self.halve((now - due) / longest + 1);
        }
    }

    #[cold]
    fn halve(&self, times: u64) {
        let times = times.min(u64::from(MOST.ilog2()) + 1);
        for word in &self.words {
            word.store(halved(word.load(Relaxed), times), Relaxed);
        }
        // Some keys are still counted; how many, nobody knows.
        let left = self.new_keys.load(Relaxed) >> times;
        self.new_keys.store(left, Relaxed);
    }
}

/// The TTL of a key that was asked for so often: the first for one that nobody asked for before, the
/// last from [`POPULAR`] times on.
fn ttl_for(ttls: &RangeInclusive<Millis>, asked: u64) -> Millis {
    let (least, most) = (*ttls.start(), *ttls.end());
    let steps = u128::from(asked.clamp(1, POPULAR) - 1);
    let gained = u128::from(most.saturating_sub(least)) * steps / u128::from(POPULAR - 1);
    least.saturating_add(u64::try_from(gained).unwrap_or(u64::MAX))
}

/// Where the counters stand that a mask picks, one in each quarter.
fn shifts(mask: u64) -> [u32; 4] {
    [0, 1, 2, 3].map(|row| {
        let quarter = mask & (0xffff << (16 * row));
        quarter.trailing_zeros()
    })
}

fn least(word: u64, mask: u64) -> u64 {
    let counters = shifts(mask).map(|shift| word >> shift & MOST);
    counters.into_iter().fold(MOST, u64::min)
}

/// Sixteen counters, each halved so often.
fn halved(word: u64, times: u64) -> u64 {
    (0..times).fold(word, |word, _| word >> 1 & 0x7777_7777_7777_7777)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTLS: RangeInclusive<Millis> = 1_000..=8_000;

    fn asked(sketch: &Frequency, hash: u64) -> u64 {
        let (word, mask) = sketch.place(hash);
        least(word.load(Relaxed), mask)
    }

    #[test]
    fn each_mask_picks_one_counter_of_each_quarter_and_no_two_are_the_same() {
        let mut all = MASKS.to_vec();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 256);
        for mask in all {
            assert_eq!(mask.count_ones(), 16);
            for (row, shift) in shifts(mask).into_iter().enumerate() {
                assert_eq!(shift as usize / 16, row);
                assert_eq!(mask >> shift & MOST, MOST);
            }
        }
    }

    #[test]
    fn a_key_is_counted_up_to_fifteen_and_its_ttl_grows_with_it() {
        let sketch = Frequency::new(TTLS, 0);
        let hash = 0x1234_5678_9abc_def0;
        for times in 0..40 {
            assert_eq!(asked(&sketch, hash), times.min(15));
            assert_eq!(sketch.ttl(hash, 0), 1_000 * times.clamp(1, 8));
            sketch.note(hash, 0);
        }
        assert_eq!(sketch.new_keys.load(Relaxed), 1);
        assert_eq!(ttl_for(&(5..=5), 9), 5);
        assert_eq!(ttl_for(&(1..=u64::MAX), 15), u64::MAX);
    }

    #[test]
    fn counters_are_halved_for_each_of_the_longest_ttls_that_passed() {
        let hash = 0xfedc_ba98_7654_3210;
        for (later, left) in [(7_999, 15), (8_000, 7), (16_000, 3), (80_000, 0)] {
            let sketch = Frequency::new(TTLS, 0);
            (0..20).for_each(|_| sketch.note(hash, 0));
            let _ = sketch.ttl(0, later);
            assert_eq!(asked(&sketch, hash), left, "after {later} ms");
            // And once more after as long again.
            sketch.note(!hash, later + 8_000);
            assert_eq!(asked(&sketch, hash), left / 2);
        }
    }

    /// A popular key stands out among any number of others, which stay what they are.
    #[test]
    fn many_keys_do_not_make_each_other_popular() {
        let mut rng = fastrand::Rng::with_seed(7);
        let sketch = Frequency::new(TTLS, 0);
        let popular = rng.u64(..);
        let mut wrong = 0;
        for _ in 0..200_000 {
            let once = rng.u64(..);
            sketch.note(once, 0);
            if rng.u8(..) < 26 {
                sketch.note(popular, 0);
            }
            if sketch.ttl(once, 0) > 3_000 {
                wrong += 1;
            }
        }
        assert!(asked(&sketch, popular) >= POPULAR);
        assert!(wrong < 2_000, "{wrong} of 200,000 were taken for popular");
    }

    #[test]
    fn threads_that_note_at_once_lose_little() {
        let sketch = Frequency::new(TTLS, 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| sketch.note(7, 0)));
            }
        });
        assert_eq!(asked(&sketch, 7), MOST);
    }
}
