//! The shop's database: what a product and a category are, and the queries that find them.
//!
//! Every query is counted here, so that the story can say how many the cache saved.

pub(crate) mod build;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row, SqlitePool};

/// Categories in the shop, numbered from 1.
pub(crate) const CATEGORIES: u64 = 40;

/// Connections that read at once. SQLite computes in the process, so a few keep the cores busy.
const READERS: u32 = 4;

/// What a product page shows.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct Product {
    /// From 1.
    pub(crate) id: u64,
    /// What it is called.
    pub(crate) name: String,
    /// The name of its category.
    pub(crate) category: String,
    /// The price in cents.
    pub(crate) price_cents: u64,
    /// How often the price has changed: tells an old price from a new one.
    pub(crate) revision: u64,
    /// Reviews it has.
    pub(crate) reviews: u64,
    /// The mean of their stars, 1 to 5; 0 without reviews.
    pub(crate) rating: f64,
}

/// What a category page shows: an aggregate over thousands of products and reviews.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct Category {
    /// From 1 to [`CATEGORIES`].
    pub(crate) id: u64,
    /// What it is called.
    pub(crate) name: String,
    /// Products in it.
    pub(crate) products: u64,
    /// The lowest price in cents.
    pub(crate) lowest_cents: u64,
    /// The highest price in cents.
    pub(crate) highest_cents: u64,
    /// Reviews of its products.
    pub(crate) reviews: u64,
    /// The mean of their stars.
    pub(crate) rating: f64,
}

/// A price that was changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changed {
    /// The revision that the product has now.
    pub(crate) revision: u64,
    /// The category that the product is in.
    pub(crate) category: u64,
}

/// The database, open.
#[derive(Clone)]
pub(crate) struct Shop {
    readers: SqlitePool,
    writer: SqlitePool,
    queries: Arc<AtomicU64>,
}

impl Shop {
    /// Opens a database that [`build::build`] has made.
    pub(crate) async fn open(path: &Path) -> sqlx::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(5))
            .pragma("cache_size", "-32768")
            .pragma("mmap_size", "1073741824");
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .min_connections(connections)
                .acquire_timeout(Duration::from_secs(30))
        };
        Ok(Self {
            readers: pool(READERS).connect_with(options.clone()).await?,
            writer: pool(1).connect_with(options).await?,
            queries: Arc::new(AtomicU64::new(0)),
        })
    }

    /// Queries run since the database was opened.
    pub(crate) fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }

    /// The product `id`; `None` if there is none.
    pub(crate) async fn product(&self, id: u64) -> sqlx::Result<Option<Product>> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let row = sqlx::query(
            "SELECT p.name, c.name, p.price_cents, p.revision,
                    (SELECT count(*) FROM reviews r WHERE r.product = p.id),
                    (SELECT coalesce(avg(r.stars), 0.0) FROM reviews r WHERE r.product = p.id)
             FROM products p JOIN categories c ON c.id = p.category
             WHERE p.id = ?",
        )
        .bind(signed(id))
        .fetch_optional(&self.readers)
        .await?;
        row.map(|row| {
            Ok(Product {
                id,
                name: row.try_get(0)?,
                category: row.try_get(1)?,
                price_cents: unsigned(row.try_get(2)?),
                revision: unsigned(row.try_get(3)?),
                reviews: unsigned(row.try_get(4)?),
                rating: row.try_get(5)?,
            })
        })
        .transpose()
    }

    /// The category `id`; `None` if there is none. It reads every product and review in it.
    pub(crate) async fn category(&self, id: u64) -> sqlx::Result<Option<Category>> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let row = sqlx::query(
            "SELECT c.name, count(DISTINCT p.id), min(p.price_cents), max(p.price_cents),
                    count(r.id), coalesce(avg(r.stars), 0.0)
             FROM categories c
             JOIN products p ON p.category = c.id
             LEFT JOIN reviews r ON r.product = p.id
             WHERE c.id = ? GROUP BY c.id",
        )
        .bind(signed(id))
        .fetch_optional(&self.readers)
        .await?;
        row.map(|row| {
            Ok(Category {
                id,
                name: row.try_get(0)?,
                products: unsigned(row.try_get(1)?),
                lowest_cents: unsigned(row.try_get(2)?),
                highest_cents: unsigned(row.try_get(3)?),
                reviews: unsigned(row.try_get(4)?),
                rating: row.try_get(5)?,
            })
        })
        .transpose()
    }

    /// Gives the product `id` a new price; `None` if there is no such product.
    ///
    /// When this returns, the change is committed and every later query sees it.
    pub(crate) async fn set_price(&self, id: u64, cents: u64) -> sqlx::Result<Option<Changed>> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let row = sqlx::query(
            "UPDATE products SET price_cents = ?, revision = revision + 1
             WHERE id = ? RETURNING revision, category",
        )
        .bind(signed(cents))
        .bind(signed(id))
        .fetch_optional(&self.writer)
        .await?;
        row.map(|row| {
            Ok(Changed {
                revision: unsigned(row.try_get(0)?),
                category: unsigned(row.try_get(1)?),
            })
        })
        .transpose()
    }

    /// Closes every connection.
    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// SQLite knows signed numbers only. No id or price comes near the border; one that a visitor
/// makes up beyond it finds nothing.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests;
