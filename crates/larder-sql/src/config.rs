//! What a feed is told to do, as it is written, and checked.

use std::time::Duration;

use larder::Template;

use crate::error::{FeedError, Result};
use crate::table::TableName;
use crate::template;

/// Which tables a feed watches, and what a change of a row invalidates.
///
/// With the feature `config` it implements `serde::Deserialize`:
///
/// ```toml
/// namespace = "shop"
///
/// [[table]]
/// name = "public.product"
/// invalidate = [{ key = "product:{id}" }, { tag = "category:{category_id}" }]
/// ```
///
/// The same in Rust:
///
/// ```
/// use larder_sql::{FeedConfig, Mapping, TableConfig};
///
/// let mut config = FeedConfig::new("shop");
/// config.table.push(TableConfig::new(
///     "public.product",
///     [
///         Mapping::Key("product:{id}".into()),
///         Mapping::Tag("category:{category_id}".into()),
///     ],
/// ));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize),
    serde(deny_unknown_fields)
)]
#[non_exhaustive]
pub struct FeedConfig {
    /// The namespace of the larder that the feed is for.
    pub namespace: String,
    /// The schema of the feed's own objects, which it has to itself. At most 40 bytes. Default
    /// `larder_feed`. Two feeds in one database need two schemas.
    #[cfg_attr(feature = "config", serde(default = "default_schema"))]
    pub schema: String,
    /// The tables. Default none, which leaves
    /// [`Feed::invalidate_in`](crate::Feed::invalidate_in).
    #[cfg_attr(feature = "config", serde(default))]
    pub table: Vec<TableConfig>,
    /// Roles besides the one that installs which may follow the feed and call
    /// [`Feed::invalidate_in`](crate::Feed::invalidate_in). Roles that only write to the tables
    /// need not be named.
    #[cfg_attr(feature = "config", serde(default))]
    pub roles: Vec<String>,
    /// How followers learn that there is something to do.
    #[cfg_attr(feature = "config", serde(default))]
    pub wake: Wake,
    /// How followers behave.
    #[cfg_attr(feature = "config", serde(default))]
    pub follow: FollowOptions,
}

/// One table, and what a change of one of its rows invalidates.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize),
    serde(deny_unknown_fields)
)]
#[non_exhaustive]
pub struct TableConfig {
    /// The table, with its schema: `public.product`. Upper and lower case are kept as they are.
    /// A part with a dot or a quote in it is quoted as in SQL: `"odd.schema"."table"`. Without a
    /// schema it is `public`.
    pub name: String,
    /// What is invalidated. For an update these are applied to the row as it was and as it is.
    pub invalidate: Vec<Mapping>,
}

/// What a changed row invalidates, as a template.
///
/// `{column}` stands for the text of that column in the changed row, `{{` and `}}` for braces.
/// Where such a column is NULL, the mapping does not apply to the row. TRUNCATE names no rows:
/// it invalidates the whole cache of a `Key`, an `Expire` or a `Pattern`, and for a `Tag` every tag
/// that the rows had.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize),
    serde(rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum Mapping {
    /// One entry: the name of a cache, then the parts of the key, all divided by colons:
    /// `product:{id}`, or `price:{shop}:{id}` for a key that is a tuple.
    Key(String),
    /// The same, and the entry becomes stale instead of going: it may be served within its grace.
    Expire(String),
    /// Every entry that carries a tag: `category:{category_id}`.
    Tag(String),
    /// Every entry of a cache whose key matches a glob: `search:{name}*`. What a column brings in
    /// is meant literally.
    Pattern(String),
    /// A whole cache: `bestsellers`.
    Cache(String),
}

/// How followers learn that there is something to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize),
    serde(rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum Wake {
    /// By NOTIFY, within milliseconds of the commit. PostgreSQL lets transactions that notify
    /// commit one after the other, and does not let them be prepared (`PREPARE TRANSACTION`).
    #[default]
    Notify,
    /// By asking each [`FollowOptions::poll`] alone.
    Poll,
}

/// How a follower behaves. Every field has a default.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct FollowOptions {
    /// How often a follower looks without being woken, and how often one that stands by looks
    /// whether it has to take over. Default 1 s.
    #[cfg_attr(feature = "config", serde(deserialize_with = "span"))]
    pub poll: Duration,
    /// How many changes are read, applied and removed together. Default 1,000, at most 10,000.
    pub batch: u32,
    /// How long the oldest change may wait without progress before a follower that stands by takes
    /// over from one that hangs. Default 3 s.
    #[cfg_attr(feature = "config", serde(deserialize_with = "span"))]
    pub stalled_after: Duration,
    /// How long a connection and an answer of the server may take. Default 5 s.
    #[cfg_attr(feature = "config", serde(deserialize_with = "span"))]
    pub answer_timeout: Duration,
    /// How long applying one batch may take before it counts as failed. Default 30 s.
    #[cfg_attr(feature = "config", serde(deserialize_with = "span"))]
    pub apply_timeout: Duration,
    /// The longest pause after a failure. The first is about 10 ms, each further one up to twice
    /// as long. Default 1 s.
    #[cfg_attr(feature = "config", serde(deserialize_with = "span"))]
    pub max_delay: Duration,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(1),
            batch: 1_000,
            stalled_after: Duration::from_secs(3),
            answer_timeout: Duration::from_secs(5),
            apply_timeout: Duration::from_secs(30),
            max_delay: Duration::from_secs(1),
        }
    }
}

