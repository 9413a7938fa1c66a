//! What travels between processes and what does not, whoever joins when, whatever their clocks say,
//! and whichever tags a loader chooses.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod nodes;

use larder::clock::{Clock, SystemClock};
use larder_testkit::{ChaosProxy, RedisServer, Reply};
use nodes::*;

/// How often messages and beats were published on the server.
fn publishes(server: &RedisServer) -> u64 {
    let Reply::Bytes(text) = server.command(&["INFO", "commandstats"]).unwrap() else {
        panic!("INFO answers with text");
    };
    let text = String::from_utf8(text).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_publish:calls="));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_invalidations_of_a_key_are_few_messages() {
    let server = RedisServer::start().unwrap();
    let database = Database::open().await;
    let nodes = Node::three(&database, &Place::of(&server)).await;
    for node in &nodes {
        node.load("k").await;
        node.until_well().await;
    }
    let newest = database.write("k");
    let token = token(nodes[0].tell("storm 5000 k").await);
    assert_eq!(nodes[1].load_after(&token, "k").await, newest);
    let published = nodes[0].figure("published").await;
    // One that announces the cache is among them.
    assert!(published <= 100, "{published} messages");
    let heard = nodes[1].figure("heard").await;
    assert!(heard <= 100, "{heard} messages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fills_are_nobodys_business() {
    let server = RedisServer::start().unwrap();
    let database = Database::open().await;
    let nodes = Node::three(&database, &Place::of(&server)).await;
    for node in &nodes {
        node.load("k").await;
        node.until_well().await;
    }
    let clock = SystemClock::new();
    let before = (publishes(&server), nodes[0].figure("published").await);
    for at in 0..500 {
        nodes[0].load(&format!("k{at}")).await;
        nodes[1].load(&format!("k{at}")).await;
    }
    assert_eq!(nodes[0].figure("published").await, before.1);
    // Each node beats once in a second at most.
    let beats = 3 * (clock.monotonic() / 1_000 + 1);
    let published = publishes(&server) - before.0;
    assert!(published <= beats, "{published} messages, {beats} beats");
}

/// It cannot listen at first. What it loads then was filled before its subscription.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_node_filled_before_it_joined_survives() {
    let server = RedisServer::start().unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    let database = Database::open().await;
    let place = Place::of(&server);
    let old = Node::start(&database, &place).await;
    old.load("k").await;
    old.until_well().await;
    proxy.refuse().await;
    let late = Place {
        bus: Some(proxy.address()),
        ..place
    };
    let joins = Node::start(&database, &late).await;
    for at in 0..20 {
        assert_eq!(joins.load(&format!("k{at}")).await, 0);
    }
    for at in 0..20 {
        let key = format!("k{at}");
        database.write(&key);
        assert!(matches!(old.invalidate(&key).await, Told::Acked(_)));
        if at == 10 {
            proxy.accept().await;
        }
    }
    joins.until_well().await;
    for at in 0..20 {
        assert_eq!(joins.load(&format!("k{at}")).await, 1, "k{at}");
    }
    assert!(joins.figure("doubts").await > 0);
}

/// The tags are known only when the load ends, and by then they were invalidated elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_a_loader_chooses_was_invalidated_elsewhere_meanwhile() {
    let server = RedisServer::start().unwrap();
    let database = Database::open().await;
    let nodes = Node::three(&database, &Place::of(&server)).await;
    for node in &nodes {
        node.load("k").await;
        node.until_well().await;
    }
    // The tier has heard of the first tag, and of the second one not.
    database.tag("other", &["known"]);
    nodes[2].load("other").await;
    for (key, tag, what) in [
        ("a", "known", "tag known"),
        ("b", "unknown", "tag unknown"),
        ("c", "known", "clear"),
    ] {
        database.tag(key, &[tag]);
        let gate = database.hold(key);
        let loading = nodes[0].load(key);
        let meanwhile = async {
            gate.arrived(1).await;
            database.let_go(key);
            let newest = database.write(key);
            let token = token(nodes[1].tell(what).await);
            gate.open();
            (newest, token)
        };
        let (seen, (newest, token)) = tokio::join!(loading, meanwhile);
        assert_eq!(seen, 0, "its caller came before the change");
        for node in &nodes {
            let served = node.load_after(&token, key).await;
            assert_eq!(served, newest, "{what}");
        }
    }
}

/// Order comes from no clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_whose_clocks_differ_by_half_an_hour_agree() {
    const QUARTER: i64 = 15 * 60 * 1_000;
    let server = RedisServer::start().unwrap();
    let database = Database::open().await;
    database.tag("k", &["group"]);
    let mut nodes = Vec::new();
    for skew in [-QUARTER, 0, QUARTER] {
        let place = Place {
            skew,
            ..Place::of(&server)
        };
        nodes.push(Node::start(&database, &place).await);
    }
    for round in 0..30 {
        for node in &nodes {
            assert_eq!(node.load("k").await, database.version("k"));
        }
        // An expiry is a time, which means by its nature as much as the clocks agree.
        let what = ["invalidate k", "tag group", "pattern k", "clear"][round % 4];
        let newest = database.write("k");
        let token = token(nodes[round % 3].tell(what).await);
        for node in &nodes {
            assert_eq!(node.load_after(&token, "k").await, newest, "{what}");
        }
    }
    // An entry of the slowest clock is not over for the fastest one: the TTL is longer than that.
    let reads = database.reads();
    for node in &nodes {
        node.load("k").await;
    }
    assert_eq!(database.reads(), reads);
}
