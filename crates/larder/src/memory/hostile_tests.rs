//! Keys whose code misbehaves, and keys that were chosen to do harm.

use std::cell::Cell;
use std::hash::Hasher;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::tests::FOREVER;
use super::*;

thread_local! {
    /// How many calls of a key's code are left until one panics. Negative: none does.
    static FUSE: Cell<i64> = const { Cell::new(-1) };
    static COMPARISONS: Cell<u64> = const { Cell::new(0) };
}

fn burn() {
    let left = FUSE.get();
    FUSE.set((left - 1).max(-1));
    assert!(left != 0, "as keys do");
}

/// A key whose hash and comparison panic when the fuse has burnt down.
#[derive(Debug)]
struct Fused(u64);

impl PartialEq for Fused {
    fn eq(&self, other: &Self) -> bool {
        burn();
        self.0 == other.0
    }
}

impl Eq for Fused {}

impl Hash for Fused {
    fn hash<H: Hasher>(&self, state: &mut H) {
        burn();
        // Few hashes, so that there is something to compare.
        (self.0 % 3).hash(state);
    }
}

type Table = Memory<Fused, Arc<u64>>;
type Step = Box<dyn Fn(&Table)>;

/// A history that meets every operation: the number of the key goes into its values, times ten.
fn history() -> Vec<Step> {
    let put = |key: u64, dies_at| -> Step {
        Box::new(move |table| {
            let place = Placement { weight: 0, dies_at };
            table.put(Fused(key), Arc::new(key * 10), place, 20);
        })
    };
    let look = |key| -> Step { Box::new(move |table| _ = table.look(&Fused(key), 20)) };
    let mut steps: Vec<Step> = Vec::new();
    for key in 0..6 {
        steps.push(put(key, 30 + key));
        steps.push(look(key / 2));
    }
    steps.push(Box::new(|table| {
        let key = Fused(2);
        table.update(table.hash(&key), &key, 20, |value, _| *value = Arc::new(20));
    }));
    steps.push(put(7, Millis::MAX));
    steps.push(put(1, Millis::MAX));
    steps.push(Box::new(|table| {
        let key = Fused(4);
        table.remove(table.hash(&key), &key);
    }));
    steps.push(Box::new(|table| _ = table.sweep(33, 10)));
    steps.push(Box::new(|table| {
        let place = Placement {
            weight: 0,
            dies_at: Millis::MAX,
        };
        // At a time when some have died, so that a full table sweeps first.
        for key in [8, 9, 10, 11, 1] {
            table.put(Fused(key), Arc::new(key * 10), place, 40);
        }
    }));
    steps.push(Box::new(|table| table.resize(2, 40)));
    steps.push(look(1));
    steps
}

/// Plays the history to a table, with a panic in call number `fuse`. Whether there was one.
fn play(policy: Policy, fuse: i64) -> bool {
    let table = Table::with_shards(Bound::Entries(5), policy, 1);
    let mut panics = 0;
    FUSE.set(fuse);
    for step in history() {
        panics += usize::from(catch_unwind(AssertUnwindSafe(|| step(&table))).is_err());
        let burning = FUSE.replace(-1);
        table.check();
        table.for_each(|key, value| {
            assert_eq!((**value, Arc::strong_count(value)), (key.0 * 10, 1));
        });
        FUSE.set(burning);
    }
    FUSE.set(-1);
    assert!(panics <= 1);
    for key in 0..20 {
        // What was there before can be replaced and removed, and nothing is there twice.
        table.put(Fused(key), Arc::new(key * 10), FOREVER, 40);
        table.remove(table.hash(&Fused(key)), &Fused(key));
        assert_eq!(table.look(&Fused(key), 40), None);
    }
    table.check();
    assert_eq!(table.len(), 0, "every key was found and removed");
    panics == 1
}

#[test]
fn a_key_that_panics_at_any_call_leaves_the_table_whole() {
    for policy in [
        Policy::Adaptive,
        Policy::Lru,
        Policy::Lfu,
        Policy::Fifo,
        Policy::Random,
        Policy::NoEviction,
    ] {
        let calls = (0..).take_while(|fuse| play(policy, *fuse)).count();
        assert!(calls > 30, "{policy:?}: {calls} calls");
    }
}

/// A key of which all have one hash.
#[derive(Debug, Clone, Copy)]
struct Same(u64);

impl PartialEq for Same {
    fn eq(&self, other: &Self) -> bool {
        COMPARISONS.set(COMPARISONS.get() + 1);
        self.0 == other.0
    }
}

impl Eq for Same {}

impl Hash for Same {
    fn hash<H: Hasher>(&self, state: &mut H) {
        0_u64.hash(state);
    }
}

/// All of them fall to one shard, which keeps its part of the bound; and no operation compares a
/// key with more than all that are there.
#[test]
fn keys_that_all_have_one_hash_are_kept_apart_at_a_cost_that_is_linear() {
    let table = Memory::<Same, u64>::with_shards(Bound::Entries(8_000), Policy::Adaptive, 8);
    let compared = |work: &dyn Fn()| {
        let before = COMPARISONS.get();
        work();
        COMPARISONS.get() - before
    };
    for key in 0..3_000 {
        let most = table.len();
        let put = compared(&|| {
            assert_eq!(table.put(Same(key), key, FOREVER, 0), Inserted::Stored);
        });
        assert!(put <= most, "{put} of {most}");
        let looked = compared(&|| assert_eq!(table.look(&Same(key), 0), Some(key)));
        assert!(looked <= most + 1);
    }
    assert_eq!(table.len(), 1_000, "the part of one shard");
    table.check();
    for key in 0..3_000 {
        let hash = table.hash(&Same(key));
        let held = table.look(&Same(key), 0);
        assert!(held.is_none_or(|value| value == key));
        assert_eq!(table.remove(hash, &Same(key)), held);
    }
    assert_eq!(table.len(), 0);
    table.check();
}

/// FNV-1a, as many caches use it: whoever knows it can choose keys.
fn fnv(key: u64) -> u64 {
    key.to_le_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

/// Keys that would all fall to one shard if this table hashed as somebody thinks it does, as does
/// any other table, spread over all of them.
#[test]
fn keys_chosen_to_collide_elsewhere_spread_here() {
    const SHARDS: u64 = 32;
    const KEYS: usize = 1_000;
    let made = || Memory::<u64, ()>::with_shards(Bound::Entries(32_000), Policy::Adaptive, 32);
    let (other, fixed) = (made(), foldhash::quality::FixedState::default());
    let known: [(&str, &dyn Fn(u64) -> u64); 4] = [
        ("FNV-1a", &fnv),
        ("SipHash without a key", &|key| {
            let mut sip = std::hash::DefaultHasher::new();
            key.hash(&mut sip);
            sip.finish()
        }),
        ("foldhash with a fixed seed", &|key| fixed.hash_one(key)),
        ("another table", &|key| other.hash(&key)),
    ];
    for (name, hash) in known {
        let table = made();
        let shard_of = |hash: u64| hash >> 32 & (SHARDS - 1);
        let chosen = (0..).filter(|key| shard_of(hash(*key)) == 7).take(KEYS);
        for key in chosen {
            table.put(key, (), FOREVER, 0);
        }
        let lens: Vec<_> = table
            .shards
            .iter()
            .map(|shard| sync::read(&shard.0).len())
            .collect();
        // 31 on average; this is 8 standard deviations more.
        assert!(lens.iter().all(|len| *len < 76), "{name}: {lens:?}");
        assert_eq!(table.len(), KEYS as u64);
    }
}
