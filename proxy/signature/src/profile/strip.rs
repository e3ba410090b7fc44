//! Takes the mesh's own signatures out of a message again.

use http::{HeaderMap, HeaderValue};

use super::head::tag_at_end;
use super::signer::list_tag;
use crate::input::{MAX_FIELD_BYTES, MAX_SIGNATURES, Member, joined, members, parse_inner_list};

/// Removes every signature whose tag belongs to the mesh, and only those: an application's own
/// signatures stay, byte for byte. Fields that cannot be read hold none of ours and stay as they are.
pub fn strip(fields: &mut HeaderMap) {
    let labels = own_labels(fields);
    if labels.is_empty() {
        return;
    }
    for name in ["signature-input", "signature"] {
        remove(fields, name, &labels);
    }
}

/// Whether anything in `Signature-Input` claims to be a signature of the mesh, readable or not. What does has
/// to be verified, and an application may not say so itself.
#[must_use]
pub fn claims_signature(fields: &HeaderMap) -> bool {
    const CLAIM: &[u8] = b"tag=\"mesh-";
    let claims = |value: &HeaderValue| value.as_bytes().windows(CLAIM.len()).any(|found| found == CLAIM);
    fields.get_all("signature-input").iter().any(claims)
}

fn own_labels(fields: &HeaderMap) -> Vec<String> {
    let Ok(text) = joined(fields, "signature-input", MAX_FIELD_BYTES) else { return Vec::new() };
    let Ok(members) = members(&text, MAX_SIGNATURES) else { return Vec::new() };
    let is_ours = |value: &str| {
        if tag_at_end(value).is_some_and(|tag| tag.starts_with("mesh-")) {
            return true;
        }
        parse_inner_list(value).is_ok_and(|list| list_tag(&list).is_some_and(|tag| tag.starts_with("mesh-")))
    };
    let is_own = |member: &&Member<'_>| is_ours(member.value);
    members.iter().filter(is_own).map(|member| member.label.to_owned()).collect()
}

fn remove(fields: &mut HeaderMap, name: &'static str, labels: &[String]) {
    let Ok(text) = joined(fields, name, MAX_FIELD_BYTES) else { return };
    let Ok(members) = members(&text, MAX_SIGNATURES) else { return };
    let kept: Vec<_> = members
        .iter()
        .filter(|member| !labels.iter().any(|label| label == member.label))
        .filter_map(|member| HeaderValue::try_from(format!("{}={}", member.label, member.value)).ok())
        .collect();
    fields.remove(name);
    for line in kept {
        fields.append(name, line);
    }
}
