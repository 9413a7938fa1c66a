use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use larder::store::{Position, StoreError, StoreResult};
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;

use crate::link::GivenUp;

/// What a server pushes on one connection: the keys that it watched for it and that somebody
/// changed. It ends with the connection.
///
/// The server forgets a key when it has told of it. So whoever waits registers first, then reads the
/// key, which has the server watch it, and waits only if what was read is still what it waits for.
pub(crate) struct Pushes {
    given_up: GivenUp,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ended: bool,
    waits: HashMap<Bytes, Vec<Arc<Notify>>>,
    waited: usize,
    listeners: Vec<Arc<Listener>>,
}

/// How many keys may be waited for at once on one connection.
const MAX_WAITED: usize = 10_000;

impl Pushes {
    /// Of a connection that is given up when it ends.
    pub(crate) fn of(connection: &GivenUp) -> Self {
        Self {
            given_up: Arc::clone(connection),
            state: Mutex::default(),
        }
    }

    /// Takes in what the server says. Runs where the connection is read, so it is quick.
    pub(crate) fn hear(&self, push: PushInfo) -> Result<(), redis::aio::SendError> {
        match push.kind {
            PushKind::Invalidate => match push.data.into_iter().next() {
                Some(Value::Array(keys)) => self.changed(&keys),
                // Everything is gone; or this cannot be read, and may mean anything.
                _ => {
                    let state = self.lock();
                    state.wake_all();
                    state.tell(&Told::Emptied);
                }
            },
            PushKind::Disconnection => self.end(),
            _ => {}
        }
        Ok(())
    }

    /// Says that nothing will be pushed any more.
    pub(crate) fn end(&self) {
        // First: whoever is woken makes a new connection and does not find this one.
        self.given_up.send_replace(true);
        let mut state = self.lock();
        state.tell(&Told::Ended);
        state.ended = true;
        state.wake_all();
    }

    /// From now on everything is told that is pushed.
    pub(crate) fn listen(self: &Arc<Self>) -> StoreResult<Listening> {
        let mut state = self.lock();
        if state.ended {
            return Err(StoreError::unavailable("the connection has ended"));
        }
        let listener = Arc::new(Listener::default());
        state.listeners.push(Arc::clone(&listener));
        Ok(Listening {
            pushes: Arc::clone(self),
            listener,
        })
    }

    /// Tells the listeners something in its place among what is pushed.
    pub(crate) fn tell(&self, told: &Told) {
        self.lock().tell(told);
    }

    /// Registers a wait for a change of one of the keys.
    pub(crate) fn wait<'a>(self: &'a Arc<Self>, keys: &'a [Bytes]) -> StoreResult<Wait<'a>> {
        let mut state = self.lock();
        if state.ended {
            return Err(StoreError::unavailable("the connection has ended"));
        }
        if state.waited + keys.len() > MAX_WAITED {
            return Err(StoreError::unavailable("too many keys are waited for"));
        }
        state.waited += keys.len();
        let told = Arc::new(Notify::new());
        for key in keys {
            let waits = state.waits.entry(key.clone()).or_default();
            waits.push(Arc::clone(&told));
        }
        Ok(Wait {
            pushes: self,
            keys,
            told,
        })
    }

