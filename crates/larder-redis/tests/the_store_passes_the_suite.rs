//! Every promise of the `Store` contract, on a real server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use larder_redis::Redis;
use larder_testkit::{RedisServer, Subject, store_suite};

async fn open() -> Subject {
    let server = RedisServer::start().unwrap();
    let store = Redis::new(&server.url()).unwrap();
    Subject::new(Arc::new(store)).keep(server)
}

store_suite!(open);
