//! Dialects turned into each other, against `tests/data/dialects`.
//!
//! `<dialect>/asked`: a client speaks OpenAI's dialect, the upstream `<dialect>`; `<dialect>/served`:
//! the other way round. Files of a case:
//! - `<case>.request.openai.json`, `<case>.request.<dialect>.json`, and where there is something to
//!   say `<case>.request.options.json`: `stream`, `drop_params`, and what is `dropped`;
//! - `<case>.answer.openai.json`, `<case>.answer.<dialect>.json`;
//! - `<case>.stream.openai.sse`, `<case>.stream.<dialect>.sse` (`.bin` of Converse);
//! - `<case>.failed.<upstream's dialect>.sse`, `<case>.failed.json`: a stream, and the error's `kind`;
//! - `refused.<client's dialect>.json`: bodies, and the `param` of their error.
//!
//! `FOREBAY_GOLDEN=write` writes what comes out; read the difference before you commit it.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#[path = "../fuzz/invariants/dialect.rs"]
mod invariants;

use std::fs;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use forebay_core::dialect::{self, Context, Dialect, Options, Transcoder};
use invariants::{options, transcode};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A case's two sides.
struct Sides {
    client: (Dialect, &'static str),
    upstream: (Dialect, &'static str),
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/dialects")
}

/// Every folder of cases with its sides.
fn folders() -> Vec<(PathBuf, Sides)> {
    let mut folders = Vec::new();
    for dialect in [
        (Dialect::Anthropic, "anthropic"),
        (Dialect::Gemini, "gemini"),
        (Dialect::Converse, "converse"),
    ] {
        let openai = (Dialect::OpenAi, "openai");
        for (door, client, upstream) in [("asked", openai, dialect), ("served", dialect, openai)] {
            let folder = root().join(dialect.1).join(door);
            if folder.is_dir() {
                folders.push((folder, Sides { client, upstream }));
            }
        }
    }
    assert!(!folders.is_empty());
    folders
}

/// The files in `folder` whose names end like that, with what is before it.
fn cases(folder: &Path, ending: &str) -> Vec<(String, PathBuf)> {
    let mut cases: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name()?.to_str()?.to_owned();
            Some((name.strip_suffix(ending)?.to_owned(), path))
        })
        .collect();
    cases.sort();
    cases
}

fn extension(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Converse => "bin",
        _ => "sse",
    }
}

