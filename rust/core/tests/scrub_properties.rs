//! Whatever an upstream says of a failure, it can be shown, and its waits are bounded.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::time::{Duration, SystemTime};

use forebay_core::scrub::{Asked, ErrorRules, stream_error, upstream_error, wait};
use forebay_core::snapshot::ErrorRule;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

/// Pieces that reach the parsers' corners, between anything else.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[0-9]{1,25}",
        4 => prop::sample::select(vec![
            "s", "ms", "m", "h", "d", "µs", ".", "-", "+", ":", "T", "Z", "e9", "inf", "NaN", " ",
            "2026-02-30T23:59:60Z", "9999-12-31T23:59:59-23:59", "1970-01-01T00:00:00+00:01",
            "Thu, 26 Nov 2026 05:44:49 GMT",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,4}",
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\",
        "'",
        "(",
        ")",
        "null",
        "0",
        "400",
        "'loc': (",
        "\"error\":",
        "\"message\":",
        "\"detail\":",
        "\"code\":",
        "\"details\":",
        "\"loc\":",
        "\"retryDelay\":\"",
        "\"metadata\":{\"raw\":",
        "1 validation error",
        "'msg': ",
        "é",
        "File \"",
    ]);
    let pieces = prop::collection::vec(piece, 0..24).prop_map(|list| list.concat().into_bytes());
    let value = any::<u8>().prop_map(|byte| vec![byte]);
    prop_oneof![
        2 => pieces,
        1 => prop::collection::vec(value, 0..64).prop_map(|list| list.concat()),
        2 => json(4).prop_map(|value| value.to_string().into_bytes()),
    ]
}

fn json(depth: u32) -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<i64>().prop_map(Into::into),
        text().prop_map(Into::into),
    ];
    leaf.prop_recursive(depth, 32, 4, |inner| {
        let name = prop::sample::select(vec![
            "error",
            "errors",
            "message",
            "detail",
            "details",
            "code",
            "type",
            "status",
            "param",
            "innererror",
            "metadata",
            "raw",
            "loc",
            "msg",
            "violations",
            "quotaId",
            "retryDelay",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec((name, inner), 0..5).prop_map(|list| {
                let members = list
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value));
                serde_json::Value::Object(members.collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_comes_is_an_error_that_can_be_shown(
        status in 100_u16..1000,
        body in body(),
        values in prop::collection::vec(text(), 6),
    ) {
        let names = [
            "retry-after", "retry-after-ms", "date", "x-ratelimit-reset-tokens",
            "x-ratelimit-remaining-tokens", "anthropic-ratelimit-requests-reset",
        ];
        let list: HeaderMap = names
            .iter()
            .zip(&values)
            .filter_map(|(name, value)| {
                Some((HeaderName::from_static(name), HeaderValue::try_from(value).ok()?))
            })
            .collect();
        let rules = ErrorRules::compile(&[ErrorRule {
            contains: Some("é".to_owned()),
            status: 400,
            kind: "unavailable".to_owned(),
            code: None,
            retry: None,
            reason: None,
        }])
        .unwrap();
        let found = upstream_error(status, &list, &body, &rules, Asked::default());
        prop_assert!(!found.message.is_empty());
        prop_assert!(found.message.chars().count() <= 1000);
        prop_assert!(found.retry_after.is_none_or(|wait| wait < Duration::from_secs(86_400)));
        prop_assert!(serde_json::from_slice::<serde_json::Value>(&found.openai_body()).is_ok());
        let found = stream_error(&body, Asked::default());
        prop_assert!(!found.message.is_empty());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_671_879);
        for now in [None, Some(now), Some(SystemTime::UNIX_EPOCH)] {
            let found = wait(status, &list, &body, now);
            prop_assert!(found.is_none_or(|wait| !wait.is_zero()));
        }
    }
}
