//! Properties of versions: order comes from them, where there are any, and not from who was last.

use bytes::Bytes;
use larder::envelope::Header;
use larder::store::{Filled, Leased, Write};

use super::{
    SHORT, Subject, acquired_absent, assert_acquired, assert_acquired_absent,
    assert_same_but_lease, lease_in, stored, token, with_version, write,
};

/// Neighbours that a double, a sign or a byte order would confuse, the lower one first.
const NEIGHBOURS: [(u64, u64); 8] = [
    (1, 2),
    (0xff, 0x100),
    (0x7fff_ffff, 0x8000_0000),
    (1 << 53, (1 << 53) + 1),
    (u64::MAX >> 1, 1 << 63),
    (u64::MAX - 1, u64::MAX),
    (0x0000_0000_ffff_ffff, 0x0000_0001_0000_0000),
    (0x00ff_00ff_00ff_00ff, 0x0100_0000_0000_0000),
];

impl Subject {
    fn versioned(&self, version: u64) -> Bytes {
        with_version(&self.fresh(format!("version {version}")), version)
    }

    fn stale_of(&self, version: u64) -> Bytes {
        with_version(&self.stale(format!("old version {version}")), version)
    }

    async fn set_one(&self, key: &Bytes, value: &Bytes) -> Filled {
        self.set_all(&[write(key, value)]).await.swap_remove(0)
    }

    /// Leaves a minimum version behind.
    async fn demand(&self, key: &Bytes, version: u64) -> Filled {
        self.set_one(key, &minimum(version)).await
    }
}

fn minimum(version: u64) -> Bytes {
    Bytes::copy_from_slice(&Header::minimum(version).to_bytes())
}

/// A fill of a lower version than the value that it would replace is refused; one of the same or a
/// higher version, or of none, is stored.
pub async fn a_fill_below_the_version_of_the_value_is_refused(subject: &Subject) {
    for (low, high) in NEIGHBOURS {
        let key = subject.key(format!("value:{high}"));
        let old = subject.stale_of(high);
        subject.set(&key, &old).await;
        let holder = token();
        assert_acquired(&subject.lease(&key, holder).await);
        let late = subject.versioned(low);
        assert_eq!(
            subject.fill(&key, holder, &late).await,
            Filled::Refused,
            "{low} over {high}"
        );
        assert_same_but_lease(&subject.raw(&key).await, &old);
        let same = subject.versioned(high);
        assert_eq!(subject.fill(&key, holder, &same).await, stored(), "{high}");
        assert_eq!(subject.raw(&key).await, Some(same));
    }
    for (old, new) in [(7, 8), (7, 0), (0, 7)] {
        let key = subject.key(format!("value:{old}:{new}"));
        subject.set(&key, &subject.stale_of(old)).await;
        let holder = token();
        assert_acquired(&subject.lease(&key, holder).await);
        let value = subject.versioned(new);
        let filled = subject.fill(&key, holder, &value).await;
        assert_eq!(filled, stored(), "{new} over {old}");
        assert_eq!(subject.raw(&key).await, Some(value));
    }
}

/// A minimum version lets in no fill below it, and none without a version.
pub async fn a_fill_below_a_minimum_version_is_refused(subject: &Subject) {
    for (low, high) in NEIGHBOURS {
        for new in [0, low, high] {
            let key = subject.key(format!("minimum:{high}:{new}"));
            assert_eq!(subject.demand(&key, high).await, stored());
            assert_eq!(subject.value(&key).await, None, "it is no value");
            let holder = token();
            assert_acquired_absent(&subject.lease(&key, holder).await);
            let value = subject.versioned(new);
            let (answer, left) = match new == high {
                true => (stored(), Some(value.clone())),
                false => (Filled::Refused, None),
            };
            let filled = subject.fill(&key, holder, &value).await;
            assert_eq!(filled, answer, "{new} at a minimum of {high}");
            assert_eq!(subject.value(&key).await, left);
        }
    }
}

