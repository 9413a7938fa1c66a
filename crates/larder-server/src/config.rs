//! Settings: built-in defaults, then a TOML file, then `LARDER_*` variables, then flags.
//!
//! Each layer is checked by itself, so that an error names the place where it was written. What
//! is left is merged and parsed once into checked types.

mod names;

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context;
use larder::CacheOptions;
use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use crate::cli::DemoArgs;
use crate::refusal::{Refusal, hint};
use names::{Names, known};

const DEFAULTS: &str = include_str!("demo/defaults.toml");
/// Beneath the rest where processes share a tier.
const SHARED: &str = include_str!("demo/shared.toml");
const PREFIX: &str = "LARDER_";

/// Everything that can be set, as it is written in TOML.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// The demo itself.
    pub(crate) demo: DemoSettings,
    /// How the three caches behave.
    pub(crate) cache: Caches,
    /// The tiers below memory.
    pub(crate) tier: TierSettings,
}

/// `[demo]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DemoSettings {
    /// Products in the shop, 100 to 5,000,000.
    pub(crate) products: u64,
    /// The first port of the shop.
    pub(crate) port: u16,
    /// Length of each measured phase, 1 to 60.
    pub(crate) seconds: u64,
    /// Connections that put the shop under load, 1 to 1,000.
    pub(crate) clients: usize,
    /// Clients that ask for one cold key at once, 2 to 20,000.
    pub(crate) stampede: usize,
    /// Where things are kept. Default: the user's cache directory.
    pub(crate) data: Option<PathBuf>,
    /// As `--tier`.
    pub(crate) tier: Option<String>,
}

/// `[cache.*]`: what one cache does is described at [`CacheOptions`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Caches {
    /// Products by id.
    pub(crate) product: CacheOptions,
    /// Aggregates by category.
    pub(crate) category: CacheOptions,
    /// Prices from the third party.
    pub(crate) price: CacheOptions,
}

/// `[tier.*]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TierSettings {
    /// `[tier.redis]`.
    pub(crate) redis: RedisSettings,
    /// `[tier.disk]`.
    pub(crate) disk: DiskSettings,
}

/// `[tier.redis]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RedisSettings {
    /// Where the server is. Without one the demo starts its own.
    pub(crate) url: Option<String>,
}

/// `[tier.disk]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DiskSettings {
    /// The directory of the tier. Default: `tier` in the data directory.
    pub(crate) directory: Option<PathBuf>,
}

/// The tier below memory, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Memory alone.
    Memory,
    /// A directory on disk.
    Disk(PathBuf),
    /// A Redis of the demo's own, found on PATH.
    OwnRedis,
    /// A Redis that somebody else runs.
    Redis(String),
}

/// What the demo runs with: checked, nothing left to guess.
#[derive(Debug)]
pub(crate) struct Config {
    /// `[demo]`, in range.
    pub(crate) demo: DemoSettings,
    /// `--once`.
    pub(crate) once: bool,
    /// Where things are kept.
    pub(crate) data: PathBuf,
    /// The tier below memory.
    pub(crate) tier: Tier,
    /// How the three caches behave.
    pub(crate) caches: Caches,
    /// The same as JSON, to hand to another process.
    pub(crate) caches_json: serde_json::Value,
}

impl Config {
    /// Reads every layer.
    ///
    /// # Errors
    /// A [`Refusal`] that names the file and line, the variable or the flag that is wrong.
    pub(crate) fn read(
        args: DemoArgs,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> anyhow::Result<Self> {
        let names = Names::of_settings();
        let mut merged: toml::Table = toml::from_str(DEFAULTS).context("the built-in defaults")?;
        if let Some(path) = &args.config {
            merge(&mut merged, read_file(path, &names)?);
        }
        for (name, value) in environment {
            if let Some(layer) = read_variable(&name, &value, &names)? {
                merge(&mut merged, layer);
            }
        }
        check(merged, args)
    }
}

fn check(mut merged: toml::Table, args: DemoArgs) -> anyhow::Result<Config> {
    let settings: Settings = merged.clone().try_into().context("the merged settings")?;
    let mut demo = settings.demo;
    demo.products = args.products.unwrap_or(demo.products);
    demo.port = args.port.unwrap_or(demo.port);
    demo.seconds = args.seconds.unwrap_or(demo.seconds);
    within("products", demo.products, 100..5_000_001)?;
    within("seconds", demo.seconds, 1..61)?;
    within("clients", demo.clients as u64, 1..1_001)?;
    within("stampede", demo.stampede as u64, 2..20_001)?;
    if demo.port == 0 {
        return Err(Refusal::new("port is 0; choose one from 1 to 65535").into());
    }
    let data = args
        .data
        .or_else(|| demo.data.clone())
        .unwrap_or_else(default_data);
    let tier = choose_tier(
        args.tier.or_else(|| demo.tier.clone()),
        settings.tier,
        &data,
    )?;
    if matches!(tier, Tier::OwnRedis | Tier::Redis(_)) {
        merged = share(merged)?;
    }
    let caches: toml::Value = merged
        .remove("cache")
        .context("the built-in defaults have caches")?;
    Ok(Config {
        once: args.once,
        data,
        tier,
        caches_json: serde_json::to_value(&caches).context("the caches as JSON")?,
        caches: caches.try_into().context("the merged caches")?,
        demo,
    })
}

/// Processes that share a tier should not keep old values in their own memory for long.
fn share(merged: toml::Table) -> anyhow::Result<toml::Table> {
    let mut shared: toml::Table = toml::from_str(SHARED).context("the built-in defaults")?;
    merge(&mut shared, merged);
    Ok(shared)
}

fn within(name: &str, value: u64, range: Range<u64>) -> anyhow::Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = (range.start, range.end - 1);
    Err(Refusal::new(format!("{name} is {value}; it may be {least} to {most}")).into())
}

