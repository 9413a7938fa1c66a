//! The disk tier as a service meets it: behind a cache, across restarts, and on a disk that runs
//! full.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::io;
use std::path::Path;
use std::time::Duration;

use larder::{Cache, Delivery, Larder, Read, Source};
use larder_disk::{Disk, DiskOptions};

type Pages = Cache<u64, Vec<u8>>;

fn open(path: &Path) -> (Larder, Pages) {
    let disk = Disk::open(path, DiskOptions::default()).unwrap();
    // The budget is not under test, and a busy machine may be slower than the default.
    let builder = Larder::builder("t")
        .tier(disk)
        .tier_budget(Duration::from_secs(5));
    let larder = builder.build().unwrap();
    let pages = larder.cache("pages").build().unwrap();
    (larder, pages)
}

async fn read(pages: &Pages, key: u64, page: Vec<u8>) -> (Vec<u8>, Source) {
    let load = |_| async move { Ok::<_, io::Error>(page) };
    let read = pages
        .with(Read::new())
        .get_or_load_explained(&key, load)
        .await
        .unwrap();
    ((*read.value).clone(), read.outcome.source)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_loaded_before_a_restart_is_read_from_disk_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let (larder, pages) = open(directory.path());
    for key in 0..50 {
        assert_eq!(
            read(&pages, key, vec![key as u8; 100]).await.1,
            Source::Loader
        );
    }
    assert_eq!(
        pages.invalidate(&7).await.unwrap().delivery(),
        Delivery::Acked
    );
    let report = larder.shutdown(Duration::from_secs(5)).await;
    assert_eq!((report.abandoned, report.owed), (0, 0));
    drop((larder, pages));

    let (_larder, pages) = open(directory.path());
    for key in (0..50).filter(|key| *key != 7) {
        let (page, source) = read(&pages, key, b"loaded again".to_vec()).await;
        assert_eq!(
            (page, source),
            (vec![key as u8; 100], Source::Tier("disk".into()))
        );
    }
    assert_eq!(
        read(&pages, 7, b"new".to_vec()).await,
        (b"new".to_vec(), Source::Loader)
    );
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_reads_go_on_nothing_invalidated_comes_back_and_it_heals() {
    let small = larder_testkit::SmallDisk::mount(16 << 20).expect("this takes a small disk");
    let (larder, pages) = open(&small.path());
    let _ = pages.set(1, b"old".to_vec()).await.unwrap();
    small.fill_up().unwrap();
    for key in 100..400 {
        assert_eq!(
            read(&pages, key, vec![key as u8; 20_000]).await.0.len(),
            20_000
        );
    }
    // Whether the full disk takes the delete or owes it: the old value is not read again.
    let _ = pages.invalidate(&1).await.unwrap();
    assert_eq!(read(&pages, 1, b"new".to_vec()).await.0, b"new");
    pages.invalidate_in_memory(&1);
    assert_ne!(read(&pages, 1, b"newer".to_vec()).await.0, b"old");

    small.free().unwrap();
    let healing = async {
        for key in 1_000.. {
            read(&pages, key, b"page".to_vec()).await;
            pages.invalidate_in_memory(&key);
            if read(&pages, key, b"again".to_vec()).await.1 == Source::Tier("disk".into()) {
                return;
            }
        }
    };
    let healed = tokio::time::timeout(Duration::from_secs(20), healing).await;
    assert!(
        healed.is_ok(),
        "the disk is in use again: {:?}",
        larder.tiers()
    );
    let _ = pages.invalidate(&1).await.unwrap();
    assert_eq!(read(&pages, 1, b"newest".to_vec()).await.0, b"newest");
}
