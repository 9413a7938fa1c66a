//! `bench`: what is measured and never asserted.

use std::ffi::OsStr;

use crate::command::{Bench, Depth, Report};
use crate::workspace::{Workspace, run as run_command};
use crate::{budgets, provision};

/// Takes the measurements asked for. The benchmarks print their own tables; the figures of the
/// budgets are returned.
pub(crate) fn run(workspace: &Workspace, what: &Bench) -> Result<String, String> {
    let programs = [
        (what.read_path, "read-path"),
        (what.coherence, "coherence"),
        (what.coherence, "beside-amalgam"),
    ];
    for (report, program) in programs {
        if let Some(report) = report {
            provision::servers(workspace)?;
            measure(workspace, program, &[], report)?;
        }
    }
    if let Some((report, folder)) = &what.hitratio {
        measure(workspace, "hitratio", &[folder.as_os_str()], *report)?;
    }
    what.budgets
        .map_or(Ok(String::new()), |depth| build_budgets(workspace, depth))
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
