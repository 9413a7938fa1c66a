//! Decisions about one entry, as pure functions: no I/O, no clock, no randomness.

use std::time::Duration;

use crate::clock::{Millis, millis};
use crate::entry::{Slide, Times};
use crate::fence::Standing;
use crate::options::{Early, LONGEST, Rules, lifetime};

/// What a read does with the entry that memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Fresh: serve it.
    Serve,
    /// Within grace: serve it, and have one load refresh it in the background.
    ServeAndRefresh,
    /// Stale, and the last load failed a moment ago: serve it and leave the source alone.
    ServeStale,
    /// Look further. The entry may still stand in if everything else fails.
    Fetch,
    /// Look further, and never use the entry: it was invalidated, or its time is over.
    Forget,
}

/// Decides on an entry.
#[inline]
pub(crate) fn decide(
    times: &Times,
    standing: Standing,
    now: Millis,
    max_stale: Option<Duration>,
) -> Decision {
    match standing {
        Standing::Current => {}
        Standing::Suspect if now < times.dies_at() => return Decision::Fetch,
        Standing::Suspect | Standing::Gone => return Decision::Forget,
    }
    if now < times.serve_until {
        return Decision::Serve;
    }
    if now >= times.dies_at() {
        return Decision::Forget;
    }
    if max_stale.is_some_and(|most| times.staleness(now) > millis(most)) {
        return Decision::Fetch;
    }
    let throttled = now < times.retry_at;
    if throttled {
        Decision::ServeStale
    } else if !times.is_fresh(now) && now < times.grace_until {
        Decision::ServeAndRefresh
    } else {
        Decision::Fetch
    }
}

/// Whether a fresh entry is refreshed all the same, so that nobody has to wait when its time ends.
///
/// `draw` is uniform in (0, 1]. The second half is XFetch: refresh if `now - δ·β·ln(draw)` is the end
/// or behind it, where δ is the measured time of the load (Vattani, Chierichetti, Lowenstein, VLDB
/// 2015).
pub(crate) fn is_due(
    early: Early,
    times: &Times,
    load_ms: u32,
    now: Millis,
    draw: impl FnOnce() -> f64,
) -> bool {
    if now < times.retry_at {
        return false;
    }
    let whole = times.fresh_until.saturating_sub(times.created) as f64;
    let left = times.fresh_until.saturating_sub_unsigned(now) as f64;
    if whole - left >= whole * early.share {
        return true;
    }
    let reach = f64::from(load_ms) * early.beta;
    // No draw of 53 bits has a logarithm beyond that.
    left <= reach * LONGEST_REACH && reach * -draw().ln() >= left
}

/// The times that a read gives to a fresh entry which slides; `None` where it leaves them as they are.
///
/// They move by at least a tenth of the idle time, so that hits seldom write, or to the end of all.
pub(crate) fn renewed(times: &Times, slide: Slide, now: Millis) -> Option<Times> {
    if !times.is_fresh(now) || slide.was_just_read(times.fresh_until, now) {
        return None;
    }
    let fresh_until = slide.fresh_until(now);
    (fresh_until > times.fresh_until).then(|| Times {
        serve_until: u64::try_from(fresh_until)
            .unwrap_or(0)
            .min(slide.memory_until),
        ..times.ending_at(fresh_until)
    })
}

/// How long a tier keeps an entry that slides, from `now` on and without another read.
///
/// There it dies with its idle time, and has its grace behind the end of all alone: a tier cannot tell
/// when it was read last, so what it kept longer than that would come back as fresh.
pub(crate) fn time_in_tiers(idle: Millis, left: Millis, stale: Millis) -> Millis {
    if idle < left {
        idle
    } else {
        left.saturating_add(stale)
    }
}

/// Above the largest `-ln` of a draw from 53 bits that is not zero, 53 ln 2.
const LONGEST_REACH: f64 = 37.0;

/// A number in (0, 1], uniform.
pub(crate) fn draw() -> f64 {
    1.0 - fastrand::f64()
}

/// Whether a stale entry may stand in for a load that failed.
pub(crate) fn may_stand_in(times: &Times, now: Millis, max_stale: Option<Duration>) -> bool {
    max_stale.is_none_or(|most| times.staleness(now) <= millis(most)) && now < times.dies_at()
}

/// How long an entry lives, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetimes {
    pub fresh: Millis,
    /// Without a read, if reads prolong it and this is shorter than `fresh`.
    pub idle: Option<Millis>,
    /// Behind `fresh`.
    pub grace: Millis,
    /// Behind `fresh`; never shorter than `grace`.
    pub stale: Millis,
}

