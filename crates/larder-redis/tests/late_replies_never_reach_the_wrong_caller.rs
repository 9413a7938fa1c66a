//! Calls are dropped at random moments; every answer that is waited for belongs to its key.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use larder::store::{LeaseToken, Leased, Store};
use larder_redis::Redis;
use larder_testkit::{ChaosProxy, Direction, LinkFault, RedisServer, seeds};

const KEYS: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_dropped_at_random() {
    let server = RedisServer::start().unwrap();
    for seed in seeds(3) {
        check(Arc::new(store_at(&server)), seed.rng(), 3_000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_dropped_while_answers_come_late() {
    let server = RedisServer::start().unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    let url = format!("redis://{}", proxy.address());
    for seed in seeds(2) {
        let store = Arc::new(Redis::new(&url).unwrap());
        store.ping().await.unwrap();
        proxy.inject(
            [Direction::ToClient],
            LinkFault::Delay(Duration::from_millis(5)),
        );
        check(store, seed.rng(), 50).await;
        proxy.heal();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_dropped_while_the_server_stood_still() {
    let server = RedisServer::start().unwrap();
    let store = Arc::new(store_at(&server));
    prepare(&store).await;
    server.stop_signal().unwrap();
    let dropped: Vec<_> = (0..KEYS)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                tokio::time::timeout(Duration::from_millis(20), get(&store, &name_of(n))).await
            })
        })
        .collect();
    for call in dropped {
        assert!(call.await.unwrap().is_err());
    }
    server.cont_signal().unwrap();
    for n in (0..KEYS).rev() {
        assert_eq!(get(&store, &name_of(n)).await.unwrap(), Some(value_of(n)));
    }
}

async fn prepare(store: &Redis) {
    for n in 0..KEYS {
        set(store, &name_of(n), &value_of(n)).await.unwrap();
    }
}

async fn check(store: Arc<Redis>, mut rng: fastrand::Rng, rounds: usize) {
    prepare(&store).await;
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (store, mut rng) = (store.clone(), rng.fork());
            tokio::spawn(async move {
                for _ in 0..rounds {
                    call(&store, &mut rng).await;
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}

/// One read of one or several keys, dropped or waited for.
async fn call(store: &Redis, rng: &mut fastrand::Rng) {
    let count = rng.usize(1..4);
    let numbers = rng.choose_multiple(0..KEYS, count);
    let names: Vec<_> = numbers.iter().map(|n| name_of(*n)).collect();
    let polls = if rng.bool() { rng.u8(..4) } else { u8::MAX };
    if rng.bool() {
        let read = store.get(&names, LIMIT);
        if let Some(found) = patient(polls, read).await {
            for (n, value) in numbers.iter().zip(found.unwrap()) {
                assert_eq!(value, Some(value_of(*n)));
            }
        }
    } else {
        let request = larder::store::LeaseRequest {
            token: LeaseToken::random(),
            stale_at: 1,
            lease_for: HOUR,
            limit: LIMIT,
            counter: None,
        };
        let read = store.lease(&names, &request);
        if let Some(found) = patient(polls, read).await {
            for (n, leased) in numbers.iter().zip(found.unwrap()) {
                assert_eq!(leased, Leased::Value(value_of(*n)));
            }
        }
    }
}

/// Waits for the call, or drops it after some polls.
async fn patient<F: Future + Unpin>(polls: u8, mut call: F) -> Option<F::Output> {
    if polls == u8::MAX {
        return Some(call.await);
    }
    for _ in 0..polls {
        tokio::select! {
            biased;
            output = &mut call => return Some(output),
            () = tokio::task::yield_now() => {}
        }
    }
    None
}

fn name_of(n: usize) -> Bytes {
    key(format!("key:{n}"))
}

fn value_of(n: usize) -> Bytes {
    envelope(u64::MAX / 2, format!("value of {n}").repeat(n + 1))
}
