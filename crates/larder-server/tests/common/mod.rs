//! Runs the built binary and reads what it says.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::expect_used,
    reason = "a test that cannot go on should say so and stop"
)]

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

/// `larder` with `arguments`, and none of the caller's `LARDER_*` variables.
pub(crate) fn larder(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    command
}

/// Standard output as text.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
pub(crate) fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The first of three ports in a row that nobody uses at this moment.
pub(crate) fn free_ports() -> u16 {
    let bind = |port| TcpListener::bind(("127.0.0.1", port)).ok();
    loop {
        let first = bind(0)
            .expect("a free port")
            .local_addr()
            .expect("bound")
            .port();
        let all = (first..=first.saturating_add(2)).filter_map(bind).count();
        if all == 3 {
            return first;
        }
    }
}
