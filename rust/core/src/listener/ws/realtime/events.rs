//! What the gateway reads of a Realtime session's events, and what it says in it. Pure.
//!
//! Most events are of no interest here and pass unread: only what may be one of interest is parsed.
//!
//! Source: openai/openai-python `types/realtime`.
use std::borrow::Cow;

use bytes::BytesMut;
use memchr::{memchr, memmem};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::super::mode::text;
use crate::dialect::json::{Object, Text};
use crate::error::Error;
use crate::usage::{MAX_TOKENS, Usage};

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FromClient {
    /// `response.create`.
    Create {
        /// Its `event_id`.
        event: Option<String>,
        /// `max_output_tokens`, where it is a number.
        output: Option<u64>,
    },
    /// Anything else.
    Other,
}

/// What a provider says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FromProvider {
    /// `response.created`.
    Created {
        /// The response's id.
        id: String,
    },
    /// A part of a response: `response.….delta`.
    Delta,
    /// `response.done`.
    Done(Done),
    /// `error`, about the client's event of that id where it has one.
    Error {
        /// The client's event.
        event: Option<String>,
    },
    /// Anything else.
    Other,
}

/// How a response ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Done {
    /// The response's id.
    pub(super) id: String,
    /// `completed`, `cancelled`, `incomplete` or `failed`.
    pub(super) status: String,
    /// Why it is incomplete or cancelled.
    pub(super) reason: Option<String>,
    /// What it used.
    pub(super) usage: Option<Usage>,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names of the wire")]
struct Event<'a> {
    #[serde(borrow, default)]
    r#type: Option<Text<'a>>,
    #[serde(borrow, default)]
    event_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    response: Option<Response<'a>>,
    #[serde(borrow, default)]
    error: Option<About<'a>>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    #[serde(borrow, default)]
    status: Option<Text<'a>>,
    #[serde(borrow, default)]
    status_details: Option<Details<'a>>,
    #[serde(default)]
    usage: Option<Used>,
    #[serde(default)]
    max_output_tokens: Option<Bound>,
}

#[derive(Deserialize)]
struct Details<'a> {
    #[serde(borrow, default)]
    reason: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct About<'a> {
    #[serde(borrow, default)]
    event_id: Option<Text<'a>>,
}

/// A number, or `inf`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bound {
    Tokens(u64),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
struct Used {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    input_token_details: Option<Input>,
}

#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Used {
    /// Text, audio and images together: the provider's sums.
    fn usage(&self) -> Option<Usage> {
        let prompt = self.input_tokens?;
        let completion = self.output_tokens?;
        let cached = self.input_token_details.as_ref();
        let cached = cached.and_then(|details| details.cached_tokens);
        (prompt < MAX_TOKENS && completion < MAX_TOKENS).then(|| Usage {
            prompt,
            completion,
            cached: cached.unwrap_or(0).min(prompt),
            ..Usage::default()
        })
    }
}

/// Reads what a client says.
pub(super) fn from_client(message: &[u8]) -> FromClient {
    // An escape could hide the name: base64, what most bytes are, has none.
    let may_be =
        memmem::find(message, b"response.create").is_some() || memchr(b'\\', message).is_some();
    if !may_be {
        return FromClient::Other;
    }
    let Some(event) = parse(message) else {
        return FromClient::Other;
    };
    if kind(&event) != "response.create" {
        return FromClient::Other;
    }
    let bound = event
        .response
        .and_then(|response| response.max_output_tokens);
    FromClient::Create {
        event: owned(event.event_id),
        output: match bound {
            Some(Bound::Tokens(tokens)) => Some(tokens),
            Some(Bound::Other(_)) | None => None,
        },
    }
}

/// Reads what a provider says.
pub(super) fn from_provider(message: &[u8]) -> FromProvider {
    const HEAD: usize = 256;
    let head = message.get(..HEAD).unwrap_or(message);
    if memmem::find(head, b".delta\"").is_some() {
        // A name of interest in its text would be quoted, and no event has two types.
        if let Some(event) = parse(message)
            && kind(&event).starts_with("response.")
            && kind(&event).ends_with(".delta")
        {
            return FromProvider::Delta;
        }
    }
    let names: [&[u8]; 3] = [b"response.created", b"response.done", b"\"error\""];
    if !names
        .iter()
        .any(|name| memmem::find(message, name).is_some())
    {
        return FromProvider::Other;
    }
    let Some(event) = parse(message) else {
        return FromProvider::Other;
    };
    match &*kind(&event) {
        "error" => FromProvider::Error {
            event: event.error.and_then(|about| owned(about.event_id)),
        },
        "response.created" => match event.response.and_then(|response| owned(response.id)) {
            Some(id) => FromProvider::Created { id },
            None => FromProvider::Other,
        },
        "response.done" => event.response.map_or(FromProvider::Other, done),
        _ => FromProvider::Other,
    }
}

fn done(response: Response<'_>) -> FromProvider {
    let details = response.status_details;
    FromProvider::Done(Done {
        id: owned(response.id).unwrap_or_default(),
        status: owned(response.status).unwrap_or_default(),
        reason: details.and_then(|details| owned(details.reason)),
        usage: response.usage.and_then(|used| used.usage()),
    })
}

fn parse(message: &[u8]) -> Option<Event<'_>> {
    // An array would be read as an object whose members come in order.
    if !message.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    serde_json::from_slice(message).ok()
}

