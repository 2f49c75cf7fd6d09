//! The retry budget and the waits between attempts, by properties and simulation.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use forebay_core::retry::{RetryBudget, Tries, backoff};
use forebay_core::snapshot::RetrySpec;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;

/// Retries that are granted of `requests` a second that all fail, in these seconds.
fn granted(budget: &RetryBudget, requests: u64, seconds: std::ops::RangeInclusive<u64>) -> u64 {
    let mut granted = 0;
    for second in seconds {
        for n in 0..requests {
            budget.earn();
            let now = second * SECOND + n * SECOND / requests;
            granted += u64::from(budget.spend(now));
        }
    }
    granted
}

#[test]
fn a_storm_is_a_share_of_the_requests() {
    let budget = RetryBudget::new(0.2, 10.0);
    // The first seconds spend what has gathered.
    granted(&budget, 1000, 1..=20);
    let steady = granted(&budget, 1000, 21..=80);
    assert_eq!(steady / 60, 210, "a fifth of a thousand and ten");
}

#[test]
fn few_requests_are_retried_too() {
    let budget = RetryBudget::new(0.0, 1.0);
    assert_eq!(granted(&budget, 1, 1..=60), 60);
    let none = RetryBudget::new(0.0, 0.0);
    assert_eq!(granted(&none, 100, 1..=10), 0);
}

#[test]
fn a_quiet_time_earns_no_more_than_its_seconds() {
    let hedges = RetryBudget::new(0.05, 0.0);
    // One in ten seconds asks, of what twenty earn one: there is none for most of them.
    let spent = (1..=100).filter(|turn| {
        hedges.earn();
        hedges.spend(turn * 11 * SECOND)
    });
    assert_eq!(spent.count(), 5);

    let budget = RetryBudget::new(0.2, 1.0);
    // All that has gathered, and then what ten seconds bring.
    let all = |now| (0..1000).filter(|_| budget.spend(now)).count();
    assert_eq!((all(SECOND), all(60 * SECOND)), (10, 10));
}

#[test]
fn attempts_are_counted_with_the_first() {
    let budget = RetryBudget::new(1.0, 100.0);
    let spec = RetrySpec {
        attempts: 3,
        ..RetrySpec::default()
    };
    let allowed = |made| Tries { made }.allow(&spec, &budget, SECOND);
    assert!(allowed(1) && allowed(2) && !allowed(3));
}

proptest! {
    #[test]
    fn waits_double_up_to_a_bound(retry in 1_u32..200, chance in 0.0..=1.0) {
        let spec = RetrySpec::default();
        let wait = backoff(&spec, retry, chance);
        let bound = (0.05 * 2_f64.powi(i32::try_from(retry).unwrap() - 1)).min(2.0);
        prop_assert!(wait <= Duration::from_secs_f64(bound));
        prop_assert!(backoff(&spec, retry, 1.0) >= wait);
    }

    #[test]
    fn nothing_is_granted_that_was_not_earned(
        steps in prop::collection::vec((any::<bool>(), 0_u64..SECOND), 1..500),
        share in 0.0_f64..1.0,
        per_second in 0.0_f64..5.0,
    ) {
        let budget = RetryBudget::new(share, per_second);
        let (mut now, mut earned, mut spent) = (SECOND, 0.0, 0);
        let start = now;
        for (request, passed) in steps {
            now += passed;
            if request {
                budget.earn();
                earned += share;
            } else {
                spent += u32::from(budget.spend(now));
            }
        }
        let most = per_second * (10.0 + (now - start) as f64 / 1e9) + earned + 1.0;
        prop_assert!(f64::from(spent) <= most, "{spent} of {most}");
    }
}
