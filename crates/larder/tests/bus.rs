//! Several processes on one bus: what one of them changes the others forget, whatever the bus loses.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::io;

use bytes::Bytes;
use common::{
    Fleet, Line, another_process, found, healthy, ms, never, secs, soon, turn_until, until,
};
use larder::backplane::{Backplane, LocalBus};
use larder::store::StoreErrorKind;
use larder::{Cache, Isolation, Larder, Loaded, Read, Reason, Receipt, Source, TierHealth, Token};
use larder_testkit::{
    BusFault, BusOperation, FaultyBus, FaultyStore, Gate, Operation, StoreFault, settle,
};

type Numbers = Cache<u64, u64>;

fn numbers(larder: &Larder) -> Numbers {
    let cache = larder.cache("c").ttl("1h").grace("1h").memory_ttl("1h");
    cache.groups(|_| vec!["g".to_owned()]).build().unwrap()
}

/// A process with its line and its cache, which trusts its bus.
async fn joined((larder, line): (Larder, Line)) -> (Larder, Line, Numbers) {
    let cache = numbers(&larder);
    cache.get(&99).await.unwrap();
    healthy(&larder).await;
    (larder, line, cache)
}

async fn in_memory(cache: &Numbers, key: u64) {
    cache
        .get_or_load(&key, |_| found(Loaded::value(1).tags(["a"])))
        .await
        .unwrap();
    let read = cache.with(Read::new()).get_explained(&key).await.unwrap();
    assert_eq!(read.outcome.source, Source::Memory);
}

async fn change(larder: &Larder, cache: &Numbers, how: &str) -> Receipt {
    match how {
        "invalidate" => cache.invalidate(&1).await,
        "before" => cache.invalidate_before(&1, 5).await,
        "set" => cache.set(1, 2).await,
        "expire" => cache.expire(&1).await,
        "clear" => cache.clear().await,
        "tag" => larder.invalidate_tag("a").await,
        "group" => cache.invalidate_group("g").await,
        _ => cache.invalidate_matching("1").await,
    }
    .unwrap()
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

/// Publishes past everything, as whoever can reach the bus may.
async fn forge(bus: &LocalBus, message: impl Into<Bytes>) {
    bus.publish("t", message.into()).await.unwrap();
}

#[tokio::test]
async fn what_one_process_changes_the_others_forget() {
    for how in WAYS {
        let fleet = Fleet::new();
        let (a, _, at_a) = joined(fleet.process()).await;
        let (b, _, at_b) = joined(fleet.process()).await;
        let (c, _, at_c) = joined(fleet.process()).await;
        for cache in [&at_a, &at_b, &at_c] {
            in_memory(cache, 1).await;
        }
        let receipt = change(&a, &at_a, how).await;
        assert!(receipt.is_acked(), "{how}");
        fleet.clock.advance(ms(1));
        for cache in [&at_b, &at_c] {
            let strict = Read::new().after(receipt.token().unwrap()).max_stale(ms(0));
            let load = |_| found(Loaded::value(2).version(9));
            let value = soon(cache.with(strict).get_or_load(&1, load))
                .await
                .unwrap();
            assert_eq!(value.as_deref(), Some(&2), "{how}");
        }
        for larder in [&a, &b, &c] {
            settle(larder).await;
        }
    }
}

#[tokio::test]
async fn fills_are_told_to_nobody() {
    let fleet = Fleet::new();
    let (a, line, at_a) = joined(fleet.process()).await;
    let (b, _, at_b) = joined(fleet.process()).await;
    let before = line.finished(BusOperation::Publish);
    for key in 0..50 {
        at_a.get_or_load(&key, |_| found(1)).await.unwrap();
        assert_eq!(at_b.get(&key).await.unwrap().as_deref(), Some(&1));
    }
    settle(&a).await;
    assert_eq!(line.finished(BusOperation::Publish), before);
    assert_eq!(b.bus().unwrap().heard, 0);
}

#[tokio::test]
async fn what_a_hundred_invalidate_at_once_is_told_in_a_few_messages() {
    let fleet = Fleet::new();
    let (_a, line, at_a) = joined(fleet.process()).await;
    let before = line.begun(BusOperation::Publish);
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let cache = at_a.clone();
            tokio::spawn(async move { cache.invalidate(&1).await.unwrap() })
        })
        .collect();
    for caller in callers {
        assert!(soon(caller).await.unwrap().token().is_some());
    }
    let told = line.begun(BusOperation::Publish) - before;
    assert!((1..=10).contains(&told), "{told} messages");
}

