//! Streams whose engine dies after the first token: another one goes on, or the client is told.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use forebay_core::gateway::Endpoint;
use forebay_core::price::PriceSpec;
use serde_json::json;
use support::engine::{
    DONE, Engine, FINISH, LAST_CHUNK, STREAM_HEAD, Step, USAGE, chunk, content, unary,
    whole_stream_shown,
};
use support::{Answer, Rig, Setup, chat, until, within};

fn events(pieces: &[&str], then: Step) -> Vec<Step> {
    let mut steps = vec![Step::Send(STREAM_HEAD.to_vec())];
    let send = |piece: &&str| Step::Send(chunk(piece.as_bytes()));
    steps.extend(pieces.iter().map(send));
    steps.push(then);
    steps
}

/// "a" and "b" were said, then this.
fn breaks(last: &str, then: Step) -> Vec<Step> {
    let (a, b) = (content("a", 1), content("b", 2));
    let pieces: Vec<&str> = [&*a, &*b, last]
        .into_iter()
        .filter(|it| !it.is_empty())
        .collect();
    events(&pieces, then)
}

/// Goes on with "c", as another engine names things.
fn goes_on() -> Vec<Step> {
    let role = r#"data: {"id":"y","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
    let text = [
        &format!("{role}\n\n"),
        &content("c", 1),
        FINISH,
        USAGE,
        DONE,
    ]
    .concat();
    let text = text.replace("\"id\":\"x\"", "\"id\":\"y\"");
    events(&[&text], Step::Send(LAST_CHUNK.to_vec()))
}

fn setup() -> Setup {
    Setup {
        resume: true,
        idle: 0.3,
        ..Setup::default()
    }
}

#[tokio::test]
async fn another_engine_goes_on_however_the_first_one_ends() {
    let abort = FINISH.replace("\"stop\"", "\"abort\"");
    let error = "data: {\"error\":{\"message\":\"died\",\"code\":500}}\n\n";
    let half = &content("never", 3)[..40];
    for (last, then) in [
        ("", Step::Close),
        ("", Step::Reset),
        ("", Step::Hang),
        (half, Step::Close),
        (&abort, Step::Hang),
        (error, Step::Hang),
        (DONE, Step::Hang),
        ("data: {garbage\n\n", Step::Hang),
        ("", Step::Send(LAST_CHUNK.to_vec())),
    ] {
        let first = Engine::always(breaks(last, then)).await;
        let second = Engine::always(goes_on()).await;
        let rig = Rig::new(setup(), &[&first, &second]);
        let answer = rig.chat(true).await;
        assert_eq!(answer.body, whole_stream_shown(), "{last:?}");
        assert_eq!(answer.header("x-forebay-upstream"), Some("a"));
        let asked = second.requests()[0].json();
        let messages = asked["messages"].as_array().unwrap();
        let delivered = json!({"role": "assistant", "content": "ab"});
        assert_eq!(messages.last(), Some(&delivered));
        assert_eq!(asked["continue_final_message"], json!(true));
        assert_eq!(asked["add_generation_prompt"], json!(false));
        assert_eq!(asked["model"], json!("engine/m"));
        let event = rig.event().await;
        assert_eq!(event.outcome, "ok");
        assert_eq!(event.upstream.as_deref(), Some("b"));
        assert_eq!((event.attempts, event.error_kind), (2, None));
        let log: serde_json::Value =
            serde_json::from_str(event.attempt_log.as_deref().unwrap()).unwrap();
        assert_ne!(log[0]["reason"], "ok");
        assert_eq!(
            (&log[1]["why"], &log[1]["reason"]),
            (&json!("resume"), &json!("ok"))
        );
        // What the first one made, and the second one.
        assert_eq!((event.usage.prompt, event.usage.completion), (7, 2 + 3));
        until("the first one is left", || first.active() == 0).await;
    }
}

#[tokio::test]
async fn what_cannot_be_carried_on_ends_with_an_error() {
    let call = r#"data: {"id":"x","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c"}]},"finish_reason":null}]}"#;
    for (last, body) in [
        (format!("{call}\n\n"), chat(true)),
        (
            String::new(),
            chat(true).replace("\"stream\"", "\"logprobs\":true,\"stream\""),
        ),
    ] {
        let first = Engine::always(breaks(&last, Step::Close)).await;
        let second = Engine::always(goes_on()).await;
        let rig = Rig::new(setup(), &[&first, &second]);
        let answer = within(Answer::of(&rig.admit(Endpoint::Chat, &body))).await;
        assert!(answer.body.contains("upstream_error"), "{answer:?}");
        assert!(!answer.body.contains("[DONE]"));
        assert!(second.requests().is_empty());
        let event = rig.event().await;
        assert_eq!(event.outcome, "upstream_cut");
        assert_eq!((event.usage.prompt, event.usage.completion), (7, 2));
    }
}

