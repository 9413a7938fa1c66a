//! Builds the shop's database on the first run, and again where a run was cut short.
//!
//! The database grows under another name and gets its own when it is whole, so that whatever
//! stands under that name is complete.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use fastrand::Rng;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, QueryBuilder, Row, Sqlite, SqliteConnection};

use super::CATEGORIES;

/// Changes with the schema, so that a database of another build of this program is built again.
const SCHEMA_VERSION: i64 = 1;
/// Products per transaction.
const BATCH: u64 = 5_000;
/// Rows per statement: with five values each they stay under SQLite's limit of 32,766.
const ROWS: usize = 1_000;
/// The same seed each time: every run sees the same shop.
const SEED: u64 = 17;

const SCHEMA: &str = "
    CREATE TABLE categories (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE products (
        id INTEGER PRIMARY KEY, category INTEGER NOT NULL, name TEXT NOT NULL,
        price_cents INTEGER NOT NULL, revision INTEGER NOT NULL);
    CREATE TABLE reviews (
        id INTEGER PRIMARY KEY, product INTEGER NOT NULL, stars INTEGER NOT NULL);";
/// Made after the rows: an index that grows row by row takes longer.
const INDEXES: &str = "
    CREATE INDEX products_by_category ON products (category, price_cents);
    CREATE INDEX reviews_by_product ON reviews (product, stars);
    ANALYZE;";

/// What stands under the name of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing: a first run.
    Nothing,
    /// A build that did not come to its end.
    HalfBuilt,
    /// A shop of another size or schema, or no shop at all.
    Other,
    /// The shop that is wanted.
    Whole,
}

/// Looks at what an earlier run has left at `path`.
pub(crate) async fn find(path: &Path, products: u64) -> Found {
    if !path.exists() {
        let begun = unfinished(path).exists();
        return if begun {
            Found::HalfBuilt
        } else {
            Found::Nothing
        };
    }
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    match stamp(&options).await {
        Ok(found) if found == (SCHEMA_VERSION, products.cast_signed()) => Found::Whole,
        _ => Found::Other,
    }
}

async fn stamp(options: &SqliteConnectOptions) -> sqlx::Result<(i64, i64)> {
    let mut database = SqliteConnection::connect_with(options).await?;
    let row = sqlx::query("SELECT schema_version, products FROM finished")
        .fetch_one(&mut database)
        .await?;
    database.close().await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Builds a shop of `products` products at `path`, replacing what is there.
///
/// `progress` is told how many products are done.
pub(crate) async fn build(
    path: &Path,
    products: u64,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<()> {
    let growing = unfinished(path);
    remove(&growing)?;
    remove(path)?;
    let options = SqliteConnectOptions::new()
        .filename(&growing)
        .create_if_missing(true)
        // Nothing is lost by a crash: what is half-built is built again.
        .journal_mode(SqliteJournalMode::Off)
        .synchronous(SqliteSynchronous::Off);
    let mut database = SqliteConnection::connect_with(&options).await?;
    sqlx::raw_sql(SCHEMA).execute(&mut database).await?;
    let mut rng = Rng::with_seed(SEED);
    insert_categories(&mut database).await?;
    let mut done = 0;
    while done < products {
        let batch = BATCH.min(products - done);
        insert_batch(&mut database, &mut rng, done + 1..=done + batch).await?;
        done += batch;
        progress(done);
    }
    sqlx::raw_sql(INDEXES).execute(&mut database).await?;
    finish(database, products).await?;
    fs::rename(&growing, path).context("cannot give the new database its name")
}

async fn insert_categories(database: &mut SqliteConnection) -> sqlx::Result<()> {
    let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO categories (id, name) ");
    query.push_values(1..=CATEGORIES, |mut row, id| {
        let kind = KINDS[(id as usize - 1) % KINDS.len()];
        let room = ROOMS[(id as usize - 1) / KINDS.len() % ROOMS.len()];
        row.push_bind(id.cast_signed())
            .push_bind(format!("{kind} for the {room}"));
    });
    query.build().execute(database).await?;
    Ok(())
}

async fn insert_batch(
    database: &mut SqliteConnection,
    rng: &mut Rng,
    ids: std::ops::RangeInclusive<u64>,
) -> sqlx::Result<()> {
    let mut transaction = database.begin().await?;
    let ids: Vec<u64> = ids.collect();
    for ids in ids.chunks(ROWS) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO products (id, category, name, price_cents, revision) ",
        );
        query.push_values(ids, |mut row, id| {
            row.push_bind(id.cast_signed())
                .push_bind((id % CATEGORIES + 1).cast_signed())
                .push_bind(name(rng, *id))
                .push_bind(rng.i64(199..50_000))
                .push_bind(1_i64);
        });
        query.build().execute(&mut *transaction).await?;
    }
    let mut reviews = Vec::new();
    for id in &ids {
        for _ in 0..rng.usize(0..=6) {
            reviews.push((*id, rng.i64(1..=5)));
        }
    }
    for reviews in reviews.chunks(ROWS) {
        let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO reviews (product, stars) ");
        query.push_values(reviews, |mut row, (product, stars)| {
            row.push_bind(product.cast_signed()).push_bind(*stars);
        });
        query.build().execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// Stamps the database as whole and brings it to the disk.
async fn finish(mut database: SqliteConnection, products: u64) -> sqlx::Result<()> {
    sqlx::raw_sql("CREATE TABLE finished (schema_version INTEGER, products INTEGER)")
        .execute(&mut database)
        .await?;
    sqlx::query("INSERT INTO finished VALUES (?, ?)")
        .bind(SCHEMA_VERSION)
        .bind(products.cast_signed())
        .execute(&mut database)
        .await?;
    database.close().await
}

/// The name under which a database grows.
fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("unfinished")
}

/// Removes a database and what SQLite keeps beside it.
fn remove(path: &Path) -> anyhow::Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(&name) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                let shown = PathBuf::from(name);
                return Err(error).with_context(|| format!("cannot remove {}", shown.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

const KINDS: [&str; 8] = [
    "Chairs", "Cups", "Knives", "Lamps", "Radios", "Rugs", "Shelves", "Tools",
];
const ROOMS: [&str; 5] = ["kitchen", "garden", "study", "workshop", "pantry"];
const LOOKS: [&str; 8] = [
    "Blue", "Folding", "Heavy", "Little", "Oak", "Plain", "Steel", "Striped",
];
const THINGS: [&str; 8] = [
    "basket", "board", "bowl", "crate", "jar", "kettle", "ladder", "tray",
];

fn name(rng: &mut Rng, id: u64) -> String {
    let look = LOOKS[rng.usize(..LOOKS.len())];
    let thing = THINGS[rng.usize(..THINGS.len())];
    format!("{look} {thing} no. {id}")
}
