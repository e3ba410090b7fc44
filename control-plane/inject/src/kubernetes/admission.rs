//! Admission reviews (`admission.k8s.io/v1`): a pod that is about to be made, in; what is to be done to it, out.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::Options;
use super::patch::patch;
use super::pod::{Owner, inject_pod};

/// Longest uid that is repeated in an answer; Kubernetes makes UUIDs.
const UID_MAX: usize = 128;
/// Longest warning, in characters, that `kubectl` shows whole, and most of them.
const WARNING_CHARS: usize = 256;
const WARNINGS_MAX: usize = 16;

/// What became of a review.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// The answer, an AdmissionReview.
    pub answer: Value,
    /// A stable word for metrics: `injected`, `unchanged` or `refused`.
    pub outcome: &'static str,
    /// The pod, for logs: its namespace and name as far as they are known.
    pub about: String,
}

/// Why a review cannot even be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReviewError {
    /// It is no JSON.
    #[error("the body is no JSON; fix: post an AdmissionReview")]
    Json,
    /// It is something else, or of another version.
    #[error("this is no AdmissionReview of admission.k8s.io/v1; fix: `admissionReviewVersions: [v1]`")]
    Kind,
    /// It has no request, or the request no uid.
    #[error("the review has no request with a uid of 1 to {UID_MAX} characters")]
    Uid,
}

/// Judges a review. Pods of the `spared` namespaces are let in as they are.
///
/// # Errors
/// [`ReviewError`] when there is nobody to answer. A pod that cannot have a sidecar is refused by an answer.
pub fn admit(body: &[u8], spared: &[String], options: &Options) -> Result<Admission, ReviewError> {
    let review: Value = serde_json::from_slice(body).map_err(|_| ReviewError::Json)?;
    if review["apiVersion"] != "admission.k8s.io/v1" || review["kind"] != "AdmissionReview" {
        return Err(ReviewError::Kind);
    }
    let request = &review["request"];
    let uid =
        request["uid"].as_str().filter(|uid| (1..=UID_MAX).contains(&uid.len())).ok_or(ReviewError::Uid)?;
    let verdict = judge(request, spared, options);
    let namespace = request["namespace"].as_str().unwrap_or_default();
    let pod = &request["object"]["metadata"];
    let name = pod["name"].as_str().or_else(|| pod["generateName"].as_str()).unwrap_or_default();
    let about = format!("{namespace}/{name}").escape_debug().take(UID_MAX).collect();
    let mut response = Map::new();
    response.insert("uid".to_owned(), uid.into());
    response.insert("allowed".to_owned(), (!matches!(verdict, Verdict::Refused { .. })).into());
    let outcome = match verdict {
        Verdict::Injected { operations, warnings } => {
            let text = Value::from(operations).to_string();
            response.insert("patchType".to_owned(), "JSONPatch".into());
            response.insert("patch".to_owned(), BASE64_STANDARD.encode(text).into());
            warn(&mut response, warnings);
            "injected"
        }
        Verdict::Refused { code, message } => {
            let status =
                json!({ "status": "Failure", "message": message, "reason": reason(code), "code": code });
            response.insert("status".to_owned(), status);
            "refused"
        }
        Verdict::Unchanged { warnings } => {
            warn(&mut response, warnings);
            "unchanged"
        }
    };
    let answer =
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response });
    Ok(Admission { answer, outcome, about })
}

enum Verdict {
    Injected { operations: Vec<Value>, warnings: Vec<String> },
    Refused { code: u16, message: String },
    Unchanged { warnings: Vec<String> },
}

fn judge(request: &Value, spared: &[String], options: &Options) -> Verdict {
    let resource = &request["resource"];
    let is_pod = resource["group"] == "" && resource["resource"] == "pods" && resource["version"] == "v1";
    let is_whole = request["subResource"].as_str().unwrap_or_default().is_empty();
    if !is_pod || !is_whole || request["operation"] != "CREATE" {
        let warnings = vec!["signet: only new pods get sidecars; this was let in as it is".to_owned()];
        return Verdict::Unchanged { warnings };
    }
    let Some(namespace) = request["namespace"].as_str().filter(|namespace| !namespace.is_empty()) else {
        return Verdict::Refused { code: 400, message: "signet: the review names no namespace".to_owned() };
    };
    if spared.iter().any(|other| other == namespace) {
        return Verdict::Unchanged { warnings: Vec::new() };
    }
    let before = &request["object"];
    if !before.is_object() {
        return Verdict::Refused { code: 400, message: "signet: the review has no object".to_owned() };
    }
    let mut after = before.clone();
    let (kind, name) = owner(before);
    match inject_pod(&mut after, Owner { kind: &kind, name: &name }, options) {
        Err(error) => Verdict::Refused { code: 422, message: format!("signet: {error}") },
        Ok(outcome) => {
            let warnings = outcome.findings.iter().map(|finding| format!("signet: {finding}")).collect();
            if outcome.changed {
                Verdict::Injected { operations: patch(before, &after), warnings }
            } else {
                Verdict::Unchanged { warnings }
            }
        }
    }
}

