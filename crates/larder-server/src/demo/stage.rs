//! What the acts are played on: the shop being served, the third party, and the running figures.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::http::Method;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, sleep_until};

use super::chart;
use super::directory::Directory;
use super::figures::{count, latency, percent, rate};
use super::fleet::{Below, Fleet, Plan};
use super::load::{Load, Mix, Tally};
use super::net::{self, Connection};
use super::redis_process::RedisProcess;
use super::shop::build::{self, Found};
use super::shop::{CATEGORIES, Product};
use super::stats::Stats;
use super::timeline::Timeline;
use super::vendor::Vendor;
use super::zipf::Zipf;
use crate::config::{Config, Tier};
use crate::os;
use crate::term::Term;

/// How uneven the demand is: the usual figure for web traffic.
const EXPONENT: f64 = 0.99;
/// Products whose price elsewhere the shop shows: its best sellers.
pub(crate) const PRICED: u64 = 200;

/// What an act found out.
pub(crate) struct Finding {
    /// Whether its claim holds.
    pub(crate) holds: bool,
    /// The claim with its figures.
    pub(crate) evidence: String,
}

/// A measured stretch of the story.
pub(crate) struct Phase {
    /// What the clients saw.
    pub(crate) tally: Tally,
    /// What the last second of it looked like to them.
    pub(crate) last: Tally,
    /// What the shop did meanwhile.
    pub(crate) stats: Stats,
}

/// Everything that the acts share.
pub(crate) struct Stage<'a> {
    /// Where the story is told.
    pub(crate) term: &'a Term,
    /// What was asked for.
    pub(crate) config: Config,
    /// The third party.
    pub(crate) vendor: Vendor,
    /// The Redis that hangs in the last act, if it is ours.
    pub(crate) redis: Option<RedisProcess>,
    /// Whoever serves the shop.
    pub(crate) fleet: Fleet,
    /// The slowest reads and the events, for the chart.
    pub(crate) timeline: Timeline,
    /// What the acts found out so far.
    pub(crate) findings: Vec<Finding>,
    /// Files that may be open at once.
    pub(crate) open_files: u64,
    directory: Directory,
    /// Whether what is below memory could be reached when the story began.
    pub(crate) below_answers: bool,
    products: Arc<Zipf>,
}

impl<'a> Stage<'a> {
    /// Builds what is not there yet and opens the shop.
    pub(crate) async fn set(config: Config, term: &'a Term) -> anyhow::Result<Self> {
        let open_files = os::raise_open_files();
        let directory = Directory::open(&config.data)?;
        // Told now, not after the database was built.
        drop(net::listen(config.demo.port)?);
        let database = directory.join("shop.db");
        build_database(&config, &database, term).await?;
        let vendor = Vendor::start().await?;
        let (below, redis) = match &config.tier {
            Tier::Memory => (Below::Nothing, None),
            Tier::Disk(path) => (Below::Disk(path.clone()), None),
            Tier::Redis(url) => (Below::Redis(url.clone()), None),
            Tier::OwnRedis => {
                let redis = RedisProcess::start().await?;
                (Below::Redis(redis.url()), Some(redis))
            }
        };
        let fleet = Fleet::start(Plan {
            database,
            vendor: vendor.address(),
            port: config.demo.port,
            below,
            caches: config.caches_json.clone(),
        })
        .await?;
        let mut stage = Self {
            term,
            products: Arc::new(Zipf::new(config.demo.products, EXPONENT)),
            config,
            vendor,
            redis,
            fleet,
            timeline: Timeline::new(),
            findings: Vec::new(),
            open_files,
            directory,
            below_answers: true,
        };
        stage.begin_cold().await?;
        stage.warm_sources().await?;
        Ok(stage)
    }

