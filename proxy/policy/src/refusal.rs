//! Every «no» of the product, in one table.
//!
//! The code, the status, the side to blame, whether trying again can help, and the sentence for the caller stand
//! together here and nowhere else. `docs/policy.md` repeats the table, and a test compares the two.

use std::fmt;

use serde::{Serialize, Serializer};

/// Whose fault a refusal is: who has to change something before the same message can pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The destination workload, or the sidecar in front of it.
    Callee,
    /// The workload that sent the message, or the sidecar behind it.
    Caller,
    /// The mesh itself: its configuration, its state, its load.
    Mesh,
}

impl Blame {
    /// The metric label: `callee`, `caller` or `mesh`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Callee => "callee",
            Self::Caller => "caller",
            Self::Mesh => "mesh",
        }
    }
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! refusals {
    ($($variant:ident, $code:literal, $status:literal, $blame:ident, $retryable:literal, $detail:literal;)+) => {
        /// Why a message, a connection or a stream was refused.
        ///
        /// The code is stable: it is what callers see in the problem document, what metrics are labelled with, and
        /// what logs and `signet explain` print.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Refusal {
            $(#[doc = concat!("`", $code, "`: ", $detail, ".")] $variant,)+
        }

        impl Refusal {
            /// Every refusal, in alphabetical order of the code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name, in kebab-case.
            pub fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// The HTTP status a caller is answered with where there is HTTP; elsewhere the connection is reset.
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// One sentence for the caller. It never holds names, addresses or data of the message.
            pub fn detail(self) -> &'static str {
                match self { $(Self::$variant => $detail,)+ }
            }

            /// Who has to change something.
            pub fn blame(self) -> Blame {
                match self { $(Self::$variant => Blame::$blame,)+ }
            }

            /// Whether the very same call can succeed a moment later with nobody changing anything.
            pub fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)+ }
            }
        }
    };
}

