//! Stores that break a promise about values and leases, or about a store as a whole.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use larder::clock::{BoxFuture, Millis};
use larder::envelope::Header;
use larder::store::{
    Capabilities, Fill, Filled, LeaseRequest, LeaseToken, Leased, Store, StoreError, StoreResult,
    Swept, Write,
};
use larder_testkit::{ManualClock, MemoryStore, Subject};

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    AnswersInKeyOrder,
    ErrsOnEmptyBatches,
    LosesAllBut500OfABatch,
    AbsentIsEmpty,
    FetchesValuesWhole,
    CutsAtTheLimit,
    LeavesOutLongValues,
    EndsValuesAtNul,
    EndsKeysAtNul,
    ReadsKeysAsUtf8,
    TakesLessThanItSays,
    EveryoneAcquires,
    NobodyAcquiresStale,
    LeasesFreshValues,
    StaleAtIsFresh,
    ComparesTimesAsDoubles,
    ReturnsForeignBytes,
    LeasesAnswerBackwards,
    LeasesFetchWhole,
    LeaseIsNotAtomic,
    LeasesNeverEnd,
    LeasesShortenValues,
    LeasesProlongValues,
    FillIgnoresTheToken,
    FillKeepsTheToken,
    DeleteKeepsLeases,
    SetKeepsLeases,
    ExpireKeepsLeases,
    SweepKeepsLeases,
    ReleaseKeepsThePlaceholder,
    ReleaseKeepsTheToken,
    ReleaseIgnoresTheToken,
    LateFillsLand,
    ComparesTokensAsDoubles,
    RefusesWholeBatches,
    SetIsFill,
    ExpireDeletes,
    ExpireRefreshes,
    ExpireGoesByTheClock,
    ExpireKeepsPlaceholders,
    ExpireKeepsWhatItCannotRead,
    DeletesOnlyValues,
    IgnoresTimesToLive,
    ErrsOnLongTimes,
    TouchesInVain,
    TouchesValuesAlone,
    TouchShortens,
    TouchErrsOnEmptyBatches,
    TouchAdds,
    TouchEndsLeases,
    TouchProlongsLeases,
    TouchProlongsPlaceholders,
    TouchErrsOnLongTimes,
    TouchesAThousand,
    SweepsBySegment,
    SweepsByPattern,
    SweepsAThousand,
    MiscountsSweeps,
    NeverWakes,
    WatchesOneKey,
    ListensWithoutALook,
    LooksAndThenListens,
    WakesAlways,
    WaitsPastTheLease,
    CountsDroppedWaits,
    HasNoName,
    BreaksWhenDropped,
}

#[derive(Debug)]
struct Broken {
    store: MemoryStore,
    flaw: Flaw,
    /// Set while an operation of a store that breaks when dropped is under way.
    busy: AtomicBool,
    waited: AtomicUsize,
}

/// As long as no test runs.
const EVER: Duration = Duration::from_secs(1 << 30);

impl Broken {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn key(&self, key: &Bytes) -> Bytes {
        match self.flaw {
            Flaw::EndsKeysAtNul => key
                .split(|&byte| byte == 0)
                .next()
                .unwrap_or(key)
                .to_vec()
                .into(),
            Flaw::ReadsKeysAsUtf8 => String::from_utf8_lossy(key).into_owned().into(),
            _ => key.clone(),
        }
    }

    fn keys(&self, keys: &[Bytes]) -> Vec<Bytes> {
        keys.iter().map(|key| self.key(key)).collect()
    }

    fn token(&self, token: LeaseToken) -> LeaseToken {
        if !self.is(Flaw::ComparesTokensAsDoubles) {
            return token;
        }
        LeaseToken::from_bits(token.bits() as f64 as u64).unwrap_or(token)
    }

    async fn raw(&self, key: &Bytes) -> Option<Bytes> {
        let mut found = self
            .store
            .get(std::slice::from_ref(key), usize::MAX)
            .await
            .ok()?;
        found.pop()?
    }

