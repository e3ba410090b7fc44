//! HTTP bodies in the coding `mesh-rec`.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};
use signet_signature::record::{
    Direction, Event, RecordError, RecordReader, RecordType, RecordWriter, WriteError,
};

use crate::support::*;

const HEAD: &[u8] = b"\"@method\": POST\n\"@signature-params\": ()";

fn writer() -> RecordWriter {
    RecordWriter::body(signer(), Direction::ClientToServer, HEAD)
}

fn reader() -> RecordReader {
    RecordReader::body(Direction::ClientToServer, HEAD, &signer().public_key()).unwrap()
}

fn body() -> BytesMut {
    let mut wire = BytesMut::new();
    let mut writer = writer();
    writer.data(b"one", NOW, &mut wire).unwrap();
    writer.sign(NOW, &mut wire);
    writer.data(b"two", NOW, &mut wire).unwrap();
    writer.fin(NOW, &mut wire).unwrap();
    wire
}

/// What the reader says to a TRAILERS record with this payload.
fn trailers_of(payload: &[u8]) -> RecordError {
    read(&mut reader(), &record(TRAILERS, payload)).end.unwrap_err()
}

#[test]
fn body_needs_no_opening() {
    let outcome = read(&mut reader(), &body());
    assert_eq!((outcome.payload(), outcome.end), (b"onetwo".to_vec(), Ok(())));
    assert_eq!(types(&body()), [DATA, SIG, DATA, FIN, SIG]);
}

#[test]
fn empty_body_has_a_clean_end() {
    let mut wire = BytesMut::new();
    writer().fin(NOW, &mut wire).unwrap();
    let outcome = read(&mut reader(), &wire);
    assert_eq!((outcome.events, outcome.end), (vec![Event::Fin { trailers: None }], Ok(())));
}

#[test]
fn body_cut_anywhere_is_truncated() {
    let wire = body();
    for length in 0..wire.len() {
        assert_eq!(read(&mut reader(), &wire[..length]).end, Err(RecordError::Truncated), "at {length}");
    }
}

#[test]
fn body_of_another_head_is_refused() {
    let mut other = RecordReader::body(Direction::ClientToServer, b"other", &signer().public_key()).unwrap();
    let outcome = read(&mut other, &body());
    assert_eq!((outcome.payload(), outcome.end), (Vec::new(), Err(RecordError::HashMismatch)));
}

#[test]
fn request_body_is_no_response_body() {
    let mut other = RecordReader::body(Direction::ServerToClient, HEAD, &signer().public_key()).unwrap();
    let outcome = read(&mut other, &body());
    assert_eq!((outcome.payload(), outcome.end), (Vec::new(), Err(RecordError::BadSignature)));
}

#[test]
fn body_signed_by_another_key_is_refused() {
    let mut other = RecordReader::body(Direction::ClientToServer, HEAD, &key(8).public_key()).unwrap();
    assert_eq!(read(&mut other, &body()).end, Err(RecordError::BadSignature));
}

#[test]
fn trailers_arrive_with_the_end() {
    let mut trailers = HeaderMap::new();
    trailers.append("grpc-status", HeaderValue::from_static("0"));
    trailers.append("x-many", HeaderValue::from_static("b"));
    trailers.append("x-many", HeaderValue::from_static("a"));
    trailers.append("x-obs", HeaderValue::from_bytes(b"\xff").unwrap());
    trailers.append("x-empty", HeaderValue::from_static(""));
    let mut wire = BytesMut::new();
    writer().fin_with_trailers(&trailers, NOW, &mut wire).unwrap();
    assert_eq!(types(&wire), [TRAILERS, FIN, SIG]);
    let outcome = read(&mut reader(), &wire);
    assert_eq!(outcome.events, [Event::Fin { trailers: Some(trailers) }]);
    assert_eq!(format!("{:?}", outcome.events), "[Fin(5 trailers)]");
}

