//! Limits shared by several processes: leases against a model of their store.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that goes wrong may stop"
)]

#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/store.rs"]
mod store;

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use fleet::{Fate, Fleet, MS, Random, SECOND, Weather, worst};
use forebay_core::limit::lease::{
    Grant, Lease, LeaseCounters, LeaseQuote, Leases, OnStoreLoss, Terms,
};
use store::Store;

fn rpm(rate: u64, burst: u64) -> Terms {
    Terms::rate(rate, Duration::from_secs(60), burst, OnStoreLoss::Share)
}

/// All participants' leases of one limit.
fn leases(fleet: &Fleet, participants: usize, terms: Terms) -> Vec<Arc<Lease>> {
    (0..participants)
        .map(|p| fleet.lease(p, "key:k/requests", "acme", terms))
        .collect()
}

/// Requests of `cost` at random participants, `rate` a second, for `span`.
fn load(fleet: &mut Fleet, leases: &[Arc<Lease>], rate: f64, span: u64, cost: u64) {
    let end = fleet.now + span;
    let mut random = Random(fleet.random.next());
    let mut next = fleet.now;
    loop {
        next += random.exponential(1e9 / rate) as u64;
        if next >= end {
            break;
        }
        fleet.run_until(next);
        let participant = random.below(leases.len() as u64) as usize;
        fleet.request(participant, &leases[participant], 0, cost);
    }
    fleet.run_until(end);
}

/// What a participant may hold, and what it may owe.
fn allowance(terms: &Terms, participants: usize, cost: u64) -> u64 {
    let (part, twentieth) = (terms.size() / participants as u64, terms.size() / 20);
    twentieth.min(part).max(cost) + twentieth.max(cost).min(part)
}

/// Asserts that no window had more than the bound.
fn assert_bound(
    fleet: &Fleet,
    terms: &Terms,
    rate: f64,
    extra: f64,
    cost: u64,
    participants: usize,
) {
    let slack = (participants as u64 * allowance(terms, participants, cost)) as f64 + extra;
    for span in [SECOND / 10, SECOND, 5 * SECOND, 20 * SECOND, 100 * SECOND] {
        let (most, _) = worst(&fleet.decided, 0, span);
        let bound = terms.size() as f64 + rate * span as f64 + slack;
        assert!(
            most as f64 <= bound,
            "{most} in {} ms, allowed {bound}",
            span / MS
        );
    }
}

