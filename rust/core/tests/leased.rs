//! Meters whose limits several nodes share: admission, settlement and change over leases.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that goes wrong may stop"
)]

#[path = "support/nodes.rs"]
mod nodes;
#[path = "support/store.rs"]
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use forebay_core::limit::{
    Ask, Budget, CONCURRENCY_RETRY, Declined, Dimension, Limits, Meter, Meters, OnStoreLoss,
    Period, Reservation, Scope,
};
use nodes::{Admitted, BEGAN, MS, Nodes, Refused, SECOND};

const USD: u64 = 1_000_000_000;
const DAY_S: i64 = 86_400;
const NOTHING: Ask = Ask { tokens: 0, nano: 0 };

fn tokens(tokens: u64) -> Ask {
    Ask { tokens, nano: 0 }
}

fn money(nano: u64) -> Ask {
    Ask { tokens: 0, nano }
}

/// One request a minute comes back, so that what is left is what was not used.
fn slow_requests(burst: u64) -> Limits {
    Limits {
        rpm: Some(1),
        rpm_burst: Some(burst),
        ..Limits::default()
    }
}

fn slow_tokens(burst: u64) -> Limits {
    Limits {
        tpm: Some(1),
        tpm_burst: Some(burst),
        ..Limits::default()
    }
}

fn permits(concurrency: u32) -> Limits {
    Limits {
        concurrency: Some(concurrency),
        ..Limits::default()
    }
}

fn budget(nano: u64, period: Period) -> Limits {
    Limits {
        budget: Some(Budget { nano, period }),
        ..Limits::default()
    }
}

fn of_key(meter: &Arc<Meter>) -> Meters {
    [None, Some(Arc::clone(meter)), None, None]
}

fn admit(
    nodes: &mut Nodes,
    node: usize,
    meter: &Arc<Meter>,
    ask: Ask,
) -> Result<Admitted, Refused> {
    nodes.admit(node, &of_key(meter), ask)
}

fn reserve(nodes: &mut Nodes, node: usize, meter: &Arc<Meter>, ask: Ask) -> Reservation {
    admit(nodes, node, meter, ask).unwrap().0
}

/// How many of such requests are admitted, and end uncounted: until none is for a second.
fn room(nodes: &mut Nodes, node: usize, meter: &Arc<Meter>, ask: Ask) -> u64 {
    let mut held = Vec::new();
    let mut refused = 0;
    while refused < 50 {
        match admit(nodes, node, meter, ask) {
            Ok((reservation, _)) => {
                held.push(reservation);
                refused = 0;
            }
            Err(_) => refused += 1,
        }
        nodes.run(20 * MS);
    }
    let count = held.len() as u64;
    held.into_iter().for_each(Reservation::cancel);
    nodes.run(4 * SECOND);
    count
}

/// What is left of the only limit of a subject, as the store tells a node.
fn remaining(nodes: &mut Nodes, meter: &Meter) -> u64 {
    let _ = meter.standings(nodes.clock());
    nodes.run(20 * MS);
    let standings = meter.standings(nodes.clock());
    assert_eq!(standings.len(), 1);
    standings[0].remaining
}

#[test]
fn a_request_that_one_limit_refuses_takes_from_none() {
    let mut nodes = Nodes::new(2);
    let account = nodes.meter(0, "account:a", &slow_requests(100));
    let key = nodes.meter(0, "key:k", &slow_tokens(1_000));
    let model = nodes.meter(0, "model:m", &permits(1));
    let both = nodes.meter(0, "key:k/m", &budget(USD, Period::Total));
    let all = [account, key, model, both].map(Some);
    let ask = Ask {
        tokens: 100,
        nano: USD / 10,
    };
    let (first, state) = nodes.admit(0, &all, ask).unwrap();
    assert_eq!(state.requests.unwrap().remaining, 99);
    assert_eq!(state.tokens.unwrap().remaining, 900);
    assert_eq!(state.max_in_flight, Some(1));
    nodes.run(SECOND);
    for _ in 0..20 {
        let refused = nodes.admit(0, &all, ask).unwrap_err();
        let refusal = refused.refusal();
        assert_eq!(
            (refusal.scope, refusal.dimension, refusal.retry_after),
            (
                Scope::Model,
                Dimension::Concurrency,
                Some(CONCURRENCY_RETRY)
            )
        );
        nodes.run(50 * MS);
    }
    let left = |nodes: &mut Nodes| {
        all.each_ref()
            .map(|meter| remaining(nodes, meter.as_ref().unwrap()))
    };
    nodes.run(5 * SECOND);
    assert_eq!(left(&mut nodes), [99, 900, 0, USD / 10 * 9]);
    first.settle(100, USD / 10);
    nodes.run(5 * SECOND);
    assert_eq!(left(&mut nodes), [99, 900, 1, USD / 10 * 9]);
}

