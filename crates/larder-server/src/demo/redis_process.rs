//! A redis-server of the demo's own: found on PATH, on a free port, in a temporary directory.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::demo::net;
use crate::os::{self, Ask};
use crate::refusal::Refusal;

const PROGRAM: &str = if cfg!(windows) {
    "redis-server.exe"
} else {
    "redis-server"
};
/// How long it may take to answer its first PING.
const START: Duration = Duration::from_secs(10);
/// How long it may take to end before it is killed.
const END: Duration = Duration::from_secs(3);
/// Somebody else may take the free port before redis-server does.
const TRIES: usize = 3;

/// A running redis-server, killed at the latest when this is dropped.
pub(crate) struct RedisProcess {
    child: Child,
    port: u16,
    _directory: TempDir,
}

impl RedisProcess {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// A [`Refusal`] if there is none on PATH.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let program = on_path(std::env::var_os("PATH")).ok_or_else(|| {
            Refusal::new(
                "no redis-server found on PATH; install one, or name a server with \
                 --tier redis=redis://HOST:PORT",
            )
        })?;
        let mut last = None;
        for _ in 0..TRIES {
            match Self::try_start(&program).await {
                Ok(running) => return Ok(running),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("redis-server was not tried")?)
    }

    async fn try_start(program: &PathBuf) -> anyhow::Result<Self> {
        let port = net::listen(0)?.local_addr()?.port();
        let directory = tempfile::Builder::new().prefix("larder-demo-").tempdir()?;
        let mut command = Command::new(program);
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--daemonize",
                "no",
                "--dir",
            ])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        // In a group of its own, Ctrl-C reaches the demo alone, and the demo ends it in order.
        #[cfg(unix)]
        command.process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut running = Self {
            child,
            port,
            _directory: directory,
        };
        running.answers().await?;
        Ok(running)
    }

    async fn answers(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + START;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("redis-server ended at once: {status}");
            }
            if let Ok(Ok(true)) = timeout(Duration::from_secs(1), ping(self.port)).await {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("redis-server does not answer after {} s", START.as_secs())
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Makes it hang: its sockets stay open, and nothing answers.
    pub(crate) fn freeze(&self) -> anyhow::Result<()> {
        self.ask(Ask::Freeze).context("cannot make Redis hang")
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) -> anyhow::Result<()> {
        self.ask(Ask::Thaw).context("cannot let Redis go on")
    }

    /// Ends it.
    pub(crate) async fn end(mut self) {
        // A process that stands still sees no request to end.
        let _ = self.ask(Ask::Thaw);
        let _ = self.ask(Ask::End);
        if timeout(END, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }

    fn ask(&self, ask: Ask) -> anyhow::Result<()> {
        let pid = self.child.id().context("redis-server has ended")?;
        Ok(os::ask(pid, ask)?)
    }
}

fn on_path(path: Option<OsString>) -> Option<PathBuf> {
    std::env::split_paths(&path?)
        .map(|directory| directory.join(PROGRAM))
        .find(|program| program.is_file())
}

async fn ping(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    Ok(&answer == b"+PONG")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_found_on_an_empty_path() {
        assert_eq!(on_path(None), None);
        assert_eq!(on_path(Some("/nowhere:/neither".into())), None);
    }
}
