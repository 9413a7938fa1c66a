//! Fault 8: a refresh is slow and fails in the end, while another process has succeeded. The newer
//! value survives, in Redis and in the memory of both.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod nodes;

use std::io;
use std::time::Duration;

use larder::{Cache, Larder, Read};
use larder_redis::Redis;
use larder_testkit::{Gate, RedisServer, settle};
use nodes::*;

type Rows = Cache<String, u64>;

/// How the refresh ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Fails,
    Panics,
    RunsOutOfTime,
}

/// How the other process comes by the newer value.
#[derive(Clone, Copy, Debug)]
enum Success {
    /// It sets it.
    Sets,
    /// The lease of the refresh has ended, and it loads.
    Loads,
    /// It invalidates, and loads.
    Invalidates,
}

async fn refresh(gate: Gate, end: End) -> io::Result<u64> {
    match end {
        End::RunsOutOfTime => std::future::pending().await,
        _ => gate.wait().await,
    }
    match end {
        End::Panics => panic!("the loader broke"),
        _ => Err(io::Error::other("no route")),
    }
}

fn open(server: &RedisServer) -> (Larder, Rows) {
    let builder = Larder::builder("t").tier_budget(Duration::from_secs(5));
    let builder = builder.shared(Redis::new(&server.url()).unwrap());
    let larder = builder.build().unwrap();
    let rows = larder.cache("rows").ttl("1h").grace("1h");
    let rows = rows.lease("300ms").load_deadline("2s").error_throttle("1h");
    let rows = rows.build().unwrap();
    (larder, rows)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_value_of_another_process_survives_a_refresh_that_fails() {
    for end in [End::Fails, End::Panics, End::RunsOutOfTime] {
        for success in [Success::Sets, Success::Loads, Success::Invalidates] {
            survives(end, success).await;
        }
    }
}

async fn survives(end: End, success: Success) {
    let here = format!("{end:?}, {success:?}");
    let server = RedisServer::start().unwrap();
    let database = Database::open().await;
    let (larder, rows) = open(&server);
    let node = Node::start(&database, &Place::of(&server)).await;
    let _ = rows.set("k".to_owned(), 0).await.unwrap();
    node.load("k").await;
    node.until_well().await;
    // Stale, and served while it is refreshed.
    assert!(rows.expire("k").await.unwrap().is_acked());
    let gate = Gate::new();
    let (held, waiting) = (gate.clone(), Gate::new());
    let begun = waiting.clone();
    waiting.open();
    let stale = rows.get_or_load("k", move |_| async move {
        begun.wait().await;
        refresh(held, end).await
    });
    assert_eq!(*stale.await.unwrap(), 0, "{here}");
    waiting.arrived(1).await;
    let newest = database.write("k");
    let told = match success {
        Success::Sets => Some(node.tell(&format!("set k {newest}")).await),
        Success::Invalidates => Some(node.invalidate("k").await),
        // The lease of the refresh ends before the refresh does. Nobody is told of a fill.
        Success::Loads => None,
    };
    node.until_fresh("k", newest).await;
    if let Some(told) = told {
        let heard = Read::new().after(token(told).parse().unwrap());
        let seen = rows.with(heard).get("k").await.unwrap();
        assert_eq!(seen.as_deref(), Some(&newest), "{here}: heard");
    }
    gate.open();
    settle(&larder).await;
    assert_eq!(
        node.load("k").await,
        newest,
        "{here}: in the other's memory"
    );
    let empty = Node::start(&database, &Place::of(&server)).await;
    let reads = database.reads();
    assert_eq!(empty.load("k").await, newest, "{here}");
    assert_eq!(database.reads(), reads, "{here}: Redis has it still");
    let kept = rows.get_in_memory("k");
    let kept = kept.as_deref().copied();
    match success {
        // It has not heard of the load, and serves what is stale within its grace.
        Success::Loads => assert!(
            kept.is_none_or(|kept| [0, newest].contains(&kept)),
            "{here}"
        ),
        _ => assert_eq!(kept, Some(newest), "{here}: in its own memory"),
    }
    let strict = rows.with(Read::new().max_stale(Duration::ZERO));
    let never = |_| async { Err::<u64, _>(io::Error::other("there is no need to load")) };
    let seen = strict.get_or_load("k", never).await.unwrap();
    assert_eq!(*seen, newest, "{here}: asked for what is fresh");
    assert_eq!(*rows.get_or_load("k", never).await.unwrap(), newest);
}
