//! X.509 (RFC 5280) as far as an SVID goes beyond path building: what a leaf must say, and reading it out.
//!
//! Path building and signatures are `webpki`'s; it does not tell how many names of any kind there are, which
//! purposes stand beside the required one, or what the key may be used for. Those are read here.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use thiserror::Error;
use webpki::EndEntityCert;

use crate::der::{self, Malformed, Reader};
use crate::device::DEVICE_OID;
use crate::fingerprint::{Fingerprint, sha256};
use crate::grant::{AreaGrant, GRANT_OID};
use crate::id::{IdError, SpiffeId};
use crate::key::KeyKind;

/// The extended key usage of a signing SVID: the content octets of the object identifier
/// 2.25.302593665633083754408239741667666649670, which is the UUID e3a56b8f-c470-423d-bce9-cf1260c16246.
///
/// It is the only purpose in a signing SVID and in no TLS SVID, so neither certificate passes for the other.
pub const SIGNING_EKU: &[u8] = &[
    0x69, 0x83, 0xc7, 0xa5, 0xb5, 0xe3, 0xf8, 0xc7, 0x82, 0x88, 0xfb, 0xbc, 0xf4, 0xf3, 0xe2, 0xa6, 0x86,
    0x85, 0xc4, 0x46,
];

/// id-kp-serverAuth, 1.3.6.1.5.5.7.3.1 (RFC 5280 section 4.2.1.12).
pub(crate) const SERVER_AUTH_EKU: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
/// id-kp-clientAuth, 1.3.6.1.5.5.7.3.2.
pub(crate) const CLIENT_AUTH_EKU: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// Why a certificate is not the leaf of an SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// It is an authority's certificate.
    #[error("an authority's certificate stands where a workload's must")]
    Authority,
    /// The one URI is no SPIFFE ID.
    #[error("the certificate names no SPIFFE ID: {0}")]
    Id(#[from] IdError),
    /// Its key is of the wrong kind for its purpose, or worthless.
    #[error("the certificate's key is of the wrong kind, or weak")]
    Key,
    /// Its key may not sign, or may certify.
    #[error("the certificate's key usage does not allow signing, or allows certifying")]
    KeyUsage,
    /// It is not well-formed.
    #[error("the certificate is malformed")]
    Malformed,
    /// It has not exactly one subject alternative name, a URI.
    #[error("the certificate has not exactly one subject alternative name, a URI")]
    Names,
    /// It is for another purpose: a TLS certificate where a signing one must be, or the like.
    #[error("the certificate is for another purpose")]
    Purpose,
}

impl From<Malformed> for CertificateError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// The key of a channel's certificate, an uncompressed point on P-256; `None` for another kind.
///
/// # Errors
/// Not a certificate.
pub fn channel_point(der: &CertificateDer<'_>) -> Result<Option<Vec<u8>>, CertificateError> {
    Ok(KeyKind::P256.public_key(Certificate::parse(der)?.spki).map(<[u8]>::to_vec))
}

/// SHA-256 over the SubjectPublicKeyInfo of a certificate: what a join token pins.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn spki_sha256(certificate: &[u8]) -> Result<[u8; 32], CertificateError> {
    Ok(sha256(Certificate::parse(certificate)?.spki))
}

/// What an SVID's leaf says, once it has been found to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Leaf {
    /// Reads a certificate as the leaf of a TLS SVID. Its signature is not checked here.
    pub(crate) fn tls(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = Certificate::parse(der)?;
        let purposes = certificate.purposes;
        if !purposes.server_auth || !purposes.client_auth || purposes.signing {
            return Err(CertificateError::Purpose);
        }
        certificate.leaf(DIGITAL_SIGNATURE)
    }

    /// Reads a certificate as an application's, which no end of the mesh takes for a workload's. Its signature is not
    /// checked here.
    pub(crate) fn app(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = Certificate::parse(der)?;
        if certificate.purposes.count != 0 {
            return Err(CertificateError::Purpose);
        }
        certificate.leaf(DIGITAL_SIGNATURE)
    }

    /// Reads a certificate as the leaf of an X.509-SVID that somebody else issued. Its signature is not checked here.
    pub(crate) fn foreign(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = Certificate::parse(der)?;
        let purposes = certificate.purposes;
        if purposes.count != 0 && (!purposes.server_auth || !purposes.client_auth || purposes.signing) {
            return Err(CertificateError::Purpose);
        }
        certificate.leaf(DIGITAL_SIGNATURE)
    }

    /// Reads a certificate as the leaf of a signing SVID, with its key. Its signature is not checked here.
    pub(crate) fn signing(der: &[u8]) -> Result<(Self, [u8; 32]), CertificateError> {
        let certificate = Certificate::parse(der)?;
        let purposes = certificate.purposes;
        if !purposes.signing || purposes.count != 1 {
            return Err(CertificateError::Purpose);
        }
        let leaf = certificate.leaf(DIGITAL_SIGNATURE | NON_REPUDIATION)?;
        let key = KeyKind::Ed25519.public_key(certificate.spki).and_then(|key| key.try_into().ok());
        Ok((leaf, key.ok_or(CertificateError::Key)?))
    }
}

