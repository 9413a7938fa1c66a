//! An invalidation by tag, group or clear wins over entries, loads and refreshes, whoever chose the
//! tags and when.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use common::{
    Answered, Turns, Wobbly, another_process, failed, faulty, found, ms, secs, soon, unasked,
    with_tier, with_two_tiers,
};
use larder::envelope::Header;
use larder::{Cache, ErrorKind, Larder, Loaded, Store};
use larder_testkit::{Gate, LoadCounter, ManualClock, Operation, seeds, settle};
use tokio::task::JoinHandle;

type Numbers = Cache<u64, u64>;

fn tagged(value: u64, tags: &[&str]) -> Answered<Loaded<u64>> {
    found(Loaded::value(value).tags(tags))
}

/// A read whose loader waits at `gate` and chooses its tags afterwards.
fn reader(
    cache: &Numbers,
    gate: &Gate,
    value: u64,
    tags: &'static [&'static str],
) -> JoinHandle<larder::Result<Option<Arc<u64>>>> {
    let (cache, gate) = (cache.clone(), gate.clone());
    tokio::spawn(async move {
        let load = |_| async move {
            gate.wait().await;
            Ok::<_, io::Error>(Loaded::value(value).tags(tags))
        };
        cache.get_or_load(&1, load).await
    })
}

/// Memory alone, one shared tier, and a private tier above a shared one.
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
async fn a_tag_takes_every_entry_that_carries_it_and_no_other() {
    for (here, larder, _) in larders() {
        let numbers: Numbers = larder.cache("n").build().unwrap();
        let words: Cache<String, String> = larder.cache("w").build().unwrap();
        let both = |n| tagged(n, &["a", "b"]);
        numbers.get_or_load(&1, |_| both(1)).await.unwrap();
        let b = Loaded::value(2).tags(["b"]);
        let _ = numbers.set(2, b).await.unwrap();
        let a = Loaded::value("x".to_owned()).tags(["a"]);
        let _ = words.set("x".to_owned(), a).await.unwrap();
        assert!(larder.invalidate_tag("a").await.unwrap().is_acked());
        assert_eq!(numbers.get(&1).await.unwrap(), None, "{here}");
        assert_eq!(words.get("x").await.unwrap(), None, "{here}");
        assert_eq!(numbers.get(&2).await.unwrap().as_deref(), Some(&2));
        // What comes afterwards stays.
        numbers.get_or_load(&1, |_| both(3)).await.unwrap();
        assert_eq!(numbers.get_in_memory(&1).as_deref(), Some(&3), "{here}");
    }
}

#[tokio::test]
async fn a_load_that_chooses_its_tags_late_is_stored_nowhere_if_one_of_them_went_meanwhile() {
    for (here, larder, _) in larders() {
        let cache: Numbers = larder.cache("c").build().unwrap();
        let gate = Gate::new();
        let before = reader(&cache, &gate, 7, &["a", "b"]);
        gate.arrived(1).await;
        let _ = larder.invalidate_tag("b").await.unwrap();
        gate.open();
        assert_eq!(soon(before).await.unwrap().unwrap().as_deref(), Some(&7));
        settle(&larder).await;
        assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
        assert_eq!(cache.stats().fenced, 1, "{here}");
    }
}

#[tokio::test]
async fn a_reader_after_an_invalidation_by_tag_is_not_given_what_a_flight_from_before_brings() {
    for (here, larder, _) in larders() {
        let cache: Numbers = larder.cache("c").build().unwrap();
        let gate = Gate::new();
        let before = reader(&cache, &gate, 7, &["a"]);
        gate.arrived(1).await;
        let _ = larder.invalidate_tag("a").await.unwrap();
        let after = reader(&cache, &gate, 8, &["a"]);
        tokio::task::yield_now().await;
        gate.open();
        assert_eq!(soon(before).await.unwrap().unwrap().as_deref(), Some(&7));
        let after = soon(after).await.unwrap().unwrap();
        assert_eq!(after.as_deref(), Some(&8), "{here}");
    }
}

