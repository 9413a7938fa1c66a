//! The way of a change from the outbox to whoever applies it.
//!
//! One follower of a feed works, and the others stand by. That only saves work: applying twice
//! harms nothing, and what is applied is removed row by row, so two that work at once lose nothing.
//!
//! A row that can be read was committed, and is applied at once, in whatever order transactions
//! commit. A transaction that commits late makes rows appear behind those that were read before.
//! None is skipped, because each round begins at the horizon of the one before: the lowest number
//! of a transaction that had not ended when that one began.

use std::collections::HashSet;
use std::convert::Infallible;
use std::time::Duration;

use larder::clock::Millis;
use larder::{BoxError, Invalidation};

use crate::change::Change;
use crate::error::{FeedError, Result};
use crate::feed::Feed;
use crate::health::{Role, add};
use crate::link::{Link, Position, Waiting};

/// The first pause after a failure.
const FIRST_DELAY: Duration = Duration::from_millis(10);

impl Feed {
    /// Hands changes to `apply` until the returned future is dropped.
    ///
    /// Every change is handed over at least once, after the transaction that made it committed, and
    /// removed from the outbox when `apply` returned `Ok` for it. An error of `apply` means "not
    /// now": the same changes come again after a pause, for as long as it takes. Batches hold no
    /// duplicates, and come in no order that means anything.
    ///
    /// Any number of processes may follow one feed: one of them works at a time, and another one
    /// takes over when it goes away or hangs. A server that is away, or a database in which the
    /// feed is not installed yet, is waited for; [`Feed::health`] says so.
    pub async fn follow<F, Fut>(&self, apply: F) -> Infallible
    where
        F: FnMut(Vec<Invalidation>) -> Fut + Send,
        Fut: Future<Output = Result<(), BoxError>> + Send,
    {
        let _idle = IdleInTheEnd(self);
        let mut work = Work {
            feed: self,
            apply,
            pause: Pause::default(),
            told: i64::MIN,
        };
        loop {
            self.inner.health.set_role(Role::Connecting);
            let Err(error) = Box::pin(work.session()).await;
            add(&self.inner.health.lost_connections, 1);
            self.not_going_on(&error.in_full());
            work.rest().await;
        }
    }

    fn not_going_on(&self, why: &str) {
        if self.inner.health.set_problem(Some(why.to_owned())) {
            tracing::warn!("larder feed of `{}`: {why}", self.inner.config.namespace);
        }
    }

    fn going_on(&self) {
        if self.inner.health.set_problem(None) {
            tracing::info!("larder feed of `{}` goes on", self.inner.config.namespace);
        }
    }
}

/// A follower whose future is dropped does nothing from then on.
struct IdleInTheEnd<'a>(&'a Feed);

impl Drop for IdleInTheEnd<'_> {
    fn drop(&mut self) {
        self.0.inner.health.set_role(Role::Idle);
    }
}

/// How a round over the outbox ended.
enum Round {
    /// Everything that could be read was applied. The next round begins at this transaction.
    Done { next: u64 },
    /// A batch could not be applied; all of it is still there.
    NotApplied,
}

/// How the rows of a page ended.
enum Applied {
    AndRemoved,
    /// Another follower is removing some, and may yet fail to.
    AndLeft,
    Not,
}

struct Work<'a, F> {
    feed: &'a Feed,
    apply: F,
    pause: Pause,
    /// The last unreadable change that was complained of. They stay, and are read again.
    told: i64,
}

