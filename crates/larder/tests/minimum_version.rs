//! A loader that reads from a lagging replica does not bring an old value back.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use common::{
    Answered, Fleet, Turns, Wobbly, another_process, faulty, found, healthy, ms, secs, soon,
    turn_until, unasked, with_tier, with_two_tiers,
};
use larder::store::StoreErrorKind;
use larder::{Cache, Larder, Loaded, Read};
use larder_testkit::{Gate, ManualClock, Operation, StoreFault, seeds, settle};

type Numbers = Cache<u64, u64>;

fn version(version: u64) -> Answered<Loaded<u64>> {
    found(Loaded::value(version).version(version))
}

fn larders() -> Vec<(&'static str, Larder, Arc<ManualClock>)> {
    let (alone, alone_clock) = larder_testkit::larder("t");
    let (one, one_clock, _) = with_tier("t");
    let (two, two_clock, _, _) = with_two_tiers("t");
    vec![
        ("memory alone", alone, alone_clock),
        ("one tier", one, one_clock),
        ("two tiers", two, two_clock),
    ]
}

#[tokio::test]
async fn what_a_lagging_replica_gives_is_served_and_not_stored() {
    for (here, larder, clock) in larders() {
        let cache: Numbers = larder.cache("c").build().unwrap();
        cache.get_or_load(&1, |_| version(4)).await.unwrap();
        assert!(cache.invalidate_before(&1, 5).await.unwrap().is_acked());
        assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
        let lagging = cache.get_or_load(&1, |_| version(4)).await.unwrap();
        assert_eq!(lagging.as_deref(), Some(&4), "{here}");
        assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
        // A value that says nothing of its version may be any.
        let unknown = found(Loaded::value(4));
        cache.get_or_load(&1, |_| unknown).await.unwrap();
        assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
        let caught_up = cache.get_or_load(&1, |_| version(5)).await.unwrap();
        assert_eq!(caught_up.as_deref(), Some(&5), "{here}");
        let kept = cache.get_or_load(&1, |_| unasked::<Loaded<u64>>()).await;
        assert_eq!(kept.unwrap().as_deref(), Some(&5), "{here}");
        // After 10 s nobody waits for the replica any more.
        let _ = cache.invalidate_before(&1, 9).await.unwrap();
        clock.advance(secs(10));
        cache.get_or_load(&1, |_| version(7)).await.unwrap();
        assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&7), "{here}");
    }
}

#[tokio::test]
async fn a_load_under_way_is_refused_if_its_version_is_too_low_and_so_is_every_other() {
    for (here, larder, _) in larders() {
        let cache: Numbers = larder.cache("c").build().unwrap();
        for lagging in [4, 5] {
            let gate = Gate::new();
            let load = tokio::spawn({
                let (cache, gate) = (cache.clone(), gate.clone());
                let load = move |_| async move {
                    gate.wait().await;
                    Ok::<_, std::io::Error>(Loaded::value(lagging).version(lagging))
                };
                async move { cache.get_or_load(&1, load).await }
            });
            gate.arrived(1).await;
            let _ = cache.invalidate_before(&1, 5).await.unwrap();
            gate.open();
            soon(load).await.unwrap().unwrap();
            settle(&larder).await;
            assert_eq!(cache.get(&1).await.unwrap(), None, "{here}: {lagging}");
        }
    }
}

#[tokio::test]
async fn a_minimum_of_one_process_holds_for_the_others_through_the_tier() {
    let (larder, clock, tier) = with_tier("t");
    let other = another_process("t", &clock, &tier);
    let (here, there): (Numbers, Numbers) = (
        larder.cache("c").build().unwrap(),
        other.cache("c").build().unwrap(),
    );
    let _ = here.invalidate_before(&1, 5).await.unwrap();
    there.get_or_load(&1, |_| version(4)).await.unwrap();
    assert_eq!(there.get_in_memory(&1), None);
    assert_eq!(here.get(&1).await.unwrap(), None);
    there.get_or_load(&1, |_| version(6)).await.unwrap();
    assert_eq!(here.get(&1).await.unwrap().as_deref(), Some(&6));
}

