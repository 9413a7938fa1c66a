//! What happens to the connection that listens while commands have another one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bus;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bus::*;
use larder::backplane::{Backplane, Notice};
use larder::store::StoreErrorKind::Unavailable;
use larder_redis::Redis;
use larder_testkit::{ChaosProxy, Direction, Ear, LinkFault, RedisServer, Reply};

#[tokio::test]
async fn a_reset_connection_ends_the_listening_at_once() {
    let server = RedisServer::start().unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    let listener = hasty(&format!("redis://{}", proxy.address()));
    let direct = bus_at(&server);
    let mut first = ear(&listener).await;
    let known = publish(&direct, "heard").await;
    assert_eq!(first.message().await.0, Some(known));
    proxy.reset_connections();
    is_a(Unavailable, first.end().await);
    publish(&direct, "missed").await;
    let mut second = ear(&listener).await;
    assert_eq!(second.server(), first.server());
    let position = publish(&direct, "heard").await;
    assert_eq!(second.message().await.0, Some(position));
    assert_eq!(replayed(&direct, known).await, ["missed", "heard"]);
}

#[tokio::test]
async fn a_reset_connection_costs_no_publish() {
    let server = RedisServer::start().unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    let through = hasty(&format!("redis://{}", proxy.address()));
    let start = beat(&through).await;
    for count in 1..6 {
        proxy.reset_connections();
        assert_eq!(publish(&through, "m").await.incarnation, start.incarnation);
        assert!(replayed(&through, start).await.len() >= count);
    }
}

#[tokio::test]
async fn a_half_open_connection_hears_nothing_and_shows_no_error() {
    let server = RedisServer::start().unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    let listener = hasty(&format!("redis://{}", proxy.address()));
    let direct = bus_at(&server);
    let mut deaf = ear(&listener).await;
    proxy.inject(Direction::BOTH, LinkFault::Blackhole);
    let mut hearing = ear(&direct).await;
    for _ in 0..100 {
        let position = publish(&direct, "m").await;
        assert_eq!(hearing.message().await.0, Some(position));
    }
    assert_eq!(
        deaf.pending(),
        [],
        "beats that do not come are all that shows it"
    );
    // Nobody waits for a connection through it for longer than the options say.
    let mut another = Ear::begin(listener.clone(), CHANNEL);
    says(
        &is_a(Unavailable, another.end().await),
        &["does not answer"],
    );
    proxy.heal();
    proxy.reset_connections();
    is_a(Unavailable, deaf.end().await);
    let mut again = ear(&listener).await;
    let position = publish(&direct, "m").await;
    assert_eq!(again.message().await.0, Some(position));
}

#[tokio::test]
async fn a_connection_cut_anywhere_never_brings_a_wrong_message() {
    let server = RedisServer::start().unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    let listener = hasty(&format!("redis://{}", proxy.address()));
    let direct = bus_at(&server);
    for bytes in (0..200).chain((200..8_000).step_by(97)) {
        proxy.inject([Direction::ToClient], LinkFault::Truncate(bytes));
        let mut cut = Ear::begin(listener.clone(), CHANNEL);
        // Some connections are cut before they are made, and one more message does no harm.
        for _ in 0..3 {
            publish(&direct, "whole").await;
        }
        proxy.reset_connections();
        is_a(Unavailable, cut.end().await);
        for notice in cut.pending() {
            match notice {
                Notice::Listening { .. } => {}
                Notice::Message { message, .. } => assert_eq!(message, "whole"),
                other => panic!("{other:?} after {bytes} bytes"),
            }
        }
    }
}