    /// Writes whatever version the key holds.
    async fn put(&self, key: &Bytes, value: Bytes, ttl: Duration) -> StoreResult<Filled> {
        let (key, tags) = (self.key(key), None);
        self.store.delete(std::slice::from_ref(&key), None).await?;
        let write = Write {
            key,
            value,
            ttl,
            tags,
        };
        Ok(self.store.set(&[write]).await?.remove(0))
    }

    async fn header(&self, key: &Bytes) -> Option<Header> {
        Header::parse(&self.raw(key).await?)
    }

    /// Puts a lease that was lost back into the key, as if it had never been.
    async fn put_lease_back(&self, key: &Bytes, before: Option<Header>) -> StoreResult<()> {
        let Some(old) = before.filter(|header| header.lease.is_some()) else {
            return Ok(());
        };
        let now = self
            .raw(key)
            .await
            .filter(|value| value.len() >= Header::LEN);
        let value = now.unwrap_or_else(|| Bytes::copy_from_slice(&old.to_bytes()));
        let header = Header::parse(&value).unwrap_or(old);
        let header = Header {
            lease: old.lease,
            lease_until: old.lease_until,
            ..header
        };
        self.put(
            key,
            [&header.to_bytes()[..], &value[Header::LEN..]]
                .concat()
                .into(),
            EVER,
        )
        .await
        .map(drop)
    }

    fn err_on_empty<T>(&self, batch: &[T]) -> StoreResult<()> {
        match batch {
            [] if self.is(Flaw::ErrsOnEmptyBatches) => Err(StoreError::refused("empty")),
            _ => Ok(()),
        }
    }
}

impl Store for Broken {
    fn name(&self) -> &str {
        if self.is(Flaw::HasNoName) {
            ""
        } else {
            "broken"
        }
    }

    fn capabilities(&self) -> Capabilities {
        match self.flaw {
            Flaw::TakesLessThanItSays => Capabilities::new(MemoryStore::MAX_VALUE_BYTES + 1),
            _ => self.store.capabilities(),
        }
    }

    fn get<'a>(
        &'a self,
        keys: &'a [Bytes],
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>> {
        Box::pin(async move {
            self.err_on_empty(keys)?;
            let mut asked = self.keys(keys);
            let limit = match self.flaw {
                Flaw::FetchesValuesWhole => usize::MAX,
                Flaw::CutsAtTheLimit => limit.saturating_sub(1),
                _ => limit,
            };
            match self.flaw {
                Flaw::AnswersInKeyOrder => asked.sort(),
                Flaw::LosesAllBut500OfABatch => asked.truncate(500),
                _ => {}
            }
            let mut found = self.store.get(&asked, limit).await?;
            found.resize(keys.len(), None);
            for value in &mut found {
                match (&value, self.flaw) {
                    (Some(full), Flaw::LeavesOutLongValues) if full.len() > limit => *value = None,
                    (None, Flaw::AbsentIsEmpty) => *value = Some(Bytes::new()),
                    (Some(full), Flaw::EndsValuesAtNul) if full.len() > Header::LEN => {
                        let body = &full[Header::LEN..];
                        let end = body.iter().position(|&b| b == 0).unwrap_or(body.len());
                        *value = Some(full.slice(..Header::LEN + end));
                    }
                    _ => {}
                }
            }
            Ok(found)
        })
    }

