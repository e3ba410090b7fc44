//! Which header fields belong to whom: the hop, the mesh, or the message.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use signet_identity::SpiffeId;
use signet_policy::{ALWAYS_STRIPPED, Fate, FieldPattern, HeaderPlan, IDENTITY_FIELDS, Refusal};
use signet_signature::seal::SEAL_CODING;

/// Everything with this prefix is the mesh's own; applications neither send nor see it.
pub(crate) const MESH_PREFIX: &str = "mesh-";
/// The length an application declared for a body that travels as records.
pub(crate) const MESH_CONTENT_LENGTH: HeaderName = HeaderName::from_static("mesh-content-length");
/// The `Content-Digest` an application sent itself.
pub(crate) const MESH_ORIGINAL_DIGEST: HeaderName = HeaderName::from_static("mesh-original-content-digest");
/// Says that a sidecar, not the application, made a response.
pub(crate) const MESH_ORIGIN: HeaderName = HeaderName::from_static("mesh-origin");
/// The signing chain of the sender.
pub(crate) const MESH_CERT: HeaderName = HeaderName::from_static("mesh-cert");
/// An application's wish for more protection than policy asks for: `protected` or `private`.
pub(crate) const MESH_PROTECTION: HeaderName = HeaderName::from_static("mesh-protection");
/// What an application says about sending its request again.
pub(crate) const MESH_RETRY: HeaderName = HeaderName::from_static("mesh-retry");
/// On a handshake, and on the answer that accepts it: the protocol that the two applications go on with, as records.
pub(crate) const MESH_UPGRADE: HeaderName = HeaderName::from_static("mesh-upgrade");
/// The signed checkpoint over authenticated messages: a note, as a byte sequence.
pub(crate) const MESH_CHECKPOINT: HeaderName = HeaderName::from_static("mesh-checkpoint");
/// The target of a request as its origin wrote it, for where an intermediary may rewrite it.
pub(crate) const MESH_TARGET: HeaderName = HeaderName::from_static("mesh-target");
/// The identity of the workload that a request behind an intermediary is for.
pub(crate) const MESH_AUDIENCE: HeaderName = HeaderName::from_static("mesh-audience");
/// Names a request in refusals, logs and `signet explain` on both sides.
pub(crate) const MESH_REQUEST_ID: HeaderName = HeaderName::from_static("mesh-request-id");
/// Digest of the content (RFC 9530).
pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
/// The verified peer, in the form that Envoy made the convention.
pub(crate) const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// The content coding of a body cut into signed records.
const MESH_REC: &str = "mesh-rec";

/// Fields that only a sidecar may set, whatever an application makes of `_` and `-`: servers in the
/// manner of CGI see no difference between the two.
const PROTECTED: [&str; 3] = ["client-cert", "client-cert-chain", "x-forwarded-client-cert"];

/// Fields that mean something to one connection only (RFC 9110 section 7.6.1), and `Expect`, which
/// the nearer sidecar has already answered. Framing is made afresh for every hop.
const HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::UPGRADE,
    header::EXPECT,
    header::TRANSFER_ENCODING,
];

/// The protocol that an application may switch an HTTP/1.1 connection to (RFC 6455).
pub(crate) const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Whether a message asks for, or agrees to, a WebSocket. Other upgrades may be ignored (RFC 9110 section 7.8); a client
/// of this one would wait for ever.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Says on this hop that the connection is to be switched.
pub(crate) fn switch_to(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Fields that may not stand in trailers (RFC 9110 section 6.5.1): framing, routing, authentication
/// and what says how the content is to be read.
const NOT_IN_TRAILERS: [HeaderName; 15] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHORIZATION,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Refuses framing that another reader could understand differently: `chunked` alone, or nothing.
pub(crate) fn check_framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Refusal::MalformedMessage),
    }
}

/// The same for a message of another sidecar, which also says its length in one way only.
pub(crate) fn check_peer_framing(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        return Err(Refusal::MalformedMessage);
    }
    check_framing(headers)
}

/// Frames a body of unknown length in HTTP/1.1. Without it hyper takes a GET for one that has no body.
pub(crate) fn frame_as_chunked(headers: &mut HeaderMap) {
    headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
}

/// Removes what must not leave the hop, fields named by `Connection` among it.
pub(crate) fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        // The length and the signed head are not the application's to remove.
        .filter(|name| *name != header::CONTENT_LENGTH && *name != header::HOST)
        .collect();
    for name in &named {
        headers.remove(name);
    }
    strip_known_hop(headers);
}

