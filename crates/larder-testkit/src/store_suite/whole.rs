//! Properties of the store as a whole: dropped operations, random sequences, the fence.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use bytes::Bytes;
use fastrand::Rng;
use larder::clock::Millis;
use larder::envelope::Header;
use larder::store::{Filled, LeaseRequest, LeaseToken, Leased, Store, Write};

use super::{HOUR, HOUR_MS, LIMIT, Subject, envelope, fill, joined, model, ok, token};
use crate::seeds;

/// The store has a name, takes values, answers a ping, and closes.
pub async fn the_store_describes_itself(subject: &Subject) {
    assert!(!subject.store.name().is_empty());
    assert!(subject.store.capabilities().max_value_bytes > Header::LEN);
    let _ = subject.clear("nothing here").await;
    ok("ping", subject.store.ping().await);
    ok("close", subject.store.close().await);
}

/// Whatever is dropped halfway, the next operation gets its own answer, not a late one.
pub async fn a_dropped_operation_leaves_the_store_usable(subject: &Subject) {
    for (case, seed) in seeds(128).enumerate() {
        let mut rng = seed.rng();
        let (operation, polls) = (case % 8, case / 8 % 4);
        let key = subject.key(format!("dropped:{}", rng.u8(..4)));
        drop_halfway(subject, &mut rng, &key, operation, polls).await;
        let (a, b) = (subject.key("a"), subject.key("b"));
        let (value_a, value_b) = (subject.fresh(rng.u64(..).to_string()), subject.fresh("b"));
        subject.set(&a, &value_a).await;
        subject.set(&b, &value_b).await;
        assert_eq!(
            subject.raw(&b).await,
            Some(value_b),
            "seed {}",
            seed.number()
        );
        assert_eq!(
            subject.raw(&a).await,
            Some(value_a),
            "seed {}",
            seed.number()
        );
    }
    // What was dropped may still arrive; the key itself must work as ever once it is deleted.
    for n in 0..4 {
        let key = subject.key(format!("dropped:{n}"));
        subject
            .eventually("a key can be leased again", async || {
                subject.delete(std::slice::from_ref(&key)).await;
                let holder = token();
                let leased = subject.lease(&key, holder).await;
                leased == Leased::Acquired { stale: None }
                    && subject.fill(&key, holder, &subject.fresh("v")).await == Filled::Stored
            })
            .await;
    }
}

/// Begins an operation on `key` and drops it after so many polls.
async fn drop_halfway(
    subject: &Subject,
    rng: &mut Rng,
    key: &Bytes,
    operation: usize,
    polls: usize,
) {
    let keys = [key.clone()];
    let token = token();
    let request = subject.request(token, HOUR);
    let value = subject.stale(vec![1; rng.usize(1..50_000)]);
    let fills = [fill(key, token, &value)];
    let writes = [Write {
        key: key.clone(),
        value,
        ttl: HOUR,
    }];
    let store = &subject.store;
    match operation {
        0 => poll_times(polls, store.get(&keys, LIMIT)).await,
        1 => poll_times(polls, store.lease(&keys, &request)).await,
        2 => poll_times(polls, store.fill(&fills)).await,
        3 => poll_times(polls, store.release(&keys, token)).await,
        4 => poll_times(polls, store.set(&writes)).await,
        5 => poll_times(polls, store.expire(&keys, request.stale_at)).await,
        6 => poll_times(polls, store.delete(&keys)).await,
        _ => poll_times(polls, store.clear(key)).await,
    }
}

