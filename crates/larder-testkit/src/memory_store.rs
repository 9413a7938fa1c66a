use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use larder::clock::{BoxFuture, Clock, Millis};
use larder::envelope::Header;
use larder::store::{
    Capabilities, Fill, Filled, LeaseRequest, LeaseToken, Leased, Position, Store, StoreError,
    StoreResult, Swept, TagRecord, Tagged, Write,
};
use tokio::sync::watch;

/// The plainest correct [`Store`]: one map behind one lock, with the time of the clock it is given.
///
/// It is what the contract means where its words leave a doubt, and a tier for tests that need no
/// server. Values are at most [`MemoryStore::MAX_VALUE_BYTES`] long; beyond
/// [`MemoryStore::MAX_KEYS`] keys it refuses new ones, so that a runaway test ends with an error.
/// Everything that it keeps is bytes under a key: a counter as well as the members of a set.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    keys: Mutex<HashMap<Bytes, Entry>>,
    /// How many changes there were.
    changes: watch::Sender<u64>,
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
    /// How many keys a sweep looks at between two reports.
    const SWEEP_STEP: usize = 1_000;

    /// An empty store that lives by `clock`: leases and times to live by its monotonic time.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            keys: Mutex::new(HashMap::new()),
            changes: watch::Sender::new(0),
        }
    }

    /// How many entries it holds: values and placeholders, not counters, records and sets.
    pub fn len(&self) -> usize {
        let now = self.clock.monotonic();
        let keys = self.lock();
        let is_entry = |entry: &&Entry| entry.until > now && Header::parse(&entry.value).is_some();
        keys.values().filter(is_entry).count()
    }

    /// Whether it holds no entry.
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

    /// The same, and wakes those who wait for a change.
    fn change<T>(&self, change: impl FnOnce(&mut Keys<'_>) -> T) -> T {
        let changed = self.at_once(change);
        self.changes.send_modify(|changes| *changes += 1);
        changed
    }

    /// What stands under the keys, and when the first of the leases ends that all of them hold;
    /// `None` if one holds none.
    fn leases(&self, keys: &[Bytes]) -> Option<(Vec<Option<Bytes>>, Millis)> {
        self.at_once(|held| {
            let ends = keys.iter().map(|key| held.leased_until(key));
            let first = ends.min().flatten()?;
            let found = keys.iter().map(|key| held.get(key).cloned()).collect();
            Some((found, first))
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
            self.change(|held| keys.iter().map(|key| held.lease(key, request)).collect())
        })
    }

    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(async move {
            check_lengths(fills.iter().map(|fill| &fill.value))?;
            self.change(|held| fills.iter().map(|fill| held.fill(fill)).collect())
        })
    }

    fn release<'a>(
        &'a self,
        keys: &'a [Bytes],
        token: LeaseToken,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            self.change(|held| keys.iter().for_each(|key| held.release(key, token)));
            Ok(())
        })
    }

    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(async move {
            check_lengths(writes.iter().map(|write| &write.value))?;
            self.change(|held| writes.iter().map(|write| held.set(write)).collect())
        })
    }

    fn touch<'a>(&'a self, keys: &'a [Bytes], ttl: Duration) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            self.at_once(|held| keys.iter().for_each(|key| held.touch(key, ttl)));
            Ok(())
        })
    }

    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            self.change(|held| keys.iter().for_each(|key| held.expire(key, wall)));
            Ok(())
        })
    }

    fn delete<'a>(
        &'a self,
        keys: &'a [Bytes],
        counter: Option<&'a Bytes>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            self.change(|held| {
                counter.iter().for_each(|counter| held.move_on(counter));
                keys.iter().for_each(|key| held.remove(key));
            });
            Ok(())
        })
    }

    fn sweep<'a>(
        &'a self,
        prefix: &'a [u8],
        condemned: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
        progress: &'a (dyn Fn(Swept) + Send + Sync),
    ) -> BoxFuture<'a, StoreResult<Swept>> {
        Box::pin(async move {
            // What the caller passed is not run under the lock.
            let keys = self.at_once(|held| held.under(prefix));
            let mut swept = Swept::default();
            for step in keys.chunks(Self::SWEEP_STEP) {
                let gone: Vec<_> = step.iter().filter(|key| condemned(key)).collect();
                swept.seen += step.len() as u64;
                swept.removed += self.change(|held| held.remove_live(&gone));
                progress(swept);
            }
            Ok(swept)
        })
    }

    fn enlist<'a>(
        &'a self,
        record: &'a Bytes,
        member: u32,
        keep: Duration,
    ) -> BoxFuture<'a, StoreResult<Vec<u32>>> {
        Box::pin(async move { self.at_once(|held| held.enlist(record, member, keep)) })
    }

    fn changed<'a>(&'a self, keys: &'a [Bytes]) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            let mut changes = self.changes.subscribe();
            let Some((before, first_end)) = self.leases(keys) else {
                return Ok(());
            };
            let left = first_end.saturating_sub(self.clock.monotonic());
            let mut end = self.clock.sleep(Duration::from_millis(left));
            loop {
                tokio::select! {
                    _ = changes.changed() => {}
                    () = &mut end => return Ok(()),
                }
                if self.leases(keys).is_none_or(|(now, _)| now != before) {
                    return Ok(());
                }
            }
        })
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

