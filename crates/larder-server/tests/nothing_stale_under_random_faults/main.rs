//! Random readers and writers on several processes with Redis and PostgreSQL behind them, while
//! servers, processes, connections and messages are killed, stopped, cut and lost at random.
//!
//! Writers change rows in PostgreSQL and tell of it in every way there is, some by the change feed
//! alone; readers read rows, and what is made from rows, in every way there is, one key or many at
//! once, refresh them and warm their caches. What they see is judged by the promises of
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
//! seed tried unless it says otherwise. The upper nine were seen while all reads were of one key, by
//! callers that bring their loader, from caches without options:
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
//! | what renews a fresh entry is stored without a look at the fence | 15 | 2 |
//! | a batch takes what any flight brings | 20 | 1 |
//! | a batch ignores the token of its read | 21 | token |
//! | what a batch reads leaves no note for what is made from it | 1 | 1 |
//! | what is loaded ahead is put into memory once more, without fence or tags | 6 | 1 |
//! | behind a soft deadline memory is not asked whether its entry is gone (second seed) | 11 | 1 |
//! | a stale answer says that it is fresh | 15 | 1 |
//! | what slides is served whatever was invalidated | 42 | 1 |
//!
//! And these it found: what a load makes for others from an entry that is gone unheard; what it makes
//! from a value that was refused; an invalidation that a tier missed and made up for, while others
//! had found the old value there; a batch that refreshed keys and gave one the value of another.
//!
//! In reading order: `promise`, pure: what a read must not show; `rows`: the tables; `ways`: to read;
//! `loaders`, and `node`: a process; `facts`: what is known; `check`: a run; `writers`; `readers`;
//! `faults`.
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
