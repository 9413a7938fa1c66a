//! The end of the journal is missing, as after a power loss, from any byte on: the counter has moved
//! wherever a record is gone, and no value is there without the record it was stored with.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use larder::store::Store;
use larder_disk::Disk;
use support::*;

/// What is found after opening: the count of the counter, if there is one, whether there is a
/// record, and the valid payload.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    counter: Option<u64>,
    record: bool,
    valid: Option<Bytes>,
}

#[tokio::test]
async fn every_beginning_of_the_journal_is_a_state_that_was() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    let (name, tags) = (key("k"), [tag("t")]);
    let disk = open(&whole);
    set_tagged(&disk, &name, &tags, "old").await;
    disk.delete(&tags, Some(&COUNTER)).await.unwrap();
    set_tagged(&disk, &name, &tags, "new").await;
    drop(disk);

    let state = |counter, record, valid: Option<&'static str>| Found {
        counter,
        record,
        valid: valid.map(Bytes::from),
    };
    let states = [
        state(None, false, None),
        state(Some(0), true, Some("old")),
        state(Some(1), true, Some("old")),
        state(Some(1), false, None),
        state(Some(1), true, Some("new")),
    ];
    let journal = fs::read(whole.join("tree/0.jnl")).unwrap();
    let end = journal.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let mut at = 0;
    for cut in (0..end).step_by(5).chain([end]) {
        let copy = directory.path().join(format!("cut at {cut}"));
        copy_store(&whole, &copy, &journal[..cut]);
        let found = look(&open(&copy), &name, &tags).await;
        at += states[at..]
            .iter()
            .position(|state| *state == found)
            .unwrap_or_else(|| panic!("cut at {cut}: {found:?} after {:?}", states[at]));
        fs::remove_dir_all(copy).unwrap();
    }
    assert_eq!(at, states.len() - 1);
}

async fn look(disk: &Disk, name: &Bytes, tags: &[Bytes]) -> Found {
    let counter = get(disk, &COUNTER).await;
    Found {
        counter: counter.map(|bytes| u64::from_be_bytes(*bytes[8..].first_chunk().unwrap())),
        record: record(disk, &tags[0]).await.is_some(),
        valid: valid(disk, name, tags).await,
    }
}

/// Copies a store, with this journal.
fn copy_store(from: &Path, to: &Path, journal: &[u8]) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, copy) = (file.path(), to.join(file.file_name()));
        if file.file_name() == "0.jnl" {
            fs::write(copy, journal).unwrap();
        } else if path.is_dir() {
            copy_store(&path, &copy, journal);
        } else {
            fs::copy(path, copy).unwrap();
        }
    }
}
