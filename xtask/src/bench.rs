//! `bench`: what is measured and never asserted.

use std::ffi::OsStr;

use crate::command::{Bench, Depth, Report};
use crate::workspace::{Workspace, run as run_command};
use crate::{budgets, provision};

/// Takes the measurements asked for. The benchmarks print their own tables; the figures of the
/// budgets are returned.
pub(crate) fn run(workspace: &Workspace, what: &Bench) -> Result<String, String> {
    let programs = [
        (what.memory, "memory", Needs::Nothing),
        (what.memory, "footprint", Needs::Nothing),
        (what.read_path, "read-path", Needs::Servers),
        (what.coherence, "coherence", Needs::Servers),
        (what.coherence, "beside-amalgam", Needs::Servers),
        (what.stampede, "stampede", Needs::Nothing),
        (what.stampede, "refresh-ahead", Needs::Nothing),
    ];
    for (report, program, needs) in programs {
        let Some(report) = report else { continue };
        if needs == Needs::Servers {
            provision::servers(workspace)?;
        }
        measure(workspace, program, &[], report)?;
    }
    if let Some((report, folder)) = &what.hitratio {
        measure(workspace, "hitratio", &[folder.as_os_str()], *report)?;
    }
    what.budgets
        .map_or(Ok(String::new()), |depth| build_budgets(workspace, depth))
}

/// What a benchmark finds on the machine.
#[derive(PartialEq)]
enum Needs {
    Nothing,
    Servers,
}

fn measure(
    workspace: &Workspace,
    program: &str,
    arguments: &[&OsStr],
    report: Report,
) -> Result<(), String> {
    let mut bench = workspace.cargo("run --release --quiet --manifest-path bench/Cargo.toml");
    bench.args(["--bin", program, "--"]).args(arguments);
    if report == Report::Write {
        bench
            .arg("--write")
            .arg(workspace.path("docs/benchmarks.md"));
    }
    run_command(&mut bench)
}

fn build_budgets(workspace: &Workspace, depth: Depth) -> Result<String, String> {
    let mut lines = vec![budgets::tree(workspace)?, budgets::cold_check(workspace)?];
    if depth == Depth::Demo {
        lines.push(budgets::cold_demo(workspace)?);
    }
    Ok(lines.join("\n"))
}
