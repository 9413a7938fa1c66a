//! A cache with its loader: read-through, warming, and loading ahead of need.
//!
//! ```text
//! LoadingCache ── get, get_many ──► read/, as any other read ──► source: the loader, boxed
//! ```

mod abreast;
mod awaited;
mod feed;
mod hot;
mod ledger;
mod loader;
mod popular;
mod predictor;
mod prefetcher;
mod refresher;
mod sketch;
mod source;
mod successors;
mod under_way;
mod warm;
mod watchers;

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::abreast::abreast;
use self::loader::Called;
use self::refresher::Supply;
use self::source::{Batches, InBatches, Loading, Singly, Source};
use self::watchers::Watcher;
use crate::answer::{Answer, Load, Loaded};
use crate::cache::{Cache, Inner};
use crate::clock::BoxFuture;
use crate::courier::Receipt;
use crate::error::{BoxError, Error, Result};
use crate::key::{AsKey, CacheKey};
use crate::options::Read;
use crate::outcome::Answered;
use crate::read;
use crate::read::Unfit;
use crate::read::ahead::{self, Renewal};

pub(crate) use self::watchers::Watchers;

pub use self::feed::Feed;
pub use self::loader::{BatchLoader, Loader};
pub use self::prefetcher::{Prefetch, PrefetchStats, Prefetching};
pub use self::refresher::{RefreshAhead, RefreshAheadStats, Refreshing};
pub use self::warm::{Warm, WarmProgress, Warming};

/// How many keys one call of a [`BatchLoader`] names in a warming, at most.
const WARM_BATCH: usize = 256;
/// How many loads of single keys one call for many has under way, at most.
const FAN_OUT: usize = 16;

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
    /// The same, if it is a loader of many keys.
    batches: Option<Arc<dyn Batches<K, V>>>,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Clone for LoadingCache<K, V> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            source: Arc::clone(&self.source),
            batches: self.batches.clone(),
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
        LoadingCache::new(self, Arc::new(Singly(loader)), None)
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
        let source = Arc::new(InBatches(loader));
        LoadingCache::new(self, Arc::clone(&source) as _, Some(source))
    }

    /// Fills this cache with values that are at hand, such as the rows of one query. A key that memory
    /// or a tier has fresh is left as it is; an invalidation that comes meanwhile wins.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Feed, Larder};
    ///
    /// let prices: Cache<u64, f64> = Larder::local().cache("price").in_memory()?;
    /// let rows = vec![(1, 9.5), (2, 14.0)];
    /// prices.warm_with(Feed::list(rows)).start().done().await;
    /// assert_eq!(prices.get_in_memory(&2).as_deref(), Some(&14.0));
    /// # Ok(()) }
    /// ```
    pub fn warm_with<L>(&self, pairs: Feed<(K, L)>) -> Warm<(K, L)>
    where
        L: Into<Loaded<V>> + Send + 'static,
    {
        let tasks = &self.inner().shared.tasks;
        let cache = self.clone();
        let work = move |pairs: Vec<(K, L)>| -> BoxFuture<'static, Vec<Result<()>>> {
            let cache = cache.clone();
            Box::pin(async move {
                let mut ended = Vec::with_capacity(pairs.len());
                for (key, value) in pairs {
                    ended.push(cache.fill_with(&key, value.into()).await);
                }
                ended
            })
        };
        Warm::new(tasks, pairs, 1, Arc::new(work))
    }

    async fn fill_with(&self, key: &K, value: Loaded<V>) -> Result<()> {
        let load = |_| std::future::ready(Ok(value));
        ahead::fetch(self.inner(), key, load).await.map(drop)
    }

    /// Writes the keys of the `at_most` hottest entries in memory to a file, for
    /// [`LoadingCache::warm_from`], and returns how many those are. Best done at a shutdown, before the
    /// larder's own.
    ///
    /// Popular keys that are [refreshed ahead](LoadingCache::refresh_ahead) come first. How hot another
    /// is, is what the policy knows: see [`Entry::heat`](crate::Entry::heat). Under `Lru`, `Fifo` and
    /// `Random` that is nothing, and any entries will do. The file is written beside
    /// its place and moved there, readable by its owner alone; it holds keys and no values.
    ///
    /// # Errors
    ///
    /// [`File`](crate::ErrorKind::File) if it cannot be written; what was there before is there still.
    pub async fn save_hot(&self, path: impl AsRef<Path>, at_most: usize) -> Result<usize> {
        let (cache, path) = (self.clone(), path.as_ref().to_owned());
        apart_from_the_runtime(move || {
            let (content, count) = hot::encode(cache.name(), &hot::hottest(&cache, at_most));
            hot::write(&path, &content).map(|()| count)
        })
        .await
    }
}

