//! Filling a cache before its readers come, and the hot keys of the last shutdown.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Poll;

use common::{another_process, secs, soon, until, with_tier};
use larder::{
    BatchLoader, Cache, Error, ErrorKind, Feed, Load, Loaded, LoadingCache, Policy, RefreshAhead,
};
use larder_testkit::{Gate, LoadCounter, larder, seeds, settle};
use tokio::sync::mpsc;

/// A loader of ten times the key that stops at a gate, and fails for multiples of seven.
fn gated(cache: &Cache<u64, u64>) -> (LoadingCache<u64, u64>, Gate, LoadCounter) {
    let (gate, loads) = (Gate::new(), LoadCounter::new());
    let loading = cache.loading_with({
        let (gate, loads) = (gate.clone(), loads.clone());
        move |load: Load<u64, u64>| {
            let (gate, loads) = (gate.clone(), loads.clone());
            async move {
                let _load = loads.begin();
                gate.wait().await;
                match load.key() % 7 {
                    0 => Err(io::Error::other("a seventh")),
                    _ => Ok(load.key() * 10),
                }
            }
        }
    });
    (loading, gate, loads)
}

#[tokio::test]
async fn keys_are_loaded_so_many_at_once_and_what_is_fresh_is_left_alone() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let _ = cache.set(5, 55).await.unwrap();
    let (loading, gate, loads) = gated(&cache);
    let told = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&told);
    let warming = loading
        .warm(Feed::list(1..=100))
        .concurrency(4)
        .watched(move |progress| {
            note.lock().unwrap().push((progress.done, progress.failed));
            assert!(
                progress.done < 50,
                "whoever watches and panics is as good as nobody"
            );
        })
        .start();
    gate.arrived(4).await;
    assert_eq!(warming.progress().total, Some(100));
    gate.open();
    let done = soon(warming.done()).await;
    assert_eq!((done.done, done.total, done.failed), (100, Some(100), 14));
    assert_eq!(done.share(), Some(0.86));
    assert_eq!((loads.starts(), loads.max_concurrency()), (99, 4));
    let told = told.lock().unwrap();
    assert_eq!((told.len(), told.last()), (100, Some(&(100, 14))));
    assert!(told.is_sorted());
    assert_eq!(cache.stats().reads(), 0, "nobody has read");
    assert_eq!(cache.get_in_memory(&5).as_deref(), Some(&55));
    assert_eq!(cache.get_in_memory(&99).as_deref(), Some(&990));
    assert_eq!(cache.get_in_memory(&98), None);
}

#[tokio::test]
async fn a_service_holds_traffic_until_enough_is_warm() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let gate = Gate::new();
    let loading = cache.loading_with({
        let gate = gate.clone();
        move |load: Load<u64, u64>| {
            let gate = gate.clone();
            async move {
                if *load.key() > 6 {
                    gate.wait().await;
                }
                Ok::<_, io::Error>(*load.key())
            }
        }
    });
    let warming = loading.warm(Feed::list(1..=10)).concurrency(1).start();
    let ready = soon(warming.ready(0.6)).await;
    assert_eq!((ready.done, ready.share()), (6, Some(0.6)));
    let mut not_yet = Box::pin(warming.ready(0.61));
    assert!(common::polled(50, &mut not_yet).await.is_none());
    gate.open();
    assert!(soon(not_yet).await.share() > Some(0.6));
    assert_eq!(soon(warming.ready(1.0)).await.done, 10);
    let nothing = loading.warm(Feed::list(Vec::new())).start();
    assert_eq!(soon(nothing.ready(1.0)).await.share(), Some(1.0));
}

#[tokio::test]
async fn a_share_that_cannot_be_reached_is_not_waited_for_beyond_the_end() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let (loading, gate, _loads) = gated(&cache);
    gate.open();
    let warming = loading.warm(Feed::list([7, 14, 15])).start();
    let ended = soon(warming.ready(0.5)).await;
    assert_eq!((ended.done, ended.failed), (3, 2));
}

