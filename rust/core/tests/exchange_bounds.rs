//! What bounds an exchange in time and memory, and the two ways to an engine.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::future::poll_fn;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_core::gateway::Endpoint;
use forebay_core::keys::KeySpec;
use forebay_core::subjects::LimitsSpec;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::engine::{
    Engine, LAST_CHUNK, STREAM_HEAD, Step, UNARY, chunk, content, content_shown, unary,
    whole_stream, whole_stream_shown,
};
use support::{KEY, Rig, Setup, chat, key_spec, until, within};

fn stream_of(pieces: &[&str]) -> Vec<Step> {
    let mut steps = vec![Step::Send(STREAM_HEAD.to_vec())];
    steps.extend(
        pieces
            .iter()
            .map(|piece| Step::Send(chunk(piece.as_bytes()))),
    );
    steps
}

#[tokio::test]
async fn timeouts_end_what_they_bound() {
    let slow = Duration::from_millis(150);
    let before = Engine::always(vec![Step::Hang]).await;
    let rig = Rig::new(
        Setup {
            first_byte: 0.1,
            ..Setup::default()
        },
        &[&before],
    );
    for stream in [false, true] {
        let answer = rig.chat(stream).await;
        assert_eq!(answer.status, 504);
        assert_eq!(rig.event().await.error_kind, Some("upstream_timeout"));
        until("the engine is left", || before.active() == 0).await;
    }
    until("the engine is told", || before.aborts().len() == 2).await;

    // Comments are no first byte, and no way around the timeout.
    let mut pings = stream_of(&[]);
    for _ in 0..20 {
        pings.extend([
            Step::Wait(Duration::from_millis(20)),
            Step::Send(chunk(b": ping\n\n")),
        ]);
    }
    let pinging = Engine::always(pings).await;
    let rig = Rig::new(
        Setup {
            first_byte: 0.1,
            ..Setup::default()
        },
        &[&pinging],
    );
    assert_eq!(rig.chat(true).await.status, 504);

    let text = content("a", 1);
    let mut steps = stream_of(&[]);
    for _ in 0..20 {
        steps.extend([Step::Send(chunk(text.as_bytes())), Step::Wait(slow / 3)]);
    }
    let engine = Engine::always(steps).await;
    let rig = Rig::new(
        Setup {
            idle: 0.2,
            total: 0.4,
            ..Setup::default()
        },
        &[&engine],
    );
    let began = Instant::now();
    let answer = rig.chat(true).await;
    assert!(answer.body.contains("upstream_timeout"), "{answer:?}");
    assert!((400..700).contains(&began.elapsed().as_millis()));
}

#[tokio::test]
async fn a_slow_reader_stops_the_engine_and_trips_no_idle_timeout() {
    let event = content(&"x".repeat(1000), 1).repeat(16);
    let engine =
        Engine::always([stream_of(&[]), vec![Step::Flood(chunk(event.as_bytes()))]].concat()).await;
    let rig = Rig::new(
        Setup {
            idle: 0.1,
            ..Setup::default()
        },
        &[&engine],
    );
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    within(poll_fn(|cx| slot.poll_head(cx))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let written = engine.written();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(engine.written(), written, "the engine's writes block");
    let mut taken = 0;
    while taken < written {
        let batch = within(poll_fn(|cx| slot.poll_bytes(cx))).await.unwrap();
        assert!(!batch.windows(7).any(|w| w == b"\"error\""));
        assert!(batch.len() < 1 << 20, "{}", batch.len());
        taken += batch.len();
    }
    slot.cancel();
    assert_eq!(rig.event().await.outcome, "client_closed");
    until("the engine is left", || engine.active() == 0).await;
}

#[tokio::test]
async fn what_comes_before_the_first_event_is_bounded() {
    let ping = format!(": {}\n\n", "p".repeat(1000)).repeat(16);
    let engine =
        Engine::always([stream_of(&[]), vec![Step::Flood(chunk(ping.as_bytes()))]].concat()).await;
    let rig = Rig::new(
        Setup {
            first_byte: 3.0,
            ..Setup::default()
        },
        &[&engine],
    );
    let answer = rig.chat(true).await;
    assert_eq!(answer.status, 502, "{}", answer.body);
    assert!(engine.written() < 16 << 20, "{}", engine.written());
}

#[tokio::test]
async fn a_unary_answer_over_the_limit_is_refused() {
    for size in [2000, 400_000] {
        let body = UNARY.replace("hi", &"x".repeat(size));
        let engine = Engine::always(vec![Step::Send(unary("200 OK", &body))]).await;
        let setup = Setup {
            max_answer_bytes: 1000,
            ..Setup::default()
        };
        let rig = Rig::new(setup, &[&engine]);
        let answer = rig.chat(false).await;
        assert_eq!(answer.status, 502);
        assert!(answer.body.contains("too large"), "{size}: {}", answer.body);
    }
}

#[tokio::test]
async fn events_before_one_that_is_too_large_are_delivered() {
    let mut bytes = content("a", 1).into_bytes();
    bytes.extend_from_slice(b"data: ");
    bytes.extend(std::iter::repeat_n(b'x', 9000));
    let engine =
        Engine::always([stream_of(&[]), vec![Step::Send(chunk(&bytes)), Step::Hang]].concat())
            .await;
    let setup = Setup {
        max_event_bytes: 4096,
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&engine]);
    let answer = rig.chat(true).await;
    assert!(answer.body.starts_with(&content_shown("a")), "{answer:?}");
    assert!(answer.body.contains("too large"));
}

