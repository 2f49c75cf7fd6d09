//! Upstreams' health: when one is taken out, how it comes back, and what that does to its requests.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::float_cmp
)]

use std::sync::Arc;
use std::time::Duration;

use forebay_core::counters::{Counters, OfHealth};
use forebay_core::error::{Error, Kind};
use forebay_core::health::load::Report;
use forebay_core::health::{Availability, Cause, Engine, Group, Health, Settings, View};
use forebay_core::limit::Region;
use forebay_core::snapshot::{
    ModelSpec, OutlierSpec, Reason, Snapshot, SnapshotSpec, TargetSpec, UpstreamSpec,
};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const MS: Duration = Duration::from_millis(1);
const WHOLE: Availability = Availability::Open { share: 1.0 };

const OUTLIER: OutlierSpec = OutlierSpec {
    consecutive: 5,
    failure_percent: 0,
    min_requests: 20,
    latency_factor: 0.0,
    interval_s: 10.0,
    base_ejection_s: 5.0,
    max_ejection_s: 60.0,
    max_ejection_percent: 50,
};

fn of(outlier: OutlierSpec) -> Arc<Health> {
    let settings = Settings {
        outlier: Some(outlier),
        slow_start: Duration::from_secs(10),
        draining: false,
        agent: true,
    };
    Arc::new(Health::new(settings, OfHealth::default(), false))
}

/// `count` upstreams that serve in one tier.
fn tier(count: usize, outlier: OutlierSpec) -> Vec<Arc<Health>> {
    let all: Vec<_> = (0..count).map(|_| of(outlier)).collect();
    let group: Group = all.iter().map(Arc::downgrade).collect();
    for health in &all {
        health.set_groups(vec![Arc::clone(&group)]);
    }
    all
}

fn broken() -> Error {
    Error::new(Kind::UpstreamError, "broken")
}

fn fail(health: &Health, times: usize, now: u64) {
    for _ in 0..times {
        health.failed(None, &broken(), now);
    }
}

/// Has the trial that is due, and has it fail.
fn fail_trial(health: &Arc<Health>, now: u64) {
    let trial = health.take_trial(now).unwrap();
    health.failed(Some(&trial), &broken(), now);
}

fn ejection(health: &Health, now: u64) -> Option<(Cause, f64)> {
    let ejected = health.view(now).ejection?;
    Some((ejected.reason, ejected.ends_in_s))
}

#[test]
fn failures_in_a_row_eject_and_a_trial_brings_back_slowly() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    fail(&health, 4, now);
    assert_eq!(health.availability(now), WHOLE);
    health.succeeded(None, None, now);
    fail(&health, 4, now);
    assert_eq!(health.availability(now), WHOLE);
    fail(&health, 1, now);
    assert_eq!(health.availability(now), Availability::Out);
    assert_eq!(ejection(&health, now), Some((Cause::Consecutive, 5.0)));
    assert_eq!(health.back_at(now), Some(now + 5 * SECOND));
    assert!(health.take_trial(now).is_none());

    let now = now + 5 * SECOND;
    assert_eq!(health.availability(now), Availability::Trial);
    let trial = health.take_trial(now).unwrap();
    assert_eq!(health.availability(now), Availability::Out);
    assert!(health.take_trial(now).is_none());
    health.succeeded(Some(&trial), Some(20 * MS), now);
    assert_eq!(health.availability(now), Availability::Open { share: 0.1 });
    let half = Availability::Open { share: 0.5 };
    assert_eq!(health.availability(now + 5 * SECOND), half);
    assert_eq!(health.availability(now + 10 * SECOND), WHOLE);
    drop(trial);
    assert_eq!(health.availability(now + 10 * SECOND), WHOLE);
    assert_eq!(ejection(&health, now), None);
}

#[test]
fn streams_that_begin_and_are_cut_are_failures_in_a_row() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    for at in 0..5 {
        assert_eq!(health.availability(now + at), WHOLE);
        health.first_token(None, 20 * MS, now + at);
        health.failed(None, &broken(), now + at);
    }
    assert_eq!(health.availability(now + 9), Availability::Out);
    // A first token brings it back; a cut afterwards is the first of the next five.
    let now = now + 10 * SECOND;
    let trial = health.take_trial(now).unwrap();
    health.first_token(Some(&trial), 20 * MS, now);
    drop(trial);
    health.failed(None, &broken(), now);
    assert_eq!(health.availability(now), Availability::Open { share: 0.1 });
}

