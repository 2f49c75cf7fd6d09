//! Headers: what is read of a request's, what an upstream gets, what an answer carries.
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::gateway::Request;
use crate::limit::MeterState;
use crate::slot::{Headers, header_text};

/// The token of `Authorization: Bearer …` (RFC 6750 §2.1).
pub(crate) fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// `x-request-id` of an answer outside of any exchange.
pub fn fresh_request_id(asked: Option<&[u8]>) -> (HeaderName, HeaderValue) {
    request_id_header(asked, &uuid::Uuid::now_v7())
}

/// `x-request-id` of an answer: the client's own if it may be kept, else one made of `id`.
pub(crate) fn request_id_header(
    asked: Option<&[u8]>,
    id: &uuid::Uuid,
) -> (HeaderName, HeaderValue) {
    (
        HeaderName::from_static("x-request-id"),
        header_text(request_id(asked, id)),
    )
}

/// A client's id is kept when it is 1–128 characters of `[A-Za-z0-9._-]`, else replaced.
fn request_id(asked: Option<&[u8]>, id: &uuid::Uuid) -> String {
    asked
        .filter(|text| (1..=128).contains(&text.len()))
        .filter(|text| {
            text.iter()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
        })
        .and_then(|text| String::from_utf8(text.to_vec()).ok())
        .unwrap_or_else(|| format!("req_{}", id.simple()))
}

/// `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, as OpenAI writes them.
pub(crate) fn rate_headers(fill: &MeterState, out: &mut Headers) {
    const NAMES: [[&str; 3]; 2] = [
        [
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
        ],
        [
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
        ],
    ];
    for (state, [limit, remaining, reset]) in [&fill.requests, &fill.tokens].into_iter().zip(NAMES)
    {
        if let Some(state) = state {
            out.push((
                HeaderName::from_static(limit),
                HeaderValue::from(state.limit),
            ));
            out.push((
                HeaderName::from_static(remaining),
                HeaderValue::from(state.remaining),
            ));
            out.push((
                HeaderName::from_static(reset),
                header_text(duration(Duration::from_nanos(state.reset))),
            ));
        }
    }
}

/// A duration as OpenAI writes it: `17ms`, `1s`, `6m0s`. Rounded up, so that it is never too short.
pub fn duration(wait: Duration) -> String {
    let millis = wait.as_nanos().div_ceil(1_000_000);
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let seconds = millis.div_ceil(1000);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

/// The inverse of [`duration`].
pub(crate) fn wait(text: &str) -> Option<Duration> {
    if let Some(millis) = text.strip_suffix("ms") {
        return millis.parse().ok().map(Duration::from_millis);
    }
    let mut seconds = 0_u64;
    let mut rest = text;
    for (unit, length) in [('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((number, after)) = rest.split_once(unit) {
            let part = number.parse::<u64>().ok()?.checked_mul(length)?;
            seconds = seconds.checked_add(part)?;
            rest = after;
        }
    }
    (rest.is_empty() && !text.is_empty()).then(|| Duration::from_secs(seconds))
}

/// The headers that go on to an upstream: the trace, if it is one, and the request id.
pub(crate) fn upstream_headers(request: &Request<'_>, answer_headers: &Headers) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    let mut set = |name: &'static str, value: Option<&[u8]>| {
        if let Some(value) = value.and_then(|value| HeaderValue::from_bytes(value).ok()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    if let Some(trace) = request.traceparent.filter(|trace| is_traceparent(trace)) {
        set("traceparent", Some(trace));
        set("tracestate", request.tracestate);
    }
    set(
        "x-request-id",
        answer_headers.first().map(|(_, id)| id.as_bytes()),
    );
    headers
}

/// W3C Trace Context §3.2: `00-{32 hex}-{16 hex}-{2 hex}` in lower case, ids not all zero.
pub(crate) fn is_traceparent(value: &[u8]) -> bool {
    let mut fields = value.split(|b| *b == b'-');
    let mut hex = |len: usize| {
        fields.next().filter(|f| {
            f.len() == len
                && f.iter()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
        })
    };
    let (Some(version), Some(trace), Some(parent), Some(_)) = (hex(2), hex(32), hex(16), hex(2))
    else {
        return false;
    };
    version != b"ff"
        && trace.iter().any(|b| *b != b'0')
        && parent.iter().any(|b| *b != b'0')
        && (version != b"00" || value.len() == 55)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_does() {
        for (nanos, text) in [
            (1, "1ms"),
            (17_000_000, "17ms"),
            (1_000_000_000, "1s"),
            (360_000_000_000, "6m0s"),
            (3_661_000_000_000, "1h1m1s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), text);
        }
        assert_eq!(duration(Duration::ZERO), "0ms");
        for text in ["1ms", "17ms", "1s", "6m0s", "1h1m1s"] {
            assert_eq!(wait(text).map(duration).as_deref(), Some(text));
        }
        assert_eq!((wait(""), wait("x"), wait("1d")), (None, None, None));
    }

    #[test]
    fn traceparent_is_checked() {
        assert!(is_traceparent(
            b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        ));
        for bad in [
            &b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"[..],
            b"00-00000000000000000000000000000000-b7ad6b7169203331-01",
            b"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            b"",
        ] {
            assert!(!is_traceparent(bad));
        }
    }

    #[test]
    fn request_ids_are_kept_or_replaced() {
        let id = uuid::Uuid::nil();
        assert_eq!(request_id(Some(b"a.B-_9"), &id), "a.B-_9");
        assert!(request_id(Some(b"a b"), &id).starts_with("req_"));
        assert!(request_id(Some(&[b'a'; 129]), &id).starts_with("req_"));
    }
}
