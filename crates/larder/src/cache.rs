//! `Cache<K, V>`: one kind of value, and everything a service does with it.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;

use crate::answer::{Answer, Load, Loaded};
use crate::clock::{Clock, Millis};
use crate::codec::ValueCodec;
use crate::courier::Receipt;
use crate::entries::Entries;
use crate::entry::{Details, FillId, Held, Times};
use crate::envelope::{self, Expect, Header, Rejected};
use crate::epoch::Moment;
use crate::error::{BoxError, Error, Result};
use crate::fence::Fence;
use crate::fill::{Landing, Origin};
use crate::flight::Flights;
use crate::frequency::Frequency;
use crate::invalidation::Why;
use crate::key::{self, AsKey, CacheKey};
use crate::larder::Shared;
use crate::loader::Turns;
use crate::loading::Watchers;
use crate::memory::{Listener, Memory};
use crate::options::{Read, RemovalCause, Rules, Tiers};
use crate::outcome::{Answered, Outcome, Source, State};
use crate::overlay::Overlay;
use crate::progress::Matching;
use crate::read::ahead::is_fresh;
use crate::read::{self, Reply, Story};
use crate::registry::{Home, Registry};
use crate::sliding::Touches;
use crate::stats::{CacheStats, Count, Counters};
use crate::tags::{Tag, name};
use crate::tier::{Budget, Sharing, Tier};
use crate::write;

/// A cache of values `V` under keys `K`. Cheap to clone; clones are the same cache.
///
/// Built by [`Larder::cache`](crate::Larder::cache). Values come out as `Arc<V>`: a hit in memory
/// copies a pointer and decodes nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> larder::Result<()> {
/// use larder::{Cache, Larder};
///
/// let larder = Larder::builder("shop").build()?;
/// let greetings: Cache<u64, String> =
///     larder.cache("greeting").ttl("1h").grace("6h").jitter(0.1).build()?;
///
/// // However many ask at once, the loader runs once.
/// let greeting = greetings
///     .get_or_load(&7, |load| async move { Ok::<_, std::io::Error>(format!("hello {}", load.key())) })
///     .await?;
/// assert_eq!(*greeting, "hello 7");
///
/// let _ = greetings.invalidate(&7).await?;
/// assert_eq!(greetings.get(&7).await?, None);
/// # Ok(()) }
/// ```
pub struct Cache<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    inner: Arc<Inner<K, V>>,
    /// What the bus names caches to; it lives as long as any handle.
    registry: Arc<Registry>,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            registry: Arc::clone(&self.registry),
        }
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.inner;
        f.debug_struct("Cache")
            .field("name", &inner.name)
            .field("rules", &inner.rules)
            .finish()
    }
}