#[test]
fn what_is_out_is_a_last_resort_unless_that_was_decided() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    assert!(!health.is_last_resort(now), "it is open");
    fail(&health, 5, now);
    assert!(health.is_last_resort(now), "ejected");
    health.report(Engine::Down, now);
    assert!(health.is_last_resort(now), "down");
    health.report(Engine::Warm, now);
    health.drain(true);
    assert!(!health.is_last_resort(now), "drained");
    health.drain(false);
    let wait = Duration::from_secs(2);
    health.failed(
        None,
        &Error::new(Kind::RateLimited, "x").retry_after(wait),
        now,
    );
    assert!(health.is_last_resort(now), "left alone as it asked");
    for engine in [Engine::Cold, Engine::Loading] {
        health.report(engine, now);
        assert!(!health.is_last_resort(now), "being started");
    }
}

#[test]
fn each_ejection_is_longer_than_the_last_until_it_stays_in() {
    let health = of(OUTLIER);
    let mut now = 100 * SECOND;
    fail(&health, 5, now);
    for n in 2..=14 {
        let (_, lasts) = ejection(&health, now).unwrap();
        assert_eq!(lasts, f64::from(5 * (n - 1)).min(60.0));
        now += (lasts * SECOND as f64) as u64;
        fail_trial(&health, now);
        assert_eq!(ejection(&health, now).unwrap().0, Cause::Trial);
    }
    now += 60 * SECOND;
    let trial = health.take_trial(now).unwrap();
    health.succeeded(Some(&trial), None, now);
    drop(trial);
    // 14 in succession, and three intervals without.
    now += 35 * SECOND;
    fail(&health, 5, now);
    assert_eq!(health.view(now).ejection.unwrap().streak, 12);
    let trial = health.take_trial(now + 60 * SECOND).unwrap();
    now += 60 * SECOND;
    health.succeeded(Some(&trial), None, now);
    drop(trial);
    now += 1000 * SECOND;
    fail(&health, 5, now);
    assert_eq!(ejection(&health, now), Some((Cause::Consecutive, 5.0)));
}

#[test]
fn a_share_of_failures_ejects_once_there_were_enough_requests() {
    let outlier = OutlierSpec {
        consecutive: 0,
        failure_percent: 50,
        ..OUTLIER
    };
    let health = of(outlier);
    let now = 100 * SECOND;
    for at in 0..9 {
        health.succeeded(None, None, now + at);
        health.failed(None, &broken(), now + at);
    }
    health.succeeded(None, None, now);
    assert_eq!(health.availability(now), WHOLE);
    health.failed(None, &broken(), now);
    assert_eq!(ejection(&health, now), Some((Cause::FailureShare, 5.0)));

    // The same failures, but each interval has too few.
    let health = of(outlier);
    for at in 0..100 {
        let now = now + at * SECOND;
        health.succeeded(None, None, now);
        health.failed(None, &broken(), now);
        assert_eq!(ejection(&health, now), None, "{at}");
        health.succeeded(None, None, now + SECOND / 3);
    }
}

#[test]
fn one_much_slower_than_its_siblings_is_ejected() {
    let outlier = OutlierSpec {
        latency_factor: 3.0,
        ..OUTLIER
    };
    let all = tier(4, outlier);
    let mut now = 100 * SECOND;
    for _ in 0..40 {
        for (index, health) in all.iter().enumerate() {
            let ttft = if index == 2 { 700 * MS } else { 200 * MS };
            health.succeeded(None, Some(ttft), now);
        }
        now += SECOND / 3;
    }
    for (index, health) in all.iter().enumerate() {
        let expected = (index == 2).then_some(Cause::Latency);
        assert_eq!(ejection(health, now).map(|(cause, _)| cause), expected);
    }
    // Alone, none is slow.
    let alone = tier(1, outlier).remove(0);
    for at in 0..1000 {
        alone.succeeded(None, Some(Duration::from_secs(30)), now + at * SECOND / 3);
    }
    assert_eq!(ejection(&alone, now + 400 * SECOND), None);
}

