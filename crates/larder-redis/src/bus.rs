use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use larder::backplane::{Backplane, MAX_MESSAGE_BYTES, Notice, Replay};
use larder::clock::BoxFuture;
use larder::store::{Position, StoreError, StoreResult};
use redis::{Cmd, Value};

use crate::connection::Connection;
use crate::error::ConfigError;
use crate::options::{Plan, RedisOptions, Tracking};
use crate::reply::Replies;
use crate::scripts::{BUS_BEAT, BUS_PUBLISH, BUS_REPLAY, Call, Lua, Repeat};
use subscriber::Subscriber;

mod frame;
mod subscriber;
mod tracker;
mod wire;

/// A Redis or Valkey server as a [`Backplane`]: pub/sub, or the server itself, tells the listeners, a
/// stream is the journal.
///
/// [`Redis`](crate::Redis) brings one along that shares its connection; this is for a bus on another
/// server than the tier. Making one only checks the URL, and connections are made and healed as those
/// of the tier are. Each [`Backplane::listen`] has a connection of its own besides.
///
/// For a channel `shop` there are the keys `shop:~bus`, a hash, and `shop:~journal`, a stream, and
/// the pub/sub channel `shop:~bus`. Pub/sub knows no databases; so in a database other than 0 its
/// number follows, as in `shop:~bus/3`. The journal keeps
/// [`RedisOptions::journal_messages`](crate::RedisOptions::journal_messages) messages, up to 64 MiB.
/// Keys that were not used for a day are gone.
///
/// A user of an ACL needs, beside a password:
///
/// ```text
/// ACL SETUSER shop on >PASSWORD resetkeys resetchannels ~shop:* &shop:~bus
///     +evalsha +eval +hmget +hget +hset +del +pexpire +xadd +xrange +xlen +xtrim
///     +publish +subscribe +info
/// ```
///
/// and `+select` for a database other than 0. Without INFO, listeners are not told when the server
/// is another one ([`Notice::Listening`] says 0), and a failover that loses messages is not noticed.
/// Without the channel, or SUBSCRIBE, [`Backplane::listen`] returns an error that names what to grant.
/// There is no bus without EVAL.
///
/// With [`BusKind::Tracking`](crate::BusKind::Tracking) there is no channel, and listening has no
/// connection of its own: the server pushes what changes of that which was read on the connection of
/// the commands. In place of `+publish +subscribe` and the channel, a user needs
/// `+pttl +client|tracking`; without it [`Backplane::listen`] returns an error that says so. Beats are
/// told to the listeners of this handle alone. What the server pushes is kept up to 16 MiB for a
/// listener that does not keep up; beyond that it is told [`Notice::Watching`], as anything may have
/// changed.
///
/// A message is published again where the connection broke before the answer: it may be told twice.
/// A server that is out of memory loses the journal and goes on numbering. Where it can tell
/// listeners and cannot write at all, as a replica, it tells them, without a number, and
/// [`Backplane::publish`] returns the error; a beat is an error there and is not told.
///
/// A server that restarted, or took over from another, begins a new incarnation with its first
/// listener, because messages that it lost would leave their numbers to others.
pub struct RedisBus {
    connection: Arc<Connection>,
}

/// How many bytes of messages the journal keeps, give or take 64 messages.
const JOURNAL_BYTES: usize = 64 << 20;
/// How much one step of a replay reads: the server does nothing else meanwhile.
const STEP_MESSAGES: usize = 500;
const STEP_BYTES: usize = 1 << 20;

/// What the keys and the channel of the bus are called.
struct Names {
    position: Vec<u8>,
    journal: Vec<u8>,
    channel: Vec<u8>,
}

impl Names {
    fn of(channel: &str, database: i64) -> Self {
        let name = format!("{channel}:~bus");
        let suffix = match database {
            0 => String::new(),
            other => format!("/{other}"),
        };
        Self {
            channel: format!("{name}{suffix}").into(),
            position: name.into(),
            journal: format!("{channel}:~journal").into(),
        }
    }

