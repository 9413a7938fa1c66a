//! What events of the domain invalidate, here and in other processes.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::sync::Arc;

use common::{Faulty, faulty, soon, with_tier};
use larder::backplane::LocalBus;
use larder::{Cache, ErrorKind, Invalidation, Larder, Loaded, Template};
use larder_testkit::{BusOperation, FaultyBus, ManualClock, Operation, larder, larder_with, seeds};
use serde_json::{Value, json};

type Names = Cache<String, u64>;

async fn fill(cache: &Names, keys: &[&str]) {
    for key in keys {
        let entry = Loaded::value(1).tags([format!("tag:{key}")]);
        let _ = cache.set((*key).to_owned(), entry).await.unwrap();
    }
}

/// Those of `keys` that are still there.
async fn left<'k>(cache: &Names, keys: &[&'k str]) -> Vec<&'k str> {
    let mut left = Vec::new();
    for key in keys {
        if cache.get(*key).await.unwrap().is_some() {
            left.push(*key);
        }
    }
    left
}

/// A process with a tier and a bus that it shares with others.
fn process(
    clock: &Arc<ManualClock>,
    store: &Faulty,
    bus: &LocalBus,
) -> (Larder, FaultyBus<LocalBus>) {
    let bus = FaultyBus::new(bus.clone());
    let builder = Larder::builder("t").clock(clock.clone());
    let larder = builder.shared(store.clone()).backplane(bus.clone()).build();
    (larder.unwrap(), bus)
}

fn refused(larder: &Larder, event: &str, templates: &[&str]) -> String {
    let error = larder.on_event(event, templates).unwrap_err();
    assert!(error.is_config(), "{error:?}");
    error.to_string()
}

