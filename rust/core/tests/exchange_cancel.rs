//! Clients that go away, drivers that die, gateways that stop: one record each, and nothing left.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use forebay_core::dialect::Dialect;
use forebay_core::door::Way;
use forebay_core::gateway::{Endpoint, Request};
use forebay_core::usage::Usage;
use support::engine::{
    Engine, LAST_CHUNK, STREAM_HEAD, Step, UNARY, chunk, content, unary, whole_stream,
};
use support::{Answer, KEY, Rig, Setup, chat, key_text, until, within};

#[tokio::test]
async fn gone_before_the_first_byte() {
    for stream in [false, true] {
        let engine = Engine::always(vec![Step::Hang]).await;
        let rig = Rig::new(Setup::default(), &[&engine]);
        let slot = rig.admit(Endpoint::Chat, &chat(stream));
        until("it runs", || engine.active() == 1).await;
        slot.cancel();
        let event = rig.event().await;
        assert_eq!((event.outcome, event.status), ("client_closed", 499));
        assert_eq!(event.error_kind, Some("client_closed"));
        until("the engine is left", || engine.active() == 0).await;
        until("the engine is told", || engine.aborts().len() == 1).await;
        let rid = &engine.requests()[0].json()["rid"];
        assert_eq!(engine.aborts()[0], format!("{{\"rid\":{rid}}}"));
        let metrics = rig.gateway.metrics.registry.render();
        assert!(
            metrics.contains("forebay_upstream_attempts_total{upstream=\"a\"} 1"),
            "an abort is no attempt: {metrics}"
        );
    }
}

#[tokio::test]
async fn gone_before_there_is_a_connection() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    // Nobody accepts: once the queue is full, whoever connects waits.
    let mut queued = Vec::new();
    let short = Duration::from_millis(200);
    while let Ok(there) = tokio::time::timeout(short, tokio::net::TcpStream::connect(address)).await
    {
        queued.push(there.unwrap());
        assert!(queued.len() < 10, "the queue has no end");
    }
    let engine = Engine {
        address,
        log: Arc::default(),
    };
    let rig = Rig::new(Setup::default(), &[&engine]);
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    tokio::time::sleep(Duration::from_millis(100)).await;
    slot.cancel();
    let event = rig.event().await;
    assert_eq!((event.outcome, event.attempts), ("client_closed", 1));
    assert_eq!((event.usage.total(), event.cost_pico), (0, Some(0)));
    assert_eq!(event.source, "counted");
}

#[tokio::test]
async fn gone_in_the_middle_of_a_stream() {
    let steps = vec![
        Step::Send(STREAM_HEAD.to_vec()),
        Step::Send(chunk((content("a", 1) + &content("b", 2)).as_bytes())),
        Step::Hang,
    ];
    let engine = Engine::always(steps).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    within(poll_fn(|cx| slot.poll_head(cx))).await.unwrap();
    within(poll_fn(|cx| slot.poll_bytes(cx))).await.unwrap();
    slot.cancel();
    let event = rig.event().await;
    assert_eq!((event.outcome, event.status), ("client_closed", 200));
    assert_eq!((event.usage.completion, event.source), (2, "counted"));
    until("the engine is left", || engine.active() == 0).await;
}

