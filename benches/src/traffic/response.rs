//! Reads HTTP/1.1 responses of known length, as many bytes at a time as there are.

use std::io;

/// The longest head: proxies add a few fields, never this much.
const HEAD_MAX: usize = 16 * 1024;
/// The most fields of a head.
const FIELDS_MAX: usize = 64;

/// A response on its way.
#[derive(Debug, Default)]
pub struct Response {
    head: Vec<u8>,
    /// Bytes of the body that are still to come; `None` before the head is complete.
    left: Option<u64>,
}

impl Response {
    /// Takes what was read. Whether the response is complete.
    ///
    /// # Errors
    /// Anything but a 2xx response of known length that ends where the bytes end.
    pub fn take(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let left = match self.left {
            Some(left) => left.checked_sub(bytes.len() as u64),
            None => {
                self.head.extend_from_slice(bytes);
                match parse(&self.head)? {
                    None => return Ok(false),
                    Some((head, length)) => length.checked_sub((self.head.len() - head) as u64),
                }
            }
        };
        let left = left.ok_or_else(|| invalid("more than one response came".into()))?;
        self.left = Some(left);
        Ok(left == 0)
    }

    /// Whether the head is complete.
    pub fn has_head(&self) -> bool {
        self.left.is_some()
    }

    /// Makes room for the next one.
    pub fn reset(&mut self) {
        self.head.clear();
        self.left = None;
    }
}

/// Length of the head and of the body, once the head is complete.
fn parse(bytes: &[u8]) -> io::Result<Option<(usize, u64)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(bytes).map_err(|error| invalid(error.to_string()))?;
    let httparse::Status::Complete(head) = parsed else {
        return if bytes.len() > HEAD_MAX { Err(invalid("the head is too long".into())) } else { Ok(None) };
    };
    let status = response.code.unwrap_or_default();
    if !(200..300).contains(&status) {
        let body = String::from_utf8_lossy(bytes.get(head..).unwrap_or_default()).into_owned();
        return Err(invalid(format!("status {status}: {}", body.trim())));
    }
    let length = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.trim().parse().ok());
    length.map(|length| Some((head, length))).ok_or_else(|| invalid("a response without a length".into()))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_complete_with_its_last_byte() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        for cut in 1..text.len() {
            let mut response = Response::default();
            let (first, second) = text.split_at(cut);
            assert!(!response.take(first).unwrap(), "after {cut} bytes");
            assert!(response.take(second).unwrap());
            response.reset();
            assert!(response.take(text).unwrap());
        }
    }

    #[test]
    fn refusals_and_surplus_are_errors() {
        let wrong = [
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            "SSH-2.0\r\n\r\n",
        ];
        for text in wrong {
            assert!(Response::default().take(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
