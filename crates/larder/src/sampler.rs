//! How often the cache is wrong: entries compared with their source, from time to time.
//!
//! ```text
//! every second: draw a key from memory ──► look: entry ─ source ─ entry again
//!                                           │ differs
//!                                           ▼
//!               look again 1, 5 and 60 s after the first ──► still the same wrong value? count it
//! ```
//!
//! After "Cache made consistent" (Meta, 2022): a difference alone says little, because a change may
//! be under way. One that lasts is one that no invalidation is going to mend.
//!
//! The task holds nothing of its cache but while it looks into memory, and costs reads nothing.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::answer::{Answer, Content, Loaded};
use crate::cache::{Cache, Inner};
use crate::clock::{BoxFuture, Clock, Millis, millis};
use crate::error::{BoxError, Error, Result};
use crate::fence::Standing;
use crate::key::{self, CacheKey};
use crate::loader::{self, Turns};
use crate::options::Span;
use crate::tasks::TaskKind;

/// When an entry that differs is looked at again, behind the first look, in milliseconds.
const AGAIN: [Millis; 3] = [1_000, 5_000, 60_000];
/// How many entries are followed at once.
const MOST_FOLLOWED: usize = 64;
/// How often a key is drawn unless told otherwise.
const EVERY: Duration = Duration::from_secs(1);
/// How many keys are drawn until one is fresh.
const TRIES: usize = 8;
/// How much of a key is logged, in bytes.
const LOGGED: usize = 200;

impl<K, V> Cache<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    /// Compares entries with what `source` says now, from time to time, and counts how many differ
    /// and for how long. Entries with a [version](Loaded::version) are compared by it where the
    /// source gives one too, others by `==`.
    ///
    /// Once a second, unless [told otherwise](SamplerBuilder::every), a key is drawn from this
    /// process's memory, every entry being as likely as any other, and `source` is asked for it. An
    /// entry that differs is looked at again 1, 5 and 60 s later: what changed meanwhile was no
    /// mistake, and what still has the same wrong value is one. No read waits for any of this or
    /// costs more for it. While nobody reads the cache, its source is left alone.
    ///
    /// `source` is asked for one key at a time. It answers as a loader does, and should read where
    /// changes are seen first: a lagging replica makes the cache look wrong, or hides that it is.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// async fn product(id: u64) -> Result<Option<String>, std::io::Error> {
    ///     Ok((id == 7).then(|| "espresso".to_owned())) // from the database
    /// }
    ///
    /// let products: Cache<u64, String> = Larder::builder("shop").build()?.cache("product").build()?;
    /// let sampler = products.sampler(product).every("10s").start()?; // ends when it is dropped
    /// // ... and wherever statistics are asked for:
    /// let stats = sampler.stats();
    /// assert_eq!((stats.sampled, stats.rate()), (0, None));
    /// # Ok(()) }
    /// ```
    pub fn sampler<F, Fut, A, E>(&self, source: F) -> SamplerBuilder<K, V>
    where
        V: PartialEq,
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Answer<V>,
        E: Into<BoxError> + Send + 'static,
    {
        self.sampler_by(V::eq, source)
    }

    /// The same, with `same` in place of `==`: for values that cannot be compared, or parts of which
    /// may differ. `|_, _| true` leaves it to the versions.
    pub fn sampler_by<F, Fut, A, E>(
        &self,
        same: impl Fn(&V, &V) -> bool + Send + Sync + 'static,
        source: F,
    ) -> SamplerBuilder<K, V>
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Answer<V>,
        E: Into<BoxError> + Send + 'static,
    {
        let source = move |key| -> Asked<V> {
            let asked = source(key);
            Box::pin(async move { asked.await.map(Answer::into_loaded).map_err(Into::into) })
        };
        let deadline = self.inner().rules.load_deadline;
        SamplerBuilder {
            cache: Arc::clone(self.inner()),
            source: Box::new(source),
            same: Box::new(same),
            every: EVERY,
            deadline,
            problem: None,
        }
    }
}

