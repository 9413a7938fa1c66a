//! Lifetimes by the kind of data: a name in place of a number, so that a service says once how long
//! its catalogue may be behind, and not in every cache.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::options::{CacheOptions, DEFAULT_TTL};

/// The classes that every larder knows: name and TTL in seconds.
const SHIPPED: [(&str, u64); 5] = [
    ("session", 24 * 3600),
    ("profile", 3600),
    ("catalogue", 5 * 60),
    ("search", 60),
    ("realtime", 10),
];

/// What the names of TTL classes stand for.
#[derive(Debug)]
pub(crate) struct Classes(BTreeMap<Box<str>, Duration>);

impl Default for Classes {
    fn default() -> Self {
        let shipped = |(name, seconds): (&str, _)| (name.into(), Duration::from_secs(seconds));
        Self(SHIPPED.map(shipped).into())
    }
}

impl Classes {
    /// Adds a class, or gives another TTL to one that is there.
    pub(crate) fn define(&mut self, name: &str, ttl: Duration) {
        self.0.insert(name.into(), ttl);
    }

    /// The TTL of a class, or a sentence that says which there are.
    pub(crate) fn ttl(&self, name: &str) -> Result<Duration, String> {
        self.0.get(name).copied().ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(|name| &**name).collect();
            format!(
                "there is no TTL class `{name}`; there are {}, and .ttl_class(..) of the larder's \
                 builder adds others",
                known.join(", ")
            )
        })
    }

    /// The options with the TTL of their class, if they name one; or a sentence that says what is
    /// wrong. `ttl_given` says that a TTL was set which may be the default one.
    pub(crate) fn apply(
        &self,
        options: CacheOptions,
        ttl_given: bool,
    ) -> Result<CacheOptions, String> {
        let ttl_given = ttl_given || options.ttl != Some(DEFAULT_TTL);
        if options.ttl_by_frequency.is_some() && (ttl_given || options.class.is_some()) {
            let other = if ttl_given { "a ttl" } else { "a TTL class" };
            return Err(format!(
                "ttl_by_frequency and {other} are both set; leave one of them out"
            ));
        }
        let Some(class) = &options.class else {
            return Ok(options);
        };
        let of_class = self.ttl(class)?;
        if ttl_given {
            return Err(format!(
                "the TTL class `{class}` and a ttl are both set; leave one of them out"
            ));
        }
        let ttl = Some(of_class);
        Ok(CacheOptions { ttl, ..options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_shipped_and_can_be_defined_anew() {
        let mut classes = Classes::default();
        let ttl = |classes: &Classes, name: &str| classes.ttl(name).unwrap().as_secs();
        let shipped = ["session", "profile", "catalogue", "search", "realtime"];
        let ttls = shipped.map(|name| ttl(&classes, name));
        assert_eq!(ttls, [86_400, 3_600, 300, 60, 10]);
        classes.define("search", Duration::from_secs(30));
        classes.define("rates", Duration::from_secs(5));
        let ttls = ["search", "rates", "session"].map(|name| ttl(&classes, name));
        assert_eq!(ttls, [30, 5, 86_400]);
        let unknown = classes.ttl("serach").unwrap_err();
        assert!(
            unknown.contains("`serach`")
                && unknown.contains("catalogue, profile, rates, realtime, search, session"),
            "{unknown}"
        );
    }
}