    fn changed(&self, keys: &[Value]) {
        let state = self.lock();
        for key in keys {
            match key {
                Value::BulkString(key) => {
                    state.wake(key);
                    if !state.listeners.is_empty() {
                        state.tell(&Told::Changed(Bytes::copy_from_slice(key)));
                    }
                }
                _ => {
                    state.wake_all();
                    state.tell(&Told::Emptied);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&self, key: &[u8]) {
        for told in self.waits.get(key).into_iter().flatten() {
            told.notify_one();
        }
    }

    /// Nothing is told behind the end: a listener that has no room left would not hear of that.
    fn tell(&self, told: &Told) {
        if self.ended {
            return;
        }
        self.listeners
            .iter()
            .for_each(|listener| listener.tell(told));
    }

    fn wake_all(&self) {
        self.waits
            .values()
            .flatten()
            .for_each(|told| told.notify_one());
    }
}

/// Somebody who waits for a change. Dropped, it is forgotten.
pub(crate) struct Wait<'a> {
    pushes: &'a Arc<Pushes>,
    keys: &'a [Bytes],
    told: Arc<Notify>,
}

impl Wait<'_> {
    /// Returns when one of the keys was changed since the wait was registered, or the connection
    /// ended.
    pub(crate) async fn told(&self) {
        self.told.notified().await;
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut state = self.pushes.lock();
        state.waited -= self.keys.len();
        for key in self.keys {
            let Entry::Occupied(mut waits) = state.waits.entry(key.clone()) else {
                continue;
            };
            waits
                .get_mut()
                .retain(|told| !Arc::ptr_eq(told, &self.told));
            if waits.get().is_empty() {
                waits.remove();
            }
        }
    }
}

/// What a listener is told, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Somebody changed this key.
    Changed(Bytes),
    /// Every key is gone.
    Emptied,
    /// More was told than is kept. Any key may have changed.
    TooMuch,
    /// A message went out on this connection.
    Published {
        channel: Box<str>,
        position: Position,
        message: Bytes,
    },
    /// So much was known of a channel when everything before this had been told.
    Beat {
        channel: Box<str>,
        position: Position,
        message: Bytes,
    },
    /// The connection has ended.
    Ended,
}

impl Told {
    fn bytes(&self) -> usize {
        let own = match self {
            Self::Changed(key) => key.len(),
            Self::Published { message, .. } | Self::Beat { message, .. } => message.len(),
            Self::Emptied | Self::TooMuch | Self::Ended => 0,
        };
        own + size_of::<Self>()
    }
}

/// How many bytes of what was told wait for a listener.
const MAX_UNHEARD_BYTES: usize = 16 << 20;

#[derive(Default)]
struct Listener {
    unheard: Mutex<Unheard>,
    more: Notify,
}

#[derive(Default)]
struct Unheard {
    told: VecDeque<Told>,
    bytes: usize,
}

impl Listener {
    fn lock(&self) -> MutexGuard<'_, Unheard> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, told: &Told) {
        let mut unheard = self.lock();
        if unheard.bytes + told.bytes() > MAX_UNHEARD_BYTES {
            unheard.told.clear();
            unheard.bytes = 0;
            unheard.push(Told::TooMuch);
        }
        unheard.push(told.clone());
        self.more.notify_one();
    }
}

impl Unheard {
    fn push(&mut self, told: Told) {
        self.bytes += told.bytes();
        self.told.push_back(told);
    }

    fn pop(&mut self) -> Option<Told> {
        let told = self.told.pop_front()?;
        self.bytes -= told.bytes();
        Some(told)
    }
}

/// The right to be told. Dropped, nothing is kept any more.
pub(crate) struct Listening {
    pushes: Arc<Pushes>,
    listener: Arc<Listener>,
}

