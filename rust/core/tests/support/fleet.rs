//! Participants that share limits, their store and the network between them, on a simulated clock.
//! The leases are the real ones; the syncer is as `python/forebay/limits/syncer.py`.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use forebay_core::limit::lease::{Call, Lease, LeaseCounters, LeaseQuote, Leases, Terms, Ticket};
use forebay_core::limit::{GRANT_WAIT, Nanos};

use super::store::Store;

pub const MS: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000 * MS;

/// A call that was not answered by then has failed.
pub const TIMEOUT: Nanos = 50 * MS;
/// Failed rounds in a row, after which the store is lost.
const FAILURES: u32 = 3;
const PROBE: Nanos = SECOND;
/// Calls of one participant that may be out at once.
const MAX_OPEN: usize = 256;

/// SplitMix64: the same numbers from the same seed, everywhere.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to, not including, 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// Exponentially distributed, of this mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

/// How the store and the way to it are, from now on.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// One way, at least, and on average beyond that.
    pub delay: Nanos,
    pub jitter: Nanos,
    /// Of requests and of replies, each.
    pub loss: f64,
    /// Calls arrive and are not carried out.
    pub down: bool,
    /// The server's clock less the true one.
    pub step_us: i64,
    /// How long one call occupies its server, and each of its keys beyond that.
    pub per_call: Nanos,
    pub per_key: Nanos,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            delay: MS / 5,
            jitter: MS / 10,
            loss: 0.0,
            down: false,
            step_us: 0,
            per_call: 0,
            per_key: 0,
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Admitted,
    Refused,
}

/// A decided request.
#[derive(Clone, Copy, Debug)]
pub struct Decided {
    pub at: Nanos,
    pub participant: usize,
    /// As given to [`Fleet::request`].
    pub key: usize,
    pub cost: u64,
    pub fate: Fate,
    /// It waited for the store.
    pub waited: bool,
    /// When it came.
    pub came: Nanos,
}

struct Participant {
    leases: Leases,
    bell: Arc<AtomicBool>,
    wake_at: Nanos,
    /// Its monotonic clock less the true time, at the start; and what it gains a nanosecond.
    skew: Nanos,
    drift: f64,
    /// One way to the store, beyond the weather's.
    distance: Nanos,
    /// How often it was started again.
    life: u32,
    rounds: u64,
    failed_round: u64,
    failures: u32,
    /// Calls that are out.
    open: usize,
    lost: bool,
    next_probe: Nanos,
    /// Cut off from the store.
    cut: bool,
    /// Requests that wait for the store.
    parked: Vec<Parked>,
}

impl Participant {
    fn clock(&self, now: Nanos) -> Nanos {
        (self.skew + now).saturating_add_signed((now as f64 * self.drift) as i64)
    }

    /// The true time at which its clock shows `local`, or a little later.
    fn when(&self, local: Nanos) -> Nanos {
        (local.saturating_sub(self.skew) as f64 / (1.0 + self.drift)).ceil() as Nanos + 1
    }
}

enum Event {
    Wake(usize),
    /// At the store.
    Arrive(usize, Sent),
    Reply(usize, Sent, Option<Vec<i64>>),
    Timeout(usize, u64),
    /// The patience of a request that waits ends.
    Patience(usize, u64),
}

#[derive(Clone)]
struct Sent {
    number: u64,
    life: u32,
    round: u64,
    at: Nanos,
    call: Arc<Call>,
}

struct Parked {
    number: u64,
    lease: Arc<Lease>,
    ticket: Ticket,
    key: usize,
    cost: u64,
    came: Nanos,
}

struct Timed(Nanos, u64, Event);

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub struct Fleet {
    pub now: Nanos,
    pub store: Store,
    pub weather: Weather,
    pub random: Random,
    pub decided: Vec<Decided>,
    /// Calls that reached the store.
    pub calls: u64,
    /// Calls that were not answered in time.
    pub failed: u64,
    /// Until when each server of the store is busy; a hash tag belongs to one of them.
    pub servers: Vec<Nanos>,
    participants: Vec<Participant>,
    events: BinaryHeap<Reverse<Timed>>,
    /// Calls sent and neither answered nor failed.
    open: std::collections::HashMap<u64, Sent>,
    count: u64,
}

