//! What has to be done to a database, decided from what is there. Nothing here asks or changes it.

use std::fmt;

use larder::Template;

use crate::body::{NEW_ROWS, OLD_ROWS, View, function_body, outbox};
use crate::catalog::{Catalog, Function, Installed, MARK, Schema, Table, Trigger};
use crate::config::{Checked, Watched};
use crate::error::{FeedError, FeedErrorKind, Result};
use crate::quote::{dollar, ident, in_comment, literal};
use crate::table::{TableName, fnv};

/// The shape of the feed's own tables. A change of it raises the number.
pub(crate) const FORMAT: i32 = 1;

/// How long a statement of a plan waits for a lock. Meanwhile those who write to the table wait
/// behind it, so it is short.
const LOCK_TIMEOUT: &str = "5s";

/// How many statements at the beginning of a plan only lock.
pub(crate) const LOCKS: usize = 2;

/// A statement, and what it does: "create ...".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) doing: String,
    pub(crate) sql: String,
}

impl Statement {
    fn new(doing: impl Into<String>, sql: impl Into<String>) -> Self {
        Self {
            doing: doing.into(),
            sql: sql.into(),
        }
    }
}

/// Everything that runs, in one transaction; nothing if there is nothing to do.
pub(crate) fn in_full(config: &Checked, statements: Vec<Statement>) -> Vec<Statement> {
    if statements.is_empty() {
        return statements;
    }
    let lock = lock_key("install", &config.schema);
    let first: [Statement; LOCKS] = [
        Statement::new(
            "give up on a table that is busy rather than hold up its writers",
            format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"),
        ),
        Statement::new(
            "let one installation go on at a time",
            format!("SELECT pg_advisory_xact_lock({lock})"),
        ),
    ];
    first.into_iter().chain(statements).collect()
}

/// The number of an advisory lock. These locks are those of one database.
pub(crate) fn lock_key(what: &str, schema: &str) -> i64 {
    fnv(&["larder", what, schema]).cast_signed()
}

/// What makes `config` true.
pub(crate) fn install(config: &Checked, catalog: &Catalog) -> Result<Vec<Statement>> {
    let installed = check_schema(config, &catalog.schema)?;
    if let Some(role) = config.roles.iter().find(|r| !catalog.roles.contains(*r)) {
        let message = format!("there is no role `{role}`; create it, or take it out of `roles`");
        return Err(FeedError::missing(message));
    }
    let mut statements = match installed {
        None => foundation(config, &catalog.schema),
        Some(installed) => changed_roles(config, installed),
    };
    let mut wanted = Vec::new();
    for watched in &config.tables {
        let table = check_table(config, catalog, watched)?;
        let view = view_of(table);
        statements.extend(function(config, watched, view, &catalog.functions));
        wanted.extend(triggers_of(config, watched, view));
    }
    for trigger in &wanted {
        statements.extend(trigger.statements(config, &catalog.triggers)?);
    }
    statements.extend(surplus(config, catalog, &wanted));
    Ok(statements)
}

/// What takes a feed away.
pub(crate) fn remove(config: &Checked, catalog: &Catalog) -> Result<Vec<Statement>> {
    let Some(installed) = check_schema(config, &catalog.schema)? else {
        return Ok(Vec::new());
    };
    let schema = &config.schema;
    let mut statements: Vec<Statement> = catalog
        .functions
        .keys()
        .map(|name| drop_function(config, catalog, name))
        .collect();
    for table in ["outbox", "installed"] {
        statements.push(Statement::new(
            format!("remove the table `{table}` of the feed"),
            format!("DROP TABLE {}.{table}", ident(schema)),
        ));
    }
    if installed.made_schema {
        statements.push(Statement::new(
            "remove the schema of the feed",
            format!("DROP SCHEMA {}", ident(schema)),
        ));
    } else {
        statements.extend(usage(schema, "REVOKE", "FROM", &installed.roles));
    }
    Ok(statements)
}

/// The feed that is installed, if any; an error if what is there is not this feed.
fn check_schema<'a>(config: &Checked, schema: &'a Schema) -> Result<Option<&'a Installed>> {
    let name = &config.schema;
    match schema {
        Schema::Absent | Schema::Empty => Ok(None),
        Schema::Foreign(holds) => Err(FeedError::in_the_way(format!(
            "schema `{name}` is not a feed's: it holds {holds}; give the feed another `schema`"
        ))),
        Schema::Ours(installed) => check_installed(config, installed).map(|()| Some(installed)),
    }
}

