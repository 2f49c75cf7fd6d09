//! All leases of a process, and the rounds in which a syncer speaks for them.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use crossbeam_queue::SegQueue;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

use super::ask::{Due, PART_LIFE};
use super::{Ask, Grant, Lease, Nanos, TAU, Terms};
use crate::metrics::{Counter, Gauge, Registry};

/// The tag under which participants are counted.
pub(super) const NODES: &str = "nodes";
/// A participant says that it lives so often; after [`PART_LIFE`] without a word it does not.
const BEAT: Nanos = 1_000_000_000;
/// Limits in one call of the script at most: a script blocks the store while it runs.
const MAX_PER_CALL: usize = 64;
/// Limits in one round at most; the others come next.
const MAX_PER_ROUND: usize = 1024;
/// Between two looks at all leases in use so much time passes for each of them, [`TAU`] at most:
/// looking takes a twentieth of it.
const PAUSE: Nanos = 2_000;
/// Unused leases are looked for so often.
const SWEEP: Nanos = 10_000_000_000;

/// What leases count. `Default` counts without showing it.
#[derive(Debug, Default)]
pub struct LeaseCounters {
    /// Takes from a lease, without waiting.
    pub from_lease: Arc<Counter>,
    /// Takes from a share while the store was lost.
    pub from_share: Arc<Counter>,
    /// Requests that waited for the store, per limit.
    pub waits: Arc<Counter>,
    /// Calls of the script answered, and failed.
    pub calls: Arc<Counter>,
    /// Calls of the script that failed.
    pub failures: Arc<Counter>,
    /// 1 while the store answers.
    pub store_up: Arc<Gauge>,
    /// Participants alive.
    pub live: Arc<Gauge>,
    /// Leases that the syncer looks at.
    pub active: Arc<Gauge>,
}

impl LeaseCounters {
    /// Counters that `registry` shows.
    pub fn registered(registry: &Registry) -> Self {
        let taken = registry.counters(
            "forebay_lease_takes_total",
            "Limits taken from without asking the store: of a lease, or of the share while the store was lost.",
            ["from"],
        );
        let calls = registry.counters(
            "forebay_lease_calls_total",
            "Calls of the limits' script, one per hash tag and round.",
            ["outcome"],
        );
        Self {
            from_lease: taken.get_or_create(&["lease"]),
            from_share: taken.get_or_create(&["share"]),
            waits: registry.counter(
                "forebay_lease_waits_total",
                "Times that a request waited for the store, once per limit.",
            ),
            calls: calls.get_or_create(&["ok"]),
            failures: calls.get_or_create(&["failed"]),
            store_up: registry.gauge(
                "forebay_lease_store_up",
                "1 while the store of shared limits answers, 0 while shares are spent.",
            ),
            live: registry.gauge(
                "forebay_lease_participants",
                "Workers that share limits, this one included.",
            ),
            active: registry.gauge(
                "forebay_leases_active",
                "Limits of which something is leased or was lately wanted.",
            ),
        }
    }
}

type Bell = Box<dyn Fn() + Send + Sync>;

/// What leases share with the registry.
pub(super) struct Hub {
    pub(super) fresh: SegQueue<Arc<Lease>>,
    pub(super) urgent: SegQueue<Arc<Lease>>,
    pub(super) counters: LeaseCounters,
    lost: AtomicBool,
    live: AtomicU64,
    seq: AtomicU64,
    versions: AtomicU64,
    /// When the store was last seen to have forgotten this participant; 0: never.
    wiped_at: AtomicU64,
    bell: RwLock<Option<Bell>>,
    rung: AtomicBool,
    /// The syncer looks at nothing for the next [`TAU`] unless the bell rings.
    asleep: AtomicBool,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl Hub {
    #[inline]
    pub(super) fn lost(&self) -> bool {
        self.lost.load(Relaxed)
    }

    /// Participants, ≥ 1.
    #[inline]
    pub(super) fn live(&self) -> u64 {
        self.live.load(Relaxed).max(1)
    }

    pub(super) fn next_seq(&self) -> u64 {
        self.seq.fetch_add(1, Relaxed) + 1
    }

    pub(super) fn wiped(&self, now: Nanos, terms: &Terms) -> bool {
        let at = self.wiped_at.load(Relaxed);
        at > 0 && now.saturating_sub(at) < terms.forgotten_after()
    }

    /// Wakes the syncer.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, SeqCst)
            && let Some(bell) = &*self.bell.read()
        {
            bell();
        }
    }

