//! The keys that are read most often, in constant memory.
//!
//! HeavyKeeper (Gong, Yang, Zhang, Li, Uhlig, Chen, Uden, Li: "HeavyKeeper: An Accurate Algorithm for
//! Finding Top-k Elephant Flows", USENIX ATC 2018): each row of the table has one bucket for a key, with
//! a fingerprint and a count. A key that finds its own fingerprint counts up; one that finds another's
//! counts that down with a probability of 1.08^-count, and takes the bucket at zero. So the many keys
//! that are read once leave the counts of the few alone. All counts are halved from time to time, so
//! that what was popular is forgotten.

use std::collections::{BTreeSet, HashMap};

use fastrand::Rng;

const ROWS: usize = 2;
/// Buckets in a row for each key that is kept.
const BUCKETS_PER_KEY: usize = 8;
/// How fast the chance to count another key down falls with its count.
const DECAY: f64 = 1.08;
/// From here on the chance is so small that it is not drawn.
const OUT_OF_REACH: u32 = 256;

/// The top keys, and the table that says which they are.
pub(super) struct Sketch<K> {
    at_most: usize,
    mask: usize,
    rows: [Box<[Bucket]>; ROWS],
    /// By hash.
    top: HashMap<u64, Top<K>>,
    /// Counts and hashes of the same.
    ranks: BTreeSet<(u32, u64)>,
    rng: Rng,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    fingerprint: u32,
    count: u32,
}

struct Top<K> {
    key: K,
    count: u32,
}

impl<K> Sketch<K> {
    pub(super) fn new(at_most: usize, rng: Rng) -> Self {
        let buckets = (at_most * BUCKETS_PER_KEY).next_power_of_two().max(64);
        Self {
            at_most,
            mask: buckets - 1,
            rows: std::array::from_fn(|_| vec![Bucket::default(); buckets].into()),
            top: HashMap::new(),
            ranks: BTreeSet::new(),
            rng,
        }
    }

    /// Counts a read. The key is asked for only if it is among the top from now on.
    pub(super) fn note(&mut self, hash: u64, key: impl FnOnce() -> K) {
        let seen = self.count(hash);
        if let Some(top) = self.top.get_mut(&hash) {
            if seen > top.count {
                self.ranks.remove(&(top.count, hash));
                self.ranks.insert((seen, hash));
                top.count = seen;
            }
            return;
        }
        let least = self.ranks.first().copied();
        if let Some((count, least)) = least.filter(|_| self.top.len() >= self.at_most) {
            if seen <= count {
                return;
            }
            self.ranks.remove(&(count, least));
            self.top.remove(&least);
        }
        if self.at_most > 0 && seen > 0 {
            let key = key();
            self.top.insert(hash, Top { key, count: seen });
            self.ranks.insert((seen, hash));
        }
    }

    /// Counts in the table, and returns how often the key was seen, as far as it knows.
    fn count(&mut self, hash: u64) -> u32 {
        let fingerprint = (hash >> 32) as u32;
        let mut most = 0;
        for (row, buckets) in self.rows.iter_mut().enumerate() {
            let spread = hash.wrapping_mul([1, 0x9E37_79B9_7F4A_7C15][row]);
            let bucket = &mut buckets[(spread >> (7 + 20 * row)) as usize & self.mask];
            if bucket.count == 0 || bucket.fingerprint == fingerprint {
                bucket.fingerprint = fingerprint;
                bucket.count = bucket.count.saturating_add(1);
                most = most.max(bucket.count);
            } else if bucket.count < OUT_OF_REACH
                && self.rng.f64() < DECAY.powi(-(bucket.count as i32))
            {
                bucket.count -= 1;
                if bucket.count == 0 {
                    *bucket = Bucket {
                        fingerprint,
                        count: 1,
                    };
                    most = most.max(1);
                }
            }
        }
        most
    }

    /// Forgets half of everything.
    pub(super) fn halve(&mut self) {
        for bucket in self.rows.iter_mut().flat_map(|row| row.iter_mut()) {
            bucket.count /= 2;
        }
        self.top.retain(|_, top| {
            top.count /= 2;
            top.count > 0
        });
        self.ranks = self
            .top
            .iter()
            .map(|(hash, top)| (top.count, *hash))
            .collect();
    }
}

impl<K: Clone> Sketch<K> {
    /// The top keys, the most popular first.
    pub(super) fn top(&self) -> Vec<K> {
        let ranks = self.ranks.iter().rev();
        ranks
            .filter_map(|(_, hash)| Some(self.top.get(hash)?.key.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Zipf draws, and names for the ranks that are well spread.
    fn zipf(keys: usize, skew: f64, rng: &mut Rng) -> impl FnMut() -> u64 + use<> {
        let mut total = 0.0;
        let sums: Vec<f64> = (1..=keys)
            .map(|rank| {
                total += (rank as f64).powf(-skew);
                total
            })
            .collect();
        let mut rng = rng.fork();
        move || {
            let point = rng.f64() * total;
            sums.partition_point(|sum| *sum < point) as u64
        }
    }

    fn hash(key: u64) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes())
    }

    /// How many of the 100 that are read most often are among the first 120 of the sketch.
    fn recall(skew: f64, rng: &mut Rng) -> usize {
        let mut sketch = Sketch::new(120, rng.fork());
        let mut draw = zipf(100_000, skew, rng);
        for _ in 0..300_000 {
            let key = draw();
            sketch.note(hash(key), || key);
        }
        let top = sketch.top();
        assert!(top.len() <= 120 && sketch.rows[0].len() == 1_024);
        top.iter().filter(|key| **key < 100).count()
    }

    #[test]
    fn the_top_of_a_long_tail_is_found_in_constant_memory() {
        larder_testkit::seeded(3, |rng, _| {
            let (flat, steep) = (recall(0.8, rng), recall(1.1, rng));
            assert!(flat >= 75, "{flat} of 100 at a skew of 0.8");
            assert!(steep >= 95, "{steep} of 100 at a skew of 1.1");
        });
    }

    #[test]
    fn the_most_popular_come_first_and_the_key_is_asked_for_once() {
        let mut sketch = Sketch::new(3, Rng::with_seed(1));
        let mut asked = Vec::new();
        for (key, reads) in [(1, 5), (2, 9), (3, 2), (4, 7)] {
            for _ in 0..reads {
                sketch.note(hash(key), || {
                    asked.push(key);
                    key
                });
            }
        }
        assert_eq!(sketch.top(), [2, 4, 1]);
        assert_eq!(asked, [1, 2, 3, 4]);
    }

    #[test]
    fn yesterdays_keys_are_forgotten() {
        larder_testkit::seeded(3, |rng, _| {
            let mut sketch = Sketch::new(10, rng.fork());
            for day in 0..3_u64 {
                for _ in 0..1_000 {
                    let key = day * 100 + rng.u64(..10);
                    sketch.note(hash(key), || key);
                }
                let top: HashSet<u64> = sketch.top().into_iter().map(|key| key / 100).collect();
                assert_eq!(top, HashSet::from([day]));
                (0..12).for_each(|_| sketch.halve());
            }
            assert!(sketch.top().is_empty());
        });
    }

    #[test]
    fn a_sketch_of_nothing_keeps_nothing() {
        let mut sketch = Sketch::new(0, Rng::with_seed(1));
        (0..100).for_each(|key| sketch.note(hash(key), || key));
        assert!(sketch.top().is_empty());
    }
}
