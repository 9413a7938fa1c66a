//! Where the entries of one shard lie: a hash table of slots, in parts that grow one at a time.
//!
//! ```text
//! hash    group  ...  | tag | part         the upper bits, seven, the lowest nine
//! Part    [Group] ...
//! Group   seven tags, how many entries went past, seven slots
//! Book    of a part: how many entries it has, and what only changes need of them
//! ```
//!
//! An entry lies in the group that its hash names, or, where that was full, in one behind it. A lookup
//! compares the tags of a group all at once and goes on only past groups that others had to go past,
//! so it seldom sees more than one group. Nothing is left behind by an entry that goes, so a table whose
//! entries come and go needs no cleaning. F14 does it like this (Bronson and Shi, "Open-sourcing F14 for
//! faster, more memory-efficient hash tables", 2019).
//!
//! A hash table grows by moving all it holds at once. A part is therefore small, and what moved is told
//! to those who know slots by their positions.

use std::ops::{Index, IndexMut};

use super::slot::{Meta, Slot};

/// Slots in one group.
const WAYS: usize = 7;

/// Of a position, the bits of the way in its group.
const WAY_BITS: u32 = 3;

/// Entries that a part is meant for.
const PART_ENTRIES: u64 = 1408;

/// More parts than this are not made, however large the bound: 720,000 entries per shard then still
/// move by [`PART_ENTRIES`], and parts of more take longer.
const PARTS_MAX: usize = 1 << PART_BITS;
const PART_BITS: u32 = 9;

/// Of a position, the bits of the group in its part. Fewer in tests, which fill one to the last group.
const GROUP_BITS: u32 = match cfg!(test) {
    true => 12,
    false => u32::BITS - PART_BITS - WAY_BITS,
};

/// No part has more groups: with 512 parts, a shard holds some 3,000,000,000 entries at most, and with
/// a single one 5,900,000.
const GROUPS_MAX: usize = 1 << GROUP_BITS;

/// The share of its slots that is taken in a part when it has what it is meant for.
const MEANT: (usize, usize) = (2, 3);

/// A part of which this share is taken grows, by this factor.
const FULL: (usize, usize) = (13, 16);
const GROWTH: (usize, usize) = (5, 4);

/// A part of which less than this share is taken shrinks, to that where this one is.
const SPARSE: (usize, usize) = (5, 8);
const SHRUNK: (usize, usize) = (7, 10);

/// The entries of one shard by their hashes.
///
/// A *position* is a part, a group and a way. An entry keeps its position until it goes, or its part
/// grows or shrinks.
#[derive(Debug)]
pub(super) struct Table<K, T> {
    /// A power of two of them.
    parts: Box<[Part<K, T>]>,
    /// One less than that.
    mask: u32,
    /// What a read has no use for, out of its way.
    books: Box<Books>,
}

#[derive(Debug)]
struct Books {
    /// How many entries there are.
    len: u32,
    /// By part.
    parts: Box<[Book]>,
    /// Groups of a part that has as many entries as it is meant for.
    meant: usize,
    /// No part ever had more groups.
    widest: usize,
}

/// What only changes need of a part.
#[derive(Debug, Default)]
struct Book {
    /// How many entries there are.
    len: u32,
    /// By group and way, like the slots.
    metas: Box<[[Meta; WAYS]]>,
}

#[derive(Debug)]
struct Part<K, T>(Box<[Group<K, T>]>);

#[derive(Debug)]
struct Group<K, T> {
    tags: Tags,
    slots: [Option<Slot<K, T>>; WAYS],
}

/// The tags of the slots of a group, zero for a vacant one, and as the last byte how many entries that
/// belong to this group or to one before it lie behind it: 255 is that or more, until the part is made
/// anew.
#[derive(Clone, Copy, Debug, Default)]
struct Tags([u8; WAYS + 1]);

/// Where the entries of one part were, and where they are.
#[derive(Debug)]
pub(super) struct Moves {
    /// The first position of the part.
    base: u32,
    /// The groups that it has now.
    groups: usize,
    /// By the old position, less the base.
    to: Box<[Option<u32>]>,
}

