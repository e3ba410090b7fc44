//! `Workload.workloadApi`: what the sidecar offers the application.

use signet_identity::MAX_AUDIENCE_BYTES;

use crate::compile::{Scope, value};
use crate::diagnostic::{Place, quoted};
use crate::manifest::WorkloadApiSpec;
use crate::workload_api::{JwtApi, WorkloadApi};

pub(super) fn lower(scope: &mut Scope<'_>, spec: Option<&WorkloadApiSpec>) -> WorkloadApi {
    let Some(spec) = spec else { return WorkloadApi::default() };
    let x509 = spec.x509.as_ref().is_some_and(|offered| offered.value);
    let jwt = spec.jwt.as_ref().map(|jwt| {
        let mut audiences: Vec<String> = Vec::new();
        let listed =
            value::entries(scope, jwt.audiences.as_ref(), "audiences", "when tokens are only verified");
        for text in listed {
            let audience = &text.value;
            let is_plain = !audience.chars().any(|c| c.is_control() || c.is_whitespace());
            if audience.is_empty() || audience.len() > MAX_AUDIENCE_BYTES || !is_plain {
                let message = format!("{} is no audience", quoted(audience));
                let fix =
                    format!("use a name or an address without spaces, at most {MAX_AUDIENCE_BYTES} bytes");
                scope.refuse(Place::of(text), message, fix);
            } else if audiences.contains(audience) {
                let message = format!("audience {} is there twice", quoted(audience));
                scope.refuse(Place::of(text), message, "remove one of the two");
            } else {
                audiences.push(audience.clone());
            }
        }
        JwtApi { audiences }
    });
    WorkloadApi { x509, jwt }
}
