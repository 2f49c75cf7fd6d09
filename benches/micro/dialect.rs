//! Dialects: a stream's events and a request, turned from one into the other.
//!
//! Goals: at most 1 µs an event, as a stream's relay has some hundred a second of each client; a
//! request of 100 messages in 100 µs.
#![expect(clippy::expect_used, reason = "a bench fails by panicking")]
use std::fmt::Write;
use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay_core::dialect::{self, Context, Dialect, Options, Transcoder};

const EVENTS: u32 = 1000;

fn anthropic() -> Bytes {
    let mut stream = String::from(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":9}}}\n\n\
         event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\
         \"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
    );
    for _ in 0..EVENTS {
        stream.push_str(
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
             \"delta\":{\"type\":\"text_delta\",\"text\":\" word\"}}\n\n",
        );
    }
    stream.push_str(
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\
         \"usage\":{\"output_tokens\":1000}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    );
    stream.into()
}

fn transcode(from: Dialect, to: Dialect, stream: &Bytes) -> BytesMut {
    let mut transcoder = Transcoder::new(from, to, Context::default(), 1 << 20);
    let mut out = BytesMut::with_capacity(4 * stream.len());
    transcoder.feed(stream.clone(), &mut out).expect("a stream");
    transcoder.end(&mut out).expect("a whole stream");
    out
}

fn streams(c: &mut Criterion) {
    let mut group = c.benchmark_group("dialect/stream");
    group.throughput(Throughput::Elements(EVENTS.into()));
    let anthropic = anthropic();
    let openai = transcode(Dialect::Anthropic, Dialect::OpenAi, &anthropic).freeze();
    group.bench_function("anthropic-openai", |b| {
        b.iter(|| black_box(transcode(Dialect::Anthropic, Dialect::OpenAi, &anthropic)));
    });
    group.bench_function("openai-anthropic", |b| {
        b.iter(|| black_box(transcode(Dialect::OpenAi, Dialect::Anthropic, &openai)));
    });
    group.finish();
}

fn requests(c: &mut Criterion) {
    let mut body = String::from("{\"model\":\"m\",\"messages\":[");
    for i in 0..50 {
        let separator = if i == 0 { "" } else { "," };
        write!(
            body,
            "{separator}{{\"role\":\"user\",\"content\":\"Question {i} of some length?\"}},\
             {{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{{\"id\":\"call_{i}\",\
             \"type\":\"function\",\"function\":{{\"name\":\"f\",\"arguments\":\"{{\\\"a\\\":1}}\"}}}}]}},\
             {{\"role\":\"tool\",\"tool_call_id\":\"call_{i}\",\"content\":\"Something\"}}"
        )
        .expect("memory");
    }
    body.push_str("]}");
    let options = Options {
        model: "m",
        stream: true,
        drop_params: false,
        max_output_tokens: 4096,
    };
    let mut group = c.benchmark_group("dialect/request");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("openai-anthropic", |b| {
        b.iter(|| {
            let done = dialect::request(
                Dialect::OpenAi,
                Dialect::Anthropic,
                body.as_bytes(),
                &options,
            );
            black_box(done.expect("a request"))
        });
    });
    group.finish();
}

criterion_group!(benches, streams, requests);
criterion_main!(benches);
