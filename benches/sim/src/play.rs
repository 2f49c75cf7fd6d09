//! Plays a setting.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use forebay_core::limit::Nanos;
use forebay_core::limit::lease::{OnStoreLoss, Terms};

use crate::demand::{Arrival, Demand};
use crate::fleet::{Decided, Fate, Fleet, Random, SECOND, Weather};
use crate::judge::Judge;
use crate::setting::{Fault, Of, Setting};

/// What came out of a run; it depends on setting and seed alone.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) setting: Setting,
    pub(crate) asked: u64,
    pub(crate) admitted: u64,
    pub(crate) ideal: u64,
    /// Units that keys had beyond the ideal, and that they lacked.
    pub(crate) more: u64,
    pub(crate) less: u64,
    pub(crate) waited: u64,
    pub(crate) wait_p99: Nanos,
    /// Units beyond the limit that some key had in its worst window; below 0 it never had all.
    pub(crate) overshoot: f64,
    /// What is promised, in the same units; and whether it was kept.
    pub(crate) allowed: Option<f64>,
    pub(crate) kept: bool,
    /// At the store.
    pub(crate) calls_per_s: f64,
    pub(crate) keys_per_s: f64,
    pub(crate) failed_per_s: f64,
    /// Leases of all participants at the end.
    pub(crate) leases: usize,
    pub(crate) by_second: Vec<u64>,
}

/// Requests begin when participants have told that they live, or at once where they do not know each other.
const QUIET: Nanos = 2 * SECOND;

struct World<'a> {
    setting: &'a Setting,
    fleets: Vec<Fleet>,
    judge: Judge,
    random: Random,
    terms: Terms,
    holding: Holding,
}

/// Requests that hold permits, here and at an exact limiter.
#[derive(Default)]
struct Holding {
    in_use: Vec<u64>,
    ideal_in_use: Vec<u64>,
    /// When each ends: key, and the participant that it is at unless it is the ideal one.
    ends: BinaryHeap<Reverse<(Nanos, usize, Option<usize>)>>,
}

/// Runs one setting.
pub(crate) fn play(setting: &Setting, seed: u64) -> Outcome {
    let mut world = World::new(setting, seed);
    let knows = setting.expected >= setting.nodes as u64;
    let quiet = if knows { QUIET } else { 0 };
    world.run_until(quiet);
    let before: (u64, u64, u64) = world.counts();
    let mut demand = Demand::new(setting, seed ^ 0x5151);
    let mut faults = setting.faults.iter().peekable();
    loop {
        let mut next = demand.next();
        next.at += quiet;
        while let Some((at, fault)) = faults.next_if(|(at, _)| quiet + at <= next.at) {
            world.run_until(quiet + at);
            if let Fault::Demand(times) = fault {
                demand.scale(*times);
            } else {
                world.suffer(*fault);
            }
        }
        if next.at >= quiet + setting.span {
            break;
        }
        world.request(next);
    }
    world.run_until(quiet + setting.span + SECOND);
    world.outcome(before)
}

impl<'a> World<'a> {
    fn new(setting: &'a Setting, seed: u64) -> Self {
        let stores = setting.stores() as usize;
        let each = setting.nodes.div_ceil(stores);
        let expected = setting.expected.div_ceil(stores as u64);
        let fleets = (0..stores)
            .map(|store| {
                let mut fleet = Fleet::new(each, expected, seed.wrapping_add(store as u64));
                let half = setting.round_trip / 2;
                fleet.weather = Weather {
                    delay: half - half / 4,
                    jitter: half / 4,
                    per_call: setting.per_call,
                    per_key: setting.per_key,
                    ..Weather::default()
                };
                fleet.servers = vec![0; setting.servers];
                for node in 0..each {
                    let drift = (2.0 * fleet.random.unit() - 1.0) * setting.drift;
                    fleet.drift(node, drift);
                    if stores == 1 && node % setting.regions > 0 {
                        fleet.distance(node, setting.far);
                    }
                }
                fleet
            })
            .collect();
        let terms = match setting.of {
            Of::Rate { rpm, .. } => Terms::rate(
                rpm,
                Duration::from_secs(60 * setting.stores()),
                setting.size(),
                OnStoreLoss::Share,
            ),
            Of::Permits { .. } => Terms::permits(setting.size(), OnStoreLoss::Share),
        };
        Self {
            setting,
            fleets,
            judge: Judge::new(setting),
            random: Random(seed ^ 0xACE),
            terms,
            holding: Holding {
                in_use: vec![0; setting.keys],
                ideal_in_use: vec![0; setting.keys],
                ends: BinaryHeap::new(),
            },
        }
    }

    /// Calls, keys and failures at the stores so far.
    fn counts(&self) -> (u64, u64, u64) {
        self.fleets.iter().fold((0, 0, 0), |sum, fleet| {
            (
                sum.0 + fleet.calls,
                sum.1 + fleet.store.served,
                sum.2 + fleet.failed,
            )
        })
    }

    fn run_until(&mut self, until: Nanos) {
        while let Some(Reverse((at, ..))) = self.holding.ends.peek()
            && *at <= until
        {
            let at = *at;
            self.advance(at);
            if let Some(Reverse((_, key, node))) = self.holding.ends.pop() {
                self.end(key, node);
            }
        }
        self.advance(until);
    }

