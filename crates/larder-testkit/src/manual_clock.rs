use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use larder::clock::{BoxFuture, Clock, Millis};
use tokio::sync::watch;

/// A clock that stands still until a test turns it.
///
/// It starts with [`Clock::monotonic`] at zero and [`Clock::wall`] at [`ManualClock::START`].
///
/// ```
/// use std::time::Duration;
/// use larder::clock::Clock;
/// use larder_testkit::ManualClock;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let clock = ManualClock::new();
/// let hour = tokio::spawn(clock.sleep(Duration::from_secs(3600)));
/// clock.sleeping(1).await; // the task is parked now
/// clock.advance(Duration::from_secs(3600));
/// hour.await.unwrap();
/// assert_eq!(clock.monotonic(), 3_600_000);
/// # });
/// ```
#[derive(Debug)]
pub struct ManualClock {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    times: Mutex<Times>,
    /// How many sleepers are parked; only sent while `times` is locked, so that it never lags.
    parked: watch::Sender<usize>,
}

#[derive(Debug)]
struct Times {
    now: Duration,
    /// The wall time at `wall_set_at`; it runs along with `now` from there.
    wall: Millis,
    wall_set_at: Duration,
    /// By deadline, then by age: the order in which they are woken.
    sleepers: BTreeMap<(Duration, u64), Waker>,
    next_id: u64,
}

impl ManualClock {
    /// The wall time at which every manual clock starts: 2026-01-01T00:00:00Z.
    pub const START: Millis = 1_767_225_600_000;

    /// A clock at the start of its time, behind the pointer that builders take.
    pub fn new() -> Arc<Self> {
        let times = Times {
            now: Duration::ZERO,
            wall: Self::START,
            wall_set_at: Duration::ZERO,
            sleepers: BTreeMap::new(),
            next_id: 0,
        };
        Arc::new(Self {
            state: Arc::new(State {
                times: Mutex::new(times),
                parked: watch::Sender::new(0),
            }),
        })
    }

    /// Moves both times on and wakes the sleepers whose time has come, the earliest first.
    ///
    /// The sleepers run when their runtime gets to it, and all of them see the new time.
    pub fn advance(&self, by: Duration) {
        for waker in self.state.advance(by) {
            waker.wake();
        }
    }

    /// Sets the wall time alone, as somebody who sets the machine's clock would.
    pub fn set_wall(&self, wall: Millis) {
        let mut times = self.state.times();
        times.wall = wall;
        times.wall_set_at = times.now;
    }

    /// How many sleepers are parked now.
    pub fn sleepers(&self) -> usize {
        self.state.times().sleepers.len()
    }

    /// Waits until at least `count` sleepers are parked.
    pub async fn sleeping(&self, count: usize) {
        let mut parked = self.state.parked.subscribe();
        // The sender lives in `self`, so the wait cannot end for want of one.
        let _ = parked.wait_for(|&parked| parked >= count).await;
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> Millis {
        millis(self.state.times().now)
    }

    fn wall(&self) -> Millis {
        let times = self.state.times();
        let passed = millis(times.now).saturating_sub(millis(times.wall_set_at));
        times.wall.saturating_add(passed)
    }

    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        Box::pin(Sleep {
            slot: self.state.slot(wait),
            state: self.state.clone(),
        })
    }
}

impl State {
    fn times(&self) -> MutexGuard<'_, Times> {
        // No code under this lock can panic halfway through a change.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, wait: Duration) -> (Duration, u64) {
        let mut times = self.times();
        times.next_id += 1;
        (times.now.saturating_add(wait), times.next_id)
    }

    fn advance(&self, by: Duration) -> Vec<Waker> {
        let mut times = self.times();
        times.now = times.now.saturating_add(by);
        let now = times.now;
        let later = times.sleepers.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut times.sleepers, later);
        self.parked.send_replace(times.sleepers.len());
        due.into_values().collect()
    }

    /// Parks the sleeper, or says that its time has come.
    fn poll(&self, slot: (Duration, u64), waker: &Waker) -> Poll<()> {
        let mut times = self.times();
        if times.now >= slot.0 {
            return Poll::Ready(());
        }
        times.sleepers.insert(slot, waker.clone());
        self.parked.send_replace(times.sleepers.len());
        Poll::Pending
    }

    fn forget(&self, slot: (Duration, u64)) {
        let mut times = self.times();
        times.sleepers.remove(&slot);
        self.parked.send_replace(times.sleepers.len());
    }
}

/// One sleep. Parked from its first poll until its time comes or it is dropped.
struct Sleep {
    slot: (Duration, u64),
    state: Arc<State>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.state.poll(self.slot, context.waker())
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.state.forget(self.slot);
    }
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