impl Lifetimes {
    /// The same for an entry made from others that stay fresh so long.
    pub(crate) fn no_longer_than(self, sources: Option<Duration>) -> Self {
        let fresh = sources.map_or(self.fresh, |sources| self.fresh.min(millis(sources)));
        Self {
            fresh,
            idle: self.idle.filter(|idle| *idle < fresh),
            ..self
        }
    }

    /// Of what is not stored.
    pub(crate) const NONE: Self = Self {
        fresh: 0,
        idle: None,
        grace: 0,
        stale: 0,
    };
}

/// What the loader said about lifetimes; it comes before the options of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub ttl: Option<Duration>,
    pub grace: Option<Duration>,
}

/// The lifetimes of a new entry, or `None` if it is not to be stored.
///
/// `draw`, in 0 to 1, is the randomness of the jitter. Jitter only shortens, and never to zero.
pub(crate) fn lifetimes(
    rules: &Rules,
    absent: bool,
    wishes: Wishes,
    draw: f64,
) -> Option<Lifetimes> {
    let by_rule = if absent {
        rules.negative_ttl
    } else {
        rules.ttl
    };
    let ttl = wishes.ttl.map_or(by_rule, lifetime);
    if ttl == 0 {
        return None;
    }
    // What slides ends together at its greatest age, and without reads nobody loads it again.
    let whole = match rules.sliding {
        Some(most) if !absent => most,
        _ => ttl,
    };
    let shortened = if whole == LONGEST {
        whole
    } else {
        shorten(whole, rules, draw).max(1)
    };
    let (grace, stale) = match (absent, wishes.grace.map(lifetime)) {
        (true, _) => (0, 0),
        (false, Some(grace)) => (grace, grace.max(rules.stale)),
        (false, None) => (rules.grace, rules.stale),
    };
    Some(Lifetimes {
        fresh: shortened,
        idle: Some(ttl).filter(|idle| *idle < shortened),
        grace,
        stale,
    })
}

