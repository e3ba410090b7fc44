//! Many messages under one signature: what a sidecar makes of many calls, and what nobody can make of a batch.

use std::io::{self, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use signet_cli::lab::mesh::intruder::{Answer, Caller, Draft, IntruderError, Signed, inside};
use signet_cli::lab::mesh::{Metrics, Sidecar};
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Container, Namespace};
use signet_signature::Form;
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::recorder::ANSWER;
use signet_tests::{Failure, Site, place};

use super::stand::{Front, HTTP, PROTECTED, prepare, sealed};
use crate::protocols::http::{Caller as Client, read_request};
use crate::protocols::server::serve;
use crate::signatures::is_problem;

pub(super) const HTTP2: u16 = 9090;
pub(super) const CONNECTIONS: usize = 24;
pub(super) const CALLS: usize = 30;
/// Above the 64 KiB that one digest covers.
const LARGE: usize = 100_000;
pub(super) const CONNECTIONS_2: usize = 3;
pub(super) const STREAMS: usize = 40;
pub(super) const ROUNDS: usize = 5;

pub(super) fn calls_at_the_same_moment_share_signatures_and_each_answer_is_right() -> TestResult {
    let ports = "ports: [{port: 8201, protocol: http}, {port: 9090, protocol: http2}]";
    let site = Site::new(&[
        mesh(&[]),
        workload("server", &[ports]),
        workload("client", &[]),
        policy("open", "server", &[&allow("client", "")]),
    ])?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    serve(&server, HTTP, Arc::new(()), echo)?;
    echo_http2(&server, HTTP2)?;
    let sidecars = site.sidecars([(&server, "server"), (&client, "client")])?;
    let (one, two) = (place(&server, HTTP), place(&server, HTTP2));
    for place in [one, two] {
        sidecars[1].wait_until_known(place)?;
    }

    let before = counts(&sidecars)?;
    call_over_http1(client.namespace(), one)?;
    let between = counts(&sidecars)?;
    call_over_http2(&client, two)?;
    let after = counts(&sidecars)?;

    for (what, before, after, calls) in [
        ("HTTP/1.1", &before, &between, CONNECTIONS * CALLS),
        ("HTTP/2", &between, &after, CONNECTIONS_2 * STREAMS * ROUNDS),
    ] {
        for (sidecar, (before, after)) in sidecars.iter().zip(before.iter().zip(after)) {
            let more = |name: &str| after.value(name) - before.value(name);
            let (signatures, batches) =
                (more("signet_signatures_total"), more("signet_signature_batches_total"));
            let (hits, misses) =
                (more("signet_root_cache_hits_total"), more("signet_root_cache_misses_total"));
            let who = format!("{what}, {}", sidecar.workload());
            println!("{who}: {signatures} messages in {batches} batches; roots: {hits} known, {misses} new");
            assert_eq!(signatures, calls as f64, "{who}: messages signed");
            assert!(batches > 0.0 && batches < signatures, "{who}: {batches} batches for {signatures}");
            assert!(hits > 0.0, "{who}: each root was verified anew");
            assert_eq!(hits + misses, more("signet_verifications_total"), "{who}: every message has a root");
            assert_eq!(more("signet_unsigned_messages_total"), 0.0, "{who}");
        }
    }
    Ok(())
}

pub(super) fn counts(sidecars: &[Sidecar; 2]) -> Result<[Metrics; 2], Failure> {
    Ok([sidecars[0].metrics()?, sidecars[1].metrics()?])
}

