//! Statistics of the bus are asked for while it is at work.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use larder::backplane::LocalBus;
use larder::clock::SystemClock;
use larder::{Cache, Larder};
use larder_testkit::MemoryStore;

/// Asking holds up nobody, and nobody holds up who asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn asking_again_and_again_stops_nothing() {
    let bus = LocalBus::new();
    let [one, other] = [(); 2].map(|()| {
        let store = MemoryStore::new(Arc::new(SystemClock::new()));
        let builder = Larder::builder("s").backplane(bus.clone()).shared(store);
        builder.build().unwrap()
    });
    let over = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = (0..2)
        .map(|_| {
            let (larder, over) = (other.clone(), Arc::clone(&over));
            std::thread::spawn(move || {
                while !over.load(SeqCst) {
                    assert!(larder.bus().is_some());
                }
            })
        })
        .collect();
    let [told, heard]: [Cache<u64, u64>; 2] =
        [&one, &other].map(|larder| larder.cache("c").build().unwrap());
    heard.get(&0).await.unwrap();
    let telling = async {
        for n in 0..20_000 {
            assert!(told.invalidate(&n).await.unwrap().is_acked());
        }
        while other.bus().unwrap().heard == 0 {
            tokio::task::yield_now().await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(20), telling).await;
    over.store(true, SeqCst);
    assert!(done.is_ok(), "it stands still");
    for asker in askers {
        asker.join().unwrap();
    }
}
