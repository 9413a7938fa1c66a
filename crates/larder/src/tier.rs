//! A store with everything around it that keeps it from hurting reads: a time budget, a breaker,
//! and the repairs it owes before it may be trusted again.
//!
//! A tier is *closed* (in use) or *open* (not asked). It opens after failures in a row, and at
//! once when an invalidation did not get through, because from then on it may hold what must not
//! be read. While it is open, one background task probes it; once it answers, the invalidations
//! that it missed are replayed, and only then does it close. Reads never probe.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::{BoxFuture, Clock, Millis, millis};
use crate::store::{
    Fill, Filled, LeaseRequest, LeaseToken, Leased, Position, Store, StoreError, StoreErrorKind,
    StoreResult, Swept, Write,
};
use crate::tasks::{TaskKind, Tasks};

/// Failures in a row that open a tier.
const FAILURES_TO_OPEN: u64 = 3;
/// The first and the longest wait between two probes.
const PROBE_EVERY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How long a probe or one batch of repairs may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);
/// How long a walk over all keys of a tier may take.
const SWEEP_PATIENCE: Duration = Duration::from_secs(60);
/// How many keys a tier may owe; beyond it the whole namespace is cleared instead.
const MAX_OWED: usize = 10_000;
/// How many keys are repaired in one call.
const REPAIR_BATCH: usize = 500;

/// Whether other processes use the same store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    Private,
    Shared,
}

/// The time that the tiers may take from one read, all operations together.
pub(crate) struct Budget {
    left: Millis,
}

impl Budget {
    pub(crate) fn new(budget: Duration) -> Self {
        // A budget below a millisecond is one: nothing would ever be asked otherwise.
        Self {
            left: millis(budget).max(1),
        }
    }

    /// Waits for something that is not a tier, no longer than the budget lasts.
    pub(crate) async fn wait<T>(
        &mut self,
        clock: &dyn Clock,
        awaited: impl Future<Output = T>,
    ) -> Option<T> {
        if self.left == 0 {
            return None;
        }
        let began = clock.monotonic();
        let outcome = within(clock, Duration::from_millis(self.left), awaited).await;
        let took = clock.monotonic().saturating_sub(began);
        self.left = self.left.saturating_sub(took);
        outcome
    }
}

/// One tier below memory.
#[derive(Debug)]
pub(crate) struct Tier {
    store: Arc<dyn Store>,
    name: Arc<str>,
    sharing: Sharing,
    /// The prefix of every key of this larder.
    namespace: Bytes,
    /// The counter that moves with every deletion; only the lowest tier keeps it.
    counter: Option<Bytes>,
    clock: Arc<dyn Clock>,
    tasks: Arc<Tasks>,
    /// Says without a lock whether `health` is open.
    open: AtomicBool,
    health: Mutex<Health>,
    /// Failures since the last success.
    failures_in_row: AtomicU64,
    /// Whether the last operations were refused.
    refusing: AtomicBool,
    counters: TierCounters,
}

#[derive(Debug, Default)]
struct Health {
    open: bool,
    owed: Owed,
}

/// The invalidations that a tier missed, each with its number: one that comes again while it is
/// being made up for is owed anew.
#[derive(Debug, Default)]
struct Owed {
    keys: HashMap<Bytes, u64>,
    prefixes: HashMap<Bytes, u64>,
    noted: u64,
}

impl Owed {
    /// Notes keys and a prefix; beyond the limit the whole `namespace` instead.
    fn note(&mut self, keys: &mut Vec<Bytes>, prefix: Option<Bytes>, namespace: &Bytes) {
        self.noted += 1;
        let number = self.noted;
        self.prefixes.extend(prefix.map(|prefix| (prefix, number)));
        self.keys.extend(keys.drain(..).map(|key| (key, number)));
        if self.keys.len() > MAX_OWED {
            self.keys.clear();
            self.prefixes.clear();
            self.prefixes.insert(namespace.clone(), number);
        }
    }

