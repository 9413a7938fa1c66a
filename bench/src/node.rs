//! Processes of a service, as far as the coherence of their caches goes.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use larder::clock::BoxFuture;
use larder::{Cache, Larder};
use larder_redis::{Redis, RedisBus};
use redis::aio::MultiplexedConnection;

use crate::Result;
use crate::workload::Page;

/// One process with a cache of pages in its memory, in front of a Redis that it shares.
pub trait Node: Send + Sync {
    /// Reads `key` as a service does: whatever was missing before, it is in memory afterwards.
    fn hold<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Whether a read without a loader finds a value, in memory or else in Redis.
    fn finds<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool>>;

    /// Removes `key` everywhere.
    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Waits until others' removals are heard of.
    fn until_ready(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// Where a node finds its servers.
#[derive(Clone, Debug)]
pub struct Place {
    /// The URL of the Redis that holds the entries.
    pub tier: String,
    /// The URL of the one that tells of removals.
    pub bus: String,
}

impl Place {
    /// One server for both.
    pub fn at(url: impl Into<String>) -> Self {
        let tier = url.into();
        let bus = tier.clone();
        Self { tier, bus }
    }
}

/// How often somebody looks whether what he waits for is there.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long anybody waits for a process or a server to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `is_so`, for 20 seconds at most.
///
/// # Errors
///
/// When it did not come to be so.
pub async fn until<F: Future<Output = Result<bool>>>(
    what: &str,
    mut is_so: impl FnMut() -> F,
) -> Result<()> {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is_so().await? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    });
    waited
        .await
        .unwrap_or_else(|_elapsed| Err(format!("waited {PATIENCE:?} in vain: {what}").into()))
}

/// A process with larder.
#[derive(Debug)]
pub struct LarderNode {
    /// What its caches share.
    pub larder: Larder,
    /// Its pages.
    pub pages: Cache<String, Page>,
}

impl LarderNode {
    /// With defaults; tier and bus share a connection where they are one server.
    ///
    /// # Errors
    ///
    /// When a URL is none.
    pub fn new(place: &Place) -> Result<Self> {
        Self::with_clock(place, larder::clock::SystemClock::shared())
    }

    /// The same by another clock.
    ///
    /// # Errors
    ///
    /// When a URL is none.
    pub fn with_clock(place: &Place, clock: Arc<dyn larder::Clock>) -> Result<Self> {
        let mut larder = Larder::builder("bench")
            .clock(clock)
            .shared(Redis::new(&place.tier)?);
        if place.bus != place.tier {
            larder = larder.backplane(RedisBus::new(&place.bus)?);
        }
        let larder = larder.build()?;
        let pages = larder.cache("page").build()?;
        Ok(Self { larder, pages })
    }
}

impl Node for LarderNode {
    fn hold<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let load = |_| async { Result::Ok(Page::of(0)) };
            self.pages.get_or_load(key, load).await?;
            Ok(())
        })
    }

    fn finds<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move { Ok(self.pages.get(key).await?.is_some()) })
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let _receipt = self.pages.invalidate(key).await?;
            Ok(())
        })
    }

    fn until_ready(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.hold("somebody has to ask first").await?;
            let is_healthy = || self.larder.bus().is_some_and(|bus| bus.healthy);
            until("the bus is healthy", || async { Ok(is_healthy()) }).await
        })
    }
}

/// A process that does the least there is to do: DEL and PUBLISH in one pipeline, and a subscriber
/// that forgets what it hears of.
#[derive(Debug)]
pub struct BareNode {
    redis: MultiplexedConnection,
    held: Arc<Mutex<HashSet<String>>>,
}

/// The channel of bare nodes.
const CHANNEL: &str = "bare";

impl BareNode {
    /// Connects and subscribes.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached.
    pub async fn new(place: &Place) -> Result<Self> {
        let client = redis::Client::open(&*place.tier)?;
        let held = Arc::new(Mutex::new(HashSet::new()));
        let mut listener = client.get_async_pubsub().await?;
        listener.subscribe(CHANNEL).await?;
        let forgotten = Arc::clone(&held);
        tokio::spawn(async move {
            let mut messages = listener.into_on_message();
            while let Some(message) = messages.next().await {
                let key: String = message.get_payload().unwrap_or_default();
                lock(&forgotten).remove(&key);
            }
        });
        Ok(Self {
            redis: client.get_multiplexed_async_connection().await?,
            held,
        })
    }

    /// DEL and PUBLISH.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached.
    pub async fn del_and_publish(&self, key: &str) -> Result<()> {
        let mut redis = self.redis.clone();
        let mut pipeline = redis::pipe();
        pipeline.del(key).ignore().publish(CHANNEL, key).ignore();
        let () = pipeline.query_async(&mut redis).await?;
        Ok(())
    }
}

fn lock(held: &Mutex<HashSet<String>>) -> std::sync::MutexGuard<'_, HashSet<String>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node for BareNode {
    fn hold<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut redis = self.redis.clone();
            let bytes = rmp_serde::to_vec_named(&Page::of(0))?;
            let () = redis::cmd("SET")
                .arg(key)
                .arg(bytes)
                .query_async(&mut redis)
                .await?;
            lock(&self.held).insert(key.to_owned());
            Ok(())
        })
    }

    fn finds<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            if lock(&self.held).contains(key) {
                return Ok(true);
            }
            let mut redis = self.redis.clone();
            let found: Option<Vec<u8>> = redis::cmd("GET").arg(key).query_async(&mut redis).await?;
            Ok(found.is_some())
        })
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        lock(&self.held).remove(key);
        Box::pin(self.del_and_publish(key))
    }
}
