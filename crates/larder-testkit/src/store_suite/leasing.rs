//! Properties of taking a lease, and of its end.

use bytes::Bytes;
use larder::envelope::Header;
use larder::store::{Filled, LeaseRequest, LeaseToken, Leased};

use super::{
    HOUR, SHORT, Subject, acquired_absent, assert_acquired, assert_acquired_absent,
    assert_acquired_stale, assert_held_stale, assert_same_but_lease, envelope, joined, lease_in,
    ok, same_but_lease, stored, token,
};

/// The first reader of an absent key gets the lease; everyone after it is told to wait.
pub async fn a_lease_on_an_absent_key_is_acquired_once(subject: &Subject) {
    let key = subject.key("absent");
    let first = token();
    assert_acquired_absent(&subject.lease(&key, first).await);
    for _ in 0..3 {
        assert_eq!(
            subject.lease(&key, token()).await,
            Leased::Held { stale: None }
        );
    }
    let raw = subject.raw(&key).await;
    assert!(
        raw.is_none() || raw.as_ref().is_some_and(|raw| raw.len() == Header::LEN),
        "a placeholder is a header alone, not {raw:?}"
    );
    assert_eq!(
        subject.fill(&key, first, &subject.fresh("v")).await,
        stored()
    );
}

/// A stale value is leased in its own header: everybody still reads the rest.
pub async fn a_lease_on_a_stale_value_leaves_it_readable(subject: &Subject) {
    let key = subject.key("stale");
    let old = subject.stale("old");
    subject.set(&key, &old).await;
    let first = token();
    assert_acquired_stale(&subject.lease(&key, first).await, &old);
    assert_held_stale(&subject.lease(&key, token()).await, &old);
    let raw = subject.raw(&key).await;
    assert_same_but_lease(&raw, &old);
    assert_eq!(lease_in(&raw), Some(first), "the header carries the token");
}

/// A value that is not stale is returned as it is, and no lease is taken on it.
pub async fn a_fresh_value_is_returned_without_a_lease(subject: &Subject) {
    let key = subject.key("fresh");
    let value = subject.fresh("v");
    subject.set(&key, &value).await;
    let reader = token();
    assert_eq!(
        subject.lease(&key, reader).await,
        Leased::Value(value.clone())
    );
    assert_eq!(
        subject.raw(&key).await,
        Some(value.clone()),
        "not even the header has changed"
    );
    assert_eq!(
        subject.fill(&key, reader, &subject.fresh("w")).await,
        Filled::Refused
    );
    assert_eq!(subject.raw(&key).await, Some(value));
}

/// Stale is fresh-until at or before the asked time, in all 64 bits.
pub async fn staleness_is_compared_to_the_millisecond(subject: &Subject) {
    let now = subject.now();
    // Beyond 2^53 a double no longer tells neighbours apart; the rest cross a byte or a sign.
    for at in [
        now,
        0x7fff,
        0x8000,
        0xff_ffff,
        1 << 31,
        1 << 32,
        1 << 53,
        1 << 63,
        u64::MAX - 1,
    ] {
        for (fresh_until, stale) in [(at - 1, true), (at, true), (at + 1, false)] {
            let key = subject.key(format!("at:{at}:{fresh_until}"));
            let value = envelope(fresh_until, u64::MAX, "v");
            subject.set(&key, &value).await;
            let request = LeaseRequest {
                stale_at: at,
                ..subject.request(token(), HOUR)
            };
            match subject.lease_with(&key, &request).await {
                Leased::Value(found) if !stale => assert_eq!(found, value),
                Leased::Acquired {
                    stale: Some(found), ..
                } if stale => {
                    assert!(same_but_lease(&found, &value));
                }
                other => panic!("fresh until {fresh_until}, asked at {at}: {other:?}"),
            }
        }
    }
}