#[test]
fn what_the_client_is_to_blame_for_says_nothing_and_a_429_is_no_failure() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    for kind in [
        Kind::InvalidRequest,
        Kind::PayloadTooLarge,
        Kind::ModelNotFound,
        Kind::ClientClosed,
        Kind::Internal,
    ] {
        for _ in 0..20 {
            health.failed(None, &Error::new(kind, "x"), now);
        }
        assert_eq!(health.availability(now), WHOLE, "{kind:?}");
    }
    let busy = Error::new(Kind::RateLimited, "x");
    let wait = Duration::from_secs(7);
    for _ in 0..20 {
        health.failed(None, &busy.clone().retry_after(wait), now);
    }
    assert_eq!(health.availability(now), Availability::Out);
    assert_eq!(health.back_at(now), Some(now + 7 * SECOND));
    assert_eq!(ejection(&health, now), None);
    // A shorter wait does not shorten it; afterwards all is as it was, without a trial or a ramp.
    health.failed(None, &busy, now);
    assert_eq!(health.availability(now + 7 * SECOND - 1), Availability::Out);
    assert_eq!(health.availability(now + 7 * SECOND), WHOLE);
    // Nor does a provider keep itself out for hours.
    let hours = Error::new(Kind::Unavailable, "x").retry_after(Duration::from_secs(9000));
    health.failed(None, &hours, now);
    assert_eq!(health.availability(now + 60 * SECOND), WHOLE);
    let View { failures, .. } = health.view(now);
    assert_eq!(failures, 0);
}

#[test]
fn what_probes_find_counts_at_once() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    health.report(Engine::Warm, now);
    assert_eq!(health.availability(now), WHOLE);
    for (engine, expected) in [
        (Engine::Down, Availability::Out),
        (Engine::Cold, Availability::Cold),
        (Engine::Loading, Availability::Loading),
        (Engine::Draining, Availability::Draining),
    ] {
        health.report(engine, now);
        assert_eq!(health.availability(now), expected);
        assert!(health.take_trial(now).is_none());
    }
    health.report(Engine::Warm, now);
    assert_eq!(health.availability(now), Availability::Open { share: 0.1 });
    assert_eq!(health.availability(now + 10 * SECOND), WHOLE);
}

#[test]
fn what_is_known_of_an_agent_ends_with_it() {
    let health = of(OUTLIER);
    assert_eq!(health.view(0).agent, None);
    for (answers, expected) in [(true, "answers"), (false, "away")] {
        health.report_agent(answers);
        assert_eq!(health.view(0).agent, Some(expected));
    }
    health.configure(Settings::default());
    assert_eq!(health.view(0).agent, None);
}

#[test]
fn an_upstream_that_joins_others_begins_slowly() {
    let settings = Settings {
        slow_start: Duration::from_secs(10),
        ..Settings::default()
    };
    let health = Health::new(settings, OfHealth::default(), true);
    let now = 100 * SECOND;
    health.report(Engine::Warm, now);
    assert_eq!(health.availability(now), Availability::Open { share: 0.1 });
    health.report(Engine::Warm, now + 20 * SECOND);
    assert_eq!(health.availability(now + 20 * SECOND), WHOLE);
}

#[test]
fn a_good_probe_ends_an_ejection_early_but_not_again_and_again() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    health.report(Engine::Warm, now);
    fail(&health, 5, now);
    health.report(Engine::Warm, now + SECOND);
    assert_eq!(health.availability(now + SECOND), Availability::Trial);
    // Its probes go well though its requests do not.
    fail_trial(&health, now + SECOND);
    for at in 1..11 {
        health.report(Engine::Warm, now + at * SECOND);
        let now = now + at * SECOND;
        assert_eq!(health.availability(now), Availability::Out, "{at}");
    }
    assert_eq!(health.availability(now + 11 * SECOND), Availability::Trial);
    fail_trial(&health, now + 11 * SECOND);
    // It was started anew.
    health.report(Engine::Down, now + 12 * SECOND);
    health.report(Engine::Warm, now + 13 * SECOND);
    assert_eq!(health.availability(now + 13 * SECOND), Availability::Trial);
}

