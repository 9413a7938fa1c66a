use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::backplane::Backplane;
use larder::clock::{BoxFuture, Millis};
use larder::envelope::Header;
use larder::store::{
    Capabilities, Fill, Filled, LeaseRequest, LeaseToken, Leased, Position, Store, StoreError,
    StoreResult, Swept, Tagged, Write,
};
use redis::{Cmd, Value};

use crate::bus::RedisBus;
use crate::command::{
    BATCH_COMMANDS, add_value, batches, get_range, keys_with_tags, last_byte, move_on,
    new_incarnation, pattern_of, record_millis, removal, set, weight, whole_millis, word,
};
use crate::connection::Connection;
use crate::error::{ConfigError, refusal};
use crate::link::Batch;
use crate::misses::{First, Misses};
use crate::options::{Plan, RedisOptions};
use crate::reply::{Moved, Replies, is_not_available, moved};
use crate::scripts::{Call, ENLIST, EXPIRE, FILL, LEASE, RELEASE, Repeat, SET, TOUCH};
use crate::watch::Watch;

/// A Redis or Valkey server as a [`Store`].
///
/// Making one only checks the URL. The connection is made by the first call, is shared by all of
/// them, and makes itself anew after a failure; a server that is away is an error of each call
/// until it is back, never of [`Redis::new`].
pub struct Redis {
    connection: Arc<Connection>,
    watch: Watch,
    max_value_bytes: usize,
    misses: Misses,
}

impl Redis {
    /// The server at `url`, such as `redis://127.0.0.1`, with default [`RedisOptions`].
    ///
    /// The whole form is `redis://USER:PASSWORD@HOST:PORT/DATABASE`; `valkey://` is the same, and
    /// `unix:///PATH?db=DATABASE&user=USER&pass=PASSWORD` is a socket of this machine. Special
    /// characters in the password are percent-encoded. Nothing is connected to.
    pub fn new(url: &str) -> Result<Self, ConfigError> {
        Self::with_options(url, RedisOptions::default())
    }

    /// The same with other options.
    pub fn with_options(url: &str, options: RedisOptions) -> Result<Self, ConfigError> {
        let max_value_bytes = options.max_value_bytes;
        let plan = Plan::new(url, options)?;
        Ok(Self {
            watch: Watch::new(&plan),
            connection: Arc::new(Connection::new(plan)),
            max_value_bytes,
            misses: Misses::new(),
        })
    }

    fn replies(&self) -> Replies<'_> {
        Replies {
            place: self.connection.place(),
        }
    }

    /// Sends one command, twice if the connection turns out to be broken.
    async fn ask(&self, command: Cmd) -> StoreResult<Value> {
        let mut replies = self.connection.send_repeatable(Batch::one(command)).await?;
        replies.pop().ok_or_else(|| self.replies().senseless())
    }
}

// Reading and leasing.
impl Redis {
    async fn read(&self, keys: &[Bytes], limit: usize) -> StoreResult<Vec<Option<Bytes>>> {
        let mut values = Vec::with_capacity(keys.len());
        for keys in keys.chunks(BATCH_COMMANDS) {
            let batch = Batch::of(keys.iter().map(|key| get_range(key, limit)));
            for reply in self.connection.send_repeatable(batch).await? {
                values.push(self.replies().value(reply)?);
            }
        }
        Ok(values)
    }

    /// Reads plainly first, or leases at once: see [`Misses`].
    async fn read_or_lease(
        &self,
        keys: &[Bytes],
        request: &LeaseRequest,
    ) -> StoreResult<Vec<Leased>> {
        let leased = match self.misses.first() {
            First::Read => self.read_then_lease(keys, request).await?,
            First::Lease => {
                let all: Vec<usize> = (0..keys.len()).collect();
                self.take_leases(keys, &all, request).await?
            }
        };
        let fresh = |leased: &&Leased| matches!(leased, Leased::Value(_));
        let hits = leased.iter().filter(fresh).count();
        self.misses.note(leased.len() - hits, leased.len());
        Ok(leased)
    }

