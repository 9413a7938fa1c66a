use proptest::prelude::*;

use super::*;

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
        version: Some(9),
        etag: Some("\"v9\"".into()),
        last_modified: Some(1_699_999_000),
        tags: vec![("category:7".into(), 42), ("".into(), u64::MAX)],
    }
}

fn payload(bytes: &[u8]) -> Option<Payload> {
    Some(Payload {
        codec: 1,
        bytes: bytes.to_vec(),
    })
}

#[test]
fn what_is_sealed_opens_again() {
    for (payload, compress_over) in [
        (payload(b"value"), 1024),
        (payload(&[b'x'; 5000]), 1024),
        (payload(&[b'x'; 5000]), usize::MAX),
        (payload(b""), 0),
        (None, 1024),
    ] {
        let expected = payload.as_ref().map(|payload| payload.bytes.clone());
        let sealed = seal(key(), &label(), payload, compress_over);
        let opened = open(&sealed, key()).unwrap();
        assert_eq!(opened.label, label());
        assert_eq!(opened.payload.map(|payload| payload.bytes), expected);
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
fn repetitive_values_are_stored_compressed_and_small_ones_with_little_overhead() {
    let long = seal(key(), &label(), payload(&[b'x'; 100_000]), 1024);
    assert!(long.len() < 1_000, "{} bytes", long.len());
    let plain = Label {
        version: None,
        etag: None,
        last_modified: None,
        tags: vec![],
        ..label()
    };
    let small = seal(key(), &plain, payload(b"v"), 1024);
    assert!(
        small.len() - 1 <= 120,
        "{} bytes of overhead",
        small.len() - 1
    );
}

#[test]
fn each_kind_of_wrong_bytes_has_its_name() {
    let sealed = seal(key(), &label(), payload(b"value"), 1024);
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
    assert_eq!(
        open(&sealed[..Header::LEN + 3], key()),
        Err(Rejected::Length)
    );
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
    let mut bytes = seal(key(), &label(), None, 0);
    bytes.truncate(BODY_AT);
    bytes.extend_from_slice(body);
    bytes[Header::LEN..BODY_AT].copy_from_slice(&xxh3_64(body).to_be_bytes());
    bytes
}

#[test]
fn claimed_lengths_are_not_believed() {
    let mut body = vec![1, 1, 0, 0]; // MessagePack, lz4
    put_bytes(&mut body, key().key);
    [2, 0, 0, 1000, 0, 0, 0]
        .iter()
        .for_each(|number| put_number(&mut body, *number));
    let mut bomb = body.clone();
    put_number(&mut bomb, 4 << 30); // claims 4 GiB
    bomb.extend_from_slice(&[0; 32]);
    assert_eq!(open(&forged(&bomb), key()), Err(Rejected::Codec));

    let mut long_key = vec![1, 0, 0, 0];
    put_number(&mut long_key, u64::MAX);
    assert_eq!(open(&forged(&long_key), key()), Err(Rejected::Length));

    let mut tags = vec![1, 0, 0, 0];
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

    /// Behind the four ids, a body that begins as it should gets the fuzzing past the key.
    #[test]
    fn no_body_of_the_right_key_makes_it_panic(
        ids in any::<[u8; 4]>(),
        rest in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut body = ids.to_vec();
        put_bytes(&mut body, key().key);
        put_number(&mut body, 2);
        body.extend_from_slice(&rest);
        let _ = open(&forged(&body), key());
    }

    #[test]
    fn any_flipped_bit_behind_the_header_is_a_miss(
        value in proptest::collection::vec(any::<u8>(), 0..2000),
        at in any::<proptest::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let mut sealed = seal(key(), &label(), payload(&value), 1024);
        let at = Header::LEN + at.index(sealed.len() - Header::LEN);
        sealed[at] ^= 1_u8 << bit;
        prop_assert!(open(&sealed, key()).is_err());
    }

    #[test]
    fn any_truncation_is_a_miss(at in any::<proptest::sample::Index>()) {
        let sealed = seal(key(), &label(), payload(b"a value of some length"), 1024);
        prop_assert!(open(&sealed[..at.index(sealed.len())], key()).is_err());
    }

    #[test]
    fn numbers_survive(number in any::<u64>()) {
        let mut out = Vec::new();
        put_number(&mut out, number);
        prop_assert_eq!(Reader(&out).number(), Some(number));
    }

    #[test]
    fn headers_survive(fill_id in any::<[u8; 16]>(), token in any::<u64>(), until in any::<[u64; 3]>()) {
        let [lease_until, a, b] = until;
        let (fresh_until, stale_until) = (a.min(b), a.max(b));
        let lease = LeaseToken::from_bits(token);
        let header = Header { fill_id, lease, lease_until, fresh_until, stale_until };
        prop_assert_eq!(Header::parse(&header.to_bytes()), Some(header));
    }
}