#[test]
fn threads_that_lose_a_race_give_back_what_they_took() {
    let mut nodes = Nodes::new(1);
    let requests = nodes.meter(0, "account:a", &slow_requests(1_000_000));
    let tokens_of = nodes.meter(0, "key:k", &slow_tokens(1_000_000));
    let few = nodes.meter(0, "model:m", &permits(3));
    // The three permits are here before the race.
    let held: Vec<_> = (0..3)
        .map(|_| nodes.admit(0, &of_key(&few), NOTHING).unwrap().0)
        .collect();
    held.into_iter().for_each(Reservation::cancel);
    let meters: Meters = [
        Some(requests),
        Some(tokens_of),
        Some(Arc::clone(&few)),
        None,
    ];
    let now = nodes.clock();
    let (in_use, admitted) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    match Reservation::admit(meters.clone(), now, tokens(1)) {
                        Ok((reservation, _)) => {
                            assert!(in_use.fetch_add(1, Relaxed) < 3);
                            admitted.fetch_add(1, Relaxed);
                            in_use.fetch_sub(1, Relaxed);
                            reservation.cancel();
                        }
                        Err(Declined::Wanting(_) | Declined::Refused(_)) => {}
                    }
                }
            });
        }
    });
    assert!(admitted.load(Relaxed) > 0);
    nodes.run(10 * SECOND);
    let left: Vec<_> = meters
        .iter()
        .flatten()
        .map(|meter| remaining(&mut nodes, meter))
        .collect();
    assert_eq!(left, [1_000_000, 1_000_000, 3]);
}

#[test]
fn a_first_request_asks_the_store_once_for_all_its_limits() {
    let mut nodes = Nodes::new(2);
    let limits = Limits {
        concurrency: Some(4),
        ..budget(USD, Period::Month)
    };
    let meters = nodes.meters("key:k", &limits);
    let calls = nodes.calls;
    let first = reserve(&mut nodes, 0, &meters[0], money(USD / 100));
    assert_eq!((nodes.waited, nodes.calls - calls), (1, 1));
    first.settle(0, USD / 100);
    // What came back serves the next one.
    let next = reserve(&mut nodes, 0, &meters[0], money(0));
    assert_eq!(nodes.waited, 1);
    next.cancel();
}

#[test]
fn far_from_a_rates_limit_nothing_waits() {
    let mut nodes = Nodes::new(3);
    let limits = Limits {
        rps: Some(100),
        rpm: Some(6_000),
        tpm: Some(1_000_000),
        ..Limits::default()
    };
    let meters = nodes.meters("key:k", &limits);
    for i in 0..300 {
        let reservation = reserve(&mut nodes, i % 3, &meters[i % 3], tokens(500));
        nodes.run(20 * MS);
        reservation.settle(400, 0);
    }
    assert_eq!(nodes.waited, 0);
}

