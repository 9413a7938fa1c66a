//! A cache with its loader: `get` alone loads, and a batch answers for each key.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use common::{found, ms, polled, secs, soon, turn_until, with_tier};
use larder::{BatchLoader, Cache, Error, ErrorKind, Load, Loaded, Loader, LoadingCache, Read};
use larder_testkit::{Gate, LoadCounter, larder, seeds, settle};

type Answers = Vec<Result<Option<u64>, ErrorKind>>;

fn plain(answers: Vec<Result<Option<Arc<u64>>, Error>>) -> Answers {
    let plain = |value: Option<Arc<u64>>| value.as_deref().copied();
    let answers = answers.into_iter();
    answers
        .map(|answer| answer.map(plain).map_err(|error| error.kind()))
        .collect()
}

/// What stands under a key of the source.
#[derive(Clone, Copy, Debug)]
enum Row {
    Value(u64),
    Absent,
    Unmentioned,
    Broken,
}

/// A source that notes what it is asked for. A key that it does not know is ten times itself.
#[derive(Clone, Default)]
struct Table {
    rows: Arc<Mutex<HashMap<u64, Row>>>,
    asked: Arc<Mutex<Vec<Vec<u64>>>>,
    largest: Option<usize>,
}

impl Table {
    fn with(rows: impl IntoIterator<Item = (u64, Row)>) -> Self {
        let rows = Arc::new(Mutex::new(rows.into_iter().collect()));
        Self {
            rows,
            ..Self::default()
        }
    }

    fn put(&self, key: u64, row: Row) {
        self.rows.lock().unwrap().insert(key, row);
    }

    fn row(&self, key: u64) -> Row {
        let known = self.rows.lock().unwrap().get(&key).copied();
        known.unwrap_or(Row::Value(key * 10))
    }

    fn asked(&self) -> Vec<Vec<u64>> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl BatchLoader<u64, u64> for Table {
    type Answer = Option<u64>;
    type Error = io::Error;

    async fn load_many(&self, keys: Vec<u64>) -> io::Result<Vec<(u64, io::Result<Option<u64>>)>> {
        self.asked.lock().unwrap().push(keys.clone());
        let answers = keys.into_iter().filter_map(|key| match self.row(key) {
            Row::Value(value) => Some((key, Ok(Some(value)))),
            Row::Absent => Some((key, Ok(None))),
            Row::Unmentioned => None,
            Row::Broken => Some((key, Err(io::Error::other(format!("row {key} is broken"))))),
        });
        Ok(answers.collect())
    }

    fn largest_batch(&self) -> usize {
        self.largest.unwrap_or(1_000)
    }
}

#[tokio::test]
async fn get_alone_loads_once_for_all_who_ask() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let (gate, loads) = (Gate::new(), LoadCounter::new());
    let loading = cache.loading_with({
        let (gate, loads) = (gate.clone(), loads.clone());
        move |load: Load<u64, u64>| {
            let (gate, loads) = (gate.clone(), loads.clone());
            async move {
                let _load = loads.begin();
                gate.wait().await;
                Ok::<_, io::Error>(load.key() * 10)
            }
        }
    });
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let loading = loading.clone();
            tokio::spawn(async move { loading.get(&1).await.unwrap().as_deref().copied() })
        })
        .collect();
    gate.arrived(1).await;
    gate.open();
    for caller in callers {
        assert_eq!(soon(caller).await.unwrap(), Some(10));
    }
    assert_eq!(loads.starts(), 1);
    assert_eq!(loading.get(&1).await.unwrap().as_deref(), Some(&10));
    assert_eq!(cache.stats().hits_memory, 1);
}

/// A loader that renews what the source did not change.
struct Versioned(Arc<Mutex<u64>>);

impl Loader<u64, u64> for Versioned {
    type Answer = Loaded<u64>;
    type Error = io::Error;

    async fn load(&self, load: Load<u64, u64>) -> io::Result<Loaded<u64>> {
        let version = *self.0.lock().unwrap();
        let known = load.stale().and_then(|stale| stale.etag());
        if known == Some(version.to_string().as_str()) {
            return Ok(Loaded::not_modified());
        }
        Ok(Loaded::value(version).etag(version.to_string()))
    }
}

