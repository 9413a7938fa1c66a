//! Entries that live as long as somebody reads them, and no longer than to their greatest age.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::sync::Arc;

use common::{
    Faulty, Fleet, another_process, faulty, found, healthy, ms, never, secs, with_tier,
    with_two_tiers,
};
use larder::store::StoreErrorKind;
use larder::{Cache, ErrorKind, Larder, Loaded, Read, Reason, Result, Source, State, Tiers};
use larder_testkit::{ManualClock, Operation, StoreFault, larder, settle};

type Numbers = Cache<u64, u64>;

/// Gone after 100 s without a read, and 1,000 s old at most.
fn sliding(larder: &Larder) -> Numbers {
    let cache = larder.cache("c").ttl("100s").sliding("1000s");
    cache.memory_ttl("1000s").build().unwrap()
}

async fn load(cache: &Numbers, value: u64) {
    let loaded = cache.get_or_load(&1, |_| found(Loaded::value(value)));
    assert_eq!(loaded.await.unwrap().as_deref(), Some(&value));
}

/// Whether memory has the value; asking is a read.
fn has(cache: &Numbers) -> bool {
    cache.get_in_memory(&1).is_some()
}

#[tokio::test]
async fn what_is_read_lives_on_and_what_is_not_dies_with_its_idle_time() {
    let (larder, clock) = larder("t");
    let cache = sliding(&larder);
    load(&cache, 7).await;
    for _ in 0..5 {
        clock.advance(secs(99));
        assert!(has(&cache));
    }
    clock.advance(ms(99_999));
    assert!(has(&cache));
    clock.advance(secs(100));
    assert!(!has(&cache));
    load(&cache, 8).await;
}

#[tokio::test]
async fn nothing_is_older_than_the_greatest_age_however_often_it_is_read() {
    let (larder, clock) = larder("t");
    let cache = sliding(&larder);
    load(&cache, 7).await;
    for second in 1..1_000 {
        clock.advance(secs(1));
        assert_eq!(
            *cache.get_or_load(&1, |_| never()).await.unwrap(),
            7,
            "{second}"
        );
    }
    clock.advance(ms(999));
    assert!(has(&cache));
    clock.advance(ms(1));
    assert!(!has(&cache));
    // The next one has a life of its own.
    load(&cache, 8).await;
    clock.advance(secs(99));
    assert!(has(&cache));
}

#[tokio::test]
async fn a_read_prolongs_once_a_tenth_of_the_idle_time_has_passed() {
    let (larder, clock) = larder("t");
    let cache = sliding(&larder);
    for (read_at, dies_at) in [(0, 100_000), (9_999, 100_000), (10_000, 110_000)] {
        let _ = cache.clear().await.unwrap();
        load(&cache, 7).await;
        clock.advance(ms(read_at));
        assert!(has(&cache));
        let reader = cache.with(Read::new());
        let told = reader.get_explained(&1).await.unwrap().outcome;
        assert_eq!(
            told.remaining,
            Some(ms(dies_at - read_at)),
            "read at {read_at}"
        );
        clock.advance(ms(dies_at - read_at));
        assert!(!has(&cache), "read at {read_at}");
    }
}

#[tokio::test]
async fn an_entry_may_have_an_idle_time_of_its_own_and_an_absent_one_does_not_slide() {
    let (larder, clock) = larder("t");
    let cache = larder.cache("c").ttl("100s").sliding("1000s");
    let cache: Numbers = cache.negative_ttl("100s").build().unwrap();
    let lives_with_reads = async |entry: Loaded<u64>, pause: u64| {
        let _ = cache.set(1, entry).await.unwrap();
        let reader = cache.with(Read::new());
        let mut lived = 0;
        while reader.get_explained(&1).await.unwrap().outcome.state == State::Fresh {
            clock.advance(secs(pause));
            lived += pause;
        }
        lived
    };
    assert_eq!(
        lives_with_reads(Loaded::value(7).ttl("40s"), 39).await,
        1_014
    );
    assert_eq!(lives_with_reads(Loaded::value(7).ttl("40s"), 41).await, 41);
    assert_eq!(
        lives_with_reads(Loaded::value(7).ttl("2000s"), 500).await,
        1_000
    );
    assert_eq!(lives_with_reads(Loaded::absent(), 50).await, 100);
}

