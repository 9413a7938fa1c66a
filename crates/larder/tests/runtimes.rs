//! One larder, used from several runtimes.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{soon, with_tier};
use larder::Cache;
use larder_testkit::Operation;
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn one_that_ends_in_the_middle_of_an_invalidation_holds_up_no_other() {
    let (first, second) = (runtime(), runtime());
    let (larder, _clock, tier) = with_tier("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let gate = tier.pause_before(Operation::Delete);
    let begun = cache.clone();
    let stopped = first.spawn(async move { begun.invalidate(&1).await });
    second.block_on(gate.arrived(1));
    first.shutdown_background();
    second.block_on(async {
        assert!(soon(stopped).await.is_err());
        gate.open();
        let receipt = soon(cache.invalidate(&2)).await.unwrap();
        assert!(receipt.is_queued(), "the tier may have missed the first");
    });
}
