//! The certificates that an area issued or took holders in by, as long as they are good: its word about them is believed at the
//! origin by the certificates themselves.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use signet_sync::proto::sync as wire;

use crate::records::{self, unix_seconds};
use crate::store::{Expect, Store, StoreError, Write};

/// By the fingerprint of the TLS leaf.
const CHAINS: &str = "area-chain/";

/// What proves a leaf: itself and its issuer.
const LINKS: usize = 2;

#[derive(Deserialize, Serialize)]
struct Chains {
    /// DER, base64.
    tls: Vec<String>,
    /// Empty for a holder that was taken in.
    signing: Vec<String>,
    /// Unix seconds.
    not_after: u64,
}

/// The write that keeps both chains of a leaf.
pub(crate) fn kept(
    fingerprint: &str,
    tls: &[CertificateDer<'_>],
    signing: &[CertificateDer<'_>],
    not_after: u64,
) -> Result<Write, StoreError> {
    let text =
        |chain: &[CertificateDer<'_>]| chain.iter().take(LINKS).map(|der| STANDARD.encode(der)).collect();
    let chains = Chains { tls: text(tls), signing: text(signing), not_after };
    records::put(format!("{CHAINS}{fingerprint}"), Expect::Any, &chains)
}

/// What is told of a leaf; nothing where it is not known any more.
pub(crate) async fn told(store: &dyn Store, fingerprint: &str) -> Result<Option<wire::AreaLeaf>, StoreError> {
    let found = records::read::<Chains>(store, &format!("{CHAINS}{fingerprint}")).await?;
    let bytes = |chain: &[String]| chain.iter().filter_map(|der| STANDARD.decode(der).ok()).collect();
    Ok(found.map(|found| wire::AreaLeaf {
        tls_chain: bytes(&found.record.tls),
        signing_chain: bytes(&found.record.signing),
    }))
}

/// Forgets those of leaves that have ended.
pub(crate) async fn sweep(store: &dyn Store, now: SystemTime) -> Result<(), StoreError> {
    for entry in store.list(CHAINS).await?.entries {
        let found = records::decode::<Chains>(&entry)?;
        if found.record.not_after <= unix_seconds(now) {
            match store.commit(vec![Write::delete(entry.key.clone(), Expect::At(found.revision))]).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
