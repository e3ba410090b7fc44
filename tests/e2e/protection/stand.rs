//! Peers of both kinds, and messages that are prepared and signed by hand.

use std::net::SocketAddr;

use signet_cli::lab::Container;
use signet_cli::lab::mesh::Sidecar;
use signet_cli::lab::mesh::intruder::{Answer, Caller, Draft, Identity, IntruderError, Signed, now};
use signet_identity::{ALPN_H1, server_config};
use signet_signature::{Form, MacKey, SignedHead, Unsigned};
use signet_tests::impostor::Answering;
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::{Claimant, Failure, Impostor, Plain, Recorder, Site, place};

use crate::signatures::{fields, view};

pub(super) const HTTP: u16 = 8201;
/// For an app of a test's own, beside the recorder.
pub(super) const SECOND: u16 = 8202;
/// What a workload's port is, and how it is protected.
pub(super) const PORTS: &str = "ports: [{port: 8201, protocol: http}, {port: 8202, protocol: http}]";
pub(super) const PUBLIC: &str = "protection: {level: public}";
pub(super) const PRIVATE: &str = "protection: {level: private}";
pub(super) const PROTECTED: &str = "protection: {level: protected}";
/// Both levels, as settings of the workload.
pub(super) const LEVELS: [&str; 2] = [PROTECTED, PUBLIC];

/// A server at [`HTTP`] that `client` and the hand-made `caller` and `other` may call.
pub(super) fn site(of_the_mesh: &[&str], protection: &str) -> Result<Site, Failure> {
    site_with(of_the_mesh, protection, String::new())
}

/// The same with more manifests.
pub(super) fn site_with(of_the_mesh: &[&str], protection: &str, more: String) -> Result<Site, Failure> {
    Site::new(&[
        mesh(of_the_mesh),
        server(protection),
        workload("client", &[]),
        workload("caller", &[]),
        workload("other", &[]),
        policy("open", "server", &[&allow("client", ""), &allow("caller", ""), &allow("other", "")]),
        more,
    ])
}

/// The server's manifest.
pub(super) fn server(protection: &str) -> String {
    workload("server", &[PORTS, protection])
}

/// A client and a server, each beside its sidecar.
pub(super) struct Pair {
    pub(super) sender: Sidecar,
    pub(super) receiver: Sidecar,
    pub(super) app: Recorder,
    pub(super) client: Container,
    pub(super) address: SocketAddr,
    pub(super) site: Site,
}

impl Pair {
    pub(super) fn new(of_the_mesh: &[&str], protection: &str) -> Result<Self, Failure> {
        Self::of(site(of_the_mesh, protection)?)
    }

    pub(super) fn of(site: Site) -> Result<Self, Failure> {
        let (server, client) = (site.container("server")?, site.container("client")?);
        let app = Recorder::http(&server, HTTP)?;
        let [receiver, sender] = site.sidecars([(&server, "server"), (&client, "client")])?;
        let address = place(&server, HTTP);
        sender.wait_until_known(address)?;
        Ok(Self { sender, receiver, app, client, address, site })
    }

    pub(super) fn ask(&self, request: &str) -> Result<Answer, Failure> {
        Plain::ask(&self.client, self.address, request)
    }

    /// The last request that the app has seen.
    pub(super) fn last_seen(&self) -> String {
        self.app.requests().pop().unwrap_or_default()
    }
}

/// A hand-made caller's view of a server beside its sidecar.
pub(super) struct Front {
    pub(super) receiver: Sidecar,
    pub(super) app: Recorder,
    pub(super) own: Identity,
    pub(super) stranger: Container,
    pub(super) address: SocketAddr,
    pub(super) site: Site,
}

impl Front {
    pub(super) fn new(of_the_mesh: &[&str], protection: &str) -> Result<Self, Failure> {
        Self::of(site(of_the_mesh, protection)?)
    }

    pub(super) fn of(site: Site) -> Result<Self, Failure> {
        let (server, stranger) = (site.container("server")?, site.container("stranger")?);
        let app = Recorder::http(&server, HTTP)?;
        let [receiver] = site.sidecars([(&server, "server")])?;
        let own = site.intruder(&stranger, "caller")?;
        let address = place(&server, HTTP);
        Ok(Self { receiver, app, own, stranger, address, site })
    }
}

