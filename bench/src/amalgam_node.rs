//! A process with amalgam-cache, put together as its README and `examples/redis.rs` do it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use amalgam::EntryOptions;
use amalgam::provider::{
    Clock, ClockTiming, MessagePackSerializer, RedisBackplane, RedisDistributedCache,
    RedisDistributedLocker, SystemClock,
};
use larder::clock::BoxFuture;

use crate::Result;
use crate::node::{Node, Place};
use crate::workload::Page;

/// How its cache is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `Cache::builder()`, with store and backplane and without a locker.
    Default,
    /// `Cache::builder().strict()`, with a locker besides, which its fences need.
    Strict,
}

/// What may differ from node to node.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// How the cache is built.
    pub profile: Profile,
    /// How far its clock is from that of the machine.
    pub skew: Skew,
    /// Whether reads pass memory over.
    pub below_memory: bool,
}

impl Setup {
    /// A cache by the machine's clock that reads memory.
    pub fn of(profile: Profile) -> Self {
        Self {
            profile,
            skew: Skew::default(),
            below_memory: false,
        }
    }
}

/// How far behind the machine's clock another one is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skew {
    /// Subtracted from every time.
    pub behind: Duration,
}

/// A cache of pages; [`Arc`], so that a hit copies a pointer as larder's does.
pub type Pages = amalgam::Cache<Arc<Page>>;

/// Entries live as long as those of the others.
const TTL: Duration = Duration::from_secs(3600);

/// A process with amalgam-cache.
pub struct AmalgamNode {
    /// Its pages.
    pub pages: Pages,
}

impl AmalgamNode {
    /// Connects, and waits until it is subscribed.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached.
    pub async fn new(place: &Place, setup: Setup) -> Result<Self> {
        let options = EntryOptions::new(TTL).with_skip_memory(setup.below_memory, false);
        let mut builder = amalgam::Cache::builder()
            .default_options(options)
            .clock(Arc::new(setup.skew))
            .distributed(Arc::new(
                RedisDistributedCache::connect(&*place.tier).await?,
            ))
            .serializer(Arc::new(MessagePackSerializer))
            .backplane(Arc::new(RedisBackplane::connect(&*place.bus).await?));
        if setup.profile == Profile::Strict {
            let locker = RedisDistributedLocker::connect(&*place.tier).await?;
            builder = builder.strict().distributed_locker(Arc::new(locker));
        }
        let pages = builder.try_build_ready().await?;
        Ok(Self { pages })
    }
}

impl Node for AmalgamNode {
    fn hold<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let load = |_| async { Ok::<_, Infallible>(Arc::new(Page::of(0))) };
            self.pages.get_or_set(key, load).await?;
            Ok(())
        })
    }

    fn finds<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move { Ok(self.pages.try_get(key).await?.is_some()) })
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { Ok(self.pages.remove(key).await?) })
    }
}

impl Clock for Skew {
    fn now(&self) -> amalgam::Timestamp {
        let behind = amalgam::time::duration_to_ticks(self.behind);
        amalgam::Timestamp::from_ticks(SystemClock.now().ticks() - behind)
    }

    fn timing_model(&self) -> ClockTiming {
        ClockTiming::RealTime
    }
}
