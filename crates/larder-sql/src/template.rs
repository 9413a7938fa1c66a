//! Mappings as templates: text with columns in it, and the expression that fills them in.

use larder::{Template, TemplateKind, TemplatePiece};

use crate::config::Mapping;
use crate::quote::{ident, literal};

/// Reads a mapping, whose fields are columns; the error is a sentence without the table.
pub(crate) fn parse(mapping: &Mapping) -> Result<Template, String> {
    let (kind, text) = match mapping {
        Mapping::Key(text) => (TemplateKind::Key, text),
        Mapping::Expire(text) => (TemplateKind::Expire, text),
        Mapping::Tag(text) => (TemplateKind::Tag, text),
        Mapping::Pattern(text) => (TemplateKind::Pattern, text),
        Mapping::Cache(text) => (TemplateKind::Cache, text),
    };
    Template::parse(kind, text).map_err(|error| error.to_string())
}

/// The change as an array of texts, with the columns taken from `row`: the alias of a table or the
/// variable of a row.
pub(crate) fn expression(template: &Template, row: &str) -> String {
    let kind = template.kind();
    let fixed = [Some(kind.word()), template.cache()];
    let fixed = fixed.into_iter().flatten().map(literal);
    let parts = template.parts().iter().map(|part| text(kind, part, row));
    let all: Vec<String> = fixed.chain(parts).collect();
    format!("ARRAY[{}]", all.join(", "))
}

fn text(kind: TemplateKind, part: &[TemplatePiece], row: &str) -> String {
    let pieces: Vec<String> = part
        .iter()
        .map(|piece| match piece {
            TemplatePiece::Text(text) => literal(text),
            TemplatePiece::Field(name) => column(kind, row, name),
        })
        .collect();
    pieces.join(" || ")
}

fn column(kind: TemplateKind, row: &str, name: &str) -> String {
    let text = format!("{row}.{}::text", ident(name));
    if kind == TemplateKind::Pattern {
        // What means something in a glob means itself behind a backslash.
        format!(r"regexp_replace({text}, E'[][*?\\\\]', E'\\\\\\&', 'g')")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(mapping: &Mapping) -> String {
        super::expression(&parse(mapping).unwrap(), "r")
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
        assert!(parse(&tag).is_err());
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
            (Mapping::Pattern("a:[".into()), "is no glob"),
            (Mapping::Pattern("a:[{id}]".into()), "inside `[]`"),
        ] {
            let message = parse(&mapping).unwrap_err();
            assert!(message.contains(reason), "{mapping:?}: {message}");
            assert!(message.contains("write it like"), "{message}");
            assert!(message.len() < 400 && !message.contains('\0'), "{message}");
        }
    }
}
