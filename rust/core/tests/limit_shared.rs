//! Limits of several subjects and of several workers: all or nothing, never too much, nothing lost.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that goes wrong may stop"
)]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_core::limit::{
    Ask, Budget, Declined, Dimension, Limits, Meter, MeterState, Meters, Now, Period, Permits,
    Refusal, Region, Reservation, Scope,
};
use proptest::prelude::*;

const USD: u64 = 1_000_000_000;
const DAY_S: i64 = 86_400;

/// The same table as each of its workers sees it.
fn workers(count: usize) -> Vec<Arc<Region>> {
    let (fd, _region) = Region::shared(count, 1024).unwrap();
    (0..count)
        .map(|worker| {
            let fd = fd.as_fd().try_clone_to_owned().unwrap();
            Arc::new(Region::attach(fd, worker).unwrap())
        })
        .collect()
}

fn key(region: &Arc<Region>, limits: &Limits) -> Arc<Meter> {
    Arc::new(Meter::of(region, "key:k", limits))
}

fn only(meter: &Arc<Meter>) -> Meters {
    [None, Some(Arc::clone(meter)), None, None]
}

/// As [`Reservation::admit`], where no store is asked.
fn admit(meters: Meters, now: Now, ask: Ask) -> Result<(Reservation, MeterState), Box<Refusal>> {
    Reservation::admit(meters, now, ask).map_err(|declined| match declined {
        Declined::Refused(refusal) => refusal,
        Declined::Wanting(wanting) => wanting.into_refusal(),
    })
}

fn reserve(meter: &Arc<Meter>, ask: Ask) -> Result<Reservation, Box<Refusal>> {
    admit(only(meter), Now::default(), ask).map(|(reservation, _)| reservation)
}

