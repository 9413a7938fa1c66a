//! Brings invalidations to everybody who has to hear of them: each tier, lowest first, and then the
//! other processes.
//!
//! ```text
//! callers ── errands ──► queue ──► one batch at a time: tiers ──► bus ──► memory once more ──► receipts
//!                          ▲                              │ down      │ down
//!                          └── what was asked again ──    ▼           ▼
//!                              waits a little          owed by it   unsent, until the bus is back
//! ```
//!
//! Errands that wait at the same time travel together: one command per tier and one message. The
//! same errand in quick succession waits a moment, so that a key that is invalidated thousands of
//! times a second costs hundreds of messages. Other processes hear of an errand after the tiers took
//! it: whoever drops its copy then finds the new state below.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::bus::message::Item;
use crate::clock::{Clock, Millis, SystemClock};
use crate::error::{Error, Result};
use crate::glob::Glob;
use crate::invalidation::{Invalidation, Why};
use crate::key;
use crate::larder::Shared;
use crate::minimum::Minimum;
use crate::progress::Watcher;
use crate::registry::Home;
use crate::store::{Position, Swept, Write};
use crate::tags::name;
use crate::tasks::TaskKind;
use crate::tier::{Budget, Delivery, Tier};

/// The most errands that wait; more are refused.
const MOST_WAITING: usize = 100_000;
/// The most errands that travel together.
const BATCH: usize = 2_000;
/// How often the same errand is done in so many milliseconds; beyond it, it waits.
const REPEATS: (u32, Millis) = (8, 20);
/// How many errands are counted for that.
const COUNTED: usize = 1_024;
/// How often an errand is handed over again whose turn ended with somebody's runtime.
const TRIES: usize = 3;
/// How long errands are kept for a server that may have lost them in a failover.
const RESENT_FOR: Millis = 60_000;
/// How many of them; beyond it every cache is cleared instead.
const MOST_RESENT: usize = 10_000;
/// How many errands wait for a bus that is down; beyond it every cache is cleared instead.
const MOST_UNSENT: usize = 10_000;
/// The first and the longest wait before the bus is told again what it did not take.
const UNSENT_EVERY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// How far an invalidation or a write has got when its call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a queued invalidation has not reached everybody yet"]
pub struct Receipt {
    delivery: Delivery,
    token: Option<Token>,
    swept: Swept,
}

impl Receipt {
    pub(crate) const ACKED: Self = Self {
        delivery: Delivery::Acked,
        token: None,
        swept: Swept {
            seen: 0,
            removed: 0,
        },
    };

    /// How far it has got.
    pub fn delivery(&self) -> Delivery {
        self.delivery
    }

    /// Whether it [was acknowledged](Delivery::Acked).
    pub fn is_acked(&self) -> bool {
        self.delivery == Delivery::Acked
    }

    /// Whether it [waits for somebody](Delivery::Queued).
    pub fn is_queued(&self) -> bool {
        self.delivery == Delivery::Queued
    }

    /// What another process, given this, waits for to read no older state than this call left
    /// behind: see [`Read::after`](crate::Read::after). `None` without a bus, or if it was not
    /// reached.
    pub fn token(&self) -> Option<Token> {
        self.token
    }

    /// The keys that patterns looked at and removed in the tiers below memory, all tiers together;
    /// zero for everything that is not a pattern.
    pub fn swept(&self) -> Swept {
        self.swept
    }

    /// Both: queued if one is, with the later token.
    pub(crate) fn with(self, later: Self) -> Self {
        Self {
            delivery: self.delivery.and(later.delivery),
            swept: self.swept.and(later.swept),
            token: match (self.token, later.token) {
                // What is done over and over is put off, so the last one need not be the latest.
                (Some(one), Some(other)) if one.0.incarnation == other.0.incarnation => {
                    Some(if one.0.count > other.0.count {
                        one
                    } else {
                        other
                    })
                }
                (one, other) => other.or(one),
            },
        }
    }

    pub(crate) fn and(self, delivery: Delivery) -> Self {
        Self {
            delivery: self.delivery.and(delivery),
            ..self
        }
    }
}

