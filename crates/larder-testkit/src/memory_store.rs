use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use larder::clock::{BoxFuture, Clock, Millis};
use larder::envelope::Header;
use larder::store::{
    Capabilities, Fill, Filled, LeaseRequest, LeaseToken, Leased, Store, StoreError, StoreResult,
    Write,
};

/// The plainest correct [`Store`]: one map behind one lock, with the time of the clock it is given.
///
/// It is what the contract means where its words leave a doubt, and a tier for tests that need no
/// server. Values are at most [`MemoryStore::MAX_VALUE_BYTES`] long; beyond
/// [`MemoryStore::MAX_KEYS`] keys it refuses new ones, so that a runaway test ends with an error.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    keys: Mutex<HashMap<Bytes, Entry>>,
}

struct Entry {
    value: Bytes,
    /// When the entry is gone, by the monotonic time of the clock.
    until: Millis,
}

impl MemoryStore {
    /// The longest value taken: 4 MiB.
    pub const MAX_VALUE_BYTES: usize = 4 << 20;
    /// The most keys held.
    pub const MAX_KEYS: usize = 1 << 20;

    /// An empty store that lives by `clock`: leases and times to live by its monotonic time.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            keys: Mutex::new(HashMap::new()),
        }
    }

    /// How many keys it holds, placeholders of leases included.
    pub fn len(&self) -> usize {
        let now = self.clock.monotonic();
        let keys = self.lock();
        keys.values().filter(|entry| entry.until > now).count()
    }

    /// Whether it holds no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Bytes, Entry>> {
        // No code under this lock can panic halfway through a change.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` over the live entries at one moment.
    fn at_once<T>(&self, change: impl FnOnce(&mut Keys<'_>) -> T) -> T {
        let now = self.clock.monotonic();
        let mut keys = self.lock();
        change(&mut Keys {
            keys: &mut keys,
            now,
        })
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("keys", &self.len())
            .finish_non_exhaustive()
    }
}

impl Store for MemoryStore {
    fn name(&self) -> &str {
        "memory-store"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Self::MAX_VALUE_BYTES)
    }

    fn get<'a>(
        &'a self,
        keys: &'a [Bytes],
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>> {
        Box::pin(async move {
            Ok(self.at_once(|held| {
                keys.iter()
                    .map(|key| held.get(key).map(|value| cut(value, limit)))
                    .collect()
            }))
        })
    }

    fn lease<'a>(
        &'a self,
        keys: &'a [Bytes],
        request: &'a LeaseRequest,
    ) -> BoxFuture<'a, StoreResult<Vec<Leased>>> {
        Box::pin(async move {
            self.at_once(|held| keys.iter().map(|key| held.lease(key, request)).collect())
        })
    }

    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(async move { self.at_once(|held| fills.iter().map(|f| held.fill(f)).collect()) })
    }

    fn release<'a>(
        &'a self,
        keys: &'a [Bytes],
        token: LeaseToken,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            self.at_once(|held| keys.iter().for_each(|key| held.release(key, token)));
            Ok(())
        })
    }

    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            self.at_once(|held| {
                writes
                    .iter()
                    .try_for_each(|write| held.put(&write.key, &write.value, write.ttl))
            })
        })
    }

    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            self.at_once(|held| keys.iter().for_each(|key| held.expire(key, wall)));
            Ok(())
        })
    }

    fn delete<'a>(&'a self, keys: &'a [Bytes]) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            self.at_once(|held| keys.iter().for_each(|key| held.remove(key)));
            Ok(())
        })
    }

    fn clear<'a>(&'a self, prefix: &'a [u8]) -> BoxFuture<'a, StoreResult<u64>> {
        Box::pin(async move { Ok(self.at_once(|held| held.clear(prefix))) })
    }

    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// The entries at one moment: what is past its time is not there.
struct Keys<'a> {
    keys: &'a mut HashMap<Bytes, Entry>,
    now: Millis,
}

