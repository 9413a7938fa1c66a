//! The suite that every [`Store`] should pass: one property per promise of the contract.
//!
//! [`store_suite!`](crate::store_suite!) makes one test of each, so that a failure names the
//! promise it broke. Each is given a [`Subject`]: the store, and how time passes for it.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::{Clock, Millis, SystemClock};
use larder::envelope::Header;
use larder::store::{
    Fill, Filled, LeaseRequest, LeaseToken, Leased, Store, StoreErrorKind, Swept, Write,
};

use crate::ManualClock;

mod counting;
mod enlisting;
mod filling;
mod leasing;
mod model;
mod reading;
mod releasing;
mod sweeping;
mod tagging;
mod touching;
mod versioning;
mod waking;
mod whole;
mod writing;

pub use counting::*;
pub use enlisting::*;
pub use filling::*;
pub use leasing::*;
pub use reading::*;
pub use releasing::*;
pub use sweeping::*;
pub use tagging::*;
pub use touching::*;
pub use versioning::*;
pub use waking::*;
pub use whole::*;
pub use writing::*;

/// Makes a test of every property of the suite.
///
/// The argument is an `async fn() -> Subject`, called once per test. The stores of two calls may
/// run at the same time: they share nothing, or differ in [`Subject::with_prefix`].
///
/// ```
/// # use std::sync::Arc;
/// # use larder_testkit::{ManualClock, MemoryStore, Subject};
/// mod the_memory_store {
///     # use super::*;
///     async fn open() -> Subject {
///         let clock = ManualClock::new();
///         Subject::new(Arc::new(MemoryStore::new(clock.clone()))).with_clock(clock)
///     }
///     larder_testkit::store_suite!(open);
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! store_suite {
    ($open:expr) => {
        $crate::store_suite! { @each $open;
            // Reading
            a_batch_is_answered_in_the_order_asked
            an_empty_batch_is_answered_with_nothing
            a_batch_may_be_large
            an_absent_key_reads_as_none
            a_value_longer_than_the_limit_is_recognisable
            a_value_comes_back_byte_for_byte
            keys_are_any_bytes
            a_value_may_be_as_long_as_the_store_says
            // Taking a lease
            a_lease_on_an_absent_key_is_acquired_once
            a_lease_on_a_stale_value_leaves_it_readable
            a_fresh_value_is_returned_without_a_lease
            staleness_is_compared_to_the_millisecond
            bytes_that_are_no_envelope_are_leased_as_absent
            leases_of_a_batch_are_answered_in_order
            a_lease_read_is_cut_at_the_limit
            one_of_many_concurrent_readers_gets_the_lease
            a_lease_ends_when_its_time_is_over
            a_lease_neither_prolongs_nor_shortens_a_stale_value
            // Waiting for the end of a lease
            a_wait_ends_with_whatever_ends_the_lease
            a_wait_for_a_lease_that_is_gone_ends_at_once
            a_wait_for_a_lease_that_stands_takes_a_while
            a_wait_ends_with_the_time_of_the_lease
            no_end_of_a_lease_is_missed
            a_dropped_wait_leaves_nothing_behind
            // Filling
            a_fill_with_the_token_is_stored_and_ends_the_lease
            a_fill_without_the_token_is_refused
            a_fill_is_refused_after_delete
            a_fill_is_refused_after_set
            a_fill_is_refused_after_expire
            a_fill_is_refused_after_sweep
            a_fill_is_refused_after_release
            a_fill_is_refused_after_the_lease_ended
            tokens_are_compared_in_full
            fills_of_a_batch_are_answered_in_order
            // Giving a lease back
            release_removes_a_placeholder
            release_restores_a_stale_value
            release_leaves_the_leases_of_others_alone
            // Writing
            set_replaces_whatever_was_there
            expire_makes_stale_and_keeps_the_rest
            expire_never_makes_a_value_fresher
            what_is_expired_is_stale_by_every_clock
            expire_removes_a_placeholder_and_adds_nothing
            expire_removes_what_cannot_be_read
            delete_removes_values_and_leases
            a_value_is_gone_when_its_time_to_live_is_over
            extreme_times_are_taken
            // Keeping what is read
            touch_prolongs_values_and_records
            touch_never_shortens_and_adds_nothing
            touch_leaves_leases_as_they_are
            touch_leaves_placeholders_alone
            touch_takes_extreme_times_and_many_keys
            // Versions
            a_fill_below_the_version_of_the_value_is_refused
            a_fill_below_a_minimum_version_is_refused
            a_refused_fill_leaves_the_lease_as_it_is
            a_minimum_version_survives_its_leases
            a_lease_outlasts_the_minimum_version_under_it
            release_keeps_a_minimum_version
            expire_keeps_a_minimum_version
            delete_removes_a_minimum_version
            a_write_below_the_version_held_is_refused
            a_minimum_version_replaces_older_values_only
            a_minimum_version_voids_leases
            a_refused_write_leaves_the_lease_as_it_is
            a_minimum_version_ends_with_its_time_to_live
            writes_of_a_batch_are_answered_in_order
            // Counters
            a_lease_comes_with_the_position_of_its_counter
            a_counter_begins_with_a_random_incarnation
            delete_moves_the_counter_that_it_names
            delete_moves_the_counter_before_many_keys
            a_counter_stays_until_it_is_removed
            foreign_bytes_under_a_counter_are_replaced
            // Tags
            a_missing_record_is_made_as_proposed
            versions_of_records_replace_those_proposed
            a_value_may_have_many_tags
            a_fill_from_another_incarnation_is_refused
            a_fill_without_records_asks_for_the_incarnation
            a_fill_older_than_a_record_is_refused
            a_fill_without_a_record_is_refused_once_the_counter_moved
            a_fill_whose_records_are_older_is_stored
            a_fill_without_a_record_is_stored_while_the_counter_stands
            a_refused_fill_makes_the_records_that_are_missing
            a_write_with_tags_is_not_compared_with_the_counter
            an_invalidated_tag_gets_another_version
            a_record_is_kept_as_long_as_its_values
            foreign_bytes_under_a_record_are_replaced
            versions_and_tags_go_together
            tagged_fills_of_a_batch_are_answered_in_order
            a_tagged_value_is_leased_and_expired_like_any_other
            // Removing by prefix
            sweep_removes_its_prefix_and_nothing_else
            sweep_takes_its_prefix_literally
            sweep_removes_many_keys
            sweep_ends_leases
            sweep_removes_what_is_condemned
            sweep_removes_records_of_every_kind
            sweep_tells_how_far_it_got
            // Sets
            enlisted_members_are_returned
            a_member_for_no_time_is_not_noted
            a_member_ends_when_its_time_is_over
            a_member_is_kept_for_the_longest_time_asked
            extreme_times_of_members_are_taken
            concurrent_members_are_all_kept
            a_set_is_a_key_like_any_other
            // The rest
            the_store_describes_itself
            a_dropped_operation_leaves_the_store_usable
            random_sequences_agree_with_the_model
            no_fill_from_before_a_delete_ever_lands
            no_fill_from_before_its_tag_was_invalidated_is_valid
        }
    };
    (@each $open:expr; $($property:ident)+) => {
        $(
            #[test]
            fn $property() {
                $crate::store_suite::check($open, $crate::store_suite::$property);
            }
        )+
    };
}

