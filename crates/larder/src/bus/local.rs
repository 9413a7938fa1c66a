use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::backplane::{Backplane, MAX_MESSAGE_BYTES, Notice, Replay};
use crate::clock::BoxFuture;
use crate::store::{Position, StoreError, StoreResult};
use crate::sync::{Mutex, MutexGuard, lock};

/// The bus between several larders of one process. Clones are the same bus.
///
/// Each channel keeps its last 10,000 messages, up to 16 MiB, for [`Backplane::replay`]. A listener
/// may fall 4,096 notices behind; it loses what comes then, and the numbers of what it is told next
/// show that. There are up to 1,024 channels: one more displaces the channel that was used least
/// recently and has no listener, whose incarnation so ends, or is refused if all have listeners.
///
/// ```
/// use larder::backplane::{Backplane, LocalBus, Replay};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let bus = LocalBus::new();
/// let start = bus.beat("shop", "".into()).await?;
/// let first = bus.publish("shop", "hello".into()).await?;
/// assert_eq!(first.count, start.count + 1);
/// let replay = bus.clone().replay("shop", start, 10).await?;
/// assert_eq!(replay, Replay::Complete(vec![(first, "hello".into())]));
/// # Ok::<_, larder::store::StoreError>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct LocalBus {
    inner: Arc<Inner>,
}

struct Inner {
    /// What tells one bus from another.
    server: u64,
    channels: Mutex<Channels>,
}

#[derive(Default)]
struct Channels {
    by_name: HashMap<Box<str>, Channel>,
    /// Counts uses, so that the channel used least recently is known.
    uses: u64,
    next_listener: u64,
}

struct Channel {
    position: Position,
    /// The last messages, the newest at the end; their numbers follow from `position`.
    journal: VecDeque<Bytes>,
    journal_bytes: usize,
    listeners: Vec<Listener>,
    last_use: u64,
}

struct Listener {
    id: u64,
    queue: Sender<Notice>,
}

const JOURNAL_MESSAGES: usize = 10_000;
const JOURNAL_BYTES: usize = 16 << 20;
/// What a message in the journal is counted as beside its own length.
const MESSAGE_OVERHEAD_BYTES: usize = 64;
const QUEUE_NOTICES: usize = 4_096;
const MAX_CHANNELS: usize = 1_024;
/// Listeners of one channel.
const MAX_LISTENERS: usize = 1_024;

impl LocalBus {
    /// A bus without channels; they begin when they are first used.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                server: fastrand::u64(1..),
                channels: Mutex::default(),
            }),
        }
    }

    fn channels(&self) -> MutexGuard<'_, Channels> {
        lock(&self.inner.channels)
    }

    fn publish_now(&self, channel: &str, message: &Bytes) -> StoreResult<Position> {
        check_length(message)?;
        let mut channels = self.channels();
        let channel = channels.channel(channel)?;
        let message = owned(message);
        channel.keep(message.clone());
        let position = channel.position;
        channel.tell(&Notice::Message {
            position: Some(position),
            message,
        });
        Ok(position)
    }

    fn beat_now(&self, channel: &str, message: &Bytes) -> StoreResult<Position> {
        check_length(message)?;
        let mut channels = self.channels();
        let channel = channels.channel(channel)?;
        let position = channel.position;
        channel.tell(&Notice::Beat {
            position,
            message: owned(message),
        });
        Ok(position)
    }

    fn take_seat<'a>(&'a self, channel: &'a str) -> StoreResult<Seat<'a>> {
        let mut channels = self.channels();
        let id = channels.next_listener;
        channels.next_listener += 1;
        let (sender, queue) = mpsc::channel(QUEUE_NOTICES);
        let listeners = &mut channels.channel(channel)?.listeners;
        if listeners.len() >= MAX_LISTENERS {
            return Err(StoreError::refused(format!(
                "the channel {channel:?} has {MAX_LISTENERS} listeners already"
            )));
        }
        listeners.push(Listener { id, queue: sender });
        Ok(Seat {
            bus: self,
            channel,
            id,
            queue,
        })
    }

    async fn hear(&self, channel: &str, notify: &mut (dyn FnMut(Notice) + Send)) -> StoreError {
        let mut seat = match self.take_seat(channel) {
            Ok(seat) => seat,
            Err(error) => return error,
        };
        notify(Notice::Listening {
            server: self.inner.server,
        });
        // A channel that has a listener stays, and with it the other end of the queue.
        while let Some(notice) = seat.queue.recv().await {
            notify(notice);
        }
        StoreError::unavailable("the bus is gone")
    }
}

