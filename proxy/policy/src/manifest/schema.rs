//! The shape of manifests. Every scalar keeps its place; text becomes values in `compile`, where one run can report
//! several faults.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_saphyr::Spanned;

use crate::diagnostic::Place;
use crate::manifest::Kind;
use crate::manifest::egress::EgressPolicySpec;
use crate::manifest::federation::FederationSpec;
use crate::manifest::traffic::TrafficPolicySpec;

/// A list that knows where it starts and where each entry stands.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct List<T>(pub(crate) Spanned<Vec<Spanned<T>>>);

/// One document. Version and kind are checked by the caller, who knows their places.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) api_version: Spanned<String>,
    pub(crate) kind: Spanned<String>,
    pub(crate) name: Spanned<String>,
    pub(crate) spec: Result<Spec, Unread>,
}

/// Why a spec was skipped: its shape depends on the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    KindComesLater(Place),
    KindIsUnknown,
}

#[allow(
    clippy::large_enum_variant,
    reason = "some kilobytes for each manifest, of which a mesh has hundreds"
)]
#[derive(Clone, Debug)]
pub(crate) enum Spec {
    AccessPolicy(AccessPolicySpec),
    EgressPolicy(EgressPolicySpec),
    Federation(FederationSpec),
    HeaderPolicy(HeaderPolicySpec),
    Mesh(Box<MeshSpec>),
    NormalizationPolicy(NormalizationPolicySpec),
    ProtectionPolicy(ProtectionPolicySpec),
    RoleAppointer(RoleAppointerSpec),
    RoleGrant(RoleGrantSpec),
    TrafficPolicy(Box<TrafficPolicySpec>),
    Workload(WorkloadSpec),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: Spanned<String>,
    /// For the operator's own use.
    #[serde(default, rename = "labels")]
    _labels: BTreeMap<String, String>,
    /// For the operator's own use.
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MeshSpec {
    pub(crate) trust_domain: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) mtls: Option<MtlsSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) protection: Option<ProtectionSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) clock_skew: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) networks: Option<List<NetworkSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) egress: Option<List<EgressSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) intermediaries: Option<List<IntermediarySpec>>,
    #[serde(default)]
    pub(crate) certificates: CertificatesSpec,
    #[serde(default, deserialize_with = "given")]
    pub(crate) offline: Option<OfflineSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfflineSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) agent: Option<OfflineBoundSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) app: Option<OfflineBoundSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) external: Option<OfflineBoundSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) platform: Option<OfflineBoundSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfflineBoundSpec {
    pub(crate) budget: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) then: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IntermediarySpec {
    pub(crate) name: Spanned<String>,
    pub(crate) addresses: List<String>,
    pub(crate) ports: List<u32>,
    pub(crate) routes: List<IntermediaryRouteSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct IntermediaryRouteSpec {
    pub(crate) to: Spanned<String>,
    pub(crate) port: Spanned<u32>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) path: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) replace_prefix: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) host: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) may_change: Option<List<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MtlsSpec {
    pub(crate) mode: Spanned<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ProtectionSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) level: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) mode: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) record_hash: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) sealed_headers: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) verify: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkSpec {
    pub(crate) name: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) cidrs: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) gateways: Option<List<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EgressSpec {
    pub(crate) cidr: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ports: Option<List<u32>>,
    pub(crate) protocol: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) comment: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificatesSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) agent: Option<LifetimeSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) app: Option<LifetimeSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) external: Option<LifetimeSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) platform: Option<LifetimeSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LifetimeSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) lifetime: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) rejoin: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WorkloadSpec {
    pub(crate) class: Spanned<String>,
    pub(crate) device: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) workload: Option<Spanned<String>>,
    pub(crate) network: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) names: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ports: Option<List<PortSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) mtls: Option<MtlsSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) protection: Option<ProtectionSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) addresses: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) advertise: Option<List<AdvertiseSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) virtual_addresses: Option<List<AdvertiseSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) workload_api: Option<WorkloadApiSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WorkloadApiSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) x509: Option<Spanned<bool>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) jwt: Option<JwtApiSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JwtApiSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) audiences: Option<List<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PortSpec {
    pub(crate) port: Spanned<u32>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) name: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) protocol: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) speaks_first: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct AdvertiseSpec {
    pub(crate) network: Spanned<String>,
    pub(crate) address: Spanned<String>,
    pub(crate) port: Spanned<u32>,
    pub(crate) target_port: Spanned<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessPolicySpec {
    pub(crate) target: Spanned<TargetSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ports: Option<List<u32>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) mode: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) action: Option<Spanned<String>>,
    pub(crate) rules: List<RuleSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) workloads: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) classes: Option<List<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RuleSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) from: List<SourceSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) to: Option<List<OperationSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) when: Option<Spanned<ConditionSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) life_safety: Option<Spanned<bool>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ConditionSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) source_addresses: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) time: Option<List<WindowSpec>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WindowSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) days: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) from: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) to: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) utc_offset: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SourceSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) identity: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) class: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) role: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) trust_domain: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) any: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OperationSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) methods: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) paths: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ports: Option<List<u32>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) headers: Option<List<HeaderSpec>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeaderSpec {
    pub(crate) name: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) exact: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) prefix: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) present: Option<Spanned<bool>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) absent: Option<Spanned<bool>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct HeaderPolicySpec {
    pub(crate) target: Spanned<TargetSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ports: Option<List<u32>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) identity_headers: Option<List<IdentityHeadersSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) peer_header: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdentityHeadersSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) names: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) entitled: Option<List<SourceSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) overwrite: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NormalizationPolicySpec {
    pub(crate) target: Spanned<TargetSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ports: Option<List<u32>>,
    pub(crate) rules: List<NormalizationRuleSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NormalizationRuleSpec {
    pub(crate) to: List<RouteSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) path: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) host: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) headers: Option<List<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProtectionPolicySpec {
    pub(crate) target: Spanned<TargetSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ports: Option<List<u32>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) default: Option<Spanned<ProtectionSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) rules: Option<List<ProtectionRuleSpec>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ProtectionRuleSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) to: List<RouteSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) level: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) mode: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) sealed_headers: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) verify: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouteSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) methods: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) paths: Option<List<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RoleAppointerSpec {
    pub(crate) role: Spanned<String>,
    pub(crate) appointers: List<SourceSpec>,
    pub(crate) appointees: List<SourceSpec>,
    pub(crate) max_lifetime: Spanned<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RoleGrantSpec {
    pub(crate) identity: Spanned<String>,
    pub(crate) role: Spanned<String>,
    pub(crate) not_after: Spanned<String>,
}

/// A field that is there has a value: `methods:` with nothing after it must not mean «all methods».
pub(super) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_struct("Document", ENVELOPE, DocumentVisitor)
    }
}