#[tokio::test]
async fn a_process_that_joins_keeps_nothing_that_it_read_before() {
    let fleet = Fleet::new();
    let (a, _, at_a) = joined(fleet.process()).await;
    let (b, line) = fleet.process();
    line.inject([BusOperation::Listen], BusFault::Hang);
    let at_b = numbers(&b);
    let load = tokio::spawn({
        let at_b = at_b.clone();
        async move { at_b.get_or_load(&1, |_| found(1)).await }
    });
    assert_eq!(*turn_until(&fleet.clock, ms(10), load).await.unwrap(), 1);
    let _ = at_a.set(1, 2).await.unwrap();
    line.heal();
    healthy(&b).await;
    assert_eq!(at_b.get(&1).await.unwrap().as_deref(), Some(&2));
    settle(&a).await;
}

#[tokio::test]
async fn a_lost_message_is_found_by_the_next_one_and_made_up_for() {
    for how in WAYS {
        let fleet = Fleet::new();
        let (a, _, at_a) = joined(fleet.process()).await;
        let (b, line, at_b) = joined(fleet.process()).await;
        in_memory(&at_b, 1).await;
        line.drop_next(1);
        let _ = change(&a, &at_a, how).await;
        line.has_lost(1).await;
        let token = at_a.invalidate(&50).await.unwrap().token().unwrap();
        fleet.clock.advance(ms(1));
        let strict = Read::new().after(token).max_stale(ms(0));
        let load = |_| found(Loaded::value(2).version(9));
        let value = soon(at_b.with(strict).get_or_load(&1, load)).await.unwrap();
        assert_eq!(value.as_deref(), Some(&2), "{how}");
        let bus = b.bus().unwrap();
        assert!(bus.missing >= 1 && bus.replayed >= 1, "{how}: {bus:?}");
    }
}

#[tokio::test]
async fn messages_that_come_twice_and_in_any_order_lead_to_the_last_state() {
    for seed in 0..50 {
        let fleet = Fleet::new();
        let (_a, _, at_a) = joined(fleet.process()).await;
        let (b, line, at_b) = joined(fleet.process()).await;
        in_memory(&at_b, 1).await;
        line.hold();
        line.duplicate_next(5);
        let mut token = None;
        for value in 2..10 {
            token = at_a
                .set(1, Loaded::value(value).version(value))
                .await
                .unwrap()
                .token();
        }
        line.has_held(13).await;
        line.release_shuffled(seed);
        let read = at_b.with(Read::new().after(token.unwrap()));
        assert_eq!(
            soon(read.get(&1)).await.unwrap().as_deref(),
            Some(&9),
            "seed {seed}"
        );
        assert!(b.bus().unwrap().duplicates > 0, "seed {seed}");
        settle(&b).await;
        assert_eq!(
            at_b.get(&1).await.unwrap().as_deref(),
            Some(&9),
            "seed {seed}"
        );
    }
}

