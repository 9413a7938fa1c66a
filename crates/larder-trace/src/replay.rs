use larder::{Larder, Policy, Result};

use crate::request::{Ratio, Request};

/// How much the cache may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// So many entries.
    Entries(u64),
    /// So many bytes, what the table needs for each entry included. Values of requests that do not
    /// say their size weigh nothing beside that.
    Bytes(u64),
}

/// A cache that requests are played to: each is a read and, where it is a miss, a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    policy: Policy,
    bound: Bound,
}

impl Replay {
    /// A cache of this policy and bound.
    pub fn new(policy: Policy, bound: Bound) -> Self {
        Self { policy, bound }
    }

    /// Plays all requests to a cache that is empty at first.
    ///
    /// # Errors
    ///
    /// If the cache cannot be built.
    pub fn run(self, requests: &[Request]) -> Result<Ratio> {
        let cache = Larder::local()
            .cache::<u64, u32>("replay")
            .policy(self.policy)
            .no_ttl()
            .weigher(|_key, bytes: &u32| *bytes);
        let cache = match self.bound {
            Bound::Entries(entries) => cache.capacity(entries),
            Bound::Bytes(bytes) => cache.capacity_bytes(bytes),
        }
        .in_memory()?;
        let mut hits = 0;
        for Request { key, bytes } in requests {
            if cache.get_in_memory(key).is_some() {
                hits += 1;
            } else {
                // Without eviction a full cache refuses, which is a miss the next time.
                let _ = cache.set_in_memory(*key, *bytes);
            }
        }
        Ok(Ratio {
            hits,
            requests: requests.len() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(keys: impl IntoIterator<Item = u64>, bytes: u32) -> Vec<Request> {
        let request = |key| Request { key, bytes };
        keys.into_iter().map(request).collect()
    }

    #[test]
    fn what_fits_is_found_the_second_time() {
        let twice = requests((0..100).chain(0..100), 10);
        for bound in [Bound::Entries(100), Bound::Bytes(1 << 20)] {
            let ratio = Replay::new(Policy::Adaptive, bound).run(&twice).unwrap();
            assert_eq!((ratio.hits, ratio.requests), (100, 200));
        }
    }

    #[test]
    fn policies_and_sizes_make_a_difference() {
        let twice = requests((0..100).chain(0..100), 1_000);
        let run = |policy, bound| Replay::new(policy, bound).run(&twice).unwrap().hits;
        assert_eq!(run(Policy::Lru, Bound::Entries(50)), 0);
        assert_eq!(run(Policy::NoEviction, Bound::Entries(50)), 50);
        let in_bytes = run(Policy::NoEviction, Bound::Bytes(60_000));
        assert!((40..60).contains(&in_bytes), "{in_bytes}");
    }
}
