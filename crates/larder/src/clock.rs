//! Where time comes from. Nothing else in larder asks the operating system for the time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// A boxed, sendable future: what the object-safe traits of this crate return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Milliseconds. Which origin they count from is said where they are used.
pub type Millis = u64;

/// A source of time that tests can turn by hand.
///
/// Two times are kept apart on purpose. Entries in memory expire by [`Clock::monotonic`], which
/// never goes back when somebody sets the machine's clock. What other processes read from a
/// shared tier carries [`Clock::wall`], because it is the only time they have in common. Order is
/// never derived from either.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Milliseconds since this clock was made. Never decreases.
    fn monotonic(&self) -> Millis;

    /// Milliseconds since the Unix epoch. May jump in both directions.
    fn wall(&self) -> Millis;

    /// Resolves once `wait` has passed on this clock.
    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clock: what every larder uses unless told otherwise.
#[derive(Debug)]
pub struct SystemClock {
    started: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts at zero now.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the machine's clock"
    )]
    pub fn new() -> Self {
        Self {
            started: std::time::Instant::now(),
        }
    }

    /// The same clock behind the pointer that builders take.
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self::new())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Millis {
        millis(self.started.elapsed())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the machine's clock"
    )]
    fn wall(&self) -> Millis {
        // A machine set before 1970 reads as the epoch: entries look old, never immortal.
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, millis)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that waits on the machine's clock"
    )]
    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(wait))
    }
}

/// A duration in whole milliseconds, saturating: a duration too long to count is "for ever".
pub(crate) fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
