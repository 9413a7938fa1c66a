//! Every committed change is applied at least once, whoever dies, and none that was rolled back.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Following, PATIENCE, Shop, follow, key, products, tag, tell_all};
use larder::{BoxError, Invalidation};
use larder_sql::{Feed, FeedConfig, Role, Wake};
use larder_testkit::{ChaosProxy, Direction, LinkFault, PostgresServer};
use tokio::sync::mpsc::unbounded_channel;

const EMPTY: &str = "NOT EXISTS (SELECT FROM larder_feed.outbox)";
/// Whether somebody listens, and so is done with what was there at its start.
const LISTENED_TO: &str = "EXISTS (SELECT FROM pg_stat_activity WHERE datname = \
                           current_database() AND application_name = 'larder feed shop' \
                           AND state = 'idle' AND query LIKE '%pg_snapshot_xmin%')";

/// A configuration with which nothing is seen in time but what is notified.
fn woken_only() -> FeedConfig {
    let mut config = products();
    config.follow.poll = Duration::from_secs(3_600);
    config
}

/// One that looks often, and comes back soon after a failure.
fn hasty() -> FeedConfig {
    let mut config = products();
    config.follow.poll = Duration::from_millis(20);
    config.follow.max_delay = Duration::from_millis(50);
    config
}

/// One that soon gives up whoever does not answer or does not get on.
fn impatient() -> FeedConfig {
    let mut config = hasty();
    config.follow.answer_timeout = Duration::from_millis(500);
    config.follow.stalled_after = Duration::from_millis(200);
    config
}

/// Waits until a condition holds in this process.
async fn until(holds: impl Fn() -> bool) {
    let seen = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    soon(seen).await;
}

async fn soon<T>(awaited: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, awaited).await.unwrap()
}

fn insert(id: u32) -> String {
    format!("INSERT INTO product VALUES ({id}, 'cup', 3)")
}

#[tokio::test]
async fn a_commit_wakes_the_follower_and_leaves_the_outbox_empty() {
    let shop = Shop::open().await;
    let feed = shop.feed(woken_only()).await;
    let mut following = Following::start(&feed);
    shop.until(LISTENED_TO).await;
    for id in 1..20 {
        shop.run(&insert(id)).await;
        following.sees([key(id), tag(3)]).await;
    }
    shop.until(EMPTY).await;
    until(|| feed.health().applied == 38).await;
    let health = feed.health();
    assert_eq!(health.role, Role::Following);
    assert_eq!((health.lost_connections, health.problem), (0, None));
    let status = feed.status().await.unwrap();
    assert_eq!((status.backlog, status.oldest), (0, None));
    assert_eq!(status.follower.unwrap().application, "larder feed shop");
    following.crash().await;
    assert_eq!(feed.health().role, Role::Idle);
}

#[tokio::test]
async fn what_is_rolled_back_is_never_applied() {
    let shop = Shop::open().await;
    let feed = shop.feed(woken_only()).await;
    let mut following = Following::start(&feed);
    shop.run(&format!("BEGIN; {}; ROLLBACK", insert(1))).await;
    shop.run(&insert(2)).await;
    following.sees([key(2), tag(3)]).await;
    shop.until(EMPTY).await;
    until(|| feed.health().applied == 2).await;
    assert_eq!(following.so_far(), []);
}

#[tokio::test]
async fn a_transaction_that_commits_late_is_not_skipped() {
    let shop = Shop::open().await;
    let feed = shop.feed(woken_only()).await;
    let mut following = Following::start(&feed);
    for round in 0..10 {
        let (early, late) = (round * 2 + 1, round * 2 + 2);
        let mut slow = shop.pool.begin().await.unwrap();
        // The lower number is taken first and committed last.
        let sql = sqlx::AssertSqlSafe(insert(early));
        sqlx::raw_sql(sql).execute(&mut *slow).await.unwrap();
        shop.run(&insert(late)).await;
        following.sees([key(late)]).await;
        assert!(!following.so_far().contains(&key(early)));
        slow.commit().await.unwrap();
        following.sees([key(early)]).await;
    }
    shop.until(EMPTY).await;
}

