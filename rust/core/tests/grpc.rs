//! Messages of `forebay.v1` and OpenAI's JSON, turned into each other.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#[path = "../fuzz/invariants/grpc.rs"]
mod invariants;
#[path = "support/openai.rs"]
mod openai;

use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use forebay_core::door::Voice as _;
use forebay_core::door::grpc::{self, Method, Voice, status_details};
use forebay_core::error::{Error, Kind};
use forebay_core::limit::Scope;
use openai::{answer, chunk, plain, request};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(json: &[u8]) -> Value {
    serde_json::from_slice(json).expect("JSON")
}

/// What a request comes to in the engine's JSON, there and back.
fn request_round(method: Method, json: &Value) -> Value {
    let message = grpc::request_from_json(method, json.to_string().as_bytes()).unwrap();
    parse(&grpc::request(method, &message).unwrap())
}

fn answer_round(method: Method, json: &Value) -> Value {
    let message = grpc::answer_from_json(method, json.to_string().as_bytes()).unwrap();
    parse(&grpc::answer_to_json(method, &message).unwrap())
}

/// The body of a recorded answer, its chunks joined.
fn recorded(name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/sglang-0.5.23");
    let bytes = fs::read(root.join(name)).unwrap();
    let end = memchr::memmem::find(&bytes, b"\r\n\r\n").unwrap() + 4;
    let (head, mut rest) = bytes.split_at(end);
    if memchr::memmem::find(&head.to_ascii_lowercase(), b"chunked").is_none() {
        return rest.to_vec();
    }
    let mut body = Vec::new();
    loop {
        let line = memchr::memmem::find(rest, b"\r\n").unwrap();
        let size = std::str::from_utf8(&rest[..line]).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
}

/// The JSON of each event of a stream.
fn events(stream: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(stream).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

/// The messages of a stream as JSON.
fn unframed(method: Method, mut framed: &[u8]) -> Vec<Value> {
    let mut messages = Vec::new();
    while let Some((head, rest)) = framed.split_first_chunk::<5>() {
        assert_eq!(head[0], 0);
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let message = grpc::answer_to_json(method, &rest[..len]).unwrap();
        messages.push(parse(&message));
        framed = &rest[len..];
    }
    assert!(framed.is_empty());
    messages
}

#[test]
fn recorded_streams_lose_nothing() {
    for (name, method) in [
        ("020-chat-stream", Method::StreamChatCompletion),
        ("021-chat-stream-usage", Method::StreamChatCompletion),
        (
            "022-chat-stream-continuous-usage",
            Method::StreamChatCompletion,
        ),
        ("023-chat-stream-n2-usage", Method::StreamChatCompletion),
        ("024-chat-stream-unicode", Method::StreamChatCompletion),
        ("025-chat-stream-logprobs", Method::StreamChatCompletion),
        ("221-tool-call-stream-usage", Method::StreamChatCompletion),
        ("222-two-tool-calls-stream", Method::StreamChatCompletion),
        (
            "224-tool-choice-required-stream",
            Method::StreamChatCompletion,
        ),
        ("031-completions-stream", Method::StreamCompletion),
        ("032-completions-stream-usage", Method::StreamCompletion),
        (
            "033-completions-two-prompts-stream-usage",
            Method::StreamCompletion,
        ),
    ] {
        let stream = recorded(&format!("{name}.resp"));
        for size in [1, 7, 100, stream.len()] {
            let mut voice = Voice::new(method);
            let mut out = BytesMut::new();
            for piece in stream.chunks(size) {
                voice.feed(Bytes::copy_from_slice(piece), &mut out).unwrap();
            }
            voice.end(&mut out).unwrap();
            let told: Vec<_> = unframed(method, &out).into_iter().map(plain).collect();
            let said: Vec<_> = events(&stream).into_iter().map(plain).collect();
            assert_eq!(told, said, "{name} in pieces of {size}");
        }
    }
}

/// The numbers as a vector's have them: with single precision.
fn singles(vector: &Value) -> Value {
    let numbers = vector.as_array().into_iter().flatten();
    numbers
        .map(|number| number.as_f64().unwrap() as f32)
        .map(Value::from)
        .collect()
}

#[test]
fn recorded_answers_lose_nothing() {
    for (name, method) in [
        ("010-chat", Method::ChatCompletion),
        ("011-chat-length", Method::ChatCompletion),
        ("012-chat-logprobs", Method::ChatCompletion),
        ("013-chat-n2", Method::ChatCompletion),
        ("220-tool-call", Method::ChatCompletion),
        ("223-two-tool-calls", Method::ChatCompletion),
        ("030-completions", Method::Completion),
        ("034-completions-echo-logprobs", Method::Completion),
        ("600-embeddings", Method::Embed),
        ("601-embeddings-batch", Method::Embed),
    ] {
        let body = recorded(&format!("{name}.resp"));
        let framed = Voice::new(method).answer(&body).unwrap();
        let told = unframed(method, &framed).remove(0);
        let (mut told, mut said) = (plain(told), plain(parse(&body)));
        for item in [&mut told, &mut said] {
            for vector in item["data"].as_array_mut().into_iter().flatten() {
                vector["embedding"] = singles(&vector["embedding"]);
            }
        }
        assert_eq!(told, said, "{name}");
    }
}

#[test]
fn vectors_are_the_same_as_numbers_and_as_base64() {
    let plain = Voice::new(Method::Embed)
        .answer(&recorded("600-embeddings.resp"))
        .unwrap();
    let short = Voice::new(Method::Embed)
        .answer(&recorded("603-embeddings-base64.resp"))
        .unwrap();
    let vector = |framed| unframed(Method::Embed, framed)[0]["data"][0]["embedding"].clone();
    assert_eq!(vector(&plain), vector(&short));
    assert_eq!(vector(&plain).as_array().unwrap().len(), 64);
}

#[test]
fn results_alone_are_an_answer_of_rerank() {
    let framed = Voice::new(Method::Rerank)
        .answer(&recorded("607-rerank.resp"))
        .unwrap();
    let told = unframed(Method::Rerank, &framed).remove(0);
    assert_eq!(told["results"][0]["index"], 1);
    assert_eq!(told["results"][0]["relevance_score"], 0.048_645_019_531_25);
    assert_eq!(told["results"][0]["document"], json!({"text": "c"}));
    assert_eq!(told["results"][1]["index"], 0);
    assert_eq!(told["results"][1]["meta_info"]["prompt_tokens"], 2);
}

#[test]
fn a_stream_asks_for_its_usage_unless_that_is_refused() {
    let json = |options: Value| {
        let mut request = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        if !options.is_null() {
            request["stream_options"] = options;
        }
        request_round(Method::StreamChatCompletion, &request)
    };
    assert_eq!(json(Value::Null)["stream"], true);
    assert_eq!(
        json(Value::Null)["stream_options"],
        json!({"include_usage": true})
    );
    assert_eq!(
        json(json!({"include_usage": false}))["stream_options"],
        json!({"include_usage": false})
    );
    assert_eq!(
        json(json!({"continuous_usage_stats": true}))["stream_options"],
        json!({"include_usage": true, "continuous_usage_stats": true})
    );
    let whole = json!({"model": "m", "stream_options": {"include_usage": true}});
    assert_eq!(
        request_round(Method::ChatCompletion, &whole),
        json!({"model": "m"})
    );
}

#[test]
fn absent_zero_and_empty_are_told_apart() {
    for json in [
        json!({"model": "m", "temperature": 0, "seed": 0, "max_tokens": 0, "logprobs": false}),
        json!({"model": "m", "user": "", "metadata": {"": ""}}),
        json!({"model": "m", "messages": [{"role": "assistant", "content": ""}]}),
        json!({"model": "m", "messages": [{"role": "assistant", "tool_calls": [
            {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
        ]}]}),
        json!({"model": "m", "top_k": 0, "ignore_eos": null, "custom_params": {"a": [null, {}, 1.5, -0.0]}}),
        json!({"model": "m", "tools": [{"type": "function", "function":
            {"name": "f", "parameters": {"type": "object", "default": null}, "strict": false}}]}),
    ] {
        assert_eq!(request_round(Method::ChatCompletion, &json), json);
    }
    let null = json!({"model": "m", "temperature": null, "stop": null, "tool_choice": null});
    assert_eq!(
        request_round(Method::ChatCompletion, &null),
        json!({"model": "m"})
    );
}

#[test]
fn what_no_field_can_hold_is_kept() {
    for json in [
        json!({"model": "m", "reasoning_effort": "extreme", "temperature": "hot"}),
        json!({"model": "m", "tool_choice": "sometimes"}),
        json!({"model": "m", "tool_choice": {"type": "hosted", "server": 1}}),
        json!({"model": "m", "max_tokens": 1_u64 << 40, "n": 1.5}),
        json!({"model": "m", "messages": [{"role": "critic", "content": 5}]}),
        json!({"model": "m", "messages": [{"role": "user", "content": [
            {"type": "text", "text": "a"},
            {"type": "image", "image": "x"},
            {"type": "input_audio", "input_audio": {"data": "no base64", "format": "wav"}},
            "bare",
        ]}]}),
        json!({"model": "m", "prediction": {"type": "other", "content": "a"}}),
        json!({"model": "m", "messages": "none", "logit_bias": {"x": 1}}),
        json!({"model": "m", "tools": [{"type": "web_search", "filters": {}}]}),
        json!({"model": "m", "tools": [{"function": {"name": "f"}, "type": "odd"}]}),
    ] {
        assert_eq!(request_round(Method::ChatCompletion, &json), json);
    }
}

#[test]
fn numbers_in_extra_are_integers_where_they_are_whole() {
    let json = br#"{"model":"m","top_k":5.0,"ratio":0.5,"big":9007199254740992}"#;
    let message = grpc::request_from_json(Method::ChatCompletion, json).unwrap();
    assert_eq!(
        &grpc::request(Method::ChatCompletion, &message).unwrap()[..],
        br#"{"model":"m","top_k":5,"ratio":0.5,"big":9007199254740992}"#
    );
}

#[test]
fn a_prompt_has_four_shapes() {
    for (method, name) in [(Method::Completion, "prompt"), (Method::Embed, "input")] {
        for prompt in [
            json!("a"),
            json!(["a", ""]),
            json!([1, 0, 2]),
            json!([[1], [0, 3], []]),
        ] {
            let json = json!({"model": "m", name: prompt});
            assert_eq!(request_round(method, &json), json);
        }
    }
}

/// Fields as `(number, value)`: a length-delimited one each.
fn message_of(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, value) in fields {
        out.push(number << 3 | 2);
        put_varint(value.len(), &mut out);
        out.extend_from_slice(value);
    }
    out
}

#[test]
fn errors_name_the_field() {
    let text = |bad: &[u8]| message_of(&[(1, bad)]);
    let part = message_of(&[(1, b"user"), (3, &text(&[0xFF]))]);
    let chat = |messages: &[u8]| message_of(&[(1, b"m"), (2, messages)]);
    for (bytes, param) in [
        (message_of(&[(1, &[0xC3])]), "model"),
        (chat(&message_of(&[(2, &[0x80])])), "messages[0].content"),
        (
            chat(&message_of(&[(3, &text(b"a")), (3, &text(&[0xFF]))])),
            "messages[0].parts[1].text",
        ),
        (chat(&[0x08, 99]), "messages[0].role"),
        (
            chat(&message_of(&[(2, b"a"), (3, &text(b"b"))])),
            "messages[0].parts",
        ),
        (chat(&[0x12, 50]), "messages[0]"),
        (
            message_of(&[(10, &[0x08, 2, 0x7A, 0])]),
            "tool_choice.extra",
        ),
        (chat(&part), "messages[0].parts[0].text"),
        (
            message_of(&[(
                15,
                &message_of(&[(1, &message_of(&[(1, b"stream"), (2, &[0x20, 1])]))]),
            )]),
            "extra.stream",
        ),
        (
            message_of(&[
                (1, b"m"),
                (
                    15,
                    &message_of(&[(1, &message_of(&[(1, b"model"), (2, &[0x20, 1])]))]),
                ),
            ]),
            "extra.model",
        ),
    ] {
        let error = grpc::request(Method::ChatCompletion, &bytes).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidRequest);
        assert_eq!(error.param.as_deref(), Some(param), "{error}");
    }
    for bytes in [
        &[0x80_u8][..],
        &[0x0A],
        &[0x0A, 5, 1],
        &[0; 3],
        &[0xFF; 20],
        &[0x0B],
        &[0x0C],
        &[0x0E],
    ] {
        let error = grpc::request(Method::ChatCompletion, bytes).unwrap_err();
        assert_eq!((error.kind, error.param), (Kind::InvalidRequest, None));
    }
}

#[test]
fn fields_of_later_versions_mean_nothing() {
    let mut bytes = message_of(&[(1, b"m")]);
    // A group, a varint, a fixed32 and a fixed64 that nobody knows.
    bytes.extend_from_slice(&[0xA3, 0x06, 0x08, 0x01, 0xA4, 0x06, 0xA8, 0x06, 0x7F]);
    bytes.extend_from_slice(&[0xAD, 0x06, 1, 2, 3, 4, 0xA9, 0x06, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(
        &grpc::request(Method::Embed, &bytes).unwrap()[..],
        br#"{"model":"m"}"#
    );
}

#[test]
fn of_a_field_given_twice_the_last_counts_and_messages_are_merged() {
    let bytes = message_of(&[
        (1, b"a"),
        (10, &message_of(&[(2, &message_of(&[(1, b"f")]))])),
        (1, b"b"),
        (10, &[0x08, 2]),
    ]);
    assert_eq!(
        parse(&grpc::request(Method::ChatCompletion, &bytes).unwrap()),
        json!({"model": "b", "tool_choice": "auto"})
    );
    let names = [
        message_of(&[(1, b"k"), (2, &[0x20, 0])]),
        message_of(&[(1, b"k"), (2, &[0x20, 1])]),
    ];
    let bytes = message_of(&[
        (15, &message_of(&[(1, &names[0])])),
        (15, &message_of(&[(1, &names[1])])),
    ]);
    assert_eq!(
        &grpc::request(Method::Embed, &bytes).unwrap()[..],
        br#"{"k":true}"#
    );
}

#[test]
fn nothing_grows_without_bound_or_nests_too_deep() {
    // Calls of functions without a name or arguments: 4 bytes each, 60 in JSON.
    let mut call = Vec::new();
    for _ in 0..20_000 {
        call.extend_from_slice(&[0x2A, 2, 0x12, 0]);
    }
    let mut bytes = vec![0x12, 0x80, 0xF1, 0x04];
    bytes.extend_from_slice(&call);
    let error = grpc::request(Method::ChatCompletion, &bytes).unwrap_err();
    assert_eq!(error.kind, Kind::PayloadTooLarge);

    let mut value = vec![0x20, 1];
    for _ in 0..3_000 {
        let mut list = vec![0x0A];
        put_varint(value.len(), &mut list);
        list.extend_from_slice(&value);
        value = vec![0x32];
        put_varint(list.len(), &mut value);
        value.extend_from_slice(&list);
    }
    let mut entry = vec![0x0A, 1, b'k', 0x12];
    put_varint(value.len(), &mut entry);
    entry.extend_from_slice(&value);
    let mut extra = vec![0x0A];
    put_varint(entry.len(), &mut extra);
    extra.extend_from_slice(&entry);
    let mut bytes = vec![0x7A];
    put_varint(extra.len(), &mut bytes);
    bytes.extend_from_slice(&extra);
    let error = grpc::request(Method::Embed, &bytes).unwrap_err();
    assert!(error.message.contains("levels deep"), "{error}");
}

#[test]
fn members_and_paths_in_errors_are_bounded() {
    // 300,000 members without a name: two bytes each.
    let mut extra = Vec::new();
    for _ in 0..300_000 {
        extra.extend_from_slice(&[0x0A, 0]);
    }
    let error = grpc::request(Method::Embed, &message_of(&[(15, &extra)])).unwrap_err();
    assert!(error.message.contains("members"), "{error}");
    let bad = message_of(&[
        (1, "é".repeat(5000).as_bytes()),
        (2, &message_of(&[(3, &[0xFF])])),
    ]);
    let error = grpc::request(
        Method::Embed,
        &message_of(&[(15, &message_of(&[(1, &bad)]))]),
    )
    .unwrap_err();
    assert!(error.param.unwrap().len() < 300);
    assert!(error.message.len() < 400);
}

fn put_varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[test]
fn what_is_no_answer_is_the_upstreams_fault() {
    for body in [&b"[]"[..], b"\"a\"", b"{", b"{\"id\":1}x", b"\xFF", b""] {
        let error = Voice::new(Method::ChatCompletion).answer(body).unwrap_err();
        assert_eq!(error.kind, Kind::UpstreamError);
    }
    let mut voice = Voice::new(Method::StreamChatCompletion);
    let fed = voice.feed(Bytes::from_static(b"data: {\n\n"), &mut BytesMut::new());
    assert_eq!(fed.unwrap_err().kind, Kind::UpstreamError);
}

#[test]
fn comments_and_the_end_are_no_messages() {
    let mut voice = Voice::new(Method::StreamChatCompletion);
    let mut out = BytesMut::new();
    voice
        .feed(Bytes::from_static(b": alive\n\ndata: [DONE]\n\n"), &mut out)
        .unwrap();
    voice.keep_alive(&mut out);
    voice.cut(&Error::new(Kind::Internal, "x"), &mut out);
    assert!(out.is_empty());
}

/// The bytes are what googleapis-common-protos writes.
#[test]
fn a_status_has_its_details() {
    let mut error =
        Error::new(Kind::RateLimited, "Slow down.").retry_after(Duration::from_millis(1500));
    error.quota = Some(Scope::Key);
    let (code, message, details) = status_details(&error, "req_1");
    assert_eq!((code, message.as_str()), (8, "Slow down."));
    let any = |name: &str, value: &[u8]| {
        let url = format!("type.googleapis.com/google.rpc.{name}");
        message_of(&[(1, url.as_bytes()), (2, value)])
    };
    let info = message_of(&[
        (1, b"RATE_LIMITED"),
        (2, b"forebay.dev"),
        (3, &message_of(&[(1, b"type"), (2, b"rate_limit_error")])),
        (3, &message_of(&[(1, b"code"), (2, b"rate_limit_exceeded")])),
    ]);
    let wait = message_of(&[(1, &[0x08, 1, 0x10, 0x80, 0xCA, 0xB5, 0xEE, 0x01])]);
    let quota = message_of(&[(1, &message_of(&[(1, b"key"), (2, b"Slow down.")]))]);
    let mut expected = vec![0x08, 8];
    expected.extend_from_slice(&message_of(&[
        (2, b"Slow down."),
        (3, &any("ErrorInfo", &info)),
        (3, &any("RetryInfo", &wait)),
        (3, &any("QuotaFailure", &quota)),
        (3, &any("RequestInfo", &message_of(&[(1, b"req_1")]))),
    ]));
    assert_eq!(details, expected);
}

#[test]
fn a_field_at_fault_is_a_violation() {
    let error = Error::new(Kind::InvalidRequest, "No.").param("messages[0].role");
    let (code, _, details) = status_details(&error, "");
    assert_eq!(code, 3);
    let has = |bytes: &[u8]| memchr::memmem::find(&details, bytes).is_some();
    let violation = message_of(&[(1, b"messages[0].role"), (2, b"No.")]);
    assert!(has(b"google.rpc.BadRequest") && has(&violation));
    assert!(!has(b"RetryInfo") && !has(b"QuotaFailure") && !has(b"RequestInfo"));
    let error = Error::new(Kind::BudgetExhausted, "x".repeat(5000));
    let (code, message, details) = status_details(&error, "");
    assert_eq!((code, message.len()), (8, 1024));
    assert!(memchr::memmem::find(&details, b"RetryInfo").is_none());
}

proptest! {
    #[test]
    fn requests_there_and_back(json in request()) {
        prop_assert_eq!(request_round(Method::ChatCompletion, &json), json);
    }

    #[test]
    fn answers_there_and_back(json in answer()) {
        prop_assert_eq!(answer_round(Method::ChatCompletion, &json), json);
    }

    #[test]
    fn chunks_there_and_back(json in chunk()) {
        prop_assert_eq!(answer_round(Method::StreamChatCompletion, &json), json);
    }

    /// Whatever the bytes: an error or JSON, and that JSON is a message again.
    #[test]
    fn hostile_messages(bytes in proptest::collection::vec(any::<u8>(), 0..200), method in 0..6_usize) {
        invariants::check(Method::ALL[method], &bytes);
    }

    /// A good message with a few bytes changed.
    #[test]
    fn broken_messages(
        json in request(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = grpc::request_from_json(Method::ChatCompletion, json.to_string().as_bytes()).unwrap();
        if !bytes.is_empty() {
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            invariants::check(Method::ChatCompletion, &bytes);
            bytes.truncate(cut.index(bytes.len()));
            invariants::check(Method::ChatCompletion, &bytes);
        }
    }

    #[test]
    fn hostile_json(text in r#"[\[\]{}:,"\\a0-9eE.+\-tnu \nidxchoesmgtlpr]{0,40}"#, method in 0..6_usize) {
        let method = Method::ALL[method];
        let _ = grpc::answer_from_json(method, text.as_bytes());
        let _ = grpc::request_from_json(method, text.as_bytes());
    }
}
