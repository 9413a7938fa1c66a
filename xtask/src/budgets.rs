//! How large and how slow to build `larder` may be. Whoever adds the cache to a service pays this.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::workspace::{Workspace, cannot_start, run};

/// Packages in the tree of `larder` with its default features, itself included.
const MOST_PACKAGES: usize = 30;
/// A `cargo check` of `larder` into an empty target directory, on two cores.
const LONGEST_CHECK: Duration = Duration::from_secs(20);
/// A release build of the demo into an empty target directory up to its first figures, on two
/// cores.
const LONGEST_DEMO: Duration = Duration::from_secs(240);
/// How often the check is timed; one run is at the mercy of whatever else the machine does.
const ROUNDS: usize = 3;
/// What the first line of the demo that carries figures says.
const FIRST_FIGURES: &str = "req/s";

/// Counts the packages in `larder`'s tree; an error if there are too many.
pub(crate) fn tree(workspace: &Workspace) -> Result<String, String> {
    let tree = workspace.tree("larder")?;
    let found = format!("{} of {MOST_PACKAGES} crates in larder's tree", tree.len());
    if tree.len() <= MOST_PACKAGES {
        return Ok(found);
    }
    let names: Vec<_> = tree.iter().map(|package| package.name.as_str()).collect();
    Err(format!("{found}: {}", names.join(", ")))
}

/// Times the cold check of `larder`. Prints and judges nothing: times belong to the machine.
pub(crate) fn cold_check(workspace: &Workspace) -> Result<String, String> {
    run(&mut workspace.cargo("fetch --quiet"))?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let target = EmptyTarget::new(workspace)?;
        let mut command = workspace.cargo("check --quiet --package larder --target-dir");
        times.push(time(command.arg(target.path()))?);
    }
    times.sort();
    Ok(format!(
        "cold `cargo check -p larder`: median {:.1} s, min {:.1} s, max {:.1} s of {ROUNDS} runs \
         on {} cores (at most {} s on 2)",
        times[ROUNDS / 2].as_secs_f64(),
        times[0].as_secs_f64(),
        times[ROUNDS - 1].as_secs_f64(),
        cores(),
        LONGEST_CHECK.as_secs(),
    ))
}

/// Times a cold release build of the demo and its way to the first figures.
pub(crate) fn cold_demo(workspace: &Workspace) -> Result<String, String> {
    run(&mut workspace.cargo("fetch --quiet"))?;
    let target = EmptyTarget::new(workspace)?;
    let mut build = workspace.cargo("build --quiet --release --bin larder --target-dir");
    let built = time(build.arg(target.path()))?;
    let mut demo = workspace.program(target.path().join("release/larder"));
    // The shop that the demo builds on its first run goes where the build goes.
    demo.args(["demo", "--once", "--data"])
        .arg(target.path().join("demo-data"));
    let shown = time_to_first_figures(&mut demo)?;
    Ok(format!(
        "cold demo: release build {:.0} s, first figures {:.0} s later: {:.0} s on {} cores \
         (at most {} s on 2)",
        built.as_secs_f64(),
        shown.as_secs_f64(),
        (built + shown).as_secs_f64(),
        cores(),
        LONGEST_DEMO.as_secs(),
    ))
}

/// Runs the demo until it has printed a line with [`FIRST_FIGURES`], and ends it there.
fn time_to_first_figures(demo: &mut Command) -> Result<Duration, String> {
    let started = Instant::now();
    let mut child = demo
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| cannot_start(demo, &error))?;
    let shown = child.stdout.take().and_then(|output| {
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        lines
            .any(|line| line.contains(FIRST_FIGURES))
            .then(|| started.elapsed())
    });
    // It may have ended by itself meanwhile; either way nothing of it is left.
    child.kill().ok();
    child.wait().map_err(|error| error.to_string())?;
    shown.ok_or(format!(
        "the demo ended without a line that says `{FIRST_FIGURES}`"
    ))
}

fn time(command: &mut Command) -> Result<Duration, String> {
    let started = Instant::now();
    run(command)?;
    Ok(started.elapsed())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A target directory that begins empty and is removed with this guard.
struct EmptyTarget(PathBuf);

impl EmptyTarget {
    fn new(workspace: &Workspace) -> Result<Self, String> {
        let path = workspace.path(&format!("target/cold-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for EmptyTarget {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_is_timed_to_its_first_figures_and_not_to_its_end() {
        let workspace = Workspace::here();
        let mut endless = workspace.program("sh");
        endless.args(["-c", "echo building; echo 12 req/s; exec sleep 600"]);
        assert!(time_to_first_figures(&mut endless).unwrap() < Duration::from_secs(60));
        let mut silent = workspace.program("sh");
        let error = time_to_first_figures(silent.args(["-c", "echo done"])).unwrap_err();
        assert!(error.contains("req/s"), "{error}");
    }

    #[test]
    fn a_cold_target_directory_is_empty_and_leaves_nothing() {
        let workspace = Workspace::here();
        let target = EmptyTarget::new(&workspace).unwrap();
        let path = target.path().to_path_buf();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        drop(target);
        assert!(!path.exists());
    }
}
