//! Templates: text with columns in it, from `product:{id}` to the expression that fills it in.

use crate::config::{Mapping, check_name};
use crate::quote::{ident, literal};

/// A mapping that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) kind: Kind,
    /// The cache; `None` for a tag.
    pub(crate) cache: Option<String>,
    /// What follows on the cache: the parts of a key, or the one text of a tag or a glob.
    pub(crate) parts: Vec<Part>,
}

/// What is invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Key,
    Expire,
    Tag,
    Pattern,
    Cache,
}

/// Text and columns, one behind the other.
type Part = Vec<Piece>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    Column(String),
}

/// Far above any name or key that a cache takes.
const LONGEST: usize = 4_096;

impl Kind {
    /// What stands first in a change of this kind, and in the configuration.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Expire => "expire",
            Self::Tag => "tag",
            Self::Pattern => "pattern",
            Self::Cache => "cache",
        }
    }
}

impl Template {
    /// Reads a mapping; the error is a sentence without the table.
    pub(crate) fn parse(mapping: &Mapping) -> Result<Self, String> {
        let (kind, text) = match mapping {
            Mapping::Key(text) => (Kind::Key, text),
            Mapping::Expire(text) => (Kind::Expire, text),
            Mapping::Tag(text) => (Kind::Tag, text),
            Mapping::Pattern(text) => (Kind::Pattern, text),
            Mapping::Cache(text) => (Kind::Cache, text),
        };
        read(kind, text).map_err(|why| {
            let text: String = text.chars().take(100).collect();
            let example = example(kind);
            format!(
                "{} template `{}` {why}; write it like `{example}`",
                kind.word(),
                text.escape_debug()
            )
        })
    }

    /// The columns it names.
    pub(crate) fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().flatten().filter_map(|piece| match piece {
            Piece::Column(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// The change as an array of texts, with the columns taken from `row`: the alias of a table or
    /// the variable of a row.
    pub(crate) fn expression(&self, row: &str) -> String {
        let fixed = [Some(self.kind.word()), self.cache.as_deref()];
        let fixed = fixed.into_iter().flatten().map(literal);
        let parts = self.parts.iter().map(|part| self.text(part, row));
        let all: Vec<String> = fixed.chain(parts).collect();
        format!("ARRAY[{}]", all.join(", "))
    }

    fn text(&self, part: &[Piece], row: &str) -> String {
        let pieces: Vec<String> = part
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => literal(text),
                Piece::Column(name) => self.column(row, name),
            })
            .collect();
        pieces.join(" || ")
    }

    fn column(&self, row: &str, name: &str) -> String {
        let text = format!("{row}.{}::text", ident(name));
        if self.kind == Kind::Pattern {
            // What means something in a glob means itself behind a backslash.
            format!(r"regexp_replace({text}, E'[][*?\\\\]', E'\\\\\\&', 'g')")
        } else {
            text
        }
    }
}

fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::Key | Kind::Expire => "product:{id}",
        Kind::Tag => "category:{category_id}",
        Kind::Pattern => "search:{name}*",
        Kind::Cache => "bestsellers",
    }
}

fn read(kind: Kind, text: &str) -> Result<Template, &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if text.len() > LONGEST {
        return Err("is longer than 4096 bytes");
    }
    if text.contains('\0') {
        return Err("holds a NUL");
    }
    let (cache, rest) = match kind {
        Kind::Tag => (None, Some(text)),
        Kind::Cache => (Some(text), None),
        Kind::Key | Kind::Expire | Kind::Pattern => {
            let (cache, rest) = text.split_once(':').ok_or("has no colon behind a cache")?;
            (Some(cache), Some(rest))
        }
    };
    if cache.is_some_and(|name| check_name("cache", name).is_err()) {
        return Err(
            "does not begin with the name of a cache: letters, digits, `_`, `-` and `.` alone",
        );
    }
    let splits = matches!(kind, Kind::Key | Kind::Expire);
    let parts = match rest {
        Some(rest) => pieces(rest, splits)?,
        None => Vec::new(),
    };
    if parts.iter().any(Vec::is_empty) {
        return Err("has an empty part");
    }
    Ok(Template {
        kind,
        cache: cache.map(Into::into),
        parts,
    })
}

