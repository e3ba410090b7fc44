//! Which processes may be which workloads: a file of the operator's.
//!
//! A rule names a systemd unit or a user. Both are the kernel's to give; a program alone is not, for whoever may run it may
//! connect, keep the connection in a child, and become it. Path and digest make a rule narrower.

use std::path::PathBuf;

use serde::Deserialize;
use signet_identity::hex;

use super::process::Process;

/// Rules of one file: as many as a host has sidecars.
const RULES_MAX: usize = 1_000;

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rules {
    workloads: Vec<Rule>,
}

/// A process that may be a workload: all that is given has to be so.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// Name of the Workload.
    name: String,
    unit: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    path: Option<PathBuf>,
    /// Hexadecimal.
    sha256: Option<String>,
}

/// Why a process is no workload.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "process-ambiguous: {process} is both {one} and {other} by the attestor's rules; fix: make them differ"
    )]
    Ambiguous { process: String, one: String, other: String },
    #[error(
        "process-not-listed: no rule of the attestor is about {0}; fix: add one, and start the attestor anew"
    )]
    Unlisted(String),
}

impl Rules {
    /// Reads the file's text.
    ///
    /// # Errors
    /// What is wrong with it, with the line where there is one.
    pub(crate) fn parse(file: &str, text: &str) -> Result<Self, String> {
        let mut rules: Self = serde_saphyr::from_str(text).map_err(|error| format!("{file}: {error}"))?;
        if rules.workloads.len() > RULES_MAX {
            return Err(format!("{file}: more than {RULES_MAX} workloads"));
        }
        for rule in &mut rules.workloads {
            let name = &rule.name;
            if rule.unit.is_none() && rule.uid.is_none() {
                return Err(format!(
                    "{file}: the workload {name} has neither `unit` nor `uid`; fix: add one, since any user can run a program"
                ));
            }
            if let Some(unit) = rule.unit.as_ref().filter(|unit| !unit.ends_with(".service")) {
                return Err(format!("{file}: the workload {name}: `unit` {unit} does not end in .service"));
            }
            if let Some(digest) = &mut rule.sha256 {
                digest.make_ascii_lowercase();
                if digest.len() != 64 || !digest.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    return Err(format!(
                        "{file}: the workload {name}: `sha256` is not 64 hexadecimal digits"
                    ));
                }
            }
            if rule.path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return Err(format!("{file}: the workload {name}: `path` does not begin with /"));
            }
        }
        Ok(rules)
    }

    /// Whether any rule asks for a path.
    pub(super) fn wants_path(&self) -> bool {
        self.workloads.iter().any(|rule| rule.path.is_some())
    }

    /// Whether a rule asks for a digest that this process, whose program was not read, fits in everything else.
    pub(super) fn wants_digest(&self, process: &Process) -> bool {
        self.workloads.iter().any(|rule| rule.sha256.is_some() && rule.fits_but_digest(process))
    }

    /// The one workload that a process may be.
    ///
    /// # Errors
    /// [`Refusal`] for none, and for several: which of them it is to be would be for chance to say.
    pub(super) fn workload_of(&self, process: &Process) -> Result<&str, Refusal> {
        let mut fits = self.workloads.iter().filter(|rule| rule.fits(process)).map(|rule| &*rule.name);
        let found = fits.next().ok_or_else(|| Refusal::Unlisted(process.to_string()))?;
        match fits.find(|other| *other != found) {
            None => Ok(found),
            Some(other) => Err(Refusal::Ambiguous {
                process: process.to_string(),
                one: found.to_owned(),
                other: other.to_owned(),
            }),
        }
    }
}

impl Rule {
    fn fits(&self, process: &Process) -> bool {
        let digest = || process.sha256.map(|digest| hex(&digest));
        self.fits_but_digest(process)
            && self.sha256.as_ref().is_none_or(|listed| digest().as_ref() == Some(listed))
    }

    fn fits_but_digest(&self, process: &Process) -> bool {
        self.unit.as_ref().is_none_or(|unit| process.unit.as_ref() == Some(unit))
            && self.uid.is_none_or(|uid| process.uid == uid)
            && self.gid.is_none_or(|gid| process.gid == gid)
            && self.path.as_ref().is_none_or(|path| process.path.as_ref() == Some(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process {
            pid: 7,
            uid: 1337,
            gid: 1338,
            unit: Some("proxy@web.service".to_owned()),
            path: Some("/usr/local/bin/signet-proxy".into()),
            sha256: Some([0xab; 32]),
        }
    }

    fn rules(text: &str) -> Rules {
        Rules::parse("rules.yaml", text).unwrap()
    }

    #[test]
    fn a_process_is_a_workload_if_all_that_its_rule_says_is_so() {
        let digest = "AB".repeat(32);
        let whole = format!(
            "workloads: [{{name: web, unit: proxy@web.service, uid: 1337, gid: 1338, \
             path: /usr/local/bin/signet-proxy, sha256: {digest}}}]"
        );
        assert_eq!(rules(&whole).workload_of(&process()).unwrap(), "web");
        let others = [
            Process { unit: None, ..process() },
            Process { unit: Some("web.service".to_owned()), ..process() },
            Process { uid: 0, ..process() },
            Process { gid: 0, ..process() },
            Process { path: Some("/opt/signet-proxy".into()), ..process() },
            Process { path: None, ..process() },
            Process { sha256: Some([0xac; 32]), ..process() },
            Process { sha256: None, ..process() },
        ];
        for other in others {
            let refused = rules(&whole).workload_of(&other).unwrap_err().to_string();
            assert!(refused.starts_with("process-not-listed: "), "{refused}");
        }
        let unread = Process { sha256: None, ..process() };
        assert!(rules(&whole).wants_path() && rules(&whole).wants_digest(&unread));
        // Nobody else has his program read.
        for other in [Process { uid: 0, ..unread }, Process { unit: None, sha256: None, ..process() }] {
            assert!(!rules(&whole).wants_digest(&other));
        }
        let less = rules("workloads: [{name: web, uid: 1337}]");
        assert!(!less.wants_path() && !less.wants_digest(&process()));
    }

    #[test]
    fn a_process_that_may_be_two_workloads_is_neither() {
        let two = rules("workloads: [{name: web, uid: 1337}, {name: db, gid: 1338, uid: 1337}]");
        let refused = two.workload_of(&process()).unwrap_err().to_string();
        assert!(refused.contains("both web and db"), "{refused}");
        let one = rules("workloads: [{name: web, uid: 1337}, {name: web, unit: proxy@web.service}]");
        assert_eq!(one.workload_of(&process()).unwrap(), "web");
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_reason() {
        for (text, reason) in [
            ("workloads: [{name: a, path: /bin/true}]", "neither `unit` nor `uid`"),
            ("workloads: [{name: a, unit: web.socket}]", "does not end in .service"),
            ("workloads: [{name: a, uid: 1, sha256: abc}]", "64 hexadecimal digits"),
            ("workloads: [{name: a, uid: 1, path: bin/true}]", "does not begin with /"),
            ("workloads: [{name: a, uid: 1, user: root}]", "user"),
            ("workload: []", "workload"),
            ("", "rules.yaml"),
        ] {
            let refusal = Rules::parse("rules.yaml", text).unwrap_err();
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }
}
