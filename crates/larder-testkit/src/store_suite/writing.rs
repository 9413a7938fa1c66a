//! Properties of writing past leases, expiring, deleting, and times to live.

use std::time::Duration;

use bytes::Bytes;
use larder::store::{Fill, LeaseRequest, Leased};

use super::{
    HOUR, HOUR_MS, SHORT, Subject, assert_acquired_absent, assert_acquired_stale,
    assert_same_but_lease, expired, fill, ok, stored, token, write,
};

/// `set` asks nothing about what the key held, and no lease outlives it.
pub async fn set_replaces_whatever_was_there(subject: &Subject) {
    let keys = ["absent", "fresh", "stale", "held", "held stale", "foreign"];
    let keys = keys.map(|name| subject.key(name));
    subject.set(&keys[1], &subject.fresh(vec![9; 900])).await;
    subject.set(&keys[2], &subject.stale("s")).await;
    subject.set(&keys[4], &subject.stale("s")).await;
    subject.set(&keys[5], &Bytes::from_static(b"hello")).await;
    subject.lease(&keys[3], token()).await;
    subject.lease(&keys[4], token()).await;
    let values: Vec<_> = (0..keys.len())
        .map(|n| subject.stale(format!("new {n}")))
        .collect();
    let writes: Vec<_> = keys
        .iter()
        .zip(&values)
        .map(|(key, value)| write(key, value))
        .collect();
    assert_eq!(subject.set_all(&writes).await, vec![stored(); keys.len()]);
    let expected: Vec<_> = values.iter().cloned().map(Some).collect();
    assert_eq!(subject.get(&keys).await, expected);
    for (key, value) in keys.iter().zip(&values) {
        assert_acquired_stale(&subject.lease(key, token()).await, value);
    }
}

/// After `expire` a value is stale, readable, free to be leased, and otherwise what it was.
pub async fn expire_makes_stale_and_keeps_the_rest(subject: &Subject) {
    let (fresh_key, leased_key) = (subject.key("fresh"), subject.key("leased"));
    let (fresh, leased) = (subject.fresh("f"), subject.stale("l"));
    subject.set(&fresh_key, &fresh).await;
    subject.set(&leased_key, &leased).await;
    subject.lease(&leased_key, token()).await;
    let now = subject.now();
    let keys = [fresh_key, leased_key];
    ok("expire", subject.store.expire(&keys, now).await);
    let found = subject.get(&keys).await;
    assert_same_but_lease(&found[0], &expired(&fresh, now));
    assert_same_but_lease(&found[1], &expired(&leased, now));
    for key in &keys {
        let request = LeaseRequest {
            stale_at: now,
            ..subject.request(token(), HOUR)
        };
        match subject.lease_with(key, &request).await {
            Leased::Acquired { stale: Some(_), .. } => {}
            other => panic!("an expired value is leased with its value readable, not {other:?}"),
        }
    }
}

/// A value that is stale already, or dead before `wall`, keeps its times; the header stays valid.
pub async fn expire_never_makes_a_value_fresher(subject: &Subject) {
    let key = subject.key("stale");
    let old = subject.stale("old");
    subject.set(&key, &old).await;
    for wall in [subject.now(), subject.now() + 10 * HOUR_MS, u64::MAX] {
        subject.expire(&key, wall).await;
        let old = expired(&old, wall);
        assert_same_but_lease(&subject.raw(&key).await, &old);
        assert_acquired_stale(&subject.lease(&key, token()).await, &old);
    }
}

/// Whoever expires a value may have a clock that is ahead of, or behind, that of who reads it.
pub async fn what_is_expired_is_stale_by_every_clock(subject: &Subject) {
    let now = subject.now();
    for ahead in [0, 1_000, 10 * HOUR_MS, u64::MAX - now] {
        let key = subject.key(format!("ahead:{ahead}"));
        let value = subject.fresh("v");
        subject.set(&key, &value).await;
        subject.expire(&key, now + ahead).await;
        for stale_at in [0, now - HOUR_MS, now] {
            let request = LeaseRequest {
                stale_at,
                ..subject.request(token(), HOUR)
            };
            let leased = subject.lease_with(&key, &request).await;
            assert_acquired_stale(&leased, &expired(&value, now + ahead));
            ok(
                "release",
                subject
                    .store
                    .release(std::slice::from_ref(&key), request.token)
                    .await,
            );
        }
        // What replaces it is fresh again.
        subject.set(&key, &value).await;
        let leased = subject.lease(&key, token()).await;
        assert_eq!(leased, Leased::Value(value));
    }
}

