//! What a read leaves behind for whoever makes something from it.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::Inner;
use crate::entry::Held;
use crate::key::{self, AsKey, CacheKey};
use crate::scope;
use crate::tags::{Tag, name};

/// How long what was made from a stale entry is fresh: somebody refreshes it just now.
const STALE_SOURCE: Duration = Duration::from_secs(1);

/// Whether what is made from this read goes into a tier that others read, as its own entries do.
pub(super) fn makes_for_others<K, V>(cache: &Inner<K, V>) -> bool
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    scope::is_for_others() && cache.is_shared()
}

/// Leaves a note of a read for those who make something from it.
pub(super) fn note_source<K, V, Q>(
    cache: &Inner<K, V>,
    key: &Q,
    tags: Vec<Arc<Tag>>,
    fresh_for: Duration,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    let Ok(logical) = key::encode(b"", key) else {
        return;
    };
    let itself = cache.shared.tags.tag(&name::of_key(&cache.name, &logical));
    let fresh_for = if fresh_for.is_zero() {
        STALE_SOURCE
    } else {
        fresh_for
    };
    // Whoever clears the cache invalidates each of its entries.
    let own = Arc::clone(cache.fence.own());
    scope::note(tags.into_iter().chain([itself, own]), fresh_for);
}

/// The same for an entry at hand.
pub(super) fn note_held<K, V, Q>(cache: &Inner<K, V>, key: &Q, held: &Held<V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    if scope::is_open() {
        let fresh_for = held.times.remaining(cache.clock().monotonic());
        note_source(cache, key, held.tags().to_vec(), fresh_for);
    }
}

/// Leaves a note of a read that memory alone was asked for.
pub(super) fn note_memory_alone<K, V>(cache: &Inner<K, V>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    if makes_for_others(cache) {
        scope::note_unverified();
    }
}

/// The same for a read that found nothing: what is made from that goes when there is something.
pub(super) fn note_absence<K, V, Q>(cache: &Inner<K, V>, key: &Q)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    Q: AsKey<K> + ?Sized,
{
    if scope::is_open() {
        note_source(cache, key, Vec::new(), Duration::MAX);
    }
}
