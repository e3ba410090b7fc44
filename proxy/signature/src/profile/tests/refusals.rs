//! Keys, times, replay, and signatures that do not verify.

use http::HeaderValue;

use super::{
    CHANNEL, FINGERPRINT, GATEWAY, NOW, PKCS8, Request, Response, SKEW, STORE, resolve, signed_request,
    signer,
};
use crate::key::KeyError;
use crate::profile::{
    ChannelId, MeshSigner, Rules, SignError, SignatureError, VerifiedKey, keyid, verify_ed25519,
    verify_request,
};
use crate::replay::{Replay, ReplayWindow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

fn replaced(name: &'static str, from: &str, to: &str) -> SignatureError {
    signed_request().refusal(|request| request.edit(name, from, to))
}

#[test]
fn a_signature_is_valid_within_its_window_and_the_skew() {
    let request = signed_request();
    for now in [NOW - SKEW, NOW, NOW + 60, NOW + 60 + SKEW - 1] {
        assert!(request.verify_at(now).is_ok(), "{now}");
    }
    let early = request.verify_at(NOW - SKEW - 1).unwrap_err();
    assert_eq!(
        (&early, early.skew_s()),
        (&SignatureError::Clock { ahead_s: SKEW + 1 }, Some(SKEW as i64 + 1))
    );
    assert_eq!(request.verify_at(0).unwrap_err(), SignatureError::Clock { ahead_s: NOW });
    // `expires` is exclusive: at that second, and the skew, the signature is over.
    let late = request.verify_at(NOW + 60 + SKEW).unwrap_err();
    assert_eq!(
        (&late, late.skew_s()),
        (&SignatureError::Expired { ago_s: SKEW + 60 }, Some(-(SKEW as i64 + 60)))
    );
    assert_eq!(request.verify_at(u64::MAX).unwrap_err(), SignatureError::Expired { ago_s: u64::MAX - NOW });
}

#[test]
fn a_longer_or_reversed_validity_is_refused() {
    for expires in ["1790000061", "1890000060", "1790000000", "1789999999"] {
        assert_eq!(
            replaced("signature-input", "expires=1790000060", &format!("expires={expires}")),
            SignatureError::Malformed
        );
    }
}

#[test]
fn the_algorithm_is_the_one_of_the_key() {
    for name in ["hmac-sha256", "rsa-pss-sha512", "ecdsa-p256-sha256", "ED25519", "none", ""] {
        let refusal = replaced("signature-input", "alg=\"ed25519\"", &format!("alg=\"{name}\""));
        assert_eq!(refusal, SignatureError::Algorithm);
        assert_eq!(refusal.code(), "bad-signature");
    }
    assert_eq!(replaced("signature-input", ";alg=\"ed25519\"", ""), SignatureError::Algorithm);
    let twice = replaced("signature-input", ";alg=\"ed25519\"", ";alg=\"ed25519\";alg=\"ed25519\"");
    assert_eq!(twice, SignatureError::Malformed);
}

#[test]
fn an_hmac_with_the_public_key_is_no_signature() {
    let request = signed_request();
    let verified = request.verify().unwrap();
    let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, signer(GATEWAY).public_key());
    let forged = aws_lc_rs::hmac::sign(&secret, &verified.base);
    let refusal = request.refusal(|request| {
        let value = format!("mesh=:{}:", STANDARD.encode(forged));
        request.headers.insert("signature", HeaderValue::try_from(value).unwrap());
    });
    assert_eq!(refusal, SignatureError::Malformed);
}

#[test]
fn a_key_that_is_not_known_is_refused() {
    for (from, to) in [
        (FINGERPRINT, "uFZbQsHgZ2a7APiVmdRU_2dc_or3muLvLX1bB_oa00t"),
        ("/sa/gw", "/sa/nobody"),
        ("/sa/gw", "/sa/../sa/gw"),
        ("/sa/gw", "/sa/gw."),
        ("/sa/gw", "/sa/GW"),
        ("spiffe://edge.example", "https://edge.example"),
        ("spiffe://edge.example", "spiffe://other.example"),
        ("#", ""),
        (FINGERPRINT, ""),
    ] {
        assert_eq!(replaced("signature-input", from, to), SignatureError::UnknownKey, "{to}");
    }
    assert_eq!(replaced("signature-input", "/sa/gw", "/sa/gẃ"), SignatureError::Malformed);
    let long = "x".repeat(1 << 20);
    assert_eq!(replaced("signature-input", "/sa/gw", &long), SignatureError::Malformed);
}

