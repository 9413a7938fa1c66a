//! Keys, and how they look in a shared tier.
//!
//! A key of cache `product`, version 2, in namespace `shop` stands in Redis as
//! `shop:product@2:17`. The part behind the last fixed colon is written by [`Key::encode`] and
//! is injective: two different keys of one type never encode alike, because every byte that
//! could be mistaken for structure is percent-escaped inside a part.

use std::borrow::Borrow;
use std::hash::Hash;
use std::str;
use std::sync::Arc;

use bytes::Bytes;
use equivalent::Equivalent;

use crate::error::{Error, Result};

/// The longest encoded key, namespace and cache name included, in bytes.
pub const MAX_KEY_BYTES: usize = 32 * 1024;

/// A type whose values can name entries.
///
/// Implemented for integers, `bool`, `char`, strings, byte strings, tuples of up to six of these, and
/// `Option`s of all of them. A hit in memory hashes the key itself; the encoded form is made on a miss only.
///
/// An implementation must be injective and must decode what it encodes:
///
/// ```
/// use larder::{Key, KeySink};
///
/// #[derive(Clone, Debug, PartialEq, Eq, Hash)]
/// struct UserId(u64);
///
/// impl Key for UserId {
///     fn encode(&self, sink: &mut KeySink) {
///         self.0.encode(sink);
///     }
///     fn decode(encoded: &[u8]) -> Option<Self> {
///         u64::decode(encoded).map(UserId)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be in a key",
    label = "no `larder::Key` is implemented for this type",
    note = "keys are integers, `bool`, `char`, strings, bytes, tuples and `Option`s of these, and types that implement `larder::Key`",
    note = "in `#[cached]`, name what tells two calls apart, like `{{user.id}}`, or list an argument that does not under `ignore`"
)]
pub trait Key: Send + Sync {
    /// How many colon-separated parts the encoding has. Fixed for the type.
    const PARTS: usize = 1;

    /// Writes this key, part by part.
    fn encode(&self, sink: &mut KeySink);

    /// Reads a key back. `None` for bytes that [`Key::encode`] never writes.
    fn decode(encoded: &[u8]) -> Option<Self>
    where
        Self: Sized;
}

/// What the key type of a cache must be: a [`Key`] that can be hashed, compared and cloned.
///
/// Implemented for every type that qualifies; there is nothing to implement by hand.
pub trait CacheKey: Key + Hash + Eq + Clone + 'static {}

impl<K> CacheKey for K where K: Key + Hash + Eq + Clone + 'static {}

/// Anything that can stand for a key of type `K` in a call: `&str` for `String`, `K` for itself.
///
/// Implemented for every type that qualifies; there is nothing to implement by hand.
pub trait AsKey<K>: Key + Hash + Equivalent<K> + ToOwned<Owned = K> {}

impl<K, Q> AsKey<K> for Q where Q: Key + Hash + Equivalent<K> + ToOwned<Owned = K> + ?Sized {}

/// Where a key writes itself.
#[derive(Debug)]
pub struct KeySink {
    bytes: Vec<u8>,
    parts: usize,
}

impl KeySink {
    /// A sink that continues behind `prefix`.
    pub(crate) fn behind(prefix: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(prefix.len() + 24);
        bytes.extend_from_slice(prefix);
        Self { bytes, parts: 0 }
    }