/// Whoever was refused for the version may load again and fill under the same lease.
pub async fn a_refused_fill_leaves_the_lease_as_it_is(subject: &Subject) {
    let (value_key, minimum_key) = (subject.key("value"), subject.key("minimum"));
    subject.set(&value_key, &subject.stale_of(7)).await;
    assert_eq!(subject.demand(&minimum_key, 7).await, stored());
    for key in [&value_key, &minimum_key] {
        let holder = token();
        assert_acquired(&subject.lease(key, holder).await);
        for _ in 0..2 {
            let late = subject.fill(key, holder, &subject.versioned(6)).await;
            assert_eq!(late, Filled::Refused);
            assert!(matches!(
                subject.lease(key, token()).await,
                Leased::Held { .. }
            ));
        }
        let value = subject.versioned(8);
        assert_eq!(subject.fill(key, holder, &value).await, stored());
        assert_eq!(subject.raw(key).await, Some(value));
    }
}

/// A placeholder with a minimum version is leased like any other, and the version stays.
pub async fn a_minimum_version_survives_its_leases(subject: &Subject) {
    let key = subject.key("minimum");
    assert_eq!(subject.demand(&key, 7).await, stored());
    let (brief, next) = (token(), token());
    let request = subject.request(brief, SHORT);
    assert_acquired_absent(&subject.lease_with(&key, &request).await);
    subject.outlast_short_leases().await;
    assert_acquired_absent(&subject.lease(&key, next).await);
    assert_eq!(
        subject.lease(&key, token()).await,
        Leased::Held { stale: None }
    );
    let late = subject.fill(&key, brief, &subject.versioned(7)).await;
    assert_eq!(late, Filled::Refused, "that lease has ended");
    let low = subject.fill(&key, next, &subject.versioned(6)).await;
    assert_eq!(low, Filled::Refused, "the minimum is still there");
    assert_eq!(
        subject.fill(&key, next, &subject.versioned(7)).await,
        stored()
    );
}

/// The lease on it lasts as long as was asked, also where the minimum would end sooner.
pub async fn a_lease_outlasts_the_minimum_version_under_it(subject: &Subject) {
    let key = subject.key("minimum");
    subject.demand_for_short(&key, 7).await;
    let holder = token();
    assert_acquired_absent(&subject.lease(&key, holder).await);
    subject.outlast_short_values().await;
    assert_eq!(
        subject.lease(&key, token()).await,
        Leased::Held { stale: None }
    );
    assert_eq!(
        subject.fill(&key, holder, &subject.versioned(7)).await,
        stored()
    );
}

/// Giving the lease back takes the token out and leaves the minimum.
pub async fn release_keeps_a_minimum_version(subject: &Subject) {
    let key = subject.key("minimum");
    assert_eq!(subject.demand(&key, 7).await, stored());
    let (first, next) = (token(), token());
    subject.lease(&key, first).await;
    subject.release(&key, first).await;
    assert_eq!(lease_in(&subject.raw(&key).await), None);
    assert_eq!(
        subject.fill(&key, first, &subject.versioned(9)).await,
        Filled::Refused,
        "that lease is gone"
    );
    assert_acquired_absent(&subject.lease(&key, next).await);
    subject.refuses_below(&key, next, 7).await;
}

/// So does `expire`.
pub async fn expire_keeps_a_minimum_version(subject: &Subject) {
    let (leased, free) = (subject.key("leased"), subject.key("free"));
    let (first, next) = (token(), token());
    for key in [&leased, &free] {
        assert_eq!(subject.demand(key, 7).await, stored());
    }
    subject.lease(&leased, first).await;
    for key in [&leased, &free] {
        subject.expire(key, subject.now()).await;
        assert_eq!(lease_in(&subject.raw(key).await), None);
        assert_eq!(
            subject.fill(key, first, &subject.versioned(9)).await,
            Filled::Refused,
            "that lease is gone"
        );
        assert_acquired_absent(&subject.lease(key, next).await);
        subject.refuses_below(key, next, 7).await;
    }
}