    /// Forgets what was made up for, as far as it was not noted again since.
    fn settle(&mut self, keys: &HashMap<Bytes, u64>, prefixes: &HashMap<Bytes, u64>) {
        self.keys
            .retain(|key, number| keys.get(key) != Some(number));
        self.prefixes
            .retain(|prefix, number| prefixes.get(prefix) != Some(number));
    }

    fn len(&self) -> usize {
        self.keys.len() + self.prefixes.len()
    }
}

#[derive(Debug, Default)]
struct TierCounters {
    hits: AtomicU64,
    misses: AtomicU64,
    failures: AtomicU64,
    timeouts: AtomicU64,
    skipped: AtomicU64,
    refused: AtomicU64,
    too_large: AtomicU64,
    opened: AtomicU64,
    repaired: AtomicU64,
}

/// Why a tier did not do what it was asked. It is counted already.
#[derive(Debug)]
pub(crate) enum Unserved {
    /// Not in use, or it refused: nothing was done.
    Down,
    /// It failed or was too slow. What was asked may be done all the same, now or later.
    Unknown,
    /// The store is there and refused.
    Refused,
    /// The store has no such operation.
    Unsupported(StoreError),
}

impl Tier {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        sharing: Sharing,
        namespace: Bytes,
        counter: Option<Bytes>,
        clock: Arc<dyn Clock>,
        tasks: Arc<Tasks>,
    ) -> Self {
        let name = Arc::from(store.name());
        Self {
            store,
            name,
            sharing,
            namespace,
            counter,
            clock,
            tasks,
            open: AtomicBool::new(false),
            health: Mutex::default(),
            failures_in_row: AtomicU64::new(0),
            refusing: AtomicBool::new(false),
            counters: TierCounters::default(),
        }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Whether it can enumerate its keys.
    pub(crate) fn can_sweep(&self) -> bool {
        self.store.capabilities().sweep
    }

    /// The longest value the tier takes, in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.store.capabilities().max_value_bytes
    }

    pub(crate) async fn get(
        self: &Arc<Self>,
        budget: &mut Budget,
        keys: &[Bytes],
        limit: usize,
    ) -> Result<Vec<Option<Bytes>>, Unserved> {
        self.ask(budget, all_of(keys.len(), self.store.get(keys, limit)))
            .await
    }

    pub(crate) async fn lease(
        self: &Arc<Self>,
        budget: &mut Budget,
        keys: &[Bytes],
        request: &LeaseRequest,
    ) -> Result<Vec<Leased>, Unserved> {
        self.ask(budget, all_of(keys.len(), self.store.lease(keys, request)))
            .await
    }

    pub(crate) async fn fill(
        self: &Arc<Self>,
        budget: &mut Budget,
        fills: &[Fill],
    ) -> Result<Vec<Filled>, Unserved> {
        let filled = self
            .ask(budget, all_of(fills.len(), self.store.fill(fills)))
            .await?;
        let refused = filled
            .iter()
            .filter(|filled| **filled == Filled::Refused)
            .count();
        self.counters.refused.fetch_add(refused as u64, Relaxed);
        Ok(filled)
    }

    pub(crate) async fn release(
        self: &Arc<Self>,
        budget: &mut Budget,
        keys: &[Bytes],
        token: LeaseToken,
    ) -> Result<(), Unserved> {
        self.ask(budget, self.store.release(keys, token)).await
    }

    /// Has the store keep what is under the keys for at least `ttl` from now on.
    pub(crate) async fn touch(
        self: &Arc<Self>,
        budget: &mut Budget,
        keys: &[Bytes],
        ttl: Duration,
    ) -> Result<(), Unserved> {
        self.ask(budget, self.store.touch(keys, ttl)).await
    }

    /// Waits until the lease of somebody else on one of the keys may be gone; `false` if the store
    /// cannot tell. Nothing is learned from how it went: the next operation finds out.
    pub(crate) async fn changed(&self, keys: &[Bytes]) -> bool {
        !self.open.load(Relaxed) && self.store.changed(keys).await.is_ok()
    }

    /// Gives a lease back that nobody waits for any more. A tier that cannot be told is out of use
    /// until the key has been removed from it, or else readers would wait for somebody who has
    /// gone. A lease that the store does not want to give up ends by itself.
    pub(crate) async fn abandon(
        self: &Arc<Self>,
        budget: &mut Budget,
        key: &Bytes,
        token: LeaseToken,
    ) {
        let keys = std::slice::from_ref(key);
        if let Err(Unserved::Down | Unserved::Unknown) = self.release(budget, keys, token).await
            && self.health().owed.keys.len() < MAX_OWED
        {
            self.owe(&mut keys.to_vec(), None);
        }
    }

    /// Writes, or leaves the keys owed as deleted: after a write that failed the old value must
    /// not be read. A store that refuses the write, as a full one does, may still delete. What each
    /// write came to is there if all of them were carried out.
    pub(crate) async fn set(
        self: &Arc<Self>,
        budget: &mut Budget,
        writes: &[Write],
    ) -> (Delivery, Option<Vec<Filled>>) {
        let keys: Vec<_> = writes.iter().map(|write| write.key.clone()).collect();
        let mut filled = None;
        let set_or_delete = async {
            let set = all_of(writes.len(), self.store.set(writes));
            match self.ask(budget, set).await {
                Ok(all) => filled = Some(all),
                Err(Unserved::Refused) => self.ask(budget, self.remove(&keys)).await?,
                Err(other) => return Err(other),
            }
            Ok(())
        };
        let delivery = self.deliver(keys.clone(), set_or_delete).await;
        (delivery, filled)
    }

    pub(crate) async fn delete(self: &Arc<Self>, budget: &mut Budget, keys: &[Bytes]) -> Delivery {
        self.deliver(keys.to_vec(), self.ask(budget, self.remove(keys)))
            .await
    }

    /// Deletes and then publishes in one step, or leaves the keys owed if nobody knows whether that
    /// was done. After any other error it has to be done in two.
    pub(crate) async fn delete_and_publish(
        self: &Arc<Self>,
        budget: &mut Budget,
        keys: &[Bytes],
        channel: &str,
        message: Bytes,
    ) -> Result<Position, Unserved> {
        let Some(counter) = &self.counter else {
            return Err(Unserved::Down);
        };
        let debt = Debt {
            tier: self,
            keys: keys.to_vec(),
            prefix: None,
        };
        let both = self
            .store
            .delete_and_publish(keys, counter, channel, message);
        let told = self.ask(budget, both).await;
        if !matches!(told, Err(Unserved::Unknown)) {
            debt.paid();
        }
        told
    }

    fn remove<'a>(&'a self, keys: &'a [Bytes]) -> BoxFuture<'a, StoreResult<()>> {
        self.store.delete(keys, self.counter.as_ref())
    }

    /// The schema versions that the store lists under `record`, this one among them.
    pub(crate) async fn enlist(
        self: &Arc<Self>,
        budget: &mut Budget,
        record: &Bytes,
        version: u32,
        keep: Duration,
    ) -> Result<Vec<u32>, Unserved> {
        self.ask(budget, self.store.enlist(record, version, keep))
            .await
    }

    pub(crate) async fn expire(
        self: &Arc<Self>,
        budget: &mut Budget,
        keys: &[Bytes],
        wall: Millis,
    ) -> Delivery {
        self.deliver(
            keys.to_vec(),
            self.ask(budget, self.store.expire(keys, wall)),
        )
        .await
    }

    /// Removes the keys under `prefix` that `condemned` picks, or leaves all under it owed.
    pub(crate) async fn sweep(
        self: &Arc<Self>,
        prefix: &Bytes,
        condemned: &(dyn Fn(&[u8]) -> bool + Send + Sync),
        progress: &(dyn Fn(Swept) + Send + Sync),
    ) -> Result<(Delivery, Swept), StoreError> {
        let debt = Debt {
            tier: self,
            keys: Vec::new(),
            prefix: Some(prefix.clone()),
        };
        let mut patience = Budget::new(SWEEP_PATIENCE);
        let sweep = self.store.sweep(prefix, condemned, progress);
        match self.ask(&mut patience, sweep).await {
            Ok(swept) => {
                debt.paid();
                Ok((Delivery::Acked, swept))
            }
            Err(Unserved::Unsupported(error)) => {
                debt.paid();
                Err(error)
            }
            Err(Unserved::Down | Unserved::Unknown | Unserved::Refused) => {
                Ok((Delivery::Queued, Swept::default()))
            }
        }
    }

    /// Takes the tier out of use until everything in it is gone: it may hold anything that others
    /// have invalidated.
    pub(crate) fn empty(self: &Arc<Self>) {
        self.owe(&mut Vec::new(), Some(self.namespace.clone()));
    }

    async fn deliver(
        self: &Arc<Self>,
        keys: Vec<Bytes>,
        operation: impl Future<Output = Result<(), Unserved>>,
    ) -> Delivery {
        let debt = Debt {
            tier: self,
            keys,
            prefix: None,
        };
        match operation.await {
            Ok(()) => {
                debt.paid();
                Delivery::Acked
            }
            Err(_) => Delivery::Queued,
        }
    }

    /// Runs one operation within what is left of the budget, and learns from how it went.
    async fn ask<T>(
        self: &Arc<Self>,
        budget: &mut Budget,
        operation: impl Future<Output = StoreResult<T>>,
    ) -> Result<T, Unserved> {
        if self.open.load(Relaxed) || budget.left == 0 {
            self.counters.skipped.fetch_add(1, Relaxed);
            return Err(Unserved::Down);
        }
        let began = self.clock.monotonic();
        let result = within(&*self.clock, Duration::from_millis(budget.left), operation).await;
        let took = self.clock.monotonic().saturating_sub(began);
        budget.left = if result.is_none() {
            0
        } else {
            budget.left.saturating_sub(took)
        };
        match result {
            Some(Ok(value)) => {
                self.succeeded();
                Ok(value)
            }
            Some(Err(error)) if error.kind() == StoreErrorKind::Unsupported => {
                Err(Unserved::Unsupported(error))
            }
            Some(Err(error)) => {
                self.counters.failures.fetch_add(1, Relaxed);
                // A store that refuses is there: full for writes, it still answers reads.
                Err(match error.kind() {
                    StoreErrorKind::Refused => {
                        self.refused(&error);
                        Unserved::Refused
                    }
                    _ => {
                        self.failed(&error);
                        Unserved::Unknown
                    }
                })
            }
            None => {
                self.counters.timeouts.fetch_add(1, Relaxed);
                self.failed(&StoreError::unavailable(
                    "no answer within the budget of the read",
                ));
                Err(Unserved::Unknown)
            }
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn succeeded(&self) {
        if self.failures_in_row.load(Relaxed) != 0 {
            self.failures_in_row.store(0, Relaxed);
        }
        if self.refusing.load(Relaxed) {
            self.refusing.store(false, Relaxed);
        }
    }

    /// Says so once, and again only after something went well in between.
    fn refused(&self, error: &StoreError) {
        if !self.refusing.swap(true, Relaxed) {
            tracing::warn!(tier = &*self.name, error = ?error, "tier refuses operations");
        }
    }

    fn failed(self: &Arc<Self>, error: &StoreError) {
        if self.failures_in_row.fetch_add(1, Relaxed) + 1 >= FAILURES_TO_OPEN {
            self.open(self.health(), error);
        }
    }

    /// Takes the tier out of use and begins to probe it, unless that was done before.
    fn open(self: &Arc<Self>, mut health: MutexGuard<'_, Health>, why: &StoreError) {
        if health.open {
            return;
        }
        health.open = true;
        self.open.store(true, SeqCst);
        drop(health);
        self.counters.opened.fetch_add(1, Relaxed);
        tracing::warn!(tier = &*self.name, error = ?why, "tier is out of use; reads go on without it");
        let (tier, clock) = (Arc::downgrade(self), Arc::clone(&self.clock));
        self.tasks.spawn(TaskKind::Watch, async move {
            let (mut wait, longest) = PROBE_EVERY;
            loop {
                clock.sleep(wait).await;
                wait = (wait * 2).min(longest);
                // A larder that nobody holds any more is not kept alive by a server that is gone.
                let Some(tier) = tier.upgrade() else { return };
                if tier.heal().await {
                    return;
                }
            }
        });
    }

    /// Puts the tier into use again if it answers and, after repairs, owes nothing.
    async fn heal(&self) -> bool {
        let alive = within(&*self.clock, PROBE_PATIENCE, self.store.ping()).await;
        let whole = matches!(alive, Some(Ok(()))) && self.repair().await.is_some();
        let healed = whole && self.close_if_paid();
        if healed {
            tracing::info!(tier = &*self.name, "tier is in use again");
        }
        healed
    }

    /// Replays what the tier missed; `None` if it fails again.
    async fn repair(&self) -> Option<()> {
        loop {
            let (keys, prefixes) = {
                let owed = &self.health().owed;
                let keys = owed.keys.iter().take(REPAIR_BATCH);
                let keys: HashMap<_, _> =
                    keys.map(|(key, number)| (key.clone(), *number)).collect();
                (keys, owed.prefixes.clone())
            };
            if keys.is_empty() && prefixes.is_empty() {
                return Some(());
            }
            for prefix in prefixes.keys() {
                let sweep = self.store.sweep(prefix, &|_| true, &|_| ());
                within(&*self.clock, SWEEP_PATIENCE, sweep).await?.ok()?;
            }
            let gone: Vec<_> = keys.keys().cloned().collect();
            within(&*self.clock, PROBE_PATIENCE, self.remove(&gone))
                .await?
                .ok()?;
            self.health().owed.settle(&keys, &prefixes);
            self.counters
                .repaired
                .fetch_add((keys.len() + prefixes.len()) as u64, Relaxed);
        }
    }

    /// Puts the tier into use, unless a debt came up since the last repair.
    fn close_if_paid(&self) -> bool {
        let mut health = self.health();
        let paid = health.owed.len() == 0;
        if paid {
            health.open = false;
            self.failures_in_row.store(0, Relaxed);
            self.open.store(false, SeqCst);
        }
        paid
    }

    /// Notes what the tier missed, and takes it out of use until it has made up for it.
    fn owe(self: &Arc<Self>, keys: &mut Vec<Bytes>, prefix: Option<Bytes>) {
        let mut health = self.health();
        health.owed.note(keys, prefix, &self.namespace);
        self.open(
            health,
            &StoreError::unavailable("an invalidation or the end of a lease did not get through"),
        );
    }

    /// Whether it has still to make up for something.
    pub(crate) fn owes(&self) -> bool {
        self.open.load(SeqCst) && self.health().owed.len() > 0
    }

    pub(crate) fn count_hit(&self) {
        self.counters.hits.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_miss(&self) {
        self.counters.misses.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_too_large(&self) {
        self.counters.too_large.fetch_add(1, Relaxed);
    }

    /// Closes the store, waiting no longer than `patience`.
    pub(crate) async fn shut(&self, patience: Duration) {
        match within(&*self.clock, patience, self.store.close()).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(tier = &*self.name, error = ?error, "tier did not close")
            }
            None => tracing::warn!(tier = &*self.name, "tier did not close in time"),
        }
    }

    pub(crate) fn snapshot(&self) -> TierStats {
        let (open, owed) = {
            let health = self.health();
            (health.open, health.owed.len())
        };
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        TierStats {
            name: Arc::clone(&self.name),
            health: if open {
                TierHealth::Open
            } else {
                TierHealth::Closed
            },
            hits: of(&self.counters.hits),
            misses: of(&self.counters.misses),
            failures: of(&self.counters.failures),
            timeouts: of(&self.counters.timeouts),
            skipped: of(&self.counters.skipped),
            refused_fills: of(&self.counters.refused),
            too_large: of(&self.counters.too_large),
            opened: of(&self.counters.opened),
            owed: owed as u64,
            repaired: of(&self.counters.repaired),
        }
    }
}

/// Whether everybody took an invalidation or a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Every tier took it, and so did the bus, if there is one. Other processes hear of it within
    /// milliseconds.
    Acked,
    /// A tier or the bus could not be reached. The tier is out of use for this larder until it has
    /// been made up for, and the bus is told as soon as it is back, so this larder, while it lives,
    /// does not read the old value. Processes that still reach the tier may, and so may a successor
    /// of this one if it crashes before.
    Queued,
}

