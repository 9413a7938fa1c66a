//! What stands in Redis beside the entries, byte for byte: another release reads and writes it, too.
//! These are added to, never changed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use larder::backplane::{Backplane, Replay};
use larder::store::{LeaseToken, Position, Store};
use larder_redis::RedisBus;
use larder_testkit::{RedisServer, Reply};

const INCARNATION: u64 = 0x0102_0304_0506_0708;
const RAW: &[u8] = b"\x01\x02\x03\x04\x05\x06\x07\x08";

fn bytes(text: &[u8]) -> Reply {
    Reply::Bytes(text.into())
}

fn at(count: u64) -> Position {
    Position {
        incarnation: INCARNATION,
        count,
    }
}

#[tokio::test]
async fn the_counter_is_a_hash_of_incarnation_and_number() {
    let server = RedisServer::start().unwrap();
    let (store, counter) = (store_at(&server), key("t:~counter"));
    said(&server, &[b"HSET", &counter, b"i", RAW, b"n", b"41"]);
    assert_eq!(position(&store, &counter).await.unwrap(), at(41));
    invalidate(&store, &key("k"), &counter).await.unwrap();
    assert_eq!(position(&store, &counter).await.unwrap(), at(42));
    let fields = said(&server, &[b"HMGET", &counter, b"i", b"n"]);
    assert_eq!(fields, Reply::List(vec![bytes(RAW), bytes(b"42")]));
    assert_eq!(said(&server, &[b"HLEN", &counter]), Reply::Integer(2));
}

#[tokio::test]
async fn the_record_of_a_tag_is_its_version_and_a_position() {
    let server = RedisServer::start().unwrap();
    let (store, counter) = (store_at(&server), key("t:~counter"));
    said(&server, &[b"HSET", &counter, b"i", RAW, b"n", b"258"]);
    let here = position(&store, &counter).await.unwrap();
    let (old, new) = (key("t:~t%3Aold"), key("t:~t%3Anew"));
    // One that is there is read, and one that is missing is written.
    let version = 0x1112_1314_1516_1718_u64;
    let made_at = [RAW, b"\0\0\0\0\0\0\0\x02"].concat();
    let record = [&version.to_be_bytes()[..], &made_at].concat();
    said(&server, &[b"SET", &old, &record]);
    for (record, expected) in [(&old, version), (&new, 7)] {
        let name = key([b"entry of ", &record[..]].concat());
        let token = LeaseToken::random();
        lease(&store, &name, token).await.unwrap();
        let tags = tag(&counter, record, Some(here));
        let stored = fill_tagged(&store, &name, token, tags, 7).await.unwrap();
        assert_eq!(stored, Some(expected));
    }
    let made = [&7_u64.to_be_bytes()[..], RAW, b"\0\0\0\0\0\0\x01\x02"].concat();
    assert_eq!(said(&server, &[b"GET", &new]), bytes(&made));
}

#[tokio::test]
async fn the_bus_has_a_position_and_a_journal() {
    let server = RedisServer::start().unwrap();
    let bus = RedisBus::new(&server.url()).unwrap();
    said(
        &server,
        &[
            b"HSET", b"t:~bus", b"i", RAW, b"n", b"1", b"b", b"67", b"s", b"1",
        ],
    );
    said(&server, &[b"XADD", b"t:~journal", b"1-67", b"m", b"old"]);
    let published = bus.publish("t", "new message".into()).await.unwrap();
    assert_eq!(published, at(2));
    let Replay::Complete(messages) = bus.replay("t", at(0), 10).await.unwrap() else {
        panic!("the journal is whole");
    };
    assert_eq!(
        messages,
        [(at(1), "old".into()), (at(2), "new message".into())]
    );
    // 64 bytes are counted beside each message.
    let fields = said(&server, &[b"HMGET", b"t:~bus", b"i", b"n", b"b"]);
    let expected = vec![bytes(RAW), bytes(b"2"), bytes(b"142")];
    assert_eq!(fields, Reply::List(expected));
    let last = said(
        &server,
        &[b"XREVRANGE", b"t:~journal", b"+", b"-", b"COUNT", b"1"],
    );
    let fields = Reply::List(vec![bytes(b"m"), bytes(b"new message")]);
    let entry = Reply::List(vec![bytes(b"2-142"), fields]);
    assert_eq!(last, Reply::List(vec![entry]));
}

#[tokio::test]
async fn schema_versions_are_scored_by_when_their_time_is_over() {
    let server = RedisServer::start().unwrap();
    let (store, set) = (store_at(&server), key("t:~v%3Arows"));
    let later = (server.clock_millis().unwrap() + 3_600_000).to_string();
    said(
        &server,
        &[b"ZADD", &set, later.as_bytes(), b"3", b"1", b"2"],
    );
    let mut members = store.enlist(&set, 4, HOUR).await.unwrap();
    members.sort_unstable();
    assert_eq!(members, [3, 4], "the time of 2 is over");
    let Reply::Bytes(score) = said(&server, &[b"ZSCORE", &set, b"4"]) else {
        panic!("4 is a member");
    };
    let score: i64 = String::from_utf8(score).unwrap().parse().unwrap();
    let left = score - server.clock_millis().unwrap();
    assert!((3_500_000..=3_600_000).contains(&left), "{left} ms");
}
