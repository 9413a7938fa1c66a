//! Templates: what to invalidate, with fields to be filled in, as `key product:{id}`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::glob::Glob;
use crate::invalidation::Invalidation;
use crate::key::{self, MAX_KEY_BYTES};
use crate::tags::name;

/// The longest template, in bytes: far above any name or key that a cache takes.
const LONGEST: usize = 4_096;
/// How much of a template an error shows, in characters.
const SHOWN: usize = 100;

/// What is to be invalidated, with fields that something fills in: an event's payload, or a row.
///
/// | template | stands for |
/// |---|---|
/// | `key product:{id}` | one entry: a cache, then the parts of the key, divided by colons |
/// | `expire product:{id}` | the same, and the entry becomes stale instead of going |
/// | `tag category:{category_id}` | every entry that carries the tag |
/// | `pattern search:{name}*` | every entry of a cache whose key matches the glob |
/// | `cache bestsellers` | a whole cache |
///
/// `{name}` is a field, `{{` and `}}` are braces. The colons of the template divide a key; those
/// that a field brings in do not, and neither do the `*?[]\` of a field mean anything in a glob.
///
/// ```
/// use larder::{Template, TemplateKind};
///
/// let template: Template = "key price:{shop}:{id}".parse()?;
/// assert_eq!((template.kind(), template.cache()), (TemplateKind::Key, Some("price")));
/// assert_eq!(template.fields().collect::<Vec<_>>(), ["shop", "id"]);
/// assert!("key {id}".parse::<Template>().is_err());
/// # Ok::<_, larder::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    kind: TemplateKind,
    text: Box<str>,
    cache: Option<Box<str>>,
    parts: Vec<Vec<TemplatePiece>>,
}

/// What a [`Template`] invalidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TemplateKind {
    /// One entry goes.
    Key,
    /// One entry becomes stale.
    Expire,
    /// Every entry that carries a tag.
    Tag,
    /// Every entry of a cache whose key matches a glob.
    Pattern,
    /// Every entry of a cache.
    Cache,
}

/// A piece of a part of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TemplatePiece {
    /// Stands for itself.
    Text(String),
    /// The name of what is filled in.
    Field(String),
}

impl TemplateKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Key,
        Self::Expire,
        Self::Tag,
        Self::Pattern,
        Self::Cache,
    ];

    /// What stands in front of a template of this kind.
    pub fn word(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Expire => "expire",
            Self::Tag => "tag",
            Self::Pattern => "pattern",
            Self::Cache => "cache",
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Key | Self::Expire => "product:{id}",
            Self::Tag => "category:{category_id}",
            Self::Pattern => "search:{name}*",
            Self::Cache => "bestsellers",
        }
    }
}

impl Template {
    /// Reads a template of a known kind, without the word in front.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config), with what is wrong and an example of what is not.
    pub fn parse(kind: TemplateKind, text: &str) -> Result<Self> {
        read(kind, text).map_err(|why| {
            let (word, example, text) = (kind.word(), kind.example(), shown(text));
            Error::config(format!(
                "{word} template `{text}` {why}; write it like `{example}`"
            ))
        })
    }

    /// What it invalidates.
    pub fn kind(&self) -> TemplateKind {
        self.kind
    }

    /// The cache; `None` for a tag.
    pub fn cache(&self) -> Option<&str> {
        self.cache.as_deref()
    }

    /// What follows on the cache: the parts of a key, the one text of a tag or a glob, nothing for
    /// a whole cache. Each part has a piece at least.
    pub fn parts(&self) -> &[Vec<TemplatePiece>] {
        &self.parts
    }

    /// The names of the fields, in their order, as often as they stand there.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().flatten().filter_map(|piece| match piece {
            TemplatePiece::Field(name) => Some(name.as_str()),
            TemplatePiece::Text(_) => None,
        })
    }

    /// What it comes to with its fields filled in. The error is a sentence without the template.
    pub(crate) fn fill<T: AsRef<str>>(
        &self,
        mut value: impl FnMut(&str) -> Result<T, String>,
    ) -> Result<Invalidation, String> {
        let (mut parts, mut room) = (Vec::with_capacity(self.parts.len()), MAX_KEY_BYTES);
        for part in &self.parts {
            let mut filled = String::new();
            for piece in part {
                let before = filled.len();
                match piece {
                    TemplatePiece::Text(text) => filled.push_str(text),
                    TemplatePiece::Field(name) => {
                        let value = value(name)?;
                        let value = value.as_ref();
                        if value.len() > room {
                            return Err(too_long());
                        }
                        self.push(&mut filled, value);
                    }
                }
                let taken = filled.len() - before;
                room = room.checked_sub(taken).ok_or_else(too_long)?;
            }
            parts.push(filled);
        }
        let filled = self.invalidation(parts);
        check(&filled)?;
        Ok(filled)
    }

    fn push(&self, filled: &mut String, value: &str) {
        if self.kind == TemplateKind::Pattern {
            filled.push_str(&Glob::escape(value));
        } else {
            filled.push_str(value);
        }
    }

    fn invalidation(&self, parts: Vec<String>) -> Invalidation {
        let cache = self.cache.clone().unwrap_or_default();
        match self.kind {
            TemplateKind::Key => Invalidation::key(cache, parts),
            TemplateKind::Expire => Invalidation::expire(cache, parts),
            TemplateKind::Tag => Invalidation::tag(parts.concat()),
            TemplateKind::Pattern => Invalidation::pattern(cache, parts.concat()),
            TemplateKind::Cache => Invalidation::cache(cache),
        }
    }
}

