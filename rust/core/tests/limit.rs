//! The limiter against an exact model, at its edges and under threads.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that goes wrong may stop"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use forebay_core::limit::{
    Ask, BadQuota, Bucket, CONCURRENCY_RETRY, Decision, Declined, Dimension, Limits, MAX_NOW,
    Meter, Now, PROGRESS_STEP, Part, Permits, Quota, Refusal, Reservation, Scope, State, Table,
};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;

/// The same bucket in exact arithmetic: all figures are units × period in nanoseconds, so that a
/// nanosecond of refill is `units` and a unit is `period`.
struct Model {
    units: i128,
    period: i128,
    burst: i128,
    tat: i128,
}

impl Model {
    fn new(units: u64, period: u64, burst: u64) -> Self {
        let (units, period) = (i128::from(units), i128::from(period));
        Self {
            units,
            period,
            burst: i128::from(burst) * period,
            tat: 0,
        }
    }

    fn clock(&self, now: u64) -> i128 {
        i128::from(now) * self.units
    }

    /// How far the real bucket may be off, ever: one tick of its clock.
    fn slack(&self) -> i128 {
        self.units + self.burst / (1 << 61) + 1
    }

    /// What would be left after `cost`, were it admitted; negative: to be refused.
    fn left(&self, now: u64, cost: u64) -> i128 {
        let clock = self.clock(now);
        self.burst - (self.tat.max(clock) + i128::from(cost) * self.period - clock)
    }

    fn add(&mut self, now: u64, cost: u64) {
        self.tat = self.tat.max(self.clock(now)) + i128::from(cost) * self.period;
    }

    fn charge(&mut self, cost: u64) {
        self.tat += i128::from(cost) * self.period;
    }

    fn refund(&mut self, cost: u64) {
        self.tat = (self.tat - i128::from(cost) * self.period).max(0);
    }

    fn assert_remaining(&self, remaining: u64, now: u64) {
        let exact = self.left(now, 0).clamp(0, self.burst);
        let off = (i128::from(remaining) * self.period - exact).abs();
        assert!(
            off <= self.period + self.slack(),
            "{remaining} for {exact} / {}",
            self.period
        );
    }
}

/// Units, period in nanoseconds, burst: from one a minute to 3·10⁸ a second and more.
fn quotas() -> impl Strategy<Value = (u64, u64, u64)> {
    let rate = prop_oneof![
        (1..2_000_000_000_u64, Just(MINUTE)),
        (Just(300_000_000_u64), Just(SECOND)),
        (1..20_u64, 1..50_u64).prop_filter("two a nanosecond at most", |(u, p)| *u <= 2 * p),
        (1..1_000_000_u64, 1_000_000..u64::from(u32::MAX)),
    ];
    (rate, 1..2_000_000_u64).prop_map(|((units, period), burst)| (units, period, burst))
}

#[derive(Clone, Debug)]
enum Op {
    /// Percent of the burst.
    Admit(u64),
    Charge(u64),
    Refund(u64),
    /// Thousandths of the time that a whole burst takes to refill.
    Wait(u64),
    Tick(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0..=100_u64).prop_map(Op::Admit),
        1 => (0..300_u64).prop_map(Op::Charge),
        1 => (0..100_u64).prop_map(Op::Refund),
        3 => (0..1_500_u64).prop_map(Op::Wait),
        3 => (0..5_u64).prop_map(Op::Tick),
    ];
    prop::collection::vec(op, 1..80)
}

fn quota(units: u64, period: u64, burst: u64) -> Quota {
    Quota::new(units, Duration::from_nanos(period), burst).unwrap()
}