/// A position of the bus, to be handed to a client and back: a header or a cookie that makes the
/// next request, wherever it ends up, see what this one has written.
///
/// Written as `INCARNATION-COUNT` in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub(crate) Position);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.0.incarnation, self.0.count)
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |digits: &str| {
            let hex = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        let parts = text.split_once('-');
        let token = parts.and_then(|(incarnation, count)| {
            Some(Self(Position {
                incarnation: number(incarnation)?,
                count: number(count)?,
            }))
        });
        token.ok_or_else(|| Error::config("this is not a token that a receipt gave"))
    }
}

/// One thing that everybody has to hear of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Errand {
    Forget {
        cache: Arc<str>,
        /// Encoded, without namespace, cache and version.
        key: Bytes,
        why: Why,
        home: Home,
    },
    /// A tag or a group, by its inner name.
    Tag(Box<str>),
    Clear(Arc<str>),
    /// Done apart from the others: a walk over a tier takes its time.
    Pattern {
        cache: Arc<str>,
        glob: Box<str>,
    },
    /// Every cache is cleared: more was missed than could be kept.
    Everything,
}

impl Errand {
    pub(crate) fn forget(cache: &Arc<str>, key: Bytes, why: Why, home: Home) -> Self {
        Self::Forget {
            cache: Arc::clone(cache),
            key,
            why,
            home,
        }
    }

    /// The errand for a tier that may have lost what was done: what was written there is not to be
    /// believed either.
    fn anew(&self) -> Self {
        match self {
            Self::Forget {
                cache,
                key,
                why: Why::Written,
                home,
            } => Self::forget(cache, key.clone(), Why::Invalidated, *home),
            other => other.clone(),
        }
    }

    /// What other processes are told.
    fn item(&self, versions: &[u32]) -> Item {
        match self {
            Self::Forget {
                cache, key, why, ..
            } => Item::Forget {
                cache: cache.as_ref().into(),
                key: key.clone(),
                versions: versions.to_vec(),
                why: *why,
            },
            Self::Tag(tag) => Item::Tag { tag: tag.clone() },
            Self::Clear(cache) => Item::Clear {
                cache: cache.as_ref().into(),
            },
            Self::Pattern { cache, glob } => Item::Pattern {
                cache: cache.as_ref().into(),
                glob: glob.clone(),
                versions: versions.to_vec(),
            },
            Self::Everything => Item::Everything,
        }
    }
}

/// The errands of one larder.
#[derive(Debug, Default)]
pub(crate) struct Courier {
    /// Paces the errands. Nothing that anybody can see depends on it, so it is not the clock of the
    /// larder, which in a test may stand still.
    pace: SystemClock,
    queue: Mutex<Queue>,
    /// What was done of late, for a server that may have lost it.
    sent: Mutex<Sent>,
    unsent: Mutex<Unsent>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: HashMap<Errand, Vec<oneshot::Sender<Receipt>>>,
    order: VecDeque<Errand>,
    /// How often errands were done, each since when.
    done: HashMap<Errand, (u32, Millis)>,
    running: bool,
}

#[derive(Debug, Default)]
struct Sent {
    errands: VecDeque<(Millis, Errand)>,
    /// Until then more was done than is remembered.
    overflowed_until: Millis,
}

/// What the bus has not been told, newest intent per key.
#[derive(Debug, Default)]
struct Unsent {
    errands: HashSet<Errand>,
    /// What it was told while a tier had not taken it. Whoever heard may have found the old value
    /// there, and hears of it again once the tier has made up for it.
    missed: HashSet<Errand>,
    /// Whether a task tries it again and again.
    retrying: bool,
}

impl Courier {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsent(&self) -> MutexGuard<'_, Unsent> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many errands the bus still has to be told.
    pub(crate) fn unsent_len(&self) -> usize {
        let unsent = self.unsent();
        unsent.errands.len() + unsent.missed.len()
    }

    /// Keeps what a server would have lost if it failed over now.
    fn remember(&self, batch: &[Errand], now: Millis) {
        let mut sent = self.sent();
        while sent
            .errands
            .front()
            .is_some_and(|(at, _)| at + RESENT_FOR < now)
        {
            sent.errands.pop_front();
        }
        let room = MOST_RESENT.saturating_sub(sent.errands.len());
        if batch.len() > room {
            sent.errands.clear();
            sent.overflowed_until = now + RESENT_FOR;
        } else {
            let noted = batch.iter().map(|errand| (now, errand.clone()));
            sent.errands.extend(noted);
        }
    }

