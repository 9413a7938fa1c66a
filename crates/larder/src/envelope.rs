//! How an entry looks as bytes in a shared tier.
//!
//! ```text
//! 0        56                64
//! | header | checksum (xxh3) | body: ids, times, key echo, tags, validators, payload |
//! | mutable, outside the checksum | immutable: any flipped bit is a counted miss     |
//! ```
//!
//! All integers of fixed width are big-endian. The header is rewritten in place by stores (leases,
//! `expire`, renewal) and is validated on its own. A header with nothing behind it is a
//! placeholder: the key is leased and has no value.
//!
//! Whatever a tier returns is treated as hostile: decoding never panics, and never allocates by a
//! length that the bytes merely claim.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::Millis;
use crate::codec::{Compression, compress, decompress};
use crate::store::LeaseToken;

/// The mutable front of every envelope, [`Header::LEN`] bytes long.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 4 | magic, `LRDR` |
/// | 4 | 1 | format version, 1 |
/// | 5 | 3 | reserved, zero |
/// | 8 | 16 | fill id: random, new with every fill |
/// | 24 | 8 | lease token, zero for none |
/// | 32 | 8 | lease deadline, milliseconds by the store's clock |
/// | 40 | 8 | fresh until, wall milliseconds |
/// | 48 | 8 | stale until, wall milliseconds |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Random, new with every fill: tells whether two copies are of one fill.
    pub fill_id: [u8; 16],
    /// Who is loading, if anybody.
    pub lease: Option<LeaseToken>,
    /// Until when the lease counts, in milliseconds by the store's own clock.
    pub lease_until: Millis,
    /// Until when the value is fresh, in wall milliseconds.
    pub fresh_until: Millis,
    /// Until when the value may be used at all, in wall milliseconds.
    pub stale_until: Millis,
}

impl Header {
    /// Length in bytes.
    pub const LEN: usize = 56;
    /// The first bytes of every envelope: magic and format version.
    pub const MAGIC: [u8; 5] = *b"LRDR\x01";
    /// Where the lease token stands.
    pub const LEASE_AT: usize = 24;
    /// Where the lease deadline stands.
    pub const LEASE_UNTIL_AT: usize = 32;
    /// Where fresh-until stands.
    pub const FRESH_UNTIL_AT: usize = 40;
    /// Where stale-until stands.
    pub const STALE_UNTIL_AT: usize = 48;

    /// The header of a placeholder: a lease and no value.
    pub fn placeholder(lease: LeaseToken, lease_until: Millis) -> Self {
        Self {
            fill_id: [0; 16],
            lease: Some(lease),
            lease_until,
            fresh_until: 0,
            stale_until: 0,
        }
    }

    /// Reads the header in front of `bytes`; `None` if they do not begin with a valid one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.first_chunk()?;
        let word = |at: usize| {
            bytes[at..]
                .first_chunk()
                .map_or(0, |raw| u64::from_be_bytes(*raw))
        };
        let header = Self {
            fill_id: *bytes[8..].first_chunk()?,
            lease: LeaseToken::from_bits(word(Self::LEASE_AT)),
            lease_until: word(Self::LEASE_UNTIL_AT),
            fresh_until: word(Self::FRESH_UNTIL_AT),
            stale_until: word(Self::STALE_UNTIL_AT),
        };
        let known = bytes[..5] == Self::MAGIC && bytes[5..8] == [0; 3];
        (known && header.fresh_until <= header.stale_until).then_some(header)
    }

    /// The envelope with this header in place of its own.
    pub(crate) fn replaced_in(&self, envelope: &[u8]) -> Bytes {
        let mut copy = self.to_bytes().to_vec();
        copy.extend_from_slice(envelope.get(Self::LEN..).unwrap_or_default());
        Bytes::from(copy)
    }

    /// The header as it stands in front of an envelope.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..5].copy_from_slice(&Self::MAGIC);
        bytes[8..24].copy_from_slice(&self.fill_id);
        let mut word =
            |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        word(Self::LEASE_AT, self.lease.map_or(0, LeaseToken::bits));
        word(Self::LEASE_UNTIL_AT, self.lease_until);
        word(Self::FRESH_UNTIL_AT, self.fresh_until);
        word(Self::STALE_UNTIL_AT, self.stale_until);
        bytes
    }
}

