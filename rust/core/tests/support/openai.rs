//! Requests, answers and chunks as OpenAI's API has them, of every shape that a member may have.
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value};

type Made = BoxedStrategy<Value>;

/// The same without members that are null, and with whole numbers as integers.
pub(crate) fn plain(value: Value) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, plain(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Number(number) if number.is_f64() => match number.as_f64() {
            Some(float) if is_whole(float) => Value::from(float as i64),
            _ => Value::Number(number),
        },
        other => other,
    }
}

/// An object of members that are always there, and of members that may be.
fn object(always: Vec<(&'static str, Made)>, maybe: Vec<(&'static str, Made)>) -> Made {
    let name = |(name, value): (&'static str, Made)| value.prop_map(move |v| (name, v)).boxed();
    let always: Vec<_> = always.into_iter().map(name).collect();
    let maybe: Vec<_> = maybe.into_iter().map(|member| of(name(member))).collect();
    (always, maybe)
        .prop_map(|(always, maybe)| {
            let members = always.into_iter().chain(maybe.into_iter().flatten());
            let members = members.map(|(name, value)| (name.to_owned(), value));
            Value::Object(members.collect::<Map<_, _>>())
        })
        .boxed()
}

fn text() -> Made {
    prop_oneof![
        3 => "[ -~]{0,12}",
        1 => any::<String>(),
        1 => Just("\u{1F600}\"\\\n\u{7}\u{2028}".to_owned()),
    ]
    .prop_map(Value::from)
    .boxed()
}

fn is_whole(value: f64) -> bool {
    value.fract() == 0.0
}

/// A number, whole ones as integers. No more digits than serde_json reads exactly.
fn number() -> Made {
    (any::<i32>(), 0..4)
        .prop_map(|(digits, places)| f64::from(digits) / 10_f64.powi(places))
        .prop_map(|value| plain(Value::from(value)))
        .boxed()
}

fn int() -> Made {
    any::<i32>().prop_map(Value::from).boxed()
}

fn long() -> Made {
    any::<i64>().prop_map(Value::from).boxed()
}

fn boolean() -> Made {
    any::<bool>().prop_map(Value::from).boxed()
}

fn one(of: &'static [&'static str]) -> Made {
    select(of).prop_map(Value::from).boxed()
}

fn is(value: &'static str) -> Made {
    Just(Value::from(value)).boxed()
}

fn some(of: Made) -> Made {
    vec(of, 1..4).prop_map(Value::from).boxed()
}

fn list(of: Made) -> Made {
    vec(of, 0..4).prop_map(Value::from).boxed()
}

fn base64() -> Made {
    select(&["", "Zg==", "Zm8=", "Zm9v", "AP/+"][..])
        .prop_map(Value::from)
        .boxed()
}

/// Any JSON.
fn any_json() -> Made {
    let leaf = prop_oneof![Just(Value::Null), boolean(), number(), text()];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            vec((any::<String>(), inner), 0..3)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
    .boxed()
}

fn any_object() -> Made {
    vec(("[a-z$]{0,6}", any_json()), 0..3)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
        .boxed()
}

/// What is no null: answers do not keep members that are.
fn there(of: Made) -> Made {
    of.prop_filter("null", |value| !value.is_null()).boxed()
}

fn choose(options: Vec<Made>) -> Made {
    proptest::strategy::Union::new(options).boxed()
}

fn part() -> Made {
    let image = object(
        vec![("url", text())],
        vec![
            ("detail", one(&["auto", "low", "high"])),
            ("hint", there(any_json())),
        ],
    );
    let audio = object(vec![("data", base64()), ("format", text())], vec![]);
    let file = object(
        vec![],
        vec![
            ("file_data", text()),
            ("file_id", text()),
            ("filename", text()),
        ],
    );
    choose(vec![
        object(
            vec![("type", is("text")), ("text", text())],
            vec![("cache_control", any_object())],
        ),
        object(
            vec![("type", is("image_url")), ("image_url", image)],
            vec![],
        ),
        object(
            vec![("type", is("input_audio")), ("input_audio", audio)],
            vec![],
        ),
        object(vec![("type", is("file")), ("file", file)], vec![]),
        object(vec![("type", is("refusal")), ("refusal", text())], vec![]),
        object(
            vec![("type", is("hologram")), ("hologram", any_object())],
            vec![],
        ),
    ])
}

