//! YAML text to manifests.
//!
//! Reading is strict where leniency would change who may do what: unknown fields, duplicate keys, merge keys and
//! fields without a value are refused. Each document of a text is read on its own, so one run reports the faults of
//! all of them. The meaning of values is [`crate::compile()`]'s affair.

pub(crate) mod egress;
pub(crate) mod federation;
mod schema;
pub(crate) mod traffic;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, Spanned};
use thiserror::Error;

use crate::diagnostic::{Diagnostic, Findings, Place, quoted, suggestion};
pub(crate) use crate::manifest::schema::{
    AccessPolicySpec, AdvertiseSpec, ConditionSpec, EgressSpec, HeaderPolicySpec, HeaderSpec,
    IdentityHeadersSpec, IntermediaryRouteSpec, IntermediarySpec, LifetimeSpec, List, MeshSpec, MtlsSpec,
    NetworkSpec, NormalizationPolicySpec, NormalizationRuleSpec, OfflineBoundSpec, OperationSpec, PortSpec,
    ProtectionPolicySpec, ProtectionRuleSpec, ProtectionSpec, RoleAppointerSpec, RoleGrantSpec, RouteSpec,
    RuleSpec, SourceSpec, Spec, TargetSpec, WindowSpec, WorkloadApiSpec, WorkloadSpec,
};
use crate::manifest::schema::{Document, Unread};

/// The version every manifest states.
pub const API_VERSION: &str = "signet.mf2c-project.eu/v1alpha1";

/// Largest text of one call. A thousand policies of ordinary size fit.
pub const MAX_TEXT_BYTES: usize = 1024 * 1024;

/// Most documents in one text.
pub const MAX_DOCUMENTS: usize = 5_000;

/// Deepest nesting of a document; the schema needs ten levels.
const MAX_DEPTH: usize = 16;

/// Most nodes of a document: a policy with its full number of rules, each with a few entries.
const MAX_NODES: usize = 50_000;

/// Most anchors and aliases of a document, and most events that aliases may repeat: enough for a shared list of ports,
/// too few for a bomb.
const MAX_ALIASES: usize = 100;
const MAX_REPLAYED_EVENTS: usize = 10_000;

/// The kinds of manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Who may call what.
    AccessPolicy,
    /// What workloads may reach outside the mesh.
    EgressPolicy,
    /// What another trust domain may call here, and what of it may be called.
    Federation,
    /// Which header fields may say who calls.
    HeaderPolicy,
    /// The defaults of the mesh.
    Mesh,
    /// Ambiguous requests that are taken all the same, in one form.
    NormalizationPolicy,
    /// How messages of single routes are protected.
    ProtectionPolicy,
    /// Who may give a role to whom.
    RoleAppointer,
    /// Who holds a role, and until when.
    RoleGrant,
    /// How requests to a workload are sent, and how many it takes.
    TrafficPolicy,
    /// One workload.
    Workload,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::AccessPolicy,
        Self::EgressPolicy,
        Self::Federation,
        Self::HeaderPolicy,
        Self::Mesh,
        Self::NormalizationPolicy,
        Self::ProtectionPolicy,
        Self::RoleAppointer,
        Self::RoleGrant,
        Self::TrafficPolicy,
        Self::Workload,
    ];

    /// The name in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AccessPolicy => "AccessPolicy",
            Self::EgressPolicy => "EgressPolicy",
            Self::Federation => "Federation",
            Self::HeaderPolicy => "HeaderPolicy",
            Self::Mesh => "Mesh",
            Self::NormalizationPolicy => "NormalizationPolicy",
            Self::ProtectionPolicy => "ProtectionPolicy",
            Self::RoleAppointer => "RoleAppointer",
            Self::RoleGrant => "RoleGrant",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::Workload => "Workload",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names none of the kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the kind is none of AccessPolicy, EgressPolicy, Federation, HeaderPolicy, Mesh, NormalizationPolicy, \
     ProtectionPolicy, RoleAppointer, RoleGrant, TrafficPolicy, Workload"
)]
pub struct UnknownKind;

impl FromStr for Kind {
    type Err = UnknownKind;

    /// Accepts any letter case, for command lines.
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(text)).ok_or(UnknownKind)
    }
}

/// One document of a manifest text, of the right shape; [`crate::compile()`] checks its values.
#[derive(Clone, Debug)]
pub struct Manifest {
    file: Arc<str>,
    /// Line of the text at which the document starts.
    first_line: u32,
    text: Arc<str>,
    name: Spanned<String>,
    spec: Spec,
}

