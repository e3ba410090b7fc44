//! HELLO and CHAIN: what binds a stream to its connection, and what is refused of them.

use bytes::Bytes;
use signet_signature::record::{
    Direction, Event, HEADER_LEN, Opening, RecordError, RecordType, StreamParams, WriteError,
};

use crate::support::*;

/// What the server says to the client's HELLO after `change` was made to its payload.
fn hello_changed(change: impl FnOnce(&mut Vec<u8>)) -> RecordError {
    let mut payload = records(&client_opening(client_params()).records())[0][HEADER_LEN..].to_vec();
    change(&mut payload);
    read(&mut server_opening().reader(), &record(0, &payload)).refused()
}

fn with_destination(destination: &str) -> RecordError {
    hello_changed(|payload| {
        payload.truncate(107);
        payload.extend(u16::try_from(destination.len()).unwrap().to_be_bytes());
        payload.extend(destination.as_bytes());
    })
}

/// What the server says to `payload` as the client's CHAIN.
fn chain_of(payload: &[u8]) -> RecordError {
    let mut wire = records(&client_opening(client_params()).records())[0].clone();
    wire.extend(record(CHAIN, payload));
    read(&mut server_opening().reader(), &wire).refused()
}

#[test]
fn hello_says_what_the_sender_knows() {
    let params = StreamParams { auto: true, ..client_params() };
    let hello = read(&mut server_opening().reader(), &client_opening(params.clone()).records()).hello();
    assert!(hello.auto);
    assert_eq!((hello.channel, hello.stream, hello.unix_ms), (CHANNEL, [1; 16], NOW));
    assert_eq!((hello.destination.as_str(), hello.port), (DESTINATION, 5432));
    assert_eq!(&hello, client_opening(params).hello());
}

#[test]
fn longest_destination_fits() {
    let id = format!("spiffe://mesh.example/{}", "a".repeat(2_048 - 22));
    let params = StreamParams { destination: id.clone(), port: 65_535, ..client_params() };
    let hello = read(&mut server_opening().reader(), &client_opening(params).records()).hello();
    assert_eq!((hello.destination, hello.port), (id, 65_535));
}

#[test]
fn hello_of_another_connection_is_refused() {
    let other = StreamParams { channel: [0; 16], ..client_params() };
    let outcome = read(&mut server_opening().reader(), &client_opening(other).records());
    assert_eq!(outcome.refused(), RecordError::ChannelMismatch);
}

#[test]
fn hello_for_another_peer_is_refused() {
    let other = StreamParams { peer_tls: [0; 32], ..client_params() };
    let outcome = read(&mut server_opening().reader(), &client_opening(other).records());
    assert_eq!(outcome.refused(), RecordError::PeerMismatch);
}

#[test]
fn hello_of_a_later_version_is_refused() {
    assert_eq!(hello_changed(|hello| hello[0] = 2), RecordError::UnsupportedVersion);
    assert_eq!(hello_changed(|hello| hello[1] = 3), RecordError::UnsupportedHash);
    assert_eq!(hello_changed(|hello| hello[2] |= 2), RecordError::UnknownFlags);
}

#[test]
fn hello_of_a_wrong_length_is_refused() {
    let malformed = RecordError::Malformed(RecordType::Hello);
    assert_eq!(hello_changed(|hello| hello.push(0)), malformed);
    assert_eq!(hello_changed(|hello| hello.truncate(60)), malformed);
    assert_eq!(hello_changed(Vec::clear), malformed);
}

#[test]
fn destination_has_one_form_only() {
    for destination in [
        "",
        "spiffe://mesh.example/a",
        "spiffe://mesh.example/a:",
        "spiffe://mesh.example/a:0",
        "spiffe://mesh.example/a:080",
        "spiffe://mesh.example/a:+80",
        "spiffe://mesh.example/a:65536",
        "spiffe://mesh.example/a b:80",
        "spiffe://mesh.example/\u{e9}:80",
        "http://mesh.example/a:80",
    ] {
        assert_eq!(with_destination(destination), RecordError::Malformed(RecordType::Hello), "{destination}");
    }
}

#[test]
fn stream_begins_with_hello_and_chain() {
    let records = records(&conversation().wire);
    let server = server_opening();
    for record in &records[1..] {
        let refused = read(&mut server.reader(), record).refused();
        assert!(matches!(refused, RecordError::UnexpectedRecord(_)));
    }
    for record in [&records[0], &records[2], &records[4]] {
        let wire = [&records[0][..], record].concat();
        assert!(matches!(read(&mut server.reader(), &wire).refused(), RecordError::UnexpectedRecord(_)));
    }
}

#[test]
fn chain_other_than_the_announced_one_is_refused() {
    assert_eq!(chain_of(b"\x01\0\0\x01x"), RecordError::ChainMismatch);
    // The announced leaf must be the first certificate, not just one of them.
    assert_eq!(chain_of(b"\x02\0\0\x06issuer\0\0\x0bclient leaf"), RecordError::ChainMismatch);
}

#[test]
fn malformed_chain_is_refused() {
    for payload in [
        &b""[..],
        b"\0",
        b"\x01",
        b"\x01\0\0",
        b"\x01\0\0\0",
        b"\x01\0\0\x0cclient leaf",
        b"\x01\0\0\x0bclient leaf+",
        b"\x02\0\0\x0bclient leaf",
        b"\x05\0\0\x0bclient leaf\0\0\x01a\0\0\x01a\0\0\x01a\0\0\x01a",
    ] {
        assert_eq!(chain_of(payload), RecordError::Malformed(RecordType::Chain), "{payload:?}");
    }
}

#[test]
fn chain_of_four_certificates_fits() {
    let chain = [&b"client leaf"[..], b"a", b"b", b"c"];
    let client = Opening::new(Direction::ClientToServer, client_params(), &chain).unwrap();
    let outcome = read(&mut server_opening().reader(), &client.records());
    assert_eq!(outcome.events[1], Event::Chain(chain.map(Bytes::from_static).to_vec()));
}

#[test]
fn opening_that_does_not_fit_is_not_made() {
    let open = |params, chain: &[&[u8]]| Opening::new(Direction::ClientToServer, params, chain).map(|_| ());
    let chain_invalid = Err(WriteError::ChainInvalid);
    assert_eq!(open(client_params(), &[]), chain_invalid);
    assert_eq!(open(client_params(), &[b""]), chain_invalid);
    assert_eq!(open(client_params(), &[&b"x"[..]; 5]), chain_invalid);
    assert_eq!(open(client_params(), &[&[0; 16 * 1024 - 3]]), chain_invalid);
    assert_eq!(open(client_params(), &[&[0; 16 * 1024 - 4]]), Ok(()));
    for (destination, port) in [
        (DESTINATION.to_owned(), 0),
        ("mesh.example".to_owned(), 80),
        ("spiffe://mesh.example/a b".to_owned(), 80),
        (format!("spiffe://{}", "a".repeat(2_040)), 80),
    ] {
        let params = StreamParams { destination, port, ..client_params() };
        assert_eq!(open(params, &[b"x"]), Err(WriteError::DestinationInvalid));
    }
}
