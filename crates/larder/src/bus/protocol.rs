//! What a listener knows, and when memory may be trusted: a state machine without I/O, clock and
//! locks, which the engine runs and the model in `protocol_model` explores.
//!
//! The bus numbers its messages without holes. A listener that has applied every number up to the
//! highest it was told of, by messages and by the beats in between, has missed nothing:
//!
//! ```text
//!             Listening            Where            Replayed to the end
//!    away ──────────────▶ asking ─────────▶ behind ─────────────────────▶ trusted
//!      ▲                    ▲                  ▲                             │
//!      │ Ended              │ silence, an      │ a number is missing         │
//!      │                    │ unreadable or    │                             │
//!      │                    │ unnumbered       │                             │
//!      │                    │ message          │                             │
//!      └────────────────────┴──────────────────┴─────────────────────────────┘
//! ```
//!
//! Where numbers are missing for good, or cannot be compared, the way to `trusted` goes through a
//! doubt: all that was in memory until then has to be revalidated once.
//!
//! The driver
//!
//! - tells everything that it hears, in order, and acts on what [`Protocol::step`] returns, in
//!   order, before the next event;
//! - applies a message at [`Action::Apply`], whoever sent it: positions say what was delivered, a
//!   sender's name in a message proves nothing. Applying twice does no harm;
//! - answers every [`Action::AskWhere`] and [`Action::Replay`] with its ticket, late answers too;
//! - applies what a replay brought before it says so, and counts what it cannot read;
//! - calls again with [`Event::Tick`] at [`Protocol::wake_at`], later rather than never;
//! - takes the doubts into account that came between the read of a value and its insertion: a
//!   value read before a doubt is suspect.

use std::mem;

use super::ahead::Ahead;
use crate::clock::Millis;
use crate::store::Position;

/// Memory is not trusted if nothing was heard for so long.
pub(crate) const SILENCE: Millis = 3_000;
/// Somebody beats when nobody was heard for so long. A beat that is lost leaves time for another
/// two.
const BEAT: Millis = 1_000;
/// The most that one process waits longer than another one before it beats. Whoever waits the
/// shortest beats for all.
pub(crate) const MAX_JITTER: Millis = 250;
/// The shortest time from one question for the position to the next, and from a failure to the
/// next try.
const RETRY: Millis = 500;
/// The wait after an answer that the bus cannot number at present. A numbered message or beat ends
/// it early.
const UNNUMBERED_RETRY: Millis = 5_000;
/// An answer that has not come after so long counts as failed.
const PATIENCE: Millis = 5_000;
/// A replay that fails so often in a row is given up, and what it would have brought is doubted.
const MAX_FAILED_REPLAYS: u8 = 3;

/// Tells the answer to one question from that to another.
pub(crate) type Ticket = u64;

/// What happened. [`Position::default`] and every other position of incarnation zero mean that
/// the bus could not number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The listening has begun; `server` tells one life of the bus from another.
    Listening { server: u64 },
    /// The listening is over.
    Ended,
    /// A message that can be applied.
    Message { position: Option<Position> },
    /// Where the channel stands.
    Beat { position: Position },
    /// A message that cannot be applied because it cannot be read; `None` if not even its position
    /// can, or if it is not known whether it was a message at all.
    Unreadable { position: Option<Position> },
    /// Where the channel stood at some moment behind the question.
    Where { ticket: Ticket, position: Position },
    /// The messages behind the position of the question have been applied.
    Replayed {
        ticket: Ticket,
        /// The position of the last message, or of the question if there was none.
        last: Position,
        /// Whether the journal held no more at that moment.
        at_end: bool,
        /// How many messages could not be read, and so were not applied.
        unreadable: usize,
    },
    /// The journal does not reach back so far; the channel stands here.
    Lost { ticket: Ticket, position: Position },
    /// A question could not be answered.
    Failed { ticket: Ticket },
    /// Time has passed.
    Tick,
}

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Apply the message that came with this event.
    Apply,
    /// Ask the bus where the channel stands, by a beat.
    AskWhere { ticket: Ticket },
    /// Ask the bus for the messages behind a position.
    Replay { ticket: Ticket, after: Position },
    /// From now on every hit in memory has to be revalidated.
    Distrust(Why),
    /// Hits are good again, but for those under a doubt.
    Trust,
    /// Something may have been missed for good: all that was read before now is suspect until it
    /// is revalidated. Does not end a distrust; a [`Action::Trust`] behind it does.
    Doubt(Why),
    /// The bus may have gone back in time: what this process invalidated lately has to be sent
    /// again.
    Resend,
    /// Tell the others that the bus is alive.
    Beat,
    /// So many numbers are newly known to be missing. For statistics.
    Gap { missing: u64 },
    /// The number was known already. For statistics.
    Duplicate,
}

