//! A token makes a read see what it stands for, whatever this process has heard so far.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{Fleet, Line, found, healthy, ms, never, soon, turn_until};
use larder::{Cache, ErrorKind, Invalidation, Larder, Loaded, Read, Token};
use larder_testkit::{Operation, settle};

type Numbers = Cache<u64, u64>;

fn numbers(larder: &Larder) -> Numbers {
    larder.cache("c").build().unwrap()
}

/// A fleet of two that know each other, with the value 1 in both memories.
async fn two(fleet: &Fleet) -> [(Larder, Line, Numbers); 2] {
    let pair = [fleet.process(), fleet.process()].map(|(larder, line)| {
        let cache = numbers(&larder);
        (larder, line, cache)
    });
    let _ = pair[0]
        .2
        .set(1, Loaded::value(1).tags(["a"]))
        .await
        .unwrap();
    assert_eq!(pair[1].2.get(&1).await.unwrap().as_deref(), Some(&1));
    healthy(&pair[1].0).await;
    // What was read before the bus was joined is looked up once more.
    at_memory(&pair[1].2).await;
    pair
}

/// Has memory hold the entry as one that was read behind the last doubt.
async fn at_memory(cache: &Numbers) {
    cache.get(&1).await.unwrap();
    let read = cache.with(Read::new()).get_explained(&1).await.unwrap();
    assert_eq!(read.outcome.source, larder::Source::Memory);
}

async fn change(larder: &Larder, cache: &Numbers, how: &str) -> Token {
    let receipt = match how {
        "invalidate" => cache.invalidate(&1).await,
        "set" => cache.set(1, 2).await,
        "tag" => larder.invalidate_tag("a").await,
        "clear" => cache.clear().await,
        "pattern" => cache.invalidate_matching("*").await,
        _ => {
            larder
                .invalidate_each([Invalidation::key("c", ["1"])])
                .await
        }
    };
    receipt.unwrap().token().unwrap()
}

const WAYS: [&str; 6] = ["invalidate", "set", "tag", "clear", "pattern", "each"];

#[tokio::test]
async fn a_read_with_a_token_waits_until_what_it_stands_for_was_heard() {
    for how in WAYS {
        let fleet = Fleet::new();
        let [(a, _, at_a), (_b, line, at_b)] = two(&fleet).await;
        line.hold();
        let token = change(&a, &at_a, how).await;
        line.has_held(1).await;
        assert_eq!(
            at_b.get(&1).await.unwrap().as_deref(),
            Some(&1),
            "{how}: unheard"
        );
        let reading = tokio::spawn({
            let at_b = at_b.clone();
            async move { at_b.with(Read::new().after(token)).get(&1).await }
        });
        tokio::task::yield_now().await;
        line.release();
        let value = soon(reading).await.unwrap().unwrap();
        let expected = (how == "set").then_some(2);
        assert_eq!(value.as_deref().copied(), expected, "{how}");
    }
}

#[tokio::test]
async fn a_read_whose_token_is_not_heard_in_time_asks_the_tier_that_all_share() {
    for how in WAYS {
        let fleet = Fleet::new();
        let [(a, _, at_a), (b, line, at_b)] = two(&fleet).await;
        line.hold();
        let token = change(&a, &at_a, how).await;
        let reading = tokio::spawn({
            let at_b = at_b.clone();
            let load = |_| found(2);
            async move {
                at_b.with(Read::new().after(token))
                    .get_or_load(&1, load)
                    .await
            }
        });
        let value = turn_until(&fleet.clock, ms(10), reading).await.unwrap();
        assert_eq!(*value, 2, "{how}");
        line.release();
        settle(&b).await;
    }
}

#[tokio::test]
async fn a_read_whose_token_is_not_heard_passes_private_copies_over() {
    for how in WAYS {
        let fleet = Fleet::new();
        let (a, _) = fleet.process();
        let private = common::faulty(&fleet.clock).0;
        let (b, line) =
            fleet.process_with(|builder| builder.tier(private.clone()).shared(fleet.store.clone()));
        let (at_a, at_b) = (numbers(&a), numbers(&b));
        let _ = at_a.set(1, Loaded::value(1).tags(["a"])).await.unwrap();
        at_b.get(&1).await.unwrap();
        healthy(&b).await;
        // What joining the bus put in doubt has to be gone before the private tier is used.
        common::until("the private tier is in use", || {
            fleet.clock.advance(ms(20));
            b.tiers()[0].health == larder::TierHealth::Closed
        })
        .await;
        at_b.invalidate_in_memory(&1);
        at_b.get_or_load(&1, |_| never()).await.unwrap();
        assert_eq!(private.store().len(), 1, "there is a private copy");
        at_b.invalidate_in_memory(&1);
        line.hold();
        let token = change(&a, &at_a, how).await;
        let reading = tokio::spawn({
            let at_b = at_b.clone();
            async move {
                let read = at_b.with(Read::new().after(token));
                read.get_or_load(&1, |_| found(2)).await
            }
        });
        let value = turn_until(&fleet.clock, ms(10), reading).await.unwrap();
        assert_eq!(*value, 2, "{how}");
        line.release();
        settle(&b).await;
    }
}

