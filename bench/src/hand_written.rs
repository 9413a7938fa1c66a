//! What engineers write themselves: moka in front of redis-rs.

use std::sync::Arc;
use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::ConnectionManager;

use crate::workload::Page;

const TTL: Duration = Duration::from_secs(3600);
const MEMORY_TTL: Duration = Duration::from_secs(60);
const MEMORY_ENTRIES: u64 = 100_000;

/// A two-tier cache of pages in some forty lines.
///
/// It is the better of the usual versions: a hit is one `get`, and a miss goes through moka's own
/// single flight. It has no deadline, no breaker, no fence and no statistics.
#[derive(Clone, Debug)]
pub struct HandWritten {
    memory: moka::future::Cache<String, Arc<Page>>,
    redis: ConnectionManager,
}

impl HandWritten {
    /// A cache with an empty memory tier.
    pub fn new(redis: ConnectionManager) -> Self {
        let memory = moka::future::Cache::builder()
            .max_capacity(MEMORY_ENTRIES)
            .time_to_live(MEMORY_TTL)
            .build();
        Self { memory, redis }
    }

    /// The page from memory, from Redis, or from `load`.
    pub async fn get_or_load<F>(&self, key: &str, load: F) -> crate::Result<Arc<Page>>
    where
        F: AsyncFnOnce() -> crate::Result<Page>,
    {
        if let Some(page) = self.memory.get(key).await {
            return Ok(page);
        }
        let missed = async { self.redis_or(key, load).await.map(Arc::new) };
        let loaded = self.memory.try_get_with_by_ref(key, missed).await;
        loaded.map_err(|error| error.to_string().into())
    }

    async fn redis_or<F>(&self, key: &str, load: F) -> crate::Result<Page>
    where
        F: AsyncFnOnce() -> crate::Result<Page>,
    {
        let mut redis = self.redis.clone();
        let held: Option<Vec<u8>> = redis.get(key).await?;
        if let Some(bytes) = held {
            return Ok(rmp_serde::from_slice(&bytes)?);
        }
        let page = load().await?;
        let bytes = rmp_serde::to_vec_named(&page)?;
        let () = redis.set_ex(key, bytes, TTL.as_secs()).await?;
        Ok(page)
    }
}
