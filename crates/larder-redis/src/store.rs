use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::{BoxFuture, Millis};
use larder::envelope::Header;
use larder::store::{
    Capabilities, Fill, Filled, LeaseRequest, LeaseToken, Leased, Store, StoreError, StoreResult,
    Write,
};
use redis::{Cmd, ServerError, ServerErrorKind, Value};

use crate::connection::Connection;
use crate::error::{ConfigError, refusal};
use crate::link::Batch;
use crate::options::{Plan, RedisOptions};
use crate::scripts::{EXPIRE, FILL, LEASE, RELEASE, Repeat};

/// A Redis or Valkey server as a [`Store`].
///
/// Making one only checks the URL. The connection is made by the first call, is shared by all of
/// them, and makes itself anew after a failure; a server that is away is an error of each call
/// until it is back, never of [`Redis::new`].
pub struct Redis {
    connection: Connection,
    max_value_bytes: usize,
}

/// How many commands one round trip carries at most.
const BATCH_COMMANDS: usize = 1_000;
/// How many bytes of values one round trip carries, unless a single value is longer.
const BATCH_BYTES: usize = 16 << 20;

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
        Ok(Self {
            connection: Connection::new(Plan::new(url, options)?),
            max_value_bytes,
        })
    }

    async fn read(&self, keys: &[Bytes], limit: usize) -> StoreResult<Vec<Option<Bytes>>> {
        let mut values = Vec::with_capacity(keys.len());
        for keys in keys.chunks(BATCH_COMMANDS) {
            let batch = Batch::of(keys.iter().map(|key| get_range(key, limit)));
            for reply in self.connection.send_repeatable(batch).await? {
                values.push(self.value(reply)?);
            }
        }
        Ok(values)
    }

    /// Reads plainly first, so that a hit costs one native command; only what is not fresh goes
    /// on to the script, which looks again.
    async fn read_or_lease(
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
        for open in open.chunks(BATCH_COMMANDS) {
            let replies = self.take_leases(keys, open, request).await?;
            for (&at, reply) in open.iter().zip(replies) {
                leased[at] = self.leased(reply)?;
            }
        }
        Ok(leased)
    }

    async fn take_leases(
        &self,
        keys: &[Bytes],
        open: &[usize],
        request: &LeaseRequest,
    ) -> StoreResult<Vec<Value>> {
        let token = word(request.token.bits());
        let stale_at = word(request.stale_at);
        let lease_for = whole_millis(request.lease_for);
        let arguments = |run: &mut Cmd, at: usize| {
            run.arg(&*keys[open[at]]).arg(&token).arg(&stale_at);
            run.arg(lease_for).arg(last_byte(request.limit));
        };
        LEASE
            .run(&self.connection, Repeat::Harmless, open.len(), 0, arguments)
            .await
    }

    async fn compare_and_fill(&self, fills: &[Fill]) -> StoreResult<Vec<Filled>> {
        self.check_lengths(fills.iter().map(|fill| &fill.value))?;
        let mut filled = Vec::with_capacity(fills.len());
        for fills in batches(fills, |fill| fill.value.len()) {
            let bytes = fills.iter().map(|fill| fill.value.len()).sum();
            let arguments = |run: &mut Cmd, at: usize| {
                let fill = &fills[at];
                run.arg(&*fill.key).arg(&word(fill.token.bits()));
                run.arg(&*fill.value).arg(whole_millis(fill.ttl));
            };
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
                filled.push(match self.count(reply)? {
                    0 => Filled::Refused,
                    _ => Filled::Stored,
                });
            }
        }
        Ok(filled)
    }

    async fn release_all(&self, keys: &[Bytes], token: LeaseToken) -> StoreResult<()> {
        let token = word(token.bits());
        for keys in keys.chunks(BATCH_COMMANDS) {
            let arguments = |run: &mut Cmd, at: usize| {
                run.arg(&*keys[at]).arg(&token);
            };
            let replies = RELEASE
                .run(&self.connection, Repeat::Harmless, keys.len(), 0, arguments)
                .await?;
            self.all_done(replies)?;
        }
        Ok(())
    }

    async fn expire_all(&self, keys: &[Bytes], wall: Millis) -> StoreResult<()> {
        let wall = word(wall);
        for keys in keys.chunks(BATCH_COMMANDS) {
            let arguments = |run: &mut Cmd, at: usize| {
                run.arg(&*keys[at]).arg(&wall);
            };
            let replies = EXPIRE
                .run(&self.connection, Repeat::Harmless, keys.len(), 0, arguments)
                .await?;
            self.all_done(replies)?;
        }
        Ok(())
    }

    async fn write(&self, writes: &[Write]) -> StoreResult<()> {
        self.check_lengths(writes.iter().map(|write| &write.value))?;
        for writes in batches(writes, |write| write.value.len()) {
            let bytes = writes.iter().map(|write| write.value.len()).sum();
            let batch = Batch::of(writes.iter().map(set)).carrying(bytes);
            self.all_done(self.connection.send(batch).await?)?;
        }
        Ok(())
    }

    async fn remove(&self, keys: &[Bytes]) -> StoreResult<u64> {
        let mut removed = 0;
        for keys in keys.chunks(BATCH_COMMANDS) {
            removed += self.unlink(keys.iter().map(|key| &**key)).await?;
        }
        Ok(removed)
    }

    /// UNLINK frees large values aside; where the server lacks it or forbids it, DEL does.
    async fn unlink<'k>(&self, keys: impl Iterator<Item = &'k [u8]> + Clone) -> StoreResult<u64> {
        let command = |name| {
            let mut command = redis::cmd(name);
            keys.clone().for_each(|key| {
                command.arg(key);
            });
            Batch::one(command)
        };
        let reply = self.ask(command("UNLINK")).await?;
        match reply {
            Value::ServerError(error) if is_not_available(&error) => {
                self.count(self.ask(command("DEL")).await?)
            }
            reply => self.count(reply),
        }
    }

    /// Walks over all keys of the database in steps, and removes those under the prefix.
    async fn remove_prefix(&self, prefix: &[u8]) -> StoreResult<u64> {
        let pattern = pattern_of(prefix);
        let mut removed = 0;
        let mut cursor = Vec::from(*b"0");
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&*cursor).arg("MATCH").arg(&*pattern);
            scan.arg("COUNT").arg(BATCH_COMMANDS);
            let (next, found) = self.scanned(self.ask(Batch::one(scan)).await?)?;
            // The server decides what a pattern matches; what may be removed is decided here.
            let ours = found.iter().filter(|key| key.starts_with(prefix));
            let ours: Vec<&[u8]> = ours.map(Vec::as_slice).collect();
            for keys in ours.chunks(BATCH_COMMANDS) {
                removed += self.unlink(keys.iter().copied()).await?;
            }
            if next == b"0" {
                return Ok(removed);
            }
            cursor = next;
        }
    }

    /// Sends one command, twice if the connection turns out to be broken.
    async fn ask(&self, command: Batch) -> StoreResult<Value> {
        let mut replies = self.connection.send_repeatable(command).await?;
        replies.pop().ok_or_else(|| self.senseless())
    }

    /// Values that Redis would take and readers would cut are refused before they are sent.
    fn check_lengths<'v>(&self, mut values: impl Iterator<Item = &'v Bytes>) -> StoreResult<()> {
        let limit = self.max_value_bytes;
        match values.find(|value| value.len() > limit) {
            Some(value) => Err(StoreError::refused(format!(
                "a value of {} bytes is over the limit of {limit} (RedisOptions::max_value_bytes)",
                value.len()
            ))),
            None => Ok(()),
        }
    }
}

