//! How a cache behaves (about its entries) and how one call waits. Each option has one home.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::clock::{Millis, millis};
use crate::codec::Codec;
use crate::courier::Token;
use crate::error::{Error, Result};

/// A server keeps entries without TTL this long; every write renews it.
pub(crate) const NO_TTL_ON_SERVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long an entry is fresh where nothing else was said.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// No lifetime is longer, so that sums of times cannot overflow: about 100 years.
pub(crate) const LONGEST: Millis = 100 * 365 * 24 * 3600 * 1000;

/// A length of time: a [`Duration`], or text such as `"1h 30m"`, `"250ms"` or `"7d"`.
pub trait Span: sealed::Sealed {
    /// The duration, or a sentence that says what is wrong with it.
    #[doc(hidden)]
    fn into_duration(self) -> Result<Duration, String>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for std::time::Duration {}
    impl Sealed for &str {}
}

impl Span for Duration {
    fn into_duration(self) -> Result<Duration, String> {
        Ok(self)
    }
}

impl Span for &str {
    fn into_duration(self) -> Result<Duration, String> {
        parse_span(self)
    }
}

/// Reads a human duration; the error is a sentence for the person who typed it.
pub(crate) fn parse_span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|cause| {
        format!("`{text}` is not a duration ({cause}); write for example \"1h 30m\" or \"250ms\"")
    })
}

/// How much the memory tier of a cache may hold. Zero stores nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// At most this many entries.
    Entries(u64),
    /// At most this many bytes: keys, values and the table's own overhead.
    Bytes(u64),
}

