//! While the bus is silent memory is believed only as far as the shared tier confirms it, which costs
//! one question and no value.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use bytes::Bytes;
use common::{Faulty, Fleet, Line, faulty, found, healthy, ms, never, secs, soon, until};
use larder::backplane::Backplane;
use larder::store::StoreErrorKind;
use larder::{Cache, Larder, LarderBuilder, Loaded, Outcome, Read, Reason, Source, TierHealth};
use larder_testkit::{Operation, StoreFault, settle};

type Numbers = Cache<u64, u64>;

fn numbers(larder: &Larder) -> Numbers {
    let cache = larder.cache("c").ttl("1h").grace("1h").memory_ttl("1h");
    let cache = cache.negative_ttl("1h").groups(|_| vec!["g".to_owned()]);
    cache.build().unwrap()
}

fn tagged(value: u64) -> Loaded<u64> {
    Loaded::value(value).tags(["a"])
}

/// A process that trusts its bus and has the keys 1 to 3 in memory, each its own value.
async fn warm((larder, line): (Larder, Line)) -> (Larder, Line, Numbers) {
    let cache = numbers(&larder);
    cache.get(&99).await.unwrap();
    healthy(&larder).await;
    for key in 1..=3 {
        cache
            .get_or_load(&key, |_| found(tagged(key)))
            .await
            .unwrap();
        assert_eq!(outcome(&cache, key).await.1.reason, Reason::InMemory);
    }
    (larder, line, cache)
}

async fn outcome(cache: &Numbers, key: u64) -> (Option<u64>, Outcome) {
    let read = cache.with(Read::new()).get_explained(&key).await.unwrap();
    (read.value.as_deref().copied(), read.outcome)
}

/// How often the tier was asked: plainly, and with a lease.
fn asked(store: &Faulty) -> (u64, u64) {
    (store.begun(Operation::Get), store.begun(Operation::Lease))
}

#[tokio::test]
async fn what_still_stands_is_served_from_memory_after_one_question() {
    let fleet = Fleet::new();
    let (_larder, line, cache) = warm(fleet.process()).await;
    line.silence();
    fleet.clock.advance(secs(3));
    let (gets, leases) = asked(&fleet.store);
    let (value, told) = outcome(&cache, 1).await;
    assert_eq!(value, Some(1));
    assert_eq!(
        (told.source.clone(), told.reason),
        (Source::Memory, Reason::Confirmed)
    );
    assert!(told.behind.unwrap().is_zero());
    assert!(told.to_string().contains("compared with the lowest tier"));
    assert_eq!(asked(&fleet.store), (gets + 1, leases));
    // A caller with a loader asks no more than that, nor does one with many keys.
    assert_eq!(*cache.get_or_load(&2, |_| never()).await.unwrap(), 2);
    assert_eq!(asked(&fleet.store), (gets + 2, leases));
    let load = |_: Vec<u64>| async { unreachable!() as Result<Vec<(u64, u64)>, std::io::Error> };
    let all = cache.get_or_load_many(&[1, 2, 3], load).await.unwrap();
    let all: Vec<u64> = all.into_iter().map(|value| *value.unwrap()).collect();
    assert_eq!(all, [1, 2, 3]);
    assert_eq!(asked(&fleet.store), (gets + 3, leases));
    assert_eq!(cache.stats().confirmed, 5);
    assert_eq!(cache.stats().hits_tiers, 0);
}

#[tokio::test]
async fn what_was_confirmed_is_not_asked_for_again_once_the_bus_is_whole() {
    let fleet = Fleet::new();
    let (larder, line, cache) = warm(fleet.process()).await;
    // A silence behind which nothing was missed, and a message that nobody can read.
    line.silence();
    fleet.clock.advance(secs(3));
    until("the silence is known", || !larder.bus().unwrap().healthy).await;
    assert_eq!(outcome(&cache, 1).await.1.reason, Reason::Confirmed);
    line.heal();
    until("it hears again", || {
        fleet.clock.advance(ms(100));
        larder.bus().unwrap().healthy
    })
    .await;
    assert_eq!(outcome(&cache, 1).await.1.reason, Reason::InMemory);
    fleet.bus.publish("t", Bytes::from("?")).await.unwrap();
    until("it is in doubt", || larder.bus().unwrap().unreadable == 1).await;
    healthy(&larder).await;
    for reason in [Reason::Confirmed, Reason::InMemory, Reason::InMemory] {
        let (value, told) = outcome(&cache, 1).await;
        assert_eq!((value, told.reason), (Some(1), reason));
    }
}

const WAYS: [&str; 8] = [
    "invalidate",
    "before",
    "set",
    "expire",
    "clear",
    "tag",
    "group",
    "pattern",
];

async fn change(larder: &Larder, cache: &Numbers, how: &str) {
    let receipt = match how {
        "invalidate" => cache.invalidate(&1).await,
        "before" => cache.invalidate_before(&1, 5).await,
        "set" => cache.set(1, tagged(2)).await,
        "expire" => cache.expire(&1).await,
        "clear" => cache.clear().await,
        "tag" => larder.invalidate_tag("a").await,
        "group" => cache.invalidate_group("g").await,
        _ => cache.invalidate_matching("1").await,
    };
    assert!(receipt.unwrap().is_acked(), "{how}");
}

