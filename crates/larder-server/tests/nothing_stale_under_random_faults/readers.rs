//! Readers: each asks any process for anything in any way, and has the answer judged.

use std::sync::Arc;

use fastrand::Rng;
use larder::clock::Millis;
use larder_testkit::NoAnswer;

use crate::check::{ANSWERED_WITHIN, BOUNDS, Check, NODES};
use crate::facts::Expected;
use crate::promise::{Reach, Says, Seen};
use crate::rows::{Row, SHELVES, Table, items_of};
use crate::ways::Way;

/// What a reader asks for.
#[derive(Clone, Copy, Debug)]
enum Target {
    Row(Row),
    Shelf(i32),
    Hall,
}

impl Target {
    fn all() -> Vec<Self> {
        let rows = Row::all().into_iter().map(Self::Row);
        let shelves = (0..SHELVES).map(Self::Shelf);
        rows.chain(shelves).chain([Self::Hall]).collect()
    }

    /// The others in the same cache; the hall is apart, because it is made from what else is there.
    fn beside(self) -> Vec<Self> {
        match self {
            Self::Row(Row { table, id }) => {
                let others = table.ids().filter(|other| *other != id);
                others.map(|id| Self::Row(Row { table, id })).collect()
            }
            Self::Shelf(shelf) => {
                let others = (0..SHELVES).filter(|other| *other != shelf);
                others.map(Self::Shelf).collect()
            }
            Self::Hall => Vec::new(),
        }
    }

    /// The rows that show in it, and what has to reach them to change it.
    fn sources(self) -> (Vec<Row>, Reach) {
        match self {
            Self::Row(row) => (vec![row], Reach::Itself),
            Self::Shelf(shelf) => {
                let items = items_of(shelf).map(Row::item);
                (items.collect(), Reach::Dependents)
            }
            Self::Hall => {
                let items = (0..SHELVES).flat_map(items_of).map(Row::item);
                (items.collect(), Reach::Dependents)
            }
        }
    }

    fn what_and_id(self) -> (&'static str, i32) {
        match self {
            Self::Row(row) => (row.table.name(), row.id),
            Self::Shelf(shelf) => ("shelf", shelf),
            Self::Hall => ("hall", 0),
        }
    }
}

/// What is asked for, and how: one target, or several of one cache.
#[derive(Clone, Debug)]
struct Question {
    way: Way,
    targets: Vec<Target>,
}

impl Question {
    /// Of one target in the plainest way.
    fn plain(target: Target) -> Self {
        let (way, targets) = (Way::Call, vec![target]);
        Self { way, targets }
    }

    /// About `target`, and maybe others beside it, in any way.
    fn about(target: Target, rng: &mut Rng) -> Self {
        let way = match rng.u8(0..14) {
            0..6 => Way::Call,
            6..8 => Way::Bound,
            8..10 => Way::Many,
            10 => Way::Each,
            11..13 => Way::Batch,
            _ => Way::Refresh,
        };
        let mut targets = vec![target];
        if way.takes_many() {
            let mut beside = target.beside();
            rng.shuffle(&mut beside);
            beside.truncate(rng.usize(0..=beside.len()));
            targets.append(&mut beside);
        }
        Self { way, targets }
    }

    fn line(&self) -> String {
        let (what, _) = self.targets[0].what_and_id();
        let ids = self.targets.iter().map(|target| target.what_and_id().1);
        let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
        format!("{} {what} {}", self.way.name(), ids.join(","))
    }

    /// The rows that show in the answer, with the token of one of them if there is to be one.
    fn expected(
        &self,
        check: &Check,
        (post, began): (usize, Millis),
        with_token: bool,
    ) -> (Vec<Vec<Expected>>, Option<String>) {
        let mut facts = check.facts();
        let sources: Vec<_> = self.targets.iter().map(|target| target.sources()).collect();
        let (rows, reach) = &sources[0];
        let with = rows[began as usize % rows.len()];
        let token = facts.token(with, *reach).filter(|_| with_token);
        let mut of_row = |row, reach| {
            let word = token.as_ref().filter(|_| row == with);
            let word = word.map(|(_, word)| *word);
            facts.expected((post, row, reach), word, began, &BOUNDS)
        };
        let expected = sources.iter().map(|(rows, reach)| {
            let each = rows.iter().map(|row| of_row(*row, *reach));
            each.collect()
        });
        let expected = expected.collect();
        (expected, token.map(|(token, _)| token))
    }
}

impl Check {
    pub(crate) async fn read(self: Arc<Self>, mut rng: Rng) {
        let all = Target::all();
        while self.goes_on(&self.working) {
            let post = rng.usize(0..NODES);
            let question = Question::about(self.any_target(&all, &mut rng), &mut rng);
            match rng.u8(0..48) {
                0..2 => self.read_and_leave(post, &question, rng.u64(0..20)).await,
                2 => self.warm(post, &mut rng).await,
                number => self.read_once(post, &question, number < 12).await,
            }
            self.pause(rng.u64(0..8)).await;
        }
    }

    /// One of three is about what was changed a moment ago: there most can go wrong.
    fn any_target(&self, all: &[Target], rng: &mut Rng) -> Target {
        let any = all[rng.usize(0..all.len())];
        if rng.u8(0..3) > 0 {
            return any;
        }
        self.facts().any_recent(rng).map_or(any, Target::Row)
    }