/// How the entries of one cache behave.
///
/// The builder, a TOML file and the environment all fill this one struct. With the feature
/// `config` it implements `serde::Deserialize`; durations are then written as text (`"1h"`), and
/// `ttl = "none"` means that entries never expire.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct CacheOptions {
    /// The schema version of the value type. Entries of other versions are never read. Default 1.
    pub version: u32,
    /// How long an entry is fresh. `None` is for ever. Zero stores nothing. Default 1 h.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::span_or_none"))]
    pub ttl: Option<Duration>,
    /// The share of the TTL, 0 to 1, by which it is shortened at random, drawn once per fill, so
    /// that entries filled together do not expire together. Default 0.
    pub jitter: f64,
    /// The same as a fixed length of time: up to so much of the TTL is taken off at random, with the
    /// same draw as for `jitter` if both are set. At least 1 ms is left. Default 0.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::span"))]
    pub jitter_up_to: Duration,
    /// The TTL by its name in place of a number: one of those that
    /// [`LarderBuilder::ttl_class`](crate::LarderBuilder::ttl_class) lists. Naming a class and setting
    /// a `ttl` other than the default is an error. Default: none.
    pub class: Option<String>,
    /// Lets reads prolong an entry: `ttl` is then how long it lives without one, and this is how old
    /// it may become at most, counted from its load. See
    /// [`CacheBuilder::sliding`](crate::CacheBuilder::sliding). Default: reads prolong nothing.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::optional_span"))]
    pub sliding: Option<Duration>,
    /// The TTL by how often a key was asked for of late, from a shortest to a longest one, in place of
    /// `ttl`. In configuration `"1m..1h"`. See
    /// [`CacheBuilder::ttl_by_frequency`](crate::CacheBuilder::ttl_by_frequency). Default: none.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::optional_spans"))]
    pub ttl_by_frequency: Option<RangeInclusive<Duration>>,
    /// The share of its TTL, above 0 and below 1, behind which a read refreshes an entry in the
    /// background though it is fresh. Default: never.
    pub eager_refresh: Option<f64>,
    /// Refreshes an entry in the background before its TTL ends, at random: the longer its load took
    /// and the nearer the end, the likelier. The number, above 0, is how eager to be; 1 is the
    /// optimum of "Optimal Probabilistic Cache Stampede Prevention" (Vattani, Chierichetti and
    /// Lowenstein, 2015). Default: never.
    pub xfetch: Option<f64>,
    /// How long behind its TTL an entry is still served, while one load refreshes it in the
    /// background. Default 0.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::span"))]
    pub grace: Duration,
    /// How long behind its TTL an entry may stand in for a failed load. Never shorter than
    /// `grace`. Default 0.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::span"))]
    pub stale_on_error: Duration,
    /// After a failed load that a stale entry stood in for: how long that entry is served before
    /// the next try. Default 5 s.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::span"))]
    pub error_throttle: Duration,
    /// How long "there is no such value" is remembered. Default 0: not at all.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::span"))]
    pub negative_ttl: Duration,
    /// How long the memory tier serves an entry before it asks the tiers below again. Default:
    /// the shorter of the TTL and 60 s where a tier is shared with other processes, else the TTL.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::optional_span"))]
    pub memory_ttl: Option<Duration>,
    /// The bound of the memory tier in entries. At most one of the two bounds may be set. Under a
    /// bound of zero memory holds nothing: loads are served, and shared, all the same.
    pub capacity: Option<u64>,
    /// The bound of the memory tier in bytes, 48 for each entry's own needs included. Default 64 MiB.
    /// A value of up to 4 MiB, or up to the bound if that is less, always fits. A heavier one may be
    /// refused, which is counted as [`too_large`](crate::CacheStats::too_large) and evicts nothing.
    pub capacity_bytes: Option<u64>,
    /// Which entry leaves memory when room is needed. Default [`Policy::Adaptive`].
    pub policy: Policy,
    /// How long a load may take. Past it the load no longer counts. Default 30 s.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::span"))]
    pub load_deadline: Duration,
    /// How long a caller waits for a load where a stale entry may stand in: past that it is served,
    /// and the load goes on. Stale entries are kept for `grace` and `stale_on_error`. For reads of one
    /// key: a batch is waited for. Default: until the load has failed.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::optional_span"))]
    pub soft_deadline: Option<Duration>,
    /// How many loads of this cache run at once; more wait. What a closure does in front of its `async`
    /// block waits for no turn. Default 256.
    pub load_concurrency: usize,
    /// How many loads may wait for their turn; more fail as overloaded. Default 10,000.
    pub load_queue: usize,
    /// How long a lease in a shared tier lasts. A fill that comes later is refused, so it should
    /// not be shorter than the load. Default: the load deadline and one second.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::optional_span"))]
    pub lease: Option<Duration>,
    /// What to do with memory while neither bus nor shared tier can be asked. Default: serve it.
    pub isolation: Isolation,
    /// How long a read waits for a load that another process is doing before it loads for
    /// itself. Default 2 s.
    #[cfg_attr(feature = "config", serde(deserialize_with = "text::span"))]
    pub lease_wait: Duration,
    /// The format of values in the tiers below memory. Default MessagePack.
    pub codec: Codec,
    /// Encoded values over this many bytes are compressed with lz4. Default 1,024.
    pub compress_over: usize,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            version: 1,
            ttl: Some(DEFAULT_TTL),
            jitter: 0.0,
            jitter_up_to: Duration::ZERO,
            class: None,
            sliding: None,
            ttl_by_frequency: None,
            eager_refresh: None,
            xfetch: None,
            grace: Duration::ZERO,
            stale_on_error: Duration::ZERO,
            error_throttle: Duration::from_secs(5),
            negative_ttl: Duration::ZERO,
            memory_ttl: None,
            capacity: None,
            capacity_bytes: None,
            policy: Policy::default(),
            load_deadline: Duration::from_secs(30),
            soft_deadline: None,
            load_concurrency: 256,
            load_queue: 10_000,
            lease: None,
            isolation: Isolation::Serve,
            lease_wait: Duration::from_secs(2),
            codec: Codec::default(),
            compress_over: 1024,
        }
    }
}

impl CacheOptions {
    /// The bound of the memory tier; an error if both are set.
    pub fn memory_capacity(&self) -> Result<Capacity> {
        match (self.capacity, self.capacity_bytes) {
            (Some(_), Some(_)) => Err(Error::config(
                "capacity and capacity_bytes are both set; a cache is bounded by one of them",
            )),
            (Some(entries), None) => Ok(Capacity::Entries(entries)),
            (None, bytes) => Ok(Capacity::Bytes(bytes.unwrap_or(64 << 20))),
        }
    }