#[tokio::test]
async fn without_a_sibling_or_the_setting_the_stream_ends_with_an_error() {
    let first = Engine::always(breaks("", Step::Close)).await;
    let second = Engine::always(goes_on()).await;
    let off = Setup::default();
    for rig in [
        Rig::new(setup(), &[&first]),
        Rig::new(off, &[&first, &second]),
    ] {
        let answer = rig.chat(true).await;
        assert!(answer.body.contains("upstream_error"), "{answer:?}");
        assert!(!answer.body.contains("[DONE]"));
        let event = rig.event().await;
        assert_eq!((event.outcome, event.attempts), ("upstream_cut", 1));
        assert_eq!((event.usage.prompt, event.usage.completion), (7, 2));
    }
    assert!(second.requests().is_empty());
}

#[tokio::test]
async fn siblings_are_tried_in_turn_and_what_was_delivered_is_owed() {
    let first = Engine::always(breaks("", Step::Close)).await;
    let busy = Engine::always(vec![Step::Send(unary("503 Service Unavailable", "{}"))]).await;
    let third = Engine::always(goes_on()).await;
    let rig = Rig::new(setup(), &[&first, &busy, &third]);
    let answer = rig.chat(true).await;
    assert_eq!(answer.body, whole_stream_shown());
    let event = rig.event().await;
    assert_eq!((event.outcome, event.attempts), ("ok", 3));
    assert_eq!((event.usage.prompt, event.usage.completion), (7, 5));

    let rig = Rig::new(setup(), &[&first, &busy]);
    let answer = rig.chat(true).await;
    assert!(answer.body.contains("\"error\""), "{answer:?}");
    let event = rig.event().await;
    assert_eq!((event.outcome, event.attempts), ("upstream_cut", 2));
    assert_eq!((event.usage.prompt, event.usage.completion), (7, 2));
}

#[tokio::test]
async fn what_was_delivered_is_owed_to_who_delivered_it() {
    let price = |id, upstream: &str, pico| PriceSpec {
        id,
        model: "m".to_owned(),
        upstream: Some(upstream.to_owned()),
        input: pico,
        output: pico,
        ..PriceSpec::default()
    };
    let first = Engine::always(breaks("", Step::Close)).await;
    let busy = Engine::always(vec![Step::Send(unary("503 Service Unavailable", "{}"))]).await;
    let setup = Setup {
        prices: vec![price(1, "a", 1), price(2, "b", 1_000)],
        ..setup()
    };
    let rig = Rig::new(setup, &[&first, &busy]);
    assert!(rig.chat(true).await.body.contains("\"error\""));
    let event = rig.event().await;
    assert_eq!((event.upstream.as_deref(), event.attempts), (Some("a"), 2));
    assert_eq!((event.price_id, event.cost_pico), (Some(1), Some(7 + 2)));
}

#[tokio::test]
async fn a_stream_may_be_carried_on_more_than_once() {
    let first = Engine::always(breaks("", Step::Close)).await;
    let dies = content("c", 1).replace("\"x\"", "\"z\"");
    let second = Engine::always(events(&[&dies], Step::Close)).await;
    let third = Engine::always(goes_on()).await;
    let rig = Rig::new(setup(), &[&first, &second, &third]);
    let answer = rig.chat(true).await;
    let texts = answer.body.matches("\"content\"").count();
    assert_eq!(
        (texts, answer.body.matches("[DONE]").count()),
        (4, 1),
        "{answer:?}"
    );
    assert!(!answer.body.contains("\"y\"") && !answer.body.contains("\"z\""));
    let asked = third.requests().last().unwrap().json();
    assert_eq!(
        asked["messages"].as_array().unwrap().last().unwrap()["content"],
        json!("abc")
    );
    let event = rig.event().await;
    assert_eq!((event.usage.prompt, event.usage.completion), (7, 3 + 3));
}

#[tokio::test]
async fn a_stream_that_lacks_only_its_end_needs_no_engine() {
    let first = Engine::always(breaks(FINISH, Step::Hang)).await;
    let second = Engine::always(goes_on()).await;
    let rig = Rig::new(setup(), &[&first, &second]);
    let answer = rig.chat(true).await;
    assert!(
        answer.body.ends_with(&(FINISH.to_owned() + DONE)),
        "{answer:?}"
    );
    assert!(second.requests().is_empty());
    let event = rig.event().await;
    assert_eq!(
        (event.outcome, event.finish_reason.as_deref()),
        ("ok", Some("stop"))
    );
    assert_eq!((event.usage.prompt, event.usage.completion), (7, 2));
    until("the engine is told", || first.aborts().len() == 1).await;
}