#[tokio::test]
async fn a_warming_that_is_dropped_begins_no_more() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let (loading, gate, loads) = gated(&cache);
    let warming = loading.warm(Feed::list(1..=100)).concurrency(2).start();
    gate.arrived(2).await;
    drop(warming);
    gate.open();
    settle(&larder).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(loads.starts(), 2);
    assert_eq!(
        cache.get_in_memory(&1).as_deref(),
        Some(&10),
        "what was begun is kept"
    );
}

#[tokio::test]
async fn what_the_shared_tier_has_is_fetched_and_not_loaded() {
    let (larder, clock, tier) = with_tier("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let other: Cache<u64, u64> = another_process("t", &clock, &tier)
        .cache("c")
        .build()
        .unwrap();
    for key in 1..=10 {
        let _ = other.set(key, key * 100).await.unwrap();
    }
    let (loading, gate, loads) = gated(&cache);
    gate.open();
    let done = soon(loading.warm(Feed::list(1..=12)).start().done()).await;
    assert_eq!((done.done, done.failed, loads.starts()), (12, 0, 2));
    assert_eq!(cache.get_in_memory(&7).as_deref(), Some(&700));
    assert_eq!(cache.get_in_memory(&12).as_deref(), Some(&120));
}

/// Notes how many keys each call names.
struct Counted(Arc<Mutex<Vec<usize>>>);

impl BatchLoader<u64, u64> for Counted {
    type Answer = u64;
    type Error = Error;

    async fn load_many(&self, keys: Vec<u64>) -> Result<Vec<(u64, Result<u64, Error>)>, Error> {
        self.0.lock().unwrap().push(keys.len());
        Ok(keys.into_iter().map(|key| (key, Ok(key))).collect())
    }
}

#[tokio::test]
async fn a_loader_of_many_is_asked_for_256_at_a_time() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let asked = Arc::default();
    let loading = cache.loading_in_batches(Counted(Arc::clone(&asked)));
    soon(loading.warm(Feed::list(0..1_000)).start().done()).await;
    let mut asked = std::mem::take(&mut *asked.lock().unwrap());
    asked.sort_unstable();
    assert_eq!(asked, [232, 256, 256, 256]);
    assert!((0..1_000).all(|key| cache.get_in_memory(&key).is_some()));
}

#[tokio::test]
async fn keys_may_come_over_a_channel_or_from_a_stream() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let (loading, gate, _loads) = gated(&cache);
    gate.open();
    let (send, receive) = mpsc::channel(1);
    let warming = loading.warm(Feed::channel(receive)).start();
    for key in [1, 2, 3] {
        send.send(key).await.unwrap();
        until("it is warm", || cache.get_in_memory(&key).is_some()).await;
    }
    assert_eq!(warming.progress().total, None);
    assert_eq!(warming.progress().line(10), "3 done");
    drop(send);
    assert_eq!(soon(warming.done()).await.done, 3);

    let mut keys = [
        Some(Poll::Ready(Some(11))),
        Some(Poll::Pending),
        Some(Poll::Ready(None)),
    ]
    .into_iter();
    let stream = Feed::polled(move |context| {
        context.waker().wake_by_ref();
        keys.next()
            .flatten()
            .unwrap_or_else(|| panic!("asked behind its end"))
    });
    let done = soon(loading.warm(stream.of(1)).start().done()).await;
    assert_eq!((done.done, done.total), (1, Some(1)));
    assert_eq!(cache.get_in_memory(&11).as_deref(), Some(&110));
}

#[tokio::test]
async fn a_shutdown_ends_what_would_never_end() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let (loading, _gate, _loads) = gated(&cache);
    let warming = loading.warm(Feed::polled(|_| Poll::Pending)).start();
    settle(&larder).await;
    let _ = larder.shutdown(secs(1)).await;
    assert_eq!(soon(warming.ready(0.5)).await.done, 0);
    assert_eq!(
        soon(loading.warm(Feed::list([1])).start().done())
            .await
            .done,
        0
    );
}

