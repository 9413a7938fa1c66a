//! The keys and values that everybody reads.

use serde::{Deserialize, Serialize};

/// How many keys are resident.
pub const KEYS: usize = 10_000;
/// The exponent of the Zipf distribution that picks keys.
pub const SKEW: f64 = 0.99;
/// The length of a value's payload in bytes.
pub const VALUE_BYTES: usize = 256;

/// What is cached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// [`VALUE_BYTES`] of text.
    pub body: String,
}

impl Page {
    /// The value of the key with this number.
    pub fn of(number: usize) -> Self {
        let mut body = format!("page {number} ");
        body.extend(std::iter::repeat_n('x', VALUE_BYTES - body.len()));
        Self { body }
    }
}

/// All keys; the index of one is its number.
pub fn keys() -> Vec<String> {
    (0..KEYS)
        .map(|number| format!("page:{number:08}"))
        .collect()
}

/// `count` numbers of keys, drawn from a Zipf distribution with a fixed seed, so that every
/// contender reads the same keys in the same order.
pub fn zipf(count: usize) -> Vec<usize> {
    let draws = Draws::new(KEYS).take(0, count);
    draws.into_iter().map(|number| number as usize).collect()
}

/// Numbers of keys by a Zipf distribution of the exponent [`SKEW`].
#[derive(Debug)]
pub struct Draws {
    /// For each rank the sum of the weights up to it.
    cumulative: Vec<f64>,
}

impl Draws {
    /// Of so many keys.
    pub fn new(keys: usize) -> Self {
        let mut total = 0.0;
        let cumulative = (1..=keys).map(|rank| {
            total += (rank as f64).powf(-SKEW);
            total
        });
        Self {
            cumulative: cumulative.collect(),
        }
    }

    /// `count` of them; the same for the same `series`.
    pub fn take(&self, series: u64, count: usize) -> Vec<u32> {
        let total = self.cumulative.last().copied().unwrap_or(0.0);
        let last = self.cumulative.len().saturating_sub(1);
        let mut random = fastrand::Rng::with_seed(0x1a2d_e201 + series);
        let mut draw = || {
            let point = random.f64() * total;
            self.cumulative
                .partition_point(|&sum| sum < point)
                .min(last) as u32
        };
        (0..count).map(|_| draw()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_the_length_it_claims() {
        assert_eq!(Page::of(0).body.len(), VALUE_BYTES);
        assert_eq!(Page::of(KEYS - 1).body.len(), VALUE_BYTES);
        assert_ne!(Page::of(1), Page::of(2));
    }

    #[test]
    fn draws_are_skewed_as_zipf_says_and_the_same_every_time() {
        let draws = zipf(100_000);
        assert_eq!(draws, zipf(100_000));
        // The share of the first rank is one over the generalised harmonic number.
        let harmonic: f64 = (1..=KEYS).map(|rank| (rank as f64).powf(-SKEW)).sum();
        let share = draws.iter().filter(|&&rank| rank == 0).count() as f64 / 100_000.0;
        assert!(
            (share - 1.0 / harmonic).abs() < 0.01,
            "{share} against {}",
            1.0 / harmonic
        );
    }
}
