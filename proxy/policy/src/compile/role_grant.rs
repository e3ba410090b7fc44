//! `RoleGrant` manifests: who holds which role, and until when.

use std::collections::HashSet;

use signet_identity::SpiffeId;

use crate::compile::{Scope, value};
use crate::diagnostic::{Place, quoted};
use crate::manifest::RoleGrantSpec;
use crate::model::RoleGrantModel;

/// What was granted before is in `seen`: which of two ends counts would be anybody's guess.
pub(super) fn lower(
    scope: &mut Scope<'_>,
    spec: &RoleGrantSpec,
    seen: &mut HashSet<(SpiffeId, String)>,
) -> Option<RoleGrantModel> {
    let manifest_name = scope.manifest.spanned_name().clone();
    let name = value::name(scope, &manifest_name, "RoleGrant");
    let identity = SpiffeId::parse(&spec.identity.value);
    if let Err(error) = &identity {
        let message = format!("{} is no identity: {error}", quoted(&spec.identity.value));
        let fix = "write one whole identity, spiffe://<trust domain>/<class>/<device>/<workload>; it takes no wildcard";
        scope.refuse(Place::of(&spec.identity), message, fix);
    }
    let role = value::name(scope, &spec.role, "role");
    let not_after = value::instant(scope, &spec.not_after);
    let (identity, role) = (identity.ok()?, role?);
    if !seen.insert((identity.clone(), role.clone())) {
        let message = format!("another RoleGrant gives {identity} the role {}", quoted(&role));
        scope.refuse(Place::of(&spec.role), message, "keep the one with the right `notAfter`");
    }
    Some(RoleGrantModel { name: name?, identity, role, not_after: not_after? })
}
