//! One shard: the entries whose hashes fall to it, and all that is decided about them.
//!
//! Nothing here locks. Every method that takes `&mut self` runs under the shard's exclusive lock
//! and keeps one rule: code of a user's type (comparison, admission, change) runs while the
//! structure is whole and before it is touched, and what leaves the shard is handed out in
//! [`Leavings`], to be dropped after the lock. A panic in such code therefore finds, and leaves,
//! a shard that is whole.

use std::ops::Add;

use equivalent::Equivalent;

use super::order::{Order, Reason, Room};
use super::slot::{Entry, Read, Slot, Standing};
use super::table::{Moves, Table, in_one_part};
use crate::clock::Millis;
use crate::options::{Policy, RemovalCause};

/// Slots that every insert looks at for expired entries, where there may be any.
const SWEEP_PER_INSERT: u32 = 4;

/// Slots that an insert looks at for expired entries before it is told that there is no room.
const SWEEP_BEFORE_FULL: u32 = 256;

/// What an insert evicts beyond so many gives its memory back when all of it is gone, as parts that
/// empty shrink a dozen times on the way.
const SHRUNK_AT_ONCE: usize = 16;

/// A part of the table that is locked as one and keeps its own part of the bound.
///
/// Small, so that what a read needs of it lies on one cache line with its lock.
#[derive(Debug)]
pub(super) struct Shard<K, T> {
    slots: Table<K, T>,
    /// What a read leaves in its slot.
    read: Read,
    upkeep: Box<Upkeep>,
}

/// What only changes need.
#[derive(Debug)]
struct Upkeep {
    order: Order,
    policy: Policy,
    sweep: Sweep,
    quota: u64,
    weight: u64,
    counters: Counters,
}

/// What became of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// The value is in the table.
    Stored,
    /// The caller's admission said no. Nothing changed.
    NotAdmitted,
    /// The value alone is more than its shard may hold. It is not stored, and an older value of
    /// its key is gone.
    TooHeavy,
    /// There is no room, and nothing may go for it. It is not stored, and an older value of its key
    /// is gone.
    Full,
}

/// How many entries came and went, and why. At rest `inserted` is the number of entries held plus
/// `replaced`, `evicted`, `expired` and `removed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Values stored.
    pub(crate) inserted: u64,
    /// Live values that gave way to a newer one of their key.
    pub(crate) replaced: u64,
    /// Live entries that gave way to others.
    pub(crate) evicted: u64,
    /// Entries dropped after their deadline, by whatever found them.
    pub(crate) expired: u64,
    /// Entries that the caller removed, or whose newer value was too heavy.
    pub(crate) removed: u64,
    /// Values not stored because they were too heavy.
    pub(crate) too_heavy: u64,
    /// Values not stored because there was no room and nothing could go.
    pub(crate) refused: u64,
}

impl<K, T> Shard<K, T> {
    /// An empty shard that may hold `quota`, of which one entry takes at least `least_charge`.
    pub(super) fn new(policy: Policy, quota: u64, least_charge: u32) -> Self {
        let upkeep = Upkeep {
            order: Order::new(policy, quota),
            policy,
            sweep: Sweep::NOTHING_DIES,
            quota,
            weight: 0,
            counters: Counters::default(),
        };
        Self {
            slots: Table::new(quota / u64::from(least_charge.max(1))),
            read: upkeep.order.read(),
            upkeep: Box::new(upkeep),
        }
    }

    pub(super) fn len(&self) -> u64 {
        u64::from(self.slots.len())
    }

    pub(super) fn weight(&self) -> u64 {
        self.upkeep.weight
    }

    pub(super) fn counters(&self) -> Counters {
        self.upkeep.counters
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot<K, T>> {
        self.slots.iter()
    }

    /// The entries by the parts of the table, with how many there are in each. A key stays in its
    /// part for as long as the shard lasts.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, impl Iterator<Item = &Slot<K, T>>)> {
        self.slots.parts()
    }