#[test]
fn requests_from_before_an_ejection_do_not_decide_it() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    fail(&health, 5, now);
    fail(&health, 50, now + SECOND);
    health.succeeded(None, None, now + SECOND);
    assert_eq!(ejection(&health, now), Some((Cause::Consecutive, 5.0)));
    fail(&health, 50, now + 6 * SECOND);
    health.succeeded(None, None, now + 6 * SECOND);
    assert_eq!(health.availability(now + 6 * SECOND), Availability::Trial);
}

/// Its one engine is ejected, and a trial runs, when a stream from before comes to its end.
#[test]
fn a_trial_is_decided_by_its_own_request_alone() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    fail(&health, 5, now);
    let now = now + 5 * SECOND;
    let trial = health.take_trial(now).unwrap();
    // It ends well while the trial hangs.
    health.succeeded(None, None, now);
    health.succeeded(None, Some(20 * MS), now);
    assert_eq!(health.availability(now), Availability::Out);
    assert!(health.take_trial(now).is_none());
    // It is cut: the trial still brings the upstream back, by its first token.
    health.failed(None, &broken(), now);
    assert_eq!(ejection(&health, now), Some((Cause::Consecutive, 0.0)));
    health.first_token(Some(&trial), 20 * MS, now);
    assert_eq!(health.availability(now), Availability::Open { share: 0.1 });
    // What comes of the trial's stream afterwards counts as any other's.
    health.succeeded(None, None, now);
    fail(&health, 5, now);
    assert_eq!(ejection(&health, now), Some((Cause::Consecutive, 10.0)));
    // And the trial itself, still kept, decides no other ejection.
    let now = now + 10 * SECOND;
    health.succeeded(Some(&trial), None, now);
    health.failed(Some(&trial), &broken(), now);
    assert_eq!(health.availability(now), Availability::Trial);
}

#[test]
fn a_trial_that_comes_to_nothing_leaves_room_for_another() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    fail(&health, 5, now);
    let now = now + 5 * SECOND;
    drop(health.take_trial(now).unwrap());
    // A client error of the trial's says nothing either.
    let trial = health.take_trial(now).unwrap();
    let refused = Error::new(Kind::InvalidRequest, "x");
    health.failed(Some(&trial), &refused, now);
    assert_eq!(health.availability(now), Availability::Out);
    drop(trial);
    let slow = health.take_trial(now).unwrap();
    health.failed(Some(&slow), &broken(), now);
    // The next trial is not ended by the last one's late end.
    let now = now + 10 * SECOND;
    let next = health.take_trial(now).unwrap();
    drop(slow);
    assert!(health.take_trial(now).is_none());
    drop(next);
    assert!(health.take_trial(now).is_some());
}

#[test]
fn draining_is_a_decision_that_neither_probes_nor_requests_undo() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    health.drain(true);
    health.report(Engine::Warm, now);
    health.succeeded(None, None, now);
    assert_eq!(health.availability(now), Availability::Draining);
    let mut settings = Settings {
        draining: true,
        ..Settings::default()
    };
    health.drain(false);
    assert_eq!(health.availability(now), WHOLE);
    health.configure(settings);
    assert_eq!(health.availability(now), Availability::Draining);
    settings.draining = false;
    health.configure(settings);
    assert_eq!(health.availability(now), WHOLE);
}

#[test]
fn a_new_setting_keeps_what_is_known() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    health.report(Engine::Warm, now);
    health.succeeded(None, Some(30 * MS), now);
    fail(&health, 5, now);
    let mut settings = Settings {
        outlier: Some(OutlierSpec {
            base_ejection_s: 1.0,
            ..OUTLIER
        }),
        ..Settings::default()
    };
    health.configure(settings);
    assert_eq!(health.availability(now + 4 * SECOND), Availability::Out);
    assert_eq!(health.ttft(), Some(30 * MS));
    // Without outlier detection nothing is out for what its requests come to.
    settings.outlier = None;
    health.configure(settings);
    assert_eq!(health.availability(now), WHOLE);
    fail(&health, 100, now);
    assert_eq!(health.availability(now), WHOLE);
}

