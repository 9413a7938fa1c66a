//! Promise 4 on a real server: killed, stopped or never there, it costs a read at most one
//! budget, then nothing, and is used again soon after it is back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::print_stdout,
    reason = "the figures are worth seeing beside the verdict"
)]

use std::io;
use std::time::Duration;

use larder::clock::{Clock, Millis, SystemClock};
use larder::{Cache, Delivery, Larder, Read, Source, TierHealth};
use larder_redis::Redis;
use larder_testkit::RedisServer;

/// The default budget of the tiers, and what deadline tests allow of a bound.
const BUDGET: Millis = 100;
const SLACK: Millis = 3;

type Names = Cache<u64, String>;

/// A cache whose memory never answers by itself, so that every read asks Redis.
fn open(url: &str) -> (Larder, Names) {
    let larder = Larder::builder("t")
        .shared(Redis::new(url).unwrap())
        .build()
        .unwrap();
    let names = larder.cache("names").memory_ttl("0s").build().unwrap();
    (larder, names)
}

async fn read(names: &Names, key: u64) -> (String, Source) {
    let load = |_| async { Ok::<_, io::Error>("loaded".to_owned()) };
    let read = names
        .with(Read::new())
        .get_or_load_explained(&key, load)
        .await
        .unwrap();
    ((*read.value).clone(), read.outcome.source)
}

async fn timed(clock: &SystemClock, names: &Names, key: u64) -> Millis {
    let began = clock.monotonic();
    read(names, key).await;
    clock.monotonic() - began
}

fn health(larder: &Larder) -> TierHealth {
    larder.tiers()[0].health
}

/// Reads until the breaker is open; every read within one budget.
async fn until_open(larder: &Larder, names: &Names) {
    let clock = SystemClock::new();
    let mut slowest = 0;
    for key in 1_000.. {
        slowest = slowest.max(timed(&clock, names, key).await);
        if health(larder) == TierHealth::Open {
            break;
        }
        assert!(
            key < 1_100,
            "a hundred reads of a server that is gone leave it in use"
        );
    }
    assert!(
        slowest <= SLACK * BUDGET,
        "the slowest read took {slowest} ms"
    );
    println!("slowest read before the breaker opened: {slowest} ms");
}

/// With the breaker open nobody asks the server, so that reads take no time.
async fn reads_take_no_time(names: &Names) {
    let clock = SystemClock::new();
    let mut times = Vec::new();
    for key in 2_000..2_100 {
        times.push(timed(&clock, names, key).await);
    }
    times.sort_unstable();
    assert!(
        times[50] <= SLACK,
        "half of the reads took {} ms or more",
        times[50]
    );
    println!(
        "with the breaker open: median {} ms, slowest {} ms",
        times[50], times[99]
    );
}

async fn until_closed(larder: &Larder) {
    let clock = SystemClock::new();
    while health(larder) == TierHealth::Open {
        assert!(clock.monotonic() <= SLACK * 2_000, "not healed after 6 s");
        clock.sleep(Duration::from_millis(5)).await;
    }
    println!("healed after {} ms", clock.monotonic());
}

async fn stored(names: &Names, key: u64) {
    assert_eq!(
        read(names, key).await,
        ("loaded".to_owned(), Source::Loader)
    );
    assert_eq!(
        read(names, key).await,
        ("loaded".to_owned(), Source::Tier("redis".into()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_back() {
    let server = RedisServer::start().unwrap();
    let (larder, names) = open(&server.url());
    stored(&names, 1).await;
    server.kill9();
    until_open(&larder, &names).await;
    reads_take_no_time(&names).await;
    server.restart().unwrap();
    until_closed(&larder).await;
    stored(&names, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_and_continued() {
    let server = RedisServer::start().unwrap();
    let (larder, names) = open(&server.url());
    stored(&names, 1).await;
    server.stop_signal().unwrap();
    until_open(&larder, &names).await;
    reads_take_no_time(&names).await;
    server.cont_signal().unwrap();
    until_closed(&larder).await;
    stored(&names, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_there_at_the_start() {
    let server = RedisServer::start().unwrap();
    server.kill9();
    let (larder, names) = open(&server.url());
    until_open(&larder, &names).await;
    reads_take_no_time(&names).await;
    server.restart().unwrap();
    until_closed(&larder).await;
    stored(&names, 2).await;
}

/// The server keeps its data while it is stopped, so the old value is there when it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_invalidated_while_it_was_stopped_is_not_read_when_it_goes_on() {
    let server = RedisServer::start().unwrap();
    let (larder, names) = open(&server.url());
    assert_eq!(
        names.set(1, "old".to_owned()).await.unwrap().delivery(),
        Delivery::Acked
    );
    server.stop_signal().unwrap();
    assert_eq!(
        names.invalidate(&1).await.unwrap().delivery(),
        Delivery::Queued
    );
    // The entry, and the record of those that depend on it.
    assert_eq!(larder.tiers()[0].owed, 2);
    assert_eq!(read(&names, 1).await.0, "loaded");
    server.cont_signal().unwrap();
    for _ in 0..100 {
        assert_eq!(read(&names, 1).await.0, "loaded");
    }
    until_closed(&larder).await;
    assert_eq!(read(&names, 1).await.0, "loaded");
    assert_eq!((larder.tiers()[0].owed, larder.tiers()[0].repaired), (0, 2));
}

/// Neither bus nor tier can be asked, and the source fails as well: what memory holds is all there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_nobody_to_ask_a_stale_entry_stands_in_for_a_load_that_fails() {
    let server = RedisServer::start().unwrap();
    server.kill9();
    let (larder, _) = open(&server.url());
    let prices: Cache<u64, String> = larder
        .cache("prices")
        .ttl("1ms")
        .stale_on_error("1h")
        .build()
        .unwrap();
    let read = prices.get_or_load(&1, |_| async { Ok::<_, io::Error>("old".to_owned()) });
    assert_eq!(*read.await.unwrap(), "old");
    SystemClock::new().sleep(Duration::from_millis(5)).await;
    for _ in 0..10 {
        let fails = |_| async { Err::<String, _>(io::Error::other("the source is gone")) };
        assert_eq!(*prices.get_or_load(&1, fails).await.unwrap(), "old");
    }
}