    /// How much the policy thinks of an entry.
    pub(super) fn heat(&self, slot: &Slot<K, T>) -> u8 {
        self.upkeep.order.heat(slot)
    }

    /// One of the entries, whose order changes as others come and go.
    pub(super) fn nth(&self, number: u64) -> Option<&Slot<K, T>> {
        let (_, slot) = self.slots.nth(u32::try_from(number).ok()?)?;
        Some(slot)
    }

    /// The live value of `key`, for whoever does not read it. Leaves no mark.
    pub(super) fn glance<Q>(&self, hash: u32, key: &Q, now: Millis) -> Option<&T>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let (_, slot) = self.find(hash, key)?;
        (!slot.is_dead(now)).then_some(&slot.value)
    }

    /// The live value of `key`. Leaves a mark that it was read.
    #[inline(always)]
    pub(super) fn get<Q>(&self, hash: u32, key: &Q, now: Millis) -> Option<&T>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let (_, slot) = self.find(hash, key)?;
        slot.read(now, self.read)
    }

    /// Notes that `key` is about to be read, for a policy that changes its order then.
    pub(super) fn reorder<Q>(&mut self, hash: u32, key: &Q, now: Millis)
    where
        Q: Equivalent<K> + ?Sized,
    {
        let found = self.find(hash, key);
        if let Some((at, _)) = found.filter(|(_, slot)| !slot.is_dead(now)) {
            self.upkeep.order.reorder(&mut self.slots, at);
        }
    }

    /// Stores `entry`, whose charge is settled, if `admit` agrees.
    pub(super) fn insert(
        &mut self,
        entry: Entry<K, T>,
        now: Millis,
        admit: impl FnOnce(Option<&T>) -> bool,
        leavings: &mut Leavings<K, T>,
    ) -> Inserted
    where
        K: Eq,
    {
        let held = self.find(entry.hash, &entry.key);
        let live = held.filter(|(_, slot)| !slot.is_dead(now));
        if !admit(live.map(|(_, slot)| &slot.value)) {
            leavings.decline(entry);
            return Inserted::NotAdmitted;
        }
        let mut was_live = live.is_some();
        let mut at = held.map(|(at, _)| at);
        if !self.can_hold(&entry) {
            self.upkeep.counters.too_heavy += 1;
            self.refuse(entry, at, leavings);
            return Inserted::TooHeavy;
        }
        if self.upkeep.policy == Policy::NoEviction {
            let has_room = self.finds_room(&entry, now, leavings);
            // The sweep may have taken or moved it.
            let held = self.find(entry.hash, &entry.key);
            was_live = held.is_some_and(|(_, slot)| !slot.is_dead(now));
            at = held.map(|(at, _)| at);
            if !has_room {
                self.upkeep.counters.refused += 1;
                self.refuse(entry, at, leavings);
                return Inserted::Full;
            }
        }
        self.upkeep.counters.inserted += 1;
        let standing = match at {
            Some(at) => {
                match was_live {
                    true => self.upkeep.counters.replaced += 1,
                    false => self.upkeep.counters.expired += 1,
                }
                if self.fits_at(at, &entry) {
                    self.rewrite(at, entry, was_live, leavings);
                    return Inserted::Stored;
                }
                let standing = self.slots[at].standing();
                self.take(at, leavings.vacant(Some(left_because(was_live))));
                standing
            }
            None => self.enter(&entry),
        };
        self.place(entry, standing, now, leavings);
        Inserted::Stored
    }

    /// Lets `change` have the live value of `key` and its deadline.
    pub(super) fn update<Q, R>(
        &mut self,
        hash: u32,
        key: &Q,
        now: Millis,
        change: impl FnOnce(&mut T, &mut Millis) -> R,
    ) -> Option<R>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let at = self.position(hash, key)?;
        let slot = &mut self.slots[at];
        if slot.is_dead(now) {
            return None;
        }
        let mut dies_at = slot.dies_at();
        let result = change(&mut slot.value, &mut dies_at);
        slot.set_dies_at(dies_at);
        self.upkeep.sweep.note(at, dies_at);
        Some(result)
    }

    /// Takes `key` out, dead or alive. Unlike an evicted key it is not remembered.
    pub(super) fn remove<Q>(&mut self, hash: u32, key: &Q) -> Option<Slot<K, T>>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let at = self.position(hash, key)?;
        self.upkeep.counters.removed += 1;
        let mut gone = None;
        self.take(at, &mut gone);
        gone
    }

    /// Takes everything out, to be dropped outside the lock.
    pub(super) fn clear(&mut self) -> Table<K, T> {
        let slots = self.slots.take();
        self.upkeep.counters.removed += u64::from(slots.len());
        // What a read leaves is settled when the first entry comes.
        self.upkeep.order = Order::new(self.upkeep.policy, self.upkeep.quota);
        self.upkeep.sweep = Sweep::NOTHING_DIES;
        self.upkeep.weight = 0;
        slots
    }

    /// Lets the shard hold `quota` from now on, and evicts at most `at_most` entries for it. Whether
    /// there is more to evict; until that is done, the shard keeps to what it weighs.
    pub(super) fn resize(
        &mut self,
        quota: u64,
        now: Millis,
        at_most: u32,
        leavings: &mut Leavings<K, T>,
    ) -> bool {
        for _ in 0..at_most {
            if self.upkeep.weight <= quota {
                break;
            }
            let Some((at, reason)) = self.upkeep.order.victim(&mut self.slots, now) else {
                break;
            };
            self.count(reason);
            self.take(at, leavings.vacant(Some(reason.cause())));
        }
        self.upkeep.quota = quota.max(self.upkeep.weight);
        self.upkeep.order.resize(self.upkeep.quota);
        self.upkeep.quota > quota
    }

    /// Goes on with the walk over the entries and takes out those that are dead, until it has
    /// looked at `at_most` or knows that none is left. Returns how many it looked at.
    pub(super) fn sweep(
        &mut self,
        now: Millis,
        at_most: u32,
        leavings: &mut Leavings<K, T>,
    ) -> u32 {
        for looked in 0..at_most {
            let from = self.upkeep.sweep.at;
            let next = self.upkeep.sweep.next(&self.slots, now);
            // A part shrinks when the walk is through with it, and not over and over.
            let is_through = next.is_none_or(|at| at < from || !in_one_part(at, from));
            let moved = is_through && self.shrink(from);
            let Some(at) = next else {
                return looked;
            };
            if moved && in_one_part(at, from) {
                // A new round, which has met none yet.
                self.upkeep.sweep.at = 0;
                continue;
            }
            let slot = &self.slots[at];
            if slot.is_dead(now) {
                self.upkeep.counters.expired += 1;
                self.detach(at, leavings.vacant(Some(RemovalCause::Expired)));
            } else {
                self.upkeep.sweep.pass(slot.dies_at());
            }
        }
        at_most
    }

    #[inline]
    fn find<Q>(&self, hash: u32, key: &Q) -> Option<(u32, &Slot<K, T>)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        self.slots.find(hash, |held| key.equivalent(held))
    }

    fn position<Q>(&self, hash: u32, key: &Q) -> Option<u32>
    where
        Q: Equivalent<K> + ?Sized,
    {
        self.find(hash, key).map(|(at, _)| at)
    }

    /// A charge that does not fit its 32 bits has been cut to the largest number.
    fn can_hold(&self, entry: &Entry<K, T>) -> bool {
        let charge = entry.charge();
        charge < u32::MAX && u64::from(charge) <= self.upkeep.quota
    }

    /// Looks for expired entries until there is room for `entry`, which may not displace anybody.
    fn finds_room(
        &mut self,
        entry: &Entry<K, T>,
        now: Millis,
        leavings: &mut Leavings<K, T>,
    ) -> bool
    where
        K: Eq,
    {
        let (hash, charge) = (entry.hash, entry.charge());
        let fits = |shard: &Self| match shard.position(hash, &entry.key) {
            Some(at) => shard.fits_at(at, entry),
            None => shard.has_room(charge) && shard.slots.can_take(hash),
        };
        if !fits(self) {
            self.sweep(now, SWEEP_BEFORE_FULL, leavings);
        }
        fits(self)
    }

    fn refuse(&mut self, entry: Entry<K, T>, held: Option<u32>, leavings: &mut Leavings<K, T>) {
        if let Some(at) = held {
            self.upkeep.counters.removed += 1;
            self.take(at, leavings.vacant(Some(RemovalCause::Removed)));
        }
        leavings.decline(entry);
    }

    fn fits_at(&self, at: u32, entry: &Entry<K, T>) -> bool {
        let (old, new) = (self.slots.meta(at).charge(), entry.charge());
        new <= old || self.upkeep.weight + u64::from(new - old) <= self.upkeep.quota
    }

    /// Puts the value of `entry` where an older one of its key is. The key stays, and so do its place
    /// in the queue and its marks: a rewritten value is no more popular than it was.
    fn rewrite(
        &mut self,
        at: u32,
        entry: Entry<K, T>,
        was_live: bool,
        leavings: &mut Leavings<K, T>,
    ) {
        let (old, new) = (self.slots.meta(at).charge(), entry.charge());
        if old != new {
            let upkeep = &mut self.upkeep;
            upkeep.order.reweigh(self.slots[at].standing(), old, new);
            upkeep.weight = upkeep.weight - u64::from(old) + u64::from(new);
            self.slots.meta_mut(at).set_charge(new);
        }
        let held = &mut self.slots[at];
        held.set_dies_at(entry.dies_at);
        self.upkeep.sweep.note(at, entry.dies_at);
        let left = leavings.vacant(Some(left_because(was_live)));
        let left = left.insert(entry.slot(Standing::NEW));
        std::mem::swap(&mut held.value, &mut left.value);
    }

    /// Decides where a newcomer stands.
    fn enter(&mut self, entry: &Entry<K, T>) -> Standing {
        let room = match self.has_room(entry.charge()) {
            true => Room::Free,
            false => Room::Full,
        };
        let standing = (self.upkeep.order).enter(&mut self.slots, entry, room);
        self.read = self.upkeep.order.read();
        standing
    }

    /// Makes room for `entry`, whose key is not held, and stores it.
    fn place(
        &mut self,
        entry: Entry<K, T>,
        standing: Standing,
        now: Millis,
        leavings: &mut Leavings<K, T>,
    ) {
        if self.upkeep.sweep.soonest <= now {
            self.sweep(now, SWEEP_PER_INSERT, leavings);
        }
        let (hash, charge) = (entry.hash, entry.charge());
        // One that goes for one that comes leaves the table as full as it was.
        let mut evicted = 0;
        while !self.has_room(charge) || !self.slots.can_take(hash) {
            let Some((at, reason)) = self.upkeep.order.victim(&mut self.slots, now) else {
                break;
            };
            self.count(reason);
            self.detach(at, leavings.vacant(Some(reason.cause())));
            evicted += 1;
            if (2..=SHRUNK_AT_ONCE).contains(&evicted) {
                self.shrink(at);
            }
        }
        if evicted > SHRUNK_AT_ONCE {
            self.slots.bases().for_each(|at| _ = self.shrink(at));
        }
        self.upkeep.weight += u64::from(charge);
        let dies_at = entry.dies_at;
        let at = (self.upkeep.order).insert(&mut self.slots, entry, standing);
        self.upkeep.sweep.note(at, dies_at);
        let moves = self.slots.grow(at);
        self.follow(moves);
    }

    fn count(&mut self, reason: Reason) {
        match reason {
            Reason::Dead => self.upkeep.counters.expired += 1,
            Reason::Room => self.upkeep.counters.evicted += 1,
        }
    }

    fn has_room(&self, charge: u32) -> bool {
        self.upkeep.weight + u64::from(charge) <= self.upkeep.quota
    }

    /// Takes an entry out of everything, to where it is wanted.
    fn take(&mut self, at: u32, to: &mut Option<Slot<K, T>>) {
        self.detach(at, to);
        self.shrink(at);
    }

    /// The same without giving memory back, so that no entry moves.
    fn detach(&mut self, at: u32, to: &mut Option<Slot<K, T>>) {
        let gone = self.upkeep.order.remove(&mut self.slots, at, to);
        self.upkeep.weight -= u64::from(gone.charge());
    }

    /// Gives memory back where `at` is. Whether entries moved for it.
    #[inline]
    fn shrink(&mut self, at: u32) -> bool {
        let moves = self.slots.shrink(at);
        self.follow(moves)
    }

    /// Tells those who know entries by their positions that some moved, if so.
    #[inline]
    fn follow(&mut self, moves: Option<Moves>) -> bool {
        let Some(moves) = moves else {
            return false;
        };
        self.upkeep.order.follow(&mut self.slots, &moves);
        self.upkeep.sweep.follow(&self.slots, &moves);
        true
    }
}

