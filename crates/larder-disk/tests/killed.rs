//! The process is killed at random, many times: what it was told was done is done, nothing that
//! was deleted is back, no tag that was invalidated is valid again, and no value is torn.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use larder::envelope::Header;
use larder::store::{Position, Store};
use larder_disk::Disk;
use support::*;

/// Set in the process to be killed: the directory and the seed.
const VICTIM: &str = "LARDER_DISK_VICTIM";
const KEYS: u32 = 50;
/// The tags that the keys `t0`, `t1` and so on have in turn.
const TAGS: u32 = 5;

#[test]
fn nothing_acknowledged_is_undone_by_a_kill() {
    if let Ok(victim) = std::env::var(VICTIM) {
        let (seed, path) = victim.split_once(' ').unwrap();
        return live(Path::new(path), seed.parse().unwrap());
    }
    let directory = tempfile::tempdir().unwrap();
    let mut known = HashMap::new();
    let mut counter = Counter::default();
    for seed in larder_testkit::seeds(12) {
        let acknowledged = 20 + seed.rng().usize(..600);
        let log = kill_after(directory.path(), seed.number(), acknowledged);
        follow(&mut known, &log);
        counter.follow(&log);
        check(directory.path(), &known, &mut counter);
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
            let (plain, with_tag) = (format!("k{n}"), format!("t{n}"));
            let version = rng.u64(1..);
            let words = match rng.u8(..8) {
                0..2 => format!("{plain} -"),
                2..5 => format!("{plain} {version}"),
                5..7 => format!("{with_tag} {version}"),
                _ => format!("tag{} -", n % TAGS),
            };
            writeln!(out, "> {words}").unwrap();
            match words.split_once(' ').unwrap() {
                (tag, _) if tag.starts_with("tag") => {
                    let doomed = [tag_of(n)];
                    disk.delete(&doomed, Some(&COUNTER)).await.unwrap();
                }
                (_, "-") => delete(&disk, &key(plain)).await.unwrap(),
                (name, _) if name == plain => {
                    set(&disk, &key(plain), versioned(version)).await.unwrap();
                }
                (name, _) => {
                    let payload = versioned(version).slice(Header::LEN..);
                    set_tagged(&disk, &key(name), &[tag_of(n)], payload).await;
                }
            }
            writeln!(out, "< {words}").unwrap();
        }
    });
}

fn tag_of(n: u32) -> Bytes {
    tag(format!("{}", n % TAGS))
}

/// The keys that words such as `k7`, `t7` or `tag2` are about.
fn keys_of(words: &str) -> Vec<Bytes> {
    match words.strip_prefix("tag") {
        None => vec![key(words)],
        Some(tag) => {
            let tag: u32 = tag.parse().unwrap();
            let tagged = (0..KEYS).filter(|n| n % TAGS == tag);
            tagged.map(|n| key(format!("t{n}"))).collect()
        }
    }
}

/// What the counter may say: every acknowledged invalidation by tag moved it, one under way may have.
#[derive(Default)]
struct Counter {
    last: Option<Position>,
    acknowledged: u64,
    begun: u64,
}

impl Counter {
    fn follow(&mut self, log: &[String]) {
        let count = |mark: &str| log.iter().filter(|line| line.starts_with(mark)).count();
        self.acknowledged = count("< tag") as u64;
        self.begun = count("> tag") as u64;
    }

    fn check(&mut self, found: Position) {
        if let Some(last) = self.last {
            assert_eq!(found.incarnation, last.incarnation, "it is the same one");
            let moved = found.count - last.count;
            assert!((self.acknowledged..=self.begun).contains(&moved), "{moved}");
        }
        self.last = Some(found);
    }
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
        let [mark @ (">" | "<"), name, version] = words[..] else {
            continue;
        };
        let state = version.parse().ok();
        for name in keys_of(name) {
            let states = known.entry(name).or_insert_with(|| vec![None]);
            match mark {
                ">" => states.push(state),
                _ => *states = vec![state],
            }
        }
    }
}

/// The payload that an engine would serve.
async fn served(disk: &Disk, name: &Bytes) -> Option<Bytes> {
    match std::str::from_utf8(name).unwrap().strip_prefix('t') {
        Some(n) => valid(disk, name, &[tag_of(n.parse().unwrap())]).await,
        None => Some(get(disk, name).await?.slice(Header::LEN..)),
    }
}

fn check(path: &Path, known: &Known, counter: &mut Counter) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let disk = open(path);
        for (name, states) in known {
            let found = served(&disk, name).await;
            let version = found
                .as_ref()
                .map(|payload| u64::from_be_bytes(*payload.first_chunk().unwrap()));
            assert!(
                states.contains(&version),
                "{name:?} holds {version:?}, not one of {states:?}"
            );
            if let (Some(version), Some(found)) = (version, found) {
                let whole = versioned(version);
                assert_eq!(found, payload(&whole), "{name:?} is torn");
            }
        }
        counter.check(position(&disk).await);
        disk.close().await.unwrap();
    });
}