/// A store under test, and what the suite must know about it.
pub struct Subject {
    store: Arc<dyn Store>,
    clock: Option<Arc<ManualClock>>,
    prefix: Vec<u8>,
    // Dropped last: a server or a directory that the store still uses while it closes.
    keep: Vec<Box<dyn Any + Send + Sync>>,
}

impl Subject {
    /// A store that lives in real time: the suite waits for short times to pass.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            clock: None,
            prefix: Vec::new(),
            keep: Vec::new(),
        }
    }

    /// The store takes leases and times to live from this clock, so the suite turns it.
    pub fn with_clock(self, clock: Arc<ManualClock>) -> Self {
        Self {
            clock: Some(clock),
            ..self
        }
    }

    /// All keys of the suite begin with `prefix`: for stores that are not empty or not alone.
    pub fn with_prefix(self, prefix: impl Into<Vec<u8>>) -> Self {
        Self {
            prefix: prefix.into(),
            ..self
        }
    }

    /// Keeps something alive until the store is dropped, such as a server or a directory.
    pub fn keep(mut self, guard: impl Any + Send + Sync) -> Self {
        self.keep.push(Box::new(guard));
        self
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("store", &self.store)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

/// Opens a subject and checks one property on it; panics if the property does not hold.
///
/// Tests are made by [`store_suite!`](crate::store_suite!); this is for those that want a property
/// by itself.
pub fn check<O>(open: impl FnOnce() -> O, property: impl AsyncFnOnce(&Subject))
where
    O: Future<Output = Subject>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => panic!("no runtime for the test: {error}"),
    };
    runtime.block_on(async {
        let subject = open().await;
        let within = tokio::time::timeout(PROPERTY_PATIENCE, property(&subject)).await;
        assert!(
            within.is_ok(),
            "not done after {PROPERTY_PATIENCE:?}: the store hangs"
        );
    });
}

