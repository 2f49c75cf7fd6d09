//! Translations that are held to files: a case a file, what goes in and what has to come out.
//!
//! `{"from", "to", "model", "drop_params", …}` with one of `request`, `answer` and `stream`, and
//! `expect`. A stream is a list: of texts as they stand on the wire (Gemini, OpenAI, Anthropic), or
//! of `{"type" | "exception", "payload"}` for AWS's frames. `FOREBAY_GOLDEN=write` writes what comes
//! out; read the difference before you commit it.
use std::fs;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use forebay_core::dialect::eventstream::{Decoder, Value as Header, encode};
use forebay_core::dialect::{Context, Dialect, Options, Transcoder, answer, request};
use forebay_core::error::Error;
use proptest::collection::vec;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Longer than any event of a test.
pub(crate) const MAX_EVENT: usize = 1 << 20;

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) from: Dialect,
    pub(crate) to: Dialect,
    #[serde(default)]
    model: String,
    #[serde(default)]
    drop_params: bool,
    #[serde(default)]
    request: Option<Value>,
    #[serde(default)]
    answer: Option<Value>,
    #[serde(default)]
    pub(crate) stream: Option<Vec<Value>>,
    #[serde(default)]
    expect: Value,
}

/// Every file of a folder below `tests/data/dialects`, by its name.
pub(crate) fn files(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/dialects");
    let entries = fs::read_dir(root.join(folder)).expect("the files are committed");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .collect();
    files.sort();
    files
}

pub(crate) fn read(file: &Path) -> (Case, Value) {
    let text = fs::read(file).expect("readable");
    let name = file.display();
    let tree: Value = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let case = serde_json::from_value(tree.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    (case, tree)
}

/// Holds every case of a folder to what it expects; streams in several chunkings.
pub(crate) fn check(folder: &str, at_least: usize) {
    let files = files(folder);
    assert!(files.len() >= at_least, "{} cases", files.len());
    let writes = std::env::var("FOREBAY_GOLDEN").as_deref() == Ok("write");
    for file in files {
        let (case, mut tree) = read(&file);
        let found = outcome(&case);
        if writes {
            tree["expect"] = found;
            let text = serde_json::to_string_pretty(&tree).expect("JSON") + "\n";
            fs::write(&file, text).expect("writable");
            continue;
        }
        assert_eq!(
            found,
            case.expect,
            "{}: {found:#}",
            file.file_name().unwrap_or_default().display()
        );
    }
}

pub(crate) fn context() -> Context {
    Context {
        id: "chatcmpl-0123456789abcdef".to_owned(),
        model: "served".to_owned(),
        created: 1_700_000_000,
    }
}

/// What a model said, as it comes back to it from a client that speaks OpenAI's dialect: the next
/// request's body.
pub(crate) fn echoed(dialect: Dialect, model: &str, said: &Value, results: &[&str]) -> Value {
    let said = answer(dialect, Dialect::OpenAi, &wire(said), &context()).expect("an answer");
    let mut messages = vec![
        json!({"role": "user", "content": "Go."}),
        tree(&said)["choices"][0]["message"].clone(),
    ];
    for result in results {
        messages.push(json!({"role": "tool", "tool_call_id": result, "content": "done"}));
    }
    let options = Options {
        model,
        stream: false,
        drop_params: false,
        max_output_tokens: 4096,
    };
    let body = wire(&json!({"messages": messages}));
    let done = request(Dialect::OpenAi, dialect, &body, &options).expect("a request");
    assert_eq!(done.dropped, [""; 0]);
    tree(&done.body)
}

fn outcome(case: &Case) -> Value {
    if let Some(body) = &case.request {
        let options = Options {
            model: &case.model,
            stream: false,
            drop_params: case.drop_params,
            max_output_tokens: 4096,
        };
        return match request(case.from, case.to, &wire(body), &options) {
            Ok(done) => json!({"body": tree(&done.body), "dropped": done.dropped}),
            Err(error) => json!({"error": failure(&error)}),
        };
    }
    if let Some(body) = &case.answer {
        return match answer(case.from, case.to, &wire(body), &context()) {
            Ok(done) => json!({"body": tree(&done)}),
            Err(error) => json!({"error": failure(&error)}),
        };
    }
    let stream = stream(case);
    let (out, error) = transcode(case, &stream, &[]);
    for cuts in [&[1][..], &[3, 7], &[64]] {
        let (again, same) = transcode(case, &stream, cuts);
        assert_eq!(again, out, "cut at {cuts:?}");
        assert_eq!(
            same.map(|error| error.to_string()),
            error.as_ref().map(ToString::to_string)
        );
    }
    let mut found = Map::new();
    found.insert("events".to_owned(), events(case.to, &out));
    if let Some(error) = error {
        found.insert("error".to_owned(), failure(&error));
    }
    Value::Object(found)
}

/// A body that is a string stands for itself: what is no JSON can be tested so.
fn wire(body: &Value) -> Vec<u8> {
    match body {
        Value::String(text) => text.clone().into_bytes(),
        body => serde_json::to_vec(body).expect("JSON"),
    }
}

fn tree(body: &[u8]) -> Value {
    serde_json::from_slice(body).expect("what is written is JSON")
}

fn failure(error: &Error) -> Value {
    let mut found = json!({"kind": error.kind.name(), "message": error.message});
    if let Some(param) = &error.param {
        found["param"] = json!(param);
    }
    if let Some(wait) = error.retry_after {
        found["retry_after_ms"] = json!(wait.as_millis() as u64);
    }
    found
}

/// A case's stream as bytes.
pub(crate) fn stream(case: &Case) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    for item in case.stream.iter().flatten() {
        if let Value::String(text) = item {
            bytes.extend_from_slice(text.as_bytes());
            continue;
        }
        let (kind, key) = match item.get("exception") {
            Some(_) => ("exception", ":exception-type"),
            None => ("event", ":event-type"),
        };
        let name = item.get("exception").or_else(|| item.get("type"));
        let name = name.and_then(Value::as_str).expect("a name");
        let payload = serde_json::to_vec(&item["payload"]).expect("JSON");
        let headers = [
            (":message-type", Header::Text(kind)),
            (key, Header::Text(name)),
            (":content-type", Header::Text("application/json")),
        ];
        encode(&headers, &payload, &mut bytes).expect("within every bound");
    }
    bytes.into()
}

