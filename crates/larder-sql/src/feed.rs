use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use larder::clock::SystemClock;
use larder::{Clock, Invalidation};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use crate::body::outbox;
use crate::catalog::{Catalog, Installed, failed, get};
use crate::change;
use crate::config::{Checked, FeedConfig, Wake};
use crate::error::{FeedError, FeedErrorKind, Result};
use crate::health::{FollowHealth, Health};
use crate::plan::{self, Statement};
use crate::quote::in_comment;

/// Changes of rows in a PostgreSQL database as invalidations.
///
/// Triggers write what a changed row invalidates into an outbox table, in the transaction that
/// changes it: what is rolled back invalidates nothing, and what is committed is not lost, whoever
/// crashes. A follower applies the outbox to a larder, and removes from it what was applied.
///
/// Cheap to clone; clones share their health.
#[derive(Clone)]
pub struct Feed {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) options: PgConnectOptions,
    pub(crate) config: Checked,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) health: Health,
}

/// How much may be written by one call of [`Feed::invalidate_in`].
const MOST_AT_ONCE: usize = 100_000;
/// How far a backlog is counted.
const MOST_COUNTED: u32 = 1_000_000;

impl Feed {
    /// A feed in the database of `pool`, whose options it takes over. It makes connections of its
    /// own: a follower keeps one.
    ///
    /// # Errors
    /// `Config`, if the configuration cannot work whatever is in the database. The database is not
    /// asked yet.
    pub fn new(pool: &PgPool, config: FeedConfig) -> Result<Self> {
        Self::with_clock(&pool.connect_options(), config, SystemClock::shared())
    }

    /// A feed in the database at `url`: `postgres://user:password@host:5432/database`.
    ///
    /// # Errors
    /// As [`Feed::new`], and for a URL that is none.
    pub fn at(url: &str, config: FeedConfig) -> Result<Self> {
        Self::with_clock(&parse_url(url)?, config, SystemClock::shared())
    }

