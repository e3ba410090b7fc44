//! Takes the mesh's own signatures out of a message again.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::memmem::Finder;

use super::head::tag_at_end;
use super::signer::list_tag;
use crate::field::as_text;
use crate::input::{
    MAX_FIELD_BYTES, MAX_SIGNATURES, Member, SIGNATURE, SIGNATURE_INPUT, members, parse_inner_list,
    readable_members,
};

/// How a claim to be a signature of the mesh begins. Prepared once, since every message is searched for it.
static CLAIM: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"tag=\"mesh-"));

/// Removes every signature whose tag belongs to the mesh, and only those: an application's own
/// signatures stay, byte for byte. Fields that cannot be read hold none of ours and stay as they are.
pub fn strip(fields: &mut HeaderMap) {
    if is_all_ours(fields) {
        fields.remove(&SIGNATURE_INPUT);
        fields.remove(&SIGNATURE);
        return;
    }
    let labels = own_labels(fields);
    if labels.is_empty() {
        return;
    }
    for name in [&SIGNATURE_INPUT, &SIGNATURE] {
        remove(fields, name, &labels);
    }
}

/// Whether anything in `Signature-Input` claims to be a signature of the mesh, readable or not. What does has
/// to be verified, and an application may not say so itself.
#[must_use]
pub fn claims_signature(fields: &HeaderMap) -> bool {
    claims(fields) > 0
}

/// How many times `Signature-Input` claims a signature of the mesh, in lines that can be read or not.
pub(crate) fn claims(fields: &HeaderMap) -> usize {
    fields.get_all(&SIGNATURE_INPUT).iter().map(|line| claims_in(line.as_bytes())).sum()
}

/// Whether a member claims to be a signature of the mesh.
pub(crate) fn is_claim(value: &[u8]) -> bool {
    claims_in(value) > 0
}

fn claims_in(text: &[u8]) -> usize {
    // No claim can begin within another.
    CLAIM.find_iter(text).count()
}

/// Whether both fields hold one signature, under the label that our signer writes first, and it is ours: what nearly
/// every message of the mesh has. False says nothing.
fn is_all_ours(fields: &HeaderMap) -> bool {
    let only = |name: &HeaderName| {
        let mut lines = fields.get_all(name).iter();
        let value = lines.next().and_then(|line| as_text(line.as_bytes())?.strip_prefix("mesh="));
        let is_alone = lines.next().is_none();
        value.filter(|value| is_alone && memchr::memchr(b',', value.as_bytes()).is_none())
    };
    let is_ours = |value: &str| {
        value.len() < MAX_FIELD_BYTES
            && !value.starts_with([' ', '\t'])
            && tag_at_end(value).is_some_and(|tag| tag.starts_with("mesh-"))
    };
    only(&SIGNATURE_INPUT).is_some_and(is_ours)
        && only(&SIGNATURE).is_some_and(|value| !value.starts_with([' ', '\t']))
}

fn own_labels(fields: &HeaderMap) -> Vec<String> {
    let members = readable_members(fields, &SIGNATURE_INPUT, MAX_SIGNATURES, MAX_FIELD_BYTES);
    let is_ours = |member: &Member<'_>| {
        if tag_at_end(member.value).is_some_and(|tag| tag.starts_with("mesh-")) {
            return true;
        }
        parse_inner_list(member.value)
            .is_ok_and(|list| list_tag(&list).is_some_and(|tag| tag.starts_with("mesh-")))
    };
    let members = members.unwrap_or_default();
    members.into_iter().filter(is_ours).map(|member| member.label.to_owned()).collect()
}

/// Removes our members line by line: a line of the application's own stays as it was written.
fn remove(fields: &mut HeaderMap, name: &HeaderName, labels: &[String]) {
    let is_ours = |member: &Member<'_>| labels.iter().any(|label| label == member.label);
    let keep = |line: &HeaderValue| -> Option<HeaderValue> {
        let Ok(members) =
            as_text(line.as_bytes()).ok_or(()).and_then(|text| members(text, MAX_SIGNATURES).map_err(drop))
        else {
            return Some(line.clone());
        };
        if !members.iter().any(is_ours) {
            return Some(line.clone());
        }
        // One of ours and one of the application's share a line only where somebody joined them.
        let kept = members.iter().filter(|member| !is_ours(member));
        let kept: Vec<_> = kept.map(|member| format!("{}={}", member.label, member.value)).collect();
        (!kept.is_empty()).then(|| HeaderValue::try_from(kept.join(", ")).ok())?
    };
    let kept: Vec<HeaderValue> = fields.get_all(name).iter().filter_map(keep).collect();
    fields.remove(name);
    for line in kept {
        fields.append(name, line);
    }
}
