//! RFC 9421 apart from its test vectors: how components are read, and what is refused.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use http::{HeaderMap, HeaderName, HeaderValue};
use signet_signature::component::ComponentError;
use signet_signature::sign::{SignMessageError, sign};
use signet_signature::verify::{VerifyError, verify};
use signet_signature::{
    Algorithm, BaseError, Component, DigestError, DigestVerifier, MessageView, Params, ParseError,
    RequestView, ResponseView, SigningKey, StreamingDigest, parse_signatures, sha256_header, signature_base,
    verify_digest,
};

fn fields(list: &[(&str, &str)]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in list {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        fields.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    fields
}

fn request(headers: &HeaderMap) -> RequestView<'_> {
    RequestView {
        method: "GET",
        scheme: "https",
        authority: "www.example.com",
        path: "/path",
        query: Some("param=value"),
        target: "/path?param=value",
        headers,
        trailers: None,
    }
}

fn value_in(message: MessageView<'_>, identifier: &str) -> Result<String, BaseError> {
    let component = Component::parse(identifier).unwrap();
    assert_eq!(component.to_string(), identifier);
    let base = signature_base(&message, &[component], &Params::new())?;
    let line = base.lines().next().unwrap();
    Ok(line.strip_prefix(identifier).unwrap().strip_prefix(": ").unwrap().to_owned())
}

fn value(request: RequestView<'_>, identifier: &str) -> Result<String, BaseError> {
    value_in(MessageView::Request(request), identifier)
}

fn field(list: &[(&str, &str)], identifier: &str) -> Result<String, BaseError> {
    value(request(&fields(list)), identifier)
}

fn query(query: &str, identifier: &str) -> Result<String, BaseError> {
    let headers = HeaderMap::new();
    value(RequestView { query: Some(query), ..request(&headers) }, identifier)
}

#[test]
fn fields_are_trimmed_and_joined() {
    let headers = [
        ("x-ows-header", "   Leading and trailing whitespace.   "),
        ("x-empty-header", ""),
        ("cache-control", "max-age=60"),
        ("cache-control", "    must-revalidate"),
    ];
    assert_eq!(field(&headers, "\"x-ows-header\"").unwrap(), "Leading and trailing whitespace.");
    assert_eq!(field(&headers, "\"x-empty-header\"").unwrap(), "");
    assert_eq!(field(&headers, "\"cache-control\"").unwrap(), "max-age=60, must-revalidate");
    assert_eq!(field(&headers, "\"x-absent\""), Err(BaseError::ComponentMissing("\"x-absent\"".to_owned())));
}

#[test]
fn values_above_ascii_need_wrapping() {
    let headers = [("x-name", "Zoë"), ("x-name", " b, c\t")];
    assert_eq!(field(&headers, "\"x-name\""), Err(BaseError::NotText));
    assert_eq!(field(&headers, "\"x-name\";bs").unwrap(), ":Wm/Dqw==:, :YiwgYw==:");
}

#[test]
fn structured_fields_are_serialised_strictly() {
    let headers = [("priority", "  u=1,    i;x=1;y=2"), ("priority", "a=(a   b   c)"), ("x-any", "a,  b")];
    assert_eq!(field(&headers, "\"priority\"").unwrap(), "u=1,    i;x=1;y=2, a=(a   b   c)");
    assert_eq!(field(&headers, "\"priority\";sf").unwrap(), "u=1, i;x=1;y=2, a=(a b c)");
    assert_eq!(field(&headers, "\"x-any\";sf"), Err(BaseError::UnknownStructuredType("x-any".to_owned())));
    assert_eq!(
        field(&[("priority", "u=")], "\"priority\";sf"),
        Err(BaseError::NotStructured("priority".to_owned()))
    );
    assert_eq!(field(&[("client-cert", ":AAAA: ")], "\"client-cert\";sf").unwrap(), ":AAAA:");
    assert_eq!(
        field(&[("cache-status", "a;hit,b ;fwd=miss")], "\"cache-status\";sf"),
        Err(BaseError::NotStructured("cache-status".to_owned()))
    );
    assert_eq!(field(&[("cache-status", "a;  hit ,b")], "\"cache-status\";sf").unwrap(), "a;hit, b");
}

