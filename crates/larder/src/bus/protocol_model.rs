//! A model of nodes, store and bus that runs [`Protocol::step`] as it is, and the question whether
//! anybody ever reads what is known to be stale.
//!
//! One key stands for all. A write puts the next version into the database, deletes the key from
//! the store and publishes, which is the order that the engine keeps; that a crash between the
//! steps is not lost is not this model's affair. A read is two steps: it takes the version from the
//! store, or from the database under a lease, and later inserts it into memory, unless the fence
//! forbids. Everything else that can happen is a [`Move`]; those that do harm are rationed.
//!
//! A node *is told* of a write when it hears anything that was sent behind it, whatever that is.
//! The property is stricter than the contract: what is told is fresh, or suspect, at once.
//!
//! # What is explored
//!
//! Every history within each of the rations below, to its end: 1.3 million states, histories of up
//! to 28 moves behind a beginning in which all trust what they hold; each test prints its share
//! (`cargo test -p larder --lib bus::protocol::model -- --nocapture`). `LARDER_MODEL=1` grants one
//! more write and one more tick to each, which takes minutes and gigabytes. Beside that,
//! [`every_history_heals`] draws long histories on three nodes at random.
//!
//! # What it finds
//!
//! It found that the answer to a replay could say that the bus cannot number, and nobody minded if
//! the missing messages had come meanwhile. [`Flaw`]s are wrong on purpose, and seen. So were these
//! changes to the protocol, when they were tried: no doubt at joining, after a lost journal, a new
//! incarnation, another server, or an unreadable message; no distrust at a gap, in silence, or for
//! a message without a number; beats that tell nothing; a gap passed over; trust one message early;
//! a replay believed to have reached what was told; a new listening that goes on where the old one
//! was; answers taken whatever their ticket, or from before the noise that led to the question.
//!
//! What it does not see are numbers that go back although the server stays: then one number is
//! given to two messages, and no listener could tell. `protocol_tests` has what can be noticed.

use std::collections::VecDeque;

use proptest::prelude::*;
use stateright::{Checker, HasDiscoveries, Model, Property};

use super::*;

/// The time between two ticks: somebody has to beat at each, and two of them are silence.
const UNIT: Millis = 1_500;
/// More notices than this under way cut a listener off.
const QUEUE: usize = 4;
/// Every message of a replay is answered one by one, so that replays of several steps are explored.
const REPLAY: usize = 1;
const JOURNAL: usize = 2;

/// How often something may happen in one history, and how many take part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Ration {
    nodes: usize,
    writes: u8,
    /// Of the writes: those in a form that old nodes cannot read, and those of which not even the
    /// frame can be read.
    modern: u8,
    opaque: u8,
    unnumbered: u8,
    drops: u8,
    duplicates: u8,
    swaps: u8,
    cuts: u8,
    failures: u8,
    crashes: u8,
    /// Lives of the server: its journal is kept, is gone, or went back by one message.
    restarts: u8,
    flushes: u8,
    ticks: u8,
    /// Whether node 0 is of an old release.
    upgrade: u8,
}

/// What was written wrong on purpose, to see that the model would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Flaw {
    None,
    /// Nothing is ever suspect.
    IgnoresDoubts,
    /// Doubts do not reach reads under way.
    ForgetsReads,
    /// Hits are served however little the bus is trusted.
    TrustsAlways,
    /// What a replay brings is not applied.
    DropsReplays,
    /// What cannot be read in a replay is not counted.
    HidesUnreadable,
    /// One life of the server looks like the next.
    HidesServer,
    /// Messages without a number are given one of the old sequence.
    HidesUnnumbered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    Plain,
    Modern,
    Opaque,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Kept,
    Lost,
    RolledBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Move {
    Write(Form),
    WriteUnnumbered,
    Restart(Life),
    Flush,
    BeginRead(usize),
    EndRead(usize),
    Deliver(usize),
    Drop(usize),
    Duplicate(usize),
    Swap(usize),
    /// The connection is gone, and the node does not know.
    Cut(usize),
    Ended(usize),
    Connect(usize),
    /// The bus takes the node's oldest question.
    Answer(usize),
    /// The node gets the answer.
    Hear(usize),
    Fail(usize),
    Crash(usize),
    Tick,
}