#[tokio::test]
async fn jitter_shortens_the_greatest_age_alone() {
    let (larder, clock) = larder("t");
    let cache = larder.cache("c").ttl("100s").sliding("1000s");
    let cache: Numbers = cache.jitter_up_to("200s").build().unwrap();
    for key in 0..100 {
        cache.set_in_memory(key, 7).unwrap();
    }
    let left = || {
        (0..100)
            .filter(|key| cache.get_in_memory(key).is_some())
            .count()
    };
    let mut after = Vec::new();
    for _ in 0..100 {
        clock.advance(secs(10));
        after.push(left());
    }
    assert_eq!((after[78], after[99]), (100, 0), "{after:?}");
    assert!((20..=80).contains(&after[89]), "{after:?}");
}

#[tokio::test]
async fn expire_invalidate_and_tags_end_what_slides() {
    let (larder, clock) = larder("t");
    let cache = larder.cache("c").ttl("100s").sliding("1000s").grace("50s");
    let cache: Numbers = cache.build().unwrap();
    let tagged = || found(Loaded::value(7).tags(["a"]));
    for way in ["expire", "invalidate", "tag", "clear"] {
        cache.get_or_load(&1, |_| tagged()).await.unwrap();
        clock.advance(secs(60));
        assert!(has(&cache));
        clock.advance(secs(60));
        assert!(has(&cache), "it was prolonged");
        let _ = match way {
            "expire" => cache.expire(&1).await.unwrap(),
            "invalidate" => cache.invalidate(&1).await.unwrap(),
            "tag" => larder.invalidate_tag("a").await.unwrap(),
            _ => cache.clear().await.unwrap(),
        };
        if way == "expire" {
            // Stale it is served, for its grace, and reading it does not change that.
            for _ in 0..5 {
                let read = cache.with(Read::new()).get_explained(&1).await.unwrap();
                assert_eq!(read.outcome.state, State::Stale);
                clock.advance(secs(10));
            }
        }
        assert!(!has(&cache), "{way}");
        load(&cache, 8).await;
        let _ = cache.invalidate(&1).await.unwrap();
    }
}

#[tokio::test]
async fn grace_begins_behind_the_idle_time() {
    let (larder, clock) = larder("t");
    let cache = larder.cache("c").ttl("100s").sliding("1000s").grace("50s");
    let cache: Numbers = cache.build().unwrap();
    load(&cache, 7).await;
    clock.advance(secs(90));
    assert!(has(&cache));
    clock.advance(secs(149));
    let read = cache.with(Read::new()).get_explained(&1).await.unwrap();
    assert_eq!(
        (read.value.as_deref(), read.outcome.state),
        (Some(&7), State::Stale)
    );
    clock.advance(secs(1));
    assert!(!has(&cache));
}

#[tokio::test]
async fn early_refreshes_go_by_the_greatest_age() {
    let (larder, clock) = larder("t");
    let cache = larder.cache("c").ttl("100s").sliding("1000s");
    let cache: Numbers = cache.eager_refresh(0.8).build().unwrap();
    load(&cache, 7).await;
    for _ in 0..9 {
        // Behind the share of the idle time, and far from that of the greatest age.
        clock.advance(secs(85));
        assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
    }
    clock.advance(secs(36));
    assert_eq!(*cache.get_or_load(&1, |_| found(8)).await.unwrap(), 7);
    settle(&larder).await;
    assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 8);
    assert_eq!(cache.stats().refreshes, 1);
}

#[tokio::test]
async fn options_that_make_no_sense_are_refused_with_the_mend() {
    let (larder, _clock) = larder("t");
    let refusal = |built: Result<Numbers>| {
        let error = built.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.to_string()
    };
    let cache = || larder.cache::<u64, u64>("c");
    for (built, mend) in [
        (cache().no_ttl().sliding("1h").build(), "so set one"),
        (
            cache().sliding("0s").build(),
            "the longest age that you can bear",
        ),
        (
            cache().ttl("1h").sliding("59m").build(),
            "make the ttl shorter",
        ),
        (
            cache().class("session").sliding("1h").build(),
            "make the ttl shorter",
        ),
    ] {
        let problem = refusal(built);
        assert!(problem.contains(mend), "{problem}");
    }
    let same: Result<Numbers> = cache().ttl("1h").sliding("1h").build();
    assert!(same.is_ok());
}

// With tiers.

fn touches(tier: &Faulty) -> u64 {
    tier.begun(Operation::Touch)
}

/// Whether another process, which has nothing in memory, finds the value in the tier.
async fn others_find(clock: &Arc<ManualClock>, tier: &Faulty) -> bool {
    let larder = another_process("t", clock, tier);
    let reader = larder.cache("c").build().unwrap();
    let found: Option<Arc<u64>> = reader.get(&1).await.unwrap();
    settle(&larder).await;
    found.is_some()
}