impl Fleet {
    pub fn new(participants: usize, expected: u64, seed: u64) -> Self {
        let mut random = Random(seed);
        let participants = (0..participants)
            .map(|_| {
                let (leases, bell) = registry(expected);
                Participant {
                    leases,
                    bell,
                    wake_at: Nanos::MAX,
                    skew: SECOND + random.below(1_000) * SECOND,
                    drift: 0.0,
                    distance: 0,
                    life: 0,
                    rounds: 0,
                    failed_round: 0,
                    failures: 0,
                    open: 0,
                    lost: false,
                    next_probe: 0,
                    cut: false,
                    parked: Vec::new(),
                }
            })
            .collect::<Vec<_>>();
        let mut fleet = Self {
            now: 0,
            store: Store::default(),
            weather: Weather::default(),
            random,
            decided: Vec::new(),
            calls: 0,
            failed: 0,
            servers: vec![0],
            participants,
            events: BinaryHeap::new(),
            open: std::collections::HashMap::new(),
            count: 0,
        };
        for participant in 0..fleet.participants.len() {
            let at = fleet.random.below(SECOND);
            fleet.wake(participant, at);
        }
        fleet
    }

    pub fn lease(&self, participant: usize, id: &str, tag: &str, terms: Terms) -> Arc<Lease> {
        self.participants[participant]
            .leases
            .get_or_create(id, tag, terms)
    }

    pub fn leases(&self, participant: usize) -> &Leases {
        &self.participants[participant].leases
    }

    /// Separates a participant from the store, or joins it again.
    pub fn cut(&mut self, participant: usize, cut: bool) {
        self.participants[participant].cut = cut;
    }

    /// Lets its clock gain so many nanoseconds each nanosecond, or lose them.
    pub fn drift(&mut self, participant: usize, drift: f64) {
        self.participants[participant].drift = drift;
    }

    /// Puts it farther from the store: so much one way, beyond the weather's delay.
    pub fn distance(&mut self, participant: usize, distance: Nanos) {
        self.participants[participant].distance = distance;
    }

    /// Kills a participant; another takes its place at once. What it held and owed is forgotten.
    pub fn restart(&mut self, participant: usize, expected: u64) {
        let (leases, bell) = registry(expected);
        let this = &mut self.participants[participant];
        (this.leases, this.bell) = (leases, bell);
        this.life += 1;
        (this.failures, this.open, this.lost) = (0, 0, false);
        this.parked.clear();
        self.wake(participant, self.now + MS);
    }

    /// A participant's own clock.
    pub fn clock(&self, participant: usize) -> Nanos {
        self.participants[participant].clock(self.now)
    }

    /// A request of `cost` comes; `key` is for the record.
    pub fn request(&mut self, participant: usize, lease: &Arc<Lease>, key: usize, cost: u64) {
        let now = self.clock(participant);
        match decide(lease, now, cost) {
            LeaseQuote::NeedGrant => {
                self.count += 1;
                let number = self.count;
                let parked = Parked {
                    number,
                    lease: Arc::clone(lease),
                    ticket: lease.request(now, cost),
                    key,
                    cost,
                    came: self.now,
                };
                self.participants[participant].parked.push(parked);
                let patience = GRANT_WAIT.as_nanos() as Nanos;
                self.push(self.now + patience, Event::Patience(participant, number));
            }
            found => self.record(participant, key, cost, found, None),
        }
        self.heed(participant);
    }

    /// Gives back or charges outside of a request.
    pub fn settle(&mut self, participant: usize, lease: &Lease, taken: u64, used: u64) {
        lease.settle(taken, used);
        self.heed(participant);
    }

