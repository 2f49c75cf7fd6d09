//! Which target a request ends up at: tiers, engines that are away or being started, sessions,
//! canaries, shadows, and targets that are not for every request.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_core::gateway::{Endpoint, Request};
use forebay_core::health::Engine as State;
use forebay_core::price::PriceSpec;
use forebay_core::slot::Slot;
use forebay_core::snapshot::{
    ColdSpec, ModelSpec, PathsSpec, PolicySpec, ShadowSpec, SnapshotSpec, StickyBy, StickySpec,
    TargetSpec, UpstreamSpec,
};
use support::engine::{Engine, Step, UNARY, unary};
use support::{Answer, KEY, Rig, Setup, chat, key_text, until};

const MS: Duration = Duration::from_millis(1);
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

async fn engine() -> Engine {
    Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await
}

async fn slow(wait: Duration) -> Engine {
    Engine::always(vec![Step::Wait(wait), Step::Send(unary("200 OK", UNARY))]).await
}

fn upstream(name: &str, engine: &Engine) -> UpstreamSpec {
    UpstreamSpec {
        name: name.to_owned(),
        url: format!("http://{}", engine.address),
        connect_s: 2.0,
        queue_timeout_s: 5.0,
        ..UpstreamSpec::default()
    }
}

/// Each engine is a target of the next tier.
fn spec(engines: &[&Engine]) -> SnapshotSpec {
    let named = || NAMES.iter().zip(engines);
    SnapshotSpec {
        upstreams: named()
            .map(|(name, engine)| upstream(name, engine))
            .collect(),
        models: vec![ModelSpec {
            name: "m".to_owned(),
            targets: named()
                .enumerate()
                .map(|(tier, (name, _))| TargetSpec {
                    upstream: (*name).to_owned(),
                    model: "m".to_owned(),
                    tier: tier as u8,
                    ..TargetSpec::default()
                })
                .collect(),
            first_byte_s: 5.0,
            idle_s: 5.0,
            total_s: 10.0,
            ..ModelSpec::default()
        }],
        max_event_bytes: 1 << 16,
        max_answer_bytes: 1 << 20,
        complete: true,
        prompt_logs: None,
        files: None,
    }
}

fn rig(spec: SnapshotSpec) -> Rig {
    let nobody = Engine {
        address: "127.0.0.1:9".parse().unwrap(),
        log: Arc::default(),
    };
    let rig = Rig::new(Setup::default(), &[&nobody]);
    rig.gateway.configure(spec).unwrap();
    rig
}

fn start(rig: &Rig) -> Arc<Slot> {
    rig.admit(Endpoint::Chat, &chat(false))
}

/// The upstream that answered, and how many were tried.
fn served(answer: &Answer) -> (&str, &str) {
    assert_eq!(answer.status, 200, "{answer:?}");
    (
        answer.header("x-forebay-upstream").unwrap(),
        answer.header("x-forebay-attempts").unwrap(),
    )
}

/// Whether a series of the metric has this value.
fn shows(rig: &Rig, metric: &str, value: u64) -> bool {
    rig.gateway.show_upstreams();
    let text = rig.gateway.metrics.registry.render();
    let mut series = text.lines().filter(|line| line.starts_with(metric));
    series.any(|line| line.ends_with(&format!("}} {value}")))
}

async fn ask(rig: &Rig) -> Answer {
    Answer::of(&start(rig)).await
}

