use std::error::Error as _;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use larder::clock::{Clock, Millis, SystemClock};
use larder::store::{StoreError, StoreResult};
use redis::Value;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::error::failure;
use crate::link::{Batch, Identity, Link, Trouble};
use crate::options::Plan;

/// The connection that all callers share. It is made when first used, and made anew when it
/// breaks; nothing runs while nobody calls.
///
/// ```text
///          a call                 connected
///   Idle ──────────▶ Connecting ─────────────▶ Up
///                      ▲    │                   │
///   a call after the   │    │ failed            │ a call after it broke
///   pause, or a probe  │    ▼                   ▼
///                     Down ◀──── failed ─── Connecting
/// ```
///
/// An attempt runs in a task of its own: callers come and go, all of them wait for the same one.
pub(crate) struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    plan: Plan,
    clock: SystemClock,
    life: Mutex<Life>,
}

struct Life {
    state: State,
    /// Attempts that failed in a row.
    failures: u32,
    /// The connection that was given up last, until the server was told to forget it.
    ghost: Option<Identity>,
}

enum State {
    Idle,
    Connecting(Outcome),
    Up(Arc<Link>),
    /// Until then calls fail at once, with this error.
    Down {
        error: StoreError,
        until: Millis,
    },
    Closed,
}

/// What an attempt came to, once it has.
type Outcome = watch::Receiver<Option<StoreResult<Arc<Link>>>>;

/// Whether a call may begin an attempt during the pause after one that failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    Respect,
    Skip,
}

/// How a call gets at the connection.
enum Way {
    Take(Arc<Link>),
    /// The attempt was begun by somebody else, perhaps while the server was still away.
    Join(Outcome),
    Begin(Outcome),
    Refuse(StoreError),
}

const FIRST_DELAY: Duration = Duration::from_millis(10);

