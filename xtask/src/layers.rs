//! Which crate may depend on which: dependencies point down only.
//!
//! [`LAYERS`] is the drawing in docs/architecture.md as data. A crate that is not in it fails the
//! check, so a new crate states its place in the change that adds it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::workspace::{TreePackage, Workspace, read};

/// One crate's place.
struct Layer {
    name: &'static str,
    /// The crates of this workspace that it may use, other than in its tests.
    uses: &'static [&'static str],
    /// Packages that must appear nowhere in its tree: what the crate knows nothing of.
    knows_nothing_of: &'static [&'static str],
}

/// Tests of every crate may use the test kit, and each crate tests itself.
const FOR_TESTS: &str = "larder-testkit";

/// What a macro writes are calls of this crate, so its tests need both.
const TESTED_FROM_BELOW: (&str, &str) = ("larder-macros", "larder");

const LAYERS: [Layer; 9] = [
    Layer {
        name: "larder-macros",
        uses: &[],
        knows_nothing_of: &["larder", "serde", "tokio"],
    },
    Layer {
        name: "larder",
        uses: &["larder-macros"],
        knows_nothing_of: &[
            "axum",
            "clap",
            "fjall",
            "http",
            "hyper",
            "mio",
            "redis",
            "reqwest",
            "socket2",
            "sqlx",
            "tower",
            "tracing-subscriber",
        ],
    },
    Layer {
        name: "larder-redis",
        uses: &["larder"],
        knows_nothing_of: &["axum", "clap", "fjall", "http", "hyper", "openssl", "sqlx"],
    },
    Layer {
        name: "larder-disk",
        uses: &["larder"],
        knows_nothing_of: &["axum", "clap", "http", "hyper", "redis", "sqlx"],
    },
    Layer {
        name: "larder-sql",
        uses: &["larder"],
        knows_nothing_of: &["axum", "clap", "fjall", "http", "hyper", "openssl", "redis"],
    },
    Layer {
        name: "larder-testkit",
        uses: &["larder"],
        knows_nothing_of: &["axum", "clap", "fjall", "hyper", "redis", "sqlx"],
    },
    Layer {
        name: "larder-trace",
        uses: &["larder"],
        knows_nothing_of: &[
            "axum",
            "clap",
            "fjall",
            "http",
            "hyper",
            "redis",
            "sqlx",
            "tokio-postgres",
        ],
    },
    Layer {
        name: "larder-server",
        uses: &[
            "larder",
            "larder-disk",
            "larder-redis",
            "larder-sql",
            "larder-testkit",
            "larder-trace",
        ],
        knows_nothing_of: &["native-tls", "openssl", "rusqlite"],
    },
    Layer {
        name: "xtask",
        uses: &[],
        knows_nothing_of: &["tokio"],
    },
];

/// Features of tokio that the engine must not ask for: it opens no sockets and no files, and
/// starts no processes.
const FEATURES_LARDER_DOES_WITHOUT: [&str; 5] = ["fs", "full", "net", "process", "signal"];

/// Checks the whole workspace; the error lists every breach.
pub(crate) fn check(workspace: &Workspace) -> Result<String, String> {
    let text = read(&mut workspace.cargo("metadata --no-deps --format-version 1"))?;
    let metadata: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let members = members(&metadata).ok_or("`cargo metadata` has an unknown shape")?;
    let mut breaches = breaches_between(&members);
    for layer in &LAYERS {
        breaches.extend(breaches_below(layer, &workspace.tree(layer.name)?));
    }
    if breaches.is_empty() {
        Ok(format!("{} crates", members.len()))
    } else {
        Err(breaches.join("\n"))
    }
}

/// A package of this workspace.
#[derive(Debug, Default)]
struct Member {
    has_rust_version: bool,
    /// Names of all direct dependencies that are not only for tests.
    uses: Vec<String>,
    /// Names of all direct dependencies that are only for tests.
    tests_use: Vec<String>,
}

fn members(metadata: &Value) -> Option<BTreeMap<String, Member>> {
    metadata["packages"]
        .as_array()?
        .iter()
        .map(|package| Some((package["name"].as_str()?.to_string(), member(package)?)))
        .collect()
}

fn member(package: &Value) -> Option<Member> {
    let mut member = Member {
        has_rust_version: package["rust_version"].is_string(),
        ..Member::default()
    };
    for dependency in package["dependencies"].as_array()? {
        let name = dependency["name"].as_str()?.to_string();
        match dependency["kind"].as_str() {
            Some("dev") => member.tests_use.push(name),
            _ => member.uses.push(name),
        }
    }
    Some(member)
}

