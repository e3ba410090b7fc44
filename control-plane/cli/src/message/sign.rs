//! Signs a raw message and adds the two fields to it.

use http::HeaderValue;
use signet_signature::sign::{SignMessageError, SignedMessage};
use signet_signature::{
    Algorithm, Component, Params, ParseError, SigningKey, parse_signatures, sha256_header,
};

use super::Message;

/// What the signature shall say.
#[derive(Debug, Default)]
pub(crate) struct SignOptions {
    pub(crate) label: String,
    /// Empty: what [`usual_components`] gives.
    pub(crate) components: Vec<Component>,
    pub(crate) created: Option<u64>,
    pub(crate) expires: Option<u64>,
    pub(crate) nonce: Option<String>,
    pub(crate) alg: Option<Algorithm>,
    pub(crate) keyid: Option<String>,
    pub(crate) tag: Option<String>,
}

/// A signed message.
pub(crate) struct Signed {
    pub(crate) message: Message,
    pub(crate) fields: SignedMessage,
}

/// Why a message cannot be signed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignError {
    #[error("the message has signature fields that cannot be added to: {0}")]
    Existing(ParseError),
    #[error("the message has a signature labelled {0} already")]
    LabelTaken(String),
    #[error("{0} must be printable ASCII")]
    Parameter(&'static str),
    #[error(transparent)]
    Sign(#[from] SignMessageError),
}

/// Signs `message`. A `Content-Digest` is added if it is to be covered and is not there.
pub(crate) fn sign(
    mut message: Message,
    request: Option<&Message>,
    key: &SigningKey,
    options: &SignOptions,
) -> Result<Signed, SignError> {
    let signatures = parse_signatures(message.headers()).map_err(SignError::Existing)?;
    if signatures.iter().any(|signature| signature.label() == options.label) {
        return Err(SignError::LabelTaken(options.label.clone()));
    }
    let components = match options.components.as_slice() {
        [] => usual_components(&message),
        components => components.to_vec(),
    };
    let digest_asked = components.iter().any(is_own_digest);
    if digest_asked && !message.headers().contains_key("content-digest") {
        let digest = sha256_header(message.body());
        if let Ok(value) = HeaderValue::try_from(digest) {
            message.add_header("Content-Digest", &value);
        }
    }
    let fields = signet_signature::sign::sign(
        &message.view(request),
        &components,
        &params(options)?,
        &options.label,
        key,
    )?;
    message.add_header("Signature-Input", &fields.signature_input);
    message.add_header("Signature", &fields.signature);
    Ok(Signed { message, fields })
}

/// What nobody regrets having covered, as far as the message has it.
fn usual_components(message: &Message) -> Vec<Component> {
    let derived: &[&str] =
        if message.is_request() { &["@method", "@authority", "@path", "@query"] } else { &["@status"] };
    let fields = ["content-type", "content-encoding", "content-digest"];
    let present = fields.iter().filter(|name| message.headers().contains_key(**name));
    derived.iter().chain(present).filter_map(|name| Component::new(*name, Vec::new()).ok()).collect()
}

fn is_own_digest(component: &Component) -> bool {
    use signet_signature::component::Parameter::{Req, Tr};
    component.name() == "content-digest"
        && !component.parameters().iter().any(|parameter| matches!(parameter, Req | Tr))
}

/// In the order that strict readers elsewhere expect.
fn params(options: &SignOptions) -> Result<Params, SignError> {
    let mut params = Params::new();
    if let Some(created) = options.created {
        params = params.with_created(created);
    }
    if let Some(expires) = options.expires {
        params = params.with_expires(expires);
    }
    if let Some(nonce) = &options.nonce {
        params = params.with_nonce(nonce).map_err(|_| SignError::Parameter("nonce"))?;
    }
    if let Some(alg) = options.alg {
        params = params.with_alg(alg);
    }
    if let Some(keyid) = &options.keyid {
        params = params.with_keyid(keyid).map_err(|_| SignError::Parameter("keyid"))?;
    }
    if let Some(tag) = &options.tag {
        params = params.with_tag(tag).map_err(|_| SignError::Parameter("tag"))?;
    }
    Ok(params)
}