#[test]
fn after_an_answer_that_brings_nothing_the_limit_is_named() {
    let mut nodes = Nodes::new(2);
    let meters = nodes.meters("key:k", &permits(1));
    let held = reserve(&mut nodes, 0, &meters[0], NOTHING);
    let refused = admit(&mut nodes, 1, &meters[1], NOTHING).unwrap_err();
    let refusal = refused.refusal();
    assert_eq!(
        (refusal.dimension, refusal.limit, refusal.retry_after),
        (Dimension::Concurrency, 1, Some(CONCURRENCY_RETRY))
    );
    held.cancel();

    // Not answered at all: what others hold is not known to be free.
    nodes.hangs = true;
    let meters = nodes.meters(
        "key:hangs",
        &Limits {
            on_store_loss: OnStoreLoss::Deny,
            ..permits(7)
        },
    );
    let refused = admit(&mut nodes, 0, &meters[0], NOTHING).unwrap_err();
    assert!(matches!(refused, Refused::Unanswered(_)), "{refused:?}");
    let refusal = refused.refusal();
    assert_eq!(
        (refusal.dimension, refusal.limit, refusal.scope),
        (Dimension::Concurrency, 7, Scope::Key)
    );
    assert!(refusal.retry_after.is_some());
    let spending = nodes.meters("key:hangs", &budget(USD, Period::Day));
    let refused = admit(&mut nodes, 0, &spending[0], money(1)).unwrap_err();
    let refusal = refused.refusal();
    assert_eq!(
        (refusal.dimension, refusal.limit, refusal.period),
        (Dimension::Budget, USD, "day")
    );
    assert!(refusal.retry_after.is_some());
    // A rate has its share, which is half a request here.
    let rate = nodes.meters("key:hangs", &slow_requests(1));
    let refused = admit(&mut nodes, 0, &rate[0], NOTHING).unwrap_err();
    assert!(matches!(refused, Refused::At(_)), "{refused:?}");
    assert_eq!(refused.refusal().dimension, Dimension::Requests);
}

#[test]
fn tokens_are_settled_with_all_nodes_however_a_request_ends() {
    let mut nodes = Nodes::new(2);
    let meters = nodes.meters("key:k", &slow_tokens(10_000));
    let mut left = 10_000;
    let settled = |nodes: &mut Nodes, left: u64| {
        nodes.run(3 * SECOND);
        for (node, meter) in meters.iter().enumerate() {
            let known = remaining(nodes, meter);
            assert!(known.abs_diff(left) <= 1, "{known} at {node}, not {left}");
        }
    };
    for (reserved, used) in [(1_000, 400), (300, 0), (100, 700), (900, 900)] {
        reserve(&mut nodes, 0, &meters[0], tokens(reserved)).settle(used, 0);
        left -= used;
        settled(&mut nodes, left);
    }
    // Nobody learnt the use of a dropped one: its reservation counts.
    drop(reserve(&mut nodes, 1, &meters[1], tokens(500)));
    settled(&mut nodes, left - 500);
    left -= 500;
    // A stream beyond its reservation.
    let mut stream = reserve(&mut nodes, 1, &meters[1], tokens(100));
    stream.charge_progress(100 + 2 * 256);
    nodes.run(SECOND);
    stream.settle(1_000, 0);
    settled(&mut nodes, left - 1_000);
}

#[test]
fn requests_that_were_not_forwarded_do_not_count() {
    let mut nodes = Nodes::new(2);
    let meters = nodes.meters("key:k", &slow_requests(40));
    for i in 0..60 {
        reserve(&mut nodes, i % 2, &meters[i % 2], NOTHING).cancel();
        nodes.run(20 * MS);
    }
    for i in 0..10 {
        reserve(&mut nodes, i % 2, &meters[i % 2], NOTHING).settle(0, 0);
        nodes.run(100 * MS);
    }
    nodes.run(3 * SECOND);
    assert_eq!(room(&mut nodes, 0, &meters[0], NOTHING), 30);
}

#[test]
fn permits_are_exact_over_nodes_and_come_back() {
    let mut nodes = Nodes::new(3);
    let meters = nodes.meters("key:k", &permits(2));
    for round in 0..20 {
        let mut held = Vec::new();
        for at in 0..9 {
            let node = (round + at) % 3;
            if let Ok((one, _)) = admit(&mut nodes, node, &meters[node], NOTHING) {
                held.push(one);
            }
        }
        assert_eq!(held.len(), 2, "round {round}");
        for (i, one) in held.into_iter().enumerate() {
            match i + round {
                n if n % 3 == 0 => one.cancel(),
                n if n % 3 == 1 => one.settle(0, 0),
                _ => drop(one),
            }
        }
        nodes.run(4 * SECOND);
    }
}

#[test]
fn the_permits_of_a_dead_node_come_back_after_its_heartbeat() {
    let mut nodes = Nodes::new(2);
    let meters = nodes.meters("key:k", &permits(2));
    let held: Vec<_> = (0..2)
        .map(|_| reserve(&mut nodes, 0, &meters[0], NOTHING))
        .collect();
    nodes.kill(0);
    nodes.run(3 * SECOND);
    admit(&mut nodes, 1, &meters[1], NOTHING).unwrap_err();
    nodes.run(5 * SECOND);
    assert_eq!(room(&mut nodes, 1, &meters[1], NOTHING), 2);
    drop(held);
}

