//! A larder on the bus: it listens, applies what others say, and says what it does itself.
//!
//! The [protocol](super::protocol) decides what may be trusted; here is everything around it that
//! waits or has effects. One task listens, one keeps the time, and each question to the bus has a
//! task of its own.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::message::{self, Item, Message, Refused};
use super::protocol::{Action, Event, MAX_JITTER, Protocol, Ticket};
use crate::backplane::{Backplane, Notice, Replay};
use crate::clock::Millis;
use crate::courier::Token;
use crate::larder::Shared;
use crate::store::Position;
use crate::tasks::TaskKind;
use crate::tier::{Budget, Delivery, Unserved, within};

/// How long the bus may take for an answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// The first and the longest pause before the bus is listened to again.
const LISTEN_AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// How many messages of the journal are asked for at once.
const REPLAY_BATCH: usize = 5_000;
/// How long the bus is left alone after it did not take a message.
const SPARED_FOR: Millis = 250;
/// How far the clocks of two processes may differ without a word, in milliseconds.
const SKEW: u64 = 1_000;

/// This larder's place on the bus.
pub(crate) struct Member {
    backplane: Arc<dyn Backplane>,
    channel: Box<str>,
    node: u64,
    /// How many messages this node has sent.
    sequence: AtomicU64,
    protocol: Mutex<Protocol>,
    progress: watch::Sender<Progress>,
    /// Wakes the task that keeps the time, when it has to wake earlier than it thinks.
    earlier: Notify,
    wakes_at: AtomicU64,
    started: AtomicBool,
    /// Whether the first callers still wait for the bus.
    awaited: AtomicBool,
    /// Until then nothing is published.
    spared_until: AtomicU64,
    warned_of_skew: AtomicBool,
    counters: Counters,
}

/// How far this larder has heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    trusted: bool,
    /// Whether the bus could not be listened to.
    failed: bool,
    position: Option<Position>,
}

#[derive(Debug, Default)]
struct Counters {
    published: AtomicU64,
    failed: AtomicU64,
    heard: AtomicU64,
    refused: AtomicU64,
    unreadable: AtomicU64,
    missing: AtomicU64,
    duplicates: AtomicU64,
    distrusts: AtomicU64,
    doubts: AtomicU64,
    replayed: AtomicU64,
    changed: AtomicU64,
}

/// How the bus is, and what it brought, since the larder was built. All counts are totals.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusStats {
    /// The name of the backplane.
    pub name: String,
    /// Whether every invalidation of other processes is heard of at present. While it is not,
    /// whatever memory holds is looked up in the tiers before it is served.
    pub healthy: bool,
    /// How long ago anything was heard; `None` if nothing ever was.
    pub heard_ago: Option<Duration>,
    /// Messages that were published.
    pub published: u64,
    /// Messages that could not be published; they are sent when the bus is back.
    pub failed: u64,
    /// Messages of others that were applied.
    pub heard: u64,
    /// Messages that were dropped: of another namespace, too large, or not from whom they say.
    pub refused: u64,
    /// Messages that could not be read. Each makes memory suspect.
    pub unreadable: u64,
    /// Messages that were found missing.
    pub missing: u64,
    /// Messages that came more than once.
    pub duplicates: u64,
    /// Messages that were made up for from the journal.
    pub replayed: u64,
    /// Keys of the shared tier that somebody changed, on a bus that tells of them.
    pub changed: u64,
    /// How often the bus ceased to be healthy.
    pub distrusts: u64,
    /// How often something may have been missed for good, so that memory was looked up anew.
    pub doubts: u64,
    /// Invalidations that wait for the bus to come back.
    pub unsent: usize,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("backplane", &self.backplane)
            .field("channel", &self.channel)
            .field("progress", &*self.progress.borrow())
            .finish_non_exhaustive()
    }
}