/// What replies mean.
impl Redis {
    /// A value, or that there is none: nothing, an empty string, or another type of Redis.
    fn value(&self, reply: Value) -> StoreResult<Option<Bytes>> {
        match reply {
            Value::BulkString(bytes) if bytes.is_empty() => Ok(None),
            Value::BulkString(bytes) => Ok(Some(bytes.into())),
            Value::Nil => Ok(None),
            Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(None),
            other => Err(self.not_expected(other)),
        }
    }

    fn leased(&self, reply: Value) -> StoreResult<Leased> {
        let parts = match reply {
            Value::Array(parts) => <[Value; 2]>::try_from(parts).map_err(|_| self.senseless())?,
            other => return Err(self.not_expected(other)),
        };
        let [state, value] = parts;
        let value = self.value(value)?;
        match (state, value) {
            (Value::Int(1), Some(value)) => Ok(Leased::Value(value)),
            (Value::Int(2), stale) => Ok(Leased::Acquired { stale }),
            (Value::Int(3), stale) => Ok(Leased::Held { stale }),
            _ => Err(self.senseless()),
        }
    }

    fn scanned(&self, reply: Value) -> StoreResult<(Vec<u8>, Vec<Vec<u8>>)> {
        if let Value::ServerError(error) = &reply {
            return Err(refusal(self.connection.place(), error));
        }
        redis::from_redis_value(reply).map_err(|_| self.senseless())
    }

