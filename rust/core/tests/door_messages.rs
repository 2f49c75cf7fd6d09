//! Anthropic's Messages as a door: requests read, answers, streams and errors told.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
use bytes::{Bytes, BytesMut};
use forebay_core::dialect::Dialect;
use forebay_core::door::{self, Door, Entered, Voice, Way};
use forebay_core::error::{Error, Kind};
use forebay_core::slot::Headers;
use forebay_core::upstream::Rope;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::{Value, json};

const PATH: &str = "/v1/messages";

fn enter(body: &Value) -> Result<Entered, Error> {
    let way = Way::of_path(PATH).unwrap();
    door::enter(way, Bytes::from(body.to_string()), "req_1")
}

fn asked(more: &Value) -> Value {
    let mut body = json!({
        "model": "m",
        "max_tokens": 7,
        "messages": [{"role": "user", "content": "Hi"}],
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn voice() -> Box<dyn Voice> {
    enter(&asked(&json!({}))).unwrap().voice.unwrap()
}

fn openai(entered: &Entered) -> Value {
    serde_json::from_slice(&entered.body).unwrap()
}

fn whole(rope: &Rope) -> Vec<u8> {
    rope.parts().concat()
}

/// The events of a stream: names and data.
fn events(out: &[u8]) -> Vec<(String, Value)> {
    let text = std::str::from_utf8(out).unwrap();
    text.split_terminator("\n\n")
        .map(|event| {
            let (name, data) = event.split_once('\n').unwrap();
            let name = name.strip_prefix("event: ").unwrap().to_owned();
            let value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            (name, value)
        })
        .collect()
}

fn chunk(delta: &Value, more: &Value) -> String {
    let mut chunk = json!({"id": "c", "choices": [{"index": 0, "delta": delta}]});
    for (name, value) in more.as_object().unwrap() {
        chunk[name] = value.clone();
    }
    format!("data: {chunk}\n\n")
}

const FINISH: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

#[test]
fn the_ways_are_there() {
    assert_eq!(Way::of_path(PATH).unwrap().door, Door::Messages);
    let count = Way::of_path("/v1/messages/count_tokens").unwrap();
    assert_eq!(count.door, Door::Count);
}

#[test]
fn a_request_is_read_into_openais() {
    let entered = enter(&asked(&json!({
        "stream": true,
        "system": "Be brief.",
        "stop_sequences": ["END"],
    })))
    .unwrap();
    assert_eq!(
        openai(&entered),
        json!({
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
            ],
            "max_completion_tokens": 7,
            "stop": ["END"],
            "stream": true,
            "stream_options": {"include_usage": true},
        })
    );
    let native = entered.native.unwrap();
    assert_eq!(native.dialect, Dialect::Anthropic);
    assert!(native.unsaid.is_none());
}

#[test]
fn only_the_models_name_is_replaced() {
    let body = r#"{ "messages":[{"role":"user","content":"model"}],"model" : "a\u0062" ,"max_tokens":1,"x":[]}"#;
    let way = Way::of_path(PATH).unwrap();
    let entered = door::enter(way, Bytes::from(body), "r").unwrap();
    let native = entered.native.unwrap();
    let got = whole(&native.for_model("c\"d"));
    let expected = body.replace(r#""a\u0062""#, r#""c\"d""#);
    assert_eq!(String::from_utf8(got).unwrap(), expected);
}

#[test]
fn what_openai_has_no_words_for_is_kept_apart() {
    for (more, param, droppable) in [
        (json!({"container": "c"}), "container", true),
        (json!({"mcp_servers": [{}]}), "mcp_servers", true),
        (
            json!({"tools": [{"type": "web_search_20250305", "name": "w"}]}),
            "tools[0].type",
            false,
        ),
        (
            json!({
                "tools": [{"type": "web_search_20250305", "name": "w"}],
                "tool_choice": {"type": "tool", "name": "w"},
            }),
            "tools[0].type",
            false,
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "new_2030"}]}]}),
            "messages[0].content[0].type",
            false,
        ),
        (
            json!({"messages": [{"role": "user", "content": [
                {"type": "image", "source": {"type": "file", "file_id": "f"}}
            ]}]}),
            "messages[0].content[0].source",
            false,
        ),
        (
            json!({"container": "c", "messages": [{"role": "user", "content": [
                {"type": "document", "source": {"type": "url", "url": "https://x/a.pdf"}}
            ]}]}),
            "container",
            false,
        ),
    ] {
        let entered = enter(&asked(&more)).unwrap();
        let got = openai(&entered);
        assert_eq!(got["model"], "m", "{more}");
        assert!(!got["messages"].as_array().unwrap().is_empty(), "{more}");
        let unsaid = entered.native.unwrap().unsaid.unwrap();
        assert_eq!(unsaid.error.param.as_deref(), Some(param), "{more}");
        assert_eq!(unsaid.droppable, droppable, "{more}");
        assert!(unsaid.error.elsewhere());
    }
}

#[test]
fn what_changes_no_answer_is_left_out() {
    let entered = enter(&asked(&json!({
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": []},
        "service_tier": "auto",
        "inference_geo": "eu",
        "speed": "fast",
        "container": null,
        "mcp_servers": [],
        "metadata": {"user_id": "u".repeat(65)},
    })))
    .unwrap();
    assert!(entered.native.as_ref().unwrap().unsaid.is_none());
    let got = openai(&entered);
    let names: Vec<_> = got.as_object().unwrap().keys().collect();
    assert_eq!(names, ["max_completion_tokens", "messages", "model"]);
}

