//! Code generated from `proto/sync.proto` and `proto/admin.proto`; the schema files hold the documentation.

#[allow(
    missing_docs,
    clippy::all,
    clippy::or_fun_call,
    clippy::use_self,
    clippy::unwrap_used,
    reason = "generated code; the schema is documented in proto/sync.proto"
)]
/// Proxy and control plane: package `signet.sync.v1`.
pub mod sync {
    tonic::include_proto!("signet.sync.v1");
}

#[allow(
    missing_docs,
    clippy::all,
    clippy::or_fun_call,
    clippy::use_self,
    clippy::unwrap_used,
    reason = "generated code; the schema is documented in proto/admin.proto"
)]
/// Operator and control plane: package `signet.admin.v1`.
pub mod admin {
    tonic::include_proto!("signet.admin.v1");
}

/// Messages that carry a secret show that it is there, never what it is.
mod redacted {
    use std::fmt;

    impl fmt::Debug for super::sync::EnrolRequest {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("EnrolRequest")
                .field("protocol", &self.protocol)
                .field("min_protocol", &self.min_protocol)
                .field("token_id", &self.token_id)
                .field("version", &self.version)
                .field("attestor", &self.attestor)
                .finish_non_exhaustive()
        }
    }

    impl fmt::Debug for super::sync::JoinAreaRequest {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("JoinAreaRequest").field("token_id", &self.token_id).finish_non_exhaustive()
        }
    }

    impl fmt::Debug for super::admin::AddAreaResponse {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("AddAreaResponse").field("expires", &self.expires).finish_non_exhaustive()
        }
    }

    impl fmt::Debug for super::sync::SignJwtResponse {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("SignJwtResponse").finish_non_exhaustive()
        }
    }

    impl fmt::Debug for super::admin::CreateTokenResponse {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("CreateTokenResponse")
                .field("id", &self.id)
                .field("spiffe_id", &self.spiffe_id)
                .field("network", &self.network)
                .field("expires", &self.expires)
                .finish_non_exhaustive()
        }
    }
}
