//! What comes after an attempt that failed before its first token: siblings, waits, other models, and
//! when it is enough.
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
use forebay_core::guard::{Description, ModelFacts};
use forebay_core::price::PriceSpec;
use forebay_core::snapshot::{
    HedgeSpec, ModelSpec, RetrySpec, SnapshotSpec, TargetSpec, UpstreamSpec,
};
use support::engine::{Engine, STREAM_HEAD, Step, UNARY, chunk, unary, whole_stream};
use support::{Answer, KEY, Rig, Setup, chat, key_spec, until};

const MS: Duration = Duration::from_millis(1);
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const OVERFLOW: &str = r#"{"error":{"message":"This model's maximum context length is 8 tokens.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#;
const FILTERED: &str = r#"{"error":{"message":"The response was filtered","type":null,"param":"prompt","code":"content_filter","status":400}}"#;

async fn fails(status: &'static str) -> Engine {
    Engine::always(vec![Step::Send(unary(status, "{}"))]).await
}

async fn works() -> Engine {
    Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await
}

fn model(name: &str, upstreams: &[&str]) -> ModelSpec {
    let target = |upstream: &&str| TargetSpec {
        upstream: (*upstream).to_owned(),
        model: name.to_owned(),
        ..TargetSpec::default()
    };
    ModelSpec {
        name: name.to_owned(),
        targets: upstreams.iter().map(target).collect(),
        first_byte_s: 5.0,
        idle_s: 5.0,
        total_s: 10.0,
        ..ModelSpec::default()
    }
}

/// Engines `a`, `b` … and these models.
fn rig(engines: &[&Engine], models: Vec<ModelSpec>) -> Rig {
    let upstream = |(name, engine): (&&str, &&Engine)| UpstreamSpec {
        name: (*name).to_owned(),
        url: format!("http://{}", engine.address),
        connect_s: 2.0,
        rid: true,
        abort_path: Some("/abort_request".to_owned()),
        ..UpstreamSpec::default()
    };
    let nobody = Engine {
        address: "127.0.0.1:9".parse().unwrap(),
        log: Arc::default(),
    };
    let rig = Rig::new(Setup::default(), &[&nobody]);
    let spec = SnapshotSpec {
        upstreams: NAMES.iter().zip(engines).map(upstream).collect(),
        models,
        max_event_bytes: 1 << 16,
        max_answer_bytes: 1 << 20,
        complete: true,
        prompt_logs: None,
        files: None,
    };
    rig.gateway.configure(spec).unwrap();
    rig
}

fn retrying(retry: RetrySpec, upstreams: &[&str]) -> Vec<ModelSpec> {
    vec![ModelSpec {
        retry,
        ..model("m", upstreams)
    }]
}

async fn ask(rig: &Rig) -> Answer {
    Answer::of(&rig.admit(Endpoint::Chat, &chat(false))).await
}

fn told(answer: &Answer) -> (u16, &str, &str) {
    (
        answer.status,
        answer.header("x-forebay-upstream").unwrap_or_default(),
        answer.header("x-forebay-attempts").unwrap_or_default(),
    )
}

#[tokio::test]
async fn attempts_are_bounded() {
    let engines = [
        fails("500 Oops").await,
        fails("500 Oops").await,
        fails("500 Oops").await,
        works().await,
    ];
    let all: Vec<&Engine> = engines.iter().collect();
    for (attempts, told_of) in [(1, "1"), (2, "2"), (3, "3")] {
        let retry = RetrySpec {
            attempts,
            ..RetrySpec::default()
        };
        let rig = rig(&all, retrying(retry, &NAMES[..3]));
        let answer = ask(&rig).await;
        assert_eq!((answer.status, told(&answer).2), (502, told_of));
    }
    let rig = rig(&all, retrying(RetrySpec::default(), &NAMES[..4]));
    // Three fail at most before their turn is over, and the fourth is asked sooner or later.
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(ask(&rig).await.status);
    }
    assert!(statuses.contains(&200), "{statuses:?}");
}

#[tokio::test]
async fn who_cannot_be_reached_counts_for_nothing() {
    let dead = [
        Engine::down().await,
        Engine::down().await,
        Engine::down().await,
    ];
    let live = works().await;
    let retry = RetrySpec {
        attempts: 1,
        budget: 0.0,
        min_per_second: 0.0,
        ..RetrySpec::default()
    };
    let engines = [&dead[0], &dead[1], &dead[2], &live];
    let rig = rig(&engines, retrying(retry, &NAMES[..4]));
    for _ in 0..4 {
        let answer = ask(&rig).await;
        assert_eq!((answer.status, told(&answer).1), (200, "d"), "{answer:?}");
    }
    for event in rig.events(4).await {
        assert_eq!(event.usage.total(), 9);
    }
}

