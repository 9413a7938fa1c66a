//! A directory that cannot be used is refused in one sentence that names it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use larder_disk::{Disk, DiskErrorKind, DiskOptions};
use support::*;

/// Set in the process that a test starts: the directory to open there.
const OTHER_PROCESS: &str = "LARDER_DISK_OTHER_PROCESS";

#[track_caller]
fn assert_refused(path: &Path, kind: DiskErrorKind, says: &str) {
    let error = Disk::open(path, DiskOptions::default()).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.kind(), kind, "{message}");
    let shown = path.display().to_string();
    assert!(message.contains(&shown), "{message:?} names {shown}");
    assert!(message.contains(says), "{message:?} says {says:?}");
    assert!(!message.contains('\n'), "{message:?} is one sentence");
}

#[tokio::test]
async fn a_directory_is_created_with_its_parents() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/c");
    let disk = open(&path);
    assert_eq!(disk.path(), path);
    set(&disk, &key("k"), fresh("v")).await.unwrap();
}

#[test]
fn a_second_store_in_one_process_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(directory.path());
    assert_refused(directory.path(), DiskErrorKind::InUse, "close that one");
    drop(disk);
    open(directory.path());
}

#[test]
fn a_store_of_another_process_is_refused() {
    if let Some(path) = std::env::var_os(OTHER_PROCESS) {
        assert_refused(Path::new(&path), DiskErrorKind::InUse, "close that one");
        println!("the other process was refused");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let _disk = open(directory.path());
    let other = Command::new(std::env::current_exe().unwrap())
        .args([
            "a_store_of_another_process_is_refused",
            "--exact",
            "--nocapture",
        ])
        .env(OTHER_PROCESS, directory.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&other.stdout);
    assert!(other.status.success(), "{told}");
    assert!(told.contains("the other process was refused"), "{told}");
}

#[test]
fn a_file_in_the_way_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert_refused(
        &file,
        DiskErrorKind::NotADirectory,
        "a file stands in its way",
    );
    let below = file.join("cache");
    assert_refused(
        &below,
        DiskErrorKind::NotADirectory,
        "a file stands in its way",
    );
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
#[cfg(target_os = "linux")]
fn a_directory_that_cannot_be_written_is_refused() {
    // Nobody may write there, root neither.
    let path = Path::new("/proc/larder-disk");
    assert_refused(path, DiskErrorKind::NotWritable, "cannot create");
    let error = Disk::open("/proc", DiskOptions::default()).unwrap_err();
    assert!(error.to_string().contains("/proc"), "{error}");
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thesis.tex"), "mine").unwrap();
    assert_refused(directory.path(), DiskErrorKind::Foreign, "thesis.tex");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_store_of_another_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    fs::write(
        directory.path().join("larder-disk"),
        "larder-disk format 9\n",
    )
    .unwrap();
    assert_refused(
        directory.path(),
        DiskErrorKind::Foreign,
        "choose an empty directory",
    );
}

#[test]
fn a_store_that_was_killed_while_it_was_made_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("lock"), "").unwrap();
    fs::write(directory.path().join("larder-disk"), "larder-d").unwrap();
    open(directory.path());
}

#[tokio::test]
async fn damaged_files_are_refused_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(directory.path());
    set(&disk, &key("k"), fresh(vec![1; 10_000])).await.unwrap();
    drop(disk);
    // A bit flipped in the middle of the journal: what it said is not known any more.
    let journal = directory.path().join("tree/0.jnl");
    let mut bytes = fs::read(&journal).unwrap();
    bytes[5_000] ^= 1;
    fs::write(&journal, bytes).unwrap();
    assert_refused(
        directory.path(),
        DiskErrorKind::Corrupt,
        "remove the directory",
    );
    fs::remove_dir_all(directory.path()).unwrap();
    open(directory.path());
}

#[tokio::test]
async fn a_journal_that_ends_in_the_middle_loses_that_record_only() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(directory.path());
    set(&disk, &key("whole"), fresh("v")).await.unwrap();
    let written = journal_end(directory.path());
    set(&disk, &key("torn"), fresh(vec![1; 10_000]))
        .await
        .unwrap();
    drop(disk);
    let journal = directory.path().join("tree/0.jnl");
    let file = fs::OpenOptions::new().write(true).open(&journal).unwrap();
    file.set_len(written + 5_000).unwrap();
    let disk = open(directory.path());
    assert_eq!(get(&disk, &key("whole")).await, Some(fresh("v")));
    assert_eq!(get(&disk, &key("torn")).await, None);
    assert_eq!(disk.stats().entries, 1);
}

/// Where the journal's records end: it is a file of zeros made in advance.
fn journal_end(directory: &Path) -> u64 {
    let bytes = fs::read(directory.join("tree/0.jnl")).unwrap();
    bytes.iter().rposition(|&byte| byte != 0).unwrap() as u64 + 1
}

#[test]
fn options_that_cannot_work_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = [
        (
            "max_bytes",
            DiskOptions {
                max_bytes: 0,
                ..DiskOptions::default()
            },
        ),
        (
            "max_entries",
            DiskOptions {
                max_entries: 0,
                ..DiskOptions::default()
            },
        ),
        (
            "max_value_bytes",
            DiskOptions {
                max_value_bytes: 2 << 30,
                ..DiskOptions::default()
            },
        ),
        (
            "max_leases",
            DiskOptions {
                max_leases: 0,
                ..DiskOptions::default()
            },
        ),
        (
            "readers",
            DiskOptions {
                readers: 0,
                ..DiskOptions::default()
            },
        ),
        (
            "queue",
            DiskOptions {
                queue: 0,
                ..DiskOptions::default()
            },
        ),
    ];
    for (name, options) in wrong {
        let error = Disk::open(directory.path().join("cache"), options).unwrap_err();
        assert_eq!(error.kind(), DiskErrorKind::Options);
        assert!(error.to_string().starts_with(name), "{error}");
    }
    assert!(!directory.path().join("cache").exists());
}
