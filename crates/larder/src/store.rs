//! What a tier below memory must be able to do.
//!
//! A store moves bytes: it knows neither types nor expiry rules. The bytes it holds are
//! [envelopes](crate::envelope), whose [header](crate::envelope::Header) a store may read and
//! rewrite in place to take a lease; everything behind the header is opaque to it.
//!
//! Every operation takes a batch, because a loop over single operations pays one round trip each.
//! Every operation may be dropped at any await point. None has to bound its own time: the engine
//! gives each read one budget and drops what outlives it.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::{BoxFuture, Millis};

/// What operations of a store return.
pub type StoreResult<T> = Result<T, StoreError>;

/// A tier below memory: Redis, a disk, or a store of your own.
///
/// The test kit has a suite (`larder_testkit::store_suite`) that every implementation should pass.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// A short name for statistics and outcomes, such as `redis`.
    fn name(&self) -> &str;

    /// What this store can do and how much it takes.
    fn capabilities(&self) -> Capabilities;

    /// Reads each key, in the order given.
    ///
    /// At most `limit` bytes of a value are fetched. A longer value comes back cut to `limit + 1`
    /// bytes, so that the caller can tell, or as `None`. A key that holds something that is not a
    /// string of bytes reads as `None`. A placeholder reads as its header or as `None`.
    fn get<'a>(
        &'a self,
        keys: &'a [Bytes],
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>>;

    /// Reads each key and, where there is no value or one that went stale, takes the lease on it.
    ///
    /// The lease lives in the value's own key: on an absent key as a placeholder that is a header
    /// alone, on a stale value by rewriting the token and deadline in its header, the rest staying
    /// readable. Anything that overwrites or deletes the key therefore voids the lease. Bytes whose
    /// front [`Header::parse`](crate::envelope::Header::parse) refuses are replaced by a
    /// placeholder. A value over the limit comes back as for [`Store::get`], or is left out.
    fn lease<'a>(
        &'a self,
        keys: &'a [Bytes],
        request: &'a LeaseRequest,
    ) -> BoxFuture<'a, StoreResult<Vec<Leased>>>;

    /// Stores each value if its key still carries the token of the fill: compare and set. A lease
    /// that has ended counts as gone, whether or not somebody else has taken it since.
    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>>;

    /// Gives a lease back without a value: removes the placeholder, or clears the token from the
    /// stale value's header. Keys that carry another token are left alone.
    fn release<'a>(
        &'a self,
        keys: &'a [Bytes],
        token: LeaseToken,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Stores each value whatever the key held; a lease on the key is void afterwards. A value over
    /// the store's limit is refused before anything is changed.
    ///
    /// Any TTL is taken: below one millisecond is one, and the longest is what the store can keep.
    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<()>>;

    /// Makes each value stale from `wall` on, without removing it, and voids leases on it. A value
    /// that was stale before stays as stale as it was.
    /// A placeholder is removed. Absent keys are left absent.
    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>>;

    /// Removes each key, and any lease with it.
    fn delete<'a>(&'a self, keys: &'a [Bytes]) -> BoxFuture<'a, StoreResult<()>>;

    /// Removes every key that starts with `prefix`, byte by byte, and returns how many.
    ///
    /// Keys present during the whole call are removed; keys under other prefixes are not touched.
    /// Memory used is bounded whatever the number of keys. A store that cannot enumerate its keys
    /// answers [`StoreError::unsupported`].
    fn clear<'a>(&'a self, prefix: &'a [u8]) -> BoxFuture<'a, StoreResult<u64>>;

    /// Asks whether the store is usable now. Called before a tier that failed is used again.
    fn ping(&self) -> BoxFuture<'_, StoreResult<()>>;

    /// Flushes and closes what should not be left to `Drop`. Called once, by `Larder::shutdown`.
    fn close(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// What a store can do. Plain data, so that reports can print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The longest value in bytes, envelope included, that the store takes.
    pub max_value_bytes: usize,
    /// Whether [`Store::clear`] works.
    pub clear: bool,
}

