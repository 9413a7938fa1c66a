//! A bus that tells which keys of the tier were changed: memory follows, and what was read before a
//! key was changed never gets in after it.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{Faulty, faulty, found, healthy, ms, never, soon, until};
use larder::backplane::{Backplane, LocalBus, Notice, Replay};
use larder::clock::BoxFuture;
use larder::store::{Position, StoreError, StoreResult};
use larder::{Cache, Larder, Loaded, Read, Reason, Source, TierHealth};
use larder_testkit::{ManualClock, Operation, larder_with};
use tokio::sync::{broadcast, mpsc};

/// A bus that tells what the test wants beside what goes over it.
#[derive(Clone, Debug)]
struct Telling {
    bus: LocalBus,
    told: broadcast::Sender<Notice>,
}

impl Telling {
    fn new() -> Self {
        Self {
            bus: LocalBus::new(),
            told: broadcast::Sender::new(1_000),
        }
    }

    fn tell(&self, notice: Notice) {
        self.told.send(notice).unwrap();
    }

    fn changed(&self, key: &'static str) {
        let keys = vec![Bytes::from_static(key.as_bytes())];
        self.tell(Notice::Changed { keys });
    }
}

impl Backplane for Telling {
    fn name(&self) -> &str {
        "telling"
    }

    fn publish<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        self.bus.publish(channel, message)
    }

    fn beat<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        self.bus.beat(channel, message)
    }

    fn listen<'a>(
        &'a self,
        channel: &'a str,
        notify: &'a mut (dyn FnMut(Notice) + Send),
    ) -> BoxFuture<'a, StoreError> {
        Box::pin(async move {
            let mut told = self.told.subscribe();
            let (forward, mut heard) = mpsc::unbounded_channel();
            let mut forward = |notice| drop(forward.send(notice));
            let mut listening = self.bus.listen(channel, &mut forward);
            loop {
                tokio::select! {
                    end = &mut listening => return end,
                    Some(notice) = heard.recv() => notify(notice),
                    Ok(notice) = told.recv() => notify(notice),
                }
            }
        })
    }

    fn replay<'a>(
        &'a self,
        channel: &'a str,
        after: Position,
        at_most: usize,
    ) -> BoxFuture<'a, StoreResult<Replay>> {
        self.bus.replay(channel, after, at_most)
    }
}

type Numbers = Cache<u64, u64>;

struct Process {
    larder: Larder,
    clock: Arc<ManualClock>,
    bus: Telling,
    private: Faulty,
    shared: Faulty,
    numbers: Numbers,
}

/// A process that trusts its bus, with a private tier above a shared one.
async fn process() -> Process {
    let bus = Telling::new();
    let mut tiers = None;
    let (larder, clock) = larder_with("w", |builder, clock| {
        let (upper, private) = faulty(clock);
        let (lower, shared) = faulty(clock);
        tiers = Some((private, shared));
        builder.tier(upper).shared(lower).backplane(bus.clone())
    });
    let numbers: Numbers = larder.cache("c").version(3).ttl("1h").build().unwrap();
    numbers.get(&99).await.unwrap();
    healthy(&larder).await;
    // Whoever joins empties what it alone writes to.
    until("the private tier is in use", || {
        clock.advance(ms(10));
        larder.tiers()[0].health == TierHealth::Closed
    })
    .await;
    healthy(&larder).await;
    let (private, shared) = tiers.unwrap();
    Process {
        larder,
        clock,
        bus,
        private,
        shared,
        numbers,
    }
}

impl Process {
    async fn fill(&self, key: u64) {
        let load = self
            .numbers
            .get_or_load(&key, |_| found(Loaded::value(1).tags(["a"])));
        load.await.unwrap();
    }

    fn holds(&self, key: u64) -> bool {
        self.numbers.get_in_memory(&key).is_some()
    }

    /// Tells, and returns once that was done here.
    async fn tells(&self, key: &'static str) {
        let before = self.larder.bus().unwrap().changed;
        self.bus.changed(key);
        until("the change is heard", || {
            self.larder.bus().unwrap().changed > before
        })
        .await;
    }
}

