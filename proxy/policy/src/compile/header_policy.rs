//! `HeaderPolicy` manifests: which header fields say who calls, and who may send them.

use std::collections::HashSet;

use serde_saphyr::Spanned;

use crate::compile::{Scope, access_policy, condition, value};
use crate::diagnostic::{Place, quoted};
use crate::header_policy::{FieldNameError, FieldPattern, IDENTITY_FIELDS, field_name};
use crate::manifest::{HeaderPolicySpec, IdentityHeadersSpec};
use crate::model::{HeaderPolicyModel, IdentityFields};

pub(super) fn lower(
    scope: &mut Scope<'_>,
    spec: &HeaderPolicySpec,
    workloads: &HashSet<&str>,
) -> Option<HeaderPolicyModel> {
    let manifest_name = scope.manifest.spanned_name().clone();
    let name = value::name(scope, &manifest_name, "HeaderPolicy");
    let target = access_policy::target(scope, &spec.target, workloads);
    let ports = access_policy::ports(scope, spec.ports.as_ref());
    let entries = value::entries(
        scope,
        spec.identity_headers.as_ref(),
        "identityHeaders",
        "to keep the usual ones from everybody",
    );
    let mut fields: Vec<IdentityFields> = Vec::with_capacity(entries.len() + 1);
    for entry in entries {
        fields.extend(identity_fields(scope, entry, &fields));
    }
    // Last, so that an entry of the operator's own for one of them counts.
    fields.push(IdentityFields { names: usual(), entitled: Vec::new(), overwrite: None });
    let peer_header = match &spec.peer_header {
        Some(text) => match field_name(&text.value) {
            Ok(name) => Some(name),
            Err(error) => {
                refuse_name(scope, text, error);
                return None;
            }
        },
        None => None,
    };
    Some(HeaderPolicyModel { name: name?, target: target?, ports, fields, peer_header })
}

fn identity_fields(
    scope: &mut Scope<'_>,
    spec: &Spanned<IdentityHeadersSpec>,
    before: &[IdentityFields],
) -> Option<IdentityFields> {
    let IdentityHeadersSpec { names, entitled, overwrite } = &spec.value;
    if names.is_none() && entitled.is_none() && overwrite.is_none() {
        let message = "an entry without `names`, `entitled` and `overwrite` changes nothing".to_owned();
        scope.refuse(Place::of(spec), message, "remove it: the usual fields are kept from everybody");
        return None;
    }
    let mut read = Vec::new();
    for text in value::entries(scope, names.as_ref(), "names", "for the usual fields") {
        match FieldPattern::parse(&text.value) {
            Ok(pattern) if before.iter().flat_map(|fields| &fields.names).any(|other| *other == pattern) => {
                let message = format!("{} is named twice", quoted(&text.value));
                scope.refuse(Place::of(text), message, "keep one of the two");
            }
            Ok(pattern) => read.push(pattern),
            Err(error) => refuse_name(scope, text, error),
        }
    }
    let sources = value::entries(scope, entitled.as_ref(), "entitled", "when nobody is");
    let entitled = sources.iter().filter_map(|entry| access_policy::source(scope, entry)).collect();
    let overwrite = match overwrite {
        Some(text) => Some(condition::field_value(scope, text)?),
        None => None,
    };
    let names = if names.is_none() { usual() } else { read };
    Some(IdentityFields { names, entitled, overwrite })
}

fn usual() -> Vec<FieldPattern> {
    IDENTITY_FIELDS.iter().filter_map(|name| FieldPattern::parse(name).ok()).collect()
}

fn refuse_name(scope: &mut Scope<'_>, text: &Spanned<String>, error: FieldNameError) {
    let fix = match error {
        FieldNameError::Everything => "write the beginning of the names before `*`, such as `x-admin-*`",
        FieldNameError::NoName | FieldNameError::StarInside => {
            "write a name such as `x-user`, or `x-admin-*`"
        }
        FieldNameError::Unmanaged => "name a field by which the application tells who calls",
    };
    let message = format!("{} is no header field for a policy: {error}", quoted(&text.value));
    scope.refuse(Place::of(text), message, fix);
}