fn kind<'e>(event: &'e Event<'_>) -> Cow<'e, str> {
    let text = event.r#type.as_ref().map(|text| &*text.0);
    Cow::Borrowed(text.unwrap_or_default())
}

fn owned(text: Option<Text<'_>>) -> Option<String> {
    text.map(|text| text.0.into_owned())
}

/// An error as a session tells it; `about` is the client's event.
pub(super) fn error(error: &Error, about: Option<&str>) -> Utf8Bytes {
    let mut out = BytesMut::new();
    Object::write(&mut out, |event| {
        event.put("type", "error");
        event.put(
            "event_id",
            format!("event_{}", uuid::Uuid::now_v7().simple()),
        );
        event.object("error", |body| {
            body.put("type", error.kind.openai_type());
            body.put("code", error.code.as_deref().or(error.kind.openai_code()));
            body.put("message", &*error.message);
            body.put("param", error.param.as_deref());
            body.put("event_id", about);
        });
    });
    text(&out.freeze())
}

/// Stops a response.
pub(super) fn cancel(id: &str) -> Utf8Bytes {
    let mut out = BytesMut::new();
    Object::write(&mut out, |event| {
        event.put("type", "response.cancel");
        event.put("response_id", id);
    });
    text(&out.freeze())
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn create(event: Option<&str>, output: Option<u64>) -> FromClient {
        FromClient::Create {
            event: event.map(str::to_owned),
            output,
        }
    }

    #[test]
    fn a_create_is_found_however_it_is_written() {
        for (message, expected) in [
            (r#"{"type":"response.create"}"#, create(None, None)),
            (
                r#"{"type":"response.cr\u0065ate","event_id":"e"}"#,
                create(Some("e"), None),
            ),
            (r#"{"ty\u0070e":"response.create"}"#, create(None, None)),
            (
                r#" {"response":{"max_output_tokens":7,"x":1},"type":"response.create"}"#,
                create(None, Some(7)),
            ),
            (
                r#"{"type":"response.create","response":{"max_output_tokens":"inf"}}"#,
                create(None, None),
            ),
            (r#"{"type":"response.cancel"}"#, FromClient::Other),
            (
                r#"{"type":"x","text":"response.create"}"#,
                FromClient::Other,
            ),
            (r#"["response.create"]"#, FromClient::Other),
            ("response.create", FromClient::Other),
        ] {
            assert_eq!(from_client(message.as_bytes()), expected, "{message}");
        }
    }

    #[test]
    fn a_response_is_followed_from_its_begin_to_its_usage() {
        let created =
            br#"{"type":"response.created","event_id":"e","response":{"id":"r","usage":null}}"#;
        assert_eq!(
            from_provider(created),
            FromProvider::Created { id: "r".to_owned() }
        );
        let delta = br#"{"type":"response.output_text.delta","delta":"response.done"}"#;
        assert_eq!(from_provider(delta), FromProvider::Delta);
        let done = br#"{"type":"response.done","response":{"id":"r","status":"incomplete",
            "status_details":{"type":"incomplete","reason":"max_output_tokens"},"output":[{"a":1}],
            "usage":{"total_tokens":15,"input_tokens":10,"output_tokens":5,
                     "input_token_details":{"text_tokens":4,"audio_tokens":6,"cached_tokens":3}}}}"#;
        let usage = Usage {
            prompt: 10,
            completion: 5,
            cached: 3,
            ..Usage::default()
        };
        assert_eq!(
            from_provider(done),
            FromProvider::Done(Done {
                id: "r".to_owned(),
                status: "incomplete".to_owned(),
                reason: Some("max_output_tokens".to_owned()),
                usage: Some(usage),
            })
        );
    }

    #[test]
    fn what_is_of_no_interest_passes() {
        for message in [
            r#"{"type":"session.created"}"#,
            r#"{"type":"conversation.item.done","item":{"text":"response.done"}}"#,
            r#"{"type":"response.done"}"#,
            r#"{"type":"response.created","response":{}}"#,
            r#"{"type":"conversation.item.input_audio_transcription.delta"}"#,
            "response.done",
            "",
        ] {
            assert_eq!(
                from_provider(message.as_bytes()),
                FromProvider::Other,
                "{message}"
            );
        }
        let failed = br#"{"type":"error","event_id":"e","error":{"type":"x","event_id":"mine"}}"#;
        let event = Some("mine".to_owned());
        assert_eq!(from_provider(failed), FromProvider::Error { event });
    }

    #[test]
    fn usage_that_is_none_is_not_taken() {
        for usage in [
            "null",
            r#"{"input_tokens":1}"#,
            r#"{"input_tokens":9999999999999,"output_tokens":1}"#,
        ] {
            let done = format!(
                r#"{{"type":"response.done","response":{{"id":"r","status":"failed","usage":{usage}}}}}"#
            );
            let read = from_provider(done.as_bytes());
            assert!(
                matches!(read, FromProvider::Done(Done { usage: None, .. })),
                "{usage}"
            );
        }
    }

    #[test]
    fn errors_are_of_the_sessions_shape() {
        let refused = Error::new(Kind::RateLimited, "slow");
        let said: serde_json::Value =
            serde_json::from_str(&error(&refused, Some("mine"))).unwrap_or_default();
        assert_eq!(said["type"], "error");
        assert_eq!(said["error"]["code"], "rate_limit_exceeded");
        assert_eq!(said["error"]["event_id"], "mine");
        assert_eq!(
            cancel("r\"").as_str(),
            r#"{"type":"response.cancel","response_id":"r\""}"#
        );
    }
}
