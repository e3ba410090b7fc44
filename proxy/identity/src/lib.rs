//! Who a workload is, how it proves it, and how that proof is made.
//!
//! * [`SpiffeId`] – the name of a workload, parsed strictly.
//! * [`TlsSvid`], [`SigningSvid`] – a workload's certificates with their keys: one for channels, one for
//!   messages, never interchangeable (see [`SIGNING_EKU`]).
//! * [`TrustBundle`] and [`verify_tls_chain`], [`verify_signing_chain`] – from bytes to proof: [`Peer`] and
//!   [`SigningIdentity`] have no other constructor than verification.
//! * [`server_config`], [`client_config`] and the two sides of enrolment – `rustls` set up the one way a mesh
//!   channel may be.
//! * [`AppSvid`], [`JwtAuthority`], [`bundle_document()`] – what the application itself gets, in SPIFFE's forms: good for
//!   everybody but the mesh.
//! * [`Authority`] and [`KeyRequest`] – issuing; [`renewal_time`] and [`backoff`] – when to ask again.
//!
//! # What a certificate must be
//! A chain is the leaf, then its issuer; the root stays at home in the bundle. The leaf is no authority, may
//! sign (`digitalSignature`) but not certify, and has **exactly one subject alternative name: a URI that is a
//! SPIFFE ID of the bundle's trust domain**. A common name means nothing. A TLS leaf has the purposes
//! serverAuth and clientAuth; a signing leaf has the one private purpose [`SIGNING_EKU`], an Ed25519 key, and
//! `nonRepudiation`. An application's leaf has no purpose, so it is neither.
//!
//! The trust domain is compared by us, as a whole string, against the bundle whose root anchors the chain.
//! Issuers may say the same by X.509 name constraints, for software that knows nothing of this. `webpki` fails closed on every
//! URI constraint (it refuses the chain, since RUSTSEC-2026-0098), so the authorities of such a chain are checked by us.
//!
//! # Invariants
//! No I/O, no clock (`now` is an argument; within a handshake it is `rustls`' own time provider), no panic on
//! any input. Keys appear in no `Debug` or error text. One crypto provider, passed explicitly: aws-lc-rs.

mod apart;
mod attestation;
mod bundle;
mod bundle_document;
mod certificate;
mod channel_key;
mod der;
mod device;
mod fingerprint;
mod grant;
mod hex;
mod id;
mod issue;
mod jwt;
mod key;
mod outside;
mod pem;
mod pin;
mod request;
mod rotate;
mod secret;
mod svid;
mod tls;
mod verify;

#[cfg(test)]
mod testing;

pub use apart::{Apart, Unanswered};
pub use attestation::{
    AttestationError, AttestedSvid, Enrolling, attest, attestation_binding, claimed_trust_domain,
    verify_attestation,
};
pub use bundle::{BundleError, MAX_FEDERATED, MAX_REFUSED_ISSUERS, MAX_ROOTS, TrustBundle};
pub use bundle_document::bundle_document;
pub use certificate::{CertificateError, SIGNING_EKU, channel_point, spki_sha256};
pub use channel_key::{ChannelKey, ChannelKeyRequest};
pub use device::device_of;
pub use fingerprint::{Fingerprint, FingerprintError};
pub use grant::{AreaGrant, GrantError, MAX_AREA_BYTES, MAX_GRANT_PATTERNS};
pub use hex::{hex, unhex};
pub use id::{Class, IdError, MAX_SPIFFE_ID_BYTES, SpiffeId, TrustDomain, WorkloadParts};
pub use issue::{Authority, HeldKey, IssueError, KeyModule, KeyModuleError, Keys};
pub use jwt::{JwtAuthority, JwtClaims, JwtError, JwtKey, MAX_AUDIENCE_BYTES, MAX_JWT_BYTES, verify_jwt};
pub use key::{ecdsa_signature, p256_spki};
pub use outside::{
    AuthoritiesError, MAX_AUTHORITIES, authorities, outside_client_config, outside_server_config,
};
pub use pin::{dated_client_config, pinned_client_config, root_by_pin};
pub use request::{KeyRequest, RequestError, requested_point};
pub use rotate::{backoff, renewal_time};
pub use secret::PrivateKey;
pub use svid::{AppSvid, SigningSvid, SvidError, TlsSvid};
pub use tls::{
    ALPN_CONTROL, ALPN_H1, ALPN_H2, ALPN_RECORDS, CHANNEL_ID_LABEL, MAC_KEY_LABEL, TlsError, channel_id,
    client_config, control_client_config, crypto_provider, dial_name, enrolment_server_config, mac_keys,
    rejoin_server_config, server_config,
};
pub use verify::{
    Dating, MAX_CHAIN, Peer, PeerVerifier, SigningIdentity, VerifyError, area_of_chain, expect, peer,
    verify_app_chain, verify_signing_chain, verify_tls_chain,
};
