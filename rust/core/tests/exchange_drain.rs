//! Clients that leave an upstream that bills the whole anyway: it is read to its end, within bounds.
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
use std::time::Duration;

use forebay_core::gateway::Endpoint;
use forebay_core::record::UsageEvent;
use forebay_core::slot::Slot;
use forebay_core::snapshot::DrainSpec;
use support::engine::{
    DONE, Engine, FINISH, LAST_CHUNK, STREAM_HEAD, Step, UNARY, USAGE, chunk, content, unary,
};
use support::{KEY, Rig, Setup, chat, key_text, until, within};

const DRAIN: DrainSpec = DrainSpec {
    seconds: 5.0,
    bytes: 1 << 20,
};

fn draining(drain: DrainSpec) -> Setup {
    Setup {
        drain: Some(drain),
        ..Setup::default()
    }
}

/// One token, then `then`.
fn begun(then: Vec<Step>) -> Vec<Step> {
    let mut steps = vec![
        Step::Send(STREAM_HEAD.to_vec()),
        Step::Send(chunk(content("a", 1).as_bytes())),
    ];
    steps.extend(then);
    steps
}

/// Two more tokens a while later, and the end.
fn the_rest() -> Vec<Step> {
    let rest = content("b", 2) + &content("c", 3) + FINISH + USAGE + DONE;
    vec![
        Step::Wait(Duration::from_millis(100)),
        Step::Send(chunk(rest.as_bytes())),
        Step::Send(LAST_CHUNK.to_vec()),
    ]
}

fn permits(rig: &Rig) -> u64 {
    let key = rig
        .gateway
        .keys
        .authenticate(key_text(KEY).as_bytes(), 0.0)
        .unwrap();
    key.meter().state(rig.gateway.now().mono).in_flight
}

async fn first_token(slot: &Slot) {
    within(poll_fn(|cx| slot.poll_head(cx))).await.unwrap();
    within(poll_fn(|cx| slot.poll_bytes(cx))).await.unwrap();
}

/// A client of a stream that leaves after the first token, or of a unary request once it runs.
async fn leave(rig: &Rig, engine: &Engine, stream: bool) -> Arc<Slot> {
    let slot = rig.admit(Endpoint::Chat, &chat(stream));
    if stream {
        first_token(&slot).await;
    } else {
        until("it runs", || engine.active() == 1).await;
    }
    assert_eq!(permits(rig), 1);
    slot.cancel();
    assert_eq!(permits(rig), 0, "the client's permit is back at once");
    slot
}

fn hang_ups(rig: &Rig, then: &str) -> bool {
    let line = format!("forebay_client_hangups_total{{upstream=\"a\",then=\"{then}\"}} 1");
    rig.gateway.metrics.registry.render().contains(&line)
}

fn left(event: &UsageEvent, status: u16) {
    assert_eq!((event.outcome, event.status), ("client_closed", status));
    assert_eq!(event.error_kind, Some("client_closed"));
    assert_eq!(event.attempts, 1);
}

#[tokio::test]
async fn the_whole_stream_is_billed() {
    let engine = Engine::always(begun(the_rest())).await;
    let rig = Rig::new(draining(DRAIN), &[&engine]);
    let slot = leave(&rig, &engine, true).await;
    assert_eq!(rig.gateway.metrics.in_flight.get(), 1, "it goes on");
    assert!(within(poll_fn(|cx| slot.poll_bytes(cx))).await.is_none());
    let event = rig.event().await;
    left(&event, 200);
    assert_eq!((event.usage.prompt, event.usage.completion), (7, 3));
    assert_eq!(event.source, "reported");
    assert_eq!(event.finish_reason.as_deref(), Some("stop"));
    assert_eq!(engine.aborts().len(), 0, "the engine was not stopped");
    assert!(hang_ups(&rig, "drained"));
}

#[tokio::test]
async fn before_the_first_byte_too() {
    let mut steps = vec![Step::Wait(Duration::from_millis(100))];
    steps.extend(begun(the_rest()));
    let engine = Engine::always(steps).await;
    let rig = Rig::new(draining(DRAIN), &[&engine]);
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    until("it runs", || engine.active() == 1).await;
    slot.cancel();
    let event = rig.event().await;
    left(&event, 499);
    assert_eq!((event.usage.completion, event.source), (3, "reported"));
}