    /// Wakes the syncer if it would not look within [`TAU`].
    pub(super) fn rouse(&self) {
        if self.asleep.load(SeqCst) {
            self.ring();
        }
    }
}

/// What one call of the script carries: the limits of one hash tag.
#[derive(Debug)]
pub struct Call {
    /// The hash tag; the call with no asks counts participants.
    pub tag: Arc<str>,
    /// This participant ends.
    pub(super) leaving: bool,
    asks: Vec<(Arc<Lease>, Ask)>,
}

impl Call {
    fn beat(leaving: bool) -> Self {
        Self {
            tag: NODES.into(),
            leaving,
            asks: Vec::new(),
        }
    }

    fn of(tag: Arc<str>, asks: Vec<(Arc<Lease>, Ask)>) -> Self {
        Self {
            tag,
            leaving: false,
            asks,
        }
    }

    /// Ids and asks, in the order in which the grants come back.
    pub fn asks(&self) -> impl ExactSizeIterator<Item = (&str, &Ask)> {
        self.asks.iter().map(|(lease, ask)| (lease.id(), ask))
    }

    /// Whether it counts participants.
    pub fn is_beat(&self) -> bool {
        self.asks.is_empty()
    }
}

/// What is to be sent at once. Hand it back to [`Leases::answer`], call by call.
#[derive(Debug)]
pub struct Round {
    /// When it was made.
    pub sent: Nanos,
    /// At most one call per tag, or a few where a tag has many limits.
    pub calls: Vec<Call>,
}

/// All leases of a process.
///
/// Without limits in use it costs nothing but a heartbeat; its memory is bounded by the limits used
/// in the last minute to an hour (as long as a limit takes to be full again).
#[derive(Debug)]
pub struct Leases {
    hub: Arc<Hub>,
    active: AtomicBool,
    by_id: RwLock<FxHashMap<Box<str>, Arc<Lease>>>,
    tags: Mutex<FxHashMap<Box<str>, Arc<str>>>,
    sync: Mutex<Syncing>,
}

#[derive(Debug, Default)]
struct Syncing {
    active: Vec<Arc<Lease>>,
    scanned: Option<Nanos>,
    next_scan: Nanos,
    beat: Option<Nanos>,
    /// The last reply to a heartbeat.
    heard: Option<Nanos>,
    swept: Nanos,
}

impl Leases {
    /// A registry that is not in use: limits are this process's alone.
    pub fn new(counters: LeaseCounters) -> Self {
        Self {
            hub: Arc::new(Hub {
                fresh: SegQueue::new(),
                urgent: SegQueue::new(),
                counters,
                lost: AtomicBool::new(false),
                live: AtomicU64::new(1),
                seq: AtomicU64::new(0),
                versions: AtomicU64::new(0),
                wiped_at: AtomicU64::new(0),
                bell: RwLock::new(None),
                rung: AtomicBool::new(false),
                asleep: AtomicBool::new(true),
            }),
            active: AtomicBool::new(false),
            by_id: RwLock::default(),
            tags: Mutex::default(),
            sync: Mutex::default(),
        }
    }

    /// From now on limits are shared. `expected`: participants, until the store tells. `bell` is
    /// rung when [`Self::collect`] should be called before the time it named; it must not block.
    pub fn activate(&self, expected: u64, bell: impl Fn() + Send + std::marker::Sync + 'static) {
        *self.hub.bell.write() = Some(Box::new(bell));
        self.set_live(expected);
        self.hub.counters.store_up.set(1);
        self.active.store(true, SeqCst);
    }

