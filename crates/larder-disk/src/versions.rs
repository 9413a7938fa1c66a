//! Which value may take the place of which, by their versions. Pure.

use larder::envelope::Header;

/// What stands under a key, or is to stand there, as far as versions care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No envelope.
    Nothing,
    /// A header alone: the lowest version that a value must have, zero for any.
    Minimum(u64),
    /// A value of this version, zero for none.
    Value(u64),
}

impl Standing {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match Header::parse(bytes) {
            None => Self::Nothing,
            Some(header) if bytes.len() == Header::LEN => Self::Minimum(header.version),
            Some(header) => Self::Value(header.version),
        }
    }

    fn version(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Minimum(version) | Self::Value(version) => version,
        }
    }

    /// Whether it has a version to compare, or is a minimum for others.
    pub(crate) fn is_versioned(self) -> bool {
        self.version() != 0
    }

    /// Whether a fill with this may take the place of `held`.
    pub(crate) fn may_fill(self, held: Self) -> bool {
        match held {
            Self::Nothing => true,
            Self::Minimum(lowest) => self.version() >= lowest,
            Self::Value(version) => self.version() == 0 || self.version() >= version,
        }
    }

    /// Whether a write of this, which needs no lease, may take the place of `held`.
    pub(crate) fn may_replace(self, held: Self) -> bool {
        match (self, held) {
            _ if self.version() == 0 => true,
            // That value is new enough.
            (Self::Minimum(lowest), Self::Value(version)) => lowest > version,
            _ => self.version() >= held.version(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Standing::{Minimum, Nothing, Value};
    use super::*;

    #[test]
    fn a_fill_needs_the_minimum_and_must_not_be_older() {
        for (incoming, held, may) in [
            (0, Nothing, true),
            (3, Nothing, true),
            (0, Minimum(0), true),
            (0, Minimum(5), false),
            (4, Minimum(5), false),
            (5, Minimum(5), true),
            (0, Value(5), true),
            (4, Value(5), false),
            (5, Value(5), true),
            (1, Value(0), true),
        ] {
            assert_eq!(Value(incoming).may_fill(held), may, "{incoming} {held:?}");
        }
    }

    #[test]
    fn a_write_must_not_be_older_and_a_minimum_must_ask_for_something_newer() {
        for (incoming, held, may) in [
            (Value(0), Minimum(5), true),
            (Value(0), Value(5), true),
            (Value(4), Minimum(5), false),
            (Value(5), Minimum(5), true),
            (Value(4), Value(5), false),
            (Value(5), Value(5), true),
            (Minimum(5), Nothing, true),
            (Minimum(5), Value(5), false),
            (Minimum(6), Value(5), true),
            (Minimum(5), Minimum(5), true),
            (Minimum(4), Minimum(5), false),
            (Nothing, Value(5), true),
        ] {
            assert_eq!(incoming.may_replace(held), may, "{incoming:?} {held:?}");
        }
    }

    #[test]
    fn only_a_header_alone_is_a_minimum() {
        let header = Header::minimum(7).to_bytes();
        assert_eq!(Standing::of(&header), Minimum(7));
        assert_eq!(Standing::of(&[&header[..], b"x"].concat()), Value(7));
        assert_eq!(Standing::of(&header[1..]), Nothing);
    }
}
