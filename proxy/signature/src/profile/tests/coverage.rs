//! What a signature has to cover, and how values are read.

use http::HeaderValue;

use super::{CHANNEL, GATEWAY, NOW, Request, Response, SKEW, resolve, signed_request, signer, uncovered};
use crate::message::RequestView;
use crate::profile::{Rules, SignError, SignatureError, verify_request};
use crate::replay::ReplayWindow;

fn input(request: &Request) -> &str {
    request.headers["signature-input"].to_str().unwrap()
}

#[test]
fn every_field_that_an_application_acts_upon_is_covered_when_present() {
    let request = Request::new(&[
        ("mesh-request-id", "7"),
        ("mesh-content-length", "18"),
        ("mesh-cert", ":AAAA:"),
        ("cookie", "a=1"),
        ("authorization", "Bearer x"),
        ("content-encoding", "gzip"),
        ("accept", "*/*"),
    ])
    .signed(1);
    let expected = "mesh=(\"@method\" \"@authority\" \"@path\" \"@query\" \"content-type\" \"content-digest\" \
                    \"content-encoding\" \"authorization\" \"cookie\" \"mesh-content-length\" \"mesh-request-id\");";
    assert!(input(&request).starts_with(expected), "{}", input(&request));

    let response = Response::new(&[
        ("location", "/x"),
        ("set-cookie", "a=1"),
        ("mesh-origin", "sidecar"),
        ("grpc-status", "14"),
        ("grpc-message", "no"),
    ])
    .signed(&request, 1);
    let input = response.headers["signature-input"].to_str().unwrap();
    let expected = "mesh=(\"@status\" \"content-type\" \"content-digest\" \"location\" \"set-cookie\";bs \
                    \"grpc-status\" \"grpc-message\" \"mesh-origin\" \"@method\";req \"@authority\";req \
                    \"@path\";req \"@query\";req \"content-type\";req \"content-digest\";req \
                    \"content-encoding\";req \"authorization\";req \"cookie\";req \
                    \"mesh-content-length\";req \"mesh-request-id\";req);";
    assert!(input.starts_with(expected), "{input}");
    response.verify(&request, 1).unwrap();
}

#[test]
fn a_sensitive_field_added_on_the_way_is_refused() {
    for name in
        ["authorization", "cookie", "content-encoding", "mesh-origin", "mesh-content-length", "mesh-anything"]
    {
        let refusal = signed_request().refusal(|request| {
            request.headers.insert(name, HeaderValue::from_static("x"));
        });
        assert_eq!(refusal, uncovered(name));
    }
}

#[test]
fn a_covered_field_removed_or_changed_on_the_way_is_refused() {
    let request = Request::new(&[("authorization", "Bearer x"), ("mesh-request-id", "7")]).signed(1);
    for name in ["content-type", "authorization", "mesh-request-id"] {
        let removed = request.refusal(|request| {
            request.headers.remove(name);
        });
        assert_eq!(removed, uncovered(name));
        let changed = request.refusal(|request| {
            request.headers.insert(name, HeaderValue::from_static("text/html"));
        });
        assert_eq!(changed, SignatureError::BadSignature, "{name}");
        let repeated = request.refusal(|request| {
            request.headers.append(name, HeaderValue::from_static(""));
        });
        assert_eq!(repeated, SignatureError::BadSignature, "{name}");
    }
}

#[test]
fn changed_request_lines_are_refused() {
    let changes: [fn(&mut Request); 12] = [
        |request| request.method = "PUT",
        |request| request.method = "post",
        |request| request.authority = "other.iot.svc",
        |request| request.authority = "store.iot.svc:8080",
        |request| request.path = "/v1/items/",
        |request| request.path = "//v1/items",
        |request| request.path = "/v1/item%73",
        |request| request.query = None,
        |request| request.query = Some("dev=42&dev=43"),
        |request| request.query = Some("dev=4%32"),
        |request| request.query = Some("dev=42 "),
        |request| request.path = "*",
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let refusal = signed_request().refusal(change);
        let expected = if number == 11 { uncovered("@request-target") } else { SignatureError::BadSignature };
        assert_eq!(refusal, expected, "change {number}");
    }
}

#[test]
fn authorities_are_compared_without_case_and_default_port() {
    for (scheme, authority) in [
        ("http", "STORE.iot.svc"),
        ("http", "store.iot.svc:80"),
        ("HTTP", "Store.IoT.svc:"),
        ("https", "store.iot.svc:443"),
    ] {
        let request = Request { scheme, authority, ..signed_request() };
        assert!(request.verify().is_ok(), "{scheme} {authority}");
    }
    // Both ends must agree on the scheme: 443 is no default port of http.
    let request = Request { authority: "store.iot.svc:443", ..signed_request() };
    assert_eq!(request.verify().unwrap_err(), SignatureError::BadSignature);
}

#[test]
fn a_smaller_covered_set_is_refused_even_though_the_sender_signed_it() {
    for (from, name) in [
        ("\"@method\" ", "@method"),
        ("\"@authority\" ", "@authority"),
        ("\"@path\" ", "@path"),
        (" \"@query\"", "@query"),
        (" \"content-type\"", "content-type"),
        (" \"content-digest\"", "content-digest"),
        ("\"@method\" \"@authority\" \"@path\" \"@query\" \"content-type\" \"content-digest\"", "@method"),
    ] {
        let refusal = signed_request().refusal(|request| request.edit("signature-input", from, ""));
        assert_eq!(refusal, uncovered(name));
    }
}