/// The parts of a certificate that matter here.
pub(crate) struct Certificate<'a> {
    der: &'a [u8],
    to_be_signed: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    pub(crate) spki: &'a [u8],
    /// Names, DER.
    pub(crate) issuer: &'a [u8],
    pub(crate) subject: &'a [u8],
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) is_authority: bool,
    key_usage: u8,
    purposes: Purposes,
    names: Names<'a>,
    /// The longest path below, where it is bounded.
    path_length: Option<usize>,
    /// Critical extensions that are not read here.
    has_unknown_critical: bool,
    constraints: Option<&'a [u8]>,
    grant: Option<&'a [u8]>,
    /// Where its key lies, see [`crate::device_of`].
    pub(crate) device: Option<&'a [u8]>,
}

/// A GeneralName that is a URI (RFC 5280 section 4.2.1.6).
const URI: u8 = 0x86;

// The first byte of the key usage bit string, bit 0 first (RFC 5280 section 4.2.1.3).
const DIGITAL_SIGNATURE: u8 = 0x80;
const NON_REPUDIATION: u8 = 0x40;
const KEY_CERT_SIGN: u8 = 0x04;
const CRL_SIGN: u8 = 0x02;

#[derive(Clone, Copy, Default)]
struct Purposes {
    server_auth: bool,
    client_auth: bool,
    signing: bool,
    count: usize,
}

/// The subject alternative names: counted, and the URI kept (the last, if there are several; then the count
/// refuses them).
#[derive(Clone, Copy, Default)]
struct Names<'a> {
    count: usize,
    uri: Option<&'a [u8]>,
}

