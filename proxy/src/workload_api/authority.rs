//! The authority of gRPC's C core, which applications in Python, C++, Ruby or PHP have: the socket's path, percent-encoded.
//!
//! RFC 3986 section 3.2.2 lets a name have `%2F` in it. The library that reads requests here does not, and resets the stream
//! before anybody sees it. So the percent signs of such a name become dashes on the way in: nothing here looks at it, and no
//! length changes. That core writes the field as a literal without Huffman coding (RFC 7541 section 6.2); whatever is written
//! in another way passes as it is.

/// What every HTTP/2 connection begins with (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;
/// A frame's head.
const HEAD_BYTES: usize = 9;
const HEADERS: u8 = 0x01;
const CONTINUATION: u8 = 0x09;
const NAME: &[u8] = b":authority";
/// A length that goes on in the next byte (RFC 7541 section 5.1), without the Huffman bit.
const LONG: u8 = 0x7f;
/// The longest authority that is followed: three bytes for each of a socket's path.
const VALUE_MAX: usize = 512;

/// What one direction of a connection is at.
#[derive(Debug)]
pub(super) struct Authorities {
    frame: Frame,
    field: Field,
}

#[derive(Clone, Copy, Debug)]
enum Frame {
    Preface { left: usize },
    Head { seen: usize, length: usize, kind: u8 },
    Payload { left: usize, is_fields: bool },
}

#[derive(Clone, Copy, Debug)]
enum Field {
    /// So much of the name stood there.
    Name(usize),
    Length,
    LongLength,
    Value(usize),
}

const HEAD: Frame = Frame::Head { seen: 0, length: 0, kind: 0 };

impl Authorities {
    pub(super) fn new() -> Self {
        Self { frame: Frame::Preface { left: PREFACE_BYTES }, field: Field::Name(0) }
    }

    /// Takes the next bytes of the connection, however they are cut.
    pub(super) fn pass(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.frame = match self.frame {
                Frame::Preface { left: 1 } => HEAD,
                Frame::Preface { left } => Frame::Preface { left: left - 1 },
                Frame::Head { seen, length, kind } => {
                    let length = if seen < 3 { (length << 8) | usize::from(*byte) } else { length };
                    let kind = if seen == 3 { *byte } else { kind };
                    if seen + 1 < HEAD_BYTES {
                        Frame::Head { seen: seen + 1, length, kind }
                    } else if length == 0 {
                        HEAD
                    } else {
                        Frame::Payload { left: length, is_fields: matches!(kind, HEADERS | CONTINUATION) }
                    }
                }
                Frame::Payload { left, is_fields } => {
                    if is_fields {
                        self.field = self.field.after(byte);
                    }
                    if left == 1 { HEAD } else { Frame::Payload { left: left - 1, is_fields } }
                }
            };
        }
    }
}

impl Field {
    fn after(self, byte: &mut u8) -> Self {
        match self {
            Self::Name(matched) if NAME.get(matched) == Some(&*byte) => {
                if matched + 1 == NAME.len() {
                    Self::Length
                } else {
                    Self::Name(matched + 1)
                }
            }
            Self::Name(_) => Self::Name(usize::from(NAME.first() == Some(&*byte))),
            Self::Length if *byte == LONG => Self::LongLength,
            Self::Length if (1..LONG).contains(byte) => Self::Value(usize::from(*byte)),
            Self::LongLength if *byte < 0x80 => Self::Value(usize::from(LONG) + usize::from(*byte)),
            Self::Length | Self::LongLength => Self::Name(0),
            Self::Value(left) if left <= VALUE_MAX => {
                if *byte == b'%' {
                    *byte = b'-';
                }
                if left == 1 { Self::Name(0) } else { Self::Value(left - 1) }
            }
            Self::Value(_) => Self::Name(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 4, 0, 0, 0, 1], payload].concat()
    }

    fn field(authority: &str) -> Vec<u8> {
        let length = authority.len();
        let coded = if length < 127 { vec![length as u8] } else { vec![127, (length - 127) as u8] };
        [&b"\x83@\x05:path\x02/%@\x0a:authority"[..], &*coded, authority.as_bytes(), b"@\x02te\x03a%b"]
            .concat()
    }

    fn connection(authority: &str, data: &[u8]) -> Vec<u8> {
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, &[]),
            frame(HEADERS, &field(authority)),
            frame(0, data),
            frame(HEADERS, &field(authority)),
        ]
        .concat()
    }

    #[test]
    fn only_an_authoritys_percent_signs_change_however_the_bytes_are_cut() {
        let long = format!("{}%2Fspiffe.sock", "a%2F".repeat(40));
        for authority in ["run%2Fspiffe.sock", "localhost", &long] {
            let body = field("in%2Fa%2Fbody");
            let sent = connection(authority, &body);
            let expected = connection(&authority.replace('%', "-"), &body);
            for cut in 1..=sent.len() {
                let (mut received, mut authorities) = (sent.clone(), Authorities::new());
                received.chunks_mut(cut).for_each(|part| authorities.pass(part));
                assert_eq!(received, expected, "{authority} in parts of {cut}");
            }
        }
    }

    #[test]
    fn whatever_else_is_sent_passes_as_it_is() {
        for payload in [
            &b":authority"[..],
            b":authority\x8a%%%",
            b":authority\x7f\xff%%",
            b":authorit%",
            b"%",
            &[0xff; 64],
        ] {
            let sent = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(HEADERS, payload)].concat();
            let mut received = sent.clone();
            Authorities::new().pass(&mut received);
            assert_eq!(received, sent);
        }
    }
}
