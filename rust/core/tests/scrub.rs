//! What upstreams say of failures, in every shape, and what becomes of it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::time::{Duration, SystemTime};

use forebay_core::error::{Error, Kind};
use forebay_core::scrub::{Asked, ErrorRules, stream_error, upstream_error, wait};
use forebay_core::snapshot::{ErrorRule, Reason};
use http::{HeaderMap, HeaderName, HeaderValue};

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    list.iter()
        .map(|(name, value)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::try_from(*value).unwrap())
        })
        .collect()
}

fn error(status: u16, body: &str) -> Error {
    ruled(status, &[], body, &[])
}

fn ruled(status: u16, list: &[(&'static str, &str)], body: &str, rules: &[ErrorRule]) -> Error {
    let rules = ErrorRules::compile(rules).unwrap();
    upstream_error(
        status,
        &headers(list),
        body.as_bytes(),
        &rules,
        Asked::default(),
    )
}

fn rule(status: u16, kind: &str) -> ErrorRule {
    ErrorRule {
        status,
        code: None,
        contains: None,
        kind: kind.to_owned(),
        retry: None,
        reason: None,
    }
}

#[test]
fn every_shape_has_its_message_read() {
    for body in [
        r#"{"error":{"message":"no such field","type":"invalid_request_error","param":"n","code":null}}"#,
        r#"{"error":{"message":"no such field","type":"BadRequestError","param":"n","code":400}}"#,
        r#"{"object":"error","message":"no such field","type":"BadRequest","param":"n","code":400}"#,
        r#"{"error":"no such field","error_type":"validation","param":"n"}"#,
        r#"[{"error":{"code":400,"message":"no such field","status":"INVALID_ARGUMENT","param":"n"}}]"#,
        r#"{"detail":[{"loc":["body","n"],"msg":"no such field","type":"missing"}]}"#,
        r#"{"detail":{"message":"no such field","param":"n"}}"#,
        r#"{"errors":[{"message":"no such field"}],"param":"n"}"#,
    ] {
        let found = error(400, body);
        assert_eq!(found.kind, Kind::InvalidRequest, "{body}");
        assert_eq!(found.message, "no such field", "{body}");
        assert_eq!(found.param.as_deref(), Some("n"), "{body}");
    }
    for body in [
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"no such field"},"request_id":"req_1"}"#,
        r#"{"error":{"code":400,"message":"no such field","status":"INVALID_ARGUMENT","details":[]}}"#,
        r#"{"message":"no such field"}"#,
        r#"{"Message":"no such field"}"#,
        r#"{"detail":"no such field"}"#,
        r#""no such field""#,
        "no such field",
        r#"{"error":{"message":"Provider returned error","code":400,"metadata":{"raw":"{\"error\":{\"message\":\"no such field\"}}","provider_name":"X"}}}"#,
    ] {
        assert_eq!(error(400, body).message, "no such field", "{body}");
    }
    for body in [
        "",
        "[]",
        "{}",
        "null",
        "17",
        "<html>502</html>",
        r#"{"error":null}"#,
    ] {
        let found = error(400, body);
        assert_eq!(found.message, "The engine refused the request as invalid.");
    }
}

#[test]
fn plain_text_of_a_proxy_stays_inside() {
    for (status, kind) in [
        (401, Kind::UpstreamError),
        (404, Kind::ModelNotFound),
        (502, Kind::UpstreamError),
        (503, Kind::Unavailable),
    ] {
        let found = error(status, "modal-http: app for ws--label is stopped");
        assert_eq!(found.kind, kind);
        assert!(!found.message.contains("modal"), "{}", found.message);
        assert!(found.elsewhere());
    }
}

#[test]
fn the_name_that_an_upstream_has_for_a_model_stays_inside() {
    let body =
        r#"{"error":{"message":"The model `org/secret` does not exist","code":"model_not_found"}}"#;
    let found = error(404, body);
    assert!(!found.message.contains("secret"));
    assert!(found.elsewhere());
}

#[test]
fn faults_of_our_account_are_tried_elsewhere_and_not_told() {
    for status in [401, 402, 403] {
        let body = r#"{"error":{"message":"Incorrect API key provided: sk-1","code":"x"}}"#;
        let found = error(status, body);
        assert_eq!(found.kind, Kind::UpstreamError);
        assert!(found.elsewhere());
        assert!(!found.message.contains("sk-1"));
        assert_eq!(found.upstream_status, Some(status));
    }
    assert_eq!(error(402, "").reason, Some(Reason::Quota));
}

