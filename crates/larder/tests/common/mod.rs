//! What the scenarios share: answers of loaders, and tiers whose faults are at hand.

#![allow(dead_code, reason = "each scenario uses the parts that it needs")]

use std::future::{Future, Ready, poll_fn, ready};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use larder::backplane::LocalBus;
use larder::clock::{BoxFuture, Millis};
use larder::envelope::Header;
use larder::store::{
    Capabilities, Fill, Filled, LeaseRequest, LeaseToken, Leased, StoreResult, Swept, Write,
};
use larder::{Larder, LarderBuilder, Store};
use larder_testkit::{FaultyBus, FaultyStore, ManualClock, MemoryStore, larder_with};
use tokio::task::JoinHandle;

/// A tier in memory with switches in front of it.
pub(crate) type Faulty = FaultyStore<MemoryStore>;

/// What a loader returns at once.
pub(crate) type Answered<A> = Ready<io::Result<A>>;

/// A loader's answer.
pub(crate) fn found<A>(answer: A) -> Answered<A> {
    ready(Ok(answer))
}

/// A loader's failure.
pub(crate) fn failed<A>() -> Answered<A> {
    ready(Err(io::Error::other("no route")))
}

/// The answer of a loader that must not be asked.
pub(crate) fn never() -> Answered<u64> {
    unasked()
}

/// The same for any kind of answer.
pub(crate) fn unasked<A>() -> Answered<A> {
    panic!("this read needs no load")
}

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A tier on `clock`, and a second handle to it for the test.
pub(crate) fn faulty(clock: &Arc<ManualClock>) -> (Faulty, Faulty) {
    let store = FaultyStore::new(MemoryStore::new(clock.clone()), clock.clone());
    (store.clone(), store)
}

/// A larder with one shared tier.
pub(crate) fn with_tier(namespace: &str) -> (Larder, Arc<ManualClock>, Faulty) {
    let mut tier = None;
    let (larder, clock) = larder_with(namespace, |builder, clock| {
        let (store, handle) = faulty(clock);
        tier = Some(handle);
        builder.shared(store)
    });
    (larder, clock, tier.unwrap())
}

/// A larder with a private tier above a shared one; the handles come in that order.
pub(crate) fn with_two_tiers(namespace: &str) -> (Larder, Arc<ManualClock>, Faulty, Faulty) {
    let mut tiers = None;
    let (larder, clock) = larder_with(namespace, |builder, clock| {
        let (upper, upper_handle) = faulty(clock);
        let (lower, lower_handle) = faulty(clock);
        tiers = Some((upper_handle, lower_handle));
        builder.tier(upper).shared(lower)
    });
    let (upper, lower) = tiers.unwrap();
    (larder, clock, upper, lower)
}

/// Another process: a larder of its own over a store that others use too.
pub(crate) fn another_process(namespace: &str, clock: &Arc<ManualClock>, store: &Faulty) -> Larder {
    let builder: LarderBuilder = Larder::builder(namespace)
        .clock(clock.clone())
        .without_backplane();
    builder.shared(store.clone()).build().unwrap()
}

/// Runs `future` for at most `polls` polls with a turn of the runtime behind each, as a caller
/// that goes away in the middle; `None` if that was not enough.
pub(crate) async fn polled<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let once = poll_fn(|context| Poll::Ready(future.as_mut().poll(context)));
        if let Poll::Ready(output) = once.await {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// Fails the test instead of letting it hang. The bound is far beyond what any of it takes.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    let patience = secs(20);
    let ended = tokio::time::timeout(patience, future).await;
    ended.unwrap_or_else(|_| panic!("nothing happens after {patience:?}"))
}

/// Turns the clock by `step` after `step` until `task` ends.
pub(crate) async fn turn_until<T>(clock: &ManualClock, step: Duration, task: JoinHandle<T>) -> T {
    soon(async {
        while !task.is_finished() {
            clock.advance(step);
            tokio::task::yield_now().await;
        }
        task.await.unwrap()
    })
    .await
}

/// A store that gives way before and after each operation, so that callers can be interleaved and
/// cancelled there: up to `most` times, as the generator says.
#[derive(Debug)]
pub(crate) struct Wobbly<S> {
    store: S,
    turns: Turns,
    limit: Option<usize>,
}

/// How often something gives way.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    rng: Arc<Mutex<Rng>>,
    least: usize,
    most: usize,
}

impl Turns {
    /// Exactly `turns` times.
    pub(crate) fn exactly(turns: usize) -> Self {
        Self {
            rng: Arc::new(Mutex::new(Rng::with_seed(0))),
            least: turns,
            most: turns,
        }
    }

    /// Up to `most` times, a number drawn each time.
    pub(crate) fn up_to(most: usize, rng: &mut Rng) -> Self {
        Self {
            rng: Arc::new(Mutex::new(rng.fork())),
            least: 0,
            most,
        }
    }

    pub(crate) async fn give_way(&self) {
        let turns = self.rng.lock().unwrap().usize(self.least..=self.most);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }
}