/// Foreign bytes under a key are replaced by a placeholder, and the fill gets through.
pub async fn bytes_that_are_no_envelope_are_leased_as_absent(subject: &Subject) {
    let good = subject.fresh("good");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = byte;
        bytes
    };
    let foreign: [(&str, Vec<u8>); 7] = [
        ("text", b"hello".into()),
        ("a long text", vec![b'x'; 500]),
        ("a header cut short", good[..Header::LEN - 1].into()),
        ("another magic", with(0, b'M')),
        ("another version", with(4, 2)),
        ("a mark that nobody knows", with(Header::EXPIRED_AT, 2)),
        (
            "fresh longer than stale",
            with(Header::FRESH_UNTIL_AT, 0xff),
        ),
    ];
    for (what, bytes) in foreign {
        let key = subject.key(format!("foreign:{what}"));
        subject.set(&key, &bytes.into()).await;
        let token = token();
        assert_eq!(
            subject.lease(&key, token).await,
            acquired_absent(),
            "{what}"
        );
        assert_eq!(subject.value(&key).await, None, "{what} is gone");
        assert_eq!(subject.fill(&key, token, &good).await, stored(), "{what}");
        assert_eq!(subject.raw(&key).await, Some(good.clone()), "{what}");
    }
}

/// One call with keys in every state answers each by its place.
pub async fn leases_of_a_batch_are_answered_in_order(subject: &Subject) {
    let keys = ["absent", "fresh", "stale", "held", "held stale"].map(|name| subject.key(name));
    let (fresh, stale) = (subject.fresh("f"), subject.stale("s"));
    subject.set(&keys[1], &fresh).await;
    subject.set(&keys[2], &stale).await;
    subject.set(&keys[4], &stale).await;
    subject.lease(&keys[3], token()).await;
    subject.lease(&keys[4], token()).await;
    let leased = subject
        .lease_all(&keys, &subject.request(token(), HOUR))
        .await;
    assert_acquired_absent(&leased[0]);
    assert_eq!(leased[1], Leased::Value(fresh));
    assert_acquired_stale(&leased[2], &stale);
    assert_eq!(leased[3], Leased::Held { stale: None });
    assert_held_stale(&leased[4], &stale);
}

/// A lease read fetches no more of a value than `get` does, and leases it all the same.
pub async fn a_lease_read_is_cut_at_the_limit(subject: &Subject) {
    const SMALL: usize = 100;
    let (fresh_key, stale_key) = (subject.key("fresh"), subject.key("stale"));
    let (fresh, stale) = (subject.fresh(vec![1; 500]), subject.stale(vec![2; 500]));
    subject.set(&fresh_key, &fresh).await;
    subject.set(&stale_key, &stale).await;
    let request = |token| LeaseRequest {
        limit: SMALL,
        ..subject.request(token, HOUR)
    };
    let recognisable = |found: &Option<Bytes>| {
        assert!(
            found.as_ref().is_none_or(|found| found.len() == SMALL + 1),
            "{:?} bytes at a limit of {SMALL}",
            found.as_ref().map(Bytes::len)
        );
    };
    let holder = token();
    match subject.lease_with(&fresh_key, &request(token())).await {
        Leased::Value(found) => assert_eq!(found, fresh[..SMALL + 1]),
        Leased::Acquired { stale, .. } | Leased::Held { stale } => recognisable(&stale),
    }
    match subject.lease_with(&stale_key, &request(holder)).await {
        Leased::Acquired { stale, .. } => recognisable(&stale),
        other => panic!("a long stale value is leased too, not {other:?}"),
    }
    match subject.lease_with(&stale_key, &request(token())).await {
        Leased::Held { stale } => recognisable(&stale),
        other => panic!("the lease on a long stale value is held, not {other:?}"),
    }
    assert_same_but_lease(&subject.raw(&stale_key).await, &stale);
    assert_eq!(subject.fill(&stale_key, holder, &fresh).await, stored());
}