    /// A hit costs one native command; only what is not fresh goes on to the script, which looks
    /// again.
    async fn read_then_lease(
        &self,
        keys: &[Bytes],
        request: &LeaseRequest,
    ) -> StoreResult<Vec<Leased>> {
        let found = self.read(keys, request.limit).await?;
        let mut leased = Vec::with_capacity(keys.len());
        let mut open = Vec::new();
        for (at, value) in found.into_iter().enumerate() {
            let fresh = value.filter(|value| is_fresh(value, request.stale_at));
            if fresh.is_none() {
                open.push(at);
            }
            leased.push(fresh.map_or(Leased::Held { stale: None }, Leased::Value));
        }
        let taken = self.take_leases(keys, &open, request).await?;
        for (at, taken) in open.into_iter().zip(taken) {
            leased[at] = taken;
        }
        Ok(leased)
    }

    /// Runs the script for the keys at these places, and answers in their order.
    async fn take_leases(
        &self,
        keys: &[Bytes],
        places: &[usize],
        request: &LeaseRequest,
    ) -> StoreResult<Vec<Leased>> {
        let token = word(request.token.bits());
        let stale_at = word(request.stale_at);
        let lease_for = whole_millis(request.lease_for);
        let incarnation = new_incarnation();
        let mut leased = Vec::with_capacity(places.len());
        for places in places.chunks(BATCH_COMMANDS) {
            let arguments = |call: &mut Call, at: usize| {
                let key = &*keys[places[at]];
                let run = match &request.counter {
                    Some(counter) => call.keys(&[key, counter]),
                    None => call.keys(&[key]),
                };
                run.arg(&token).arg(&stale_at).arg(lease_for);
                run.arg(last_byte(request.limit)).arg(&incarnation);
            };
            let replies = LEASE
                .run(
                    &self.connection,
                    Repeat::Harmless,
                    places.len(),
                    0,
                    arguments,
                )
                .await?;
            for reply in replies {
                leased.push(self.replies().leased(reply)?);
            }
        }
        Ok(leased)
    }

    async fn release_all(&self, keys: &[Bytes], token: LeaseToken) -> StoreResult<()> {
        let token = word(token.bits());
        for keys in keys.chunks(BATCH_COMMANDS) {
            let arguments = |call: &mut Call, at: usize| {
                call.keys(&[&*keys[at]]).arg(&token);
            };
            let replies = RELEASE
                .run(&self.connection, Repeat::Harmless, keys.len(), 0, arguments)
                .await?;
            self.replies().all_done(replies)?;
        }
        Ok(())
    }
}

// Keeping.
impl Redis {
    async fn touch_all(&self, keys: &[Bytes], ttl: Duration) -> StoreResult<()> {
        let (ttl, record_ttl) = (whole_millis(ttl), record_millis(ttl));
        for keys in keys.chunks(BATCH_COMMANDS) {
            let arguments = |call: &mut Call, at: usize| {
                call.keys(&[&*keys[at]]).arg(ttl).arg(record_ttl);
            };
            let replies = TOUCH
                .run(&self.connection, Repeat::Harmless, keys.len(), 0, arguments)
                .await?;
            self.replies().all_done(replies)?;
        }
        Ok(())
    }
}

// Writing.
impl Redis {
    async fn compare_and_fill(&self, fills: &[Fill]) -> StoreResult<Vec<Filled>> {
        for fill in fills {
            self.check(&fill.value, fill.tags.as_ref())?;
        }
        let mut filled = Vec::with_capacity(fills.len());
        for fills in batches(fills, |fill| weight(&fill.value, fill.tags.as_ref())) {
            let arguments = |call: &mut Call, at: usize| {
                let fill = &fills[at];
                let tags = fill.tags.as_ref();
                let run = call.keys(&keys_with_tags(&fill.key, tags));
                run.arg(&word(fill.token.bits()));
                add_value(run, &fill.value, fill.ttl, tags);
            };
            let bytes = fills
                .iter()
                .map(|fill| weight(&fill.value, fill.tags.as_ref()))
                .sum();
            // A second run would find the token gone and deny that the first one stored.
            let replies = FILL
                .run(
                    &self.connection,
                    Repeat::Never,
                    fills.len(),
                    bytes,
                    arguments,
                )
                .await?;
            for reply in replies {
                filled.push(self.replies().filled(reply)?);
            }
        }
        Ok(filled)
    }