impl<K, V> LoadingCache<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    fn new(
        cache: &Cache<K, V>,
        source: Arc<dyn Source<K, V>>,
        batches: Option<Arc<dyn Batches<K, V>>>,
    ) -> Self {
        Self {
            cache: cache.clone(),
            source,
            batches,
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

    /// Loads `key` anew although what is there may be fresh, and returns what is there then. Everybody
    /// else is served with the old value meanwhile, and the new one goes into every tier, under the
    /// lease of the key. It is no read, and is counted as a refresh.
    ///
    /// Where somebody loads the key at this moment, in this process or in another, that is enough. If
    /// the load fails and the old value may still be served, it is returned.
    ///
    /// # Errors
    ///
    /// As for [`Cache::get_or_load`], [`Reentered`](crate::ErrorKind::Reentered) inside a load of the
    /// key included.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// use larder::{Cache, Larder};
    ///
    /// let cache: Cache<u64, u64> = Larder::local().cache("counts").in_memory()?;
    /// let count = AtomicU64::new(0);
    /// let counts = cache.loading_with(move |_| {
    ///     let next = count.fetch_add(1, Ordering::Relaxed) + 1;
    ///     async move { Ok::<_, std::io::Error>(next) }
    /// });
    /// assert_eq!(counts.get(&7).await?.as_deref(), Some(&1));
    /// assert_eq!(counts.refresh(&7).await?.as_deref(), Some(&2));
    /// assert_eq!(counts.get(&7).await?.as_deref(), Some(&2));
    /// # Ok(()) }
    /// ```
    pub async fn refresh(&self, key: &K) -> Result<Option<Arc<V>>> {
        let cache = self.cache.inner();
        let mut renewal = ahead::renew(cache, key, |load| self.load(load)).await?;
        if matches!(renewal, Renewal::NotThere) {
            // What only the tiers have is renewed there, too.
            ahead::peek(cache, key).await?;
            renewal = ahead::renew(cache, key, |load| self.load(load)).await?;
        }
        match renewal {
            Renewal::Renewed(landed) => return Ok(landed.held.and_then(|held| held.value)),
            Renewal::Elsewhere => ahead::join(cache, key).await?,
            Renewal::Failed | Renewal::NotThere => {}
        }
        match ahead::what_stands(cache, key) {
            Some(value) => Ok(value),
            None => ahead::fetch(cache, key, |load| self.load(load)).await,
        }
    }

    /// Fills this cache with what stands under `keys`: from the tiers, or by the loader. What memory
    /// has fresh is left as it is; a key that fails is counted and does not end it. None of it counts
    /// as a read.
    pub fn warm(&self, keys: Feed<K>) -> Warm<K> {
        let loading = self.clone();
        let work = move |keys: Vec<K>| -> BoxFuture<'static, Vec<Result<()>>> {
            let loading = loading.clone();
            Box::pin(async move {
                let cache = loading.cache.inner();
                if let Some(batches) = &loading.batches {
                    let load = |keys| Arc::clone(batches).load_many(keys);
                    return ahead::fetch_each(cache, &keys, load).await;
                }
                let mut ended = Vec::with_capacity(keys.len());
                for key in &keys {
                    let load = |load| Arc::clone(&loading.source).load(load);
                    ended.push(ahead::fetch(cache, key, load).await.map(drop));
                }
                ended
            })
        };
        let batch = self.batches.as_ref().map_or(1, |batches| batches.batch());
        let batch = batch.min(WARM_BATCH);
        let tasks = &self.cache.inner().shared.tasks;
        Warm::new(tasks, keys, batch, Arc::new(work))
    }

    /// Warms with the keys that [`Cache::save_hot`] wrote, the hottest first.
    ///
    /// # Errors
    ///
    /// [`File`](crate::ErrorKind::File) if the file cannot be read, is damaged, or is of another cache;
    /// a service then begins cold. Its [source](std::error::Error::source) is a `std::io::Error`, whose
    /// kind is `NotFound` where no file was saved yet.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let path = std::env::temp_dir().join(format!("larder-hot-{}", std::process::id()));
    /// # let saved = path.clone();
    /// let load = |load: larder::Load<u64, u64>| async move {
    ///     Ok::<_, std::io::Error>(load.key() * load.key())
    /// };
    /// let cache: Cache<u64, u64> = Larder::local().cache("squares").in_memory()?;
    /// cache.loading_with(load).get(&7).await?;
    /// assert_eq!(cache.save_hot(&path, 10_000).await?, 1);
    ///
    /// // The next process:
    /// let cache: Cache<u64, u64> = Larder::local().cache("squares").in_memory()?;
    /// cache.loading_with(load).warm_from(&path).await?.start().ready(1.0).await;
    /// assert_eq!(cache.get_in_memory(&7).as_deref(), Some(&49));
    /// # std::fs::remove_file(saved).unwrap();
    /// # Ok(()) }
    /// ```
    pub async fn warm_from(&self, path: impl AsRef<Path>) -> Result<Warm<K>> {
        let (name, path) = (self.cache.name().to_owned(), path.as_ref().to_owned());
        let keys = apart_from_the_runtime(move || {
            let content = hot::read(&path)?;
            hot::decode::<K>(&name, &content).map_err(|problem| hot::unusable(&path, &problem))
        });
        Ok(self.warm(Feed::list(keys.await?)))
    }

    /// Keeps the keys that are read most fresh: their entries are loaded anew before they expire, the
    /// most popular first, in the background and within bounds. The others are left to die.
    ///
    /// Which keys those are, a sketch in constant memory says, fed by the reads of this process. Only
    /// what memory holds is refreshed, and nothing that has not been read since its last refresh: a key
    /// that nobody asks for any more costs one refresh at most. While nobody reads, nothing is
    /// refreshed. A refresh is the same as any other: one load for all, under the lease of the key in
    /// the shared tier, so that of several processes one does it.
    ///
    /// Every read of this cache pays for it with a look at a small table, and one of
    /// [several](RefreshAhead::sample) with a note in the sketch.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for options that make no sense, outside a tokio runtime,
    /// and if this cache is refreshed ahead already; [`Closed`](crate::ErrorKind::Closed).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder, RefreshAhead};
    ///
    /// let cache: Cache<u64, u64> = Larder::local().cache("squares").ttl("10m").in_memory()?;
    /// let squares = cache
    ///     .loading_with(|load| async move { Ok::<_, std::io::Error>(load.key() * load.key()) });
    /// let refreshing = squares.refresh_ahead(RefreshAhead::default())?; // for as long as it is kept
    /// assert_eq!(refreshing.stats().refreshes, 0);
    /// # Ok(()) }
    /// ```
    pub fn refresh_ahead(&self, options: RefreshAhead) -> Result<Refreshing> {
        refresher::begin(self, options, None)
    }

    /// The same for keys that `supply` names, the most popular first, such as the front of a sorted set
    /// that all processes add to. It is asked at every tick in which somebody reads; of what it names,
    /// the first [`RefreshAhead::keys`] count. Keys that are not in memory are loaded, too. If it panics,
    /// or takes longer than the load deadline, it is asked again at the next tick.
    ///
    /// # Errors
    ///
    /// As for [`refresh_ahead`](Self::refresh_ahead).
    pub fn refresh_ahead_of<F, Fut>(&self, options: RefreshAhead, supply: F) -> Result<Refreshing>
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = Vec<K>> + Send + 'static,
    {
        let supply: Supply<K> = Box::new(move || Box::pin(supply()));
        refresher::begin(self, options, Some(supply))
    }

    /// Loads what will probably be asked for next, before it is: keys that the loader names as
    /// [related](Loader::related) to one that was just loaded, and keys that usually follow in the same
    /// task. Within bounds of rate and number; whoever asks meanwhile joins the load.
    ///
    /// What follows what is learned from the reads of this process, in constant memory, and counts once
    /// it was seen often enough. It pays where the same ways are gone again and again, and costs loads
    /// where they are not: [`Prefetching::stats`] says which, and docs/benchmarks.md shows a trace of
    /// each kind. Every read of this cache pays for the learning. What precedes a read is the last
    /// read of the same tokio task, so a service whose requests have a task each learns ways of users.
    ///
    /// # Errors
    ///
    /// As for [`refresh_ahead`](Self::refresh_ahead).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder, Prefetch};
    ///
    /// let cache: Cache<u64, u64> = Larder::local().cache("squares").in_memory()?;
    /// let squares = cache
    ///     .loading_with(|load| async move { Ok::<_, std::io::Error>(load.key() * load.key()) });
    /// let prefetching = squares.prefetch(Prefetch::default())?; // for as long as it is kept
    /// assert_eq!(prefetching.stats().precision(), None);
    /// # Ok(()) }
    /// ```
    pub fn prefetch(&self, options: Prefetch) -> Result<Prefetching> {
        prefetcher::begin(self, options)
    }

    async fn get_each(&self, read: &Read, keys: &[K]) -> Vec<Result<Option<Arc<V>>>> {
        let cache = self.cache.inner();
        if let Some(batches) = &self.batches {
            let load = |keys| self.load_many(batches, keys);
            return read::get_each(cache, read, keys, Unfit::FailsAlone, load).await;
        }
        let began = cache.clock().monotonic();
        let get = |at| async move {
            let waited = cache.clock().monotonic().saturating_sub(began);
            let left = |deadline: Duration| deadline.saturating_sub(Duration::from_millis(waited));
            let mut read = *read;
            read.deadline = read.deadline.map(left);
            let load = |load| self.load(load);
            let read = read::get_or_load(cache, &read, &keys[at], load).await;
            read.map(|(value, _)| value)
        };
        abreast(keys.len(), FAN_OUT.min(cache.turns.most()), get).await
    }

    /// Loads a key for somebody who asked for it.
    fn load(&self, load: Load<K, V>) -> Loading<Loaded<V>> {
        let source = Arc::clone(&self.source);
        let cache = Arc::clone(self.cache.inner());
        if !cache.watchers.is_on(Watcher::Predictor) {
            return source.load(load);
        }
        Box::pin(async move {
            let key = load.key.clone();
            let loaded = Arc::clone(&source).load(load).await?;
            wish_for_related(&cache, &*source, &key, &loaded);
            Ok(loaded)
        })
    }

    /// The same for many.
    fn load_many(
        &self,
        batches: &Arc<dyn Batches<K, V>>,
        keys: Vec<K>,
    ) -> Loading<Vec<(K, Loaded<V>)>> {
        let batches = Arc::clone(batches);
        let cache = Arc::clone(self.cache.inner());
        if !cache.watchers.is_on(Watcher::Predictor) {
            return batches.load_many(keys);
        }
        let source = Arc::clone(&self.source);
        Box::pin(async move {
            let all = batches.load_many(keys).await?;
            for (key, loaded) in &all {
                wish_for_related(&cache, &*source, key, loaded);
            }
            Ok(all)
        })
    }
}

/// Wishes for what a loader names as related. What it loaded is good whatever comes of that.
fn wish_for_related<K, V>(
    cache: &Inner<K, V>,
    source: &dyn Source<K, V>,
    key: &K,
    loaded: &Loaded<V>,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    match catch_unwind(AssertUnwindSafe(|| source.related(key, loaded))) {
        Ok(related) => cache.watchers.wish(related),
        Err(_panic) => tracing::warn!("a loader panicked when asked for related keys"),
    }
}

/// Runs what blocks where it holds up no task.
async fn apart_from_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::no_runtime())?;
    let ended = runtime.spawn_blocking(work).await;
    // It does not panic; a runtime that ends may not run it any more.
    ended.unwrap_or_else(|_| Err(Error::closed()))
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