#[tokio::test]
async fn a_listener_that_was_cut_off_hears_what_it_missed() {
    let fleet = Fleet::new();
    let (_a, _, at_a) = joined(fleet.process()).await;
    let (b, line, at_b) = joined(fleet.process()).await;
    in_memory(&at_b, 1).await;
    line.inject([BusOperation::Listen], BusFault::Hang);
    line.cut();
    until("the loss is noticed", || !b.bus().unwrap().healthy).await;
    let _ = at_a.set(1, 2).await.unwrap();
    assert_eq!(
        at_b.get(&1).await.unwrap().as_deref(),
        Some(&2),
        "the tier is asked"
    );
    let _ = at_a.set(1, 3).await.unwrap();
    line.heal();
    until("it listens again", || {
        fleet.clock.advance(ms(10));
        b.bus().unwrap().healthy
    })
    .await;
    assert_eq!(at_b.get(&1).await.unwrap().as_deref(), Some(&3));
}

#[tokio::test]
async fn after_three_silent_seconds_every_hit_is_looked_up_in_the_tier() {
    let fleet = Fleet::new();
    let (_a, _, at_a) = joined(fleet.process()).await;
    let (b, line, at_b) = joined(fleet.process()).await;
    in_memory(&at_b, 1).await;
    line.silence();
    let _ = at_a.set(1, 2).await.unwrap();
    fleet.clock.advance(ms(2_999));
    assert_eq!(
        at_b.get_in_memory(&1).as_deref(),
        Some(&1),
        "not yet suspect"
    );
    fleet.clock.advance(ms(1));
    assert_eq!(at_b.get(&1).await.unwrap().as_deref(), Some(&2));
    assert_eq!(at_b.stats().unverified, 0);
    until("that is known", || !b.bus().unwrap().healthy).await;
    let _ = at_a.set(1, 3).await.unwrap();
    assert_eq!(at_b.get(&1).await.unwrap().as_deref(), Some(&3), "still");
}

#[tokio::test]
async fn with_nobody_to_ask_suspects_are_served_and_counted_or_loaded_as_the_cache_says() {
    for isolation in [Isolation::Serve, Isolation::Load] {
        for tiers in [false, true] {
            let fleet = Fleet::new();
            let (larder, line) = if tiers {
                fleet.process()
            } else {
                fleet.process_with(|builder| builder)
            };
            let cache = larder
                .cache("c")
                .ttl("1h")
                .memory_ttl("1h")
                .isolation(isolation);
            let cache: Numbers = cache.build().unwrap();
            cache.get_or_load(&1, |_| found(1)).await.unwrap();
            healthy(&larder).await;
            assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&1));
            assert_eq!(cache.stats().unverified, 0, "heard of everything");
            line.silence();
            let down = StoreFault::Fail(StoreErrorKind::Unavailable);
            fleet.store.inject(Operation::ALL, down);
            fleet.clock.advance(secs(3));
            let here = format!("{isolation:?}, tiers: {tiers}");
            let serves = isolation == Isolation::Serve;
            let value = cache.get_or_load(&1, |_| found(2)).await.unwrap();
            assert_eq!(*value, if serves { 1 } else { 2 }, "{here}");
            assert_eq!(cache.stats().unverified, u64::from(serves), "{here}");
        }
    }
}

/// Has `b` hear a message of `at_a`, whose token this is, behind one that it could not read: whatever
/// it holds is suspect.
async fn heard_behind_a_doubt(fleet: &Fleet, at_a: &Numbers, b: &Larder) -> Token {
    forge(&fleet.bus, "nobody can read this").await;
    let token = at_a.invalidate(&50).await.unwrap().token().unwrap();
    until("both came, and nothing is missing", || {
        let bus = b.bus().unwrap();
        bus.unreadable == 1 && bus.heard > 0 && bus.healthy
    })
    .await;
    token
}