impl Move {
    /// Whether this brings the nodes nearer to the bus.
    fn is_healing(&self) -> bool {
        matches!(
            self,
            Self::Deliver(_) | Self::Ended(_) | Self::Connect(_) | Self::Answer(_) | Self::Hear(_)
        )
    }

    fn is_delivery(&self) -> bool {
        matches!(self, Self::Deliver(_))
    }
}

/// What is on its way to a node, and the last version that was written before it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Notice {
    what: What,
    told: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    Listening { server: u64 },
    Message { position: Position, form: Form },
    Beat { position: Position },
}

impl Notice {
    fn is_of_the_bus(self) -> bool {
        !matches!(self.what, What::Listening { .. })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Where(Position),
    Replayed {
        last: Position,
        at_end: bool,
        forms: [Option<Form>; REPLAY],
    },
    Lost(Position),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Link {
    Up(VecDeque<Notice>),
    Deaf,
    Down,
}

/// A version on its way into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Reading {
    version: u8,
    lease: Option<u8>,
    fenced: bool,
    suspect: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Copied {
    version: u8,
    suspect: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    protocol: Protocol,
    link: Link,
    told: u8,
    copy: Option<Copied>,
    reading: Option<Reading>,
    questions: VecDeque<Action>,
    answers: VecDeque<(Ticket, Answer, u8)>,
    /// What the engine would make of the actions.
    trusting: bool,
}

impl Node {
    fn new(at: usize) -> Self {
        Self {
            protocol: Protocol::new(at as Millis),
            link: Link::Down,
            told: 0,
            copy: None,
            reading: None,
            questions: VecDeque::new(),
            answers: VecDeque::new(),
            trusting: false,
        }
    }

    /// The version that a read would be given without asking anybody.
    fn serves(&self, flaw: Flaw) -> Option<u8> {
        let trusting = self.trusting || flaw == Flaw::TrustsAlways;
        let copy = self.copy.filter(|copy| trusting && !copy.suspect)?;
        Some(copy.version)
    }

    fn forget(&mut self) {
        self.copy = None;
        if let Some(reading) = &mut self.reading {
            reading.fenced = true;
        }
    }

    fn doubt(&mut self, flaw: Flaw) {
        if flaw == Flaw::IgnoresDoubts {
            return;
        }
        if let Some(copy) = &mut self.copy {
            copy.suspect = true;
        }
        if let Some(reading) = &mut self.reading
            && flaw != Flaw::ForgetsReads
        {
            reading.suspect = true;
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    now: u8,
    left: Ration,
    database: u8,
    store: Option<u8>,
    lease: Option<u8>,
    last_lease: u8,
    server: u64,
    last_incarnation: u64,
    /// Where the channel stands, unless that is not known.
    channel: Option<Position>,
    /// Whether the bus is out of memory, and so can begin no sequence.
    full: bool,
    journal: VecDeque<(u64, Form)>,
    nodes: Vec<Node>,
}

impl World {
    fn new(ration: Ration) -> Self {
        Self {
            now: 0,
            left: ration,
            database: 0,
            store: None,
            lease: None,
            last_lease: 0,
            server: 1,
            last_incarnation: 0,
            channel: None,
            full: false,
            journal: VecDeque::new(),
            nodes: (0..ration.nodes).map(Node::new).collect(),
        }
    }

    fn moves(&self) -> Vec<Move> {
        let left = &self.left;
        let rationed = [
            (left.writes, Move::Write(Form::Plain)),
            (left.writes.min(left.modern), Move::Write(Form::Modern)),
            (left.writes.min(left.opaque), Move::Write(Form::Opaque)),
            (left.writes.min(left.unnumbered), Move::WriteUnnumbered),
            (left.restarts, Move::Restart(Life::Kept)),
            (left.restarts, Move::Restart(Life::Lost)),
            (left.restarts, Move::Restart(Life::RolledBack)),
            (left.flushes, Move::Flush),
            (left.ticks, Move::Tick),
        ];
        let rationed = rationed.into_iter().filter(|(left, _)| *left > 0);
        let mut moves: Vec<Move> = rationed.map(|(_, step)| step).collect();
        for (at, node) in self.nodes.iter().enumerate() {
            self.moves_of(at, node, &mut moves);
        }
        moves
    }

    fn moves_of(&self, at: usize, node: &Node, moves: &mut Vec<Move>) {
        let left = &self.left;
        let queued = match &node.link {
            Link::Up(queue) => queue.len(),
            _ => 0,
        };
        let up = matches!(node.link, Link::Up(_));
        // That the listening has begun is said by the connection, in good order.
        let faulty = match &node.link {
            Link::Up(queue) => queue.front().is_some_and(|first| first.is_of_the_bus()),
            _ => false,
        };
        let possible = [
            (node.reading.is_none(), Move::BeginRead(at)),
            (node.reading.is_some(), Move::EndRead(at)),
            (queued > 0, Move::Deliver(at)),
            (faulty && left.drops > 0, Move::Drop(at)),
            (faulty && left.duplicates > 0, Move::Duplicate(at)),
            (faulty && queued > 1 && left.swaps > 0, Move::Swap(at)),
            (up && left.cuts > 0, Move::Cut(at)),
            (node.link == Link::Deaf, Move::Ended(at)),
            (node.link == Link::Down, Move::Connect(at)),
            (!node.questions.is_empty(), Move::Answer(at)),
            (!node.answers.is_empty(), Move::Hear(at)),
            (
                !node.questions.is_empty() && left.failures > 0,
                Move::Fail(at),
            ),
            (left.crashes > 0, Move::Crash(at)),
        ];
        moves.extend(
            possible
                .into_iter()
                .filter(|(possible, _)| *possible)
                .map(|(_, step)| step),
        );
    }

    /// Makes a move; `false` if it changes nothing.
    fn make(&mut self, step: Move, flaw: Flaw) -> bool {
        match step {
            Move::Write(form) => self.write(form),
            Move::WriteUnnumbered => self.write_unnumbered(flaw),
            Move::Restart(life) => self.restart(life),
            Move::Flush => {
                self.left.flushes -= 1;
                (self.store, self.lease, self.channel) = (None, None, None);
                self.journal.clear();
            }
            Move::BeginRead(at) => return self.begin_read(at, flaw),
            Move::EndRead(at) => self.end_read(at),
            Move::Deliver(at) => {
                if let Link::Up(queue) = &mut self.nodes[at].link
                    && let Some(notice) = queue.pop_front()
                {
                    self.notify(at, notice, flaw);
                }
            }
            Move::Drop(at) => {
                self.left.drops -= 1;
                if let Link::Up(queue) = &mut self.nodes[at].link {
                    queue.pop_front();
                }
            }
            Move::Duplicate(at) => {
                self.left.duplicates -= 1;
                if let Link::Up(queue) = &self.nodes[at].link
                    && let Some(notice) = queue.front().copied()
                {
                    self.notify(at, notice, flaw);
                }
            }
            Move::Swap(at) => {
                self.left.swaps -= 1;
                if let Link::Up(queue) = &mut self.nodes[at].link {
                    queue.swap(0, 1);
                }
            }
            Move::Cut(at) => {
                self.left.cuts -= 1;
                self.nodes[at].link = Link::Deaf;
            }
            Move::Ended(at) => {
                self.nodes[at].link = Link::Down;
                self.feed(at, Event::Ended, None, flaw);
            }
            Move::Connect(at) => {
                let server = match flaw {
                    Flaw::HidesServer => 1,
                    _ => self.server,
                };
                let notice = self.notice(What::Listening { server });
                self.nodes[at].link = Link::Up([notice].into());
            }
            Move::Answer(at) => self.answer(at),
            Move::Hear(at) => self.hear(at, flaw),
            Move::Fail(at) => {
                self.left.failures -= 1;
                if let Some(question) = self.nodes[at].questions.pop_front() {
                    let ticket = ticket_of(question);
                    self.feed(at, Event::Failed { ticket }, None, flaw);
                }
            }
            Move::Crash(at) => {
                self.left.crashes -= 1;
                self.nodes[at] = Node::new(at);
                self.lease = None;
            }
            Move::Tick => {
                self.left.ticks -= 1;
                self.now += 1;
                for at in 0..self.nodes.len() {
                    self.feed(at, Event::Tick, None, flaw);
                }
            }
        }
        true
    }

    fn write(&mut self, form: Form) {
        self.left.writes -= 1;
        match form {
            Form::Plain => {}
            Form::Modern => self.left.modern -= 1,
            Form::Opaque => self.left.opaque -= 1,
        }
        self.full = false;
        self.change();
        let mut position = self.position();
        position.count += 1;
        self.channel = Some(position);
        self.journal.push_back((position.count, form));
        if self.journal.len() > JOURNAL {
            self.journal.pop_front();
        }
        self.tell(What::Message { position, form });
    }

    fn write_unnumbered(&mut self, flaw: Flaw) {
        self.left.writes -= 1;
        self.left.unnumbered -= 1;
        self.change();
        let form = Form::Plain;
        if flaw == Flaw::HidesUnnumbered {
            let position = self.position();
            return self.tell(What::Message { position, form });
        }
        self.full = true;
        self.channel = None;
        self.journal.clear();
        let position = Position::default();
        self.tell(What::Message { position, form });
    }

    fn change(&mut self) {
        self.database += 1;
        (self.store, self.lease) = (None, None);
    }

    fn restart(&mut self, life: Life) {
        self.left.restarts -= 1;
        self.server += 1;
        self.full = false;
        match (life, &mut self.channel) {
            (Life::RolledBack, Some(position)) if !self.journal.is_empty() => {
                position.count -= 1;
                self.journal.pop_back();
            }
            (Life::Lost, _) => {
                self.channel = None;
                self.journal.clear();
            }
            _ => {}
        }
        for node in &mut self.nodes {
            if let Link::Up(_) = node.link {
                node.link = Link::Deaf;
            }
        }
    }

    /// Where the channel stands. One that is not known begins anew.
    fn position(&mut self) -> Position {
        *self.channel.get_or_insert_with(|| {
            self.last_incarnation += 1;
            Position {
                incarnation: self.last_incarnation,
                count: 0,
            }
        })
    }

    fn notice(&self, what: What) -> Notice {
        Notice {
            what,
            told: self.database,
        }
    }

    fn tell(&mut self, what: What) {
        let notice = self.notice(what);
        for node in &mut self.nodes {
            if let Link::Up(queue) = &mut node.link {
                queue.push_back(notice);
                if queue.len() > QUEUE {
                    node.link = Link::Deaf;
                }
            }
        }
    }

    fn beat(&mut self) -> Position {
        let position = match self.channel {
            None if self.full => Position::default(),
            _ => self.position(),
        };
        self.tell(What::Beat { position });
        position
    }

    fn begin_read(&mut self, at: usize, flaw: Flaw) -> bool {
        let node = &mut self.nodes[at];
        if node.serves(flaw).is_some() {
            return false;
        }
        let (version, lease) = match (self.store, self.lease) {
            (Some(version), _) => (version, None),
            (None, Some(_)) => return false,
            (None, None) => {
                self.last_lease += 1;
                self.lease = Some(self.last_lease);
                (self.database, self.lease)
            }
        };
        node.reading = Some(Reading {
            version,
            lease,
            fenced: false,
            suspect: false,
        });
        true
    }

    fn end_read(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(reading) = node.reading.take() else {
            return;
        };
        if reading.lease.is_some() {
            if reading.lease != self.lease {
                return;
            }
            self.lease = None;
            self.store = Some(reading.version);
        }
        if !reading.fenced {
            node.copy = Some(Copied {
                version: reading.version,
                suspect: reading.suspect,
            });
        }
    }

    fn is_old(&self, at: usize) -> bool {
        at == 0 && self.left.upgrade > 0
    }

    fn notify(&mut self, at: usize, notice: Notice, flaw: Flaw) {
        let event = match notice.what {
            What::Listening { server } => Event::Listening { server },
            What::Beat { position } => Event::Beat { position },
            What::Message { position, form } => {
                let position = Some(position).filter(|position| position.incarnation != 0);
                match form {
                    Form::Modern if self.is_old(at) => Event::Unreadable { position },
                    Form::Opaque if self.is_old(at) => Event::Unreadable { position: None },
                    _ => Event::Message { position },
                }
            }
        };
        self.feed(at, event, Some(notice.told), flaw);
    }

    /// The bus answers. What it says is true at this moment, and may be heard much later.
    fn answer(&mut self, at: usize) {
        let Some(question) = self.nodes[at].questions.pop_front() else {
            return;
        };
        let answer = match question {
            Action::Replay { after, .. } => self.replay(after),
            _ => Answer::Where(self.beat()),
        };
        let told = self.database;
        let answers = &mut self.nodes[at].answers;
        answers.push_back((ticket_of(question), answer, told));
    }

    fn replay(&mut self, after: Position) -> Answer {
        let Some(position) = self.channel else {
            let position = match self.full {
                true => Position::default(),
                false => self.position(),
            };
            return Answer::Lost(position);
        };
        let oldest = position.count - self.journal.len() as u64;
        if after.incarnation != position.incarnation
            || !(oldest..=position.count).contains(&after.count)
        {
            return Answer::Lost(position);
        }
        let behind = self
            .journal
            .iter()
            .filter(|(count, _)| *count > after.count);
        let mut forms = [None; REPLAY];
        let mut last = after;
        for (slot, (count, form)) in forms.iter_mut().zip(behind) {
            *slot = Some(*form);
            last.count = *count;
        }
        Answer::Replayed {
            last,
            at_end: forms.contains(&None),
            forms,
        }
    }

    fn hear(&mut self, at: usize, flaw: Flaw) {
        let old = self.is_old(at);
        let node = &mut self.nodes[at];
        let Some((ticket, answer, told)) = node.answers.pop_front() else {
            return;
        };
        let event = match answer {
            Answer::Where(position) => Event::Where { ticket, position },
            Answer::Lost(position) => Event::Lost { ticket, position },
            Answer::Replayed {
                last,
                at_end,
                forms,
            } => {
                let cannot_read = |form: &&Form| old && **form != Form::Plain;
                let forms: Vec<Form> = forms.into_iter().flatten().collect();
                let mut unreadable = forms.iter().filter(cannot_read).count();
                if unreadable < forms.len() && flaw != Flaw::DropsReplays {
                    node.forget();
                }
                if flaw == Flaw::HidesUnreadable {
                    unreadable = 0;
                }
                Event::Replayed {
                    ticket,
                    last,
                    at_end,
                    unreadable,
                }
            }
        };
        self.feed(at, event, Some(told), flaw);
    }

    /// The node's engine: one step of the protocol, and what follows from it.
    fn feed(&mut self, at: usize, event: Event, told: Option<u8>, flaw: Flaw) {
        let now = UNIT * Millis::from(self.now);
        let node = &mut self.nodes[at];
        node.told = node.told.max(told.unwrap_or(0));
        for action in node.protocol.step(now, event) {
            let node = &mut self.nodes[at];
            match action {
                Action::Apply => node.forget(),
                Action::Distrust(_) => node.trusting = false,
                Action::Trust => node.trusting = true,
                Action::Doubt(_) => node.doubt(flaw),
                Action::AskWhere { .. } | Action::Replay { .. } => {
                    node.questions.push_back(action);
                    // The driver asks one thing at a time and drops what it no longer waits for,
                    // yet the answer to what was asked before may be under way.
                    if node.questions.len() > 2 {
                        node.questions.pop_front();
                    }
                }
                Action::Beat => {
                    self.beat();
                }
                Action::Resend | Action::Gap { .. } | Action::Duplicate => {}
            }
        }
    }

    /// Versions of which a node was told, and older ones that it would serve.
    fn stale(&self, flaw: Flaw) -> Vec<(u8, u8)> {
        let served = |node: &Node| node.serves(flaw).map(|version| (node.told, version));
        let all = self.nodes.iter().filter_map(served);
        all.filter(|(told, version)| version < told).collect()
    }

    fn is_settled(&self) -> bool {
        let settled = |node: &Node| {
            node.trusting
                && node.told == self.database
                && node.protocol.position() == self.channel
                && node.questions.is_empty()
        };
        self.nodes.iter().all(settled)
    }
}

fn ticket_of(question: Action) -> Ticket {
    match question {
        Action::AskWhere { ticket } | Action::Replay { ticket, .. } => ticket,
        _ => 0,
    }
}

/// What is explored: every history within a ration.
#[derive(Clone, Copy)]
struct Histories {
    ration: Ration,
    flaw: Flaw,
    begin: fn(Ration) -> World,
}

impl Model for Histories {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        vec![(self.begin)(self.ration)]
    }

    fn actions(&self, world: &World, moves: &mut Vec<Move>) {
        moves.extend(world.moves());
    }

    fn next_state(&self, world: &World, step: Move) -> Option<World> {
        let mut next = world.clone();
        next.make(step, self.flaw).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no stale read", |model: &Self, world: &World| {
                world.stale(model.flaw).is_empty()
            }),
            Property::always("the store is never stale", |_, world: &World| {
                world.store.is_none_or(|version| version == world.database)
            }),
            Property::always(
                "the engine's trust is that of the protocol",
                |_, world: &World| {
                    let agree = |node: &Node| node.trusting == node.protocol.is_trusted();
                    world.nodes.iter().all(agree)
                },
            ),
            Property::always("no trust in silence", |_, world: &World| {
                let now = UNIT * Millis::from(world.now);
                let alive = |node: &Node| !node.trusting || now < node.protocol.trusted_until();
                world.nodes.iter().all(alive)
            }),
            Property::sometimes(
                "a fresh hit behind a write",
                |model: &Self, world: &World| {
                    let hit = |node: &Node| node.told > 0 && node.serves(model.flaw).is_some();
                    world.nodes.iter().all(hit)
                },
            ),
        ]
    }
}

