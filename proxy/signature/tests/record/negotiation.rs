//! What two sides agree on: the better hash that both want, or no signatures where none are required.

use bytes::BytesMut;
use proptest::prelude::*;
use signet_signature::record::{
    Direction, Event, Opening, RecordError, RecordHash, RecordType, StreamParams, WriteError,
};

use crate::support::*;

fn client(hash: RecordHash, unsigned: bool, auto: bool) -> Opening {
    client_opening(StreamParams { hash, unsigned, auto, ..client_params() })
}

fn server(hash: RecordHash, unsigned: bool) -> Opening {
    let params = StreamParams { hash, unsigned, ..server_params() };
    Opening::new(Direction::ServerToClient, params, &SERVER_CHAIN).unwrap()
}

/// A stream of `auto` kind on which nothing is signed, as both sides know it.
fn unsigned() -> (Opening, Opening) {
    let client = client(RecordHash::Blake3, true, true);
    let server = server(RecordHash::Sha256, true).answering(client.hello()).unwrap();
    (client, server)
}

#[test]
fn better_hash_is_used_only_if_both_sides_want_it() {
    use RecordHash::{Blake3, Sha256};
    for (offered, wanted, used) in [
        (Blake3, Blake3, Blake3),
        (Blake3, Sha256, Sha256),
        (Sha256, Blake3, Sha256),
        (Sha256, Sha256, Sha256),
    ] {
        // A workload that does without signatures still gives them to whoever wants them.
        for without in [false, true] {
            let client = client(offered, false, false);
            let server = server(wanted, without);
            let answer = server.clone().answering(client.hello()).unwrap();
            assert_eq!(answer.hello().hash, Some(used));
            let mut wire = BytesMut::from(&client.records()[..]);
            let mut writer = client.writer(signer(), answer.hello());
            writer.data(b"x", NOW, &mut wire).unwrap();
            writer.fin(NOW, &mut wire).unwrap();
            // The reader is made before the client has spoken.
            assert_eq!(read(&mut server.reader(), &wire).end, Ok(()));
            let mut back = BytesMut::from(&answer.records()[..]);
            answer.writer(signer(), client.hello()).fin(NOW, &mut back).unwrap();
            assert_eq!(read(&mut client.reader(), &back).end, Ok(()));
        }
    }
}

#[test]
fn answer_that_was_not_offered_is_refused() {
    let answers = |offer: Opening, answer: Opening| read(&mut offer.reader(), &answer.records()).refused();
    let blake3 = client(RecordHash::Blake3, false, false);
    let sha256 = client(RecordHash::Sha256, false, false);
    let none = client(RecordHash::Blake3, true, false);
    assert_eq!(answers(sha256.clone(), server(RecordHash::Blake3, false)), RecordError::UnsupportedHash);
    assert_eq!(answers(none.clone(), server(RecordHash::Sha256, false)), RecordError::UnsupportedHash);
    let without = server(RecordHash::Blake3, true);
    assert_eq!(answers(blake3, without.clone()), RecordError::Unsigned);
    assert_eq!(answers(sha256, without), RecordError::Unsigned);
}

#[test]
fn stream_without_signatures_is_refused_where_they_are_required() {
    let offer = client(RecordHash::Blake3, true, false);
    let strict = server(RecordHash::Blake3, false);
    assert_eq!(read(&mut strict.reader(), &offer.records()).refused(), RecordError::Unsigned);
    assert_eq!(strict.answering(offer.hello()).err(), Some(RecordError::Unsigned));
}

#[test]
fn offer_changed_on_the_way_is_noticed_at_the_first_signature() {
    let client = client(RecordHash::Blake3, false, false);
    let server = server(RecordHash::Blake3, false);
    // Somebody makes the client's offer a smaller one, and the server answers that.
    let mut offer = records(&client.records())[0].clone();
    offer[5] = 1;
    let seen = read(&mut server.reader(), &offer).hello();
    let answer = server.clone().answering(&seen).unwrap();
    let mut wire = BytesMut::from(&offer[..]);
    wire.extend_from_slice(&records(&client.records())[1]);
    client.writer(signer(), answer.hello()).fin(NOW, &mut wire).unwrap();
    assert_eq!(read(&mut server.reader(), &wire).refused(), RecordError::HashMismatch);
}

