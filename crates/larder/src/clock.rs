//! Where time comes from. Nothing else in larder asks the operating system for the time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

#[cfg(target_os = "linux")]
use rustix::time::ClockId;

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

    /// What [`Clock::monotonic`] said not long ago: never ahead of it, and never decreasing. Hits in
    /// memory ask for this one, so it should cost next to nothing; an entry may be served as much
    /// longer as it is behind.
    fn recent(&self) -> Millis {
        self.monotonic()
    }

    /// Milliseconds since the Unix epoch. May jump in both directions.
    fn wall(&self) -> Millis;

    /// Resolves once `wait` has passed on this clock.
    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clock: what every larder uses unless told otherwise.
///
/// On Linux [`Clock::recent`] is the kernel's coarse clock, which it moves with its timer interrupt,
/// every 1 to 10 ms: reading it takes a tenth of the time. Elsewhere it is the precise one.
#[derive(Debug)]
pub struct SystemClock {
    started: std::time::Instant,
    /// The next millisecond of the kernel's monotonic clock after `started`.
    #[cfg(target_os = "linux")]
    origin: Millis,
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
            #[cfg(target_os = "linux")]
            origin: kernel_millis(ClockId::Monotonic) + 1,
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

    #[cfg(target_os = "linux")]
    fn recent(&self) -> Millis {
        // The origin is later than `started`, so the difference is never ahead of `monotonic`.
        kernel_millis(ClockId::MonotonicCoarse).saturating_sub(self.origin)
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

/// What a monotonic clock of the kernel says.
#[cfg(target_os = "linux")]
fn kernel_millis(clock: ClockId) -> Millis {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as Millis * 1000 + time.tv_nsec as Millis / 1_000_000
}

/// A duration in whole milliseconds, saturating: a duration too long to count is "for ever".
pub(crate) fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recent_time_is_never_ahead_and_never_far_behind() {
        let clock = SystemClock::new();
        let mut last = 0;
        for _ in 0..100_000 {
            let before = clock.monotonic();
            let recent = clock.recent();
            assert!(last <= recent && recent <= clock.monotonic());
            // The coarsest kernels move it every 10 ms; a machine that is busy may be late.
            assert!(before < recent + 1_000, "{before} and {recent}");
            last = recent;
        }
    }
}
