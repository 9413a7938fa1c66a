//! The rows in PostgreSQL: what they are, who changes them, and how the caches learn of it.

use std::time::Duration;

use larder::Invalidation;
use larder_sql::{Feed, FeedConfig, Mapping, TableConfig};
use larder_testkit::PostgresServer;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Row as _};

use crate::promise::{Contract, State, Version};

/// The namespace of everything.
pub(crate) const NAMESPACE: &str = "check";
/// How far the replica of the table `lagging` is behind where it is told to lag, in milliseconds.
pub(crate) const LAG: u64 = 150;
/// How many categories rows have, and move between.
pub(crate) const CATEGORIES: i32 = 3;

/// Whose rows these are: each table has a cache of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Table {
    /// Whoever changes them tells a larder, or writes into the outbox in the same transaction.
    Item,
    /// Changed by plain SQL alone. The feed tells their keys.
    Keyed,
    /// Changed by plain SQL alone. The feed tells the tags of their categories; never deleted,
    /// because what is not there has no category.
    Tagged,
    /// Read from a replica, and told with their versions.
    Lagging,
    /// As items, and refreshed while they are fresh: by reads, ahead of them, and by prefetches.
    Early,
    /// As items, and prolonged by reads.
    Sliding,
    /// As items, and served when they are stale, while somebody loads them.
    Graceful,
    /// As items, and served when they are stale, where a load fails or is slow.
    Sturdy,
}

impl Table {
    pub(crate) const ALL: [(Self, i32); 8] = [
        (Self::Item, 12),
        (Self::Keyed, 4),
        (Self::Tagged, 4),
        (Self::Lagging, 3),
        (Self::Early, 4),
        (Self::Sliding, 3),
        (Self::Graceful, 4),
        (Self::Sturdy, 4),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Item => "item",
            Self::Keyed => "keyed",
            Self::Tagged => "tagged",
            Self::Lagging => "lagging",
            Self::Early => "early",
            Self::Sliding => "sliding",
            Self::Graceful => "graceful",
            Self::Sturdy => "sturdy",
        }
    }

    /// The numbers of its rows.
    pub(crate) fn ids(self) -> std::ops::Range<i32> {
        let of_table = |(its, _): &&(Self, i32)| *its == self;
        0..Self::ALL.iter().find(of_table).unwrap().1
    }

    /// Whether whoever changes it tells a larder, in any way there is.
    pub(crate) fn is_told_by_hand(self) -> bool {
        !matches!(self, Self::Keyed | Self::Tagged | Self::Lagging)
    }

    /// What its cache may serve.
    pub(crate) fn contract(self) -> Contract {
        match self {
            Self::Graceful | Self::Sturdy => Contract::StaleToo,
            _ => Contract::FreshAlone,
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        let tables = Self::ALL.map(|(table, _)| table);
        tables.into_iter().find(|table| table.name() == name)
    }
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) table: Table,
    pub(crate) id: i32,
}

impl Row {
    pub(crate) fn all() -> Vec<Self> {
        let rows = |(table, count)| (0..count).map(move |id| Self { table, id });
        Table::ALL.into_iter().flat_map(rows).collect()
    }

    pub(crate) fn item(id: i32) -> Self {
        Self {
            table: Table::Item,
            id,
        }
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.table.name(), self.id)
    }
}

/// The items of a shelf, and of the hall that is made from all shelves.
pub(crate) const SHELVES: i32 = 4;

pub(crate) fn items_of(shelf: i32) -> impl Iterator<Item = i32> {
    let items = Table::Item.ids();
    items.filter(move |id| id % SHELVES == shelf)
}

/// The group of a row that is told by hand, which its cache derives from the key.
pub(crate) fn group_of(id: i32) -> String {
    format!("half {}", id % 2)
}

pub(crate) fn tag_of(table: Table, category: i32) -> String {
    format!("{}:{category}", table.name())
}

/// The feed, as test and nodes know it.
pub(crate) fn feed(url: &str) -> Feed {
    let mut config = FeedConfig::new(NAMESPACE);
    let by_key = [Mapping::Key("keyed:{id}".into())];
    config.table.push(TableConfig::new("keyed", by_key));
    let by_tag = [Mapping::Tag("tagged:{category}".into())];
    config.table.push(TableConfig::new("tagged", by_tag));
    Feed::at(url, config).unwrap()
}

/// What a loader finds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) id: i32,
    pub(crate) version: Version,
    pub(crate) category: i32,
}

/// Connections for one process.
pub(crate) async fn connect(url: &str) -> PgPool {
    let options: PgConnectOptions = url.parse().unwrap();
    PgPoolOptions::new()
        .max_connections(8)
        .acquire_timeout(Duration::from_secs(2))
        .connect_lazy_with(options)
}

