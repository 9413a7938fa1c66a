//! Act 4: thousands of clients ask for one cold key at once. One query answers them all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::http::Method;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::demo::figures::{count, latency};
use crate::demo::load::Tally;
use crate::demo::net::{self, Connection};
use crate::demo::shop::CATEGORIES;
use crate::demo::stage::Stage;

/// Files that the demo needs beside the connections of the stampede.
const OTHER_FILES: u64 = 300;
/// Connections opened at once, so that none waits in a full backlog.
const OPENING: usize = 64;

/// Plays the act.
pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let clients = clients(stage);
    stage.term.title(format_args!(
        "4. {} clients, one cold key",
        count(clients as u64)
    ));
    // No visitor asked for this category before; a run on the same disk or Redis may have.
    let cold = format!("/demo/cold/{CATEGORIES}");
    net::request(stage.fleet.first(), Method::POST, &cold, "").await?;
    let before = stage.fleet.stats().await?;
    let connections = connect(stage.fleet.addresses(), clients).await?;
    stage
        .timeline
        .happened(format!("{} clients at once", count(clients as u64)));
    let tally = ask_at_once(connections).await?;
    stage.timeline.measured(&tally);
    let stats = stage.fleet.stats().await?.since(&before);
    // Processes that cannot reach a tier in common cannot know of each other's loads.
    let apart = before.tiers.values().any(|tier| tier.open > 0);
    let most = if apart {
        stage.fleet.addresses().len() as u64
    } else {
        1
    };
    let shared = stats
        .caches
        .get("category")
        .map_or(0, |cache| cache.shared_loads);
    stage.found(
        (1..=most).contains(&stats.queries)
            && tally.failed == 0
            && tally.answered == clients as u64,
        format!(
            "{} clients asked for one cold category at once: database queries {}, answers {}, \
             of them {} waited for the same load; the slowest took {}",
            count(clients as u64),
            stats.queries,
            count(tally.answered),
            count(shared),
            latency(tally.slowest())
        ),
    );
    Ok(())
}

/// As many as asked for, or as many as the limit on open files allows.
fn clients(stage: &Stage<'_>) -> usize {
    let wanted = stage.config.demo.stampede;
    // Both ends of a connection are in this process unless workers serve.
    let ends = if stage.fleet.addresses().len() > 1 {
        1
    } else {
        2
    };
    let allowed = stage.open_files.saturating_sub(OTHER_FILES) / ends;
    let allowed = usize::try_from(allowed).unwrap_or(usize::MAX).max(2);
    if allowed < wanted {
        stage.term.warning(format_args!(
            "only {} files may be open at once, so {allowed} clients have to do (ulimit -n)",
            stage.open_files
        ));
    }
    wanted.min(allowed)
}

async fn connect(addresses: &[SocketAddr], clients: usize) -> anyhow::Result<Vec<Connection>> {
    let mut connections = Vec::with_capacity(clients);
    let mut opening = JoinSet::new();
    for address in addresses.iter().copied().cycle().take(clients) {
        if opening.len() >= OPENING
            && let Some(opened) = opening.join_next().await
        {
            connections.push(opened??);
        }
        opening.spawn(Connection::open(address));
    }
    while let Some(opened) = opening.join_next().await {
        connections.push(opened?.context("a client cannot connect")?);
    }
    Ok(connections)
}

async fn ask_at_once(connections: Vec<Connection>) -> anyhow::Result<Tally> {
    let gate = Arc::new(Barrier::new(connections.len()));
    let mut clients = JoinSet::new();
    for mut connection in connections {
        let gate = Arc::clone(&gate);
        clients.spawn(async move {
            gate.wait().await;
            let began = Instant::now();
            let reply = connection.get(&format!("/category/{CATEGORIES}")).await;
            (reply, began.elapsed())
        });
    }
    let mut tally = Tally::new();
    let began = Instant::now();
    while let Some(asked) = clients.join_next().await {
        let (reply, latency) = asked?;
        tally.count(&reply, latency);
    }
    tally.elapsed = began.elapsed().max(Duration::from_micros(1));
    Ok(tally)
}