type Asked<V> = BoxFuture<'static, Result<Loaded<V>, BoxError>>;
type Source<K, V> = Box<dyn Fn(K) -> Asked<V> + Send + Sync>;
type Same<V> = Box<dyn Fn(&V, &V) -> bool + Send + Sync>;

/// A [`Sampler`] in the making. Made by [`Cache::sampler`].
#[must_use]
pub struct SamplerBuilder<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    cache: Arc<Inner<K, V>>,
    source: Source<K, V>,
    same: Same<V>,
    every: Duration,
    deadline: Duration,
    /// The first option that could not be understood.
    problem: Option<String>,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> fmt::Debug for SamplerBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SamplerBuilder")
            .field("cache", &self.cache.name)
            .field("every", &self.every)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl<K, V> SamplerBuilder<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    /// How long after one key the next is drawn. Default 1 s, at least 1 ms.
    pub fn every(mut self, every: impl Span) -> Self {
        self.every = self.span("every", every);
        self
    }

    /// How long the source may take for one key. Default: the load deadline of the cache.
    pub fn deadline(mut self, deadline: impl Span) -> Self {
        self.deadline = self.span("deadline", deadline);
        self
    }

    fn span(&mut self, name: &str, span: impl Span) -> Duration {
        let parsed = span.into_duration().and_then(|span| match millis(span) {
            0 => Err("it has to be 1 ms or longer".to_owned()),
            _ => Ok(span),
        });
        parsed.unwrap_or_else(|problem| {
            let cache = &self.cache.name;
            let problem = format!("sampler of cache `{cache}`: {name}: {problem}");
            self.problem.get_or_insert(problem);
            Duration::ZERO
        })
    }

    /// Begins to sample, on the runtime of the caller, until the sampler is dropped or the larder
    /// is.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for a time that makes no sense and outside a runtime,
    /// [`Closed`](crate::ErrorKind::Closed) after shutdown.
    pub fn start(self) -> Result<Sampler> {
        if let Some(problem) = self.problem {
            return Err(Error::config(problem));
        }
        self.cache.shared.check_ready()?;
        let counts = Arc::<Counts>::default();
        let (stop, stopped) = oneshot::channel();
        let now = self.cache.clock().monotonic();
        let work = Work {
            clock: Arc::clone(self.cache.clock()),
            cache: Arc::downgrade(&self.cache),
            source: self.source,
            same: self.same,
            every: millis(self.every),
            deadline: self.deadline,
            turns: Turns::new(1, 1),
            counts: Arc::clone(&counts),
            draw_at: now.saturating_add(millis(self.every)),
            reads: 0,
            followed: VecDeque::new(),
        };
        let tasks = &self.cache.shared.tasks;
        tasks.spawn(TaskKind::Watch, unless(stopped, work.run()));
        Ok(Sampler {
            cache: Arc::clone(&self.cache.name),
            counts,
            _stop: stop,
        })
    }
}

/// Compares a cache with its source for as long as it lives. Made by [`Cache::sampler`].
#[derive(Debug)]
#[must_use = "sampling ends when this is dropped"]
pub struct Sampler {
    cache: Arc<str>,
    counts: Arc<Counts>,
    /// Dropped with the handle, which ends the task.
    _stop: oneshot::Sender<()>,
}

impl Sampler {
    /// The name of the cache.
    pub fn cache(&self) -> &str {
        &self.cache
    }

    /// What was found so far.
    pub fn stats(&self) -> SamplerStats {
        self.counts.snapshot()
    }
}

/// What a [`Sampler`] found since it was started. All counts are totals but `followed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SamplerStats {
    /// Entries that were compared with the source. One that is drawn twice counts twice.
    pub sampled: u64,
    /// Those of them that differed at the first look.
    pub inconsistent: u64,
    /// Those of them that had the same wrong value 1 s later.
    pub after_1s: u64,
    /// The same 5 s later.
    pub after_5s: u64,
    /// The same 60 s later.
    pub after_60s: u64,
    /// Entries that changed or went while the source was asked, or of which the source gave an
    /// older version than the cache has. They count as not sampled.
    pub undecided: u64,
    /// Questions that the source did not answer: errors, panics, deadlines.
    pub failed: u64,
    /// Entries that differed and of which it is not known for how long: 64 others were followed
    /// just then, or the source failed later.
    pub lost: u64,
    /// Entries that differed and will be looked at again.
    pub followed: u64,
}

