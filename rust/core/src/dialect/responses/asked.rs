//! What a response repeats of its request.
use serde_json::value::RawValue;

use super::super::json::{Members, Object};
use super::output::{Custom, Telling};
use super::parse::Parsed;

/// What a response repeats of its request, and what of that decides how it is told.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Members of the response, without braces.
    repeated: String,
    /// How items are told.
    pub(super) telling: Telling,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            repeated: repeat(None, &mut Members::default()),
            telling: Telling::default(),
        }
    }
}

impl Asked {
    /// previous: the response before it. members: the request's others.
    pub(super) fn of(
        parsed: &Parsed<'_>,
        previous: Option<&str>,
        mut members: Members<'_>,
    ) -> Self {
        let custom = parsed.custom.iter().map(|name| name.clone().into_owned());
        Self {
            repeated: repeat(previous, &mut members),
            telling: Telling {
                custom: Custom(custom.collect()),
                summary: parsed.summary,
                logprobs: parsed.logprobs,
            },
        }
    }

    /// The members that are repeated, to be written into an object that has some.
    pub(super) fn repeated(&self) -> &str {
        &self.repeated
    }
}

/// The members of the response that say what was asked, in OpenAI's order and with its defaults.
fn repeat(previous: Option<&str>, members: &mut Members<'_>) -> String {
    let mut out = bytes::BytesMut::new();
    Object::write(&mut out, |object| {
        for (name, otherwise) in [
            ("instructions", "null"),
            ("max_output_tokens", "null"),
            ("max_tool_calls", "null"),
            ("parallel_tool_calls", "true"),
            ("prompt_cache_key", "null"),
        ] {
            put(object, name, members.take(name), otherwise);
        }
        object.put("previous_response_id", previous);
        if let Some(retention) = members.take("prompt_cache_retention") {
            object.put("prompt_cache_retention", retention);
        }
        let nothing = r#"{"effort":null,"summary":null}"#;
        put(object, "reasoning", members.take("reasoning"), nothing);
        put(
            object,
            "safety_identifier",
            members.take("safety_identifier"),
            "null",
        );
        // What every answer was given with, whatever was asked for.
        object.put("service_tier", "default");
        put(object, "temperature", members.take("temperature"), "1.0");
        text(object, members.take("text"));
        for (name, otherwise) in [
            ("tool_choice", "\"auto\""),
            ("tools", "[]"),
            ("top_logprobs", "0"),
            ("top_p", "1.0"),
        ] {
            put(object, name, members.take(name), otherwise);
        }
        // Nothing is left out to make room.
        object.put("truncation", "disabled");
        put(object, "user", members.take("user"), "null");
        put(object, "metadata", members.take("metadata"), "{}");
    });
    let text = String::from_utf8(out.into()).unwrap_or_default();
    let inner = text
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'));
    inner.unwrap_or_default().to_owned()
}

fn put(object: &mut Object<'_>, name: &str, raw: Option<&RawValue>, otherwise: &str) {
    let text = raw.map_or(otherwise, RawValue::get);
    object.member(name).extend_from_slice(text.as_bytes());
}

fn text(object: &mut Object<'_>, raw: Option<&RawValue>) {
    let mut asked = raw
        .and_then(|raw| serde_json::from_str::<Members<'_>>(raw.get()).ok())
        .unwrap_or_default();
    object.object("text", |text| {
        put(text, "format", asked.take("format"), r#"{"type":"text"}"#);
        put(text, "verbosity", asked.take("verbosity"), "\"medium\"");
    });
}
