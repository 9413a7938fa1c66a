//! What invalidation by tag rests on is small records among the entries: bounded with them, evicted
//! with them, and there after a restart.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use larder::envelope::Header;
use larder::store::{Fill, Filled, LeaseToken, Leased, Store, StoreErrorKind, TagRecord, Write};
use larder_disk::{Disk, DiskOptions, entry_bytes};
use larder_testkit::ManualClock;
use support::*;

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);

fn minimum(name: &Bytes, version: u64, ttl: Duration) -> Write {
    Write {
        key: name.clone(),
        value: Bytes::copy_from_slice(&Header::minimum(version).to_bytes()),
        ttl,
        tags: None,
    }
}

fn versioned_fill(name: &Bytes, token: LeaseToken, version: u64) -> Fill {
    let header = Header {
        version,
        fresh_until: u64::MAX,
        stale_until: u64::MAX,
        ..Header::minimum(0)
    };
    Fill {
        key: name.clone(),
        token,
        value: [&header.to_bytes()[..], b"loaded"].concat().into(),
        ttl: HOUR,
        tags: None,
    }
}

#[tokio::test]
async fn the_counter_and_the_records_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(directory.path());
    let (kept, gone) = (key("kept"), key("gone"));
    let (blue, red) = ([tag("blue")], [tag("red")]);
    set_tagged(&disk, &kept, &blue, "blue").await;
    set_tagged(&disk, &gone, &red, "red").await;
    disk.delete(&red, Some(&COUNTER)).await.unwrap();
    let before = (position(&disk).await, record(&disk, &blue[0]).await);
    assert_eq!(before.0.count, 1);
    let accounts = (disk.stats().entries, disk.stats().bytes);
    disk.close().await.unwrap();

    let disk = open(directory.path());
    assert_eq!((disk.stats().entries, disk.stats().bytes), accounts);
    let after = (position(&disk).await, record(&disk, &blue[0]).await);
    assert_eq!(after, before);
    assert_eq!(valid(&disk, &kept, &blue).await.unwrap(), "blue");
    assert_eq!(valid(&disk, &gone, &red).await, None);
    // The next one under the red tag revives nothing, and the counter goes on from where it was.
    set_tagged(&disk, &key("other"), &red, "new").await;
    assert_eq!(valid(&disk, &gone, &red).await, None);
    disk.delete(&[], Some(&COUNTER)).await.unwrap();
    assert_eq!(position(&disk).await.count, 2);
    assert_eq!(position(&disk).await.incarnation, before.0.incarnation);
}

#[tokio::test]
async fn a_minimum_version_survives_a_restart_for_its_time_and_whatever_its_leases_do() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let disk = open_small(directory.path(), MIB, &clock);
    let name = key("k");
    disk.set(&[minimum(&name, 7, MINUTE)]).await.unwrap();
    let token = LeaseToken::random();
    lease(&disk, &name, token).await;
    disk.close().await.unwrap();

    let disk = open_small(directory.path(), MIB, &clock);
    assert_eq!(disk.stats().entries, 1);
    for (version, expected) in [(0, Filled::Refused), (6, Filled::Refused), (7, stored())] {
        disk.set(&[minimum(&name, 7, MINUTE)]).await.unwrap();
        let token = LeaseToken::random();
        let acquired = Leased::Acquired {
            stale: None,
            since: None,
        };
        assert_eq!(lease(&disk, &name, token).await, acquired);
        let fill = versioned_fill(&name, token, version);
        let filled = disk.fill(&[fill]).await.unwrap();
        assert_eq!(filled, vec![expected]);
        disk.release(std::slice::from_ref(&name), token)
            .await
            .unwrap();
        delete(&disk, &name).await.unwrap();
    }

    disk.set(&[minimum(&name, 7, MINUTE)]).await.unwrap();
    lease(&disk, &name, LeaseToken::random()).await;
    disk.expire(std::slice::from_ref(&name), 1).await.unwrap();
    assert_eq!(disk.stats().leases, 0);
    clock.advance(MINUTE - Duration::from_millis(1));
    let token = LeaseToken::random();
    lease(&disk, &name, token).await;
    let late = [versioned_fill(&name, token, 6)];
    assert_eq!(disk.fill(&late).await.unwrap(), [Filled::Refused]);
    clock.advance(Duration::from_millis(1));
    assert_eq!(disk.fill(&late).await.unwrap(), [stored()], "it ended");
}

