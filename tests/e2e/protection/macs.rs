//! Messages that are authenticated with a key of their connection, and the checkpoints that prove them afterwards.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use signet_cli::lab::mesh::intruder::{Answer, Caller, Draft, IntruderError, Signed, inside};
use signet_cli::lab::mesh::{Metrics, Sidecar};
use signet_cli::lab::runner::TestResult;
use signet_signature::checkpoint::{Checkpoint, MAX_DEBT, Moment, SentLog};
use signet_signature::record::Direction;
use signet_signature::{Form, MacKey};
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::recorder::ANSWER;
use signet_tests::{Failure, Site, id, place, wait_for};

use super::batches::{
    CALLS, CONNECTIONS, CONNECTIONS_2, HTTP2, ROUNDS, STREAMS, call_over_http1, call_over_http2, counts,
    echo, echo_http2,
};
use super::stand::{Front, HTTP, PROTECTED, prepare, sealed, sign, values};
use crate::protocols::server::serve;
use crate::signatures::is_problem;

const HMAC: &str = "protection: {mode: hmac}";
const ELSEWHERE: &str = "one of another connection";
const MISMATCH: &str = "checkpoint-mismatch";

/// Two sidecars with this protection, an app for each HTTP behind one, and many calls to both. Returns how many.
pub(super) fn many_calls(
    protection: &str,
    then: impl FnOnce(&[Sidecar; 2], f64) -> TestResult,
) -> TestResult {
    let ports = "ports: [{port: 8201, protocol: http}, {port: 9090, protocol: http2}]";
    let site = Site::new(&[
        mesh(&[protection]),
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
    call_over_http1(client.namespace(), one)?;
    call_over_http2(&client, two)?;
    then(&sidecars, (CONNECTIONS * CALLS + CONNECTIONS_2 * STREAMS * ROUNDS) as f64)
}

pub(super) fn authenticated_calls_are_all_covered_by_checkpoints_that_fit() -> TestResult {
    many_calls(HMAC, |sidecars, calls| {
        let after = counts(sidecars)?;
        for (sidecar, metrics) in sidecars.iter().zip(&after) {
            let who = sidecar.workload();
            let (macs, signatures) =
                (metrics.value("signet_macs_total"), metrics.value("signet_signatures_total"));
            println!("{who}: {macs} codes, {signatures} signatures");
            // While too much waits for a checkpoint, messages are signed instead.
            assert!(macs > 0.0 && macs + signatures >= calls, "{who}: {macs} codes, {signatures} signatures");
            assert_eq!(metrics.sum("signet_incidents_total", &[]), 0.0, "{who}");
            assert_eq!(metrics.sum("signet_refusals_total", &[]), 0.0, "{who}");
        }
        // On connections that nobody uses any more, the last messages are covered too.
        let quiet = wait_for("checkpoints over everything", || {
            let [server, client] = counts(sidecars).ok()?;
            let covered = |by: &Metrics, of: &Metrics| {
                by.value("signet_macs_covered_total") == of.value("signet_macs_total")
            };
            (covered(&server, &client) && covered(&client, &server)).then_some([server, client])
        })?;
        for (sidecar, metrics) in sidecars.iter().zip(&quiet) {
            let who = sidecar.workload();
            let (signed, verified) = (
                metrics.value("signet_checkpoints_signed_total"),
                metrics.value("signet_checkpoints_verified_total"),
            );
            println!("{who}: {signed} checkpoints signed, {verified} verified");
            assert!(signed > 0.0 && signed == verified, "{who}: {signed} signed, {verified} verified");
            assert_eq!(metrics.sum("signet_incidents_total", &[]), 0.0, "{who}");
        }
        Ok(())
    })
}

fn draft(body: &str) -> Draft {
    Draft::new("POST", "/api/device", "server").with_body("text/plain", body.as_bytes())
}

fn told(error: impl std::fmt::Display) -> IntruderError {
    IntruderError::Answer(error.to_string())
}

/// A request authenticated for the next place on its connection, and what goes into the log of it.
fn authenticated(
    caller: &mut Caller,
    key: [u8; 32],
    body: &str,
) -> Result<(Signed, u64, Vec<u8>), IntruderError> {
    let seq = caller.sequence;
    let (message, unsigned) = prepare(caller, &draft(body), Form::Mac)?;
    let head = caller.signer.sign_mac(unsigned, &MacKey::new(&key))?;
    Ok((sealed(message, &head), seq, head.base))
}

pub(super) fn code_that_was_not_agreed_on_or_is_not_of_its_place_is_refused() -> TestResult {
    for (protection, agreed) in [(PROTECTED, false), ("protection: {mode: ed25519}", false), (HMAC, true)] {
        let front = Front::new(&[], protection)?;
        let (own, address) = (front.own.clone(), front.address);
        let answers = inside(front.stranger.namespace(), move || async move {
            let (mut here, mut there) =
                (Caller::open(&own, address).await?, Caller::open(&own, address).await?);
            let mut answers = Vec::new();
            let (c2s, s2c, others) = (here.keys[0], here.keys[1], there.keys[0]);
            let honest = authenticated(&mut here, c2s, "honest 1")?.0;
            answers.push(("the honest one", None, here.call(&honest).await?));
            answers.push(("it again", Some("replay"), here.call(&honest).await?));
            for (what, key) in [
                ("key of the other direction", s2c),
                ("key of another connection", others),
                ("no key", [0; 32]),
            ] {
                let forged = authenticated(&mut here, key, "forged")?.0;
                answers.push((what, Some("bad-signature"), here.call(&forged).await?));
            }
            let public = *here.signer.public_key();
            let confused = authenticated(&mut here, public, "forged")?.0;
            answers.push(("the public key", Some("bad-signature"), here.call(&confused).await?));
            let elsewhere = authenticated(&mut there, others, "forged")?.0;
            answers.push((ELSEWHERE, Some("replay"), here.call(&elsewhere).await?));
            let mut moved = authenticated(&mut here, c2s, "forged")?.0;
            moved.start.1 = "/api/forged".into();
            answers.push(("another path", Some("bad-signature"), here.call(&moved).await?));
            let spoiled = authenticated(&mut here, c2s, "forged")?.0.with_tampered_body();
            answers.push(("another body", Some("digest-mismatch"), here.call(&spoiled).await?));
            let signed = sign(&mut here, &draft("honest 2"), Form::Single)?;
            let last = here.call(&signed).await?;
            Ok((answers, last))
        })?;
        let (answers, signed) = answers;
        let mut wrong = Vec::new();
        for (what, code, answer) in &answers {
            let code = if agreed { *code } else { Some("signature-mode") };
            let right = match code {
                Some(code) => is_problem(answer, 400, code),
                None if answer.status == 200 && answer.body == ANSWER.as_bytes() => {
                    tag(answer, "mesh-rsp-m-v1")
                }
                None => Err(format!("expected 200, found {answer:?}")),
            };
            // What a sidecar refuses it signs, unless the request was made for another connection.
            let right = right.and_then(|()| match code {
                Some(_) if *what != ELSEWHERE => tag(answer, "mesh-rsp-v1"),
                _ => Ok(()),
            });
            wrong.extend(right.err().map(|found| format!("{protection}, {what}: {found}")));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert_eq!(signed.status, 200, "who signs is always heard: {signed:?}");
        tag(&signed, "mesh-rsp-v1")?;
        assert!(!front.app.text().contains("forged"), "{}", front.app.text());
        assert_eq!(front.app.requests().len(), if agreed { 2 } else { 1 });
    }
    Ok(())
}

fn tag(answer: &Answer, tag: &str) -> Result<(), String> {
    let inputs = values(answer, "signature-input");
    let right = inputs.len() == 1 && inputs[0].ends_with(&format!(";tag=\"{tag}\""));
    if right { Ok(()) } else { Err(format!("not {tag}: {inputs:?}")) }
}

/// The caller's log of one connection.
struct Log(SentLog, Moment);

impl Log {
    fn new(caller: &Caller) -> Self {
        let log = SentLog::new(id("caller").as_str(), &caller.channel, Direction::ClientToServer);
        Self(log, Moment { at: Duration::ZERO, turn: 0 })
    }

    async fn call(&mut self, caller: &mut Caller, body: &str) -> Result<Answer, IntruderError> {
        let key = caller.keys[0];
        let (message, seq, base) = authenticated(caller, key, body)?;
        let answer = caller.call(&message).await?;
        if answer.status == 200 {
            self.0.append(seq, &base, self.1);
        }
        Ok(answer)
    }

    async fn settle(
        &mut self,
        caller: &mut Caller,
        change: fn(&mut Checkpoint),
    ) -> Result<Answer, IntruderError> {
        let mut checkpoint = self.0.seal(&caller.signer)?;
        change(&mut checkpoint);
        let note = format!(":{}:", BASE64_STANDARD.encode(&checkpoint.note));
        let draft = Draft::new("OPTIONS", "*", "mesh").with_header("mesh-checkpoint", &note);
        let draft = if checkpoint.entries.is_empty() {
            draft
        } else {
            draft.with_body("application/octet-stream", &checkpoint.entries)
        };
        let message = caller.sign(&draft)?;
        caller.call(&message).await
    }
}

fn note(answer: &Answer) -> Result<String, Failure> {
    let value = values(answer, "mesh-checkpoint").pop().ok_or("no checkpoint in the answer")?;
    Ok(String::from_utf8(BASE64_STANDARD.decode(value.trim_matches(':'))?)?)
}

pub(super) fn checkpoint_is_answered_with_one_and_reaches_no_app() -> TestResult {
    let front = Front::new(&[], HMAC)?;
    let (own, address) = (front.own.clone(), front.address);
    let (channel, answers) = inside(front.stranger.namespace(), move || async move {
        let mut caller = Caller::open(&own, address).await?;
        let mut log = Log::new(&caller);
        let unasked = log.settle(&mut caller, |_| {}).await?;
        for body in ["one", "two", "three"] {
            let answer = log.call(&mut caller, body).await?;
            if answer.status != 200 {
                return Err(told(format!("{answer:?}")));
            }
        }
        let first = log.settle(&mut caller, |_| {}).await?;
        log.call(&mut caller, "four").await?;
        let second = log.settle(&mut caller, |_| {}).await?;
        Ok((caller.channel, [unasked, first, second]))
    })?;
    let [unasked, first, second] = answers;
    is_problem(&unasked, 400, "signature-mode")?;
    for (answer, size) in [(&first, 3), (&second, 4)] {
        assert_eq!(answer.status, 200, "{answer:?}");
        let note = note(answer)?;
        assert!(note.starts_with(&format!("mesh/{}/{channel}/s2c\n{size}\n", id("server"))), "{note}");
        assert_eq!(values(answer, "mesh-origin"), ["sidecar"]);
    }
    assert!(!front.app.text().contains("OPTIONS"), "{}", front.app.text());
    let metrics = front.receiver.metrics()?;
    assert_eq!(metrics.value("signet_checkpoints_verified_total"), 2.0);
    Ok(())
}

/// What is changed in a checkpoint, and how.
type Lie = (&'static str, fn(&mut Checkpoint));

pub(super) fn checkpoint_that_does_not_fit_ends_the_connection_as_an_incident() -> TestResult {
    let front = Front::new(&[], HMAC)?;
    let lies: [Lie; 3] = [
        ("an entry left out", |checkpoint| checkpoint.entries.truncate(40)),
        ("another size", |checkpoint| checkpoint.note = checkpoint.note.replacen("\n2\n", "\n3\n", 1)),
        ("another signature", |checkpoint| checkpoint.note = checkpoint.note.replace("=\n", "A=\n")),
    ];
    for (number, (what, lie)) in lies.into_iter().enumerate() {
        let (own, address) = (front.own.clone(), front.address);
        let outcome = inside(front.stranger.namespace(), move || async move {
            let mut caller = Caller::open(&own, address).await?;
            let mut log = Log::new(&caller);
            log.call(&mut caller, "one").await?;
            log.call(&mut caller, "two").await?;
            let answer = log.settle(&mut caller, lie).await;
            let next = log.call(&mut caller, "forged").await;
            Ok((answer.map_err(|error| error.is_cut()), next.map_err(|error| error.is_cut())))
        })?;
        let (answer, next) = outcome;
        match answer {
            Ok(refusal) => is_problem(&refusal, 400, MISMATCH)?,
            Err(cut) => assert!(cut, "{what}"),
        }
        assert_eq!(next.map(|answer| answer.status), Err(true), "{what}: the connection is used on");
        let metrics = front.receiver.metrics()?;
        let code = format!("code=\"{MISMATCH}\"");
        assert_eq!(metrics.sum("signet_incidents_total", &[&code]), (number + 1) as f64, "{what}");
        assert_eq!(metrics.refusals(MISMATCH), number as u64 + 1, "{what}");
    }
    assert!(!front.app.text().contains("forged"), "{}", front.app.text());
    Ok(())
}

pub(super) fn who_owes_checkpoints_is_not_heard_until_they_come() -> TestResult {
    let front = Front::new(&[], HMAC)?;
    let (own, address) = (front.own.clone(), front.address);
    let (taken, refused, signed, settled, again) = inside(front.stranger.namespace(), move || async move {
        let mut caller = Caller::open(&own, address).await?;
        let mut log = Log::new(&caller);
        let mut taken = 0;
        let refused = loop {
            let answer = log.call(&mut caller, "owed").await?;
            if answer.status != 200 || taken > MAX_DEBT {
                break answer;
            }
            taken += 1;
        };
        let signed = sign(&mut caller, &draft("signed"), Form::Single)?;
        let signed = caller.call(&signed).await?;
        let mut settled = Vec::new();
        while !log.0.is_settled() {
            settled.push(log.settle(&mut caller, |_| {}).await?.status);
        }
        let again = log.call(&mut caller, "again").await?;
        Ok((taken, refused, signed, settled, again))
    })?;
    println!("{taken} messages were taken without a checkpoint, {} checkpoints settled them", settled.len());
    assert!((1..=MAX_DEBT).contains(&taken), "{taken} were taken");
    is_problem(&refused, 503, "checkpoint-overdue")?;
    assert_eq!(signed.status, 200, "a signature owes nothing: {signed:?}");
    assert!(settled.iter().all(|status| *status == 200), "{settled:?}");
    assert_eq!(again.status, 200, "{again:?}");
    assert_eq!(front.receiver.metrics()?.sum("signet_incidents_total", &[]), 0.0);
    Ok(())
}
