//! What is sent: commands, their arguments, and how many of them at once.

use std::time::Duration;

use bytes::Bytes;
use larder::store::{Tagged, Write};
use redis::Cmd;

/// How many commands one round trip carries at most.
pub(crate) const BATCH_COMMANDS: usize = 1_000;
/// How many bytes of values one round trip carries, unless a single value is longer.
const BATCH_BYTES: usize = 16 << 20;

/// At most `limit` bytes and one more, which shows that there were more.
pub(crate) fn get_range(key: &Bytes, limit: usize) -> Cmd {
    let mut command = redis::cmd("GETRANGE");
    command.arg(&**key).arg(0).arg(last_byte(limit));
    command
}

/// Ranges of Redis include their end.
pub(crate) fn last_byte(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

pub(crate) fn set(write: &Write) -> Cmd {
    let mut command = redis::cmd("SET");
    command.arg(&*write.key).arg(&*write.value);
    command.arg("PX").arg(whole_millis(write.ttl));
    command
}

/// The longest time to live, a hundred years: Redis refuses one that overflows its clock.
const LONGEST_TTL_MS: u64 = 100 * 365 * 24 * 3_600 * 1_000;

/// What Redis takes as a time: at least one millisecond.
pub(crate) fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, LONGEST_TTL_MS)
}

/// A number as it stands in an envelope's header.
pub(crate) fn word(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// Bytes that a value and the names of its records take on their way.
pub(crate) fn weight(value: &Bytes, tags: Option<&Tagged>) -> usize {
    let records = tags.map_or(&[][..], |tags| &tags.records);
    value.len() + records.iter().map(Bytes::len).sum::<usize>()
}

/// The key of an entry, and with tags the counter and the records behind it.
pub(crate) fn keys_with_tags<'k>(key: &'k Bytes, tags: Option<&'k Tagged>) -> Vec<&'k [u8]> {
    let mut keys = vec![&**key];
    if let Some(tags) = tags {
        keys.push(&tags.counter);
        keys.extend(tags.records.iter().map(|record| &**record));
    }
    keys
}

/// What the scripts take that store a value.
pub(crate) fn add_value(run: &mut Cmd, value: &Bytes, ttl: Duration, tags: Option<&Tagged>) {
    run.arg(&**value).arg(whole_millis(ttl));
    let Some(tags) = tags else {
        return;
    };
    match tags.since {
        Some(since) => run.arg([word(since.incarnation), word(since.count)].concat()),
        None => run.arg(""),
    };
    run.arg(record_millis(ttl)).arg(&new_incarnation());
}

/// How long a record of a tag is kept beside a value of this time to live: longer, so that the next
/// values find it and need not prolong it each time.
pub(crate) fn record_millis(ttl: Duration) -> u64 {
    const AT_LEAST: Duration = Duration::from_secs(3_600);
    whole_millis(ttl.saturating_mul(2).max(AT_LEAST))
}

/// What a counter that does not exist begins with.
pub(crate) fn new_incarnation() -> [u8; 8] {
    word(fastrand::u64(1..))
}

/// Makes the counter if it is not there, and moves it on.
pub(crate) fn move_on(counter: &Bytes) -> [Cmd; 2] {
    let mut begin = redis::cmd("HSETNX");
    begin.arg(&**counter).arg("i").arg(&new_incarnation());
    let mut step = redis::cmd("HINCRBY");
    step.arg(&**counter).arg("n").arg(1);
    [begin, step]
}

pub(crate) fn removal<'k>(command: &str, keys: impl Iterator<Item = &'k [u8]>) -> Cmd {
    let mut command = redis::cmd(command);
    keys.for_each(|key| {
        command.arg(key);
    });
    command
}

/// A glob that matches exactly the keys that begin with `prefix`.
pub(crate) fn pattern_of(prefix: &[u8]) -> Vec<u8> {
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
pub(crate) fn batches<T>(
    items: &[T],
    bytes_of: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
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
    fn records_outlive_their_values() {
        assert_eq!(record_millis(Duration::ZERO), 3_600_000);
        assert_eq!(record_millis(Duration::from_secs(3_600)), 7_200_000);
        assert_eq!(record_millis(Duration::MAX), LONGEST_TTL_MS);
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
