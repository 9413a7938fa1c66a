//! Refreshing popular keys before they expire, in the background.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;

use super::LoadingCache;
use super::ledger::{Allowance, Outstanding};
use super::popular::Popular;
use super::under_way::UnderWay;
use super::watchers::Watcher;
use crate::cache::Inner;
use crate::clock::{BoxFuture, Millis, millis};
use crate::error::{Error, Result};
use crate::key::CacheKey;
use crate::loader;
use crate::outcome::State;
use crate::read::ahead::{self, Renewal};
use crate::tasks::TaskKind;
use crate::tier::within;

/// How popular keys are kept fresh. See [`LoadingCache::refresh_ahead`].
///
/// ```
/// use std::time::Duration;
///
/// use larder::RefreshAhead;
///
/// let a_few = RefreshAhead {
///     keys: 100,
///     per_second: 10,
///     ..RefreshAhead::default()
/// };
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RefreshAhead {
    /// How many of the most popular keys are kept fresh, 1 to 10,000. Default 1,000.
    pub keys: usize,
    /// After which share of its TTL an entry is refreshed, 0 to 1. Default 0.8.
    pub after: f64,
    /// At which age an entry is refreshed, however long its TTL, if that comes earlier. Default: none.
    pub every: Option<Duration>,
    /// How many refreshes run at once, 1 or more. Default 8.
    pub concurrency: usize,
    /// How many refreshes begin in a second, 1 or more. Default 100.
    pub per_second: u32,
    /// How often entries are looked at. Default 1 s; for entries that live less than about 20 s it
    /// should be less.
    pub tick: Duration,
    /// One read of so many is noted, 1 or more. Default 8: what is popular is noted soon enough.
    pub sample: u32,
    /// How long until half of a key's popularity is forgotten. Default 10 min.
    pub half_life: Duration,
}

impl Default for RefreshAhead {
    fn default() -> Self {
        Self {
            keys: 1_000,
            after: 0.8,
            every: None,
            concurrency: 8,
            per_second: 100,
            tick: Duration::from_secs(1),
            sample: 8,
            half_life: Duration::from_secs(600),
        }
    }
}

impl RefreshAhead {
    pub(super) fn check(&self) -> Result<()> {
        let problem = if !(1..=10_000).contains(&self.keys) {
            "keys is out of range: from 1 to 10,000 are kept fresh"
        } else if !(0.0..=1.0).contains(&self.after) {
            "after is a share of the TTL, from 0 to 1"
        } else if self.concurrency == 0 || self.per_second == 0 {
            "concurrency or per_second is zero; nothing would ever be refreshed"
        } else if self.tick.is_zero() || self.half_life.is_zero() || self.sample == 0 {
            "tick, half_life or sample is zero"
        } else if self.sample > 1 << 20 {
            "sample is so high that no read would be noted"
        } else {
            return Ok(());
        };
        Err(Error::config(format!("refresh_ahead: {problem}")))
    }
}

/// What was refreshed ahead of need so far. All counts are totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefreshAheadStats {
    /// Entries that were loaded anew.
    pub refreshes: u64,
    /// Loads that failed; the entry stayed as it was. So is a supply of keys counted that panicked or
    /// took longer than a load may.
    pub failed: u64,
    /// Refreshes whose entry was read, in memory, before it expired again.
    pub useful: u64,
    /// Refreshes whose entry was not. What is in neither of the two has not been read or expired yet.
    pub wasted: u64,
}

impl RefreshAheadStats {
    /// The share of refreshes, among those of which it is known, that nobody needed; 0 to 1.
    pub fn wasted_share(&self) -> Option<f64> {
        let known = self.useful + self.wasted;
        (known > 0).then(|| self.wasted as f64 / known as f64)
    }
}

#[derive(Default)]
pub(super) struct Counts {
    refreshes: AtomicU64,
    failed: AtomicU64,
    wasted: AtomicU64,
}

/// Popular keys being kept fresh. Dropping it ends that. Made by [`LoadingCache::refresh_ahead`].
#[must_use = "dropping it ends the refreshing"]
pub struct Refreshing {
    stats: Box<dyn Fn() -> RefreshAheadStats + Send + Sync>,
    _told: Box<dyn Any + Send + Sync>,
    _end: oneshot::Sender<()>,
}

impl Refreshing {
    /// What was refreshed so far.
    pub fn stats(&self) -> RefreshAheadStats {
        (self.stats)()
    }
}

impl fmt::Debug for Refreshing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refreshing")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Gives the keys that are to be kept fresh, the most popular first.
pub(super) type Supply<K> = Box<dyn FnMut() -> BoxFuture<'static, Vec<K>> + Send>;

