//! An upstream's refusal as our error.
use std::borrow::Cow;

use http::HeaderMap;

use crate::error::{Error, Kind};
use crate::snapshot::Reason;

use super::message::{client_message, client_name};
use super::rules::{ErrorRules, Verdict};
use super::said::Said;
use super::{Asked, reason, wait};

/// The kind that an upstream's HTTP status stands for.
///
/// Faults of the gateway's own credentials, account, method and path (401 to 403, 405 to 407) are
/// the upstream's, not the client's.
pub fn kind_of_status(status: u16) -> Kind {
    match status {
        404 | 410 => Kind::ModelNotFound,
        413 => Kind::PayloadTooLarge,
        429 => Kind::RateLimited,
        408 | 504 | 524 => Kind::UpstreamTimeout,
        503 | 529 => Kind::Unavailable,
        401..=403 | 405..=407 | 409 | 412 | 421 | 423..=425 | 499 => Kind::UpstreamError,
        400..=499 => Kind::InvalidRequest,
        _ => Kind::UpstreamError,
    }
}

/// What the names of errors stand for that come without a status, as in a stream: Anthropic's,
/// Google's, AWS's, OpenAI's, SGLang's and vLLM's.
fn status_of_name(name: &str) -> Option<u16> {
    Some(match name.to_ascii_lowercase().as_str() {
        "invalid_request_error"
        | "invalid_argument"
        | "failed_precondition"
        | "validationexception"
        | "badrequesterror"
        | "bad request"
        | "context_length_exceeded"
        | "content_filter"
        | "validation" => 400,
        "authentication_error" | "unauthenticated" => 401,
        "billing_error" => 402,
        "permission_error" | "permission_denied" | "accessdeniedexception" => 403,
        "not_found_error" | "not_found" | "resourcenotfoundexception" | "notfounderror" => 404,
        "request_too_large" => 413,
        "modelerrorexception" | "modelstreamerrorexception" | "generation" => 424,
        "rate_limit_error"
        | "rate_limit_exceeded"
        | "resource_exhausted"
        | "throttlingexception"
        | "modelnotreadyexception"
        | "insufficient_quota" => 429,
        "unavailable" | "serviceunavailableexception" | "service_unavailable_error" => 503,
        "deadline_exceeded" | "timeout_error" | "modeltimeoutexception" => 504,
        "overloaded_error" | "overloaded" | "server_is_overloaded" => 529,
        _ => return None,
    })
}

/// An upstream's refusal as our error. `body` may be anything. Dates in the headers count from
/// when the answer was sent, by its own `date`.
pub fn upstream_error(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    rules: &ErrorRules,
    asked: Asked,
) -> Error {
    let said = Said::parse(headers, body);
    let mut error = judged(status, &said, rules, asked);
    error.retry_after = wait::hint(status, headers, &said, wait::sent_at(headers));
    error
}

/// An error event inside a stream that was a 200, or an error in place of an answer.
pub fn stream_error(data: &[u8], asked: Asked) -> Error {
    let headers = HeaderMap::new();
    let said = Said::parse(&headers, data);
    let status = said
        .codes()
        .filter_map(|code| code.parse().ok())
        .find(|code| (400..600).contains(code))
        .or_else(|| said.codes().find_map(status_of_name))
        .unwrap_or(502);
    let mut error = judged(status, &said, &ErrorRules::default(), asked);
    error.retry_after = wait::hint(status, &headers, &said, None);
    error
}