impl<F, Fut> Work<'_, F>
where
    F: FnMut(Vec<Invalidation>) -> Fut + Send,
    Fut: Future<Output = Result<(), BoxError>> + Send,
{
    /// One connection, from its beginning to the error that ends it.
    async fn session(&mut self) -> Result<Infallible> {
        let mut link = Link::open(self.feed).await?;
        self.stand_by(&mut link).await?;
        // Whatever is committed from here on is heard of, and whatever was before is read.
        link.listen().await?;
        self.feed.inner.health.set_role(Role::Following);
        self.lead(&mut link).await
    }

    /// Waits for the lock. Whoever holds it without getting on loses it.
    async fn stand_by(&mut self, link: &mut Link<'_>) -> Result<()> {
        let options = &self.feed.inner.config.follow;
        let mut watch = Watch::default();
        let mut from = 0;
        loop {
            if link.claim().await? {
                return Ok(());
            }
            self.feed.inner.health.set_role(Role::StandingBy);
            self.feed.going_on();
            let page = link.read(Position::before(from), options.batch).await?;
            let readable = |row: &&Waiting| row.change != Change::Unreadable;
            let head = page.rows.iter().find(readable).map(|row| row.position);
            if head.is_none() {
                from = page.horizon;
            }
            let now = self.feed.inner.clock.monotonic();
            if watch.is_stalled(head, now, options.stalled_after) {
                tracing::warn!("larder feed: the one that follows hangs; taking over");
                link.evict().await?;
                self.round(link, from).await?;
            }
            self.feed.inner.clock.sleep(options.poll).await;
        }
    }

    async fn lead(&mut self, link: &mut Link<'_>) -> Result<Infallible> {
        let poll = self.feed.inner.config.follow.poll;
        let mut from = 0;
        loop {
            link.forget_notices();
            match self.round(link, from).await? {
                Round::Done { next } => {
                    self.feed.going_on();
                    self.pause.reset();
                    from = next;
                    link.wait(poll).await?;
                }
                Round::NotApplied => self.rest().await,
            }
        }
    }

    /// Reads the outbox page by page to its end, and applies each page.
    async fn round(&mut self, link: &mut Link<'_>, from: u64) -> Result<Round> {
        let batch = self.feed.inner.config.follow.batch;
        let mut after = Position::before(from);
        let mut next = None;
        loop {
            let page = link.read(after, batch).await?;
            // The horizon of the first page: what ends after it may yet show rows before the second.
            let next = next.get_or_insert(page.horizon);
            let oldest = page.rows.iter().map(|row| row.age).max();
            self.feed.inner.health.set_lag(oldest.unwrap_or_default());
            let is_last = page.rows.len() < batch as usize;
            if let Some(last) = page.rows.last() {
                after = last.position;
            }
            match self.apply(link, page.rows).await? {
                Applied::AndRemoved => {}
                Applied::AndLeft => *next = from,
                Applied::Not => return Ok(Round::NotApplied),
            }
            if is_last {
                return Ok(Round::Done { next: *next });
            }
        }
    }

    /// Applies rows and removes them.
    async fn apply(&mut self, link: &mut Link<'_>, mut rows: Vec<Waiting>) -> Result<Applied> {
        self.set_aside_unreadable(&mut rows);
        if rows.is_empty() {
            return Ok(Applied::AndRemoved);
        }
        let health = &self.feed.inner.health;
        let batch = without_duplicates(&rows);
        let invalidations = batch.len();
        if !batch.is_empty()
            && let Err(error) = self.hand_over(batch).await
        {
            add(&health.not_applied, 1);
            self.feed.not_going_on(&error.in_full());
            return Ok(Applied::Not);
        }
        let removed = link.remove(&rows).await?;
        add(&health.applied, rows.len());
        add(&health.invalidations, invalidations);
        Ok(if removed < rows.len() as u64 {
            Applied::AndLeft
        } else {
            Applied::AndRemoved
        })
    }

    fn set_aside_unreadable(&mut self, rows: &mut Vec<Waiting>) {
        let told = self.told;
        let mut new = 0;
        rows.retain(|row| {
            let unreadable = row.change == Change::Unreadable;
            if unreadable && row.position.id > told {
                new += 1;
                self.told = self.told.max(row.position.id);
            }
            !unreadable
        });
        if new > 0 {
            add(&self.feed.inner.health.unreadable, new);
            tracing::error!(
                "larder feed: {new} changes cannot be read; they stay for a newer larder"
            );
        }
    }

    async fn hand_over(&mut self, batch: Vec<Invalidation>) -> Result<()> {
        let limit = self.feed.inner.config.follow.apply_timeout;
        tokio::select! {
            applied = (self.apply)(batch) => applied.map_err(|error| {
                FeedError::unavailable("changes could not be applied").with_source(error)
            }),
            () = self.feed.inner.clock.sleep(limit) => Err(FeedError::unavailable(format!(
                "changes were not applied within {} ms", limit.as_millis()
            ))),
        }
    }

    async fn rest(&mut self) {
        let most = self.feed.inner.config.follow.max_delay;
        let pause = self.pause.next(most, fastrand::f64());
        self.feed.inner.clock.sleep(pause).await;
    }
}

