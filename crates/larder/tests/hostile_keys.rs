//! Keys, weighers and clocks that misbehave, and what a cache holds afterwards.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use larder::clock::{BoxFuture, Clock, Millis};
use larder::{Cache, Key, KeySink, Larder, Policy};
use larder_testkit::{seeds, settle};

thread_local! {
    /// How many calls of a key's code are left until one panics. Negative: none does.
    static FUSE: Cell<i64> = const { Cell::new(-1) };
}

fn burn() {
    let left = FUSE.get();
    FUSE.set((left - 1).max(-1));
    assert!(left != 0, "as keys do");
}

/// A key all of whose code panics when the fuse has burnt down.
#[derive(Debug)]
struct Fused(u64);

impl PartialEq for Fused {
    fn eq(&self, other: &Self) -> bool {
        burn();
        self.0 == other.0
    }
}

impl Eq for Fused {}

impl Hash for Fused {
    fn hash<H: Hasher>(&self, state: &mut H) {
        burn();
        (self.0 % 3).hash(state);
    }
}

impl Clone for Fused {
    fn clone(&self) -> Self {
        burn();
        Self(self.0)
    }
}

impl Key for Fused {
    fn encode(&self, sink: &mut KeySink) {
        burn();
        self.0.encode(sink);
    }

    fn decode(encoded: &[u8]) -> Option<Self> {
        u64::decode(encoded).map(Self)
    }
}

type Step = Box<dyn Fn(&Cache<Fused, u64>)>;

fn history(runtime: &Arc<tokio::runtime::Runtime>) -> Vec<Step> {
    let on_runtime = |step: fn(&Cache<Fused, u64>, &tokio::runtime::Runtime)| -> Step {
        let runtime = Arc::clone(runtime);
        Box::new(move |cache| step(cache, &runtime))
    };
    let mut steps: Vec<Step> = (0..5)
        .map(|key| -> Step { Box::new(move |cache| drop(cache.set_in_memory(Fused(key), key))) })
        .collect();
    steps.push(Box::new(|cache| _ = cache.get_in_memory(&Fused(3))));
    steps.push(Box::new(|cache| drop(cache.set_in_memory(Fused(3), 3))));
    steps.push(on_runtime(|cache, runtime| {
        let load = |_| async { Ok::<_, std::io::Error>(7) };
        drop(runtime.block_on(cache.get_or_load(&Fused(7), load)));
    }));
    steps.push(on_runtime(|cache, runtime| {
        let invalidated = runtime.block_on(cache.invalidate(&Fused(4)));
        drop(invalidated);
        drop(runtime.block_on(cache.expire(&Fused(3))));
    }));
    steps.push(Box::new(|cache| {
        cache
            .entries()
            .for_each(|entry| assert_eq!(entry.key.0, *entry.value));
    }));
    steps.push(on_runtime(|cache, runtime| {
        drop(runtime.block_on(async { cache.invalidate_matching("1*").await }));
    }));
    steps.push(Box::new(|cache| cache.invalidate_in_memory(&Fused(2))));
    steps
}

/// Plays the history to a cache, with a panic in call number `fuse`. Whether it came to that.
fn play(policy: Policy, runtime: &Arc<tokio::runtime::Runtime>, fuse: i64) -> bool {
    let cache: Cache<Fused, u64> = Larder::local()
        .cache("c")
        .capacity(4)
        .policy(policy)
        .in_memory()
        .unwrap();
    FUSE.set(fuse);
    for step in history(runtime) {
        let _ = catch_unwind(AssertUnwindSafe(|| step(&cache)));
        let burning = FUSE.replace(-1);
        assert!(cache.stats().entries <= 4);
        FUSE.set(burning);
    }
    let burnt_down = FUSE.replace(-1) == -1;
    let load = |_| async { Ok::<_, std::io::Error>(9) };
    for key in 0..8 {
        let _ = runtime.block_on(cache.invalidate(&Fused(key))).unwrap();
        assert_eq!(cache.get_in_memory(&Fused(key)), None);
        let loaded = runtime.block_on(cache.get_or_load(&Fused(key), load));
        assert_eq!(*loaded.unwrap(), 9, "nobody is stranded");
    }
    assert!(cache.entries().all(|entry| *entry.value == 9));
    burnt_down
}

