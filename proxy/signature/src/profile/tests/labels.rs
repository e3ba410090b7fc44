//! Several signatures on one message, and taking ours out again.

use http::HeaderValue;

use super::{CHANNEL, GATEWAY, NOW, Request, Response, signed_request, signer};
use crate::profile::{SignError, SignatureError, strip};

const FOREIGN_INPUT: &str =
    "mesh=(\"@method\" \"x\";sf);created=1;x=\"a,b;c\";keyid=\"k\", other=();nonce=\"\\\"\"";
const FOREIGN_SIGNATURE: &str = "other=:AAAA:, mesh=:BBBB:";

fn foreign() -> Request {
    Request::new(&[("signature-input", FOREIGN_INPUT), ("signature", FOREIGN_SIGNATURE)])
}

#[test]
fn signatures_of_the_application_stay_and_do_not_matter() {
    let request = foreign().signed(1);
    let verified = request.verify().unwrap();
    assert_eq!(verified.label, "mesh2");
    let mut stripped = request.headers.clone();
    strip(&mut stripped);
    let lines = |name: &str| {
        stripped.get_all(name).iter().map(|line| line.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(lines("signature-input").join(", "), FOREIGN_INPUT);
    assert_eq!(lines("signature").join(", "), FOREIGN_SIGNATURE);
}

#[test]
fn strip_removes_ours_and_leaves_the_rest_alone() {
    let mut headers = signed_request().headers;
    strip(&mut headers);
    assert_eq!(headers, Request::new(&[]).headers);
    let mut headers = foreign().headers;
    strip(&mut headers);
    assert_eq!(headers, foreign().headers);
    let unreadable = Request::new(&[("signature-input", "mesh=(\"\\"), ("signature", "\"")]).headers;
    let mut headers = unreadable.clone();
    strip(&mut headers);
    assert_eq!(headers, unreadable);
}

#[test]
fn what_only_looks_like_our_usual_signature_is_taken_out_as_far_as_it_is_ours() {
    type Lines = &'static [&'static str];
    const OURS: &str = "mesh=();tag=\"mesh-req-v1\"";
    let cases: [(Lines, Lines, Lines, Lines); 6] = [
        (&[OURS], &["mesh=:AAAA:"], &[], &[]),
        // Under our label, and of the application.
        (&["mesh=();tag=\"app\""], &["mesh=:AAAA:"], &["mesh=();tag=\"app\""], &["mesh=:AAAA:"]),
        (&[OURS], &["other=:AAAA:"], &[], &["other=:AAAA:"]),
        (&[OURS], &["mesh=:AAAA:", "other=:BBBB:"], &[], &["other=:BBBB:"]),
        (&[OURS, "other=()"], &["mesh=:AAAA:"], &["other=()"], &[]),
        // No dictionaries: whose they are cannot be told.
        (
            &["mesh= ();tag=\"mesh-req-v1\""],
            &["mesh=:AAAA:"],
            &["mesh= ();tag=\"mesh-req-v1\""],
            &["mesh=:AAAA:"],
        ),
    ];
    for (inputs, signatures, kept_inputs, kept_signatures) in cases {
        let headers = |inputs: Lines, signatures: Lines| {
            let of = |name: &'static str, lines: Lines| -> Vec<_> {
                lines.iter().map(|line| (name, *line)).collect()
            };
            Request::new(&[of("signature-input", inputs), of("signature", signatures)].concat()).headers
        };
        let mut stripped = headers(inputs, signatures);
        strip(&mut stripped);
        assert_eq!(stripped, headers(kept_inputs, kept_signatures), "{inputs:?} {signatures:?}");
    }
}

#[test]
fn a_message_without_our_signature_is_refused() {
    let missing = SignatureError::Missing;
    assert_eq!(Request::new(&[]).verify().unwrap_err(), missing);
    assert_eq!(foreign().verify().unwrap_err(), missing);
    for name in ["signature", "signature-input"] {
        let refusal = signed_request().refusal(|request| {
            request.headers.remove(name);
        });
        assert_eq!(refusal, missing, "{name}");
    }
    assert_eq!(signed_request().refusal(|request| request.edit("signature", "mesh=", "nesh=")), missing);
    assert_eq!(
        signed_request().refusal(|request| request.edit("signature-input", "mesh-req-v1", "mesh-req-v2")),
        missing
    );
    assert_eq!(
        signed_request().refusal(|request| request.edit("signature-input", "mesh-req-v1", "MESH-REQ-V1")),
        missing
    );
}

#[test]
fn the_label_proves_nothing() {
    let mut renamed = signed_request();
    renamed.edit("signature-input", "mesh=", "sig1=");
    renamed.edit("signature", "mesh=", "sig1=");
    assert_eq!(renamed.verify().unwrap().label, "sig1");
}

