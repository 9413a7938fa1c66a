//! What processes tell each other, as bytes. The format is fixed: a process of the next release
//! speaks with processes of this one.
//!
//! ```text
//! "LRDB" | version, 1 | namespace | node, 8 bytes | sequence | sent at | items | n items | checksum
//!
//! item:      kind, 1 byte | body
//! 1 forget   why, 1 byte | cache | key | versions | n versions | minimum, if the why is 4
//! 2 tag      tag
//! 3 pattern  cache | glob | versions | n versions
//! 4 clear    cache
//! 5 all      nothing
//! 6 version  cache | version
//! ```
//!
//! Numbers are LEB128 but for the node and the checksum, which are big-endian. Bodies, names and
//! keys stand behind their length. The checksum is the xxh3 of everything in front of it. A message
//! without items is a beat.
//!
//! Whoever can publish can forge a message, and whatever arrives is treated as hostile: decoding
//! never panics, never allocates by a length that the bytes merely claim, and takes nothing that
//! this release does not know all of. What cannot be read may be an invalidation, so the listener
//! treats it as one that was missed.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::Millis;
use crate::invalidation::Why;
use crate::wire::{Reader, put_bytes, put_number};

/// The longest message that is sent or read, in bytes.
pub(crate) const MAX_BYTES: usize = 64 << 10;
/// The most items that one message may have.
pub(crate) const MAX_ITEMS: usize = 10_000;

const MAGIC: [u8; 4] = *b"LRDB";
const VERSION: u8 = 1;
/// The length of the checksum.
const CHECKSUM: usize = 8;
/// The longest that a number can be.
const NUMBER: usize = 10;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Who says that it was sent. Good for statistics; anybody can write any number there.
    pub node: u64,
    /// The sender's own count of its messages.
    pub sequence: u64,
    /// When it was sent, in wall milliseconds of the sender.
    pub sent_at: Millis,
    /// What it says.
    pub items: Vec<Item>,
}

/// One thing that a message says. Keys are in their encoded form, without namespace, cache and
/// schema version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// Copies of one entry are out of date.
    Forget {
        cache: Box<str>,
        key: Bytes,
        /// The schema versions whose entries in the shared tier the sender has seen to; none if
        /// its cache has no entries there. A process of another version sees to its own.
        versions: Vec<u32>,
        why: Why,
    },
    /// Copies of all entries that carry a tag are out of date.
    Tag { tag: Box<str> },
    /// Copies of all entries whose keys match are out of date.
    Pattern {
        cache: Box<str>,
        glob: Box<str>,
        /// As for [`Item::Forget`].
        versions: Vec<u32>,
    },
    /// Copies of all entries of a cache are out of date.
    Clear { cache: Box<str> },
    /// Copies of all entries of the namespace are out of date.
    Everything,
    /// There is a process with this schema version of a cache.
    Version { cache: Box<str>, version: u32 },
}

/// Why bytes are not a message for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Longer than any message.
    TooLarge,
    /// Whole, and of another namespace.
    Foreign,
    /// Damaged, or of a form that this release does not know.
    Unreadable,
}

impl Message {
    /// The message as it is sent. It is within the bounds if its items come from [`split`].
    pub(crate) fn encode(&self, namespace: &str) -> Bytes {
        let mut out = Vec::with_capacity(64 + 32 * self.items.len());
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        put_bytes(&mut out, namespace.as_bytes());
        out.extend_from_slice(&self.node.to_be_bytes());
        put_number(&mut out, self.sequence);
        put_number(&mut out, self.sent_at);
        put_number(&mut out, self.items.len() as u64);
        for item in &self.items {
            out.push(item.kind());
            put_bytes(&mut out, &item.body());
        }
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_be_bytes());
        Bytes::from(out)
    }

    /// Reads a message of our namespace, trusting nothing in it.
    pub(crate) fn decode(bytes: &[u8], namespace: &str) -> Result<Self, Refused> {
        if bytes.len() > MAX_BYTES {
            return Err(Refused::TooLarge);
        }
        let mut rest = check(bytes).ok_or(Refused::Unreadable)?;
        if rest.bytes().ok_or(Refused::Unreadable)? != namespace.as_bytes() {
            return Err(Refused::Foreign);
        }
        read(rest).ok_or(Refused::Unreadable)
    }
}

/// What stands behind the format version, if the whole is undamaged and of our format.
fn check(bytes: &[u8]) -> Option<Reader<'_>> {
    let (front, checksum) = bytes.split_last_chunk::<CHECKSUM>()?;
    let rest = front.strip_prefix(&MAGIC)?.strip_prefix(&[VERSION])?;
    (*checksum == xxh3_64(front).to_be_bytes()).then_some(Reader(rest))
}

fn read(mut rest: Reader<'_>) -> Option<Message> {
    let mut message = Message {
        node: u64::from_be_bytes(*rest.chunk()?),
        sequence: rest.number()?,
        sent_at: rest.number()?,
        items: Vec::new(),
    };
    let count = usize::try_from(rest.number()?).ok()?;
    if count > MAX_ITEMS {
        return None;
    }
    for _ in 0..count {
        let [kind] = *rest.chunk()?;
        message.items.push(Item::read(kind, rest.bytes()?)?);
    }
    rest.0.is_empty().then_some(message)
}

