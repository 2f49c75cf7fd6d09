//! Requests that ask the store which machines share before they are admitted.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

#[path = "support/store.rs"]
mod store;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_core::door::Way;
use forebay_core::gateway::{Gateway, Request};
use forebay_core::keys::KeySpec;
use forebay_core::slot::Slot;
use store::Store;
use support::engine::{Engine, Step, UNARY, unary};
use support::{Answer, KEY, Rig, Setup, key_spec, key_text};

const MS: Duration = Duration::from_millis(1);

/// Answers what the gateway's leases ask, at once.
async fn sync(gateway: Arc<Gateway>) {
    let mut store = Store::default();
    loop {
        let now = gateway.now().mono;
        let (round, _) = gateway.leases.collect(now);
        for call in round.into_iter().flat_map(|round| round.calls) {
            let now_us = (now / 1_000).cast_signed() + 1_000_000_000_000_000;
            let reply = store.call(now_us, "me", &call.keys(), &call.arguments());
            let grants = call.grants(&reply).unwrap();
            gateway.leases.answer(now, now, &call, Some(&grants));
        }
        tokio::time::sleep(MS).await;
    }
}

/// Has a response for whoever asks, after `wait`.
async fn keep(gateway: Arc<Gateway>, wait: Duration) {
    loop {
        for question in poll_fn(|cx| gateway.port.poll_questions(cx)).await {
            tokio::time::sleep(wait).await;
            question.answer(Bytes::from_static(
                br#"{"input":[{"role":"user","content":"hi"}],"response":{"output":[]}}"#,
            ));
        }
    }
}

fn respond(rig: &Rig) -> Arc<Slot> {
    let authorization = format!("Bearer {}", key_text(KEY));
    let request = Request {
        authorization: Some(authorization.as_bytes()),
        content_type: Some(b"application/json"),
        ..Request::default()
    };
    let body = r#"{"model":"m","store":false,"previous_response_id":"resp_1","input":"and now?"}"#;
    let way = Way::of_path("/v1/responses").unwrap();
    rig.gateway.enter(way, request, body.into())
}

fn limited() -> KeySpec {
    let mut key = key_spec(KEY);
    key.limits.rpm = Some(60);
    key
}

#[tokio::test]
async fn the_wait_for_a_grant_begins_once_what_came_before_is_loaded() {
    let engine = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let setup = Setup {
        keys: Vec::new(),
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&engine]);
    rig.gateway.leases.activate(1, || {});
    rig.gateway.load_keys(vec![limited()], true).unwrap();
    tokio::spawn(sync(Arc::clone(&rig.gateway)));
    tokio::spawn(keep(Arc::clone(&rig.gateway), 150 * MS));
    tokio::time::sleep(5 * MS).await;
    let answer = Answer::of(&respond(&rig)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    rig.event().await;
}
