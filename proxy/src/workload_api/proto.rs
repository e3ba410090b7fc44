//! Code generated from `proto/workload.proto`; the schema file holds the documentation.

pub use self::generated::*;

#[allow(
    missing_docs,
    clippy::all,
    clippy::or_fun_call,
    clippy::use_self,
    clippy::unwrap_used,
    reason = "generated code; the schema is documented in proto/workload.proto"
)]
mod generated {
    tonic::include_proto!("_");
}

/// Messages that carry a secret show that it is there, never what it is.
mod redacted {
    use std::fmt;

    impl fmt::Debug for super::X509svid {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("X509SVID").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
        }
    }

    impl fmt::Debug for super::Jwtsvid {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("JWTSVID").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
        }
    }

    impl fmt::Debug for super::ValidateJwtsvidRequest {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("ValidateJWTSVIDRequest").field("audience", &self.audience).finish_non_exhaustive()
        }
    }
}
