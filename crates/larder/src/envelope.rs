//! How an entry looks as bytes in a shared tier.
//!
//! ```text
//! 0        64                     64 + 8n           72 + 8n
//! | header | n versions of tags   | checksum (xxh3) | body: ids, times, key echo, tags, payload |
//! | mutable, outside the checksum |                 | immutable: any flipped bit is a miss      |
//! ```
//!
//! All integers of fixed width are big-endian. The header is rewritten in place by stores (leases,
//! `expire`, renewal) and is validated on its own; the versions are written by the store that keeps
//! the records of the tags, in the same step that fills the value. The first version is that of the
//! cache itself, which [`clear`](crate::Cache::clear) invalidates; the others belong to the tags
//! that the body names, in its order. A header with nothing behind it is a placeholder: the key is
//! leased, or has a minimum version, and has no value.
//!
//! Whatever a tier returns is treated as hostile: decoding never panics, and never allocates by a
//! length that the bytes merely claim.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::Millis;
use crate::codec::{Compression, compress, decompress};
use crate::store::LeaseToken;
use crate::tags::MAX_TAGS;
use crate::wire::{Reader, put_bytes, put_number};

/// The mutable front of every envelope, [`Header::LEN`] bytes long.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 4 | magic, `LRDR` |
/// | 4 | 1 | format version, 1 |
/// | 5 | 1 | 1 if it was made stale by hand, else 0 |
/// | 6 | 2 | how many versions of tags stand behind the header |
/// | 8 | 16 | fill id: random, new with every fill |
/// | 24 | 8 | lease token, zero for none |
/// | 32 | 8 | lease deadline, milliseconds by the store's clock |
/// | 40 | 8 | fresh until, wall milliseconds; of what was made stale by hand, when that was |
/// | 48 | 8 | stale until, wall milliseconds |
/// | 56 | 8 | version of the value, or the lowest that a placeholder lets in; zero for none |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether the value was made stale by hand. Then it is, whatever the clock of its reader says.
    pub expired: bool,
    /// How many versions of tags stand behind the header, eight bytes each.
    pub tag_count: u16,
    /// Random, new with every fill: tells whether two copies are of one fill.
    pub fill_id: [u8; 16],
    /// Who is loading, if anybody.
    pub lease: Option<LeaseToken>,
    /// Until when the lease counts, in milliseconds by the store's own clock.
    pub lease_until: Millis,
    /// Until when the value is fresh, in wall milliseconds. Of one that was made stale by hand: since
    /// when it is not, by the clock of whoever did that.
    pub fresh_until: Millis,
    /// Until when the value may be used at all, in wall milliseconds.
    pub stale_until: Millis,
    /// The version of the value; in a placeholder, the lowest version that a fill must have. Zero
    /// for none.
    pub version: u64,
}

impl Header {
    /// Length in bytes.
    pub const LEN: usize = 64;
    /// The first bytes of every envelope: magic and format version.
    pub const MAGIC: [u8; 5] = *b"LRDR\x01";
    /// Where it stands whether the value was made stale by hand.
    pub const EXPIRED_AT: usize = 5;
    /// Where the lease token stands.
    pub const LEASE_AT: usize = 24;
    /// Where the lease deadline stands.
    pub const LEASE_UNTIL_AT: usize = 32;
    /// Where fresh-until stands.
    pub const FRESH_UNTIL_AT: usize = 40;
    /// Where stale-until stands.
    pub const STALE_UNTIL_AT: usize = 48;
    /// Where the version stands.
    pub const VERSION_AT: usize = 56;

    /// The header of a placeholder: a lease and no value.
    pub fn placeholder(lease: LeaseToken, lease_until: Millis) -> Self {
        Self {
            lease: Some(lease),
            lease_until,
            ..Self::minimum(0)
        }
    }

