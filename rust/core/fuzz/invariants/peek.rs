//! What holds of the body inspector for every input; shared by fuzzing and tests. serde_json is
//! the oracle.
use std::ops::Range;

use forebay_core::peek::{
    CONTROL_FIELDS, MAX_N, MAX_TOKEN_CAP, Peek, PeekErrorKind, TOKEN_FIELDS, TokenIds, peek,
};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

/// Accepts and refuses the same bodies as serde_json, save for nesting and field types, and finds
/// the same values.
pub(crate) fn check(body: &[u8]) {
    // IgnoredAny checks the grammar alone: no limit on nesting, numbers or surrogates.
    let grammar = match std::str::from_utf8(body) {
        Ok(text) => serde_json::from_str::<IgnoredAny>(text).is_ok(),
        Err(bad) => {
            let error = peek(body).expect_err("not UTF-8");
            assert_eq!(
                (error.offset, error.kind),
                (bad.valid_up_to(), PeekErrorKind::InvalidUtf8)
            );
            return;
        }
    };
    let result = peek(body);
    if let Err(error) = &result {
        assert!(error.offset <= body.len());
        assert!(
            error
                .to_string()
                .contains(&format!("(byte {})", error.offset))
        );
        if error.kind == PeekErrorKind::TooDeep {
            assert!(
                body.iter()
                    .filter(|byte| matches!(byte, b'[' | b'{'))
                    .count()
                    > 128
            );
            return;
        }
    }
    let is_syntax = matches!(&result, Err(error) if matches!(error.kind, PeekErrorKind::InvalidJson(what)
        if !what.contains("surrogate")));
    assert_eq!(grammar, !is_syntax, "{result:?}");
    // No tree where a surrogate stands alone or a number has no float.
    let Ok(tree) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    let Value::Object(tree) = tree else {
        assert_eq!(
            result.expect_err("no object").kind,
            PeekErrorKind::NotAnObject
        );
        return;
    };
    let wrong = complaints(&tree);
    match result {
        Ok(found) => {
            assert_eq!(wrong, Vec::<&str>::new());
            same(body, &found, &tree);
        }
        Err(error) => match error.kind {
            PeekErrorKind::WrongType { field, .. } | PeekErrorKind::OutOfRange { field, .. } => {
                assert!(wrong.contains(&field), "{error} but only {wrong:?}");
            }
            kind => panic!("{kind:?} of a body with a tree"),
        },
    }
}

/// The fields whose type or range is wrong.
fn complaints(tree: &Map<String, Value>) -> Vec<&'static str> {
    let mut wrong = Vec::new();
    let mut must = |field, good: bool| {
        if !good {
            wrong.push(field);
        }
    };
    let null = Value::Null;
    let get = |key: &str| tree.get(key).unwrap_or(&null);
    must(
        "model",
        get("model").is_string() || !tree.contains_key("model"),
    );
    must("user", get("user").is_string() || get("user").is_null());
    must(
        "stream",
        get("stream").is_boolean() || get("stream").is_null(),
    );
    let cap = |value: &Value, max| {
        value.is_null()
            || value
                .as_u64()
                .is_some_and(|value| (1..=max).contains(&value))
    };
    must("n", cap(get("n"), u64::from(MAX_N)));
    must("max_tokens", cap(get("max_tokens"), MAX_TOKEN_CAP));
    must(
        "max_completion_tokens",
        cap(get("max_completion_tokens"), MAX_TOKEN_CAP),
    );
    must(
        "messages",
        get("messages").is_array() || get("messages").is_null(),
    );
    for field in ["prompt", "input"] {
        let value = get(field);
        must(
            field,
            value.is_array() || value.is_string() || value.is_null(),
        );
    }
    let options = get("stream_options");
    must("stream_options", options.is_object() || options.is_null());
    let flag = |key| {
        options
            .get(key)
            .is_none_or(|value| value.is_boolean() || value.is_null())
    };
    must("stream_options.include_usage", flag("include_usage"));
    must(
        "stream_options.continuous_usage_stats",
        flag("continuous_usage_stats"),
    );
    wrong
}

