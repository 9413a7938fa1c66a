//! Another program wrote there: too long, another type, or bytes that are no envelope.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use larder::store::{Filled, LeaseToken, Leased, Store};
use larder_testkit::{RedisServer, Reply};

#[tokio::test]
async fn fifty_megabytes_are_cut_at_the_server() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, huge) = (key("huge"), vec![b'x'; 50 << 20]);
    server.command(&[b"SET", &*name, &huge]).unwrap();
    drop(huge);
    let before = info(&server, "stats", "total_net_output_bytes");
    let found = get(&store, &name).await.unwrap().unwrap();
    assert_eq!(found.len(), LIMIT + 1);
    let leased = lease(&store, &name, LeaseToken::random()).await.unwrap();
    assert_eq!(leased, acquired());
    let sent = info(&server, "stats", "total_net_output_bytes") - before;
    assert!(sent < 3 * LIMIT as u64, "{sent} bytes were sent");
    assert_eq!(
        server.command(&[b"STRLEN", &*name]).unwrap(),
        Reply::Integer(64)
    );
}

#[tokio::test]
async fn a_cut_envelope_shows_that_it_was_cut() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let name = key("long");
    for (value, is_fresh) in [
        (fresh(vec![1; LIMIT]), true),
        (stale(vec![1; LIMIT]), false),
    ] {
        set(&store, &name, &value).await.unwrap();
        let found = match lease(&store, &name, LeaseToken::random()).await.unwrap() {
            Leased::Value(value) if is_fresh => value,
            Leased::Acquired { stale, .. } if !is_fresh => stale.unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(found.len(), LIMIT + 1);
    }
}

#[tokio::test]
async fn another_type_reads_as_nothing_and_spoils_no_batch() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (good, value) = (key("good"), fresh("v"));
    set(&store, &good, &value).await.unwrap();
    let wrong: Vec<_> = [
        ["RPUSH", "a list", "x"].as_slice(),
        &["SADD", "a set", "x"],
        &["HSET", "a hash", "f", "x"],
        &["ZADD", "a sorted set", "1", "x"],
        &["XADD", "a stream", "*", "f", "x"],
    ]
    .into_iter()
    .map(|command| {
        server.command(command).unwrap();
        key(command[1])
    })
    .collect();
    let mut batch = wrong.clone();
    batch.insert(2, good.clone());
    let mut expected = vec![None; wrong.len()];
    expected.insert(2, Some(value.clone()));
    assert_eq!(store.get(&batch, LIMIT).await.unwrap(), expected);

    for name in &wrong {
        let token = LeaseToken::random();
        assert_eq!(
            fill(&store, name, token, &value).await.unwrap(),
            Filled::Refused
        );
        release(&store, name, token).await.unwrap();
        expire(&store, name).await.unwrap();
        assert!(matches!(server.command(&[b"TYPE", &**name]).unwrap(),
            Reply::Status(kind) if kind != "string"));
        let leased = lease(&store, name, token).await.unwrap();
        assert_eq!(leased, acquired());
        assert_eq!(fill(&store, name, token, &value).await.unwrap(), stored());
        assert_eq!(get(&store, name).await.unwrap(), Some(value.clone()));
    }
}

#[tokio::test]
async fn set_and_delete_do_not_care_what_was_there() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, value) = (key("a list"), fresh("v"));
    server.command(&["RPUSH", "a list", "x"]).unwrap();
    set(&store, &name, &value).await.unwrap();
    assert_eq!(get(&store, &name).await.unwrap(), Some(value));
    delete(&store, &name).await.unwrap();
    server.command(&["RPUSH", "a list", "x"]).unwrap();
    delete(&store, &name).await.unwrap();
    assert_eq!(
        server.command(&["EXISTS", "a list"]).unwrap(),
        Reply::Integer(0)
    );
}