#[test]
fn a_budget_is_spent_once_over_nodes() {
    let mut nodes = Nodes::new(3);
    let meters = nodes.meters("key:k", &budget(10 * USD, Period::Month));
    let mut spent = 0;
    let mut open = Vec::new();
    for i in 0..400 {
        let node = i % 3;
        if let Ok((one, _)) = admit(&mut nodes, node, &meters[node], money(USD / 5)) {
            open.push(one);
        }
        if open.len() > 4 || i % 5 == 4 && !open.is_empty() {
            open.remove(0).settle(0, USD / 10);
            spent += USD / 10;
        }
        assert!(spent + open.len() as u64 * (USD / 5) <= 10 * USD);
        nodes.run(100 * MS);
    }
    for one in open {
        one.settle(0, USD / 10);
        spent += USD / 10;
    }
    // All but what no reservation fits into.
    assert!(spent >= 98 * USD / 10, "{spent}");
}

#[test]
fn money_that_requests_in_flight_hold_is_worth_a_wait_and_spent_money_is_not() {
    let mut nodes = Nodes::new(1);
    let meter = nodes.meter(0, "key:k", &budget(USD, Period::Day));
    let ask = money(USD * 3 / 5);
    let held = reserve(&mut nodes, 0, &meter, ask);
    nodes.run(SECOND);
    let refused = admit(&mut nodes, 0, &meter, ask).unwrap_err();
    assert_eq!(refused.refusal().retry_after, Some(CONCURRENCY_RETRY));
    held.settle(0, USD * 3 / 5);
    nodes.run(SECOND);
    let refused = admit(&mut nodes, 0, &meter, ask).unwrap_err();
    let refusal = refused.refusal();
    assert_eq!(
        (refusal.dimension, refusal.retry_after),
        (Dimension::Budget, None)
    );
}

#[test]
fn a_new_period_begins_with_nothing_spent_and_yesterdays_requests_end_in_yesterday() {
    let mut nodes = Nodes::new(2);
    let meters = nodes.meters("key:k", &budget(USD, Period::Day));
    reserve(&mut nodes, 0, &meters[0], money(USD / 2)).settle(0, USD / 2);
    let late = reserve(&mut nodes, 0, &meters[0], money(USD / 4));
    nodes.run(2 * SECOND);
    nodes.unix_s += DAY_S;
    assert_eq!(remaining(&mut nodes, &meters[1]), USD);
    let (early, _) = admit(&mut nodes, 1, &meters[1], money(USD)).unwrap();
    late.settle(0, USD / 4);
    early.settle(0, USD / 10);
    nodes.run(4 * SECOND);
    let (rest, _) = admit(&mut nodes, 0, &meters[0], money(USD / 10 * 9)).unwrap();
    rest.cancel();
    // Yesterday has what it had.
    nodes.unix_s -= DAY_S;
    nodes.run(4 * SECOND);
    admit(&mut nodes, 1, &meters[1], money(USD / 4 + 1)).unwrap_err();
    admit(&mut nodes, 1, &meters[1], money(USD / 4))
        .unwrap()
        .0
        .cancel();
}

#[test]
fn what_the_database_knows_to_be_spent_counts() {
    let mut nodes = Nodes::new(2);
    let meters = nodes.meters("key:k", &budget(USD, Period::Month));
    let start = Period::Month.bounds(BEGAN).0;
    meters[0].raise_spent(BEGAN, start, USD / 2);
    assert_eq!(remaining(&mut nodes, &meters[0]), USD / 2);
    admit(&mut nodes, 0, &meters[0], money(USD / 2 + 1)).unwrap_err();
    // The store knows it then.
    admit(&mut nodes, 1, &meters[1], money(USD / 2 + 1)).unwrap_err();
    admit(&mut nodes, 1, &meters[1], money(USD / 2))
        .unwrap()
        .0
        .cancel();
}

