//! What is made from cached values goes with them: their tags, their time, and whatever happens to
//! them.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::future::{Future, pending, poll_fn};
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use common::{
    Fleet, another_process, found, healthy, ms, never, secs, soon, turn_until, unasked, with_tier,
    with_two_tiers,
};
use larder::store::StoreErrorKind;
use larder::{Cache, ErrorKind, Invalidation, Larder, Loaded, Read, Tiers, Token, collect};
use larder_testkit::{Gate, ManualClock, Operation, StoreFault, settle};

type Numbers = Cache<u64, u64>;

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

/// Makes entry 1 of `page` from entry 7 of `product`, which holds `value` and carries `tags`.
async fn page_of(page: &Numbers, product: &Numbers, value: u64, tags: &'static [&str]) -> u64 {
    let product = product.clone();
    let made = page.get_or_load(&1, |_| async move {
        let load = |_| found(Loaded::value(value).tags(tags));
        let product = product.get_or_load(&7, load).await?;
        Ok::<_, larder::Error>(*product.unwrap() * 10)
    });
    *soon(made).await.unwrap()
}

#[tokio::test]
async fn what_is_made_from_an_entry_goes_with_it_whatever_happens_to_it() {
    let ways = [
        "invalidate",
        "set",
        "tag",
        "clear",
        "each",
        "before",
        "pattern",
    ];
    for how in ways {
        for (here, larder, _) in larders() {
            let here = format!("{how}, {here}");
            let product: Numbers = larder.cache("product").build().unwrap();
            let page: Numbers = larder.cache("page").build().unwrap();
            assert_eq!(page_of(&page, &product, 1, &["a"]).await, 10);
            assert_eq!(page.get(&1).await.unwrap().as_deref(), Some(&10), "{here}");
            let _ = match how {
                "invalidate" => product.invalidate(&7).await,
                "set" => product.set(7, Loaded::value(2).tags(["a"])).await,
                "tag" => larder.invalidate_tag("a").await,
                "clear" => product.clear().await,
                "before" => product.invalidate_before(&7, 0).await,
                "pattern" => product.invalidate_matching("7").await,
                _ => {
                    larder
                        .invalidate_each([Invalidation::key("product", ["7"])])
                        .await
                }
            }
            .unwrap();
            assert_eq!(page.get(&1).await.unwrap(), None, "{here}");
            assert_eq!(page_of(&page, &product, 2, &["a"]).await, 20, "{here}");
            settle(&larder).await;
            assert_eq!(page.get(&1).await.unwrap().as_deref(), Some(&20), "{here}");
        }
    }
}

/// Two processes, the second of which holds the product as 1 and hears no more of anything; and the
/// product has become 2, with a token of that.
async fn one_that_has_not_heard(
    fleet: &Fleet,
    how: &str,
) -> ([(Larder, Numbers, Numbers); 2], Token) {
    let pair = [fleet.process(), fleet.process()].map(|(larder, line)| {
        let product: Numbers = larder.cache("product").build().unwrap();
        let page: Numbers = larder.cache("page").build().unwrap();
        (line, (larder, product, page))
    });
    let [(_, a), (line, b)] = pair;
    let _ = a.1.set(7, Loaded::value(1).tags(["a"])).await.unwrap();
    b.1.get(&7).await.unwrap();
    healthy(&b.0).await;
    // What was read before the bus was joined is looked up once more.
    b.1.get(&7).await.unwrap();
    assert_eq!(b.1.get_in_memory(&7).as_deref(), Some(&1));
    line.hold();
    let changed = match how {
        "set" => a.1.set(7, 2).await,
        "tag" => a.0.invalidate_tag("a").await,
        "clear" => a.1.clear().await,
        _ => a.1.invalidate(&7).await,
    };
    let token = changed.unwrap().token().unwrap();
    ([a, b], token)
}

#[tokio::test]
async fn what_is_made_for_others_is_not_made_from_what_is_gone_unheard() {
    for how in ["invalidate", "set", "tag", "clear"] {
        let fleet = Fleet::new();
        let ([a, b], _) = one_that_has_not_heard(&fleet, how).await;
        assert_eq!(page_of(&b.2, &b.1, 2, &[]).await, 20, "{how}");
        settle(&b.0).await;
        assert_eq!(page_of(&a.2, &a.1, 2, &[]).await, 20, "{how}");
    }
}

