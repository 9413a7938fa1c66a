//! The numbers and strings that envelopes and bus messages are made of.
//!
//! Writing cannot fail; reading trusts nothing. A length that the bytes claim is compared with what
//! is there before anything is done with it, so no claim makes anybody allocate.

/// Writes a number as LEB128: seven bits a byte, the lowest first, the high bit on all but the last.
pub(crate) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Writes the length of `bytes`, and then the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A cursor over the bytes that are left, which never reads past their end. A method that returns
/// `None` may leave it anywhere.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `N` bytes.
    pub(crate) fn chunk<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(chunk)
    }

    /// What [`put_number`] wrote; `None` for a number that takes more than 64 bits.
    pub(crate) fn number(&mut self) -> Option<u64> {
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

    /// What [`put_bytes`] wrote.
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// What [`put_bytes`] wrote, if it is UTF-8.
    pub(crate) fn text(&mut self) -> Option<Box<str>> {
        std::str::from_utf8(self.bytes()?).ok().map(Box::from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_over_64_bits_is_refused() {
        let mut largest = Vec::new();
        put_number(&mut largest, u64::MAX);
        assert_eq!(largest, [[0xff; 9].as_slice(), &[1]].concat());
        let over = [[0xff; 9].as_slice(), &[2]].concat();
        assert_eq!(Reader(&over).number(), None);
        assert_eq!(Reader(&[0x80; 20]).number(), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            number in any::<u64>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut out = Vec::new();
            put_number(&mut out, number);
            put_bytes(&mut out, &bytes);
            let mut reader = Reader(&out);
            prop_assert_eq!(reader.number(), Some(number));
            prop_assert_eq!(reader.bytes(), Some(bytes.as_slice()));
            prop_assert!(reader.0.is_empty());
        }

        #[test]
        fn a_length_is_not_believed(length in 3_u64.., rest in any::<[u8; 2]>()) {
            let mut out = Vec::new();
            put_number(&mut out, length);
            out.extend_from_slice(&rest);
            prop_assert_eq!(Reader(&out).bytes(), None);
        }
    }
}
