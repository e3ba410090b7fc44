use bytes::BytesMut;
use http::{HeaderMap, HeaderValue};

use super::*;

const SENDER: &str = "spiffe://mesh.example/agent/a/web#AAAA";
const WORKLOAD: &str = "spiffe://mesh.example/agent/b/store";

fn signing_key(seed: u8) -> Vec<u8> {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    pair.to_pkcs8().unwrap().as_ref().to_vec()
}

fn key(seed: u8) -> SealingKey {
    SealingKey::derive(&signing_key(seed)).unwrap()
}

fn place() -> Place {
    let text = str::to_owned;
    let (path, query) = (text("/items"), text("?x=1"));
    Place { method: text("POST"), authority: text("store:8080"), path, query, nonce: text("AAAA.7") }
}

fn sealed_for(keys: &[&SealingKey]) -> SealedSecret {
    let public: Vec<_> = keys.iter().map(|key| key.public()).collect();
    let recipients: Vec<_> = public.iter().map(|key| Recipient { spiffe_id: WORKLOAD, key }).collect();
    SealedSecret::new(SENDER, &recipients).unwrap()
}

fn seal(keys: MessageKeys, writes: &[&[u8]], rest: &[u8]) -> Vec<u8> {
    let mut writer = keys.into_writer();
    let mut out = Vec::new();
    writes.iter().for_each(|bytes| writer.write(bytes, &mut out));
    writer.finish(rest, &mut out);
    out
}

/// What a reader makes of `sealed`, and whether it came to the end.
fn open(keys: MessageKeys, sealed: &[u8]) -> Result<(Vec<u8>, bool), SealError> {
    let mut reader = keys.into_reader();
    let mut input = BytesMut::from(sealed);
    let mut out = Vec::new();
    while let Some(chunk) = reader.decode(&mut input)? {
        out.extend_from_slice(&chunk.data);
    }
    Ok((out, reader.is_done()))
}

#[test]
fn a_recipient_opens_what_was_sealed_for_it_in_pieces_of_any_size() {
    let own = key(1);
    let sealed = sealed_for(&[&own]);
    let secret = Secret::open(&sealed.envelope, SENDER, WORKLOAD, &[&own]).unwrap();
    for length in [0, 1, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 3 * MAX_CHUNK] {
        let body: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let wire = seal(sealed.secret.exchange(&place()).request, &[], &body);
        assert_eq!(open(secret.exchange(&place()).request, &wire), Ok((body.clone(), true)), "{length}");
        let wire = seal(sealed.secret.exchange(&place()).response, &[&body, b"x"], b"");
        let whole = [&body[..], b"x"].concat();
        assert_eq!(open(secret.exchange(&place()).response, &wire), Ok((whole, true)), "{length}");
    }
}

#[test]
fn each_of_several_recipients_opens_and_nobody_else_does() {
    let keys = [key(1), key(2), key(3)];
    let sealed = sealed_for(&[&keys[0], &keys[1]]);
    let open = |key: &SealingKey| Secret::open(&sealed.envelope, SENDER, WORKLOAD, &[key]);
    let commitment = |secret: &Secret| secret.exchange(&place()).request.commitment;
    for key in &keys[..2] {
        assert_eq!(commitment(&open(key).unwrap()), commitment(&sealed.secret));
    }
    assert_eq!(open(&keys[2]).unwrap_err(), SealError::NotForUs);
    // The former key of a workload, beside its present one.
    let both = Secret::open(&sealed.envelope, SENDER, WORKLOAD, &[&keys[2], &keys[1]]);
    assert_eq!(commitment(&both.unwrap()), commitment(&sealed.secret));
}

#[test]
fn an_envelope_belongs_to_its_sender_and_its_recipient() {
    let own = key(1);
    let sealed = sealed_for(&[&own]);
    let open = |sender, id| Secret::open(&sealed.envelope, sender, id, &[&own]).map(drop);
    assert_eq!(open(SENDER, WORKLOAD), Ok(()));
    assert_eq!(open("spiffe://mesh.example/agent/a/thief#BBBB", WORKLOAD), Err(SealError::Broken));
    assert_eq!(open(SENDER, "spiffe://mesh.example/agent/b/other"), Err(SealError::Broken));
}

#[test]
fn no_byte_of_an_envelope_can_be_changed_or_left_out() {
    let own = key(1);
    let sealed = sealed_for(&[&own]);
    for at in 0..sealed.envelope.len() {
        let mut altered = sealed.envelope.clone();
        altered[at] ^= 1;
        assert!(Secret::open(&altered, SENDER, WORKLOAD, &[&own]).is_err(), "byte {at}");
        let cut = &sealed.envelope[..at];
        assert_eq!(Secret::open(cut, SENDER, WORKLOAD, &[&own]).unwrap_err(), SealError::Malformed);
    }
}

#[test]
fn a_body_opens_only_at_the_place_it_was_sealed_for() {
    let secret = sealed_for(&[&key(1)]).secret;
    let wire = seal(secret.exchange(&place()).request, &[], b"pay 5");
    let elsewhere = [
        Place { method: "PUT".to_owned(), ..place() },
        Place { authority: "store:8081".to_owned(), ..place() },
        Place { path: "/item".to_owned(), ..place() },
        Place { query: "?x=2".to_owned(), ..place() },
        Place { nonce: "AAAA.8".to_owned(), ..place() },
        // What moves from one part to the next.
        Place { path: "/items?".to_owned(), query: "x=1".to_owned(), ..place() },
    ];
    for other in elsewhere {
        assert_eq!(open(secret.exchange(&other).request, &wire), Err(SealError::Broken), "{other:?}");
        assert_ne!(secret.exchange(&other).request.commitment, secret.exchange(&place()).request.commitment);
    }
    assert_eq!(open(secret.exchange(&place()).response, &wire), Err(SealError::Broken));
}

