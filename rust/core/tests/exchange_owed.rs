//! What is owed, and who is read on for, where a request has gone further than its first target.
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
use forebay_core::health::Engine as State;
use forebay_core::snapshot::{
    ColdSpec, DrainSpec, ModelSpec, SnapshotSpec, TargetSpec, UpstreamSpec,
};
use support::engine::{Engine, STREAM_HEAD, Step, chunk, content, unary};
use support::{Answer, Rig, Setup, chat, until, within};

fn upstream(name: &str, engine: &Engine) -> UpstreamSpec {
    UpstreamSpec {
        name: name.to_owned(),
        url: format!("http://{}", engine.address),
        connect_s: 2.0,
        ..UpstreamSpec::default()
    }
}

fn model(name: &str, upstreams: &[&str]) -> ModelSpec {
    let target = |(tier, upstream): (usize, &&str)| TargetSpec {
        upstream: (*upstream).to_owned(),
        model: name.to_owned(),
        tier: u8::try_from(tier).unwrap(),
        ..TargetSpec::default()
    };
    ModelSpec {
        name: name.to_owned(),
        targets: upstreams.iter().enumerate().map(target).collect(),
        first_byte_s: 5.0,
        idle_s: 5.0,
        total_s: 10.0,
        ..ModelSpec::default()
    }
}

fn rig(upstreams: Vec<UpstreamSpec>, models: Vec<ModelSpec>) -> Rig {
    let nobody = Engine {
        address: "127.0.0.1:9".parse().unwrap(),
        log: Arc::default(),
    };
    let rig = Rig::new(Setup::default(), &[&nobody]);
    let spec = SnapshotSpec {
        upstreams,
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

#[tokio::test]
async fn an_engine_that_fails_is_owed_nothing_though_the_head_is_out() {
    let engine = Engine::always(vec![Step::Send(unary("500 Oops", "{}"))]).await;
    let mut cold = upstream("a", &engine);
    cold.cold = Some(ColdSpec {
        hold_s: 4.0,
        spill_after_s: 0.1,
        keep_alive_s: 0.02,
        max_held: 100,
        idle_s: 0.0,
    });
    let rig = rig(vec![cold], vec![model("m", &["a"])]);
    assert!(rig.gateway.report_upstream("a", State::Loading, None));
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    let head = within(std::future::poll_fn(|cx| slot.poll_head(cx))).await;
    assert_eq!(head.unwrap().status, 200);
    assert!(rig.gateway.report_upstream("a", State::Warm, None));
    let mut body = Vec::new();
    while let Some(bytes) = within(std::future::poll_fn(|cx| slot.poll_bytes(cx))).await {
        body.extend_from_slice(&bytes);
    }
    assert!(String::from_utf8(body).unwrap().contains("upstream_error"));
    let event = rig.event().await;
    assert_eq!((event.outcome, event.attempts), ("upstream_cut", 1));
    assert_eq!((event.usage.total(), event.cost_pico), (0, Some(0)));
}

#[tokio::test]
async fn a_fallbacks_engine_is_read_on_no_longer_than_it_may() {
    let steps = vec![
        Step::Send([STREAM_HEAD, &chunk(content("a", 1).as_bytes())].concat()),
        Step::Hang,
    ];
    let (dead, engine) = (Engine::down().await, Engine::always(steps).await);
    let mut second = upstream("b", &engine);
    second.drain = Some(DrainSpec {
        seconds: 0.2,
        bytes: 1 << 20,
    });
    let models = vec![
        ModelSpec {
            fallbacks: vec!["n".to_owned()],
            ..model("m", &["a"])
        },
        model("n", &["b"]),
    ];
    let rig = rig(vec![upstream("a", &dead), second], models);
    let slot = rig.admit(Endpoint::Chat, &chat(true));
    let head = within(std::future::poll_fn(|cx| slot.poll_head(cx))).await;
    assert_eq!(head.unwrap().status, 200);
    let left = Instant::now();
    slot.cancel();
    until("the engine is left", || engine.active() == 0).await;
    assert!(left.elapsed() < Duration::from_secs(2), "{left:?}");
    assert_eq!(rig.event().await.outcome, "client_closed");
}

#[tokio::test]
async fn a_stream_that_ends_its_engines_does_not_end_them_all() {
    // Each dies of it after one token.
    let steps = vec![
        Step::Send([STREAM_HEAD, &chunk(content("a", 1).as_bytes())].concat()),
        Step::Close,
    ];
    // The others die of it before.
    let mut engines = vec![Engine::always(steps).await];
    for _ in 1..20 {
        engines.push(Engine::always(vec![Step::Close]).await);
    }
    let names: Vec<String> = (0..engines.len()).map(|n| format!("e{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let upstreams = names.iter().zip(&engines).map(|(name, engine)| {
        let continues = true;
        UpstreamSpec {
            continues,
            ..upstream(name, engine)
        }
    });
    let models = vec![ModelSpec {
        resume: true,
        ..model("m", &names)
    }];
    let rig = rig(upstreams.collect(), models);
    let answer = Answer::of(&rig.admit(Endpoint::Chat, &chat(true))).await;
    assert!(answer.body.contains("upstream_error"), "{answer:?}");
    let ended = engines
        .iter()
        .filter(|engine| !engine.requests().is_empty());
    assert_eq!(ended.count(), 1 + 8);
    assert_eq!(rig.event().await.attempts, 1 + 8);
}

/// Its client leaves once `engine` has been asked; nothing of the request is left soon after.
async fn leaves(rig: &Rig, body: &str, engine: &Engine) {
    let slot = rig.admit(Endpoint::Chat, body);
    until("it is asked", || !engine.requests().is_empty()).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let left = Instant::now();
    slot.cancel();
    let event = rig.event().await;
    assert!(left.elapsed() < Duration::from_millis(500), "{left:?}");
    assert_eq!((event.outcome, event.status), ("client_closed", 499));
}

#[tokio::test]
async fn who_leaves_between_two_attempts_ends_it_all() {
    let busy = b"HTTP/1.1 503 Busy\r\nretry-after-ms: 1900\r\ncontent-length: 2\r\n\r\n{}";
    let engine = Engine::always(vec![Step::Send(busy.to_vec())]).await;
    for drain in [
        None,
        Some(DrainSpec {
            seconds: 5.0,
            bytes: 1 << 20,
        }),
    ] {
        let mut only = upstream("a", &engine);
        only.drain = drain;
        let rig = rig(vec![only], vec![model("m", &["a"])]);
        leaves(&rig, &chat(false), &engine).await;
        assert_eq!(engine.requests().len(), 1);
        engine.log.requests.lock().clear();
    }
}

#[tokio::test]
async fn who_leaves_while_two_engines_work_stops_both() {
    let engines = [
        Engine::always(vec![Step::Hang]).await,
        Engine::always(vec![Step::Hang]).await,
    ];
    let hedge = Some(forebay_core::snapshot::HedgeSpec {
        after_s: 0.02,
        max_percent: 100.0,
    });
    let model = ModelSpec {
        hedge,
        ..model("m", &["a", "b"])
    };
    let both = vec![upstream("a", &engines[0]), upstream("b", &engines[1])];
    let rig = rig(both, vec![model]);
    leaves(&rig, &chat(true), &engines[1]).await;
    until("both are left", || {
        engines.iter().all(|engine| engine.active() == 0)
    })
    .await;
}