impl<K, T> Table<K, T> {
    /// What it takes for one entry where the fewest slots are taken that it leaves as it is: a slot, its
    /// share of tags and of what aligns them, and what only changes need.
    pub(super) const BYTES_EACH: usize = ((size_of::<Group<K, T>>() + size_of::<[Meta; WAYS]>())
        * SPARSE.1)
        .div_ceil(WAYS * SPARSE.0);

    /// A table for at most `entries`; more are possible and only take longer to move.
    pub(super) fn new(entries: u64) -> Self {
        let parts = entries.div_ceil(PART_ENTRIES).clamp(1, PARTS_MAX as u64);
        let parts = parts.next_power_of_two();
        let each = usize::try_from(entries.div_ceil(parts)).unwrap_or(usize::MAX);
        let meant = each.saturating_mul(MEANT.1).div_ceil(MEANT.0 * WAYS);
        Self::with_parts(parts as usize, meant.clamp(1, GROUPS_MAX))
    }

    fn with_parts(parts: usize, meant: usize) -> Self {
        let books = Books {
            len: 0,
            parts: (0..parts).map(|_| Book::default()).collect(),
            meant,
            widest: 0,
        };
        Self {
            parts: (0..parts).map(|_| Part::with_groups(0)).collect(),
            mask: parts as u32 - 1,
            books: Box::new(books),
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.books.len
    }

    /// The entry under `hash` whose key is the one that `is_it` knows, and its position.
    #[inline(always)]
    pub(super) fn find(&self, hash: u32, is_it: impl Fn(&K) -> bool) -> Option<(u32, &Slot<K, T>)> {
        let at = self.part(hash);
        let (group, way, slot) = self.parts[at].find(hash, is_it)?;
        Some((position(at, group, way), slot))
    }

    /// Whether there is a vacant slot for an entry under `hash`: unless its part has as many as it can.
    #[inline]
    pub(super) fn can_take(&self, hash: u32) -> bool {
        self.books.widest < GROUPS_MAX || !self.is_exhausted(self.part(hash))
    }

    fn is_exhausted(&self, at: usize) -> bool {
        let part = &self.parts[at];
        part.0.len() == GROUPS_MAX && part.is_full(self.books.parts[at].len)
    }

    /// Stores an entry whose key is not here and for which there is a vacant slot, and returns its
    /// position. Its part has to [`grow`](Self::grow) afterwards.
    #[inline]
    pub(super) fn insert(&mut self, slot: Slot<K, T>, meta: Meta) -> u32 {
        let at = self.part(meta.hash);
        let part = &self.parts[at];
        if part.0.is_empty() {
            // Nothing is there to be moved.
            self.remake(at, part.grown(self.books.meant));
        }
        let (group, way) = self.parts[at].insert(slot, meta.hash);
        let book = &mut self.books.parts[at];
        book.metas[group][way] = meta;
        book.len += 1;
        self.books.len += 1;
        position(at, group, way)
    }

    /// Makes the part of this position larger if few slots are vacant; what moved for it.
    #[inline]
    pub(super) fn grow(&mut self, at: u32) -> Option<Moves> {
        let (at, _, _) = places(at);
        let part = &self.parts[at];
        if !part.is_full(self.books.parts[at].len) || part.0.len() == GROUPS_MAX {
            return None;
        }
        let groups = part.grown(self.books.meant);
        Some(self.remake(at, groups))
    }

    /// Takes the entry at `at` out, which is there. What reads need of it goes to `to`, in which there is
    /// nothing; what only changes need is returned.
    #[inline]
    pub(super) fn remove(&mut self, at: u32, to: &mut Option<Slot<K, T>>) -> Meta {
        let (part, group, way) = places(at);
        let book = &mut self.books.parts[part];
        let meta = book.metas[group][way];
        *to = self.parts[part].remove(group, way, meta.hash);
        debug_assert!(to.is_some(), "{ALIVE}");
        book.len -= 1;
        self.books.len -= 1;
        meta
    }

    /// What only changes need of the entry at `at`.
    #[inline]
    pub(super) fn meta(&self, at: u32) -> &Meta {
        let (part, group, way) = places(at);
        &self.books.parts[part].metas[group][way]
    }

    #[inline]
    pub(super) fn meta_mut(&mut self, at: u32) -> &mut Meta {
        let (part, group, way) = places(at);
        &mut self.books.parts[part].metas[group][way]
    }

    /// Gives memory back if the part of this position has become far too large; what moved for it.
    #[inline]
    pub(super) fn shrink(&mut self, at: u32) -> Option<Moves> {
        let (at, _, _) = places(at);
        let (part, len) = (&self.parts[at], self.books.parts[at].len);
        if !part.is_sparse(len) {
            return None;
        }
        Some(self.remake(at, Part::<K, T>::shrunk(len)))
    }

    /// A position in each of the parts.
    pub(super) fn bases(&self) -> impl Iterator<Item = u32> + use<K, T> {
        (0..self.parts.len()).map(|part| position(part, 0, 0))
    }

    /// The first entry whose position is `at` or behind it, and its position.
    pub(super) fn entry_from(&self, at: u32) -> Option<(u32, &Slot<K, T>)> {
        let (first, group, _) = places(at);
        let mut parts = self.parts.iter().enumerate().skip(first);
        parts.find_map(|(part, held)| {
            let from = if part == first { group } else { 0 };
            let entries = held.entries_from(from);
            entries
                .map(|(group, way, slot)| (position(part, group, way), slot))
                .find(|(found, _)| *found >= at)
        })
    }

    /// The entry number `number` by positions.
    pub(super) fn nth(&self, mut number: u32) -> Option<(u32, &Slot<K, T>)> {
        for (at, &Book { len, .. }) in self.books.parts.iter().enumerate() {
            if number < len {
                let (group, way, slot) = self.parts[at].entries_from(0).nth(number as usize)?;
                return Some((position(at, group, way), slot));
            }
            number -= len;
        }
        None
    }

    /// The position of an entry that `below` picks, which is a random number below another; each is as
    /// likely as any other.
    pub(super) fn pick(&self, below: impl Fn(u32) -> u32) -> Option<u32> {
        if self.books.len == 0 {
            return None;
        }
        // Most slots are taken, unless parts differ much.
        for _ in 0..64 {
            let part = below(self.parts.len() as u32) as usize;
            let group = below(self.books.widest as u32) as usize;
            let way = below(WAYS as u32) as usize;
            let held = self.parts[part].0.get(group);
            if held.is_some_and(|group| group.slots[way].is_some()) {
                return Some(position(part, group, way));
            }
        }
        self.nth(below(self.books.len)).map(|(at, _)| at)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot<K, T>> {
        self.parts.iter().flat_map(Part::iter)
    }

    /// The parts, each with how many entries it has. How many parts there are never changes, and
    /// neither does the part that a hash belongs to.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, impl Iterator<Item = &Slot<K, T>>)> {
        let lens = self.books.parts.iter().map(|book| book.len as usize);
        lens.zip(self.parts.iter().map(Part::iter))
    }

    /// Takes everything out.
    pub(super) fn take(&mut self) -> Self {
        let empty = Self::with_parts(self.parts.len(), self.books.meant);
        std::mem::replace(self, empty)
    }

    #[cold]
    fn remake(&mut self, at: usize, groups: usize) -> Moves {
        let (part, book) = (&mut self.parts[at], &mut self.books.parts[at]);
        let old = std::mem::replace(part, Part::with_groups(groups));
        let metas = vec![[Meta::VACANT; WAYS]; groups].into_boxed_slice();
        let old_metas = std::mem::replace(&mut book.metas, metas);
        self.books.widest = self.books.widest.max(groups);
        let mut to = vec![None; old.0.len() << WAY_BITS].into_boxed_slice();
        for (group, (old, metas)) in old.0.into_iter().zip(old_metas).enumerate() {
            for (way, (slot, meta)) in old.slots.into_iter().zip(metas).enumerate() {
                if let Some(slot) = slot {
                    let (new, new_way) = part.insert(slot, meta.hash);
                    book.metas[new][new_way] = meta;
                    to[group << WAY_BITS | way] = Some(position(at, new, new_way));
                }
            }
        }
        Moves {
            base: position(at, 0, 0),
            groups,
            to,
        }
    }

    /// The part of a hash: its lowest bits.
    #[inline]
    fn part(&self, hash: u32) -> usize {
        (hash & self.mask) as usize
    }
}

/// Whether both are positions in one part, as it was or as it is.
pub(super) fn in_one_part(at: u32, other: u32) -> bool {
    places(at).0 == places(other).0
}

#[inline]
fn position(part: usize, group: usize, way: usize) -> u32 {
    ((part << GROUP_BITS | group) << WAY_BITS | way) as u32
}

/// The part, the group and the way of a position.
#[inline]
fn places(at: u32) -> (usize, usize, usize) {
    let at = at as usize;
    let (groups, ways) = ((1 << GROUP_BITS) - 1, (1 << WAY_BITS) - 1);
    let group = at >> WAY_BITS;
    (group >> GROUP_BITS, group & groups, at & ways)
}

const ALIVE: &str =
    "a position that is kept is told of every move, and dropped when its entry goes";

impl<K, T> Index<u32> for Table<K, T> {
    type Output = Slot<K, T>;

