//! A real redis-server, started, stopped, killed and brought back by the kit.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may panic as the tests do"
)]

use std::process::Command;
use std::time::Duration;

use larder::clock::{Clock as _, SystemClock};
use larder_testkit::{Offset, RedisServer, Reply};

fn get(server: &RedisServer, key: &str) -> Reply {
    server.command(&["GET", key]).unwrap()
}

#[test]
fn two_servers_share_nothing() {
    let (one, other) = (RedisServer::start().unwrap(), RedisServer::start().unwrap());
    assert_ne!(one.port(), other.port());
    assert_eq!(
        one.command(&["SET", "k", "v"]).unwrap(),
        Reply::Status("OK".into())
    );
    assert_eq!(get(&one, "k"), Reply::Bytes(b"v".into()));
    assert_eq!(get(&other, "k"), Reply::Nil);
    assert_eq!(one.url(), format!("redis://127.0.0.1:{}", one.port()));
}

#[test]
fn a_killed_server_is_gone_and_comes_back_on_its_port() {
    let server = RedisServer::start().unwrap();
    let (port, pid) = (server.port(), server.pid());
    server.command(&["SET", "k", "v"]).unwrap();
    server.kill9();
    server.kill9();
    assert!(server.command(&["PING"]).is_err());
    assert!(
        server.stop_signal().is_err(),
        "its process id may be another's by now"
    );
    server.restart().unwrap();
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    assert_eq!(get(&server, "k"), Reply::Nil, "nothing is persisted");
}

#[test]
fn a_stopped_server_goes_on_where_it_was() {
    let server = RedisServer::start().unwrap();
    server.command(&["SET", "k", "v"]).unwrap();
    server.stop_signal().unwrap();
    assert_eq!(state_of(server.pid()), 'T');
    server.cont_signal().unwrap();
    assert_eq!(get(&server, "k"), Reply::Bytes(b"v".into()));
}

#[test]
fn dropping_a_stopped_server_ends_it_and_removes_its_directory() {
    let server = RedisServer::start().unwrap();
    let pid = server.pid();
    let Reply::List(dir) = server.command(&["CONFIG", "GET", "dir"]).unwrap() else {
        panic!("CONFIG GET answers a list");
    };
    let Reply::Bytes(dir) = &dir[1] else {
        panic!("a directory is bytes");
    };
    let dir = String::from_utf8(dir.clone()).unwrap();
    assert!(std::fs::exists(&dir).unwrap());
    server.stop_signal().unwrap();
    drop(server);
    assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
    assert!(!std::fs::exists(&dir).unwrap());
}

#[test]
fn arguments_reach_the_server_and_a_password_the_url() {
    let server =
        RedisServer::start_with(&["--requirepass", "s3cret", "--maxmemory", "4mb"]).unwrap();
    assert_eq!(
        server.url(),
        format!("redis://:s3cret@127.0.0.1:{}", server.port())
    );
    let found = server.command(&["CONFIG", "GET", "maxmemory"]).unwrap();
    let expected = ["maxmemory", "4194304"].map(|text| Reply::Bytes(text.into()));
    assert_eq!(found, Reply::List(expected.into()));
}

/// How far the clock of a server is from this machine's, in whole minutes.
fn minutes_off(server: &RedisServer) -> i64 {
    let here = i64::try_from(SystemClock::new().wall()).unwrap();
    (server.clock_millis().unwrap() - here + 30_000).div_euclid(60_000)
}

#[test]
fn the_clock_of_a_server_goes_where_it_is_told_while_it_runs() {
    let server = RedisServer::start_with_clock(&["--requirepass", "secret"]).unwrap();
    assert_eq!(minutes_off(&server), 0);
    server.command(&["SET", "k", "v", "EX", "60"]).unwrap();
    let (minute, hours) = (Duration::from_millis(59_999), Duration::from_secs(7_200));
    server.move_clock(Offset::Behind(hours)).unwrap();
    assert_eq!(minutes_off(&server), -120);
    assert!(matches!(server.command(&["TTL", "k"]).unwrap(),
        Reply::Integer(left) if left > 7_200));
    // A restart begins with the offset that there was.
    server.restart().unwrap();
    assert_eq!(minutes_off(&server), -120);
    server.move_clock(Offset::Ahead(minute)).unwrap();
    assert_eq!(minutes_off(&server), 1);
    let other = RedisServer::start().unwrap();
    let refused = other.move_clock(Offset::Ahead(hours)).unwrap_err();
    assert!(refused.to_string().contains("start_with_clock"));
    assert_eq!(minutes_off(&other), 0);
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let error = RedisServer::start_with(&["--no-such-option", "1"]).unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("no-such-option"), "{text}");
}

#[test]
fn a_missing_redis_server_is_an_error_that_says_how_to_get_it() {
    const CHILD: &str = "LARDER_TESTKIT_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let error = RedisServer::start().unwrap_err().to_string();
        assert!(error.contains("`cargo xtask provision`"), "{error}");
        assert!(error.contains("Debian and Ubuntu: redis-server"), "{error}");
        return;
    }
    // PATH is the process's, so another process is asked.
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_missing_redis_server_is_an_error_that_says_how_to_get_it",
        ])
        .env(CHILD, "1")
        .env("PATH", "")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && output.contains("1 passed"),
        "{output}"
    );
}

/// The state letter that the kernel shows for a process; `T` is stopped.
fn state_of(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}
