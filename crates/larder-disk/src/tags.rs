//! What tags demand of a value on its way in, and how counters and members lie in their records.
//! Pure; `tagging` reads and writes.

use std::collections::BTreeSet;

use bytes::Bytes;
use larder::clock::Millis;
use larder::envelope::Header;
use larder::store::{Position, TagRecord, Tagged};

use crate::evict::Need;

/// How long the record of a counter is: incarnation and count, both big-endian.
pub(crate) const POSITION_BYTES: usize = 16;

/// How many members a record may have whose time is not over.
pub(crate) const MAX_MEMBERS: usize = 1_024;

/// A member and until when it counts, in wall milliseconds, both big-endian.
pub(crate) const MEMBER_BYTES: usize = 12;

/// What becomes of a value, and of the records of its tags.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Whether the value may be stored.
    pub(crate) admitted: bool,
    /// What every record holds afterwards, in the order of the tags.
    pub(crate) versions: Vec<u64>,
}

/// Compares the records that there are with the moment at which the load began, if there was one.
pub(crate) fn decide(
    now: Position,
    records: &[Option<TagRecord>],
    proposed: &[u64],
    since: Option<Position>,
) -> Decision {
    let admitted = since.is_none_or(|since| {
        since.incarnation == now.incarnation
            && records.iter().all(|record| match record {
                None => since == now,
                Some(record) => !made_after(record.made_at, since),
            })
    });
    let versions = records
        .iter()
        .zip(proposed)
        .map(|(record, proposed)| record.map_or(*proposed, |record| record.version))
        .collect();
    Decision { admitted, versions }
}

fn made_after(made_at: Position, since: Position) -> bool {
    made_at.incarnation == since.incarnation && made_at.count > since.count
}

/// The next position of a counter; without one, the first of a new incarnation.
pub(crate) fn next_position(position: Option<Position>) -> Position {
    position
        .and_then(|position| {
            Some(Position {
                count: position.count.checked_add(1)?,
                ..position
            })
        })
        .unwrap_or_else(first_position)
}

pub(crate) fn first_position() -> Position {
    Position {
        incarnation: fastrand::u64(1..),
        count: 0,
    }
}

pub(crate) fn position_to_bytes(position: Position) -> [u8; POSITION_BYTES] {
    let both = u128::from(position.incarnation) << 64 | u128::from(position.count);
    both.to_be_bytes()
}

pub(crate) fn parse_position(bytes: &[u8]) -> Option<Position> {
    let both = u128::from_be_bytes(bytes.try_into().ok()?);
    Some(Position {
        incarnation: (both >> 64) as u64,
        count: both as u64,
    })
}

/// The versions that the sender proposes for `count` tags, and the bytes behind them; `None` if the
/// value is not an envelope with as many.
pub(crate) fn split_versions(value: &[u8], count: usize) -> Option<(Vec<u64>, &[u8])> {
    let header = Header::parse(value)?;
    if usize::from(header.tag_count) != count {
        return None;
    }
    let (versions, rest) = value[Header::LEN..].split_at_checked(8 * count)?;
    let versions = versions
        .chunks_exact(8)
        .filter_map(|raw| Some(u64::from_be_bytes(*raw.first_chunk()?)))
        .collect();
    Some((versions, rest))
}

/// The front of a value up to its body, with these versions of its tags.
pub(crate) fn front(value: &[u8], versions: &[u64]) -> Vec<u8> {
    let mut front = value[..Header::LEN.min(value.len())].to_vec();
    for version in versions {
        front.extend_from_slice(&version.to_be_bytes());
    }
    front
}

/// Whether the value, its counter and its records all have keys of their own.
pub(crate) fn distinct(key: &Bytes, tags: &Tagged) -> bool {
    let keys: BTreeSet<_> = tags.records.iter().chain([key, &tags.counter]).collect();
    keys.len() == tags.records.len() + 2
}

/// What a value takes with its counter and records, if there are none of them yet.
pub(crate) fn need(key: &Bytes, value_len: usize, tags: &Tagged) -> Need {
    let records = tags
        .records
        .iter()
        .map(|record| Need::entry(record.len(), TagRecord::LEN));
    let counter = Need::entry(tags.counter.len(), POSITION_BYTES);
    records.fold(Need::entry(key.len(), value_len) + counter, |all, one| {
        all + one
    })
}

/// The members of a set, each with the end of its time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Members(Vec<(u32, Millis)>);

