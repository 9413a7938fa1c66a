//! Writers: each changes its own rows, and tells of it in a way that fits what the row was.

use std::sync::Arc;

use fastrand::Rng;
use larder::Invalidation;
use larder_testkit::NoAnswer;

use crate::check::{ANSWERED_WITHIN, Check, NODES};
use crate::promise::{By, Contract, Reach, State, Word};
use crate::rows::{CATEGORIES, Change, Row, Table, tag_of};

/// How a change is told.
#[derive(Clone, Debug)]
enum Way {
    /// By a line to a node.
    Line(String, Reach),
    /// By the feed: triggers, or the outbox in the same transaction.
    Feed(Option<Invalidation>),
}

/// A row, and what it was made last.
struct Past {
    row: Row,
    category: i32,
}

impl Past {
    fn new(row: Row) -> Self {
        Self {
            row,
            category: row.id % CATEGORIES,
        }
    }
}

/// Whether a row is deleted at times. The others can be told by their tags.
fn can_go(row: Row) -> bool {
    match row.table {
        Table::Keyed => true,
        Table::Tagged | Table::Lagging => false,
        _ => row.id % 2 == 1,
    }
}

/// What came of telling.
enum Outcome {
    Acked,
    Queued,
    /// It has to be said again.
    Unknown,
}

/// How many of its rows a writer changes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rush {
    /// All of them.
    Wide,
    /// Two, and after a while two others: what is lost of a change must not be hidden by the next.
    Narrow,
}

/// How many changes a writer makes before it goes on to other rows.
const NARROW_FOR: usize = 25;

impl Check {
    pub(crate) async fn write_all(
        self: Arc<Self>,
        writer: usize,
        writers: usize,
        rush: Rush,
        mut rng: Rng,
    ) {
        let all = Row::all().into_iter().enumerate();
        let mine = all.filter(|(at, _)| at % writers == writer);
        let mut mine: Vec<Past> = mine.map(|(_, row)| Past::new(row)).collect();
        let (mut change, first) = (0, rng.usize(0..mine.len()));
        while self.goes_on(&self.writing) {
            let past = match rush {
                Rush::Wide => rng.usize(0..mine.len()),
                Rush::Narrow => (first + 2 * (change / NARROW_FOR) + rng.usize(0..2)) % mine.len(),
            };
            self.write(&mut mine[past], &mut rng).await;
            change += 1;
            self.pause(rng.u64(0..15)).await;
        }
    }

    async fn write(&self, past: &mut Past, rng: &mut Rng) {
        let change = self.choose(past, rng);
        past.category = change.category;
        let way = way(past, change, rng);
        let told_in = match &way {
            Way::Feed(told) => told.as_ref(),
            Way::Line(..) => None,
        };
        if !self.make(change, told_in).await {
            return;
        }
        self.facts().count("writes");
        let (mut way, word) = (way, self.word(change, Reach::Dependents, By::Commit));
        self.facts().committed(change.row, change.version);
        if let Way::Feed(_) = way {
            self.note(format!(
                "{} v{} is left to the feed",
                change.row, change.version
            ));
            return self.facts().fed(change.row, word);
        }
        while !self.has_failed() {
            match self.tell(change, &way, rng).await {
                Outcome::Unknown => way = again(past, change, rng),
                Outcome::Acked | Outcome::Queued => return,
            }
        }
    }

    fn choose(&self, past: &Past, rng: &mut Rng) -> Change {
        let row = past.row;
        let can_go = can_go(row);
        let (version, state) = self.facts().begin(row, |before| match before {
            State::Present if can_go && rng.u8(0..8) == 0 => State::Absent,
            State::Absent if rng.bool() => State::Absent,
            _ => State::Present,
        });
        let category = if rng.u8(0..3) == 0 {
            rng.i32(0..CATEGORIES)
        } else {
            past.category
        };
        Change {
            row,
            version,
            state,
            category,
        }
    }

    fn word(&self, change: Change, reach: Reach, by: By) -> Word {
        Word {
            at: self.now(),
            version: change.version,
            reach,
            by,
        }
    }

    /// Makes a change, however often the database is away. A commit that gave no answer is looked
    /// for. `false` if the run has failed meanwhile.
    async fn make(&self, change: Change, told: Option<&Invalidation>) -> bool {
        while !self.has_failed() {
            let Err(error) = self.rows.change(change, told).await else {
                return true;
            };
            self.note(format!("{} v{}: {error}", change.row, change.version));
            while !self.has_failed() {
                match self.rows.is_made(change).await {
                    // An absence may be that of before, and then the outbox knows nothing of it.
                    Ok(made) if made && change.state == State::Present => return true,
                    Ok(_) => break,
                    Err(_) => self.pause(20).await,
                }
            }
        }
        false
    }