async fn not_emitted(larder: &Larder, event: &str, payload: &Value) -> String {
    let error = larder.emit(event, payload).await.unwrap_err();
    assert!(error.is_config(), "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn an_event_invalidates_what_its_templates_name_and_nothing_else() {
    for larder in [larder("t").0, with_tier("t").0] {
        let build = |name| larder.cache(name).ttl("1m").grace("1h").build().unwrap();
        let (users, lists, tops): (Names, Names, Names) =
            (build("user"), build("list"), build("top"));
        let keys = ["1", "2", "3"];
        fill(&users, &keys).await;
        fill(&lists, &["page:a:1", "page:b:1", "other"]).await;
        fill(&tops, &keys).await;
        larder
            .on_event(
                "user.updated",
                [
                    "key user:{id}",
                    "tag tag:{team.id}",
                    "pattern list:page:{letter}:*",
                    "cache top",
                ],
            )
            .unwrap();
        let payload = json!({"id": 1, "team": {"id": 2, "name": "x"}, "letter": "a"});
        let receipt = larder.emit("user.updated", &payload).await.unwrap();
        assert!(receipt.is_acked());
        assert_eq!(left(&users, &keys).await, ["3"]);
        assert_eq!(
            left(&lists, &["page:a:1", "page:b:1", "other"]).await,
            ["page:b:1", "other"]
        );
        assert_eq!(left(&tops, &keys).await, [""; 0]);

        larder.on_event("user.seen", ["expire user:{id}"]).unwrap();
        let _ = larder.emit("user.seen", &json!({"id": "3"})).await.unwrap();
        let stale = users.with(larder::Read::new()).get_explained("3").await;
        assert_eq!(stale.unwrap().outcome.state, larder::State::Stale);
    }
}

#[tokio::test]
async fn what_a_payload_brings_in_changes_no_structure() {
    let (larder, _clock) = larder("t");
    let pairs: Cache<(String, String), u64> = larder.cache("pair").build().unwrap();
    let names: Names = larder.cache("name").build().unwrap();
    larder
        .on_event("pair.changed", ["key pair:{a}:{b}", "pattern name:{a}*"])
        .unwrap();
    let hostile = [
        "a", ":", "a:b", "b:c", "*", "?", "[a]", "\\", "{a}", "%3A", "é", "",
    ];
    for seed in seeds(20) {
        let mut rng = seed.rng();
        let mut draw = || hostile[rng.usize(..hostile.len())].to_owned();
        let (one, other) = ((draw(), draw()), (draw(), draw()));
        let _ = pairs.set(one.clone(), 1).await.unwrap();
        let _ = pairs.set(other.clone(), 2).await.unwrap();
        let _ = names.set(format!("{}-tail", other.0), 1).await.unwrap();
        let payload = json!({"a": one.0, "b": one.1});
        let _ = larder.emit("pair.changed", &payload).await.unwrap();
        let case = format!("{one:?} {other:?}");
        assert_eq!(pairs.get(&one).await.unwrap(), None, "{case}");
        let stays = pairs.get(&other).await.unwrap().is_some();
        assert_eq!(stays, one != other, "{case}");
        let tail = format!("{}-tail", other.0);
        let stays = names.get(&tail).await.unwrap().is_some();
        assert_eq!(stays, !tail.starts_with(&one.0), "{case}");
    }
}

#[tokio::test]
async fn an_event_can_be_mapped_by_a_function_of_its_payload_and_by_templates_as_well() {
    let (larder, _clock) = larder("t");
    let stock: Names = larder.cache("stock").build().unwrap();
    let keys = ["1", "2", "3", "4"];
    fill(&stock, &keys).await;
    larder
        .on_event_with("order.paid", |paid| {
            let lines = paid["lines"].as_array().into_iter().flatten();
            let products = lines.filter_map(Value::as_str);
            products
                .map(|product| Invalidation::key("stock", [product]))
                .collect()
        })
        .unwrap();
    larder.on_event("order.paid", ["key stock:{gift}"]).unwrap();
    let paid = json!({"lines": ["1", "2"], "gift": 4});
    let _ = larder.emit("order.paid", &paid).await.unwrap();
    assert_eq!(left(&stock, &keys).await, ["3"]);
    assert_eq!(larder.events(), ["order.paid"]);
}

#[tokio::test]
async fn a_payload_may_be_anything_that_serde_can_write() {
    #[derive(serde::Serialize)]
    struct Paid {
        order: u64,
    }
    let (larder, _clock) = larder("t");
    let orders: Cache<u64, u64> = larder.cache("order").build().unwrap();
    let _ = orders.set(u64::MAX, 1).await.unwrap();
    larder.on_event("paid", ["key order:{order}"]).unwrap();
    let _ = larder
        .emit("paid", &Paid { order: u64::MAX })
        .await
        .unwrap();
    assert_eq!(orders.get(&u64::MAX).await.unwrap(), None);
}

#[tokio::test]
async fn events_emitted_together_cost_one_command_and_one_message() {
    let clock = ManualClock::new();
    let (store, tier) = faulty(&clock);
    let (larder, bus) = process(&clock, &store, &LocalBus::new());
    let users: Names = larder.cache("user").build().unwrap();
    let keys: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    fill(&users, &keys).await;
    larder.on_event("user.updated", ["key user:{id}"]).unwrap();
    larder
        .on_event("user.deleted", ["key user:{id}", "tag users"])
        .unwrap();
    let events = (0..49)
        .flat_map(|id| ["user.updated", "user.deleted"].map(|event| (event, json!({"id": id}))));
    let events: Vec<_> = events.collect();
    let deletes = tier.finished(Operation::Delete);
    let published = bus.finished(BusOperation::Publish);
    let receipt = soon(larder.emit_all(events)).await.unwrap();
    assert!(receipt.is_acked());
    assert_eq!(tier.finished(Operation::Delete) - deletes, 1);
    assert_eq!(bus.finished(BusOperation::Publish) - published, 1);
    assert_eq!(left(&users, &keys).await, ["49"]);
}

#[tokio::test]
async fn an_event_acts_in_other_processes_which_do_not_know_it() {
    let clock = ManualClock::new();
    let (store, _tier) = faulty(&clock);
    let bus = LocalBus::new();
    let (ours, _) = process(&clock, &store, &bus);
    let (theirs, _) = process(&clock, &store, &bus);
    let cache: Names = theirs.cache("user").build().unwrap();
    fill(&cache, &["1", "2"]).await;
    ours.on_event("user.updated", ["key user:{id}"]).unwrap();
    let heard = theirs.bus().unwrap().heard;
    let _ = ours.emit("user.updated", &json!({"id": 1})).await.unwrap();
    soon(async {
        while theirs.bus().unwrap().heard == heard {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(cache.get_in_memory("1"), None);
    assert_eq!(left(&cache, &["1", "2"]).await, ["2"]);
    let error = not_emitted(&theirs, "user.updated", &json!({"id": 2})).await;
    assert!(error.contains("none is"), "{error}");
}

#[tokio::test]
async fn an_unknown_event_is_an_error_that_names_those_that_are_known() {
    let (larder, _clock) = larder("t");
    for n in 10..22 {
        larder.on_event(&format!("e{n}"), ["tag a"]).unwrap();
    }
    let error = not_emitted(&larder, "user.\nupdated", &json!({})).await;
    assert_eq!(
        error,
        "event `user.\\nupdated` is not known in this process, known are `e10`, `e11`, `e12`, \
         `e13`, `e14`, `e15`, `e16`, `e17`, `e18`, `e19`, 2 more; register it with on_event"
    );
}

#[tokio::test]
async fn a_payload_that_does_not_fit_is_an_error_and_nothing_is_invalidated() {
    let (larder, _clock) = larder("t");
    let users: Names = larder.cache("user").build().unwrap();
    fill(&users, &["1"]).await;
    larder.on_event("ok", ["key user:{id}"]).unwrap();
    larder.on_event("e", ["key user:1", "tag {a.b}"]).unwrap();
    for (payload, reason) in [
        (json!({}), "no field `a.b`"),
        (json!({"a": 1}), "no field `a.b`"),
        (json!({"a.b": 1}), "no field `a.b`"),
        (json!([1]), "no field `a.b`"),
        (json!("a"), "no field `a.b`"),
        (json!({"a": {"b": null}}), "is null"),
        (json!({"a": {"b": [1]}}), "is an array"),
        (json!({"a": {"b": {"c": 1}}}), "is an object"),
        (json!({"a": {"b": 1e300}}), "not keep exactly"),
        (json!({"a": {"b": ""}}), "tag is empty"),
        (json!({"a": {"b": "x".repeat(1 << 20)}}), "more than 32768"),
    ] {
        let error = not_emitted(&larder, "e", &payload).await;
        assert!(
            error.contains("event `e`") && error.contains(reason),
            "{error}"
        );
        assert!(error.len() < 400, "{error}");
        let both = [("ok", json!({"id": 1})), ("e", payload)];
        assert!(larder.emit_all(both).await.is_err());
    }
    assert_eq!(left(&users, &["1"]).await, ["1"]);
}

#[tokio::test]
async fn templates_that_cannot_work_are_refused_when_they_are_registered() {
    let (larder, _clock) = larder("t");
    for (template, reason) in [
        ("user:{id}", "says not what it is"),
        ("key user:{id", "not closed"),
        ("key {user}:1", "name of a cache"),
        ("pattern user:[{id}]", "inside"),
        ("tag {a..b}", "behind its dots"),
        ("tag {.a}", "behind its dots"),
    ] {
        let error = refused(&larder, "e", &["tag fine", template]);
        assert!(error.starts_with("event `e`: "), "{error}");
        assert!(
            error.contains(reason) && error.contains("like `"),
            "{error}"
        );
    }
    for name in ["", "a\nb", "x".repeat(200).as_str()] {
        let error = refused(&larder, name, &["tag a"]);
        assert!(error.contains("cannot be the name of an event"), "{error}");
    }
    assert!(refused(&larder, "e", &[]).contains("no templates"));
    assert_eq!(larder.events(), [""; 0]);
}

#[tokio::test]
async fn what_events_may_be_and_come_to_is_bounded() {
    let (larder, _clock) = larder("t");
    let tags: Vec<String> = (0..65).map(|n| format!("tag {n}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    assert!(refused(&larder, "e", &tags).contains("64 mappings"));
    larder.on_event("e", &tags[..64]).unwrap();
    larder.on_event("e", &tags[..64]).unwrap(); // the same once more adds nothing
    assert!(refused(&larder, "e", &tags[64..]).contains("64 mappings"));

    let many = |_: &Value| {
        (0..10_001)
            .map(|n| Invalidation::tag(n.to_string()))
            .collect()
    };
    larder.on_event_with("many", many).unwrap();
    let error = not_emitted(&larder, "many", &json!({})).await;
    assert!(error.contains("more than 10000"), "{error}");
    larder.on_event("one", ["tag a"]).unwrap();
    let same = std::iter::repeat(("one", json!({})));
    assert!(larder.emit_all(same.clone().take(10_000)).await.is_ok());
    let endless = larder.emit_all(same).await.unwrap_err();
    assert!(endless.to_string().contains("more than 10000"));

    for n in 3..1_000 {
        larder.on_event(&format!("e{n}"), ["tag a"]).unwrap();
    }
    assert!(refused(&larder, "one more", &["tag a"]).contains("1000 events"));
    assert_eq!(larder.events().len(), 1_000);
}

#[tokio::test]
async fn an_event_is_queued_while_a_tier_is_down_and_fails_after_shutdown() {
    let mut tier = None;
    let (larder, _clock) = larder_with("t", |builder, clock| {
        let (store, handle) = faulty(clock);
        tier = Some(handle);
        builder.shared(store)
    });
    let unavailable = larder_testkit::StoreFault::Fail(larder::store::StoreErrorKind::Unavailable);
    tier.unwrap().inject(Operation::ALL, unavailable);
    larder.on_event("e", ["key user:{id}"]).unwrap();
    let receipt = larder.emit("e", &json!({"id": 1})).await.unwrap();
    assert!(receipt.is_queued());
    let _ = larder.shutdown(common::secs(0)).await;
    let closed = larder.emit("e", &json!({"id": 1})).await.unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::Closed);
}

#[test]
fn a_template_is_public_for_those_who_fill_it_in_otherwise() {
    let template: Template = "expire price:{shop}-{id}:eur".parse().unwrap();
    assert_eq!(template.parts().len(), 2);
    assert_eq!(template.fields().collect::<Vec<_>>(), ["shop", "id"]);
    assert_eq!(template.to_string(), "expire price:{shop}-{id}:eur");
}
