//! Errors in Anthropic's shape: `{"type": "error", "error": {type, message}, "request_id"}`.
//!
//! There is no member for the field at fault: it stands in front of the message, written as Anthropic
//! writes it (`messages.0.content.1.source`), in the names that a client of Messages knows.
use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;

use crate::error::{Error, Kind};

#[derive(Serialize)]
struct Envelope<'a> {
    r#type: &'static str,
    error: Body<'a>,
    request_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    message: Cow<'a, str>,
}

/// OpenAI's names of fields, and Anthropic's.
const NAMES: [(&str, &str); 9] = [
    ("max_completion_tokens", "max_tokens"),
    ("stop", "stop_sequences"),
    ("user", "metadata.user_id"),
    ("safety_identifier", "metadata.user_id"),
    ("response_format", "output_config.format"),
    ("reasoning_effort", "output_config.effort"),
    (
        "parallel_tool_calls",
        "tool_choice.disable_parallel_tool_use",
    ),
    ("tool_choice", "tool_choice"),
    ("stream_options", "stream"),
];

/// The error's body.
pub(crate) fn body(error: &Error, request_id: Option<&str>) -> Bytes {
    let body = Envelope {
        r#type: "error",
        error: Body {
            r#type: error.kind.anthropic_type(),
            message: message(error),
        },
        request_id,
    };
    // Strings alone cannot fail to serialise; an empty body would still be a valid answer.
    serde_json::to_vec(&body)
        .map(Bytes::from)
        .unwrap_or_default()
}

fn message(error: &Error) -> Cow<'_, str> {
    let text = own_names(&error.message);
    // A model that is not there is named in the message.
    let param = error
        .param
        .as_deref()
        .filter(|_| error.kind == Kind::InvalidRequest);
    let Some(param) = param else {
        return text;
    };
    let field = field(param, error.upstream_status.is_some());
    let rest = text
        .strip_prefix('`')
        .and_then(|rest| rest.strip_prefix(param))
        .and_then(|rest| rest.strip_prefix("` "))
        .unwrap_or(&text);
    Cow::Owned(format!("{field}: {rest}"))
}

/// OpenAI's name for the bound on output is longer than Anthropic's, and no word of English.
fn own_names(text: &str) -> Cow<'_, str> {
    if text.contains("max_completion_tokens") {
        Cow::Owned(text.replace("max_completion_tokens", "max_tokens"))
    } else {
        Cow::Borrowed(text)
    }
}

/// The field as the client wrote it. `theirs`: an upstream named it, whose messages are others than
/// the client's, so that their numbers say nothing.
fn field(param: &str, theirs: bool) -> String {
    let end = param.find(['.', '[']).unwrap_or(param.len());
    let (name, rest) = param.split_at(end);
    if let Some((_, own)) = NAMES.iter().find(|(openai, _)| *openai == name) {
        // What is below has another form.
        return if *own == name {
            dotted(param)
        } else {
            (*own).to_owned()
        };
    }
    if theirs && name == "messages" {
        return name.to_owned();
    }
    let rest = rest.replace(".function", "");
    dotted(&format!("{name}{rest}"))
}

/// `a[0].b` as `a.0.b`.
fn dotted(path: &str) -> String {
    path.replace('[', ".").replace(']', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_anthropics_names() {
        for (param, theirs, field_) in [
            ("max_completion_tokens", true, "max_tokens"),
            (
                "messages[2].content[0].source",
                false,
                "messages.2.content.0.source",
            ),
            ("messages[2].content", true, "messages"),
            ("tools[1].function.parameters", true, "tools.1.parameters"),
            (
                "tool_choice.function.name",
                false,
                "tool_choice.function.name",
            ),
            (
                "response_format.json_schema.schema",
                true,
                "output_config.format",
            ),
            ("stop[0]", true, "stop_sequences"),
            ("stop_sequences[0]", false, "stop_sequences.0"),
        ] {
            assert_eq!(field(param, theirs), field_);
        }
    }

    #[test]
    fn the_field_is_named_once() {
        let said = |message: &'static str, param: &'static str| {
            let error = Error::new(Kind::InvalidRequest, message).param(param);
            super::message(&error).into_owned()
        };
        assert_eq!(
            said("`messages[0].content` is missing.", "messages[0].content"),
            "messages.0.content: is missing."
        );
        assert_eq!(
            said(
                "'max_completion_tokens' must be between 1 and 9",
                "max_completion_tokens"
            ),
            "max_tokens: 'max_tokens' must be between 1 and 9"
        );
        let missing = Error::new(Kind::ModelNotFound, "No model 'x'.").param("model");
        assert_eq!(super::message(&missing), "No model 'x'.");
    }
}
