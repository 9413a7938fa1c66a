//! How values become bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::BoxError;

/// The deepest nesting that decoding follows, so that hostile bytes cannot exhaust the stack.
const MAX_DEPTH: usize = 128;

/// The format of values in shared tiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Codec {
    /// MessagePack with field names: compact, and fields may be added and removed.
    #[default]
    MessagePack,
    /// JSON: readable in the store, larger.
    Json,
    /// Postcard: the smallest; every change of the type needs a new cache version.
    ///
    /// It does not bound the nesting of recursive types: use it for types without recursion, or
    /// where nobody else can write to the store. Caches with another codec never read it.
    #[cfg(feature = "postcard")]
    Postcard,
}

impl Codec {
    /// The number that stands for this codec in an envelope.
    pub(crate) fn id(self) -> u8 {
        match self {
            Codec::MessagePack => 1,
            Codec::Json => 2,
            #[cfg(feature = "postcard")]
            Codec::Postcard => 3,
        }
    }

    /// Whether decoding bounds the nesting by itself. Only such a codec may be chosen by the bytes;
    /// the others have to be chosen by the cache.
    fn is_bounded(self) -> bool {
        matches!(self, Codec::MessagePack | Codec::Json)
    }

    fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Codec::MessagePack),
            2 => Some(Codec::Json),
            #[cfg(feature = "postcard")]
            3 => Some(Codec::Postcard),
            _ => None,
        }
    }

    fn encode<V: Serialize>(self, value: &V) -> Result<Vec<u8>, BoxError> {
        Ok(match self {
            Codec::MessagePack => rmp_serde::to_vec_named(value)?,
            Codec::Json => serde_json::to_vec(value)?,
            #[cfg(feature = "postcard")]
            Codec::Postcard => postcard::to_allocvec(value)?,
        })
    }

    fn decode<V: DeserializeOwned>(self, bytes: &[u8]) -> Result<V, BoxError> {
        Ok(match self {
            Codec::MessagePack => {
                // rmp-serde does not count the nesting of enums, so it is measured beforehand.
                if !nests_within(bytes, MAX_DEPTH) {
                    return Err("the value is nested too deep".into());
                }
                rmp_serde::from_slice(bytes)?
            }
            Codec::Json => serde_json::from_slice(bytes)?,
            #[cfg(feature = "postcard")]
            Codec::Postcard => postcard::from_bytes(bytes)?,
        })
    }
}

/// Whether MessagePack nests no deeper than `most`, found without recursion. Bytes that end early
/// are left for the decoder to refuse.
fn nests_within(bytes: &[u8], most: usize) -> bool {
    // How many values are still to come at each level.
    let mut open: Vec<u64> = Vec::new();
    let mut rest = bytes;
    while let Some((&marker, behind)) = rest.split_first() {
        let number = |width: usize| {
            behind.get(..width).map(|raw| {
                raw.iter()
                    .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
            })
        };
        // How many bytes belong to this value itself, and how many values are inside it.
        let (own, inside) = match marker {
            0x80..=0x8f => (Some(0), u64::from(marker & 15) * 2),
            0x90..=0x9f => (Some(0), u64::from(marker & 15)),
            0xa0..=0xbf => (Some(u64::from(marker & 31)), 0),
            0xc4 | 0xd9 => (number(1).map(|length| 1 + length), 0),
            0xc5 | 0xda => (number(2).map(|length| 2 + length), 0),
            0xc6 | 0xdb => (number(4).map(|length| 4 + length), 0),
            0xc7 => (number(1).map(|length| 2 + length), 0),
            0xc8 => (number(2).map(|length| 3 + length), 0),
            0xc9 => (number(4).map(|length| 5 + length), 0),
            0xcc | 0xd0 => (Some(1), 0),
            0xcd | 0xd1 | 0xd4 => (Some(2), 0),
            0xd5 => (Some(3), 0),
            0xca | 0xce | 0xd2 => (Some(4), 0),
            0xd6 => (Some(5), 0),
            0xcb | 0xcf | 0xd3 => (Some(8), 0),
            0xd7 => (Some(9), 0),
            0xd8 => (Some(17), 0),
            0xdc => (Some(2), number(2).unwrap_or(0)),
            0xdd => (Some(4), number(4).unwrap_or(0)),
            0xde => (Some(2), number(2).unwrap_or(0) * 2),
            0xdf => (Some(4), number(4).unwrap_or(0) * 2),
            _ => (Some(0), 0),
        };
        let own = own.and_then(|own| usize::try_from(own).ok());
        let Some(behind) = own.and_then(|own| behind.get(own..)) else {
            return true;
        };
        rest = behind;
        match open.last_mut() {
            Some(left) => *left -= 1,
            None if inside == 0 => return true,
            None => {}
        }
        if inside > 0 {
            open.push(inside);
        }
        if open.len() > most {
            return false;
        }
        while open.last() == Some(&0) {
            open.pop();
        }
        if open.is_empty() {
            return true;
        }
    }
    true
}

/// A codec bound to a value type, so that the engine itself needs no serde bounds.
#[derive(Debug)]
pub(crate) struct ValueCodec<V> {
    codec: Codec,
    encode: fn(Codec, &V) -> Result<Vec<u8>, BoxError>,
    decode: fn(Codec, &[u8]) -> Result<V, BoxError>,
}

