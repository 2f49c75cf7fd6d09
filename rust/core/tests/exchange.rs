//! One request's life against a scripted engine: answers, edits, failures, timeouts, bounds.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::time::Duration;

use forebay_core::gateway::Endpoint;
use forebay_core::keys::KeySpec;
use forebay_core::subjects::LimitsSpec;
use proptest::prelude::*;
use support::engine::{
    DONE, Engine, FINISH, LAST_CHUNK, STREAM_HEAD, Step, UNARY, USAGE, chunk, content,
    content_shown, unary, whole_stream, whole_stream_shown,
};
use support::{Answer, KEY, Rig, Setup, chat, key_spec, until};

fn stream_of(pieces: &[&str]) -> Vec<Step> {
    let mut steps = vec![Step::Send(STREAM_HEAD.to_vec())];
    steps.extend(
        pieces
            .iter()
            .map(|piece| Step::Send(chunk(piece.as_bytes()))),
    );
    steps
}

fn whole(pieces: &[&str]) -> Vec<Step> {
    let mut steps = stream_of(pieces);
    steps.push(Step::Send(LAST_CHUNK.to_vec()));
    steps
}

#[tokio::test]
async fn unary_is_passed_on_and_booked() {
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let answer = rig.chat(false).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, UNARY));
    assert_eq!(answer.header("x-forebay-upstream"), Some("a"));
    assert_eq!(answer.header("x-forebay-attempts"), Some("1"));
    assert_eq!(answer.header("server"), None);
    let event = rig.event().await;
    assert_eq!(
        (event.outcome, event.status, event.source),
        ("ok", 200, "reported")
    );
    assert_eq!((event.usage.prompt, event.usage.completion), (7, 2));
    assert_eq!(event.finish_reason.as_deref(), Some("stop"));
}

#[tokio::test]
async fn the_engine_gets_its_model_our_id_and_the_usage_flags() {
    let engine = Engine::always(whole(&[&whole_stream()])).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let body = "{\"rid\":\"mine\",\"model\":\"alias\",\"stream_options\":{\"include_usage\":false},\"stream\":true,\"messages\":[{}]}";
    let answer = Answer::of(&rig.admit(Endpoint::Chat, body)).await;
    assert_eq!(answer.body, whole_stream_shown());
    let seen = &engine.requests()[0];
    assert!(seen.head.contains("authorization: Bearer engine-secret"));
    assert!(!seen.head.contains("fb-"), "{}", seen.head);
    let sent = seen.json();
    assert_eq!(sent["model"], "engine/m");
    assert_eq!(sent["stream_options"]["include_usage"], true);
    assert_eq!(sent["stream_options"]["continuous_usage_stats"], true);
    let event = rig.event().await;
    let id = uuid::Uuid::from_bytes(event.event_id).simple().to_string();
    assert_eq!(sent["rid"], id);
    assert_eq!(event.model_asked, "alias");
    assert_eq!(&*event.model_served, "m");
}

#[tokio::test]
async fn errors_of_the_engine_are_rendered_anew() {
    for (status, body, expected) in [
        (
            "400 Bad Request",
            "{\"error\":{\"message\":\"max_new_tokens at http://10.0.0.5:30000/x\"}}",
            400,
        ),
        (
            "401 Unauthorized",
            "{\"error\":{\"message\":\"key engine-secret is bad\"}}",
            502,
        ),
        (
            "500 Internal Server Error",
            "Traceback: File \"/opt/engine.py\"",
            502,
        ),
        ("503 Service Unavailable", "", 503),
        ("302 Found", "", 502),
        ("200 OK", "garbage", 502),
        ("200 OK", "", 502),
        ("200 OK", "[]", 502),
        (
            "200 OK",
            "{\"error\":{\"message\":\"no\",\"code\":400}}",
            400,
        ),
    ] {
        let engine = Engine::always(vec![Step::Send(unary(status, body))]).await;
        let rig = Rig::new(Setup::default(), &[&engine]);
        let answer = rig.chat(false).await;
        assert_eq!(answer.status, expected, "{status}");
        for secret in ["engine-secret", "10.0.0.5", "/opt", "127.0.0.1"] {
            assert!(!answer.body.contains(secret), "{}", answer.body);
        }
        assert_eq!(answer.header("x-forebay-upstream"), Some("a"));
        assert_eq!(answer.header("x-forebay-attempts"), Some("1"));
        let event = rig.event().await;
        assert_eq!((event.outcome, event.status), ("error", expected));
        assert_eq!(event.usage.total(), 0);
    }
}

