//! Promise 3 on a real server: one load per key, and nobody stranded.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::time::Duration;

use larder::{Cache, Delivery, ErrorKind, Larder};
use larder_redis::Redis;
use larder_testkit::{Gate, LoadCounter, RedisServer};

type Names = Cache<u64, String>;

fn setup() -> (RedisServer, Larder, Names) {
    let server = RedisServer::start().unwrap();
    let larder = open(&server);
    let names = larder.cache("names").load_deadline("10s").build().unwrap();
    (server, larder, names)
}

fn open(server: &RedisServer) -> Larder {
    // Loads are what is under test here, not the budget: a busy machine may be slower than it.
    let redis = Redis::new(&server.url()).unwrap();
    Larder::builder("t")
        .shared(redis)
        .tier_budget(Duration::from_secs(5))
        .build()
        .unwrap()
}

async fn ask(names: Names, loads: LoadCounter, gate: Gate) -> larder::Result<String> {
    let value = names.get_or_load(&7, |_| async move {
        let _load = loads.begin();
        gate.wait().await;
        Ok::<_, io::Error>("Ada".to_owned())
    });
    value.await.map(|name| (*name).clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_cause_one_load() {
    let (_server, _larder, names) = setup();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let callers: Vec<_> = (0..1000)
        .map(|_| tokio::spawn(ask(names.clone(), loads.clone(), gate.clone())))
        .collect();
    gate.arrived(1).await;
    gate.open();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), "Ada");
    }
    assert_eq!(loads.starts(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_leader_strands_nobody_and_causes_no_second_load() {
    let (_server, _larder, names) = setup();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let leader = tokio::spawn(ask(names.clone(), loads.clone(), gate.clone()));
    gate.arrived(1).await;
    let waiters: Vec<_> = (0..100)
        .map(|_| tokio::spawn(ask(names.clone(), loads.clone(), gate.clone())))
        .collect();
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    gate.open();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap(), "Ada");
    }
    assert_eq!(loads.starts(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_aborted_while_they_ask_the_server_pass_the_lead_on() {
    let (_server, _larder, names) = setup();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    gate.open();
    for round in 0..200_u64 {
        let _ = names.clear().await.unwrap();
        let callers: Vec<_> = (0..20)
            .map(|_| tokio::spawn(ask(names.clone(), loads.clone(), gate.clone())))
            .collect();
        for caller in callers.iter().take((round % 10) as usize) {
            caller.abort();
        }
        let before = loads.starts();
        for caller in callers {
            match caller.await {
                Ok(name) => assert_eq!(name.unwrap(), "Ada"),
                Err(aborted) => assert!(aborted.is_cancelled()),
            }
        }
        assert!(loads.starts() <= before + 1, "round {round}");
    }
}

async fn break_at(gate: Gate) -> io::Result<String> {
    gate.wait().await;
    panic!("the loader broke")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_reaches_every_waiter_as_an_error_and_is_not_remembered() {
    let (_server, larder, names) = setup();
    let gate = Gate::new();
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let (names, gate) = (names.clone(), gate.clone());
            tokio::spawn(
                async move { names.get_or_load(&7, |_| break_at(gate)).await.unwrap_err() },
            )
        })
        .collect();
    gate.arrived(1).await;
    gate.open();
    for caller in callers {
        let error = caller.await.unwrap();
        assert_eq!(error.kind(), ErrorKind::LoadPanicked);
        assert!(error.to_string().contains("the loader broke"));
    }
    larder.settle().await;
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    gate.open();
    assert_eq!(ask(names, loads, gate).await.unwrap(), "Ada");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_hangs_ends_at_its_deadline_and_blocks_nobody_afterwards() {
    let (server, larder, _) = setup();
    let hasty: Names = larder
        .cache("hasty")
        .load_deadline("200ms")
        .build()
        .unwrap();
    let (loads, never) = (LoadCounter::new(), Gate::new());
    let error = ask(hasty.clone(), loads.clone(), never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoadTimeout);
    larder.settle().await;
    assert_eq!(loads.running(), 0, "the loader was dropped");
    let open = Gate::new();
    open.open();
    // Another process, so that what answers is not this one's memory: the lease is free again.
    let other = self::open(&server);
    let theirs: Names = other.cache("hasty").load_deadline("200ms").build().unwrap();
    assert_eq!(ask(theirs, loads.clone(), open).await.unwrap(), "Ada");
    assert_eq!(loads.starts(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_larders_on_one_server_cause_one_load() {
    let (server, _larder, names) = setup();
    let other = open(&server);
    let theirs: Names = other.cache("names").load_deadline("10s").build().unwrap();
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let ours = tokio::spawn(ask(names, loads.clone(), gate.clone()));
    gate.arrived(1).await;
    let theirs = tokio::spawn(ask(theirs, loads.clone(), gate.clone()));
    gate.open();
    assert_eq!(ours.await.unwrap().unwrap(), "Ada");
    assert_eq!(theirs.await.unwrap().unwrap(), "Ada");
    assert_eq!(loads.starts(), 1);
}

#[tokio::test]
async fn what_one_larder_sets_another_reads_and_invalidates() {
    let (server, _larder, names) = setup();
    let other = open(&server);
    let theirs: Names = other.cache("names").load_deadline("10s").build().unwrap();
    assert_eq!(
        names.set(7, "Ada".to_owned()).await.unwrap().delivery(),
        Delivery::Acked
    );
    assert_eq!(
        theirs.get(&7).await.unwrap().as_deref().map(String::as_str),
        Some("Ada")
    );
    assert_eq!(
        theirs.invalidate(&7).await.unwrap().delivery(),
        Delivery::Acked
    );
    names.invalidate_in_memory(&7);
    assert_eq!(names.get(&7).await.unwrap(), None);
}