    #[inline]
    #[expect(clippy::expect_used, reason = "see the message")]
    fn index(&self, at: u32) -> &Slot<K, T> {
        let (part, group, way) = places(at);
        let group = &self.parts[part].0[group];
        group.slots[way].as_ref().expect(ALIVE)
    }
}

impl<K, T> IndexMut<u32> for Table<K, T> {
    #[inline]
    #[expect(clippy::expect_used, reason = "see the message")]
    fn index_mut(&mut self, at: u32) -> &mut Slot<K, T> {
        let (part, group, way) = places(at);
        let group = &mut self.parts[part].0[group];
        group.slots[way].as_mut().expect(ALIVE)
    }
}

impl<K, T> Part<K, T> {
    fn with_groups(groups: usize) -> Self {
        Self((0..groups).map(|_| Group::empty()).collect())
    }

    /// The entries from a group on, with their groups and ways.
    fn entries_from(&self, group: usize) -> impl Iterator<Item = (usize, usize, &Slot<K, T>)> {
        let groups = self.0.iter().enumerate().skip(group);
        groups.flat_map(|(at, group)| {
            let slots = group.slots.iter().enumerate();
            slots.filter_map(move |(way, slot)| Some((at, way, slot.as_ref()?)))
        })
    }

    fn iter(&self) -> impl Iterator<Item = &Slot<K, T>> {
        self.entries_from(0).map(|(_, _, slot)| slot)
    }

