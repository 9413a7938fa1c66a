//! The processes that serve the shop: this one alone, or three that share a tier.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::http::Method;
use larder::Larder;
use larder_disk::{Disk, DiskOptions};
use larder_redis::Redis;
use serde::{Deserialize, Serialize};

use super::net::{self, Served};
use super::service::Service;
use super::shop::Shop;
use super::stats::Stats;
use super::vendor::VendorClient;
use super::worker::WorkerProcess;
use crate::config::Caches;
use crate::refusal::Refusal;

/// Processes that share a Redis.
const SHARING: u16 = 3;
/// How long requests that are running may take to end.
const PATIENCE: Duration = Duration::from_secs(3);

/// What one process needs to know to serve the shop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The database, built.
    pub(crate) database: PathBuf,
    /// The third party.
    pub(crate) vendor: SocketAddr,
    /// The port to serve on.
    pub(crate) port: u16,
    /// The tier below memory.
    pub(crate) below: Below,
    /// `[cache]`, as it was configured.
    pub(crate) caches: serde_json::Value,
}

/// The tier below memory, ready to be opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Below {
    /// None.
    Nothing,
    /// A directory.
    Disk(PathBuf),
    /// The URL of a Redis.
    Redis(String),
}

/// The shop, served by this process until ended.
pub(crate) struct Serving {
    service: Arc<Service>,
    served: Served,
}

impl Serving {
    /// Opens everything that `plan` names and serves.
    ///
    /// # Errors
    /// A [`Refusal`] for a port that is taken, a URL that is none, or options that do not go
    /// together.
    pub(crate) async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let listener = net::listen(plan.port)?;
        let caches: Caches = serde_json::from_value(plan.caches.clone())?;
        let larder = open(&plan.below)?;
        let shop = Shop::open(&plan.database)
            .await
            .context("cannot open the shop")?;
        let vendor = VendorClient::new(plan.vendor);
        let service = Service::new(larder, shop, vendor, &caches)
            .map_err(|error| Refusal::new(format!("the caches cannot be built: {error}")))?;
        let served = Served::start(listener, service.router());
        Ok(Self { service, served })
    }

    /// Ends serving, then closes what was opened.
    pub(crate) async fn end(self) {
        self.served.end(PATIENCE).await;
        self.service.end().await;
    }
}

fn open(below: &Below) -> anyhow::Result<Larder> {
    let builder = Larder::builder("larder-demo");
    let builder = match below {
        Below::Nothing => builder,
        Below::Disk(directory) => builder.tier(open_disk(directory)?),
        Below::Redis(url) => builder.shared(open_redis(url)?),
    };
    Ok(builder.build()?)
}

fn open_redis(url: &str) -> Result<Redis, Refusal> {
    Redis::new(url).map_err(|error| Refusal::new(format!("--tier redis: {error}")))
}

fn open_disk(directory: &Path) -> Result<Disk, Refusal> {
    Disk::open(directory, DiskOptions::default()).map_err(|error| {
        let shown = directory.display();
        Refusal::new(format!("cannot keep the disk tier in {shown}: {error}"))
    })
}

/// Everybody who serves the shop.
pub(crate) struct Fleet {
    addresses: Vec<SocketAddr>,
    here: Option<(Plan, Serving)>,
    workers: Vec<WorkerProcess>,
}

impl Fleet {
    /// Serves `plan` from this process, or from three where a Redis is shared.
    ///
    /// # Errors
    /// As [`Serving::start`].
    pub(crate) async fn start(plan: Plan) -> anyhow::Result<Self> {
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut fleet = Self {
            addresses: Vec::new(),
            here: None,
            workers: Vec::new(),
        };
        if !matches!(plan.below, Below::Redis(_)) {
            fleet.addresses.push(address(plan.port));
            let serving = Serving::start(&plan).await?;
            fleet.here = Some((plan, serving));
            return Ok(fleet);
        }
        for number in 0..SHARING {
            let port = plan
                .port
                .checked_add(number)
                .ok_or_else(|| Refusal::new("three ports are needed; --port is too high"))?;
            let plan = Plan {
                port,
                ..plan.clone()
            };
            fleet.workers.push(WorkerProcess::start(&plan).await?);
            fleet.addresses.push(address(port));
        }
        Ok(fleet)
    }

    /// Where the shop is served.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The process that the story talks to when one is enough.
    pub(crate) fn first(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// The figures of all of them.
    pub(crate) async fn stats(&self) -> anyhow::Result<Stats> {
        let mut sum = Stats::default();
        for address in &self.addresses {
            let body = net::request(*address, Method::GET, "/stats", "").await?;
            let stats: Stats = serde_json::from_slice(&body).context("/stats is not readable")?;
            sum = sum.plus(&stats);
        }
        Ok(sum)
    }

    /// Ends what this process serves, and starts it again with empty memory.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        if let Some((plan, serving)) = self.here.take() {
            serving.end().await;
            let serving = Serving::start(&plan).await?;
            self.here = Some((plan, serving));
        }
        Ok(())
    }

    /// Ends all of them.
    pub(crate) async fn end(self) {
        if let Some((_, here)) = self.here {
            here.end().await;
        }
        for worker in self.workers {
            worker.end().await;
        }
    }
}