#[tokio::test]
async fn a_minimum_outlives_what_comes_after_it() {
    for how in [
        "invalidate",
        "pattern",
        "newer",
        "set in memory",
        "expire",
        "clear",
    ] {
        for (here, larder, clock) in larders() {
            let here = format!("{here}, {how}");
            let cache: Numbers = larder.cache("c").build().unwrap();
            let _ = cache.invalidate_before(&1, 5).await.unwrap();
            clock.advance(secs(4));
            if how == "newer" {
                cache.get_or_load(&1, |_| version(5)).await.unwrap();
            }
            if how == "set in memory" {
                let _ = cache.set_in_memory(1, Loaded::value(4).version(4));
                assert_eq!(cache.get_in_memory(&1), None, "{here}");
            }
            let receipt = match how {
                "pattern" => cache.invalidate_matching("1").await,
                "expire" => cache.expire(&1).await,
                "clear" => cache.clear().await,
                _ => cache.invalidate(&1).await,
            };
            assert!(receipt.unwrap().is_acked(), "{here}");
            for _ in 0..2 {
                cache.get_or_load(&1, |_| version(4)).await.unwrap();
                assert_eq!(cache.get_in_memory(&1), None, "{here}");
                assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
                clock.advance(ms(2_999));
            }
            clock.advance(secs(60));
            cache.get_or_load(&1, |_| version(4)).await.unwrap();
            assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&4), "{here}");
        }
    }
}

#[tokio::test]
async fn every_process_that_heard_of_a_minimum_keeps_to_it() {
    let fleet = Fleet::new();
    for tiers in [true, false] {
        let process = || {
            fleet.process_with(|builder| match tiers {
                true => builder.shared(fleet.store.clone()),
                false => builder,
            })
        };
        let [(a, _), (b, _)] = [process(), process()];
        let cache = |larder: &Larder| -> Numbers {
            larder.cache(if tiers { "c" } else { "d" }).build().unwrap()
        };
        let (at_a, at_b) = (cache(&a), cache(&b));
        for (larder, cache) in [(&a, &at_a), (&b, &at_b)] {
            cache.get_or_load(&1, |_| version(4)).await.unwrap();
            healthy(larder).await;
        }
        let receipt = at_a.invalidate_before(&1, 5).await.unwrap();
        let heard = Read::new().after(receipt.token().unwrap());
        assert_eq!(soon(at_b.with(heard).get(&1)).await.unwrap(), None);
        at_b.get_or_load(&1, |_| version(4)).await.unwrap();
        assert_eq!(at_b.get_in_memory(&1), None, "tiers: {tiers}");
        // Whoever invalidates meanwhile leaves it where it is.
        assert!(at_b.invalidate(&1).await.unwrap().is_acked());
        at_a.get_or_load(&1, |_| version(4)).await.unwrap();
        assert_eq!(at_a.get(&1).await.unwrap(), None, "tiers: {tiers}");
        at_b.get_or_load(&1, |_| version(5)).await.unwrap();
        assert_eq!(at_b.get_in_memory(&1).as_deref(), Some(&5));
        fleet.clock.advance(secs(10));
        assert!(at_a.invalidate(&1).await.unwrap().is_acked());
        at_a.get_or_load(&1, |_| version(4)).await.unwrap();
        assert_eq!(at_a.get(&1).await.unwrap().as_deref(), Some(&4));
        settle(&a).await;
        settle(&b).await;
    }
}