/// Takes the jitter off: a share of the TTL, and a length that has nothing to do with it.
fn shorten(ttl: Millis, rules: &Rules, draw: f64) -> Millis {
    let most = ttl as f64 * rules.jitter + rules.jitter_up_to as f64;
    // The cast saturates, and the product of two non-negative numbers is not negative.
    ttl.saturating_sub((most * draw) as Millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::CacheOptions;

    fn times() -> Times {
        Times {
            created: 0,
            serve_until: 50,
            fresh_until: 100,
            grace_until: 200,
            stale_until: 300,
            retry_at: 0,
        }
    }

    #[test]
    fn each_span_of_an_entrys_life_has_its_decision() {
        use Decision::*;
        for (now, expected) in [
            (0, Serve),
            (49, Serve),
            (50, Fetch),
            (99, Fetch),
            (100, ServeAndRefresh),
            (199, ServeAndRefresh),
            (200, Fetch),
            (299, Fetch),
            (300, Forget),
        ] {
            let decide = |standing| decide(&times(), standing, now, None);
            assert_eq!(decide(Standing::Current), expected, "at {now}");
            assert_eq!(decide(Standing::Gone), Forget, "at {now}");
            let looked_up = if expected == Forget { Forget } else { Fetch };
            assert_eq!(decide(Standing::Suspect), looked_up, "at {now}");
        }
    }

    #[test]
    fn after_a_failed_load_stale_entries_are_served_until_the_next_try() {
        let throttled = Times {
            retry_at: 250,
            ..times()
        };
        assert_eq!(
            decide(&throttled, Standing::Current, 150, None),
            Decision::ServeStale
        );
        assert_eq!(
            decide(&throttled, Standing::Current, 249, None),
            Decision::ServeStale
        );
        assert_eq!(
            decide(&throttled, Standing::Current, 250, None),
            Decision::Fetch
        );
    }

    #[test]
    fn a_caller_may_refuse_what_is_too_stale() {
        let most = Some(Duration::from_millis(20));
        assert_eq!(
            decide(&times(), Standing::Current, 120, most),
            Decision::ServeAndRefresh
        );
        assert_eq!(
            decide(&times(), Standing::Current, 121, most),
            Decision::Fetch
        );
        assert!(may_stand_in(&times(), 120, most));
        assert!(!may_stand_in(&times(), 121, most));
    }

    fn rules(change: impl FnOnce(&mut CacheOptions)) -> Rules {
        let mut options = CacheOptions::default();
        change(&mut options);
        options.check().unwrap()
    }

    #[test]
    fn jitter_only_shortens_and_never_to_nothing() {
        let rules = rules(|o| {
            o.ttl = Some(Duration::from_millis(1000));
            o.jitter = 1.0;
        });
        let fresh = |draw| {
            lifetimes(&rules, false, Wishes::default(), draw)
                .unwrap()
                .fresh
        };
        assert_eq!((fresh(0.0), fresh(0.25), fresh(1.0)), (1000, 750, 1));
    }

    #[test]
    fn a_fixed_spread_shortens_by_a_length_and_adds_to_the_share() {
        let fresh = |ttl, jitter, spread, draw| {
            let rules = rules(|o| {
                o.ttl = ttl;
                o.jitter = jitter;
                o.jitter_up_to = Duration::from_millis(spread);
            });
            let lives = lifetimes(&rules, false, Wishes::default(), draw);
            lives.unwrap().fresh
        };
        let second = Some(Duration::from_secs(1));
        let each = |jitter, spread| [0.0, 0.5, 1.0].map(|draw| fresh(second, jitter, spread, draw));
        assert_eq!(each(0.0, 300), [1000, 850, 700]);
        assert_eq!(each(0.2, 300), [1000, 750, 500]);
        assert_eq!(each(0.0, 1000), [1000, 500, 1]);
        assert_eq!(each(1.0, u64::MAX), [1000, 1, 1]);
        assert_eq!(fresh(None, 0.5, 300, 1.0), LONGEST);
    }

    #[test]
    fn zero_is_not_stored_a_fraction_is_a_millisecond_and_the_longest_is_clamped() {
        let ttl = |ttl| Wishes {
            ttl: Some(ttl),
            ..Wishes::default()
        };
        let rules = rules(|_| {});
        assert_eq!(lifetimes(&rules, false, ttl(Duration::ZERO), 0.0), None);
        assert_eq!(lifetimes(&rules, true, Wishes::default(), 0.0), None);
        let fresh = |wish| lifetimes(&rules, false, wish, 0.5).unwrap().fresh;
        assert_eq!(fresh(ttl(Duration::from_nanos(1))), 1);
        assert_eq!(fresh(ttl(Duration::MAX)), LONGEST);
    }

    /// Filled at zero: an idle time of 100, 1,000 at most, and 600 in memory alone.
    const SLIDE: Slide = Slide {
        idle: 100,
        ends_at: 1_000,
        memory_until: 600,
    };

    fn fresh_until(fresh_until: i64) -> Times {
        Times {
            serve_until: (fresh_until as Millis).min(SLIDE.memory_until),
            fresh_until,
            grace_until: fresh_until as Millis + 10,
            stale_until: fresh_until as Millis + 20,
            ..Times::default()
        }
    }

    #[test]
    fn a_read_moves_all_ends_once_a_tenth_of_the_idle_time_is_over() {
        let read = |ends, now| renewed(&fresh_until(ends), SLIDE, now);
        assert_eq!(read(100, 9), None);
        assert_eq!(read(100, 10), Some(fresh_until(110)));
        assert_eq!(read(100, 99), Some(fresh_until(199)));
        assert_eq!(read(100, 100), None, "stale");
        assert_eq!(
            read(560, 550).unwrap().serve_until,
            600,
            "as long as memory may"
        );
        assert_eq!(
            read(960, 950),
            Some(fresh_until(1_000)),
            "to its greatest age"
        );
        assert_eq!(read(1_000, 950), None);
        assert_eq!(read(1_000, 999), None);
    }

    #[test]
    fn times_of_a_millisecond_slide_too() {
        let slide = Slide { idle: 1, ..SLIDE };
        assert_eq!(renewed(&fresh_until(1), slide, 0), None);
        let slide = Slide { idle: 2, ..SLIDE };
        assert_eq!(renewed(&fresh_until(2), slide, 1), Some(fresh_until(3)));
    }

    #[test]
    fn a_tier_keeps_what_slides_for_its_idle_time_and_its_grace_at_the_end_alone() {
        assert_eq!(time_in_tiers(100, 1_000, 50), 100);
        assert_eq!(time_in_tiers(100, 101, 50), 100);
        assert_eq!(time_in_tiers(100, 100, 50), 150);
        assert_eq!(time_in_tiers(100, 10, 50), 60);
        assert_eq!(time_in_tiers(100, 10, Millis::MAX), Millis::MAX);
    }

    #[test]
    fn what_slides_has_its_idle_time_and_jitter_on_its_greatest_age() {
        let rules = rules(|o| {
            o.ttl = Some(Duration::from_millis(100));
            o.sliding = Some(Duration::from_millis(1_000));
            o.jitter_up_to = Duration::from_millis(950);
            o.negative_ttl = Duration::from_millis(100);
        });
        let lives = |ttl: Option<u64>, draw| {
            let ttl = ttl.map(Duration::from_millis);
            let wishes = Wishes { ttl, grace: None };
            let lives = lifetimes(&rules, false, wishes, draw).unwrap();
            (lives.fresh, lives.idle)
        };
        assert_eq!(lives(None, 0.0), (1_000, Some(100)));
        assert_eq!(lives(None, 0.5), (525, Some(100)));
        assert_eq!(lives(None, 1.0), (50, None), "over before it could be idle");
        assert_eq!(lives(Some(200), 0.0), (1_000, Some(200)));
        assert_eq!(lives(Some(2_000), 0.0), (1_000, None));
        let absent = lifetimes(&rules, true, Wishes::default(), 0.0).unwrap();
        assert_eq!((absent.fresh, absent.idle), (100, None));
        let whole = lifetimes(&rules, false, Wishes::default(), 0.0).unwrap();
        let of_sources = whole.no_longer_than(Some(Duration::from_millis(60)));
        assert_eq!((of_sources.fresh, of_sources.idle), (60, None));
    }

    const TTL: Millis = 100_000;
    const LOAD: u32 = 1_000;

    fn filled_at_zero() -> Times {
        Times {
            serve_until: TTL,
            fresh_until: TTL as i64,
            grace_until: TTL,
            stale_until: TTL,
            ..Times::default()
        }
    }

    /// How many requests decide for a recomputation around one expiry, if nobody knows of the
    /// others: from the first one on, for as long as its load takes, others may decide so as well.
    fn recomputations(beta: f64, requests_per_load: u32, rng: &mut fastrand::Rng) -> u32 {
        let (times, early) = (filled_at_zero(), Early { share: 1.0, beta });
        let step = f64::from(LOAD) / f64::from(requests_per_load);
        let (mut decided, mut until) = (0, f64::INFINITY);
        let mut now = TTL as f64 - 12.0 * f64::from(LOAD) * beta;
        while now < until {
            let asked = now as Millis;
            let over = asked >= TTL;
            if over || is_due(early, &times, LOAD, asked, || 1.0 - rng.f64()) {
                decided += 1;
                until = until.min(now + f64::from(LOAD));
            }
            now += step;
        }
        decided
    }

    /// Vattani et al.: with δ the time of the load, e^(1/β) recomputations per expiry in the mean,
    /// however many requests there are.
    #[test]
    fn xfetch_recomputes_as_often_as_its_authors_say() {
        for (beta, expected) in [(1.0, 1.0f64.exp()), (2.0, 0.5f64.exp())] {
            for requests_per_load in [500, 5_000] {
                let mut rng = fastrand::Rng::with_seed(7);
                let rounds = 400_000 / requests_per_load + 300;
                let all: u32 = (0..rounds)
                    .map(|_| recomputations(beta, requests_per_load, &mut rng))
                    .sum();
                let mean = f64::from(all) / f64::from(rounds);
                let off = (mean / expected - 1.0).abs();
                assert!(
                    off < 0.1,
                    "β {beta}, {requests_per_load}: {mean} for {expected}"
                );
            }
        }
    }

    #[test]
    fn xfetch_never_fires_where_no_draw_could_reach() {
        let early = Early {
            share: 1.0,
            beta: 1.0,
        };
        let times = filled_at_zero();
        let smallest = || f64::EPSILON / 2.0;
        assert!(!is_due(
            early,
            &times,
            LOAD,
            TTL - 38_000,
            || unreachable!()
        ));
        assert!(is_due(early, &times, LOAD, TTL - 36_000, smallest));
        assert!(!is_due(early, &times, LOAD, TTL - 1, || 1.0));
        assert!(!is_due(early, &times, 0, TTL - 1, smallest));
    }

    #[test]
    fn an_eager_share_counts_from_the_fill_and_waits_for_its_pause() {
        let early = Early {
            share: 0.8,
            beta: 0.0,
        };
        let mut times = filled_at_zero();
        assert!(!is_due(early, &times, LOAD, 79_999, || 1.0));
        assert!(is_due(early, &times, LOAD, 80_000, || 1.0));
        times.retry_at = 85_000;
        assert!(!is_due(early, &times, LOAD, 84_999, || 1.0));
        assert!(is_due(early, &times, LOAD, 85_000, || 1.0));
    }
}