/// Why memory is not trusted, or in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// The first position that this process learns.
    Joined,
    /// The listening ended.
    Ended,
    /// Nothing was heard for [`SILENCE`].
    Silent,
    /// Numbers are missing.
    Gap,
    /// Numbers are missing, and the journal does not have them.
    Lost,
    /// A message could not be read.
    Unreadable,
    /// The bus could not number.
    Unnumbered,
    /// The numbers begin anew.
    Incarnation,
    /// The numbers went back.
    Rollback,
    /// Another server, or another life of it. It may have gone back by some messages and forward
    /// by others, which no number tells.
    Server,
}

/// A question under way. There is never more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Question {
    Where,
    /// The replay of what is behind this number.
    Behind(u64),
}

/// What a listener knows. See the module for the rules of its use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Protocol {
    jitter: Millis,
    listening: bool,
    trusted: bool,
    /// Who was listened to last.
    server: Option<u64>,
    /// When anything was last heard, and when this process last beat.
    heard_at: Option<Millis>,
    beat_at: Millis,
    /// Everything up to here was applied, or is under a doubt.
    applied: Option<Position>,
    /// The highest number that we were told of, in the incarnation of `applied`; never below it.
    told: u64,
    /// What was told before the last question: an answer below is of a bus that went back.
    floor: u64,
    /// The highest number heard since the listening began, or since `applied` is of its incarnation.
    live: u64,
    /// Numbers that came before those in front of them.
    ahead: Ahead,
    /// Another incarnation than that of `applied` was heard of since the last question.
    strange: Option<u64>,
    /// Whether the bus has said where the channel stands since we last had reason to ask.
    placed: bool,
    /// The next position that we learn comes with a doubt.
    owed: Option<Why>,
    question: Option<(Ticket, Millis, Question)>,
    last_ticket: Ticket,
    ask_from: Millis,
    retry_from: Millis,
    failed_replays: u8,
    /// What the step under way has decided so far; empty between steps.
    actions: Vec<Action>,
}

impl Protocol {
    /// A listener that knows nothing yet. `jitter` should differ from process to process; more
    /// than [`MAX_JITTER`] counts as that.
    pub(crate) fn new(jitter: Millis) -> Self {
        Self {
            jitter: jitter.min(MAX_JITTER),
            listening: false,
            trusted: false,
            server: None,
            heard_at: None,
            beat_at: 0,
            applied: None,
            told: 0,
            floor: 0,
            live: 0,
            ahead: Ahead::default(),
            strange: None,
            placed: false,
            owed: None,
            question: None,
            last_ticket: 0,
            ask_from: 0,
            retry_from: 0,
            failed_replays: 0,
            actions: Vec::new(),
        }
    }

    /// Takes in what happened at `now`, by a clock that never goes back, and returns what to do.
    pub(crate) fn step(&mut self, now: Millis, event: Event) -> Vec<Action> {
        self.notice_silence(now);
        match event {
            Event::Listening { server } => self.begin(now, server),
            Event::Ended => self.end(),
            Event::Message { position } => {
                self.heard_at = Some(now);
                self.actions.push(Action::Apply);
                self.receive(now, position);
            }
            Event::Beat { position } => self.hear_beat(now, position),
            Event::Unreadable { position } => self.hear_unreadable(now, position),
            Event::Where { ticket, position } => self.learn_where(now, ticket, position),
            Event::Replayed {
                ticket,
                last,
                at_end,
                unreadable,
            } => self.catch_up(ticket, last, at_end, unreadable),
            Event::Lost { ticket, position } => self.lose(now, ticket, position),
            Event::Failed { ticket } => self.fail(now, ticket),
            Event::Tick => self.tick(now),
        }
        self.settle(now);
        mem::take(&mut self.actions)
    }

