//! How long a removal in one process takes until another one reads fresh.

use std::time::{Duration, Instant};

use crate::Result;
use crate::node::Node;
use crate::other::{Other, open, wall_nanoseconds};
use crate::rounds::{ROUNDS, Spread, Times};

/// Removals of one contender in one round.
pub const REMOVALS: usize = 100;

/// What removals of one contender came to.
#[derive(Clone, Debug, Default)]
pub struct Removals {
    /// From the call in one process to the end of the first read in the other that finds nothing:
    /// the median of each round.
    pub fresh: Times,
    /// The same, all of them, sorted.
    all: Vec<Duration>,
    /// How long the call itself takes: the median of each round.
    pub call: Times,
}

impl Removals {
    /// The time within which 99 of 100 reads were fresh, and the slowest, in nanoseconds.
    ///
    /// # Errors
    ///
    /// When nothing was measured.
    pub fn p99(&self) -> Result<Spread> {
        // At most one in a hundred lies above it.
        let rank = (self.all.len() * 99).div_ceil(100).saturating_sub(1);
        let (p99, min, max) = (self.all.get(rank), self.all.first(), self.all.last());
        let (Some(p99), Some(min), Some(max)) = (p99, min, max) else {
            return Err("nothing was removed".into());
        };
        let [median, min, max] = [p99, min, max].map(|time| time.as_secs_f64() * 1e9);
        Ok(Spread { median, min, max })
    }
}

/// Removes keys that another process holds in its memory and reads over and over. `names` are those
/// of [`open`]; all of them take turns.
///
/// # Errors
///
/// When a node fails or the other process goes away.
pub async fn measure(url: String, names: &'static [&'static str]) -> Result<Vec<Removals>> {
    // In a task of the runtime, where services do their work.
    tokio::spawn(async move {
        let mut other = Other::start().await?;
        let mut nodes = Vec::new();
        for name in names {
            nodes.push(open(name, &url).await?);
            other.ask(&format!("open {name} {url}")).await?;
        }
        let mut removals = vec![Removals::default(); names.len()];
        for round in 0..=ROUNDS {
            for turn in 0..names.len() {
                let who = (round + turn) % names.len();
                let (mut fresh, mut calls) = (Vec::new(), Vec::new());
                for number in 0..REMOVALS {
                    let key = format!("{}:{round}:{number}", names[who]);
                    let took = remove(&*nodes[who], names[who], &key, &mut other).await?;
                    fresh.push(took.0);
                    calls.push(took.1);
                }
                if round > 0 {
                    removals[who].all.extend(&fresh);
                    removals[who].fresh.push(median(fresh)?);
                    removals[who].call.push(median(calls)?);
                }
            }
        }
        for one in &mut removals {
            one.all.sort();
        }
        Ok(removals)
    })
    .await?
}

/// Removes one key; how long until the other process read fresh, and how long the call took.
async fn remove(
    node: &dyn Node,
    name: &str,
    key: &str,
    other: &mut Other,
) -> Result<(Duration, Duration)> {
    other.ask(&format!("watch {name} {key}")).await?;
    let (wall, began) = (wall_nanoseconds(), Instant::now());
    node.remove(key).await?;
    let call = began.elapsed();
    let seen: u64 = other.answer().await?.parse()?;
    Ok((Duration::from_nanos(seen.saturating_sub(wall)), call))
}

fn median(mut times: Vec<Duration>) -> Result<Duration> {
    times.sort();
    let median = times.get(times.len() / 2).copied();
    median.ok_or_else(|| "nothing was timed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ninety_ninth_of_a_hundred_is_the_last_but_one() {
        let all: Vec<_> = (1..=100).map(Duration::from_nanos).collect();
        let removals = Removals {
            all,
            ..Removals::default()
        };
        let p99 = removals.p99().unwrap();
        assert_eq!((p99.min, p99.median.round(), p99.max), (1.0, 99.0, 100.0));
        assert!(Removals::default().p99().is_err());
    }
}
