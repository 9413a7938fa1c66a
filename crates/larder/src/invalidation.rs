//! What can be invalidated, as plain data: what calls, events, feeds and bus messages name.

use bytes::Bytes;

use crate::key::KeySink;

/// One thing to invalidate. Keys are in their encoded form, without namespace, cache and version,
/// so that one invalidation reaches every schema version of a cache.
///
/// ```
/// use larder::Invalidation;
///
/// assert_eq!(Invalidation::key("product", [b"7"]).to_string(), "key product:7");
/// assert_eq!(Invalidation::tag("category:3").to_string(), "tag category:3");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Invalidation {
    /// One entry goes.
    Key {
        /// The name of the cache.
        cache: Box<str>,
        /// The encoded key.
        key: Bytes,
    },
    /// One entry becomes stale, and is still served within its grace.
    Expire {
        /// The name of the cache.
        cache: Box<str>,
        /// The encoded key.
        key: Bytes,
    },
    /// Every entry of every cache that carries the tag.
    Tag(Box<str>),
    /// Every entry whose key matches the glob.
    Pattern {
        /// The name of the cache.
        cache: Box<str>,
        /// Matched against the key as it was before it was encoded; see
        /// [`Cache::invalidate_matching`](crate::Cache::invalidate_matching).
        glob: Box<str>,
    },
    /// Every entry of one cache.
    Cache(Box<str>),
}

impl Invalidation {
    /// The entry of `cache` whose key has these parts: one for a number or a string, several for
    /// a tuple. A part is the text of a number, or the bytes of a string.
    pub fn key<P: AsRef<[u8]>>(
        cache: impl Into<Box<str>>,
        parts: impl IntoIterator<Item = P>,
    ) -> Self {
        Self::Key {
            cache: cache.into(),
            key: encoded(parts),
        }
    }

    /// The same entry, which becomes stale instead of going.
    pub fn expire<P: AsRef<[u8]>>(
        cache: impl Into<Box<str>>,
        parts: impl IntoIterator<Item = P>,
    ) -> Self {
        Self::Expire {
            cache: cache.into(),
            key: encoded(parts),
        }
    }

    /// Every entry that carries `tag`.
    pub fn tag(tag: impl Into<Box<str>>) -> Self {
        Self::Tag(tag.into())
    }

    /// Every entry of `cache` whose key matches `glob`.
    pub fn pattern(cache: impl Into<Box<str>>, glob: impl Into<Box<str>>) -> Self {
        Self::Pattern {
            cache: cache.into(),
            glob: glob.into(),
        }
    }

    /// Every entry of `cache`.
    pub fn cache(cache: impl Into<Box<str>>) -> Self {
        Self::Cache(cache.into())
    }
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// It was invalidated: it is gone.
    Invalidated,
    /// It was invalidated, and no value of a lower version is to come back.
    Before(u64),
    /// Another value was set. The shared tier has it already.
    Written,
    /// It was made stale: the value may still be served within its grace.
    Expired,
}

fn encoded<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Bytes {
    let mut sink = KeySink::behind(b"");
    parts.into_iter().for_each(|part| sink.part(part.as_ref()));
    sink.into_bytes()
}

impl std::fmt::Display for Invalidation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Self::Key { cache, key } => write!(f, "key {cache}:{}", text(key)),
            Self::Expire { cache, key } => write!(f, "expiry of {cache}:{}", text(key)),
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Pattern { cache, glob } => write!(f, "pattern {cache}:{glob}"),
            Self::Cache(cache) => write!(f, "cache {cache}"),
        }
    }
}