#[tokio::test]
async fn of_a_batch_a_reader_after_an_invalidation_gets_nothing_from_before() {
    for (here, larder, _) in larders() {
        let cache: Numbers = larder.cache("c").build().unwrap();
        let gate = Gate::new();
        let before = reader(&cache, &gate, 7, &["a"]);
        gate.arrived(1).await;
        let _ = larder.invalidate_tag("a").await.unwrap();
        let many = tokio::spawn({
            let cache = cache.clone();
            async move {
                let load = |keys: Vec<u64>| {
                    let answers = keys
                        .into_iter()
                        .map(|key| (key, Loaded::value(8).tags(["a"])));
                    found(answers.collect::<Vec<_>>())
                };
                cache.get_or_load_many(&[1, 2], load).await
            }
        });
        tokio::task::yield_now().await;
        gate.open();
        soon(before).await.unwrap().unwrap();
        let many = soon(many).await.unwrap().unwrap();
        assert!(
            many.iter().all(|value| value.as_deref() == Some(&8)),
            "{here}: {many:?}"
        );
    }
}

#[tokio::test]
async fn whoever_takes_a_lead_over_is_content_with_what_it_loads_itself() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let gate = tier.pause_before(Operation::Lease);
    let first = reader(&cache, &Gate::new(), 7, &["a"]);
    gate.arrived(1).await;
    let _ = larder.invalidate_tag("a").await.unwrap();
    let open = Gate::new();
    open.open();
    let heir = reader(&cache, &open, 8, &["a"]);
    tokio::task::yield_now().await;
    first.abort();
    gate.open();
    assert_eq!(soon(heir).await.unwrap().unwrap().as_deref(), Some(&8));
    settle(&larder).await;
    assert_eq!(
        cache.get_in_memory(&1).as_deref(),
        Some(&8),
        "and it is kept"
    );
}

#[tokio::test]
async fn a_refresh_from_before_an_invalidation_by_tag_is_stored_nowhere() {
    for (here, larder, clock) in larders() {
        let cache: Numbers = larder.cache("c").ttl("1m").grace("1h").build().unwrap();
        cache.get_or_load(&1, |_| tagged(6, &["a"])).await.unwrap();
        clock.advance(secs(61));
        let gate = Gate::new();
        let stale = reader(&cache, &gate, 7, &["a"]).await.unwrap().unwrap();
        assert_eq!(stale.as_deref(), Some(&6), "{here}");
        soon(gate.arrived(1)).await;
        let _ = larder.invalidate_tag("a").await.unwrap();
        assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
        // The refresh shows the stale value to all who join it. This one must not take it.
        let after = reader(&cache, &gate, 8, &["a"]);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        gate.open();
        assert_eq!(
            soon(after).await.unwrap().unwrap().as_deref(),
            Some(&8),
            "{here}"
        );
        settle(&larder).await;
        assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&8), "{here}");
    }
}

#[tokio::test]
async fn a_value_that_was_not_modified_keeps_its_tags() {
    for (here, larder, clock) in larders() {
        let cache: Numbers = larder
            .cache("c")
            .ttl("1m")
            .stale_on_error("1h")
            .build()
            .unwrap();
        cache.get_or_load(&1, |_| tagged(6, &["a"])).await.unwrap();
        clock.advance(secs(61));
        let renewed = cache.get_or_load(&1, |_| found(Loaded::not_modified()));
        assert_eq!(renewed.await.unwrap().as_deref(), Some(&6), "{here}");
        assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&6), "{here}");
        let _ = larder.invalidate_tag("a").await.unwrap();
        assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
    }
}

#[tokio::test]
async fn a_value_whose_tag_went_does_not_come_back_by_not_being_modified() {
    for (here, larder, clock) in larders() {
        let cache: Numbers = larder
            .cache("c")
            .ttl("1m")
            .stale_on_error("1h")
            .build()
            .unwrap();
        cache.get_or_load(&1, |_| tagged(6, &["a"])).await.unwrap();
        clock.advance(secs(61));
        let gate = Gate::new();
        let renewal = tokio::spawn({
            let (cache, gate) = (cache.clone(), gate.clone());
            let load = |_| async move {
                gate.wait().await;
                Ok::<_, io::Error>(Loaded::not_modified().tags(["b"]))
            };
            async move { cache.get_or_load(&1, load).await }
        });
        gate.arrived(1).await;
        let _ = larder.invalidate_tag("a").await.unwrap();
        gate.open();
        soon(renewal).await.unwrap().unwrap();
        settle(&larder).await;
        assert_eq!(cache.get_in_memory(&1), None, "{here}");
    }
}

