//! Invalidations that a program writes share the fate of its transaction.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{Following, Shop, key, products};
use larder::Invalidation;
use larder_sql::{Feed, FeedConfig, FeedErrorKind, Wake};

/// One of each kind, with texts that have to be kept apart.
fn all_kinds() -> [Invalidation; 5] {
    let Invalidation::Key { cache, key } = Invalidation::key("price", ["a:b", "é%"]) else {
        panic!("a key is a key");
    };
    [
        Invalidation::key("price", ["a:b", "é%"]),
        Invalidation::Expire { cache, key },
        Invalidation::tag("it's a \"tag\" {,}"),
        Invalidation::pattern("search", r"a\*b*"),
        Invalidation::cache("bestsellers"),
    ]
}

#[tokio::test]
async fn what_commits_is_applied_and_what_is_rolled_back_is_not() {
    let shop = Shop::open().await;
    // Without any table there are no triggers, and this works all the same.
    let feed = shop.feed(FeedConfig::new("shop")).await;
    let mut following = Following::start(&feed);
    let mut tx = shop.pool.begin().await.unwrap();
    feed.invalidate_tag_in(&mut tx, "rolled back")
        .await
        .unwrap();
    tx.rollback().await.unwrap();
    let mut tx = shop.pool.begin().await.unwrap();
    feed.invalidate_in(&mut tx, &all_kinds()).await.unwrap();
    feed.invalidate_in(&mut tx, &[]).await.unwrap();
    assert_eq!(following.so_far(), [], "not before the commit");
    tx.commit().await.unwrap();
    following.sees(all_kinds()).await;
    assert_eq!(following.so_far(), []);
    shop.until("NOT EXISTS (SELECT FROM larder_feed.outbox)")
        .await;
}

#[tokio::test]
async fn a_commit_wakes_the_follower_unless_it_polls() {
    let shop = Shop::open().await;
    for (wake, expected) in [(Wake::Notify, 1), (Wake::Poll, 0)] {
        let mut config = products();
        config.wake = wake;
        let feed = shop.feed(config).await;
        let mut listener = sqlx::postgres::PgListener::connect(&shop.url)
            .await
            .unwrap();
        listener.listen_all(["larder_feed", "end"]).await.unwrap();
        let mut tx = shop.pool.begin().await.unwrap();
        let many: Vec<_> = (0..1_000).map(key).collect();
        feed.invalidate_in(&mut tx, &many).await.unwrap();
        tx.commit().await.unwrap();
        shop.run("NOTIFY \"end\"").await;
        let mut heard = 0;
        while listener.recv().await.unwrap().channel() != "end" {
            heard += 1;
        }
        assert_eq!(heard, expected, "{wake:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_written_leaves_the_transaction_as_it_is() {
    let shop = Shop::open().await;
    let feed = shop.feed(products()).await;
    let mut tx = shop.pool.begin().await.unwrap();
    let wrong = [Invalidation::tag("fine"), Invalidation::tag("a\0b")];
    let error = feed.invalidate_in(&mut tx, &wrong).await.unwrap_err();
    assert_eq!(error.kind(), FeedErrorKind::Config);
    let too_many = vec![Invalidation::tag("x"); 100_001];
    let error = feed.invalidate_in(&mut tx, &too_many).await.unwrap_err();
    assert_eq!(error.kind(), FeedErrorKind::Config);
    feed.invalidate_tag_in(&mut tx, "last").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(shop.outbox().await, ["tag last"]);
}

#[tokio::test]
async fn a_role_has_to_be_named_to_write_and_to_follow() {
    let shop = Shop::open().await;
    let role = format!("app_{}", shop.one("current_database()").await);
    shop.run(&format!("CREATE ROLE {role} LOGIN")).await;
    let url = shop.url.replace("larder@", &format!("{role}@"));
    let theirs = Feed::at(&url, products()).unwrap();
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    shop.feed(products()).await;
    let mut tx = pool.begin().await.unwrap();
    let error = theirs.invalidate_tag_in(&mut tx, "x").await.unwrap_err();
    assert_eq!(error.kind(), FeedErrorKind::Denied, "{error}");
    drop(tx);
    let error = theirs.status().await.unwrap_err();
    assert_eq!(error.kind(), FeedErrorKind::Denied, "{error}");
    let mut config = products();
    config.roles.push(role);
    shop.feed(config).await;
    let mut following = Following::start(&theirs);
    let mut tx = pool.begin().await.unwrap();
    theirs.invalidate_tag_in(&mut tx, "x").await.unwrap();
    tx.commit().await.unwrap();
    following.sees([Invalidation::tag("x")]).await;
    shop.until("NOT EXISTS (SELECT FROM larder_feed.outbox)")
        .await;
    assert_eq!(theirs.status().await.unwrap().backlog, 0);
}
