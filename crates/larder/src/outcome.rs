//! What every read can say about itself.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Millis;
use crate::read::Story;

/// A value with the story of the read that gave it.
#[derive(Clone, Debug)]
pub struct Answered<T> {
    /// What the plain call would have returned.
    pub value: T,
    /// Where it came from, and why.
    pub outcome: Outcome,
}

/// How a read went: which tier answered, in what state the entry was, and why nothing above it
/// answered. `Display` puts it on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Who gave the answer.
    pub source: Source,
    /// In what state the entry was.
    pub state: State,
    /// Why memory did not answer, or why it did.
    pub reason: Reason,
    /// How long ago the value was filled. `None` without an entry.
    pub age: Option<Duration>,
    /// How long the value stays fresh. Zero if it is stale; `None` without an entry.
    pub remaining: Option<Duration>,
    /// How long the load took that filled it. `None` if it was set by hand, or without an entry.
    pub load_time: Option<Duration>,
    /// How far behind what other processes do this answer may be at most: the time since the bus
    /// was last heard, or the memory TTL without a bus; zero where nobody else can change anything,
    /// and for answers that a tier gave or confirmed, or a load. What is on its way on a healthy bus comes on
    /// top, some milliseconds. `None` if the bus was never heard.
    pub behind: Option<Duration>,
}

impl Outcome {
    /// The story of a read, told at `now`.
    pub(crate) fn new(
        source: Source,
        story: &Story,
        now: Millis,
        behind: Option<Duration>,
    ) -> Self {
        Self {
            behind,
            source,
            state: story.state,
            reason: story.reason,
            age: story.entry.map(|entry| entry.age(now)),
            remaining: story.entry.map(|entry| entry.remaining(now)),
            load_time: story.entry.and_then(|entry| entry.load_time()),
        }
    }
}

/// Who answered a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The memory tier.
    Memory,
    /// A tier below memory, by its name.
    Tier(Arc<str>),
    /// A load that this read began.
    Loader,
    /// A load or tier read that another caller had begun.
    Flight,
    /// Nobody: there was nothing to find.
    Nobody,
}

/// The state of the entry that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Within its TTL.
    Fresh,
    /// Behind its TTL.
    Stale,
    /// Loaded, and not kept.
    NotStored,
    /// No entry at all.
    Missing,
}

/// Why a read went the way it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Memory held a fresh entry.
    InMemory,
    /// Memory held an entry within grace; a refresh runs in the background.
    Refreshing,
    /// Memory held a stale entry that is left alone for a moment: its last load failed, or
    /// another process is loading it.
    Throttled,
    /// Memory held nothing for the key.
    NotInMemory,
    /// What memory held was too old to serve without asking.
    TooOld,
    /// The load failed, and a stale entry or the cache's default stood in.
    LoadFailed,
    /// The load takes longer than the caller waits, and a stale entry stood in.
    LoadSlow,
    /// The call asked to skip memory.
    SkippedMemory,
    /// What memory held may have been invalidated by another process unheard.
    Suspect,
    /// What memory held may have been invalidated by another process unheard, and the lowest tier
    /// says that it was not: it still holds the same fill, and the tags stand.
    Confirmed,
    /// What memory held was invalidated, by tag or with its whole cache.
    Invalidated,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Fresh => "fresh",
            State::Stale => "stale",
            State::NotStored => "not stored",
            State::Missing => "missing",
        };
        match &self.source {
            Source::Memory => write!(f, "{state} from memory")?,
            Source::Tier(name) => write!(f, "{state} from {name}")?,
            Source::Loader => write!(f, "{state} from the loader")?,
            Source::Flight => write!(f, "{state} from a shared load")?,
            Source::Nobody => f.write_str("missing")?,
        }
        let reason = match self.reason {
            Reason::InMemory => "",
            Reason::Refreshing => "; being refreshed",
            Reason::Throttled => {
                "; left alone for a moment, after a failed load or while another process loads"
            }
            Reason::NotInMemory => "; not in memory",
            Reason::TooOld => "; what memory held was too old",
            Reason::LoadFailed => "; the load failed",
            Reason::LoadSlow => "; the load takes longer than this caller waits",
            Reason::SkippedMemory => "; memory was skipped",
            Reason::Suspect => "; what memory held had to be looked up, the bus is silent",
            Reason::Confirmed => "; compared with the lowest tier, the bus is silent",
            Reason::Invalidated => "; what memory held was invalidated",
        };
        f.write_str(reason)?;
        if let Some(age) = self.age {
            write!(f, "; age {} ms", age.as_millis())?;
        }
        if let Some(remaining) = self.remaining {
            write!(f, "; fresh for {} ms", remaining.as_millis())?;
        }
        if let Some(load_time) = self.load_time {
            write!(f, "; loaded in {} ms", load_time.as_millis())?;
        }
        if let Some(behind) = self.behind.filter(|behind| !behind.is_zero()) {
            write!(f, "; at most {} ms behind", behind.as_millis())?;
        }
        Ok(())
    }
}
