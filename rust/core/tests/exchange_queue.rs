//! Requests that wait for a place at their engine: whose turn it is, how they leave, what they are
//! told.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::gateway::Endpoint;
use forebay_core::keys::KeySpec;
use forebay_core::slot::Slot;
use forebay_core::snapshot::AdaptiveSpec;
use support::engine::{Engine, STREAM_HEAD, Step, UNARY, chunk, content, unary, whole_stream};
use support::{Answer, KEY, Rig, Setup, chat, key_spec, until};

const OTHER: &str = "KEY000000002";
const MS: Duration = Duration::from_millis(1);

fn one_place() -> Setup {
    Setup {
        max_concurrency: Some(1),
        keys: vec![
            key_spec(KEY),
            KeySpec {
                account: "other".to_owned(),
                ..key_spec(OTHER)
            },
        ],
        ..Setup::default()
    }
}

/// Answers each request after `wait`.
async fn slow(wait: Duration) -> Engine {
    Engine::always(vec![Step::Wait(wait), Step::Send(unary("200 OK", UNARY))]).await
}

fn named(text: &str) -> String {
    chat(false).replace("hi", text)
}

fn start(rig: &Rig, key: &str, text: &str) -> Arc<Slot> {
    rig.admit_as(key, Endpoint::Chat, &named(text))
}

/// The texts of the requests that the engine got, in their order.
fn seen(engine: &Engine) -> Vec<String> {
    let text =
        |json: serde_json::Value| json["messages"][0]["content"].as_str().unwrap().to_owned();
    engine.requests().iter().map(|r| text(r.json())).collect()
}

fn waiting(rig: &Rig) -> i64 {
    rig.gateway.metrics.gate("a").waiting.get()
}

#[tokio::test]
async fn a_flood_waits_behind_itself() {
    let engine = slow(20 * MS).await;
    let rig = Rig::new(one_place(), &[&engine]);
    let mut slots = vec![start(&rig, KEY, "k0")];
    until("it runs", || engine.active() == 1).await;
    for text in ["k1", "k2", "k3"] {
        slots.push(start(&rig, KEY, text));
    }
    until("they wait", || waiting(&rig) == 3).await;
    slots.push(start(&rig, OTHER, "o1"));
    until("it waits", || waiting(&rig) == 4).await;
    slots.push(start(&rig, OTHER, "o2"));
    for slot in &slots {
        let answer = Answer::of(slot).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("x-forebay-attempts"), Some("1"));
    }
    assert_eq!(seen(&engine), ["k0", "o1", "k1", "o2", "k2", "k3"]);
    assert_eq!(waiting(&rig), 0);
    rig.events(6).await;
}

#[tokio::test]
async fn who_leaves_while_waiting_costs_nothing() {
    let engine = slow(100 * MS).await;
    let rig = Rig::new(one_place(), &[&engine]);
    let first = start(&rig, KEY, "first");
    until("it runs", || engine.active() == 1).await;
    let gone: Vec<_> = (0..5).map(|_| start(&rig, KEY, "gone")).collect();
    let last = start(&rig, KEY, "last");
    until("they wait", || waiting(&rig) == 6).await;
    for slot in gone {
        slot.cancel();
    }
    until("they left", || waiting(&rig) == 1).await;
    assert_eq!(Answer::of(&first).await.status, 200);
    assert_eq!(Answer::of(&last).await.status, 200);
    assert_eq!(seen(&engine), ["first", "last"]);
    let events = rig.events(7).await;
    let left: Vec<_> = events
        .iter()
        .filter(|e| e.outcome == "client_closed")
        .collect();
    assert_eq!(left.len(), 5);
    for event in left {
        assert_eq!((event.status, event.attempts), (499, 0));
        assert_eq!((event.usage.total(), event.upstream.as_deref()), (0, None));
    }
    assert_eq!(engine.aborts().len(), 0);
}

#[tokio::test]
async fn a_wait_that_takes_too_long_is_told() {
    let engine = Engine::always(vec![Step::Hang]).await;
    let setup = Setup {
        queue_timeout: 0.1,
        ..one_place()
    };
    let rig = Rig::new(setup, &[&engine]);
    let first = start(&rig, KEY, "first");
    until("it runs", || engine.active() == 1).await;
    let began = Instant::now();
    let late = Answer::of(&start(&rig, KEY, "late")).await;
    assert_eq!(late.status, 503, "{late:?}");
    assert!(late.body.contains("\"queue_timeout\""), "{}", late.body);
    assert!(late.header("retry-after").is_some());
    assert!((100..2000).contains(&began.elapsed().as_millis()));
    first.cancel();
    let mut events = rig.events(2).await;
    events.retain(|event| event.status == 503);
    assert_eq!(events[0].error_kind, Some("unavailable"));
    assert_eq!(waiting(&rig), 0);
}

/// The time for the first byte is the engine's alone.
#[tokio::test]
async fn the_wait_is_not_part_of_the_first_byte() {
    let engine = slow(150 * MS).await;
    let setup = Setup {
        first_byte: 0.25,
        ..one_place()
    };
    let rig = Rig::new(setup, &[&engine]);
    let slots: Vec<_> = (0..4).map(|_| start(&rig, KEY, "x")).collect();
    for slot in slots {
        assert_eq!(Answer::of(&slot).await.status, 200);
    }
}