impl Listening {
    /// What was told next.
    pub(crate) async fn next(&self) -> Told {
        loop {
            if let Some(told) = self.listener.lock().pop() {
                return told;
            }
            self.listener.more.notified().await;
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut state = self.pushes.lock();
        state
            .listeners
            .retain(|other| !Arc::ptr_eq(other, &self.listener));
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn pushes() -> Arc<Pushes> {
        Arc::new(Pushes::of(&GivenUp::default()))
    }

    fn keys(names: &[&'static str]) -> Vec<Bytes> {
        names
            .iter()
            .map(|name| Bytes::from_static(name.as_bytes()))
            .collect()
    }

    fn invalidate(data: Vec<Value>) -> PushInfo {
        PushInfo {
            kind: PushKind::Invalidate,
            data,
        }
    }

    fn of_keys(names: &[&str]) -> PushInfo {
        let names = names.iter().map(|name| Value::BulkString((*name).into()));
        invalidate(vec![Value::Array(names.collect())])
    }

    fn is_told(wait: &Wait<'_>) -> bool {
        let mut told = pin!(wait.told());
        told.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn a_wait_ends_with_a_change_of_one_of_its_keys_and_no_other() {
        let pushes = pushes();
        let (ab, c) = (keys(&["a", "b"]), keys(&["c"]));
        let (first, second) = (pushes.wait(&ab).unwrap(), pushes.wait(&c).unwrap());
        pushes.hear(of_keys(&["x", "b"])).unwrap();
        assert!(is_told(&first) && !is_told(&second));
        pushes.hear(of_keys(&["a", "c"])).unwrap();
        assert!(is_told(&first) && is_told(&second));
        assert!(!is_told(&first), "once for each change");
    }

    #[test]
    fn a_flush_an_end_and_what_cannot_be_read_wake_everybody() {
        let end = PushInfo {
            kind: PushKind::Disconnection,
            data: Vec::new(),
        };
        let odd = invalidate(vec![Value::Array(vec![Value::Int(7)])]);
        for push in [
            invalidate(vec![Value::Nil]),
            invalidate(Vec::new()),
            odd,
            end,
        ] {
            let pushes = pushes();
            let (a, b) = (keys(&["a"]), keys(&["b"]));
            let waits = [pushes.wait(&a).unwrap(), pushes.wait(&b).unwrap()];
            pushes.hear(push.clone()).unwrap();
            assert!(waits.iter().all(is_told), "{push:?}");
        }
    }

    #[test]
    fn nobody_waits_on_a_connection_that_ended() {
        let pushes = pushes();
        pushes.end();
        assert!(pushes.wait(&keys(&["a"])).is_err());
        assert!(*pushes.given_up.borrow());
    }

    #[test]
    fn waits_are_bounded_and_leave_nothing_behind() {
        let pushes = pushes();
        let many: Vec<Bytes> = (0..MAX_WAITED / 2).map(|n| format!("{n}").into()).collect();
        for _ in 0..3 {
            let waits = [pushes.wait(&many).unwrap(), pushes.wait(&many).unwrap()];
            assert!(pushes.wait(&keys(&["one more"])).is_err());
            drop(waits);
            assert!(pushes.lock().waits.is_empty() && pushes.lock().waited == 0);
        }
    }

    #[tokio::test]
    async fn a_listener_is_told_all_in_order_and_nothing_from_before() {
        let pushes = pushes();
        pushes.hear(of_keys(&["before"])).unwrap();
        let listening = pushes.listen().unwrap();
        pushes.hear(of_keys(&["a", "b"])).unwrap();
        let beat = Told::Beat {
            channel: "c".into(),
            position: Position::default(),
            message: Bytes::new(),
        };
        pushes.tell(&beat);
        pushes.hear(invalidate(vec![Value::Nil])).unwrap();
        pushes.end();
        let [a, b] = ["a", "b"].map(|key| Told::Changed(key.into()));
        for told in [a, b, beat, Told::Emptied, Told::Ended] {
            assert_eq!(listening.next().await, told);
        }
        drop(listening);
        assert!(pushes.lock().listeners.is_empty());
    }

    #[tokio::test]
    async fn a_listener_hears_of_the_end_however_much_comes_behind_it() {
        let pushes = pushes();
        let listening = pushes.listen().unwrap();
        pushes.end();
        let long = "k".repeat(1 << 20);
        for _ in 0..20 {
            pushes.hear(of_keys(&[&long])).unwrap();
        }
        let beat = Told::Beat {
            channel: "c".into(),
            position: Position::default(),
            message: Bytes::new(),
        };
        pushes.tell(&beat);
        assert_eq!(listening.next().await, Told::Ended);
        assert!(listening.listener.lock().told.is_empty());
    }

    #[tokio::test]
    async fn a_listener_that_falls_behind_is_told_so_and_then_what_follows() {
        let pushes = pushes();
        let listening = pushes.listen().unwrap();
        let long = "k".repeat(1 << 20);
        for _ in 0..40 {
            pushes.hear(of_keys(&[&long])).unwrap();
        }
        pushes.hear(of_keys(&["last"])).unwrap();
        assert!(listening.listener.lock().bytes <= MAX_UNHEARD_BYTES);
        assert_eq!(listening.next().await, Told::TooMuch);
        let mut last = listening.next().await;
        while last == Told::Changed(long.clone().into()) {
            last = listening.next().await;
        }
        assert_eq!(last, Told::Changed("last".into()));
        assert_eq!(listening.listener.lock().bytes, 0);
    }
}
