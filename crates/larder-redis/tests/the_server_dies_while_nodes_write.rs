//! The server of three nodes is killed, or stopped, while they go on writing: each of them reads
//! what it wrote, and all of them what all wrote, as soon as the server is back.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it stands, and says how long things took"
)]

mod nodes;

use larder::clock::{Clock, SystemClock};
use larder_testkit::RedisServer;
use nodes::*;

const KEYS: usize = 20;
/// How long the server is away, in milliseconds.
const AWAY: u64 = 5_000;
/// All nodes are to be fresh after 2 s; a busy machine gets three times as much.
const FRESH_WITHIN: u64 = 3 * 2_000;

fn key(at: usize) -> String {
    format!("k{at}")
}

async fn read_all(nodes: &[Node; 3]) {
    for node in nodes {
        for at in 0..KEYS {
            node.load(&key(at)).await;
        }
    }
}

/// Writes for a while, by one node after the other, and reads each row where it was written.
async fn write_for_a_while(database: &Database, nodes: &[Node; 3]) {
    let clock = SystemClock::new();
    let mut queued = 0;
    for round in 0..10_000 {
        if clock.monotonic() >= AWAY {
            break;
        }
        let (node, key) = (&nodes[round % 3], key(round % KEYS));
        let version = database.write(&key);
        if node.invalidate(&key).await == Told::Queued {
            queued += 1;
        }
        let seen = node.load(&key).await;
        assert!(seen >= version, "{seen} after {version} was invalidated");
    }
    assert!(queued > 0, "the server was never away");
}

/// Every node reads the newest version of every row, soon.
async fn all_are_fresh(database: &Database, nodes: &[Node; 3]) {
    let clock = SystemClock::new();
    for node in nodes {
        for at in 0..KEYS {
            let key = key(at);
            node.until_fresh(&key, database.version(&key)).await;
        }
    }
    let took = clock.monotonic();
    println!("fresh after {took} ms");
    assert!(took <= FRESH_WITHIN, "{took} ms");
    for node in nodes {
        node.until_well().await;
        for at in 0..KEYS {
            let key = key(at);
            assert_eq!(node.load(&key).await, database.version(&key), "{key}");
        }
    }
}

async fn survive(
    server: RedisServer,
    away: impl FnOnce(&RedisServer),
    back: impl FnOnce(&RedisServer),
) {
    let database = Database::open().await;
    let place = Place::of(&server);
    let nodes = Node::three(&database, &place).await;
    read_all(&nodes).await;
    away(&server);
    write_for_a_while(&database, &nodes).await;
    tokio::task::block_in_place(|| back(&server));
    all_are_fresh(&database, &nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_back_empty() {
    let server = RedisServer::start().unwrap();
    survive(server, RedisServer::kill9, |server| {
        server.restart().unwrap()
    })
    .await;
}

/// What is invalidated while it is away is in it when it returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_back_with_all_that_it_held() {
    let keeps = ["--appendonly", "yes", "--appendfsync", "always"];
    let server = RedisServer::start_with(&keeps).unwrap();
    survive(server, RedisServer::kill9, |server| {
        server.restart().unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_and_continued() {
    let server = RedisServer::start().unwrap();
    survive(
        server,
        |server| server.stop_signal().unwrap(),
        |server| server.cont_signal().unwrap(),
    )
    .await;
}

/// Nodes that were started while nobody was there find each other once the server comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_there_at_the_start() {
    let server = RedisServer::start().unwrap();
    server.kill9();
    let database = Database::open().await;
    let nodes = Node::three(&database, &Place::of(&server)).await;
    read_all(&nodes).await;
    write_for_a_while(&database, &nodes).await;
    tokio::task::block_in_place(|| server.restart().unwrap());
    all_are_fresh(&database, &nodes).await;
    let newest = database.write("k0");
    let token = token(nodes[0].invalidate("k0").await);
    assert_eq!(nodes[1].load_after(&token, "k0").await, newest);
}
