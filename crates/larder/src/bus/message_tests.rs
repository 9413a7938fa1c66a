use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const NAMESPACE: &str = "shop";

fn message(items: Vec<Item>) -> Message {
    Message {
        node: 0x0102_0304_0506_0708,
        sequence: 300,
        sent_at: 1_700_000_000_000,
        items,
    }
}

fn forget(key: &[u8], versions: &[u32], why: Why) -> Item {
    Item::Forget {
        cache: "product".into(),
        key: Bytes::copy_from_slice(key),
        versions: versions.to_vec(),
        why,
    }
}

/// Every kind of message that this release knows, and the file that holds its bytes.
fn known() -> Vec<(&'static str, Message)> {
    let version = Item::Version {
        cache: "product".into(),
        version: 2,
    };
    let pattern = Item::Pattern {
        cache: "product".into(),
        glob: "category:*:caf\u{e9}".into(),
        versions: vec![1, 2],
    };
    let clear = Item::Clear {
        cache: "product".into(),
    };
    let tag = Item::Tag {
        tag: "category:7".into(),
    };
    let invalidated = forget(b"a%3Ab:17", &[], Why::Invalidated);
    let all = vec![
        invalidated.clone(),
        tag.clone(),
        pattern.clone(),
        clear.clone(),
        Item::Everything,
        version.clone(),
    ];
    vec![
        ("beat", message(vec![])),
        ("forget-invalidated", message(vec![invalidated])),
        (
            "forget-written",
            message(vec![forget(b"17", &[2], Why::Written)]),
        ),
        (
            "forget-expired",
            message(vec![forget(b"17", &[1, 2, u32::MAX], Why::Expired)]),
        ),
        (
            "forget-before",
            message(vec![forget(b"17", &[2], Why::Before(u64::MAX))]),
        ),
        ("tag", message(vec![tag])),
        ("pattern", message(vec![pattern])),
        ("clear", message(vec![clear])),
        ("everything", message(vec![Item::Everything])),
        ("version", message(vec![version])),
        ("all", message(all)),
    ]
}

fn fixtures() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "bus-v1"]
        .iter()
        .collect()
}

/// The files are what releases that are out there send. They are added to, never changed.
#[test]
fn messages_are_written_and_read_as_the_first_release_did() {
    for (name, message) in known() {
        let file = fixtures().join(name).with_extension("bin");
        let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        assert_eq!(message.encode(NAMESPACE), bytes, "{name}");
        assert_eq!(Message::decode(&bytes, NAMESPACE), Ok(message), "{name}");
    }
    let files = std::fs::read_dir(fixtures()).unwrap().count();
    assert_eq!(files, known().len(), "a file that no test reads");
}

#[test]
fn a_message_looks_as_documented() {
    let bytes = message(vec![forget(b"17", &[300], Why::Written)]).encode("ns");
    let (front, checksum) = bytes.split_last_chunk().unwrap();
    let expected = [
        b"LRDB\x01".as_slice(),
        b"\x02ns",
        b"\x01\x02\x03\x04\x05\x06\x07\x08",
        b"\xac\x02",
        b"\x80\xd0\x95\xff\xbc\x31",
        b"\x01",
        b"\x01\x0f\x02\x07product\x0217\x01\xac\x02",
    ];
    assert_eq!(front, expected.concat());
    assert_eq!(u64::from_be_bytes(*checksum), xxh3_64(front));
}

/// A message of the attacker's choice behind the format version, with a right checksum.
fn forged(rest: &[u8]) -> Vec<u8> {
    let mut bytes = [b"LRDB\x01", rest].concat();
    let checksum = xxh3_64(&bytes);
    bytes.extend_from_slice(&checksum.to_be_bytes());
    bytes
}

/// A forged message of our namespace with these bytes in place of the number of items and them.
fn forged_items(count: u64, items: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    put_bytes(&mut rest, NAMESPACE.as_bytes());
    rest.extend_from_slice(&[0; 10]);
    put_number(&mut rest, count);
    rest.extend_from_slice(items);
    forged(&rest)
}