    /// A feed whose pauses and deadlines are those of `clock`.
    ///
    /// # Errors
    /// As [`Feed::new`].
    pub fn with_clock(
        options: &PgConnectOptions,
        config: FeedConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let config = config.check()?;
        // Who looks at the server's connections should see whose this one is.
        let name = match options.get_application_name() {
            Some(name) => name.to_owned(),
            None => format!("larder feed {}", config.namespace),
        };
        let options = options.clone().application_name(&name);
        let inner = Inner {
            options: options.disable_statement_logging(),
            config,
            clock,
            health: Health::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// What has to be done to the database so that it has this feed. Changes nothing.
    ///
    /// # Errors
    /// A table, column or role that is not there; something in the way that is not this feed's; a
    /// server that is too old, a replica, or away.
    pub async fn plan(&self) -> Result<Plan> {
        self.make_plan(Aim::Install).await
    }

    /// What has to be done so that nothing of this feed is left. Changes nothing.
    ///
    /// # Errors
    /// As [`Feed::plan`].
    pub async fn plan_removal(&self) -> Result<Plan> {
        self.make_plan(Aim::Remove).await
    }

    /// Installs the feed, or brings one that is installed up to date: plans and runs the plan.
    ///
    /// # Errors
    /// Those of [`Feed::plan`] and of [`Plan::run`].
    pub async fn install(&self) -> Result<()> {
        self.plan().await?.run().await
    }

    /// Removes the feed and what it still holds; nothing is left of it.
    ///
    /// # Errors
    /// Those of [`Feed::plan_removal`] and of [`Plan::run`].
    pub async fn uninstall(&self) -> Result<()> {
        self.plan_removal().await?.run().await
    }

    async fn make_plan(&self, aim: Aim) -> Result<Plan> {
        let mut conn = self.connection().await?;
        let statements = self
            .within("look at the database", aim.statements(self, &mut conn))
            .await??;
        let _ = conn.close().await;
        Ok(Plan {
            feed: self.clone(),
            aim,
            statements,
        })
    }

    /// Writes invalidations into the outbox in the caller's own transaction: they happen if it
    /// commits, after it did, and not if it is rolled back.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool, feed: larder_sql::Feed) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut tx = pool.begin().await?;
    /// sqlx::query("UPDATE setting SET value = 'dark' WHERE name = 'theme'").execute(&mut *tx).await?;
    /// feed.invalidate_in(&mut tx, &[larder::Invalidation::tag("settings")]).await?;
    /// tx.commit().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `NotInstalled`, `Denied` for a role that is not in [`FeedConfig::roles`], `Config` for more
    /// than 100,000 at once or for a text that PostgreSQL cannot hold, or what else the server
    /// refuses. As with every failed statement the transaction can only be rolled back then, other
    /// than after `Config`.
    pub async fn invalidate_in(&self, tx: &mut PgConnection, what: &[Invalidation]) -> Result<()> {
        if what.len() > MOST_AT_ONCE {
            let message = format!("at most {MOST_AT_ONCE} invalidations can be written at once");
            return Err(FeedError::config(message));
        }
        if what.is_empty() {
            return Ok(());
        }
        let (mut kinds, mut firsts, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
        for one in what {
            let (kind, first, second) = change::write(one)?;
            kinds.push(kind);
            firsts.push(first);
            seconds.push(second);
        }
        let Checked { schema, wake, .. } = &self.inner.config;
        let notify = match wake {
            Wake::Notify => "pg_catalog.pg_notify($4, '')::text",
            Wake::Poll => "$4::text",
        };
        let sql = format!(
            "WITH written AS ( \
                 INSERT INTO {} (what) \
                 SELECT pg_catalog.array_remove(ARRAY[kind, first, second], NULL) \
                   FROM unnest($1::text[], $2::text[], $3::text[]) \
                        AS t (kind, first, second) \
                 RETURNING id) \
             SELECT {notify} FROM written LIMIT 1",
            outbox(schema)
        );
        let written = sqlx::query(AssertSqlSafe(sql))
            .bind(kinds)
            .bind(firsts)
            .bind(seconds)
            .bind(schema)
            .fetch_optional(tx)
            .await;
        written
            .map(drop)
            .map_err(|error| self.explain("write into the feed's outbox", error))
    }

    /// [`Feed::invalidate_in`] for one tag.
    ///
    /// # Errors
    /// As there.
    pub async fn invalidate_tag_in(&self, tx: &mut PgConnection, tag: &str) -> Result<()> {
        self.invalidate_in(tx, &[Invalidation::tag(tag)]).await
    }

    /// What waits in the outbox, and who follows it.
    ///
    /// # Errors
    /// `NotInstalled`, `Denied`, or a server that is away.
    pub async fn status(&self) -> Result<FeedStatus> {
        let mut conn = self.connection().await?;
        let status = self.within("ask the feed for its state", self.read_status(&mut conn));
        let status = status.await??;
        let _ = conn.close().await;
        Ok(status)
    }

    async fn read_status(&self, conn: &mut PgConnection) -> Result<FeedStatus> {
        let doing = "ask the feed for its state";
        self.check_installed(conn).await?;
        let sql = format!(
            "SELECT count(*), (extract(epoch FROM clock_timestamp() - min(at)) * 1000)::int8 \
               FROM (SELECT at FROM {} LIMIT {MOST_COUNTED}) AS waiting",
            outbox(&self.inner.config.schema)
        );
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut *conn).await;
        let row = row.map_err(|error| self.explain(doing, error))?;
        let (backlog, oldest): (i64, Option<i64>) = (get(&row, 0)?, get(&row, 1)?);
        let sql = format!(
            "SELECT l.pid, a.application_name FROM pg_locks l \
               LEFT JOIN pg_stat_activity a USING (pid) WHERE {IS_OUR_LOCK}"
        );
        let key = plan::lock_key("follow", &self.inner.config.schema);
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(key)
            .fetch_optional(conn);
        let follower = match row.await.map_err(failed(doing))? {
            None => None,
            Some(row) => Some(Follower {
                pid: get(&row, 0)?,
                application: get::<Option<String>>(&row, 1)?.unwrap_or_default(),
            }),
        };
        let millis = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        Ok(FeedStatus {
            backlog: u64::try_from(backlog).unwrap_or(0),
            oldest: oldest.map(millis),
            follower,
        })
    }

    /// How following goes in this process.
    pub fn health(&self) -> FollowHealth {
        self.inner.health.snapshot()
    }

    /// The error of a statement, knowing what is asked for when the feed's tables are not there.
    pub(crate) fn explain(&self, doing: &str, error: sqlx::Error) -> FeedError {
        let error = FeedError::of(doing, error);
        match error.kind() {
            FeedErrorKind::NotInstalled => FeedError::not_installed(&self.inner.config.schema),
            _ => error,
        }
    }

    /// Whether the feed that is installed is this one, in a shape that this release knows.
    pub(crate) async fn check_installed(&self, conn: &mut PgConnection) -> Result<()> {
        let config = &self.inner.config;
        plan::check_installed(config, &Installed::read(conn, &config.schema).await?)
    }

    pub(crate) async fn connection(&self) -> Result<PgConnection> {
        let connecting = PgConnection::connect_with(&self.inner.options);
        let connected = self.within("connect", connecting).await?;
        connected.map_err(|error| self.not_connected(error))
    }

    pub(crate) fn not_connected(&self, error: sqlx::Error) -> FeedError {
        FeedError::of(&format!("connect to {}", self.place()), error)
    }

    /// Host, port and database, without user and password.
    fn place(&self) -> String {
        let options = &self.inner.options;
        let database = options.get_database().unwrap_or_default();
        format!("{}:{}/{database}", options.get_host(), options.get_port())
    }

    /// Waits for `answer`, but not for ever.
    pub(crate) async fn within<T>(
        &self,
        doing: &str,
        answer: impl Future<Output = T>,
    ) -> Result<T> {
        let limit = self.inner.config.follow.answer_timeout;
        tokio::select! {
            answer = answer => Ok(answer),
            () = self.inner.clock.sleep(limit) => {
                let (place, limit) = (self.place(), limit.as_millis());
                Err(FeedError::unavailable(format!(
                    "cannot {doing}: PostgreSQL at {place} gave no answer within {limit} ms"
                )))
            }
        }
    }
}

/// Which row of `pg_locks` is the lock with the number `$1`.
pub(crate) const IS_OUR_LOCK: &str = "l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     AND (l.classid::int8 << 32 | l.objid::int8) = $1";

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed")
            .field("place", &self.place())
            .field("schema", &self.inner.config.schema)
            .field("namespace", &self.inner.config.namespace)
            .finish_non_exhaustive()
    }
}