    /// Empties the caches of what earlier runs left below memory, and says where the shop is.
    async fn begin_cold(&mut self) -> anyhow::Result<()> {
        let first = self.fleet.first();
        let answer = net::request(first, Method::POST, "/demo/clear", "").await?;
        self.below_answers = answer.windows(5).any(|word| word == b"acked");
        if !self.below_answers {
            self.term.warning(format_args!(
                "{} cannot be reached; the shop serves without it, and uses it once it is back",
                self.tier_name().unwrap_or("the tier")
            ));
        }
        let below = match &self.config.tier {
            Tier::Memory => "memory alone".to_owned(),
            Tier::Disk(path) => format!("memory, then {}", path.display()),
            Tier::OwnRedis => "memory, then a redis-server of its own".to_owned(),
            Tier::Redis(url) => format!("memory, then {}", without_password(url)),
        };
        let processes = match self.fleet.addresses().len() {
            1 => "one process".to_owned(),
            several => format!("{several} processes"),
        };
        let products = count(self.config.demo.products);
        self.term.line(format_args!(
            "A shop of {products} products on http://{first}, served by {processes} through \
             larder: {below}."
        ));
        Ok(())
    }

    /// Reads the whole database once past the cache, so that both halves of the first act find it
    /// in the page cache of the system.
    async fn warm_sources(&self) -> anyhow::Result<()> {
        let mut connection = Connection::open(self.fleet.first()).await?;
        for id in 1..=CATEGORIES {
            connection.get(&format!("/direct/category/{id}")).await?;
        }
        Ok(())
    }

    /// The visitors of every day: mostly products, some categories, a few prices elsewhere.
    pub(crate) fn visitors(&self, prefix: &'static str) -> Mix {
        Mix {
            prefix,
            products: Arc::clone(&self.products),
            // The last category is left for the stampede, which needs a cold one.
            categories: Arc::new(Zipf::new(CATEGORIES - 1, EXPONENT)),
            prices: Arc::new(Zipf::new(PRICED, EXPONENT)),
            category_share: 0.10,
            price_share: 0.04,
        }
    }

    /// Sets `clients` clients to work on all processes.
    pub(crate) fn start_load(&self, clients: usize, mix: &Mix) -> Load {
        Load::start(self.fleet.addresses(), clients, mix)
    }

    /// Watches `load` for `seconds`, with a line of figures for each.
    pub(crate) async fn watch(&mut self, load: &mut Load, seconds: u64) -> anyhow::Result<Phase> {
        let mut phase = Phase {
            tally: Tally::new(),
            last: Tally::new(),
            stats: Stats::default(),
        };
        let began = Instant::now();
        let first = self.fleet.stats().await?;
        let mut before = first.clone();
        load.take();
        for second in 1..=seconds {
            sleep_until(began + Duration::from_secs(second)).await;
            let tally = load.take();
            let now = self.fleet.stats().await?;
            self.term
                .figures(self.running(second, &tally, &now.clone().since(&before)));
            self.timeline.measured(&tally);
            phase.tally.append(&tally);
            phase.last = tally;
            before = now;
        }
        phase.stats = before.since(&first);
        Ok(phase)
    }

    fn running(&self, second: u64, tally: &Tally, stats: &Stats) -> String {
        let mut line = format!(
            "{second:>2} s {:>8} req/s   p50 {:>8}   p99 {:>8}   slowest {:>8}   {:>6} queries",
            rate(tally.per_second()),
            latency(tally.quantile(0.5)),
            latency(tally.quantile(0.99)),
            latency(tally.slowest()),
            count(stats.queries),
        );
        if stats.reads() > 0 {
            line += &format!(
                "   hits: memory {}",
                percent(stats.memory_hits(), stats.reads())
            );
            if let Some(tier) = self.tier_name() {
                line += &format!(", {tier} {}", percent(stats.tier_hits(), stats.reads()));
            }
        }
        if tally.source_down > 0 {
            line += &format!("   stale {}", percent(tally.source_down, tally.answered));
        }
        if tally.failed > 0 {
            line += &format!("   FAILED {}", count(tally.failed));
        }
        line
    }