    /// Tells of a change at some node.
    async fn tell(&self, change: Change, way: &Way, rng: &mut Rng) -> Outcome {
        let Way::Line(line, reach) = way else {
            return Outcome::Queued;
        };
        let post = rng.usize(0..NODES);
        let node = self.node(post);
        let answer = node.ask(line, ANSWERED_WITHIN).await;
        let Change { row, version, .. } = change;
        self.note(format!("{row} v{version}: {line} at {post}: {answer:?}"));
        let answer = match answer {
            Ok(answer) => answer,
            Err(NoAnswer::Gone) => {
                // What it sent before it died may be on its way: only when that is over does the
                // next one begin.
                while Arc::ptr_eq(&node, &self.node(post)) && !self.has_failed() {
                    self.pause(5).await;
                }
                return Outcome::Unknown;
            }
            Err(error) => {
                self.violated(format!("{line} at {post}: {error}"));
                return Outcome::Unknown;
            }
        };
        let word = self.word(change, *reach, By::Receipt);
        let is_same = Arc::ptr_eq(&node, &self.node(post));
        let mut facts = self.facts();
        let outcome = match answer.split_once(' ').unwrap_or((&answer, "")) {
            ("acked", token) => {
                let token = Some(token.to_owned()).filter(|token| !token.is_empty());
                facts.acked(row, word, token);
                Outcome::Acked
            }
            // Killed since it answered: what it promised is lost with it.
            _ if !is_same => return Outcome::Unknown,
            _ => {
                facts.queued(post, row, word);
                Outcome::Queued
            }
        };
        if is_same {
            facts.told_through(post, row, word);
        }
        outcome
    }

    /// Says again what a process has taken with it that had promised to tell it.
    pub(crate) async fn tell_again(&self, row: Row, rng: &mut Rng) {
        let change = Change {
            row,
            version: self.facts().version(row),
            state: State::Absent,
            category: 0,
        };
        let way = whole(change, rng);
        while let Outcome::Unknown = self.tell(change, &way, rng).await {
            if self.has_failed() {
                return;
            }
        }
    }
}

fn line(text: String) -> Way {
    Way::Line(text, Reach::Dependents)
}

/// How a change is told for the first time.
fn way(past: &Past, change: Change, rng: &mut Rng) -> Way {
    let Change {
        row: Row { table, id },
        version,
        category,
        ..
    } = change;
    match table {
        Table::Keyed | Table::Tagged => Way::Feed(None),
        Table::Lagging => before(change),
        _ => match rng.u8(0..40) {
            0..4 => {
                let key = Invalidation::key(table.name(), [id.to_string()]);
                Way::Feed(Some(key))
            }
            4..9 if change.state == State::Present => {
                line(format!("set {} {id} {version} {category}", table.name()))
            }
            _ => again(past, change, rng),
        },
    }
}

/// How a change is told that may have been told already, or in part.
fn again(past: &Past, change: Change, rng: &mut Rng) -> Way {
    let Row { table, id } = change.row;
    if table == Table::Lagging {
        return before(change);
    }
    let expiries = match table.contract() {
        Contract::FreshAlone => 1,
        // Only behind an expiry there is anything stale to be served.
        Contract::StaleToo => 3,
    };
    if rng.u8(0..5) < expiries {
        return Way::Line(format!("expire {} {id}", table.name()), Reach::Itself);
    }
    match rng.u8(0..16) {
        // No tag reaches an entry that says that there is no such row.
        0..5 if !can_go(past.row) => {
            // A process that has not heard yet of what others told may hold the row as it was under
            // any category that it had, and has to drop it at once if it is the one that is told.
            let tags: Vec<_> = (0..CATEGORIES).map(|tag| tag_of(table, tag)).collect();
            line(format!("tags {}", tags.join(",")))
        }
        _ => whole(change, rng),
    }
}

/// How any change of a row is told, whatever entries of it there may be.
fn whole(change: Change, rng: &mut Rng) -> Way {
    let Row { table, id } = change.row;
    if table == Table::Lagging {
        return before(change);
    }
    let table = table.name();
    line(match rng.u8(0..20) {
        0 => format!("clear {table}"),
        1 => format!("pattern {table} {id}"),
        2..5 => format!("group {table} {}", id % 2),
        5..8 => format!("event {table} {id}"),
        8..10 => return before(change),
        _ => format!("invalidate {table} {id}"),
    })
}

fn before(change: Change) -> Way {
    let Row { table, id } = change.row;
    line(format!("before {} {id} {}", table.name(), change.version))
}
