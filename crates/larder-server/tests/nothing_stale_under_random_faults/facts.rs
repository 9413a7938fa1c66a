//! What is known of a run: what was written, what was told and by whom, and what happened.

use std::collections::{BTreeMap, HashMap, VecDeque};

use fastrand::Rng;
use larder::clock::Millis;

use crate::promise::{
    self, Bounds, By, Floor, Known, Promise, Reach, Says, Seen, State, Version, Word,
};
use crate::rows::{LAG, Row, Table};

/// How many events are kept to be shown.
const HISTORY: usize = 6_000;
/// How many of the last changes count as recent.
const RECENT: usize = 8;
/// How many words are kept of each row. What falls out is older than any bound.
const WORDS: usize = 512;

#[derive(Default)]
pub(crate) struct Facts {
    rows: HashMap<Row, RowFacts>,
    /// What the process of each post has promised to tell.
    queued: HashMap<usize, Vec<(Row, Word)>>,
    /// What was committed for the feed to tell, and is not known to be told.
    fed: HashMap<Row, Word>,
    /// Whose changes were the last ones.
    recent: VecDeque<Row>,
    /// Since when nothing is broken.
    pub(crate) calm_since: Option<Millis>,
    history: VecDeque<(Millis, String)>,
    pub(crate) violations: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct RowFacts {
    /// What each version left behind, from 1 on, those that are being written included.
    states: Vec<State>,
    committed: Version,
    told: VecDeque<Word>,
    /// The last word told through each post, and the last that reached dependents.
    own: HashMap<usize, [Option<Word>; 2]>,
    /// The last token, and the last that stands for dependents as well.
    tokens: [Option<(String, Word)>; 2],
    /// The last version that somebody promised to tell to what was made from it.
    dependents: Version,
}

/// What a read of a row has to show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    row: Row,
    reach: Reach,
    /// Of what has this reach.
    floor: Floor,
    /// The same without expiries.
    floor_of_dependents: Floor,
}

impl Facts {
    pub(crate) fn new() -> Self {
        let first = || RowFacts {
            states: vec![State::Present],
            committed: 1,
            ..RowFacts::default()
        };
        let rows = Row::all().into_iter().map(|row| (row, first()));
        Self {
            rows: rows.collect(),
            ..Self::default()
        }
    }

    fn of(&mut self, row: Row) -> &mut RowFacts {
        self.rows.entry(row).or_default()
    }

    /// Begins the next change of a row: its number, and what `choose` has it leave behind.
    pub(crate) fn begin(
        &mut self,
        row: Row,
        choose: impl FnOnce(State) -> State,
    ) -> (Version, State) {
        let facts = self.of(row);
        let state = choose(*facts.states.last().unwrap());
        facts.states.push(state);
        (facts.states.len() as Version, state)
    }

    pub(crate) fn committed(&mut self, row: Row, version: Version) {
        self.of(row).committed = version;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(row);
    }

    /// A row that was changed a moment ago, as far as any was.
    pub(crate) fn any_recent(&self, rng: &mut Rng) -> Option<Row> {
        let any = rng.usize(0..RECENT);
        self.recent.get(any).copied()
    }

    /// What a row is, as far as that is known to be committed.
    pub(crate) fn version(&self, row: Row) -> Version {
        self.rows[&row].committed
    }

    /// That everybody took it.
    pub(crate) fn acked(&mut self, row: Row, word: Word, token: Option<String>) {
        let facts = self.of(row);
        facts.note(word);
        if let Some(token) = token {
            for slot in facts.slots(word.reach) {
                facts.tokens[slot] = Some((token.clone(), word));
            }
        }
    }

    /// That the process at `post` will tell it.
    pub(crate) fn queued(&mut self, post: usize, row: Row, word: Word) {
        self.of(row).promise(word);
        self.queued.entry(post).or_default().push((row, word));
    }

    /// That it was told through the process at `post`, whatever came of it.
    pub(crate) fn told_through(&mut self, post: usize, row: Row, word: Word) {
        let facts = self.of(row);
        let slots = facts.slots(word.reach);
        let own = facts.own.entry(post).or_default();
        for slot in slots {
            own[slot] = Some(word);
        }
    }

    /// That it was committed, for the feed to tell.
    pub(crate) fn fed(&mut self, row: Row, word: Word) {
        self.of(row).note(word);
        self.fed.insert(row, word);
    }

    pub(crate) fn all_fed(&self) -> HashMap<Row, Word> {
        self.fed.clone()
    }

    /// That the outbox was empty at `now`, which it was not before all of this was in it.
    pub(crate) fn outbox_was_empty(&mut self, fed: HashMap<Row, Word>, now: Millis) {
        for (row, word) in fed {
            let known = self.fed.get(&row).map(|word| word.version);
            if known == Some(word.version) {
                self.fed.remove(&row);
            }
            self.of(row).note(Word {
                at: now,
                by: By::Receipt,
                ..word
            });
        }
    }