impl<V: Serialize + DeserializeOwned> ValueCodec<V> {
    pub(crate) fn new(codec: Codec) -> Self {
        Self {
            codec,
            encode: Codec::encode::<V>,
            decode: Codec::decode::<V>,
        }
    }
}

impl<V> ValueCodec<V> {
    pub(crate) fn id(&self) -> u8 {
        self.codec.id()
    }

    /// Encodes a value. A panicking `Serialize` is an error like any other.
    pub(crate) fn encode(&self, value: &V) -> Result<Vec<u8>, BoxError> {
        catch_unwind(AssertUnwindSafe(|| (self.encode)(self.codec, value)))
            .unwrap_or_else(|_panic| Err("encoding the value panicked".into()))
    }

    /// Decodes by the codec that the envelope names: a cache may change its codec while old
    /// entries are about. `None` for anything undecodable, a panicking `Deserialize` included.
    pub(crate) fn decode(&self, id: u8, bytes: &[u8]) -> Option<V> {
        let codec =
            Codec::from_id(id).filter(|codec| *codec == self.codec || codec.is_bounded())?;
        catch_unwind(AssertUnwindSafe(|| (self.decode)(codec, bytes)))
            .ok()?
            .ok()
    }
}

/// The compression of a payload, by its number in an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Lz4,
}

impl Compression {
    pub(crate) fn id(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Lz4 => 1,
        }
    }

    pub(crate) fn from_id(id: u8) -> Option<Self> {
        match id {
            0 => Some(Compression::None),
            1 => Some(Compression::Lz4),
            _ => None,
        }
    }
}

/// Compresses `raw` if it is longer than `over` bytes and gets shorter by it.
pub(crate) fn compress(raw: Vec<u8>, over: usize) -> (Compression, Vec<u8>) {
    if raw.len() > over {
        let packed = lz4_flex::block::compress(&raw);
        if packed.len() < raw.len() {
            return (Compression::Lz4, packed);
        }
    }
    (Compression::None, raw)
}

/// Decompresses an lz4 block that claims to be `raw_len` bytes long.
///
/// The claim is checked before anything is allocated: lz4 cannot expand by more than 255.
pub(crate) fn decompress(packed: &[u8], raw_len: usize, at_most: usize) -> Option<Vec<u8>> {
    if raw_len > at_most || raw_len / 255 > packed.len() {
        return None;
    }
    let raw = lz4_flex::block::decompress(packed, raw_len).ok()?;
    (raw.len() == raw_len).then_some(raw)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Chain {
        End,
        Link(Box<Chain>),
    }

    fn chain(links: usize) -> Chain {
        (0..links).fold(Chain::End, |chain, _| Chain::Link(Box::new(chain)))
    }

    /// `{"Link": {"Link": ... "End"}}`, written without recursion.
    fn hostile(codec: Codec, links: usize) -> Vec<u8> {
        match codec {
            Codec::Json => {
                let (open, close) = ("{\"Link\":".repeat(links), "}".repeat(links));
                format!("{open}\"End\"{close}").into_bytes()
            }
            _ => [&b"\x81\xa4Link".repeat(links)[..], b"\xa3End"].concat(),
        }
    }

    #[test]
    fn nesting_without_end_is_refused_and_moderate_nesting_is_not() {
        for codec in [Codec::MessagePack, Codec::Json] {
            let values = ValueCodec::<Chain>::new(codec);
            assert_eq!(
                values.decode(codec.id(), &hostile(codec, 100_000)),
                None,
                "{codec:?}"
            );
            let moderate = values.encode(&chain(60)).unwrap();
            assert_eq!(
                values.decode(codec.id(), &moderate),
                Some(chain(60)),
                "{codec:?}"
            );
        }
    }

    #[test]
    fn arrays_and_maps_count_alike() {
        let arrays = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
        assert!(nests_within(&arrays(128), 128));
        assert!(!nests_within(&arrays(129), 128));
        let long = [&[0xdd, 0xff, 0xff, 0xff, 0xff], &arrays(200)[..]].concat();
        assert!(!nests_within(&long, 128));
    }

    #[test]
    fn a_panic_in_serialize_is_an_error() {
        struct Broken;
        impl Serialize for Broken {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                panic!("broken")
            }
        }
        impl<'de> Deserialize<'de> for Broken {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                panic!("broken")
            }
        }
        let values = ValueCodec::<Broken>::new(Codec::MessagePack);
        assert!(values.encode(&Broken).is_err());
        assert!(values.decode(1, b"\xc0").is_none());
    }

    proptest! {
        #[test]
        fn measuring_the_nesting_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = nests_within(&bytes, 4);
        }

        #[test]
        fn what_is_encoded_is_decoded(value in any::<(u64, String, Vec<Option<i32>>, f64)>()) {
            for codec in [Codec::MessagePack, Codec::Json] {
                let values = ValueCodec::<(u64, String, Vec<Option<i32>>, f64)>::new(codec);
                let bytes = values.encode(&value).unwrap();
                prop_assert!(nests_within(&bytes, 128) || codec == Codec::Json);
                prop_assert!(values.decode(codec.id(), &bytes).is_some());
            }
        }
    }
}