    /// What the last minute's errands come to, each once.
    fn to_resend(&self, now: Millis) -> Vec<Errand> {
        let sent = self.sent();
        if now < sent.overflowed_until {
            return vec![Errand::Everything];
        }
        let recent = sent.errands.iter().filter(|(at, _)| at + RESENT_FOR >= now);
        let mut seen = HashSet::new();
        recent
            .map(|(_, errand)| errand.anew())
            .filter(|errand| seen.insert(errand.clone()))
            .collect()
    }

    /// Keeps what the bus could not be told. Whether nobody tries it again yet: the caller has to
    /// see to it.
    fn keep_unsent(&self, batch: Vec<Errand>) -> bool {
        let mut unsent = self.unsent();
        extend(&mut unsent.errands, batch);
        !std::mem::replace(&mut unsent.retrying, true)
    }

    /// Keeps what the bus was told and a tier missed. The same answer.
    fn keep_missed(&self, batch: Vec<Errand>) -> bool {
        let mut unsent = self.unsent();
        extend(&mut unsent.missed, batch.iter().map(Errand::anew));
        !std::mem::replace(&mut unsent.retrying, true)
    }

    fn take_missed(&self) -> Vec<Errand> {
        self.unsent().missed.drain().collect()
    }

    /// Whether there is nothing to try again. Whoever comes with more begins anew.
    fn ends_retrying(&self) -> bool {
        let mut unsent = self.unsent();
        unsent.retrying = !unsent.errands.is_empty() || !unsent.missed.is_empty();
        !unsent.retrying
    }
}

/// Adds to what is kept for the bus. What does not fit becomes everything.
fn extend(kept: &mut HashSet<Errand>, errands: impl IntoIterator<Item = Errand>) {
    kept.extend(errands);
    if kept.len() > MOST_UNSENT {
        kept.clear();
        kept.insert(Errand::Everything);
    }
}

impl Queue {
    /// The errands whose turn it is, and when the next one's is if there are none.
    fn take(&mut self, now: Millis) -> (Vec<Errand>, Option<Millis>) {
        let (most, window) = REPEATS;
        self.done.retain(|_, (_, since)| *since + window > now);
        let done = &self.done;
        let again_at = |errand: &Errand| {
            let done = done.get(errand).filter(|(times, _)| *times >= most);
            done.map(|(_, since)| since + window)
        };
        let (mut batch, mut later) = (Vec::new(), VecDeque::new());
        for errand in self.order.drain(..) {
            if batch.len() < BATCH && again_at(&errand).is_none() {
                batch.push(errand);
            } else {
                later.push_back(errand);
            }
        }
        let next = later.iter().filter_map(again_at).min();
        self.order = later;
        let next = next.filter(|_| batch.is_empty());
        (batch, next)
    }

    /// Counts what was done, for errands that come again and again.
    fn note_done(&mut self, batch: &[Errand], now: Millis) {
        for errand in batch {
            if let Some((times, _)) = self.done.get_mut(errand) {
                *times += 1;
            } else if self.done.len() < COUNTED {
                self.done.insert(errand.clone(), (1, now));
            }
        }
    }
}

impl Shared {
    /// Hands an errand over and waits until it is done. It is done even if the caller goes away.
    pub(crate) async fn send(self: &Arc<Self>, errand: Errand) -> Result<Receipt> {
        self.send_all(vec![errand]).await
    }

    /// Does an errand that takes its time beside the others.
    pub(crate) async fn send_apart(
        self: &Arc<Self>,
        errand: Errand,
        watcher: Watcher,
    ) -> Result<Receipt> {
        self.check_ready()?;
        let (done, receipt) = oneshot::channel();
        let shared = Arc::clone(self);
        self.tasks.spawn(TaskKind::Work, async move {
            // The caller may be gone; the work is done all the same.
            let _ = done.send(shared.run(vec![errand], &watcher).await);
        });
        receipt.await.map_err(|_aborted| Error::closed())
    }

    /// Hands errands over and waits until all of them are done.
    pub(crate) async fn send_all(self: &Arc<Self>, errands: Vec<Errand>) -> Result<Receipt> {
        self.check_ready()?;
        let done = self.enqueue(&errands)?;
        let mut receipt = Receipt::ACKED;
        for (errand, done) in errands.into_iter().zip(done) {
            let one = match done.await {
                Ok(one) => one,
                Err(_aborted) => self.send_again(errand).await?,
            };
            receipt = receipt.with(one);
        }
        Ok(receipt)
    }