    /// The entry under `hash` whose key is the one that `is_it` knows, its group and its way.
    #[inline(always)]
    fn find(&self, hash: u32, is_it: impl Fn(&K) -> bool) -> Option<(usize, usize, &Slot<K, T>)> {
        let home = self.home(hash);
        let group = self.0.get(home)?;
        if let Some((way, slot)) = group.find(hash, &is_it) {
            return Some((home, way, slot));
        }
        if group.tags.passed() == 0 {
            return None;
        }
        self.find_behind(home, hash, is_it)
    }

    /// The same in the groups behind `home`.
    fn find_behind(
        &self,
        home: usize,
        hash: u32,
        is_it: impl Fn(&K) -> bool,
    ) -> Option<(usize, usize, &Slot<K, T>)> {
        let mut at = home;
        for _ in 1..self.0.len() {
            at = self.behind(at);
            let group = &self.0[at];
            if let Some((way, slot)) = group.find(hash, &is_it) {
                return Some((at, way, slot));
            }
            if group.tags.passed() == 0 {
                break;
            }
        }
        None
    }

    /// Stores the entry under `hash` and returns its group and its way. There is a vacant slot.
    #[inline]
    fn insert(&mut self, slot: Slot<K, T>, hash: u32) -> (usize, usize) {
        let mut at = self.home(hash);
        loop {
            let group = &mut self.0[at];
            let mut vacant = group.tags.ways(0);
            if let Some(way) = vacant.find(|way| group.slots[*way].is_none()) {
                group.tags.0[way] = tag(hash);
                group.slots[way] = Some(slot);
                return (at, way);
            }
            group.tags.pass();
            at = self.behind(at);
        }
    }

    /// Takes out the entry under `hash` at this way of this group.
    #[inline]
    fn remove(&mut self, lies: usize, way: usize, hash: u32) -> Option<Slot<K, T>> {
        let group = &mut self.0[lies];
        let slot = group.slots[way].take();
        group.tags.0[way] = 0;
        let mut at = self.home(hash);
        while at != lies {
            self.0[at].tags.unpass();
            at = self.behind(at);
        }
        slot
    }

