//! What a changed row writes into the outbox, for each kind of mapping and each way to change it.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod common;

use common::{Shop, products, watching};
use larder_sql::Mapping;

#[tokio::test]
async fn every_kind_of_mapping_is_written_as_configured() {
    let shop = Shop::open().await;
    let mappings = [
        Mapping::Key("product:{id}".into()),
        Mapping::Key("listing:{category_id}:{name}:eur".into()),
        Mapping::Expire("teaser:{id}".into()),
        Mapping::Tag("cat-{category_id}/{id}".into()),
        Mapping::Tag("catalogue".into()),
        Mapping::Pattern("search:{name}*".into()),
        Mapping::Cache("bestsellers".into()),
    ];
    shop.feed(watching("public.product", mappings)).await;
    let insert = "INSERT INTO product VALUES (7, 'a:b', 3)";
    let expected = [
        "cache bestsellers",
        "expire teaser 7",
        "key listing 3 a:b eur",
        "key product 7",
        "pattern search a:b*",
        "tag cat-3/7",
        "tag catalogue",
    ];
    assert_eq!(shop.changes_of(insert).await, expected);
    let update = "UPDATE product SET name = 'x' WHERE id = 7";
    assert_eq!(shop.changes_of(update).await.len(), 9, "two names");
    let delete = "DELETE FROM product";
    assert_eq!(shop.changes_of(delete).await.len(), 7);
    let truncate = "TRUNCATE product";
    let expected = [
        "cache bestsellers",
        "cache listing",
        "cache product",
        "cache search",
        "cache teaser",
        "tag catalogue",
    ];
    assert_eq!(shop.changes_of(truncate).await, expected);
}

#[tokio::test]
async fn a_row_that_moves_invalidates_where_it_was_and_where_it_is() {
    let shop = Shop::open().await;
    shop.feed(products()).await;
    shop.run("INSERT INTO product VALUES (7, 'cup', 3)").await;
    let moved = shop.changes_of("UPDATE product SET category_id = 8").await;
    assert_eq!(moved, ["key product 7", "tag category:3", "tag category:8"]);
    let renumbered = shop.changes_of("UPDATE product SET id = 9").await;
    assert_eq!(
        renumbered,
        ["key product 7", "key product 9", "tag category:8"]
    );
}

#[tokio::test]
async fn a_null_names_nothing() {
    let shop = Shop::open().await;
    let mappings = [
        Mapping::Tag("category:{category_id}".into()),
        Mapping::Key("listing:{category_id}:{name}".into()),
    ];
    shop.feed(watching("product", mappings)).await;
    let orphan = "INSERT INTO product VALUES (7, 'cup', NULL)";
    assert_eq!(shop.changes_of(orphan).await, [""; 0]);
    let adopted = "UPDATE product SET category_id = 3";
    assert_eq!(
        shop.changes_of(adopted).await,
        ["key listing 3 cup", "tag category:3"]
    );
    let nameless = "UPDATE product SET name = NULL, category_id = 4";
    let expected = ["key listing 3 cup", "tag category:3", "tag category:4"];
    assert_eq!(shop.changes_of(nameless).await, expected);
}

#[tokio::test]
async fn what_is_rolled_back_was_never_written() {
    let shop = Shop::open().await;
    shop.feed(products()).await;
    let rolled_back = "BEGIN; INSERT INTO product VALUES (7, 'cup', 3); ROLLBACK";
    assert_eq!(shop.changes_of(rolled_back).await, [""; 0]);
    let in_part = "BEGIN; INSERT INTO product VALUES (1, 'cup', 3); SAVEPOINT s; \
                   INSERT INTO product VALUES (2, 'pot', 4); ROLLBACK TO s; COMMIT";
    assert_eq!(
        shop.changes_of(in_part).await,
        ["key product 1", "tag category:3"]
    );
}

#[tokio::test]
async fn statements_that_change_no_row_write_nothing() {
    let shop = Shop::open().await;
    let mappings = [
        Mapping::Cache("bestsellers".into()),
        Mapping::Tag("all".into()),
    ];
    shop.feed(watching("product", mappings)).await;
    for sql in [
        "UPDATE product SET name = 'x'",
        "DELETE FROM product",
        "INSERT INTO product SELECT 1, 'x', 1 WHERE false",
    ] {
        assert_eq!(shop.changes_of(sql).await, [""; 0], "{sql}");
    }
    // Of an empty table as of a full one: what it held is not known afterwards.
    assert_eq!(
        shop.changes_of("TRUNCATE product").await,
        ["cache bestsellers", "tag all"]
    );
}

