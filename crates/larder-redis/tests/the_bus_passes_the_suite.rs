//! Every promise of the `Backplane` contract, on a real server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use larder_redis::{BusKind, Redis, RedisBus, RedisOptions};
use larder_testkit::{BusSubject, RedisServer, bus_suite};

fn options(bus: BusKind) -> RedisOptions {
    RedisOptions {
        journal_messages: 1_000,
        bus,
        ..RedisOptions::default()
    }
}

mod by_pub_sub {
    use super::*;

    async fn open() -> BusSubject {
        let server = Arc::new(RedisServer::start().unwrap());
        let options = options(BusKind::PubSub);
        let tier = Redis::with_options(&server.url(), options.clone()).unwrap();
        let bus = larder::Store::backplane(&tier).unwrap();
        let peer = RedisBus::with_options(&server.url(), options).unwrap();
        let forger = server.clone();
        BusSubject::new(bus)
            .with_peer(Arc::new(peer))
            .with_journal(1_000)
            .with_forger(move |channel, bytes| {
                let channel = format!("{channel}:~bus");
                let publish = [b"PUBLISH", channel.as_bytes(), bytes];
                forger.command(&publish).unwrap();
            })
            .keep(server)
    }

    bus_suite!(open);
}

/// Beats are told to the listeners of one handle, so the suite has one;
/// `what_a_watching_bus_tells.rs` has several.
mod by_tracking {
    use super::*;

    async fn open() -> BusSubject {
        let server = RedisServer::start().unwrap();
        let bus = RedisBus::with_options(&server.url(), options(BusKind::Tracking)).unwrap();
        BusSubject::new(Arc::new(bus))
            .with_journal(1_000)
            .with_late_beats()
            .keep(server)
    }

    bus_suite!(open);
}
