//! The little of DER (X.690) that certificates and requests need: definite, shortest-form lengths and one-byte
//! tags, read without copying and without panics.

/// The bytes are not the DER that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;

/// A context-specific tag of a constructed value, `[number]`.
pub(crate) const fn context(number: u8) -> u8 {
    0xa0 | number
}

/// One tag-length-value.
#[derive(Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) value: &'a [u8],
    /// Tag, length and value.
    pub(crate) raw: &'a [u8],
}

/// Reads the elements of a value one after the other.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Reads `bytes` as exactly one element with this tag, and opens it.
    pub(crate) fn open(bytes: &'a [u8], tag: u8) -> Result<Self, Malformed> {
        let mut outer = Self::new(bytes);
        let inner = outer.nested(tag)?;
        outer.finish()?;
        Ok(inner)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Nothing may be left over.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    pub(crate) fn any(&mut self) -> Result<Element<'a>, Malformed> {
        let (&tag, after_tag) = self.rest.split_first().ok_or(Malformed)?;
        // Tags of several bytes do not occur in certificates.
        if tag & 0x1f == 0x1f {
            return Err(Malformed);
        }
        let (length, after_length) = read_length(after_tag)?;
        let (value, rest) = after_length.split_at_checked(length).ok_or(Malformed)?;
        let raw = self.rest.split_at_checked(self.rest.len() - rest.len()).ok_or(Malformed)?.0;
        self.rest = rest;
        Ok(Element { tag, value, raw })
    }

    pub(crate) fn element(&mut self, tag: u8) -> Result<Element<'a>, Malformed> {
        let element = self.any()?;
        if element.tag == tag { Ok(element) } else { Err(Malformed) }
    }

    pub(crate) fn value(&mut self, tag: u8) -> Result<&'a [u8], Malformed> {
        self.element(tag).map(|element| element.value)
    }

    pub(crate) fn nested(&mut self, tag: u8) -> Result<Self, Malformed> {
        self.value(tag).map(Self::new)
    }

    /// The value of the next element if it has this tag; otherwise nothing is consumed.
    pub(crate) fn optional(&mut self, tag: u8) -> Result<Option<&'a [u8]>, Malformed> {
        if self.rest.first() == Some(&tag) { self.value(tag).map(Some) } else { Ok(None) }
    }

    /// A bit string of whole bytes.
    pub(crate) fn octets_of_bit_string(&mut self) -> Result<&'a [u8], Malformed> {
        match self.value(BIT_STRING)?.split_first() {
            Some((0, octets)) => Ok(octets),
            _ => Err(Malformed),
        }
    }
}

/// A length in its shortest form, at most three bytes long: no certificate here has 16 MiB.
fn read_length(bytes: &[u8]) -> Result<(usize, &[u8]), Malformed> {
    let (&first, rest) = bytes.split_first().ok_or(Malformed)?;
    if first < 0x80 {
        return Ok((usize::from(first), rest));
    }
    let count = usize::from(first & 0x7f);
    if !(1..=3).contains(&count) {
        return Err(Malformed);
    }
    let (digits, rest) = rest.split_at_checked(count).ok_or(Malformed)?;
    let length = digits.iter().fold(0usize, |sum, &digit| (sum << 8) | usize::from(digit));
    let shortest = length >= 0x80 && digits.first() != Some(&0);
    if shortest { Ok((length, rest)) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lengths_are_read_only_in_their_shortest_form() {
        let mut value = vec![OCTET_STRING, 0x81, 0x80];
        value.extend([7; 0x80]);
        assert_eq!(Reader::new(&value).value(OCTET_STRING).unwrap(), [7; 0x80]);
        for bad in [
            &[OCTET_STRING, 0x81, 0x01, 7][..],
            &[OCTET_STRING, 0x82, 0x00, 0x80],
            &[OCTET_STRING, 0x80, 0, 0],
            &[OCTET_STRING, 0x84, 0, 0, 0, 1, 7],
            &[OCTET_STRING, 0x02, 7],
            &[OCTET_STRING],
            &[0x1f, 0x81, 0x01, 0],
            &[],
        ] {
            assert!(Reader::new(bad).any().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn raw_covers_tag_length_and_value_of_the_one_element() {
        let bytes = [INTEGER, 1, 5, BOOLEAN, 1, 0xff];
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.element(INTEGER).unwrap().raw, &bytes[..3]);
        assert_eq!(reader.optional(INTEGER).unwrap(), None);
        assert_eq!(reader.optional(BOOLEAN).unwrap(), Some(&[0xff][..]));
        reader.finish().unwrap();
    }

    #[test]
    fn trailing_bytes_are_refused() {
        assert!(Reader::open(&[SEQUENCE, 0, 0], SEQUENCE).is_err());
        assert!(Reader::open(&[SEQUENCE, 0], SEQUENCE).unwrap().is_empty());
    }
}
