//! Faults 33 and 34: somebody sets the clock of Redis an hour ahead, or two hours back. A TTL of
//! 60 s becomes 7,259 s there. What is fresh is decided by our clock all the same, nobody is
//! stranded on a lease that does not end, and nothing old is stored or served.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it stands, and says what it saw"
)]

mod nodes;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use larder::clock::{Clock, SystemClock};
use larder::{Cache, Larder};
use larder_redis::Redis;
use larder_testkit::{Gate, ManualClock, Offset, RedisServer, Reply, seeds};
use nodes::table::{Table, name};
use nodes::*;

const MINUTE: Duration = Duration::from_secs(60);
const AHEAD: Offset = Offset::Ahead(Duration::from_secs(3_600));
const BACK: Offset = Offset::Behind(Duration::from_secs(2 * 3_600));
const RIGHT: Offset = Offset::Ahead(Duration::ZERO);

type Rows = Cache<String, u64>;

/// A process whose own clock the test turns. It has no bus: that would fall silent as time flies.
fn by_hand(server: &RedisServer, clock: &Arc<ManualClock>) -> Larder {
    let builder = Larder::builder("t").clock(clock.clone());
    let builder = builder.shared(Redis::new(&server.url()).unwrap());
    builder.without_backplane().build().unwrap()
}

/// A process on the machine's clock, patient with a busy machine.
fn by_the_machine(server: &RedisServer) -> Larder {
    let builder = Larder::builder("t").tier_budget(Duration::from_secs(5));
    let builder = builder.shared(Redis::new(&server.url()).unwrap());
    builder.build().unwrap()
}

async fn found(version: u64) -> io::Result<u64> {
    Ok(version)
}

