//! The `larder` binary. `larder demo` serves a shop through the cache and tells what it sees;
//! `larder feed` installs what makes changed rows of a database invalidate.
//!
//! Exit codes: 0 when all went well, 1 when something failed or a claim of the demo did not hold,
//! 2 when the command, the configuration or the surroundings have to be put right first.
#![forbid(unsafe_code)]

mod cli;
mod config;
mod demo;
mod feed;
mod os;
mod refusal;
mod term;

use std::process::ExitCode;

use anyhow::Context;
use cli::Command;
use refusal::Refusal;

fn main() -> ExitCode {
    let term = term::Term::stdout();
    match run(&term) {
        Ok(code) => code,
        Err(error) => {
            term::complain(&error);
            ExitCode::from(if error.is::<Refusal>() { 2 } else { 1 })
        }
    }
}

fn run(term: &term::Term) -> anyhow::Result<ExitCode> {
    let command = cli::parse(lexopt::Parser::from_env())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = match command {
        Command::Help => {
            term.line(cli::HELP);
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            term.line(concat!("larder ", env!("CARGO_PKG_VERSION")));
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo(args) => runtime.block_on(demo::run(args, term)),
        Command::Feed(args) => runtime.block_on(feed::run(args, term)),
        Command::Worker => runtime.block_on(demo::worker::run()),
    };
    // A query that still runs in a database thread must not hold up the end.
    runtime.shutdown_background();
    outcome
}