fn call() -> Made {
    let function = object(vec![("name", text()), ("arguments", text())], vec![]);
    let custom = object(vec![("name", text()), ("input", text())], vec![]);
    choose(vec![
        object(
            vec![
                ("id", text()),
                ("type", is("function")),
                ("function", function),
            ],
            vec![("index", int())],
        ),
        object(
            vec![("id", text()), ("type", is("custom")), ("custom", custom)],
            vec![],
        ),
    ])
}

fn audio() -> Made {
    let id = "[a-z]{1,4}".prop_map(Value::from).boxed();
    object(
        vec![("id", id)],
        vec![
            ("data", base64()),
            ("expires_at", long()),
            ("transcript", text()),
        ],
    )
}

fn message() -> Made {
    object(
        vec![(
            "role",
            one(&[
                "developer",
                "system",
                "user",
                "assistant",
                "tool",
                "function",
            ]),
        )],
        vec![
            ("content", choose(vec![text(), some(part())])),
            ("name", text()),
            ("tool_calls", some(call())),
            ("tool_call_id", text()),
            ("reasoning_content", text()),
            ("refusal", text()),
            ("audio", audio()),
            (
                "annotations",
                some(object(vec![("type", is("url_citation"))], vec![])),
            ),
            ("thinking_blocks", there(any_json())),
        ],
    )
}

fn tool() -> Made {
    let function = object(
        vec![("name", text())],
        vec![
            ("description", text()),
            ("parameters", any_object()),
            ("strict", boolean()),
        ],
    );
    choose(vec![
        object(
            vec![("type", is("function")), ("function", function)],
            vec![],
        ),
        object(
            vec![("type", is("web_search"))],
            vec![("filters", any_object())],
        ),
    ])
}

fn tool_choice() -> Made {
    let name = || object(vec![("name", text())], vec![]);
    let allowed = object(
        vec![
            ("mode", one(&["auto", "required"])),
            ("tools", list(any_object())),
        ],
        vec![],
    );
    choose(vec![
        one(&["none", "auto", "required", "maybe"]),
        object(vec![("type", is("function")), ("function", name())], vec![]),
        object(vec![("type", is("custom")), ("custom", name())], vec![]),
        object(
            vec![("type", is("allowed_tools")), ("allowed_tools", allowed)],
            vec![],
        ),
    ])
}

fn response_format() -> Made {
    let schema = object(
        vec![("name", text())],
        vec![
            ("description", text()),
            ("schema", any_object()),
            ("strict", boolean()),
        ],
    );
    choose(vec![
        object(vec![("type", one(&["text", "json_object"]))], vec![]),
        object(
            vec![("type", is("json_schema")), ("json_schema", schema)],
            vec![],
        ),
        object(
            vec![("type", is("structural_tag"))],
            vec![("structures", any_json())],
        ),
    ])
}

