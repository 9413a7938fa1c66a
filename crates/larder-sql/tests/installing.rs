//! A feed is installed, changed and removed as a whole, and nothing is left behind.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{Shop, products, watching};
use larder_sql::{FeedConfig, FeedErrorKind, Mapping, TableConfig, Wake};

/// Everything in the catalogs that a feed could leave behind, with what the system counts.
const CATALOG: &str = "SELECT string_agg(line, E'\\n' ORDER BY line) FROM ( \
    SELECT 'schema ' || nspname || ' ' || coalesce(nspacl::text, '') FROM pg_namespace \
     WHERE nspname NOT LIKE 'pg_toast%' AND nspname NOT LIKE 'pg_temp%' \
    UNION ALL SELECT 'class ' || relnamespace::regnamespace || '.' || relname || ' ' || relkind::text \
           || ' ' || coalesce(relacl::text, '') FROM pg_class \
     WHERE relnamespace::regnamespace::text NOT LIKE 'pg_toast%' \
    UNION ALL SELECT 'proc ' || pronamespace::regnamespace || '.' || proname FROM pg_proc \
    UNION ALL SELECT 'trigger ' || tgname || ' ' || tgrelid::regclass FROM pg_trigger \
    UNION ALL SELECT 'types ' || count(*) FROM pg_type \
    UNION ALL SELECT 'columns ' || count(*) FROM pg_attribute \
    UNION ALL SELECT 'comments ' || count(*) FROM pg_description \
    UNION ALL SELECT 'constraints ' || count(*) FROM pg_constraint \
    UNION ALL SELECT 'defaults ' || count(*) FROM pg_attrdef \
    UNION ALL SELECT 'dependencies ' || count(*) FROM pg_depend \
    UNION ALL SELECT 'shared dependencies ' || count(*) FROM pg_shdepend \
     WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) \
) AS all_of_it (line)";

#[tokio::test]
async fn uninstalling_leaves_nothing_behind() {
    let shop = Shop::open().await;
    let role = format!("app_{}", shop.one("current_database()").await);
    shop.run(&format!(
        "CREATE ROLE {role}; CREATE TABLE sale (id int) PARTITION BY HASH (id); \
         CREATE TABLE sale_0 PARTITION OF sale FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
    ))
    .await;
    let before = shop.one(CATALOG).await;
    let mut config = products();
    config.roles.push(role);
    let sales = [Mapping::Cache("sales".into())];
    config.table.push(TableConfig::new("sale", sales));
    let feed = shop.feed(config).await;
    shop.run("INSERT INTO product VALUES (1, 'cup', 3); INSERT INTO sale VALUES (1)")
        .await;
    assert_ne!(shop.one(CATALOG).await, before);
    feed.uninstall().await.unwrap();
    assert_eq!(shop.one(CATALOG).await, before);
    shop.run("UPDATE product SET name = 'pot'; TRUNCATE product, sale")
        .await;
    let again = feed.plan_removal().await.unwrap();
    assert!(again.is_empty());
    assert!(
        again
            .to_string()
            .contains("is not installed; there is nothing to do"),
        "{again}"
    );
}

#[tokio::test]
async fn a_schema_that_was_there_stays() {
    let shop = Shop::open().await;
    shop.run("CREATE SCHEMA larder_feed").await;
    let before = shop.one(CATALOG).await;
    let feed = shop.feed(products()).await;
    feed.uninstall().await.unwrap();
    assert_eq!(shop.one(CATALOG).await, before);
}

#[tokio::test]
async fn installing_again_finds_nothing_to_do() {
    let shop = Shop::open().await;
    let feed = shop.plain_feed(products());
    let plan = feed.plan().await.unwrap();
    assert!(!plan.is_empty());
    assert_eq!(
        shop.one("to_regnamespace('larder_feed')").await,
        "",
        "a plan changes nothing"
    );
    plan.run().await.unwrap();
    let installed = shop.one(CATALOG).await;
    let again = feed.plan().await.unwrap();
    assert!(again.is_empty(), "{again}");
    let text = "-- The feed of `shop` in schema `larder_feed` is installed as configured; there is \
                nothing to do.\n";
    assert_eq!(again.to_string(), text);
    feed.install().await.unwrap();
    assert_eq!(shop.one(CATALOG).await, installed);
}