/// Begins to keep keys fresh: those of `supply`, or those that are read most.
pub(super) fn begin<K, V>(
    loading: &LoadingCache<K, V>,
    options: RefreshAhead,
    supply: Option<Supply<K>>,
) -> Result<Refreshing>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    options.check()?;
    let cache = Arc::clone(loading.cache.inner());
    cache.shared.check_ready()?;
    if !cache.watchers.begin(Watcher::Popular) {
        return Err(Error::config(format!(
            "cache `{}` is refreshed ahead already; drop what keeps it so first",
            cache.name
        )));
    }
    let popular = cache.watchers.popular();
    popular.restart(options.keys, options.sample);
    let useful_before = popular.useful.load(Relaxed);
    let counts = Arc::<Counts>::default();
    let told = Told::of(&cache, Watcher::Popular);
    let (end, cancelled) = oneshot::channel();
    let refresher = Refresher {
        loading: loading.clone(),
        allowance: Allowance::new(options.per_second, cache.clock().monotonic()),
        options,
        supply,
        counts: Arc::clone(&counts),
        noted: popular.noted(),
        under_way: UnderWay::new(),
        outstanding: Outstanding::default(),
    };
    // It never ends by itself, and nobody waits for it at a shutdown.
    let tasks = Arc::clone(&cache.shared.tasks);
    tasks.spawn(TaskKind::Watch, until(cancelled, refresher.run()));
    let stats = move || RefreshAheadStats {
        refreshes: counts.refreshes.load(Relaxed),
        failed: counts.failed.load(Relaxed),
        useful: cache.watchers.popular().useful.load(Relaxed) - useful_before,
        wasted: counts.wasted.load(Relaxed),
    };
    Ok(Refreshing {
        stats: Box::new(stats),
        _told: Box::new(told),
        _end: end,
    })
}

/// Runs `work` until the other end of `cancelled` is gone.
pub(super) async fn until(mut cancelled: oneshot::Receiver<()>, work: impl Future<Output = ()>) {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        if Pin::new(&mut cancelled).poll(context).is_ready() {
            return Poll::Ready(());
        }
        work.as_mut().poll(context)
    })
    .await;
}

/// The task that keeps keys fresh.
struct Refresher<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    loading: LoadingCache<K, V>,
    options: RefreshAhead,
    supply: Option<Supply<K>>,
    counts: Arc<Counts>,
    /// How many reads had been noted when it began.
    noted: u64,
    /// How many refreshes may begin now.
    allowance: Allowance,
    under_way: UnderWay<Ended>,
    /// When the entries expire that were refreshed, by hash.
    outstanding: Outstanding,
}

