//! Kills, restarts, stops and failovers: a listener learns of them, and no position outlives the
//! messages that it counted.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bus;

use std::time::Duration;

use bus::*;
use larder::backplane::{Backplane, Replay};
use larder::store::StoreErrorKind::{Refused, Unavailable};
use larder_testkit::{Ear, RedisServer, Reply};

#[tokio::test]
async fn a_killed_server_ends_the_listening_and_returns_as_another() {
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    let mut before = ear(&bus).await;
    let known = publish(&bus, "m").await;
    server.kill9();
    is_a(Unavailable, before.end().await);
    is_a(Unavailable, Ear::begin(bus.clone(), CHANNEL).end().await);

    server.restart().unwrap();
    let now = healed(&bus).await;
    assert_ne!(now.incarnation, known.incarnation);
    assert_eq!(replay(&bus, known).await, Replay::Lost { position: now });
    let mut after = ear(&bus).await;
    assert_ne!(after.server(), before.server());
    let position = publish(&bus, "again").await;
    assert_eq!(position.count, now.count + 1);
    assert_eq!(after.message().await, (Some(position), "again".into()));
}

#[tokio::test]
async fn a_restart_that_kept_the_keys_begins_anew_all_the_same() {
    // What was written in the second before a crash may be gone, and its numbers are given again.
    let server = RedisServer::start_with(&["--appendonly", "yes"]).unwrap();
    let bus = bus_at(&server);
    let before = ear(&bus).await;
    let known = publish(&bus, "m").await;
    command(&server, &["CONFIG", "SET", "appendfsync", "always"]);
    publish(&bus, "kept").await;
    server.restart().unwrap();
    // It may answer before it has read its file.
    assert_eq!(healed(&bus).await.incarnation, known.incarnation);
    let kept = ["EXISTS", "shop:~bus", "shop:~journal"];
    assert_eq!(command(&server, &kept), Reply::Integer(2));

    let after = ear(&bus).await;
    assert_ne!(after.server(), before.server());
    let now = healed(&bus).await;
    assert_ne!(now.incarnation, known.incarnation);
    assert_eq!(replay(&bus, known).await, Replay::Lost { position: now });
    // The first listener of the new life began it, and others join it.
    let another = ear(&bus).await;
    assert_eq!(another.server(), after.server());
    assert_eq!(healed(&bus).await, now);
}

#[tokio::test]
async fn a_failover_begins_a_new_incarnation() {
    let at_once = ["--repl-diskless-sync-delay", "0"];
    let [old, new] = [(); 2].map(|()| RedisServer::start_with(&at_once).unwrap());
    let on_old = bus_at(&old);
    let before = ear(&on_old).await;
    let known = publish(&on_old, "m").await;
    command(&new, &["REPLICAOF", "127.0.0.1", &old.port().to_string()]);
    // Returns when the replica has answered, which it does behind the copy.
    assert_eq!(command(&old, &["WAIT", "1", "9000"]), Reply::Integer(1));
    let copied = ["XLEN", "shop:~journal"];
    assert_eq!(command(&new, &copied), Reply::Integer(1));
    // A replica is no place to listen: what is published elsewhere must be numbered there.
    let on_new = bus_at(&new);
    let mut refused = Ear::begin(on_new.clone(), CHANNEL);
    says(
        &is_a(Refused, refused.end().await),
        &["READONLY", "primary"],
    );

    old.kill9();
    command(&new, &["REPLICAOF", "NO", "ONE"]);
    let after = ear(&on_new).await;
    assert_ne!(after.server(), before.server());
    let now = beat(&on_new).await;
    assert_eq!(replay(&on_new, known).await, Replay::Lost { position: now });
    assert_ne!(now.incarnation, known.incarnation);
}

#[tokio::test]
async fn a_stopped_server_says_nothing_and_goes_on_where_it_was() {
    let server = RedisServer::start().unwrap();
    let bus = hasty(&server.url());
    let mut listening = ear(&bus).await;
    let known = publish(&bus, "before").await;
    assert_eq!(listening.message().await.0, Some(known));
    server.stop_signal().unwrap();
    let error = bus.publish(CHANNEL, "lost?".into()).await.unwrap_err();
    says(&is_a(Unavailable, error), &["does not answer"]);
    // The kernel still accepts connections for it.
    let mut another = Ear::begin(bus.clone(), CHANNEL);
    says(
        &is_a(Unavailable, another.end().await),
        &["does not answer"],
    );
    assert_eq!(listening.pending(), [], "and its listening did not end");

    server.cont_signal().unwrap();
    let now = healed(&bus).await;
    assert_eq!(now.incarnation, known.incarnation);
    let position = publish(&bus, "after").await;
    // Beats and, perhaps, what was sent to the stopped server come first.
    let heard = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let larder::backplane::Notice::Message { position, message } = listening.next().await
                && message == "after"
            {
                return position;
            }
        }
    });
    assert_eq!(heard.await.unwrap(), Some(position));
}

#[tokio::test]
async fn a_server_that_is_away_is_an_error_of_every_call() {
    let server = RedisServer::start().unwrap();
    let bus = hasty(&server.url());
    server.kill9();
    is_a(Unavailable, Ear::begin(bus.clone(), CHANNEL).end().await);
    let unknown = larder::store::Position::default();
    is_a(
        Unavailable,
        bus.publish(CHANNEL, "m".into()).await.unwrap_err(),
    );
    is_a(
        Unavailable,
        bus.beat(CHANNEL, "m".into()).await.unwrap_err(),
    );
    is_a(
        Unavailable,
        bus.replay(CHANNEL, unknown, 1).await.unwrap_err(),
    );
}
