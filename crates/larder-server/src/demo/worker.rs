//! One of several processes that serve the shop.
//!
//! The demo starts this program again, hands it a [`Plan`] as one line of JSON, and reads one
//! line back: `ready`, or why not. The worker ends when its standard input does, so that it
//! cannot outlive the demo, however that ends.

use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use super::fleet::{Plan, Serving};
use crate::os;
use crate::refusal::Refusal;

/// The command, which `--help` does not name.
pub(crate) const COMMAND: &str = "demo-worker";

const READY: &str = "ready";
const REFUSED: &str = "refused ";
/// How long a worker may take to say that it is ready.
const START: Duration = Duration::from_secs(30);
/// How long a worker may take to end before it is killed.
const END: Duration = Duration::from_secs(8);

/// Serves until standard input ends or the process is asked to.
pub(crate) async fn run() -> anyhow::Result<ExitCode> {
    let end = os::end_requested()?;
    os::raise_open_files();
    let mut input = BufReader::new(tokio::io::stdin());
    let mut line = String::new();
    input.read_line(&mut line).await?;
    let plan: Plan = serde_json::from_str(&line)
        .map_err(|_| Refusal::new("demo-worker is started by the demo, not by hand"))?;
    let serving = match Serving::start(&plan).await {
        Ok(serving) => serving,
        Err(error) => {
            say(&format!("{REFUSED}{error:#}")).await?;
            return Ok(ExitCode::from(2));
        }
    };
    say(READY).await?;
    tokio::select! {
        () = end => {}
        _ = input.read_u8() => {}
    }
    serving.end().await;
    Ok(ExitCode::SUCCESS)
}

async fn say(line: &str) -> std::io::Result<()> {
    let mut out = tokio::io::stdout();
    out.write_all(format!("{}\n", line.replace('\n', " ")).as_bytes())
        .await?;
    out.flush().await
}

/// A worker as the demo sees it; killed at the latest when this is dropped.
pub(crate) struct WorkerProcess {
    child: Child,
    input: ChildStdin,
}

impl WorkerProcess {
    /// Starts a worker and waits until it serves.
    ///
    /// # Errors
    /// The worker's own [`Refusal`].
    pub(crate) async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        // In a group of its own, Ctrl-C reaches the demo alone, and the demo ends it in order.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn().context("cannot start a worker")?;
        let mut input = child.stdin.take().context("a worker without input")?;
        let output = child.stdout.take().context("a worker without output")?;
        input
            .write_all(format!("{}\n", serde_json::to_string(plan)?).as_bytes())
            .await?;
        let mut line = String::new();
        let mut output = BufReader::new(output);
        timeout(START, output.read_line(&mut line))
            .await
            .context("a worker did not start in time")??;
        match line.trim_end() {
            READY => Ok(Self { child, input }),
            other => match other.strip_prefix(REFUSED) {
                Some(sentence) => Err(Refusal::new(sentence).into()),
                None => bail!("a worker ended before it served"),
            },
        }
    }

    /// Asks the worker to end, and waits for it.
    pub(crate) async fn end(mut self) {
        drop(self.input);
        if timeout(END, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}