impl Histories {
    /// Those that begin with all nodes trusting what they hold.
    fn of(ration: Ration) -> Self {
        Self {
            ration,
            flaw: Flaw::None,
            begin: World::settled,
        }
    }

    /// Goes through all of them.
    fn hold(self) {
        let checker = self.checker().spawn_bfs().join();
        println!(
            "{} states, histories of up to {} moves",
            checker.unique_state_count(),
            checker.max_depth()
        );
        checker.assert_properties();
    }

    /// Looks for one in which the flaw shows.
    fn tell(self, flaw: Flaw) {
        let histories = Self { flaw, ..self };
        let checker = histories
            .checker()
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        assert!(checker.discovery("no stale read").is_some(), "{flaw:?}");
    }
}

impl World {
    /// Does everything that needs no fault until all nodes trust and hold what is in the database.
    fn settle(&mut self, flaw: Flaw) -> bool {
        for _ in 0..100 {
            if self.is_settled() {
                return true;
            }
            let mut moves = self.moves();
            moves.retain(|step| step.is_healing());
            if moves.iter().any(Move::is_delivery) {
                // Or the beats that come with questions would cut everybody off.
                moves.retain(Move::is_delivery);
            }
            if moves.is_empty() {
                self.full = false;
                self.left.ticks += 1;
                self.make(Move::Tick, flaw);
            }
            for step in moves {
                self.make(step, flaw);
            }
        }
        false
    }