/// All connections call in the same moment, again and again; each call is one of a kind, and so is its answer.
pub(super) fn call_over_http1(from: &Namespace, to: SocketAddr) -> TestResult {
    let connections: Result<Vec<_>, _> = (0..CONNECTIONS).map(|_| Client::open(from, to)).collect();
    let together = Arc::new(Barrier::new(CONNECTIONS));
    let threads: Vec<_> = connections?
        .into_iter()
        .enumerate()
        .map(|(number, mut connection)| {
            let together = Arc::clone(&together);
            std::thread::spawn(move || -> Vec<String> {
                let call = |call| {
                    together.wait();
                    call_once(&mut connection, number, call).err()
                };
                (0..CALLS).filter_map(call).collect()
            })
        })
        .collect();
    let wrong: Vec<String> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .collect();
    assert!(wrong.is_empty(), "{} calls went wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

fn call_once(connection: &mut Client, number: usize, call: usize) -> Result<(), String> {
    let target = format!("/api/{number}/{call}");
    let head = |method: &str| format!("{method} {target} HTTP/1.1\r\nHost: server\r\n");
    let small = format!("body {number}-{call}");
    // Without a body, under a digest, and in records.
    let (request, body) = match call % 3 {
        0 => (format!("{}\r\n", head("GET")), String::new()),
        1 => (format!("{}Content-Length: {}\r\n\r\n{small}", head("POST"), small.len()), small),
        _ => {
            let large = small.repeat(LARGE / small.len());
            let chunk = format!("{:x}\r\n{large}\r\n", large.len());
            (format!("{}Transfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n", head("POST")), large)
        }
    };
    let answer = connection.send(request).and_then(|()| connection.answer());
    let answer = answer.map_err(|error| format!("{target}: {error}"))?;
    if answer.status() == 200 && answer.body == format!("{target}: {body}").as_bytes() {
        Ok(())
    } else {
        Err(format!("{target}: {}, {} bytes", answer.start, answer.body.len()))
    }
}

pub(super) fn echo(stream: TcpStream, (): &()) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream)? {
        let target = request.start.split(' ').nth(1).unwrap_or_default();
        let body = [target.as_bytes(), b": ", &request.body].concat();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.get_mut().write_all(&[head.as_bytes(), &body].concat())?;
    }
    Ok(())
}

pub(super) fn call_over_http2(from: &Container, to: SocketAddr) -> TestResult {
    let wrong = inside(from.namespace(), move || async move {
        let mut senders = Vec::new();
        for _ in 0..CONNECTIONS_2 {
            let stream = TokioIo::new(tokio::net::TcpStream::connect(to).await?);
            let (sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.map_err(told)?;
            tokio::spawn(connection);
            senders.push(sender);
        }
        let mut wrong = Vec::new();
        for round in 0..ROUNDS {
            let mut calls = tokio::task::JoinSet::new();
            for (number, sender) in senders.iter().enumerate() {
                for stream in 0..STREAMS {
                    let (target, mut sender) = (format!("/api/{number}/{stream}/{round}"), sender.clone());
                    calls.spawn(async move {
                        let request = Request::get(format!("http://server{target}"))
                            .body(Full::new(Bytes::new()))
                            .map_err(|error| error.to_string())?;
                        let response = sender
                            .send_request(request)
                            .await
                            .map_err(|error| format!("{target}: {error}"))?;
                        let status = response.status();
                        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
                        let body = body.to_bytes();
                        if status == 200 && body == target.as_bytes() {
                            Ok(())
                        } else {
                            Err(format!("{target}: {status} {body:?}"))
                        }
                    });
                }
            }
            wrong.extend(calls.join_all().await.into_iter().filter_map(Result::err));
        }
        Ok(wrong)
    })?;
    assert!(wrong.is_empty(), "{} calls went wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

fn told(error: impl std::fmt::Display) -> IntruderError {
    IntruderError::Answer(error.to_string())
}

/// An HTTP/2 app that answers with what it was asked for; it listens until the test ends.
pub(super) fn echo_http2(at: &Container, port: u16) -> TestResult {
    let listener = at.namespace().run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))??;
    listener.set_nonblocking(true)?;
    std::thread::Builder::new().name("echo-http2".into()).spawn(move || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (tcp, _) = listener.accept().await?;
                let answer = service_fn(|request: Request<hyper::body::Incoming>| async move {
                    let target = request.uri().path().to_owned();
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(target))))
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(tcp), answer),
                );
            }
        })
    })?;
    Ok(())
}

/// A POST that only its signature and its place tell from others.
fn draft(address: SocketAddr, body: &str) -> Draft {
    Draft::new("POST", "/api/device", &address.to_string()).with_body("text/plain", body.as_bytes())
}