impl<'a> Certificate<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, CertificateError> {
        Self::read(der).map_err(|Malformed| CertificateError::Malformed)
    }

    /// Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }
    fn read(der: &'a [u8]) -> Result<Self, Malformed> {
        let mut outer = Reader::open(der, der::SEQUENCE)?;
        let to_be_signed = outer.element(der::SEQUENCE)?;
        let algorithm = outer.value(der::SEQUENCE)?;
        let signature = outer.octets_of_bit_string()?;
        outer.finish()?;

        let mut tbs = Reader::new(to_be_signed.value);
        // Version 3, without which there are no extensions.
        if tbs.value(der::context(0))? != [der::INTEGER, 1, 2] {
            return Err(Malformed);
        }
        tbs.value(der::INTEGER)?;
        if tbs.value(der::SEQUENCE)? != algorithm {
            return Err(Malformed);
        }
        let issuer = tbs.value(der::SEQUENCE)?;
        let mut validity = tbs.nested(der::SEQUENCE)?;
        let not_before = read_time(&mut validity)?;
        let not_after = read_time(&mut validity)?;
        validity.finish()?;
        let subject = tbs.value(der::SEQUENCE)?;
        let spki = tbs.element(der::SEQUENCE)?.raw;
        let extensions = tbs.value(der::context(3))?;
        tbs.finish()?;

        let extensions = Extensions::read(extensions)?;
        let basic_constraints = extensions.basic_constraints.map(read_basic_constraints).transpose()?;
        let (is_authority, path_length) = basic_constraints.unwrap_or_default();
        Ok(Self {
            der,
            to_be_signed: to_be_signed.raw,
            algorithm,
            signature,
            spki,
            issuer,
            subject,
            not_before,
            not_after,
            is_authority,
            path_length,
            has_unknown_critical: extensions.has_unknown_critical,
            constraints: extensions.constraints,
            grant: extensions.grant,
            device: extensions.device,
            key_usage: extensions.key_usage.map(read_key_usage).transpose()?.unwrap_or_default(),
            purposes: extensions.purposes.map(read_purposes).transpose()?.unwrap_or_default(),
            names: extensions.names.map(read_names).transpose()?.unwrap_or_default(),
        })
    }

    /// Whether a P-256 authority with this SubjectPublicKeyInfo signed the certificate.
    pub(crate) fn is_signed_by(&self, spki: &[u8]) -> bool {
        KeyKind::P256.verifies(spki, self.algorithm, self.to_be_signed, self.signature)
    }

    /// The URI, if it is the only subject alternative name of any kind.
    pub(crate) fn only_uri(&self) -> Result<&'a str, CertificateError> {
        let uri = self.own_uri()?;
        // Path building is webpki's: the name it sees in these bytes must be the one seen here.
        let der = CertificateDer::from(self.der);
        let other = EndEntityCert::try_from(&der).map_err(|_| CertificateError::Malformed)?;
        if other.valid_uri_names().eq([uri]) { Ok(uri) } else { Err(CertificateError::Malformed) }
    }

    /// The same as only this program reads it: of an area's issuer, which no other can.
    pub(crate) fn own_uri(&self) -> Result<&'a str, CertificateError> {
        let Names { count: 1, uri: Some(uri) } = self.names else {
            return Err(CertificateError::Names);
        };
        str::from_utf8(uri).map_err(|_| CertificateError::Names)
    }

    /// Whether it may certify, with so many authorities below it.
    pub(crate) fn check_authority(&self, below: usize) -> Result<(), CertificateError> {
        if !self.is_authority || self.path_length.is_some_and(|most| below > most) {
            return Err(CertificateError::Authority);
        }
        if self.key_usage & KEY_CERT_SIGN == 0 {
            return Err(CertificateError::KeyUsage);
        }
        if self.has_unknown_critical { Err(CertificateError::Malformed) } else { Ok(()) }
    }

    /// Whether it says for which names it may vouch.
    pub(crate) fn is_constrained(&self) -> bool {
        self.constraints.is_some()
    }

    /// What the area may certify whose issuer this is; none for any other authority.
    pub(crate) fn grant(&self) -> Result<Option<AreaGrant>, Malformed> {
        self.grant.map(AreaGrant::read).transpose()
    }

    /// Whether it is an area's issuer, whatever that was granted.
    pub(crate) fn is_area(&self) -> bool {
        self.grant.is_some()
    }

    /// Whether it may vouch for URIs with this host.
    ///
    /// NameConstraints ::= SEQUENCE { permittedSubtrees \[0\], excludedSubtrees \[1\] }, of which only permitted URIs are taken,
    /// each GeneralSubtree ::= SEQUENCE { base \[6\] IA5String }: a host, or with a `.` before it all hosts below.
    pub(crate) fn permits(&self, host: &str) -> Result<bool, Malformed> {
        let Some(constraints) = self.constraints else { return Ok(true) };
        let mut constraints = Reader::open(constraints, der::SEQUENCE)?;
        let mut permitted = constraints.nested(der::context(0))?;
        constraints.finish()?;
        let mut permits = false;
        while !permitted.is_empty() {
            let mut subtree = permitted.nested(der::SEQUENCE)?;
            let base = str::from_utf8(subtree.value(URI)?).map_err(|_| Malformed)?;
            subtree.finish()?;
            permits |= match base.strip_prefix('.') {
                Some(domain) => {
                    host.strip_suffix(domain).is_some_and(|label| label.len() > 1 && label.ends_with('.'))
                }
                None => host == base,
            };
        }
        Ok(permits)
    }

    fn leaf(&self, required_usage: u8) -> Result<Leaf, CertificateError> {
        if self.is_authority {
            return Err(CertificateError::Authority);
        }
        let may_certify = self.key_usage & (KEY_CERT_SIGN | CRL_SIGN) != 0;
        if may_certify || self.key_usage & required_usage != required_usage {
            return Err(CertificateError::KeyUsage);
        }
        Ok(Leaf {
            id: SpiffeId::parse(self.only_uri()?)?,
            fingerprint: Fingerprint::of(self.der),
            not_before: self.not_before,
            not_after: self.not_after,
        })
    }
}

