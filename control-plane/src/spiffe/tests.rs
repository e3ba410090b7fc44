use std::time::Duration;

use rustls_pki_types::PrivateKeyDer;
use signet_identity::{Authority, KeyRequest, SpiffeId, TrustDomain, attest};
use signet_policy::{compile, parse_manifests};

use super::*;

const MESH: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: mesh.example, networks: [{ name: edge }] }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: api }
spec: { class: app, device: edge, network: edge }
";
const RULES: &str = "workloads:
  - { spiffeId: 'spiffe://spire.example/api', workload: api }
  - { spiffeId: 'spiffe://spire.example/gone', workload: gone }
";
const BINDING: [u8; 32] = [7; 32];
const REQUESTS: [&[u8]; 2] = [b"tls", b"signing"];

struct Stage {
    directory: tempfile::TempDir,
    spire: Authority,
    attestor: SvidAttestor,
    model: PolicyModel,
    now: SystemTime,
}

fn authority(now: SystemTime) -> Authority {
    let domain = TrustDomain::parse("spire.example").unwrap();
    Authority::create(domain, now, Duration::from_secs(100 * 3600)).unwrap()
}

fn stage() -> Stage {
    let directory = tempfile::tempdir().unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_419_480);
    let spire = authority(now);
    let (bundle, rules) = (directory.path().join("roots.pem"), directory.path().join("rules.yaml"));
    std::fs::write(&bundle, crate::authority::root_pem(spire.root_der())).unwrap();
    let text = format!("trustDomains: [{{ name: spire.example, bundle: {} }}]\n{RULES}", bundle.display());
    std::fs::write(&rules, text).unwrap();
    let rules = Rules::load(&rules, &TrustDomain::parse("mesh.example").unwrap()).unwrap();
    let model = compile(&parse_manifests("test", MESH).unwrap()).unwrap();
    Stage { directory, spire, attestor: SvidAttestor::new(rules), model, now }
}

impl Stage {
    fn svid(&self, by: &Authority, path: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let request = KeyRequest::new_tls().unwrap();
        let id = SpiffeId::parse(&format!("spiffe://spire.example/{path}")).unwrap();
        let hour = Duration::from_secs(3600);
        let chain = by.issue_tls(&request.csr, &id, self.now - hour, self.now + hour).unwrap();
        (chain, request.key.clone_key())
    }

    fn judge(&self, evidence: &[u8], binding: &[u8; 32]) -> Result<Attested, &'static str> {
        let shown = Shown { evidence, binding, requests: REQUESTS };
        self.attestor.judge(shown, &self.model, self.now).map_err(|error| error.code())
    }
}

fn evidence(chain: &[CertificateDer<'_>], key: &PrivateKeyDer<'_>) -> Vec<u8> {
    let (scheme, signature) = attest(key, Enrolling { binding: &BINDING, requests: REQUESTS }).unwrap();
    let chain = chain.iter().map(|der| der.to_vec()).collect();
    wire::SvidEvidence { chain, scheme: scheme.into(), signature }.encode_to_vec()
}

#[test]
fn an_svid_that_the_rules_name_is_the_workload_and_each_key_one_holder() {
    let stage = stage();
    let (chain, key) = stage.svid(&stage.spire, "api");
    let one = stage.judge(&evidence(&chain, &key), &BINDING).unwrap();
    assert_eq!((one.id.as_str(), one.network.as_str()), ("spiffe://mesh.example/app/edge/api", "edge"));
    assert_eq!(stage.judge(&evidence(&chain, &key), &BINDING).unwrap(), one);
    let (chain, key) = stage.svid(&stage.spire, "api");
    let other = stage.judge(&evidence(&chain, &key), &BINDING).unwrap();
    assert_eq!(other.id, one.id);
    assert_ne!(other.holder, one.holder);
}

#[test]
fn evidence_of_others_or_for_another_connection_proves_nobody() {
    let stage = stage();
    let (chain, key) = stage.svid(&stage.spire, "api");
    assert_eq!(stage.judge(&evidence(&chain, &key), &[8; 32]), Err("attestation-refused"));
    let (_, stolen) = stage.svid(&stage.spire, "api");
    assert_eq!(stage.judge(&evidence(&chain, &stolen), &BINDING), Err("attestation-refused"));
    let (forged, key) = stage.svid(&authority(stage.now), "api");
    assert_eq!(stage.judge(&evidence(&forged, &key), &BINDING), Err("attestation-refused"));
    for path in ["other", "api/child", "gone"] {
        let (chain, key) = stage.svid(&stage.spire, path);
        assert_eq!(stage.judge(&evidence(&chain, &key), &BINDING), Err("attestation-no-workload"), "{path}");
    }
    for junk in [&b""[..], b"junk", &[0; MAX_ATTESTATION_BYTES + 1]] {
        assert_eq!(stage.judge(junk, &BINDING), Err("attestation-malformed"));
    }
}

#[test]
fn roots_are_read_anew_and_without_them_nobody_is_believed() {
    let stage = stage();
    let next = authority(stage.now);
    let (chain, key) = stage.svid(&next, "api");
    assert_eq!(stage.judge(&evidence(&chain, &key), &BINDING), Err("attestation-refused"));
    let bundle = stage.directory.path().join("roots.pem");
    std::fs::write(&bundle, crate::authority::root_pem(next.root_der())).unwrap();
    assert!(stage.judge(&evidence(&chain, &key), &BINDING).is_ok());
    std::fs::remove_file(bundle).unwrap();
    assert_eq!(stage.judge(&evidence(&chain, &key), &BINDING), Err("attestation-unavailable"));
}