#[tokio::test]
async fn a_stale_value_whose_tag_went_stands_in_for_nothing() {
    for (here, larder, clock) in larders() {
        let cache: Numbers = larder
            .cache("c")
            .ttl("1m")
            .stale_on_error("1h")
            .build()
            .unwrap();
        cache.get_or_load(&1, |_| tagged(6, &["a"])).await.unwrap();
        clock.advance(secs(61));
        let stood_in = cache.get_or_load(&1, |_| failed::<u64>()).await.unwrap();
        assert_eq!(*stood_in, 6, "{here}");
        clock.advance(secs(61));
        let _ = larder.invalidate_tag("a").await.unwrap();
        let error = cache
            .get_or_load(&1, |_| failed::<u64>())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Load, "{here}");
    }
}

#[tokio::test]
async fn a_stale_value_whose_tag_goes_while_its_load_fails_does_not_stand_in() {
    for (here, larder, clock) in larders() {
        let cache: Numbers = larder
            .cache("c")
            .ttl("1m")
            .stale_on_error("1h")
            .build()
            .unwrap();
        cache.get_or_load(&1, |_| tagged(6, &["a"])).await.unwrap();
        clock.advance(secs(61));
        let gate = Gate::new();
        let read = tokio::spawn({
            let (cache, gate) = (cache.clone(), gate.clone());
            async move {
                let load = |_| async move {
                    gate.wait().await;
                    Err::<u64, _>(io::Error::other("no route"))
                };
                cache.get_or_load(&1, load).await
            }
        });
        soon(gate.arrived(1)).await;
        let _ = larder.invalidate_tag("a").await.unwrap();
        gate.open();
        let error = soon(read).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Load, "{here}");
    }
}

#[tokio::test]
async fn a_load_is_refused_if_another_process_invalidates_its_tag_meanwhile() {
    let (larder, clock, tier) = with_tier("t");
    let other = another_process("t", &clock, &tier);
    let (here, there): (Numbers, Numbers) = (
        larder.cache("c").build().unwrap(),
        other.cache("c").build().unwrap(),
    );
    // The record of the tag may be there, or not, or made anew meanwhile.
    for case in 0..3 {
        if case > 0 {
            let _ = there.set(2, Loaded::value(2).tags(["a"])).await.unwrap();
        }
        let gate = Gate::new();
        let before = reader(&here, &gate, 7, &["a"]);
        gate.arrived(1).await;
        let _ = other.invalidate_tag("a").await.unwrap();
        if case > 1 {
            let _ = there.set(3, Loaded::value(3).tags(["a"])).await.unwrap();
        }
        gate.open();
        assert_eq!(soon(before).await.unwrap().unwrap().as_deref(), Some(&7));
        settle(&larder).await;
        assert_eq!(here.get_in_memory(&1), None, "case {case}");
        assert_eq!(there.get(&1).await.unwrap(), None, "case {case}");
        assert_eq!(here.get(&1).await.unwrap(), None, "case {case}");
    }
}

#[tokio::test]
async fn what_another_process_invalidated_is_not_read_from_the_tiers() {
    let (larder, clock, tier) = with_tier("t");
    let other = another_process("t", &clock, &tier);
    let (here, there): (Numbers, Numbers) = (
        larder.cache("c").build().unwrap(),
        other.cache("c").build().unwrap(),
    );
    let _ = here.set(1, Loaded::value(1).tags(["a"])).await.unwrap();
    assert_eq!(there.get(&1).await.unwrap().as_deref(), Some(&1));
    let _ = larder.invalidate_tag("a").await.unwrap();
    there.invalidate_in_memory(&1);
    assert_eq!(there.get(&1).await.unwrap(), None);
}

#[tokio::test]
async fn a_record_that_the_tier_lost_is_a_miss_and_never_an_old_entry() {
    let (larder, clock, tier) = with_tier("t");
    let other = another_process("t", &clock, &tier);
    let (here, there): (Numbers, Numbers) = (
        larder.cache("c").build().unwrap(),
        other.cache("c").build().unwrap(),
    );
    for record in ["t:~t%3Aa", "t:~c%3Ac"] {
        let _ = here.set(1, Loaded::value(1).tags(["a"])).await.unwrap();
        assert_eq!(
            there.get(&1).await.unwrap().as_deref(),
            Some(&1),
            "{record}"
        );
        tier.store().delete(&[record.into()], None).await.unwrap();
        there.invalidate_in_memory(&1);
        assert_eq!(there.get(&1).await.unwrap(), None, "{record}");
        // A record that is made anew has another version.
        let _ = there.set(2, Loaded::value(2).tags(["a"])).await.unwrap();
        assert_eq!(there.get(&1).await.unwrap(), None, "{record}");
    }
}

