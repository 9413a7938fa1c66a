//! Filling a cache before its readers come.
//!
//! ```text
//! Feed ── so many at once ──► tiers, then the loader ──► progress ──► ready(share), done()
//! ```

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::feed::Feed;
use crate::clock::BoxFuture;
use crate::error::Result;
use crate::tasks::{TaskKind, Tasks};

/// How many loads run at once, unless told otherwise.
const CONCURRENCY: usize = 16;

/// Does the work for some of what comes from a feed.
type Work<T> = Arc<dyn Fn(Vec<T>) -> BoxFuture<'static, Vec<Result<()>>> + Send + Sync>;

/// Is told how far it has got.
type Watch = Box<dyn Fn(&WarmProgress) + Send + Sync>;

/// A warming that has not begun. Made by [`LoadingCache::warm`](crate::LoadingCache::warm) and
/// [`Cache::warm_with`](crate::Cache::warm_with).
#[must_use = "nothing is warmed before it is started"]
pub struct Warm<T> {
    pub(super) tasks: Arc<Tasks>,
    pub(super) feed: Feed<T>,
    /// How many go together.
    pub(super) batch: usize,
    pub(super) work: Work<T>,
    concurrency: usize,
    watch: Option<Watch>,
}

impl<T: Send + 'static> Warm<T> {
    pub(super) fn new(tasks: &Arc<Tasks>, feed: Feed<T>, batch: usize, work: Work<T>) -> Self {
        Self {
            tasks: Arc::clone(tasks),
            feed,
            batch: batch.max(1),
            work,
            concurrency: CONCURRENCY,
            watch: None,
        }
    }

    /// How many calls of the loader run at once, 1 to 1,024. Default 16. Those of a
    /// [`BatchLoader`](crate::BatchLoader) name up to 256 keys each.
    pub fn concurrency(self, loads: usize) -> Self {
        let concurrency = loads.clamp(1, 1_024);
        Self {
            concurrency,
            ..self
        }
    }

    /// Has `watch` told how far it has got, after every call of the loader. It should return at once;
    /// one that panics is as good as none.
    pub fn watched(self, watch: impl Fn(&WarmProgress) + Send + Sync + 'static) -> Self {
        let watch: Option<Watch> = Some(Box::new(watch));
        Self { watch, ..self }
    }

    /// Begins. Dropping what is returned ends it; what is loaded by then stays.
    ///
    /// Outside a tokio runtime, and after shutdown, it is over at once with nothing done.
    pub fn start(self) -> Warming {
        let begun = WarmProgress {
            total: self.feed.total(),
            ..WarmProgress::default()
        };
        let (state, progress) = watch::channel(begun);
        let (end, cancelled) = oneshot::channel();
        let tally = Arc::new(Tally {
            state,
            watch: self.watch,
            telling: Mutex::new(()),
        });
        let course = Course {
            feed: self.feed,
            batch: self.batch,
            concurrency: self.concurrency,
            is_open: true,
            under_way: JoinSet::new(),
            cancelled,
        };
        // A feed may never end, and nobody waits for it at a shutdown.
        self.tasks
            .spawn(TaskKind::Watch, course.run(self.work, tally));
        Warming {
            progress,
            _end: end,
        }
    }
}

impl<T> fmt::Debug for Warm<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warm")
            .field("feed", &self.feed)
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

/// How far a warming has got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WarmProgress {
    /// Keys that were dealt with, those that failed included.
    pub done: u64,
    /// How many there are; `None` if the feed does not know.
    pub total: Option<u64>,
    /// Keys whose load failed.
    pub failed: u64,
}

impl WarmProgress {
    /// The share of keys that are warm, 0 to 1; `None` while it is not known how many there are.
    pub fn share(&self) -> Option<f64> {
        let total = self.total?;
        let warm = self.done.saturating_sub(self.failed);
        Some(if total == 0 {
            1.0
        } else {
            (warm as f64 / total as f64).min(1.0)
        })
    }

    /// A line for a terminal, with a bar of `width` characters where it is known how many there are.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Feed, Larder};
    ///
    /// let cache: Cache<u64, u64> = Larder::local().cache("squares").in_memory()?;
    /// let squares = cache
    ///     .loading_with(|load| async move { Ok::<_, std::io::Error>(load.key() * load.key()) });
    /// let progress = squares.warm(Feed::list(1..=500)).start().done().await;
    /// assert_eq!(progress.line(10), "[##########] 100% 500 of 500");
    /// # Ok(()) }
    /// ```
    pub fn line(&self, width: usize) -> String {
        let (done, failed) = (self.done, self.failed);
        let mut line = match self.total {
            None => format!("{done} done"),
            Some(total) => {
                let per_cent = (done.min(total) * 100).checked_div(total).unwrap_or(100);
                let filled = (width as u64 * per_cent / 100) as usize;
                let bar = "#".repeat(filled) + &".".repeat(width - filled);
                format!("[{bar}] {per_cent}% {done} of {total}")
            }
        };
        if failed > 0 {
            line += &format!(", {failed} failed");
        }
        line
    }
}