#[test]
fn two_signatures_of_ours_are_refused_whichever_is_valid() {
    let request = signed_request();
    for order in [true, false] {
        let mut doubled = request.clone();
        let ours = request.headers["signature-input"].to_str().unwrap();
        let forged = ours.replace("mesh=", "forged=").replace("created=1790000000", "created=1790000001");
        let both = if order { format!("{ours}, {forged}") } else { format!("{forged}, {ours}") };
        doubled.headers.insert("signature-input", HeaderValue::try_from(both).unwrap());
        doubled.headers.append("signature", HeaderValue::from_static("forged=:AAAA:"));
        assert_eq!(doubled.verify().unwrap_err(), SignatureError::Multiple);
    }
    // Not even in a spelling that would be refused on its own.
    let mut doubled = request;
    doubled.headers.append("signature-input", HeaderValue::from_static("x=( );tag=\"mesh-req-v1\""));
    assert_eq!(doubled.verify().unwrap_err(), SignatureError::Multiple);
}

#[test]
fn a_label_used_twice_is_refused() {
    let refusal = signed_request().refusal(|request| {
        let line = request.headers["signature-input"].clone();
        request.headers.append("signature-input", line);
    });
    assert_eq!(refusal, SignatureError::Malformed);
    let refusal = signed_request().refusal(|request| {
        request.headers.append("signature", HeaderValue::from_static("mesh=:AAAA:"));
    });
    assert_eq!(refusal, SignatureError::Malformed);
}

#[test]
fn too_many_or_too_long_signatures_are_refused() {
    let refusal = signed_request().refusal(|request| {
        request.headers.append("signature-input", HeaderValue::from_static("a=(), b=(), c=(), d=()"));
    });
    assert_eq!(refusal, SignatureError::Malformed);
    let refusal = signed_request().refusal(|request| {
        let long = format!("a=();nonce=\"{}\"", "x".repeat(4096));
        request.headers.append("signature-input", HeaderValue::try_from(long).unwrap());
    });
    assert_eq!(refusal, SignatureError::Malformed);
}

#[test]
fn nothing_is_signed_that_no_verifier_would_accept() {
    let sign = |list: &[(&str, &str)]| {
        let request = Request::new(list);
        signer(GATEWAY).sign_request(&request.view(), &CHANNEL, 1, NOW).map(drop)
    };
    let four = [("signature-input", "a=(), b=(), c=(), d=()")];
    assert!(matches!(sign(&four), Err(SignError::TooManySignatures)));
    let reserved = [("signature-input", "a=();tag=\"mesh-req-v1\""), ("signature", "a=:AA==:")];
    assert!(matches!(sign(&reserved), Err(SignError::ReservedTag)));
    assert!(matches!(sign(&[("signature-input", "a (;tag=\"mesh-req-v1\"")]), Err(SignError::ReservedTag)));
    let twice = [("signature", "a=:AA==:"), ("signature", "a=:AA==:")];
    assert!(matches!(sign(&twice), Err(SignError::Existing(_))));
    let many: Vec<_> = (0..70).map(|number| (format!("mesh-x{number}"), "1")).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert!(matches!(sign(&many), Err(SignError::TooLong)));
}

#[test]
fn fields_of_the_application_that_cannot_be_read_pass_beside_ours() {
    let draft = "keyId=\"k\",algorithm=\"hs2019\",headers=\"(request-target)\",signature=\"AA==\"";
    for own in [("signature", draft), ("signature-input", "a"), ("signature", "a=:AA==:, a=:AA==:")] {
        let unsigned = Request::new(&[own]);
        let mut signed = unsigned.clone().signed(1);
        signed.verify().unwrap();
        strip(&mut signed.headers);
        assert_eq!(signed.headers, unsigned.headers, "{own:?}");
    }
}

#[test]
fn lines_of_the_application_keep_their_members_and_spaces() {
    let own = [
        ("signature-input", "one=(  \"@method\" ),\t two=();x=\"a, b\""),
        ("signature", "one=:AAAA: ,two=:BBBB:"),
    ];
    let unsigned = Request::new(&own);
    let mut signed = unsigned.clone().signed(1);
    signed.verify().unwrap();
    strip(&mut signed.headers);
    assert_eq!(signed.headers, unsigned.headers);
}

#[test]
fn a_claim_in_a_line_that_cannot_be_read_is_refused_beside_a_good_signature() {
    let refusal = signed_request().refusal(|request| {
        request.headers.append("signature-input", HeaderValue::from_static("A (;tag=\"mesh-req-v1\""));
    });
    assert_eq!(refusal, SignatureError::Malformed);
}

#[test]
fn a_request_signature_is_no_response_signature() {
    let request = signed_request();
    let mut reflected = Response::new(&[]);
    for name in ["signature", "signature-input"] {
        reflected.headers.insert(name, request.headers[name].clone());
    }
    assert_eq!(reflected.verify(&request, 1).unwrap_err(), SignatureError::Missing);
    reflected.headers.insert(
        "signature-input",
        HeaderValue::try_from(request.headers["signature-input"].to_str().unwrap().replace("-req-", "-rsp-"))
            .unwrap(),
    );
    assert!(reflected.verify(&request, 1).is_err());
}
