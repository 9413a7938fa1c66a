//! SCRIPT FLUSH, or a restart, makes the server forget the scripts; nobody notices.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use larder::store::{Fill, Filled, LeaseRequest, LeaseToken, Leased, Store};
use larder_testkit::RedisServer;

#[tokio::test]
async fn every_script_is_loaded_again_by_the_call_that_misses_it() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, value, token) = (key("k"), fresh("v"), LeaseToken::random());
    for _ in 0..2 {
        flush(&server);
        let leased = lease(&store, &name, token).await.unwrap();
        assert_eq!(leased, Leased::Acquired { stale: None });
        flush(&server);
        assert_eq!(
            fill(&store, &name, token, &value).await.unwrap(),
            Filled::Stored
        );
        flush(&server);
        expire(&store, &name).await.unwrap();
        let leased = lease(&store, &name, token).await.unwrap();
        assert!(
            matches!(leased, Leased::Acquired { stale: Some(_) }),
            "{leased:?}"
        );
        flush(&server);
        release(&store, &name, token).await.unwrap();
        let leased = lease(&store, &name, LeaseToken::random()).await.unwrap();
        assert!(
            matches!(leased, Leased::Acquired { stale: Some(_) }),
            "{leased:?}"
        );
        delete(&store, &name).await.unwrap();
    }
}

#[tokio::test]
async fn a_batch_is_answered_whole() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let token = LeaseToken::random();
    let names: Vec<_> = (0..1_500).map(|n| key(format!("{n}"))).collect();
    let request = LeaseRequest {
        token,
        stale_at: now(),
        lease_for: HOUR,
        limit: LIMIT,
    };
    let leased = store.lease(&names, &request).await.unwrap();
    assert_eq!(leased, vec![Leased::Acquired { stale: None }; names.len()]);
    let fills: Vec<_> = names
        .iter()
        .map(|name| Fill {
            key: name.clone(),
            token,
            value: fresh(name),
            ttl: HOUR,
        })
        .collect();
    flush(&server);
    let filled = store.fill(&fills).await.unwrap();
    assert_eq!(filled, vec![Filled::Stored; names.len()]);
    // The first thousand learned it; the rest ran by the hash.
    assert_eq!(calls(&server, "eval"), 2_000);
}

#[tokio::test]
async fn a_hit_costs_one_plain_command() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, value) = (key("k"), fresh("v"));
    set(&store, &name, &value).await.unwrap();
    let leased = lease(&store, &name, LeaseToken::random()).await.unwrap();
    assert_eq!(leased, Leased::Value(value));
    assert_eq!(calls(&server, "getrange"), 1);
    assert_eq!(calls(&server, "eval") + calls(&server, "evalsha"), 0);
}

fn flush(server: &RedisServer) {
    server.command(&["SCRIPT", "FLUSH"]).unwrap();
}
