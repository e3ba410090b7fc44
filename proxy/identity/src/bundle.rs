//! Trust bundles: the roots of one trust domain, and beside them those of domains that it is federated with.

use rustls_pki_types::{CertificateDer, TrustAnchor};
use thiserror::Error;

use crate::certificate::Certificate;
use crate::id::{SpiffeId, TrustDomain};

/// The most roots a trust domain may have at once. Two serve a rotation (current and next); the rest is room
/// for a rotation that overlaps another. Each costs a path search on a chain that fits none.
pub const MAX_ROOTS: usize = 8;

/// The most issuers that a bundle refuses although a root of it vouches for them: every one is compared with every
/// issuer of a path. Whoever retires more issuers under one root changes the root, which takes them all with it.
pub const MAX_REFUSED_ISSUERS: usize = 64;

/// The most trust domains that one is federated with.
pub const MAX_FEDERATED: usize = 100;

/// The roots that may vouch for one trust domain, and for no other.
///
/// Federated domains have bundles of their own in it. A chain is judged by the bundle of the domain that its leaf names,
/// whole: there is no pool in which a root of one domain could vouch for an identity of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    refused_issuers: Vec<[u8; 32]>,
    /// In the order of their names; none of them has any itself.
    federated: Vec<Self>,
}

impl TrustBundle {
    /// Makes a bundle. During a rotation it has the old and the new root; the order does not matter.
    ///
    /// A root is trusted for its key; its own signature and dates are not looked at.
    ///
    /// # Errors
    /// No root or more than [`MAX_ROOTS`], one that is no authority's certificate, or one that names another
    /// trust domain.
    pub fn new(trust_domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(BundleError::RootCount);
        }
        let anchors = roots.iter().map(|root| anchor(&trust_domain, root)).collect::<Result<_, _>>()?;
        Ok(Self { trust_domain, roots, anchors, refused_issuers: Vec::new(), federated: Vec::new() })
    }

    /// The same roots, but no path may go through an issuer whose SubjectPublicKeyInfo has one of these SHA-256 hashes:
    /// issuers that were retired before their certificates end.
    ///
    /// # Errors
    /// [`BundleError::RefusedIssuers`] for more than [`MAX_REFUSED_ISSUERS`].
    pub fn without_issuers(self, refused_issuers: Vec<[u8; 32]>) -> Result<Self, BundleError> {
        if refused_issuers.len() > MAX_REFUSED_ISSUERS {
            return Err(BundleError::RefusedIssuers);
        }
        Ok(Self { refused_issuers, ..self })
    }

    /// The same, and beside it the bundles of other trust domains, each for its own identities alone.
    ///
    /// # Errors
    /// [`BundleError::Federated`] for more than [`MAX_FEDERATED`], for one of this trust domain, two of the same, or one that
    /// brings others along: whom a federated domain trusts is its own affair.
    pub fn with_federated(self, mut federated: Vec<Self>) -> Result<Self, BundleError> {
        federated.sort_by(|one, other| one.trust_domain.cmp(&other.trust_domain));
        let twice = federated.windows(2).any(|pair| match pair {
            [one, other] => one.trust_domain == other.trust_domain,
            _ => false,
        });
        let unfit = |bundle: &Self| bundle.trust_domain == self.trust_domain || !bundle.federated.is_empty();
        if federated.len() > MAX_FEDERATED || twice || federated.iter().any(unfit) {
            return Err(BundleError::Federated);
        }
        Ok(Self { federated, ..self })
    }

    /// The bundles of other trust domains, in the order of their names.
    pub fn federated(&self) -> &[Self] {
        &self.federated
    }

    /// The own trust domain's part, which believes nobody of another.
    pub fn alone(&self) -> Self {
        Self { federated: Vec::new(), ..self.clone() }
    }

    /// The one bundle that a chain with this leaf is judged by: that of the trust domain it names, if it is federated, else
    /// the own one. What is read of the leaf here counts for nothing before the chain verifies by that bundle.
    pub(crate) fn of_leaf(&self, der: &[u8]) -> &Self {
        if self.federated.is_empty() {
            return self;
        }
        let named = Certificate::parse(der).ok().and_then(|leaf| SpiffeId::parse(leaf.only_uri().ok()?).ok());
        let is_named = |bundle: &&Self| {
            named.as_ref().is_some_and(|id| id.trust_domain() == bundle.trust_domain.as_str())
        };
        self.federated.iter().find(is_named).unwrap_or(self)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots' certificates.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// SHA-256 of the SubjectPublicKeyInfo of each issuer that no path may go through.
    pub fn refused_issuers(&self) -> &[[u8; 32]] {
        &self.refused_issuers
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

/// Why certificates are not the roots of a trust domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BundleError {
    /// Too many federated trust domains, or one that cannot be.
    #[error(
        "a bundle has at most 100 federated ones, of other trust domains, each once and without any themselves"
    )]
    Federated,
    /// More than [`MAX_REFUSED_ISSUERS`] issuers are refused.
    #[error("a bundle refuses at most 64 issuers")]
    RefusedIssuers,
    /// One of them is malformed or no authority's.
    #[error("a root is malformed or is not an authority's certificate")]
    Root,
    /// None, or more than [`MAX_ROOTS`].
    #[error("a bundle has one to eight roots")]
    RootCount,
    /// One of them says that it is another trust domain's.
    #[error("a root names another trust domain")]
    TrustDomain,
}

