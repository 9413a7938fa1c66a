//! The versions that invalidations named: for a while no lower one is stored under their keys.
//!
//! One table for all caches of a larder, whoever named the version, this process or another one. Memory
//! asks it at every fill. What is invalidated once more meanwhile is removed from the tiers with the
//! minimum put back behind it, so that whoever comes next does not bring the old value after all.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::{Millis, millis};
use crate::envelope::Header;
use crate::store::Write;

/// How long a minimum version keeps older values out.
pub(crate) const MINIMUM_FOR: Duration = Duration::from_secs(10);
/// How many keys may have one; beyond it the oldest is forgotten here, and stands in the tiers alone.
const MOST_MINIMUMS: usize = 65_536;

/// The version that the fills of a key must have, and how much longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Minimum {
    pub version: u64,
    pub left: Duration,
}

impl Minimum {
    /// One that is named now.
    pub(crate) fn new(version: u64) -> Self {
        let left = MINIMUM_FOR;
        Self { version, left }
    }

    /// What makes a store keep to it under the key of an entry.
    pub(crate) fn write(self, entry: Bytes) -> Write {
        Write {
            key: entry,
            value: Bytes::copy_from_slice(&Header::minimum(self.version).to_bytes()),
            ttl: self.left,
            tags: None,
        }
    }
}

/// The keys of one larder that have a minimum version.
#[derive(Debug, Default)]
pub(crate) struct Minimums {
    /// How many there are: mostly none, and then a fill asks no more.
    count: AtomicUsize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Version and end by cache and encoded key.
    of: HashMap<(Box<str>, Bytes), (u64, Millis)>,
    /// The same in the order of their ends, with ends that have moved since.
    ends: VecDeque<(Millis, (Box<str>, Bytes))>,
}

impl Minimums {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps values below `version` out from now on; a higher minimum stays what it is.
    pub(crate) fn note(&self, cache: &str, key: &[u8], version: u64, now: Millis) {
        if version == 0 {
            return;
        }
        let until = now.saturating_add(millis(MINIMUM_FOR));
        let mut table = self.table();
        table.forget_ended(now);
        let name = (cache.into(), Bytes::copy_from_slice(key));
        let known = table.of.entry(name.clone()).or_default();
        let is_later = known.1 != until;
        *known = (known.0.max(version), until);
        if is_later {
            table.ends.push_back((until, name));
        }
        while table.ends.len() > MOST_MINIMUMS {
            table.forget_oldest();
        }
        self.count.store(table.of.len(), SeqCst);
    }

    /// The minimum of a key.
    pub(crate) fn of(&self, cache: &str, key: &[u8], now: Millis) -> Option<Minimum> {
        if self.count.load(SeqCst) == 0 {
            return None;
        }
        let table = self.table();
        let name = (cache.into(), Bytes::copy_from_slice(key));
        table.of.get(&name).and_then(|known| left_of(*known, now))
    }

    /// The keys of a cache that have one.
    pub(crate) fn of_cache(&self, cache: &str, now: Millis) -> Vec<(Bytes, Minimum)> {
        let table = self.table();
        let of_cache = table.of.iter().filter(|((of, _), _)| **of == *cache);
        of_cache
            .filter_map(|((_, key), known)| Some((key.clone(), left_of(*known, now)?)))
            .collect()
    }

    /// Whether a value of that version, zero for none, may be stored. `key` encodes the key, where
    /// that is needed.
    pub(crate) fn let_in(
        &self,
        cache: &str,
        key: impl FnOnce() -> Bytes,
        version: u64,
        now: Millis,
    ) -> bool {
        if self.count.load(SeqCst) == 0 {
            return true;
        }
        let minimum = self.of(cache, &key(), now);
        minimum.is_none_or(|minimum| version >= minimum.version)
    }
}

impl Table {
    fn forget_ended(&mut self, now: Millis) {
        while self.ends.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((end, name)) = self.ends.pop_front()
            && self.of.get(&name).is_some_and(|(_, until)| *until <= end)
        {
            self.of.remove(&name);
        }
    }
}

fn left_of((version, until): (u64, Millis), now: Millis) -> Option<Minimum> {
    let left = Duration::from_millis(until.saturating_sub(now));
    (!left.is_zero()).then_some(Minimum { version, left })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Bytes {
        Bytes::from(n.to_string())
    }

    #[test]
    fn the_highest_version_counts_until_the_last_word_is_over() {
        let minimums = Minimums::default();
        let lets = |version, now| minimums.let_in("c", || key(1), version, now);
        assert!(lets(0, 0));
        minimums.note("c", b"1", 5, 0);
        minimums.note("c", b"1", 3, 4_000);
        assert!(!lets(4, 9_000) && !lets(0, 9_000) && lets(5, 9_000));
        assert!(minimums.let_in("d", || key(1), 0, 9_000));
        assert!(!lets(4, 13_999) && lets(4, 14_000));
        let left = Duration::from_millis(1);
        let minimum = Minimum { version: 5, left };
        assert_eq!(minimums.of_cache("c", 13_999), [(key(1), minimum)]);
    }

    #[test]
    fn what_is_over_or_too_much_is_forgotten() {
        let minimums = Minimums::default();
        for n in 0..=MOST_MINIMUMS {
            minimums.note("c", &key(n), 1, 0);
        }
        assert_eq!(minimums.table().of.len(), MOST_MINIMUMS);
        assert!(minimums.of("c", &key(0), 0).is_none());
        assert!(minimums.of("c", &key(1), 0).is_some());
        for now in 0..MOST_MINIMUMS as u64 {
            minimums.note("c", b"again", 1, 10_000 + now / 100);
        }
        assert_eq!(minimums.table().of.len(), 1);
        assert!(minimums.of("c", b"again", 10_000).is_some());
    }
}