#[test]
fn fewer_permits_hold_for_the_next_request() {
    let mut nodes = Nodes::new(2);
    let old = nodes.meters("key:k", &permits(4));
    let mut held: Vec<_> = (0..4)
        .map(|i| reserve(&mut nodes, i % 2, &old[i % 2], NOTHING))
        .collect();
    let new: Vec<_> = old
        .iter()
        .map(|meter| meter.reconfigured(&permits(2), nodes.now))
        .collect();
    for _ in 0..2 {
        for (node, meter) in new.iter().enumerate() {
            admit(&mut nodes, node, meter, NOTHING).unwrap_err();
        }
        held.remove(0).settle(0, 0);
        for (node, meter) in new.iter().enumerate() {
            admit(&mut nodes, node, meter, NOTHING).unwrap_err();
        }
        nodes.run(SECOND);
    }
    held.clear();
    nodes.run(5 * SECOND);
    assert_eq!(room(&mut nodes, 1, &new[1], NOTHING), 2);
}

#[test]
fn under_steady_load_too_fewer_permits_hold() {
    let mut nodes = Nodes::new(2);
    let mut meters = nodes.meters("key:k", &permits(8));
    let mut held = std::collections::VecDeque::new();
    for i in 0..400_usize {
        if i == 200 {
            meters = meters
                .iter()
                .map(|meter| meter.reconfigured(&permits(3), nodes.now))
                .collect();
        }
        if let Ok((one, _)) = admit(&mut nodes, i % 2, &meters[i % 2], NOTHING) {
            held.push_back((i, one));
        }
        if held.front().is_some_and(|(since, _)| i - since > 9) {
            held.pop_front();
        }
        if i > 220 {
            assert!(held.len() <= 3, "{} at {i}", held.len());
        }
        nodes.run(20 * MS);
    }
    assert!(!held.is_empty());
}

#[test]
fn more_permits_and_money_are_there_at_once() {
    let mut nodes = Nodes::new(2);
    let old = nodes.meters(
        "key:k",
        &Limits {
            concurrency: Some(1),
            ..budget(USD, Period::Total)
        },
    );
    let held = reserve(&mut nodes, 0, &old[0], money(USD));
    admit(&mut nodes, 1, &old[1], money(USD)).unwrap_err();
    let limits = Limits {
        concurrency: Some(3),
        ..budget(3 * USD, Period::Total)
    };
    let new: Vec<_> = old
        .iter()
        .map(|m| m.reconfigured(&limits, nodes.now))
        .collect();
    nodes.run(300 * MS);
    let other = reserve(&mut nodes, 1, &new[1], money(USD));
    held.settle(0, USD);
    other.settle(0, USD / 2);
    nodes.run(4 * SECOND);
    admit(&mut nodes, 0, &new[0], money(USD * 3 / 2 + 1)).unwrap_err();
    admit(&mut nodes, 0, &new[0], money(USD * 3 / 2))
        .unwrap()
        .0
        .cancel();
}

#[test]
fn a_smaller_budget_stops_what_is_left_of_the_old_one() {
    let mut nodes = Nodes::new(2);
    let old = nodes.meters("key:k", &budget(10 * USD, Period::Total));
    // Each node holds some of it.
    for _ in 0..50 {
        for (node, meter) in old.iter().enumerate() {
            reserve(&mut nodes, node, meter, money(USD / 50)).settle(0, USD / 50);
        }
        nodes.run(20 * MS);
    }
    let new: Vec<_> = old
        .iter()
        .map(|m| m.reconfigured(&budget(USD, Period::Total), nodes.now))
        .collect();
    for (node, meter) in new.iter().enumerate() {
        admit(&mut nodes, node, meter, money(USD / 50)).unwrap_err();
    }
}

#[test]
fn what_an_old_meter_does_late_leaves_the_new_limits_alone() {
    let mut nodes = Nodes::new(1);
    let old = nodes.meter(0, "key:k", &budget(USD, Period::Day));
    let yesterday = reserve(&mut nodes, 0, &old, money(USD / 10));
    nodes.unix_s += DAY_S;
    let today = reserve(&mut nodes, 0, &old, money(USD / 10));
    let new = old.reconfigured(&budget(5 * USD, Period::Day), nodes.now);
    reserve(&mut nodes, 0, &new, money(2 * USD)).settle(0, 2 * USD);
    yesterday.settle(0, USD / 10);
    today.settle(0, USD / 10);
    nodes.run(SECOND);
    admit(&mut nodes, 0, &new, money(2 * USD))
        .unwrap()
        .0
        .cancel();
    assert_eq!(new.standings(nodes.clock())[0].limit, 5 * USD);
    assert!(remaining(&mut nodes, &new) > 2 * USD);
}

