//! A process with a larder: caches over the tables, a follower of the feed, and mischief inside.
//!
//! ```text
//! call item 3            reads a row: VERSION, `-` or `!KIND OF ERROR`, and the story of the read
//! batch item 3,4         and other ways to read, each in `ways`: VERSION;VERSION
//! call shelf 1           reads what is made from items: VERSION,VERSION, and the story
//! after TOKEN call ..    the same, no older than the token
//! cancel 5 call ..       the same, by a caller that goes away after 5 ms
//! warm early             has the rows of a table loaded that are not there
//! invalidate item 3      and other ways to tell: acked TOKEN, acked, or queued
//! bus drop 20 7          faults of its bus: drops 20 of 1,000 messages, chosen by seed 7
//! ahead                  what it refreshed ahead, and prefetched, since it was asked last
//! ```

use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::{
    Cache, CacheBuilder, CacheKey, Feed, Invalidation, Isolation, Larder, Loaded, Prefetch,
    Prefetching, Read, Receipt, RefreshAhead, Refreshing, TierHealth, Token,
};
use larder_redis::{Redis, RedisBus};
use larder_testkit::{FaultyBus, Peer};
use serde_json::json;

use crate::loaders::{OfMade, OfRows, Source};
use crate::rows::{self, NAMESPACE, Table};
use crate::ways::{Kept, Made, Way};

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
/// A share of the lifetime of an entry behind which a read refreshes it: a moment of two hours.
const EARLY: f64 = 0.00002;
/// How eager XFetch is: a load of some milliseconds reaches hours ahead, now and then.
const EAGER: f64 = 100_000.0;

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
    rows: Rows,
    made: Kept<String, Made, OfMade>,
    ahead: Ahead,
    source: Source,
}

/// The caches over the tables.
struct Rows(Vec<(Table, Kept<i32, u64, OfRows>)>);

impl Rows {
    fn of(&self, table: Table) -> &Kept<i32, u64, OfRows> {
        let of_table = |(its, _): &&(Table, _)| *its == table;
        &self.0.iter().find(of_table).unwrap().1
    }
}

