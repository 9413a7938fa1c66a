//! The function that a table's triggers call: from templates to PL/pgSQL.

use larder::{Template, TemplateKind};

use crate::config::Wake;
use crate::quote::{ident, literal};
use crate::table::TableName;
use crate::template::expression;

/// How the triggers of a table see what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// Once for each statement, with all rows that it changed: ten thousand rows of one category
    /// become one invalidation of its tag.
    Statement,
    /// Once for each row. A partition, or a table that others inherit from, is changed by
    /// statements that name another table, and only triggers for rows see those.
    Row,
}

/// The tables in which a statement's trigger finds the rows as they were and as they are.
pub(crate) const OLD_ROWS: &str = "larder_old";
pub(crate) const NEW_ROWS: &str = "larder_new";

/// Where the changed rows of one event are.
enum Rows<'a> {
    /// In a table, or what is written like one.
    In(&'a str),
    /// In a variable of the function.
    One(&'a str),
}

/// The body of the function for `table`.
///
/// It inserts what the changed rows invalidate, each once for a statement, and wakes the follower
/// if that was anything.
pub(crate) fn function_body(
    schema: &str,
    table: &TableName,
    templates: &[Template],
    view: View,
    wake: Wake,
) -> String {
    let rows = |old: bool, new: bool| {
        let (was, is) = match view {
            View::Statement => (Rows::In(OLD_ROWS), Rows::In(NEW_ROWS)),
            View::Row => (Rows::One("OLD"), Rows::One("NEW")),
        };
        let sides = [(old, was), (new, is)];
        let sides = sides.into_iter().filter(|(wanted, _)| *wanted);
        let selects = sides.flat_map(|(_, rows)| templates.iter().map(move |t| select(t, &rows)));
        selects.collect::<Vec<_>>()
    };
    let events = [
        ("INSERT", rows(false, true)),
        ("UPDATE", rows(true, true)),
        ("DELETE", rows(true, false)),
        ("TRUNCATE", of_all_rows(table, templates)),
    ];
    let outbox = outbox(schema);
    let mut body = String::from("\nBEGIN\n  CASE TG_OP\n");
    for (event, mut selects) in events {
        selects.dedup();
        let selects = selects.join("\n    UNION\n    ");
        body +=
            &format!("  WHEN '{event}' THEN\n    INSERT INTO {outbox} (what)\n    {selects};\n");
    }
    body += "  END CASE;\n";
    if wake == Wake::Notify {
        let channel = literal(schema);
        body += &format!("  IF FOUND THEN\n    PERFORM pg_notify({channel}, '');\n  END IF;\n");
    }
    body += "  RETURN NULL;\nEND\n";
    body
}

/// The table of what is to be invalidated, as SQL names it.
pub(crate) fn outbox(schema: &str) -> String {
    format!("{}.outbox", ident(schema))
}

fn select(template: &Template, rows: &Rows<'_>) -> String {
    let alias = match rows {
        Rows::In(_) => "r",
        Rows::One(variable) => variable,
    };
    let change = expression(template, alias);
    let mut columns: Vec<&str> = template.fields().collect();
    columns.sort_unstable();
    columns.dedup();
    let known: Vec<String> = columns
        .iter()
        .map(|column| format!("{alias}.{} IS NOT NULL", ident(column)))
        .collect();
    let known = known.join(" AND ");
    match (rows, columns.is_empty()) {
        (Rows::In(source), false) => format!("SELECT {change} FROM {source} AS r WHERE {known}"),
        (Rows::In(source), true) => format!("SELECT {change} WHERE EXISTS (SELECT FROM {source})"),
        (Rows::One(_), false) => format!("SELECT {change} WHERE {known}"),
        (Rows::One(_), true) => format!("SELECT {change}"),
    }
}

/// What the loss of all rows invalidates. It runs before the rows are gone.
///
/// A key or a glob is not worth naming for each of all rows: their whole cache is. Tags may be on
/// entries of any cache, so each tag that a row has is named.
fn of_all_rows(table: &TableName, templates: &[Template]) -> Vec<String> {
    let mut selects: Vec<String> = Vec::new();
    for template in templates {
        let select = match (template.kind(), template.cache()) {
            (TemplateKind::Key | TemplateKind::Expire | TemplateKind::Pattern, Some(cache))
                if template.fields().next().is_some() =>
            {
                format!("SELECT ARRAY['cache', {}]", literal(cache))
            }
            (TemplateKind::Tag, _) if template.fields().next().is_some() => {
                select(template, &Rows::In(&table.sql()))
            }
            _ => format!("SELECT {}", expression(template, "r")),
        };
        if !selects.contains(&select) {
            selects.push(select);
        }
    }
    selects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mapping;

    fn body(view: View) -> String {
        let table = TableName::parse("public.product").unwrap();
        let mappings = [
            Mapping::Key("product:{id}".into()),
            Mapping::Tag("category:{category_id}".into()),
            Mapping::Cache("bestsellers".into()),
        ];
        let templates: Vec<_> = mappings
            .iter()
            .map(|mapping| crate::template::parse(mapping).unwrap())
            .collect();
        function_body("feed", &table, &templates, view, Wake::Notify)
    }

    #[test]
    fn a_statement_is_one_insert_of_what_all_its_rows_invalidate() {
        let expected = r#"
BEGIN
  CASE TG_OP
  WHEN 'INSERT' THEN
    INSERT INTO "feed".outbox (what)
    SELECT ARRAY['key', 'product', r."id"::text] FROM larder_new AS r WHERE r."id" IS NOT NULL
    UNION
    SELECT ARRAY['tag', 'category:' || r."category_id"::text] FROM larder_new AS r WHERE r."category_id" IS NOT NULL
    UNION
    SELECT ARRAY['cache', 'bestsellers'] WHERE EXISTS (SELECT FROM larder_new);
  WHEN 'UPDATE' THEN
    INSERT INTO "feed".outbox (what)
    SELECT ARRAY['key', 'product', r."id"::text] FROM larder_old AS r WHERE r."id" IS NOT NULL
    UNION
    SELECT ARRAY['tag', 'category:' || r."category_id"::text] FROM larder_old AS r WHERE r."category_id" IS NOT NULL
    UNION
    SELECT ARRAY['cache', 'bestsellers'] WHERE EXISTS (SELECT FROM larder_old)
    UNION
    SELECT ARRAY['key', 'product', r."id"::text] FROM larder_new AS r WHERE r."id" IS NOT NULL
    UNION
    SELECT ARRAY['tag', 'category:' || r."category_id"::text] FROM larder_new AS r WHERE r."category_id" IS NOT NULL
    UNION
    SELECT ARRAY['cache', 'bestsellers'] WHERE EXISTS (SELECT FROM larder_new);
  WHEN 'DELETE' THEN
    INSERT INTO "feed".outbox (what)
    SELECT ARRAY['key', 'product', r."id"::text] FROM larder_old AS r WHERE r."id" IS NOT NULL
    UNION
    SELECT ARRAY['tag', 'category:' || r."category_id"::text] FROM larder_old AS r WHERE r."category_id" IS NOT NULL
    UNION
    SELECT ARRAY['cache', 'bestsellers'] WHERE EXISTS (SELECT FROM larder_old);
  WHEN 'TRUNCATE' THEN
    INSERT INTO "feed".outbox (what)
    SELECT ARRAY['cache', 'product']
    UNION
    SELECT ARRAY['tag', 'category:' || r."category_id"::text] FROM "public"."product" AS r WHERE r."category_id" IS NOT NULL
    UNION
    SELECT ARRAY['cache', 'bestsellers'];
  END CASE;
  IF FOUND THEN
    PERFORM pg_notify('feed', '');
  END IF;
  RETURN NULL;
END
"#;
        assert_eq!(body(View::Statement), expected);
    }

    #[test]
    fn a_row_is_taken_from_the_variables_of_its_trigger() {
        let body = body(View::Row);
        for part in [
            r#"SELECT ARRAY['key', 'product', NEW."id"::text] WHERE NEW."id" IS NOT NULL"#,
            r#"SELECT ARRAY['key', 'product', OLD."id"::text] WHERE OLD."id" IS NOT NULL"#,
            "SELECT ARRAY['cache', 'bestsellers']\n    UNION",
        ] {
            assert!(body.contains(part), "{part}:\n{body}");
        }
        assert!(!body.contains("larder_new"));
    }
}
