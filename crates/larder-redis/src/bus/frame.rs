use bytes::Bytes;
use larder::backplane::{MAX_MESSAGE_BYTES, Notice};
use larder::store::Position;

/// What every frame begins with: four letters and the version of the format.
///
/// ```text
/// LRDB 1 M incarnation count message    a message; both numbers are eight bytes, big-endian
/// LRDB 1 U message                      a message that could not be numbered
/// LRDB 1 B incarnation count message    a beat
/// ```
///
/// The scripts write them, and this reads them.
const MAGIC: &[u8] = b"LRDB\x01";
const POSITION_BYTES: usize = 16;
/// The longest frame.
pub(super) const MAX_FRAME_BYTES: usize = MAGIC.len() + 1 + POSITION_BYTES + MAX_MESSAGE_BYTES;

/// What a frame tells. Anything else that came through the channel is unreadable.
pub(super) fn read(frame: &Bytes) -> Notice {
    parse(frame).unwrap_or(Notice::Unreadable)
}

fn parse(frame: &Bytes) -> Option<Notice> {
    let kind = *frame.strip_prefix(MAGIC)?.first()?;
    let body = frame.slice(MAGIC.len() + 1..);
    Some(match kind {
        b'M' => {
            let (position, message) = positioned(&body)?;
            Notice::Message {
                position: Some(position),
                message,
            }
        }
        b'U' => Notice::Message {
            position: None,
            message: bounded(body)?,
        },
        b'B' => {
            let (position, message) = positioned(&body)?;
            Notice::Beat { position, message }
        }
        _ => return None,
    })
}

fn positioned(body: &Bytes) -> Option<(Position, Bytes)> {
    let position = position(body.get(..POSITION_BYTES)?)?;
    Some((position, bounded(body.slice(POSITION_BYTES..))?))
}

fn bounded(message: Bytes) -> Option<Bytes> {
    (message.len() <= MAX_MESSAGE_BYTES).then_some(message)
}

/// A position as scripts return it and frames hold it.
pub(super) fn position(bytes: &[u8]) -> Option<Position> {
    let (incarnation, count) = bytes.split_first_chunk()?;
    Some(Position {
        incarnation: u64::from_be_bytes(*incarnation),
        count: u64::from_be_bytes(count.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERED: &[u8] = b"LRDB\x01M\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x01\x02hello";

    fn told(frame: impl Into<Vec<u8>>) -> Notice {
        read(&frame.into().into())
    }

    #[test]
    fn frames_of_the_first_version_are_read() {
        let position = Position {
            incarnation: 0x0102_0304_0506_0708,
            count: 0x0102,
        };
        let message = Bytes::from_static(b"hello");
        let numbered = Notice::Message {
            position: Some(position),
            message: message.clone(),
        };
        assert_eq!(told(NUMBERED), numbered);
        let mut beat = NUMBERED.to_vec();
        beat[5] = b'B';
        assert_eq!(told(beat), Notice::Beat { position, message });
        let unnumbered = Notice::Message {
            position: None,
            message: "".into(),
        };
        assert_eq!(told(*b"LRDB\x01U"), unnumbered);
    }

    #[test]
    fn what_is_no_frame_is_unreadable_and_no_panic() {
        for length in 0..MAGIC.len() + 1 + POSITION_BYTES {
            assert_eq!(told(&NUMBERED[..length]), Notice::Unreadable);
        }
        for at in 0..MAGIC.len() + 1 {
            let mut other = NUMBERED.to_vec();
            other[at] ^= 0x20;
            assert_eq!(told(other), Notice::Unreadable, "byte {at}");
        }
        for (kind, front) in [(b'M', 22), (b'B', 22), (b'U', 6)] {
            let mut long = NUMBERED.to_vec();
            long[5] = kind;
            long.resize(front + MAX_MESSAGE_BYTES, 0);
            assert_ne!(told(&*long), Notice::Unreadable);
            long.push(0);
            assert_eq!(told(long), Notice::Unreadable);
        }
    }

    #[test]
    fn a_position_is_sixteen_bytes() {
        for length in [0, 8, 15, 17, 24] {
            assert_eq!(position(&vec![1; length]), None);
        }
    }
}
