//! Act 5: Redis hangs. Its sockets stay open and nothing answers. Readers hardly notice.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::demo::figures::{count, latency};
use crate::demo::load::Tally;
use crate::demo::stage::Stage;

/// Seconds before, during at most, and after.
const BEFORE: u64 = 2;
const DURING: u64 = 4;
const AFTER: u64 = 2;
/// What the tiers may take from one read, by default.
const BUDGET: Duration = Duration::from_millis(100);
/// How long the tier may take to be in use again.
const HEALED: Duration = Duration::from_secs(2);

/// Plays the act, or says why not.
pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.term.title("5. Redis hangs");
    if stage.redis.is_none() {
        stage.term.line(
            "  Left out: this Redis is not the demo's own, so it is not for the demo to stop.\n  \
             With --tier redis alone the demo starts one and plays this act.",
        );
        return Ok(());
    }
    let mut mix = stage.visitors("");
    mix.price_share = 0.0;
    let mut load = stage.start_load(stage.config.demo.clients.div_ceil(2), &mix);
    stage.term.line("  Redis answers:");
    let before = stage.watch(&mut load, BEFORE).await?.tally;

    stage.term.line("  Redis hangs:");
    stage.timeline.happened("Redis hangs");
    stage
        .redis
        .as_ref()
        .map_or(Ok(()), |redis| redis.freeze())?;
    let seconds = stage.config.demo.seconds.clamp(2, DURING);
    let during = stage.watch(&mut load, seconds).await?;

    stage.term.line("  Redis answers again:");
    stage.timeline.happened("Redis answers again");
    stage.redis.as_ref().map_or(Ok(()), |redis| redis.thaw())?;
    let healed = healed(stage).await?;
    let after = stage.watch(&mut load, AFTER).await?.tally;
    load.end().await;
    judge(
        stage,
        [&before, &during.tally, &during.last, &after],
        healed,
    );
    Ok(())
}

/// How long until every process uses Redis again; `None` if that takes too long.
async fn healed(stage: &Stage<'_>) -> anyhow::Result<Option<Duration>> {
    let began = Instant::now();
    while began.elapsed() < 3 * HEALED {
        let stats = stage.fleet.stats().await?;
        if stats.tiers.values().all(|tier| tier.open == 0) {
            return Ok(Some(began.elapsed()));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(None)
}

/// While Redis hangs nobody waits for it longer than the budget, and once it is out of use nobody
/// waits at all. Three budgets are allowed, because the demo itself keeps the machine busy; and 99
/// of 100 reads are judged, because the slowest of thousands tells of the machine.
fn judge(stage: &mut Stage<'_>, tallies: [&Tally; 4], healed: Option<Duration>) {
    let [before, during, last, after] = tallies;
    let failed = before.failed + during.failed + after.failed;
    let p99 = |tally: &Tally| tally.quantile(0.99);
    stage.found(
        failed == 0 && p99(during) <= p99(before) + BUDGET * 3 && p99(last) <= p99(before) + BUDGET,
        format!(
            "while Redis hung, {} reads were served and {} failed; p99 {}, in the last second {} \
             (before: {}); the slowest took {}, in the last second {} (before: {})",
            count(during.answered),
            count(failed),
            latency(p99(during)),
            latency(p99(last)),
            latency(p99(before)),
            latency(during.slowest()),
            latency(last.slowest()),
            latency(before.slowest()),
        ),
    );
    let evidence = match healed {
        Some(healed) => format!(
            "Redis was in use again {} after it came back",
            latency(healed)
        ),
        None => "Redis was not in use again".to_owned(),
    };
    stage.found(healed.is_some_and(|healed| healed <= HEALED * 3), evidence);
}
