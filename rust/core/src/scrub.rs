//! What an upstream says of a failure, turned into what a client may read.
//!
//! Engines answer in many shapes (an envelope, a flat object, a string under `error`, a `detail`,
//! plain text) and quote their own file paths and the client's input. Here the shape is read, the
//! message freed of internals, and the parameter named as the client knows it.
use std::borrow::Cow;
use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Kind};

/// Longest message passed on, in characters.
const MAX_MESSAGE: usize = 1000;

/// What a client sent, so far as a message may name it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// The client used `max_completion_tokens` rather than `max_tokens`.
    pub max_completion_tokens: bool,
}

/// The kind that an upstream's HTTP status stands for.
///
/// Faults of the gateway's own credentials (401, 402, 403) are the upstream's, not the client's.
pub fn kind_of_status(status: u16) -> Kind {
    match status {
        404 => Kind::ModelNotFound,
        413 => Kind::PayloadTooLarge,
        429 => Kind::RateLimited,
        401..=403 => Kind::UpstreamError,
        408 | 504 | 524 => Kind::UpstreamTimeout,
        503 | 529 => Kind::Unavailable,
        400..=499 => Kind::InvalidRequest,
        _ => Kind::UpstreamError,
    }
}

/// An upstream's refusal as our error. `body` may be anything.
pub fn upstream_error(
    status: u16,
    body: &[u8],
    retry_after: Option<Duration>,
    asked: Asked,
) -> Error {
    let kind = kind_of_status(status);
    // Of what a client sent, engines quote where it is at fault: that is for the client alone.
    let cause = match kind {
        Kind::InvalidRequest | Kind::PayloadTooLarge => format!("upstream status {status}"),
        _ => format!("upstream status {status}: {}", excerpt(body)),
    };
    let value = serde_json::from_slice::<Value>(body).ok();
    let mut error = match kind {
        Kind::InvalidRequest | Kind::PayloadTooLarge | Kind::ModelNotFound | Kind::Unavailable => {
            let said = value.as_ref().and_then(message_of);
            let (message, param) = match said {
                Some(message) => client_message(message, asked),
                None => (String::new(), None),
            };
            let message = if message.is_empty() {
                fallback(kind).into()
            } else {
                Cow::Owned(message)
            };
            let mut error = Error::new(kind, message);
            error.param = param
                .or_else(|| {
                    value
                        .as_ref()
                        .and_then(param_of)
                        .map(|p| client_name(p, asked))
                })
                .map(Cow::Owned);
            error
        }
        // What a rate limit or a fault of the upstream says is about our account there.
        _ => Error::new(kind, fallback(kind)),
    };
    if kind == Kind::InvalidRequest
        && let Some(code) = value.as_ref().and_then(code_of)
    {
        error.code = Some(Cow::Owned(code.to_owned()));
    }
    error.retry_after = retry_after;
    error.cause(cause)
}

/// An error event inside a stream that was a 200, as our error.
pub fn stream_error(data: &[u8], asked: Asked) -> Error {
    let status = serde_json::from_slice::<Value>(data)
        .ok()
        .and_then(|value| {
            let code = value.get("error")?.get("code")?.clone();
            code.as_u64().or_else(|| code.as_str()?.parse().ok())
        })
        .and_then(|code| u16::try_from(code).ok())
        .filter(|code| (400..600).contains(code))
        .unwrap_or(502);
    upstream_error(status, data, None, asked)
}

/// A wait hint of an upstream's answer: `retry-after-ms`, or `retry-after` in seconds.
pub fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let read = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = read("retry-after-ms")
        .map(|ms| ms / 1000.0)
        .or_else(|| read("retry-after"))?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|wait| wait.as_secs() < 86_400)
}

/// What is said of a kind where the upstream says nothing that may be shown.
pub(crate) fn fallback(kind: Kind) -> &'static str {
    match kind {
        Kind::InvalidRequest => "The engine refused the request as invalid.",
        Kind::PayloadTooLarge => "The request is too large for the engine.",
        Kind::ModelNotFound => "The engine does not have this model.",
        Kind::RateLimited => "The engine's own rate limit is reached. Please try again later.",
        Kind::Unavailable => "The engine cannot take the request now. Please try again later.",
        Kind::UpstreamTimeout => "The engine did not answer in time.",
        _ => "The engine failed to answer the request.",
    }
}

fn message_of(value: &Value) -> Option<&str> {
    let value = value
        .as_array()
        .and_then(|list| list.first())
        .unwrap_or(value);
    match value.get("error") {
        Some(Value::String(text)) => return Some(text),
        Some(Value::Object(inner)) => {
            if let Some(Value::String(text)) = inner.get("message") {
                return Some(text);
            }
        }
        _ => {}
    }
    ["message", "detail"]
        .iter()
        .find_map(|field| value.get(*field)?.as_str())
}