#[tokio::test]
async fn what_a_plan_prints_is_what_would_have_run() {
    let shop = Shop::open().await;
    let mut config = products();
    config.roles.push("larder".into());
    let feed = shop.plain_feed(config);
    let script = feed.plan().await.unwrap().to_string();
    shop.server.exec(&shop.url, &script).unwrap();
    assert!(feed.plan().await.unwrap().is_empty());
    let changes = shop
        .changes_of("INSERT INTO product VALUES (7, 'cup', 3)")
        .await;
    assert_eq!(changes, ["key product 7", "tag category:3"]);
    let script = feed.plan_removal().await.unwrap().to_string();
    shop.server.exec(&shop.url, &script).unwrap();
    assert!(feed.plan_removal().await.unwrap().is_empty());
}

#[tokio::test]
async fn only_what_changed_is_changed_and_what_waits_is_kept() {
    let shop = Shop::open().await;
    shop.feed(products()).await;
    shop.run("INSERT INTO product VALUES (7, 'cup', 3)").await;
    let waiting = shop.outbox().await;
    let mut config = products();
    config.table[0]
        .invalidate
        .push(Mapping::Cache("bestsellers".into()));
    let category = [Mapping::Tag("category:{id}".into())];
    config.table.push(TableConfig::new("category", category));
    let feed = shop.plain_feed(config.clone());
    let plan = feed.plan().await.unwrap().to_string();
    assert_eq!(
        plan.matches("CREATE OR REPLACE FUNCTION").count(),
        2,
        "{plan}"
    );
    assert_eq!(
        plan.matches("CREATE TRIGGER").count(),
        4,
        "those of the new table:\n{plan}"
    );
    assert!(
        !plan.contains("CREATE TABLE") && !plan.contains("DROP"),
        "{plan}"
    );
    feed.install().await.unwrap();
    assert_eq!(shop.outbox().await, waiting);
    let changes = shop
        .changes_of("UPDATE category SET name = 'x' WHERE id = 4")
        .await;
    assert_eq!(changes, ["tag category:4"]);
    // Back to one table: the triggers of the other go with their function.
    config.table.remove(0);
    config.wake = Wake::Poll;
    let feed = shop.feed(config).await;
    let changes = shop.changes_of("UPDATE product SET name = 'x'").await;
    assert_eq!(changes, [""; 0]);
    assert!(feed.plan().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_taken_away_by_hand_is_put_back() {
    let shop = Shop::open().await;
    let feed = shop.feed(products()).await;
    let insert = "INSERT INTO product VALUES ((SELECT count(*) FROM product), 'cup', 3)";
    for damage in [
        "ALTER TABLE product DISABLE TRIGGER larder_feed_insert",
        "DROP TRIGGER larder_feed_insert ON product",
        "CREATE OR REPLACE FUNCTION larder_feed.product_da48d55598c3b05d() RETURNS trigger \
         LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "DROP FUNCTION larder_feed.product_da48d55598c3b05d() CASCADE",
    ] {
        shop.run(damage).await;
        assert_eq!(shop.changes_of(insert).await, [""; 0], "{damage}");
        assert!(!feed.plan().await.unwrap().is_empty(), "{damage}");
        feed.install().await.unwrap();
        assert_eq!(shop.changes_of(insert).await.len(), 2, "{damage}");
    }
}

#[tokio::test]
async fn a_renamed_table_is_followed_under_its_new_name() {
    let shop = Shop::open().await;
    shop.feed(products()).await;
    shop.run("ALTER TABLE product RENAME TO article").await;
    let missing = shop.plain_feed(products()).plan().await.unwrap_err();
    assert_eq!(missing.kind(), FeedErrorKind::Missing);
    let feed = shop
        .feed(watching("article", [Mapping::Key("article:{id}".into())]))
        .await;
    let changes = shop
        .changes_of("INSERT INTO article VALUES (7, 'cup', 3)")
        .await;
    assert_eq!(changes, ["key article 7"]);
    assert!(feed.plan().await.unwrap().is_empty());
    assert_eq!(
        shop.one("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal")
            .await,
        "4"
    );
}

#[tokio::test]
async fn roles_get_what_they_need_and_lose_it_again() {
    let shop = Shop::open().await;
    let database = shop.one("current_database()").await;
    let (one, other) = (format!("one_{database}"), format!("other_{database}"));
    shop.run(&format!("CREATE ROLE {one}; CREATE ROLE {other}"))
        .await;
    let with = |role: &String| {
        let mut config = products();
        config.roles.push(role.clone());
        config
    };
    let may = |role: &str| {
        format!(
            "has_schema_privilege('{role}', 'larder_feed', 'USAGE') \
             AND has_table_privilege('{role}', 'larder_feed.outbox', 'SELECT, INSERT') \
             AND has_table_privilege('{role}', 'larder_feed.outbox', 'DELETE') \
             AND has_table_privilege('{role}', 'larder_feed.installed', 'SELECT')"
        )
    };
    shop.feed(with(&one)).await;
    assert_eq!(shop.one(&may(&one)).await, "true");
    assert_eq!(shop.one(&may(&other)).await, "false");
    let feed = shop.feed(with(&other)).await;
    assert_eq!(shop.one(&may(&one)).await, "false");
    assert_eq!(shop.one(&may(&other)).await, "true");
    assert!(feed.plan().await.unwrap().is_empty());
}

#[tokio::test]
async fn two_feeds_in_one_database_do_not_meet() {
    let shop = Shop::open().await;
    let feed = shop.feed(products()).await;
    let mut config = FeedConfig::new("blog");
    config.schema = "Blog \"feed\"".into();
    let mapping = [Mapping::Cache("blog".into())];
    config.table.push(TableConfig::new("product", mapping));
    let other = shop.feed(config).await;
    shop.run("INSERT INTO product VALUES (7, 'cup', 3)").await;
    assert_eq!(shop.outbox().await, ["key product 7", "tag category:3"]);
    let theirs = r#"SELECT array_to_string(what, ' ') FROM "Blog ""feed""".outbox"#;
    assert_eq!(shop.one(theirs).await, "cache blog");
    assert!(feed.plan().await.unwrap().is_empty());
    other.uninstall().await.unwrap();
    assert!(feed.plan().await.unwrap().is_empty());
}

#[tokio::test]
async fn two_who_install_at_once_install_once() {
    let shop = Shop::open().await;
    let feeds = [(); 4].map(|()| shop.plain_feed(products()));
    let mut installing = tokio::task::JoinSet::new();
    for feed in feeds.clone() {
        installing.spawn(async move { feed.install().await });
    }
    for outcome in installing.join_all().await {
        // Who planned before another one was done is told so.
        if let Err(error) = outcome {
            assert_eq!(error.kind(), FeedErrorKind::Busy, "{error}");
        }
    }
    assert!(feeds[0].plan().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_plan_that_is_out_of_date_does_nothing() {
    let shop = Shop::open().await;
    let feed = shop.plain_feed(products());
    let plan = feed.plan().await.unwrap();
    shop.run("ALTER TABLE product INHERIT category").await;
    let error = plan.run().await.unwrap_err();
    let expected = "the database changed since this was planned; nothing was done, plan again";
    assert_eq!(
        (error.kind(), error.to_string()),
        (FeedErrorKind::Busy, expected.into())
    );
    assert_eq!(shop.one("to_regnamespace('larder_feed')").await, "");
}
