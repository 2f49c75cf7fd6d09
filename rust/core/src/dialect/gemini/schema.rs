//! Google's `Schema`, OpenAPI's with types in capitals, as JSON Schema.
use std::borrow::Cow;

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use super::super::chat::Raw;

/// The schema as JSON Schema: types in small letters, `nullable` as a type. What is neither is kept.
pub(super) fn json_schema(raw: &RawValue) -> Raw<'_> {
    let converted = serde_json::from_str(raw.get()).ok().and_then(|mut schema| {
        convert(&mut schema);
        to_raw_value(&schema).ok()
    });
    converted.map_or(Cow::Borrowed(raw), Cow::Owned)
}

/// As deep as the parser has let it be: 128 levels.
fn convert(schema: &mut Value) {
    let Value::Object(schema) = schema else {
        return;
    };
    if let Some(Value::String(name)) = schema.get_mut("type") {
        name.make_ascii_lowercase();
    }
    if schema.remove("nullable") == Some(Value::Bool(true)) {
        allow_null(schema);
    }
    for (key, inner) in schema {
        match (key.as_str(), inner) {
            ("items" | "additionalProperties", inner) => convert(inner),
            ("anyOf" | "prefixItems", Value::Array(list)) => list.iter_mut().for_each(convert),
            ("properties" | "defs" | "$defs", Value::Object(named)) => {
                named.values_mut().for_each(convert);
            }
            _ => {}
        }
    }
}

fn allow_null(schema: &mut Map<String, Value>) {
    if let Some(kind @ Value::String(_)) = schema.get_mut("type") {
        let null = Value::String("null".to_owned());
        *kind = Value::Array(vec![kind.take(), null]);
    } else if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.push(serde_json::json!({"type": "null"}));
    }
    if let Some(Value::Array(choices)) = schema.get_mut("enum") {
        choices.push(Value::Null);
    }
}