#[test]
fn a_full_context_is_recognised() {
    for (status, body) in [
        (
            400,
            r#"{"error":{"message":"x","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
        ),
        (
            400,
            r#"{"object":"error","message":"The input (131073 tokens) is longer than the model's context length (131072 tokens).","code":400}"#,
        ),
        (
            400,
            r#"{"object":"error","message":"Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5000 tokens","code":400}"#,
        ),
        (
            400,
            r#"{"error":{"message":"This model's maximum context length is 4096 tokens. However, you requested 5000 tokens","type":"BadRequestError","param":null,"code":400}}"#,
        ),
        (
            422,
            r#"{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 200 `max_new_tokens`","error_type":"validation"}"#,
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}"#,
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"}}"#,
        ),
        (
            400,
            r#"{"error":{"code":400,"message":"The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).","status":"INVALID_ARGUMENT"}}"#,
        ),
        (
            400,
            r#"{"message":"Input is too long for requested model."}"#,
        ),
        (
            403,
            r#"{"error":{"message":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193","type":"invalid_request_error"}}"#,
        ),
        (
            400,
            r#"{"error":{"message":"Provider returned error","code":400,"metadata":{"raw":"{\"error\":{\"message\":\"prompt is too long\"}}"}}}"#,
        ),
        (
            400,
            r#"{"error":{"message":"litellm.ContextWindowExceededError: OpenAIException","type":null,"param":null,"code":"400"}}"#,
        ),
    ] {
        let found = error(status, body);
        assert_eq!(found.reason, Some(Reason::ContextOverflow), "{body}");
        assert_eq!(found.kind, Kind::InvalidRequest, "{body}");
        assert_eq!(found.code.as_deref(), Some("context_length_exceeded"));
        assert!(!found.elsewhere());
        assert!(!found.message.contains("max_new_tokens"));
    }
}

#[test]
fn words_in_a_trace_or_in_the_echoed_input_mean_nothing() {
    let body = r#"{"error":{"message":"assertion failed: maximum context length"}}"#;
    assert_eq!(error(500, body).reason, None);
    let body = r#"{"object":"error","message":"1 validation error:\n {'type': 'x', 'loc': ('body', 'n'), 'msg': 'Input should be valid', 'input': 'maximum context length'}","code":400}"#;
    assert_eq!(error(400, body).reason, None);
}

#[test]
fn a_filter_is_recognised() {
    for (status, body) in [
        (
            400,
            r#"{"error":{"message":"The response was filtered due to the prompt triggering Azure OpenAI's content management policy.","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation","content_filter_result":{}}}}"#,
        ),
        (
            400,
            r#"{"error":{"message":"x","code":"BadRequest","innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
        ),
        (
            400,
            r#"{"error":{"message":"x","code":"content_policy_violation"}}"#,
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"Output blocked by content filtering policy"}}"#,
        ),
        (
            400,
            r#"{"error":{"message":"Invalid prompt: your prompt was flagged as potentially violating our usage policy.","type":"invalid_request_error","param":null,"code":"invalid_prompt"}}"#,
        ),
        (
            403,
            r#"{"error":{"code":403,"message":"Your input was flagged","metadata":{"reasons":["violence"],"flagged_input":"…"}}}"#,
        ),
    ] {
        let found = error(status, body);
        assert_eq!(found.reason, Some(Reason::ContentFilter), "{body}");
        assert_eq!(found.kind, Kind::InvalidRequest);
        assert_eq!(found.code.as_deref(), Some("content_filter"));
    }
}