impl Subject {
    /// A minimum version stands there: the holder's fill is refused below it and stored at it.
    async fn refuses_below(&self, key: &Bytes, holder: larder::store::LeaseToken, version: u64) {
        for new in [0, version - 1] {
            let low = self.fill(key, holder, &self.versioned(new)).await;
            assert_eq!(low, Filled::Refused, "{new} below {version}");
        }
        let value = self.versioned(version);
        assert_eq!(self.fill(key, holder, &value).await, stored());
    }
}

/// `delete` removes a minimum version like anything else.
pub async fn delete_removes_a_minimum_version(subject: &Subject) {
    let key = subject.key("minimum");
    assert_eq!(subject.demand(&key, 7).await, stored());
    subject.delete(std::slice::from_ref(&key)).await;
    assert_eq!(subject.raw(&key).await, None);
    let holder = token();
    assert_eq!(subject.lease(&key, holder).await, acquired_absent());
    assert_eq!(
        subject.fill(&key, holder, &subject.versioned(1)).await,
        stored()
    );
}

/// A write is refused by a higher version, of a value or a minimum; one without a version replaces
/// whatever was there.
pub async fn a_write_below_the_version_held_is_refused(subject: &Subject) {
    for (low, high) in NEIGHBOURS {
        for held in [subject.versioned(high), minimum(high)] {
            let key = subject.key(format!("held:{high}:{}", held.len()));
            assert_eq!(subject.set_one(&key, &held).await, stored());
            let before = subject.raw(&key).await;
            let late = subject.set_one(&key, &subject.versioned(low)).await;
            assert_eq!(late, Filled::Refused, "{low} over {high}");
            assert_eq!(
                subject.raw(&key).await,
                before,
                "a refused write changes nothing"
            );
            for value in [subject.versioned(high), subject.versioned(0)] {
                assert_eq!(subject.set_one(&key, &value).await, stored());
                assert_eq!(subject.raw(&key).await, Some(value));
            }
            let again = subject.versioned(low);
            assert_eq!(
                subject.set_one(&key, &again).await,
                stored(),
                "a value without a version forbids nothing"
            );
        }
    }
}

/// A minimum version replaces what is below it, and is refused by what is new enough: a higher
/// minimum, and a value of the same version.
pub async fn a_minimum_version_replaces_older_values_only(subject: &Subject) {
    for (low, high) in NEIGHBOURS {
        for (old, new, stays) in [
            (high, low, true),
            (high, high, true),
            (low, high, false),
            (0, low, false),
        ] {
            let key = subject.key(format!("value:{old}:{new}"));
            let value = subject.versioned(old);
            subject.set(&key, &value).await;
            let (answer, left) = match stays {
                true => (Filled::Refused, Some(value)),
                false => (stored(), None),
            };
            assert_eq!(subject.demand(&key, new).await, answer, "{new} over {old}");
            assert_eq!(subject.value(&key).await, left, "{new} over {old}");
        }
        let key = subject.key(format!("minimum:{high}"));
        for (new, answer) in [
            (low, stored()),
            (high, stored()),
            (high, stored()),
            (low, Filled::Refused),
        ] {
            assert_eq!(subject.demand(&key, new).await, answer, "{low}, {high}");
        }
        let holder = token();
        assert_acquired_absent(&subject.lease(&key, holder).await);
        let late = subject.fill(&key, holder, &subject.versioned(low)).await;
        assert_eq!(late, Filled::Refused, "the higher minimum counts");
    }
}