#[test]
fn the_load_that_was_said_has_an_age() {
    let health = of(OUTLIER);
    assert_eq!(health.load(5), None);
    let report = Report {
        running: 7,
        waiting: u32::MAX,
        tokens: 1 << 40,
    };
    health.report_load(report, 3 * SECOND);
    let load = health.load(5 * SECOND).unwrap();
    assert_eq!((load.running, load.waiting), (7, u32::MAX));
    assert_eq!((load.tokens, load.age), (1 << 40, Duration::from_secs(2)));
}

#[test]
fn wanting_is_told_once() {
    let health = of(OUTLIER);
    assert!(!health.take_wanted());
    health.want();
    health.want();
    assert!(health.take_wanted());
    assert!(!health.take_wanted());
}

#[tokio::test]
async fn who_waits_hears_of_a_change() {
    let health = of(OUTLIER);
    health.report(Engine::Loading, 1);
    let mut changed = std::pin::pin!(health.changed());
    changed.as_mut().enable();
    assert_eq!(health.availability(2), Availability::Loading);
    health.report(Engine::Loading, 3);
    let early = tokio::time::timeout(5 * MS, changed.as_mut()).await;
    assert!(early.is_err());
    health.report(Engine::Warm, 4);
    changed.await;
}

/// Requests that a dead engine among four gets in a minute at 100 a second, and what it has of them
/// again when it is back: the routing here is fair by share, the retry elsewhere.
#[test]
fn a_dead_engine_costs_few_requests_and_comes_back_within_its_slow_start() {
    let all = tier(4, OUTLIER);
    let dead = 60..120;
    let mut wasted = 0;
    let mut owed = [0.0_f32; 4];
    let mut served = [0_u32; 4];
    for tick in 0..24_000_u64 {
        let now = (100 * SECOND) + tick * SECOND / 100;
        let second = tick / 100;
        // Probes, every 2 s: it is found down as soon as one was sent.
        if tick % 200 == 0 {
            let down = dead.contains(&second);
            let found = if down { Engine::Down } else { Engine::Warm };
            all[0].report(found, now);
        }
        let mut trial = None;
        for (index, health) in all.iter().enumerate() {
            match health.availability(now) {
                Availability::Open { share } => owed[index] += share,
                Availability::Trial => trial = Some(index),
                _ => owed[index] = 0.0,
            }
        }
        let most = (0..4).max_by(|a, b| owed[*a].total_cmp(&owed[*b])).unwrap();
        let to = trial.unwrap_or(most);
        owed[to] = 0.0_f32.min(owed[to] - 1.0);
        let held = trial.map(|index| all[index].take_trial(now).unwrap());
        if to == 0 && dead.contains(&second) {
            wasted += 1;
            all[0].failed(held.as_ref(), &broken(), now);
        } else {
            all[to].succeeded(held.as_ref(), Some(20 * MS), now);
            if (130..190).contains(&second) {
                served[to] += 1;
            }
        }
        drop(held);
    }
    assert!(wasted <= 6, "{wasted}");
    // From 10 s after its return on it does as much as each of the others.
    assert!(served[0].abs_diff(served[1]) <= 60, "{served:?}");
}

