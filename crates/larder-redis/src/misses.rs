use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Which recent reads found nothing fresh, as a share in which older reads fade.
///
/// A read that may take a lease has two ways. `GETRANGE` alone serves a fresh value at the cost of
/// a bare GET, and sends everything else on to the script: a second round trip. The script alone
/// serves both in one, at a higher cost to hits. Which of them is cheaper on average depends on how
/// many reads miss, and that is much the same from one moment to the next: a cache that warms up,
/// or was cleared, misses in series. So the store guesses by what it saw last.
pub(crate) struct Misses {
    /// From 0 to [`ALL`].
    share: AtomicU32,
}

/// What a read asks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// `GETRANGE`, and the script for what is not fresh.
    Read,
    /// The script, which returns fresh values as well.
    Lease,
}

const ALL: u32 = 1 << 16;

/// From this share of misses on the script goes first.
///
/// With `c` as the cost of a script on a hit in units of `GETRANGE`, and `m` on a miss, reading
/// first costs `1 + p·m` at a share of misses `p`, and leasing first `(1 - p)·c + p·m`: the
/// break-even is at `p = 1 - 1/c`. Measured by the example `hit_against_bare_get` on a loopback
/// connection, `c` is 1.8 to 1.9 for values of up to 1,000 bytes and 2.9 for 10,000, which puts the
/// break-even at 0.44 to 0.65. Over a network the round trip weighs more and `c` is lower, but the
/// server's time belongs to all of its clients: hits stay on the cheap way until most reads miss.
const LEASE_FIRST_FROM: u32 = ALL / 2;

/// How many reads it takes until the share follows what they found.
const MEMORY: u64 = 16;

impl Misses {
    /// Nothing is known, and a store that was just opened meets cold keys more often than not.
    pub(crate) fn new() -> Self {
        Self {
            share: AtomicU32::new(ALL),
        }
    }

    pub(crate) fn first(&self) -> First {
        first(self.share.load(Relaxed))
    }

    /// Notes how many of `reads` found nothing fresh. What two callers note at the same moment may
    /// count as one, which does no harm to a guess.
    pub(crate) fn note(&self, misses: usize, reads: usize) {
        let share = after(self.share.load(Relaxed), misses as u64, reads as u64);
        self.share.store(share, Relaxed);
    }
}

fn first(share: u32) -> First {
    if share < LEASE_FIRST_FROM {
        First::Read
    } else {
        First::Lease
    }
}

/// The share after further reads. Each weighs one part in [`MEMORY`], and that many or more of them
/// leave nothing of what was before.
fn after(share: u32, misses: u64, reads: u64) -> u32 {
    let Some(found) = (misses.min(reads) * u64::from(ALL)).checked_div(reads) else {
        return share;
    };
    let weight = reads.min(MEMORY);
    let mixed = (u64::from(share) * (MEMORY - weight) + found * weight) / MEMORY;
    u32::try_from(mixed).unwrap_or(ALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(share: u32, misses: impl IntoIterator<Item = bool>) -> u32 {
        let note = |share, missed| after(share, u64::from(missed), 1);
        misses.into_iter().fold(share, note)
    }

    #[test]
    fn a_new_store_leases_first() {
        assert_eq!(Misses::new().first(), First::Lease);
    }

    #[test]
    fn a_run_of_hits_turns_to_reading_and_a_run_of_misses_back() {
        assert_eq!(first(read(ALL, [false; 8])), First::Lease);
        assert_eq!(first(read(ALL, [false; 16])), First::Read);
        assert_eq!(first(read(0, [true; 4])), First::Read);
        assert_eq!(first(read(0, [true; 16])), First::Lease);
    }

    #[test]
    fn steady_shares_settle_on_their_side() {
        let steady = |every: usize| read(0, (0..1_000).map(|n| n % every == 0));
        assert_eq!(first(steady(10)), First::Read, "one miss in ten");
        assert_eq!(first(steady(1)), First::Lease, "nothing but misses");
        let mostly = read(0, (0..1_000).map(|n| n % 3 != 0));
        assert_eq!(first(mostly), First::Lease, "two misses in three");
    }

    #[test]
    fn a_batch_counts_as_its_reads() {
        assert_eq!(after(0, 1_000, 1_000), ALL);
        assert_eq!(after(ALL, 0, 1_000), 0);
        assert_eq!(after(0, 500, 1_000), ALL / 2);
        assert_eq!(after(ALL, 0, 8), ALL / 2);
        assert_eq!(after(7, 0, 0), 7, "an empty batch says nothing");
        assert_eq!(after(0, 3, 1), ALL / 16, "no more misses than reads");
        assert_eq!(after(ALL, u64::MAX >> 20, u64::MAX >> 20), ALL);
    }
}
