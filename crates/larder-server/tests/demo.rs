//! The demo from end to end, on a small shop: every act is played, and every claim holds.
#![allow(
    clippy::expect_used,
    reason = "a test that cannot go on should say so and stop"
)]

mod common;

use std::process::Output;
use std::sync::{Mutex, PoisonError};

use common::{complained, free_ports, larder, said};

/// Each demo keeps every core busy, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Plays the whole demo on a small shop and returns what it said.
fn play(data: &std::path::Path, tier: &str) -> Output {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let port = free_ports().to_string();
    let data = data.to_str().expect("UTF-8");
    let mut command = larder(&[
        "demo",
        "--once",
        "--products",
        "2000",
        "--seconds",
        "1",
        "--data",
        data,
        "--port",
        &port,
        "--tier",
        tier,
    ]);
    command
        .env("LARDER_DEMO_STAMPEDE", "300")
        .env("LARDER_DEMO_CLIENTS", "16");
    command.output().expect("larder runs")
}

fn assert_told(output: &Output, parts: &[&str]) {
    let told = said(output);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{told}\n{}",
        complained(output)
    );
    assert_eq!(complained(output), "");
    for part in parts {
        assert!(told.contains(part), "no {part:?} in:\n{told}");
    }
    assert!(!told.contains("DOES NOT HOLD"), "{told}");
    assert!(
        !told.contains('\x1b'),
        "colours without a terminal:\n{told}"
    );
}

const EVERY_TIME: [&str; 10] = [
    "1. Visitors, without the cache and with it",
    "2. A price changes while the old one is being loaded",
    ": 0 saw an old price",
    "3. The third party dies, and comes back",
    "4. 300 clients, one cold key",
    "database queries 1, answers 300",
    "without larder   with larder",
    "requests per second",
    "answered from memory",
    "slowest-reads.svg",
];

#[test]
fn in_memory_the_story_is_told_to_its_end_and_the_shop_is_built_once() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let first = play(data.path(), "memory");
    assert_told(&first, &EVERY_TIME);
    assert!(said(&first).contains("Building a shop of 2,000 products"));
    let chart = std::fs::read_to_string(data.path().join("slowest-reads.svg")).expect("drawn");
    assert!(chart.starts_with("<svg") && chart.contains("third party dies"));

    let second = play(data.path(), "memory");
    assert_told(&second, &EVERY_TIME);
    assert!(!said(&second).contains("Building"));
}

#[test]
fn on_disk_what_was_known_survives_a_restart() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let output = play(data.path(), "disk");
    assert_told(&output, &EVERY_TIME);
    assert_told(
        &output,
        &[
            "5. The process restarts",
            "100 came from the disk, with 0 database",
        ],
    );
}

#[cfg(unix)]
#[test]
fn three_processes_share_a_redis_that_hangs_and_comes_back() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let output = play(data.path(), "redis");
    assert_told(&output, &EVERY_TIME);
    let parts = [
        "served by 3 processes",
        "answered from redis",
        "5. Redis hangs",
        "in use again",
    ];
    assert_told(&output, &parts);
}

#[test]
fn a_redis_that_nobody_runs_is_warned_about_and_done_without() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let nobody = format!("redis=redis://127.0.0.1:{}", free_ports());
    let output = play(data.path(), &nobody);
    let told = said(&output);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{told}\n{}",
        complained(&output)
    );
    assert!(
        told.contains("cannot be reached; the shop serves without it"),
        "{told}"
    );
    assert!(
        told.contains("Left out: this Redis is not the demo's own"),
        "{told}"
    );
    assert!(!told.contains("DOES NOT HOLD"), "{told}");
}