    /// A world in which all nodes trust and hold a fresh copy.
    fn settled(ration: Ration) -> Self {
        let mut world = Self::new(ration);
        world.left.writes += 1;
        world.write(Form::Plain);
        assert!(world.settle(Flaw::None));
        for at in 0..world.nodes.len() {
            assert!(world.begin_read(at, Flaw::None));
            world.end_read(at);
        }
        world
    }
}

// How much more may happen in each history than is quick to explore: LARDER_MODEL=1 explores each
// ration with one more write and one more tick, which takes minutes.
fn more() -> u8 {
    let more = std::env::var("LARDER_MODEL").ok();
    more.and_then(|more| more.parse().ok()).unwrap_or(0)
}

fn ration(nodes: usize, writes: u8, ticks: u8) -> Ration {
    Ration {
        nodes,
        writes: writes + more(),
        ticks: ticks + more(),
        ..Ration::default()
    }
}

fn losses() -> Ration {
    Ration {
        drops: 1,
        duplicates: 1,
        swaps: 1,
        ..ration(1, 2, 2)
    }
}

fn cuts() -> Ration {
    Ration {
        cuts: 1,
        drops: 1,
        failures: 1,
        ..ration(1, 3, 1)
    }
}

fn restarts() -> Ration {
    Ration {
        restarts: 1,
        drops: 1,
        ..ration(1, 3, 1)
    }
}