impl Keys<'_> {
    fn get(&self, key: &Bytes) -> Option<&Bytes> {
        let entry = self.keys.get(key)?;
        (entry.until > self.now).then_some(&entry.value)
    }

    fn header(&self, key: &Bytes) -> Option<Header> {
        Header::parse(self.get(key)?)
    }

    /// The token that may fill the key now.
    fn holder(&self, key: &Bytes) -> Option<LeaseToken> {
        let header = self.header(key)?;
        header.lease.filter(|_| header.lease_until > self.now)
    }

    fn lease(&mut self, key: &Bytes, request: &LeaseRequest) -> StoreResult<Leased> {
        let until = after(self.now, request.lease_for);
        let Some(header) = self.header(key) else {
            return self.lease_absent(key, request, until);
        };
        let placeholder = self
            .get(key)
            .is_some_and(|value| value.len() == Header::LEN);
        let value = self.get(key).map(|value| cut(value, request.limit));
        if !placeholder && header.fresh_until > request.stale_at {
            return Ok(Leased::Value(value.unwrap_or_default()));
        }
        let stale = value.filter(|_| !placeholder);
        if self.holder(key).is_some() {
            return Ok(Leased::Held { stale });
        }
        if placeholder {
            return self.lease_absent(key, request, until);
        }
        self.rewrite(key, |header| {
            header.lease = Some(request.token);
            header.lease_until = until;
        });
        Ok(Leased::Acquired { stale })
    }

    fn lease_absent(
        &mut self,
        key: &Bytes,
        request: &LeaseRequest,
        until: Millis,
    ) -> StoreResult<Leased> {
        let placeholder = Header::placeholder(request.token, until).to_bytes();
        self.put(
            key,
            &Bytes::copy_from_slice(&placeholder),
            request.lease_for,
        )?;
        Ok(Leased::Acquired { stale: None })
    }

    fn fill(&mut self, fill: &Fill) -> StoreResult<Filled> {
        if self.holder(&fill.key) != Some(fill.token) {
            return Ok(Filled::Refused);
        }
        self.put(&fill.key, &fill.value, fill.ttl)?;
        Ok(Filled::Stored)
    }

    fn release(&mut self, key: &Bytes, token: LeaseToken) {
        if self.header(key).and_then(|header| header.lease) == Some(token) {
            self.end_lease(key);
        }
    }

    fn expire(&mut self, key: &Bytes, wall: Millis) {
        self.end_lease(key);
        self.rewrite(key, |header| {
            header.fresh_until = header.fresh_until.min(wall);
        });
    }

    /// Removes a placeholder; takes the lease out of a value's header.
    fn end_lease(&mut self, key: &Bytes) {
        if self
            .get(key)
            .is_some_and(|value| value.len() == Header::LEN)
        {
            return self.remove(key);
        }
        self.rewrite(key, |header| {
            header.lease = None;
            header.lease_until = 0;
        });
    }

    /// Changes the header in front of an envelope. Bytes that are none stay as they are.
    fn rewrite(&mut self, key: &Bytes, change: impl FnOnce(&mut Header)) {
        let Some(mut header) = self.header(key) else {
            return;
        };
        change(&mut header);
        if let Some(entry) = self.keys.get_mut(key) {
            let mut value = BytesMut::from(&entry.value[..]);
            value[..Header::LEN].copy_from_slice(&header.to_bytes());
            entry.value = value.freeze();
        }
    }

    fn put(&mut self, key: &Bytes, value: &Bytes, ttl: Duration) -> StoreResult<()> {
        if value.len() > MemoryStore::MAX_VALUE_BYTES {
            return Err(StoreError::refused(
                "the value is longer than the store takes",
            ));
        }
        if self.keys.len() >= MemoryStore::MAX_KEYS && !self.keys.contains_key(key) {
            self.keys.retain(|_, entry| entry.until > self.now);
            if self.keys.len() >= MemoryStore::MAX_KEYS {
                return Err(StoreError::refused("the store is full"));
            }
        }
        let entry = Entry {
            value: value.clone(),
            until: after(self.now, ttl),
        };
        self.keys.insert(key.clone(), entry);
        Ok(())
    }

    fn remove(&mut self, key: &Bytes) {
        self.keys.remove(key);
    }

    fn clear(&mut self, prefix: &[u8]) -> u64 {
        let mut removed = 0;
        self.keys.retain(|key, entry| {
            let ours = key.starts_with(prefix);
            removed += u64::from(ours && entry.until > self.now);
            !ours
        });
        removed
    }
}

/// `value`, or one byte more of it than was asked for.
fn cut(value: &Bytes, limit: usize) -> Bytes {
    value.slice(..value.len().min(limit.saturating_add(1)))
}

fn after(now: Millis, wait: Duration) -> Millis {
    now.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}