#[tokio::test]
async fn what_happened_while_nobody_followed_is_applied_at_the_start() {
    let shop = Shop::open().await;
    let mut config = woken_only();
    config.follow.batch = 7;
    let feed = shop.feed(config).await;
    shop.run("INSERT INTO product SELECT n, 'p', 1 + n % 9 FROM generate_series(1, 100) AS n")
        .await;
    shop.run("UPDATE product SET name = 'q' WHERE id <= 20")
        .await;
    assert_eq!(feed.status().await.unwrap().backlog, 138);
    let mut following = Following::start(&feed);
    let all: Vec<Invalidation> = (1..=100).map(key).chain((1..=9).map(tag)).collect();
    following.sees(all).await;
    shop.until(EMPTY).await;
    until(|| feed.health().applied == 138).await;
}

#[tokio::test]
async fn what_was_handed_over_and_not_acknowledged_comes_again() {
    let shop = Shop::open().await;
    let feed = shop.feed(hasty()).await;
    shop.run(&insert(1)).await;
    let (tell, mut handed_over) = unbounded_channel();
    let first = follow(&feed, move |batch| {
        let told = tell_all(&tell, batch);
        async move {
            drop(told);
            std::future::pending::<Result<(), BoxError>>().await
        }
    });
    assert_eq!(soon(handed_over.recv()).await, Some(key(1)));
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let mut following = Following::start(&feed);
    following.sees([key(1), tag(3)]).await;
    shop.until(EMPTY).await;
}

#[tokio::test]
async fn a_killed_process_leaves_what_it_had_not_acknowledged() {
    const CHILD: &str = "LARDER_TEST_FOLLOWER";
    if let Ok(url) = std::env::var(CHILD) {
        return follow_and_hang(&url).await;
    }
    let shop = Shop::open().await;
    // Nothing takes over by being impatient: the killed process alone gives up its place.
    let feed = shop.feed(hasty()).await;
    shop.run(&insert(1)).await;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_killed_process_leaves_what_it_had_not_acknowledged",
            "--nocapture",
        ])
        .env(CHILD, &shop.url)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert!(lines.any(|line| line.contains("handed over key product:1")));
    let mut following = Following::start(&feed);
    until(|| feed.health().role == Role::StandingBy).await;
    child.kill().unwrap();
    child.wait().unwrap();
    following.sees([key(1), tag(3)]).await;
    shop.until(EMPTY).await;
}

