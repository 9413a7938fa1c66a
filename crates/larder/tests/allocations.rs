//! A hit in memory allocates nothing.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use larder::{Cache, Larder};
use larder_testkit::{ManualClock, MemoryStore, larder_with};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Counts what this thread allocates.
struct Counting;

#[expect(unsafe_code, reason = "a global allocator cannot be written without")]
// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `work` allocates on this thread.
fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

/// A read that memory answers is ready at its first poll.
fn now<F: Future>(future: F) -> F::Output {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a hit in memory waits for nothing"),
    }
}

fn read_in_every_way(cache: &Cache<String, String>) {
    let load = |_| async { Err::<String, _>(std::io::Error::other("not asked")) };
    assert_eq!(now(cache.get_or_load("key", load)).unwrap().len(), 5);
    assert_eq!(now(cache.get("key")).unwrap().unwrap().len(), 5);
    assert_eq!(cache.get_in_memory("key").unwrap().len(), 5);
}

fn count_reads(larder: &Larder) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let cache: Cache<String, String> = larder.cache("c").grace("1h").build().unwrap();
    runtime.block_on(async {
        let _ = cache
            .set("key".to_owned(), "value".to_owned())
            .await
            .unwrap();
    });
    read_in_every_way(&cache); // Threads take their place among the counters once.
    let counted = allocations(|| {
        for _ in 0..1000 {
            read_in_every_way(&cache);
        }
    });
    assert_eq!(counted, 0, "in 3,000 hits");
    assert_eq!(cache.stats().hits_memory, 3003, "each of which was counted");
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(Box::new(7))), 1);
}

#[test]
fn a_hit_in_memory_alone_allocates_nothing() {
    count_reads(&Larder::local());
}

#[test]
fn a_hit_in_memory_above_tiers_allocates_nothing() {
    let (larder, _clock) = larder_with("t", |builder, clock: &Arc<ManualClock>| {
        let store = || MemoryStore::new(clock.clone());
        builder.tier(store()).shared(store())
    });
    count_reads(&larder);
}
