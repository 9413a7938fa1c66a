//! The user that the documentation describes can do everything, and one with less is told what it
//! lacks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bus;

use std::sync::Arc;

use bus::*;
use larder::backplane::Backplane;
use larder::store::StoreErrorKind::{Refused, Unavailable};
use larder_redis::{RedisBus, RedisOptions};
use larder_testkit::{BusSubject, Ear, RedisServer, bus_suite};

/// As in the documentation of `RedisBus`.
const COMMANDS: &str = "+evalsha +eval +hmget +hget +hset +del +pexpire +xadd +xrange +xlen \
                        +xtrim +publish +subscribe +info";

/// A server with a user who may do that, on these keys and channels, and what `change` says.
fn with_user(keys: &str, channels: &str, change: &str) -> (RedisServer, String) {
    let server = RedisServer::start().unwrap();
    let line = format!(
        "ACL SETUSER shop on >secret resetkeys resetchannels {keys} {channels} {COMMANDS} {change}"
    );
    let words: Vec<&str> = line.split_whitespace().collect();
    command(&server, &words);
    let url = format!("redis://shop:secret@{}", server.address());
    (server, url)
}

fn as_documented(change: &str) -> (RedisServer, Arc<RedisBus>) {
    let (server, url) = with_user("~shop:*", "&shop:~bus", change);
    (server, hasty(&url))
}

mod the_documented_user_passes_the_suite {
    use super::*;

    async fn open() -> BusSubject {
        // The suite has many channels, so the user has, too.
        let (server, url) = with_user("~shop:*", "&shop:*:~bus", "");
        let options = RedisOptions {
            journal_messages: 1_000,
            ..RedisOptions::default()
        };
        let [bus, peer] = [(); 2].map(|()| {
            let bus = RedisBus::with_options(&url, options.clone()).unwrap();
            Arc::new(bus)
        });
        BusSubject::new(bus)
            .with_peer(peer)
            .with_prefix("shop:")
            .with_journal(1_000)
            .keep(server)
    }

    bus_suite!(open);
}

#[tokio::test]
async fn the_documented_user_may_use_its_channel_and_no_other() {
    let (_server, bus) = as_documented("");
    let mut listening = ear(&bus).await;
    assert_ne!(listening.server(), 0);
    let position = publish(&bus, "m").await;
    assert_eq!(listening.message().await, (Some(position), "m".into()));
    refused(bus.publish("bank", "m".into()).await);
    let error = Ear::begin(bus.clone(), "bank").end().await;
    is_a(Refused, error);
}

#[tokio::test]
async fn without_info_nobody_knows_the_server() {
    let (_server, bus) = as_documented("-info");
    let mut listening = ear(&bus).await;
    assert_eq!(listening.server(), 0);
    let position = publish(&bus, "m").await;
    assert_eq!(listening.message().await, (Some(position), "m".into()));
}

#[tokio::test]
async fn without_the_channel_or_subscribe_listening_says_what_to_grant() {
    for change in ["-subscribe", "resetchannels"] {
        let (_server, bus) = as_documented(change);
        let error = Ear::begin(bus.clone(), CHANNEL).end().await;
        let parts = ["NOPERM", "+subscribe", "&shop:~bus"];
        says(&is_a(Refused, error), &parts);
    }
}

#[tokio::test]
async fn without_publish_or_eval_publishing_says_so() {
    for change in ["-publish", "resetchannels", "-evalsha", "-xadd", "-hset"] {
        let (_server, bus) = as_documented(change);
        let error = refused(bus.publish(CHANNEL, "m".into()).await);
        says(&error, &["grant the user of the URL"]);
    }
}

#[tokio::test]
async fn where_only_the_journal_is_forbidden_listeners_are_told_without_a_number() {
    let (_server, bus) = as_documented("-xadd");
    let mut listening = ear(&bus).await;
    let before = beat(&bus).await;
    listening.beat().await;
    refused(bus.publish(CHANNEL, "told".into()).await);
    assert_eq!(listening.message().await, (None, "told".into()));
    let after = beat(&bus).await;
    assert_ne!(after.incarnation, before.incarnation);
}

#[tokio::test]
async fn a_channel_that_is_revoked_ends_the_listening_at_once() {
    let (server, bus) = as_documented("");
    let mut listening = ear(&bus).await;
    command(&server, &["ACL", "SETUSER", "shop", "resetchannels"]);
    is_a(Unavailable, listening.end().await);
    let error = Ear::begin(bus.clone(), CHANNEL).end().await;
    says(&is_a(Refused, error), &["&shop:~bus"]);
    command(&server, &["ACL", "SETUSER", "shop", "&shop:~bus"]);
    let mut listening = ear(&bus).await;
    let position = publish(&bus, "m").await;
    assert_eq!(listening.message().await.0, Some(position));
}

#[tokio::test]
async fn a_wrong_password_is_a_clear_error_that_never_shows_it() {
    let server = RedisServer::start_with(&["--requirepass", "right"]).unwrap();
    for (credentials, expected) in [
        (":hunter2@", "user name or password"),
        ("user:hunter2@", "user name or password"),
        ("", "redis://:PASSWORD@HOST"),
    ] {
        let bus = hasty(&format!("redis://{credentials}{}", server.address()));
        let error = is_a(Refused, Ear::begin(bus.clone(), CHANNEL).end().await);
        says(&error, &[expected]);
        let shown = format!("{error:?} {bus:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let mut listening = ear(&bus_at(&server)).await;
    let position = publish(&bus_at(&server), "m").await;
    assert_eq!(listening.message().await.0, Some(position));
}

#[tokio::test]
async fn databases_of_one_server_do_not_hear_each_other() {
    let server = RedisServer::start().unwrap();
    let [first, fourth] = [0, 3].map(|database| hasty(&format!("{}/{database}", server.url())));
    let (mut in_first, mut in_fourth) = (ear(&first).await, ear(&fourth).await);
    assert_eq!(in_first.server(), in_fourth.server());
    let one = publish(&first, "in the first").await;
    let other = publish(&fourth, "in the fourth").await;
    assert_ne!(one.incarnation, other.incarnation);
    let heard = in_first.message().await;
    assert_eq!(heard, (Some(one), "in the first".into()));
    let heard = in_fourth.message().await;
    assert_eq!(heard, (Some(other), "in the fourth".into()));
}

#[test]
fn the_documentation_names_these_commands() {
    let documentation = include_str!("../src/bus.rs");
    for command in COMMANDS.split_whitespace() {
        let named = |line: &str| line.starts_with("///") && line.contains(command);
        assert!(documentation.lines().any(named), "{command}");
    }
}