/// The total deadline holds even while it is the client that holds everything up.
#[tokio::test]
async fn the_total_timeout_ends_a_stream_that_nobody_reads() {
    let event = content(&"x".repeat(1000), 1).repeat(16);
    let mut steps = stream_of(&[]);
    steps.push(Step::Flood(chunk(event.as_bytes())));
    let engine = Engine::always(steps).await;
    let rig = Rig::new(
        Setup {
            total: 0.3,
            ..Setup::default()
        },
        &[&engine],
    );
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    until("the engine is left", || {
        engine.requests().len() == 1 && engine.active() == 0
    })
    .await;
    let event = rig.event().await;
    assert_eq!(
        (event.outcome, event.error_kind),
        ("upstream_cut", Some("upstream_timeout"))
    );
    within(poll_fn(|cx| slot.poll_head(cx))).await.unwrap();
    let rest = within(poll_fn(|cx| slot.poll_bytes(cx))).await.unwrap();
    assert!(rest.len() < 1 << 20);
    let text = String::from_utf8(rest.to_vec()).unwrap();
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("data: {\"error\":"), "{last}");
    assert!(within(poll_fn(|cx| slot.poll_bytes(cx))).await.is_none());
    // That it took so long is not the engine's fault.
    let view = serde_json::to_value(rig.gateway.upstreams()).unwrap();
    assert_eq!(view[0]["failures"], 0, "{view}");
}

#[tokio::test]
async fn the_end_marker_ends_the_answer() {
    let mut steps = stream_of(&[&whole_stream()]);
    steps.push(Step::Hang);
    let engine = Engine::always(steps).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let began = Instant::now();
    assert_eq!(rig.chat(true).await.body, whole_stream_shown());
    assert!(began.elapsed() < Duration::from_millis(40));
    assert_eq!(rig.event().await.outcome, "ok");
    until("the engine is left", || engine.active() == 0).await;
    assert_eq!(engine.aborts().len(), 0);
}

#[tokio::test]
async fn lines_that_are_no_stream_do_not_reach_the_client() {
    let text = whole_stream();
    let (first, rest) = text.split_at(content("a", 1).len());
    let mut bytes = first.as_bytes().to_vec();
    bytes.extend_from_slice(b"\xff\xfe\x00garbage\n\n: ping\n\n<html>\nid: 1\n\n");
    bytes.extend_from_slice(rest.as_bytes());
    let mut steps = stream_of(&[]);
    steps.extend([Step::Send(chunk(&bytes)), Step::Send(LAST_CHUNK.to_vec())]);
    let engine = Engine::always(steps).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let shown = whole_stream_shown();
    let (first, rest) = shown.split_at(content_shown("a").len());
    let expected = format!("{first}: ping\n\n{rest}");
    assert_eq!(rig.chat(true).await.body, expected);
}

/// A client that has read the end of its answer may ask again: its permit is free.
#[tokio::test]
async fn the_permit_is_back_before_the_answers_end() {
    let mut streamed = stream_of(&[&whole_stream()]);
    streamed.push(Step::Hang);
    for (script, stream) in [
        (streamed, true),
        (vec![Step::Send(unary("200 OK", UNARY))], false),
        (vec![Step::Send(unary("500 Oops", "{}"))], false),
    ] {
        let engine = Engine::always(script).await;
        let spec = KeySpec {
            limits: LimitsSpec {
                concurrency: Some(1),
                ..LimitsSpec::default()
            },
            ..key_spec(KEY)
        };
        let setup = Setup {
            keys: vec![spec],
            ..Setup::default()
        };
        let rig = Rig::new(setup, &[&engine]);
        for _ in 0..20 {
            assert_ne!(rig.chat(stream).await.status, 429);
        }
        rig.events(20).await;
    }
}

/// A burst of events leaves in one batch; events that come apart leave apart.
#[tokio::test]
async fn what_comes_together_leaves_together() {
    let event = content("a", 1);
    let mut steps = vec![Step::Send(STREAM_HEAD.to_vec())];
    for _ in 0..3 {
        steps.push(Step::Send(chunk(event.repeat(20).as_bytes())));
        steps.push(Step::Wait(Duration::from_millis(30)));
    }
    steps.push(Step::Send(chunk(whole_stream().as_bytes())));
    steps.push(Step::Send(LAST_CHUNK.to_vec()));
    let engine = Engine::always(steps).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let answer = rig.chat(true).await;
    assert_eq!(answer.batches, 4);
    assert_eq!(rig.event().await.outcome, "ok");
}

#[tokio::test]
async fn an_engine_may_speak_http2() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let engine = Engine {
        address: listener.local_addr().unwrap(),
        ..Engine::down().await
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| async {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let sent: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(sent["model"], "engine/m");
                let body = Full::new(Bytes::from(whole_stream()));
                Ok::<_, std::convert::Infallible>(http::Response::new(body))
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(serving);
        }
    });
    let setup = Setup {
        http2: true,
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&engine]);
    for _ in 0..3 {
        assert_eq!(rig.chat(true).await.body, whole_stream_shown());
        assert_eq!(rig.event().await.outcome, "ok");
    }
}