// Values and leases.
impl Keys<'_> {
    fn entry(&self, key: &Bytes) -> Option<&Entry> {
        self.keys.get(key).filter(|entry| entry.until > self.now)
    }

    fn get(&self, key: &Bytes) -> Option<&Bytes> {
        self.entry(key).map(|entry| &entry.value)
    }

    fn held(&self, key: &Bytes) -> Held {
        Held::of(self.get(key))
    }

    /// When the lease on the key ends, if there is one now.
    fn leased_until(&self, key: &Bytes) -> Option<Millis> {
        let header = self.held(key).header()?;
        let until = header.lease.map(|_| header.lease_until)?;
        (until > self.now).then_some(until)
    }

    /// The token that may fill the key now.
    fn holder(&self, key: &Bytes) -> Option<LeaseToken> {
        let header = self.held(key).header()?;
        header.lease.filter(|_| header.lease_until > self.now)
    }

    fn lease(&mut self, key: &Bytes, request: &LeaseRequest) -> StoreResult<Leased> {
        let held = self.held(key);
        let value = self.get(key).map(|value| cut(value, request.limit));
        let stale = match held {
            Held::Value(header) if header.is_fresh(request.stale_at) => {
                return Ok(Leased::Value(value.unwrap_or_default()));
            }
            Held::Value(_) => value,
            Held::Placeholder(_) | Held::Nothing => None,
        };
        if self.holder(key).is_some() {
            return Ok(Leased::Held { stale });
        }
        let since = match &request.counter {
            Some(counter) => Some(self.position(counter)?),
            None => None,
        };
        self.take_lease(key, held, request)?;
        Ok(Leased::Acquired { stale, since })
    }

    fn take_lease(&mut self, key: &Bytes, held: Held, request: &LeaseRequest) -> StoreResult<()> {
        let until = after(self.now, request.lease_for);
        if let Held::Value(_) = held {
            self.rewrite(key, |header| {
                header.lease = Some(request.token);
                header.lease_until = until;
            });
            return Ok(());
        }
        let header = Header {
            version: held.version(),
            ..Header::placeholder(request.token, until)
        };
        // A minimum version stays at least as long as it would have.
        let minimum_until = match held.version() {
            0 => 0,
            _ => self.entry(key).map_or(0, |entry| entry.until),
        };
        let placeholder = Bytes::copy_from_slice(&header.to_bytes());
        self.put_until(key, placeholder, until.max(minimum_until))
    }

    fn fill(&mut self, fill: &Fill) -> StoreResult<Filled> {
        let held = self.held(&fill.key);
        if self.holder(&fill.key) != Some(fill.token) || held.refuses_fill(version_of(&fill.value))
        {
            return Ok(Filled::Refused);
        }
        self.store(&fill.key, &fill.value, fill.ttl, fill.tags.as_ref())
    }

    fn set(&mut self, write: &Write) -> StoreResult<Filled> {
        if self
            .held(&write.key)
            .refuses_set(Held::of(Some(&write.value)))
        {
            return Ok(Filled::Refused);
        }
        // A write is newer than every invalidation that came before it.
        let tags = write.tags.clone().map(|tags| Tagged {
            since: None,
            ..tags
        });
        self.store(&write.key, &write.value, write.ttl, tags.as_ref())
    }

    fn store(
        &mut self,
        key: &Bytes,
        value: &Bytes,
        ttl: Duration,
        tags: Option<&Tagged>,
    ) -> StoreResult<Filled> {
        let versions = match tags {
            Some(tags) => self.tag(tags, value, ttl)?,
            None => Some(Vec::new()),
        };
        let Some(versions) = versions else {
            return Ok(Filled::Refused);
        };
        let value = with_versions(value, &versions);
        self.put_until(key, value, after(self.now, ttl))?;
        Ok(Filled::Stored { versions })
    }

    fn release(&mut self, key: &Bytes, token: LeaseToken) {
        if self.held(key).header().and_then(|header| header.lease) == Some(token) {
            self.end_lease(key);
        }
    }

    fn touch(&mut self, key: &Bytes, ttl: Duration) {
        if matches!(self.held(key), Held::Placeholder(_)) {
            return;
        }
        let (now, until) = (self.now, after(self.now, ttl));
        let entry = self.keys.get_mut(key).filter(|entry| entry.until > now);
        if let Some(entry) = entry {
            entry.until = entry.until.max(until);
        }
    }

    fn expire(&mut self, key: &Bytes, wall: Millis) {
        if self.held(key).header().is_none() {
            return self.remove(key);
        }
        self.end_lease(key);
        if matches!(self.held(key), Held::Value(_)) {
            self.rewrite(key, |header| *header = header.expired_at(wall));
        }
    }

    /// Takes the lease out of the header; removes a placeholder that says nothing else.
    fn end_lease(&mut self, key: &Bytes) {
        if matches!(self.held(key), Held::Placeholder(header) if header.version == 0) {
            return self.remove(key);
        }
        self.rewrite(key, |header| {
            header.lease = None;
            header.lease_until = 0;
        });
    }

    /// Changes the header in front of an envelope. Bytes that are none stay as they are.
    fn rewrite(&mut self, key: &Bytes, change: impl FnOnce(&mut Header)) {
        let Some(mut header) = self.held(key).header() else {
            return;
        };
        change(&mut header);
        if let Some(entry) = self.keys.get_mut(key) {
            let mut value = BytesMut::from(&entry.value[..]);
            value[..Header::LEN].copy_from_slice(&header.to_bytes());
            entry.value = value.freeze();
        }
    }

    fn put_until(&mut self, key: &Bytes, value: Bytes, until: Millis) -> StoreResult<()> {
        if self.keys.len() >= MemoryStore::MAX_KEYS && !self.keys.contains_key(key) {
            self.keys.retain(|_, entry| entry.until > self.now);
            if self.keys.len() >= MemoryStore::MAX_KEYS {
                return Err(StoreError::refused("the store is full"));
            }
        }
        self.keys.insert(key.clone(), Entry { value, until });
        Ok(())
    }

    fn remove(&mut self, key: &Bytes) {
        self.keys.remove(key);
    }

    fn under(&self, prefix: &[u8]) -> Vec<Bytes> {
        let live = self.keys.iter().filter(|(_, entry)| entry.until > self.now);
        live.map(|(key, _)| key)
            .filter(|key| key.starts_with(prefix))
            .cloned()
            .collect()
    }

    fn remove_live(&mut self, keys: &[&Bytes]) -> u64 {
        let mut removed = 0;
        for key in keys {
            removed += u64::from(self.get(key).is_some());
            self.remove(key);
        }
        removed
    }
}

