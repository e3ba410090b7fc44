//! How a body is bound, and messages in two parts.

use http::{HeaderMap, HeaderValue};

use super::{
    CHANNEL, GATEWAY, NOW, Request, Response, SKEW, STORE, fields, resolve, signed_request, signer, uncovered,
};
use crate::digest::sha256_header;
use crate::message::{MessageView, ResponseView};
use crate::profile::{
    BodyBinding, Freshness, Rules, SignError, SignatureError, VerifiedHead, verify_head, verify_tail,
};

#[test]
fn another_body_does_not_match_the_signed_digest() {
    let verified = signed_request().verify().unwrap();
    assert_eq!(verified.verify_body(super::BODY), Ok(()));
    assert_eq!(verified.verify_body(b""), Err(SignatureError::Digest));
    assert_eq!(verified.verify_body(b"{\"hello\": \"w0rld\"}"), Err(SignatureError::Digest));
}

#[test]
fn an_empty_body_has_a_digest_too() {
    let mut request = Request::new(&[]);
    let empty = sha256_header(b"");
    assert_eq!(empty, "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:");
    request.headers.insert("content-digest", HeaderValue::try_from(empty).unwrap());
    let verified = request.signed(1).verify().unwrap();
    assert_eq!(verified.verify_body(b""), Ok(()));
    assert_eq!(verified.verify_body(b"x"), Err(SignatureError::Digest));
}

#[test]
fn a_record_body_continues_from_the_base() {
    let mut request = Request::new(&[("content-encoding", "gzip, mesh-rec"), ("mesh-content-length", "9")]);
    request.headers.remove("content-digest");
    let verified = request.signed(1).verify().unwrap();
    assert_eq!(verified.body, BodyBinding::Records);
    assert_eq!(verified.verify_body(b""), Err(SignatureError::Digest));
}

#[test]
fn a_response_quotes_no_digest_of_a_request_that_is_still_streaming() {
    let mut request = Request::new(&[("content-encoding", "mesh-rec")]);
    request.headers.remove("content-digest");
    let request = request.signed(1);
    let response = Response::new(&[]).signed(&request, 1);
    let input = response.headers["signature-input"].to_str().unwrap();
    assert!(input.contains("\"content-encoding\";req") && !input.contains("\"content-digest\";req"));
    response.verify(&request, 1).unwrap();
}

#[test]
fn a_body_bound_twice_or_not_at_all_is_refused() {
    let mut unbound = Request::new(&[]);
    unbound.headers.remove("content-digest");
    let inner = Request::new(&[("content-encoding", "mesh-rec, gzip")]);
    let both = Request::new(&[("content-encoding", "mesh-rec")]);
    let sign = |request: &Request| signer(GATEWAY).sign_request(&request.view(), &CHANNEL, 1, NOW);
    assert!(matches!(sign(&unbound), Err(SignError::Body)));
    assert!(matches!(sign(&both), Err(SignError::Body)));
    assert!(sign(&inner).is_ok());

    let refusal = signed_request().refusal(|request| {
        request.headers.remove("content-digest");
    });
    assert_eq!(refusal, uncovered("a body"));
    let refusal = signed_request().refusal(|request| {
        request.headers.insert("content-encoding", HeaderValue::from_static("mesh-rec"));
    });
    assert_eq!(refusal, uncovered("a body"));
}

#[test]
fn only_one_sha_256_digest_is_accepted() {
    let digest = sha256_header(super::BODY);
    for value in [
        "sha-512=:z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==:"
            .to_owned(),
        format!("{digest}, md5=:AAAA:"),
        format!("{digest}, {digest}"),
        "sha-256=:AAAA:".to_owned(),
        "sha-256".to_owned(),
        String::new(),
    ] {
        let mut request = Request::new(&[]);
        request.headers.insert("content-digest", HeaderValue::try_from(&value).unwrap());
        assert_eq!(request.signed(1).verify().unwrap_err(), SignatureError::Digest, "{value}");
    }
}