fn anchor(
    trust_domain: &TrustDomain,
    root: &CertificateDer<'static>,
) -> Result<TrustAnchor<'static>, BundleError> {
    let certificate = Certificate::parse(root).map_err(|_| BundleError::Root)?;
    if !certificate.is_authority {
        return Err(BundleError::Root);
    }
    // Foreign roots often name nothing; ours do, and then it must be this domain.
    if certificate.only_uri().is_ok_and(|uri| uri != trust_domain.uri()) {
        return Err(BundleError::TrustDomain);
    }
    let anchor = webpki::anchor_from_trusted_cert(root).map_err(|_| BundleError::Root)?;
    Ok(anchor.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Mesh;

    #[test]
    fn bundle_needs_one_to_eight_authorities_of_its_domain() {
        let mesh = Mesh::new();
        let root = mesh.authority.root_der().clone();
        let domain = mesh.authority.trust_domain().clone();
        let make = |domain: &TrustDomain, roots| TrustBundle::new(domain.clone(), roots).err();
        assert_eq!(make(&domain, vec![root.clone(); MAX_ROOTS]), None);
        assert_eq!(make(&domain, vec![root.clone(); MAX_ROOTS + 1]), Some(BundleError::RootCount));
        assert_eq!(make(&domain, Vec::new()), Some(BundleError::RootCount));
        assert_eq!(make(&domain, vec![mesh.tls_svid("gw").chain[0].clone()]), Some(BundleError::Root));
        assert_eq!(make(&domain, vec![CertificateDer::from(vec![0x30, 0])]), Some(BundleError::Root));
        let other = TrustDomain::parse("other.example").unwrap();
        assert_eq!(make(&other, vec![root]), Some(BundleError::TrustDomain));
    }

    #[test]
    fn federated_bundles_are_of_other_domains_each_once_and_bring_nobody_along() {
        let bundle = |name: &str| Mesh::named(name).authority.bundle();
        let federated = |others: Vec<TrustBundle>| bundle("own.example").with_federated(others).err();
        assert_eq!(federated(vec![bundle("b.example"), bundle("a.example")]), None);
        let own = bundle("own.example");
        let nested = bundle("a.example").with_federated(vec![bundle("b.example")]).unwrap();
        for wrong in [vec![own], vec![bundle("a.example"), bundle("a.example")], vec![nested]] {
            assert_eq!(federated(wrong), Some(BundleError::Federated));
        }
        let many = (0..=MAX_FEDERATED).map(|number| bundle(&format!("d{number}.example"))).collect();
        assert_eq!(federated(many), Some(BundleError::Federated));
    }
}
