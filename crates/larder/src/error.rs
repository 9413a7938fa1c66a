//! What can go wrong in a call. A failing tier is not among it: reads go on without the tier.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Any error, boxed: what loaders may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What calls of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// Cheap to clone, because every caller that waited for one load gets the same error.
/// [`Error::kind`] is for deciding, `Display` for people, and [`Error::loader`] gives back what
/// the loader itself returned.
#[derive(Clone)]
pub struct Error {
    inner: Arc<Inner>,
}

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    source: Option<BoxError>,
}

/// What sort of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The loader returned an error, and there was nothing stale to serve instead.
    Load,
    /// The loader passed its deadline, or the caller its own.
    LoadTimeout,
    /// The loader panicked. The panic was caught.
    LoadPanicked,
    /// Too many loads are running and waiting in this cache.
    Overloaded,
    /// A loader asked for the very key that it was loading, and would have waited for itself.
    Reentered,
    /// The key is empty or too long. Nothing was read or stored.
    Key,
    /// The cache or the larder was configured wrongly.
    Config,
    /// A file could not be read or written, or is none of larder's.
    File,
    /// The larder was shut down.
    Closed,
}

impl Error {
    fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                kind,
                message: message.into(),
                source: None,
            }),
        }
    }

    pub(crate) fn load(source: BoxError) -> Self {
        let message = Cow::Borrowed("the loader failed");
        Self {
            inner: Arc::new(Inner {
                kind: ErrorKind::Load,
                message,
                source: Some(source),
            }),
        }
    }

    pub(crate) fn load_timeout(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::LoadTimeout, message)
    }

    /// A loader answered "not modified" and had not been shown a stale value.
    pub(crate) fn nothing_to_renew() -> Self {
        Self::new(
            ErrorKind::Load,
            "the loader answered not_modified, but there was no stale value to renew",
        )
    }

    /// A tier that cannot enumerate its keys was asked for those that match a pattern.
    pub(crate) fn unsupported(tier: &str) -> Self {
        Self::new(
            ErrorKind::Config,
            format!(
                "tier {tier} cannot enumerate its keys, so nothing can be invalidated by pattern \
                 there; use a tag or a group"
            ),
        )
    }

    pub(crate) fn no_runtime() -> Self {
        Self::config(
            "there is no tokio runtime here to load in; outside one, use get_in_memory and \
             set_in_memory",
        )
    }

    /// A loader asks for what it is loading.
    pub(crate) fn reentered(cache: &str) -> Self {
        Self::new(
            ErrorKind::Reentered,
            format!(
                "a loader of cache `{cache}` asks for the key that it is loading; read the source \
                 there, or another key"
            ),
        )
    }

    /// A caller's own deadline passed.
    pub(crate) fn out_of_patience(deadline: Duration) -> Self {
        let millis = deadline.as_millis();
        Self::load_timeout(format!(
            "no answer within the {millis} ms that this caller gave; the load goes on"
        ))
    }

    /// A loader without a word for "absent" met others that have one, again and again.
    pub(crate) fn no_value() -> Self {
        Self::new(
            ErrorKind::Load,
            "another loader says that there is no such value; let this one return Option too",
        )
    }

    pub(crate) fn too_stale() -> Self {
        Self::new(
            ErrorKind::Load,
            "the load failed, and what is stale is older than this caller accepts",
        )
    }

    pub(crate) fn load_panicked(message: &str) -> Self {
        Self::new(
            ErrorKind::LoadPanicked,
            format!("the loader panicked: {message}"),
        )
    }

    /// The task that stores what a load found ended before its time.
    pub(crate) fn load_lost() -> Self {
        Self::new(
            ErrorKind::LoadPanicked,
            "what the loader found got lost: the weigher panicked, or the load's runtime ended or has no timers (`enable_time`)",
        )
    }

    pub(crate) fn full(cache: &str) -> Self {
        Self::overloaded(format!(
            "cache `{cache}` is full, and by its policy nothing may go for a new entry"
        ))
    }

    pub(crate) fn overloaded(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Overloaded, message)
    }

    pub(crate) fn key(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Key, message)
    }

    pub(crate) fn config(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    pub(crate) fn file(path: &Path, problem: &str, cause: std::io::Error) -> Self {
        let message = format!("{} {problem}: {cause}", path.display());
        Self {
            inner: Arc::new(Inner {
                kind: ErrorKind::File,
                message: Cow::Owned(message),
                source: Some(Box::new(cause)),
            }),
        }
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the larder was shut down")
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The error that the loader returned, if it is of type `E`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let cache: Cache<u64, String> = Larder::local().cache("names").in_memory()?;
    /// let failed = cache
    ///     .get_or_load(&7, |_| async { Err::<String, _>(std::io::Error::other("no route")) })
    ///     .await
    ///     .unwrap_err();
    /// assert_eq!(failed.loader::<std::io::Error>().unwrap().to_string(), "no route");
    /// # Ok(()) }
    /// ```
    pub fn loader<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.inner.source.as_ref()?.downcast_ref()
    }

    /// Whether the loader returned an error.
    pub fn is_load(&self) -> bool {
        self.kind() == ErrorKind::Load
    }

    /// Whether a deadline passed: the loader's or the caller's.
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::LoadTimeout
    }

    /// Whether the configuration is at fault.
    pub fn is_config(&self) -> bool {
        self.kind() == ErrorKind::Config
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.inner.kind)
            .field("message", &self.inner.message);
        if let Some(source) = &self.inner.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}
