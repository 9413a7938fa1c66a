//! What the user has to put right, and the guess at what they meant.

use std::fmt;

/// One clear sentence for whoever started the program. It ends with exit code 2.
#[derive(Debug)]
pub(crate) struct Refusal(String);

impl Refusal {
    /// A refusal that says `sentence`.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// The name among `known` that `given` was most likely meant to be, by edit distance.
///
/// `None` if nothing comes near: a wild guess helps nobody.
pub(crate) fn nearest<'a>(
    given: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|(distance, name)| *distance <= given.len().max(name.len()) / 2)
        .min()
        .map(|(_, name)| name)
}

/// `; did you mean X?` if something comes near, and nothing if not.
pub(crate) fn hint<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(given, known).map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_wild_guesses_are_not_made() {
        let known = ["ttl", "grace", "capacity", "negative_ttl"];
        assert_eq!(nearest("ttls", known), Some("ttl"));
        assert_eq!(nearest("capactiy", known), Some("capacity"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(hint("grase", known), "; did you mean `grace`?");
        assert_eq!(hint("colour", known), "");
    }
}