#[tokio::test]
async fn before_the_first_byte_a_sibling_takes_over() {
    let failures: Vec<Vec<Step>> = vec![
        vec![Step::Close],
        vec![Step::Reset],
        vec![Step::Send(unary("500 Oops", "{}"))],
        vec![Step::Send(unary("503 Loading", "{}"))],
        vec![Step::Send(b"garbage\r\n\r\n".to_vec())],
        [stream_of(&[]), vec![Step::Close]].concat(),
        [stream_of(&[": ping\n\n"]), vec![Step::Reset]].concat(),
        [stream_of(&[USAGE]), vec![Step::Close]].concat(),
        whole(&["data: {\"error\":{\"message\":\"down\",\"code\":503}}\n\n"]),
        whole(&["data: nonsense\n\n"]),
        whole(&[]),
    ];
    for failure in failures {
        let bad = Engine::always(failure.clone()).await;
        let good = Engine::always(whole(&[&whole_stream()])).await;
        let rig = Rig::new(Setup::default(), &[&bad, &good]);
        let answer = rig.chat(true).await;
        assert_eq!(answer.body, whole_stream_shown(), "{failure:?}");
        assert_eq!(answer.header("x-forebay-upstream"), Some("b"));
        assert_eq!(answer.header("x-forebay-attempts"), Some("2"));
        assert_eq!((bad.requests().len(), good.requests().len()), (1, 1));
        let event = rig.event().await;
        assert_eq!((event.outcome, event.attempts), ("ok", 2));
        assert_eq!(event.usage.completion, 3);
        let rids = [&bad, &good].map(|engine| engine.requests()[0].json()["rid"].clone());
        assert_ne!(rids[0], rids[1]);
    }
    let down = Engine::down().await;
    let good = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&down, &good]);
    assert_eq!(rig.chat(false).await.status, 200);
}

#[tokio::test]
async fn what_a_failed_attempt_reported_is_not_billed() {
    let bad = Engine::always([stream_of(&[USAGE]), vec![Step::Close]].concat()).await;
    let down = Engine::down().await;
    let rig = Rig::new(Setup::default(), &[&bad, &down]);
    assert_eq!(rig.chat(true).await.status, 503);
    let event = rig.event().await;
    assert_eq!((event.outcome, event.usage.total()), ("error", 0));
}

#[tokio::test]
async fn a_clients_mistake_is_not_tried_elsewhere() {
    let first = Engine::always(vec![Step::Send(unary("400 Bad", "{}"))]).await;
    let second = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&first, &second]);
    assert_eq!(rig.chat(false).await.status, 400);
    assert_eq!(second.requests().len(), 0);
}

#[tokio::test]
async fn after_the_first_byte_an_error_is_the_streams_last_event() {
    let begun = content("a", 1) + &content("b", 2);
    let failures: Vec<(Vec<Step>, &str)> = vec![
        (vec![Step::Close], "upstream_error"),
        (vec![Step::Reset], "upstream_error"),
        (vec![Step::Send(LAST_CHUNK.to_vec())], "upstream_error"),
        (
            vec![Step::Send(chunk(b"data: {\"choi")), Step::Close],
            "upstream_error",
        ),
        (
            vec![Step::Send(chunk(b"data: nonsense\n\n"))],
            "upstream_error",
        ),
        (vec![Step::Send(b"zz\r\n".to_vec())], "upstream_error"),
        (
            vec![Step::Send(chunk(&vec![b'x'; 100_000]))],
            "upstream_error",
        ),
        (vec![Step::Hang], "upstream_timeout"),
    ];
    for (failure, code) in failures {
        let other = Engine::always(whole(&[&whole_stream()])).await;
        let engine = Engine::always([stream_of(&[&begun]), failure.clone()].concat()).await;
        let setup = Setup {
            idle: 0.2,
            ..Setup::default()
        };
        let rig = Rig::new(setup, &[&engine, &other]);
        let answer = rig.chat(true).await;
        let shown = content_shown("a") + &content_shown("b");
        let error = answer
            .body
            .strip_prefix(&shown)
            .unwrap_or_else(|| panic!("{answer:?}"));
        assert!(error.starts_with("data: {\"error\":{"), "{error}");
        assert!(error.contains(&format!("\"code\":\"{code}\"")), "{error}");
        assert!(error.ends_with("}\n\n") && !error.contains("127.0.0.1"));
        let event = rig.event().await;
        assert_eq!((event.outcome, event.status), ("upstream_cut", 200));
        assert_eq!(
            (event.usage.prompt, event.usage.completion),
            (7, 2),
            "{failure:?}"
        );
        assert_eq!(event.source, "counted");
        assert_eq!(other.requests().len(), 0);
        until("the engine is left", || engine.active() == 0).await;
    }
}

