//! Properties of keeping what is read longer. A store that has no such operation says so, and passes.

use std::time::Duration;

use bytes::Bytes;
use larder::store::{LeaseRequest, Leased, StoreErrorKind, TagRecord};

use super::{
    HOUR, SHORT, Subject, assert_acquired_stale, assert_same_but_lease, lease_in, ok, stored,
    token, with_version, write,
};

impl Subject {
    /// Whether the store can do it; one that cannot must say so properly.
    async fn touches(&self, keys: &[Bytes], ttl: Duration) -> bool {
        match self.store.touch(keys, ttl).await {
            Err(error) if error.kind() == StoreErrorKind::Unsupported => false,
            done => {
                ok("touch", done);
                true
            }
        }
    }
}

/// A value and the record of a tag live as long as if they had been written again, and are as before.
pub async fn touch_prolongs_values_and_records(subject: &Subject) {
    let keys = ["value", "stale", "record", "left alone"].map(|name| subject.key(name));
    let record = TagRecord {
        version: 7,
        made_at: larder::store::Position::default(),
    };
    let values = [
        subject.fresh("v"),
        subject.stale("s"),
        Bytes::copy_from_slice(&record.to_bytes()),
        subject.fresh("alone"),
    ];
    for (key, value) in keys.iter().zip(&values) {
        subject.set_for(key, value, SHORT).await;
    }
    if !subject.touches(&keys[..3], HOUR).await {
        return;
    }
    let kept = |values: &[Bytes]| values.iter().cloned().map(Some).collect::<Vec<_>>();
    assert_eq!(subject.get(&keys).await, kept(&values));
    subject.outlast_short_values().await;
    assert_eq!(subject.get(&keys[..3]).await, kept(&values[..3]));
    assert_eq!(subject.raw(&keys[3]).await, None, "nobody touched it");
    if subject.clock.is_some() {
        // The hour is over by now.
        subject.pass(HOUR - SHORT);
        assert_eq!(subject.get(&keys[..3]).await, [None, None, None]);
    }
}

/// Whoever wants less than there is changes nothing, and what is absent stays so.
pub async fn touch_never_shortens_and_adds_nothing(subject: &Subject) {
    let (long, absent) = (subject.key("long"), subject.key("absent"));
    let value = subject.fresh("v");
    subject.set(&long, &value).await;
    let keys = [long, absent];
    for ttl in [Duration::ZERO, Duration::from_nanos(1), SHORT] {
        if !subject.touches(&keys, ttl).await {
            return;
        }
    }
    assert!(subject.touches(&[], HOUR).await, "an empty batch is done");
    assert!(subject.touches(&keys[1..], HOUR).await);
    subject.outlast_short_values().await;
    assert_eq!(subject.get(&keys).await, [Some(value), None]);
}

/// The lease on a stale value is the same after a touch: held by whom it was, and as long.
pub async fn touch_leaves_leases_as_they_are(subject: &Subject) {
    let (held, brief) = (subject.key("held"), subject.key("brief"));
    let (old, new) = (subject.stale("old"), subject.fresh("new"));
    subject.set(&held, &old).await;
    subject.set(&brief, &old).await;
    let holder = token();
    assert_acquired_stale(&subject.lease(&held, holder).await, &old);
    let short = subject.request(token(), SHORT);
    subject.lease_with(&brief, &short).await;
    if !subject
        .touches(&[held.clone(), brief.clone()], 2 * HOUR)
        .await
    {
        return;
    }
    assert_same_but_lease(&subject.raw(&held).await, &old);
    let request = LeaseRequest {
        stale_at: u64::MAX,
        ..subject.request(token(), HOUR)
    };
    match subject.lease_with(&held, &request).await {
        Leased::Held { stale: Some(_) } => {}
        other => panic!("somebody holds the lease, but {other:?}"),
    }
    assert_eq!(subject.fill(&held, holder, &new).await, stored());
    subject.outlast_short_leases().await;
    assert_acquired_stale(&subject.lease(&brief, token()).await, &old);
}

/// A placeholder lives as long as its lease, or as its minimum version was to count.
pub async fn touch_leaves_placeholders_alone(subject: &Subject) {
    let (leased, minimum) = (subject.key("leased"), subject.key("minimum"));
    let short = subject.request(token(), SHORT);
    subject.lease_with(&leased, &short).await;
    let header = larder::envelope::Header::minimum(9);
    let demand = Bytes::copy_from_slice(&header.to_bytes());
    subject.set_for(&minimum, &demand, SHORT).await;
    if !subject
        .touches(&[leased.clone(), minimum.clone()], HOUR)
        .await
    {
        return;
    }
    subject.outlast_short_leases().await;
    subject.outlast_short_values().await;
    assert_eq!(lease_in(&subject.raw(&leased).await), None);
    let old = with_version(&subject.fresh("old"), 3);
    let holder = token();
    subject.lease(&minimum, holder).await;
    assert_eq!(
        subject.fill(&minimum, holder, &old).await,
        stored(),
        "the minimum version is over"
    );
}

/// Times at both ends neither fail nor wrap around, and many keys go at once.
pub async fn touch_takes_extreme_times_and_many_keys(subject: &Subject) {
    let value = subject.fresh("v");
    let keys: Vec<Bytes> = (0..1_500).map(|n| subject.key(format!("k{n}"))).collect();
    let writes: Vec<_> = keys.iter().map(|key| write(key, &value)).collect();
    assert_eq!(subject.set_all(&writes).await, vec![stored(); keys.len()]);
    if !subject.touches(&keys, Duration::MAX).await {
        return;
    }
    subject.pass(2 * HOUR);
    let found = subject.get(&keys).await;
    assert!(found.iter().all(|found| found.as_ref() == Some(&value)));
    let brief = subject.key("brief");
    subject.set_for(&brief, &value, SHORT).await;
    assert!(subject.touches(&[brief.clone(), brief.clone()], HOUR).await);
    subject.outlast_short_values().await;
    assert_eq!(subject.raw(&brief).await, Some(value));
}
