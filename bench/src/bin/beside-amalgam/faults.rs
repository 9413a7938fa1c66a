//! What becomes of removals and reads when clocks, connections and servers fail.

use std::time::{Duration, Instant};

use larder::Clock;
use larder::clock::{BoxFuture, Millis, SystemClock};
use larder_bench::Result;
use larder_bench::amalgam_node::{AmalgamNode, Profile, Setup, Skew};
use larder_bench::node::{LarderNode, Node, Place};
use larder_bench::report::{Found, Row};
use larder_bench::rounds::Times;
use larder_bench::server::keys_like;
use larder_testkit::{ChaosProxy, Direction, LinkFault, RedisServer};

pub(crate) const NOTE: &str = "\
Stale: of so many keys that another node holds in memory, those that it still finds some time after\n\
they were removed: 1 s with clocks apart, where the clock of the node that removes is behind, and 5 s\n\
after the removals otherwise. A half-open connection is that of the subscriber alone. Slowest reads\n\
are of keys that nobody holds; used again is the time from the start of the server to the first entry\n\
that a node stores in it.";

const NAMES: [&str; 3] = ["larder", "amalgam", "amalgam-strict"];
/// Removals with clocks apart.
const SKEWED: usize = 50;
/// Removals while a connection fails.
const REMOVALS: usize = 200;
/// How long removals have to be heard of.
const SOON: Duration = Duration::from_secs(1);
const IN_THE_END: Duration = Duration::from_secs(5);
/// Reads of a server that hangs, and of one that is gone.
const READS: usize = 3;
/// The longest that anybody waits for a server to be used again.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node of this name whose clock is behind.
async fn node(name: &str, place: &Place, behind: Duration) -> Result<Box<dyn Node>> {
    let profile = match name {
        "amalgam" => Profile::Default,
        "amalgam-strict" => Profile::Strict,
        _ => {
            let clock = std::sync::Arc::new(Behind(SystemClock::new(), behind));
            let node = LarderNode::with_clock(place, clock)?;
            node.until_ready().await?;
            return Ok(Box::new(node));
        }
    };
    let setup = Setup {
        skew: Skew { behind },
        ..Setup::of(profile)
    };
    Ok(Box::new(AmalgamNode::new(place, setup).await?))
}

/// The machine's clock, behind by so much.
#[derive(Debug)]
struct Behind(SystemClock, Duration);

impl Clock for Behind {
    fn monotonic(&self) -> Millis {
        self.0.monotonic()
    }

    fn wall(&self) -> Millis {
        let behind = u64::try_from(self.1.as_millis()).unwrap_or(Millis::MAX);
        self.0.wall().saturating_sub(behind)
    }

    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(wait)
    }
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("key:{number}")).collect()
}

async fn hold(node: &dyn Node, keys: &[String]) -> Result<()> {
    for key in keys {
        node.hold(key).await?;
    }
    Ok(())
}

async fn remove(node: &dyn Node, keys: &[String]) -> Result<()> {
    for key in keys {
        node.remove(key).await?;
    }
    Ok(())
}

async fn still_found(node: &dyn Node, keys: &[String]) -> Result<usize> {
    let mut found = 0;
    for key in keys {
        found += usize::from(node.finds(key).await?);
    }
    Ok(found)
}

fn stale(what: &str, name: &str, found: usize) -> Row {
    let limit = (name == "larder").then_some(0);
    Row::count(format!("{what}, {name}"), found, limit)
}

/// Two nodes whose clocks differ.
pub(crate) async fn clocks_apart() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (millis, apart) in [(50, "50 ms"), (2_000, "2 s")] {
        for name in NAMES {
            let server = RedisServer::start()?;
            let place = Place::at(server.url());
            let late = node(name, &place, Duration::from_millis(millis)).await?;
            let right = node(name, &place, Duration::ZERO).await?;
            let keys = keys(SKEWED);
            for key in &keys {
                right.hold(key).await?;
                late.remove(key).await?;
            }
            tokio::time::sleep(SOON).await;
            let what = format!("of {SKEWED} removes stale, clocks {apart} apart");
            rows.push(stale(&what, name, still_found(&*right, &keys).await?));
        }
    }
    Ok(rows)
}