    #[inline]
    fn is_full(&self, len: u32) -> bool {
        let (taken, of) = FULL;
        len as usize * of >= self.0.len() * (WAYS * taken)
    }

    #[inline]
    fn is_sparse(&self, len: u32) -> bool {
        let (taken, of) = SPARSE;
        (len as usize * of) < self.0.len() * (WAYS * taken) && Self::shrunk(len) < self.0.len()
    }

    /// The groups that it has after it grew: the next of the steps that lead to those that it is meant
    /// to have, counted back from these, and then past them.
    fn grown(&self, meant: usize) -> usize {
        let (more, less) = GROWTH;
        let groups = self.0.len();
        if groups >= meant {
            return (groups * more).div_ceil(less).min(GROUPS_MAX);
        }
        let mut grown = meant;
        while grown * less / more > groups {
            grown = grown * less / more;
        }
        grown
    }

    /// The groups that it has after it shrank to so many entries.
    fn shrunk(len: u32) -> usize {
        let (taken, of) = SHRUNK;
        (len as usize * of).div_ceil(WAYS * taken).max(1)
    }

    #[inline]
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.0.len() as u64) >> 32) as usize
    }

    #[inline]
    fn behind(&self, at: usize) -> usize {
        let next = at + 1;
        if next == self.0.len() { 0 } else { next }
    }
}

impl<K, T> Group<K, T> {
    fn empty() -> Self {
        Self {
            tags: Tags::default(),
            slots: [const { None }; WAYS],
        }
    }

    #[inline(always)]
    fn find(&self, hash: u32, is_it: impl Fn(&K) -> bool) -> Option<(usize, &Slot<K, T>)> {
        for way in self.tags.ways(tag(hash)) {
            // Zero is the tag of some entries, and that of vacant slots.
            if let Some(slot) = self.slots[way].as_ref()
                && is_it(&slot.key)
            {
                return Some((way, slot));
            }
        }
        None
    }
}

impl Tags {
    const LOWEST: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHEST: u64 = Self::LOWEST << 7;
    /// The highest bit of every tag. The last byte is none.
    const TAGS: u64 = Self::HIGHEST & u64::MAX >> 8;

    /// The ways whose tag is `tag`.
    ///
    /// All are looked at together: tags have seven bits, so only where it is equal, and the difference
    /// zero, the highest bit of a byte is left when the difference is taken from it.
    #[inline]
    fn ways(self, tag: u8) -> impl Iterator<Item = usize> {
        let differ = u64::from_le_bytes(self.0) ^ (Self::LOWEST * u64::from(tag));
        let mut found = Self::HIGHEST.wrapping_sub(differ) & Self::TAGS;
        std::iter::from_fn(move || {
            let bit = (found != 0).then(|| found.trailing_zeros())?;
            found &= found - 1;
            Some(bit as usize / 8)
        })
    }

    #[inline]
    fn passed(self) -> u8 {
        self.0[WAYS]
    }

    #[inline]
    fn pass(&mut self) {
        self.0[WAYS] = self.0[WAYS].saturating_add(1);
    }

    #[inline]
    fn unpass(&mut self) {
        if self.0[WAYS] < u8::MAX {
            self.0[WAYS] -= 1;
        }
    }
}

/// The seven bits of a hash that are compared before its slot is looked at.
#[inline]
fn tag(hash: u32) -> u8 {
    (hash >> PART_BITS) as u8 & 0x7f
}

impl Moves {
    /// Where the entry is that was at `at`, or is there still because it is in another part.
    pub(super) fn to(&self, at: u32) -> u32 {
        self.moved(at).unwrap_or(at)
    }

    /// Where the entry is that was at `at`, if it moved.
    pub(super) fn moved(&self, at: u32) -> Option<u32> {
        *self.to.get(at.wrapping_sub(self.base) as usize)?
    }

    /// The positions that entries moved to.
    pub(super) fn taken(&self) -> impl Iterator<Item = u32> {
        self.to.iter().flatten().copied()
    }

    /// Where entries went that were at `at` or behind it, which is in this part.
    pub(super) fn taken_from(&self, at: u32) -> impl Iterator<Item = u32> {
        let from = (at - self.base) as usize;
        let left = self.to.get(from..).unwrap_or_default();
        left.iter().flatten().copied()
    }

