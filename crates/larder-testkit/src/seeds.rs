//! Bounded random tests that say how to repeat a failure.

use fastrand::Rng;

/// The variable that replays one seed instead of drawing new ones.
const VARIABLE: &str = "LARDER_SEED";

/// One case of a random test. If the test panics while it is alive, it prints how to replay it.
#[derive(Debug)]
pub struct Seed(u64);

impl Seed {
    /// The number.
    pub fn number(&self) -> u64 {
        self.0
    }

    /// A generator that yields the same numbers for the same seed.
    pub fn rng(&self) -> Rng {
        Rng::with_seed(self.0)
    }
}

impl Drop for Seed {
    #[expect(
        clippy::print_stderr,
        reason = "the seed of a failed test belongs beside its panic message"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with {VARIABLE}={}", self.0);
        }
    }
}

/// Up to `cases` random seeds; with `LARDER_SEED` set, that one alone.
///
/// Keep the seed alive as long as its case runs, in an async test as in any other:
///
/// ```
/// for seed in larder_testkit::seeds(10) {
///     let mut rng = seed.rng();
///     assert!(rng.u8(1..=6) <= 6);
/// }
/// ```
pub fn seeds(cases: usize) -> impl Iterator<Item = Seed> {
    choose(std::env::var(VARIABLE).ok().as_deref(), cases)
        .into_iter()
        .map(Seed)
}

/// Runs `case` with `cases` random seeds, or with the one in `LARDER_SEED`.
pub fn seeded(cases: usize, mut case: impl FnMut(&mut Rng, u64)) {
    for seed in seeds(cases) {
        case(&mut seed.rng(), seed.number());
    }
}

fn choose(replay: Option<&str>, cases: usize) -> Vec<u64> {
    match replay {
        Some(text) => match text.trim().parse() {
            Ok(seed) => vec![seed],
            Err(_) => panic!("{VARIABLE}={text} is not a number from 0 to 2^64-1"),
        },
        None => (0..cases).map(|_| fastrand::u64(..)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_seed_is_the_only_case() {
        assert_eq!(choose(Some("17"), 100), [17]);
        assert_eq!(choose(None, 100).len(), 100);
    }

    #[test]
    #[should_panic(expected = "LARDER_SEED=soup is not a number")]
    fn a_seed_that_is_no_number_is_refused() {
        choose(Some("soup"), 1);
    }

    #[test]
    fn a_seed_yields_the_same_numbers_again() {
        let draw = || Seed(9).rng().u64(..);
        assert_eq!(draw(), draw());
    }
}