    /// Lets time pass.
    pub fn run_until(&mut self, until: Nanos) {
        while let Some(Reverse(Timed(at, _, _))) = self.events.peek() {
            if *at > until {
                break;
            }
            let Some(Reverse(Timed(at, _, event))) = self.events.pop() else {
                break;
            };
            self.now = at;
            self.happen(event);
        }
        self.now = until;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(participant) => {
                if self.participants[participant].wake_at == self.now {
                    self.participants[participant].wake_at = Nanos::MAX;
                    self.collect(participant);
                }
            }
            Event::Arrive(participant, sent) => {
                if !self.weather.down {
                    self.serve(participant, sent);
                }
            }
            Event::Reply(participant, sent, reply) => {
                if self.open.remove(&sent.number).is_some() {
                    self.answer(participant, &sent, reply);
                }
            }
            Event::Timeout(participant, number) => {
                if let Some(sent) = self.open.remove(&number) {
                    self.answer(participant, &sent, None);
                }
            }
            Event::Patience(participant, number) => {
                let parked = &mut self.participants[participant].parked;
                if let Some(at) = parked.iter().position(|one| one.number == number) {
                    let parked = parked.remove(at);
                    parked.lease.unanswered(self.clock(participant));
                    self.decide_parked(participant, &parked);
                }
            }
        }
    }

    /// The call waits until its server is free, is carried out, and answered.
    fn serve(&mut self, participant: usize, sent: Sent) {
        self.calls += 1;
        let keys = sent.call.keys();
        let weather = self.weather;
        let tag = sent.call.tag.bytes();
        let hash = tag.fold(7_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        let server = Random(hash).below(self.servers.len() as u64) as usize;
        let begun = self.now.max(self.servers[server]);
        let done = begun + weather.per_call + weather.per_key * keys.len() as Nanos;
        self.servers[server] = done;
        let now_us = (begun / 1_000).cast_signed() + 1_000_000_000_000_000;
        let name = format!("{participant}.{}", sent.life);
        let reply = self.store.call(
            now_us + weather.step_us,
            &name,
            &keys,
            &sent.call.arguments(),
        );
        if !self.is_lost() {
            let at = done + self.delay(participant);
            self.push(at, Event::Reply(participant, sent, Some(reply)));
        }
    }

    /// Decides the requests for which the store has answered.
    fn unpark(&mut self, participant: usize) {
        let parked = &mut self.participants[participant].parked;
        let ready: Vec<_> = parked
            .extract_if(.., |one| one.lease.is_answered(one.ticket))
            .collect();
        for one in ready {
            self.decide_parked(participant, &one);
        }
    }

    fn decide_parked(&mut self, participant: usize, parked: &Parked) {
        let found = decide(&parked.lease, self.clock(participant), parked.cost);
        let came = Some(parked.came);
        self.record(participant, parked.key, parked.cost, found, came);
        self.heed(participant);
    }

    fn collect(&mut self, participant: usize) {
        let this = &mut self.participants[participant];
        if this.open >= MAX_OPEN {
            // The next reply wakes it.
            return;
        }
        if this.lost && self.now < this.next_probe {
            let at = this.next_probe;
            self.wake(participant, at);
            return;
        }
        this.next_probe = self.now + PROBE;
        this.rounds += 1;
        let now = this.clock(self.now);
        let (round, next) = this.leases.collect(now);
        let (life, round_number, cut) = (this.life, this.rounds, this.cut);
        let next = this.when(next).max(self.now + MS / 10);
        self.wake(participant, next);
        for call in round.into_iter().flat_map(|round| round.calls) {
            self.count += 1;
            let sent = Sent {
                number: self.count,
                life,
                round: round_number,
                at: now,
                call: Arc::new(call),
            };
            self.participants[participant].open += 1;
            self.open.insert(sent.number, sent.clone());
            self.push(self.now + TIMEOUT, Event::Timeout(participant, sent.number));
            if !self.is_lost() && !cut {
                let at = self.now + self.delay(participant);
                self.push(at, Event::Arrive(participant, sent));
            }
        }
    }

    fn answer(&mut self, participant: usize, sent: &Sent, reply: Option<Vec<i64>>) {
        self.failed += u64::from(reply.is_none());
        let this = &mut self.participants[participant];
        if this.life != sent.life {
            return;
        }
        let now = this.clock(self.now);
        let stalled = this.open >= MAX_OPEN;
        this.open -= 1;
        if reply.is_some() {
            this.failures = 0;
            if this.lost {
                this.lost = false;
                this.leases.store_back();
            }
        } else {
            // One bad moment may fail many calls of a round: it counts once.
            if sent.round > this.failed_round {
                this.failures += 1;
            }
            this.failed_round = this.failed_round.max(sent.round);
            if this.failures >= FAILURES && !this.lost {
                this.lost = true;
                this.next_probe = self.now + PROBE;
                this.leases.store_lost(now);
            }
        }
        let grants = reply.and_then(|reply| sent.call.grants(&reply));
        this.leases
            .answer(sent.at, now, &sent.call, grants.as_deref());
        self.unpark(participant);
        self.heed(participant);
        if stalled {
            self.wake(participant, self.now + MS / 20);
        }
    }

    fn record(
        &mut self,
        participant: usize,
        key: usize,
        cost: u64,
        found: LeaseQuote,
        waits_since: Option<Nanos>,
    ) {
        let fate = match found {
            LeaseQuote::Pass { .. } => Fate::Admitted,
            _ => Fate::Refused,
        };
        self.decided.push(Decided {
            at: self.now,
            participant,
            key,
            cost,
            fate,
            waited: waits_since.is_some(),
            came: waits_since.unwrap_or(self.now),
        });
    }

    /// Wakes the syncer if the bell has rung.
    fn heed(&mut self, participant: usize) {
        if self.participants[participant].bell.swap(false, SeqCst) {
            self.wake(participant, self.now + MS / 20);
        }
    }

    fn wake(&mut self, participant: usize, at: Nanos) {
        if at < self.participants[participant].wake_at {
            self.participants[participant].wake_at = at;
            self.push(at, Event::Wake(participant));
        }
    }

    fn push(&mut self, at: Nanos, event: Event) {
        self.count += 1;
        self.events.push(Reverse(Timed(at, self.count, event)));
    }

    fn delay(&mut self, participant: usize) -> Nanos {
        let distance = self.participants[participant].distance;
        distance + self.weather.delay + self.random.exponential(self.weather.jitter as f64) as Nanos
    }

    fn is_lost(&mut self) -> bool {
        self.weather.loss > 0.0 && self.random.unit() < self.weather.loss
    }
}

/// A registry in use, and the bell that it rings.
fn registry(expected: u64) -> (Leases, Arc<AtomicBool>) {
    let bell = Arc::new(AtomicBool::new(false));
    let ring = Arc::clone(&bell);
    let leases = Leases::new(LeaseCounters::default());
    leases.activate(expected, move || ring.store(true, SeqCst));
    (leases, bell)
}

fn decide(lease: &Lease, now: Nanos, cost: u64) -> LeaseQuote {
    match lease.quote(now, cost) {
        LeaseQuote::Pass { .. } => lease.take(now, cost),
        found => found,
    }
}

/// The most that was admitted of `key` in any window of `span`, and all of it.
pub fn worst(decided: &[Decided], key: usize, span: Nanos) -> (u64, u64) {
    let admitted: Vec<_> = decided
        .iter()
        .filter(|one| one.key == key && one.fate == Fate::Admitted)
        .collect();
    let (mut from, mut sum, mut worst, mut total) = (0, 0, 0, 0);
    for one in &admitted {
        sum += one.cost;
        total += one.cost;
        while one.at - admitted[from].at > span {
            sum -= admitted[from].cost;
            from += 1;
        }
        worst = worst.max(sum);
    }
    (worst, total)
}