    /// The position as far from the beginning of the part as `at` was, which is in it. Most entries that
    /// were behind the one are behind the other.
    pub(super) fn as_far_as(&self, at: u32) -> u32 {
        let group = u64::from((at - self.base) >> WAY_BITS);
        let (groups, were) = (self.groups as u64, self.to.len() as u64 >> WAY_BITS);
        let scaled = (group * groups).checked_div(were).unwrap_or(0);
        self.base + ((scaled as u32) << WAY_BITS)
    }

    /// The first position of the part.
    pub(super) fn base(&self) -> u32 {
        self.base
    }
}

#[cfg(test)]
impl<K, T> Table<K, T> {
    /// Bytes that it has from the allocator: for the groups, and for what leads to them.
    pub(super) fn heap(&self) -> [usize; 2] {
        let groups = self.parts.iter().map(|part| size_of_val(&*part.0));
        let metas = (self.books.parts.iter()).map(|book| size_of_val(&*book.metas));
        let books = size_of::<Books>() + size_of_val(&*self.books.parts);
        let others = size_of_val(&*self.parts) + books;
        [groups.sum::<usize>() + metas.sum::<usize>(), others]
    }

    /// Panics where tags, counts and slots disagree.
    pub(super) fn check(&self) {
        for (part, book) in self.parts.iter().zip(&self.books.parts) {
            assert_eq!(part.iter().count(), book.len as usize);
            assert_eq!(part.0.len(), book.metas.len());
            assert!(part.0.is_empty() || (book.len as usize) < part.0.len() * WAYS);
            let mut passed = vec![0; part.0.len()];
            for (lies, (group, metas)) in part.0.iter().zip(&book.metas).enumerate() {
                for ((slot, meta), held) in group.slots.iter().zip(metas).zip(group.tags.0) {
                    let expected = slot.as_ref().map_or(0, |_| tag(meta.hash));
                    assert_eq!(held, expected, "a tag is that of its slot");
                    if slot.is_none() {
                        continue;
                    }
                    let mut at = part.home(meta.hash);
                    while at != lies {
                        passed[at] += 1;
                        at = part.behind(at);
                    }
                }
            }
            for (group, &passed) in part.0.iter().zip(&passed) {
                let counted = group.tags.passed();
                assert!(counted == passed.min(255) as u8 || counted == 255);
            }
        }
        let lens = self.books.parts.iter().map(|book| book.len);
        assert_eq!(lens.sum::<u32>(), self.books.len);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::Millis;
    use crate::memory::slot::{Entry, NIL, Standing};

    type Sample = Table<u32, ()>;

    /// Hashes of consecutive numbers, well mixed.
    fn hash_of(key: u32) -> u32 {
        (u64::from(key + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 29) as u32
    }

    fn insert(table: &mut Sample, hash: u32, key: u32) -> (u32, Option<Moves>) {
        let at = store(table, Entry::new(key, (), hash, 1, Millis::MAX));
        (at, table.grow(at))
    }

    fn store<T>(table: &mut Table<u32, T>, entry: Entry<u32, T>) -> u32 {
        let meta = entry.meta(NIL);
        table.insert(entry.slot(Standing::NEW), meta)
    }

    fn remove<T>(table: &mut Table<u32, T>, at: u32) -> u32 {
        let mut gone = None;
        table.remove(at, &mut gone);
        gone.expect("it is there").key
    }

    fn find(table: &Sample, hash: u32, key: u32) -> Option<u32> {
        table.find(hash, |held| *held == key).map(|(at, _)| at)
    }

    #[test]
    fn no_part_is_much_larger_than_it_is_meant_to_be() {
        let entries = 100_000;
        let mut table = Sample::new(entries);
        for key in 0..entries as u32 {
            insert(&mut table, hash_of(key), key);
        }
        assert_eq!(table.len(), entries as u32);
        let largest = table.books.parts.iter().map(|book| book.len).max();
        assert!(largest <= Some(PART_ENTRIES as u32), "{largest:?}");
    }

    #[test]
    fn memory_is_given_back() {
        let mut table = Sample::new(1);
        for key in 0..10_000 {
            insert(&mut table, hash_of(key), key);
        }
        for key in 10..10_000 {
            let at = find(&table, hash_of(key), key).unwrap();
            remove(&mut table, at);
            table.shrink(at);
        }
        assert!(table.parts[0].0.len() <= 3);
        for key in 0..10 {
            assert!(find(&table, hash_of(key), key).is_some());
        }
    }

    #[test]
    fn a_position_in_a_part_that_grew_is_as_far_from_its_beginning() {
        let mut table = Sample::with_parts(2, 20);
        let mut grown = 0;
        for key in 0..2_000 {
            let part = table.part(hash_of(key));
            let before = table.parts[part].0.len();
            let (_, Some(moves)) = insert(&mut table, hash_of(key), key) else {
                continue;
            };
            let after = table.parts[part].0.len();
            for group in 0..before {
                let as_far = position(part, group * after / before, 0);
                assert_eq!(moves.as_far_as(position(part, group, 3)), as_far);
            }
            grown += 1;
        }
        assert!(grown > 10, "{grown}");
    }

    /// One comes and one goes, over and over, with any number of entries that a part is meant for.
    #[test]
    fn a_part_whose_entries_come_and_go_is_not_made_anew() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for entries in [900, 1_000, 1_200, 1_400] {
            let (mut table, mut held) = (Sample::new(1), Vec::new());
            for key in 0..400_000 {
                if key >= entries {
                    let old: u32 = held.swap_remove(random.usize(..held.len()));
                    let at = find(&table, hash_of(old), old).expect("it is there");
                    remove(&mut table, at);
                    assert!(table.shrink(at).is_none());
                }
                let (_, moves) = insert(&mut table, hash_of(key), key);
                assert!(moves.is_none() || key < entries);
                held.push(key);
            }
            table.check();
        }
    }

    #[test]
    fn entries_of_one_hash_lie_behind_each_other_and_leave_no_trace() {
        let mut table = Sample::new(1);
        for key in 0..100 {
            insert(&mut table, 7, key);
        }
        table.check();
        for key in (0..100).rev() {
            let at = find(&table, 7, key).expect("it is there");
            remove(&mut table, at);
            table.check();
        }
        assert!(
            table.parts[0]
                .0
                .iter()
                .all(|group| group.tags.passed() == 0)
        );
    }

    /// A count that was once too high to be kept stays, whoever goes.
    #[test]
    fn more_entries_than_a_count_can_tell_go_past_a_group_and_are_found() {
        let mut table = Sample::new(1);
        for key in 0..1_000 {
            insert(&mut table, 7, key);
        }
        for key in 0..990 {
            let at = find(&table, 7, key).expect("it is there");
            // And nothing shrinks, which would count anew.
            remove(&mut table, at);
        }
        table.check();
        assert!((990..1_000).all(|key| find(&table, 7, key).is_some()));
    }

    /// Whoever goes back and forth between the growth of a part and its shrinking, and whoever empties
    /// it: 13 in the long run, and up to 17 in so few rounds.
    #[test]
    fn an_operation_moves_a_bounded_number_of_entries() {
        for entries in [5_u32, 6, 29, 52, 74, 80, 300, 1_000, 1_400] {
            for meant in [1, u64::from(entries)] {
                let (mut table, mut key) = (Sample::new(meant), 0);
                let (mut operations, mut moved) = (0, 0);
                let mut step = |table: &mut Sample, comes: bool| {
                    let moves = if comes {
                        key += 1;
                        insert(table, hash_of(key), key).1
                    } else {
                        let at = find(table, hash_of(key), key).expect("it is there");
                        key -= 1;
                        remove(table, at);
                        table.shrink(at)
                    };
                    operations += 1;
                    moved += moves.as_ref().map_or(0, |moves| moves.taken().count());
                    moves.is_some()
                };
                (0..entries).for_each(|_| _ = step(&mut table, true));
                for _ in 0..4 {
                    while !step(&mut table, true) {}
                    while table.len() > 0 && !step(&mut table, false) {}
                }
                while table.len() > 0 {
                    step(&mut table, false);
                }
                assert!(moved <= 18 * operations, "{moved} in {operations}");
            }
        }
    }

    /// Also where a group begins with nothing that aligns the first slot.
    #[test]
    fn an_entry_of_any_alignment_takes_what_is_told_of_it() {
        #[derive(Debug)]
        #[repr(align(64))]
        struct Aligned(#[expect(dead_code)] u8);

        let mut table = Table::<u32, Aligned>::new(1_000);
        for key in 0..1_400 {
            let entry = Entry::new(key, Aligned(0), hash_of(key), 1, Millis::MAX);
            let at = store(&mut table, entry);
            table.grow(at);
        }
        let each = Table::<u32, Aligned>::BYTES_EACH;
        for key in (500..1_400).rev() {
            let slot = table.find(hash_of(key), |held| *held == key);
            let (at, _) = slot.expect("it is there");
            remove(&mut table, at);
            table.shrink(at);
            let [taken, _] = table.heap();
            assert!(taken <= each * table.len() as usize, "{}", table.len());
        }
    }

    /// Where most places are vacant, a pick by place finds nothing as a rule.
    #[test]
    fn each_of_a_few_entries_in_many_parts_is_picked_as_often() {
        let mut table = Sample::new(512 * PART_ENTRIES);
        for key in 0..3 {
            insert(&mut table, key, key);
        }
        let random = std::cell::RefCell::new(fastrand::Rng::with_seed(7));
        let mut picked = [0_i32; 3];
        for _ in 0..3_000 {
            let below = |bound| random.borrow_mut().u32(..bound);
            let at = table.pick(below).expect("there are some");
            picked[table[at].key as usize] += 1;
        }
        // Five standard deviations.
        assert!(
            picked.iter().all(|count| (count - 1_000).abs() < 130),
            "{picked:?}"
        );
    }

    #[test]
    fn the_ways_of_a_tag_are_those_that_have_it() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let most = if random.bool() { 3 } else { 0x7f };
            let mut tags = Tags(std::array::from_fn(|_| random.u8(..=most)));
            tags.0[WAYS] = random.u8(..);
            for tag in [0, 1, 2, 3, 0x7f, random.u8(..=0x7f)] {
                let have = (0..WAYS).filter(|way| tags.0[*way] == tag);
                assert!(tags.ways(tag).eq(have), "{tags:?}: {tag}");
            }
        }
    }

