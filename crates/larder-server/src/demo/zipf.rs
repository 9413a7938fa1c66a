//! Whom the visitors ask for: few products often, many seldom.

use fastrand::Rng;

/// Draws ids from 1 to n so that the one of rank r comes r^-s as often as the first.
#[derive(Debug)]
pub(crate) struct Zipf {
    /// The share of draws up to each rank, rising to 1.
    cumulative: Vec<f64>,
}

impl Zipf {
    /// Ids from 1 to `count`, with exponent `exponent`.
    pub(crate) fn new(count: u64, exponent: f64) -> Self {
        let mut sum = 0.0;
        let mut cumulative: Vec<f64> = (1..=count)
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        cumulative.iter_mut().for_each(|share| *share /= sum);
        Self { cumulative }
    }

    /// One id.
    pub(crate) fn draw(&self, rng: &mut Rng) -> u64 {
        let wanted = rng.f64();
        let rank = self.cumulative.partition_point(|share| *share < wanted) as u64;
        let count = self.cumulative.len() as u64;
        // A prime step scatters the popular ids over the table; without a common factor it
        // meets each id once.
        let step = if count.is_multiple_of(7_919) {
            7_927
        } else {
            7_919
        };
        rank.min(count - 1) * step % count + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_id_is_in_range_and_the_first_ranks_come_as_often_as_they_should() {
        let zipf = Zipf::new(1_000, 1.0);
        let mut rng = Rng::with_seed(1);
        let mut counts: HashMap<u64, u32> = HashMap::new();
        for _ in 0..100_000 {
            *counts.entry(zipf.draw(&mut rng)).or_default() += 1;
        }
        assert!(counts.keys().all(|id| (1..=1_000).contains(id)));
        // The harmonic number of 1,000 is 7.485: rank 1 has 13.4 %, rank 2 half of that.
        let share = |rank: u64| f64::from(counts[&(rank * 7_919 % 1_000 + 1)]) / 100_000.0;
        assert!((share(0) - 0.134).abs() < 0.01, "{}", share(0));
        assert!((share(1) - 0.067).abs() < 0.01, "{}", share(1));
    }

    #[test]
    fn no_two_ranks_share_an_id() {
        for count in [100, 7_919, 200_000] {
            let zipf = Zipf::new(count, 0.0);
            let step = if count % 7_919 == 0 { 7_927 } else { 7_919 };
            let ids: std::collections::HashSet<u64> =
                (0..count).map(|rank| rank * step % count + 1).collect();
            assert_eq!(ids.len() as u64, count);
            assert!(zipf.draw(&mut Rng::with_seed(1)) <= count);
        }
    }
}
