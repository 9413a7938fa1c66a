use std::fmt;

use larder::BoxError;

/// What calls of this crate return.
pub type Result<T, E = FeedError> = std::result::Result<T, E>;

/// Why something could not be done.
///
/// The text is one sentence that says what is wrong and what to do about it, and never holds a
/// password; what the server itself said is the `source()`.
pub struct FeedError {
    kind: FeedErrorKind,
    message: String,
    source: Option<BoxError>,
}

/// What sort of failure a [`FeedError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FeedErrorKind {
    /// The configuration, a template or a URL cannot work.
    Config,
    /// A table, a column or a role that the configuration names does not exist.
    Missing,
    /// The role of the connection may not do what is needed.
    Denied,
    /// Something that is not this feed's stands where the feed would, or depends on it.
    InTheWay,
    /// The feed is not installed in this database.
    NotInstalled,
    /// Somebody else holds what is needed, or changed it meanwhile; trying again may help.
    Busy,
    /// The server cannot be reached or does not answer.
    Unavailable,
    /// The server is too old, read-only, or another program.
    Unsupported,
    /// Anything else that the server refused.
    Refused,
}

impl FeedError {
    pub(crate) fn new(kind: FeedErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::new(FeedErrorKind::Config, message)
    }

    pub(crate) fn missing(message: impl Into<String>) -> Self {
        Self::new(FeedErrorKind::Missing, message)
    }

    pub(crate) fn in_the_way(message: impl Into<String>) -> Self {
        Self::new(FeedErrorKind::InTheWay, message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(FeedErrorKind::Unavailable, message)
    }

    pub(crate) fn not_installed(schema: &str) -> Self {
        Self::new(
            FeedErrorKind::NotInstalled,
            format!(
                "there is no feed in schema `{schema}` of this database; run `larder feed install`"
            ),
        )
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What a failed statement means. `doing` completes "cannot ...".
    pub(crate) fn of(doing: &str, error: sqlx::Error) -> Self {
        let said = match error {
            sqlx::Error::Database(said) => said,
            other => {
                let message = format!("cannot {doing}: PostgreSQL cannot be reached");
                return Self::unavailable(message).with_source(plain(other));
            }
        };
        let kind = kind_of(said.code().as_deref().unwrap_or_default());
        let remedy = match kind {
            FeedErrorKind::Denied => ": the role of this connection may not",
            FeedErrorKind::Busy => ": somebody else holds what it needs; try again",
            FeedErrorKind::Unavailable => ": PostgreSQL is not ready",
            _ => "",
        };
        // The server's sentence alone: the client's adds the line of the server's own source.
        Self::new(kind, format!("cannot {doing}{remedy}")).with_source(said.message())
    }

    /// The same error, and what it leaves behind.
    pub(crate) fn after(mut self, what: &str) -> Self {
        self.message = format!("{}; {what}", self.message);
        self
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> FeedErrorKind {
        self.kind
    }

    /// Whether the server could not be reached, so that trying again later is all there is to do.
    pub fn is_unavailable(&self) -> bool {
        self.kind == FeedErrorKind::Unavailable
    }

    /// This sentence and those of its causes, in one line.
    pub(crate) fn in_full(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

/// The cause below what the client says about it, where there is one.
fn plain(error: sqlx::Error) -> BoxError {
    match error {
        sqlx::Error::Io(cause) => cause.into(),
        sqlx::Error::Tls(cause) | sqlx::Error::Configuration(cause) => cause,
        other => other.into(),
    }
}

/// What an SQLSTATE of PostgreSQL (appendix A of its manual) means for a feed.
fn kind_of(code: &str) -> FeedErrorKind {
    match code {
        // No right, no such role, a wrong password.
        "42501" | "28000" | "28P01" => FeedErrorKind::Denied,
        // A database.
        "3D000" => FeedErrorKind::Missing,
        // A lock that was waited for too long, a deadlock, a serialization failure.
        "55P03" | "40P01" | "40001" => FeedErrorKind::Busy,
        // A table or a schema that is not there.
        "42P01" | "3F000" => FeedErrorKind::NotInstalled,
        // It is there already, or something else depends on it.
        "42P06" | "42P07" | "42710" | "42723" | "2BP01" => FeedErrorKind::InTheWay,
        "25006" => FeedErrorKind::Unsupported,
        // Starting up, shutting down, connection lost, no connection left.
        _ if code.starts_with("57P") || code.starts_with("08") || code == "53300" => {
            FeedErrorKind::Unavailable
        }
        _ => FeedErrorKind::Refused,
    }
}

impl fmt::Display for FeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for FeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedError")
            .field("kind", &self.kind)
            .field("message", &self.in_full())
            .finish_non_exhaustive()
    }
}

impl std::error::Error for FeedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_the_server_are_told_apart() {
        for (code, kind) in [
            ("42501", FeedErrorKind::Denied),
            ("55P03", FeedErrorKind::Busy),
            ("42P01", FeedErrorKind::NotInstalled),
            ("2BP01", FeedErrorKind::InTheWay),
            ("57P03", FeedErrorKind::Unavailable),
            ("08006", FeedErrorKind::Unavailable),
            ("22012", FeedErrorKind::Refused),
            ("", FeedErrorKind::Refused),
        ] {
            assert_eq!(kind_of(code), kind, "{code}");
        }
    }

    #[test]
    fn causes_stand_behind_the_sentence() {
        let error = FeedError::config("the first").with_source("the second");
        assert_eq!(error.to_string(), "the first");
        assert_eq!(error.in_full(), "the first: the second");
    }
}
