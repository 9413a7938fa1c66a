//! The store that the suite is written beside passes it.

use std::sync::Arc;

use larder_testkit::{ManualClock, MemoryStore, Subject, store_suite};

async fn open() -> Subject {
    let clock = ManualClock::new();
    Subject::new(Arc::new(MemoryStore::new(clock.clone()))).with_clock(clock)
}

store_suite!(open);

mod in_real_time_and_under_a_prefix {
    use super::*;
    use larder::clock::SystemClock;

    async fn open() -> Subject {
        let store = MemoryStore::new(SystemClock::shared());
        Subject::new(Arc::new(store)).with_prefix(*b"\xffours*:")
    }

    store_suite!(open);
}