impl Capabilities {
    /// A store that takes values up to `max_value_bytes` and can enumerate its keys.
    pub fn new(max_value_bytes: usize) -> Self {
        Self {
            max_value_bytes,
            clear: true,
        }
    }

    /// The same without enumeration.
    pub fn without_clear(self) -> Self {
        Self {
            clear: false,
            ..self
        }
    }
}

/// The random number that proves who holds a lease. Zero on the wire means "no lease".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseToken(NonZeroU64);

impl LeaseToken {
    /// A new token, different from every other with overwhelming probability.
    pub fn random() -> Self {
        Self(NonZeroU64::new(fastrand::u64(1..)).unwrap_or(NonZeroU64::MIN))
    }

    /// The token that `bits` stand for; `None` for zero.
    pub fn from_bits(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).map(Self)
    }

    /// The token as it stands in an envelope header.
    pub fn bits(self) -> u64 {
        self.0.get()
    }
}

/// How to read with a lease.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    /// What to write where the lease is taken.
    pub token: LeaseToken,
    /// A value whose fresh-until is at or before this wall time is leased. Usually now.
    pub stale_at: Millis,
    /// How long the lease lasts, by the store's own clock where it has one.
    pub lease_for: Duration,
    /// As for [`Store::get`].
    pub limit: usize,
}

/// What a read with a lease found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leased {
    /// A value that is not stale. No lease was taken.
    Value(Bytes),
    /// The lease is ours: load, then [`Store::fill`]. `stale` is the old value, if there is one.
    Acquired {
        /// The stale envelope, still readable by everyone.
        stale: Option<Bytes>,
    },
    /// Somebody else is loading.
    Held {
        /// The stale envelope, still readable by everyone.
        stale: Option<Bytes>,
    },
}

/// A value on its way into a store under a lease.
#[derive(Clone, Debug)]
pub struct Fill {
    /// The encoded key.
    pub key: Bytes,
    /// The token that must still stand in the key.
    pub token: LeaseToken,
    /// The whole envelope.
    pub value: Bytes,
    /// When the store may drop it.
    pub ttl: Duration,
}

/// What became of a [`Fill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The value is stored and the lease gone.
    Stored,
    /// The token was no longer there: an invalidation, a write, or the lease's end came first.
    Refused,
}

/// An unconditional write.
#[derive(Clone, Debug)]
pub struct Write {
    /// The encoded key.
    pub key: Bytes,
    /// The whole envelope.
    pub value: Bytes,
    /// When the store may drop it.
    pub ttl: Duration,
}

/// Why a store could not do what it was asked.
///
/// Reads never fail for it: the engine goes on without the tier and counts.
#[derive(Clone)]
pub struct StoreError {
    kind: StoreErrorKind,
    message: Arc<str>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// What sort of failure a [`StoreError`] is; it decides whether the tier is taken out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// No connection, no answer, disk gone: the tier is not usable at present.
    Unavailable,
    /// The store answered and refused: out of memory, read-only, full, no permission.
    Refused,
    /// The store cannot do this at all.
    Unsupported,
}

impl StoreError {
    /// The store cannot be reached or used at present.
    pub fn unavailable(message: impl Into<Arc<str>>) -> Self {
        Self {
            kind: StoreErrorKind::Unavailable,
            message: message.into(),
            source: None,
        }
    }

    /// The store answered, and refused.
    pub fn refused(message: impl Into<Arc<str>>) -> Self {
        Self {
            kind: StoreErrorKind::Refused,
            message: message.into(),
            source: None,
        }
    }

    /// The store has no such operation.
    pub fn unsupported(message: impl Into<Arc<str>>) -> Self {
        Self {
            kind: StoreErrorKind::Unsupported,
            message: message.into(),
            source: None,
        }
    }

    /// Attaches the error underneath.
    pub fn with_source(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self {
            source: Some(Arc::new(source)),
            ..self
        }
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreError({:?}: {}", self.kind, self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source})"),
            None => f.write_str(")"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