fn read(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|_| panic!("{} is missing", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compares with a file, or writes it.
fn golden(path: &Path, got: &[u8]) {
    if std::env::var("FOREBAY_GOLDEN").as_deref() == Ok("write") {
        fs::write(path, got).unwrap();
    }
    let expected = fs::read(path).unwrap_or_else(|_| panic!("{} is missing", path.display()));
    assert_eq!(
        String::from_utf8_lossy(got),
        String::from_utf8_lossy(&expected),
        "{}",
        path.display()
    );
}

/// JSON with one member a line, in its own order.
fn lines(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut depth = 0_usize;
    let mut in_text = false;
    let mut escaped = false;
    let newline = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + 2 * depth, b' ');
    };
    for (i, byte) in body.iter().copied().enumerate() {
        if in_text {
            out.push(byte);
            in_text = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b' ' | b'\n' => {}
            b'{' | b'[' => {
                out.push(byte);
                depth += 1;
                if !matches!(body.get(i + 1), Some(b'}' | b']')) {
                    newline(&mut out, depth);
                }
            }
            b'}' | b']' => {
                depth -= 1;
                if !matches!(out.last(), Some(b'{' | b'[')) {
                    newline(&mut out, depth);
                }
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                newline(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            _ => {
                in_text = byte == b'"';
                out.push(byte);
            }
        }
    }
    out.push(b'\n');
    out
}

#[test]
fn requests() {
    for (folder, sides) in folders() {
        for (case, path) in cases(&folder, &format!(".request.{}.json", sides.client.1)) {
            let options_path = folder.join(format!("{case}.request.options.json"));
            let given = if options_path.exists() {
                read(&options_path)
            } else {
                json!({})
            };
            let options = Options {
                stream: given["stream"] == true,
                drop_params: given["drop_params"] == true,
                ..options()
            };
            let body = fs::read(&path).unwrap();
            let got = dialect::request(sides.client.0, sides.upstream.0, &body, &options)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let expected = folder.join(format!("{case}.request.{}.json", sides.upstream.1));
            serde_json::from_slice::<Value>(&got.body).expect("JSON");
            golden(&expected, &lines(&got.body));
            let dropped = given.get("dropped").cloned().unwrap_or(json!([]));
            assert_eq!(json!(got.dropped), dropped, "{}", path.display());
        }
    }
}

#[test]
fn refusals() {
    for (folder, sides) in folders() {
        let path = folder.join(format!("refused.{}.json", sides.client.1));
        for case in read(&path).as_array().unwrap() {
            let body = case["body"].to_string();
            let error = dialect::request(
                sides.client.0,
                sides.upstream.0,
                body.as_bytes(),
                &options(),
            )
            .map(|got| String::from_utf8_lossy(&got.body).into_owned())
            .expect_err(case["case"].as_str().unwrap());
            assert_eq!(error.kind.name(), "invalid_request", "{case}");
            assert_eq!(error.param.as_deref(), case["param"].as_str(), "{case}");
            let param = error.param.as_deref().unwrap();
            assert!(error.message.contains(param), "{}: {case}", error.message);
        }
    }
}

fn context() -> Context {
    Context {
        id: "answer-1".to_owned(),
        model: "any \"model\"".to_owned(),
        created: 1_700_000_000,
    }
}

#[test]
fn answers() {
    for (folder, sides) in folders() {
        for (case, path) in cases(&folder, &format!(".answer.{}.json", sides.upstream.1)) {
            let body = fs::read(&path).unwrap();
            let got = dialect::answer(sides.upstream.0, sides.client.0, &body, &context())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            serde_json::from_slice::<Value>(&got).expect("JSON");
            let expected = folder.join(format!("{case}.answer.{}.json", sides.client.1));
            golden(&expected, &lines(&got));
        }
    }
}

#[test]
fn streams() {
    for (folder, sides) in folders() {
        let ending =
            |dialect: (Dialect, &str)| format!(".stream.{}.{}", dialect.1, extension(dialect.0));
        for (case, path) in cases(&folder, &ending(sides.upstream)) {
            let stream = fs::read(&path).unwrap();
            let (got, error) = transcode(sides.upstream.0, sides.client.0, &stream, &[]);
            assert!(error.is_none(), "{}: {error:?}", path.display());
            golden(
                &folder.join(format!("{case}{}", ending(sides.client))),
                &got,
            );
        }
    }
}

#[test]
fn failures() {
    for (folder, sides) in folders() {
        let (from, name) = sides.upstream;
        for (case, path) in cases(&folder, &format!(".failed.{name}.{}", extension(from))) {
            let stream = fs::read(&path).unwrap();
            let (got, error) = transcode(from, sides.client.0, &stream, &[]);
            let error = error.unwrap_or_else(|| panic!("{}: no error", path.display()));
            let expected = read(&folder.join(format!("{case}.failed.json")));
            assert_eq!(error.0, expected["kind"], "{}: {error:?}", path.display());
            for end in ["[DONE]", "message_stop"] {
                let got = String::from_utf8_lossy(&got);
                assert!(!got.contains(end), "{}: {got}", path.display());
            }
        }
    }
}

#[test]
fn every_stream_is_the_same_in_every_chunking() {
    for (folder, sides) in folders() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let ending = format!(".{}.{}", sides.upstream.1, extension(sides.upstream.0));
            if !name.ends_with(&ending) {
                continue;
            }
            let stream = fs::read(&path).unwrap();
            invariants::check_stream(&stream, &[1]);
            let whole = transcode(sides.upstream.0, sides.client.0, &stream, &[]);
            for cut in [1, 2, 3, 7, 64, 1000] {
                let cut = transcode(sides.upstream.0, sides.client.0, &stream, &[cut]);
                assert_eq!(whole, cut, "{}", path.display());
            }
        }
    }
}

#[test]
fn an_event_that_is_too_large_is_an_error() {
    let mut transcoder = Transcoder::new(Dialect::Anthropic, Dialect::OpenAi, context(), 100);
    let mut out = BytesMut::new();
    let event = format!(
        "data: {{\"type\":\"ping\",\"x\":\"{}\"}}\n\n",
        "x".repeat(100)
    );
    let error = transcoder.feed(event.into(), &mut out).unwrap_err();
    assert_eq!(error.kind.name(), "upstream_error");
    // And stays one.
    let again = transcoder.feed("data: {\"type\":\"ping\"}\n\n".into(), &mut out);
    assert_eq!(again.unwrap_err().kind.name(), "upstream_error");
    assert!(transcoder.end(&mut out).is_err());
}