#[test]
fn members_of_dictionaries_are_taken_by_key() {
    let headers = [("example-dict", "  a=1, b=2;x=1;y=2, c=(a   b    c), d")];
    for (key, expected) in [("a", "1"), ("b", "2;x=1;y=2"), ("c", "(a b c)"), ("d", "?1")] {
        assert_eq!(field(&headers, &format!("\"example-dict\";key=\"{key}\"")).unwrap(), expected);
    }
    let absent = field(&headers, "\"example-dict\";key=\"e\"");
    assert!(matches!(absent, Err(BaseError::MemberMissing { .. })));
    assert!(matches!(field(&headers, "\"example-dict\";key=\"E\""), Err(BaseError::MemberMissing { .. })));
}

#[test]
fn derived_components_have_the_values_of_the_rfc() {
    let headers = HeaderMap::new();
    for (identifier, expected) in [
        ("\"@method\"", "GET"),
        ("\"@target-uri\"", "https://www.example.com/path?param=value"),
        ("\"@authority\"", "www.example.com"),
        ("\"@scheme\"", "https"),
        ("\"@request-target\"", "/path?param=value"),
        ("\"@path\"", "/path"),
        ("\"@query\"", "?param=value"),
    ] {
        assert_eq!(value(request(&headers), identifier).unwrap(), expected);
    }
    let bare = RequestView {
        path: "",
        query: None,
        scheme: "HTTPS",
        authority: "WWW.Example.com:443",
        ..request(&headers)
    };
    assert_eq!(value(bare, "\"@path\"").unwrap(), "/");
    assert_eq!(value(bare, "\"@query\"").unwrap(), "?");
    assert_eq!(value(bare, "\"@scheme\"").unwrap(), "https");
    assert_eq!(value(bare, "\"@authority\"").unwrap(), "www.example.com");
    assert_eq!(value(bare, "\"@target-uri\"").unwrap(), "https://www.example.com/");
    assert_eq!(value(bare, "\"@status\""), Err(BaseError::NotApplicable("@status")));
}

#[test]
fn requests_without_a_path_have_only_a_target() {
    let headers = HeaderMap::new();
    let asterisk =
        RequestView { method: "OPTIONS", path: "*", query: None, target: "*", ..request(&headers) };
    assert_eq!(value(asterisk, "\"@request-target\"").unwrap(), "*");
    assert_eq!(value(asterisk, "\"@target-uri\"").unwrap(), "https://www.example.com");
    assert_eq!(value(asterisk, "\"@path\""), Err(BaseError::NotApplicable("@path")));
    let connect = RequestView {
        method: "CONNECT",
        path: "",
        query: None,
        target: "www.example.com:80",
        ..request(&headers)
    };
    assert_eq!(value(connect, "\"@request-target\"").unwrap(), "www.example.com:80");
    assert_eq!(value(connect, "\"@path\""), Err(BaseError::NotApplicable("@path")));
}

#[test]
fn a_view_of_an_http_request_has_its_raw_parts() {
    let headers = HeaderMap::new();
    for (method, uri, path, query, target) in [
        ("GET", "/a%2Fb//c?x=%20&", "/a%2Fb//c", Some("x=%20&"), "/a%2Fb//c?x=%20&"),
        ("GET", "/a?", "/a", Some(""), "/a?"),
        ("GET", "http://h/a?b", "/a", Some("b"), "/a?b"),
        ("OPTIONS", "*", "*", None, "*"),
        ("CONNECT", "h:80", "", None, "h:80"),
    ] {
        let (method, uri) = (http::Method::try_from(method).unwrap(), http::Uri::try_from(uri).unwrap());
        let view = RequestView::new(&method, &uri, "http", "h", &headers);
        assert_eq!((view.path, view.query, view.target), (path, query, target));
    }
}

