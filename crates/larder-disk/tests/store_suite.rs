//! The disk tier passes the suite that every store passes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::sync::Arc;

use larder_disk::{Disk, DiskOptions};
use larder_testkit::{ManualClock, Subject};

async fn open() -> Subject {
    let clock = ManualClock::new();
    let directory = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        clock: clock.clone(),
        ..DiskOptions::default()
    };
    let disk = Disk::open(directory.path(), options).unwrap();
    Subject::new(Arc::new(disk))
        .with_clock(clock)
        .keep(directory)
}

larder_testkit::store_suite!(open);
