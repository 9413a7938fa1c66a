//! Three processes on one server: what one invalidates, the others read anew.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod nodes;

use larder_testkit::RedisServer;
use nodes::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_one_node_invalidates_the_others_read_anew() {
    let server = RedisServer::start().unwrap();
    hear_each_other(&Place::of(&server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_bus_that_watches_as_well() {
    let server = RedisServer::start().unwrap();
    hear_each_other(&watching(&server)).await;
}

fn watching(server: &RedisServer) -> Place {
    Place {
        watching: true,
        ..Place::of(server)
    }
}

async fn hear_each_other(place: &Place) {
    let database = Database::open().await;
    database.tag("k", &["group"]);
    let nodes = Node::three(&database, place).await;
    for what in [
        "invalidate k",
        "expire k",
        "tag group",
        "pattern k*",
        "clear",
    ] {
        for writer in 0..nodes.len() {
            for node in &nodes {
                assert_eq!(node.load("k").await, database.version("k"));
            }
            let newest = database.write("k");
            let token = token(nodes[writer].tell(what).await);
            for node in &nodes {
                assert_eq!(node.load_after(&token, "k").await, newest, "{what}");
            }
        }
    }
    let newest = database.write("k");
    let token = token(nodes[0].tell(&format!("set k {newest}")).await);
    let reads = database.reads();
    for node in &nodes {
        assert_eq!(node.load_after(&token, "k").await, newest, "set");
    }
    assert_eq!(database.reads(), reads, "what was set is in the tier");
}

/// Some hear by pub/sub and some from the server, as while a service is being changed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_both_kinds_lose_nothing_to_each_other() {
    let server = RedisServer::start().unwrap();
    let database = Database::open().await;
    let nodes = [
        Node::start(&database, &watching(&server)).await,
        Node::start(&database, &Place::of(&server)).await,
        Node::start(&database, &watching(&server)).await,
    ];
    for round in 0..6 {
        for node in &nodes {
            assert_eq!(node.load("k").await, database.version("k"));
        }
        let newest = database.write("k");
        let token = token(nodes[round % 3].tell("invalidate k").await);
        for node in &nodes {
            assert_eq!(node.load_after(&token, "k").await, newest, "round {round}");
        }
    }
}