#[tokio::test]
async fn many_invalidated_tags_do_not_disturb_an_entry_that_has_none_of_them() {
    for (here, larder, _) in larders() {
        let cache: Numbers = larder.cache("c").build().unwrap();
        cache
            .get_or_load(&1, |_| tagged(1, &["kept"]))
            .await
            .unwrap();
        for n in 0..100_000 {
            if n % 1_000 == 0 || here == "memory alone" {
                let _ = larder.invalidate_tag(&format!("gone {n}")).await.unwrap();
            }
        }
        let kept = cache.get_or_load(&1, |_| unasked::<Loaded<u64>>()).await;
        assert_eq!(kept.unwrap().as_deref(), Some(&1), "{here}");
        assert_eq!(cache.stats().loads, 1);
        let _ = larder.invalidate_tag("kept").await.unwrap();
        assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
    }
}

#[tokio::test]
async fn a_tag_that_was_forgotten_and_taken_up_again_still_refuses_older_loads() {
    let (larder, _clock) = larder_testkit::larder("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let gate = Gate::new();
    let before = reader(&cache, &gate, 7, &["a"]);
    gate.arrived(1).await;
    let _ = larder.invalidate_tag("a").await.unwrap();
    for n in 0..60_000 {
        let _ = larder
            .invalidate_tag(&format!("passing {n}"))
            .await
            .unwrap();
    }
    let _ = cache.set(2, Loaded::value(2).tags(["a"])).await.unwrap();
    gate.open();
    assert_eq!(soon(before).await.unwrap().unwrap().as_deref(), Some(&7));
    settle(&larder).await;
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert_eq!(cache.get(&2).await.unwrap().as_deref(), Some(&2));
}

#[tokio::test]
async fn an_entry_has_up_to_a_thousand_tags_and_one_more_is_an_error() {
    for (here, larder, _) in larders() {
        let cache: Numbers = larder.cache("c").build().unwrap();
        let names = |count: u64| (0..count).map(|n| format!("tag {n}")).collect::<Vec<_>>();
        let most = Loaded::value(1).tags(names(1_000));
        let _ = cache.set(1, most).await.unwrap();
        assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&1), "{here}");
        let _ = larder.invalidate_tag("tag 999").await.unwrap();
        assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
        for count in [1_001, 100_000] {
            let more = || Loaded::value(2).tags(names(count));
            let error = cache.set(1, more()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{here}: {count}");
            let error = cache.get_or_load(&1, |_| found(more())).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{here}: {count}");
        }
        assert_eq!(cache.get(&1).await.unwrap(), None, "{here}");
    }
}

