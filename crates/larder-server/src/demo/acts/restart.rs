//! With a tier on disk: the process restarts, and what it knew is still there.

use crate::demo::figures::count;
use crate::demo::stage::{Stage, read_product};

/// Products read before and after.
const READ: u64 = 100;

/// Plays the act.
pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.term.title("5. The process restarts");
    let address = stage.fleet.first();
    for id in 1..=READ {
        read_product(address, id).await?;
    }
    stage.timeline.happened("restart");
    stage.fleet.restart().await?;
    let before = stage.fleet.stats().await?;
    for id in 1..=READ {
        read_product(address, id).await?;
    }
    let stats = stage.fleet.stats().await?.since(&before);
    stage.found(
        stats.queries == 0 && stats.tier_hits() == READ,
        format!(
            "after a restart with empty memory {} products were read: {} came from the disk, \
             with {} database queries",
            count(READ),
            count(stats.tier_hits()),
            count(stats.queries)
        ),
    );
    Ok(())
}