/// The same for a message of another sidecar, whose `Connection` names nothing: what was signed is
/// not removed on a peer's word.
pub(crate) fn strip_known_hop(headers: &mut HeaderMap) {
    // One look at the names that are there costs less than to ask for each that might be: most messages have none.
    remove_where(headers, |name| HOP.contains(name));
    // `TE: trailers` is how an application says that it takes trailers; gRPC requires it.
    let mut codings =
        headers.get_all(header::TE).iter().map(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    if let Some(first) = codings.next()
        && (!first || codings.next().is_some())
    {
        headers.remove(header::TE);
    }
}

/// Removes what only a sidecar may say.
pub(crate) fn strip_protected(headers: &mut HeaderMap) {
    remove_where(headers, is_protected);
}

/// Removes the fields of which something holds.
pub(crate) fn remove_where(headers: &mut HeaderMap, holds: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| holds(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Whether a field frames or routes a message, or is the mesh's own: nothing else may turn into one of these.
pub(crate) fn is_of_the_hop_or_mesh(name: &HeaderName) -> bool {
    const ROUTING: [HeaderName; 6] = [
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TE,
        header::TRAILER,
        CONTENT_DIGEST,
    ];
    HOP.contains(name)
        || ROUTING.contains(name)
        || is_protected(name)
        || matches!(name.as_str(), "signature" | "signature-input")
}

fn is_protected(name: &HeaderName) -> bool {
    let is = |name: &str| name.starts_with(MESH_PREFIX) || PROTECTED.contains(&name);
    let name = name.as_str();
    if name.contains('_') { is(&name.replace('_', "-")) } else { is(name) }
}

/// Makes of the fields by which an application tells who calls what policy says, and writes the verified caller where
/// policy wants it. What was received and signed is not what this is about: it comes last, before the application.
pub(crate) fn tell_caller(headers: &mut HeaderMap, plan: &HeaderPlan<'_>, caller: Option<&SpiffeId>) {
    let touched = headers.keys().filter(|name| plan.fate(name.as_str()) != Fate::Keep);
    let touched: Vec<HeaderName> = touched.cloned().collect();
    for name in touched {
        match plan.fate(name.as_str()) {
            Fate::Keep => {}
            Fate::Remove => {
                headers.remove(&name);
            }
            // One that is no value of a header field is none that policy can have.
            Fate::Overwrite(value) => match HeaderValue::from_str(value) {
                Ok(value) => {
                    headers.insert(&name, value);
                }
                Err(_) => {
                    headers.remove(&name);
                }
            },
        }
    }
    if let (Some(name), Some(caller)) = (plan.peer_header(), caller)
        && let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(caller.as_str()))
    {
        headers.insert(name, value);
    }
}

/// Fields that say who calls, to applications that take trailers for header fields.
fn says_who_calls(name: &HeaderName) -> bool {
    static KNOWN: std::sync::LazyLock<Vec<FieldPattern>> = std::sync::LazyLock::new(|| {
        let names = ALWAYS_STRIPPED.iter().chain(&IDENTITY_FIELDS);
        names.filter_map(|name| FieldPattern::parse(name).ok()).collect()
    });
    KNOWN.iter().any(|pattern| pattern.matches(name.as_str()))
}

/// Tells the trailer fields that an application may not get under a plan, for as long as its request lasts.
pub(crate) fn withheld_trailers(plan: &HeaderPlan<'_>) -> impl Fn(&HeaderName) -> bool + use<> {
    let patterns = plan.withheld();
    move |name| may_not_trail(name) || patterns.iter().any(|pattern| pattern.matches(name.as_str()))
}

fn may_not_trail(name: &HeaderName) -> bool {
    NOT_IN_TRAILERS.contains(name) || is_protected(name) || says_who_calls(name)
}

/// Whether every trailer field may stand there.
pub(crate) fn trailers_are_harmless(trailers: &HeaderMap) -> bool {
    trailers.keys().all(|name| !may_not_trail(name))
}

/// Removes the trailer fields that may not stand there.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    remove_where(trailers, may_not_trail);
}

/// Whether a coding of the mesh is named, wherever in the list: of a message that has none nobody would take it away
/// again.
pub(crate) fn has_mesh_coding(headers: &HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_ENCODING) && (has_records(headers) || has_seal(headers))
}

/// Whether the coding of sealed bodies is named.
pub(crate) fn has_seal(headers: &HeaderMap) -> bool {
    has_coding(headers, SEAL_CODING)
}

/// Whether the coding of signed records is named.
pub(crate) fn has_records(headers: &HeaderMap) -> bool {
    has_coding(headers, MESH_REC)
}

