//! Interleaved rounds and their ratios.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// How many rounds are counted.
pub const ROUNDS: usize = 9;

/// The median, and how far the rounds lay apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle of all rounds.
    pub median: f64,
    /// The lowest round.
    pub min: f64,
    /// The highest round.
    pub max: f64,
}

impl Spread {
    /// Of the figures of all rounds.
    ///
    /// # Errors
    ///
    /// When there was no round.
    pub fn of(rounds: impl IntoIterator<Item = f64>) -> crate::Result<Self> {
        let mut rounds: Vec<f64> = rounds.into_iter().collect();
        rounds.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (rounds.first(), rounds.last()) else {
            return Err("no round was measured".into());
        };
        Ok(Self {
            median: rounds[rounds.len() / 2],
            min,
            max,
        })
    }
}

/// One contender's time per operation in each round, in the order of the rounds.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds a round.
    pub fn push(&mut self, per_operation: Duration) {
        self.0.push(per_operation);
    }

    /// The spread in nanoseconds.
    ///
    /// # Errors
    ///
    /// When there was no round.
    pub fn nanoseconds(&self) -> crate::Result<Spread> {
        Spread::of(self.0.iter().map(|time| time.as_secs_f64() * 1e9))
    }

    /// The spread of this contender's time over `rival`'s, taken round by round, so that a round
    /// in which the machine was slow for both counts for neither.
    ///
    /// # Errors
    ///
    /// When there was no round.
    pub fn ratio_to(&self, rival: &Self) -> crate::Result<Spread> {
        Spread::of(self.ratios_to(rival))
    }

    /// The same, round by round.
    pub fn ratios_to(&self, rival: &Self) -> impl Iterator<Item = f64> {
        let rounds = self.0.iter().zip(&rival.0);
        rounds.map(|(a, b)| a.as_secs_f64() / b.as_secs_f64())
    }
}

/// One contender: each call measures it once and gives its time per operation.
pub type Contender<'a> = dyn Fn() -> Measuring + 'a;

/// A measurement under way.
pub type Measuring = Pin<Box<dyn Future<Output = crate::Result<Duration>>>>;

/// Measures every contender in every round, after one round that does not count. Who goes first
/// changes from round to round, so that nobody always runs on the caches that another left warm.
///
/// # Errors
///
/// Whatever a measurement ended with.
pub async fn interleave<const N: usize>(
    contenders: [&Contender<'_>; N],
) -> crate::Result<[Times; N]> {
    let mut times = std::array::from_fn(|_| Times::default());
    for (who, counts) in turns(N, ROUNDS) {
        let took = contenders[who]().await?;
        if counts {
            times[who].push(took);
        }
    }
    Ok(times)
}

/// The same for `contenders` of them that are known by their numbers, and for so many `rounds`.
///
/// # Errors
///
/// Whatever a measurement ended with.
pub fn interleaved(
    contenders: usize,
    rounds: usize,
    mut measure: impl FnMut(usize) -> crate::Result<Duration>,
) -> crate::Result<Vec<Times>> {
    let mut times = vec![Times::default(); contenders];
    for (who, counts) in turns(contenders, rounds) {
        let took = measure(who)?;
        if counts {
            times[who].push(took);
        }
    }
    Ok(times)
}

/// Whose turn it is, and whether that counts.
fn turns(contenders: usize, rounds: usize) -> impl Iterator<Item = (usize, bool)> {
    (0..=rounds).flat_map(move |round| {
        (0..contenders).map(move |turn| ((round + turn) % contenders, round > 0))
    })
}

/// Runs `work`, which gives the time of one operation many times over, in a task of the runtime,
/// where services run theirs. The median is what counts: the moments in which the machine did
/// something else are not the contender's.
///
/// # Errors
///
/// Whatever `work` ended with.
pub async fn median_in_task<F>(work: F) -> crate::Result<Duration>
where
    F: Future<Output = crate::Result<Vec<Duration>>> + Send + 'static,
{
    let mut times = tokio::spawn(work).await??;
    times.sort();
    times
        .get(times.len() / 2)
        .copied()
        .ok_or_else(|| "nothing was timed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(milliseconds: &[u64]) -> Times {
        Times(
            milliseconds
                .iter()
                .copied()
                .map(Duration::from_millis)
                .collect(),
        )
    }

    #[test]
    fn a_spread_is_the_median_between_its_extremes() {
        let spread = Spread {
            median: 3.0,
            min: 1.0,
            max: 9.0,
        };
        assert_eq!(Spread::of([9.0, 1.0, 3.0]).unwrap(), spread);
        assert!(Spread::of([]).is_err());
    }

    #[tokio::test]
    async fn rounds_interleave_and_the_first_one_does_not_count() {
        let order = std::cell::RefCell::new(Vec::new());
        let contender = |name: char| {
            order.borrow_mut().push(name);
            let nth = order
                .borrow()
                .iter()
                .filter(|&&other| other == name)
                .count() as u64;
            Box::pin(async move { Ok(Duration::from_millis(nth)) }) as Measuring
        };
        let [a, b] = interleave([&|| contender('a'), &|| contender('b')])
            .await
            .unwrap();
        assert!(
            order
                .borrow()
                .iter()
                .collect::<String>()
                .starts_with("abbaabba")
        );
        let counted: Vec<u64> = (2..=ROUNDS as u64 + 1).collect();
        assert_eq!(a.0, times(&counted).0);
        assert_eq!(b.0, times(&counted).0);
    }

    #[test]
    fn so_many_rounds_count_as_are_asked_for_and_each_contender_has_its_own() {
        let mut order = Vec::new();
        let times = interleaved(3, 2, |who| {
            order.push(who);
            Ok(Duration::from_millis(order.len() as u64))
        });
        let times: Vec<_> = times.unwrap().into_iter().map(|times| times.0).collect();
        assert_eq!(order, [0, 1, 2, 1, 2, 0, 2, 0, 1]);
        let expected = [[6, 8], [4, 9], [5, 7]].map(|each| self::times(&each).0);
        assert_eq!(times, expected);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // Every round is twice as slow as the rival's, though the rounds differ tenfold.
        let ratio = times(&[20, 200, 60])
            .ratio_to(&times(&[10, 100, 30]))
            .unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.0, 2.0, 2.0));
    }
}
