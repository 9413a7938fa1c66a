use std::fmt;

use larder::store::StoreError;
use redis::{ErrorKind, RedisError, ServerError, ServerErrorKind};

/// A URL or an option that cannot work. Its text is one sentence that says which and why, and
/// never holds the password of the URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    message: String,
}

impl ConfigError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// What a command that was answered with an error means for the tier at `place`.
pub(crate) fn refusal(place: &str, error: &ServerError) -> StoreError {
    let code = error.code();
    let said = format!("{code} {}", without_arguments(error.details()));
    if passes_by_itself(error) {
        return StoreError::unavailable(format!("Redis at {place} is not ready: {said}"));
    }
    StoreError::refused(format!("Redis at {place} refused: {said}{}", remedy(&said)))
}

/// What a request that was not answered, or a connection that was not made, means for the tier.
pub(crate) fn failure(place: &str, error: RedisError) -> StoreError {
    if error.kind() == ErrorKind::AuthenticationFailed {
        return StoreError::refused(format!(
            "Redis at {place} refused the user name or password of the URL"
        ));
    }
    if let Ok(error) = ServerError::try_from(error.clone()) {
        return refusal(place, &error);
    }
    // The password was taken, and what followed it was not: there is no such database.
    if let ErrorKind::Server(_) = error.kind() {
        let said = without_arguments(error.detail());
        return StoreError::refused(format!("Redis at {place} refused the connection: {said}"));
    }
    if error.is_timeout() {
        return StoreError::unavailable(format!("Redis at {place} does not answer"));
    }
    StoreError::unavailable(format!("Redis at {place} cannot be reached")).with_source(error)
}

/// Whether the same command may succeed later although nobody changes anything.
fn passes_by_itself(error: &ServerError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, TryAgain};
    let waiting = [BusyLoading, ClusterDown, MasterDown, TryAgain];
    error.kind().is_some_and(|kind| waiting.contains(&kind)) || error.code() == "BUSY"
}

/// The server has no such command, or the operator renamed it.
pub(crate) fn is_unknown_command(error: &ServerError) -> bool {
    let unknown = |details: &str| details.starts_with("unknown command");
    error.details().is_some_and(unknown)
}

/// A server that does not know a command repeats its arguments, and those hold keys and values.
fn without_arguments(details: Option<&str>) -> &str {
    let details = details.unwrap_or_default();
    let end = details.find(", with args").unwrap_or(details.len());
    details[..end].trim_end()
}

/// What the operator can do, where it is not in the server's own words.
fn remedy(said: &str) -> &'static str {
    // What a script may not run shows as an error of the script.
    let code = match said.split_once(' ') {
        Some((_, details)) if details.contains("user executing the script") => "NOPERM",
        Some((code, _)) => code,
        None => said,
    };
    match code {
        "OOM" => " (raise maxmemory, or set maxmemory-policy to allkeys-lru)",
        "READONLY" => " (the URL names a replica; name the primary)",
        "NOAUTH" => " (put the password into the URL: redis://:PASSWORD@HOST)",
        "NOPERM" => " (grant the user of the URL larder's commands, keys and channels)",
        "MOVED" | "ASK" | "CROSSSLOT" => " (a Redis Cluster is not supported)",
        "ERR" if said.contains("unknown command") && said.contains("EVAL") => {
            " (larder needs a server that runs Lua scripts)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use larder::store::StoreErrorKind::{Refused, Unavailable};
    use redis::Value;

    use super::*;

    fn said(line: &str) -> StoreError {
        match redis::parse_redis_value(line.as_bytes()) {
            Ok(Value::ServerError(error)) => refusal("cache:6379", &error),
            other => panic!("{line} is an error, not {other:?}"),
        }
    }

    #[test]
    fn what_passes_by_itself_is_unavailable_and_all_else_refused() {
        for (line, kind) in [
            (
                "-LOADING Redis is loading the dataset in memory\r\n",
                Unavailable,
            ),
            ("-BUSY Redis is busy running a script\r\n", Unavailable),
            ("-MASTERDOWN Link with MASTER is down\r\n", Unavailable),
            ("-CLUSTERDOWN The cluster is down\r\n", Unavailable),
            ("-OOM command not allowed\r\n", Refused),
            (
                "-READONLY You can't write against a read only replica.\r\n",
                Refused,
            ),
            ("-NOAUTH Authentication required.\r\n", Refused),
            ("-NOPERM this user has no permissions\r\n", Refused),
            ("-ERR something\r\n", Refused),
            (
                "-MISCONF Redis is configured to save RDB snapshots\r\n",
                Refused,
            ),
        ] {
            let error = said(line);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains("cache:6379"), "{error}");
            assert!(error.to_string().contains(line[1..].trim_end()), "{error}");
        }
    }

    #[test]
    fn arguments_that_a_server_repeats_are_cut_off() {
        let error = said("-ERR unknown command 'SET', with args beginning with: 'k' 'secret' \r\n");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(
            error.to_string().contains("unknown command 'SET'"),
            "{error}"
        );
    }
}