/// A property that takes longer has met an operation that never ends.
const PROPERTY_PATIENCE: Duration = Duration::from_secs(120);
/// A limit longer than all values that the suite reads with it.
const LIMIT: usize = 64 << 20;
/// Longer than any test runs.
const HOUR: Duration = Duration::from_secs(3600);
const HOUR_MS: Millis = 3_600_000;
/// How long the suite waits for something that must happen after a [`SHORT`] time.
const EVENTUALLY_ATTEMPTS: usize = 1_000;
const EVENTUALLY_PAUSE: Duration = Duration::from_millis(10);
/// Long enough to act within it, short enough to wait for its end.
const SHORT: Duration = Duration::from_millis(300);

// What the properties do with a store, in words. An error is a failure of the property: the suite
// never asks for what a healthy store may refuse.
impl Subject {
    fn key(&self, name: impl AsRef<[u8]>) -> Bytes {
        [&self.prefix, name.as_ref()].concat().into()
    }

    fn now(&self) -> Millis {
        match &self.clock {
            Some(clock) => clock.wall(),
            None => SystemClock::new().wall(),
        }
    }

    fn fresh(&self, payload: impl AsRef<[u8]>) -> Bytes {
        let now = self.now();
        envelope(now + HOUR_MS, now + 2 * HOUR_MS, payload)
    }

    fn stale(&self, payload: impl AsRef<[u8]>) -> Bytes {
        let now = self.now();
        envelope(now - 1_000, now + HOUR_MS, payload)
    }

    async fn get(&self, keys: &[Bytes]) -> Vec<Option<Bytes>> {
        let values = ok("get", self.store.get(keys, LIMIT).await);
        assert_eq!(values.len(), keys.len(), "get answers every key");
        values
    }

    /// The bytes under `key` as they are: a placeholder may show as its header or not at all.
    async fn raw(&self, key: &Bytes) -> Option<Bytes> {
        self.get(std::slice::from_ref(key)).await.swap_remove(0)
    }

    /// The value under `key`; a placeholder is none.
    async fn value(&self, key: &Bytes) -> Option<Bytes> {
        self.raw(key)
            .await
            .filter(|value| value.len() != Header::LEN)
    }

    async fn lease_all(&self, keys: &[Bytes], request: &LeaseRequest) -> Vec<Leased> {
        let leased = ok("lease", self.store.lease(keys, request).await);
        assert_eq!(leased.len(), keys.len(), "lease answers every key");
        leased
    }

    async fn lease_with(&self, key: &Bytes, request: &LeaseRequest) -> Leased {
        self.lease_all(std::slice::from_ref(key), request)
            .await
            .swap_remove(0)
    }

    /// Reads with a lease of an hour.
    async fn lease(&self, key: &Bytes, token: LeaseToken) -> Leased {
        self.lease_with(key, &self.request(token, HOUR)).await
    }

    fn request(&self, token: LeaseToken, lease_for: Duration) -> LeaseRequest {
        LeaseRequest {
            token,
            stale_at: self.now(),
            lease_for,
            limit: LIMIT,
            counter: None,
        }
    }

    async fn fill_all(&self, fills: &[Fill]) -> Vec<Filled> {
        let filled = ok("fill", self.store.fill(fills).await);
        assert_eq!(filled.len(), fills.len(), "fill answers every value");
        filled
    }

    async fn fill(&self, key: &Bytes, token: LeaseToken, value: &Bytes) -> Filled {
        self.fill_all(&[fill(key, token, value)])
            .await
            .swap_remove(0)
    }

