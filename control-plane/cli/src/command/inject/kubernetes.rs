//! `signet inject kubernetes`.

use std::path::PathBuf;

use serde_json::json;
use signet_inject::kubernetes::{
    Enrolment, Fault, Injected, MAX_TEXT_BYTES, Options, Secret, Sidecar, Source, inject,
};

use crate::files::replace;
use crate::manifests;
use crate::output::{Failure, Format, Verdict, print_bytes, print_json, text_or_json};

/// Writes Kubernetes manifests with sidecars in their pods
///
/// What is to be known about them goes to standard error. Documents without pods come out as they are; the others
/// lose their comments.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  signet inject kubernetes -f app.yaml | kubectl apply -f -\n  helm template shop ./chart | signet inject kubernetes -f - --namespace shop --workloads workloads.yaml"
)]
pub(crate) struct Kubernetes {
    /// File, folder (its *.yaml, *.yml and *.json, by name), or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    paths: Vec<PathBuf>,
    /// Namespace of objects that do not say theirs
    #[arg(short = 'n', long, default_value_t = Options::default().namespace, value_parser = name, value_name = "NAME")]
    namespace: String,
    /// Image of the sidecar
    #[arg(long, default_value_t = Options::default().image, value_name = "IMAGE")]
    image: String,
    /// The control plane's gRPC port, as pods reach it
    #[arg(long, default_value_t = Options::default().control_plane, value_parser = host_port, value_name = "HOST:PORT")]
    control_plane: String,
    /// Class of workloads whose pods have no annotation `signet.mf2c-project.eu/class`
    #[arg(long, default_value_t = Options::default().class, value_parser = ["agent", "app", "external", "platform"])]
    class: String,
    /// Name of the cluster's network in the Mesh
    #[arg(long, default_value_t = Options::default().network, value_parser = name, value_name = "NAME")]
    network: String,
    /// Form of the sidecar: `native` (an init container that goes on, Kubernetes 1.29 and later) or `container`
    #[arg(long, default_value = "native", value_parser = ["container", "native"])]
    sidecar: String,
    /// How sidecars get their identity: `service-account` (the control plane runs with `--kubernetes attest`) or `secret`
    /// (a token for each workload, made by you)
    #[arg(long, default_value = "service-account", value_parser = ["secret", "service-account"])]
    enrol: String,
    /// Trust domain of the mesh, with `--enrol service-account`: tokens are made for it alone
    #[arg(long, default_value = "cluster.example", value_parser = trust_domain, value_name = "NAME")]
    trust_domain: String,
    /// Writes the Workload manifests of what was injected here, for `signet apply`
    #[arg(long, value_name = "FILE")]
    workloads: Option<PathBuf>,
}

impl Kubernetes {
    pub(crate) fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let texts = manifests::read_within(&self.paths, MAX_TEXT_BYTES as u64)?;
        let sources: Vec<_> =
            texts.iter().map(|file| Source { name: &file.name, text: &file.text }).collect();
        let injected = match inject(&sources, &self.options()) {
            Ok(injected) => injected,
            Err(faults) => return refused(&faults, format),
        };
        if let Some(path) = &self.workloads {
            replace(path, injected.workloads.as_bytes(), 0o644)?;
        }
        if format == Format::Json {
            print_json(&json!({
                "manifests": injected.manifests,
                "notes": injected.notes,
                "secrets": injected.secrets,
                "workloads": injected.workloads,
            }))?;
        } else {
            tell(&injected);
            print_bytes(injected.manifests.as_bytes())?;
        }
        Ok(Verdict::Yes)
    }

    fn options(&self) -> Options {
        Options {
            class: self.class.clone(),
            control_plane: self.control_plane.clone(),
            enrolment: match self.enrol.as_str() {
                "secret" => Enrolment::Secret,
                _ => Enrolment::ServiceAccount { trust_domain: self.trust_domain.clone() },
            },
            image: self.image.clone(),
            namespace: self.namespace.clone(),
            network: self.network.clone(),
            sidecar: if self.sidecar == "container" { Sidecar::Container } else { Sidecar::Native },
        }
    }
}

fn refused(faults: &[Fault], format: Format) -> Result<Verdict, Failure> {
    if format == Format::Json {
        let fault = |fault: &Fault| json!({ "code": fault.reason.code(), "place": fault.place, "message": fault.reason.to_string() });
        print_json(&json!({ "faults": faults.iter().map(fault).collect::<Vec<_>>() }))?;
    }
    faults.iter().for_each(|fault| eprintln!("signet: {fault}"));
    Ok(Verdict::BadInput)
}

/// Standard output is for manifests alone.
fn tell(injected: &Injected) {
    injected.notes.iter().for_each(|note| eprintln!("{note}"));
    for Secret { name, namespace, workload } in &injected.secrets {
        eprintln!(
            "token: signet token create {workload} --uses N --instances N | kubectl create secret generic {name} -n {namespace} --from-file=token=/dev/stdin"
        );
    }
}

fn name(text: &str) -> Result<String, String> {
    if signet_inject::kubernetes::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("use lower-case letters, digits and `-`, at most 63".to_owned())
    }
}

fn trust_domain(text: &str) -> Result<String, String> {
    signet_identity::TrustDomain::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn host_port(text: &str) -> Result<String, signet_proxy::config::HostPortError> {
    text.parse::<signet_proxy::config::HostPort>().map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use signet_policy::{compile, parse_manifests};
    use signet_proxy::probes::Probes;

    use super::*;

    const SHOP: &str = include_str!("../../../../inject/tests/kubernetes/shop.yaml");

    fn shop() -> Injected {
        inject(&[Source { name: "shop.yaml", text: SHOP }], &Options::default()).unwrap()
    }

    #[test]
    fn probes_are_written_as_the_sidecar_reads_them() {
        let manifests = shop().manifests;
        let settings: Vec<String> = manifests
            .lines()
            .skip_while(|line| !line.contains("SIGNET_PROBES"))
            .filter_map(|line| line.trim().strip_prefix("value: \"{"))
            .map(|quoted| serde_json::from_str(&format!("\"{{{quoted}")).unwrap())
            .collect();
        assert_eq!(settings.len(), 2);
        for setting in settings {
            setting.parse::<Probes>().unwrap();
        }
    }

    #[test]
    fn workloads_compile_with_a_mesh() {
        let mesh = "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Mesh\nmetadata: {name: cluster}\nspec: {trustDomain: cluster.example, networks: [{name: cluster}]}\n---\n";
        let manifests = parse_manifests("workloads.yaml", &format!("{mesh}{}", shop().workloads)).unwrap();
        let model = compile(&manifests).unwrap_or_else(|faults| panic!("{faults:?}"));
        assert_eq!(model.workloads.len(), 2);
    }
}