    /// Adds bytes as they are, without making a part of them.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from(self.bytes)
    }

    #[cfg(feature = "macros")]
    pub(crate) fn into_vec(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes a key behind what is there, without a colon between.
    ///
    /// One that has not as many parts as its type says, since a `CallKey` can have any number, is
    /// escaped once more: two of them behind one another could be taken apart in two ways.
    #[cfg(feature = "macros")]
    pub(crate) fn go_on_with<K: Key + ?Sized>(&mut self, key: &K) {
        let start = self.bytes.len();
        self.parts = 0;
        key.encode(self);
        let colons = self.bytes[start..].iter().filter(|byte| **byte == b':');
        if colons.count() + 1 != K::PARTS {
            let encoded = self.bytes.split_off(start);
            // No encoding has two of these in a row.
            self.bytes.extend(b"%%");
            self.escaped(&encoded);
        }
    }

    /// Adds one part. Control characters, space, non-ASCII and `: % { }` are escaped as `%XX`.
    pub fn part(&mut self, raw: &[u8]) {
        if self.parts > 0 {
            self.bytes.push(b':');
        }
        self.parts += 1;
        self.escaped(raw);
    }

    /// Adds bytes to the part that is being written.
    pub(crate) fn escaped(&mut self, raw: &[u8]) {
        if raw.iter().all(|byte| is_plain(*byte)) {
            return self.bytes.extend_from_slice(raw);
        }
        for &byte in raw {
            if is_plain(byte) {
                self.bytes.push(byte);
            } else {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                let [high, low] = [byte >> 4, byte & 15].map(|nibble| HEX[usize::from(nibble)]);
                self.bytes.extend([b'%', high, low]);
            }
        }
    }
}

/// Bytes that stand for themselves. Braces are not among them, so that no key can choose its
/// Redis Cluster slot.
pub(crate) fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b':' | b'%' | b'{' | b'}')
}

/// Undoes [`KeySink::part`], and refuses every spelling that it would not have written.
pub(crate) fn unescape(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut raw = Vec::with_capacity(encoded.len());
    let mut rest = encoded.iter();
    while let Some(&byte) = rest.next() {
        if is_plain(byte) {
            raw.push(byte);
            continue;
        }
        let (b'%', high, low) = (byte, nibble(*rest.next()?)?, nibble(*rest.next()?)?) else {
            return None;
        };
        let byte = high << 4 | low;
        if is_plain(byte) {
            return None;
        }
        raw.push(byte);
    }
    Some(raw)
}

pub(crate) fn nibble(hex: u8) -> Option<u8> {
    match hex {
        b'0'..=b'9' => Some(hex - b'0'),
        b'A'..=b'F' => Some(hex - b'A' + 10),
        _ => None,
    }
}

/// Encodes `key` behind the prefix of its cache; an error for an empty or oversized key.
pub(crate) fn encode<Q: Key + ?Sized>(prefix: &[u8], key: &Q) -> Result<Bytes> {
    let mut sink = KeySink::behind(prefix);
    key.encode(&mut sink);
    match sink.bytes.len() {
        length if length == prefix.len() => Err(Error::key("the key is empty")),
        length if length > MAX_KEY_BYTES => Err(too_long(length)),
        _ => Ok(Bytes::from(sink.bytes)),
    }
}

/// Cache, schema version, and where the encoded key begins in `cache@version:key`.
pub(crate) fn taken_apart(name: &[u8]) -> Option<(&str, u32, usize)> {
    let at = name.iter().position(|&byte| byte == b'@')?;
    let colon = at + name[at..].iter().position(|&byte| byte == b':')?;
    let cache = str::from_utf8(&name[..at]).ok()?;
    let version = str::from_utf8(&name[at + 1..colon]).ok()?.parse().ok()?;
    Some((cache, version, colon + 1))
}

/// An error for bytes that no key encodes as.
pub(crate) fn check(encoded: &[u8]) -> Result<()> {
    let plain = |byte: &u8| is_plain(*byte) || matches!(byte, b':' | b'%');
    match encoded.len() {
        0 => Err(Error::key("the key is empty")),
        length if length > MAX_KEY_BYTES => Err(too_long(length)),
        _ if !encoded.iter().all(plain) => Err(Error::key("the key is not an encoded one")),
        _ => Ok(()),
    }
}

fn too_long(length: usize) -> Error {
    Error::key(format!(
        "the key takes {length} bytes encoded; at most {MAX_KEY_BYTES} are allowed"
    ))
}

