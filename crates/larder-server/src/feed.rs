//! `larder feed`: the change feed of a PostgreSQL database, from the command line.

use std::path::Path;
use std::process::ExitCode;

use larder_sql::{Feed, FeedConfig, FeedError, FeedStatus, Plan};
use serde::Deserialize;

use crate::cli::{FeedArgs, FeedVerb};
use crate::config::Fault;
use crate::refusal::Refusal;
use crate::term::Term;

/// The part of a configuration that is about feeds. What else is in the file is for others.
#[derive(Debug, Deserialize)]
struct FeedFile {
    feed: Option<FeedConfig>,
}

/// Does what was asked.
///
/// # Errors
/// A [`Refusal`] for everything that somebody has to put right: the configuration, the database,
/// or a right in it.
pub(crate) async fn run(args: FeedArgs, term: &Term) -> anyhow::Result<ExitCode> {
    let feed = open(&args)?;
    match args.verb {
        FeedVerb::Plan => term.line(feed.plan().await.map_err(refuse)?.to_string().trim_end()),
        FeedVerb::Install => {
            let plan = feed.plan().await.map_err(refuse)?;
            return carry_out(plan, &args, "Install this?", "installed", term).await;
        }
        FeedVerb::Uninstall => {
            let plan = feed.plan_removal().await.map_err(refuse)?;
            return carry_out(plan, &args, "Remove it?", "removed", term).await;
        }
        FeedVerb::Status => describe(&feed.status().await.map_err(refuse)?, term),
    }
    Ok(ExitCode::SUCCESS)
}

fn open(args: &FeedArgs) -> anyhow::Result<Feed> {
    let config = args
        .config
        .as_deref()
        .ok_or_else(|| Refusal::new("feed needs --config FILE, with the tables in [feed]"))?;
    let config = read(config)?;
    let from_environment = || {
        std::env::var("DATABASE_URL")
            .ok()
            .filter(|url| !url.is_empty())
    };
    let url = args.database.clone().or_else(from_environment);
    let url = url.ok_or_else(|| Refusal::new("feed needs --database URL, or DATABASE_URL"))?;
    Feed::at(&url, config).map_err(refuse)
}

fn read(path: &Path) -> anyhow::Result<FeedConfig> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Refusal::new(format!("cannot read {shown}: {error}")))?;
    let file: FeedFile = toml::from_str(&text).map_err(|error| {
        let Fault { at, what } = Fault::of(&text, &error);
        Refusal::new(format!("{shown}:{at}: {what}"))
    })?;
    let missing = || Refusal::new(format!("{shown} has no [feed]")).into();
    file.feed.ok_or_else(missing)
}

/// Shows a plan and runs it, if there is anything to do and somebody agrees.
async fn carry_out(
    plan: Plan,
    args: &FeedArgs,
    question: &str,
    done: &str,
    term: &Term,
) -> anyhow::Result<ExitCode> {
    term.line(plan.to_string().trim_end());
    if plan.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let agreed = args.yes || term.ask(question).ok_or_else(nobody_to_ask)?;
    if !agreed {
        term.line("Nothing was done.");
        return Ok(ExitCode::FAILURE);
    }
    plan.run().await.map_err(refuse)?;
    term.line(format_args!("-- The feed is {done}."));
    Ok(ExitCode::SUCCESS)
}

fn nobody_to_ask() -> Refusal {
    Refusal::new("there is nobody to ask on standard input; add --yes if this is what you want")
}

fn describe(status: &FeedStatus, term: &Term) {
    match (status.backlog, status.oldest) {
        (1, Some(age)) => term.line(format_args!(
            "1 change waits, for {:.1} s",
            age.as_secs_f64()
        )),
        (many, Some(age)) => term.line(format_args!(
            "{many} changes wait, the oldest for {:.1} s",
            age.as_secs_f64()
        )),
        (_, None) => term.line("no change waits"),
    }
    match &status.follower {
        Some(follower) => term.line(format_args!(
            "followed by `{}` (server process {})",
            follower.application, follower.pid
        )),
        None => term.line("nobody follows"),
    }
}

/// The sentence with its causes: all of it is for whoever has to put it right.
fn refuse(error: FeedError) -> anyhow::Error {
    Refusal::new(format!("{:#}", anyhow::Error::from(error))).into()
}
