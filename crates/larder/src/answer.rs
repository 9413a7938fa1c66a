//! What a loader may return, and what it is given.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::Cache;
use crate::entry::Held;
use crate::error::Error;
use crate::key::{AsKey, CacheKey};
use crate::options::Span;
use crate::policy::Wishes;
use crate::scope::Inherited;
use crate::tags::{MAX_TAGS, name};

/// What a load found, and how to keep it. Options given here come before those of the cache.
///
/// ```
/// use larder::Loaded;
///
/// let found: Loaded<&str> = Loaded::value("espresso").ttl("10m").etag("\"v7\"");
/// let nothing = Loaded::<String>::absent();
/// let secret: Loaded<&str> = Loaded::no_store("4711");
/// ```
#[derive(Debug)]
pub struct Loaded<V> {
    pub(crate) content: Content<V>,
    pub(crate) keep: Keep,
    pub(crate) wishes: Wishes,
    /// The name of a TTL, which the larder knows.
    pub(crate) class: Option<Box<str>>,
    pub(crate) version: Option<u64>,
    pub(crate) etag: Option<Box<str>>,
    pub(crate) last_modified: Option<u64>,
    /// By their inner names.
    pub(crate) tags: Vec<Box<str>>,
    /// What the reads inside the load bring with them.
    pub(crate) inherited: Inherited,
    /// Why there is nothing to keep, where the load of this key failed and those of others did not.
    pub(crate) failure: Option<Error>,
    /// The first option that could not be understood.
    pub(crate) problem: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Content<V> {
    Value(Arc<V>),
    Absent,
    NotModified,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Store,
    NoStore,
}

impl<V> Loaded<V> {
    fn new(content: Content<V>, keep: Keep) -> Self {
        Self {
            content,
            keep,
            wishes: Wishes::default(),
            class: None,
            version: None,
            etag: None,
            last_modified: None,
            tags: Vec::new(),
            inherited: Inherited::default(),
            failure: None,
            problem: None,
        }
    }

    /// One key of a batch could not be loaded.
    pub(crate) fn failed(error: Error) -> Self {
        Self {
            failure: Some(error),
            ..Self::absent()
        }
    }

    /// A value, kept as the cache says.
    pub fn value(value: impl Into<Arc<V>>) -> Self {
        Self::new(Content::Value(value.into()), Keep::Store)
    }

    /// There is no such value. Kept for the cache's negative TTL, if it has one.
    pub fn absent() -> Self {
        Self::new(Content::Absent, Keep::Store)
    }

    /// A value for the callers that wait for it, and for nobody after them.
    pub fn no_store(value: impl Into<Arc<V>>) -> Self {
        Self::new(Content::Value(value.into()), Keep::NoStore)
    }

    /// The stale value that [`Load::stale`] showed is still right: it is fresh again. An error if
    /// there was none.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder, Load, Loaded};
    ///
    /// // Stands for a server that answers 304 to those who have the current version.
    /// async fn fetch(load: Load<u64, String>) -> Result<Loaded<String>, std::io::Error> {
    ///     if load.stale().and_then(|stale| stale.etag()) == Some("v7") {
    ///         return Ok(Loaded::not_modified());
    ///     }
    ///     Ok(Loaded::value("a long page".to_owned()).etag("v7"))
    /// }
    ///
    /// let pages: Cache<u64, String> =
    ///     Larder::local().cache("page").ttl("1m").stale_on_error("1h").in_memory()?;
    /// let first = pages.get_or_load(&7, fetch).await?;
    /// let _ = pages.expire(&7).await?; // as if its minute were over
    /// let second = pages.get_or_load(&7, fetch).await?;
    /// assert_eq!(first, second);
    /// assert_eq!(pages.stats().loads, 2);
    /// assert!(pages.get(&7).await?.is_some(), "fresh again");
    /// # Ok(()) }
    /// ```
    pub fn not_modified() -> Self {
        Self::new(Content::NotModified, Keep::Store)
    }

    /// How long this entry is fresh. Zero: it is not stored.
    #[must_use]
    pub fn ttl(mut self, ttl: impl Span) -> Self {
        self.wishes.ttl = self.span("ttl", ttl);
        self
    }