fn refused(bytes: &[u8]) -> Option<Refused> {
    Message::decode(bytes, NAMESPACE).err()
}

#[test]
fn what_is_not_for_us_is_told_apart_from_what_we_may_have_missed() {
    let bytes = message(vec![Item::Everything]).encode("stock");
    assert_eq!(refused(&bytes), Some(Refused::Foreign));
    assert_eq!(refused(&vec![0; MAX_BYTES + 1]), Some(Refused::TooLarge));
    assert_eq!(refused(b""), Some(Refused::Unreadable));
    assert_eq!(refused(b"{\"key\":\"17\"}"), Some(Refused::Unreadable));
    let mut next_version = message(vec![]).encode(NAMESPACE).to_vec();
    next_version[4] = 2;
    assert_eq!(refused(&next_version), Some(Refused::Unreadable));
}

#[test]
fn items_that_this_release_does_not_know_all_of_are_unreadable() {
    assert_eq!(refused(&forged_items(1, &[5, 0])), None);
    let unknown: [(&str, &[u8]); 10] = [
        ("kind", &[7, 0]),
        ("kind zero", &[0, 0]),
        ("longer body", &[5, 1, 0]),
        ("reason", &[1, 6, 5, 1, b'c', 1, b'k', 0]),
        (
            "reason without its version",
            &[1, 6, 4, 1, b'c', 1, b'k', 0],
        ),
        (
            "version without its reason",
            &[1, 7, 1, 1, b'c', 1, b'k', 0, 9],
        ),
        (
            "version over 32 bits",
            &[6, 7, 1, b'c', 0xff, 0xff, 0xff, 0xff, 0x1f],
        ),
        ("cache name", &[4, 2, 1, 0xff]),
        ("one item too few", &[]),
        ("one item too many", &[5, 0, 5, 0]),
    ];
    for (what, items) in unknown {
        let bytes = forged_items(1, items);
        assert_eq!(refused(&bytes), Some(Refused::Unreadable), "{what}");
    }
}

#[test]
fn claims_are_not_believed() {
    let everything = [5, 0].repeat(MAX_ITEMS + 1);
    let most = forged_items(MAX_ITEMS as u64, &everything[2..]);
    assert_eq!(refused(&most), None);
    let over = forged_items(MAX_ITEMS as u64 + 1, &everything);
    assert_eq!(refused(&over), Some(Refused::Unreadable));
    let claimed = forged_items(u64::MAX, &everything[2..]);
    assert_eq!(refused(&claimed), Some(Refused::Unreadable));
    let mut versions = vec![1, 16, 1, 1, b'c', 1, b'k'];
    put_number(&mut versions, u64::MAX);
    let versions = forged_items(1, &versions);
    assert_eq!(refused(&versions), Some(Refused::Unreadable));
}

fn name() -> impl Strategy<Value = Box<str>> {
    "[a-z.é]{0,12}".prop_map(Box::from)
}

fn item() -> impl Strategy<Value = Item> {
    let why = prop_oneof![
        Just(Why::Invalidated),
        any::<u64>().prop_map(Why::Before),
        Just(Why::Written),
        Just(Why::Expired)
    ];
    let key = proptest::collection::vec(any::<u8>(), 0..40);
    let versions = || proptest::collection::vec(any::<u32>(), 0..4);
    let pattern = (name(), name(), versions());
    prop_oneof![
        (name(), key, versions(), why).prop_map(|(cache, key, versions, why)| Item::Forget {
            cache,
            key: Bytes::from(key),
            versions,
            why
        }),
        name().prop_map(|tag| Item::Tag { tag }),
        pattern.prop_map(|(cache, glob, versions)| Item::Pattern {
            cache,
            glob,
            versions
        }),
        name().prop_map(|cache| Item::Clear { cache }),
        Just(Item::Everything),
        (name(), any::<u32>()).prop_map(|(cache, version)| Item::Version { cache, version }),
    ]
}

