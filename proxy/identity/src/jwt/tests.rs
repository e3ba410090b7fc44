use super::*;
use crate::issue::Authority;
use crate::testing::{HOUR, MINUTE, Mesh, now};

const DATABASE: &str = "https://database.example";

fn signed(mesh: &Mesh, audience: &[&str]) -> String {
    let audience: Vec<String> = audience.iter().map(|&one| one.to_owned()).collect();
    mesh.authority.jwt().unwrap().sign(&mesh.id("gw"), &audience, now(), now() + MINUTE).unwrap()
}

fn verified(mesh: &Mesh, token: &str, audience: &str, at: SystemTime) -> Result<JwtClaims, JwtError> {
    verify_jwt(&[mesh.authority.jwt().unwrap().key()], mesh.authority.trust_domain(), token, audience, at)
}

/// A token that says whatever stands here, truly signed.
fn forged(mesh: &Mesh, header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = mesh.authority.jwt().unwrap().pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn a_token_proves_its_identity_to_each_of_its_audiences_until_it_ends() {
    let mesh = Mesh::new();
    let token = signed(&mesh, &[DATABASE, "vault"]);
    for audience in [DATABASE, "vault"] {
        let claims = verified(&mesh, &token, audience, now()).unwrap();
        assert_eq!(claims.id, mesh.id("gw"));
        assert_eq!(claims.all["sub"], "spiffe://edge.example/app/d1/gw");
    }
    assert_eq!(verified(&mesh, &token, "https://other.example", now()), Err(JwtError::Audience));
    assert!(verified(&mesh, &token, DATABASE, now() + MINUTE - Duration::from_secs(1)).is_ok());
    assert_eq!(verified(&mesh, &token, DATABASE, now() + MINUTE), Err(JwtError::Expired));
}

#[test]
fn the_key_is_the_issuers_alone_and_the_same_after_reading_it_back() {
    let mesh = Mesh::new();
    let again = Authority::from_pem(&mesh.authority.to_pem()).unwrap();
    assert_eq!(again.jwt().unwrap().key(), mesh.authority.jwt().unwrap().key());
    let next = mesh.authority.with_new_issuer(now(), HOUR).unwrap();
    assert_ne!(next.jwt().unwrap().key(), mesh.authority.jwt().unwrap().key());
    // The key of certificates is another one: its point stands in the issuer's certificate.
    let issuer = mesh.authority.issuer_der().to_vec();
    assert!(!issuer.windows(POINT_BYTES).any(|part| part == mesh.authority.jwt().unwrap().key().point()));
}

/// Computed by another implementation of HKDF and P-256.
#[test]
fn the_derivation_is_what_it_has_always_been() {
    const ISSUER: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg97mrQgoS9XGekU9K2GNkJX2sCNewZdD08NgfJ2lQ2P6hRANC\
        AARm8kXxkKm7LmFR2MQYyIvoKBKABT1/t9+sr1+0yWzZO8rJFWmnGkZ3+/L5KCmQ/bAVHge4gnojwbzb1YBonDrI";
    let issuer = base64::engine::general_purpose::STANDARD.decode(ISSUER).unwrap();
    let derived = JwtAuthority::derive(&issuer).unwrap();
    assert_eq!(derived.key().id(), "4JSxaFLe7RZSlrgkusVcpQBNS2MTH6GGVOkIocacuIw");
}

#[test]
fn a_token_of_another_authority_is_refused() {
    let (ours, theirs) = (Mesh::new(), Mesh::new());
    let token = signed(&theirs, &[DATABASE]);
    assert_eq!(verified(&ours, &token, DATABASE, now()), Err(JwtError::Key));
    let renamed = token.replacen(
        token.split('.').next().unwrap(),
        signed(&ours, &[DATABASE]).split('.').next().unwrap(),
        1,
    );
    assert_eq!(verified(&ours, &renamed, DATABASE, now()), Err(JwtError::Signature));
}

#[test]
fn a_changed_token_is_refused_at_every_byte() {
    let mesh = Mesh::new();
    let token = signed(&mesh, &[DATABASE]);
    for at in 0..token.len() {
        let mut bad = token.clone().into_bytes();
        bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
        let bad = String::from_utf8(bad).unwrap();
        assert!(verified(&mesh, &bad, DATABASE, now()).is_err(), "byte {at}");
        assert!(verified(&mesh, &token[..at], DATABASE, now()).is_err(), "prefix {at}");
    }
}

#[test]
fn what_spiffe_does_not_allow_is_refused_though_truly_signed() {
    let mesh = Mesh::new();
    let kid = mesh.authority.jwt().unwrap().key().id();
    let header = format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#);
    let claims = r#"{"aud":["a"],"exp":9999999999,"sub":"spiffe://edge.example/app/d1/gw"}"#;
    assert!(verified(&mesh, &forged(&mesh, &header, claims), "a", now()).is_ok());
    for bad in [
        format!(r#"{{"alg":"none","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"ES256","kid":"{kid}","typ":"JWE"}}"#),
        format!(r#"{{"alg":"ES256","kid":"{kid}","crit":["x"]}}"#),
        format!(r#"{{"alg":"ES256","kid":"{kid}","jku":"https://evil.example"}}"#),
        r#"{"alg":"ES256"}"#.to_owned(),
    ] {
        let refused = verified(&mesh, &forged(&mesh, &bad, claims), "a", now());
        assert_eq!(refused, Err(JwtError::Malformed), "{bad}");
    }
    for (bad, error) in [
        (r#"{"exp":9999999999,"sub":"spiffe://edge.example/a"}"#, JwtError::Claims),
        (r#"{"aud":["a"],"sub":"spiffe://edge.example/a"}"#, JwtError::Claims),
        (r#"{"aud":["a"],"exp":"9999999999","sub":"spiffe://edge.example/a"}"#, JwtError::Claims),
        (r#"{"aud":["a"],"exp":9999999999}"#, JwtError::Claims),
        (r#"{"aud":[],"exp":9999999999,"sub":"spiffe://edge.example/a"}"#, JwtError::Audience),
        (r#"{"aud":["a"],"exp":9999999999,"sub":"spiffe://other.example/a"}"#, JwtError::Subject),
        (r#"{"aud":["a"],"exp":9999999999,"sub":"gw"}"#, JwtError::Subject),
        (r#"{"aud":["a"],"exp":18446744073709551615,"sub":"spiffe://edge.example/a"}"#, JwtError::Expired),
        ("[]", JwtError::Malformed),
    ] {
        let refused = verified(&mesh, &forged(&mesh, &header, bad), "a", now());
        assert_eq!(refused, Err(error), "{bad}");
    }
}

#[test]
fn overlong_tokens_are_neither_made_nor_read() {
    let mesh = Mesh::new();
    let long = vec!["a".repeat(MAX_AUDIENCE_BYTES); 4];
    let refused = mesh.authority.jwt().unwrap().sign(&mesh.id("gw"), &long, now(), now() + MINUTE);
    assert_eq!(refused, Err(JwtError::TooLong));
    let none = mesh.authority.jwt().unwrap().sign(&mesh.id("gw"), &[], now(), now() + MINUTE);
    assert_eq!(none, Err(JwtError::Audience));
    assert_eq!(verified(&mesh, &"a".repeat(MAX_JWT_BYTES + 1), "a", now()), Err(JwtError::TooLong));
}