#[test]
fn no_trailer_fields_are_no_trailers() {
    let (mut wire, mut plain) = (BytesMut::new(), BytesMut::new());
    writer().fin_with_trailers(&HeaderMap::new(), NOW, &mut wire).unwrap();
    writer().fin(NOW, &mut plain).unwrap();
    assert_eq!(wire, plain);
}

#[test]
fn trailers_are_not_delivered_unsigned() {
    let mut trailers = HeaderMap::new();
    trailers.append("grpc-status", HeaderValue::from_static("0"));
    let mut wire = BytesMut::new();
    writer().fin_with_trailers(&trailers, NOW, &mut wire).unwrap();
    let position = wire.iter().position(|byte| *byte == b'0').unwrap();
    wire[position] = b'1';
    let outcome = read(&mut reader(), &wire);
    assert_eq!((outcome.events, outcome.end), (vec![], Err(RecordError::HashMismatch)));
}

#[test]
fn stripped_trailers_are_refused() {
    let mut trailers = HeaderMap::new();
    trailers.append("grpc-status", HeaderValue::from_static("13"));
    let mut wire = BytesMut::new();
    writer().fin_with_trailers(&trailers, NOW, &mut wire).unwrap();
    let stripped = records(&wire)[1..].concat();
    assert_eq!(read(&mut reader(), &stripped).end, Err(RecordError::SequenceMismatch));
}

#[test]
fn only_fin_follows_trailers() {
    for (next, name) in [(DATA, RecordType::Data), (TRAILERS, RecordType::Trailers)] {
        let wire = [record(TRAILERS, b"\0\x01\0\x01a\0\0"), record(next, b"x")].concat();
        assert_eq!(read(&mut reader(), &wire).end, Err(RecordError::UnexpectedRecord(name)));
    }
}

#[test]
fn malformed_trailers_are_refused() {
    let too_many = [&b"\0\x65"[..], &b"\0\x01a\0\0".repeat(101)].concat();
    for payload in [
        &b""[..],
        b"\0",
        b"\0\0",
        b"\0\x01",
        b"\0\x01\0\0\0\0",
        b"\0\x01\0\x01A\0\0",
        b"\0\x01\0\x03a b\0\0",
        b"\0\x01\0\x01a\0\x01\n",
        b"\0\x01\0\x01a\0\x02b",
        b"\0\x01\0\x01a\0\x01b+",
        b"\0\x02\0\x01a\0\x01b",
        &too_many,
    ] {
        assert_eq!(trailers_of(payload), RecordError::Malformed(RecordType::Trailers), "{payload:?}");
    }
}

#[test]
fn trailers_that_do_not_fit_are_not_written() {
    let too_large = Err(WriteError::TrailersTooLarge);
    let mut out = BytesMut::new();
    let many = (0..101).map(|i| {
        (HeaderName::from_bytes(format!("x-{i}").as_bytes()).unwrap(), HeaderValue::from_static(""))
    });
    assert_eq!(writer().fin_with_trailers(&many.collect(), NOW, &mut out), too_large);
    for length in [16 * 1024, 70_000] {
        let mut long = HeaderMap::new();
        long.append("x", HeaderValue::from_bytes(&vec![b'a'; length]).unwrap());
        assert_eq!(writer().fin_with_trailers(&long, NOW, &mut out), too_large);
    }
    assert!(out.is_empty());
}

#[test]
fn stream_records_have_no_place_in_a_body_nor_trailers_in_a_stream() {
    for (kind, name) in [(0, RecordType::Hello), (CHAIN, RecordType::Chain), (RELEASE, RecordType::Release)] {
        let outcome = read(&mut reader(), &record(kind, b""));
        assert_eq!(outcome.end, Err(RecordError::UnexpectedRecord(name)));
    }
    let mut half = Half::from_client();
    let refused = half.writer.fin_with_trailers(&HeaderMap::new(), NOW, &mut half.wire);
    assert_eq!(refused, Err(WriteError::NotABody));
    half.wire.extend_from_slice(&record(TRAILERS, b"\0\x01\0\x01a\0\0"));
    assert_eq!(half.read().end, Err(RecordError::UnexpectedRecord(RecordType::Trailers)));
}
