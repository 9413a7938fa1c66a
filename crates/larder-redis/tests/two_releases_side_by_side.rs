//! Fault 53: this release and the next one on one server, as in every rolling upgrade. Each writes
//! its own format, the next one reads both, and both invalidate in every way there is. What one
//! cannot read is a miss or a gap for it, and never something old.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it stands, and says what it saw"
)]

mod next_release;
mod nodes;

use std::sync::Arc;

use larder::clock::{Clock, SystemClock};
use larder_testkit::{ChaosProxy, RedisServer, Reply, seeds};
use next_release::{Frames, NextRelease};
use nodes::table::{Table, name};
use nodes::*;

const WAYS: [&str; 5] = ["invalidate k", "expire k", "tag g", "pattern k*", "clear"];

/// Invalidates until every tier and the bus took it: a busy machine outlasts a budget now and then.
async fn acked(node: &Node, line: &str) -> String {
    let clock = SystemClock::new();
    while clock.monotonic() < PATIENCE.as_millis() as u64 {
        if let Told::Acked(Some(token)) = node.tell(line).await {
            return token;
        }
    }
    panic!("{line} is still queued");
}

/// A server with nodes of both releases.
struct Upgrade {
    server: Arc<RedisServer>,
    next: NextRelease,
    database: Database,
}

impl Upgrade {
    async fn begin(frames: Frames) -> Self {
        let server = Arc::new(RedisServer::start().unwrap());
        let next = NextRelease::start(&server, frames).await;
        let database = Database::open().await;
        database.tag("k", &["g"]);
        Self {
            server,
            next,
            database,
        }
    }

    async fn of_this_release(&self) -> Node {
        Node::start(&self.database, &Place::of(&self.server)).await
    }

    async fn of_the_next(&self) -> Node {
        Node::start(&self.database, &Place::at(self.next.address())).await
    }

    /// Two of each; those of the next release come last.
    async fn two_of_each(&self) -> [Node; 4] {
        [
            self.of_this_release().await,
            self.of_this_release().await,
            self.of_the_next().await,
            self.of_the_next().await,
        ]
    }