#[tokio::test]
async fn a_changed_key_goes_from_memory_and_from_the_private_tier_and_no_other() {
    let process = process().await;
    for key in [1, 2] {
        process.fill(key).await;
    }
    assert_eq!(process.private.store().len(), 2);
    process.tells("w:c@3:1").await;
    assert!(!process.holds(1) && process.holds(2));
    until("the copy is gone", || process.private.store().len() == 1).await;
    let reads = process.numbers.with(Read::new());
    let read = reads.get_or_load_explained(&1, |_| never()).await.unwrap();
    assert_eq!(read.outcome.source, Source::Tier("memory-store".into()));
}

#[tokio::test]
async fn what_this_process_does_not_read_says_nothing() {
    let process = process().await;
    process.fill(1).await;
    for key in [
        "w:c@2:1",
        "w:other@3:1",
        "x:c@3:1",
        "w:c@x:1",
        "w:c:1",
        "w:",
        "",
        "w:~counter",
        "w:~bus",
        "w:~v%3Ac",
        "w:~t%3Ab",
        "w:~%",
        "w:~t%3",
        "w:c@3:2",
    ] {
        process.tells(key).await;
        assert!(process.holds(1), "{key}");
    }
    // A key that does not decode may stand for any.
    process.tells("w:c@3:one").await;
    assert!(!process.holds(1));
}

#[tokio::test]
async fn entries_go_with_the_records_of_their_tags() {
    let process = process().await;
    for record in ["w:~t%3Aa", "w:~c%3Ac"] {
        process.fill(1).await;
        assert!(process.holds(1));
        process.tells(record).await;
        assert!(!process.holds(1), "{record}");
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_store_that_was_emptied() {
    let process = process().await;
    for key in 0..10 {
        process.fill(key).await;
    }
    process.bus.tell(Notice::Emptied);
    until("memory is empty", || (0..10).all(|key| !process.holds(key))).await;
    until("the private tier is empty", || {
        process.clock.advance(ms(10));
        process.private.store().is_empty()
    })
    .await;
}

#[tokio::test]
async fn what_was_read_before_the_watching_began_is_looked_up() {
    let process = process().await;
    process.fill(1).await;
    let doubts = process.larder.bus().unwrap().doubts;
    process.bus.tell(Notice::Watching);
    until("it is heard", || {
        process.larder.bus().unwrap().doubts > doubts
    })
    .await;
    let reads = process.shared.begun(Operation::Get) + process.shared.begun(Operation::Lease);
    let reader = process.numbers.with(Read::new());
    let read = reader.get_or_load_explained(&1, |_| never()).await.unwrap();
    assert_eq!(read.outcome.reason, Reason::Confirmed);
    let asked = process.shared.begun(Operation::Get) + process.shared.begun(Operation::Lease);
    assert!(asked > reads);
}

/// The key is changed when the tier has answered and nobody has seen the answer: on every way by which
/// something gets into memory.
#[tokio::test]
async fn nothing_from_before_a_change_gets_into_memory_behind_it() {
    for (answered, way) in [
        (Operation::Get, "get"),
        (Operation::Lease, "load"),
        (Operation::Fill, "load"),
        (Operation::Set, "set"),
    ] {
        let process = Arc::new(process().await);
        if answered != Operation::Fill {
            process.fill(1).await;
            process.tells("w:c@3:1").await;
            until("the copy is gone", || process.private.store().is_empty()).await;
        }
        let gate = process.shared.pause_after(answered);
        let reader = tokio::spawn({
            let process = Arc::clone(&process);
            async move {
                match way {
                    "get" => drop(process.numbers.get(&1).await.unwrap()),
                    "set" => drop(process.numbers.set(1, 1).await.unwrap()),
                    _ => process.fill(1).await,
                }
            }
        });
        soon(gate.arrived(1)).await;
        process.tells("w:c@3:1").await;
        gate.open();
        soon(reader).await.unwrap();
        assert!(!process.holds(1), "{way}, after {answered:?}");
        process.fill(1).await;
        assert!(process.holds(1), "the next one is kept");
    }
}