    fn keys(&self) -> [&[u8]; 2] {
        [&self.position, &self.journal]
    }
}

impl RedisBus {
    /// The server at `url`, as for [`Redis::new`](crate::Redis::new), with default [`RedisOptions`].
    pub fn new(url: &str) -> Result<Self, ConfigError> {
        Self::with_options(url, RedisOptions::default())
    }

    /// The same with other options.
    pub fn with_options(url: &str, options: RedisOptions) -> Result<Self, ConfigError> {
        let connection = Connection::new(Plan::new(url, options)?);
        Ok(Self::sharing(Arc::new(connection)))
    }

    /// A bus that sends its commands on the connection of somebody else.
    pub(crate) fn sharing(connection: Arc<Connection>) -> Self {
        Self { connection }
    }

    fn names(&self, channel: &str) -> Names {
        Names::of(channel, self.connection.plan().database)
    }

    fn replies(&self) -> Replies<'_> {
        Replies {
            place: self.connection.place(),
        }
    }

    async fn publish_numbered(&self, channel: &str, message: &[u8]) -> StoreResult<Position> {
        check_length(message)?;
        let arguments = |call: &mut Call| self.publication(call, channel, message);
        self.position(self.run(&BUS_PUBLISH, message.len(), arguments).await?)
    }

    /// What the script that publishes is given.
    fn publication(&self, call: &mut Call, channel: &str, message: &[u8]) {
        let names = self.names(channel);
        let call = call.keys(&names.keys());
        call.arg(self.told_on(&names)).arg(message);
        call.arg(&fresh_incarnation());
        call.arg(self.connection.plan().options.journal_messages);
        call.arg(JOURNAL_BYTES);
    }

    /// A command that publishes, for a server that knows the script.
    pub(crate) fn to_publish(&self, channel: &str, message: &[u8]) -> StoreResult<Cmd> {
        check_length(message)?;
        Ok(BUS_PUBLISH.by_hash(|call| self.publication(call, channel, message)))
    }

    /// Whether the server itself tells its listeners.
    pub(crate) fn is_watching(&self) -> bool {
        self.connection.plan().tracking == Tracking::All
    }

    /// The channel that scripts publish to; empty where nobody subscribes.
    fn told_on<'n>(&self, names: &'n Names) -> &'n [u8] {
        match self.is_watching() {
            true => b"",
            false => &names.channel,
        }
    }

    async fn tell_position(&self, channel: &str, message: &[u8]) -> StoreResult<Position> {
        check_length(message)?;
        let names = self.names(channel);
        let incarnation = fresh_incarnation();
        let arguments = |call: &mut Call| {
            let call = call.keys(&names.keys());
            call.arg(self.told_on(&names))
                .arg(message)
                .arg(&incarnation);
        };
        self.position(self.run(&BUS_BEAT, message.len(), arguments).await?)
    }

    async fn hear(&self, channel: &str, notify: &mut (dyn FnMut(Notice) + Send)) -> StoreError {
        if self.is_watching() {
            return self.track(channel, notify).await;
        }
        let names = self.names(channel);
        match Subscriber::open(self.connection.plan(), &names).await {
            Ok(mut subscriber) => {
                notify(Notice::Listening {
                    server: subscriber.server(),
                });
                loop {
                    match subscriber.next().await {
                        Ok(notice) => notify(notice),
                        Err(end) => return end,
                    }
                }
            }
            Err(error) => error,
        }
    }

    /// Reads the journal in steps, up to where it ended at the first one.
    async fn read_journal(
        &self,
        channel: &str,
        after: Position,
        at_most: usize,
    ) -> StoreResult<Replay> {
        let names = self.names(channel);
        let mut messages = Vec::new();
        let mut at = after;
        let mut end = None;
        loop {
            let wanted = at_most - messages.len();
            let (position, read) = self
                .step(&names, at, wanted.clamp(1, STEP_MESSAGES))
                .await?;
            let Some(read) = read else {
                return Ok(Replay::Lost { position });
            };
            for message in read.into_iter().take(wanted) {
                at.count += 1;
                messages.push((at, message));
            }
            if messages.len() == at_most || at.count >= *end.get_or_insert(position.count) {
                return Ok(Replay::Complete(messages));
            }
        }
    }

    /// Where the channel stands, and some messages behind a position, at least one if there are any;
    /// `None` if some of them are gone.
    async fn step(
        &self,
        names: &Names,
        after: Position,
        at_most: usize,
    ) -> StoreResult<(Position, Option<Vec<Bytes>>)> {
        let incarnation = fresh_incarnation();
        let arguments = |call: &mut Call| {
            let call = call.keys(&names.keys());
            call.arg(&after.incarnation.to_be_bytes()).arg(after.count);
            call.arg(&incarnation).arg(at_most).arg(STEP_BYTES);
            call.arg(MAX_MESSAGE_BYTES);
        };
        let mut parts = match self.run(&BUS_REPLAY, 0, arguments).await? {
            Value::Array(parts) => parts.into_iter(),
            other => return Err(self.replies().not_expected(other)),
        };
        let (position, messages) = (parts.next(), parts.next());
        let position = self.position(position.ok_or_else(|| self.replies().senseless())?)?;
        let messages = messages.map(|messages| self.messages(messages));
        Ok((position, messages.transpose()?))
    }

    /// Runs a script once; again, if the connection turns out to be broken.
    async fn run(
        &self,
        script: &Lua,
        payload_bytes: usize,
        arguments: impl Fn(&mut Call),
    ) -> StoreResult<Value> {
        let arguments = |call: &mut Call, _run: usize| arguments(call);
        let replies = script.run(
            &self.connection,
            Repeat::Harmless,
            1,
            payload_bytes,
            arguments,
        );
        let reply = replies.await?.pop();
        reply.ok_or_else(|| self.replies().senseless())
    }

    /// The answer to a publication.
    pub(crate) fn position(&self, reply: Value) -> StoreResult<Position> {
        match reply {
            Value::BulkString(bytes) => {
                frame::position(&bytes).ok_or_else(|| self.replies().senseless())
            }
            other => Err(self.replies().not_expected(other)),
        }
    }

    fn messages(&self, reply: Value) -> StoreResult<Vec<Bytes>> {
        let Value::Array(messages) = reply else {
            return Err(self.replies().not_expected(reply));
        };
        let messages = messages.into_iter().map(|message| match message {
            Value::BulkString(bytes) => Ok(bytes.into()),
            _ => Err(self.replies().senseless()),
        });
        messages.collect()
    }
}

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBus")
            .field("connection", &self.connection)
            .finish()
    }
}