/// A later message was heard, but one that came before it was not: what that was, nobody can be asked.
#[tokio::test]
async fn with_nobody_to_ask_suspects_are_not_served_behind_a_token() {
    for how in ["get", "get in memory", "load", "batch"] {
        let fleet = Fleet::new();
        let (_a, _, at_a) = joined(fleet.process()).await;
        let (b, _, at_b) = joined(fleet.process()).await;
        in_memory(&at_b, 1).await;
        let token = heard_behind_a_doubt(&fleet, &at_a, &b).await;
        let down = StoreFault::Fail(StoreErrorKind::Unavailable);
        fleet.store.inject(Operation::ALL, down);
        let plain = at_b.get(&1).await.unwrap();
        assert_eq!(plain.as_deref(), Some(&1), "{how}: it is all there is");
        let read = at_b.with(Read::new().after(token));
        let value = match how {
            "get" => read.get(&1).await.unwrap(),
            "get in memory" => {
                let memory = Read::new().after(token).tiers(larder::Tiers::Memory);
                at_b.with(memory).get(&1).await.unwrap()
            }
            "load" => read.get_or_load(&1, |_| found(Some(2))).await.unwrap(),
            _ => {
                let load = async |_| Ok::<_, io::Error>([(1, 2)]);
                let values = read.get_or_load_many(&[1], load).await.unwrap();
                values[0].clone()
            }
        };
        let expected = (!how.starts_with("get")).then_some(2);
        assert_eq!(value.as_deref().copied(), expected, "{how}");
    }
}

/// They are one herd, like any other.
#[tokio::test]
async fn behind_a_token_a_suspect_is_loaded_once_and_confirmed_once() {
    for tier_is_down in [true, false] {
        let fleet = Fleet::new();
        let (_a, _, at_a) = joined(fleet.process()).await;
        let (b, _, at_b) = joined(fleet.process()).await;
        in_memory(&at_b, 1).await;
        let token = heard_behind_a_doubt(&fleet, &at_a, &b).await;
        let gate = Gate::new();
        if tier_is_down {
            let down = StoreFault::Fail(StoreErrorKind::Unavailable);
            fleet.store.inject(Operation::ALL, down);
        }
        let leased = fleet.store.begun(Operation::Lease);
        let readers: Vec<_> = (0..50)
            .map(|_| {
                let (at_b, gate) = (at_b.clone(), gate.clone());
                tokio::spawn(async move {
                    let load = async move |_| {
                        gate.wait().await;
                        Ok::<_, io::Error>(Some(2))
                    };
                    let read = at_b.with(Read::new().after(token));
                    read.get_or_load(&1, load).await.unwrap()
                })
            })
            .collect();
        if tier_is_down {
            soon(gate.arrived(1)).await;
        }
        settle_all().await;
        gate.open();
        for reader in readers {
            let seen = soon(reader).await.unwrap();
            let expected = if tier_is_down { 2 } else { 1 };
            assert_eq!(seen.as_deref(), Some(&expected));
        }
        assert_eq!(gate.arrivals(), usize::from(tier_is_down));
        assert_eq!(at_b.stats().fenced, 0);
        if !tier_is_down {
            let now_leased = fleet.store.begun(Operation::Lease);
            assert_eq!(now_leased, leased, "a look at its front was enough");
            assert_eq!(at_b.get_in_memory(&1).as_deref(), Some(&1));
        }
    }
}

/// Lets all tasks come as far as they can without anybody's help.
async fn settle_all() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_the_bus_does_not_take_is_queued_and_told_when_it_is_back() {
    for how in ["invalidate", "set", "tag", "clear", "pattern"] {
        let fleet = Fleet::new();
        let (a, line, at_a) = joined(fleet.process()).await;
        let (_b, _, at_b) = joined(fleet.process()).await;
        in_memory(&at_b, 1).await;
        let down = BusFault::Fail(StoreErrorKind::Unavailable);
        line.inject([BusOperation::Publish], down);
        let receipt = change(&a, &at_a, how).await;
        assert!(receipt.is_queued() && receipt.token().is_none(), "{how}");
        assert_eq!(a.bus().unwrap().unsent, 1, "{how}");
        line.heal();
        // The listening never ended, so nothing but time tells that publishing works again.
        until("it was told", || {
            fleet.clock.advance(ms(100));
            a.bus().unwrap().unsent == 0 && at_b.get_in_memory(&1).is_none()
        })
        .await;
        settle(&a).await;
    }
}

