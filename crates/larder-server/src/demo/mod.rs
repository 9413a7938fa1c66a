//! `larder demo`: a shop, visitors, and a story in a few acts, told with measured figures.
//!
//! Read [`run`] for the whole evening, [`story`] for the acts in order.

mod acts;
mod chart;
mod directory;
mod figures;
mod fleet;
mod hold;
mod load;
mod net;
mod note;
mod redis_process;
mod service;
mod shop;
mod stage;
mod stats;
mod timeline;
mod vendor;
pub(crate) mod worker;
mod zipf;

use std::process::ExitCode;

use anyhow::Context;

use crate::cli::DemoArgs;
use crate::config::Config;
use crate::os;
use crate::term::Term;
use acts::speed::Speed;
use stage::Stage;

/// Runs the demo until its end, or until it is asked to end.
///
/// The exit code is 1 if a claim did not hold, and 130 if the story was cut short.
pub(crate) async fn run(args: DemoArgs, term: &Term) -> anyhow::Result<ExitCode> {
    let end = os::end_requested().context("cannot listen for Ctrl-C")?;
    tokio::pin!(end);
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let config = Config::read(args, environment)?;
    let once = config.once;
    let mut stage = tokio::select! {
        stage = Stage::set(config, term) => stage?,
        () = &mut end => return Ok(cut_short(term)),
    };
    let told = tokio::select! {
        told = story(&mut stage) => Some(told),
        () = &mut end => None,
    };
    let code = match told {
        Some(Ok(())) => {
            if !once {
                stage.invite();
                end.await;
                term.line("\nClosing the shop.");
            }
            Ok(ExitCode::from(u8::from(!stage.all_claims_hold())))
        }
        Some(Err(error)) => Err(error),
        None => Ok(cut_short(term)),
    };
    stage.end().await;
    code
}

fn cut_short(term: &Term) -> ExitCode {
    term.line("\nEnding before the story does.");
    ExitCode::from(130)
}

/// The story, top to bottom.
async fn story(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let speed = acts::speed::play(stage).await?;
    acts::price_change::play(stage).await?;
    acts::outage::play(stage).await?;
    acts::stampede::play(stage).await?;
    if stage.has_disk() {
        acts::restart::play(stage).await?;
    }
    if stage.has_redis() {
        acts::hang::play(stage).await?;
    }
    close(stage, &speed)
}

/// The table, what each act found out, and the chart.
fn close(stage: &Stage<'_>, speed: &Speed) -> anyhow::Result<()> {
    stage.term.title("What was measured");
    stage.term.line(speed.table(stage.tier_name()));
    stage.term.line("");
    for finding in &stage.findings {
        stage.term.verdict(finding.holds, &finding.evidence);
    }
    let path = stage.draw()?;
    stage.term.line(format_args!(
        "\nSlowest read per second, with the events marked: {}",
        path.display()
    ));
    Ok(())
}
