//! What passes a proxy that is not of the mesh: what both ends know of each other where no connection joins them.
//!
//! The origin signs what its application sent, for the workload that policy names behind the intermediary, and adds two
//! fields: the target as it wrote it, which the intermediary may rewrite as policy says, and the identity that the
//! request is for. The sequence is one of its own; see [`OriginWindows`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::rand;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use signet_identity::{Fingerprint, SpiffeId};
use signet_policy::Refusal;
use signet_signature::{ChannelId, OriginWindows, SignatureError, VerifiedHead, VerifiedKey};

use crate::channel::{Known, decode_chain};
use crate::clock;
use crate::headers::{MESH_CERT, MESH_TARGET};
use crate::sign::SCHEME;
use crate::snapshot::Snapshot;

/// Signing certificates of origins remembered per worker: as many callers as one workload usually has, at some 2 KiB.
const SIGNERS_MAX: usize = 256;

/// Who signed what came from an intermediary.
pub(crate) struct Signer {
    known: Known,
    /// The snapshot under which it was last found trusted.
    checked: Cell<u64>,
}

impl Signer {
    /// The identity.
    pub(crate) fn id(&self) -> &SpiffeId {
        self.known.identity.id()
    }

    /// The key, if that is the one meant.
    pub(crate) fn resolve(&self, keyid: &str, now: SystemTime) -> Option<VerifiedKey> {
        self.known.resolve(keyid, now)
    }

    /// Whether it is still trusted under the snapshot: asked once per snapshot.
    pub(crate) fn check_trust(&self, snapshot: &Snapshot) -> Result<(), Refusal> {
        if self.checked.get() == snapshot.edition {
            return Ok(());
        }
        if !self.known.is_trusted(snapshot, clock::now()) {
            return Err(Refusal::PeerUnverified);
        }
        self.checked.set(snapshot.edition);
        Ok(())
    }
}

/// The signing certificates that one worker has seen from behind intermediaries.
#[derive(Default)]
pub(crate) struct Signers(RefCell<HashMap<Fingerprint, Rc<Signer>>>);

impl Signers {
    /// Who signed a message with these fields, by the chain it brings.
    pub(crate) fn of(&self, headers: &HeaderMap, snapshot: &Snapshot) -> Result<Rc<Signer>, Refusal> {
        let value = only(headers, &MESH_CERT)?.ok_or(Refusal::SignatureUnknownKey)?;
        let chain = decode_chain(value).ok_or(Refusal::SignatureMalformed)?;
        let leaf = chain.first().map(|leaf| Fingerprint::of(leaf)).ok_or(Refusal::SignatureMalformed)?;
        let mut known = self.0.borrow_mut();
        if let Some(signer) = known.get(&leaf) {
            signer.check_trust(snapshot).map_err(|_| Refusal::SignatureUnknownKey)?;
            return Ok(Rc::clone(signer));
        }
        let identity = Known::verify(&chain, snapshot, clock::now())?;
        let signer = Rc::new(Signer { known: identity, checked: Cell::new(snapshot.edition) });
        if known.len() >= SIGNERS_MAX {
            // What is still needed is verified once more.
            known.clear();
        }
        known.insert(leaf, Rc::clone(&signer));
        Ok(signer)
    }
}

/// The places of one worker's requests behind intermediaries: an epoch for each workload they are for.
#[derive(Default)]
pub(crate) struct Epochs(RefCell<HashMap<SpiffeId, (ChannelId, u64)>>);

impl Epochs {
    /// The nonce of the next request for a workload. Policy bounds how many there are.
    pub(crate) fn next(&self, to: &SpiffeId) -> Result<String, Refusal> {
        let mut epochs = self.0.borrow_mut();
        if let Some((epoch, seq)) = epochs.get_mut(to) {
            *seq += 1;
            return Ok(epoch.nonce(*seq));
        }
        let mut epoch = [0; 16];
        rand::fill(&mut epoch).map_err(|_| Refusal::NotReady)?;
        let epoch = ChannelId(epoch);
        epochs.insert(to.clone(), (epoch, 1));
        Ok(epoch.nonce(1))
    }
}

