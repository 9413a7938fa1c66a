use std::sync::Arc;
use std::time::Duration;

use larder::{Larder, LarderBuilder};

use crate::ManualClock;

/// How long [`settle`] waits, in real time, before it says that something never ends.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// A larder without tiers, on a clock that the test turns.
///
/// ```
/// use std::time::Duration;
/// use larder::Cache;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (larder, clock) = larder_testkit::larder("t");
/// let cache: Cache<u64, String> = larder.cache("greetings").ttl("1m").build()?;
/// let _ = cache.set(1, "hello".to_owned()).await?;
/// clock.advance(Duration::from_secs(60));
/// assert!(cache.get(&1).await?.is_none());
/// # Ok::<_, larder::Error>(()) }).unwrap();
/// ```
pub fn larder(namespace: &str) -> (Larder, Arc<ManualClock>) {
    larder_with(namespace, |builder, _| builder)
}

/// The same with what `extend` adds, such as tiers, which may live by the same clock. There is no
/// bus unless it adds one.
///
/// Panics if the larder cannot be built.
///
/// ```
/// use larder_testkit::{MemoryStore, larder_with};
///
/// let (larder, _clock) = larder_with("t", |builder, clock| {
///     builder.shared(MemoryStore::new(clock.clone()))
/// });
/// assert_eq!(larder.tiers().len(), 1);
/// ```
pub fn larder_with(
    namespace: &str,
    extend: impl FnOnce(LarderBuilder, &Arc<ManualClock>) -> LarderBuilder,
) -> (Larder, Arc<ManualClock>) {
    let clock = ManualClock::new();
    let builder = Larder::builder(namespace)
        .clock(clock.clone())
        .without_backplane();
    match extend(builder, &clock).build() {
        Ok(larder) => (larder, clock),
        Err(error) => panic!("no larder for the test: {error}"),
    }
}

/// Waits until no load, refresh or write of this larder runs in the background.
///
/// Panics after 10 s of real time: work that sleeps on a manual clock, or that waits at a closed
/// gate, does not end by itself, and a test is better told than kept waiting.
pub async fn settle(larder: &Larder) {
    settle_within(larder, SETTLE_PATIENCE).await;
}

async fn settle_within(larder: &Larder, patience: Duration) {
    let settled = tokio::time::timeout(patience, larder.settle()).await;
    assert!(
        settled.is_ok(),
        "{larder:?} still works in the background after {patience:?}; does the work sleep on a \
         manual clock, or wait at a gate?"
    );
}

#[cfg(test)]
mod tests {
    use larder::Cache;

    use super::*;
    use crate::{FaultyStore, Gate, LoadCounter, MemoryStore, Operation};

    const MINUTE: Duration = Duration::from_secs(60);

    /// Loads "new" in the background while "old" is served stale, as far as `gate` lets it.
    async fn begin_a_refresh(
        larder: &Larder,
        clock: &ManualClock,
        gate: &Gate,
        loads: &LoadCounter,
    ) -> Cache<u64, String> {
        let cache: Cache<u64, String> = larder.cache("c").ttl("1m").grace("1h").build().unwrap();
        let _ = cache.set(1, "old".to_owned()).await.unwrap();
        clock.advance(MINUTE);
        let (gate, loads) = (gate.clone(), loads.clone());
        let served = cache.get_or_load(&1, |_| async move {
            let _load = loads.begin();
            gate.wait().await;
            Ok::<_, std::io::Error>("new".to_owned())
        });
        assert_eq!(*served.await.unwrap(), "old");
        cache
    }

    #[tokio::test]
    async fn settling_waits_for_a_refresh_in_the_background() {
        let (larder, clock) = larder("t");
        let (gate, loads) = (Gate::new(), LoadCounter::new());
        let cache = begin_a_refresh(&larder, &clock, &gate, &loads).await;
        gate.arrived(1).await;
        assert_eq!((loads.starts(), loads.finishes()), (1, 0));
        gate.open();
        settle(&larder).await;
        assert_eq!(loads.finishes(), 1);
        assert_eq!(
            cache.get_in_memory(&1).as_deref().map(String::as_str),
            Some("new")
        );
    }

    #[tokio::test]
    #[should_panic(expected = "still works in the background")]
    async fn settling_says_what_never_settles() {
        let (larder, clock) = larder("t");
        begin_a_refresh(&larder, &clock, &Gate::new(), &LoadCounter::new()).await;
        settle_within(&larder, Duration::from_millis(20)).await;
    }

    #[tokio::test]
    async fn a_larder_with_a_faulty_tier_asks_it() {
        let mut tier = None;
        let (larder, _clock) = larder_with("t", |builder, clock| {
            let store = FaultyStore::new(MemoryStore::new(clock.clone()), clock.clone());
            tier = Some(store.clone());
            builder.shared(store)
        });
        let cache: Cache<u64, String> = larder.cache("c").build().unwrap();
        assert!(cache.get(&1).await.unwrap().is_none());
        assert_eq!(tier.unwrap().begun(Operation::Get), 1);
    }
}
