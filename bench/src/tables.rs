//! Tables in memory, larder's and those of its rivals, behind one trait.

use std::future::IntoFuture;
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt;
use hashbrown::{DefaultHashBuilder, HashTable};
use larder::{Cache, CacheKey, Larder, Loaded};
use larder_bench_engine::Engine;

use crate::Result;

/// How long entries live in those that have it otherwise.
const TTL: Duration = Duration::from_secs(3600);

/// A table that many threads use at once.
pub trait Table<K, V>: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &K) -> Option<V>;

    /// Stores `value` under `key`.
    fn insert(&self, key: K, value: V);

    /// How many entries there are, after whatever was put off is done.
    fn entries(&self) -> u64;
}

/// What a key must be for all of them.
pub trait Hashed: Hash + Eq + Clone + Send + Sync + 'static {}
impl<K: Hash + Eq + Clone + Send + Sync + 'static> Hashed for K {}

/// What a value must be for all of them.
pub trait Copied: Clone + Send + Sync + 'static {}
impl<V: Clone + Send + Sync + 'static> Copied for V {}

/// larder as its users have it: fresh for an hour, fenced, counted.
///
/// # Errors
///
/// When it cannot be built.
pub fn larder<K: CacheKey, T: Send + Sync + 'static>(entries: u64) -> Result<Cache<K, T>> {
    Ok(Larder::local()
        .cache("table")
        .capacity(entries)
        .in_memory()?)
}

impl<K: CacheKey, T: Send + Sync + 'static> Table<K, Arc<T>> for Cache<K, T> {
    #[inline]
    fn get(&self, key: &K) -> Option<Arc<T>> {
        self.get_in_memory(key)
    }

    fn insert(&self, key: K, value: Arc<T>) {
        // It is refused only by policies that this cache does not have.
        let _ = self.set_in_memory(key, Loaded::value(value));
    }

    fn entries(&self) -> u64 {
        self.stats().entries
    }
}

/// For numbers it makes an `Arc` as its users would.
impl Table<u64, u64> for Cache<u64, u64> {
    #[inline]
    fn get(&self, key: &u64) -> Option<u64> {
        self.get_in_memory(key).map(|value| *value)
    }

    fn insert(&self, key: u64, value: u64) {
        Table::insert(self, key, Arc::new(value));
    }

    fn entries(&self) -> u64 {
        Table::<u64, Arc<u64>>::entries(self)
    }
}

/// What the engine is told is now.
const NOW: u64 = 1;
/// When its entries die: an hour later.
const DIES_AT: u64 = NOW + 3_600_000;

impl<K: Hashed, V: Copied> Table<K, V> for Engine<K, V> {
    #[inline]
    fn get(&self, key: &K) -> Option<V> {
        Engine::get(self, key, NOW)
    }

    #[inline]
    fn insert(&self, key: K, value: V) {
        Engine::insert(self, key, value, DIES_AT, NOW);
    }

    fn entries(&self) -> u64 {
        Engine::len(self)
    }
}

impl<K: Hashed, V: Copied> Table<K, V> for moka::sync::Cache<K, V> {
    #[inline]
    fn get(&self, key: &K) -> Option<V> {
        self.get(key)
    }

    #[inline]
    fn insert(&self, key: K, value: V) {
        self.insert(key, value);
    }

    fn entries(&self) -> u64 {
        self.run_pending_tasks();
        self.entry_count()
    }
}

impl<K: Hashed, V: Copied> Table<K, V> for quick_cache::sync::Cache<K, V> {
    #[inline]
    fn get(&self, key: &K) -> Option<V> {
        self.get(key)
    }

    #[inline]
    fn insert(&self, key: K, value: V) {
        self.insert(key, value);
    }

    fn entries(&self) -> u64 {
        self.len() as u64
    }
}

/// foyer's memory with the policy S3-FIFO.
pub fn foyer<K: Hashed, V: Copied>(entries: usize) -> foyer_memory::Cache<K, V> {
    foyer_memory::CacheBuilder::new(entries)
        .with_eviction_config(foyer_memory::S3FifoConfig::default())
        .build()
}

impl<K: Hashed, V: Copied> Table<K, V> for foyer_memory::Cache<K, V> {
    #[inline]
    fn get(&self, key: &K) -> Option<V> {
        self.get(key).map(|entry| entry.value().clone())
    }

    #[inline]
    fn insert(&self, key: K, value: V) {
        self.insert(key, value);
    }

    fn entries(&self) -> u64 {
        self.usage() as u64
    }
}

/// The sharded LRU of `cached`.
pub type CachedLru<K, V> = cached::ShardedLruCache<K, V>;

/// One of so many entries.
pub fn cached_lru<K: Hashed, V: Copied>(entries: usize) -> CachedLru<K, V> {
    CachedLru::new(entries)
}

impl<K: Hashed, V: Copied> Table<K, V> for CachedLru<K, V> {
    #[inline]
    fn get(&self, key: &K) -> Option<V> {
        self.get(key)
    }

    #[inline]
    fn insert(&self, key: K, value: V) {
        self.set(key, value);
    }

    fn entries(&self) -> u64 {
        self.len() as u64
    }
}

/// amalgam-cache as memory alone.
///
/// # Errors
///
/// When it cannot be built.
pub fn amalgam<V: Copied>(entries: u64) -> Result<amalgam::Cache<V>> {
    Ok(amalgam::Cache::builder()
        .max_capacity(entries)
        .default_options(amalgam::EntryOptions::new(TTL))
        .try_build()?)
}