/// The other process: it says what it was given, and is killed before it acknowledged that.
#[expect(clippy::print_stdout, reason = "its parent reads it")]
async fn follow_and_hang(url: &str) {
    let feed = Feed::at(url, hasty()).unwrap();
    feed.follow(|batch| async move {
        println!("\nhanded over {}", batch[0]);
        std::future::pending().await
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_applied_now_is_tried_again_until_it_can() {
    let shop = Shop::open().await;
    let mut config = hasty();
    config.follow.apply_timeout = Duration::from_millis(50);
    let feed = shop.feed(config).await;
    shop.run(&insert(1)).await;
    let (tell, mut applied) = unbounded_channel();
    let mut attempts = 0;
    let following = follow(&feed, move |batch| {
        attempts += 1;
        let (attempt, tell) = (attempts, tell.clone());
        async move {
            match attempt {
                1 => Err("the tier is away".into()),
                2 => std::future::pending().await,
                _ => tell_all(&tell, batch).await,
            }
        }
    });
    assert_eq!(soon(applied.recv()).await, Some(key(1)));
    shop.until(EMPTY).await;
    assert_eq!(feed.health().not_applied, 2);
    following.abort();
}

#[tokio::test]
async fn a_listener_whose_connection_is_cut_fills_the_gap() {
    let shop = Shop::open().await;
    let feed = shop.feed(woken_only()).await;
    let mut following = Following::start(&feed);
    for id in 1..10 {
        shop.run(&insert(id)).await;
        following.sees([key(id)]).await;
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = \
                   current_database() AND application_name = 'larder feed shop'";
        // Both at once, so that the notification has nobody to go to.
        shop.run(&format!("{cut}; {}", insert(id + 100))).await;
        following.sees([key(id + 100)]).await;
    }
    assert!(feed.health().lost_connections >= 9);
    until(|| feed.health().problem.is_none()).await;
}

#[tokio::test]
async fn without_notifications_the_outbox_is_asked() {
    let shop = Shop::open().await;
    let mut config = hasty();
    config.wake = Wake::Poll;
    let feed = shop.feed(config).await;
    let mut following = Following::start(&feed);
    for id in 1..4 {
        shop.run(&insert(id)).await;
        following.sees([key(id), tag(3)]).await;
    }
    let listening = "SELECT count(*) FROM pg_listening_channels()";
    assert_eq!(shop.one(listening).await, "0");
    let body = "SELECT prosrc FROM pg_proc WHERE proname LIKE 'product%'";
    assert!(!shop.one(body).await.contains("notify"));
}

#[tokio::test]
async fn a_transaction_that_is_prepared_is_applied_when_it_is_committed() {
    let args = ["-c", "max_prepared_transactions=2"];
    let server = Arc::new(PostgresServer::start_with(&args).unwrap());
    let shop = Shop::on(server).await;
    let mut config = hasty();
    config.wake = Wake::Poll;
    let feed = shop.feed(config).await;
    let mut following = Following::start(&feed);
    shop.run(&format!("BEGIN; {}; PREPARE TRANSACTION 'slow'", insert(1)))
        .await;
    shop.run(&insert(2)).await;
    following.sees([key(2)]).await;
    shop.run("COMMIT PREPARED 'slow'").await;
    following.sees([key(1)]).await;
}

#[tokio::test]
async fn a_killed_server_that_comes_back_goes_on_where_it_was() {
    let server = Arc::new(PostgresServer::start().unwrap());
    let shop = Shop::on(Arc::clone(&server)).await;
    let feed = shop.feed(hasty()).await;
    let mut following = Following::start(&feed);
    for id in 1..4 {
        shop.run(&insert(id)).await;
        following.sees([key(id)]).await;
        // Committed, and perhaps not applied yet.
        shop.run(&insert(id + 100)).await;
        server.kill_immediate();
        server.restart().unwrap();
        following.sees([key(id + 100)]).await;
        shop.until("true").await;
    }
    shop.until(EMPTY).await;
}

#[tokio::test]
async fn a_server_that_is_down_at_the_start_is_waited_for() {
    let server = Arc::new(PostgresServer::start().unwrap());
    let shop = Shop::on(Arc::clone(&server)).await;
    let feed = shop.feed(hasty()).await;
    shop.run(&insert(1)).await;
    server.kill_immediate();
    let mut following = Following::start(&feed);
    until(|| feed.health().problem.is_some()).await;
    let problem = feed.health().problem.unwrap();
    assert!(
        problem.contains("PostgreSQL cannot be reached"),
        "{problem}"
    );
    server.restart().unwrap();
    following.sees([key(1), tag(3)]).await;
}

#[tokio::test]
async fn a_server_that_stands_still_is_noticed_and_nothing_is_lost() {
    let server = Arc::new(PostgresServer::start().unwrap());
    let shop = Shop::on(Arc::clone(&server)).await;
    let feed = shop.feed(impatient()).await;
    let mut following = Following::start(&feed);
    shop.run(&insert(1)).await;
    following.sees([key(1)]).await;
    shop.run(&insert(2)).await;
    server.stop_signal().unwrap();
    until(|| feed.health().lost_connections > 0).await;
    server.cont_signal().unwrap();
    following.sees([key(2)]).await;
    shop.run(&insert(3)).await;
    following.sees([key(3)]).await;
}

#[tokio::test]
async fn a_feed_that_is_installed_later_is_waited_for() {
    let shop = Shop::open().await;
    let feed = shop.plain_feed(hasty());
    let mut following = Following::start(&feed);
    until(|| feed.health().problem.is_some()).await;
    let expected = "there is no feed in schema `larder_feed` of this database; run `larder feed \
                    install`";
    assert_eq!(feed.health().problem.as_deref(), Some(expected));
    feed.install().await.unwrap();
    shop.run(&insert(1)).await;
    following.sees([key(1)]).await;
    until(|| feed.health().problem.is_none()).await;
    feed.uninstall().await.unwrap();
    feed.install().await.unwrap();
    shop.run(&insert(2)).await;
    following.sees([key(2)]).await;
}

#[tokio::test]
async fn of_several_followers_one_works_and_another_one_takes_over() {
    let shop = Shop::open().await;
    let first_feed = shop.feed(hasty()).await;
    let mut first = Following::start(&first_feed);
    shop.run(&insert(1)).await;
    first.sees([key(1)]).await;
    let second_feed = shop.plain_feed(hasty());
    let mut second = Following::start(&second_feed);
    until(|| second_feed.health().role == Role::StandingBy).await;
    shop.run(&insert(2)).await;
    first.sees([key(2)]).await;
    shop.until(EMPTY).await;
    assert_eq!(second.so_far(), []);
    first.crash().await;
    shop.run(&insert(3)).await;
    second.sees([key(3), tag(3)]).await;
    assert_eq!(second_feed.health().role, Role::Following);
}

#[tokio::test]
async fn a_follower_that_hangs_loses_its_place() {
    let shop = Shop::open().await;
    let feed = shop.feed(impatient()).await;
    let hanging = follow(&feed, |_| std::future::pending::<Result<(), BoxError>>());
    shop.until("EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')")
        .await;
    let other_feed = shop.plain_feed(impatient());
    let mut other = Following::start(&other_feed);
    shop.run(&insert(1)).await;
    other.sees([key(1), tag(3)]).await;
    until(|| other_feed.health().role == Role::Following).await;
    shop.run(&insert(2)).await;
    other.sees([key(2)]).await;
    hanging.abort();
}

#[tokio::test]
async fn a_follower_that_is_cut_off_from_the_network_loses_its_place() {
    let shop = Shop::open().await;
    let proxy = ChaosProxy::start(shop.server.address()).await.unwrap();
    let port = format!(":{}/", shop.server.port());
    let through = shop
        .url
        .replace(&port, &format!(":{}/", proxy.address().port()));
    let feed = shop.feed(impatient()).await;
    let far_feed = Feed::at(&through, impatient()).unwrap();
    let mut far = Following::start(&far_feed);
    shop.run(&insert(1)).await;
    far.sees([key(1)]).await;
    let mut near = Following::start(&feed);
    proxy.inject(Direction::BOTH, LinkFault::Blackhole);
    // The server still sees the connection that holds the lock.
    shop.run(&insert(2)).await;
    near.sees([key(2)]).await;
    shop.run(&insert(3)).await;
    near.sees([key(3)]).await;
    proxy.heal();
    shop.until(EMPTY).await;
}

#[tokio::test]
async fn changes_of_a_newer_release_are_left_for_it() {
    let shop = Shop::open().await;
    let mut config = hasty();
    config.follow.batch = 2;
    let feed = shop.feed(config.clone()).await;
    let newer = "INSERT INTO larder_feed.outbox (what) VALUES ('{everything}'), \
                 ('{tag,NULL}'), ('{}')";
    shop.run(newer).await;
    let mut following = Following::start(&feed);
    shop.run(&insert(1)).await;
    following.sees([key(1), tag(3)]).await;
    let second_feed = shop.plain_feed(config);
    let second = Following::start(&second_feed);
    shop.run(&insert(2)).await;
    following.sees([key(2)]).await;
    let left = "(SELECT count(*) = 3 FROM larder_feed.outbox)";
    shop.until(left).await;
    assert_eq!(feed.health().unreadable, 3, "each is told once");
    second.crash().await;
}

#[tokio::test]
async fn many_writers_and_followers_that_come_and_go_lose_nothing() {
    let shop = Arc::new(Shop::open().await);
    let mut config = impatient();
    config.follow.batch = 5;
    shop.feed(config.clone()).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut seen = Vec::new();
    let writers: Vec<_> = (0..4_u32)
        .map(|writer| {
            let shop = Arc::clone(&shop);
            tokio::spawn(async move {
                for round in 0..50 {
                    let id = 1 + writer * 1_000 + round;
                    let end = if round % 5 == 4 { "ROLLBACK" } else { "COMMIT" };
                    shop.run(&format!("BEGIN; {}; {end}", insert(id))).await;
                }
            })
        })
        .collect();
    let finish = Arc::clone(&done);
    let all_written = tokio::spawn(async move {
        for writer in writers {
            writer.await.unwrap();
        }
        finish.store(true, Ordering::Relaxed);
    });
    while !done.load(Ordering::Relaxed) {
        let mut pair = [(); 2].map(|()| Following::start(&shop.plain_feed(config.clone())));
        let before = seen.len();
        while seen.len() == before && !done.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
            pair.iter_mut()
                .for_each(|following| seen.extend(following.so_far()));
        }
        for mut following in pair {
            following.stop().await;
            seen.extend(following.so_far());
        }
    }
    all_written.await.unwrap();
    let mut last = Following::start(&shop.plain_feed(config));
    shop.until(EMPTY).await;
    seen.extend(last.so_far());
    for writer in 0..4_u32 {
        for round in 0..50 {
            let id = 1 + writer * 1_000 + round;
            let committed = round % 5 != 4;
            assert_eq!(seen.contains(&key(id)), committed, "product {id}");
        }
    }
}
