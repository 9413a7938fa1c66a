//! What nobody holds any more is let go of.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::sync::{Arc, Weak};

use larder::{Cache, Larder};
use larder_testkit::{ManualClock, MemoryStore};

async fn use_a_larder() -> (Weak<ManualClock>, Weak<String>) {
    let clock = ManualClock::new();
    let (weak, store) = (Arc::downgrade(&clock), MemoryStore::new(clock.clone()));
    let larder = Larder::builder("t")
        .shared(store)
        .without_backplane()
        .clock(clock)
        .build()
        .unwrap();
    let cache: Cache<u64, String> = larder.cache("c").build().unwrap();
    let load = |_| async { Ok::<_, io::Error>("value".to_owned()) };
    let value = cache.get_or_load(&1, load).await.unwrap();
    larder.settle().await;
    (weak, Arc::downgrade(&value))
}

#[tokio::test]
async fn a_larder_that_nobody_holds_is_freed_with_its_stores_and_entries() {
    let (clock, value) = use_a_larder().await;
    assert!(
        clock.upgrade().is_none(),
        "the store and the larder held the clock"
    );
    assert!(value.upgrade().is_none(), "memory held the value");
}

#[tokio::test]
async fn a_cache_outlives_the_handle_that_built_it() {
    let cache: Cache<u64, String> = Larder::local().cache("c").in_memory().unwrap();
    cache.set_in_memory(1, "value".to_owned()).unwrap();
    assert_eq!(
        cache.get_in_memory(&1).as_deref().map(String::as_str),
        Some("value")
    );
}
