//! The numbers that came before those in front of them.

/// How many separate runs of numbers are remembered. What does not fit is replayed again.
const MAX_RUNS: usize = 64;

/// Numbers of one incarnation that were heard of while lower ones were missing, as runs without a
/// hole: a flood of messages behind one gap takes one run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Ahead {
    incarnation: u64,
    /// First and last of each run, ascending, never touching.
    runs: Vec<(u64, u64)>,
}

impl Ahead {
    /// Remembers a number. Those of another incarnation are forgotten.
    pub(super) fn add(&mut self, incarnation: u64, number: u64) {
        if self.incarnation != incarnation {
            self.runs.clear();
            self.incarnation = incarnation;
        }
        // The runs in front of `at` end too early to touch the number.
        let at = self
            .runs
            .partition_point(|(_, last)| last.saturating_add(1) < number);
        let room = self.runs.len() < MAX_RUNS;
        match self.runs.get_mut(at) {
            Some((first, last)) if *first <= number.saturating_add(1) => {
                *first = number.min(*first);
                *last = number.max(*last);
                self.join(at);
            }
            _ if room => self.runs.insert(at, (number, number)),
            _ => {}
        }
    }

    /// Joins the run at `at` with the next one if they touch.
    fn join(&mut self, at: usize) {
        if let [(_, last), (next_first, next_last), ..] = &mut self.runs[at..]
            && last.saturating_add(1) >= *next_first
        {
            *last = *next_last;
            self.runs.remove(at + 1);
        }
    }

    /// Takes out what follows on `count` without a hole, and everything below, and returns the
    /// last number of it.
    pub(super) fn take_up_to(&mut self, incarnation: u64, count: u64) -> u64 {
        let mut reached = count;
        if self.incarnation == incarnation {
            self.runs.retain(|(first, last)| {
                let follows = *first <= reached.saturating_add(1);
                if follows {
                    reached = reached.max(*last);
                }
                !follows
            });
        }
        reached
    }

    /// Whether this number is remembered.
    pub(super) fn has(&self, incarnation: u64, number: u64) -> bool {
        let within = |(first, last): &(u64, u64)| (*first..=*last).contains(&number);
        self.incarnation == incarnation && self.runs.iter().any(within)
    }

    /// The highest number that is remembered of this incarnation.
    pub(super) fn highest(&self, incarnation: u64) -> Option<u64> {
        let (_, last) = self.runs.last()?;
        (self.incarnation == incarnation).then_some(*last)
    }

    pub(super) fn clear(&mut self) {
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flood_behind_a_gap_takes_one_run() {
        let mut ahead = Ahead::default();
        (7..10_000).for_each(|number| ahead.add(1, number));
        assert_eq!(ahead.runs, [(7, 9_999)]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ahead = Ahead::default();
        (0..10_000).for_each(|number| ahead.add(1, 2 * number));
        assert_eq!(ahead.runs.len(), MAX_RUNS);
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(
            numbers in proptest::collection::vec((0_u64..40).prop_map(|n| if n > 35 { u64::MAX - 39 + n } else { n }), 0..60),
            count in 0_u64..40,
        ) {
            let mut ahead = Ahead::default();
            let mut set = BTreeSet::new();
            for number in numbers {
                ahead.add(1, number);
                set.insert(number);
                for number in (0..40).chain(u64::MAX - 5..=u64::MAX) {
                    prop_assert_eq!(ahead.has(1, number), set.contains(&number));
                }
                prop_assert_eq!(ahead.highest(1), set.last().copied());
            }
            let mut reached = count;
            while set.contains(&(reached + 1)) {
                reached += 1;
            }
            prop_assert_eq!(ahead.take_up_to(1, count), reached);
            prop_assert_eq!(ahead.highest(1), set.last().copied().filter(|last| *last > reached));
        }

        #[test]
        fn incarnations_do_not_mix(numbers in proptest::collection::vec((1_u64..3, 0_u64..9), 1..20)) {
            let mut ahead = Ahead::default();
            for (incarnation, number) in &numbers {
                ahead.add(*incarnation, *number);
            }
            let (now, _) = numbers[numbers.len() - 1];
            prop_assert!(ahead.highest(now).is_some());
            prop_assert_eq!(ahead.highest(3 - now), None);
            prop_assert_eq!(ahead.take_up_to(3 - now, 4), 4);
        }
    }
}