#[test]
fn a_failing_engine_whose_probes_go_well_gets_few_requests() {
    let all = tier(3, OUTLIER);
    let mut tried = 0;
    for tick in 0..60_000_u64 {
        let now = 100 * SECOND + tick * SECOND / 100;
        if tick % 200 == 0 {
            all[0].report(Engine::Warm, now);
        }
        let trial = match all[0].availability(now) {
            Availability::Open { .. } => None,
            Availability::Trial => all[0].take_trial(now),
            _ => continue,
        };
        tried += 1;
        all[0].failed(trial.as_ref(), &broken(), now);
    }
    // Five, one early, and then one after 10, 15, … 60, 60 … s of 10 minutes.
    assert!((6 + 10..6 + 20).contains(&tried), "{tried}");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Succeeds(u64),
    Fails(usize),
    Overloaded,
    Trial,
    DropTrial,
    Report(Engine),
    Passes(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1_u64..2000).prop_map(Step::Succeeds),
        (1_usize..7).prop_map(Step::Fails),
        Just(Step::Overloaded),
        Just(Step::Trial),
        Just(Step::DropTrial),
        prop_oneof![
            Just(Engine::Warm),
            Just(Engine::Warm),
            Just(Engine::Loading),
            Just(Engine::Cold),
            Just(Engine::Down),
        ]
        .prop_map(Step::Report),
        (0_u64..20_000_000_000).prop_map(Step::Passes),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_it_can_come_back(
        steps in proptest::collection::vec((0_usize..3, step()), 1..120),
    ) {
        let all = tier(3, OUTLIER);
        let mut now = 100 * SECOND;
        let mut trials = Vec::new();
        for (index, step) in steps {
            let health = &all[index];
            let trial = trials.iter().rev().find(|(of, _)| *of == index).map(|(_, trial)| trial);
            match step {
                Step::Succeeds(ms) => health.succeeded(trial, Some(Duration::from_millis(ms)), now),
                Step::Fails(times) => {
                    health.failed(trial, &broken(), now);
                    fail(health, times - 1, now);
                }
                Step::Overloaded => health.failed(None, &Error::new(Kind::RateLimited, "x"), now),
                Step::Trial => {
                    let due = health.availability(now) == Availability::Trial;
                    let trial = health.take_trial(now);
                    prop_assert_eq!(due, trial.is_some());
                    prop_assert!(health.take_trial(now).is_none());
                    trials.extend(trial.map(|trial| (index, trial)));
                }
                Step::DropTrial => trials.clear(),
                Step::Report(engine) => health.report(engine, now),
                Step::Passes(time) => now += time,
            }
            let out = all.iter().filter(|h| h.view(now).ejection.is_some()).count();
            prop_assert!(out <= 2, "at 50 %, the first and one more of three");
            for health in &all {
                if let Availability::Open { share } = health.availability(now) {
                    prop_assert!(share > 0.0 && share <= 1.0);
                }
                let view = health.view(now);
                prop_assert!(view.ejection.is_none_or(|e| e.ends_in_s <= 60.0));
            }
        }
        drop(trials);
        now += 61 * SECOND;
        for health in &all {
            health.report(Engine::Warm, now);
            if let Some(trial) = health.take_trial(now) {
                health.succeeded(Some(&trial), None, now);
            }
            let back = health.availability(now + 10 * SECOND);
            prop_assert_eq!(back, WHOLE);
        }
    }

    #[test]
    fn no_more_than_their_share_of_a_tier_is_ejected(
        count in 1_usize..12,
        percent in 0_u32..=100,
        order in proptest::collection::vec(0_usize..12, 0..200),
    ) {
        let all = tier(count, OutlierSpec { max_ejection_percent: percent, ..OUTLIER });
        let now = 100 * SECOND;
        for index in order {
            fail(&all[index % count], 1, now);
            let out = all.iter().filter(|h| h.view(now).ejection.is_some()).count() as u64;
            let allowed = out <= 1 || (out - 1) * 100 < u64::from(percent) * count as u64;
            prop_assert!(allowed, "{out} of {count}");
        }
    }

    #[test]
    fn the_average_follows_peaks_at_once_and_forgets_them_slowly(
        samples in proptest::collection::vec((1_u64..10_000, 0_u64..5_000), 1..50),
    ) {
        let health = of(OUTLIER);
        let mut now = 100 * SECOND;
        let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
        for (sample_ms, pause_ms) in samples {
            now += pause_ms * 1_000_000;
            let sample = Duration::from_millis(sample_ms);
            (least, most) = (least.min(sample), most.max(sample));
            let before = health.ttft();
            health.succeeded(None, Some(sample), now);
            let after = health.ttft().unwrap();
            prop_assert!(after >= sample && after >= least && after <= most);
            prop_assert!(before.is_none_or(|before| after <= before.max(sample)));
        }
        let low = Duration::from_millis(1);
        health.succeeded(None, Some(low), now + 200 * SECOND);
        prop_assert!(health.ttft().unwrap() < low + Duration::from_millis(1));
    }

    #[test]
    fn a_share_in_slow_start_only_grows(window_s in 0.1_f64..100.0, steps in 1_u64..200) {
        let settings = Settings {
            slow_start: Duration::from_secs_f64(window_s),
            ..Settings::default()
        };
        let health = Health::new(settings, OfHealth::default(), true);
        let from = 7 * SECOND;
        health.report(Engine::Warm, from);
        let mut last = 0.0;
        for step in 0..=steps {
            let gone = window_s * step as f64 / steps as f64;
            let now = from + (gone * SECOND as f64).ceil() as u64;
            let Availability::Open { share } = health.availability(now) else {
                return Err(TestCaseError::fail("not open"));
            };
            prop_assert!(share >= last && share >= 0.1);
            last = share;
        }
        prop_assert_eq!(last, 1.0);
    }
}

