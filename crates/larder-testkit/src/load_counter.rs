use std::sync::Arc;

use tokio::sync::watch;

/// Counts loads: how many began, how many ended, how many ran at once.
///
/// Clone it into loaders, and keep what [`LoadCounter::begin`] returns for as long as the load
/// runs: a load that is cancelled or panics ends too.
///
/// ```
/// use larder_testkit::LoadCounter;
///
/// let loads = LoadCounter::new();
/// let load = loads.begin();
/// assert_eq!(loads.running(), 1);
/// drop(load);
/// assert_eq!((loads.starts(), loads.finishes(), loads.max_concurrency()), (1, 1, 1));
/// ```
#[derive(Clone, Debug, Default)]
pub struct LoadCounter {
    counts: Arc<watch::Sender<Counts>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    starts: usize,
    finishes: usize,
    max_concurrency: usize,
}

/// A load that is running. Dropping it counts its end.
#[derive(Debug)]
#[must_use = "the load counts as ended when this is dropped"]
pub struct Load {
    counter: LoadCounter,
}

impl LoadCounter {
    /// A counter at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a load that begins.
    pub fn begin(&self) -> Load {
        self.counts.send_modify(|counts| {
            counts.starts += 1;
            let running = counts.starts - counts.finishes;
            counts.max_concurrency = counts.max_concurrency.max(running);
        });
        Load {
            counter: self.clone(),
        }
    }

    /// How many loads have begun.
    pub fn starts(&self) -> usize {
        self.counts.borrow().starts
    }

    /// How many loads have ended, in whatever way.
    pub fn finishes(&self) -> usize {
        self.counts.borrow().finishes
    }

    /// How many loads run now.
    pub fn running(&self) -> usize {
        let counts = *self.counts.borrow();
        counts.starts - counts.finishes
    }

    /// The most loads that ever ran at once.
    pub fn max_concurrency(&self) -> usize {
        self.counts.borrow().max_concurrency
    }

    /// Waits until at least `count` loads have begun.
    pub async fn started(&self, count: usize) {
        let mut counts = self.counts.subscribe();
        // The sender lives in `self`, so the wait cannot end for want of one.
        let _ = counts.wait_for(|counts| counts.starts >= count).await;
    }

    /// Waits until at least `count` loads have ended.
    pub async fn finished(&self, count: usize) {
        let mut counts = self.counts.subscribe();
        let _ = counts.wait_for(|counts| counts.finishes >= count).await;
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.counter
            .counts
            .send_modify(|counts| counts.finishes += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cancelled_load_ends_and_the_most_at_once_is_kept() {
        let loads = LoadCounter::new();
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let loads = loads.clone();
                tokio::spawn(async move {
                    let _load = loads.begin();
                    std::future::pending::<()>().await;
                })
            })
            .collect();
        loads.started(3).await;
        assert_eq!((loads.running(), loads.finishes()), (3, 0));
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        loads.finished(3).await;
        drop(loads.begin());
        assert_eq!(
            (loads.starts(), loads.running(), loads.max_concurrency()),
            (4, 0, 3)
        );
    }
}
