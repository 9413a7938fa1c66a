//! While the bus is silent, a hit asks the server whether the value still stands, and does not have
//! it sent again.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use larder::backplane::LocalBus;
use larder::{Cache, Larder, Loaded, Read, Reason, Source};
use larder_testkit::{FaultyBus, ManualClock, RedisServer};

const VALUE_BYTES: usize = 256 << 10;
const HITS: u64 = 100;

#[tokio::test]
async fn a_value_of_256_kib_is_confirmed_by_its_front() {
    let server = RedisServer::start().unwrap();
    let clock = ManualClock::new();
    let line = FaultyBus::new(LocalBus::new());
    let larder = Larder::builder("t")
        .clock(clock.clone())
        .shared(store_at(&server))
        .backplane(line.clone())
        .build()
        .unwrap();
    let pages: Cache<u64, Vec<u8>> = larder.cache("page").memory_ttl("1h").build().unwrap();
    // Noise, which no codec makes smaller.
    let page: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
        .take(VALUE_BYTES)
        .collect();
    let load =
        |_| async move { Ok::<_, std::io::Error>(Loaded::value(page.clone()).tags(["a", "b"])) };
    pages.get_or_load(&1, load).await.unwrap();
    line.silence();
    clock.advance(Duration::from_secs(3));

    server.command(&["CONFIG", "RESETSTAT"]).unwrap();
    let before = info(&server, "stats", "total_net_output_bytes");
    for _ in 0..HITS {
        let read = pages.with(Read::new()).get_explained(&1).await.unwrap();
        assert_eq!(read.value.unwrap().len(), VALUE_BYTES);
        let told = (read.outcome.source, read.outcome.reason);
        assert_eq!(told, (Source::Memory, Reason::Confirmed));
    }
    let sent = info(&server, "stats", "total_net_output_bytes") - before;
    println!("{} bytes for each of {HITS} hits", sent / HITS);
    assert!(sent < HITS * 512, "{sent} bytes");
    // The front of the entry, and the records of its cache and of two tags.
    assert_eq!(calls(&server, "getrange"), 4 * HITS);
    assert_eq!(calls(&server, "evalsha") + calls(&server, "eval"), 0);

    // What somebody else wrote is sent whole, once it is known to be something else.
    let other = Larder::builder("t")
        .clock(clock.clone())
        .without_backplane();
    let other = other.shared(store_at(&server)).build().unwrap();
    let elsewhere: Cache<u64, Vec<u8>> = other.cache("page").build().unwrap();
    let _ = elsewhere.set(1, vec![7]).await.unwrap();
    let read = pages.with(Read::new()).get_explained(&1).await.unwrap();
    assert_eq!(read.value.as_deref(), Some(&vec![7]));
    assert_eq!(read.outcome.source, Source::Tier("redis".into()));
}