/// The stream, cut into pieces of the lengths in `cuts`, repeated; no cuts is all at once.
pub(crate) fn transcode(case: &Case, stream: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<Error>) {
    let mut transcoder = Transcoder::new(case.from, case.to, context(), MAX_EVENT);
    let mut out = BytesMut::new();
    let mut rest = Bytes::copy_from_slice(stream);
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let cut = cuts.next().copied().unwrap_or(usize::MAX);
        let chunk = rest.split_to(cut.min(rest.len()));
        if let Err(error) = transcoder.feed(chunk, &mut out) {
            let again = transcoder.feed(Bytes::new(), &mut out);
            assert_eq!(again.map_err(|e| e.kind), Err(error.kind), "errors stay");
            return (out.into(), Some(error));
        }
    }
    let end = transcoder.end(&mut out).err();
    (out.into(), end)
}

fn events(to: Dialect, out: &[u8]) -> Value {
    if to == Dialect::Converse {
        let mut decoder = Decoder::new(MAX_EVENT);
        decoder.feed(Bytes::copy_from_slice(out));
        let mut events = Vec::new();
        while let Some(message) = decoder.next().expect("what is written is a stream") {
            let name = message.text(":event-type").expect("a name");
            events.push(json!({"type": name, "payload": tree(&message.payload)}));
        }
        assert_eq!(decoder.finish(), Ok(()));
        return Value::Array(events);
    }
    let text = str::from_utf8(out).expect("text");
    let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    events
        .map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data)))
        .collect()
}

/// The streams of a folder that are in this dialect, as bytes.
pub(crate) fn streams(folder: &str, from: Dialect) -> Vec<(Case, Vec<u8>)> {
    let cases = files(folder).into_iter().map(|file| read(&file).0);
    cases
        .filter(|case| case.from == from)
        .map(|case| {
            let bytes = stream(&case);
            (case, bytes)
        })
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect()
}

/// JSON with these names, in any arrangement.
pub(crate) fn arrangements(names: &[&'static str]) -> impl Strategy<Value = Value> + use<> {
    let name = prop::sample::select(names.to_vec());
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i32>().prop_map(Into::into),
        name.clone().prop_map(Into::into),
        ".{0,6}".prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 40, 4, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Into::into),
            vec((name.clone(), inner), 0..4).prop_map(|members| {
                let members = members.into_iter();
                Value::Object(members.map(|(k, v)| (k.to_owned(), v)).collect())
            }),
        ]
    })
}
