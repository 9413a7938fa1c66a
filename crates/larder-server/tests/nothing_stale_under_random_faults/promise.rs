//! What a read must not show, as a pure function of what is known when it begins.
//!
//! The promises are those of docs/coherence.md, and the words those of the model of the bus
//! (`bus/protocol_model.rs` of the engine): a change is *told* when somebody says that it happened;
//! what a read shows is *stale* if it is older than what its reader was told, or should have been.
//!
//! | promise | says here |
//! |---|---|
//! | 1 | what was told through a process, acked or queued, shows in every read that begins there after the call returned |
//! | 2 | what was acked anywhere shows everywhere a bounded time later: [`Bounds::calm`] where nothing was broken since, [`Bounds::rough`] otherwise; what the change feed has to tell, [`Bounds::feed`] after its commit where nothing was broken |
//! | 5 | what was queued counts as acked from the moment when its process is well again, and what the feed has to tell from the moment when its outbox is empty; when all has healed, everything shows |
//! | token | a read that is given the token of a call sees what the call told, wherever it begins |
//!
//! Where a cache is told to serve what is stale, an expiry leaves the entry there, and an answer may be
//! behind it that says so; what was invalidated is gone there as anywhere: see [`reach_of`].

use std::fmt;

use larder::clock::Millis;

/// The versions of a row rise by one with each change, from 1.
pub(crate) type Version = u64;

/// What a change left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Present,
    Absent,
}

/// What a read showed of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Version(Version),
    /// No such row; which of its absences is not seen.
    Absent,
}

/// Whom a change was told to: `expire` makes an entry stale, and leaves alone what was made from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Itself,
    Dependents,
}

/// What a cache may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contract {
    FreshAlone,
    /// What is stale as well, if it says so.
    StaleToo,
}

/// What an answer says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Fresh,
    Stale,
    /// Some calls give values alone.
    Nothing,
}

/// Whom a change has to be told to, for an answer to have to show it which shows what has this reach.
pub(crate) fn reach_of(reach: Reach, contract: Contract, says: Says) -> Reach {
    match (contract, says) {
        (Contract::FreshAlone, _) | (Contract::StaleToo, Says::Fresh) => reach,
        (Contract::StaleToo, Says::Stale | Says::Nothing) => Reach::Dependents,
    }
}

/// Who answers for a change having been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// A call that returned, or an outbox that was empty, at the time of the word.
    Receipt,
    /// A commit at that time: the feed has to tell it.
    Commit,
}

/// That a change was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) at: Millis,
    pub(crate) version: Version,
    pub(crate) reach: Reach,
    pub(crate) by: By,
}

/// How long it may take until everybody heard a word, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// While nothing is broken.
    pub(crate) calm: Millis,
    /// Whatever breaks.
    pub(crate) rough: Millis,
    /// From the commit, by the change feed, while nothing is broken.
    pub(crate) feed: Millis,
}

/// Which promise a read would break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Promise {
    /// Promise 1: what was told through this process.
    Own,
    /// Promise 2: what was told to all, in time.
    Bounded,
    /// Promise 5: what was told to all, once all has healed.
    NotLost,
    /// Read your writes, by a token.
    Token,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "promise 1, what was told through this process shows",
            Self::Bounded => "promise 2, what was told anywhere shows in time",
            Self::NotLost => "promise 5, nothing that was told is lost",
            Self::Token => "read your writes, a token shows what it stands for",
        })
    }
}

/// The version that a read has to show at least, and why; version 0 where it may show anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) version: Version,
    pub(crate) promise: Promise,
}

impl Floor {
    pub(crate) fn at(version: Version, promise: Promise) -> Self {
        Self { version, promise }
    }

    /// The higher one.
    pub(crate) fn or(self, other: Self) -> Self {
        if other.version > self.version {
            other
        } else {
            self
        }
    }
}

/// What is known of a row when a read of it begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    /// What was told through the process that reads.
    pub(crate) own: &'a [Word],
    /// What was told anywhere.
    pub(crate) told: &'a [Word],
    /// What the token of the read stands for.
    pub(crate) token: Option<Word>,
    /// Since when nothing is broken.
    pub(crate) calm_since: Option<Millis>,
    /// How far behind the loader may be: it reads a replica.
    pub(crate) lag: Millis,
}