fn wait_ns(thousandths: u64, (units, period, burst): (u64, u64, u64)) -> u64 {
    let ns = u128::from(thousandths) * u128::from(burst) * u128::from(period);
    (ns / 1_000 / u128::from(units)) as u64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn follows_the_exact_model(q in quotas(), start in 0..MAX_NOW / 2, ops in ops()) {
        let (units, period, burst) = q;
        let bucket = Bucket::new(quota(units, period, burst));
        let mut model = Model::new(units, period, burst);
        let mut now = start;
        let percent = |p: u64| burst * p / 100;
        for op in ops {
            match op {
                Op::Admit(p) => {
                    let cost = percent(p);
                    let left = model.left(now, cost);
                    match bucket.admit(now, cost) {
                        Decision::Allow { remaining, .. } => {
                            prop_assert!(left >= -model.slack(), "admitted with {left} left");
                            model.add(now, cost);
                            model.assert_remaining(remaining, now);
                        }
                        Decision::Deny { remaining, .. } => {
                            prop_assert!(left <= model.slack(), "refused with {left} left");
                            prop_assert!(remaining < cost.max(1));
                            model.assert_remaining(remaining, now);
                        }
                        Decision::Never => prop_assert!(false, "{cost} of {burst} never"),
                    }
                }
                Op::Charge(p) => {
                    bucket.charge(percent(p));
                    model.charge(percent(p));
                }
                Op::Refund(p) => {
                    bucket.refund(percent(p));
                    model.refund(percent(p));
                }
                Op::Wait(thousandths) => now += wait_ns(thousandths, q),
                Op::Tick(ns) => now += ns,
            }
            let state = bucket.peek(now);
            prop_assert_eq!(state.limit, units);
            prop_assert!(state.remaining <= burst);
            model.assert_remaining(state.remaining, now);
            // `reset` is exact: full then, and not a nanosecond earlier.
            prop_assert_eq!(bucket.peek(now + state.reset).reset, 0);
            if state.reset > 0 {
                prop_assert!(bucket.peek(now + state.reset - 1).reset > 0);
            }
        }
    }

    #[test]
    fn no_window_admits_more_than_burst_and_refill(q in quotas(), ops in ops()) {
        let (units, period, burst) = q;
        let bucket = Bucket::new(quota(units, period, burst));
        let model = Model::new(units, period, burst);
        let mut now = 0;
        let mut admitted: Vec<(u64, u64)> = Vec::new();
        for op in ops {
            match op {
                Op::Admit(p) | Op::Charge(p) | Op::Refund(p) => {
                    // As much as it takes, in parts.
                    for cost in [burst * p.min(100) / 100, 1, 1] {
                        if matches!(bucket.admit(now, cost), Decision::Allow { .. }) {
                            admitted.push((now, cost));
                        }
                    }
                }
                Op::Wait(thousandths) => now += wait_ns(thousandths / 4, q),
                Op::Tick(ns) => now += ns,
            }
        }
        for (i, &(from, _)) in admitted.iter().enumerate() {
            let mut sum = 0;
            for &(at, cost) in &admitted[i..] {
                sum += i128::from(cost) * model.period;
                let bound = model.burst + i128::from(at - from) * model.units + model.slack();
                prop_assert!(sum <= bound, "{sum} > {bound} in {} ns", at - from);
            }
        }
    }

    #[test]
    fn retry_after_is_exact_to_the_nanosecond(
        q in quotas(),
        start in 0..MAX_NOW / 2,
        spent in 0..100_u64,
        debt in 0..300_u64,
        cost in 1..=100_u64,
    ) {
        let (units, period, burst) = q;
        let cost = (burst * cost / 100).max(1);
        let make = || {
            let bucket = Bucket::new(quota(units, period, burst));
            bucket.admit(start, burst * spent / 100);
            bucket.charge(burst * debt / 100);
            bucket
        };
        if let Decision::Deny { retry_after, .. } = make().admit(start, cost) {
            prop_assert!(retry_after > 0);
            let early = make().admit(start + retry_after - 1, cost);
            let is_one = matches!(early, Decision::Deny { retry_after: 1, .. });
            prop_assert!(is_one, "{:?}", early);
            let due = make().admit(start + retry_after, cost);
            let allowed = matches!(due, Decision::Allow { .. });
            prop_assert!(allowed, "{:?}", due);
        }
    }

    #[test]
    fn debt_is_repaid_before_the_next_admission(
        units in 1..1_000_000_u64,
        burst in 1..1_000_000_u64,
        used in 1..10_000_000_u64,
    ) {
        // However far a settlement overdraws, what is served afterwards waits for it.
        let bucket = Bucket::new(quota(units, SECOND, burst));
        let allowed = matches!(bucket.admit(0, burst), Decision::Allow { .. });
        prop_assert!(allowed);
        bucket.charge(used);
        let Decision::Deny { retry_after, remaining, .. } = bucket.admit(0, 1) else {
            return Err(TestCaseError::fail("admitted while in debt"));
        };
        let exact = (u128::from(used) + 1) * u128::from(SECOND);
        prop_assert_eq!(remaining, 0);
        let off = (u128::from(retry_after) * u128::from(units)).abs_diff(exact);
        prop_assert!(off <= u128::from(units) * 2, "{} ns", off);
    }

    #[test]
    fn no_argument_overflows(
        units in any::<u64>(),
        period in any::<u64>(),
        burst in any::<u64>(),
        costs in prop::collection::vec(
            prop_oneof![any::<u64>(), Just(0), Just(1), Just(u64::MAX)],
            1..20,
        ),
        nows in prop::collection::vec(prop_oneof![any::<u64>(), Just(0), Just(u64::MAX)], 20),
    ) {
        let limits = Limits {
            rpm: Some(units), rpm_burst: Some(burst), tpm: Some(burst), tpm_burst: Some(units),
            concurrency: Some(u32::MAX), ..Limits::default()
        };
        let mut meter = Arc::new(Meter::new(&limits));
        let bucket = Quota::new(units, Duration::from_nanos(period), burst).map(Bucket::new);
        for (&cost, &now) in costs.iter().zip(&nows) {
            if let Ok(bucket) = &bucket {
                if let Decision::Allow { remaining, .. } = bucket.admit(now, cost) {
                    prop_assert!(remaining <= burst - cost);
                }
                bucket.charge(cost);
                bucket.peek(now);
                bucket.refund(cost / 2);
            }
            if meter.admit(now, cost).is_ok() {
                meter.settle(cost, now);
                meter.release();
            }
            meter.settle(cost, now);
            meter.cancel(now);
            meter = meter.reconfigured(&limits, now);
            meter.state(now);
        }
    }

    #[test]
    fn a_refused_request_costs_nothing(
        rpm in 1..1_000_u64,
        tpm in 1..10_000_u64,
        concurrency in 1..20_u32,
        costs in prop::collection::vec((0..12_000_u64, 0..10 * SECOND), 1..60),
    ) {
        let meter = Meter::new(&Limits {
            rpm: Some(rpm), tpm: Some(tpm), concurrency: Some(concurrency), ..Limits::default()
        });
        let mut now = 0;
        for (cost, wait) in costs {
            now += wait;
            let before = meter.state(now);
            match meter.admit(now, cost) {
                Ok(admitted) => {
                    let after = meter.state(now);
                    prop_assert_eq!(admitted.requests, after.requests);
                    prop_assert_eq!(admitted.tokens, after.tokens);
                    prop_assert_eq!(after.in_flight, before.in_flight + 1);
                    if cost % 3 == 0 {
                        meter.release();
                    }
                }
                Err(refusal) => {
                    prop_assert_eq!(meter.state(now), before);
                    prop_assert_eq!(refusal.state, before);
                    match (refusal.dimension, refusal.retry_after) {
                        (Dimension::Concurrency, _) => {
                            prop_assert_eq!(before.in_flight, u64::from(concurrency));
                            meter.release();
                        }
                        (dimension, None) => {
                            prop_assert_eq!(dimension, Dimension::Tokens);
                            prop_assert!(cost > refusal.burst);
                        }
                        (_, Some(wait)) => {
                            // Whichever limit is named, its wait suffices for all of them.
                            if before.in_flight < u64::from(concurrency) {
                                prop_assert!(meter.admit(now + wait - 1, cost).is_err());
                                prop_assert!(meter.admit(now + wait, cost).is_ok());
                                now += wait;
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_fastest_limits_are_exact_over_time() {
    // 3·10⁸ units a second: 10 units per 3 ns. A period of whole nanoseconds would be 10 % off.
    let bucket = Bucket::new(quota(300_000_000, SECOND, 1_000));
    let mut admitted = 0_u64;
    for now in 0..1_000_000_u64 {
        while matches!(bucket.admit(now, 1), Decision::Allow { .. }) {
            admitted += 1;
        }
    }
    let exact = 1_000 + 999_999 * 3 / 10;
    assert!(admitted.abs_diff(exact) <= 1, "{admitted} for {exact}");
}

#[test]
fn costs_above_the_burst_never_pass_and_cost_nothing() {
    let bucket = Bucket::new(Quota::per_minute(60, Some(10)).unwrap());
    assert_eq!(bucket.admit(0, 11), Decision::Never);
    assert_eq!(bucket.admit(0, u64::MAX), Decision::Never);
    assert_eq!(
        bucket.admit(0, 10),
        Decision::Allow {
            remaining: 0,
            reset: 10 * SECOND
        }
    );
    let refused = Decision::Deny {
        retry_after: SECOND,
        remaining: 0,
        reset: 10 * SECOND,
    };
    assert_eq!(bucket.admit(0, 1), refused);
    assert_eq!(
        bucket.peek(SECOND * 3),
        State {
            limit: 60,
            remaining: 3,
            reset: 7 * SECOND
        }
    );
}

#[test]
fn a_refund_never_exceeds_the_burst() {
    let bucket = Bucket::new(quota(1, SECOND, 5));
    bucket.admit(7 * SECOND, 2);
    bucket.refund(1_000_000);
    assert_eq!(bucket.peek(7 * SECOND).remaining, 5);
    assert!(matches!(
        bucket.admit(7 * SECOND, 5),
        Decision::Allow { remaining: 0, .. }
    ));
    assert!(matches!(bucket.admit(7 * SECOND, 1), Decision::Deny { .. }));
}

#[test]
fn bad_quotas_name_the_reason() {
    let new = |units, period: u64, burst| Quota::new(units, Duration::from_nanos(period), burst);
    assert_eq!(new(0, 1, 1), Err(BadQuota::NoUnits));
    assert_eq!(new(1, 1, 0), Err(BadQuota::NoBurst));
    assert_eq!(new(1, 0, 1), Err(BadQuota::BadPeriod));
    assert_eq!(new(1, MAX_NOW + 1, 1), Err(BadQuota::BadPeriod));
    assert_eq!(Quota::new(1, Duration::MAX, 1), Err(BadQuota::BadPeriod));
    assert_eq!(new(3, 1, 1), Err(BadQuota::TooFast));
    assert_eq!(new(1, 1, u64::MAX), Err(BadQuota::BurstTooLarge));
    assert!(new(2, 1, 1 << 62).is_ok());
    assert!(new(1, MAX_NOW, 1 << 62).is_ok());
}

#[test]
fn the_clock_ends_closed() {
    let bucket = Bucket::new(quota(1, SECOND, 5));
    assert!(matches!(bucket.admit(u64::MAX, 5), Decision::Allow { .. }));
    let after = bucket.admit(u64::MAX, 1);
    assert!(
        matches!(
            after,
            Decision::Deny {
                retry_after: u64::MAX,
                ..
            }
        ),
        "{after:?}"
    );
    // Unix time in nanoseconds is far within.
    let bucket = Bucket::new(quota(1, SECOND, 5));
    let now = 1_800_000_000 * SECOND;
    assert!(matches!(bucket.admit(now, 5), Decision::Allow { .. }));
    let after = bucket.admit(now, 1);
    assert!(
        matches!(
            after,
            Decision::Deny {
                retry_after: SECOND,
                ..
            }
        ),
        "{after:?}"
    );
}

#[test]
fn configured_limits_have_their_default_bursts() {
    // A full meter has its bursts left.
    let bursts = |limits: Limits| {
        let state = Meter::new(&limits).state(0);
        let left = |state: Option<State>| state.map(|state| state.remaining);
        (left(state.requests), left(state.tokens))
    };
    let limits = |rpm, tpm| Limits {
        rpm,
        tpm,
        ..Limits::default()
    };
    assert_eq!(bursts(limits(None, None)), (None, None));
    assert_eq!(
        bursts(limits(Some(600), Some(1_000))),
        (Some(100), Some(1_000))
    );
    assert_eq!(bursts(limits(Some(3), None)), (Some(1), None));
    let given = Limits {
        rpm_burst: Some(7),
        tpm_burst: Some(9),
        ..limits(Some(600), Some(1_000))
    };
    assert_eq!(bursts(given), (Some(7), Some(9)));
    assert_eq!(Meter::new(&given).token_burst(), Some(9));
}

#[test]
fn a_limit_of_zero_refuses_everything() {
    for (limits, dimension) in [
        (
            Limits {
                rpm: Some(0),
                ..Limits::default()
            },
            Dimension::Requests,
        ),
        (
            Limits {
                tpm: Some(0),
                ..Limits::default()
            },
            Dimension::Tokens,
        ),
        (
            Limits {
                concurrency: Some(0),
                ..Limits::default()
            },
            Dimension::Concurrency,
        ),
    ] {
        let refusal = Meter::new(&limits).admit(0, 1).unwrap_err();
        assert_eq!((refusal.dimension, refusal.retry_after), (dimension, None));
        assert_eq!(refusal.limit, 0);
    }
}

#[test]
fn no_limits_admit_everything() {
    let meter = Meter::new(&Limits::default());
    assert!(meter.is_open());
    for _ in 0..3 {
        let admitted = meter.admit(0, u64::MAX).unwrap();
        assert_eq!((admitted.requests, admitted.tokens), (None, None));
    }
    assert_eq!(meter.state(0).max_in_flight, None);
}

#[test]
fn a_full_house_suggests_a_wait() {
    let meter = Meter::new(&Limits {
        concurrency: Some(1),
        ..Limits::default()
    });
    meter.admit(0, 1).unwrap();
    let refusal = meter.admit(0, 1).unwrap_err();
    assert_eq!(refusal.dimension, Dimension::Concurrency);
    assert_eq!(
        (refusal.retry_after, refusal.limit),
        (Some(CONCURRENCY_RETRY), 1)
    );
    meter.release();
    meter.admit(0, 1).unwrap();
}

/// Admits a request of one meter.
fn reserve(meter: &Arc<Meter>, tokens: u64) -> Result<Reservation, Box<Refusal>> {
    let meters = [None, Some(Arc::clone(meter)), None, None];
    let ask = Ask { tokens, nano: 0 };
    match Reservation::admit(meters, Now::default(), ask) {
        Ok((reservation, _)) => Ok(reservation),
        Err(Declined::Refused(refusal)) => {
            assert_eq!(refusal.scope, Scope::Key);
            Err(refusal)
        }
        Err(Declined::Wanting(_)) => unreachable!("no store"),
    }
}

fn tokens_left(meter: &Meter) -> u64 {
    meter.state(0).tokens.unwrap().remaining
}

fn small_meter() -> Arc<Meter> {
    Arc::new(Meter::new(&Limits {
        rpm: Some(60),
        tpm: Some(10_000),
        concurrency: Some(4),
        ..Limits::default()
    }))
}

#[test]
fn a_reservation_settles_once_however_it_ends() {
    let meter = small_meter();
    let admit = |tokens| reserve(&meter, tokens).unwrap();

    let reservation = admit(1_000);
    assert_eq!((tokens_left(&meter), meter.state(0).in_flight), (9_000, 1));
    reservation.settle(400, 0);
    assert_eq!((tokens_left(&meter), meter.state(0).in_flight), (9_600, 0));

    admit(1_000).settle(0, 0);
    assert_eq!(tokens_left(&meter), 9_600);
    admit(100).settle(700, 0);
    assert_eq!(tokens_left(&meter), 8_900);

    drop(admit(500));
    assert_eq!((tokens_left(&meter), meter.state(0).in_flight), (8_400, 0));

    // A forwarded request counts, a cancelled one does not.
    let requests = meter.state(0).requests.unwrap().remaining;
    assert_eq!(requests, 10 - 4);
    admit(500).cancel();
    assert_eq!((tokens_left(&meter), meter.state(0).in_flight), (8_400, 0));
    assert_eq!(meter.state(0).requests.unwrap().remaining, requests);
}

#[test]
fn a_session_holds_the_permit_and_its_requests_all_else() {
    let meter = Arc::new(Meter::new(&Limits {
        rpm: Some(60),
        tpm: Some(10_000),
        concurrency: Some(1),
        ..Limits::default()
    }));
    let admit = |tokens, part| {
        let meters = [None, Some(Arc::clone(&meter)), None, None];
        Reservation::admit_part(meters, Now::default(), Ask { tokens, nano: 0 }, part)
    };
    let requests = || meter.state(0).requests.unwrap().remaining;
    let (session, _) = admit(0, Part::Place).unwrap();
    assert_eq!((meter.state(0).in_flight, requests()), (1, 10));
    assert!(admit(0, Part::Place).is_err());
    assert!(reserve(&meter, 1).is_err());

    let (mut request, _) = admit(1_000, Part::Use).unwrap();
    assert_eq!((tokens_left(&meter), requests()), (9_000, 9));
    // It has no permit to give back.
    request.places().give_back();
    assert_eq!(meter.state(0).in_flight, 1);
    request.settle(400, 0);
    assert_eq!((tokens_left(&meter), meter.state(0).in_flight), (9_600, 1));
    admit(1_000, Part::Use).unwrap().0.cancel();
    assert_eq!((tokens_left(&meter), requests()), (9_600, 9));
    drop(admit(600, Part::Use).unwrap());
    assert_eq!((tokens_left(&meter), meter.state(0).in_flight), (9_000, 1));
    assert!(admit(9_001, Part::Use).is_err());

    session.cancel();
    assert_eq!((meter.state(0).in_flight, requests()), (0, 8));
    reserve(&meter, 1).unwrap().settle(1, 0);
}

#[test]
fn a_refusal_tells_what_is_there_not_what_it_would_have_left() {
    let roomy = small_meter();
    let tight = Arc::new(Meter::new(&Limits {
        tpm: Some(50),
        ..Limits::default()
    }));
    let meters = [None, Some(Arc::clone(&roomy)), Some(tight), None];
    let ask = Ask {
        tokens: 60,
        nano: 0,
    };
    let Err(Declined::Refused(refusal)) = Reservation::admit(meters, Now::default(), ask) else {
        unreachable!("60 are more than 50");
    };
    assert_eq!(refusal.scope, Scope::Model);
    assert_eq!(refusal.state.tokens.unwrap().remaining, 50);
    assert_eq!(refusal.state.requests, roomy.state(0).requests);
    assert_eq!(refusal.state.in_flight, 0);
}

#[test]
fn a_stream_is_charged_every_step_beyond_its_reservation() {
    let meter = small_meter();
    let mut reservation = reserve(&meter, 100).unwrap();
    for used in 0..100 + PROGRESS_STEP {
        reservation.charge_progress(used);
    }
    assert_eq!(tokens_left(&meter), 9_900);
    reservation.charge_progress(100 + PROGRESS_STEP);
    assert_eq!(tokens_left(&meter), 9_900 - PROGRESS_STEP);
    reservation.charge_progress(100 + 3 * PROGRESS_STEP + 5);
    assert_eq!(tokens_left(&meter), 9_900 - 3 * PROGRESS_STEP);
    assert_eq!(reservation.held(), 100 + 3 * PROGRESS_STEP);
    reservation.settle(1_000, 0);
    assert_eq!(tokens_left(&meter), 9_000);

    // Dropped, it keeps what was charged.
    let mut reservation = reserve(&meter, 0).unwrap();
    reservation.charge_progress(600);
    drop(reservation);
    assert_eq!(tokens_left(&meter), 9_000 - 2 * PROGRESS_STEP);
}

#[test]
fn new_limits_keep_what_is_taken_and_who_is_in_flight() {
    let old = small_meter();
    let held = reserve(&old, 4_000).unwrap();
    let limits = |tpm, concurrency| Limits {
        rpm: Some(60),
        tpm,
        concurrency,
        ..Limits::default()
    };

    // More: what is taken stays taken, in units.
    let new = old.reconfigured(&limits(Some(20_000), Some(1)), 0);
    assert_eq!(tokens_left(&new), 16_000);
    assert_eq!(new.state(0).in_flight, 1);
    assert_eq!(
        new.admit(0, 1).unwrap_err().dimension,
        Dimension::Concurrency
    );
    // The holder's release and settlement arrive where they count.
    held.settle(1_000, 0);
    assert_eq!((new.state(0).in_flight, old.state(0).in_flight), (0, 0));
    assert_eq!(tokens_left(&new), 19_000);
    new.admit(0, 1_000).unwrap();

    // Less: spent, but not in debt.
    let newer = new.reconfigured(&limits(Some(600), None), 0);
    assert_eq!(
        newer.state(0).tokens,
        Some(State {
            limit: 600,
            remaining: 0,
            reset: MINUTE
        })
    );
    assert_eq!(
        (newer.state(0).in_flight, newer.state(0).max_in_flight),
        (1, None)
    );

    // Debt stays debt, in units.
    newer.settle(0, 600);
    let newest = newer.reconfigured(&limits(Some(1_200), None), 0);
    let reset = newest.state(0).tokens.unwrap().reset;
    assert_eq!(reset, MINUTE, "600 taken and 600 owed, at 20 a second");

    // No limit and a limit again: full, unless it is one that was there before.
    let none = newest.reconfigured(&limits(None, None), 0);
    assert_eq!(none.state(0).tokens, None);
    let other = none.reconfigured(&limits(Some(700), None), 0);
    assert_eq!(tokens_left(&other), 700);
    let known = other.reconfigured(&limits(Some(600), None), 0);
    assert_eq!(known.state(0).tokens.unwrap().reset, 2 * MINUTE);
}

#[test]
fn cancelling_through_a_retired_meter_gives_the_request_back() {
    let limits = Limits {
        rpm: Some(6),
        rpm_burst: Some(2),
        ..Limits::default()
    };
    let old = Arc::new(Meter::new(&limits));
    let held = reserve(&old, 0).unwrap();
    let new = old.reconfigured(&limits, 0).reconfigured(&limits, 0);
    assert_eq!(new.state(0).requests.unwrap().remaining, 1);
    held.cancel();
    assert_eq!(new.state(0).requests.unwrap().remaining, 2);
    assert_eq!(new.state(0).in_flight, 0);
}

#[test]
fn permits_count_exactly() {
    let permits = Permits::new(Some(2));
    assert!(permits.try_acquire() && permits.try_acquire() && !permits.try_acquire());
    for _ in 0..5 {
        permits.release();
    }
    assert_eq!((permits.in_use(), permits.max()), (0, Some(2)));
}

/// Runs `f` on eight threads at once and sums what it returns.
fn hammer(f: impl Fn(u64) -> u64 + Sync) -> u64 {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|i| {
                scope.spawn({
                    let f = &f;
                    move || f(i)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    })
}

#[test]
fn eight_threads_at_a_frozen_clock_admit_the_burst_exactly() {
    let bucket = Bucket::new(quota(300_000_000, SECOND, 50_000));
    let admitted = hammer(|i| {
        let cost = 1 + i % 4;
        let allowed = |_: &u64| matches!(bucket.admit(SECOND, cost), Decision::Allow { .. });
        (0..20_000).filter(allowed).count() as u64 * cost
    });
    // Whoever asks for one finds the last unit.
    assert_eq!(admitted, 50_000);
    assert_eq!(bucket.peek(SECOND).remaining, 0);
}

#[test]
fn eight_threads_share_all_limits_of_a_meter_exactly() {
    const REQUESTS: u64 = 1_000_000;
    let meter = Arc::new(Meter::new(&Limits {
        rpm: Some(REQUESTS),
        rpm_burst: Some(REQUESTS),
        tpm: Some(30_000),
        concurrency: Some(3),
        ..Limits::default()
    }));
    let (most, forwarded) = (AtomicU64::new(0), AtomicU64::new(0));
    let used = hammer(|i| {
        let mut used = 0;
        for round in 0..20_000 {
            let Ok(reservation) = reserve(&meter, 10) else {
                continue;
            };
            most.fetch_max(meter.state(0).in_flight, Relaxed);
            if (round + i) % 3 == 0 {
                reservation.cancel();
                continue;
            }
            forwarded.fetch_add(1, Relaxed);
            if (round + i) % 3 == 1 {
                reservation.settle(4, 0);
                used += 4;
            } else {
                drop(reservation);
                used += 10;
            }
        }
        used
    });
    let state = meter.state(0);
    assert_eq!(state.in_flight, 0);
    assert!(most.load(Relaxed) <= 3);
    let left = (
        state.requests.unwrap().remaining,
        state.tokens.unwrap().remaining,
    );
    assert_eq!(left, (REQUESTS - forwarded.load(Relaxed), 30_000 - used));
}

#[test]
fn a_lost_race_gives_back_what_was_taken() {
    const REQUESTS: u64 = 1_000_000_000;
    // Room for the tokens of one, so whoever passes the check too late has taken a request.
    let limits = Limits {
        rpm: Some(REQUESTS),
        rpm_burst: Some(REQUESTS),
        tpm: Some(10),
        ..Limits::default()
    };
    let meter = Arc::new(Meter::new(&limits));
    hammer(|_| {
        for _ in 0..50_000 {
            if let Ok(reservation) = reserve(&meter, 10) {
                reservation.cancel();
            }
        }
        0
    });
    let state = meter.state(0);
    assert_eq!(state.in_flight, 0);
    assert_eq!(state.requests.map(|state| state.remaining), Some(REQUESTS));
    assert_eq!(state.tokens.map(|state| state.remaining), Some(10));
}

#[test]
fn settlements_survive_limits_that_change_under_load() {
    let limits = |tpm| Limits {
        tpm: Some(tpm),
        tpm_burst: Some(1 << 40),
        ..Limits::default()
    };
    let table = Table::new(4);
    table.insert(7, Arc::new(Meter::new(&limits(60))));
    hammer(|i| {
        for round in 0..2_000 {
            if i == 0 {
                table.update(7, |meter| meter.reconfigured(&limits(60 + round % 2), 0));
            } else {
                let meter = table.get(7).unwrap();
                reserve(&meter, 10).unwrap().settle(3, 0);
            }
        }
        0
    });
    assert_eq!(
        table.get(7).unwrap().state(0).in_flight,
        0,
        "no permit is lost"
    );
}

#[test]
fn a_table_keeps_what_it_is_given() {
    let table = Table::new(3);
    assert!(table.is_empty());
    for id in 0..10_000_u64 {
        assert!(table.insert(id << 32, Arc::new(id)).is_none());
    }
    assert_eq!(table.len(), 10_000);
    assert_eq!(table.get(77 << 32).as_deref(), Some(&77));
    assert_eq!(table.with(78 << 32, |value| **value), Some(78));
    assert_eq!(table.get(1), None);
    assert_eq!(*table.get_or_insert_with(1, || 11), 11);
    assert_eq!(*table.get_or_insert_with(1, || 12), 11);
    assert_eq!(table.insert(1, Arc::new(13)).as_deref(), Some(&11));
    assert_eq!(
        table.update(1, |old| Arc::new(**old + 1)).as_deref(),
        Some(&14)
    );
    assert_eq!(table.update(2, Arc::clone), None);
    assert_eq!(table.remove(1).as_deref(), Some(&14));
    assert_eq!(table.remove(1), None);
    table.retain(|id, value| id >> 32 == **value && value.is_multiple_of(2));
    let mut sum = 0;
    table.for_each(|_, value| sum += **value);
    assert_eq!((table.len(), sum), (5_000, 4_999 * 5_000));
}
