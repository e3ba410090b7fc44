//! The gRPC service: who asks for what, and which answer that is.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use prost_types::value::Kind;
use serde_json::Value;
use signet_identity::MAX_AUDIENCE_BYTES;
use signet_sync::MAX_AUDIENCES;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::clock;
use crate::worker::Shared;
use crate::workload_api::SECURITY_HEADER;
use crate::workload_api::ask::{AskError, Asker};
use crate::workload_api::offer::{Offer, none_offered};
use crate::workload_api::proto::{self, spiffe_workload_api_server::SpiffeWorkloadApi};
use crate::workload_api::tokens::{TokenError, Tokens, verify};

/// Answers that follow each other, one for each change.
type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub(super) struct Service {
    offer: watch::Receiver<Offer>,
    asker: Asker,
    tokens: Tokens,
    shared: Arc<Shared>,
}

impl Service {
    pub(super) fn new(offer: watch::Receiver<Offer>, asker: Asker, shared: Arc<Shared>) -> Self {
        Self { offer, asker, tokens: Tokens::default(), shared }
    }

    /// Counts how a request ended, or a stream began.
    fn counted<T>(&self, method: &'static str, answer: Result<T, Status>) -> Result<Response<T>, Status> {
        let outcome = match &answer {
            Ok(_) => "ok",
            Err(status) => match status.code() {
                tonic::Code::InvalidArgument => "invalid",
                tonic::Code::PermissionDenied => "denied",
                _ => "unavailable",
            },
        };
        self.shared.metrics.workload_api_request(method, outcome);
        answer.map(Response::new)
    }

    /// What `make` makes of each offer, whenever that is another answer than the last one. It ends with the first refusal.
    fn updates<T: PartialEq + Clone + Send + 'static>(
        &self,
        make: fn(&Offer) -> Result<Option<T>, Status>,
    ) -> Result<Updates<T>, Status> {
        // What is refused now is refused as the call's answer.
        make(&self.offer.borrow())?;
        let state = Some((self.offer.clone(), None::<T>));
        Ok(Box::pin(stream::unfold(state, move |state| async move {
            let (mut offer, last) = state?;
            loop {
                let made = make(&offer.borrow_and_update());
                match made {
                    Err(status) => return Some((Err(status), None)),
                    Ok(Some(answer)) if Some(&answer) != last.as_ref() => {
                        return Some((Ok(answer.clone()), Some((offer, Some(answer)))));
                    }
                    Ok(_) => {}
                }
                // The keeper is gone with the process only.
                offer.changed().await.ok()?;
            }
        })))
    }

    async fn jwt_svid(&self, request: proto::JwtsvidRequest) -> Result<proto::JwtsvidResponse, Status> {
        let proto::JwtsvidRequest { audience, spiffe_id } = request;
        let is_audience = |text: &String| (1..=MAX_AUDIENCE_BYTES).contains(&text.len());
        if !(1..=MAX_AUDIENCES).contains(&audience.len()) || !audience.iter().all(is_audience) {
            let message =
                format!("name one to {MAX_AUDIENCES} audiences of at most {MAX_AUDIENCE_BYTES} bytes");
            return Err(Status::invalid_argument(message));
        }
        let offer = self.offer.borrow().clone();
        let (id, policy) = offer.granted()?;
        if policy.jwt.is_none() {
            return Err(none_offered("JWT-SVIDs"));
        }
        if !spiffe_id.is_empty() && spiffe_id != id.as_str() {
            return Err(Status::permission_denied(format!("this workload is {id} and nobody else")));
        }
        if let Some(refused) = policy.refused_audience(&audience) {
            return Err(none_offered(&format!("a JWT-SVID for {refused:?}")));
        }
        let svid = self.tokens.get(&self.asker, &offer, id, &audience).await.map_err(|error| {
            tracing::warn!(%error, "no JWT-SVID for the application");
            match error {
                TokenError::Ask(AskError::Refused(reason)) => Status::permission_denied(reason),
                error => Status::unavailable(error.to_string()),
            }
        })?;
        let svid = proto::Jwtsvid { spiffe_id: id.to_string(), svid, hint: String::new() };
        Ok(proto::JwtsvidResponse { svids: vec![svid] })
    }

    fn validated(
        &self,
        request: &proto::ValidateJwtsvidRequest,
    ) -> Result<proto::ValidateJwtsvidResponse, Status> {
        if request.audience.is_empty() || request.svid.is_empty() {
            return Err(Status::invalid_argument("name the audience, and give a token"));
        }
        let offer = self.offer.borrow().clone();
        let (_, policy) = offer.granted()?;
        if policy.jwt.is_none() {
            return Err(none_offered("the verification of JWT-SVIDs"));
        }
        let claims = verify(&offer, &request.svid, &request.audience, clock::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let fields = claims.all.into_iter().map(|(name, value)| (name, wire_value(value))).collect();
        let claims = prost_types::Struct { fields };
        Ok(proto::ValidateJwtsvidResponse { spiffe_id: claims_id(&claims), claims: Some(claims) })
    }
}

/// The subject, as it stands among the claims.
fn claims_id(claims: &prost_types::Struct) -> String {
    match claims.fields.get("sub").and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(subject)) => subject.clone(),
        _ => String::new(),
    }
}

/// JSON as protobuf writes it. Its depth is bounded by the parser's.
fn wire_value(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(bool) => Kind::BoolValue(bool),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => {
            let values = values.into_iter().map(wire_value).collect();
            Kind::ListValue(prost_types::ListValue { values })
        }
        Value::Object(members) => {
            let fields: BTreeMap<_, _> =
                members.into_iter().map(|(name, value)| (name, wire_value(value))).collect();
            Kind::StructValue(prost_types::Struct { fields })
        }
    };
    prost_types::Value { kind: Some(kind) }
}

/// Every request says that it is meant for this.
fn meant<T>(request: Request<T>) -> Result<T, Status> {
    let says = request.metadata().get(SECURITY_HEADER);
    if says.is_some_and(|value| value.as_bytes() == b"true") {
        return Ok(request.into_inner());
    }
    Err(Status::invalid_argument(format!(
        "security header missing from request: send {SECURITY_HEADER}: true"
    )))
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Updates<proto::X509svidResponse>;
    type FetchX509BundlesStream = Updates<proto::X509BundlesResponse>;
    type FetchJWTBundlesStream = Updates<proto::JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<proto::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let answer = meant(request).and_then(|_| self.updates(Offer::x509_svids));
        self.counted("fetch_x509_svid", answer)
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<proto::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let answer = meant(request).and_then(|_| self.updates(Offer::x509_bundles));
        self.counted("fetch_x509_bundles", answer)
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<proto::JwtsvidRequest>,
    ) -> Result<Response<proto::JwtsvidResponse>, Status> {
        let answer = match meant(request) {
            Ok(request) => self.jwt_svid(request).await,
            Err(status) => Err(status),
        };
        self.counted("fetch_jwt_svid", answer)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<proto::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let answer = meant(request).and_then(|_| self.updates(Offer::jwt_bundles));
        self.counted("fetch_jwt_bundles", answer)
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<proto::ValidateJwtsvidRequest>,
    ) -> Result<Response<proto::ValidateJwtsvidResponse>, Status> {
        let answer = meant(request).and_then(|request| self.validated(&request));
        self.counted("validate_jwt_svid", answer)
    }
}
