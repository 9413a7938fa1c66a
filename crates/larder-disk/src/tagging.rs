//! What the writer does for invalidation by tag: values whose tags have records, counters, and sets
//! of members.
//!
//! Each of these is one step, because there is one writer; and what a step writes is one batch, so
//! that a crash leaves no value whose records are not those it was stored with.

use std::time::Duration;

use bytes::Bytes;
use larder::clock::Millis;
use larder::store::{Filled, Position, StoreError, StoreResult, TagRecord, Tagged};

use crate::evict::Need;
use crate::record::{self, Sequence};
use crate::tags::{self, MAX_MEMBERS, Members, POSITION_BYTES};
use crate::tree::Tree;
use crate::writer::{Batch, Failure, Held, Incoming, REMOVE_PATIENCE, Writer};

/// A counter, as it is or as it is to be begun.
struct Counter {
    position: Position,
    /// Whether it stands in the tree like that.
    stands: bool,
}

/// The record of a tag, if there is one.
struct Record {
    key: Bytes,
    found: Option<(TagRecord, Millis)>,
}

impl Writer {
    /// Does the steps of [`Tagged`] and stores the value, if it may be stored.
    pub(crate) fn store_tagged(
        &mut self,
        tree: &Tree,
        incoming: &Incoming<'_>,
        tags: &Tagged,
    ) -> Result<Filled, Failure> {
        // Making room comes first, because it may evict the very records that are needed; now that
        // they are marked as read it will not, as long as it finds something else.
        self.mark(tags);
        let need = tags::need(incoming.key, incoming.value.len(), tags);
        self.prepare(tree, incoming.key, need)?;

        let counter = self.counter(tree, &tags.counter)?;
        let records = self.records(tree, tags)?;
        let held: Vec<_> = records
            .iter()
            .map(|record| record.found.map(|(found, _)| found))
            .collect();
        // That the versions are there was checked before the value was accepted.
        let (proposed, rest) =
            tags::split_versions(incoming.value, records.len()).unwrap_or_default();
        let decision = tags::decide(counter.position, &held, &proposed, incoming.since);

        let mut batch = Batch::new(tree);
        let begun = self.begin(&mut batch, &tags.counter, &counter)?;
        self.keep_records(
            &mut batch,
            &records,
            &decision.versions,
            &counter,
            incoming.ttl,
        )?;
        if decision.admitted {
            let front = tags::front(incoming.value, &decision.versions);
            let deadline = record::deadline(self.shared.wall(), incoming.ttl);
            self.enter(&mut batch, incoming.key, &front, rest, deadline)?;
        }
        self.commit(tree, batch)?;
        self.remember(&tags.counter, begun, counter.position);
        Ok(if decision.admitted {
            Filled::Stored {
                versions: decision.versions,
            }
        } else {
            Filled::Refused
        })
    }

    /// Counts as a use of the counter and the records.
    fn mark(&self, tags: &Tagged) {
        let wall = self.shared.wall();
        for key in tags.records.iter().chain([&tags.counter]) {
            self.shared.index.lock(key).touch(wall);
        }
    }

    fn records(&self, tree: &Tree, tags: &Tagged) -> Result<Vec<Record>, Failure> {
        let find = |key: &Bytes| {
            let found = self.held(tree, key)?.and_then(|held| {
                let record = TagRecord::parse(held.value())?;
                Some((record, held.deadline))
            });
            let key = key.clone();
            Ok(Record { key, found })
        };
        tags.records.iter().map(find).collect()
    }

    /// Makes the records that are missing, and prolongs those that would end before the value.
    ///
    /// They are kept for twice its time, so that not every value that comes writes them again.
    fn keep_records(
        &mut self,
        batch: &mut Batch<'_>,
        records: &[Record],
        versions: &[u64],
        counter: &Counter,
        ttl: Duration,
    ) -> Result<(), Failure> {
        let wall = self.shared.wall();
        let needed_until = record::deadline(wall, ttl);
        let deadline = record::deadline(wall, ttl.saturating_mul(2));
        for (Record { key, found }, &version) in records.iter().zip(versions) {
            if found.is_some_and(|(_, until)| until >= needed_until) {
                continue;
            }
            let made = TagRecord {
                version,
                made_at: counter.position,
            };
            let record = found.map_or(made, |(found, _)| found);
            self.enter(batch, key, &[], &record.to_bytes(), deadline)?;
        }
        Ok(())
    }

