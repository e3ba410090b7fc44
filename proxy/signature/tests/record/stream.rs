//! Opaque streams: what is delivered and what an attacker between the two ends can do.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use signet_signature::record::{
    Direction, Event, HEADER_LEN, Opening, RecordError, RecordSigner, RecordType, RecordWriter, StreamParams,
    WriteError, alert_record,
};

use crate::support::*;

#[test]
fn events_come_in_the_order_of_the_stream() {
    let outcome = conversation().read();
    let expected = [
        Event::Hello(client_opening(client_params()).hello().clone()),
        Event::Chain(CLIENT_CHAIN.map(Bytes::from_static).to_vec()),
        Event::Data(Bytes::from_static(b"onetwo")),
        Event::Data(Bytes::from_static(b"three")),
        Event::Fin { trailers: None },
    ];
    assert_eq!(outcome.events, expected);
    assert_eq!(outcome.end, Ok(()));
}

#[test]
fn nothing_is_delivered_before_its_signature() {
    let mut half = Half::from_client().data(b"secret");
    let before = read(&mut half.reader, &half.wire);
    assert_eq!(before.payload(), b"");
    let written = half.wire.len();
    half = half.sign();
    assert_eq!(read(&mut half.reader, &half.wire[written..]).payload(), b"secret");
}

#[test]
fn stream_without_a_byte_has_a_clean_end() {
    let outcome = Half::from_client().fin().read();
    assert_eq!(outcome.events.last(), Some(&Event::Fin { trailers: None }));
    assert_eq!((outcome.payload(), outcome.end), (Vec::new(), Ok(())));
}

#[test]
fn server_may_speak_before_it_has_read_a_client_byte_of_payload() {
    let (client, server) = (client_opening(client_params()), server_opening());
    let hello = read(&mut server.reader(), &client.records()).hello();
    let mut wire = BytesMut::from(&server.records()[..]);
    let mut writer = server.writer(signer(), &hello);
    writer.data(b"220 ready", NOW, &mut wire).unwrap();
    writer.sign(NOW, &mut wire);
    assert_eq!(read(&mut client.reader(), &wire).payload(), b"220 ready");
}

#[test]
fn stream_cut_anywhere_is_truncated() {
    let wire = conversation().wire;
    for length in 0..wire.len() {
        let mut reader = Half::from_client().reader;
        assert_eq!(read(&mut reader, &wire[..length]).refused(), RecordError::Truncated, "at {length}");
    }
}

#[test]
fn changed_byte_is_refused_wherever_it_is() {
    let wire = conversation().wire;
    for position in 0..wire.len() {
        for change in [0x01, 0x04, 0x80] {
            let mut wire = wire.clone();
            wire[position] ^= change;
            read(&mut Half::from_client().reader, &wire).refused();
        }
    }
}

#[test]
fn dropped_record_is_refused() {
    let records = records(&conversation().wire);
    for dropped in 0..records.len() {
        let last = dropped == records.len() - 1;
        if records[dropped][0] != SIG || last {
            let mut records = records.clone();
            records.remove(dropped);
            read(&mut Half::from_client().reader, &records.concat()).refused();
        }
    }
}

#[test]
fn later_signature_covers_what_a_missing_one_would_have() {
    let mut records = records(&conversation().wire);
    records.retain(|record| record[0] != SIG);
    records.extend(self::records(&conversation().wire).pop());
    let outcome = read(&mut Half::from_client().reader, &records.concat());
    assert_eq!((outcome.payload(), outcome.end), (CONVERSATION.to_vec(), Ok(())));
}

#[test]
fn duplicated_record_is_refused() {
    let records = records(&conversation().wire);
    // All but the last: a second final SIG comes after a verified end.
    for repeated in 0..records.len() - 1 {
        let mut records = records.clone();
        records.insert(repeated, records[repeated].clone());
        read(&mut Half::from_client().reader, &records.concat()).refused();
    }
}

#[test]
fn repeated_signature_is_refused_unverified() {
    let mut half = Half::from_client().data(b"one").sign();
    let sig = records(&half.wire).pop().unwrap();
    half.wire.extend_from_slice(&sig);
    assert_eq!(half.read().refused(), RecordError::NothingSigned);
}

#[test]
fn reordered_records_are_refused() {
    let records = records(&conversation().wire);
    for first in 0..records.len() {
        for second in first + 1..records.len() {
            let mut records = records.clone();
            records.swap(first, second);
            read(&mut Half::from_client().reader, &records.concat()).refused();
        }
    }
}