    /// Whether hits in memory may be served as they are.
    pub(crate) fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// Until when that is so if nothing more is heard and nobody calls; zero if it is not so. A
    /// process that was stopped compares this with the time before its first tick comes.
    pub(crate) fn trusted_until(&self) -> Millis {
        match self.heard_at {
            Some(heard_at) if self.trusted => heard_at.saturating_add(SILENCE),
            _ => 0,
        }
    }

    /// Everything up to here was applied, or was in memory before the last doubt; `None` while that
    /// is not known.
    pub(crate) fn position(&self) -> Option<Position> {
        self.applied.filter(|_| self.owed.is_none())
    }

    /// When anything was last heard from the bus.
    pub(crate) fn heard_at(&self) -> Option<Millis> {
        self.heard_at
    }

    /// When the next [`Event::Tick`] has something to do; `None` if it never has.
    pub(crate) fn wake_at(&self, now: Millis) -> Option<Millis> {
        let heard_at = self.heard_at.filter(|_| self.listening)?;
        let beat = self.beat_due(heard_at);
        let silence = heard_at.saturating_add(SILENCE);
        let rest = match self.question {
            Some((_, since, _)) => since.saturating_add(PATIENCE),
            None if self.trusted => silence,
            None if self.is_silent(now) => Millis::MAX,
            None if self.placed => self.retry_from,
            None => self.retry_from.max(self.ask_from),
        };
        let silence = if self.trusted { silence } else { Millis::MAX };
        Some(beat.min(rest).min(silence))
    }

    fn begin(&mut self, now: Millis, server: u64) {
        self.end();
        self.listening = true;
        self.live = 0;
        self.heard_at = Some(now);
        self.beat_at = now;
        let before = self.server.replace(server);
        if before.is_some_and(|before| before != server) {
            // This server may give the numbers that we know of to other messages.
            self.ahead.clear();
            self.owed = Some(Why::Server);
            self.actions.push(Action::Resend);
        }
    }

    fn end(&mut self) {
        self.suspect(Why::Ended);
        self.listening = false;
        self.question = None;
    }

    /// Somebody told us a position.
    fn hear_beat(&mut self, now: Millis, position: Position) {
        self.heard_at = Some(now);
        let Some(position) = self.numbered(now, Some(position)) else {
            return;
        };
        match self.applied {
            Some(applied) if applied.incarnation == position.incarnation => {
                self.expect(position.count, position.count);
                if position.count < self.live {
                    // Notices come in order, so the bus has gone back, or the order is not kept.
                    self.suspect(Why::Rollback);
                }
                self.live = self.live.max(position.count);
            }
            Some(_) => self.meet_stranger(position),
            None => {}
        }
    }

    /// A message was not applied. It is behind us all the same: nobody could ever apply it here, so
    /// everything that it may have meant is doubted at once.
    fn hear_unreadable(&mut self, now: Millis, position: Option<Position>) {
        self.heard_at = Some(now);
        if position.is_some() {
            self.actions.push(Action::Doubt(Why::Unreadable));
            self.receive(now, position);
            return;
        }
        self.suspect(Why::Unreadable);
        // The answer to a question that is under way may be older than what we could not read.
        if let Some((_, _, Question::Where)) = self.question {
            self.question = None;
        }
    }

    /// Takes note of the position of a message.
    fn receive(&mut self, now: Millis, position: Option<Position>) {
        let Some(position) = self.numbered(now, position) else {
            return;
        };
        match self.applied {
            Some(applied) if applied.incarnation == position.incarnation => {
                self.advance(applied, position.count);
            }
            applied => {
                self.ahead.add(position.incarnation, position.count);
                if applied.is_some() {
                    self.meet_stranger(position);
                }
            }
        }
    }

    fn advance(&mut self, applied: Position, count: u64) {
        self.live = self.live.max(count);
        if count <= applied.count || self.ahead.has(applied.incarnation, count) {
            self.actions.push(Action::Duplicate);
            return;
        }
        self.expect(count, count - 1);
        self.ahead.add(applied.incarnation, count);
        self.go_on_from(applied);
    }

