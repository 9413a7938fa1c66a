//! Other caches of several tiers, with their memory alone, as their documentation puts them together.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use hitbox::concurrency::NoopConcurrencyManager;
use hitbox::fsm::CacheFuture;
use hitbox::policy::PolicyConfig;
use hitbox::{DisabledOffload, Neutral};
use hitbox_fn::{Arg, Args, FnExtractor, FnUpstream};
use hitbox_moka::MokaBackend;
use larder::clock::BoxFuture;
use multi_tier_cache::{
    CacheError, CacheStrategy, CacheSystem, CacheSystemBuilder, MokaCache, MokaCacheConfig,
    TierConfig,
};

use crate::Result;
use crate::workload::Page;

const TTL: Duration = Duration::from_secs(3600);
const ENTRIES: u64 = 100_000;

/// hitbox with its moka backend. It keeps the body of a page as text, so that it needs no derive;
/// what it stores is encoded by its default format, JSON.
#[derive(Clone)]
pub struct Hitbox {
    backend: Arc<MokaBackend>,
    policy: Arc<PolicyConfig>,
}

impl Default for Hitbox {
    fn default() -> Self {
        Self {
            backend: Arc::new(MokaBackend::builder().max_entries(ENTRIES).build()),
            policy: Arc::new(PolicyConfig::builder().ttl(TTL).build()),
        }
    }
}

impl Hitbox {
    /// The body of the page from memory or from `load`: what its `#[cached]` makes of a function.
    ///
    /// # Errors
    ///
    /// What `load` ended with.
    ///
    /// In a box, since the compiler does not see through its future that it may be sent.
    pub fn get_or_load<'a, F>(&'a self, key: &'a str, load: F) -> BoxFuture<'a, Result<String>>
    where
        F: Future<Output = Result<Page>> + Send + 'a,
    {
        let mut load = Some(load);
        let upstream = FnUpstream::new(move |_: Args<(Arg<String>,)>| {
            let load = load.take();
            async move {
                let load = load.ok_or("it is asked once")?;
                load.await.map(|page| page.body)
            }
        });
        let answer = CacheFuture::new(
            Arc::clone(&self.backend),
            Args((Arg::new("key", key.to_owned()),)),
            upstream,
            Neutral::new(),
            Neutral::new(),
            FnExtractor::new("larder_bench::page"),
            Arc::clone(&self.policy),
            DisabledOffload,
            NoopConcurrencyManager,
        );
        Box::pin(answer.map(|(body, _)| body))
    }
}

/// multi-tier-cache with one tier, its moka backend. It stores JSON.
#[derive(Clone)]
pub struct MultiTier(Arc<CacheSystem>);

impl MultiTier {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// When it cannot be built.
    pub async fn new() -> Result<Self> {
        let memory = MokaCache::new(MokaCacheConfig {
            max_capacity: ENTRIES,
            time_to_live: TTL,
            time_to_idle: TTL,
        })?;
        let system = CacheSystemBuilder::new()
            .with_tier(Arc::new(memory), TierConfig::as_l1())
            .build()
            .await?;
        Ok(Self(Arc::new(system)))
    }

    /// The page from memory or from `load`.
    ///
    /// # Errors
    ///
    /// What `load` ended with.
    pub async fn get_or_load<F>(&self, key: &str, load: F) -> Result<Page>
    where
        F: Future<Output = Result<Page>> + Send,
    {
        let load = || async {
            let loaded = load.await;
            loaded.map_err(|error| CacheError::BackendError(error.to_string()))
        };
        let manager = self.0.cache_manager();
        let strategy = CacheStrategy::Custom(TTL);
        Ok(manager.get_or_compute_typed(key, strategy, load).await?)
    }
}

/// cachet with its memory, which is moka as well. Values stay as they are.
#[derive(Clone)]
pub struct Cachet(Arc<cachet::Cache<String, Arc<Page>>>);

impl Cachet {
    /// An empty one that takes its time from the runtime that it is made in.
    pub fn in_runtime() -> Self {
        let cache = cachet::Cache::builder(tick::Clock::new_tokio())
            .memory_with(|memory| memory.max_capacity(ENTRIES))
            .ttl(TTL)
            .build();
        Self(Arc::new(cache))
    }

    /// The page from memory or from `load`.
    ///
    /// # Errors
    ///
    /// What `load` ended with.
    pub async fn get_or_load<F>(&self, key: &str, load: F) -> Result<Arc<Page>>
    where
        F: Future<Output = Result<Page>> + Send,
    {
        let load = || async {
            let loaded = load.await.map_err(std::io::Error::other)?;
            std::io::Result::Ok(Arc::new(loaded))
        };
        Ok(self.0.try_get_or_insert(key, load).await?.into_value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads once, and then never again.
    #[tokio::test]
    async fn each_of_them_answers_from_memory() {
        let loaded = || async { Ok(Page::of(1)) };
        let failed = || async { Err("it is held".into()) };
        let hitbox = Hitbox::default();
        let multi_tier = MultiTier::new().await.unwrap();
        let cachet = Cachet::in_runtime();
        hitbox.get_or_load("key", loaded()).await.unwrap();
        multi_tier.get_or_load("key", loaded()).await.unwrap();
        cachet.get_or_load("key", loaded()).await.unwrap();
        let body = hitbox.get_or_load("key", failed()).await.unwrap();
        assert_eq!(body, Page::of(1).body);
        let page = multi_tier.get_or_load("key", failed()).await.unwrap();
        assert_eq!(page, Page::of(1));
        let page = cachet.get_or_load("key", failed()).await.unwrap();
        assert_eq!(*page, Page::of(1));
        assert!(cachet.get_or_load("other", failed()).await.is_err());
    }
}
