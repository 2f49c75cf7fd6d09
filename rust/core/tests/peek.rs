//! The inspection of request bodies.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#[path = "../fuzz/invariants/peek.rs"]
mod invariants;

use std::borrow::Cow;
use std::fs;
use std::time::{Duration, Instant};

use forebay_core::peek::{PeekError, PeekErrorKind, peek};
use proptest::collection::vec;
use proptest::prelude::*;

fn error(body: &str) -> PeekError {
    peek(body.as_bytes()).expect_err("refused")
}

/// JSON text, as varied in spelling as the grammar allows.
fn value() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null"),
        Just("true"),
        Just("false"),
        Just("0"),
        Just("-0"),
        Just("1"),
        Just("128"),
        Just("129"),
        Just("2147483647"),
        Just("2147483648"),
        Just("99999999999999999999"),
        Just("16.0"),
        Just("1e2"),
        Just("-1.5E-3"),
        Just("\"\""),
        Just("\"gpt\""),
        Just("\"a\\u00e9\\n\\\"\\ud83d\\ude00é😀 and on past eight bytes and a vector\""),
        Just("[]"),
        Just("{}"),
        Just("[1,2 , 3]"),
        Just("[[1,2],[70000]]"),
        Just("[1,\"2\"]"),
        Just("[[\"2\"]]"),
        Just("{\"15\":1,\"\\u0036\":-1}"),
        Just("[\"a\",\"b\"]"),
    ]
    .prop_map(str::to_owned);
    scalar.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            vec((key(), inner), 0..4).prop_map(|members| object(&members)),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("model"),
        Just("mod\\u0065l"),
        Just("stream"),
        Just("n"),
        Just("\\u006e"),
        Just("max_tokens"),
        Just("max_completion_tokens"),
        Just("user"),
        Just("rid"),
        Just("logit_bias"),
        Just("stop_token_ids"),
        Just("lora_path"),
        Just("priority"),
        Just("stream_options"),
        Just("include_usage"),
        Just("include\\u005fusage"),
        Just("continuous_usage_stats"),
        Just("messages"),
        Just("prompt"),
        Just("input"),
        Just("other"),
        Just("a\\u00e9 key longer than any that is looked for"),
        Just(""),
    ]
    .prop_map(str::to_owned)
}

fn object(members: &[(String, String)]) -> String {
    let members: Vec<_> = members
        .iter()
        .map(|(key, value)| format!("\"{key}\" :{value}"))
        .collect();
    format!("{{{}}}", members.join(" ,"))
}

/// A member whose value mostly suits its key, so that not every body is refused for its types.
fn member() -> impl Strategy<Value = (String, String)> {
    let pair = |key: &'static str, values: &'static [&'static str]| {
        (
            Just(key.to_owned()),
            proptest::sample::select(values).prop_map(str::to_owned),
        )
    };
    prop_oneof![
        pair("model", &["\"m\"", "\"org/m\\u0065\""]),
        pair("stream", &["true", "false", "null"]),
        pair("n", &["1", "128", "null"]),
        pair("max_tokens", &["1", "2147483647", "null"]),
        pair("max_completion_tokens", &["7", "null"]),
        pair("user", &["\"u\"", "null"]),
        pair("rid", &["\"r\"", "null", "[\"r\"]"]),
        pair(
            "stream_options",
            &[
                "null",
                "{}",
                "{ \"include_usage\": true }",
                "{\"include_usage\":1,\"include_usage\":null,\"continuous_usage_stats\":true,\"x\":[]}",
            ]
        ),
        pair(
            "messages",
            &[
                "[]",
                "[{\"role\":\"user\",\"content\":[{\"text\":\"hi\"}]}]",
                "null"
            ]
        ),
        pair(
            "prompt",
            &["\"p\"", "[\"p\",\"q\"]", "[1,2]", "[[1],[2,3],[]]", "[]"]
        ),
        pair(
            "input",
            &["\"p\"", "[\"p\",\"q\"]", "[{\"role\":\"user\"}]", "null"]
        ),
        (key(), value()),
    ]
}

