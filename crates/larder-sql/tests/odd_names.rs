//! Names and values with quotes, dots and SQL in them are names and values.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{Following, Shop, watching};
use larder::Invalidation;
use larder_sql::{FeedConfig, FeedErrorKind, Mapping, TableConfig};
use larder_testkit::seeds;

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Names that would do harm if they were taken for SQL, or that are hard to spell.
const NAMES: [&str; 12] = [
    "Mixed Case",
    "quo\"te",
    "apos'trophe",
    "dot.ted",
    "semi; DROP TABLE victim; --",
    "$larder$; DROP TABLE victim; $larder$",
    "$$",
    "back\\slash\\'; DROP TABLE victim; --",
    "größe 日本 🥕",
    "new\nline -- x",
    "select",
    "found",
];

#[tokio::test]
async fn schemas_tables_and_columns_of_any_name_are_watched() {
    let shop = Shop::open().await;
    shop.run("CREATE TABLE victim ()").await;
    let mut config = FeedConfig::new("shop");
    for (number, name) in NAMES.iter().enumerate() {
        let (schema, table) = (quoted(name), quoted(&format!("t {name}")));
        let column = quoted(name);
        shop.run(&format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {schema}.{table} ({column} text, n int)"
        ))
        .await;
        let mappings = [
            Mapping::Tag(format!("{number}'{name}:{{{name}}}")),
            Mapping::Key(format!("cache:{{{name}}}:{{n}}")),
        ];
        let name = format!("{schema}.{table}");
        config.table.push(TableConfig::new(name, mappings));
    }
    let feed = shop.feed(config).await;
    assert!(feed.plan().await.unwrap().is_empty());
    for (number, name) in NAMES.iter().enumerate() {
        let (schema, table) = (quoted(name), quoted(&format!("t {name}")));
        let insert = format!("INSERT INTO {schema}.{table} VALUES ('value', 1)");
        let expected = [
            "key cache value 1".into(),
            format!("tag {number}'{name}:value"),
        ];
        assert_eq!(shop.changes_of(&insert).await, expected, "{name}");
        let truncate = format!("TRUNCATE {schema}.{table}");
        let expected = ["cache cache".into(), format!("tag {number}'{name}:value")];
        assert_eq!(shop.changes_of(&truncate).await, expected, "{name}");
    }
    // The printed script is as safe as what is run.
    let script = feed.plan_removal().await.unwrap().to_string();
    shop.server.exec(&shop.url, &script).unwrap();
    let script = feed.plan().await.unwrap().to_string();
    shop.server.exec(&shop.url, &script).unwrap();
    assert!(feed.plan().await.unwrap().is_empty());
    assert_eq!(shop.one("SELECT count(*) FROM victim").await, "0");
}

#[tokio::test]
async fn names_that_need_quotes_in_the_configuration_can_be_quoted() {
    let shop = Shop::open().await;
    shop.run(r#"CREATE SCHEMA "A.b"; CREATE TABLE "A.b"."c""D" (id int)"#)
        .await;
    let feed = |name| shop.plain_feed(watching(name, [Mapping::Cache("c".into())]));
    let missing = feed(r#""a.b"."c""D""#).plan().await.unwrap_err();
    assert_eq!(missing.kind(), FeedErrorKind::Missing);
    feed(r#""A.b"."c""D""#).install().await.unwrap();
    let changes = shop
        .changes_of(r#"INSERT INTO "A.b"."c""D" VALUES (1)"#)
        .await;
    assert_eq!(changes, ["cache c"]);
}

#[tokio::test]
async fn a_schema_and_a_role_of_an_odd_name_serve_as_any_other() {
    let shop = Shop::open().await;
    let role = format!("Ro\"le'; DROP -- {}", shop.one("current_database()").await);
    shop.run(&format!("CREATE ROLE {} LOGIN", quoted(&role)))
        .await;
    let mut config = watching("product", [Mapping::Key("product:{id}".into())]);
    config.schema = "Feed's \"own\" \\ größe".into();
    config.roles.push(role);
    let feed = shop.feed(config).await;
    assert!(feed.plan().await.unwrap().is_empty());
    let mut following = Following::start(&feed);
    shop.run("INSERT INTO product VALUES (7, 'cup', 3)").await;
    following.sees([common::key(7)]).await;
    let mut tx = shop.pool.begin().await.unwrap();
    feed.invalidate_tag_in(&mut tx, "by hand").await.unwrap();
    tx.commit().await.unwrap();
    following.sees([Invalidation::tag("by hand")]).await;
    feed.uninstall().await.unwrap();
}

#[tokio::test]
async fn values_arrive_as_they_are() {
    let shop = Shop::open().await;
    shop.run("CREATE TABLE word (id serial, w text)").await;
    let mappings = [
        Mapping::Key("word:{w}:{id}".into()),
        Mapping::Tag("w={w}".into()),
    ];
    let feed = shop.feed(watching("word", mappings)).await;
    let mut following = Following::start(&feed);
    for seed in seeds(20) {
        let mut rng = seed.rng();
        let alphabet: Vec<char> = "ab:%{}'\"\\ \n\té日🥕,;$".chars().collect();
        let word: String = (0..rng.usize(1..12))
            .filter_map(|_| rng.choice(&alphabet))
            .collect();
        let insert = sqlx::query("INSERT INTO word (w) VALUES ($1) RETURNING id::text");
        let row = insert.bind(&word).fetch_one(&shop.pool).await.unwrap();
        let id: String = sqlx::Row::get(&row, 0);
        let expected = [
            Invalidation::key("word", [&word, &id]),
            Invalidation::tag(format!("w={word}")),
        ];
        following.sees(expected).await;
    }
}

#[tokio::test]
async fn what_means_something_in_a_glob_means_itself_when_a_column_brings_it() {
    let shop = Shop::open().await;
    shop.run("CREATE TABLE word (w text)").await;
    shop.feed(watching("word", [Mapping::Pattern("search:{w}*".into())]))
        .await;
    let insert = r"INSERT INTO word VALUES ('a*b?[c]\{d}^-!')";
    let expected = [r"pattern search a\*b\?\[c\]\\{d}^-!*"];
    assert_eq!(shop.changes_of(insert).await, expected);
}