impl<S: Store> Wobbly<S> {
    pub(crate) fn new(store: S, turns: Turns) -> Self {
        let limit = None;
        Self {
            store,
            turns,
            limit,
        }
    }

    /// A store that never gives way and takes values of at most `limit` bytes.
    pub(crate) fn small(store: S, limit: usize) -> Self {
        let limit = Some(limit);
        Self {
            limit,
            ..Self::new(store, Turns::exactly(0))
        }
    }

    fn meet<'a, T: Send + 'a>(&'a self, work: BoxFuture<'a, T>) -> BoxFuture<'a, T> {
        Box::pin(async move {
            self.turns.give_way().await;
            let result = work.await;
            self.turns.give_way().await;
            result
        })
    }
}

impl<S: Store> Store for Wobbly<S> {
    fn name(&self) -> &str {
        self.store.name()
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = self.store.capabilities();
        self.limit.map_or(capabilities, Capabilities::new)
    }

    fn get<'a>(
        &'a self,
        keys: &'a [Bytes],
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>> {
        self.meet(self.store.get(keys, limit))
    }

    fn lease<'a>(
        &'a self,
        keys: &'a [Bytes],
        request: &'a LeaseRequest,
    ) -> BoxFuture<'a, StoreResult<Vec<Leased>>> {
        self.meet(self.store.lease(keys, request))
    }

    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        self.meet(self.store.fill(fills))
    }

    fn release<'a>(
        &'a self,
        keys: &'a [Bytes],
        token: LeaseToken,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.meet(self.store.release(keys, token))
    }

    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        self.meet(self.store.set(writes))
    }

    fn touch<'a>(&'a self, keys: &'a [Bytes], ttl: Duration) -> BoxFuture<'a, StoreResult<()>> {
        self.meet(self.store.touch(keys, ttl))
    }

    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>> {
        self.meet(self.store.expire(keys, wall))
    }

    fn delete<'a>(
        &'a self,
        keys: &'a [Bytes],
        counter: Option<&'a Bytes>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.meet(self.store.delete(keys, counter))
    }

    fn sweep<'a>(
        &'a self,
        prefix: &'a [u8],
        condemned: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
        progress: &'a (dyn Fn(Swept) + Send + Sync),
    ) -> BoxFuture<'a, StoreResult<Swept>> {
        self.meet(self.store.sweep(prefix, condemned, progress))
    }

    fn enlist<'a>(
        &'a self,
        record: &'a Bytes,
        member: u32,
        keep: Duration,
    ) -> BoxFuture<'a, StoreResult<Vec<u32>>> {
        self.meet(self.store.enlist(record, member, keep))
    }

    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        self.meet(self.store.ping())
    }
}

/// What `store` holds under `key`.
pub(crate) async fn bytes_of(store: &impl Store, key: &str) -> Option<Bytes> {
    let key = [Bytes::copy_from_slice(key.as_bytes())];
    store.get(&key, 1 << 20).await.unwrap().remove(0)
}

/// Puts `bytes` under `key`, past everything.
pub(crate) async fn put(store: &impl Store, key: &str, bytes: impl Into<Bytes>) {
    let write = Write {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: bytes.into(),
        ttl: secs(24 * 3600),
        tags: None,
    };
    store.set(&[write]).await.unwrap();
}

/// The lease on `key`, if there is one.
pub(crate) async fn lease_on(store: &impl Store, key: &str) -> Option<LeaseToken> {
    Header::parse(&bytes_of(store, key).await?)?.lease
}

/// Several processes on one clock, one shared tier and one bus, each with switches of its own.
pub(crate) struct Fleet {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: Faulty,
    pub(crate) bus: LocalBus,
}

/// What carries a process of a [`Fleet`] to the others.
pub(crate) type Line = FaultyBus<LocalBus>;

impl Fleet {
    pub(crate) fn new() -> Self {
        let clock = ManualClock::new();
        let store = faulty(&clock).0;
        let bus = LocalBus::new();
        Self { clock, store, bus }
    }

    /// A process above the shared tier.
    pub(crate) fn process(&self) -> (Larder, Line) {
        self.process_with(|builder| builder.shared(self.store.clone()))
    }

    /// A process with the tiers that `tiers` adds.
    pub(crate) fn process_with(
        &self,
        tiers: impl FnOnce(LarderBuilder) -> LarderBuilder,
    ) -> (Larder, Line) {
        let line = FaultyBus::new(self.bus.clone());
        let builder = Larder::builder("t")
            .clock(self.clock.clone())
            .backplane(line.clone());
        (tiers(builder).build().unwrap(), line)
    }
}

/// Waits, by turns of the runtime, until `done` says so.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if done() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("never: {what}");
}

/// Waits until a larder trusts its bus.
pub(crate) async fn healthy(larder: &Larder) {
    until("the bus is healthy", || {
        larder.bus().is_some_and(|bus| bus.healthy)
    })
    .await;
}