impl<K, V> Cache<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    /// The value under `key`, from memory or the tiers below it. Never loads.
    ///
    /// A stale value is served within its grace; nothing refreshes it, because there is no loader
    /// here. All callers that miss memory on one key at once share one look in the tiers.
    ///
    /// # Errors
    ///
    /// [`Key`](crate::ErrorKind::Key) for an empty or oversized key, and
    /// [`Closed`](crate::ErrorKind::Closed) after shutdown. A tier that fails is no error.
    pub async fn get<Q: AsKey<K> + ?Sized>(&self, key: &Q) -> Result<Option<Arc<V>>> {
        read::get(&self.inner, &Read::PLAIN, key)
            .await
            .map(|reply| reply.value)
    }

    /// The value under `key` from memory alone. Needs no runtime.
    pub fn get_in_memory<Q: AsKey<K> + ?Sized>(&self, key: &Q) -> Option<Arc<V>> {
        read::get_in_memory(&self.inner, key)
    }

    /// The value under `key` from memory alone, or what `load` returns, kept in memory alone. Needs
    /// no runtime: `load` runs here and now.
    ///
    /// What `load` finds is not kept if its key was invalidated or written meanwhile. Callers that
    /// come at the same time may each load: nobody waits for another here. Within its grace a stale
    /// value stands in for a load that fails, and is then served without another try for the time of
    /// `error_throttle`; where there is none, the value of `default_on_error` does. A fresh value is
    /// served to its end: nothing here refreshes it early, which takes a background. A key that is empty
    /// or too long is loaded and not kept, and what may have been invalidated unheard, because the bus
    /// is silent, is loaded anew.
    ///
    /// # Errors
    ///
    /// Those of `load`.
    ///
    /// ```
    /// use larder::{Cache, Larder};
    ///
    /// let squares: Cache<u64, u64> = Larder::local().cache("squares").in_memory()?;
    /// let square = squares.get_or_load_in_memory(&7, || Ok::<_, larder::Error>(7 * 7))?;
    /// assert_eq!(*square, 49);
    /// assert_eq!(squares.get_in_memory(&7).as_deref(), Some(&49));
    /// # Ok::<_, larder::Error>(())
    /// ```
    pub fn get_or_load_in_memory<Q, T, E>(
        &self,
        key: &Q,
        load: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<V>, E>
    where
        Q: AsKey<K> + ?Sized,
        T: Into<Arc<V>>,
    {
        let load = || {
            let value: Arc<V> = load()?.into();
            Ok((Loaded::value(Arc::clone(&value)), value))
        };
        read::load_in_memory(&self.inner, key, |held| held, load)
    }

    /// The value under `key`: from memory, from the tiers below it, or from `load`.
    ///
    /// `load` is called when memory has nothing fresh, by at most one of the callers that want
    /// the key at the same time. It may borrow from the caller; the future that it returns runs
    /// in a task of its own, so that no caller's cancellation stops a load that others wait for.
    ///
    /// ```text
    /// A: get_or_load ── miss ── load ······························ value
    /// B:    get_or_load ── waits ·································· value
    /// C:       (cancelled) ✗
    /// D:                      invalidate ✓
    /// E:                           get_or_load ── miss ── load ···· value, stored
    /// ```
    ///
    /// What A's load found is given to A and B and stored nowhere, because D came between.
    ///
    /// While it looks in the tiers, the future of the caller that leads holds the lead: poll it or
    /// drop it. One that is kept and no longer polled, as the loser of a `select!` over `&mut`
    /// futures can be, keeps the others waiting. A loader must not load its own key, and one that
    /// loads other keys of its cache takes a second turn of `load_concurrency`.
    ///
    /// The loader returns `V`, `Option<V>` or [`Loaded<V>`]; the caller gets `Arc<V>` for the
    /// first and `Option<Arc<V>>` for the others.
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get), and those of the load: its own error, a panic, its deadline,
    /// or too many loads at once. None of these is cached, and a stale value stands in where the
    /// cache's `stale_on_error` or grace allows it.
    pub async fn get_or_load<Q, F, Fut, A, E>(&self, key: &Q, load: F) -> Result<A::Out>
    where
        Q: AsKey<K> + ?Sized,
        F: FnOnce(Load<K, V>) -> Fut,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Answer<V>,
        E: Into<BoxError> + Send + 'static,
    {
        read::get_or_load(&self.inner, &Read::PLAIN, key, load)
            .await
            .map(|(value, _)| value)
    }

    /// The values under `keys`, in their order, with one load for all that are nowhere.
    ///
    /// `load` gets the missing keys and returns pairs of key and answer; a key that it does not
    /// mention is absent. Each key is loaded by at most one caller at a time.
    ///
    /// # Errors
    ///
    /// As for [`get_or_load`](Self::get_or_load); one key's error is the error of the call.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let squares: Cache<u64, u64> = Larder::local().cache("squares").in_memory()?;
    /// let load = |keys: Vec<u64>| async move {
    ///     Ok::<_, std::io::Error>(keys.into_iter().filter(|n| *n > 0).map(|n| (n, n * n)).collect::<Vec<_>>())
    /// };
    /// let found = squares.get_or_load_many(&[3, 0, 4], load).await?;
    /// assert_eq!(found.iter().map(|n| n.as_deref().copied()).collect::<Vec<_>>(), [Some(9), None, Some(16)]);
    /// # Ok(()) }
    /// ```
    pub async fn get_or_load_many<F, Fut, I, A, E>(
        &self,
        keys: &[K],
        load: F,
    ) -> Result<Vec<Option<Arc<V>>>>
    where
        F: Fn(Vec<K>) -> Fut,
        Fut: Future<Output = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = (K, A)>,
        A: Answer<V>,
        E: Into<BoxError> + Send + 'static,
    {
        read::get_or_load_many(&self.inner, &Read::PLAIN, keys, load).await
    }

    /// Stores `value` under `key` in every tier, and wins over every load that is under way.
    ///
    /// Of two overlapping calls on one key, either may win; memory and the tiers agree on which.
    /// A value with a TTL of zero is not stored, and what was there is removed.
    ///
    /// # Errors
    ///
    /// [`Key`](crate::ErrorKind::Key), [`Closed`](crate::ErrorKind::Closed). A tier that fails is
    /// no error but [`Delivery::Queued`](crate::Delivery::Queued).
    pub async fn set(&self, key: K, value: impl Into<Loaded<V>>) -> Result<Receipt> {
        write::set(&self.inner, key, value.into()).await
    }

    /// Stores `value` under `key` in this process's memory alone. Needs no runtime.
    ///
    /// What was made from the entry goes from memory too; no tier and no other process is told.
    ///
    /// # Errors
    ///
    /// [`Key`](crate::ErrorKind::Key) for an empty or oversized key.
    pub fn set_in_memory(&self, key: K, value: impl Into<Loaded<V>>) -> Result<()> {
        write::set_in_memory(&self.inner, key, value.into())
    }

    /// Removes `key` from every tier. No load that began before can store its value afterwards.
    ///
    /// The work goes on if the caller is dropped meanwhile.
    ///
    /// # Errors
    ///
    /// [`Key`](crate::ErrorKind::Key), [`Closed`](crate::ErrorKind::Closed). A tier that cannot be
    /// reached is no error but [`Delivery::Queued`](crate::Delivery::Queued).
    pub async fn invalidate<Q: AsKey<K> + ?Sized>(&self, key: &Q) -> Result<Receipt> {
        write::invalidate(&self.inner, key, Why::Invalidated).await
    }

    /// Removes `key` from every tier and process, and for 10 s keeps out every value whose
    /// [version](Loaded::version) is below `version` or unknown.
    ///
    /// For loaders that read from a replica of the database, which may lag behind the write that
    /// made the invalidation necessary: give the version that the write made. What such a loader
    /// finds too old is given to its callers and not stored. A value of that version or a higher
    /// one that is there already stays. What else is invalidated meanwhile leaves the minimum where
    /// it is, in this process and in every one that heard of it; a process that was not there to
    /// hear finds it in the tier, until it invalidates the key itself.
    ///
    /// # Errors
    ///
    /// As for [`invalidate`](Self::invalidate).
    pub async fn invalidate_before<Q: AsKey<K> + ?Sized>(
        &self,
        key: &Q,
        version: u64,
    ) -> Result<Receipt> {
        write::invalidate(&self.inner, key, Why::Before(version)).await
    }

    /// Removes every key that matches `glob` from every tier and process.
    ///
    /// The glob is matched against the key in plain text, the parts of a tuple joined by colons:
    /// `*` is any run of characters, `?` one, `[a-z]` and `[!a-z]` one of a set or not, `\` takes
    /// the next one literally. Memory is walked through; a shared tier is walked through in steps
    /// (Redis: SCAN and UNLINK), which takes time in proportion to all of its keys. For what is invalidated often, a tag or a
    /// [group](crate::CacheBuilder::groups) costs the same whatever the number of keys. `*` alone is
    /// [`clear`](Self::clear).
    ///
    /// It begins when it is awaited. [`Matching::watched`] tells how far it gets,
    /// [`Receipt::swept`] what it came to.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for a glob that cannot be read, and if a tier cannot
    /// enumerate its keys; [`Closed`](crate::ErrorKind::Closed).
    pub fn invalidate_matching<'a>(&'a self, glob: &'a str) -> Matching<'a, K, V> {
        Matching::new(&self.inner, glob)
    }

    /// Invalidates a group: every entry that [`CacheBuilder::groups`](crate::CacheBuilder::groups)
    /// put into it, at the same cost whatever their number.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for a name that cannot be a tag,
    /// [`Closed`](crate::ErrorKind::Closed).
    pub async fn invalidate_group(&self, group: &str) -> Result<Receipt> {
        name::check(group).map_err(Error::config)?;
        let inner = &self.inner;
        inner.shared.check_open()?;
        inner.count(Count::Invalidation, 1);
        let tag = name::of_group(&inner.name, group);
        inner.shared.invalidate_tag(tag).await
    }

    /// Removes `key` from this process's memory alone. Needs no runtime.
    pub fn invalidate_in_memory<Q: AsKey<K> + ?Sized>(&self, key: &Q) {
        write::drop_from_memory(&self.inner, self.inner.memory.hash(key), key);
    }

    /// Removes every entry from this process's memory alone. Needs no runtime.
    pub fn clear_in_memory(&self) {
        write::clear_memory(&self.inner);
    }

    /// Makes `key` stale in every tier: within its grace it is still served, while the next read
    /// that has a loader refreshes it. No load that began before can make it fresh again.
    ///
    /// # Errors
    ///
    /// As for [`invalidate`](Self::invalidate).
    pub async fn expire<Q: AsKey<K> + ?Sized>(&self, key: &Q) -> Result<Receipt> {
        write::invalidate(&self.inner, key, Why::Expired).await
    }

    /// Makes every entry of this cache, of all its schema versions, unreadable in every tier and
    /// process, at the same cost whatever their number.
    ///
    /// The space that they take in the tiers is given back as their times end.
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::ErrorKind::Closed).
    pub async fn clear(&self) -> Result<Receipt> {
        write::clear(&self.inner).await
    }

    /// This cache, read in another way: with a deadline, a limit on staleness, or some tiers only.
    pub fn with(&self, read: Read) -> Reader<'_, K, V> {
        Reader { cache: self, read }
    }

    /// What this cache did so far.
    pub fn stats(&self) -> CacheStats {
        self.inner.stats()
    }

    /// Looks at up to `at_most` entries in memory, going on where the last call stopped, drops
    /// those whose time is over, and returns how many.
    ///
    /// Every insert does a little of this by itself, so only a cache that is full of expired
    /// entries and idle needs it.
    pub fn sweep(&self, at_most: usize) -> usize {
        self.inner
            .memory
            .sweep(self.inner.clock().monotonic(), at_most)
    }

    /// What this cache holds in memory, in no order: the values that
    /// [`get_in_memory`](Self::get_in_memory) would give, and no absences. Seeing an entry is no read
    /// of it.
    ///
    /// Entries are taken a batch at a time, each under the shared lock of a part of the table, and given out
    /// when that is free again; so it takes memory for one batch, and neither readers nor writers
    /// wait for long. A batch is 512 entries, or about 1,400 where the table has many for each
    /// processor. It is no picture of one moment: an entry is what it was when its batch was taken.
    /// A key that is there from the beginning to the end is seen exactly once, and any other at most
    /// once.
    ///
    /// ```
    /// # fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let rates: Cache<String, f64> = Larder::local().cache("rates").in_memory()?;
    /// rates.set_in_memory("EUR".to_owned(), 1.08)?;
    /// rates.set_in_memory("JPY".to_owned(), 0.0067)?;
    /// for _ in 0..3 {
    ///     rates.get_in_memory("JPY");
    /// }
    /// let mut entries: Vec<_> = rates.entries().collect();
    /// entries.sort_by_key(|entry| std::cmp::Reverse(entry.heat));
    /// assert_eq!(entries[0].key, "JPY");
    /// assert_eq!(*entries[1].value, 1.08);
    /// # Ok(()) }
    /// ```
    pub fn entries(&self) -> Entries<K, V> {
        Entries::new(Arc::clone(&self.inner))
    }

    /// Makes the bound of this cache's memory `bound`, in the unit that it was built with (entries
    /// or bytes), and evicts what no longer fits. Readers are not held up.
    ///
    /// The table stays divided as it was built: made much smaller than that, it takes only values
    /// that fit one of its parts; and built for a few entries and made larger than some 5 million, it
    /// holds no more than that.
    pub fn resize(&self, bound: u64) {
        let now = self.inner.clock().monotonic();
        self.inner.memory.resize(bound, now);
    }

    /// The name of this cache.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub(crate) fn inner(&self) -> &Arc<Inner<K, V>> {
        &self.inner
    }

    pub(crate) fn from_parts(inner: Arc<Inner<K, V>>, registry: Arc<Registry>) -> Self {
        Self { inner, registry }
    }

    /// What an entry made from that of `key` inherits.
    pub(crate) fn source<Q: AsKey<K> + ?Sized>(&self, key: &Q) -> Result<Vec<Arc<Tag>>> {
        let inner = &self.inner;
        let logical = key::encode(b"", key)?;
        let itself = inner.shared.tags.tag(&name::of_key(&inner.name, &logical));
        let now = inner.clock().monotonic();
        let hash = inner.memory.hash(key);
        let carried = inner
            .memory
            .get(hash, key, now, |held| held.tags().to_vec());
        let own = Arc::clone(inner.fence.own());
        let carried = carried.into_iter().flatten();
        Ok(carried.chain([itself, own]).collect())
    }
}

