//! An error as gRPC tells it: a status, and `google.rpc.Status` with details.
//!
//! Source: google/rpc/{status,error_details}.proto, AIP-193. Goes out as the trailing metadata
//! `grpc-status-details-bin`.
use std::convert::Infallible;
use std::time::Duration;

use http::HeaderName;

use crate::error::{Error, Kind};
use crate::slot::{Headers, header_text};

use super::wire::{put_bytes, put_nested, put_uint};

/// Whose reasons those of `ErrorInfo` are.
pub const DOMAIN: &str = "forebay.dev";

/// What `unavailable` waits where nothing better is known; as HTTP's `retry-after`.
const WAIT: Duration = Duration::from_secs(1);

/// Longest text of an error in a detail: trailers have 8 KiB at most clients, message included.
const MAX_TEXT: usize = 1024;

/// The status code, its message, and the bytes of a `google.rpc.Status`.
///
/// Details: `ErrorInfo` always (reason: [`Kind::name`] in capitals; metadata: `type`, `code` and `param`
/// as in OpenAI's errors, `retry` where SDKs should not); `RetryInfo` where waiting helps; `BadRequest`
/// where a field is at fault; `QuotaFailure` where a limit or a budget is used up (subject: whose,
/// `account`, `key`, `model` or `key_model`); `RequestInfo`.
pub fn status_details(error: &Error, request_id: &str) -> (i32, String, Vec<u8>) {
    let code = error.kind.grpc_code();
    let message = shortened(&error.message);
    let mut out = Vec::with_capacity(256);
    put_uint(1, code as u64, &mut out);
    put_bytes(2, message.as_bytes(), &mut out);
    detail("ErrorInfo", &mut out, |out| info(error, out));
    if let Some(wait) = wait(error) {
        detail("RetryInfo", &mut out, |out| {
            nested(1, out, |out| duration(wait, out));
        });
    }
    if let (Kind::InvalidRequest, Some(param)) = (error.kind, &error.param) {
        detail("BadRequest", &mut out, |out| {
            nested(1, out, |out| {
                put_bytes(1, shortened(param).as_bytes(), out);
                put_bytes(2, message.as_bytes(), out);
            });
        });
    }
    if matches!(error.kind, Kind::RateLimited | Kind::BudgetExhausted) {
        detail("QuotaFailure", &mut out, |out| {
            nested(1, out, |out| {
                if let Some(scope) = error.quota {
                    put_bytes(1, scope.as_str().as_bytes(), out);
                }
                put_bytes(2, message.as_bytes(), out);
            });
        });
    }
    if !request_id.is_empty() {
        detail("RequestInfo", &mut out, |out| {
            put_bytes(1, request_id.as_bytes(), out);
        });
    }
    (code, message.to_owned(), out)
}

/// What trailing metadata say of an error besides its status: when to come back.
pub(in super::super) fn error_metadata(error: &Error) -> Headers {
    error
        .headers()
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), header_text(value)))
        .collect()
}

fn info(error: &Error, out: &mut Vec<u8>) {
    put_bytes(1, error.kind.name().to_ascii_uppercase().as_bytes(), out);
    put_bytes(2, DOMAIN.as_bytes(), out);
    let code = error.code.as_deref().or(error.kind.openai_code());
    let never = error
        .should_retry
        .or((error.kind == Kind::BudgetExhausted).then_some(false));
    for (key, value) in [
        ("type", Some(error.kind.openai_type())),
        ("code", code),
        ("param", error.param.as_deref()),
        (
            "retry",
            never.map(|retry| if retry { "true" } else { "false" }),
        ),
    ] {
        let Some(value) = value else { continue };
        nested(3, out, |out| {
            put_bytes(1, key.as_bytes(), out);
            put_bytes(2, shortened(value).as_bytes(), out);
        });
    }
}

/// How long to wait, where that helps.
fn wait(error: &Error) -> Option<Duration> {
    error
        .retry_after
        .or((error.kind == Kind::Unavailable).then_some(WAIT))
        .filter(|_| error.should_retry != Some(false))
}

/// `google.protobuf.Duration`.
fn duration(wait: Duration, out: &mut Vec<u8>) {
    if wait.as_secs() > 0 {
        put_uint(1, wait.as_secs(), out);
    }
    if wait.subsec_nanos() > 0 {
        put_uint(2, u64::from(wait.subsec_nanos()), out);
    }
}

/// A `google.protobuf.Any` among the status's details.
fn detail(name: &str, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    nested(3, out, |out| {
        let url = format!("type.googleapis.com/google.rpc.{name}");
        put_bytes(1, url.as_bytes(), out);
        nested(2, out, fill);
    });
}

fn nested(number: u32, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let fill = |out: &mut Vec<u8>| -> Result<(), Infallible> {
        fill(out);
        Ok(())
    };
    let Ok(()) = put_nested(number, out, fill);
}

/// The text up to a bound, whole characters.
fn shortened(text: &str) -> &str {
    if text.len() <= MAX_TEXT {
        return text;
    }
    let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}
