//! Traces that are made rather than recorded, the same in every run.

use fastrand::Rng;
use larder_trace::Request;

/// Keys that Zipf draws pick from, and requests.
const KEYS: usize = 100_000;
const REQUESTS: usize = 1_000_000;

/// A million requests for 100,000 keys, drawn from a Zipf distribution with this exponent.
pub fn zipf(skew: f64) -> Vec<Request> {
    let seed = skew.to_bits();
    draws(KEYS, REQUESTS, skew, seed)
        .into_iter()
        .map(request)
        .collect()
}

/// Zipf draws, and after every 50,000 of them a scan over 20,000 keys that nobody asks for again.
pub fn scanned() -> Vec<Request> {
    let mut unseen = KEYS as u64;
    let mut trace = Vec::new();
    for part in draws(KEYS / 2, 600_000, 0.9, 3).chunks(50_000) {
        trace.extend(part.iter().copied().map(request));
        trace.extend((unseen..unseen + 20_000).map(request));
        unseen += 20_000;
    }
    trace
}

/// The same keys over and over, so many of them.
pub fn looped(keys: u64) -> Vec<Request> {
    (0..400_000).map(|at| request(at % keys)).collect()
}

/// Zipf draws from keys that are others every 100,000 requests, with a loop in the middle.
pub fn shifting() -> Vec<Request> {
    let phase = |number: u64| {
        let keys = draws(20_000, 100_000, 0.9, 10 + number);
        keys.into_iter()
            .map(move |key| request(key + number * 1_000_000))
    };
    let in_a_loop = (0..100_000).map(|at| request(100_000_000 + at % 3_000));
    let before = (0..5).flat_map(phase);
    before
        .chain(in_a_loop)
        .chain((5..8).flat_map(phase))
        .collect()
}

fn request(key: u64) -> Request {
    Request { key, bytes: 0 }
}

fn draws(keys: usize, count: usize, skew: f64, seed: u64) -> Vec<u64> {
    let mut total = 0.0;
    let cumulative: Vec<f64> = (1..=keys)
        .map(|rank| {
            total += (rank as f64).powf(-skew);
            total
        })
        .collect();
    let mut random = Rng::with_seed(seed);
    // Popular keys lie anywhere.
    let mut names: Vec<u64> = (0..keys as u64).collect();
    random.shuffle(&mut names);
    let mut draw = || {
        let point = random.f64() * total;
        names[cumulative.partition_point(|&sum| sum < point).min(keys - 1)]
    };
    (0..count).map(|_| draw()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn distinct(trace: &[Request]) -> usize {
        trace
            .iter()
            .map(|request| request.key)
            .collect::<HashSet<_>>()
            .len()
    }

    #[test]
    fn traces_are_the_same_in_every_run_and_have_the_keys_that_they_say() {
        assert_eq!(zipf(0.9), zipf(0.9));
        assert_ne!(zipf(0.9), zipf(0.7));
        assert_eq!(distinct(&looped(2_500)), 2_500);
        let scanned = scanned();
        assert_eq!(scanned.len(), 600_000 + 12 * 20_000);
        assert!(distinct(&scanned) > 12 * 20_000);
        assert_eq!(shifting().len(), 900_000);
    }
}