    #[test]
    fn every_entry_is_met_once_in_order() {
        let mut table = Sample::new(8 * PART_ENTRIES);
        for key in [3, 4, 5, 90, 91] {
            insert(&mut table, key << 26 | key, key);
        }
        let mut met = Vec::new();
        let mut from = 0;
        while let Some((at, slot)) = table.entry_from(from) {
            assert!(at >= from);
            met.push(slot.key);
            from = at + 1;
        }
        let all: Vec<_> = table.iter().map(|slot| slot.key).collect();
        assert_eq!(met, all);
        assert_eq!(met.len(), 5);
        let by_number = (0..5).map(|number| table.nth(number).unwrap().1.key);
        assert!(by_number.eq(all));
        assert!(table.nth(5).is_none());
    }

    proptest! {
        /// A map from keys to positions, which follows what moves, is the model.
        #[test]
        fn it_behaves_as_a_map(
            parts in 0u32..3,
            steps in prop::collection::vec((0u32..400, 0u8..5), 0..3000),
        ) {
            let mut table = Sample::with_parts(1 << parts, 20);
            let mut model: HashMap<u32, u32> = HashMap::new();
            let follow = |model: &mut HashMap<u32, u32>, moves: Option<Moves>| {
                let Some(moves) = moves else { return };
                let mut taken: Vec<_> = moves.taken().collect();
                model.values_mut().for_each(|at| {
                    if let Some(new) = moves.moved(*at) {
                        taken.retain(|at| *at != new);
                        *at = new;
                    }
                });
                assert!(taken.is_empty(), "nothing else moved");
            };
            for (key, step) in steps {
                // Some of them collide.
                let hash = hash_of(key / 3);
                match model.get(&key) {
                    None if step > 1 => {
                        let (at, moves) = insert(&mut table, hash, key);
                        model.insert(key, at);
                        follow(&mut model, moves);
                    }
                    Some(&at) if step <= 1 => {
                        prop_assert_eq!(remove(&mut table, at), key);
                        model.remove(&key);
                        let moves = table.shrink(at);
                        follow(&mut model, moves);
                    }
                    held => prop_assert_eq!(find(&table, hash, key), held.copied()),
                }
                prop_assert_eq!(table.len() as usize, model.len());
            }
            for (&key, &at) in &model {
                prop_assert_eq!(table[at].key, key);
            }
            table.check();
        }
    }
}