#[test]
fn a_quota_is_not_a_rate() {
    for (status, body) in [
        (
            429,
            r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
        ),
        (
            429,
            r#"{"error":{"message":"x","type":"insufficient_quota","code":"credit_balance_exhausted"}}"#,
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API."}}"#,
        ),
        (
            429,
            r#"{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}]}}"#,
        ),
        (
            402,
            r#"{"error":{"message":"Insufficient credits","code":402}}"#,
        ),
    ] {
        let found = error(status, body);
        assert_eq!(found.reason, Some(Reason::Quota), "{body}");
        assert_eq!(found.kind, Kind::UpstreamError, "{body}");
        assert!(found.elsewhere());
        assert_eq!(found.should_retry, Some(false));
        assert!(!found.message.to_lowercase().contains("credit"));
    }
    let slow = r#"{"error":{"message":"Rate limit reached","type":"rate_limit_error","code":"rate_limit_exceeded"}}"#;
    // Google says "quota" of a minute, too.
    let minute = r#"{"error":{"code":429,"message":"You exceeded your current quota, please check your plan and billing details.","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerMinutePerProjectPerModel"}]},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"7s"}]}}"#;
    for body in [slow, minute] {
        let found = error(429, body);
        assert_eq!((found.kind, found.reason), (Kind::RateLimited, None));
        assert!(found.elsewhere());
        assert_eq!(found.should_retry, None);
    }
}

#[test]
fn a_model_that_is_being_loaded_is_unavailable() {
    let named = [(
        "x-amzn-errortype",
        "ModelNotReadyException:http://internal.amazon.com/coral/com.amazon.bedrock/",
    )];
    let not_ready = ruled(429, &named, r#"{"message":"Please wait"}"#, &[]);
    let loading = error(
        503,
        r#"{"error":"Model m is currently loading","estimated_time":20.0}"#,
    );
    for found in [not_ready, loading] {
        assert_eq!(found.kind, Kind::Unavailable);
        assert_eq!(found.reason, Some(Reason::Loading));
        assert!(found.elsewhere());
    }
}

#[test]
fn an_upstreams_own_rules_come_first_and_in_order() {
    let rules = [
        ErrorRule {
            contains: Some("No Workers".to_owned()),
            reason: Some(Reason::Loading),
            ..rule(400, "unavailable")
        },
        ErrorRule {
            code: Some("Throttled".to_owned()),
            retry: Some(false),
            ..rule(400, "rate_limited")
        },
        rule(524, "upstream_timeout"),
        rule(400, "internal"),
    ];
    let found = ruled(400, &[], "no workers available", &rules);
    assert_eq!(
        (found.kind, found.reason),
        (Kind::Unavailable, Some(Reason::Loading))
    );
    assert!(found.elsewhere());
    for body in [
        r#"{"error":{"code":"throttled"}}"#,
        r#"{"type":"THROTTLED"}"#,
        r#"{"error":{"status":"Throttled"}}"#,
        r#"{"__type":"com.amazon#Throttled"}"#,
    ] {
        let found = ruled(400, &[], body, &rules);
        assert_eq!(found.kind, Kind::RateLimited, "{body}");
        assert!(!found.elsewhere());
    }
    assert_eq!(ruled(400, &[], "else", &rules).kind, Kind::Internal);
    assert_eq!(
        ruled(401, &[], "no workers", &rules).kind,
        Kind::UpstreamError
    );
    assert!(ErrorRules::compile(&[rule(400, "no_such_kind")]).is_err());
}

#[test]
fn errors_in_a_stream_are_known_by_their_names() {
    for (data, kind) in [
        (
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            Kind::Unavailable,
        ),
        (
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"m"}}"#,
            Kind::InvalidRequest,
        ),
        (
            r#"{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}"#,
            Kind::RateLimited,
        ),
        (
            r#"[{"error":{"status":"UNAVAILABLE","message":"m"}}]"#,
            Kind::Unavailable,
        ),
        (
            r#"{"error":{"message":"m","type":"x","code":"503"}}"#,
            Kind::Unavailable,
        ),
        (
            r#"{"error":"m","error_type":"generation"}"#,
            Kind::UpstreamError,
        ),
        (r#"{"error":{"message":"m"}}"#, Kind::UpstreamError),
        ("nothing", Kind::UpstreamError),
    ] {
        assert_eq!(
            stream_error(data.as_bytes(), Asked::default()).kind,
            kind,
            "{data}"
        );
    }
}

#[test]
fn a_redirect_is_a_fault_and_its_place_a_secret() {
    let list = [("location", "https://other/secret")];
    let found = ruled(303, &list, "see https://other/secret", &[]);
    assert_eq!(found.kind, Kind::UpstreamError);
    assert!(!format!("{found}").contains("secret"));
}

