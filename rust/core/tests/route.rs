//! Routing policies, simulated: what each of them promises.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::time::Duration;

use forebay_core::health::Load;
use forebay_core::route::latency::Latency;
use forebay_core::route::load::expected;
use forebay_core::route::round_robin::RoundRobin;
use forebay_core::route::share::Share;
use forebay_core::route::sticky::Sticky;
use forebay_core::route::table::Table;
use forebay_core::route::{Draws, Fleet, Set, draw, least_load, power_of_two};
use proptest::prelude::*;

/// Targets of a simulation: weight, load, time to first token.
#[derive(Clone, Default)]
struct Sim {
    weights: Vec<f64>,
    loads: Vec<f64>,
    ttft_ms: Vec<Option<u64>>,
    now: u64,
}

impl Sim {
    fn of(weights: &[f64]) -> Self {
        Self {
            weights: weights.to_vec(),
            loads: vec![0.0; weights.len()],
            ttft_ms: vec![None; weights.len()],
            now: 0,
        }
    }
}

impl Fleet for Sim {
    fn count(&self) -> usize {
        self.weights.len()
    }

    fn weight(&self, at: usize) -> f64 {
        self.weights[at]
    }

    fn heaviest(&self) -> f64 {
        self.weights
            .iter()
            .fold(f64::MIN_POSITIVE, |a, b| a.max(*b))
    }

    fn load(&self, at: usize) -> f64 {
        self.loads[at]
    }

    fn ttft(&self, at: usize) -> Option<Duration> {
        self.ttft_ms[at].map(Duration::from_millis)
    }

    fn now(&self) -> u64 {
        self.now
    }
}

fn counted(count: usize, picks: impl Iterator<Item = usize>) -> Vec<u64> {
    let mut counts = vec![0; count];
    for at in picks {
        counts[at] += 1;
    }
    counts
}

#[test]
fn in_turn_each_gets_its_share_to_within_two_requests() {
    let sim = Sim::of(&[4.0, 1.0, 2.0, 1.0]);
    let policy = RoundRobin::default();
    let mut draws = Draws::new(1);
    let mut counts = [0_u32; 4];
    for turn in 1..=8000 {
        counts[policy.pick(&sim, &mut draws).unwrap()] += 1;
        for (count, weight) in counts.iter().zip(&sim.weights) {
            let due = f64::from(turn) * weight / 8.0;
            let off = f64::from(*count) - due;
            assert!(off.abs() < 2.0, "turn {turn}: {counts:?}");
        }
    }
    assert_eq!(counts, [4000, 1000, 2000, 1000]);
}

#[test]
fn who_is_left_out_leaves_its_turns_to_all_others_by_weight() {
    let mut sim = Sim::of(&[2.0, 1.0, 1.0, 2.0]);
    let policy = RoundRobin::default();
    let mut draws = Draws::new(1);
    sim.weights[0] = 0.0;
    let picks = (0..4000).map(|_| policy.pick(&sim, &mut draws).unwrap());
    assert_eq!(counted(4, picks), [0, 1000, 1000, 2000]);
    // Slow start: a tenth of its weight at first.
    sim.weights[0] = 0.2;
    let picks = (0..4200).map(|_| policy.pick(&sim, &mut draws).unwrap());
    let counts = counted(4, picks);
    assert!(counts[0].abs_diff(200) <= 2, "{counts:?}");
}

#[test]
fn nobody_there_is_nobody_picked() {
    let sim = Sim::of(&[0.0, 0.0]);
    let mut draws = Draws::new(1);
    assert_eq!(RoundRobin::default().pick(&sim, &mut draws), None);
    assert_eq!(least_load::pick(&sim, &mut draws), None);
    assert_eq!(power_of_two::pick(&sim, &mut draws), None);
    assert_eq!(Latency::new(2).pick(&sim, &mut draws), None);
    assert_eq!(RoundRobin::default().pick(&Sim::of(&[]), &mut draws), None);
}

/// The first target, the heaviest, is away.
struct Away(Sim);
impl Fleet for Away {
    fn count(&self) -> usize {
        self.0.count()
    }
    fn weight(&self, at: usize) -> f64 {
        if at == 0 { 0.0 } else { self.0.weight(at) }
    }
    fn heaviest(&self) -> f64 {
        self.0.heaviest()
    }
    fn load(&self, at: usize) -> f64 {
        self.0.load(at)
    }
    fn ttft(&self, _: usize) -> Option<Duration> {
        None
    }
    fn now(&self) -> u64 {
        0
    }
}

