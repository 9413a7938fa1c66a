//! Faults 1 and 2: a reader pauses between the database and the fill, or a refresh does so in the
//! background; meanwhile the row is updated and invalidated, by its key, a tag, a group or a clear,
//! in the same process or another one. Nothing old is served or stored afterwards.
//!
//! With the 13,000 worlds of `fence.rs`, and 15,000 interleavings on a real server in `larder-redis`
//! (`an_invalidation_wins_over_loads`, `nothing_old_comes_back_by_tag_clear_or_refresh`), these are
//! the 100,000 of the contract.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use common::{Fleet, Turns, Wobbly, healthy, ms, secs, turn_until};
use fastrand::Rng;
use larder::{Cache, Larder, Loaded, Read, Receipt, Tiers};
use larder_testkit::{ManualClock, seeds};

/// Loads that somebody waits for, and refreshes in the background, per test.
const LOADS: usize = 30_000;
const REFRESHES: usize = 6_000;
/// How many have the same processes, one after the other, each with a key of its own.
const PER_FLEET: usize = 400;

type Rows = Cache<u64, u64>;

/// Who invalidates.
#[derive(Clone, Copy)]
enum Writer {
    /// The process that reads.
    TheSame,
    Another,
}

/// What pauses between the database and the fill.
#[derive(Clone, Copy, PartialEq)]
enum Reader {
    Loads,
    Refreshes,
}

/// Two processes over one tier.
struct Pair {
    clock: Arc<ManualClock>,
    larders: [Larder; 2],
    rows: [Rows; 2],
}

impl Pair {
    async fn begin(rng: &mut Rng) -> Self {
        let fleet = Fleet::new();
        let mut process = || {
            let store = Wobbly::new(fleet.store.clone(), Turns::up_to(3, rng));
            // Time flies here; no tier is late.
            let tiers = |builder: larder::LarderBuilder| builder.shared(store);
            fleet
                .process_with(|builder| tiers(builder).tier_budget(secs(60)))
                .0
        };
        let larders = [process(), process()];
        let rows = larders.each_ref().map(|larder| {
            let rows = larder
                .cache("rows")
                .ttl("12h")
                .grace("12h")
                .memory_ttl("12h");
            let rows = rows.groups(|key| vec![format!("g{key}")]);
            rows.build().unwrap()
        });
        let pair = Self {
            clock: fleet.clock.clone(),
            larders,
            rows,
        };
        for (larder, rows) in pair.larders.iter().zip(&pair.rows) {
            let _ = rows.get(&u64::MAX).await.unwrap();
            healthy(larder).await;
        }
        pair
    }
}

/// A row of the database, whose value is its version.
#[derive(Clone)]
struct Row {
    key: u64,
    version: Arc<AtomicU64>,
}

/// Reads through the cache. The load pauses before and behind the database.
async fn read(rows: &Rows, row: &Row, how: Read, rng: &mut Rng) -> u64 {
    let (turns, version) = (Turns::up_to(8, rng), row.version.clone());
    let tag = format!("t{}", row.key);
    let load = |_| async move {
        turns.give_way().await;
        let found = version.load(SeqCst);
        turns.give_way().await;
        Ok::<_, io::Error>(Loaded::value(found).tags([tag]))
    };
    let found = rows.with(how).get_or_load(&row.key, load).await.unwrap();
    *found.unwrap()
}

/// Updates the row and invalidates it in one of the ways that do.
async fn write(larder: &Larder, rows: &Rows, row: &Row, rng: &mut Rng) -> (u64, Receipt) {
    let version = row.version.fetch_add(1, SeqCst) + 1;
    Turns::up_to(4, rng).give_way().await;
    let receipt = match rng.u8(0..8) {
        0 => rows.clear().await,
        1 | 2 => larder.invalidate_tag(&format!("t{}", row.key)).await,
        3 => rows.invalidate_group(&format!("g{}", row.key)).await,
        _ => rows.invalidate(&row.key).await,
    };
    (version, receipt.unwrap())
}

