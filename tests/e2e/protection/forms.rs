//! One signature for each message, or one for many: who chooses, and that neither passes for the other.

use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use signet_cli::lab::mesh::intruder::{Caller, Draft, IntruderError, Signed, inside, now};
use signet_cli::lab::runner::TestResult;
use signet_identity::verify_signing_chain;
use signet_signature::batch::sign_batch;
use signet_signature::{Form, MacKey, ResponseView, Rules, VerifiedKey, verify_response};
use signet_tests::manifest::mesh;
use signet_tests::plain::get;
use signet_tests::{id, wait_for};

use super::batches::{MALFORMED, REFUSED};
use super::stand::{Back, Front, PROTECTED, prepare, server, sign, values};
use crate::identity::signing;
use crate::signatures::{fields, introduced, is_problem, view};

/// The form of a message by its `Signature-Input`, which is what it has to be in every point.
fn form_of(input: &str, direction: &str) -> Form {
    let has = |text: &str| input.contains(text);
    let batch = has(&format!(";tag=\"mesh-{direction}-b-v1\""));
    let single = has(&format!(";tag=\"mesh-{direction}-v1\""));
    assert!(batch != single, "neither form, or both: {input}");
    assert_eq!(has(";alg=\"ed25519\""), single, "{input}");
    assert_eq!(has("alg"), single, "{input}");
    if batch { Form::Batch } else { Form::Single }
}

pub(super) fn policy_chooses_the_form_of_requests() -> TestResult {
    let back = Back::new(PROTECTED)?;
    let impostor = back.serve(signing(&back.identity, |_| {}))?;
    let form = || -> Option<Form> {
        let answer = back.ask(&get("/api", "server")).ok()?;
        assert_eq!(answer.status, 200, "whatever the form: {answer:?}");
        Some(form_of(&impostor.requests().pop()?, "req"))
    };
    assert_eq!(form(), Some(Form::Batch), "by default");

    back.site.mesh.apply("mesh.yaml", &mesh(&["protection: {mode: ed25519}"]))?;
    wait_for("requests with signatures of their own", || form().filter(|form| *form == Form::Single))?;
    let before = back.sender.metrics()?;
    assert_eq!(form(), Some(Form::Single));
    let more = |name: &str| {
        Ok::<_, Box<dyn std::error::Error>>(back.sender.metrics()?.value(name) - before.value(name))
    };
    assert_eq!(more("signet_signatures_total")?, 1.0);
    assert_eq!(more("signet_signature_batches_total")?, 0.0);

    back.site.mesh.apply("server.yaml", &server("protection: {mode: ed25519-batch}"))?;
    wait_for("requests in batches for this workload", || form().filter(|form| *form == Form::Batch))?;
    Ok(())
}

pub(super) fn answer_has_the_form_of_its_request() -> TestResult {
    for of_the_mesh in ["protection: {mode: ed25519-batch}", "protection: {mode: ed25519}"] {
        let front = Front::new(&[of_the_mesh], PROTECTED)?;
        let (own, bundle, address) = (front.own.clone(), front.own.bundle.clone(), front.address);
        let calls = inside(front.stranger.namespace(), move || async move {
            let mut caller = Caller::open(&own, address).await?;
            let mut calls = Vec::new();
            for form in [Form::Batch, Form::Single, Form::Batch, Form::Single] {
                let draft = Draft::new("POST", "/api/device", &address.to_string())
                    .with_body("text/plain", b"honest 1");
                let nonce = caller.channel.nonce(caller.sequence);
                let signed = sign(&mut caller, &draft, form)?;
                let answer = caller.call(&signed).await?;
                let spoiled = sign(&mut caller, &draft, form)?.with_tampered_body();
                let refused = caller.call(&spoiled).await?;
                calls.push((form, draft, signed, nonce, answer, refused));
            }
            Ok(calls)
        })?;
        for (form, draft, signed, nonce, answer, refused) in &calls {
            let what = format!("{of_the_mesh}, {form:?}");
            assert_eq!(answer.status, 200, "{what}: {answer:?}");
            is_problem(refused, 400, "digest-mismatch")?;
            for answer in [answer, refused] {
                let inputs = values(answer, "signature-input");
                assert_eq!(inputs.len(), 1, "{what}: {answer:?}");
                assert_eq!(form_of(&inputs[0], "rsp"), *form, "{what}: {answer:?}");
            }
            let chain = introduced(answer).ok_or("the answer introduces its key")?;
            let signer = verify_signing_chain(&bundle, &chain, SystemTime::now())?;
            let key =
                VerifiedKey { spiffe_id: signer.id().as_str().into(), public_key: *signer.public_key() };
            let (asked, answered) = (fields(&signed.headers), fields(&answer.headers));
            let request = Some(view(draft, &asked));
            let response = ResponseView { status: 200, headers: &answered, trailers: None, request };
            let server = id("server");
            let rules = Rules::new(server.as_str(), now(), 30);
            let verified = verify_response(&response, nonce, |_| Some(key), rules);
            let body = verified.map_err(|error| error.code())?.verify_body(&answer.body);
            assert!(body.is_ok(), "{what}: {answer:?}");
        }
    }
    Ok(())
}