impl SamplerStats {
    /// The share of entries that differed from their source at the first look, from 0 to 1; `None`
    /// before anything was sampled. Changes under way are among them.
    pub fn rate(&self) -> Option<f64> {
        self.share(self.inconsistent)
    }

    /// The share of entries that had a wrong value for 60 s, from 0 to 1; `None` before anything was
    /// sampled. At least: those that are [followed](Self::followed) still and those that were
    /// [lost](Self::lost) are not among them.
    pub fn lasting_rate(&self) -> Option<f64> {
        self.share(self.after_60s)
    }

    fn share(&self, part: u64) -> Option<f64> {
        (self.sampled > 0).then(|| part as f64 / self.sampled as f64)
    }
}

#[derive(Debug, Default)]
struct Counts {
    sampled: AtomicU64,
    inconsistent: AtomicU64,
    /// After each of [`AGAIN`].
    after: [AtomicU64; AGAIN.len()],
    undecided: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
    followed: AtomicU64,
}

impl Counts {
    fn snapshot(&self) -> SamplerStats {
        let [after_1s, after_5s, after_60s] = &self.after;
        SamplerStats {
            sampled: self.sampled.load(Relaxed),
            inconsistent: self.inconsistent.load(Relaxed),
            after_1s: after_1s.load(Relaxed),
            after_5s: after_5s.load(Relaxed),
            after_60s: after_60s.load(Relaxed),
            undecided: self.undecided.load(Relaxed),
            failed: self.failed.load(Relaxed),
            lost: self.lost.load(Relaxed),
            followed: self.followed.load(Relaxed),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// A value and its version, as memory or the source has it.
struct Seen<V> {
    /// `None` says that there is no such value.
    value: Option<Arc<V>>,
    version: Option<u64>,
}

impl<V> Seen<V> {
    fn of(loaded: Loaded<V>) -> Option<Self> {
        let value = match loaded.content {
            Content::Value(value) => Some(value),
            Content::Absent => None,
            // It was not shown what it says is unchanged.
            Content::NotModified => return None,
        };
        let version = loaded.version;
        Some(Self { value, version })
    }

    /// Whether it says the same as `other`.
    fn agrees(&self, other: &Self, same: impl Fn(&V, &V) -> bool) -> bool {
        match (self.version, other.version) {
            (Some(one), Some(other)) => one == other,
            _ => match (&self.value, &other.value) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other) || same(one, other),
                (None, None) => true,
                _ => false,
            },
        }
    }

    fn is_newer_than(&self, other: &Self) -> bool {
        self.version
            .zip(other.version)
            .is_some_and(|(one, other)| one > other)
    }
}

/// What a look says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Consistent,
    /// Memory had the same value before and after the source gave another.
    Inconsistent,
    Undecided,
}

/// Judges what memory had before, what the source gave, and what memory had afterwards.
fn judge<V>(
    before: &Seen<V>,
    source: &Seen<V>,
    after: Option<&Seen<V>>,
    same: impl Fn(&V, &V) -> bool,
) -> Verdict {
    if before.agrees(source, &same) {
        return Verdict::Consistent;
    }
    let stayed = after.is_some_and(|after| after.agrees(before, &same));
    if stayed && !before.is_newer_than(source) {
        Verdict::Inconsistent
    } else {
        Verdict::Undecided
    }
}

/// An entry that differed.
struct Followed<K, V> {
    key: K,
    wrong: Seen<V>,
    /// When it was looked at first.
    since: Millis,
    /// Which of [`AGAIN`] comes next.
    next: usize,
}

impl<K, V> Followed<K, V> {
    /// When it is looked at next; `None` once that was done.
    fn due(&self) -> Option<Millis> {
        let behind = AGAIN.get(self.next)?;
        Some(self.since.saturating_add(*behind))
    }
}

