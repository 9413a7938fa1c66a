//! Loads ahead of need that are under way, and which keys they are for.

use std::collections::{HashMap, HashSet};
use std::future::{Future, poll_fn};
use std::task::{Context, Poll};

use tokio::task::{Id, JoinSet};

/// Tasks, one for each hash of a key at most, which end when this is dropped.
pub(super) struct UnderWay<T> {
    tasks: JoinSet<T>,
    /// By task, because one that panics does not tell what it was for.
    hashes: HashMap<Id, u64>,
    busy: HashSet<u64>,
}

impl<T: Send + 'static> UnderWay<T> {
    pub(super) fn new() -> Self {
        Self {
            tasks: JoinSet::new(),
            hashes: HashMap::new(),
            busy: HashSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn has(&self, hash: u64) -> bool {
        self.busy.contains(&hash)
    }

    pub(super) fn begin(&mut self, hash: u64, work: impl Future<Output = T> + Send + 'static) {
        let id = self.tasks.spawn(work).id();
        self.hashes.insert(id, hash);
        self.busy.insert(hash);
    }

    /// The next that ends, with what it found, if it did not panic; `None` if none is left.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<(u64, Option<T>)>> {
        self.tasks.poll_join_next_with_id(context).map(|ended| {
            let (id, found) = match ended? {
                Ok((id, found)) => (id, Some(found)),
                Err(ended) => (ended.id(), None),
            };
            let hash = self.hashes.remove(&id)?;
            self.busy.remove(&hash);
            Some((hash, found))
        })
    }

    pub(super) async fn next(&mut self) -> Option<(u64, Option<T>)> {
        poll_fn(|context| self.poll_next(context)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_free_again_when_its_task_has_panicked() {
        let mut under_way = UnderWay::new();
        under_way.begin(1, async { panic!("a slip") });
        assert!(under_way.has(1));
        assert_eq!(under_way.next().await, Some((1, None)));
        assert!(!under_way.has(1));
        under_way.begin(1, std::future::ready("done"));
        assert_eq!(under_way.next().await, Some((1, Some("done"))));
        assert_eq!(under_way.next().await, None);
    }
}