/// A request prepared as one form, with one thing changed in what is signed, and sealed as the same or another form.
struct Mixture {
    what: &'static str,
    prepared: Form,
    change: (&'static str, &'static str),
    sealed: Form,
    codes: &'static [&'static str],
}

const MIXTURES: &[Mixture] = &[
    Mixture {
        what: "a batch that names an algorithm",
        prepared: Form::Batch,
        change: (";keyid=", ";alg=\"ed25519\";keyid="),
        sealed: Form::Batch,
        codes: REFUSED,
    },
    Mixture {
        what: "a signature of its own that names none",
        prepared: Form::Single,
        change: (";alg=\"ed25519\"", ""),
        sealed: Form::Single,
        codes: REFUSED,
    },
    Mixture {
        what: "a signature of its own under the tag of a batch",
        prepared: Form::Batch,
        change: ("", ""),
        sealed: Form::Single,
        codes: MALFORMED,
    },
    Mixture {
        what: "a batch under the tag of a signature of its own",
        prepared: Form::Single,
        change: ("", ""),
        sealed: Form::Batch,
        codes: MALFORMED,
    },
    Mixture {
        what: "a code of the connection under the tag of a signature",
        prepared: Form::Single,
        change: ("", ""),
        sealed: Form::Mac,
        codes: MALFORMED,
    },
    Mixture {
        what: "a code of the connection where signatures are wanted",
        prepared: Form::Mac,
        change: ("", ""),
        sealed: Form::Mac,
        codes: &["signature-mode"],
    },
    Mixture {
        what: "a signature under the tag of a code",
        prepared: Form::Mac,
        change: ("hmac-sha256", "ed25519"),
        sealed: Form::Single,
        codes: &["signature-mode"],
    },
    Mixture {
        what: "a batch of answers",
        prepared: Form::Batch,
        change: ("mesh-req-b-v1", "mesh-rsp-b-v1"),
        sealed: Form::Batch,
        codes: &["signature-missing"],
    },
    Mixture {
        what: "a batch of a later version",
        prepared: Form::Batch,
        change: ("mesh-req-b-v1", "mesh-req-b-v2"),
        sealed: Form::Batch,
        codes: &["signature-missing"],
    },
];

pub(super) fn form_and_tag_and_algorithm_must_agree() -> TestResult {
    let front = Front::new(&[], PROTECTED)?;
    let (own, address) = (front.own.clone(), front.address);
    let (answers, both) = inside(front.stranger.namespace(), move || async move {
        let draft = Draft::new("GET", "/api/forged", &address.to_string());
        let mut answers = Vec::new();
        for mixture in MIXTURES {
            let mut caller = Caller::open(&own, address).await?;
            let message = mix(&mut caller, &draft, mixture)?;
            answers.push((mixture, caller.call(&message).await?));
        }
        // Each of the two is valid.
        let mut caller = Caller::open(&own, address).await?;
        let mut message = sign(&mut caller, &draft, Form::Batch)?;
        for (name, value) in sign(&mut caller, &draft, Form::Single)?.headers {
            if name.starts_with("signature") {
                let value = String::from_utf8_lossy(&value).replacen("mesh=", "two=", 1);
                message.headers.push((name, value.into()));
            }
        }
        Ok((answers, caller.call(&message).await?))
    })?;
    let mut wrong = Vec::new();
    for (mixture, answer) in &answers {
        if !mixture.codes.iter().any(|code| is_problem(answer, 400, code).is_ok()) {
            wrong.push(format!("{}: not {:?} but {answer:?}", mixture.what, mixture.codes));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    is_problem(&both, 400, "signature-missing")?;
    assert!(front.app.requests().is_empty(), "the app has seen {:?}", front.app.requests());
    Ok(())
}

fn mix(caller: &mut Caller, draft: &Draft, mixture: &Mixture) -> Result<Signed, IntruderError> {
    let (message, unsigned) = prepare(caller, draft, mixture.prepared)?;
    let base = String::from_utf8_lossy(unsigned.base()).into_owned();
    let base =
        if mixture.change.0.is_empty() { base } else { base.replace(mixture.change.0, mixture.change.1) };
    let input = base.rsplit("\"@signature-params\": ").next().unwrap_or_default();
    let value = match mixture.sealed {
        Form::Batch => sign_batch(&[base.as_bytes()], |root| caller.signer.sign(root).ok())
            .map_err(|error| IntruderError::Message(error.to_string()))?
            .swap_remove(0),
        Form::Mac => MacKey::new(&caller.keys[0]).sign(base.as_bytes()).to_vec(),
        Form::Single => caller.signer.sign(base.as_bytes())?.to_vec(),
    };
    Ok(message
        .with("signature-input", &format!("mesh={input}"))
        .with("signature", &format!("mesh=:{}:", BASE64_STANDARD.encode(value))))
}