    fn lease<'a>(
        &'a self,
        keys: &'a [Bytes],
        request: &'a LeaseRequest,
    ) -> BoxFuture<'a, StoreResult<Vec<Leased>>> {
        Box::pin(async move {
            self.err_on_empty(keys)?;
            let mut request = LeaseRequest {
                token: self.token(request.token),
                ..request.clone()
            };
            let mut asked = self.keys(keys);
            match self.flaw {
                Flaw::LeasesNeverEnd => request.lease_for = EVER,
                Flaw::LeasesFetchWhole => request.limit = usize::MAX,
                Flaw::StaleAtIsFresh => request.stale_at -= 1,
                Flaw::LeasesFreshValues => request.stale_at = u64::MAX,
                Flaw::ComparesTimesAsDoubles => {
                    request.stale_at = request.stale_at as f64 as u64;
                }
                Flaw::LeasesAnswerBackwards => asked.reverse(),
                Flaw::LeaseIsNotAtomic => return self.lease_in_two_steps(&asked, &request).await,
                Flaw::NobodyAcquiresStale
                | Flaw::LeasesShortenValues
                | Flaw::LeasesProlongValues
                | Flaw::EveryoneAcquires
                | Flaw::ReturnsForeignBytes => {
                    return self.lease_one_by_one(&asked, &request).await;
                }
                _ => {}
            }
            self.store.lease(&asked, &request).await
        })
    }

    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(async move {
            self.err_on_empty(fills)?;
            let mut filled = Vec::new();
            for fill in fills {
                filled.push(self.fill_one(fill).await?);
            }
            if self.is(Flaw::RefusesWholeBatches) && filled.contains(&Filled::Refused) {
                filled.fill(Filled::Refused);
            }
            Ok(filled)
        })
    }

    fn release<'a>(
        &'a self,
        keys: &'a [Bytes],
        token: LeaseToken,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            for key in &self.keys(keys) {
                let header = self.header(key).await;
                let value = self
                    .raw(key)
                    .await
                    .is_some_and(|value| value.len() > Header::LEN);
                let token = match (self.flaw, header.and_then(|header| header.lease)) {
                    (Flaw::ReleaseKeepsThePlaceholder, Some(_)) if !value => continue,
                    (Flaw::ReleaseKeepsTheToken, Some(_)) if value => continue,
                    (Flaw::ReleaseIgnoresTheToken, Some(any)) => any,
                    _ => self.token(token),
                };
                self.store.release(std::slice::from_ref(key), token).await?;
            }
            Ok(())
        })
    }

    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(async move {
            if self.is(Flaw::BreaksWhenDropped) {
                if self.busy.swap(true, Ordering::SeqCst) {
                    return Err(StoreError::unavailable("still busy with what was dropped"));
                }
                tokio::task::yield_now().await;
                self.busy.store(false, Ordering::SeqCst);
            }
            let mut filled = Vec::new();
            for write in writes {
                let before = self.header(&write.key).await;
                let ttl = match self.flaw {
                    Flaw::IgnoresTimesToLive => EVER,
                    Flaw::ErrsOnLongTimes if write.ttl > EVER => {
                        return Err(StoreError::refused("ERR invalid expire time"));
                    }
                    _ => write.ttl,
                };
                if self.is(Flaw::SetIsFill) && before.is_some_and(|header| header.lease.is_some()) {
                    filled.push(Filled::Refused);
                    continue;
                }
                let write = Write {
                    key: self.key(&write.key),
                    ttl,
                    ..write.clone()
                };
                filled.append(&mut self.store.set(std::slice::from_ref(&write)).await?);
                if self.is(Flaw::SetKeepsLeases) {
                    self.put_lease_back(&write.key, before).await?;
                }
            }
            Ok(filled)
        })
    }

    fn touch<'a>(&'a self, keys: &'a [Bytes], ttl: Duration) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            let keys = self.keys(keys);
            match self.flaw {
                Flaw::TouchesInVain => return Ok(()),
                Flaw::TouchesAThousand => {
                    return self.store.touch(&keys[..keys.len().min(1_000)], ttl).await;
                }
                Flaw::TouchErrsOnEmptyBatches if keys.is_empty() => {
                    return Err(StoreError::refused("ERR wrong number of arguments"));
                }
                Flaw::TouchErrsOnLongTimes if ttl > EVER => {
                    return Err(StoreError::refused("ERR invalid expire time"));
                }
                _ => {}
            }
            for key in &keys {
                self.touch_one(key, ttl).await?;
            }
            Ok(())
        })
    }

    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            if self.is(Flaw::ExpireDeletes) {
                return self.store.delete(&self.keys(keys), None).await;
            }
            for key in &self.keys(keys) {
                let before = self.header(key).await;
                let raw = self.raw(key).await.unwrap_or_default();
                if self.is(Flaw::ExpireKeepsPlaceholders) && raw.len() == Header::LEN {
                    continue;
                }
                if self.is(Flaw::ExpireKeepsWhatItCannotRead) && before.is_none() {
                    continue;
                }
                self.store.expire(std::slice::from_ref(key), wall).await?;
                match before {
                    Some(header)
                        if (self.is(Flaw::ExpireRefreshes)
                            || self.is(Flaw::ExpireGoesByTheClock))
                            && raw.len() > Header::LEN =>
                    {
                        let until = if self.is(Flaw::ExpireRefreshes) {
                            header.stale_until
                        } else {
                            header.fresh_until
                        };
                        let header = Header {
                            fresh_until: wall.min(until),
                            lease: None,
                            ..header
                        };
                        let value = [&header.to_bytes()[..], &raw[Header::LEN..]].concat();
                        self.put(key, value.into(), EVER).await?;
                    }
                    _ if self.is(Flaw::ExpireKeepsLeases) => {
                        self.put_lease_back(key, before).await?;
                    }
                    _ => {}
                }
            }
            Ok(())
        })
    }

    fn delete<'a>(
        &'a self,
        keys: &'a [Bytes],
        counter: Option<&'a Bytes>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            self.store.delete(&[], counter).await?;
            for key in &self.keys(keys) {
                let before = self.header(key).await;
                let raw = self.raw(key).await.unwrap_or_default();
                if self.is(Flaw::DeletesOnlyValues) && raw.len() == Header::LEN {
                    continue;
                }
                self.store.delete(std::slice::from_ref(key), None).await?;
                if self.is(Flaw::DeleteKeepsLeases) {
                    self.put_lease_back(key, before).await?;
                }
            }
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
            let prefix = match self.flaw {
                // Forgets what stands behind the last colon.
                Flaw::SweepsBySegment => {
                    let end = prefix.iter().rposition(|&byte| byte == b':');
                    &prefix[..end.map_or(prefix.len(), |end| end + 1)]
                }
                // Matches everything from the first special character on.
                Flaw::SweepsByPattern => {
                    let special = |byte: &u8| b"*?[\\".contains(byte);
                    &prefix[..prefix.iter().position(special).unwrap_or(prefix.len())]
                }
                _ => prefix,
            };
            if self.is(Flaw::SweepKeepsLeases)
                && (prefix.ends_with(b"voided:") || prefix.ends_with(b"gone:"))
            {
                return Ok(Swept::default());
            }
            let mut swept = self.store.sweep(prefix, condemned, progress).await?;
            match self.flaw {
                Flaw::MiscountsSweeps => swept.removed += 1,
                Flaw::SweepsAThousand => swept.removed = swept.removed.min(1_000),
                _ => {}
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
        self.store.enlist(record, member, keep)
    }

    fn changed<'a>(&'a self, keys: &'a [Bytes]) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            match self.flaw {
                Flaw::NeverWakes => std::future::pending().await,
                Flaw::WatchesOneKey => self.store.changed(&keys[..1]).await,
                Flaw::ListensWithoutALook => self.written_to(keys).await,
                Flaw::LooksAndThenListens if self.all_leased(keys).await => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    self.written_to(keys).await
                }
                Flaw::WaitsPastTheLease if self.all_leased(keys).await => {
                    self.written_to(keys).await
                }
                Flaw::WakesAlways => Ok(()),
                Flaw::CountsDroppedWaits => {
                    let waited = self.waited.fetch_add(keys.len(), Ordering::SeqCst);
                    if waited > 10_000 {
                        return Err(StoreError::unavailable("too many wait"));
                    }
                    let changed = self.store.changed(keys).await;
                    self.waited.fetch_sub(keys.len(), Ordering::SeqCst);
                    changed
                }
                _ => self.store.changed(keys).await,
            }
        })
    }

    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        self.store.ping()
    }
}

