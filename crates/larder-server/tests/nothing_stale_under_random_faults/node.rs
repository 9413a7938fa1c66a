//! A process with a larder: caches over the tables, a follower of the feed, and mischief inside.
//!
//! ```text
//! item 3                 reads a row: VERSION or `-`, and the story of the read
//! shelf 1, hall 0        reads what is made from items: ID=VERSION,ID=VERSION, and the story
//! after TOKEN item 3     the same, no older than the token
//! cancel 5 item 3        the same, by a caller that goes away after 5 ms
//! invalidate 3           and other ways to tell: acked TOKEN, acked, or queued
//! bus drop 20 7          faults of its bus: drops 20 of 1,000 messages, chosen by seed 7
//! ```

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use fastrand::Rng;
use larder::clock::{Clock, SystemClock};
use larder::{Cache, Invalidation, Isolation, Larder, Loaded, Read, Receipt, TierHealth, Token};
use larder_redis::{Redis, RedisBus};
use larder_testkit::{FaultyBus, Peer};
use serde_json::json;
use sqlx::postgres::PgPool;

use crate::rows::{self, NAMESPACE, Row, SHELVES, Table};

/// The variable that tells the test below where redis and database are, and its seed.
pub(crate) const VARIABLE: &str = "LARDER_CHECK_NODE";
/// What that test is called.
pub(crate) const TEST: &str = "node::a_node_ends_with_its_test";

/// How long a load may take: short, because PostgreSQL is stopped for longer at times.
const LOAD_DEADLINE: Duration = Duration::from_secs(3);
/// Making something from rows waits for each of them, and at worst for each lease of a node that was
/// killed; its own lease is not to be waited for as long.
const MAKING_DEADLINE: Duration = Duration::from_secs(45);
const MAKING_LEASE: Duration = Duration::from_secs(5);
/// Loads are this seldom slow, and very slow: one of so many.
const SLOW: u64 = 3;
const VERY_SLOW: u64 = 60;

/// Where there is no variable, the processes of the checker show that this is so.
#[test]
fn a_node_ends_with_its_test() {
    let Ok(words) = std::env::var(VARIABLE) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let node = Arc::new(Node::open(&words).await);
        let following = (rows::feed(&node.database), node.larder.clone());
        tokio::spawn(async move { following.0.follow_into(following.1).await });
        Peer::answer(|line| {
            let node = Arc::clone(&node);
            async move { node.answer(&line).await }
        })
        .await;
    });
}

struct Node {
    larder: Larder,
    bus: FaultyBus<RedisBus>,
    database: String,
    caches: Vec<(Table, Cache<i32, u64>)>,
    made: Cache<String, Vec<(i32, u64)>>,
    source: Source,
}

/// What loaders read from, and how badly they behave.
#[derive(Clone)]
struct Source {
    pool: PgPool,
    clock: Arc<dyn Clock>,
    mischief: Arc<Mischief>,
}

struct Mischief {
    rng: std::sync::Mutex<Rng>,
    /// One load of so many panics; 0 for none.
    panics: AtomicU64,
    /// How far behind the replica is, in milliseconds.
    lag: AtomicU64,
}

impl Node {
    async fn open(words: &str) -> Self {
        let words: Vec<&str> = words.split(' ').collect();
        let [redis, database, seed] = words[..] else {
            panic!("{words:?}");
        };
        let bus = FaultyBus::new(RedisBus::new(redis).unwrap());
        let larder = Larder::builder(NAMESPACE)
            .shared(Redis::new(redis).unwrap())
            .backplane(bus.clone())
            .build()
            .unwrap();
        larder.on_event("item.changed", ["key item:{id}"]).unwrap();
        let mischief = Mischief {
            rng: std::sync::Mutex::new(Rng::with_seed(seed.parse().unwrap())),
            panics: AtomicU64::new(0),
            lag: AtomicU64::new(0),
        };
        Self {
            caches: Table::ALL.map(|(table, _)| cache_of(&larder, table)).into(),
            made: as_checked(larder.cache("made"))
                .load_deadline(MAKING_DEADLINE)
                .lease(MAKING_LEASE)
                .build()
                .unwrap(),
            source: Source {
                pool: rows::connect(database).await,
                clock: SystemClock::shared(),
                mischief: Arc::new(mischief),
            },
            database: database.to_owned(),
            bus,
            larder,
        }
    }

