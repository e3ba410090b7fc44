//! How large the head of a message may be. Asked before anything else looks at a message, so that
//! one that is too large is refused by name.
//!
//! The HTTP library reads more than is taken ([`READ_BYTES_MAX`], [`READ_FIELDS`]). What is beyond
//! even that it answers by itself, with a bare status: there is no end to what would have to be read
//! to answer better.

use http::{HeaderMap, Version, request, response};
use signet_policy::Refusal;

/// Request line, names and values of one head: what nginx and Envoy accept at most.
pub(crate) const BYTES_MAX: usize = 64 * 1024;
/// Fields of one head in HTTP/1.1: with those of the mesh they fit in what is read of it.
pub(crate) const FIELDS_MAX: usize = 80;
/// The same in HTTP/2: a browser with a hundred cookies, each in a field of its own, fits.
const FIELDS_MAX_HTTP2: usize = 128;
/// What a sidecar may add on the way to another: a signing chain of up to 16 KiB, two fields of up to
/// 4 KiB for the signature, and small ones. So what passes at the sender passes at the receiver.
const MESH_BYTES: usize = 32 * 1024;
/// The fields that come with it: nine of the mesh and the hop's own framing, rounded up.
const MESH_FIELDS: usize = 16;
/// Read buffer of a connection, and HPACK's size of a header list. Twice what is taken: what was meant
/// for the mesh is read to its end, the mesh's fields and the separators included, and a connection
/// still holds less than the body it may hold (256 KiB).
pub(crate) const READ_BYTES_MAX: usize = 2 * BYTES_MAX;
/// Fields that hyper reads in HTTP/1.1, for which it has room on the stack. Told another number, it takes room from the
/// heap for each head, which was a sixteenth of the instructions outside of the kernel for a small request.
const READ_FIELDS: usize = 100;

const _: () = assert!(BYTES_MAX + MESH_BYTES < READ_BYTES_MAX && FIELDS_MAX + MESH_FIELDS < READ_FIELDS);

/// Whom a head came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    /// An application, or a caller without a sidecar.
    App,
    /// Another sidecar, which has added its fields.
    Mesh,
}

/// Refuses a request with a head that is too large.
pub(crate) fn check_request(parts: &request::Parts, origin: Origin) -> Result<(), Refusal> {
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let authority = parts.uri.authority().map_or(0, |authority| authority.as_str().len());
    let line = parts.method.as_str().len() + target + authority;
    if fits(line, parts.version, &parts.headers, origin) { Ok(()) } else { Err(Refusal::HeaderTooLarge) }
}

/// Refuses a response with a head that is too large, as `refusal`: its caller is not to blame for it.
pub(crate) fn check_response(
    parts: &response::Parts,
    origin: Origin,
    refusal: Refusal,
) -> Result<(), Refusal> {
    if fits(0, parts.version, &parts.headers, origin) {
        return Ok(());
    }
    tracing::info!(fields = parts.headers.len(), ?origin, "the head of a response is too large");
    Err(refusal)
}

fn fits(line: usize, version: Version, headers: &HeaderMap, origin: Origin) -> bool {
    let fields_max = if version == Version::HTTP_2 { FIELDS_MAX_HTTP2 } else { FIELDS_MAX };
    let (bytes_max, fields_max) = match origin {
        Origin::App => (BYTES_MAX, fields_max),
        Origin::Mesh => (BYTES_MAX + MESH_BYTES, fields_max + MESH_FIELDS),
    };
    let fields = || headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    headers.len() <= fields_max && line + fields().sum::<usize>() <= bytes_max
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, Request, Response};

    use super::*;

    fn request(target: usize, value: usize, fields: usize) -> request::Parts {
        let (mut parts, ()) =
            Request::get(format!("/{}", "t".repeat(target - 1))).body(()).unwrap().into_parts();
        for number in 0..fields {
            let name = HeaderName::try_from(format!("x-{number:06}")).unwrap();
            parts.headers.append(name, HeaderValue::try_from("v".repeat(value)).unwrap());
        }
        parts
    }

    #[test]
    fn head_of_exactly_the_bound_passes_and_one_byte_more_does_not() {
        // GET, a target, and a field of eight bytes' name.
        let value = BYTES_MAX - 3 - 10 - 8;
        assert_eq!(check_request(&request(10, value, 1), Origin::App), Ok(()));
        assert_eq!(check_request(&request(10, value + 1, 1), Origin::App), Err(Refusal::HeaderTooLarge));
        assert_eq!(check_request(&request(11, value, 1), Origin::App), Err(Refusal::HeaderTooLarge));
    }

    #[test]
    fn fields_are_counted_each_by_itself() {
        assert_eq!(check_request(&request(1, 1, FIELDS_MAX), Origin::App), Ok(()));
        assert_eq!(check_request(&request(1, 1, FIELDS_MAX + 1), Origin::App), Err(Refusal::HeaderTooLarge));
        let (mut parts, ()) = Request::get("/").body(()).unwrap().into_parts();
        for _ in 0..=FIELDS_MAX {
            parts.headers.append("cookie", HeaderValue::from_static("a=b"));
        }
        assert_eq!(check_request(&parts, Origin::App), Err(Refusal::HeaderTooLarge));
        parts.version = Version::HTTP_2;
        assert_eq!(check_request(&parts, Origin::App), Ok(()));
    }

    #[test]
    fn what_passes_at_the_sender_passes_at_the_receiver_with_what_the_mesh_adds() {
        let mut parts = request(1, 500, FIELDS_MAX - 2);
        assert_eq!(check_request(&parts, Origin::App), Ok(()));
        for name in ["signature-input", "signature", "mesh-cert", "mesh-request-id", "content-digest"] {
            parts.headers.append(name, HeaderValue::try_from("m".repeat(4000)).unwrap());
        }
        assert_eq!(check_request(&parts, Origin::App), Err(Refusal::HeaderTooLarge));
        assert_eq!(check_request(&parts, Origin::Mesh), Ok(()));
    }

    #[test]
    fn response_is_refused_in_the_name_that_its_place_has_for_it() {
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.headers.append("x-long", HeaderValue::try_from("v".repeat(BYTES_MAX - 6)).unwrap());
        assert_eq!(check_response(&parts, Origin::App, Refusal::UpstreamUnreachable), Ok(()));
        parts.headers.append("x", HeaderValue::from_static(""));
        let refused = check_response(&parts, Origin::App, Refusal::UpstreamUnreachable);
        assert_eq!(refused, Err(Refusal::UpstreamUnreachable));
    }
}