/// What Claude told of the input when it began is booked, whatever the client's own words.
#[tokio::test]
async fn gone_in_the_middle_of_a_message() {
    let event = |data: &str| format!("data: {data}\n\n");
    let start = event(
        r#"{"type":"message_start","message":{"usage":{"input_tokens":3,"cache_read_input_tokens":900,"cache_creation_input_tokens":40,"output_tokens":1}}}"#,
    );
    let block = event(
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
    );
    let delta = event(
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}"#,
    );
    for (native, deltas, completion) in [(false, 2, 2), (true, 2, 2), (true, 0, 1)] {
        let said = start.clone() + &block + &delta.repeat(deltas);
        let steps = vec![
            Step::Send(STREAM_HEAD.to_vec()),
            Step::Send(chunk(said.as_bytes())),
            Step::Hang,
        ];
        let engine = Engine::always(steps).await;
        let setup = Setup {
            dialect: Dialect::Anthropic,
            ..Setup::default()
        };
        let rig = Rig::new(setup, &[&engine]);
        let slot = if native {
            let body = chat(true).replace("\"stream\"", "\"max_tokens\":9,\"stream\"");
            let authorization = format!("Bearer {}", key_text(KEY));
            let request = Request {
                authorization: Some(authorization.as_bytes()),
                ..Request::default()
            };
            let way = Way::of_path("/v1/messages").unwrap();
            rig.gateway.enter(way, request, Bytes::from(body))
        } else {
            rig.admit(Endpoint::Chat, &chat(true))
        };
        assert_eq!(
            within(poll_fn(|cx| slot.poll_head(cx)))
                .await
                .unwrap()
                .status,
            200
        );
        let told = within(poll_fn(|cx| slot.poll_bytes(cx))).await.unwrap();
        let told = String::from_utf8_lossy(&told);
        assert_eq!(
            told.contains("usage"),
            native,
            "as it came, or at the end: {told}"
        );
        slot.cancel();
        let event = rig.event().await;
        assert_eq!((event.outcome, event.source), ("client_closed", "counted"));
        let expected = Usage {
            prompt: 943,
            completion,
            cached: 900,
            cache_write: 40,
            reasoning: 0,
        };
        assert_eq!(event.usage, expected, "native: {native}");
    }
}

#[tokio::test]
async fn after_a_cancel_nothing_waits() {
    let engine = Engine::always(vec![Step::Hang]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    slot.cancel();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(slot.poll_head(&mut cx), Poll::Ready(None)));
    assert!(matches!(slot.poll_bytes(&mut cx), Poll::Ready(None)));
    assert!(matches!(
        slot.poll_body(&mut cx, <[u8]>::len),
        Poll::Ready(None)
    ));
    rig.event().await;
}

#[tokio::test]
async fn a_cancel_after_the_end_changes_nothing() {
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let slot = rig.admit(Endpoint::Chat, &chat(false));
    assert_eq!(Answer::of(&slot).await.status, 200);
    slot.cancel();
    assert_eq!(rig.event().await.outcome, "ok");
    assert_eq!(engine.aborts().len(), 0);
}

/// The runtime goes down under an exchange: whoever waits for it is told, and it is booked.
#[test]
fn a_driver_that_is_dropped_ends_its_answer() {
    let body = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let mut other = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for begun in [false, true] {
        let mut steps = vec![Step::Hang];
        if begun {
            steps.insert(0, Step::Send(STREAM_HEAD.to_vec()));
            steps.insert(1, Step::Send(chunk(content("a", 1).as_bytes())));
        }
        let engine = body.block_on(Engine::always(steps));
        let (rig, slot) = other.block_on(async {
            let rig = Rig::new(Setup::default(), &[&engine]);
            let slot = rig.admit(Endpoint::Chat, &chat(true));
            if begun {
                within(poll_fn(|cx| slot.poll_head(cx))).await.unwrap();
                within(poll_fn(|cx| slot.poll_bytes(cx))).await.unwrap();
            } else {
                until("it runs", || engine.active() == 1).await;
            }
            (rig, slot)
        });
        other.shutdown_timeout(Duration::from_secs(1));
        other = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        other.block_on(async {
            if begun {
                let last = within(poll_fn(|cx| slot.poll_bytes(cx))).await.unwrap();
                assert!(last.starts_with(b"data: {\"error\":"));
                assert!(within(poll_fn(|cx| slot.poll_bytes(cx))).await.is_none());
            } else {
                assert_eq!(Answer::of(&slot).await.status, 503);
            }
            let event = rig.event().await;
            assert_eq!(event.outcome, "gateway_died");
            // What is admitted from now on is answered as well.
            let late = rig.admit(Endpoint::Chat, &chat(true));
            assert_eq!(Answer::of(&late).await.status, 503);
            rig.event().await;
        });
    }
}