#[tokio::test]
async fn a_minimum_version_is_spared_once_though_nobody_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        max_entries: 10,
        ..DiskOptions::default()
    };
    let disk = Disk::open(directory.path(), options).unwrap();
    let name = key("k");
    disk.set(&[minimum(&name, 7, HOUR)]).await.unwrap();
    for n in 0..50 {
        set(&disk, &key(format!("k{n}")), fresh("v")).await.unwrap();
    }
    let token = LeaseToken::random();
    lease(&disk, &name, token).await;
    let fill = versioned_fill(&name, token, 6);
    assert_eq!(disk.fill(&[fill]).await.unwrap(), [Filled::Refused]);
}

#[tokio::test]
async fn members_survive_a_restart_for_their_time_and_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let disk = open_small(directory.path(), MIB, &clock);
    let set = key("ns:schemas");
    assert_eq!(disk.enlist(&set, 1, MINUTE).await.unwrap(), [1]);
    disk.enlist(&set, 2, 2 * MINUTE).await.unwrap();
    drop(disk);
    let disk = open_small(directory.path(), MIB, &clock);
    let mut members = disk.enlist(&set, 1, MINUTE / 2).await.unwrap();
    members.sort_unstable();
    assert_eq!(members, [1, 2]);
    clock.advance(MINUTE);
    assert_eq!(disk.enlist(&set, 2, MINUTE).await.unwrap(), [2]);
    for member in 0..1_024 {
        disk.enlist(&set, member, HOUR).await.unwrap();
    }
    let before = disk.stats().bytes;
    let error = disk.enlist(&set, 5_000, HOUR).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    assert_eq!(disk.enlist(&set, 1_023, HOUR).await.unwrap().len(), 1_024);
    assert_eq!(disk.stats().bytes, before);
}

#[tokio::test]
async fn small_records_are_counted_like_entries() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(directory.path());
    position(&disk).await;
    let counter = entry_bytes(COUNTER.len(), 16);
    assert_eq!((disk.stats().entries, disk.stats().bytes), (1, counter));
    let (name, tags) = (key("k"), [tag("a"), tag("b")]);
    set_tagged(&disk, &name, &tags, "v").await;
    let value = entry_bytes(1, tagged_envelope(2, "v").len());
    let records = 2 * entry_bytes(tags[0].len(), TagRecord::LEN);
    let all = (4, counter + value + records);
    assert_eq!((disk.stats().entries, disk.stats().bytes), all);
    disk.delete(&tags, Some(&COUNTER)).await.unwrap();
    assert_eq!(disk.stats().bytes, counter + value);
    assert_eq!(clear(&disk, b"").await.unwrap(), 2);
    assert_eq!((disk.stats().entries, disk.stats().bytes), (0, 0));
}

#[tokio::test]
async fn the_counter_and_the_record_of_every_value_outlive_churn() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open_small(directory.path(), MIB, &ManualClock::new());
    let clear_tag = tag("all");
    let incarnation = position(&disk).await.incarnation;
    // Nobody reads the record: that values are stored under it is all that keeps it.
    let versions = set_tagged(&disk, &key("first"), std::slice::from_ref(&clear_tag), "v").await;
    // Four times what fits, each value with a tag of its own beside the common one.
    for n in 0..4_000 {
        let records = [clear_tag.clone(), tag(format!("{n}"))];
        let write = tagged_write(&key(format!("k{n}")), &records, vec![0; 1_000]);
        set_write_patiently(&disk, write).await;
        let stats = disk.stats();
        assert!(stats.bytes <= MIB, "{stats:?} after {n} writes");
    }
    assert!(disk.stats().evicted >= 3_000);
    let kept = record(&disk, &clear_tag).await.unwrap();
    assert_eq!(
        (kept.version, kept.made_at.incarnation),
        (versions[0], incarnation)
    );
    assert_eq!(position(&disk).await, kept.made_at);
}