fn any_message() -> impl Strategy<Value = Message> {
    let items = proptest::collection::vec(item(), 0..8);
    (any::<[u64; 3]>(), items).prop_map(|([node, sequence, sent_at], items)| Message {
        node,
        sequence,
        sent_at,
        items,
    })
}

#[test]
fn a_bulk_is_split_at_the_bounds() {
    let small = vec![Item::Everything; 2 * MAX_ITEMS + 1];
    let lengths: Vec<usize> = split(NAMESPACE, small).iter().map(Vec::len).collect();
    assert_eq!(lengths, [MAX_ITEMS, MAX_ITEMS, 1]);

    let long = vec![forget(&[b'k'; 20_000], &[], Why::Invalidated); 7];
    let lengths: Vec<usize> = split(NAMESPACE, long).iter().map(Vec::len).collect();
    assert_eq!(lengths, [3, 3, 1]);
    assert_eq!(split(NAMESPACE, []), [[]; 0]);
}

#[test]
fn what_is_too_long_to_say_is_said_by_something_that_means_more() {
    let long = "x".repeat(MAX_BYTES);
    let clear = Item::Clear {
        cache: "product".into(),
    };
    let pattern = Item::Pattern {
        cache: "product".into(),
        glob: long.as_str().into(),
        versions: vec![],
    };
    let tag = Item::Tag {
        tag: long.as_str().into(),
    };
    let key = forget(long.as_bytes(), &[], Why::Expired);
    let versions = forget(b"17", &vec![1; MAX_BYTES], Why::Written);
    let nothing_shorter = Item::Clear {
        cache: long.as_str().into(),
    };
    for (item, wider) in [
        (key, clear.clone()),
        (versions, clear.clone()),
        (pattern, clear),
        (tag, Item::Everything),
        (nothing_shorter, Item::Everything),
    ] {
        assert_eq!(split(NAMESPACE, [item]), [[wider]]);
    }
}

proptest! {
    #[test]
    fn what_is_sent_is_received(sent in any_message()) {
        let bytes = sent.encode(NAMESPACE);
        prop_assert_eq!(Message::decode(&bytes, NAMESPACE), Ok(sent));
    }

    #[test]
    fn every_part_of_a_bulk_can_be_read_and_nothing_is_lost(
        items in proptest::collection::vec(item(), 0..40),
        times in 1_usize..60,
        namespace in "[a-z]{1,64}",
    ) {
        let items: Vec<Item> = items.iter().cycle().take(items.len() * times).cloned().collect();
        let parts = split(&namespace, items.clone());
        for part in &parts {
            let sent = Message {
                node: u64::MAX,
                sequence: u64::MAX,
                sent_at: u64::MAX,
                items: part.clone(),
            };
            prop_assert_eq!(Message::decode(&sent.encode(&namespace), &namespace), Ok(sent));
        }
        prop_assert_eq!(parts.concat(), items);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Message::decode(&bytes, NAMESPACE);
        let _ = Message::decode(&forged(&bytes), NAMESPACE);
    }

    #[test]
    fn no_items_make_it_panic(
        count in 0_u64..5,
        kind in 0_u8..8,
        items in proptest::collection::vec(0_u8..9, 0..60),
    ) {
        let mut bodies = vec![kind];
        put_bytes(&mut bodies, &items);
        let _ = Message::decode(&forged_items(count, &bodies), NAMESPACE);
        let _ = Message::decode(&forged_items(count, &items), NAMESPACE);
    }

    #[test]
    fn any_flipped_bit_is_a_gap(
        sent in any_message(),
        at in any::<proptest::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let mut bytes = sent.encode(NAMESPACE).to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        prop_assert_eq!(refused(&bytes), Some(Refused::Unreadable));
    }

    #[test]
    fn any_truncation_is_a_gap(sent in any_message(), at in any::<proptest::sample::Index>()) {
        let bytes = sent.encode(NAMESPACE);
        let cut = &bytes[..at.index(bytes.len())];
        prop_assert_eq!(refused(cut), Some(Refused::Unreadable));
    }
}
