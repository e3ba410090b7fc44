//! Who is ready for the next step of a rotation, who is not and why, and who is parked.

use std::fmt;
use std::time::Duration;

use signet_identity::SpiffeId;
use signet_sync::ROTATION_PROTOCOL;

/// How long an instance that is not connected is waited for, since it was last seen or since this process started: every
/// proxy is back within 10 s of its control plane.
pub(crate) const PARK_AFTER: Duration = Duration::from_secs(15);

/// An instance that may still show a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) id: SpiffeId,
    /// Fingerprint of its first certificate, its name for good.
    pub(crate) instance: String,
    pub(crate) presence: Presence,
}

/// Whether an instance is there.
#[derive(Clone, Debug)]
pub(crate) enum Presence {
    Connected {
        /// Highest protocol number it speaks.
        protocol: u32,
        /// It has acknowledged the anchors in force.
        has_anchors: bool,
        /// It refused them, in its own words.
        refused: Option<String>,
        /// The issuer of the certificate that it uses, and of all that it was given since; none when that is not known.
        issuer: Option<String>,
    },
    /// For how long, at least.
    Away(Duration),
}

/// Why an instance is not ready.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Lacks {
    /// It has not acknowledged the new anchors.
    Anchors,
    /// It still uses a certificate of another issuer than the one that certifies.
    Certificate,
    /// It was connected a moment ago, or should be back soon.
    Connection,
    /// It refused the new anchors.
    Refused(String),
    /// Its version cannot follow a rotation.
    Version,
}

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anchors => f.write_str("has not acknowledged the new anchors yet"),
            Self::Certificate => f.write_str("still uses a certificate of the other issuer"),
            Self::Connection => f.write_str("is not connected, but was a moment ago or should be back soon"),
            Self::Refused(why) => write!(f, "refused the new anchors: {why}"),
            Self::Version => f.write_str("is too old to follow a rotation; upgrade this proxy"),
        }
    }
}

/// All of them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Survey {
    /// How many are ready.
    pub(crate) ready: usize,
    pub(crate) waiting: Vec<(SpiffeId, String, Lacks)>,
    pub(crate) parked: Vec<(SpiffeId, String)>,
}

/// Looks at every instance. `certifying` is the issuer whose certificates they should use; none while that does not matter.
pub(crate) fn survey(holders: impl IntoIterator<Item = Holder>, certifying: Option<&str>) -> Survey {
    let mut survey = Survey::default();
    for Holder { id, instance, presence } in holders {
        match presence {
            Presence::Away(since) if since >= PARK_AFTER => survey.parked.push((id, instance)),
            presence => match lacks(presence, certifying) {
                None => survey.ready += 1,
                Some(lacks) => survey.waiting.push((id, instance, lacks)),
            },
        }
    }
    survey
}

fn lacks(presence: Presence, certifying: Option<&str>) -> Option<Lacks> {
    let Presence::Connected { protocol, has_anchors, refused, issuer } = presence else {
        return Some(Lacks::Connection);
    };
    if protocol < ROTATION_PROTOCOL {
        return Some(Lacks::Version);
    }
    if let Some(why) = refused {
        return Some(Lacks::Refused(why));
    }
    if !has_anchors {
        return Some(Lacks::Anchors);
    }
    match certifying {
        Some(certifying) if issuer.as_deref() != Some(certifying) => Some(Lacks::Certificate),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(presence: Presence, certifying: Option<&str>) -> Survey {
        let id = SpiffeId::parse("spiffe://mesh.example/app/edge/api").unwrap();
        survey([Holder { id, instance: "a".to_owned(), presence }], certifying)
    }

    fn lacking(presence: Presence, certifying: Option<&str>) -> Option<Lacks> {
        let survey = found(presence, certifying);
        assert_eq!(survey.ready + survey.waiting.len(), 1);
        survey.waiting.into_iter().next().map(|(_, _, lacks)| lacks)
    }

    fn connected(protocol: u32, has_anchors: bool, refused: Option<&str>, issuer: Option<&str>) -> Presence {
        let owned = |text: &str| text.to_owned();
        Presence::Connected { protocol, has_anchors, refused: refused.map(owned), issuer: issuer.map(owned) }
    }

    #[test]
    fn an_instance_is_ready_with_the_anchors_and_a_certificate_of_the_issuer_that_certifies() {
        let new = ROTATION_PROTOCOL;
        assert_eq!(lacking(connected(new, true, None, Some("new")), Some("new")), None);
        assert_eq!(lacking(connected(new, true, None, None), None), None);
        let certificate = Some(Lacks::Certificate);
        assert_eq!(lacking(connected(new, true, None, Some("old")), Some("new")), certificate);
        assert_eq!(lacking(connected(new, true, None, None), Some("new")), certificate);
        assert_eq!(lacking(connected(new, false, None, Some("new")), Some("new")), Some(Lacks::Anchors));
        let refused = Some(Lacks::Refused("no".to_owned()));
        assert_eq!(lacking(connected(new, false, Some("no"), None), None), refused);
        assert_eq!(lacking(connected(new - 1, true, None, None), None), Some(Lacks::Version));
    }

    #[test]
    fn who_is_away_is_waited_for_and_then_parked() {
        let almost = PARK_AFTER - Duration::from_millis(1);
        assert_eq!(lacking(Presence::Away(almost), Some("new")), Some(Lacks::Connection));
        let parked = found(Presence::Away(PARK_AFTER), Some("new"));
        assert_eq!((parked.ready, parked.waiting.len(), parked.parked.len()), (0, 0, 1));
    }

    #[test]
    fn a_mesh_without_instances_waits_for_nobody() {
        assert_eq!(survey([], Some("new")), Survey::default());
    }
}
