//! One deterministic connection, and the knife and glue of an attacker.

use std::sync::Arc;

use bytes::BytesMut;
use signet_signature::record::{
    Direction, Ed25519Signer, Event, HEADER_LEN, Hello, Opening, RecordError, RecordHash, RecordReader,
    RecordWriter, StreamParams,
};

pub(crate) const DESTINATION: &str = "spiffe://mesh.example/app/edge/db";
pub(crate) const CLIENT_TLS: [u8; 32] = [0xc1; 32];
pub(crate) const SERVER_TLS: [u8; 32] = [0x51; 32];
pub(crate) const CHANNEL: [u8; 16] = [0xcc; 16];
pub(crate) const CLIENT_CHAIN: [&[u8]; 2] = [b"client leaf", b"issuer"];
pub(crate) const SERVER_CHAIN: [&[u8]; 2] = [b"server leaf", b"issuer"];
pub(crate) const NOW: u64 = 1_790_000_000_000;

pub(crate) const DATA: u8 = 1;
pub(crate) const SIG: u8 = 2;
pub(crate) const FIN: u8 = 3;
pub(crate) const ALERT: u8 = 4;
pub(crate) const CHAIN: u8 = 5;
pub(crate) const RELEASE: u8 = 6;
pub(crate) const TRAILERS: u8 = 7;
pub(crate) const RAW: u8 = 8;

/// The key with this one byte as its whole seed.
pub(crate) fn key(seed: u8) -> Arc<Ed25519Signer> {
    let mut der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
    der.extend([seed; 32]);
    Arc::new(Ed25519Signer::from_pkcs8(&der).unwrap())
}

pub(crate) fn signer() -> Arc<Ed25519Signer> {
    key(7)
}

pub(crate) fn client_params() -> StreamParams {
    StreamParams {
        auto: false,
        hash: RecordHash::Sha256,
        unsigned: false,
        own_tls: CLIENT_TLS,
        peer_tls: SERVER_TLS,
        channel: CHANNEL,
        stream: [1; 16],
        unix_ms: NOW,
        destination: DESTINATION.to_owned(),
        port: 5432,
    }
}

pub(crate) fn server_params() -> StreamParams {
    StreamParams {
        own_tls: SERVER_TLS,
        peer_tls: CLIENT_TLS,
        stream: [2; 16],
        unix_ms: NOW + 1,
        ..client_params()
    }
}

pub(crate) fn client_opening(params: StreamParams) -> Opening {
    Opening::new(Direction::ClientToServer, params, &CLIENT_CHAIN).unwrap()
}

pub(crate) fn server_opening() -> Opening {
    Opening::new(Direction::ServerToClient, server_params(), &SERVER_CHAIN).unwrap()
}

/// The client's half as it leaves the client, and the server's reader of it.
pub(crate) struct Half {
    pub(crate) writer: RecordWriter,
    pub(crate) wire: BytesMut,
    pub(crate) reader: RecordReader,
}

impl Half {
    pub(crate) fn from_client() -> Self {
        Self::with(client_params())
    }

    pub(crate) fn from_auto_client() -> Self {
        Self::with(StreamParams { auto: true, ..client_params() })
    }

    pub(crate) fn with(params: StreamParams) -> Self {
        let client = client_opening(params);
        let server = server_opening();
        Self {
            writer: client.writer(signer(), server.hello()),
            wire: client.records()[..].into(),
            reader: server.reader(),
        }
    }

    pub(crate) fn data(mut self, payload: &[u8]) -> Self {
        self.writer.data(payload, NOW, &mut self.wire).unwrap();
        self
    }

    pub(crate) fn sign(mut self) -> Self {
        assert!(self.writer.sign(NOW, &mut self.wire));
        self
    }

    pub(crate) fn fin(mut self) -> Self {
        self.writer.fin(NOW, &mut self.wire).unwrap();
        self
    }

    pub(crate) fn read(mut self) -> Outcome {
        read(&mut self.reader, &self.wire)
    }
}

/// A short conversation with two signed segments and an end.
pub(crate) fn conversation() -> Half {
    Half::from_client().data(b"one").data(b"two").sign().data(b"three").sign().fin()
}

pub(crate) const CONVERSATION: &[u8] = b"onetwothree";

/// What a reader made of some bytes followed by the end of the connection.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) events: Vec<Event>,
    pub(crate) end: Result<(), RecordError>,
}

impl Outcome {
    pub(crate) fn payload(&self) -> Vec<u8> {
        let data = self.events.iter().filter_map(|event| match event {
            Event::Data(payload) => Some(&payload[..]),
            _ => None,
        });
        data.collect::<Vec<_>>().concat()
    }

    pub(crate) fn hello(&self) -> Hello {
        match &self.events[0] {
            Event::Hello(hello) => hello.clone(),
            other => panic!("{other:?} is no hello"),
        }
    }

    /// The error, which must not have let anything through that the true sender did not sign.
    pub(crate) fn refused(&self) -> RecordError {
        assert!(CONVERSATION.starts_with(&self.payload()), "unsigned payload was delivered");
        assert!(!self.events.iter().any(is_clean_end), "a forged end was delivered");
        self.end.unwrap_err()
    }
}

pub(crate) fn is_clean_end(event: &Event) -> bool {
    matches!(event, Event::Fin { .. } | Event::Release)
}

/// Reads all of `wire`, trusting any chain with the key of [`signer`].
pub(crate) fn read(reader: &mut RecordReader, wire: &[u8]) -> Outcome {
    read_in_chunks(reader, &[wire])
}

pub(crate) fn read_in_chunks(reader: &mut RecordReader, chunks: &[&[u8]]) -> Outcome {
    let mut events = Vec::new();
    for mut chunk in chunks.iter().copied() {
        while let Ok(Some(event)) = reader.decode(&mut chunk) {
            if matches!(event, Event::Chain(_)) {
                reader.set_key(&signer().public_key()).unwrap();
            }
            events.push(event);
        }
    }
    Outcome { events, end: reader.finish() }
}

/// Cuts a wire image into records.
pub(crate) fn records(mut wire: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while !wire.is_empty() {
        let length = usize::from(wire[1]) << 16 | usize::from(wire[2]) << 8 | usize::from(wire[3]);
        let (record, rest) = wire.split_at(HEADER_LEN + length);
        records.push(record.to_vec());
        wire = rest;
    }
    records
}

pub(crate) fn types(wire: &[u8]) -> Vec<u8> {
    records(wire).iter().map(|record| record[0]).collect()
}

pub(crate) fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut record = vec![kind];
    record.extend(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
    record.extend(payload);
    record
}
