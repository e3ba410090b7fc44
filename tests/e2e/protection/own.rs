//! What apps say that the mesh says too: signatures of their own, and framing.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;

use signet_cli::lab::runner::TestResult;
use signet_tests::plain::get;
use signet_tests::{Failure, Plain, place};

use super::stand::{Back, LEVELS, PROTECTED, PUBLIC, Pair, SECOND, values};
use crate::identity::signing;
use crate::protocols::http::{Caller as Client, read_request};
use crate::protocols::server::serve;

/// What it is, its `Signature-Input` fields and its `Signature` fields.
type Own = (&'static str, &'static [&'static str], &'static [&'static str]);

const OWN: &[Own] = &[
    (
        "one",
        &["app=(\"@method\" \"x-own\";sf);created=1;keyid=\"k\";alg=\"hmac-sha256\";tag=\"app-v1\""],
        &["app=:AAAA:"],
    ),
    (
        "under the label of ours",
        &["mesh=(\"@method\");created=1;keyid=\"k\";tag=\"app-v1\""],
        &["mesh=:BBBB:"],
    ),
    ("without a tag", &["app=();created=1"], &["app=:AAAA:"]),
    ("two in two lines", &["one=(\"@method\")", "two=();tag=\"b\""], &["one=:AAAA:", "two=:BBBB:"]),
];

fn lines(inputs: &[&str], signatures: &[&str]) -> String {
    let inputs = inputs.iter().map(|value| format!("Signature-Input: {value}\r\n"));
    inputs.chain(signatures.iter().map(|value| format!("Signature: {value}\r\n"))).collect()
}

const IN_ONE_LINE: &[Own] = &[
    ("two in a line", &["one=(\"@method\"), two=();tag=\"b\""], &["one=:AAAA:, two=:BBBB:"]),
    (
        "two in a line, oddly spaced",
        &["one=(  \"@method\" ),\t two=();x=\"a, mesh-req-v1\""],
        &["one=:AAAA: ,two=:BBBB:"],
    ),
];

/// Widely used, and no dictionary.
const BEFORE_RFC_9421: &[Own] = &[(
    "of the draft before RFC 9421",
    &[],
    &["keyId=\"k\",algorithm=\"hs2019\",headers=\"(request-target) host\",signature=\"AAAA\""],
)];

/// The values of a field in a head, in their order.
fn values_in(head: &str, name: &str) -> Vec<String> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).collect()
}

/// Answers with what the request says in `X-Answer`, lines separated by `|`.
fn as_asked(stream: TcpStream, (): &()) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream)? {
        let answer = request.header("x-answer").unwrap_or_default().replace('|', "\r\n");
        stream.get_mut().write_all(format!("HTTP/1.1 {answer}").as_bytes())?;
    }
    Ok(())
}

fn asking_for(answer: &str) -> String {
    format!("GET /scripted HTTP/1.1\r\nHost: server\r\nX-Answer: {}\r\n\r\n", answer.replace("\r\n", "|"))
}

fn scripted(protection: &str) -> Result<(Pair, std::net::SocketAddr), Failure> {
    let pair = Pair::new(&[], protection)?;
    serve(pair.receiver.container(), SECOND, Arc::new(()), as_asked)?;
    let to = place(pair.receiver.container(), SECOND);
    pair.sender.wait_until_known(to)?;
    Ok((pair, to))
}

pub(super) fn signatures_of_the_app_itself_pass_byte_for_byte() -> TestResult {
    pass_byte_for_byte(OWN)
}

pub(super) fn signatures_of_the_app_in_one_line_stay_in_one_line() -> TestResult {
    pass_byte_for_byte(IN_ONE_LINE)
}

pub(super) fn signature_of_the_app_by_the_draft_before_rfc_9421_passes() -> TestResult {
    pass_byte_for_byte(BEFORE_RFC_9421)
}