impl FeedConfig {
    /// A feed for the larder of `namespace`, without tables yet.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            schema: default_schema(),
            table: Vec::new(),
            roles: Vec::new(),
            wake: Wake::default(),
            follow: FollowOptions::default(),
        }
    }
}

impl TableConfig {
    /// What changes of the table `name` invalidate.
    pub fn new(name: impl Into<String>, invalidate: impl IntoIterator<Item = Mapping>) -> Self {
        Self {
            name: name.into(),
            invalidate: invalidate.into_iter().collect(),
        }
    }
}

fn default_schema() -> String {
    "larder_feed".into()
}

/// PostgreSQL cuts names at 63 bytes; the names of triggers are that of the schema and a suffix.
const LONGEST_SCHEMA: usize = 40;
/// Installing locks every table for a moment, all in one transaction.
const MOST_TABLES: usize = 1_000;
/// Each mapping is one more pass over the rows of a statement.
const MOST_MAPPINGS: usize = 64;
const MOST_ROLES: usize = 100;
const LARGEST_BATCH: u32 = 10_000;

/// A configuration that was checked, as far as that goes without a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) namespace: String,
    pub(crate) schema: String,
    pub(crate) tables: Vec<Watched>,
    pub(crate) roles: Vec<String>,
    pub(crate) wake: Wake,
    pub(crate) follow: FollowOptions,
}

/// A table with its templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) name: TableName,
    pub(crate) templates: Vec<Template>,
}

impl FeedConfig {
    pub(crate) fn check(self) -> Result<Checked> {
        check_name("namespace", &self.namespace)?;
        check_schema(&self.schema)?;
        at_most("tables", self.table.len(), MOST_TABLES)?;
        at_most("roles", self.roles.len(), MOST_ROLES)?;
        check_follow(&self.follow)?;
        let tables: Vec<Watched> = self.table.into_iter().map(watched).collect::<Result<_>>()?;
        for (at, table) in tables.iter().enumerate() {
            if tables[..at].iter().any(|other| other.name == table.name) {
                let name = &table.name;
                let message = format!("table {name} is named twice; put its mappings together");
                return Err(FeedError::config(message));
            }
        }
        let (mut roles, wake) = (self.roles, self.wake);
        roles.sort();
        roles.dedup();
        Ok(Checked {
            namespace: self.namespace,
            schema: self.schema,
            tables,
            roles,
            wake,
            follow: self.follow,
        })
    }
}

fn watched(config: TableConfig) -> Result<Watched> {
    let name = TableName::parse(&config.name)?;
    let about = |what: String| FeedError::config(format!("table {name}: {what}"));
    if config.invalidate.is_empty() {
        return Err(about("nothing is to be invalidated; leave it out".into()));
    }
    at_most(
        "mappings of a table",
        config.invalidate.len(),
        MOST_MAPPINGS,
    )?;
    let templates: Result<Vec<_>, _> = config.invalidate.iter().map(template::parse).collect();
    let templates = templates.map_err(about)?;
    Ok(Watched { name, templates })
}

/// The rule that a larder has for the names of namespaces and caches.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(FeedError::config(format!(
        "{what} `{}` is not a name: use 1 to 64 letters, digits, `_`, `-` and `.`",
        name.escape_debug()
    )))
}