/// Whether a feed is this one, in a shape that this release knows.
pub(crate) fn check_installed(config: &Checked, installed: &Installed) -> Result<()> {
    let (name, theirs, ours) = (&config.schema, &installed.namespace, &config.namespace);
    if installed.format > FORMAT {
        return Err(FeedError::new(
            FeedErrorKind::Unsupported,
            format!("the feed in schema `{name}` was installed by a newer larder; use that one"),
        ));
    }
    if theirs != ours {
        return Err(FeedError::in_the_way(format!(
            "the feed in schema `{name}` is that of namespace `{theirs}`; give the one of `{ours}` \
             another `schema`"
        )));
    }
    Ok(())
}

/// The feed's own tables.
fn foundation(config: &Checked, there: &Schema) -> Vec<Statement> {
    let schema = ident(&config.schema);
    let outbox = outbox(&config.schema);
    let makes_schema = matches!(there, Schema::Absent);
    let mut statements = Vec::new();
    if makes_schema {
        let sql = format!("CREATE SCHEMA {schema}");
        statements.push(Statement::new("create the schema of the feed", sql));
    }
    statements.push(Statement::new(
        "create the note that the feed keeps about itself",
        format!(
            "CREATE TABLE {schema}.installed (\n  \
               one boolean PRIMARY KEY DEFAULT true CHECK (one),\n  \
               format integer NOT NULL,\n  \
               namespace text NOT NULL,\n  \
               made_schema boolean NOT NULL,\n  \
               roles text[] NOT NULL,\n  \
               at timestamptz NOT NULL DEFAULT now()\n)"
        ),
    ));
    statements.push(Statement::new(
        "mark it as the feed's",
        format!("COMMENT ON TABLE {schema}.installed IS {}", literal(MARK)),
    ));
    // A queue's rows come and go: it is vacuumed by how many went, not by their share.
    statements.push(Statement::new(
        "create the table of what is to be invalidated",
        format!(
            "CREATE TABLE {outbox} (\n  \
               xid xid8 NOT NULL DEFAULT pg_current_xact_id(),\n  \
               id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,\n  \
               at timestamptz NOT NULL DEFAULT clock_timestamp(),\n  \
               what text[] NOT NULL,\n  \
               PRIMARY KEY (xid, id)\n\
             ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000)"
        ),
    ));
    statements.push(Statement::new(
        "note what was installed",
        format!(
            "INSERT INTO {schema}.installed (format, namespace, made_schema, roles)\n\
             VALUES ({FORMAT}, {}, {makes_schema}, {})",
            literal(&config.namespace),
            text_array(&config.roles)
        ),
    ));
    statements.extend(grants(&config.schema, "GRANT", "TO", &config.roles));
    statements
}

fn changed_roles(config: &Checked, installed: &Installed) -> Vec<Statement> {
    if installed.roles == config.roles {
        return Vec::new();
    }
    let schema = &config.schema;
    let only_in = |these: &[String], those: &[String]| -> Vec<String> {
        let missing = |role: &&String| !those.contains(role);
        these.iter().filter(missing).cloned().collect()
    };
    let gone = only_in(&installed.roles, &config.roles);
    let new = only_in(&config.roles, &installed.roles);
    let mut statements = grants(schema, "REVOKE", "FROM", &gone);
    statements.extend(grants(schema, "GRANT", "TO", &new));
    statements.push(Statement::new(
        "note the roles",
        format!(
            "UPDATE {}.installed SET roles = {}",
            ident(schema),
            text_array(&config.roles)
        ),
    ));
    statements
}

/// What a role needs to follow the feed and to write into it, and no more.
fn grants(schema: &str, verb: &str, to: &str, roles: &[String]) -> Vec<Statement> {
    let mut statements = usage(schema, verb, to, roles);
    for role in roles {
        let doing = format!("{} role `{role}` the feed's tables", verb.to_lowercase());
        let (schema, role) = (ident(schema), ident(role));
        statements.push(Statement::new(
            doing.clone(),
            format!("{verb} SELECT, INSERT, UPDATE, DELETE ON {schema}.outbox {to} {role}"),
        ));
        statements.push(Statement::new(
            doing,
            format!("{verb} SELECT ON {schema}.installed {to} {role}"),
        ));
    }
    statements
}

fn usage(schema: &str, verb: &str, to: &str, roles: &[String]) -> Vec<Statement> {
    let one = |role: &String| {
        Statement::new(
            format!("{} role `{role}` the feed's schema", verb.to_lowercase()),
            format!(
                "{verb} USAGE ON SCHEMA {} {to} {}",
                ident(schema),
                ident(role)
            ),
        )
    };
    roles.iter().map(one).collect()
}

fn text_array(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
    format!("ARRAY[{}]::text[]", texts.join(", "))
}