impl Backplane for RedisBus {
    fn name(&self) -> &str {
        "redis"
    }

    fn publish<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        Box::pin(async move {
            if self.is_watching() {
                return self.publish_watched(channel, message).await;
            }
            self.publish_numbered(channel, &message).await
        })
    }

    fn beat<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        Box::pin(async move {
            if self.is_watching() {
                return self.beat_watched(channel, message).await;
            }
            self.tell_position(channel, &message).await
        })
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
        Box::pin(self.read_journal(channel, after, at_most))
    }

    fn close(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async {
            self.connection.close();
            Ok(())
        })
    }
}

/// The incarnation that a channel begins with, should this be its first use.
fn fresh_incarnation() -> [u8; 8] {
    fastrand::u64(1..).to_be_bytes()
}

fn check_length(message: &[u8]) -> StoreResult<()> {
    if message.len() <= MAX_MESSAGE_BYTES {
        return Ok(());
    }
    Err(StoreError::refused(format!(
        "a message of {} bytes is over the limit of {MAX_MESSAGE_BYTES}",
        message.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_have_channels_of_their_own_and_the_keys_need_none() {
        let [first, fourth] = [0, 3].map(|database| Names::of("shop", database));
        assert_eq!(first.channel, b"shop:~bus");
        assert_eq!(fourth.channel, b"shop:~bus/3");
        for names in [first, fourth] {
            assert_eq!(names.keys(), [&b"shop:~bus"[..], b"shop:~journal"]);
        }
    }
}
