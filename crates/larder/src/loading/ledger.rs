//! What a task that loads ahead of need keeps account of: how much it may begin, and what became of it.

use std::collections::HashMap;

use super::awaited::{self, Awaited};
use crate::clock::Millis;

/// How many loads may begin, a second's worth at most.
pub(super) struct Allowance {
    per_second: f64,
    left: f64,
    earned_at: Millis,
}

impl Allowance {
    pub(super) fn new(per_second: u32, now: Millis) -> Self {
        Self {
            per_second: per_second.into(),
            left: per_second.into(),
            earned_at: now,
        }
    }

    /// Adds what the time since the last call allows.
    pub(super) fn earn(&mut self, now: Millis) {
        let earned = now.saturating_sub(self.earned_at) as f64 / 1_000.0 * self.per_second;
        self.left = (self.left + earned).min(self.per_second);
        self.earned_at = now;
    }

    pub(super) fn is_spent(&self) -> bool {
        self.left < 1.0
    }

    pub(super) fn spend(&mut self) {
        self.left -= 1.0;
    }
}

/// When the entries expire that were loaded and not read yet, by the name of their hash.
#[derive(Default)]
pub(super) struct Outstanding(HashMap<u64, Millis>);

impl Outstanding {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes an entry; how many others are given up for it.
    pub(super) fn note(&mut self, awaited: &Awaited, hash: u64, until: Millis) -> u64 {
        self.0.insert(awaited::name(hash), until);
        let displaced = awaited.mark(hash);
        if let Some(displaced) = displaced {
            self.0.remove(&displaced);
        }
        u64::from(displaced.is_some())
    }

    /// Forgets what was read, and what has expired unread; how many those are.
    pub(super) fn write_off(&mut self, awaited: &Awaited, now: Millis) -> u64 {
        let mut wasted = 0;
        self.0.retain(|&name, &mut until| {
            wasted += u64::from(now >= until && awaited.take(name));
            awaited.has(name)
        });
        wasted
    }
}