/// Every value and span is the tree's.
fn same(body: &[u8], found: &Peek<'_>, tree: &Map<String, Value>) {
    let text = |key| tree.get(key).and_then(Value::as_str);
    let number = |key| tree.get(key).and_then(Value::as_u64);
    let at = |span: &Option<Range<usize>>| {
        let span = span.clone()?;
        Some(serde_json::from_slice::<Value>(&body[span]).expect("a span is one value"))
    };
    assert_eq!(found.model.as_deref(), text("model"));
    assert_eq!(found.user.as_deref(), text("user"));
    assert_eq!(found.stream, tree.get("stream") == Some(&Value::Bool(true)));
    assert_eq!(found.n.map(u64::from), number("n"));
    assert_eq!(found.max_tokens, number("max_tokens"));
    assert_eq!(found.max_completion_tokens, number("max_completion_tokens"));
    assert_eq!(
        found.output_cap(),
        number("max_tokens").max(number("max_completion_tokens"))
    );
    assert_eq!(at(&found.model_span).as_ref(), tree.get("model"));
    assert_eq!(at(&found.rid_span).as_ref(), tree.get("rid"));
    assert_eq!(at(&found.priority_span).as_ref(), tree.get("priority"));
    for (field, ids) in TOKEN_FIELDS.iter().zip(found.token_ids) {
        assert_eq!(ids, token_ids(field, tree.get(*field)), "{field}");
    }
    let control = |field: &&&str| tree.get(**field).is_some_and(|value| !value.is_null());
    assert_eq!(found.control, CONTROL_FIELDS.iter().find(control).copied());

    let options = tree.get("stream_options");
    assert_eq!(at(&found.stream_options_span).as_ref(), options);
    let option = |key| options.and_then(|options| options.get(key));
    assert_eq!(
        found.include_usage,
        option("include_usage") == Some(&Value::Bool(true))
    );
    let continuous = option("continuous_usage_stats");
    assert_eq!(
        found.continuous_usage_stats,
        continuous == Some(&Value::Bool(true))
    );
    let spans = found.stream_options.as_ref();
    assert_eq!(spans.is_some(), options.is_some_and(Value::is_object));
    if let (Some(spans), Some(Value::Object(options))) = (spans, options) {
        assert_eq!(spans.empty, options.is_empty());
        assert_eq!(
            at(&spans.include_usage_span).as_ref(),
            option("include_usage")
        );
        assert_eq!(at(&spans.continuous_usage_stats_span).as_ref(), continuous);
        let changed = insert(body, spans.body_start, spans.empty);
        assert_eq!(changed["stream_options"]["~new"], true);
    }
    assert_eq!(found.empty_object, tree.is_empty());
    assert_eq!(
        insert(body, found.body_start, found.empty_object)["~new"],
        true
    );

    let array = |key| tree.get(key).and_then(Value::as_array);
    let given = |key| tree.get(key).is_some_and(|value| !value.is_null());
    assert_eq!(found.has_messages, given("messages"));
    assert_eq!(found.has_prompt, given("prompt"));
    assert_eq!(found.has_input, given("input"));
    assert_eq!(
        found.messages_empty,
        array("messages").is_some_and(Vec::is_empty)
    );
    let prompts = if given("prompt") {
        array("prompt")
    } else {
        array("input")
    };
    let prompts = prompts.map_or(0, |prompts| {
        prompts
            .iter()
            .filter(|item| item.is_string() || item.is_array())
            .count()
    });
    assert_eq!(found.prompt_items as usize, prompts.max(1));
    // Where nothing is escaped and no nested key repeats, the sizes are the tree's too.
    let fields = ["messages", "prompt", "input"].map(|key| tree.get(key).map_or(0, string_bytes));
    assert!(found.prompt_bytes >= fields.iter().sum());
}

/// The token ids of a field, by the tree.
fn token_ids(field: &str, value: Option<&Value>) -> TokenIds {
    let mut ids = TokenIds::default();
    if field == "logit_bias" {
        for key in value
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(Map::keys)
        {
            let is_number = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit());
            match key.parse().ok().filter(|_| is_number) {
                Some(id) => ids.largest = ids.largest.max(Some(id)),
                None => ids.is_wrong = true,
            }
        }
        return ids;
    }
    let (mut texts, mut others) = (false, false);
    let mut walk = vec![(value, 0)];
    while let Some((value, depth)) = walk.pop() {
        match value {
            Some(Value::Array(items)) => {
                walk.extend(items.iter().map(|item| (Some(item), depth + 1)));
            }
            Some(Value::Number(number)) if depth > 0 => match number.as_u64() {
                Some(id) => ids.largest = ids.largest.max(Some(id)),
                None => ids.is_wrong = true,
            },
            Some(Value::String(_)) if depth > 1 => ids.is_wrong = true,
            Some(Value::String(_)) if depth > 0 => texts = true,
            Some(Value::Null | Value::Bool(_)) if depth > 0 => others = true,
            _ => {}
        }
    }
    ids.is_wrong |= ids.largest.is_some() && (texts || others);
    ids.is_wrong |= texts && !["prompt", "input", "query", "items"].contains(&field);
    ids
}

fn insert(body: &[u8], at: usize, is_empty: bool) -> Value {
    let member: &[u8] = if is_empty {
        b"\"~new\":true"
    } else {
        b"\"~new\":true,"
    };
    let changed = [&body[..at], member, &body[at..]].concat();
    serde_json::from_slice(&changed).expect("still JSON")
}

fn string_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(string_bytes).sum(),
        Value::Object(members) => members.values().map(string_bytes).sum(),
        _ => 0,
    }
}