    /// Parses these options into what the engine works with.
    pub(crate) fn check(&self) -> Result<Rules> {
        if !(0.0..=1.0).contains(&self.jitter) {
            let jitter = self.jitter;
            return Err(Error::config(format!(
                "jitter is {jitter}; it is a share of the TTL, from 0 to 1"
            )));
        }
        if let Some(share) = self.eager_refresh
            && !(share > 0.0 && share < 1.0)
        {
            return Err(Error::config(format!(
                "eager_refresh is {share}; it is a share of the TTL, above 0 and below 1"
            )));
        }
        if let Some(beta) = self.xfetch
            && !(beta > 0.0 && beta.is_finite())
        {
            return Err(Error::config(format!(
                "xfetch is {beta}; it is a number above 0, and 1 is usual"
            )));
        }
        let sliding = self.check_sliding()?;
        let ttl_by_frequency = self.check_frequency()?;
        if self.load_concurrency == 0 || self.load_concurrency > tokio::sync::Semaphore::MAX_PERMITS
        {
            return Err(Error::config(
                "load_concurrency is out of range; at least one load must run",
            ));
        }
        if self.load_deadline.is_zero() {
            return Err(Error::config(
                "load_deadline is zero; every load would fail",
            ));
        }
        let lease = self
            .lease
            .unwrap_or(self.load_deadline.saturating_add(Duration::from_secs(1)));
        Ok(Rules {
            ttl: self.ttl.map_or(LONGEST, lifetime),
            no_ttl: self.ttl.is_none(),
            jitter: self.jitter,
            jitter_up_to: lifetime(self.jitter_up_to),
            sliding,
            ttl_by_frequency,
            early: Early {
                share: self.eager_refresh.unwrap_or(1.0),
                beta: self.xfetch.unwrap_or(0.0),
            },
            grace: lifetime(self.grace),
            stale: lifetime(self.grace.max(self.stale_on_error)),
            error_throttle: lifetime(self.error_throttle),
            negative_ttl: lifetime(self.negative_ttl),
            memory_ttl: self.memory_ttl.map(lifetime),
            load_deadline: self.load_deadline,
            soft_deadline: self.soft_deadline,
            lease,
            isolation: self.isolation,
            lease_wait: lifetime(self.lease_wait),
            compress_over: self.compress_over,
        })
    }
}

impl CacheOptions {
    /// How old an entry may become that reads prolong.
    fn check_sliding(&self) -> Result<Option<Millis>> {
        let Some(most) = self.sliding else {
            return Ok(None);
        };
        let problem = match self.ttl {
            None => {
                "sliding with no ttl; the ttl is how long an entry lives without a read, so set one"
            }
            Some(_) if most.is_zero() => {
                "sliding is zero; it is how old an entry may become at most, so give the longest age \
                 that you can bear"
            }
            Some(idle) if most < idle => {
                "sliding is shorter than the ttl; it is how old an entry may become at most, and the \
                 ttl how long it lives without a read: make the ttl shorter, or leave sliding out"
            }
            Some(_) => return Ok(Some(lifetime(most))),
        };
        Err(Error::config(problem))
    }
}

impl CacheOptions {
    /// The TTLs by frequency.
    fn check_frequency(&self) -> Result<Option<RangeInclusive<Millis>>> {
        let Some(ttls) = &self.ttl_by_frequency else {
            return Ok(None);
        };
        let (least, most) = (*ttls.start(), *ttls.end());
        let problem = if least.is_zero() {
            "ttl_by_frequency begins at zero, so that nothing would be stored that is new; give the \
             TTL of a key that was asked for once"
        } else if least > most {
            "ttl_by_frequency has a shortest TTL above the longest; give the shorter one first"
        } else if self.sliding.is_some() {
            "ttl_by_frequency and sliding are both set; either lets what is read live longer, so \
             leave one of them out"
        } else {
            return Ok(Some(lifetime(least)..=lifetime(most)));
        };
        Err(Error::config(problem))
    }
}

/// [`CacheOptions`] after parsing: milliseconds, clamped so that sums cannot overflow.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub ttl: Millis,
    pub no_ttl: bool,
    pub jitter: f64,
    pub jitter_up_to: Millis,
    /// How old an entry may become that reads prolong.
    pub sliding: Option<Millis>,
    /// From the TTL of a key that was just asked for the first time to that of a popular one.
    pub ttl_by_frequency: Option<RangeInclusive<Millis>>,
    pub early: Early,
    pub grace: Millis,
    pub stale: Millis,
    pub error_throttle: Millis,
    pub negative_ttl: Millis,
    pub memory_ttl: Option<Millis>,
    pub load_deadline: Duration,
    pub soft_deadline: Option<Duration>,
    pub lease: Duration,
    pub isolation: Isolation,
    pub lease_wait: Millis,
    pub compress_over: usize,
}