    /// The header of a placeholder without a lease, which lets in no value below `version`.
    pub fn minimum(version: u64) -> Self {
        Self {
            expired: false,
            tag_count: 0,
            fill_id: [0; 16],
            lease: None,
            lease_until: 0,
            fresh_until: 0,
            stale_until: 0,
            version,
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
            expired: bytes[Self::EXPIRED_AT] == 1,
            tag_count: u16::from_be_bytes([bytes[6], bytes[7]]),
            fill_id: *bytes[8..].first_chunk()?,
            lease: LeaseToken::from_bits(word(Self::LEASE_AT)),
            lease_until: word(Self::LEASE_UNTIL_AT),
            fresh_until: word(Self::FRESH_UNTIL_AT),
            stale_until: word(Self::STALE_UNTIL_AT),
            version: word(Self::VERSION_AT),
        };
        let known = bytes[..5] == Self::MAGIC && bytes[Self::EXPIRED_AT] <= 1;
        (known && header.fresh_until <= header.stale_until).then_some(header)
    }

    /// Whether the value is fresh at that wall time.
    pub fn is_fresh(&self, wall: Millis) -> bool {
        !self.expired && self.fresh_until > wall
    }

    /// The same, made stale by hand at `wall`, and without a lease.
    pub fn expired_at(self, wall: Millis) -> Self {
        Self {
            expired: true,
            lease: None,
            lease_until: 0,
            fresh_until: self.fresh_until.min(wall),
            ..self
        }
    }

    /// How many bytes the header takes with so many versions behind it.
    pub(crate) fn len_with(versions: usize) -> usize {
        Self::LEN + VERSION_BYTES * versions
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
        bytes[Self::EXPIRED_AT] = u8::from(self.expired);
        bytes[6..8].copy_from_slice(&self.tag_count.to_be_bytes());
        bytes[8..24].copy_from_slice(&self.fill_id);
        let mut word =
            |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        word(Self::LEASE_AT, self.lease.map_or(0, LeaseToken::bits));
        word(Self::LEASE_UNTIL_AT, self.lease_until);
        word(Self::FRESH_UNTIL_AT, self.fresh_until);
        word(Self::STALE_UNTIL_AT, self.stale_until);
        word(Self::VERSION_AT, self.version);
        bytes
    }
}

/// The length of the version of one tag.
const VERSION_BYTES: usize = 8;

/// The longest value that decompression may produce, in bytes.
const MAX_RAW_BYTES: usize = 256 << 20;

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
    /// How long it lives without a read, in milliseconds, if reads prolong it; `fresh_for` is then how
    /// old it may become at most.
    pub idle_for: Option<Millis>,
    /// The version of the entry, as the loader gave it.
    pub version: Option<u64>,
    /// The validator that the origin gave.
    pub etag: Option<Box<str>>,
    /// When the origin last changed it, in seconds since the epoch.
    pub last_modified: Option<u64>,
    /// The tags, in the order of their versions.
    pub tags: Vec<Box<str>>,
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
    /// A codec, compression, encryption or flag that is not known here, or that does not decode.
    Codec,
    /// A tag of it was invalidated while it was on its way, or it does not say whether one was.
    Tags,
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
    /// The version of the cache and those of the tags; none of them is within the checksum.
    pub versions: Vec<u64>,
    /// `None` for an entry that says "there is no such value".
    pub payload: Option<Payload>,
}

/// The encoded value, and how it is encoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    pub codec: u8,
    pub bytes: Vec<u8>,
}

/// An encoded value as it lies in an envelope, compressed or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    codec: u8,
    compression: Compression,
    raw_len: usize,
    bytes: Bytes,
}

impl Packed {
    /// What `codec` made of a value: over `compress_over` bytes it is compressed where that helps.
    pub(crate) fn new(codec: u8, encoded: Vec<u8>, compress_over: usize) -> Self {
        let raw_len = encoded.len();
        let (compression, bytes) = compress(encoded, compress_over);
        Self {
            codec,
            compression,
            raw_len,
            bytes: Bytes::from(bytes),
        }
    }