#[tokio::test]
async fn embeddings_without_usage_have_no_output_tokens() {
    let body = format!("{{\"data\":[{{\"embedding\":[{}1]}}]}}", "0.5,".repeat(500));
    let engine = Engine::always(vec![Step::Send(unary("200 OK", &body))]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let asked = "{\"model\":\"m\",\"input\":\"hello there\"}";
    let answer = Answer::of(&rig.admit(Endpoint::Embeddings, asked)).await;
    assert_eq!(answer.body, body);
    let event = rig.event().await;
    assert_eq!((event.usage.completion, event.source), (0, "estimated"));
    assert!(event.usage.prompt > 0);
}

#[tokio::test]
async fn an_engine_at_its_limit_is_not_asked() {
    let engine = Engine::always(vec![Step::Hang]).await;
    let rig = Rig::new(
        Setup {
            max_concurrency: Some(1),
            max_waiting: 0,
            ..Setup::default()
        },
        &[&engine],
    );
    let first = rig.admit(Endpoint::Chat, &chat(true));
    until("it runs", || engine.active() == 1).await;
    let refused = rig.chat(true).await;
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (503, Some("1"))
    );
    first.cancel();
    until("the permit is back", || engine.active() == 0).await;
    let events = rig.events(2).await;
    assert_eq!(events[0].usage.total(), 0, "never sent, never charged");
    assert_eq!(engine.requests().len(), 1);
}

#[tokio::test]
async fn tokens_are_settled_by_what_was_used() {
    let spec = KeySpec {
        limits: LimitsSpec {
            tpm: Some(1000),
            ..LimitsSpec::default()
        },
        ..key_spec(KEY)
    };
    let engine = Engine::start(|number| match number {
        0 => vec![Step::Send(unary("200 OK", UNARY))],
        1 => vec![Step::Send(unary("500 Oops", "{}"))],
        _ => vec![Step::Hang],
    })
    .await;
    let rig = Rig::new(
        Setup {
            keys: vec![spec],
            ..Setup::default()
        },
        &[&engine],
    );
    let left = || {
        let key = rig
            .gateway
            .keys
            .authenticate(support::key_text(KEY).as_bytes(), 0.0);
        key.unwrap()
            .meter()
            .state(rig.gateway.now().mono)
            .tokens
            .unwrap()
            .remaining
    };
    // A bucket of 1,000 a minute gains one or two while the test runs.
    let about = |tokens: u64| assert!((tokens..tokens + 8).contains(&left()), "{}", left());
    assert_eq!(rig.chat(false).await.status, 200);
    rig.event().await;
    about(991);
    assert_eq!(rig.chat(false).await.status, 502);
    rig.event().await;
    about(991);
    // A client that hangs up after its prompt was sent pays for the prompt.
    let long = chat(false).replace("hi", &"word ".repeat(300));
    let slot = rig.admit(Endpoint::Chat, &long);
    until("it runs", || engine.active() == 1).await;
    slot.cancel();
    let event = rig.event().await;
    assert!((300..500).contains(&event.usage.prompt));
    assert_eq!((event.usage.completion, event.source), (0, "estimated"));
    about(991 - event.usage.prompt);
}

/// Cuts `bytes` at the given places.
fn cut(bytes: &[u8], at: &[prop::sample::Index]) -> Vec<Vec<u8>> {
    let mut places: Vec<usize> = at
        .iter()
        .map(|index| index.index(bytes.len() + 1))
        .collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|pair| bytes[pair[0]..pair[1]].to_vec())
        .filter(|piece| !piece.is_empty())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any chunking on the wire, and any place where the engine breaks off, gives whole frames,
    /// and one end: the marker, or one error.
    #[test]
    fn every_chunking_and_cut_gives_whole_frames(
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        chunked in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        end in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let stream = whole_stream();
        let kept = if whole { stream.len() } else { end.index(stream.len()) };
        let mut wire = STREAM_HEAD.to_vec();
        for piece in cut(&stream.as_bytes()[..kept], &chunked) {
            wire.extend(chunk(&piece));
        }
        wire.extend_from_slice(LAST_CHUNK);
        let steps: Vec<Step> = cut(&wire, &cuts)
            .into_iter()
            .flat_map(|piece| [Step::Send(piece), Step::Wait(Duration::from_micros(200))])
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let engine = Engine::always(steps).await;
            let rig = Rig::new(Setup::default(), &[&engine]);
            let answer = rig.chat(true).await;
            let event = rig.event().await;
            let frames: Vec<&str> = answer.body.split_inclusive("\n\n").collect();
            let are_whole = frames.iter().all(|frame| frame.ends_with("\n\n"));
            prop_assert!(are_whole || answer.status == 502, "{answer:?}");
            let shown = whole_stream_shown();
            let error = frames.iter().filter(|frame| frame.contains("\"error\"")).count();
            // Once the finish reason is out the stream is whole, and its end is mended.
            let finished = answer.body.contains(FINISH);
            if finished {
                prop_assert_eq!(&answer.body, &shown);
                prop_assert_eq!(event.outcome, "ok");
            } else if answer.status == 200 {
                prop_assert_eq!(error, 1);
                prop_assert!(!answer.body.contains(DONE));
                let before = answer.body.strip_suffix(frames[frames.len() - 1]).unwrap();
                prop_assert!(shown.starts_with(before), "{answer:?}");
                prop_assert_eq!(event.outcome, "upstream_cut");
            } else {
                prop_assert_eq!(answer.status, 502);
                prop_assert_eq!(event.outcome, "error");
            }
            Ok(())
        })?;
    }
}
