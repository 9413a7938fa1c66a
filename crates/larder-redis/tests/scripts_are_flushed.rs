//! SCRIPT FLUSH, or a restart, makes the server forget the scripts; nobody notices.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use larder::store::{Fill, LeaseRequest, LeaseToken, Leased, Store};
use larder_testkit::RedisServer;

#[tokio::test]
async fn every_script_is_loaded_again_by_the_call_that_misses_it() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, value, token) = (key("k"), fresh("v"), LeaseToken::random());
    for _ in 0..2 {
        flush(&server);
        let leased = lease(&store, &name, token).await.unwrap();
        assert_eq!(leased, acquired());
        flush(&server);
        assert_eq!(fill(&store, &name, token, &value).await.unwrap(), stored());
        flush(&server);
        expire(&store, &name).await.unwrap();
        let leased = lease(&store, &name, token).await.unwrap();
        assert!(
            matches!(leased, Leased::Acquired { stale: Some(_), .. }),
            "{leased:?}"
        );
        flush(&server);
        release(&store, &name, token).await.unwrap();
        let leased = lease(&store, &name, LeaseToken::random()).await.unwrap();
        assert!(
            matches!(leased, Leased::Acquired { stale: Some(_), .. }),
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
        counter: None,
    };
    let leased = store.lease(&names, &request).await.unwrap();
    assert_eq!(leased, vec![acquired(); names.len()]);
    let fills: Vec<_> = names
        .iter()
        .map(|name| Fill {
            key: name.clone(),
            token,
            value: fresh(name),
            ttl: HOUR,
            tags: None,
        })
        .collect();
    flush(&server);
    let filled = store.fill(&fills).await.unwrap();
    assert_eq!(filled, vec![stored(); names.len()]);
    // The first of each taught it; the rest ran by the hash.
    assert_eq!(calls(&server, "eval"), 2);
}

#[tokio::test]
async fn the_scripts_of_tags_and_sets_are_loaded_again_too() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, counter, record) = (key("k"), key("counter"), key("record"));
    for round in 0..2 {
        flush(&server);
        let token = LeaseToken::random();
        let since = lease_at(&store, &name, token, &counter).await.unwrap();
        flush(&server);
        let tags = tag(&counter, &record, Some(since));
        let filled = fill_tagged(&store, &name, token, tags.clone(), 7).await;
        assert_eq!(filled.unwrap(), Some(7));
        flush(&server);
        let written = set_tagged(&store, &name, HOUR, tags, 8).await;
        assert_eq!(written.unwrap(), Some(7));
        flush(&server);
        let members = store.enlist(&key("set"), round, HOUR).await.unwrap();
        assert_eq!(members.len() as u32, round + 1);
    }
}

fn flush(server: &RedisServer) {
    server.command(&["SCRIPT", "FLUSH"]).unwrap();
}
