//! Policies of which one at most may be for a request: which of two counts would be anybody's guess.

use std::collections::{BTreeSet, HashMap};

use crate::compile::Scope;
use crate::diagnostic::{Findings, Place, quoted};
use crate::manifest::Manifest;
use crate::model::{PolicyModel, Target};

/// What a policy is for: a target and its ports, all when empty.
pub(super) type Reach<'a> = (&'a Target, &'a [u16]);

/// Refuses two policies for the same ports of a workload. `manifests` holds the manifest of each.
pub(super) fn refuse_overlap<'a>(
    model: &PolicyModel,
    policies: impl Iterator<Item = Reach<'a>>,
    manifests: &[&Manifest],
    findings: &mut Findings,
) {
    /// Which policy has all ports of a workload, or single ones.
    type Taken = (Option<usize>, HashMap<u16, usize>);
    let mut taken: HashMap<&str, Taken> = HashMap::new();
    for (number, (target, ports)) in policies.enumerate() {
        let clash = targeted(model, target).into_iter().find_map(|workload| {
            let (all, single) = taken.entry(workload).or_default();
            let first = match ports {
                [] => all.or_else(|| single.values().min().copied()),
                ports => all.or_else(|| ports.iter().find_map(|port| single.get(port).copied())),
            };
            if first.is_none() {
                single.extend(ports.iter().map(|port| (*port, number)));
                *all = ports.is_empty().then_some(number);
            }
            Some((first?, workload.to_owned()))
        });
        if let Some((first, workload)) = clash
            && let (Some(first), Some(second)) = (manifests.get(first), manifests.get(number))
        {
            let message = format!(
                "{} {} at {}:{} is for the requests to {workload} as well",
                first.kind(),
                quoted(first.name()),
                first.file(),
                first.line(),
            );
            let place = Place::of(second.spanned_name());
            Scope::new(second, findings).refuse(place, message, "give them different targets or ports");
        }
    }
}

/// The names of the workloads of a target, each once.
fn targeted<'a>(model: &'a PolicyModel, target: &Target) -> BTreeSet<&'a str> {
    let workloads = model.workloads.iter();
    match target {
        Target::Workloads(names) => {
            let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
            workloads.map(|workload| workload.name.as_str()).filter(|name| names.contains(name)).collect()
        }
        _ => workloads
            .filter(|workload| target.selects(workload))
            .map(|workload| workload.name.as_str())
            .collect(),
    }
}
