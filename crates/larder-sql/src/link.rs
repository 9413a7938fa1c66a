//! A follower's connection while it lasts. Every answer is waited for, but not for ever.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::body::outbox;
use crate::catalog::get;
use crate::change::{self, Change};
use crate::config::Wake;
use crate::error::{FeedError, Result};
use crate::feed::{Feed, IS_OUR_LOCK};
use crate::plan::lock_key;

/// Where a change stands: the number of its transaction, and its own.
///
/// Transactions commit in another order than the one in which they got their numbers. What is read
/// is therefore never skipped by position alone, but only below a [`Page::horizon`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) transaction: u64,
    pub(crate) id: i64,
}

impl Position {
    /// Before everything that `transaction` wrote.
    pub(crate) fn before(transaction: u64) -> Self {
        Self {
            transaction,
            id: i64::MIN,
        }
    }
}

/// A row of the outbox.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) position: Position,
    pub(crate) change: Change,
    /// How long it has waited, by the server's clock.
    pub(crate) age: Duration,
}

/// Changes as they stood at one moment, in the order of their positions.
#[derive(Debug)]
pub(crate) struct Page {
    /// Every transaction with a lower number had ended by then, so that all it wrote was visible.
    pub(crate) horizon: u64,
    pub(crate) rows: Vec<Waiting>,
}

pub(crate) struct Link<'a> {
    feed: &'a Feed,
    listener: PgListener,
}

/// How long the server lets a connection be dead before it ends it, and so frees our lock: probes
/// after 10 s of silence, every 5 s, three of them.
const KEEP_ALIVE: &str = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; \
                          SET tcp_keepalives_count = 3";

impl<'a> Link<'a> {
    /// Connects, and checks that the feed is installed.
    pub(crate) async fn open(feed: &'a Feed) -> Result<Self> {
        // Asked on a connection of its own, because the pool of a listener does not say why it
        // cannot connect: it tries again until its time is over.
        let mut conn = feed.connection().await?;
        let checked = feed.within("look at the feed", feed.check_installed(&mut conn));
        checked.await??;
        let _ = conn.close_hard().await;
        let opened = feed.within("connect", listener(feed)).await?;
        let listener = opened.map_err(|error| feed.not_connected(error))?;
        Ok(Self { feed, listener })
    }

    /// Takes the lock of the one that follows; whether it was free.
    pub(crate) async fn claim(&mut self) -> Result<bool> {
        let key = lock_key("follow", &self.feed.inner.config.schema);
        let query = sqlx::query("SELECT pg_try_advisory_lock($1)").bind(key);
        let row = self.answer("take the feed's lock", |listener| query.fetch_one(listener));
        get(&row.await?, 0)
    }