/// A snapshot of a model on two upstreams, the first at `url`.
fn snapshot(previous: &Snapshot, url: &str, outlier: OutlierSpec) -> Snapshot {
    let upstream = |name: &str, url: &str| UpstreamSpec {
        name: name.to_owned(),
        url: url.to_owned(),
        connect_s: 1.0,
        outlier: Some(outlier),
        ..UpstreamSpec::default()
    };
    let target = |name: &str| TargetSpec {
        upstream: name.to_owned(),
        model: "m".to_owned(),
        ..TargetSpec::default()
    };
    let spec = SnapshotSpec {
        upstreams: vec![upstream("a", url), upstream("b", "http://b")],
        models: vec![ModelSpec {
            name: "m".to_owned(),
            targets: vec![target("a"), target("b"), target("a")],
            first_byte_s: 1.0,
            idle_s: 1.0,
            total_s: 1.0,
            ..ModelSpec::default()
        }],
        max_event_bytes: 1024,
        max_answer_bytes: 1024,
        complete: true,
        prompt_logs: None,
        files: None,
    };
    let region = Arc::new(Region::small(64, 1, 0));
    Snapshot::build(spec, previous, &Counters::new(), &region).unwrap()
}

#[test]
fn health_outlives_a_new_configuration_of_the_same_address() {
    let first = snapshot(&Snapshot::default(), "http://a", OUTLIER);
    let health = &first.upstream("a").unwrap().health;
    let now = 100 * SECOND;
    fail(health, 5, now);
    health.drain(true);
    health.drain(false);
    let short = OutlierSpec {
        consecutive: 1,
        ..OUTLIER
    };
    let second = snapshot(&first, "http://a", short);
    let same = &second.upstream("a").unwrap().health;
    assert!(Arc::ptr_eq(health, same));
    assert_eq!(same.availability(now), Availability::Out);
    // Both are in one tier, of two: the other may not go as well.
    let other = &second.upstream("b").unwrap().health;
    fail(other, 9, now);
    assert_eq!(other.availability(now), WHOLE);
    // Elsewhere is something else, of which nothing is known but who drained it.
    same.drain(true);
    let third = snapshot(&second, "http://elsewhere", short);
    let new = &third.upstream("a").unwrap().health;
    assert!(!Arc::ptr_eq(health, new));
    assert_eq!(new.availability(now), Availability::Draining);
    new.drain(false);
    assert_eq!(new.availability(now), WHOLE);
    fail(other, 1, now);
    assert_eq!(other.availability(now), Availability::Out);
}

#[test]
fn refusals_that_name_their_reason() {
    let health = of(OUTLIER);
    let now = 100 * SECOND;
    let about = |kind, reason| Error {
        reason: Some(reason),
        ..Error::new(kind, "x")
    };
    for _ in 0..9 {
        health.failed(
            None,
            &about(Kind::UpstreamError, Reason::ContextOverflow),
            now,
        );
        health.failed(
            None,
            &about(Kind::UpstreamError, Reason::ContentFilter),
            now,
        );
    }
    assert_eq!(health.availability(now), WHOLE);
    health.failed(None, &about(Kind::Unavailable, Reason::Loading), now);
    assert_eq!(health.back_at(now), Some(now + SECOND));
    health.failed(None, &about(Kind::RateLimited, Reason::Quota), now);
    assert_eq!(health.back_at(now), Some(now + 60 * SECOND));
    assert_eq!(ejection(&health, now), None);
}
