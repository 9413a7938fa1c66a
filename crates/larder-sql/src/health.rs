//! What a follower says about itself.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How following goes in this process, since the feed was made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FollowHealth {
    /// What the follower does now.
    pub role: Role,
    /// Changes that were applied and removed from the outbox.
    pub applied: u64,
    /// Invalidations that these came down to, after duplicates within a batch.
    pub invalidations: u64,
    /// Changes that this release cannot read. They stay in the outbox for one that can.
    pub unreadable: u64,
    /// Batches that could not be applied, and were or will be tried again.
    pub not_applied: u64,
    /// Connections that were lost or could not be made.
    pub lost_connections: u64,
    /// How long the oldest change of the last batch had waited when it was read; zero if there is
    /// nothing to do.
    pub lag: Duration,
    /// Why it does not go on, in one line; `None` if it does.
    pub problem: Option<String>,
}

/// What a follower does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// It does not run.
    Idle,
    /// It has no connection.
    Connecting,
    /// It waits to take over from the one that follows.
    StandingBy,
    /// It applies what the outbox holds.
    Following,
}

impl Role {
    const ALL: [Self; 4] = [
        Self::Idle,
        Self::Connecting,
        Self::StandingBy,
        Self::Following,
    ];
}

#[derive(Debug, Default)]
pub(crate) struct Health {
    role: AtomicU8,
    pub(crate) applied: AtomicU64,
    pub(crate) invalidations: AtomicU64,
    pub(crate) unreadable: AtomicU64,
    pub(crate) not_applied: AtomicU64,
    pub(crate) lost_connections: AtomicU64,
    lag_ms: AtomicU64,
    problem: Mutex<Option<String>>,
}

pub(crate) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Health {
    pub(crate) fn set_role(&self, role: Role) {
        self.role.store(role as u8, Ordering::Relaxed);
    }

    pub(crate) fn set_lag(&self, lag: Duration) {
        let millis = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        self.lag_ms.store(millis, Ordering::Relaxed);
    }

    /// Notes why it does not go on; whether that is news.
    pub(crate) fn set_problem(&self, problem: Option<String>) -> bool {
        let mut held = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *held != problem;
        *held = problem;
        news
    }

    pub(crate) fn snapshot(&self) -> FollowHealth {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let role = usize::from(self.role.load(Ordering::Relaxed));
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        FollowHealth {
            role: Role::ALL.get(role).copied().unwrap_or(Role::Idle),
            applied: count(&self.applied),
            invalidations: count(&self.invalidations),
            unreadable: count(&self.unreadable),
            not_applied: count(&self.not_applied),
            lost_connections: count(&self.lost_connections),
            lag: Duration::from_millis(count(&self.lag_ms)),
            problem: problem.clone(),
        }
    }
}