impl Manifest {
    /// What it describes.
    pub fn kind(&self) -> Kind {
        match self.spec {
            Spec::AccessPolicy(_) => Kind::AccessPolicy,
            Spec::EgressPolicy(_) => Kind::EgressPolicy,
            Spec::Federation(_) => Kind::Federation,
            Spec::HeaderPolicy(_) => Kind::HeaderPolicy,
            Spec::Mesh(_) => Kind::Mesh,
            Spec::NormalizationPolicy(_) => Kind::NormalizationPolicy,
            Spec::ProtectionPolicy(_) => Kind::ProtectionPolicy,
            Spec::RoleAppointer(_) => Kind::RoleAppointer,
            Spec::RoleGrant(_) => Kind::RoleGrant,
            Spec::TrafficPolicy(_) => Kind::TrafficPolicy,
            Spec::Workload(_) => Kind::Workload,
        }
    }

    /// Its `metadata.name`, unique per kind.
    pub fn name(&self) -> &str {
        &self.name.value
    }

    /// The file name the text was given under.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The line of the text on which its name stands.
    pub fn line(&self) -> u32 {
        self.place(Place::of(&self.name)).line
    }

    /// The YAML of this one document, as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(crate) fn spanned_name(&self) -> &Spanned<String> {
        &self.name
    }

    /// A place in the document as a place in the whole text.
    pub(crate) fn place(&self, within: Place) -> Place {
        shifted(within, self.first_line)
    }
}

/// Reads all documents of a text. `file_name` is only repeated in diagnostics.
///
/// # Errors
/// All faults found, in order; the text is used as a whole or not at all.
pub fn parse_manifests(file_name: &str, text: &str) -> Result<Vec<Manifest>, Vec<Diagnostic>> {
    let mut findings = Findings::default();
    if text.len() > MAX_TEXT_BYTES {
        findings.push(
            file_name,
            Place::START,
            format!("the text has {} bytes, and {MAX_TEXT_BYTES} are accepted", text.len()),
            "split it into several files",
        );
        return findings.into_result(Vec::new());
    }
    let file: Arc<str> = file_name.into();
    let mut manifests = Vec::new();
    for (number, (first_line, document)) in documents(text).enumerate() {
        if number >= MAX_DOCUMENTS {
            let message = format!("the text has more than {MAX_DOCUMENTS} documents");
            findings.push(
                file_name,
                shifted(Place::START, first_line),
                message,
                "split it into several files",
            );
        }
        if number >= MAX_DOCUMENTS || findings.is_full() {
            break;
        }
        match read_document::<Document>(document) {
            Ok(read) => {
                refuse_envelope(&read, file_name, first_line, &mut findings);
                let Document { name, spec: Ok(spec), .. } = read else { continue };
                manifests.push(Manifest {
                    file: Arc::clone(&file),
                    first_line,
                    text: document.into(),
                    name,
                    spec,
                });
            }
            Err(error) => {
                let (place, message, fix) = describe(&error, document);
                findings.push(file_name, shifted(place, first_line), message, fix);
            }
        }
    }
    findings.into_result(manifests)
}

/// Reports a version or a kind that this program does not know, and a kind that comes too late to be of use.
fn refuse_envelope(document: &Document, file: &str, first_line: u32, findings: &mut Findings) {
    let Document { api_version, kind, spec, .. } = document;
    let mut refuse = |place: Place, message: String, fix: String| {
        findings.push(file, shifted(place, first_line), message, fix);
    };
    if api_version.value != API_VERSION {
        let message = format!("{} is no version of manifests", quoted(&api_version.value));
        refuse(Place::of(api_version), message, format!("write `{API_VERSION}`"));
    }
    match spec {
        Ok(_) => {}
        Err(Unread::KindComesLater(place)) => {
            let message = "`spec` comes before `kind`, which says what it means".to_owned();
            refuse(*place, message, "move `kind` up".to_owned());
        }
        Err(Unread::KindIsUnknown) => {
            let message = format!("{} is no kind of manifest", quoted(&kind.value));
            let fix = suggestion(&kind.value, Kind::ALL.into_iter().map(Kind::as_str));
            refuse(Place::of(kind), message, fix);
        }
    }
}

fn shifted(place: Place, first_line: u32) -> Place {
    Place { line: place.line.saturating_add(first_line.saturating_sub(1)), ..place }
}

