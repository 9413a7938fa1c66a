//! Random readers and writers on several processes with Redis and PostgreSQL behind them, while
//! servers, processes, connections and messages are killed, stopped, cut and lost at random.
//!
//! Writers change rows in PostgreSQL and tell of it in every way there is, some by the change feed
//! alone; readers read rows, and what is made from rows. What they see is judged by the promises of
//! docs/coherence.md, in `promise`. `LARDER_CHECK_SECONDS` says how long it runs; `LARDER_SEED`
//! repeats the plan of a run, though not its timing.
//!
//! A cycle has a rough part, in which everything breaks and each writer stays with few rows at a time,
//! so that what is lost of a change is not hidden by the next; and a calm one. After each, nobody
//! writes, and all processes have to get well and agree.
//!
//! # What it finds
//!
//! Each of these was put into the engine on purpose, and seen after so many seconds, with the first
//! seed tried unless it says otherwise:
//!
//! | wrong on purpose | seconds | which promise is broken |
//! |---|---|---|
//! | no fence at the insert into memory (third seed) | 14 | 1 |
//! | what the bus brings is not applied | 10 | token |
//! | a gap in the numbers is passed over (second seed) | 9 | token |
//! | a fill does not compare the token of its lease | 17 | 1 |
//! | versions of tags are not compared | 2 | 1 |
//! | minimum versions are ignored | 11 | 1 |
//! | what the bus did not take is forgotten | 12 | 5 |
//! | a tier that missed an invalidation is read again at once | 10 | 1 |
//! | the position of the feed runs ahead | 16 | 2 |
//!
//! And these it found: what a load makes for others from an entry that is gone unheard; what it makes
//! from a value that was refused; an invalidation that a tier missed and made up for, while others
//! had found the old value there.
//!
//! In reading order: `promise`, pure: what a read must not show; `rows`: the tables; `node`: a
//! process; `facts`: what is known; `check`: a run; `writers`; `faults`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it stands, and says how long things took"
)]

mod check;
mod facts;
mod faults;
mod loaders;
mod node;
mod promise;
mod readers;
mod rows;
mod ways;
mod writers;

use std::sync::Arc;

use larder_testkit::seeds;

use check::Check;

/// How long it runs where nobody says otherwise.
const SECONDS: u64 = 25;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stale_is_read_whatever_breaks() {
    let seconds = std::env::var("LARDER_CHECK_SECONDS").ok();
    let seconds: u64 = seconds.map_or(SECONDS, |seconds| seconds.parse().unwrap());
    for seed in seeds(1) {
        println!("seed {}", seed.number());
        let mut rng = seed.rng();
        let check = Check::begin(&mut rng).await;
        while check.now() < seconds * 1_000 && !check.has_failed() {
            Arc::clone(&check).cycle(rng.fork()).await;
        }
        check.report(seed.number());
    }
}
