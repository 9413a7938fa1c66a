//! The process is killed at random, many times: what it was told was done is done, nothing that
//! was deleted is back, and no value is torn.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use larder::store::Store;
use support::*;

/// Set in the process to be killed: the directory and the seed.
const VICTIM: &str = "LARDER_DISK_VICTIM";
const KEYS: u32 = 50;

#[test]
fn nothing_acknowledged_is_undone_by_a_kill() {
    if let Ok(victim) = std::env::var(VICTIM) {
        let (seed, path) = victim.split_once(' ').unwrap();
        return live(Path::new(path), seed.parse().unwrap());
    }
    let directory = tempfile::tempdir().unwrap();
    let mut known = HashMap::new();
    for seed in larder_testkit::seeds(12) {
        let acknowledged = 20 + seed.rng().usize(..600);
        let log = kill_after(directory.path(), seed.number(), acknowledged);
        follow(&mut known, &log);
        check(directory.path(), &known);
    }
}

/// What a key may hold. Two states are possible while an operation was under way.
type Known = HashMap<Bytes, Vec<Option<u64>>>;

/// Writes and deletes until it is killed, saying before and after what it does.
fn live(path: &Path, seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let disk = open(path);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut out = std::io::stdout();
        loop {
            let n = rng.u32(..KEYS);
            let name = key(format!("k{n}"));
            let version = rng.u64(1..);
            let words = if rng.u8(..3) == 0 {
                writeln!(out, "> {n} -").unwrap();
                delete(&disk, &name).await.unwrap();
                format!("< {n} -")
            } else {
                writeln!(out, "> {n} {version}").unwrap();
                set(&disk, &name, versioned(version)).await.unwrap();
                format!("< {n} {version}")
            };
            writeln!(out, "{words}").unwrap();
        }
    });
}

/// A value of a length that its version gives, with the version throughout.
fn versioned(version: u64) -> Bytes {
    let times = [1, 20, 400, 4_000][(version % 4) as usize];
    fresh(version.to_be_bytes().repeat(times))
}

/// Starts a process that writes, and kills it once it said `acknowledged` operations done.
fn kill_after(path: &Path, seed: u64, acknowledged: usize) -> Vec<String> {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "nothing_acknowledged_is_undone_by_a_kill",
            "--exact",
            "--nocapture",
        ])
        .env(VICTIM, format!("{seed} {}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let mut log = Vec::new();
    let mut done = 0;
    while done < acknowledged {
        let line = lines.next().expect("the victim lives").unwrap();
        done += usize::from(line.starts_with('<'));
        log.push(line);
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    // What it said until it died counts too.
    log.extend(lines.map_while(Result::ok));
    log
}

fn follow(known: &mut Known, log: &[String]) {
    for line in log {
        let words: Vec<_> = line.split(' ').collect();
        let [mark, n, version] = words[..] else {
            continue;
        };
        let state = version.parse().ok();
        let name = key(format!("k{n}"));
        let states = known.entry(name).or_insert_with(|| vec![None]);
        match mark {
            ">" => states.push(state),
            "<" => *states = vec![state],
            _ => {}
        }
    }
}

fn check(path: &Path, known: &Known) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let disk = open(path);
        for (name, states) in known {
            let found = get(&disk, name).await;
            let version = found
                .as_ref()
                .map(|value| u64::from_be_bytes(*payload(value).first_chunk().unwrap()));
            assert!(
                states.contains(&version),
                "{name:?} holds {version:?}, not one of {states:?}"
            );
            if let (Some(version), Some(value)) = (version, found) {
                assert_eq!(value, versioned(version), "{name:?} is torn");
            }
        }
        disk.close().await.unwrap();
    });
}