const fn reason(code: u16) -> &'static str {
    if code == 400 { "BadRequest" } else { "Invalid" }
}

fn warn(response: &mut Map<String, Value>, warnings: Vec<String>) {
    if !warnings.is_empty() {
        let cut =
            warnings.iter().take(WARNINGS_MAX).map(|warning| warning.chars().take(WARNING_CHARS).collect());
        response.insert(
            "warnings".to_owned(),
            cut.map(|warning: String| Value::from(warning)).collect::<Vec<_>>().into(),
        );
    }
}

/// Whose pod it is, by the names that controllers give: what people wrote is the owner's owner.
fn owner(pod: &Value) -> (String, String) {
    let metadata = &pod["metadata"];
    let owners = metadata["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let controller = owners.iter().find(|owner| owner["controller"] == true).or_else(|| owners.first());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let Some(controller) = controller else {
        let name = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str());
        return ("Pod".to_owned(), name.unwrap_or_default().trim_end_matches('-').to_owned());
    };
    let (kind, name) = (text(&controller["kind"]), text(&controller["name"]));
    match kind.as_str() {
        "ReplicaSet" => {
            let hash = metadata["labels"]["pod-template-hash"].as_str().unwrap_or_default();
            let stem =
                name.strip_suffix(hash).filter(|_| !hash.is_empty()).and_then(|rest| rest.strip_suffix('-'));
            match stem {
                Some(stem) => ("Deployment".to_owned(), stem.to_owned()),
                None => (kind, name),
            }
        }
        "Job" => match name.rsplit_once('-') {
            // The minutes since 1970 for which a CronJob started it.
            Some((stem, minutes))
                if minutes.len() >= 8 && minutes.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                ("CronJob".to_owned(), stem.to_owned())
            }
            _ => (kind, name),
        },
        _ => (kind, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_the_object_that_people_wrote() {
        let pod = |kind: &str, name: &str| {
            json!({
                "metadata": {
                    "generateName": "x-",
                    "labels": { "pod-template-hash": "7d9f8b6c5" },
                    "ownerReferences": [{ "kind": kind, "name": name, "controller": true }],
                },
            })
        };
        let of = |pod: &Value| owner(pod);
        let is = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
        assert_eq!(of(&pod("ReplicaSet", "cart-7d9f8b6c5")), is("Deployment", "cart"));
        assert_eq!(of(&pod("ReplicaSet", "by-hand")), is("ReplicaSet", "by-hand"));
        assert_eq!(of(&pod("Job", "report-29012345")), is("CronJob", "report"));
        assert_eq!(of(&pod("Job", "report-2026")), is("Job", "report-2026"));
        assert_eq!(of(&pod("StatefulSet", "db")), is("StatefulSet", "db"));
        assert_eq!(of(&json!({ "metadata": { "name": "alone" } })), is("Pod", "alone"));
        assert_eq!(of(&json!({ "metadata": { "generateName": "tmp-" } })), is("Pod", "tmp"));
        assert_eq!(of(&json!(7)), is("Pod", ""));
    }

    #[test]
    fn what_is_no_review_is_not_answered() {
        let admit = |body: &[u8]| admit(body, &[], &Options::default()).unwrap_err();
        assert_eq!(admit(b"{"), ReviewError::Json);
        assert_eq!(admit(b"[]"), ReviewError::Kind);
        assert_eq!(
            admit(br#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}"#),
            ReviewError::Kind
        );
        assert_eq!(
            admit(br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#),
            ReviewError::Uid
        );
        let long = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": { "uid": "u".repeat(UID_MAX + 1) },
        });
        assert_eq!(admit(long.to_string().as_bytes()), ReviewError::Uid);
    }

    proptest::proptest! {
        #[test]
        fn no_request_makes_it_panic(object in proptest::arbitrary::any::<Vec<(String, i64)>>(), cut in 0_usize..400) {
            let fields: Map<String, Value> = object.into_iter().map(|(name, value)| (name, value.into())).collect();
            let review = json!({
                "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                "request": {
                    "uid": "u", "operation": "CREATE", "namespace": "n",
                    "resource": { "group": "", "version": "v1", "resource": "pods" },
                    "object": { "metadata": fields, "spec": { "containers": [fields] } },
                },
            });
            let text = review.to_string();
            let answered = admit(text.as_bytes(), &[], &Options::default()).unwrap();
            proptest::prop_assert_eq!(&answered.answer["response"]["uid"], "u");
            let _ = admit(&text.as_bytes()[..cut.min(text.len())], &[], &Options::default());
        }
    }
}
