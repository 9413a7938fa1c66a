//! Globs on keys.
//!
//! | glob | matches |
//! |---|---|
//! | `*` | any run of characters, also none, also across the `:` between parts |
//! | `?` | one character |
//! | `[a-z_]` | one character of these |
//! | `[!a-z]`, `[^a-z]` | one character that is none of these |
//! | `\` | takes the meaning from the character behind it |
//!
//! Everything else stands for itself, braces too. A glob is matched against the whole key as it was
//! before it was encoded, its parts joined by `:`. A character is what UTF-8 says; where a key is
//! not UTF-8, each byte that belongs to no character counts as one, which no literal and no class
//! matches but a negated one.
//!
//! Matching needs no memory, and its time is bounded by the length of the glob times that of the
//! key: only the last `*` is ever tried again.

use crate::key::{KeySink, is_plain, nibble};

/// The longest glob, in bytes.
pub(crate) const MAX_BYTES: usize = 1 << 10;

/// A pattern of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glob {
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    One,
    Many,
    Class {
        negated: bool,
        /// First and last of each range.
        ranges: Vec<(char, char)>,
    },
}

/// What a key consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Char(char),
    /// A byte that is no part of a character.
    Byte,
}

impl Glob {
    /// Reads a glob; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the glob is empty; `*` matches every key".to_owned());
        }
        if text.len() > MAX_BYTES {
            let length = text.len();
            return Err(format!(
                "the glob takes {length} bytes; at most {MAX_BYTES} are allowed"
            ));
        }
        let mut tokens = Vec::new();
        let mut rest = text.chars();
        while let Some(char) = rest.next() {
            tokens.push(match char {
                '*' if tokens.last() == Some(&Token::Many) => continue,
                '*' => Token::Many,
                '?' => Token::One,
                '[' => class(&mut rest)?,
                '\\' => Token::Literal(escaped(&mut rest)?),
                literal => Token::Literal(literal),
            });
        }
        Ok(Self { tokens })
    }

    /// The glob that matches `text` alone.
    pub(crate) fn escape(text: &str) -> String {
        let mut glob = String::with_capacity(text.len());
        for char in text.chars() {
            if matches!(char, '*' | '?' | '[' | ']' | '\\') {
                glob.push('\\');
            }
            glob.push(char);
        }
        glob
    }

    /// Whether it matches a key, given as its parts before they were encoded, joined by `:`.
    #[cfg(test)]
    fn matches(&self, key: &[u8]) -> bool {
        self.run(Raw(key))
    }

    /// Whether it matches a key, given as it was encoded, without namespace and cache. Bytes that
    /// no key is encoded as are matched by no glob.
    pub(crate) fn matches_encoded(&self, key: &[u8]) -> bool {
        is_encoded(key) && self.run(Encoded(key))
    }

    /// Whether it matches every key.
    pub(crate) fn matches_everything(&self) -> bool {
        self.tokens == [Token::Many]
    }

    /// What every key that matches begins with.
    fn literal_prefix(&self) -> String {
        let literals = self.tokens.iter().map_while(|token| match token {
            Token::Literal(char) => Some(char),
            _ => None,
        });
        literals.collect()
    }

    /// What the encoding of every key that matches begins with. It ends at the first colon: whether
    /// that stands between two parts or within one is not known.
    pub(crate) fn encoded_prefix(&self) -> Vec<u8> {
        let prefix = self.literal_prefix();
        let mut sink = KeySink::behind(b"");
        sink.part(prefix.split(':').next().unwrap_or_default().as_bytes());
        sink.into_bytes().to_vec()
    }

    fn run(&self, key: impl Spelling) -> bool {
        let (mut token, mut at) = (0, 0);
        // The token behind the last `*`, and where the run ends that the `*` stands for so far.
        let mut many = None;
        loop {
            match self.tokens.get(token) {
                Some(Token::Many) => {
                    token += 1;
                    many = Some((token, at));
                    continue;
                }
                Some(one) => {
                    if let Some((unit, next)) = unit(key, at)
                        && one.takes(unit)
                    {
                        (token, at) = (token + 1, next);
                        continue;
                    }
                }
                None if key.byte(at).is_none() => return true,
                None => {}
            }
            let Some((behind, end)) = many else {
                return false;
            };
            let Some((_, next)) = unit(key, end) else {
                return false;
            };
            (token, at) = (behind, next);
            many = Some((behind, next));
        }
    }
}

