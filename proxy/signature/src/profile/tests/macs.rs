//! Messages authenticated with a key of their channel.

use super::{
    CHANNEL, ChannelId, Form, GATEWAY, NOW, Request, Rules, SKEW, STORE, SignatureError, resolve, signer,
    verify_request, verify_response,
};
use crate::mac::MacKey;
use crate::profile::{SignError, examine_request};
use crate::replay::ReplayWindow;
use crate::{MessageView, ResponseView, sha256_header};

const C2S: [u8; 32] = [1; 32];
const S2C: [u8; 32] = [2; 32];

fn authenticated(seq: u64, key: &[u8; 32]) -> Request {
    let mut request = Request::new(&[]);
    let signer = signer(GATEWAY);
    let unsigned = signer.prepare_request(&request.view(), &CHANNEL, seq, NOW, Form::Mac).unwrap();
    signer.sign_mac(unsigned, &MacKey::new(key)).unwrap().append_to(&mut request.headers);
    request
}

fn verify_on(
    request: &Request,
    channel: &ChannelId,
    window: &mut ReplayWindow,
    key: Option<&[u8; 32]>,
) -> Result<Form, SignatureError> {
    let key = key.map(MacKey::new);
    let rules = Rules { mac: key.as_ref(), ..Rules::new(GATEWAY, NOW, SKEW) };
    verify_request(&request.view(), channel, window, resolve, rules).map(|head| head.form)
}

fn verify(request: &Request, key: Option<&[u8; 32]>) -> Result<Form, SignatureError> {
    verify_on(request, &CHANNEL, &mut ReplayWindow::new(), key)
}

#[test]
fn code_verifies_under_the_key_of_its_direction_only() {
    let request = authenticated(1, &C2S);
    let input = request.headers["signature-input"].to_str().unwrap();
    assert!(input.contains(";alg=\"hmac-sha256\";") && input.ends_with(";tag=\"mesh-req-m-v1\""), "{input}");
    assert_eq!(verify(&request, Some(&C2S)), Ok(Form::Mac));
    for wrong in [&S2C, &[3; 32]] {
        assert_eq!(verify(&request, Some(wrong)), Err(SignatureError::BadSignature), "direction, connection");
    }
}

#[test]
fn code_is_refused_where_it_was_not_agreed_on() {
    assert_eq!(verify(&authenticated(1, &C2S), None), Err(SignatureError::Mode));
    // The public key of the signer is no key of the channel.
    let confused = authenticated(1, signer(GATEWAY).public_key());
    assert_eq!(verify(&confused, None), Err(SignatureError::Mode));
    assert_eq!(verify(&confused, Some(&C2S)), Err(SignatureError::BadSignature));
}

#[test]
fn signatures_are_taken_where_codes_are() {
    assert_eq!(verify(&super::signed_request(), Some(&C2S)), Ok(Form::Single));
}

#[test]
fn code_of_a_changed_or_moved_or_repeated_message_is_refused() {
    let request = authenticated(1, &C2S);
    let mut changed = request.clone();
    changed.path = "/v1/other";
    assert_eq!(verify(&changed, Some(&C2S)), Err(SignatureError::BadSignature));
    let mut window = ReplayWindow::new();
    let other = ChannelId([9; 16]);
    assert_eq!(verify_on(&request, &other, &mut window, Some(&C2S)), Err(SignatureError::OtherChannel));
    verify_on(&request, &CHANNEL, &mut window, Some(&C2S)).unwrap();
    let again = verify_on(&request, &CHANNEL, &mut window, Some(&C2S));
    assert!(matches!(again, Err(SignatureError::Replay(_))), "{again:?}");
}

