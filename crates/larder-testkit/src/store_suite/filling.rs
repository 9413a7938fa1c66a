//! Properties of filling under a lease, and of what voids it.

use bytes::Bytes;
use larder::store::{Filled, LeaseToken, Leased};

use super::{
    SHORT, Subject, assert_acquired, assert_acquired_stale, assert_same_but_lease, fill, lease_in,
    stored, token,
};

/// The holder's fill is stored as it is, and the lease is gone with it.
pub async fn a_fill_with_the_token_is_stored_and_ends_the_lease(subject: &Subject) {
    let (absent, stale) = (subject.key("absent"), subject.key("stale"));
    subject.set(&stale, &subject.stale("old")).await;
    for key in [&absent, &stale] {
        let first = token();
        assert_acquired(&subject.lease(key, first).await);
        let value = subject.fresh("new");
        assert_eq!(subject.fill(key, first, &value).await, stored());
        assert_eq!(subject.raw(key).await, Some(value.clone()));
        assert_eq!(
            subject.lease(key, token()).await,
            Leased::Value(value.clone())
        );
        let again = subject.fill(key, first, &subject.fresh("again")).await;
        assert_eq!(again, Filled::Refused, "a token fills once");
        assert_eq!(subject.raw(key).await, Some(value));
    }
    // A value that is stale on arrival can be leased at once: nothing of the old lease is left.
    let first = token();
    subject.delete(std::slice::from_ref(&absent)).await;
    subject.lease(&absent, first).await;
    let old = subject.stale("stale on arrival");
    assert_eq!(subject.fill(&absent, first, &old).await, stored());
    assert_acquired_stale(&subject.lease(&absent, token()).await, &old);
}

/// No lease, or somebody else's, and the fill leaves everything as it was.
pub async fn a_fill_without_the_token_is_refused(subject: &Subject) {
    let keys = ["absent", "fresh", "stale", "held", "held stale"].map(|name| subject.key(name));
    let (fresh, stale) = (subject.fresh("f"), subject.stale("s"));
    subject.set(&keys[1], &fresh).await;
    subject.set(&keys[2], &stale).await;
    subject.set(&keys[4], &stale).await;
    let holder = token();
    subject.lease(&keys[3], holder).await;
    subject.lease(&keys[4], holder).await;
    let before = subject.get(&keys).await;
    for key in &keys {
        let filled = subject.fill(key, token(), &subject.fresh("intruder")).await;
        assert_eq!(filled, Filled::Refused, "{key:?}");
    }
    assert_eq!(subject.get(&keys).await, before);
    for key in &keys[3..] {
        assert_eq!(subject.fill(key, holder, &fresh).await, stored(), "{key:?}");
    }
}

/// Takes a lease on an absent and on a stale key, lets `act` void them, and expects refusal.
async fn refused_after(subject: &Subject, act: impl AsyncFn(&Bytes, LeaseToken)) {
    for old in [None, Some(subject.stale("old"))] {
        let key = subject.key(format!("voided:{}", old.is_some()));
        if let Some(old) = &old {
            subject.set(&key, old).await;
        }
        let holder = token();
        assert_acquired(&subject.lease(&key, holder).await);
        act(&key, holder).await;
        let after = subject.raw(&key).await;
        let late = subject.fill(&key, holder, &subject.fresh("late")).await;
        assert_eq!(
            late,
            Filled::Refused,
            "over a stale value: {}",
            old.is_some()
        );
        assert_eq!(
            subject.raw(&key).await,
            after,
            "a refused fill changes nothing"
        );
    }
}

/// An invalidation voids the lease: the load began before it.
pub async fn a_fill_is_refused_after_delete(subject: &Subject) {
    refused_after(subject, async |key, _| {
        subject.delete(std::slice::from_ref(key)).await;
        assert_eq!(subject.raw(key).await, None);
    })
    .await;
}

/// A write voids the lease: it is newer than what the holder loads.
pub async fn a_fill_is_refused_after_set(subject: &Subject) {
    refused_after(subject, async |key, _| {
        subject.set(key, &subject.stale("written")).await;
    })
    .await;
}

