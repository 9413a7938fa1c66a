//! What is usually asked next: a first-order Markov model in constant memory.
//!
//! For each of so many keys it keeps up to four successors with counts. A key that finds no room
//! counts down the weakest of four that could make room, and takes its place at zero, as in
//! HeavyKeeper (see the sketch) but without a draw; so a scan over keys that never come again wears
//! down what is known, and does not wipe it out. A count that reaches its limit halves its row: the
//! newer half of what was seen weighs more.

/// Ways of each set, and successors of each key.
const WAYS: usize = 4;
/// A row whose total reaches this is halved.
const OLD: u16 = 64;

/// One part of the model.
pub(super) struct Successors<K> {
    /// Sets of [`WAYS`] rows.
    sets: Vec<[Row<K>; WAYS]>,
}

struct Row<K> {
    /// The hash of the key in front; zero if the row is free.
    of: u64,
    /// How often something followed.
    total: u16,
    next: [Option<Next<K>>; WAYS],
}

struct Next<K> {
    hash: u64,
    key: K,
    count: u16,
}

impl<K> Row<K> {
    fn free() -> Self {
        Self {
            of: 0,
            total: 0,
            next: [const { None }; WAYS],
        }
    }
}

impl<K> Successors<K> {
    /// A model of so many keys, rounded up to a multiple of four.
    pub(super) fn new(keys: usize) -> Self {
        let set = || std::array::from_fn(|_| Row::free());
        Self {
            sets: (0..keys.div_ceil(WAYS)).map(|_| set()).collect(),
        }
    }

    fn row(&mut self, of: u64) -> Option<&mut Row<K>> {
        let sets = self.sets.len();
        let at = (of >> 21) as usize;
        let set = self.sets.get_mut(at.checked_rem(sets)?)?;
        set.iter_mut().find(|row| row.of == of)
    }

    /// Learns that `hash` was asked for behind `of`. The key is asked for only if it is kept.
    pub(super) fn learn(&mut self, of: u64, hash: u64, key: impl FnOnce() -> K) {
        if let Some(row) = self.row(of) {
            row.learn(hash, key);
            return;
        }
        let sets = self.sets.len();
        let Some(at) = ((of >> 21) as usize).checked_rem(sets) else {
            return;
        };
        if let Some(weakest) = self.sets[at].iter_mut().min_by_key(|row| row.total) {
            if weakest.total > 1 {
                weakest.total -= 1;
                return;
            }
            *weakest = Row { of, ..Row::free() };
            weakest.learn(hash, key);
        }
    }

    /// What followed `of` in at least this share of all cases, if it was seen so often.
    pub(super) fn predict(
        &mut self,
        of: u64,
        confidence: f64,
        support: u16,
    ) -> impl Iterator<Item = (u64, &K)> {
        let row = self.row(of).filter(|row| row.total >= support);
        let (total, next) = row.map_or((0, &[][..]), |row| (row.total, &row.next[..]));
        let needed = (f64::from(total) * confidence).max(1.0);
        let likely = move |next: &&Next<K>| f64::from(next.count) >= needed;
        let next = next.iter().flatten().filter(likely);
        next.map(|next| (next.hash, &next.key))
    }
}

impl<K> Row<K> {
    fn learn(&mut self, hash: u64, key: impl FnOnce() -> K) {
        self.total += 1;
        let mut known = self.next.iter_mut().flatten();
        if let Some(next) = known.find(|next| next.hash == hash) {
            next.count += 1;
        } else if let Some(free) = self.next.iter_mut().find(|next| next.is_none()) {
            let key = key();
            *free = Some(Next {
                hash,
                key,
                count: 1,
            });
        } else {
            let weakest = self.next.iter_mut().flatten().min_by_key(|next| next.count);
            if let Some(weakest) = weakest {
                weakest.count -= 1;
                if weakest.count == 0 {
                    let key = key();
                    *weakest = Next {
                        hash,
                        key,
                        count: 1,
                    };
                }
            }
        }
        if self.total >= OLD {
            self.halve();
        }
    }

    fn halve(&mut self) {
        self.total /= 2;
        for next in &mut self.next {
            if let Some(known) = next {
                known.count /= 2;
                if known.count == 0 {
                    *next = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predicted(model: &mut Successors<u64>, of: u64, confidence: f64) -> Vec<u64> {
        let likely = model.predict(of, confidence, 2);
        likely.map(|(_, key)| *key).collect()
    }

    #[test]
    fn what_follows_often_enough_is_predicted() {
        let mut model = Successors::new(16);
        for next in [2, 2, 3, 2] {
            model.learn(1, next, || next);
        }
        assert_eq!(predicted(&mut model, 1, 0.5), [2]);
        assert_eq!(predicted(&mut model, 1, 0.25), [2, 3]);
        assert!(predicted(&mut model, 1, 0.8).is_empty());
        model.learn(4, 5, || 5);
        assert!(predicted(&mut model, 4, 0.5).is_empty(), "once is chance");
        assert!(predicted(&mut model, 9, 0.5).is_empty());
    }

    #[test]
    fn a_habit_that_changed_is_learned_anew() {
        let mut model = Successors::new(16);
        (0..1_000).for_each(|_| model.learn(1, 2, || 2));
        (0..60).for_each(|_| model.learn(1, 3, || 3));
        assert_eq!(predicted(&mut model, 1, 0.5), [3]);
    }

    #[test]
    fn a_scan_wears_down_what_is_known_and_takes_no_more_room() {
        let mut model = Successors::new(4);
        (0..20).for_each(|_| model.learn(1, 2, || 2));
        let others = |n: u64| 1_000 + n;
        for n in 0..50 {
            model.learn(others(n), others(n + 1), || others(n + 1));
        }
        assert_eq!(predicted(&mut model, 1, 0.5), [2]);
        assert_eq!(model.sets.len(), 1);
        let mut nothing = Successors::new(0);
        nothing.learn(1, 2, || 2);
        assert!(predicted(&mut nothing, 1, 0.0).is_empty());
    }

    #[test]
    fn counts_stay_within_their_bounds_whatever_is_learned() {
        larder_testkit::seeded(20, |rng, _| {
            let mut model = Successors::new(64);
            for _ in 0..10_000 {
                let (of, next) = (rng.u64(1..200), rng.u64(1..20));
                model.learn(of << 21 | of, next, || next);
            }
            for row in model.sets.iter().flatten() {
                assert!(row.total < OLD);
                let counts = row.next.iter().flatten().map(|next| next.count);
                assert!(counts.clone().all(|count| count > 0 && count < OLD));
                let mut hashes: Vec<u64> =
                    row.next.iter().flatten().map(|next| next.hash).collect();
                hashes.sort_unstable();
                assert!(hashes.windows(2).all(|pair| pair[0] != pair[1]));
            }
        });
    }
}