    /// Whether limits are shared.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.active.load(Relaxed)
    }

    /// The lease of a limit. `id` names the limit for all participants, and the period of money;
    /// `tag` is what all limits that are asked for in one call share. Other terms than before
    /// replace them; what is out stays out.
    pub fn get_or_create(&self, id: &str, tag: &str, terms: Terms) -> Arc<Lease> {
        self.get_as_of(self.next_version(), id, tag, terms)
    }

    /// A configuration that is later than all before.
    pub(in crate::limit) fn next_version(&self) -> u64 {
        self.hub.versions.fetch_add(1, SeqCst) + 1
    }

    /// The same for the terms of a configuration: those of a later one stay.
    pub(in crate::limit) fn get_as_of(
        &self,
        version: u64,
        id: &str,
        tag: &str,
        terms: Terms,
    ) -> Arc<Lease> {
        if let Some(lease) = self.by_id.read().get(id) {
            if lease.terms() != terms {
                lease.revise(terms, version);
            }
            return Arc::clone(lease);
        }
        let tag = Arc::clone(
            self.tags
                .lock()
                .entry(tag.into())
                .or_insert_with(|| tag.into()),
        );
        match self.by_id.write().entry(id.into()) {
            Entry::Occupied(there) => Arc::clone(there.get()),
            Entry::Vacant(place) => {
                Arc::clone(place.insert(Lease::new(id, tag, terms, version, Arc::clone(&self.hub))))
            }
        }
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.by_id.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Participants, as far as is known.
    pub fn live(&self) -> u64 {
        self.hub.live()
    }

    fn set_live(&self, live: u64) {
        let live = live.max(1);
        self.hub.live.store(live, Relaxed);
        self.hub
            .counters
            .live
            .set(i64::try_from(live).unwrap_or(i64::MAX));
    }

    /// The store is given up: everything is spent from shares until [`Self::store_back`].
    pub fn store_lost(&self, now: Nanos) {
        self.hub.lost.store(true, Relaxed);
        self.hub.counters.store_up.set(0);
        while let Some(lease) = self.hub.urgent.pop() {
            lease.urgent.store(false, SeqCst);
            lease.abandoned(now);
        }
    }

    /// The store answers again. Leases return to it one by one, as they ask.
    pub fn store_back(&self) {
        self.hub.lost.store(false, Relaxed);
        self.hub.counters.store_up.set(1);
        // Whenever they were to be looked at next, that was before.
        self.sync.lock().next_scan = 0;
        self.hub.ring();
    }

    /// What to send now, if anything, and when to call again unless the bell rings. While the store
    /// is lost that is a heartbeat, as a probe, whenever it is called.
    pub fn collect(&self, now: Nanos) -> (Option<Round>, Nanos) {
        self.hub.rung.store(false, SeqCst);
        let mut sync = self.sync.lock();
        let mut calls: Vec<Call> = Vec::new();
        let lost = self.hub.lost();
        if lost || sync.beat.is_none_or(|at| now >= at + BEAT) {
            sync.beat = Some(now);
            calls.push(Call::beat(false));
        }
        let next_beat = sync.beat.map_or(now, |at| at + BEAT);
        if lost {
            return (Some(Round { sent: now, calls }), next_beat);
        }
        let mut asks = Gathered::default();
        while asks.count < MAX_PER_ROUND
            && let Some(lease) = self.hub.urgent.pop()
        {
            lease.urgent.store(false, SeqCst);
            if let Due::Now(ask) = lease.due(now) {
                asks.add(lease, ask);
                sync.next_scan = sync.next_scan.min(now + TAU);
            }
        }
        let mut fresh = false;
        while let Some(lease) = self.hub.fresh.pop() {
            sync.active.push(lease);
            fresh = true;
        }
        if fresh {
            let soonest = sync.scanned.map_or(now, |at| at + TAU);
            sync.next_scan = sync.next_scan.min(soonest);
        }
        if now >= sync.next_scan {
            sync.scan(now, &mut asks);
        }
        self.hub
            .counters
            .active
            .set(i64::try_from(sync.active.len()).unwrap_or(i64::MAX));
        if now >= sync.swept + SWEEP {
            sync.swept = now;
            self.sweep(now);
        }
        calls.extend(asks.into_calls());
        let next = next_beat.min(sync.next_scan);
        self.hub.asleep.store(next > now + TAU, SeqCst);
        // What came before the line above saw a syncer that is awake.
        let next = if self.hub.fresh.is_empty() {
            next
        } else {
            next.min(now + TAU)
        };
        let round = (!calls.is_empty()).then_some(Round { sent: now, calls });
        (round, next)
    }

    /// Gives everything back that no request uses: the last round of a participant that ends.
    pub fn farewell(&self, now: Nanos) -> Round {
        let mut sync = self.sync.lock();
        while let Some(lease) = self.hub.fresh.pop() {
            sync.active.push(lease);
        }
        let mut asks = Gathered::default();
        for lease in sync.active.drain(..) {
            lease.slow.lock().end();
            if let Due::Now(ask) = lease.due(now) {
                asks.add(lease, ask);
            }
        }
        let beat = std::iter::once(Call::beat(true));
        Round {
            sent: now,
            calls: asks.into_calls().chain(beat).collect(),
        }
    }

    /// Hands on what became of a call of the round that was sent at `sent`: a grant per ask, or
    /// `None` if it failed or was not answered in time. A heartbeat's one grant has the number of
    /// participants as units, and is stale if the store did not know this one.
    pub fn answer(&self, sent: Nanos, now: Nanos, call: &Call, grants: Option<&[Grant]>) {
        let grants = grants.filter(|grants| grants.len() == call.asks.len().max(1));
        let counters = &self.hub.counters;
        let Some(grants) = grants else {
            counters.failures.inc();
            for (lease, _) in &call.asks {
                lease.failed(now);
            }
            return;
        };
        counters.calls.inc();
        if call.is_beat() {
            let mut sync = self.sync.lock();
            let lately = sync.heard.is_some_and(|at| now < at + PART_LIFE / 2);
            sync.heard = Some(now);
            drop(sync);
            if let [grant] = grants {
                self.set_live(grant.units);
                if grant.stale && lately {
                    self.hub.wiped_at.store(now.max(1), Relaxed);
                }
            }
            return;
        }
        for ((lease, _), grant) in call.asks.iter().zip(grants) {
            lease.granted(sent, now, *grant);
        }
    }

    fn sweep(&self, now: Nanos) {
        self.by_id.write().retain(|_, lease| {
            // Only the map has it, and it gives out no more while it is locked.
            Arc::strong_count(lease) > 1 || !lease.forgettable(now)
        });
        self.tags.lock().retain(|_, tag| Arc::strong_count(tag) > 1);
    }
}

