//! What is done to a container that is there: a meshed one takes its holder and sidecar along.

use serde_json::Value;

use super::body::object;
use super::create::alias;
use super::head::{Answer, Head};
use super::route::Route;
use super::{ApiProxy, json, relay};
use crate::group::{Group, GroupError};

/// Fields of a request to connect or disconnect that decide something here.
const KNOWN_OF_CONNECT: [&str; 2] = ["Container", "EndpointConfig"];
const KNOWN_OF_ENDPOINT: [&str; 1] = ["Aliases"];
/// What a meshed container's details tell of its network is its holder's.
const HOLDERS: [&str; 6] = [
    "/Config/Domainname",
    "/Config/ExposedPorts",
    "/Config/Hostname",
    "/HostConfig/Dns",
    "/HostConfig/PortBindings",
    "/NetworkSettings",
];

impl ApiProxy {
    pub(super) async fn act(&self, head: &Head, body: Vec<u8>, route: Route, tell: fn(String)) -> Answer {
        let container = match &route {
            Route::Inspect { container }
            | Route::Remove { container }
            | Route::Rename { container, .. }
            | Route::Restart { container }
            | Route::Start { container }
            | Route::Stop { container } => container.clone(),
            Route::Connect { .. } | Route::Disconnect { .. } => match named(&body) {
                Ok(container) => container,
                Err(reason) => return Answer::refusal(400, &format!("signet: {reason}")),
            },
            Route::Build
            | Route::Create { .. }
            | Route::Pass
            | Route::Unread { .. }
            | Route::Within { .. } => {
                return relay::ask(&self.engine, &head.with_body(&body)).await;
            }
        };
        let group = match self.groups.of(&container).await {
            Ok(Some(group)) => group,
            Ok(None) => return relay::ask(&self.engine, &head.with_body(&body)).await,
            Err(error) => return Answer::refusal(502, &format!("signet: {error}")),
        };
        if let Route::Inspect { .. } = route {
            return self.inspect(head, &body, &group).await;
        }
        let _lock = self.groups.lock(&group.id).await;
        let done = match route {
            Route::Connect { network } => self.connect(head, &body, &group, &network, tell).await,
            Route::Disconnect { .. } => self.disconnect(head, &body, &group, tell).await,
            Route::Start { .. } | Route::Restart { .. } => self.start(head, &body, &group).await,
            Route::Rename { name, .. } => Ok(self.rename(head, &body, &group, &name, tell).await),
            _ => Ok(self.end(head, &body, &group, tell).await),
        };
        done.unwrap_or_else(|error| {
            let reason = format!("{container} is not started, because {error}");
            tell(reason.clone());
            Answer::refusal(500, &format!("signet: {reason}"))
        })
    }

    /// Starts a container once its sidecar is ready, and not before.
    async fn start(&self, head: &Head, body: &[u8], group: &Group) -> Result<Answer, GroupError> {
        let Ok(_permit) = self.changes.acquire().await else {
            return Ok(Answer::refusal(503, "signet: it is ending"));
        };
        self.groups.raise(group).await?;
        Ok(relay::ask(&self.engine, &head.with_body(body)).await)
    }

    /// Ends or removes a container, and then what stands beside it, before the caller is told: it may remove networks next.
    async fn end(&self, head: &Head, body: &[u8], group: &Group, tell: fn(String)) -> Answer {
        let answer = relay::ask(&self.engine, &head.with_body(body)).await;
        if let Err(error) = self.groups.settle(group).await {
            tell(format!("{}: its sidecar does not follow it: {error}", group.name().unwrap_or_default()));
        }
        answer
    }

    async fn rename(&self, head: &Head, body: &[u8], group: &Group, name: &str, tell: fn(String)) -> Answer {
        let answer = relay::ask(&self.engine, &head.with_body(body)).await;
        if answer.is_success() {
            for (id, suffix) in [(group.holder(), "holder"), (group.sidecar(), "sidecar")] {
                let Ok(id) = id else { continue };
                // A name is for people: nothing here goes by it.
                if let Err(error) = self.groups.docker.rename(id, &format!("{name}-{suffix}")).await {
                    tell(format!("{name}: its {suffix} keeps its name: {error}"));
                }
            }
        }
        answer
    }

    /// A network of a meshed container is one of its holder's, which answers to its name there.
    async fn connect(
        &self,
        head: &Head,
        body: &[u8],
        group: &Group,
        network: &str,
        tell: fn(String),
    ) -> Result<Answer, GroupError> {
        let mut fields = fields(body).unwrap_or_default();
        fields.insert("Container".to_owned(), group.holder()?.into());
        if let Some(name) = group.name().filter(|_| network != "bridge") {
            let endpoint = fields.entry("EndpointConfig").or_insert(Value::Null);
            let mut named = match object("EndpointConfig", endpoint.take(), &KNOWN_OF_ENDPOINT) {
                Ok(named) => Value::from(named),
                Err(_) => Value::Null,
            };
            alias(&mut named, name);
            *endpoint = named;
        }
        let answer =
            relay::ask(&self.engine, &head.with_body(Value::from(fields).to_string().as_bytes())).await;
        self.moved(group, tell).await;
        Ok(answer)
    }

    async fn disconnect(
        &self,
        head: &Head,
        body: &[u8],
        group: &Group,
        tell: fn(String),
    ) -> Result<Answer, GroupError> {
        let mut fields = fields(body).unwrap_or_default();
        fields.insert("Container".to_owned(), group.holder()?.into());
        let answer =
            relay::ask(&self.engine, &head.with_body(Value::from(fields).to_string().as_bytes())).await;
        self.moved(group, tell).await;
        Ok(answer)
    }

    async fn moved(&self, group: &Group, tell: fn(String)) {
        if let Err(error) = self.groups.vouch_anew(group).await {
            let name = group.name().unwrap_or_default();
            tell(format!("{name}: the control plane does not know its addresses yet: {error}"));
        }
    }

    async fn inspect(&self, head: &Head, body: &[u8], group: &Group) -> Answer {
        let mut answer = relay::ask(&self.engine, &head.with_body(body)).await;
        let Ok(holder) = group.holder() else { return answer };
        let request =
            format!("GET /containers/{holder}/json HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n");
        let of_holder = relay::ask(&self.engine, request.as_bytes()).await;
        let read = |answer: &Answer| -> Option<Value> {
            answer.is_success().then(|| serde_json::from_slice(&answer.body).ok()).flatten()
        };
        if let (Some(mut app), Some(holder)) = (read(&answer), read(&of_holder)) {
            for place in HOLDERS {
                if let (Some(into), Some(from)) = (app.pointer_mut(place), holder.pointer(place)) {
                    *into = from.clone();
                }
            }
            answer.body = app.to_string().into_bytes();
        }
        answer
    }
}

fn fields(body: &[u8]) -> Result<serde_json::Map<String, Value>, String> {
    object("the body", json::parse(body)?, &KNOWN_OF_CONNECT)
}

/// The container that a request to connect or disconnect is about.
fn named(body: &[u8]) -> Result<String, String> {
    let fields = fields(body)?;
    Ok(fields.get("Container").and_then(Value::as_str).unwrap_or_default().to_owned())
}
