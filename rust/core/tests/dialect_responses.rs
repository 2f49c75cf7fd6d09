//! OpenAI's Responses, from and to the other dialects.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#[expect(dead_code, reason = "what came back signed is asked for otherwise")]
#[path = "support/golden.rs"]
mod golden;

use std::collections::BTreeMap;

use forebay_core::dialect::{Dialect, Options, answer, request};
use golden::{context, transcode};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn cases() {
    golden::check("responses", 65);
}

#[test]
fn what_was_signed_comes_back_signed() {
    let said = json!({
        "type": "message", "role": "assistant", "stop_reason": "tool_use",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "c2VjcmV0"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        ],
    });
    let told = turned(Dialect::Anthropic, Dialect::Responses, &said);
    let mut input = vec![json!({"role": "user", "content": "Go."})];
    input.extend(told["output"].as_array().expect("items").iter().cloned());
    input.push(json!({"type": "function_call_output", "call_id": "c1", "output": "done"}));
    let body = json!({"model": "m", "input": input}).to_string();
    let options = Options {
        model: "claude",
        stream: false,
        drop_params: false,
        max_output_tokens: 4096,
    };
    let done = request(
        Dialect::Responses,
        Dialect::Anthropic,
        body.as_bytes(),
        &options,
    )
    .expect("a request");
    let next: Value = serde_json::from_slice(&done.body).expect("JSON");
    assert_eq!(next["messages"][1]["content"], said["content"]);
}

fn turned(from: Dialect, to: Dialect, said: &Value) -> Value {
    let body = said.to_string();
    let told = answer(from, to, body.as_bytes(), &context()).expect("an answer");
    serde_json::from_slice(&told).expect("JSON")
}

/// Every stream's events count up from 0, each item is added before anything is said of it and done
/// once, and the last event repeats all items as they were done.
#[test]
fn events_are_in_order() {
    for (case, bytes) in golden::streams("responses", Dialect::OpenAi) {
        if case.to != Dialect::Responses {
            continue;
        }
        let (out, error) = transcode(&case, &bytes, &[]);
        check_order(&out, error.is_none());
    }
}

fn check_order(out: &[u8], whole: bool) {
    let text = str::from_utf8(out).expect("text");
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let mut items = BTreeMap::new();
    let mut last = Value::Null;
    for (number, pair) in lines.chunks(2).enumerate() {
        let [name, data] = pair else {
            panic!("an event without data")
        };
        let event: Value =
            serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), event["type"].as_str());
        assert_eq!(event["sequence_number"], json!(number));
        let at = event["output_index"].as_u64();
        match event["type"].as_str().expect("a type") {
            "response.output_item.added" => {
                assert!(items.insert(at, Value::Null).is_none(), "added once");
            }
            "response.output_item.done" => {
                let before = items.insert(at, event["item"].clone());
                assert_eq!(before, Some(Value::Null), "done once");
            }
            _ if at.is_some() => assert_eq!(items.get(&at), Some(&Value::Null), "{event}"),
            _ => {}
        }
        last = event;
    }
    if whole {
        let done: Vec<Value> = items.into_values().collect();
        assert_eq!(last["response"]["output"], json!(done));
    }
}

const NAMES: [&str; 30] = [
    "model",
    "input",
    "type",
    "message",
    "role",
    "user",
    "assistant",
    "content",
    "input_text",
    "output_text",
    "text",
    "reasoning",
    "summary",
    "encrypted_content",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "call_id",
    "name",
    "arguments",
    "output",
    "tools",
    "tool_choice",
    "function",
    "response",
    "response.completed",
    "response.output_item.added",
    "item",
    "output_index",
    "status",
];

fn some_words() -> impl Strategy<Value = Vec<(u8, String)>> {
    vec((0u8..4, ".{1,8}"), 0..20)
}

/// Chunks of a chat that says these words: text, thoughts, refusals, and calls' arguments.
fn chat(words: &[(u8, String)]) -> Vec<u8> {
    let mut out = String::new();
    let mut chunk = |delta: Value, reason: Option<&str>| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        out.push_str("data: ");
        out.push_str(&json!({"choices": [choice]}).to_string());
        out.push_str("\n\n");
    };
    let mut calls = 0;
    for (kind, word) in words {
        match kind {
            0 => chunk(json!({"content": word}), None),
            1 => chunk(json!({"reasoning_content": word}), None),
            2 => chunk(json!({"refusal": word}), None),
            _ => {
                let function = json!({"name": "f", "arguments": word});
                let call = json!({"index": calls, "id": format!("c{calls}"), "function": function});
                chunk(json!({"tool_calls": [call]}), None);
                calls += 1;
            }
        }
    }
    chunk(json!({}), Some("stop"));
    out.push_str("data: [DONE]\n\n");
    out.into_bytes()
}

proptest! {
    #[test]
    fn any_chat_becomes_events_in_order_in_every_chunking(
        words in some_words(),
        cuts in vec(1usize..40, 1..6),
    ) {
        let mut case = golden::streams("responses", Dialect::OpenAi).remove(0).0;
        case.to = Dialect::Responses;
        let stream = chat(&words);
        let (out, error) = transcode(&case, &stream, &[]);
        prop_assert!(error.is_none());
        prop_assert_eq!(&out, &transcode(&case, &stream, &cuts).0);
        check_order(&out, true);
        // And back: nothing that was said is lost, whatever it was said with.
        let said = |kind: u8| -> String {
            words.iter().filter(|(of, _)| *of == kind).map(|(_, word)| word.as_str()).collect()
        };
        case.from = Dialect::Responses;
        case.to = Dialect::OpenAi;
        let (back, error) = transcode(&case, &out, &[]);
        prop_assert!(error.is_none());
        let back = String::from_utf8(back).expect("text");
        let chunks = back.lines().filter_map(|line| line.strip_prefix("data: {"));
        let (mut text, mut thought, mut refusal, mut arguments) =
            (String::new(), String::new(), String::new(), String::new());
        for chunk in chunks {
            let chunk: Value = serde_json::from_str(&format!("{{{chunk}")).expect("JSON");
            let delta = &chunk["choices"][0]["delta"];
            text.push_str(delta["content"].as_str().unwrap_or_default());
            thought.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
            refusal.push_str(delta["refusal"].as_str().unwrap_or_default());
            let call = &delta["tool_calls"][0]["function"]["arguments"];
            arguments.push_str(call.as_str().unwrap_or_default());
        }
        prop_assert_eq!(text, said(0));
        prop_assert_eq!(thought, said(1));
        prop_assert_eq!(refusal, said(2));
        prop_assert_eq!(arguments, said(3));
    }

    #[test]
    fn whatever_comes_is_read_or_refused(body in golden::arrangements(&NAMES)) {
        let bytes = body.to_string().into_bytes();
        let options = Options { model: "m", stream: false, drop_params: false, max_output_tokens: 1 };
        for (from, to) in [
            (Dialect::Responses, Dialect::OpenAi),
            (Dialect::OpenAi, Dialect::Responses),
        ] {
            if let Ok(done) = request(from, to, &bytes, &options) {
                serde_json::from_slice::<Value>(&done.body).expect("JSON");
            }
            if let Ok(done) = answer(from, to, &bytes, &context()) {
                serde_json::from_slice::<Value>(&done).expect("JSON");
            }
        }
    }
}
