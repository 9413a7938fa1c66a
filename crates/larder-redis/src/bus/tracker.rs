use std::sync::Arc;

use bytes::Bytes;
use larder::backplane::{Notice, Replay};
use larder::store::{Position, StoreError, StoreErrorKind, StoreResult};
use redis::Value;

use super::subscriber::{field, fingerprint};
use super::{Names, RedisBus, fresh_incarnation};
use crate::link::{Batch, Link};
use crate::pushes::{Listening, Told};
use crate::reply::is_not_available;
use crate::scripts::{BUS_LISTEN, Call};

/// How many messages of the journal are read at once.
const AT_ONCE: usize = 5_000;

/// A listener that the server itself tells what changed, on the connection that everything is read on.
///
/// The position of the bus is a key like any other: when it changes, what is new in the journal is
/// read, which has the server watch the position again.
///
/// What the server pushes and what it answers come in one order on one connection, and are told in it.
/// So an answer to a beat proves that all that was pushed before it was told, and a connection that
/// is dead without an error shows as silence.
struct Tracker<'a> {
    bus: &'a RedisBus,
    channel: &'a str,
    names: Names,
    told: Listening,
    /// The last message that was told.
    at: Position,
    notify: &'a mut (dyn FnMut(Notice) + Send),
}

impl RedisBus {
    /// Publishes, and tells the listeners of this connection, who need not read it from the journal.
    pub(super) async fn publish_watched(
        &self,
        channel: &str,
        message: Bytes,
    ) -> StoreResult<Position> {
        let link = self.connection.current().await?;
        let published = self.publish_numbered(channel, &message).await;
        let position = published?;
        let channel = channel.into();
        let told = Told::Published {
            channel,
            position,
            message,
        };
        self.tell(&link, &told);
        Ok(position)
    }

    /// Asks where the channel stands, and tells the listeners of this connection.
    pub(super) async fn beat_watched(
        &self,
        channel: &str,
        message: Bytes,
    ) -> StoreResult<Position> {
        let link = self.connection.current().await?;
        let position = self.tell_position(channel, &message).await?;
        let channel = channel.into();
        let told = Told::Beat {
            channel,
            position,
            message,
        };
        self.tell(&link, &told);
        Ok(position)
    }

    /// Tells the listeners of a connection, if what was answered was answered on it: a connection that
    /// was replaced never comes back.
    fn tell(&self, link: &Link, told: &Told) {
        if !link.is_given_up()
            && let Some(pushes) = link.pushes()
        {
            pushes.tell(told);
        }
    }

    /// What the server calls its life; `None` where the user may not ask.
    async fn run_id(&self, link: &Arc<Link>) -> StoreResult<Option<String>> {
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let mut answers = self.connection.send_on(link, Batch::one(info)).await?;
        match answers.pop() {
            Some(Value::BulkString(text)) => Ok(field(&String::from_utf8_lossy(&text), "run_id:")),
            Some(Value::VerbatimString { text, .. }) => Ok(field(&text, "run_id:")),
            Some(Value::ServerError(error)) if !is_not_available(&error) => {
                Err(self.replies().not_expected(Value::ServerError(error)))
            }
            _ => Ok(None),
        }
    }

    async fn prepare(&self, names: &Names, run_id: Option<&str>) -> StoreResult<()> {
        let incarnation = fresh_incarnation();
        let server = run_id.unwrap_or_default();
        let arguments = |call: &mut Call| {
            call.keys(&names.keys()).arg(server).arg(&incarnation);
        };
        let answer = self.run(&BUS_LISTEN, 0, arguments).await?;
        self.replies().all_done(vec![answer])
    }

    /// Where the channel stands; from then on the server watches that.
    async fn position_of(&self, channel: &str) -> StoreResult<Position> {
        match self.read_journal(channel, Position::default(), 1).await? {
            Replay::Lost { position } => Ok(position),
            Replay::Complete(_) => Err(self.replies().senseless()),
        }
    }

    pub(super) async fn track(
        &self,
        channel: &str,
        notify: &mut (dyn FnMut(Notice) + Send),
    ) -> StoreError {
        match Tracker::open(self, channel, notify).await {
            Ok(tracker) => tracker.listen().await,
            Err(error) => error,
        }
    }
}