/// The version that a read has to show which begins `now` and shows what has this reach.
pub(crate) fn floor(known: &Known<'_>, reach: Reach, now: Millis, bounds: &Bounds) -> Floor {
    let reaches = |word: &&Word| reach == Reach::Itself || word.reach == Reach::Dependents;
    // Until the replica has caught up, callers are given what it says, and nobody keeps it.
    let caught_up = |word: &&Word| word.at + known.lag <= now;
    let newest = |words: &mut dyn Iterator<Item = &Word>| {
        words.map(|word| word.version).max().unwrap_or_default()
    };
    let told = known.told.iter().filter(reaches).filter(caught_up);
    let mut in_time = told.filter(|word| is_due(word, known.calm_since, now, bounds));
    let mut own = known.own.iter().filter(reaches).filter(caught_up);
    let mut token = known.token.iter().filter(reaches).filter(caught_up);
    Floor::at(newest(&mut own), Promise::Own)
        .or(Floor::at(newest(&mut token), Promise::Token))
        .or(Floor::at(newest(&mut in_time), Promise::Bounded))
}

/// Whether everybody must have heard of it.
fn is_due(word: &Word, calm_since: Option<Millis>, now: Millis, bounds: &Bounds) -> bool {
    let calm = calm_since.is_some_and(|since| since <= word.at);
    let bound = match (word.by, calm) {
        (By::Receipt, true) => bounds.calm,
        (By::Receipt, false) => bounds.rough,
        (By::Commit, true) => bounds.feed,
        // The database or the follower may be away for as long as it takes.
        (By::Commit, false) => return false,
    };
    word.at + bound <= now
}

/// Whether what was seen is older than `floor`. `states` is what each change that was begun before
/// the read ended left behind, from version 1 on.
pub(crate) fn is_stale(seen: Seen, floor: Floor, states: &[State]) -> bool {
    match seen {
        Seen::Version(version) => version < floor.version,
        Seen::Absent => {
            let before = usize::try_from(floor.version.saturating_sub(1)).unwrap_or(usize::MAX);
            let since = states.get(before..).unwrap_or_default();
            !since.contains(&State::Absent)
        }
    }
}