    async fn set_for(&self, key: &Bytes, value: &Bytes, ttl: Duration) {
        let write = Write {
            ttl,
            ..write(key, value)
        };
        assert_eq!(self.set_all(&[write]).await, [stored()]);
    }

    async fn set_all(&self, writes: &[Write]) -> Vec<Filled> {
        let filled = ok("set", self.store.set(writes).await);
        assert_eq!(filled.len(), writes.len(), "set answers every value");
        filled
    }

    async fn set(&self, key: &Bytes, value: &Bytes) {
        self.set_for(key, value, HOUR).await;
    }

    async fn release(&self, key: &Bytes, token: LeaseToken) {
        ok(
            "release",
            self.store.release(std::slice::from_ref(key), token).await,
        );
    }

    async fn expire(&self, key: &Bytes, wall: Millis) {
        ok(
            "expire",
            self.store.expire(std::slice::from_ref(key), wall).await,
        );
    }

    async fn delete(&self, keys: &[Bytes]) {
        ok("delete", self.store.delete(keys, None).await);
    }

    /// Removes all keys under `prefix` and says how many; `None` from a store that cannot.
    async fn clear(&self, prefix: impl AsRef<[u8]>) -> Option<u64> {
        let swept = self.sweep(prefix, |_| true, |_| ()).await;
        swept.map(|swept| swept.removed)
    }

    /// `None` from a store that cannot, once it says so properly.
    async fn sweep(
        &self,
        prefix: impl AsRef<[u8]>,
        condemned: impl Fn(&[u8]) -> bool + Send + Sync,
        progress: impl Fn(Swept) + Send + Sync,
    ) -> Option<Swept> {
        let prefix = self.key(prefix);
        let result = self.store.sweep(&prefix, &condemned, &progress).await;
        if self.store.capabilities().sweep {
            return Some(ok("sweep", result));
        }
        match result {
            Err(error) if error.kind() == StoreErrorKind::Unsupported => None,
            other => panic!("a store without sweep answers Unsupported, not {other:?}"),
        }
    }

    /// Lets `time` pass for the store: by its clock, or else by really waiting in `eventually`.
    fn pass(&self, time: Duration) {
        if let Some(clock) = &self.clock {
            clock.advance(time);
        }
    }

    /// Asks until the answer is yes. Time passes inside servers without any event, so in real time
    /// there is nothing else to wait for; on a manual clock the first answer counts.
    async fn eventually(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let attempts = if self.clock.is_some() {
            1
        } else {
            EVENTUALLY_ATTEMPTS
        };
        for _ in 0..attempts {
            if holds().await {
                return;
            }
            tokio::time::sleep(EVENTUALLY_PAUSE).await;
        }
        panic!(
            "{what}: not within {:?}",
            EVENTUALLY_PAUSE * EVENTUALLY_ATTEMPTS as u32
        );
    }

    /// Waits until leases taken for [`SHORT`] before this call are over.
    async fn outlast_short_leases(&self) {
        let probe = self.key("probe of the lease time");
        self.lease_with(&probe, &self.request(token(), SHORT)).await;
        self.pass(SHORT);
        self.eventually("the lease on an absent key ends", async || {
            matches!(self.lease(&probe, token()).await, Leased::Acquired { .. })
        })
        .await;
    }
}

fn ok<T>(what: &str, result: larder::store::StoreResult<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what} failed: {error:?}"),
    }
}

fn token() -> LeaseToken {
    LeaseToken::random()
}

/// The same value, made stale by hand at `wall`, with its lease taken away.
fn expired(value: &Bytes, wall: Millis) -> Bytes {
    let mut bytes = value.to_vec();
    let until = Header::parse(value).map_or(0, |header| header.fresh_until.min(wall));
    bytes[Header::EXPIRED_AT] = 1;
    bytes[Header::LEASE_AT..Header::FRESH_UNTIL_AT].fill(0);
    bytes[Header::FRESH_UNTIL_AT..Header::STALE_UNTIL_AT].copy_from_slice(&until.to_be_bytes());
    bytes.into()
}