#[test]
fn few_light_ones_among_many_that_are_gone_are_found() {
    let mut weights = vec![0.0; 200];
    weights[77] = 1.0;
    weights[150] = 3.0;
    let sim = Sim::of(&weights);
    let mut heavy = sim.clone();
    heavy.weights[0] = 1000.0;
    let policy = RoundRobin::default();
    let mut draws = Draws::new(9);
    let picks = (0..4000).map(|_| policy.pick(&Away(heavy.clone()), &mut draws).unwrap());
    let counts = counted(200, picks);
    assert_eq!(counts[77] + counts[150], 4000);
    assert!((2800..3200).contains(&counts[150]), "{}", counts[150]);
    let mut picks = (0..400).map(|_| power_of_two::pick(&sim, &mut draws).unwrap());
    // Both are idle, so the one of more weight is crowded less.
    assert!(picks.all(|at| at == 150));
}

#[test]
fn draws_follow_the_weights() {
    let sim = Sim::of(&[1.0, 0.0, 3.0, 6.0]);
    let mut draws = Draws::new(4);
    let picks = (0..100_000).map(|_| draw::draw(&sim, &mut draws).unwrap());
    let counts = counted(4, picks);
    for (count, weight) in counts.iter().zip(&sim.weights) {
        let due = (weight * 10_000.0) as u64;
        assert!(count.abs_diff(due) < 500, "{counts:?}");
    }
}

/// Requests come at random and stay for a random time; gives each target's mean load, and the most.
fn queueing(
    sim: &mut Sim,
    speeds: &[f64],
    mut pick: impl FnMut(&Sim, &mut Draws) -> usize,
) -> (Vec<f64>, f64) {
    let mut draws = Draws::new(42);
    let mut running: Vec<(u64, usize)> = Vec::new();
    let (mut sums, mut most) = (vec![0.0; sim.count()], 0.0_f64);
    let steps = 20_000;
    for step in 0..steps {
        running.retain(|(end, at)| {
            let over = *end <= step;
            if over {
                sim.loads[*at] -= 1.0;
            }
            !over
        });
        for _ in 0..draws.below(5) {
            let at = pick(sim, &mut draws);
            let time = 1.0 + draws.unit() * 40.0 / speeds[at];
            running.push((step + time as u64, at));
            sim.loads[at] += 1.0;
        }
        for (sum, load) in sums.iter_mut().zip(&sim.loads) {
            *sum += load / f64::from(steps as u32);
            most = most.max(*load);
        }
    }
    (sums, most)
}

#[test]
fn the_least_load_levels_what_is_in_flight() {
    let mut sim = Sim::of(&[1.0; 8]);
    let speeds = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0];
    let (means, _) = queueing(&mut sim, &speeds, |sim, draws| {
        least_load::pick(sim, draws).unwrap()
    });
    let mean = means.iter().sum::<f64>() / 8.0;
    assert!(
        means.iter().all(|load| (load / mean - 1.0).abs() < 0.15),
        "{means:?}"
    );
    // Twice the weight: twice as much in flight.
    let mut sim = Sim::of(&[2.0, 1.0, 1.0]);
    let (means, _) = queueing(&mut sim, &[1.0; 3], |sim, draws| {
        least_load::pick(sim, draws).unwrap()
    });
    assert!((means[0] / means[1] - 2.0).abs() < 0.2, "{means:?}");
}

#[test]
fn of_equals_each_is_as_likely() {
    let sim = Sim::of(&[1.0; 5]);
    let mut draws = Draws::new(3);
    let picks = (0..50_000).map(|_| least_load::pick(&sim, &mut draws).unwrap());
    let counts = counted(5, picks);
    assert!(
        counts.iter().all(|count| count.abs_diff(10_000) < 500),
        "{counts:?}"
    );
}

#[test]
fn two_choices_are_far_better_than_one() {
    let run = |two: bool| {
        let mut sim = Sim::of(&[1.0; 20]);
        queueing(&mut sim, &[1.0; 20], |sim, draws| {
            if two {
                power_of_two::pick(sim, draws).unwrap()
            } else {
                draw::draw(sim, draws).unwrap()
            }
        })
        .1
    };
    let (one, two) = (run(false), run(true));
    assert!(two <= 0.7 * one, "most in flight: {two} against {one}");
}

