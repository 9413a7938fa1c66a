//! What users call most, each alone: for whoever changes it, to see at once what that does.
//!
//! ```text
//! cargo bench --manifest-path bench/Cargo.toml --bench cache   # measures
//! cargo test --manifest-path bench/Cargo.toml --bench cache    # runs each once
//! ```

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot begin fails where it stands"
)]

use std::convert::Infallible;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use divan::Bencher;
use larder::clock::{BoxFuture, Clock, Millis};
use larder::{Cache, Larder, Loaded};

fn main() {
    divan::main();
}

/// How many entries there are.
const ENTRIES: u64 = 10_000;

/// A cache that holds [`ENTRIES`] and has room for so many in all.
fn filled(larder: &Larder, room: u64, tags: &[&str]) -> Cache<String, u64> {
    let cache = larder.cache("bench").capacity(room);
    let cache = cache.ttl("1h").in_memory().unwrap();
    for number in 0..ENTRIES {
        cache
            .set_in_memory(name(number), Loaded::value(number).tags(tags))
            .unwrap();
    }
    cache
}

fn name(number: u64) -> String {
    format!("page:{number:08}")
}

/// A read that memory answers is ready at its first poll.
fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("memory alone waits for nothing"),
    }
}

/// A clock that is turned by hand.
#[derive(Debug, Default)]
struct Turned(AtomicU64);

impl Clock for Turned {
    fn monotonic(&self) -> Millis {
        self.0.load(Ordering::Relaxed)
    }

    fn wall(&self) -> Millis {
        self.monotonic()
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

#[divan::bench]
fn hit(bencher: Bencher<'_, '_>) {
    let cache = filled(&Larder::local(), 2 * ENTRIES, &[]);
    let key = name(7);
    bencher.bench_local(|| cache.get_in_memory(black_box(&key)));
}

#[divan::bench]
fn hit_of_a_read_that_would_load(bencher: Bencher<'_, '_>) {
    let cache = filled(&Larder::local(), 2 * ENTRIES, &[]);
    let key = name(7);
    let load = |_| async { Ok::<u64, Infallible>(0) };
    bencher.bench_local(|| at_once(cache.get_or_load(black_box(&key), load)).unwrap());
}

#[divan::bench]
fn hit_of_an_entry_with_tags(bencher: Bencher<'_, '_>) {
    let cache = filled(&Larder::local(), 2 * ENTRIES, &["one", "two"]);
    let key = name(7);
    bencher.bench_local(|| cache.get_in_memory(black_box(&key)));
}

#[divan::bench]
fn hit_after_another_tag_was_invalidated(bencher: Bencher<'_, '_>) {
    let larder = Larder::local();
    let cache = filled(&larder, 2 * ENTRIES, &["one", "two"]);
    cache
        .set_in_memory("other".to_owned(), Loaded::value(0).tags(["three"]))
        .unwrap();
    let key = name(7);
    bencher
        .with_inputs(|| at_once(larder.invalidate_tag("three")).unwrap())
        .bench_local_values(|_| cache.get_in_memory(black_box(&key)));
}

#[divan::bench]
fn insert_into_a_full_cache(bencher: Bencher<'_, '_>) {
    let cache = filled(&Larder::local(), ENTRIES, &[]);
    let mut next = ENTRIES;
    bencher
        .with_inputs(|| {
            next += 1;
            name(next)
        })
        .bench_local_values(|key| cache.set_in_memory(key, 0).unwrap());
}

/// All entries of a cache at once.
#[divan::bench]
fn sweep_of_what_expired(bencher: Bencher<'_, '_>) {
    let full_of_dead = || {
        let clock = Arc::new(Turned::default());
        let larder = Larder::builder("bench")
            .clock(clock.clone())
            .build()
            .unwrap();
        let cache = filled(&larder, 2 * ENTRIES, &[]);
        clock.0.store(Millis::MAX / 2, Ordering::Relaxed);
        cache
    };
    bencher
        .with_inputs(full_of_dead)
        .bench_local_refs(|cache| cache.sweep(usize::MAX));
}