#[tokio::test]
async fn when_the_server_is_another_one_the_last_minute_is_told_again() {
    for (many, age, again) in [(1, 50, true), (1, 61, false), (10_001, 30, true)] {
        let fleet = Fleet::new();
        let bus = Switched::new();
        let line = FaultyBus::new(bus.clone());
        let builder = Larder::builder("t").clock(fleet.clock.clone());
        let a = builder
            .shared(fleet.store.clone())
            .backplane(line.clone())
            .build()
            .unwrap();
        let at_a = numbers(&a);
        at_a.get(&99).await.unwrap();
        healthy(&a).await;
        let keys = (0..many).map(|key| larder::Invalidation::key("c", [format!("{key}")]));
        let _ = a.invalidate_each(keys).await.unwrap();
        for _ in 0..age {
            fleet.clock.advance(secs(1));
            tokio::task::yield_now().await;
        }
        let before = line.finished(BusOperation::Publish);
        bus.fail_over();
        line.cut();
        for _ in 0..200 {
            fleet.clock.advance(ms(10));
            tokio::task::yield_now().await;
        }
        healthy(&a).await;
        settle(&a).await;
        let told = line.finished(BusOperation::Publish) - before;
        assert_eq!(told, u64::from(again), "{many} keys, {age} s ago");
    }
}

/// A bus whose server can be replaced by another one, which knows of nothing.
#[derive(Clone, Debug)]
struct Switched(std::sync::Arc<std::sync::Mutex<LocalBus>>);

impl Switched {
    fn new() -> Self {
        Self(std::sync::Arc::new(LocalBus::new().into()))
    }

    fn fail_over(&self) {
        *self.0.lock().unwrap() = LocalBus::new();
    }

    fn now(&self) -> LocalBus {
        self.0.lock().unwrap().clone()
    }
}

impl Backplane for Switched {
    fn name(&self) -> &str {
        "switched"
    }
    fn publish<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> larder::clock::BoxFuture<'a, larder::store::StoreResult<larder::store::Position>> {
        Box::pin(async move { self.now().publish(channel, message).await })
    }
    fn beat<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> larder::clock::BoxFuture<'a, larder::store::StoreResult<larder::store::Position>> {
        Box::pin(async move { self.now().beat(channel, message).await })
    }
    fn listen<'a>(
        &'a self,
        channel: &'a str,
        notify: &'a mut (dyn FnMut(larder::backplane::Notice) + Send),
    ) -> larder::clock::BoxFuture<'a, larder::store::StoreError> {
        Box::pin(async move { self.now().listen(channel, notify).await })
    }
    fn replay<'a>(
        &'a self,
        channel: &'a str,
        after: larder::store::Position,
        at_most: usize,
    ) -> larder::clock::BoxFuture<'a, larder::store::StoreResult<larder::backplane::Replay>> {
        Box::pin(async move { self.now().replay(channel, after, at_most).await })
    }
}

#[tokio::test]
async fn caches_in_memory_alone_hear_of_each_other() {
    for how in WAYS {
        let fleet = Fleet::new();
        let [(a, _), (b, _)] = [(); 2].map(|()| fleet.process_with(|builder| builder));
        let cache = |larder: &Larder| -> Numbers {
            let cache = larder.cache("c").groups(|_| vec!["g".to_owned()]);
            cache.ttl("1h").grace("1h").in_memory().unwrap()
        };
        let (at_a, at_b) = (cache(&a), cache(&b));
        for cache in [&at_a, &at_b] {
            cache
                .get_or_load(&1, |_| found(Loaded::value(1).tags(["a"])))
                .await
                .unwrap();
        }
        healthy(&a).await;
        healthy(&b).await;
        let receipt = change(&a, &at_a, how).await;
        assert!(receipt.is_acked(), "{how}");
        fleet.clock.advance(ms(1));
        let strict = Read::new().after(receipt.token().unwrap()).max_stale(ms(0));
        let value = soon(at_b.with(strict).get_or_load(&1, |_| found(3)))
            .await
            .unwrap();
        assert_eq!(*value, 3, "{how}");
        assert_eq!(at_b.stats().unverified, 0, "{how}");
    }
}

