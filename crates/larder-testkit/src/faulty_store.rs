use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use larder::backplane::Backplane;
use larder::clock::{BoxFuture, Clock, Millis};
use larder::store::{
    Capabilities, Fill, Filled, LeaseRequest, LeaseToken, Leased, Store, StoreError,
    StoreErrorKind, StoreResult, Swept, Write,
};
use tokio::sync::watch;

use crate::Gate;

/// What can be asked of a store, as a name for faults and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`Store::get`]
    Get,
    /// [`Store::lease`]
    Lease,
    /// [`Store::fill`]
    Fill,
    /// [`Store::release`]
    Release,
    /// [`Store::set`]
    Set,
    /// [`Store::touch`]
    Touch,
    /// [`Store::expire`]
    Expire,
    /// [`Store::delete`]
    Delete,
    /// [`Store::sweep`]
    Sweep,
    /// [`Store::enlist`]
    Enlist,
    /// [`Store::changed`]
    Changed,
    /// [`Store::ping`]
    Ping,
    /// [`Store::close`]
    Close,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 13] = [
        Self::Get,
        Self::Lease,
        Self::Fill,
        Self::Release,
        Self::Set,
        Self::Touch,
        Self::Expire,
        Self::Delete,
        Self::Sweep,
        Self::Enlist,
        Self::Changed,
        Self::Ping,
        Self::Close,
    ];
}

/// What happens to an operation before it reaches the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// Nothing: it works.
    None,
    /// It fails, and the store is not asked.
    Fail(StoreErrorKind),
    /// It hangs until the fault is changed, and then does what the new one says.
    Hang,
    /// It waits for this long on the clock, and then works.
    Delay(Duration),
}

/// A store that fails, hangs, is slow, or stops in the middle of an operation, as a test wants.
///
/// Clones are handles to the same store: give one to the larder under test and keep another.
///
/// ```
/// use larder::store::{Store, StoreErrorKind};
/// use larder_testkit::{FaultyStore, ManualClock, MemoryStore, Operation, StoreFault};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let clock = ManualClock::new();
/// let store = FaultyStore::new(MemoryStore::new(clock.clone()), clock);
/// store.inject(Operation::ALL, StoreFault::Fail(StoreErrorKind::Unavailable));
/// assert!(store.get(&["key".into()], 100).await.is_err());
/// store.heal();
/// assert_eq!(store.get(&["key".into()], 100).await.unwrap(), [None]);
/// assert_eq!(store.begun(Operation::Get), 2);
/// # });
/// ```
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: Arc<Inner<S>>,
}

#[derive(Debug)]
struct Inner<S> {
    store: S,
    clock: Arc<dyn Clock>,
    faults: watch::Sender<PerOperation<StoreFault>>,
    before: Mutex<PerOperation<Option<Gate>>>,
    after: Mutex<PerOperation<Option<Gate>>>,
    begun: PerOperation<AtomicU64>,
    finished: PerOperation<AtomicU64>,
}

/// One of something for each operation, by its place in the list.
type PerOperation<T> = [T; Operation::ALL.len()];

impl<S: Store> FaultyStore<S> {
    /// Puts switches in front of `store`, all off. Delays are by `clock`.
    pub fn new(store: S, clock: Arc<dyn Clock>) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                clock,
                faults: watch::Sender::new([StoreFault::None; Operation::ALL.len()]),
                before: Mutex::default(),
                after: Mutex::default(),
                begun: Default::default(),
                finished: Default::default(),
            }),
        }
    }

    /// The store behind the switches, for tests that look or write past the faults.
    pub fn store(&self) -> &S {
        &self.inner.store
    }

    /// From now on `fault` befalls these operations, those that hang at this moment included.
    pub fn inject(&self, operations: impl IntoIterator<Item = Operation>, fault: StoreFault) {
        self.inner.faults.send_modify(|faults| {
            for operation in operations {
                faults[operation as usize] = fault;
            }
        });
    }

    /// Takes all faults away. What hung goes on and works. Pauses stay as they are.
    pub fn heal(&self) {
        self.inject(Operation::ALL, StoreFault::None);
    }

    /// Stops `operation` just before it reaches the store, until the gate is opened.
    pub fn pause_before(&self, operation: Operation) -> Gate {
        install(&self.inner.before, operation)
    }

    /// Stops `operation` once the store has done it and before the caller knows, until the gate is
    /// opened.
    pub fn pause_after(&self, operation: Operation) -> Gate {
        install(&self.inner.after, operation)
    }

    /// How many operations of this kind were begun, whatever became of them.
    pub fn begun(&self, operation: Operation) -> u64 {
        self.inner.begun[operation as usize].load(Ordering::SeqCst)
    }

    /// How many operations of this kind reached the store and came back. Those that failed by a
    /// fault, hang, or were dropped halfway are not counted.
    pub fn finished(&self, operation: Operation) -> u64 {
        self.inner.finished[operation as usize].load(Ordering::SeqCst)
    }

    /// Takes one operation past the switches.
    async fn meet<T>(
        &self,
        operation: Operation,
        work: BoxFuture<'_, StoreResult<T>>,
    ) -> StoreResult<T> {
        let at = operation as usize;
        self.inner.begun[at].fetch_add(1, Ordering::SeqCst);
        self.suffer(at).await?;
        pause(&self.inner.before, at).await;
        let result = work.await;
        pause(&self.inner.after, at).await;
        self.inner.finished[at].fetch_add(1, Ordering::SeqCst);
        result
    }

    async fn suffer(&self, at: usize) -> StoreResult<()> {
        let mut faults = self.inner.faults.subscribe();
        // The sender lives in `self`, so the wait ends with a fault and never for want of one.
        let fault = match faults
            .wait_for(|faults| faults[at] != StoreFault::Hang)
            .await
        {
            Ok(faults) => faults[at],
            Err(_) => StoreFault::None,
        };
        match fault {
            StoreFault::None | StoreFault::Hang => Ok(()),
            StoreFault::Fail(kind) => Err(failure(kind)),
            StoreFault::Delay(wait) => {
                self.inner.clock.sleep(wait).await;
                Ok(())
            }
        }
    }
}

