//! The name of a table, as people write it and as SQL does.

use std::fmt;

use crate::error::{FeedError, Result};
use crate::quote::ident;

/// A table with its schema, spelled exactly as in the catalog.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TableName {
    pub(crate) schema: String,
    pub(crate) table: String,
}

impl TableName {
    /// Reads `table`, `schema.table` or `"odd.schema"."table"`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            let text = text.escape_debug();
            FeedError::config(format!(
                "`{text}` is not the name of a table: {why}; write it like public.product or \
                 \"odd.schema\".\"table\""
            ))
        };
        let (first, rest) = part(text).map_err(wrong)?;
        let Some(rest) = rest else {
            return Ok(Self {
                schema: "public".into(),
                table: first,
            });
        };
        match part(rest).map_err(wrong)? {
            (table, None) => Ok(Self {
                schema: first,
                table,
            }),
            _ => Err(wrong("there is more than a schema and a table")),
        }
    }

    /// As SQL names it.
    pub(crate) fn sql(&self) -> String {
        format!("{}.{}", ident(&self.schema), ident(&self.table))
    }

    /// The name of the function that the triggers of this table call: readable at its beginning,
    /// different for every table by its end, and at most 63 bytes long.
    pub(crate) fn function(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let readable: String = self.table.chars().filter(|c| plain(*c)).take(40).collect();
        let hash = fnv(&[&self.schema, &self.table]);
        format!("{readable}_{hash:016x}")
    }
}

/// Splits off the first part; what is left begins behind its dot.
fn part(text: &str) -> Result<(String, Option<&str>), &'static str> {
    if text.contains('\0') {
        return Err("it holds a NUL");
    }
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => unquote(quoted)?,
        None => {
            let end = text.find(['.', '"']).unwrap_or(text.len());
            (text[..end].to_owned(), &text[end..])
        }
    };
    if name.is_empty() {
        return Err("a part is empty");
    }
    match rest.strip_prefix('.') {
        Some(rest) => Ok((name, Some(rest))),
        None if rest.is_empty() => Ok((name, None)),
        None => Err("a quote is in the wrong place"),
    }
}

/// Reads up to the closing quote; a doubled quote is one of the name.
fn unquote(text: &str) -> Result<(String, &str), &'static str> {
    let mut name = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('"') {
        name.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Ok((name, rest)),
        }
    }
    Err("a quote is not closed")
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |name: &str| !name.contains(|c: char| c.is_control() || matches!(c, '.' | '"'));
        for (name, end) in [(&self.schema, "."), (&self.table, "")] {
            if plain(name) {
                write!(f, "{name}{end}")?;
            } else {
                write!(f, "{}{end}", ident(name).escape_debug())?;
            }
        }
        Ok(())
    }
}

/// FNV-1a over 64 bits (Fowler, Noll, Vo): the same in every release, which names and locks in a
/// database have to be. The texts are kept apart by a byte that none of them holds.
pub(crate) fn fnv(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, String) {
        let name = TableName::parse(text).unwrap();
        (name.schema, name.table)
    }

    fn pair(schema: &str, table: &str) -> (String, String) {
        (schema.into(), table.into())
    }

    #[test]
    fn names_are_read_as_they_are_spelled() {
        assert_eq!(parsed("product"), pair("public", "product"));
        assert_eq!(parsed("Shop.Product"), pair("Shop", "Product"));
        assert_eq!(parsed(r#""a.b"."c""d""#), pair("a.b", "c\"d"));
        assert_eq!(parsed("größe.日本"), pair("größe", "日本"));
        assert_eq!(parsed("a b.c;d"), pair("a b", "c;d"));
    }

    #[test]
    fn what_is_no_name_is_refused_in_one_sentence() {
        for text in [
            "",
            ".",
            "a.",
            ".a",
            "a.b.c",
            "\"a",
            "a\"b",
            "\"a\"b",
            "\"\".a",
            "a.\0",
            "a.\"b\".c",
        ] {
            let error = TableName::parse(text).unwrap_err().to_string();
            assert!(error.contains("is not the name of a table"), "{error}");
            assert!(!error.contains(['\0', '\n']), "{error}");
        }
    }

    #[test]
    fn a_name_shown_is_a_name_that_can_be_read() {
        for text in ["public.product", r#""a.b"."c""d""#, "größe.日本"] {
            let name = TableName::parse(text).unwrap();
            assert_eq!(name.to_string().replace("\\\"", "\""), text);
        }
    }

    #[test]
    fn functions_of_different_tables_have_different_names_that_fit() {
        let of = |schema: &str, table: &str| {
            let (schema, table) = (schema.into(), table.into());
            TableName { schema, table }.function()
        };
        assert_eq!(of("public", "product"), "product_da48d55598c3b05d");
        assert_ne!(of("a", "bc"), of("ab", "c"));
        assert_ne!(of("s", "日"), of("s", "本"));
        assert!(of("public", &"x".repeat(63)).len() <= 63);
    }
}