impl Member {
    pub(crate) fn new(backplane: Arc<dyn Backplane>, channel: &str) -> Self {
        Self {
            backplane,
            channel: channel.into(),
            node: fastrand::u64(1..),
            sequence: AtomicU64::new(0),
            protocol: Mutex::new(Protocol::new(fastrand::u64(..=MAX_JITTER))),
            progress: watch::Sender::default(),
            earlier: Notify::new(),
            wakes_at: AtomicU64::new(Millis::MAX),
            started: AtomicBool::new(false),
            awaited: AtomicBool::new(true),
            spared_until: AtomicU64::new(0),
            warned_of_skew: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    fn protocol(&self) -> MutexGuard<'_, Protocol> {
        self.protocol.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long ago anything was heard.
    pub(crate) fn heard_ago(&self, now: Millis) -> Option<Duration> {
        let heard_at = self.protocol().heard_at()?;
        Some(Duration::from_millis(now.saturating_sub(heard_at)))
    }

    pub(crate) fn stats(&self, now: Millis, unsent: usize) -> BusStats {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let counters = &self.counters;
        // By itself: whoever holds the protocol waits for what is borrowed here.
        let healthy = self.progress.borrow().trusted;
        BusStats {
            name: self.backplane.name().to_owned(),
            healthy,
            heard_ago: self.heard_ago(now),
            published: of(&counters.published),
            failed: of(&counters.failed),
            heard: of(&counters.heard),
            refused: of(&counters.refused),
            unreadable: of(&counters.unreadable),
            missing: of(&counters.missing),
            duplicates: of(&counters.duplicates),
            replayed: of(&counters.replayed),
            changed: of(&counters.changed),
            distrusts: of(&counters.distrusts),
            doubts: of(&counters.doubts),
            unsent,
        }
    }

    /// Closes the backplane, waiting no longer than `patience`.
    pub(crate) async fn shut(&self, shared: &Shared, patience: Duration) {
        let closed = within(&*shared.clock, patience, self.backplane.close()).await;
        if let Some(Err(error)) = closed {
            tracing::warn!(bus = self.backplane.name(), error = ?error, "bus did not close");
        }
    }

    fn beat(&self, shared: &Shared) -> Bytes {
        self.message(shared, Vec::new()).encode(&self.channel)
    }

    fn message(&self, shared: &Shared, items: Vec<Item>) -> Message {
        Message {
            node: self.node,
            sequence: self.sequence.fetch_add(1, SeqCst) + 1,
            sent_at: shared.clock.wall(),
            items,
        }
    }

    /// Whether this larder sent a message itself.
    fn is_ours(&self, message: &Message) -> bool {
        message.node == self.node && message.sequence <= self.sequence.load(SeqCst)
    }
}

impl Shared {
    /// Begins to listen, the first time, and waits until all that others have said is known, or
    /// the budget is spent. Nobody waits after that. Whoever reads or writes comes by here first.
    pub(crate) async fn join(self: &Arc<Self>, budget: &mut Budget) {
        let Some(bus) = &self.bus else { return };
        let overslept = !self.epochs().lasts_at(self.clock.monotonic());
        if overslept && self.epochs().is_trusted() {
            // A process that was stopped notices that before it believes anything.
            self.step(bus, Event::Tick, None);
        }
        if !bus.awaited.load(SeqCst) {
            return;
        }
        self.begin_listening(bus);
        let mut progress = bus.progress.subscribe();
        // In a box: it happens once, and every read that memory does not answer has room for it.
        let heard = Box::pin(progress.wait_for(|progress| progress.trusted || progress.failed));
        let _spent = budget.wait(&*self.clock, heard).await;
        bus.awaited.store(false, SeqCst);
    }

    /// Waits until everything up to `token` is known here; `false` if the budget is spent first.
    pub(crate) async fn hears(self: &Arc<Self>, token: Token, budget: &mut Budget) -> bool {
        let Some(bus) = &self.bus else { return false };
        self.begin_listening(bus);
        let mut progress = bus.progress.subscribe();
        let heard = progress.wait_for(|progress| {
            let reached = progress.position.is_some_and(|position| {
                position.incarnation == token.0.incarnation && position.count >= token.0.count
            });
            progress.trusted && reached
        });
        matches!(budget.wait(&*self.clock, heard).await, Some(Ok(_)))
    }

    /// How far behind other processes memory may be at most; `None` if nobody knows.
    pub(crate) fn behind(&self) -> Option<Duration> {
        let bus = self.bus.as_ref()?;
        bus.heard_ago(self.clock.monotonic())
    }

    fn begin_listening(self: &Arc<Self>, bus: &Arc<Member>) {
        if bus.started.swap(true, SeqCst) {
            return;
        }
        let ear = Ear {
            bus: Arc::clone(bus),
            shared: Arc::downgrade(self),
            clock: Arc::clone(&self.clock),
        };
        let timekeeper = ear.clone();
        self.tasks
            .spawn(TaskKind::Watch, async move { ear.listen().await });
        self.tasks
            .spawn(TaskKind::Watch, async move { timekeeper.keep_time().await });
    }

    /// Tells other processes; the position of the last message, if there is a bus that can number.
    pub(crate) async fn publish(self: &Arc<Self>, items: Vec<Item>) -> Result<Option<Token>, ()> {
        let Some(bus) = &self.bus else {
            return Ok(None);
        };
        if self.spares(bus) {
            return Err(());
        }
        let mut token = None;
        for items in message::split(&bus.channel, items) {
            let message = bus.message(self, items).encode(&bus.channel);
            let publish = bus.backplane.publish(&bus.channel, message);
            let published = within(&*self.clock, self.tier_budget, publish).await;
            token = self.note_published(bus, published.and_then(Result::ok))?;
        }
        Ok(token)
    }

    /// Has the only tier delete keys and tell other processes in one step, where it is the bus as
    /// well; `None` if that cannot be done, and has to be in two.
    pub(crate) async fn delete_and_publish(
        self: &Arc<Self>,
        gone: &[Bytes],
        items: Vec<Item>,
    ) -> Option<(Delivery, Result<Option<Token>, ()>)> {
        let bus = self.bus.as_ref().filter(|_| self.tier_is_bus)?;
        let tier = self.tiers.first().filter(|_| !self.spares(bus))?;
        let mut messages = message::split(&bus.channel, items);
        let items = messages.pop().filter(|_| messages.is_empty())?;
        let message = bus.message(self, items).encode(&bus.channel);
        let mut budget = Budget::new(self.tier_budget);
        let told = tier.delete_and_publish(&mut budget, gone, &bus.channel, message);
        match told.await {
            Ok(position) => Some((Delivery::Acked, self.note_published(bus, Some(position)))),
            Err(Unserved::Unknown) => Some((Delivery::Queued, self.note_published(bus, None))),
            Err(_) => None,
        }
    }

    /// Whether the bus is left alone because it did not take a message just now.
    fn spares(&self, bus: &Member) -> bool {
        self.clock.monotonic() < bus.spared_until.load(Relaxed)
    }

    /// Counts a message by what the bus answered, if it did.
    fn note_published(
        &self,
        bus: &Member,
        position: Option<Position>,
    ) -> Result<Option<Token>, ()> {
        let Some(position) = position else {
            bus.counters.failed.fetch_add(1, Relaxed);
            let spared_until = self.clock.monotonic() + SPARED_FOR;
            bus.spared_until.store(spared_until, Relaxed);
            tracing::debug!(bus = bus.backplane.name(), "the bus did not take a message");
            return Err(());
        };
        bus.counters.published.fetch_add(1, Relaxed);
        Ok((position.incarnation != 0).then_some(Token(position)))
    }

    /// Goes on with the protocol, and does what it says.
    fn step(self: &Arc<Self>, bus: &Arc<Member>, event: Event, message: Option<&Message>) {
        let now = self.clock.monotonic();
        // Held until all is done: nobody may see what comes after before what came first.
        let mut protocol = bus.protocol();
        for action in protocol.step(now, event) {
            self.act(bus, action, message);
        }
        self.epochs().trust_until(if protocol.is_trusted() {
            protocol.trusted_until()
        } else {
            0
        });
        let progress = Progress {
            trusted: protocol.is_trusted(),
            failed: protocol.heard_at().is_none(),
            position: protocol.position(),
        };
        bus.progress.send_if_modified(|known| {
            let changed = *known != progress;
            *known = progress;
            changed
        });
        let wake_at = protocol.wake_at(now).unwrap_or(Millis::MAX);
        if wake_at < bus.wakes_at.load(SeqCst) {
            bus.earlier.notify_one();
        }
    }

    fn act(self: &Arc<Self>, bus: &Arc<Member>, action: Action, message: Option<&Message>) {
        let counters = &bus.counters;
        match action {
            Action::Apply => {
                if let Some(message) = message.filter(|message| !bus.is_ours(message)) {
                    counters.heard.fetch_add(1, Relaxed);
                    message.items.iter().for_each(|item| self.apply(item));
                }
            }
            Action::AskWhere { ticket } => self.ask_where(bus, ticket),
            Action::Replay { ticket, after } => self.replay(bus, ticket, after),
            Action::Distrust(why) => {
                counters.distrusts.fetch_add(1, Relaxed);
                tracing::debug!(
                    bus = bus.backplane.name(),
                    ?why,
                    "the bus is not to be trusted; memory is looked up in the tiers"
                );
                self.epochs().distrust();
            }
            Action::Trust => {
                self.epochs().trust();
                bus.spared_until.store(0, Relaxed);
                self.catch_up_behind();
            }
            Action::Doubt(why) => {
                counters.doubts.fetch_add(1, Relaxed);
                tracing::debug!(
                    bus = bus.backplane.name(),
                    ?why,
                    "invalidations may have been missed; memory is looked up anew"
                );
                self.epochs().doubt();
                self.empty_private_tiers();
            }
            Action::Resend => {
                let shared = Arc::clone(self);
                self.tasks
                    .spawn(TaskKind::Work, async move { shared.resend().await });
            }
            Action::Beat => {
                let (shared, bus) = (Arc::clone(self), Arc::clone(bus));
                self.tasks.spawn(TaskKind::Watch, async move {
                    let message = bus.beat(&shared);
                    let beat = bus.backplane.beat(&bus.channel, message);
                    // Whether it was heard shows in what is heard.
                    let _ = within(&*shared.clock, ANSWER_PATIENCE, beat).await;
                });
            }
            Action::Gap { missing } => drop(counters.missing.fetch_add(missing, Relaxed)),
            Action::Duplicate => drop(counters.duplicates.fetch_add(1, Relaxed)),
        }
    }

    fn ask_where(self: &Arc<Self>, bus: &Arc<Member>, ticket: Ticket) {
        let (shared, bus) = (Arc::clone(self), Arc::clone(bus));
        self.tasks.spawn(TaskKind::Watch, async move {
            let message = bus.beat(&shared);
            let beat = bus.backplane.beat(&bus.channel, message);
            let event = match within(&*shared.clock, ANSWER_PATIENCE, beat).await {
                Some(Ok(position)) => Event::Where { ticket, position },
                _ => Event::Failed { ticket },
            };
            shared.step(&bus, event, None);
        });
    }

    fn replay(self: &Arc<Self>, bus: &Arc<Member>, ticket: Ticket, after: Position) {
        let (shared, bus) = (Arc::clone(self), Arc::clone(bus));
        self.tasks.spawn(TaskKind::Watch, async move {
            let replay = bus.backplane.replay(&bus.channel, after, REPLAY_BATCH);
            let event = match within(&*shared.clock, ANSWER_PATIENCE * 2, replay).await {
                Some(Ok(Replay::Complete(messages))) => {
                    let at_end = messages.len() < REPLAY_BATCH;
                    let (last, unreadable) = shared.apply_all(&bus, after, &messages);
                    Event::Replayed {
                        ticket,
                        last,
                        at_end,
                        unreadable,
                    }
                }
                Some(Ok(Replay::Lost { position })) => Event::Lost { ticket, position },
                _ => Event::Failed { ticket },
            };
            shared.step(&bus, event, None);
        });
    }

    /// Applies what the journal held; the last position, and how many messages could not be read.
    fn apply_all(
        self: &Arc<Self>,
        bus: &Member,
        after: Position,
        messages: &[(Position, Bytes)],
    ) -> (Position, usize) {
        let (mut last, mut unreadable) = (after, 0);
        for (position, bytes) in messages {
            last = *position;
            match Message::decode(bytes, &bus.channel) {
                Ok(message) if bus.is_ours(&message) => {}
                Ok(message) => message.items.iter().for_each(|item| self.apply(item)),
                Err(Refused::Foreign) => drop(bus.counters.refused.fetch_add(1, Relaxed)),
                Err(_) => {
                    bus.counters.unreadable.fetch_add(1, Relaxed);
                    unreadable += 1;
                }
            }
        }
        let replayed = messages.len() as u64;
        bus.counters.replayed.fetch_add(replayed, Relaxed);
        (last, unreadable)
    }
}

/// What the tasks of the bus hold: nothing that keeps the larder alive.
#[derive(Clone)]
struct Ear {
    bus: Arc<Member>,
    shared: Weak<Shared>,
    clock: Arc<dyn crate::clock::Clock>,
}

impl Ear {
    async fn listen(self) {
        let (first, longest) = LISTEN_AGAIN;
        let mut pause = first;
        loop {
            let mut heard_anything = false;
            let mut notify = |notice| {
                heard_anything = true;
                self.hear(notice);
            };
            let error = self
                .bus
                .backplane
                .listen(&self.bus.channel, &mut notify)
                .await;
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            if heard_anything {
                pause = first;
                tracing::warn!(bus = self.bus.backplane.name(), error = ?error, "the bus is gone; memory is looked up in the tiers until it is back");
            } else {
                tracing::debug!(bus = self.bus.backplane.name(), error = ?error, "still no bus");
            }
            shared.step(&self.bus, Event::Ended, None);
            drop(shared);
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn keep_time(self) {
        loop {
            let now = self.clock.monotonic();
            let wake_at = self.bus.protocol().wake_at(now).unwrap_or(Millis::MAX);
            self.bus.wakes_at.store(wake_at, SeqCst);
            let wait = Duration::from_millis(wake_at.saturating_sub(now));
            let earlier = self.bus.earlier.notified();
            let in_time = within(&*self.clock, wait, earlier).await.is_none();
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            if in_time {
                shared.step(&self.bus, Event::Tick, None);
                // Listening may work all the time while publishing does not.
                if shared.epochs().is_trusted() {
                    shared.catch_up_behind();
                }
            }
        }
    }

    fn hear(&self, notice: Notice) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let (bus, counters) = (&self.bus, &self.bus.counters);
        match notice {
            Notice::Listening { server } => shared.step(bus, Event::Listening { server }, None),
            Notice::Message { position, message } => {
                match Message::decode(&message, &bus.channel) {
                    // Somebody speaks in our name. It has a number all the same.
                    Ok(message) if message.node == bus.node && !bus.is_ours(&message) => {
                        counters.refused.fetch_add(1, Relaxed);
                        if position.is_some() {
                            shared.step(bus, Event::Message { position }, None);
                        }
                    }
                    Ok(message) => {
                        self.compare_clocks(&message, &shared);
                        shared.step(bus, Event::Message { position }, Some(&message));
                    }
                    Err(Refused::Foreign) => {
                        counters.refused.fetch_add(1, Relaxed);
                        // It has a number all the same.
                        if position.is_some() {
                            shared.step(bus, Event::Message { position }, None);
                        }
                    }
                    Err(_) => {
                        counters.unreadable.fetch_add(1, Relaxed);
                        shared.step(bus, Event::Unreadable { position }, None);
                    }
                }
            }
            Notice::Beat { position, message } => {
                if let Ok(message) = Message::decode(&message, &bus.channel) {
                    self.compare_clocks(&message, &shared);
                }
                shared.step(bus, Event::Beat { position }, None);
            }
            Notice::Unreadable => {
                counters.unreadable.fetch_add(1, Relaxed);
                shared.step(bus, Event::Unreadable { position: None }, None);
            }
            Notice::Watching => {
                counters.doubts.fetch_add(1, Relaxed);
                shared.epochs().doubt();
                shared.empty_private_tiers();
            }
            Notice::Changed { keys } => {
                counters.changed.fetch_add(keys.len() as u64, Relaxed);
                keys.iter().for_each(|key| shared.apply_change(key));
            }
            Notice::Emptied => {
                counters.changed.fetch_add(1, Relaxed);
                shared.apply(&Item::Everything);
            }
        }
    }

    /// Deadlines in shared tiers are wall times, so clocks that differ make entries live longer.
    fn compare_clocks(&self, message: &Message, shared: &Shared) {
        let skew = message.sent_at.abs_diff(shared.clock.wall());
        let fresh = message.node != self.bus.node && skew > SKEW;
        if fresh && !self.bus.warned_of_skew.swap(true, Relaxed) {
            tracing::warn!(
                skew_ms = skew,
                "the clock of another process differs from ours, or its messages take long; entries in shared tiers may live longer by as much"
            );
        }
    }
}
