use std::collections::{BTreeSet, HashMap};

use crate::request::{Ratio, Request};

/// What the best of all policies would have made of these requests with room for so many entries: the
/// one that knows the future and lets go what is needed last (L. A. Belady, "A study of replacement
/// algorithms for a virtual-storage computer", IBM Systems Journal 1966). Sizes do not count.
///
/// Takes memory in proportion to the requests.
pub fn optimal(requests: &[Request], entries: usize) -> Ratio {
    let next = next_uses(requests);
    // By the next use, so that the last one is the victim.
    let mut held = BTreeSet::new();
    let mut due: HashMap<u64, usize> = HashMap::new();
    let mut hits = 0;
    for (request, next) in requests.iter().zip(next) {
        if let Some(due) = due.remove(&request.key) {
            held.remove(&(due, request.key));
            hits += 1;
        } else if held.len() == entries
            && let Some((_, victim)) = held.pop_last()
        {
            due.remove(&victim);
        }
        if held.len() < entries {
            held.insert((next, request.key));
            due.insert(request.key, next);
        }
    }
    Ratio {
        hits,
        requests: requests.len() as u64,
    }
}

/// For each request the place of the next one for its key, `usize::MAX` if there is none.
fn next_uses(requests: &[Request]) -> Vec<usize> {
    let mut next = vec![usize::MAX; requests.len()];
    let mut seen = HashMap::new();
    for (at, request) in requests.iter().enumerate().rev() {
        if let Some(later) = seen.insert(request.key, at) {
            next[at] = later;
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requests(keys: &[u64]) -> Vec<Request> {
        let request = |&key| Request { key, bytes: 0 };
        keys.iter().map(request).collect()
    }

    /// The most hits that any choice of victims leads to, by trying all of them.
    fn best(keys: &[u64], held: &[u64], entries: usize) -> u64 {
        let Some((key, rest)) = keys.split_first() else {
            return 0;
        };
        if held.contains(key) {
            return 1 + best(rest, held, entries);
        }
        let with = |mut held: Vec<u64>| {
            held.push(*key);
            best(rest, &held, entries)
        };
        if held.len() < entries {
            return with(held.to_vec());
        }
        let without = |victim: usize| {
            let mut left = held.to_vec();
            left.remove(victim);
            with(left)
        };
        (0..held.len())
            .map(without)
            .max()
            .unwrap_or_else(|| best(rest, held, entries))
    }

    proptest! {
        #[test]
        fn no_choice_of_victims_does_better(
            keys in prop::collection::vec(0u64..5, 0..10),
            entries in 0usize..4,
        ) {
            let ratio = optimal(&requests(&keys), entries);
            prop_assert_eq!(ratio.hits, best(&keys, &[], entries));
        }
    }
}
