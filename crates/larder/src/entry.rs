//! An entry as the memory tier holds it and as reads pass it on.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::clock::{Clock, Millis};
use crate::envelope::{Header, Label};
use crate::options::LONGEST;
use crate::policy::{self, Lifetimes};
use crate::tags::Tag;

/// An entry in memory. Cloning it copies times and two pointers.
///
/// What hits read lies together, in front; in large tables every cache line counts.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Held<V> {
    /// `None` says "there is no such value", and is an entry like any other.
    pub value: Option<Arc<V>>,
    /// The epoch of its fill, or of the last time when somebody looked at it closely.
    pub stamp: AtomicU64,
    pub times: Times,
    /// How long the load took, in milliseconds, up to 49 days.
    pub load_ms: u32,
    /// The length of the encoded value, in bytes; zero where it was never encoded.
    pub encoded_len: u32,
    /// The id of its fill, which the tiers have in front of their copies; `None` if none has one.
    pub fill_id: Option<FillId>,
    /// What few entries have: kept apart, so that the others do not pay for it.
    pub details: Option<Arc<Details>>,
}

/// Half of the random id of a fill, which is enough to tell it from the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FillId(NonZeroU64);

impl FillId {
    pub(crate) fn of(id: &[u8; 16]) -> Self {
        let half = id.first_chunk().map_or(0, |half| u64::from_be_bytes(*half));
        Self(NonZeroU64::new(half).unwrap_or(NonZeroU64::MAX))
    }
}

/// The rarely needed part of an entry.
#[derive(Debug, Default)]
pub(crate) struct Details {
    pub version: Option<u64>,
    pub etag: Option<Box<str>>,
    pub last_modified: Option<u64>,
    /// How reads prolong it, if they do.
    pub slide: Option<Slide>,
    /// Without that of the cache, which all its entries have.
    pub tags: Box<[Arc<Tag>]>,
}

impl Details {
    /// The details of a new entry; most have none.
    pub(crate) fn of(
        label: Label,
        tags: Box<[Arc<Tag>]>,
        slide: Option<Slide>,
    ) -> Option<Arc<Self>> {
        let Label {
            version,
            etag,
            last_modified,
            ..
        } = label;
        let plain =
            version.is_none() && etag.is_none() && last_modified.is_none() && slide.is_none();
        (!plain || !tags.is_empty()).then(|| {
            Arc::new(Self {
                version,
                etag,
                last_modified,
                slide,
                tags,
            })
        })
    }
}

/// How reads prolong an entry, as one process holds it. By the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slide {
    /// How long it lives without a read.
    pub idle: Millis,
    /// Until then at most, however often it is read.
    pub ends_at: i64,
    /// Until then memory may serve it without asking the tiers below.
    pub memory_until: Millis,
}

impl Slide {
    /// The slide of an entry that came now and may be fresh for so long. It may have less time left
    /// than a read would give it.
    pub(crate) fn from_now(
        now: Millis,
        idle: Option<Millis>,
        fresh: Millis,
        memory_ttl: Millis,
    ) -> Option<Self> {
        Some(Self {
            idle: idle.filter(|_| fresh > 0)?,
            ends_at: now.saturating_add(fresh) as i64,
            memory_until: now.saturating_add(memory_ttl),
        })
    }

    /// Whether an entry that is fresh until then was read less than a tenth of its idle time ago.
    pub(crate) fn was_just_read(self, fresh_until: i64, now: Millis) -> bool {
        let tenth = (self.idle / 10).max(1);
        until(fresh_until, now) > self.idle.saturating_sub(tenth)
    }

    /// Until when an entry is fresh that is read now.
    pub(crate) fn fresh_until(self, now: Millis) -> i64 {
        (now.saturating_add(self.idle) as i64).min(self.ends_at)
    }
}

/// When an entry becomes what. All by the monotonic clock, and from what [`Clock::recent`] says, which
/// hits ask: they never see anything fresh that ended before. 64 bits of milliseconds never wrap.
/// What may lie before this process began is signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Times {
    /// Until then a hit needs no thought: the earlier of fresh-until and the memory TTL.
    pub serve_until: Millis,
    /// Until then the value is fresh. What came stale from a tier was fresh until some time ago.
    pub fresh_until: i64,
    /// When the value was filled.
    pub created: i64,
    /// Until then it is served while one load refreshes it.
    pub grace_until: Millis,
    /// Until then it may stand in for a failed load.
    pub stale_until: Millis,
    /// Not before then is the next load tried, after one that failed.
    pub retry_at: Millis,
}