/// Has somebody told of the reads of a cache, until it is dropped: with the handle of whoever wants
/// that, so that they may begin anew at once, and not with their task, which ends later.
pub(super) struct Told<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    cache: Arc<Inner<K, V>>,
    watcher: Watcher,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Told<K, V> {
    pub(super) fn of(cache: &Arc<Inner<K, V>>, watcher: Watcher) -> Self {
        let cache = Arc::clone(cache);
        Self { cache, watcher }
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Drop for Told<K, V> {
    fn drop(&mut self) {
        self.cache.watchers.end(self.watcher);
    }
}

impl<K, V> Refresher<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    async fn run(mut self) {
        let cache = Arc::clone(self.loading.cache.inner());
        let popular = cache.watchers.popular();
        let (mut noted, mut halved_at) = (self.noted, cache.clock().monotonic());
        loop {
            let tick = cache.clock().sleep(self.options.tick);
            self.note_until(tick, popular).await;
            let now = cache.clock().monotonic();
            let wasted = self.outstanding.write_off(&popular.awaited, now);
            self.counts.wasted.fetch_add(wasted, Relaxed);
            self.allowance.earn(now);
            let half_life = millis(self.options.half_life).max(1);
            let halves = now.saturating_sub(halved_at) / half_life;
            halved_at += halves * half_life;
            // Halved so often, every count is zero.
            (0..halves.min(32)).for_each(|_| popular.sketch().halve());
            if popular.noted() > noted {
                noted = popular.noted();
                self.look(popular).await;
            } else if self.outstanding.is_empty() && self.under_way.is_empty() {
                popular.read_again(noted).await;
            }
        }
    }

    /// Notes at once how refreshes end, until `tick` is over: who reads right behind one has read what
    /// it brought.
    async fn note_until(&mut self, mut tick: BoxFuture<'static, ()>, popular: &Popular<K>) {
        loop {
            let next = std::future::poll_fn(|context| match self.under_way.poll_next(context) {
                Poll::Ready(Some(ended)) => Poll::Ready(Some(ended)),
                Poll::Ready(None) | Poll::Pending => tick.as_mut().poll(context).map(|()| None),
            });
            let Some((hash, ended)) = next.await else {
                return;
            };
            self.ended(popular, hash, ended);
        }
    }

    /// Refreshes what is due, the most popular first, as far as it may.
    async fn look(&mut self, popular: &Popular<K>) {
        let cache = Arc::clone(self.loading.cache.inner());
        let mut keys = match &mut self.supply {
            Some(supply) => match ask(&cache, supply).await {
                Ok(keys) => keys,
                Err(error) => {
                    tracing::warn!(%error, "what supplies the keys to refresh failed");
                    self.counts.failed.fetch_add(1, Relaxed);
                    return;
                }
            },
            None => popular.sketch().top(),
        };
        keys.truncate(self.options.keys);
        for key in keys {
            if self.allowance.is_spent() {
                return;
            }
            let hash = cache.memory.hash(&key);
            // What nobody has read since its last refresh is left to die.
            if popular.awaited.has(hash) || self.under_way.has(hash) || !self.is_due(&key) {
                continue;
            }
            while self.under_way.len() >= self.options.concurrency {
                let Some((hash, ended)) = self.under_way.next().await else {
                    break;
                };
                self.ended(popular, hash, ended);
            }
            self.allowance.spend();
            self.under_way
                .begin(hash, refresh(self.loading.clone(), key));
        }
    }

    /// Whether a key is to be loaded now: one that memory has, or any that was supplied.
    fn is_due(&self, key: &K) -> bool {
        let cache = self.loading.cache.inner();
        let Some(times) = ahead::times_of_all(cache, key) else {
            return self.supply.is_some();
        };
        let now = cache.clock().monotonic();
        let whole = times.fresh_until.saturating_sub(times.created).max(0) as f64;
        let age = i64::try_from(now)
            .unwrap_or(i64::MAX)
            .saturating_sub(times.created);
        let is_old = age as f64 >= whole * self.options.after;
        let every = self.options.every.map(millis);
        let is_over = every.is_some_and(|every| age >= i64::try_from(every).unwrap_or(i64::MAX));
        now >= times.retry_at && (is_old || is_over)
    }

    /// Notes how a refresh ended; one that panicked has failed.
    fn ended(&mut self, popular: &Popular<K>, hash: u64, ended: Option<Ended>) {
        match ended.unwrap_or(Ended::Failed) {
            Ended::Refreshed { until } => {
                self.counts.refreshes.fetch_add(1, Relaxed);
                let wasted = self.outstanding.note(&popular.awaited, hash, until);
                self.counts.wasted.fetch_add(wasted, Relaxed);
            }
            Ended::Failed => {
                self.counts.failed.fetch_add(1, Relaxed);
            }
            Ended::NotNeeded => {}
        }
    }
}

/// How a refresh ended.
enum Ended {
    /// It is fresh until then.
    Refreshed {
        until: Millis,
    },
    Failed,
    /// Somebody else does so, or it is gone.
    NotNeeded,
}

/// What the supply names, unless it panics, or takes longer than a load may.
async fn ask<K, V>(cache: &Inner<K, V>, supply: &mut Supply<K>) -> Result<Vec<K>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let keys = loader::make(supply)?;
    let keys = loader::apart(async { Ok(keys.await) });
    let deadline = cache.rules.load_deadline;
    let named = within(&**cache.clock(), deadline, keys).await;
    named.unwrap_or_else(|| {
        let millis = deadline.as_millis();
        Err(Error::load_timeout(format!(
            "it took longer than {millis} ms"
        )))
    })
}

async fn refresh<K, V>(loading: LoadingCache<K, V>, key: K) -> Ended
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let cache = loading.cache.inner();
    let load = |load| loading.load(load);
    match ahead::renew(cache, &key, load).await {
        Ok(Renewal::Renewed(landed)) if landed.state == State::Fresh => {
            let until = landed.held.map_or(0, |held| held.times.fresh_until);
            Ended::Refreshed {
                until: u64::try_from(until).unwrap_or(0),
            }
        }
        Ok(Renewal::NotThere) => match ahead::fetch(cache, &key, load).await {
            Ok(_) => ahead::times(cache, &key).map_or(Ended::NotNeeded, |times| Ended::Refreshed {
                until: u64::try_from(times.fresh_until).unwrap_or(0),
            }),
            Err(_) => Ended::Failed,
        },
        Ok(Renewal::Renewed(_) | Renewal::Elsewhere) => Ended::NotNeeded,
        Ok(Renewal::Failed) | Err(_) => Ended::Failed,
    }
}