async fn interleave(pair: &Pair, key: u64, reader: Reader, writer: Writer, rng: &mut Rng) {
    let from = rng.usize(0..2);
    let at = match writer {
        Writer::TheSame => from,
        Writer::Another => 1 - from,
    };
    let row = Row {
        key,
        version: Arc::new(AtomicU64::new(1)),
    };
    if reader == Reader::Refreshes || rng.bool() {
        let (rows, row, mut rng) = (pair.rows[from].clone(), row.clone(), rng.fork());
        let warming = async move { read(&rows, &row, Read::new(), &mut rng).await };
        turn_until(&pair.clock, ms(5), tokio::spawn(warming)).await;
    }
    if reader == Reader::Refreshes {
        // Whoever reads from now on is served what is stale, and refreshes it.
        assert!(pair.rows[0].expire(&key).await.unwrap().is_acked());
    }
    let mut tasks = Vec::new();
    for _ in 0..rng.usize(1..3) {
        let (rows, row, mut rng) = (pair.rows[from].clone(), row.clone(), rng.fork());
        tasks.push(tokio::spawn(async move {
            Turns::up_to(6, &mut rng).give_way().await;
            read(&rows, &row, Read::new(), &mut rng).await;
        }));
    }
    let (larder, mut fork) = (pair.larders[at].clone(), rng.fork());
    let (all, there) = (pair.rows.clone(), row.clone());
    tasks.push(tokio::spawn(async move {
        Turns::up_to(10, &mut fork).give_way().await;
        let (version, receipt) = write(&larder, &all[at], &there, &mut fork).await;
        let seen = read(&all[at], &there, Read::new(), &mut fork).await;
        assert!(seen >= version, "{seen} after {version} was invalidated");
        let heard = Read::new().after(receipt.token().unwrap());
        let seen = read(&all[1 - at], &there, heard, &mut fork).await;
        assert!(
            seen >= version,
            "{seen} elsewhere, behind the token of {version}"
        );
    }));
    for task in tasks {
        turn_until(&pair.clock, ms(5), task).await;
    }
    for larder in pair.larders.clone() {
        // A refresh may wait for the lease of the other process.
        let settled = tokio::spawn(async move { larder.settle().await });
        turn_until(&pair.clock, ms(5), settled).await;
    }
    let newest = row.version.load(SeqCst);
    for rows in &pair.rows {
        for tiers in [Tiers::All, Tiers::Shared] {
            let left = rows.with(Read::new().tiers(tiers)).get(&key).await.unwrap();
            let old = left.filter(|left| **left != newest);
            assert_eq!(old, None, "left in {tiers:?}");
        }
    }
}

fn interleavings(reader: Reader, writer: Writer) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let count = match reader {
        Reader::Loads => LOADS,
        Reader::Refreshes => REFRESHES,
    };
    let mut seeds = seeds(count).peekable();
    while let Some(first) = seeds.peek() {
        let mut rng = first.rng();
        runtime.block_on(async {
            let pair = Pair::begin(&mut rng).await;
            for (key, seed) in (0..).zip(seeds.by_ref().take(PER_FLEET)) {
                fastrand::seed(seed.number());
                interleave(&pair, key, reader, writer, &mut seed.rng()).await;
            }
        });
    }
}

#[test]
fn a_load_that_pauses_brings_nothing_old_back() {
    interleavings(Reader::Loads, Writer::TheSame);
}

#[test]
fn a_load_that_pauses_brings_nothing_back_that_is_old_elsewhere() {
    interleavings(Reader::Loads, Writer::Another);
}

#[test]
fn a_refresh_that_pauses_brings_nothing_old_back() {
    interleavings(Reader::Refreshes, Writer::TheSame);
}

#[test]
fn a_refresh_that_pauses_brings_nothing_back_that_is_old_elsewhere() {
    interleavings(Reader::Refreshes, Writer::Another);
}
