//! What is there: the server, the feed's schema, the tables, and what stands on them.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{PgConnection, Row, postgres::PgRow};

use crate::config::Checked;
use crate::error::{FeedError, FeedErrorKind, Result};
use crate::table::TableName;

/// What the feed's own tables and functions have as their comment, so that they are known again.
pub(crate) const MARK: &str = "larder change feed";

/// PostgreSQL 13 brought the type of a transaction's number that never wraps around.
const OLDEST_SERVER: i32 = 130_000;

/// A look at the database, as far as a feed is concerned.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) schema: Schema,
    /// The functions of the feed, by name.
    pub(crate) functions: BTreeMap<String, Function>,
    pub(crate) tables: BTreeMap<TableName, Table>,
    /// Triggers that call a function of the feed's schema, and those that have the names of ours.
    pub(crate) triggers: Vec<Trigger>,
    /// Which of the roles that the configuration names exist.
    pub(crate) roles: BTreeSet<String>,
}

/// The state of the feed's schema.
#[derive(Debug, Default)]
pub(crate) enum Schema {
    #[default]
    Absent,
    /// It is there, and nothing is in it.
    Empty,
    /// It holds this, and no feed.
    Foreign(String),
    Ours(Installed),
}

/// What the feed noted about itself when it was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) format: i32,
    pub(crate) namespace: String,
    /// Whether the schema was made with the feed, and so goes with it.
    pub(crate) made_schema: bool,
    pub(crate) roles: Vec<String>,
}

/// A function of the feed.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) body: String,
}

/// A table that the configuration names.
#[derive(Debug)]
pub(crate) struct Table {
    /// As in `pg_class.relkind`; `r` is a table, `p` one in partitions.
    pub(crate) kind: char,
    /// Whether it is a part of another table, by partitioning or by inheritance.
    pub(crate) is_part: bool,
    /// The tables that inherit from it without being partitions.
    pub(crate) heirs: Vec<TableName>,
    /// Type name and category (`pg_type.typcategory`) of each column.
    pub(crate) columns: BTreeMap<String, (String, char)>,
    /// Whether the installing role may read it.
    pub(crate) readable: bool,
}

/// A trigger.
#[derive(Debug)]
pub(crate) struct Trigger {
    pub(crate) table: TableName,
    pub(crate) name: String,
    /// The schema and the name of the function it calls.
    pub(crate) function: (String, String),
    pub(crate) enabled: bool,
    pub(crate) for_each_row: bool,
}

impl Catalog {
    /// Reads what concerns the feed of `config`.
    pub(crate) async fn read(conn: &mut PgConnection, config: &Checked) -> Result<Self> {
        check_server(conn).await?;
        let schema = Schema::read(conn, &config.schema).await?;
        let mut tables = BTreeMap::new();
        for watched in &config.tables {
            if let Some(table) = Table::read(conn, &watched.name).await? {
                tables.insert(watched.name.clone(), table);
            }
        }
        Ok(Self {
            schema,
            functions: functions(conn, &config.schema).await?,
            triggers: triggers(conn, config).await?,
            roles: roles(conn, &config.roles).await?,
            tables,
        })
    }
}

async fn check_server(conn: &mut PgConnection) -> Result<()> {
    let sql = "SELECT current_setting('server_version_num')::int4, pg_is_in_recovery(), \
               current_setting('server_version')";
    let row = sqlx::query(sql).fetch_one(conn).await;
    let row = row.map_err(failed("ask the server for its version"))?;
    let (number, replica): (i32, bool) = (get(&row, 0)?, get(&row, 1)?);
    let wrong = if number < OLDEST_SERVER {
        let version: String = get(&row, 2)?;
        format!("this is PostgreSQL {version}; the feed needs 13 or later")
    } else if replica {
        "this server is a replica, which takes no writes; name the primary".into()
    } else {
        return Ok(());
    };
    Err(FeedError::new(FeedErrorKind::Unsupported, wrong))
}

