//! What a tier below memory must be able to do.
//!
//! A store moves bytes: it knows neither types nor expiry rules. The bytes it holds are
//! [envelopes](crate::envelope), whose [header](crate::envelope::Header) a store may read and
//! rewrite in place to take a lease; everything behind the header is opaque to it.
//!
//! Beside entries a store keeps two kinds of small records, which make invalidation by tag work
//! (the rules are those of [`Tagged`]):
//!
//! - the *counter* of a namespace, a [`Position`], which moves with every invalidation;
//! - a *tag record* ([`TagRecord`]) for each tag in use. Entries carry the random version that the
//!   records of their tags held when they were filled; a tag is invalidated by deleting its record,
//!   and a record that is missing, for whatever reason, makes every entry of its tag a miss.
//!
//! Bytes under the key of a counter or a record that are none count as missing, and are replaced.
//!
//! Every operation takes a batch, because a loop over single operations pays one round trip each.
//! Every operation may be dropped at any await point. None has to bound its own time: the engine
//! gives each read one budget and drops what outlives it.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::backplane::Backplane;
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
    /// Little more than `limit` bytes of a value are fetched: a longer one comes back cut to
    /// `limit + 1` bytes, so that the caller can tell, and can read the front of a value alone. A key
    /// that holds something that is not a string of bytes reads as `None`. A placeholder reads as its
    /// header or as `None`.
    fn get<'a>(
        &'a self,
        keys: &'a [Bytes],
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>>;

    /// Reads each key and, where there is no value or one that went stale, takes the lease on it.
    ///
    /// The lease lives in the value's own key: on an absent key as a placeholder that is a header
    /// alone, on a stale value by rewriting the token and deadline in its header, the rest staying
    /// readable. Anything that overwrites or deletes the key therefore voids the lease. A lease that
    /// would end much later than one that begins now may be taken over: it is from before the clock
    /// of the store was set back. Bytes whose
    /// front [`Header::parse`](crate::envelope::Header::parse) refuses are replaced by a
    /// placeholder. A value over the limit comes back as for [`Store::get`], or is left out.
    ///
    /// A placeholder that carries a minimum [version](crate::envelope::Header::version) is leased
    /// like any other and keeps that version for at least as long as it would have without the
    /// lease. Where the request names a counter, every lease that is taken comes with the position
    /// of that counter, read no later than the lease was taken; a counter that does not exist is
    /// begun with a random incarnation.
    fn lease<'a>(
        &'a self,
        keys: &'a [Bytes],
        request: &'a LeaseRequest,
    ) -> BoxFuture<'a, StoreResult<Vec<Leased>>>;

    /// Stores each value if its key still carries the token of the fill: compare and set. A lease
    /// that has ended counts as gone, whether or not somebody else has taken it since.
    ///
    /// A fill is refused as well if its [version](crate::envelope::Header::version) is not zero and
    /// below that of the value that it would replace, if the key holds a placeholder with a minimum
    /// version and the fill's own is below it or zero, and if its [tags](Fill::tags) say so. A fill
    /// that is refused leaves the lease as it is.
    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>>;

    /// Gives a lease back without a value: removes the placeholder, or clears the token from the
    /// stale value's header, or from the placeholder if that carries a minimum version. Keys that
    /// carry another token are left alone.
    fn release<'a>(
        &'a self,
        keys: &'a [Bytes],
        token: LeaseToken,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Stores each value whatever the key held, unless that was of a higher version; a lease on the
    /// key is void afterwards. A value over the store's limit is refused before anything is changed.
    ///
    /// A write whose [version](crate::envelope::Header::version) is not zero is refused if the key
    /// holds a higher one. A write that is a header alone, with a version in it, leaves a minimum
    /// version behind: it is refused by a value of the same version, too, because that value is new
    /// enough. [`Write::tags`] are used as for [`Store::fill`], without a position to compare. A write
    /// that is refused leaves the key as it is, with any lease on it.
    ///
    /// Any TTL is taken: below one millisecond is one, and the longest is what the store can keep.
    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<Vec<Filled>>>;

    /// Keeps each value, and each record of a tag, for at least `ttl` from now on, as if it had been
    /// written again with that: for entries that live as long as somebody reads them.
    ///
    /// Nothing is kept shorter than before, nothing under a key changes, and no lease: neither whether
    /// it is held nor how long. Absent keys are left absent. What is no value is left alone: a
    /// placeholder, whose time is that of its lease or of the minimum version in it, and what has no
    /// time to live. Times are as for [`Store::set`].
    ///
    /// By default it is [`StoreError::unsupported`]: then entries die in this store with the time
    /// that they were written with, however often they are read, and the next read loads them anew.
    fn touch<'a>(&'a self, keys: &'a [Bytes], ttl: Duration) -> BoxFuture<'a, StoreResult<()>> {
        let _unused = (keys, ttl);
        let error = StoreError::unsupported("this store does not prolong what it keeps");
        Box::pin(std::future::ready(Err(error)))
    }

    /// Makes each value stale without removing it, and voids leases on it: as
    /// [`Header::expired_at`](crate::envelope::Header::expired_at) says. It is stale at once, whatever
    /// clocks say; `wall` is only where its grace begins, and one that was stale before keeps that.
    /// A placeholder is removed, or, if it carries a minimum version, loses its lease. Bytes whose
    /// front [`Header::parse`](crate::envelope::Header::parse) refuses are removed: they may be an
    /// entry of another release, which would go on serving it. Absent keys
    /// are left absent.
    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>>;

    /// Moves the counter on, if one is named, and then removes each key, and any lease with it.
    ///
    /// The keys may be those of tag records. The counter moves before the first key goes; one that
    /// does not exist is begun with a random incarnation. A store that cannot write, as a full one,
    /// removes the counter instead and then the keys: an invalidation must get through.
    fn delete<'a>(
        &'a self,
        keys: &'a [Bytes],
        counter: Option<&'a Bytes>,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Does what [`Store::delete`] does with a counter, and then publishes `message` on the bus that
    /// [`Store::backplane`] gives, as [`Backplane::publish`]
    /// does. For stores that can do both in one round trip: by default it is
    /// [`StoreError::unsupported`].
    ///
    /// Nobody may hear of the message before the keys are gone. A store that cannot do all of it at
    /// once, for whatever reason, answers [`StoreError::unsupported`]; it is asked for one thing after
    /// the other then, whatever it has done by that time. After any other error both may be done or
    /// not.
    fn delete_and_publish<'a>(
        &'a self,
        keys: &'a [Bytes],
        counter: &'a Bytes,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        let _needs_two_steps = (keys, counter, channel, message);
        let error = StoreError::unsupported("this store does one thing after the other");
        Box::pin(std::future::ready(Err(error)))
    }

    /// Removes every key that starts with `prefix`, byte by byte, and that `condemned` says yes to.
    ///
    /// Keys present during the whole call are shown to `condemned`, some perhaps twice; keys under
    /// other prefixes never are. `progress` is told now and then how far it got. Memory used is
    /// bounded whatever the number of keys. A store that cannot enumerate its keys answers
    /// [`StoreError::unsupported`].
    fn sweep<'a>(
        &'a self,
        prefix: &'a [u8],
        condemned: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
        progress: &'a (dyn Fn(Swept) + Send + Sync),
    ) -> BoxFuture<'a, StoreResult<Swept>>;

    /// Notes `member` in the set under `record` for at least `keep` from now on, and returns all
    /// members whose time is not over, in any order. A `keep` of zero notes nothing.
    fn enlist<'a>(
        &'a self,
        record: &'a Bytes,
        member: u32,
        keep: Duration,
    ) -> BoxFuture<'a, StoreResult<Vec<u32>>>;

    /// Waits until one of the keys, on each of which somebody else held a lease when it was last
    /// read, may have changed: the lease was filled, given back, voided or ended.
    ///
    /// No change is missed: a key whose lease is gone when the wait begins ends it at once. It may
    /// end without a reason, too, so the caller reads the keys again; but a store that ends every
    /// wait at once makes its callers ask in a circle. Where nobody can tell that the owner of a
    /// lease died, the wait ends with the time of that lease.
    ///
    /// Dropping the future ends the wait and leaves nothing behind. How many keys are waited for at
    /// once is bounded; beyond that, and where the wait cannot go on, it is an error. A store that
    /// has no such operation answers [`StoreError::unsupported`], and its callers ask now and then.
    fn changed<'a>(&'a self, keys: &'a [Bytes]) -> BoxFuture<'a, StoreResult<()>> {
        let _ = keys;
        Box::pin(async {
            Err(StoreError::unsupported(
                "the store does not tell of changes",
            ))
        })
    }

    /// The bus that comes with this store, if there is one; the engine uses it unless it was given
    /// another one.
    fn backplane(&self) -> Option<Arc<dyn Backplane>> {
        None
    }

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
    /// Whether [`Store::sweep`] works.
    pub sweep: bool,
}