    fn advance(&mut self, until: Nanos) {
        let mut decided: Vec<(usize, Decided)> = Vec::new();
        for (store, fleet) in self.fleets.iter_mut().enumerate() {
            fleet.run_until(until);
            decided.extend(fleet.decided.drain(..).map(|one| (store, one)));
        }
        decided.sort_by_key(|(_, one)| one.at);
        for (store, one) in decided {
            self.judge.decided(&one);
            if let Of::Permits { hold, .. } = self.setting.of
                && one.fate == Fate::Admitted
                && let Some(in_use) = self.holding.in_use.get_mut(one.key)
            {
                *in_use += 1;
                self.judge.in_use(*in_use);
                let end = one.at + self.random.exponential(hold as f64) as Nanos;
                let node = one.participant * self.fleets.len() + store;
                self.holding.ends.push(Reverse((end, one.key, Some(node))));
            }
        }
    }

    /// A request that held a permit ends.
    fn end(&mut self, key: usize, node: Option<usize>) {
        let counts = match node {
            Some(_) => &mut self.holding.in_use,
            None => &mut self.holding.ideal_in_use,
        };
        if let Some(count) = counts.get_mut(key) {
            *count -= 1;
        }
        if let Some(node) = node {
            let (store, node) = self.place(node);
            let (id, tag) = self.names(key);
            if let Some(fleet) = self.fleets.get_mut(store) {
                let lease = fleet.lease(node, &id, &tag, self.terms);
                fleet.settle(node, &lease, 1, 0);
            }
        }
    }

    /// A node's store, and its number there.
    fn place(&self, node: usize) -> (usize, usize) {
        (node % self.fleets.len(), node / self.fleets.len())
    }

    /// A limit's id, of the length that the gateway's have, and its hash tag.
    fn names(&self, key: usize) -> (String, String) {
        let account = key / self.setting.keys_per_tag;
        (
            format!("key:{key:012}/requests/minute"),
            format!("account{account:08}"),
        )
    }

    fn request(&mut self, next: Arrival) {
        self.run_until(next.at);
        self.judge.came(next.at, next.key);
        if let Of::Permits { capacity, hold } = self.setting.of
            && let Some(in_use) = self.holding.ideal_in_use.get_mut(next.key)
            && *in_use < capacity
        {
            *in_use += 1;
            self.judge.ideally(next.key);
            let end = next.at + self.random.exponential(hold as f64) as Nanos;
            self.holding.ends.push(Reverse((end, next.key, None)));
        }
        let (store, node) = self.place(next.node);
        let (id, tag) = self.names(next.key);
        if let Some(fleet) = self.fleets.get_mut(store) {
            let lease = fleet.lease(node, &id, &tag, self.terms);
            fleet.request(node, &lease, next.key, 1);
        }
    }

    fn suffer(&mut self, fault: Fault) {
        for fleet in &mut self.fleets {
            let each = self.setting.nodes.div_ceil(self.setting.stores() as usize);
            match fault {
                Fault::Down(down) => fleet.weather.down = down,
                Fault::Flush => fleet.store.flush(),
                Fault::Cut(count) => {
                    for node in 0..each {
                        fleet.cut(node, node < count);
                    }
                }
                Fault::Loss(loss) => fleet.weather.loss = loss,
                Fault::Slow(by) => {
                    for node in 0..each {
                        fleet.distance(node, by);
                    }
                }
                Fault::Step(micros) => fleet.weather.step_us += micros,
                Fault::Restart(count) => {
                    for node in 0..count.min(each) {
                        fleet.restart(node, self.setting.expected);
                    }
                }
                Fault::Demand(_) => {}
            }
        }
    }

    fn outcome(mut self, before: (u64, u64, u64)) -> Outcome {
        let (calls, keys, failed) = self.counts();
        let [admitted, ideal, more, less] = self.judge.sums();
        let setting = self.setting;
        let size = (setting.size() * setting.stores()) as f64;
        let slack = setting.slack();
        let allowed = setting
            .bound
            .map(|bound| slack + bound.bursts * size + bound.requests);
        let seconds = (setting.span + SECOND) as f64 / 1e9;
        let each = setting.nodes.div_ceil(self.fleets.len());
        let leases = self
            .fleets
            .iter()
            .map(|fleet| (0..each).map(|n| fleet.leases(n).len()).sum::<usize>())
            .sum();
        Outcome {
            asked: self.judge.asked,
            admitted,
            ideal,
            more,
            less,
            waited: self.judge.waited,
            wait_p99: self.judge.wait_p99(admitted),
            overshoot: self.judge.worst - size,
            allowed,
            kept: allowed.is_none_or(|allowed| self.judge.bound_worst <= size + allowed + 1e-6),
            calls_per_s: (calls - before.0) as f64 / seconds,
            keys_per_s: (keys - before.1) as f64 / seconds,
            failed_per_s: (failed - before.2) as f64 / seconds,
            leases,
            by_second: std::mem::take(&mut self.judge.by_second),
            setting: setting.clone(),
        }
    }
}
