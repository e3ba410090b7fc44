//! The shape of `Federation` manifests.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::schema::{List, OperationSpec, given};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct FederationSpec {
    pub(crate) trust_domain: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) inbound: Option<List<InboundSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) outbound: Option<List<OutboundSpec>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InboundSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) from: List<ForeignSpec>,
    pub(crate) workloads: List<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) to: Option<List<OperationSpec>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutboundSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) workloads: List<String>,
    pub(crate) to: List<ForeignSpec>,
}

/// Who of the other trust domain is meant: by identity, for class, role and device are not told across.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForeignSpec {
    pub(crate) identity: Spanned<String>,
}