fn param_of(value: &Value) -> Option<&str> {
    value
        .get("error")
        .and_then(|inner| inner.get("param"))
        .or_else(|| value.get("param"))?
        .as_str()
}

fn code_of(value: &Value) -> Option<&str> {
    let code = value
        .get("error")
        .and_then(|inner| inner.get("code"))?
        .as_str()?;
    let plain = !code.is_empty()
        && code.len() <= 64
        && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    plain.then_some(code)
}

/// A message freed of internals, and the parameter it names.
fn client_message(message: &str, asked: Asked) -> (String, Option<String>) {
    if let Some((text, param)) = validation(message) {
        return (scrub(&text, asked), param.map(|p| client_name(&p, asked)));
    }
    (scrub(message, asked), None)
}

/// SGLang's schema errors (`N validation error: {'loc': (…), 'msg': '…'} … File "…"`): the first
/// one's place and reason, without the server's file and the echoed input.
fn validation(message: &str) -> Option<(String, Option<String>)> {
    if !message.contains(" validation error") {
        return None;
    }
    let reason = quoted_after(message, "'msg': ")?;
    let reason = reason
        .strip_prefix("Value error, ")
        .unwrap_or(&reason)
        .to_owned();
    let place = location(message);
    let text = match &place {
        Some(place) => format!("{place}: {reason}"),
        None => reason,
    };
    Some((text, place))
}

/// `'loc': ('body', 'messages', 0, 'role')` as `messages[0].role`. Pydantic's inner validator
/// names (`function-after[…]`, union members) are not part of a client's path.
fn location(message: &str) -> Option<String> {
    let rest = message.split_once("'loc': (")?.1;
    let list = rest.split_once(')').map_or(rest, |(list, _)| list);
    let mut path = String::new();
    for (index, part) in list.split(", ").enumerate() {
        let part = part.trim_end_matches(',');
        let name = part.trim_matches('\'');
        if index == 0 && name == "body" {
            continue;
        }
        if part.starts_with('\'') {
            if !name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            {
                // The list is cut at the first ')' inside a validator's name: stop there.
                break;
            }
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        } else if name.bytes().all(|b| b.is_ascii_digit()) && !path.is_empty() && !name.is_empty() {
            path.push('[');
            path.push_str(name);
            path.push(']');
        }
    }
    (!path.is_empty()).then_some(path)
}

