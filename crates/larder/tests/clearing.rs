//! A clear costs its caller the same, however much was in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::mpsc::{Sender, channel};
use std::thread::ThreadId;
use std::time::Duration;

use larder::{Cache, Larder};

const ENTRIES: u64 = 10_000;
const PATIENCE: Duration = Duration::from_secs(30);

/// Says on which thread it was dropped.
struct Witness(Sender<ThreadId>);

impl Drop for Witness {
    fn drop(&mut self) {
        // Nobody listens any more where the test has failed.
        let _ = self.0.send(std::thread::current().id());
    }
}

#[tokio::test]
async fn many_entries_are_dropped_by_another_thread_than_the_one_that_clears() {
    let builder = Larder::local().cache("c").capacity(10 * ENTRIES);
    let cache: Cache<u64, Witness> = builder.in_memory().unwrap();
    let (dropped, threads) = channel();
    for key in 0..ENTRIES {
        cache.set_in_memory(key, Witness(dropped.clone())).unwrap();
    }
    let _receipt = cache.clear().await.unwrap();
    assert!(cache.get_in_memory(&0).is_none());
    for _ in 0..ENTRIES {
        let thread = threads.recv_timeout(PATIENCE).unwrap();
        assert_ne!(thread, std::thread::current().id());
    }
}
