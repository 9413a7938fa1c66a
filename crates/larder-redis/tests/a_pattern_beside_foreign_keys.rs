//! A pattern in a database that is full of other people's keys. `LARDER_FOREIGN_KEYS` says of how
//! many; 100,000 unless told otherwise.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod nodes;

use larder_testkit::{RedisServer, Reply};
use nodes::*;

const KEYS: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_ours_that_match_go_and_nobody_asks_for_all_keys() {
    let foreign = std::env::var("LARDER_FOREIGN_KEYS").unwrap_or_else(|_| "100000".to_owned());
    let server = RedisServer::start_with(&["--enable-debug-command", "yes"]).unwrap();
    let filled = server.command(&["DEBUG", "POPULATE", &foreign, "other"]);
    assert!(!matches!(filled, Ok(Reply::Error(_))), "{filled:?}");
    for key in [
        b"\xff\xfe".as_slice(),
        b"t:rows@1;k",
        b"\x80t:rows@1:k1",
        b"T:rows@1:k1",
    ] {
        server.command(&[b"SET", key, b"foreign"]).unwrap();
    }
    // Under our prefix, and no key that we could have written.
    server
        .command(&[b"SET".as_slice(), b"t:rows@1:\xff\xfe", b"x"])
        .unwrap();
    let database = Database::open().await;
    let nodes = Node::three(&database, &Place::of(&server)).await;
    for node in &nodes {
        for at in 0..KEYS {
            node.load(&format!("k{at}")).await;
            node.load(&format!("x{at}")).await;
        }
        node.until_well().await;
    }
    for at in 0..KEYS {
        database.write(&format!("k{at}"));
        database.write(&format!("x{at}"));
    }
    let size = server.command(&["DBSIZE"]).unwrap();
    let token = token(nodes[0].tell("pattern k*").await);
    let Reply::Integer(before) = size else {
        panic!("{size:?}");
    };
    let after = server.command(&["DBSIZE"]).unwrap();
    assert_eq!(after, Reply::Integer(before - KEYS as i64));
    for node in &nodes {
        for at in 0..KEYS {
            let key = format!("k{at}");
            assert_eq!(node.load_after(&token, &key).await, 1, "{key}");
            assert_eq!(node.load(&format!("x{at}")).await, 0, "it did not match");
        }
    }
    let Ok(Reply::Bytes(stats)) = server.command(&["INFO", "commandstats"]) else {
        panic!("INFO answers with text");
    };
    let stats = String::from_utf8(stats).unwrap();
    assert!(stats.contains("cmdstat_scan:") && !stats.contains("cmdstat_keys:"));
}
