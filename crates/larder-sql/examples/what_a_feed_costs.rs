//! What a feed costs those who write, and how soon a change is applied, on a PostgreSQL server of
//! its own (which does not wait for the disk: fsync is off).
//!
//! ```text
//! cargo run --release -p larder-sql --example what_a_feed_costs
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program for people, which measures real time"
)]

use std::time::{Duration, Instant};

use larder_sql::{Feed, FeedConfig, Mapping, TableConfig, Wake};
use larder_testkit::PostgresServer;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::sync::mpsc::unbounded_channel;

const PRODUCTS: u32 = 100_000;
const BULK: u32 = 10_000;
const BULK_ROUNDS: usize = 9;
const WRITES: u32 = 4_000;
const CLIENTS: u32 = 8;
const WAKES: u32 = 2_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::spawn(measure()).await.unwrap() });
}

async fn measure() {
    let server = PostgresServer::start().unwrap();
    let pool = PgPoolOptions::new().max_connections(CLIENTS + 2);
    let pool = pool.connect(&server.url()).await.unwrap();
    println!(
        "PostgreSQL {}",
        one(&pool, "current_setting('server_version')").await
    );
    for table in ["product", "parted"] {
        let parts = if table == "parted" {
            "PARTITION BY HASH (id)"
        } else {
            ""
        };
        run(
            &pool,
            &format!("CREATE TABLE {table} (id int, stock int, category int) {parts}"),
        )
        .await;
    }
    run(
        &pool,
        "CREATE TABLE part PARTITION OF parted FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    )
    .await;
    for table in ["product", "parted"] {
        run(&pool, &format!(
            "INSERT INTO {table} SELECT n, 0, n % 100 FROM generate_series(1, {PRODUCTS}) AS n; \
             CREATE INDEX ON {table} (id)"
        ))
        .await;
    }
    run(&pool, "VACUUM ANALYZE").await;
    writers(&pool).await;
    followers(&pool).await;
}

async fn writers(pool: &PgPool) {
    println!(
        "\nwriters                       update of {BULK} rows   of one row   {CLIENTS} clients"
    );
    let plain = [None, Some(Wake::Poll), Some(Wake::Notify)];
    for wake in plain {
        let feed = feed(pool, "product", wake.unwrap_or_default());
        if wake.is_some() {
            feed.install().await.unwrap();
        }
        let label = match wake {
            None => "without a feed",
            Some(Wake::Poll) => "with one that polls",
            _ => "with one that notifies",
        };
        report(pool, label, "product").await;
        feed.uninstall().await.unwrap();
    }
    report(pool, "partitions, without", "parted").await;
    let feed = feed(pool, "parted", Wake::Notify);
    feed.install().await.unwrap();
    report(pool, "partitions, by row", "parted").await;
    feed.uninstall().await.unwrap();
}

async fn report(pool: &PgPool, label: &str, table: &str) {
    let mut bulk = Vec::new();
    for round in 0..BULK_ROUNDS {
        let first = BULK * u32::try_from(round).unwrap();
        let last = first + BULK;
        let began = Instant::now();
        run(
            pool,
            &format!("UPDATE {table} SET stock = stock + 1 WHERE id > {first} AND id <= {last}"),
        )
        .await;
        bulk.push(began.elapsed());
    }
    bulk.sort();
    let single = writes(pool, table, 1).await;
    let many = writes(pool, table, CLIENTS).await;
    println!(
        "{label:28}  {:>12.1} ms   {:>12.0} us   {:>8.0} /s",
        bulk[BULK_ROUNDS / 2].as_secs_f64() * 1e3,
        single.as_secs_f64() * 1e6 / f64::from(WRITES),
        f64::from(WRITES) / many.as_secs_f64(),
    );
}

/// Updates of single rows, each its own transaction, by so many clients.
async fn writes(pool: &PgPool, table: &str, clients: u32) -> Duration {
    let sql = format!("UPDATE {table} SET stock = stock + 1 WHERE id = $1");
    let began = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (pool, sql) = (pool.clone(), sql.clone());
            tokio::spawn(async move {
                let mut conn = pool.acquire().await.unwrap();
                for n in 0..WRITES / clients {
                    let id = i32::try_from(1 + (client * 7_919 + n * 31) % PRODUCTS).unwrap();
                    let update = sqlx::query(AssertSqlSafe(sql.clone())).bind(id);
                    update.execute(&mut *conn).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    began.elapsed()
}

async fn followers(pool: &PgPool) {
    let feed = feed(pool, "product", Wake::Notify);
    feed.install().await.unwrap();
    run(
        pool,
        &format!("UPDATE product SET stock = stock + 1 WHERE id <= {PRODUCTS}"),
    )
    .await;
    let backlog = feed.status().await.unwrap().backlog;
    let (tell, mut applied) = unbounded_channel();
    let following = feed.clone();
    let began = Instant::now();
    let task = tokio::spawn(async move {
        following
            .follow(|batch| {
                tell.send(batch).unwrap();
                async { Ok(()) }
            })
            .await
    });
    while feed.health().applied < backlog {
        tokio::task::yield_now().await;
    }
    println!(
        "\na backlog of {backlog} changes is applied and removed in {:.2} s",
        began.elapsed().as_secs_f64()
    );
    let mut waits = Vec::new();
    for id in 1..=WAKES {
        while applied.try_recv().is_ok() {}
        run(
            pool,
            &format!("UPDATE product SET stock = 0 WHERE id = {id}"),
        )
        .await;
        let committed = Instant::now();
        let wanted = larder::Invalidation::key("product", [id.to_string()]);
        while !applied.recv().await.unwrap().contains(&wanted) {}
        waits.push(committed.elapsed());
    }
    waits.sort();
    let at = |share: usize| {
        waits[(waits.len() * share / 1_000).min(waits.len() - 1)].as_secs_f64() * 1e3
    };
    println!(
        "from commit to apply, {WAKES} times: median {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
        at(500),
        at(990),
        at(1_000)
    );
    task.abort();
}

fn feed(pool: &PgPool, table: &str, wake: Wake) -> Feed {
    let mut config = FeedConfig::new("shop");
    config.wake = wake;
    let mappings = [
        Mapping::Key("product:{id}".into()),
        Mapping::Tag("category:{category}".into()),
    ];
    config.table.push(TableConfig::new(table, mappings));
    Feed::new(pool, config).unwrap()
}

async fn run(pool: &PgPool, sql: &str) {
    let sql = AssertSqlSafe(sql.to_owned());
    sqlx::raw_sql(sql).execute(pool).await.unwrap();
}

async fn one(pool: &PgPool, sql: &str) -> String {
    let sql = AssertSqlSafe(format!("SELECT ({sql})::text"));
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}
