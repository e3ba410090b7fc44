use signet_identity::{KeyRequest, TrustDomain, device_of, verify_tls_chain};
use signet_policy::{compile, parse_manifests};

use super::*;
use crate::authority::slots::What;
use crate::records::Restored;
use crate::rotation;
use crate::store::{Expect, MemoryStore, Revision};

const NOW: u64 = 1_795_419_480;
const DAY: u64 = 24 * 3600;

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

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A mesh that was restored at [`NOW`], with nobody registered.
struct Stage {
    _directory: tempfile::TempDir,
    authority: Arc<Authority>,
    registrar: Registrar,
    model: PolicyModel,
}

impl Stage {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let domain = TrustDomain::parse("mesh.example").unwrap();
        let authority = Arc::new(Authority::create(directory.path(), &domain, at(NOW - 200 * DAY)).unwrap());
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let restored = Restored { epoch: 2, at: NOW, backup_at: NOW - DAY, backup_revision: 1 };
        store.commit(vec![records::put(RESTORED.into(), Expect::Any, &restored).unwrap()]).await.unwrap();
        let registrar = Registrar::new(store, authority.clone());
        let model = compile(&parse_manifests("test", MESH).unwrap()).unwrap();
        Self { _directory: directory, authority, registrar, model }
    }

    /// Whoever shows a certificate of this issuer, of a minute before the restore, and passed the handshake.
    fn caller(&self, issuing: &Issuing, not_after: u64) -> Caller {
        let request = KeyRequest::new_tls().unwrap();
        let id = SpiffeId::parse("spiffe://mesh.example/app/edge/api").unwrap();
        let begins = at(NOW - 60) - BACKDATE;
        let chain = issuing.tls(&request.csr, &id, begins, at(not_after), None).unwrap();
        let known = self.authority.server(at(NOW), at(NOW)).unwrap().bundle;
        Caller::new(verify_tls_chain(&known, &chain, at(NOW)).unwrap(), &chain)
    }

    async fn known(&self, caller: &Caller, now: u64) -> &'static str {
        match self.registrar.known(caller, &self.model, at(now)).await {
            Ok(_) => "known",
            Err(error) => error.code(),
        }
    }

    fn replace_at_once(&self, what: What, revision: u64) {
        let next = rotation::driver::next_pair(&self.authority, what, false, at(NOW)).unwrap();
        let slots = rotation::emergency(&self.authority.slots(), what, next, NOW);
        self.authority.adopt(Revision(revision), slots).unwrap();
    }
}

#[tokio::test]
async fn after_a_restore_only_keys_in_force_are_taken_at_their_word() {
    for what in [What::Root, What::Issuer] {
        let stage = Stage::new().await;
        let stolen = stage.authority.issuing().unwrap();
        let honest = stage.caller(&stolen, NOW + DAY);
        assert_eq!(stage.known(&honest, NOW + 1).await, "known");
        stage.replace_at_once(what, 1);
        // The handshake lets both in; who is registered stays so.
        let forged = stage.caller(&stolen, NOW + DAY);
        assert_eq!(stage.known(&forged, NOW + 1).await, "unknown-instance", "{what:?}");
        assert_eq!(stage.known(&honest, NOW + 1).await, "known");
        let late = stage.caller(&stage.authority.issuing().unwrap(), NOW + DAY);
        assert_eq!(stage.known(&late, NOW + 1).await, "known");
    }
}

#[tokio::test]
async fn nobody_is_taken_up_longer_after_a_restore_than_a_certificate_lives() {
    let stage = Stage::new().await;
    let issuing = stage.authority.issuing().unwrap();
    assert_eq!(stage.known(&stage.caller(&issuing, NOW + 100 * DAY), NOW + 90 * DAY).await, "known");
    let refused = stage.known(&stage.caller(&issuing, NOW + 100 * DAY), NOW + 90 * DAY + 1).await;
    assert_eq!(refused, "unknown-instance");
}

