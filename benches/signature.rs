//! What signing costs: the signature base, one signed request and response with a digest of the body in the head,
//! and the record layer for the bodies that are too long for that.

use std::hint::black_box;
use std::sync::Arc;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use signet_benches::micro::{
    BODY, CALLEE, CALLER, CHANNEL, NOW, SKEW, key_of, message_headers, pkcs8, request, response, signer, with,
};
use signet_signature::record::{Direction, Ed25519Signer, Event, RecordReader, RecordWriter};
use signet_signature::{
    MessageView, ReplayWindow, Rules, parse_signatures, sha256_header, signature_base, strip, verify_request,
    verify_response,
};

const NOW_MS: u64 = NOW * 1_000;
/// The most that one record signature covers.
const SEGMENT: usize = 256 * 1024;

fn base(criterion: &mut Criterion) {
    let signed = signer(CALLER).sign_request(&request(&message_headers()), &CHANNEL, 1, NOW).expect("signs");
    let headers = with(message_headers(), &signed);
    let signature = parse_signatures(&headers).expect("parses").remove(0);
    let view = MessageView::Request(request(&headers));
    criterion.bench_function("signature/base", |bencher| {
        bencher.iter(|| signature_base(black_box(&view), signature.components(), signature.params()));
    });
}

fn messages(criterion: &mut Criterion) {
    let (caller, callee) = (signer(CALLER), signer(CALLEE));
    let (caller_key, callee_key) = (key_of(CALLER), key_of(CALLEE));
    let plain = message_headers();
    let signed = caller.sign_request(&request(&plain), &CHANNEL, 1, NOW).expect("signs");
    let sent = with(plain.clone(), &signed);
    let answer = response(&plain, &request(&sent));
    let answered = with(plain.clone(), &callee.sign_response(&answer, &signed.nonce, NOW).expect("signs"));

    let mut group = criterion.benchmark_group("message");
    group.bench_function("digest 1 KiB", |bencher| bencher.iter(|| sha256_header(black_box(&BODY))));
    group.bench_function("sign request", |bencher| {
        bencher.iter(|| caller.sign_request(black_box(&request(&plain)), &CHANNEL, 1, NOW));
    });
    group.bench_function("verify request", |bencher| {
        let verify = |window: &mut ReplayWindow| {
            let view = request(black_box(&sent));
            let resolve = |_: &str| Some(caller_key.clone());
            let head = verify_request(&view, &CHANNEL, window, resolve, Rules::new(CALLER, NOW, SKEW))
                .expect("verifies");
            head.verify_body(&BODY).expect("the digest is right");
        };
        bencher.iter_batched_ref(ReplayWindow::new, verify, BatchSize::SmallInput);
    });
    group.bench_function("sign response", |bencher| {
        bencher.iter(|| callee.sign_response(black_box(&answer), &signed.nonce, NOW));
    });
    group.bench_function("verify response", |bencher| {
        bencher.iter(|| {
            let view = response(black_box(&answered), &request(&sent));
            let resolve = |_: &str| Some(callee_key.clone());
            let head = verify_response(&view, &signed.nonce, resolve, Rules::new(CALLEE, NOW, SKEW))
                .expect("verifies");
            head.verify_body(&BODY).expect("the digest is right");
        });
    });
    group.bench_function("strip", |bencher| {
        bencher.iter_batched_ref(|| sent.clone(), strip, BatchSize::SmallInput);
    });
    group.finish();
}

fn records(criterion: &mut Criterion) {
    let signer = Arc::new(Ed25519Signer::from_pkcs8(&pkcs8()).expect("the constant is a key"));
    let public_key = signer.public_key();
    let payload = vec![b'x'; SEGMENT];
    let writer = || RecordWriter::body(signer.clone(), Direction::ClientToServer, b"head");
    let write = |(writer, wire): &mut (RecordWriter, BytesMut)| {
        writer.data(&payload, NOW_MS, wire).expect("fits");
        writer.fin(NOW_MS, wire).expect("ends");
    };
    let fresh = || (writer(), BytesMut::with_capacity(SEGMENT + 4096));
    let mut written = fresh();
    write(&mut written);
    let wire = written.1.freeze();

    let mut group = criterion.benchmark_group("records");
    group.throughput(Throughput::Bytes(SEGMENT as u64));
    group.bench_function("write 256 KiB", |bencher| {
        bencher.iter_batched_ref(fresh, write, BatchSize::LargeInput);
    });
    group.bench_function("read 256 KiB", |bencher| {
        let reader = || {
            let reader = RecordReader::body(Direction::ClientToServer, b"head", &public_key).expect("a key");
            (reader, wire.clone())
        };
        let read = |(reader, wire): &mut (RecordReader, bytes::Bytes)| {
            let mut length = 0;
            while let Some(event) = reader.decode(wire).expect("verifies") {
                if let Event::Data(data) = event {
                    length += data.len();
                }
            }
            assert_eq!(length, SEGMENT);
        };
        bencher.iter_batched_ref(reader, read, BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(benches, base, messages, records);
criterion_main!(benches);
