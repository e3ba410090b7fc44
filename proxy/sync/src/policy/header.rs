//! Header policies to protobuf and back.

use signet_policy::{FieldPattern, HeaderPolicyModel, IdentityFields};

use super::access::{source_from, source_to, target_from, target_to};
use super::{each, ports_from, ports_to};
use crate::DecodeError;
use crate::proto::sync as wire;

pub(super) fn policy_from(policy: wire::HeaderPolicy) -> Result<HeaderPolicyModel, DecodeError> {
    const PEER: &str = "policy.header_policies.peer_header";
    if let Some(name) = &policy.peer_header {
        // It becomes a header field, so it has to be the name of one, in lower case and without a wildcard.
        let parsed = FieldPattern::parse(name).map_err(|_| DecodeError::Name { field: PEER })?;
        if parsed.exact() != Some(name) {
            return Err(DecodeError::Name { field: PEER });
        }
    }
    Ok(HeaderPolicyModel {
        name: policy.name,
        target: target_from("policy.header_policies.target", policy.target)?,
        ports: ports_from("policy.header_policies.ports", &policy.ports)?,
        fields: each(policy.fields, fields_from)?,
        peer_header: policy.peer_header,
    })
}

pub(super) fn policy_to(policy: &HeaderPolicyModel) -> wire::HeaderPolicy {
    wire::HeaderPolicy {
        name: policy.name.clone(),
        target: Some(target_to(&policy.target)),
        ports: ports_to(&policy.ports),
        fields: policy.fields.iter().map(fields_to).collect(),
        peer_header: policy.peer_header.clone(),
    }
}

fn fields_from(fields: wire::IdentityFields) -> Result<IdentityFields, DecodeError> {
    const NAMES: &str = "policy.header_policies.fields.names";
    Ok(IdentityFields {
        names: each(fields.names, |name| {
            FieldPattern::parse(&name).map_err(|_| DecodeError::Name { field: NAMES })
        })?,
        entitled: each(fields.entitled, source_from)?,
        overwrite: fields.overwrite,
    })
}

fn fields_to(fields: &IdentityFields) -> wire::IdentityFields {
    wire::IdentityFields {
        names: fields.names.iter().map(ToString::to_string).collect(),
        entitled: fields.entitled.iter().map(source_to).collect(),
        overwrite: fields.overwrite.clone(),
    }
}