#[test]
fn query_parameters_are_decoded_and_encoded_again() {
    let text = "var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace&fa%C3%A7ade%22%3A%20=something&&e";
    for (name, expected) in [
        ("var", "this%20is%20a%20big%0Amultiline%20value"),
        ("bar", "with%20plus%20whitespace"),
        ("fa%C3%A7ade%22%3A%20", "something"),
        ("e", ""),
    ] {
        assert_eq!(query(text, &format!("\"@query-param\";name=\"{name}\"")).unwrap(), expected);
    }
    for ambiguous in ["a=1&a=2", "a=1&%61=2", "a&a"] {
        assert_eq!(query(ambiguous, "\"@query-param\";name=\"a\""), Err(BaseError::RepeatedQueryParameter));
    }
    assert_eq!(query("a=%zz%4", "\"@query-param\";name=\"a\"").unwrap(), "%25zz%254");
    assert!(matches!(query("b=1", "\"@query-param\";name=\"a\""), Err(BaseError::ComponentMissing(_))));
}

#[test]
fn responses_take_components_from_their_request_and_trailers() {
    let of_request = fields(&[("x-a", "of request")]);
    let headers = fields(&[("x-a", "of response")]);
    let trailers = fields(&[("x-a", "of trailers")]);
    let response = ResponseView {
        status: 503,
        headers: &headers,
        trailers: Some(&trailers),
        request: Some(request(&of_request)),
    };
    let value = |identifier| value_in(MessageView::Response(response), identifier);
    assert_eq!(value("\"@status\"").unwrap(), "503");
    assert_eq!(value("\"x-a\"").unwrap(), "of response");
    assert_eq!(value("\"x-a\";req").unwrap(), "of request");
    assert_eq!(value("\"x-a\";tr").unwrap(), "of trailers");
    assert_eq!(value("\"@path\";req").unwrap(), "/path");
    assert_eq!(value("\"@path\""), Err(BaseError::NoRequest));
    assert_eq!(value("\"x-a\";req;tr"), Err(BaseError::NoTrailers));
    let alone = ResponseView { request: None, trailers: None, ..response };
    assert_eq!(value_in(MessageView::Response(alone), "\"x-a\";req"), Err(BaseError::NoRequest));
    assert_eq!(value_in(MessageView::Response(alone), "\"x-a\";tr"), Err(BaseError::NoTrailers));
    assert_eq!(field(&[("x-a", "b")], "\"x-a\";req"), Err(BaseError::NoRequest));
}

#[test]
fn components_that_are_not_understood_are_refused() {
    for (identifier, error) in [
        ("", ComponentError::Malformed),
        ("x-a", ComponentError::Malformed),
        ("\"\"", ComponentError::Malformed),
        ("\"X-A\"", ComponentError::Malformed),
        ("\"x a\"", ComponentError::Malformed),
        ("\"x-a\":", ComponentError::Malformed),
        ("\"@nothing\"", ComponentError::UnknownDerived),
        ("\"@signature-params\"", ComponentError::UnknownDerived),
        ("\"@Method\"", ComponentError::UnknownDerived),
        ("\"@query-param\"", ComponentError::NameMissing),
        ("\"@path\";name=\"a\"", ComponentError::ConflictingParameters),
        ("\"@path\";bs", ComponentError::ConflictingParameters),
        ("\"@path\";tr", ComponentError::ConflictingParameters),
        ("\"@status\";req", ComponentError::ConflictingParameters),
        ("\"x-a\";bs;sf", ComponentError::ConflictingParameters),
        ("\"x-a\";key=\"b\";bs", ComponentError::ConflictingParameters),
        ("\"x-a\";name=\"b\"", ComponentError::ConflictingParameters),
        ("\"x-a\";req=?0", ComponentError::UnknownParameter),
        ("\"x-a\";req=1", ComponentError::UnknownParameter),
        ("\"x-a\";key=b", ComponentError::UnknownParameter),
        ("\"x-a\";new", ComponentError::UnknownParameter),
    ] {
        assert_eq!(Component::parse(identifier), Err(error), "{identifier}");
    }
    let long = format!("\"{}\"", "x".repeat(2000));
    assert_eq!(Component::parse(&long), Err(ComponentError::TooLong));
}

