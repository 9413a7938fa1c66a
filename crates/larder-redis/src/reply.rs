//! What replies mean. A reply that makes no sense is a fault of whatever answers there.

use bytes::Bytes;
use larder::store::{Filled, Leased, Position, StoreError, StoreResult};
use redis::{ServerError, ServerErrorKind, Value};

use crate::error::{is_unknown_command, refusal};

/// Reads the replies of the server at one place.
#[derive(Clone, Copy)]
pub(crate) struct Replies<'a> {
    pub(crate) place: &'a str,
}

impl Replies<'_> {
    /// A value, or that there is none: nothing, an empty string, or another type of Redis.
    pub(crate) fn value(self, reply: Value) -> StoreResult<Option<Bytes>> {
        match reply {
            Value::BulkString(bytes) if bytes.is_empty() => Ok(None),
            Value::BulkString(bytes) => Ok(Some(bytes.into())),
            Value::Nil => Ok(None),
            Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(None),
            other => Err(self.not_expected(other)),
        }
    }

    /// `{1, value}`, `{2, stale}`, `{2, stale, position}` or `{3, stale}`.
    pub(crate) fn leased(self, reply: Value) -> StoreResult<Leased> {
        let mut parts = match reply {
            Value::Array(parts) => parts.into_iter(),
            other => return Err(self.not_expected(other)),
        };
        let (state, value, at) = (parts.next(), parts.next(), parts.next());
        let value = self.value(value.ok_or_else(|| self.senseless())?)?;
        let since = match at {
            Some(at) => Some(self.position(at)?),
            None => None,
        };
        match (state, value) {
            (Some(Value::Int(1)), Some(value)) => Ok(Leased::Value(value)),
            (Some(Value::Int(2)), stale) => Ok(Leased::Acquired { stale, since }),
            (Some(Value::Int(3)), stale) => Ok(Leased::Held { stale }),
            _ => Err(self.senseless()),
        }
    }

    fn position(self, reply: Value) -> StoreResult<Position> {
        match words(&self.bytes(reply)?) {
            Some(words) if words.len() == 2 => Ok(Position {
                incarnation: words[0],
                count: words[1],
            }),
            _ => Err(self.senseless()),
        }
    }

    /// 0, or the versions that were stored.
    pub(crate) fn filled(self, reply: Value) -> StoreResult<Filled> {
        if let Value::Int(0) = reply {
            return Ok(Filled::Refused);
        }
        let versions = words(&self.bytes(reply)?).ok_or_else(|| self.senseless())?;
        Ok(Filled::Stored { versions })
    }

    fn bytes(self, reply: Value) -> StoreResult<Vec<u8>> {
        match reply {
            Value::BulkString(bytes) => Ok(bytes),
            other => Err(self.not_expected(other)),
        }
    }

    /// The next cursor, and the keys of this step.
    pub(crate) fn scanned(self, reply: Value) -> StoreResult<(Vec<u8>, Vec<Vec<u8>>)> {
        match reply {
            Value::ServerError(error) if is_not_available(&error) => {
                let said = refusal(self.place, &error);
                Err(StoreError::unsupported(format!(
                    "keys cannot be enumerated without SCAN: {said}"
                )))
            }
            Value::ServerError(error) => Err(refusal(self.place, &error)),
            reply => redis::from_redis_value(reply).map_err(|_| self.senseless()),
        }
    }

    /// Numbers of members. What somebody else wrote there and is no such number is left out.
    pub(crate) fn members(self, reply: Value) -> StoreResult<Vec<u32>> {
        let parts = match reply {
            Value::Array(parts) => parts,
            other => return Err(self.not_expected(other)),
        };
        let member = |part| match part {
            Value::BulkString(bytes) => std::str::from_utf8(&bytes).ok()?.parse().ok(),
            _ => None,
        };
        Ok(parts.into_iter().filter_map(member).collect())
    }

    /// What TIME says, in milliseconds.
    pub(crate) fn time(self, reply: Value) -> StoreResult<u64> {
        let parts = match reply {
            Value::Array(parts) => parts,
            other => return Err(self.not_expected(other)),
        };
        let number = |part: &Value| match part {
            Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
            _ => None,
        };
        match &parts[..] {
            [seconds, micros] => number(seconds)
                .zip(number(micros))
                .map(|(seconds, micros)| seconds.saturating_mul(1_000) + micros / 1_000)
                .ok_or_else(|| self.senseless()),
            _ => Err(self.senseless()),
        }
    }

    pub(crate) fn count(self, reply: Value) -> StoreResult<u64> {
        match reply {
            Value::Int(count) => Ok(count.try_into().unwrap_or(0)),
            other => Err(self.not_expected(other)),
        }
    }

    pub(crate) fn all_done(self, replies: Vec<Value>) -> StoreResult<()> {
        replies.into_iter().try_for_each(|reply| match reply {
            Value::ServerError(error) => Err(refusal(self.place, &error)),
            _ => Ok(()),
        })
    }

    pub(crate) fn not_expected(self, reply: Value) -> StoreError {
        match reply {
            Value::ServerError(error) => refusal(self.place, &error),
            _ => self.senseless(),
        }
    }

    pub(crate) fn senseless(self) -> StoreError {
        let place = self.place;
        StoreError::unavailable(format!(
            "what answers at {place} does not answer as Redis does"
        ))
    }
}

/// The command does not exist there, or the user may not use it.
pub(crate) fn is_not_available(error: &ServerError) -> bool {
    error.kind() == Some(ServerErrorKind::NoPerm) || is_unknown_command(error)
}

/// What became of moving a counter.
#[derive(Debug, PartialEq)]
pub(crate) enum Moved {
    Yes,
    /// The server has no memory for it, or something else stands under its key. Removing the
    /// counter ends its incarnation, which says at least as much.
    CannotBeWritten,
    /// The server takes no writes at all, or not these.
    Refused(ServerError),
}

pub(crate) fn moved(replies: impl IntoIterator<Item = Value>) -> Moved {
    let errors = replies.into_iter().filter_map(|reply| match reply {
        Value::ServerError(error) => Some(error),
        _ => None,
    });
    errors.fold(Moved::Yes, |_, error| match error.code() {
        "OOM" | "WRONGTYPE" => Moved::CannotBeWritten,
        // A field that is no number, or the highest one.
        "ERR" if !is_not_available(&error) => Moved::CannotBeWritten,
        _ => Moved::Refused(error),
    })
}

/// Words of eight bytes, as the scripts return them.
fn words(bytes: &[u8]) -> Option<Vec<u64>> {
    let (words, rest) = bytes.as_chunks();
    rest.is_empty()
        .then(|| words.iter().map(|word| u64::from_be_bytes(*word)).collect())
}
