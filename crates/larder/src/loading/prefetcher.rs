//! Loading what will probably be asked for next.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::{mpsc, oneshot};

use super::LoadingCache;
use super::ledger::{Allowance, Outstanding};
use super::predictor::Predictor;
use super::refresher::{Told, until};
use super::under_way::UnderWay;
use super::watchers::Watcher;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::key::CacheKey;
use crate::read::ahead;
use crate::tasks::TaskKind;

/// Wishes that wait to be looked at. More are dropped: what was likely a while ago is no longer.
const QUEUE: usize = 256;

/// What is loaded before anybody asks for it. See [`LoadingCache::prefetch`].
///
/// ```
/// use larder::Prefetch;
///
/// let only_what_the_loader_names = Prefetch {
///     model: 0,
///     ..Prefetch::default()
/// };
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Prefetch {
    /// Of how many keys it is learned what follows them, up to 1,000,000; zero learns nothing. Each
    /// takes about 200 bytes, with the keys of four others. Default 4,096.
    pub model: usize,
    /// In which share of cases a key has to follow to be prefetched, 0 to 1. Default 0.5.
    pub confidence: f64,
    /// How often a key has to have been followed by any before that counts. Default 2.
    pub support: u16,
    /// How many keys are prefetched at once, 1 or more. Default 8.
    pub concurrency: usize,
    /// How many prefetches begin in a second, 1 or more. Default 100.
    pub per_second: u32,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self {
            model: 4_096,
            confidence: 0.5,
            support: 2,
            concurrency: 8,
            per_second: 100,
        }
    }
}

impl Prefetch {
    fn check(&self) -> Result<()> {
        let problem = if self.model > 1_000_000 {
            "model is out of range: it knows at most 1,000,000 keys"
        } else if !(0.0..=1.0).contains(&self.confidence) {
            "confidence is a share, from 0 to 1"
        } else if self.concurrency == 0 || self.per_second == 0 {
            "concurrency or per_second is zero; nothing would ever be prefetched"
        } else {
            return Ok(());
        };
        Err(Error::config(format!("prefetch: {problem}")))
    }
}

/// What was prefetched so far. All counts are totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrefetchStats {
    /// Entries that were loaded, or fetched from a tier, before anybody asked.
    pub prefetched: u64,
    /// Of these: read from memory before they left it.
    pub useful: u64,
    /// Of these: expired, which is noticed when something else is wished for, or gone when they were
    /// asked for. What is in neither of the two waits for its first reader.
    pub wasted: u64,
    /// Loads that failed.
    pub failed: u64,
    /// Wishes that were dropped because of the limits on rate, number and queue.
    pub dropped: u64,
}

impl PrefetchStats {
    /// The share of prefetches, among those of which it is known, that were useful; 0 to 1.
    pub fn precision(&self) -> Option<f64> {
        let known = self.useful + self.wasted;
        (known > 0).then(|| self.useful as f64 / known as f64)
    }
}

#[derive(Default)]
struct Counts {
    prefetched: AtomicU64,
    wasted: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

/// A cache whose likely next keys are loaded ahead. Dropping it ends that. Made by
/// [`LoadingCache::prefetch`].
#[must_use = "dropping it ends the prefetching"]
pub struct Prefetching {
    stats: Box<dyn Fn() -> PrefetchStats + Send + Sync>,
    _told: Box<dyn Any + Send + Sync>,
    _end: oneshot::Sender<()>,
}

impl Prefetching {
    /// What was prefetched so far.
    pub fn stats(&self) -> PrefetchStats {
        (self.stats)()
    }
}

impl fmt::Debug for Prefetching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefetching")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Begins to prefetch.
pub(super) fn begin<K, V>(loading: &LoadingCache<K, V>, options: Prefetch) -> Result<Prefetching>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    options.check()?;
    let cache = Arc::clone(loading.cache.inner());
    cache.shared.check_ready()?;
    if !cache.watchers.begin(Watcher::Predictor) {
        return Err(Error::config(format!(
            "cache `{}` is prefetched already; drop what does so first",
            cache.name
        )));
    }
    let predictor = cache.watchers.predictor();
    let (queue, wishes) = mpsc::channel(QUEUE);
    predictor.restart(queue, &options);
    let counts = Arc::<Counts>::default();
    let told = Told::of(&cache, Watcher::Predictor);
    let (end, cancelled) = oneshot::channel();
    let prefetcher = Prefetcher {
        allowance: Allowance::new(options.per_second, cache.clock().monotonic()),
        loading: loading.clone(),
        options,
        counts: Arc::clone(&counts),
        under_way: UnderWay::new(),
        outstanding: Outstanding::default(),
    };
    let tasks = Arc::clone(&cache.shared.tasks);
    tasks.spawn(TaskKind::Watch, until(cancelled, prefetcher.run(wishes)));
    let seen = |predictor: &Predictor<K>| {
        [&predictor.useful, &predictor.missed, &predictor.dropped].map(|seen| seen.load(Relaxed))
    };
    let before = seen(predictor);
    let stats = move || {
        let now = seen(cache.watchers.predictor());
        let [useful, missed, dropped] = std::array::from_fn(|at| now[at] - before[at]);
        PrefetchStats {
            prefetched: counts.prefetched.load(Relaxed),
            useful,
            wasted: missed + counts.wasted.load(Relaxed),
            failed: counts.failed.load(Relaxed),
            dropped: dropped + counts.dropped.load(Relaxed),
        }
    };
    Ok(Prefetching {
        stats: Box::new(stats),
        _told: Box::new(told),
        _end: end,
    })
}

