//! Which requests are traced, what their upstreams are told, and what waits of them.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::collections::HashSet;

use forebay_core::trace::Trace;
use serde_json::Value;
use support::engine::{Engine, Step, UNARY, unary};
use support::{Rig, Setup};
use uuid::Uuid;

const PARENT: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

#[test]
fn the_client_decides_and_without_one_the_share() {
    let id = Uuid::now_v7();
    assert_eq!(Trace::of(Some(UNSAMPLED), &id, 1.0), None);
    assert_eq!(Trace::of(None, &id, 0.0), None);
    let joined = Trace::of(Some(PARENT), &id, 0.0).unwrap();
    let header = joined.traceparent(1).unwrap();
    assert!(
        header
            .to_str()
            .unwrap()
            .starts_with("00-0af7651916cd43dd8448eb211c80319c-")
    );
    // What is no traceparent says nothing.
    let own = Trace::of(Some(b"00-zz-1-01"), &id, 1.0).unwrap();
    let expected = format!("00-{}-", id.simple());
    assert!(
        own.traceparent(1)
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with(&expected)
    );
}

#[test]
fn the_share_is_kept() {
    let traced = |_: &u32| Trace::of(None, &Uuid::now_v7(), 0.25).is_some();
    let count = (0..20_000).filter(traced).count();
    // Six standard deviations of a binomial distribution.
    assert!((4_632..5_368).contains(&count), "{count}");
}

#[test]
fn spans_have_ids_of_their_own() {
    let mut seen = HashSet::new();
    for _ in 0..1_000 {
        let trace = Trace::of(Some(PARENT), &Uuid::now_v7(), 1.0).unwrap();
        for number in 1..=16 {
            assert!(seen.insert(trace.traceparent(number).unwrap()));
        }
    }
}

#[tokio::test]
async fn traced_requests_wait_with_their_attempts() {
    let busy = unary("503 Service Unavailable", r#"{"error":{"message":"busy"}}"#);
    let bad = Engine::always(vec![Step::Send(busy)]).await;
    let good = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&bad, &good]);
    assert_eq!(rig.chat(false).await.status, 200);
    assert_eq!(rig.gateway.traces.take(10), None, "off until it begins");
    rig.gateway.traces.begin(1.0);
    for _ in 0..2 {
        assert_eq!(rig.chat(false).await.status, 200);
    }
    let taken = rig.gateway.traces.take(10).unwrap();
    assert_eq!(rig.gateway.traces.take(10), None);
    let all: Vec<Value> = serde_json::from_slice(&taken).unwrap();
    assert_eq!(all.len(), 2);
    let tried = |one: &Value| one["attempts"].as_array().unwrap().len();
    let several = all.iter().find(|one| tried(one) == 2).unwrap();
    assert_eq!(several["parent_id"], Value::Null);
    assert_eq!(several["outcome"], "ok");
    assert_eq!(several["attempts"][0]["reason"], "unavailable");
    let ids: HashSet<_> = [
        &several["span_id"],
        &several["attempts"][0]["span_id"],
        &several["attempts"][1]["span_id"],
    ]
    .into_iter()
    .map(Value::to_string)
    .collect();
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn what_is_not_sampled_does_not_wait() {
    let good = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&good]);
    rig.gateway.traces.begin(0.0);
    assert_eq!(rig.chat(false).await.status, 200);
    assert_eq!(rig.gateway.traces.take(10), None, "not sampled");
    assert_eq!(rig.gateway.traces.dropped.get(), 0);
}
