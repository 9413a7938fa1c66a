//! Stores that break a promise about versions, counters, tags, sweeps or sets.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::{BoxFuture, Millis};
use larder::envelope::Header;
use larder::store::{
    Capabilities, Fill, Filled, LeaseRequest, LeaseToken, Leased, Position, Store, StoreError,
    StoreResult, Swept, TagRecord, Tagged, Write,
};
use larder_testkit::{ManualClock, MemoryStore, Subject};

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    FillIgnoresVersions,
    ComparesVersionsAsDoubles,
    FillsWithoutVersionAreLow,
    FillsWithoutVersionAreFree,
    RefusedFillEndsTheLease,
    LeaseDropsMinimums,
    LeaseShortensMinimums,
    MinimumsShortenLeases,
    MinimumsNeverEnd,
    ReleaseRemovesMinimums,
    ExpireRemovesMinimums,
    DeleteKeepsMinimums,
    SetIgnoresVersions,
    WritesWithoutVersionAreLow,
    EqualMinimumsReplace,
    MinimumsKeepLeases,
    RefusedWriteEndsTheLease,
    SetRefusesWholeBatches,
    LeasesWithoutPositions,
    ReadingMovesCounters,
    CountersBeginAlike,
    CountersEnd,
    ForeignCountersFail,
    DeleteLeavesCounters,
    DeleteMovesNothingForNothing,
    DeleteEndsIncarnations,
    DeletesAThousand,
    DeletesBeforeTheCounter,
    DeleteKeepsRecords,
    IgnoresSince,
    IgnoresIncarnations,
    RefusesOnceTheCounterMoved,
    RefusesMissingRecords,
    MakesNoRecordsWhenRefused,
    MakesRecordsSince,
    MakesRecordsAtWill,
    StoresVersionsAsProposed,
    AnswersVersionsAsProposed,
    TakesRecordsInKeyOrder,
    TakesAHundredTags,
    RecordsAreNotProlonged,
    RecordsEndWithTheLastValue,
    ForeignRecordsRefuse,
    TagsForgetVersions,
    ExpireDropsTags,
    RefusesWholeBatches,
    SetComparesSince,
    SweepIgnoresThePredicate,
    SweepShowsOtherKeys,
    SweepKeepsRecords,
    SweepsSilently,
    SweepProgressGoesBack,
    EnlistForgetsOthers,
    EnlistsInOneSet,
    EnlistsForever,
    EnlistsForNoTime,
    EnlistResetsTimes,
    EnlistErrsOnLongTimes,
    EnlistIsNotAtomic,
    EnlistsElsewhere,
}

#[derive(Debug)]
struct Broken {
    store: MemoryStore,
    flaw: Flaw,
}

/// As long as no test runs.
const EVER: Duration = Duration::from_secs(1 << 30);
const BRIEF: Duration = Duration::from_millis(300);

impl Broken {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    async fn raw(&self, key: &Bytes) -> Option<Bytes> {
        let keys = std::slice::from_ref(key);
        self.store.get(keys, usize::MAX).await.ok()?.pop()?
    }

    async fn header(&self, key: &Bytes) -> Option<Header> {
        Header::parse(&self.raw(key).await?)
    }

    /// The minimum version that a placeholder under the key carries; 0 for none.
    async fn minimum(&self, key: &Bytes) -> u64 {
        let alone = self.raw(key).await;
        let alone = alone.filter(|bytes| bytes.len() == Header::LEN);
        let header = alone.and_then(|bytes| Header::parse(&bytes));
        header.map_or(0, |header| header.version)
    }

    /// Writes whatever the key holds.
    async fn put(&self, key: &Bytes, value: Bytes, ttl: Duration) -> StoreResult<Filled> {
        self.store.delete(std::slice::from_ref(key), None).await?;
        let write = Write {
            key: key.clone(),
            value,
            ttl,
            tags: None,
        };
        Ok(self.store.set(&[write]).await?.remove(0))
    }

    /// Changes the header under the key, if there is one.
    async fn rewrite(&self, key: &Bytes, change: impl FnOnce(&mut Header)) -> StoreResult<()> {
        let Some(value) = self.raw(key).await else {
            return Ok(());
        };
        let Some(mut header) = Header::parse(&value) else {
            return Ok(());
        };
        change(&mut header);
        let value = [&header.to_bytes()[..], &value[Header::LEN..]].concat();
        self.put(key, value.into(), EVER).await.map(drop)
    }