/// The Python string literal that follows `marker`.
fn quoted_after(text: &str, marker: &str) -> Option<String> {
    let rest = text.split_once(marker)?.1;
    let mut chars = rest.chars();
    let quote = chars.next().filter(|c| *c == '\'' || *c == '"')?;
    let mut out = String::new();
    let mut escaped = false;
    for c in chars {
        match c {
            _ if escaped => {
                out.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            c if c == quote => return Some(out),
            c => out.push(c),
        }
    }
    None
}

fn client_name(param: &str, asked: Asked) -> String {
    match param {
        "max_new_tokens" if asked.max_completion_tokens => "max_completion_tokens".to_owned(),
        "max_new_tokens" => "max_tokens".to_owned(),
        other => other.to_owned(),
    }
}

/// Removes file paths, addresses and stack frames; renames engine parameters; bounds the length.
pub fn scrub(message: &str, asked: Asked) -> String {
    let head = [
        "\n\n  File \"",
        "\n  File \"",
        "Traceback (most recent call last)",
    ]
    .iter()
    .filter_map(|marker| message.find(marker))
    .min()
    .map_or(message, |at| message.get(..at).unwrap_or(message));
    let mut out = String::with_capacity(head.len());
    for word in head.split_inclusive(char::is_whitespace) {
        let bare = word.trim_matches(|c: char| !(c.is_alphanumeric() || c == '/' || c == '_'));
        if bare.split(is_quote).any(is_internal) {
            out.push_str(&word.replace(bare, "[redacted]"));
        } else if bare.contains("max_new_tokens") {
            out.push_str(&word.replace("max_new_tokens", &client_name("max_new_tokens", asked)));
        } else {
            out.push_str(word);
        }
        if out.len() > MAX_MESSAGE * 4 {
            break;
        }
    }
    out.trim().chars().take(MAX_MESSAGE).collect()
}

/// What may stand around an address in an engine's message: `HTTPConnectionPool(host='10.0.0.5',`.
fn is_quote(c: char) -> bool {
    matches!(c, '\'' | '"' | '`' | '(' | ')' | '<' | '>' | '=' | ',')
}

/// A path of the server, a URL, or an address with a port.
fn is_internal(word: &str) -> bool {
    let path = word.starts_with('/')
        && word.get(1..).is_some_and(|rest| rest.contains('/'))
        && !word.starts_with("/v1/");
    let address = word.rsplit_once(':').is_some_and(|(host, port)| {
        !port.is_empty()
            && port.bytes().all(|b| b.is_ascii_digit())
            && (host.parse::<std::net::IpAddr>().is_ok()
                || host.contains('.')
                || host == "localhost")
    });
    path || word.contains("://") || address || word.parse::<std::net::IpAddr>().is_ok()
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body.get(..400).unwrap_or(body)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, body: &str) -> Error {
        upstream_error(status, body.as_bytes(), None, Asked::default())
    }

    #[test]
    fn the_cause_quotes_what_is_the_engines_fault_alone() {
        for (status, cause) in [
            (400, "upstream status 400"),
            (413, "upstream status 413"),
            (500, r#"upstream status 500: {"error": "what was asked"}"#),
        ] {
            let found = error(status, r#"{"error": "what was asked"}"#);
            assert_eq!(found.cause.as_deref(), Some(cause));
        }
    }

    #[test]
    fn sglang_schema_errors_name_the_field_and_lose_the_path() {
        let body = r#"{"object":"error","message":"1 validation error:\n  {'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required', 'input': {'model': 'tiny'}}\n\n  File \"/opt/env/lib/http_server.py\", line 1870, in f\n","type":"Bad Request","param":null,"code":400}"#;
        let error = error(400, body);
        assert_eq!(error.message, "messages: Field required");
        assert_eq!(error.param.as_deref(), Some("messages"));
        assert_eq!(error.kind, Kind::InvalidRequest);
    }

    #[test]
    fn nested_locations_keep_the_clients_path() {
        let body = r#"{"object":"error","message":"2 validation errors:\n  {'type': 'value_error', 'loc': ('body', 'messages', 0, 'function-after[validate(), X]', 'role'), 'msg': \"Value error, 'role' must be one of 'system'.\", 'input': 'bogus'}","code":400}"#;
        let error = error(400, body);
        assert_eq!(
            error.message,
            "messages[0]: 'role' must be one of 'system'."
        );
        assert_eq!(error.param.as_deref(), Some("messages[0]"));
    }

    #[test]
    fn addresses_are_taken_out_wherever_they_stand() {
        for text in [
            "HTTPConnectionPool(host='10.0.0.5', port=1) failed",
            "see url=http://gpu-a:30000/generate",
            "at (10.0.0.5:30000)",
            "from gpu-a.internal:30000.",
            "open('/opt/engine/model.py')",
            "<fe80::1>",
        ] {
            let clean = scrub(text, Asked::default());
            assert!(clean.contains("[redacted]"), "{clean}");
            for secret in ["10.0.0.5", "gpu-a", "/opt", "fe80"] {
                assert!(!clean.contains(secret), "{clean}");
            }
        }
        for text in ["'role' must be one of 'system', 'user'", "a/b or c=d: 3"] {
            assert_eq!(scrub(text, Asked::default()), text);
        }
    }

    #[test]
    fn parameters_are_named_as_the_client_sent_them() {
        let body = r#"{"object":"error","message":"max_new_tokens must be at least 0, got -1.","code":400}"#;
        assert_eq!(
            error(400, body).message,
            "max_tokens must be at least 0, got -1."
        );
        let asked = Asked {
            max_completion_tokens: true,
        };
        let error = upstream_error(400, body.as_bytes(), None, asked);
        assert_eq!(
            error.message,
            "max_completion_tokens must be at least 0, got -1."
        );
    }

    #[test]
    fn our_credentials_are_not_the_clients_fault() {
        let error = error(401, r#"{"error":"Unauthorized"}"#);
        assert_eq!(error.kind, Kind::UpstreamError);
        assert!(!error.message.contains("Unauthorized"));
    }

    #[test]
    fn addresses_and_paths_go() {
        let text = scrub(
            "cannot reach http://10.0.0.5:30000/x or /opt/a/b.py at 10.0.0.5:30000",
            Asked::default(),
        );
        assert!(
            !text.contains("10.0.0.5") && !text.contains("/opt"),
            "{text}"
        );
    }

    #[test]
    fn any_body_has_an_answer() {
        for body in [
            "",
            "oops",
            "[]",
            "[{\"error\":{\"message\":\"m\"}}]",
            "{\"detail\":\"x\"}",
            "\"s\"",
            "{\"error\":null}",
        ] {
            assert!(!error(400, body).message.is_empty());
            assert_eq!(error(500, body).kind, Kind::UpstreamError);
        }
    }

    #[test]
    fn stream_errors_take_their_code() {
        let data = br#"{"error": {"object": "error", "message": "The request queue is full.", "type": "X", "param": null, "code": 503}}"#;
        let error = stream_error(data, Asked::default());
        assert_eq!(error.kind, Kind::Unavailable);
        assert_eq!(error.message, "The request queue is full.");
        assert_eq!(
            stream_error(b"{\"error\":1}", Asked::default()).kind,
            Kind::UpstreamError
        );
    }
}