#[tokio::test]
async fn hits_in_memory_keep_the_entry_and_its_tags_in_the_tier() {
    let (larder, clock, tier) = with_tier("t");
    let cache = sliding(&larder);
    let tagged = |_| found(Loaded::value(7).tags(["a", "b"]));
    cache.get_or_load(&1, tagged).await.unwrap();
    for round in 1..=9 {
        clock.advance(secs(99));
        assert!(has(&cache));
        settle(&larder).await;
        assert_eq!(tier.store().len(), 1, "after {} s", 99 * round);
    }
    assert!(others_find(&clock, &tier).await);
    assert_eq!(cache.stats().loads, 1);
}

#[tokio::test]
async fn without_a_read_it_is_gone_from_the_tier_after_its_idle_time() {
    let (larder, clock, tier) = with_tier("t");
    let cache = larder.cache("c").ttl("100s").sliding("1000s");
    // Grace and stale-on-error are no life below memory.
    let cache: Numbers = cache.grace("1h").stale_on_error("2h").build().unwrap();
    load(&cache, 7).await;
    clock.advance(ms(99_999));
    assert_eq!(tier.store().len(), 1);
    clock.advance(ms(1));
    assert_eq!(tier.store().len(), 0);
    assert!(!others_find(&clock, &tier).await);
}

#[tokio::test]
async fn behind_its_greatest_age_it_stands_in_from_the_tier_as_any_other() {
    let (larder, clock, tier) = with_tier("t");
    let cache = larder.cache("c").ttl("100s").sliding("1000s");
    let cache: Numbers = cache.stale_on_error("1h").build().unwrap();
    load(&cache, 7).await;
    for _ in 0..11 {
        clock.advance(secs(90));
        cache.get(&1).await.unwrap();
        settle(&larder).await;
    }
    clock.advance(secs(2_000));
    let other = another_process("t", &clock, &tier);
    let other: Numbers = other.cache("c").stale_on_error("1h").build().unwrap();
    let failing = other.get_or_load(&1, |_| common::failed::<u64>()).await;
    assert_eq!(*failing.unwrap(), 7);
}

#[tokio::test]
async fn what_others_read_lives_here_and_is_loaded_anew_at_its_greatest_age() {
    let (larder, clock, tier) = with_tier("t");
    let cache = sliding(&larder);
    load(&cache, 7).await;
    for _ in 0..10 {
        clock.advance(secs(95));
        assert!(others_find(&clock, &tier).await);
    }
    // Here nobody read it for 950 s, so memory has forgotten it; the tier has not.
    let read = cache.with(Read::new());
    let told = read.get_or_load_explained(&1, |_| never()).await.unwrap();
    assert!(matches!(told.outcome.source, Source::Tier(_)));
    assert_eq!(
        told.outcome.remaining,
        Some(secs(50)),
        "to the greatest age"
    );
    clock.advance(ms(49_999));
    assert!(has(&cache));
    clock.advance(ms(1));
    assert!(!others_find(&clock, &tier).await);
    load(&cache, 8).await;
}

#[tokio::test]
async fn the_tiers_are_told_once_in_a_tenth_of_the_idle_time() {
    let (larder, clock, tier) = with_tier("t");
    let cache = sliding(&larder);
    load(&cache, 7).await;
    for _ in 0..50 {
        clock.advance(secs(1));
        assert!(has(&cache));
        settle(&larder).await;
    }
    // One call for the records of its tags, one for itself.
    assert_eq!(touches(&tier), 2 * 5);
    // Neither does a reader of the tier tell it each time.
    let below = cache.with(Read::new().tiers(Tiers::Shared));
    for _ in 0..50 {
        clock.advance(secs(1));
        assert!(below.get(&1).await.unwrap().is_some());
        settle(&larder).await;
    }
    assert_eq!(touches(&tier), 2 * 10);
    assert_eq!(cache.stats().not_prolonged, 0);
}

#[tokio::test]
async fn a_cache_that_does_not_slide_tells_the_tiers_nothing() {
    let (larder, clock, tier) = with_tier("t");
    let cache: Numbers = larder.cache("c").ttl("100s").build().unwrap();
    load(&cache, 7).await;
    clock.advance(secs(59));
    assert!(has(&cache));
    clock.advance(secs(1));
    assert!(cache.get(&1).await.unwrap().is_some());
    settle(&larder).await;
    assert_eq!(touches(&tier), 0);
}

#[tokio::test]
async fn memory_asks_the_tier_again_after_its_memory_ttl_however_often_it_is_read() {
    let (larder, clock, tier) = with_tier("t");
    let cache = larder.cache("c").ttl("100s").sliding("1000s");
    let cache: Numbers = cache.memory_ttl("30s").build().unwrap();
    load(&cache, 7).await;
    let leases = tier.begun(Operation::Lease);
    for _ in 0..30 {
        clock.advance(secs(1));
        assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
        settle(&larder).await;
    }
    assert_eq!(tier.begun(Operation::Lease), leases + 1);
}