fn unnumbered() -> Ration {
    Ration {
        unnumbered: 1,
        flushes: 1,
        drops: 1,
        ..ration(1, 3, 1)
    }
}

fn upgrade() -> Ration {
    Ration {
        modern: 1,
        opaque: 1,
        drops: 1,
        cuts: 1,
        upgrade: 1,
        ..ration(1, 2, 1)
    }
}

#[test]
fn nobody_reads_what_is_known_to_be_stale_when_messages_are_lost_doubled_or_out_of_order() {
    Histories::of(losses()).hold();
}

#[test]
fn nobody_reads_what_is_known_to_be_stale_when_connections_are_cut() {
    Histories::of(cuts()).hold();
}

#[test]
fn nobody_reads_what_is_known_to_be_stale_when_the_bus_restarts_or_goes_back() {
    Histories::of(restarts()).hold();
}

#[test]
fn nobody_reads_what_is_known_to_be_stale_when_the_bus_is_full_or_flushed() {
    Histories::of(unnumbered()).hold();
}

#[test]
fn nobody_reads_what_is_known_to_be_stale_during_an_upgrade() {
    Histories::of(upgrade()).hold();
}

#[test]
fn nobody_reads_what_is_known_to_be_stale_while_nodes_join() {
    Histories {
        begin: World::new,
        ..Histories::of(ration(2, 1, 0))
    }
    .hold();
}