    /// Where a counter stands; one that does not exist is begun.
    pub(crate) fn position(&mut self, key: &Bytes) -> StoreResult<Position> {
        self.attempt(&[], |writer, tree| {
            let counter = writer.counter(tree, key)?;
            if !counter.stands {
                writer.prepare(tree, key, Need::entry(key.len(), POSITION_BYTES))?;
                writer.write_counter(tree, key, &counter)?;
            }
            Ok(counter.position)
        })
    }

    /// Moves a counter on, or begins it. It is part of an invalidation and has its patience.
    pub(crate) fn move_on(&mut self, tree: &Tree, key: &Bytes) -> Result<(), Failure> {
        self.wait_for(tree, REMOVE_PATIENCE)?;
        self.make_room(tree, key, Need::entry(key.len(), POSITION_BYTES))?;
        let counter = self.counter(tree, key)?;
        let position = tags::next_position(counter.stands.then_some(counter.position));
        let moved = Counter {
            position,
            stands: false,
        };
        self.write_counter(tree, key, &moved)
    }

    fn write_counter(
        &mut self,
        tree: &Tree,
        key: &Bytes,
        counter: &Counter,
    ) -> Result<(), Failure> {
        let mut batch = Batch::new(tree);
        let sequence = self.begin(&mut batch, key, counter)?;
        self.commit(tree, batch)?;
        self.remember(key, sequence, counter.position);
        Ok(())
    }

    fn counter(&self, tree: &Tree, key: &Bytes) -> Result<Counter, Failure> {
        let position = match self.shared.position(key) {
            Some(position) => Some(position),
            None => self.read_position(tree, key)?,
        };
        Ok(Counter {
            position: position.unwrap_or_else(tags::first_position),
            stands: position.is_some(),
        })
    }

    fn read_position(&self, tree: &Tree, key: &Bytes) -> Result<Option<Position>, Failure> {
        let held = self.held(tree, key)?;
        let position = held.and_then(|held| tags::parse_position(held.value()));
        let slot = self.shared.index.lock(key).touch(self.shared.wall());
        let sequence = slot.map(|slot| slot.sequence());
        Ok(position.inspect(|position| self.remember(key, sequence, *position)))
    }

    /// Enters a counter that does not stand in the tree as it is.
    fn begin(
        &mut self,
        batch: &mut Batch<'_>,
        key: &Bytes,
        counter: &Counter,
    ) -> Result<Option<Sequence>, Failure> {
        if counter.stands {
            return Ok(None);
        }
        let bytes = tags::position_to_bytes(counter.position);
        self.enter(batch, key, &[], &bytes, Millis::MAX).map(Some)
    }

    /// Spares the next lease the way to the disk.
    fn remember(&self, key: &Bytes, sequence: Option<Sequence>, position: Position) {
        if let Some(sequence) = sequence {
            self.shared.positions.remember(key, sequence, position);
        }
    }

    /// Notes a member; answers with all whose time is not over.
    pub(crate) fn enlist(
        &mut self,
        key: &Bytes,
        member: u32,
        keep: Duration,
    ) -> StoreResult<Vec<u32>> {
        let members = self.attempt(&[], |writer, tree| {
            let wall = writer.shared.wall();
            let held = writer.held(tree, key)?;
            let mut members = Members::parse(held.as_ref().map_or(&[], Held::value), wall);
            if keep.is_zero() {
                return Ok(members);
            }
            members.enlist(member, record::deadline(wall, keep));
            if members.len() <= MAX_MEMBERS {
                writer.store_one(tree, key, &members.to_bytes(), members.end())?;
                writer.synced(tree)?;
            }
            Ok(members)
        })?;
        if members.len() > MAX_MEMBERS {
            return Err(StoreError::refused(format!(
                "a member is refused: the disk cache keeps up to {MAX_MEMBERS} under one key"
            )));
        }
        Ok(members.into_members())
    }
}