#[tokio::test]
async fn a_set_is_not_undone_by_its_own_echo() {
    let fleet = Fleet::new();
    let (a, _, at_a) = joined(fleet.process()).await;
    for value in 0..20 {
        let receipt = at_a.set(1, value).await.unwrap();
        let heard = at_a.with(Read::new().after(receipt.token().unwrap()));
        let read = soon(heard.get_explained(&1)).await.unwrap();
        assert_eq!(read.value.as_deref(), Some(&value));
        assert_eq!(read.outcome.source, Source::Memory);
    }
    settle(&a).await;
}

/// A process with a private tier above the shared one, which is in use.
async fn with_private(fleet: &Fleet) -> (Larder, Line, Numbers, common::Faulty) {
    let private = common::faulty(&fleet.clock).0;
    let tiers =
        |builder: larder::LarderBuilder| builder.tier(private.clone()).shared(fleet.store.clone());
    let (larder, line, cache) = joined(fleet.process_with(tiers)).await;
    until("the private tier is in use", || {
        fleet.clock.advance(ms(20));
        larder.tiers()[0].health == TierHealth::Closed
    })
    .await;
    (larder, line, cache, private)
}

#[tokio::test]
async fn a_private_tier_above_a_shared_one_drops_what_others_change() {
    for how in ["invalidate", "set", "clear", "tag", "pattern"] {
        let fleet = Fleet::new();
        let (a, _, at_a) = joined(fleet.process()).await;
        let (b, _, at_b, private) = with_private(&fleet).await;
        in_memory(&at_b, 1).await;
        assert_eq!(private.store().len(), 1);
        let receipt = change(&a, &at_a, how).await;
        let read = at_b.with(Read::new().after(receipt.token().unwrap()));
        let first = soon(read.get(&1)).await.unwrap();
        settle(&b).await;
        let expected = (how == "set").then_some(2);
        assert_eq!(first.as_deref().copied(), expected, "{how}");
        assert_eq!(
            at_b.get(&1).await.unwrap().as_deref().copied(),
            expected,
            "{how}"
        );
    }
}

#[tokio::test]
async fn a_doubt_empties_private_tiers_above_a_shared_one() {
    let fleet = Fleet::new();
    let (_a, _, at_a) = joined(fleet.process()).await;
    let (b, line, at_b, private) = with_private(&fleet).await;
    in_memory(&at_b, 1).await;
    assert_eq!(private.store().len(), 1);
    line.drop_next(1);
    let _ = at_a.set(1, 2).await.unwrap();
    line.has_lost(1).await;
    forge(&fleet.bus, "nobody can read this").await;
    until("it is in doubt", || b.bus().unwrap().unreadable > 0).await;
    until("the private tier is empty", || {
        fleet.clock.advance(ms(20));
        private.store().is_empty()
    })
    .await;
    assert_eq!(at_b.get(&1).await.unwrap().as_deref(), Some(&2));
}

