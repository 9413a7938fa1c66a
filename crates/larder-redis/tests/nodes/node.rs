//! The side of the node.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use larder::clock::{BoxFuture, Clock, Millis, SystemClock};
use larder::{Cache, Isolation, Larder, Loaded, Read, Receipt, TierHealth, Token};
use larder_redis::{BusKind, Redis, RedisBus, RedisOptions};
use larder_testkit::Peer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The variable that makes the test below a node.
pub(super) const VARIABLE: &str = "LARDER_TEST_NODE";
/// What that test is called.
pub(super) const TEST: &str = "nodes::node::a_node_ends_with_its_test";

/// The machine's clock, set to another time.
#[derive(Debug)]
struct SkewedClock {
    clock: SystemClock,
    skew: i64,
}

impl Clock for SkewedClock {
    fn monotonic(&self) -> Millis {
        self.clock.monotonic()
    }

    fn wall(&self) -> Millis {
        self.clock.wall().saturating_add_signed(self.skew)
    }

    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        self.clock.sleep(wait)
    }
}

struct Node {
    larder: Larder,
    rows: Cache<String, u64>,
    database: SocketAddr,
}

/// Where there is no variable, the processes of the other tests show that this is so.
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
    runtime.block_on(serve(&words));
}

async fn serve(words: &str) {
    let words: Vec<&str> = words.split(" , ").map(str::trim).collect();
    let [
        database,
        redis,
        bus,
        skew,
        lease,
        ttl,
        doubts_alone,
        watching,
    ] = words[..]
    else {
        panic!("{words:?}");
    };
    let clock = SkewedClock {
        clock: SystemClock::new(),
        skew: skew.parse().unwrap(),
    };
    let mut options = RedisOptions::default();
    if watching == "true" {
        options.bus = BusKind::Tracking;
    }
    let builder = Larder::builder("t")
        .clock(Arc::new(clock))
        .shared(Redis::with_options(redis, options).unwrap());
    let builder = match bus {
        "" => builder,
        bus => builder.backplane(RedisBus::new(bus).unwrap()),
    };
    let larder = builder.build().unwrap();
    let millis = |text: &str| Duration::from_millis(text.parse().unwrap());
    let isolation = if doubts_alone == "true" {
        Isolation::Load
    } else {
        Isolation::Serve
    };
    let rows = larder.cache("rows").ttl(millis(ttl)).lease(millis(lease));
    let node = Arc::new(Node {
        rows: rows.isolation(isolation).build().unwrap(),
        larder,
        database: database.parse().unwrap(),
    });
    Peer::answer(|line| {
        let node = Arc::clone(&node);
        async move {
            node.answer(&line)
                .await
                .map_err(|error| format!("{error:?}"))
        }
    })
    .await;
}

impl Node {
    async fn answer(&self, line: &str) -> larder::Result<String> {
        let words: Vec<&str> = line.split(' ').collect();
        Ok(match words[..] {
            ["load", key] => self.load(Read::new(), key).await?,
            ["after", token, key] => {
                let token: Token = token.parse()?;
                self.load(Read::new().after(token), key).await?
            }
            ["get", key] => {
                let read = self.rows.with(Read::new());
                let answered = read.get_explained(key).await?;
                let value = answered.value.map_or(0, |version| *version);
                format!("{value} {}", answered.outcome)
            }
            ["in-memory", key] => self
                .rows
                .get_in_memory(key)
                .map_or(0, |version| *version)
                .to_string(),
            ["set", key, version] => {
                let version: u64 = version.parse().unwrap();
                receipt(self.rows.set(key.to_owned(), version).await?)
            }
            ["invalidate", key] => receipt(self.rows.invalidate(key).await?),
            ["expire", key] => receipt(self.rows.expire(key).await?),
            ["tag", tag] => receipt(self.larder.invalidate_tag(tag).await?),
            ["pattern", glob] => receipt(self.rows.invalidate_matching(glob).await?),
            ["clear"] => receipt(self.rows.clear().await?),
            // So many at the same time, all of one key.
            ["storm", times, key] => self.storm(times.parse().unwrap(), key).await?,
            ["figures"] => self.figures(),
            _ => panic!("{line}"),
        })
    }

    async fn load(&self, read: Read, key: &str) -> larder::Result<String> {
        let (database, row) = (self.database, key.to_owned());
        let load = move |_| async move { fetch(database, &row).await };
        let answered = self
            .rows
            .with(read)
            .get_or_load_explained(key, load)
            .await?;
        let value = answered.value.map_or(0, |version| *version);
        Ok(format!("{value} {}", answered.outcome))
    }

    async fn storm(&self, times: usize, key: &str) -> larder::Result<String> {
        let tasks: Vec<_> = (0..times)
            .map(|_| {
                let (rows, key) = (self.rows.clone(), key.to_owned());
                tokio::spawn(async move { rows.invalidate(&*key).await })
            })
            .collect();
        let mut last = None;
        for task in tasks {
            last = Some(task.await.unwrap()?);
        }
        Ok(last.map_or_else(String::new, receipt))
    }

    fn figures(&self) -> String {
        let bus = self.larder.bus().unwrap();
        let tier = self.larder.tiers().remove(0);
        let is_open = tier.health == TierHealth::Open;
        let owes = tier.owed > 0 || bus.unsent > 0;
        format!(
            "ill={} healthy={} open={} owed={} unsent={} missing={} doubts={} distrusts={} \
             replayed={} unreadable={} heard={} published={} failed={} refused_fills={} \
             skipped={} failures={} timeouts={} opened={}",
            u8::from(!bus.healthy || is_open || owes),
            u8::from(bus.healthy),
            u8::from(is_open),
            tier.owed,
            bus.unsent,
            bus.missing,
            bus.doubts,
            bus.distrusts,
            bus.replayed,
            bus.unreadable,
            bus.heard,
            bus.published,
            bus.failed,
            tier.refused_fills,
            tier.skipped,
            tier.failures,
            tier.timeouts,
            tier.opened,
        )
    }
}

fn receipt(receipt: Receipt) -> String {
    match receipt.token() {
        _ if receipt.is_queued() => "queued".to_owned(),
        Some(token) => format!("acked {token}"),
        None => "acked".to_owned(),
    }
}

/// Reads a row of the database of the test.
async fn fetch(database: SocketAddr, key: &str) -> io::Result<Loaded<u64>> {
    let mut socket = TcpStream::connect(database).await?;
    socket.write_all(format!("{key}\n").as_bytes()).await?;
    let mut row = String::new();
    socket.read_to_string(&mut row).await?;
    let mut words = row.split_whitespace();
    let version = words.next().and_then(|version| version.parse().ok());
    let version: u64 = version.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(Loaded::value(version).tags(words))
}
