//! Writes that were acknowledged and have not reached the tiers yet.
//!
//! Every read looks here between memory and the tiers, so that it sees such a write first. There
//! are none until caches can write behind; the step stands in the read path now because its place
//! decides what a read may see.

use std::marker::PhantomData;

use crate::entry::Held;

/// The pending writes of one cache.
#[derive(Debug)]
pub(crate) struct Overlay<V> {
    values: PhantomData<fn() -> V>,
}

impl<V> Overlay<V> {
    /// An overlay without pending writes.
    pub(crate) fn empty() -> Self {
        Self {
            values: PhantomData,
        }
    }

    /// The newest pending write of the key that encodes as `key`.
    pub(crate) fn get(&self, _key: &[u8]) -> Option<Held<V>> {
        None
    }
}