pub(super) fn leaf_of_a_batch_is_good_once_and_on_its_own_connection() -> TestResult {
    let front = Front::new(&[], PROTECTED)?;
    let (own, address) = (front.own.clone(), front.address);
    let before = front.receiver.metrics()?;

    let answers = inside(front.stranger.namespace(), move || async move {
        let (mut here, mut there) = (Caller::open(&own, address).await?, Caller::open(&own, address).await?);
        let mut prepared = Vec::new();
        for body in ["honest 1", "honest 2", "honest 3"] {
            prepared.push(prepare(&mut here, &draft(address, body), Form::Batch)?);
        }
        prepared.push(prepare(&mut there, &draft(address, "honest 4"), Form::Batch)?);
        let (messages, unsigned): (Vec<_>, Vec<_>) = prepared.into_iter().unzip();
        let heads = here.signer.sign_batch(unsigned)?;
        let leaves: Vec<_> =
            messages.into_iter().zip(&heads).map(|(message, head)| sealed(message, head)).collect();
        let [first, second, third, elsewhere] = &leaves[..] else { return Err(told("four leaves")) };

        let changed = |change: fn(&mut Signed)| {
            let mut message = second.clone();
            change(&mut message);
            message
        };
        // The first makes the root known to the worker. All that follows comes under this known root.
        let steps: [(&str, Signed, bool, Option<&str>); 13] = [
            ("the first leaf", first.clone(), true, None),
            ("the first leaf again", first.clone(), true, Some("replay")),
            ("a leaf of another connection", elsewhere.clone(), true, Some("replay")),
            ("a leaf of the first connection", second.clone(), false, Some("replay")),
            (
                "another path",
                changed(|message| message.start.1 = "/api/forged".into()),
                true,
                Some("bad-signature"),
            ),
            (
                "another method",
                changed(|message| message.start.0 = "PUT".into()),
                true,
                Some("bad-signature"),
            ),
            (
                "another content type",
                changed(|message| {
                    *message = message.clone().with("content-type", "text/forged");
                }),
                true,
                Some("bad-signature"),
            ),
            (
                "the signature of another leaf",
                third.clone().with("signature", &field(second, "signature")),
                true,
                Some("bad-signature"),
            ),
            // What was refused has used up nothing.
            ("the second leaf, as it was signed", second.clone(), true, None),
            ("the second leaf again", second.clone(), true, Some("replay")),
            ("another body", third.clone().with_tampered_body(), true, Some("digest-mismatch")),
            ("the leaf of the other connection there", elsewhere.clone(), false, None),
            ("and there again", elsewhere.clone(), false, Some("replay")),
        ];
        let mut answers: Vec<(String, Option<String>, Answer)> = Vec::new();
        for (what, message, on_its_own, code) in steps {
            let caller = if on_its_own { &mut here } else { &mut there };
            let answer = caller.call(&message).await.map_err(|error| told(format!("{what}: {error}")))?;
            answers.push((what.to_owned(), code.map(str::to_owned), answer));
        }
        Ok(answers)
    })?;

    let mut wrong = Vec::new();
    for (what, code, answer) in &answers {
        let right = match code {
            Some(code) => is_problem(answer, 400, code),
            None if answer.status == 200 && answer.body == ANSWER.as_bytes() => Ok(()),
            None => Err(format!("expected 200, found {answer:?}")),
        };
        wrong.extend(right.err().map(|found| format!("{what}: {found}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let requests = front.app.requests();
    assert_eq!(requests.len(), 3, "the app has seen {requests:#?}");
    assert!(!front.app.text().contains("forged"), "{}", front.app.text());
    let after = front.receiver.metrics()?;
    let hits = after.value("signet_root_cache_hits_total") - before.value("signet_root_cache_hits_total");
    assert!(hits >= 2.0, "the root was not known: {hits} hits");
    Ok(())
}

fn field(message: &Signed, name: &str) -> String {
    let value = message.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value);
    String::from_utf8_lossy(value.map(Vec::as_slice).unwrap_or_default()).into_owned()
}

/// What is changed in the bytes of a proof: version, depth, index (2), size (2), blinder (16), path, signature (64).
type Tampering = (&'static str, fn(&mut Vec<u8>), &'static [&'static str]);

const BAD: &[&str] = &["bad-signature"];
pub(super) const MALFORMED: &[&str] = &["signature-malformed"];
/// Where the documents leave the name open.
pub(super) const REFUSED: &[&str] = &["bad-signature", "signature-malformed"];

/// For index 0 of a batch of 3, whose path has two hashes.
const TAMPERINGS: &[Tampering] = &[
    ("another version", |proof| proof[0] = 2, MALFORMED),
    ("a greater depth than there is", |proof| proof[1] = 3, MALFORMED),
    ("a depth beyond every batch", |proof| proof[1] = 9, MALFORMED),
    ("the index of the leaf beside", |proof| proof[3] = 1, BAD),
    ("an index beyond the batch", |proof| proof[3] = 3, REFUSED),
    // Four leaves have the same path for the first, and the same root: only the signature tells.
    ("another size", |proof| proof[5] = 4, BAD),
    ("no size", |proof| proof[5] = 0, REFUSED),
    ("a size beyond every batch", |proof| proof[4] = 0xff, REFUSED),
    ("another blinder", |proof| proof[6] ^= 1, BAD),
    ("another first hash of the path", |proof| proof[22] ^= 1, BAD),
    ("another last hash of the path", |proof| proof[22 + 63] ^= 1, BAD),
    (
        "the path in another order",
        |proof| {
            let first: Vec<u8> = proof.drain(22..22 + 32).collect();
            proof.splice(54..54, first);
        },
        BAD,
    ),
    (
        "a path that is too short",
        |proof| {
            proof.drain(22..22 + 32);
            proof[1] = 1;
        },
        REFUSED,
    ),
    (
        "a path that is too long",
        |proof| {
            proof.splice(22..22, [7; 32]);
            proof[1] = 3;
        },
        REFUSED,
    ),
    (
        "another signature of the known root",
        |proof| {
            if let Some(last) = proof.last_mut() {
                *last ^= 1;
            }
        },
        BAD,
    ),
    ("a byte too many", |proof| proof.push(0), MALFORMED),
    ("a byte too few", |proof| proof.truncate(proof.len() - 1), MALFORMED),
    ("nothing", Vec::clear, MALFORMED),
];

pub(super) fn tampered_proof_of_a_batch_is_refused() -> TestResult {
    let front = Front::new(&[], PROTECTED)?;
    let (own, address) = (front.own.clone(), front.address);
    let answers = inside(front.stranger.namespace(), move || async move {
        let mut answers = Vec::new();
        for (what, tamper, codes) in TAMPERINGS {
            let mut caller = Caller::open(&own, address).await?;
            let mut prepared = Vec::new();
            for body in ["forged", "honest 1", "honest 2"] {
                prepared.push(prepare(&mut caller, &draft(address, body), Form::Batch)?);
            }
            let (messages, unsigned): (Vec<_>, Vec<_>) = prepared.into_iter().unzip();
            let heads = caller.signer.sign_batch(unsigned)?;
            let leaves: Vec<_> =
                messages.into_iter().zip(&heads).map(|(message, head)| sealed(message, head)).collect();
            let known = caller.call(&leaves[1]).await?;
            let value = field(&leaves[0], "signature");
            let mut proof = proof_of(&value).ok_or_else(|| told(&value))?;
            tamper(&mut proof);
            let forged =
                leaves[0].clone().with("signature", &format!("mesh=:{}:", BASE64_STANDARD.encode(proof)));
            let refused = caller.call(&forged).await.map_err(|error| told(format!("{what}: {error}")))?;
            let unharmed = caller.call(&leaves[2]).await.map_err(|error| told(format!("{what}: {error}")))?;
            answers.push((*what, *codes, known, refused, unharmed));
        }
        Ok(answers)
    })?;

    let mut wrong = Vec::new();
    for (what, codes, known, refused, unharmed) in &answers {
        let found = codes.iter().find(|code| is_problem(refused, 400, code).is_ok());
        if found.is_none() || known.status != 200 || unharmed.status != 200 {
            let (known, unharmed) = (known.status, unharmed.status);
            wrong.push(format!("{what}: not {codes:?} but {:?}; {known}, {unharmed}", refused.code()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!front.app.text().contains("forged"), "{}", front.app.text());
    Ok(())
}

fn proof_of(value: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(value.split_once("=:")?.1.strip_suffix(':')?).ok()
}

/// A caller that signs a stranger's message into its own batch gives the stranger nothing.
pub(super) fn root_that_is_known_for_one_key_is_worthless_under_another() -> TestResult {
    let front = Front::new(&[], PROTECTED)?;
    let (own, other) = (front.own.clone(), front.site.intruder(&front.stranger, "other")?);
    let address = front.address;
    let (honest, refused, right) = inside(front.stranger.namespace(), move || async move {
        let (mut signing, mut posing) =
            (Caller::open(&own, address).await?, Caller::open(&other, address).await?);
        let (one, one_unsigned) = prepare(&mut signing, &draft(address, "honest"), Form::Batch)?;
        let (two, two_unsigned) = prepare(&mut posing, &draft(address, "forged"), Form::Batch)?;
        let heads = signing.signer.sign_batch(vec![one_unsigned, two_unsigned])?;
        let honest = signing.call(&sealed(one, &heads[0])).await?;
        let refused = posing.call(&sealed(two, &heads[1])).await?;
        let (message, unsigned) = prepare(&mut posing, &draft(address, "honest too"), Form::Batch)?;
        let head = posing.signer.sign_batch(vec![unsigned])?.swap_remove(0);
        Ok((honest, refused, posing.call(&sealed(message, &head)).await?))
    })?;
    assert_eq!((honest.status, right.status), (200, 200), "{honest:?} {right:?}");
    is_problem(&refused, 400, "bad-signature")?;
    assert!(!front.app.text().contains("forged"), "{}", front.app.text());
    Ok(())
}
