//! The header: JSON with exactly these members, each once.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{Audience, Head, JwsError, Level, MAX_CHAIN, MAX_HEADER, MessageId, Seal};

/// `alg` (RFC 8037 section 3.1).
pub(super) const ALGORITHM: &str = "EdDSA";
/// `typ` (RFC 8725 section 3.11): the media type `application/mesh-msg-v1+jws`, without its first part.
const TYPE: &str = "mesh-msg-v1+jws";
/// The one extension, which nobody may ignore (RFC 7515 section 4.1.11).
const EXTENSION: &str = "mesh";

/// As it stands in the message.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    alg: String,
    typ: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cty: Option<String>,
    crit: Vec<String>,
    x5c: Vec<String>,
    mesh: WireMesh,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WireMesh {
    id: String,
    created: u64,
    expires: u64,
    audience: Vec<String>,
    level: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
}

/// What it says.
pub(super) struct Header {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) content_type: Option<String>,
    pub(super) mesh: Mesh,
}

/// What the extension says.
pub(super) struct Mesh {
    pub(super) id: MessageId,
    pub(super) created: u64,
    pub(super) expires: u64,
    pub(super) audience: Audience,
    pub(super) seal: Option<Seal>,
}

impl Header {
    pub(super) fn new(chain: &[CertificateDer<'_>], head: &Head, seal: Option<&Seal>) -> Self {
        Self {
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
            content_type: head.content_type.clone(),
            mesh: Mesh {
                id: head.id,
                created: head.created,
                expires: head.expires,
                audience: head.audience.clone(),
                seal: seal.cloned(),
            },
        }
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, JwsError> {
        let level = if self.mesh.seal.is_some() { Level::Private } else { Level::Protected };
        let wire = Wire {
            alg: ALGORITHM.to_owned(),
            typ: TYPE.to_owned(),
            cty: self.content_type.clone(),
            crit: vec![EXTENSION.to_owned()],
            x5c: encode_chain(&self.chain),
            mesh: WireMesh {
                id: self.mesh.id.to_string(),
                created: self.mesh.created,
                expires: self.mesh.expires,
                audience: self.mesh.audience.to_list(),
                level: level.name().to_owned(),
                seal: self.mesh.seal.as_ref().map(|seal| URL_SAFE_NO_PAD.encode(&seal.envelope)),
                commit: self.mesh.seal.as_ref().map(|seal| URL_SAFE_NO_PAD.encode(seal.commitment)),
            },
        };
        to_json(&wire)
    }

    pub(super) fn parse(json: &[u8]) -> Result<Self, JwsError> {
        // Members that are unknown, missing or there twice are malformed, in the extension too.
        let wire: Wire = serde_json::from_slice(json).map_err(|_| JwsError::Malformed)?;
        if wire.typ != TYPE {
            return Err(JwsError::Type);
        }
        if wire.alg != ALGORITHM {
            return Err(JwsError::Algorithm);
        }
        if wire.crit != [EXTENSION] {
            return Err(JwsError::Critical);
        }
        let WireMesh { id, created, expires, audience, level, seal, commit } = wire.mesh;
        let seal = match (seal, commit) {
            (None, None) => None,
            (Some(seal), Some(commit)) => Some(Seal {
                envelope: URL_SAFE_NO_PAD.decode(seal).map_err(|_| JwsError::Malformed)?,
                commitment: URL_SAFE_NO_PAD
                    .decode(commit)
                    .ok()
                    .and_then(|commit| commit.try_into().ok())
                    .ok_or(JwsError::Malformed)?,
            }),
            _ => return Err(JwsError::Malformed),
        };
        let expected = if seal.is_some() { Level::Private } else { Level::Protected };
        let audience = Audience::new(audience).map_err(|_| JwsError::Malformed)?;
        if level != expected.name() || (seal.is_some() && audience == Audience::Any) {
            return Err(JwsError::Malformed);
        }
        let id = MessageId::parse(&id).ok_or(JwsError::Malformed)?;
        Ok(Self {
            chain: decode_chain(wire.x5c)?,
            content_type: wire.cty,
            mesh: Mesh { id, created, expires, audience, seal },
        })
    }
}

pub(super) fn to_json(wire: &impl Serialize) -> Result<Vec<u8>, JwsError> {
    // Strings, numbers and lists always serialise.
    let json = serde_json::to_vec(wire).map_err(|_| JwsError::Malformed)?;
    if json.len() > MAX_HEADER { Err(JwsError::TooLarge) } else { Ok(json) }
}

/// `x5c` (RFC 7515 section 4.1.6): base64 with padding, unlike everything else.
pub(super) fn encode_chain(chain: &[CertificateDer<'_>]) -> Vec<String> {
    chain.iter().map(|der| STANDARD.encode(der)).collect()
}

pub(super) fn decode_chain(x5c: Vec<String>) -> Result<Vec<CertificateDer<'static>>, JwsError> {
    if x5c.is_empty() || x5c.len() > MAX_CHAIN {
        return Err(JwsError::Malformed);
    }
    let decode = |text: String| STANDARD.decode(text).map(CertificateDer::from);
    x5c.into_iter().map(decode).collect::<Result<_, _>>().map_err(|_| JwsError::Malformed)
}
