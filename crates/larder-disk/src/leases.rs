use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use larder::clock::Millis;
use larder::store::LeaseToken;

/// Who may fill which key: a table in memory, because one process owns the whole store.
///
/// Bounded in leases and in bytes of keys. Beyond either the oldest lease is dropped: its fill is
/// refused, which costs a load and never a stale value. Leases are forgotten when the process
/// ends, to the same effect.
#[derive(Debug)]
pub(crate) struct Leases {
    by_key: HashMap<Bytes, Lease>,
    by_age: BTreeMap<u64, Bytes>,
    next: u64,
    key_bytes: usize,
    max_leases: usize,
    max_key_bytes: usize,
    dropped: u64,
}

#[derive(Debug)]
struct Lease {
    token: LeaseToken,
    /// In monotonic milliseconds.
    until: Millis,
    age: u64,
}

/// What asking for a lease came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Acquired,
    Held,
}

impl Leases {
    pub(crate) fn new(max_leases: usize, max_key_bytes: usize) -> Self {
        Self {
            by_key: HashMap::new(),
            by_age: BTreeMap::new(),
            next: 0,
            key_bytes: 0,
            max_leases,
            max_key_bytes,
            dropped: 0,
        }
    }

    /// Takes the lease on `key` unless somebody holds it at `now`.
    pub(crate) fn take(
        &mut self,
        key: &[u8],
        token: LeaseToken,
        now: Millis,
        lease_for: Duration,
    ) -> Taken {
        if self.by_key.get(key).is_some_and(|held| now < held.until) {
            return Taken::Held;
        }
        self.void(key);
        let until = now.saturating_add(
            u64::try_from(lease_for.as_millis())
                .unwrap_or(u64::MAX)
                .max(1),
        );
        let age = self.next;
        self.next += 1;
        // A copy, because the caller's bytes may be a slice of something large.
        let key = Bytes::copy_from_slice(key);
        self.key_bytes += key.len();
        self.by_age.insert(age, key.clone());
        self.by_key.insert(key, Lease { token, until, age });
        self.drop_surplus();
        Taken::Acquired
    }

    /// Whether `token` holds `key` at `now`.
    pub(crate) fn holds(&self, key: &[u8], token: LeaseToken, now: Millis) -> bool {
        self.by_key
            .get(key)
            .is_some_and(|held| held.token == token && now < held.until)
    }

    /// The lease that stands on `key` at `now`: its token and its end.
    pub(crate) fn standing(&self, key: &[u8], now: Millis) -> Option<(LeaseToken, Millis)> {
        self.by_key
            .get(key)
            .filter(|held| now < held.until)
            .map(|held| (held.token, held.until))
    }

    /// Ends the lease on `key` if it is this token's.
    pub(crate) fn release(&mut self, key: &[u8], token: LeaseToken) {
        if self.by_key.get(key).is_some_and(|held| held.token == token) {
            self.void(key);
        }
    }

    /// Ends whatever lease there is on `key`.
    pub(crate) fn void(&mut self, key: &[u8]) {
        if let Some((key, held)) = self.by_key.remove_entry(key) {
            self.by_age.remove(&held.age);
            self.key_bytes -= key.len();
        }
    }

    /// The keys under `prefix` on which a lease stands at `now`.
    pub(crate) fn under(&self, prefix: &[u8], now: Millis) -> Vec<Bytes> {
        self.by_key
            .iter()
            .filter(|(key, held)| key.starts_with(prefix) && now < held.until)
            .map(|(key, _)| key.clone())
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// How many leases were dropped because the table was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn drop_surplus(&mut self) {
        while self.by_key.len() > self.max_leases || self.key_bytes > self.max_key_bytes {
            let Some(oldest) = self.by_age.first_key_value().map(|(_, key)| key.clone()) else {
                return;
            };
            self.void(&oldest);
            self.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn token(bits: u64) -> LeaseToken {
        LeaseToken::from_bits(bits).unwrap()
    }

    #[test]
    fn a_lease_is_held_until_it_ends_and_no_longer() {
        let mut leases = Leases::new(10, 100);
        assert_eq!(leases.take(b"k", token(1), 0, SECOND), Taken::Acquired);
        assert_eq!(leases.take(b"k", token(2), 999, SECOND), Taken::Held);
        assert!(leases.holds(b"k", token(1), 999));
        assert!(!leases.holds(b"k", token(2), 999));
        assert!(!leases.holds(b"k", token(1), 1_000));
        assert_eq!(leases.take(b"k", token(2), 1_000, SECOND), Taken::Acquired);
        leases.release(b"k", token(1));
        assert!(leases.holds(b"k", token(2), 1_000));
    }

    #[test]
    fn the_oldest_goes_when_leases_or_their_keys_are_too_many() {
        let mut leases = Leases::new(2, 10);
        for (bits, key) in [(1, b"a"), (2, b"b"), (3, b"c")] {
            leases.take(key, token(bits), 0, SECOND);
        }
        assert!(!leases.holds(b"a", token(1), 0));
        assert!(leases.holds(b"b", token(2), 0));
        leases.take(b"ten bytes!", token(4), 0, SECOND);
        assert!(leases.holds(b"ten bytes!", token(4), 0));
        assert_eq!(leases.len(), 1);
        assert_eq!(leases.dropped(), 3);
        assert_eq!(leases.key_bytes, 10);
    }

    #[test]
    fn the_keys_under_a_prefix_are_found_and_no_others() {
        let mut leases = Leases::new(10, 100);
        for key in [b"ab".as_slice(), b"abc", b"b"] {
            leases.take(key, token(1), 0, SECOND);
        }
        leases.take(b"abd", token(1), 0, SECOND / 2);
        let mut found = leases.under(b"ab", 600);
        found.sort();
        assert_eq!(found, [b"ab".as_slice(), b"abc"]);
        for key in [b"ab".as_slice(), b"abc", b"abd"] {
            leases.void(key);
        }
        assert!(leases.holds(b"b", token(1), 0));
        assert_eq!((leases.by_age.len(), leases.key_bytes), (1, 1));
    }
}