impl Default for LocalBus {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LocalBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels = self.channels();
        let listeners = channels.by_name.values().map(|each| each.listeners.len());
        f.debug_struct("LocalBus")
            .field("channels", &channels.by_name.len())
            .field("listeners", &listeners.sum::<usize>())
            .finish()
    }
}

impl Backplane for LocalBus {
    fn name(&self) -> &str {
        "local"
    }

    fn publish<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        Box::pin(async move { self.publish_now(channel, &message) })
    }

    fn beat<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        Box::pin(async move { self.beat_now(channel, &message) })
    }

    fn listen<'a>(
        &'a self,
        channel: &'a str,
        notify: &'a mut (dyn FnMut(Notice) + Send),
    ) -> BoxFuture<'a, StoreError> {
        Box::pin(self.hear(channel, notify))
    }

    fn replay<'a>(
        &'a self,
        channel: &'a str,
        after: Position,
        at_most: usize,
    ) -> BoxFuture<'a, StoreResult<Replay>> {
        Box::pin(async move { Ok(self.channels().channel(channel)?.replay(after, at_most)) })
    }
}

/// A place among the listeners of a channel, given back when it is dropped.
struct Seat<'a> {
    bus: &'a LocalBus,
    channel: &'a str,
    id: u64,
    queue: Receiver<Notice>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if let Some(channel) = self.bus.channels().by_name.get_mut(self.channel) {
            channel.listeners.retain(|listener| listener.id != self.id);
        }
    }
}

impl Channels {
    /// The channel of this name, which begins now if there is none.
    fn channel(&mut self, name: &str) -> StoreResult<&mut Channel> {
        self.uses += 1;
        if !self.by_name.contains_key(name) {
            self.make_room()?;
        }
        let channel = self
            .by_name
            .entry(name.into())
            .or_insert_with(Channel::begin);
        channel.last_use = self.uses;
        Ok(channel)
    }

    fn make_room(&mut self) -> StoreResult<()> {
        if self.by_name.len() < MAX_CHANNELS {
            return Ok(());
        }
        let unheard = self
            .by_name
            .iter()
            .filter(|(_, each)| each.listeners.is_empty());
        let oldest = unheard.min_by_key(|(_, each)| each.last_use);
        match oldest.map(|(name, _)| name.clone()) {
            Some(name) => {
                self.by_name.remove(&name);
                Ok(())
            }
            None => Err(StoreError::refused(format!(
                "this bus has {MAX_CHANNELS} channels already, all with listeners"
            ))),
        }
    }
}

impl Channel {
    fn begin() -> Self {
        Self {
            position: Position {
                incarnation: fastrand::u64(1..),
                count: 0,
            },
            journal: VecDeque::new(),
            journal_bytes: 0,
            listeners: Vec::new(),
            last_use: 0,
        }
    }

    /// Gives the message the next number.
    fn keep(&mut self, message: Bytes) {
        self.position.count += 1;
        self.journal_bytes += weight(&message);
        self.journal.push_back(message);
        while self.journal.len() > JOURNAL_MESSAGES || self.journal_bytes > JOURNAL_BYTES {
            let oldest = self.journal.pop_front();
            self.journal_bytes -= oldest.as_ref().map_or(self.journal_bytes, weight);
        }
    }

    fn tell(&self, notice: &Notice) {
        for listener in &self.listeners {
            // One that is too far behind loses this, and finds out by the numbers.
            let _ = listener.queue.try_send(notice.clone());
        }
    }

    fn replay(&self, after: Position, at_most: usize) -> Replay {
        let lost = Replay::Lost {
            position: self.position,
        };
        if after.incarnation != self.position.incarnation {
            return lost;
        }
        let missed = self.position.count.checked_sub(after.count);
        let missed = missed.and_then(|missed| usize::try_from(missed).ok());
        let first = missed.and_then(|missed| self.journal.len().checked_sub(missed));
        let Some(first) = first else {
            return lost;
        };
        let numbered = (after.count + 1..).zip(self.journal.range(first..));
        let messages = numbered.take(at_most).map(|(count, message)| {
            let position = Position { count, ..after };
            (position, message.clone())
        });
        Replay::Complete(messages.collect())
    }
}