/// When an entry is refreshed though it is fresh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Early {
    /// The share of its TTL from which on a read does so; one is never.
    pub share: f64,
    /// How eager XFetch is; zero is not at all.
    pub beta: f64,
}

impl Early {
    #[inline]
    pub(crate) fn is_off(self) -> bool {
        self.share >= 1.0 && self.beta <= 0.0
    }
}

/// A lifetime in milliseconds: zero stays zero, below one is one, and the longest is clamped.
pub(crate) fn lifetime(duration: Duration) -> Millis {
    match millis(duration) {
        0 if !duration.is_zero() => 1,
        length => length.min(LONGEST),
    }
}

/// Which entry leaves memory when room is needed.
///
/// In options and configuration `adaptive`, `lru`, `lfu`, `fifo`, `random` or `no_eviction`. A large
/// cache is divided into shards by the hash of the key, and each shard follows its policy alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Policy {
    /// Two queues in the manner of S3-FIFO, steered by what was evicted too early. It resists scans
    /// and loops, follows shifts, and reads share a lock. The right choice unless you know better.
    #[default]
    Adaptive,
    /// The least recently used entry. Reads take an exclusive lock.
    Lru,
    /// The least often used entry, of several the one that was used least recently; uses are counted
    /// up to 255, and never forgotten. Reads take an exclusive lock.
    Lfu,
    /// The oldest entry, whether it is read or not.
    Fifo,
    /// Any entry.
    Random,
    /// None: what does not fit is not stored. Writing it where there is no other tier is an error of
    /// kind [`Overloaded`](crate::ErrorKind::Overloaded); what a load brings is served all the same.
    NoEviction,
}

impl Policy {
    /// Whether a read changes the order of the entries.
    #[inline]
    pub(crate) fn reorders_on_read(self) -> bool {
        matches!(self, Self::Lru | Self::Lfu)
    }
}

/// Why an entry left memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RemovalCause {
    /// Its time was over. Noticed when somebody meets it, by a later insert or
    /// [`Cache::sweep`](crate::Cache::sweep).
    Expired,
    /// Others needed the room.
    Evicted,
    /// A newer value of its key came.
    Replaced,
    /// It was invalidated, or its cache was cleared. What a tag or a group invalidated is not served
    /// from then on, but leaves later, for one of the other causes.
    Removed,
}

/// What to do with entries in memory that may have been invalidated by another process, when
/// neither the bus nor the shared tier can be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Isolation {
    /// Serve them until their memory TTL ends, and count it.
    #[default]
    Serve,
    /// Load them anew.
    Load,
}

/// How one call reads and waits. Options about the entry are not here but in [`CacheOptions`]
/// and `Loaded`, because callers that share one load share its entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    pub(crate) deadline: Option<Duration>,
    pub(crate) max_stale: Option<Duration>,
    pub(crate) tiers: Tiers,
    pub(crate) after: Option<Token>,
    /// Whether the state to be seen is one that this process has not heard of yet.
    pub(crate) unheard: bool,
}

/// Which tiers a call looks in. Calls share a load with those that look in the same tiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tiers {
    /// Memory, then the tiers below it.
    #[default]
    All,
    /// Memory alone; what is loaded is stored there alone.
    Memory,
    /// The tiers below memory alone: the answer is as new as they are.
    Shared,
}

impl Read {
    /// The same as [`Read::new`], where a reference that outlives the call is wanted.
    pub(crate) const PLAIN: Self = Self {
        deadline: None,
        max_stale: None,
        tiers: Tiers::All,
        after: None,
        unheard: false,
    };

    /// The way every call reads unless told otherwise.
    pub fn new() -> Self {
        Self::PLAIN
    }