/// The state of a feed in its database.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeedStatus {
    /// How many changes wait to be applied; counted up to 1,000,000.
    pub backlog: u64,
    /// How long the oldest of them has waited, by the server's clock.
    pub oldest: Option<Duration>,
    /// Who follows the feed, if anybody does.
    pub follower: Option<Follower>,
}

/// A connection that follows a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Follower {
    /// The process that serves it at the server.
    pub pid: i32,
    /// The name that it gave itself; empty for a role that may not see it.
    pub application: String,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Install,
    Remove,
}

impl Aim {
    async fn statements(self, feed: &Feed, conn: &mut PgConnection) -> Result<Vec<Statement>> {
        let config = &feed.inner.config;
        let catalog = Catalog::read(conn, config).await?;
        let statements = match self {
            Self::Install => plan::install(config, &catalog),
            Self::Remove => plan::remove(config, &catalog),
        };
        Ok(plan::in_full(config, statements?))
    }
}

/// Statements that install, change or remove a feed. Printed, they are a script that somebody else
/// can run with psql.
#[must_use = "a plan changes nothing before it is run"]
pub struct Plan {
    feed: Feed,
    aim: Aim,
    statements: Vec<Statement>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// Runs exactly what was printed, in one transaction: all of it happens or nothing.
    ///
    /// It locks each table for a moment, and gives up if it does not get a lock within 5 s.
    ///
    /// # Errors
    /// `Denied`, `Busy`, or `InTheWay` for something that depends on what is to be removed; `Busy`
    /// as well if the database changed since the plan was made. Nothing is changed then.
    pub async fn run(self) -> Result<()> {
        if self.statements.is_empty() {
            return Ok(());
        }
        let mut conn = self.feed.connection().await?;
        let mut tx = conn.begin().await.map_err(failed("begin a transaction"))?;
        let (locks, rest) = self.statements.split_at(plan::LOCKS);
        run_all(&mut tx, locks).await?;
        if self.aim.statements(&self.feed, &mut tx).await? != self.statements {
            let message =
                "the database changed since this was planned; nothing was done, plan again";
            return Err(FeedError::new(FeedErrorKind::Busy, message));
        }
        run_all(&mut tx, rest).await?;
        let committed = tx.commit().await;
        committed.map_err(failed(
            "commit; whether it happened says `larder feed plan`",
        ))
    }
}