/// Polls a future at most `times` times, letting others run in between, and drops it.
async fn poll_times<F: Future + Unpin>(times: usize, mut future: F) {
    for _ in 0..times {
        let done = poll_fn(|context| Poll::Ready(Pin::new(&mut future).poll(context).is_ready()));
        if done.await {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Random operations on a few keys answer what a plain model answers.
pub async fn random_sequences_agree_with_the_model(subject: &Subject) {
    for (case, seed) in seeds(30).enumerate() {
        model::compare(subject, &mut seed.rng(), &format!("model:{case}:"), 100).await;
    }
}

/// The fence: once `delete` has returned, nothing loaded before it is ever read again.
///
/// Loaders lease, read a version from the source, dawdle and fill, half of the time only after the
/// next delete; a writer raises the version, deletes the key, and reads: never an older version.
pub async fn no_fill_from_before_a_delete_ever_lands(subject: &Subject) {
    for seed in seeds(5) {
        let mut rng = seed.rng();
        let race = Arc::new(Race {
            store: subject.store.clone(),
            key: subject.key(format!("fence:{}", seed.number())),
            now: subject.now(),
            raised: AtomicU64::new(1),
            deleted: AtomicU64::new(1),
            in_time: AtomicU64::new(0),
            late: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let loaders: Vec<_> = (0..4)
            .map(|_| tokio::spawn(race.clone().load(rng.fork())))
            .collect();
        let mut version = 1;
        // A race in which nobody was late, or everybody, would prove nothing. A loader that has
        // ended has failed.
        while (version < 60 || !race.has_seen_both()) && !loaders.iter().any(|l| l.is_finished()) {
            version += 1;
            race.raised.store(version, Ordering::SeqCst);
            subject.delete(std::slice::from_ref(&race.key)).await;
            race.deleted.store(version, Ordering::SeqCst);
            for _ in 0..rng.u8(1..20) {
                race.check(subject, version).await;
                dawdle(&mut rng).await;
            }
        }
        race.over.store(true, Ordering::SeqCst);
        for loader in loaders {
            joined(loader.await);
        }
    }
}

/// One key that several tasks fill while one deletes it.
struct Race {
    store: Arc<dyn Store>,
    key: Bytes,
    now: Millis,
    /// What a load reads.
    raised: AtomicU64,
    /// The version whose delete has returned.
    deleted: AtomicU64,
    /// How many fills were stored, and how many came after a delete.
    in_time: AtomicU64,
    late: AtomicU64,
    over: AtomicBool,
}

impl Race {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn has_seen_both(&self) -> bool {
        self.in_time.load(Ordering::SeqCst) > 0 && self.late.load(Ordering::SeqCst) > 0
    }

    async fn check(&self, subject: &Subject, version: u64) {
        if let Some(value) = subject.value(&self.key).await {
            let read = version_in(&value);
            assert!(
                read >= version,
                "read {read} after {version} was invalidated"
            );
        }
    }

    async fn load(self: Arc<Self>, mut rng: Rng) {
        let keys = [self.key.clone()];
        while !self.is_over() {
            let request = LeaseRequest {
                token: token(),
                stale_at: self.now,
                lease_for: HOUR,
                limit: LIMIT,
            };
            let leased = ok("lease", self.store.lease(&keys, &request).await);
            if matches!(leased[..], [Leased::Acquired { .. }]) {
                self.fill(request.token, &mut rng).await;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn fill(&self, token: LeaseToken, rng: &mut Rng) {
        let version = self.raised.load(Ordering::SeqCst);
        dawdle(rng).await;
        if rng.bool() {
            while self.deleted.load(Ordering::SeqCst) <= version && !self.is_over() {
                tokio::task::yield_now().await;
            }
        }
        let late = self.deleted.load(Ordering::SeqCst) > version;
        let until = self.now + HOUR_MS;
        let value = envelope(until, until, version.to_be_bytes());
        let filled = ok(
            "fill",
            self.store.fill(&[fill(&self.key, token, &value)]).await,
        );
        assert!(
            !late || filled == [Filled::Refused],
            "{version} was stored after its delete"
        );
        self.late.fetch_add(u64::from(late), Ordering::SeqCst);
        self.in_time
            .fetch_add(u64::from(filled == [Filled::Stored]), Ordering::SeqCst);
    }
}

fn version_in(value: &Bytes) -> u64 {
    value[Header::LEN..]
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Lets other tasks run, a few times or not at all.
async fn dawdle(rng: &mut Rng) {
    for _ in 0..rng.u8(..4) {
        tokio::task::yield_now().await;
    }
}
