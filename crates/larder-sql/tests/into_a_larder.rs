//! A change of a row reaches the caches of every process.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{PATIENCE, Shop, products};
use larder::backplane::LocalBus;
use larder::clock::SystemClock;
use larder::store::StoreErrorKind;
use larder::{Cache, Invalidation, Larder, Loaded};
use larder_sql::{Feed, FeedConfig};
use larder_testkit::{BusFault, BusOperation, FaultyBus, FaultyStore, MemoryStore};
use sqlx::Row as _;
use tokio::task::JoinHandle;

/// What the processes of a test have in common.
#[derive(Clone)]
struct Common {
    shop: Arc<Shop>,
    store: FaultyStore<MemoryStore>,
    bus: LocalBus,
}

impl Common {
    async fn open() -> Self {
        let clock = SystemClock::shared();
        Self {
            shop: Arc::new(Shop::open().await),
            store: FaultyStore::new(MemoryStore::new(clock.clone()), clock),
            bus: LocalBus::new(),
        }
    }

    fn process(&self) -> Process {
        self.process_on(FaultyBus::new(self.bus.clone()))
    }

    fn process_on(&self, bus: FaultyBus<LocalBus>) -> Process {
        let builder = Larder::builder("shop").shared(self.store.clone());
        let larder = builder.backplane(bus).build().unwrap();
        let names = larder.cache("product").ttl("1h").build().unwrap();
        Process {
            larder,
            names,
            shop: Arc::clone(&self.shop),
        }
    }
}

/// One process: a larder on the bus, and a cache of what products are called.
struct Process {
    larder: Larder,
    names: Cache<i32, String>,
    shop: Arc<Shop>,
}

impl Process {
    async fn name_of(&self, id: i32) -> Option<String> {
        let shop = Arc::clone(&self.shop);
        let load = |_| async move {
            let sql = "SELECT name, category_id FROM product WHERE id = $1";
            let row = sqlx::query(sql).bind(id).fetch_optional(&shop.pool).await?;
            Ok::<_, sqlx::Error>(match row {
                None => Loaded::absent(),
                Some(row) => Loaded::value(row.get::<String, _>(0))
                    .tags([format!("category:{}", row.get::<i32, _>(1))]),
            })
        };
        let name = self.names.get_or_load(&id, load).await.unwrap();
        name.map(|name| name.to_string())
    }

    /// Reads until the name is the one that the table has, however long an older one is served.
    async fn comes_to_say(&self, id: i32, expected: &str) {
        let seen = async {
            while self.name_of(id).await.as_deref() != Some(expected) {
                tokio::task::yield_now().await;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        assert!(seen.is_ok(), "product {id} is never called {expected}");
    }
}

fn follow_into(feed: &Feed, larder: &Larder) -> JoinHandle<()> {
    let (feed, larder) = (feed.clone(), larder.clone());
    tokio::spawn(async move { feed.follow_into(larder).await })
}

fn hasty() -> FeedConfig {
    let mut config = products();
    config.follow.poll = Duration::from_millis(20);
    config.follow.max_delay = Duration::from_millis(50);
    config
}

#[tokio::test]
async fn a_row_that_somebody_changes_is_read_anew_everywhere() {
    let common = Common::open().await;
    let shop = &common.shop;
    let feed = shop.feed(hasty()).await;
    let processes = [(); 3].map(|()| common.process());
    shop.run("INSERT INTO product VALUES (1, 'cup', 3), (2, 'pot', 3)")
        .await;
    for process in &processes {
        assert_eq!(process.name_of(1).await.as_deref(), Some("cup"));
        assert_eq!(process.name_of(2).await.as_deref(), Some("pot"));
    }
    let _following = processes.each_ref().map(|p| follow_into(&feed, &p.larder));
    for round in 0..10 {
        // By its key, by the tag of its category, and by all at once.
        shop.run(&format!(
            "UPDATE product SET name = 'cup {round}' WHERE id = 1"
        ))
        .await;
        for process in &processes {
            process.comes_to_say(1, &format!("cup {round}")).await;
        }
    }
    shop.run("TRUNCATE product; INSERT INTO product VALUES (1, 'jug', 4)")
        .await;
    for process in &processes {
        process.comes_to_say(1, "jug").await;
    }
}

#[tokio::test]
async fn a_change_stays_until_the_bus_took_it() {
    let common = Common::open().await;
    let shop = &common.shop;
    let feed = shop.feed(hasty()).await;
    let near_bus = FaultyBus::new(common.bus.clone());
    let near = common.process_on(near_bus.clone());
    let far = common.process();
    shop.run("INSERT INTO product VALUES (1, 'cup', 3)").await;
    far.comes_to_say(1, "cup").await;
    let following = follow_into(&feed, &near.larder);
    shop.until("NOT EXISTS (SELECT FROM larder_feed.outbox)")
        .await;
    near_bus.inject(
        [BusOperation::Publish],
        BusFault::Fail(StoreErrorKind::Unavailable),
    );
    shop.run("UPDATE product SET name = 'pot'").await;
    let seen = async {
        while feed.health().not_applied < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap();
    let problem = feed.health().problem.unwrap();
    assert!(
        problem.contains("bus of the larder cannot be reached"),
        "{problem}"
    );
    assert_eq!(shop.outbox().await.len(), 2);
    // The process that tried is gone, and with it what it would have sent later.
    following.abort();
    assert!(following.await.unwrap_err().is_cancelled());
    let _following = follow_into(&feed, &far.larder);
    far.comes_to_say(1, "pot").await;
    shop.until("NOT EXISTS (SELECT FROM larder_feed.outbox)")
        .await;
}

#[tokio::test]
async fn what_no_entry_can_have_does_not_hold_up_the_rest() {
    let common = Common::open().await;
    let shop = &common.shop;
    let feed = shop.feed(hasty()).await;
    let process = common.process();
    shop.run("INSERT INTO product VALUES (1, 'cup', 3)").await;
    process.comes_to_say(1, "cup").await;
    let mut tx = shop.pool.begin().await.unwrap();
    let wrong = [
        Invalidation::tag(""),
        Invalidation::tag("x".repeat(100_000)),
        Invalidation::cache("no such name !"),
        Invalidation::key("product", ["x".repeat(100_000)]),
    ];
    feed.invalidate_in(&mut tx, &wrong).await.unwrap();
    sqlx::raw_sql("UPDATE product SET name = 'pot'")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let _following = follow_into(&feed, &process.larder);
    process.comes_to_say(1, "pot").await;
    shop.until("NOT EXISTS (SELECT FROM larder_feed.outbox)")
        .await;
}

#[tokio::test]
async fn a_larder_that_is_shut_down_lets_another_process_follow() {
    let common = Common::open().await;
    let shop = &common.shop;
    let feed = shop.feed(hasty()).await;
    let first = common.process();
    let second = common.process();
    let following = follow_into(&feed, &first.larder);
    shop.run("INSERT INTO product VALUES (1, 'cup', 3)").await;
    shop.until("NOT EXISTS (SELECT FROM larder_feed.outbox)")
        .await;
    second.comes_to_say(1, "cup").await;
    let _ = first.larder.shutdown(Duration::ZERO).await;
    shop.run("UPDATE product SET name = 'pot'").await;
    tokio::time::timeout(PATIENCE, following)
        .await
        .unwrap()
        .unwrap();
    let _following = follow_into(&feed, &second.larder);
    second.comes_to_say(1, "pot").await;
}