/// What a read tells of an entry's life, by the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lived {
    /// When the value was filled.
    created: i64,
    /// Until when it is fresh, or was.
    fresh_until: i64,
    /// How long the load took that filled it, in milliseconds.
    load_ms: u32,
}

impl<V> Clone for Held<V> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            times: self.times,
            stamp: AtomicU64::new(self.stamp()),
            load_ms: self.load_ms,
            encoded_len: self.encoded_len,
            fill_id: self.fill_id,
            details: self.details.clone(),
        }
    }
}

impl<V> Held<V> {
    /// A value that is no entry: nobody loaded it, and nobody keeps it.
    pub(crate) fn of_nothing(value: V) -> Self {
        Self {
            value: Some(Arc::new(value)),
            times: Times::default(),
            stamp: AtomicU64::new(u64::MAX),
            load_ms: 0,
            encoded_len: 0,
            fill_id: None,
            details: None,
        }
    }

    pub(crate) fn stamp(&self) -> u64 {
        // Whoever reads a stamp too old looks at the entry once more.
        self.stamp.load(Relaxed)
    }

    /// Notes that nothing happened to the entry up to `epoch`.
    pub(crate) fn stamp_anew(&self, epoch: u64) {
        self.stamp.store(epoch, Relaxed);
    }

    #[inline]
    pub(crate) fn lived(&self) -> Lived {
        Lived {
            created: self.times.created,
            fresh_until: self.times.fresh_until,
            load_ms: self.load_ms,
        }
    }

    /// Whether both are of one fill.
    pub(crate) fn is_same_fill(&self, other: &Self) -> bool {
        match (self.fill_id, other.fill_id) {
            (Some(mine), Some(other)) => mine == other,
            _ => self.times.created == other.times.created,
        }
    }

    /// Whether this was filled after the other one, as far as versions and, where they say nothing,
    /// clocks can tell.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        let (mine, others) = [self, other]
            .map(|held| (held.version(), held.times.created))
            .into();
        !self.is_same_fill(other) && mine > others
    }

    /// The tags of the entry, without that of its cache.
    pub(crate) fn tags(&self) -> &[Arc<Tag>] {
        self.details.as_ref().map_or(&[], |details| &details.tags)
    }

    /// How reads prolong the entry, if they do.
    #[inline]
    pub(crate) fn slide(&self) -> Option<Slide> {
        self.details.as_ref()?.slide
    }

    /// The times by which an early refresh goes: those of an entry that nobody needs to prolong.
    #[inline]
    pub(crate) fn times_of_all(&self) -> Times {
        let fresh_until = self
            .slide()
            .map_or(self.times.fresh_until, |slide| slide.ends_at);
        Times {
            fresh_until,
            ..self.times
        }
    }

    /// How long a tier keeps the entry from now on, without another read.
    pub(crate) fn left_in_tiers(&self, now: Millis) -> Millis {
        let of_sliding = |slide: Slide| {
            let left = until(slide.ends_at, now);
            policy::time_in_tiers(slide.idle, left, self.times.stale_for())
        };
        let plain = || self.times.dies_at().saturating_sub(now);
        self.slide().map_or_else(plain, of_sliding)
    }

    /// The version that the loader gave, or zero.
    pub(crate) fn version(&self) -> u64 {
        let version = self.details.as_ref().and_then(|details| details.version);
        version.unwrap_or(0)
    }

    /// Whether an entry of so high a version, zero for none, may take the place of this one.
    pub(crate) fn gives_way_to(&self, version: u64) -> bool {
        version == 0 || version >= self.version()
    }
}

#[cfg(test)]
impl<V> Held<V> {
    pub(crate) fn tagged(value: V, stamp: u64, tags: Box<[Arc<Tag>]>) -> Self {
        let details = Details {
            tags,
            ..Details::default()
        };
        Self {
            value: Some(Arc::new(value)),
            times: Times::default(),
            stamp: AtomicU64::new(stamp),
            load_ms: 0,
            encoded_len: 0,
            fill_id: None,
            details: Some(Arc::new(details)),
        }
    }
}

impl Times {
    /// The times of a value filled now.
    pub(crate) fn from_now(now: Millis, lives: Lifetimes, memory_ttl: Millis) -> Self {
        let fresh_until = now.saturating_add(lives.idle.unwrap_or(lives.fresh));
        Self {
            created: now as i64,
            serve_until: fresh_until.min(now.saturating_add(memory_ttl)),
            fresh_until: fresh_until as i64,
            grace_until: fresh_until.saturating_add(lives.grace),
            stale_until: fresh_until.saturating_add(lives.stale),
            retry_at: 0,
        }
    }

