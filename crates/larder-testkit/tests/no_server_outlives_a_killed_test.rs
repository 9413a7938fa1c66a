//! A test binary that is killed takes its servers along.
#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the child is a test too, and tells its parent by its output"
)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use larder_testkit::RedisServer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

const CHILD: &str = "LARDER_TESTKIT_CHILD";

#[test]
fn a_killed_test_binary_takes_its_server_along() {
    if std::env::var_os(CHILD).is_some() {
        return be_the_child();
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_killed_test_binary_takes_its_server_along",
            "--nocapture",
        ])
        .env(CHILD, "1")
        // Who is killed removes no directory; this one is removed by us.
        .env("TMPDIR", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let pid = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("server ")?.1.parse::<i32>().ok())
        .unwrap();
    let server = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let ten_seconds = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let ended = poll(
        &mut [PollFd::new(&server, PollFlags::IN)],
        Some(&ten_seconds),
    )
    .unwrap();
    assert_eq!(ended, 1, "redis-server {pid} outlived its test by 10 s");
}

/// Starts a server from a thread that ends, as the thread of a test does, and waits to be killed.
fn be_the_child() {
    let server = std::thread::spawn(|| RedisServer::start().unwrap())
        .join()
        .unwrap();
    server.command(&["PING"]).unwrap();
    println!("server {}", server.pid());
    let _ = std::io::stdin().read(&mut [0]);
}