/// What is wrong between the crates of this workspace.
fn breaches_between(members: &BTreeMap<String, Member>) -> Vec<String> {
    let mut breaches = Vec::new();
    for (name, member) in members {
        if !member.has_rust_version {
            breaches.push(format!("{name} does not say its rust-version"));
        }
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) else {
            breaches.push(format!("{name} has no place in xtask/src/layers.rs yet"));
            continue;
        };
        let inside = |used: &&String| members.contains_key(*used);
        let down = |used: &str| layer.uses.contains(&used);
        for used in member.uses.iter().filter(inside).filter(|used| !down(used)) {
            breaches.push(format!("{name} must not depend on {used}"));
        }
        let down_for_tests = |used: &str| {
            let from_below = (name.as_str(), used) == TESTED_FROM_BELOW;
            down(used) || used == FOR_TESTS || used == name || from_below
        };
        for used in member
            .tests_use
            .iter()
            .filter(inside)
            .filter(|used| !down_for_tests(used))
        {
            breaches.push(format!("the tests of {name} must not depend on {used}"));
        }
    }
    breaches
}

/// What is in `layer`'s tree that it must know nothing of.
fn breaches_below(layer: &Layer, tree: &[TreePackage]) -> Vec<String> {
    let mut breaches = Vec::new();
    for package in tree {
        if layer.knows_nothing_of.contains(&package.name.as_str()) {
            breaches.push(format!(
                "{} must not have {} in its tree",
                layer.name, package.name
            ));
        }
        if layer.name == "larder" && package.name == "tokio" {
            let asked = |feature: &&&str| package.features.iter().any(|has| has == **feature);
            for feature in FEATURES_LARDER_DOES_WITHOUT.iter().filter(asked) {
                breaches.push(format!(
                    "larder must not ask for tokio's feature `{feature}`"
                ));
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(packages: &str) -> BTreeMap<String, Member> {
        let text = format!(r#"{{"packages":[{packages}]}}"#);
        members(&serde_json::from_str(&text).unwrap()).unwrap()
    }

    #[test]
    fn every_edge_that_does_not_point_down_is_named() {
        let members = parsed(
            r#"{"name":"larder","rust_version":"1.88","dependencies":[
                 {"name":"serde","kind":null},
                 {"name":"larder-redis","kind":null},
                 {"name":"larder-testkit","kind":"dev"}]},
               {"name":"larder-redis","rust_version":"1.88","dependencies":[
                 {"name":"larder","kind":null},
                 {"name":"larder-testkit","kind":"build"}]},
               {"name":"larder-disk","rust_version":"1.90","dependencies":[
                 {"name":"larder-redis","kind":"dev"}]},
               {"name":"larder-macros","rust_version":"1.88","dependencies":[
                 {"name":"larder","kind":"dev"}]},
               {"name":"larder-testkit","rust_version":"1.88","dependencies":[]}"#,
        );
        let expected = [
            "larder must not depend on larder-redis",
            "the tests of larder-disk must not depend on larder-redis",
            "larder-redis must not depend on larder-testkit",
        ];
        assert_eq!(breaches_between(&members), expected);
    }

    #[test]
    fn a_crate_without_a_place_or_a_rust_version_is_named() {
        let members = parsed(r#"{"name":"larder-new","rust_version":null,"dependencies":[]}"#);
        let expected = [
            "larder-new does not say its rust-version",
            "larder-new has no place in xtask/src/layers.rs yet",
        ];
        assert_eq!(breaches_between(&members), expected);
    }

    #[test]
    fn a_package_or_a_feature_that_larder_knows_nothing_of_is_named() {
        let package = |name: &str, features: &[&str]| TreePackage {
            name: name.into(),
            version: "v1.0.0".into(),
            features: features.iter().map(ToString::to_string).collect(),
        };
        let tree = [
            package("bytes", &["std"]),
            package("redis", &[]),
            package("tokio", &["net", "rt"]),
        ];
        let expected = [
            "larder must not have redis in its tree",
            "larder must not ask for tokio's feature `net`",
        ];
        let layer = |name| LAYERS.iter().find(|layer| layer.name == name).unwrap();
        assert_eq!(breaches_below(layer("larder"), &tree), expected);
        assert_eq!(
            breaches_below(layer("larder-redis"), &tree),
            Vec::<String>::new()
        );
    }
}
