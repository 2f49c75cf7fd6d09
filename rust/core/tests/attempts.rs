//! What a request's attempts leave behind: in the answer's head, the log and the usage row.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::sync::{Arc, Mutex};

use forebay_core::attempts::{Attempt, Attempts, HEDGE_LOST, MAX_JSON, MAX_KEPT, OK, Why};
use forebay_core::error::{Error, Kind};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::engine::{Engine, STREAM_HEAD, Step, UNARY, unary};
use support::{Rig, Setup};

fn begun(attempts: &mut Attempts, number: u32, upstream: &str, at_us: u64) {
    attempts.begin(number, &upstream.into(), &"m".into(), at_us);
}

fn refused(status: u16) -> Error {
    let mut error = Error::new(Kind::Unavailable, "Busy.");
    error.upstream_status = Some(status);
    error
}

fn parsed(attempts: &Attempts) -> Value {
    serde_json::from_str(&attempts.json().unwrap()).unwrap()
}

#[test]
fn one_attempt_is_told_by_nobody() {
    let mut attempts = Attempts::default();
    assert_eq!((attempts.header(), attempts.json()), (None, None));
    begun(&mut attempts, 1, "a", 5);
    attempts.end(OK, None, 9);
    assert_eq!((attempts.header(), attempts.json()), (None, None));
    assert_eq!(attempts.all()[0].duration_us, 4);
}

#[test]
fn several_are_told_with_what_came_of_them() {
    let mut attempts = Attempts::default();
    begun(&mut attempts, 1, "gpu \"a\"", 1_000);
    attempts.fail(&refused(503), 4_500);
    assert_eq!(attempts.fail(&refused(500), 9_000), None, "it has ended");
    begun(&mut attempts, 2, "b", 5_000);
    assert_eq!(
        attempts.header().unwrap(),
        r#""gpu \"a\"";reason=unavailable;status=503;ms=3, "b";reason=ok"#,
        "the second one runs"
    );
    attempts.beside(Attempt {
        number: 3,
        upstream: "c".into(),
        model: "m".into(),
        why: Why::Hedge,
        reason: HEDGE_LOST,
        status: None,
        start_us: 6_000,
        duration_us: 2_000,
    });
    attempts.end(OK, None, 8_000);
    assert_eq!(
        attempts.header().unwrap(),
        r#""gpu \"a\"";reason=unavailable;status=503;ms=3, "b";reason=ok;ms=3, "c";reason=hedge_lost;why=hedge;ms=2"#
    );
    let all = parsed(&attempts);
    assert_eq!(
        all[0],
        json!({
            "number": 1, "upstream": "gpu \"a\"", "model": "m", "why": "first",
            "reason": "unavailable", "status": 503, "start_us": 1000, "duration_us": 3500,
        })
    );
    let whys: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["why"])
        .collect();
    assert_eq!(whys, ["first", "retry", "hedge"]);
}

proptest! {
    #[test]
    fn whatever_is_tried_is_bounded_and_ends_with_the_last(
        names in proptest::collection::vec(".{1,40}", 2..60),
    ) {
        let mut attempts = Attempts::default();
        for (at, name) in names.iter().enumerate() {
            begun(&mut attempts, at as u32 + 1, name, at as u64);
            attempts.fail(&refused(529), at as u64 + 1);
        }
        prop_assert!(attempts.all().len() <= MAX_KEPT);
        prop_assert_eq!(attempts.all().last().unwrap().number as usize, names.len());
        prop_assert!(attempts.header().unwrap().is_ascii());
        let text = attempts.json().unwrap();
        prop_assert!(text.len() <= MAX_JSON);
        let all: Vec<Value> = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&all[0]["number"], &json!(1));
        prop_assert_eq!(&all.last().unwrap()["number"], &json!(names.len()));
    }
}

#[tokio::test]
async fn a_retried_request_tells_of_both_attempts() {
    let busy = unary("503 Service Unavailable", r#"{"error":{"message":"busy"}}"#);
    let bad = Engine::always(vec![Step::Send(busy)]).await;
    let good = Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await;
    let rig = Rig::new(Setup::default(), &[&bad, &good]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    rig.gateway.on_failure(Box::new(move |failure| {
        let attempt = failure.attempt.cloned();
        sink.lock()
            .unwrap()
            .push((attempt, failure.request_id.to_owned()));
    }));
    let mut logs = 0;
    for _ in 0..2 {
        let answer = rig.chat(false).await;
        assert_eq!(answer.status, 200);
        let event = rig.event().await;
        if event.attempts == 1 {
            assert_eq!(answer.header("x-forebay-attempt-log"), None);
            assert_eq!(event.attempt_log, None);
            continue;
        }
        logs += 1;
        let log = answer.header("x-forebay-attempt-log").unwrap();
        assert!(log.contains(";reason=unavailable;status=503"), "{log}");
        let all: Value = serde_json::from_str(event.attempt_log.as_deref().unwrap()).unwrap();
        let reasons = [&all[0]["reason"], &all[1]["reason"]];
        assert_eq!(reasons, ["unavailable", "ok"]);
        assert!(all[1]["duration_us"].as_u64().unwrap() > 0);
        let mut told = told.lock().unwrap();
        assert_eq!(told.len(), 1, "one line for the attempt, and no other");
        let (attempt, id) = told.remove(0);
        let attempt = attempt.unwrap();
        assert_eq!(
            (attempt.number, attempt.reason, attempt.status, id),
            (1, "unavailable", Some(503), event.request_id)
        );
    }
    assert!(logs > 0, "the first engine was tried");
}

#[tokio::test]
async fn a_broken_stream_is_its_attempts_failure() {
    let engine = Engine::always(vec![Step::Send(STREAM_HEAD.to_vec()), Step::Close]).await;
    let other = Engine::always(vec![Step::Send(STREAM_HEAD.to_vec()), Step::Close]).await;
    let rig = Rig::new(Setup::default(), &[&engine, &other]);
    let answer = rig.chat(true).await;
    assert_eq!(answer.status, 502);
    let log = answer.header("x-forebay-attempt-log").unwrap();
    assert_eq!(log.matches("reason=upstream_error").count(), 2, "{log}");
}
