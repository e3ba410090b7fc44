//! What a workload's sidecar offers the application beside it by SPIFFE's Workload API.

use serde::{Deserialize, Serialize};

/// Nothing, unless the operator says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadApi {
    /// An X.509-SVID of the application's own, and the roots.
    #[serde(default)]
    pub x509: bool,
    /// JWT-SVIDs, and the keys that such tokens verify under.
    #[serde(default)]
    pub jwt: Option<JwtApi>,
}

/// Whom the application may show a JWT-SVID to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtApi {
    /// Compared in full. Without any, the application can only verify the tokens of others.
    #[serde(default)]
    pub audiences: Vec<String>,
}

impl WorkloadApi {
    /// Whether nothing is offered.
    pub fn is_empty(&self) -> bool {
        !self.x509 && self.jwt.is_none()
    }

    /// The first of these audiences that the application gets no token for.
    pub fn refused_audience<'a>(&self, audiences: &'a [String]) -> Option<&'a str> {
        let listed = self.jwt.as_ref().map(|jwt| &*jwt.audiences).unwrap_or_default();
        audiences.iter().find(|audience| !listed.contains(audience)).map(String::as_str)
    }
}