/// Of many readers at the same time exactly one loads.
pub async fn one_of_many_concurrent_readers_gets_the_lease(subject: &Subject) {
    for round in 0..20 {
        let key = subject.key(format!("race:{round}"));
        let old = (round % 2 == 1).then(|| subject.stale("old"));
        if let Some(old) = &old {
            subject.set(&key, old).await;
        }
        let readers: Vec<_> = (0..32)
            .map(|_| subject.spawn_lease(&key, token()))
            .collect();
        let mut winners = Vec::new();
        for reader in readers {
            let (token, leased) = joined(reader.await);
            match (leased, &old) {
                (Leased::Acquired { .. }, _) => winners.push(token),
                (Leased::Held { stale: None }, None) => {}
                (Leased::Held { stale: Some(found) }, Some(old)) => {
                    assert!(same_but_lease(&found, old));
                }
                other => panic!("in round {round}: {other:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "in round {round}");
        assert_eq!(
            subject.fill(&key, winners[0], &subject.fresh("new")).await,
            stored()
        );
    }
}

impl Subject {
    fn spawn_lease(
        &self,
        key: &Bytes,
        token: LeaseToken,
    ) -> tokio::task::JoinHandle<(LeaseToken, Leased)> {
        let (store, key, request) = (self.store.clone(), [key.clone()], self.request(token, HOUR));
        tokio::spawn(async move {
            let mut leased = ok("lease", store.lease(&key, &request).await);
            (token, leased.swap_remove(0))
        })
    }
}

/// After its time a lease is free for the next, on absent and on stale keys; not before.
pub async fn a_lease_ends_when_its_time_is_over(subject: &Subject) {
    let (absent, stale, long) = (
        subject.key("absent"),
        subject.key("stale"),
        subject.key("long"),
    );
    let old = subject.stale("old");
    subject.set(&stale, &old).await;
    subject.lease(&long, token()).await;
    for key in [&absent, &stale] {
        assert_acquired(
            &subject
                .lease_with(key, &subject.request(token(), SHORT))
                .await,
        );
    }
    subject.pass(SHORT);
    for key in [&absent, &stale] {
        subject
            .eventually("the lease ends", async || {
                matches!(subject.lease(key, token()).await, Leased::Acquired { .. })
            })
            .await;
    }
    assert_same_but_lease(&subject.raw(&stale).await, &old);
    assert_eq!(
        subject.lease(&long, token()).await,
        Leased::Held { stale: None }
    );
}

/// Writing a token into a stale value's header leaves its time to live as it was.
pub async fn a_lease_neither_prolongs_nor_shortens_a_stale_value(subject: &Subject) {
    let (short, long) = (subject.key("short"), subject.key("long"));
    let old = subject.stale("old");
    subject.set_stale_for_short(&short, &old).await;
    subject.set(&long, &old).await;
    let request = subject.request(token(), SHORT);
    assert_acquired_stale(&subject.lease_with(&long, &request).await, &old);
    subject.pass(SHORT);
    subject
        .eventually(
            "a leased value ends with its own time to live",
            async || subject.value(&short).await.is_none(),
        )
        .await;
    subject.outlast_short_leases().await;
    assert_same_but_lease(&subject.raw(&long).await, &old);
}

impl Subject {
    /// Stores a stale value with a short time to live and leases it for an hour. In real time a
    /// busy machine can be late for that; then it is given more time.
    async fn set_stale_for_short(&self, key: &Bytes, old: &Bytes) {
        for times in [1, 4, 16] {
            self.set_for(key, old, SHORT * times).await;
            if let Leased::Acquired {
                stale: Some(stale), ..
            } = self.lease(key, token()).await
            {
                assert!(same_but_lease(&stale, old));
                return;
            }
            assert!(self.clock.is_none(), "the value is gone before its time");
        }
        panic!(
            "the value was gone three times before its time, {:?} at last",
            SHORT * 16
        );
    }
}
