//! Which names there are: asked of the types themselves, so that they cannot drift apart.

use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::{Caches, DemoSettings, DiskSettings, RedisSettings, Settings, TierSettings};

/// A tree of the names that may stand in a table. A leaf is an option.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<(&'static str, Names)>);

impl Names {
    /// Every name of [`Settings`].
    pub(super) fn of_settings() -> Self {
        Self::of::<Settings>(|name| match name {
            "demo" => Self::of::<DemoSettings>(|_| Self::default()),
            "cache" => {
                Self::of::<Caches>(|_| Self::of::<larder::CacheOptions>(|_| Self::default()))
            }
            "tier" => Self::of::<TierSettings>(|name| match name {
                "redis" => Self::of::<RedisSettings>(|_| Self::default()),
                _ => Self::of::<DiskSettings>(|_| Self::default()),
            }),
            _ => Self::default(),
        })
    }

    fn of<T: Deserialize<'static>>(below: impl Fn(&'static str) -> Self) -> Self {
        let names = field_names::<T>().iter().copied();
        Self(names.map(|name| (name, below(name))).collect())
    }

    /// What may stand below `name`; `None` if there is no such name.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, below)| below)
    }

    /// The names in this table.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(name, _)| *name)
    }

    /// Each option as an environment variable, with the path to it.
    pub(super) fn variables(&self, prefix: &str) -> Vec<(String, Vec<&'static str>)> {
        let mut found = Vec::new();
        for (name, below) in &self.0 {
            let variable = format!("{prefix}{}", name.to_uppercase());
            if below.0.is_empty() {
                found.push((variable, vec![*name]));
                continue;
            }
            for (variable, mut path) in below.variables(&format!("{variable}_")) {
                path.insert(0, name);
                found.push((variable, path));
            }
        }
        found
    }
}

/// The path that the variable `name` stands for.
pub(super) fn known<'a>(
    variables: &'a [(String, Vec<&'static str>)],
    name: &str,
) -> Option<&'a [&'static str]> {
    let found = variables.iter().find(|(known, _)| known == name);
    found.map(|(_, path)| path.as_slice())
}

/// The names of the fields that a derived `Deserialize` asks its deserializer for.
fn field_names<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // It always ends in an error: the names are all that is wanted.
    let _ = T::deserialize(NameCatcher(&mut names));
    names
}

struct NameCatcher<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for NameCatcher<'_> {
    type Error = de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(de::Error::custom("only the names were wanted"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("only the names were wanted"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