#[test]
fn chunks_cannot_be_dropped_swapped_repeated_cut_or_added() {
    let secret = sealed_for(&[&key(1)]).secret;
    let keys = || secret.exchange(&place()).request;
    let wire = seal(keys(), &[b"aaaa", b"bbbb"], b"cccc");
    let piece = 4 + CHUNK_OVERHEAD;
    let [a, b, c] = [&wire[..piece], &wire[piece..2 * piece], &wire[2 * piece..]];
    assert_eq!(open(keys(), &wire), Ok((b"aaaabbbbcccc".to_vec(), true)));
    for broken in [[b, a, c].concat(), [a, a, b].concat(), [a, c].concat(), [c, a].concat()] {
        assert_eq!(open(keys(), &broken), Err(SealError::Broken));
    }
    // Cut at a chunk's end: everything opens, and it is no end.
    assert_eq!(open(keys(), &[a, b].concat()), Ok((b"aaaabbbb".to_vec(), false)));
    assert_eq!(open(keys(), &[&wire[..], &[0]].concat()), Err(SealError::Malformed));
    // A mark that is set or removed.
    for at in [0, piece, 2 * piece] {
        let mut marked = wire.clone();
        marked[at] ^= 0x80;
        assert_eq!(open(keys(), &marked), Err(SealError::Broken));
    }
}

#[test]
fn an_empty_chunk_and_one_that_is_too_long_are_refused_before_they_arrive() {
    let keys = || sealed_for(&[&key(1)]).secret.exchange(&place()).request;
    for length in [0u32, 15, 16, (MAX_CHUNK + 17) as u32, 0x7fff_ffff, 0x8000_000f] {
        assert_eq!(open(keys(), &length.to_be_bytes()), Err(SealError::Malformed), "{length}");
    }
}

#[test]
fn sealed_fields_come_back_as_they_were_and_open_nowhere_else() {
    let secret = sealed_for(&[&key(1)]).secret;
    let mut fields = HeaderMap::new();
    fields.append("cookie", HeaderValue::from_static("a=1"));
    fields.append("cookie", HeaderValue::from_bytes(b"b=\xff").unwrap());
    fields.append("authorization", HeaderValue::from_static(""));
    let keys = || secret.exchange(&place()).request;
    let sealed = keys().seal_fields(&fields).unwrap();
    assert_eq!(keys().open_fields(sealed.clone()), Ok(fields));
    assert_eq!(secret.exchange(&place()).response.open_fields(sealed.clone()), Err(SealError::Broken));
    for at in 0..sealed.len() {
        let mut altered = sealed.clone();
        altered[at] ^= 1;
        assert_eq!(keys().open_fields(altered), Err(SealError::Broken));
    }
}

#[test]
fn fields_that_are_too_large_are_not_sealed() {
    let mut fields = HeaderMap::new();
    fields.append("x", HeaderValue::from_bytes(&vec![b'a'; MAX_FIELDS_BYTES]).unwrap());
    let keys = sealed_for(&[&key(1)]).secret.exchange(&place()).request;
    assert_eq!(keys.seal_fields(&fields), Err(SealError::TooLarge));
}

#[test]
fn a_sealing_key_follows_from_the_signing_key_alone() {
    assert_eq!(key(1).public(), key(1).public());
    assert_ne!(key(1).public(), key(2).public());
    assert_eq!(SealingKey::derive(b"no key").unwrap_err(), SealError::Key);
}

#[test]
fn the_number_of_recipients_has_bounds_and_a_weak_key_is_none() {
    let own = key(1).public();
    let too_many = vec![Recipient { spiffe_id: WORKLOAD, key: &own }; MAX_RECIPIENTS + 1];
    assert_eq!(SealedSecret::new(SENDER, &too_many).unwrap_err(), SealError::Recipients);
    assert_eq!(SealedSecret::new(SENDER, &[]).unwrap_err(), SealError::Recipients);
    let weak = Recipient { spiffe_id: WORKLOAD, key: &[0; 32] };
    assert_eq!(SealedSecret::new(SENDER, &[weak]).unwrap_err(), SealError::Key);
}

#[test]
fn a_recipient_with_an_unusable_key_does_not_keep_the_others_from_reading() {
    let own = key(1);
    let weak = Recipient { spiffe_id: WORKLOAD, key: &[0; 32] };
    let public = own.public();
    let good = Recipient { spiffe_id: WORKLOAD, key: &public };
    for recipients in [[weak, good], [good, weak]] {
        let sealed = SealedSecret::new(SENDER, &recipients).unwrap();
        assert_eq!(sealed.envelope[1], 1, "one entry");
        Secret::open(&sealed.envelope, SENDER, WORKLOAD, &[&own]).unwrap();
    }
}

#[test]
fn the_place_of_a_request_is_what_its_signature_covers() {
    let uri: http::Uri = "/Items?x=1".parse().unwrap();
    let headers = HeaderMap::new();
    let view = RequestView::new(&http::Method::POST, &uri, "http", "Store:80", &headers);
    let place = Place::of(&view, "AAAA.7").unwrap();
    let Place { method, authority, path, query, nonce } = place;
    let expected = ["POST", "store", "/Items", "?x=1", "AAAA.7"];
    assert_eq!([&*method, &*authority, &*path, &*query, &*nonce], expected);
}