/// The values of the extensions that are read here, each at most once.
#[derive(Default)]
struct Extensions<'a> {
    basic_constraints: Option<&'a [u8]>,
    key_usage: Option<&'a [u8]>,
    names: Option<&'a [u8]>,
    purposes: Option<&'a [u8]>,
    constraints: Option<&'a [u8]>,
    grant: Option<&'a [u8]>,
    device: Option<&'a [u8]>,
    has_unknown_critical: bool,
}

impl<'a> Extensions<'a> {
    /// Extensions ::= SEQUENCE OF SEQUENCE { extnID, critical DEFAULT FALSE, extnValue OCTET STRING }
    fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut found = Self::default();
        let mut list = Reader::open(bytes, der::SEQUENCE)?;
        while !list.is_empty() {
            let mut extension = list.nested(der::SEQUENCE)?;
            let id = extension.value(der::OID)?;
            let is_critical = extension.optional(der::BOOLEAN)? == Some(&[0xff][..]);
            let value = extension.value(der::OCTET_STRING)?;
            extension.finish()?;
            // id-ce is 2.5.29.
            let slot = match id {
                [0x55, 0x1d, 15] => &mut found.key_usage,
                [0x55, 0x1d, 17] => &mut found.names,
                [0x55, 0x1d, 19] => &mut found.basic_constraints,
                [0x55, 0x1d, 30] => &mut found.constraints,
                [0x55, 0x1d, 37] => &mut found.purposes,
                GRANT_OID => &mut found.grant,
                DEVICE_OID => &mut found.device,
                _ => {
                    // For path building to refuse, whoever does it.
                    found.has_unknown_critical |= is_critical;
                    continue;
                }
            };
            if slot.replace(value).is_some() {
                return Err(Malformed);
            }
        }
        Ok(found)
    }
}

/// BasicConstraints ::= SEQUENCE { cA BOOLEAN DEFAULT FALSE, pathLenConstraint INTEGER OPTIONAL }
fn read_basic_constraints(bytes: &[u8]) -> Result<(bool, Option<usize>), Malformed> {
    let mut constraints = Reader::open(bytes, der::SEQUENCE)?;
    let is_authority = match constraints.optional(der::BOOLEAN)? {
        None | Some([0]) => false,
        Some([0xff]) => true,
        Some(_) => return Err(Malformed),
    };
    let path_length = match constraints.optional(der::INTEGER)? {
        None => None,
        Some(&[length]) if length < 0x80 => Some(usize::from(length)),
        // Longer than any chain that is taken.
        Some(_) => Some(usize::from(u8::MAX)),
    };
    constraints.finish()?;
    Ok((is_authority, path_length))
}

/// KeyUsage ::= BIT STRING, of which the first eight bits matter here.
fn read_key_usage(bytes: &[u8]) -> Result<u8, Malformed> {
    let mut outer = Reader::new(bytes);
    let bits = outer.value(der::BIT_STRING)?;
    outer.finish()?;
    match bits {
        [0..=7, first, ..] => Ok(*first),
        _ => Err(Malformed),
    }
}

/// ExtKeyUsageSyntax ::= SEQUENCE SIZE (1..MAX) OF OBJECT IDENTIFIER
fn read_purposes(bytes: &[u8]) -> Result<Purposes, Malformed> {
    let mut list = Reader::open(bytes, der::SEQUENCE)?;
    let mut purposes = Purposes::default();
    while !list.is_empty() {
        let id = list.value(der::OID)?;
        purposes.count += 1;
        purposes.server_auth |= id == SERVER_AUTH_EKU;
        purposes.client_auth |= id == CLIENT_AUTH_EKU;
        purposes.signing |= id == SIGNING_EKU;
    }
    Ok(purposes)
}

/// GeneralNames ::= SEQUENCE OF GeneralName, where a URI is `[6] IA5String`.
fn read_names(bytes: &[u8]) -> Result<Names<'_>, Malformed> {
    let mut list = Reader::open(bytes, der::SEQUENCE)?;
    let mut names = Names::default();
    while !list.is_empty() {
        let name = list.any()?;
        names.count += 1;
        if name.tag == URI {
            names.uri = Some(name.value);
        }
    }
    Ok(names)
}