#[test]
fn a_key_that_panics_at_any_call_leaves_a_cache_that_works() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = Arc::new(runtime.unwrap());
    for policy in [Policy::Adaptive, Policy::Lru, Policy::NoEviction] {
        let calls = (0..).take_while(|fuse| play(policy, &runtime, *fuse));
        assert!(calls.count() > 40, "{policy:?}");
    }
}

/// A weigher that says something else at every call, of the same value too.
#[test]
fn a_weigher_that_cannot_make_up_its_mind_breaks_no_bound() {
    for policy in [Policy::Adaptive, Policy::Lfu, Policy::NoEviction] {
        let calls = AtomicU32::new(0);
        let cache: Cache<u64, u64> = Larder::local()
            .cache("c")
            .capacity_bytes(100_000)
            .policy(policy)
            .weigher(move |_, _| calls.fetch_add(1, SeqCst).wrapping_mul(0x9E37_79B9) >> 16)
            .in_memory()
            .unwrap();
        for round in 0..20_000 {
            let _ = cache.set_in_memory(round % 70, round);
            assert!(cache.stats().weight <= 100_000);
        }
        assert!(cache.stats().entries > 0);
        (0..70).for_each(|key| cache.invalidate_in_memory(&key));
        let stats = cache.stats();
        assert_eq!((stats.entries, stats.weight), (0, 0), "{policy:?}");
    }
}

#[test]
fn a_value_heavier_than_the_bound_is_refused_and_takes_nobody_with_it() {
    let cache: Cache<u64, u64> = Larder::local()
        .cache("c")
        .capacity_bytes(100_000)
        .weigher(|_, value| *value as u32)
        .in_memory()
        .unwrap();
    for key in 0..50 {
        cache.set_in_memory(key, 100).unwrap();
    }
    let before = cache.stats();
    for heavy in [100_000, 1 << 20, u64::from(u32::MAX)] {
        cache.set_in_memory(99, heavy).unwrap();
        assert_eq!(cache.get_in_memory(&99), None);
    }
    let after = cache.stats();
    assert_eq!((after.too_large, after.evictions), (3, 0));
    assert_eq!(
        (after.entries, after.weight),
        (before.entries, before.weight)
    );
}

/// A clock that somebody sets, backwards too, which no clock should be.
#[derive(Debug, Default)]
struct Unsteady(AtomicU64);

impl Clock for Unsteady {
    fn monotonic(&self) -> Millis {
        self.0.load(SeqCst)
    }

    fn wall(&self) -> Millis {
        self.0.load(SeqCst)
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_clock_that_goes_back_harms_nobody_and_makes_nothing_immortal() {
    for seed in seeds(30) {
        let mut random = seed.rng();
        let clock = Arc::new(Unsteady::default());
        let larder = Larder::builder("t").clock(clock.clone()).build().unwrap();
        let cache = larder.cache("c").capacity(100).ttl("10s").grace("5s");
        let cache: Cache<u64, u64> = cache.jitter(0.5).build().unwrap();
        let load = |_| async { Ok::<_, std::io::Error>(7) };
        let mut latest = 0;
        for _ in 0..300 {
            let (now, jump) = (clock.monotonic(), random.u64(0..20_000));
            clock.0.store(
                match random.u8(0..3) {
                    0 => now.saturating_sub(jump),
                    _ => now + jump,
                },
                SeqCst,
            );
            latest = clock.monotonic().max(latest);
            let key = random.u64(0..20);
            match random.u8(0..6) {
                0 => drop(cache.set(key, 7).await.unwrap()),
                1 => drop(cache.get_in_memory(&key)),
                2 => assert_eq!(*cache.get_or_load(&key, load).await.unwrap(), 7),
                3 => drop(cache.expire(&key).await.unwrap()),
                4 => _ = cache.sweep(10),
                _ => assert!(cache.entries().count() <= 20),
            }
        }
        settle(&larder).await;
        clock.0.store(latest + 15_001, SeqCst);
        assert!((0..20).all(|key| cache.get_in_memory(&key).is_none()));
        cache.sweep(1_000);
        assert_eq!(cache.stats().entries, 0);
    }
}