impl<S> Clone for FaultyStore<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<S: Store> Store for FaultyStore<S> {
    fn name(&self) -> &str {
        self.store().name()
    }

    fn capabilities(&self) -> Capabilities {
        self.store().capabilities()
    }

    fn get<'a>(
        &'a self,
        keys: &'a [Bytes],
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>> {
        Box::pin(self.meet(Operation::Get, self.store().get(keys, limit)))
    }

    fn lease<'a>(
        &'a self,
        keys: &'a [Bytes],
        request: &'a LeaseRequest,
    ) -> BoxFuture<'a, StoreResult<Vec<Leased>>> {
        Box::pin(self.meet(Operation::Lease, self.store().lease(keys, request)))
    }

    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(self.meet(Operation::Fill, self.store().fill(fills)))
    }

    fn release<'a>(
        &'a self,
        keys: &'a [Bytes],
        token: LeaseToken,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.meet(Operation::Release, self.store().release(keys, token)))
    }

    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(self.meet(Operation::Set, self.store().set(writes)))
    }

    fn touch<'a>(&'a self, keys: &'a [Bytes], ttl: Duration) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.meet(Operation::Touch, self.store().touch(keys, ttl)))
    }

    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.meet(Operation::Expire, self.store().expire(keys, wall)))
    }

    fn delete<'a>(
        &'a self,
        keys: &'a [Bytes],
        counter: Option<&'a Bytes>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.meet(Operation::Delete, self.store().delete(keys, counter)))
    }

    fn sweep<'a>(
        &'a self,
        prefix: &'a [u8],
        condemned: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
        progress: &'a (dyn Fn(Swept) + Send + Sync),
    ) -> BoxFuture<'a, StoreResult<Swept>> {
        let work = self.store().sweep(prefix, condemned, progress);
        Box::pin(self.meet(Operation::Sweep, work))
    }

    fn enlist<'a>(
        &'a self,
        record: &'a Bytes,
        member: u32,
        keep: Duration,
    ) -> BoxFuture<'a, StoreResult<Vec<u32>>> {
        let work = self.store().enlist(record, member, keep);
        Box::pin(self.meet(Operation::Enlist, work))
    }

    fn changed<'a>(&'a self, keys: &'a [Bytes]) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.meet(Operation::Changed, self.store().changed(keys)))
    }

    fn backplane(&self) -> Option<Arc<dyn Backplane>> {
        self.store().backplane()
    }

    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.meet(Operation::Ping, self.store().ping()))
    }

    fn close(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.meet(Operation::Close, self.store().close()))
    }
}

fn install(gates: &Mutex<PerOperation<Option<Gate>>>, operation: Operation) -> Gate {
    let gate = Gate::new();
    let mut gates = gates.lock().unwrap_or_else(PoisonError::into_inner);
    gates[operation as usize] = Some(gate.clone());
    gate
}

async fn pause(gates: &Mutex<PerOperation<Option<Gate>>>, at: usize) {
    let gate = gates.lock().unwrap_or_else(PoisonError::into_inner)[at].clone();
    if let Some(gate) = gate {
        gate.wait().await;
    }
}

fn failure(kind: StoreErrorKind) -> StoreError {
    let message = "the test wants this to fail";
    match kind {
        StoreErrorKind::Refused => StoreError::refused(message),
        StoreErrorKind::Unsupported => StoreError::unsupported(message),
        _ => StoreError::unavailable(message),
    }
}
