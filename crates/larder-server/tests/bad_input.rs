//! What the user has to put right is said in one clear sentence, with exit code 2.
#![allow(
    clippy::expect_used,
    reason = "a test that cannot go on should say so and stop"
)]

mod common;

use std::net::TcpListener;
use std::process::Command;

use common::{complained, larder};

/// Runs `command`, which must refuse, and returns what it says.
fn refusal(mut command: Command) -> String {
    let output = command.output().expect("larder runs");
    let said = complained(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim_end().to_owned()
}

fn with_config(text: &str) -> String {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("shop.toml");
    std::fs::write(&path, text).expect("written");
    let mut command = larder(&["demo", "--once", "--config", "shop.toml"]);
    command.current_dir(directory.path());
    refusal(command)
}

#[test]
fn an_unknown_command_or_option() {
    assert_eq!(
        refusal(larder(&["dmeo"])),
        "larder: unknown command `dmeo`; did you mean `demo`?"
    );
    assert_eq!(
        refusal(larder(&["demo", "--onec"])),
        "larder: unknown option `--onec`; did you mean `--once`?"
    );
    assert_eq!(
        refusal(larder(&["demo", "--tier", "memroy"])),
        "larder: unknown tier `memroy`; did you mean `memory`? (memory, disk, redis or redis=URL)"
    );
}

#[test]
fn an_unknown_key_in_the_configuration() {
    assert_eq!(
        with_config("[demo]\nproducts = 1000\n\n[cache.product]\ngrase = \"1h\"\n"),
        "larder: shop.toml:5:1: unknown key `grase` in [cache.product]; did you mean `grace`?"
    );
}

#[test]
fn a_bad_duration() {
    let said = with_config("[cache.price]\nttl = \"5 parsecs\"\n");
    assert!(
        said.starts_with("larder: shop.toml:2:7: `5 parsecs` is not a duration"),
        "{said}"
    );
}

#[test]
fn an_unknown_or_bad_variable() {
    let mut command = larder(&["demo", "--once"]);
    command.env("LARDER_DEMO_PROT", "1");
    assert_eq!(
        refusal(command),
        "larder: unknown variable LARDER_DEMO_PROT; did you mean `LARDER_DEMO_PORT`?"
    );
    let mut command = larder(&["demo", "--once"]);
    command.env("LARDER_CACHE_PRODUCT_GRACE", "soon");
    let said = refusal(command);
    assert!(
        said.starts_with("larder: LARDER_CACHE_PRODUCT_GRACE: `soon` is not a duration"),
        "{said}"
    );
}

#[test]
fn options_that_do_not_go_together() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data = directory.path().to_str().expect("UTF-8");
    let port = common::free_ports().to_string();
    let mut command = larder(&[
        "demo",
        "--once",
        "--data",
        data,
        "--port",
        &port,
        "--products",
        "100",
    ]);
    command.env("LARDER_CACHE_PRODUCT_JITTER", "3.0");
    let said = refusal(command);
    assert!(
        said.contains("the caches cannot be built: jitter is 3"),
        "{said}"
    );
}

#[test]
fn a_configuration_that_cannot_be_read() {
    let said = refusal(larder(&["demo", "--config", "/nowhere/shop.toml"]));
    assert!(
        said.starts_with("larder: cannot read /nowhere/shop.toml: "),
        "{said}"
    );
}

#[test]
fn a_taken_port() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data = directory.path().to_str().expect("UTF-8");
    assert_eq!(
        refusal(larder(&["demo", "--once", "--data", data, "--port", &port])),
        format!(
            "larder: cannot listen on port {port} of 127.0.0.1 (it is taken); \
             choose another with --port"
        )
    );
}

#[test]
fn an_unwritable_directory() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("file");
    std::fs::write(&file, "in the way").expect("written");
    let data = file.join("below");
    let said = refusal(larder(&[
        "demo",
        "--once",
        "--data",
        data.to_str().expect("UTF-8"),
    ]));
    assert!(
        said.starts_with("larder: cannot write to the data directory "),
        "{said}"
    );
    assert!(said.ends_with("choose another with --data"), "{said}");
}

#[test]
fn a_bad_url() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data = directory.path().to_str().expect("UTF-8");
    let port = common::free_ports().to_string();
    let said = refusal(larder(&[
        "demo",
        "--once",
        "--data",
        data,
        "--port",
        &port,
        "--products",
        "100",
        "--tier",
        "redis=http://example.com",
    ]));
    assert!(said.starts_with("larder: --tier redis: "), "{said}");
}

#[test]
fn no_redis_server_to_start() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data = directory.path().to_str().expect("UTF-8");
    let port = common::free_ports().to_string();
    let mut command = larder(&[
        "demo",
        "--once",
        "--data",
        data,
        "--port",
        &port,
        "--products",
        "100",
        "--tier",
        "redis",
    ]);
    command.env("PATH", data);
    assert_eq!(
        refusal(command),
        "larder: no redis-server found on PATH; install one, or name a server with \
         --tier redis=redis://HOST:PORT"
    );
}
