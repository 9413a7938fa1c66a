//! Running the user's loader: in its own task, in its turn, and not for ever.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::clock::{Clock, Millis};
use crate::error::{BoxError, Error, Result};
use crate::tier::within;

/// The turns of one cache's loads: so many run, so many wait, more are refused.
#[derive(Debug)]
pub(crate) struct Turns {
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    most_waiting: usize,
    /// How many may run or wait.
    most: usize,
}

impl Turns {
    pub(crate) fn new(concurrency: usize, queue: usize) -> Self {
        let running = Arc::new(Semaphore::new(concurrency));
        Self {
            running,
            waiting: AtomicUsize::new(0),
            most_waiting: queue,
            most: concurrency.saturating_add(queue),
        }
    }

    /// How many loads may run or wait for their turn.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    async fn take(&self) -> Result<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            return Ok(permit);
        }
        let _place = Place::take(self).ok_or_else(|| {
            let most = self.most_waiting;
            Error::overloaded(format!(
                "{most} loads of this cache are waiting already; raise load_concurrency or load_queue"
            ))
        })?;
        Arc::clone(&self.running)
            .acquire_owned()
            .await
            .map_err(|_| Error::closed())
    }
}

/// A place in the queue, given back however the wait ends.
struct Place<'a>(&'a Turns);

impl<'a> Place<'a> {
    fn take(turns: &'a Turns) -> Option<Self> {
        let place = Self(turns);
        (turns.waiting.fetch_add(1, SeqCst) < turns.most_waiting).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

/// Calls the closure that makes the loader's future. A panic in it counts as one in the loader.
pub(crate) fn make<F>(load: impl FnOnce() -> F) -> Result<F> {
    catch_unwind(AssertUnwindSafe(load)).map_err(|panic| Error::load_panicked(message(&*panic)))
}

/// Runs a load to its end or its deadline, the wait for its turn included. Says how long it took as
/// well, without that wait, which tells of other loads and not of this one: in milliseconds.
///
/// The loader has a task of its own, apart from the one that watches the clock: a loader that
/// blocks its thread cannot keep the deadline from passing on a runtime with several.
pub(crate) async fn run<T: Send + 'static>(
    clock: &dyn Clock,
    turns: &Turns,
    deadline: Duration,
    load: impl Future<Output = Result<T, BoxError>> + Send + 'static,
) -> (Result<T>, Millis) {
    let began = OnceLock::new();
    let loaded = within(clock, deadline, async {
        let _turn = turns.take().await?;
        began.get_or_init(|| clock.monotonic());
        apart(load).await
    });
    let loaded = loaded.await.unwrap_or_else(|| {
        let millis = deadline.as_millis();
        Err(Error::load_timeout(format!(
            "the load did not end within its deadline of {millis} ms"
        )))
    });
    let now = clock.monotonic();
    let took = began.get().map_or(0, |began| now.saturating_sub(*began));
    (loaded, took)
}

/// Runs a load in a task of its own, which ends with this future.
pub(crate) async fn apart<T: Send + 'static>(
    load: impl Future<Output = Result<T, BoxError>> + Send + 'static,
) -> Result<T> {
    let mut task = AbortOnDrop(tokio::spawn(load));
    match (&mut task.0).await {
        Ok(loaded) => loaded.map_err(Error::load),
        Err(ended) => Err(match ended.try_into_panic() {
            Ok(panic) => Error::load_panicked(message(&*panic)),
            Err(_cancelled) => Error::closed(),
        }),
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}