fn check_length(message: &Bytes) -> StoreResult<()> {
    if message.len() <= MAX_MESSAGE_BYTES {
        return Ok(());
    }
    Err(StoreError::refused(format!(
        "a message of {} bytes is over the limit of {MAX_MESSAGE_BYTES}",
        message.len()
    )))
}

/// A copy, because the message may be a small part of something that the journal would keep alive.
fn owned(message: &Bytes) -> Bytes {
    Bytes::copy_from_slice(message)
}

fn weight(message: &Bytes) -> usize {
    message.len() + MESSAGE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Bytes {
        vec![b'm'; bytes].into()
    }

    fn publish(bus: &LocalBus, channel: &str) -> Position {
        bus.publish_now(channel, &message(1)).unwrap()
    }

    #[test]
    fn the_journal_is_bounded_in_messages_and_bytes() {
        let mut many = Channel::begin();
        for _ in 0..JOURNAL_MESSAGES + 5 {
            many.keep(message(1));
        }
        assert_eq!(many.journal.len(), JOURNAL_MESSAGES);
        let mut heavy = Channel::begin();
        for _ in 0..1_000 {
            heavy.keep(message(MAX_MESSAGE_BYTES));
        }
        assert!(heavy.journal_bytes <= JOURNAL_BYTES);
        assert!(heavy.journal_bytes > JOURNAL_BYTES - 2 * MAX_MESSAGE_BYTES);
        let weights = heavy.journal.iter().map(weight);
        assert_eq!(weights.sum::<usize>(), heavy.journal_bytes);
    }

    #[test]
    fn a_listener_that_falls_behind_loses_messages_and_no_memory_grows() {
        let bus = LocalBus::new();
        let mut seat = bus.take_seat("c").unwrap();
        for _ in 0..QUEUE_NOTICES + 100 {
            publish(&bus, "c");
        }
        assert_eq!(seat.queue.len(), QUEUE_NOTICES);
        while seat.queue.try_recv().is_ok() {}
        let next = publish(&bus, "c");
        let Ok(Notice::Message { position, .. }) = seat.queue.try_recv() else {
            panic!("the queue has room again");
        };
        assert_eq!(position, Some(next));
        assert_eq!(next.count, QUEUE_NOTICES as u64 + 101, "a gap to be seen");
    }

    #[test]
    fn one_channel_too_many_displaces_the_one_used_least_recently() {
        let bus = LocalBus::new();
        let _seat = bus.take_seat("heard").unwrap();
        let heard = publish(&bus, "heard");
        let forgotten = publish(&bus, "forgotten");
        let used = publish(&bus, "used");
        for other in 0..MAX_CHANNELS - 3 {
            publish(&bus, &format!("other {other}"));
        }
        assert_eq!(publish(&bus, "used").incarnation, used.incarnation);
        publish(&bus, "one too many");
        assert_eq!(bus.channels().by_name.len(), MAX_CHANNELS);
        assert_eq!(publish(&bus, "heard").incarnation, heard.incarnation);
        assert_eq!(publish(&bus, "used").incarnation, used.incarnation);
        assert_ne!(
            publish(&bus, "forgotten").incarnation,
            forgotten.incarnation
        );
    }

    #[test]
    fn channels_that_are_listened_to_are_never_displaced() {
        let bus = LocalBus::new();
        let names: Vec<String> = (0..MAX_CHANNELS).map(|name| name.to_string()).collect();
        let seats: Vec<_> = names.iter().map(|name| bus.take_seat(name)).collect();
        assert!(seats.iter().all(Result::is_ok));
        assert!(bus.publish_now("more", &message(1)).is_err());
        assert!(bus.take_seat("more").is_err());
        drop(seats);
        publish(&bus, "more");
    }

    #[test]
    fn listeners_are_bounded_and_leave_when_they_are_dropped() {
        let bus = LocalBus::new();
        let mut seats: Vec<_> = (0..MAX_LISTENERS).map(|_| bus.take_seat("c")).collect();
        assert!(seats.iter().all(Result::is_ok));
        assert!(bus.take_seat("c").is_err());
        seats.pop();
        assert!(bus.take_seat("c").is_ok());
        drop(seats);
        assert!(bus.channels().by_name["c"].listeners.is_empty());
    }
}