// Counters, records of tags, and sets.
impl Keys<'_> {
    /// Where the counter stands; one that is not there is begun.
    fn position(&mut self, counter: &Bytes) -> StoreResult<Position> {
        if let Some(position) = self.get(counter).and_then(read_position) {
            return Ok(position);
        }
        let begun = Position {
            incarnation: fastrand::u64(1..),
            count: 0,
        };
        self.put_until(counter, write_position(begun), Millis::MAX)?;
        Ok(begun)
    }

    /// Moves the counter on. Where that cannot be written its incarnation ends.
    fn move_on(&mut self, counter: &Bytes) {
        let moved = self.position(counter).and_then(|position| {
            let moved = Position {
                count: position.count.saturating_add(1),
                ..position
            };
            self.put_until(counter, write_position(moved), Millis::MAX)
        });
        if moved.is_err() {
            self.remove(counter);
        }
    }

    /// Makes the records that are missing and returns the versions that all of them hold; `None`
    /// if the value must not be stored.
    fn tag(
        &mut self,
        tags: &Tagged,
        value: &Bytes,
        ttl: Duration,
    ) -> StoreResult<Option<Vec<u64>>> {
        let proposed = proposed(value, tags.records.len())?;
        let now = self.position(&tags.counter)?;
        let mut refused = tags
            .since
            .is_some_and(|since| since.incarnation != now.incarnation);
        let mut versions = Vec::with_capacity(proposed.len());
        for (key, version) in tags.records.iter().zip(proposed) {
            let found = self.get(key).and_then(|bytes| TagRecord::parse(bytes));
            refused |= tags.since.is_some_and(|since| match found {
                Some(record) => {
                    record.made_at.incarnation == since.incarnation
                        && record.made_at.count > since.count
                }
                None => now != since,
            });
            let record = found.unwrap_or(TagRecord {
                version,
                made_at: now,
            });
            let kept_until = self.entry(key).map_or(0, |entry| entry.until);
            let until = after(self.now, ttl).max(kept_until);
            self.put_until(key, Bytes::copy_from_slice(&record.to_bytes()), until)?;
            versions.push(record.version);
        }
        Ok((!refused).then_some(versions))
    }

    fn enlist(&mut self, record: &Bytes, member: u32, keep: Duration) -> StoreResult<Vec<u32>> {
        let mut members: HashMap<u32, Millis> = self
            .get(record)
            .and_then(|bytes| bytes.strip_prefix(SET))
            .unwrap_or_default()
            .chunks_exact(MEMBER)
            .filter_map(read_member)
            .filter(|(_, until)| *until > self.now)
            .collect();
        if !keep.is_zero() {
            let until = members.entry(member).or_default();
            *until = after(self.now, keep).max(*until);
        }
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let mut bytes = SET.to_vec();
        for (member, until) in &members {
            bytes.extend_from_slice(&member.to_be_bytes());
            bytes.extend_from_slice(&until.to_be_bytes());
        }
        let last = members.values().copied().max().unwrap_or(0);
        let bytes = Bytes::from(bytes);
        check_lengths([&bytes].into_iter())?;
        self.put_until(record, bytes, last)?;
        Ok(members.into_keys().collect())
    }
}