    async fn answer(&self, line: &str) -> Result<String, String> {
        let words: Vec<&str> = line.split(' ').collect();
        if let Some(told) = self.tell(&words).await {
            return told.map(receipt).map_err(said);
        }
        match words[..] {
            ["after", token, what, id] => {
                let token: Token = token.parse().map_err(said)?;
                self.read(Read::new().after(token), what, number(id)).await
            }
            ["cancel", millis, what, id] => {
                let wait = Duration::from_millis(number(millis));
                tokio::select! {
                    answer = self.read(Read::new(), what, number(id)) => answer,
                    () = self.source.clock.sleep(wait) => Ok("cancelled".to_owned()),
                }
            }
            ["bus", ..] => {
                self.break_bus(&words[1..]);
                Ok("done".to_owned())
            }
            ["panics", one_of] => {
                self.source.mischief.panics.store(number(one_of), SeqCst);
                Ok("done".to_owned())
            }
            ["lag", millis] => {
                self.source.mischief.lag.store(number(millis), SeqCst);
                Ok("done".to_owned())
            }
            ["figures"] => Ok(self.figures()),
            [what, id] => self.read(Read::new(), what, number(id)).await,
            _ => panic!("{line}"),
        }
    }

    fn cache(&self, table: Table) -> &Cache<i32, u64> {
        let of_table = |(its, _): &&(Table, _)| *its == table;
        &self.caches.iter().find(of_table).unwrap().1
    }

    async fn read(&self, read: Read, what: &str, id: i32) -> Result<String, String> {
        let story = match Table::named(what) {
            Some(table) => {
                let row = Row { table, id };
                let load = |_| self.source.clone().load(row);
                let cache = self.cache(table).with(read);
                let answered = cache.get_or_load_explained(&id, load).await;
                let answered = answered.map_err(said)?;
                let version = answered.value.map_or("-".to_owned(), |v| v.to_string());
                format!("{version} {}", answered.outcome)
            }
            None => {
                let key = format!("{what} {id}");
                let load = |_| self.made_of(what == "hall", id);
                let cache = self.made.with(read);
                let answered = cache.get_or_load_explained(&*key, load).await;
                let answered = answered.map_err(said)?;
                format!("{} {}", written(&answered.value), answered.outcome)
            }
        };
        Ok(story)
    }

    /// Loads a shelf, or the hall.
    fn made_of(
        &self,
        is_hall: bool,
        shelf: i32,
    ) -> impl Future<Output = larder::Result<Vec<(i32, u64)>>> + Send + 'static {
        let (made, items) = (self.made.clone(), self.cache(Table::Item).clone());
        let source = self.source.clone();
        async move {
            if !is_hall {
                return shelf_of(items, source, shelf).await;
            }
            let mut all = Vec::new();
            for shelf in 0..SHELVES {
                let load = |_| shelf_of(items.clone(), source.clone(), shelf);
                let key = format!("shelf {shelf}");
                let one = Box::pin(made.get_or_load(&*key, load)).await?;
                all.extend_from_slice(&one);
            }
            Ok(all)
        }
    }

    /// Tells what has changed, if that is what the words say.
    async fn tell(&self, words: &[&str]) -> Option<larder::Result<Receipt>> {
        let items = self.cache(Table::Item);
        Some(match *words {
            ["invalidate", id] => items.invalidate(&number::<i32>(id)).await,
            ["expire", id] => items.expire(&number::<i32>(id)).await,
            ["tags", tags] => {
                let tags = tags.split(',').map(Invalidation::tag);
                self.larder.invalidate_each(tags).await
            }
            ["group", half] => items.invalidate_group(&format!("half {half}")).await,
            ["clear"] => items.clear().await,
            ["pattern", id] => items.invalidate_matching(id).await,
            ["event", id] => {
                let payload = json!({ "id": number::<i32>(id) });
                self.larder.emit("item.changed", &payload).await
            }
            ["set", id, version, category] => {
                let (version, tag) = (number(version), tag(Table::Item, category));
                let value = Loaded::value(version).version(version).tags([tag]);
                items.set(number(id), value).await
            }
            ["before", table, id, version] => {
                let cache = self.cache(Table::named(table).unwrap());
                cache
                    .invalidate_before(&number::<i32>(id), number(version))
                    .await
            }
            _ => return None,
        })
    }

    fn break_bus(&self, words: &[&str]) {
        match *words {
            ["drop", of_1000, seed] => {
                let share = number::<u64>(of_1000) as f64 / 1_000.0;
                self.bus.drop_share(share, number(seed));
            }
            ["lose", messages] => self.bus.drop_next(number(messages)),
            ["double", messages] => self.bus.duplicate_next(number(messages)),
            ["silence"] => self.bus.silence(),
            ["hold"] => self.bus.hold(),
            // A connection that was half open is given up in the end: what began meanwhile, and was
            // lost, would never be told again.
            ["speak"] => {
                self.bus.release();
                self.bus.cut();
            }
            ["shuffle", seed] => self.bus.release_shuffled(number(seed)),
            ["cut"] => self.bus.cut(),
            ["heal"] => self.bus.heal(),
            _ => panic!("{words:?}"),
        }
    }

    fn figures(&self) -> String {
        let bus = self.larder.bus().unwrap();
        let tier = self.larder.tiers().remove(0);
        let is_open = tier.health == TierHealth::Open;
        let ill = !bus.healthy || is_open || tier.owed > 0 || bus.unsent > 0;
        format!("ill={} {bus:?} {tier:?}", u8::from(ill))
    }
}