#[tokio::test]
async fn every_tier_is_told() {
    let (larder, clock, upper, lower) = with_two_tiers("t");
    let cache = sliding(&larder);
    load(&cache, 7).await;
    for _ in 0..5 {
        clock.advance(secs(99));
        assert!(has(&cache));
        settle(&larder).await;
    }
    assert_eq!((upper.store().len(), lower.store().len()), (1, 1));
    assert_eq!((touches(&upper), touches(&lower)), (5, 10));
}

#[tokio::test]
async fn a_tier_that_fails_or_cannot_is_no_error_and_forgets_sooner() {
    for kind in [
        StoreErrorKind::Unavailable,
        StoreErrorKind::Refused,
        StoreErrorKind::Unsupported,
    ] {
        let (larder, clock, tier) = with_tier("t");
        let cache = sliding(&larder);
        tier.inject([Operation::Touch], StoreFault::Fail(kind));
        load(&cache, 7).await;
        clock.advance(secs(60));
        assert!(has(&cache));
        settle(&larder).await;
        clock.advance(secs(40));
        assert!(has(&cache), "{kind:?}");
        settle(&larder).await;
        assert_eq!(tier.store().len(), 0, "{kind:?}");
        assert_eq!(cache.stats().failed, 0);
    }
}

#[tokio::test]
async fn a_tier_that_hangs_holds_up_no_reader() {
    let (larder, clock, tier) = with_tier("t");
    let cache = sliding(&larder);
    load(&cache, 7).await;
    tier.inject([Operation::Touch], StoreFault::Hang);
    for _ in 0..5 {
        clock.advance(secs(20));
        assert_eq!(*cache.get_or_load(&1, |_| never()).await.unwrap(), 7);
        tokio::task::yield_now().await;
    }
    tier.heal();
    settle(&larder).await;
    assert_eq!((cache.stats().loads, cache.stats().hits_memory), (1, 5));
}

#[test]
fn outside_a_runtime_memory_slides_and_the_tier_is_told_by_the_next_read_inside() {
    let (larder, clock, tier) = with_tier("t");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.unwrap();
    let cache = sliding(&larder);
    let other: Cache<u64, u64> = larder.cache("other").ttl("1h").build().unwrap();
    runtime.block_on(load(&cache, 7));
    clock.advance(secs(60));
    assert!(has(&cache));
    assert_eq!(touches(&tier), 0);
    runtime.block_on(async {
        other.get(&2).await.unwrap();
        clock.advance(secs(20));
        assert!(has(&cache));
        settle(&larder).await;
    });
    clock.advance(secs(99));
    assert_eq!(tier.store().len(), 1);
    assert!(has(&cache));
}

#[tokio::test]
async fn what_is_suspect_is_confirmed_within_its_idle_time_and_not_beyond() {
    let fleet = Fleet::new();
    let (larder, line) = fleet.process();
    let cache = sliding(&larder);
    cache.get(&99).await.unwrap();
    healthy(&larder).await;
    load(&cache, 7).await;
    line.silence();
    let told = async || {
        let read = cache.with(Read::new()).get_explained(&1).await.unwrap();
        settle(&larder).await;
        (read.value.is_some(), read.outcome.reason)
    };
    // Each confirmation is a read, for memory and for the tier.
    for _ in 0..5 {
        fleet.clock.advance(secs(80));
        assert_eq!(told().await, (true, Reason::Confirmed));
        assert_eq!(fleet.store.store().len(), 1);
    }
    // The tier has it for as long as memory, though the header of its envelope says more.
    fleet.clock.advance(ms(99_999));
    assert_eq!(told().await.1, Reason::Confirmed);
    fleet.clock.advance(secs(100));
    assert_eq!(fleet.store.store().len(), 0);
    assert!(!told().await.0);
    assert!(fleet.store.begun(Operation::Touch) > 0);
}

#[tokio::test]
async fn an_entry_that_slides_takes_its_extra_of_the_bound() {
    let clock = ManualClock::new();
    let (tier, _handle) = faulty(&clock);
    let larder = Larder::builder("t").clock(clock).without_backplane();
    let larder = larder.shared(tier).build().unwrap();
    let plain: Numbers = larder.cache("plain").build().unwrap();
    let sliding = sliding(&larder);
    load(&plain, 7).await;
    load(&sliding, 7).await;
    assert!(sliding.stats().weight > plain.stats().weight + 64);
}