/// A walk over the slots, round after round, that rests while nothing can have died.
#[derive(Debug)]
struct Sweep {
    /// The slot to look at next.
    at: u32,
    /// No entry dies before this.
    soonest: Millis,
    /// No entry behind the walk dies before this.
    soonest_behind: Millis,
}

impl Sweep {
    const NOTHING_DIES: Self = Self {
        at: 0,
        soonest: Millis::MAX,
        soonest_behind: Millis::MAX,
    };

    /// Notes the deadline of the entry at `at` when it comes or changes.
    #[inline]
    fn note(&mut self, at: u32, dies_at: Millis) {
        self.soonest = self.soonest.min(dies_at);
        if at < self.at {
            self.soonest_behind = self.soonest_behind.min(dies_at);
        }
    }

    /// Goes on to the next entry and returns where it is; `None` when none can be dead.
    fn next<K, T>(&mut self, slots: &Table<K, T>, now: Millis) -> Option<u32> {
        if self.soonest > now {
            return None;
        }
        let mut next = slots.entry_from(self.at);
        if next.is_none() {
            self.at = 0;
            self.soonest = std::mem::replace(&mut self.soonest_behind, Millis::MAX);
            if self.soonest > now {
                return None;
            }
            next = slots.entry_from(0);
        }
        let (at, _) = next?;
        self.at = at + 1;
        Some(at)
    }