    /// The times of a value that a tier held, and how reads prolong it. That a tier still had it was
    /// a read of it.
    ///
    /// Wall times become monotonic ones by what is left of them. What the header says, which
    /// anybody who can write to the store may have changed, can only shorten what the checksummed
    /// creation time and lifetimes leave.
    pub(crate) fn from_envelope(
        clock: &dyn Clock,
        header: &Header,
        label: &Label,
        memory_ttl: Millis,
    ) -> (Self, Option<Slide>) {
        let (now, wall) = (clock.recent(), clock.wall());
        let age = wall.saturating_sub(label.created);
        let fresh_left = if header.expired {
            0
        } else {
            let by_header = header.fresh_until.saturating_sub(wall);
            by_header.min(label.fresh_for.min(LONGEST).saturating_sub(age))
        };
        // How long ago freshness ended, so that grace counts from that moment.
        let behind = wall
            .saturating_sub(header.fresh_until)
            .max(age.saturating_sub(label.fresh_for));
        let all_left = header.stale_until.saturating_sub(wall);
        let idle = label.idle_for.map(|idle| idle.max(1));
        let slide = Slide::from_now(now, idle, fresh_left, memory_ttl);
        let fresh_left = slide.map_or(fresh_left, |slide| slide.idle.min(fresh_left));
        let until = |length: Millis| {
            let left = fresh_left.saturating_add(length.min(LONGEST).saturating_sub(behind));
            now.saturating_add(left.min(all_left))
        };
        let times = Self {
            created: (now as i64).saturating_sub_unsigned(age),
            serve_until: now.saturating_add(fresh_left.min(memory_ttl)),
            fresh_until: (now.saturating_add(fresh_left) as i64).saturating_sub_unsigned(behind),
            grace_until: until(label.grace_for),
            stale_until: until(label.stale_for),
            retry_at: 0,
        };
        (times, slide)
    }

    /// The same entry where its freshness ends at another time, grace and all with it.
    pub(crate) fn ending_at(self, fresh_until: i64) -> Self {
        let moved = |until: Millis| {
            let gained = fresh_until.saturating_sub(self.fresh_until);
            until.saturating_add_signed(gained)
        };
        Self {
            serve_until: self
                .serve_until
                .min(u64::try_from(fresh_until).unwrap_or(0)),
            fresh_until,
            grace_until: moved(self.grace_until),
            stale_until: moved(self.stale_until),
            ..self
        }
    }

    /// How long behind its freshness the entry may be used at all.
    pub(crate) fn stale_for(&self) -> Millis {
        until(
            self.stale_until as i64,
            u64::try_from(self.fresh_until).unwrap_or(0),
        )
    }

    /// The same entry where it lasts for its whole TTL, as in the tiers below memory.
    pub(crate) fn without_memory_ttl(self) -> Self {
        Self {
            serve_until: u64::try_from(self.fresh_until).unwrap_or(0),
            ..self
        }
    }

    /// The same entry, stale from `now` on.
    pub(crate) fn expired(self, now: Millis) -> Self {
        let lost = self.fresh_left(now);
        Self {
            serve_until: self.serve_until.min(now),
            fresh_until: self.fresh_until.min(now as i64),
            grace_until: self.grace_until.saturating_sub(lost),
            stale_until: self.stale_until.saturating_sub(lost),
            // Whoever expires an entry knows more than the load that failed.
            retry_at: 0,
            ..self
        }
    }

    /// How long the value stays fresh.
    pub(crate) fn remaining(&self, now: Millis) -> Duration {
        Duration::from_millis(self.fresh_left(now))
    }

    pub(crate) fn is_fresh(&self, now: Millis) -> bool {
        self.fresh_left(now) > 0
    }

    /// How long ago the value ceased to be fresh, in milliseconds; zero while it is.
    pub(crate) fn staleness(&self, now: Millis) -> Millis {
        if self.is_fresh(now) {
            return 0;
        }
        // In the millisecond in which its time ends it is stale already.
        since(self.fresh_until, now).max(1)
    }

    /// When the memory tier may drop the entry.
    pub(crate) fn dies_at(&self) -> Millis {
        self.stale_until
    }

    fn fresh_left(&self, now: Millis) -> Millis {
        until(self.fresh_until, now)
    }
}

impl Lived {
    /// Whether this is said of an entry that was filled when `held` was.
    pub(crate) fn is_of<V>(&self, held: &Held<V>) -> bool {
        self.created == held.times.created
    }