fn pass_byte_for_byte(cases: &[Own]) -> TestResult {
    let mut wrong = Vec::new();
    for level in LEVELS {
        let (pair, scripted) = scripted(level)?;
        for (what, inputs, signatures) in cases {
            let what = format!("{level}: {what}");
            let own = lines(inputs, signatures);
            let answer = pair.ask(&format!("GET /api HTTP/1.1\r\nHost: server\r\n{own}\r\n"))?;
            let seen = pair.last_seen();
            let found = (values_in(&seen, "signature-input"), values_in(&seen, "signature"));
            if answer.status != 200 || found.0 != *inputs || found.1 != *signatures {
                wrong.push(format!("{what}: {} {:?}, the app sees {found:?}", answer.status, answer.code()));
            }
            assert_eq!(values(&answer, "signature"), Vec::<String>::new(), "{what}: {answer:?}");

            let wanted = format!("200 OK\r\n{own}Content-Length: 0\r\n\r\n");
            let answer = Plain::ask(&pair.client, scripted, &asking_for(&wanted))?;
            let found = (values(&answer, "signature-input"), values(&answer, "signature"));
            if answer.status != 200 || found.0 != *inputs || found.1 != *signatures {
                wrong.push(format!(
                    "{what}, in the answer: {} {:?}, {found:?}",
                    answer.status,
                    answer.code()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

pub(super) fn app_cannot_claim_a_signature_of_the_mesh() -> TestResult {
    for level in LEVELS {
        let (pair, scripted) = scripted(level)?;
        let mut wrong = Vec::new();
        for tag in ["mesh-req-v1", "mesh-req-b-v1", "mesh-rsp-v1", "mesh-rsp-b-v1", "mesh-req-head-v1"] {
            let claim = |label: &str| format!("{label}=(\"@method\");created=1;keyid=\"k\";tag=\"{tag}\"");
            let claims: [(&str, Vec<String>); 6] = [
                ("alone", vec![claim("mesh")]),
                ("under another label", vec![claim("app")]),
                ("behind one of its own", vec![format!("one=();tag=\"app\", {}", claim("two"))]),
                ("twice under one label", vec![format!("{}, one=();tag=\"app\"", claim("one"))]),
                ("in a second line", vec!["one=();tag=\"app\"".into(), claim("two")]),
                ("as the second of two tags", vec![format!("one=();tag=\"app\";tag=\"{tag}\"")]),
            ];
            for (what, inputs) in claims {
                let what = format!("{level}, {tag} {what}");
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                let own = lines(&inputs, &["mesh=:AAAA:, app=:AAAA:, one=:AAAA:, two=:AAAA:"]);
                let answer = pair.ask(&format!("GET /claimed HTTP/1.1\r\nHost: server\r\n{own}\r\n"))?;
                if answer.status != 400 || answer.code().is_none() {
                    wrong.push(format!("{what}: {answer:?}"));
                }
                let wanted = format!("200 OK\r\n{own}Content-Length: 7\r\n\r\nclaimed");
                let answer = Plain::ask(&pair.client, scripted, &asking_for(&wanted))?;
                let delivered = String::from_utf8_lossy(&answer.body).contains("claimed");
                if !matches!(answer.status, 500..=599) || answer.code().is_none() || delivered {
                    wrong.push(format!("{what}, in the answer: {answer:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(!pair.app.text().contains("claimed"), "{}", pair.app.text());
    }
    Ok(())
}

pub(super) fn answer_framed_twice_by_the_app_arrives_whole_and_framed_once() -> TestResult {
    let chunks = "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    for level in LEVELS {
        let (pair, scripted) = scripted(level)?;
        let mut client = Client::open(pair.client.namespace(), scripted)?;
        for framing in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 11\r\nTransfer-Encoding: chunked",
            "Content-Length: 4096\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked",
        ] {
            client.send(asking_for(&format!("200 OK\r\n{framing}\r\n\r\n{chunks}")))?;
            let answer = client.answer().map_err(|error| format!("{level}, {framing:?}: {error}"))?;
            let framings = ["content-length", "transfer-encoding"].map(|name| {
                answer.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name)).count()
            });
            let found = (answer.status(), String::from_utf8_lossy(&answer.body).into_owned());
            assert_eq!(found, (200, "hello world".to_owned()), "{level}, {framing:?}: {answer:?}");
            assert_eq!(framings.iter().sum::<usize>(), 1, "{level}, {framing:?}: {answer:?}");
        }
    }
    Ok(())
}

pub(super) fn answer_framed_twice_by_a_peer_is_not_believed() -> TestResult {
    let signed = Back::new(PROTECTED)?;
    // Its signature and its digest are right.
    let _impostor = signed.serve(signing(&signed.identity, |answer| {
        let text = String::from_utf8_lossy(answer).into_owned();
        let text = text.replacen("\r\n", "\r\nTransfer-Encoding: chunked\r\n", 1);
        let body = text.len() - "answered".len();
        *answer = format!("{}8\r\nanswered\r\n0\r\n\r\n", &text[..body]).into_bytes();
    }))?;
    let unsigned = Back::new(PUBLIC)?;
    let _other = unsigned.serve(Arc::new(|_, _| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nTransfer-Encoding: chunked";
        format!("{head}\r\n\r\n8\r\nanswered\r\n0\r\n\r\n").into_bytes()
    }))?;
    for (level, back) in [("protected", &signed), ("public", &unsigned)] {
        let answer = back.ask(&get("/api", "server"))?;
        let found = (answer.status, answer.code());
        assert_eq!(found, (502, Some("response-unverified".to_owned())), "{level}: {answer:?}");
    }
    Ok(())
}
