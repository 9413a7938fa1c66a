use std::collections::HashMap;
use std::env;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::{Error, Twin};

/// A [`Twin`] that is told things in lines, and answers each with a line.
///
/// Lines are done side by side, each in a task of its own, and answered in whatever order they
/// end. The process ends when its peer is dropped.
///
/// ```no_run
/// use std::time::Duration;
/// use larder_testkit::Peer;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// // In `#[test] fn be_a_node()`, which ends at once where there is nobody to answer:
/// Peer::answer(|line| async move { Ok(format!("{line} yourself")) }).await;
///
/// // In the test that wants another process:
/// let peer = Peer::start("be_a_node", &[]).await?;
/// assert_eq!(peer.ask("hello", Duration::from_secs(30)).await?, "hello yourself");
/// peer.twin().kill9();
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Peer {
    twin: Twin,
    lines: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Arc<Waiting>,
    asked: AtomicU64,
}

/// Where the twin finds who asks.
const VARIABLE: &str = "LARDER_PEER_OF";
/// How long a twin may take to come: starting a process on a busy machine takes its time.
const COMES_WITHIN: Duration = Duration::from_secs(60);

/// Why there is no answer to a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The other process is gone.
    Gone,
    /// It did not answer in time. It may yet do what it was told.
    Silent,
    /// What it was told failed there, for this reason.
    Failed(String),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("no answer: the other process is gone"),
            Self::Silent => f.write_str("no answer in time"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for NoAnswer {}

/// Who waits for the answer to which line; `None` once nobody answers any more.
#[derive(Debug)]
struct Waiting(Mutex<Option<HashMap<u64, oneshot::Sender<String>>>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<String>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// Runs the test of this name in another process, with these variables besides those of this
    /// one, and waits until it answers.
    pub async fn start(test: &str, variables: &[(&str, &str)]) -> Result<Self, Error> {
        let failed = |error| Error::io("cannot wait for another process", error);
        let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let door = door.map_err(failed)?;
        let address = door.local_addr().map_err(failed)?.to_string();
        let mut all = variables.to_vec();
        all.push((VARIABLE, &address));
        let twin = Twin::start(test, &all)?;
        let (socket, _) = tokio::time::timeout(COMES_WITHIN, door.accept())
            .await
            .map_err(|_| Error::new("the other process does not come"))?
            .map_err(failed)?;
        let (answers, lines) = socket.into_split();
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        tokio::spawn(listen(answers, Arc::clone(&waiting)));
        Ok(Self {
            twin,
            lines: tokio::sync::Mutex::new(lines),
            waiting,
            asked: AtomicU64::new(0),
        })
    }

    /// The process.
    pub fn twin(&self) -> &Twin {
        &self.twin
    }

    /// Tells the other process a line and waits for the answer.
    pub async fn ask(&self, line: &str, patience: Duration) -> Result<String, NoAnswer> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        match &mut *self.waiting.lock() {
            Some(waiting) => drop(waiting.insert(number, answer)),
            None => return Err(NoAnswer::Gone),
        }
        let line = format!("{number} {line}\n");
        let asking = async {
            let sent = self.lines.lock().await.write_all(line.as_bytes()).await;
            sent.map_err(|_| NoAnswer::Gone)?;
            answered.await.map_err(|_| NoAnswer::Gone)
        };
        let answer = tokio::time::timeout(patience, asking).await;
        if let Some(waiting) = &mut *self.waiting.lock() {
            waiting.remove(&number);
        }
        let answer = answer.unwrap_or(Err(NoAnswer::Silent))?;
        match answer.strip_prefix("error ") {
            Some(why) => Err(NoAnswer::Failed(why.to_owned())),
            None => Ok(answer),
        }
    }

    /// The side of the twin: does what it is told until the other one is gone. Returns at once in a
    /// process that is no twin.
    pub async fn answer<F, Fut>(answer: F)
    where
        F: Fn(String) -> Fut,
        Fut: Future<Output = Result<String, String>> + Send + 'static,
    {
        let Ok(asker) = env::var(VARIABLE) else {
            return;
        };
        let Ok(socket) = TcpStream::connect(asker).await else {
            return;
        };
        let (lines, answers) = socket.into_split();
        let answers = Arc::new(tokio::sync::Mutex::new(answers));
        let mut lines = BufReader::new(lines).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let (number, line) = line.split_once(' ').unwrap_or((&line, ""));
            let (number, answers) = (number.to_owned(), Arc::clone(&answers));
            let answering = answer(line.to_owned());
            tokio::spawn(async move {
                let line = match answering.await {
                    Ok(answer) => format!("{number} {}\n", on_one_line(&answer)),
                    Err(why) => format!("{number} error {}\n", on_one_line(&why)),
                };
                // Whoever asked may be gone.
                let _ = answers.lock().await.write_all(line.as_bytes()).await;
            });
        }
    }
}

fn on_one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

async fn listen(answers: OwnedReadHalf, waiting: Arc<Waiting>) {
    let mut answers = BufReader::new(answers).lines();
    while let Ok(Some(line)) = answers.next_line().await {
        let (number, answer) = line.split_once(' ').unwrap_or((&line, ""));
        let waits = number.parse().ok().and_then(|number: u64| {
            let mut waiting = waiting.lock();
            waiting.as_mut()?.remove(&number)
        });
        if let Some(waits) = waits {
            // Whoever asked may have lost patience.
            let _ = waits.send(answer.to_owned());
        }
    }
    // Nobody answers any more: whoever waits is told by the end of the channel.
    *waiting.lock() = None;
}