impl FromStr for Template {
    type Err = Error;

    /// Reads a template with the word in front: `tag category:{category_id}`.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim_start();
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let kind = TemplateKind::ALL
            .into_iter()
            .find(|kind| kind.word() == word);
        let kind = kind.ok_or_else(|| {
            Error::config(format!(
                "template `{}` says not what it is; begin it with `key`, `expire`, `tag`, \
                 `pattern` or `cache` and a space, like `key product:{{id}}`",
                shown(text)
            ))
        })?;
        Self::parse(kind, rest.trim_start())
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.word(), self.text)
    }
}

/// An error for what nothing can be called: fields may be empty, or long.
fn check(filled: &Invalidation) -> Result<(), String> {
    match filled {
        Invalidation::Key { key, .. } | Invalidation::Expire { key, .. } => {
            key::check(key).map_err(|error| error.to_string())
        }
        Invalidation::Tag(tag) => name::check(tag),
        Invalidation::Pattern { glob, .. } => Glob::parse(glob).map(drop),
        Invalidation::Cache(_) => Ok(()),
    }
}

/// The beginning of a text that may be anything.
pub(crate) fn shown(text: &str) -> String {
    let start: String = text.chars().take(SHOWN).collect();
    start.escape_debug().to_string()
}

fn too_long() -> String {
    format!("it comes to more than {MAX_KEY_BYTES} bytes")
}

/// Reads what follows on the word; the error says what is wrong with it.
fn read(kind: TemplateKind, text: &str) -> Result<Template, String> {
    let rest = match text {
        "" => return Err("is empty".to_owned()),
        _ if text.len() > LONGEST => return Err(format!("is longer than {LONGEST} bytes")),
        _ if text.contains('\0') => return Err("holds a NUL".to_owned()),
        text => text,
    };
    let (cache, rest) = match kind {
        TemplateKind::Tag => (None, Some(rest)),
        TemplateKind::Cache => (Some(rest), None),
        TemplateKind::Key | TemplateKind::Expire | TemplateKind::Pattern => {
            let divided = rest.split_once(':');
            let (cache, rest) = divided.ok_or("has no colon behind a cache")?;
            (Some(cache), Some(rest))
        }
    };
    if cache.is_some_and(|name| key::check_name("cache", name).is_err()) {
        let why =
            "does not begin with the name of a cache: letters, digits, `_`, `-` and `.` alone";
        return Err(why.to_owned());
    }
    let divides = matches!(kind, TemplateKind::Key | TemplateKind::Expire);
    let parts = rest.map_or_else(|| Ok(Vec::new()), |rest| pieces(rest, divides))?;
    if parts.iter().any(Vec::is_empty) {
        return Err("has an empty part".to_owned());
    }
    if kind == TemplateKind::Pattern {
        parts.iter().try_for_each(|part| check_glob(part))?;
    }
    Ok(Template {
        kind,
        text: text.into(),
        cache: cache.map(Into::into),
        parts,
    })
}

/// Reads text and fields; where it `divides`, a colon of the text begins a new part.
fn pieces(text: &str, divides: bool) -> Result<Vec<Vec<TemplatePiece>>, &'static str> {
    let mut parts = vec![Vec::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '{' | '}' if chars.next_if_eq(&char).is_some() => push_char(&mut parts, char),
            '{' => {
                let name: String = std::iter::from_fn(|| chars.next_if(|c| *c != '}')).collect();
                if chars.next().is_none() {
                    return Err("has a brace that is not closed");
                }
                if name.is_empty() || name.contains('{') {
                    return Err("has braces without the name of a field in them");
                }
                if let Some(part) = parts.last_mut() {
                    part.push(TemplatePiece::Field(name));
                }
            }
            '}' => return Err("has a brace that was not opened"),
            ':' if divides => parts.push(Vec::new()),
            char => push_char(&mut parts, char),
        }
    }
    Ok(parts)
}