    /// What lies in an envelope that was opened before; `None` if that has no value.
    pub(crate) fn of(envelope: &Bytes) -> Option<Self> {
        let header = Header::parse(envelope)?;
        let front = Header::len_with(usize::from(header.tag_count)) + CHECKSUM;
        let mut body = Reader(envelope.get(front..)?);
        let [codec, packing, flags] = *body.chunk()?;
        let (_key, _schema) = (body.bytes()?, body.number()?);
        read_label(&mut body, flags, &header).filter(|_| flags & ABSENT == 0)?;
        let compression = Compression::from_id(packing)?;
        let raw_len = match compression {
            Compression::None => body.0.len(),
            Compression::Lz4 => usize::try_from(body.number()?).ok()?,
        };
        Some(Self {
            codec,
            compression,
            raw_len,
            bytes: envelope.slice_ref(body.0),
        })
    }
}

const ABSENT: u8 = 1;
const HAS_VERSION: u8 = 2;
const HAS_ETAG: u8 = 4;
const HAS_LAST_MODIFIED: u8 = 8;
const HAS_IDLE: u8 = 16;
/// What a later release says in other flags stands where this one would read something else.
const KNOWN_FLAGS: u8 = ABSENT | HAS_VERSION | HAS_ETAG | HAS_LAST_MODIFIED | HAS_IDLE;
/// The length of the checksum.
const CHECKSUM: usize = 8;

/// Writes a whole envelope, with these versions of its tags; `None` says that there is no value.
pub(crate) fn seal(
    expect: Expect<'_>,
    label: &Label,
    versions: &[u64],
    packed: Option<Packed>,
) -> Vec<u8> {
    let fresh_until = label.created.saturating_add(label.fresh_for);
    let header = Header {
        expired: false,
        tag_count: u16::try_from(versions.len()).unwrap_or(0),
        fill_id: label.fill_id,
        lease: None,
        lease_until: 0,
        fresh_until,
        stale_until: fresh_until.saturating_add(label.stale_for),
        version: label.version.unwrap_or(0),
    };
    let absent = packed.is_none();
    let Packed {
        codec,
        compression,
        raw_len,
        bytes: packed,
    } = packed.unwrap_or(Packed {
        codec: 0,
        compression: Compression::None,
        raw_len: 0,
        bytes: Bytes::new(),
    });

    let sum_at = Header::LEN + 8 * usize::from(header.tag_count);
    let body_at = sum_at + CHECKSUM;
    let mut out = Vec::with_capacity(body_at + expect.key.len() + packed.len() + 40);
    out.extend_from_slice(&header.to_bytes());
    put_versions(&mut out, versions);
    out.resize(body_at, 0);
    let flags = [
        (absent, ABSENT),
        (label.version.is_some(), HAS_VERSION),
        (label.etag.is_some(), HAS_ETAG),
        (label.last_modified.is_some(), HAS_LAST_MODIFIED),
        (label.idle_for.is_some(), HAS_IDLE),
    ];
    let flags = flags
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(0, |all, (_, flag)| all | flag);
    // The upper half of the second byte is the encryption, of which there is none.
    out.extend_from_slice(&[codec, compression.id(), flags]);
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
    let numbers = [label.version, label.last_modified, label.idle_for];
    for number in numbers.into_iter().flatten() {
        put_number(&mut out, number);
    }
    if let Some(etag) = &label.etag {
        put_bytes(&mut out, etag.as_bytes());
    }
    put_number(&mut out, label.tags.len() as u64);
    for tag in &label.tags {
        put_bytes(&mut out, tag.as_bytes());
    }
    if compression != Compression::None {
        put_number(&mut out, raw_len as u64);
    }
    out.extend_from_slice(&packed);
    let checksum = xxh3_64(&out[body_at..]);
    out[sum_at..body_at].copy_from_slice(&checksum.to_be_bytes());
    out
}

