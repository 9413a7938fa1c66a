//! From a hash to the slots that may hold its key.

use hashbrown::HashTable;

/// Entries that a part is meant for: what fits 2,048 buckets at [`CROWDED`].
const PART_ENTRIES: u64 = 1408;

/// More parts than this are not made, however large the bound: 720,000 entries per shard then
/// still grow in steps of [`PART_ENTRIES`], and parts of more grow in larger ones.
const PARTS_MAX: u64 = 512;

/// The share of its buckets up to which a part that has no empty bucket left is cleaned and not
/// doubled. Cleaning moves up to 0.4 entries for each that comes then; at 13 sixteenths it would be 3.
const CROWDED: (usize, usize) = (11, 16);

/// The share of its buckets below which a part is halved.
const SPARSE: (usize, usize) = (5, 16);

/// A part of no more buckets than this is not shrunk.
const BUCKETS_KEPT: usize = 64;

/// Hash tables of slot indices, split so that none of them is large.
///
/// A hash table grows by moving all it holds at once. Entries of one shard are therefore spread
/// over parts small enough that no single insert waits long for its part to grow.
#[derive(Debug)]
pub(super) struct Index {
    /// A power of two of them.
    parts: Box<[HashTable<u32>]>,
}

impl Index {
    /// An index for at most `entries`; more are possible and only make growth slower.
    pub(super) fn new(entries: u64) -> Self {
        let parts = entries.div_ceil(PART_ENTRIES).clamp(1, PARTS_MAX);
        Self {
            parts: (0..parts.next_power_of_two())
                .map(|_| HashTable::new())
                .collect(),
        }
    }

    /// The slot under `hash` for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let part = &self.parts[self.part(hash)];
        part.find(spread(hash), |&at| is_it(at)).copied()
    }

    /// Adds slot `at` under `hash`. `hash_of` tells the hash of any slot already here, or of `at`.
    pub(super) fn insert(&mut self, hash: u32, at: u32, hash_of: impl Fn(u32) -> u32) {
        let part = &mut self.parts[self.part(hash)];
        let hash_of = |held: &u32| spread(hash_of(*held));
        if part.len() == part.capacity() && part.len() * CROWDED.1 < part.num_buckets() * CROWDED.0
        {
            clean(part, hash_of);
        }
        part.insert_unique(spread(hash), at, hash_of);
    }

    /// Removes slot `at`, and gives memory back when the part has become far too large.
    pub(super) fn remove(&mut self, hash: u32, at: u32, hash_of: impl Fn(u32) -> u32) {
        let part = &mut self.parts[self.part(hash)];
        if let Ok(found) = part.find_entry(spread(hash), |&held| held == at) {
            found.remove();
        }
        // What is halved was doubled when it was 11 sixteenths full, and is 10 sixteenths full then:
        // a part pays for the change with the removals and insertions between the two.
        if part.num_buckets() > BUCKETS_KEPT
            && part.len() * SPARSE.1 < part.num_buckets() * SPARSE.0
        {
            part.shrink_to_fit(|&held| spread(hash_of(held)));
        }
    }

    /// Notes that the slot at `from` now lies at `to`.
    pub(super) fn moved(&mut self, hash: u32, from: u32, to: u32) {
        let part = &mut self.parts[self.part(hash)];
        if let Some(at) = part.find_mut(spread(hash), |&held| held == from) {
            *at = to;
        }
    }

    /// The table inside a part uses the lowest 11 bits for the place and the highest 7 for its
    /// tags (see [`spread`]); the part is chosen by bits between them.
    fn part(&self, hash: u32) -> usize {
        (hash >> 14) as usize & (self.parts.len() - 1)
    }

    /// The slots in each part. How many parts there are never changes, and neither does the part
    /// that a hash belongs to.
    pub(super) fn parts(&self) -> impl Iterator<Item = impl ExactSizeIterator<Item = u32>> {
        self.parts.iter().map(|part| part.iter().copied())
    }

    /// Forgets everything and gives the memory back.
    pub(super) fn clear(&mut self) {
        self.parts.fill_with(HashTable::new);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(HashTable::len).sum()
    }

    /// Bytes that it has from the allocator.
    #[cfg(test)]
    pub(super) fn heap(&self) -> usize {
        let tables = self.parts.iter().map(HashTable::allocation_size);
        size_of_val(&*self.parts) + tables.sum::<usize>()
    }
}

/// Frees the buckets that removed slots left behind.
///
/// hashbrown does so by itself only in a table that is less than half full, and doubles any other:
/// a shard that evicts for every insert would end with twice the index that it needs.
fn clean(part: &mut HashTable<u32>, hash_of: impl Fn(&u32) -> u64) {
    let mut cleaned = HashTable::with_capacity(part.num_buckets() / 8 * 7);
    for &at in part.iter() {
        cleaned.insert_unique(hash_of(&at), at, &hash_of);
    }
    *part = cleaned;
}

/// hashbrown takes the place from the lowest bits and a tag from the highest seven of 64.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes of consecutive numbers, well mixed.
    fn hash_of(at: u32) -> u32 {
        (u64::from(at + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 29) as u32
    }

    #[test]
    fn no_part_holds_much_more_than_it_is_meant_for() {
        let entries = 100_000;
        let mut index = Index::new(entries);
        for at in 0..entries as u32 {
            index.insert(hash_of(at), at, hash_of);
        }
        assert!(index.parts.iter().all(|part| part.num_buckets() <= 2048));
        assert_eq!(index.len(), entries as usize);
    }

    #[test]
    fn memory_is_given_back() {
        let mut index = Index::new(1);
        for at in 0..10_000 {
            index.insert(hash_of(at), at, hash_of);
        }
        for at in 10..10_000 {
            index.remove(hash_of(at), at, hash_of);
        }
        assert!(index.parts[0].num_buckets() <= 128);
        for at in 0..10 {
            assert_eq!(index.find(hash_of(at), |held| held == at), Some(at));
        }
    }

    /// One comes and one goes, over and over, with any number of entries that a part is meant for.
    #[test]
    fn a_part_whose_entries_come_and_go_does_not_grow() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for entries in [900, 1_000, 1_200, 1_400] {
            let (mut index, mut held) = (Index::new(1), Vec::new());
            for at in 0..400_000 {
                if at >= entries {
                    let old = held.swap_remove(random.usize(..held.len()));
                    index.remove(hash_of(old), old, hash_of);
                }
                index.insert(hash_of(at), at, hash_of);
                held.push(at);
            }
            assert_eq!(index.parts[0].num_buckets(), 2048, "{entries}");
            let finds = |at: &u32| index.find(hash_of(*at), |held| held == *at) == Some(*at);
            assert!(held.iter().all(finds));
        }
    }

    #[test]
    fn a_moved_slot_is_found_where_it_is() {
        let mut index = Index::new(1);
        index.insert(5, 0, |_| 5);
        index.insert(5, 1, |_| 5);
        index.moved(5, 1, 7);
        assert_eq!(index.find(5, |held| held == 7), Some(7));
        assert_eq!(index.find(5, |held| held == 1), None);
        assert_eq!(index.find(5, |held| held == 0), Some(0));
    }
}
