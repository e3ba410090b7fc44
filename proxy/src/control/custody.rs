//! Whoever holds the keys of channels, asked where nobody else of the thread waits: a TPM takes its time.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use signet_identity::{
    ChannelKey, ChannelKeyRequest, KeyModuleError, Keys, RequestError, SvidError, TlsSvid,
};
use signet_tpm::Tpm;

/// Where new keys are made, and old ones found.
pub(super) fn keys(tpm: Option<&Tpm>) -> Keys {
    tpm.map_or(Keys::Memory, |tpm| Keys::Module(Arc::new(tpm.clone())))
}

/// A new key and the request for its certificate.
pub(super) async fn request(keys: Keys) -> Result<ChannelKeyRequest, RequestError> {
    asked(move || ChannelKeyRequest::new(&keys)).await
}

/// The request for the certificate that follows, over a new key or the same, see [`ChannelKeyRequest::after`].
pub(super) async fn request_after(key: &ChannelKey) -> Result<ChannelKeyRequest, RequestError> {
    let key = key.clone();
    asked(move || ChannelKeyRequest::after(&key)).await
}

/// Puts a chain and its key together.
pub(super) async fn svid(chain: Vec<CertificateDer<'static>>, key: ChannelKey) -> Result<TlsSvid, SvidError> {
    let made = tokio::task::spawn_blocking(move || TlsSvid::new(chain, key)).await;
    made.unwrap_or(Err(SvidError::KeyUnavailable))
}

async fn asked(
    ask: impl FnOnce() -> Result<ChannelKeyRequest, RequestError> + Send + 'static,
) -> Result<ChannelKeyRequest, RequestError> {
    let ended = || KeyModuleError("the thread that was to make it has ended".to_owned());
    tokio::task::spawn_blocking(ask).await.unwrap_or_else(|_| Err(ended().into()))
}
