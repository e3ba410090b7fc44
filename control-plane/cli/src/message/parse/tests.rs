use super::*;

fn parse(text: &str) -> Result<Message, MessageError> {
    Message::parse(text.as_bytes(), None)
}

fn request_of(text: &str) -> (String, String, String, Option<String>) {
    match parse(text).unwrap().start {
        Start::Request(line) => (line.scheme, line.authority, line.path, line.query),
        Start::Response { .. } => panic!("not a request"),
    }
}

fn error(text: &str) -> MessageError {
    parse(text).err().expect("the message should be refused")
}

#[test]
fn request_and_response_are_told_apart() {
    let request = parse("POST /a?b=c HTTP/1.1\r\nHost: example.com\r\nContent-Length: 2\r\n\r\nhi").unwrap();
    assert!(request.is_request());
    assert_eq!(request.body(), b"hi");
    let response = parse("HTTP/1.1 204 No Content\r\nX: y\r\n\r\n").unwrap();
    assert!(!response.is_request());
    assert!(matches!(response.view(None), MessageView::Response(ResponseView { status: 204, .. })));
}

#[test]
fn bare_line_feeds_and_a_missing_empty_line_are_accepted() {
    let message = parse("\nGET / HTTP/1.1\nHost: a\nX: y").unwrap();
    assert_eq!(message.headers()["x"], "y");
    assert_eq!(message.to_bytes(), b"GET / HTTP/1.1\nHost: a\nX: y\n\n");
    let message = parse("GET / HTTP/1.1\r\nHost: a").unwrap();
    assert_eq!(message.to_bytes(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn message_is_written_as_it_was_read_with_fields_added_last() {
    let text = "POST / HTTP/1.1\r\nhOsT: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nT: v\r\n\r\n";
    let mut message = parse(text).unwrap();
    assert_eq!(message.to_bytes(), text.as_bytes());
    assert_eq!(
        (message.body(), &message.trailers().unwrap()["t"]),
        (&b"hi"[..], &HeaderValue::from_static("v"))
    );
    message.add_header("Signature", &HeaderValue::from_static("x"));
    assert!(
        String::from_utf8(message.to_bytes()).unwrap().contains("chunked\r\nSignature: x\r\n\r\n2\r\nhi")
    );
}

#[test]
fn every_form_of_target_is_taken_apart() {
    let of = |target: &str| request_of(&format!("GET {target} HTTP/1.1\nHost: host:8080\n\n"));
    let owned = |scheme: &str, authority: &str, path: &str, query: Option<&str>| {
        (scheme.to_owned(), authority.to_owned(), path.to_owned(), query.map(str::to_owned))
    };
    assert_eq!(of("/a//b?"), owned("https", "host:8080", "/a//b", Some("")));
    assert_eq!(of("http://other?q"), owned("http", "other", "/", Some("q")));
    assert_eq!(of("HTTPS://other/p"), owned("https", "other", "/p", None));
    assert_eq!(of("*"), owned("https", "host:8080", "*", None));
    let connect = request_of("CONNECT far:443 HTTP/1.1\nHost: far:443\n\n");
    assert_eq!(connect, owned("https", "far:443", "", None));
    assert_eq!(request_of("GET / HTTP/1.1\nHost: a:80\n\n").0, "http");
}

#[test]
fn a_body_may_be_left_out_and_followed_by_a_line_end() {
    assert_eq!(parse("POST / HTTP/1.1\nHost: a\nContent-Length: 5\n\n").unwrap().body(), b"");
    assert_eq!(parse("POST / HTTP/1.1\nHost: a\nContent-Length: 2\n\nhi\n").unwrap().body(), b"hi");
    assert_eq!(parse("HTTP/1.1 200 OK\n\nto the end\n").unwrap().body(), b"to the end\n");
}

#[test]
fn ambiguous_and_malformed_messages_are_refused() {
    let head = "POST / HTTP/1.1\nHost: a\n";
    assert_eq!(error(""), MessageError::Empty);
    assert_eq!(error("\r\n\r\n"), MessageError::Empty);
    assert_eq!(error(&format!("{head}X: a\n b\n\n")), MessageError::ObsFold { line: 4 });
    assert_eq!(error(&format!("{head}X: a\n\tb\n\n")), MessageError::ObsFold { line: 4 });
    assert_eq!(error("POST / HTTP/1.1\nHost: a\rX: b\n\n"), MessageError::BareCarriageReturn);
    assert_eq!(error("GET / HTTP/1.1\n\n"), MessageError::Host);
    assert_eq!(error("GET / HTTP/1.1\nHost: a\nHost: b\n\n"), MessageError::Host);
    assert_eq!(error("GET a HTTP/1.1\nHost: a\n\n"), MessageError::Target);
    assert_eq!(error("GET /#f HTTP/1.1\nHost: a\n\n"), MessageError::Target);
    assert_eq!(error("GET http://u@a/ HTTP/1.1\nHost: a\n\n"), MessageError::Target);
    assert_eq!(error("GET ftp://a/ HTTP/1.1\nHost: a\n\n"), MessageError::Target);
    assert_eq!(error(&format!("{head}Content-Length: +1\n\nx")), MessageError::ContentLength);
    assert_eq!(
        error(&format!("{head}Content-Length: 1\nContent-Length: 1\n\nx")),
        MessageError::ContentLength
    );
    assert_eq!(
        error(&format!("{head}Content-Length: 99999999999999999999\n\nx")),
        MessageError::ContentLength
    );
    assert_eq!(
        error(&format!("{head}Content-Length: 3\n\nhi")),
        MessageError::BodyTooShort { declared: 3, there: 2 }
    );
    assert_eq!(error(&format!("{head}Content-Length: 1\n\nhi")), MessageError::TrailingBytes(1));
    assert_eq!(
        error(&format!("{head}Content-Length: 1\nTransfer-Encoding: chunked\n\nx")),
        MessageError::Framing
    );
    assert_eq!(error(&format!("{head}Transfer-Encoding: gzip, chunked\n\n0\n\n")), MessageError::Framing);
    assert_eq!(error(&format!("{head}Transfer-Encoding: chunked\n\n5\nhi")), MessageError::ChunkedIncomplete);
    assert!(matches!(error("not http"), MessageError::Head(_)));
    assert!(matches!(error("GET / HTTP/1.1\nHost : a\n\n"), MessageError::Head(_)));
    assert!(matches!(error("GET / HTTP/3\nHost: a\n\n"), MessageError::Head(_)));
    assert_eq!(error(&"x".repeat(MESSAGE_MAX + 1)), MessageError::TooLong);
}
