//! A cache with its loader: read-through, warming, and loading ahead of need.
//!
//! ```text
//! LoadingCache ── get, get_many ──► read.rs, as any other read ──► source: the loader, boxed
//! ```

mod loader;
mod source;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use self::loader::Called;
use self::source::{InBatches, Loading, Singly, Source};
use crate::answer::{Answer, Load, Loaded};
use crate::cache::Cache;
use crate::courier::Receipt;
use crate::error::{BoxError, Result};
use crate::key::{AsKey, CacheKey};
use crate::options::Read;
use crate::outcome::Answered;
use crate::read;

pub use self::loader::{BatchLoader, Loader};

/// A [`Cache`] with its loader: [`get`](Self::get) alone loads. Cheap to clone; clones are the same.
///
/// Made by [`Cache::loading`], [`Cache::loading_with`] or [`Cache::loading_in_batches`]. It is no
/// `Cache` by dereference, because the two mean different things by `get`; what has nothing to do
/// with loading, such as `set`, tags and statistics, is at [`cache`](Self::cache).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> larder::Result<()> {
/// use larder::{Cache, Larder, LoadingCache};
///
/// let greetings: Cache<u64, String> = Larder::local().cache("greeting").in_memory()?;
/// let greetings: LoadingCache<u64, String> = greetings
///     .loading_with(|load| async move { Ok::<_, std::io::Error>(format!("hello {}", load.key())) });
///
/// assert_eq!(greetings.get(&7).await?.as_deref().map(String::as_str), Some("hello 7"));
/// let _ = greetings.invalidate(&7).await?;
/// assert_eq!(greetings.cache().get(&7).await?, None, "a cache alone does not load");
/// # Ok(()) }
/// ```
pub struct LoadingCache<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    cache: Cache<K, V>,
    source: Arc<dyn Source<K, V>>,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Clone for LoadingCache<K, V> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            source: Arc::clone(&self.source),
        }
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> fmt::Debug for LoadingCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadingCache")
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl<K, V> Cache<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    /// This cache, read through `loader`.
    pub fn loading(&self, loader: impl Loader<K, V>) -> LoadingCache<K, V> {
        LoadingCache::new(self, Singly(loader))
    }

    /// This cache, read through a closure that loads one key.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let cache: Cache<String, usize> = Larder::local().cache("lengths").in_memory()?;
    /// let lengths =
    ///     cache.loading_with(|load| async move { Ok::<_, std::io::Error>(load.key().len()) });
    /// assert_eq!(lengths.get("espresso").await?.as_deref(), Some(&8));
    /// # Ok(()) }
    /// ```
    pub fn loading_with<F, Fut, A, E>(&self, load: F) -> LoadingCache<K, V>
    where
        F: Fn(Load<K, V>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Answer<V>,
        E: Into<BoxError> + Send + 'static,
    {
        self.loading(Called(load))
    }

    /// This cache, read through a loader of many keys at once.
    pub fn loading_in_batches(&self, loader: impl BatchLoader<K, V>) -> LoadingCache<K, V> {
        LoadingCache::new(self, InBatches(loader))
    }
}

impl<K, V> LoadingCache<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    fn new(cache: &Cache<K, V>, source: impl Source<K, V> + 'static) -> Self {
        Self {
            cache: cache.clone(),
            source: Arc::new(source),
        }
    }

    /// The value under `key`: from memory, from the tiers below it, or from the loader. `None` if
    /// the loader says that there is none.
    ///
    /// # Errors
    ///
    /// As for [`Cache::get_or_load`].
    pub async fn get<Q: AsKey<K> + ?Sized>(&self, key: &Q) -> Result<Option<Arc<V>>> {
        let load = |load| self.load(load);
        let read = read::get_or_load(self.cache.inner(), &Read::PLAIN, key, load);
        read.await.map(|(value, _)| value)
    }

    /// The values under `keys`, in their order. What is nowhere is loaded with one call of a
    /// [`BatchLoader`], or with one of a [`Loader`] for each key, up to 16 of them at once; each key by
    /// at most one caller at a time.
    ///
    /// # Errors
    ///
    /// Each key has its own, as for [`Cache::get_or_load`]. What stops the whole call, as the end of
    /// the larder does, is the error of each key that memory did not answer.
    pub async fn get_many(&self, keys: &[K]) -> Vec<Result<Option<Arc<V>>>> {
        self.get_each(&Read::PLAIN, keys).await
    }

    /// This cache, read in another way. See [`Cache::with`].
    pub fn with(&self, read: Read) -> LoadingReader<'_, K, V> {
        LoadingReader {
            loading: self,
            read,
        }
    }

    /// Removes `key` from every tier and process. See [`Cache::invalidate`].
    ///
    /// # Errors
    ///
    /// As for [`Cache::invalidate`].
    pub async fn invalidate<Q: AsKey<K> + ?Sized>(&self, key: &Q) -> Result<Receipt> {
        self.cache.invalidate(key).await
    }

    /// The cache without its loader.
    pub fn cache(&self) -> &Cache<K, V> {
        &self.cache
    }

    async fn get_each(&self, read: &Read, keys: &[K]) -> Vec<Result<Option<Arc<V>>>> {
        let load = |keys| Arc::clone(&self.source).load_many(keys);
        read::get_each(self.cache.inner(), read, keys, load).await
    }

    fn load(&self, load: Load<K, V>) -> Loading<Loaded<V>> {
        Arc::clone(&self.source).load(load)
    }
}

/// A [`LoadingCache`] with options for the calls made through it. Made by [`LoadingCache::with`].
#[derive(Clone, Copy, Debug)]
pub struct LoadingReader<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    loading: &'a LoadingCache<K, V>,
    read: Read,
}

impl<K, V> LoadingReader<'_, K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    /// As [`LoadingCache::get`].
    pub async fn get<Q: AsKey<K> + ?Sized>(&self, key: &Q) -> Result<Option<Arc<V>>> {
        self.get_explained(key).await.map(|answered| answered.value)
    }

    /// As [`LoadingCache::get`], with the story of the read.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder, Read, Source};
    ///
    /// let cache: Cache<u64, u64> = Larder::local().cache("squares").in_memory()?;
    /// let squares = cache
    ///     .loading_with(|load| async move { Ok::<_, std::io::Error>(load.key() * load.key()) });
    /// let first = squares.with(Read::new()).get_explained(&3).await?;
    /// assert_eq!((first.value.as_deref(), first.outcome.source), (Some(&9), Source::Loader));
    /// # Ok(()) }
    /// ```
    pub async fn get_explained<Q: AsKey<K> + ?Sized>(
        &self,
        key: &Q,
    ) -> Result<Answered<Option<Arc<V>>>> {
        let reader = self.loading.cache.with(self.read);
        let load = |load| self.loading.load(load);
        reader.get_or_load_explained(key, load).await
    }

    /// As [`LoadingCache::get_many`].
    pub async fn get_many(&self, keys: &[K]) -> Vec<Result<Option<Arc<V>>>> {
        self.loading.get_each(&self.read, keys).await
    }
}