#[tokio::test]
async fn what_cannot_be_a_tag_is_an_error() {
    let (larder, _clock) = larder_testkit::larder("t");
    let cache: Cache<u64, u64> = larder
        .cache("c")
        .groups(|key: &u64| vec!["g".repeat(*key as usize)])
        .build()
        .unwrap();
    let long = "x".repeat(1_025);
    for tag in ["", &long] {
        let error = larder.invalidate_tag(tag).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let error = cache.invalidate_group(tag).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let error = cache
            .set(5, Loaded::value(1).tags([tag]))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
    for key in [0, 1_025] {
        let error = cache.set(key, 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "a group of {key} bytes");
    }
    let longest = "x".repeat(1_024);
    let fits = Loaded::value(1).tags([&longest]);
    let _ = cache.set(1_024, fits).await.unwrap();
    let _ = larder.invalidate_tag(&longest).await.unwrap();
    assert_eq!(cache.get(&1_024).await.unwrap(), None);
}

#[tokio::test]
async fn groups_that_panic_are_an_error_and_cost_one_load_for_all() {
    let (larder, _clock) = larder_testkit::larder("t");
    let cache: Numbers = larder
        .cache("c")
        .groups(|_: &u64| panic!("a slip"))
        .build()
        .unwrap();
    let loads = LoadCounter::new();
    let readers: Vec<_> = (0..10)
        .map(|_| {
            let (cache, loads) = (cache.clone(), loads.clone());
            tokio::spawn(async move {
                let load = |_| async move {
                    let _load = loads.begin();
                    tokio::task::yield_now().await;
                    Ok::<_, io::Error>(1)
                };
                cache.get_or_load(&1, load).await
            })
        })
        .collect();
    for reader in readers {
        let error = soon(reader).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
    assert_eq!(loads.starts(), 1);
    let error = cache.set(1, 1).await.unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
}

#[tokio::test]
async fn a_group_takes_its_entries_and_leaves_the_same_name_elsewhere_alone() {
    for (here, larder, _) in larders() {
        let pages = |name: &str| -> Cache<(u64, u64), u64> {
            let pages = larder
                .cache(name)
                .groups(|(user, _): &(u64, u64)| vec![format!("u{user}")]);
            pages.build().unwrap()
        };
        let (pages, others) = (pages("page"), pages("other"));
        for key in [(1, 1), (1, 2), (2, 1)] {
            let _ = pages.set(key, 1).await.unwrap();
            let _ = others
                .set(key, Loaded::value(1).tags(["u1"]))
                .await
                .unwrap();
        }
        let _ = pages.invalidate_group("u1").await.unwrap();
        assert_eq!(pages.get(&(1, 1)).await.unwrap(), None, "{here}");
        assert_eq!(pages.get(&(1, 2)).await.unwrap(), None, "{here}");
        assert!(pages.get(&(2, 1)).await.unwrap().is_some(), "{here}");
        assert!(others.get(&(1, 1)).await.unwrap().is_some(), "{here}");
    }
}

#[tokio::test]
async fn a_clear_reaches_every_schema_version() {
    let (larder, clock, tier) = with_tier("t");
    let other = another_process("t", &clock, &tier);
    let old: Numbers = larder.cache("c").version(1).build().unwrap();
    let new: Numbers = other.cache("c").version(2).build().unwrap();
    let _ = old.set(1, 1).await.unwrap();
    let _ = new.set(1, 2).await.unwrap();
    let _ = old.clear().await.unwrap();
    assert_eq!(old.get(&1).await.unwrap(), None);
    new.invalidate_in_memory(&1);
    assert_eq!(new.get(&1).await.unwrap(), None);
    let _ = new.set(1, 3).await.unwrap();
    new.invalidate_in_memory(&1);
    assert_eq!(new.get(&1).await.unwrap().as_deref(), Some(&3));
}

#[tokio::test]
async fn an_entry_in_a_tier_carries_one_version_for_each_tag_and_its_cache() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").build().unwrap();
    let _ = cache
        .set(1, Loaded::value(1).tags(["a", "b", "a"]))
        .await
        .unwrap();
    let bytes = common::bytes_of(tier.store(), "t:c@1:1").await.unwrap();
    assert_eq!(Header::parse(&bytes).unwrap().tag_count, 3);
}

/// One random world: a database with a version, and a cache of it whose entry has two tags and a
/// group.
struct World {
    larder: Larder,
    cache: Numbers,
    version: Arc<AtomicU64>,
    floor: Arc<AtomicU64>,
    here: String,
}

async fn read(cache: &Numbers, version: &Arc<AtomicU64>, turns: Turns, how: u8) -> Option<u64> {
    let source = version.clone();
    let load = |_| async move {
        turns.give_way().await;
        let value = source.load(SeqCst);
        turns.give_way().await;
        Ok::<_, io::Error>(Loaded::value(value).tags(["t1", "both"]))
    };
    match how {
        0 => cache.get(&1).await.unwrap().map(|value| *value),
        1 => cache.get_in_memory(&1).map(|value| *value),
        _ => cache
            .get_or_load(&1, load)
            .await
            .unwrap()
            .map(|value| *value),
    }
}

async fn change(world: &World, how: u8, new: u64) {
    let (larder, cache) = (&world.larder, &world.cache);
    let _ = match how {
        0 => larder.invalidate_tag("t1").await,
        1 => larder.invalidate_tag("both").await,
        2 => cache.invalidate_group("g").await,
        3 => cache.invalidate(&1).await,
        4 => cache.clear().await,
        5 => cache.invalidate_matching("?").await,
        _ => cache.set(1, Loaded::value(new).tags(["t1", "both"])).await,
    }
    .unwrap();
}

fn worlds(cases: usize, tiers: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for seed in seeds(cases) {
        let mut rng = seed.rng();
        fastrand::seed(seed.number());
        let here = format!("{tiers} tiers, seed {}", seed.number());
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
            let cache = larder.cache("c").groups(|_| vec!["g".to_owned()]);
            let grace = rng.bool();
            let cache = if grace {
                cache.ttl("20ms").grace("1h")
            } else {
                cache.ttl("1h")
            };
            let cache: Numbers = cache.build().unwrap();
            let world = Arc::new(World {
                larder,
                cache,
                version: Arc::new(AtomicU64::new(1)),
                floor: Arc::new(AtomicU64::new(1)),
                here,
            });
            let sets = rng.bool();
            let over = Arc::new(AtomicBool::new(false));
            let time = tokio::spawn({
                let (over, mut rng) = (over.clone(), rng.fork());
                async move {
                    while !over.load(SeqCst) {
                        clock.advance(ms(rng.u64(0..4)));
                        tokio::task::yield_now().await;
                    }
                }
            });
            let mut tasks = Vec::new();
            for _ in 0..3 {
                let (world, mut rng) = (world.clone(), rng.fork());
                tasks.push(tokio::spawn(async move {
                    for _ in 0..rng.usize(1..5) {
                        Turns::up_to(6, &mut rng).give_way().await;
                        let least = world.floor.load(SeqCst);
                        let how = rng.u8(0..8);
                        let turns = Turns::up_to(5, &mut rng);
                        let value = read(&world.cache, &world.version, turns, how).await;
                        let fresh = value.is_none_or(|value| value >= least);
                        assert!(
                            fresh,
                            "{}: way {how} read {value:?} below {least}",
                            world.here
                        );
                    }
                }));
            }
            for _ in 0..if sets { 1 } else { rng.usize(1..3) } {
                let (world, mut rng) = (world.clone(), rng.fork());
                tasks.push(tokio::spawn(async move {
                    for _ in 0..rng.usize(1..5) {
                        Turns::up_to(8, &mut rng).give_way().await;
                        let new = world.version.fetch_add(1, SeqCst) + 1;
                        let how = rng.u8(0..if sets { 8 } else { 6 });
                        change(&world, how, new).await;
                        world.floor.fetch_max(new, SeqCst);
                    }
                }));
            }
            for task in tasks {
                soon(task).await.unwrap();
            }
            over.store(true, SeqCst);
            time.await.unwrap();
        });
    }
}

