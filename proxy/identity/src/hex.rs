//! Bytes as hexadecimal digits, as people and tools such as `sha256sum` write digests.

/// In lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of exactly twice as many digits, in either case; `None` for anything else.
pub fn unhex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    if text.len() != 2 * BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let digits = (0..text.len()).step_by(2).map(|at| text.get(at..at + 2));
    let bytes: Option<Vec<u8>> = digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_as_they_are_written_and_nothing_else_is() {
        assert_eq!(unhex(&hex(&[0xab, 0x01])), Some([0xab, 0x01]));
        assert_eq!(unhex("AB01"), Some([0xab, 0x01]));
        for bad in ["", "ab", "ab0102", "zz01", "+101", "ab 1", "äb"] {
            assert_eq!(unhex::<2>(bad), None, "{bad}");
        }
    }
}
