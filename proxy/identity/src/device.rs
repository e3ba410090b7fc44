//! Which device a channel's key lies in, as it stands in the key's certificate.
//!
//! ```text
//! 2.25.2416849911506645336, not critical: OCTET STRING (SIZE (32))
//! ```
//!
//! The value is the SHA-256 of the SubjectPublicKeyInfo of the TPM's endorsement key. Whoever renews such a certificate, an area
//! too, certifies the same key and says the same of it. Peers need not know it, so it is not critical.

use rcgen::CustomExtension;

use crate::certificate::{Certificate, CertificateError};

/// The extension, in arcs and as it is written.
const ARCS: &[u64] = &[2, 25, 2_416_849_911_506_645_336];
pub(crate) const DEVICE_OID: &[u8] = &[0x69, 0xa1, 0xc5, 0x98, 0x86, 0x88, 0x96, 0xa6, 0xe2, 0x58];

const OCTET_STRING: [u8; 2] = [0x04, 32];

/// What a certificate says of where its key lies; `None` for one in memory.
///
/// # Errors
/// Not a certificate, or a malformed extension.
pub fn device_of(der: &[u8]) -> Result<Option<[u8; 32]>, CertificateError> {
    let Some(value) = Certificate::parse(der)?.device else { return Ok(None) };
    let digest = value.strip_prefix(&OCTET_STRING).and_then(|digest| digest.try_into().ok());
    digest.map(Some).ok_or(CertificateError::Malformed)
}

pub(crate) fn extension(device: &[u8; 32]) -> CustomExtension {
    CustomExtension::from_oid_content(ARCS, [&OCTET_STRING[..], device].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HOUR, Mesh, now};
    use crate::{KeyRequest, SpiffeId, verify_tls_chain};

    #[test]
    fn a_certificate_says_where_its_key_lies_and_peers_take_it() {
        let mesh = Mesh::new();
        let id = SpiffeId::parse("spiffe://edge.example/app/d1/gw").unwrap();
        let request = KeyRequest::new_tls().unwrap();
        let issue = |device| {
            mesh.authority.issue_tls_in(&request.csr, &id, now() - HOUR, now() + HOUR, device).unwrap()
        };
        let marked = issue(Some(&[7; 32]));
        assert_eq!(device_of(&marked[0]), Ok(Some([7; 32])));
        assert_eq!(device_of(&issue(None)[0]), Ok(None));
        assert_eq!(verify_tls_chain(&mesh.authority.bundle(), &marked, now()).unwrap().id(), &id);
        assert!(device_of(&marked[0][1..]).is_err());
    }
}