#[test]
fn a_component_with_another_meaning_does_not_count() {
    for (to, refusal) in [
        ("\"content-type\";bs", uncovered("content-type")),
        ("\"content-type\";req", uncovered("content-type")),
        ("\"content-type\";tr", uncovered("content-type")),
        ("\"content-type\";sf", SignatureError::Malformed),
        ("\"content-type\";key=\"a\"", SignatureError::Malformed),
        ("\"Content-Type\"", SignatureError::Malformed),
        ("\"@content-type\"", SignatureError::Malformed),
        ("\"content-type\" \"@path\";req", uncovered("@path")),
        ("\"content-type\" \"x-absent\"", uncovered("x-absent")),
        ("\"content-type\" \"@status\"", uncovered("@status")),
        ("\"content-type\" \"content-type\"", SignatureError::Malformed),
        ("\"content-type\" \"signature\"", SignatureError::Malformed),
    ] {
        let actual =
            signed_request().refusal(|request| request.edit("signature-input", "\"content-type\"", to));
        assert_eq!(actual, refusal, "{to}");
    }
}

#[test]
fn cookie_crumbs_are_one_cookie() {
    let whole = Request::new(&[("cookie", "a=1; b=2")]).signed(1);
    let mut crumbs = whole.clone();
    crumbs.headers.insert("cookie", HeaderValue::from_static("a=1"));
    crumbs.headers.append("cookie", HeaderValue::from_static("b=2"));
    assert!(crumbs.verify().is_ok());
    crumbs.headers.append("cookie", HeaderValue::from_static("c=3"));
    assert_eq!(crumbs.verify().unwrap_err(), SignatureError::BadSignature);
}

#[test]
fn set_cookie_lines_cannot_be_joined_or_split() {
    let request = signed_request();
    let response = Response::new(&[("set-cookie", "a=1, b=2"), ("set-cookie", "c=3")]).signed(&request, 1);
    response.verify(&request, 1).unwrap();
    let mut joined = response.clone();
    joined.headers.insert("set-cookie", HeaderValue::from_static("a=1, b=2, c=3"));
    assert_eq!(joined.verify(&request, 1).unwrap_err(), SignatureError::BadSignature);
    let mut split = response;
    split.headers.insert("set-cookie", HeaderValue::from_static("a=1"));
    split.headers.append("set-cookie", HeaderValue::from_static("b=2"));
    split.headers.append("set-cookie", HeaderValue::from_static("c=3"));
    assert_eq!(split.verify(&request, 1).unwrap_err(), SignatureError::BadSignature);
}

#[test]
fn split_lines_and_outer_spaces_are_the_same_field() {
    let request = Request::new(&[("content-encoding", "gzip, br")]).signed(1);
    let mut split = request.clone();
    split.headers.insert("content-encoding", HeaderValue::from_static("  gzip\t"));
    split.headers.append("content-encoding", HeaderValue::from_static("br"));
    assert!(split.verify().is_ok());
    let mut reordered = request.clone();
    reordered.headers.insert("content-encoding", HeaderValue::from_static("br, gzip"));
    assert_eq!(reordered.verify().unwrap_err(), SignatureError::BadSignature);
}

#[test]
fn bytes_above_ascii_are_covered_byte_by_byte() {
    let mut request = Request::new(&[]);
    request.headers.insert("authorization", HeaderValue::from_bytes(b"Basic \xe4").unwrap());
    let request = request.signed(1);
    assert!(input(&request).contains("\"authorization\";bs"));
    assert!(request.verify().is_ok());
    let refusal = request.refusal(|request| {
        request.headers.insert("authorization", HeaderValue::from_bytes(b"Basic \xe5").unwrap());
    });
    assert_eq!(refusal, SignatureError::BadSignature);
}

#[test]
fn a_line_break_in_a_value_is_never_signed() {
    for path in ["/a\n\"@query\": ?", "/a\r", "/\0", "/ä"] {
        let request = Request { path, ..Request::new(&[]) };
        let error = signer(GATEWAY).sign_request(&request.view(), &CHANNEL, 1, NOW).unwrap_err();
        assert!(matches!(error, SignError::Base(_)), "{path:?}");
    }
}

#[test]
fn a_request_without_a_path_is_known_by_its_target() {
    let headers = Request::new(&[]).headers;
    for (method, path, target) in [("OPTIONS", "*", "*"), ("CONNECT", "", "store.iot.svc:80")] {
        let mut received = headers.clone();
        let view = RequestView { target, ..super::request(method, path, &headers) };
        let signed = signer(GATEWAY).sign_request(&view, &CHANNEL, 1, NOW).unwrap();
        let input = signed.signature_input.to_str().unwrap();
        assert!(input.starts_with("mesh=(\"@method\" \"@authority\" \"@request-target\" \"content-type\""));
        signed.append_to(&mut received);
        let verify = |view| {
            verify_request(&view, &CHANNEL, &mut ReplayWindow::new(), resolve, Rules::new(GATEWAY, NOW, SKEW))
        };
        assert!(verify(RequestView { headers: &received, ..view }).is_ok());
        let other = RequestView { headers: &received, target: "other.iot.svc:80", ..view };
        assert_eq!(verify(other).unwrap_err(), SignatureError::BadSignature);
    }
}