/// A cache with options for the calls made through it. Made by [`Cache::with`].
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    cache: &'a Cache<K, V>,
    read: Read,
}

impl<K, V> Reader<'_, K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    /// As [`Cache::get`].
    pub async fn get<Q: AsKey<K> + ?Sized>(&self, key: &Q) -> Result<Option<Arc<V>>> {
        read::get(&self.cache.inner, &self.read, key)
            .await
            .map(|reply| reply.value)
    }

    /// As [`Cache::get`], with the story of the read.
    pub async fn get_explained<Q: AsKey<K> + ?Sized>(
        &self,
        key: &Q,
    ) -> Result<Answered<Option<Arc<V>>>> {
        let Reply { value, story } = read::get(&self.cache.inner, &self.read, key).await?;
        Ok(Answered {
            value,
            outcome: self.cache.inner.outcome(&story),
        })
    }

    /// As [`Cache::get_or_load`].
    pub async fn get_or_load<Q, F, Fut, A, E>(&self, key: &Q, load: F) -> Result<A::Out>
    where
        Q: AsKey<K> + ?Sized,
        F: FnOnce(Load<K, V>) -> Fut,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Answer<V>,
        E: Into<BoxError> + Send + 'static,
    {
        read::get_or_load(&self.cache.inner, &self.read, key, load)
            .await
            .map(|(value, _)| value)
    }

    /// As [`Cache::get_or_load`], with the story of the read.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder, Read, Source};
    ///
    /// let cache: Cache<u64, String> = Larder::local().cache("names").in_memory()?;
    /// let load = |_| async { Ok::<_, std::io::Error>("Ada".to_owned()) };
    /// let first = cache.with(Read::new()).get_or_load_explained(&1, load).await?;
    /// let second = cache.with(Read::new()).get_or_load_explained(&1, load).await?;
    /// assert_eq!(first.outcome.source, Source::Loader);
    /// assert_eq!(second.outcome.source, Source::Memory);
    /// assert!(second.outcome.to_string().starts_with("fresh from memory"));
    /// # Ok(()) }
    /// ```
    pub async fn get_or_load_explained<Q, F, Fut, A, E>(
        &self,
        key: &Q,
        load: F,
    ) -> Result<Answered<A::Out>>
    where
        Q: AsKey<K> + ?Sized,
        F: FnOnce(Load<K, V>) -> Fut,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Answer<V>,
        E: Into<BoxError> + Send + 'static,
    {
        let (value, story) = read::get_or_load(&self.cache.inner, &self.read, key, load).await?;
        Ok(Answered {
            value,
            outcome: self.cache.inner.outcome(&story),
        })
    }

    /// As [`Cache::get_or_load_many`].
    pub async fn get_or_load_many<F, Fut, I, A, E>(
        &self,
        keys: &[K],
        load: F,
    ) -> Result<Vec<Option<Arc<V>>>>
    where
        F: Fn(Vec<K>) -> Fut,
        Fut: Future<Output = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = (K, A)>,
        A: Answer<V>,
        E: Into<BoxError> + Send + 'static,
    {
        read::get_or_load_many(&self.cache.inner, &self.read, keys, load).await
    }
}