/// What is done ahead of need for the rows of [`Table::Early`].
struct Ahead {
    refreshing: Refreshing,
    prefetching: Prefetching,
    /// What was told of it so far.
    told: Mutex<[u64; 2]>,
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
        for (table, _) in Table::ALL {
            let table = table.name();
            let keys = format!("key {table}:{{id}}");
            larder
                .on_event(&format!("{table}.changed"), [&*keys])
                .unwrap();
        }
        let source = Source::open(database, number(seed)).await;
        let kept = |table| Kept::new(cache_of(&larder, table), OfRows::new(&source, table));
        let rows = Rows(Table::ALL.map(|(table, _)| (table, kept(table))).into());
        let made = as_checked(larder.cache("made"))
            .load_deadline(MAKING_DEADLINE)
            .lease(MAKING_LEASE)
            .build()
            .unwrap();
        let maker = OfMade {
            source: source.clone(),
            items: rows.of(Table::Item).clone(),
            made: made.clone(),
        };
        Self {
            ahead: Ahead::of(rows.of(Table::Early)),
            made: Kept::new(made, maker),
            rows,
            source,
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
            ["after", token, way, what, ids] => {
                let token: Token = token.parse().map_err(said)?;
                Ok(self.read(Read::new().after(token), way, what, ids).await)
            }
            ["cancel", millis, way, what, ids] => {
                let wait = Duration::from_millis(number(millis));
                tokio::select! {
                    answer = self.read(Read::new(), way, what, ids) => Ok(answer),
                    () = self.source.clock.sleep(wait) => Ok("cancelled".to_owned()),
                }
            }
            ["warm", table] => self.warm(Table::named(table).unwrap()).await,
            ["bus", ..] => {
                self.break_bus(&words[1..]);
                Ok("done".to_owned())
            }
            ["panics", one_of] => {
                self.source.panic_in_one_of(number(one_of));
                Ok("done".to_owned())
            }
            ["lag", millis] => {
                self.source.lag_by(number(millis));
                Ok("done".to_owned())
            }
            ["figures"] => Ok(self.figures()),
            ["ahead"] => Ok(self.ahead.told()),
            [way, what, ids] => Ok(self.read(Read::new(), way, what, ids).await),
            _ => panic!("{line}"),
        }
    }

    async fn read(&self, read: Read, way: &str, what: &str, ids: &str) -> String {
        let (way, ids) = (Way::named(way).unwrap(), ids.split(','));
        match Table::named(what) {
            Some(table) => {
                let ids: Vec<i32> = ids.map(number).collect();
                self.rows.of(table).show(read, way, &ids).await
            }
            None => {
                let keys: Vec<String> = ids.map(|id| format!("{what} {id}")).collect();
                self.made.show(read, way, &keys).await
            }
        }
    }

    /// Has the rows of a table loaded that are not there; where their versions keep out what is older,
    /// with rows at hand that may be.
    async fn warm(&self, table: Table) -> Result<String, String> {
        let (kept, ids) = (self.rows.of(table), table.ids().collect::<Vec<i32>>());
        let progress = if table == Table::Lagging && self.source.lag() > 0 {
            let found = kept.loader.find(&ids).await;
            let found = found.map_err(|error| format!("Load {error:?}"))?;
            kept.cache.warm_with(Feed::list(found)).start().done().await
        } else {
            kept.warm(ids, self.source.any_way()).await
        };
        match progress.failed {
            0 => Ok(progress.line(0)),
            _ => Err(format!("Load {}", progress.line(0))),
        }
    }

    /// Tells what has changed, if that is what the words say.
    async fn tell(&self, words: &[&str]) -> Option<larder::Result<Receipt>> {
        let cache = |table| &self.rows.of(Table::named(table).unwrap()).cache;
        Some(match *words {
            ["invalidate", table, id] => cache(table).invalidate(&number::<i32>(id)).await,
            ["expire", table, id] => cache(table).expire(&number::<i32>(id)).await,
            ["tags", tags] => {
                let tags = tags.split(',').map(Invalidation::tag);
                self.larder.invalidate_each(tags).await
            }
            ["group", table, half] => {
                let group = format!("half {half}");
                cache(table).invalidate_group(&group).await
            }
            ["clear", table] => cache(table).clear().await,
            ["pattern", table, id] => cache(table).invalidate_matching(id).await,
            ["event", table, id] => {
                let payload = json!({ "id": number::<i32>(id) });
                let event = format!("{table}.changed");
                self.larder.emit(&event, &payload).await
            }
            ["set", table, id, version, category] => {
                let tag = rows::tag_of(Table::named(table).unwrap(), number(category));
                let version = number(version);
                let value = Loaded::value(version).version(version).tags([tag]);
                cache(table).set(number(id), value).await
            }
            ["before", table, id, version] => {
                let (id, version) = (number::<i32>(id), number(version));
                cache(table).invalidate_before(&id, version).await
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

impl Ahead {
    fn of(early: &Kept<i32, u64, OfRows>) -> Self {
        let often = RefreshAhead {
            after: 1.0,
            every: Some(Duration::from_millis(300)),
            tick: Duration::from_millis(50),
            sample: 1,
            ..RefreshAhead::default()
        };
        Self {
            refreshing: early.singly.refresh_ahead(often).unwrap(),
            prefetching: early.singly.prefetch(Prefetch::default()).unwrap(),
            told: Mutex::default(),
        }
    }

    /// What was refreshed, and what was prefetched, since this was asked last.
    fn told(&self) -> String {
        let (refreshed, prefetched) = (self.refreshing.stats(), self.prefetching.stats());
        let now = [refreshed.refreshes, prefetched.prefetched];
        let mut told = self.told.lock().unwrap();
        let [refreshed, prefetched] = std::array::from_fn(|at| now[at] - told[at]);
        *told = now;
        format!("{refreshed} {prefetched}")
    }
}

/// The cache of a table, with the options that the table is there for.
fn cache_of(larder: &Larder, table: Table) -> Cache<i32, u64> {
    let cache = as_checked(larder.cache(table.name()));
    let cache = if table.is_told_by_hand() {
        cache.groups(|id| vec![rows::group_of(*id)])
    } else {
        cache
    };
    let cache = match table {
        Table::Item | Table::Keyed | Table::Tagged | Table::Lagging => cache,
        Table::Early => cache.eager_refresh(EARLY).xfetch(EAGER),
        // Whatever is read lives on.
        Table::Sliding => cache.ttl("3s").sliding("2h"),
        // What is stale here lives as long as anything.
        Table::Graceful => cache.ttl("500ms").grace("2h").error_throttle("500ms"),
        Table::Sturdy => {
            let patient = cache.ttl("500ms").stale_on_error("2h");
            patient.error_throttle("500ms").soft_deadline("5ms")
        }
    };
    cache.build().unwrap()
}

/// Everything lives longer than a run, so that nothing gets right by ending; where a table is there for
/// other lifetimes, [`cache_of`] says so.
fn as_checked<K, V>(cache: CacheBuilder<K, V>) -> CacheBuilder<K, V>
where
    K: CacheKey,
    V: serde::Serialize + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    cache
        .ttl("2h")
        .memory_ttl("2h")
        .negative_ttl("2h")
        .load_deadline(LOAD_DEADLINE)
        .isolation(Isolation::Load)
}

fn number<N: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> N {
    text.parse().unwrap()
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
