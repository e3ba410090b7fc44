//! The chunked transfer coding of RFC 9112 section 7.1, decoded from bytes in memory.
//!
//! Strict in everything but line ends: a bare LF is taken for CR LF, because messages are pasted.

/// Most bytes of one chunk-size line, extensions included: real ones have under 20.
const SIZE_LINE_MAX: usize = 256;
/// Most trailer fields: as many as a header section may have here.
const TRAILERS_MAX: usize = 64;

/// A body that has arrived completely.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) body: Vec<u8>,
    /// Trailer fields in the order received, names as received.
    pub(crate) trailers: Vec<(String, Vec<u8>)>,
    /// Encoded bytes used, the last line end included.
    pub(crate) consumed: usize,
}

/// Why bytes are not a chunked body.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkedError {
    #[error("chunk size is not a hexadecimal number")]
    Size,
    #[error("chunk is not followed by a line end")]
    Terminator,
    #[error("body is longer than {0} bytes")]
    TooLong(usize),
    #[error("trailer section is malformed")]
    Trailers,
}

/// Decodes a whole chunked body of at most `body_max` bytes; `None` means that more bytes are needed.
pub(crate) fn decode(input: &[u8], body_max: usize) -> Result<Option<Decoded>, ChunkedError> {
    let mut body = Vec::new();
    let mut rest = input;
    loop {
        let Some((line, after)) = line(rest) else {
            return if rest.len() > SIZE_LINE_MAX { Err(ChunkedError::Size) } else { Ok(None) };
        };
        let size = chunk_size(line)?;
        if size > body_max - body.len() {
            return Err(ChunkedError::TooLong(body_max));
        }
        if size == 0 {
            return Ok(trailers(after)?.map(|(trailers, after)| Decoded {
                body,
                trailers,
                consumed: input.len() - after.len(),
            }));
        }
        let Some((data, after)) = after.split_at_checked(size) else { return Ok(None) };
        body.extend_from_slice(data);
        rest = match after {
            [b'\r', b'\n', rest @ ..] | [b'\n', rest @ ..] => rest,
            [] | [b'\r'] => return Ok(None),
            _ => return Err(ChunkedError::Terminator),
        };
    }
}

fn chunk_size(line: &[u8]) -> Result<usize, ChunkedError> {
    let digits = line.split(|&byte| byte == b';').next().unwrap_or(line).trim_ascii_end();
    // `from_str_radix` would take a sign, and sixteen digits are as many as a u64 can hold.
    if line.len() > SIZE_LINE_MAX
        || digits.len() > 16
        || digits.is_empty()
        || !digits.iter().all(u8::is_ascii_hexdigit)
    {
        return Err(ChunkedError::Size);
    }
    let text = std::str::from_utf8(digits).map_err(|_| ChunkedError::Size)?;
    usize::from_str_radix(text, 16).map_err(|_| ChunkedError::Size)
}

type Trailers = Vec<(String, Vec<u8>)>;

fn trailers(input: &[u8]) -> Result<Option<(Trailers, &[u8])>, ChunkedError> {
    let mut trailers = Vec::new();
    let mut rest = input;
    loop {
        let Some((line, after)) = line(rest) else { return Ok(None) };
        rest = after;
        if line.is_empty() {
            return Ok(Some((trailers, rest)));
        }
        let colon = line.iter().position(|&byte| byte == b':').ok_or(ChunkedError::Trailers)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let name = http::HeaderName::from_bytes(name)
            .ok()
            .and_then(|_| std::str::from_utf8(name).ok())
            .ok_or(ChunkedError::Trailers)?;
        if trailers.len() == TRAILERS_MAX || http::HeaderValue::from_bytes(value).is_err() {
            return Err(ChunkedError::Trailers);
        }
        trailers.push((name.to_owned(), value.to_owned()));
    }
}

/// Splits off one line, without its end.
fn line(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = input.iter().position(|&byte| byte == b'\n')?;
    let line = &input[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &input[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_extensions_and_trailers_are_decoded() {
        let input = b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nExpires: never\r\n\r\nnext";
        let decoded = decode(input, 100).unwrap().unwrap();
        assert_eq!(decoded.body, b"hello world");
        assert_eq!(decoded.trailers, [("Expires".to_owned(), b"never".to_vec())]);
        assert_eq!(&input[decoded.consumed..], b"next");
    }

    #[test]
    fn bare_line_feeds_are_accepted() {
        assert_eq!(decode(b"1\na\n0\n\n", 100).unwrap().unwrap().body, b"a");
    }

    #[test]
    fn every_prefix_of_a_chunked_body_asks_for_more() {
        let input = b"5\r\nhello\r\n0\r\nA: b\r\n\r\n";
        for end in 0..input.len() {
            assert_eq!(decode(&input[..end], 100), Ok(None), "prefix of {end} bytes");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        assert_eq!(decode(b"+5\r\nhello\r\n", 100), Err(ChunkedError::Size));
        assert_eq!(decode(b"fffffffffffffffff\r\n", 100), Err(ChunkedError::Size));
        assert_eq!(decode(b"ffffffffffffffff\r\n", 100), Err(ChunkedError::TooLong(100)));
        assert_eq!(decode(b"5\r\nhelloworld", 100), Err(ChunkedError::Terminator));
        assert_eq!(decode(b"0\r\nno colon\r\n\r\n", 100), Err(ChunkedError::Trailers));
        assert_eq!(decode(&[b'0'; 300], 100), Err(ChunkedError::Size));
    }
}