#[tokio::test]
async fn whose_key_is_in_a_tpm_renews_with_no_other() {
    let stage = Stage::new().await;
    let id = SpiffeId::parse("spiffe://mesh.example/app/edge/api").unwrap();
    let known = stage.authority.server(at(NOW), at(NOW)).unwrap().bundle;
    let signing = KeyRequest::new_signing().unwrap();
    for (holder, device, with_another) in
        [("tpm/ab", Some([7; 32]), "key-outside-tpm"), ("spiffe/ab", None, "renewed")]
    {
        let held = KeyRequest::new_tls().unwrap();
        fn requests<'a>(tls: &'a [u8], signing: &'a KeyRequest) -> Requests<'a> {
            Requests { tls, signing: &signing.csr }
        }
        let attested = Attested { id: id.clone(), network: "edge".into(), holder: holder.into(), device };
        let admitted = stage
            .registrar
            .admit(&attested, requests(&held.csr, &signing), &stage.model, at(NOW))
            .await
            .unwrap();
        let chain = &admitted.tls_chain;
        let caller = Caller::new(verify_tls_chain(&known, chain, at(NOW)).unwrap(), chain);
        let renew = async |tls: &[u8]| match stage
            .registrar
            .renew(&caller, requests(tls, &signing), &stage.model, at(NOW))
            .await
        {
            Ok(_) => "renewed",
            Err(error) => error.code(),
        };
        assert_eq!(renew(&held.csr).await, "renewed", "{holder}");
        assert_eq!(renew(&KeyRequest::new_tls().unwrap().csr).await, with_another, "{holder}");
    }
    // Whoever proves the TPM again may bring another key of it.
    let attested = Attested { id, network: "edge".into(), holder: "tpm/ab".into(), device: Some([7; 32]) };
    let another = KeyRequest::new_tls().unwrap();
    let requests = Requests { tls: &another.csr, signing: &signing.csr };
    stage.registrar.admit(&attested, requests, &stage.model, at(NOW)).await.unwrap();
}

#[tokio::test]
async fn after_a_restore_whose_key_is_in_a_tpm_stays_the_instance_of_that_tpm() {
    let stage = Stage::new().await;
    let id = SpiffeId::parse("spiffe://mesh.example/app/edge/api").unwrap();
    let (held, signing) = (KeyRequest::new_tls().unwrap(), KeyRequest::new_signing().unwrap());
    let (begins, ends) = (at(NOW - 60) - BACKDATE, at(NOW + DAY));
    let issuing = stage.authority.issuing().unwrap();
    let chain = issuing.tls(&held.csr, &id, begins, ends, Some(&[7; 32])).unwrap();
    let known = stage.authority.server(at(NOW), at(NOW)).unwrap().bundle;
    let caller = Caller::new(verify_tls_chain(&known, &chain, at(NOW)).unwrap(), &chain);
    assert_eq!(stage.known(&caller, NOW).await, "known");
    let other = KeyRequest::new_tls().unwrap();
    let renew = async |tls: &KeyRequest| {
        let requests = Requests { tls: &tls.csr, signing: &signing.csr };
        stage.registrar.renew(&caller, requests, &stage.model, at(NOW)).await
    };
    assert_eq!(renew(&other).await.unwrap_err().code(), "key-outside-tpm");
    let renewed = renew(&held).await.unwrap();
    assert_eq!(device_of(&renewed.tls_chain[0]), Ok(Some([7; 32])));

    // It proves its TPM again: the same instance, which a revocation by certificate knows by its TPM.
    let holder = tpm::holder(&[7; 32]);
    let attested =
        Attested { id: id.clone(), network: "edge".into(), holder: holder.clone(), device: Some([7; 32]) };
    let requests = Requests { tls: &other.csr, signing: &signing.csr };
    stage.registrar.admit(&attested, requests, &stage.model, at(NOW)).await.unwrap();
    let registration = stage.registrar.registration(&id).await.unwrap().unwrap().record;
    assert!(registration.instances.iter().map(|instance| instance.token.as_str()).eq([holder.as_str()]));
}