/// The task that prefetches.
struct Prefetcher<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    loading: LoadingCache<K, V>,
    options: Prefetch,
    counts: Arc<Counts>,
    /// How many prefetches may begin now.
    allowance: Allowance,
    under_way: UnderWay<Result<Option<Millis>>>,
    /// When the entries expire that were prefetched, by hash.
    outstanding: Outstanding,
}

impl<K, V> Prefetcher<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    async fn run(mut self, mut wishes: mpsc::Receiver<K>) {
        let cache = Arc::clone(self.loading.cache.inner());
        let predictor = cache.watchers.predictor();
        let mut written_off_at = cache.clock().monotonic();
        while let Some(next) = next(&mut wishes, &mut self.under_way).await {
            let now = cache.clock().monotonic();
            let key = match next {
                Next::Ended(hash, ended) => {
                    self.ended(predictor, hash, ended);
                    continue;
                }
                Next::Wish(key) => key,
            };
            if now.saturating_sub(written_off_at) >= 1_000 {
                written_off_at = now;
                let wasted = self.outstanding.write_off(&predictor.awaited, now);
                self.counts.wasted.fetch_add(wasted, Relaxed);
            }
            self.allowance.earn(now);
            let hash = cache.memory.hash(&key);
            if self.under_way.has(hash) || ahead::is_fresh(&cache, hash, &key) {
                continue;
            }
            if self.allowance.is_spent() || self.under_way.len() >= self.options.concurrency {
                self.counts.dropped.fetch_add(1, Relaxed);
                continue;
            }
            self.allowance.spend();
            self.under_way
                .begin(hash, prefetch(self.loading.clone(), key));
        }
    }

    /// Notes how a prefetch ended; one that panicked has failed.
    fn ended(
        &mut self,
        predictor: &Predictor<K>,
        hash: u64,
        ended: Option<Result<Option<Millis>>>,
    ) {
        let Some(ended) = ended else {
            self.counts.failed.fetch_add(1, Relaxed);
            return;
        };
        match ended {
            Ok(Some(until)) => {
                self.counts.prefetched.fetch_add(1, Relaxed);
                let wasted = self.outstanding.note(&predictor.awaited, hash, until);
                self.counts.wasted.fetch_add(wasted, Relaxed);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(?error, "a key could not be prefetched");
                self.counts.failed.fetch_add(1, Relaxed);
            }
        }
    }
}

/// What the task does next.
enum Next<K> {
    Wish(K),
    Ended(u64, Option<Result<Option<Millis>>>),
}

/// The next prefetch that ends, or else the next wish; `None` once nobody can wish any more.
async fn next<K>(
    wishes: &mut mpsc::Receiver<K>,
    under_way: &mut UnderWay<Result<Option<Millis>>>,
) -> Option<Next<K>> {
    std::future::poll_fn(|context| {
        if let std::task::Poll::Ready(Some((hash, ended))) = under_way.poll_next(context) {
            return std::task::Poll::Ready(Some(Next::Ended(hash, ended)));
        }
        wishes.poll_recv(context).map(|wish| wish.map(Next::Wish))
    })
    .await
}

/// Fetches a key; says until when memory has it, if it does.
async fn prefetch<K, V>(loading: LoadingCache<K, V>, key: K) -> Result<Option<Millis>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let cache = loading.cache.inner();
    // Not by way of `LoadingCache::load`: what is related to what was never asked for is not wanted.
    let fetched = ahead::fetch(cache, &key, |load| Arc::clone(&loading.source).load(load)).await;
    let until = || u64::try_from(ahead::times(cache, &key)?.fresh_until).ok();
    fetched.map(|_| until())
}
