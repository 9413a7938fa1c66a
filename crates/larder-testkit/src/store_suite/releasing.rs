//! Properties of giving a lease back.

use bytes::Bytes;

use super::{
    HOUR, Subject, assert_acquired_absent, assert_acquired_stale, assert_same_but_lease, lease_in,
    ok, stored, token,
};

/// A released placeholder is gone, and the next reader loads at once.
pub async fn release_removes_a_placeholder(subject: &Subject) {
    let key = subject.key("absent");
    let first = token();
    subject.lease(&key, first).await;
    subject.release(&key, first).await;
    assert_eq!(subject.raw(&key).await, None);
    assert_acquired_absent(&subject.lease(&key, token()).await);
    let never_there = subject.key("never there");
    subject.release(&never_there, first).await;
    assert_eq!(subject.raw(&never_there).await, None);
}

/// A released stale value is what it was, without the token, and can be leased again.
pub async fn release_restores_a_stale_value(subject: &Subject) {
    let key = subject.key("stale");
    let old = subject.stale("old");
    subject.set(&key, &old).await;
    let first = token();
    subject.lease(&key, first).await;
    subject.release(&key, first).await;
    let raw = subject.raw(&key).await;
    assert_same_but_lease(&raw, &old);
    assert_eq!(lease_in(&raw), None, "the token is out of the header");
    assert_acquired_stale(&subject.lease(&key, token()).await, &old);
}

/// A release with another token, or of something that is no lease, changes nothing.
pub async fn release_leaves_the_leases_of_others_alone(subject: &Subject) {
    let keys = ["absent", "stale", "fresh", "foreign", "free"].map(|name| subject.key(name));
    let foreign = Bytes::from_static(b"hello");
    subject.set(&keys[1], &subject.stale("old")).await;
    subject.set(&keys[2], &subject.fresh("f")).await;
    subject.set(&keys[3], &foreign).await;
    let (holder, other) = (token(), token());
    subject
        .lease_all(&keys[..2], &subject.request(holder, HOUR))
        .await;
    let before = subject.get(&keys).await;
    ok("release", subject.store.release(&keys, other).await);
    assert_eq!(subject.get(&keys).await, before);
    for key in &keys[..2] {
        assert_eq!(
            subject.fill(key, holder, &subject.fresh("v")).await,
            stored()
        );
    }
}