async fn run_all(tx: &mut PgConnection, statements: &[Statement]) -> Result<()> {
    for statement in statements {
        let sql = AssertSqlSafe(statement.sql.clone());
        let done = sqlx::raw_sql(sql).execute(&mut *tx).await;
        done.map_err(|error| FeedError::of(&statement.doing, error).after("nothing was changed"))?;
    }
    Ok(())
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Checked {
            namespace, schema, ..
        } = &self.feed.inner.config;
        let what = match (self.aim, self.is_empty()) {
            (Aim::Install, true) => "is installed as configured; there is nothing to do",
            (Aim::Install, false) => "is installed or changed by this",
            (Aim::Remove, true) => "is not installed; there is nothing to do",
            (Aim::Remove, false) => "is removed by this",
        };
        let schema = in_comment(schema);
        writeln!(
            f,
            "-- The feed of `{namespace}` in schema `{schema}` {what}."
        )?;
        if self.is_empty() {
            return Ok(());
        }
        plan::script(&self.statements, f)
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("aim", &self.aim)
            .field("statements", &self.statements.len())
            .finish_non_exhaustive()
    }
}

fn parse_url(url: &str) -> Result<PgConnectOptions> {
    let wrong = |why: &str| {
        let shown = without_password(url);
        FeedError::config(format!(
            "{shown:?} is not the URL of a database: {why}; write it like \
             postgres://user:password@127.0.0.1:5432/shop"
        ))
    };
    if !["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
    {
        return Err(wrong("it does not begin with postgres://"));
    }
    // What the parser says may repeat what it could not parse.
    PgConnectOptions::from_str(url).map_err(|_| wrong("host, port or an option cannot be read"))
}

/// Everything that may be a name or password is cut out, also where the rest is not a URL.
fn without_password(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let url = url.split_once('?').map_or(url, |(url, _)| url);
    match url.rfind('@') {
        Some(end) if end >= start => format!("{}…{}", &url[..start], &url[end..]),
        Some(_) | None => url.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        match Feed::at(url, FeedConfig::new("shop")) {
            Ok(feed) => panic!("{url} was taken as {feed:?}"),
            Err(error) => error.in_full(),
        }
    }

    #[test]
    fn a_wrong_url_is_one_sentence_without_its_password() {
        for url in [
            "",
            "localhost:5432",
            "mysql://user:hunter2@localhost/shop",
            "user:hunter2@localhost",
            "postgres://user:hunter2@localhost:port/shop",
            "postgres://user:hunter2@localhost:70000/shop",
            "postgres://user:hunt@er2:hunter2@localhost:x",
            "postgres://localhost/shop?password=hunter2&sslmode=hunter2",
            "postgres://localhost:x/shop?password=hunter2",
        ] {
            let message = refused(url);
            assert!(
                message.contains("is not the URL of a database"),
                "{message}"
            );
            assert!(
                !message.contains("hunter2") && !message.contains('\n'),
                "{message}"
            );
        }
    }

    #[test]
    fn what_a_feed_shows_of_itself_holds_no_password() {
        let url = "postgres://user:hunter2@localhost:7000/shop?password=hunter2";
        let feed = Feed::at(url, FeedConfig::new("shop")).unwrap();
        let shown = format!("{feed:?}");
        assert!(shown.contains("localhost:7000/shop"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
