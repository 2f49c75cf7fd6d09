//! SSE decoding and encoding, in bytes a second.
//!
//! Goals: at least 2 GB/s on 64 KiB chunks of 250-byte events and 300 MB/s on one event a chunk.
#![expect(clippy::expect_used, reason = "a bench fails by panicking")]
use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use forebay_core::sse::{Decoder, encode};

const LIMIT: usize = 1 << 20;

/// One chat chunk as engines send it: 250 bytes.
fn event(ends: &str) -> String {
    let head = "data: {\"id\":\"10907a005ebb42e49c086a883c92f06b\",\"object\":\"chat.completion.chunk\",\
        \"created\":1795493834,\"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"";
    let tail = "\"},\"logprobs\":null,\"finish_reason\":null}]}";
    let fill = 250 - head.len() - tail.len() - 2 * ends.len();
    format!("{head}{}{tail}{ends}{ends}", "x".repeat(fill))
}

fn stream(ends: &str) -> Bytes {
    Bytes::from(event(ends).repeat((64 << 10) / 250))
}

fn count(decoder: &mut Decoder) -> usize {
    std::iter::from_fn(|| decoder.next()).fold(0, |sum, frame| sum + black_box(frame).raw.len())
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("sse");
    for (name, ends) in [("lf", "\n"), ("crlf", "\r\n")] {
        let chunk = stream(ends);
        group.throughput(Throughput::Bytes(chunk.len() as u64));
        group.bench_function(format!("64KiB-chunk/{name}"), |b| {
            let mut decoder = Decoder::new(LIMIT);
            b.iter(|| {
                decoder.feed(chunk.clone()).expect("events are small");
                count(&mut decoder)
            });
        });
    }

    let chunk = stream("\n");
    group.throughput(Throughput::Bytes(chunk.len() as u64));
    group.bench_function("64KiB-chunk/lf+data", |b| {
        let mut decoder = Decoder::new(LIMIT);
        b.iter(|| {
            decoder.feed(chunk.clone()).expect("events are small");
            while let Some(frame) = decoder.next() {
                black_box(frame.data());
            }
        });
    });
    // Each chunk its own allocation, as a socket read gives it, made and freed within the timing.
    let one = event("\n");
    group.throughput(Throughput::Bytes(one.len() as u64));
    group.bench_function("event-a-chunk", |b| {
        let mut decoder = Decoder::new(LIMIT);
        b.iter(|| {
            decoder
                .feed(Bytes::copy_from_slice(one.as_bytes()))
                .expect("events are small");
            count(&mut decoder)
        });
    });
    let (front, back) = one.as_bytes().split_at(one.len() / 2);
    group.bench_function("event-in-two-chunks", |b| {
        let mut decoder = Decoder::new(LIMIT);
        b.iter(|| {
            for half in [front, back] {
                decoder
                    .feed(Bytes::copy_from_slice(half))
                    .expect("events are small");
                count(&mut decoder);
            }
        });
    });
    group.bench_function("parse", |b| {
        let mut decoder = Decoder::new(LIMIT);
        decoder
            .feed(Bytes::from(one.clone()))
            .expect("events are small");
        let frame = decoder.next().expect("one event");
        b.iter(|| black_box(frame.parse()));
    });
    group.bench_function("encode", |b| {
        let mut decoder = Decoder::new(LIMIT);
        decoder
            .feed(Bytes::from(one.clone()))
            .expect("events are small");
        let event = decoder.next().expect("one event").parse();
        b.iter_batched_ref(
            || BytesMut::with_capacity(512),
            |out| encode(&event, out),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