fn said(running: u32, waiting: u32, age: Duration) -> Load {
    Load {
        running,
        waiting,
        tokens: 0,
        age,
    }
}

#[test]
fn a_report_adds_what_others_send_and_fades() {
    let close = |one: f64, other: f64| assert!((one - other).abs() < 1e-9, "{one} {other}");
    close(expected(7, None), 7.0);
    // Our own requests are not counted twice.
    close(expected(7, Some(said(5, 0, Duration::ZERO))), 7.0);
    close(expected(7, Some(said(10, 0, Duration::ZERO))), 10.0);
    // What waits inside the engine counts twice.
    close(expected(7, Some(said(6, 4, Duration::ZERO))), 14.0);
    close(expected(7, Some(said(6, 4, Duration::from_secs(2)))), 10.5);
    let old = expected(7, Some(said(600, 400, Duration::from_secs(60))));
    assert!((7.0..7.01).contains(&old), "{old}");
    // A fresh report moves requests away, an old one does not.
    let load = |age| {
        let mut sim = Sim::of(&[1.0, 1.0]);
        sim.loads = vec![expected(2, Some(said(30, 10, age))), expected(4, None)];
        least_load::pick(&sim, &mut Draws::new(1)).unwrap()
    };
    assert_eq!(load(Duration::from_secs(1)), 1);
    assert_eq!(load(Duration::from_secs(30)), 0);
}

proptest! {
    #[test]
    fn a_report_never_takes_away(own in 0_u64..5000, running in 0_u32..5000, waiting in 0_u32..5000,
                                 age in 0_u64..1_000_000) {
        let load = expected(own, Some(said(running, waiting, Duration::from_millis(age))));
        prop_assert!(load >= own as f64);
        prop_assert!(load <= own as f64 + f64::from(running) + 2.0 * f64::from(waiting));
    }
}

#[test]
fn latency_finds_the_fast_ones_without_running_them_down() {
    let mut sim = Sim::of(&[1.0; 4]);
    let policy = Latency::new(4);
    let mut draws = Draws::new(5);
    // Everyone is tried at once, one request each.
    let mut first = Vec::new();
    for _ in 0..4 {
        let at = policy.pick(&sim, &mut draws).unwrap();
        sim.loads[at] += 1.0;
        first.push(at);
    }
    first.sort_unstable();
    assert_eq!(first, [0, 1, 2, 3]);
    sim.ttft_ms = vec![Some(100), Some(200), Some(400), None];
    sim.loads = vec![0.0, 0.0, 0.0, 1.0];
    // Nobody piles on one that has not answered yet.
    let counts = counted(
        4,
        (0..700).map(|_| {
            let at = policy.pick(&sim, &mut draws).unwrap();
            sim.loads[at] += 1.0;
            at
        }),
    );
    assert_eq!(counts[3], 0);
    assert!(counts[0].abs_diff(400) < 8, "{counts:?}");
    assert!(counts[1].abs_diff(200) < 8, "{counts:?}");
    assert!(counts[2].abs_diff(100) < 8, "{counts:?}");
}

#[test]
fn who_was_slow_once_is_tried_again() {
    let mut sim = Sim::of(&[1.0; 2]);
    let policy = Latency::new(2);
    let mut draws = Draws::new(5);
    sim.ttft_ms = vec![Some(100), Some(10_000)];
    let mut tried = None;
    for second in 0..300 {
        sim.now = second * 1_000_000_000;
        // The fast one is measured again and again.
        sim.ttft_ms[0] = Some(100 + second % 2);
        if policy.pick(&sim, &mut draws) == Some(1) {
            tried = Some(second);
            break;
        }
    }
    // A hundred times slower: after 6.7 half-lives.
    assert!(tried.is_some_and(|at| (60..75).contains(&at)), "{tried:?}");
}

#[test]
fn a_canary_gets_exactly_its_share() {
    for (percent, each) in [(1.0, 100), (5.0, 20), (12.5, 8), (50.0, 2), (100.0, 1)] {
        let share = Share::percent(percent);
        for request in 1..=10_000_u64 {
            let given = share.count() && share.take();
            assert_eq!(given, request.is_multiple_of(each), "{percent}: {request}");
        }
    }
    let never = Share::percent(0.0);
    assert!((0..1000).all(|_| !never.count()));
}