#[tokio::test]
async fn a_loader_is_shown_the_stale_value() {
    let (larder, clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").ttl("1m").grace("1h").build().unwrap();
    let version = Arc::new(Mutex::new(7));
    let loading = cache.loading(Versioned(version.clone()));
    assert_eq!(loading.get(&1).await.unwrap().as_deref(), Some(&7));
    clock.advance(secs(61));
    assert_eq!(loading.get(&1).await.unwrap().as_deref(), Some(&7));
    settle(&larder).await;
    let read = Read::new().max_stale(ms(0));
    let renewed = loading.with(read).get_explained(&1).await.unwrap();
    assert_eq!(renewed.value.as_deref(), Some(&7));
    assert_eq!(renewed.outcome.source, larder::Source::Memory);
    *version.lock().unwrap() = 8;
    clock.advance(secs(61));
    let newer = loading.with(read).get(&1).await.unwrap();
    assert_eq!(newer.as_deref(), Some(&8));
}

#[tokio::test]
async fn the_error_of_one_key_is_no_others_and_leaves_no_lease() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Cache<u64, u64> = larder.cache("c").negative_ttl("1m").build().unwrap();
    let table = Table::with([(2, Row::Broken), (3, Row::Absent), (4, Row::Unmentioned)]);
    let loading = cache.loading_in_batches(table.clone());
    let answers = loading.get_many(&[1, 2, 3, 4, 5]).await;
    let error = answers[1].clone().unwrap_err();
    assert_eq!(
        error.loader::<io::Error>().unwrap().to_string(),
        "row 2 is broken"
    );
    let expected: Answers = vec![
        Ok(Some(10)),
        Err(ErrorKind::Load),
        Ok(None),
        Ok(None),
        Ok(Some(50)),
    ];
    assert_eq!(plain(answers), expected);
    settle(&larder).await;
    assert_eq!(table.asked(), [[1, 2, 3, 4, 5]]);
    let stats = cache.stats();
    let counted = (stats.loads, stats.load_errors, stats.misses, stats.failed);
    assert_eq!(counted, (5, 1, 4, 1));
    assert_eq!(tier.store().len(), 4, "no lease is left");

    table.put(2, Row::Value(22));
    let answers = soon(loading.get_many(&[1, 2, 3, 4, 5])).await;
    assert_eq!(plain(answers)[1], Ok(Some(22)), "no error is cached");
    assert_eq!(table.asked(), [[2]]);
    assert_eq!(loading.get(&6).await.unwrap().as_deref(), Some(&60));
    assert_eq!(table.asked(), [[6]], "one key is a batch of one");
}

#[tokio::test]
async fn a_stale_value_stands_in_for_the_one_key_that_failed() {
    let (larder, clock) = larder("t");
    let cache: Cache<u64, u64> = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("1h")
        .build()
        .unwrap();
    let table = Table::default();
    let loading = cache.loading_in_batches(table.clone());
    loading.get_many(&[1, 2]).await;
    table.put(1, Row::Broken);
    table.put(2, Row::Value(22));
    clock.advance(secs(61));
    let answers = plain(loading.get_many(&[1, 2]).await);
    assert_eq!(answers, [Ok(Some(10)), Ok(Some(22))]);
    assert_eq!(cache.stats().stood_in, 1);
}

#[tokio::test]
async fn a_key_that_cannot_be_encoded_fails_alone() {
    let (larder, _clock) = larder("t");
    let cache: Cache<String, usize> = larder.cache("c").build().unwrap();
    let loading = cache.loading_with(|load| async move { Ok::<_, io::Error>(load.key().len()) });
    let keys = ["tea".to_owned(), String::new(), "coffee".to_owned()];
    let answers = loading.get_many(&keys).await;
    assert_eq!(answers[0].as_ref().unwrap().as_deref(), Some(&3));
    assert_eq!(answers[1].as_ref().unwrap_err().kind(), ErrorKind::Key);
    assert_eq!(answers[2].as_ref().unwrap().as_deref(), Some(&6));
}