    /// How long ago the value was filled.
    pub(crate) fn age(&self, now: Millis) -> Duration {
        Duration::from_millis(since(self.created, now))
    }

    /// How long the value stays fresh.
    pub(crate) fn remaining(&self, now: Millis) -> Duration {
        Duration::from_millis(until(self.fresh_until, now))
    }

    /// How long the load took that filled it; `None` if it was set by hand.
    pub(crate) fn load_time(&self) -> Option<Duration> {
        (self.load_ms > 0).then(|| Duration::from_millis(self.load_ms.into()))
    }
}

/// How long after `now` it will be `then`; zero if that is over.
fn until(then: i64, now: Millis) -> Millis {
    u64::try_from(then).unwrap_or(0).saturating_sub(now)
}

/// How long before `now` it was `then`; zero if that is still to come.
fn since(then: i64, now: Millis) -> Millis {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    u64::try_from(now.saturating_sub(then)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::BoxFuture;

    #[derive(Debug)]
    struct At(Millis, Millis);

    impl Clock for At {
        fn monotonic(&self) -> Millis {
            self.0
        }

        fn wall(&self) -> Millis {
            self.1
        }

        fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    fn header(fresh_until: Millis, stale_until: Millis) -> Header {
        Header {
            fresh_until,
            stale_until,
            ..Header::minimum(0)
        }
    }

    /// Created at wall 10,000, fresh for 100, in grace for 50 more, usable for 80 more.
    fn label() -> Label {
        Label {
            created: 10_000,
            fresh_for: 100,
            grace_for: 50,
            stale_for: 80,
            ..Label::default()
        }
    }

    fn read(wall: Millis, header: &Header) -> (i64, Millis, Millis) {
        let (times, _) = Times::from_envelope(&At(500, wall), header, &label(), Millis::MAX);
        (times.fresh_until, times.grace_until, times.stale_until)
    }

    #[test]
    fn what_is_left_of_an_entry_is_what_its_wall_times_leave() {
        let whole = header(10_100, 10_180);
        assert_eq!(read(10_000, &whole), (600, 650, 680));
        assert_eq!(read(10_060, &whole), (540, 590, 620));
        assert_eq!(read(10_120, &whole), (480, 530, 560));
        assert_eq!(read(10_200, &whole), (400, 500, 500));
    }

    #[test]
    fn what_was_made_stale_by_hand_is_stale_whoever_s_clock_was_ahead() {
        // Expired at 10,010 by a clock that is 30 ahead of the one that reads.
        let expired = header(10_100, 10_180).expired_at(10_010);
        assert_eq!(read(9_980, &expired), (500, 550, 580));
        assert_eq!(read(10_010, &expired), (500, 550, 580));
        assert_eq!(read(10_030, &expired), (480, 530, 560));
        // By one that is ahead of the end of the entry.
        let expired = header(10_100, 10_180).expired_at(20_000);
        assert_eq!(read(10_060, &expired), (500, 550, 580));
    }

    #[test]
    fn what_slides_lives_for_its_idle_time_within_its_greatest_age() {
        let label = Label {
            idle_for: Some(30),
            ..label()
        };
        let header = header(10_100, 10_180);
        let read = |wall, header: &Header| {
            let (times, slide) = Times::from_envelope(&At(500, wall), header, &label, 20);
            let ends = (times.fresh_until, times.grace_until, times.stale_until);
            (times.serve_until, ends, slide.map(|slide| slide.ends_at))
        };
        assert_eq!(read(10_000, &header), (520, (530, 580, 610), Some(600)));
        assert_eq!(read(10_060, &header), (520, (530, 580, 610), Some(540)));
        assert_eq!(read(10_085, &header), (515, (515, 565, 595), Some(515)));
        // Stale, by its age or by hand, it does not slide.
        assert_eq!(read(10_120, &header), (500, (480, 530, 560), None));
        let expired = header.expired_at(10_010);
        assert_eq!(read(10_010, &expired), (500, (500, 550, 580), None));
    }

    #[test]
    fn a_header_can_shorten_an_entrys_life_and_not_extend_it() {
        assert_eq!(read(10_060, &header(10_070, 10_075)), (510, 515, 515));
        let forged = header(Millis::MAX, Millis::MAX);
        assert_eq!(read(10_060, &forged), (540, 590, 620));
        assert_eq!(read(10_120, &forged), (480, 530, 560));
        assert_eq!(read(10_500, &forged), (100, 500, 500));
        let refreshed = header(10_499, Millis::MAX);
        assert_eq!(read(10_500, &refreshed), (100, 500, 500));
    }
}