/// The requests that were accepted from behind intermediaries, by all workers: an intermediary chooses which one it
/// reaches.
pub(crate) struct Relayed(Mutex<OriginWindows>);

impl Default for Relayed {
    fn default() -> Self {
        Self(Mutex::new(OriginWindows::new(clock::unix_seconds())))
    }
}

impl Relayed {
    /// Accepts a verified request once.
    pub(crate) fn admit(&self, head: &VerifiedHead, skew: u64) -> Result<(), SignatureError> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.admit(head, clock::unix_seconds(), skew)
    }
}

/// The target of a request as its origin wrote it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) uri: Uri,
    pub(crate) authority: String,
}

impl Target {
    /// As a header field.
    pub(crate) fn field(uri: &Uri, authority: &str) -> Result<HeaderValue, Refusal> {
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        HeaderValue::try_from(format!("{SCHEME}://{authority}{path}")).map_err(|_| Refusal::MalformedMessage)
    }

    /// From the header field.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let value = only(headers, &MESH_TARGET)?.ok_or(Refusal::SignatureMissing)?;
        let text = value.to_str().map_err(|_| Refusal::SignatureMalformed)?;
        let rest = text.strip_prefix(SCHEME).and_then(|rest| rest.strip_prefix("://"));
        let rest = rest.ok_or(Refusal::SignatureMalformed)?;
        let (authority, target) = rest.split_at(rest.find(['/', '*']).ok_or(Refusal::SignatureMalformed)?);
        let uri = Uri::try_from(target).map_err(|_| Refusal::SignatureMalformed)?;
        Ok(Self { uri, authority: authority.to_owned() })
    }
}

/// The value of a field that stands there once or not at all.
pub(crate) fn only<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Refusal> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (only, None) => Ok(only),
        _ => Err(Refusal::SignatureMalformed),
    }
}

/// The fields that signatures speak of: all but those that the intermediary may change.
pub(crate) fn fixed(headers: &HeaderMap, may_change: &[String]) -> HeaderMap {
    let mut fixed = headers.clone();
    for name in may_change {
        fixed.remove(name);
    }
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_survives_its_field_as_it_was_written() {
        for (target, authority) in
            [("/lm/x?y=1", "proxy"), ("/", "proxy:80"), ("/a?", "[::1]:80"), ("*", "proxy")]
        {
            let uri: Uri = target.parse().unwrap();
            let mut headers = HeaderMap::new();
            headers.insert(MESH_TARGET, Target::field(&uri, authority).unwrap());
            let read = Target::of(&headers).unwrap();
            assert_eq!((read.uri, read.authority.as_str()), (uri, authority));
        }
    }

    #[test]
    fn a_target_that_is_missing_double_or_of_another_form_is_refused() {
        let mut headers = HeaderMap::new();
        assert_eq!(Target::of(&headers), Err(Refusal::SignatureMissing));
        for text in ["", "/x", "https://proxy/x", "http://proxy", "http:///", "http://proxy/ x"] {
            headers.insert(MESH_TARGET, HeaderValue::from_str(text).unwrap());
            let refused = Target::of(&headers).is_ok_and(|read| read.authority.is_empty());
            assert!(refused || Target::of(&headers).is_err(), "{text}");
        }
        headers.insert(MESH_TARGET, HeaderValue::from_static("http://proxy/x"));
        headers.append(MESH_TARGET, HeaderValue::from_static("http://proxy/y"));
        assert_eq!(Target::of(&headers), Err(Refusal::SignatureMalformed));
    }

    #[test]
    fn each_request_for_a_workload_has_a_place_of_its_own() {
        let epochs = Epochs::default();
        let [one, two] =
            ["spiffe://td/agent/d/a", "spiffe://td/agent/d/b"].map(|id| SpiffeId::parse(id).unwrap());
        let places: Vec<_> = [&one, &one, &two]
            .into_iter()
            .map(|to| ChannelId::of(&epochs.next(to).unwrap()).unwrap())
            .collect();
        assert_eq!((places[0].0, places[0].1, places[1].1), (places[1].0, 1, 2));
        assert_ne!(places[0].0, places[2].0);
    }
}
