use proptest::prelude::*;

use std::path::PathBuf;

use super::*;
use crate::store::{Position, TagRecord};

fn key() -> Expect<'static> {
    Expect {
        key: b"shop:product@2:17",
        schema: 2,
    }
}

fn label() -> Label {
    Label {
        fill_id: [7; 16],
        created: 1_700_000_000_000,
        load_ms: 12,
        fresh_for: 3_600_000,
        grace_for: 60_000,
        stale_for: 120_000,
        idle_for: None,
        version: Some(9),
        etag: Some("\"v9\"".into()),
        last_modified: Some(1_699_999_000),
        tags: vec!["category:7".into(), "".into()],
    }
}

/// Of an entry that reads prolong.
fn sliding() -> Label {
    Label {
        idle_for: Some(600_000),
        ..label()
    }
}

const VERSIONS: [u64; 3] = [5, 42, u64::MAX];

/// Where the checksum of an envelope with these versions stands, and the body behind it.
const SUM_AT: usize = Header::LEN + 8 * VERSIONS.len();
const BODY_AT: usize = SUM_AT + CHECKSUM;

/// A payload, compressed if it is long.
fn payload(bytes: &[u8]) -> Option<Packed> {
    packed(bytes, 1024)
}

fn packed(bytes: &[u8], compress_over: usize) -> Option<Packed> {
    Some(Packed::new(1, bytes.to_vec(), compress_over))
}

/// What stands in the tiers of releases that are out there, by the name of its file, and whether
/// this release writes the same bytes. What lz4 makes of a value may change; that it can be read
/// may not.
fn known() -> Vec<(&'static str, Vec<u8>, bool)> {
    let placeholder =
        LeaseToken::from_bits(0x0102_0304).map(|token| Header::placeholder(token, 99));
    let record = TagRecord {
        version: 0x1122_3344,
        made_at: Position {
            incarnation: 7,
            count: 300,
        },
    };
    let sealed = |payload| seal(key(), &label(), &VERSIONS, payload);
    vec![
        ("value", sealed(payload(b"value")), true),
        ("absent", sealed(None), true),
        (
            "sliding",
            seal(key(), &sliding(), &VERSIONS, payload(b"value")),
            true,
        ),
        ("compressed", sealed(payload(&[b'x'; 5_000])), false),
        (
            "placeholder",
            placeholder.unwrap().to_bytes().to_vec(),
            true,
        ),
        ("minimum", Header::minimum(300).to_bytes().to_vec(), true),
        ("tag-record", record.to_bytes().to_vec(), true),
    ]
}

/// The files are added to, never changed.
#[test]
fn entries_and_records_are_written_and_read_as_the_first_release_did() {
    let folder: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "tests",
        "fixtures",
        "envelope-v1",
    ]
    .iter()
    .collect();
    for (name, bytes, same) in known() {
        let file = folder.join(name).with_extension("bin");
        let kept = std::fs::read(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        assert!(!same || kept == bytes, "{name}");
        match name {
            "tag-record" => assert_eq!(TagRecord::parse(&kept), TagRecord::parse(&bytes)),
            "placeholder" | "minimum" => assert_eq!(Header::parse(&kept), Header::parse(&bytes)),
            _ => assert_eq!(open(&kept, key()), open(&bytes, key()), "{name}"),
        }
        assert_ne!(open(&kept, key()), Err(Rejected::Checksum), "{name}");
    }
    let files = std::fs::read_dir(folder).unwrap().count();
    assert_eq!(files, known().len(), "a file that no test reads");
}

#[test]
fn what_lies_in_an_envelope_is_taken_over_into_another_as_it_is() {
    for packed in [payload(b"value"), payload(&[b'x'; 5000]), payload(b"")] {
        for label in [label(), sliding(), Label::default()] {
            let sealed = Bytes::from(seal(key(), &label, &VERSIONS[..1], packed.clone()));
            assert_eq!(Packed::of(&sealed), packed);
        }
    }
    let absent = Bytes::from(seal(key(), &label(), &VERSIONS, None));
    assert_eq!(Packed::of(&absent), None);
    let whole = Bytes::from(seal(key(), &label(), &VERSIONS, payload(&[b'x'; 5000])));
    for end in 0..BODY_AT + 20 {
        assert_eq!(Packed::of(&whole.slice(..end)), None, "{end} bytes");
    }
}