    /// Everything up to `applied` is done, and whatever follows on it without a hole.
    fn go_on_from(&mut self, applied: Position) {
        let count = self.ahead.take_up_to(applied.incarnation, applied.count);
        self.told = self.told.max(count);
        self.applied = Some(Position { count, ..applied });
    }

    /// We were told of number `told`, and `before` is the last one that we should have had before.
    fn expect(&mut self, told: u64, before: u64) {
        if before > self.told {
            let missing = before - self.told;
            self.actions.push(Action::Gap { missing });
            self.distrust(Why::Gap);
        }
        self.told = self.told.max(told);
    }

    /// A position that can be compared with none of ours: either the numbers have begun anew, or
    /// it comes from the past. Only the bus knows.
    fn meet_stranger(&mut self, position: Position) {
        self.suspect(Why::Incarnation);
        self.owed = Some(Why::Incarnation);
        self.strange = Some(position.incarnation);
    }

    /// The position if it is one. If not, the sequence that we followed has ended, and others may
    /// have gone by without a number.
    fn numbered(&mut self, now: Millis, position: Option<Position>) -> Option<Position> {
        let position = position.filter(|position| position.incarnation != 0);
        if position.is_none() {
            self.suspect(Why::Unnumbered);
            self.owed = Some(Why::Unnumbered);
        } else if self.owed == Some(Why::Unnumbered) {
            self.retry_from = self.retry_from.min(now);
        }
        position
    }

    fn learn_where(&mut self, now: Millis, ticket: Ticket, position: Position) {
        let Some(Question::Where) = self.answered(ticket) else {
            return;
        };
        if position.incarnation == 0 {
            return self.wait_for_numbers(now);
        }
        // The answer may be from before the incarnation that we heard of meanwhile. Ask again.
        if self
            .strange
            .is_some_and(|other| other != position.incarnation)
        {
            return;
        }
        self.placed = true;
        match self.why_doubt(position) {
            Some(why) => self.adopt(position, why),
            None => self.told = self.told.max(position.count),
        }
    }

    /// Whether more was missed than can be replayed if the channel stands at `position`.
    fn why_doubt(&self, position: Position) -> Option<Why> {
        let Some(applied) = self.applied else {
            return Some(Why::Joined);
        };
        self.owed.or_else(|| {
            if applied.incarnation != position.incarnation {
                Some(Why::Incarnation)
            } else {
                (position.count < self.floor).then_some(Why::Rollback)
            }
        })
    }

    /// Goes on from `position`, with everything before in doubt.
    fn adopt(&mut self, position: Position, why: Why) {
        let ours = self
            .applied
            .filter(|applied| applied.incarnation == position.incarnation);
        let from = match ours {
            Some(_) if position.count < self.floor => {
                // The numbers that we know may be given to other messages.
                self.ahead.clear();
                self.actions.push(Action::Resend);
                position
            }
            Some(applied) if applied.count > position.count => applied,
            _ => position,
        };
        let highest = self.ahead.highest(from.incarnation).unwrap_or(0);
        self.told = highest.max(from.count);
        self.floor = 0;
        self.live = 0;
        self.strange = None;
        self.owed = None;
        self.failed_replays = 0;
        self.go_on_from(from);
        self.actions.push(Action::Doubt(why));
    }

    fn catch_up(&mut self, ticket: Ticket, last: Position, at_end: bool, unreadable: usize) {
        let (Some(Question::Behind(after)), Some(applied)) = (self.answered(ticket), self.applied)
        else {
            return;
        };
        if unreadable > 0 {
            self.actions.push(Action::Doubt(Why::Unreadable));
        }
        if last.incarnation != applied.incarnation {
            return self.miss();
        }
        self.failed_replays = 0;
        let count = applied.count.max(last.count);
        self.go_on_from(Position { count, ..applied });
        let moved = last.count > after;
        let reached = self.applied.map_or(0, |applied| applied.count);
        if reached < self.floor && (at_end || !moved) {
            // We were told of more than the journal knows of.
            self.miss();
        }
    }

