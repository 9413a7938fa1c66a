//! What the scenarios share: a shop in a database of its own, and followers that tell a test what
//! they were given.

#![allow(dead_code, reason = "every scenario uses some of it")]

use std::sync::Arc;
use std::time::Duration;

use larder::{BoxError, Invalidation};
use larder_sql::{Feed, FeedConfig, Mapping, TableConfig};
use larder_testkit::PostgresServer;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Row as _};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

/// Far longer than anything here takes, so that a test that waits in vain fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A database with a table of products.
pub(crate) struct Shop {
    pub(crate) server: Arc<PostgresServer>,
    pub(crate) url: String,
    pub(crate) pool: PgPool,
}

const TABLES: &str = "
    CREATE TABLE category (id int PRIMARY KEY, name text);
    CREATE TABLE product (
        id int PRIMARY KEY,
        name text,
        category_id int REFERENCES category ON DELETE CASCADE
    );
    INSERT INTO category SELECT n, 'category ' || n FROM generate_series(1, 9) AS n;
";

impl Shop {
    /// A shop on the server that the tests of this file share.
    pub(crate) async fn open() -> Self {
        Self::on(PostgresServer::shared().unwrap()).await
    }

    pub(crate) async fn on(server: Arc<PostgresServer>) -> Self {
        let url = server.database().unwrap();
        let pool = PgPoolOptions::new().max_connections(5).connect(&url);
        let pool = pool.await.unwrap();
        let shop = Self { server, url, pool };
        shop.run(TABLES).await;
        shop
    }

    /// The feed of `config`, installed.
    pub(crate) async fn feed(&self, config: FeedConfig) -> Feed {
        let feed = self.plain_feed(config);
        feed.install().await.unwrap();
        feed
    }

    pub(crate) fn plain_feed(&self, config: FeedConfig) -> Feed {
        Feed::new(&self.pool, config).unwrap()
    }

    pub(crate) async fn run(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&self.pool).await.unwrap();
    }

    /// The first column of the first row, as text.
    pub(crate) async fn one(&self, sql: &str) -> String {
        let sql = AssertSqlSafe(format!("SELECT ({sql})::text"));
        let row = sqlx::query(sql).fetch_one(&self.pool).await.unwrap();
        row.get::<Option<String>, _>(0).unwrap_or_default()
    }

    /// Everything in the outbox, in the order of the alphabet.
    pub(crate) async fn outbox(&self) -> Vec<String> {
        let sql = "SELECT array_to_string(what, ' ', '?') FROM larder_feed.outbox ORDER BY 1";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// What the outbox holds after `sql` and nothing else.
    pub(crate) async fn changes_of(&self, sql: &str) -> Vec<String> {
        self.run("DELETE FROM larder_feed.outbox").await;
        self.run(sql).await;
        self.outbox().await
    }

    /// Waits until a query says `true`.
    pub(crate) async fn until(&self, sql: &str) {
        let seen = async {
            while self.one(sql).await != "true" {
                tokio::task::yield_now().await;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        assert!(seen.is_ok(), "never true: {sql}");
    }
}

/// Products by key, categories by tag.
pub(crate) fn products() -> FeedConfig {
    watching(
        "public.product",
        [
            Mapping::Key("product:{id}".into()),
            Mapping::Tag("category:{category_id}".into()),
        ],
    )
}

pub(crate) fn watching(table: &str, invalidate: impl IntoIterator<Item = Mapping>) -> FeedConfig {
    let mut config = FeedConfig::new("shop");
    config.table.push(TableConfig::new(table, invalidate));
    config
}

/// A follower that applies everything and tells what.
pub(crate) struct Following {
    task: JoinHandle<()>,
    applied: UnboundedReceiver<Invalidation>,
}

impl Following {
    pub(crate) fn start(feed: &Feed) -> Self {
        let (tell, applied) = unbounded_channel();
        let task = follow(feed, move |batch| tell_all(&tell, batch));
        Self { task, applied }
    }

    /// Waits until each of these was applied; other changes may come as well.
    pub(crate) async fn sees(&mut self, expected: impl IntoIterator<Item = Invalidation>) {
        let mut missing: Vec<Invalidation> = expected.into_iter().collect();
        while !missing.is_empty() {
            let next = tokio::time::timeout(PATIENCE, self.applied.recv()).await;
            let Ok(next) = next else {
                panic!("never applied: {missing:?}");
            };
            let next = next.unwrap();
            missing.retain(|other| *other != next);
        }
    }

    /// What was applied and not asked for yet.
    pub(crate) fn so_far(&mut self) -> Vec<Invalidation> {
        std::iter::from_fn(|| self.applied.try_recv().ok()).collect()
    }

    /// Ends as a crash does: in the middle of whatever it is doing.
    pub(crate) async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// The same, and what it applied is not asked for any more.
    pub(crate) async fn crash(mut self) {
        self.stop().await;
    }
}

pub(crate) fn tell_all(
    tell: &UnboundedSender<Invalidation>,
    batch: Vec<Invalidation>,
) -> std::future::Ready<Result<(), BoxError>> {
    for one in batch {
        // A test that is done no longer listens.
        let _ = tell.send(one);
    }
    std::future::ready(Ok(()))
}

/// Follows in a task of its own.
pub(crate) fn follow<F, Fut>(feed: &Feed, apply: F) -> JoinHandle<()>
where
    F: FnMut(Vec<Invalidation>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let feed = feed.clone();
    tokio::spawn(async move {
        feed.follow(apply).await;
    })
}

pub(crate) fn key(id: u32) -> Invalidation {
    Invalidation::key("product", [id.to_string()])
}

pub(crate) fn tag(category: u32) -> Invalidation {
    Invalidation::tag(format!("category:{category}"))
}