/// The task of a sampler.
struct Work<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    cache: Weak<Inner<K, V>>,
    clock: Arc<dyn Clock>,
    source: Source<K, V>,
    same: Same<V>,
    every: Millis,
    deadline: Duration,
    /// One at a time; apart from those of the cache, which reads wait for.
    turns: Turns,
    counts: Arc<Counts>,
    draw_at: Millis,
    /// How many reads the cache had had when a key was drawn last.
    reads: u64,
    followed: VecDeque<Followed<K, V>>,
}

impl<K, V> Work<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    /// The only control flow: waits for what is due next and does it, until the cache is gone.
    async fn run(mut self) {
        loop {
            let (at, due) = self.next_due();
            let wait = at.saturating_sub(self.clock.monotonic());
            if wait > 0 {
                self.clock.sleep(Duration::from_millis(wait)).await;
            }
            if self.cache.strong_count() == 0 {
                return;
            }
            match due {
                Some(at) => self.look_again(at).await,
                None => self.draw().await,
            }
            self.counts
                .followed
                .store(self.followed.len() as u64, Relaxed);
        }
    }

    /// When something is to be done, and for which of those followed; `None` is the next draw.
    fn next_due(&self) -> (Millis, Option<usize>) {
        let due = |(at, followed): (usize, &Followed<K, V>)| Some((followed.due()?, Some(at)));
        let again = self.followed.iter().enumerate().filter_map(due).min();
        again
            .filter(|(at, _)| *at <= self.draw_at)
            .unwrap_or((self.draw_at, None))
    }

    /// Draws a key, and looks at its entry.
    async fn draw(&mut self) {
        if let Some((key, before)) = self.pick() {
            self.look_first(key, before).await;
        }
        self.draw_at = self.clock.monotonic().saturating_add(self.every);
    }

    /// A key of memory with what memory has there; `None` if nobody has read the cache since the
    /// last one, or nothing fresh was found.
    fn pick(&mut self) -> Option<(K, Seen<V>)> {
        let cache = self.cache.upgrade()?;
        let reads = cache.counters.snapshot().reads();
        if std::mem::replace(&mut self.reads, reads) == reads {
            return None;
        }
        (0..TRIES).find_map(|_| {
            let key = cache.memory.draw(fastrand::u64(..), K::clone)?;
            let seen = self.peek(&key)?;
            Some((key, seen))
        })
    }

    async fn look_first(&mut self, key: K, before: Seen<V>) {
        let since = self.clock.monotonic();
        let verdict = self.look(&key, &before).await;
        let counts = &self.counts;
        match verdict {
            None => return count(&counts.failed),
            Some(Verdict::Undecided) => return count(&counts.undecided),
            Some(Verdict::Consistent) => return count(&counts.sampled),
            Some(Verdict::Inconsistent) => {}
        }
        count(&counts.sampled);
        count(&counts.inconsistent);
        if self.followed.len() >= MOST_FOLLOWED {
            return count(&counts.lost);
        }
        self.followed.push_back(Followed {
            key,
            wrong: before,
            since,
            next: 0,
        });
    }

    /// Looks at one of those followed again, and goes on following it if it has not changed.
    async fn look_again(&mut self, at: usize) {
        let Some(mut followed) = self.followed.remove(at) else {
            return;
        };
        let Some(now) = self.still(&followed) else {
            return;
        };
        match self.look(&followed.key, &now).await {
            Some(Verdict::Inconsistent) => {}
            Some(Verdict::Consistent | Verdict::Undecided) => return,
            None => {
                count(&self.counts.failed);
                return count(&self.counts.lost);
            }
        }
        if let Some(counter) = self.counts.after.get(followed.next) {
            count(counter);
        }
        followed.next += 1;
        if followed.due().is_some() {
            self.followed.push_back(followed);
        } else {
            self.log(&followed.key);
        }
    }

    /// What memory has of an entry, if it still is the wrong one.
    fn still(&self, followed: &Followed<K, V>) -> Option<Seen<V>> {
        let now = self.peek(&followed.key)?;
        let same = catch_unwind(AssertUnwindSafe(|| now.agrees(&followed.wrong, &self.same)));
        same.unwrap_or(false).then_some(now)
    }

    /// Asks the source, and compares; `None` if it does not answer.
    async fn look(&self, key: &K, before: &Seen<V>) -> Option<Verdict> {
        let asked = loader::make(|| (self.source)(key.clone())).ok()?;
        let (loaded, _) = loader::run(&*self.clock, &self.turns, self.deadline, asked).await;
        let source = Seen::of(loaded.ok()?)?;
        let after = self.peek(key);
        let judged = || judge(before, &source, after.as_ref(), &self.same);
        // A comparison that panics is as good as no answer.
        catch_unwind(AssertUnwindSafe(judged)).ok()
    }

    /// What memory would answer as fresh. Does not count as a read.
    fn peek(&self, key: &K) -> Option<Seen<V>> {
        let cache = self.cache.upgrade()?;
        let now = cache.clock().monotonic();
        let fresh = cache.memory.get(cache.memory.hash(key), key, now, |held| {
            let is_served = now < held.times.serve_until
                && cache.fence.standing(held, now) == Standing::Current;
            is_served.then(|| Seen {
                value: held.value.clone(),
                version: held.details.as_ref().and_then(|details| details.version),
            })
        });
        fresh.flatten()
    }

    fn log(&self, key: &K) {
        let (Some(cache), Ok(key)) = (self.cache.upgrade(), key::encode(b"", key)) else {
            return;
        };
        let key = String::from_utf8_lossy(&key[..key.len().min(LOGGED)]).into_owned();
        tracing::warn!(
            cache = &*cache.name,
            key,
            "an entry has differed from its source for 60 s; an invalidation is missing"
        );
    }
}

