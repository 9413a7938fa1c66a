//! Several larders in processes of their own, over the database of the test.
//!
//! A node is this test binary once more, told by a variable to be one: a [`Peer`] of the test, which
//! does what it is told in lines:
//!
//! ```text
//! test: load KEY            node: VERSION, and the story of the read
//! test: invalidate KEY      node: acked TOKEN, or queued
//! ```

#![allow(dead_code, reason = "every scenario uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod database;
mod node;
pub(crate) mod table;

use std::net::SocketAddr;
use std::time::Duration;

use larder::clock::{Clock, SystemClock};
use larder_testkit::{NoAnswer, Peer, RedisServer, Twin};

pub(crate) use database::Database;

/// Long for a busy machine, short enough for a test to fail with a sentence.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where a node looks, and how its clock goes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Where the tier is.
    pub(crate) redis: SocketAddr,
    /// Where the bus is, if it is not reached as the tier is.
    pub(crate) bus: Option<SocketAddr>,
    /// Name and password, in the form of a URL.
    pub(crate) user: String,
    /// How much later it is there than here, in milliseconds.
    pub(crate) skew: i64,
    /// How long its leases last, in milliseconds.
    pub(crate) lease: u64,
    /// The TTL of its entries, in milliseconds.
    pub(crate) ttl: u64,
    /// Whether it loads anew what nobody can be asked about.
    pub(crate) doubts_alone: bool,
    /// Whether the server tells it itself what changed, in place of messages on a channel.
    pub(crate) watching: bool,
}

impl Place {
    pub(crate) fn at(redis: SocketAddr) -> Self {
        Self {
            redis,
            bus: None,
            user: String::new(),
            skew: 0,
            lease: 31_000,
            ttl: 3_600_000,
            doubts_alone: false,
            watching: false,
        }
    }

    pub(crate) fn of(server: &RedisServer) -> Self {
        Self::at(server.address())
    }
}

/// A larder in another process.
pub(crate) struct Node {
    peer: Peer,
}

/// What an invalidation or a write came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// With the token, if there was one.
    Acked(Option<String>),
    Queued,
}

impl Node {
    /// Starts a node that caches `database`, and waits until it is there.
    pub(crate) async fn start(database: &Database, place: &Place) -> Self {
        let words = [
            database.address().to_string(),
            format!("redis://{}{}", place.user, place.redis),
            place
                .bus
                .map_or_else(String::new, |bus| format!("redis://{}{bus}", place.user)),
            place.skew.to_string(),
            place.lease.to_string(),
            place.ttl.to_string(),
            place.doubts_alone.to_string(),
            place.watching.to_string(),
        ];
        let variables = [(node::VARIABLE, &*words.join(" , "))];
        let peer = Peer::start(node::TEST, &variables).await.unwrap();
        Self { peer }
    }

    /// Three of them.
    pub(crate) async fn three(database: &Database, place: &Place) -> [Self; 3] {
        [
            Self::start(database, place).await,
            Self::start(database, place).await,
            Self::start(database, place).await,
        ]
    }

    pub(crate) fn process(&self) -> &Twin {
        self.peer.twin()
    }

    /// Sends a line and waits for the answer; an error if none comes in time, or if the answer is
    /// an error itself.
    pub(crate) async fn try_ask(&self, line: &str, patience: Duration) -> Result<String, String> {
        let answer = self.peer.ask(line, patience).await;
        answer.map_err(|error| match error {
            NoAnswer::Gone | NoAnswer::Silent => format!("no answer to {line:?}"),
            NoAnswer::Failed(why) => why,
        })
    }

    pub(crate) async fn ask(&self, line: &str) -> String {
        let answer = self.try_ask(line, PATIENCE).await;
        answer.unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Reads through the cache: the version that was served.
    pub(crate) async fn load(&self, key: &str) -> u64 {
        version(&self.ask(&format!("load {key}")).await)
    }

    /// Reads through the cache what is no older than `token`.
    pub(crate) async fn load_after(&self, token: &str, key: &str) -> u64 {
        version(&self.ask(&format!("after {token} {key}")).await)
    }

    pub(crate) async fn tell(&self, line: &str) -> Told {
        told(&self.ask(line).await)
    }

    pub(crate) async fn invalidate(&self, key: &str) -> Told {
        self.tell(&format!("invalidate {key}")).await
    }

    /// A figure of the node; see `figures` there.
    pub(crate) async fn figure(&self, name: &str) -> u64 {
        let figures = self.ask("figures").await;
        let figure = figures
            .split_whitespace()
            .find_map(|figure| figure.strip_prefix(name)?.strip_prefix('='));
        figure
            .unwrap_or_else(|| panic!("no {name} in {figures}"))
            .parse()
            .unwrap()
    }

    /// Waits until a figure is what it should be.
    pub(crate) async fn until(&self, name: &str, wanted: impl Fn(u64) -> bool) {
        let clock = SystemClock::new();
        let mut last = 0;
        while clock.monotonic() < PATIENCE.as_millis() as u64 {
            last = self.figure(name).await;
            if wanted(last) {
                return;
            }
            clock.sleep(Duration::from_millis(5)).await;
        }
        panic!("{name} is still {last}: {}", self.ask("figures").await);
    }

    /// Waits until it hears of everything and owes nothing.
    pub(crate) async fn until_well(&self) {
        self.until("ill", |ill| ill == 0).await;
    }

    /// Reads until it is served `wanted` or newer.
    pub(crate) async fn until_fresh(&self, key: &str, wanted: u64) {
        let clock = SystemClock::new();
        let mut seen = 0;
        while clock.monotonic() < PATIENCE.as_millis() as u64 {
            seen = self.load(key).await;
            if seen >= wanted {
                return;
            }
        }
        panic!(
            "{key} is still {seen}, not {wanted}: {}",
            self.ask("figures").await
        );
    }
}

/// The version in the answer to a read.
pub(crate) fn version(answer: &str) -> u64 {
    let version = answer.split(' ').next().unwrap();
    version
        .parse()
        .unwrap_or_else(|_| panic!("{answer:?} has no version"))
}

pub(crate) fn told(answer: &str) -> Told {
    match answer.split_once(' ').unwrap_or((answer, "")) {
        ("acked", "") => Told::Acked(None),
        ("acked", token) => Told::Acked(Some(token.to_owned())),
        ("queued", _) => Told::Queued,
        _ => panic!("{answer:?} is no receipt"),
    }
}

/// The token of what was acknowledged.
#[track_caller]
pub(crate) fn token(told: Told) -> String {
    match told {
        Told::Acked(Some(token)) => token,
        other => panic!("{other:?} has no token"),
    }
}