/// Whether the table is there and can be watched.
fn check_table<'a>(config: &Checked, catalog: &'a Catalog, watched: &Watched) -> Result<&'a Table> {
    let name = &watched.name;
    let table = catalog
        .tables
        .get(name)
        .ok_or_else(|| FeedError::missing(format!("there is no table {name} in this database")))?;
    let what = match table.kind {
        'r' | 'p' => None,
        'v' | 'm' => Some("a view; name the tables below it"),
        'f' => Some("a foreign table; install the feed where its rows are written"),
        _ => Some("no table"),
    };
    if let Some(what) = what {
        return Err(FeedError::config(format!("{name} is {what}")));
    }
    let unnamed = |heir: &&TableName| config.tables.iter().all(|other| other.name != **heir);
    if let Some(heir) = table.heirs.iter().find(unnamed) {
        return Err(FeedError::config(format!(
            "table {heir} inherits from {name}, and changes of its rows would be missed; name it too"
        )));
    }
    for template in &watched.templates {
        check_columns(name, table, template)?;
    }
    let has_columns = |template: &Template| template.fields().next().is_some();
    if !table.readable && watched.templates.iter().any(has_columns) {
        return Err(FeedError::new(
            FeedErrorKind::Denied,
            format!("the role of this connection may not read {name}; grant it SELECT on it"),
        ));
    }
    Ok(table)
}

fn check_columns(name: &TableName, table: &Table, template: &Template) -> Result<()> {
    for column in template.fields() {
        let Some((shown, category)) = table.columns.get(column) else {
            let all: Vec<&str> = table.columns.keys().take(20).map(String::as_str).collect();
            let column = column.escape_debug();
            return Err(FeedError::missing(format!(
                "table {name} has no column `{column}`; it has {}",
                all.join(", ")
            )));
        };
        if !has_plain_text(shown, *category) {
            return Err(FeedError::config(format!(
                "column `{column}` of table {name} is of type {shown}, which is not written as one \
                 plain text; use a column that is, generated if need be"
            )));
        }
    }
    Ok(())
}

/// Whether values of the type have a text that is the same whoever asks.
///
/// Numbers, strings, booleans, times, enums and addresses do, with the settings that the function
/// pins. An amount of money is written as the server's locale has it.
fn has_plain_text(shown: &str, category: char) -> bool {
    matches!(category, 'N' | 'S' | 'B' | 'D' | 'T' | 'E' | 'I') && shown != "money"
        || shown == "uuid"
}

fn view_of(table: &Table) -> View {
    if table.kind == 'p' || table.is_part || !table.heirs.is_empty() {
        View::Row
    } else {
        View::Statement
    }
}

/// Creates or replaces the function of a table, unless it is there as it should be.
fn function(
    config: &Checked,
    watched: &Watched,
    view: View,
    there: &std::collections::BTreeMap<String, Function>,
) -> Vec<Statement> {
    let table = &watched.name;
    let name = table.function();
    let body = function_body(&config.schema, table, &watched.templates, view, config.wake);
    let existing = there.get(&name);
    if existing.is_some_and(|function| function.body == body) {
        return Vec::new();
    }
    let qualified = format!("{}.{}()", ident(&config.schema), ident(&name));
    // The rights are those of whoever installs, so that those who write to the table need none.
    // The settings decide how times and numbers are written.
    let mut statements = vec![Statement::new(
        format!("create the function that notes changes of table {table}"),
        format!(
            "CREATE OR REPLACE FUNCTION {qualified} RETURNS trigger\n\
             LANGUAGE plpgsql SECURITY DEFINER\n\
             SET search_path = pg_catalog, pg_temp\n\
             SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET timezone = 'UTC'\n\
             SET extra_float_digits = 1\n\
             AS {}",
            dollar(&body)
        ),
    )];
    if existing.is_none() {
        statements.push(Statement::new(
            "keep others from calling it",
            format!("REVOKE ALL ON FUNCTION {qualified} FROM PUBLIC"),
        ));
        let comment = literal(&format!("{MARK} of {table}"));
        statements.push(Statement::new(
            "mark it as the feed's",
            format!("COMMENT ON FUNCTION {qualified} IS {comment}"),
        ));
    }
    statements
}

/// A trigger as it should be.
#[derive(Debug)]
struct Wanted {
    table: TableName,
    name: String,
    function: String,
    view: View,
    /// When it fires: `AFTER INSERT`.
    when: &'static str,
    /// The tables in which it finds the rows of a statement.
    rows: String,
}

