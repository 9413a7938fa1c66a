//! What the compiler says of functions that cannot be cached: each message tells the mend.
//!
//! After a change of words, `TRYBUILD=overwrite cargo test -p larder-macros --test messages` writes
//! the files anew.

#[test]
fn every_mistake_is_told_with_its_mend() {
    trybuild::TestCases::new().compile_fail("tests/messages/*.rs");
}