/// 1,000 clients that leave at random moments, on a runtime of two threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_random_aborts_leave_nothing_behind() {
    const COUNT: usize = 1000;
    const PERMITS: u32 = 400;
    let stream = whole_stream();
    let (first, second) = stream.as_bytes().split_at(150);
    let streamed = vec![
        Step::Wait(Duration::from_millis(2)),
        Step::Send(STREAM_HEAD.to_vec()),
        Step::Send(chunk(first)),
        Step::Wait(Duration::from_millis(4)),
        Step::Send(chunk(second)),
        Step::Send(LAST_CHUNK.to_vec()),
    ];
    let engine = Engine::start(move |number| {
        if number % 2 == 0 {
            streamed.clone()
        } else {
            vec![
                Step::Wait(Duration::from_millis(4)),
                Step::Send(unary("200 OK", UNARY)),
            ]
        }
    })
    .await;
    let setup = Setup {
        max_concurrency: Some(PERMITS),
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&engine]);
    let mut tasks = Vec::new();
    let mut random: u64 = 42;
    for index in 0..COUNT {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let patience = Duration::from_micros((random >> 33) % 20_000);
        let slot = rig.admit(Endpoint::Chat, &chat(index % 2 == 0));
        tasks.push(tokio::spawn(async move {
            let reading = async {
                let head = poll_fn(|cx| slot.poll_head(cx)).await;
                while head.as_ref().is_some_and(|head| head.more)
                    && poll_fn(|cx| slot.poll_bytes(cx)).await.is_some()
                {}
            };
            let _ = tokio::time::timeout(patience, reading).await;
            slot.cancel();
        }));
        if index % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    for task in tasks {
        within(task).await.unwrap();
    }
    let events = rig.events(COUNT).await;
    let ids: std::collections::HashSet<_> = events.iter().map(|event| event.event_id).collect();
    assert_eq!(ids.len(), COUNT);
    let closed = events
        .iter()
        .filter(|e| e.outcome == "client_closed")
        .count();
    assert!(closed > COUNT / 10, "{closed}");
    let unexpected: Vec<_> = events
        .iter()
        .filter(|event| !["client_closed", "ok", "error", "upstream_cut"].contains(&event.outcome))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    until("every engine connection is left", || engine.active() == 0).await;
    // Every permit of the engine is back.
    let slots: Vec<_> = (0..PERMITS)
        .map(|_| rig.admit(Endpoint::Chat, &chat(false)))
        .collect();
    for slot in slots {
        // The script may be one of the other kind; what matters is that the engine was asked.
        assert_ne!(Answer::of(&slot).await.status, 503);
    }
    rig.events(PERMITS as usize).await;
}

/// A gateway that stops drops its connections as well; that is not the clients' doing.
#[tokio::test]
async fn what_a_stopping_gateway_drops_is_its_own() {
    let engine = Engine::always(vec![Step::Hang]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    until("it runs", || engine.active() == 1).await;
    rig.gateway.halt();
    slot.cancel();
    let event = rig.event().await;
    assert_eq!((event.outcome, event.status), ("gateway_died", 503));
}

/// What is asked of a runtime that has gone is answered, not awaited for ever.
#[test]
fn a_fetch_without_a_runtime_is_answered() {
    let current = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let gone = current();
    let rig = gone.block_on(async { Rig::new(Setup::default(), &[&Engine::down().await]) });
    drop(gone);
    let slot = rig.gateway.fetch(
        "a",
        http::Method::GET,
        "/health".to_owned(),
        bytes::Bytes::new(),
        Duration::from_secs(1),
    );
    assert_eq!(current().block_on(Answer::of(&slot)).status, 503);
}
