//! How long it takes to publish, to hear and to replay 100,000 messages of the bus, on one server of
//! this machine.
//!
//! ```text
//! cargo run --release -p larder-redis --example replay_the_journal
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for people"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder::backplane::{Backplane, Replay};
use larder_redis::RedisBus;
use larder_testkit::{Ear, RedisServer};

const MESSAGES: usize = 100_000;
/// About as long as an invalidation of a few keys.
const MESSAGE: &[u8] = &[b'm'; 100];
const PUBLISHERS: usize = 50;
const ONE_BY_ONE: usize = 5_000;
const ROUNDS: usize = 11;
const CHANNEL: &str = "shop";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::spawn(measure()).await.unwrap() });
}

async fn measure() {
    let server = RedisServer::start().unwrap();
    let bus = Arc::new(RedisBus::new(&server.url()).unwrap());
    let start = bus.beat(CHANNEL, "".into()).await.unwrap();

    let took = publish_and_hear(&bus).await;
    let rate = MESSAGES as f64 / took.as_secs_f64();
    println!(
        "{MESSAGES} messages, {PUBLISHERS} at a time, published and heard: {took:.2?} ({rate:.0}/s)"
    );

    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let begun = now();
        let replay = bus.replay(CHANNEL, start, MESSAGES).await.unwrap();
        rounds.push(begun.elapsed());
        assert!(matches!(replay, Replay::Complete(messages) if messages.len() == MESSAGES));
    }
    rounds.sort();
    println!(
        "replay of {MESSAGES} messages: median {:.2?}, slowest of {ROUNDS} {:.2?}",
        rounds[ROUNDS / 2],
        rounds[ROUNDS - 1]
    );

    let mut one_by_one = Vec::new();
    for _ in 0..ONE_BY_ONE {
        let begun = now();
        bus.publish(CHANNEL, MESSAGE.into()).await.unwrap();
        one_by_one.push(begun.elapsed());
    }
    one_by_one.sort();
    println!(
        "one publish after the other: median {:.1?}, p99 {:.1?}",
        one_by_one[ONE_BY_ONE / 2],
        one_by_one[ONE_BY_ONE * 99 / 100]
    );
}

async fn publish_and_hear(bus: &Arc<RedisBus>) -> Duration {
    let mut ear = Ear::open(bus.clone(), CHANNEL).await;
    let begun = now();
    for _ in 0..PUBLISHERS {
        let bus = bus.clone();
        tokio::spawn(async move {
            for _ in 0..MESSAGES / PUBLISHERS {
                bus.publish(CHANNEL, MESSAGE.into()).await.unwrap();
            }
        });
    }
    for _ in 0..MESSAGES {
        ear.message().await;
    }
    begun.elapsed()
}

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn now() -> Instant {
    Instant::now()
}