impl Broken {
    /// Whether each of the keys carries a lease, whatever its time.
    async fn all_leased(&self, keys: &[Bytes]) -> bool {
        for key in keys {
            let header = self.header(key).await;
            if header.and_then(|header| header.lease).is_none() {
                return false;
            }
        }
        true
    }

    /// Waits until one of the keys holds something else than now.
    async fn written_to(&self, keys: &[Bytes]) -> StoreResult<()> {
        let before = self.store.get(keys, usize::MAX).await?;
        while self.store.get(keys, usize::MAX).await? == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn fill_one(&self, fill: &Fill) -> StoreResult<Filled> {
        let fill = Fill {
            key: self.key(&fill.key),
            token: self.token(fill.token),
            ..fill.clone()
        };
        let before = self.header(&fill.key).await;
        if self.is(Flaw::FillIgnoresTheToken) {
            return self.put(&fill.key, fill.value, fill.ttl).await;
        }
        if self.is(Flaw::LateFillsLand) && before.and_then(|h| h.lease) == Some(fill.token) {
            return self.put(&fill.key, fill.value, fill.ttl).await;
        }
        let key = fill.key.clone();
        let filled = self.store.fill(&[fill]).await?.remove(0);
        if self.is(Flaw::FillKeepsTheToken) && filled != Filled::Refused {
            self.put_lease_back(&key, before).await?;
        }
        Ok(filled)
    }

    async fn touch_one(&self, key: &Bytes, ttl: Duration) -> StoreResult<()> {
        let (raw, header) = (self.raw(key).await, self.header(key).await);
        let leased = header.filter(|header| header.lease.is_some());
        match (self.flaw, raw, leased) {
            (Flaw::TouchesValuesAlone, Some(raw), _) if raw.len() < Header::LEN => return Ok(()),
            (Flaw::TouchShortens, Some(raw), _) => {
                return self.put(key, raw, ttl).await.map(drop);
            }
            (Flaw::TouchProlongsPlaceholders, Some(raw), _) if raw.len() == Header::LEN => {
                return self.put(key, raw, ttl).await.map(drop);
            }
            (Flaw::TouchAdds, None, _) => {
                return self
                    .put(key, Bytes::from_static(b"here"), ttl)
                    .await
                    .map(drop);
            }
            (Flaw::TouchEndsLeases, Some(_), Some(header)) => {
                let token = header.lease.unwrap_or_else(LeaseToken::random);
                self.store.release(std::slice::from_ref(key), token).await?;
            }
            (Flaw::TouchProlongsLeases, Some(raw), Some(header)) if raw.len() > Header::LEN => {
                let header = Header {
                    lease_until: u64::MAX,
                    ..header
                };
                let value = [&header.to_bytes()[..], &raw[Header::LEN..]].concat();
                return self.put(key, value.into(), ttl).await.map(drop);
            }
            _ => {}
        }
        self.store.touch(std::slice::from_ref(key), ttl).await
    }

    async fn lease_in_two_steps(
        &self,
        keys: &[Bytes],
        request: &LeaseRequest,
    ) -> StoreResult<Vec<Leased>> {
        let found = self.store.get(keys, usize::MAX).await?;
        tokio::task::yield_now().await;
        let mut leased = self.store.lease(keys, request).await?;
        for (found, leased) in found.iter().zip(&mut leased) {
            match leased {
                Leased::Held { stale: None } if found.is_none() => {
                    *leased = Leased::Acquired {
                        stale: None,
                        since: None,
                    };
                }
                _ => {}
            }
        }
        Ok(leased)
    }

    async fn lease_one_by_one(
        &self,
        keys: &[Bytes],
        request: &LeaseRequest,
    ) -> StoreResult<Vec<Leased>> {
        let mut all = Vec::new();
        for key in keys {
            let before = self.raw(key).await;
            let mut leased = self
                .store
                .lease(std::slice::from_ref(key), request)
                .await?
                .remove(0);
            leased = match (self.flaw, leased, before) {
                (
                    Flaw::NobodyAcquiresStale,
                    Leased::Acquired {
                        stale: Some(stale), ..
                    },
                    Some(before),
                ) => {
                    self.put(key, before, EVER).await?;
                    Leased::Held { stale: Some(stale) }
                }
                (flaw, leased @ Leased::Acquired { stale: Some(_), .. }, _)
                    if [Flaw::LeasesShortenValues, Flaw::LeasesProlongValues].contains(&flaw) =>
                {
                    let value = self.raw(key).await.unwrap_or_default();
                    let shorter = flaw == Flaw::LeasesShortenValues;
                    self.put(key, value, if shorter { request.lease_for } else { EVER })
                        .await?;
                    leased
                }
                (Flaw::EveryoneAcquires, Leased::Held { stale }, _) => {
                    Leased::Acquired { stale, since: None }
                }
                (Flaw::ReturnsForeignBytes, Leased::Acquired { stale: None, .. }, Some(before))
                    if Header::parse(&before).is_none() =>
                {
                    self.put(key, before.clone(), EVER).await?;
                    Leased::Value(before)
                }
                (_, leased, _) => leased,
            };
            all.push(leased);
        }
        Ok(all)
    }
}

fn open(flaw: Flaw) -> impl FnOnce() -> Ready<Subject> {
    move || {
        let clock = ManualClock::new();
        let store = Broken {
            store: MemoryStore::new(clock.clone()),
            flaw,
            busy: AtomicBool::new(false),
            waited: AtomicUsize::new(0),
        };
        ready(Subject::new(Arc::new(store)).with_clock(clock))
    }
}

mod without_a_flaw_it_passes {
    use super::*;