/// Adds a character to the text at the end.
fn push_char(parts: &mut [Vec<TemplatePiece>], char: char) {
    let Some(part) = parts.last_mut() else { return };
    match part.last_mut() {
        Some(TemplatePiece::Text(text)) => text.push(char),
        _ => part.push(TemplatePiece::Text(char.into())),
    }
}

/// An error for what is no glob, or has a field where it would not stand for itself: inside
/// brackets, or behind a backslash. What is in front of a field has to be a glob of its own.
fn check_glob(part: &[TemplatePiece]) -> Result<(), String> {
    let mut glob = String::new();
    for piece in part {
        match piece {
            TemplatePiece::Text(text) => glob.push_str(text),
            TemplatePiece::Field(name) => {
                if !glob.is_empty() && Glob::parse(&glob).is_err() {
                    let name = shown(name);
                    return Err(format!("has `{{{name}}}` inside `[]` or behind `\\`"));
                }
                glob.push('x');
            }
        }
    }
    Glob::parse(&glob)
        .map(drop)
        .map_err(|why| format!("is no glob: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str) -> Result<Invalidation, String> {
        let template: Template = template.parse().unwrap();
        template.fill(|field| match field {
            "id" => Ok("7".to_owned()),
            "odd" => Ok("a:b {*}[\\".to_owned()),
            "none" => Ok(String::new()),
            "long" => Ok("x".repeat(MAX_KEY_BYTES / 2 + 1)),
            field => Err(format!("there is no `{field}`")),
        })
    }

    #[test]
    fn fields_are_filled_in_and_change_no_structure() {
        let expire = Invalidation::expire("price", ["7", "eur"]);
        for (template, expected) in [
            ("key product:{id}", Invalidation::key("product", ["7"])),
            ("expire price:{id}:eur", expire),
            (
                "key price:{odd}:v-{id}",
                Invalidation::key("price", ["a:b {*}[\\", "v-7"]),
            ),
            ("tag {{{id}}}:{id}", Invalidation::tag("{7}:7")),
            (
                "pattern search:*:{odd}*",
                Invalidation::pattern("search", "*:a:b {\\*}\\[\\\\*"),
            ),
            ("cache bestsellers", Invalidation::cache("bestsellers")),
        ] {
            assert_eq!(filled(template), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_cannot_be_filled_in_is_an_error() {
        assert_eq!(filled("tag {x}"), Err("there is no `x`".to_owned()));
        assert!(filled("key c:{long}").is_ok());
        for (template, reason) in [
            ("key c:{long}:{long}", "more than 32768 bytes"),
            ("key c:{none}", "key is empty"),
            ("tag {none}", "tag is empty"),
            ("tag {long}", "at most 1024"),
            ("pattern c:{none}", "glob is empty"),
            ("pattern c:{long}", "at most 1024"),
        ] {
            let error = filled(template).unwrap_err();
            assert!(error.contains(reason), "{template}: {error}");
        }
    }

    #[test]
    fn templates_are_written_as_they_were_read() {
        for text in ["key product:{id}", "tag a b:{{{x.y}}}", "cache bestsellers"] {
            assert_eq!(text.parse::<Template>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_an_example() {
        let long = format!("tag {}", "x".repeat(5_000));
        for (template, reason) in [
            ("", "says not what it is"),
            ("product:{id}", "says not what it is"),
            ("Key product:{id}", "says not what it is"),
            ("key", "is empty"),
            ("key {id}", "no colon"),
            ("key :{id}", "name of a cache"),
            ("key {table}:{id}", "name of a cache"),
            ("key product:", "empty part"),
            ("expire product:{id}:", "empty part"),
            ("key product:{id", "not closed"),
            ("key product:id}", "not opened"),
            ("key product:{}", "without the name"),
            ("tag a{b{c}", "without the name"),
            ("tag a\0", "NUL"),
            (long.as_str(), "longer than"),
            ("cache best sellers", "name of a cache"),
            ("cache product:{id}", "name of a cache"),
            ("pattern a*", "no colon"),
            ("pattern a:", "empty part"),
            ("pattern a:[b", "no glob"),
            ("pattern a:b[{id}]", "inside"),
            ("pattern a:b\\{id}", "behind"),
        ] {
            let message = template.parse::<Template>().unwrap_err().to_string();
            assert!(message.contains(reason), "{template:?}: {message}");
            assert!(message.contains("like `"), "{message}");
            assert!(message.len() < 400 && !message.contains('\0'), "{message}");
        }
    }
}