    /// Notes what an act found out, and tells it.
    pub(crate) fn found(&mut self, holds: bool, evidence: String) {
        self.term.verdict(holds, &evidence);
        self.findings.push(Finding { holds, evidence });
    }

    /// Whether every act found what it claims.
    pub(crate) fn all_claims_hold(&self) -> bool {
        self.findings.iter().all(|finding| finding.holds)
    }

    /// The tier below memory as people call it.
    pub(crate) fn tier_name(&self) -> Option<&'static str> {
        match self.config.tier {
            Tier::Memory => None,
            Tier::Disk(_) => Some("disk"),
            Tier::OwnRedis | Tier::Redis(_) => Some("redis"),
        }
    }

    /// Whether there is a tier on disk.
    pub(crate) fn has_disk(&self) -> bool {
        matches!(self.config.tier, Tier::Disk(_))
    }

    /// Whether processes share a Redis, ours or not.
    pub(crate) fn has_redis(&self) -> bool {
        matches!(self.config.tier, Tier::OwnRedis | Tier::Redis(_))
    }

    /// Writes the chart and says where it is.
    pub(crate) fn draw(&self) -> anyhow::Result<PathBuf> {
        let path = self.directory.join("slowest-reads.svg");
        let title = match self.tier_name() {
            None => "larder demo, memory".to_owned(),
            Some(tier) => format!("larder demo, memory and {tier}"),
        };
        std::fs::write(&path, chart::svg(&title, &self.timeline))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Says what to try by hand.
    pub(crate) fn invite(&self) {
        let first = self.fleet.first();
        self.term.title("The shop stays open until Ctrl-C. Try:");
        for line in [
            format!("curl -i http://{first}/product/17"),
            format!("curl -i http://{first}/category/7"),
            format!("curl -i http://{first}/price/17"),
            format!("curl -X PUT -d 19.99 http://{first}/product/17/price"),
            format!("curl http://{first}/stats"),
            format!("curl -i http://{first}/direct/category/7   # past the cache"),
        ] {
            self.term.line(format_args!("  {line}"));
        }
    }

    /// Closes everything, in order.
    pub(crate) async fn end(self) {
        self.fleet.end().await;
        if let Some(redis) = self.redis {
            redis.end().await;
        }
    }
}

/// Asks one process for a product; an error unless it is there.
pub(crate) async fn read_product(address: SocketAddr, id: u64) -> anyhow::Result<Product> {
    let body = net::request(address, Method::GET, &format!("/product/{id}"), "").await?;
    serde_json::from_slice(&body).context("a product is not readable")
}

async fn build_database(config: &Config, path: &Path, term: &Term) -> anyhow::Result<()> {
    let products = config.demo.products;
    let why = match build::find(path, products).await {
        Found::Whole => return Ok(()),
        Found::Nothing => "",
        Found::HalfBuilt => " again, because an earlier run was cut short",
        Found::Other => " again, because what is there is another",
    };
    term.line(format_args!(
        "Building a shop of {} products in {}{why} ...",
        count(products),
        path.display()
    ));
    let bar = if term.is_tty() {
        ProgressBar::new(products)
    } else {
        ProgressBar::hidden()
    };
    if let Ok(style) = ProgressStyle::with_template("  {bar:40} {pos}/{len} products, {eta}") {
        bar.set_style(style);
    }
    let began = Instant::now();
    build::build(path, products, |done| bar.set_position(done)).await?;
    bar.finish_and_clear();
    if let Tier::Disk(tier) = &config.tier {
        forget(tier)?;
    }
    term.line(format_args!(
        "Built in {:.1} s.",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// What an earlier shop left in the disk tier is not true of a new one.
fn forget(tier: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(tier) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot empty {}", tier.display()))
        }
        _ => Ok(()),
    }
}

/// The URL as it may be shown.
fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("redis://u:p@h:1/0"), "redis://***@h:1/0");
        assert_eq!(without_password("redis://h:1/0"), "redis://h:1/0");
    }
}
