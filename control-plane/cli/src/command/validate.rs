//! `signet validate`: checks manifests without a control plane.

use serde_json::json;
use signet_policy::{Diagnostic, Kind, Manifest, check_values, compile, parse_manifests};

use crate::manifests::{ManifestText, Manifests};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Checks manifests on this machine; without a Mesh among them, each by itself
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  signet validate -f policies/\n  cat mesh.yaml | signet validate -f -")]
pub(crate) struct Validate {
    #[command(flatten)]
    manifests: Manifests,
}

impl Validate {
    pub(crate) fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let (manifests, mut diagnostics) = parse(&self.manifests.read()?);
        let whole = manifests.iter().any(|manifest| manifest.kind() == Kind::Mesh);
        if diagnostics.is_empty() {
            diagnostics =
                if whole { compile(&manifests).err().unwrap_or_default() } else { check_values(&manifests) };
        }
        if format == Format::Json {
            print_json(&json!({
                "valid": diagnostics.is_empty(),
                "manifests": manifests.len(),
                "cross_checked": whole,
                "diagnostics": diagnostics,
            }))?;
        } else {
            for diagnostic in &diagnostics {
                print_line(diagnostic)?;
            }
            if diagnostics.is_empty() {
                let note = if whole {
                    ""
                } else {
                    " (no Mesh among them: what they say of each other was not checked)"
                };
                let count = match manifests.len() {
                    1 => "1 manifest is".to_owned(),
                    more => format!("{more} manifests are"),
                };
                print_line(format_args!("{count} valid{note}"))?;
            }
        }
        Ok(if diagnostics.is_empty() { Verdict::Yes } else { Verdict::BadInput })
    }
}

/// Reads all manifests and everything that is wrong with any of them.
pub(super) fn parse(texts: &[ManifestText]) -> (Vec<Manifest>, Vec<Diagnostic>) {
    let (mut manifests, mut diagnostics) = (Vec::new(), Vec::new());
    for file in texts {
        match parse_manifests(&file.name, &file.text) {
            Ok(parsed) => manifests.extend(parsed),
            Err(wrong) => diagnostics.extend(wrong),
        }
    }
    (manifests, diagnostics)
}