#[test]
fn a_key_of_somebody_else_than_the_peer_is_refused() {
    let verify = |request: &Request, peer, resolve: fn(&str) -> Option<VerifiedKey>| {
        verify_request(
            &request.view(),
            &CHANNEL,
            &mut ReplayWindow::new(),
            resolve,
            Rules::new(peer, NOW, SKEW),
        )
    };
    // The peer is another workload, of this or another trust domain, than the key belongs to.
    for peer in [STORE, "spiffe://other.example/ns/iot/sa/gw", ""] {
        assert_eq!(verify(&signed_request(), peer, resolve).unwrap_err(), SignatureError::WrongSigner);
    }
    // The identifier claims one identity, the certificate behind it has another.
    let lying = |keyid: &str| resolve(keyid).map(|key| VerifiedKey { spiffe_id: STORE.into(), ..key });
    for peer in [GATEWAY, STORE] {
        assert_eq!(verify(&signed_request(), peer, lying).unwrap_err(), SignatureError::WrongSigner);
    }
    // An insider signs with its own key and names the victim.
    let other_key = |_: &str| Some(VerifiedKey { spiffe_id: GATEWAY.into(), public_key: [9; 32] });
    assert_eq!(verify(&signed_request(), GATEWAY, other_key).unwrap_err(), SignatureError::BadSignature);
}

#[test]
fn a_changed_signature_or_parameter_is_refused() {
    assert_eq!(replaced("signature", "Q13L", "Q13M"), SignatureError::BadSignature);
    assert_eq!(
        replaced("signature-input", "created=1790000000", "created=1790000001"),
        SignatureError::BadSignature
    );
    for (from, to) in
        [("mesh=:", "mesh="), (":", ":A"), ("==:", ":"), ("==:", "==:;x"), ("mesh=:", "mesh=::")]
    {
        let refusal = replaced("signature", from, to);
        assert_eq!(refusal, SignatureError::Malformed, "{to}");
    }
}

#[test]
fn unknown_parameters_are_refused_and_the_order_is_kept() {
    assert_eq!(replaced("signature-input", ";created", ";aud=\"x\";created"), SignatureError::Malformed);
    // Another order is well formed, but not what was signed.
    let refusal = replaced(
        "signature-input",
        ";created=1790000000;expires=1790000060",
        ";expires=1790000060;created=1790000000",
    );
    assert_eq!(refusal, SignatureError::BadSignature);
}

#[test]
fn a_message_is_accepted_once() {
    let mut window = ReplayWindow::new();
    let (request, next) = (signed_request(), Request::new(&[]).signed(2));
    let mut verify = |request: &Request| {
        verify_request(&request.view(), &CHANNEL, &mut window, resolve, Rules::new(GATEWAY, NOW, SKEW))
            .map(|head| head.seq)
    };
    assert_eq!(verify(&next), Ok(2));
    assert_eq!(verify(&request), Ok(1));
    // A retry that keeps its nonce is the same as a replay.
    for replayed in [&request, &next] {
        let refusal = verify(replayed).unwrap_err();
        assert_eq!((refusal.code(), refusal), ("replay", SignatureError::Replay(Replay::Seen)));
    }
    let old = Request::new(&[]).signed(5000);
    assert_eq!(verify(&old), Ok(5000));
    assert_eq!(verify(&Request::new(&[]).signed(3)).unwrap_err(), SignatureError::Replay(Replay::TooOld));
}