#[test]
fn malformed_requests_name_the_field() {
    for (body, param) in [
        (json!({"max_tokens": 1, "messages": []}), Some("model")),
        (
            json!({"model": "m", "max_tokens": 1, "messages": []}),
            Some("messages"),
        ),
        (
            json!({"model": "m", "messages": [{"role": "user", "content": "x"}]}),
            Some("max_tokens"),
        ),
        (json!([]), None),
    ] {
        let error = enter(&body).err().expect("refused");
        assert_eq!(error.kind, Kind::InvalidRequest);
        assert_eq!(error.param.as_deref(), param, "{body}");
    }
}

#[test]
fn counting_needs_no_bound_on_output() {
    let way = Way::of_path("/v1/messages/count_tokens").unwrap();
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    let entered = door::enter(way, Bytes::from(body.to_string()), "").unwrap();
    let sent = whole(&entered.native.unwrap().for_model("n"));
    let sent: Value = serde_json::from_slice(&sent).unwrap();
    assert_eq!(sent["model"], "n");
    assert!(sent.get("max_tokens").is_none());
}

#[test]
fn a_whole_answer_is_a_message() {
    let answer = json!({
        "choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    });
    let got = voice().answer(answer.to_string().as_bytes()).unwrap();
    let got: Value = serde_json::from_slice(&got).unwrap();
    assert!(got["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(got["content"], json!([{"type": "text", "text": "Yes."}]));
    assert_eq!(
        (&got["model"], &got["stop_reason"]),
        (&json!("m"), &json!("end_turn"))
    );
    assert_eq!(got["usage"]["input_tokens"], 5);
    assert!(voice().answer(b"{}").is_err());
}

#[test]
fn a_message_starts_with_what_its_input_has_cost() {
    let usage = json!({"usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}});
    let mut out = BytesMut::new();
    let mut voice = voice();
    let mut say = |text: &str, out: &mut BytesMut| {
        voice.feed(Bytes::from(text.to_owned()), out).unwrap();
    };
    say(
        &chunk(&json!({"role": "assistant", "content": ""}), &json!({})),
        &mut out,
    );
    assert!(out.is_empty(), "nothing is known of it yet");
    say(&chunk(&json!({"content": "a"}), &usage), &mut out);
    let first = events(&out);
    assert_eq!(first[0].0, "message_start");
    assert_eq!(first[0].1["message"]["usage"]["input_tokens"], 5);
    say(FINISH, &mut out);
    say(DONE, &mut out);
    voice.end(&mut out).unwrap();
    let names: Vec<_> = events(&out).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
}

#[test]
fn signs_of_life_are_pings() {
    let mut out = BytesMut::new();
    voice().keep_alive(&mut out);
    assert_eq!(events(&out), [("ping".to_owned(), json!({"type": "ping"}))]);
}

#[test]
fn errors_have_anthropics_shape() {
    for (kind, name) in [
        (Kind::InvalidRequest, "invalid_request_error"),
        (Kind::Unauthenticated, "authentication_error"),
        (Kind::Forbidden, "permission_error"),
        (Kind::ModelNotFound, "not_found_error"),
        (Kind::PayloadTooLarge, "request_too_large"),
        (Kind::BudgetExhausted, "billing_error"),
        (Kind::RateLimited, "rate_limit_error"),
        (Kind::Internal, "api_error"),
        (Kind::UpstreamError, "api_error"),
        (Kind::Unavailable, "overloaded_error"),
        (Kind::UpstreamTimeout, "timeout_error"),
    ] {
        let error = Error::new(kind, "said").cause("secret");
        let id = (
            HeaderName::from_static("x-request-id"),
            HeaderValue::from_static("req_1"),
        );
        let mut headers: Headers = Door::Messages.greeting(id);
        assert_eq!(headers[1].0, "request-id");
        let expected = json!({
            "type": "error",
            "error": {"type": name, "message": "said"},
            "request_id": "req_1",
        });
        let body = Door::Messages.refuse(&error, &mut headers);
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
        let mut out = BytesMut::new();
        voice().cut(&error, &mut out);
        assert_eq!(events(&out), [("error".to_owned(), expected)]);
    }
}

proptest! {
    /// However a stream is cut into pieces, what comes out is the same.
    #[test]
    fn pieces_do_not_matter(cuts in proptest::collection::vec(1_usize..40, 1..60)) {
        let stream: String = [
            &chunk(&json!({"role": "assistant", "content": ""}), &json!({})),
            &chunk(&json!({"reasoning_content": "Hm"}), &json!({})),
            &chunk(&json!({"content": "é\n"}), &json!({})),
            FINISH,
            DONE,
        ]
        .map(String::from)
        .concat();
        let told = |pieces: &mut dyn Iterator<Item = Bytes>| {
            let mut voice = voice();
            let mut out = BytesMut::new();
            for piece in pieces {
                voice.feed(piece, &mut out).unwrap();
            }
            voice.end(&mut out).unwrap();
            // Each message has an id of its own.
            events(&out).split_off(1)
        };
        let bytes = Bytes::from(stream);
        let expected = told(&mut std::iter::once(bytes.clone()));
        let mut rest = bytes;
        let mut pieces = Vec::new();
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            pieces.push(rest.split_to(cut.min(rest.len())));
        }
        prop_assert_eq!(told(&mut pieces.into_iter()), expected);
    }

    /// Whatever is sent is read or refused.
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}", name in "[a-z_]{1,12}") {
        let way = Way::of_path(PATH).unwrap();
        if let Err(error) = door::enter(way, Bytes::from(text.clone()), "r") {
            prop_assert_eq!(error.kind, Kind::InvalidRequest);
        }
        let body = asked(&json!({name: text}));
        if let Err(error) = enter(&body) {
            prop_assert_eq!(error.kind, Kind::InvalidRequest);
        }
    }
}
