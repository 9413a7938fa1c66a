//! How entries lie in the tree.
//!
//! ```text
//! 'e' key            -> deadline (8) | value        one per entry
//! 'o' sequence (8)   -> deadline (8) | charge (4) | key
//! 'f'                -> sequence (8)                one, a hint
//! ```
//!
//! The second record is what eviction and opening read: they never touch values. Both are written
//! and removed in one atomic batch. The third says before which sequence there is no second one,
//! so that nobody wades through the traces of what was removed. Integers are big-endian; a deadline is in
//! wall milliseconds.
//!
//! Counters, tag records and sets of members are entries like any other, of a few bytes.

use std::io::{self, Read};
use std::time::Duration;

use bytes::Bytes;
use fjall::Slice;
use larder::clock::Millis;
use larder::envelope::Header;

/// The longest key in bytes. The tree below takes 64 KiB less one.
pub(crate) const MAX_KEY_BYTES: usize = 32 << 10;

/// The most that `DiskOptions::max_value_bytes` may allow; charges are counted in 32 bits.
pub(crate) const MAX_VALUE_BYTES: usize = 1 << 30;

const ENTRY: u8 = b'e';
const ORDER: u8 = b'o';
pub(crate) const FIRST: &[u8] = b"f";
const DEADLINE_BYTES: usize = 8;

/// What both records of an entry cost beside the key, which stands in both, and the value.
const OVERHEAD_BYTES: u64 = 64;

/// Bytes that an entry, or a small record beside the entries, counts against [`DiskOptions::max_bytes`](crate::DiskOptions::max_bytes):
/// twice the key, the value, and 64 for the records around them.
pub fn entry_bytes(key_len: usize, value_len: usize) -> u64 {
    2 * key_len as u64 + value_len as u64 + OVERHEAD_BYTES
}

/// Where an entry stands in the order of writing. Never used twice.
pub(crate) type Sequence = u64;

/// The order record of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) sequence: Sequence,
    pub(crate) deadline: Millis,
    pub(crate) charge: u32,
    pub(crate) key: Bytes,
}

impl Order {
    /// Whether the value is shorter than any envelope: a counter, a tag record or a minimum version,
    /// which are worth more than their bytes.
    pub(crate) fn is_small(&self) -> bool {
        value_len(self.charge, self.key.len()) <= Header::LEN as u64
    }

    /// Whether the value is a header alone, which is how a minimum version looks.
    pub(crate) fn is_minimum(&self) -> bool {
        value_len(self.charge, self.key.len()) == Header::LEN as u64
    }

    pub(crate) fn to_value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(DEADLINE_BYTES + 4 + self.key.len());
        value.extend_from_slice(&self.deadline.to_be_bytes());
        value.extend_from_slice(&self.charge.to_be_bytes());
        value.extend_from_slice(&self.key);
        value
    }

    pub(crate) fn parse(tree_key: &[u8], value: &[u8]) -> Option<Self> {
        let sequence: &[u8; 8] = tree_key.strip_prefix(&[ORDER])?.try_into().ok()?;
        let (deadline, rest) = value.split_first_chunk()?;
        let (charge, key) = rest.split_first_chunk()?;
        Some(Self {
            sequence: Sequence::from_be_bytes(*sequence),
            deadline: Millis::from_be_bytes(*deadline),
            charge: u32::from_be_bytes(*charge),
            key: Bytes::copy_from_slice(key),
        })
    }
}

/// The tree's key of the entry under `key`.
pub(crate) fn entry_key(key: &[u8]) -> Vec<u8> {
    let mut tree_key = Vec::with_capacity(1 + key.len());
    tree_key.push(ENTRY);
    tree_key.extend_from_slice(key);
    tree_key
}

/// The entry's key that a tree key stands for; `None` for an order record.
pub(crate) fn key_of_entry(tree_key: &[u8]) -> Option<&[u8]> {
    tree_key.strip_prefix(&[ENTRY])
}

/// The tree's key of an order record.
pub(crate) fn order_key(sequence: Sequence) -> [u8; 9] {
    let mut tree_key = [ORDER; 9];
    tree_key[1..].copy_from_slice(&sequence.to_be_bytes());
    tree_key
}

/// The first tree key after all that begin with `tree_prefix`, whose first byte is never 0xff.
pub(crate) fn end_of_prefix(tree_prefix: &[u8]) -> Vec<u8> {
    let mut end = tree_prefix.to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// The tree's value of an entry that begins with `front` and goes on with `rest`, copied once.
pub(crate) fn entry_value(deadline: Millis, front: &[u8], rest: &[u8]) -> io::Result<Slice> {
    let deadline = deadline.to_be_bytes();
    let len = DEADLINE_BYTES + front.len() + rest.len();
    Slice::from_reader(&mut deadline.chain(front).chain(rest), len)
}

/// How long the value is of an entry with this charge.
pub(crate) fn value_len(charge: u32, key_len: usize) -> u64 {
    u64::from(charge).saturating_sub(entry_bytes(key_len, 0))
}

/// Splits the tree's value of an entry; `None` if it is none.
pub(crate) fn split_entry(value: &[u8]) -> Option<(Millis, &[u8])> {
    let (deadline, value) = value.split_first_chunk()?;
    Some((Millis::from_be_bytes(*deadline), value))
}

/// The deadline of an entry written at `wall`: at least a millisecond away, at most for ever.
pub(crate) fn deadline(wall: Millis, ttl: Duration) -> Millis {
    let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
    wall.saturating_add(ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_record_survives_the_round_trip() {
        let order = Order {
            sequence: 77,
            deadline: 1_234,
            charge: 99,
            key: Bytes::from_static(b"shop:product:1"),
        };
        assert_eq!(Order::parse(&order_key(77), &order.to_value()), Some(order));
    }

    #[test]
    fn a_charge_tells_how_long_the_value_is() {
        for (len, small) in [(0, true), (24, true), (Header::LEN, true), (65, false)] {
            let order = Order {
                sequence: 1,
                deadline: 1,
                charge: u32::try_from(entry_bytes(3, len)).unwrap(),
                key: Bytes::from_static(b"key"),
            };
            assert_eq!(value_len(order.charge, 3), len as u64);
            assert_eq!(order.is_small(), small);
            assert_eq!(order.is_minimum(), len == Header::LEN);
        }
    }

    #[test]
    fn records_that_are_cut_short_are_none() {
        assert_eq!(split_entry(&[1; 7]), None);
        assert_eq!(Order::parse(&order_key(1), &[0; 11]), None);
        assert_eq!(Order::parse(b"o123", &[0; 40]), None);
        assert_eq!(Order::parse(b"e1234567", &[0; 40]), None);
    }

    #[test]
    fn the_end_of_a_prefix_lies_behind_every_key_under_it() {
        assert_eq!(end_of_prefix(b"eab"), b"eac");
        assert_eq!(end_of_prefix(b"ea\xff\xff"), b"eb");
        assert_eq!(end_of_prefix(b"e\xff"), b"f");
    }

    #[test]
    fn a_deadline_is_never_now_and_never_wraps() {
        assert_eq!(deadline(10, Duration::from_nanos(1)), 11);
        assert_eq!(deadline(10, Duration::MAX), u64::MAX);
    }
}
