//! All that a cache holds in memory, a batch at a time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::Inner;
use crate::clock::Millis;
use crate::entry::Held;
use crate::fence::Standing;
use crate::key::CacheKey;
use crate::memory::Walk;
use crate::options::Isolation;
use crate::policy::{self, Decision};

/// An entry in memory, as [`Cache::entries`](crate::Cache::entries) found it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry<K, V> {
    /// Its key.
    pub key: K,
    /// Its value.
    pub value: Arc<V>,
    /// How long ago the value was filled.
    pub age: Duration,
    /// How long it stays fresh; zero if it is stale and served within its grace.
    pub remaining: Duration,
    /// How much it is read, as far as the [policy](crate::Policy) knows: more is more, and comparable
    /// within one cache only. Under `Adaptive` 0 to 7, four of which say that it was read again
    /// after its trial; under `Lfu` the number of reads, at most 255; zero under the others.
    pub heat: u8,
}

/// The entries of a cache in memory. Made by [`Cache::entries`](crate::Cache::entries).
pub struct Entries<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    cache: Arc<Inner<K, V>>,
    walk: Walk,
    is_over: bool,
    /// What is still to be given out of the last batch.
    batch: Vec<Entry<K, V>>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Entries<K, V> {
    pub(crate) fn new(cache: Arc<Inner<K, V>>) -> Self {
        Self {
            cache,
            walk: Walk::default(),
            is_over: false,
            batch: Vec::new(),
        }
    }

    fn take_batch(&mut self) {
        let (cache, batch) = (&*self.cache, &mut self.batch);
        // The clock that hits ask, because what is shown is what they are given.
        let now = cache.clock().recent();
        let goes_on = cache.memory.walk(&mut self.walk, |seen| {
            let value = seen.value.value.as_ref().filter(|_| now < seen.dies_at);
            if let Some(value) = value
                && cache.would_serve(seen.value, now)
            {
                batch.push(Entry {
                    key: seen.key.clone(),
                    value: Arc::clone(value),
                    age: seen.value.lived().age(now),
                    remaining: seen.value.times.remaining(now),
                    heat: seen.heat,
                });
            }
        });
        self.is_over = !goes_on;
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Iterator for Entries<K, V> {
    type Item = Entry<K, V>;

    fn next(&mut self) -> Option<Entry<K, V>> {
        while self.batch.is_empty() && !self.is_over {
            self.take_batch();
        }
        self.batch.pop()
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> fmt::Debug for Entries<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries")
            .field("cache", &self.cache.name)
            .field("walk", &self.walk)
            .finish_non_exhaustive()
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Inner<K, V> {
    /// Whether a read that looks in memory alone would be given this entry.
    fn would_serve(&self, held: &Held<V>, now: Millis) -> bool {
        let standing = self.fence.standing(held, now);
        match policy::decide(&held.times, standing, now, None) {
            Decision::Serve | Decision::ServeAndRefresh | Decision::ServeStale => true,
            Decision::Fetch | Decision::Forget => {
                standing == Standing::Suspect
                    && self.rules.isolation == Isolation::Serve
                    && now < held.times.serve_until
            }
        }
    }
}