    async fn write(&self, writes: &[Write]) -> StoreResult<Vec<Filled>> {
        for write in writes {
            self.check(&write.value, write.tags.as_ref())?;
        }
        let mut filled = Vec::with_capacity(writes.len());
        for alike in writes.chunk_by(|one, next| is_plain(one) == is_plain(next)) {
            for writes in batches(alike, |write| weight(&write.value, write.tags.as_ref())) {
                let bytes = writes
                    .iter()
                    .map(|write| weight(&write.value, write.tags.as_ref()))
                    .sum();
                filled.append(&mut match writes.first().is_some_and(is_plain) {
                    true => self.write_plainly(writes, bytes).await?,
                    false => self.write_with_care(writes, bytes).await?,
                });
            }
        }
        Ok(filled)
    }

    /// Nothing that stands under the key can forbid these, so no script has to look.
    async fn write_plainly(&self, writes: &[Write], bytes: usize) -> StoreResult<Vec<Filled>> {
        let batch = Batch::of(writes.iter().map(set)).carrying(bytes);
        self.replies()
            .all_done(self.connection.send(batch).await?)?;
        let stored = Filled::Stored {
            versions: Vec::new(),
        };
        Ok(vec![stored; writes.len()])
    }

    async fn write_with_care(&self, writes: &[Write], bytes: usize) -> StoreResult<Vec<Filled>> {
        let arguments = |call: &mut Call, at: usize| {
            let write = &writes[at];
            // A write is newer than any invalidation that came before it.
            let tags = write.tags.clone().map(|tags| Tagged {
                since: None,
                ..tags
            });
            let run = call.keys(&keys_with_tags(&write.key, tags.as_ref()));
            add_value(run, &write.value, write.ttl, tags.as_ref());
        };
        // Run again it could undo what somebody else wrote meanwhile.
        let replies = SET
            .run(
                &self.connection,
                Repeat::Never,
                writes.len(),
                bytes,
                arguments,
            )
            .await?;
        let replies = replies.into_iter();
        replies.map(|reply| self.replies().filled(reply)).collect()
    }

    /// Values that Redis would take and readers would cut are refused before they are sent, and
    /// values whose tags do not match.
    fn check(&self, value: &Bytes, tags: Option<&Tagged>) -> StoreResult<()> {
        let limit = self.max_value_bytes;
        if value.len() > limit {
            return Err(StoreError::refused(format!(
                "a value of {} bytes is over the limit of {limit} (RedisOptions::max_value_bytes)",
                value.len()
            )));
        }
        match tags {
            Some(tags) if !has_versions(value, tags.records.len()) => Err(StoreError::refused(
                "a value with tags must carry one version for each of their records",
            )),
            _ => Ok(()),
        }
    }
}

// Invalidating.
impl Redis {
    async fn expire_all(&self, keys: &[Bytes], wall: Millis) -> StoreResult<()> {
        let wall = word(wall);
        for keys in keys.chunks(BATCH_COMMANDS) {
            let arguments = |call: &mut Call, at: usize| {
                call.keys(&[&*keys[at]]).arg(&wall);
            };
            let replies = EXPIRE
                .run(&self.connection, Repeat::Harmless, keys.len(), 0, arguments)
                .await?;
            self.replies().all_done(replies)?;
        }
        Ok(())
    }

    async fn remove(&self, keys: &[Bytes], counter: Option<&Bytes>) -> StoreResult<()> {
        let mut chunks = keys.chunks(BATCH_COMMANDS);
        if let Some(counter) = counter {
            let first = chunks.next().unwrap_or_default();
            self.move_and_remove(counter, first).await?;
        }
        for keys in chunks {
            self.unlink(keys.iter().map(|key| &**key)).await?;
        }
        Ok(())
    }

