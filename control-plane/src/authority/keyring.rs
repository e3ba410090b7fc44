//! The file `authority.pem`: every key of the trust domain, and the certificates that outlive their keys.
//!
//! Version 2, mode 0600 and unencrypted: the state directory is the secret.
//!
//! ```text
//! signet-authority 2 sha256 DIGEST-OF-ALL-THAT-FOLLOWS
//! pairs P retired R vouchers V
//! key of policy, key of directories               2 private keys
//! root, its key, issuer, its key                  P times, 1 to 3
//! root                                            R times: retired, its key was destroyed
//! word of one root for the next                   V times
//! ```
//!
//! Version 3 is the same, where in the place of a private key may stand what a module knows it by (`SIGNET HELD KEY`): it is
//! written only where one does, so that an older program does not take such a file for a damaged one.
//!
//! Version 1 is one pair and then the two keys; it is read, and written as version 2 with the next change. What part each
//! pair plays is not in here but in the store ([`super::Slots`]): the file only ever gains keys before the store names
//! them, and loses them after it no longer does.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use signet_identity::{IssueError, Keys, PrivateKey, TrustDomain, spki_sha256};
use signet_sync::SectionKey;
use zeroize::Zeroizing;

use super::{AuthorityError, BACKDATE};
use crate::files;

pub(crate) const FILE: &str = "authority.pem";
const HEADER: &str = "signet-authority ";

/// Far above two pairs, two keys and the certificates of all retired roots.
const FILE_MAX: u64 = 64 * 1024;

/// How long roots and issuers live when nobody rotates them.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Pairs at once: the current one, the next, and one made in an emergency meanwhile.
const PAIRS_MAX: usize = 3;

/// Retired roots, and words of one root for another, in one file: far above `RETIRED_MAX` of the rotation.
const CERTIFICATES_MAX: usize = 16;

/// Root and issuer with their keys.
pub(crate) type Pair = Arc<signet_identity::Authority>;