#[test]
fn an_error_in_an_answers_place_is_one_of_its_kind() {
    let body = br#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
    let answer = |from, body| dialect::answer(from, Dialect::OpenAi, body, &context());
    let error = answer(Dialect::Anthropic, body).unwrap_err();
    assert_eq!(error.kind.name(), "unavailable");
    assert_eq!(error.message, "Overloaded");
    for body in ["", "{}", "[]", "null", "{\"content\":[]}", "\u{1}"] {
        let error = answer(Dialect::Anthropic, body.as_bytes()).unwrap_err();
        assert_eq!(error.kind.name(), "upstream_error", "{body}");
    }
    let body = br#"{"choices":[{"message":{"content":null,"tool_calls":[{"id":"c","function":{"name":"f","arguments":"{"}}]},"finish_reason":"tool_calls"}]}"#;
    let error = dialect::answer(Dialect::OpenAi, Dialect::Anthropic, body, &context());
    assert_eq!(error.unwrap_err().kind.name(), "upstream_error");
}

#[test]
fn an_object_of_many_members_is_refused_quickly() {
    let members: Vec<_> = (0..200_000).map(|i| format!("\"m{i}\":1")).collect();
    let body = format!("{{{}}}", members.join(","));
    let error = dialect::request(
        Dialect::OpenAi,
        Dialect::Anthropic,
        body.as_bytes(),
        &options(),
    );
    assert_eq!(error.unwrap_err().kind.name(), "invalid_request");
}

/// What an OpenAI client gets of an answer, said again in its next request, is what Anthropic said.
#[test]
fn thoughts_survive_a_client_that_speaks_openai() {
    for case in ["thinking", "tools"] {
        let folder = root().join("anthropic/asked");
        let said = read(&folder.join(format!("{case}.answer.anthropic.json")));
        let got = read(&folder.join(format!("{case}.answer.openai.json")));
        let body = json!({"messages": [
            {"role": "user", "content": "?"},
            got["choices"][0]["message"],
            {"role": "user", "content": "!"},
        ]});
        let back = dialect::request(
            Dialect::OpenAi,
            Dialect::Anthropic,
            body.to_string().as_bytes(),
            &options(),
        )
        .unwrap();
        let back: Value = serde_json::from_slice(&back.body).unwrap();
        let mut said = said["content"].clone();
        for block in said.as_array_mut().unwrap() {
            block.as_object_mut().unwrap().remove("caller");
        }
        assert_eq!(back["messages"][1]["content"], said, "{case}");
    }
}

fn text() -> impl Strategy<Value = String> {
    // Anthropic takes no text of blanks alone.
    prop_oneof!["[a-z][a-z \"\\\\\n]{0,12}", "[a-z]\\PC{0,8}"]
}

/// A schema-shaped or argument-shaped object whose order matters.
fn object() -> impl Strategy<Value = String> {
    vec(("[a-z]{1,4}", text()), 0..4).prop_map(|members| {
        let mut seen = std::collections::BTreeSet::new();
        let members: Vec<_> = members
            .into_iter()
            .filter(|(key, _)| seen.insert(key.clone()))
            .map(|(key, value)| format!("{}:{}", json!(key), json!(value)))
            .collect();
        format!("{{{}}}", members.join(","))
    })
}

/// One turn of an assistant with calls, and their results.
fn turn(number: usize) -> impl Strategy<Value = Vec<Value>> {
    let part = prop_oneof![
        3 => text().prop_map(|text| json!({"type": "text", "text": text})),
        1 => Just(json!({"type": "image_url",
            "image_url": {"url": "data:image/png;base64,iVBORw0K"}})),
        1 => Just(json!({"type": "image_url", "image_url": {"url": "https://example.com/a"}})),
    ];
    (
        vec(part, 2..4),
        proptest::option::of(text()),
        vec((object(), text()), 0..3),
    )
        .prop_map(move |(user, said, calls)| {
            let mut messages = vec![json!({"role": "user", "content": user})];
            let id = |i: usize| format!("call_{number}_{i}");
            let tool_calls: Vec<_> = calls
                .iter()
                .enumerate()
                .map(|(i, (arguments, _))| {
                    json!({"id": id(i), "type": "function",
                        "function": {"name": "f", "arguments": arguments}})
                })
                .collect();
            let mut assistant = json!({"role": "assistant", "content": said});
            if !tool_calls.is_empty() {
                assistant["tool_calls"] = json!(tool_calls);
            }
            if said.is_some() || !tool_calls.is_empty() {
                messages.push(assistant);
            }
            messages.extend(calls.iter().enumerate().map(|(i, (_, result))| {
                json!({"role": "tool", "tool_call_id": id(i), "content": result})
            }));
            messages
        })
}