    /// A caller that goes away, in the middle of a flight that it may lead.
    async fn read_and_leave(&self, post: usize, question: &Question, millis: Millis) {
        let line = format!("cancel {millis} {}", question.line());
        self.facts().count("reads left");
        self.say(post, &line).await;
    }

    /// Has a process load what it does not have of a table.
    async fn warm(&self, post: usize, rng: &mut Rng) {
        let (table, _) = Table::ALL[rng.usize(0..Table::ALL.len())];
        self.facts().count("warmings");
        self.say(post, &format!("warm {}", table.name())).await;
    }

    /// Says something whose answer shows nothing.
    async fn say(&self, post: usize, line: &str) {
        let began = self.now();
        let answer = self.node(post).ask(line, ANSWERED_WITHIN).await;
        if let Err(error) = answer {
            self.complain((post, began), line, &error);
        }
    }

    async fn read_once(&self, post: usize, question: &Question, with_token: bool) {
        let (node, began) = (self.node(post), self.now());
        // What is loaded anew is loaded after whatever a token stands for.
        let with_token = with_token && question.way != Way::Refresh;
        let (expected, token) = question.expected(self, (post, began), with_token);
        // What was told through a node counts for that node alone.
        if !Arc::ptr_eq(&node, &self.node(post)) {
            return;
        }
        let line = question.line();
        let line = token.map_or(line.clone(), |token| format!("after {token} {line}"));
        match node.ask(&line, ANSWERED_WITHIN).await {
            Ok(answer) => {
                self.count(question, with_token, &answer);
                self.judge((post, began), &line, &expected, &answer);
            }
            Err(error) => self.complain((post, began), &line, &error),
        }
    }

    fn count(&self, question: &Question, with_token: bool, answer: &str) {
        let mut facts = self.facts();
        facts.count(match question.way {
            Way::Refresh => "refreshes",
            way if way.takes_many() => "reads of many",
            _ if with_token => "reads with a token",
            _ => "reads",
        });
        match says(answer) {
            Says::Stale => facts.count("stale answers that said so"),
            Says::Fresh if answer.contains("being refreshed") => facts.count("refreshed early"),
            _ => {}
        }
    }

    /// Judges an answer: what it shows of each row of each target, and what it could not load.
    fn judge(
        &self,
        (post, began): (usize, Millis),
        line: &str,
        expected: &[Vec<Expected>],
        answer: &str,
    ) {
        let front = answer.split(' ').next().unwrap();
        let parts: Vec<&str> = front.split(';').collect();
        assert_eq!(parts.len(), expected.len(), "{line}: {answer}");
        for (part, expected) in parts.into_iter().zip(expected) {
            if let Some(kind) = part.strip_prefix('!') {
                let error = NoAnswer::Failed(format!("{kind}, in {answer}"));
                self.complain((post, began), line, &error);
                continue;
            }
            let seen: Vec<Seen> = part.split(',').map(seen).collect();
            assert_eq!(seen.len(), expected.len(), "{line}: {answer}");
            let wrong: Vec<String> = {
                let facts = self.facts();
                let each = seen.iter().zip(expected);
                each.filter_map(|(seen, expected)| facts.judge(*seen, says(answer), expected))
                    .collect()
            };
            for wrong in wrong {
                self.violated(format!(
                    "node {post}, {line}, begun at {began}, gave {answer:?}: {wrong}"
                ));
            }
        }
    }

    /// A read that failed: of a load it may, while things break; of a tier it never may.
    pub(crate) fn complain(&self, (post, began): (usize, Millis), line: &str, error: &NoAnswer) {
        let is_calm = self.facts().calm_since.is_some_and(|since| since <= began);
        let of_a_load = ["Load", "Overloaded"];
        let permitted = match error {
            NoAnswer::Gone => !is_calm,
            NoAnswer::Silent => false,
            NoAnswer::Failed(why) => !is_calm && of_a_load.iter().any(|kind| why.starts_with(kind)),
        };
        if permitted {
            self.facts().count("reads failed with their load");
        } else {
            self.violated(format!("node {post}, {line}: {error}"));
        }
    }

    /// Every process shows the newest version of every row.
    pub(crate) async fn read_all_at_rest(&self) {
        for post in 0..NODES {
            for target in Target::all() {
                let (rows, reach) = target.sources();
                let expected: Vec<Expected> = {
                    let facts = self.facts();
                    let each = rows.iter().map(|row| facts.expected_at_rest(*row, reach));
                    each.collect()
                };
                let line = Question::plain(target).line();
                match self.node(post).ask(&line, ANSWERED_WITHIN).await {
                    // Nothing is broken any more that a load could fail of.
                    Ok(answer) if answer.starts_with('!') => {
                        self.violated(format!("node {post}, {line}: {answer}"));
                    }
                    Ok(answer) => {
                        let line = format!("{line}, when all has healed");
                        self.judge((post, self.now()), &line, &[expected], &answer);
                    }
                    Err(error) => self.violated(format!("node {post}, {line}: {error}")),
                }
            }
        }
    }
}

/// What an answer says of itself, behind what it shows.
fn says(answer: &str) -> Says {
    match answer.split(' ').nth(1) {
        None | Some("but") => Says::Nothing,
        Some("stale") => Says::Stale,
        Some(_) => Says::Fresh,
    }
}

/// What is shown of a row.
fn seen(text: &str) -> Seen {
    match text {
        "-" => Seen::Absent,
        version => Seen::Version(version.parse().unwrap()),
    }
}