/// Two nodes, and one of them hears nothing for a while.
pub(crate) async fn connections_fail() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for name in NAMES {
        let what = format!("of {REMOVALS} removes stale, sent while all connections were cut");
        rows.push(stale(&what, name, cut(name).await?));
    }
    for name in NAMES {
        let what = format!("of {REMOVALS} removes stale, sent over a half-open connection");
        rows.push(stale(&what, name, half_open(name).await?));
    }
    Ok(rows)
}

/// All connections of a node are cut, and back after the removals.
async fn cut(name: &str) -> Result<usize> {
    let server = RedisServer::start()?;
    let proxy = ChaosProxy::start(server.address()).await?;
    let through_proxy = Place::at(format!("redis://{}", proxy.address()));
    let writer = node(name, &Place::at(server.url()), Duration::ZERO).await?;
    let reader = node(name, &through_proxy, Duration::ZERO).await?;
    let keys = keys(REMOVALS);
    hold(&*reader, &keys).await?;
    proxy.refuse().await;
    proxy.reset_connections();
    remove(&*writer, &keys).await?;
    proxy.accept().await;
    tokio::time::sleep(IN_THE_END).await;
    still_found(&*reader, &keys).await
}

/// Nothing comes to the subscriber of a node any more, and nothing says so.
async fn half_open(name: &str) -> Result<usize> {
    let server = RedisServer::start()?;
    let proxy = ChaosProxy::start(server.address()).await?;
    let deaf = Place {
        tier: server.url(),
        bus: format!("redis://{}", proxy.address()),
    };
    let writer = node(name, &Place::at(server.url()), Duration::ZERO).await?;
    let reader = node(name, &deaf, Duration::ZERO).await?;
    let keys = keys(REMOVALS);
    hold(&*reader, &keys).await?;
    proxy.inject(Direction::BOTH, LinkFault::Blackhole);
    remove(&*writer, &keys).await?;
    tokio::time::sleep(IN_THE_END).await;
    still_found(&*reader, &keys).await
}

/// A server that hangs, and one that is killed and comes back.
pub(crate) async fn server_fails() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for name in NAMES {
        let server = RedisServer::start()?;
        let node = node(name, &Place::at(server.url()), Duration::ZERO).await?;
        node.hold("before").await?;
        server.stop_signal()?;
        rows.push(slowest("Redis hung, slowest read", name, &*node).await?);
        server.cont_signal()?;
    }
    for name in NAMES {
        let server = RedisServer::start()?;
        let node = node(name, &Place::at(server.url()), Duration::ZERO).await?;
        node.hold("before").await?;
        server.kill9();
        rows.push(slowest("Redis killed, slowest read", name, &*node).await?);
        server.restart()?;
        rows.push(used_again(name, &server, &*node).await?);
    }
    Ok(rows)
}

/// The longest of some reads, each of a key of its own.
async fn slowest(what: &str, name: &str, node: &dyn Node) -> Result<Row> {
    let mut took = Times::default();
    for number in 0..READS {
        let began = Instant::now();
        let read = tokio::time::timeout(PATIENCE, node.hold(&format!("{what} {number}"))).await;
        if let Ok(Err(error)) = read {
            eprintln!("{what}, {name}: {error}");
        }
        took.push(began.elapsed());
    }
    let mut spread = took.nanoseconds()?;
    spread.median = spread.max;
    let limit = (name == "larder").then_some(150e6);
    Ok(Row::new(
        format!("{what}, {name}"),
        Found::Nanoseconds(spread, limit),
    ))
}

/// How long until a node stores anything in a server that is back.
async fn used_again(name: &str, server: &RedisServer, node: &dyn Node) -> Result<Row> {
    let (began, mut number) = (Instant::now(), 0);
    while keys_like(server, "*probe*")? == 0 && began.elapsed() < PATIENCE {
        let _down = node.hold(&format!("probe{number}")).await;
        number += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut took = Times::default();
    took.push(began.elapsed());
    let limit = (name == "larder").then_some(2e9);
    let work = format!("Redis killed, used again after its return, {name}");
    Ok(Row::new(
        work,
        Found::Nanoseconds(took.nanoseconds()?, limit),
    ))
}
