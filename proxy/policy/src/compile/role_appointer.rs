//! `RoleAppointer` manifests: who may give a role to whom.

use serde_saphyr::Spanned;

use crate::appoint::RoleAppointerModel;
use crate::compile::{Scope, access_policy, value};
use crate::diagnostic::Place;
use crate::manifest::{List, RoleAppointerSpec, SourceSpec};
use crate::model::SourceMatch;

/// Bounds of an appointment's life: shorter is over before it is known everywhere, longer is the operator's to grant.
const LIFETIME: (u64, u64) = (10, 30 * 86_400);

pub(super) fn lower(scope: &mut Scope<'_>, spec: &RoleAppointerSpec) -> Option<RoleAppointerModel> {
    let manifest_name = scope.manifest.spanned_name().clone();
    let name = value::name(scope, &manifest_name, "RoleAppointer");
    let role = value::name(scope, &spec.role, "role");
    let appointers = sources(scope, &spec.appointers, "appointers");
    let appointees = sources(scope, &spec.appointees, "appointees");
    let max_lifetime_s = value::duration(scope, &spec.max_lifetime, LIFETIME.0, LIFETIME.1);
    Some(RoleAppointerModel {
        name: name?,
        role: role?,
        appointers,
        appointees,
        max_lifetime_s: max_lifetime_s?,
    })
}

fn sources(scope: &mut Scope<'_>, list: &List<SourceSpec>, what: &str) -> Vec<SourceMatch> {
    if list.0.value.is_empty() {
        let fix = "name who is meant, such as `- identity: spiffe://…` or `- class: platform`";
        scope.refuse(Place::of(&list.0), format!("`{what}` is empty"), fix);
    }
    let entries = value::within_bounds(scope, &list.0, what);
    let mut read = Vec::with_capacity(entries.len());
    for entry in entries {
        read.extend(access_policy::source(scope, entry).filter(|source| is_identified(scope, entry, source)));
    }
    read
}

/// A role is given by and to identities.
fn is_identified(scope: &mut Scope<'_>, entry: &Spanned<SourceSpec>, source: &SourceMatch) -> bool {
    if *source == SourceMatch::Anyone {
        let message = "who has no identity has no role".to_owned();
        scope.refuse(Place::of(entry), message, "write `any: authenticated` for every identity");
    }
    *source != SourceMatch::Anyone
}
