//! Which TPM may be which Workload: a file of the operator's.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use signet_identity::unhex;
use thiserror::Error;

use crate::files;

/// The longest file of rules.
const FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Devices in one file: as many as there are workloads.
const DEVICES_MAX: usize = 10_000;

/// The file, read when the control plane starts.
#[derive(Clone, Debug)]
pub struct Rules(HashMap<[u8; 32], String>);

/// Why rules cannot be used.
#[derive(Debug, Error)]
pub enum RulesError {
    /// The file cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The rules say something wrong.
    #[error("{0}")]
    Wrong(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    devices: Vec<DeviceSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DeviceSpec {
    endorsement_key: String,
    workload: String,
}

impl Rules {
    /// Reads the file.
    ///
    /// # Errors
    /// [`RulesError`], with the file.
    pub fn load(path: &Path) -> Result<Self, RulesError> {
        let text = files::read(path, FILE_BYTES)
            .map_err(|error| RulesError::File { path: path.to_owned(), error })?;
        Self::parse(&text).map_err(|reason| RulesError::Wrong(format!("{}: {reason}", path.display())))
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let document: Document = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if document.devices.len() > DEVICES_MAX {
            return Err(format!("more than {DEVICES_MAX} devices"));
        }
        let mut devices = HashMap::new();
        for DeviceSpec { endorsement_key, workload } in document.devices {
            let digest = unhex(&endorsement_key).ok_or_else(|| {
                format!(
                    "endorsementKey {endorsement_key:?}: give the SHA-256 of the key's SubjectPublicKeyInfo, 64 hexadecimal digits"
                )
            })?;
            if devices.insert(digest, workload).is_some() {
                return Err(format!(
                    "endorsementKey {endorsement_key} stands there twice: a TPM may be one workload"
                ));
            }
        }
        Ok(Self(devices))
    }

    /// Which Workload a TPM may be, by the name of its manifest.
    pub(super) fn workload_of(&self, endorsement: &[u8; 32]) -> Option<&str> {
        self.0.get(endorsement).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tpm_is_the_workload_of_its_rule() {
        let (upper, lower) = ("AB".repeat(32), "cd".repeat(32));
        let text = format!(
            "devices:\n- {{endorsementKey: {upper}, workload: boat-1}}\n- {{endorsementKey: {lower}, workload: boat-2}}\n"
        );
        let rules = Rules::parse(&text).unwrap();
        assert_eq!(rules.workload_of(&[0xab; 32]), Some("boat-1"));
        assert_eq!(rules.workload_of(&[0xcd; 32]), Some("boat-2"));
        assert_eq!(rules.workload_of(&[0; 32]), None);
    }

    #[test]
    fn wrong_rules_are_refused_with_their_reason() {
        let key = "ab".repeat(32);
        for (text, reason) in [
            ("devices: [{endorsementKey: ab, workload: w}]".to_owned(), "64 hexadecimal digits"),
            (
                format!("devices: [{{endorsementKey: '+{}', workload: w}}]", &key[1..]),
                "64 hexadecimal digits",
            ),
            (
                format!(
                    "devices: [{{endorsementKey: {key}, workload: v}}, {{endorsementKey: {key}, workload: w}}]"
                ),
                "twice",
            ),
            (format!("devices: [{{endorsementKey: {key}, workload: w, pcr: 7}}]"), "pcr"),
            ("devices: [{workload: w}]".to_owned(), "endorsementKey"),
        ] {
            let error = Rules::parse(&text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