fn has_coding(headers: &HeaderMap, wanted: &str) -> bool {
    let lines = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    let mut codings = lines.flat_map(|line| line.split(|byte| *byte == b','));
    codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
}

/// Declares that the body travels as signed records, on top of the application's own codings. The
/// declared length moves to where it does not frame the connection.
pub(crate) fn add_records(headers: &mut HeaderMap, length: Option<u64>) {
    headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(MESH_REC));
    headers.remove(header::CONTENT_LENGTH);
    if let Some(length) = length {
        headers.insert(MESH_CONTENT_LENGTH, length.into());
    }
}

/// Undoes [`add_records`]; returns the length the application declared.
///
/// # Errors
/// When the declared length is not one number.
pub(crate) fn remove_records(headers: &mut HeaderMap) -> Result<Option<u64>, Refusal> {
    remove_last_coding(headers);
    // Whatever framed the records says nothing about what is in them.
    headers.remove(header::CONTENT_LENGTH);
    let mut declared = headers.get_all(MESH_CONTENT_LENGTH).iter();
    let length = match (declared.next(), declared.next()) {
        (None, _) => return Ok(None),
        (Some(only), None) => only.to_str().ok().and_then(|text| text.parse().ok()),
        _ => None,
    };
    let length: u64 = length.ok_or(Refusal::SignatureMalformed)?;
    headers.remove(MESH_CONTENT_LENGTH);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(Some(length))
}

/// Declares that the body is sealed, on top of the application's own codings.
pub(crate) fn add_seal(headers: &mut HeaderMap) {
    headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(SEAL_CODING));
}

/// Undoes [`add_seal`], if the outermost coding is that of a sealed body; says whether it was.
pub(crate) fn remove_seal(headers: &mut HeaderMap) -> bool {
    let last = headers.get_all(header::CONTENT_ENCODING).iter().next_back();
    let last = last.and_then(|line| line.as_bytes().rsplit(|byte| *byte == b',').next());
    let sealed = last.is_some_and(|coding| coding.trim_ascii().eq_ignore_ascii_case(SEAL_CODING.as_bytes()));
    if sealed {
        remove_last_coding(headers);
    }
    sealed
}

fn remove_last_coding(headers: &mut HeaderMap) {
    let mut codings: Vec<HeaderValue> = headers.get_all(header::CONTENT_ENCODING).iter().cloned().collect();
    if let Some(last) = codings.pop() {
        let text = last.to_str().unwrap_or_default();
        let kept = text.rsplit_once(',').map_or("", |(before, _)| before.trim_end());
        if !kept.is_empty()
            && let Ok(value) = HeaderValue::from_str(kept)
        {
            codings.push(value);
        }
    }
    headers.remove(header::CONTENT_ENCODING);
    for coding in codings {
        headers.append(header::CONTENT_ENCODING, coding);
    }
}

/// Whether a field may come out of the sealed part: not what belongs to the hop or to the mesh, nor what says where
/// the message goes, how its body is read or who signed it.
pub(crate) fn may_be_sealed(name: &HeaderName) -> bool {
    let refused = [header::HOST, header::CONTENT_ENCODING, header::TE, header::TRAILER];
    let signs = matches!(name.as_str(), "signature" | "signature-input");
    !signs && !HOP.contains(name) && !refused.contains(name) && !is_protected(name)
}

/// Moves an application's own digest out of the way of the mesh's.
pub(crate) fn set_aside_digest(headers: &mut HeaderMap) {
    let own: Vec<&[u8]> = headers.get_all(CONTENT_DIGEST).iter().map(HeaderValue::as_bytes).collect();
    if own.is_empty() {
        return;
    }
    // Joining with a comma is what RFC 9110 section 5.3 lets any recipient do.
    let joined = HeaderValue::from_bytes(&own.join(&b", "[..]));
    headers.remove(CONTENT_DIGEST);
    if let Ok(joined) = joined {
        headers.insert(MESH_ORIGINAL_DIGEST, joined);
    }
}