#[test]
fn what_is_sealed_opens_again() {
    for (value, compress_over) in [
        (Some(&b"value"[..]), 1024),
        (Some(&[b'x'; 5000]), 1024),
        (Some(&[b'x'; 5000]), usize::MAX),
        (Some(b""), 0),
        (None, 1024),
    ] {
        let expected = value.map(<[u8]>::to_vec);
        let packed = value.and_then(|value| packed(value, compress_over));
        let sealed = seal(key(), &label(), &VERSIONS, packed);
        let opened = open(&sealed, key()).unwrap();
        assert_eq!(opened.label, label());
        assert_eq!(opened.payload.map(|payload| payload.bytes), expected);
        assert_eq!(opened.versions, VERSIONS);
        assert_eq!(
            opened.header.fresh_until,
            label().created + label().fresh_for
        );
        assert_eq!(
            opened.header.stale_until,
            opened.header.fresh_until + label().stale_for
        );
    }
}

#[test]
fn the_idle_time_of_what_slides_is_read_back_and_leaves_the_header_as_it_was() {
    for label in [
        sliding(),
        Label {
            idle_for: Some(u64::MAX),
            version: None,
            etag: None,
            last_modified: None,
            ..label()
        },
    ] {
        let sealed = seal(key(), &label, &VERSIONS, payload(b"value"));
        let opened = open(&sealed, key()).unwrap();
        assert_eq!(opened.label, label);
        let whole = label.created + label.fresh_for;
        assert_eq!(opened.header.fresh_until, whole, "its greatest age");
    }
}

#[test]
fn a_flag_that_is_not_known_is_a_miss() {
    for flag in [32, 64, 128] {
        let mut bytes = seal(key(), &label(), &VERSIONS, payload(b"value"));
        assert_eq!(bytes[BODY_AT + 2] & flag, 0);
        bytes[BODY_AT + 2] |= flag;
        let sum = xxh3_64(&bytes[BODY_AT..]);
        bytes[SUM_AT..BODY_AT].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(open(&bytes, key()), Err(Rejected::Codec));
    }
}

#[test]
fn repetitive_values_are_stored_compressed_and_small_ones_with_little_overhead() {
    let long = seal(key(), &label(), &VERSIONS, payload(&[b'x'; 100_000]));
    assert!(long.len() < 1_000, "{} bytes", long.len());
    let plain = Label {
        version: None,
        etag: None,
        last_modified: None,
        tags: vec![],
        ..label()
    };
    let small = seal(key(), &plain, &VERSIONS[..1], payload(b"v"));
    assert!(
        small.len() - 1 <= 120,
        "{} bytes of overhead",
        small.len() - 1
    );
}

#[test]
fn each_kind_of_wrong_bytes_has_its_name() {
    let sealed = seal(key(), &label(), &VERSIONS, payload(b"value"));
    let other = Expect {
        key: b"shop:product@2:18",
        ..key()
    };
    assert_eq!(open(&sealed, other), Err(Rejected::Key));
    assert_eq!(
        open(&sealed, Expect { schema: 3, ..key() }),
        Err(Rejected::Schema)
    );
    assert_eq!(open(b"plain text", key()), Err(Rejected::Header));
    assert_eq!(
        open(&sealed[..Header::LEN], key()),
        Err(Rejected::Placeholder)
    );
    for cut in [Header::LEN + 3, SUM_AT - 1, SUM_AT + 3] {
        assert_eq!(open(&sealed[..cut], key()), Err(Rejected::Length));
    }
    let mut fewer_versions = sealed.clone();
    fewer_versions[7] -= 1;
    assert_eq!(open(&fewer_versions, key()), Err(Rejected::Checksum));
    assert_eq!(
        open(&sealed[..sealed.len() - 1], key()),
        Err(Rejected::Checksum)
    );
    let mut next_version = sealed.clone();
    next_version[4] = 2;
    assert_eq!(open(&next_version, key()), Err(Rejected::Header));
}