/// The longest value that decompression may produce, in bytes.
const MAX_RAW_BYTES: usize = 256 << 20;

/// The most tags that one entry may carry.
pub(crate) const MAX_TAGS: usize = 1_000;

/// Everything an envelope says besides the value itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Label {
    /// Random, new with every fill.
    pub fill_id: [u8; 16],
    /// When the value was filled, in wall milliseconds.
    pub created: Millis,
    /// How long the load took, in milliseconds.
    pub load_ms: u64,
    /// How long the value is fresh, counted from `created`, in milliseconds.
    pub fresh_for: Millis,
    /// How long behind that it is served while it is refreshed, in milliseconds.
    pub grace_for: Millis,
    /// How long behind `fresh_for` it may be used at all, in milliseconds.
    pub stale_for: Millis,
    /// The version of the entry, as the loader gave it.
    pub version: Option<u64>,
    /// The validator that the origin gave.
    pub etag: Option<Box<str>>,
    /// When the origin last changed it, in seconds since the epoch.
    pub last_modified: Option<u64>,
    /// Tags, each with the random version that held when the load began.
    pub tags: Vec<(Box<str>, u64)>,
}

/// Why bytes from a tier are not an entry. Every one of these is a counted miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// No valid header in front.
    Header,
    /// A lease and no value.
    Placeholder,
    /// The body does not match its checksum.
    Checksum,
    /// The body ends early, or goes on behind its end.
    Length,
    /// An entry of another key.
    Key,
    /// An entry of another schema version.
    Schema,
    /// A codec, compression or encryption that is not known here, or that does not decode.
    Codec,
}

/// What the body of an envelope must match.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expect<'a> {
    pub key: &'a [u8],
    pub schema: u32,
}

/// An envelope taken apart. The payload is decompressed and not yet decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub header: Header,
    pub label: Label,
    /// `None` for an entry that says "there is no such value".
    pub payload: Option<Payload>,
}

/// The encoded value, and how it is encoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    pub codec: u8,
    pub bytes: Vec<u8>,
}

const ABSENT: u8 = 1;
const HAS_VERSION: u8 = 2;
const HAS_ETAG: u8 = 4;
const HAS_LAST_MODIFIED: u8 = 8;
/// Where the checksum ends and the body begins.
const BODY_AT: usize = Header::LEN + 8;

/// Writes a whole envelope. A payload over `compress_over` bytes is compressed where that helps.
pub(crate) fn seal(
    expect: Expect<'_>,
    label: &Label,
    payload: Option<Payload>,
    compress_over: usize,
) -> Vec<u8> {
    let fresh_until = label.created.saturating_add(label.fresh_for);
    let header = Header {
        fill_id: label.fill_id,
        lease: None,
        lease_until: 0,
        fresh_until,
        stale_until: fresh_until.saturating_add(label.stale_for),
    };
    let absent = payload.is_none();
    let Payload { codec, bytes } = payload.unwrap_or(Payload {
        codec: 0,
        bytes: Vec::new(),
    });
    let raw_len = bytes.len();
    let (compression, packed) = compress(bytes, compress_over);

    let mut out = Vec::with_capacity(BODY_AT + expect.key.len() + packed.len() + 40);
    out.extend_from_slice(&header.to_bytes());
    out.extend_from_slice(&[0; 8]);
    let flags = [
        (absent, ABSENT),
        (label.version.is_some(), HAS_VERSION),
        (label.etag.is_some(), HAS_ETAG),
        (label.last_modified.is_some(), HAS_LAST_MODIFIED),
    ];
    let flags = flags
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(0, |all, (_, flag)| all | flag);
    const NOT_ENCRYPTED: u8 = 0;
    out.extend_from_slice(&[codec, compression.id(), NOT_ENCRYPTED, flags]);
    put_bytes(&mut out, expect.key);
    put_number(&mut out, u64::from(expect.schema));
    for number in [
        label.created,
        label.load_ms,
        label.fresh_for,
        label.grace_for,
        label.stale_for,
    ] {
        put_number(&mut out, number);
    }
    for number in [label.version, label.last_modified].into_iter().flatten() {
        put_number(&mut out, number);
    }
    if let Some(etag) = &label.etag {
        put_bytes(&mut out, etag.as_bytes());
    }
    put_number(&mut out, label.tags.len() as u64);
    for (tag, version) in &label.tags {
        put_bytes(&mut out, tag.as_bytes());
        out.extend_from_slice(&version.to_be_bytes());
    }
    if compression != Compression::None {
        put_number(&mut out, raw_len as u64);
    }
    out.extend_from_slice(&packed);
    let checksum = xxh3_64(&out[BODY_AT..]);
    out[Header::LEN..BODY_AT].copy_from_slice(&checksum.to_be_bytes());
    out
}