#[tokio::test]
async fn a_read_that_has_heard_its_token_waits_for_private_copies_to_go() {
    let fleet = Fleet::new();
    let (a, _) = fleet.process();
    let private = common::faulty(&fleet.clock).0;
    let (b, _line) =
        fleet.process_with(|builder| builder.tier(private.clone()).shared(fleet.store.clone()));
    let (at_a, at_b) = (numbers(&a), numbers(&b));
    let _ = at_a.set(1, 1).await.unwrap();
    at_b.get(&1).await.unwrap();
    healthy(&b).await;
    common::until("the private tier is in use", || {
        fleet.clock.advance(ms(20));
        b.tiers()[0].health == larder::TierHealth::Closed
    })
    .await;
    at_b.invalidate_in_memory(&1);
    at_b.get_or_load(&1, |_| never()).await.unwrap();
    assert_eq!(private.store().len(), 1, "there is a private copy");
    let gate = private.pause_before(Operation::Delete);
    let token = at_a.set(1, 2).await.unwrap().token().unwrap();
    soon(gate.arrived(1)).await;
    let reading = at_b.with(Read::new().after(token));
    let value = soon(reading.get_or_load(&1, |_| never())).await.unwrap();
    assert_eq!(*value, 2);
    gate.open();
    settle(&b).await;
    assert_eq!(at_b.get(&1).await.unwrap().as_deref(), Some(&2));
}

#[tokio::test]
async fn a_read_whose_token_is_not_heard_joins_no_flight_from_before() {
    let fleet = Fleet::new();
    let [(_a, _, at_a), (b, line, at_b)] = two(&fleet).await;
    line.hold();
    at_b.invalidate_in_memory(&1);
    let gate = fleet.store.pause_after(Operation::Lease);
    let shared = Read::new().tiers(larder::Tiers::Shared);
    let before = tokio::spawn({
        let at_b = at_b.clone();
        async move { at_b.with(shared).get_or_load(&1, |_| never()).await }
    });
    soon(gate.arrived(1)).await;
    let token = at_a.set(1, 2).await.unwrap().token().unwrap();
    let reading = tokio::spawn({
        let at_b = at_b.clone();
        async move {
            let read = at_b.with(Read::new().after(token));
            read.get_or_load(&1, |_| never()).await
        }
    });
    // Long enough for the token to be given up, and short of the budget of the one that waits.
    for _ in 0..10 {
        fleet.clock.advance(ms(10));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }
    gate.open();
    let _either = soon(before).await.unwrap();
    let value = turn_until(&fleet.clock, ms(10), reading).await.unwrap();
    assert_eq!(*value, 2);
    line.release();
    settle(&b).await;
}

#[tokio::test]
async fn the_token_of_many_invalidations_stands_for_all_of_them() {
    let fleet = Fleet::new();
    let (a, _) = fleet.process();
    let cache = numbers(&a);
    // The first of them is done so often that it is put off, behind the others.
    let first = || Invalidation::tag("again and again");
    for _ in 0..8 {
        let _ = a.invalidate_each([first()]).await.unwrap();
    }
    let both = a
        .invalidate_each([first(), Invalidation::key("c", ["1"])])
        .await;
    let token = both.unwrap().token().unwrap();
    let next = cache.invalidate(&2).await.unwrap().token().unwrap();
    let number = |token: Token| {
        let text = token.to_string();
        let (_, count) = text.split_once('-').unwrap();
        u64::from_str_radix(count, 16).unwrap()
    };
    assert_eq!(number(token) + 1, number(next), "nothing came between them");
}

#[tokio::test]
async fn a_token_travels_as_text_and_what_is_none_is_an_error() {
    let fleet = Fleet::new();
    let [(_a, _, at_a), (_b, _, at_b)] = two(&fleet).await;
    let text = at_a.set(1, 2).await.unwrap().token().unwrap().to_string();
    let token: Token = text.parse().unwrap();
    let read = at_b.with(Read::new().after(token));
    assert_eq!(soon(read.get(&1)).await.unwrap().as_deref(), Some(&2));
    let error = "no token".parse::<Token>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[tokio::test]
async fn a_token_of_another_life_of_the_bus_is_answered_by_the_tiers() {
    let fleet = Fleet::new();
    let [(_a, _, at_a), (_b, _, at_b)] = two(&fleet).await;
    let _ = at_a.set(1, 2).await.unwrap();
    let token: Token = "1-1".parse().unwrap();
    let reading = tokio::spawn({
        let at_b = at_b.clone();
        async move { at_b.with(Read::new().after(token)).get(&1).await }
    });
    let value = turn_until(&fleet.clock, ms(10), reading).await.unwrap();
    assert_eq!(value.as_deref(), Some(&2));
}

#[tokio::test]
async fn without_a_bus_there_is_no_token_and_one_from_elsewhere_asks_the_tiers() {
    let (larder, clock, tier) = common::with_tier("t");
    let other = numbers(&common::another_process("t", &clock, &tier));
    let cache = numbers(&larder);
    assert_eq!(cache.set(1, 1).await.unwrap().token(), None);
    let _ = other.set(1, 2).await.unwrap();
    let token: Token = "1-1".parse().unwrap();
    let read = cache.with(Read::new().after(token));
    assert_eq!(soon(read.get(&1)).await.unwrap().as_deref(), Some(&2));
}

#[tokio::test]
async fn in_memory_alone_a_token_that_is_not_heard_means_a_load() {
    let fleet = Fleet::new();
    let [(a, _), (b, line)] = [(); 2].map(|()| fleet.process_with(|builder| builder));
    let (at_a, at_b): (Numbers, Numbers) = (
        a.cache("c").in_memory().unwrap(),
        b.cache("c").in_memory().unwrap(),
    );
    at_b.get_or_load(&1, |_| found(1)).await.unwrap();
    healthy(&b).await;
    line.hold();
    let token = at_a.invalidate(&1).await.unwrap().token().unwrap();
    let reading = tokio::spawn({
        let at_b = at_b.clone();
        async move {
            let read = at_b.with(Read::new().after(token));
            read.get_or_load(&1, |_| found(2)).await
        }
    });
    let value = turn_until(&fleet.clock, ms(10), reading).await.unwrap();
    assert_eq!(*value, 2);
}
