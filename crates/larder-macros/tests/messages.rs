//! What the compiler says of functions that cannot be cached: each message tells the mend.
//!
//! The sentences are larder's own; what the compiler puts around those of `types.rs` may change with it
//! (the files are of rustc 1.95). After a change of words, `TRYBUILD=overwrite cargo test -p larder-macros --test messages` writes
//! the files anew.

#[test]
fn every_mistake_is_told_with_its_mend() {
    trybuild::TestCases::new().compile_fail("tests/messages/*.rs");
}
