use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use fastrand::Rng;
use larder::backplane::{Backplane, Notice, Replay};
use larder::clock::BoxFuture;
use larder::store::{Position, StoreError, StoreErrorKind, StoreResult};
use tokio::sync::watch;

/// What can be asked of a bus, as a name for faults and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusOperation {
    /// [`Backplane::publish`]
    Publish,
    /// [`Backplane::beat`]
    Beat,
    /// [`Backplane::listen`]
    Listen,
    /// [`Backplane::replay`]
    Replay,
    /// [`Backplane::close`]
    Close,
}

impl BusOperation {
    /// Every operation.
    pub const ALL: [Self; 5] = [
        Self::Publish,
        Self::Beat,
        Self::Listen,
        Self::Replay,
        Self::Close,
    ];
}

/// What happens to an operation of a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusFault {
    /// Nothing: it works.
    None,
    /// It fails, and the bus is not asked.
    Fail(StoreErrorKind),
    /// The bus does it, and the answer is lost on the way back: it fails all the same.
    FailAfter(StoreErrorKind),
    /// It hangs until the fault is changed, and then does what the new one says.
    Hang,
}

/// A bus that loses, repeats, holds back and shuffles what it tells, as a test wants.
///
/// Clones are handles to the same switches. Give each larder a `FaultyBus` of its own over clones of
/// one [`LocalBus`](larder::backplane::LocalBus), and what befalls one leaves the others alone.
///
/// What listeners are told goes past the switches one by one, in this order: a silent bus loses it;
/// a message may be lost by [`FaultyBus::drop_next`] or [`FaultyBus::drop_share`]; what is left may
/// be doubled by [`FaultyBus::duplicate_next`]; and a held bus keeps it until [`FaultyBus::release`].
/// [`Notice::Listening`] and [`Notice::Unreadable`] are not messages, and only silence and holding
/// befall them.
///
/// ```
/// use larder::backplane::{Backplane, LocalBus};
/// use larder::store::StoreErrorKind;
/// use larder_testkit::{BusFault, BusOperation, FaultyBus};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let bus = FaultyBus::new(LocalBus::new());
/// bus.inject([BusOperation::Publish], BusFault::Fail(StoreErrorKind::Unavailable));
/// assert!(bus.publish("shop", "hello".into()).await.is_err());
/// bus.heal();
/// assert_eq!(bus.publish("shop", "hello".into()).await.unwrap().count, 1);
/// # });
/// ```
#[derive(Debug)]
pub struct FaultyBus<B> {
    inner: Arc<Inner<B>>,
}

#[derive(Debug)]
struct Inner<B> {
    bus: B,
    faults: watch::Sender<[BusFault; BusOperation::ALL.len()]>,
    begun: [AtomicU64; BusOperation::ALL.len()],
    finished: [AtomicU64; BusOperation::ALL.len()],
    delivery: Mutex<Delivery>,
    /// Rises when listeners have to look at the switches again.
    orders: watch::Sender<Orders>,
    /// How many notices went past the switches to a listener, were lost, and were held back.
    told: watch::Sender<u64>,
    lost: watch::Sender<u64>,
    held: watch::Sender<u64>,
}

/// The switches for what listeners are told.
#[derive(Debug)]
struct Delivery {
    flow: Flow,
    drop_next: u64,
    duplicate_next: u64,
    share: Option<Share>,
}

/// A share of the messages to be lost.
#[derive(Debug)]
struct Share {
    of_one: f64,
    rng: Rng,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Passing,
    Holding,
    Silent,
}

#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    /// Counts the orders to end all listening.
    cuts: u64,
    /// Counts the orders to pass on what is held, and how.
    releases: u64,
    order: Order,
}

#[derive(Clone, Copy, Debug, Default)]
enum Order {
    #[default]
    AsTold,
    Shuffled {
        seed: u64,
    },
}

/// What a listener holds back at most; what comes beyond is lost.
const MAX_HELD: usize = 100_000;

impl<B: Backplane> FaultyBus<B> {
    /// Puts switches in front of `bus`, all off.
    pub fn new(bus: B) -> Self {
        let delivery = Delivery {
            flow: Flow::Passing,
            drop_next: 0,
            duplicate_next: 0,
            share: None,
        };
        Self {
            inner: Arc::new(Inner {
                bus,
                faults: watch::Sender::new([BusFault::None; BusOperation::ALL.len()]),
                begun: Default::default(),
                finished: Default::default(),
                delivery: Mutex::new(delivery),
                orders: watch::Sender::default(),
                told: watch::Sender::new(0),
                lost: watch::Sender::new(0),
                held: watch::Sender::new(0),
            }),
        }
    }

    /// The bus behind the switches, for tests that publish or look past the faults.
    pub fn bus(&self) -> &B {
        &self.inner.bus
    }

    /// From now on `fault` befalls these operations, those that hang at this moment included.
    ///
    /// A listener that listens already goes on; [`FaultyBus::cut`] ends it.
    pub fn inject(&self, operations: impl IntoIterator<Item = BusOperation>, fault: BusFault) {
        self.inner.faults.send_modify(|faults| {
            for operation in operations {
                faults[operation as usize] = fault;
            }
        });
    }