fn choose_tier(named: Option<String>, settings: TierSettings, data: &Path) -> anyhow::Result<Tier> {
    let Some(named) = named else {
        return Ok(settings.redis.url.map_or(Tier::Memory, Tier::Redis));
    };
    Ok(match named.split_once('=') {
        Some(("redis", url)) => Tier::Redis(url.to_owned()),
        None if named == "redis" => settings.redis.url.map_or(Tier::OwnRedis, Tier::Redis),
        None if named == "disk" => {
            Tier::Disk(settings.disk.directory.unwrap_or_else(|| data.join("tier")))
        }
        None if named == "memory" => Tier::Memory,
        _ => {
            let near = hint(&named, ["memory", "disk", "redis"]);
            let all = "(memory, disk, redis or redis=URL)";
            return Err(Refusal::new(format!("unknown tier `{named}`{near} {all}")).into());
        }
    })
}

/// `larder-demo` in the user's cache directory, or among the temporary files without one.
fn default_data() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = if cfg!(windows) {
        set("LOCALAPPDATA").map(PathBuf::from)
    } else if cfg!(target_os = "macos") {
        set("HOME").map(|home| Path::new(&home).join("Library/Caches"))
    } else {
        set("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")))
    };
    cache.unwrap_or_else(std::env::temp_dir).join("larder-demo")
}

fn merge(into: &mut toml::Table, layer: toml::Table) {
    for (key, value) in layer {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge(below, above),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn read_file(path: &Path, names: &Names) -> anyhow::Result<toml::Table> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Refusal::new(format!("cannot read {shown}: {error}")))?;
    parse_file(&text, names)
        .map_err(|Fault { at, what }| Refusal::new(format!("{shown}:{at}: {what}")).into())
}

/// What is wrong in a text, and where: line and column, both from 1.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) at: String,
    pub(crate) what: String,
}

impl Fault {
    fn new(text: &str, offset: usize, what: impl Into<String>) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Self {
            at: format!("{line}:{column}"),
            what: what.into(),
        }
    }

    pub(crate) fn of(text: &str, error: &toml::de::Error) -> Self {
        let offset = error.span().map_or(0, |span| span.start);
        Self::new(text, offset, error.message().replace('\n', ": "))
    }
}

fn parse_file(text: &str, names: &Names) -> Result<toml::Table, Fault> {
    let document = DeTable::parse(text).map_err(|error| Fault::of(text, &error))?;
    unknown_key(text, document.get_ref(), names, "")?;
    // Reading it once as what it must become gives errors of type and value their place.
    toml::from_str::<Settings>(text).map_err(|error| Fault::of(text, &error))?;
    toml::from_str(text).map_err(|error| Fault::of(text, &error))
}

fn unknown_key(text: &str, table: &DeTable<'_>, names: &Names, path: &str) -> Result<(), Fault> {
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        let Some(below) = names.get(name) else {
            let near = hint(name, names.keys());
            let place = if path.is_empty() {
                String::new()
            } else {
                format!(" in [{path}]")
            };
            let what = format!("unknown key `{name}`{place}{near}");
            return Err(Fault::new(text, key.span().start, what));
        };
        if let DeValue::Table(table) = value.get_ref() {
            let path = if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}.{name}")
            };
            unknown_key(text, table, below, &path)?;
        }
    }
    Ok(())
}

/// The layer that one environment variable makes; `None` if it is none of ours.
///
/// `LARDER_TEST_*` belongs to the tests and is left alone.
fn read_variable(name: &str, value: &str, names: &Names) -> anyhow::Result<Option<toml::Table>> {
    if !name.starts_with(PREFIX) || name.starts_with("LARDER_TEST_") {
        return Ok(None);
    }
    let variables = names.variables(PREFIX);
    let Some(path) = known(&variables, name) else {
        let near = hint(name, variables.iter().map(|(name, _)| name.as_str()));
        return Err(Refusal::new(format!("unknown variable {name}{near}")).into());
    };
    let text = nest(path, toml::Value::String(value.to_owned()));
    let Err(error) = try_settings(&text) else {
        return Ok(Some(text));
    };
    // Numbers are numbers in TOML, and every variable is text.
    let number = value
        .parse()
        .map(toml::Value::Integer)
        .or_else(|_| value.parse().map(toml::Value::Float));
    let parsed = number.map(|number| nest(path, number));
    match parsed.as_ref().map(try_settings) {
        Ok(Ok(())) => Ok(parsed.ok()),
        Ok(Err(error)) => Err(Refusal::new(format!("{name}: {error}")).into()),
        Err(_) => Err(Refusal::new(format!("{name}: {error}")).into()),
    }
}

fn try_settings(layer: &toml::Table) -> Result<(), String> {
    layer
        .clone()
        .try_into::<Settings>()
        .map(|_| ())
        .map_err(|error| error.message().replace('\n', ": "))
}

fn nest(path: &[&'static str], value: toml::Value) -> toml::Table {
    let mut nested = value;
    for name in path.iter().rev() {
        nested = toml::Value::Table(toml::Table::from_iter([((*name).to_owned(), nested)]));
    }
    match nested {
        toml::Value::Table(table) => table,
        _ => toml::Table::new(),
    }
}

#[cfg(test)]
mod tests;