    async fn position(&self, counter: &Bytes) -> StoreResult<Position> {
        let probe = [Bytes::from(format!(
            "\0probe {counter:?} {:?}",
            LeaseToken::random()
        ))];
        let request = LeaseRequest {
            token: LeaseToken::random(),
            stale_at: 0,
            lease_for: BRIEF,
            limit: 0,
            counter: Some(counter.clone()),
        };
        let leased = self.store.lease(&probe, &request).await?;
        self.store.delete(&probe, None).await?;
        match leased[..] {
            [
                Leased::Acquired {
                    since: Some(since), ..
                },
            ] => Ok(since),
            _ => Err(StoreError::unavailable("the probe is held")),
        }
    }
}

impl Store for Broken {
    fn name(&self) -> &str {
        "broken"
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    fn get<'a>(
        &'a self,
        keys: &'a [Bytes],
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>> {
        self.store.get(keys, limit)
    }

    fn lease<'a>(
        &'a self,
        keys: &'a [Bytes],
        request: &'a LeaseRequest,
    ) -> BoxFuture<'a, StoreResult<Vec<Leased>>> {
        Box::pin(async move {
            if let Some(counter) = &request.counter {
                self.before_reading(counter).await?;
            }
            let mut all = Vec::new();
            for key in keys {
                let minimum = self.minimum(key).await;
                if minimum > 0 && self.is(Flaw::LeaseDropsMinimums) {
                    self.store.delete(std::slice::from_ref(key), None).await?;
                }
                let leased = self.store.lease(std::slice::from_ref(key), request).await;
                let leased = leased?.remove(0);
                if minimum > 0 && matches!(leased, Leased::Acquired { .. }) {
                    let value = self.raw(key).await.unwrap_or_default();
                    match self.flaw {
                        Flaw::LeaseShortensMinimums => {
                            self.put(key, value, request.lease_for).await?;
                        }
                        Flaw::MinimumsShortenLeases => {
                            self.put(key, value, BRIEF).await?;
                        }
                        _ => {}
                    }
                }
                all.push(self.with_flawed_position(leased));
            }
            Ok(all)
        })
    }

    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(async move {
            let mut filled = Vec::new();
            for fill in fills {
                filled.push(self.fill_one(fill.clone()).await?);
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
            for key in keys {
                let minimum = self.minimum(key).await;
                self.store.release(std::slice::from_ref(key), token).await?;
                if minimum > 0 && self.is(Flaw::ReleaseRemovesMinimums) {
                    self.store.delete(std::slice::from_ref(key), None).await?;
                }
            }
            Ok(())
        })
    }

    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(async move {
            let mut filled = Vec::new();
            for write in writes {
                filled.push(self.set_one(write.clone()).await?);
            }
            if self.is(Flaw::SetRefusesWholeBatches) && filled.contains(&Filled::Refused) {
                filled.fill(Filled::Refused);
            }
            Ok(filled)
        })
    }

    fn touch<'a>(&'a self, keys: &'a [Bytes], ttl: Duration) -> BoxFuture<'a, StoreResult<()>> {
        self.store.touch(keys, ttl)
    }

    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            for key in keys {
                let minimum = self.minimum(key).await;
                self.store.expire(std::slice::from_ref(key), wall).await?;
                if minimum > 0 && self.is(Flaw::ExpireRemovesMinimums) {
                    self.store.delete(std::slice::from_ref(key), None).await?;
                }
                if self.is(Flaw::ExpireDropsTags) {
                    self.rewrite(key, |header| header.tag_count = 0).await?;
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
            let counter = match self.flaw {
                Flaw::DeleteLeavesCounters => None,
                Flaw::DeleteMovesNothingForNothing if keys.is_empty() => None,
                _ => counter,
            };
            let mut gone = keys.to_vec();
            match (self.flaw, counter) {
                (Flaw::DeletesAThousand, _) => gone.truncate(1_000),
                (Flaw::DeleteEndsIncarnations, Some(counter)) => gone.push(counter.clone()),
                (Flaw::DeletesBeforeTheCounter, Some(_)) => {
                    self.store.delete(&gone, None).await?;
                    self.until_one_is_there(&gone).await;
                    gone.clear();
                }
                (Flaw::ForeignCountersFail, Some(counter)) => self.check(counter).await?,
                _ => {}
            }
            let mut kept = Vec::new();
            for key in &gone {
                let raw = self.raw(key).await.unwrap_or_default();
                let stays = match self.flaw {
                    Flaw::DeleteKeepsMinimums => self.minimum(key).await > 0,
                    Flaw::DeleteKeepsRecords => TagRecord::parse(&raw).is_some(),
                    _ => false,
                };
                kept.extend(stays.then_some(key.clone()));
            }
            gone.retain(|key| !kept.contains(key));
            self.store.delete(&gone, counter).await
        })
    }

    fn sweep<'a>(
        &'a self,
        prefix: &'a [u8],
        condemned: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
        progress: &'a (dyn Fn(Swept) + Send + Sync),
    ) -> BoxFuture<'a, StoreResult<Swept>> {
        let all = |_: &[u8]| true;
        let theirs = move |key: &[u8]| condemned(key) && key.starts_with(prefix);
        let entries = move |key: &[u8]| condemned(key) && !key.ends_with(b"record");
        let silent = |_: Swept| ();
        let back = move |told: Swept| {
            progress(Swept {
                seen: 10_000 - told.seen,
                ..told
            });
        };
        Box::pin(async move {
            match self.flaw {
                Flaw::SweepIgnoresThePredicate => self.store.sweep(prefix, &all, progress).await,
                Flaw::SweepShowsOtherKeys => self.store.sweep(b"", &theirs, progress).await,
                Flaw::SweepKeepsRecords => self.store.sweep(prefix, &entries, progress).await,
                Flaw::SweepsSilently => self.store.sweep(prefix, condemned, &silent).await,
                Flaw::SweepProgressGoesBack => self.store.sweep(prefix, condemned, &back).await,
                _ => self.store.sweep(prefix, condemned, progress).await,
            }
        })
    }

    fn enlist<'a>(
        &'a self,
        record: &'a Bytes,
        member: u32,
        keep: Duration,
    ) -> BoxFuture<'a, StoreResult<Vec<u32>>> {
        Box::pin(async move {
            let record = match self.flaw {
                Flaw::EnlistsInOneSet => Bytes::from_static(b"the set"),
                Flaw::EnlistsElsewhere => [&record[..], b" of members"].concat().into(),
                _ => record.clone(),
            };
            let keep = match self.flaw {
                Flaw::EnlistsForever => EVER,
                Flaw::EnlistsForNoTime => keep.max(BRIEF),
                Flaw::EnlistErrsOnLongTimes if keep > EVER => {
                    return Err(StoreError::refused("ERR invalid expire time"));
                }
                _ => keep,
            };
            let mut members = self.store.enlist(&record, member, keep).await?;
            match self.flaw {
                Flaw::EnlistForgetsOthers => members.retain(|other| *other == member),
                Flaw::EnlistResetsTimes | Flaw::EnlistIsNotAtomic => {
                    if self.is(Flaw::EnlistIsNotAtomic) {
                        tokio::task::yield_now().await;
                    }
                    self.store
                        .delete(std::slice::from_ref(&record), None)
                        .await?;
                    for member in &members {
                        self.store.enlist(&record, *member, keep).await?;
                    }
                }
                _ => {}
            }
            Ok(members)
        })
    }

    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        self.store.ping()
    }
}