    /// How long this entry is fresh, by the name of a TTL: see
    /// [`LarderBuilder::ttl_class`](crate::LarderBuilder::ttl_class). A name that the larder does not
    /// know makes the load fail, and so does a TTL beside it.
    ///
    /// ```
    /// use larder::Loaded;
    ///
    /// let offer: Loaded<&str> = Loaded::value("espresso, today only").class("realtime");
    /// ```
    #[must_use]
    pub fn class(mut self, name: impl Into<Box<str>>) -> Self {
        self.class = Some(name.into());
        self
    }

    /// How long behind its TTL this entry is served while it is refreshed.
    #[must_use]
    pub fn grace(mut self, grace: impl Span) -> Self {
        self.wishes.grace = self.span("grace", grace);
        self
    }

    /// The version of the row or object behind this entry.
    #[must_use]
    pub fn version(mut self, version: u64) -> Self {
        self.version = Some(version);
        self
    }

    /// The validator of the source, shown to the next load of this key.
    #[must_use]
    pub fn etag(mut self, etag: impl Into<Box<str>>) -> Self {
        self.etag = Some(etag.into());
        self
    }

    /// When the source last changed, in whole seconds since the Unix epoch; shown to the next
    /// load of this key.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder, Load, Loaded};
    ///
    /// // Stands for a table whose rows say when they changed.
    /// async fn fetch(load: Load<u64, String>) -> Result<Loaded<String>, std::io::Error> {
    ///     let changed = 1_767_225_600;
    ///     if load.stale().and_then(|stale| stale.last_modified()) == Some(changed) {
    ///         return Ok(Loaded::not_modified());
    ///     }
    ///     Ok(Loaded::value("a wide row".to_owned()).last_modified(changed))
    /// }
    ///
    /// let rows: Cache<u64, String> =
    ///     Larder::local().cache("row").ttl("1m").stale_on_error("1h").in_memory()?;
    /// let first = rows.get_or_load(&7, fetch).await?;
    /// let _ = rows.expire(&7).await?; // as if its minute were over
    /// assert_eq!(rows.get_or_load(&7, fetch).await?, first);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn last_modified(mut self, seconds: u64) -> Self {
        self.last_modified = Some(seconds);
        self
    }

    /// Labels the entry: [`Larder::invalidate_tag`](crate::Larder::invalidate_tag) reaches it by
    /// any of its tags, in every process and tier. A tag has 1 to 1,024 bytes, an entry at most
    /// 1,000 of them.
    ///
    /// ```
    /// use larder::Loaded;
    ///
    /// let found: Loaded<&str> = Loaded::value("espresso").tags(["category:7", "brand:3"]);
    /// ```
    #[must_use]
    pub fn tags<T: AsRef<str>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        for tag in tags {
            match name::check(tag.as_ref()) {
                Ok(()) if self.tags.len() <= MAX_TAGS => {
                    self.tags.push(name::of_tag(tag.as_ref()));
                }
                Ok(()) => {}
                Err(problem) => {
                    self.problem.get_or_insert(problem);
                }
            }
        }
        self
    }

    /// Says that this entry was made from that of `key` in `cache`: whatever invalidates, writes or
    /// tags that one invalidates this one too.
    ///
    /// Entries that a load reads from caches are its sources without being named; this is for those
    /// that it gets in another way. What `key` itself depends on is known if its entry is in memory.
    ///
    /// # Errors
    ///
    /// A key that cannot be encoded makes the load fail with [`Key`](crate::ErrorKind::Key)'s words.
    #[must_use]
    pub fn depends_on<K, W, Q>(mut self, cache: &Cache<K, W>, key: &Q) -> Self
    where
        K: CacheKey,
        W: Send + Sync + 'static,
        Q: AsKey<K> + ?Sized,
    {
        match cache.source(key) {
            Ok(source) => self.inherited.tags.extend(source),
            Err(error) => {
                self.problem.get_or_insert(error.to_string());
            }
        }
        self
    }

    fn span(&mut self, name: &str, span: impl Span) -> Option<Duration> {
        match span.into_duration() {
            Ok(span) => Some(span),
            Err(problem) => {
                self.problem.get_or_insert(format!("{name}: {problem}"));
                None
            }
        }
    }
}