#[test]
fn a_request_in_flight_settles_on_changed_limits() {
    let mut nodes = Nodes::new(2);
    let old = nodes.meters("key:k", &slow_tokens(10_000));
    let held = reserve(&mut nodes, 0, &old[0], tokens(1_000));
    let new: Vec<_> = old
        .iter()
        .map(|m| m.reconfigured(&slow_tokens(5_000), nodes.now))
        .collect();
    held.settle(200, 0);
    nodes.run(3 * SECOND);
    reserve(&mut nodes, 1, &new[1], tokens(1)).settle(1, 0);
    nodes.run(3 * SECOND);
    let left = remaining(&mut nodes, &new[1]);
    assert!((4_799..4_801).contains(&left), "{left}");
    assert_eq!(
        admit(&mut nodes, 1, &new[1], tokens(5_001))
            .unwrap_err()
            .refusal()
            .retry_after,
        None
    );
    // Without the limit nothing is counted, and nothing goes wrong.
    let held = reserve(&mut nodes, 0, &new[0], tokens(300));
    let none = new[0].reconfigured(&Limits::default(), nodes.now);
    held.settle(900, 0);
    assert!(none.is_open());
    assert!(none.standings(nodes.clock()).is_empty());
}

#[test]
fn without_the_store_hard_limits_refuse_and_say_when_to_come_back() {
    let mut nodes = Nodes::new(2);
    let limits = Limits {
        rpm: Some(600),
        tpm: Some(10_000),
        concurrency: Some(10),
        on_store_loss: OnStoreLoss::Deny,
        ..budget(USD, Period::Month)
    };
    let meters = nodes.meters("key:k", &limits);
    let ask = Ask {
        tokens: 10,
        nano: 10,
    };
    reserve(&mut nodes, 0, &meters[0], ask).settle(10, 10);
    nodes.down = true;
    nodes.run(5 * SECOND);
    for (node, meter) in meters.iter().enumerate() {
        let refused = admit(&mut nodes, node, meter, ask).unwrap_err();
        assert!(refused.refusal().retry_after.is_some(), "{refused:?}");
    }
    for (one, dimension) in [
        (
            Limits {
                rpm: Some(600),
                ..Limits::default()
            },
            Dimension::Requests,
        ),
        (
            Limits {
                tpm: Some(600),
                ..Limits::default()
            },
            Dimension::Tokens,
        ),
        (permits(5), Dimension::Concurrency),
        (budget(USD, Period::Day), Dimension::Budget),
    ] {
        let hard = Limits {
            on_store_loss: OnStoreLoss::Deny,
            ..one
        };
        let meter = nodes.meter(0, &format!("key:{dimension:?}"), &hard);
        let refused = admit(&mut nodes, 0, &meter, ask).unwrap_err();
        let refusal = refused.refusal();
        assert_eq!(refusal.dimension, dimension);
        assert!(refusal.retry_after.is_some(), "{refusal:?}");
    }
    let waited = nodes.waited;
    nodes.down = false;
    nodes.run(3 * SECOND);
    reserve(&mut nodes, 0, &meters[0], ask).settle(10, 10);
    assert!(nodes.waited <= waited + 1);
}

#[test]
fn limits_that_were_idle_while_the_store_was_away_are_whole_when_it_is_back() {
    let mut nodes = Nodes::new(3);
    let hard = |limits: Limits| Limits {
        on_store_loss: OnStoreLoss::Deny,
        ..limits
    };
    let rate = nodes.meter(0, "key:rate", &hard(slow_requests(30)));
    let few = nodes.meter(0, "key:few", &hard(permits(3)));
    nodes.down = true;
    nodes.run(5 * SECOND);
    for meter in [&rate, &few] {
        admit(&mut nodes, 0, meter, NOTHING).unwrap_err();
    }
    // One that nobody asked for is looked at by someone.
    let looked_at = nodes.meter(0, "key:other", &hard(slow_requests(30)));
    assert_eq!(looked_at.standings(nodes.clock())[0].remaining, 0);
    nodes.run(10 * SECOND);
    nodes.down = false;
    nodes.run(3 * SECOND);
    for meter in [&rate, &few, &looked_at] {
        reserve(&mut nodes, 0, meter, NOTHING).cancel();
    }
}