#[tokio::test]
async fn what_was_read_in_memory_alone_is_not_kept_for_others() {
    let fleet = Fleet::new();
    let ([a, b], _) = one_that_has_not_heard(&fleet, "invalidate").await;
    let product = b.1.clone();
    let made = b.2.get_or_load(&1, |_| async move {
        Ok::<_, io::Error>(*product.get_in_memory(&7).unwrap() * 10)
    });
    assert_eq!(*soon(made).await.unwrap(), 10);
    settle(&b.0).await;
    assert_eq!(page_of(&a.2, &a.1, 2, &[]).await, 20);
}

#[tokio::test]
async fn what_memory_could_not_vouch_for_is_a_source_and_not_for_others() {
    for how in ["in memory", "get", "load"] {
        let fleet = Fleet::new();
        let [(_a, at_a), (b, at_b)] = [fleet.process(), fleet.process()].map(|(larder, line)| {
            let product: Numbers = larder.cache("product").ttl("1h").build().unwrap();
            let page: Numbers = larder.cache("page").ttl("1h").build().unwrap();
            (larder, (product, page, line))
        });
        let (product, page, line) = at_b;
        let _ = product.set(7, 1).await.unwrap();
        healthy(&b).await;
        product.get(&7).await.unwrap();
        line.silence();
        fleet.clock.advance(secs(3));
        let reading = product.clone();
        let made = page.get_or_load(&1, |_| async move {
            let alone = reading.with(Read::new().tiers(Tiers::Memory));
            let value = match how {
                "in memory" => reading.get_in_memory(&7),
                "get" => alone.get(&7).await?,
                _ => Some(alone.get_or_load(&7, |_| never()).await?),
            };
            Ok::<_, larder::Error>(value.map_or(0, |value| *value * 10))
        });
        assert_eq!(*soon(made).await.unwrap(), 10, "{how}");
        settle(&b).await;
        assert_eq!(product.stats().unverified, 1, "{how}");
        assert_eq!(at_a.1.get(&1).await.unwrap(), None, "{how}");
        let _ = product.invalidate(&7).await.unwrap();
        assert_eq!(page.get_in_memory(&1), None, "{how}");
    }
}

#[tokio::test]
async fn what_stands_in_for_a_load_that_takes_too_long_is_a_source_too() {
    for (here, larder, clock) in larders() {
        let product: Numbers = larder
            .cache("product")
            .ttl("10s")
            .stale_on_error("1h")
            .in_memory()
            .unwrap();
        let page: Numbers = larder.cache("page").build().unwrap();
        for many in [false, true] {
            let _ = product.set(7, 1).await.unwrap();
            clock.advance(secs(11));
            let reading = product.clone();
            let making = tokio::spawn({
                let page = page.clone();
                async move {
                    let load = |_| async move {
                        let impatient = reading.with(Read::new().deadline(secs(1)));
                        let value = if many {
                            let load = |_| pending::<io::Result<Vec<(u64, u64)>>>();
                            impatient.get_or_load_many(&[7], load).await?.remove(0)
                        } else {
                            let load = |_| pending::<io::Result<Option<u64>>>();
                            impatient.get_or_load(&7, load).await?
                        };
                        Ok::<_, larder::Error>(*value.unwrap() * 10)
                    };
                    page.get_or_load(&1, load).await.map(|page| *page)
                }
            });
            let made = turn_until(&clock, ms(100), making).await;
            assert_eq!(made.unwrap(), 10, "{many}, {here}");
            assert!(page.get(&1).await.unwrap().is_some(), "{many}, {here}");
            let _ = product.invalidate(&7).await.unwrap();
            assert_eq!(page.get(&1).await.unwrap(), None, "{many}, {here}");
        }
    }
}

#[tokio::test]
async fn a_token_reaches_what_the_value_is_made_from() {
    let fleet = Fleet::new();
    let ([_a, b], token) = one_that_has_not_heard(&fleet, "invalidate").await;
    // So that the result goes to nobody but the caller.
    fleet.store.inject(
        [Operation::Lease],
        StoreFault::Fail(StoreErrorKind::Refused),
    );
    let product = b.1.clone();
    let load = |_| async move {
        let product = product.get_or_load(&7, |_| found(2)).await?;
        Ok::<_, larder::Error>(*product * 10)
    };
    let reading = tokio::spawn(async move {
        let read = Read::new().after(token);
        b.2.with(read).get_or_load(&1, load).await.map(|page| *page)
    });
    let page = turn_until(&fleet.clock, secs(1), reading).await;
    assert_eq!(page.unwrap(), 20);
}

