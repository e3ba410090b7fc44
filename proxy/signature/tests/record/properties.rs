//! For all inputs.

use bytes::BytesMut;
use proptest::{collection::vec, prelude::*};
use signet_signature::record::{Direction, RecordReader, StreamParams};

use crate::support::*;

/// One step of a sender: payload of some length, or a signature.
fn steps() -> impl Strategy<Value = Vec<Option<Vec<u8>>>> {
    vec(proptest::option::weighted(0.7, vec(any::<u8>(), 0..2_000)), 0..12)
}

fn written(steps: &[Option<Vec<u8>>]) -> BytesMut {
    let mut half = Half::from_client();
    for step in steps {
        match step {
            Some(payload) => half = half.data(payload),
            None => _ = half.writer.sign(NOW, &mut half.wire),
        }
    }
    half.fin().wire
}

fn cut<'a>(mut wire: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut chunks = Vec::new();
    for length in lengths {
        let (chunk, rest) = wire.split_at((*length).min(wire.len()));
        chunks.push(chunk);
        wire = rest;
    }
    chunks.push(wire);
    chunks
}

/// Records with a plausible header and any payload, so that more than headers is reached.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    vec((0_u8..10, vec(any::<u8>(), 0..200)), 0..20)
        .prop_map(|parts| parts.iter().flat_map(|(kind, payload)| record(*kind, payload)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read(steps in steps()) {
        let outcome = read(&mut Half::from_client().reader, &written(&steps));
        prop_assert_eq!(outcome.payload(), steps.into_iter().flatten().collect::<Vec<_>>().concat());
        prop_assert_eq!(outcome.end, Ok(()));
    }

    #[test]
    fn chunking_changes_nothing(steps in steps(), lengths in vec(0_usize..600, 0..60)) {
        let wire = written(&steps);
        let whole = read(&mut Half::from_client().reader, &wire);
        let chunked = read_in_chunks(&mut Half::from_client().reader, &cut(&wire, &lengths));
        prop_assert_eq!(whole.events, chunked.events);
        prop_assert_eq!(whole.end, chunked.end);
    }

    #[test]
    fn any_bytes_are_refused_without_panic(bytes in prop_oneof![vec(any::<u8>(), 0..500), plausible()]) {
        prop_assert!(read(&mut Half::from_client().reader, &bytes).end.is_err());
        let mut body = RecordReader::body(Direction::ClientToServer, b"", &signer().public_key()).unwrap();
        prop_assert!(read(&mut body, &bytes).end.is_err());
        let mut opened = Half::from_client();
        opened.wire.extend_from_slice(&bytes);
        let outcome = opened.read();
        prop_assert!(outcome.end.is_err() && outcome.payload().is_empty());
    }

    #[test]
    fn hello_arrives_as_it_was_made(
        auto: bool, stream: [u8; 16], unix_ms: u64, path in "[!-~]{0,200}", port in 1_u16..,
    ) {
        let destination = format!("spiffe://{path}");
        let params = StreamParams { auto, stream, unix_ms, destination, port, ..client_params() };
        let client = client_opening(params);
        let hello = read(&mut server_opening().reader(), &client.records()).hello();
        prop_assert_eq!(&hello, client.hello());
    }
}
