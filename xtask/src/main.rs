//! The project's own commands: `cargo xtask <command>`.
//!
//! Only what outgrows one command lives here. In reading order:
//!
//! - [`command`]: what the arguments ask for
//! - [`checks`]: `test`, every step that a change must pass, in order
//! - [`provision`]: the programs that tests need and Cargo does not bring
//! - [`layers`]: which crate may depend on which
//! - [`budgets`]: how large and how slow to build `larder` may be
//! - [`tally`]: how many tests ran
//! - [`bench`]: the benchmarks and the budgets that take time
//! - [`workspace`]: running Cargo in this repository

mod bench;
mod budgets;
mod checks;
mod command;
mod layers;
mod provision;
mod tally;
mod workspace;

use std::process::ExitCode;

use crate::command::{Command, HELP};
use crate::workspace::Workspace;

fn main() -> ExitCode {
    match Command::parse(std::env::args().skip(1)) {
        Ok(command) => run(command),
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> ExitCode {
    let workspace = Workspace::here();
    match command {
        Command::Help => print(Ok(HELP.trim_end().into())),
        Command::Provision => print(provision::for_tests(&workspace)),
        Command::Test { filter } => checks::run(&workspace, &filter),
        Command::Bench(what) => print(bench::run(&workspace, &what)),
    }
}

fn print(result: Result<String, String>) -> ExitCode {
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
