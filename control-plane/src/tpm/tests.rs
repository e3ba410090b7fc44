//! What a TPM itself does is tested with one, in `proxy/tpm/tests` and `tests/real_peers`; here the endorsement key is in
//! memory, and the secret is taken from the attestor.

use signet_identity::{ChannelKeyRequest, KeyRequest, Keys};
use signet_policy::{compile, parse_manifests};

use super::*;

const MESH: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: mesh.example, networks: [{ name: sea }] }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: boat }
spec: { class: app, device: boat, network: sea }
";
const BINDING: [u8; 32] = [7; 32];
const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn endorsement() -> EndorsementKey {
    let request = ChannelKeyRequest::new(&Keys::Memory).unwrap();
    EndorsementKey::new(&requested_point(&request.csr).unwrap()).unwrap()
}

fn attestor(rules: &[(&EndorsementKey, &str)]) -> TpmAttestor {
    let rules = rules
        .iter()
        .map(|(key, workload)| format!("{{ endorsementKey: {}, workload: {workload} }}", hex(&key.sha256())));
    let rules = rules.collect::<Vec<_>>().join(", ");
    TpmAttestor::new(Rules::parse(&format!("devices: [{rules}]")).unwrap()).unwrap()
}

fn model() -> PolicyModel {
    compile(&parse_manifests("test", MESH).unwrap()).unwrap()
}

fn evidence(endorsement: &EndorsementKey, answer: &[u8]) -> Vec<u8> {
    wire::TpmEvidence { endorsement_key: endorsement.point().to_vec(), answer: answer.to_vec() }
        .encode_to_vec()
}

#[tokio::test]
async fn the_answer_to_a_challenge_proves_the_device_once() {
    let (boat, other) = (endorsement(), endorsement());
    let attestor = attestor(&[(&boat, "boat"), (&other, "gone")]);
    let model = model();
    let requests: [&[u8]; 2] = [b"tls", b"signing"];
    let shown = Shown { evidence: b"", binding: &BINDING, requests };
    let opened = attestor.secret(shown, &boat);
    let answer = answer(opened.as_ref(), &BINDING, requests);
    let good = evidence(&boat, &answer);
    let attested = attestor.attest(Shown { evidence: &good, ..shown }, &model, NOW).await.unwrap();
    assert_eq!(attested.id.as_str(), "spiffe://mesh.example/app/boat/boat");
    assert_eq!(attested.holder, format!("tpm/{}", hex(&boat.sha256())));
    assert_eq!(attested.device, Some(boat.sha256()));

    let refused = async |shown: Shown<'_>| attestor.attest(shown, &model, NOW).await.unwrap_err().code();
    let shown = Shown { evidence: &good, ..shown };
    for elsewhere in [
        Shown { binding: &[8; 32], ..shown },
        Shown { requests: [b"tls", b"other"], ..shown },
        Shown { requests: [b"tlss", b"igning"], ..shown },
        Shown { evidence: &evidence(&other, &answer), ..shown },
        Shown { evidence: &evidence(&boat, b""), ..shown },
        // What a device says to whoever passes this challenge on over another connection, or gives away.
        Shown { evidence: &evidence(&boat, &super::answer(opened.as_ref(), &[8; 32], requests)), ..shown },
        Shown { evidence: &evidence(&boat, opened.as_ref()), ..shown },
        Shown { evidence: &evidence(&boat, &[0; 32]), ..shown },
    ] {
        assert_eq!(refused(elsewhere).await, "attestation-refused");
    }
    for malformed in [&b"junk"[..], &evidence(&boat, &answer)[2..], &[0; MAX_ATTESTATION_BYTES + 1]] {
        assert_eq!(refused(Shown { evidence: malformed, ..shown }).await, "attestation-malformed");
    }
    // Another control plane, or this one started anew, has another key.
    let again = super::tests::attestor(&[(&boat, "boat")]);
    assert_eq!(again.attest(shown, &model, NOW).await.unwrap_err().code(), "attestation-refused");
}

#[tokio::test]
async fn a_tpm_that_no_rule_names_or_whose_workload_is_not_declared_gets_nothing() {
    let (listed, unlisted) = (endorsement(), endorsement());
    let attestor = attestor(&[(&listed, "gone")]);
    for (key, said) in [(&listed, "not declared"), (&unlisted, "do not name it")] {
        let shown = Shown { evidence: b"", binding: &BINDING, requests: [b"tls", b"signing"] };
        let answer = answer(attestor.secret(shown, key).as_ref(), &BINDING, shown.requests);
        let evidence = evidence(key, &answer);
        let error = attestor.attest(Shown { evidence: &evidence, ..shown }, &model(), NOW).await.unwrap_err();
        assert!(
            error.to_string().contains(said) && error.to_string().contains(&hex(&key.sha256())),
            "{error}"
        );
    }
}

#[test]
fn a_challenge_is_made_for_a_request_over_p256_and_nothing_else() {
    let key = endorsement();
    let off_curve = EndorsementKey::new(&[&[0x04][..], &[1; 64]].concat()).unwrap();
    let attestor = attestor(&[(&key, "boat"), (&off_curve, "boat")]);
    let csr = ChannelKeyRequest::new(&Keys::Memory).unwrap().csr;
    let challenge = |about: &[u8], tls: &[u8]| {
        attestor.challenge(Shown { evidence: about, binding: &BINDING, requests: [tls, b"signing"] })
    };
    assert!(challenge(key.point(), &csr).is_ok());
    let signing = KeyRequest::new_signing().unwrap().csr;
    for (about, tls) in [
        (&key.point()[1..], &*csr),
        (off_curve.point(), &csr),
        (key.point(), &csr[1..]),
        (key.point(), &signing),
        (key.point(), b""),
    ] {
        assert_eq!(challenge(about, tls).unwrap_err().code(), "attestation-malformed");
    }
    let unlisted = challenge(endorsement().point(), &csr).unwrap_err();
    assert_eq!(unlisted.code(), "attestation-no-workload");
}