#[tokio::test]
async fn a_listener_that_does_not_keep_up_is_cut_off_and_can_make_up_for_it() {
    const MESSAGES: usize = 500;
    let server = RedisServer::start().unwrap();
    let limit = [
        "CONFIG",
        "SET",
        "client-output-buffer-limit",
        "pubsub 65536 0 0",
    ];
    command(&server, &limit);
    let bus = bus_at(&server);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let mut notify = {
        let heard = heard.clone();
        move |notice| heard.lock().unwrap().push(notice)
    };
    let mut listening = pin!(bus.listen(CHANNEL, &mut notify));
    // Listens until it is told that it does, and then does not come round to it any more.
    poll_fn(|context| {
        assert!(listening.as_mut().poll(context).is_pending());
        match heard.lock().unwrap().is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    })
    .await;
    let start = beat(&bus).await;
    for _ in 0..MESSAGES {
        publish(&bus, vec![b'm'; 60_000]).await;
    }
    assert_eq!(subscribers(&server), 0, "the server has cut it off");

    is_a(Unavailable, listening.await);
    let notices = std::mem::take(&mut *heard.lock().unwrap());
    let counts = notices.iter().filter_map(|notice| match notice {
        Notice::Message { position, .. } => Some(position.unwrap().count),
        _ => None,
    });
    let counts: Vec<u64> = counts.collect();
    assert!(counts.len() < MESSAGES, "nothing was lost");
    assert!(
        counts.iter().copied().eq(1..=counts.len() as u64),
        "{counts:?}"
    );
    let last = larder::store::Position {
        count: start.count + counts.len() as u64,
        ..start
    };
    let missed = replayed(&bus, last).await;
    assert_eq!(counts.len() + missed.len(), MESSAGES);
}

#[tokio::test]
async fn listeners_that_are_dropped_leave_no_connection() {
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    let mut ears = Vec::new();
    for _ in 0..20 {
        ears.push(ear(&bus).await);
    }
    assert_eq!(subscribers(&server), 20);
    for ear in ears {
        ear.close().await;
    }
    // And some that were dropped somewhere on the way.
    for polls in 0..50 {
        let mut notify = |_| {};
        let mut listening = pin!(bus.listen(CHANNEL, &mut notify));
        for _ in 0..polls {
            let polled = listening
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending());
            tokio::task::yield_now().await;
        }
    }
    for attempt in 0.. {
        assert!(attempt < 20_000, "{} still listen", subscribers(&server));
        if subscribers(&server) == 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_bus_of_a_tier_shares_its_connection() {
    let server = RedisServer::start().unwrap();
    let tier = Redis::new(&server.url()).unwrap();
    let bus = larder::Store::backplane(&tier).unwrap();
    larder::Store::ping(&tier).await.unwrap();
    bus.publish(CHANNEL, "m".into()).await.unwrap();
    let Reply::Bytes(list) = command(&server, &["CLIENT", "LIST", "TYPE", "normal"]) else {
        panic!("no list of clients");
    };
    let list = String::from_utf8(list).unwrap();
    assert_eq!(list.lines().count(), 2, "the tier's and the test's: {list}");
    assert_eq!(subscribers(&server), 0);
    let _ear = Ear::open(bus, CHANNEL).await;
    assert_eq!(subscribers(&server), 1);
}

#[tokio::test]
async fn a_socket_of_this_machine_is_listened_to_as_well() {
    let socket = ["--unixsocket", "redis.sock"];
    let server = RedisServer::start_with(&socket).unwrap();
    let Reply::List(dir) = command(&server, &["CONFIG", "GET", "dir"]) else {
        panic!("no directory");
    };
    let Reply::Bytes(dir) = &dir[1] else {
        panic!("no directory");
    };
    let dir = String::from_utf8(dir.clone()).unwrap();
    let bus = hasty(&format!("unix://{dir}/redis.sock"));
    let mut ear = ear(&bus).await;
    let position = publish(&bus, "m").await;
    assert_eq!(ear.message().await, (Some(position), "m".into()));
}

#[tokio::test]
async fn what_is_not_redis_is_an_error() {
    let nonsense = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", nonsense.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for _ in 0..2 {
            let (mut stream, _) = nonsense.accept().await.unwrap();
            let _ = stream.read(&mut [0; 64]).await;
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
        }
    });
    let mut listening = Ear::begin(hasty(&url), CHANNEL);
    let error = is_a(Unavailable, listening.end().await);
    says(&error, &["does not answer as Redis does"]);
    answering.abort();
}