#[tokio::test]
async fn a_batch_names_no_more_keys_than_it_may_and_fails_by_itself() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let table = Table {
        largest: Some(2),
        ..Table::default()
    };
    let loading = cache.loading_in_batches(table.clone());
    let answers = plain(loading.get_many(&[1, 2, 3, 4, 5]).await);
    let expected = (1..=5).map(|key| Ok(Some(key * 10)));
    assert_eq!(answers, expected.collect::<Answers>());
    assert_eq!(table.asked(), [vec![1, 2], vec![3, 4], vec![5]]);

    /// Fails for every batch with an odd key in front.
    struct Odd;
    impl BatchLoader<u64, u64> for Odd {
        type Answer = u64;
        type Error = io::Error;
        async fn load_many(&self, keys: Vec<u64>) -> io::Result<Vec<(u64, io::Result<u64>)>> {
            match keys[0] % 2 {
                0 => Ok(keys.into_iter().map(|key| (key, Ok(key))).collect()),
                _ => Err(io::Error::other("odd")),
            }
        }
        fn largest_batch(&self) -> usize {
            2
        }
    }
    let loading = cache.loading_in_batches(Odd);
    let answers = plain(loading.get_many(&[20, 21, 31, 32, 40]).await);
    let no = Err(ErrorKind::Load);
    assert_eq!(answers, [Ok(Some(20)), Ok(Some(21)), no, no, Ok(Some(40))]);
}

#[tokio::test]
async fn single_loads_of_many_keys_run_abreast_within_a_bound_and_a_panic_is_one_keys_own() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let (gate, loads) = (Gate::new(), LoadCounter::new());
    let loading = cache.loading_with({
        let (gate, loads) = (gate.clone(), loads.clone());
        move |load: Load<u64, u64>| {
            let (gate, loads) = (gate.clone(), loads.clone());
            async move {
                let _load = loads.begin();
                gate.wait().await;
                match load.key() % 10 {
                    7 => panic!("no {}", load.key()),
                    8 => Err(io::Error::other("no route")),
                    _ => Ok(load.key() * 10),
                }
            }
        }
    });
    let keys: Vec<u64> = (0..40).collect();
    let many = tokio::spawn({
        let (loading, keys) = (loading.clone(), keys.clone());
        async move { loading.get_many(&keys).await }
    });
    gate.arrived(16).await;
    gate.open();
    let answers = plain(soon(many).await.unwrap());
    let expected = keys.iter().map(|key| match key % 10 {
        7 => Err(ErrorKind::LoadPanicked),
        8 => Err(ErrorKind::Load),
        _ => Ok(Some(key * 10)),
    });
    assert_eq!(answers, expected.collect::<Answers>());
    assert_eq!((loads.starts(), loads.max_concurrency()), (40, 16));
}

#[tokio::test]
async fn loads_that_run_abreast_end_with_the_deadline_of_the_load() {
    let (larder, clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").load_deadline("5s").build().unwrap();
    let loads = LoadCounter::new();
    let loading = cache.loading_with({
        let loads = loads.clone();
        move |_| {
            let load = loads.begin();
            async move {
                let _load = load;
                std::future::pending::<io::Result<u64>>().await
            }
        }
    });
    let many = tokio::spawn(async move { loading.get_many(&[1, 2, 3]).await });
    loads.started(3).await;
    let answers = plain(turn_until(&clock, secs(1), many).await);
    assert_eq!(answers, vec![Err(ErrorKind::LoadTimeout); 3]);
    soon(loads.finished(3)).await;
}

#[tokio::test]
async fn each_of_the_loads_that_run_abreast_inherits_from_what_it_read_itself() {
    let (larder, _clock) = larder("t");
    let sources: Cache<u64, u64> = larder.cache("source").build().unwrap();
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let loading = cache.loading_with({
        let sources = sources.clone();
        move |load: Load<u64, u64>| {
            let sources = sources.clone();
            async move {
                let source = sources.get_or_load(load.key(), |_| found(1_u64)).await;
                source.map(|source| *source + load.key())
            }
        }
    });
    assert_eq!(
        plain(loading.get_many(&[1, 2]).await),
        [Ok(Some(2)), Ok(Some(3))]
    );
    let _ = sources.invalidate(&1).await.unwrap();
    assert_eq!(cache.get_in_memory(&1), None);
    assert_eq!(cache.get_in_memory(&2).as_deref(), Some(&3));
}

#[tokio::test]
async fn a_load_that_asks_for_another_key_of_the_same_call_gets_it() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let bound: Arc<OnceLock<LoadingCache<u64, u64>>> = Arc::default();
    let loading = cache.loading_with({
        let bound = Arc::clone(&bound);
        move |load: Load<u64, u64>| {
            let bound = Arc::clone(&bound);
            async move {
                match load.key() {
                    1 => Ok(1),
                    key => {
                        let before = bound.get().unwrap().get(&(key - 1)).await?;
                        Ok::<_, Error>(*before.unwrap() + 1)
                    }
                }
            }
        }
    });
    bound.set(loading.clone()).unwrap();
    let answers = plain(soon(loading.get_many(&[1, 2, 4, 3])).await);
    assert_eq!(answers, [1, 2, 4, 3].map(|key| Ok(Some(key))));
}

