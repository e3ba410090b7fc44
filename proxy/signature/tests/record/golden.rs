//! The format may not drift: the files in `golden/` were made from the table in the module page by a
//! program that shares no code with this one, with the Ed25519 key whose seed is 32 times 0x07.

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue};
use signet_signature::record::{Direction, Event, Opening, RecordReader, RecordWriter, StreamParams};

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
