//! Fault 12: one message of the bus in a hundred does not arrive. Every gap is found, and made up for
//! from the journal; nothing old is read behind a token meanwhile, and nothing at all in the end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use larder::clock::{Clock, SystemClock};
use larder::{Cache, Larder, Read};
use larder_redis::{Redis, RedisBus};
use larder_testkit::{FaultyBus, RedisServer, seeds};

const MESSAGES: u64 = 2_000;
const KEYS: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(30);

type Rows = Cache<u64, u64>;
type Line = FaultyBus<RedisBus>;

fn open(server: &RedisServer) -> (Larder, Line, Rows) {
    let line = FaultyBus::new(RedisBus::new(&server.url()).unwrap());
    let builder = Larder::builder("t").shared(Redis::new(&server.url()).unwrap());
    let larder = builder.backplane(line.clone()).build().unwrap();
    let rows = larder.cache("rows").memory_ttl("1h").build().unwrap();
    (larder, line, rows)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let clock = SystemClock::new();
    while !is_so() {
        let is_late = clock.monotonic() >= PATIENCE.as_millis() as u64;
        assert!(!is_late, "still waiting: {what}");
        clock.sleep(Duration::from_millis(2)).await;
    }
}

async fn load(rows: &Rows, read: Read, key: u64, version: &AtomicU64) -> u64 {
    let newest = version.load(SeqCst);
    let load = |_| async move { Ok::<_, io::Error>(newest) };
    *rows.with(read).get_or_load(&key, load).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_gap_is_found_and_nothing_old_is_left() {
    let server = RedisServer::start().unwrap();
    for seed in seeds(1) {
        let ((here, _, writes), (there, line, reads)) = (open(&server), open(&server));
        let versions: Vec<AtomicU64> = (0..KEYS).map(AtomicU64::new).collect();
        for (key, version) in (0..KEYS).zip(&versions) {
            load(&writes, Read::new(), key, version).await;
            load(&reads, Read::new(), key, version).await;
        }
        let is_well = |larder: &Larder| larder.bus().is_some_and(|bus| bus.healthy);
        until("both listen", || is_well(&here) && is_well(&there)).await;
        let before = there.bus().unwrap().missing;
        line.drop_share(0.01, seed.number());
        for message in 0..MESSAGES {
            let key = message % KEYS;
            let version = &versions[key as usize];
            let newest = version.fetch_add(KEYS, SeqCst) + KEYS;
            let told = writes.invalidate(&key).await.unwrap();
            // What a busy machine has queued promises nothing yet.
            if let Some(token) = told.token() {
                let seen = load(&reads, Read::new().after(token), key, version).await;
                assert!(seen >= newest, "{seen}, and {newest} was known: {message}");
            }
        }
        assert!(line.lost() > 0, "nothing was lost");
        line.heal();
        let missing = || there.bus().unwrap().missing - before;
        until("every gap is found", || missing() >= line.lost()).await;
        until("all is made up for", || is_well(&there)).await;
        assert_eq!(missing(), line.lost(), "what was lost, and no more");
        for (key, version) in (0..KEYS).zip(&versions) {
            let seen = load(&reads, Read::new(), key, version).await;
            assert_eq!(seen, version.load(SeqCst), "{key}");
        }
    }
}
