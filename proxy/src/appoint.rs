//! Roles that this workload gives to others: asked for at the admin socket, decided on by the control plane.
//!
//! The control plane knows who asks by the certificate of this sidecar, and whether policy entitles that identity. Nothing
//! is kept here: what comes of it arrives with the policy, as for everybody else.

use serde::Deserialize;
use signet_identity::SpiffeId;
use signet_policy::unix_seconds;
use tokio::sync::oneshot;

/// Wishes that wait for the control thread: each is one of a person or of the workload's own logic.
pub(crate) const WAITING_MAX: usize = 8;

/// Bytes of a wish: a SPIFFE ID of 2,048 and a role's name fit.
pub(crate) const WISH_BYTES_MAX: usize = 4 * 1024;

/// What is asked at the socket.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Asked {
    role: String,
    identity: String,
    /// Such as `2026-03-31T18:00:00Z`.
    #[serde(default)]
    not_after: Option<String>,
}

/// A role for somebody.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wish {
    /// The role.
    pub role: String,
    /// Who is to hold it.
    pub identity: SpiffeId,
    /// Until when, in seconds since 1970; `None` to end it.
    pub not_after: Option<u64>,
}

impl Wish {
    /// Reads a wish: `{"role": …, "identity": …, "notAfter": …}`, without an end to `dismiss`.
    ///
    /// # Errors
    /// What is wrong with it, and how to write it.
    pub(crate) fn read(text: &[u8], dismiss: bool) -> Result<Self, String> {
        let asked: Asked = serde_json::from_slice(text)
            .map_err(|error| format!("{error}; send {{\"role\", \"identity\", \"notAfter\"}}"))?;
        let identity = SpiffeId::parse(&asked.identity)
            .map_err(|error| format!("`identity` is no SPIFFE ID: {error}"))?;
        let not_after = match (asked.not_after, dismiss) {
            (None, true) => None,
            (Some(text), false) => {
                let fix = "`notAfter` is no moment; write it such as 2026-03-31T18:00:00Z";
                Some(unix_seconds(&text).filter(|end| *end > 0).ok_or(fix)?)
            }
            (None, false) => return Err("`notAfter` is missing: an appointment has an end".to_owned()),
            (Some(_), true) => {
                return Err("`notAfter` has no meaning where an appointment is ended".to_owned());
            }
        };
        Ok(Self { role: asked.role, identity, not_after })
    }
}

/// Why nobody was appointed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refused {
    /// The control plane says no: a stable code and a sentence.
    ByPolicy(String),
    /// The control plane cannot be asked now.
    Unavailable(String),
}

/// A wish and where its answer goes: the end that counts, zero for an appointment that was ended.
#[derive(Debug)]
pub struct Request {
    /// What is wanted.
    pub wish: Wish,
    /// Who waits.
    pub answer: oneshot::Sender<Result<u64, Refused>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_read_strictly() {
        let read = |text: &str, dismiss| Wish::read(text.as_bytes(), dismiss);
        let identity = "spiffe://td/agent/b/lm";
        let whole =
            format!(r#"{{"role":"backup","identity":"{identity}","notAfter":"1970-01-02T00:00:00Z"}}"#);
        let short = format!(r#"{{"role":"backup","identity":"{identity}"}}"#);
        let wish = read(&whole, false).unwrap();
        assert_eq!(
            (wish.role.as_str(), wish.identity.as_str(), wish.not_after),
            ("backup", identity, Some(86_400))
        );
        assert_eq!(read(&short, true).unwrap().not_after, None);
        for (text, dismiss) in [
            (short.as_str(), false),
            (whole.as_str(), true),
            (r#"{"role":"r","identity":"me","notAfter":"1970-01-02T00:00:00Z"}"#, false),
            (r#"{"role":"r","identity":"spiffe://td/a","notAfter":"tomorrow"}"#, false),
            (r#"{"role":"r","identity":"spiffe://td/a","notAfter":"1970-01-01T00:00:00Z"}"#, false),
            (r#"{"role":"r","identity":"spiffe://td/a","by":"x"}"#, true),
            ("", true),
        ] {
            assert!(read(text, dismiss).is_err(), "{text}");
        }
    }
}
