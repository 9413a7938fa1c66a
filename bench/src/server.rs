//! What a server and the kernel have counted.

use std::time::Duration;

use larder_testkit::{RedisServer, Reply};

use crate::Result;

/// How often a server has read from its clients so far: pipelined commands are read at once, so
/// this counts round trips, and what a script calls is not in it.
///
/// Asking counts as well.
///
/// # Errors
///
/// When the server does not say.
pub fn trips(server: &RedisServer) -> Result<u64> {
    let text = info(server, "stats")?;
    field(&text, "total_reads_processed:").ok_or_else(|| "no total_reads_processed".into())
}

/// The server's count of keys that match a glob.
///
/// # Errors
///
/// When the server does not say.
pub fn keys_like(server: &RedisServer, glob: &str) -> Result<usize> {
    match server.command(&["KEYS", glob])? {
        Reply::List(keys) => Ok(keys.len()),
        other => Err(format!("KEYS was answered with {other:?}").into()),
    }
}

fn info(server: &RedisServer, section: &str) -> Result<String> {
    match server.command(&["INFO", section])? {
        Reply::Bytes(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        other => Err(format!("INFO was answered with {other:?}").into()),
    }
}

/// The number behind `name` at the begin of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// The kernel's ticks per second, the same on every Linux that Rust's standard library runs on.
const TICKS_PER_SECOND: u64 = 100;
/// The size of a page of memory in bytes.
const PAGE_BYTES: u64 = 4096;

/// The processor time that this process has used, to 10 ms.
///
/// # Errors
///
/// Where there is no /proc.
pub fn cpu_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let ticks = ticks_of(&stat).ok_or("/proc/self/stat is not as proc(5) says")?;
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// User and system time. The name of the program comes before them, in brackets, and may contain
/// anything.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11);
    let mut next = || times.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// The memory that this process has resident, in bytes.
///
/// # Errors
///
/// Where there is no /proc.
pub fn resident_bytes() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').nth(1).map(str::parse::<u64>);
    Ok(pages.ok_or("/proc/self/statm is not as proc(5) says")?? * PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name_and_read_up_to_what_follows() {
        let text = "# Stats\r\ntotal_reads_processed:12\r\nkeyspace:db0:keys=3,expires=0\r\n";
        assert_eq!(field(text, "total_reads_processed:"), Some(12));
        assert_eq!(field(text, "keyspace:db0:keys="), Some(3));
        assert_eq!(field(text, "reads_processed:"), None);
        assert_eq!(field("n:\r\n", "n:"), None);
    }

    #[test]
    fn times_are_found_behind_any_name_of_a_program() {
        let stat = "7 (a) b (c) ) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0";
        assert_eq!(ticks_of(stat), Some(42));
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        assert!(cpu_time().unwrap() < Duration::from_secs(3600));
        assert!(resident_bytes().unwrap() > PAGE_BYTES);
    }
}