fn triggers_of(config: &Checked, watched: &Watched, view: View) -> Vec<Wanted> {
    let wanted = |event: &str, view: View, when: &'static str, rows: String| Wanted {
        table: watched.name.clone(),
        name: format!("{}_{event}", config.schema),
        function: watched.name.function(),
        view,
        when,
        rows,
    };
    let old = format!(" OLD TABLE AS {OLD_ROWS}");
    let new = format!(" NEW TABLE AS {NEW_ROWS}");
    let rows = |tables: [&str; 2]| format!("\n  REFERENCING{}", tables.concat());
    let mut all = match view {
        View::Row => vec![wanted(
            "change",
            view,
            "AFTER INSERT OR UPDATE OR DELETE",
            String::new(),
        )],
        View::Statement => vec![
            wanted("insert", view, "AFTER INSERT", rows(["", &new])),
            wanted("update", view, "AFTER UPDATE", rows([&old, &new])),
            wanted("delete", view, "AFTER DELETE", rows([&old, ""])),
        ],
    };
    // What is truncated is named while it can still be read.
    let truncate = wanted(
        "truncate",
        View::Statement,
        "BEFORE TRUNCATE",
        String::new(),
    );
    all.push(truncate);
    all
}

impl Wanted {
    /// What makes the trigger be there, or an error if another one has its name.
    fn statements(&self, config: &Checked, there: &[Trigger]) -> Result<Vec<Statement>> {
        let same = |t: &&Trigger| t.table == self.table && t.name == self.name;
        let Some(existing) = there.iter().find(same) else {
            return Ok(vec![self.create(config)]);
        };
        let (table, name) = (&self.table, &self.name);
        let (schema, function) = &existing.function;
        if *schema != config.schema {
            return Err(FeedError::in_the_way(format!(
                "table {table} has a trigger `{name}` that is not the feed's (it calls \
                 {schema}.{function}); rename it, or give the feed another `schema`"
            )));
        }
        if !self.is(existing) {
            return Ok(vec![drop_trigger(existing), self.create(config)]);
        }
        if existing.enabled {
            return Ok(Vec::new());
        }
        let on = self.table.sql();
        Ok(vec![Statement::new(
            format!("switch a trigger on table {table} on again"),
            format!("ALTER TABLE {on} ENABLE TRIGGER {}", ident(name)),
        )])
    }

    fn is(&self, trigger: &Trigger) -> bool {
        trigger.function.1 == self.function && trigger.for_each_row == (self.view == View::Row)
    }

    fn create(&self, config: &Checked) -> Statement {
        let each = match self.view {
            View::Statement => "STATEMENT",
            View::Row => "ROW",
        };
        Statement::new(
            format!("put a trigger on table {}", self.table),
            format!(
                "CREATE TRIGGER {} {} ON {}{}\n  FOR EACH {each} EXECUTE FUNCTION {}.{}()",
                ident(&self.name),
                self.when,
                self.table.sql(),
                self.rows,
                ident(&config.schema),
                ident(&self.function)
            ),
        )
    }
}

fn drop_trigger(trigger: &Trigger) -> Statement {
    let table = &trigger.table;
    Statement::new(
        format!("remove a trigger from table {table}"),
        format!("DROP TRIGGER {} ON {}", ident(&trigger.name), table.sql()),
    )
}

/// Removes what was installed before and is no longer wanted.
fn surplus(config: &Checked, catalog: &Catalog, wanted: &[Wanted]) -> Vec<Statement> {
    let stays = |name: &str| wanted.iter().any(|trigger| trigger.function == name);
    let triggers = catalog.triggers.iter().filter(|trigger| {
        let known = |w: &&Wanted| w.table == trigger.table && w.name == trigger.name;
        let ours = trigger.function.0 == config.schema && stays(&trigger.function.1);
        ours && wanted.iter().find(known).is_none()
    });
    let functions = catalog.functions.keys().filter(|name| !stays(name));
    triggers
        .map(drop_trigger)
        .chain(functions.map(|name| drop_function(config, catalog, name)))
        .collect()
}

/// Removes a function and the triggers that call it. Whoever may remove the function may do so,
/// also where the table belongs to somebody else.
fn drop_function(config: &Checked, catalog: &Catalog, name: &str) -> Statement {
    let calls = |t: &&Trigger| t.function.0 == config.schema && t.function.1 == name;
    let mut tables: Vec<String> = catalog
        .triggers
        .iter()
        .filter(calls)
        .map(|trigger| trigger.table.to_string())
        .collect();
    tables.dedup();
    let doing = match tables.join(", ") {
        none if none.is_empty() => "remove a function of the feed".to_owned(),
        tables => format!("remove the triggers from table {tables}, with their function"),
    };
    let schema = ident(&config.schema);
    Statement::new(
        doing,
        format!("DROP FUNCTION {schema}.{}() CASCADE", ident(name)),
    )
}

/// Writes statements as a script that can be run by hand.
pub(crate) fn script(statements: &[Statement], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "BEGIN;")?;
    for statement in statements {
        writeln!(f, "-- {}", in_comment(&statement.doing))?;
        writeln!(f, "{};", statement.sql)?;
    }
    writeln!(f, "COMMIT;")
}