/// What stands under a key, as far as a store can tell.
#[derive(Clone, Copy)]
enum Held {
    /// No key, or bytes that are no envelope.
    Nothing,
    /// A header alone.
    Placeholder(Header),
    Value(Header),
}

impl Held {
    fn of(bytes: Option<&Bytes>) -> Self {
        let header = bytes.and_then(|bytes| Header::parse(bytes));
        let alone = bytes.is_some_and(|bytes| bytes.len() == Header::LEN);
        match header {
            None => Self::Nothing,
            Some(header) if alone => Self::Placeholder(header),
            Some(header) => Self::Value(header),
        }
    }

    fn header(self) -> Option<Header> {
        match self {
            Self::Nothing => None,
            Self::Placeholder(header) | Self::Value(header) => Some(header),
        }
    }

    fn version(self) -> u64 {
        self.header().map_or(0, |header| header.version)
    }

    fn refuses_fill(self, version: u64) -> bool {
        match self {
            Self::Nothing => false,
            Self::Placeholder(header) => version < header.version,
            Self::Value(header) => version != 0 && version < header.version,
        }
    }

    fn refuses_set(self, new: Held) -> bool {
        let version = new.version();
        let is_new_enough = matches!((self, new), (Self::Value(_), Self::Placeholder(_)))
            && self.version() == version;
        version != 0 && (self.version() > version || is_new_enough)
    }
}

fn version_of(value: &Bytes) -> u64 {
    Held::of(Some(value)).version()
}

/// The versions behind the header of a value, one for each record.
fn proposed(value: &Bytes, records: usize) -> StoreResult<Vec<u64>> {
    let count = Header::parse(value).map_or(0, |header| usize::from(header.tag_count));
    let end = Header::LEN + 8 * records;
    match value.get(Header::LEN.min(value.len())..end) {
        Some(bytes) if count == records => Ok(bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| u64::from_be_bytes(*b))
            .collect()),
        _ => Err(StoreError::refused(
            "the value has not one version for each of its tags",
        )),
    }
}

/// The value with these versions in place of those that stand behind its header.
fn with_versions(value: &Bytes, versions: &[u64]) -> Bytes {
    let mut value = BytesMut::from(&value[..]);
    if let Some(behind) = value.get_mut(Header::LEN..) {
        for (place, version) in behind.chunks_exact_mut(8).zip(versions) {
            place.copy_from_slice(&version.to_be_bytes());
        }
    }
    value.freeze()
}

fn check_lengths<'v>(mut values: impl Iterator<Item = &'v Bytes>) -> StoreResult<()> {
    match values.any(|value| value.len() > MemoryStore::MAX_VALUE_BYTES) {
        true => Err(StoreError::refused(
            "the value is longer than the store takes",
        )),
        false => Ok(()),
    }
}

fn read_position(bytes: &Bytes) -> Option<Position> {
    let bytes: [u8; 16] = bytes[..].try_into().ok()?;
    let both = u128::from_be_bytes(bytes);
    Some(Position {
        incarnation: (both >> 64) as u64,
        count: both as u64,
    })
}

fn write_position(position: Position) -> Bytes {
    let both = u128::from(position.incarnation) << 64 | u128::from(position.count);
    Bytes::copy_from_slice(&both.to_be_bytes())
}

/// What the bytes of a set begin with.
const SET: &[u8] = b"set:";
/// The length of a member of a set: its number, and when its time is over.
const MEMBER: usize = 12;

fn read_member(bytes: &[u8]) -> Option<(u32, Millis)> {
    let (member, until) = bytes.split_first_chunk()?;
    Some((
        u32::from_be_bytes(*member),
        Millis::from_be_bytes(*until.first_chunk()?),
    ))
}

/// `value`, or one byte more of it than was asked for.
fn cut(value: &Bytes, limit: usize) -> Bytes {
    value.slice(..value.len().min(limit.saturating_add(1)))
}

fn after(now: Millis, wait: Duration) -> Millis {
    now.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}