    /// Hands an errand over once more, because the task whose turn it was ended, as with a runtime that
    /// is not this caller's. To do it twice does no harm.
    async fn send_again(self: &Arc<Self>, errand: Errand) -> Result<Receipt> {
        for _ in 0..TRIES {
            self.check_ready()?;
            for done in self.enqueue(std::slice::from_ref(&errand))? {
                if let Ok(receipt) = done.await {
                    return Ok(receipt);
                }
            }
        }
        Err(Error::closed())
    }

    /// The same for work that runs in the background already.
    pub(crate) async fn deliver(self: &Arc<Self>, errand: Errand) -> Receipt {
        let done = match self.enqueue(std::slice::from_ref(&errand)) {
            Ok(mut done) => match done.pop() {
                Some(done) => done.await.ok(),
                None => Some(Receipt::ACKED),
            },
            Err(_full) => None,
        };
        done.unwrap_or_else(|| {
            self.apply_once_more(&errand);
            self.do_later(vec![errand]);
            Receipt::ACKED.and(Delivery::Queued)
        })
    }

    fn enqueue(self: &Arc<Self>, errands: &[Errand]) -> Result<Vec<oneshot::Receiver<Receipt>>> {
        let mut queue = self.courier.queue();
        if queue.order.len() + errands.len() > MOST_WAITING {
            return Err(Error::overloaded(format!(
                "{MOST_WAITING} invalidations are waiting already"
            )));
        }
        let mut receipts = Vec::with_capacity(errands.len());
        for errand in errands {
            let (done, receipt) = oneshot::channel();
            receipts.push(receipt);
            let same = queue.waiting.entry(errand.clone()).or_default();
            let is_new = same.is_empty();
            same.push(done);
            if is_new {
                queue.order.push_back(errand.clone());
            }
        }
        let idle = !std::mem::replace(&mut queue.running, true);
        drop(queue);
        if idle {
            let turn = Turn(Some(Arc::clone(self)));
            self.tasks
                .spawn(TaskKind::Work, async move { turn.run_errands().await });
        }
        Ok(receipts)
    }

    /// Does what waits, batch by batch, until nothing does.
    async fn run_errands(self: &Arc<Self>) {
        let pace = &self.courier.pace;
        loop {
            let now = pace.monotonic();
            let (batch, waiting, next) = {
                let mut queue = self.courier.queue();
                let (batch, next) = queue.take(now);
                if batch.is_empty() && next.is_none() {
                    queue.running = false;
                    return;
                }
                let waiting: Vec<_> = batch
                    .iter()
                    .filter_map(|errand| queue.waiting.remove(errand))
                    .flatten()
                    .collect();
                queue.note_done(&batch, now);
                (batch, waiting, next)
            };
            if let Some(next) = next {
                let pause = Duration::from_millis(next.saturating_sub(now).max(1));
                pace.sleep(pause).await;
                continue;
            }
            let receipt = self.run(batch, &Watcher::default()).await;
            for done in waiting {
                // Whoever went away meanwhile did not want to know.
                let _ = done.send(receipt);
            }
        }
    }

    /// Does errands: the tiers, the bus, and memory once more.
    async fn run(self: &Arc<Self>, batch: Vec<Errand>, watcher: &Watcher) -> Receipt {
        let mut budget = Budget::new(self.tier_budget);
        self.join(&mut budget).await;
        self.courier.remember(&batch, self.clock.monotonic());
        let known = Versions::of_batch(self, &batch).await;
        let items: Vec<Item> = batch
            .iter()
            .map(|errand| errand.item(known.of(errand)))
            .collect();
        let (told, published, swept) = match self.tell_at_once(&batch, &known, &items).await {
            Some((told, published)) => (told, published, Swept::default()),
            None => {
                let (told, swept) = self.tell_tiers(&batch, &known, watcher).await;
                (told, self.publish(items).await, swept)
            }
        };
        for errand in &batch {
            self.apply_once_more(errand);
        }
        if told == Delivery::Queued {
            self.tell_once_more(batch.clone());
        }
        match published {
            Ok(token) => {
                self.catch_up_behind();
                Receipt {
                    delivery: told,
                    token,
                    swept,
                }
            }
            Err(()) => {
                if self.courier.keep_unsent(batch) {
                    self.retry_unsent();
                }
                Receipt {
                    delivery: Delivery::Queued,
                    token: None,
                    swept,
                }
            }
        }
    }