/// Which groups a key belongs to, as the user's function says.
pub(crate) type Groups<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

/// How heavy an entry is, as the user's function says.
pub(crate) type Weigher<K, V> = Box<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// What stands in for a value that could not be loaded, as the user's function says.
pub(crate) type Fallback<K, V> = Box<dyn Fn(&K) -> V + Send + Sync>;

/// Is told which value left memory, and why.
pub(crate) type RemovalListener<K, V> = Box<dyn Fn(&K, &Arc<V>, RemovalCause) + Send + Sync>;

/// The listener as the table calls it: told of values alone, and a panic of it is its own affair.
pub(crate) fn quietly<K, V>(listener: RemovalListener<K, V>) -> Listener<K, Held<V>>
where
    K: 'static,
    V: 'static,
{
    Box::new(move |key, held, cause| {
        if let Some(value) = &held.value {
            let told = catch_unwind(AssertUnwindSafe(|| listener(key, value, cause)));
            if told.is_err() {
                tracing::warn!("a removal listener panicked");
            }
        }
    })
}

/// An entry as a tier gave it, with the versions of its tags, that of the cache among them.
pub(crate) struct Opened<V> {
    pub(crate) held: Held<V>,
    pub(crate) versions: Vec<(Arc<Tag>, u64)>,
}

