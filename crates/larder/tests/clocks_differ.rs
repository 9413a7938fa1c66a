//! Processes whose clocks differ: what one of them expires is stale for the others at once.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{faulty, found, ms, secs};
use larder::clock::Clock;
use larder::{Cache, Larder, Read, State};
use larder_testkit::{ManualClock, settle};

type Numbers = Cache<u64, u64>;

#[tokio::test]
async fn what_is_expired_by_a_clock_that_is_ahead_is_stale_and_within_its_grace() {
    for ahead in [0, 1, 600, 100_000] {
        // The store lives by a clock of its own, as a server does.
        let store = faulty(&ManualClock::new()).0;
        let process = |clock| {
            let builder = Larder::builder("t").clock(clock).without_backplane();
            builder.shared(store.clone()).build().unwrap()
        };
        let numbers = |larder: &Larder| -> Numbers {
            let cache = larder.cache("c").ttl("1h").grace("1m").memory_ttl("1s");
            cache.build().unwrap()
        };
        let (early, late) = (ManualClock::new(), ManualClock::new());
        late.set_wall(late.wall() + ahead * 1_000);
        let (a, b) = (process(early.clone()), process(late.clone()));
        let (at_a, at_b) = (numbers(&a), numbers(&b));
        let _ = at_a.set(1, 1).await.unwrap();
        early.advance(secs(1));
        assert!(at_b.expire(&1).await.unwrap().is_acked());
        let read = at_a.with(Read::new()).get_explained(&1).await.unwrap();
        assert_eq!(read.value.as_deref(), Some(&1), "{ahead}");
        assert_eq!(read.outcome.state, State::Stale, "{ahead}");
        let fresh = at_a.with(Read::new().max_stale(ms(0)));
        early.advance(ms(1));
        assert_eq!(
            *fresh.get_or_load(&1, |_| found(2)).await.unwrap(),
            2,
            "{ahead}"
        );
        settle(&a).await;
        settle(&b).await;
    }
}