    /// Goes past an entry that dies then.
    fn pass(&mut self, dies_at: Millis) {
        self.soonest_behind = self.soonest_behind.min(dies_at);
    }

    /// Goes on about where it was, if it is in the part that entries moved in. It may meet some again,
    /// and meets some only in its next round; but a part that grows and shrinks for ever does not keep
    /// it from its end.
    fn follow<K, T>(&mut self, slots: &Table<K, T>, moves: &Moves) {
        if !in_one_part(self.at, moves.base()) {
            return;
        }
        let at = moves.as_far_as(self.at);
        let missed = moves.taken_from(self.at).filter(|new| *new < at);
        let soonest = missed.map(|new| slots[new].dies_at()).min();
        self.pass(soonest.unwrap_or(Millis::MAX));
        self.at = at;
    }
}

/// What became of the value that a newer one took the place of.
fn left_because(was_live: bool) -> RemovalCause {
    match was_live {
        true => RemovalCause::Replaced,
        false => RemovalCause::Expired,
    }
}

impl Reason {
    #[inline]
    fn cause(self) -> RemovalCause {
        match self {
            Reason::Dead => RemovalCause::Expired,
            Reason::Room => RemovalCause::Evicted,
        }
    }
}

/// Keys and values on their way out, dropped where no lock is held.
#[derive(Debug)]
pub(super) struct Leavings<K, T> {
    /// The one that most operations leave, without an allocation.
    first: Leaving<K, T>,
    rest: Vec<Leaving<K, T>>,
}