    larder_testkit::store_suite!(open(Flaw::None));
}

crate::finds! {
    // Reading
    a_batch_is_answered_in_the_order_asked: AnswersInKeyOrder;
    an_empty_batch_is_answered_with_nothing: ErrsOnEmptyBatches;
    a_batch_may_be_large: LosesAllBut500OfABatch;
    an_absent_key_reads_as_none: AbsentIsEmpty;
    a_value_longer_than_the_limit_is_recognisable: FetchesValuesWhole CutsAtTheLimit
        LeavesOutLongValues;
    a_value_comes_back_byte_for_byte: EndsValuesAtNul;
    keys_are_any_bytes: EndsKeysAtNul ReadsKeysAsUtf8;
    a_value_may_be_as_long_as_the_store_says: TakesLessThanItSays;
    // Taking a lease
    a_lease_on_an_absent_key_is_acquired_once: EveryoneAcquires;
    a_lease_on_a_stale_value_leaves_it_readable: NobodyAcquiresStale EveryoneAcquires;
    a_fresh_value_is_returned_without_a_lease: LeasesFreshValues;
    staleness_is_compared_to_the_millisecond: StaleAtIsFresh ComparesTimesAsDoubles;
    bytes_that_are_no_envelope_are_leased_as_absent: ReturnsForeignBytes;
    leases_of_a_batch_are_answered_in_order: LeasesAnswerBackwards;
    a_lease_read_is_cut_at_the_limit: LeasesFetchWhole;
    one_of_many_concurrent_readers_gets_the_lease: LeaseIsNotAtomic EveryoneAcquires;
    a_lease_ends_when_its_time_is_over: LeasesNeverEnd;
    a_lease_neither_prolongs_nor_shortens_a_stale_value: LeasesShortenValues LeasesProlongValues;
    // Waiting for the end of a lease
    a_wait_ends_with_whatever_ends_the_lease: NeverWakes WatchesOneKey;
    a_wait_for_a_lease_that_is_gone_ends_at_once: ListensWithoutALook WatchesOneKey;
    a_wait_for_a_lease_that_stands_takes_a_while: WakesAlways;
    a_wait_ends_with_the_time_of_the_lease: WaitsPastTheLease;
    no_end_of_a_lease_is_missed: LooksAndThenListens;
    a_dropped_wait_leaves_nothing_behind: CountsDroppedWaits;
    // Filling
    a_fill_with_the_token_is_stored_and_ends_the_lease: FillKeepsTheToken;
    a_fill_without_the_token_is_refused: FillIgnoresTheToken;
    a_fill_is_refused_after_delete: DeleteKeepsLeases FillIgnoresTheToken;
    a_fill_is_refused_after_set: SetKeepsLeases FillIgnoresTheToken;
    a_fill_is_refused_after_expire: ExpireKeepsLeases FillIgnoresTheToken;
    a_fill_is_refused_after_sweep: SweepKeepsLeases FillIgnoresTheToken;
    a_fill_is_refused_after_release: ReleaseKeepsTheToken ReleaseKeepsThePlaceholder;
    a_fill_is_refused_after_the_lease_ended: LateFillsLand FillIgnoresTheToken;
    tokens_are_compared_in_full: ComparesTokensAsDoubles;
    fills_of_a_batch_are_answered_in_order: RefusesWholeBatches;
    // Giving a lease back
    release_removes_a_placeholder: ReleaseKeepsThePlaceholder;
    release_restores_a_stale_value: ReleaseKeepsTheToken;
    release_leaves_the_leases_of_others_alone: ReleaseIgnoresTheToken;
    // Writing
    set_replaces_whatever_was_there: SetIsFill SetKeepsLeases;
    expire_makes_stale_and_keeps_the_rest: ExpireDeletes ExpireKeepsLeases;
    expire_never_makes_a_value_fresher: ExpireRefreshes;
    what_is_expired_is_stale_by_every_clock: ExpireGoesByTheClock;
    expire_removes_a_placeholder_and_adds_nothing: ExpireKeepsPlaceholders;
    expire_removes_what_cannot_be_read: ExpireKeepsWhatItCannotRead;
    delete_removes_values_and_leases: DeletesOnlyValues DeleteKeepsLeases;
    a_value_is_gone_when_its_time_to_live_is_over: IgnoresTimesToLive;
    extreme_times_are_taken: ErrsOnLongTimes;
    // Keeping what is read
    touch_prolongs_values_and_records: TouchesInVain TouchesValuesAlone;
    touch_never_shortens_and_adds_nothing: TouchShortens TouchErrsOnEmptyBatches TouchAdds;
    touch_leaves_leases_as_they_are: TouchEndsLeases TouchProlongsLeases;
    touch_leaves_placeholders_alone: TouchProlongsPlaceholders;
    touch_takes_extreme_times_and_many_keys: TouchErrsOnLongTimes TouchesAThousand;
    // Removing by prefix
    sweep_removes_its_prefix_and_nothing_else: SweepsBySegment MiscountsSweeps;
    sweep_takes_its_prefix_literally: SweepsByPattern;
    sweep_removes_many_keys: SweepsAThousand;
    sweep_ends_leases: SweepKeepsLeases;
    // The rest
    the_store_describes_itself: HasNoName;
    a_dropped_operation_leaves_the_store_usable: BreaksWhenDropped;
    random_sequences_agree_with_the_model: FillIgnoresTheToken ExpireKeepsLeases EveryoneAcquires
        ReleaseIgnoresTheToken SetKeepsLeases DeleteKeepsLeases;
    no_fill_from_before_a_delete_ever_lands: FillIgnoresTheToken DeleteKeepsLeases;
}