fn judged(status: u16, said: &Said<'_>, rules: &ErrorRules, asked: Asked) -> Error {
    let verdict = rules
        .find(status, said)
        .unwrap_or_else(|| usual(status, said));
    let kind = verdict.kind;
    // Of what a client sent, engines quote where it is at fault: that is for the client alone. A
    // redirect's body names a place that may be a secret.
    let cause = match kind {
        Kind::InvalidRequest | Kind::PayloadTooLarge => format!("upstream status {status}"),
        _ if (300..400).contains(&status) => format!("upstream status {status}"),
        _ => format!("upstream status {status}: {}", said.excerpt()),
    };
    let mut error = Error::new(kind, fallback(kind, verdict.reason));
    if tells(kind, said.structured)
        && let Some(message) = &said.message
    {
        let (message, param) = client_message(message, asked);
        if !message.is_empty() {
            error.message = Cow::Owned(message);
        }
        let param = param.or_else(|| {
            let param = said.param.as_deref().filter(|param| param.len() <= 256)?;
            Some(client_name(param, asked))
        });
        error.param = param.map(Cow::Owned);
    }
    if kind == Kind::InvalidRequest {
        error.code = match verdict.reason {
            Some(Reason::ContextOverflow) => Some(Cow::Borrowed("context_length_exceeded")),
            Some(Reason::ContentFilter) => Some(Cow::Borrowed("content_filter")),
            _ => said
                .code
                .clone()
                .filter(|code| is_plain(code))
                .map(Cow::Owned),
        };
    }
    error.reason = verdict.reason;
    error.sibling = verdict.retry.or_else(|| sibling(kind, verdict.reason));
    error.upstream_status = Some(status);
    if verdict.reason == Some(Reason::Quota) {
        // Our account there is used up, which no wait of the client's cures.
        error.should_retry = Some(false);
    }
    error.cause(cause)
}

/// What an answer means that no rule is about.
fn usual(status: u16, said: &Said<'_>) -> Verdict {
    let by_status = kind_of_status(status);
    let reason = reason::detect(said, status);
    let kind = match reason {
        Some(Reason::ContextOverflow | Reason::ContentFilter) => Kind::InvalidRequest,
        Some(Reason::Loading) => Kind::Unavailable,
        Some(Reason::Quota) => Kind::UpstreamError,
        None => by_status,
    };
    Verdict {
        kind,
        retry: None,
        reason,
    }
}

/// Where another target may do better though the kind does not say so: it may have the model, room,
/// or credit.
fn sibling(kind: Kind, reason: Option<Reason>) -> Option<bool> {
    match (kind, reason) {
        (Kind::ModelNotFound | Kind::RateLimited, _) | (_, Some(Reason::Quota)) => Some(true),
        _ => None,
    }
}

/// Whether the client may read what the upstream says. What rate limits, credentials and faults of
/// an upstream say is about our account there; of a model that it lacks it says its own name for
/// it; and plain text is often a proxy's.
fn tells(kind: Kind, structured: bool) -> bool {
    match kind {
        Kind::InvalidRequest | Kind::PayloadTooLarge => true,
        Kind::Unavailable => structured,
        _ => false,
    }
}

fn is_plain(code: &str) -> bool {
    !code.is_empty()
        && code.len() <= 64
        && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// What is said of a kind where the upstream says nothing that may be shown.
pub(crate) fn fallback(kind: Kind, reason: Option<Reason>) -> &'static str {
    match (kind, reason) {
        (Kind::InvalidRequest, Some(Reason::ContextOverflow)) => {
            "The request does not fit into the model's context."
        }
        (Kind::InvalidRequest, Some(Reason::ContentFilter)) => {
            "The request was refused by a content filter."
        }
        (Kind::Unavailable, Some(Reason::Loading)) => {
            "The model is being loaded. Please try again later."
        }
        (Kind::InvalidRequest, _) => "The engine refused the request as invalid.",
        (Kind::PayloadTooLarge, _) => "The request is too large for the engine.",
        (Kind::ModelNotFound, _) => "The engine does not have this model.",
        (Kind::RateLimited, _) => "The engine's own rate limit is reached. Please try again later.",
        (Kind::Unavailable, _) => "The engine cannot take the request now. Please try again later.",
        (Kind::UpstreamTimeout, _) => "The engine did not answer in time.",
        _ => "The engine failed to answer the request.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, body: &str) -> Error {
        upstream_error(
            status,
            &HeaderMap::new(),
            body.as_bytes(),
            &ErrorRules::default(),
            Asked::default(),
        )
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
    fn parameters_are_named_as_the_client_sent_them() {
        let body = r#"{"object":"error","message":"max_new_tokens must be at least 0, got -1.","code":400}"#;
        assert_eq!(
            error(400, body).message,
            "max_tokens must be at least 0, got -1."
        );
        let asked = Asked {
            max_completion_tokens: true,
        };
        let error = upstream_error(
            400,
            &HeaderMap::new(),
            body.as_bytes(),
            &ErrorRules::default(),
            asked,
        );
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
