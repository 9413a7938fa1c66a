//! The memory engine of larder without the cache around it, to tell what each of them costs.
//!
//! It is compiled from the sources of `larder` itself, in which it is private and stays so: users
//! have no use for a table without freshness, fences and statistics.

// Most of the engine has no user here.
#[allow(dead_code, unused_imports)]
#[path = "../../../crates/larder/src/memory/mod.rs"]
mod memory;

use std::hash::Hash;

use equivalent::Equivalent;

use self::clock::Millis;
use self::memory::{Bound, Memory, Placement};
use self::options::Policy;

/// What the engine takes from the module of this name in `larder`.
mod clock {
    pub(crate) type Millis = u64;
}

/// What the engine takes from the module of this name in `larder`.
mod options {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[allow(dead_code)]
    pub(crate) enum Policy {
        Adaptive,
        Lru,
        Lfu,
        Fifo,
        Random,
        NoEviction,
    }

    impl Policy {
        #[inline]
        pub(crate) fn reorders_on_read(self) -> bool {
            matches!(self, Self::Lru | Self::Lfu)
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub(crate) enum RemovalCause {
        Expired,
        Evicted,
        Replaced,
        Removed,
    }
}

/// A table of the default policy, bounded in entries.
#[derive(Debug)]
pub struct Engine<K, V>(Memory<K, V>);

impl<K: Hash + Eq, V: Clone> Engine<K, V> {
    /// An empty table of so many entries.
    pub fn new(entries: u64) -> Self {
        Self(Memory::new(Bound::Entries(entries), Policy::Adaptive))
    }

    /// The value of `key`, unless it is dead at `now`.
    #[inline]
    pub fn get<Q>(&self, key: &Q, now: u64) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.0.get(self.0.hash(key), key, now, V::clone)
    }

    /// Stores `value` until `dies_at`, in milliseconds of the clock that gives `now`.
    #[inline]
    pub fn insert(&self, key: K, value: V, dies_at: Millis, now: Millis) {
        let place = Placement { weight: 0, dies_at };
        let hash = self.0.hash(&key);
        self.0.insert(hash, key, value, place, now, |_| true);
    }

    /// How many entries there are.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