/// Reads rows as they are, or as the replica shows them. Those that are not there are left out.
pub(crate) async fn fetch(
    pool: &PgPool,
    table: Table,
    ids: &[i32],
    lag: u64,
) -> sqlx::Result<Vec<Found>> {
    let version = match table {
        Table::Lagging => {
            "CASE WHEN changed_at > clock_timestamp() - $2::int8 * interval '1 ms' \
             THEN previous ELSE version END"
        }
        _ => "version + 0 * $2::int8",
    };
    let sql = format!(
        "SELECT id, {version}, category FROM {} WHERE id = ANY($1)",
        table.name()
    );
    let lag = i64::try_from(lag).unwrap();
    let found = sqlx::query(AssertSqlSafe(sql)).bind(ids).bind(lag);
    let found = found.fetch_all(pool).await?;
    let found = found.into_iter().map(|row| Found {
        id: row.get(0),
        version: u64::try_from(row.get::<i64, _>(1)).unwrap(),
        category: row.get(2),
    });
    Ok(found.collect())
}

/// What a row becomes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) row: Row,
    pub(crate) version: Version,
    pub(crate) state: State,
    pub(crate) category: i32,
}

/// The test's side of the database.
pub(crate) struct Rows {
    pub(crate) url: String,
    pub(crate) pool: PgPool,
    feed: Feed,
}

impl Rows {
    /// Tables whose rows all have version 1, with the feed on them.
    pub(crate) async fn open(server: &PostgresServer) -> Self {
        let url = server.database().unwrap();
        let pool = connect(&url).await;
        let mut sql = String::new();
        for (table, count) in Table::ALL {
            let table = table.name();
            sql += &format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, version int8 NOT NULL, \
                     category int NOT NULL, previous int8 NOT NULL DEFAULT 1, \
                     changed_at timestamptz NOT NULL DEFAULT clock_timestamp()); \
                 INSERT INTO {table} SELECT n, 1, n % {CATEGORIES} \
                     FROM generate_series(0, {count} - 1) AS n;"
            );
        }
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&pool)
            .await
            .unwrap();
        let feed = feed(&url);
        feed.install().await.unwrap();
        Self { url, pool, feed }
    }

    /// Makes a change; with `told` in the same transaction, through the outbox.
    pub(crate) async fn change(
        &self,
        change: Change,
        told: Option<&Invalidation>,
    ) -> sqlx::Result<()> {
        let mut tx = self.pool.begin().await?;
        write(&mut tx, change).await?;
        if let Some(told) = told {
            let told = std::slice::from_ref(told);
            let written = self.feed.invalidate_in(&mut tx, told).await;
            written.map_err(|error| sqlx::Error::Configuration(error.into()))?;
        }
        tx.commit().await
    }

    /// Whether a change was made whose commit gave no answer.
    pub(crate) async fn is_made(&self, change: Change) -> sqlx::Result<bool> {
        let Row { table, id } = change.row;
        let found = fetch(&self.pool, table, &[id], 0).await?;
        Ok(match change.state {
            State::Absent => found.is_empty(),
            State::Present => found.iter().any(|found| found.version == change.version),
        })
    }

    /// Whether the feed has told everything that was committed before.
    pub(crate) async fn is_all_told(&self) -> sqlx::Result<bool> {
        let sql = "SELECT NOT EXISTS (SELECT FROM larder_feed.outbox)";
        let row = sqlx::query(sql).fetch_one(&self.pool).await?;
        Ok(row.get(0))
    }

    /// Ends the connections of whoever follows the feed.
    pub(crate) async fn cut_followers(&self) -> sqlx::Result<()> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE application_name LIKE 'larder feed%'";
        sqlx::query(sql).execute(&self.pool).await.map(drop)
    }
}

async fn write(tx: &mut PgConnection, change: Change) -> sqlx::Result<()> {
    let table = change.row.table.name();
    let sql = match change.state {
        State::Absent => format!("DELETE FROM {table} WHERE id = $1"),
        State::Present => format!(
            "INSERT INTO {table} AS old (id, version, category) VALUES ($1, $2, $3) \
             ON CONFLICT (id) DO UPDATE SET version = excluded.version, \
                 category = excluded.category, previous = old.version, \
                 changed_at = clock_timestamp()"
        ),
    };
    let query = sqlx::query(AssertSqlSafe(sql)).bind(change.row.id);
    let query = match change.state {
        State::Absent => query,
        State::Present => query
            .bind(i64::try_from(change.version).unwrap())
            .bind(change.category),
    };
    query.execute(tx).await.map(drop)
}