fn check_schema(schema: &str) -> Result<()> {
    let wrong = if schema.is_empty() {
        "is empty"
    } else if schema.len() > LONGEST_SCHEMA {
        "is longer than 40 bytes"
    } else if schema.contains(char::is_control) {
        "holds a control character"
    } else if schema.starts_with("pg_") || ["information_schema", "public"].contains(&schema) {
        "is not the feed's alone"
    } else {
        return Ok(());
    };
    let schema = schema.escape_debug();
    Err(FeedError::config(format!(
        "schema `{schema}` {wrong}; leave it out for `larder_feed`"
    )))
}

fn at_most(what: &str, count: usize, limit: usize) -> Result<()> {
    if count <= limit {
        return Ok(());
    }
    Err(FeedError::config(format!(
        "{count} {what} are too many; there may be {limit}"
    )))
}

fn check_follow(options: &FollowOptions) -> Result<()> {
    let spans = [
        ("poll", options.poll),
        ("stalled_after", options.stalled_after),
        ("answer_timeout", options.answer_timeout),
        ("apply_timeout", options.apply_timeout),
        ("max_delay", options.max_delay),
    ];
    let least = Duration::from_millis(1);
    let most = Duration::from_secs(3_600);
    if let Some((name, _)) = spans
        .iter()
        .find(|(_, span)| !(least..=most).contains(span))
    {
        let message = format!("follow.{name} must be between 1 ms and 1 h");
        return Err(FeedError::config(message));
    }
    if !(1..=LARGEST_BATCH).contains(&options.batch) {
        let message = format!("follow.batch must be between 1 and {LARGEST_BATCH}");
        return Err(FeedError::config(message));
    }
    Ok(())
}

/// A duration written as text, such as `"1500ms"`.
#[cfg(feature = "config")]
fn span<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|cause| {
        serde::de::Error::custom(format!(
            "`{text}` is not a duration ({cause}); write for example \"2s\" or \"250ms\""
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut FeedConfig)) -> String {
        let mut config = FeedConfig::new("shop");
        let key = Mapping::Key("product:{id}".into());
        config.table.push(TableConfig::new("product", [key]));
        change(&mut config);
        match config.check() {
            Ok(checked) => panic!("{checked:?} was taken"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_cannot_work_is_refused_in_one_sentence() {
        type Change = fn(&mut FeedConfig);
        let changes: [(&str, Change); 12] = [
            ("namespace `a:b`", |c| c.namespace = "a:b".into()),
            ("namespace ``", |c| c.namespace = String::new()),
            ("not the feed's alone", |c| c.schema = "public".into()),
            ("not the feed's alone", |c| c.schema = "pg_larder".into()),
            ("longer than 40", |c| c.schema = "x".repeat(41)),
            ("control character", |c| c.schema = "a\nb".into()),
            ("follow.poll", |c| c.follow.poll = Duration::ZERO),
            ("follow.batch", |c| c.follow.batch = 0),
            ("named twice", |c| {
                let again = TableConfig::new("public.product", c.table[0].invalidate.clone());
                c.table.push(again);
            }),
            ("nothing is to be invalidated", |c| {
                c.table[0].invalidate.clear();
            }),
            ("table public.product: key template", |c| {
                c.table[0].invalidate[0] = Mapping::Key("{id}".into());
            }),
            ("65 mappings", |c| {
                c.table[0].invalidate = vec![c.table[0].invalidate[0].clone(); 65];
            }),
        ];
        for (part, change) in changes {
            let message = refused(change);
            assert!(message.contains(part), "{part}: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[cfg(feature = "config")]
    #[test]
    fn it_is_read_as_it_is_documented() {
        let text = r#"{
            "namespace": "shop",
            "table": [{
                "name": "public.product",
                "invalidate": [{"key": "product:{id}"}, {"tag": "category:{category_id}"}]
            }],
            "wake": "poll",
            "follow": {"poll": "250ms"}
        }"#;
        let read: FeedConfig = serde_json::from_str(text).unwrap();
        let mut expected = FeedConfig::new("shop");
        expected.table.push(TableConfig::new(
            "public.product",
            [
                Mapping::Key("product:{id}".into()),
                Mapping::Tag("category:{category_id}".into()),
            ],
        ));
        expected.wake = Wake::Poll;
        expected.follow.poll = Duration::from_millis(250);
        assert_eq!(read, expected);
        let unknown = text.replace("wake", "woke");
        let error = serde_json::from_str::<FeedConfig>(&unknown).unwrap_err();
        assert!(error.to_string().contains("unknown field `woke`"));
    }
}
