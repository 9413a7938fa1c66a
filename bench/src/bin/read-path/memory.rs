//! Reads that memory answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use larder::{Cache, Larder, Loaded};
use larder_bench::Result;
use larder_bench::report::Row;
use larder_bench::rounds::{Measuring, Times, interleave, median_in_task};
use larder_bench::several_tiers::{Cachet, Hitbox, MultiTier};
use larder_bench::workload::{self, Page};

use crate::Subjects;

/// Reads per round.
const READS: usize = 500_000;
/// The same of those who take microseconds.
const SLOW_READS: usize = 50_000;
/// Reads timed together, since one takes no longer than looking at the clock does.
pub(crate) const TOGETHER: usize = 1_000;
/// What larder is held to, in times of what is written by hand.
const BY_HAND: f64 = 0.35;
/// The same in nanoseconds.
const NANOSECONDS: f64 = 80.0;
/// What tags may cost, and what it may cost that something was invalidated.
const TAGS: f64 = 1.10;

/// Reads drawn keys, and gives what one read took for every [`TOGETHER`] of them. A macro, because
/// what is timed must not pay for a closure that returns a boxed future. Nothing is to be loaded.
macro_rules! reads {
    ($count:expr, $keys:expr, $between:block, |$key:ident| $read:expr) => {{
        let (keys, draws): (Arc<[String]>, _) = ($keys, workload::zipf($count));
        Box::pin(median_in_task(async move {
            let mut took = Vec::with_capacity(draws.len() / TOGETHER);
            for chunk in draws.chunks_exact(TOGETHER) {
                $between
                let started = Instant::now();
                for &number in chunk {
                    let $key = &keys[number];
                    $read.await?;
                }
                took.push(started.elapsed() / TOGETHER as u32);
            }
            Ok(took)
        }))
    }};
}

/// The loader of a key that is held, so that none should be asked for it.
fn nowhere() -> Result<Page> {
    Err("a resident key was to be loaded".into())
}

/// The same where it may be: on a machine that stalls, so that heartbeats of the bus come late, larder
/// asks Redis whether what it holds is still true, and on one that stalls once more a loader.
fn counted(loads: &AtomicUsize) -> Result<Page> {
    loads.fetch_add(1, Ordering::Relaxed);
    Ok(Page::of(0))
}

pub(crate) async fn rows(subjects: &Subjects) -> Result<Vec<Row>> {
    let mut rows = hits(subjects).await?;
    rows.extend(tagged(&subjects.keys).await?);
    Ok(rows)
}

/// Hits of larder, by hand, and of other caches of several tiers.
async fn hits(subjects: &Subjects) -> Result<Vec<Row>> {
    let keys = || subjects.keys.clone();
    let (hitbox, multi_tier, cachet) = others(&subjects.keys).await?;
    let by_hand = || -> Measuring {
        let cache = subjects.hand_written.clone();
        reads!(READS, keys(), {}, |key| cache
            .get_or_load(key, async || nowhere()))
    };
    let loads = Arc::new(AtomicUsize::new(0));
    let larder = || -> Measuring {
        let (cache, loads) = (subjects.larder.clone(), loads.clone());
        reads!(READS, keys(), {}, |key| {
            let loads = &loads;
            cache.get_or_load(key, |_| {
                let loads = Arc::clone(loads);
                async move { counted(&loads) }
            })
        })
    };
    let hitbox = || -> Measuring {
        let cache = hitbox.clone();
        reads!(SLOW_READS, keys(), {}, |key| cache
            .get_or_load(key, async { nowhere() }))
    };
    let multi_tier = || -> Measuring {
        let cache = multi_tier.clone();
        reads!(SLOW_READS, keys(), {}, |key| cache
            .get_or_load(key, async { nowhere() }))
    };
    let cachet = || -> Measuring {
        let cache = cachet.clone();
        reads!(SLOW_READS, keys(), {}, |key| cache
            .get_or_load(key, async { nowhere() }))
    };
    let contenders: [&dyn Fn() -> Measuring; 5] =
        [&by_hand, &larder, &hitbox, &multi_tier, &cachet];
    let [by_hand, larder, hitbox, multi_tier, cachet] = interleave(contenders).await?;
    let beside = |name: &str, times: &Times, limit| {
        Row::ratio(
            format!("memory hit, {name} to by hand"),
            times,
            &by_hand,
            limit,
        )
    };
    Ok(vec![
        Row::times("memory hit, moka + redis-rs by hand", &by_hand)?,
        Row::times_within("memory hit, larder", &larder, NANOSECONDS)?,
        beside("larder", &larder, Some(BY_HAND))?,
        Row::count(
            "memory hits that became loads, larder",
            loads.load(Ordering::Relaxed),
            Some(0),
        ),
        beside("hitbox", &hitbox, None)?,
        beside("multi-tier-cache", &multi_tier, None)?,
        beside("cachet", &cachet, None)?,
    ])
}