    /// One round trip of native commands: the counter moves, then the keys go.
    async fn move_and_remove(&self, counter: &Bytes, keys: &[Bytes]) -> StoreResult<()> {
        let names = keys.iter().map(|key| &**key);
        let mut commands = move_on(counter).to_vec();
        if !keys.is_empty() {
            commands.push(removal("UNLINK", names.clone()));
        }
        let batch = Batch::of(commands.into_iter());
        let mut replies = self.connection.send_repeatable(batch).await?.into_iter();
        match moved(replies.by_ref().take(2)) {
            Moved::Yes => {}
            // Once more for the keys, too: a fill may have come between them and the counter.
            Moved::CannotBeWritten => {
                let all = std::iter::once(&**counter).chain(names);
                return self.unlink(all).await.map(drop);
            }
            Moved::Refused(error) => return Err(refusal(self.connection.place(), &error)),
        }
        match replies.next() {
            Some(Value::ServerError(error)) if is_not_available(&error) => {
                self.unlink(names).await.map(drop)
            }
            Some(reply) => self.replies().count(reply).map(drop),
            None => Ok(()),
        }
    }

    /// The same, and a message behind it, in one round trip. Whatever does not go by itself goes one
    /// step after the other: the message must not be the first to get through.
    async fn move_remove_and_publish(
        &self,
        keys: &[Bytes],
        counter: &Bytes,
        channel: &str,
        message: &[u8],
    ) -> StoreResult<Position> {
        let in_steps = || StoreError::unsupported("this has to be done one step after the other");
        let bus = RedisBus::sharing(Arc::clone(&self.connection));
        if keys.is_empty() || keys.len() > BATCH_COMMANDS || bus.is_watching() {
            return Err(in_steps());
        }
        let publish = bus.to_publish(channel, message)?;
        let mut commands = move_on(counter).to_vec();
        commands.push(removal("UNLINK", keys.iter().map(|key| &**key)));
        commands.push(publish);
        let batch = Batch::of(commands.into_iter()).carrying(message.len());
        let batch = batch.running_scripts();
        let mut replies = self.connection.send_repeatable(batch).await?.into_iter();
        let moved = moved(replies.by_ref().take(2));
        match (moved, replies.next(), replies.next()) {
            (Moved::Yes, Some(Value::Int(_)), Some(position @ Value::BulkString(_))) => {
                bus.position(position)
            }
            _ => Err(in_steps()),
        }
    }

    /// UNLINK frees large values aside; where the server lacks it or forbids it, DEL does.
    async fn unlink<'k>(&self, keys: impl Iterator<Item = &'k [u8]> + Clone) -> StoreResult<u64> {
        let reply = self.ask(removal("UNLINK", keys.clone())).await?;
        match reply {
            Value::ServerError(error) if is_not_available(&error) => {
                let reply = self.ask(removal("DEL", keys)).await?;
                self.replies().count(reply)
            }
            reply => self.replies().count(reply),
        }
    }

    /// Walks over all keys of the database in steps, and removes those that it should.
    async fn sweep_prefix(
        &self,
        prefix: &[u8],
        condemned: &(dyn Fn(&[u8]) -> bool + Send + Sync),
        progress: &(dyn Fn(Swept) + Send + Sync),
    ) -> StoreResult<Swept> {
        let pattern = pattern_of(prefix);
        let mut swept = Swept::default();
        let mut cursor = Vec::from(*b"0");
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&*cursor).arg("MATCH").arg(&*pattern);
            scan.arg("COUNT").arg(BATCH_COMMANDS);
            let (next, found) = self.replies().scanned(self.ask(scan).await?)?;
            // The server decides what a pattern matches; what may be removed is decided here.
            let ours = found.iter().filter(|key| key.starts_with(prefix));
            let ours: Vec<&[u8]> = ours.map(Vec::as_slice).collect();
            swept.seen += ours.len() as u64;
            let gone: Vec<&[u8]> = ours.into_iter().filter(|key| condemned(key)).collect();
            for keys in gone.chunks(BATCH_COMMANDS) {
                swept.removed += self.unlink(keys.iter().copied()).await?;
            }
            progress(swept);
            if next == b"0" {
                return Ok(swept);
            }
            cursor = next;
        }
    }

    async fn note_member(
        &self,
        record: &Bytes,
        member: u32,
        keep: Duration,
    ) -> StoreResult<Vec<u32>> {
        let arguments = |call: &mut Call, _| {
            let run = call.keys(&[&**record]);
            let keep = if keep.is_zero() {
                0
            } else {
                whole_millis(keep)
            };
            run.arg(member).arg(keep);
        };
        let mut replies = ENLIST
            .run(&self.connection, Repeat::Harmless, 1, 0, arguments)
            .await?;
        let reply = replies.pop().ok_or_else(|| self.replies().senseless())?;
        self.replies().members(reply)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("connection", &self.connection)
            .field("max_value_bytes", &self.max_value_bytes)
            .finish()
    }
}