/// What the clones of a cache share. It holds the parts of the engine and joins none of them:
/// the ways through them are in `read/` and `write.rs`.
pub(crate) struct Inner<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    pub(crate) name: Arc<str>,
    pub(crate) version: u32,
    /// The front of every key of this cache in a tier: `namespace:name@version:`.
    pub(crate) prefix: Bytes,
    pub(crate) rules: Rules,
    pub(crate) memory_ttl: Millis,
    pub(crate) memory: Memory<K, Held<V>>,
    pub(crate) fence: Fence,
    /// One table for each way of choosing tiers: a caller must not be given what it did not ask
    /// for because somebody else began the flight.
    pub(crate) loads: [Arc<Flights<K, Landing<V>>>; 3],
    /// The flights of callers without a loader, which must not wait for a load.
    pub(crate) peeks: Arc<Flights<K, Landing<V>>>,
    /// The flights of callers with and without a loader who want to see what this process has not
    /// heard of yet.
    pub(crate) unheard: [Arc<Flights<K, Landing<V>>>; 2],
    pub(crate) overlay: Overlay<V>,
    pub(crate) tiers: Box<[Arc<Tier>]>,
    pub(crate) codec: Option<ValueCodec<V>>,
    pub(crate) weigher: Option<Weigher<K, V>>,
    pub(crate) fallback: Option<Fallback<K, V>>,
    pub(crate) groups: Option<Groups<K>>,
    /// When the tiers have to be told again that this schema version is in use.
    pub(crate) enlist_at: AtomicU64,
    /// What is to be prolonged in the tiers.
    pub(crate) touches: Arc<Touches>,
    /// How often keys are asked for, where TTLs go by that.
    pub(crate) frequency: Option<Frequency>,
    pub(crate) turns: Turns,
    pub(crate) watchers: Watchers<K>,
    pub(crate) counters: Counters,
    pub(crate) shared: Arc<Shared>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Inner<K, V> {
    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    pub(crate) fn count(&self, kind: Count, amount: u64) {
        self.counters.add(kind, amount);
    }

    /// Whether nobody but this process's memory has to hear of what happens to this cache.
    pub(crate) fn is_alone(&self) -> bool {
        // A tier that the entries are not in may have what was made from them.
        self.shared.tiers.is_empty() && self.shared.bus.is_none()
    }

    pub(crate) fn home(&self) -> Home {
        if self.codec.is_some() {
            Home::AboveTiers
        } else {
            Home::MemoryAlone
        }
    }

    /// The inner names of the groups of a key. What cannot be labelled could not be invalidated by its
    /// label either, so a function that panics makes it an error.
    pub(crate) fn groups_of(&self, key: &K) -> Result<Vec<Box<str>>> {
        let Some(groups) = &self.groups else {
            return Ok(Vec::new());
        };
        let groups = catch_unwind(AssertUnwindSafe(|| groups(key))).map_err(|_panic| {
            let name = &self.name;
            Error::config(format!(
                "the function that says the groups of a key of cache `{name}` panicked"
            ))
        })?;
        let named = groups.into_iter().map(|group| {
            name::check(&group).map_err(Error::config)?;
            Ok(name::of_group(&self.name, &group))
        });
        named.collect()
    }

    /// Sees to it that invalidations by other schema versions reach this one: once, before anything
    /// of it stands in a shared tier.
    pub(crate) async fn enlist(&self, budget: &mut Budget) {
        let now = self.clock().monotonic();
        if self.tiers.is_empty() || now < self.enlist_at.load(SeqCst) {
            return;
        }
        if let Some(again) = self.shared.enlist(&self.name, self.version, budget).await {
            self.enlist_at.store(again, SeqCst);
        }
    }

    /// The weight of an entry in bytes: what the user's function says, or the larger of its
    /// encoded and its shallow size, with the key and the reference count.
    pub(crate) fn weigh(&self, key: &K, key_len: usize, held: &Held<V>) -> u32 {
        if let (Some(weigher), Some(value)) = (&self.weigher, &held.value) {
            // A weigher that panics is as good as none.
            let weighed = catch_unwind(AssertUnwindSafe(|| weigher(key, value)));
            if let Ok(weight) = weighed {
                return weight;
            }
        }
        let value = size_of::<V>().max(held.encoded_len as usize);
        let tags: usize = held.tags().iter().map(|tag| tag.weight()).sum();
        let details = held.details.as_ref();
        let details = details.map_or(0, |_| size_of::<Details>() + 2 * size_of::<usize>());
        u32::try_from(value + tags + details + key_len + 2 * size_of::<usize>()).unwrap_or(u32::MAX)
    }

    /// An envelope as the tier at `depth` may keep it, and for how long.
    ///
    /// Without a bus, a private tier above one that other processes write to does not hear of their
    /// changes any more than memory does, so its copy lives no longer than memory's.
    pub(crate) fn copy_for(
        &self,
        depth: usize,
        envelope: Bytes,
        ttl: Duration,
    ) -> (Bytes, Duration) {
        if self.shared.bus.is_some() || !self.is_above_shared(depth) {
            return (envelope, ttl);
        }
        let Some(header) = Header::parse(&envelope) else {
            return (envelope, ttl);
        };
        let end = self.clock().wall().saturating_add(self.memory_ttl);
        let header = Header {
            fresh_until: header.fresh_until.min(end),
            stale_until: header.stale_until.min(end),
            ..header
        };
        let ttl = ttl.min(Duration::from_millis(self.memory_ttl));
        (header.replaced_in(&envelope), ttl)
    }

    /// Decodes an envelope into an entry of this cache. Whether its tags are those of today is not
    /// known by that.
    pub(crate) fn open(
        &self,
        key: &[u8],
        bytes: &[u8],
        began: Moment,
    ) -> Result<Opened<V>, Rejected> {
        let opened = envelope::open(
            bytes,
            Expect {
                key,
                schema: self.version,
            },
        )?;
        let encoded_len = opened
            .payload
            .as_ref()
            .map_or(0, |payload| payload.bytes.len());
        let value = match &opened.payload {
            None => None,
            Some(payload) => {
                let codec = self.codec.as_ref().ok_or(Rejected::Codec)?;
                let value = codec
                    .decode(payload.codec, &payload.bytes)
                    .ok_or(Rejected::Codec)?;
                Some(Arc::new(value))
            }
        };
        if opened.versions.is_empty() {
            return Err(Rejected::Tags);
        }
        let names = opened.label.tags.iter().map(|name| &**name);
        let tags = self.shared.tags.admit(names, began).ok_or(Rejected::Tags)?;
        let versions = std::iter::once(self.fence.own())
            .chain(&tags)
            .cloned()
            .zip(opened.versions)
            .collect();
        let clock = &**self.clock();
        let (times, slide) =
            Times::from_envelope(clock, &opened.header, &opened.label, self.memory_ttl);
        let held = Held {
            value,
            times,
            stamp: AtomicU64::new(began.stamp),
            load_ms: u32::try_from(opened.label.load_ms).unwrap_or(u32::MAX),
            encoded_len: u32::try_from(encoded_len).unwrap_or(u32::MAX),
            fill_id: Some(FillId::of(&opened.label.fill_id)),
            details: Details::of(opened.label, tags, slide),
        };
        Ok(Opened { held, versions })
    }

    /// Whether a tier at this depth is above one that other processes write to.
    pub(crate) fn is_above_shared(&self, depth: usize) -> bool {
        self.tiers[depth].sharing() == Sharing::Private
            && self.tiers[depth + 1..]
                .iter()
                .any(|tier| tier.sharing() == Sharing::Shared)
    }

    /// Whether its entries are in a tier that other processes read.
    pub(crate) fn is_shared(&self) -> bool {
        let lowest = self.tiers.last();
        lowest.is_some_and(|tier| tier.sharing() == Sharing::Shared)
    }

    /// The flights of callers that look in the same tiers.
    pub(crate) fn loads(&self, tiers: Tiers) -> &Arc<Flights<K, Landing<V>>> {
        &self.loads[tiers as usize]
    }

    /// The one exit of every read: counts it, and tells whoever watches the reads of this cache.
    #[inline]
    pub(crate) fn exit<Q: AsKey<K> + ?Sized>(&self, hash: u64, key: &Q, story: &Story) {
        let is_there = |hash, key: &K| is_fresh(self, hash, key);
        self.watchers
            .tell(hash, story.origin, || key.to_owned(), is_there);
        self.counters.one(match (story.state, story.origin) {
            (State::Stale, _) => Count::StaleServed,
            (State::Missing | State::NotStored, _) | (_, Origin::Loader) => Count::Miss,
            (_, Origin::Memory | Origin::Confirmed | Origin::StandIn) => Count::HitMemory,
            (_, Origin::Tier(_)) => Count::HitTier,
            (_, Origin::Nobody) => Count::Miss,
        });
        if story.shared {
            self.counters.one(Count::Shared);
        }
    }

    /// The exit of a read that may have failed.
    pub(crate) fn exit_with<Q: AsKey<K> + ?Sized>(
        &self,
        hash: u64,
        key: &Q,
        reply: &Result<Reply<V>>,
    ) {
        match reply {
            Ok(reply) => self.exit(hash, key, &reply.story),
            Err(_) => self.counters.one(Count::ReadFailed),
        }
    }

    /// The story of a read in words.
    pub(crate) fn outcome(&self, story: &Story) -> Outcome {
        let now = self.clock().monotonic();
        let source = match story.origin {
            _ if story.shared => Source::Flight,
            Origin::Memory | Origin::Confirmed | Origin::StandIn => Source::Memory,
            Origin::Tier(depth) => Source::Tier(Arc::clone(self.tiers[depth as usize].name())),
            Origin::Loader => Source::Loader,
            Origin::Nobody => Source::Nobody,
        };
        let behind = match story.origin {
            Origin::Memory | Origin::StandIn => self.behind(),
            Origin::Confirmed | Origin::Tier(_) | Origin::Loader | Origin::Nobody => {
                Some(Duration::ZERO)
            }
        };
        Outcome::new(source, story, now, behind)
    }

    /// How far behind other processes memory may be at most.
    fn behind(&self) -> Option<Duration> {
        let shares = self.tiers.iter().any(|t| t.sharing() == Sharing::Shared);
        match &self.shared.bus {
            Some(_) => self.shared.behind(),
            None if shares => Some(Duration::from_millis(self.memory_ttl)),
            None => Some(Duration::ZERO),
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        let memory = self.memory.counters();
        CacheStats {
            entries: self.memory.len(),
            weight: self.memory.weight(),
            bound: self.memory.limit(),
            evictions: memory.evicted,
            expirations: memory.expired,
            refused: memory.refused,
            ..self.counters.snapshot()
        }
    }
}
