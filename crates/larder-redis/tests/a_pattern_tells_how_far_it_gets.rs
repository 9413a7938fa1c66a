//! A pattern over 100,000 keys of ours beside as many of others: what a watcher is told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::{Arc, Mutex};

use common::*;
use larder::{Cache, Larder, Progress};
use larder_testkit::{RedisServer, Reply};

const KEYS: u64 = 100_000;
const KEPT: u64 = 1_000;

#[tokio::test]
async fn progress_is_told_in_steps_and_foreign_keys_stay() {
    let server = RedisServer::start_with(&["--enable-debug-command", "yes"]).unwrap();
    for (count, prefix) in [
        (KEYS, "other"),
        (KEYS, "t:page@1:user"),
        (KEPT, "t:page@1:shop"),
    ] {
        let filled = server.command(&["DEBUG", "POPULATE", &count.to_string(), prefix]);
        assert!(!matches!(filled, Ok(Reply::Error(_))), "{filled:?}");
    }
    let larder = Larder::builder("t")
        .shared(store_at(&server))
        .build()
        .unwrap();
    let pages: Cache<(String, u64), String> = larder.cache("page").build().unwrap();
    let told = Arc::new(Mutex::new(Vec::<Progress>::new()));
    let watch = {
        let told = Arc::clone(&told);
        move |progress| told.lock().unwrap().push(progress)
    };
    let matching = pages.invalidate_matching("user:*").watched(watch);
    let receipt = matching.await.unwrap();
    assert!(receipt.is_acked());
    assert_eq!(receipt.swept().removed, KEYS);
    let told = told.lock().unwrap();
    let steps: Vec<_> = told.iter().filter(|step| &*step.tier == "redis").collect();
    println!("told {} times", steps.len());
    assert!(steps.len() >= 10, "{} steps", steps.len());
    let grows = |two: &[&Progress]| {
        two[0].swept.seen <= two[1].swept.seen && two[0].swept.removed <= two[1].swept.removed
    };
    assert!(steps.windows(2).all(grows));
    assert_eq!(steps.last().unwrap().swept, receipt.swept());
    for (prefix, left) in [
        ("other", KEYS),
        ("t:page@1:shop", KEPT),
        ("t:page@1:user", 0),
    ] {
        let last = format!("{prefix}:{}", left.max(1) - 1);
        let exists = server.command(&["EXISTS", &last]).unwrap();
        assert_eq!(exists, Reply::Integer(i64::from(left > 0)), "{last}");
    }
    // Beside those, the position and the journal of the bus, and the counter.
    let Reply::Integer(size) = server.command(&["DBSIZE"]).unwrap() else {
        panic!("DBSIZE is a number");
    };
    assert!(
        (KEYS + KEPT..KEYS + KEPT + 5).contains(&(size as u64)),
        "{size}"
    );
}
