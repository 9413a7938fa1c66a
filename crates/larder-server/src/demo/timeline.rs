//! The slowest read of every second of the story, and what happened when.

use std::time::Duration;

use tokio::time::Instant;

use super::load::Tally;

/// What was measured in about a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    /// The middle of the stretch, since the story began.
    pub(crate) at: Duration,
    /// The slowest read.
    pub(crate) slowest: Duration,
    /// The latency that half of the reads did not exceed.
    pub(crate) median: Duration,
}

/// Something worth marking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Since the story began.
    pub(crate) at: Duration,
    /// In a few words.
    pub(crate) label: String,
}

/// The story so far, second by second.
#[derive(Debug)]
pub(crate) struct Timeline {
    began: Instant,
    /// In order.
    pub(crate) points: Vec<Point>,
    /// In order.
    pub(crate) events: Vec<Event>,
}

impl Timeline {
    /// A story that begins now.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            points: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Adds what was measured just now. A stretch without requests leaves no point.
    pub(crate) fn measured(&mut self, tally: &Tally) {
        if tally.answered + tally.failed == 0 {
            return;
        }
        self.points.push(Point {
            at: self.began.elapsed().saturating_sub(tally.elapsed / 2),
            slowest: tally.slowest(),
            median: tally.quantile(0.5),
        });
    }

    /// Marks what happens now.
    pub(crate) fn happened(&mut self, label: impl Into<String>) {
        self.events.push(Event {
            at: self.began.elapsed(),
            label: label.into(),
        });
    }
}