#[tokio::test]
async fn a_budget_that_is_used_up_ends_retries() {
    let (bad, good) = (fails("500 Oops").await, works().await);
    let retry = RetrySpec {
        budget: 0.0,
        min_per_second: 0.1,
        ..RetrySpec::default()
    };
    // A tenth a second, kept for ten: one.
    let rig = rig(&[&bad, &good], retrying(retry, &NAMES[..2]));
    let mut failed = 0;
    for _ in 0..8 {
        failed += u32::from(ask(&rig).await.status == 502);
    }
    assert!((3..=4).contains(&failed), "{failed}");
}

#[tokio::test]
async fn a_wait_that_is_asked_for_is_kept() {
    for (wait, expected) in [(60, (200, "a", "2")), (60_000, (503, "a", "1"))] {
        let busy =
            format!("HTTP/1.1 503 Busy\r\nretry-after-ms: {wait}\r\ncontent-length: 2\r\n\r\n{{}}")
                .into_bytes();
        let engine = Engine::start(move |number| match number {
            0 => vec![Step::Send(busy.clone())],
            _ => vec![Step::Send(unary("200 OK", UNARY))],
        })
        .await;
        let rig = rig(&[&engine], retrying(RetrySpec::default(), &["a"]));
        let began = Instant::now();
        let answer = ask(&rig).await;
        assert_eq!(told(&answer), expected, "{answer:?}");
        if expected.0 == 200 {
            assert!(began.elapsed() >= 60 * MS);
        } else {
            assert_eq!(answer.header("retry-after"), Some("60"));
        }
    }
}

#[tokio::test]
async fn a_wait_that_is_not_kept_costs_no_retry() {
    let busy = |wait: u32| {
        let head = format!("HTTP/1.1 503 Busy\r\nretry-after-ms: {wait}\r\n");
        vec![Step::Send(
            (head + "content-length: 2\r\n\r\n{}").into_bytes(),
        )]
    };
    let engine = Engine::start(move |number| match number {
        0 => busy(60_000),
        1 => busy(10),
        _ => vec![Step::Send(unary("200 OK", UNARY))],
    })
    .await;
    // One, and no more for a while.
    let retry = RetrySpec {
        budget: 0.0,
        min_per_second: 0.1,
        ..RetrySpec::default()
    };
    let rig = rig(&[&engine], retrying(retry, &["a"]));
    assert_eq!(told(&ask(&rig).await), (503, "a", "1"));
    assert_eq!(told(&ask(&rig).await), (200, "a", "2"));
}

#[tokio::test]
async fn a_status_may_be_tried_elsewhere_though_its_kind_is_not() {
    for (on, expected) in [(vec![], 400), (vec![422], 200)] {
        let (bad, good) = (fails("422 No").await, works().await);
        let retry = RetrySpec {
            on,
            ..RetrySpec::default()
        };
        let mut models = retrying(retry, &NAMES[..2]);
        models[0].targets[1].tier = 1;
        let rig = rig(&[&bad, &good], models);
        assert_eq!(ask(&rig).await.status, expected);
    }
}

#[tokio::test]
async fn fallbacks_are_tried_in_turn() {
    let engines = [fails("500 Oops").await, Engine::down().await, works().await];
    let all: Vec<&Engine> = engines.iter().collect();
    let models = vec![
        ModelSpec {
            fallbacks: vec!["n".to_owned(), "o".to_owned()],
            ..model("m", &["a"])
        },
        model("n", &["b"]),
        model("o", &["c"]),
    ];
    let rig = rig(&all, models);
    let answer = ask(&rig).await;
    assert_eq!(told(&answer), (200, "c", "3"));
    assert!(engines[2].requests()[0].body.contains("\"o\""));
    let event = rig.event().await;
    assert_eq!((&*event.model_asked, &*event.model_served), ("m", "o"));
    assert_eq!(event.upstream.as_deref(), Some("c"));
}

/// The one asked for is away: a fallback that is not for the request is not why it came to nothing.
#[tokio::test]
async fn a_fallback_that_is_not_for_the_request_says_nothing() {
    let (dead, costly) = (Engine::down().await, works().await);
    let mut models = vec![
        ModelSpec {
            fallbacks: vec!["n".to_owned()],
            ..model("m", &["a"])
        },
        model("n", &["b"]),
    ];
    models[1].targets[0].max_cost_nano = Some(1);
    let rig = rig(&[&dead, &costly], models);
    let price = |id, model: &str| PriceSpec {
        id,
        model: model.to_owned(),
        output: 1_000_000,
        ..PriceSpec::default()
    };
    rig.gateway
        .load_prices(vec![price(1, "m"), price(2, "n")])
        .unwrap();
    // Found out by the request itself, then by a look.
    assert_eq!(ask(&rig).await.status, 503);
    rig.gateway.drain_upstream("a", true);
    let answer = ask(&rig).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(costly.requests().is_empty());
}

