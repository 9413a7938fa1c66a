//! Holds a reader between its query and its fill: the race that lets old values back in.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A held reader goes on after this long, whatever happens: well within a load's deadline.
const LONGEST: Duration = Duration::from_secs(2);

/// Which products' next readers are to be held.
#[derive(Default)]
pub(crate) struct Holds {
    armed: AtomicUsize,
    by_product: Mutex<HashMap<u64, Arc<Hold>>>,
}

struct Hold {
    taken: std::sync::atomic::AtomicBool,
    arrived: Semaphore,
    released: Semaphore,
}

impl Holds {
    /// Holds the next reader of `product`. A hold that was there before is let go.
    pub(crate) fn arm(&self, product: u64) {
        let hold = Hold {
            taken: false.into(),
            arrived: Semaphore::new(0),
            released: Semaphore::new(0),
        };
        let before = self.map(|map| {
            let before = map.insert(product, Arc::new(hold));
            self.armed.store(map.len(), Ordering::Release);
            before
        });
        if let Some(before) = before {
            before.released.close();
        }
    }

    /// Waits until a reader of `product` is held; `false` if none came in time.
    pub(crate) async fn arrival(&self, product: u64) -> bool {
        let Some(hold) = self.map(|map| map.get(&product).cloned()) else {
            return false;
        };
        timeout(LONGEST, hold.arrived.acquire()).await.is_ok()
    }

    /// Lets the held reader of `product` go.
    pub(crate) fn release(&self, product: u64) {
        let hold = self.map(|map| {
            let hold = map.remove(&product);
            self.armed.store(map.len(), Ordering::Release);
            hold
        });
        if let Some(hold) = hold {
            hold.released.close();
        }
    }

    /// Where a reader stands that has its row and has not stored it: passes unless held.
    pub(crate) async fn pass(&self, product: u64) {
        if self.armed.load(Ordering::Acquire) == 0 {
            return;
        }
        let Some(hold) = self.map(|map| map.get(&product).cloned()) else {
            return;
        };
        if hold.taken.swap(true, Ordering::AcqRel) {
            return;
        }
        hold.arrived.add_permits(1);
        // The semaphore never gives a permit: it is closed to let the reader go.
        let _ = timeout(LONGEST, hold.released.acquire()).await;
    }

    fn map<R>(&self, then: impl FnOnce(&mut HashMap<u64, Arc<Hold>>) -> R) -> R {
        then(
            &mut self
                .by_product
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_reader_is_held_until_released_and_others_pass() {
        let holds = Arc::new(Holds::default());
        holds.pass(7).await;
        holds.arm(7);
        let reader = tokio::spawn({
            let holds = Arc::clone(&holds);
            async move { holds.pass(7).await }
        });
        assert!(holds.arrival(7).await);
        assert!(!reader.is_finished());
        holds.pass(7).await;
        holds.pass(8).await;
        holds.release(7);
        reader.await.expect("released");
        assert!(!holds.arrival(7).await);
    }
}
