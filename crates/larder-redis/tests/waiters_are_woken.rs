//! Who waits for another process's load is told when it ends, and does not ask again and again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "it says how long things took")]

mod common;

use std::io;
use std::time::Duration;

use common::{CLOCK, calls, info, median, since};
use larder::clock::Clock;
use larder::{Cache, Larder};
use larder_redis::Redis;
use larder_testkit::{Gate, LoadCounter, RedisServer, Reply};
use tokio::task::JoinHandle;

type Names = Cache<u64, u64>;

/// How soon a waiter is answered, three times over, as elsewhere; and how soon it would be at best
/// if nobody woke it.
const WOKEN_WITHIN: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(30);
const ROUNDS: u64 = 9;

/// One process, as far as the server can tell.
struct Process {
    _larder: Larder,
    names: Names,
}

fn process(url: &str) -> Process {
    let larder = Larder::builder("t")
        .shared(Redis::new(url).unwrap())
        // Waiting is under test, not the budget: a busy machine may be slower than it.
        .tier_budget(Duration::from_secs(5))
        .build()
        .unwrap();
    let names = larder.cache("names").lease("60s").lease_wait("60s");
    let names = names.load_deadline("60s").build().unwrap();
    Process {
        _larder: larder,
        names,
    }
}

impl Process {
    fn ask(&self, key: u64, loads: &LoadCounter, gate: &Gate) -> JoinHandle<u64> {
        let (names, loads, gate) = (self.names.clone(), loads.clone(), gate.clone());
        tokio::spawn(async move {
            let load = names.get_or_load(&key, |_| async move {
                let _load = loads.begin();
                gate.wait().await;
                Ok::<_, io::Error>(key)
            });
            *load.await.unwrap()
        })
    }
}

/// Waits until so many keys are watched for somebody since the statistics were reset.
async fn until_watched(server: &RedisServer, keys: u64) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while calls(server, "client|caching") < keys {
            tokio::task::yield_now().await;
        }
    });
    waited.await.unwrap();
}

fn reset(server: &RedisServer) {
    server.command(&["CONFIG", "RESETSTAT"]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_wakes_those_who_wait_for_it() {
    let server = RedisServer::start().unwrap();
    let [owner, waiter] = [(); 2].map(|()| process(&server.url()));
    let loads = LoadCounter::new();
    let mut took = Vec::new();
    for key in 0..ROUNDS {
        let gate = Gate::new();
        let load = owner.ask(key, &loads, &gate);
        gate.arrived(1).await;
        reset(&server);
        let readers: Vec<_> = (0..20).map(|_| waiter.ask(key, &loads, &gate)).collect();
        until_watched(&server, 1).await;
        let opened = CLOCK.monotonic();
        gate.open();
        for reader in readers {
            assert_eq!(reader.await.unwrap(), key);
        }
        took.push(since(opened));
        assert_eq!(load.await.unwrap(), key);
    }
    assert_eq!(loads.starts(), ROUNDS as usize);
    println!("answered after {took:?}");
    assert!(median(took) < WOKEN_WITHIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_wakes_them_to_load_by_themselves() {
    let server = RedisServer::start().unwrap();
    let [owner, waiter] = [(); 2].map(|()| process(&server.url()));
    let (loads, open) = (LoadCounter::new(), Gate::new());
    open.open();
    let mut took = Vec::new();
    for key in 0..ROUNDS {
        let closed = Gate::new();
        let load = owner.ask(key, &loads, &closed);
        closed.arrived(1).await;
        reset(&server);
        let reader = waiter.ask(key, &loads, &open);
        until_watched(&server, 1).await;
        let invalidated = CLOCK.monotonic();
        let receipt = owner.names.invalidate(&key).await.unwrap();
        assert!(receipt.is_acked());
        assert_eq!(reader.await.unwrap(), key);
        took.push(since(invalidated));
        closed.open();
        assert_eq!(load.await.unwrap(), key);
    }
    println!("answered after {took:?}");
    assert!(median(took) < WOKEN_WITHIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_costs_a_few_commands() {
    const KEYS: u64 = 20;
    let server = RedisServer::start().unwrap();
    let [owner, waiter] = [(); 2].map(|()| process(&server.url()));
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let owned: Vec<_> = (0..KEYS).map(|key| owner.ask(key, &loads, &gate)).collect();
    gate.arrived(KEYS as usize).await;
    reset(&server);
    let readers: Vec<_> = (0..KEYS)
        .map(|key| waiter.ask(key, &loads, &gate))
        .collect();
    until_watched(&server, KEYS).await;
    reset(&server);
    // Not to wait for anything: what it costs to wait for a second is the question.
    CLOCK.sleep(Duration::from_secs(1)).await;
    let commands = info(&server, "stats", "total_commands_processed");
    gate.open();
    for (key, reader) in (0..).zip(owned.into_iter().chain(readers)) {
        assert_eq!(reader.await.unwrap(), key % KEYS);
    }
    println!("{} commands a second for each key", commands / KEYS);
    assert!(
        commands / KEYS < 100,
        "a look every 10 to 40 ms costs 200 and more"
    );
    assert_eq!(loads.starts(), KEYS as usize);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_whose_connection_was_killed_goes_on() {
    let server = RedisServer::start().unwrap();
    let [owner, waiter] = [(); 2].map(|()| process(&server.url()));
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let load = owner.ask(7, &loads, &gate);
    gate.arrived(1).await;
    reset(&server);
    let reader = waiter.ask(7, &loads, &gate);
    until_watched(&server, 1).await;
    let Reply::Bytes(clients) = server.command(&["CLIENT", "LIST"]).unwrap() else {
        panic!("CLIENT LIST answers with text");
    };
    let clients = String::from_utf8(clients).unwrap();
    let watching = clients.lines().find(|client| client.contains(" flags=t "));
    let id = watching.unwrap().split(' ').next().unwrap();
    let id = id.strip_prefix("id=").unwrap();
    server.command(&["CLIENT", "KILL", "ID", id]).unwrap();
    until_watched(&server, 2).await;
    gate.open();
    assert_eq!((load.await.unwrap(), reader.await.unwrap()), (7, 7));
    assert_eq!(loads.starts(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_server_may_not_push_they_ask_now_and_then() {
    let server = RedisServer::start().unwrap();
    let user = "ACL SETUSER mute on >pw ~* &* +@all -client|tracking";
    let words: Vec<&str> = user.split(' ').collect();
    server.command(&words).unwrap();
    let url = server.url().replace("redis://", "redis://mute:pw@");
    let [owner, waiter] = [(); 2].map(|()| process(&url));
    let (loads, gate) = (LoadCounter::new(), Gate::new());
    let load = owner.ask(7, &loads, &gate);
    gate.arrived(1).await;
    reset(&server);
    let reader = waiter.ask(7, &loads, &gate);
    let asked = tokio::time::timeout(PATIENCE, async {
        while calls(&server, "evalsha") < 5 {
            tokio::task::yield_now().await;
        }
    });
    asked.await.unwrap();
    assert_eq!(calls(&server, "client|caching"), 0);
    gate.open();
    assert_eq!((load.await.unwrap(), reader.await.unwrap()), (7, 7));
    assert_eq!(loads.starts(), 1);
}