#[test]
fn no_read_falls_behind_an_invalidation_of_any_kind_in_memory_alone() {
    worlds(2_000, 0);
}

#[test]
fn no_read_falls_behind_an_invalidation_of_any_kind_above_tiers() {
    worlds(1_000, 1);
    worlds(1_000, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_many_threads_no_read_falls_behind_an_invalidation_by_tag() {
    let (larder, _clock) = larder_testkit::larder("t");
    let cache: Numbers = larder.cache("c").capacity(100).in_memory().unwrap();
    let (version, floor) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(1)));
    let over = Arc::new(AtomicBool::new(false));
    let loads = LoadCounter::new();
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (cache, version, floor) = (cache.clone(), version.clone(), floor.clone());
            let (over, loads) = (over.clone(), loads.clone());
            tokio::spawn(async move {
                while !over.load(SeqCst) {
                    let least = floor.load(SeqCst);
                    let (source, loads) = (version.clone(), loads.clone());
                    let load = |_| async move {
                        let _load = loads.begin();
                        let value = source.load(SeqCst);
                        Ok::<_, io::Error>(Loaded::value(value).tags(["a"]))
                    };
                    let value = cache.get_or_load(&1, load).await.unwrap().unwrap();
                    assert!(*value >= least, "read {value}, but {least} is known");
                }
            })
        })
        .collect();
    for round in 0..20_000 {
        let before = loads.starts();
        let new = version.fetch_add(1, SeqCst) + 1;
        let _ = larder.invalidate_tag("a").await.unwrap();
        floor.store(new, SeqCst);
        if round % 16 == 0 {
            tokio::task::yield_now().await;
        }
        if round % 1_000 == 0 {
            // However the machine shares its time out, readers meet what was invalidated.
            for _ in 0..1_000_000 {
                if loads.starts() > before {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }
    over.store(true, SeqCst);
    for reader in readers {
        soon(reader).await.unwrap();
    }
    assert!(loads.starts() >= 20);
}