impl Capabilities {
    /// A store that takes values up to `max_value_bytes` and can enumerate its keys.
    pub fn new(max_value_bytes: usize) -> Self {
        Self {
            max_value_bytes,
            sweep: true,
        }
    }

    /// The same without enumeration.
    pub fn without_sweep(self) -> Self {
        Self {
            sweep: false,
            ..self
        }
    }
}

/// Where a sequence of invalidations stands. Positions of different incarnations cannot be compared:
/// what kept the sequence was lost in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// Random, new whenever the sequence begins anew.
    pub incarnation: u64,
    /// How many there were since.
    pub count: u64,
}

/// What stands in a store for a tag in use, [`TagRecord::LEN`] bytes long: the version, and then
/// incarnation and count of the counter when the record was made, all big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagRecord {
    /// Random. Entries whose version of the tag is another one are not valid.
    pub version: u64,
    /// Where the counter of the namespace stood.
    pub made_at: Position,
}

impl TagRecord {
    /// Length in bytes.
    pub const LEN: usize = 24;

    /// Reads a record; `None` for bytes that are none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let word = |at: usize| {
            bytes[at..]
                .first_chunk()
                .map_or(0, |raw| u64::from_be_bytes(*raw))
        };
        Some(Self {
            version: word(0),
            made_at: Position {
                incarnation: word(8),
                count: word(16),
            },
        })
    }

    /// The record as it stands in a store.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.version.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.made_at.incarnation.to_be_bytes());
        bytes[16..].copy_from_slice(&self.made_at.count.to_be_bytes());
        bytes
    }
}