/// A loader that counts, and holds the load of key 1 at a gate.
fn first_held(cache: &Cache<u64, u64>) -> (LoadingCache<u64, u64>, Gate, LoadCounter) {
    let (gate, loads) = (Gate::new(), LoadCounter::new());
    let loading = cache.loading_with({
        let (gate, loads) = (gate.clone(), loads.clone());
        move |load: Load<u64, u64>| {
            let (gate, loads) = (gate.clone(), loads.clone());
            async move {
                let _load = loads.begin();
                if *load.key() == 1 {
                    gate.wait().await;
                }
                Ok::<_, io::Error>(load.key() * 10)
            }
        }
    });
    (loading, gate, loads)
}

#[tokio::test]
async fn single_loads_of_many_keys_keep_to_the_concurrency_and_the_queue_of_the_cache() {
    for queue in [0, 2, 10_000] {
        let (larder, _clock) = larder("t");
        let cache = larder.cache("c").load_concurrency(2).load_queue(queue);
        let cache: Cache<u64, u64> = cache.build().unwrap();
        let (loading, gate, loads) = first_held(&cache);
        let keys: Vec<u64> = (1..=20).collect();
        let many = tokio::spawn({
            let (loading, keys) = (loading.clone(), keys.clone());
            async move { loading.get_many(&keys).await }
        });
        soon(loads.finished(19)).await;
        gate.open();
        let answers = plain(soon(many).await.unwrap());
        let expected = keys.iter().map(|key| Ok(Some(key * 10)));
        assert_eq!(answers, expected.collect::<Answers>(), "a queue of {queue}");
        assert!(loads.max_concurrency() <= 2);
    }
}