#[test]
fn a_component_is_covered_once_in_whatever_spelling() {
    let headers = fields(&[("priority", "u=1")]);
    let message = MessageView::Response(ResponseView {
        status: 200,
        headers: &headers,
        trailers: None,
        request: Some(request(&headers)),
    });
    let covering = |list: &[&str]| {
        let components: Vec<_> = list.iter().map(|text| Component::parse(text).unwrap()).collect();
        signature_base(&message, &components, &Params::new())
    };
    assert!(covering(&["\"priority\"", "\"priority\";req", "\"priority\";sf"]).is_ok());
    for twice in [["\"priority\"", "\"priority\""], ["\"priority\";req;sf", "\"priority\";sf;req"]] {
        assert!(matches!(covering(&twice), Err(BaseError::DuplicateComponent(_))));
    }
    let many: Vec<_> = (0..200).map(|number| format!("\"priority\";key=\"a{number}\"")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(covering(&many), Err(BaseError::TooManyComponents));
}

fn parsed(input: &str, signature: &str) -> Result<usize, ParseError> {
    let headers = fields(&[("signature-input", input), ("signature", signature)]);
    parse_signatures(&headers).map(|signatures| signatures.len())
}

#[test]
fn ambiguous_or_oversized_signature_fields_are_refused() {
    assert_eq!(parsed("a=(), b=(\"@path\");x=\"a,b;c\"", "b=:AA==:,a=:AA==:"), Ok(2));
    for (input, error) in [
        ("a=();alg=\"x\";alg=\"y\"", ParseError::DuplicateParameter),
        ("a=(\"@path\";req;req)", ParseError::DuplicateParameter),
        ("a=(), a=()", ParseError::DuplicateLabel),
        ("a=();created=\"1\"", ParseError::ParameterType("created")),
        ("a=();created=-1", ParseError::ParameterType("created")),
        ("a=();expires=1.5", ParseError::ParameterType("expires")),
        ("a=();keyid=k", ParseError::ParameterType("keyid")),
        ("a=(\"X\")", ParseError::Component(ComponentError::Malformed)),
        ("b=()", ParseError::UnmatchedLabel),
        ("a=(), b=()", ParseError::UnmatchedLabel),
        ("a", ParseError::Malformed),
        ("a=1", ParseError::Malformed),
        ("A=()", ParseError::Malformed),
        ("a =()", ParseError::Malformed),
        ("a= ()", ParseError::Malformed),
        (",a=()", ParseError::Malformed),
        ("a=(),", ParseError::Malformed),
        ("a=(\"", ParseError::Malformed),
    ] {
        assert_eq!(parsed(input, "a=:AA==:"), Err(error), "{input}");
    }
    for signature in ["a=AA==", "a=:A:", "a=:AA==", "a=(:AA==:)"] {
        assert_eq!(parsed("a=()", signature), Err(ParseError::Malformed), "{signature}");
    }
    let many: Vec<_> = (0..17).map(|number| format!("a{number}=()")).collect();
    assert_eq!(parsed(&many.join(","), "a=:AA==:"), Err(ParseError::TooManySignatures));
    assert_eq!(parsed(&"x".repeat(40_000), "a=:AA==:"), Err(ParseError::FieldTooLong));
    let many: Vec<_> = (0..129).map(|number| format!("\"x{number}\"")).collect();
    assert_eq!(parsed(&format!("a=({})", many.join(" ")), "a=:AA==:"), Err(ParseError::TooManyComponents));
}

#[test]
fn optional_spaces_are_normalised_and_unknown_parameters_kept() {
    let headers = fields(&[
        ("signature-input", "a=(  \"@method\"   \"@path\" );  zz=tok; created=7 "),
        ("signature", "a=:AA==:"),
    ]);
    let signatures = parse_signatures(&headers).unwrap();
    let [signature] = signatures.as_slice() else { panic!("one signature") };
    let base = signature.base(&MessageView::Request(request(&headers))).unwrap();
    assert!(base.ends_with("\"@signature-params\": (\"@method\" \"@path\");zz=tok;created=7"), "{base}");
    assert_eq!(signature.received(), "(  \"@method\"   \"@path\" );  zz=tok; created=7");
}

#[test]
fn time_and_algorithm_are_checked_as_far_as_they_are_stated() {
    let key = SigningKey::from_hmac_secret(&[7; 32]).unwrap();
    let mut headers = fields(&[]);
    let params = Params::new().with_created(1000).with_expires(1060).with_alg(Algorithm::HmacSha256);
    let covered = [Component::parse("\"@method\"").unwrap()];
    let signed = sign(&MessageView::Request(request(&headers)), &covered, &params, "sig1", &key).unwrap();
    headers.append("signature-input", signed.signature_input);
    headers.append("signature", signed.signature);
    let signatures = parse_signatures(&headers).unwrap();
    let at = |now| {
        verify(
            &MessageView::Request(request(&headers)),
            &signatures[0],
            &key.verifying_key().unwrap(),
            now,
            5,
        )
    };
    assert_eq!(at(994), Err(VerifyError::Clock));
    assert!(at(995).is_ok() && at(1064).is_ok());
    assert_eq!(at(1065), Err(VerifyError::Expired));

    let wrong = Params::new().with_alg(Algorithm::Ed25519);
    let refused = sign(&MessageView::Request(request(&headers)), &covered, &wrong, "sig1", &key);
    assert_eq!(refused.unwrap_err(), SignMessageError::Algorithm);
    let label = sign(&MessageView::Request(request(&headers)), &covered, &params, "Sig 1", &key);
    assert_eq!(label.unwrap_err(), SignMessageError::Label);
}

#[test]
fn every_digest_that_is_known_must_fit() {
    let body = b"{\"hello\": \"world\"}";
    let sha256 = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";
    let sha512 =
        "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";
    assert_eq!(sha256_header(body), sha256);
    let check = |value: &str, body: &[u8]| verify_digest(&fields(&[("content-digest", value)]), body);
    for value in [sha256.to_owned(), sha512.to_owned(), format!("{sha512}, md5=:AA==:, {sha256}")] {
        assert_eq!(check(&value, body), Ok(()), "{value}");
        assert_eq!(check(&value, b"other"), Err(DigestError::Mismatch), "{value}");
    }
    let one_wrong = format!("{sha256}, sha-512=:{}:", "A".repeat(86) + "==");
    assert_eq!(check(&one_wrong, body), Err(DigestError::Mismatch));
    for (value, error) in [
        ("md5=:AA==:", DigestError::Unsupported),
        ("", DigestError::Unsupported),
        ("sha-256=:AA==:", DigestError::Malformed),
        ("sha-256=1", DigestError::Malformed),
        ("sha-256", DigestError::Malformed),
        ("sha-256=(:AA==:)", DigestError::Malformed),
        ("sha-256=X48E9q", DigestError::Malformed),
        ("=", DigestError::Malformed),
    ] {
        assert_eq!(check(value, body), Err(error), "{value}");
    }
    assert_eq!(verify_digest(&HeaderMap::new(), body), Err(DigestError::Missing));
}

#[test]
fn digests_are_the_same_piece_by_piece() {
    let mut digest = StreamingDigest::new();
    let mut verifier = DigestVerifier::from_value(&sha256_header(b"abcdef")).unwrap();
    for piece in [b"ab".as_slice(), b"", b"cdef"] {
        digest.update(piece);
        verifier.update(piece);
    }
    assert_eq!(digest.finish_header(), sha256_header(b"abcdef"));
    assert_eq!(verifier.finish(), Ok(()));
}