/// Whether anybody ever wrote what was seen.
pub(crate) fn was_written(seen: Seen, states: &[State]) -> bool {
    match seen {
        Seen::Version(version) => {
            let at = usize::try_from(version)
                .ok()
                .and_then(|at| at.checked_sub(1));
            at.and_then(|at| states.get(at)) == Some(&State::Present)
        }
        Seen::Absent => states.contains(&State::Absent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        calm: 10,
        rough: 100,
        feed: 20,
    };

    fn word(at: Millis, version: Version) -> Word {
        Word {
            at,
            version,
            reach: Reach::Dependents,
            by: By::Receipt,
        }
    }

    fn known<'a>(told: &'a [Word], calm_since: Option<Millis>) -> Known<'a> {
        Known {
            own: &[],
            told,
            token: None,
            calm_since,
            lag: 0,
        }
    }

    fn floor_at(known: &Known<'_>, now: Millis) -> Version {
        floor(known, Reach::Itself, now, &BOUNDS).version
    }

    #[test]
    fn what_was_told_through_a_process_shows_there_at_once() {
        let own = [word(50, 3), word(40, 2)];
        let known = Known {
            own: &own,
            ..known(&[], None)
        };
        let expected = Floor::at(3, Promise::Own);
        assert_eq!(floor(&known, Reach::Itself, 50, &BOUNDS), expected);
        assert_eq!(floor(&known, Reach::Dependents, 50, &BOUNDS), expected);
    }

    #[test]
    fn what_was_told_elsewhere_shows_after_the_bound_of_its_time() {
        let told = [word(50, 3), word(60, 4)];
        let calm = known(&told, Some(50));
        assert_eq!(floor_at(&calm, 59), 0);
        assert_eq!(floor_at(&calm, 60), 3);
        assert_eq!(floor_at(&calm, 70), 4);
        let rough = known(&told, None);
        assert_eq!(floor_at(&rough, 149), 0);
        assert_eq!(floor_at(&rough, 150), 3);
        let calm_again = known(&told, Some(55));
        assert_eq!(
            floor_at(&calm_again, 69),
            0,
            "3 was told while it was rough"
        );
        assert_eq!(floor_at(&calm_again, 70), 4);
        let expected = Floor::at(4, Promise::Bounded);
        assert_eq!(floor(&calm_again, Reach::Itself, 70, &BOUNDS), expected);
    }

    #[test]
    fn what_was_committed_shows_in_time_while_nothing_is_broken_and_some_day_otherwise() {
        let told = [Word {
            by: By::Commit,
            ..word(50, 3)
        }];
        assert_eq!(floor_at(&known(&told, Some(50)), 69), 0);
        assert_eq!(floor_at(&known(&told, Some(50)), 70), 3);
        assert_eq!(floor_at(&known(&told, Some(51)), 10_000), 0);
        assert_eq!(floor_at(&known(&told, None), 10_000), 0);
    }

    #[test]
    fn a_token_shows_what_it_stands_for_at_once() {
        let known = Known {
            token: Some(word(50, 3)),
            ..known(&[], None)
        };
        let expected = Floor::at(3, Promise::Token);
        assert_eq!(floor(&known, Reach::Itself, 50, &BOUNDS), expected);
    }

    #[test]
    fn an_expiry_leaves_alone_what_was_made_from_the_entry() {
        let own = [Word {
            reach: Reach::Itself,
            ..word(50, 3)
        }];
        let known = Known {
            own: &own,
            token: Some(own[0]),
            ..known(&own, Some(0))
        };
        assert_eq!(floor(&known, Reach::Itself, 99, &BOUNDS).version, 3);
        assert_eq!(floor(&known, Reach::Dependents, 99, &BOUNDS).version, 0);
    }

    #[test]
    fn only_an_answer_that_cannot_be_taken_for_fresh_may_be_behind_an_expiry() {
        use Says::{Fresh, Nothing, Stale};
        let reach = |contract, says| reach_of(Reach::Itself, contract, says);
        for says in [Fresh, Stale, Nothing] {
            assert_eq!(reach(Contract::FreshAlone, says), Reach::Itself);
        }
        assert_eq!(reach(Contract::StaleToo, Fresh), Reach::Itself);
        for says in [Stale, Nothing] {
            assert_eq!(reach(Contract::StaleToo, says), Reach::Dependents);
        }
    }

    #[test]
    fn a_loader_that_lags_may_show_what_its_replica_says_and_no_longer() {
        let own = [word(50, 3), word(60, 4)];
        let known = Known {
            own: &own,
            lag: 5,
            ..known(&[], None)
        };
        assert_eq!(floor_at(&known, 54), 0);
        assert_eq!(floor_at(&known, 55), 3);
        assert_eq!(floor_at(&known, 65), 4);
    }

    #[test]
    fn an_absence_is_stale_if_the_row_was_there_ever_since() {
        use State::{Absent, Present};
        let stale = |states: &[State], version| {
            is_stale(Seen::Absent, Floor::at(version, Promise::Own), states)
        };
        let states = [Present, Absent, Present, Present];
        assert!(!stale(&states, 0));
        assert!(!stale(&states, 2));
        assert!(stale(&states, 3));
        assert!(!stale(&[Present, Absent, Present, Absent], 3), "gone again");
        let seen = |version| is_stale(Seen::Version(version), Floor::at(3, Promise::Own), &states);
        assert!(seen(1) && !seen(3) && !seen(4));
    }

    #[test]
    fn only_what_was_written_can_be_seen() {
        use State::{Absent, Present};
        let states = [Present, Absent];
        assert!(was_written(Seen::Version(1), &states));
        assert!(was_written(Seen::Absent, &states));
        assert!(!was_written(Seen::Absent, &states[..1]));
        for version in [0, 2, 3] {
            assert!(!was_written(Seen::Version(version), &states), "{version}");
        }
    }
}
