//! The wait queue: nothing lost, in order, fair, bounded, and forgetful.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use forebay_core::queue::{Ask, BATCH_SHARE, Priority, Reason, Started, Ticket, WaitQueue};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const NEVER: u64 = u64::MAX;

fn ask(account: &str, priority: Priority, tokens: u64) -> Ask {
    Ask {
        account: Arc::from(account),
        weight: 1.0,
        priority,
        tokens,
    }
}

fn interactive(account: &str) -> Ask {
    ask(account, Priority::Interactive, 100)
}

fn batch(account: &str) -> Ask {
    ask(account, Priority::Batch, 100)
}

fn put<T>(queue: &mut WaitQueue<T>, ask: &Ask, value: T) -> Option<T> {
    queue.push(ask, NEVER, 0, value).unwrap().displaced
}

fn drain(queue: &mut WaitQueue<&'static str>) -> Vec<&'static str> {
    std::iter::from_fn(|| queue.pop(0).map(|(_, value)| value)).collect()
}

#[derive(Clone, Debug)]
enum Op {
    Push(u8, bool, u64),
    Pop,
    Remove(usize),
    Start(u8, bool, u64),
    End(usize, Option<u64>),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        5 => (0u8..5, any::<bool>(), 0u64..1000).prop_map(|(a, b, t)| Op::Push(a, b, t)),
        3 => Just(Op::Pop),
        1 => any::<usize>().prop_map(Op::Remove),
        1 => (0u8..5, any::<bool>(), 0u64..1000).prop_map(|(a, b, t)| Op::Start(a, b, t)),
        3 => (any::<usize>(), prop::option::of(0u64..3000)).prop_map(|(i, u)| Op::End(i, u)),
    ];
    prop::collection::vec(op, 0..400)
}

fn made(account: u8, is_batch: bool, tokens: u64) -> Ask {
    let priority = if is_batch {
        Priority::Batch
    } else {
        Priority::Interactive
    };
    ask(&format!("account{account}"), priority, tokens)
}

