use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisResult,
};

use crate::error::ConfigError;

/// How [`Redis`](crate::Redis) connects and what it bounds. Every field has a default.
///
/// ```
/// use std::time::Duration;
/// use larder_redis::{Redis, RedisOptions};
///
/// let options = RedisOptions {
///     connect_timeout: Duration::from_secs(2), // a server far away
///     ..RedisOptions::default()
/// };
/// let redis = Redis::with_options("redis://cache.example:6379", options)?;
/// # Ok::<(), larder_redis::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisOptions {
    /// How long one attempt to connect may take: name look-up, connection and password. Default
    /// 500 ms.
    pub connect_timeout: Duration,
    /// How long a command may wait for its answer. If the connection brought no answer at all
    /// meanwhile, it is given up and made anew; so this must be longer than the largest value
    /// takes on its way. Default 1 s.
    pub response_timeout: Duration,
    /// The longest pause between attempts to connect, during which calls fail at once. The first
    /// pause is 10 ms, each further one twice as long. Default 250 ms, at most 500 ms.
    pub reconnect_max_delay: Duration,
    /// How many commands may wait for their answers at once; what is written counts as one more
    /// for every 16 KiB. Calls beyond it wait, or fail at once if the server stopped answering.
    /// Default 4,096.
    pub max_in_flight: u32,
    /// The longest value in bytes, envelope included. Default 16 MiB, at most 512 MiB.
    pub max_value_bytes: usize,
    /// How many messages the journal of a bus keeps, some more at times. Whoever was away for more
    /// of them has to ask for everything anew. Default 100,000, at most 10,000,000.
    pub journal_messages: u32,
    /// How the bus tells. All processes of a namespace should use the same. Default
    /// [`BusKind::PubSub`].
    pub bus: BusKind,
}

/// How a bus on Redis tells its listeners. Messages are numbered and journalled in the same way, so
/// that processes of both kinds lose nothing to each other; those with `PubSub` hear of the others at
/// the next beat only, up to a second later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusKind {
    /// Messages are published to a channel. Each listener has a connection of its own.
    #[default]
    PubSub,
    /// The server watches what the connection of the tier reads (`CLIENT TRACKING`, Redis 7 or
    /// Valkey), and pushes the keys that anybody changes: other processes, `redis-cli`, programs in
    /// other languages, evictions. Needs no channel and no second connection.
    ///
    /// The server remembers up to `tracking-table-max-keys` keys that its clients have read, a million
    /// by default; beyond that it forgets some and says so, which costs hits.
    Tracking,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_millis(500),
            response_timeout: Duration::from_secs(1),
            reconnect_max_delay: Duration::from_millis(250),
            max_in_flight: 4_096,
            max_value_bytes: 16 << 20,
            journal_messages: 100_000,
            bus: BusKind::default(),
        }
    }
}

/// What Redis itself takes as one string.
const LONGEST_STRING: usize = 512 << 20;
/// Recovery is promised within two seconds, so no pause may take much of that.
const LONGEST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_JOURNAL: u32 = 10_000_000;

/// A URL and options that were checked.
pub(crate) struct Plan {
    pub(crate) client: Client,
    pub(crate) config: AsyncConnectionConfig,
    /// Host and port, or the path of a socket: what messages call the server.
    pub(crate) place: Box<str>,
    pub(crate) database: i64,
    pub(crate) tracking: Tracking,
    pub(crate) options: RedisOptions,
}

/// Which of the keys that a connection reads the server watches for it (`CLIENT TRACKING`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracking {
    Off,
    /// Those that it asks for, each time.
    OptIn,
    /// All, until somebody else changes them.
    All,
}

impl Plan {
    pub(crate) fn new(url: &str, options: RedisOptions) -> Result<Self, ConfigError> {
        let info = parse(url)?;
        check(&options)?;
        let place = info.addr().to_string().into();
        let database = info.redis_settings().db();
        // Commands of many callers share the connection: none may wait for another's answer.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).map_err(|error| wrong_url(url, &error.to_string()))?;
        // The time to connect is bounded together with what is said first on the connection.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(options.response_timeout));
        Ok(Self {
            client,
            config,
            place,
            database,
            tracking: match options.bus {
                BusKind::PubSub => Tracking::Off,
                BusKind::Tracking => Tracking::All,
            },
            options,
        })
    }

    /// The same server over a connection on which it watches keys.
    pub(crate) fn tracking(&self, tracking: Tracking) -> Self {
        Self {
            client: self.client.clone(),
            config: self.config.clone(),
            place: self.place.clone(),
            database: self.database,
            tracking,
            options: self.options.clone(),
        }
    }

    /// A client that speaks RESP3, in which a server pushes.
    pub(crate) fn pushing_client(&self) -> RedisResult<Client> {
        let info = self.client.get_connection_info().clone();
        let settings = info.redis_settings().clone();
        let settings = settings.set_protocol(ProtocolVersion::RESP3);
        Client::open(info.set_redis_settings(settings))
    }
}