#[test]
fn half_without_signatures_is_a_hello_and_then_the_bytes_as_they_are() {
    let (client, server) = unsigned();
    let mut wire = BytesMut::from(&client.records()[..]);
    let mut writer = client.writer(signer(), server.hello());
    assert!(!writer.is_signed() && !writer.has_unsigned() && !writer.sign(NOW, &mut wire));
    assert_eq!(writer.data(b"x", NOW, &mut wire), Err(WriteError::NotSigned));
    assert_eq!(writer.data_header(b"x"), Err(WriteError::NotSigned));
    writer.raw(&mut wire).unwrap();
    assert_eq!(writer.alert("late", &mut wire), Err(WriteError::Ended));
    assert_eq!(types(&wire), [0, RAW]);
    wire.extend_from_slice(b"\x04\0\0\x01as it is");
    let (mut reader, mut input) = (server.reader(), &wire[..]);
    assert!(matches!(reader.decode(&mut input), Ok(Some(Event::Hello(_)))));
    assert_eq!(reader.decode(&mut input), Ok(Some(Event::Raw)));
    assert_eq!((input, reader.is_ended()), (&b"\x04\0\0\x01as it is"[..], true));
}

#[test]
fn half_without_signatures_may_be_released_end_at_once_or_give_up() {
    let (client, server) = unsigned();
    let end = |record: u8, payload: &[u8]| {
        let wire = [&client.records()[..], &crate::support::record(record, payload)].concat();
        read(&mut server.reader(), &wire).events.pop()
    };
    assert_eq!(end(RELEASE, b""), Some(Event::Release));
    assert_eq!(end(FIN, b""), Some(Event::Fin { trailers: None }));
    assert!(matches!(end(ALERT, b"access-denied"), Some(Event::Alert(_))));
    let mut wire = BytesMut::new();
    client.writer(signer(), server.hello()).release(NOW, &mut wire).unwrap();
    assert_eq!(types(&wire), [RELEASE]);
    let mut wire = BytesMut::new();
    server.writer(signer(), client.hello()).fin(NOW, &mut wire).unwrap();
    assert_eq!(types(&wire), [FIN]);
}

#[test]
fn half_without_signatures_has_no_signed_records_and_a_signed_one_no_raw_bytes() {
    let (client, server) = unsigned();
    for (kind, payload, name) in [
        (DATA, &b"x"[..], RecordType::Data),
        (SIG, &[0; 120], RecordType::Signature),
        (CHAIN, b"\x01\0\0\x01x", RecordType::Chain),
        (TRAILERS, b"", RecordType::Trailers),
    ] {
        let wire = [&client.records()[..], &record(kind, payload)].concat();
        assert_eq!(read(&mut server.reader(), &wire).refused(), RecordError::UnexpectedRecord(name));
    }
    let mut signed = Half::from_client();
    assert_eq!(signed.writer.raw(&mut BytesMut::new()), Err(WriteError::NotRaw));
    signed.wire.extend_from_slice(&record(RAW, b""));
    assert_eq!(signed.read().refused(), RecordError::UnexpectedRecord(RecordType::Raw));
}

#[test]
fn unsigned_stream_that_is_cut_before_raw_is_truncated() {
    let (client, server) = unsigned();
    let outcome = read(&mut server.reader(), &client.records());
    assert_eq!(outcome.refused(), RecordError::Truncated);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_after_the_hello_of_an_unsigned_stream_do_no_harm(bytes: Vec<u8>) {
        let (client, server) = unsigned();
        let wire = [&client.records()[..], &bytes].concat();
        let (mut reader, mut input) = (server.reader(), &wire[..]);
        while let Ok(Some(event)) = reader.decode(&mut input) {
            prop_assert!(!matches!(event, Event::Data(_)), "unsigned data was delivered as signed");
            if reader.is_ended() { break }
        }
    }

    #[test]
    fn changed_byte_is_refused_with_blake3_too(at in 0_usize..4_000, bit in 0_u8..8) {
        let client = client(RecordHash::Blake3, false, false);
        let server = server(RecordHash::Blake3, false);
        let answer = server.clone().answering(client.hello()).unwrap();
        let mut wire = BytesMut::from(&client.records()[..]);
        let mut writer = client.writer(signer(), answer.hello());
        writer.data(&[7; 3_000], NOW, &mut wire).unwrap();
        writer.fin(NOW, &mut wire).unwrap();
        let at = at % wire.len();
        wire[at] ^= 1 << bit;
        let outcome = read(&mut server.reader(), &wire);
        prop_assert!(outcome.end.is_err());
        prop_assert!(outcome.payload().is_empty() || outcome.payload() == [7; 3_000]);
    }
}
