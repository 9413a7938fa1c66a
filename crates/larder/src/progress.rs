//! How far an invalidation by pattern has got, for whoever wants to watch.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::cache::Inner;
use crate::clock::BoxFuture;
use crate::courier::Receipt;
use crate::error::Result;
use crate::key::CacheKey;
use crate::store::Swept;
use crate::write;

/// How far an invalidation by pattern has got in one tier.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The name of the tier, `memory` for that of this process.
    pub tier: Arc<str>,
    /// The keys that were looked at and removed there so far.
    pub swept: Swept,
}

/// Whoever watches.
#[derive(Clone, Default)]
pub(crate) struct Watcher(Option<Arc<dyn Fn(Progress) + Send + Sync>>);

impl Watcher {
    pub(crate) fn tell(&self, tier: &Arc<str>, swept: Swept) {
        if let Some(watch) = &self.0 {
            let tier = Arc::clone(tier);
            // A watcher that panics is as good as none: what it watches goes on.
            let _ = catch_unwind(AssertUnwindSafe(|| watch(Progress { tier, swept })));
        }
    }
}

/// An invalidation by pattern that begins when it is awaited. Made by
/// [`Cache::invalidate_matching`](crate::Cache::invalidate_matching).
#[must_use = "nothing is invalidated before this is awaited"]
pub struct Matching<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    cache: &'a Inner<K, V>,
    glob: &'a str,
    watcher: Watcher,
}

impl<'a, K, V> Matching<'a, K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    pub(crate) fn new(cache: &'a Inner<K, V>, glob: &'a str) -> Self {
        let watcher = Watcher::default();
        Self {
            cache,
            glob,
            watcher,
        }
    }

    /// Has `watch` told how far it gets: of memory once, of each tier after every step and at its
    /// end. The numbers of a tier only grow. It is called by the task that does the work, so it
    /// should return at once.
    ///
    /// The work goes on if the caller is dropped meanwhile, and so does the telling.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let larder = Larder::builder("shop").build()?;
    /// let carts: Cache<(String, u64), String> = larder.cache("cart").build()?;
    /// let _ = carts.set(("ann".to_owned(), 1), "tea".to_owned()).await?;
    /// let receipt = carts
    ///     .invalidate_matching("ann:*")
    ///     .watched(|progress| println!("{}: {:?}", progress.tier, progress.swept))
    ///     .await?;
    /// assert!(receipt.is_acked());
    /// # Ok(()) }
    /// ```
    pub fn watched(self, watch: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        let watcher = Watcher(Some(Arc::new(watch)));
        Self { watcher, ..self }
    }
}

impl<'a, K, V> IntoFuture for Matching<'a, K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    type Output = Result<Receipt>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(write::invalidate_matching(
            self.cache,
            self.glob,
            self.watcher,
        ))
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> fmt::Debug for Matching<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matching")
            .field("cache", &self.cache.name)
            .field("glob", &self.glob)
            .finish_non_exhaustive()
    }
}
