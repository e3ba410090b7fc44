//! Bounds: what is cut by the writer and what is refused by the reader before it is stored.

use signet_signature::record::{
    DATA_MAX, Ed25519Signer, HEADER_LEN, MAX_UNSIGNED, RecordError, RecordType, WriteError,
};

use crate::support::*;

#[test]
fn long_payload_is_cut_and_signed_on_the_way() {
    let payload: Vec<u8> = (0..3 * MAX_UNSIGNED).map(|i| i as u8).collect();
    let half = Half::from_client().data(&payload);
    let sizes: Vec<usize> = records(&half.wire).iter().map(Vec::len).collect();
    assert!(sizes[2..].iter().all(|size| *size <= HEADER_LEN + DATA_MAX));
    assert_eq!(types(&half.wire).iter().filter(|kind| **kind == SIG).count(), 3);
    let outcome = half.fin().read();
    assert!(outcome.payload() == payload);
    assert_eq!(outcome.end, Ok(()));
}

#[test]
fn empty_payload_writes_nothing() {
    let mut half = Half::from_client();
    let written = half.wire.len();
    half.writer.data(b"", NOW, &mut half.wire).unwrap();
    assert_eq!(half.wire.len(), written);
}

#[test]
fn header_and_payload_apart_are_the_same_record() {
    let mut apart = Half::from_client();
    let header = apart.writer.data_header(b"one").unwrap();
    apart.wire.extend_from_slice(&header);
    apart.wire.extend_from_slice(b"one");
    assert_eq!(apart.fin().wire, Half::from_client().data(b"one").fin().wire);
}

#[test]
fn header_is_refused_for_what_one_record_cannot_carry() {
    let mut half = Half::from_client();
    assert_eq!(half.writer.data_header(b""), Err(WriteError::PayloadLength));
    assert_eq!(half.writer.data_header(&[0; DATA_MAX + 1]), Err(WriteError::PayloadLength));
    half.writer.data_header(&[0; 1000]).unwrap();
    assert_eq!(half.writer.data_header(&[0; MAX_UNSIGNED - 999]), Err(WriteError::SignatureDue));
    half.writer.data_header(&[0; MAX_UNSIGNED - 1000]).unwrap();
    assert!(half.writer.needs_signature());
    assert_eq!(half.writer.unsigned_bytes(), MAX_UNSIGNED);
    assert_eq!(half.writer.data_header(b"x"), Err(WriteError::SignatureDue));
    assert!(half.writer.sign(NOW, &mut half.wire));
    assert!(half.writer.data_header(b"x").is_ok());
}

#[test]
fn signature_is_made_only_if_it_covers_something() {
    let mut half = Half::from_client();
    assert!(half.writer.has_unsigned(), "the chain waits for its signature");
    half = half.sign();
    assert!(!half.writer.sign(NOW, &mut half.wire));
    assert!(half.data(b"x").writer.has_unsigned());
}

#[test]
fn payload_without_a_signature_is_refused_at_the_bound() {
    let mut half = Half::from_client();
    half.wire.extend_from_slice(&record(DATA, &[0; 1000]));
    half.wire.extend_from_slice(&record(DATA, &[0; MAX_UNSIGNED - 1000]));
    assert_eq!(read(&mut half.reader, &half.wire).end, Err(RecordError::Truncated));
    assert_eq!(half.reader.decode(&mut &record(DATA, b"x")[..HEADER_LEN]), Err(RecordError::UnsignedDebt));
    assert!(format!("{:?}", half.reader).contains("held: 0"), "what it held is dropped");
}

#[test]
fn length_beyond_the_type_is_refused_at_the_header() {
    let limits = [
        (DATA, 262_144, RecordType::Data),
        (SIG, 120, RecordType::Signature),
        (FIN, 0, RecordType::Fin),
        (ALERT, 64, RecordType::Alert),
        (CHAIN, 16_384, RecordType::Chain),
        (RELEASE, 0, RecordType::Release),
        (TRAILERS, 16_384, RecordType::Trailers),
        (RAW, 0, RecordType::Raw),
        (0, 109 + 2_056, RecordType::Hello),
    ];
    for (kind, limit, name) in limits {
        for length in [limit + 1, 0xff_ffff] {
            let mut header = u32::to_be_bytes(length);
            header[0] = kind;
            let refused = Half::from_client().reader.decode(&mut &header[..]);
            assert_eq!(refused, Err(RecordError::Oversize(name)));
        }
    }
}

#[test]
fn unknown_type_is_refused_at_the_header() {
    for kind in 9..=255 {
        let refused = Half::from_client().reader.decode(&mut &[kind, 0, 0, 0][..]);
        assert_eq!(refused, Err(RecordError::UnknownType));
    }
}

#[test]
fn empty_data_record_is_refused() {
    let mut half = Half::from_client();
    half.wire.extend_from_slice(&record(DATA, b""));
    assert_eq!(half.read().end, Err(RecordError::Malformed(RecordType::Data)));
}

#[test]
fn signature_of_a_wrong_length_is_refused() {
    let mut half = Half::from_client();
    half.wire.extend_from_slice(&record(SIG, &[0; 119]));
    assert_eq!(half.read().end, Err(RecordError::Malformed(RecordType::Signature)));
}

#[test]
fn keys_that_are_not_ed25519_are_refused() {
    assert_eq!(Ed25519Signer::from_pkcs8(b"no key").err(), Some(WriteError::KeyInvalid));
}

#[test]
fn nothing_secret_is_printed() {
    let half = Half::from_client().data(b"s3cret");
    let printed = format!("{:?} {:?} {:?}", half.writer, half.reader, signer());
    assert!(!printed.contains("s3cret") && !printed.contains("7, 7"));
    assert_eq!(format!("{:?}", half.sign().read().events[2]), "Data(6 bytes)");
}
