//! Inspecting a request body, beside serde_json doing less (grammar only) and more (a tree).
//!
//! Goals: under 400 ns on a 500-byte body and at least 2 GB/s on a 200 KB prompt.
#![expect(clippy::expect_used, reason = "a bench fails by panicking")]
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay_core::peek::peek;
use serde::de::IgnoredAny;
use serde_json::Value;

fn chat(content: &str) -> String {
    format!(
        "{{\"model\": \"meta-llama/Llama-3-8B-Instruct\", \"messages\": [{{\"role\": \"system\", \
         \"content\": \"You are a helpful assistant.\"}}, {{\"role\": \"user\", \"content\": \
         \"{content}\"}}], \"temperature\": 0.7, \"top_p\": 0.95, \"max_tokens\": 256, \"stream\": \
         true, \"stream_options\": {{\"include_usage\": true}}, \"user\": \"user-1234\", \"seed\": 42, \
         \"stop\": [\"\\n\\n\"], \"presence_penalty\": 0, \"frequency_penalty\": 0.1}}"
    )
}

fn bodies(c: &mut Criterion) {
    let small = chat("");
    let small = chat(&"a".repeat(500 - small.len()));
    // Prose as Python's json.dumps spells it: an escape every 60 bytes; and CJK, all escapes.
    let prose = "It was the best of times, it was the worst of times, it\\n".repeat(3_500);
    let escaped = "\\u4f60\\u597d".repeat(17_000);
    let ids: Vec<_> = (0..30_000_u32)
        .map(|id| (id * 7 % 128_000).to_string())
        .collect();
    let turns = "{\"role\":\"user\",\"content\":\"How do I read a file in Rust, line by line?\"}";
    for (name, body) in [
        ("500B-chat", small),
        ("200KB-one-string", chat(&"a".repeat(200_000))),
        ("200KB-utf8", chat(&"日本語テキスト".repeat(9_500))),
        ("200KB-prose", chat(&prose)),
        ("200KB-escapes", chat(&escaped)),
        (
            "200KB-turns",
            format!(
                "{{\"model\":\"m\",\"messages\":[{}]}}",
                vec![turns; 2_700].join(",")
            ),
        ),
        (
            "200KB-token-ids",
            format!("{{\"model\":\"m\",\"prompt\":[{}]}}", ids.join(",")),
        ),
    ] {
        let mut group = c.benchmark_group(format!("peek/{name}"));
        group.throughput(Throughput::Bytes(body.len() as u64));
        let body = body.as_bytes();
        group.bench_function("peek", |b| b.iter(|| peek(black_box(body)).expect("valid")));
        group.bench_function("serde_json-ignored", |b| {
            b.iter(|| serde_json::from_slice::<IgnoredAny>(black_box(body)).expect("valid"));
        });
        group.bench_function("serde_json-tree", |b| {
            b.iter(|| serde_json::from_slice::<Value>(black_box(body)).expect("valid"));
        });
        group.finish();
    }
}

criterion_group!(benches, bodies);
criterion_main!(benches);