impl Schema {
    async fn read(conn: &mut PgConnection, schema: &str) -> Result<Self> {
        let doing = "look at the feed's schema";
        let sql = "SELECT n.oid::int8, \
                          (SELECT d.description FROM pg_class c JOIN pg_description d \
                             ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass \
                                AND d.objsubid = 0 \
                            WHERE c.relnamespace = n.oid AND c.relname = 'installed'), \
                          (SELECT string_agg(o.what, ', ') FROM ( \
                              SELECT 'relation ' || relname AS what FROM pg_class \
                               WHERE relnamespace = n.oid \
                              UNION ALL \
                              SELECT 'function ' || proname FROM pg_proc \
                               WHERE pronamespace = n.oid \
                              ORDER BY 1 LIMIT 5) AS o) \
                     FROM pg_namespace n WHERE n.nspname = $1";
        let row = sqlx::query(sql)
            .bind(schema)
            .fetch_optional(&mut *conn)
            .await;
        let Some(row) = row.map_err(failed(doing))? else {
            return Ok(Self::Absent);
        };
        let mark: Option<String> = get(&row, 1)?;
        let holds: Option<String> = get(&row, 2)?;
        match (mark, holds) {
            (Some(mark), _) if mark == MARK => Installed::read(conn, schema).await.map(Self::Ours),
            (_, Some(holds)) => Ok(Self::Foreign(holds)),
            (_, None) => Ok(Self::Empty),
        }
    }
}