/// What names a root or an issuer: base64url of the SHA-256 of its SubjectPublicKeyInfo. A root's is what tokens pin.
pub(crate) fn name(spki_sha256: [u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(spki_sha256)
}

/// All keys, and the certificates whose keys are gone. `Debug` is not derived: it would show keys.
#[derive(Clone)]
pub(crate) struct Keyring {
    pub(crate) pairs: Vec<Pair>,
    /// By the name of the root.
    pub(crate) retired: BTreeMap<String, CertificateDer<'static>>,
    /// The word of the root before it, by the name of the root it is for.
    pub(crate) vouchers: BTreeMap<String, CertificateDer<'static>>,
    pub(crate) policy_key: Arc<SectionKey>,
    pub(crate) directory_key: Arc<SectionKey>,
}

impl Keyring {
    /// Loads the keys of `directory`; `None` when none were made there yet. Those that a module holds are known by name only.
    pub(crate) fn load(directory: &Path, trust_domain: &TrustDomain) -> Result<Option<Self>, AuthorityError> {
        Self::load_in(directory, trust_domain, &Keys::Memory)
    }

    /// The same, with the module that holds them.
    pub(crate) fn load_in(
        directory: &Path,
        trust_domain: &TrustDomain,
        keys: &Keys,
    ) -> Result<Option<Self>, AuthorityError> {
        let text = match files::read(&directory.join(FILE), FILE_MAX) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == ErrorKind::InvalidData => return Err(AuthorityError::Corrupted),
            Err(error) => return Err(AuthorityError::Io(error)),
        };
        let keyring = Self::decode(&text, keys)?;
        match keyring.pairs.iter().find(|pair| pair.trust_domain() != trust_domain) {
            None => Ok(Some(keyring)),
            Some(pair) => Err(AuthorityError::OtherTrustDomain {
                stored: pair.trust_domain().to_string(),
                configured: trust_domain.to_string(),
            }),
        }
    }

    /// Makes new keys in memory and stores them in `directory`.
    pub(crate) fn create(
        directory: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        Self::with_pair(directory, new_root(trust_domain, now, &Keys::Memory)?)
    }

    /// Makes new keys, those of root and issuer there, and stores them, or what they are known by, in `directory`. With
    /// `constrains` the issuer may vouch for this trust domain alone by its own certificate.
    pub(crate) fn create_in(
        directory: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
        keys: &Keys,
        constrains: bool,
    ) -> Result<Self, AuthorityError> {
        let pair = new_root(trust_domain, now, keys)?;
        let pair = if constrains { constrained(&pair, now, keys)? } else { pair };
        Self::with_pair(directory, pair)
    }

    fn with_pair(directory: &Path, pair: Pair) -> Result<Self, AuthorityError> {
        let keyring = Self {
            pairs: vec![pair],
            retired: BTreeMap::new(),
            vouchers: BTreeMap::new(),
            policy_key: Arc::new(SectionKey::generate()?),
            directory_key: Arc::new(SectionKey::generate()?),
        };
        keyring.store(directory)?;
        Ok(keyring)
    }

    /// As the file has it, for a backup: all keys are in it.
    pub(crate) fn text(&self) -> Result<Zeroizing<String>, AuthorityError> {
        self.encode()
    }

    /// The keys of such a text.
    pub(crate) fn from_text(text: &str) -> Result<Self, AuthorityError> {
        Self::decode(text, &Keys::Memory)
    }

    /// Keeps the keys in `directory` from now on: durable when this returns, and all or nothing.
    pub(crate) fn store(&self, directory: &Path) -> Result<(), AuthorityError> {
        files::replace(&directory.join(FILE), self.encode()?.as_bytes()).map_err(AuthorityError::Io)
    }

    /// What a module knows keys of roots and issuers by; none of those in memory.
    pub(crate) fn held(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().flat_map(|pair| pair.held_keys())
    }

    /// The first pair: the only one unless a rotation is under way.
    pub(crate) fn first(&self) -> Result<&Pair, AuthorityError> {
        self.pairs.first().ok_or(AuthorityError::Corrupted)
    }

    /// What a token of the first pair's root pins.
    pub(crate) fn pin(&self) -> Result<[u8; 32], AuthorityError> {
        Ok(self.first()?.root_spki_sha256())
    }

    /// The pair of a root and an issuer by their names.
    pub(crate) fn pair(&self, root: &str, issuer: &str) -> Option<&Pair> {
        let is =
            |pair: &&Pair| name(pair.root_spki_sha256()) == root && name(pair.issuer_spki_sha256()) == issuer;
        self.pairs.iter().find(is)
    }

    /// A root's certificate, in force or retired.
    pub(crate) fn root(&self, root: &str) -> Option<&CertificateDer<'static>> {
        let mut pairs = self.pairs.iter();
        let pair = pairs.find(|pair| name(pair.root_spki_sha256()) == root);
        pair.map(|pair| pair.root_der()).or_else(|| self.retired.get(root))
    }

    fn encode(&self) -> Result<Zeroizing<String>, AuthorityError> {
        let (pairs, retired, vouchers) = (self.pairs.len(), self.retired.len(), self.vouchers.len());
        // As large as it can be at once: a text that grows leaves copies behind.
        let mut body = Zeroizing::new(String::with_capacity(FILE_MAX as usize));
        body.push_str(&format!("pairs {pairs} retired {retired} vouchers {vouchers}\n"));
        for key in [&self.policy_key, &self.directory_key] {
            push_pem(&mut body, "PRIVATE KEY", &key.to_pkcs8()?);
        }
        for pair in &self.pairs {
            body.push_str(&pair.to_pem());
        }
        for certificate in self.retired.values().chain(self.vouchers.values()) {
            push_pem(&mut body, "CERTIFICATE", certificate);
        }
        let mut text = Zeroizing::new(String::with_capacity(FILE_MAX as usize));
        let version = if self.held().next().is_some() { 3 } else { 2 };
        text.push_str(&format!("{HEADER}{version} sha256 {}\n", checksum(&body)));
        text.push_str(&body);
        Ok(text)
    }

    fn decode(text: &str, keys: &Keys) -> Result<Self, AuthorityError> {
        let (head, body) = text.split_once('\n').ok_or(AuthorityError::Corrupted)?;
        let (version, sum) = head
            .strip_prefix(HEADER)
            .and_then(|head| head.split_once(" sha256 "))
            .ok_or(AuthorityError::Corrupted)?;
        if sum != checksum(body) {
            return Err(AuthorityError::Corrupted);
        }
        let mut blocks = Blocks::of(body);
        match version {
            "1" => {
                let pair = blocks.pair(keys)?;
                let (policy_key, directory_key) = (blocks.key()?, blocks.key()?);
                blocks.end()?;
                let (retired, vouchers) = Default::default();
                Ok(Self { pairs: vec![pair], retired, vouchers, policy_key, directory_key })
            }
            "2" | "3" => {
                let [pairs, retired, vouchers] = counts(body)?;
                let (policy_key, directory_key) = (blocks.key()?, blocks.key()?);
                let pairs = (0..pairs).map(|_| blocks.pair(keys)).collect::<Result<_, _>>()?;
                let retired = (0..retired).map(|_| blocks.named()).collect::<Result<_, _>>()?;
                let vouchers = (0..vouchers).map(|_| blocks.named()).collect::<Result<_, _>>()?;
                blocks.end()?;
                Ok(Self { pairs, retired, vouchers, policy_key, directory_key })
            }
            _ => Err(AuthorityError::Version(version.chars().take(16).collect())),
        }
    }
}

