//! One node of three is cut off from the bus, or stopped: it never serves what is older than its
//! silence, and what it brings late is not stored.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it stands, and says how long things took"
)]

mod nodes;

use std::time::Duration;

use larder::clock::{Clock, SystemClock};
use larder_testkit::{ChaosProxy, Direction, LinkFault, RedisServer, Reply};
use nodes::*;

/// A bus that is silent for so long is not trusted.
const SILENCE: Duration = Duration::from_secs(3);
/// What a busy machine gets on top.
const SLACK: u32 = 3;

struct Scene {
    server: RedisServer,
    proxy: ChaosProxy,
    database: Database,
    /// Its bus goes through the proxy, its tier does not.
    deaf: Node,
    writer: Node,
}

async fn scene() -> Scene {
    let server = RedisServer::start().unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    let database = Database::open().await;
    let place = Place::of(&server);
    let through_proxy = Place {
        bus: Some(proxy.address()),
        ..place.clone()
    };
    let deaf = Node::start(&database, &through_proxy).await;
    let writer = Node::start(&database, &place).await;
    for node in [&deaf, &writer] {
        assert_eq!(node.load("k").await, 0);
        node.until_well().await;
    }
    Scene {
        server,
        proxy,
        database,
        deaf,
        writer,
    }
}

/// Nothing comes to the listener any more, while its connection stays open: no error says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_whose_connection_is_dead_asks_the_tier_after_the_silence() {
    let scene = scene().await;
    scene.proxy.inject(Direction::BOTH, LinkFault::Blackhole);
    let newest = scene.database.write("k");
    assert!(matches!(scene.writer.invalidate("k").await, Told::Acked(_)));
    let clock = SystemClock::new();
    scene.deaf.until("healthy", |healthy| healthy == 0).await;
    let took = clock.monotonic();
    println!("not trusted after {took} ms");
    assert!(Duration::from_millis(took) <= SLACK * SILENCE, "{took} ms");
    assert_eq!(scene.deaf.load("k").await, newest);
    // Revalidated on each hit, as long as it lasts.
    let newer = scene.database.write("k");
    assert!(matches!(scene.writer.invalidate("k").await, Told::Acked(_)));
    assert_eq!(scene.deaf.load("k").await, newer);

    scene.proxy.heal();
    scene.proxy.reset_connections();
    scene.deaf.until_well().await;
    let newest = scene.database.write("k");
    let token = token(scene.writer.invalidate("k").await);
    assert_eq!(scene.deaf.load_after(&token, "k").await, newest);
}

/// The writer has no way to the bus, but one to the tier: others hear of it when the bus is back,
/// and the tier is fresh at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_bus_could_not_be_told_is_told_when_it_is_back() {
    let scene = scene().await;
    scene.proxy.refuse().await;
    scene.proxy.reset_connections();
    scene.deaf.until("healthy", |healthy| healthy == 0).await;
    let newest = scene.database.write("k");
    assert_eq!(scene.deaf.invalidate("k").await, Told::Queued);
    assert_eq!(scene.deaf.load("k").await, newest);
    assert_eq!(scene.deaf.figure("unsent").await, 1);
    scene.proxy.accept().await;
    scene.writer.until_fresh("k", newest).await;
    scene.deaf.until_well().await;
}

/// The server hangs for less than the silence after which it is missed: it does not take a message,
/// and nothing says later that it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_bus_did_not_take_for_a_moment_is_told_soon() {
    let scene = scene().await;
    scene.server.stop_signal().unwrap();
    let newest = scene.database.write("k");
    assert_eq!(scene.deaf.invalidate("k").await, Told::Queued);
    scene.server.cont_signal().unwrap();
    scene.writer.until_fresh("k", newest).await;
    scene.deaf.until_well().await;
}

