//! From what was asked for to what can be measured here.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::pair::{Kind, Pair};
use super::peer::{self, Peer, PeerError, Programs};
use super::signet::{self, Launch};
use crate::results::{DIRECT, LeftOut};

/// The program that is measured, by default: what is shipped.
const PROFILE: &str = "dist";
const BINARY: &str = "signet";
const SIDECAR: &str = "signet-proxy";

/// What is known of Signet's own pairs.
#[derive(Clone, Debug)]
pub struct Own {
    /// The program; none if no pair needs one.
    pub signet: Option<PathBuf>,
    /// Words before it, see [`Launch::wrapper`].
    pub wrapper: Vec<String>,
    /// Numbers of workers to try.
    pub workers: Vec<usize>,
}

/// Every name that `--pairs` knows, in the order of the report.
pub fn names() -> Vec<String> {
    let own = signet::MODES.iter().map(|mode| mode.name);
    std::iter::once(DIRECT).chain(own).chain(peer::NAMES).map(str::to_owned).collect()
}

/// Whether a name is one of Signet's pairs.
pub fn is_own(name: &str) -> bool {
    signet::MODES.iter().any(|mode| mode.name == name)
}

/// The pairs of these names and files, and those that cannot be had here.
///
/// # Errors
/// A name that nothing has, a file that describes no peer.
pub fn pairs(
    names: &[String],
    files: &[PathBuf],
    own: &Own,
    programs: &Programs,
) -> Result<(Vec<Pair>, Vec<LeftOut>), String> {
    let (mut pairs, mut left_out) = (Vec::new(), Vec::new());
    for name in names {
        if name == DIRECT {
            pairs.push(Pair { name: name.clone(), kind: Kind::Direct });
        } else if let Some(mode) = signet::MODES.iter().find(|mode| mode.name == name) {
            pairs.extend(own_pairs(*mode, own));
        } else {
            let peer = Peer::built_in(name).ok_or_else(|| {
                format!("no pair is called {name:?}; there are {}", self::names().join(", "))
            })?;
            add(peer.map_err(|error| error.to_string())?, programs, &mut pairs, &mut left_out)?;
        }
    }
    for file in files {
        let peer = Peer::read(file).map_err(|error| error.to_string())?;
        add(peer, programs, &mut pairs, &mut left_out)?;
    }
    Ok((pairs, left_out))
}

fn own_pairs(mode: signet::Mode, own: &Own) -> impl Iterator<Item = Pair> {
    own.workers.iter().filter_map(move |&workers| {
        let name = if workers == 1 { mode.name.to_owned() } else { format!("{}-{workers}w", mode.name) };
        let signet = own.signet.clone()?;
        let launch = Launch { proxy: sidecar(&signet), signet, wrapper: own.wrapper.clone(), workers };
        Some(Pair { name, kind: Kind::Signet(mode, launch) })
    })
}

fn add(
    peer: Peer,
    programs: &Programs,
    pairs: &mut Vec<Pair>,
    left_out: &mut Vec<LeftOut>,
) -> Result<(), String> {
    if pairs.iter().any(|pair| pair.name == peer.name) {
        return Err(format!("two pairs are called {:?}", peer.name));
    }
    match peer.check(programs) {
        Ok(()) => pairs.push(Pair { name: peer.name.clone(), kind: Kind::Peer(Box::new(peer)) }),
        Err(error @ PeerError::Missing { .. }) => {
            left_out.push(LeftOut { what: peer.name, why: error.to_string() });
        }
        Err(error) => return Err(error.to_string()),
    }
    Ok(())
}

/// The sidecar that belongs to a `signet` program: it lies beside it.
pub fn sidecar(signet: &Path) -> PathBuf {
    signet.with_file_name(SIDECAR)
}

/// The `signet` program that was asked for, with its sidecar beside it.
///
/// # Errors
/// In words what is missing.
pub fn given(signet: &Path) -> Result<PathBuf, String> {
    let path = std::fs::canonicalize(signet).map_err(|error| format!("{}: {error}", signet.display()))?;
    let proxy = sidecar(&path);
    if !proxy.is_file() {
        return Err(format!("{} is missing: sidecars run the {SIDECAR} beside {BINARY}", proxy.display()));
    }
    Ok(path)
}

/// Builds the programs that are shipped, and tells where the tool is.
///
/// # Errors
/// In words why there is none.
pub fn build() -> Result<PathBuf, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    eprintln!("building {BINARY} and {SIDECAR} with profile {PROFILE}; --signet PATH measures another one");
    let arguments =
        ["build", "--profile", PROFILE, "--bin", BINARY, "--bin", SIDECAR, "--message-format", "json"];
    let built = Command::new(cargo).args(arguments).stderr(Stdio::inherit()).output();
    let built = built.map_err(|error| format!("cargo cannot be started: {error}; give --signet PATH"))?;
    let text = String::from_utf8_lossy(&built.stdout).into_owned();
    let found = built.status.success().then(|| executable(&text)).flatten();
    found.ok_or_else(|| format!("{BINARY} was not built ({}); run this in the checkout", built.status))
}

/// The program among what cargo tells, one JSON object a line.
fn executable(text: &str) -> Option<PathBuf> {
    let artefacts = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut ours = artefacts.filter(|artefact| artefact["target"]["name"] == BINARY);
    ours.find_map(|artefact| artefact["executable"].as_str().map(PathBuf::from))
}

/// What the program says of its version, and its size.
pub fn version(signet: &Path) -> Option<String> {
    let output = Command::new(signet).arg("--version").output().ok()?;
    let size = std::fs::metadata(signet).ok()?.len();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Some(format!("{text}, {:.1} MiB", size as f64 / f64::from(1 << 20)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Own {
        Own { signet: Some("signet".into()), wrapper: Vec::new(), workers: vec![1, 2] }
    }

    #[test]
    fn own_pairs_exist_once_for_each_number_of_workers() {
        let names = ["direct".to_owned(), "signet-ed25519".to_owned()];
        let (pairs, left_out) = pairs(&names, &[], &own(), &Programs::new()).unwrap();
        let found: Vec<&str> = pairs.iter().map(|pair| pair.name.as_str()).collect();
        assert_eq!(found, ["direct", "signet-ed25519", "signet-ed25519-2w"]);
        assert!(left_out.is_empty());
    }

    #[test]
    fn unknown_names_are_refused_with_those_that_exist() {
        let error = pairs(&["caddy".into()], &[], &own(), &Programs::new()).unwrap_err();
        assert!(error.contains("haproxy-h2") && error.contains("signet-batch"), "{error}");
    }

    #[test]
    fn the_program_is_found_among_what_cargo_tells() {
        let text = r#"{"reason":"compiler-artifact","target":{"name":"signet_cli"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"signet"},"executable":"/t/dist/signet"}"#;
        assert_eq!(executable(text), Some("/t/dist/signet".into()));
    }
}