    /// Does it again, and tells the others again, as soon as the tiers have made up for what they
    /// missed: until then they find there what is gone.
    pub(crate) fn tell_once_more(self: &Arc<Self>, batch: Vec<Errand>) {
        if self.bus.is_some() {
            self.do_later(batch);
        }
    }

    /// Does it as soon as all tiers can be told and there is room.
    fn do_later(self: &Arc<Self>, batch: Vec<Errand>) {
        if self.courier.keep_missed(batch) {
            self.retry_unsent();
        }
    }

    /// Tells the bus again and again what it did not take. A bus that hung for less than its
    /// silence was never lost, so nothing says that it is back.
    fn retry_unsent(self: &Arc<Self>) {
        let (shared, clock) = (Arc::downgrade(self), Arc::clone(&self.clock));
        self.tasks.spawn(TaskKind::Watch, async move {
            let (mut wait, longest) = UNSENT_EVERY;
            loop {
                clock.sleep(wait).await;
                wait = (wait * 2).min(longest);
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                shared.catch_up().await;
                if shared.courier.ends_retrying() {
                    return;
                }
            }
        });
    }

    /// Tells the only tier and then the bus in one step, where they are one server and there is
    /// nothing to do but to delete: the usual case. `None` if it is another.
    async fn tell_at_once(
        self: &Arc<Self>,
        batch: &[Errand],
        known: &Versions,
        items: &[Item],
    ) -> Option<(Delivery, Result<Option<Token>, ()>)> {
        if !self.tier_is_bus {
            return None;
        }
        let order = self.order(batch, known, true);
        if !order.only_deletes() {
            return None;
        }
        self.delete_and_publish(&order.gone, items.to_vec()).await
    }

    /// Brings errands to every tier, the lowest first.
    async fn tell_tiers(
        self: &Arc<Self>,
        batch: &[Errand],
        known: &Versions,
        watcher: &Watcher,
    ) -> (Delivery, Swept) {
        let (mut told, mut swept_in_all) = (Delivery::Acked, Swept::default());
        for (depth, tier) in self.tiers.iter().enumerate().rev() {
            let is_lowest = depth + 1 == self.tiers.len();
            let order = self.order(batch, known, is_lowest);
            if !order.gone.is_empty() {
                let mut budget = Budget::new(self.tier_budget);
                told = told.and(tier.delete(&mut budget, &order.gone).await);
            }
            if !order.expired.is_empty() {
                let mut budget = Budget::new(self.tier_budget);
                let wall = self.clock.wall();
                told = told.and(tier.expire(&mut budget, &order.expired, wall).await);
            }
            for (prefix, glob, of_cache) in order.records {
                let condemned = |record: &[u8]| {
                    let key = record.get(prefix.len()..).and_then(key::unescape);
                    key.is_none_or(|key| condemns(glob.as_ref(), b"", &key))
                };
                // Where they cannot be enumerated, that of their cache goes: more than was asked for.
                let (delivery, gone) = match tier.sweep(&prefix, &condemned, &|_| ()).await {
                    Ok((delivery, _)) => (delivery, prefix.clone()),
                    Err(_unsupported) => (Delivery::Acked, of_cache),
                };
                // Moves the counter on, for loads under way that will find the records gone.
                let mut budget = Budget::new(self.tier_budget);
                told = told
                    .and(delivery)
                    .and(tier.delete(&mut budget, &[gone]).await);
            }
            let (delivery, swept) = sweep(tier, order.patterns, watcher).await;
            told = told.and(delivery);
            swept_in_all = swept_in_all.and(swept);
            // Behind all that removes: a minimum version stays.
            if !order.minimums.is_empty() {
                let mut budget = Budget::new(self.tier_budget);
                told = told.and(tier.set(&mut budget, &order.minimums).await.0);
            }
        }
        (told, swept_in_all)
    }