/// Runs `work` until it ends or the other end of `stopped` is dropped.
async fn unless(mut stopped: oneshot::Receiver<()>, work: impl Future<Output = ()>) {
    let mut work = pin!(work);
    poll_fn(|context| match pin!(&mut stopped).poll(context) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => work.as_mut().poll(context),
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(value: Option<u32>, version: Option<u64>) -> Seen<u32> {
        Seen {
            value: value.map(Arc::new),
            version,
        }
    }

    #[test]
    fn only_a_value_that_stayed_and_differs_is_inconsistent() {
        use Verdict::{Consistent, Inconsistent, Undecided};
        let plain = |value| seen(value, None);
        for (before, source, after, verdict) in [
            (Some(1), Some(1), Some(Some(1)), Consistent),
            (Some(1), Some(1), None, Consistent),
            (None, None, Some(None), Consistent),
            (Some(1), Some(2), Some(Some(1)), Inconsistent),
            (Some(1), None, Some(Some(1)), Inconsistent),
            (None, Some(1), Some(None), Inconsistent),
            (Some(1), Some(2), Some(Some(2)), Undecided),
            (Some(1), Some(2), Some(Some(3)), Undecided),
            (Some(1), Some(2), Some(None), Undecided),
            (Some(1), Some(2), None, Undecided),
        ] {
            let after = after.map(plain);
            let judged = judge(&plain(before), &plain(source), after.as_ref(), u32::eq);
            assert_eq!(judged, verdict, "{before:?} {source:?}");
        }
    }

    #[test]
    fn versions_decide_where_both_are_known() {
        use Verdict::{Consistent, Inconsistent, Undecided};
        for (cached, source, verdict) in [
            ((1, Some(5)), (2, Some(5)), Consistent),
            ((1, Some(5)), (1, Some(6)), Inconsistent),
            ((1, Some(5)), (2, Some(4)), Undecided),
            ((1, Some(5)), (1, None), Consistent),
            ((1, None), (2, Some(4)), Inconsistent),
        ] {
            let of = |(value, version)| seen(Some(value), version);
            let judged = judge(&of(cached), &of(source), Some(&of(cached)), u32::eq);
            assert_eq!(judged, verdict, "{cached:?} {source:?}");
        }
    }
}
