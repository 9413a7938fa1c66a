//! The memory engine keeps to the bytes that it may take for an entry. A program of its own, since it
//! counts what the whole process holds.

use std::alloc::System;

use cap::Cap;
use larder_bench::tables::bytes_each;
use larder_bench_engine::Engine;

#[global_allocator]
static ALLOCATED: Cap<System> = Cap::new(System, usize::MAX);

const ENTRIES: u64 = 100_000;

#[test]
fn an_entry_takes_56_bytes_at_most_when_as_many_evicted_keys_are_remembered_as_ever_are() {
    let each = |keys| {
        bytes_each(
            || ALLOCATED.allocated(),
            || Ok(Engine::<u64, u64>::new(ENTRIES)),
            keys,
        )
    };
    let (full, churned) = (each(ENTRIES).unwrap(), each(4 * ENTRIES).unwrap());
    // Links, mark, charge, deadline and hash alone are 24.
    assert!((24.0..=56.0).contains(&full), "{full} bytes");
    assert!(
        (full..=56.0).contains(&churned),
        "{churned} bytes, {full} before"
    );
}
