//! What a listener hears on a bus that watches keys, and what it needs for that.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bus;

use std::sync::Arc;

use bus::*;
use larder::backplane::{Backplane, Notice};
use larder::store::{Position, StoreErrorKind::Refused, StoreErrorKind::Unavailable};
use larder::{Cache, Larder, Reason, Store};
use larder_redis::{BusKind, Redis, RedisBus, RedisOptions};
use larder_testkit::{Ear, RedisServer};

fn options() -> RedisOptions {
    RedisOptions {
        bus: BusKind::Tracking,
        journal_messages: 1_000,
        ..RedisOptions::default()
    }
}

fn watching(server: &RedisServer) -> Arc<RedisBus> {
    Arc::new(RedisBus::with_options(&server.url(), options()).unwrap())
}

/// What was told up to the next beat, which is asked for now.
async fn up_to_a_beat(bus: &dyn Backplane, ear: &mut Ear) -> Vec<Notice> {
    bus.beat(CHANNEL, "here".into()).await.unwrap();
    let mut told = Vec::new();
    loop {
        match ear.next().await {
            Notice::Beat { message, .. } if message == "here" => return told,
            notice => told.push(notice),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_other_handles_come_in_order_and_none_is_missing() {
    const EACH: u64 = 300;
    let server = RedisServer::start().unwrap();
    let listener = watching(&server);
    let mut listening = ear(&listener).await;
    let publishers = [(); 4].map(|()| {
        let bus = watching(&server);
        tokio::spawn(async move {
            for number in 0..EACH {
                publish(&bus, number.to_string()).await;
            }
        })
    });
    for count in 1..=4 * EACH {
        let (position, _) = listening.message().await;
        assert_eq!(position.unwrap().count, count);
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
    assert_eq!(up_to_a_beat(&*listener, &mut listening).await, []);
}

#[tokio::test]
async fn an_answer_comes_behind_all_that_was_changed_before_it() {
    let server = RedisServer::start().unwrap();
    let tier = Redis::with_options(&server.url(), options()).unwrap();
    let bus = tier.backplane().unwrap();
    let mut listening = Ear::open(bus.clone(), CHANNEL).await;
    for round in 0..200 {
        let keys: Vec<bytes::Bytes> = (0..3).map(|n| format!("k{round}.{n}").into()).collect();
        tier.get(&keys, 100).await.unwrap();
        for key in &keys[..2] {
            command(&server, &[&b"SET"[..], key, b"foreign"]);
        }
        let told = up_to_a_beat(&*bus, &mut listening).await;
        let changed = |key: &bytes::Bytes| Notice::Changed {
            keys: vec![key.clone()],
        };
        assert_eq!(told, [changed(&keys[0]), changed(&keys[1])]);
    }
}

#[tokio::test]
async fn the_end_of_the_connection_ends_the_listening_and_another_begins_with_a_doubt() {
    let server = RedisServer::start().unwrap();
    let bus = watching(&server);
    let mut listening = ear(&bus).await;
    let before = publish(&bus, "m").await;
    assert_eq!(listening.message().await.0, Some(before));
    command(&server, &["CLIENT", "KILL", "TYPE", "normal"]);
    is_a(Unavailable, listening.end().await);
    let mut again = Ear::begin(bus.clone(), CHANNEL);
    assert_eq!(again.next().await, Notice::Watching);
    let server_of = |ear: &Ear| ear.server();
    assert_eq!(
        again.next().await,
        Notice::Listening {
            server: server_of(&listening)
        }
    );
    let after = publish(&bus, "m").await;
    assert_eq!(after.incarnation, before.incarnation);
    assert_eq!(again.message().await.0, Some(after));
}

#[tokio::test]
async fn a_journal_that_was_deleted_tells_where_the_channel_stands() {
    let server = RedisServer::start().unwrap();
    let bus = watching(&server);
    let mut listening = ear(&bus).await;
    let first = publish(&watching(&server), "m").await;
    assert_eq!(listening.message().await.0, Some(first));
    command(&server, &["DEL", "shop:~bus", "shop:~journal"]);
    let (begun, _) = listening.beat().await;
    assert_ne!(begun.incarnation, first.incarnation);
    assert_eq!(begun.count, 0);
    let next = publish(&watching(&server), "m").await;
    let expected = Position { count: 1, ..begun };
    assert_eq!(next, expected);
    assert_eq!(listening.message().await.0, Some(next));
}

/// As the documentation says, in place of the channel and its commands.
const USER: &str = "ACL SETUSER shop on >secret resetkeys resetchannels ~shop:* +evalsha +eval +hmget \
                    +hget +hset +del +pexpire +pttl +xadd +xrange +xlen +xtrim +info +client|tracking";

fn with_user(change: &str) -> (RedisServer, Arc<RedisBus>) {
    let server = RedisServer::start().unwrap();
    let line = format!("{USER} {change}");
    let words: Vec<&str> = line.split_whitespace().collect();
    command(&server, &words);
    let url = format!("redis://shop:secret@{}", server.address());
    let bus = RedisBus::with_options(&url, options()).unwrap();
    (server, Arc::new(bus))
}

mod the_documented_user_passes_the_suite {
    use super::*;
    use larder_testkit::{BusSubject, bus_suite};

    async fn open() -> BusSubject {
        let (server, bus) = with_user("");
        BusSubject::new(bus)
            .with_prefix("shop:")
            .with_journal(1_000)
            .with_late_beats()
            .keep(server)
    }

    bus_suite!(open);
}

#[tokio::test]
async fn without_the_permission_listening_says_what_to_grant_and_the_rest_works() {
    let (_server, bus) = with_user("-client|tracking");
    let error = Ear::begin(bus.clone(), CHANNEL).end().await;
    says(&is_a(Refused, error), &["+client|tracking"]);
    publish(&bus, "m").await;
}

#[tokio::test]
async fn without_it_the_tier_works_and_every_hit_is_looked_up_there() {
    let server = RedisServer::start().unwrap();
    command(
        &server,
        &[
            "ACL",
            "SETUSER",
            "u",
            "on",
            ">p",
            "~*",
            "&*",
            "+@all",
            "-client|tracking",
        ],
    );
    let url = format!("redis://u:p@{}", server.address());
    let redis = Redis::with_options(&url, options()).unwrap();
    let larder = Larder::builder("shop").shared(redis).build().unwrap();
    let names: Cache<u64, u64> = larder.cache("names").build().unwrap();
    for round in 0..3 {
        let reads = names.with(larder::Read::new());
        let load = |_| std::future::ready(Ok::<_, std::convert::Infallible>(7));
        let read = reads.get_or_load_explained(&1, load).await.unwrap();
        let looked_up = read.outcome.reason == Reason::Confirmed;
        assert_eq!(looked_up, round > 0, "{}", read.outcome);
    }
    assert!(!larder.bus().unwrap().healthy);
}