proptest! {
    #[test]
    fn no_share_overshoots(percent in 0.0_f64..100.0, requests in 1_u64..3000) {
        let share = Share::percent(percent);
        let given = (0..requests).filter(|_| share.count() && share.take()).count();
        let exact = (percent * 1e4).round() / 1e6 * requests as f64;
        prop_assert!(given as f64 <= exact + 1e-6);
        prop_assert!(given as f64 > exact - 1.0 - 1e-6);
    }
}

#[test]
fn a_canary_that_was_away_is_not_flooded_and_one_in_advance_is_made_up_for() {
    let share = Share::percent(10.0);
    // Away for long: nothing is given.
    (0..1000).for_each(|_| {
        share.count();
    });
    let burst = (0..20).filter(|_| share.count() && share.take()).count();
    assert!(burst <= 4, "{burst}");
    let share = Share::percent(10.0);
    share.given();
    let given = (0..100).filter(|_| share.count() && share.take()).count();
    assert_eq!(given, 9);
}

#[test]
fn many_threads_count_one_share() {
    let share = Share::percent(2.5);
    let given: usize = std::thread::scope(|scope| {
        let run = || {
            (0..50_000)
                .filter(|_| share.count() && share.take())
                .count()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert!((4990..=5000).contains(&given), "{given}");
}

#[test]
fn sessions_stay_until_their_time_is_over() {
    let second = 1_000_000_000;
    let sticky = Sticky::new(Duration::from_secs(60));
    assert_eq!(sticky.get(7, 0), None);
    sticky.set(7, 3, 0);
    assert_eq!(sticky.get(7, 59 * second), Some(3));
    assert_eq!(sticky.get(7, 60 * second), None);
    // Each request renews it.
    sticky.set(7, 3, 59 * second);
    assert_eq!(sticky.get(7, 100 * second), Some(3));
    sticky.set(7, 1, 100 * second);
    assert_eq!(sticky.get(7, 101 * second), Some(1));
}

#[test]
fn sessions_are_bounded_and_the_oldest_go_first() {
    let sticky = Sticky::of(1024, Duration::from_secs(600));
    for session in 0..100_000_u64 {
        sticky.set(session, (session % 5) as usize, session);
        // One that is used all the time is never forgotten.
        sticky.set(u64::MAX, 4, session);
        assert_eq!(sticky.get(session, session), Some((session % 5) as usize));
    }
    assert_eq!(sticky.get(u64::MAX, 100_000), Some(4));
    let known = (0..100_000).filter(|s| sticky.get(*s, 100_000).is_some());
    let known: Vec<u64> = known.collect();
    assert!(known.len() < 1024);
    assert!(known.iter().all(|session| *session > 90_000), "{known:?}");
}

proptest! {
    #[test]
    fn a_table_keeps_what_fits(keys in prop::collection::vec(any::<u64>(), 1..64)) {
        let mut table = Table::<u64>::new(4096);
        for key in &keys {
            let (value, _) = table.entry(*key).unwrap();
            *value = key.wrapping_mul(3);
        }
        for key in &keys {
            prop_assert_eq!(table.get(*key), Some(key.wrapping_mul(3)));
        }
    }

    #[test]
    fn a_set_is_a_set(members in prop::collection::hash_set(0_usize..1000, 0..50)) {
        let mut set = Set::default();
        for at in &members {
            set.add(*at);
        }
        for at in 0..1100 {
            prop_assert_eq!(set.has(at), members.contains(&at));
        }
        set.clear();
        prop_assert!((0..1100).all(|at| !set.has(at)));
    }
}

#[test]
fn of_many_the_least_of_some_is_hardly_more() {
    let mut sim = Sim::of(&[1.0; 200]);
    let mut draws = Draws::new(7);
    for _ in 0..20_000 {
        let at = least_load::pick(&sim, &mut draws).unwrap();
        sim.loads[at] += 1.0;
    }
    let most = sim.loads.iter().copied().fold(0.0, f64::max);
    let least = sim.loads.iter().copied().fold(f64::MAX, f64::min);
    assert!(most <= 102.0 && least >= 98.0, "{least} to {most}");
}
