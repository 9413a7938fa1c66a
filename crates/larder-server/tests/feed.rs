//! `larder feed` against a real PostgreSQL server.
#![allow(
    clippy::expect_used,
    reason = "a test that cannot go on should say so and stop"
)]

mod common;

use std::process::Output;
use std::sync::Arc;

use common::{complained, larder, said};
use larder_testkit::PostgresServer;
use tempfile::TempDir;

const CONFIG: &str = r#"
[demo]
products = 1000

[feed]
namespace = "shop"
wake = "notify"

[[feed.table]]
name = "public.product"
invalidate = [{ key = "product:{id}" }, { tag = "category:{category_id}" }]

[feed.follow]
poll = "2s"
"#;

struct Scene {
    server: Arc<PostgresServer>,
    url: String,
    directory: TempDir,
}

impl Scene {
    fn set(config: &str) -> Self {
        let server = PostgresServer::shared().expect("a server");
        let url = server.database().expect("a database");
        let table = "CREATE TABLE product (id int PRIMARY KEY, category_id int)";
        server.exec(&url, table).expect("created");
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("shop.toml"), config).expect("written");
        Self {
            server,
            url,
            directory,
        }
    }

    fn feed(&self, words: &[&str]) -> Output {
        let mut command = larder(&["feed"]);
        command.args(words).args(["--config", "shop.toml"]);
        command.env("DATABASE_URL", &self.url);
        let output = command.current_dir(self.directory.path()).output();
        output.expect("larder runs")
    }

    fn done(&self, words: &[&str]) -> String {
        let output = self.feed(words);
        assert_eq!(output.status.code(), Some(0), "{}", complained(&output));
        said(&output)
    }

    fn refused(&self, words: &[&str]) -> String {
        let output = self.feed(words);
        let text = complained(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        text.trim_end().to_owned()
    }
}

#[test]
fn a_feed_is_planned_installed_watched_and_removed() {
    let scene = Scene::set(CONFIG);
    let plan = scene.done(&["plan"]);
    assert!(
        plan.contains("CREATE TRIGGER") && plan.ends_with("COMMIT;\n"),
        "{plan}"
    );
    let not_asked = scene.refused(&["install"]);
    let expected = "larder: there is nobody to ask on standard input; add --yes if this is what you \
                    want";
    assert_eq!(not_asked, expected);
    assert_eq!(scene.done(&["plan"]), plan, "nothing was done");
    let installed = scene.done(&["install", "--yes"]);
    assert_eq!(installed, format!("{plan}-- The feed is installed.\n"));
    let again = scene.done(&["install"]);
    assert!(
        again.ends_with("is installed as configured; there is nothing to do.\n"),
        "{again}"
    );
    assert_eq!(scene.done(&["status"]), "no change waits\nnobody follows\n");
    let insert = "INSERT INTO product VALUES (7, 3)";
    scene.server.exec(&scene.url, insert).expect("inserted");
    let status = scene.done(&["status"]);
    assert!(
        status.starts_with("2 changes wait, the oldest for "),
        "{status}"
    );
    let removed = scene.done(&["uninstall", "--yes"]);
    assert!(removed.ends_with("-- The feed is removed.\n"), "{removed}");
    assert_eq!(scene.done(&["plan"]), plan);
}

#[test]
fn what_the_configuration_gets_wrong_is_said_with_its_place() {
    for (from, to, expected) in [
        (
            "wake = \"notify\"",
            "woke = \"notify\"",
            "larder: shop.toml:7:1: unknown field `woke`",
        ),
        (
            "\"2s\"",
            "\"2 parsecs\"",
            "larder: shop.toml:14:8: `2 parsecs` is not a duration",
        ),
        (
            "key = \"product:{id}\"",
            "kye = \"product:{id}\"",
            "larder: shop.toml:11:17: unknown variant `kye`",
        ),
        (
            "product:{id}",
            "product:{id",
            "larder: table public.product: key template `product:{id` has a brace that is not \
             closed; write it like `product:{id}`",
        ),
        (
            "{category_id}",
            "{category}",
            "larder: table public.product has no column `category`; it has category_id, id",
        ),
        (
            "public.product",
            "public.products",
            "larder: there is no table public.products in this database",
        ),
    ] {
        let scene = Scene::set(&CONFIG.replace(from, to));
        let said = scene.refused(&["plan"]);
        assert!(said.starts_with(expected), "{said}");
    }
    let scene = Scene::set("[demo]\nproducts = 1000\n");
    assert_eq!(scene.refused(&["plan"]), "larder: shop.toml has no [feed]");
}

#[test]
fn what_is_missing_on_the_command_line_is_said() {
    let scene = Scene::set(CONFIG);
    let mut command = larder(&["feed", "plan"]);
    let output = command
        .env_remove("DATABASE_URL")
        .output()
        .expect("larder runs");
    let expected = "larder: feed needs --config FILE, with the tables in [feed]\n";
    assert_eq!(complained(&output), expected);
    let mut command = larder(&["feed", "plan", "--config", "shop.toml"]);
    command
        .env_remove("DATABASE_URL")
        .current_dir(scene.directory.path());
    let output = command.output().expect("larder runs");
    let expected = "larder: feed needs --database URL, or DATABASE_URL\n";
    assert_eq!(complained(&output), expected);
    let expected = "larder: there is no feed in schema `larder_feed` of this database; run `larder \
                    feed install`";
    assert_eq!(scene.refused(&["status"]), expected);
}

#[test]
fn a_database_that_is_away_is_said_without_its_password() {
    let scene = Scene::set(CONFIG);
    let port = common::free_ports();
    let url = format!("postgres://app:hunter2@127.0.0.1:{port}/shop");
    let said = scene.refused(&["status", "--database", &url]);
    let expected = format!(
        "larder: cannot connect to 127.0.0.1:{port}/shop: PostgreSQL cannot be reached: Connection \
         refused"
    );
    assert!(said.starts_with(&expected), "{said}");
    let said = scene.refused(&["plan", "--database", "mysql://app:hunter2@h/shop"]);
    assert!(said.contains("does not begin with postgres://"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}