impl Installed {
    /// Reads the note of a feed; `NotInstalled` where there is none.
    pub(crate) async fn read(conn: &mut PgConnection, schema: &str) -> Result<Self> {
        let sql = format!(
            "SELECT format, namespace, made_schema, roles FROM {}.installed",
            crate::quote::ident(schema)
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_optional(conn);
        let row = match row.await {
            Ok(Some(row)) => row,
            Ok(None) => return Err(FeedError::not_installed(schema)),
            Err(error) => {
                let error = FeedError::of("read what the feed noted about itself", error);
                return Err(match error.kind() {
                    FeedErrorKind::NotInstalled => FeedError::not_installed(schema),
                    _ => error,
                });
            }
        };
        Ok(Self {
            format: get(&row, 0)?,
            namespace: get(&row, 1)?,
            made_schema: get(&row, 2)?,
            roles: get(&row, 3)?,
        })
    }
}

async fn functions(conn: &mut PgConnection, schema: &str) -> Result<BTreeMap<String, Function>> {
    let sql = "SELECT p.proname::text, p.prosrc FROM pg_proc p \
                 JOIN pg_namespace n ON n.oid = p.pronamespace \
                 JOIN pg_description d ON d.objoid = p.oid \
                  AND d.classoid = 'pg_proc'::regclass \
                WHERE n.nspname = $1 AND p.prorettype = 'trigger'::regtype \
                  AND d.description LIKE $2 || '%'";
    let rows = sqlx::query(sql).bind(schema).bind(MARK).fetch_all(conn);
    let rows = rows.await.map_err(failed("look at the feed's functions"))?;
    rows.iter()
        .map(|row| Ok((get(row, 0)?, Function { body: get(row, 1)? })))
        .collect()
}

impl Table {
    async fn read(conn: &mut PgConnection, name: &TableName) -> Result<Option<Self>> {
        let doing = "look at a table";
        let sql = "SELECT c.oid::int8, c.relkind::text, \
                          EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid), \
                          has_table_privilege(c.oid, 'SELECT') \
                     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                    WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind NOT IN ('i', 'I', 't')";
        let row = sqlx::query(sql)
            .bind(&name.schema)
            .bind(&name.table)
            .fetch_optional(&mut *conn)
            .await;
        let Some(row) = row.map_err(failed(doing))? else {
            return Ok(None);
        };
        let oid: i64 = get(&row, 0)?;
        let kind: String = get(&row, 1)?;
        Ok(Some(Self {
            kind: kind.chars().next().unwrap_or_default(),
            is_part: get(&row, 2)?,
            heirs: heirs(conn, oid).await?,
            columns: columns(conn, oid).await?,
            readable: get(&row, 3)?,
        }))
    }
}

/// Tables below the one with this number, at whatever depth, that are not partitions.
async fn heirs(conn: &mut PgConnection, oid: i64) -> Result<Vec<TableName>> {
    let sql = "WITH RECURSIVE below AS ( \
                   SELECT inhrelid FROM pg_inherits WHERE inhparent = $1::int8::oid \
                   UNION \
                   SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.inhrelid) \
               SELECT n.nspname::text, c.relname::text FROM below b \
                 JOIN pg_class c ON c.oid = b.inhrelid AND NOT c.relispartition \
                 JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 1, 2";
    let rows = sqlx::query(sql).bind(oid).fetch_all(conn).await;
    let rows = rows.map_err(failed("look at the heirs of a table"))?;
    rows.iter().map(|row| table_name(row, 0)).collect()
}

/// The columns of a table. A domain counts as the type below it.
async fn columns(conn: &mut PgConnection, oid: i64) -> Result<BTreeMap<String, (String, char)>> {
    let sql = "SELECT a.attname::text, t.typcategory::text, \
                      format_type(CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END, NULL) \
                 FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
                WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped";
    let rows = sqlx::query(sql).bind(oid).fetch_all(conn).await;
    let rows = rows.map_err(failed("look at the columns of a table"))?;
    rows.iter()
        .map(|row| {
            let category: String = get(row, 1)?;
            let category = category.chars().next().unwrap_or_default();
            Ok((get(row, 0)?, (get(row, 2)?, category)))
        })
        .collect()
}

async fn triggers(conn: &mut PgConnection, config: &Checked) -> Result<Vec<Trigger>> {
    // A trigger on a partition that belongs to one of the table above is not one of its own.
    let sql = "SELECT tn.nspname::text, c.relname::text, t.tgname::text, fn.nspname::text, \
                      p.proname::text, t.tgenabled IN ('O', 'A'), (t.tgtype & 1) = 1 \
                 FROM pg_trigger t \
                 JOIN pg_class c ON c.oid = t.tgrelid \
                 JOIN pg_namespace tn ON tn.oid = c.relnamespace \
                 JOIN pg_proc p ON p.oid = t.tgfoid \
                 JOIN pg_namespace fn ON fn.oid = p.pronamespace \
                WHERE NOT t.tgisinternal AND t.tgparentid = 0 \
                  AND (fn.nspname = $1 OR left(t.tgname, length($1) + 1) = $1 || '_') \
                ORDER BY 1, 2, 3";
    let rows = sqlx::query(sql).bind(&config.schema).fetch_all(conn).await;
    let rows = rows.map_err(failed("look at the triggers"))?;
    rows.iter()
        .map(|row| {
            Ok(Trigger {
                table: table_name(row, 0)?,
                name: get(row, 2)?,
                function: (get(row, 3)?, get(row, 4)?),
                enabled: get(row, 5)?,
                for_each_row: get(row, 6)?,
            })
        })
        .collect()
}

async fn roles(conn: &mut PgConnection, wanted: &[String]) -> Result<BTreeSet<String>> {
    let sql = "SELECT rolname::text FROM pg_roles WHERE rolname = ANY ($1)";
    let rows = sqlx::query(sql).bind(wanted).fetch_all(conn).await;
    let rows = rows.map_err(failed("look at the roles"))?;
    rows.iter().map(|row| get(row, 0)).collect()
}

fn table_name(row: &PgRow, at: usize) -> Result<TableName> {
    Ok(TableName {
        schema: get(row, at)?,
        table: get(row, at + 1)?,
    })
}

/// One column of an answer.
pub(crate) fn get<'r, T>(row: &'r PgRow, at: usize) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(at)
        .map_err(|error| FeedError::of("read an answer of the server", error))
}

/// Turns the error of a statement into ours.
pub(crate) fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> FeedError {
    move |error| FeedError::of(doing, error)
}
