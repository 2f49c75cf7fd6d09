//! Nodes whose meters share limits over a model of their store, on a clock of the test's own. Each
//! call is answered at once, so that what is asked is known when [`Nodes::run`] or
//! [`Nodes::admit`] returns.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::sync::Arc;
use std::time::Duration;

use forebay_core::limit::lease::{LeaseCounters, Leases};
use forebay_core::limit::{
    Ask, Declined, Limits, Meter, MeterState, Meters, Nanos, Now, Refusal, Region, Reservation,
};
use tokio::runtime::Runtime;

use super::store::Store;

pub const MS: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000 * MS;
/// 2026-11-25 22:24:17 UTC.
pub const BEGAN: i64 = 1_795_645_457;
const FAILURES: u32 = 3;

pub type Admitted = (Reservation, MeterState);

struct Node {
    leases: Arc<Leases>,
    region: Arc<Region>,
    failures: u32,
    lost: bool,
    dead: bool,
}

pub struct Nodes {
    pub now: Nanos,
    pub unix_s: i64,
    pub store: Store,
    /// Calls fail.
    pub down: bool,
    /// Requests wait in vain: nothing is answered in time.
    pub hangs: bool,
    /// Calls of the script, heartbeats included.
    pub calls: u64,
    /// Requests that asked the store.
    pub waited: u64,
    all: Vec<Node>,
    runtime: Runtime,
}

impl Nodes {
    /// So many, which know of each other.
    pub fn new(count: usize) -> Self {
        let node = |_| {
            let leases = Arc::new(Leases::new(LeaseCounters::default()));
            leases.activate(count as u64, || {});
            Node {
                leases,
                region: Arc::new(Region::small(64, 1, 0)),
                failures: 0,
                lost: false,
                dead: false,
            }
        };
        let mut nodes = Self {
            now: SECOND,
            unix_s: BEGAN,
            store: Store::default(),
            down: false,
            hangs: false,
            calls: 0,
            waited: 0,
            all: (0..count).map(node).collect(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap(),
        };
        nodes.run(2 * SECOND);
        nodes
    }

    pub fn clock(&self) -> Now {
        Now {
            mono: self.now,
            unix_s: self.unix_s,
        }
    }

    pub fn leases(&self, node: usize) -> &Leases {
        &self.all[node].leases
    }

    /// A node's meter of a subject.
    pub fn meter(&self, node: usize, subject: &str, limits: &Limits) -> Arc<Meter> {
        let Node { leases, region, .. } = &self.all[node];
        Arc::new(Meter::leased(region, leases, subject, "account:a", limits))
    }

    /// Every node's meter of a subject.
    pub fn meters(&self, subject: &str, limits: &Limits) -> Vec<Arc<Meter>> {
        (0..self.all.len())
            .map(|node| self.meter(node, subject, limits))
            .collect()
    }

    /// Lets time pass; the syncers look every 10 ms.
    pub fn run(&mut self, span: Nanos) {
        let end = self.now + span;
        while self.now < end {
            self.now = (self.now + 10 * MS).min(end);
            for node in 0..self.all.len() {
                self.sync(node);
            }
        }
    }

    /// A process ends without a word.
    pub fn kill(&mut self, node: usize) {
        self.all[node].dead = true;
    }

    /// As the gateway does it: asks the store once if that may help.
    pub fn admit(&mut self, node: usize, meters: &Meters, ask: Ask) -> Result<Admitted, Refused> {
        let wanting = match self.try_admit(meters, ask) {
            Ok(admitted) => return Ok(admitted),
            Err(Declined::Refused(refusal)) => return Err(Refused::At(refusal)),
            Err(Declined::Wanting(wanting)) => wanting,
        };
        self.waited += 1;
        let now = self.now;
        let patience = Duration::from_millis(if self.hangs { 0 } else { 60 });
        let runtime = self.runtime.handle().clone();
        let _time = runtime.enter();
        let mut answered = std::pin::pin!(wanting.answered(patience, || now));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        if answered.as_mut().poll(&mut context).is_pending() {
            self.sync(node);
            assert!(answered.as_mut().poll(&mut context).is_ready());
        }
        match self.try_admit(meters, ask) {
            Ok(admitted) => Ok(admitted),
            Err(Declined::Refused(refusal)) => Err(Refused::At(refusal)),
            Err(Declined::Wanting(wanting)) => Err(Refused::Unanswered(wanting.into_refusal())),
        }
    }

    fn try_admit(&self, meters: &Meters, ask: Ask) -> Result<Admitted, Declined> {
        Reservation::admit(meters.clone(), self.clock(), ask)
    }

    /// One look of a node's syncer: `python/forebay/limits/syncer.py` without the network.
    pub fn sync(&mut self, node: usize) {
        let now_us = (self.now / 1_000).cast_signed() + 1_000_000_000_000_000;
        let this = &mut self.all[node];
        if this.dead {
            return;
        }
        let (round, _) = this.leases.collect(self.now);
        for call in round.into_iter().flat_map(|round| round.calls) {
            self.calls += 1;
            let grants = (!self.down).then(|| {
                let me = format!("node{node}");
                let reply = self
                    .store
                    .call(now_us, &me, &call.keys(), &call.arguments());
                call.grants(&reply).unwrap()
            });
            if grants.is_some() {
                this.failures = 0;
                if std::mem::take(&mut this.lost) {
                    this.leases.store_back();
                }
            } else {
                this.failures += 1;
                if this.failures == FAILURES {
                    this.lost = true;
                    this.leases.store_lost(self.now);
                }
            }
            this.leases
                .answer(self.now, self.now, &call, grants.as_deref());
        }
    }
}

/// Why a request was not admitted.
#[derive(Debug)]
pub enum Refused {
    /// A limit refuses it.
    At(Box<Refusal>),
    /// The store was asked, and has not what it may have.
    Unanswered(Box<Refusal>),
}

impl Refused {
    pub fn refusal(&self) -> &Refusal {
        match self {
            Self::At(refusal) | Self::Unanswered(refusal) => refusal,
        }
    }
}
