//! Properties of counters: where they begin, what moves them, who is told.

use bytes::Bytes;
use larder::store::{LeaseRequest, Leased, Position};

use super::{HOUR, Subject, ok, token};

impl Subject {
    /// Reads an absent key with a lease and with the position of `counter`.
    pub(super) async fn lease_at(&self, key: &Bytes, counter: &Bytes) -> Leased {
        self.lease_with(key, &self.request_at(counter)).await
    }

    pub(super) fn request_at(&self, counter: &Bytes) -> LeaseRequest {
        LeaseRequest {
            counter: Some(counter.clone()),
            ..self.request(token(), HOUR)
        }
    }

    /// Where `counter` stands, as the next lease is told.
    pub(super) async fn position(&self, counter: &Bytes) -> Position {
        let probe = self.key(format!("probe:{}", fastrand::u64(..)));
        let leased = self.lease_at(&probe, counter).await;
        self.delete(&[probe]).await;
        since(&leased)
    }

    /// Removes `keys` and moves `counter`.
    pub(super) async fn invalidate(&self, keys: &[Bytes], counter: &Bytes) {
        ok("delete", self.store.delete(keys, Some(counter)).await);
    }
}

#[track_caller]
pub(super) fn since(leased: &Leased) -> Position {
    match leased {
        Leased::Acquired {
            since: Some(since), ..
        } => *since,
        other => panic!("expected the lease with a position, got {other:?}"),
    }
}

/// Whether `later` is the same sequence further on.
fn has_moved(earlier: Position, later: Position) -> bool {
    earlier.incarnation == later.incarnation && later.count > earlier.count
}

/// Every lease that is taken, on an absent or a stale key, comes with the position of the counter
/// that was named; values and held leases come without.
pub async fn a_lease_comes_with_the_position_of_its_counter(subject: &Subject) {
    let keys = ["absent", "fresh", "stale", "held", "minimum"].map(|name| subject.key(name));
    let counter = subject.key("counter");
    subject.set(&keys[1], &subject.fresh("f")).await;
    subject.set(&keys[2], &subject.stale("s")).await;
    subject.lease(&keys[3], token()).await;
    let minimum = larder::envelope::Header::minimum(7).to_bytes();
    subject
        .set(&keys[4], &Bytes::copy_from_slice(&minimum))
        .await;
    let leased = subject
        .lease_all(&keys, &subject.request_at(&counter))
        .await;
    let here = since(&leased[0]);
    assert_eq!(
        since(&leased[2]),
        here,
        "nothing moved it in between, and one batch begins it once"
    );
    assert_eq!(since(&leased[4]), here);
    assert!(matches!(leased[1], Leased::Value(_)), "{:?}", leased[1]);
    assert_eq!(leased[3], Leased::Held { stale: None });
    assert_eq!(
        subject.position(&counter).await,
        here,
        "reading moves nothing"
    );
}

/// A counter that is not there begins with an incarnation that no other counter had.
pub async fn a_counter_begins_with_a_random_incarnation(subject: &Subject) {
    let counters = ["one", "two", "three"].map(|name| subject.key(name));
    let mut seen = Vec::new();
    for _ in 0..2 {
        for counter in &counters {
            seen.push(subject.position(counter).await.incarnation);
            subject.delete(std::slice::from_ref(counter)).await;
            // The first one may be begun by an invalidation, too.
            subject.invalidate(&[], counter).await;
            seen.push(subject.position(counter).await.incarnation);
            subject.delete(std::slice::from_ref(counter)).await;
        }
    }
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all, "{seen:?}");
}

/// `delete` moves the counter that it names, whether or not there are keys to remove, and no other.
pub async fn delete_moves_the_counter_that_it_names(subject: &Subject) {
    let (counter, other) = (subject.key("counter"), subject.key("other"));
    let (absent, present) = (subject.key("absent"), subject.key("present"));
    let mut here = subject.position(&counter).await;
    let there = subject.position(&other).await;
    subject.set(&present, &subject.fresh("v")).await;
    for keys in [vec![], vec![absent], vec![present.clone()]] {
        subject.invalidate(&keys, &counter).await;
        let now = subject.position(&counter).await;
        assert!(has_moved(here, now), "from {here:?} to {now:?}");
        here = now;
    }
    assert_eq!(subject.raw(&present).await, None, "the keys go as well");
    subject.set(&present, &subject.fresh("v")).await;
    subject.delete(&[present]).await;
    assert_eq!(
        subject.position(&counter).await,
        here,
        "not named, not moved"
    );
    assert_eq!(subject.position(&other).await, there);
}

/// Thousands of keys move the counter as one does, and none of them is left.
pub async fn delete_moves_the_counter_before_many_keys(subject: &Subject) {
    const MANY: usize = 2_500;
    let counter = subject.key("counter");
    let keys: Vec<_> = (0..MANY).map(|n| subject.key(format!("{n}"))).collect();
    let value = subject.fresh("v");
    let writes: Vec<_> = keys.iter().map(|key| super::write(key, &value)).collect();
    for writes in writes.chunks(500) {
        subject.set_all(writes).await;
    }
    let before = subject.position(&counter).await;
    subject.invalidate(&keys, &counter).await;
    let now = subject.position(&counter).await;
    assert!(has_moved(before, now), "from {before:?} to {now:?}");
    assert_eq!(subject.get(&keys).await, vec![None; MANY]);
}

/// A counter lives on while others come and go, however long nobody moves it; `sweep` ends its
/// incarnation as `delete` of its key does.
pub async fn a_counter_stays_until_it_is_removed(subject: &Subject) {
    let counter = subject.key("counters:one");
    let before = subject.position(&counter).await;
    subject.pass(100 * HOUR);
    subject.outlast_short_leases().await;
    assert_eq!(subject.position(&counter).await, before);
    if subject.clear("counters:").await.is_none() {
        return;
    }
    let after = subject.position(&counter).await;
    assert_ne!(after.incarnation, before.incarnation);
}

/// What somebody else left under the key of a counter is no position: the counter begins anew.
pub async fn foreign_bytes_under_a_counter_are_replaced(subject: &Subject) {
    for (what, bytes) in [
        ("text", Bytes::from_static(b"hello")),
        ("an entry", subject.fresh("v")),
    ] {
        let counter = subject.key(what);
        subject.set(&counter, &bytes).await;
        let here = subject.position(&counter).await;
        subject.invalidate(&[], &counter).await;
        let now = subject.position(&counter).await;
        assert!(has_moved(here, now), "{what}: from {here:?} to {now:?}");
        subject.set(&counter, &bytes).await;
        subject.invalidate(&[], &counter).await;
        let anew = subject.position(&counter).await;
        assert_ne!(anew.incarnation, here.incarnation, "{what}");
    }
}