#[tokio::test]
async fn pairs_fill_what_is_not_there() {
    let (larder, _clock, tier) = with_tier("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let _ = cache.set(1, 1).await.unwrap();
    let pairs = (1..=3).map(|key| (key, Loaded::value(key * 10).tags(["warmed"])));
    let done = soon(cache.warm_with(Feed::list(pairs)).start().done()).await;
    assert_eq!((done.done, done.failed), (3, 0));
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some(&1));
    assert_eq!(cache.get_in_memory(&3).as_deref(), Some(&30));
    assert_eq!(tier.store().len(), 3);
    let _ = larder.invalidate_tag("warmed").await.unwrap();
    assert_eq!(cache.get_in_memory(&3), None);
}

#[tokio::test]
async fn a_key_is_refreshed_although_it_is_fresh_in_every_tier() {
    let (larder, clock, tier) = with_tier("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let other: Cache<u64, u64> = another_process("t", &clock, &tier)
        .cache("c")
        .build()
        .unwrap();
    let source = Arc::new(Mutex::new(1));
    let loading = cache.loading_with({
        let source = Arc::clone(&source);
        move |_| {
            let value = *source.lock().unwrap();
            async move {
                match value {
                    0 => Err(io::Error::other("no route")),
                    value => Ok(value),
                }
            }
        }
    });
    assert_eq!(loading.get(&7).await.unwrap().as_deref(), Some(&1));
    *source.lock().unwrap() = 2;
    clock.advance(secs(1));
    assert_eq!(loading.refresh(&7).await.unwrap().as_deref(), Some(&2));
    assert_eq!(other.get(&7).await.unwrap().as_deref(), Some(&2));
    // What only the tier has.
    cache.invalidate_in_memory(&7);
    *source.lock().unwrap() = 3;
    clock.advance(secs(1));
    assert_eq!(loading.refresh(&7).await.unwrap().as_deref(), Some(&3));
    // What nobody has.
    assert_eq!(loading.refresh(&8).await.unwrap().as_deref(), Some(&3));
    // A load that fails leaves what is there.
    *source.lock().unwrap() = 0;
    clock.advance(secs(1));
    assert_eq!(loading.refresh(&7).await.unwrap().as_deref(), Some(&3));
    assert_eq!(
        loading.refresh(&9).await.unwrap_err().kind(),
        ErrorKind::Load
    );
    let stats = cache.stats();
    assert_eq!((stats.reads(), stats.refreshes), (1, 3));
}

#[tokio::test]
async fn refreshes_of_one_key_at_once_are_one_load() {
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
    let _ = cache.set(1, 1).await.unwrap();
    let (loading, gate, loads) = gated(&cache);
    let callers: Vec<_> = (0..10)
        .map(|_| {
            let loading = loading.clone();
            tokio::spawn(async move { loading.refresh(&1).await.unwrap().as_deref().copied() })
        })
        .collect();
    gate.arrived(1).await;
    assert_eq!(
        cache.get(&1).await.unwrap().as_deref(),
        Some(&1),
        "nobody waits"
    );
    gate.open();
    for caller in callers {
        assert_eq!(soon(caller).await.unwrap(), Some(10));
    }
    assert_eq!(loads.starts(), 1);
}

#[tokio::test]
async fn a_load_that_refreshes_its_own_key_is_refused() {
    let (larder, clock) = larder("t");
    let cache = larder.cache("c").ttl("10s").stale_on_error("1h");
    let cache: Cache<u64, u64> = cache.build().unwrap();
    let bound: Arc<OnceLock<LoadingCache<u64, u64>>> = Arc::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let loading = cache.loading_with({
        let (bound, seen) = (Arc::clone(&bound), Arc::clone(&seen));
        move |_| {
            let (bound, seen) = (Arc::clone(&bound), Arc::clone(&seen));
            async move {
                let refreshed = bound.get().unwrap().refresh(&1).await;
                let refused = refreshed.as_ref().map_err(Error::kind).err();
                seen.lock().unwrap().push(refused);
                refreshed.map(|value| value.map_or(0, |value| *value))
            }
        }
    });
    bound.set(loading.clone()).unwrap();
    let answer = soon(loading.get(&1)).await;
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Load, "of nothing");
    let _ = cache.set(1, 7).await.unwrap();
    clock.advance(secs(10));
    let answer = soon(loading.get(&1)).await.unwrap();
    assert_eq!(answer.as_deref(), Some(&7), "behind what is stale");
    let answer = soon(loading.refresh(&1)).await.unwrap();
    assert_eq!(answer.as_deref(), Some(&7), "by a refresh");
    let seen = seen.lock().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|kind| *kind == Some(ErrorKind::Reentered)));
}