    /// The first bytes under the key of the row `k`.
    fn stored(&self) -> Vec<u8> {
        match self
            .server
            .command(&["GETRANGE", "t:rows@1:k", "0", "5"])
            .unwrap()
        {
            Reply::Bytes(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_release_reads_this_one_and_this_one_misses_what_is_from_the_next() {
    let upgrade = Upgrade::begin(Frames::AsNow).await;
    let [old, _, new, other] = upgrade.two_of_each().await;
    assert_eq!(new.load("k").await, 0);
    assert_eq!(
        upgrade.stored(),
        b"LRDR\x02\0",
        "as the next release writes it"
    );
    let reads = upgrade.database.reads();
    assert_eq!(other.load("k").await, 0);
    assert_eq!(upgrade.database.reads(), reads, "its own format is a hit");
    assert_eq!(old.load("k").await, 0);
    assert_eq!(upgrade.database.reads(), reads + 1, "which is a miss here");
    assert_eq!(upgrade.stored(), b"LRDR\x01\0", "and replaced");
    let late = upgrade.of_the_next().await;
    assert_eq!(late.load("k").await, 0);
    assert_eq!(upgrade.database.reads(), reads + 1, "a hit for both now");
    assert!(upgrade.next.written() > 0 && upgrade.next.read() > 0);
}

/// Whoever wrote what stands in the tier, whoever invalidates, whoever reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_node_of_one_release_invalidates_those_of_the_other_read_anew() {
    let upgrade = Upgrade::begin(Frames::AsNow).await;
    let (database, nodes) = (&upgrade.database, upgrade.two_of_each().await);
    for what in WAYS {
        for writer in 0..nodes.len() {
            for filler in 0..nodes.len() {
                // The one named last has filled the tier; all have it in memory.
                database.write("k");
                let all = acked(&nodes[filler], "invalidate k").await;
                for at in (0..nodes.len()).filter(|at| *at != filler).chain([filler]) {
                    nodes[at].load_after(&all, "k").await;
                }
                let newest = database.write("k");
                let token = acked(&nodes[writer], what).await;
                for (reader, node) in nodes.iter().enumerate().rev() {
                    let seen = node.load_after(&token, "k").await;
                    let here = format!("{what} by {writer}, filled by {filler}, read by {reader}");
                    assert_eq!(seen, newest, "{here}");
                }
            }
        }
    }
    for writer in 0..nodes.len() {
        let newest = database.write("k");
        let token = acked(&nodes[writer], &format!("set k {newest}")).await;
        for node in &nodes {
            assert_eq!(
                node.load_after(&token, "k").await,
                newest,
                "set by {writer}"
            );
        }
    }
}

/// What stands in the tier alone, for a process that has nothing in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_in_the_format_of_the_other_release_is_invalidated_like_any_other() {
    for what in WAYS {
        let upgrade = Upgrade::begin(Frames::AsNow).await;
        let (old, new) = (upgrade.of_this_release().await, upgrade.of_the_next().await);
        for (filler, writer, format) in [(&new, &old, 2), (&old, &new, 1)] {
            let _ = filler.invalidate("k").await;
            filler.load("k").await;
            assert_eq!(upgrade.stored()[4], format);
            let newest = upgrade.database.write("k");
            acked(writer, what).await;
            for fresh in [upgrade.of_the_next().await, upgrade.of_this_release().await] {
                assert_eq!(fresh.load("k").await, newest, "{what}: format {format}");
            }
        }
    }
}

/// A load that one release began, and an invalidation by the other meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_of_one_release_is_refused_after_an_invalidation_by_the_other() {
    for what in WAYS {
        let upgrade = Upgrade::begin(Frames::AsNow).await;
        let (old, new) = (upgrade.of_this_release().await, upgrade.of_the_next().await);
        let database = &upgrade.database;
        // The records of the tags are there: a key is protected by its lease alone.
        database.tag("other", &["g"]);
        old.load("other").await;
        for (loader, writer) in [(&old, &new), (&new, &old)] {
            let _ = loader.invalidate("k").await;
            let gate = database.hold("k");
            let loading = loader.load("k");
            let meanwhile = async {
                gate.arrived(1).await;
                database.let_go("k");
                let newest = database.write("k");
                let token = acked(writer, what).await;
                gate.open();
                (newest, token)
            };
            let (_, (newest, token)) = tokio::join!(loading, meanwhile);
            for node in [&new, &old] {
                let seen = node.load_after(&token, "k").await;
                assert_eq!(seen, newest, "{what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_read_is_a_gap_and_every_one_is_counted() {
    for frames in [Frames::AsNow, Frames::Anew] {
        count_what_cannot_be_read(frames).await;
    }
}

async fn count_what_cannot_be_read(frames: Frames) {
    let upgrade = Upgrade::begin(frames).await;
    let [old, _, new, other] = upgrade.two_of_each().await;
    for node in [&old, &new, &other] {
        node.load("k").await;
        node.until_well().await;
    }
    let [unreadable, doubts] = ["unreadable", "doubts"].map(|name| old.figure(name));
    let (unreadable, doubts) = (unreadable.await, doubts.await);
    let mut waited = 0;
    for round in 1..=ROUNDS {
        let newest = upgrade.database.write("k");
        acked(&new, "invalidate k").await;
        let clock = SystemClock::new();
        old.until_fresh("k", newest).await;
        waited += clock.monotonic();
        old.until("unreadable", |count| count >= unreadable + round)
            .await;
        old.until("doubts", |count| count > doubts).await;
    }
    // Milliseconds each, and not until a beat shows that a number is missing.
    assert!(waited < 250 * ROUNDS, "{waited} ms in all");
    // The next release can read this one, and itself.
    upgrade.database.write("k");
    let last = acked(&old, "invalidate k").await;
    for node in [&new, &other] {
        node.load_after(&last, "k").await;
        assert_eq!(node.figure("unreadable").await, 0);
        assert!(node.figure("heard").await > 0);
    }
}

/// What it finds in the journal it can read as little.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_with_messages_of_the_next_release_makes_up_for_nothing_silently() {
    for frames in [Frames::AsNow, Frames::Anew] {
        replay_what_cannot_be_read(frames).await;
    }
}

async fn replay_what_cannot_be_read(frames: Frames) {
    let upgrade = Upgrade::begin(frames).await;
    let proxy = ChaosProxy::start(upgrade.server.address()).await.unwrap();
    let place = Place {
        bus: Some(proxy.address()),
        ..Place::of(&upgrade.server)
    };
    let old = Node::start(&upgrade.database, &place).await;
    let new = upgrade.of_the_next().await;
    for node in [&old, &new] {
        node.load("k").await;
        node.until_well().await;
    }
    for _ in 0..5 {
        let doubts = old.figure("doubts").await;
        proxy.refuse().await;
        proxy.reset_connections();
        old.until("healthy", |healthy| healthy == 0).await;
        let newest = upgrade.database.write("k");
        let token = acked(&new, "invalidate k").await;
        proxy.accept().await;
        old.until_well().await;
        assert_eq!(old.load_after(&token, "k").await, newest);
        assert!(old.figure("doubts").await > doubts, "no replay can help");
    }
}

/// How many messages are told one by one.
const ROUNDS: u64 = 20;
const WRITES: u64 = 250;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_and_writers_of_both_releases_see_nothing_stale() {
    for frames in [Frames::AsNow, Frames::Anew] {
        read_and_write(frames).await;
    }
}

async fn read_and_write(frames: Frames) {
    let upgrade = Upgrade::begin(frames).await;
    let rows = 6;
    let table = Table::new(&upgrade.database, upgrade.two_of_each().await.into(), rows);
    for seed in seeds(1) {
        table.use_until(seed.rng(), table.has_written(WRITES)).await;
    }
    // All agree in the end.
    for row in 0..rows {
        for node in &table.nodes {
            let newest = table.database.version(&name(row));
            node.until_fresh(&name(row), newest).await;
        }
    }
    let (reads, writes) = table.counts();
    let crossed = (upgrade.next.written(), upgrade.next.read());
    println!(
        "{frames:?}: {reads} reads, {writes} writes; {crossed:?} of the next format written, read"
    );
}