/// A new root with its issuer.
pub(crate) fn new_root(
    trust_domain: &TrustDomain,
    now: SystemTime,
    keys: &Keys,
) -> Result<Pair, AuthorityError> {
    let made = signet_identity::Authority::create_in(keys, trust_domain.clone(), now - BACKDATE, LIFETIME)?;
    Ok(Arc::new(made))
}

/// The same root with a new issuer.
pub(crate) fn new_issuer(pair: &Pair, now: SystemTime, keys: &Keys) -> Result<Pair, AuthorityError> {
    Ok(Arc::new(pair.with_new_issuer_in(keys, now - BACKDATE, LIFETIME)?))
}

/// The same root with a new issuer that may vouch for its trust domain alone by its own certificate.
pub(crate) fn constrained(pair: &Pair, now: SystemTime, keys: &Keys) -> Result<Pair, AuthorityError> {
    let next = pair.with_constrained_issuer(keys, now - BACKDATE, LIFETIME)?;
    if let Keys::Module(module) = keys {
        // The issuer that it replaces has certified nobody: nothing of it stays behind.
        for gone in pair.held_keys().filter(|key| !next.held_keys().any(|kept| kept == *key)) {
            module.destroy(gone).map_err(IssueError::from)?;
        }
    }
    Ok(Arc::new(next))
}

/// `pairs P retired R vouchers V`, each within its bound.
fn counts(body: &str) -> Result<[usize; 3], AuthorityError> {
    let line: Vec<&str> = body.lines().next().unwrap_or_default().split(' ').collect();
    let ["pairs", pairs, "retired", retired, "vouchers", vouchers] = line[..] else {
        return Err(AuthorityError::Corrupted);
    };
    let number = |text: &str, max: usize| {
        text.parse().ok().filter(|number| *number <= max).ok_or(AuthorityError::Corrupted)
    };
    let pairs = number(pairs, PAIRS_MAX)?;
    if pairs == 0 {
        return Err(AuthorityError::Corrupted);
    }
    Ok([pairs, number(retired, CERTIFICATES_MAX)?, number(vouchers, CERTIFICATES_MAX)?])
}

/// PEM blocks in the order they stand.
struct Blocks<'a> {
    rest: std::vec::IntoIter<&'a str>,
}

impl<'a> Blocks<'a> {
    fn of(body: &'a str) -> Self {
        let starts: Vec<usize> = body.match_indices("-----BEGIN ").map(|(at, _)| at).collect();
        let ends = starts.iter().skip(1).copied().chain([body.len()]);
        let blocks: Vec<&str> =
            starts.iter().zip(ends).filter_map(|(&start, end)| body.get(start..end)).collect();
        Self { rest: blocks.into_iter() }
    }

    fn next(&mut self) -> Result<&'a str, AuthorityError> {
        self.rest.next().ok_or(AuthorityError::Corrupted)
    }

    fn key(&mut self) -> Result<Arc<SectionKey>, AuthorityError> {
        let key = PrivateKey::from_pem(self.next()?.as_bytes()).ok_or(AuthorityError::Corrupted)?;
        Ok(Arc::new(SectionKey::from_pkcs8(key.secret_der())?))
    }

    fn pair(&mut self, keys: &Keys) -> Result<Pair, AuthorityError> {
        let text = Zeroizing::new([self.next()?, self.next()?, self.next()?, self.next()?].concat());
        Ok(Arc::new(signet_identity::Authority::from_pem_in(keys, &text)?))
    }

    /// A certificate under the name of the key it is over.
    fn named(&mut self) -> Result<(String, CertificateDer<'static>), AuthorityError> {
        use rustls_pki_types::pem::PemObject;
        let der = CertificateDer::from_pem_slice(self.next()?.as_bytes());
        let der = der.map_err(|_| AuthorityError::Corrupted)?;
        let key = spki_sha256(&der).map_err(|_| AuthorityError::Corrupted)?;
        Ok((name(key), der))
    }

    fn end(&mut self) -> Result<(), AuthorityError> {
        if self.rest.next().is_some() { Err(AuthorityError::Corrupted) } else { Ok(()) }
    }
}