/// Leaving a minimum version voids leases, and so does every other write.
pub async fn a_minimum_version_voids_leases(subject: &Subject) {
    let (absent, stale, minimal) = (
        subject.key("absent"),
        subject.key("stale"),
        subject.key("minimum"),
    );
    subject.set(&stale, &subject.stale_of(6)).await;
    assert_eq!(subject.demand(&minimal, 6).await, stored());
    for key in [&absent, &stale, &minimal] {
        let holder = token();
        assert_acquired(&subject.lease(key, holder).await);
        assert_eq!(subject.demand(key, 7).await, stored());
        assert_eq!(lease_in(&subject.raw(key).await), None);
        let late = subject.fill(key, holder, &subject.versioned(9)).await;
        assert_eq!(late, Filled::Refused);
        assert_eq!(subject.value(key).await, None);
    }
}

/// A write that was refused is no news to whoever loads: the lease stands.
pub async fn a_refused_write_leaves_the_lease_as_it_is(subject: &Subject) {
    let keys = ["value", "equal", "minimum"].map(|name| subject.key(name));
    for key in &keys[..2] {
        subject.set(key, &subject.stale_of(7)).await;
    }
    assert_eq!(subject.demand(&keys[2], 7).await, stored());
    for (key, version) in keys.iter().zip([6, 7, 6]) {
        let holder = token();
        assert_acquired(&subject.lease(key, holder).await);
        assert_eq!(subject.demand(key, version).await, Filled::Refused);
        let late = subject.set_one(key, &subject.versioned(6)).await;
        assert_eq!(late, Filled::Refused);
        assert_eq!(
            subject.fill(key, holder, &subject.versioned(8)).await,
            stored()
        );
    }
}

/// A minimum version ends with its time to live, and then everything is let in again.
pub async fn a_minimum_version_ends_with_its_time_to_live(subject: &Subject) {
    let key = subject.key("minimum");
    subject.demand_for_short(&key, 7).await;
    subject.outlast_short_values().await;
    let holder = token();
    assert_acquired_absent(&subject.lease(&key, holder).await);
    let value = subject.versioned(1);
    assert_eq!(subject.fill(&key, holder, &value).await, stored());
}

impl Subject {
    async fn demand_for_short(&self, key: &Bytes, version: u64) {
        let short = Write {
            ttl: SHORT,
            ..write(key, &minimum(version))
        };
        assert_eq!(self.set_all(&[short]).await, [stored()]);
    }

    /// Waits until what was written for [`SHORT`] before this call is gone.
    pub(super) async fn outlast_short_values(&self) {
        let probe = self.key("probe of the time to live");
        self.set_for(&probe, &self.fresh("v"), SHORT).await;
        self.pass(SHORT);
        self.eventually("a short value ends", async || {
            self.raw(&probe).await.is_none()
        })
        .await;
    }
}

/// One refused write among others is refused alone.
pub async fn writes_of_a_batch_are_answered_in_order(subject: &Subject) {
    let keys: Vec<_> = (0..6).map(|n| subject.key(format!("{n}"))).collect();
    for key in keys.iter().step_by(2) {
        subject.set(key, &subject.versioned(7)).await;
    }
    // Without versions, with them, and a foreign value in between.
    let values = [0, 5, 5, 0, 5, 5].map(|version| subject.versioned(version));
    let mut writes: Vec<_> = keys.iter().zip(&values).map(|(k, v)| write(k, v)).collect();
    writes.insert(
        3,
        write(&subject.key("foreign"), &Bytes::from_static(b"hello")),
    );
    let refused = [false, false, true, false, false, true, false];
    let answers = refused.map(|refused| if refused { Filled::Refused } else { stored() });
    assert_eq!(subject.set_all(&writes).await, answers);
    for (n, key) in keys.iter().enumerate() {
        let expected = match n == 2 || n == 4 {
            true => subject.raw(key).await.map(|held| with_version(&held, 7)),
            false => Some(values[n].clone()),
        };
        assert_eq!(subject.raw(key).await, expected, "{n}");
    }
}
