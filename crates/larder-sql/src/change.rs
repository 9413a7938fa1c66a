//! How one invalidation stands in the outbox: an array of texts, the first of which says what it is.
//!
//! Triggers write the parts of a key as they stand in the row; programs write keys that are encoded
//! already. Followers read both.

use larder::Invalidation;
use larder::key::MAX_KEY_BYTES;

use crate::error::{FeedError, Result};

/// What a row of the outbox asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Invalidate(Invalidation),
    /// It names a key that no cache can hold.
    Nothing,
    /// It was written by a larder that knows more than this one.
    Unreadable,
}

/// Reads a row.
pub(crate) fn read(what: &[String]) -> Change {
    let texts: Vec<&str> = what.iter().map(String::as_str).collect();
    let found = match texts.as_slice() {
        ["key", cache, parts @ ..] if !parts.is_empty() => Invalidation::key(*cache, parts),
        ["expire", cache, parts @ ..] if !parts.is_empty() => {
            expiring(Invalidation::key(*cache, parts))
        }
        ["encoded-key", cache, key] => encoded(cache, key),
        ["encoded-expire", cache, key] => expiring(encoded(cache, key)),
        ["tag", tag] => Invalidation::tag(*tag),
        ["pattern", cache, glob] => Invalidation::pattern(*cache, *glob),
        ["cache", cache] => Invalidation::cache(*cache),
        _ => return Change::Unreadable,
    };
    match &found {
        Invalidation::Key { key, .. } | Invalidation::Expire { key, .. }
            if key.is_empty() || key.len() > MAX_KEY_BYTES =>
        {
            Change::Nothing
        }
        _ => Change::Invalidate(found),
    }
}

fn encoded(cache: &str, key: &str) -> Invalidation {
    Invalidation::Key {
        cache: cache.into(),
        key: key.to_owned().into(),
    }
}

fn expiring(key: Invalidation) -> Invalidation {
    match key {
        Invalidation::Key { cache, key } => Invalidation::Expire { cache, key },
        other => other,
    }
}

/// What stands in the outbox for an invalidation: what it is, and one or two texts.
pub(crate) fn write(what: &Invalidation) -> Result<(&'static str, String, Option<String>)> {
    let written = match what {
        Invalidation::Key { cache, key } => {
            ("encoded-key", cache.to_string(), Some(text(what, key)?))
        }
        Invalidation::Expire { cache, key } => {
            ("encoded-expire", cache.to_string(), Some(text(what, key)?))
        }
        Invalidation::Tag(tag) => ("tag", tag.to_string(), None),
        Invalidation::Pattern { cache, glob } => {
            ("pattern", cache.to_string(), Some(glob.to_string()))
        }
        Invalidation::Cache(cache) => ("cache", cache.to_string(), None),
        other => {
            let message = format!("this release of larder-sql cannot write: {other}");
            return Err(FeedError::config(message));
        }
    };
    let (_, first, second) = &written;
    if first.contains('\0') || second.as_ref().is_some_and(|text| text.contains('\0')) {
        return Err(unwritable(what));
    }
    Ok(written)
}

/// An encoded key is plain text.
fn text(what: &Invalidation, key: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(key).map_err(|_| unwritable(what))?;
    Ok(text.to_owned())
}

fn unwritable(what: &Invalidation) -> FeedError {
    let what = what.to_string().escape_debug().to_string();
    FeedError::config(format!("a text of PostgreSQL cannot hold this: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(texts: &[&str]) -> Change {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        read(&texts)
    }

    fn expire(cache: &str, part: &str) -> Invalidation {
        expiring(Invalidation::key(cache, [part]))
    }

    #[test]
    fn rows_of_triggers_are_read() {
        for (texts, expected) in [
            (
                &["key", "product", "7"][..],
                Invalidation::key("product", ["7"]),
            ),
            (
                &["key", "price", "a:b", "é"],
                Invalidation::key("price", ["a:b", "é"]),
            ),
            (&["expire", "product", "7"], expire("product", "7")),
            (&["tag", "category:3"], Invalidation::tag("category:3")),
            (
                &["pattern", "search", "a*"],
                Invalidation::pattern("search", "a*"),
            ),
            (&["cache", "product"], Invalidation::cache("product")),
        ] {
            assert_eq!(row(texts), Change::Invalidate(expected));
        }
    }

    #[test]
    fn what_programs_write_is_read_again() {
        for what in [
            Invalidation::key("price", ["a:b", "é%"]),
            expire("product", "x y"),
            Invalidation::tag("category:3"),
            Invalidation::pattern("search", "a*"),
            Invalidation::cache("product"),
        ] {
            let (kind, first, second) = write(&what).unwrap();
            let texts: Vec<&str> = [Some(kind), Some(first.as_str()), second.as_deref()]
                .into_iter()
                .flatten()
                .collect();
            assert_eq!(row(&texts), Change::Invalidate(what));
        }
    }

    #[test]
    fn keys_that_no_cache_holds_are_nothing_and_strange_rows_are_unreadable() {
        assert_eq!(row(&["key", "product", ""]), Change::Nothing);
        assert_eq!(
            row(&["key", "product", &"x".repeat(40_000)]),
            Change::Nothing
        );
        for texts in [
            &[][..],
            &["key"],
            &["key", "product"],
            &["tag"],
            &["tag", "a", "b"],
            &["cache", "a", "b"],
            &["everything"],
        ] {
            assert_eq!(row(texts), Change::Unreadable, "{texts:?}");
        }
    }

    #[test]
    fn what_a_text_cannot_hold_is_refused() {
        for what in [
            Invalidation::tag("a\0b"),
            Invalidation::pattern("search", "\0"),
            Invalidation::Key {
                cache: "product".into(),
                key: vec![0xff].into(),
            },
        ] {
            let error = write(&what).unwrap_err().to_string();
            assert!(error.contains("cannot hold"), "{error}");
            assert!(!error.contains('\0'));
        }
    }
}
