//! Somebody else writes into the keys and the channel of the bus, and somebody forgets the scripts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bus;

use bus::*;
use larder::backplane::{Backplane, Notice, Replay};
use larder::store::Position;
use larder_testkit::{RedisServer, Reply};

#[tokio::test]
async fn a_damaged_position_begins_a_new_incarnation() {
    let bytes = "12345678";
    let damages: [&[&str]; 9] = [
        &["SET", "shop:~bus", "a string"],
        &["RPUSH", "shop:~bus", "a list"],
        &["HSET", "shop:~bus", "other", "field"],
        &["HSET", "shop:~bus", "i", bytes],
        &["HSET", "shop:~bus", "i", "short", "n", "1", "b", "1"],
        &["HSET", "shop:~bus", "i", bytes, "n", "-1", "b", "1"],
        &["HSET", "shop:~bus", "i", bytes, "n", "1e3", "b", "1"],
        &[
            "HSET",
            "shop:~bus",
            "i",
            bytes,
            "n",
            "9007199254740992",
            "b",
            "1",
        ],
        &["HSET", "shop:~bus", "i", bytes, "n", "1", "b", "many"],
    ];
    for damage in damages {
        let server = RedisServer::start().unwrap();
        let bus = bus_at(&server);
        let known = publish(&bus, "m").await;
        command(&server, &["DEL", "shop:~bus"]);
        command(&server, damage);
        let mut listening = ear(&bus).await;
        let now = publish(&bus, "m").await;
        assert_eq!(now.count, 1, "{damage:?}");
        assert_ne!(now.incarnation, u64::from_be_bytes(*b"12345678"));
        assert_eq!(listening.message().await, (Some(now), "m".into()));
        assert_eq!(replay(&bus, known).await, Replay::Lost { position: now });
        assert_eq!(replayed(&bus, Position { count: 0, ..now }).await, ["m"]);
    }
}

#[tokio::test]
async fn a_new_incarnation_never_replays_what_an_old_one_left() {
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    publish(&bus, "old").await;
    command(&server, &["DEL", "shop:~bus"]);
    let start = beat(&bus).await;
    // Longer, so that its entry could stand behind the old one's.
    let position = publish(&bus, "the new message").await;
    let replay = bus.replay(CHANNEL, start, 1).await.unwrap();
    let expected = vec![(position, "the new message".into())];
    assert_eq!(replay, Replay::Complete(expected));
}

#[tokio::test]
async fn a_journal_that_is_none_is_lost_and_made_anew() {
    let damages: [&[&str]; 3] = [
        &["SET", "shop:~journal", "a string"],
        &["XADD", "shop:~journal", "9-9", "m", "from the future"],
        &[
            "XADD",
            "shop:~journal",
            "18446744073709551615-1",
            "m",
            "the last",
        ],
    ];
    for damage in damages {
        let server = RedisServer::start().unwrap();
        let bus = bus_at(&server);
        let start = publish(&bus, "m").await;
        publish(&bus, "m").await;
        command(&server, &["DEL", "shop:~journal"]);
        command(&server, damage);
        let position = beat(&bus).await;
        assert_eq!(replay(&bus, start).await, Replay::Lost { position });
        assert_eq!(publish(&bus, "again").await.count, 3);
        assert_eq!(replayed(&bus, position).await, ["again"], "{damage:?}");
        assert!(matches!(replay(&bus, start).await, Replay::Lost { .. }));
    }
}

#[tokio::test]
async fn a_hole_in_the_journal_is_lost() {
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    let start = beat(&bus).await;
    for _ in 0..5 {
        publish(&bus, "m").await;
    }
    let Reply::List(entries) = command(&server, &["XRANGE", "shop:~journal", "3", "3"]) else {
        panic!("no entries");
    };
    let Reply::List(entry) = &entries[0] else {
        panic!("no entry");
    };
    let Reply::Bytes(id) = &entry[0] else {
        panic!("no id");
    };
    command(&server, &[b"XDEL", &b"shop:~journal"[..], id]);
    let position = beat(&bus).await;
    for count in 0..3 {
        let after = Position { count, ..start };
        assert_eq!(replay(&bus, after).await, Replay::Lost { position });
    }
    let behind = Position { count: 3, ..start };
    assert_eq!(replayed(&bus, behind).await, ["m", "m"]);
}