impl Syncing {
    fn scan(&mut self, now: Nanos, asks: &mut Gathered) {
        self.scanned = Some(now);
        let mut next = Nanos::MAX;
        let mut left_out = false;
        self.active.retain(|lease| {
            if asks.count >= MAX_PER_ROUND {
                left_out = true;
                return true;
            }
            match lease.due(now) {
                Due::Now(ask) => {
                    asks.add(Arc::clone(lease), ask);
                    next = next.min(now + TAU);
                    true
                }
                Due::At(at) => {
                    next = next.min(at);
                    true
                }
                Due::Idle => false,
            }
        });
        if self.active.capacity() > 1024 && self.active.len() < self.active.capacity() / 4 {
            self.active.shrink_to(self.active.len() * 2);
        }
        let pause = PAUSE.saturating_mul(self.active.len() as Nanos).min(TAU);
        self.next_scan = if left_out { now } else { next.max(now + pause) };
    }
}

/// Asks by tag, in calls of bounded size.
#[derive(Default)]
struct Gathered {
    count: usize,
    open: FxHashMap<Arc<str>, Vec<(Arc<Lease>, Ask)>>,
    full: Vec<Call>,
}

impl Gathered {
    fn add(&mut self, lease: Arc<Lease>, ask: Ask) {
        self.count += 1;
        let tag = Arc::clone(&lease.tag);
        let asks = self.open.entry(Arc::clone(&tag)).or_default();
        asks.push((lease, ask));
        if asks.len() >= MAX_PER_CALL {
            let asks = std::mem::take(asks);
            self.full.push(Call::of(tag, asks));
        }
    }

    fn into_calls(self) -> impl Iterator<Item = Call> {
        let open = self.open.into_iter().filter(|(_, asks)| !asks.is_empty());
        self.full
            .into_iter()
            .chain(open.map(|(tag, asks)| Call::of(tag, asks)))
    }
}
