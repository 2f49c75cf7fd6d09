//! What a request's usage event says: tokens, tags, times.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use bytes::Bytes;
use forebay_core::gateway::{Endpoint, Request};
use support::engine::{Engine, Step, UNARY, unary};
use support::{Answer, KEY, Rig, Setup, chat};

/// What the engine did not count is estimated and marked; what it did is believed, zero too.
#[tokio::test]
async fn missing_usage_is_never_a_silent_zero() {
    let text = "word ".repeat(200);
    let bare = |usage: &str| {
        format!(
            "{{\"choices\":[{{\"index\":0,\"message\":{{\"content\":\"{text}\"}},\"finish_reason\":\"stop\"}}]{usage}}}"
        )
    };
    let cases = [
        (bare(""), "estimated", 50..200),
        (bare(",\"usage\":null"), "estimated", 50..200),
        (
            bare(",\"usage\":{\"total_tokens\":5}"),
            "estimated",
            50..200,
        ),
        (
            bare(",\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0}"),
            "reported",
            0..1,
        ),
    ];
    for (body, source, completion) in cases {
        let engine = Engine::always(vec![Step::Send(unary("200 OK", &body))]).await;
        let rig = Rig::new(Setup::default(), &[&engine]);
        assert_eq!(rig.chat(false).await.status, 200);
        let event = rig.event().await;
        assert_eq!(event.source, source, "{body}");
        assert!(completion.contains(&event.usage.completion), "{event:?}");
        assert_eq!(event.usage.prompt > 0, source == "estimated");
    }
    // An answer that cannot be read was made all the same.
    let broken = bare("").replace("]}", "");
    let engine = Engine::always(vec![Step::Send(unary("200 OK", &broken))]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    assert_eq!(rig.chat(false).await.status, 502);
    let event = rig.event().await;
    assert_eq!((event.outcome, event.source), ("error", "estimated"));
    assert!(event.usage.completion > 50 && event.usage.prompt > 0);
    // An error in disguise was not.
    let disguised = "{\"error\":{\"message\":\"no\"}}";
    let engine = Engine::always(vec![Step::Send(unary("200 OK", disguised))]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    assert_ne!(rig.chat(false).await.status, 200);
    assert_eq!(rig.event().await.usage.total(), 0);
}

#[tokio::test]
async fn tags_are_kept_and_go_nowhere() {
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let authorization = format!("Bearer {}", support::key_text(KEY));
    let admit = |tags: &str| {
        let request = Request {
            authorization: Some(authorization.as_bytes()),
            tags: Some(tags.as_bytes()),
            ..Request::default()
        };
        let body = Bytes::from(chat(false));
        rig.gateway.admit(Endpoint::Chat, request, body)
    };
    let answer = Answer::of(&admit("team=search, env=prod")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-forebay-tags"), None);
    assert!(!engine.requests()[0].head.contains("tags"));
    let event = rig.event().await;
    assert_eq!(
        event.tags.as_deref(),
        Some(r#"{"team":"search","env":"prod"}"#)
    );
    let refused = Answer::of(&admit("team")).await;
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("\"param\":\"x-forebay-tags\""));
    rig.events(0).await;
}

#[tokio::test]
async fn an_event_s_id_tells_when_it_was_admitted() {
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    for _ in 0..20 {
        rig.chat(false).await;
    }
    let events = rig.events(20).await;
    for event in &events {
        let millis = event.event_id[..6]
            .iter()
            .fold(0_i64, |sum, byte| sum << 8 | i64::from(*byte));
        assert_eq!(millis, event.admitted_us / 1000);
        assert!(event.first_byte_us.unwrap() >= event.admitted_us);
        assert!(event.ended_us >= event.first_byte_us.unwrap());
    }
    assert!(events.is_sorted_by_key(|event| event.event_id));
}