fn waits(status: u16, list: &[(&'static str, &str)], body: &str) -> Option<f64> {
    // 2026-11-26T05:44:39Z.
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_671_879);
    wait(status, &headers(list), body.as_bytes(), Some(now)).map(|wait| wait.as_secs_f64())
}

#[test]
fn waits_are_read_in_every_form() {
    type Headers<'a> = &'a [(&'static str, &'a str)];
    let cases: [(Headers<'_>, Option<f64>); 24] = [
        (&[("retry-after-ms", "1500")], Some(1.5)),
        (
            &[("retry-after-ms", "250"), ("retry-after", "9")],
            Some(0.25),
        ),
        (&[("retry-after", "30")], Some(30.0)),
        (
            &[("retry-after", "Thu, 26 Nov 2026 05:44:49 GMT")],
            Some(10.0),
        ),
        (&[("retry-after", "Thu, 26 Nov 2026 05:44:29 GMT")], None),
        (&[("retry-after", "0")], None),
        (&[("retry-after", "-1")], None),
        (&[("retry-after", "NaN")], None),
        (&[("retry-after", "1e300")], None),
        (&[("retry-after", "86400")], None),
        (&[("retry-after", "soon")], None),
        (&[("x-ratelimit-reset-tokens", "6m0s")], Some(360.0)),
        (&[("x-ratelimit-reset-requests", "120ms")], Some(0.12)),
        (&[("x-ratelimit-reset-requests", "1h2m3.5s")], Some(3723.5)),
        (&[("x-ratelimit-reset", "12")], Some(12.0)),
        (&[("x-ratelimit-reset", "1795671889")], Some(10.0)),
        (&[("x-ratelimit-reset", "1795671889500")], Some(10.5)),
        (
            &[("anthropic-ratelimit-tokens-reset", "2026-11-26T05:45:39Z")],
            Some(60.0),
        ),
        (
            &[(
                "anthropic-ratelimit-tokens-reset",
                "2026-11-26T06:44:49.5+01:00",
            )],
            Some(10.5),
        ),
        (
            &[("anthropic-ratelimit-tokens-reset", "2026-13-26T05:45:39Z")],
            None,
        ),
        // The one that is used up counts, and the last one of several.
        (
            &[
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", "7s"),
                ("x-ratelimit-remaining-tokens", "100"),
                ("x-ratelimit-reset-tokens", "2s"),
            ],
            Some(7.0),
        ),
        (
            &[
                ("anthropic-ratelimit-requests-remaining", "0"),
                ("anthropic-ratelimit-requests-reset", "2026-11-26T05:44:44Z"),
                ("anthropic-ratelimit-input-tokens-remaining", "0"),
                (
                    "anthropic-ratelimit-input-tokens-reset",
                    "2026-11-26T05:44:49Z",
                ),
            ],
            Some(10.0),
        ),
        (
            &[
                ("x-ratelimit-remaining-requests", "-1"),
                ("x-ratelimit-reset-requests", "0"),
                ("x-ratelimit-reset-tokens", "2s"),
            ],
            Some(2.0),
        ),
        (&[], None),
    ];
    for (list, expected) in cases {
        let found = waits(429, list, "");
        let close = match (found, expected) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-6,
            (a, b) => a == b,
        };
        assert!(close, "{list:?}: {found:?}");
    }
    let body = r#"[{"error":{"code":429,"details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"45.837906927s"}]}}]"#;
    assert!(waits(429, &[], body).is_some_and(|wait| (wait - 45.837_906_927).abs() < 1e-6));
    // A reset is on every answer; only of a refusal for it does it say when to come back.
    assert_eq!(
        waits(503, &[("x-ratelimit-reset-tokens", "6m0s")], ""),
        None
    );
}

#[test]
fn dates_count_from_when_the_answer_was_sent() {
    let list = [
        ("retry-after", "Thu, 26 Nov 2026 05:44:49 GMT"),
        ("date", "Thu, 26 Nov 2026 05:44:39 GMT"),
    ];
    let found = ruled(429, &list, "", &[]);
    assert_eq!(found.retry_after, Some(Duration::from_secs(10)));
    assert_eq!(ruled(429, &list[..1], "", &[]).retry_after, None);
}