#[tokio::test]
async fn ten_thousand_rows_of_one_statement_name_their_tag_once() {
    let shop = Shop::open().await;
    shop.feed(products()).await;
    let insert = "INSERT INTO product SELECT n, 'p' || n, 3 FROM generate_series(1, 10000) AS n";
    assert_eq!(shop.changes_of(insert).await.len(), 10_001);
    let changes = shop.changes_of("UPDATE product SET category_id = 4").await;
    assert_eq!(changes.len(), 10_002);
    assert_eq!(changes[10_000..], ["tag category:3", "tag category:4"]);
    let changes = shop.changes_of("TRUNCATE product").await;
    assert_eq!(changes, ["cache product", "tag category:4"]);
}

#[tokio::test]
async fn every_way_to_change_a_row_is_seen() {
    let shop = Shop::open().await;
    shop.feed(products()).await;
    let upsert = "INSERT INTO product VALUES (1, 'cup', 3), (2, 'pot', 3) ON CONFLICT (id) \
                  DO UPDATE SET category_id = excluded.category_id";
    let both = ["key product 1", "key product 2", "tag category:3"];
    assert_eq!(shop.changes_of(upsert).await, both);
    let upsert = upsert.replace("'pot', 3", "'pot', 5");
    let changes = shop.changes_of(&upsert).await;
    for expected in [
        "key product 1",
        "key product 2",
        "tag category:3",
        "tag category:5",
    ] {
        assert!(
            changes.iter().any(|change| change == expected),
            "{changes:?}"
        );
    }
    let cascade = "DELETE FROM category WHERE id = 5";
    assert_eq!(
        shop.changes_of(cascade).await,
        ["key product 2", "tag category:5"]
    );
    let in_a_query = "WITH gone AS (DELETE FROM product RETURNING id) SELECT count(*) FROM gone";
    assert_eq!(
        shop.changes_of(in_a_query).await,
        ["key product 1", "tag category:3"]
    );
    let by_a_function = "CREATE FUNCTION add() RETURNS void LANGUAGE sql AS \
                         'INSERT INTO product VALUES (4, ''jug'', 6)'; SELECT add()";
    assert_eq!(
        shop.changes_of(by_a_function).await,
        ["key product 4", "tag category:6"]
    );
    let script = "DELETE FROM larder_feed.outbox; COPY product FROM stdin;\n5\tmug\t7\n\\.\n";
    shop.server.exec(&shop.url, script).unwrap();
    assert_eq!(shop.outbox().await, ["key product 5", "tag category:7"]);
}

#[tokio::test]
async fn merge_is_seen_where_the_server_has_it() {
    let shop = Shop::open().await;
    let version: u32 = shop
        .one("current_setting('server_version_num')")
        .await
        .parse()
        .unwrap();
    shop.feed(products()).await;
    shop.run("INSERT INTO product VALUES (1, 'cup', 3), (2, 'pot', 4)")
        .await;
    if version < 150_000 {
        return;
    }
    let merge = "MERGE INTO product p USING (VALUES (1), (2), (3)) AS s (id) ON p.id = s.id \
                 WHEN MATCHED AND s.id = 1 THEN DELETE \
                 WHEN MATCHED THEN UPDATE SET category_id = 5 \
                 WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'jug', 6)";
    let expected = [
        "key product 1",
        "key product 2",
        "key product 3",
        "tag category:3",
        "tag category:4",
        "tag category:5",
        "tag category:6",
    ];
    assert_eq!(shop.changes_of(merge).await, expected);
}

#[tokio::test]
async fn values_are_written_alike_whatever_the_session_prefers() {
    let shop = Shop::open().await;
    shop.run(
        "CREATE TYPE mood AS ENUM ('Good', 'so so'); CREATE DOMAIN number AS int; \
         CREATE TABLE odd (b bool, u uuid, n numeric(8,2), f float8, d date, t timestamptz, \
                           m mood, x number, c varchar(5), i bigint, s interval)",
    )
    .await;
    let columns = ["b", "u", "n", "f", "d", "t", "m", "x", "c", "i", "s"];
    let tags = columns.map(|column| Mapping::Tag(format!("{column}={{{column}}}")));
    let mappings = tags.into_iter().chain([Mapping::Tag(r"a\b\'".into())]);
    shop.feed(watching("odd", mappings)).await;
    let row = "INSERT INTO odd VALUES (true, 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 1.50, \
               0.3::float8 + 0.6, '2026-01-31', '2026-01-31 12:00:00+00', 'so so', 4, 'é', \
               -9223372036854775808, '1 day 2 h')";
    let expected = [
        r"tag a\b\'",
        "tag b=true",
        "tag c=é",
        "tag d=2026-01-31",
        "tag f=0.8999999999999999",
        "tag i=-9223372036854775808",
        "tag m=so so",
        "tag n=1.50",
        "tag s=1 day 02:00:00",
        "tag t=2026-01-31 12:00:00+00",
        "tag u=a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "tag x=4",
    ];
    // The odd ones first: what was parsed once with plain ones would be kept.
    for settings in [
        "SET LOCAL datestyle = 'SQL, DMY'; SET LOCAL timezone = 'Asia/Tokyo'; \
         SET LOCAL extra_float_digits = -3; SET LOCAL intervalstyle = 'iso_8601'; \
         SET LOCAL search_path = ''; SET LOCAL standard_conforming_strings = off;",
        "",
    ] {
        let insert = format!(
            "BEGIN; {settings} {}; COMMIT",
            row.replace("odd", "public.odd")
        );
        let mut changes = shop.changes_of(&insert).await;
        changes.sort();
        assert_eq!(changes, expected, "{settings}");
    }
}