/// Puts the application's own digest back, or removes the mesh's.
pub(crate) fn restore_digest(headers: &mut HeaderMap) {
    headers.remove(CONTENT_DIGEST);
    if let Some(own) = headers.remove(MESH_ORIGINAL_DIGEST) {
        headers.insert(CONTENT_DIGEST, own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn fields_named_by_connection_do_not_leave_the_hop() {
        let mut headers =
            map(&[("connection", "close, X-Hop"), ("x-hop", "1"), ("x-end", "2"), ("te", "gzip")]);
        strip_hop(&mut headers);
        assert_eq!(headers, map(&[("x-end", "2")]));
    }

    #[test]
    fn connection_cannot_remove_the_host_or_the_framing() {
        let mut headers =
            map(&[("connection", "host, content-length"), ("host", "a"), ("content-length", "3")]);
        strip_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "a"), ("content-length", "3")]));
    }

    #[test]
    fn te_trailers_is_kept_for_grpc() {
        let mut headers = map(&[("te", "trailers")]);
        strip_hop(&mut headers);
        assert_eq!(headers, map(&[("te", "trailers")]));
    }

    #[test]
    fn the_record_coding_and_length_come_and_go_without_a_trace() {
        for own in [
            map(&[("content-length", "70000")]),
            map(&[("content-encoding", "gzip"), ("content-length", "70000")]),
        ] {
            let mut headers = own.clone();
            assert!(!has_records(&headers));
            add_records(&mut headers, Some(70000));
            assert!(has_records(&headers) && !headers.contains_key("content-length"));
            assert_eq!(remove_records(&mut headers), Ok(Some(70000)));
            assert_eq!(headers, own);
        }
    }

    #[test]
    fn an_application_digest_survives_the_mesh() {
        let mut headers = map(&[("content-digest", "sha-512=:AA==:")]);
        set_aside_digest(&mut headers);
        headers.insert(CONTENT_DIGEST, HeaderValue::from_static("sha-256=:BB==:"));
        restore_digest(&mut headers);
        assert_eq!(headers, map(&[("content-digest", "sha-512=:AA==:")]));
    }

    #[test]
    fn what_only_a_sidecar_may_say_is_removed_in_every_spelling() {
        let mut headers = map(&[
            ("mesh-origin", "sidecar"),
            ("mesh_anything", "x"),
            ("x_forwarded_client-cert", "URI=spiffe://a/b"),
            ("Client_Cert", "x"),
            ("meshed", "y"),
        ]);
        strip_protected(&mut headers);
        assert_eq!(headers, map(&[("meshed", "y")]));
    }

    #[test]
    fn without_a_policy_only_what_cannot_be_true_is_kept_from_the_application() {
        let caller = SpiffeId::parse("spiffe://td/app/d/x").unwrap();
        let index = signet_policy::PolicyIndex::deny_all();
        let plan = index.header_plan(Some(&caller), &caller, 80, 0);
        let mut headers = map(&[
            ("slipstream-authn-info", "super ADMIN"),
            ("slipstream-authn-info", "again"),
            ("Slipstream_Authn_Info", "super ADMIN"),
            ("x-forwarded-for", "192.0.2.1"),
            ("accept", "*/*"),
        ]);
        tell_caller(&mut headers, &plan, Some(&caller));
        assert_eq!(headers, map(&[("x-forwarded-for", "192.0.2.1"), ("accept", "*/*")]));
    }

    #[test]
    fn only_chunked_alone_is_a_transfer_coding() {
        assert_eq!(check_framing(&map(&[])), Ok(()));
        assert_eq!(check_framing(&map(&[("transfer-encoding", "Chunked")])), Ok(()));
        for codings in ["xchunked, chunked", "chunked, identity", "gzip", ""] {
            assert!(check_framing(&map(&[("transfer-encoding", codings)])).is_err(), "{codings}");
        }
        assert!(
            check_framing(&map(&[("transfer-encoding", "x"), ("transfer-encoding", "chunked")])).is_err()
        );
    }

    #[test]
    fn framing_and_identity_do_not_hide_in_trailers() {
        assert!(trailers_are_harmless(&map(&[("grpc-status", "0"), ("x-checksum", "1")])));
        for name in [
            "transfer-encoding",
            "content-length",
            "host",
            "authorization",
            "X_Forwarded_Client_Cert",
            "mesh-x",
            "Slipstream-Authn-Info",
            "x_forwarded_for",
            "forwarded",
        ] {
            let mut trailers = map(&[(name, "1"), ("grpc-status", "0")]);
            assert!(!trailers_are_harmless(&trailers), "{name}");
            strip_trailers(&mut trailers);
            assert_eq!(trailers, map(&[("grpc-status", "0")]));
        }
    }

    #[test]
    fn a_declared_length_that_is_not_one_number_is_refused() {
        for lengths in [&["x"][..], &["1", "2"], &["-1"], &[""]] {
            let mut headers: HeaderMap = lengths
                .iter()
                .map(|length| (MESH_CONTENT_LENGTH, HeaderValue::from_static(length)))
                .collect();
            assert_eq!(remove_records(&mut headers), Err(Refusal::SignatureMalformed), "{lengths:?}");
        }
    }
}
