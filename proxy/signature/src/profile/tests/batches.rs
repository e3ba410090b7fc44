//! Messages that share one signature.

use http::HeaderValue;

use super::{
    CHANNEL, ChannelId, Form, GATEWAY, NOW, Request, Response, Rules, SKEW, STORE, SignatureError, resolve,
    signed_request, signer, verify_request, verify_response,
};
use crate::batch::RootCache;
use crate::profile::SignError;
use crate::replay::ReplayWindow;

/// Requests with the numbers from 1 on, all under one signature.
fn batch_on(channels: &[ChannelId]) -> Vec<Request> {
    let signer = signer(GATEWAY);
    let mut requests = vec![Request::new(&[]); channels.len()];
    let unsigned = requests.iter().zip(channels).zip(1..).map(|((request, channel), seq)| {
        signer.prepare_request(&request.view(), channel, seq, NOW, Form::Batch).unwrap()
    });
    let heads = signer.sign_batch(unsigned.collect()).unwrap();
    requests.iter_mut().zip(&heads).for_each(|(request, head)| head.append_to(&mut request.headers));
    requests
}

fn batch(size: usize) -> Vec<Request> {
    batch_on(&vec![CHANNEL; size])
}

#[test]
fn each_message_of_a_batch_verifies_alone_and_its_root_once() {
    let requests = batch(5);
    for request in &requests {
        request.verify().unwrap();
    }
    let (mut window, mut roots) = (ReplayWindow::new(), RootCache::default());
    for (request, seq) in requests.iter().zip(1..) {
        let rules = Rules { roots: Some(&mut roots), ..Rules::new(GATEWAY, NOW, SKEW) };
        let head = verify_request(&request.view(), &CHANNEL, &mut window, resolve, rules).unwrap();
        assert_eq!(head.seq, seq);
    }
    assert_eq!(roots.counts(), (4, 1));
}

#[test]
fn a_member_moved_to_another_connection_or_sent_twice_is_refused_though_its_root_is_known() {
    let other = ChannelId([9; 16]);
    let requests = batch_on(&[CHANNEL, other]);
    let mut roots = RootCache::default();
    let (mut here, mut there) = (ReplayWindow::new(), ReplayWindow::new());
    let mut verify = |request: &Request, channel, window: &mut ReplayWindow| {
        let rules = Rules { roots: Some(&mut roots), ..Rules::new(GATEWAY, NOW, SKEW) };
        verify_request(&request.view(), channel, window, resolve, rules)
    };
    verify(&requests[0], &CHANNEL, &mut here).unwrap();
    verify(&requests[1], &other, &mut there).unwrap();
    assert_eq!(verify(&requests[1], &CHANNEL, &mut here).unwrap_err(), SignatureError::OtherChannel);
    let twice = verify(&requests[0], &CHANNEL, &mut here).unwrap_err();
    assert!(matches!(twice, SignatureError::Replay(_)), "{twice}");
}

#[test]
fn a_changed_member_is_refused_though_its_root_is_known_and_uses_up_no_number() {
    let requests = batch(3);
    let (mut window, mut roots) = (ReplayWindow::new(), RootCache::default());
    let mut verify = |request: &Request, roots: &mut RootCache| {
        let rules = Rules { roots: Some(roots), ..Rules::new(GATEWAY, NOW, SKEW) };
        verify_request(&request.view(), &CHANNEL, &mut window, resolve, rules)
    };
    verify(&requests[0], &mut roots).unwrap();
    let mut changed = requests[1].clone();
    changed.path = "/v1/other";
    assert_eq!(verify(&changed, &mut roots).unwrap_err(), SignatureError::BadSignature);
    let mut exchanged = requests[1].clone();
    exchanged.headers.insert("signature", requests[2].headers["signature"].clone());
    assert_eq!(verify(&exchanged, &mut roots).unwrap_err(), SignatureError::BadSignature);
    verify(&requests[1], &mut roots).unwrap();
}

#[test]
fn a_response_is_bound_to_its_request_in_a_batch_too() {
    let signer = signer(STORE);
    let requests = [Request::new(&[]).signed(1), Request::new(&[("mesh-request-id", "b")]).signed(2)];
    let mut responses = [Response::new(&[]), Response::new(&[])];
    let unsigned = responses.iter().zip(&requests).zip(1..).map(|((response, request), seq)| {
        let nonce = CHANNEL.nonce(seq);
        signer.prepare_response(&response.view(request), &nonce, NOW, Form::Batch).unwrap()
    });
    let heads = signer.sign_batch(unsigned.collect()).unwrap();
    responses.iter_mut().zip(&heads).for_each(|(response, head)| head.append_to(&mut response.headers));
    for (at, response) in responses.iter().enumerate() {
        for (other, request) in requests.iter().enumerate() {
            let nonce = CHANNEL.nonce(other as u64 + 1);
            let rules = Rules::new(STORE, NOW, SKEW);
            let verified = verify_response(&response.view(request), &nonce, resolve, rules);
            assert_eq!(verified.is_ok(), at == other, "{at} {other}");
        }
    }
}

#[test]
fn the_algorithm_is_named_for_a_single_signature_and_for_no_other() {
    let named = batch(1).remove(0).refusal(|request| {
        request.edit("signature-input", ";keyid=", ";alg=\"ed25519\";keyid=");
    });
    assert_eq!(named, SignatureError::Algorithm);
    let unnamed = signed_request().refusal(|request| request.edit("signature-input", ";alg=\"ed25519\"", ""));
    assert_eq!(unnamed, SignatureError::Algorithm);
}

#[test]
fn one_form_cannot_pose_as_the_other() {
    let as_single = batch(1).remove(0).refusal(|request| {
        request.edit("signature-input", "mesh-req-b-v1", "mesh-req-v1");
        request.edit("signature-input", ";keyid=", ";alg=\"ed25519\";keyid=");
    });
    assert_eq!(as_single, SignatureError::Malformed);
    let as_batch = signed_request().refusal(|request| {
        request.edit("signature-input", "mesh-req-v1", "mesh-req-b-v1");
        request.edit("signature-input", ";alg=\"ed25519\"", "");
    });
    assert_eq!(as_batch, SignatureError::Malformed);
}

#[test]
fn one_signature_of_each_form_is_one_too_many() {
    let single = signed_request();
    let mut both = batch(1).remove(0);
    for name in ["signature-input", "signature"] {
        let second = single.headers[name].to_str().unwrap().replacen("mesh=", "second=", 1);
        both.headers.append(name, HeaderValue::try_from(second).unwrap());
    }
    assert_eq!(both.verify().unwrap_err(), SignatureError::Multiple);
}

#[test]
fn what_was_prepared_in_one_form_is_not_signed_in_the_other() {
    let signer = signer(GATEWAY);
    let request = Request::new(&[]);
    let prepare = |form| signer.prepare_request(&request.view(), &CHANNEL, 1, NOW, form).unwrap();
    assert!(matches!(signer.sign_single(prepare(Form::Batch)), Err(SignError::Crypto)));
    assert!(matches!(signer.sign_batch(vec![prepare(Form::Single)]), Err(SignError::Crypto)));
}

#[test]
fn a_batch_signature_leaves_no_trace_when_it_is_stripped() {
    let mut request = batch(2).remove(1);
    crate::profile::strip(&mut request.headers);
    assert_eq!(request.headers, Request::new(&[]).headers);
}