    /// How much the process at `post` has promised to tell so far.
    pub(crate) fn queued_len(&self, post: usize) -> usize {
        self.queued.get(&post).map_or(0, Vec::len)
    }

    /// That the process at `post` owes nothing any more of the first `count` that it promised.
    pub(crate) fn is_well(&mut self, post: usize, count: usize, now: Millis) {
        let queued = self.queued.entry(post).or_default();
        let kept: Vec<_> = queued.drain(..count.min(queued.len())).collect();
        for (row, word) in kept {
            self.of(row).note(Word { at: now, ..word });
        }
    }

    /// The process at `post` is another one: what was queued there is lost, and returned.
    pub(crate) fn is_replaced(&mut self, post: usize) -> Vec<Row> {
        for facts in self.rows.values_mut() {
            facts.own.remove(&post);
        }
        let lost = self.queued.remove(&post).unwrap_or_default();
        let mut rows: Vec<Row> = lost.into_iter().map(|(row, _)| row).collect();
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    /// The token of a row for what has this reach.
    pub(crate) fn token(&self, row: Row, reach: Reach) -> Option<(String, Word)> {
        self.rows[&row].tokens[slot(reach)].clone()
    }

    /// What a read has to show that begins now at `post`.
    pub(crate) fn expected(
        &mut self,
        (post, row, reach): (usize, Row, Reach),
        token: Option<Word>,
        now: Millis,
        bounds: &Bounds,
    ) -> Expected {
        let calm_since = self.calm_since;
        let facts = self.of(row);
        let own = facts.own.get(&post).copied().unwrap_or_default();
        let own: Vec<Word> = own.into_iter().flatten().collect();
        let known = Known {
            own: &own,
            told: facts.told.make_contiguous(),
            token,
            calm_since,
            lag: if row.table == Table::Lagging {
                2 * LAG
            } else {
                0
            },
        };
        let floor = |reach| promise::floor(&known, reach, now, bounds);
        Expected {
            row,
            reach,
            floor: floor(reach),
            floor_of_dependents: floor(Reach::Dependents),
        }
    }

    /// What every read has to show when all has healed.
    pub(crate) fn expected_at_rest(&self, row: Row, reach: Reach) -> Expected {
        let facts = &self.rows[&row];
        let floor = |reach| {
            let version = match reach {
                Reach::Itself => facts.committed,
                Reach::Dependents => facts.dependents,
            };
            Floor::at(version, Promise::NotLost)
        };
        Expected {
            row,
            reach,
            floor: floor(reach),
            floor_of_dependents: floor(Reach::Dependents),
        }
    }

    /// What is wrong with what was seen.
    pub(crate) fn judge(&self, seen: Seen, says: Says, expected: &Expected) -> Option<String> {
        let row = expected.row;
        let states = &self.rows[&row].states;
        if !promise::was_written(seen, states) {
            return Some(format!("{row}: {seen:?} was never written"));
        }
        let floor = match promise::reach_of(expected.reach, row.table.contract(), says) {
            Reach::Itself => expected.floor,
            Reach::Dependents => expected.floor_of_dependents,
        };
        promise::is_stale(seen, floor, states).then(|| {
            let Floor { version, promise } = floor;
            format!("{row}: {seen:?} is older than version {version} ({promise})")
        })
    }

    pub(crate) fn note(&mut self, now: Millis, event: String) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back((now, event));
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        self.count_many(what, 1);
    }

    pub(crate) fn count_many(&mut self, what: &'static str, count: u64) {
        *self.counts.entry(what).or_default() += count;
    }

    pub(crate) fn count_fault(&mut self, what: &'static str) {
        *self.faults.entry(what).or_default() += 1;
    }

    pub(crate) fn figures(&self) -> String {
        let list = |counts: &BTreeMap<&str, u64>| {
            let each = counts.iter().map(|(what, count)| format!("{count} {what}"));
            each.collect::<Vec<_>>().join(", ")
        };
        let faults: u64 = self.faults.values().sum();
        format!(
            "{}; {faults} faults: {}",
            list(&self.counts),
            list(&self.faults)
        )
    }

    pub(crate) fn history(&self) -> impl Iterator<Item = &(Millis, String)> {
        self.history.iter()
    }
}

impl RowFacts {
    fn note(&mut self, word: Word) {
        self.promise(word);
        if self.told.len() == WORDS {
            self.told.pop_front();
        }
        self.told.push_back(word);
    }

    fn promise(&mut self, word: Word) {
        if word.reach == Reach::Dependents {
            self.dependents = self.dependents.max(word.version);
        }
    }

    fn slots(&self, reach: Reach) -> std::ops::RangeInclusive<usize> {
        0..=slot(reach)
    }
}

/// What reaches dependents reaches the entry itself, and not the other way round.
fn slot(reach: Reach) -> usize {
    match reach {
        Reach::Itself => 0,
        Reach::Dependents => 1,
    }
}