/// A client beside its sidecar, and a hand-made server.
pub(super) struct Back {
    pub(super) sender: Sidecar,
    pub(super) identity: Identity,
    pub(super) client: Container,
    pub(super) address: SocketAddr,
    _claims: Claimant,
    server: Container,
    pub(super) site: Site,
}

impl Back {
    pub(super) fn new(protection: &str) -> Result<Self, Failure> {
        Self::with_key(protection, |_| Vec::new())
    }

    /// The same; the server publishes a key that callers may seal for.
    pub(super) fn with_key(protection: &str, key: fn(&Identity) -> Vec<u8>) -> Result<Self, Failure> {
        let site = site(&[], protection)?;
        let (server, client) = (site.container("server")?, site.container("client")?);
        let [sender] = site.sidecars([(&client, "client")])?;
        let identity = site.intruder(&server, "server")?;
        let address = place(&server, HTTP);
        let control_plane = site.mesh.address();
        let claims = Claimant::start_with_key(&server, &identity, control_plane, &[address], key(&identity))?;
        assert_eq!(claims.verdict(address)?, Ok(()));
        sender.wait_until_known(address)?;
        Ok(Self { sender, identity, client, address, _claims: claims, server, site })
    }

    pub(super) fn serve(&self, answering: Answering) -> Result<Impostor, Failure> {
        let config = server_config(&self.identity.tls, &self.identity.bundle, &[ALPN_H1])?;
        Impostor::start(&self.server, HTTP, config, answering)
    }

    pub(super) fn ask(&self, request: &str) -> Result<Answer, Failure> {
        Plain::ask(&self.client, self.address, request)
    }
}

/// A request for the next place on a connection, with all that it needs but a signature.
pub(super) fn prepare(
    caller: &mut Caller,
    draft: &Draft,
    form: Form,
) -> Result<(Signed, Unsigned), IntruderError> {
    let sequence = caller.sequence;
    let message = caller.sign(draft)?.without("signature").without("signature-input");
    let headers = fields(&message.headers);
    let unsigned =
        caller.signer.prepare_request(&view(draft, &headers), &caller.channel, sequence, now(), form)?;
    Ok((message, unsigned))
}

/// The message with its signature.
pub(super) fn sealed(message: Signed, head: &SignedHead) -> Signed {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    message.with("signature-input", &text(&head.signature_input)).with("signature", &text(&head.signature))
}

/// A request signed in this form for the next place on its connection.
pub(super) fn sign(caller: &mut Caller, draft: &Draft, form: Form) -> Result<Signed, IntruderError> {
    let (message, unsigned) = prepare(caller, draft, form)?;
    let head = match form {
        Form::Batch => caller.signer.sign_batch(vec![unsigned])?.swap_remove(0),
        Form::Mac => caller.signer.sign_mac(unsigned, &MacKey::new(&caller.keys[0]))?,
        Form::Single => caller.signer.sign_single(unsigned)?,
    };
    Ok(sealed(message, &head))
}

/// The values of all fields of this name.
pub(super) fn values(answer: &Answer, name: &str) -> Vec<String> {
    let named = |(known, _): &&(String, String)| known.eq_ignore_ascii_case(name);
    answer.headers.iter().filter(named).map(|(_, value)| value.clone()).collect()
}

/// The lines of a head whose fields are only the mesh's to speak of.
pub(super) fn lines_of_the_mesh(head: &str) -> Vec<String> {
    let of_the_mesh = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase().replace('_', "-");
        name.starts_with("mesh-")
            || ["signature", "signature-input", "content-digest", "client-cert", "client-cert-chain"]
                .contains(&name.as_str())
            || line.contains("mesh-rec")
    };
    head.split("\r\n\r\n")
        .next()
        .unwrap_or_default()
        .lines()
        .skip(1)
        .filter(of_the_mesh)
        .map(str::to_owned)
        .collect()
}

/// The same for an answer.
pub(super) fn fields_of_the_mesh(answer: &Answer) -> Vec<String> {
    let lines: String = answer.headers.iter().map(|(name, value)| format!("\r\n{name}: {value}")).collect();
    lines_of_the_mesh(&format!("HTTP/1.1{lines}\r\n\r\n"))
}