proptest! {
    /// Against plain lists: every request leaves exactly once and in its order, the bound holds,
    /// and who gives way is whom the rules name.
    #[test]
    fn nothing_is_lost_or_doubled(max in 0usize..12, ops in ops()) {
        let mut queue = WaitQueue::new(max);
        let mut lines: HashMap<(Arc<str>, Priority), VecDeque<u64>> = HashMap::new();
        let mut tickets: Vec<(u64, Ticket, Ask)> = Vec::new();
        let mut running: Vec<Started> = Vec::new();
        let mut passed_over = 0;
        let mut next = 0u64;
        for op in ops {
            let waiting = |lines: &HashMap<_, VecDeque<u64>>, priority| -> usize {
                lines.iter().filter(|((_, p), _)| *p == priority).map(|(_, l)| l.len()).sum()
            };
            let before = queue.len();
            match op {
                Op::Push(account, is_batch, tokens) => {
                    let ask = made(account, is_batch, tokens);
                    next += 1;
                    let batches = waiting(&lines, Priority::Batch);
                    let longest = |p| lines.iter().filter(|((_, q), _)| *q == p)
                        .map(|(_, line)| line.len()).max().unwrap_or(0);
                    let own = lines.get(&(Arc::clone(&ask.account), ask.priority))
                        .map_or(0, VecDeque::len);
                    match queue.push(&ask, NEVER, 0, next) {
                        Ok(placed) => {
                            if let Some(gone) = placed.displaced {
                                prop_assert_eq!(before, max);
                                let (key, line) = lines.iter_mut()
                                    .find(|(_, line)| line.contains(&gone)).unwrap();
                                prop_assert_eq!(line.pop_back(), Some(gone), "the newest");
                                if !is_batch && batches > 0 {
                                    prop_assert_eq!(key.1, Priority::Batch);
                                } else {
                                    prop_assert_eq!(key.1, ask.priority);
                                    prop_assert!(line.len() + 1 > own + 1);
                                }
                                tickets.retain(|(number, ..)| *number != gone);
                            } else {
                                prop_assert!(before < max);
                            }
                            lines.entry((Arc::clone(&ask.account), ask.priority)).or_default()
                                .push_back(next);
                            tickets.push((next, placed.ticket, ask));
                        }
                        Err(refusal) => {
                            prop_assert_eq!(refusal.reason, Reason::Full);
                            prop_assert_eq!(before, max);
                            prop_assert!(max == 0 || is_batch || batches == 0);
                            prop_assert!(max == 0 || longest(ask.priority) <= own + 1);
                        }
                    }
                }
                Op::Pop => {
                    let both = waiting(&lines, Priority::Interactive) > 0
                        && waiting(&lines, Priority::Batch) > 0;
                    if let Some((started, number)) = queue.pop(0) {
                        let key = (Arc::clone(&started.account), started.priority);
                        let first = lines.get_mut(&key).unwrap().pop_front();
                        prop_assert_eq!(first, Some(number), "in order");
                        let at = tickets.iter().position(|(n, ..)| *n == number).unwrap();
                        let (_, _, asked) = tickets.remove(at);
                        prop_assert_eq!(asked.tokens, started.expected);
                        passed_over = if both && started.priority == Priority::Interactive {
                            passed_over + 1
                        } else {
                            0
                        };
                        prop_assert!(passed_over < BATCH_SHARE);
                        running.push(started);
                    } else {
                        prop_assert_eq!(before, 0);
                        passed_over = 0;
                    }
                }
                Op::Remove(index) if !tickets.is_empty() => {
                    let (number, ticket, ask) = tickets.remove(index % tickets.len());
                    prop_assert_eq!(queue.remove(&ticket), Some(number));
                    prop_assert_eq!(queue.remove(&ticket), None);
                    lines.get_mut(&(ask.account, ask.priority)).unwrap()
                        .retain(|n| *n != number);
                }
                Op::Start(account, is_batch, tokens) if before == 0 => {
                    let ask = made(account, is_batch, tokens);
                    running.push(queue.started(&ask, 0));
                }
                Op::End(index, used) if !running.is_empty() => {
                    let ask = running.swap_remove(index % running.len());
                    queue.ended(&ask, used, Duration::ZERO, 0);
                }
                _ => {}
            }
            prop_assert!(queue.len() <= max);
            prop_assert_eq!(queue.len(), tickets.len());
            prop_assert!(queue.accounts() <= 10);
        }
    }

    /// While two accounts both wait, what they were served, by their weights, is never further
    /// apart than one request of the largest size.
    #[test]
    fn two_that_wait_are_served_alike(
        costs in prop::collection::vec((1u64..2000, 1u64..2000), 1..200),
        weight in prop::sample::select(vec![0.5f32, 1.0, 2.0, 3.0]),
        slots in 1usize..5,
    ) {
        let mut queue = WaitQueue::new(1000);
        for (a, b) in &costs {
            let light = ask("light", Priority::Interactive, *a);
            let heavy = Ask { weight, ..ask("heavy", Priority::Interactive, *b) };
            put(&mut queue, &light, ());
            put(&mut queue, &heavy, ());
        }
        let mut served = BTreeMap::from([("light", 0.0), ("heavy", 0.0)]);
        let mut left = BTreeMap::from([("light", costs.len()), ("heavy", costs.len())]);
        let mut running = VecDeque::new();
        let largest = 2000.0 / f64::from(weight.min(1.0));
        while let Some((ask, ())) = queue.pop(0) {
            let by = if &*ask.account == "heavy" { f64::from(weight) } else { 1.0 };
            *served.get_mut(&*ask.account).unwrap() += ask.expected as f64 / by;
            *left.get_mut(&*ask.account).unwrap() -= 1;
            running.push_back(ask);
            if running.len() > slots {
                queue.ended(&running.pop_front().unwrap(), None, Duration::ZERO, 0);
            }
            if left.values().any(|left| *left == 0) {
                break;
            }
            let apart = (served["light"] - served["heavy"]).abs();
            prop_assert!(apart <= largest + 1.0, "{apart}");
        }
    }
}

#[test]
fn nothing_is_owed_for_time_spent_idle() {
    let mut queue = WaitQueue::new(1000);
    for _ in 0..500 {
        let early = queue.started(&interactive("early"), 0);
        queue.ended(&early, None, Duration::ZERO, 0);
    }
    for _ in 0..4 {
        put(&mut queue, &interactive("early"), "early");
    }
    for _ in 0..4 {
        put(&mut queue, &interactive("late"), "late");
    }
    let order = drain(&mut queue);
    assert_eq!(order[0], "late", "who was served longest ago is next");
    for pair in order.chunks(2) {
        assert_ne!(pair[0], pair[1], "{order:?}");
    }
}

#[test]
fn a_correction_takes_nobody_ahead_of_those_who_wait() {
    let mut queue = WaitQueue::new(1000);
    // It asks for much and uses little, many times at once.
    let greedy = ask("greedy", Priority::Interactive, 10_000);
    let running: Vec<_> = (0..50).map(|_| queue.started(&greedy, 0)).collect();
    for _ in 0..50 {
        put(&mut queue, &greedy, "greedy");
    }
    put(&mut queue, &interactive("modest"), "modest");
    for started in running {
        queue.ended(&started, Some(1), Duration::ZERO, 0);
    }
    assert_eq!(queue.pop(0).unwrap().1, "modest");
}

