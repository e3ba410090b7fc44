//! The worked examples of the mesh profile, byte for byte: one exchange with buffered bodies, and one
//! response whose digest follows in the trailers. The key is the Ed25519 test key of RFC 9421 B.1.4.

use http::HeaderMap;

use super::{CHANNEL, GATEWAY, NOW, STORE, fields, resolve, signer};
use crate::digest::sha256_header;
use crate::message::{MessageView, RequestView, ResponseView};
use crate::profile::{
    BodyBinding, Freshness, Rules, verify_head, verify_request, verify_response, verify_tail,
};
use crate::replay::ReplayWindow;

const REQUEST_BODY: &[u8] = br#"{"hello": "world"}"#;
const RESPONSE_BODY: &[u8] = br#"{"message": "good dog"}"#;

const REQUEST_INPUT: &str = r#"mesh=("@method" "@authority" "@path" "@query" "content-type" "content-digest");created=1790000000;expires=1790000060;nonce="KbIg1JzWoe2DlhcvRvzkIQ.1a7";alg="ed25519";keyid="spiffe://edge.example/ns/iot/sa/gw#uFZbQsHgZ2a7APiVmdRU_2dc_or3muLvLX1bB_oa00s";tag="mesh-req-v1""#;
const REQUEST_SIGNATURE: &str =
    "mesh=:tTDd12EV5/LesUkssHwh9p4LP5ATDqArSY8PgPQHYR+esuEcS/7TlNmL81X9EkXFEsogpNm33Z/+829a+SmLCQ==:";
const RESPONSE_INPUT: &str = r#"mesh=("@status" "content-type" "content-digest" "@method";req "@authority";req "@path";req "@query";req "content-type";req "content-digest";req);created=1790000000;expires=1790000060;nonce="KbIg1JzWoe2DlhcvRvzkIQ.1a7";alg="ed25519";keyid="spiffe://edge.example/ns/iot/sa/store#uFZbQsHgZ2a7APiVmdRU_2dc_or3muLvLX1bB_oa00s";tag="mesh-rsp-v1""#;
const RESPONSE_SIGNATURE: &str =
    "mesh=:8ccupJ94sZCkRKE27/Bv98JDzZf9kkryVHqggrPwK8M95QLn8dBqE6+0YYCnUeqLFKXrvevLk/tL/FrjsUrrAw==:";

const HEAD_INPUT: &str = r#"mesh=("@status" "content-type" "trailer" "@method";req "@authority";req "@path";req "@query";req);created=1790000000;expires=1790000060;nonce="KbIg1JzWoe2DlhcvRvzkIQ.1a8";alg="ed25519";keyid="spiffe://edge.example/ns/iot/sa/store#uFZbQsHgZ2a7APiVmdRU_2dc_or3muLvLX1bB_oa00s";tag="mesh-rsp-head-v1""#;
const HEAD_SIGNATURE: &str =
    "mesh=:DWcjreuN7O1txti14GJeSyWX5HH3HWzR0w2zI/2Hu+M8ui9i/mVEzgsOvycHj+z8FnAYY8bjODNOLCyTzlrMCg==:";
const TAIL_INPUT: &str = r#"mesht=("@status" "content-type" "content-digest";tr "grpc-status";tr "@method";req "@authority";req "@path";req "@query";req);created=1790000005;expires=1790000065;nonce="KbIg1JzWoe2DlhcvRvzkIQ.1a8";alg="ed25519";keyid="spiffe://edge.example/ns/iot/sa/store#uFZbQsHgZ2a7APiVmdRU_2dc_or3muLvLX1bB_oa00s";tag="mesh-rsp-tail-v1""#;
const TAIL_SIGNATURE: &str =
    "mesht=:Jqjxx56Hf4Wadr4RXEugSUQiyuvPH2N59j4IOzPKi8If9w6enTxWZRBF1KC3deilopRxJIAuVDbzWtJYaVOgDg==:";

fn request_headers() -> HeaderMap {
    fields(&[("content-type", "application/json"), ("content-digest", &sha256_header(REQUEST_BODY))])
}