fn code(answer: &Answer) -> String {
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    body["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn cold() -> ColdSpec {
    ColdSpec {
        hold_s: 4.0,
        spill_after_s: 0.15,
        keep_alive_s: 1.0,
        max_held: 100,
        idle_s: 0.0,
    }
}

#[tokio::test]
async fn a_higher_tier_serves_only_what_the_lower_cannot() {
    let (dead, spare) = (Engine::down().await, engine().await);
    let good = engine().await;
    let mut both = spec(&[&good, &spare]);
    let rig = rig(both);
    for _ in 0..10 {
        assert_eq!(served(&ask(&rig).await), ("a", "1"));
    }
    // It cannot be reached.
    both = spec(&[&dead, &spare]);
    rig.gateway.configure(both).unwrap();
    assert_eq!(served(&ask(&rig).await), ("b", "2"));
    // Probes found it down: it is not even tried.
    assert!(rig.gateway.report_upstream("a", State::Down, None));
    assert_eq!(served(&ask(&rig).await), ("b", "1"));
    rig.events(12).await;
}

#[tokio::test]
async fn a_whole_tier_that_is_gone_costs_a_few_refused_connections() {
    let gone = [
        Engine::down().await,
        Engine::down().await,
        Engine::down().await,
    ];
    let spare = engine().await;
    let [one, two, three] = &gone;
    let mut tiers = flat(&[one, two, three, &spare]);
    tiers.models[0].targets[3].tier = 1;
    let rig = rig(tiers);
    let since = Instant::now();
    for _ in 0..20 {
        assert_eq!(served(&ask(&rig).await), ("d", "4"));
    }
    assert!(since.elapsed() < 1000 * MS, "{:?}", since.elapsed());
    rig.events(20).await;
}

#[tokio::test]
async fn a_full_tier_spills_and_one_with_a_queue_does_not() {
    let (busy, spare) = (slow(150 * MS).await, engine().await);
    let mut full = spec(&[&busy, &spare]);
    full.upstreams[0].max_concurrency = Some(1);
    let rig = rig(full);
    let first = start(&rig);
    until("it runs", || busy.active() == 1).await;
    assert!(shows(
        &rig,
        "forebay_upstream_requests_in_flight{upstream=\"a\"",
        1
    ));
    assert_eq!(served(&ask(&rig).await), ("b", "1"));
    assert_eq!(served(&Answer::of(&first).await), ("a", "1"));

    let mut queued = spec(&[&busy, &spare]);
    queued.upstreams[0].max_concurrency = Some(1);
    queued.upstreams[0].max_waiting = 1;
    rig.gateway.configure(queued).unwrap();
    let before = busy.requests().len();
    let first = start(&rig);
    until("it runs", || busy.requests().len() == before + 1).await;
    let second = start(&rig);
    until("it waits", || {
        rig.gateway.metrics.gate("a").waiting.get() == 1
    })
    .await;
    // The queue is full as well.
    assert_eq!(served(&ask(&rig).await), ("b", "1"));
    assert_eq!(served(&Answer::of(&first).await), ("a", "1"));
    assert_eq!(served(&Answer::of(&second).await), ("a", "1"));
    rig.events(5).await;
}

#[tokio::test]
async fn who_waits_at_an_engine_that_goes_away_goes_elsewhere() {
    let (busy, spare) = (slow(1500 * MS).await, engine().await);
    let mut queued = spec(&[&busy, &spare]);
    queued.upstreams[0].max_concurrency = Some(1);
    queued.upstreams[0].max_waiting = 10;
    let rig = rig(queued);
    let first = start(&rig);
    until("it runs", || busy.active() == 1).await;
    let second = start(&rig);
    until("it waits", || {
        rig.gateway.metrics.gate("a").waiting.get() == 1
    })
    .await;
    let since = Instant::now();
    assert!(rig.gateway.drain_upstream("a", true));
    assert_eq!(served(&Answer::of(&second).await), ("b", "1"));
    assert!(since.elapsed() < 500 * MS);
    // What runs there runs on.
    assert_eq!(served(&Answer::of(&first).await), ("a", "1"));
    assert_eq!(served(&ask(&rig).await), ("b", "1"));
    assert!(rig.gateway.drain_upstream("a", false));
    assert_eq!(served(&ask(&rig).await), ("a", "1"));
    rig.events(4).await;
}

#[tokio::test]
async fn a_request_is_held_for_a_cold_engine_and_spills_in_time() {
    let (gpu, spare) = (engine().await, engine().await);
    let mut tiers = spec(&[&gpu, &spare]);
    tiers.upstreams[0].cold = Some(cold());
    let rig = rig(tiers);
    assert!(rig.gateway.report_upstream("a", State::Cold, None));
    let since = Instant::now();
    assert_eq!(served(&ask(&rig).await), ("b", "1"));
    assert!(
        (150 * MS..900 * MS).contains(&since.elapsed()),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(rig.gateway.take_wanted(), ["a"]);
    // It comes up before that.
    let held = start(&rig);
    tokio::time::sleep(40 * MS).await;
    assert!(rig.gateway.report_upstream("a", State::Warm, None));
    assert_eq!(served(&Answer::of(&held).await), ("a", "1"));
    rig.events(2).await;
    assert!(shows(&rig, "forebay_model_spills_total", 1));
}

#[tokio::test]
async fn without_another_tier_requests_wait_for_their_engine() {
    let gpu = engine().await;
    let mut only = spec(&[&gpu]);
    only.upstreams[0].cold = Some(ColdSpec {
        max_held: 20,
        ..cold()
    });
    let rig = rig(only);
    assert!(rig.gateway.report_upstream("a", State::Loading, None));
    let held: Vec<_> = (0..20).map(|_| start(&rig)).collect();
    tokio::time::sleep(300 * MS).await;
    assert_eq!(gpu.requests().len(), 0);
    assert!(shows(&rig, "forebay_model_requests_held", 20));
    assert!(shows(&rig, "forebay_model_requests_in_flight", 20));
    // One more than may wait.
    let more = ask(&rig).await;
    assert_eq!(more.status, 503, "{more:?}");
    assert!(rig.gateway.report_upstream("a", State::Warm, None));
    let since = Instant::now();
    for slot in &held {
        assert_eq!(served(&Answer::of(slot).await), ("a", "1"));
    }
    assert!(since.elapsed() < 900 * MS, "{:?}", since.elapsed());
    rig.events(21).await;
    assert!(!shows(&rig, "forebay_model_requests_held", 20));
    assert!(!shows(&rig, "forebay_model_requests_in_flight", 20));
    assert!(shows(&rig, "forebay_model_requests_total", 21));
    assert!(!shows(&rig, "forebay_model_spills_total", 1));
}

#[tokio::test]
async fn an_engine_that_does_not_come_up_in_time_is_an_honest_503() {
    let gpu = engine().await;
    let mut only = spec(&[&gpu]);
    only.upstreams[0].cold = Some(ColdSpec {
        hold_s: 0.2,
        ..cold()
    });
    let rig = rig(only);
    assert!(rig.gateway.report_upstream("a", State::Cold, None));
    let answer = ask(&rig).await;
    assert_eq!(
        (answer.status, code(&answer).as_str()),
        (503, "engine_starting")
    );
    assert!(answer.header("retry-after").is_some());
    // A client that leaves leaves its place.
    let slot = start(&rig);
    tokio::time::sleep(20 * MS).await;
    slot.cancel();
    drop(slot);
    rig.events(2).await;
}

#[tokio::test]
async fn a_tier_that_comes_back_gets_its_requests_back_slowly() {
    let (gpu, spare) = (engine().await, engine().await);
    let mut tiers = spec(&[&gpu, &spare]);
    tiers.upstreams[0].slow_start_s = 20.0;
    let rig = rig(tiers);
    rig.gateway.report_upstream("a", State::Down, None);
    assert_eq!(served(&ask(&rig).await), ("b", "1"));
    rig.gateway.report_upstream("a", State::Warm, None);
    for _ in 0..200 {
        ask(&rig).await;
    }
    // A tenth at first.
    let back = gpu.requests().len();
    assert!((5..60).contains(&back), "{back}");
    // Without the other tier it gets all.
    rig.gateway.report_upstream("b", State::Down, None);
    for _ in 0..20 {
        assert_eq!(served(&ask(&rig).await), ("a", "1"));
    }
    rig.events(221).await;
}

#[tokio::test]
async fn a_fallback_is_bound_by_its_own_prices_and_sessions() {
    let (away, dear, cheap) = (Engine::down().await, engine().await, engine().await);
    let mut models = flat(&[&away, &dear, &cheap]);
    let mut targets = models.models[0].targets.split_off(1);
    targets[0].max_cost_nano = Some(5);
    models.models[0].fallbacks = vec!["other".to_owned()];
    models.models.push(ModelSpec {
        name: "other".to_owned(),
        targets,
        first_byte_s: 5.0,
        idle_s: 5.0,
        total_s: 10.0,
        ..ModelSpec::default()
    });
    let rig = rig(models);
    rig.gateway
        .load_prices(vec![PriceSpec {
            id: 1,
            model: "other".to_owned(),
            output: 1_000_000,
            ..PriceSpec::default()
        }])
        .unwrap();
    for _ in 0..4 {
        assert_eq!(served(&ask(&rig).await).0, "c");
    }
    rig.events(4).await;
}

#[tokio::test]
async fn nobody_there_is_a_503() {
    let gpu = engine().await;
    let rig = rig(spec(&[&gpu]));
    assert!(rig.gateway.report_upstream("a", State::Down, None));
    // A probe may be wrong, and there is nothing else.
    assert_eq!(served(&ask(&rig).await), ("a", "1"));
    rig.gateway.drain_upstream("a", true);
    let answer = ask(&rig).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(gpu.requests().len(), 1);
    rig.events(2).await;
}

#[tokio::test]
async fn dear_targets_and_small_contexts_are_passed_over() {
    let (dear, small) = (engine().await, engine().await);
    let mut bounded = spec(&[&dear, &small]);
    bounded.models[0].targets[0].max_cost_nano = Some(5_000);
    bounded.models[0].targets[1].context_tokens = Some(2000);
    let rig = rig(bounded);
    rig.gateway
        .load_prices(vec![PriceSpec {
            id: 1,
            model: "m".to_owned(),
            upstream: Some("a".to_owned()),
            output: 1_000_000,
            ..PriceSpec::default()
        }])
        .unwrap();
    let with = |tokens: u32| {
        chat(false).replace(
            "\"messages\"",
            &format!("\"max_tokens\":{tokens},\"messages\""),
        )
    };
    let ask = async |tokens| Answer::of(&rig.admit(Endpoint::Chat, &with(tokens))).await;
    // 1 micro-USD a token.
    assert_eq!(served(&ask(5).await), ("a", "1"));
    assert_eq!(served(&ask(6).await), ("b", "1"));
    // Too dear at one, too long for the other, which is asked all the same: it was only an estimate.
    assert_eq!(served(&ask(5000).await), ("b", "1"));
    rig.gateway.drain_upstream("b", true);
    assert_eq!(ask(6).await.status, 503);

    let mut dear_only = spec(&[&dear]);
    dear_only.models[0].targets[0].max_cost_nano = Some(5_000);
    rig.gateway.configure(dear_only).unwrap();
    let refused = ask(6).await;
    assert_eq!(
        (refused.status, code(&refused).as_str()),
        (400, "cost_limit")
    );
    rig.events(5).await;
}

#[tokio::test]
async fn an_api_is_asked_for_only_where_it_is() {
    let (chats, all) = (engine().await, engine().await);
    let mut some = spec(&[&chats, &all]);
    some.upstreams[0].paths = PathsSpec {
        completions: None,
        embeddings: None,
        ..PathsSpec::default()
    };
    some.upstreams[1].paths.embeddings = None;
    let rig = rig(some);
    assert_eq!(served(&ask(&rig).await), ("a", "1"));
    let prompt = "{\"model\":\"m\",\"prompt\":\"hi\"}";
    let answer = Answer::of(&rig.admit(Endpoint::Completions, prompt)).await;
    assert_eq!(served(&answer), ("b", "1"));
    let input = "{\"model\":\"m\",\"input\":\"hi\"}";
    let answer = Answer::of(&rig.admit(Endpoint::Embeddings, input)).await;
    assert_eq!(
        (answer.status, code(&answer).as_str()),
        (400, "unsupported_endpoint")
    );
    rig.events(3).await;
}

/// All engines in one tier.
fn flat(engines: &[&Engine]) -> SnapshotSpec {
    let mut spec = spec(engines);
    for target in &mut spec.models[0].targets {
        target.tier = 0;
    }
    spec
}

#[tokio::test]
async fn weights_and_canaries_get_their_shares() {
    let (main, half, canary) = (engine().await, engine().await, engine().await);
    let mut shares = flat(&[&main, &half, &canary]);
    shares.models[0].targets[0].weight = 2;
    shares.models[0].targets[2].canary_percent = Some(10.0);
    let rig = rig(shares);
    for _ in 0..100 {
        ask(&rig).await;
    }
    let counts = [&main, &half, &canary].map(|engine| engine.requests().len());
    assert_eq!(counts, [60, 30, 10]);
    // A canary that is away gets nothing; one that is all there is gets everything.
    rig.gateway.report_upstream("c", State::Down, None);
    for _ in 0..20 {
        assert_ne!(served(&ask(&rig).await).0, "c");
    }
    rig.gateway.report_upstream("c", State::Warm, None);
    rig.gateway.report_upstream("a", State::Down, None);
    rig.gateway.report_upstream("b", State::Down, None);
    assert_eq!(served(&ask(&rig).await), ("c", "1"));
    rig.events(121).await;
}

/// One request of a session; the upstream that served it.
async fn in_session(rig: &Rig, session: &str) -> String {
    let authorization = format!("Bearer {}", key_text(KEY));
    let request = Request {
        authorization: Some(authorization.as_bytes()),
        content_type: Some(b"application/json"),
        session: Some(session.as_bytes()),
        ..Request::default()
    };
    let slot = rig
        .gateway
        .admit(Endpoint::Chat, request, Bytes::from(chat(false)));
    let answer = Answer::of(&slot).await;
    served(&answer).0.to_owned()
}

#[tokio::test]
async fn a_session_stays_and_moves_only_when_its_target_is_away() {
    let engines = [engine().await, engine().await, engine().await];
    let mut sticky = flat(&engines.each_ref());
    sticky.models[0].policy = PolicySpec::RoundRobin;
    sticky.models[0].sticky = Some(StickySpec {
        by: StickyBy::Session,
        ttl_s: 60.0,
    });
    let rig = rig(sticky);
    let mut homes = BTreeMap::new();
    for _ in 0..5 {
        for session in ["s1", "s2", "s3", "s4"] {
            let at = in_session(&rig, session).await;
            assert_eq!(*homes.entry(session).or_insert_with(|| at.clone()), at);
        }
    }
    let places: std::collections::BTreeSet<_> = homes.values().collect();
    assert_eq!(places.len(), 3);
    let home = &homes["s1"];
    rig.gateway.report_upstream(home, State::Down, None);
    let other = in_session(&rig, "s1").await;
    assert_ne!(other, *home);
    rig.gateway.report_upstream(home, State::Warm, None);
    assert_eq!(in_session(&rig, "s1").await, other);
    rig.events(22).await;
}

#[tokio::test]
async fn routing_state_outlives_a_reload_that_does_not_touch_it() {
    let engines = [engine().await, engine().await];
    let rig = rig(flat(&engines.each_ref()));
    for turn in 0..6 {
        let at = ask(&rig).await;
        assert_eq!(served(&at).0, ["a", "b"][turn % 2]);
        let mut next = flat(&engines.each_ref());
        next.models[0].idle_s = 3.0 + turn as f64;
        rig.gateway.configure(next).unwrap();
    }
    rig.events(6).await;
}

#[tokio::test]
async fn a_shadow_gets_copies_that_nobody_waits_for() {
    let (main, shadow) = (engine().await, slow(300 * MS).await);
    let mut copied = spec(&[&main]);
    copied.upstreams.push(upstream("s", &shadow));
    copied.models[0].shadow = Some(ShadowSpec {
        upstream: "s".to_owned(),
        model: "next".to_owned(),
        percent: 50.0,
        max_in_flight: 3,
    });
    let rig = rig(copied);
    for _ in 0..20 {
        let answer = ask(&rig).await;
        assert_eq!(served(&answer), ("a", "1"));
    }
    // Ten were due, three may run at once.
    until("the copies arrive", || shadow.requests().len() == 3).await;
    assert!(
        shadow
            .requests()
            .iter()
            .all(|r| r.json()["model"] == "next")
    );
    assert!(main.requests().iter().all(|r| r.json()["model"] == "m"));
    tokio::time::sleep(400 * MS).await;
    assert_eq!(shadow.requests().len(), 3);
    ask(&rig).await;
    ask(&rig).await;
    until("another copy arrives", || shadow.requests().len() == 4).await;
    // Who takes no new requests takes no copies.
    tokio::time::sleep(400 * MS).await;
    assert!(rig.gateway.drain_upstream("s", true));
    ask(&rig).await;
    ask(&rig).await;
    tokio::time::sleep(50 * MS).await;
    assert_eq!(shadow.requests().len(), 4);
    // Copies are not booked.
    rig.events(24).await;
    let text = rig.gateway.metrics.registry.render();
    assert!(
        text.contains("forebay_shadow_requests_total{upstream=\"s\",outcome=\"ok\"} 4"),
        "{text}"
    );
}