impl Item {
    const FORGET: u8 = 1;
    const TAG: u8 = 2;
    const PATTERN: u8 = 3;
    const CLEAR: u8 = 4;
    const EVERYTHING: u8 = 5;
    const VERSION: u8 = 6;

    fn kind(&self) -> u8 {
        match self {
            Self::Forget { .. } => Self::FORGET,
            Self::Tag { .. } => Self::TAG,
            Self::Pattern { .. } => Self::PATTERN,
            Self::Clear { .. } => Self::CLEAR,
            Self::Everything => Self::EVERYTHING,
            Self::Version { .. } => Self::VERSION,
        }
    }

    fn body(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Forget {
                cache,
                key,
                versions,
                why,
            } => {
                out.push(id_of(*why));
                put_bytes(&mut out, cache.as_bytes());
                put_bytes(&mut out, key);
                put_versions(&mut out, versions);
                if let Why::Before(minimum) = why {
                    put_number(&mut out, *minimum);
                }
            }
            Self::Tag { tag } => put_bytes(&mut out, tag.as_bytes()),
            Self::Pattern {
                cache,
                glob,
                versions,
            } => {
                put_bytes(&mut out, cache.as_bytes());
                put_bytes(&mut out, glob.as_bytes());
                put_versions(&mut out, versions);
            }
            Self::Clear { cache } => put_bytes(&mut out, cache.as_bytes()),
            Self::Everything => {}
            Self::Version { cache, version } => {
                put_bytes(&mut out, cache.as_bytes());
                put_number(&mut out, u64::from(*version));
            }
        }
        out
    }

    /// Reads an item. One that says more than this release knows of is refused: nobody here can
    /// tell what the rest would have changed.
    fn read(kind: u8, body: &[u8]) -> Option<Self> {
        let mut body = Reader(body);
        let item = match kind {
            Self::FORGET => {
                let [why] = *body.chunk()?;
                Self::Forget {
                    cache: body.text()?,
                    key: Bytes::copy_from_slice(body.bytes()?),
                    versions: read_versions(&mut body)?,
                    why: read_why(why, &mut body)?,
                }
            }
            Self::TAG => Self::Tag { tag: body.text()? },
            Self::PATTERN => Self::Pattern {
                cache: body.text()?,
                glob: body.text()?,
                versions: read_versions(&mut body)?,
            },
            Self::CLEAR => Self::Clear {
                cache: body.text()?,
            },
            Self::EVERYTHING => Self::Everything,
            Self::VERSION => Self::Version {
                cache: body.text()?,
                version: read_version(&mut body)?,
            },
            _ => return None,
        };
        body.0.is_empty().then_some(item)
    }

    /// How many bytes the item takes in a message.
    fn len(&self) -> usize {
        let mut body = Vec::new();
        put_bytes(&mut body, &self.body());
        body.len() + 1
    }

    /// What means this and more in a few bytes.
    fn widened(self) -> Self {
        match self {
            Self::Forget { cache, .. } | Self::Pattern { cache, .. } => Self::Clear { cache },
            _ => Self::Everything,
        }
    }
}

fn read_versions(body: &mut Reader<'_>) -> Option<Vec<u32>> {
    // Ends with the bytes, whatever the count claims: collecting an Option reserves nothing.
    (0..body.number()?).map(|_| read_version(body)).collect()
}

fn read_version(body: &mut Reader<'_>) -> Option<u32> {
    u32::try_from(body.number()?).ok()
}

fn put_versions(out: &mut Vec<u8>, versions: &[u32]) {
    put_number(out, versions.len() as u64);
    for version in versions {
        put_number(out, u64::from(*version));
    }
}

fn id_of(why: Why) -> u8 {
    match why {
        Why::Invalidated => 1,
        Why::Written => 2,
        Why::Expired => 3,
        Why::Before(_) => 4,
    }
}

fn read_why(id: u8, rest: &mut Reader<'_>) -> Option<Why> {
    match id {
        1 => Some(Why::Invalidated),
        2 => Some(Why::Written),
        3 => Some(Why::Expired),
        4 => rest.number().map(Why::Before),
        _ => None,
    }
}

/// Deals items out to messages that are within the bounds, in their order. An item that is too long
/// for any message is sent as one that means more: nothing is lost.
pub(crate) fn split(namespace: &str, items: impl IntoIterator<Item = Item>) -> Vec<Vec<Item>> {
    let front = MAGIC.len() + 1 + (NUMBER + namespace.len()) + 8 + 3 * NUMBER;
    let room = MAX_BYTES.saturating_sub(front + CHECKSUM);
    let mut messages: Vec<Vec<Item>> = Vec::new();
    let mut taken = 0;
    for mut item in items {
        while item.len() > room && item != Item::Everything {
            item = item.widened();
        }
        let length = item.len();
        match messages.last_mut() {
            Some(last) if taken + length <= room && last.len() < MAX_ITEMS => {
                taken += length;
                last.push(item);
            }
            _ => {
                taken = length;
                messages.push(vec![item]);
            }
        }
    }
    messages
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
