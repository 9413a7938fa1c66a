//! What cannot be done is said in one sentence, and nothing is half done.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{Shop, products, watching};
use larder_sql::{Feed, FeedConfig, FeedError, FeedErrorKind, Mapping};
use larder_testkit::PostgresServer;

fn tagged(table: &str, template: &str) -> FeedConfig {
    watching(table, [Mapping::Tag(template.into())])
}

/// The kind and the sentence of an error, and what the server said about it.
fn told(error: &FeedError) -> (FeedErrorKind, String) {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    assert!(!text.contains('\n'), "{text}");
    (error.kind(), text)
}

/// Whether anything of a feed is in the database.
async fn is_clean(shop: &Shop) -> bool {
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'larder_feed'";
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'larder%'";
    shop.one(schemas).await == "0" && shop.one(triggers).await == "0"
}

#[tokio::test]
async fn tables_and_columns_that_are_not_there_or_cannot_be_watched() {
    let shop = Shop::open().await;
    shop.run(
        "CREATE VIEW cups AS SELECT * FROM product; CREATE SEQUENCE numbers; \
         CREATE TABLE odd (a int[], j jsonb, b bytea, m money, ok int)",
    )
    .await;
    let plain = "which is not written as one plain text";
    for (config, kind, sentence) in [
        (
            tagged("shop.product", "a"),
            FeedErrorKind::Missing,
            "there is no table shop.product in this database".to_owned(),
        ),
        (
            tagged("Product", "a"),
            FeedErrorKind::Missing,
            "there is no table public.Product in this database".into(),
        ),
        (
            tagged("product", "category:{category}"),
            FeedErrorKind::Missing,
            "table public.product has no column `category`; it has category_id, id, name".into(),
        ),
        (
            tagged("cups", "a"),
            FeedErrorKind::Config,
            "public.cups is a view; name the tables below it".into(),
        ),
        (
            tagged("numbers", "a"),
            FeedErrorKind::Config,
            "public.numbers is no table".into(),
        ),
        (
            tagged("odd", "{a}"),
            FeedErrorKind::Config,
            format!("column `a` of table public.odd is of type integer[], {plain}"),
        ),
        (
            tagged("odd", "{j}"),
            FeedErrorKind::Config,
            format!("column `j` of table public.odd is of type jsonb, {plain}"),
        ),
        (
            tagged("odd", "{b}"),
            FeedErrorKind::Config,
            format!("column `b` of table public.odd is of type bytea, {plain}"),
        ),
        (
            tagged("odd", "{m}"),
            FeedErrorKind::Config,
            format!("column `m` of table public.odd is of type money, {plain}"),
        ),
    ] {
        let error = shop.plain_feed(config).install().await.unwrap_err();
        let (found, text) = told(&error);
        assert!(
            text.starts_with(&sentence) && found == kind,
            "{found:?} {text}"
        );
    }
    let mut config = products();
    config.roles.push("nobody here".into());
    let error = shop.plain_feed(config).install().await.unwrap_err();
    let sentence = "there is no role `nobody here`; create it, or take it out of `roles`";
    assert_eq!(told(&error), (FeedErrorKind::Missing, sentence.into()));
    assert!(is_clean(&shop).await);
}

#[tokio::test]
async fn a_role_without_the_right_to_create_leaves_nothing() {
    let shop = Shop::open().await;
    let database = shop.one("current_database()").await;
    let role = format!("guest_{database}");
    shop.run(&format!(
        "CREATE ROLE {role} LOGIN; GRANT SELECT ON product TO {role}"
    ))
    .await;
    let url = shop.url.replace("larder@", &format!("{role}@"));
    let feed = Feed::at(&url, products()).unwrap();
    let expected = |doing: &str, said: &str| {
        format!(
            "cannot {doing}: the role of this connection may not; nothing was changed: permission \
             denied for {said}"
        )
    };
    let error = feed.install().await.unwrap_err();
    let said = format!("database {database}");
    let sentence = expected("create the schema of the feed", &said);
    assert_eq!(told(&error), (FeedErrorKind::Denied, sentence));
    // With a schema of its own it gets as far as the table.
    shop.run(&format!("GRANT CREATE ON DATABASE {database} TO {role}"))
        .await;
    let error = feed.install().await.unwrap_err();
    let sentence = expected("put a trigger on table public.product", "table product");
    assert_eq!(told(&error), (FeedErrorKind::Denied, sentence));
    assert!(is_clean(&shop).await);
    // With that it can install, although it owns none of the tables, and also remove.
    shop.run(&format!("GRANT TRIGGER ON product TO {role}"))
        .await;
    feed.install().await.unwrap();
    assert!(feed.plan().await.unwrap().is_empty());
    let changes = shop
        .changes_of("INSERT INTO product VALUES (7, 'cup', 3)")
        .await;
    assert_eq!(changes, ["key product 7", "tag category:3"]);
    feed.uninstall().await.unwrap();
    assert!(is_clean(&shop).await);
    // What it may not read it cannot name the tags of.
    shop.run(&format!("REVOKE SELECT ON product FROM {role}"))
        .await;
    let error = feed.install().await.unwrap_err();
    let sentence = "the role of this connection may not read public.product; grant it SELECT on it";
    assert_eq!(told(&error), (FeedErrorKind::Denied, sentence.into()));
    assert!(is_clean(&shop).await);
}