    /// Ends the connection that holds the lock. A role that may not do so leaves it.
    pub(crate) async fn evict(&mut self) -> Result<()> {
        let key = lock_key("follow", &self.feed.inner.config.schema);
        let sql = format!(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l \
              WHERE l.pid <> pg_backend_pid() AND {IS_OUR_LOCK}"
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(key);
        let ended = self.answer("end a follower that hangs", |listener| {
            query.execute(listener)
        });
        match ended.await {
            Err(error) if error.is_unavailable() => Err(error),
            Err(error) => {
                tracing::warn!("larder feed: {}", error.in_full());
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Begins to hear of new changes.
    pub(crate) async fn listen(&mut self) -> Result<()> {
        let Wake::Notify = self.feed.inner.config.wake else {
            return Ok(());
        };
        let (feed, schema) = (self.feed, &self.feed.inner.config.schema);
        let listened = feed.within("listen", self.listener.listen(schema)).await?;
        listened.map_err(|error| feed.explain("listen", error))
    }

    /// Reads what follows on a position, up to `at_most` rows.
    pub(crate) async fn read(&mut self, after: Position, at_most: u32) -> Result<Page> {
        let sql = format!(
            "SELECT pg_snapshot_xmin(pg_current_snapshot())::text, w.xid, w.id, w.what, w.age \
               FROM (SELECT) AS always LEFT JOIN LATERAL ( \
                   SELECT xid::text, id, what, \
                          (extract(epoch FROM clock_timestamp() - at) * 1000)::int8 AS age \
                     FROM {} AS o WHERE (o.xid, o.id) > ($1::text::xid8, $2) \
                    ORDER BY o.xid, o.id LIMIT $3) AS w ON true",
            outbox(&self.feed.inner.config.schema)
        );
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(after.transaction.to_string())
            .bind(after.id)
            .bind(i64::from(at_most));
        let rows = self.answer("read the outbox", |listener| query.fetch_all(listener));
        page(&rows.await?)
    }

    /// Removes what was applied, and says how many rows that were. Those that another follower is
    /// just removing are left to it.
    pub(crate) async fn remove(&mut self, rows: &[Waiting]) -> Result<u64> {
        let outbox = outbox(&self.feed.inner.config.schema);
        let sql = format!(
            "DELETE FROM {outbox} WHERE ctid = ANY (ARRAY( \
                 SELECT o.ctid FROM {outbox} AS o \
                   JOIN unnest($1::text[], $2::int8[]) AS d (xid, id) \
                     ON o.xid = d.xid::xid8 AND o.id = d.id \
                    FOR UPDATE OF o SKIP LOCKED))"
        );
        let (mut transactions, mut ids) = (Vec::new(), Vec::new());
        for Position { transaction, id } in rows.iter().map(|row| row.position) {
            transactions.push(transaction.to_string());
            ids.push(id);
        }
        let query = sqlx::query(AssertSqlSafe(sql)).bind(transactions).bind(ids);
        let done = self.answer("remove what was applied", |listener| {
            query.execute(listener)
        });
        done.await.map(|done| done.rows_affected())
    }

    /// Forgets what was heard so far: what follows will be read anyway.
    pub(crate) fn forget_notices(&mut self) {
        while self.listener.next_buffered().is_some() {}
    }

    /// Waits until something new is heard, or until `poll` passed.
    pub(crate) async fn wait(&mut self, poll: Duration) -> Result<()> {
        let feed = self.feed;
        tokio::select! {
            heard = self.listener.try_recv() => match heard {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(FeedError::unavailable("PostgreSQL closed the connection")),
                Err(error) => Err(feed.explain("listen", error)),
            },
            () = feed.inner.clock.sleep(poll) => Ok(()),
        }
    }

    async fn answer<'b, T, Fut>(
        &'b mut self,
        doing: &'static str,
        ask: impl FnOnce(&'b mut PgListener) -> Fut,
    ) -> Result<T>
    where
        Fut: Future<Output = Result<T, sqlx::Error>>,
    {
        let feed = self.feed;
        let answered = feed.within(doing, ask(&mut self.listener)).await?;
        answered.map_err(|error| feed.explain(doing, error))
    }
}

/// The listener wants a pool. This one lasts as long as its one connection.
async fn listener(feed: &Feed) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(feed.inner.config.follow.answer_timeout)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(feed.inner.options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.execute(KEEP_ALIVE).await?;
    Ok(listener)
}

fn page(rows: &[PgRow]) -> Result<Page> {
    let mut page = Page {
        horizon: 0,
        rows: Vec::new(),
    };
    for row in rows {
        page.horizon = number(get(row, 0)?)?;
        let Some(transaction) = get::<Option<String>>(row, 1)? else {
            continue;
        };
        let what: Vec<Option<String>> = get(row, 3)?;
        let what: Option<Vec<String>> = what.into_iter().collect();
        page.rows.push(Waiting {
            position: Position {
                transaction: number(transaction)?,
                id: get(row, 2)?,
            },
            change: what.map_or(Change::Unreadable, |what| change::read(&what)),
            age: Duration::from_millis(u64::try_from(get::<i64>(row, 4)?).unwrap_or(0)),
        });
    }
    Ok(page)
}

/// The number of a transaction: 64 bits without a sign, for which the client has no type.
fn number(text: String) -> Result<u64> {
    text.parse().map_err(|error| {
        FeedError::unavailable("the number of a transaction cannot be read").with_source(error)
    })
}