#[tokio::test]
async fn a_counter_of_another_type_is_replaced_and_an_invalidation_gets_through() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, counter, record) = (key("k"), key("counter"), key("record"));
    let damages: [&[&[u8]]; 8] = [
        &[b"SET", b"counter", b"x"],
        &[b"RPUSH", b"counter", b"x"],
        &[b"ZADD", b"counter", b"1", b"x"],
        &[b"HSET", b"counter", b"i", b"short", b"n", b"1"],
        &[b"HSET", b"counter", b"i", b"12345678", b"n", b"-1"],
        &[b"HSET", b"counter", b"i", b"12345678", b"n", b"x"],
        &[
            b"HSET",
            b"counter",
            b"i",
            b"12345678",
            b"n",
            b"9223372036854775807",
        ],
        &[b"HSET", b"counter", b"n", b"5"],
    ];
    for damage in damages {
        let token = LeaseToken::random();
        let since = lease_at(&store, &name, token, &counter).await.unwrap();
        said(&server, &[b"DEL", b"counter"]);
        said(&server, damage);
        let tags = tag(&counter, &record, Some(since));
        let filled = fill_tagged(&store, &name, token, tags, 7).await.unwrap();
        assert_eq!(filled, None, "{damage:?}");
        release(&store, &name, token).await.unwrap();

        said(&server, &[b"DEL", b"counter"]);
        said(&server, damage);
        let anew = position(&store, &counter).await.unwrap();
        assert_ne!(anew.incarnation, since.incarnation, "{damage:?}");
        assert_eq!(
            anew,
            position(&store, &counter).await.unwrap(),
            "{damage:?}"
        );

        let since = lease_at(&store, &name, token, &counter).await.unwrap();
        said(&server, &[b"DEL", b"counter"]);
        said(&server, damage);
        set(&store, &key("gone"), &fresh("v")).await.unwrap();
        invalidate(&store, &key("gone"), &counter).await.unwrap();
        assert_eq!(get(&store, &key("gone")).await.unwrap(), None, "{damage:?}");
        let tags = tag(&counter, &record, Some(since));
        let filled = fill_tagged(&store, &name, token, tags, 7).await.unwrap();
        assert_eq!(filled, None, "{damage:?}");
        delete(&store, &name).await.unwrap();
    }
}

#[tokio::test]
async fn a_record_of_another_type_is_missing_and_is_replaced() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, counter, record) = (key("k"), key("counter"), key("record"));
    for damage in [
        ["RPUSH", "record", "x"].as_slice(),
        &["HSET", "record", "f", "x"],
        &["SET", "record", ""],
        &["SET", "record", "twenty-three bytes long"],
    ] {
        let token = LeaseToken::random();
        let since = lease_at(&store, &name, token, &counter).await.unwrap();
        invalidate(&store, &record, &counter).await.unwrap();
        server.command(damage).unwrap();
        assert!(
            get(&store, &record)
                .await
                .unwrap()
                .is_none_or(|r| r.len() != 24),
            "{damage:?}"
        );
        let tags = |since| tag(&counter, &record, since);
        let late = fill_tagged(&store, &name, token, tags(Some(since)), 7).await;
        assert_eq!(late.unwrap(), None, "{damage:?}");
        assert_eq!(get(&store, &record).await.unwrap().unwrap().len(), 24);
        server.command(&["DEL", "record"]).unwrap();
        server.command(damage).unwrap();
        let written = set_tagged(&store, &name, HOUR, tags(None), 8).await;
        assert_eq!(written.unwrap(), Some(8), "{damage:?}");
    }
}

#[tokio::test]
async fn a_set_of_another_type_is_replaced_and_foreign_members_are_left_out() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    server.command(&["RPUSH", "set", "x"]).unwrap();
    assert_eq!(store.enlist(&key("set"), 7, HOUR).await.unwrap(), [7]);
    for member in ["x", "-1", "4294967296", "1.5", ""] {
        let forever = ["ZADD", "set", "inf", member];
        assert_eq!(server.command(&forever).unwrap(), Reply::Integer(1));
    }
    let mut members = store.enlist(&key("set"), 8, HOUR).await.unwrap();
    members.sort_unstable();
    assert_eq!(members, [7, 8]);
}

#[tokio::test]
async fn an_entry_of_another_type_is_leased_filled_and_written_with_tags() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    let (name, counter, record) = (key("k"), key("counter"), key("record"));
    server.command(&["RPUSH", "k", "x"]).unwrap();
    let token = LeaseToken::random();
    let since = lease_at(&store, &name, token, &counter).await.unwrap();
    let tags = tag(&counter, &record, Some(since));
    let filled = fill_tagged(&store, &name, token, tags.clone(), 7).await;
    assert_eq!(filled.unwrap(), Some(7));
    server.command(&["DEL", "k"]).unwrap();
    server.command(&["RPUSH", "k", "x"]).unwrap();
    assert_eq!(
        fill_tagged(&store, &name, token, tags.clone(), 7)
            .await
            .unwrap(),
        None
    );
    let written = set_tagged(&store, &name, HOUR, tags, 7).await;
    assert_eq!(written.unwrap(), Some(7));
}

#[tokio::test]
async fn an_empty_string_is_no_value() {
    let server = RedisServer::start().unwrap();
    let store = store_at(&server);
    server.command(&["SET", "empty", ""]).unwrap();
    assert_eq!(get(&store, &key("empty")).await.unwrap(), None);
}