fn parse(url: &str) -> Result<ConnectionInfo, ConfigError> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    match scheme {
        Some("redis" | "valkey" | "unix" | "redis+unix" | "valkey+unix") => {}
        Some("rediss" | "valkeys") => {
            return Err(wrong_url(url, "TLS is not supported yet"));
        }
        Some(other) => {
            return Err(wrong_url(
                url,
                &format!("{other}:// is not a scheme of Redis"),
            ));
        }
        None => return Err(wrong_url(url, "it does not begin with redis://")),
    }
    match redis::parse_redis_url(url) {
        Some(parsed) => parsed
            .into_connection_info()
            .map_err(|error| wrong_url(url, &plain(&error))),
        None => Err(wrong_url(url, "host or port cannot be read")),
    }
}

/// The client's words without its category in front: `Missing hostname`, `Invalid database number`.
fn plain(error: &redis::RedisError) -> String {
    let words = error.to_string();
    let words = words.split(" - ").next().unwrap_or_default();
    words.to_lowercase()
}

fn wrong_url(url: &str, why: &str) -> ConfigError {
    ConfigError::new(format!(
        "{:?} is not a Redis URL: {why}; write it like redis://user:password@127.0.0.1:6379/0",
        without_password(url)
    ))
}

/// Everything that may be a name or password is cut out, also where the rest is not a URL.
fn without_password(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    match url.rfind('@') {
        Some(end) if end >= start => format!("{}…{}", &url[..start], &url[end..]),
        Some(_) | None => url.into(),
    }
}

fn check(options: &RedisOptions) -> Result<(), ConfigError> {
    let wrong = if options.connect_timeout.is_zero() {
        "connect_timeout is 0; a working value is 500 ms"
    } else if options.response_timeout.is_zero() {
        "response_timeout is 0; a working value is 1 s"
    } else if options.reconnect_max_delay.is_zero() || options.reconnect_max_delay > LONGEST_DELAY {
        "reconnect_max_delay must be between 1 ms and 500 ms"
    } else if options.max_in_flight == 0 {
        "max_in_flight is 0; a working value is 4096"
    } else if options.max_value_bytes == 0 || options.max_value_bytes > LONGEST_STRING {
        "max_value_bytes must be between 1 and 512 MiB, the longest string that Redis takes"
    } else if options.journal_messages == 0 || options.journal_messages > LONGEST_JOURNAL {
        "journal_messages must be between 1 and 10,000,000"
    } else {
        return Ok(());
    };
    Err(ConfigError::new(format!("RedisOptions: {wrong}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        match Plan::new(url, RedisOptions::default()) {
            Ok(plan) => panic!("{url} was taken as {}", plan.place),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn usual_urls_are_taken() {
        for (url, place, database) in [
            ("redis://127.0.0.1", "127.0.0.1:6379", 0),
            ("redis://cache:7000/3", "cache:7000", 3),
            ("valkey://user:p%40ss@cache", "cache:6379", 0),
            ("redis://:secret@[::1]:7000", "::1:7000", 0),
            ("unix:///run/redis.sock", "/run/redis.sock", 0),
        ] {
            let plan = Plan::new(url, RedisOptions::default()).unwrap();
            assert_eq!((&*plan.place, plan.database), (place, database), "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_one_sentence_with_the_reason_and_an_example() {
        for (url, reason) in [
            ("", "does not begin with redis://"),
            ("localhost:6379", "does not begin with redis://"),
            ("http://localhost", "http:// is not a scheme of Redis"),
            ("rediss://localhost", "TLS is not supported"),
            ("redis://localhost:port", "host or port"),
            ("redis://localhost:70000", "host or port"),
            ("redis:///", "hostname"),
            ("redis://localhost/zero", "database number"),
            ("redis://0.0.0.0", "wildcard"),
        ] {
            let message = refused(url);
            assert!(message.contains(reason), "{url}: {message}");
            assert!(
                message.contains("redis://user:password@127.0.0.1"),
                "{message}"
            );
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn no_message_repeats_a_password() {
        for url in [
            "redis://:hunter2@localhost:port",
            "redis://user:hunter2@localhost/zero",
            "http://user:hunter2@localhost",
            "user:hunter2@localhost",
            "redis://user:hunt@er2:hunter2@localhost:x",
        ] {
            let message = refused(url);
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        type Change = fn(&mut RedisOptions);
        let with = |change: Change| {
            let mut options = RedisOptions::default();
            change(&mut options);
            Plan::new("redis://localhost", options).err()
        };
        let changes: [(&str, Change); 8] = [
            ("connect_timeout", |o| o.connect_timeout = Duration::ZERO),
            ("response_timeout", |o| o.response_timeout = Duration::ZERO),
            ("reconnect_max_delay", |o| {
                o.reconnect_max_delay = Duration::from_secs(1)
            }),
            ("max_in_flight", |o| o.max_in_flight = 0),
            ("max_value_bytes", |o| o.max_value_bytes = 0),
            ("max_value_bytes", |o| o.max_value_bytes = usize::MAX),
            ("journal_messages", |o| o.journal_messages = 0),
            ("journal_messages", |o| o.journal_messages = u32::MAX),
        ];
        for (field, change) in changes {
            let message = with(change).unwrap().to_string();
            assert!(message.contains(field), "{message}");
        }
        assert_eq!(with(|_| {}), None);
    }
}