impl<V> From<V> for Loaded<V> {
    fn from(value: V) -> Self {
        Self::value(Arc::new(value))
    }
}

/// What a loader may return: `V`, `Arc<V>`, `Option<V>` or [`Loaded<V>`].
///
/// The caller gets `Arc<V>` for the first two, and `Option<Arc<V>>` where "there is no such
/// value" is possible. This trait is sealed.
#[diagnostic::on_unimplemented(
    message = "a loader of this cache cannot return `{Self}`",
    note = "return `Result<V, E>`, `Result<Option<V>, E>` or `Result<Loaded<V>, E>`, where `V` is the cache's value type `{V}`"
)]
pub trait Answer<V>: sealed::Sealed<V> + Send + 'static {
    /// What the caller gets.
    type Out: Send;

    /// This answer as a [`Loaded`].
    #[doc(hidden)]
    fn into_loaded(self) -> Loaded<V>;

    /// What the caller gets for `value`; `None` if this kind of answer has no word for "absent".
    #[doc(hidden)]
    fn out(value: Option<Arc<V>>) -> Option<Self::Out>;
}

mod sealed {
    pub trait Sealed<V> {}
    impl<V> Sealed<V> for V {}
    impl<V> Sealed<V> for std::sync::Arc<V> {}
    impl<V> Sealed<V> for Option<V> {}
    impl<V> Sealed<V> for super::Loaded<V> {}
}

impl<V: Send + Sync + 'static> Answer<V> for V {
    type Out = Arc<V>;

    fn into_loaded(self) -> Loaded<V> {
        Loaded::from(self)
    }

    fn out(value: Option<Arc<V>>) -> Option<Arc<V>> {
        value
    }
}

impl<V: Send + Sync + 'static> Answer<V> for Arc<V> {
    type Out = Arc<V>;

    fn into_loaded(self) -> Loaded<V> {
        Loaded::value(self)
    }

    fn out(value: Option<Arc<V>>) -> Option<Arc<V>> {
        value
    }
}

impl<V: Send + Sync + 'static> Answer<V> for Option<V> {
    type Out = Option<Arc<V>>;

    fn into_loaded(self) -> Loaded<V> {
        self.map_or_else(Loaded::absent, Loaded::from)
    }

    fn out(value: Option<Arc<V>>) -> Option<Option<Arc<V>>> {
        Some(value)
    }
}

impl<V: Send + Sync + 'static> Answer<V> for Loaded<V> {
    type Out = Option<Arc<V>>;

    fn into_loaded(self) -> Loaded<V> {
        self
    }

    fn out(value: Option<Arc<V>>) -> Option<Option<Arc<V>>> {
        Some(value)
    }
}

/// What a loader is given: the key, and the stale value if there is one.
#[derive(Debug)]
pub struct Load<K, V> {
    pub(crate) key: K,
    pub(crate) stale: Option<Stale<V>>,
}

impl<K, V> Load<K, V> {
    /// The key to load.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// The key to load, owned: the loader runs in its own task.
    pub fn into_key(self) -> K {
        self.key
    }

    /// The stale value, for a conditional request that [`Loaded::not_modified`] may answer.
    pub fn stale(&self) -> Option<&Stale<V>> {
        self.stale.as_ref()
    }
}

/// A stale value with its validators.
#[derive(Debug)]
pub struct Stale<V> {
    held: Held<V>,
}

impl<V> Stale<V> {
    pub(crate) fn new(held: &Held<V>) -> Self {
        Self { held: held.clone() }
    }

    /// The value; `None` where the entry says that there is none.
    pub fn value(&self) -> Option<&Arc<V>> {
        self.held.value.as_ref()
    }

    /// The validator that the source gave with it.
    pub fn etag(&self) -> Option<&str> {
        self.held.details.as_ref()?.etag.as_deref()
    }

    /// When the source last changed it, in whole seconds since the Unix epoch.
    pub fn last_modified(&self) -> Option<u64> {
        self.held.details.as_ref()?.last_modified
    }
}
