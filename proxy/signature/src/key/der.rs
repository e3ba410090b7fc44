//! Takes the key out of PKCS#8 and SPKI, as far as the cryptographic library does not do it.
//!
//! That is one case: RSA keys marked for RSASSA-PSS (RFC 4055), the form in which RFC 9421 prints its
//! own RSA-PSS key.

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// id-RSASSA-PSS, 1.2.840.113549.1.1.10.
const RSASSA_PSS: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];

/// The PKCS#1 private key inside a PKCS#8 key that is marked for RSASSA-PSS.
pub(super) fn pss_private_key(pkcs8: &[u8]) -> Option<&[u8]> {
    let (document, _) = element(pkcs8, SEQUENCE)?;
    let (_version, rest) = element(document, INTEGER)?;
    let (algorithm, rest) = element(rest, SEQUENCE)?;
    let (key, _) = element(rest, OCTET_STRING)?;
    is_pss(algorithm).then_some(key)
}

/// The PKCS#1 public key inside an SPKI that is marked for RSASSA-PSS.
pub(super) fn pss_public_key(spki: &[u8]) -> Option<&[u8]> {
    let (document, _) = element(spki, SEQUENCE)?;
    let (algorithm, rest) = element(document, SEQUENCE)?;
    let (bits, _) = element(rest, BIT_STRING)?;
    // The first byte counts unused bits, of which a key has none.
    is_pss(algorithm).then_some(bits)?.strip_prefix(&[0])
}

fn is_pss(algorithm: &[u8]) -> bool {
    element(algorithm, OBJECT_IDENTIFIER).is_some_and(|(oid, _)| oid == RSASSA_PSS)
}

/// The content of the element with `tag` at the start of `der`, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.strip_prefix(&[tag])?.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => rest.split_first().map(|(&byte, rest)| (usize::from(byte), rest))?,
        0x82 => {
            let (bytes, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*bytes)), rest)
        }
        // Longer elements do not occur in keys of the sizes that are accepted.
        _ => return None,
    };
    rest.split_at_checked(length)
}
