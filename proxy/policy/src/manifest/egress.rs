//! The shape of `EgressPolicy` manifests.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::schema::{List, TargetSpec, given};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EgressPolicySpec {
    pub(crate) target: Spanned<TargetSpec>,
    pub(crate) to: List<EgressEntrySpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EgressEntrySpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) names: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) cidrs: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ports: Option<List<u32>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) protocol: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) tls: Option<Spanned<OriginationSpec>>,
    /// For the operator's own use.
    #[serde(default, rename = "comment", deserialize_with = "given")]
    pub(crate) _comment: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct OriginationSpec {
    pub(crate) originate: Spanned<bool>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) server_name: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) port: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ca_certificates: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) system_roots: Option<Spanned<bool>>,
}