impl<V: Copied> Table<String, V> for amalgam::Cache<V> {
    fn get(&self, key: &String) -> Option<V> {
        self.try_get(key).into_future().now_or_never()?.ok()?
    }

    fn insert(&self, key: String, value: V) {
        // In memory alone it has nothing to wait for.
        let _ = self.set(key, value).into_future().now_or_never();
    }

    fn entries(&self) -> u64 {
        0
    }
}

/// The least there is to do: tables behind locks, which never evict and never expire.
#[derive(Debug)]
pub struct Floor<K, V> {
    shards: Box<[Shard<K, V>]>,
    hasher: DefaultHashBuilder,
}

/// On cache lines of its own; processors fetch two at once.
#[derive(Debug)]
#[repr(align(128))]
struct Shard<K, V>(RwLock<HashTable<(K, V)>>);

/// How many locks the floor has.
pub const FLOOR_SHARDS: usize = 64;

impl<K: Hash + Eq, V: Clone> Default for Floor<K, V> {
    fn default() -> Self {
        let shard = |_| Shard(RwLock::new(HashTable::new()));
        Self {
            shards: (0..FLOOR_SHARDS).map(shard).collect(),
            hasher: DefaultHashBuilder::default(),
        }
    }
}

impl<K: Hash + Eq, V: Clone> Floor<K, V> {
    /// Removes `key`, whether it is there or not.
    pub fn remove(&self, key: &K) {
        let hash = self.hasher.hash_one(key);
        let mut shard = self
            .shard(hash)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Ok(held) = shard.find_entry(hash, |(held, _)| held == key) {
            held.remove();
        }
    }

    fn shard(&self, hash: u64) -> &RwLock<HashTable<(K, V)>> {
        // The table itself takes the lowest and the highest bits.
        &self.shards[(hash >> 32) as usize % FLOOR_SHARDS].0
    }
}

impl<K: Hashed, V: Copied> Table<K, V> for Floor<K, V> {
    #[inline]
    fn get(&self, key: &K) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let shard = self
            .shard(hash)
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let (_, value) = shard.find(hash, |(held, _)| held == key)?;
        Some(value.clone())
    }

    #[inline]
    fn insert(&self, key: K, value: V) {
        let hash = self.hasher.hash_one(&key);
        let mut shard = self
            .shard(hash)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = shard.entry(
            hash,
            |(held, _)| *held == key,
            |(key, _)| self.hasher.hash_one(key),
        );
        match entry {
            hashbrown::hash_table::Entry::Occupied(mut held) => held.get_mut().1 = value,
            hashbrown::hash_table::Entry::Vacant(room) => _ = room.insert((key, value)),
        }
    }

    fn entries(&self) -> u64 {
        let shards = self.shards.iter();
        let lens =
            shards.map(|Shard(shard)| shard.read().unwrap_or_else(PoisonError::into_inner).len());
        lens.sum::<usize>() as u64
    }
}

impl<K: Hashed, V: Copied> Table<K, V> for dashmap::DashMap<K, V> {
    #[inline]
    fn get(&self, key: &K) -> Option<V> {
        self.get(key).map(|held| held.value().clone())
    }

    #[inline]
    fn insert(&self, key: K, value: V) {
        self.insert(key, value);
    }

    fn entries(&self) -> u64 {
        self.len() as u64
    }
}

impl<K: Hashed, V: Copied> Table<K, V> for papaya::HashMap<K, V> {
    #[inline]
    fn get(&self, key: &K) -> Option<V> {
        self.pin().get(key).cloned()
    }

    #[inline]
    fn insert(&self, key: K, value: V) {
        self.pin().insert(key, value);
    }

    fn entries(&self) -> u64 {
        self.len() as u64
    }
}

/// What each entry of a table takes besides a key and a value of eight bytes each, after so many
/// `keys` were inserted, by what `allocated` says that this process holds.
///
/// # Errors
///
/// When the table cannot be made.
pub fn bytes_each<T: Table<u64, u64>>(
    allocated: impl Fn() -> usize,
    make: impl FnOnce() -> Result<T>,
    keys: u64,
) -> Result<f64> {
    let before = allocated();
    let table = make()?;
    for key in 0..keys {
        table.insert(key, key);
    }
    let entries = table.entries();
    let taken = allocated().saturating_sub(before);
    Ok(taken as f64 / entries as f64 - 16.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps_what_it_is_given(table: &impl Table<String, Arc<u64>>) {
        for number in 0..100 {
            table.insert(number.to_string(), Arc::new(number));
        }
        for number in 0..100 {
            assert_eq!(table.get(&number.to_string()).as_deref(), Some(&number));
        }
        assert_eq!(table.get(&"100".to_owned()), None);
    }

    #[tokio::test]
    async fn every_table_keeps_what_it_is_given() {
        keeps_what_it_is_given(&larder::<String, u64>(1_000).unwrap());
        keeps_what_it_is_given(&Engine::new(1_000));
        keeps_what_it_is_given(&moka::sync::Cache::new(1_000));
        keeps_what_it_is_given(&quick_cache::sync::Cache::new(1_000));
        keeps_what_it_is_given(&foyer(1_000));
        keeps_what_it_is_given(&cached_lru(1_000));
        keeps_what_it_is_given(&amalgam(1_000).unwrap());
        keeps_what_it_is_given(&Floor::default());
        keeps_what_it_is_given(&dashmap::DashMap::new());
        keeps_what_it_is_given(&papaya::HashMap::new());
    }
}
