//! Fault 6: loaders read from a standby of PostgreSQL that lags behind the write. What they find is
//! below the minimum version that the writer gave, and is stored nowhere.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use larder::clock::{Clock, SystemClock};
use larder::{Cache, Larder, Loaded, Read};
use larder_redis::Redis;
use larder_testkit::{Error, Gate, PostgresServer, RedisServer};

type Rows = Cache<u64, u64>;

/// A primary that is written to, and a standby that loaders read from.
struct Databases {
    primary: PostgresServer,
    standby: PostgresServer,
}

impl Databases {
    fn start() -> Self {
        let primary = PostgresServer::start().unwrap();
        let table = "CREATE TABLE product (id int PRIMARY KEY, version bigint);
                     INSERT INTO product SELECT id, 1 FROM generate_series(1, 9) AS id;";
        primary.exec(&primary.url(), table).unwrap();
        let standby = primary.start_standby().unwrap();
        Self { primary, standby }
    }

    fn ask_standby(&self, sql: &str) -> String {
        let answer = self.standby.exec(&self.standby.url(), sql).unwrap();
        answer.trim().to_owned()
    }

    /// From now on the standby sees nothing new.
    async fn lag(&self) {
        self.ask_standby("SELECT pg_wal_replay_pause()");
        self.until("SELECT pg_get_wal_replay_pause_state()", "paused")
            .await;
    }

    async fn catch_up(&self, id: u64, version: u64) {
        self.ask_standby("SELECT pg_wal_replay_resume()");
        let row = format!("SELECT version FROM product WHERE id = {id}");
        self.until(&row, &version.to_string()).await;
    }

    async fn until(&self, sql: &str, wanted: &str) {
        let clock = SystemClock::new();
        while self.ask_standby(sql) != wanted {
            assert!(clock.monotonic() < 30_000, "{sql} is not {wanted}");
            clock.sleep(Duration::from_millis(10)).await;
        }
    }

    /// Changes a row at the primary; its new version.
    fn write(&self, id: u64) -> u64 {
        let sql =
            format!("UPDATE product SET version = version + 1 WHERE id = {id} RETURNING version");
        let answer = self.primary.exec(&self.primary.url(), &sql).unwrap();
        answer.trim().parse().unwrap()
    }

    /// What a loader does: the standby's row with its version.
    fn read(&self, id: u64) -> Result<Loaded<u64>, Error> {
        let sql = format!("SELECT version FROM product WHERE id = {id}");
        let answer = self.standby.exec(&self.standby.url(), &sql)?;
        let version: u64 = answer.trim().parse().unwrap();
        Ok(Loaded::value(version).version(version))
    }
}

fn open(server: &RedisServer) -> (Larder, Rows) {
    let builder = Larder::builder("t").tier_budget(Duration::from_secs(5));
    let builder = builder.shared(Redis::new(&server.url()).unwrap());
    let larder = builder.build().unwrap();
    let rows = larder.cache("rows").build().unwrap();
    (larder, rows)
}

async fn load(rows: &Rows, databases: &Arc<Databases>, id: u64) -> u64 {
    let databases = Arc::clone(databases);
    let load = |_| async move { databases.read(id) };
    *rows.get_or_load(&id, load).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_standby_that_lags_gives_is_served_and_stored_nowhere() {
    let server = RedisServer::start().unwrap();
    let databases = Arc::new(Databases::start());
    let (_here, rows_here) = open(&server);
    let (_there, rows_there) = open(&server);
    for id in [1, 2, 3] {
        assert_eq!(load(&rows_there, &databases, id).await, 1);
        assert_eq!(load(&rows_here, &databases, id).await, 1);
    }
    databases.lag().await;
    // It lags for real: without the version, what is old comes back.
    databases.write(3);
    assert!(rows_here.invalidate(&3).await.unwrap().is_acked());
    assert_eq!(load(&rows_there, &databases, 3).await, 1);
    assert_eq!(rows_there.get(&3).await.unwrap().as_deref(), Some(&1));

    let version = databases.write(1);
    let told = rows_here.invalidate_before(&1, version).await.unwrap();
    assert!(told.is_acked());
    // Until the bus brings it, the other process serves what it has.
    let token = told.token().unwrap();
    let heard = rows_there.with(Read::new().after(token));
    assert_eq!(heard.get(&1).await.unwrap(), None);
    for rows in [&rows_there, &rows_here, &rows_there] {
        assert_eq!(load(rows, &databases, 1).await, 1, "its own load");
        assert_eq!(rows.get(&1).await.unwrap(), None, "stored nowhere");
    }
    let (_third, rows_third) = open(&server);
    assert_eq!(
        rows_third.get(&1).await.unwrap(),
        None,
        "not in Redis either"
    );

    databases.catch_up(1, version).await;
    assert_eq!(load(&rows_there, &databases, 1).await, version);
    for rows in [&rows_here, &rows_there, &rows_third] {
        assert_eq!(rows.get(&1).await.unwrap().as_deref(), Some(&version));
    }
}

/// The load has read the old row when the write and its invalidation come.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_load_from_the_standby_that_was_under_way_is_refused() {
    let server = RedisServer::start().unwrap();
    let databases = Arc::new(Databases::start());
    let (_here, rows_here) = open(&server);
    let (_there, rows_there) = open(&server);
    databases.lag().await;
    let gate = Gate::new();
    let loading = tokio::spawn({
        let (rows, databases, gate) = (rows_there.clone(), Arc::clone(&databases), gate.clone());
        let load = |_| async move {
            let row = databases.read(2);
            gate.wait().await;
            row
        };
        async move { rows.get_or_load(&2, load).await }
    });
    gate.arrived(1).await;
    let version = databases.write(2);
    assert!(
        rows_here
            .invalidate_before(&2, version)
            .await
            .unwrap()
            .is_acked()
    );
    gate.open();
    assert_eq!(loading.await.unwrap().unwrap().as_deref(), Some(&1));
    for rows in [&rows_there, &rows_here] {
        assert_eq!(rows.get(&2).await.unwrap(), None);
    }
    databases.catch_up(2, version).await;
    assert_eq!(load(&rows_here, &databases, 2).await, version);
    assert_eq!(rows_there.get(&2).await.unwrap().as_deref(), Some(&version));
}
