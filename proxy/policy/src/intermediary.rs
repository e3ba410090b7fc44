//! Proxies that are not of the mesh and stand between two workloads of it: which workload is behind one, and what it may
//! make of a request.
//!
//! The caller's sidecar signs what its application sent, for the workload that policy names behind the path. The
//! workload's sidecar accepts from the intermediary's address only what policy lets it make of the signed request, and
//! decides about the caller that signed it.

use std::net::{IpAddr, SocketAddr};

use signet_identity::SpiffeId;

use crate::model::{IntermediaryModel, IntermediaryRoute, PolicyModel};

/// A way through an intermediary to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// The workload that gets the request.
    pub to: SpiffeId,
    /// Its name in manifests.
    pub workload: String,
    /// The port of that workload.
    pub port: u16,
    /// Fields that the intermediary may change: no signature covers them.
    pub may_change: Vec<String>,
    path: String,
    replace_prefix: Option<String>,
    host: Option<String>,
}

/// A request as the workload gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The path, without the query, which stays.
    pub path: String,
    /// The host.
    pub authority: String,
}

impl Relay {
    /// What the workload gets of a request for this path and host.
    pub fn forwarded(&self, path: &str, authority: &str) -> Forwarded {
        let path = match &self.replace_prefix {
            Some(instead) => {
                let rest =
                    if self.path == "/" { path } else { path.get(self.path.len()..).unwrap_or_default() };
                match (instead.as_str(), rest) {
                    ("/", "") => "/".to_owned(),
                    ("/", rest) => rest.to_owned(),
                    (instead, "/") if self.path == "/" => format!("{instead}/"),
                    (instead, rest) => format!("{instead}{rest}"),
                }
            }
            None => path.to_owned(),
        };
        Forwarded { path, authority: self.host.as_deref().unwrap_or(authority).to_owned() }
    }

    /// Whether it is for this path: the same segments at its beginning.
    fn is_for(&self, path: &str) -> bool {
        self.path == "/"
            || path.strip_prefix(&self.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// The intermediaries of a mesh, ready to be asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intermediaries {
    all: Vec<Intermediary>,
}

#[derive(Clone, Debug)]
struct Intermediary {
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    /// The longest path first.
    routes: Vec<Relay>,
}

impl Intermediaries {
    pub(crate) fn new(model: &PolicyModel) -> Self {
        let route = |route: &IntermediaryRoute| {
            let workload = model.workload_named(&route.to)?;
            Some(Relay {
                to: workload.id.clone(),
                workload: workload.name.clone(),
                port: route.port,
                may_change: route.may_change.clone(),
                path: route.path.clone(),
                replace_prefix: route.replace_prefix.clone(),
                host: route.host.clone(),
            })
        };
        let read = |intermediary: &IntermediaryModel| {
            let mut routes: Vec<Relay> = intermediary.routes.iter().filter_map(route).collect();
            routes.sort_by_key(|route| std::cmp::Reverse(route.path.len()));
            Intermediary {
                addresses: intermediary.addresses.iter().map(IpAddr::to_canonical).collect(),
                ports: intermediary.ports.clone(),
                routes,
            }
        };
        Self { all: model.intermediaries.iter().map(read).collect() }
    }

    /// Whether applications reach an intermediary here.
    pub(crate) fn is_at(&self, address: SocketAddr) -> bool {
        self.at(address).is_some()
    }

    /// The way behind a path at an intermediary.
    pub(crate) fn relay(&self, address: SocketAddr, path: &str) -> Option<&Relay> {
        self.at(address)?.routes.iter().find(|route| route.is_for(path))
    }

    /// Whether an intermediary with this address hands anything on to this port.
    pub(crate) fn hands_on(&self, from: IpAddr, to: &SpiffeId, port: u16) -> bool {
        let mut routes = self.from(from).flat_map(|intermediary| &intermediary.routes);
        routes.any(|route| route.to == *to && route.port == port)
    }

    /// The ways by which an intermediary with this address may have brought a request for this path, as its origin wrote
    /// it, to this port.
    pub(crate) fn relays_from<'a>(
        &'a self,
        from: IpAddr,
        to: &'a SpiffeId,
        port: u16,
        path: &'a str,
    ) -> impl Iterator<Item = &'a Relay> {
        // Of each intermediary the one way that it has for this path, so that a broader one cannot stand for it.
        let ways = self.from(from).filter_map(move |way| way.routes.iter().find(|route| route.is_for(path)));
        ways.filter(move |route| route.to == *to && route.port == port)
    }

    fn at(&self, address: SocketAddr) -> Option<&Intermediary> {
        let ip = address.ip().to_canonical();
        self.all.iter().find(|known| known.addresses.contains(&ip) && known.ports.contains(&address.port()))
    }

    fn from(&self, address: IpAddr) -> impl Iterator<Item = &Intermediary> {
        let address = address.to_canonical();
        self.all.iter().filter(move |known| known.addresses.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(path: &str, replace_prefix: Option<&str>, host: Option<&str>) -> Relay {
        Relay {
            to: SpiffeId::parse("spiffe://td/agent/d/lm").unwrap(),
            workload: "lm".to_owned(),
            port: 46000,
            may_change: Vec::new(),
            path: path.to_owned(),
            replace_prefix: replace_prefix.map(str::to_owned),
            host: host.map(str::to_owned),
        }
    }

    #[test]
    fn a_prefix_is_replaced_by_whole_segments() {
        for (path, instead, asked, got) in [
            ("/lm", Some("/"), "/lm", "/"),
            ("/lm", Some("/"), "/lm/", "/"),
            ("/lm", Some("/"), "/lm/api/x", "/api/x"),
            ("/lm", Some("/api/v2"), "/lm/x", "/api/v2/x"),
            ("/lm", Some("/api"), "/lm", "/api"),
            ("/lm", None, "/lm/x", "/lm/x"),
            ("/", Some("/api"), "/x", "/api/x"),
            ("/", Some("/api"), "/", "/api/"),
            ("/", Some("/"), "/x", "/x"),
        ] {
            let relay = relay(path, instead, None);
            assert!(relay.is_for(asked), "{asked}");
            assert_eq!(relay.forwarded(asked, "proxy").path, got, "{path} {instead:?} {asked}");
        }
        assert!(!relay("/lm", None, None).is_for("/lmx"));
        assert!(!relay("/lm", None, None).is_for("/x/lm"));
    }

    #[test]
    fn the_host_is_what_policy_says_or_stays() {
        assert_eq!(relay("/", None, None).forwarded("/", "proxy:80").authority, "proxy:80");
        assert_eq!(relay("/", None, Some("lm:46000")).forwarded("/", "proxy").authority, "lm:46000");
    }
}
