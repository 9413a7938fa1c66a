//! Puts the shop under load: clients that each ask, wait for the answer, and ask again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::net::{Connection, Reply};
use super::note::Mark;
use super::zipf::Zipf;

/// Latencies up to a minute, in microseconds, to two digits.
const LONGEST_US: u64 = 60_000_000;
/// How long a client whose connection broke waits before it connects again.
const RECONNECT: Duration = Duration::from_millis(20);

/// What the clients ask for.
#[derive(Clone, Debug)]
pub(crate) struct Mix {
    /// In front of every path: `/direct` goes past the cache.
    pub(crate) prefix: &'static str,
    /// Which products.
    pub(crate) products: Arc<Zipf>,
    /// Which categories.
    pub(crate) categories: Arc<Zipf>,
    /// Which products' prices at the third party.
    pub(crate) prices: Arc<Zipf>,
    /// The share of requests for categories.
    pub(crate) category_share: f64,
    /// The share of requests for prices.
    pub(crate) price_share: f64,
}

impl Mix {
    fn draw(&self, rng: &mut Rng) -> String {
        let prefix = self.prefix;
        let what = rng.f64();
        if what < self.price_share {
            format!("{prefix}/price/{}", self.prices.draw(rng))
        } else if what < self.price_share + self.category_share {
            format!("{prefix}/category/{}", self.categories.draw(rng))
        } else {
            format!("{prefix}/product/{}", self.products.draw(rng))
        }
    }
}

/// What was measured in some stretch of time.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// How long the stretch was.
    pub(crate) elapsed: Duration,
    /// Requests that were answered with a page.
    pub(crate) answered: u64,
    /// Requests that were not.
    pub(crate) failed: u64,
    /// Pages that were stale and being refreshed.
    pub(crate) stale: u64,
    /// Pages that were stale because their source was down.
    pub(crate) source_down: u64,
    latencies: Histogram<u64>,
}

impl Tally {
    /// Nothing measured yet.
    pub(crate) fn new() -> Self {
        Self {
            elapsed: Duration::ZERO,
            answered: 0,
            failed: 0,
            stale: 0,
            source_down: 0,
            latencies: histogram(),
        }
    }

    /// Adds a stretch that came after this one.
    pub(crate) fn append(&mut self, later: &Self) {
        self.elapsed += later.elapsed;
        self.merge(later);
    }

    /// Requests answered per second.
    pub(crate) fn per_second(&self) -> f64 {
        self.answered as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The latency that `share` of the requests did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        Duration::from_micros(self.latencies.value_at_quantile(share))
    }

    /// The slowest request.
    pub(crate) fn slowest(&self) -> Duration {
        Duration::from_micros(self.latencies.max())
    }

    fn merge(&mut self, other: &Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.stale += other.stale;
        self.source_down += other.source_down;
        self.latencies += &other.latencies;
    }

    /// Counts one request and its answer.
    pub(crate) fn count(&mut self, reply: &anyhow::Result<Reply>, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(micros);
        let Ok(Reply {
            status, headers, ..
        }) = reply
        else {
            self.failed += 1;
            return;
        };
        if !status.is_success() {
            self.failed += 1;
            return;
        }
        self.answered += 1;
        match headers
            .get("x-cache")
            .map(|note| Mark::parse(note.as_bytes()))
        {
            Some(Mark::Stale) => self.stale += 1,
            Some(Mark::SourceDown) => self.source_down += 1,
            Some(Mark::Fresh) | None => {}
        }
    }

    fn clear(&mut self) {
        self.latencies.reset();
        (self.answered, self.failed) = (0, 0);
        (self.stale, self.source_down) = (0, 0);
    }
}

fn histogram() -> Histogram<u64> {
    #[expect(
        clippy::expect_used,
        reason = "the bounds are constants within what is allowed"
    )]
    Histogram::new_with_bounds(1, LONGEST_US, 2).expect("valid bounds")
}

/// Clients at work until this is dropped.
pub(crate) struct Load {
    shards: Vec<Arc<Mutex<Tally>>>,
    since: Instant,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Sets `clients` clients to work, dealt out over `addresses`.
    pub(crate) fn start(addresses: &[SocketAddr], clients: usize, mix: &Mix) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Self {
            shards: Vec::with_capacity(clients),
            since: Instant::now(),
            stop: Arc::clone(&stop),
            clients: JoinSet::new(),
        };
        for (number, address) in addresses.iter().cycle().take(clients).enumerate() {
            let shard = Arc::new(Mutex::new(Tally::new()));
            load.shards.push(Arc::clone(&shard));
            let rng = Rng::with_seed(number as u64);
            let stop = Arc::clone(&stop);
            load.clients
                .spawn(client(*address, mix.clone(), rng, shard, stop));
        }
        load
    }

    /// What was measured since the last time.
    pub(crate) fn take(&mut self) -> Tally {
        let mut sum = Tally::new();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            sum.merge(&shard);
            shard.clear();
        }
        sum.elapsed = self.since.elapsed();
        self.since = Instant::now();
        sum
    }

    /// Lets every client finish its request.
    pub(crate) async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
    }
}

async fn client(
    address: SocketAddr,
    mix: Mix,
    mut rng: Rng,
    shard: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
) {
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        let path = mix.draw(&mut rng);
        let began = Instant::now();
        let reply = ask(address, &mut connection, &path).await;
        let latency = began.elapsed();
        shard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count(&reply, latency);
        if reply.is_err() {
            connection = None;
            sleep(RECONNECT).await;
        }
    }
}

async fn ask(
    address: SocketAddr,
    connection: &mut Option<Connection>,
    path: &str,
) -> anyhow::Result<Reply> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(Connection::open(address).await?),
    };
    open.get(path).await
}