/// The others, every key resident in all of them.
async fn others(keys: &[String]) -> Result<(Hitbox, MultiTier, Cachet)> {
    let (hitbox, multi_tier) = (Hitbox::default(), MultiTier::new().await?);
    let cachet = Cachet::in_runtime();
    for (number, key) in keys.iter().enumerate() {
        let page = async || Ok(Page::of(number));
        hitbox.get_or_load(key, page()).await?;
        multi_tier.get_or_load(key, page()).await?;
        cachet.get_or_load(key, page()).await?;
    }
    Ok((hitbox, multi_tier, cachet))
}

/// What it costs a hit that its entry has tags, and that others are invalidated.
async fn tagged(keys: &Arc<[String]>) -> Result<Vec<Row>> {
    let larder = Larder::local();
    let cache = |name: &str, tags: &'static [&'static str]| {
        // Twice the room, so that no part of a divided table has to evict.
        let room = 2 * workload::KEYS as u64;
        let cache: Cache<String, Page> = larder.cache(name).capacity(room).in_memory()?;
        for (number, key) in keys.iter().enumerate() {
            let page = Loaded::value(Page::of(number)).tags(tags);
            cache.set_in_memory(key.clone(), page)?;
        }
        Result::Ok(cache)
    };
    let (untagged, tagged) = (cache("untagged", &[])?, cache("tagged", &["one", "two"])?);
    // Somebody has the tag that is invalidated, or nobody would have to look.
    let other = cache("other", &["three"])?;
    let read = |cache: &Cache<String, Page>| -> Measuring {
        let (cache, keys) = (cache.clone(), keys.clone());
        reads!(READS, keys, {}, |key| cache
            .get_or_load(key, |_| async { nowhere() }))
    };
    let plain = || read(&untagged);
    let with_tags = || read(&tagged);
    let after_one = || -> Measuring {
        let (cache, larder, keys) = (tagged.clone(), larder.clone(), keys.clone());
        reads!(
            READS,
            keys,
            {
                let _ = larder.invalidate_tag("three").await?;
            },
            |key| { cache.get_or_load(key, |_| async { nowhere() }) }
        )
    };
    let contenders: [&dyn Fn() -> Measuring; 3] = [&plain, &with_tags, &after_one];
    let [plain, with_tags, after_one] = interleave(contenders).await?;
    drop(other);
    Ok(vec![
        Row::times("memory hit without tags, larder", &plain)?,
        Row::ratio(
            "memory hit with two tags, to one without",
            &with_tags,
            &plain,
            Some(TAGS),
        )?,
        Row::ratio(
            format!("the same, another tag invalidated every {TOGETHER} reads"),
            &after_one,
            &plain,
            None,
        )?,
    ])
}

pub(crate) const METHOD: &str = "\
hitbox, multi-tier-cache and cachet have their memory alone, the others Redis as well. hitbox and\n\
multi-tier-cache encode in memory what they hold, and decode it for each hit. In the rows about tags\n\
larder has memory alone; after an invalidation an entry that has not been read since is looked at\n\
closely once, and is as quick as before from then on.";