    /// Loses the next `messages` that listeners would be told. Each listener's copy counts as one.
    pub fn drop_next(&self, messages: u64) {
        self.delivery().drop_next = messages;
    }

    /// Loses about this share of the messages, 0.01 being one in a hundred; which ones is decided
    /// by `seed`.
    pub fn drop_share(&self, share: f64, seed: u64) {
        self.delivery().share = Some(Share {
            of_one: share,
            rng: Rng::with_seed(seed),
        });
    }

    /// Tells the next `messages` twice. Each listener's copy counts as one.
    pub fn duplicate_next(&self, messages: u64) {
        self.delivery().duplicate_next = messages;
    }

    /// Loses everything from now on, while the listening goes on: a connection that is half open.
    pub fn silence(&self) {
        self.delivery().flow = Flow::Silent;
    }

    /// Holds everything back from now on, until [`FaultyBus::release`].
    pub fn hold(&self) {
        self.delivery().flow = Flow::Holding;
    }

    /// Passes on what was held, in its order, and lets everything through from now on. What was
    /// lost in silence stays lost.
    pub fn release(&self) {
        self.flow_again(Order::AsTold);
    }

    /// The same in an order that `seed` decides.
    pub fn release_shuffled(&self, seed: u64) {
        self.flow_again(Order::Shuffled { seed });
    }

    /// Ends every listening with an error. What they held back is lost. The next one begins anew.
    pub fn cut(&self) {
        self.inner.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Takes all faults away: what hung goes on, what was held is passed on in its order.
    pub fn heal(&self) {
        self.inject(BusOperation::ALL, BusFault::None);
        let mut delivery = self.delivery();
        delivery.drop_next = 0;
        delivery.duplicate_next = 0;
        delivery.share = None;
        drop(delivery);
        self.release();
    }

    /// How many operations of this kind were begun, whatever became of them.
    pub fn begun(&self, operation: BusOperation) -> u64 {
        self.inner.begun[operation as usize].load(Ordering::SeqCst)
    }

    /// How many operations of this kind the bus did, the answer lost or not. A listening counts
    /// once it has ended.
    pub fn finished(&self, operation: BusOperation) -> u64 {
        self.inner.finished[operation as usize].load(Ordering::SeqCst)
    }

    /// How many notices listeners were told, [`Notice::Listening`] and duplicates included.
    pub fn told(&self) -> u64 {
        *self.inner.told.borrow()
    }

    /// Waits until listeners were told at least `count` notices since the bus was made.
    pub async fn has_told(&self, count: u64) {
        reaches(&self.inner.told, count).await;
    }

    /// How many notices were lost to a fault.
    pub fn lost(&self) -> u64 {
        *self.inner.lost.borrow()
    }

    /// Waits until at least `count` notices were lost since the bus was made.
    pub async fn has_lost(&self, count: u64) {
        reaches(&self.inner.lost, count).await;
    }

    /// How many notices were held back, passed on since or not.
    pub fn held(&self) -> u64 {
        *self.inner.held.borrow()
    }

    /// Waits until at least `count` notices were held back since the bus was made.
    pub async fn has_held(&self, count: u64) {
        reaches(&self.inner.held, count).await;
    }

    fn delivery(&self) -> MutexGuard<'_, Delivery> {
        // Nothing that is done under this lock can panic.
        self.inner
            .delivery
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn flow_again(&self, order: Order) {
        self.delivery().flow = Flow::Passing;
        self.inner.orders.send_modify(|orders| {
            orders.releases += 1;
            orders.order = order;
        });
    }

    /// Takes one operation past its fault.
    async fn meet<T>(
        &self,
        operation: BusOperation,
        work: BoxFuture<'_, StoreResult<T>>,
    ) -> StoreResult<T> {
        let at = operation as usize;
        self.inner.begun[at].fetch_add(1, Ordering::SeqCst);
        let fault = self.fault(at).await;
        if let BusFault::Fail(kind) = fault {
            return Err(failure(kind));
        }
        let result = work.await;
        self.inner.finished[at].fetch_add(1, Ordering::SeqCst);
        match fault {
            BusFault::FailAfter(kind) => Err(failure(kind)),
            _ => result,
        }
    }

    /// What is to happen now; waits as long as that is to hang.
    async fn fault(&self, at: usize) -> BusFault {
        let mut faults = self.inner.faults.subscribe();
        // The sender lives in `self`, so the wait ends with a fault and never for want of one.
        match faults.wait_for(|faults| faults[at] != BusFault::Hang).await {
            Ok(faults) => faults[at],
            Err(_) => BusFault::None,
        }
    }

    /// Listens to the bus behind, and tells what the switches let through.
    async fn hear(&self, channel: &str, notify: &mut (dyn FnMut(Notice) + Send)) -> StoreError {
        let inbox = Mutex::new(VecDeque::new());
        let mut put = |notice| lock(&inbox).push_back(notice);
        let mut listening = pin!(self.bus().listen(channel, &mut put));
        let mut orders = self.inner.orders.subscribe();
        let mut seen = *orders.borrow_and_update();
        let mut held = VecDeque::new();
        loop {
            let ended = {
                let mut ordered = pin!(orders.changed());
                poll_fn(|context| {
                    if let Poll::Ready(error) = listening.as_mut().poll(context) {
                        return Poll::Ready(Some(error));
                    }
                    if !lock(&inbox).is_empty() || ordered.as_mut().poll(context).is_ready() {
                        return Poll::Ready(None);
                    }
                    Poll::Pending
                })
                .await
            };
            let now = *orders.borrow();
            if now.cuts != seen.cuts {
                return StoreError::unavailable("the test cut this listener");
            }
            if now.releases != seen.releases {
                self.pass_on(&mut held, now.order, notify);
            }
            seen = now;
            let arrived = std::mem::take(&mut *lock(&inbox));
            for notice in arrived {
                self.sift(notice, &mut held, notify);
            }
            if let Some(error) = ended {
                return error;
            }
        }
    }

    /// Takes one notice past the switches.
    fn sift(
        &self,
        notice: Notice,
        held: &mut VecDeque<Notice>,
        notify: &mut (dyn FnMut(Notice) + Send),
    ) {
        let (flow, copies) = self.delivery().verdict(&notice);
        let copies = std::iter::repeat_n(notice, copies);
        // What is held goes first, also where the order to pass it on has not been seen yet.
        let passes = flow == Flow::Passing && held.is_empty();
        if copies.len() == 0 || flow == Flow::Silent || held.len() >= MAX_HELD {
            self.inner.lost.send_modify(|lost| *lost += 1);
        } else if passes {
            copies.for_each(|notice| self.tell(notice, notify));
        } else {
            self.inner
                .held
                .send_modify(|held| *held += copies.len() as u64);
            held.extend(copies);
        }
    }

    fn pass_on(
        &self,
        held: &mut VecDeque<Notice>,
        order: Order,
        notify: &mut (dyn FnMut(Notice) + Send),
    ) {
        if let Order::Shuffled { seed } = order {
            Rng::with_seed(seed).shuffle(held.make_contiguous());
        }
        for notice in held.drain(..) {
            self.tell(notice, notify);
        }
    }

    fn tell(&self, notice: Notice, notify: &mut (dyn FnMut(Notice) + Send)) {
        notify(notice);
        self.inner.told.send_modify(|told| *told += 1);
    }
}

impl Delivery {
    /// Where a notice goes, and how often.
    fn verdict(&mut self, notice: &Notice) -> (Flow, usize) {
        let is_message = matches!(notice, Notice::Message { .. });
        if self.flow == Flow::Silent || !is_message {
            return (self.flow, 1);
        }
        if take_one(&mut self.drop_next) || self.share.as_mut().is_some_and(Share::takes) {
            return (self.flow, 0);
        }
        let copies = 1 + usize::from(take_one(&mut self.duplicate_next));
        (self.flow, copies)
    }
}

impl Share {
    fn takes(&mut self) -> bool {
        self.rng.f64() < self.of_one
    }
}

impl<B> Clone for FaultyBus<B> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<B: Backplane> Backplane for FaultyBus<B> {
    fn name(&self) -> &str {
        self.bus().name()
    }