impl Store for Redis {
    fn name(&self) -> &str {
        "redis"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.max_value_bytes)
    }

    fn get<'a>(
        &'a self,
        keys: &'a [Bytes],
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>> {
        Box::pin(self.read(keys, limit))
    }

    fn lease<'a>(
        &'a self,
        keys: &'a [Bytes],
        request: &'a LeaseRequest,
    ) -> BoxFuture<'a, StoreResult<Vec<Leased>>> {
        Box::pin(self.read_or_lease(keys, request))
    }

    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(self.compare_and_fill(fills))
    }

    fn release<'a>(
        &'a self,
        keys: &'a [Bytes],
        token: LeaseToken,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.release_all(keys, token))
    }

    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(self.write(writes))
    }

    fn touch<'a>(&'a self, keys: &'a [Bytes], ttl: Duration) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.touch_all(keys, ttl))
    }

    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.expire_all(keys, wall))
    }

    fn delete<'a>(
        &'a self,
        keys: &'a [Bytes],
        counter: Option<&'a Bytes>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.remove(keys, counter))
    }

    fn delete_and_publish<'a>(
        &'a self,
        keys: &'a [Bytes],
        counter: &'a Bytes,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        Box::pin(async move {
            self.move_remove_and_publish(keys, counter, channel, &message)
                .await
        })
    }

    fn sweep<'a>(
        &'a self,
        prefix: &'a [u8],
        condemned: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
        progress: &'a (dyn Fn(Swept) + Send + Sync),
    ) -> BoxFuture<'a, StoreResult<Swept>> {
        Box::pin(self.sweep_prefix(prefix, condemned, progress))
    }

    fn enlist<'a>(
        &'a self,
        record: &'a Bytes,
        member: u32,
        keep: Duration,
    ) -> BoxFuture<'a, StoreResult<Vec<u32>>> {
        Box::pin(self.note_member(record, member, keep))
    }

    fn changed<'a>(&'a self, keys: &'a [Bytes]) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.watch.until_changed(keys))
    }

    fn backplane(&self) -> Option<Arc<dyn Backplane>> {
        Some(Arc::new(RedisBus::sharing(Arc::clone(&self.connection))))
    }

    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async {
            self.connection.heal().await?;
            let reply = self.ask(redis::cmd("PING")).await?;
            self.replies().all_done(vec![reply])
        })
    }

    fn close(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async {
            self.connection.close();
            self.watch.close();
            Ok(())
        })
    }
}

fn is_fresh(value: &Bytes, stale_at: Millis) -> bool {
    value.len() > Header::LEN
        && Header::parse(value).is_some_and(|header| header.is_fresh(stale_at))
}

/// Whether nothing that stands under the key, and no tag, can forbid the write.
fn is_plain(write: &Write) -> bool {
    let version = Header::parse(&write.value).map_or(0, |header| header.version);
    version == 0 && write.tags.is_none()
}

/// Whether so many versions stand behind the header.
fn has_versions(value: &Bytes, records: usize) -> bool {
    value.len() >= Header::LEN + 8 * records
        && Header::parse(value).is_some_and(|header| usize::from(header.tag_count) == records)
}