fn body() -> impl Strategy<Value = String> {
    vec(member(), 0..8).prop_map(|members| object(&members))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn agrees_with_serde_json(body in body()) {
        invariants::check(body.as_bytes());
    }

    #[test]
    fn agrees_with_serde_json_on_damaged_bodies(
        body in body(),
        edits in vec((any::<prop::sample::Index>(), prop::option::of(prop_oneof![
            prop::sample::select(b"{}[]\",:\\u0123456789.eE+-tfnal \n\t\x00\x1f\x7f/".to_vec()),
            any::<u8>(),
        ])), 1..4),
    ) {
        let mut body = body.into_bytes();
        for (at, byte) in edits {
            let at = at.index(body.len().max(1));
            match byte {
                Some(byte) if at % 2 == 0 => body.insert(at.min(body.len()), byte),
                Some(byte) => body.get_mut(at).into_iter().for_each(|old| *old = byte),
                None => body.truncate(at),
            }
        }
        invariants::check(&body);
    }

    #[test]
    fn never_panics(body in vec(any::<u8>(), 0..200)) {
        invariants::check(&body);
    }

    #[test]
    fn finds_what_ends_a_string_wherever_it_lies(
        fill in "[ -!#-\\[\\]-~é\u{80}€😀]{0,200}",
        end in prop::sample::select(b"\"\\\x00\x1f\x01".to_vec()),
    ) {
        let body = [b"{\"a\":\"".as_slice(), fill.as_bytes(), &[end], b"}"].concat();
        invariants::check(&body);
        prop_assert_eq!(peek(&body).is_ok(), end == b'"');
    }
}

#[test]
fn seeds_hold_and_so_does_each_of_its_prefixes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/peek");
    let mut seen = 0;
    for entry in fs::read_dir(folder).expect("the seeds are committed") {
        let body = fs::read(entry.expect("readable").path()).expect("readable");
        for end in 0..=body.len() {
            invariants::check(&body[..end]);
        }
        seen += 1;
    }
    assert!(seen >= 20);
}

#[test]
fn reads_a_chat_request() {
    let body = r#"{"model": "meta/llama", "messages": [{"role": "user", "content": "hi"}],
        "stream": true, "n": 2, "max_tokens": 16, "max_completion_tokens": 32, "user": "u\n1",
        "rid": "r", "stream_options": {"x": 1, "include_usage": true}}"#;
    let found = peek(body.as_bytes()).expect("valid");
    assert!(matches!(found.model, Some(Cow::Borrowed("meta/llama"))));
    assert_eq!(
        &body[found.model_span.clone().expect("given")],
        "\"meta/llama\""
    );
    assert_eq!(
        (found.stream, found.n, found.output_cap()),
        (true, Some(2), Some(32))
    );
    assert_eq!(found.user.as_deref(), Some("u\n1"));
    assert!(found.include_usage && !found.continuous_usage_stats);
    assert_eq!(
        (found.prompt_bytes, found.prompt_items),
        ("userhi".len(), 1)
    );
    assert!(found.has_messages && !found.messages_empty && !found.has_prompt);
    let options = found.stream_options.expect("an object");
    assert_eq!(&body[options.include_usage_span.expect("given")], "true");
    assert!(body[options.body_start..].starts_with("\"x\": 1"));
}