#[tokio::test]
async fn a_full_queue_refuses_the_flood_and_lets_others_in() {
    let engine = slow(100 * MS).await;
    let setup = Setup {
        max_waiting: 2,
        ..one_place()
    };
    let rig = Rig::new(setup, &[&engine]);
    let first = start(&rig, KEY, "k0");
    until("it runs", || engine.active() == 1).await;
    let (k1, k2) = (start(&rig, KEY, "k1"), start(&rig, KEY, "k2"));
    until("they wait", || waiting(&rig) == 2).await;
    let refused = Answer::of(&start(&rig, KEY, "k3")).await;
    let other = start(&rig, OTHER, "o1");
    let displaced = Answer::of(&k2).await;
    for answer in [refused, displaced] {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.body.contains("\"queue_full\""), "{}", answer.body);
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(answer.header("x-forebay-attempts"), None);
    }
    for slot in [first, k1, other] {
        assert_eq!(Answer::of(&slot).await.status, 200);
    }
    assert_eq!(seen(&engine), ["k0", "o1", "k1"]);
    rig.events(5).await;
}

#[tokio::test]
async fn a_free_place_at_a_sibling_goes_before_any_wait() {
    let (a, b) = (slow(100 * MS).await, slow(100 * MS).await);
    let rig = Rig::new(one_place(), &[&a, &b]);
    let slots: Vec<_> = (0..4).map(|i| start(&rig, KEY, &i.to_string())).collect();
    until("both run", || a.active() == 1 && b.active() == 1).await;
    let mut upstreams = Vec::new();
    for slot in &slots {
        let answer = Answer::of(slot).await;
        assert_eq!(answer.status, 200);
        upstreams.push(answer.header("x-forebay-upstream").unwrap().to_owned());
    }
    // The shorter queue is chosen.
    assert_eq!(upstreams.iter().filter(|name| *name == "a").count(), 2);
    rig.events(4).await;
}

/// A failure at one engine goes on to the next, and waits there.
#[tokio::test]
async fn after_a_failure_it_waits_at_the_sibling() {
    let broken = Engine::always(vec![Step::Send(unary("500 Oops", "{}"))]).await;
    let good = slow(50 * MS).await;
    let rig = Rig::new(one_place(), &[&broken, &good]);
    let slots: Vec<_> = (0..6).map(|_| start(&rig, KEY, "x")).collect();
    for slot in slots {
        let answer = Answer::of(&slot).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("x-forebay-upstream"), Some("b"));
    }
    rig.events(6).await;
}

#[tokio::test]
async fn the_adaptive_limit_learns_from_streams() {
    let mut steps = vec![Step::Wait(5 * MS), Step::Send(STREAM_HEAD.to_vec())];
    steps.push(Step::Send(chunk(content("a", 1).as_bytes())));
    steps.push(Step::Wait(20 * MS));
    steps.push(Step::Send(chunk(whole_stream().as_bytes())));
    steps.push(Step::Send(support::engine::LAST_CHUNK.to_vec()));
    let engine = Engine::always(steps).await;
    let setup = Setup {
        max_concurrency: None,
        adaptive: Some(AdaptiveSpec { min: 2, max: 64 }),
        queue_timeout: 8.0,
        ..one_place()
    };
    let rig = Rig::new(setup, &[&engine]);
    let limit = || rig.gateway.metrics.gate("a").limit.get();
    assert_eq!(limit(), 2);
    let slots: Vec<_> = (0..300)
        .map(|_| rig.admit(Endpoint::Chat, &chat(true)))
        .collect();
    until("two run", || engine.active() == 2).await;
    assert_eq!(waiting(&rig), 298);
    until("the limit grows", || limit() > 3).await;
    for slot in slots {
        assert_eq!(Answer::of(&slot).await.status, 200);
    }
    let events = rig.events(300).await;
    assert!(events.iter().all(|event| event.outcome == "ok"));
}

/// Clients that leave at any moment, engines that fail: every place comes back.
#[tokio::test]
async fn nothing_is_leaked() {
    let engine = Engine::start(|number| match number % 5 {
        0 => vec![Step::Wait(2 * MS), Step::Reset],
        1 => vec![Step::Hang],
        2 => vec![Step::Send(unary("503 Busy", "{}"))],
        _ => vec![Step::Wait(MS), Step::Send(unary("200 OK", UNARY))],
    })
    .await;
    let setup = Setup {
        max_concurrency: Some(3),
        max_waiting: 40,
        queue_timeout: 0.05,
        first_byte: 0.01,
        ..one_place()
    };
    let rig = Rig::new(setup, &[&engine]);
    let (mut seed, mut slots) = (7u64, Vec::new());
    for i in 0..2000usize {
        slots.push(start(&rig, if i % 3 == 0 { OTHER } else { KEY }, "x"));
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        if seed.is_multiple_of(3) {
            let victim: &Arc<Slot> = &slots[(seed >> 8) as usize % slots.len()];
            victim.cancel();
        }
        if seed.is_multiple_of(4) {
            tokio::time::sleep(Duration::from_micros(seed >> 32 & 1023)).await;
        }
    }
    rig.events(2000).await;
    assert_eq!(waiting(&rig), 0);
    until("the engine is left", || engine.active() == 0).await;
    let text = rig.gateway.metrics.registry.render();
    let counted = |reason: &str| {
        text.contains(&format!(
            "forebay_queue_shed_total{{upstream=\"a\",reason=\"{reason}\"}}"
        ))
    };
    assert!(counted("full") && counted("timeout"));
    // All three places are there: three requests run at once.
    let hang: Vec<_> = (0..30).map(|_| start(&rig, KEY, "y")).collect();
    until("three run", || engine.active() == 3).await;
    drop(hang);
}