/// How long the server would keep an entry, in milliseconds.
fn time_to_live(server: &RedisServer, key: &str) -> i64 {
    match server.command(&["PTTL", key]).unwrap() {
        Reply::Integer(millis) => millis,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_entry_that_the_server_keeps_for_hours_is_served_for_its_minute() {
    let server = RedisServer::start_with_clock(&[]).unwrap();
    let clock = ManualClock::new();
    let [here, there] = [(); 2].map(|()| by_hand(&server, &clock));
    let rows = |larder: &Larder| -> Rows { larder.cache("rows").ttl("60s").build().unwrap() };
    let (here, there) = (rows(&here), rows(&there));
    let _ = here.set("k".to_owned(), 1).await.unwrap();
    server.move_clock(BACK).unwrap();
    let left = time_to_live(&server, "t:rows@1:k");
    assert!((7_200_000..=7_260_000).contains(&left), "{left} ms");
    clock.advance(Duration::from_secs(59));
    assert_eq!(there.get("k").await.unwrap().as_deref(), Some(&1));
    assert_eq!(here.get("k").await.unwrap().as_deref(), Some(&1));
    clock.advance(Duration::from_secs(1));
    // Redis has it still, and so has the memory of both.
    assert!(time_to_live(&server, "t:rows@1:k") > 7_000_000);
    assert_eq!(there.get("k").await.unwrap(), None);
    assert_eq!(here.get("k").await.unwrap(), None);
    let empty = rows(&by_hand(&server, &clock));
    assert_eq!(empty.get("k").await.unwrap(), None);
    assert_eq!(*empty.get_or_load("k", |_| found(2)).await.unwrap(), 2);
    assert_eq!(here.get("k").await.unwrap().as_deref(), Some(&2));
}

#[tokio::test]
async fn grace_ends_by_our_clock_too() {
    let server = RedisServer::start_with_clock(&[]).unwrap();
    let clock = ManualClock::new();
    let larder = by_hand(&server, &clock);
    let rows = |larder: &Larder| -> Rows {
        let rows = larder.cache("rows").ttl("60s").grace("60s");
        rows.build().unwrap()
    };
    let _ = rows(&larder).set("k".to_owned(), 1).await.unwrap();
    server.move_clock(BACK).unwrap();
    clock.advance(MINUTE + Duration::from_secs(59));
    let other = by_hand(&server, &clock);
    let stale = rows(&other).get("k").await.unwrap();
    assert_eq!(stale.as_deref(), Some(&1), "stale, within its grace");
    clock.advance(Duration::from_secs(1));
    let last = by_hand(&server, &clock);
    assert_eq!(rows(&last).get("k").await.unwrap(), None);
    assert!(time_to_live(&server, "t:rows@1:k") > 7_000_000);
}

#[tokio::test]
async fn memory_asks_again_by_our_clock_whatever_time_the_server_has() {
    let server = RedisServer::start_with_clock(&[]).unwrap();
    let clock = ManualClock::new();
    let [here, there] = [(); 2].map(|()| by_hand(&server, &clock));
    let rows = |larder: &Larder| -> Rows { larder.cache("rows").ttl("12h").build().unwrap() };
    let (here, there) = (rows(&here), rows(&there));
    for (version, offset) in [(1, BACK), (3, AHEAD), (5, BACK)] {
        let _ = here.set("k".to_owned(), version).await.unwrap();
        server.move_clock(offset).unwrap();
        let _ = there.set("k".to_owned(), version + 1).await.unwrap();
        // Without a bus, memory may be behind for the minute that the memory TTL is.
        clock.advance(MINUTE);
        let seen = here.get("k").await.unwrap();
        assert_eq!(seen.as_deref(), Some(&(version + 1)), "{offset:?}");
    }
}

#[tokio::test]
async fn what_the_server_drops_too_early_is_loaded_anew() {
    let server = RedisServer::start_with_clock(&[]).unwrap();
    let clock = ManualClock::new();
    let [here, there] = [(); 2].map(|()| by_hand(&server, &clock));
    let rows = |larder: &Larder| -> Rows { larder.cache("rows").ttl("60s").build().unwrap() };
    let (here, there) = (rows(&here), rows(&there));
    let _ = here.set("k".to_owned(), 1).await.unwrap();
    server.move_clock(AHEAD).unwrap();
    assert_eq!(there.get("k").await.unwrap(), None);
    assert_eq!(*there.get_or_load("k", |_| found(2)).await.unwrap(), 2);
    // What is filled from then on lives as long as it should.
    let left = time_to_live(&server, "t:rows@1:k");
    assert!((50_000..=60_000).contains(&left), "{left} ms");
}

/// A reader whose load waits at the gate.
fn loading(rows: &Rows, gate: &Gate, version: u64) -> tokio::task::JoinHandle<u64> {
    let (rows, gate) = (rows.clone(), gate.clone());
    tokio::spawn(async move {
        let load = |_| async move {
            gate.wait().await;
            Ok::<_, io::Error>(version)
        };
        *rows.get_or_load("k", load).await.unwrap()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_under_way_is_refused_after_an_invalidation_whatever_its_lease_says() {
    for offset in [AHEAD, BACK] {
        let server = RedisServer::start_with_clock(&[]).unwrap();
        let [here, there] = [(); 2].map(|()| by_the_machine(&server));
        let rows = |larder: &Larder| -> Rows { larder.cache("rows").build().unwrap() };
        let (rows_here, rows_there) = (rows(&here), rows(&there));
        // The cache is known to the server: nothing but the lease forbids the fill.
        rows_here.get_or_load("other", |_| found(1)).await.unwrap();
        let gate = Gate::new();
        let before = loading(&rows_here, &gate, 1);
        gate.arrived(1).await;
        server.move_clock(offset).unwrap();
        assert!(rows_there.invalidate("k").await.unwrap().is_acked());
        gate.open();
        assert_eq!(before.await.unwrap(), 1, "its caller came before");
        assert_eq!(rows_there.get("k").await.unwrap(), None, "{offset:?}");
        let load = rows_here.get_or_load("k", |_| found(2)).await;
        assert_eq!(*load.unwrap(), 2, "{offset:?}");
        let seen = rows_there.get("k").await.unwrap();
        assert_eq!(seen.as_deref(), Some(&2), "{offset:?}: stored");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_longer_for_a_lease_than_lease_wait() {
    const WAIT: Duration = Duration::from_millis(300);
    // Set back by minutes, the lease lasts that much longer.
    for offset in [AHEAD, BACK, Offset::Behind(5 * MINUTE)] {
        let server = RedisServer::start_with_clock(&[]).unwrap();
        let [here, there] = [(); 2].map(|()| by_the_machine(&server));
        let rows = |larder: &Larder| -> Rows {
            let rows = larder.cache("rows").lease("1m").lease_wait(WAIT);
            rows.build().unwrap()
        };
        let (rows_here, rows_there) = (rows(&here), rows(&there));
        let gate = Gate::new();
        let slow = loading(&rows_here, &gate, 1);
        gate.arrived(1).await;
        server.move_clock(offset).unwrap();
        let clock = SystemClock::new();
        let quick = rows_there.get_or_load("k", |_| found(2)).await;
        assert_eq!(*quick.unwrap(), 2);
        // Generous to a busy machine, and far from the minute of the lease.
        let waited = clock.monotonic();
        assert!(waited < 15_000, "{offset:?}: {waited} ms");
        gate.open();
        slow.await.unwrap();
    }
}

/// The one who held it was killed, so nobody gives the lease back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_a_process_that_was_killed_ends_although_the_clock_was_set_back() {
    let server = RedisServer::start_with_clock(&[]).unwrap();
    let database = Database::open().await;
    let place = Place {
        lease: 1_000,
        ..Place::of(&server)
    };
    let killed = Node::start(&database, &place).await;
    let node = Node::start(&database, &place).await;
    let gate = database.hold("k");
    let lost = killed.try_ask("load k", PATIENCE);
    let meanwhile = async {
        gate.arrived(1).await;
        killed.process().kill9();
        database.let_go("k");
        database.write("k");
        server.move_clock(BACK).unwrap();
    };
    let (answer, ()) = tokio::join!(lost, meanwhile);
    assert!(answer.is_err(), "{answer:?}");
    // Whoever comes is served, and before long what is loaded is stored for all again.
    assert_eq!(node.load("k").await, 1);
    let clock = SystemClock::new();
    loop {
        let fresh = Node::start(&database, &place).await;
        let reads = database.reads();
        assert_eq!(fresh.load("k").await, 1);
        if database.reads() == reads {
            break;
        }
        let waited = clock.monotonic();
        assert!(waited < 60_000, "nothing is stored for two hours");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schema_versions_are_remembered_through_every_jump() {
    let server = RedisServer::start_with_clock(&[]).unwrap();
    for (round, offset) in [RIGHT, AHEAD, BACK, AHEAD, RIGHT].into_iter().enumerate() {
        let clock = ManualClock::new();
        let new = || -> Rows {
            let larder = by_hand(&server, &clock);
            larder.cache("rows").ttl("1d").version(2).build().unwrap()
        };
        let _ = new().set("k".to_owned(), round as u64).await.unwrap();
        server.move_clock(offset).unwrap();
        let larder = by_hand(&server, &clock);
        let old: Rows = larder.cache("rows").ttl("1d").version(1).build().unwrap();
        assert!(old.invalidate("k").await.unwrap().is_acked());
        assert_eq!(new().get("k").await.unwrap(), None, "{offset:?}");
    }
}

/// Each offset is kept for so many writes.
const WRITES: u64 = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_read_nothing_stale_while_the_clock_jumps() {
    let server = RedisServer::start_with_clock(&[]).unwrap();
    let database = Database::open().await;
    let place = Place::of(&server);
    let nodes = vec![
        Node::start(&database, &place).await,
        Node::start(&database, &place).await,
    ];
    let table = Table::new(&database, nodes, 8);
    for node in &table.nodes {
        node.load(&name(0)).await;
        node.until_well().await;
    }
    for seed in seeds(1) {
        let jumps = async {
            let mut wanted = 0;
            for offset in [RIGHT, AHEAD, BACK, RIGHT, BACK, AHEAD] {
                server.move_clock(offset).unwrap();
                wanted += WRITES;
                let enough = table.has_written(wanted);
                tokio::time::timeout(PATIENCE, enough).await.unwrap();
            }
        };
        table.use_until(seed.rng(), jumps).await;
    }
    let (reads, writes) = table.counts();
    println!("{reads} reads, {writes} writes, 6 jumps");
}