#[test]
fn nobody_reads_what_is_known_to_be_stale_behind_a_crash() {
    let ration = Ration {
        crashes: 1,
        drops: 1,
        ..ration(1, 2, 1)
    };
    Histories::of(ration).hold();
}

#[test]
fn nobody_reads_what_is_known_to_be_stale_on_two_nodes() {
    let ration = Ration {
        drops: 1,
        cuts: 1,
        unnumbered: 1,
        ..ration(2, 2, 0)
    };
    Histories::of(ration).hold();
}

#[test]
fn nobody_reads_what_is_known_to_be_stale_on_three_nodes() {
    let ration = Ration {
        drops: 1,
        ..ration(3, 2, 0)
    };
    Histories::of(ration).hold();
}

#[test]
fn the_model_sees_what_is_done_wrong_on_purpose() {
    Histories::of(cuts()).tell(Flaw::IgnoresDoubts);
    Histories::of(cuts()).tell(Flaw::ForgetsReads);
    Histories::of(losses()).tell(Flaw::TrustsAlways);
    Histories::of(losses()).tell(Flaw::DropsReplays);
    Histories::of(upgrade()).tell(Flaw::HidesUnreadable);
    Histories::of(restarts()).tell(Flaw::HidesServer);
    Histories::of(unnumbered()).tell(Flaw::HidesUnnumbered);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Histories longer than those that can be explored, with a bit of everything; and whatever
    /// happened, all nodes trust again once nothing more happens.
    #[test]
    fn every_history_heals(choices in proptest::collection::vec(any::<u16>(), 0..200)) {
        let ration = Ration {
            nodes: 3,
            writes: 20,
            modern: 2,
            opaque: 2,
            unnumbered: 2,
            drops: 3,
            duplicates: 3,
            swaps: 3,
            cuts: 3,
            failures: 5,
            crashes: 1,
            restarts: 2,
            flushes: 1,
            ticks: 10,
            upgrade: 1,
        };
        let mut world = World::new(ration);
        for choice in choices {
            let moves = world.moves();
            world.make(moves[usize::from(choice) % moves.len()], Flaw::None);
            prop_assert!(world.stale(Flaw::None).is_empty(), "{:#?}", world);
        }
        prop_assert!(world.settle(Flaw::None), "{:#?}", world);
    }
}
