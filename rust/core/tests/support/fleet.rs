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

use forebay_core::limit::Nanos;
use forebay_core::limit::lease::{Call, Lease, LeaseCounters, LeaseQuote, Leases, Terms, Ticket};

use super::store::Store;

pub const MS: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000 * MS;

/// A call that was not answered by then has failed.
pub const TIMEOUT: Nanos = 50 * MS;
/// A request that waited so long for the store is decided by the share.
pub const PATIENCE: Nanos = 60 * MS;
const FAILURES: u32 = 3;

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
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            delay: MS / 5,
            jitter: MS / 10,
            loss: 0.0,
            down: false,
            step_us: 0,
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
}

struct Participant {
    leases: Leases,
    bell: Arc<AtomicBool>,
    wake_at: Nanos,
    /// Its monotonic clock less the true time.
    skew: Nanos,
    failures: u32,
    lost: bool,
    /// Cut off from the store.
    cut: bool,
}

enum Event {
    Wake(usize),
    /// At the store.
    Arrive(usize, Sent),
    Reply(usize, Sent, Option<Vec<i64>>),
    Timeout(usize, u64),
    /// A request that waits looks again; whether for the last time.
    Again(Parked, bool),
}

#[derive(Clone)]
struct Sent {
    number: u64,
    at: Nanos,
    call: Arc<Call>,
}

#[derive(Clone)]
struct Parked {
    participant: usize,
    lease: Arc<Lease>,
    ticket: Ticket,
    key: usize,
    cost: u64,
    until: Nanos,
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
                let bell = Arc::new(AtomicBool::new(false));
                let ring = Arc::clone(&bell);
                let leases = Leases::new(LeaseCounters::default());
                leases.activate(expected, move || ring.store(true, SeqCst));
                Participant {
                    leases,
                    bell,
                    wake_at: Nanos::MAX,
                    skew: SECOND + random.below(1_000) * SECOND,
                    failures: 0,
                    lost: false,
                    cut: false,
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

    /// A participant's own clock.
    pub fn clock(&self, participant: usize) -> Nanos {
        self.now + self.participants[participant].skew
    }

    /// A request of `cost` comes; `key` is for the record.
    pub fn request(&mut self, participant: usize, lease: &Arc<Lease>, key: usize, cost: u64) {
        let now = self.clock(participant);
        match decide(lease, now, cost) {
            LeaseQuote::NeedGrant => {
                let parked = Parked {
                    participant,
                    lease: Arc::clone(lease),
                    ticket: lease.request(now, cost),
                    key,
                    cost,
                    until: self.now + PATIENCE,
                };
                self.push(self.now + MS / 10, Event::Again(parked, false));
            }
            found => self.record(participant, key, cost, found, false),
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
                let reply = (!self.weather.down).then(|| {
                    self.calls += 1;
                    let now_us = (self.now / 1_000).cast_signed() + 1_000_000_000_000_000;
                    self.store.call(
                        now_us + self.weather.step_us,
                        &participant.to_string(),
                        &sent.call.keys(),
                        &sent.call.arguments(),
                    )
                });
                if reply.is_some() && !self.is_lost() {
                    let at = self.now + self.delay();
                    self.push(at, Event::Reply(participant, sent, reply));
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
            Event::Again(parked, last) => self.again(parked, last),
        }
    }

    fn again(&mut self, parked: Parked, last: bool) {
        let now = self.clock(parked.participant);
        if !parked.lease.is_answered(parked.ticket) {
            if !last {
                let next = self.now + MS / 5;
                let last = next >= parked.until;
                self.push(next, Event::Again(parked, last));
                return;
            }
            parked.lease.unanswered(now);
        }
        let found = decide(&parked.lease, now, parked.cost);
        self.record(parked.participant, parked.key, parked.cost, found, true);
        self.heed(parked.participant);
    }

    fn collect(&mut self, participant: usize) {
        let now = self.clock(participant);
        let (round, next) = self.participants[participant].leases.collect(now);
        let skew = self.participants[participant].skew;
        self.wake(
            participant,
            next.saturating_sub(skew).max(self.now + MS / 10),
        );
        for call in round.into_iter().flat_map(|round| round.calls) {
            self.count += 1;
            let sent = Sent {
                number: self.count,
                at: now,
                call: Arc::new(call),
            };
            self.open.insert(sent.number, sent.clone());
            self.push(self.now + TIMEOUT, Event::Timeout(participant, sent.number));
            if !self.is_lost() && !self.participants[participant].cut {
                let at = self.now + self.delay();
                self.push(at, Event::Arrive(participant, sent));
            }
        }
    }

    fn answer(&mut self, participant: usize, sent: &Sent, reply: Option<Vec<i64>>) {
        let now = self.clock(participant);
        let this = &mut self.participants[participant];
        if reply.is_some() {
            this.failures = 0;
            if this.lost {
                this.lost = false;
                this.leases.store_back();
            }
        } else {
            this.failures += 1;
            if this.failures >= FAILURES && !this.lost {
                this.lost = true;
                this.leases.store_lost(now);
            }
        }
        let grants = reply.and_then(|reply| sent.call.grants(&reply));
        this.leases
            .answer(sent.at, now, &sent.call, grants.as_deref());
        self.heed(participant);
    }

    fn record(
        &mut self,
        participant: usize,
        key: usize,
        cost: u64,
        found: LeaseQuote,
        waited: bool,
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
            waited,
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

    fn delay(&mut self) -> Nanos {
        self.weather.delay + self.random.exponential(self.weather.jitter as f64) as Nanos
    }

    fn is_lost(&mut self) -> bool {
        self.weather.loss > 0.0 && self.random.unit() < self.weather.loss
    }
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