#[test]
fn without_the_store_each_node_has_its_share() {
    let mut nodes = Nodes::new(4);
    nodes.down = true;
    nodes.run(5 * SECOND);
    let counts = |nodes: &mut Nodes, limits: &Limits, ask: Ask| -> Vec<u64> {
        let meters = nodes.meters(&format!("key:{limits:?}"), limits);
        (0..4)
            .map(|node| {
                let mut held = Vec::new();
                while let Ok((one, _)) = admit(nodes, node, &meters[node], ask) {
                    held.push(one);
                }
                held.len() as u64
            })
            .collect()
    };
    assert_eq!(counts(&mut nodes, &slow_requests(20), NOTHING), [5; 4]);
    assert_eq!(counts(&mut nodes, &slow_tokens(400), tokens(10)), [10; 4]);
    assert_eq!(counts(&mut nodes, &permits(8), NOTHING), [2; 4]);
    assert_eq!(counts(&mut nodes, &permits(2), NOTHING), [1; 4]);
    assert_eq!(
        counts(&mut nodes, &budget(USD, Period::Day), money(USD / 40)),
        [10; 4]
    );
    assert_eq!(nodes.waited, 0);
}

#[test]
fn what_a_share_spent_is_told_when_the_store_is_back() {
    let mut nodes = Nodes::new(2);
    let meters = nodes.meters("key:k", &budget(USD, Period::Month));
    reserve(&mut nodes, 0, &meters[0], money(USD / 10)).settle(0, USD / 10);
    nodes.run(4 * SECOND);
    nodes.down = true;
    nodes.run(5 * SECOND);
    let spent = reserve(&mut nodes, 0, &meters[0], money(USD / 5));
    spent.settle(0, USD / 5);
    nodes.down = false;
    nodes.run(5 * SECOND);
    let left = USD - USD / 10 - USD / 5;
    admit(&mut nodes, 1, &meters[1], money(left + 1)).unwrap_err();
    admit(&mut nodes, 1, &meters[1], money(left))
        .unwrap()
        .0
        .cancel();
}

#[test]
fn a_store_that_forgot_everything_gives_nothing_twice() {
    let mut nodes = Nodes::new(2);
    let limits = Limits {
        concurrency: Some(4),
        ..slow_requests(20)
    };
    let meters = nodes.meters("key:k", &limits);
    let mut held = Vec::new();
    for i in 0..40 {
        if let Ok((one, _)) = admit(&mut nodes, i % 2, &meters[i % 2], NOTHING) {
            if held.len() < 4 {
                held.push(one);
            } else {
                one.settle(0, 0);
            }
        }
        nodes.run(100 * MS);
    }
    assert_eq!(held.len(), 4);
    nodes.store.flush();
    // Nor to a node that asks for the first time.
    for i in 0..40 {
        admit(&mut nodes, i % 2, &meters[i % 2], NOTHING).unwrap_err();
        nodes.run(100 * MS);
    }
}

#[test]
fn standings_tell_each_limit() {
    let mut nodes = Nodes::new(1);
    let limits = Limits {
        rps: Some(10),
        rpm: Some(60),
        tpm: Some(1_000),
        concurrency: Some(5),
        ..budget(USD, Period::Day)
    };
    let meter = nodes.meter(0, "key:k", &limits);
    let ask = Ask {
        tokens: 100,
        nano: USD / 4,
    };
    let held = reserve(&mut nodes, 0, &meter, ask);
    let standings = meter.standings(nodes.clock());
    let shown: Vec<_> = standings
        .iter()
        .map(|s| (s.dimension, s.period, s.limit, s.burst, s.remaining))
        .collect();
    assert_eq!(
        shown,
        [
            (Dimension::Requests, "second", 10, 10, 9),
            (Dimension::Requests, "minute", 60, 10, 9),
            (Dimension::Tokens, "minute", 1_000, 1_000, 900),
            (Dimension::Concurrency, "", 5, 5, 4),
            (Dimension::Budget, "day", USD, USD, USD * 3 / 4),
        ]
    );
    assert_eq!(standings[3].reset, None);
    let (_, end) = Period::Day.bounds(BEGAN);
    assert_eq!(
        standings[4].reset,
        Some((end.unwrap() - BEGAN) as u64 * SECOND)
    );
    held.cancel();
}