    fn count(&self, reply: Value) -> StoreResult<u64> {
        match reply {
            Value::Int(count) => Ok(count.try_into().unwrap_or(0)),
            other => Err(self.not_expected(other)),
        }
    }

    fn all_done(&self, replies: Vec<Value>) -> StoreResult<()> {
        replies.into_iter().try_for_each(|reply| match reply {
            Value::ServerError(error) => Err(refusal(self.connection.place(), &error)),
            _ => Ok(()),
        })
    }

    fn not_expected(&self, reply: Value) -> StoreError {
        match reply {
            Value::ServerError(error) => refusal(self.connection.place(), &error),
            _ => self.senseless(),
        }
    }

    fn senseless(&self) -> StoreError {
        let place = self.connection.place();
        StoreError::unavailable(format!(
            "what answers at {place} does not answer as Redis does"
        ))
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

    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.write(writes))
    }

    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.expire_all(keys, wall))
    }

    fn delete<'a>(&'a self, keys: &'a [Bytes]) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async { self.remove(keys).await.map(drop) })
    }

    fn clear<'a>(&'a self, prefix: &'a [u8]) -> BoxFuture<'a, StoreResult<u64>> {
        Box::pin(self.remove_prefix(prefix))
    }

    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async {
            self.connection.heal().await?;
            let reply = self.ask(Batch::one(redis::cmd("PING"))).await?;
            self.all_done(vec![reply])
        })
    }

    fn close(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async {
            self.connection.close();
            Ok(())
        })
    }
}

/// At most `limit` bytes and one more, which shows that there were more.
fn get_range(key: &Bytes, limit: usize) -> Cmd {
    let mut command = redis::cmd("GETRANGE");
    command.arg(&**key).arg(0).arg(last_byte(limit));
    command
}

/// Ranges of Redis include their end.
fn last_byte(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn set(write: &Write) -> Cmd {
    let mut command = redis::cmd("SET");
    command.arg(&*write.key).arg(&*write.value);
    command.arg("PX").arg(whole_millis(write.ttl));
    command
}

/// The longest time to live, a hundred years: Redis refuses one that overflows its clock.
const LONGEST_TTL_MS: u64 = 100 * 365 * 24 * 3_600 * 1_000;

/// What Redis takes as a time: at least one millisecond.
fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, LONGEST_TTL_MS)
}

/// A number as it stands in an envelope's header.
fn word(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

fn is_fresh(value: &Bytes, stale_at: Millis) -> bool {
    value.len() > Header::LEN
        && Header::parse(value).is_some_and(|header| header.fresh_until > stale_at)
}

/// The command does not exist there, or the user may not use it.
fn is_not_available(error: &ServerError) -> bool {
    let unknown = |details: &str| details.starts_with("unknown command");
    error.kind() == Some(ServerErrorKind::NoPerm) || error.details().is_some_and(unknown)
}

/// A glob that matches exactly the keys that begin with `prefix`.
fn pattern_of(prefix: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(prefix.len() + 1);
    for &byte in prefix {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\') {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}

/// Splits into batches of bounded length and weight. A single item may be heavier.
fn batches<T>(items: &[T], bytes_of: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |item: &&T| {
            bytes += bytes_of(item);
            bytes <= BATCH_BYTES
        };
        let count = rest.iter().take(BATCH_COMMANDS).take_while(fits).count();
        let (batch, left) = rest.split_at(count.max(1).min(rest.len()));
        rest = left;
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stay_within_what_redis_takes() {
        assert_eq!(whole_millis(Duration::ZERO), 1);
        assert_eq!(whole_millis(Duration::from_nanos(1)), 1);
        assert_eq!(whole_millis(Duration::from_millis(1_500)), 1_500);
        assert_eq!(whole_millis(Duration::MAX), LONGEST_TTL_MS);
    }

    #[test]
    fn a_pattern_takes_its_prefix_literally() {
        assert_eq!(pattern_of(b"shop:\xff"), b"shop:\xff*");
        assert_eq!(pattern_of(br"a*b?c[d]\"), br"a\*b\?c\[d\]\\*");
    }

    #[test]
    fn batches_are_bounded_in_length_and_weight() {
        let lengths = |items: &[usize]| -> Vec<usize> {
            batches(items, |item| *item).map(<[usize]>::len).collect()
        };
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[1; 2_500]), [1_000, 1_000, 500]);
        assert_eq!(lengths(&[BATCH_BYTES + 1, 1, BATCH_BYTES, 1]), [1, 1, 1, 1]);
        assert_eq!(lengths(&[BATCH_BYTES / 2; 4]), [2, 2]);
    }
}