/// Requests that both dialects can say, in the form in which they come back.
fn conversation() -> impl Strategy<Value = Value> {
    let knobs = (
        proptest::option::of((0_u32..=100).prop_map(|p| f64::from(p) / 100.0)),
        proptest::option::of(1_u32..100_000),
        proptest::option::of("[a-z]{1,9}"),
        vec("[a-z]{1,5}", 0..3),
        proptest::option::of(prop_oneof![Just("low"), Just("medium"), Just("high")]),
    );
    (
        proptest::option::of(text()),
        (turn(0), turn(1), turn(2)),
        object(),
        knobs,
    )
        .prop_map(|(system, turns, schema, knobs)| {
            let (top_p, max_tokens, user, stop, effort) = knobs;
            let mut messages: Vec<Value> = system
                .iter()
                .map(|text| json!({"role": "system", "content": text}))
                .collect();
            for turn in [turns.0, turns.1, turns.2] {
                // Two messages of a user would come back as one.
                if messages.last().is_none_or(|last| last["role"] != "user") {
                    messages.extend(turn);
                }
            }
            let mut body = json!({"model": options().model, "messages": messages,
                "max_completion_tokens": max_tokens.unwrap_or(7)});
            if let Ok(mut schema) = serde_json::from_str::<Value>(&schema) {
                schema["type"] = json!("object");
                body["tools"] = json!([{"type": "function",
                    "function": {"name": "f", "description": "d", "parameters": schema}}]);
                body["tool_choice"] = json!("auto");
            }
            for (name, value) in [
                ("top_p", json!(top_p)),
                ("user", json!(user)),
                ("reasoning_effort", json!(effort)),
            ] {
                if !value.is_null() {
                    body[name] = value;
                }
            }
            if !stop.is_empty() {
                body["stop"] = json!(stop);
            }
            body
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_both_dialects_can_say_comes_back_whole(body in conversation()) {
        let there = dialect::request(
            Dialect::OpenAi, Dialect::Anthropic, body.to_string().as_bytes(), &options(),
        ).expect("sayable");
        prop_assert!(there.dropped.is_empty(), "{:?}", there.dropped);
        let back = dialect::request(
            Dialect::Anthropic, Dialect::OpenAi, &there.body, &options(),
        ).expect("sayable");
        let back: Value = serde_json::from_slice(&back.body).expect("JSON");
        prop_assert_eq!(back, body);
    }

    #[test]
    fn arguments_keep_their_bytes(arguments in object()) {
        let body = json!({"messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "function",
                "function": {"name": "f", "arguments": arguments}}]},
        ]});
        let there = dialect::request(
            Dialect::OpenAi, Dialect::Anthropic, body.to_string().as_bytes(), &options(),
        ).expect("sayable");
        prop_assert!(String::from_utf8(there.body).expect("UTF-8").contains(&arguments));
    }

    #[test]
    fn text_comes_through_in_every_chunking(
        texts in vec(text(), 1..8), cuts in vec(1_usize..40, 1..6),
    ) {
        let mut stream = String::from("data: {\"type\":\"message_start\",\"message\":{}}\n\n\
            data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\"}}\n\n");
        for text in &texts {
            let event = json!({"type": "content_block_delta", "index": 0,
                "delta": {"type": "text_delta", "text": text}});
            stream.extend(["data: ", &event.to_string(), "\n\n"]);
        }
        stream += "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n\
            data: {\"type\":\"message_stop\"}\n\n";
        let whole = transcode(Dialect::Anthropic, Dialect::OpenAi, stream.as_bytes(), &[]);
        prop_assert_eq!(&whole.1, &None);
        let cut = transcode(Dialect::Anthropic, Dialect::OpenAi, stream.as_bytes(), &cuts);
        prop_assert_eq!(&whole, &cut);
        // And the way back gives the same text in the same pieces.
        let back = transcode(Dialect::OpenAi, Dialect::Anthropic, &whole.0, &cuts);
        prop_assert_eq!(&back.1, &None);
        let back = String::from_utf8(back.0).expect("UTF-8");
        let got: Vec<String> = back.lines().filter_map(|line| {
            let event: Value = serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
            Some(event["delta"]["text"].as_str()?.to_owned())
        }).collect();
        prop_assert_eq!(got, texts);
    }

    #[test]
    fn nothing_makes_it_panic(bytes in vec(any::<u8>(), 0..200), cuts in vec(0_usize..9, 0..4)) {
        invariants::check(&bytes, &cuts);
    }

    /// Files of the folder with a piece taken out, doubled or replaced.
    #[test]
    fn damaged_input_is_an_answer_or_an_error(
        pick in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        len in 0_usize..40, with in vec(any::<u8>(), 0..6),
    ) {
        let files: Vec<PathBuf> = folders()
            .into_iter()
            .flat_map(|(folder, _)| cases(&folder, ""))
            .map(|(_, path)| path)
            .collect();
        let mut bytes = fs::read(&files[pick.index(files.len())]).expect("a file");
        let start = at.index(bytes.len() + 1);
        let end = (start + len).min(bytes.len());
        bytes.splice(start..end, with);
        bytes.truncate(20_000);
        invariants::check(&bytes, &[5]);
    }
}