/// A placeholder has no value to keep, and an absent key stays absent.
pub async fn expire_removes_a_placeholder_and_adds_nothing(subject: &Subject) {
    let (held, absent) = (subject.key("held"), subject.key("absent"));
    subject.lease(&held, token()).await;
    let keys = [held.clone(), absent];
    ok("expire", subject.store.expire(&keys, subject.now()).await);
    assert_eq!(subject.get(&keys).await, [None, None]);
    assert_acquired_absent(&subject.lease(&held, token()).await);
}

/// It may be an entry of another release, which would go on serving it as fresh.
pub async fn expire_removes_what_cannot_be_read(subject: &Subject) {
    let mut later = subject.fresh("of a later release").to_vec();
    later[4] += 1;
    let keys = ["later", "foreign", "kept"].map(|name| subject.key(name));
    let kept = subject.fresh("kept");
    subject.set(&keys[0], &later.into()).await;
    subject.set(&keys[1], &Bytes::from_static(b"hello")).await;
    subject.set(&keys[2], &kept).await;
    let expired = subject.store.expire(&keys[..2], subject.now()).await;
    ok("expire", expired);
    assert_eq!(subject.get(&keys).await, [None, None, Some(kept)]);
}

/// `delete` removes what is named, whatever it is, and nothing else.
pub async fn delete_removes_values_and_leases(subject: &Subject) {
    let keys = ["fresh", "stale", "held", "absent", "kept"].map(|name| subject.key(name));
    let kept = subject.fresh("kept");
    subject.set(&keys[0], &subject.fresh("f")).await;
    subject.set(&keys[1], &subject.stale("s")).await;
    subject.set(&keys[4], &kept).await;
    subject
        .lease_all(&keys[1..3], &subject.request(token(), HOUR))
        .await;
    subject.delete(&keys[..4]).await;
    assert_eq!(
        subject.get(&keys).await,
        [None, None, None, None, Some(kept)]
    );
    for key in &keys[..4] {
        assert_acquired_absent(&subject.lease(key, token()).await);
    }
}

/// The store forgets by itself, whether `set` or `fill` wrote, and `expire` does not prolong.
pub async fn a_value_is_gone_when_its_time_to_live_is_over(subject: &Subject) {
    let keys = ["set", "filled", "expired", "replaced", "long"].map(|name| subject.key(name));
    let value = subject.fresh("v");
    let holder = token();
    subject.lease(&keys[1], holder).await;
    subject.set(&keys[4], &value).await;
    for key in [&keys[0], &keys[2], &keys[3]] {
        subject.set_for(key, &value, SHORT).await;
    }
    let short = Fill {
        ttl: SHORT,
        ..fill(&keys[1], holder, &value)
    };
    assert_eq!(subject.fill_all(&[short]).await, [stored()]);
    subject.expire(&keys[2], subject.now()).await;
    subject.set(&keys[3], &value).await;
    subject.pass(SHORT);
    subject
        .eventually("short values end", async || {
            subject.get(&keys[..3]).await == [None, None, None]
        })
        .await;
    let kept = Some(value);
    assert_eq!(
        subject.get(&keys[3..]).await,
        [kept.clone(), kept],
        "an hour is not over"
    );
}

/// Times at both ends neither fail nor wrap around.
pub async fn extreme_times_are_taken(subject: &Subject) {
    let (ever, brief, leased) = (
        subject.key("ever"),
        subject.key("brief"),
        subject.key("leased"),
    );
    let value = subject.fresh("v");
    subject.set_for(&ever, &value, Duration::MAX).await;
    subject
        .set_for(&brief, &value, Duration::from_nanos(1))
        .await;
    let holder = token();
    let for_ever = |token| subject.request(token, Duration::MAX);
    assert_acquired_absent(&subject.lease_with(&leased, &for_ever(holder)).await);
    assert_eq!(
        subject.lease_with(&leased, &for_ever(token())).await,
        Leased::Held { stale: None }
    );
    subject.pass(SHORT);
    subject
        .eventually("the shortest time ends", async || {
            subject.raw(&brief).await.is_none()
        })
        .await;
    assert_eq!(subject.raw(&ever).await, Some(value.clone()));
    assert_eq!(
        subject.lease_with(&leased, &for_ever(token())).await,
        Leased::Held { stale: None }
    );
    let fill = Fill {
        ttl: Duration::MAX,
        ..fill(&leased, holder, &value)
    };
    assert_eq!(subject.fill_all(&[fill]).await, [stored()]);
    assert_eq!(subject.raw(&leased).await, Some(value));
}