    /// What errands come to in one tier.
    fn order(&self, batch: &[Errand], known: &Versions, is_lowest: bool) -> Order {
        let mut order = Order::default();
        let now = self.clock.monotonic();
        for errand in batch {
            match errand {
                // No tier has the entry. What was made from it may be there.
                Errand::Forget {
                    cache,
                    key,
                    why,
                    home: Home::MemoryAlone,
                } => {
                    if is_lowest && *why != Why::Expired {
                        order.gone.push(self.records.of(&name::of_key(cache, key)));
                    }
                }
                Errand::Forget {
                    cache, key, why, ..
                } => {
                    let own = self.registered_version(cache);
                    let remembered = self.minimums.of(cache, key, now);
                    let entries = known.of(errand).iter().map(|version| {
                        let is_own = Some(*version) == own;
                        (self.entry_key(cache, *version, key), is_own)
                    });
                    for (entry, is_own) in entries {
                        match why {
                            Why::Written if is_own => {}
                            Why::Expired => order.expired.push(entry),
                            Why::Before(version) => {
                                order.minimums.push(Minimum::new(*version).write(entry));
                            }
                            Why::Written | Why::Invalidated => {
                                let minimum = remembered.map(|least| least.write(entry.clone()));
                                order.minimums.extend(minimum);
                                order.gone.push(entry);
                            }
                        }
                    }
                    if is_lowest && *why != Why::Expired {
                        order.gone.push(self.records.of(&name::of_key(cache, key)));
                    }
                }
                Errand::Tag(tag) if is_lowest => order.gone.push(self.records.of(tag)),
                Errand::Clear(cache) if is_lowest => {
                    order.gone.push(self.records.of(&name::of_cache(cache)));
                }
                Errand::Pattern { cache, glob } => {
                    let glob = Glob::parse(glob).ok();
                    if is_lowest {
                        let front = self.records.of(&name::of_key(cache, b""));
                        let of_cache = self.records.of(&name::of_cache(cache));
                        order.records.push((front, glob.clone(), of_cache));
                    }
                    for version in known.of(errand) {
                        let prefix = self.entry_key(cache, *version, b"");
                        order.patterns.push((prefix, glob.clone()));
                        let minimums = self.minimums_matching(cache, *version, glob.as_ref());
                        order.minimums.extend(minimums);
                    }
                }
                Errand::Everything => {
                    let namespace = self.records.namespace();
                    order.patterns.push((namespace.clone(), None));
                }
                Errand::Tag(_) | Errand::Clear(_) => {}
            }
        }
        order
    }

    /// The minimum versions that a sweep by `glob` takes along, to be put back.
    pub(crate) fn minimums_matching(
        &self,
        cache: &str,
        version: u32,
        glob: Option<&Glob>,
    ) -> Vec<Write> {
        let all = self.minimums.of_cache(cache, self.clock.monotonic());
        let swept = all.into_iter().filter(|(key, _)| condemns(glob, b"", key));
        swept
            .map(|(key, minimum)| minimum.write(self.entry_key(cache, version, &key)))
            .collect()
    }

    /// What an invalidation comes to; an error if it cannot be done.
    pub(crate) fn errand_for(&self, what: &Invalidation) -> Result<Errand> {
        let home = |cache: &str| {
            let known = self.find(cache);
            known.map_or(Home::AboveTiers, |cache| cache.lives().0)
        };
        let forget = |cache: &str, key: &Bytes, why| {
            key::check(key)?;
            key::check_name("cache name", cache)?;
            Ok(Errand::forget(
                &Arc::from(cache),
                key.clone(),
                why,
                home(cache),
            ))
        };
        match what {
            Invalidation::Key { cache, key } => forget(cache, key, Why::Invalidated),
            Invalidation::Expire { cache, key } => forget(cache, key, Why::Expired),
            Invalidation::Tag(tag) => {
                name::check(tag).map_err(Error::config)?;
                Ok(Errand::Tag(name::of_tag(tag)))
            }
            Invalidation::Cache(cache) => {
                key::check_name("cache name", cache)?;
                Ok(Errand::Clear(Arc::from(&**cache)))
            }
            Invalidation::Pattern { cache, glob } => {
                key::check_name("cache name", cache)?;
                Glob::parse(glob).map_err(Error::config)?;
                self.check_sweepable()?;
                Ok(Errand::Pattern {
                    cache: Arc::from(&**cache),
                    glob: glob.clone(),
                })
            }
        }
    }

    /// An error if a tier cannot enumerate its keys.
    pub(crate) fn check_sweepable(&self) -> Result<()> {
        match self.tiers.iter().find(|tier| !tier.can_sweep()) {
            Some(tier) => Err(Error::unsupported(tier.name())),
            None => Ok(()),
        }
    }