impl Token {
    fn takes(&self, unit: Unit) -> bool {
        match (self, unit) {
            (Self::Literal(literal), Unit::Char(char)) => *literal == char,
            (Self::Literal(_), Unit::Byte) => false,
            (Self::One | Self::Many, _) => true,
            (Self::Class { negated, .. }, Unit::Byte) => *negated,
            (Self::Class { negated, ranges }, Unit::Char(char)) => {
                let within = |(first, last): &(char, char)| (*first..=*last).contains(&char);
                ranges.iter().any(within) != *negated
            }
        }
    }
}

fn class(rest: &mut std::str::Chars<'_>) -> Result<Token, String> {
    let negated = rest.as_str().starts_with(['!', '^']);
    if negated {
        rest.next();
    }
    let mut ranges = Vec::new();
    loop {
        let first = match rest.next() {
            None => return Err("a `[` of the glob has no `]`; `\\[` is the bracket".to_owned()),
            Some(']') => break,
            Some('\\') => escaped(rest)?,
            Some(char) => char,
        };
        let mut ahead = rest.clone();
        let last = match (ahead.next(), ahead.next()) {
            (Some('-'), Some(last)) if last != ']' => {
                *rest = ahead;
                if last == '\\' { escaped(rest)? } else { last }
            }
            _ => first,
        };
        if first > last {
            return Err(format!("the range `{first}-{last}` of the glob is empty"));
        }
        ranges.push((first, last));
    }
    if ranges.is_empty() {
        return Err("a `[]` of the glob is empty; `[\\]]` is the bracket".to_owned());
    }
    Ok(Token::Class { negated, ranges })
}

fn escaped(rest: &mut std::str::Chars<'_>) -> Result<char, String> {
    let nothing = || "the glob ends in `\\`; `\\\\` is the backslash".to_owned();
    rest.next().ok_or_else(nothing)
}

/// How the bytes of a key are written down.
trait Spelling: Copy {
    /// The byte that is written at `at`, and where the next one is.
    fn byte(self, at: usize) -> Option<(u8, usize)>;
}

/// As it was before.
#[cfg(test)]
#[derive(Clone, Copy)]
struct Raw<'a>(&'a [u8]);

#[cfg(test)]
impl Spelling for Raw<'_> {
    fn byte(self, at: usize) -> Option<(u8, usize)> {
        Some((*self.0.get(at)?, at + 1))
    }
}

/// As [`KeySink::part`] writes it.
#[derive(Clone, Copy)]
struct Encoded<'a>(&'a [u8]);

impl Spelling for Encoded<'_> {
    fn byte(self, at: usize) -> Option<(u8, usize)> {
        match *self.0.get(at..)? {
            [b'%', high, low, ..] => Some((nibble(high)? << 4 | nibble(low)?, at + 3)),
            [byte, ..] => Some((byte, at + 1)),
            [] => None,
        }
    }
}

/// Whether a key can be encoded like this.
fn is_encoded(mut key: &[u8]) -> bool {
    loop {
        key = match key {
            [] => return true,
            [b'%', high, low, rest @ ..] => match (nibble(*high), nibble(*low)) {
                (Some(high), Some(low)) if !is_plain(high << 4 | low) => rest,
                _ => return false,
            },
            [byte, rest @ ..] if is_plain(*byte) || *byte == b':' => rest,
            _ => return false,
        }
    }
}