#[test]
fn corrections_count_afterwards() {
    let mut queue = WaitQueue::new(1000);
    let (dear, cheap) = (interactive("dear"), interactive("cheap"));
    for _ in 0..30 {
        put(&mut queue, &dear, "dear");
        put(&mut queue, &cheap, "cheap");
    }
    let mut served = [0, 0];
    for _ in 0..30 {
        let (ask, name) = queue.pop(0).unwrap();
        // Both expected 100; one costs 900.
        let used = if name == "dear" { 900 } else { 100 };
        served[usize::from(name == "dear")] += 1;
        queue.ended(&ask, Some(used), Duration::ZERO, 0);
    }
    assert_eq!(served, [27, 3]);
}

#[test]
fn batch_yields_but_does_not_starve() {
    let mut queue = WaitQueue::new(1000);
    for _ in 0..20 {
        put(&mut queue, &batch("b"), "batch");
    }
    for _ in 0..50 {
        put(&mut queue, &interactive("a"), "interactive");
    }
    let order = drain(&mut queue);
    let at: Vec<_> = (0..order.len()).filter(|i| order[*i] == "batch").collect();
    assert_eq!(&at[..5], [9, 19, 29, 39, 49], "one in ten");
    assert!(
        at[5..].iter().all(|at| *at >= 55),
        "and the rest afterwards"
    );
}

#[test]
fn what_gives_way() {
    let mut queue = WaitQueue::new(4);
    for name in ["b1", "b2", "b3"] {
        assert_eq!(put(&mut queue, &batch("many"), name), None);
    }
    assert_eq!(put(&mut queue, &batch("few"), "f1"), None);
    let full =
        |queue: &mut WaitQueue<_>, ask: &Ask| queue.push(ask, NEVER, 0, "x").unwrap_err().reason;
    assert_eq!(full(&mut queue, &batch("many")), Reason::Full);
    // Within a class the newest of the account with most waiting, if it has more.
    assert_eq!(put(&mut queue, &batch("few"), "f2"), Some("b3"));
    assert_eq!(full(&mut queue, &batch("few")), Reason::Full);
    assert_eq!(put(&mut queue, &batch("third"), "t1"), Some("b2"));
    // Batch for interactive, whoever has how many.
    for name in ["i1", "i2", "i3", "i4"] {
        assert!(
            put(&mut queue, &interactive("flood"), name).is_some_and(|name| !name.starts_with('i'))
        );
    }
    assert_eq!(full(&mut queue, &batch("few")), Reason::Full);
    assert_eq!(full(&mut queue, &interactive("flood")), Reason::Full);
    assert_eq!(put(&mut queue, &interactive("other"), "o1"), Some("i4"));
    assert_eq!(drain(&mut queue), ["i1", "o1", "i2", "i3"]);
}

#[test]
fn what_cannot_start_in_time_is_refused_at_once() {
    let mut queue = WaitQueue::new(1000);
    let now = 100 * SECOND;
    // Four places, each held for two seconds: one comes free each half second.
    let other = interactive("other");
    let running: Vec<_> = (0..12).map(|_| queue.started(&other, now)).collect();
    assert_eq!(
        queue.expected_wait(&other, now),
        None,
        "nothing is known yet"
    );
    for started in &running[..8] {
        queue.ended(started, None, Duration::from_secs(2), now);
    }
    let late = |queue: &mut WaitQueue<u32>, ask: &Ask, within: u64, now: u64| {
        queue
            .push(ask, now + within * SECOND, now, 0)
            .map(|_| ())
            .map_err(|refusal| (refusal.reason, refusal.retry_after.unwrap().as_millis()))
    };
    for _ in 0..20 {
        assert_eq!(late(&mut queue, &other, 60, now), Ok(()));
    }
    let refused = (Reason::Late, 10_000);
    assert_eq!(late(&mut queue, &other, 9, now), Err(refused));
    assert_eq!(late(&mut queue, &other, 11, now), Ok(()));
    // Another account waits for its own turn only, not behind all of the first.
    assert_eq!(late(&mut queue, &interactive("mine"), 1, now), Ok(()));
    let heavy = Ask {
        weight: 4.0,
        ..interactive("mine")
    };
    assert_eq!(late(&mut queue, &heavy, 1, now), Ok(()));
    // Batch waits for the interactive ones too, up to their share.
    let (reason, wait) = late(&mut queue, &batch("mine"), 1, now).unwrap_err();
    assert_eq!((reason, wait), (Reason::Late, 4500));
    // Nothing has moved for a minute: it is no longer half a second.
    let later = now + 60 * SECOND;
    let wait = queue.expected_wait(&interactive("third"), later).unwrap();
    assert!(wait > Duration::from_secs(15), "{wait:?}");
}