/// Names stand in keys as they are, so they hold nothing that would have to be escaped.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::config(format!(
        "{what} `{}` is not a name: use 1 to 64 letters, digits, `_`, `-` and `.`",
        name.escape_default()
    )))
}

macro_rules! integer_keys {
    ($($int:ty)*) => {$(
        impl Key for $int {
            fn encode(&self, sink: &mut KeySink) {
                sink.part(self.to_string().as_bytes());
            }

            fn decode(encoded: &[u8]) -> Option<Self> {
                let text = str::from_utf8(encoded).ok()?;
                let value: Self = text.parse().ok()?;
                (value.to_string() == text).then_some(value)
            }
        }
    )*};
}

integer_keys!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

impl Key for bool {
    fn encode(&self, sink: &mut KeySink) {
        sink.part(if *self { b"true" } else { b"false" });
    }

    fn decode(encoded: &[u8]) -> Option<Self> {
        match encoded {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        }
    }
}

impl Key for char {
    fn encode(&self, sink: &mut KeySink) {
        sink.part(self.encode_utf8(&mut [0; 4]).as_bytes());
    }

    fn decode(encoded: &[u8]) -> Option<Self> {
        let text = String::decode(encoded)?;
        let mut chars = text.chars();
        chars.next().filter(|_| chars.next().is_none())
    }
}

impl Key for str {
    fn encode(&self, sink: &mut KeySink) {
        sink.part(self.as_bytes());
    }
}

impl Key for [u8] {
    fn encode(&self, sink: &mut KeySink) {
        sink.part(self);
    }
}

impl Key for Vec<u8> {
    fn encode(&self, sink: &mut KeySink) {
        sink.part(self);
    }

    fn decode(encoded: &[u8]) -> Option<Self> {
        unescape(encoded)
    }
}

macro_rules! string_keys {
    ($($string:ty)*) => {$(
        impl Key for $string {
            fn encode(&self, sink: &mut KeySink) {
                let text: &str = self.borrow();
                sink.part(text.as_bytes());
            }

            fn decode(encoded: &[u8]) -> Option<Self> {
                Some(String::from_utf8(unescape(encoded)?).ok()?.into())
            }
        }
    )*};
}

string_keys!(String Box<str> Arc<str>);

/// One part: `-` for `None`; `+` and the encoding of the key, escaped once more, for `Some`.
impl<K: Key> Key for Option<K> {
    fn encode(&self, sink: &mut KeySink) {
        match self {
            None => sink.part(b"-"),
            Some(key) => {
                let mut inside = KeySink::behind(b"+");
                key.encode(&mut inside);
                sink.part(&inside.bytes);
            }
        }
    }

    fn decode(encoded: &[u8]) -> Option<Self> {
        match unescape(encoded)?.as_slice() {
            b"-" => Some(None),
            [b'+', inside @ ..] => K::decode(inside).map(Some),
            _ => None,
        }
    }
}

macro_rules! tuple_keys {
    ($($part:ident $at:tt),+) => {
        impl<$($part: Key),+> Key for ($($part,)+) {
            const PARTS: usize = 0 $(+ $part::PARTS)+;

            fn encode(&self, sink: &mut KeySink) {
                $(self.$at.encode(sink);)+
            }

            fn decode(encoded: &[u8]) -> Option<Self> {
                let mut rest = Some(encoded);
                let decoded = ($($part::decode(take_parts(&mut rest, $part::PARTS)?)?,)+);
                rest.is_none().then_some(decoded)
            }
        }
    };
}

tuple_keys!(A 0);
tuple_keys!(A 0, B 1);
tuple_keys!(A 0, B 1, C 2);
tuple_keys!(A 0, B 1, C 2, D 3);
tuple_keys!(A 0, B 1, C 2, D 3, E 4);
tuple_keys!(A 0, B 1, C 2, D 3, E 4, F 5);

