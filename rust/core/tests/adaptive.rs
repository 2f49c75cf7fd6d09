//! The adaptive limit against a simulated engine that serves so many requests at once and lets the
//! others wait inside it.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use forebay_core::adaptive::Adaptive;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    FirstToken { sent: u64, in_flight: u64 },
    Ends,
    Arrives,
}

/// A batch-limited engine behind the limit: `slots` requests run, the others wait their turn in it.
struct Sim {
    slots: usize,
    prefill_s: f64,
    decode_s: f64,
    /// Requests a second that are offered; `None`: as many as the limit lets in.
    offered: Option<f64>,
    limit: Adaptive,
    now: u64,
    in_flight: u64,
    running: usize,
    queue: VecDeque<(u64, u64)>,
    events: BinaryHeap<Reverse<(u64, u64, Happens)>>,
    number: u64,
    seed: u64,
    /// Time × limit, time × idle slots, and first-token times since the last reset.
    limit_time: f64,
    idle_time: f64,
    ttfts: Vec<f64>,
}

impl Sim {
    fn new(limit: Adaptive, slots: usize, prefill_s: f64, decode_s: f64) -> Self {
        Self {
            slots,
            prefill_s,
            decode_s,
            offered: None,
            limit,
            now: 0,
            in_flight: 0,
            running: 0,
            queue: VecDeque::new(),
            events: BinaryHeap::new(),
            number: 0,
            seed: 7,
            limit_time: 0.0,
            idle_time: 0.0,
            ttfts: Vec::new(),
        }
    }

    /// From 0 to 1 (xorshift).
    fn random(&mut self) -> f64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as f64 / (1u64 << 53) as f64
    }

    fn after(&mut self, seconds: f64, event: Happens) {
        self.number += 1;
        let at = self.now + (seconds * SECOND as f64) as u64;
        self.events.push(Reverse((at, self.number, event)));
    }

    fn send(&mut self) {
        if self.in_flight < self.limit.limit() {
            self.in_flight += 1;
            self.queue.push_back((self.now, self.in_flight));
        }
    }

    fn settle(&mut self) {
        if self.offered.is_none() {
            while self.in_flight < self.limit.limit() {
                self.send();
            }
        }
        while self.running < self.slots
            && let Some((sent, in_flight)) = self.queue.pop_front()
        {
            self.running += 1;
            let prefill = self.prefill_s * (0.7 + 0.6 * self.random());
            // Exponential: most answers are short, some are long.
            let decode = -self.decode_s * self.random().max(1e-9).ln();
            self.after(prefill, Happens::FirstToken { sent, in_flight });
            self.after(prefill + decode, Happens::Ends);
        }
    }

    /// Runs for so long; the mean limit meanwhile.
    fn run(&mut self, seconds: f64) -> f64 {
        (self.limit_time, self.idle_time) = (0.0, 0.0);
        self.ttfts.clear();
        let begin = self.now;
        let end = begin + (seconds * SECOND as f64) as u64;
        if self.offered.is_some() && self.number == 0 {
            self.after(0.0, Happens::Arrives);
        }
        self.settle();
        while let Some(Reverse((at, _, _))) = self.events.peek()
            && *at < end
        {
            let Reverse((at, _, event)) = self.events.pop().unwrap();
            let passed = (at - self.now) as f64 / SECOND as f64;
            self.limit_time += passed * self.limit.limit() as f64;
            self.idle_time += passed * self.slots.saturating_sub(self.running) as f64;
            self.now = at;
            match event {
                Happens::FirstToken { sent, in_flight } => {
                    let ttft = Duration::from_nanos(at - sent);
                    self.ttfts.push(ttft.as_secs_f64());
                    self.limit.first_token(ttft, in_flight, at);
                }
                Happens::Ends => {
                    self.running -= 1;
                    self.in_flight -= 1;
                }
                Happens::Arrives => {
                    self.send();
                    let gap = 1.0 / self.offered.unwrap();
                    self.after(gap, Happens::Arrives);
                }
            }
            self.settle();
        }
        self.limit_time / ((self.now - begin) as f64 / SECOND as f64)
    }

    /// Mean share of the slots that did nothing in the last run.
    fn idle(&self, seconds: f64) -> f64 {
        self.idle_time / seconds / self.slots as f64
    }

    fn median_ttft(&mut self) -> f64 {
        self.ttfts.sort_by(f64::total_cmp);
        self.ttfts[self.ttfts.len() / 2]
    }
}

