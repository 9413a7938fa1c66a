//! Keeps the allocator from falling behind with what a table frees.
//!
//! glibc does not join small blocks with their neighbours when they are freed; it collects them, and
//! joins all that it has at the next request that is not small, whoever makes it. Where a table has
//! dropped a hundred thousand entries by then, somebody waits for 15 ms. So a thread that drops entries
//! makes such a request itself, often enough that it is soon done. It reaches the blocks that glibc counts
//! to this thread's own arena, and not those that other threads allocated from theirs. Other allocators
//! see one request among thousands.

use std::cell::Cell;
use std::hint::black_box;

/// After so many entries a thread makes its request.
const ENTRIES: usize = 512;

/// More than glibc calls small, and than it keeps for the thread.
const BYTES: usize = 2 << 10;

thread_local! {
    static DROPPED: Cell<usize> = const { Cell::new(0) };
}

/// Is told that this thread has dropped so many entries.
#[inline]
pub(super) fn after(entries: usize) {
    // A thread that ends frees little more.
    let _ = DROPPED.try_with(|dropped| {
        dropped.set(dropped.get() + entries);
        if dropped.get() >= ENTRIES {
            dropped.set(0);
            tidy();
        }
    });
}

#[cold]
fn tidy() {
    drop(black_box(Vec::<u8>::with_capacity(BYTES)));
}
