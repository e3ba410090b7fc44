//! A trust domain's bundle as others read it: a JWK Set (RFC 7517) in the form of SPIFFE's trust domains.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::certificate::Certificate;
use crate::jwt::JwtKey;
use crate::key::KeyKind;

/// How often a reader should look for a newer one, in seconds: keys are told of before they are used.
const REFRESH_HINT_S: u64 = 300;

/// The document with these roots and keys for tokens, either of which may be none. `sequence` grows with every change; none
/// where the reader is told of changes.
pub fn bundle_document(roots: &[CertificateDer<'_>], jwt_keys: &[JwtKey], sequence: Option<u64>) -> Vec<u8> {
    let x509 = roots.iter().filter_map(|root| x509_key(root));
    let keys: Vec<Value> = x509.chain(jwt_keys.iter().map(jwt_key)).collect();
    let mut document = json!({ "keys": keys });
    if let (Some(sequence), Some(document)) = (sequence, document.as_object_mut()) {
        document.insert("spiffe_sequence".to_owned(), sequence.into());
        document.insert("spiffe_refresh_hint".to_owned(), REFRESH_HINT_S.into());
    }
    document.to_string().into_bytes()
}

fn jwt_key(key: &JwtKey) -> Value {
    let [x, y] = key.coordinates();
    json!({ "use": "jwt-svid", "kty": "EC", "crv": "P-256", "kid": key.id(), "x": x, "y": y })
}

/// Roots are our own, over P-256; another one has no form here.
fn x509_key(root: &CertificateDer<'_>) -> Option<Value> {
    let root_key = KeyKind::P256.public_key(Certificate::parse(root).ok()?.spki)?;
    let [x, y] = JwtKey::from_point(root_key)?.coordinates();
    let certificate = STANDARD.encode(root);
    Some(json!({ "use": "x509-svid", "kty": "EC", "crv": "P-256", "x": x, "y": y, "x5c": [certificate] }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Mesh;

    #[test]
    fn a_document_holds_each_root_and_each_key_for_its_use() {
        let mesh = Mesh::new();
        let (root, key) = (mesh.authority.root_der().clone(), mesh.authority.jwt().unwrap().key());
        let document = bundle_document(std::slice::from_ref(&root), &[key], Some(7));
        let document: Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["spiffe_sequence"], 7);
        assert_eq!(document["spiffe_refresh_hint"], REFRESH_HINT_S);
        let keys = document["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[0]["use"], "x509-svid");
        assert_eq!(keys[0]["x5c"], json!([STANDARD.encode(&root)]));
        assert!(keys[0].get("kid").is_none(), "SPIFFE has none there");
        assert_eq!((&keys[1]["use"], &keys[1]["kid"]), (&json!("jwt-svid"), &json!(key.id())));
    }

    #[test]
    fn a_document_without_keys_is_still_one() {
        let document: Value = serde_json::from_slice(&bundle_document(&[], &[], None)).unwrap();
        assert_eq!(document, json!({ "keys": [] }));
    }
}