#[test]
fn it_settles_near_the_capacity_and_follows_it() {
    for decode_s in [0.5, 2.0, 8.0] {
        let mut sim = Sim::new(Adaptive::new(4, 512), 32, 0.1, decode_s);
        for slots in [32, 96, 16] {
            sim.slots = slots;
            sim.run(180.0);
            let mean = sim.run(240.0);
            let (capacity, idle, ttft) = (slots as f64, sim.idle(240.0), sim.median_ttft());
            let seen = format!("{slots} slots of {decode_s} s: {mean:.1}, {idle:.3}, {ttft:.3} s");
            assert!((0.9 * capacity..1.35 * capacity).contains(&mean), "{seen}");
            // The engine is kept busy, and what waits, waits before it: without the limit the
            // first token would take as long as the line is.
            assert!(idle < 0.06, "{seen}");
            assert!(ttft < 0.5, "{seen}");
        }
    }
}

/// What was the time without a queue is no more: neither twice as slow nor as fast again for ever.
#[test]
fn an_engine_whose_speed_changes_is_measured_anew() {
    let mut sim = Sim::new(Adaptive::new(4, 512), 32, 0.1, 2.0);
    sim.run(120.0);
    for prefill_s in [0.6, 0.1] {
        sim.prefill_s = prefill_s;
        sim.run(180.0);
        let (mean, idle) = (sim.run(120.0), sim.idle(120.0));
        assert!((28.0..48.0).contains(&mean), "{prefill_s}: {mean}");
        assert!(idle < 0.06, "{prefill_s}: {idle}");
        let baseline_s = sim.limit.baseline().unwrap().as_secs_f64();
        assert!(
            (0.5 * prefill_s..1.3 * prefill_s).contains(&baseline_s),
            "{baseline_s}"
        );
    }
}

#[test]
fn a_limit_that_is_not_used_stays() {
    let mut sim = Sim::new(Adaptive::new(4, 512), 1000, 0.1, 2.0);
    sim.offered = Some(10.0); // 21 in flight in the mean
    sim.run(300.0);
    let settled = sim.limit.limit();
    assert!((22..100).contains(&settled), "{settled}");
    sim.run(300.0);
    assert!(sim.limit.limit() < 100);
}

#[test]
fn what_was_sent_before_the_limit_shrank_shrinks_it_no_further() {
    let mut limit = Adaptive::new(10, 1000);
    let ms = Duration::from_millis;
    let mut now = 0;
    let mut window = |limit: &mut Adaptive, ttft: u64, step: u64| {
        for _ in 0..10 {
            now += step * 1_000_000;
            limit.first_token(ms(ttft), limit.limit(), now);
        }
        now
    };
    for _ in 0..20 {
        window(&mut limit, 100, 60);
    }
    let grown = limit.limit();
    assert!(grown > 100, "{grown}");
    window(&mut limit, 5000, 60);
    let shrunk = limit.limit();
    assert!(shrunk < grown, "{shrunk}");
    // The engine's queue of before drains: its times are long, and long decided.
    for _ in 0..7 {
        window(&mut limit, 5000, 60);
    }
    assert_eq!(limit.limit(), shrunk);
    let now = window(&mut limit, 100, 60);
    assert!(limit.limit() > shrunk);
    let before = limit.limit();
    limit.overloaded(ms(10), now + 20_000_000);
    let once = limit.limit();
    assert!(once < before);
    limit.overloaded(ms(30), now + 20_000_000);
    assert_eq!(
        limit.limit(),
        once,
        "one cut for all that was sent together"
    );
}

proptest! {
    /// Whatever is seen, at whatever times, the limit keeps its bounds.
    #[test]
    fn the_bounds_hold(
        min in 0u32..50,
        max in 0u32..500,
        seen in prop::collection::vec((any::<u64>(), 0u64..1000, 0u64..1 << 40, any::<bool>()), 0..500),
    ) {
        let mut limit = Adaptive::new(min, max);
        let mut now = 0;
        for (ttft, in_flight, step, fails) in seen {
            now += step;
            if fails {
                limit.overloaded(Duration::from_nanos(ttft), now);
            } else {
                limit.first_token(Duration::from_nanos(ttft), in_flight, now);
            }
            let least = u64::from(min.max(1));
            prop_assert!((least..=u64::from(max).max(least)).contains(&limit.limit()));
        }
    }
}