/// A response whose digest follows in the trailers.
struct TwoPart {
    request: Request,
    head: HeaderMap,
    tail: Option<HeaderMap>,
}

impl TwoPart {
    fn signed() -> Self {
        let request = signed_request();
        let head = fields(&[("trailer", "Content-Digest"), ("trailer", "Signature, Signature-Input, x-sum")]);
        let tail = fields(&[("content-digest", &sha256_header(super::BODY)), ("x-sum", "9")]);
        let mut message = Self { request, head, tail: Some(tail) };
        let nonce = CHANNEL.nonce(1);
        let signed = signer(STORE).sign_head(&message.view(), &nonce, NOW).unwrap();
        signed.append_to(&mut message.head);
        let signed = signer(STORE).sign_tail(&message.view(), &nonce, NOW).unwrap();
        signed.append_to(message.tail.as_mut().unwrap());
        message
    }

    fn view(&self) -> MessageView<'_> {
        MessageView::Response(ResponseView {
            status: 200,
            headers: &self.head,
            trailers: self.tail.as_ref(),
            request: Some(self.request.view()),
        })
    }

    fn verify(&self) -> Result<VerifiedHead, SignatureError> {
        let nonce = CHANNEL.nonce(1);
        let head =
            verify_head(&self.view(), Freshness::Nonce(&nonce), resolve, Rules::new(STORE, NOW, SKEW))?;
        assert_eq!(head.verify_body(super::BODY), Err(SignatureError::Digest), "the tail is not seen yet");
        verify_tail(&self.view(), &head, resolve, Rules::new(STORE, NOW, SKEW))
    }

    fn refusal(change: impl FnOnce(&mut Self)) -> SignatureError {
        let mut message = Self::signed();
        message.verify().unwrap().verify_body(super::BODY).unwrap();
        change(&mut message);
        message.verify().unwrap_err()
    }
}

#[test]
fn a_tail_that_is_stripped_or_changed_is_refused() {
    assert_eq!(TwoPart::refusal(|message| message.tail = None), SignatureError::Missing);
    assert_eq!(TwoPart::refusal(|message| message.tail = Some(HeaderMap::new())), SignatureError::Missing);
    let added = TwoPart::refusal(|message| {
        message.tail.as_mut().unwrap().insert("grpc-status", HeaderValue::from_static("0"));
    });
    assert_eq!(added, uncovered("grpc-status"));
    let changed = TwoPart::refusal(|message| {
        message.tail.as_mut().unwrap().insert("x-sum", HeaderValue::from_static("8"));
    });
    assert_eq!(changed, SignatureError::BadSignature);
    let removed = TwoPart::refusal(|message| {
        message.tail.as_mut().unwrap().remove("x-sum");
    });
    assert_eq!(removed, uncovered("x-sum"));
}

#[test]
fn a_head_that_does_not_announce_its_tail_is_refused() {
    let removed = TwoPart::refusal(|message| {
        message.head.remove("trailer");
    });
    assert_eq!(removed, uncovered("trailer"));
    let headers = HeaderMap::new();
    let request = signed_request();
    let view = ResponseView { status: 200, headers: &headers, trailers: None, request: Some(request.view()) };
    let signed = signer(STORE).sign_head(&MessageView::Response(view), &CHANNEL.nonce(1), NOW);
    assert!(matches!(signed, Err(SignError::Trailer)));
}

#[test]
fn the_signatures_of_the_parts_do_not_stand_in_for_each_other() {
    let swapped = TwoPart::refusal(|message| {
        let tail = message.tail.as_mut().unwrap();
        for name in ["signature", "signature-input"] {
            let of_tail = tail.insert(name, message.head[name].clone()).unwrap();
            message.head.insert(name, of_tail);
        }
    });
    assert_eq!(swapped, SignatureError::Missing);
    let whole = TwoPart::refusal(|message| {
        message.head = Response::new(&[]).signed(&message.request, 1).headers;
        message
            .head
            .insert("trailer", HeaderValue::from_static("content-digest, signature, signature-input"));
    });
    assert_eq!(whole, SignatureError::Missing);
}