/// The tags of a value on its way into a store that keeps tag records.
///
/// The value comes with one version per record behind its header
/// ([`Header::tag_count`](crate::envelope::Header::tag_count)), in the order of `records`: the
/// versions that the sender proposes, random and new each time, because one that was in use before
/// would revive what was invalidated with it. The store
///
/// 1. refuses the fill if `since` is given and the counter is of another incarnation now; if a
///    record was made in the incarnation of `since` at a higher count; or if a record is missing and
///    the counter is not where `since` says;
/// 2. makes every record that is missing, with the version proposed and the counter of now, also
///    where it refuses the fill, so that the next one finds it;
/// 3. writes the versions that the records hold over those that were proposed, and says which;
/// 4. keeps each record at least as long as the value.
///
/// A store that cannot do all of it in one step may take these steps one by one, in this order,
/// before it stores the value: a tag that is invalidated meanwhile has another version then.
#[derive(Clone, Debug)]
pub struct Tagged {
    /// The key of the counter of the namespace.
    pub counter: Bytes,
    /// The keys of the records, no two the same.
    pub records: Vec<Bytes>,
    /// Where the counter stood before the load began; `None` for values that are newer than any
    /// invalidation that came before.
    pub since: Option<Position>,
}

/// How far [`Store::sweep`] got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Keys that were looked at, those of others included where the store cannot tell them apart
    /// itself.
    pub seen: u64,
    /// Keys that were removed.
    pub removed: u64,
}

impl Swept {
    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            seen: self.seen + other.seen,
            removed: self.removed + other.removed,
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
    /// A value that is not [fresh](crate::envelope::Header::is_fresh) at this wall time is leased.
    /// Usually now.
    pub stale_at: Millis,
    /// How long the lease lasts, by the store's own clock where it has one.
    pub lease_for: Duration,
    /// As for [`Store::get`].
    pub limit: usize,
    /// The counter whose position comes with each lease that is taken.
    pub counter: Option<Bytes>,
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
        /// Where the counter of the request stood; `None` if it named none.
        since: Option<Position>,
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
    /// The tags of the value; `None` where this store keeps no records, as a private tier above
    /// the one that does. The versions in the value are then right as they are.
    pub tags: Option<Tagged>,
}

/// What became of a [`Fill`] or a [`Write`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The value is stored and the lease gone.
    Stored {
        /// The versions of its tags, in the order of [`Tagged::records`]; empty without tags.
        versions: Vec<u64>,
    },
    /// Something else came first: an invalidation, a newer value, or the end of the lease.
    Refused,
}

/// A write that needs no lease.
#[derive(Clone, Debug)]
pub struct Write {
    /// The encoded key.
    pub key: Bytes,
    /// The whole envelope, or a header alone that carries a minimum version.
    pub value: Bytes,
    /// When the store may drop it.
    pub ttl: Duration,
    /// As for [`Fill::tags`]; [`Tagged::since`] is not used.
    pub tags: Option<Tagged>,
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
