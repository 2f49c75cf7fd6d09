//! gRPC's door: a streamed piece as a message, a request as JSON, a vector as packed floats.
//!
//! Goals: at most 1 µs a piece, as a stream has some hundred a second of each client; a request of 100
//! messages in 50 µs. `tree` is what serde_json takes to read the same into a tree, and no more.
#![expect(clippy::expect_used, reason = "a bench fails by panicking")]
use std::fmt::Write;
use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay_core::door::Voice as _;
use forebay_core::door::grpc::{self, Method, Voice};
use serde_json::Value;

const PIECES: usize = 100;

/// As SGLang 0.5.23 writes it.
const CHUNK: &str = "{\"id\":\"10907a005ebb42e49c086a883c92f06b\",\"object\":\"chat.completion.chunk\",\
\"created\":1795493834,\"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":null,\
\"content\":\" Hello\"},\"logprobs\":null,\"finish_reason\":null,\"matched_stop\":null}]}";

fn pieces(c: &mut Criterion) {
    let mut group = c.benchmark_group("grpc/piece");
    group.throughput(Throughput::Elements(PIECES as u64));
    let stream = Bytes::from(format!("data: {CHUNK}\n\n").repeat(PIECES));
    let mut voice = Voice::new(Method::StreamChatCompletion);
    let mut out = BytesMut::with_capacity(stream.len());
    group.bench_function("message", |b| {
        b.iter(|| {
            out.clear();
            voice.feed(stream.clone(), &mut out).expect("a stream");
            black_box(out.len())
        });
    });
    group.bench_function("tree", |b| {
        b.iter(|| {
            for _ in 0..PIECES {
                let tree: Value = serde_json::from_str(CHUNK).expect("JSON");
                black_box(tree);
            }
        });
    });
    group.finish();
}

fn requests(c: &mut Criterion) {
    let mut json =
        String::from("{\"model\":\"m\",\"temperature\":0.7,\"max_tokens\":64,\"messages\":[");
    for index in 0..100 {
        let comma = if index == 0 { "" } else { "," };
        let role = if index % 2 == 0 { "user" } else { "assistant" };
        let text = "A line of some conversation. ".repeat(10);
        write!(
            json,
            "{comma}{{\"role\":\"{role}\",\"content\":\"{text}\"}}"
        )
        .expect("text");
    }
    json.push_str("]}");
    let message = grpc::request_from_json(Method::ChatCompletion, json.as_bytes()).expect("JSON");
    let mut group = c.benchmark_group("grpc/request");
    group.throughput(Throughput::Bytes(message.len() as u64));
    group.bench_function("json", |b| {
        b.iter(|| grpc::request(Method::ChatCompletion, black_box(&message)).expect("a request"));
    });
    group.finish();
}

fn vectors(c: &mut Criterion) {
    let numbers: Vec<String> = (0..1024)
        .map(|n| format!("{}", f64::from(n) / 7e3))
        .collect();
    let json = format!(
        "{{\"object\":\"list\",\"model\":\"m\",\"data\":[{{\"index\":0,\"embedding\":[{}]}}]}}",
        numbers.join(",")
    );
    let voice = Voice::new(Method::Embed);
    let mut group = c.benchmark_group("grpc/vector");
    group.throughput(Throughput::Bytes(json.len() as u64));
    group.bench_function("floats", |b| {
        b.iter(|| voice.answer(black_box(json.as_bytes())).expect("an answer"));
    });
    group.finish();
}

criterion_group!(benches, pieces, requests, vectors);
criterion_main!(benches);