#[tokio::test]
async fn who_writes_to_the_table_needs_no_right_on_the_feed() {
    let shop = Shop::open().await;
    shop.feed(products()).await;
    let role = format!("clerk_{}", shop.one("current_database()").await);
    shop.run(&format!(
        "CREATE ROLE {role}; GRANT INSERT, TRUNCATE ON product TO {role}"
    ))
    .await;
    let insert = "INSERT INTO product VALUES (7, 'cup', 3)";
    let as_clerk = format!("BEGIN; SET LOCAL ROLE {role}; {insert}; TRUNCATE product; COMMIT");
    let expected = [
        "cache product",
        "key product 7",
        "tag category:3",
        "tag category:3",
    ];
    assert_eq!(shop.changes_of(&as_clerk).await, expected);
    let spy = format!("BEGIN; SET LOCAL ROLE {role}; SELECT * FROM larder_feed.outbox");
    let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(spy))
        .execute(&shop.pool)
        .await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("permission denied")
    );
}

#[tokio::test]
async fn partitions_and_their_rows_are_seen_however_they_are_named() {
    let shop = Shop::open().await;
    shop.run(
        "CREATE TABLE sale (id int, region text) PARTITION BY LIST (region); \
         CREATE TABLE sale_eu PARTITION OF sale FOR VALUES IN ('eu'); \
         CREATE TABLE sale_us PARTITION OF sale FOR VALUES IN ('us')",
    )
    .await;
    let mappings = [
        Mapping::Key("sale:{id}".into()),
        Mapping::Tag("region:{region}".into()),
    ];
    shop.feed(watching("sale", mappings)).await;
    let insert = "INSERT INTO sale VALUES (1, 'eu'), (2, 'us')";
    let expected = ["key sale 1", "key sale 2", "tag region:eu", "tag region:us"];
    assert_eq!(shop.changes_of(insert).await, expected);
    let direct = "UPDATE sale_eu SET id = 3";
    let expected = ["key sale 1", "key sale 3", "tag region:eu"];
    assert_eq!(shop.changes_of(direct).await, expected);
    let across = "UPDATE sale SET region = 'us' WHERE id = 3";
    let mut changes = shop.changes_of(across).await;
    changes.dedup();
    assert_eq!(changes, ["key sale 3", "tag region:eu", "tag region:us"]);
    shop.run("CREATE TABLE sale_asia PARTITION OF sale FOR VALUES IN ('asia')")
        .await;
    let later = "INSERT INTO sale_asia VALUES (4, 'asia')";
    assert_eq!(
        shop.changes_of(later).await,
        ["key sale 4", "tag region:asia"]
    );
    let truncate = "TRUNCATE sale";
    let expected = ["cache sale", "tag region:asia", "tag region:us"];
    assert_eq!(shop.changes_of(truncate).await, expected);
}

#[tokio::test]
async fn a_single_partition_and_tables_that_inherit_are_seen_too() {
    let shop = Shop::open().await;
    shop.run(
        "CREATE TABLE sale (id int, region text) PARTITION BY LIST (region); \
         CREATE TABLE sale_eu PARTITION OF sale FOR VALUES IN ('eu'); \
         CREATE TABLE animal (id int); CREATE TABLE dog () INHERITS (animal)",
    )
    .await;
    let mut config = watching("sale_eu", [Mapping::Key("sale:{id}".into())]);
    let animal = watching("animal", [Mapping::Key("animal:{id}".into())]);
    config.table.extend(animal.table);
    let refused = shop.plain_feed(config.clone()).plan().await.unwrap_err();
    let expected = "table public.dog inherits from public.animal, and changes of its rows would be \
                    missed; name it too";
    assert_eq!(refused.to_string(), expected);
    let dog = watching("dog", [Mapping::Key("animal:{id}".into())]);
    config.table.extend(dog.table);
    shop.feed(config).await;
    let through_the_parent = "INSERT INTO sale VALUES (1, 'eu')";
    assert_eq!(shop.changes_of(through_the_parent).await, ["key sale 1"]);
    let both = "INSERT INTO animal VALUES (1); INSERT INTO dog VALUES (2)";
    assert_eq!(
        shop.changes_of(both).await,
        ["key animal 1", "key animal 2"]
    );
    let through_the_parent = "UPDATE animal SET id = id + 10";
    let expected = [
        "key animal 1",
        "key animal 11",
        "key animal 12",
        "key animal 2",
    ];
    assert_eq!(shop.changes_of(through_the_parent).await, expected);
}