#[tokio::test]
async fn what_another_process_changed_unheard_is_not_confirmed() {
    for how in WAYS {
        for peeks in [true, false] {
            let fleet = Fleet::new();
            let (a, _, at_a) = warm(fleet.process()).await;
            let (_b, line, at_b) = warm(fleet.process()).await;
            line.silence();
            change(&a, &at_a, how).await;
            fleet.clock.advance(secs(3));
            let here = format!("{how}, peeks: {peeks}");
            // An expired entry may be served within its grace, and not as a fresh one.
            let strict = at_b.with(Read::new().max_stale(ms(0)));
            let value = if peeks {
                strict.get(&1).await.unwrap().as_deref().copied()
            } else {
                let load = |_| found(tagged(2));
                let loaded = strict.get_or_load(&1, load).await.unwrap();
                loaded.as_deref().copied()
            };
            let left = (!peeks || how == "set").then_some(2);
            assert_eq!(value, left, "{here}");
            assert_eq!(at_b.stats().confirmed, 0, "{here}");
        }
    }
}

#[tokio::test]
async fn what_is_stale_or_answers_something_else_is_looked_up_whole() {
    let fleet = Fleet::new();
    let (_larder, line, cache) = warm(fleet.process()).await;
    line.silence();
    fleet.clock.advance(secs(3_600));
    let (value, told) = outcome(&cache, 1).await;
    assert_eq!((value, told.reason), (Some(1), Reason::Suspect));
    assert_eq!(told.state, larder::State::Stale);
    // "There is no such value" is no answer for a loader that always has one.
    let fleet = Fleet::new();
    let (_larder, line, cache) = warm(fleet.process()).await;
    let absent = |_| found(Loaded::<u64>::absent().tags(["a"]));
    assert_eq!(cache.get_or_load(&4, absent).await.unwrap(), None);
    line.silence();
    fleet.clock.advance(secs(3));
    assert_eq!(cache.get_or_load(&4, absent).await.unwrap(), None);
    assert_eq!(cache.stats().confirmed, 1);
    assert_eq!(*cache.get_or_load(&4, |_| found(4)).await.unwrap(), 4);
}

#[tokio::test]
async fn what_is_known_not_to_stand_is_not_served_if_the_tier_then_fails() {
    for peeks in [true, false] {
        let fleet = Fleet::new();
        let (a, _, at_a) = warm(fleet.process()).await;
        let (_b, line, at_b) = warm(fleet.process()).await;
        line.silence();
        change(&a, &at_a, "invalidate").await;
        fleet.clock.advance(secs(3));
        let down = StoreFault::Fail(StoreErrorKind::Unavailable);
        fleet.store.inject([Operation::Lease], down);
        if peeks {
            assert_eq!(at_b.get(&1).await.unwrap(), None);
        } else {
            let value = at_b.get_or_load(&1, |_| found(tagged(2))).await.unwrap();
            assert_eq!(value.as_deref(), Some(&2));
        }
        assert_eq!(at_b.stats().unverified, 0);
    }
}

#[tokio::test]
async fn a_private_copy_above_does_not_answer_for_what_is_known_not_to_stand() {
    let fleet = Fleet::new();
    let (_a, _, at_a) = warm(fleet.process()).await;
    let private = faulty(&fleet.clock).0;
    let tiers = |builder: LarderBuilder| builder.tier(private.clone()).shared(fleet.store.clone());
    let (b, line, at_b) = warm(fleet.process_with(tiers)).await;
    until("the private tier is in use", || {
        fleet.clock.advance(ms(20));
        b.tiers()[0].health == TierHealth::Closed
    })
    .await;
    at_b.get_or_load(&4, |_| found(tagged(4))).await.unwrap();
    assert_eq!(private.store().len(), 1);
    line.silence();
    assert!(at_a.invalidate(&4).await.unwrap().is_acked());
    fleet.clock.advance(secs(3));
    let down = StoreFault::Fail(StoreErrorKind::Unavailable);
    fleet.store.inject([Operation::Lease], down);
    let value = at_b.get_or_load(&4, |_| found(tagged(5))).await.unwrap();
    assert_eq!(value.as_deref(), Some(&5));
}

#[tokio::test]
async fn what_is_invalidated_while_the_tier_is_asked_is_not_kept_as_confirmed() {
    for how in WAYS {
        let fleet = Fleet::new();
        let patient =
            |builder: LarderBuilder| builder.shared(fleet.store.clone()).tier_budget(secs(3_600));
        let (larder, line, cache) = warm(fleet.process_with(patient)).await;
        line.silence();
        fleet.clock.advance(secs(3));
        let gate = fleet.store.pause_after(Operation::Get);
        let early = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get(&1).await }
        });
        gate.arrived(1).await;
        let changing = tokio::spawn({
            let (larder, cache) = (larder.clone(), cache.clone());
            async move { change(&larder, &cache, how).await }
        });
        soon(changing).await.unwrap();
        // From here on memory is believed again, as far as it is vouched for.
        line.heal();
        until("it hears again", || {
            fleet.clock.advance(ms(100));
            larder.bus().unwrap().healthy
        })
        .await;
        gate.open();
        soon(early).await.unwrap().unwrap();
        let strict = cache.with(Read::new().max_stale(ms(0)));
        let load = |_| found(tagged(2).version(9));
        assert_eq!(
            strict.get_or_load(&1, load).await.unwrap().as_deref(),
            Some(&2),
            "{how}"
        );
        settle(&larder).await;
    }
}