/// So does `expire`, whether a value is left or not.
pub async fn a_fill_is_refused_after_expire(subject: &Subject) {
    refused_after(subject, async |key, _| {
        subject.expire(key, subject.now()).await;
        assert_eq!(lease_in(&subject.raw(key).await), None);
    })
    .await;
}

/// So does `sweep`, of a store that has it.
pub async fn a_fill_is_refused_after_sweep(subject: &Subject) {
    if subject.clear("voided:").await.is_none() {
        return;
    }
    refused_after(subject, async |key, _| {
        subject.clear("voided:").await;
        assert_eq!(subject.raw(key).await, None);
    })
    .await;
}

/// Who gives a lease back cannot fill any more.
pub async fn a_fill_is_refused_after_release(subject: &Subject) {
    refused_after(subject, async |key, holder| {
        subject.release(key, holder).await
    })
    .await;
}

/// A process that was stopped past its lease comes too late, even if nobody took the lease since.
pub async fn a_fill_is_refused_after_the_lease_ended(subject: &Subject) {
    let keys = ["absent", "stale", "absent, taken", "stale, taken"].map(|name| subject.key(name));
    let old = subject.stale("old");
    for key in [&keys[1], &keys[3]] {
        subject.set(key, &old).await;
    }
    let (late, next) = (token(), token());
    let leased = subject
        .lease_all(&keys, &subject.request(late, SHORT))
        .await;
    leased.iter().for_each(assert_acquired);
    subject.outlast_short_leases().await;
    for key in &keys[2..] {
        assert_acquired(&subject.lease(key, next).await);
    }
    for key in &keys {
        let filled = subject.fill(key, late, &subject.fresh("late")).await;
        assert_eq!(filled, Filled::Refused, "{key:?}");
    }
    assert_eq!(subject.value(&keys[0]).await, None);
    assert_same_but_lease(&subject.raw(&keys[1]).await, &old);
    for key in &keys[2..] {
        assert_eq!(
            subject.fill(key, next, &subject.fresh("next")).await,
            stored()
        );
    }
}

/// Tokens that differ in one bit are different tokens, also beyond what a double can hold.
pub async fn tokens_are_compared_in_full(subject: &Subject) {
    let bits = [
        1,
        1 << 31,
        1 << 53,
        1 << 63,
        u64::MAX,
        0x0a0d_0000_0000_0000,
        0x00ff_00ff_00ff_00ff,
    ];
    for bits in bits {
        let Some(holder) = LeaseToken::from_bits(bits) else {
            continue;
        };
        for (name, old) in [("absent", None), ("stale", Some(subject.stale("old")))] {
            let key = subject.key(format!("{name}:{bits}"));
            if let Some(old) = &old {
                subject.set(&key, old).await;
            }
            assert_acquired(&subject.lease(&key, holder).await);
            let neighbours = (0..64).filter_map(|bit| LeaseToken::from_bits(bits ^ (1 << bit)));
            let intruders: Vec<_> = neighbours
                .map(|other| fill(&key, other, &subject.fresh("intruder")))
                .collect();
            let refused = vec![Filled::Refused; intruders.len()];
            assert_eq!(
                subject.fill_all(&intruders).await,
                refused,
                "beside {bits:#x}"
            );
            let filled = subject.fill(&key, holder, &subject.fresh("v")).await;
            assert_eq!(filled, stored(), "{bits:#x}");
        }
    }
}

/// One refused fill among others is refused alone.
pub async fn fills_of_a_batch_are_answered_in_order(subject: &Subject) {
    let keys: Vec<_> = (0..6).map(|n| subject.key(format!("fills:{n}"))).collect();
    let (ours, theirs) = (token(), token());
    for (n, key) in keys.iter().enumerate() {
        subject
            .lease(key, if n % 2 == 0 { ours } else { theirs })
            .await;
    }
    let value = subject.fresh("v");
    let fills: Vec<_> = keys.iter().map(|key| fill(key, ours, &value)).collect();
    let filled = subject.fill_all(&fills).await;
    for (n, key) in keys.iter().enumerate() {
        let (answer, held) = match n % 2 {
            0 => (stored(), Some(value.clone())),
            _ => (Filled::Refused, None),
        };
        assert_eq!(filled[n], answer, "{n}");
        assert_eq!(subject.value(key).await, held, "{n}");
    }
}