#[tokio::test]
async fn a_unary_answer_is_read_whole() {
    let steps = vec![
        Step::Wait(Duration::from_millis(100)),
        Step::Send(unary("200 OK", UNARY)),
    ];
    let engine = Engine::always(steps).await;
    let rig = Rig::new(draining(DRAIN), &[&engine]);
    leave(&rig, &engine, false).await;
    let event = rig.event().await;
    left(&event, 499);
    assert_eq!((event.usage.prompt, event.usage.completion), (7, 2));
    assert_eq!(event.source, "reported");
    assert_eq!(engine.aborts().len(), 0);
}

#[tokio::test]
async fn the_time_is_bounded() {
    for stream in [false, true] {
        let steps = if stream {
            begun(vec![Step::Hang])
        } else {
            vec![Step::Hang]
        };
        let engine = Engine::always(steps).await;
        let cap = DrainSpec {
            seconds: 0.2,
            ..DRAIN
        };
        let rig = Rig::new(draining(cap), &[&engine]);
        leave(&rig, &engine, stream).await;
        let event = rig.event().await;
        if stream {
            left(&event, 200);
            assert_eq!((event.usage.prompt, event.usage.completion), (7, 1));
            assert_eq!(event.source, "counted");
        } else {
            left(&event, 499);
            assert!(event.usage.prompt > 0);
            assert_eq!((event.usage.completion, event.source), (0, "estimated"));
        }
        assert!(event.duration_ms > 190.0, "{}", event.duration_ms);
        until("the engine is left", || engine.active() == 0).await;
        until("the engine is told", || engine.aborts().len() == 1).await;
        assert!(hang_ups(&rig, "cut"));
    }
}

#[tokio::test]
async fn the_bytes_are_bounded() {
    let cap = DrainSpec {
        bytes: 100_000,
        ..DRAIN
    };
    let flood = chunk(content(&"x".repeat(1000), 2).as_bytes());
    let engine = Engine::always(begun(vec![Step::Flood(flood)])).await;
    let rig = Rig::new(draining(cap), &[&engine]);
    // A reader that has stopped, so that what is written is known.
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    first_token(&slot).await;
    slot.cancel();
    let event = rig.event().await;
    left(&event, 200);
    assert_eq!((event.usage.completion, event.source), (2, "counted"));
    until("the engine is left", || engine.active() == 0).await;
    assert!(hang_ups(&rig, "cut"));

    let long = format!("{{\"choices\":[],\"pad\":\"{}", "x".repeat(150_000));
    let mut head = unary("200 OK", "");
    let text = String::from_utf8(head.clone()).unwrap();
    head = text
        .replace("content-length: 0", "content-length: 900000")
        .into_bytes();
    let steps = vec![
        Step::Wait(Duration::from_millis(100)),
        Step::Send(head),
        Step::Send(long.into_bytes()),
        Step::Hang,
    ];
    let engine = Engine::always(steps).await;
    let rig = Rig::new(draining(cap), &[&engine]);
    leave(&rig, &engine, false).await;
    let event = rig.event().await;
    left(&event, 499);
    assert_eq!(event.source, "estimated");
    assert!(event.usage.completion > 1000, "{:?}", event.usage);
    until("the engine is left", || engine.active() == 0).await;
}

#[tokio::test]
async fn an_engine_that_dies_meanwhile_is_billed_for_what_came() {
    for failure in [Step::Close, Step::Reset] {
        let steps = vec![Step::Wait(Duration::from_millis(100)), failure];
        let engine = Engine::always(begun(steps.clone())).await;
        let other = Engine::always(steps).await;
        let rig = Rig::new(draining(DRAIN), &[&engine, &other]);
        leave(&rig, &engine, true).await;
        let event = rig.event().await;
        left(&event, 200);
        assert_eq!((event.usage.completion, event.source), (1, "counted"));
        assert_eq!(other.requests().len(), 0);
    }
}

#[tokio::test]
async fn nobody_s_answer_is_not_looked_for_elsewhere() {
    for failure in [unary("500 Oops", "{}"), unary("503 Later", "{}")] {
        let engine = Engine::always(vec![
            Step::Wait(Duration::from_millis(100)),
            Step::Send(failure),
        ])
        .await;
        let other = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
        let rig = Rig::new(draining(DRAIN), &[&engine, &other]);
        leave(&rig, &engine, false).await;
        let event = rig.event().await;
        left(&event, 499);
        assert_eq!(event.usage.total(), 0, "an error costs nothing");
        assert_eq!(other.requests().len(), 0);
    }
}