#[tokio::test]
async fn entries_that_the_bus_did_not_write_are_lost() {
    let long = "m".repeat(70_000);
    for entry in [["other", "field"], ["m", &long]] {
        let server = RedisServer::start().unwrap();
        let bus = bus_at(&server);
        let start = beat(&bus).await;
        command(&server, &["HSET", "shop:~bus", "n", "1"]);
        command(
            &server,
            &["XADD", "shop:~journal", "1-1", entry[0], entry[1]],
        );
        let position = beat(&bus).await;
        assert_eq!(position.count, 1);
        assert_eq!(replay(&bus, start).await, Replay::Lost { position });
    }
}

#[tokio::test]
async fn frames_that_were_forged_are_read_as_what_they_are() {
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    let mut listening = ear(&bus).await;
    let frames: [&[u8]; 8] = [
        b"LRDB\x01",
        b"LRDB\x01M",
        b"LRDB\x01Mtoo short",
        b"LRDB\x01B123456781234567",
        b"LRDB\x01X1234567812345678",
        b"LRDB\x02M1234567812345678",
        b"lrdb\x01M1234567812345678",
        &[b"LRDB\x01U", &[0; 65_537][..]].concat(),
    ];
    for frame in frames {
        command(&server, &[b"PUBLISH", &b"shop:~bus"[..], frame]);
        let shown = String::from_utf8_lossy(&frame[..frame.len().min(30)]);
        assert_eq!(listening.next().await, Notice::Unreadable, "{shown}");
    }
    let forged = b"LRDB\x01M12345678\0\0\0\0\0\0\0\x09whatever";
    command(&server, &[b"PUBLISH", &b"shop:~bus"[..], forged]);
    let position = Position {
        incarnation: u64::from_be_bytes(*b"12345678"),
        count: 9,
    };
    let heard = listening.message().await;
    assert_eq!(heard, (Some(position), "whatever".into()));
}

#[tokio::test]
async fn a_message_of_any_length_is_passed_over() {
    const MIB: usize = 1 << 20;
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    let mut listening = ear(&bus).await;
    let huge = vec![b'x'; 16 * MIB];
    command(&server, &[b"PUBLISH", &b"shop:~bus"[..], &huge]);
    assert_eq!(listening.next().await, Notice::Unreadable);
    let position = publish(&bus, "m").await;
    assert_eq!(listening.message().await, (Some(position), "m".into()));
}

#[tokio::test]
async fn scripts_that_were_flushed_are_loaded_again() {
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    let flush = || command(&server, &["SCRIPT", "FLUSH"]);
    flush();
    let start = beat(&bus).await;
    for count in 1..4 {
        flush();
        let position = publish(&bus, "m").await;
        assert_eq!(
            (position.incarnation, position.count),
            (start.incarnation, count)
        );
        flush();
        assert_eq!(beat(&bus).await, position);
        flush();
        assert_eq!(replayed(&bus, start).await.len() as u64, count);
    }
}

#[tokio::test]
async fn the_journal_is_bounded_in_bytes() {
    const MIB: u64 = 1 << 20;
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    let start = beat(&bus).await;
    let message = vec![b'm'; 60_000];
    let mut most = 0;
    for _ in 0..13 {
        for _ in 0..100 {
            publish(&bus, message.clone()).await;
        }
        let usage = ["MEMORY", "USAGE", "shop:~journal", "SAMPLES", "0"];
        let Reply::Integer(bytes) = command(&server, &usage) else {
            panic!("no figure");
        };
        most = most.max(bytes as u64);
    }
    assert!((60 * MIB..80 * MIB).contains(&most), "{most} bytes at most");
    let end = beat(&bus).await;
    assert_eq!(replay(&bus, start).await, Replay::Lost { position: end });
    let after = Position {
        count: end.count - 300,
        ..end
    };
    assert_eq!(replayed(&bus, after).await.len(), 300);
}

#[tokio::test]
async fn keys_that_nobody_uses_are_gone_after_a_day() {
    let server = RedisServer::start().unwrap();
    let bus = bus_at(&server);
    publish(&bus, "m").await;
    for key in ["shop:~bus", "shop:~journal"] {
        let Reply::Integer(ms) = command(&server, &["PTTL", key]) else {
            panic!("no time");
        };
        assert!((86_000_000..=86_400_000).contains(&ms), "{key}: {ms}");
    }
    command(&server, &["PERSIST", "shop:~bus"]);
    beat(&bus).await;
    let left = command(&server, &["PTTL", "shop:~bus"]);
    assert!(
        matches!(left, Reply::Integer(1..)),
        "a beat renews it: {left:?}"
    );
}