#[test]
fn form_algorithm_and_length_must_agree() {
    let spoiled = |from: &str, to: &str| {
        let mut request = authenticated(1, &C2S);
        request.edit("signature-input", from, to);
        verify(&request, Some(&C2S)).unwrap_err()
    };
    assert_eq!(spoiled("hmac-sha256", "ed25519"), SignatureError::Algorithm);
    assert_eq!(spoiled(";alg=\"hmac-sha256\"", ""), SignatureError::Algorithm);
    assert_eq!(spoiled("mesh-req-m-v1", "mesh-req-v1"), SignatureError::Malformed, "32 bytes are no Ed25519");
    assert_eq!(spoiled("mesh-req-m-v1", "mesh-rsp-m-v1"), SignatureError::Missing);
    let mut short = authenticated(1, &C2S);
    short.headers.insert("signature", "mesh=:AAAA:".parse().unwrap());
    assert_eq!(verify(&short, Some(&C2S)), Err(SignatureError::Malformed));
    // A signature under the tag of a code.
    let mut signed = super::signed_request();
    signed.edit("signature-input", "mesh-req-v1", "mesh-req-m-v1");
    assert_eq!(verify(&signed, Some(&C2S)), Err(SignatureError::Malformed));
}

#[test]
fn request_cannot_be_reflected_as_its_answer_and_an_answer_needs_the_other_key() {
    let request = authenticated(1, &C2S);
    let mut headers = super::fields(&[("content-digest", &sha256_header(b""))]);
    let nonce = CHANNEL.nonce(1);
    fn view<'a>(request: &'a Request, headers: &'a http::HeaderMap) -> ResponseView<'a> {
        ResponseView { status: 200, headers, trailers: None, request: Some(request.view()) }
    }
    let bare = headers.clone();
    let signer = signer(STORE);
    let unsigned = signer.prepare_response(&view(&request, &bare), &nonce, NOW, Form::Mac).unwrap();
    let head = signer.sign_mac(unsigned, &MacKey::new(&S2C)).unwrap();
    head.append_to(&mut headers);
    let verify = |key: &[u8; 32]| {
        let key = MacKey::new(key);
        let rules = Rules { mac: Some(&key), ..Rules::new(STORE, NOW, SKEW) };
        verify_response(&view(&request, &headers), &nonce, resolve, rules).map(|head| head.form)
    };
    assert_eq!(verify(&S2C), Ok(Form::Mac));
    assert_eq!(verify(&C2S), Err(SignatureError::BadSignature));
    let rules = Rules::new(STORE, NOW, SKEW);
    let refused = verify_response(&view(&request, &headers), &nonce, resolve, rules).unwrap_err();
    assert_eq!(refused, SignatureError::Mode, "who signed takes no code in answer");
}

#[test]
fn code_is_made_of_what_was_prepared_for_one() {
    let signer = signer(GATEWAY);
    let request = Request::new(&[]);
    let prepare = |form| signer.prepare_request(&request.view(), &CHANNEL, 1, NOW, form).unwrap();
    assert!(matches!(signer.sign_mac(prepare(Form::Single), &MacKey::new(&C2S)), Err(SignError::Crypto)));
    assert!(matches!(signer.sign_single(prepare(Form::Mac)), Err(SignError::Crypto)));
    let nonce = CHANNEL.nonce(1);
    let view = request.view();
    let tail = signer.sign_tail(&MessageView::Request(view), &nonce, NOW);
    assert!(tail.is_err(), "a body in trailers is signed, never authenticated");
}

#[test]
fn examined_message_is_proven_later_and_uses_up_its_number_only_then() {
    let request = super::signed_request();
    let mut window = ReplayWindow::new();
    let rules = || Rules::new(GATEWAY, NOW, SKEW);
    let examine = |request: &Request, window: &mut ReplayWindow| {
        examine_request(&request.view(), &CHANNEL, window, resolve, rules())
    };
    let (first, second) = (examine(&request, &mut window).unwrap(), examine(&request, &mut window).unwrap());
    assert!(first.verify_body(super::BODY).is_ok() && first.verify_body(b"other").is_err());
    assert_eq!(first.prove(None, Some(&mut window)).unwrap().seq, 1);
    assert!(matches!(second.prove(None, Some(&mut window)), Err(SignatureError::Replay(_))));
    assert!(matches!(examine(&request, &mut window), Err(SignatureError::Replay(_))));

    let mut forged = request.clone();
    forged.path = "/v1/other";
    let mut window = ReplayWindow::new();
    let unproven = examine(&forged, &mut window).unwrap();
    assert_eq!(unproven.prove(None, Some(&mut window)).unwrap_err(), SignatureError::BadSignature);
    assert_eq!(window.test(1), Ok(()), "what was not proven uses up nothing");
}