/// The documents of a text that hold more than comments, each with the number of its first line. YAML lets no `---` at
/// the start of a line be anything else than a document marker.
fn documents(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut rest = text;
    let mut line = 1_u32;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = 0;
        let mut lines = 0;
        for (number, next) in rest.split_inclusive('\n').enumerate() {
            if number > 0 && is_marker(next) {
                break;
            }
            end += next.len();
            lines += 1;
        }
        let (document, after) = rest.split_at(end);
        let first_line = line;
        rest = after;
        line = line.saturating_add(lines);
        Some((first_line, document))
    })
    .filter(|(_, document)| !is_blank(document))
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn is_blank(document: &str) -> bool {
    document.lines().enumerate().all(|(number, line)| {
        let content = if number == 0 && is_marker(line) { line.trim_start_matches('-') } else { line };
        let line = content.trim();
        line.is_empty() || line.starts_with('#')
    })
}

/// Reads one document of whatever shape, with all that bounds and forbids.
pub(crate) fn read_document<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_anchors: MAX_ALIASES,
            max_aliases: MAX_ALIASES,
            // The second one is refused as such; a budget of one would call it too large.
            max_documents: 2,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPLAYED_EVENTS },
        strict_booleans: true,
        reject_unsupported_tags: true,
        reject_tagged_field_names: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// The place in the document, what is wrong, and the fix.
pub(crate) fn describe(error: &serde_saphyr::Error, document: &str) -> (Place, String, String) {
    use serde_saphyr::Error;
    let error = error.without_snippet();
    let place = match error {
        // The parser names the last field it saw; what is missing from the envelope is missing from the whole.
        Error::SerdeMissingField { field, .. } if schema::ENVELOPE.contains(field) => Place::START,
        _ => error.location().map_or(Place::START, Place::from_location),
    };
    let (message, fix) = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            (format!("unknown field {}", quoted(field)), suggestion(field, expected.iter().copied()))
        }
        Error::SerdeMissingField { field, .. } => {
            (format!("the field `{field}` is missing"), format!("add `{field}:`"))
        }
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or("a key");
            (format!("{} is given twice", quoted(key)), "keep one of the two".to_owned())
        }
        Error::MergeKeyNotAllowed { .. } => {
            ("merge keys (`<<`) are not accepted".to_owned(), "write the fields out".to_owned())
        }
        Error::Budget { .. } | Error::AliasReplayLimitExceeded { .. } => {
            ("the document is nested too deeply or holds too much".to_owned(), "split it".to_owned())
        }
        Error::MultipleDocuments { .. } => {
            ("text follows the end of the document".to_owned(), "start documents with `---`".to_owned())
        }
        other => {
            let found = text_at(document, place);
            let found = if found.is_empty() { String::new() } else { format!(", found {}", quoted(found)) };
            (format!("{}{found}", plain_message(other)), fix_of(other).to_owned())
        }
    };
    (place, message, fix)
}

fn fix_of(error: &serde_saphyr::Error) -> &'static str {
    match error {
        serde_saphyr::Error::Unexpected { expected: SEQUENCE, .. } => {
            "write the entries in `[` and `]` or after `- `, or leave the field out"
        }
        serde_saphyr::Error::Unexpected { expected: MAPPING, .. } => {
            "write fields here, or leave this one out"
        }
        serde_saphyr::Error::InvalidScalar { .. } => "write digits",
        serde_saphyr::Error::NullIntoString { .. } => "give the field a value, or leave it out",
        _ => "correct the YAML here; docs/policy.md shows the form of every field",
    }
}

/// What the parser calls a list and a set of fields.
const SEQUENCE: &str = "sequence start";
const MAPPING: &str = "mapping start";

/// The parser's own wording, without the place (which stands in front) and without control characters.
fn plain_message(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::{MessageFormatter, UserMessageFormatter};
    match error {
        serde_saphyr::Error::Unexpected { expected: SEQUENCE, .. } => return "expected a list".to_owned(),
        serde_saphyr::Error::Unexpected { expected: MAPPING, .. } => return "expected fields".to_owned(),
        // Ports are the only scalars that are not text.
        serde_saphyr::Error::InvalidScalar { .. } => return "expected a whole number".to_owned(),
        _ => {}
    }
    UserMessageFormatter
        .format_message(error)
        .escape_debug()
        .to_string()
        .replace("\\'", "'")
        .replace("\\\"", "\"")
}

/// What stands at a place, to the end of the line.
fn text_at(document: &str, place: Place) -> &str {
    let nth = |number: u32| usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
    let line = document.lines().nth(nth(place.line)).unwrap_or_default();
    let start = line.char_indices().nth(nth(place.column)).map_or(line.len(), |(offset, _)| offset);
    line.get(start..).unwrap_or_default().trim_end()
}
