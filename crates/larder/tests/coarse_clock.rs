//! Hits ask a clock that may be some milliseconds behind. What ended at once, because somebody said
//! so, must not be fresh for them once more.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{faulty, found, ms, never, secs};
use larder::clock::{BoxFuture, Clock, Millis};
use larder::{Cache, Larder, Read, State};
use larder_testkit::{ManualClock, settle};

/// What hits ask is this far behind.
const BEHIND: Millis = 4;

#[derive(Debug)]
struct Coarse(Arc<ManualClock>);

impl Clock for Coarse {
    fn monotonic(&self) -> Millis {
        self.0.monotonic()
    }

    fn recent(&self) -> Millis {
        self.0.monotonic().saturating_sub(BEHIND)
    }

    fn wall(&self) -> Millis {
        self.0.wall()
    }

    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(wait)
    }
}

type Numbers = Cache<u64, u64>;

fn larder() -> (Larder, Arc<ManualClock>) {
    let clock = ManualClock::new();
    clock.advance(secs(10));
    let (store, _) = faulty(&clock);
    let builder = Larder::builder("t").clock(Arc::new(Coarse(clock.clone())));
    let larder = builder.shared(store).without_backplane().build().unwrap();
    (larder, clock)
}

#[tokio::test]
async fn an_expired_entry_is_stale_at_once_in_memory_and_out_of_a_tier() {
    let (larder, _clock) = larder();
    let cache: Numbers = larder.cache("c").ttl("1m").grace("1h").build().unwrap();
    for from_tier in [false, true] {
        let _ = cache.set(1, 7).await.unwrap();
        let _ = cache.expire(&1).await.unwrap();
        if from_tier {
            cache.invalidate_in_memory(&1);
            // Brings it into memory, stale as it is.
            assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&7));
        }
        let read = cache.with(Read::new());
        let read = read.get_or_load_explained(&1, |_| found(8)).await.unwrap();
        let found = (*read.value, read.outcome.state);
        assert_eq!(found, (7, State::Stale), "{from_tier}: {}", read.outcome);
        settle(&larder).await;
        assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
    }
}

#[tokio::test]
async fn an_expired_entry_without_grace_is_gone_at_once() {
    let (larder, _clock) = larder();
    let cache: Numbers = larder.cache("c").ttl("1m").build().unwrap();
    let _ = cache.set(1, 7).await.unwrap();
    let _ = cache.expire(&1).await.unwrap();
    assert_eq!(cache.get_in_memory(&1), None);
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 8);
}

#[tokio::test]
async fn a_value_is_served_for_its_ttl_by_that_clock() {
    let (larder, clock) = larder();
    let cache: Numbers = larder.cache("c").ttl("1m").build().unwrap();
    let _ = cache.set(1, 7).await.unwrap();
    clock.advance(ms(59_999));
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&7));
    clock.advance(ms(1));
    assert_eq!(cache.get_in_memory(&1), None);
}