    /// The key of an entry in the tiers.
    pub(crate) fn entry_key(&self, cache: &str, version: u32, key: &[u8]) -> Bytes {
        let namespace = self.records.namespace();
        let mut entry = Vec::with_capacity(namespace.len() + cache.len() + key.len() + 12);
        entry.extend_from_slice(namespace);
        entry.extend_from_slice(format!("{cache}@{version}:").as_bytes());
        entry.extend_from_slice(key);
        Bytes::from(entry)
    }

    /// Sends again what a server may have lost in a failover.
    pub(crate) async fn resend(self: &Arc<Self>) {
        let errands = self.courier.to_resend(self.clock.monotonic());
        if !errands.is_empty() {
            tracing::info!(
                count = errands.len(),
                "the server is another one; sending the invalidations of the last minute again"
            );
            let _receipt = self.send_all(errands).await;
        }
    }

    /// The same in a task of its own, if there is anything.
    pub(crate) fn catch_up_behind(self: &Arc<Self>) {
        if self.courier.unsent_len() > 0 {
            let shared = Arc::clone(self);
            self.tasks
                .spawn(TaskKind::Work, async move { shared.catch_up().await });
        }
    }

    /// Does once more what tiers missed, if they have made up for it: a minimum version is not
    /// among what they are owed.
    fn do_missed(self: &Arc<Self>) {
        if self.tiers.iter().any(|tier| tier.owes()) {
            return;
        }
        let missed = self.courier.take_missed();
        // Nobody waits for the receipts, and a full queue is tried again.
        if !missed.is_empty() && self.enqueue(&missed).is_err() {
            self.do_later(missed);
        }
    }

    /// Tells the bus what it could not be told while it was down, and once more what tiers missed.
    pub(crate) async fn catch_up(self: &Arc<Self>) {
        self.do_missed();
        let errands: Vec<Errand> = {
            let mut unsent = self.courier.unsent();
            std::mem::take(&mut unsent.errands).into_iter().collect()
        };
        if errands.is_empty() {
            return;
        }
        // Tiers and memory heard of them before: what came there since is newer.
        let known = Versions::of_batch(self, &errands).await;
        let items = errands.iter().map(|errand| errand.item(known.of(errand)));
        if self.publish(items.collect()).await.is_err() && self.courier.keep_unsent(errands) {
            self.retry_unsent();
        }
    }
}

/// The right to do errands, which one task at a time has. If that ends before it is through, as with
/// its runtime, whoever waits is told and comes again, and whoever comes next has the right.
struct Turn(Option<Arc<Shared>>);

impl Turn {
    async fn run_errands(mut self) {
        if let Some(shared) = &self.0 {
            shared.run_errands().await;
        }
        self.0 = None;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            let mut queue = shared.courier.queue();
            queue.running = false;
            queue.order.clear();
            queue.waiting.clear();
        }
    }
}

/// What one tier has to do for a batch.
#[derive(Default)]
struct Order {
    gone: Vec<Bytes>,
    expired: Vec<Bytes>,
    minimums: Vec<Write>,
    patterns: Vec<(Bytes, Option<Glob>)>,
    /// The records of keys that a glob picks, by what stands in front of the keys, and that of their
    /// cache.
    records: Vec<(Bytes, Option<Glob>, Bytes)>,
}

impl Order {
    fn only_deletes(&self) -> bool {
        let Self {
            gone,
            expired,
            minimums,
            patterns,
            records,
        } = self;
        let nothing_else = expired.is_empty() && minimums.is_empty();
        !gone.is_empty() && nothing_else && patterns.is_empty() && records.is_empty()
    }
}

/// Walks through a tier once for each pattern, and tells how far that has got.
async fn sweep(
    tier: &Arc<Tier>,
    patterns: Vec<(Bytes, Option<Glob>)>,
    watcher: &Watcher,
) -> (Delivery, Swept) {
    let (mut told, mut done) = (Delivery::Acked, Swept::default());
    for (prefix, glob) in patterns {
        let condemned = |key: &[u8]| condemns(glob.as_ref(), &prefix, key);
        let known = glob.as_ref().map(Glob::encoded_prefix).unwrap_or_default();
        let front = Bytes::from([&prefix[..], &known].concat());
        let progress = |now: Swept| watcher.tell(tier.name(), done.and(now));
        match tier.sweep(&front, &condemned, &progress).await {
            Ok((Delivery::Acked, swept)) => {
                done = done.and(swept);
                watcher.tell(tier.name(), done);
            }
            Ok((Delivery::Queued, _)) | Err(_) => told = Delivery::Queued,
        }
    }
    (told, done)
}