#[tokio::test]
async fn what_the_request_is_about_chooses_another_model() {
    for (body, expected) in [(OVERFLOW, "b"), (FILTERED, "c")] {
        let refusing = Engine::always(vec![Step::Send(unary("400 Bad Request", body))]).await;
        let (large, lenient) = (works().await, works().await);
        let models = vec![
            ModelSpec {
                context_fallback: Some("large".to_owned()),
                content_filter_fallback: Some("lenient".to_owned()),
                ..model("m", &["a"])
            },
            model("large", &["b"]),
            model("lenient", &["c"]),
        ];
        let rig = rig(&[&refusing, &large, &lenient], models);
        assert_eq!(told(&ask(&rig).await), (200, expected, "2"));
    }
    // Without one it is the client's to know.
    let refusing = Engine::always(vec![Step::Send(unary("400 Bad Request", OVERFLOW))]).await;
    let rig = rig(&[&refusing], vec![model("m", &["a"])]);
    let answer = ask(&rig).await;
    assert_eq!(answer.status, 400);
    assert!(
        answer.body.contains("context_length_exceeded"),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn what_would_end_a_fallbacks_engine_does_not_reach_it() {
    let (bad, small, large) = (fails("500 Oops").await, works().await, works().await);
    let models = vec![
        ModelSpec {
            fallbacks: vec!["small".to_owned(), "large".to_owned()],
            ..model("m", &["a"])
        },
        model("small", &["b"]),
        model("large", &["c"]),
    ];
    let rig = rig(&[&bad, &small, &large], models);
    for (upstream, name, size) in [("b", "small", 128), ("c", "large", 1024)] {
        let facts = ModelFacts {
            vocab_size: Some(size),
            ..ModelFacts::default()
        };
        let models = [(name.to_owned(), facts)].into_iter().collect();
        rig.gateway
            .describe_upstream(upstream, Description { models });
    }
    let body = chat(false).replace("\"stream\"", "\"logit_bias\":{\"200\":1},\"stream\"");
    let answer = Answer::of(&rig.admit(Endpoint::Chat, &body)).await;
    assert_eq!(told(&answer), (200, "c", "2"));
    assert!(small.requests().is_empty());
}

fn hedged(upstreams: &[&str]) -> Vec<ModelSpec> {
    let mut spec = ModelSpec {
        hedge: Some(HedgeSpec {
            after_s: 0.05,
            max_percent: 100.0,
        }),
        ..model("m", upstreams)
    };
    // The first one is always the first.
    for (tier, target) in spec.targets.iter_mut().enumerate() {
        target.tier = u8::try_from(tier).unwrap();
    }
    vec![spec]
}

async fn streams_after(wait: Duration) -> Engine {
    let mut head = STREAM_HEAD.to_vec();
    head.extend(chunk(whole_stream().as_bytes()));
    head.extend(b"0\r\n\r\n");
    Engine::always(vec![Step::Wait(wait), Step::Send(head)]).await
}

#[tokio::test]
async fn the_first_of_two_answers_and_the_other_is_stopped() {
    let (slow, quick) = (
        streams_after(Duration::from_secs(5)).await,
        streams_after(MS).await,
    );
    let rig = rig(&[&slow, &quick], hedged(&["a", "b"]));
    let answer = Answer::of(&rig.admit(Endpoint::Chat, &chat(true))).await;
    assert_eq!(told(&answer), (200, "b", "2"));
    assert!(answer.body.ends_with("data: [DONE]\n\n"));
    until("the slow one is stopped", || {
        slow.active() == 0 && slow.aborts().len() == 1
    })
    .await;
    let event = rig.event().await;
    assert_eq!(event.upstream.as_deref(), Some("b"));
    assert_eq!((event.outcome, event.attempts), ("ok", 2));
    let log = answer.header("x-forebay-attempt-log").unwrap();
    assert!(log.starts_with("\"a\";reason=hedge_lost;ms="), "{log}");
    assert!(log.ends_with(", \"b\";reason=ok;why=hedge"), "{log}");
    assert_eq!((event.usage.prompt, event.usage.completion), (7, 3));
}

#[tokio::test]
async fn a_second_that_finds_no_place_costs_nothing() {
    let (slow, quick) = (streams_after(150 * MS).await, streams_after(MS).await);
    let mut models = hedged(&["a", "b"]);
    // One of two requests.
    models[0].hedge = Some(HedgeSpec {
        after_s: 0.05,
        max_percent: 50.0,
    });
    let rig = rig(&[&slow, &quick], models);
    let ask = || rig.admit(Endpoint::Chat, &chat(true));
    assert!(rig.gateway.drain_upstream("b", true));
    for _ in 0..2 {
        assert_eq!(told(&Answer::of(&ask()).await), (200, "a", "1"));
    }
    assert!(rig.gateway.drain_upstream("b", false));
    assert_eq!(told(&Answer::of(&ask()).await), (200, "b", "2"));
}

#[tokio::test]
async fn a_second_that_is_too_many_is_left_for_a_retry() {
    let broken = Engine::always(vec![Step::Wait(100 * MS), Step::Close]).await;
    let good = streams_after(MS).await;
    let mut models = hedged(&["a", "b"]);
    models[0].hedge = Some(HedgeSpec {
        after_s: 0.05,
        max_percent: 10.0,
    });
    let rig = rig(&[&broken, &good], models);
    let answer = Answer::of(&rig.admit(Endpoint::Chat, &chat(true))).await;
    assert_eq!(told(&answer), (200, "b", "2"));
    let log = answer.header("x-forebay-attempt-log").unwrap();
    assert!(!log.contains("hedge"), "{log}");
}

#[tokio::test]
async fn the_slow_one_may_still_be_the_first() {
    let (slow, slower) = (
        streams_after(150 * MS).await,
        streams_after(Duration::from_secs(5)).await,
    );
    let rig = rig(&[&slow, &slower], hedged(&["a", "b"]));
    let answer = Answer::of(&rig.admit(Endpoint::Chat, &chat(true))).await;
    assert_eq!(told(&answer), (200, "a", "2"));
    until("the other one is stopped", || slower.active() == 0).await;
    let event = rig.event().await;
    assert_eq!(event.upstream.as_deref(), Some("a"));
    assert_eq!(event.usage.completion, 3);
}

#[tokio::test]
async fn a_second_that_is_late_too_has_a_third() {
    let slow = Duration::from_secs(5);
    let (one, two) = (streams_after(slow).await, streams_after(slow).await);
    let quick = streams_after(MS).await;
    let rig = rig(&[&one, &two, &quick], hedged(&["a", "b", "c"]));
    let answer = Answer::of(&rig.admit(Endpoint::Chat, &chat(true))).await;
    assert_eq!(told(&answer), (200, "c", "3"));
    assert!(answer.body.ends_with("data: [DONE]\n\n"));
    until("the others are stopped", || {
        one.active() == 0 && two.active() == 0
    })
    .await;
    let event = rig.event().await;
    assert_eq!((event.outcome, event.attempts), ("ok", 3));
    assert_eq!(event.upstream.as_deref(), Some("c"));
    assert_eq!(event.usage.completion, 3);
}

#[tokio::test]
async fn one_that_fails_leaves_the_other() {
    let broken = Engine::always(vec![Step::Wait(100 * MS), Step::Close]).await;
    let slow = streams_after(300 * MS).await;
    let rig = rig(&[&broken, &slow], hedged(&["a", "b"]));
    let answer = Answer::of(&rig.admit(Endpoint::Chat, &chat(true))).await;
    assert_eq!(told(&answer), (200, "b", "2"), "{answer:?}");
    assert_eq!(slow.requests().len(), 1);
}

#[tokio::test]
async fn who_is_quick_enough_has_no_second() {
    let (quick, other) = (streams_after(MS).await, streams_after(MS).await);
    let rig = rig(&[&quick, &other], hedged(&["a", "b"]));
    let answer = Answer::of(&rig.admit(Endpoint::Chat, &chat(true))).await;
    assert_eq!(told(&answer), (200, "a", "1"));
    assert_eq!(other.requests().len(), 0);
}

#[tokio::test]
async fn who_has_a_budget_is_not_answered_for_nothing() {
    let price = |id, model: &str| PriceSpec {
        id,
        model: model.to_owned(),
        output: 1_000_000,
        ..PriceSpec::default()
    };
    for (prices, expected) in [
        (vec![price(1, "m")], (502, "a")),
        (vec![price(1, "m"), price(2, "n")], (200, "b")),
    ] {
        let (bad, good) = (fails("500 Oops").await, works().await);
        let models = vec![
            ModelSpec {
                fallbacks: vec!["n".to_owned()],
                ..model("m", &["a"])
            },
            model("n", &["b"]),
        ];
        let rig = rig(&[&bad, &good], models);
        rig.gateway.load_prices(prices).unwrap();
        let mut key = key_spec(KEY);
        key.limits.budget_nano = Some(1_000_000_000);
        key.limits.budget_period = Some("total".to_owned());
        rig.gateway.load_keys(vec![key], true).unwrap();
        let answer = ask(&rig).await;
        assert_eq!((answer.status, told(&answer).1), expected, "{answer:?}");
        let cost = if expected.0 == 200 { 2_000_000 } else { 0 };
        assert_eq!(rig.event().await.cost_pico, Some(cost));
    }
}
