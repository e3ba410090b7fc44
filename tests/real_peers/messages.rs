//! A message through a broker that is no part of the mesh: Mosquitto carries it, curl stands for the applications.

use std::fs;

use serde_json::{Value, json};
use signet_cli::lab::mesh::{Mesh, Setup, Sidecar};
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Container, HostPlan, Lab, Program, Tap};
use signet_identity::Fingerprint;

use crate::pair::{Failure, LIMIT, run};
use crate::programs::app;

const PORT: u16 = 1883;
const SECRET: &str = "open the floodgates at noon";

/// Publisher, unmeshed broker, subscriber: what arrives is what was sent, or it is refused by name.
pub(crate) fn sealed_message_through_an_unmeshed_broker_is_verified_end_to_end() -> TestResult {
    let lab = Lab::new()?;
    let host = lab.host("host", HostPlan::numbered(1))?;
    let broker = host.container("broker")?;
    let folder = tempfile::Builder::new().prefix("peers-").tempdir()?;
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let configuration = format!(
        "listener {PORT}\nallow_anonymous true\nuser root\npersistence false\nlog_dest stderr\nlog_type all\n"
    );
    fs::write(file("mosquitto.conf"), configuration)?;
    let mosquitto = broker.namespace().start(app("mosquitto")?.args(["-c", &file("mosquitto.conf")]))?;
    mosquitto.wait_for_line("running", LIMIT)?;
    // What the broker is sent, it is sent in clear: whatever is not sealed would be seen.
    let tap = Tap::start(broker.namespace(), "eth0", &[SECRET.as_bytes(), b"topic/orders"], None)?;

    let mesh = Mesh::start(&host, "mesh.example")?;
    mesh.apply("messages.yaml", &manifests(&broker))?;
    let member = |name: &'static str| -> Result<Member, Failure> {
        let (container, socket) = (host.container(name)?, file(&format!("{name}.sock")));
        let flags = ["--local-socket", &socket, "--local-uid", "0"].map(str::to_owned).to_vec();
        let sidecar = mesh.begin_sidecar(&container, name, Setup { flags, ..Setup::default() })?;
        Ok(Member { container, sidecar, socket, body: file(&format!("{name}.json")) })
    };
    let (publisher, subscriber, other) = (member("publisher")?, member("subscriber")?, member("other")?);
    for member in [&publisher, &subscriber, &other] {
        member.sidecar.wait_until_ready()?;
    }

    let at = broker.ipv4().to_string();
    let client = |name: &str, arguments: &[&str]| -> Result<Program, Failure> {
        let place = ["-h", &at, "-p", &PORT.to_string(), "-t", "topic/orders", "-q", "1"].map(str::to_owned);
        Ok(app(name)?.args(place).args(arguments))
    };
    let mut subscriptions = 0;
    // From one container to the broker, and from there to the subscriber.
    let mut deliver = |from: &Container, message: &str| -> Result<String, Failure> {
        fs::write(file("message"), message)?;
        subscriptions += 1;
        let id = format!("subscriber-{subscriptions}");
        let arguments = ["-i", &id, "-C", "1"];
        let waiting = subscriber.container.namespace().start(client("mosquitto_sub", &arguments)?)?;
        mosquitto.wait_for_line(&format!("Sending SUBACK to {id}"), LIMIT)?;
        run(from, client("mosquitto_pub", &["-f", &file("message")])?)?;
        waiting.wait(LIMIT)?;
        Ok(waiting.output().trim_end().to_owned())
    };

    let draft = json!({
        "audience": "subscriber", "payload": SECRET, "content_type": "text/plain", "expires_in": 300,
    });
    let sealed = signet_cli::lab::mesh::wait_until(LIMIT, || {
        publisher.ask("seal", &draft).ok().filter(|answer| answer["message"].is_string())
    });
    let sealed = sealed.ok_or("the recipient's key did not come")?;
    let sent = sealed["message"].as_str().unwrap_or_default();
    let received = deliver(&publisher.container, sent)?;
    let opened = subscriber.ask("open", &json!({ "message": received }))?;
    assert_eq!(opened["payload"], SECRET, "{opened}");
    assert_eq!(opened["sender"], "spiffe://mesh.example/app/host/publisher");
    assert_eq!((&opened["level"], &opened["id"]), (&json!("private"), &sealed["id"]));

    // Whoever holds the broker delivers it again, alters it, or gives it to somebody else.
    let again = deliver(&broker, sent)?;
    assert_eq!(subscriber.ask("open", &json!({ "message": again }))?["code"], "message-replay");
    let middle = sent.find('.').unwrap_or_default() + 5;
    let mut altered = sent.as_bytes().to_vec();
    altered[middle] = if altered[middle] == b'A' { b'B' } else { b'A' };
    let tampered = deliver(&broker, str::from_utf8(&altered)?)?;
    assert_eq!(subscriber.ask("open", &json!({ "message": tampered }))?["code"], "message-bad-signature");
    assert_eq!(other.ask("open", &json!({ "message": sent }))?["code"], "message-audience");

    // It lies in the broker while its sender is revoked.
    let last = publisher.ask("seal", &draft)?;
    let last = deliver(&publisher.container, last["message"].as_str().unwrap_or_default())?;
    let open = json!({ "message": last, "replay": "ignore" });
    assert_eq!(subscriber.ask("open", &open)?["payload"], SECRET);
    let proxies = mesh.proxies()?;
    let revoked =
        proxies.iter().find(|proxy| proxy.spiffe_id.ends_with("/publisher")).ok_or("no publisher")?;
    mesh.revoke(revoked.instance.parse::<Fingerprint>()?, "stolen")?;
    let refused = signet_cli::lab::mesh::wait_until(LIMIT, || {
        subscriber.ask("open", &open).ok().filter(|answer| answer["code"] == "message-revoked")
    });
    assert!(refused.is_some(), "a message of a revoked sender opens");

    let report = tap.report()?;
    let seen: Vec<_> = report.sightings.iter().map(|sighting| &*sighting.canary).collect();
    assert!(seen.contains(&&b"topic/orders"[..]), "the tap saw no publication");
    assert!(!seen.contains(&SECRET.as_bytes()), "the broker could read it");
    Ok(())
}

struct Member {
    container: Container,
    sidecar: Sidecar,
    socket: String,
    body: String,
}

impl Member {
    /// Asks the own sidecar, as any program can that speaks HTTP.
    fn ask(&self, operation: &str, request: &Value) -> Result<Value, Failure> {
        fs::write(&self.body, request.to_string())?;
        let curl = app("curl")?.args(["-sS", "--max-time", "30", "--unix-socket", &self.socket]).args([
            "--data-binary",
            &format!("@{}", self.body),
            &format!("http://signet/v1/{operation}"),
        ]);
        Ok(serde_json::from_str(&run(&self.container, curl)?)?)
    }
}

fn manifests(broker: &Container) -> String {
    let workload = |name: &str| {
        format!(
            "---\napiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\n\
             spec: {{class: app, device: host, network: lan}}\n"
        )
    };
    format!(
        "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Mesh\nmetadata: {{name: messages}}\nspec:\n  \
         trustDomain: mesh.example\n  networks: [{{name: lan, gateways: [10.0.0.1, 'fd00::1']}}]\n  \
         egress: [{{cidr: {}/32, protocol: tcp, ports: [{PORT}]}}]\n{}{}{}",
        broker.ipv4(),
        workload("publisher"),
        workload("subscriber"),
        workload("other")
    )
}
