//! A server that takes rights away, is out of memory, loses records and scripts, or holds things of
//! others under our keys: reads are served, and what is invalidated is gone everywhere.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it stands, and says how long things took"
)]

mod nodes;

use larder::clock::{Clock, SystemClock};
use larder_testkit::{RedisServer, Reply};
use nodes::*;

/// A channel that is revoked shows within a second; a busy machine gets three times as much.
const SHOWN_WITHIN: u64 = 3 * 1_000;

async fn three_that_are_well(database: &Database, place: &Place) -> [Node; 3] {
    let nodes = Node::three(database, place).await;
    for node in &nodes {
        node.load("k").await;
        node.until_well().await;
    }
    nodes
}

#[track_caller]
fn command(server: &RedisServer, line: &str) -> Reply {
    let words: Vec<&str> = line.split(' ').collect();
    let reply = server.command(&words).unwrap();
    assert!(!matches!(reply, Reply::Error(_)), "{line}: {reply:?}");
    reply
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_is_revoked_shows_at_once() {
    let server = RedisServer::start().unwrap();
    command(&server, "ACL SETUSER shop on >secret ~t:* &t:* +@all");
    let database = Database::open().await;
    let place = Place {
        user: "shop:secret@".to_owned(),
        ..Place::of(&server)
    };
    let nodes = three_that_are_well(&database, &place).await;
    command(&server, "ACL SETUSER shop resetchannels");
    let clock = SystemClock::new();
    for node in &nodes {
        node.until("healthy", |healthy| healthy == 0).await;
    }
    let took = clock.monotonic();
    println!("shown after {took} ms");
    assert!(took <= SHOWN_WITHIN, "{took} ms");
    // Memory is looked up in the tier, which still takes invalidations.
    let newest = database.write("k");
    assert_eq!(nodes[0].invalidate("k").await, Told::Queued);
    for node in &nodes {
        assert_eq!(node.load("k").await, newest);
    }
    command(&server, "ACL SETUSER shop &t:*");
    for node in &nodes {
        node.until_well().await;
        assert_eq!(node.load("k").await, newest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_memory_nothing_stale_is_served_and_invalidations_get_through() {
    let server = RedisServer::start().unwrap();
    let database = Database::open().await;
    for key in ["a", "b", "c"] {
        database.tag(key, &["group"]);
    }
    let nodes = three_that_are_well(&database, &Place::of(&server)).await;
    for node in &nodes {
        for key in ["a", "b", "c"] {
            assert_eq!(node.load(key).await, 0);
        }
    }
    command(&server, "CONFIG SET maxmemory-policy noeviction");
    command(&server, "CONFIG SET maxmemory 1");
    assert!(matches!(
        server.command(&["SET", "x", "y"]).unwrap(),
        Reply::Error(_)
    ));
    for (what, key) in [("invalidate a", "a"), ("tag group", "b"), ("clear", "c")] {
        let newest = database.write(key);
        let told = nodes[0].tell(what).await;
        assert_eq!(nodes[0].load(key).await, newest, "{what}");
        for node in &nodes {
            node.until_fresh(key, newest).await;
        }
        println!("{what}: {told:?}");
    }
    // Nobody holds on to a tier that is full: it has no entry of before.
    let late = Node::start(&database, &Place::of(&server)).await;
    for key in ["a", "b", "c"] {
        assert_eq!(late.load(key).await, database.version(key), "{key}");
    }
    command(&server, "CONFIG SET maxmemory 0");
    for node in nodes.iter().chain([&late]) {
        node.until_well().await;
        for key in ["a", "b", "c"] {
            assert_eq!(node.load(key).await, database.version(key), "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_whose_tag_record_was_evicted_is_a_miss() {
    let server = RedisServer::start().unwrap();
    let database = Database::open().await;
    database.tag("tagged", &["group"]);
    let nodes = three_that_are_well(&database, &Place::of(&server)).await;
    nodes[0].load("tagged").await;
    for record in ["t:~t%3Agroup", "t:~c%3Arows"] {
        let before = database.write("tagged");
        let token = token(nodes[0].invalidate("tagged").await);
        assert_eq!(nodes[0].load_after(&token, "tagged").await, before);
        let gone = command(&server, &format!("DEL {record}"));
        assert_eq!(gone, Reply::Integer(1), "{record}");
        // Nobody says that the row has changed, so only a miss shows it.
        let newest = database.write("tagged");
        let late = Node::start(&database, &Place::of(&server)).await;
        assert_eq!(late.load("tagged").await, newest, "{record}");
        nodes[0].invalidate("tagged").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_put_under_our_keys_is_replaced() {
    let server = RedisServer::start().unwrap();
    let database = Database::open().await;
    database.tag("tagged", &["group"]);
    let nodes = three_that_are_well(&database, &Place::of(&server)).await;
    nodes[0].load("tagged").await;
    for key in [
        "t:rows@1:tagged",
        "t:~t%3Agroup",
        "t:~c%3Arows",
        "t:~counter",
        "t:~v%3Arows",
        "t:~bus",
        "t:~journal",
        "t:~k%3Arows%3Atagged",
    ] {
        command(&server, &format!("DEL {key}"));
        command(&server, &format!("SADD {key} foreign"));
        for what in ["invalidate tagged", "tag group"] {
            let newest = database.write("tagged");
            let told = nodes[0].tell(what).await;
            assert_eq!(nodes[0].load("tagged").await, newest, "{key}");
            for node in &nodes {
                node.until_fresh("tagged", newest).await;
            }
            println!("{key}, {what}: {told:?}");
        }
        for node in &nodes {
            node.until_well().await;
        }
        let newest = database.write("tagged");
        let token = token(nodes[0].invalidate("tagged").await);
        for node in &nodes {
            assert_eq!(node.load_after(&token, "tagged").await, newest, "{key}");
        }
    }
    let late = Node::start(&database, &Place::of(&server)).await;
    let reads = database.reads();
    assert_eq!(late.load("tagged").await, database.version("tagged"));
    assert_eq!(database.reads(), reads, "the tier has it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_are_flushed_between_calls_are_loaded_again() {
    let server = RedisServer::start().unwrap();
    let database = Database::open().await;
    let nodes = three_that_are_well(&database, &Place::of(&server)).await;
    for round in 0..50 {
        command(&server, "SCRIPT FLUSH SYNC");
        let newest = database.write("k");
        let token = token(nodes[round % 3].invalidate("k").await);
        command(&server, "SCRIPT FLUSH SYNC");
        for node in &nodes {
            assert_eq!(node.load_after(&token, "k").await, newest);
        }
    }
    for node in &nodes {
        assert_eq!(node.figure("ill").await, 0);
    }
}
