//! The format may not drift: the files in `golden/` were made from the table in the module page by a
//! program that shares no code with this one, with the Ed25519 key whose seed is 32 times 0x07.

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue};
use signet_signature::record::{
    Direction, Event, Opening, RecordHash, RecordReader, RecordWriter, StreamParams,
};

use crate::support::*;

const PUBLIC_KEY: &str = "ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c";

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).unwrap()).collect()
}

fn openings() -> (Opening, Opening) {
    (client_opening(StreamParams { auto: true, ..client_params() }), server_opening())
}

#[test]
fn key_is_the_one_the_files_were_made_with() {
    assert_eq!(signer().public_key()[..], unhex(PUBLIC_KEY));
}

#[test]
fn client_half_has_its_golden_bytes() {
    let (client, server) = openings();
    let mut wire = BytesMut::from(&client.records()[..]);
    let mut writer = client.writer(signer(), server.hello());
    writer.data(b"ping", NOW, &mut wire).unwrap();
    writer.sign(NOW + 2, &mut wire);
    writer.data(b"pong", NOW, &mut wire).unwrap();
    writer.fin(NOW + 3, &mut wire).unwrap();
    assert_eq!(wire, unhex(include_str!("golden/client.hex")));
    let outcome = read(&mut server.reader(), &wire);
    assert_eq!((outcome.payload(), outcome.end), (b"pingpong".to_vec(), Ok(())));
}

#[test]
fn released_client_half_has_its_golden_bytes() {
    let (client, server) = openings();
    let mut wire = BytesMut::from(&client.records()[..]);
    client.writer(signer(), server.hello()).release(NOW + 2, &mut wire).unwrap();
    assert_eq!(wire, unhex(include_str!("golden/released.hex")));
    let outcome = read(&mut server.reader(), &wire);
    assert_eq!((outcome.events.last(), outcome.end), (Some(&Event::Release), Ok(())));
}

#[test]
fn server_half_has_its_golden_bytes() {
    let (client, server) = openings();
    let mut wire = BytesMut::from(&server.records()[..]);
    server.writer(signer(), client.hello()).fin(NOW + 4, &mut wire).unwrap();
    assert_eq!(wire, unhex(include_str!("golden/server.hex")));
    let outcome = read(&mut client.reader(), &wire);
    assert_eq!((outcome.events.last(), outcome.end), (Some(&Event::Fin { trailers: None }), Ok(())));
}

/// Both halves of a stream whose client offers BLAKE3, from a server that wants `hash`.
fn negotiated(hash: RecordHash) -> (BytesMut, BytesMut) {
    let client = client_opening(StreamParams { auto: true, hash: RecordHash::Blake3, ..client_params() });
    let server =
        Opening::new(Direction::ServerToClient, StreamParams { hash, ..server_params() }, &SERVER_CHAIN);
    let server = server.unwrap().answering(client.hello()).unwrap();
    let mut c2s = BytesMut::from(&client.records()[..]);
    let mut writer = client.writer(signer(), server.hello());
    writer.data(b"ping", NOW, &mut c2s).unwrap();
    writer.sign(NOW + 2, &mut c2s);
    writer.data(b"pong", NOW, &mut c2s).unwrap();
    writer.fin(NOW + 3, &mut c2s).unwrap();
    let mut s2c = BytesMut::from(&server.records()[..]);
    server.writer(signer(), client.hello()).fin(NOW + 4, &mut s2c).unwrap();
    let outcome = read(&mut server.reader(), &c2s);
    assert_eq!((outcome.payload(), outcome.end), (b"pingpong".to_vec(), Ok(())));
    assert_eq!(read(&mut client.reader(), &s2c).end, Ok(()));
    (c2s, s2c)
}

#[test]
fn stream_with_blake3_has_its_golden_bytes() {
    let (c2s, s2c) = negotiated(RecordHash::Blake3);
    assert_eq!(c2s, unhex(include_str!("golden/client-blake3.hex")));
    assert_eq!(s2c, unhex(include_str!("golden/server-blake3.hex")));
}

#[test]
fn offer_that_the_server_answers_with_sha_256_has_its_golden_bytes() {
    let (c2s, _) = negotiated(RecordHash::Sha256);
    assert_eq!(c2s, unhex(include_str!("golden/client-downgraded.hex")));
}

#[test]
fn response_body_has_its_golden_bytes() {
    let base = b"\"@method\": POST";
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("grpc-message", HeaderValue::from_static("ok"));
    let mut wire = BytesMut::new();
    let mut writer = RecordWriter::body(signer(), Direction::ServerToClient, base);
    writer.data(b"{\"hello\": \"world\"}", NOW, &mut wire).unwrap();
    writer.fin_with_trailers(&trailers, NOW + 5, &mut wire).unwrap();
    assert_eq!(wire, unhex(include_str!("golden/body.hex")));
    let mut reader = RecordReader::body(Direction::ServerToClient, base, &signer().public_key()).unwrap();
    let outcome = read(&mut reader, &wire);
    assert_eq!((outcome.payload(), outcome.end), (b"{\"hello\": \"world\"}".to_vec(), Ok(())));
    assert_eq!(outcome.events.last(), Some(&Event::Fin { trailers: Some(trailers) }));
}