#[tokio::test]
async fn versions_never_go_backwards_whatever_sets_them() {
    for (here, larder, _) in larders() {
        let cache: Numbers = larder.cache("c").build().unwrap();
        let versioned = |version: u64| Loaded::value(version).version(version);
        for (set, kept) in [(3, 3), (2, 3), (5, 5), (4, 5)] {
            let _ = cache.set(1, versioned(set)).await.unwrap();
            let found = cache.get(&1).await.unwrap();
            assert_eq!(found.as_deref(), Some(&kept), "{here}: {set}");
        }
        let _ = cache.invalidate_before(&1, 8).await.unwrap();
        let _ = cache.invalidate_before(&1, 6).await.unwrap();
        cache.get_or_load(&1, |_| version(7)).await.unwrap();
        assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
        let _ = cache.set(1, versioned(7)).await.unwrap();
        assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
        let _ = cache.set(1, versioned(8)).await.unwrap();
        assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&8), "{here}");
    }
}

#[tokio::test]
async fn a_tier_that_refuses_to_write_the_minimum_loses_the_entry_at_least() {
    let (larder, clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    cache.get_or_load(&1, |_| version(4)).await.unwrap();
    tier.inject([Operation::Set], StoreFault::Fail(StoreErrorKind::Refused));
    assert!(cache.invalidate_before(&1, 5).await.unwrap().is_acked());
    tier.heal();
    let other: Numbers = another_process("t", &clock, &tier)
        .cache("c")
        .build()
        .unwrap();
    assert_eq!(other.get(&1).await.unwrap(), None);
    cache.get_or_load(&1, |_| version(4)).await.unwrap();
    assert_eq!(cache.get_in_memory(&1), None, "memory knows the minimum");
}

#[test]
fn no_read_falls_behind_a_version_that_it_was_told_to_wait_for() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for seed in seeds(1_000) {
        let mut rng = seed.rng();
        fastrand::seed(seed.number());
        let (tiers, number) = (rng.usize(0..3), seed.number());
        runtime.block_on(async {
            let clock = ManualClock::new();
            let mut builder = Larder::builder("t")
                .clock(clock.clone())
                .without_backplane()
                .tier_budget(secs(60));
            for _ in 0..tiers {
                let wobbly = Wobbly::new(faulty(&clock).0, Turns::up_to(3, &mut rng));
                builder = builder.shared(wobbly);
            }
            let larder = builder.build().unwrap();
            let cache: Numbers = larder.cache("c").build().unwrap();
            // The primary is ahead of the replica that loads read from.
            let [primary, replica, floor] = [(); 3].map(|()| Arc::new(AtomicU64::new(1)));
            let mut tasks = Vec::new();
            for _ in 0..3 {
                let (cache, replica, floor) = (cache.clone(), replica.clone(), floor.clone());
                let mut rng = rng.fork();
                tasks.push(tokio::spawn(async move {
                    for _ in 0..4 {
                        Turns::up_to(6, &mut rng).give_way().await;
                        let least = floor.load(SeqCst);
                        let (turns, replica) = (Turns::up_to(3, &mut rng), replica.clone());
                        let load = |_| async move {
                            turns.give_way().await;
                            let version = replica.load(SeqCst);
                            turns.give_way().await;
                            Ok::<_, std::io::Error>(Loaded::value(version).version(version))
                        };
                        // What its own load finds is its own affair; a hit must be new.
                        cache.get_or_load(&1, load).await.unwrap();
                        if let Some(hit) = cache.get(&1).await.unwrap() {
                            let fresh = *hit >= least;
                            assert!(fresh, "{tiers} tiers, seed {number}: {hit} below {least}");
                        }
                    }
                }));
            }
            tasks.push(tokio::spawn({
                let (cache, mut rng) = (cache.clone(), rng.fork());
                async move {
                    for _ in 0..4 {
                        Turns::up_to(8, &mut rng).give_way().await;
                        let new = primary.fetch_add(1, SeqCst) + 1;
                        let _ = cache.invalidate_before(&1, new).await.unwrap();
                        floor.store(new, SeqCst);
                        Turns::up_to(8, &mut rng).give_way().await;
                        replica.store(rng.u64(replica.load(SeqCst)..=new), SeqCst);
                    }
                }
            }));
            for task in tasks {
                turn_until(&clock, ms(1), task).await;
            }
        });
    }
}
