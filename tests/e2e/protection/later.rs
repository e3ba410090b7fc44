//! Verification after delivery: what is gained, and what a lie comes to.

use signet_cli::lab::mesh::intruder::{Caller, Draft, inside};
use signet_cli::lab::runner::TestResult;
use signet_signature::Form;
use signet_tests::plain::get;
use signet_tests::wait_for;

use super::batches::counts;
use super::macs::many_calls;
use super::stand::{Back, Front, sign};
use crate::identity::signing;
use crate::signatures::is_problem;

const ASYNC: &str = "protection: {verify: async}";

pub(super) fn calls_verified_later_are_all_verified() -> TestResult {
    many_calls(ASYNC, |sidecars, calls| {
        let verified = wait_for("all verifications", || {
            let after = counts(sidecars).ok()?;
            let all = |name: &str| after.iter().all(|metrics| metrics.value(name) == calls);
            all("signet_verifications_total").then_some(after)
        })?;
        for (sidecar, metrics) in sidecars.iter().zip(&verified) {
            let who = sidecar.workload();
            let deferred = metrics.value("signet_deferred_verifications_total");
            println!("{who}: {deferred} of {calls} were verified after delivery");
            assert!(deferred > 0.0 && deferred <= calls, "{who}: {deferred}");
            assert_eq!(metrics.sum("signet_incidents_total", &[]), 0.0, "{who}");
            assert_eq!(metrics.sum("signet_refusals_total", &[]), 0.0, "{who}");
        }
        Ok(())
    })
}

pub(super) fn request_that_turns_out_forged_gets_no_answer_and_ends_its_connection() -> TestResult {
    for form in [Form::Single, Form::Batch] {
        let front = Front::new(&[], ASYNC)?;
        let (own, address) = (front.own.clone(), front.address);
        let outcome = inside(front.stranger.namespace(), move || async move {
            let mut caller = Caller::open(&own, address).await?;
            let draft = Draft::new("GET", "/api/honest", "server");
            let honest = sign(&mut caller, &draft, form)?;
            let answer = caller.call(&honest).await?;
            let replayed = caller.call(&honest).await?;
            let mut forged = sign(&mut caller, &draft, form)?;
            forged.start.1 = "/api/forged".into();
            let forged = caller.call(&forged).await;
            let next = sign(&mut caller, &draft, form)?;
            let next = caller.call(&next).await;
            Ok((answer, replayed, forged.map_err(|e| e.is_cut()), next.map_err(|e| e.is_cut())))
        })?;
        let (answer, replayed, forged, next) = outcome;
        assert_eq!(answer.status, 200, "{form:?}: {answer:?}");
        is_problem(&replayed, 400, "replay")?;
        match forged {
            Ok(refusal) => is_problem(&refusal, 400, "bad-signature")?,
            Err(cut) => assert!(cut, "{form:?}"),
        }
        assert_eq!(next.map(|answer| answer.status), Err(true), "{form:?}: the connection is used on");
        let metrics = wait_for("the incident", || {
            let metrics = front.receiver.metrics().ok()?;
            (metrics.sum("signet_incidents_total", &["code=\"bad-signature\""]) == 1.0).then_some(metrics)
        })?;
        assert_eq!(metrics.refusals("bad-signature"), 1, "{form:?}");
        // The app may have seen the forged one, which is what the mode costs, but nothing after it.
        let honest = front.app.requests().iter().filter(|head| head.contains("/api/honest")).count();
        assert_eq!(honest, 1, "{form:?}: {:?}", front.app.requests());
    }
    Ok(())
}

pub(super) fn answer_that_turns_out_forged_ends_its_connection_as_an_incident() -> TestResult {
    let back = Back::new(ASYNC)?;
    let impostor = back.serve(signing(&back.identity, |answer| {
        // The status is signed.
        answer.splice(..b"HTTP/1.1 200".len(), *b"HTTP/1.1 201");
    }))?;
    let answer = back.ask(&get("/api", "server"))?;
    assert_eq!(answer.status, 201, "handed on before it is verified: {answer:?}");
    let metrics = wait_for("the incident", || {
        let metrics = back.sender.metrics().ok()?;
        (metrics.sum("signet_incidents_total", &["code=\"bad-signature\""]) == 1.0).then_some(metrics)
    })?;
    assert_eq!(metrics.refusals("bad-signature"), 1);
    let opened = metrics.sum("signet_handshakes_total", &["outbound"]);
    // Nothing more goes over that connection.
    assert_eq!(back.ask(&get("/api", "server"))?.status, 201);
    let again = back.sender.metrics()?.sum("signet_handshakes_total", &["outbound"]);
    assert_eq!(again, opened + 1.0);
    assert_eq!(impostor.requests().len(), 2);
    Ok(())
}