/// The envelope with these versions in place of its own; as it is if it has another number of them.
pub(crate) fn with_versions(envelope: &Bytes, versions: &[u64]) -> Bytes {
    let end = Header::len_with(versions.len());
    let fits = Header::parse(envelope)
        .is_some_and(|header| usize::from(header.tag_count) == versions.len());
    let Some(rest) = envelope.get(end..).filter(|_| fits) else {
        return envelope.clone();
    };
    let mut copy = Vec::with_capacity(envelope.len());
    copy.extend_from_slice(&envelope[..Header::LEN]);
    put_versions(&mut copy, versions);
    copy.extend_from_slice(rest);
    Bytes::from(copy)
}

fn put_versions(out: &mut Vec<u8>, versions: &[u64]) {
    for version in versions {
        out.extend_from_slice(&version.to_be_bytes());
    }
}

/// The mutable part of an envelope: the header, and the versions behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Front<'a> {
    pub header: Header,
    versions: &'a [u8],
}

impl Front<'_> {
    /// The versions of the tags, that of the cache first.
    pub(crate) fn versions(self) -> impl Iterator<Item = u64> {
        let (versions, _) = self.versions.as_chunks();
        versions.iter().map(|version| u64::from_be_bytes(*version))
    }
}

/// Reads the front of an envelope, whether or not the rest is there. `None` for a placeholder and
/// for bytes that are none.
pub(crate) fn front(bytes: &[u8]) -> Option<Front<'_>> {
    let header = Header::parse(bytes)?;
    let end = Header::len_with(usize::from(header.tag_count));
    // Behind the versions stands more, in any envelope with a value or the word that there is none.
    let versions = bytes.get(Header::LEN..end).filter(|_| bytes.len() > end)?;
    Some(Front { header, versions })
}

/// Takes an envelope apart, trusting nothing in it.
pub(crate) fn open(bytes: &[u8], expect: Expect<'_>) -> Result<Opened, Rejected> {
    let header = Header::parse(bytes).ok_or(Rejected::Header)?;
    if bytes.len() == Header::LEN {
        return Err(Rejected::Placeholder);
    }
    let mut body = Reader(&bytes[Header::LEN..]);
    let versions: Option<Vec<u64>> = (0..header.tag_count)
        .map(|_| body.chunk().map(|raw| u64::from_be_bytes(*raw)))
        .collect();
    let versions = versions.ok_or(Rejected::Length)?;
    let checksum: &[u8; CHECKSUM] = body.chunk().ok_or(Rejected::Length)?;
    if *checksum != xxh3_64(body.0).to_be_bytes() {
        return Err(Rejected::Checksum);
    }
    let [codec, packing, flags] = *body.chunk().ok_or(Rejected::Length)?;
    let (compression, encryption) = (packing & 0x0f, packing >> 4);
    if body.bytes().ok_or(Rejected::Length)? != expect.key {
        return Err(Rejected::Key);
    }
    if body.number().ok_or(Rejected::Length)? != u64::from(expect.schema) {
        return Err(Rejected::Schema);
    }
    if flags & !KNOWN_FLAGS != 0 {
        return Err(Rejected::Codec);
    }
    let label = read_label(&mut body, flags, &header).ok_or(Rejected::Length)?;
    if !versions.is_empty() && versions.len() != label.tags.len() + 1 {
        return Err(Rejected::Length);
    }
    let compression = Compression::from_id(compression).ok_or(Rejected::Codec)?;
    if encryption != 0 {
        return Err(Rejected::Codec);
    }
    if flags & ABSENT != 0 {
        return Ok(Opened {
            header,
            label,
            versions,
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
        versions,
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
    if flags & HAS_IDLE != 0 {
        label.idle_for = Some(body.number()?);
    }
    if flags & HAS_ETAG != 0 {
        label.etag = Some(body.text()?);
    }
    let tags = usize::try_from(body.number()?)
        .ok()
        .filter(|count| *count <= MAX_TAGS)?;
    for _ in 0..tags {
        label.tags.push(body.text()?);
    }
    Some(label)
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