impl Connection {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            shared: Arc::new(Shared {
                plan,
                clock: SystemClock::new(),
                life: Mutex::new(Life {
                    state: State::Idle,
                    failures: 0,
                    ghost: None,
                }),
            }),
        }
    }

    /// What it was made from, for those who connect by themselves.
    pub(crate) fn plan(&self) -> &Plan {
        &self.shared.plan
    }

    /// Host and port, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.shared.plan.place
    }

    /// Sends commands once. After an error they may have been carried out or not.
    pub(crate) async fn send(&self, batch: Batch) -> StoreResult<Vec<Value>> {
        let link = self.link(Pause::Respect).await?;
        link.exchange(Arc::new(batch))
            .await
            .map_err(|trouble| self.explain(trouble))
    }

    /// Sends commands that may be carried out twice: if the connection turns out to be broken,
    /// once more on a new one.
    ///
    /// A server that restarted, or a proxy that closes idle connections, thus costs no failed
    /// read and no failed invalidation.
    pub(crate) async fn send_repeatable(&self, batch: Batch) -> StoreResult<Vec<Value>> {
        let batch = Arc::new(batch);
        let link = self.link(Pause::Respect).await?;
        match link.exchange(Arc::clone(&batch)).await {
            Err(Trouble::Failed(error)) if error.is_connection_dropped() => {}
            replies => return replies.map_err(|trouble| self.explain(trouble)),
        }
        let link = self.link(Pause::Respect).await?;
        link.exchange(batch)
            .await
            .map_err(|trouble| self.explain(trouble))
    }

    /// The connection as it is now, made if there is none, for those who care which one it is.
    pub(crate) async fn current(&self) -> StoreResult<Arc<Link>> {
        self.link(Pause::Respect).await
    }

    /// Sends commands on a connection got by [`Connection::current`].
    pub(crate) async fn send_on(&self, link: &Arc<Link>, batch: Batch) -> StoreResult<Vec<Value>> {
        link.exchange(Arc::new(batch))
            .await
            .map_err(|trouble| self.explain(trouble))
    }

    /// Sees to it that there is a connection, whatever pause an earlier failure asked for.
    pub(crate) async fn heal(&self) -> StoreResult<()> {
        self.link(Pause::Skip).await.map(drop)
    }

    /// Gives the connection up for good.
    pub(crate) fn close(&self) {
        let mut life = self.shared.lock();
        if let State::Up(link) = std::mem::replace(&mut life.state, State::Closed) {
            link.give_up();
        }
    }

    async fn link(&self, pause: Pause) -> StoreResult<Arc<Link>> {
        let joined = match self.shared.way(pause) {
            Way::Take(link) => return Ok(link),
            Way::Refuse(error) => return Err(error),
            Way::Begin(attempt) => return self.outcome(attempt).await,
            Way::Join(attempt) => self.outcome(attempt).await,
        };
        if joined.is_ok() || pause == Pause::Respect {
            return joined;
        }
        match self.shared.way(pause) {
            Way::Take(link) => Ok(link),
            Way::Refuse(error) => Err(error),
            Way::Begin(attempt) | Way::Join(attempt) => self.outcome(attempt).await,
        }
    }

    async fn outcome(&self, mut attempt: Outcome) -> StoreResult<Arc<Link>> {
        if let Ok(outcome) = attempt.wait_for(Option::is_some).await
            && let Some(outcome) = &*outcome
        {
            return outcome.clone();
        }
        let place = self.place();
        Err(StoreError::unavailable(format!(
            "the runtime that was connecting to Redis at {place} has ended"
        )))
    }

    fn explain(&self, trouble: Trouble) -> StoreError {
        let place = self.place();
        match trouble {
            Trouble::Failed(error) => failure(place, error),
            Trouble::Crowded => StoreError::unavailable(format!(
                "Redis at {place} does not answer: too many commands wait for it"
            )),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.shared.lock().state {
            State::Idle => "not connected yet",
            State::Connecting(_) => "connecting",
            State::Up(link) if link.is_given_up() => "broken",
            State::Up(_) => "connected",
            State::Down { .. } => "down",
            State::Closed => "closed",
        };
        f.debug_struct("Connection")
            .field("place", &self.shared.plan.place)
            .field("database", &self.shared.plan.database)
            .field("state", &state)
            .finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Life> {
        // Nothing between two changes of it can panic, so it is whole even behind a panic.
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way(self: &Arc<Self>, pause: Pause) -> Way {
        let mut life = self.lock();
        match &life.state {
            State::Up(link) if !link.is_given_up() => return Way::Take(Arc::clone(link)),
            State::Up(link) => {
                let link = Arc::clone(link);
                self.bury(&mut life, &link);
            }
            _ => {}
        }
        match &life.state {
            // An attempt whose runtime ended has dropped its end; everybody else waits for it.
            State::Connecting(outcome) if outcome.has_changed().is_ok() => {
                Way::Join(outcome.clone())
            }
            State::Down { error, until } if pause == Pause::Respect && self.is_before(*until) => {
                Way::Refuse(error.clone())
            }
            State::Closed => Way::Refuse(StoreError::unavailable("the Redis tier was closed")),
            _ => self.begin(&mut life),
        }
    }

    /// Puts a connection that was given up behind us.
    ///
    /// One that broke before it brought a single answer counts as a failed attempt: something that
    /// accepts connections and drops them is not asked again without a pause.
    fn bury(&self, life: &mut Life, link: &Link) {
        life.ghost = link.identity().cloned();
        if link.has_answered() {
            life.failures = 0;
            life.state = State::Idle;
        } else {
            let place = &self.plan.place;
            let error = format!("Redis at {place} ends connections without an answer");
            self.pause(life, StoreError::unavailable(error));
        }
    }

    fn pause(&self, life: &mut Life, error: StoreError) {
        let pause = pause_after(life.failures, self.plan.options.reconnect_max_delay);
        life.failures = life.failures.saturating_add(1);
        life.state = State::Down {
            error,
            until: self.clock.monotonic() + pause,
        };
    }

    fn is_before(&self, time: Millis) -> bool {
        self.clock.monotonic() < time
    }

    fn begin(self: &Arc<Self>, life: &mut Life) -> Way {
        let Ok(runtime) = Handle::try_current() else {
            return Way::Refuse(StoreError::unavailable("Redis needs a tokio runtime"));
        };
        let (done, outcome) = watch::channel(None);
        life.state = State::Connecting(outcome.clone());
        let attempt = Arc::clone(self).attempt(life.ghost.clone(), done);
        runtime.spawn(attempt);
        Way::Begin(outcome)
    }

    async fn attempt(
        self: Arc<Self>,
        ghost: Option<Identity>,
        done: watch::Sender<Option<StoreResult<Arc<Link>>>>,
    ) {
        let place = &self.plan.place;
        let outcome = Link::open(&self.plan, ghost).await;
        let outcome = outcome.map(Arc::new).map_err(|error| failure(place, error));
        self.settle(&outcome);
        // Nobody waits any more where all callers ran out of time.
        let _ = done.send(Some(outcome));
    }

    fn settle(&self, outcome: &StoreResult<Arc<Link>>) {
        let mut life = self.lock();
        if !matches!(life.state, State::Connecting(_)) {
            return; // Closed meanwhile.
        }
        let failures = life.failures;
        match outcome {
            Ok(link) => {
                life.ghost = None;
                life.state = State::Up(Arc::clone(link));
            }
            Err(error) => self.pause(&mut life, error.clone()),
        }
        drop(life);
        self.report(outcome, failures);
    }

    /// An outage is said once when it begins and once when it ends.
    fn report(&self, outcome: &StoreResult<Arc<Link>>, failures: u32) {
        let place = &*self.plan.place;
        match outcome {
            Ok(_) if failures > 0 => tracing::info!(place, failures, "connected to Redis again"),
            Ok(_) => tracing::debug!(place, "connected to Redis"),
            Err(error) => {
                let cause = error.source().map(tracing::field::display);
                if failures == 0 {
                    tracing::warn!(place, %error, cause, "cannot connect to Redis");
                } else {
                    tracing::debug!(place, %error, cause, failures, "still no Redis");
                }
            }
        }
    }
}

/// Doubles from 10 ms up to `longest`.
fn pause_after(failures: u32, longest: Duration) -> Millis {
    let pause = FIRST_DELAY.saturating_mul(2_u32.saturating_pow(failures));
    u64::try_from(pause.min(longest).as_millis()).unwrap_or(Millis::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let longest = Duration::from_millis(250);
        let pauses: Vec<_> = (0..7)
            .map(|failures| pause_after(failures, longest))
            .collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 250, 250]);
        assert_eq!(pause_after(u32::MAX, longest), 250);
    }
}