/// Takes an envelope apart, trusting nothing in it.
pub(crate) fn open(bytes: &[u8], expect: Expect<'_>) -> Result<Opened, Rejected> {
    let header = Header::parse(bytes).ok_or(Rejected::Header)?;
    if bytes.len() == Header::LEN {
        return Err(Rejected::Placeholder);
    }
    let body = bytes.get(BODY_AT..).ok_or(Rejected::Length)?;
    if bytes[Header::LEN..BODY_AT] != xxh3_64(body).to_be_bytes() {
        return Err(Rejected::Checksum);
    }
    let mut body = Reader(body);
    let [codec, compression, encryption, flags] = *body.chunk().ok_or(Rejected::Length)?;
    if body.bytes().ok_or(Rejected::Length)? != expect.key {
        return Err(Rejected::Key);
    }
    if body.number().ok_or(Rejected::Length)? != u64::from(expect.schema) {
        return Err(Rejected::Schema);
    }
    let label = read_label(&mut body, flags, &header).ok_or(Rejected::Length)?;
    let compression = Compression::from_id(compression).ok_or(Rejected::Codec)?;
    if encryption != 0 {
        return Err(Rejected::Codec);
    }
    if flags & ABSENT != 0 {
        return Ok(Opened {
            header,
            label,
            payload: None,
        });
    }
    let bytes = match compression {
        Compression::None => body.0.to_vec(),
        Compression::Lz4 => {
            let raw_len = body.number().and_then(|n| usize::try_from(n).ok());
            let raw_len = raw_len.ok_or(Rejected::Length)?;
            decompress(body.0, raw_len, MAX_RAW_BYTES).ok_or(Rejected::Codec)?
        }
    };
    Ok(Opened {
        header,
        label,
        payload: Some(Payload { codec, bytes }),
    })
}

fn read_label(body: &mut Reader<'_>, flags: u8, header: &Header) -> Option<Label> {
    let mut label = Label {
        fill_id: header.fill_id,
        created: body.number()?,
        load_ms: body.number()?,
        fresh_for: body.number()?,
        grace_for: body.number()?,
        stale_for: body.number()?,
        ..Label::default()
    };
    if flags & HAS_VERSION != 0 {
        label.version = Some(body.number()?);
    }
    if flags & HAS_LAST_MODIFIED != 0 {
        label.last_modified = Some(body.number()?);
    }
    if flags & HAS_ETAG != 0 {
        label.etag = Some(body.text()?);
    }
    let tags = usize::try_from(body.number()?)
        .ok()
        .filter(|count| *count <= MAX_TAGS)?;
    for _ in 0..tags {
        let tag = body.text()?;
        label.tags.push((tag, u64::from_be_bytes(*body.chunk()?)));
    }
    Some(label)
}

/// LEB128: seven bits a byte, the lowest first.
fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A cursor that never reads past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn chunk<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(chunk)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.chunk()?;
            let bits = u64::from(byte & 0x7f);
            if bits.leading_zeros() < shift {
                return None;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<Box<str>> {
        std::str::from_utf8(self.bytes()?).ok().map(Box::from)
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