    fn lose(&mut self, now: Millis, ticket: Ticket, position: Position) {
        let Some(Question::Behind(_)) = self.answered(ticket) else {
            return;
        };
        if position.incarnation == 0 {
            return self.wait_for_numbers(now);
        }
        let why = self.why_doubt(position).unwrap_or(Why::Lost);
        self.adopt(position, why);
    }

    /// The bus has answered that it cannot number at present.
    fn wait_for_numbers(&mut self, now: Millis) {
        self.suspect(Why::Unnumbered);
        self.owed = Some(Why::Unnumbered);
        self.retry_from = now.saturating_add(UNNUMBERED_RETRY);
    }

    fn fail(&mut self, now: Millis, ticket: Ticket) {
        match self.answered(ticket) {
            Some(Question::Where) => self.retry_from = now.saturating_add(RETRY),
            Some(Question::Behind(_)) => self.give_up(now),
            None => {}
        }
    }

    /// A replay brought nothing. It is tried again, a few times.
    fn give_up(&mut self, now: Millis) {
        self.retry_from = now.saturating_add(RETRY);
        self.failed_replays += 1;
        if self.failed_replays >= MAX_FAILED_REPLAYS {
            self.failed_replays = 0;
            self.miss();
        }
    }

    /// What is missing will not be had from the journal.
    fn miss(&mut self) {
        self.suspect(Why::Lost);
        self.owed = Some(Why::Lost);
    }

    /// The question that this is the answer to; `None` for one that is no longer of interest.
    fn answered(&mut self, ticket: Ticket) -> Option<Question> {
        let (_, _, question) = self.question.take_if(|(asked, _, _)| *asked == ticket)?;
        Some(question)
    }

    fn tick(&mut self, now: Millis) {
        if let Some((ticket, since, _)) = self.question
            && now.saturating_sub(since) >= PATIENCE
        {
            self.fail(now, ticket);
        }
        let due = self.heard_at.map(|heard_at| self.beat_due(heard_at));
        if self.listening && due.is_some_and(|due| now >= due) {
            self.beat_at = now;
            self.actions.push(Action::Beat);
        }
    }

    fn beat_due(&self, heard_at: Millis) -> Millis {
        heard_at
            .max(self.beat_at)
            .saturating_add(BEAT + self.jitter)
    }

    fn is_silent(&self, now: Millis) -> bool {
        self.heard_at
            .is_none_or(|heard_at| now.saturating_sub(heard_at) >= SILENCE)
    }

    fn notice_silence(&mut self, now: Millis) {
        if self.listening && self.is_silent(now) {
            self.suspect(Why::Silent);
        }
    }

    /// There is reason to ask the bus where it stands.
    fn suspect(&mut self, why: Why) {
        self.placed = false;
        self.distrust(why);
    }

    fn distrust(&mut self, why: Why) {
        if mem::take(&mut self.trusted) {
            self.actions.push(Action::Distrust(why));
        }
    }

    fn trust(&mut self) {
        if !mem::replace(&mut self.trusted, true) {
            self.actions.push(Action::Trust);
        }
    }

    /// Asks what has to be asked next, or trusts.
    fn settle(&mut self, now: Millis) {
        if !self.listening || self.is_silent(now) || self.question.is_some() {
            return;
        }
        match self.applied.filter(|_| self.placed) {
            Some(applied) if applied.count >= self.told => self.trust(),
            Some(after) if now >= self.retry_from => {
                let ticket = self.ask(now, Question::Behind(after.count));
                self.actions.push(Action::Replay { ticket, after });
            }
            None if now >= self.retry_from.max(self.ask_from) => {
                let ticket = self.ask(now, Question::Where);
                self.actions.push(Action::AskWhere { ticket });
                self.strange = None;
                self.ask_from = now.saturating_add(RETRY);
                self.beat_at = now;
            }
            _ => {}
        }
    }

    fn ask(&mut self, now: Millis, question: Question) -> Ticket {
        self.last_ticket += 1;
        self.question = Some((self.last_ticket, now, question));
        self.floor = self.floor.max(self.told);
        self.last_ticket
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "protocol_model.rs"]
mod model;