/// What was in the table, and why it is not any more; without a cause, what never was.
#[derive(Debug)]
struct Leaving<K, T> {
    slot: Option<Slot<K, T>>,
    cause: Option<RemovalCause>,
}

impl<K, T> Leavings<K, T> {
    pub(super) const fn new() -> Self {
        Self {
            first: Leaving {
                slot: None,
                cause: None,
            },
            rest: Vec::new(),
        }
    }

    fn decline(&mut self, entry: Entry<K, T>) {
        *self.vacant(None) = Some(entry.slot(Standing::NEW));
    }

    /// The place for one more, which the caller fills at once.
    #[inline]
    fn vacant(&mut self, cause: Option<RemovalCause>) -> &mut Option<Slot<K, T>> {
        if self.first.slot.is_none() {
            self.first.cause = cause;
            return &mut self.first.slot;
        }
        let at = self.rest.len();
        self.rest.push(Leaving { slot: None, cause });
        &mut self.rest[at].slot
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.slot.is_some()) + self.rest.len()
    }

    /// Those that were in the table.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &T, RemovalCause)> {
        let all = std::iter::once(&self.first).chain(&self.rest);
        all.filter_map(|Leaving { slot, cause }| {
            let slot = slot.as_ref()?;
            Some((&slot.key, &slot.value, (*cause)?))
        })
    }
}

