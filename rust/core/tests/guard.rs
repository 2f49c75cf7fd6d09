//! What would kill or mislead an engine stops at the gateway, and names the field.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use forebay_core::gateway::Endpoint;
use serde_json::{Value, json};
use support::engine::{Engine, Step, UNARY, unary};
use support::{Answer, Rig, Setup, within};

async fn rig() -> (Engine, Rig) {
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&engine]);
    (engine, rig)
}

fn describe(rig: &Rig, upstream: &str, facts: &Value) {
    let said = json!({"models": {"engine/m": facts}});
    let said = serde_json::from_value(said).unwrap();
    rig.gateway.describe_upstream(upstream, said);
}

async fn ask(rig: &Rig, endpoint: Endpoint, body: &Value) -> (u16, Value) {
    let answer = within(Answer::of(&rig.admit(endpoint, &body.to_string()))).await;
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    (answer.status, body["error"]["param"].clone())
}

#[tokio::test]
async fn token_ids_beyond_the_vocabulary_reach_no_engine() {
    let (engine, rig) = rig().await;
    describe(&rig, "a", &json!({"vocab_size": 1000}));
    let completions = |prompt: Value| json!({"model": "m", "prompt": prompt});
    for prompt in [
        json!([1000]),
        json!([[1, 2], [3, 1000]]),
        json!([-1]),
        json!([1.0]),
        json!([1, "5"]),
        json!([["5000"]]),
        json!([1, true]),
        json!([u64::MAX]),
    ] {
        let refused = ask(&rig, Endpoint::Completions, &completions(prompt.clone())).await;
        assert_eq!(refused, (400, json!("prompt")), "{prompt}");
    }
    let refused = ask(
        &rig,
        Endpoint::Embeddings,
        &json!({"model": "m", "input": [1000]}),
    )
    .await;
    assert_eq!(refused, (400, json!("input")));
    for (field, value) in [
        ("stop_token_ids", json!([1000])),
        ("stop_token_ids", json!(["1"])),
        ("logit_bias", json!({"1000": 1})),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!({"1_0": 1})),
        ("input_ids", json!([1000])),
        ("allowed_token_ids", json!([1000])),
    ] {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body[field] = value;
        assert_eq!(
            ask(&rig, Endpoint::Chat, &body).await,
            (400, json!(field)),
            "{body}"
        );
    }
    assert!(engine.requests().is_empty());
    for prompt in [
        json!([999, 0]),
        json!([[1], [2]]),
        json!("1000"),
        json!(["1000", "x"]),
    ] {
        let answer = ask(&rig, Endpoint::Completions, &completions(prompt)).await;
        assert_eq!(answer, (200, Value::Null));
    }
    assert_eq!(engine.requests().len(), 4);
}

#[tokio::test]
async fn without_a_known_vocabulary_what_is_in_none_is_refused() {
    let (_, rig) = rig().await;
    let body = |id: u32| json!({"model": "m", "prompt": [id]});
    assert_eq!(
        ask(&rig, Endpoint::Completions, &body(300_000)).await.0,
        200
    );
    assert_eq!(
        ask(&rig, Endpoint::Completions, &body(1 << 19)).await.0,
        400
    );
}

#[tokio::test]
async fn the_smallest_vocabulary_of_a_models_targets_counts() {
    let (first, second) = (Engine::down().await, Engine::down().await);
    let rig = Rig::new(Setup::default(), &[&first, &second]);
    describe(&rig, "a", &json!({"vocab_size": 1000, "embedding": true}));
    describe(&rig, "b", &json!({"vocab_size": 500, "embedding": null}));
    let body = json!({"model": "m", "prompt": [500]});
    let refused = ask(&rig, Endpoint::Completions, &body).await;
    assert_eq!(
        refused,
        (400, json!("prompt")),
        "and one embedding target is not all"
    );
    // What it says later holds in place of what it said.
    describe(&rig, "b", &json!({}));
    assert_eq!(ask(&rig, Endpoint::Completions, &body).await.0, 503);
}

#[tokio::test]
async fn a_model_is_asked_only_for_what_it_makes() {
    let (engine, rig) = rig().await;
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    let embeddings = json!({"model": "m", "input": "hi"});
    describe(&rig, "a", &json!({"embedding": true}));
    assert_eq!(
        ask(&rig, Endpoint::Chat, &chat).await,
        (400, json!("model"))
    );
    assert_eq!(ask(&rig, Endpoint::Embeddings, &embeddings).await.0, 200);
    describe(&rig, "a", &json!({"embedding": false}));
    assert_eq!(
        ask(&rig, Endpoint::Embeddings, &embeddings).await,
        (400, json!("model"))
    );
    assert_eq!(ask(&rig, Endpoint::Chat, &chat).await.0, 200);
    assert_eq!(engine.requests().len(), 2);
}

#[tokio::test]
async fn what_controls_an_engine_is_not_for_clients() {
    let (engine, rig) = rig().await;
    let chat = |field: &str, value: Value| {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body[field] = value;
        body
    };
    for field in forebay_core::peek::CONTROL_FIELDS {
        let refused = ask(&rig, Endpoint::Chat, &chat(field, json!("x"))).await;
        assert_eq!(refused, (400, json!(field)));
        assert_eq!(
            ask(&rig, Endpoint::Chat, &chat(field, Value::Null)).await.0,
            200
        );
    }
    let sent = engine.requests().len();
    // A client's place in the engine's queue, and its name for the request, never get there.
    assert_eq!(
        ask(&rig, Endpoint::Chat, &chat("priority", json!(9)))
            .await
            .0,
        200
    );
    assert_eq!(
        ask(&rig, Endpoint::Chat, &chat("rid", json!("mine")))
            .await
            .0,
        200
    );
    let requests = engine.requests();
    assert_eq!(requests[sent].json()["priority"], Value::Null);
    assert_ne!(requests[sent + 1].json()["rid"], json!("mine"));
}

#[tokio::test]
async fn an_adapter_is_a_model_only_where_it_is_configured() {
    let (engine, rig) = rig().await;
    for model in ["m:adapter", "engine/m", "M", "m "] {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
        assert_eq!(
            ask(&rig, Endpoint::Chat, &body).await,
            (404, json!("model"))
        );
    }
    assert!(engine.requests().is_empty());
}
