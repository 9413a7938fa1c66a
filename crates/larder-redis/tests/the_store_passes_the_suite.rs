//! Every promise of the `Store` contract, on a real server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use larder_redis::{BusKind, Redis, RedisOptions};
use larder_testkit::{RedisServer, Subject, store_suite};

async fn open() -> Subject {
    let server = RedisServer::start().unwrap();
    let store = Redis::new(&server.url()).unwrap();
    Subject::new(Arc::new(store)).keep(server)
}

store_suite!(open);

/// The same where the server watches what the connection reads.
mod that_watches {
    use super::*;

    async fn open() -> Subject {
        let server = RedisServer::start().unwrap();
        let options = RedisOptions {
            bus: BusKind::Tracking,
            ..RedisOptions::default()
        };
        let store = Redis::with_options(&server.url(), options).unwrap();
        Subject::new(Arc::new(store)).keep(server)
    }

    store_suite!(open);
}