impl Add for Counters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            inserted: self.inserted + other.inserted,
            replaced: self.replaced + other.replaced,
            evicted: self.evicted + other.evicted,
            expired: self.expired + other.expired,
            removed: self.removed + other.removed,
            too_heavy: self.too_heavy + other.too_heavy,
            refused: self.refused + other.refused,
        }
    }
}

#[cfg(test)]
impl<K, T> Shard<K, T> {
    /// Bytes that it has from the allocator: for groups of slots, for what leads to them, and for what the order
    /// remembers.
    pub(super) fn heap(&self) -> [usize; 3] {
        let [slots, groups] = self.slots.heap();
        [slots, groups, self.upkeep.order.heap()]
    }

    /// Compares every part with every other and panics where they disagree.
    pub(super) fn check(&self) {
        assert!(
            self.upkeep.weight <= self.upkeep.quota,
            "a shard keeps to its quota"
        );
        self.slots.check();
        assert_eq!(self.upkeep.order.check(&self.slots), self.slots.len());
        let (mut next, mut charges) = (0, 0);
        while let Some((at, slot)) = self.slots.entry_from(next) {
            next = at + 1;
            let meta = self.slots.meta(at);
            charges += u64::from(meta.charge());
            let found = (self.slots).find(meta.hash, |held| std::ptr::eq(held, &slot.key));
            assert_eq!(found.map(|(at, _)| at), Some(at), "it is found by its hash");
            assert!(self.upkeep.sweep.soonest <= slot.dies_at());
            assert!(
                self.upkeep.sweep.at <= at || self.upkeep.sweep.soonest_behind <= slot.dies_at()
            );
        }
        assert_eq!(
            charges, self.upkeep.weight,
            "a shard weighs what its entries weigh"
        );
        let counted = self.upkeep.counters;
        assert_eq!(
            counted.inserted,
            self.len() + counted.replaced + counted.evicted + counted.expired + counted.removed,
            "every entry that came is held or accounted for"
        );
    }
}