    fn publish<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        Box::pin(self.meet(BusOperation::Publish, self.bus().publish(channel, message)))
    }

    fn beat<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        Box::pin(self.meet(BusOperation::Beat, self.bus().beat(channel, message)))
    }

    fn listen<'a>(
        &'a self,
        channel: &'a str,
        notify: &'a mut (dyn FnMut(Notice) + Send),
    ) -> BoxFuture<'a, StoreError> {
        Box::pin(async move {
            let listening = Box::pin(async { Ok(self.hear(channel, notify).await) });
            match self.meet(BusOperation::Listen, listening).await {
                Ok(error) | Err(error) => error,
            }
        })
    }

    fn replay<'a>(
        &'a self,
        channel: &'a str,
        after: Position,
        at_most: usize,
    ) -> BoxFuture<'a, StoreResult<Replay>> {
        let work = self.bus().replay(channel, after, at_most);
        Box::pin(self.meet(BusOperation::Replay, work))
    }

    fn close(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.meet(BusOperation::Close, self.bus().close()))
    }
}

fn lock<T>(queue: &Mutex<T>) -> MutexGuard<'_, T> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take_one(count: &mut u64) -> bool {
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}

async fn reaches(counter: &watch::Sender<u64>, count: u64) {
    // The sender lives in the bus, so the wait cannot end for want of one.
    let _ = counter
        .subscribe()
        .wait_for(|&so_far| so_far >= count)
        .await;
}

fn failure(kind: StoreErrorKind) -> StoreError {
    let message = "the test wants this to fail";
    match kind {
        StoreErrorKind::Refused => StoreError::refused(message),
        StoreErrorKind::Unsupported => StoreError::unsupported(message),
        _ => StoreError::unavailable(message),
    }
}