/// Reads text and columns; where it `splits`, a colon of the text begins a new part.
fn pieces(text: &str, splits: bool) -> Result<Vec<Part>, &'static str> {
    let mut parts = vec![Part::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' if chars.next_if_eq(&c).is_some() => push(&mut parts, c),
            '{' => {
                let name: String = std::iter::from_fn(|| chars.next_if(|c| *c != '}')).collect();
                if chars.next().is_none() {
                    return Err("has a brace that is not closed");
                }
                if name.is_empty() || name.contains('{') {
                    return Err("has braces without the name of a column in them");
                }
                if let Some(part) = parts.last_mut() {
                    part.push(Piece::Column(name));
                }
            }
            '}' => return Err("has a brace that was not opened"),
            ':' if splits => parts.push(Part::new()),
            c => push(&mut parts, c),
        }
    }
    Ok(parts)
}

/// Adds a character to the text at the end.
fn push(parts: &mut [Part], c: char) {
    let Some(part) = parts.last_mut() else { return };
    match part.last_mut() {
        Some(Piece::Text(text)) => text.push(c),
        _ => part.push(Piece::Text(c.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(mapping: &Mapping) -> String {
        Template::parse(mapping).unwrap().expression("r")
    }

    #[test]
    fn templates_become_arrays() {
        for (mapping, expected) in [
            (
                Mapping::Key("product:{id}".into()),
                r#"ARRAY['key', 'product', r."id"::text]"#,
            ),
            (
                Mapping::Expire("price:{shop}-{id}:eur".into()),
                r#"ARRAY['expire', 'price', r."shop"::text || '-' || r."id"::text, 'eur']"#,
            ),
            (
                Mapping::Tag("category:{category_id}".into()),
                r#"ARRAY['tag', 'category:' || r."category_id"::text]"#,
            ),
            (
                Mapping::Cache("bestsellers".into()),
                "ARRAY['cache', 'bestsellers']",
            ),
            (
                Mapping::Pattern("search:a*".into()),
                "ARRAY['pattern', 'search', 'a*']",
            ),
        ] {
            assert_eq!(expression(&mapping), expected);
        }
    }

    #[test]
    fn doubled_braces_are_braces_and_odd_columns_are_quoted() {
        let tag = Mapping::Tag("{{x}}:{It's \"odd\":{".into());
        assert!(Template::parse(&tag).is_err());
        let tag = Mapping::Tag("{{x}}'{It's \"odd\":}".into());
        assert_eq!(
            expression(&tag),
            r#"ARRAY['tag', '{x}''' || r."It's ""odd"":"::text]"#
        );
    }

    #[test]
    fn what_cannot_work_is_refused_with_an_example() {
        for (mapping, reason) in [
            (Mapping::Key(String::new()), "is empty"),
            (Mapping::Key("{id}".into()), "no colon"),
            (Mapping::Key(":{id}".into()), "name of a cache"),
            (Mapping::Key("{table}:{id}".into()), "name of a cache"),
            (Mapping::Key("product:".into()), "empty part"),
            (Mapping::Key("product:{id}:".into()), "empty part"),
            (Mapping::Key("product:{id".into()), "not closed"),
            (Mapping::Key("product:id}".into()), "not opened"),
            (Mapping::Key("product:{}".into()), "without the name"),
            (Mapping::Tag("a{b{c}".into()), "without the name"),
            (Mapping::Tag("a\0".into()), "NUL"),
            (Mapping::Tag("x".repeat(5_000)), "longer than"),
            (Mapping::Cache("best sellers".into()), "name of a cache"),
            (Mapping::Cache("product:{id}".into()), "name of a cache"),
            (Mapping::Pattern("a*".into()), "no colon"),
        ] {
            let message = Template::parse(&mapping).unwrap_err();
            assert!(message.contains(reason), "{mapping:?}: {message}");
            assert!(message.contains("write it like"), "{message}");
            assert!(message.len() < 400 && !message.contains('\0'), "{message}");
        }
    }
}