#[test]
fn counts_prompts_and_token_ids() {
    let count = |body: &str| {
        let found = peek(body.as_bytes()).expect("valid");
        (
            found.prompt_items,
            found.prompt_token_ids,
            found.prompt_bytes,
        )
    };
    assert_eq!(count(r#"{"prompt":"four"}"#), (1, 0, 4));
    assert_eq!(count(r#"{"prompt":["one","three"]}"#), (2, 0, 8));
    assert_eq!(count(r#"{"prompt":[1,22,333]}"#), (1, 3, 0));
    assert_eq!(count(r#"{"input":[[1,2],[3],[]]}"#), (3, 3, 0));
    assert_eq!(count(r#"{"input":"a\nb"}"#), (1, 0, 4));
    assert_eq!(
        count(r#"{"messages":[{"content":"abc","n":7}],"x":"not counted"}"#),
        (1, 0, 3)
    );
    // The last of two replaces the first.
    assert_eq!(
        count(r#"{"prompt":["one","three"],"prompt":[1]}"#),
        (1, 1, 0)
    );
}

#[test]
fn contents_of_images_and_files_are_no_text() {
    let text_of = |part: &str| {
        let body = format!(r#"{{"messages":[{{"content":[{part}]}}]}}"#);
        peek(body.as_bytes()).expect("valid").prompt_bytes
    };
    let (megabyte, url) = ("A".repeat(1 << 20), "data:image/png;base64,");
    for part in [
        format!(r#"{{"image_url":{{"detail":"","url":"{url}{megabyte}"}}}}"#),
        format!(r#"{{"file":{{"file_data":"{url}{megabyte}"}}}}"#),
        format!(r#"{{"input_audio":{{"data":"{megabyte}","format":""}}}}"#),
        format!(r#"{{"a":[{{}}],"image_url":"{url}{megabyte}"}}"#),
    ] {
        assert_eq!(text_of(&part), 4000, "{}", &part[..80]);
    }
    // What is small counts as what it is, and text is text whatever it begins with.
    assert_eq!(text_of(&format!(r#"{{"url":"{url}"}}"#)), url.len());
    for part in [
        format!(r#"{{"text":"{url}{megabyte}"}}"#),
        format!(r#"{{"url":"{megabyte}"}}"#),
        format!(r#"{{"url":["{url}{megabyte}"]}}"#),
        format!(r#"{{"url":{{}},"text":"data:{megabyte}"}}"#),
    ] {
        assert!(text_of(&part) >= 1 << 20, "{}", &part[..80]);
    }
    let plain = format!(r#"{{"input":["{url}{megabyte}"]}}"#);
    assert!(peek(plain.as_bytes()).expect("valid").prompt_bytes > 1 << 20);
}

#[test]
fn the_last_duplicate_counts_even_if_an_earlier_one_is_wrong() {
    let found = peek(br#"{"model":1,"n":0,"mod\u0065l":"m","n":3}"#).expect("valid");
    assert_eq!((found.model.as_deref(), found.n), (Some("m"), Some(3)));
    assert_eq!(
        error(r#"{"model":"m","model":1}"#).to_string(),
        "'model' must be a string (byte 21)"
    );
    let found = peek(br#"{"stream_options":{"include_usage":true},"stream_options":null}"#);
    let found = found.expect("valid");
    assert!(!found.include_usage && found.stream_options.is_none());
    assert_eq!(found.stream_options_span, Some(58..62));
}

#[test]
fn refusals_name_the_field_and_the_byte() {
    for (body, text) in [
        (r#"{"n":129}"#, "'n' must be between 1 and 128 (byte 5)"),
        (r#"{"n":-1}"#, "'n' must be between 1 and 128 (byte 5)"),
        (
            r#"{"max_tokens":16.0}"#,
            "'max_tokens' must be an integer (byte 14)",
        ),
        (
            r#"{"max_tokens":2147483648}"#,
            "'max_tokens' must be between 1 and 2147483647 (byte 14)",
        ),
        (
            r#"{"stream":"true"}"#,
            "'stream' must be a boolean (byte 10)",
        ),
        (r#"{"model":null}"#, "'model' must be a string (byte 9)"),
        (
            r#"{"messages":{}}"#,
            "'messages' must be an array (byte 12)",
        ),
        (
            r#"{"stream_options":{"include_usage":1}}"#,
            "'stream_options.include_usage' must be a boolean (byte 35)",
        ),
        (
            r#"{"model":"\ud83d"}"#,
            "the body is not valid JSON: half of a surrogate pair in a string (byte 9)",
        ),
        (
            "",
            "the body is not valid JSON: the text ends too early (byte 0)",
        ),
        ("[]", "the body must be a JSON object (byte 0)"),
        (
            "{} x",
            "the body is not valid JSON: unexpected text after the value (byte 3)",
        ),
        (
            "{\"a\" 1}",
            "the body is not valid JSON: expected ':' after the key (byte 5)",
        ),
        (
            "{\"a\":\"\n\"}",
            "the body is not valid JSON: a control character in a string must be escaped (byte 6)",
        ),
        (
            "{\"a\":01}",
            "the body is not valid JSON: malformed number (byte 6)",
        ),
        (
            "{\"a\":\"\\x\"}",
            "the body is not valid JSON: unknown escape in a string (byte 6)",
        ),
        (
            "\u{FEFF}{}",
            "the body is not valid JSON: a byte order mark is not allowed (byte 0)",
        ),
    ] {
        assert_eq!(error(body).to_string(), text);
    }
    let bad = peek(b"{\"a\":\"\xC3\x28\"}").expect_err("not UTF-8");
    assert_eq!((bad.offset, bad.kind), (6, PeekErrorKind::InvalidUtf8));
}

#[test]
fn nesting_is_bounded_without_recursion_or_quadratic_time() {
    let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    assert!(peek(nested(127).as_bytes()).is_ok());
    let error = peek(nested(128).as_bytes()).expect_err("too deep");
    assert_eq!(
        (error.offset, error.kind),
        (5 + 127, PeekErrorKind::TooDeep)
    );
    let objects = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let started = Instant::now();
    assert_eq!(
        peek(objects.as_bytes()).expect_err("too deep").kind,
        PeekErrorKind::TooDeep
    );
    let wide = format!("{{\"a\":[{}0]}}", "[[]],".repeat(1_000_000));
    assert!(peek(wide.as_bytes()).is_ok());
    assert!(started.elapsed() < Duration::from_secs(5));
}