#[tokio::test]
async fn something_else_in_the_way_is_left_as_it_is() {
    let shop = Shop::open().await;
    shop.run("CREATE SCHEMA larder_feed; CREATE TABLE larder_feed.outbox (theirs int)")
        .await;
    let feed = shop.plain_feed(products());
    let sentence = "schema `larder_feed` is not a feed's: it holds relation outbox; give the feed \
                    another `schema`";
    let expected = (FeedErrorKind::InTheWay, sentence.to_owned());
    assert_eq!(told(&feed.install().await.unwrap_err()), expected);
    assert_eq!(told(&feed.uninstall().await.unwrap_err()), expected);
    shop.run("DROP SCHEMA larder_feed CASCADE").await;

    shop.run(
        "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER larder_feed_update AFTER UPDATE ON product EXECUTE FUNCTION theirs()",
    )
    .await;
    let sentence = "table public.product has a trigger `larder_feed_update` that is not the feed's \
                    (it calls public.theirs); rename it, or give the feed another `schema`";
    let error = feed.install().await.unwrap_err();
    assert_eq!(told(&error), (FeedErrorKind::InTheWay, sentence.into()));
    shop.run("DROP TRIGGER larder_feed_update ON product").await;
    assert!(is_clean(&shop).await);

    feed.install().await.unwrap();
    let mut config = products();
    config.namespace = "blog".into();
    let other = shop.plain_feed(config);
    let sentence = "the feed in schema `larder_feed` is that of namespace `shop`; give the one of \
                    `blog` another `schema`";
    for refused in [other.install().await, other.uninstall().await] {
        let expected = (FeedErrorKind::InTheWay, sentence.to_owned());
        assert_eq!(told(&refused.unwrap_err()), expected);
    }
    shop.run("CREATE VIEW watcher AS SELECT count(*) FROM larder_feed.outbox")
        .await;
    let error = feed.uninstall().await.unwrap_err();
    let (kind, text) = told(&error);
    assert_eq!(kind, FeedErrorKind::InTheWay);
    let start = "cannot remove the table `outbox` of the feed; nothing was changed: ";
    assert!(
        text.starts_with(start) && text.contains("other objects depend on it"),
        "{text}"
    );
    assert!(
        feed.plan().await.unwrap().is_empty(),
        "all of it is still there"
    );
    shop.run("UPDATE larder_feed.installed SET format = 99")
        .await;
    let (kind, text) = told(&feed.plan().await.unwrap_err());
    assert_eq!(kind, FeedErrorKind::Unsupported);
    assert!(text.contains("was installed by a newer larder"), "{text}");
}

#[tokio::test]
async fn a_busy_table_is_given_up_and_not_queued_for() {
    let shop = Shop::open().await;
    let feed = shop.plain_feed(products());
    let mut busy = shop.pool.begin().await.unwrap();
    let write = "INSERT INTO product VALUES (1, 'cup', 3)";
    sqlx::query(write).execute(&mut *busy).await.unwrap();
    let (kind, text) = told(&feed.install().await.unwrap_err());
    assert_eq!(kind, FeedErrorKind::Busy);
    let start = "cannot put a trigger on table public.product: somebody else holds what it needs; \
                 try again; nothing was changed: ";
    assert!(text.starts_with(start), "{text}");
    busy.commit().await.unwrap();
    assert!(is_clean(&shop).await);
    feed.install().await.unwrap();
}

#[tokio::test]
async fn without_a_feed_there_is_a_sentence_that_says_how_to_get_one() {
    let shop = Shop::open().await;
    let feed = shop.plain_feed(products());
    let expected = (
        FeedErrorKind::NotInstalled,
        "there is no feed in schema `larder_feed` of this database; run `larder feed install`",
    );
    let (kind, text) = told(&feed.status().await.unwrap_err());
    assert_eq!((kind, text.as_str()), expected);
    let mut tx = shop.pool.begin().await.unwrap();
    let error = feed.invalidate_tag_in(&mut tx, "x").await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), expected);
}

#[tokio::test]
async fn a_server_that_is_away_or_refuses_us_is_told_without_the_password() {
    let server = PostgresServer::start().unwrap();
    let url = server.url();
    let secret = url.replace("larder@", "larder:hunter2@");
    let wrong_database = secret.replace("/postgres", "/no_such_shop");
    let of = |url: &str| Feed::at(url, products()).unwrap();
    let (kind, text) = told(&of(&wrong_database).plan().await.unwrap_err());
    let place = format!("127.0.0.1:{}", server.port());
    let expected =
        format!("cannot connect to {place}/no_such_shop: database \"no_such_shop\" does not exist");
    assert_eq!((kind, text), (FeedErrorKind::Missing, expected));
    server.kill_immediate();
    for error in [
        of(&secret).plan().await.map(drop).unwrap_err(),
        of(&secret).status().await.map(drop).unwrap_err(),
    ] {
        assert!(!format!("{error:?}").contains("hunter2"));
        let (kind, text) = told(&error);
        assert_eq!(kind, FeedErrorKind::Unavailable);
        let start = format!("cannot connect to {place}/postgres: PostgreSQL cannot be reached");
        assert!(
            text.starts_with(&start) && !text.contains("hunter2"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up() {
    let server = PostgresServer::start().unwrap();
    let mut config = products();
    config.follow.answer_timeout = std::time::Duration::from_millis(200);
    let feed = Feed::at(&server.url(), config).unwrap();
    server.stop_signal().unwrap();
    let (kind, text) = told(&feed.plan().await.unwrap_err());
    assert_eq!(kind, FeedErrorKind::Unavailable);
    assert!(text.contains("gave no answer within 200 ms"), "{text}");
}