fn request(headers: &HeaderMap) -> RequestView<'_> {
    RequestView {
        query: Some("dev=42"),
        target: "/v1/items?dev=42",
        ..super::request("POST", "/v1/items", headers)
    }
}

#[test]
fn the_request_is_signed_and_verified() {
    let mut headers = request_headers();
    let signed = signer(GATEWAY).sign_request(&request(&headers), &CHANNEL, 0x1a7, NOW).unwrap();
    assert_eq!(signed.signature_input, REQUEST_INPUT);
    assert_eq!(signed.signature, REQUEST_SIGNATURE);
    assert_eq!(signed.base.len(), 473);
    assert_eq!(signed.nonce, "KbIg1JzWoe2DlhcvRvzkIQ.1a7");

    signed.append_to(&mut headers);
    let mut window = ReplayWindow::new();
    let verified =
        verify_request(&request(&headers), &CHANNEL, &mut window, resolve, Rules::new(GATEWAY, NOW, 30))
            .unwrap();
    assert_eq!(verified.base, signed.base);
    assert_eq!((verified.seq, verified.label.as_str()), (0x1a7, "mesh"));
    assert_eq!(verified.verify_body(REQUEST_BODY), Ok(()));
}

#[test]
fn the_response_is_signed_and_verified() {
    let of_request = request_headers();
    let mut headers =
        fields(&[("content-type", "application/json"), ("content-digest", &sha256_header(RESPONSE_BODY))]);
    let nonce = CHANNEL.nonce(0x1a7);
    let view =
        ResponseView { status: 200, headers: &headers, trailers: None, request: Some(request(&of_request)) };
    let signed = signer(STORE).sign_response(&view, &nonce, NOW).unwrap();
    assert_eq!(signed.signature_input, RESPONSE_INPUT);
    assert_eq!(signed.signature, RESPONSE_SIGNATURE);
    assert_eq!(signed.base.len(), 687);

    signed.append_to(&mut headers);
    let view =
        ResponseView { status: 200, headers: &headers, trailers: None, request: Some(request(&of_request)) };
    let verified = verify_response(&view, &nonce, resolve, Rules::new(STORE, NOW, 30)).unwrap();
    assert_eq!(verified.base, signed.base);
    assert_eq!(verified.verify_body(RESPONSE_BODY), Ok(()));
}

#[test]
fn head_and_tail_are_signed_and_verified() {
    let of_request = HeaderMap::new();
    let request = super::request("POST", "/iot.Store/Watch", &of_request);
    let nonce = CHANNEL.nonce(0x1a8);
    let mut head = fields(&[
        ("content-type", "application/grpc"),
        ("trailer", "content-digest, grpc-status, signature, signature-input"),
    ]);
    fn view<'a>(
        headers: &'a HeaderMap,
        trailers: Option<&'a HeaderMap>,
        request: RequestView<'a>,
    ) -> MessageView<'a> {
        MessageView::Response(ResponseView { status: 200, headers, trailers, request: Some(request) })
    }
    let signed = signer(STORE).sign_head(&view(&head, None, request), &nonce, NOW).unwrap();
    assert_eq!(signed.signature_input, HEAD_INPUT);
    assert_eq!(signed.signature, HEAD_SIGNATURE);
    signed.append_to(&mut head);

    let mut tail = fields(&[("grpc-status", "0"), ("content-digest", &sha256_header(RESPONSE_BODY))]);
    let signed = signer(STORE).sign_tail(&view(&head, Some(&tail), request), &nonce, NOW + 5).unwrap();
    assert_eq!(signed.signature_input, TAIL_INPUT);
    assert_eq!(signed.signature, TAIL_SIGNATURE);
    signed.append_to(&mut tail);

    let verified = verify_head(
        &view(&head, None, request),
        Freshness::Nonce(&nonce),
        resolve,
        Rules::new(STORE, NOW, 30),
    )
    .unwrap();
    assert_eq!(verified.body, BodyBinding::Tail);
    let verified =
        verify_tail(&view(&head, Some(&tail), request), &verified, resolve, Rules::new(STORE, NOW + 5, 30))
            .unwrap();
    assert_eq!(verified.verify_body(RESPONSE_BODY), Ok(()));
}
