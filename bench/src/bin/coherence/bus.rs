//! What the bus costs, and how fast it makes up for what was missed.

use std::sync::Arc;
use std::time::Instant;

use larder::backplane::{Backplane, Replay};
use larder_bench::Result;
use larder_bench::other::Other;
use larder_bench::report::{Found, Row};
use larder_bench::rounds::{ROUNDS, Times};
use larder_redis::RedisBus;
use larder_testkit::{Ear, RedisServer};

pub(crate) const NOTE: &str = "\
The hot key is invalidated by a process that does nothing else, and whose processor time is what the\n\
kernel counted; for the pace alone it does the same without invalidating. The journal has messages\n\
of 100 bytes.";

/// How often the hot key is invalidated.
const PER_SECOND: u32 = 5_000;
const SECONDS: u32 = 5;

/// One key, invalidated thousands of times a second.
pub(crate) async fn one_hot_key() -> Result<Vec<Row>> {
    let server = RedisServer::start()?;
    let mut other = Other::start().await?;
    let order = format!("hammer {} {PER_SECOND} {SECONDS}", server.url());
    let [whole, pace, messages, done] = other.numbers(&order).await?[..] else {
        return Err("there are four numbers".into());
    };
    let done_share = 100.0 * done / f64::from(PER_SECOND * SECONDS);
    Ok(vec![
        Row::new(
            "5,000 invalidations/s of one key, share of a core",
            Found::Percent(100.0 * (whole - pace), Some(5.0)),
        ),
        Row::new(
            "the same, with the pace",
            Found::Percent(100.0 * whole, None),
        ),
        Row::new(
            "the same, invalidations acknowledged",
            Found::Percent(done_share, None),
        ),
        Row::count(
            "the same, messages/s on the bus",
            messages.round() as usize,
            None,
        ),
    ])
}

const MESSAGES: usize = 100_000;
/// About as long as an invalidation of a few keys.
const MESSAGE: &[u8] = &[b'm'; 100];
const PUBLISHERS: usize = 50;
const CHANNEL: &str = "shop";
/// How long a replay of them all may take, in nanoseconds.
const REPLAYED_WITHIN: f64 = 2e9;

/// Publishing a journal full, and reading it.
pub(crate) async fn replay() -> Result<Vec<Row>> {
    tokio::spawn(async {
        let server = RedisServer::start()?;
        let bus = Arc::new(RedisBus::new(&server.url())?);
        let start = bus.beat(CHANNEL, "".into()).await?;
        let (mut heard, mut replayed) = (Times::default(), Times::default());
        heard.push(publish_and_hear(&bus).await?);
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let replay = bus.replay(CHANNEL, start, MESSAGES).await?;
            replayed.push(began.elapsed());
            if !matches!(replay, Replay::Complete(messages) if messages.len() == MESSAGES) {
                return Err("the journal is not complete".into());
            }
        }
        let within = Found::Nanoseconds(replayed.nanoseconds()?, Some(REPLAYED_WITHIN));
        Ok(vec![
            Row::times(
                "100,000 messages, 50 at a time, published and heard",
                &heard,
            )?,
            Row::new("replay of 100,000 journalled messages", within),
        ])
    })
    .await?
}

async fn publish_and_hear(bus: &Arc<RedisBus>) -> Result<std::time::Duration> {
    let mut ear = Ear::open(bus.clone(), CHANNEL).await;
    let began = Instant::now();
    let mut publishers = tokio::task::JoinSet::new();
    for _ in 0..PUBLISHERS {
        let bus = bus.clone();
        publishers.spawn(async move {
            for _ in 0..MESSAGES / PUBLISHERS {
                bus.publish(CHANNEL, MESSAGE.into()).await?;
            }
            Result::Ok(())
        });
    }
    for _ in 0..MESSAGES {
        ear.message().await;
    }
    let took = began.elapsed();
    while let Some(published) = publishers.join_next().await {
        published??;
    }
    Ok(took)
}
