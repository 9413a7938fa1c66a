//! Act 3: the third party dies. Its prices go on being served, marked stale, until it is back.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::demo::figures::{count, percent};
use crate::demo::net::Connection;
use crate::demo::stage::{PRICED, Stage};

/// Seconds with the third party alive, then dead at least and at most, then back.
const ALIVE: u64 = 1;
const DEAD: (u64, u64) = (3, 4);
const BACK: u64 = 3;
/// Connections that fetch every price once before the act.
const WARMERS: u64 = 25;

/// Plays the act.
pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.term.title("3. The third party dies, and comes back");
    let mut mix = stage.visitors("");
    (mix.price_share, mix.category_share) = (1.0, 0.0);
    for address in stage.fleet.addresses().to_vec() {
        warm(address).await?;
    }
    let mut load = stage.start_load(stage.config.demo.clients.div_ceil(2), &mix);
    stage.term.line("  alive:");
    let alive = stage.watch(&mut load, ALIVE).await?;

    stage.term.line("  dead:");
    stage.timeline.happened("third party dies");
    stage.vendor.kill();
    let seconds = stage.config.demo.seconds.clamp(DEAD.0, DEAD.1);
    let dead = stage.watch(&mut load, seconds).await?;

    stage.term.line("  back:");
    stage.timeline.happened("third party is back");
    stage.vendor.revive();
    let back = stage.watch(&mut load, BACK).await?;
    load.end().await;

    let failed = alive.tally.failed + dead.tally.failed + back.tally.failed;
    let (stale, answered) = (dead.tally.source_down, dead.tally.answered);
    let last = &back.last;
    let evidence = format!(
        "with the third party dead {} pages were served, {} of them marked stale, and {} requests \
         failed; in the last second with it back {} were stale",
        count(answered),
        percent(stale, answered),
        count(failed),
        percent(last.source_down, last.answered),
    );
    // With a TTL longer than the outage nothing has to go stale.
    let outage = Duration::from_secs(seconds);
    let must_go_stale = stage
        .config
        .caches
        .price
        .ttl
        .is_some_and(|ttl| ttl < outage);
    let holds = failed == 0 && (stale > 0 || !must_go_stale) && last.source_down == 0;
    stage.found(holds, evidence);
    Ok(())
}

/// Asks for every price once.
async fn warm(address: SocketAddr) -> anyhow::Result<()> {
    let mut warmers = JoinSet::new();
    for first in 1..=WARMERS {
        warmers.spawn(async move {
            let mut connection = Connection::open(address).await?;
            for id in (first..=PRICED).step_by(WARMERS as usize) {
                connection.get(&format!("/price/{id}")).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(warmed) = warmers.join_next().await {
        warmed??;
    }
    Ok(())
}
