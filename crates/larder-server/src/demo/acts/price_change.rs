//! Act 2: a price changes while a load of the old one is running. The old price never comes back.
//!
//! ```text
//! reader  ── asks ── loads price k ──── held ───────────────────── goes on, has k ──
//! shop            ── writes k+1, invalidates ── acknowledges
//! others                                         ── ask: k+1 ── ask: k+1 ──────────
//! ```
//!
//! A cache that stores what the held reader brings serves the old price until its TTL.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::body::Bytes;
use axum::http::Method;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::demo::figures::{count, latency};
use crate::demo::load::Load;
use crate::demo::net::{self, Connection};
use crate::demo::service::{HELD, Updated};
use crate::demo::shop::Product;
use crate::demo::stage::{Stage, read_product};

/// The products whose prices change, each with readers of its own.
const CHANGING: [u64; 4] = [11, 22, 33, 44];
/// Readers that ask for one changing product all the time.
const READERS: usize = 2;
/// Reads after each change.
const READS_AFTER: usize = 3;
/// The act is long enough with this many seconds.
const LONGEST: u64 = 4;

/// Fewer rounds than this prove little.
const LEAST_ROUNDS: u64 = 8;
/// Seconds that a slow machine gets beyond that.
const MOST_EXTRA: u64 = 10;

/// What was seen of one product.
#[derive(Default)]
struct Watched {
    /// The newest revision that an update has acknowledged.
    acknowledged: AtomicU64,
    rounds: AtomicU64,
    reads: AtomicU64,
    /// Reads begun after an acknowledgement that were answered with an older price.
    old: AtomicU64,
}

/// Plays the act.
pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage
        .term
        .title("2. A price changes while the old one is being loaded");
    stage.term.line(
        "  Again and again a reader is held between its query and its fill; meanwhile the price\n  \
         changes and is invalidated; then the reader goes on. Does the old price come back?",
    );
    stage.timeline.happened("prices change");
    let address = stage.fleet.first();
    let fenced_before = fenced(stage).await?;
    let mix = stage.visitors("");
    let mut load = stage.start_load(stage.config.demo.clients.div_ceil(4), &mix);
    let mut tasks = JoinSet::new();
    let watched = CHANGING.map(|id| (id, Arc::new(Watched::default())));
    for (id, watched) in &watched {
        tasks.spawn(change_again_and_again(address, *id, Arc::clone(watched)));
        for _ in 0..READERS {
            tasks.spawn(read_again_and_again(address, *id, Arc::clone(watched)));
        }
    }
    tokio::select! {
        watched = watch_rounds(stage, &mut load, &watched) => watched?,
        Some(ended) = tasks.join_next() => ended.context("a reader of the act")??,
    }
    tasks.shutdown().await;
    load.end().await;
    for (id, _) in &watched {
        // What was held when the act ended is let go.
        net::request(address, Method::DELETE, &format!("/demo/hold/{id}"), "").await?;
    }
    let (rounds, old) = (sum(&watched, |w| &w.rounds), sum(&watched, |w| &w.old));
    let evidence = format!(
        "{} price changes during a load, {} reads after them: {} saw an old price \
         ({} late fills were refused)",
        count(rounds),
        count(sum(&watched, |w| &w.reads)),
        count(old),
        count(fenced(stage).await?.saturating_sub(fenced_before)),
    );
    stage.found(rounds > 0 && old == 0, evidence);
    if stage.fleet.addresses().len() > 1 {
        if stage.below_answers {
            other_processes(stage).await?;
        } else {
            let left_out =
                "  Left out: the other processes hear of prices by a Redis, and there is none.";
            stage.term.line(left_out);
        }
    }
    Ok(())
}

/// What was seen of all products together.
fn sum(watched: &[(u64, Arc<Watched>)], figure: fn(&Watched) -> &AtomicU64) -> u64 {
    let figures = watched.iter().map(|(_, watched)| figure(watched));
    figures.map(|figure| figure.load(Ordering::Relaxed)).sum()
}

/// Watches the load for the time asked for, and longer on a machine that is too busy to get
/// through a few rounds in it.
async fn watch_rounds(
    stage: &mut Stage<'_>,
    load: &mut Load,
    watched: &[(u64, Arc<Watched>)],
) -> anyhow::Result<()> {
    stage
        .watch(load, stage.config.demo.seconds.min(LONGEST))
        .await?;
    for _ in 0..MOST_EXTRA {
        if sum(watched, |watched| &watched.rounds) >= LEAST_ROUNDS {
            break;
        }
        stage.watch(load, 1).await?;
    }
    Ok(())
}

async fn fenced(stage: &Stage<'_>) -> anyhow::Result<u64> {
    let stats = stage.fleet.stats().await?;
    Ok(stats.caches.get("product").map_or(0, |cache| cache.fenced))
}

