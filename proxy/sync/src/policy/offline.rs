//! Bounds on going on without the control plane, to protobuf and back.

use signet_policy::{Offline, OfflineBound, WhenStale};

use crate::DecodeError;
use crate::proto::sync as wire;

pub(super) fn offline_from(offline: wire::Offline) -> Result<Offline, DecodeError> {
    let bound = |bound: Option<wire::OfflineBound>| bound.map(bound_from).transpose();
    Ok(Offline {
        agent: bound(offline.agent)?,
        app: bound(offline.app)?,
        external: bound(offline.external)?,
        platform: bound(offline.platform)?,
    })
}

fn bound_from(bound: wire::OfflineBound) -> Result<OfflineBound, DecodeError> {
    let then = match wire::WhenStale::try_from(bound.then) {
        Ok(wire::WhenStale::LifeSafety) => WhenStale::LifeSafety,
        Ok(wire::WhenStale::Refuse) => WhenStale::Refuse,
        // What it does not know could be stricter than what it does.
        Ok(wire::WhenStale::Unspecified) | Err(_) => {
            return Err(DecodeError::Enum { field: "policy.offline.then", value: bound.then });
        }
    };
    Ok(OfflineBound { budget_s: bound.budget_s, then })
}

pub(super) fn offline_to(offline: &Offline) -> wire::Offline {
    wire::Offline {
        agent: offline.agent.map(bound_to),
        app: offline.app.map(bound_to),
        external: offline.external.map(bound_to),
        platform: offline.platform.map(bound_to),
    }
}

fn bound_to(bound: OfflineBound) -> wire::OfflineBound {
    let then = match bound.then {
        WhenStale::LifeSafety => wire::WhenStale::LifeSafety,
        WhenStale::Refuse => wire::WhenStale::Refuse,
    };
    wire::OfflineBound { budget_s: bound.budget_s, then: then.into() }
}