impl Members {
    /// The members in a record whose time is not over; none for bytes that are no such record.
    pub(crate) fn parse(bytes: &[u8], wall: Millis) -> Self {
        let (members, rest) = bytes.as_chunks::<MEMBER_BYTES>();
        if !rest.is_empty() {
            return Self::default();
        }
        let members = members.iter().filter_map(|raw| {
            let (member, until) = raw.split_first_chunk()?;
            let until = Millis::from_be_bytes(until.try_into().ok()?);
            (until > wall).then_some((u32::from_be_bytes(*member), until))
        });
        Self(members.collect())
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * MEMBER_BYTES);
        for (member, until) in &self.0 {
            bytes.extend_from_slice(&member.to_be_bytes());
            bytes.extend_from_slice(&until.to_be_bytes());
        }
        bytes
    }

    /// Notes a member until then, or as long as it was noted before.
    pub(crate) fn enlist(&mut self, member: u32, until: Millis) {
        match self.0.iter_mut().find(|(noted, _)| *noted == member) {
            Some((_, end)) => *end = until.max(*end),
            None => self.0.push((member, until)),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// When the last member's time is over.
    pub(crate) fn end(&self) -> Millis {
        self.0.iter().map(|(_, until)| *until).max().unwrap_or(0)
    }

    pub(crate) fn into_members(self) -> Vec<u32> {
        self.0.into_iter().map(|(member, _)| member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Position = Position {
        incarnation: 7,
        count: 10,
    };

    fn at(incarnation: u64, count: u64) -> Position {
        Position { incarnation, count }
    }

    fn made(incarnation: u64, count: u64) -> Option<TagRecord> {
        Some(TagRecord {
            version: 1,
            made_at: at(incarnation, count),
        })
    }

    #[test]
    fn a_load_from_before_an_invalidation_of_its_tags_is_refused() {
        for (records, since, admitted) in [
            (vec![], at(7, 3), true),
            (vec![], at(8, 10), false),
            (vec![made(7, 3)], at(7, 3), true),
            (vec![made(7, 4)], at(7, 3), false),
            (vec![made(6, 99)], at(7, 3), true),
            (vec![made(7, 1), made(7, 4)], at(7, 3), false),
            (vec![None], at(7, 9), false),
            (vec![None], at(7, 10), true),
            (vec![made(7, 1), None], at(7, 9), false),
        ] {
            let proposed = vec![5; records.len()];
            let decision = decide(NOW, &records, &proposed, Some(since));
            assert_eq!(decision.admitted, admitted, "{records:?} since {since:?}");
            assert!(decide(NOW, &records, &proposed, None).admitted);
        }
    }

    #[test]
    fn what_records_hold_goes_before_what_is_proposed() {
        let decision = decide(NOW, &[made(7, 1), None], &[8, 9], None);
        assert_eq!(decision.versions, [1, 9]);
    }

    #[test]
    fn a_counter_counts_and_begins_anew_where_it_must() {
        assert_eq!(next_position(Some(at(3, 4))), at(3, 5));
        assert_ne!(next_position(None).incarnation, 0);
        assert_ne!(next_position(Some(at(3, u64::MAX))).incarnation, 3);
        let position = at(u64::MAX - 1, 77);
        let bytes = position_to_bytes(position);
        assert_eq!(parse_position(&bytes), Some(position));
        assert_eq!(parse_position(&bytes[1..]), None);
    }

    #[test]
    fn the_versions_of_a_value_are_as_many_as_its_header_says() {
        let header = Header {
            tag_count: 2,
            ..Header::minimum(0)
        };
        let value = front(&header.to_bytes(), &[3, 4]);
        assert_eq!(split_versions(&value, 2), Some((vec![3, 4], &[][..])));
        assert_eq!(split_versions(&value, 1), None);
        assert_eq!(split_versions(&value[..70], 2), None);
        assert_eq!(split_versions(b"short", 0), None);
    }

    #[test]
    fn keys_that_are_used_twice_are_noticed() {
        let key = |name: &'static str| Bytes::from_static(name.as_bytes());
        let tags = |records: &[&'static str]| Tagged {
            counter: key("counter"),
            records: records.iter().map(|name| key(name)).collect(),
            since: None,
        };
        assert!(distinct(&key("k"), &tags(&["a", "b"])));
        assert!(!distinct(&key("k"), &tags(&["a", "a"])));
        assert!(!distinct(&key("a"), &tags(&["a"])));
        assert!(!distinct(&key("k"), &tags(&["counter"])));
    }

    #[test]
    fn members_are_kept_for_their_time_and_no_shorter() {
        let mut members = Members::default();
        members.enlist(1, 100);
        members.enlist(2, 300);
        members.enlist(1, 200);
        members.enlist(1, 150);
        assert_eq!(members.end(), 300);
        let bytes = members.to_bytes();
        assert_eq!(Members::parse(&bytes, 199).into_members(), [1, 2]);
        assert_eq!(Members::parse(&bytes, 200).into_members(), [2]);
        assert_eq!(Members::parse(&bytes[1..], 0), Members::default());
    }
}