    /// How long this caller waits. Past it the call fails, or serves what is stale; a load that
    /// is running goes on for the others.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use std::time::Duration;
    ///
    /// use larder::{Cache, Larder, Read};
    ///
    /// let cache: Cache<u64, u64> = Larder::local().cache("slow").in_memory()?;
    /// let hurried = cache.with(Read::new().deadline(Duration::from_millis(20)));
    /// let hangs = |_| std::future::pending::<std::io::Result<u64>>();
    /// assert!(hurried.get_or_load(&7, hangs).await.unwrap_err().is_timeout());
    /// # Ok(()) }
    /// ```
    pub fn deadline(self, deadline: Duration) -> Self {
        Self {
            deadline: Some(deadline),
            ..self
        }
    }

    /// How far behind its TTL an entry may be to be served to this caller.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use std::time::Duration;
    ///
    /// use larder::{Cache, Larder, Read};
    ///
    /// let menus: Cache<u64, u32> =
    ///     Larder::local().cache("menu").ttl("1h").grace("6h").in_memory()?;
    /// let _ = menus.set(7, 1).await?;
    /// let _ = menus.expire(&7).await?; // as if its hour were over
    /// let strict = menus.with(Read::new().max_stale(Duration::ZERO));
    /// let load = |_| async { Ok::<_, std::io::Error>(2) };
    /// assert_eq!(*strict.get_or_load(&7, load).await?, 2); // others would be served 1
    /// # Ok(()) }
    /// ```
    pub fn max_stale(self, max_stale: Duration) -> Self {
        Self {
            max_stale: Some(max_stale),
            ..self
        }
    }

    /// Reads no older state than the invalidation or write left behind that gave `token`, wherever
    /// it was made. If this process has not heard of it yet, the read waits for it, and after the
    /// tier budget asks the tiers below memory. It is never served what nobody could be asked about,
    /// as [`Isolation::Serve`] would.
    pub fn after(self, token: Token) -> Self {
        Self {
            after: Some(token),
            ..self
        }
    }

    /// Which tiers to look in.
    pub fn tiers(self, tiers: Tiers) -> Self {
        Self { tiers, ..self }
    }
}

#[cfg(feature = "config")]
mod text {
    use std::ops::RangeInclusive;
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de::Error as _};

    use super::parse_span;

    pub(super) fn span<'de, D: Deserializer<'de>>(source: D) -> Result<Duration, D::Error> {
        parse_span(&String::deserialize(source)?).map_err(D::Error::custom)
    }

    pub(super) fn optional_span<'de, D: Deserializer<'de>>(
        source: D,
    ) -> Result<Option<Duration>, D::Error> {
        span(source).map(Some)
    }

    pub(super) fn optional_spans<'de, D: Deserializer<'de>>(
        source: D,
    ) -> Result<Option<RangeInclusive<Duration>>, D::Error> {
        let text = String::deserialize(source)?;
        let (least, most) = text.split_once("..").ok_or_else(|| {
            let form = "write the shortest and the longest with two dots between, as \"1m..1h\"";
            D::Error::custom(format!("`{text}` is no range of durations; {form}"))
        })?;
        let span = |text: &str| parse_span(text.trim()).map_err(D::Error::custom);
        Ok(Some(span(least)?..=span(most)?))
    }

    pub(super) fn span_or_none<'de, D: Deserializer<'de>>(
        source: D,
    ) -> Result<Option<Duration>, D::Error> {
        match String::deserialize(source)?.as_str() {
            "none" => Ok(None),
            text => parse_span(text).map(Some).map_err(D::Error::custom),
        }
    }
}

#[cfg(all(test, feature = "config"))]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_written_as_text() {
        let text = r#"{"class": "search", "jitter_up_to": "30s", "sliding": "12h",
            "ttl_by_frequency": "1m .. 1h 30m"}"#;
        let options: CacheOptions = serde_json::from_str(text).unwrap();
        let secs = Duration::from_secs;
        assert_eq!(options.class.as_deref(), Some("search"));
        assert_eq!(options.jitter_up_to, secs(30));
        assert_eq!(options.sliding, Some(secs(12 * 3600)));
        assert_eq!(options.ttl_by_frequency, Some(secs(60)..=secs(5400)));
        for wrong in ["1m", "soon..1h", "1m..", "1m-1h"] {
            let text = format!(r#"{{"ttl_by_frequency": "{wrong}"}}"#);
            let error = serde_json::from_str::<CacheOptions>(&text).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("1m..1h") || error.contains("1h 30m"),
                "{error}"
            );
        }
    }
}