/// UTCTime `YYMMDDHHMMSSZ` up to 2049, GeneralizedTime `YYYYMMDDHHMMSSZ` after (RFC 5280 section 4.1.2.5).
fn read_time(reader: &mut Reader<'_>) -> Result<SystemTime, Malformed> {
    let time = reader.any()?;
    let (year, rest) = match (time.tag, time.value) {
        (der::UTC_TIME, [y @ .., b'Z']) if y.len() == 12 => {
            let (year, rest) = y.split_at(2);
            let year = decimal(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (der::GENERALIZED_TIME, [y @ .., b'Z']) if y.len() == 14 => {
            let (year, rest) = y.split_at(4);
            (decimal(year)?, rest)
        }
        _ => return Err(Malformed),
    };
    let mut fields = rest.chunks(2).map(decimal);
    let mut next = || fields.next().unwrap_or(Err(Malformed));
    let (month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?);
    if hour > 23 || minute > 59 || second > 59 {
        return Err(Malformed);
    }
    let seconds = days_since_1970(year, month, day)? * 86_400 + hour * 3600 + minute * 60 + second;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn decimal(digits: &[u8]) -> Result<u64, Malformed> {
    digits.iter().try_fold(0, |sum, digit| match digit {
        b'0'..=b'9' => Ok(sum * 10 + u64::from(digit - b'0')),
        _ => Err(Malformed),
    })
}

/// Days from 1970-01-01 to a date of the Gregorian calendar not before it.
fn days_since_1970(year: u64, month: u64, day: u64) -> Result<u64, Malformed> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (before, length) = match month {
        1 => (0, 31),
        2 => (31, if leap { 29 } else { 28 }),
        3 => (59, 31),
        4 => (90, 30),
        5 => (120, 31),
        6 => (151, 30),
        7 => (181, 31),
        8 => (212, 31),
        9 => (243, 30),
        10 => (273, 31),
        11 => (304, 30),
        12 => (334, 31),
        _ => return Err(Malformed),
    };
    if year < 1970 || day == 0 || day > length {
        return Err(Malformed);
    }
    let leap_days = |until: u64| until / 4 - until / 100 + until / 400;
    let years = (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969);
    Ok(years + before + u64::from(leap && month > 2) + day - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(tag: u8, text: &str) -> Option<u64> {
        let mut der = vec![tag, u8::try_from(text.len()).unwrap()];
        der.extend(text.as_bytes());
        let time = read_time(&mut Reader::new(&der)).ok()?;
        Some(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn times_of_both_forms_are_read() {
        assert_eq!(time(der::UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(time(der::UTC_TIME, "000229120000Z"), Some(951_825_600));
        assert_eq!(time(der::UTC_TIME, "261123073800Z"), Some(1_795_419_480));
        assert_eq!(time(der::GENERALIZED_TIME, "20500101000000Z"), Some(2_524_608_000));
        assert_eq!(time(der::GENERALIZED_TIME, "99991231235959Z"), Some(253_402_300_799));
    }

    #[test]
    fn impossible_times_are_refused() {
        for text in ["260229000000Z", "261301000000Z", "260100000000Z", "260101240000Z", "690101000000Z", ""]
        {
            assert_eq!(time(der::UTC_TIME, text), None, "{text}");
        }
        assert_eq!(time(der::UTC_TIME, "2601010000+0Z"), None);
        assert_eq!(time(der::GENERALIZED_TIME, "19691231235959Z"), None);
        assert_eq!(time(der::GENERALIZED_TIME, "20260101000000.5Z"), None);
    }

    #[test]
    fn every_prefix_and_every_flipped_byte_of_a_certificate_is_survived() {
        let der = crate::testing::Mesh::new().tls_svid("gw").chain[0].to_vec();
        for end in 0..der.len() {
            assert_eq!(Leaf::tls(&der[..end]).err(), Some(CertificateError::Malformed));
        }
        for at in 0..der.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = der.clone();
                bad[at] ^= flip;
                let _ = Leaf::tls(&bad);
                let _ = Leaf::signing(&bad);
            }
        }
    }
}
