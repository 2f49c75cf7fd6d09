//! What may be carried on, the request that has it carried on, and joins on recorded bytes.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use bytes::{Bytes, BytesMut};
use forebay_core::relay::{Shape, StreamRelay};
use forebay_core::resume::{Attempt, Delivered, MAX_TEXT, Next, Resume, Why};
use forebay_core::scrub::Asked;
use serde_json::{Value, json};

fn event(delta: &Value, usage: &Value) -> Bytes {
    let event = json!({"id": "one", "created": 7, "model": "m", "usage": usage,
        "choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
    Bytes::from(event.to_string())
}

fn usage(completion: u64) -> Value {
    json!({"prompt_tokens": 9, "completion_tokens": completion, "total_tokens": 9 + completion})
}

/// A chat of which these pieces were delivered, each a counted token.
fn said(pieces: &[&str]) -> Delivered {
    let mut delivered = Delivered::default();
    delivered.event(&event(
        &json!({"role": "assistant", "content": ""}),
        &Value::Null,
    ));
    for (i, piece) in pieces.iter().enumerate() {
        delivered.event(&event(&json!({"content": piece}), &usage(i as u64 + 1)));
    }
    delivered
}

fn ask(more: &Value) -> Bytes {
    let mut body =
        json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    Bytes::from(body.to_string())
}

fn next(delivered: &Delivered, body: &Bytes) -> Result<Attempt, Why> {
    match Resume::new(false).next(delivered, body, 1 << 16)? {
        Next::Attempt(attempt) => Ok(*attempt),
        Next::End(_) => panic!("an end"),
    }
}

fn body(delivered: &Delivered, asked: &Bytes) -> Value {
    serde_json::from_slice(&next(delivered, asked).unwrap().body.unwrap()).unwrap()
}

#[test]
fn the_next_engine_gets_what_was_delivered_and_smaller_caps() {
    let asked = ask(
        &json!({"max_tokens": 10, "max_completion_tokens": 12, "min_tokens": 1,
        "stop": ["x"], "temperature": 0.5, "add_generation_prompt": true}),
    );
    assert_eq!(
        body(&said(&["He said", " \"hi\"\u{e9}", "\n"]), &asked),
        json!({
            "model": "m", "stream": true, "temperature": 0.5, "stop": ["x"],
            "max_tokens": 8, "max_completion_tokens": 10, "min_tokens": 0,
            "messages": [{"role": "user", "content": "hi"},
                {"role": "assistant", "content": "He said \"hi\"\u{e9}"}],
            "continue_final_message": true, "add_generation_prompt": false,
        })
    );
}

#[test]
fn a_message_that_the_client_began_is_joined() {
    let asked = ask(&json!({"continue_final_message": true, "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "name": "a", "content": "I "}]}));
    let body = body(&said(&["am"]), &asked);
    assert_eq!(
        body["messages"],
        json!([{"role": "user", "content": "hi"},
            {"role": "assistant", "name": "a", "content": "I am"}])
    );
}

#[test]
fn a_completion_goes_on_from_its_prompt() {
    let mut delivered = Delivered::default();
    let text = json!({"id": "c", "choices": [{"index": 0, "text": " there"}], "usage": usage(1)});
    delivered.event(&Bytes::from(text.to_string()));
    let resume = Resume::new(true);
    let asked = Bytes::from(r#"{"model":"m","prompt":"Hello","max_tokens":4,"echo":false}"#);
    let Next::Attempt(attempt) = resume.next(&delivered, &asked, 1 << 16).unwrap() else {
        panic!("an end");
    };
    let body: Value = serde_json::from_slice(&attempt.body.unwrap()).unwrap();
    let same = json!({"model": "m", "prompt": "Hello there", "max_tokens": 3, "echo": false});
    assert_eq!(body, same);
    for (body, why) in [
        (r#"{"prompt":["a"]}"#, Why::Prompts),
        (r#"{"prompt":[1,2]}"#, Why::Prompts),
        (r#"{"prompt":"a","echo":true}"#, Why::Request),
        (r#"{"prompt":"a","suffix":"b"}"#, Why::Request),
        (r#"{"prompt":"a","logprobs":0}"#, Why::Logprobs),
        (r#"{"prompt":"a","best_of":2}"#, Why::Choices),
    ] {
        let refused = resume.next(&delivered, &Bytes::from(body), 1 << 16).err();
        assert_eq!(refused, Some(why), "{body}");
    }
}

#[test]
fn what_no_join_can_mend_is_not_carried_on() {
    let delivered = said(&["text"]);
    let ok = |more: &Value| next(&delivered, &ask(more)).map(drop);
    for more in [
        json!({}),
        json!({"n": 1, "logprobs": false, "top_logprobs": null, "tools": [], "tool_choice": "auto"}),
        json!({"response_format": {"type": "text"}, "regex": null, "seed": 3, "ignore_eos": true}),
    ] {
        assert_eq!(ok(&more), Ok(()), "{more}");
    }
    for (more, why) in [
        (json!({"n": 2}), Why::Choices),
        (json!({"logprobs": true}), Why::Logprobs),
        (
            json!({"response_format": {"type": "json_object"}}),
            Why::Grammar,
        ),
        (json!({"regex": "a+"}), Why::Grammar),
        (json!({"guided_json": {"a": 1}}), Why::Grammar),
        (json!({"tool_choice": "required"}), Why::Grammar),
        (json!({"tool_choice": {"type": "function"}}), Why::Grammar),
        (json!({"return_hidden_states": true}), Why::Request),
        (
            json!({"messages": [{"role": "assistant", "content": "a"}]}),
            Why::Request,
        ),
        (json!({"messages": []}), Why::Request),
        (json!({"add_generation_prompt": false}), Why::Request),
    ] {
        assert_eq!(ok(&more), Err(why), "{more}");
    }
    for (delta, why) in [
        (json!({"tool_calls": [{"index": 0}]}), Why::ToolCall),
        (json!({"reasoning_content": "hm"}), Why::Reasoning),
        (json!({"reasoning": "hm"}), Why::Reasoning),
        (json!({"refusal": "no"}), Why::NotText),
        (json!({"content": "x".repeat(MAX_TEXT)}), Why::TooLong),
        (json!({"content": "\u{FFFD}"}), Why::Unreadable),
    ] {
        let mut delivered = said(&["text"]);
        delivered.event(&event(&delta, &Value::Null));
        assert_eq!(next(&delivered, &ask(&json!({}))).err(), Some(why));
    }
    let mut half = said(&["text"]);
    half.event(&Bytes::from(
        r#"{"choices":[{"delta":{"content":"\ud83d"}}]}"#,
    ));
    assert_eq!(half.can_resume(), Err(Why::Unreadable));
}

#[test]
fn without_text_the_request_begins_anew() {
    let attempt = next(&said(&[]), &ask(&json!({"max_tokens": 3}))).unwrap();
    assert!(!attempt.continues());
    let attempt = next(&said(&["\n", " "]), &ask(&json!({"max_tokens": 3}))).unwrap();
    assert!(!attempt.continues(), "white space is made again");
}

#[test]
fn an_answer_that_has_all_its_tokens_is_ended() {
    let resume = Resume::new(false);
    let asked = ask(&json!({"max_tokens": 2}));
    let Next::End(events) = resume.next(&said(&["a", "b"]), &asked, 1 << 16).unwrap() else {
        panic!("an attempt");
    };
    let events = String::from_utf8(events.to_vec()).unwrap();
    assert!(events.contains(r#""id":"one""#) && events.contains(r#""finish_reason":"length""#));
    assert!(events.contains(r#""prompt_tokens":9,"completion_tokens":2,"total_tokens":11"#));
    assert!(events.ends_with("data: [DONE]\n\n"));
}

/// The events of a recorded stream.
fn recorded(name: &str) -> Vec<String> {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/data/sglang-0.5.23"
    );
    let answer = std::fs::read_to_string(format!("{folder}/{name}.resp")).unwrap();
    let events = answer.lines().filter(|line| line.starts_with("data: "));
    events.map(|event| format!("{event}\n\n")).collect()
}

#[test]
fn a_recorded_sglang_stream_is_joined_byte_for_byte() {
    let first = recorded("022-chat-stream-continuous-usage");
    let second = recorded("021-chat-stream-usage");
    let shape = Shape {
        include_usage: true,
        continuous_usage: true,
        completions: false,
        choices: 1,
        max_event_bytes: 1 << 16,
        asked: Asked::default(),
    };
    let mut relay = StreamRelay::new(shape).followed();
    let mut out = BytesMut::new();
    // Role, " Hello", " there", and half of ",".
    let before = first[..3].concat();
    relay
        .feed(Bytes::from(before.clone() + &first[3][..40]), &mut out)
        .unwrap();
    let mut attempt = next(relay.delivered().unwrap(), &ask(&json!({}))).unwrap();
    relay.rejoin();
    // The other engine goes on with ",": its first two words are not made again.
    let go_on = second[..1].concat() + &second[3..].concat();
    let mut spliced = BytesMut::new();
    attempt
        .splice
        .feed(Bytes::from(go_on), &mut spliced)
        .unwrap();
    relay.feed(spliced.freeze(), &mut out).unwrap();
    assert!(relay.is_done());
    let id = |events: &[String]| events[0][12..44].to_owned();
    // Role and two words are known; of the usage the prompt is the first engine's, the output of both.
    let after = second[3..]
        .concat()
        .replace(&id(&second), &id(&first))
        .replace(r#""completion_tokens":10"#, r#""completion_tokens":12"#)
        .replace(r#""total_tokens":32"#, r#""total_tokens":34"#);
    assert_eq!(std::str::from_utf8(&out).unwrap(), before + &after);
}

#[test]
fn an_engine_that_reasons_instead_of_going_on_is_an_error() {
    let mut attempt = next(&said(&["text"]), &ask(&json!({}))).unwrap();
    let mut out = BytesMut::new();
    let event = event(&json!({"reasoning_content": "hm"}), &Value::Null);
    let event = [b"data: ", &event[..], b"\n\n"].concat();
    assert!(attempt.splice.feed(Bytes::from(event), &mut out).is_err());
}

#[test]
fn an_answer_that_an_engine_gave_up_is_an_error() {
    let shape = Shape {
        include_usage: false,
        continuous_usage: false,
        completions: false,
        choices: 1,
        max_event_bytes: 1 << 16,
        asked: Asked::default(),
    };
    let mut relay = StreamRelay::new(shape).followed();
    let mut out = BytesMut::new();
    let stream = recorded("135-abort-by-rid-stream").concat();
    assert!(relay.feed(Bytes::from(stream), &mut out).is_err());
    assert!(!relay.is_done() && !out.ends_with(b"[DONE]\n\n"));
    let delivered = relay.delivered().unwrap();
    assert!(delivered.text().starts_with(" tick tock"));
    assert_eq!(delivered.finish_reason(), None);
    assert_eq!(relay.finish_reason(), Some("abort"));
}
