//! Messages that pass an intermediary.

use super::*;
use crate::message::MessageView;
use crate::profile::{OriginWindows, examine_origin_request, examine_origin_response};
use crate::replay::Replay;

fn signed(epoch: ChannelId, seq: u64, now: u64) -> Request {
    let mut request = Request::new(&[("mesh-target", "http://store.iot.svc/v1/items?dev=42")]);
    let head = signer(GATEWAY);
    let head = head.sign_origin(&MessageView::Request(request.view()), &epoch.nonce(seq), now).unwrap();
    head.append_to(&mut request.headers);
    request
}

fn verified(request: &Request, now: u64) -> Result<VerifiedHead, SignatureError> {
    examine_origin_request(&request.view(), resolve, Rules::new(GATEWAY, now, SKEW))?.prove(None, None)
}

#[test]
fn what_an_intermediary_adds_does_not_matter_and_what_it_changes_does() {
    let request = signed(CHANNEL, 1, NOW);
    let mut added = request.clone();
    added.headers.extend(fields(&[("x-forwarded-for", "172.30.0.7"), ("via", "1.1 edge")]));
    assert!(verified(&added, NOW).is_ok());
    for (name, value) in [
        ("content-type", "text/plain"),
        ("content-digest", &sha256_header(b"other")),
        ("mesh-target", "http://store.iot.svc/v1/other"),
    ] {
        let mut changed = request.clone();
        changed.headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        assert_eq!(verified(&changed, NOW).unwrap_err(), SignatureError::BadSignature, "{name}");
    }
    for name in ["authorization", "cookie", "mesh-other"] {
        let mut added = request.clone();
        added.headers.insert(name, "x".parse().unwrap());
        assert!(matches!(verified(&added, NOW), Err(SignatureError::Coverage(_))), "{name}");
    }
    assert_eq!(
        verified(&Request { path: "/v1/other", ..request }, NOW).unwrap_err(),
        SignatureError::BadSignature
    );
}

#[test]
fn a_signature_for_a_hop_is_none_of_an_origin_nor_the_other_way_round() {
    let hop = Request::new(&[]).signed(1);
    assert_eq!(verified(&hop, NOW).unwrap_err(), SignatureError::Missing);
    assert_eq!(signed(CHANNEL, 1, NOW).verify().unwrap_err(), SignatureError::Missing);
}

#[test]
fn a_request_is_taken_once_and_other_epochs_are_their_own() {
    let mut windows = OriginWindows::new(NOW);
    let other = ChannelId([9; 16]);
    for (epoch, seq, expected) in [
        (CHANNEL, 2, Ok(())),
        (CHANNEL, 2, Err(Replay::Seen.into())),
        (CHANNEL, 1, Ok(())),
        (other, 2, Ok(())),
        (other, 2, Err(Replay::Seen.into())),
    ] {
        let head = verified(&signed(epoch, seq, NOW), NOW).unwrap();
        assert_eq!(windows.admit(&head, NOW, SKEW), expected, "{seq}");
    }
}

#[test]
fn what_was_signed_before_the_windows_opened_may_have_been_taken_and_is_refused() {
    let mut windows = OriginWindows::new(NOW + 1);
    let head = verified(&signed(CHANNEL, 1, NOW), NOW + 1).unwrap();
    assert_eq!(windows.admit(&head, NOW + 1, SKEW), Err(Replay::TooOld.into()));
}

#[test]
fn epochs_are_forgotten_only_when_nothing_of_them_is_valid_and_never_without_bound() {
    use crate::profile::origin::MAX_EPOCHS_OF_KEY;
    let mut windows = OriginWindows::new(NOW);
    let epoch = |number: usize| ChannelId([u8::try_from(number).unwrap(); 16]);
    for number in 0..MAX_EPOCHS_OF_KEY {
        let head = verified(&signed(epoch(number), 1, NOW), NOW).unwrap();
        windows.admit(&head, NOW, SKEW).unwrap();
    }
    let last = NOW + super::super::VALIDITY_SECONDS + SKEW;
    let late = verified(&signed(epoch(200), 1, last), last).unwrap();
    assert_eq!(windows.admit(&late, last, SKEW), Err(Replay::Full.into()));
    assert_eq!(windows.admit(&late, last + 1, SKEW), Ok(()));
    assert_eq!(windows.admit(&late, last + 1, SKEW), Err(Replay::Seen.into()));
}

#[test]
fn a_response_belongs_to_its_request() {
    let request = signed(CHANNEL, 1, NOW);
    let clean = fields(&[("content-digest", &sha256_header(BODY)), ("location", "/v1/items/1")]);
    let view = |headers| ResponseView { status: 201, headers, trailers: None, request: Some(request.view()) };
    let nonce = CHANNEL.nonce(1);
    let message = MessageView::Response(view(&clean));
    let mut headers = clean.clone();
    signer(STORE).sign_origin(&message, &nonce, NOW).unwrap().append_to(&mut headers);
    let prove = |headers: &HeaderMap, nonce: &str| {
        let response = ResponseView { status: 201, headers, trailers: None, request: Some(request.view()) };
        examine_origin_response(&response, nonce, resolve, Rules::new(STORE, NOW, SKEW))?.prove(None, None)
    };
    assert!(prove(&headers, &nonce).is_ok());
    assert_eq!(prove(&headers, &CHANNEL.nonce(2)).err(), Some(SignatureError::OtherChannel));
    headers.insert("location", "/v1/items/2".parse().unwrap());
    assert_eq!(prove(&headers, &nonce).err(), Some(SignatureError::BadSignature));
}