/// An envelope whose body means nothing: a store must not look behind the header.
fn envelope(fresh_until: Millis, stale_until: Millis, payload: impl AsRef<[u8]>) -> Bytes {
    let header = Header {
        fill_id: fastrand::u128(..).to_be_bytes(),
        fresh_until,
        stale_until,
        ..Header::minimum(0)
    };
    let payload = payload.as_ref();
    assert!(
        !payload.is_empty(),
        "a header alone is a placeholder, not a value"
    );
    [&header.to_bytes()[..], payload].concat().into()
}

fn fill(key: &Bytes, token: LeaseToken, value: &Bytes) -> Fill {
    Fill {
        key: key.clone(),
        token,
        value: value.clone(),
        ttl: HOUR,
        tags: None,
    }
}

fn write(key: &Bytes, value: &Bytes) -> Write {
    Write {
        key: key.clone(),
        value: value.clone(),
        ttl: HOUR,
        tags: None,
    }
}

/// The envelope with another version.
fn with_version(envelope: &Bytes, version: u64) -> Bytes {
    with_header(envelope, |header| header.version = version)
}

fn with_header(envelope: &Bytes, change: impl FnOnce(&mut Header)) -> Bytes {
    let Some(mut header) = Header::parse(envelope) else {
        panic!("{envelope:?} is no envelope");
    };
    change(&mut header);
    [&header.to_bytes()[..], &envelope[Header::LEN..]]
        .concat()
        .into()
}

/// The envelope with these versions of tags, in place of as many that it has already.
fn with_tags(envelope: &Bytes, versions: &[u64]) -> Bytes {
    let had = versions_in(envelope).len();
    let envelope = with_header(envelope, |header| {
        header.tag_count = u16::try_from(versions.len()).unwrap_or(u16::MAX);
    });
    let words: Vec<u8> = versions.iter().flat_map(|v| v.to_be_bytes()).collect();
    let rest = &envelope[Header::LEN + 8 * had..];
    [&envelope[..Header::LEN], &words, rest].concat().into()
}

/// The versions of tags behind the header.
fn versions_in(envelope: &[u8]) -> Vec<u64> {
    let count = Header::parse(envelope).map_or(0, |header| usize::from(header.tag_count));
    let words = envelope.get(Header::LEN..).unwrap_or_default().as_chunks();
    let words = words.0.iter().take(count);
    words.map(|word| u64::from_be_bytes(*word)).collect()
}

/// The answer to a value without tags that was stored.
fn stored() -> Filled {
    Filled::Stored {
        versions: Vec::new(),
    }
}

/// Whether two envelopes are the same but for the lease in their headers.
fn same_but_lease(one: &[u8], other: &[u8]) -> bool {
    let lease = Header::LEASE_AT..Header::FRESH_UNTIL_AT;
    one.len() == other.len()
        && one.len() >= Header::LEN
        && one[..lease.start] == other[..lease.start]
        && one[lease.end..] == other[lease.end..]
}

fn lease_in(value: &Option<Bytes>) -> Option<LeaseToken> {
    Header::parse(value.as_ref()?)?.lease
}

#[track_caller]
fn assert_acquired(leased: &Leased) {
    assert!(
        matches!(leased, Leased::Acquired { .. }),
        "expected the lease, got {leased:?}"
    );
}

/// The answer where no value is and no counter was named.
fn acquired_absent() -> Leased {
    Leased::Acquired {
        stale: None,
        since: None,
    }
}

#[track_caller]
fn assert_acquired_absent(leased: &Leased) {
    assert_eq!(*leased, acquired_absent());
}

#[track_caller]
fn assert_acquired_stale(leased: &Leased, old: &Bytes) {
    match leased {
        Leased::Acquired {
            stale: Some(stale), ..
        } if same_but_lease(stale, old) => {}
        other => panic!("expected the lease and the stale value, got {other:?}"),
    }
}

#[track_caller]
fn assert_held_stale(leased: &Leased, old: &Bytes) {
    match leased {
        Leased::Held { stale: Some(stale) } if same_but_lease(stale, old) => {}
        other => panic!("expected a held lease and the stale value, got {other:?}"),
    }
}

#[track_caller]
fn assert_same_but_lease(found: &Option<Bytes>, expected: &Bytes) {
    match found {
        Some(found) if same_but_lease(found, expected) => {}
        other => panic!("expected {expected:?} but for the lease, got {other:?}"),
    }
}

/// What a task of a property returned; its panic is the property's.
fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("a task of the property ended badly: {error}"),
    }
}
