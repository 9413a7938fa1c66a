//! Properties of waiting for the end of somebody else's lease. A store that cannot tell of it has
//! none of them, and says so.

use std::time::Duration;

use bytes::Bytes;
use larder::store::{LeaseToken, StoreErrorKind};

use super::{HOUR, SHORT, Subject, assert_acquired, lease_in, ok, stored, token};

/// How long a wait that must end may take, and how long one is watched that should not.
const PATIENCE: Duration = Duration::from_secs(5);
const A_WHILE: Duration = Duration::from_millis(50);

/// Filled, given back, deleted, overwritten, expired or swept: whatever ends a lease ends the wait.
pub async fn a_wait_ends_with_whatever_ends_the_lease(subject: &Subject) {
    if !tells(subject).await {
        return;
    }
    for (at, end) in Ending::of(subject).enumerate() {
        let name = format!("waited:{at}");
        let key = subject.key(&name);
        let owner = token();
        assert_acquired(&subject.lease(&key, owner).await);
        let keys = [subject.key("leased, too"), key.clone()];
        subject.lease(&keys[0], token()).await;
        let waiting = subject.store.changed(&keys);
        let ending = async {
            tokio::time::sleep(A_WHILE / 10).await;
            end.come(subject, &name, owner).await;
        };
        let both = async { tokio::join!(waiting, ending).0 };
        let ended = tokio::time::timeout(PATIENCE, both).await;
        assert!(ended.is_ok(), "{end:?} does not end the wait");
        ok("changed", ended.unwrap_or(Ok(())));
    }
}

/// What ended before the wait began ends it, whatever was asked first.
pub async fn a_wait_for_a_lease_that_is_gone_ends_at_once(subject: &Subject) {
    if !tells(subject).await {
        return;
    }
    let leased = subject.key("leased");
    subject.lease(&leased, token()).await;
    for (at, end) in Ending::of(subject).enumerate() {
        let name = format!("gone:{at}");
        let key = subject.key(&name);
        let owner = token();
        assert_acquired(&subject.lease(&key, owner).await);
        end.come(subject, &name, owner).await;
        let keys = [leased.clone(), key];
        let ended = tokio::time::timeout(PATIENCE, subject.store.changed(&keys)).await;
        assert!(
            ended.is_ok(),
            "{end:?} came first and does not end the wait"
        );
    }
    let keys = [leased, subject.key("never there")];
    let ended = tokio::time::timeout(PATIENCE, subject.store.changed(&keys)).await;
    assert!(ended.is_ok(), "nobody holds a lease on an absent key");
}

/// A store may end a wait without a reason now and then, but not always: its callers ask again.
pub async fn a_wait_for_a_lease_that_stands_takes_a_while(subject: &Subject) {
    if !tells(subject).await {
        return;
    }
    let key = [subject.key("leased")];
    subject.lease(&key[0], token()).await;
    let mut took_a_while = 0;
    for _ in 0..10 {
        let wait = subject.store.changed(&key);
        took_a_while += u32::from(tokio::time::timeout(A_WHILE, wait).await.is_err());
    }
    assert!(
        took_a_while > 0,
        "ten waits for a lease that stands all ended at once"
    );
}

/// The owner of a lease may die. Its waiters do not wait for longer than the lease lasts.
pub async fn a_wait_ends_with_the_time_of_the_lease(subject: &Subject) {
    if !tells(subject).await {
        return;
    }
    let key = subject.key("leased");
    subject.set(&key, &subject.stale("v")).await;
    let request = subject.request(token(), SHORT);
    assert_acquired(&subject.lease_with(&key, &request).await);
    let keys = [key];
    let waiting = subject.store.changed(&keys);
    let passing = async { subject.pass(SHORT * 2) };
    let both = async { tokio::join!(waiting, passing).0 };
    let ended = tokio::time::timeout(PATIENCE, both).await;
    assert!(ended.is_ok(), "the wait outlasts the lease");
}

/// However a fill and a wait interleave, the wait ends.
pub async fn no_end_of_a_lease_is_missed(subject: &Subject) {
    if !tells(subject).await {
        return;
    }
    for round in 0..200 {
        let key = subject.key(format!("round:{}", round % 7));
        subject.delete(std::slice::from_ref(&key)).await;
        let owner = token();
        assert_acquired(&subject.lease(&key, owner).await);
        let (keys, value) = ([key.clone()], subject.fresh("v"));
        let filling = async {
            for _ in 0..round % 5 {
                tokio::task::yield_now().await;
            }
            subject.fill(&key, owner, &value).await
        };
        let both = async { tokio::join!(subject.store.changed(&keys), filling) };
        let ended = tokio::time::timeout(PATIENCE, both).await;
        assert!(ended.is_ok(), "a fill was missed in round {round}");
        assert_eq!(
            ended.map(|(_, filled)| filled),
            Ok(stored()),
            "round {round}"
        );
    }
}

/// Waits are dropped when their callers have gone, and none of them counts any more.
pub async fn a_dropped_wait_leaves_nothing_behind(subject: &Subject) {
    if !tells(subject).await {
        return;
    }
    let keys: Vec<Bytes> = (0..100).map(|n| subject.key(format!("many:{n}"))).collect();
    subject
        .lease_all(&keys, &subject.request(token(), HOUR))
        .await;
    for _ in 0..500 {
        let wait = subject.store.changed(&keys);
        let _dropped = tokio::time::timeout(Duration::from_millis(1), wait).await;
    }
    let wait = subject.store.changed(&keys);
    match tokio::time::timeout(A_WHILE, wait).await {
        Ok(ended) => ok("changed", ended),
        Err(_still_waiting) => {}
    }
}

/// What ends a lease.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Fill,
    Release,
    Delete,
    Set,
    Expire,
    Sweep,
}

impl Ending {
    fn of(subject: &Subject) -> impl Iterator<Item = Self> {
        let sweep = subject.store.capabilities().sweep.then_some(Self::Sweep);
        [
            Self::Fill,
            Self::Release,
            Self::Delete,
            Self::Set,
            Self::Expire,
        ]
        .into_iter()
        .chain(sweep)
    }

    async fn come(self, subject: &Subject, name: &str, owner: LeaseToken) {
        let key = &subject.key(name);
        match self {
            Self::Fill => {
                let filled = subject.fill(key, owner, &subject.fresh("v")).await;
                assert_eq!(filled, stored());
            }
            Self::Release => subject.release(key, owner).await,
            Self::Delete => subject.delete(std::slice::from_ref(key)).await,
            Self::Set => subject.set(key, &subject.fresh("v")).await,
            Self::Expire => subject.expire(key, subject.now()).await,
            Self::Sweep => drop(subject.clear(name).await),
        }
        assert_eq!(
            lease_in(&subject.raw(key).await),
            None,
            "{self:?} ends the lease"
        );
    }
}

/// Whether the store can tell of changes at all.
async fn tells(subject: &Subject) -> bool {
    let absent = [subject.key("absent")];
    match subject.store.changed(&absent).await {
        Err(error) if error.kind() == StoreErrorKind::Unsupported => false,
        ended => {
            ok("changed", ended);
            true
        }
    }
}
