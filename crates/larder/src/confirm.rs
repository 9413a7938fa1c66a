//! Asking whether what memory holds still stands, for a few bytes.
//!
//! While the bus is silent, what memory holds may have been invalidated elsewhere. If the lowest tier
//! still has the same fill, under the versions that the tags have today, then it was not. Fill id,
//! times and versions stand in front of the envelope, so no more is fetched, and the records of the
//! tags come in the same round trip. Whatever is not confirmed is looked up as if memory held nothing.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::cache::Inner;
use crate::clock::Millis;
use crate::entry::{FillId, Held};
use crate::envelope::{self, Front, Header};
use crate::fence::Standing;
use crate::fill::{FillGuard, Landed, Origin};
use crate::key::CacheKey;
use crate::look::Seeking;
use crate::policy::{self, Decision};
use crate::sliding;
use crate::stats::Count;
use crate::store::TagRecord;
use crate::tags::{Tag, Today};
use crate::tier::Budget;

/// Lands the fills whose suspect entry the lowest tier confirms; the others come back.
pub(crate) async fn confirm<K, V>(
    cache: &Arc<Inner<K, V>>,
    fills: Vec<FillGuard<K, V>>,
    seeking: Seeking,
    budget: &mut Budget,
) -> Vec<FillGuard<K, V>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let now = cache.clock().monotonic();
    let serves = |held: &Held<V>| {
        let decision = policy::decide(&held.times, Standing::Current, now, None);
        held.fill_id.is_some() && decision == Decision::Serve && seeking.accepts(held)
    };
    let (asking, mut rest): (Vec<_>, Vec<_>) = fills
        .into_iter()
        .partition(|fill| fill.suspect().is_some_and(serves));
    let Some((fronts, today)) = ask(cache, &asking, budget).await else {
        rest.extend(asking);
        return rest;
    };
    let wall = cache.clock().wall();
    for (mut fill, front) in asking.into_iter().zip(fronts) {
        // From here on the entry is known to stand or not to.
        fill.answers();
        let front = front.as_deref().and_then(envelope::front);
        let stands = |held: &Held<V>| front.is_some_and(|f| f.stands(cache, held, &today, wall));
        match fill.take_suspect().filter(stands) {
            Some(held) => serve(cache, fill, held),
            None => rest.push(fill),
        }
    }
    rest
}

/// The fronts of the envelopes of the fills, and what their tags are today; `None` if there is
/// nothing to ask, or nobody.
async fn ask<K, V>(
    cache: &Inner<K, V>,
    fills: &[FillGuard<K, V>],
    budget: &mut Budget,
) -> Option<(Vec<Option<Bytes>>, Today)>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let lowest = cache.tiers.last().filter(|_| !fills.is_empty())?;
    let epochs = cache.shared.epochs();
    let asked = epochs.stamp();
    let held = || fills.iter().filter_map(FillGuard::suspect);
    let doubtful: HashMap<&str, &Arc<Tag>> = held()
        .flat_map(|held| tags_of(cache, held))
        .filter(|tag| tag.version(epochs).is_none_or(|(_, believed)| !believed))
        .map(|tag| (tag.name(), tag))
        .collect();
    let tags: Vec<Arc<Tag>> = doubtful.into_values().cloned().collect();
    let records = tags.iter().map(|tag| cache.shared.records.of(tag.name()));
    let keys: Vec<Bytes> = fills
        .iter()
        .map(|fill| fill.store_key().clone())
        .chain(records)
        .collect();
    let longest = held().map(|held| Header::len_with(1 + held.tags().len()));
    let limit = longest.max()?.max(TagRecord::LEN);
    let mut fronts = lowest.get(budget, &keys, limit).await.ok()?;
    let records = fronts.split_off(fills.len());
    Some((fronts, Today::learned(tags, records, asked)))
}

/// The tags of an entry in the order of their versions.
fn tags_of<'a, K, V>(
    cache: &'a Inner<K, V>,
    held: &'a Held<V>,
) -> impl Iterator<Item = &'a Arc<Tag>>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    std::iter::once(cache.fence.own()).chain(held.tags())
}

impl Front<'_> {
    /// Whether this is the front of an envelope with the fill that memory holds, and nobody
    /// invalidated or expired it.
    fn stands<K, V>(self, cache: &Inner<K, V>, held: &Held<V>, today: &Today, wall: Millis) -> bool
    where
        K: CacheKey,
        V: Send + Sync + 'static,
    {
        let epochs = cache.shared.epochs();
        let same = Some(FillId::of(&self.header.fill_id)) == held.fill_id
            && usize::from(self.header.tag_count) == 1 + held.tags().len();
        let valid = |(tag, version): (&Arc<Tag>, u64)| {
            today.says(tag).map_or_else(
                || tag.version(epochs) == Some((version, true)),
                |today| today == Some(version),
            )
        };
        same && self.header.is_fresh(wall) && tags_of(cache, held).zip(self.versions()).all(valid)
    }
}

/// Serves a confirmed entry, and lets memory vouch for it as for one that was read just now.
fn serve<K, V>(cache: &Inner<K, V>, fill: FillGuard<K, V>, mut held: Held<V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    // What was invalidated since the fill began has a higher number.
    let stamp = fill.mark().stamp();
    let now = cache.clock().monotonic();
    if let Some(key) = fill.key() {
        cache.memory.get(fill.hash(), key, now, |there| {
            if there.fill_id == held.fill_id && there.stamp() < stamp {
                there.stamp_anew(stamp);
            }
        });
        if cache.rules.sliding.is_some() && sliding::is_due(&held, now) {
            sliding::prolong(cache, fill.hash(), key, now);
        }
    }
    *held.stamp.get_mut() = stamp;
    cache.count(Count::Confirmed, 1);
    fill.land(Ok(Landed::fresh(held, Origin::Confirmed)));
}