/// A path in a directory of its own, which goes with it.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let name = format!("larder-warming-{:016x}", fastrand::u64(..));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        Self(directory)
    }

    fn file(&self) -> PathBuf {
        self.0.join("hot")
    }

    fn files(&self) -> usize {
        fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[tokio::test]
async fn the_hottest_keys_of_the_last_process_warm_the_next_one() {
    let place = Place::new();
    let (first, _clock) = larder("t");
    let build = |larder: &larder::Larder| -> Cache<(u64, String), u64> {
        larder.cache("c").policy(Policy::Lfu).build().unwrap()
    };
    let cache = build(&first);
    let key = |number: u64| (number, format!("käse:{number}"));
    for number in 0..100 {
        let _ = cache.set(key(number), number).await.unwrap();
        for _ in 0..number {
            cache.get_in_memory(&key(number));
        }
    }
    assert_eq!(cache.save_hot(place.file(), 10).await.unwrap(), 10);
    assert_eq!(place.files(), 1, "no draft is left");

    let (second, _clock) = larder("t");
    let cache = build(&second);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let loading = cache.loading_with({
        let asked = Arc::clone(&asked);
        move |load: Load<(u64, String), u64>| {
            asked.lock().unwrap().push(load.key().0);
            std::future::ready(Ok::<_, io::Error>(load.key().0))
        }
    });
    let warm = loading.warm_from(place.file()).await.unwrap();
    let done = soon(warm.concurrency(1).start().done()).await;
    assert_eq!((done.done, done.total), (10, Some(10)));
    let hottest_first: Vec<u64> = (90..100).rev().collect();
    assert_eq!(*asked.lock().unwrap(), hottest_first);
    assert_eq!(cache.save_hot(place.file(), 0).await.unwrap(), 0);
}

#[tokio::test]
async fn popular_keys_are_the_hottest_where_account_is_kept() {
    let place = Place::new();
    let (larder, _clock) = larder("t");
    let cache: Cache<u64, u64> = larder.cache("c").policy(Policy::Fifo).build().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let loading = cache.loading_with({
        let asked = Arc::clone(&asked);
        move |load: Load<u64, u64>| {
            asked.lock().unwrap().push(*load.key());
            std::future::ready(Ok::<_, io::Error>(*load.key()))
        }
    });
    let options = RefreshAhead {
        sample: 1,
        ..RefreshAhead::default()
    };
    let _refreshing = loading.refresh_ahead(options).unwrap();
    for key in 0..100 {
        cache.set_in_memory(key, key).unwrap();
    }
    for _ in 0..5 {
        for key in [70, 30, 30] {
            loading.get(&key).await.unwrap();
        }
    }
    assert_eq!(cache.save_hot(place.file(), 1).await.unwrap(), 1);
    assert_eq!(cache.save_hot(place.file(), 10).await.unwrap(), 10);
    let _ = cache.clear().await.unwrap();
    let warm = loading.warm_from(place.file()).await.unwrap();
    soon(warm.concurrency(1).start().done()).await;
    assert_eq!(asked.lock().unwrap()[..2], [30, 70]);
}

#[tokio::test]
async fn a_file_that_is_damaged_foreign_or_missing_is_an_error_that_says_so() {
    let place = Place::new();
    let (larder, _clock) = larder("t");
    let cache: Cache<String, u64> = larder.cache("c").build().unwrap();
    for name in ["tea", "coffee", "milk"] {
        let _ = cache.set(name.to_owned(), 1).await.unwrap();
    }
    let load = |_| std::future::ready(Ok::<_, io::Error>(1_u64));
    let loading = cache.loading_with(load);
    let missing = loading.warm_from(place.file()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::File);
    let cause = missing.loader::<io::Error>().unwrap();
    assert_eq!(cause.kind(), io::ErrorKind::NotFound);

    cache.save_hot(place.file(), 100).await.unwrap();
    let good = fs::read(place.file()).unwrap();
    let refused = async |content: &[u8]| {
        fs::write(place.file(), content).unwrap();
        let error = loading.warm_from(place.file()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::File);
        error.to_string()
    };
    for at in 0..good.len() {
        let mut damaged = good.clone();
        damaged[at] ^= 1 << (at % 8);
        refused(&damaged).await;
        refused(&good[..at]).await;
    }
    let longer = [&good[..], b"more"].concat();
    assert!(refused(&longer).await.contains("damaged"));
    assert!(refused(b"PNG").await.contains("holds no hot keys"));
    let mut newer = good.clone();
    newer[8] = 2;
    assert!(refused(&newer).await.contains("format 2"));

    fs::write(place.file(), &good).unwrap();
    let other: Cache<String, u64> = larder.cache("d").build().unwrap();
    let error = other.loading_with(load).warm_from(place.file()).await;
    assert!(error.unwrap_err().to_string().contains("of cache `c`"));
    let (next, _clock) = larder_testkit::larder("t");
    let numbers: Cache<u64, u64> = next.cache("c").build().unwrap();
    let error = numbers
        .loading_with(|_| std::future::ready(Ok::<_, io::Error>(1_u64)))
        .warm_from(place.file())
        .await;
    assert!(error.unwrap_err().to_string().contains("type of keys"));

    let nowhere = place.0.join("no").join("hot");
    assert_eq!(
        cache.save_hot(nowhere, 1).await.unwrap_err().kind(),
        ErrorKind::File
    );
    fs::create_dir(place.0.join("taken")).unwrap();
    assert!(cache.save_hot(place.0.join("taken"), 1).await.is_err());
    assert_eq!(place.files(), 2, "no draft is left");
}

#[tokio::test]
async fn ten_thousand_keys_are_warm_or_counted_whatever_fails_and_whoever_reads_meanwhile() {
    const KEYS: u64 = 10_000;
    for seed in seeds(2) {
        let mut rng = seed.rng();
        let (larder, _clock) = larder("t");
        let cache: Cache<u64, u64> = larder.cache("c").build().unwrap();
        let broken: Arc<Vec<bool>> = Arc::new((0..KEYS).map(|_| rng.u8(..10) == 0).collect());
        let loads = LoadCounter::new();
        let loading = cache.loading_with({
            let (broken, loads) = (Arc::clone(&broken), loads.clone());
            move |load: Load<u64, u64>| {
                let (broken, loads) = (Arc::clone(&broken), loads.clone());
                async move {
                    let _load = loads.begin();
                    tokio::task::yield_now().await;
                    match broken[*load.key() as usize] {
                        true => Err(io::Error::other("broken")),
                        false => Ok(*load.key()),
                    }
                }
            }
        });
        let mut keys: Vec<u64> = (0..KEYS).collect();
        rng.shuffle(&mut keys);
        let concurrency = rng.usize(1..100);
        let warm = loading.warm(Feed::list(keys)).concurrency(concurrency);
        let warming = warm.start();
        for _ in 0..1_000 {
            let _ = loading.get(&rng.u64(..KEYS)).await;
        }
        let done = soon(warming.done()).await;
        let failed = broken.iter().filter(|broken| **broken).count() as u64;
        assert_eq!((done.done, done.failed), (KEYS, failed));
        for (key, broken) in broken.iter().enumerate() {
            let value = cache.get_in_memory(&(key as u64));
            assert_eq!(value.is_none(), *broken, "key {key}");
        }
        assert!(loads.max_concurrency() <= concurrency + 1);
    }
}