/// An envelope around a body of the attacker's choice, with a right checksum.
fn forged(body: &[u8]) -> Vec<u8> {
    let mut bytes = seal(key(), &label(), &VERSIONS, None);
    bytes.truncate(BODY_AT);
    bytes.extend_from_slice(body);
    bytes[SUM_AT..BODY_AT].copy_from_slice(&xxh3_64(body).to_be_bytes());
    bytes
}

#[test]
fn claimed_lengths_are_not_believed() {
    let mut body = vec![1, 1, 0]; // MessagePack, lz4
    put_bytes(&mut body, key().key);
    // Two tags without a name, to go with the three versions.
    [2, 0, 0, 1000, 0, 0, 2, 0, 0]
        .iter()
        .for_each(|number| put_number(&mut body, *number));
    let mut bomb = body.clone();
    put_number(&mut bomb, 4 << 30); // claims 4 GiB
    bomb.extend_from_slice(&[0; 32]);
    assert_eq!(open(&forged(&bomb), key()), Err(Rejected::Codec));

    let mut long_key = vec![1, 0, 0];
    put_number(&mut long_key, u64::MAX);
    assert_eq!(open(&forged(&long_key), key()), Err(Rejected::Length));

    let mut tags = vec![1, 0, 0];
    put_bytes(&mut tags, key().key);
    [2, 0, 0, 1000, 0, 0, 100_000]
        .iter()
        .for_each(|number| put_number(&mut tags, *number));
    assert_eq!(open(&forged(&tags), key()), Err(Rejected::Length));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = open(&bytes, key());
    }

    #[test]
    fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = open(&forged(&body), key());
    }

    /// Behind the three ids, a body that begins as it should gets the fuzzing past the key.
    #[test]
    fn no_body_of_the_right_key_makes_it_panic(
        ids in any::<[u8; 3]>(),
        rest in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut body = ids.to_vec();
        put_bytes(&mut body, key().key);
        put_number(&mut body, 2);
        body.extend_from_slice(&rest);
        let _ = open(&forged(&body), key());
    }

    #[test]
    fn any_flipped_bit_behind_the_versions_is_a_miss(
        value in proptest::collection::vec(any::<u8>(), 0..2000),
        at in any::<proptest::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let mut sealed = seal(key(), &label(), &VERSIONS, payload(&value));
        let at = SUM_AT + at.index(sealed.len() - SUM_AT);
        sealed[at] ^= 1_u8 << bit;
        prop_assert!(open(&sealed, key()).is_err());
    }

    /// The store writes the versions, so no checksum covers them: a flipped one does not compare
    /// equal to that of its record any more.
    #[test]
    fn a_flipped_bit_in_the_versions_shows_in_the_versions_alone(
        at in 0..8 * VERSIONS.len(),
        bit in 0_u8..8,
    ) {
        let mut sealed = seal(key(), &label(), &VERSIONS, payload(b"value"));
        sealed[Header::LEN + at] ^= 1_u8 << bit;
        let opened = open(&sealed, key()).unwrap();
        let changed = |index: usize| opened.versions[index] != VERSIONS[index];
        prop_assert!((0..VERSIONS.len()).all(|index| changed(index) == (index == at / 8)));
        prop_assert_eq!(opened.label, label());
    }

    #[test]
    fn no_bit_of_the_front_makes_it_panic(at in 0..SUM_AT, byte in any::<u8>()) {
        let mut sealed = seal(key(), &label(), &VERSIONS, payload(b"value"));
        sealed[at] = byte;
        let _ = open(&sealed, key());
    }

    #[test]
    fn any_truncation_is_a_miss(at in any::<proptest::sample::Index>()) {
        let sealed = seal(key(), &label(), &VERSIONS, payload(b"a value of some length"));
        prop_assert!(open(&sealed[..at.index(sealed.len())], key()).is_err());
    }

    #[test]
    fn headers_survive(
        tag_count in any::<u16>(),
        fill_id in any::<[u8; 16]>(),
        words in any::<[u64; 5]>(),
    ) {
        let [token, lease_until, a, b, version] = words;
        let (fresh_until, stale_until) = (a.min(b), a.max(b));
        let lease = LeaseToken::from_bits(token);
        let header = Header {
            expired: false,
            tag_count,
            fill_id,
            lease,
            lease_until,
            fresh_until,
            stale_until,
            version,
        };
        prop_assert_eq!(Header::parse(&header.to_bytes()), Some(header));
    }
}
