//! Where counters stand, in memory: a lease on an absent key, the most frequent kind, must not have
//! to wait for the disk to be told.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use larder::clock::Millis;
use larder::store::Position;

use crate::index::Index;
use crate::record::Sequence;

/// How many counters are remembered; a service has one for each of its namespaces.
const MAX_COUNTERS: usize = 64;

/// Positions by the key of their counter, each as its record of one sequence says. The index tells
/// whether that record still stands, so nothing has to be taken out of here when one goes.
#[derive(Debug, Default)]
pub(crate) struct Positions {
    known: Mutex<HashMap<Bytes, (Sequence, Position)>>,
}

impl Positions {
    /// The position of a counter, if it is known. Counts as a use of the counter.
    pub(crate) fn find(&self, index: &Index, key: &[u8], wall: Millis) -> Option<Position> {
        let (sequence, position) = self.lock().get(key).copied()?;
        let slot = index.lock(key).touch(wall)?;
        (slot.sequence() == sequence).then_some(position)
    }

    /// Remembers what the record of this sequence says.
    pub(crate) fn remember(&self, key: &[u8], sequence: Sequence, position: Position) {
        let mut known = self.lock();
        if known.len() >= MAX_COUNTERS && !known.contains_key(key) {
            known.clear();
        }
        // A copy, because the caller's bytes may be a slice of something large.
        known.insert(Bytes::copy_from_slice(key), (sequence, position));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Bytes, (Sequence, Position)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Slot;
    use crate::leases::Leases;
    use crate::record::Order;

    #[test]
    fn a_position_is_known_as_long_as_its_record_stands() {
        let index = Index::new(Leases::new(1, 1));
        let positions = Positions::default();
        let write = |key: &'static [u8], sequence| {
            let order = Order {
                sequence,
                deadline: Millis::MAX,
                charge: 1,
                key: Bytes::from_static(key),
            };
            index.lock(key).put(Slot::new(&order));
            let position = Position {
                incarnation: 1,
                count: sequence,
            };
            positions.remember(key, sequence, position);
            position
        };
        let position = write(b"c", 5);
        assert_eq!(positions.find(&index, b"c", 0), Some(position));
        index.lock(b"c").remove();
        assert_eq!(positions.find(&index, b"c", 0), None);
        let position = write(b"c", 6);
        assert_eq!(positions.find(&index, b"c", 0), Some(position));
        for n in 0..MAX_COUNTERS as u64 {
            positions.remember(&n.to_be_bytes(), n, Position::default());
        }
        assert_eq!(positions.find(&index, b"c", 0), None);
        assert!(positions.lock().len() <= MAX_COUNTERS);
    }
}