/// A chat request.
pub(crate) fn request() -> Made {
    let model = "[a-z]{1,8}".prop_map(Value::from).boxed();
    let stop = some(text());
    let bias = vec((any::<i32>(), number()), 1..4)
        .prop_map(|entries| {
            entries
                .into_iter()
                .map(|(id, v)| (id.to_string(), v))
                .collect()
        })
        .boxed();
    let metadata = vec((any::<String>(), text()), 1..4)
        .prop_map(|entries| Value::Object(entries.into_iter().collect()))
        .boxed();
    let prediction = object(
        vec![
            ("type", is("content")),
            ("content", choose(vec![text(), some(part())])),
        ],
        vec![],
    );
    object(
        vec![("model", model), ("messages", some(message()))],
        vec![
            ("max_completion_tokens", int()),
            ("max_tokens", int()),
            ("temperature", number()),
            ("top_p", number()),
            ("n", int()),
            ("stop", stop),
            ("tools", some(tool())),
            ("tool_choice", tool_choice()),
            ("parallel_tool_calls", boolean()),
            ("response_format", response_format()),
            (
                "reasoning_effort",
                one(&["none", "minimal", "low", "medium", "high", "xhigh", "max"]),
            ),
            ("seed", long()),
            ("logprobs", boolean()),
            ("top_logprobs", int()),
            ("logit_bias", bias),
            ("frequency_penalty", number()),
            ("presence_penalty", number()),
            ("user", text()),
            ("metadata", metadata),
            ("service_tier", text()),
            ("store", boolean()),
            ("verbosity", one(&["low", "medium", "high"])),
            ("modalities", some(text())),
            (
                "audio",
                object(vec![("voice", is("ash")), ("format", text())], vec![]),
            ),
            ("prediction", prediction),
            ("prompt_cache_key", text()),
            ("safety_identifier", text()),
            ("top_k", any_json()),
            ("chat_template_kwargs", any_object()),
        ],
    )
}

fn logprobs() -> Made {
    let bytes = || vec(any::<u8>(), 0..4).prop_map(Value::from).boxed();
    let top = object(
        vec![("token", text()), ("logprob", number())],
        vec![("bytes", bytes())],
    );
    let token = object(
        vec![
            ("token", text()),
            ("logprob", number()),
            ("top_logprobs", list(top)),
        ],
        vec![("bytes", bytes())],
    );
    object(
        vec![],
        vec![("content", some(token.clone())), ("refusal", some(token))],
    )
}

fn usage() -> Made {
    let prompt = object(
        vec![],
        vec![
            ("cached_tokens", long()),
            ("cache_write_tokens", long()),
            ("audio_tokens", long()),
        ],
    );
    let completion = object(
        vec![],
        vec![("reasoning_tokens", long()), ("image_tokens", int())],
    );
    object(
        vec![
            ("prompt_tokens", long()),
            ("completion_tokens", long()),
            ("total_tokens", long()),
        ],
        vec![
            ("prompt_tokens_details", prompt),
            ("completion_tokens_details", completion),
        ],
    )
}

fn finish_reason() -> Made {
    one(&[
        "stop",
        "length",
        "tool_calls",
        "content_filter",
        "function_call",
        "eos",
    ])
}

fn whole(object_is: &'static str, choice: Made) -> Made {
    object(
        vec![
            ("id", text()),
            ("object", is(object_is)),
            ("created", long()),
            ("model", text()),
            ("choices", list(choice)),
        ],
        vec![
            ("usage", usage()),
            ("service_tier", text()),
            ("system_fingerprint", text()),
            ("metadata", there(any_json())),
        ],
    )
}

/// A chat answer.
pub(crate) fn answer() -> Made {
    let choice = object(
        vec![("index", int()), ("message", message())],
        vec![
            ("finish_reason", finish_reason()),
            ("logprobs", logprobs()),
            ("matched_stop", there(any_json())),
        ],
    );
    whole("chat.completion", choice)
}

/// A chunk of a chat answer.
pub(crate) fn chunk() -> Made {
    let function = object(vec![], vec![("name", text()), ("arguments", text())]);
    let call = object(
        vec![("index", int())],
        vec![
            ("id", text()),
            ("type", one(&["function", "custom"])),
            ("function", function),
        ],
    );
    let delta = object(
        vec![],
        vec![
            ("role", one(&["assistant", "tool"])),
            ("content", text()),
            ("reasoning_content", text()),
            ("refusal", text()),
            ("tool_calls", some(call)),
        ],
    );
    let choice = object(
        vec![("index", int()), ("delta", delta)],
        vec![("finish_reason", finish_reason()), ("logprobs", logprobs())],
    );
    whole("chat.completion.chunk", choice)
}