/// Runs `f` in a thread for each worker's meter, and sums what comes of it.
fn in_all(meters: &[Arc<Meter>], f: impl Fn(&Arc<Meter>) -> u64 + Sync) -> u64 {
    std::thread::scope(|scope| {
        let threads: Vec<_> = meters
            .iter()
            .map(|meter| scope.spawn(|| f(meter)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    })
}

#[test]
fn workers_share_a_rate_exactly() {
    let limits = Limits {
        rpm: Some(600),
        rpm_burst: Some(5_000),
        tpm: Some(1_000_000),
        ..Limits::default()
    };
    let meters: Vec<_> = workers(4).iter().map(|r| key(r, &limits)).collect();
    let ask = Ask {
        tokens: 10,
        nano: 0,
    };
    let admitted = in_all(&meters, |meter| {
        (0..5_000)
            .filter(|_| reserve(meter, ask).map(|r| r.settle(10, 0)).is_ok())
            .count() as u64
    });
    assert_eq!(admitted, 5_000);
    for meter in &meters {
        let state = meter.state(0);
        assert_eq!(state.requests.unwrap().remaining, 0);
        assert_eq!(state.tokens.unwrap().remaining, 950_000);
    }
}

#[test]
fn workers_never_hold_more_permits_than_there_are() {
    let limits = Limits {
        concurrency: Some(3),
        ..Limits::default()
    };
    let meters: Vec<_> = workers(4).iter().map(|r| key(r, &limits)).collect();
    let (held, most) = (AtomicU64::new(0), AtomicU64::new(0));
    let admitted = in_all(&meters, |meter| {
        let mut admitted = 0;
        for _ in 0..20_000 {
            if let Ok(reservation) = reserve(meter, Ask::default()) {
                admitted += 1;
                most.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::hint::spin_loop();
                held.fetch_sub(1, Ordering::SeqCst);
                drop(reservation);
            }
        }
        admitted
    });
    assert!(most.load(Ordering::SeqCst) <= 3);
    assert!(admitted > 20_000, "{admitted}");
    assert_eq!(meters[0].state(0).in_flight, 0);
    // And whoever comes alone finds all of them.
    let all: Vec<_> = (0..3)
        .map(|at| reserve(&meters[at], Ask::default()).unwrap())
        .collect();
    assert_eq!(
        reserve(&meters[3], Ask::default()).unwrap_err().dimension,
        Dimension::Concurrency
    );
    drop(all);
}

#[test]
fn what_a_dead_worker_held_comes_back() {
    let limits = Limits {
        concurrency: Some(2),
        tpm: Some(1_000),
        budget: Some(Budget {
            nano: 10 * USD,
            period: Period::Total,
        }),
        ..Limits::default()
    };
    let regions = workers(2);
    let meters: Vec<_> = regions.iter().map(|r| key(r, &limits)).collect();
    let upstreams: Vec<_> = regions
        .iter()
        .map(|region| Permits::of(region, "upstream:a", Some(1)))
        .collect();
    let ask = Ask {
        tokens: 100,
        nano: 6 * USD,
    };
    let mut killed = reserve(&meters[1], ask).unwrap();
    killed.spend_progress(USD);
    std::mem::forget(killed);
    assert!(upstreams[1].try_acquire());
    assert!(!upstreams[0].try_acquire());
    let refusal = reserve(&meters[0], ask).unwrap_err();
    assert_eq!(refusal.dimension, Dimension::Budget);
    assert!(
        refusal.retry_after.is_some(),
        "what is reserved may come back"
    );

    regions[0].reclaim(1);
    assert!(upstreams[0].try_acquire());
    assert_eq!(meters[0].state(0).in_flight, 0);
    // What it had spent stays spent, what it had reserved does not, and its tokens are not given
    // out twice.
    let left = meters[0].standings(Now::default());
    let budget = left.iter().find(|s| s.dimension == Dimension::Budget);
    assert_eq!(budget.unwrap().remaining, 9 * USD);
    assert_eq!(meters[0].state(0).tokens.unwrap().remaining, 900);
    reserve(&meters[0], ask).unwrap().settle(100, 6 * USD);
}

#[test]
fn a_worker_that_starts_again_finds_its_limits() {
    let regions = workers(2);
    let limits = Limits {
        rpm: Some(60),
        rpm_burst: Some(5),
        ..Limits::default()
    };
    let meter = key(&regions[0], &limits);
    for _ in 0..5 {
        drop(reserve(&meter, Ask::default()).unwrap());
    }
    let again = key(&regions[1], &limits);
    assert_eq!(
        reserve(&again, Ask::default()).unwrap_err().dimension,
        Dimension::Requests
    );
    // Each worker takes new limits in by itself; what is taken carries over once.
    let wider = Limits {
        rpm_burst: Some(8),
        ..limits
    };
    let first = meter.reconfigured(&wider, 0);
    drop(reserve(&first, Ask::default()).unwrap());
    let second = again.reconfigured(&wider, 0);
    assert_eq!(second.state(0).requests.unwrap().remaining, 2);
}

#[test]
fn a_descriptor_of_something_else_is_refused() {
    let file = tempfile();
    assert!(Region::attach(file, 0).is_err());
    let (fd, _region) = Region::shared(2, 16).unwrap();
    let error = Region::attach(fd, 2).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(Region::shared(0, 16).is_err());
    assert!(Region::shared(2, 0).is_err());
    assert!(Region::shared(257, 16).is_err());
}

fn tempfile() -> std::os::fd::OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

#[test]
fn a_full_table_keeps_limiting() {
    let region = Arc::new(Region::private(4).unwrap());
    let limits = Limits {
        concurrency: Some(1),
        ..Limits::default()
    };
    let meters: Vec<_> = (0..40)
        .map(|i| Arc::new(Meter::of(&region, &format!("key:{i}"), &limits)))
        .collect();
    let held: Vec<_> = meters
        .iter()
        .map(|meter| reserve(meter, Ask::default()).unwrap())
        .collect();
    assert!(meters.iter().all(|m| reserve(m, Ask::default()).is_err()));
    drop(held);
    assert_eq!((region.used(), region.overflowed()), (4, 36));
}

#[test]
fn a_hundred_race_for_the_last_dollar() {
    let limits = Limits {
        budget: Some(Budget {
            nano: USD,
            period: Period::Total,
        }),
        ..Limits::default()
    };
    let meters: Vec<_> = workers(4).iter().map(|r| key(r, &limits)).collect();
    // Each may cost up to a tenth and costs a little less; whoever is in may go over by that much.
    let ask = Ask {
        tokens: 0,
        nano: USD / 10,
    };
    let cost = USD / 11;
    let served = in_all(&meters, |meter| {
        let mut served = 0;
        for _ in 0..1_000 {
            if let Ok(reservation) = reserve(meter, ask) {
                reservation.settle(0, cost);
                served += 1;
            }
        }
        served
    });
    // Served until one more might have gone over.
    assert_eq!(served, 10);
    let refusal = reserve(&meters[0], ask).unwrap_err();
    assert_eq!(
        (refusal.dimension, refusal.retry_after),
        (Dimension::Budget, None)
    );
}

#[test]
fn a_budget_begins_again_with_its_period() {
    let limits = Limits {
        budget: Some(Budget {
            nano: 100,
            period: Period::Day,
        }),
        ..Limits::default()
    };
    let meter = Arc::new(Meter::new(&limits));
    let at = |unix_s| Now { mono: 0, unix_s };
    let ask = Ask {
        tokens: 0,
        nano: 60,
    };
    let at_day = |unix_s| admit(only(&meter), at(unix_s), ask).map(|(r, _)| r);
    let yesterdays = at_day(DAY_S - 1).unwrap();
    assert!(at_day(DAY_S - 1).is_err());
    // Reserved yesterday, it still counts until it ends, and then not for today.
    assert!(at_day(DAY_S).is_err());
    yesterdays.settle(0, 90);
    at_day(DAY_S).unwrap().settle(0, 55);
    // The database knows of more: another node spent too.
    meter.raise_spent(DAY_S, DAY_S, 70);
    let left = meter.standings(at(DAY_S));
    assert_eq!(left[0].remaining, 30);
    assert_eq!(left[0].reset, Some(DAY_S as u64 * 1_000_000_000));
    meter.raise_spent(DAY_S, 0, 99);
    assert_eq!(meter.standings(at(DAY_S))[0].remaining, 30);
}

#[test]
fn what_was_not_taken_does_not_come_back_to_a_new_limit() {
    let before = Limits {
        rpm: Some(600),
        ..Limits::default()
    };
    let old = Arc::new(Meter::new(&before));
    let held = reserve(
        &old,
        Ask {
            tokens: 50_000,
            nano: 0,
        },
    )
    .unwrap();
    let cancelled = reserve(&old, Ask::default()).unwrap();
    let after = Limits {
        rps: Some(5),
        tpm: Some(1_000),
        ..before
    };
    let new = old.reconfigured(&after, 0);
    let ask = Ask {
        tokens: 900,
        nano: 0,
    };
    drop(reserve(&new, ask).unwrap());
    held.settle(10, 0);
    cancelled.cancel();
    let left = new.standings(Now::default());
    assert_eq!((left[0].remaining, left[2].remaining), (4, 100));
}

#[test]
fn workers_with_another_period_do_not_forget_each_others_spend() {
    let limits = |period| Limits {
        budget: Some(Budget { nano: 100, period }),
        ..Limits::default()
    };
    let regions = workers(2);
    let old = key(&regions[0], &limits(Period::Day));
    let ahead = key(&regions[1], &limits(Period::Day)).reconfigured(&limits(Period::Month), 0);
    let ask = Ask {
        tokens: 0,
        nano: 60,
    };
    reserve(&ahead, ask).unwrap().settle(0, 60);
    reserve(&old, ask).unwrap().settle(0, 60);
    assert_eq!(ahead.standings(Now::default())[0].remaining, 40);
    assert_eq!(old.standings(Now::default())[0].remaining, 40);
}

#[test]
fn money_is_spent_as_it_goes_and_corrected_at_the_end() {
    let limits = Limits {
        budget: Some(Budget {
            nano: 1_000,
            period: Period::Total,
        }),
        ..Limits::default()
    };
    let meter = Arc::new(Meter::new(&limits));
    let left = || meter.standings(Now::default())[0].remaining;
    let ask = Ask {
        tokens: 0,
        nano: 300,
    };
    let mut reservation = reserve(&meter, ask).unwrap();
    assert_eq!(left(), 700);
    reservation.spend_progress(200);
    assert_eq!(left(), 700);
    reservation.spend_progress(350);
    assert_eq!(left(), 650);
    reservation.settle(0, 320);
    assert_eq!(left(), 680);
    // Dropped, it spends what was known; cancelled, nothing.
    let mut reservation = reserve(&meter, ask).unwrap();
    reservation.spend_progress(80);
    drop(reservation);
    assert_eq!(left(), 600);
    let mut reservation = reserve(&meter, ask).unwrap();
    reservation.spend_progress(80);
    reservation.cancel();
    assert_eq!(left(), 600);
}

#[derive(Clone, Debug)]
enum Op {
    Admit { tokens: u64, nano: u64 },
    Settle { at: usize, tokens: u64, nano: u64 },
    Cancel { at: usize },
    Drop { at: usize },
    Wait(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0..120_u64, 0..60_u64).prop_map(|(tokens, nano)| Op::Admit { tokens, nano }),
        2 => (any::<usize>(), 0..150_u64, 0..80_u64)
            .prop_map(|(at, tokens, nano)| Op::Settle { at, tokens, nano }),
        1 => any::<usize>().prop_map(|at| Op::Cancel { at }),
        1 => any::<usize>().prop_map(|at| Op::Drop { at }),
        2 => (0..5_000_000_000_u64).prop_map(Op::Wait),
    ];
    prop::collection::vec(op, 1..60)
}

fn limits() -> impl Strategy<Value = Limits> {
    let some = |to: u64| proptest::option::of(1..to);
    (some(5), some(60), some(600), some(6), some(400)).prop_map(
        |(rps, rpm, tpm, concurrency, budget)| Limits {
            rps,
            rpm,
            tpm,
            concurrency: concurrency.map(|n| n as u32),
            budget: budget.map(|nano| Budget {
                nano,
                period: Period::Total,
            }),
            ..Limits::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Several subjects decide as one: what is refused costs none of them anything, what is
    /// admitted fits all of them, and in the end nothing is held.
    #[test]
    fn all_meters_or_none(each in prop::array::uniform4(limits()), ops in ops()) {
        let region = Arc::new(Region::small(16, 1, 0));
        let mut at = 0;
        let meters: Meters = each.map(|limits| {
            at += 1;
            Some(Arc::new(Meter::of(&region, &format!("s:{at}"), &limits)))
        });
        let mut held: Vec<Reservation> = Vec::new();
        let mut now = Now { mono: 1 << 40, unix_s: 0 };
        let all = |now: Now| -> Vec<_> {
            meters.iter().flatten().map(|m| (m.state(now.mono), m.standings(now))).collect()
        };
        let mut spent = 0;
        for op in ops {
            match op {
                Op::Wait(ns) => now.mono += ns,
                Op::Admit { tokens, nano } => {
                    let before = all(now);
                    match admit(meters.clone(), now, Ask { tokens, nano }) {
                        Ok((reservation, fill)) => {
                            held.push(reservation);
                            let tightest = |of: fn(&forebay_core::limit::MeterState) -> Option<u64>| {
                                meters.iter().flatten().filter_map(|m| of(&m.state(now.mono))).min()
                            };
                            prop_assert_eq!(
                                fill.requests.map(|s| s.remaining),
                                tightest(|s| s.requests.map(|s| s.remaining))
                            );
                            prop_assert_eq!(
                                fill.tokens.map(|s| s.remaining),
                                tightest(|s| s.tokens.map(|s| s.remaining))
                            );
                        }
                        Err(refusal) => {
                            prop_assert_eq!(all(now), before);
                            // The one that is named refuses by itself too.
                            let index = Scope::ALL.iter().position(|s| *s == refusal.scope).unwrap();
                            let mut alone: Meters = Default::default();
                            alone[index].clone_from(&meters[index]);
                            let again = admit(alone, now, Ask { tokens, nano });
                            let same = again.err().unwrap();
                            prop_assert_eq!(same.dimension, refusal.dimension);
                            // Its wait suffices for all clocks.
                            if let Some(wait) = refusal.retry_after
                                && matches!(refusal.dimension, Dimension::Requests | Dimension::Tokens)
                            {
                                let later = Now { mono: now.mono + wait, ..now };
                                match admit(meters.clone(), later, Ask { tokens, nano }) {
                                    Ok((reservation, _)) => reservation.cancel(),
                                    Err(refusal) => prop_assert!(matches!(
                                        refusal.dimension,
                                        Dimension::Concurrency | Dimension::Budget
                                    )),
                                }
                            }
                        }
                    }
                }
                Op::Settle { at, tokens, nano } if !held.is_empty() => {
                    let at = at % held.len();
                    held.swap_remove(at).settle(tokens, nano);
                    spent += nano;
                }
                Op::Cancel { at } if !held.is_empty() => {
                    let at = at % held.len();
                    held.swap_remove(at).cancel();
                }
                Op::Drop { at } if !held.is_empty() => {
                    let at = at % held.len();
                    drop(held.swap_remove(at));
                }
                _ => {}
            }
        }
        held.clear();
        for (meter, limits) in meters.iter().flatten().zip(each) {
            prop_assert_eq!(meter.state(now.mono).in_flight, 0);
            for standing in meter.standings(now) {
                match standing.dimension {
                    Dimension::Budget => {
                        let budget = limits.budget.unwrap().nano;
                        prop_assert_eq!(standing.remaining, budget.saturating_sub(spent));
                    }
                    Dimension::Concurrency => prop_assert_eq!(standing.remaining, standing.limit),
                    Dimension::Requests | Dimension::Tokens => {}
                }
            }
        }
    }
}