#[test]
fn idle_accounts_are_forgotten() {
    let mut queue: WaitQueue<()> = WaitQueue::new(10);
    for round in 0..50_000u64 {
        let ask = ask(
            &format!("account{round}"),
            Priority::Interactive,
            round % 977,
        );
        let ask = queue.started(&ask, 0);
        queue.ended(&ask, Some(round % 1013), Duration::ZERO, 0);
        assert!(queue.accounts() <= 10_000);
    }
    // As service goes on, whoever was served before has no more than the others.
    let ask = ask("now", Priority::Interactive, 1000);
    for _ in 0..1000 {
        let ask = queue.started(&ask, 0);
        queue.ended(&ask, None, Duration::ZERO, 0);
    }
    assert!(queue.accounts() <= 1, "{}", queue.accounts());
}

#[test]
fn weights_that_are_none_do_no_harm() {
    let mut queue = WaitQueue::new(100);
    for weight in [f32::NAN, f32::INFINITY, -1.0, 0.0, f32::MAX] {
        let odd = Ask {
            weight,
            tokens: u64::MAX,
            ..interactive("odd")
        };
        put(&mut queue, &odd, "odd");
        put(&mut queue, &interactive("even"), "even");
        assert!(queue.expected_wait(&odd, 0).is_none());
    }
    assert_eq!(drain(&mut queue).len(), 10);
}

/// An upstream with some places behind the queue; accounts that offer requests at random times.
struct Flood {
    queue: WaitQueue<u64>,
    slots: usize,
    seed: u64,
    /// What a request is taken to cost, by what it costs.
    overestimate: u64,
}

impl Flood {
    fn random(&mut self) -> f64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The waits of account 0's requests, in order of length, seconds. A request takes 0.5 to 1.5 s.
    fn waits(mut self, rates: &[f64], seconds: f64) -> Vec<f64> {
        let names = ["quiet", "flood"];
        let mut events: BinaryHeap<Reverse<(u64, u64, usize, u64)>> = BinaryHeap::new();
        let mut running = HashMap::new();
        let mut number = 0;
        for account in 0..rates.len() {
            events.push(Reverse((0, number, account, 0)));
            number += 1;
        }
        let (mut free, mut waits) = (self.slots, Vec::new());
        while let Some(Reverse((now, id, what, tokens))) = events.pop() {
            if now > (seconds * SECOND as f64) as u64 {
                break;
            }
            if what < rates.len() {
                let gap = -self.random().max(1e-12).ln() / rates[what];
                events.push(Reverse((
                    now + (gap * SECOND as f64) as u64,
                    number,
                    what,
                    0,
                )));
                let ask = ask(names[what], Priority::Interactive, 1000 * self.overestimate);
                // A client that is refused goes away.
                let _ = self.queue.push(&ask, now + 30 * SECOND, now, now);
            } else {
                free += 1;
                let held = Duration::from_nanos(tokens * 1_000_000);
                let started = running.remove(&id).unwrap();
                self.queue.ended(&started, Some(tokens), held, now);
            }
            while free > 0
                && let Some((ask, since)) = self.queue.pop(now)
            {
                free -= 1;
                let account = usize::from(&*ask.account == "flood");
                if account == 0 {
                    waits.push((now - since) as f64 / SECOND as f64);
                }
                // A token a millisecond.
                let tokens = 500 + (self.random() * 1000.0) as u64;
                number += 1;
                let ends = now + tokens * 1_000_000;
                events.push(Reverse((ends, number, rates.len(), tokens)));
                running.insert(number, ask);
            }
            number += 1;
        }
        waits.sort_by(f64::total_cmp);
        waits
    }
}

/// Two accounts, one of which offers fifty times as much as the other, and two and a half times what
/// there is room for.
#[test]
fn a_flood_delays_others_by_no_more_than_one_request() {
    for slots in [1, 2, 4, 16] {
        for overestimate in [1, 10] {
            let p99 = |rates: &[f64]| {
                let flood = Flood {
                    queue: WaitQueue::new(200),
                    slots,
                    seed: 11,
                    overestimate,
                };
                let waits = flood.waits(rates, 20_000.0);
                assert!(waits.len() > 500);
                waits[waits.len() * 99 / 100]
            };
            let quiet = slots as f64 / 20.0;
            let (alone, flooded) = (p99(&[quiet]), p99(&[quiet, 50.0 * quiet]));
            // A request takes 1.5 s at most.
            let seen = format!("{slots} places, estimates ×{overestimate}: {alone}, {flooded}");
            assert!(flooded - alone <= 1.5, "{seen}");
        }
    }
}
