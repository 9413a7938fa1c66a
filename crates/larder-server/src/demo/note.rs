//! The `X-Cache` header: where an answer came from, in three words a client can count.

use std::fmt;

use larder::{Outcome, Reason, Source, State};

/// `fresh memory`, `stale memory refreshing`, `fresh redis`, `fresh loader`, ...
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    state: &'static str,
    source: String,
    why: &'static str,
}

impl Note {
    /// What `outcome` says, in short.
    pub(crate) fn of(outcome: &Outcome) -> Self {
        let state = match outcome.state {
            State::Fresh => "fresh",
            State::Stale => "stale",
            State::NotStored => "not-stored",
            State::Missing => "missing",
        };
        let source = match &outcome.source {
            Source::Memory => "memory".to_owned(),
            Source::Tier(name) => name.to_string(),
            Source::Loader => "loader".to_owned(),
            Source::Flight => "flight".to_owned(),
            Source::Nobody => "nobody".to_owned(),
        };
        let why = match outcome.reason {
            Reason::Refreshing => " refreshing",
            Reason::Throttled | Reason::LoadFailed => " load-failed",
            _ => "",
        };
        Self { state, source, why }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.state, self.source, self.why)
    }
}

/// What a client reads out of the header: enough to count by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Within its TTL, or not through the cache at all.
    Fresh,
    /// Stale, and being refreshed.
    Stale,
    /// Stale, because its source is down.
    SourceDown,
}

impl Mark {
    /// Reads a header that [`Note`] wrote.
    pub(crate) fn parse(header: &[u8]) -> Self {
        if !header.starts_with(b"stale ") {
            Self::Fresh
        } else if header.ends_with(b" load-failed") {
            Self::SourceDown
        } else {
            Self::Stale
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_back() {
        assert_eq!(Mark::parse(b"fresh memory"), Mark::Fresh);
        assert_eq!(Mark::parse(b"off"), Mark::Fresh);
        assert_eq!(Mark::parse(b"stale memory refreshing"), Mark::Stale);
        assert_eq!(Mark::parse(b"stale redis load-failed"), Mark::SourceDown);
    }
}