#[tokio::test]
async fn a_gateway_that_stops_ends_it() {
    let engine = Engine::always(begun(vec![Step::Hang])).await;
    let rig = Rig::new(draining(DRAIN), &[&engine]);
    leave(&rig, &engine, true).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(rig.gateway.metrics.in_flight.get(), 1);
    rig.gateway.drain();
    rig.gateway.halt();
    let event = rig.event().await;
    left(&event, 200);
    assert_eq!((event.usage.completion, event.source), (1, "counted"));
    until("the engine is left", || engine.active() == 0).await;
}

/// The upstream's permit is held until the reading ends, so they bound how many are read at once.
#[tokio::test]
async fn the_upstream_s_permit_is_held_to_the_end() {
    let engine = Engine::always(begun(the_rest())).await;
    let setup = Setup {
        max_concurrency: Some(1),
        max_waiting: 0,
        ..draining(DRAIN)
    };
    let rig = Rig::new(setup, &[&engine]);
    leave(&rig, &engine, true).await;
    assert_eq!(rig.chat(true).await.status, 503);
    rig.events(2).await;
    assert_eq!(rig.chat(true).await.status, 200);
    rig.event().await;
}

/// A client that waits for its turn was sent nowhere: nothing is read for it.
#[tokio::test]
async fn who_waits_leaves_at_once() {
    let engine = Engine::always(begun(vec![Step::Hang])).await;
    let setup = Setup {
        max_concurrency: Some(1),
        ..draining(DRAIN)
    };
    let rig = Rig::new(setup, &[&engine]);
    let first = rig.admit(Endpoint::Chat, &chat(true));
    first_token(&first).await;
    let waiting = rig.admit(Endpoint::Chat, &chat(true));
    tokio::time::sleep(Duration::from_millis(20)).await;
    waiting.cancel();
    until("it is gone", || rig.gateway.metrics.in_flight.get() == 1).await;
    let event = rig.gateway.events.take(1).remove(0);
    assert_eq!((event.outcome, event.usage.total()), ("client_closed", 0));
    assert_eq!(engine.requests().len(), 1);
    rig.gateway.halt();
    rig.event().await;
}

/// A reader that has stopped holds the driver up; its going frees it.
#[tokio::test]
async fn a_driver_that_waits_for_room_goes_on() {
    let piece = chunk(content(&"x".repeat(1000), 2).as_bytes()).repeat(100);
    let mut steps = vec![Step::Send(piece.clone()), Step::Send(piece)];
    steps.extend(the_rest());
    let engine = Engine::always(begun(steps)).await;
    let rig = Rig::new(draining(DRAIN), &[&engine]);
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    within(poll_fn(|cx| slot.poll_head(cx))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    slot.cancel();
    let event = rig.event().await;
    left(&event, 200);
    assert_eq!((event.usage.completion, event.source), (3, "reported"));
}

/// Clients that leave at random moments: one event each, all permits back, whole usage or counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_at_random_leave_nothing_behind() {
    const COUNT: usize = 300;
    let engine = Engine::start(|number| {
        if number % 2 == 0 {
            let mut steps = vec![Step::Wait(Duration::from_millis(2))];
            steps.extend(begun(the_rest()));
            steps
        } else {
            vec![
                Step::Wait(Duration::from_millis(4)),
                Step::Send(unary("200 OK", UNARY)),
            ]
        }
    })
    .await;
    let rig = Rig::new(draining(DRAIN), &[&engine]);
    let mut tasks = Vec::new();
    let mut random: u64 = 7;
    for index in 0..COUNT {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let patience = Duration::from_micros((random >> 33) % 120_000);
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
    }
    for task in tasks {
        within(task).await.unwrap();
    }
    let events = rig.events(COUNT).await;
    let ids: std::collections::HashSet<_> = events.iter().map(|event| event.event_id).collect();
    assert_eq!(ids.len(), COUNT);
    for event in &events {
        assert!(
            ["client_closed", "ok", "error", "upstream_cut"].contains(&event.outcome),
            "{event:?}"
        );
        // What was sent was read to its end, whoever was there.
        if event.usage.completion > 0 {
            assert_eq!(event.source, "reported", "{event:?}");
        }
    }
    until("every connection is left", || engine.active() == 0).await;
}