#[tokio::test]
async fn a_process_that_was_stopped_believes_neither_memory_nor_private_copies() {
    let fleet = Fleet::new();
    let (_a, _, at_a) = joined(fleet.process()).await;
    let (b, line, at_b, _private) = with_private(&fleet).await;
    in_memory(&at_b, 1).await;
    line.hold();
    let _ = at_a.set(1, 2).await.unwrap();
    // Nobody else runs between the jump of the clock and the read.
    fleet.clock.advance(secs(3));
    assert_eq!(at_b.get(&1).await.unwrap().as_deref(), Some(&2));
    line.release();
    settle(&b).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_a_gap_and_what_is_foreign_or_forged_is_counted() {
    let fleet = Fleet::new();
    let other = LocalBus::new();
    let (_a, _, at_a) = joined(fleet.process()).await;
    let (b, _, at_b) = joined(fleet.process()).await;
    in_memory(&at_b, 1).await;
    forge(&fleet.bus, "nobody can read this").await;
    until("it is counted", || b.bus().unwrap().unreadable == 1).await;
    assert_eq!(b.bus().unwrap().doubts, 2, "one at joining, one now");
    let read = at_b.with(Read::new()).get_explained(&1).await.unwrap();
    assert_eq!(read.outcome.reason, Reason::Confirmed, "the tier was asked");
    // A message of another namespace, in our channel.
    let foreigner = Larder::builder("u").clock(fleet.clock.clone());
    let foreigner = foreigner.backplane(other.clone()).build().unwrap();
    let _ = foreigner.invalidate_tag("a").await.unwrap();
    let replay = other.replay("u", first_of(&other).await, 10).await.unwrap();
    let larder::backplane::Replay::Complete(messages) = replay else {
        panic!("the journal is whole");
    };
    let healthy_before = b.bus().unwrap().doubts;
    forge(&fleet.bus, messages[0].1.clone()).await;
    until("it is counted", || b.bus().unwrap().refused == 1).await;
    assert_eq!(b.bus().unwrap().doubts, healthy_before);
    in_memory(&at_b, 1).await;
    let token = at_a.invalidate(&50).await.unwrap().token().unwrap();
    soon(at_b.with(Read::new().after(token)).get(&1))
        .await
        .unwrap();
    assert!(b.bus().unwrap().healthy, "its number was no gap");
}

/// The position before the first message of the channel `u`.
async fn first_of(bus: &LocalBus) -> larder::store::Position {
    let now = bus.beat("u", Bytes::new()).await.unwrap();
    larder::store::Position { count: 0, ..now }
}

#[tokio::test]
async fn while_messages_are_lost_at_random_nothing_stale_is_served_behind_a_token() {
    for seed in larder_testkit::seeds(60) {
        let fleet = Fleet::new();
        let (a, _, at_a) = joined(fleet.process()).await;
        let (b, line, at_b) = joined(fleet.process()).await;
        line.drop_share(0.2, seed.number());
        let mut rng = seed.rng();
        for version in 1..30_u64 {
            let how = ["invalidate", "set", "clear", "tag", "group"][rng.usize(0..5)];
            let receipt = if how == "set" {
                at_a.set(1, Loaded::value(version).tags(["a"]))
                    .await
                    .unwrap()
            } else {
                change(&a, &at_a, how).await
            };
            let read = at_b.clone();
            let reading = tokio::spawn(async move {
                let load = |_| found(Loaded::value(version).tags(["a"]));
                let after = Read::new().after(receipt.token().unwrap());
                read.with(after).get_or_load(&1, load).await
            });
            let value = turn_until(&fleet.clock, ms(5), reading).await.unwrap();
            assert_eq!(
                value.as_deref(),
                Some(&version),
                "{how}, seed {}",
                seed.number()
            );
        }
        line.heal();
        settle(&b).await;
    }
}

#[tokio::test]
async fn a_load_under_way_is_not_stored_if_another_process_invalidates_meanwhile() {
    for how in WAYS {
        let fleet = Fleet::new();
        let (a, _, at_a) = joined(fleet.process()).await;
        let (b, _, at_b) = joined(fleet.process()).await;
        let gate = Gate::new();
        let before = tokio::spawn({
            let (at_b, gate) = (at_b.clone(), gate.clone());
            let load = |_| async move {
                gate.wait().await;
                Ok::<_, io::Error>(Loaded::value(1).tags(["a"]))
            };
            async move { at_b.get_or_load(&1, load).await }
        });
        gate.arrived(1).await;
        let receipt = change(&a, &at_a, how).await;
        gate.open();
        soon(before).await.unwrap().unwrap();
        let read = at_b.with(Read::new().after(receipt.token().unwrap()));
        let value = soon(read.get(&1)).await.unwrap();
        let expected = (how == "set").then_some(2);
        assert_eq!(value.as_deref().copied(), expected, "{how}");
        settle(&b).await;
        assert_eq!(
            at_a.get(&1).await.unwrap().as_deref().copied(),
            expected,
            "{how}"
        );
        if how == "set" {
            assert_eq!(*at_b.get_or_load(&1, |_| never()).await.unwrap(), 2);
        }
    }
}

#[tokio::test]
async fn what_a_tier_missed_is_told_again_when_it_has_made_up_for_it() {
    for (how, bus_fails) in [
        ("invalidate", false),
        ("invalidate", true),
        ("tag", false),
        ("tag", true),
        ("set", false),
        ("set", true),
    ] {
        let fleet = Fleet::new();
        let near = FaultyStore::new(fleet.store.clone(), fleet.clock.clone());
        let (a, line) = fleet.process_with(|builder| builder.shared(near.clone()));
        let (b, _) = fleet.process();
        let (at_a, at_b) = (numbers(&a), numbers(&b));
        let _ = at_a.set(1, Loaded::value(1).tags(["a"])).await.unwrap();
        at_b.get(&1).await.unwrap();
        healthy(&b).await;
        near.inject(
            [Operation::Delete, Operation::Set],
            StoreFault::Fail(StoreErrorKind::Unavailable),
        );
        if bus_fails {
            let fault = BusFault::Fail(StoreErrorKind::Unavailable);
            line.inject([BusOperation::Publish], fault);
        }
        let changed = match how {
            "tag" => a.invalidate_tag("a").await,
            "set" => at_a.set(1, 2).await,
            _ => at_a.invalidate(&1).await,
        };
        assert!(changed.unwrap().is_queued(), "{how}");
        if bus_fails {
            line.heal();
            let finished = line.finished(BusOperation::Publish);
            until("the bus is told", || {
                fleet.clock.advance(ms(20));
                line.finished(BusOperation::Publish) > finished
            })
            .await;
        }
        // It hears of it, and finds the old value in the tier once more.
        settle(&b).await;
        assert_eq!(at_b.get(&1).await.unwrap().as_deref(), Some(&1), "{how}");
        near.heal();
        until("everybody was told again", || {
            fleet.clock.advance(ms(20));
            a.bus().is_some_and(|bus| bus.unsent == 0) && a.tiers()[0].owed == 0
        })
        .await;
        settle(&b).await;
        assert_eq!(at_b.get(&1).await.unwrap(), None, "{how}");
    }
}

/// What it looked up before may be what the message was about.
#[tokio::test]
async fn a_reader_after_a_doubt_does_not_join_a_look_up_from_before() {
    for loads in [true, false] {
        let fleet = Fleet::new();
        let (a, _, at_a) = joined(fleet.process()).await;
        // Of another release, which A cannot read.
        let b = another_process("t", &fleet.clock, &fleet.store);
        let at_b = numbers(&b);
        let _ = at_b.set(1, 1).await.unwrap();
        let operation = if loads {
            Operation::Lease
        } else {
            Operation::Get
        };
        let gate = fleet.store.pause_after(operation);
        let read = |value: u64| {
            let at_a = at_a.clone();
            tokio::spawn(async move {
                if loads {
                    let read = at_a.get_or_load(&1, |_| found(value)).await;
                    return Some(*read.unwrap());
                }
                at_a.get(&1).await.unwrap().as_deref().copied()
            })
        };
        let before = read(2);
        gate.arrived(1).await;
        let doubts = a.bus().unwrap().doubts;
        let _ = at_b.set(1, 2).await.unwrap();
        forge(&fleet.bus, "1 was set").await;
        until("it is in doubt", || a.bus().unwrap().doubts > doubts).await;
        let after = read(2);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        gate.open();
        assert_eq!(soon(before).await.unwrap(), Some(1), "it came before");
        assert_eq!(soon(after).await.unwrap(), Some(2), "it loads: {loads}");
    }
}
