//! Bedrock's Converse, from and to the other dialects.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#[path = "support/golden.rs"]
mod golden;

use forebay_core::dialect::{Dialect, Options, answer, request};
use golden::{context, transcode};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

#[test]
fn cases() {
    golden::check("converse", 60);
}

#[test]
fn what_was_signed_comes_back_signed() {
    let content = json!([
        {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "czE="}}},
        {"reasoningContent": {"redactedContent": "czI="}},
        {"text": "I look."},
        {"toolUse": {"toolUseId": "c1", "name": "f", "input": {"a": 1}}},
    ]);
    let said = json!({
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": "tool_use",
    });
    let next = golden::echoed(Dialect::Converse, "anthropic.claude", &said, &["c1"]);
    assert_eq!(next["messages"][1]["content"], content);
}

const NAMES: [&str; 24] = [
    "messages",
    "content",
    "text",
    "role",
    "assistant",
    "user",
    "toolUse",
    "toolResult",
    "toolUseId",
    "name",
    "input",
    "reasoningContent",
    "reasoningText",
    "signature",
    "image",
    "format",
    "png",
    "source",
    "bytes",
    "cachePoint",
    "output",
    "message",
    "stopReason",
    "usage",
];

proptest! {
    // Each case goes through every recorded stream.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_chunking_gives_the_same_stream(cuts in vec(1_usize..40, 1..6)) {
        for (case, bytes) in golden::streams("converse", Dialect::Converse) {
            let (whole, error) = transcode(&case, &bytes, &[]);
            let (cut, same) = transcode(&case, &bytes, &cuts);
            prop_assert_eq!(cut, whole);
            prop_assert_eq!(same.map(|e| e.kind), error.map(|e| e.kind));
        }
    }

    #[test]
    fn damaged_streams_end_in_an_error_or_a_stream(
        at in any::<prop::sample::Index>(),
        byte: u8,
        cuts in vec(1_usize..40, 1..4),
    ) {
        for (case, mut bytes) in golden::streams("converse", Dialect::Converse) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            transcode(&case, &bytes, &cuts);
            transcode(&case, &bytes[..at], &cuts);
        }
    }
}

proptest! {
    #[test]
    fn any_json_is_a_request_or_a_named_fault(tree in golden::arrangements(&NAMES)) {
        let body = serde_json::to_vec(&json!({"messages": tree})).expect("JSON");
        let options = Options {
            model: "anthropic.claude", stream: true, drop_params: true, max_output_tokens: 1,
        };
        for to in [Dialect::OpenAi, Dialect::Anthropic, Dialect::Gemini, Dialect::Converse] {
            if let Err(error) = request(Dialect::Converse, to, &body, &options) {
                prop_assert_eq!(error.kind.status(), 400);
                prop_assert!(error.param.is_some_and(|param| param.starts_with("messages")));
            }
        }
    }

    #[test]
    fn any_json_is_an_answer_or_an_error(tree in golden::arrangements(&NAMES)) {
        let body = serde_json::to_vec(&tree).expect("JSON");
        for to in [Dialect::OpenAi, Dialect::Anthropic, Dialect::Gemini, Dialect::Converse] {
            let _ = answer(Dialect::Converse, to, &body, &context());
        }
    }
}