impl<'a> Tracker<'a> {
    async fn open(
        bus: &'a RedisBus,
        channel: &'a str,
        notify: &'a mut (dyn FnMut(Notice) + Send),
    ) -> StoreResult<Self> {
        let names = bus.names(channel);
        let link = bus.connection.current().await?;
        let Some(pushes) = link.pushes() else {
            return Err(StoreError::refused(format!(
                "Redis at {} does not tell this user of changes (it must be Redis 6 or later, and \
                 the user needs +client|tracking)",
                bus.connection.place()
            )));
        };
        let told = pushes.listen()?;
        let run_id = bus.run_id(&link).await?;
        bus.prepare(&names, run_id.as_deref()).await?;
        let at = bus.position_of(channel).await?;
        if link.is_given_up() {
            return Err(StoreError::unavailable(
                "the connection broke when the listening began",
            ));
        }
        // First, so that there is no trust before the doubt.
        notify(Notice::Watching);
        notify(Notice::Listening {
            server: run_id.as_deref().map_or(0, fingerprint),
        });
        Ok(Self {
            bus,
            channel,
            names,
            told,
            at,
            notify,
        })
    }

    async fn listen(mut self) -> StoreError {
        loop {
            let told = self.told.next().await;
            if let Err(error) = self.pass_on(told).await {
                return error;
            }
        }
    }

    async fn pass_on(&mut self, told: Told) -> StoreResult<()> {
        match told {
            Told::Changed(key) if key == self.names.position => return self.catch_up().await,
            Told::Changed(key) if is_of_a_bus(&key) => {}
            Told::Changed(key) => (self.notify)(Notice::Changed { keys: vec![key] }),
            Told::Emptied => {
                (self.notify)(Notice::Emptied);
                return self.catch_up().await;
            }
            Told::TooMuch => {
                (self.notify)(Notice::Watching);
                return self.catch_up().await;
            }
            Told::Published {
                channel,
                position,
                message,
            } if *channel == *self.channel => {
                // Any other has been told already, or is when the position is pushed.
                if position == next(self.at) {
                    self.tell(position, message);
                }
            }
            Told::Beat {
                channel,
                position,
                message,
            } if *channel == *self.channel => {
                if !self.has_told(position) {
                    self.catch_up().await?;
                }
                let position = self.at;
                (self.notify)(Notice::Beat { position, message });
            }
            Told::Published { .. } | Told::Beat { .. } => {}
            Told::Ended => {
                return Err(StoreError::unavailable(format!(
                    "the connection to Redis at {} has ended",
                    self.bus.connection.place()
                )));
            }
        }
        Ok(())
    }

    fn has_told(&self, position: Position) -> bool {
        position.incarnation == self.at.incarnation && position.count <= self.at.count
    }

    fn tell(&mut self, position: Position, message: Bytes) {
        self.at = position;
        (self.notify)(Notice::Message {
            position: Some(position),
            message,
        });
    }

    /// Tells what the journal holds behind the last message that was told, or where the channel stands
    /// if it does not reach back.
    async fn catch_up(&mut self) -> StoreResult<()> {
        loop {
            let replay = self.bus.read_journal(self.channel, self.at, AT_ONCE).await;
            match replay {
                Ok(Replay::Complete(messages)) => {
                    let at_end = messages.len() < AT_ONCE;
                    for (position, message) in messages {
                        self.tell(position, message);
                    }
                    if at_end {
                        return Ok(());
                    }
                }
                Ok(Replay::Lost { position }) => {
                    self.at = position;
                    let message = Bytes::new();
                    (self.notify)(Notice::Beat { position, message });
                    return Ok(());
                }
                // A server that cannot number tells of something that cannot be read.
                Err(error) if error.kind() == StoreErrorKind::Refused => {
                    (self.notify)(Notice::Unreadable);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether it is the position or the journal of some channel. Entries have an `@` in front of their
/// version.
fn is_of_a_bus(key: &[u8]) -> bool {
    (key.ends_with(b":~bus") || key.ends_with(b":~journal")) && !key.contains(&b'@')
}

fn next(position: Position) -> Position {
    Position {
        count: position.count + 1,
        ..position
    }
}
