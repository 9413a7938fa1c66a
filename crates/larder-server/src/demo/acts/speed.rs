//! Act 1: the same visitors, first without the cache, then with it.

use crate::demo::figures::{count, latency, percent, rate, table};
use crate::demo::stage::{Phase, Stage};
use crate::demo::vendor;

/// Both halves of the act.
pub(crate) struct Speed {
    without: Phase,
    with: Phase,
}

/// Plays the act.
pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<Speed> {
    let clients = stage.config.demo.clients;
    stage
        .term
        .title("1. Visitors, without the cache and with it");
    stage.term.line(format_args!(
        "  {clients} clients ask without pause: 86 % products, 10 % categories (an aggregate over\n  \
         thousands of rows), 4 % prices at a third party that takes {}. A few things\n  \
         are asked for often, most seldom (zipf).",
        latency(vendor::LATENCY)
    ));
    let without = half(stage, "without the cache", "/direct").await?;
    let with = half(stage, "with the cache, empty at first", "").await?;
    let speed = Speed { without, with };
    let (before, after) = (&speed.without.tally, &speed.with.tally);
    let times = after.per_second() / before.per_second().max(1.0);
    let (many, few) = (per_thousand(&speed.without), per_thousand(&speed.with));
    // How much faster that is depends on the machine and on what else it does, so it is told and
    // not judged.
    stage.found(
        few < many && before.failed + after.failed == 0,
        format!(
            "with the cache, empty at first, 1,000 requests cost {few:.0} database queries instead \
             of {many:.0}; the shop answers {times:.1} times the requests per second"
        ),
    );
    Ok(speed)
}

async fn half(stage: &mut Stage<'_>, what: &str, prefix: &'static str) -> anyhow::Result<Phase> {
    stage.term.line(format_args!("  {what}:"));
    stage
        .timeline
        .happened(what.split(',').next().unwrap_or(what));
    let mix = stage.visitors(prefix);
    let mut load = stage.start_load(stage.config.demo.clients, &mix);
    let seconds = stage.config.demo.seconds;
    let phase = stage.watch(&mut load, seconds).await?;
    load.end().await;
    Ok(phase)
}

fn per_thousand(phase: &Phase) -> f64 {
    phase.stats.queries as f64 * 1e3 / (phase.tally.answered.max(1)) as f64
}

impl Speed {
    /// The closing table.
    pub(crate) fn table(&self, tier: Option<&str>) -> String {
        let row = |name: &str, figure: &dyn Fn(&Phase) -> String| {
            vec![name.to_owned(), figure(&self.without), figure(&self.with)]
        };
        let quantile = |share: f64| move |phase: &Phase| latency(phase.tally.quantile(share));
        let hits = |hits: fn(&crate::demo::stats::Stats) -> u64| {
            move |phase: &Phase| percent(hits(&phase.stats), phase.stats.reads())
        };
        let heads = ["", "without larder", "with larder"];
        let mut rows = vec![
            heads.map(String::from).to_vec(),
            row("requests per second", &|phase| {
                rate(phase.tally.per_second())
            }),
            row("latency p50", &quantile(0.5)),
            row("latency p99", &quantile(0.99)),
            row("slowest", &|phase| latency(phase.tally.slowest())),
            row("database queries", &|phase| count(phase.stats.queries)),
            row("queries per 1,000 requests", &|phase| {
                format!("{:.1}", per_thousand(phase))
            }),
            row("third-party calls", &|phase| {
                count(phase.stats.vendor_calls)
            }),
            row("answered from memory", &hits(|stats| stats.memory_hits())),
        ];
        if let Some(tier) = tier {
            let name = format!("answered from {tier}");
            rows.push(row(&name, &hits(|stats| stats.tier_hits())));
        }
        rows.push(row("failed requests", &|phase| count(phase.tally.failed)));
        table(&rows)
    }
}