#[tokio::test]
async fn a_key_whose_load_hangs_fails_alone() {
    let (larder, clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").load_deadline("5s").build().unwrap();
    let (loading, _gate, loads) = first_held(&cache);
    let many = tokio::spawn(async move { loading.get_many(&[1, 2, 3]).await });
    soon(loads.finished(2)).await;
    let answers = plain(turn_until(&clock, secs(1), many).await);
    let expected = [Err(ErrorKind::LoadTimeout), Ok(Some(20)), Ok(Some(30))];
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn the_patience_of_a_caller_is_for_all_keys_together() {
    let (larder, clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let loads = LoadCounter::new();
    let loading = cache.loading_with({
        let loads = loads.clone();
        move |_| {
            let load = loads.begin();
            async move {
                let _load = load;
                std::future::pending::<io::Result<u64>>().await
            }
        }
    });
    let many = tokio::spawn(async move {
        let keys: Vec<u64> = (0..100).collect();
        let read = Read::new().deadline(secs(1));
        loading.with(read).get_many(&keys).await
    });
    loads.started(16).await;
    clock.advance(secs(1));
    let answers = plain(soon(many).await.unwrap());
    assert_eq!(answers, vec![Err(ErrorKind::LoadTimeout); 100]);
}

/// Answers twice for each key.
struct Twice;

impl BatchLoader<u64, u64> for Twice {
    type Answer = u64;
    type Error = io::Error;
    async fn load_many(&self, keys: Vec<u64>) -> io::Result<Vec<(u64, io::Result<u64>)>> {
        let twice = keys.into_iter().flat_map(|key| [(key, 1), (key, 2)]);
        Ok(twice.map(|(key, value)| (key, Ok(value))).collect())
    }
}

#[tokio::test]
async fn of_a_key_that_a_batch_answers_twice_the_last_answer_counts() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let loading = cache.loading_in_batches(Twice);
    assert_eq!(loading.get(&1).await.unwrap().as_deref(), Some(&2));
    assert_eq!(plain(loading.get_many(&[2]).await), [Ok(Some(2))]);
}

#[tokio::test]
async fn a_caller_who_waits_no_longer_gets_what_there_is_for_each_key() {
    let (larder, clock) = larder("t");
    let cache: Cache<u64, u64> = larder
        .cache("c")
        .ttl("1m")
        .stale_on_error("1h")
        .build()
        .unwrap();
    let _ = cache.set(1, 1).await.unwrap();
    clock.advance(secs(61));
    let _ = cache.set(2, 2).await.unwrap();
    let loading = cache.loading_with(|_| std::future::pending::<io::Result<u64>>());
    let many = tokio::spawn(async move {
        let read = Read::new().deadline(secs(1));
        loading.with(read).get_many(&[1, 2, 3]).await
    });
    let answers = plain(turn_until(&clock, ms(100), many).await);
    assert_eq!(
        answers,
        [Ok(Some(1)), Ok(Some(2)), Err(ErrorKind::LoadTimeout)]
    );
}

#[tokio::test]
async fn a_larder_that_was_shut_down_fails_each_key_that_memory_does_not_have() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let loading = cache.loading_in_batches(Table::default());
    loading.get_many(&[1]).await;
    let _ = larder.shutdown(secs(1)).await;
    let answers = plain(loading.get_many(&[1, 2]).await);
    assert_eq!(answers, [Ok(Some(10)), Err(ErrorKind::Closed)]);
}

#[tokio::test]
async fn batches_of_many_callers_load_each_key_once_and_answer_as_the_source_does() {
    const KEYS: u64 = 10_000;
    for seed in seeds(2) {
        let mut rng = seed.rng();
        let (larder, _clock) = larder("t");
        let cache: Cache<u64, u64> = larder.cache("c").negative_ttl("1h").build().unwrap();
        let rows = (0..KEYS).map(|key| {
            let row = match rng.u8(..10) {
                0 => Row::Absent,
                1 => Row::Unmentioned,
                2 => Row::Broken,
                _ => Row::Value(rng.u64(..)),
            };
            (key, row)
        });
        let table = Table::with(rows.collect::<Vec<_>>());
        let loading: LoadingCache<u64, u64> = cache.loading_in_batches(table.clone());
        let callers: Vec<_> = (0..40)
            .map(|_| {
                let keys: Vec<u64> = (0..1_000).map(|_| rng.u64(..KEYS)).collect();
                let (loading, table) = (loading.clone(), table.clone());
                tokio::spawn(async move {
                    let answers = plain(loading.get_many(&keys).await);
                    for (key, answer) in keys.iter().zip(answers) {
                        let expected = match table.row(*key) {
                            Row::Value(value) => Ok(Some(value)),
                            Row::Absent | Row::Unmentioned => Ok(None),
                            Row::Broken => Err(ErrorKind::Load),
                        };
                        assert_eq!(answer, expected, "key {key}");
                    }
                })
            })
            .collect();
        for caller in callers {
            soon(caller).await.unwrap();
        }
        let asked: Vec<u64> = table.asked().concat();
        let good = |key: &&u64| !matches!(table.row(**key), Row::Broken);
        let (loaded, once): (Vec<_>, HashSet<_>) = (
            asked.iter().filter(good).collect(),
            asked.iter().filter(good).collect(),
        );
        assert_eq!(loaded.len(), once.len(), "no key is loaded twice");
        settle(&larder).await;
    }
}

#[tokio::test]
async fn a_batch_that_is_dropped_passes_its_keys_on() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let gate = tier.pause_before(larder_testkit::Operation::Lease);
    let table = Table::default();
    let loading = cache.loading_in_batches(table.clone());
    let mut first = Box::pin(loading.get_many(&[1, 2]));
    assert!(polled(1, &mut first).await.is_none());
    let mut second = Box::pin(loading.get_many(&[2, 3]));
    assert!(polled(1, &mut second).await.is_none());
    drop(first);
    gate.open();
    assert_eq!(plain(soon(second).await), [Ok(Some(20)), Ok(Some(30))]);
    let asked: HashSet<u64> = table.asked().concat().into_iter().collect();
    assert_eq!(asked, HashSet::from([2, 3]));
}