refusals! {
    AccessDenied, "access-denied", 403, Caller, false,
        "policies select this port and none of their rules allows this caller to do this";
    AmbiguousTarget, "ambiguous-target", 400, Caller, false,
        "the request target or the host can be read in more than one way";
    AuthorityMismatch, "authority-mismatch", 403, Caller, false,
        "the request names a host that belongs to another workload than the one it was sent to";
    BadSignature, "bad-signature", 400, Caller, false,
        "the signature does not match the message";
    BodyTooLarge, "body-too-large", 413, Caller, false,
        "the body is longer than this path can verify";
    CheckpointMismatch, "checkpoint-mismatch", 400, Caller, false,
        "the signed checkpoint of a connection does not fit the messages received on it";
    CheckpointOverdue, "checkpoint-overdue", 503, Mesh, true,
        "too many messages of the connection wait for their signed checkpoint";
    CircuitOpen, "circuit-open", 503, Callee, true,
        "every endpoint of the destination has failed too often and is given a rest";
    ConcurrencyLimit, "concurrency-limit", 503, Caller, true,
        "as many requests to the destination as policy allows are under way, and as many wait";
    ConnectRefused, "connect-refused", 403, Caller, false,
        "the mesh carries no CONNECT requests of applications";
    DenyRule, "deny-rule", 403, Caller, false,
        "a rule denies this caller what it asks for, whatever other rules allow";
    DigestMismatch, "digest-mismatch", 400, Caller, false,
        "the body does not match its signed digest";
    Draining, "draining", 503, Mesh, true,
        "the sidecar is shutting down and takes no new work";
    EgressUnverified, "egress-unverified", 502, Callee, false,
        "the server outside the mesh did not prove the name it was called by";
    HeaderTooLarge, "header-too-large", 431, Caller, false,
        "the header section is larger than the mesh accepts";
    IntermediaryRewrite, "intermediary-rewrite", 400, Caller, false,
        "what came from the intermediary is not what policy lets it make of the signed request";
    IntermediaryRoute, "intermediary-route", 403, Caller, false,
        "policy names no workload behind the intermediary for this path";
    LoopDetected, "loop-detected", 508, Mesh, false,
        "the connection would lead back into the sidecar that opened it";
    MalformedMessage, "malformed-message", 400, Caller, false,
        "the message breaks the framing or header rules of HTTP";
    NoPolicy, "no-policy", 403, Mesh, false,
        "no enforced policy selects this port of this workload, and what nobody allowed is refused";
    NotReady, "not-ready", 503, Mesh, true,
        "the sidecar has no certificate or no policy yet";
    OpaqueToL7Port, "opaque-to-l7-port", 403, Caller, false,
        "this port is decided on by method, path or header, and these bytes are not HTTP";
    Overloaded, "overloaded", 503, Mesh, true,
        "a limit of the sidecar is reached";
    PeerIdentityMismatch, "peer-identity-mismatch", 502, Callee, false,
        "the destination proved another identity than the one expected there";
    PeerUnverified, "peer-unverified", 502, Callee, false,
        "the destination could not prove a mesh identity";
    PlaintextRefused, "plaintext-refused", 403, Caller, false,
        "this workload accepts mutually authenticated connections only";
    PolicyStale, "policy-stale", 503, Mesh, true,
        "the sidecar has not heard from its control plane for longer than policy lets it go on";
    RateLimited, "rate-limited", 429, Caller, true,
        "more requests came than policy allows in this time";
    RecipientUnknown, "recipient-unknown", 503, Mesh, true,
        "the destination has published no key yet that the message could be sealed for";
    RecordMalformed, "record-malformed", 400, Caller, false,
        "a signed record is malformed or out of order";
    Replay, "replay", 400, Caller, false,
        "the message was seen before or does not belong on this channel";
    ResponseUnverified, "response-unverified", 502, Callee, false,
        "the response carries no valid signature of the destination";
    SealBroken, "seal-broken", 400, Caller, false,
        "the sealed part of the message does not open, or belongs to another message";
    SealMissing, "seal-missing", 400, Caller, false,
        "the message has to be sealed for its destination, and is not";
    SealUnknownKey, "seal-unknown-key", 400, Caller, false,
        "the message is sealed for a key that this workload does not hold";
    SignatureClock, "signature-clock", 400, Caller, false,
        "the signature was made in the future: the clocks differ too much";
    SignatureCoverage, "signature-coverage", 400, Caller, false,
        "the signature leaves out a part of the message that it must cover";
    SignatureExpired, "signature-expired", 400, Caller, false,
        "the signature is no longer valid";
    SignatureMalformed, "signature-malformed", 400, Caller, false,
        "the signature headers cannot be read";
    SignatureMissing, "signature-missing", 400, Caller, false,
        "the message carries no mesh signature, or more than one";
    SignatureMode, "signature-mode", 400, Caller, false,
        "the message is authenticated in a way that this workload's policy does not take";
    SignatureUnknownKey, "signature-unknown-key", 400, Caller, false,
        "the signing key is not known to belong to the connected peer";
    StreamTruncated, "stream-truncated", 400, Caller, false,
        "the signed stream ended without its signed end";
    UnmeshedDestination, "unmeshed-destination", 403, Mesh, false,
        "the destination is not in the mesh and not listed as permitted egress";
    UpgradeUnsupported, "upgrade-unsupported", 501, Caller, false,
        "the mesh cannot carry the protocol this request wants to switch to";
    UpstreamTimeout, "upstream-timeout", 504, Callee, true,
        "the destination did not answer in time";
    UpstreamUnreachable, "upstream-unreachable", 503, Callee, true,
        "the destination could not be reached";
}

impl Refusal {
    /// The refusal with this code, if there is one.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|refusal| refusal.code() == code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl std::error::Error for Refusal {}

impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_sorted_and_found_again() {
        let codes: Vec<_> = Refusal::ALL.iter().map(|r| r.code()).collect();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]), "{codes:?}");
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::from_code(refusal.code()), Some(*refusal));
            assert_eq!(serde_json::to_string(refusal).unwrap(), format!("\"{}\"", refusal.code()));
        }
        assert_eq!(Refusal::from_code("something-else"), None);
    }

    #[test]
    fn codes_follow_the_variant_names() {
        for refusal in Refusal::ALL {
            let camel: String =
                refusal.code().split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
            assert_eq!(camel, format!("{refusal:?}"));
        }
    }

    #[test]
    fn only_availability_refusals_may_be_retried() {
        for refusal in Refusal::ALL {
            assert_eq!(refusal.retryable(), matches!(refusal.status(), 429 | 503 | 504), "{refusal}");
        }
    }

    #[test]
    fn the_documented_table_is_this_table() {
        let page = include_str!("../../../docs/policy.md");
        let documented: Vec<&str> = page
            .lines()
            .skip_while(|line| !line.starts_with("| code | status |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        let defined: Vec<String> = Refusal::ALL
            .iter()
            .map(|r| {
                let retry = if r.retryable() { "yes" } else { "no" };
                format!("| `{}` | {} | {} | {retry} | {} |", r.code(), r.status(), r.blame(), r.detail())
            })
            .collect();
        assert_eq!(documented, defined, "expected table:\n{}\n", defined.join("\n"));
    }
}