// Counters.
impl Broken {
    /// Has the bad luck that somebody fills in between, if anybody will.
    async fn until_one_is_there(&self, keys: &[Bytes]) {
        for _ in 0..2_000 {
            for key in keys {
                if self.raw(key).await.is_some() {
                    return;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    async fn before_reading(&self, counter: &Bytes) -> StoreResult<()> {
        match self.flaw {
            Flaw::ReadingMovesCounters => self.store.delete(&[], Some(counter)).await,
            Flaw::ForeignCountersFail => self.check(counter).await,
            Flaw::CountersEnd => {
                self.position(counter).await?;
                let value = self.raw(counter).await.unwrap_or_default();
                self.put(counter, value, BRIEF).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    async fn check(&self, counter: &Bytes) -> StoreResult<()> {
        match self.raw(counter).await {
            Some(bytes) if bytes.len() != 16 => Err(StoreError::refused("WRONGTYPE")),
            _ => Ok(()),
        }
    }

    fn with_flawed_position(&self, leased: Leased) -> Leased {
        let Leased::Acquired { stale, since } = leased else {
            return leased;
        };
        let since = match self.flaw {
            Flaw::LeasesWithoutPositions => None,
            Flaw::CountersBeginAlike => since.map(|since| Position {
                incarnation: 7,
                ..since
            }),
            _ => since,
        };
        Leased::Acquired { stale, since }
    }
}

// Fills and writes.
impl Broken {
    async fn fill_one(&self, mut fill: Fill) -> StoreResult<Filled> {
        let held = self.header(&fill.key).await;
        let version = Header::parse(&fill.value).map_or(0, |header| header.version);
        let holds = held.is_some_and(|held| held.lease == Some(fill.token));
        let held = held.map_or(0, |held| held.version);
        let is_low = match self.flaw {
            Flaw::FillIgnoresVersions => Some(false),
            Flaw::ComparesVersionsAsDoubles if version > 0 => Some((version as f64) < held as f64),
            Flaw::FillsWithoutVersionAreLow => Some(version < held),
            Flaw::FillsWithoutVersionAreFree if version == 0 => Some(false),
            _ => None,
        };
        if let Some(is_low) = is_low.filter(|_| holds && fill.tags.is_none()) {
            return match is_low {
                true => Ok(Filled::Refused),
                false => self.put(&fill.key, fill.value, fill.ttl).await,
            };
        }
        if let Some(tags) = &mut fill.tags
            && self.refuses(tags).await?
        {
            return Ok(Filled::Refused);
        }
        if fill.tags.is_some() && self.is(Flaw::TagsForgetVersions) {
            self.rewrite(&fill.key, |header| header.version = 0).await?;
        }
        let before = self.records(fill.tags.as_ref()).await;
        let fills = [fill];
        let filled = self.store.fill(&fills).await?.remove(0);
        let [fill] = fills;
        if filled == Filled::Refused && holds && self.is(Flaw::RefusedFillEndsTheLease) {
            let keys = std::slice::from_ref(&fill.key);
            self.store.release(keys, fill.token).await?;
        }
        match &fill.tags {
            Some(tags) => {
                self.spoil(&fill.key, &fill.value, fill.ttl, tags, &before, filled)
                    .await
            }
            None => Ok(filled),
        }
    }

    async fn set_one(&self, mut write: Write) -> StoreResult<Filled> {
        let before = self.header(&write.key).await;
        let held = before.map_or(0, |held| held.version);
        let version = Header::parse(&write.value).map_or(0, |header| header.version);
        let is_demand = write.value.len() == Header::LEN;
        let ttl = match self.flaw {
            Flaw::MinimumsNeverEnd if is_demand => EVER,
            _ => write.ttl,
        };
        match self.flaw {
            Flaw::WritesWithoutVersionAreLow if version < held => return Ok(Filled::Refused),
            Flaw::EqualMinimumsReplace if is_demand && version == held => {
                return self.put(&write.key, write.value, ttl).await;
            }
            Flaw::SetIgnoresVersions if write.tags.is_none() => {
                return self.put(&write.key, write.value, ttl).await;
            }
            Flaw::TagsForgetVersions if write.tags.is_some() => {
                self.rewrite(&write.key, |header| header.version = 0)
                    .await?;
            }
            Flaw::SetComparesSince => {
                let tags = write.tags.as_ref();
                if let Some((tags, since)) = tags.and_then(|tags| Some((tags, tags.since?)))
                    && since != self.position(&tags.counter).await?
                {
                    return Ok(Filled::Refused);
                }
            }
            _ => {}
        }
        if let Some(tags) = &mut write.tags
            && self.refuses(tags).await?
        {
            return Ok(Filled::Refused);
        }
        write.ttl = ttl;
        let records = self.records(write.tags.as_ref()).await;
        let writes = [write];
        let filled = self.store.set(&writes).await?.remove(0);
        let [write] = writes;
        if let Some(before) = before.filter(|_| is_demand && self.is(Flaw::MinimumsKeepLeases)) {
            self.rewrite(&write.key, |header| {
                header.lease = before.lease;
                header.lease_until = before.lease_until;
            })
            .await?;
        }
        if filled == Filled::Refused && self.is(Flaw::RefusedWriteEndsTheLease) {
            self.rewrite(&write.key, |header| header.lease = None)
                .await?;
        }
        match &write.tags {
            Some(tags) => {
                self.spoil(&write.key, &write.value, ttl, tags, &records, filled)
                    .await
            }
            None => Ok(filled),
        }
    }

    /// What stands under the keys of the records.
    async fn records(&self, tags: Option<&Tagged>) -> Vec<Option<TagRecord>> {
        let mut records = Vec::new();
        for key in tags.map_or(&[][..], |tags| &tags.records) {
            let raw = self.raw(key).await.unwrap_or_default();
            records.push(TagRecord::parse(&raw));
        }
        records
    }

    /// Changes the tags as the flaw wants, or refuses the value for them.
    async fn refuses(&self, tags: &mut Tagged) -> StoreResult<bool> {
        let here = self.position(&tags.counter).await?;
        let missing = self.records(Some(tags)).await.contains(&None);
        Ok(match self.flaw {
            Flaw::TakesAHundredTags => tags.records.len() > 100,
            Flaw::RefusesOnceTheCounterMoved => tags.since.is_some_and(|since| since != here),
            Flaw::RefusesMissingRecords => tags.since.is_some() && missing,
            Flaw::ForeignRecordsRefuse => {
                let found = self.store.get(&tags.records, usize::MAX).await?;
                let mut found = found.iter().flatten();
                found.any(|bytes| TagRecord::parse(bytes).is_none())
            }
            Flaw::IgnoresSince => {
                tags.since = None;
                false
            }
            Flaw::IgnoresIncarnations => {
                tags.since = tags.since.map(|since| Position {
                    incarnation: here.incarnation,
                    ..since
                });
                false
            }
            Flaw::TakesRecordsInKeyOrder => {
                tags.records.sort();
                false
            }
            _ => false,
        })
    }

    /// Spoils what a value with tags left behind.
    async fn spoil(
        &self,
        key: &Bytes,
        value: &Bytes,
        ttl: Duration,
        tags: &Tagged,
        before: &[Option<TagRecord>],
        mut filled: Filled,
    ) -> StoreResult<Filled> {
        for (record, before) in tags.records.iter().zip(before) {
            let Some(now) = TagRecord::parse(&self.raw(record).await.unwrap_or_default()) else {
                continue;
            };
            let since = tags.since.unwrap_or(now.made_at);
            let spoilt = match (self.flaw, before) {
                (Flaw::MakesRecordsSince, None) => TagRecord {
                    made_at: since,
                    ..now
                },
                (Flaw::MakesRecordsAtWill, None) => TagRecord {
                    version: now.version.wrapping_add(1),
                    ..now
                },
                _ => now,
            };
            let spoilt = Bytes::copy_from_slice(&spoilt.to_bytes());
            match (self.flaw, before) {
                (Flaw::MakesRecordsSince | Flaw::MakesRecordsAtWill, None) => {
                    self.put(record, spoilt, EVER).await?;
                }
                (Flaw::RecordsAreNotProlonged, Some(_)) => {
                    self.put(record, spoilt, BRIEF).await?;
                }
                (Flaw::RecordsEndWithTheLastValue, _) => {
                    self.put(record, spoilt, ttl).await?;
                }
                (Flaw::MakesNoRecordsWhenRefused, None) if filled == Filled::Refused => {
                    self.store
                        .delete(std::slice::from_ref(record), None)
                        .await?;
                }
                _ => {}
            }
        }
        let proposed = value[Header::LEN..].as_chunks().0;
        if let Filled::Stored { versions } = &mut filled {
            match self.flaw {
                Flaw::StoresVersionsAsProposed => {
                    self.put(key, value.clone(), ttl).await?;
                }
                Flaw::AnswersVersionsAsProposed => {
                    for (version, proposed) in versions.iter_mut().zip(proposed) {
                        *version = u64::from_be_bytes(*proposed);
                    }
                }
                _ => {}
            }
        }
        Ok(filled)
    }
}

fn open(flaw: Flaw) -> impl FnOnce() -> Ready<Subject> {
    move || {
        let clock = ManualClock::new();
        let store = Broken {
            store: MemoryStore::new(clock.clone()),
            flaw,
        };
        ready(Subject::new(Arc::new(store)).with_clock(clock))
    }
}

crate::finds! {
    // Versions
    a_fill_below_the_version_of_the_value_is_refused: FillIgnoresVersions ComparesVersionsAsDoubles
        FillsWithoutVersionAreLow;
    a_fill_below_a_minimum_version_is_refused: FillIgnoresVersions ComparesVersionsAsDoubles
        FillsWithoutVersionAreFree;
    a_refused_fill_leaves_the_lease_as_it_is: RefusedFillEndsTheLease;
    a_minimum_version_survives_its_leases: LeaseDropsMinimums LeaseShortensMinimums;
    a_lease_outlasts_the_minimum_version_under_it: MinimumsShortenLeases;
    release_keeps_a_minimum_version: ReleaseRemovesMinimums;
    expire_keeps_a_minimum_version: ExpireRemovesMinimums;
    delete_removes_a_minimum_version: DeleteKeepsMinimums;
    a_write_below_the_version_held_is_refused: SetIgnoresVersions WritesWithoutVersionAreLow;
    a_minimum_version_replaces_older_values_only: SetIgnoresVersions EqualMinimumsReplace;
    a_minimum_version_voids_leases: MinimumsKeepLeases;
    a_refused_write_leaves_the_lease_as_it_is: RefusedWriteEndsTheLease;
    a_minimum_version_ends_with_its_time_to_live: MinimumsNeverEnd;
    writes_of_a_batch_are_answered_in_order: SetRefusesWholeBatches;
    // Counters
    a_lease_comes_with_the_position_of_its_counter: LeasesWithoutPositions ReadingMovesCounters;
    a_counter_begins_with_a_random_incarnation: CountersBeginAlike;
    delete_moves_the_counter_that_it_names: DeleteLeavesCounters DeleteMovesNothingForNothing
        DeleteEndsIncarnations;
    delete_moves_the_counter_before_many_keys: DeleteLeavesCounters DeletesAThousand;
    a_counter_stays_until_it_is_removed: CountersEnd CountersBeginAlike;
    foreign_bytes_under_a_counter_are_replaced: ForeignCountersFail;
    // Tags
    a_missing_record_is_made_as_proposed: MakesRecordsAtWill;
    versions_of_records_replace_those_proposed: StoresVersionsAsProposed AnswersVersionsAsProposed
        TakesRecordsInKeyOrder;
    a_value_may_have_many_tags: TakesAHundredTags;
    a_fill_from_another_incarnation_is_refused: IgnoresSince IgnoresIncarnations;
    a_fill_without_records_asks_for_the_incarnation: IgnoresSince IgnoresIncarnations
        RefusesOnceTheCounterMoved;
    a_fill_older_than_a_record_is_refused: IgnoresSince;
    a_fill_without_a_record_is_refused_once_the_counter_moved: IgnoresSince DeleteLeavesCounters;
    a_fill_whose_records_are_older_is_stored: RefusesOnceTheCounterMoved;
    a_fill_without_a_record_is_stored_while_the_counter_stands: RefusesMissingRecords;
    a_refused_fill_makes_the_records_that_are_missing: MakesNoRecordsWhenRefused MakesRecordsSince;
    a_write_with_tags_is_not_compared_with_the_counter: SetComparesSince;
    an_invalidated_tag_gets_another_version: DeleteKeepsRecords;
    a_record_is_kept_as_long_as_its_values: RecordsAreNotProlonged RecordsEndWithTheLastValue;
    foreign_bytes_under_a_record_are_replaced: ForeignRecordsRefuse;
    versions_and_tags_go_together: TagsForgetVersions;
    tagged_fills_of_a_batch_are_answered_in_order: RefusesWholeBatches;
    a_tagged_value_is_leased_and_expired_like_any_other: ExpireDropsTags;
    // Removing by prefix
    sweep_removes_what_is_condemned: SweepIgnoresThePredicate SweepShowsOtherKeys;
    sweep_removes_records_of_every_kind: SweepKeepsRecords;
    sweep_tells_how_far_it_got: SweepsSilently SweepProgressGoesBack;
    // Sets
    enlisted_members_are_returned: EnlistForgetsOthers EnlistsInOneSet;
    a_member_for_no_time_is_not_noted: EnlistsForNoTime;
    a_member_ends_when_its_time_is_over: EnlistsForever;
    a_member_is_kept_for_the_longest_time_asked: EnlistResetsTimes;
    extreme_times_of_members_are_taken: EnlistErrsOnLongTimes;
    concurrent_members_are_all_kept: EnlistIsNotAtomic;
    a_set_is_a_key_like_any_other: EnlistsElsewhere;
    // The rest
    random_sequences_agree_with_the_model: FillIgnoresVersions SetIgnoresVersions IgnoresSince
        ReleaseRemovesMinimums ExpireRemovesMinimums EqualMinimumsReplace MakesRecordsSince
        MakesNoRecordsWhenRefused RefusesOnceTheCounterMoved RefusesMissingRecords
        StoresVersionsAsProposed TakesRecordsInKeyOrder DeleteEndsIncarnations;
    no_fill_from_before_its_tag_was_invalidated_is_valid: IgnoresSince DeleteLeavesCounters
        DeletesBeforeTheCounter;
}
