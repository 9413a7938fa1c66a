//! A real PostgreSQL server, started, stopped, killed and brought back by the kit.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may panic as the tests do"
)]

use std::process::Command;
use std::sync::Arc;

use larder_testkit::PostgresServer;

#[test]
fn tests_share_a_server_and_have_databases_of_their_own() {
    let server = PostgresServer::shared().unwrap();
    assert!(Arc::ptr_eq(&server, &PostgresServer::shared().unwrap()));
    let (one, other) = (server.database().unwrap(), server.database().unwrap());
    server.exec(&one, "CREATE TABLE t (n int)").unwrap();
    server.exec(&one, "INSERT INTO t VALUES (1), (2)").unwrap();
    let sum = "SELECT sum(n), count(*) FROM t";
    assert_eq!(server.exec(&one, sum).unwrap(), "3|2\n");
    let error = server.exec(&other, sum).unwrap_err().to_string();
    assert!(error.contains("relation \"t\" does not exist"), "{error}");
}

#[test]
fn a_killed_server_is_gone_and_recovers_on_its_port() {
    let server = PostgresServer::start().unwrap();
    let (url, port, pid) = (server.url(), server.port(), server.pid());
    let table = "CREATE TABLE t AS SELECT generate_series(1, 7) AS n";
    server.exec(&url, table).unwrap();
    server.kill_immediate();
    server.kill_immediate();
    assert!(server.exec(&url, "SELECT 1").is_err());
    assert!(
        server.stop_signal().is_err(),
        "its process id may be another's by now"
    );
    server.restart().unwrap();
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    let kept = server.exec(&url, "SELECT count(*) FROM t").unwrap();
    assert_eq!(kept, "7\n", "what was committed is recovered");
}

#[test]
fn a_stopped_server_stands_still_as_a_whole_and_goes_on_where_it_was() {
    let server = PostgresServer::start().unwrap();
    server.stop_signal().unwrap();
    let states = states_of(server.pid());
    assert!(states.len() > 3, "PostgreSQL is several processes");
    assert!(
        states.iter().all(|state| "TZ".contains(*state)),
        "{states:?}"
    );
    server.cont_signal().unwrap();
    assert_eq!(server.exec(&server.url(), "SELECT 1").unwrap(), "1\n");
}

/// The state letters that the kernel shows for a process and its children; `T` is stopped, `Z` ended.
fn states_of(pid: u32) -> Vec<char> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let mut states = Vec::new();
    for stat in stats {
        let (id, _) = stat.split_once(' ').unwrap();
        let mut fields = stat.rsplit_once(") ").unwrap().1.split(' ');
        let (state, parent) = (fields.next().unwrap(), fields.next().unwrap());
        if [id, parent].contains(&pid.to_string().as_str()) {
            states.extend(state.chars());
        }
    }
    states
}

#[test]
fn dropping_a_stopped_server_ends_it_and_removes_its_directory() {
    let server = PostgresServer::start().unwrap();
    let pid = server.pid();
    let dir = server.exec(&server.url(), "SHOW data_directory").unwrap();
    assert!(std::fs::exists(dir.trim()).unwrap());
    server.stop_signal().unwrap();
    drop(server);
    assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
    assert!(!std::fs::exists(dir.trim()).unwrap());
}

#[test]
fn arguments_reach_the_server_and_wrong_ones_are_told() {
    let server = PostgresServer::start_with(&["-c", "max_prepared_transactions=4"]).unwrap();
    let shown = server.exec(&server.url(), "SHOW max_prepared_transactions");
    assert_eq!(shown.unwrap(), "4\n");
    let error = PostgresServer::start_with(&["-c", "no_such_option=1"]).unwrap_err();
    assert!(format!("{error:?}").contains("no_such_option"), "{error:?}");
}

#[test]
fn the_first_statement_that_fails_ends_a_script() {
    let server = PostgresServer::shared().unwrap();
    let url = server.database().unwrap();
    let script = "CREATE TABLE one (); CREATE TABLE one (); CREATE TABLE two ();";
    let error = server.exec(&url, script).unwrap_err().to_string();
    assert!(error.contains("\"one\" already exists"), "{error}");
    let tables = "SELECT relname FROM pg_class WHERE relname IN ('one', 'two')";
    assert_eq!(server.exec(&url, tables).unwrap(), "one\n");
}

#[test]
fn a_server_dies_with_its_test_binary() {
    const CHILD: &str = "LARDER_TESTKIT_CHILD";
    if let Some(file) = std::env::var_os(CHILD) {
        let server = PostgresServer::start().unwrap();
        std::fs::write(file, server.pid().to_string()).unwrap();
        // As a kill does: no destructor runs.
        std::process::abort();
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let file = dir.path().join("pid");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_server_dies_with_its_test_binary"])
        .env(CHILD, &file)
        // Who is killed removes no directory; this one is removed by us.
        .env("TMPDIR", dir.path())
        .output()
        .unwrap();
    assert!(!child.status.success());
    let pid: i32 = std::fs::read_to_string(file).unwrap().parse().unwrap();
    assert!(ends(pid), "PostgreSQL {pid} outlived its test by 10 s");
}

/// Waits up to ten seconds for the end of a process that is not our child.
fn ends(pid: i32) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    let Ok(process) = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else {
        return true;
    };
    let ten_seconds = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let ended = poll(
        &mut [PollFd::new(&process, PollFlags::IN)],
        Some(&ten_seconds),
    );
    ended.unwrap() == 1
}