fn without_duplicates(rows: &[Waiting]) -> Vec<Invalidation> {
    let mut seen = HashSet::new();
    let found = rows.iter().filter_map(|row| match &row.change {
        Change::Invalidate(what) => Some(what),
        Change::Nothing | Change::Unreadable => None,
    });
    found.filter(|what| seen.insert(*what)).cloned().collect()
}

/// How long to wait after failures in a row.
#[derive(Debug, Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    fn reset(&mut self) {
        self.failures = 0;
    }

    /// Twice as long each time, up to `most`; of which at least half, and the rest by `chance`,
    /// from 0 to 1, so that many who lost one server do not come back all at once.
    fn next(&mut self, most: Duration, chance: f64) -> Duration {
        let doubled = FIRST_DELAY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled
            .min(most)
            .mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }
}

/// Sees from outside whether the one that follows gets on: its work begins with the oldest change.
#[derive(Debug, Default)]
struct Watch {
    head: Option<(Position, Millis)>,
}

impl Watch {
    /// Whether the oldest change has been the same for longer than `limit`. Answers so once, and
    /// then only after as long again.
    fn is_stalled(&mut self, head: Option<Position>, now: Millis, limit: Duration) -> bool {
        let (Some(head), Some((known, since))) = (head, self.head) else {
            self.head = head.map(|head| (head, now));
            return false;
        };
        if head != known {
            self.head = Some((head, now));
            return false;
        }
        let stalled = u128::from(now.saturating_sub(since)) > limit.as_millis();
        if stalled {
            self.head = None;
        }
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(transaction: u64) -> Option<Position> {
        Some(Position { transaction, id: 1 })
    }

    #[test]
    fn only_a_head_that_does_not_move_is_stalled() {
        let limit = Duration::from_millis(3_000);
        let mut watch = Watch::default();
        let mut look = |head, now| watch.is_stalled(head, now, limit);
        assert!(!look(None, 0) && !look(None, 9_000));
        assert!(!look(at(1), 10_000) && !look(at(1), 13_000));
        assert!(!look(at(2), 13_001), "it got on");
        assert!(!look(at(2), 16_001));
        assert!(look(at(2), 16_002));
        assert!(!look(at(2), 16_003), "said once");
        assert!(!look(None, 17_000) && !look(at(2), 30_000));
    }

    #[test]
    fn pauses_grow_to_their_bound_and_start_over() {
        let most = Duration::from_millis(100);
        let mut pause = Pause::default();
        let mut grown: Vec<u128> = (0..6).map(|_| pause.next(most, 1.0).as_millis()).collect();
        pause.reset();
        grown.push(pause.next(most, 0.0).as_millis());
        assert_eq!(grown, [10, 20, 40, 80, 100, 100, 5]);
        for _ in 0..100 {
            assert!(pause.next(most, 0.5) <= most);
        }
    }

    #[test]
    fn a_batch_names_each_thing_once() {
        let row = |id, change| Waiting {
            position: Position { transaction: 1, id },
            change,
            age: Duration::ZERO,
        };
        let tag = |tag: &str| Change::Invalidate(Invalidation::tag(tag));
        let rows = [
            row(1, tag("a")),
            row(2, Change::Nothing),
            row(3, tag("b")),
            row(4, tag("a")),
        ];
        let expected = ["a", "b"].map(Invalidation::tag);
        assert_eq!(without_duplicates(&rows), expected);
    }
}