/// Splits the first `count` parts off; `rest` becomes `None` when nothing is left behind them.
fn take_parts<'a>(rest: &mut Option<&'a [u8]>, count: usize) -> Option<&'a [u8]> {
    let encoded = (*rest)?;
    let mut colons = encoded
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b':');
    match colons.nth(count.checked_sub(1)?) {
        Some((at, _)) => {
            *rest = Some(&encoded[at + 1..]);
            Some(&encoded[..at])
        }
        None => {
            *rest = None;
            Some(encoded)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<Q: Key + ?Sized>(key: &Q) -> String {
        String::from_utf8(encode(b"", key).unwrap().to_vec()).unwrap()
    }

    fn survives<K: Key + PartialEq + std::fmt::Debug>(key: K) {
        assert_eq!(K::decode(&encode(b"", &key).unwrap()).unwrap(), key);
    }

    #[test]
    fn parts_cannot_run_into_each_other() {
        assert_eq!(text(&("a:b", "c").map_owned()), "a%3Ab:c");
        assert_eq!(text(&("a", "b:c").map_owned()), "a:b%3Ac");
        assert_ne!(text(&("", "a").map_owned()), text("a"));
    }

    trait MapOwned {
        fn map_owned(self) -> (String, String);
    }

    impl MapOwned for (&str, &str) {
        fn map_owned(self) -> (String, String) {
            (self.0.to_owned(), self.1.to_owned())
        }
    }

    #[test]
    fn what_there_is_cannot_be_mistaken_for_nothing() {
        let some = |inside: &str| text(&Some(inside.to_owned()));
        assert_eq!(text(&None::<String>), "-");
        assert_eq!([some("-"), some(""), some("a:b")], ["+-", "+", "+a%253Ab"]);
        assert_eq!(Option::<u8>::decode(b"7"), None);
        assert_eq!(Option::<u8>::decode(b"--"), None);
    }

    #[test]
    fn hostile_characters_are_escaped() {
        assert_eq!(text("a b\r\n\0{x}%é*"), "a%20b%0D%0A%00%7Bx%7D%25%C3%A9*");
    }

    #[test]
    fn every_kind_of_key_survives_the_round_trip() {
        survives(0_u64);
        survives(-17_i32);
        survives(u128::MAX);
        survives(true);
        survives('é');
        survives("a:b %41\n".to_owned());
        survives(vec![0_u8, 255, b':']);
        survives((7_u64, "x:y".to_owned()));
        survives((1_u8, (2_u8, String::new()), 3_u8));
        survives(None::<u8>);
        survives((
            Some("a:b%".to_owned()),
            None::<(u8, u8)>,
            Some(Some((1_u8, -2_i8))),
        ));
    }

    #[test]
    fn other_spellings_do_not_decode() {
        for spelling in ["007", "+7", "", "7 ", "x"] {
            assert_eq!(u64::decode(spelling.as_bytes()), None, "{spelling:?}");
        }
        for spelling in ["%41", "%3a", "%", "%4", "a b", "a:b"] {
            assert_eq!(String::decode(spelling.as_bytes()), None, "{spelling:?}");
        }
        assert_eq!(<(u8, u8)>::decode(b"1"), None);
        assert_eq!(<(u8, u8)>::decode(b"1:2:3"), None);
    }

    #[test]
    fn empty_and_oversized_keys_are_refused() {
        assert!(
            encode(b"ns:c@1:", "")
                .unwrap_err()
                .to_string()
                .contains("empty")
        );
        let long = "x".repeat(MAX_KEY_BYTES);
        assert!(
            encode(b"ns:c@1:", long.as_str())
                .unwrap_err()
                .to_string()
                .contains("32768")
        );
        assert!(encode(b"ns:c@1:", "x".repeat(10_000).as_str()).is_ok());
    }
}