/// A warming under way. Dropping it ends it; what is loaded by then stays.
#[must_use = "dropping it ends the warming"]
pub struct Warming {
    progress: watch::Receiver<WarmProgress>,
    _end: oneshot::Sender<()>,
}

impl Warming {
    /// How far it has got.
    pub fn progress(&self) -> WarmProgress {
        self.progress.borrow().clone()
    }

    /// Waits until at least `share` of all keys, 0 to 1, are warm, or until it is over, because a
    /// feed ended, larder was shut down, or too many keys failed for that share. What is returned
    /// says which. Where it is not known how many keys there are, it waits for the end.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Feed, Larder};
    ///
    /// let cache: Cache<u64, u64> = Larder::local().cache("squares").in_memory()?;
    /// let squares = cache
    ///     .loading_with(|load| async move { Ok::<_, std::io::Error>(load.key() * load.key()) });
    /// let warming = squares.warm(Feed::list(1..=1_000)).start();
    /// let at_the_gate = warming.ready(0.9).await; // take traffic from here on
    /// assert!(at_the_gate.share() >= Some(0.9));
    /// # Ok(()) }
    /// ```
    pub async fn ready(&self, share: f64) -> WarmProgress {
        let mut progress = self.progress.clone();
        let warm_enough = |progress: &WarmProgress| progress.share().is_some_and(|is| is >= share);
        // An error says that it is over.
        let _is_over = progress.wait_for(warm_enough).await.is_err();
        progress.borrow().clone()
    }

    /// Waits until it is over.
    pub async fn done(&self) -> WarmProgress {
        let mut progress = self.progress.clone();
        while progress.changed().await.is_ok() {}
        progress.borrow().clone()
    }
}

impl fmt::Debug for Warming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warming")
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

/// Counts what was done, and tells of it.
struct Tally {
    state: watch::Sender<WarmProgress>,
    watch: Option<Watch>,
    /// Held while somebody is told, so that what is told only grows.
    telling: Mutex<()>,
}

impl Tally {
    fn count(&self, done: usize, failed: usize) {
        let _turn = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.send_modify(|progress| {
            progress.done += done as u64;
            progress.failed += failed as u64;
        });
        if let Some(watch) = &self.watch {
            let progress = self.state.borrow().clone();
            let _ = catch_unwind(AssertUnwindSafe(|| watch(&progress)));
        }
    }
}

/// Some of what came from a feed, at work. What is not counted when it is dropped has failed.
struct Share {
    tally: Arc<Tally>,
    left: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.left > 0 {
            self.tally.count(self.left, self.left);
        }
    }
}

/// The task of a warming.
struct Course<T> {
    feed: Feed<T>,
    batch: usize,
    concurrency: usize,
    is_open: bool,
    /// Ends with this: none of it outlives the handle.
    under_way: JoinSet<()>,
    cancelled: oneshot::Receiver<()>,
}

/// What a course does next.
enum Step<T> {
    Begin(Vec<T>),
    End,
}

impl<T: Send + 'static> Course<T> {
    async fn run(mut self, work: Work<T>, tally: Arc<Tally>) {
        while let Step::Begin(some) = poll_fn(|context| self.poll(context)).await {
            let mut share = Share {
                tally: Arc::clone(&tally),
                left: some.len(),
            };
            let work = work(some);
            self.under_way.spawn(async move {
                let ended = work.await;
                let failed = ended.iter().filter(|ended| ended.is_err()).count();
                let first = ended.iter().find_map(|ended| ended.as_ref().err());
                if let Some(error) = first {
                    tracing::debug!(%failed, ?error, "keys could not be warmed");
                }
                let done = std::mem::take(&mut share.left);
                share.tally.count(done, failed);
            });
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Step<T>> {
        if Pin::new(&mut self.cancelled).poll(context).is_ready() {
            return Poll::Ready(Step::End);
        }
        loop {
            if self.is_open && self.under_way.len() < self.concurrency {
                match self.feed.poll_some(context, self.batch) {
                    Poll::Ready(some) if some.is_empty() => self.is_open = false,
                    Poll::Ready(some) => return Poll::Ready(Step::Begin(some)),
                    Poll::Pending => {}
                }
            }
            match self.under_way.poll_join_next(context) {
                Poll::Ready(Some(_ended)) => {}
                Poll::Ready(None) if !self.is_open => return Poll::Ready(Step::End),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}