#[test]
fn a_forged_message_does_not_use_up_its_number() {
    let mut window = ReplayWindow::new();
    let request = signed_request();
    let mut forged = request.clone();
    forged.path = "/v1/admin";
    let mut verify = |request: &Request| {
        verify_request(&request.view(), &CHANNEL, &mut window, resolve, Rules::new(GATEWAY, NOW, SKEW))
            .map(|head| head.seq)
    };
    assert_eq!(verify(&forged).unwrap_err(), SignatureError::BadSignature);
    assert_eq!(verify(&request), Ok(1));
}

#[test]
fn a_signature_is_worthless_on_another_channel() {
    let request = signed_request();
    let other = ChannelId([0; 16]);
    let refusal = verify_request(
        &request.view(),
        &other,
        &mut ReplayWindow::new(),
        resolve,
        Rules::new(GATEWAY, NOW, SKEW),
    );
    assert_eq!(refusal.unwrap_err(), SignatureError::OtherChannel);
    for nonce in
        ["", "1", "KbIg1JzWoe2DlhcvRvzkIQ.0", "KbIg1JzWoe2DlhcvRvzkIQ.01", "KbIg1JzWoe2DlhcvRvzkIQ.1 "]
    {
        let refusal =
            replaced("signature-input", "nonce=\"KbIg1JzWoe2DlhcvRvzkIQ.1\"", &format!("nonce=\"{nonce}\""));
        assert_eq!(refusal, SignatureError::Malformed, "{nonce}");
    }
}

#[test]
fn responses_cannot_be_swapped() {
    let (first, second) = (signed_request(), Request { path: "/v1/other", ..Request::new(&[]) }.signed(2));
    let (to_first, to_second) = (Response::new(&[]).signed(&first, 1), Response::new(&[]).signed(&second, 2));
    assert!(to_first.verify(&first, 1).is_ok() && to_second.verify(&second, 2).is_ok());
    assert_eq!(to_first.verify(&second, 2).unwrap_err(), SignatureError::OtherChannel);
    // With the same nonce the request components still tell them apart.
    assert_eq!(to_first.verify(&second, 1).unwrap_err(), SignatureError::BadSignature);
    let mut changed = to_first;
    changed.status = 201;
    assert_eq!(changed.verify(&first, 1).unwrap_err(), SignatureError::BadSignature);
}

#[test]
fn a_response_needs_its_request() {
    let response = Response::new(&[]);
    let request = signed_request();
    let view = crate::ResponseView { request: None, ..response.view(&request) };
    assert!(matches!(signer(STORE).sign_response(&view, &CHANNEL.nonce(1), NOW), Err(SignError::NoRequest)));
    let response = response.signed(&request, 1);
    let view = crate::ResponseView { request: None, ..response.view(&request) };
    let refusal =
        crate::verify_response(&view, &CHANNEL.nonce(1), resolve, Rules::new(STORE, NOW, SKEW)).unwrap_err();
    assert_eq!(refusal.code(), "coverage");
}

#[test]
fn keys_of_small_order_are_refused() {
    // Under the neutral element this signature fits every message.
    let mut identity = [0; 32];
    identity[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    assert_eq!(verify_ed25519(&identity, b"any message", &signature), Err(SignatureError::BadSignature));
    identity[31] = 0x80;
    assert_eq!(verify_ed25519(&identity, b"any message", &signature), Err(SignatureError::BadSignature));
}

#[test]
fn a_signer_takes_only_a_well_formed_identifier() {
    let pkcs8 = STANDARD.decode(PKCS8).unwrap();
    for name in
        ["", "spiffe://a/b", "#x", "spiffe://a/b#", "spiffe://a/b#x\"", "spiffe://a/b#x y", "spiffe://a/b#ä"]
    {
        assert_eq!(MeshSigner::new(&pkcs8, name).unwrap_err(), KeyError::KeyId, "{name}");
    }
    assert_eq!(MeshSigner::new(&[1, 2, 3], "a#b").unwrap_err(), KeyError::Unsupported);
    assert_eq!(keyid(GATEWAY, b"example leaf DER"), format!("{GATEWAY}#{FINGERPRINT}"));
    assert_eq!(
        format!("{:?}", signer(GATEWAY)),
        format!("MeshSigner {{ keyid: \"{GATEWAY}#{FINGERPRINT}\", .. }}")
    );
}