async fn shelf_of(
    items: Cache<i32, u64>,
    source: Source,
    shelf: i32,
) -> larder::Result<Vec<(i32, u64)>> {
    let mut made = Vec::new();
    for id in rows::items_of(shelf) {
        let load = |_| source.clone().load(Row::item(id));
        let item = Box::pin(items.get_or_load(&id, load)).await?;
        made.push((id, item.map_or(0, |version| *version)));
    }
    source.dawdle().await;
    Ok(made)
}

impl Source {
    /// Reads a row, and takes its time with what it found.
    async fn load(self, row: Row) -> sqlx::Result<Loaded<u64>> {
        let lag = self.mischief.lag.load(SeqCst);
        let found = rows::fetch(&self.pool, row, lag).await?;
        self.dawdle().await;
        Ok(match found {
            None => Loaded::absent(),
            Some(found) => Loaded::value(found.version)
                .version(found.version)
                .tags([rows::tag_of(row.table, found.category)]),
        })
    }

    /// What changes between the read and the fill is what fences are for.
    async fn dawdle(&self) {
        let (slow, very_slow, panics, millis) = {
            let mut rng = self.mischief.rng.lock().unwrap();
            let mut one_of = |of: u64| of > 0 && rng.u64(0..of) == 0;
            let panics = one_of(self.mischief.panics.load(SeqCst));
            (one_of(SLOW), one_of(VERY_SLOW), panics, rng.u64(1..30))
        };
        if slow || very_slow {
            let millis = if very_slow { 20 * millis } else { millis };
            self.clock.sleep(Duration::from_millis(millis)).await;
        }
        assert!(!panics, "a loader panics, as it was told to");
    }
}

fn cache_of(larder: &Larder, table: Table) -> (Table, Cache<i32, u64>) {
    let cache = as_checked(larder.cache(table.name()));
    let cache = match table {
        Table::Item => cache.groups(|id| vec![rows::group_of(*id)]),
        _ => cache,
    };
    (table, cache.build().unwrap())
}

/// Everything lives longer than a run, so that nothing gets right by ending.
fn as_checked<K, V>(cache: larder::CacheBuilder<K, V>) -> larder::CacheBuilder<K, V>
where
    K: larder::CacheKey,
    V: serde::Serialize + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    cache
        .ttl("2h")
        .memory_ttl("2h")
        .negative_ttl("2h")
        .load_deadline(LOAD_DEADLINE)
        .isolation(Isolation::Load)
}

fn tag(table: Table, category: &str) -> String {
    rows::tag_of(table, number(category))
}

fn number<N: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> N {
    text.parse().unwrap()
}

fn written(made: &[(i32, u64)]) -> String {
    let mut text = String::new();
    for (id, version) in made {
        let _ = write!(text, "{id}={version},");
    }
    text
}

fn said(error: larder::Error) -> String {
    format!("{:?} {error:?}", error.kind())
}

fn receipt(receipt: Receipt) -> String {
    match receipt.token() {
        _ if receipt.is_queued() => "queued".to_owned(),
        Some(token) => format!("acked {token}"),
        None => "acked".to_owned(),
    }
}