/// Messages are lost by the thousand, whole or in the middle: what is missing is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_is_cut_off_over_and_over_misses_nothing() {
    let scene = scene().await;
    let mut rng = fastrand::Rng::with_seed(fastrand::u64(..));
    for round in 0..40 {
        match rng.u8(0..3) {
            0 => scene.proxy.reset_connections(),
            1 => {
                let bytes = rng.u64(0..300);
                scene
                    .proxy
                    .inject([Direction::ToClient], LinkFault::Truncate(bytes));
            }
            _ => scene.proxy.heal(),
        }
        let (key, newest) = (
            format!("k{}", round % 5),
            scene.database.write(&format!("k{}", round % 5)),
        );
        let token = token(scene.writer.invalidate(&key).await);
        assert_eq!(scene.deaf.load_after(&token, &key).await, newest, "{key}");
    }
    scene.proxy.heal();
    scene.deaf.until_well().await;
    for at in 0..5 {
        let key = format!("k{at}");
        assert_eq!(scene.deaf.load(&key).await, scene.database.version(&key));
    }
}

/// A slow listener is cut off by the server, which has its limit for what it keeps for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_the_server_cuts_off_finds_what_it_missed() {
    let scene = scene().await;
    let limit = [
        "CONFIG",
        "SET",
        "client-output-buffer-limit",
        "pubsub 4kb 4kb 1",
    ];
    scene.server.command(&limit).unwrap();
    assert_eq!(scene.deaf.load("other").await, 0);
    scene.deaf.process().stop_signal().unwrap();
    let newest = scene.database.write("k");
    // More than all buffers between the two hold: the proxy keeps up to 1 MiB, as do the sockets.
    let filler = "f".repeat(3_000);
    for round in 0..4_000 {
        let line = format!("invalidate {filler}{round}");
        scene.writer.tell(&line).await;
    }
    let token = token(scene.writer.invalidate("k").await);
    let listeners = ["PUBSUB", "NUMSUB", "t:~bus"];
    let listeners = scene.server.command(&listeners).unwrap();
    let writer_alone = Reply::List(vec![Reply::Bytes("t:~bus".into()), Reply::Integer(1)]);
    assert_eq!(listeners, writer_alone);
    scene.deaf.process().cont_signal().unwrap();
    assert_eq!(scene.deaf.load_after(&token, "k").await, newest);
    // It may believe for a moment yet that all is well.
    scene.deaf.until("distrusts", |times| times > 0).await;
    scene.deaf.until_well().await;
    assert_eq!(scene.deaf.load("k").await, newest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_stopped_serves_nothing_from_before() {
    let scene = scene().await;
    scene.deaf.process().stop_signal().unwrap();
    let newest = scene.database.write("k");
    assert!(matches!(scene.writer.invalidate("k").await, Told::Acked(_)));
    SystemClock::new().sleep(SILENCE + SILENCE / 4).await;
    // The question is there before the process goes on, and so is among the first that it does.
    let asked = scene.deaf.load("k");
    let (seen, ()) = tokio::join!(asked, async {
        SystemClock::new().sleep(SILENCE / 10).await;
        scene.deaf.process().cont_signal().unwrap();
    });
    assert_eq!(seen, newest);
    scene.deaf.until_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_brings_that_was_stopped_past_its_lease_is_not_stored() {
    let server = RedisServer::start().unwrap();
    let database = Database::open().await;
    let lease = Duration::from_millis(400);
    let place = Place {
        lease: 400,
        ..Place::of(&server)
    };
    let stopped = Node::start(&database, &place).await;
    let other = Node::start(&database, &place).await;
    for node in [&stopped, &other] {
        node.load("another").await;
        node.until_well().await;
    }
    let gate = database.hold("k");
    let late = stopped.load("k");
    let meanwhile = async {
        gate.arrived(1).await;
        stopped.process().stop_signal().unwrap();
        database.let_go("k");
        // Nobody says so: the lease alone keeps the old value out.
        let newest = database.write("k");
        SystemClock::new().sleep(lease).await;
        assert_eq!(other.load("k").await, newest);
        gate.open();
        stopped.process().cont_signal().unwrap();
        newest
    };
    let (seen, newest) = tokio::join!(late, meanwhile);
    assert_eq!(seen, 0, "its own caller came before the change");
    assert_eq!(stopped.load("k").await, newest, "what came late was stored");
    assert_eq!(other.load("k").await, newest);
    assert_eq!(stopped.figure("refused_fills").await, 1);
}