#[tokio::test]
async fn the_hand_passes_by_a_counter_where_it_would_evict_whatever_comes() {
    let directory = tempfile::tempdir().unwrap();
    // The hand spares 4,096 entries that were read, and then evicts the next one all the same.
    const SPARED: u64 = 4_096;
    let options = DiskOptions {
        max_entries: SPARED + 2,
        ..DiskOptions::default()
    };
    let disk = Disk::open(directory.path(), options).unwrap();
    let names: Vec<_> = (0..SPARED).map(|n| key(format!("k{n}"))).collect();
    for names in names.chunks(512) {
        let write = |name: &Bytes| Write {
            key: name.clone(),
            value: fresh("v"),
            ttl: HOUR,
            tags: None,
        };
        let writes: Vec<_> = names.iter().map(write).collect();
        disk.set(&writes).await.unwrap();
    }
    let before = position(&disk).await;
    set(&disk, &key("last"), fresh("v")).await.unwrap();
    disk.get(&names, LIMIT).await.unwrap();
    get(&disk, &key("last")).await;
    assert_eq!(position(&disk).await, before);
    set(&disk, &key("one more"), fresh("v")).await.unwrap();
    assert_eq!(get(&disk, &key("last")).await, None);
    assert_eq!(position(&disk).await, before);
}

#[tokio::test]
async fn a_record_that_was_evicted_makes_its_values_misses() {
    let directory = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        max_entries: 20,
        ..DiskOptions::default()
    };
    let disk = Disk::open(directory.path(), options).unwrap();
    let (name, tags) = (key("k"), [tag("rare")]);
    let versions = set_tagged(&disk, &name, &tags, "v").await;
    for n in 0..100 {
        get(&disk, &name).await;
        set(&disk, &key(format!("k{n}")), fresh("v")).await.unwrap();
    }
    assert!(get(&disk, &name).await.is_some());
    assert_eq!(record(&disk, &tags[0]).await, None);
    assert_eq!(valid(&disk, &name, &tags).await, None);
    let again = set_tagged(&disk, &key("other"), &tags, "v").await;
    assert_ne!(again, versions);
    assert_eq!(valid(&disk, &name, &tags).await, None);
}

#[tokio::test]
async fn a_store_with_room_for_little_else_keeps_a_value_with_its_records() {
    let directory = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        max_entries: 4,
        ..DiskOptions::default()
    };
    let disk = Disk::open(directory.path(), options).unwrap();
    for n in 0..50 {
        let (name, tags) = (key(format!("k{n}")), [tag(format!("{n}")), tag("all")]);
        set_tagged(&disk, &name, &tags, "v").await;
        assert_eq!(valid(&disk, &name, &tags).await.unwrap(), "v");
        assert!(disk.stats().entries <= 4);
    }
}

#[tokio::test]
async fn tags_that_cannot_be_kept_are_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        max_entries: 4,
        ..DiskOptions::default()
    };
    let disk = Disk::open(directory.path(), options).unwrap();
    let name = key("k");
    let records: Vec<_> = (0..3).map(|n| tag([n])).collect();
    let with = |records: &[Bytes]| tagged_write(&name, records, "v");
    let too_many = with(&records);
    let too_long = with(&[key(vec![b'k'; 40_000])]);
    let twice = with(&[tag("a"), tag("a")]);
    let itself = with(std::slice::from_ref(&name));
    let other_count = Write {
        value: tagged_envelope(1, "v"),
        ..with(&records[..2])
    };
    let cut_short = Write {
        value: tagged_envelope(2, "").slice(..Header::LEN + 15),
        ..with(&records[..2])
    };
    let no_envelope = Write {
        value: Bytes::from_static(b"v"),
        ..with(&[])
    };
    let wrong = [
        too_many,
        too_long,
        twice,
        itself,
        other_count,
        cut_short,
        no_envelope,
    ];
    for wrong in wrong {
        let error = disk.set(std::slice::from_ref(&wrong)).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
        let fill = Fill {
            key: wrong.key,
            token: LeaseToken::random(),
            value: wrong.value,
            ttl: HOUR,
            tags: wrong.tags,
        };
        let error = disk.fill(&[fill]).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    }
    assert_eq!(disk.stats().entries, 0);
}