/// The character or odd byte that begins at `at`, and where the next one does.
fn unit(key: impl Spelling, at: usize) -> Option<(Unit, usize)> {
    let (first, behind) = key.byte(at)?;
    let width = match first {
        0..=0x7f => return Some((Unit::Char(char::from(first)), behind)),
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return Some((Unit::Byte, behind)),
    };
    let mut bytes = [first, 0, 0, 0];
    let mut end = behind;
    for slot in &mut bytes[1..width] {
        // At the end of the key the zero stays, which continues no character.
        if let Some((byte, next)) = key.byte(end) {
            (*slot, end) = (byte, next);
        }
    }
    let text = str::from_utf8(&bytes[..width]).ok();
    match text.and_then(|text| text.chars().next()) {
        Some(char) => Some((Unit::Char(char), end)),
        None => Some((Unit::Byte, behind)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn glob(text: &str) -> Glob {
        Glob::parse(text).unwrap()
    }

    #[track_caller]
    fn check(text: &str, matching: &[&str], others: &[&str]) {
        for key in matching {
            assert!(glob(text).matches(key.as_bytes()), "{text} and {key}");
        }
        for key in others {
            assert!(!glob(text).matches(key.as_bytes()), "{text} but {key}");
        }
    }

    #[test]
    fn globs_match_what_they_say() {
        check("user:7", &["user:7"], &["user:70", "user:", "xuser:7", ""]);
        check(
            "user:*",
            &["user:", "user:7", "user:7:cart"],
            &["user", "users:7"],
        );
        check(
            "*:cart",
            &["user:7:cart", ":cart"],
            &["cart", "user:cart:7"],
        );
        check(
            "a*b*c",
            &["abc", "a:b:c", "abcbc", "acbbc"],
            &["ab", "acb", "abcd"],
        );
        check("?", &["x", ":", "é", "日"], &["", "xy"]);
        check("[a-cx]1", &["a1", "c1", "x1"], &["d1", "A1", "1", "-1"]);
        check("[!a-c]", &["d", "é", "!"], &["a", "b", ""]);
        check("[^a-c]", &["d", "^"], &["a"]);
        check("[à-ü]", &["é"], &["e", "z"]);
        check("[a-]", &["a", "-"], &["b"]);
        check("[-a]", &["a", "-"], &["b"]);
        check("[\\]\\-\\\\]", &["]", "-", "\\"], &["a"]);
        check("[[*?]", &["[", "*", "?"], &["a"]);
        check("\\*\\?\\[\\]\\\\\\a", &["*?[]\\a"], &["x?[]\\a"]);
        check("{a,b}", &["{a,b}"], &["a", "b"]);
        check("**", &["", "anything"], &[]);
    }

    #[test]
    fn a_byte_that_is_no_character_is_matched_by_what_does_not_name_one() {
        for (text, expected) in [("?", true), ("[!a]", true), ("*", true), ("[a]", false)] {
            assert_eq!(glob(text).matches(b"\xff"), expected, "{text}");
        }
        assert!(!glob("\u{fffd}").matches(b"\xff"));
        assert!(glob("é?").matches(b"\xc3\xa9\xc3"));
    }

    #[test]
    fn what_is_no_glob_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("a[b", "no `]`"),
            ("a[b-", "no `]`"),
            ("[]", "`[]`"),
            ("[!]", "`[]`"),
            ("[z-a]", "`z-a`"),
            ("a\\", "ends in"),
            ("[a\\", "ends in"),
            ("[a-\\", "ends in"),
            ("x".repeat(MAX_BYTES + 1).as_str(), "1025 bytes"),
        ] {
            let error = Glob::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(Glob::parse(&"x".repeat(MAX_BYTES)).is_ok());
    }

    #[test]
    fn prefixes_end_where_it_is_not_certain_how_a_key_goes_on() {
        for (text, prefix, encoded) in [
            ("user:7", "user:7", "user"),
            ("us\\*r?", "us*r", "us*r"),
            ("a{é*", "a{é", "a%7B%C3%A9"),
            ("*x", "", ""),
            ("[a]x", "", ""),
        ] {
            assert_eq!(glob(text).literal_prefix(), prefix);
            assert_eq!(glob(text).encoded_prefix(), encoded.as_bytes());
        }
    }

    #[test]
    fn only_stars_match_everything() {
        assert!(glob("*").matches_everything());
        assert!(glob("***").matches_everything());
        for text in ["?*", "*:*", "\\*", "x"] {
            assert!(!glob(text).matches_everything(), "{text}");
        }
    }

    #[test]
    fn bytes_that_are_no_key_match_nothing() {
        for key in [
            b"%41".as_slice(),
            b"%3a",
            b"%",
            b"a%4",
            b"a b",
            b"\xff",
            b"{",
        ] {
            assert!(!glob("*").matches_encoded(key), "{key:?}");
        }
        assert!(glob("a?b").matches_encoded(b"a%FFb"));
        assert!(glob("a?b").matches_encoded(b"a%C3%A9b"));
        assert!(glob("a?b").matches_encoded(b"a:b"));
        assert!(glob("a:b").matches_encoded(b"a%3Ab"));
    }

    /// A matcher that tries every star again would not live to see the end of this.
    #[test]
    fn stars_do_not_multiply() {
        let text = "*a".repeat(MAX_BYTES / 2 - 1) + "*b";
        assert!(!glob(&text).matches(&[b'a'; 32 << 10]));
    }

    /// The definition, without regard for time.
    fn naive(tokens: &[Token], units: &[Unit]) -> bool {
        match (tokens, units) {
            ([], []) => true,
            ([Token::Many, behind @ ..], _) => {
                (0..=units.len()).any(|taken| naive(behind, &units[taken..]))
            }
            ([one, behind @ ..], [unit, rest @ ..]) => one.takes(*unit) && naive(behind, rest),
            _ => false,
        }
    }

    fn units(key: &[u8]) -> Vec<Unit> {
        let chunks = key.utf8_chunks();
        chunks
            .flat_map(|chunk| {
                let chars = chunk.valid().chars().map(Unit::Char);
                chars.chain(chunk.invalid().iter().map(|_| Unit::Byte))
            })
            .collect()
    }

    fn parts() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let piece = proptest::sample::select(vec![
            b"a".as_slice(),
            b"b",
            b":",
            b"%",
            b"*",
            "é".as_bytes(),
            "日".as_bytes(),
            "𝄞".as_bytes(),
            b"\xc3",
            b"\xe6\x97",
            b"\xff",
            b"\xed\xa0\x80",
            b"\xa9",
        ]);
        let part = proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat());
        proptest::collection::vec(part, 1..4)
    }

    fn pattern() -> impl Strategy<Value = String> {
        let piece = proptest::sample::select(vec![
            "a", "b", ":", "é", "日", "%", "?", "*", "*", "\\*", "[ab]", "[!a]", "[a-é]", "[^日]",
        ]);
        proptest::collection::vec(piece, 1..9).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn it_matches_what_the_definition_matches(text in pattern(), parts in parts()) {
            let (glob, key) = (glob(&text), parts.join(&b':'));
            let expected = naive(&glob.tokens, &units(&key));
            prop_assert_eq!(glob.matches(&key), expected);
            let mut sink = KeySink::behind(b"");
            parts.iter().for_each(|part| sink.part(part));
            let encoded = sink.into_bytes();
            prop_assert_eq!(glob.matches_encoded(&encoded), expected);
            if expected {
                prop_assert!(key.starts_with(glob.literal_prefix().as_bytes()));
                prop_assert!(encoded.starts_with(&glob.encoded_prefix()));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), key in any::<Vec<u8>>()) {
            if let Ok(glob) = Glob::parse(&text) {
                let _ = glob.matches(&key);
                let _ = glob.matches_encoded(&key);
            }
        }

        #[test]
        fn no_brackets_make_it_panic(text in "[\\[\\]\\\\!^a-c-]{1,8}", key in "[a-c\\[\\]-]{0,4}") {
            if let Ok(glob) = Glob::parse(&text) {
                let expected = naive(&glob.tokens, &units(key.as_bytes()));
                prop_assert_eq!(glob.matches(key.as_bytes()), expected);
            }
        }

        #[test]
        fn an_escaped_text_matches_itself_alone(text in any::<String>(), other in any::<String>()) {
            prop_assume!(!text.is_empty() && text.len() < MAX_BYTES / 2);
            let glob = glob(&Glob::escape(&text));
            prop_assert!(glob.matches(text.as_bytes()));
            prop_assert_eq!(glob.matches(other.as_bytes()), text == other);
            prop_assert_eq!(glob.literal_prefix(), text);
        }
    }
}