#[test]
fn records_moved_to_another_stream_are_refused() {
    let stolen = records(&conversation().wire)[2..].concat();
    let mut half = Half::with(StreamParams { stream: [9; 16], ..client_params() });
    half.wire.extend_from_slice(&stolen);
    assert_eq!(half.read().refused(), RecordError::HashMismatch);
}

#[test]
fn half_replayed_into_a_second_stream_of_the_connection_is_refused() {
    let stolen = conversation().wire;
    let params = StreamParams { stream: [3; 16], ..server_params() };
    let second = Opening::new(Direction::ServerToClient, params, &SERVER_CHAIN).unwrap();
    assert_eq!(read(&mut second.reader(), &stolen).refused(), RecordError::HashMismatch);
}

/// An insider who signs for both sides: only the direction differs.
#[test]
fn half_reflected_to_its_sender_is_refused() {
    let same = StreamParams { peer_tls: CLIENT_TLS, ..client_params() };
    let client = Opening::new(Direction::ClientToServer, same.clone(), &CLIENT_CHAIN).unwrap();
    let mut wire = BytesMut::from(&client.records()[..]);
    let mut writer = client.writer(signer(), client.hello());
    writer.data(b"one", NOW, &mut wire).unwrap();
    writer.fin(NOW, &mut wire).unwrap();
    assert_eq!(read(&mut client.reader(), &wire).refused(), RecordError::HashMismatch);
    let server = Opening::new(Direction::ServerToClient, same, &CLIENT_CHAIN).unwrap();
    assert_eq!(read(&mut server.reader(), &wire).end, Ok(()), "only the direction may differ");
}

#[test]
fn records_after_the_end_are_refused() {
    for extra in [record(DATA, b"more"), record(FIN, b""), vec![0]] {
        let mut half = Half::from_client().fin();
        half.wire.extend_from_slice(&extra);
        assert_eq!(half.read().end, Err(RecordError::AfterEnd));
    }
}

#[test]
fn data_between_fin_and_its_signature_is_refused() {
    let mut records = records(&Half::from_client().fin().wire);
    records.insert(3, record(DATA, b"more"));
    let outcome = read(&mut Half::from_client().reader, &records.concat());
    assert_eq!(outcome.refused(), RecordError::UnexpectedRecord(RecordType::Data));
}

#[test]
fn bytes_of_the_next_stream_are_left_in_the_input() {
    let mut half = Half::from_client().fin();
    half.wire.extend_from_slice(b"next");
    while let Some(event) = half.reader.decode(&mut half.wire).unwrap() {
        if matches!(event, Event::Chain(_)) {
            half.reader.set_key(&signer().public_key()).unwrap();
        }
        if is_clean_end(&event) {
            break;
        }
    }
    assert_eq!(half.wire.chunk(), b"next");
    assert_eq!(half.reader.finish(), Ok(()));
}

#[test]
fn signature_of_another_key_is_refused() {
    let (client, server) = (client_opening(client_params()), server_opening());
    let mut wire = BytesMut::from(&client.records()[..]);
    client.writer(key(8), server.hello()).fin(NOW, &mut wire).unwrap();
    assert_eq!(read(&mut server.reader(), &wire).refused(), RecordError::BadSignature);
}

#[test]
fn signature_before_its_key_is_known_is_refused() {
    let mut half = Half::from_client().fin();
    let error = loop {
        if let Err(error) = half.reader.decode(&mut half.wire) {
            break error;
        }
    };
    assert_eq!(error, RecordError::KeyMissing);
}

#[test]
fn each_claim_of_a_signature_is_compared() {
    let claims = [
        (HEADER_LEN, RecordError::SequenceMismatch),
        (HEADER_LEN + 8, RecordError::ByteCountMismatch),
        (HEADER_LEN + 16, RecordError::BadSignature), // the time is only in the signature
        (HEADER_LEN + 24, RecordError::HashMismatch),
        (HEADER_LEN + 56, RecordError::BadSignature),
    ];
    for (position, expected) in claims {
        let mut half = Half::from_client().data(b"one").sign();
        let sig = half.wire.len() - HEADER_LEN - 120;
        half.wire[sig + position] ^= 1;
        assert_eq!(half.read().refused(), expected);
    }
}

#[test]
fn refused_reader_repeats_its_error() {
    let mut reader = Half::from_client().reader;
    assert_eq!(reader.decode(&mut &[0xff, 0, 0, 0][..]), Err(RecordError::UnknownType));
    assert_eq!(
        reader.decode(&mut &client_opening(client_params()).records()[..]),
        Err(RecordError::UnknownType)
    );
    assert_eq!(reader.finish(), Err(RecordError::UnknownType));
    assert!(!reader.is_ended());
}