/// A glob that does not parse any more, which takes another release to happen, matches everything.
fn condemns(glob: Option<&Glob>, prefix: &[u8], key: &[u8]) -> bool {
    let logical = key.get(prefix.len()..).unwrap_or_default();
    glob.is_none_or(|glob| glob.matches_encoded(logical))
}

/// The schema versions of the caches of a batch.
#[derive(Default)]
struct Versions {
    of_cache: HashMap<Arc<str>, Vec<u32>>,
}

impl Versions {
    async fn of_batch(shared: &Arc<Shared>, batch: &[Errand]) -> Self {
        let mut budget = Budget::new(shared.tier_budget);
        let mut known = Self::default();
        for errand in batch {
            let cache = match errand {
                Errand::Forget {
                    home: Home::MemoryAlone,
                    ..
                } => continue,
                Errand::Forget { cache, .. } | Errand::Pattern { cache, .. } => cache,
                _ => continue,
            };
            known.ask(shared, cache, &mut budget).await;
        }
        known
    }

    async fn ask(&mut self, shared: &Arc<Shared>, cache: &Arc<str>, budget: &mut Budget) {
        if !self.of_cache.contains_key(cache) {
            let versions = shared.versions_of(cache, budget).await;
            self.of_cache.insert(Arc::clone(cache), versions);
        }
    }

    fn of(&self, errand: &Errand) -> &[u32] {
        match errand {
            Errand::Forget { cache, .. } | Errand::Pattern { cache, .. } => {
                self.of_cache.get(cache).map_or(&[], Vec::as_slice)
            }
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errand(tag: &str) -> Errand {
        Errand::Tag(tag.into())
    }

    #[test]
    fn an_errand_that_is_done_over_and_over_waits_and_others_do_not() {
        let (most, window) = REPEATS;
        let mut queue = Queue::default();
        for _ in 0..most {
            queue.order.push_back(errand("a"));
            assert_eq!(queue.take(100), (vec![errand("a")], None));
            queue.note_done(&[errand("a")], 100);
        }
        queue.order.extend([errand("a"), errand("b")]);
        assert_eq!(queue.take(101), (vec![errand("b")], None));
        assert_eq!(queue.take(101), (vec![], Some(100 + window)));
        assert_eq!(queue.take(100 + window), (vec![errand("a")], None));
        assert_eq!(queue.take(200), (vec![], None));
    }

    #[test]
    fn what_a_server_may_have_lost_is_the_last_minutes_errands_each_once() {
        let courier = Courier::default();
        courier.remember(&[errand("old")], 0);
        courier.remember(&[errand("a"), errand("b")], 30_000);
        courier.remember(&[errand("a")], 50_000);
        assert_eq!(courier.to_resend(61_000), [errand("a"), errand("b")]);
        let many: Vec<_> = (0..MOST_RESENT).map(|n| errand(&n.to_string())).collect();
        courier.remember(&many, 61_000);
        assert_eq!(courier.to_resend(61_000), [Errand::Everything]);
        courier.remember(&[errand("b")], 61_001);
        courier.remember(&[errand("c")], 61_000 + RESENT_FOR);
        assert_eq!(courier.to_resend(61_001), [Errand::Everything]);
        assert_eq!(
            courier.to_resend(61_000 + RESENT_FOR),
            [errand("b"), errand("c")]
        );
    }

    #[test]
    fn what_cannot_be_kept_for_the_bus_becomes_everything() {
        let courier = Courier::default();
        assert!(courier.keep_unsent(vec![errand("a"), errand("a")]));
        assert_eq!(courier.unsent_len(), 1);
        let many = (0..MOST_UNSENT).map(|n| errand(&n.to_string())).collect();
        assert!(!courier.keep_unsent(many), "somebody tries already");
        assert_eq!(courier.unsent_len(), 1);
        assert!(!courier.ends_retrying());
    }

    #[test]
    fn a_token_is_read_back_as_it_was_written_and_nothing_else_is_one() {
        let token = Token(Position {
            incarnation: u64::MAX,
            count: 7,
        });
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        for text in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "x-1",
            "+1-1",
            "1-2-3",
            "1-10000000000000000",
        ] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }
}
