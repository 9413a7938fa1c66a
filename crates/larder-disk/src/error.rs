use std::fmt;
use std::sync::Arc;

/// Why a directory could not be opened as a [`Disk`](crate::Disk).
///
/// The message is one sentence that names the directory and says what to do.
#[derive(Clone)]
pub struct DiskError {
    kind: DiskErrorKind,
    message: Arc<str>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// What sort of failure a [`DiskError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskErrorKind {
    /// An option has a value that cannot work.
    Options,
    /// Something that is not a directory stands at the path.
    NotADirectory,
    /// The directory cannot be created, read or written.
    NotWritable,
    /// The directory holds something else than a larder disk tier of this format.
    Foreign,
    /// Another `Disk`, of this or another process, has the directory open.
    InUse,
    /// The device has no space left.
    Full,
    /// The files in the directory are damaged.
    Corrupt,
}

impl DiskError {
    pub(crate) fn new(kind: DiskErrorKind, message: impl Into<Arc<str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn with_source(
        self,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            source: Some(Arc::new(source)),
            ..self
        }
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> DiskErrorKind {
        self.kind
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskError({:?}: {}", self.kind, self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source})"),
            None => f.write_str(")"),
        }
    }
}

impl std::error::Error for DiskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