#[test]
fn last_signature_is_kept_as_evidence() {
    let mut half = conversation();
    read(&mut half.reader, &half.wire);
    let last = half.reader.last_signature().unwrap();
    assert_eq!((last.seq, last.bytes, last.unix_ms), (5, 11, NOW));
}

#[test]
fn auto_stream_is_released_with_a_clean_end() {
    let mut half = Half::from_auto_client();
    half.writer.release(NOW, &mut half.wire).unwrap();
    assert_eq!(half.writer.fin(NOW, &mut half.wire), Err(WriteError::Ended));
    let outcome = half.read();
    assert_eq!((outcome.events.last(), outcome.end), (Some(&Event::Release), Ok(())));
}

#[test]
fn release_is_not_written_where_it_may_not_stand() {
    let mut out = BytesMut::new();
    let mut known = Half::from_client();
    assert_eq!(known.writer.release(NOW, &mut out), Err(WriteError::NotReleasable));
    let mut used = Half::from_auto_client().data(b"x");
    assert_eq!(used.writer.release(NOW, &mut out), Err(WriteError::NotReleasable));
    let params = StreamParams { auto: true, ..server_params() };
    let server = Opening::new(Direction::ServerToClient, params, &SERVER_CHAIN).unwrap();
    let mut server = server.writer(signer(), client_opening(client_params()).hello());
    assert_eq!(server.release(NOW, &mut out), Err(WriteError::NotReleasable));
    let mut body = RecordWriter::body(signer(), Direction::ClientToServer, b"");
    assert_eq!(body.release(NOW, &mut out), Err(WriteError::NotReleasable));
    assert!(out.is_empty());
}

#[test]
fn release_is_refused_where_it_may_not_stand() {
    for mut half in [Half::from_client(), Half::from_auto_client().data(b"x").sign()] {
        half.wire.extend_from_slice(&record(RELEASE, b""));
        let end = half.read().end;
        assert_eq!(end, Err(RecordError::UnexpectedRecord(RecordType::Release)));
    }
}

#[test]
fn alert_ends_a_half_uncleanly_and_drops_what_was_unsigned() {
    let mut half = Half::from_client().data(b"one").sign().data(b"two");
    half.writer.alert("upstream-unreachable", &mut half.wire).unwrap();
    assert!(half.writer.is_ended() && !half.writer.has_unsigned());
    assert!(!half.writer.sign(NOW, &mut half.wire));
    let outcome = half.read();
    let Some(Event::Alert(code)) = outcome.events.last() else { panic!("{outcome:?}") };
    assert_eq!(code.as_str(), "upstream-unreachable");
    assert_eq!((outcome.payload(), outcome.end), (b"one".to_vec(), Err(RecordError::Alerted)));
}

#[test]
fn alert_may_come_before_anything_else() {
    let alert = alert_record("access-denied").unwrap();
    assert_eq!(read(&mut Half::from_client().reader, &alert).end, Err(RecordError::Alerted));
}

#[test]
fn alert_that_is_not_a_code_is_neither_written_nor_read() {
    for code in ["", "Access", "a b", "a\nb", &"a".repeat(65)] {
        assert_eq!(alert_record(code), Err(WriteError::AlertInvalid));
    }
    for code in [&b""[..], b"a\nb"] {
        let outcome = read(&mut Half::from_client().reader, &record(ALERT, code));
        assert_eq!(outcome.end, Err(RecordError::Malformed(RecordType::Alert)));
    }
}

#[test]
fn closure_is_a_signer() {
    let key = signer();
    let closure: Arc<dyn RecordSigner> = Arc::new(move |message: &[u8]| key.sign(message));
    let (client, server) = (client_opening(client_params()), server_opening());
    let mut wire = BytesMut::from(&client.records()[..]);
    client.writer(closure, server.hello()).fin(NOW, &mut wire).unwrap();
    assert_eq!(read(&mut server.reader(), &wire).end, Ok(()));
}

#[test]
fn nothing_is_written_after_the_end() {
    let mut half = Half::from_client().fin();
    let written = half.wire.len();
    assert_eq!(half.writer.data(b"x", NOW, &mut half.wire), Err(WriteError::Ended));
    assert_eq!(half.writer.data_header(b"x"), Err(WriteError::Ended));
    assert_eq!(half.writer.fin(NOW, &mut half.wire), Err(WriteError::Ended));
    assert_eq!(half.writer.alert("late", &mut half.wire), Err(WriteError::Ended));
    assert!(!half.writer.sign(NOW, &mut half.wire));
    assert_eq!(half.wire.len(), written);
}