#[tokio::test]
async fn what_is_made_from_a_cache_in_memory_alone_goes_from_the_tiers_too() {
    for how in ["invalidate", "before", "set", "clear", "pattern"] {
        for (here, larder, _) in larders() {
            let product: Numbers = larder.cache("product").in_memory().unwrap();
            let page: Numbers = larder.cache("page").build().unwrap();
            assert_eq!(page_of(&page, &product, 1, &[]).await, 10);
            let _ = match how {
                "invalidate" => product.invalidate(&7).await,
                "before" => product.invalidate_before(&7, 0).await,
                "set" => product.set(7, 2).await,
                "clear" => product.clear().await,
                _ => product.invalidate_matching("7").await,
            }
            .unwrap();
            assert_eq!(page.get(&1).await.unwrap(), None, "{how}, {here}");
        }
    }
}

#[tokio::test]
async fn a_value_that_is_set_in_memory_alone_takes_what_is_made_from_the_old_one() {
    let (larder, _clock) = larder_testkit::larder("t");
    let product: Numbers = larder.cache("product").build().unwrap();
    let page: Numbers = larder.cache("page").build().unwrap();
    for loaded in [Loaded::value(2), Loaded::value(2).ttl("0s")] {
        assert_eq!(page_of(&page, &product, 1, &[]).await, 10);
        product.set_in_memory(7, loaded).unwrap();
        assert_eq!(page.get_in_memory(&1), None);
        let _ = product.invalidate(&7).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_set_while_too_much_waits_reaches_what_depends_on_it_all_the_same() {
    let (larder, clock, tier) = with_tier("t");
    let product: Numbers = larder.cache("product").build().unwrap();
    let page: Numbers = larder.cache("page").build().unwrap();
    assert_eq!(page_of(&page, &product, 1, &[]).await, 10);
    let gate = tier.pause_before(Operation::Delete);
    let invalidate = |count: usize| {
        let tags = (0..count).map(|n| Invalidation::tag(format!("{count}.{n}")));
        let (larder, all) = (larder.clone(), tags.collect::<Vec<_>>());
        tokio::spawn(async move { larder.invalidate_each(all).await })
    };
    let first = invalidate(1);
    gate.arrived(1).await;
    // As many as may wait while that one is at work.
    let others = invalidate(100_000);
    tokio::task::yield_now().await;
    assert!(soon(product.set(7, 2)).await.unwrap().is_queued());
    assert_eq!(page.get_in_memory(&1), None);
    gate.open();
    for waiting in [first, others] {
        let _ = soon(waiting).await.unwrap().unwrap();
    }
    let made = soon(async {
        while page.get(&1).await.unwrap().is_some() {
            clock.advance(ms(100));
            tokio::task::yield_now().await;
        }
    });
    made.await;
}

#[tokio::test]
async fn an_expired_source_takes_nothing_with_it() {
    let (larder, _clock) = larder_testkit::larder("t");
    let product: Numbers = larder.cache("product").grace("1h").build().unwrap();
    let page: Numbers = larder.cache("page").build().unwrap();
    page_of(&page, &product, 1, &[]).await;
    let _ = product.expire(&7).await.unwrap();
    assert_eq!(page.get(&1).await.unwrap().as_deref(), Some(&10));
}

#[tokio::test]
async fn an_entry_read_from_a_tier_still_knows_what_it_was_made_from() {
    let (larder, clock, tier) = with_tier("t");
    let other = another_process("t", &clock, &tier);
    let product: Numbers = larder.cache("product").build().unwrap();
    let page: Numbers = larder.cache("page").build().unwrap();
    let there: Numbers = other.cache("page").build().unwrap();
    page_of(&page, &product, 1, &[]).await;
    assert_eq!(there.get(&1).await.unwrap().as_deref(), Some(&10));
    // That process does not know the cache of the source at all.
    let key = Invalidation::key("product", ["7"]);
    let _ = other.invalidate_each([key]).await.unwrap();
    assert_eq!(there.get(&1).await.unwrap(), None);
}

#[tokio::test]
async fn keys_invalidated_before_do_not_keep_what_depends_on_others_out_of_memory() {
    let (larder, clock, tier) = with_tier("t");
    let other = another_process("t", &clock, &tier);
    let product: Numbers = larder.cache("product").build().unwrap();
    let page: Numbers = larder.cache("page").build().unwrap();
    page_of(&page, &product, 1, &[]).await;
    let there: Numbers = other.cache("page").build().unwrap();
    let _ = there.invalidate(&99).await.unwrap();
    let found = there.get_or_load(&1, |_| common::never()).await.unwrap();
    assert_eq!(*found, 10);
}

#[tokio::test]
async fn what_is_made_from_what_is_made_goes_with_the_first_source() {
    for (here, larder, _) in larders() {
        let product: Numbers = larder.cache("product").build().unwrap();
        let page: Numbers = larder.cache("page").build().unwrap();
        let site: Numbers = larder.cache("site").build().unwrap();
        let (inner_page, inner_product) = (page.clone(), product.clone());
        let made = site.get_or_load(&1, |_| async move {
            Ok::<_, io::Error>(page_of(&inner_page, &inner_product, 1, &[]).await + 1)
        });
        assert_eq!(*made.await.unwrap(), 11);
        let _ = product.invalidate(&7).await.unwrap();
        assert_eq!(site.get(&1).await.unwrap(), None, "{here}");
    }
}

#[tokio::test]
async fn a_source_that_changes_while_something_is_made_from_it_keeps_that_out() {
    for (here, larder, _) in larders() {
        let product: Numbers = larder.cache("product").build().unwrap();
        let page: Numbers = larder.cache("page").build().unwrap();
        for how in ["invalidate", "set"] {
            let _ = product.set(7, 1).await.unwrap();
            let gate = Gate::new();
            let making = tokio::spawn({
                let (page, product, gate) = (page.clone(), product.clone(), gate.clone());
                async move {
                    let load = |_| async move {
                        let value = product.get(&7).await?.unwrap();
                        gate.wait().await;
                        Ok::<_, larder::Error>(*value)
                    };
                    page.get_or_load(&1, load).await.map(|value| *value)
                }
            });
            gate.arrived(1).await;
            let _ = match how {
                "set" => product.set(7, 2).await,
                _ => product.invalidate(&7).await,
            }
            .unwrap();
            gate.open();
            assert_eq!(soon(making).await.unwrap().unwrap(), 1);
            settle(&larder).await;
            assert_eq!(page.get(&1).await.unwrap(), None, "{how}, {here}");
        }
    }
}

#[tokio::test]
async fn what_is_made_from_a_refused_value_is_not_kept_either() {
    for (here, larder, _) in larders() {
        let product: Numbers = larder.cache("product").build().unwrap();
        let page: Numbers = larder.cache("page").build().unwrap();
        for how in ["tag", "version"] {
            let gate = Gate::new();
            if how == "version" {
                let _ = product.invalidate_before(&7, 2).await.unwrap();
            }
            let making = tokio::spawn({
                let (page, product, gate) = (page.clone(), product.clone(), gate.clone());
                async move {
                    // It names its tag when that is gone already.
                    let load = |_| async move {
                        let load = |_| async move {
                            gate.wait().await;
                            Ok::<_, io::Error>(Loaded::value(1).tags(["a"]).version(1))
                        };
                        let value = product.get_or_load(&7, load).await?.unwrap();
                        Ok::<_, larder::Error>(*value)
                    };
                    page.get_or_load(&1, load).await.map(|value| *value)
                }
            });
            gate.arrived(1).await;
            if how == "tag" {
                let _ = larder.invalidate_tag("a").await.unwrap();
            }
            gate.open();
            assert_eq!(soon(making).await.unwrap().unwrap(), 1);
            settle(&larder).await;
            assert_eq!(page.get(&1).await.unwrap(), None, "{how}, {here}");
        }
    }
}

#[tokio::test]
async fn a_source_that_changes_before_its_reader_wakes_keeps_what_is_made_out() {
    let (larder, _clock) = larder_testkit::larder("t");
    let product: Numbers = larder.cache("product").build().unwrap();
    let page: Numbers = larder.cache("page").build().unwrap();
    let asleep = Gate::new();
    let making = tokio::spawn({
        let (page, product, asleep) = (page.clone(), product.clone(), asleep.clone());
        async move {
            let load = |_| async move {
                let mut reading = Box::pin(product.get_or_load(&7, |_| found(1)));
                // It has begun, and is not polled while its flight lands.
                assert!(
                    poll_fn(|context| Poll::Ready(reading.as_mut().poll(context).is_pending()))
                        .await
                );
                asleep.wait().await;
                Ok::<_, larder::Error>(*reading.await?)
            };
            page.get_or_load(&1, load).await.map(|value| *value)
        }
    });
    asleep.arrived(1).await;
    common::until("the product has landed", || {
        product.get_in_memory(&7).is_some()
    })
    .await;
    let _ = product.invalidate(&7).await.unwrap();
    asleep.open();
    assert_eq!(soon(making).await.unwrap().unwrap(), 1);
    settle(&larder).await;
    assert_eq!(page.get(&1).await.unwrap(), None);
}

#[tokio::test]
async fn the_absence_of_a_source_is_a_source_too() {
    for (here, larder, _) in larders() {
        let product: Numbers = larder.cache("product").build().unwrap();
        let page: Numbers = larder.cache("page").build().unwrap();
        let reading = product.clone();
        let made = page.get_or_load(&1, |_| async move {
            let absent = reading.get(&7).await?.is_none();
            Ok::<_, larder::Error>(u64::from(absent))
        });
        assert_eq!(*made.await.unwrap(), 1);
        assert!(page.get(&1).await.unwrap().is_some(), "{here}");
        let _ = product.set(7, 1).await.unwrap();
        assert_eq!(page.get(&1).await.unwrap(), None, "{here}");
    }
}

#[tokio::test]
async fn a_named_source_takes_what_depends_on_it_along_with_what_it_depends_on_itself() {
    for (here, larder, _) in larders() {
        let product: Numbers = larder.cache("product").build().unwrap();
        let page: Numbers = larder.cache("page").build().unwrap();
        let make = || found(Loaded::value(1).depends_on(&product, &7));
        for how in ["invalidate", "tag"] {
            let _ = product.set(7, Loaded::value(1).tags(["a"])).await.unwrap();
            page.get_or_load(&1, |_| make()).await.unwrap();
            assert!(page.get(&1).await.unwrap().is_some(), "{how}, {here}");
            let _ = match how {
                "tag" => larder.invalidate_tag("a").await,
                _ => product.invalidate(&7).await,
            }
            .unwrap();
            assert_eq!(page.get(&1).await.unwrap(), None, "{how}, {here}");
        }
    }
}

#[tokio::test]
async fn what_is_made_lives_no_longer_than_the_first_of_its_sources() {
    for (here, larder, clock) in larders() {
        let product: Numbers = larder.cache("product").ttl("1h").build().unwrap();
        let page: Numbers = larder.cache("page").ttl("2h").build().unwrap();
        let short = Loaded::value(1).ttl("10s");
        let _ = product.set(7, short).await.unwrap();
        let _ = product.set(8, 2).await.unwrap();
        let reading = product.clone();
        let made = page.get_or_load(&1, |_| async move {
            let (one, other) = (reading.get(&8).await?, reading.get(&7).await?);
            Ok::<_, larder::Error>(*one.unwrap() + *other.unwrap())
        });
        assert_eq!(*made.await.unwrap(), 3);
        clock.advance(secs(9));
        assert!(page.get(&1).await.unwrap().is_some(), "{here}");
        clock.advance(secs(1));
        assert_eq!(page.get(&1).await.unwrap(), None, "{here}");
    }
}

#[tokio::test]
async fn a_batch_inherits_from_all_that_it_reads() {
    let (larder, _clock) = larder_testkit::larder("t");
    let product: Numbers = larder.cache("product").build().unwrap();
    let page: Numbers = larder.cache("page").build().unwrap();
    let _ = product.set(7, 1).await.unwrap();
    let load = |keys: Vec<u64>| {
        let product = product.clone();
        async move {
            let value = *product.get(&7).await?.unwrap();
            let answers = keys.into_iter().map(|key| (key, value));
            Ok::<_, larder::Error>(answers.collect::<Vec<_>>())
        }
    };
    page.get_or_load_many(&[1, 2], load).await.unwrap();
    let _ = product.invalidate(&7).await.unwrap();
    assert_eq!(page.get(&1).await.unwrap(), None);
    assert_eq!(page.get(&2).await.unwrap(), None);
}

#[tokio::test]
async fn what_depends_on_each_other_ends() {
    for (here, larder, _) in larders() {
        let cache: Numbers = larder.cache("c").build().unwrap();
        for (key, other) in [(1, 2), (2, 1), (1, 2), (3, 3)] {
            let made = Loaded::value(key).depends_on(&cache, &other);
            let _ = soon(cache.set(key, made)).await.unwrap();
        }
        let _ = soon(cache.invalidate(&2)).await.unwrap();
        assert_eq!(soon(cache.get(&1)).await.unwrap(), None, "{here}");
        let _ = soon(cache.invalidate(&3)).await.unwrap();
        assert_eq!(soon(cache.get(&3)).await.unwrap(), None, "{here}");
    }
}

#[tokio::test]
async fn what_is_made_from_too_much_is_given_out_and_not_stored() {
    for (here, larder, _) in larders() {
        let product: Numbers = larder.cache("product").build().unwrap();
        let page: Numbers = larder.cache("page").build().unwrap();
        for (count, stored) in [(900, true), (1_001, false)] {
            let product = product.clone();
            let made = page.get_or_load(&count, |_| async move {
                for key in 0..count {
                    product.get_or_load(&key, |_| found(1)).await?;
                }
                Ok::<_, larder::Error>(count)
            });
            assert_eq!(*soon(made).await.unwrap(), count);
            let kept = page.get(&count).await.unwrap().is_some();
            assert_eq!(kept, stored, "{count} sources, {here}");
        }
    }
}

#[tokio::test]
async fn collecting_tells_tags_and_the_shortest_time_to_everybody_around() {
    let (larder, clock) = larder_testkit::larder("t");
    let cache: Numbers = larder.cache("c").ttl("1h").build().unwrap();
    let _ = cache
        .set(1, Loaded::value(1).tags(["b", "a"]))
        .await
        .unwrap();
    let short = Loaded::value(2).tags(["c", "a"]).ttl("1m");
    let _ = cache.set(2, short).await.unwrap();
    clock.advance(secs(10));
    let (inner, outer) = collect(async {
        cache.get(&1).await.unwrap();
        let (_, inner) = collect(async { cache.get_in_memory(&2) }).await;
        inner
    })
    .await;
    assert_eq!(
        (inner.tags, inner.fresh_for),
        (vec!["a".into(), "c".into()], Some(secs(50)))
    );
    assert_eq!(outer.tags, ["a", "b", "c"]);
    assert_eq!(outer.fresh_for, Some(secs(50)));
    assert!(!outer.too_many);
    let (_, nothing) = collect(async {}).await;
    assert_eq!((nothing.tags.len(), nothing.fresh_for), (0, None));
    // A load that ran for it is seen too, and one that another one ran.
    let (_, loaded) = collect(async {
        let load = |_| found(Loaded::value(3).tags(["d"]).ttl("5s"));
        cache.get_or_load(&3, load).await
    })
    .await;
    assert_eq!(
        (loaded.tags, loaded.fresh_for),
        (vec!["d".into()], Some(secs(5)))
    );
    // What is stale is being refreshed just now.
    assert!(outer.fresh_for > Some(Duration::ZERO));
}

#[tokio::test]
async fn a_source_that_cannot_be_a_key_is_an_error_of_the_load() {
    let (larder, _clock) = larder_testkit::larder("t");
    let names: Cache<String, u64> = larder.cache("names").build().unwrap();
    let page: Numbers = larder.cache("page").build().unwrap();
    let made = page.get_or_load(&1, |_| found(Loaded::value(1).depends_on(&names, "")));
    assert_eq!(made.await.unwrap_err().kind(), ErrorKind::Config);
    let ok = page.get_or_load(&1, |_| found(Loaded::value(1).depends_on(&names, "x")));
    assert_eq!(ok.await.unwrap().as_deref(), Some(&1));
    let kept = page.get_or_load(&1, |_| unasked::<Loaded<u64>>()).await;
    assert_eq!(kept.unwrap().as_deref(), Some(&1));
}