fn checksum(body: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, body.as_bytes()))
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let mut text = String::new();
    push_pem(&mut text, label, der);
    text
}

/// Line by line into a text that the caller answers for: nothing of a key is put anywhere else.
fn push_pem(text: &mut String, label: &str, der: &[u8]) {
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    // 48 bytes make a line of 64 characters.
    for line in der.chunks(48) {
        STANDARD.encode_string(line, text);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        TrustDomain::parse("mesh.example").unwrap()
    }

    #[test]
    fn stored_keys_are_the_same_after_loading() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Keyring::load(directory.path(), &domain()).unwrap().is_none());
        let now = SystemTime::now();
        let mut made = Keyring::create(directory.path(), &domain(), now).unwrap();
        let next = new_root(&domain(), now, &Keys::Memory).unwrap();
        let gone = new_root(&domain(), now, &Keys::Memory).unwrap();
        let root = made.first().unwrap().clone();
        let until = now + Duration::from_secs(3600);
        made.vouchers.insert(name(next.root_spki_sha256()), root.vouch_for(&next, now, until).unwrap());
        made.retired.insert(name(gone.root_spki_sha256()), gone.root_der().clone());
        made.pairs.push(next);
        made.store(directory.path()).unwrap();
        let loaded = Keyring::load(directory.path(), &domain()).unwrap().unwrap();
        assert_eq!(loaded.encode().unwrap(), made.encode().unwrap());
        assert_eq!(loaded.pin().unwrap(), made.pin().unwrap());
        assert_eq!((loaded.pairs.len(), loaded.retired.len(), loaded.vouchers.len()), (2, 1, 1));
    }

    #[test]
    fn a_file_of_version_1_is_the_same_authority() {
        let directory = tempfile::tempdir().unwrap();
        let made = Keyring::create(directory.path(), &domain(), SystemTime::now()).unwrap();
        let keys = [&made.policy_key, &made.directory_key];
        let keys = keys.map(|key| pem("PRIVATE KEY", &key.to_pkcs8().unwrap())).concat();
        let body = format!("{}{keys}", *made.first().unwrap().to_pem());
        let text = format!("signet-authority 1 sha256 {}\n{body}", checksum(&body));
        std::fs::write(directory.path().join(FILE), text).unwrap();
        let loaded = Keyring::load(directory.path(), &domain()).unwrap().unwrap();
        assert_eq!(loaded.encode().unwrap(), made.encode().unwrap());
    }

    #[test]
    fn a_file_of_a_later_version_is_refused_by_name_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        Keyring::create(directory.path(), &domain(), SystemTime::now()).unwrap();
        let path = directory.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap().replacen("authority 2", "authority 4", 1);
        std::fs::write(&path, text).unwrap();
        let refused = Keyring::load(directory.path(), &domain()).err().unwrap();
        assert!(matches!(&refused, AuthorityError::Version(version) if version == "4"), "{refused}");
    }

    #[test]
    fn a_flipped_bit_anywhere_in_the_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        Keyring::create(directory.path(), &domain(), SystemTime::now()).unwrap();
        let path = directory.path().join(FILE);
        let intact = std::fs::read(&path).unwrap();
        for at in (0..intact.len()).step_by(97) {
            let mut bytes = intact.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let refused = Keyring::load(directory.path(), &domain()).err().unwrap();
            assert!(matches!(refused, AuthorityError::Corrupted), "{at}: {refused}");
        }
    }

    #[test]
    fn another_trust_domain_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        Keyring::create(directory.path(), &domain(), SystemTime::now()).unwrap();
        let other = TrustDomain::parse("other.example").unwrap();
        let refused = Keyring::load(directory.path(), &other).err().unwrap();
        assert!(matches!(refused, AuthorityError::OtherTrustDomain { .. }));
    }

    #[test]
    fn the_file_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        Keyring::create(directory.path(), &domain(), SystemTime::now()).unwrap();
        let mode = std::fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