impl Delivery {
    pub(crate) fn and(self, other: Self) -> Self {
        match self {
            Delivery::Acked => other,
            Delivery::Queued => self,
        }
    }
}

/// What a tier owes if the operation under way does not end well, its caller's cancellation
/// included.
struct Debt<'a> {
    tier: &'a Arc<Tier>,
    keys: Vec<Bytes>,
    prefix: Option<Bytes>,
}

impl Debt<'_> {
    fn paid(mut self) {
        self.keys.clear();
        self.prefix = None;
    }
}

impl Drop for Debt<'_> {
    fn drop(&mut self) {
        if !self.keys.is_empty() || self.prefix.is_some() {
            self.tier.owe(&mut self.keys, self.prefix.take());
        }
    }
}

/// The results of a batch. A store that answers for another number of keys cannot be believed at
/// all.
async fn all_of<T>(
    count: usize,
    batch: impl Future<Output = StoreResult<Vec<T>>>,
) -> StoreResult<Vec<T>> {
    let results = batch.await?;
    if results.len() == count {
        return Ok(results);
    }
    Err(StoreError::unavailable(
        "the store answered for another number of keys",
    ))
}

/// Runs `operation` for at most `patience` on `clock`; `None` if that was not enough.
pub(crate) async fn within<T>(
    clock: &dyn Clock,
    patience: Duration,
    operation: impl Future<Output = T>,
) -> Option<T> {
    let mut operation = pin!(operation);
    let mut alarm = None;
    std::future::poll_fn(|context| {
        if let Poll::Ready(value) = operation.as_mut().poll(context) {
            return Poll::Ready(Some(value));
        }
        // The timer is set only once the operation has to wait at all.
        let alarm = alarm.get_or_insert_with(|| clock.sleep(patience));
        alarm.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// Whether a tier is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierHealth {
    /// In use.
    Closed,
    /// Not asked: it failed, and is being probed in the background.
    Open,
}

/// What one tier below memory did since the larder was built. All counts are totals.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierStats {
    /// The name of the store.
    pub name: Arc<str>,
    /// Whether it is in use.
    pub health: TierHealth,
    /// Reads of a key that it answered with a usable value.
    pub hits: u64,
    /// Reads of a key that it could not answer.
    pub misses: u64,
    /// Operations that ended in an error.
    pub failures: u64,
    /// Operations that did not end within the budget.
    pub timeouts: u64,
    /// Operations that were not tried, because the tier was open or the budget spent.
    pub skipped: u64,
    /// Fills that came after an invalidation, another write or the end of their lease.
    pub refused_fills: u64,
    /// Values over the limit of the store, not sent or not read.
    pub too_large: u64,
    /// How often the tier was taken out of use.
    pub opened: u64,
    /// Keys that it still has to remove: invalidated, or leased by somebody who could not tell it.
    pub owed: u64,
    /// Keys that it has removed since, clears as one.
    pub repaired: u64,
}