prop_compose! {
    fn limits()(rate in 30..6_000_u64, burst in 1..600_u64, cost in 1..6_u64) -> (u64, u64, u64) {
        (rate, burst.max(cost), cost)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the load, the network's delay and the number of participants.
    #[test]
    fn no_window_exceeds_the_bound(
        (rate, burst, cost) in limits(),
        participants in 1..8_usize,
        times in 0.3..20.0_f64,
        delay in 0..5 * MS,
        jitter in 0..MS,
        seed: u64,
    ) {
        let terms = rpm(rate, burst);
        let mut fleet = Fleet::new(participants, participants as u64, seed);
        fleet.weather = Weather { delay, jitter, ..Weather::default() };
        let leases = leases(&fleet, participants, terms);
        let per_second = rate as f64 / 60.0 / cost as f64;
        load(&mut fleet, &leases, (times * per_second).min(2_000.0), 20 * SECOND, cost);
        assert_bound(&fleet, &terms, per_second * cost as f64 / 1e9, 0.0, cost, participants);
    }

    /// A clock that steps back opens nothing; one that steps forward opens what it skipped.
    #[test]
    fn steps_of_the_servers_clock((rate, burst, cost) in limits(), steps in prop::collection::vec(-30_000..3_000_i64, 1..5), seed: u64) {
        let terms = rpm(rate, burst);
        let participants = 3;
        let mut fleet = Fleet::new(participants, 3, seed);
        let leases = leases(&fleet, participants, terms);
        let per_second = rate as f64 / 60.0;
        let mut skipped = 0.0;
        for step in steps {
            load(&mut fleet, &leases, (4.0 * per_second / cost as f64).min(1_000.0), 4 * SECOND, cost);
            fleet.weather.step_us += step * 1_000;
            skipped += step.max(0) as f64 / 1e3 * per_second;
        }
        load(&mut fleet, &leases, (4.0 * per_second / cost as f64).min(1_000.0), 4 * SECOND, cost);
        assert_bound(&fleet, &terms, per_second / 1e9, skipped, cost, participants);
    }

    /// Lost messages, a store that is away, slow or empty when it returns: never more than twice the
    /// rate, and 5 s later the bound again.
    #[test]
    fn a_bad_store_and_then_a_good_one(
        (rate, burst, cost) in limits(),
        participants in 1..6_usize,
        loss in 0.0..0.3_f64,
        down in any::<bool>(),
        slow in any::<bool>(),
        flushed in any::<bool>(),
        away in 1..30_u64,
        seed: u64,
    ) {
        let terms = rpm(rate, burst);
        let mut fleet = Fleet::new(participants, participants as u64, seed);
        fleet.run_until(3 * SECOND);
        let leases = leases(&fleet, participants, terms);
        let per_second = rate as f64 / 60.0;
        let offered = (5.0 * per_second / cost as f64).min(1_000.0);
        load(&mut fleet, &leases, offered, 10 * SECOND, cost);
        fleet.weather = Weather { loss, down, delay: if slow { 100 * MS } else { MS }, ..Weather::default() };
        load(&mut fleet, &leases, offered, away * SECOND, cost);
        if flushed {
            fleet.store.flush();
        }
        fleet.weather = Weather::default();
        load(&mut fleet, &leases, offered, 5 * SECOND, cost);
        // All of it: what each share rounds up to is one request at most.
        let extra = (burst + participants as u64 * cost) as f64;
        assert_bound(&fleet, &terms, 2.0 * per_second / 1e9, extra, cost, participants);
        let from = fleet.decided.len();
        load(&mut fleet, &leases, offered, 10 * SECOND, cost);
        fleet.decided.drain(..from);
        assert_bound(&fleet, &terms, per_second / 1e9, 0.0, cost, participants);
        let (_, total) = worst(&fleet.decided, 0, SECOND);
        // A lease that no request needed meanwhile returns when one comes.
        for (participant, lease) in leases.iter().enumerate() {
            fleet.request(participant, lease, 1, cost);
        }
        fleet.run_until(fleet.now + SECOND);
        for lease in &leases {
            prop_assert!(!lease.in_share(), "still on its share");
        }
        // It serves again. A burst that comes back faster than the store is asked is not all used,
        // and calls that were carried out and not answered in time, three a participant until the
        // store is given up, were debited for nothing.
        let ideal = per_second.min(burst as f64 / 0.15) * 10.0;
        let rounding = participants as u64 * cost + cost;
        let for_nothing = 3 * participants as u64 * allowance(&terms, participants, cost);
        let lacking = rounding + if slow || loss > 0.0 { for_nothing } else { 0 };
        prop_assert!(total as f64 >= (0.7 * ideal - lacking as f64).floor(), "{total} served");
    }

    /// Permits: never more in use than there are, and all come back.
    #[test]
    fn permits_are_exact_while_the_store_answers(
        capacity in 1..60_u64,
        participants in 1..6_usize,
        delay in 0..10 * MS,
        seed: u64,
    ) {
        let terms = Terms::permits(capacity, OnStoreLoss::Share);
        let mut fleet = Fleet::new(participants, participants as u64, seed);
        fleet.weather.delay = delay;
        let leases = leases(&fleet, participants, terms);
        let mut random = Random(seed);
        let mut in_use: Vec<usize> = Vec::new();
        let mut counted = 0;
        let mut served = 0;
        for _ in 0..3_000 {
            let step = random.below(10 * MS);
            fleet.run_until(fleet.now + step);
            for one in &fleet.decided[counted..] {
                if one.fate == Fate::Admitted {
                    in_use.push(one.participant);
                    served += 1;
                }
            }
            counted = fleet.decided.len();
            prop_assert!(in_use.len() as u64 <= capacity, "{} of {capacity}", in_use.len());
            if random.below(2) == 0 && !in_use.is_empty() {
                let one = in_use.swap_remove(random.below(in_use.len() as u64) as usize);
                fleet.settle(one, &leases[one], 1, 0);
            } else {
                let one = random.below(participants as u64) as usize;
                fleet.request(one, &leases[one], 0, 1);
            }
        }
        prop_assert!(served > 100, "{served}");
        fleet.run_until(fleet.now + SECOND);
        for one in &fleet.decided[counted..] {
            if one.fate == Fate::Admitted {
                in_use.push(one.participant);
            }
        }
        for one in in_use.drain(..) {
            fleet.settle(one, &leases[one], 1, 0);
        }
        fleet.run_until(fleet.now + 15 * SECOND);
        // Everyone has given all back: one participant can have everything.
        fleet.request(0, &leases[0], 0, capacity);
        fleet.run_until(fleet.now + SECOND);
        prop_assert_eq!(fleet.decided.last().unwrap().fate, Fate::Admitted);
    }

    /// Money: reservations never exceed the budget, and what was settled is gone for good, also
    /// over a store that loses messages. Only a participant that was silent for 5 s spends what
    /// was taken back from it.
    #[test]
    fn a_budget_is_spent_once(
        capacity in 1_000..1_000_000_u64,
        participants in 1..6_usize,
        loss in prop_oneof![Just(0.0), 0.0..0.1_f64],
        seed: u64,
    ) {
        let terms = Terms::money(capacity, OnStoreLoss::Deny);
        let mut fleet = Fleet::new(participants, participants as u64, seed);
        fleet.weather.loss = loss;
        let leases = leases(&fleet, participants, terms);
        let mut random = Random(seed);
        let mut open: Vec<(usize, u64)> = Vec::new();
        let (mut counted, mut spent, mut held) = (0, 0_u64, 0_u64);
        for _ in 0..2_000 {
            fleet.run_until(fleet.now + random.below(20 * MS));
            for one in &fleet.decided[counted..] {
                if one.fate == Fate::Admitted {
                    open.push((one.participant, one.cost));
                    held += one.cost;
                }
            }
            counted = fleet.decided.len();
            let most = capacity + fleet.store.reaped;
            prop_assert!(spent + held <= most, "{spent} + {held} of {most}");
            if random.below(2) == 0 && !open.is_empty() {
                let (one, cost) = open.swap_remove(random.below(open.len() as u64) as usize);
                let used = random.below(cost + 1);
                fleet.settle(one, &leases[one], cost, used);
                spent += used;
                held -= cost;
            } else {
                let one = random.below(participants as u64) as usize;
                fleet.request(one, &leases[one], 0, 1 + random.below(capacity / 50));
            }
        }
        fleet.weather.loss = 0.0;
        fleet.run_until(fleet.now + SECOND);
        for one in &fleet.decided[counted..] {
            if one.fate == Fate::Admitted {
                open.push((one.participant, one.cost));
            }
        }
        for (one, cost) in open.drain(..) {
            fleet.settle(one, &leases[one], cost, cost);
            spent += cost;
        }
        fleet.run_until(fleet.now + 20 * SECOND);
        if fleet.store.reaped > 0 {
            return Ok(());
        }
        // Exactly what is left can be had.
        let left = capacity - spent;
        fleet.request(0, &leases[0], 0, left + 1);
        fleet.run_until(fleet.now + SECOND);
        prop_assert_eq!(fleet.decided.last().unwrap().fate, Fate::Refused);
        fleet.request(0, &leases[0], 0, left);
        fleet.run_until(fleet.now + SECOND);
        prop_assert_eq!(fleet.decided.last().unwrap().fate, Fate::Admitted);
    }
}

fn counts(fleet: &Fleet) -> (usize, usize, usize) {
    let admitted = |one: &&fleet::Decided| one.fate == Fate::Admitted;
    let waited = fleet
        .decided
        .iter()
        .filter(admitted)
        .filter(|one| one.waited);
    (
        fleet.decided.len(),
        fleet.decided.iter().filter(admitted).count(),
        waited.count(),
    )
}

#[test]
fn at_five_times_the_limit_no_hundredth_waits_and_nothing_is_lost() {
    for (rate, burst) in [(600, 100), (6_000, 1_000), (60_000, 1_000)] {
        let mut fleet = Fleet::new(3, 3, 7);
        fleet.run_until(3 * SECOND);
        let leases = leases(&fleet, 3, rpm(rate, burst));
        load(&mut fleet, &leases, rate as f64 / 12.0, 60 * SECOND, 1);
        let (_, admitted, waited) = counts(&fleet);
        let ideal = (burst + rate) as f64;
        assert!(waited * 100 <= admitted, "{waited} of {admitted} waited");
        assert!(admitted as f64 <= 1.01 * ideal, "{admitted} of {ideal}");
        assert!(admitted as f64 >= 0.985 * ideal, "{admitted} of {ideal}");
    }
}

#[test]
fn far_from_the_limit_no_request_waits_or_is_refused() {
    let mut fleet = Fleet::new(3, 3, 7);
    let leases = leases(&fleet, 3, rpm(6_000, 1_000));
    load(&mut fleet, &leases, 40.0, 60 * SECOND, 1);
    let (asked, admitted, waited) = counts(&fleet);
    assert_eq!((asked, waited), (admitted, 0));
}

#[test]
fn far_from_the_limit_debt_is_told_five_times_a_second() {
    let mut fleet = Fleet::new(2, 2, 7);
    fleet.run_until(3 * SECOND);
    let leases = leases(&fleet, 2, rpm(60_000, 10_000));
    let served = fleet.store.served;
    load(&mut fleet, &leases, 200.0, 20 * SECOND, 1);
    // With a heartbeat a second.
    let most = 2 * 20 * (5 + 1);
    let calls = fleet.store.served - served;
    assert!(calls <= most, "{calls} calls");
}

/// A scan of all leases in use must not be repeated for each that is due.
#[test]
fn thousands_of_leases_are_looked_at_together() {
    let registry = Leases::new(LeaseCounters::default());
    registry.activate(20, || {});
    let mut now = SECOND;
    // Each asks at a time of its own, because its request waits.
    for i in 0..5_000 {
        let lease = registry.get_or_create(&format!("key:{i}"), "t", rpm(60, 10));
        assert_eq!(lease.quote(now, 1), LeaseQuote::NeedGrant);
        lease.request(now, 1);
        let round = registry.collect(now).0.unwrap();
        for call in round.calls {
            let grant = Grant {
                units: if call.is_beat() { 20 } else { 1 },
                level: 5,
                ..Grant::default()
            };
            let grants = vec![grant; call.asks().len().max(1)];
            registry.answer(now, now, &call, Some(&grants));
        }
        now += MS / 10;
    }
    let (mut next, mut looks) = (now, 0);
    while next < now + 100 * MS {
        let (round, at) = registry.collect(next);
        for call in round.into_iter().flat_map(|round| round.calls) {
            registry.answer(next, next, &call, None);
        }
        looks += 1;
        next = at.max(next + 1);
    }
    assert!(looks <= 12, "{looks} looks in 100 ms");
}

/// Single requests of 50 limits each, at one of so many participants: keys that the store served for
/// them.
fn keys_for_single_requests(participants: usize) -> u64 {
    let served = |requests: usize| {
        let mut fleet = Fleet::new(participants, participants as u64, 7);
        fleet.run_until(3 * SECOND);
        for i in 0..requests {
            let lease = fleet.lease(0, &format!("key:{i}"), "t", rpm(60, 10));
            fleet.request(0, &lease, 0, 1);
            fleet.run_until(fleet.now + 10 * MS);
        }
        fleet.run_until(10 * SECOND);
        fleet.store.served
    };
    served(50) - served(0)
}

#[test]
fn a_single_request_costs_one_call() {
    // Of a burst of 10 a part is left for each of 3 participants, so that it need not wait, and not
    // for each of 20.
    for participants in [3, 20] {
        let keys = keys_for_single_requests(participants);
        assert!((50..=53).contains(&keys), "{keys} for 50 requests");
    }
}

#[test]
fn what_is_not_used_costs_no_call() {
    let mut fleet = Fleet::new(2, 2, 7);
    let leases = leases(&fleet, 2, rpm(600, 100));
    load(&mut fleet, &leases, 50.0, 5 * SECOND, 1);
    fleet.run_until(fleet.now + 3 * SECOND);
    let served = fleet.store.served;
    fleet.run_until(fleet.now + 60 * SECOND);
    // One heartbeat a second and participant.
    assert!(fleet.store.served - served <= 2 * 61);
}

#[test]
fn a_lease_that_no_one_uses_is_forgotten() {
    let mut fleet = Fleet::new(1, 1, 7);
    for i in 0..1_000 {
        let lease = fleet.lease(0, &format!("key:{i}"), "t", rpm(600, 100));
        fleet.request(0, &lease, 0, 1);
    }
    assert_eq!(fleet.leases(0).len(), 1_000);
    fleet.run_until(100 * SECOND);
    assert_eq!(fleet.leases(0).len(), 0);
}

#[test]
fn a_cost_above_the_burst_is_never_and_zero_refuses_everything() {
    let fleet = Fleet::new(1, 1, 7);
    let lease = fleet.lease(0, "a", "t", rpm(600, 100));
    assert_eq!(lease.quote(SECOND, 101), LeaseQuote::Never);
    let closed = fleet.lease(0, "b", "t", rpm(0, 100));
    assert_eq!(closed.quote(SECOND, 1), LeaseQuote::Never);
    assert_eq!(closed.state(SECOND).remaining, 0);
}

#[test]
fn hard_limits_admit_nothing_without_the_store() {
    let mut fleet = Fleet::new(1, 1, 7);
    let terms = Terms::rate(600, Duration::from_secs(60), 100, OnStoreLoss::Deny);
    let lease = fleet.lease(0, "a", "t", terms);
    fleet.weather.down = true;
    fleet.run_until(5 * SECOND);
    fleet.request(0, &lease, 0, 1);
    assert_eq!(fleet.decided.last().unwrap().fate, Fate::Refused);
    fleet.weather.down = false;
    fleet.run_until(8 * SECOND);
    fleet.request(0, &lease, 0, 1);
    fleet.run_until(9 * SECOND);
    fleet.request(0, &lease, 0, 1);
    assert_eq!(fleet.decided.last().unwrap().fate, Fate::Admitted);
}

#[test]
fn a_long_wait_for_units_does_not_keep_a_lease_on_its_share() {
    let mut fleet = Fleet::new(1, 1, 7);
    // One in 20 s, which the store says once there is none.
    let lease = fleet.lease(0, "a", "t", rpm(3, 1));
    let asks = |fleet: &mut Fleet, span| load(fleet, &[Arc::clone(&lease)], 10.0, span, 1);
    asks(&mut fleet, 2 * SECOND);
    assert!(!lease.in_share());
    fleet.weather.down = true;
    asks(&mut fleet, 5 * SECOND);
    assert!(lease.in_share());
    fleet.weather.down = false;
    asks(&mut fleet, 3 * SECOND);
    assert!(!lease.in_share());
    assert_eq!(worst(&fleet.decided, 0, SECOND).1, 1);
}

#[test]
fn other_terms_take_the_place_of_the_old() {
    let mut fleet = Fleet::new(1, 1, 7);
    let lease = fleet.lease(0, "a", "t", rpm(600, 100));
    fleet.request(0, &lease, 0, 1);
    fleet.run_until(SECOND);
    let again = fleet.lease(0, "a", "t", rpm(60, 10));
    assert!(Arc::ptr_eq(&lease, &again));
    assert_eq!(lease.quote(fleet.clock(0), 11), LeaseQuote::Never);
    assert_eq!(lease.state(fleet.clock(0)).limit, 60);
}

#[test]
fn a_token_debt_is_repaid_before_the_next_admission() {
    let mut fleet = Fleet::new(2, 2, 7);
    let terms = Terms::rate(6_000, Duration::from_secs(60), 1_000, OnStoreLoss::Share);
    let leases = leases(&fleet, 2, terms);
    fleet.request(0, &leases[0], 0, 50);
    fleet.settle(0, &leases[0], 50, 1_500);
    fleet.run_until(SECOND);
    // The store knows, so the other participant does: 500 are owed, 100 come back a second.
    fleet.request(1, &leases[1], 0, 1);
    fleet.run_until(2 * SECOND);
    fleet.request(1, &leases[1], 0, 1);
    assert_eq!(fleet.decided.last().unwrap().fate, Fate::Refused);
    fleet.run_until(8 * SECOND);
    fleet.request(1, &leases[1], 0, 1);
    fleet.run_until(9 * SECOND);
    assert_eq!(fleet.decided.last().unwrap().fate, Fate::Admitted);
}

/// One line of `tests/data/leases.json`.
#[derive(Serialize, Deserialize)]
struct Recorded {
    at_us: i64,
    me: String,
    keys: Vec<String>,
    args: Vec<String>,
    reply: Vec<i64>,
}

/// The script and its model agree on these; the other half is `tests/limits/test_script.py`.
/// `FOREBAY_RECORD=1` writes them anew.
#[test]
fn the_model_answers_as_recorded() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/leases.json");
    let calls = || {
        let mut random = Random(11);
        let mut store = Store::default();
        let mut at_us = 1_700_000_000_000_000_i64;
        (0..400).map(move |i| {
            at_us += [1_000, 40_000, 900_000, 5_500_000, -2_000_000][random.below(5) as usize];
            let me = ["a", "b", "c"][random.below(3) as usize].to_owned();
            let count = 1 + random.below(3) as usize;
            let (mut keys, mut args) = (Vec::new(), Vec::new());
            for j in 0..count {
                let kind = random.below(8);
                let mut row: Vec<u64> = if kind < 4 {
                    let (units, burst) =
                        [(60, 100), (7, 500), (6_000, 9_000), (1, 90)][kind as usize];
                    vec![
                        units,
                        60_000_000_000,
                        burst,
                        random.below(burst / 10 + 1) * random.below(2),
                        random.below(9) * random.below(2),
                    ]
                } else {
                    vec![
                        [20, 1_000_000, 9_000_000_000_000_000][kind as usize % 3],
                        7_200_000,
                        1 + i / 2,
                        random.below(9),
                        random.below(50) * random.below(2),
                        random.below(3),
                    ]
                };
                let need = random.below(4) * random.below(2);
                let want = need + random.below(12);
                row.extend([want, need, 1 + random.below(3), random.below(2)]);
                row.resize(10, random.below(4_000) * random.below(2));
                let name = if kind < 4 { "r" } else { "h" };
                keys.push(format!("fb:{{t}}:{name}{kind}.{j}"));
                args.push(name.to_owned());
                args.extend(row.iter().map(u64::to_string));
            }
            if i % 20 == 0 {
                (keys, args) = (
                    vec!["fb:{t}:m".to_owned()],
                    vec!["m".to_owned(), "5000".to_owned(), (i % 3 / 2).to_string()],
                );
                args.resize(11, "0".to_owned());
            }
            let reply = store.call(at_us, &me, &keys, &args);
            Recorded {
                at_us,
                me,
                keys,
                args,
                reply,
            }
        })
    };
    if std::env::var_os("FOREBAY_RECORD").is_some() {
        let lines: Vec<String> = calls()
            .map(|one| serde_json::to_string(&one).unwrap())
            .collect();
        std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
    }
    let recorded: Vec<Recorded> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut store = Store::default();
    for (i, one) in recorded.iter().enumerate() {
        let reply = store.call(one.at_us, &one.me, &one.keys, &one.args);
        assert_eq!(reply, one.reply, "call {i}");
    }
    assert!(recorded.len() >= 400);
}