/// The fields of every document.
pub(crate) const ENVELOPE: &[&str] = &["apiVersion", "kind", "metadata", "spec"];

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Field {
    ApiVersion,
    Kind,
    Metadata,
    Spec,
}

/// Reads the envelope in one pass, so that places survive: the shape of `spec` depends on `kind`, which therefore has
/// to come first, as it does in everything that writes such manifests.
struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest with apiVersion, kind, metadata and spec")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut api_version = None;
        let mut kind: Option<Spanned<String>> = None;
        let mut metadata: Option<Metadata> = None;
        let mut spec = None;
        while let Some(field) = map.next_key::<Field>()? {
            match field {
                Field::ApiVersion => api_version = Some(map.next_value()?),
                Field::Kind => kind = Some(map.next_value()?),
                Field::Metadata => metadata = Some(map.next_value()?),
                Field::Spec => spec = Some(read_spec(kind.as_ref(), &mut map)?),
            }
        }
        Ok(Document {
            api_version: api_version.ok_or_else(|| de::Error::missing_field("apiVersion"))?,
            kind: kind.ok_or_else(|| de::Error::missing_field("kind"))?,
            name: metadata.ok_or_else(|| de::Error::missing_field("metadata"))?.name,
            spec: spec.ok_or_else(|| de::Error::missing_field("spec"))?,
        })
    }
}

fn read_spec<'de, A: MapAccess<'de>>(
    kind: Option<&Spanned<String>>,
    map: &mut A,
) -> Result<Result<Spec, Unread>, A::Error> {
    let Some(kind) = kind else {
        let skipped: Spanned<IgnoredAny> = map.next_value()?;
        return Ok(Err(Unread::KindComesLater(Place::of(&skipped))));
    };
    let Some(kind) = Kind::ALL.into_iter().find(|known| known.as_str() == kind.value) else {
        map.next_value::<IgnoredAny>()?;
        return Ok(Err(Unread::KindIsUnknown));
    };
    Ok(Ok(match kind {
        Kind::AccessPolicy => Spec::AccessPolicy(map.next_value()?),
        Kind::EgressPolicy => Spec::EgressPolicy(map.next_value()?),
        Kind::Federation => Spec::Federation(map.next_value()?),
        Kind::HeaderPolicy => Spec::HeaderPolicy(map.next_value()?),
        Kind::Mesh => Spec::Mesh(Box::new(map.next_value()?)),
        Kind::NormalizationPolicy => Spec::NormalizationPolicy(map.next_value()?),
        Kind::ProtectionPolicy => Spec::ProtectionPolicy(map.next_value()?),
        Kind::RoleAppointer => Spec::RoleAppointer(map.next_value()?),
        Kind::RoleGrant => Spec::RoleGrant(map.next_value()?),
        Kind::TrafficPolicy => Spec::TrafficPolicy(Box::new(map.next_value()?)),
        Kind::Workload => Spec::Workload(map.next_value()?),
    }))
}