async fn change_again_and_again(
    address: SocketAddr,
    id: u64,
    watched: Arc<Watched>,
) -> anyhow::Result<()> {
    let mut scene = Scene {
        id,
        control: Connection::open(address).await?,
        held: Connection::open(address).await?,
        reader: Connection::open(address).await?,
        watched,
    };
    let mut cents = 1_000;
    loop {
        scene.round(cents).await?;
        cents = 1_000 + (cents + 7) % 9_000;
    }
}

/// One product and the connections on which its race is staged.
struct Scene {
    id: u64,
    control: Connection,
    held: Connection,
    reader: Connection,
    watched: Arc<Watched>,
}

impl Scene {
    async fn round(&mut self, cents: u64) -> anyhow::Result<()> {
        let Self {
            id,
            control,
            held,
            reader,
            watched,
        } = self;
        let hold = format!("/demo/hold/{id}");
        send(control, Method::POST, &hold, "").await?;
        // Empties the cache of this product, so that the next reader has to load.
        update(control, *id, cents, watched).await?;
        let reading = read(held, *id, watched);
        let changing = async {
            // Nobody comes if the price that was there before is still served.
            let raced = send(control, Method::GET, &hold, "").await? == HELD;
            update(control, *id, cents + 1, watched).await?;
            read(reader, *id, watched).await?;
            send(control, Method::DELETE, &hold, "").await?;
            Ok(raced)
        };
        let ((), raced) = tokio::try_join!(reading, changing)?;
        for _ in 0..READS_AFTER {
            read(reader, *id, watched).await?;
        }
        watched
            .rounds
            .fetch_add(u64::from(raced), Ordering::Relaxed);
        Ok(())
    }
}

async fn read_again_and_again(
    address: SocketAddr,
    id: u64,
    watched: Arc<Watched>,
) -> anyhow::Result<()> {
    let mut connection = Connection::open(address).await?;
    loop {
        read(&mut connection, id, &watched).await?;
    }
}

/// Reads the product, and counts if it is older than what was acknowledged before the read.
async fn read(connection: &mut Connection, id: u64, watched: &Watched) -> anyhow::Result<()> {
    let at_least = watched.acknowledged.load(Ordering::SeqCst);
    let body = send(connection, Method::GET, &format!("/product/{id}"), "").await?;
    let product: Product = serde_json::from_slice(&body)?;
    watched.reads.fetch_add(1, Ordering::Relaxed);
    if product.revision < at_least {
        watched.old.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn update(
    connection: &mut Connection,
    id: u64,
    cents: u64,
    watched: &Watched,
) -> anyhow::Result<()> {
    let price = format!("{}.{:02}", cents / 100, cents % 100);
    let path = format!("/product/{id}/price");
    let body = send(connection, Method::PUT, &path, price).await?;
    let updated: Updated = serde_json::from_slice(&body)?;
    watched
        .acknowledged
        .fetch_max(updated.revision, Ordering::SeqCst);
    Ok(())
}

async fn send(
    connection: &mut Connection,
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
) -> anyhow::Result<Bytes> {
    let reply = connection.send(method.clone(), path, body.into()).await?;
    let status = reply.status;
    ensure!(status.is_success(), "{method} {path}: {status}");
    Ok(reply.body)
}

/// How long after an invalidation other processes may show the old price while the bus is well.
const BOUND: Duration = Duration::from_millis(50);

/// How long the memory of other processes shows the old price.
async fn other_processes(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let (first, others) = (stage.fleet.first(), stage.fleet.addresses()[1..].to_vec());
    let ids: Vec<u64> = (101..=120).collect();
    for (address, id) in pairs(&others, &ids) {
        read_product(address, id).await?;
    }
    let mut waiting = JoinSet::new();
    for id in ids.iter().copied() {
        let path = format!("/product/{id}/price");
        let body = net::request(first, Method::PUT, &path, "12.34").await?;
        let updated: Updated = serde_json::from_slice(&body)?;
        let acknowledged = Instant::now();
        for address in others.iter().copied() {
            waiting.spawn(async move {
                while read_product(address, id).await?.revision < updated.revision {
                    ensure!(acknowledged.elapsed() < BOUND * 100, "the old price stays");
                    sleep(Duration::from_millis(1)).await;
                }
                anyhow::Ok(acknowledged.elapsed())
            });
        }
    }
    let mut longest = Duration::ZERO;
    let mut stays = false;
    while let Some(waited) = waiting.join_next().await {
        match waited? {
            Ok(waited) => longest = longest.max(waited),
            Err(_) => stays = true,
        }
    }
    // Three times the bound, because the demo itself keeps the machine busy.
    let holds = !stays && longest < BOUND * 3;
    stage.found(
        holds,
        format!(
            "the memory of the other processes shows the new price {} after it was changed at the \
             latest; the bound is {}",
            latency(longest),
            latency(BOUND)
        ),
    );
    Ok(())
}

fn pairs<'a>(
    addresses: &'a [SocketAddr],
    ids: &'a [u64],
) -> impl Iterator<Item = (SocketAddr, u64)> + 'a {
    addresses
        .iter()
        .flat_map(|address| ids.iter().map(|id| (*address, *id)))
}
