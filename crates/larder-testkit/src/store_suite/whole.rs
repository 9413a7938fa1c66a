//! Properties of the store as a whole: dropped operations, random sequences, the fence.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use fastrand::Rng;
use larder::clock::Millis;
use larder::envelope::Header;
use larder::store::{
    Fill, Filled, LeaseRequest, LeaseToken, Leased, Position, Store, TagRecord, Tagged,
};

use super::{
    HOUR, HOUR_MS, LIMIT, Subject, acquired_absent, envelope, fill, joined, model, ok, stored,
    token, versions_in, with_tags, write,
};
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
    for (case, seed) in seeds(160).enumerate() {
        let mut rng = seed.rng();
        let (operation, polls) = (case % 10, case / 10 % 4);
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
                leased == acquired_absent()
                    && subject.fill(&key, holder, &subject.fresh("v")).await == stored()
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
    let writes = [write(key, &value)];
    let (counter, set) = (subject.key("counter"), subject.key("set"));
    let store = &subject.store;
    match operation {
        0 => poll_times(polls, store.get(&keys, LIMIT)).await,
        1 => poll_times(polls, store.lease(&keys, &request)).await,
        2 => poll_times(polls, store.fill(&fills)).await,
        3 => poll_times(polls, store.release(&keys, token)).await,
        4 => poll_times(polls, store.set(&writes)).await,
        5 => poll_times(polls, store.expire(&keys, request.stale_at)).await,
        6 => poll_times(polls, store.delete(&keys, None)).await,
        7 => poll_times(polls, store.delete(&keys, Some(&counter))).await,
        8 => poll_times(polls, store.enlist(&set, 7, HOUR)).await,
        _ => poll_times(polls, store.sweep(key, &|_| true, &|_| ())).await,
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
/// Loaders lease, read a version from the source, dawdle and fill, often beside the next delete or
/// only after it; a writer raises the version, deletes the key, and reads: never an older version.
pub async fn no_fill_from_before_a_delete_ever_lands(subject: &Subject) {
    for seed in seeds(5) {
        race(subject, Fence::Key, &mut seed.rng(), seed.number()).await;
    }
}

/// The same for tags: once a record was deleted and the counter moved, no entry from before is
/// valid, although it stays where it is and although its tag was named at the end of the load.
pub async fn no_fill_from_before_its_tag_was_invalidated_is_valid(subject: &Subject) {
    for seed in seeds(5) {
        race(subject, Fence::Tag, &mut seed.rng(), seed.number()).await;
    }
}

/// What the writer of a race deletes.
#[derive(Clone, Copy, PartialEq)]
enum Fence {
    Key,
    Tag,
}

async fn race(subject: &Subject, fence: Fence, rng: &mut Rng, case: u64) {
    let race = Arc::new(Race {
        store: subject.store.clone(),
        fence,
        key: subject.key(format!("fence:{case}:key")),
        record: subject.key(format!("fence:{case}:tag")),
        counter: subject.key(format!("fence:{case}:counter")),
        now: subject.now(),
        raised: AtomicU64::new(1),
        deleted: AtomicU64::new(1),
        stored: AtomicU64::new(0),
        late: AtomicU64::new(0),
        beside: AtomicU64::new(0),
        over: AtomicBool::new(false),
        history: Mutex::default(),
    });
    let tasks: Vec<_> = (0..4)
        .map(|_| tokio::spawn(race.clone().load(rng.fork())))
        .collect();
    // A task like the others: it gets as many turns as they do.
    let writer = tokio::spawn(race.clone().write(rng.fork()));
    for task in tasks.into_iter().chain([writer]) {
        joined(task.await);
    }
    race.history().check();
}

/// One key that several tasks fill while one invalidates it.
struct Race {
    store: Arc<dyn Store>,
    fence: Fence,
    key: Bytes,
    record: Bytes,
    counter: Bytes,
    now: Millis,
    /// What a load reads.
    raised: AtomicU64,
    /// The version whose delete has returned.
    deleted: AtomicU64,
    /// How many fills were stored, how many came after a delete, and how many just as one began.
    stored: AtomicU64,
    late: AtomicU64,
    beside: AtomicU64,
    over: AtomicBool,
    history: Mutex<History>,
}

/// The race is over when one of its tasks has ended, by a panic or not.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What was seen of the tag's versions. A value that is not valid any more when somebody looks may
/// have been, so all of them are compared in the end.
#[derive(Default)]
struct History {
    /// The oldest load that was stored with each version of the tag.
    stored: HashMap<u64, u64>,
    /// The newest invalidation behind which each version of the tag was in force.
    in_force: HashMap<u64, u64>,
}

impl History {
    fn check(&self) {
        for (tag, deleted) in &self.in_force {
            let oldest = self.stored.get(tag).copied().unwrap_or(u64::MAX);
            assert!(
                oldest >= *deleted,
                "{oldest} was valid after {deleted} was invalidated"
            );
        }
    }
}

impl Race {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn has_seen_enough(&self) -> bool {
        let kinds = [&self.stored, &self.late, &self.beside];
        kinds.iter().all(|seen| seen.load(Ordering::SeqCst) >= 10)
    }

    /// Invalidates version after version and looks what can be read then.
    async fn write(self: Arc<Self>, mut rng: Rng) {
        let _ends_all = Ends(&self.over);
        let mut version = 1;
        // A race in which nobody was late, or everybody, would prove nothing.
        while (version < 60 || !self.has_seen_enough()) && !self.is_over() {
            version += 1;
            self.raised.store(version, Ordering::SeqCst);
            self.invalidate().await;
            self.deleted.store(version, Ordering::SeqCst);
            for _ in 0..rng.u8(1..20) {
                self.check(version).await;
                dawdle(&mut rng).await;
            }
        }
    }

    async fn invalidate(&self) {
        let deleted = match self.fence {
            Fence::Key => {
                self.store
                    .delete(std::slice::from_ref(&self.key), None)
                    .await
            }
            Fence::Tag => {
                let records = std::slice::from_ref(&self.record);
                self.store.delete(records, Some(&self.counter)).await
            }
        };
        ok("delete", deleted);
    }

    async fn check(&self, version: u64) {
        let keys = [self.key.clone(), self.record.clone()];
        let found = ok("get", self.store.get(&keys, LIMIT).await);
        let record = found[1].as_ref().and_then(|bytes| TagRecord::parse(bytes));
        let record = record.map(|record| record.version);
        if let Some(tag) = record {
            self.history().in_force.insert(tag, version);
        }
        let Some(value) = found[0].as_ref().filter(|value| value.len() > Header::LEN) else {
            return;
        };
        if self.fence == Fence::Tag && versions_in(value).first() != record.as_ref() {
            return; // Not valid.
        }
        let read = payload_of(value);
        assert!(
            read >= version,
            "read {read} after {version} was invalidated"
        );
    }

    async fn load(self: Arc<Self>, mut rng: Rng) {
        let _ends_all = Ends(&self.over);
        let keys = [self.key.clone()];
        // What a tag invalidated stays in its place, so its readers lease whatever is there.
        let (stale_at, counter) = match self.fence {
            Fence::Key => (self.now, None),
            Fence::Tag => (Millis::MAX, Some(self.counter.clone())),
        };
        while !self.is_over() {
            let request = LeaseRequest {
                token: token(),
                stale_at,
                lease_for: HOUR,
                limit: LIMIT,
                counter: counter.clone(),
            };
            let leased = ok("lease", self.store.lease(&keys, &request).await);
            if let [Leased::Acquired { since, .. }] = leased[..] {
                self.fill(request.token, since, &mut rng).await;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn fill(&self, token: LeaseToken, since: Option<Position>, rng: &mut Rng) {
        let version = self.raised.load(Ordering::SeqCst);
        dawdle(rng).await;
        // Some fills come while nothing happens, some beside the delete, and some behind it.
        let awaited = match rng.u8(..3) {
            0 => None,
            1 => {
                self.beside.fetch_add(1, Ordering::SeqCst);
                Some(&self.raised)
            }
            _ => Some(&self.deleted),
        };
        while awaited.is_some_and(|seen| seen.load(Ordering::SeqCst) <= version) && !self.is_over()
        {
            tokio::task::yield_now().await;
        }
        let late = self.deleted.load(Ordering::SeqCst) > version;
        let filled = ok(
            "fill",
            self.store.fill(&[self.loaded(version, token, since)]).await,
        );
        if let [Filled::Stored { versions }] = &filled[..]
            && let [tag] = versions[..]
        {
            let mut history = self.history();
            let oldest = history.stored.entry(tag).or_insert(version);
            *oldest = version.min(*oldest);
        }
        let stored = filled != [Filled::Refused];
        assert!(!late || !stored, "{version} was stored after its delete");
        self.late.fetch_add(u64::from(late), Ordering::SeqCst);
        self.stored.fetch_add(u64::from(stored), Ordering::SeqCst);
        if !stored && self.fence == Fence::Tag {
            // Nobody deletes the key, so the lease is still there.
            let keys = std::slice::from_ref(&self.key);
            ok("release", self.store.release(keys, token).await);
        }
    }

    fn loaded(&self, version: u64, token: LeaseToken, since: Option<Position>) -> Fill {
        let until = self.now + HOUR_MS;
        let value = envelope(until, until, version.to_be_bytes());
        if self.fence == Fence::Key {
            return fill(&self.key, token, &value);
        }
        let value = with_tags(&value, &[fastrand::u64(..)]);
        Fill {
            tags: Some(Tagged {
                counter: self.counter.clone(),
                records: vec![self.record.clone()],
                since,
            }),
            ..fill(&self.key, token, &value)
        }
    }
}

/// What stands behind the header and the versions of tags.
fn payload_of(value: &Bytes) -> u64 {
    value[Header::LEN + 8 * versions_in(value).len()..]
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Lets other tasks run, a few times or not at all.
async fn dawdle(rng: &mut Rng) {
    for _ in 0..rng.u8(..4) {
        tokio::task::yield_now().await;
    }
}
